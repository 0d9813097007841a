"""Train an experiment at every combination of some values of its fields.

Combinations that differ only in the seed and in rates of optimisers (`gen.optimize.RATES`) train as
one compiled program: the rates are arguments of the step, one for each combination, over which it
is mapped (`rates` of `gen.train.fit`). The result is a run folder for each combination.

A sweep's folder holds

LABEL/           the run folder of a combination, such as latent=5,learning-rate=0.001/
groups/ID/       members.json, and the checkpoints of combinations that train together
sweep.json       the result of each combination on the validation split
sweep.png        its picture
"""

from __future__ import annotations

import difflib
import itertools
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import fitting, interruption
from experiments import folder as files
from experiments import run as running
from experiments.compare import shortest_ends
from experiments.evaluation import evaluate_run
from experiments.experiment import (
    MAY_CHANGE,
    Experiment,
    Options,
    field_types,
    from_config,
    read_value,
    to_config,
)
from experiments.interruption import Interruption
from experiments.own import flag_words
from experiments.table import estimate_unit, marked
from gen import estimate, optimize, plots, train
from gen.checkpoint import open_checkpoints
from gen.core import UserError, require
from gen.data import Dataset
from gen.files import json_sum

CRITERIA = ("nll", "bce_bound", "bce_elbo", "mse")
"""Estimates that rank combinations, lower is better: the first that a model has."""
NOT_SWEPT = {
    "data": "results on different data cannot be compared",
    "reading": "results on differently read data cannot be compared",
    "binarize": "results on differently binarised data cannot be compared",
    "seeds": "give --seeds, with which every combination trains",
}
"""Fields that a sweep does not vary, nor any part of them, with the reason."""
DIVERGED = "diverged.json"
"""File of a run folder whose training diverged: the step of the report that showed it."""


class Combination(NamedTuple):
    """A combination of values of fields, with the experiment that has them."""

    values: dict[str, Any]  # by the path of the field
    experiment: Experiment  # on its data, before `Experiment.for_run`
    folder: Path  # its run folder


class Outcome(NamedTuple):
    """The result of one combination on the validation split."""

    combination: Combination
    estimates: dict[str, estimate.Estimate]  # empty where training diverged
    chosen_step: Any  # the step of the evaluated state, a list for several seeds
    diverged: int | None  # the step of the report that showed it


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Split a command line into the flags of `train` and the fields to vary.

    Args:
      arguments: the command line after `sweep`.

    Returns:
      The other words, and (field, its values as text) for each `--over FIELD VALUE VALUE ...`.

    Raises:
      UserError: an --over names no field or no value.
    """
    others, over = [], []
    position = 0
    while position < len(arguments):
        if arguments[position] != "--over":
            others.append(arguments[position])
            position += 1
            continue
        words = list(itertools.takewhile(_is_value, arguments[position + 1 :]))
        if len(words) < 2:
            raise UserError("--over takes a field and its values, as in --over model.latent 2 5 10")
        over.append((words[0], words[1:]))
        position += 1 + len(words)
    return others, over


def _is_value(word: str) -> bool:
    return not word.startswith("--")


def expand(
    name: str, base: Experiment, over: Sequence[tuple[str, Sequence[str]]]
) -> Iterator[tuple[dict[str, Any], Experiment]]:
    """Yield the values and the experiment of every combination, the last field fastest.

    Args:
      name: the name of the experiment.
      base: the experiment as the other flags have changed it.
      over: fields with their values, as text.

    Raises:
      UserError: a field does not exist or is not swept, a value has the wrong type or is out of
        range, or the model refuses a combination.
    """
    require(bool(over), "a sweep needs at least one --over FIELD VALUE VALUE ...")
    types = field_types(base)
    fields: dict[str, list[Any]] = {}
    for field, texts in over:
        path = _path_of(field, types)
        if path == "seed" and base.seeds:
            raise UserError("--over seed and --seeds set the same: leave one out")
        if path in fields:
            raise UserError(f"--over {_flag(path)} is given twice: put all values behind one")
        values = [read_value(text, types[path]) for text in texts]
        if repeated := [
            text for text, value in zip(texts, values, strict=True) if values.count(value) > 1
        ]:
            raise UserError(f"--over {_flag(path)}: {repeated[0]} stands twice")
        fields[path] = values
    for values in itertools.product(*fields.values()):
        chosen = dict(zip(fields, values, strict=True))
        config = to_config(name, base)
        for path, value in chosen.items():
            config = _with_value(config, path.split("."), value)
        try:
            yield chosen, from_config(config, {name: base})
        except UserError as error:
            raise UserError(f"--over: {error}") from error


def _path_of(field: str, types: Mapping[str, Any]) -> str:
    """Return the path of a field that --over names. Raise `UserError`, with the nearest fields."""
    path = field.replace("-", "_")
    top = "reading" if f"reading.{path}" in types else path.partition(".")[0]
    if reason := NOT_SWEPT.get(top):
        raise UserError(f"--over {field} is not swept: {reason}")
    if path in types:
        return path
    swept = [each for each in types if each.partition(".")[0] not in NOT_SWEPT]
    ends = {each: each.rpartition(".")[2] for each in swept}
    near = [each for each, end in ends.items() if path.rpartition(".")[2] in (end, _initials(end))]
    near += difflib.get_close_matches(path, swept)
    near += [
        each
        for close in difflib.get_close_matches(path, set(ends.values()))
        for each, end in ends.items()
        if end == close
    ]
    names = " or ".join(_flag(each) for each in list(dict.fromkeys(near))[:3])
    hint = f"did you mean {names}?" if near else "train NAME --help lists the fields"
    raise UserError(f"--over {field}: there is no such field; {hint}")


def _initials(field: str) -> str:
    return "".join(part[0] for part in field.split("_") if part)


def _flag(path: str) -> str:
    return path.replace("_", "-")


def _with_value(config: Any, path: Sequence[str], value: Any) -> Any:
    """Return a copy of nested JSON objects with one value replaced."""
    if not path:
        return value
    return {**config, path[0]: _with_value(config[path[0]], path[1:], value)}


def _value_at(config: Any, path: Sequence[str]) -> Any:
    """Return a value of nested JSON objects."""
    return _value_at(config[path[0]], path[1:]) if path else config


def labels(combinations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a folder name for each combination, such as `latent=5,learning-rate=0.001`.

    A field is named by the shortest end of its path that tells the fields apart.
    """
    short = short_fields(list(combinations[0]))
    return [
        ",".join(f"{short[path]}={_text(value, '-')}" for path, value in values.items())
        for values in combinations
    ]


