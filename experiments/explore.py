"""Train models of several families on a file within a time, and write their report.

The models are chosen by the data alone. The time determines the number of training steps: the speed
of each model is measured, and the steps are set so that training, evaluation and report end in
time.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import tyro
from tyro import MISSING

from experiments import fitting, interruption
from experiments.compilation import keep_programs
from experiments.evaluation import evaluate_run
from experiments.experiment import Experiment, Options, to_config
from experiments.fitting import Candidate, candidates, describe, seconds_of, with_absolute_path
from experiments.flags import parse
from experiments.folder import with_own_data
from experiments.interruption import INTERRUPTED, Interruption
from experiments.own import flag_words, reading_flags
from experiments.registry import EXPERIMENTS
from experiments.report.command import write_page
from experiments.report.runs import FAILURES, Entry, entry_of, is_of_users, side_by_side
from experiments.run import duration, load_run, train_run
from experiments.uses.base import load_subject
from gen import data, optimize, train
from gen.core import UserError, capabilities, check_fields, require
from gen.data import ODDS, Dataset, Reading
from gen.data.download import first_line

COMMAND = "explore"
MOST = 6
"""Models, at most, each of another family where there are enough families."""
LEAST = 3
"""Models, at least, if as many fit: further ones of the same families are taken."""
MODEL_SECONDS = 30.0
"""Seconds of training and evaluation for each model, from which the number of models follows."""
REPORT_SHARE = 0.25
"""Share of the time that is kept for the report."""
SHORTEST = 0.5
"""Minutes, at least."""
START = 6.0
"""Seconds that are kept for the start of the program and for the writing of the page."""
MEASURED = 2.0
"""Seconds for which the speed of training is measured, at most."""
RECOMPILING = 0.3
"""Share of the time of compiling that a program takes which is compiled again as before."""
MARGIN = 0.85
"""Share of the time of a training that is planned, since the speed varies."""
REPORTS = 20
"""Reports of a training, and its validations if the model has an objective."""
PATIENCE = 5
"""Validations without a better state after which a training ends."""
FEWEST_STEPS = 10
"""Steps below which a model is left out."""
LARGE = 20_000_000
"""Numbers in the state of a model from which smaller ones of its family are preferred."""
LEAST_EVALUATION = 10.0
"""Seconds that an evaluation has, at least."""
EVALUATION_SHARE = 0.4
"""Share of the time of a model that is kept for its evaluation."""
DEMONSTRATIONS = ("gan_collapsed_digits",)
"""Experiments that show a failure on purpose."""
OVER = "the time is over"
"""The mark of a training that ended because its time was over."""


@dataclass(frozen=True)
class Flags:
    """Train models of several families on your data within a time, and write their report.

    What the data hold is printed first. Ctrl-C ends the training and writes the report of the runs
    that are finished.
    """

    data: tyro.conf.Positional[str]
    """folder of images, file (.npz, .npy, .csv, .tsv, .txt, .mat) or name of a data set"""
    reading: Annotated[Any, tyro.conf.arg(name="")]
    """how your own data are read"""
    minutes: float = 10.0
    """time for everything: training, evaluation and report"""
    seed: int = 0
    """seed of every training and draw"""
    out: Path | None = None
    """new folder of the runs and of report.html (default: runs/explore-DATA-seedN)"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    keep_programs: bool = True
    """keep compiled programs in the cache folder for later commands"""

    def __post_init__(self):
        check_fields(self, seeds=("seed",))
        require(
            SHORTEST <= self.minutes < math.inf,
            f"--minutes is {self.minutes:g}, too short for any model: take at least {SHORTEST:g}",
        )


class Choice(NamedTuple):
    """The models for a data set, and why others are left out."""

    chosen: list[Candidate]
    left_out: list[str]  # a line each


class Pace(NamedTuple):
    """The time that a training takes."""

    compiling: float  # seconds until the first step is done
    step: float  # seconds of a step


