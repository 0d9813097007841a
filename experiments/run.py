"""Train into a run folder, resume from it, and read it back."""

from __future__ import annotations

import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from experiments import fitting, interruption
from experiments import folder as files
from experiments.experiment import Experiment, Options, to_config
from experiments.interruption import INTERRUPTED, Interruption
from gen import live, parallel, train, trained
from gen.checkpoint import open_checkpoints
from gen.core import UserError, capabilities, facts
from gen.data import Dataset
from gen.files import delete_leftovers
from gen.live import Display, as_text, spread
from gen.trained import Trained

LAST_METRICS = ("loss", "validation")
"""Metrics that the last line of a training has, where the model logs them."""
FAULTS = "faults.log"
"""Name of the file of a run with the faults of its training that a report showed."""
LINE_EVERY = 30.0
"""Seconds between two lines about the progress of a run, where there is no terminal."""
LAST_PICTURE = "curves.png"
"""The picture that is drawn last: a finished run that has it has all pictures."""


class Run(NamedTuple):
    """A run that was read back from its folder."""

    folder: Path
    name: str
    experiment: Experiment
    dataset: Dataset
    step: int
    chosen_step: Any  # step of `state`, [] or [S]; below `step` where validation chose the state
    state: Any  # state of the model, [S, ...] for several seeds
    shown: int  # index of the seed whose model is shown
    seconds: float  # training time up to the last checkpoint
    sessions: list[dict[str, Any]]  # sessions in manifest.json
    stopped_early: bool = False  # whether --early-stop ended the training at `step`