def short_fields(paths: Sequence[str]) -> dict[str, str]:
    """Return the shortest ends of paths that tell the fields apart, as flags, by path."""
    ends = shortest_ends([path.split(".") for path in paths])
    return {path: _flag(".".join(end)) for path, end in zip(paths, ends, strict=True)}


def _text(value: Any, separator: str = " ") -> str:
    """Return a value as the command line has it; the items of a tuple are joined."""
    return separator.join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def command_alone(
    name: str, base: Experiment, others: Sequence[str], values: Mapping[str, Any]
) -> str:
    """Return the command that trains one combination alone.

    Args:
      name: the name of the experiment.
      base: the experiment as the other flags have changed it.
      others: the flags of the sweep beside --over.
      values: the values of the combination by path.
    """
    flags: list[str] = []
    skip = False
    for word in others:  # the folder of the sweep is not the folder of the run
        if not skip and word != "--out" and not word.startswith("--out="):
            flags.append(word)
        skip = word == "--out"
    config = to_config(name, base)
    changed = {  # a switch has a flag for the value alone that is not its default
        path: value
        for path, value in values.items()
        if not (isinstance(value, bool) and value == _value_at(config, path.split(".")))
    }
    return shlex.join(["python", "-m", "experiments", "train", name, *flags, *flag_words(changed)])


def default_folder(name: str, experiment: Experiment) -> Path:
    """Return runs/NAME-sweep, or runs/NAME-DATA-sweep for other data than the registered set."""
    return Path("runs") / f"{files.with_own_data(name, experiment)}-sweep"