class Plan(NamedTuple):
    """A training that fits into a time."""

    experiment: Experiment
    command: str  # that repeats it
    seconds: float  # for the training, as planned


def command(arguments: list[str]) -> int:
    """Run `explore` with its flags, and return the exit code."""
    begun = time.monotonic()
    chosen = parse(Flags, arguments, COMMAND, Flags(MISSING, Reading()))
    keep_programs(chosen.keep_programs)
    # Two processes share a GPU, whose memory the first one would take as a whole.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    end = begun + 60 * chosen.minutes - START
    dataset = data.load(chosen.data, chosen.data_dir, chosen.reading)
    name = with_own_data(COMMAND, Experiment(None, data=chosen.data))
    out = chosen.out or Path("runs") / f"{name}-seed{chosen.seed}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: choose another --out, or remove it")
    fitting_ones = candidates(dataset, chosen.data, chosen.reading)
    for line in describe(dataset, chosen.data, chosen.reading, fitting_ones):
        print(line)
    return explore(dataset, fitting_ones, chosen, out, end)


def explore(
    dataset: Dataset, fitting_ones: Sequence[Candidate], flags: Flags, out: Path, end: float
) -> int:
    """Train, evaluate and report the models of a data set, and return the exit code.

    Args:
      dataset: the data set.
      fitting_ones: the experiments that fit.
      flags: the flags of the command.
      out: the folder of the runs and of report.html.
      end: the value of `time.monotonic()` at which everything should be done.

    Raises:
      UserError: no experiment fits, or no model could be trained in the time.
    """
    require(
        bool(fitting_ones),
        f"no experiment fits {flags.data}: the lines above say what the data hold",
    )
    seconds = (1 - REPORT_SHARE) * (end - time.monotonic())
    most = max(LEAST, min(MOST, int(seconds / MODEL_SECONDS)))
    choice = choose(dataset, fitting_ones, flags.data, flags.reading, most)
    left_out = list(choice.left_out)
    print(f"\nTraining {', '.join(each.name for each in choice.chosen)}", flush=True)
    for line in left_out:
        print(f"left out: {line}", flush=True)
    signals = Interruption(patient=True)
    stop_watching = interruption.watch(signals.act)
    try:
        entries, late = train_all(choice.chosen, dataset, flags, out, end, signals)
        if not entries and not signals.received:
            raise UserError(
                f"no model could be trained in the time ({late[0]}): give more --minutes"
            )
        if not entries:
            print("no run is finished: there is nothing to report", file=sys.stderr)
            return INTERRUPTED
        page = out / "report.html"
        size = write_page(entries, page, COMMAND, end, [*left_out, *late])
        print(f"{page}, {size / 1e6:.2g} MB")
        return INTERRUPTED if signals.received else 0
    finally:
        stop_watching()