def train_run(
    name: str,
    experiment: Experiment,
    options: Options,
    command: str = "",
    host: Interruption | None = None,
) -> int:
    """Train an experiment, or resume it where its folder stops.

    Args:
      name: its name in the registry.
      experiment: the experiment as the flags have changed it.
      options: where and on which devices it runs.
      command: the command that repeats the run (default: the command of this process).
      host: the record of signals of a command that goes on after the training.

    Returns:
      The exit code: 0, INTERRUPTED, or 1 if a metric became NaN or infinite.

    Raises:
      UserError: flags, data and folder do not fit together. Nothing has been trained then.
    """
    if options.coordinator:
        _join(options)
    devices = options.devices or (jax.device_count() if options.coordinator else 1)
    mesh = None
    if devices > 1 or options.coordinator:
        mesh = parallel.make_mesh(devices)
        parallel.check_batch(experiment.batch_size, devices)
    files.check_logger(options.logger)
    experiment = fitting.with_absolute_path(experiment)
    dataset = experiment.load_data(options.data_dir)
    experiment = fitting.fit(name, experiment, dataset)
    folder = options.out or files.default_folder(name, experiment)

    with ExitStack() as stack:
        stack.enter_context(_other_processes())
        _same_everywhere([str(folder.absolute()), to_config(name, experiment)])
        # The shapes are computed before anything is written, so that a model that needs too much
        # memory leaves no folder.
        target = carry_shapes(experiment.for_run(), dataset, mesh)

        def open_folder():
            stack.enter_context(files.hold(folder))
            files.check(folder, name, experiment, dataset)
            for written in (folder, folder / "samples"):
                delete_leftovers(written)

        _by_lead(open_folder)
        old = files.read_config(folder)
        _name_missing(folder, old)
        experiment = experiment.for_run()
        signals = host or Interruption()
        if host is None:
            stack.callback(interruption.watch(signals.act))
        checkpoints = stack.enter_context(
            open_checkpoints(folder / "checkpoints", experiment.keep_every)
        )
        stack.enter_context(_other_processes())  # again: it ends before the checkpoints are closed
        restored = checkpoints.restore(target)
        start: tuple[int, train.Carry] | None = None
        done, seconds = 0, 0.0
        if restored:
            _name_damaged(restored.damaged)
            done, seconds = restored.step, restored.info["seconds"]
            start = done, restored.tree
            signals.saved = f"step {done} is saved"
            if _lead():  # a kill may have come between the checkpoint and its snapshot
                _snapshot(folder, experiment, done, restored.tree, signals, _say)
        stalled = start is not None and experiment.stalled(*start)
        if start and (stalled or done >= experiment.steps):
            if _lead():
                if stalled:
                    files.note_early_stop(folder, done)
                if options.pictures and not _pictures_done(folder):
                    _final_pictures(folder, experiment, dataset, start, signals, _say)
            early = "the run stopped early after " if stalled else ""
            _say(f"{folder} is finished: {early}{done} steps. Nothing to do.")
            return 0

        old_interval = old and old.experiment.report_every
        if start and old_interval != experiment.report_every:
            # The sums of the metrics belong to a report of the old interval.
            start = done, train.without_sums(start[1])
        _meet("configuration read")
        log, display = _no_log, Display(_no_log, _say)
        if _lead():
            lines = lines_until(done, folder, experiment.report_every, old_interval)
            files.note_session(folder, name, experiment, dataset, command)
            log = stack.enter_context(files.open_log(folder, lines, options.logger))
            (folder / "samples" / LAST_PICTURE).unlink(missing_ok=True)
        _say(f"resuming {folder} at step {done}" if done else f"training {name} into {folder}")
        if _lead():
            display = stack.enter_context(show_progress(name, done, experiment.steps))
            if sys.stdout.isatty():
                signals.say = display.say
        signals.begin("compiling")
        display.say("compiling")

        saved, reported = done, {}
        if _lead() and not done:
            (folder / FAULTS).unlink(missing_ok=True)
        faults = known_faults(folder)
        began = time.perf_counter() - seconds
        try:
            for step, carry, metrics in experiment.fit(
                dataset,
                pause_every=experiment.pauses,
                mesh=mesh,
                start=start,
                early_stop=experiment.early_stop,
            ):
                signals.end()
                done, seconds = step, time.perf_counter() - began
                if metrics:
                    log(step, metrics)
                    reported |= metrics
                    faults |= print_faults(folder, experiment, step, metrics, faults)
                display.show(step, metrics)
                stop = _agree(bool(signals.received), at_report=metrics is not None)
                stalled = experiment.stalled(step, carry)
                finished = stalled or step == experiment.steps
                draw = finished or _snapshot_due(experiment, step)
                if draw or stop or step % experiment.checkpoint_every == 0:
                    train.check_finite(step, carry)
                    checkpoints.save(step, carry, {"seconds": seconds})
                    saved = step
                    signals.saved = f"step {step} is saved"
                if stop and not finished:
                    break
                if draw:
                    before = time.perf_counter()
                    checkpoints.wait()  # a signal during the drawing ends the process
                    if _lead():
                        _snapshot(folder, experiment, step, carry, signals, display.say)
                    began += time.perf_counter() - before  # drawing does not count as training
                if finished and _lead():
                    if stalled:
                        files.note_early_stop(folder, step)
                    if options.pictures:
                        _final_pictures(
                            folder, experiment, dataset, (step, carry), signals, display.say
                        )
        except train.NonFiniteError as error:
            last = f"the checkpoint of step {saved} stays" if saved else "there is no checkpoint"
            print(f"stopped: {error}; {last}; try a lower learning rate", file=sys.stderr)
            return 1

    if done < experiment.steps and not stalled:
        cause = signals.received or "another process was stopped"
        _say(f"{cause}: saved step {done}; the same command goes on from there")
        return INTERRUPTED
    if stalled:
        _say(f"stopped early: {experiment.early_stop} validations brought no better state")
    last = [f"{each} {spread(reported[each])}" for each in LAST_METRICS if each in reported]
    drawn = [f"pictures in {folder}/samples"] if options.pictures else []
    _say("; ".join([f"{done} steps in {seconds:.1f} s", *last, *drawn]))
    if host is None:
        _say(f"next: python -m experiments evaluate {folder}")
    return 0