def run_sweep(
    name: str, experiment: Experiment, options: Options, over: Sequence[tuple[str, Sequence[str]]]
) -> tuple[int, list[Combination]]:
    """Train every combination that is not finished.

    Args:
      name: the name of the experiment.
      experiment: the experiment as the other flags have changed it.
      options: where it runs; `out` is the folder of the sweep.
      over: fields with their values, as text.

    Returns:
      0, or `INTERRUPTED` of `experiments.interruption`; and the combinations.

    Raises:
      UserError: flags, data and folders do not fit together. Nothing has been trained then.
    """
    if options.coordinator or options.devices > 1:
        raise UserError("a sweep trains on one device: leave --devices and --coordinator out")
    if options.logger == "wandb":
        raise UserError("--logger wandb takes one run: leave it out of a sweep")
    files.check_logger(options.logger)
    experiment = fitting.with_absolute_path(experiment)
    expanded = list(expand(name, experiment, over))
    dataset = experiment.load_data(options.data_dir)
    out = options.out or default_folder(name, experiment)
    combinations = []
    names = labels([values for values, _ in expanded])
    for label, (values, each) in zip(names, expanded, strict=True):
        try:
            each = fitting.fit(name, each, dataset)
            each.for_run()
        except UserError as error:
            raise UserError(f"--over {label}: {error}") from error
        combinations.append(Combination(values, each, out / label))
    by_structure: dict[str, list[Combination]] = {}
    for each in combinations:
        by_structure.setdefault(structure(name, each.experiment), []).append(each)
    for members in by_structure.values():  # the shapes: what the model refuses, it refuses here
        running.carry_shapes(members[0].experiment.for_run(), dataset, None, flat_seeds(members))
    for each in combinations:
        if each.folder.exists():
            files.check(each.folder, name, each.experiment, dataset)
            _check_length(each.folder, each.experiment.steps)
    with files.hold(out):
        grouped = [
            (group_folder(out, name, group, dataset), group)
            for members in by_structure.values()
            for group in groups(out, name, members, dataset)
        ]
        for folder, group in grouped:
            _check_length(folder, group[0].experiment.steps)
        for folder, group in grouped:
            # A combination that stopped early, or was trained alone, has a checkpoint at another
            # step than its group. It goes on from there by itself.
            together, alone, reached = [], [], last_step(folder)
            for each in group:
                if not is_done(each):
                    own = last_step(each.folder)
                    (together if own in (0, reached) else alone).append(each)
            code = 0
            if together:
                code = train_group(name, group, together, folder, dataset, options)
            for each in alone:
                code = code or train_alone(name, each, options)
            if code:
                return code, combinations
    return 0, combinations


def _check_length(folder: Path, steps: int) -> None:
    """Raise `UserError` if a folder has a checkpoint beyond the steps of the sweep."""
    if (reached := last_step(folder)) > steps:
        raise UserError(
            f"{folder} stands at step {reached}, beyond --steps {steps}: give --steps {reached} "
            "or choose another --out"
        )


def structure(name: str, experiment: Experiment) -> str:
    """Return a text that experiments share if one compiled program can train them together.

    It is the configuration without the seed, and with each rate replaced by whether it is 0.
    """
    config = to_config(name, experiment)
    if not experiment.seeds:
        config["seed"] = None
    for path, rate in optimize.rates(experiment.model).items():
        config = _with_value(config, ["model", *path.split(".")], rate != 0)
    return json.dumps(config, sort_keys=True)


def groups(
    out: Path, name: str, members: Sequence[Combination], dataset: Dataset
) -> list[list[Combination]]:
    """Return the groups in which combinations of one structure train.

    Combinations that have begun together stay together, because rounding depends on the number of
    runs in a program. All others that are not finished form a group.

    Args:
      out: the folder of the sweep.
      name: the name of the experiment.
      members: combinations of one structure.
      dataset: their data.
    """
    left = {each.folder.name: each for each in members}
    found = []
    for path in sorted((out / "groups").glob("*/members.json")):
        names = (files.read_json(path, "members") or {"members": []})["members"]
        if names and set(names) <= set(left):
            group = [left[each] for each in names]
            if group_folder(out, name, group, dataset) == path.parent:
                found.append(group)
                left = {each: left[each] for each in left if each not in names}
    rest = [each for each in left.values() if not is_done(each)]
    return [*found, *([rest] if rest else [])]


def group_folder(out: Path, name: str, group: Sequence[Combination], dataset: Dataset) -> Path:
    """Return the folder of the checkpoints of a group.

    Its name is a sum of the members, their configurations and their data, so that the checkpoints
    of other runs are never taken for its own. Fields that a resumed run may change do not count.

    Args:
      out: the folder of the sweep.
      name: the name of the experiment.
      group: the combinations.
      dataset: their data.
    """
    configs = [to_config(name, each.experiment.for_run()) for each in group]
    fixed = [
        {field: value for field, value in config.items() if field not in MAY_CHANGE}
        for config in configs
    ]
    identity = {
        "members": [each.folder.name for each in group],
        "configs": fixed,
        "data": dataset.sha256,
    }
    return out / "groups" / json_sum(identity)[:12]