def train_all(
    chosen: Sequence[Candidate],
    dataset: Dataset,
    flags: Flags,
    out: Path,
    end: float,
    signals: Interruption,
) -> tuple[list[Entry], list[str]]:
    """Train and evaluate models one after another, and return them with their estimates.

    Each model has an equal share of the time that is left. A model that does not fit into its share
    comes again after the others, which may have left more.

    Args:
      chosen: the models.
      dataset: their data.
      flags: the flags of the command.
      out: the folder of the runs.
      end: the value of `time.monotonic()` at which the report should be written.
      signals: the record of signals.

    Returns:
      The runs, the runs of one family side by side, and a line for each model that is left out.
    """
    entries, left_out, waiting = [], [], []
    end_of_training = end - REPORT_SHARE * (end - time.monotonic())
    paces: dict[str, Pace] = {}
    evaluator = Evaluator(flags, signals)

    def attempt(candidate: Candidate, models: int, last: bool) -> None:
        name, folder = candidate.name, out / candidate.name
        share = (end_of_training - time.monotonic()) / models
        begun = time.monotonic()
        if name not in paces:
            print(f"{name}: measuring its speed", flush=True)
            paces[name] = pace_of(trial(candidate, flags), dataset, min(MEASURED, 0.1 * share))
        if signals.received:
            raise UserError(f"{signals.received} came before its training")
        plan = plan_of(candidate, dataset, flags, paces[name], begun + share, folder)
        if isinstance(plan, str):
            if last:
                raise UserError(plan)
            waiting.append(candidate)
            return
        run_plan(plan, name, folder, flags.data_dir, signals, end_of_training)
        if signals.received not in ("", OVER):
            raise UserError(f"{signals.received} came before its end")
        texts, without = evaluator.evaluate(folder, begun + share)
        entry = entry_of(load_subject(folder, flags.data_dir), name, without=without)
        entries.append(entry._replace(warnings=[*entry.warnings, *texts]))

    for last in (False, True):
        queue, waiting = (waiting if last else list(chosen)), []
        for place, candidate in enumerate(queue):
            try:
                if signals.received:
                    raise UserError(f"{signals.received} came before its training")
                attempt(candidate, len(queue) - place, last)
            except FAILURES as error:
                left_out.append(f"{candidate.name}: {first_line(error)}")
                print(f"left out: {left_out[-1]}", flush=True)
            signals.exchange(OVER, "")
    evaluator.stop()
    return side_by_side(entries), left_out


def choose(
    dataset: Dataset,
    fitting_ones: Sequence[Candidate],
    source: str,
    reading: Reading,
    most: int = MOST,
) -> Choice:
    """Return models of different families, in the order of their cost.

    Of a family, the first is taken by this order: with a likelihood of these data before others,
    registered on data of the same form before others, small before large, and cheap before
    expensive.

    Args:
      dataset: the data set.
      fitting_ones: the experiments that fit.
      source: the path or the name of the data.
      reading: how they are read.
      most: the number of models, at most.
    """
    families: dict[str, list[Candidate]] = {}
    for candidate in sorted(fitting_ones, key=lambda each: _preference(each, dataset)):
        model = candidate.experiment.model
        if is_generative(model) and candidate.name not in DEMONSTRATIONS:
            families.setdefault(model.family, []).append(candidate)
    firsts = [members[0] for members in families.values()]
    firsts.sort(key=lambda each: (_preference(each, dataset)[0], seconds_of(each.name)))
    chosen, late = firsts[:most], firsts[most:]
    others = (each for members in families.values() for each in members[1:])
    for candidate in sorted(others, key=lambda each: _preference(each, dataset)):
        if len(chosen) < LEAST:
            chosen.append(candidate)
    left_out = [
        f"{each.experiment.model.family}: the time is enough for {most} families, "
        "and it takes longer"
        for each in late
    ]
    for family in dict.fromkeys(each.model.family for each in EXPERIMENTS.values()):
        if family not in families:
            left_out.append(f"{family}: {why_unfit(family, dataset, source, reading)}")
    return Choice(chosen, left_out)


def _preference(candidate: Candidate, dataset: Dataset) -> tuple[Any, ...]:
    """Return the key by which the members of a family are sorted, the preferred one first."""
    registered = EXPERIMENTS[candidate.name].data
    table = len(dataset.shape) == 1 and bool(dataset.format.scale)
    points = dataset.shape == (2,) and not table
    other_form = (registered in ODDS) != table or (registered == "eight_gaussians") != points
    large, seconds = candidate.size > LARGE, seconds_of(candidate.name)
    return not candidate.likelihood, other_form, large, seconds, candidate.size


def is_generative(model: Any) -> bool:
    """Return whether a model samples or reconstructs examples, as a classifier does not."""
    return bool({"sample", "reconstruct"} & {*capabilities(model)})