def load_run(folder: Path, data_dir: Path | None = None) -> Run:
    """Return the run in `folder` at its last sound checkpoint, with its data.

    Args:
      folder: a run folder.
      data_dir: folder of prepared data sets, as `gen.data.load` takes it.

    Raises:
      UserError: the folder holds no run, a file of it is damaged, or the data have changed.
    """
    config, manifest = files.read_config(folder), files.read_manifest(folder)
    if config is None or manifest is None:
        raise UserError(
            f"{folder} holds no run: python -m experiments train NAME --out {folder} makes one"
        )
    _name_missing(folder, config)
    experiment = config.experiment
    dataset = experiment.load_data(data_dir)
    files.check_data(folder, manifest, dataset)
    restored = trained.restore(
        folder, to_config(config.name, experiment), experiment.model, dataset.train, dataset.format
    )
    _name_damaged(restored.damaged)
    return Run(
        folder,
        config.name,
        experiment,
        dataset,
        restored.step,
        restored.chosen_step,
        restored.state,
        restored.shown,
        restored.seconds,
        manifest["sessions"],
        experiment.stalled(restored.step, restored.carry),
    )


def load_trained(path: Path, data_dir: Path | None = None) -> Trained:
    """Return the model of a run folder or a published model, for which no data are needed.

    The model of a run is the registry's with the values of config.json, so that it can have
    networks which config.json cannot hold. A run of an older version did not store the format of
    its data, so they are loaded.

    Args:
      path: a run folder, or the name of an experiment whose weights are published.
      data_dir: folder of prepared data sets, as `gen.data.load` takes it.
    """
    config = files.read_config(path)
    if config is None:
        return trained.load(path)
    if "format" in (files.read_manifest(path) or {}):
        _name_missing(path, config)
        return trained.load(path, model=config.experiment.model)
    run = load_run(path, data_dir)
    experiment = run.experiment
    state, step = experiment.of_seed((run.state, run.chosen_step), run.shown)
    stored, format = to_config(run.name, experiment), run.dataset.format
    return Trained(
        run.name, experiment.model, state, int(step), stored, format, experiment.binarize
    )


def lines_until(
    done: int, folder: Path, every: int, old_interval: int | None
) -> list[dict[str, Any]]:
    """Return the reports up to step `done`, from which a run is resumed.

    The last report of a shorter run can be off the interval. It is dropped, because a longer run
    does not make it.

    Args:
      done: the step from which the run is resumed.
      folder: the run folder.
      every: steps between two reports.
      old_interval: steps between two reports before the run was resumed; None for a new run.
    """
    same = old_interval == every
    return [
        line
        for line in files.read_metrics(folder)
        if line["step"] <= done and (line["step"] % every == 0 or not same)
    ]


def carry_shapes(experiment: Experiment, dataset: Dataset, mesh: Any, seed: Any = None) -> Any:
    """Return the shapes of the carry, placed on the mesh, for a restore.

    Args:
      experiment: the experiment.
      dataset: its data.
      mesh: devices that hold the carry, or None.
      seed: the seeds, where they are not the experiment's.
    """
    return trained.carry_shapes(
        experiment.model,
        dataset.train,
        experiment.batch_size,
        experiment.fit_seed if seed is None else seed,
        decode=experiment.decode(dataset),
        validated=experiment.validate_every > 0 and train.has_objective(experiment.model),
        placement=jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        if mesh is None
        else parallel.replicated(mesh),
    )


def _name_missing(folder: Path, config: files.Config | None) -> None:
    """Name the fields that config.json lacks because an older version wrote it."""
    if config and config.missing and _lead():
        fields = ", ".join(config.missing)
        print(f"{folder}/config.json is of an older version: {fields} by default", file=sys.stderr)


def _name_damaged(damaged: dict[int, str]) -> None:
    for step, reason in damaged.items():
        print(f"skipped the checkpoint of step {step}, which is damaged: {reason}", file=sys.stderr)


def _lead() -> bool:
    """Return whether this process is the one that writes. Checkpoints are written by all."""
    return jax.process_index() == 0


def _say(text: str) -> None:
    if _lead():
        print(text, flush=True)