def is_done(combination: Combination) -> bool:
    """Return whether training has reached its last step, has stopped early or has diverged."""
    ended = diverged_at(combination), stopped_early_at(combination)
    long_enough = last_step(combination.folder) >= combination.experiment.steps
    return long_enough or ended != (None, None)


def last_step(folder: Path) -> int:
    """Return the step of the last checkpoint in the folder of a run or of a group, or 0."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def stopped_early_at(combination: Combination) -> int | None:
    """Return the step at which early stopping ended the training, or None.

    With another --early-stop the training goes on.
    """
    experiment, folder = combination.experiment, combination.folder
    config, manifest = files.read_config(folder), files.read_manifest(folder)
    if config and manifest and config.experiment.early_stop == experiment.early_stop:
        return manifest.get("stopped_early")
    return None


def diverged_at(combination: Combination) -> int | None:
    """Return the step of the report that showed that training had diverged, or None."""
    record = files.read_json(combination.folder / DIVERGED, "step")
    return record["step"] if record else None


def train_alone(name: str, combination: Combination, options: Options) -> int:
    """Resume one combination from its own checkpoint, as `train --out` resumes it.

    Args:
      name: the name of the experiment.
      combination: the combination.
      options: the options of the sweep.

    Returns:
      0, or `INTERRUPTED` of `experiments.interruption`.
    """
    experiment, folder = combination.experiment, combination.folder
    code = running.train_run(name, experiment, replace(options, out=folder))
    if code != 1:
        return code
    reported = [line["step"] for line in files.read_metrics(folder)]
    step = min(max(reported, default=0) + experiment.report_every, experiment.steps)
    files.write_json(folder / DIVERGED, {"step": step})
    return 0


def train_group(
    name: str,
    group: Sequence[Combination],
    together: Sequence[Combination],
    folder: Path,
    dataset: Dataset,
    options: Options,
) -> int:
    """Train combinations of one structure as one program, and write a run folder for each.

    The program maps over (combination, seed). Its checkpoints hold all combinations, so that a run
    that was killed goes on bit for bit. At the end the last checkpoint is split into one checkpoint
    for each combination, in its folder. A combination whose metrics are not finite is reported no
    further, and the others go on.

    Args:
      name: the name of the experiment.
      group: the combinations. A single one is trained as `train` trains it.
      together: the members that train on. The others stay in the program, because rounding depends
        on the number of members. Their folders stay unchanged.
      folder: the folder of the checkpoints.
      dataset: their data.
      options: the service that receives the metrics, too.

    Returns:
      0, or `INTERRUPTED` of `experiments.interruption`.
    """
    experiment = group[0].experiment.for_run()
    seed = flat_seeds(group)
    width = len(experiment.all_seeds)

    def part(tree: Any, index: int) -> Any:
        """Return the rows of one combination, as a run of its own has them."""
        if len(group) == 1:
            return tree
        rows = slice(index * width, (index + 1) * width) if experiment.seeds else index
        return jax.tree.map(lambda array: array[rows], tree)

    with ExitStack() as stack:
        for each in group:
            stack.enter_context(files.hold(each.folder))
            files.check(each.folder, name, each.experiment, dataset)
        files.write_json(folder / "members.json", {"members": [each.folder.name for each in group]})
        signals = Interruption()
        stack.callback(interruption.watch(signals.act))
        checkpoints = stack.enter_context(open_checkpoints(folder / "checkpoints"))
        restored = checkpoints.restore(running.carry_shapes(experiment, dataset, None, seed))
        start, done, seconds = None, 0, 0.0
        if restored:
            done, seconds, carry = restored.step, restored.info["seconds"], restored.tree
            old = files.read_config(together[0].folder)
            if old and old.experiment.report_every != experiment.report_every:
                carry = train.without_sums(carry)
            start = done, carry
            signals.saved = f"step {done} is saved"

        logs = {}  # of the combinations that still train
        unfinished = {each.folder for each in together}
        for index, each in enumerate(group):
            if each.folder not in unfinished:
                continue
            old = files.read_config(each.folder)
            old_interval = old and old.experiment.report_every
            lines = running.lines_until(done, each.folder, experiment.report_every, old_interval)
            files.note_session(each.folder, name, each.experiment.for_run(), dataset)
            logs[index] = stack.enter_context(files.open_log(each.folder, lines, options.logger))

        def drop(index: int, step: int) -> None:
            del logs[index]
            files.write_json(group[index].folder / DIVERGED, {"step": step})
            print(f"{group[index].folder.name}: diverged, seen at step {step}", file=sys.stderr)

        def finish(index: int, step: int, carry: train.Carry) -> None:
            own_carry, own_folder = part(carry, index), group[index].folder
            with open_checkpoints(own_folder / "checkpoints") as own:
                own.save(step, own_carry, {"seconds": seconds / len(group)})
            if experiment.stalled(step, own_carry):
                files.note_early_stop(own_folder, step)
            del logs[index]

        what = f"{len(group)} combinations as one program" if len(group) > 1 else "1 combination"
        print(f"training {what}, from step {done}:", flush=True)
        for each in together:
            print(f"  {each.folder}", flush=True)
        display = stack.enter_context(running.show_progress(name, done, experiment.steps))
        display.say("compiling")
        signals.begin("compiling")
        began = time.perf_counter() - seconds
        every = experiment.report_every
        try:
            for step, carry, metrics in experiment.fit(
                dataset,
                seed=seed,
                pause_every=[experiment.checkpoint_every],
                start=start,
                rates=swept_rates(group),
                keep_going=True,
            ):
                signals.end()
                done, seconds, start = step, time.perf_counter() - began, (step, carry)
                display.show(step, metrics)
                metrics = metrics or {}
                for index in list(logs) if metrics else ():
                    report = {key: part(values, index) for key, values in metrics.items()}
                    if np.any(train.has_diverged(report)):
                        drop(index, step)
                        continue
                    logs[index](step, report)
                    if experiment.early_stop and experiment.stalled(step, part(carry, index)):
                        finish(index, step, carry)
                if not logs:
                    break
                finished = step == experiment.steps
                if finished or signals.received or step % experiment.checkpoint_every == 0:
                    for index in list(logs):
                        try:
                            train.check_finite(step, part(carry, index))
                        except train.NonFiniteError:
                            drop(index, step)
                    checkpoints.save(step, carry, {"seconds": seconds})
                    signals.saved = f"step {step} is saved"
                if signals.received and not finished:
                    print(f"{signals.received}: saved step {done}; the same command goes on")
                    return interruption.INTERRUPTED
        except train.NonFiniteError:  # in every combination
            for index in list(logs):
                drop(index, min((done // every + 1) * every, experiment.steps))
        for index in list(logs):
            assert start is not None
            finish(index, *start)
    print(f"{done} steps in {seconds:.1f} s", flush=True)
    if signals.received:
        print(f"{signals.received}: these runs are finished; the same command goes on")
        return interruption.INTERRUPTED
    return 0


def flat_seeds(group: Sequence[Combination]) -> Any:
    """Return the seeds as `fit` takes them: one for each (combination, seed), or a run's own."""
    if len(group) == 1:
        return group[0].experiment.fit_seed
    return tuple(seed for each in group for seed in each.experiment.all_seeds)