def why_unfit(family: str, dataset: Dataset, source: str, reading: Reading) -> str:
    """Return why no experiment of a family fits a data set.

    Args:
      family: the family.
      dataset: the data set.
      source: its path or name.
      reading: how it is read.
    """
    for name, experiment in EXPERIMENTS.items():
        if experiment.model.family == family:
            if not is_generative(experiment.model):
                return "it is no generative model"
            try:
                fitting.fit(name, replace(experiment, data=source, reading=reading), dataset)
            except UserError as error:
                return str(error).partition(";")[0]
    return "none of its experiments suits the form of the data"


def trial(candidate: Candidate, flags: Flags) -> Experiment:
    """Return a fitting experiment with the seed of the command, and with a single one."""
    return replace(candidate.experiment, **_changes(flags))


def _changes(flags: Flags) -> dict[str, Any]:
    """Return the fields that `trial` changes."""
    single = {"seed": flags.seed, "seeds": (), "restarts": False}
    return {**single, "probe": False, "sample_every": 0, "keep_every": 0}


def plan_of(
    candidate: Candidate, dataset: Dataset, flags: Flags, pace: Pace, end: float, folder: Path
) -> Plan | str:
    """Return a training that fits into a time, or the reason why none does.

    Args:
      candidate: the experiment.
      dataset: its data.
      flags: the flags of the command.
      pace: its measured speed.
      end: the value of `time.monotonic()` at which training and evaluation should be done.
      folder: the run folder.
    """
    experiment = trial(candidate, flags)
    validated = train.has_objective(experiment.model)
    # A validation takes about as long as the steps that see as many rows.
    blocks = math.ceil(len(dataset.validation["x"]) / experiment.batch_size)
    validations = REPORTS * blocks * pace.step if validated else 0.0
    left = (1 - EVALUATION_SHARE) * (end - time.monotonic())
    # The length of a falling learning rate is part of the compiled step.
    falls = optimize.for_run(experiment.model, 1) != optimize.for_run(experiment.model, 2)
    steps = experiment.steps
    if steps * pace.step + validations > MARGIN * (left - RECOMPILING * pace.compiling):
        compiling = pace.compiling * (1.0 if falls else RECOMPILING)
        steps = min(steps, int(max(0.0, MARGIN * (left - compiling) - validations) / pace.step))
    if steps < min(FEWEST_STEPS, experiment.steps):
        return (
            f"{steps} of its {experiment.steps:,} steps fit into the time, beside "
            f"{duration(pace.compiling)} for compiling"
        )
    every = max(1, steps // REPORTS)
    steps = steps // every * every
    changed = {
        **_changes(flags),
        "steps": steps,
        "report_every": every,
        "checkpoint_every": steps,
        "validate_every": every if validated else 0,
        "early_stop": PATIENCE if validated else 0,
    }
    words = flag_words({**candidate.flags, **_different(candidate.name, changed)})
    source = ["--data", flags.data, *reading_flags(flags.reading), "--out", str(folder)]
    command = shlex.join(["python", "-m", "experiments", "train", candidate.name, *source, *words])
    print(
        f"{candidate.name}: {steps:,} of {experiment.steps:,} steps, about "
        f"{duration(steps * pace.step + validations)}",
        flush=True,
    )
    return Plan(replace(candidate.experiment, **changed), command, left)


def _different(name: str, changed: dict[str, Any]) -> dict[str, Any]:
    """Return the changed fields that differ from the registered experiment."""
    stored = to_config(name, EXPERIMENTS[name])

    def as_stored(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return {
        field: value for field, value in changed.items() if as_stored(value) != stored.get(field)
    }


def pace_of(experiment: Experiment, dataset: Dataset, seconds: float) -> Pace:
    """Measure the speed of the training of a model.

    Args:
      experiment: the experiment, on its data.
      dataset: the data.
      seconds: the time of the measured steps, at most.
    """
    begun, marks = time.monotonic(), []
    for progress in experiment.fit(dataset, validate_every=0):
        jax.block_until_ready(progress.carry)
        marks.append((progress.step, time.monotonic()))
        if len(marks) > 1 and marks[-1][1] - marks[0][1] > seconds:
            break
    first, last = marks[0], marks[-1]
    compiling = first[1] - begun
    step = (last[1] - first[1]) / (last[0] - first[0]) if len(marks) > 1 else compiling / first[0]
    return Pace(compiling, max(step, 1e-6))


def run_plan(
    plan: Plan,
    name: str,
    folder: Path,
    data_dir: Path | None,
    signals: Interruption,
    end: float,
) -> None:
    """Train a planned experiment into its folder.

    A training that takes longer than planned is stopped, and keeps its last state.

    Args:
      plan: the plan.
      name: the name of the experiment.
      folder: the run folder.
      data_dir: folder of prepared data sets.
      signals: the record of signals, which the clock uses, too.
      end: the value of `time.monotonic()` at which all trainings should be done.

    Raises:
      UserError: a metric became NaN or infinite.
    """
    longest = max(1.0, min(1.3 * plan.seconds, end - time.monotonic()))
    clock = threading.Timer(longest, signals.exchange, ("", OVER))
    clock.daemon = True
    clock.start()
    try:
        options = Options(out=folder, data_dir=data_dir, pictures=False)
        code = train_run(name, with_absolute_path(plan.experiment), options, plan.command, signals)
    finally:
        clock.cancel()
        clock.join()  # it may be at its exchange
        signals.say = interruption.write_line  # in place of the training's progress bar
    require(code in (0, INTERRUPTED), "its training diverged")


class Evaluator:
    """A process that evaluates runs, so that an evaluation which takes too long can be ended.

    It is started at once, and again after it was ended.
    """

    def __init__(self, flags: Flags, signals: Interruption):
        self.flags, self.signals = flags, signals
        self.start()

    def start(self) -> None:
        """Start the process."""
        context = multiprocessing.get_context("spawn")  # a fork of JAX's threads can deadlock
        self.connection, other = context.Pipe()
        arguments = (other, self.flags.data_dir, self.flags.keep_programs)
        self.process = context.Process(target=evaluate_received, args=arguments, daemon=True)
        # A signal can reach all processes of a terminal. This one inherits the mask, and its
        # starter decides when it ends.
        ending = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
        self.process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        other.close()

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()

    def evaluate(self, folder: Path, end: float) -> tuple[list[str], str]:
        """Evaluate a run into its folder.

        Args:
          folder: the run folder.
          end: the value of `time.monotonic()` at which the evaluation is ended.

        Returns:
          The warnings of the evaluation, and the reason why there are no estimates or "".
        """
        begun = time.monotonic()
        print(f"{folder.name}: evaluating", flush=True)
        try:
            self.connection.send(folder)
            while not self.connection.poll(0.1):
                reason = self.signals.received if self.signals.received != OVER else ""
                if time.monotonic() > max(end, begun + LEAST_EVALUATION):
                    reason = f"it takes longer than {duration(time.monotonic() - begun)}"
                if reason:
                    break
            else:
                return self.connection.recv()
        except (EOFError, OSError):  # the other end of the connection is closed
            reason = "its process has ended, probably for lack of memory"
        self.stop()
        self.start()
        return [], f"no estimates, since the evaluation was ended: {reason}"


def evaluate_received(connection: Any, data_dir: Path | None, keep: bool) -> None:
    """Evaluate the runs whose folders come through a connection, and answer for each.

    Args:
      connection: the connection. An answer has the warnings of the evaluation, and an error or "".
      data_dir: folder of prepared data sets.
      keep: whether to keep compiled programs.
    """
    keep_programs(keep)
    with contextlib.suppress(EOFError, OSError):  # that process has ended
        while True:
            folder = connection.recv()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    evaluate_run(load_run(folder, data_dir), "test")
                    error = ""
                except Exception as raised:  # a run without estimates is reported all the same
                    error = first_line(raised)
            texts = [f"evaluation: {each.message}" for each in caught if is_of_users(each)]
            connection.send((texts, error))