def _meet(name: str) -> None:
    """Wait until every process has come to this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _by_lead(action: Callable[[], None]) -> None:
    """Run `action` in the leading process. Raise its `UserError`, if any, in every process."""
    message = ""
    if _lead():
        try:
            action()
        except UserError as error:
            message = str(error)
    if jax.process_count() > 1:
        text = np.zeros(1000, np.uint8)
        encoded = np.frombuffer(message.encode()[: len(text)], np.uint8)
        text[: len(encoded)] = encoded
        text = np.asarray(multihost_utils.broadcast_one_to_all(text))
        message = text.tobytes().rstrip(b"\0").decode(errors="ignore")
    if message:
        raise UserError(message)


def _join(options: Options) -> None:
    """Join the other processes, or end this one, whose threads still wait for them."""
    try:
        parallel.join(options.coordinator, options.processes, options.process)
    except UserError as error:
        interruption.leave(f"error: {error}", 2)


@contextmanager
def _other_processes() -> Iterator[None]:
    """End this process when another one has ended, and do not wait for that one any longer.

    JAX itself aborts the process, with a C++ stack, if the leading process has ended, and if
    another one has ended during a save or before the first exchange.
    """
    try:
        yield
    except (RuntimeError, ValueError, UserError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error  # a failed save has one
        if jax.process_count() == 1 or not re.search("Gloo|NCCL|UNAVAILABLE", str(cause)):
            raise
        reason = str(cause).strip().partition("\n")[0]
        interruption.leave(
            f"another process has ended ({reason}): start all of them again to go on"
        )


def _same_everywhere(settings: list[Any]) -> None:
    """Raise `UserError` in every process if they were started with different settings."""
    if jax.process_count() > 1:
        number = np.uint32(zlib.crc32(json.dumps(settings).encode()))
        if len(np.unique(multihost_utils.process_allgather(number))) > 1:
            raise UserError(
                "the processes have different flags or folders: give all of them the same flags, "
                "and the same --out as an absolute path"
            )


def _agree(flag: bool, at_report: bool) -> bool:
    """Return whether any process has the flag set. Several processes exchange it at reports."""
    if jax.process_count() == 1:
        return flag
    return at_report and bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def known_faults(folder: Path) -> set[tuple[int, str]]:
    """Return (seed, name) of the faults that the log of a run folder holds."""
    path = folder / FAULTS
    lines = path.read_text().splitlines() if path.exists() else []
    found = (re.match(r"step \S+, seed (\d+): (.+?): ", line) for line in lines)
    return {(int(each[1]), each[2]) for each in found if each}


def print_faults(
    folder: Path,
    experiment: Experiment,
    step: int,
    metrics: dict[str, np.ndarray],
    known: set[tuple[int, str]],
) -> set[tuple[int, str]]:
    """Print the faults of training that a report shows for the first time, with their remedies.

    The lines also go into the file FAULTS of the run folder, so that a resumed run does not repeat
    them.

    The first tenth of a run is not judged, because a model that has hardly begun to learn looks
    faulty: the samples of an untrained generator are alike.

    Args:
      folder: the run folder.
      experiment: the experiment, whose model may have `hints`.
      step: steps done.
      metrics: the means of a report, [] or [S].
      known: (seed, name) of the faults that were printed before.

    Returns:
      (seed, name) of the faults that this report shows.
    """
    if step < experiment.steps / 10 or "hints" not in capabilities(experiment.model):
        return set()
    shown = set()
    for i, seed in enumerate(experiment.all_seeds):
        of_seed = {name: float(np.ravel(values)[i]) for name, values in metrics.items()}
        for fault, line in experiment.model.hints(of_seed).items():
            shown.add((seed, fault))
            if (seed, fault) not in known and _lead():
                text = f"step {step:,}, seed {seed}: {fault}: {line}"
                print(f"warning: {text}", file=sys.stderr)
                with (folder / FAULTS).open("a") as log:
                    log.write(f"{text}\n")
    return shown


def _no_log(step: int, metrics: Any) -> None:
    """Do nothing, in processes that do not write and where there is no terminal."""


@contextmanager
def show_progress(name: str, done: int, steps: int) -> Iterator[Display]:
    """Show a progress bar above the last report on a terminal, and lines of text elsewhere.

    Args:
      name: the name of the experiment.
      done: steps done before.
      steps: the number of the last step.
    """
    if not sys.stdout.isatty():
        yield Display(_line_writer(done, steps), _say)
        return
    with live.bar(name, done, steps) as display:
        yield display


def _line_writer(done: int, steps: int, clock: Callable[[], float] = time.monotonic) -> live.Show:
    """Return a function that prints the step, the report, the speed and the time that is left.

    It prints a line at most every `LINE_EVERY` seconds.

    Args:
      done: steps done before.
      steps: the number of the last step.
      clock: a function that returns the time in seconds.
    """
    last: tuple[int, float] | None = None  # step and time of the last line
    latest: dict[str, np.ndarray] = {}

    def show(step: int, metrics: Mapping[str, np.ndarray] | None) -> None:
        nonlocal last
        latest.update(metrics or {})
        now = clock()
        if last is None:  # the first step, which took the time of compiling, does not count
            last = step, now
        elif now - last[1] >= LINE_EVERY:
            speed = (step - last[0]) / (now - last[1])
            left = duration((steps - step) / speed)
            parts = [f"step {step:,} of {steps:,}", as_text(latest)]
            _say("  ".join(filter(None, [*parts, f"{speed:.3g} steps/s", f"{left} left"])))
            last = step, now

    return show


def duration(seconds: float) -> str:
    """Return a time in its two largest units, such as `3 min 20 s`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def _pictures_done(folder: Path) -> bool:
    return (folder / "samples" / LAST_PICTURE).exists()