def swept_rates(group: Sequence[Combination]) -> dict[str, list[float]]:
    """Return the rates that differ in a group, one for each (combination, seed), by path."""
    rates = [optimize.rates(each.experiment.model) for each in group]
    seeds = len(group[0].experiment.all_seeds)
    return {
        path: [each[path] for each in rates for _ in range(seeds)]
        for path in rates[0]
        if len({each[path] for each in rates}) > 1
    }


def outcomes(combinations: Sequence[Combination], data_dir: Path | None) -> list[Outcome]:
    """Evaluate every finished combination on the validation split.

    An evaluation that an earlier sweep wrote is read from the run folder, if it is of the same
    step, configuration and data.

    Args:
      combinations: finished or diverged combinations.
      data_dir: folder of prepared data sets.
    """
    results = []
    for each in combinations:
        if (step := diverged_at(each)) is not None:
            results.append(Outcome(each, {}, None, step))
            continue
        path, of = each.folder / "evaluation-validation.json", _evaluated(each.folder)
        record = files.read_json(path, "step", "estimates")
        if record is None or record.get("of") != of or record["step"] != last_step(each.folder):
            record = evaluate_run(running.load_run(each.folder, data_dir), "validation")
            files.write_json(path, {**record, "of": of})
        estimates = {key: estimate.from_json(value) for key, value in record["estimates"].items()}
        results.append(Outcome(each, estimates, record["chosen_step"], None))
    return results


def _evaluated(folder: Path) -> dict[str, Any]:
    """Return the sums of the configuration and the data of a run, which tell evaluations apart."""
    config = files.read_json(folder / "config.json", "sha256") or {}
    manifest = files.read_manifest(folder) or {"data": {}}
    return {"config": config.get("sha256"), "data": manifest["data"].get("sha256")}


def criterion(results: Sequence[Outcome]) -> str | None:
    """Return the name of the estimate that ranks the outcomes, or None if there is none.

    All outcomes must have it, and as estimates of the same quantity and of the same kind.
    """
    finished = [each.estimates for each in results if each.estimates]
    for name in CRITERIA:
        if finished and all(name in estimates for estimates in finished):
            first = finished[0][name]
            same = all(not estimate.why_not_ordered(each[name], first) for each in finished)
            return name if same else None
    return None


def ranked(results: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes by rising criterion, and those that diverged at the end."""
    name = criterion(results)
    finished = [each for each in results if each.estimates]
    if name:
        finished.sort(key=lambda each: each.estimates[name].value)
    return finished + [each for each in results if not each.estimates]


def terminal(results: Sequence[Outcome]) -> Any:
    """Return the outcomes as a table for the terminal, the best first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    fields = short_fields(list(results[0].combination.values))
    measures = shown_measures(results)
    model = results[0].combination.experiment.model
    title = f"validation split{', best first' if criterion(results) else ''}"
    out = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title)
    for field in fields.values():
        out.add_column(field, overflow="fold")
    for name in measures:
        out.add_column(f"{name}, {estimate_unit(model, name)}", overflow="fold")
    out.add_column("step of the state", overflow="fold")
    for each in ranked(results):
        values = [_text(value) for value in each.combination.values.values()]
        if each.diverged is not None:
            cells = [f"diverged at {each.diverged}", *([""] * len(measures))]
        else:
            cells = [marked(each.estimates[name]) for name in measures]
            cells.append(_text(each.chosen_step))
        out.add_row(*values, *cells)
    return out


def shown_measures(results: Sequence[Outcome]) -> list[str]:
    """Return the names of the estimates in the table: the criterion, or all that outcomes share."""
    if name := criterion(results):
        return [name]
    finished = [each.estimates for each in results if each.estimates]
    shared = (
        [name for name in finished[0] if all(name in each for each in finished)] if finished else []
    )
    return shared[:3]


def picture(results: Sequence[Outcome]) -> Any:
    """Return the figure of the criterion against the field of most values, or None without one.

    The other fields make the lines.
    """
    name = criterion(results)
    if name is None:
        return None
    values = [each.combination.values for each in results]
    fields = short_fields(list(values[0]))
    distinct = {path: {_text(each[path]) for each in values} for path in fields}
    axis = max(fields, key=lambda path: len(distinct[path]))
    lines: dict[str, list[tuple[Any, float, float]]] = {}
    for each in results:
        if each.estimates:
            others = [
                f"{fields[path]} {_text(value)}"
                for path, value in each.combination.values.items()
                if path != axis
            ]
            value = each.estimates[name]
            point = each.combination.values[axis], value.value, value.stderr
            lines.setdefault(", ".join(others), []).append(point)
    model = results[0].combination.experiment.model
    return plots.against(lines, fields[axis], f"validation {name} / {estimate_unit(model, name)}")


def to_json(results: Sequence[Outcome]) -> dict[str, Any]:
    """Return the outcomes as JSON, in the order of the sweep."""
    best = ranked(results)[0].combination.folder.name if criterion(results) else None
    return {
        "split": "validation",
        "criterion": criterion(results),
        "best": best,
        "combinations": [
            {
                "run": each.combination.folder.name,
                "values": each.combination.values,
                "diverged": each.diverged,
                "chosen_step": each.chosen_step,
                "estimates": {
                    name: estimate.to_json(value) for name, value in each.estimates.items()
                },
            }
            for each in results
        ],
    }


def conclusion(
    name: str, base: Experiment, flags: Sequence[str], results: Sequence[Outcome]
) -> str:
    """Return the best combination and the command that trains it alone, or why there is none.

    Args:
      name: the name of the experiment.
      base: the experiment as the other flags have changed it.
      flags: the flags of the sweep beside --over.
      results: the outcomes.
    """
    if not any(each.estimates for each in results):
        return "every combination has diverged: try lower learning rates"
    if criterion(results) is None:
        return (
            "no best combination: the models have no likelihood and no error in common\n"
            "that could rank them"
        )
    best, *others_ranked = [each.combination for each in ranked(results) if each.estimates]
    lines = [f"best: {best.folder}", f"alone: {command_alone(name, base, flags, best.values)}"]
    if others_ranked:
        folders = shlex.join([str(best.folder), str(others_ranked[0].folder)])
        lines.append(f"next: python -m experiments compare {folders} --split validation")
    return "\n".join(lines)