def _snapshot_due(experiment: Experiment, step: int) -> bool:
    """Return whether samples are drawn at a step."""
    every = experiment.sample_every
    return every > 0 and step % every == 0 and "sample" in capabilities(experiment.model)


def _snapshot(
    folder: Path,
    experiment: Experiment,
    step: int,
    carry: train.Carry,
    signals: Interruption,
    say: Callable[[str], None],
) -> None:
    """Draw samples at a step, unless none are due or there is a picture of them already."""
    if not _snapshot_due(experiment, step):
        return
    from experiments import pictures

    drawn = pictures.snapshot_path(folder / "samples", step).with_suffix(".png").exists()
    if pictures.has_snapshots(experiment.model) and not drawn:
        signals.begin("drawing pictures")
        say(f"drawing samples of step {step}")
        keys = train.streams(experiment.all_seeds[0])
        state = experiment.of_seed(parallel.local(carry.state), 0)
        pictures.snapshot(folder / "samples", step, experiment.model, state, keys.sample)
        signals.end()


def _final_pictures(
    folder: Path,
    experiment: Experiment,
    dataset: Dataset,
    last: tuple[int, train.Carry],
    signals: Interruption,
    say: Callable[[str], None],
) -> None:
    """Draw the pictures of a finished run, at its last step and carry."""
    from experiments import pictures

    signals.begin("drawing pictures")
    say("drawing pictures")
    step, carry = last[0], parallel.local(last[1])  # the copy on this process's first device
    shown = experiment.shown(carry)
    keys = train.streams(experiment.all_seeds[shown])
    test, _ = experiment.decoded(dataset, "test", experiment.all_seeds[shown])
    least = 30 if len(experiment.model.shape) == 3 else 1  # few images repeat in the grids
    shown_rows = np.resize(np.arange(len(test["x"])), max(least, len(test["x"])))[:2000]
    test = {name: jnp.asarray(values[shown_rows]) for name, values in test.items()}
    grey, _ = replace(experiment, binarize="none").decoded(
        dataset, "test", experiment.all_seeds[shown]
    )
    state = experiment.of_seed(carry.chosen, shown)
    pictures.final_pictures(
        folder / "samples",
        experiment.model,
        state,
        test,
        keys.sample,
        dataset.format.symbols,
        dataset.format.words,
        dataset.log_prob,
        jnp.asarray(grey["x"][shown_rows]),
        dataset.format.restore if dataset.format.scale else np.asarray,
        dataset.format.labels,
    )
    chosen = np.atleast_1d(train.chosen_step(step, carry)).tolist()
    curves = pictures.metric_figure(
        files.read_metrics(folder),
        facts(experiment.model).metric_units,
        chosen if experiment.validate_every else (),
    )
    pictures.save(curves, folder / "samples" / LAST_PICTURE)
    signals.end()
