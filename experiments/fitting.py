"""Fit an experiment to a data set, or say what would fit; describe a data set of one's own."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.experiment import Experiment
from experiments.flags import WIDTH
from experiments.folder import RESULTS, read_json
from experiments.own import (
    columns_for_a_density,
    columns_of_few_values,
    flag_words,
    reading_flags,
)
from experiments.registry import EXPERIMENTS
from gen import train
from gen.core import UserError, facts
from gen.data import DATASETS, Dataset, Reading
from gen.data.arrays import row_sums

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"binarize": "none"},
    {"binarize": "none", "model.output": "linear"},
    {"binarize": "none", "model.likelihood": "gaussian"},
    {"binarize": "none", "model.units": "gaussian"},
    {"binarize": "threshold"},
)
"""flags with which an experiment is tried on a data set, the first that fits is taken"""

LARGEST_STATE = 100_000_000
"""numbers in the state of the largest model that `candidates` names"""

COLUMNS = 20
"""columns, at most, of which a description has the range and the mean"""

GPU_SECONDS = 25
"""approximate time on two CPU cores in units of the time on a GPU; for the published runs that
`bench` also measured on a CPU the ratio is 19 to 30"""
EXPENSIVE = 3600.0
"""seconds on two cores from which an experiment is called expensive"""


class Candidate(NamedTuple):
    """An experiment that fits a data set."""

    name: str
    flags: dict[str, Any]  # the flags that it needs
    experiment: Experiment  # on the data set
    size: int  # numbers in its state, the optimiser's too
    likelihood: bool  # whether its loss is a likelihood of these data, or a bound on one


def fit(name: str, experiment: Experiment, dataset: Dataset) -> Experiment:
    """Return the experiment on a data set, after checking that all of it fits.

    Args:
      name: its name in the registry.
      experiment: the experiment as the flags have changed it.
      dataset: its data.

    Raises:
      UserError: it does not fit. On data of the user's own the message says what would.
    """
    try:
        fitted = _fitted(experiment, dataset)
        if experiment.data not in DATASETS:
            _size(fitted, dataset)
        return fitted
    except UserError as error:
        if experiment.data in DATASETS:
            raise
        candidate = next(_variants(name, experiment, dataset), None)
        if candidate and candidate.flags:
            advice = f"{name} fits with {' '.join(flag_words(candidate.flags))}"
        else:
            data = shlex.join([_shown(experiment.data), *reading_flags(experiment.reading)])
            advice = f"see what fits: python -m experiments data {data}"
        raise UserError(f"{error}; {advice}") from error


def with_absolute_path(experiment: Experiment) -> Experiment:
    """Return the experiment with the path of its own data as an absolute one."""
    path = Path(experiment.data).expanduser()
    if experiment.data in DATASETS or not path.exists():
        return experiment
    return replace(experiment, data=str(path.absolute()))


def candidates(dataset: Dataset, source: str, reading: Reading) -> list[Candidate]:
    """Return one experiment for each sensible kind of model that fits, cheapest first.

    Experiments that differ in their data alone count as one, the cheapest of them (`seconds_of`).

    Args:
      dataset: data of the user's own.
      source: their path or name.
      reading: how they are read.
    """
    kinds: dict[str, list[str]] = {}
    for name, experiment in EXPERIMENTS.items():
        if _sensible(experiment, dataset):
            kinds.setdefault(name.replace(f"_{experiment.data}", ""), []).append(name)
    found = []
    for names in kinds.values():
        for name in sorted(names, key=seconds_of):
            own = replace(EXPERIMENTS[name], data=source, reading=reading)
            candidate = next(_variants(name, own, dataset), None)
            if candidate and candidate.size <= LARGEST_STATE:
                found.append(candidate)
                break
    return sorted(found, key=lambda candidate: seconds_of(candidate.name))


def properties(dataset: Dataset) -> dict[str, str]:
    """Return what a data set holds, by the name of the property.

    The first property, `rows`, has the number and the form of the examples.
    """
    splits, format = dataset.splits, dataset.format
    x = _all_rows(dataset)
    shape = " × ".join(map(str, dataset.shape))
    found = {"rows": f"{len(x):,} rows of {shape} ({_form(dataset)})"}
    seen = x
    if "length" in dataset.train:
        length = np.concatenate([split["length"] for split in splits.values()])
        found["length"] = f"{length.min()} … {length.max()} steps, {length.sum():,} in all"
        seen = x[np.arange(x.shape[1])[None] < length[:, None]]
    found["kind"] = _kind(dataset)
    finite = seen[~np.isnan(seen)] if seen.dtype.kind == "f" else seen
    found["range"] = f"{finite.min():g} … {finite.max():g}"
    missing = seen.size - finite.size
    found["missing"] = f"{missing:,} values" if missing else "none"
    lengths = {name: split.get("length") for name, split in splits.items()}
    sums = {name: row_sums(split["x"], lengths[name]) for name, split in splits.items()}
    distinct = set().union(*sums.values())
    repeated = len(x) - len(distinct)
    found["repeated"] = f"{repeated:,} rows equal an earlier row" if repeated else "none"
    if dataset.classes:
        label = np.concatenate([split["label"] for split in splits.values()])
        names = format.labels or tuple(map(str, range(dataset.classes)))
        sizes = np.bincount(label, minlength=dataset.classes)
        text = ", ".join(f"{names[k]} ({sizes[k]:,})" for k in range(min(dataset.classes, 20)))
        found["classes"] = f"{dataset.classes}: {text}"
    sizes = ", ".join(f"{name} {len(split['x']):,}" for name, split in splits.items())
    training = set(sums["train"])
    shared = sum(each in training for each in (*sums["validation"], *sums["test"]))
    warning = f"; {shared:,} rows of the others also stand in train" if shared else ""
    found["splits"] = f"{sizes}{warning}"
    return found


def describe(
    dataset: Dataset,
    source: str,
    reading: Reading,
    fitting: Sequence[Candidate] | None = None,
) -> Iterator[str]:
    """Yield the lines that say what a data set holds and which experiments fit.

    Args:
      dataset: the data set.
      source: its path or name.
      reading: how it was read.
      fitting: the experiments that fit, as `candidates` returns them; None to find them.
    """
    found = properties(dataset)
    yield f"{dataset.name}: {found.pop('rows')}"
    for name, text in found.items():
        yield from _wrapped(name, text)
    if dataset.format.words and len(dataset.shape) == 1:
        yield ""
        yield from _columns(dataset)
    yield ""
    if fitting is None:
        fitting = candidates(dataset, source, reading)
    if not fitting:
        if found["missing"] != "none":
            yield "No experiment takes the missing values of these columns. Leave their rows out:"
            own = [source, *reading_flags(replace(reading, missing="drop"))]
            yield from _command(["python", "-m", "experiments", "data", *own])
        else:
            yield "No experiment fits: give another --kind, or other --columns."
        return
    yield "Experiments that fit, the cheapest first. The time is for two cores and the"
    yield "registered data, and grows with the size of an example:"
    families: dict[str, list[Candidate]] = {}
    for candidate in fitting:
        families.setdefault(candidate.experiment.model.family, []).append(candidate)
    data = ["--data", source, *reading_flags(reading)]
    for family, members in families.items():
        yield ""
        yield family
        # Of the members, those with a likelihood come first.
        for each in sorted(members, key=lambda member: not member.likelihood):
            note = "" if each.likelihood else "; its loss is no likelihood of these values"
            yield f"{each.name}: {_time(each.name)}{note}"
            flags = [*data, *flag_words(each.flags)]
            yield from _command(["python", "-m", "experiments", "train", each.name, *flags])
    yield ""
    if dataset.format.words and columns_of_few_values(dataset):
        columns = " ".join(map(shlex.quote, columns_for_a_density(dataset)))
        text = f"Models of a density fit with --columns {columns}, too."
        if columns:
            yield from textwrap.wrap(text, WIDTH, break_on_hyphens=False)
    yield "Add --steps 100 for a first look."


def _fitted(experiment: Experiment, dataset: Dataset) -> Experiment:
    """Return the experiment on a data set. Raise `UserError` unless values and batch fit."""
    fitted = experiment.on(dataset)
    train.check_batch_size(experiment.batch_size, len(dataset.train["x"]))
    return fitted


def _size(experiment: Experiment, dataset: Dataset) -> int:
    """Return the number of numbers in the state of a fitted experiment.

    Raises:
      UserError: the networks do not take examples of that shape, or take too much memory.
    """
    timed = experiment.for_run()

    def begin():
        decode, seed = timed.decode(dataset), timed.all_seeds[0]
        return train.begin(timed.model, dataset.train, timed.batch_size, seed, decode=decode)

    try:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(begin)))
    except UserError:
        raise
    except Exception as error:  # of many kinds, from the layers of the networks
        name = type(experiment.model).__name__
        raise UserError(f"{name} takes no examples of the shape {dataset.shape}") from error


def _variants(name: str, experiment: Experiment, dataset: Dataset) -> Iterator[Candidate]:
    """Yield the variants of an experiment that fit a data set."""
    rows = len(dataset.train["x"])
    colour = len(dataset.shape) == 3 and dataset.shape[2] > 1 and dataset.format.levels > 2
    for flags in VARIANTS:
        if flags.get("binarize", "none") == experiment.binarize and flags:
            flags = {flag: value for flag, value in flags.items() if flag != "binarize"}
        if experiment.batch_size > rows:
            flags = {**flags, "batch_size": rows}
        if experiment.probe and not dataset.classes:
            flags = {**flags, "probe": False}
        model = {flag[6:]: value for flag, value in flags.items() if flag.startswith("model.")}
        if not model.keys() <= {field.name for field in fields(experiment.model)}:
            continue
        other = {flag: value for flag, value in flags.items() if not flag.startswith("model.")}
        if colour and other.get("binarize", experiment.binarize) != "none":
            continue  # a binarised channel says little of its colour
        if other.get("binarize") == "threshold" and len(dataset.shape) != 3:
            continue  # the middle has a meaning for grey levels alone
        try:
            changed = replace(experiment, model=replace(experiment.model, **model), **other)
            fitted = _fitted(changed, dataset)
            likelihood = _has_likelihood(fitted, dataset)
            yield Candidate(name, flags, fitted, _size(fitted, dataset), likelihood)
        except UserError:
            continue


def _sensible(experiment: Experiment, dataset: Dataset) -> bool:
    """Return whether the kind of model suits the form of the data.

    Sequences are for models of sequences alone. Networks for points of the plane could take images.
    """
    points = experiment.data == "eight_gaussians"
    sequences = "length" in dataset.train
    return facts(experiment.model).sequences == sequences and not (
        points and len(dataset.shape) > 1
    )


def _has_likelihood(experiment: Experiment, dataset: Dataset) -> bool:
    """Return whether a fitted model's loss on these data is a likelihood, or a bound on one.

    A model of binary variables, such as a VAE of Bernoulli pixels, has a likelihood of binary
    values. It also takes grey values, and its loss on them is a cross-entropy. The answer for a
    model that has no likelihood of any data is True, so that its line needs no note.
    """
    model = experiment.model
    if model.density in ("implicit", "none"):
        return True
    known = facts(model)
    return known.levels is not None or known.counts or experiment.levels(dataset) == 2


def seconds_of(name: str) -> float:
    """Return about how many seconds an experiment takes on two cores, by its published run.

    It is `math.inf` for an experiment without a published run.
    """
    record = read_json(RESULTS / f"{name}.json", "train_seconds", "device", "seeds")
    if record is None:
        return math.inf
    trained = len(record.get("restarts", record["seeds"]))
    device = 1 if record["device"].startswith("CPU") else GPU_SECONDS
    return device * record["train_seconds"] * len(EXPERIMENTS[name].all_seeds) / trained


def _time(name: str) -> str:
    """Return about how long an experiment takes, as text."""
    seconds = seconds_of(name)
    if math.isinf(seconds):
        return "not timed"
    if seconds >= EXPENSIVE:
        return f"expensive, about {seconds / 3600:.2g} h"
    return f"about {seconds / 60:.0f} min" if seconds >= 60 else "under a minute"


def _form(dataset: Dataset) -> str:
    """Return what an example is."""
    if "length" in dataset.train:
        return "sequences"
    if len(dataset.shape) == 3:
        kinds = {1: "grey images", 3: "images in colour"}
        return kinds.get(dataset.shape[2], f"images of {dataset.shape[2]} channels")
    return "columns" if len(dataset.shape) == 1 else "arrays"


def _kind(dataset: Dataset) -> str:
    """Return the kind of the values of a data set, and how they are decoded."""
    format = dataset.format
    if format.counts:
        return "counts"
    if format.symbols:
        words = not isinstance(format.symbols, str)
        return f"{format.levels} symbols ({'words' if words else 'letters'})"
    if format.levels == 2:
        return "binary"
    if format.levels:
        return f"{format.levels} levels"
    if len(format.scale) > 1 or (format.scale and len(dataset.shape) == 1):
        few = len(columns_of_few_values(dataset))
        mixed = (
            f"; {few} columns take few values, and models of a density refuse them" if few else ""
        )
        return f"continuous, standardised by the training split{mixed}"
    return "continuous, scaled to [0, 1]" if format.scale or format.peak > 1 else "continuous"


def _all_rows(dataset: Dataset) -> np.ndarray:
    """Return the stored x of all splits, [N, *shape]."""
    return np.concatenate([split["x"] for split in dataset.splits.values()])


def column_summary(dataset: Dataset) -> list[dict[str, str]]:
    """Return a line for each of the first columns: range, mean, different and missing values."""
    lines = []
    for title, column in zip(dataset.format.words[:COLUMNS], _all_rows(dataset).T, strict=False):
        values = column[~np.isnan(column)] if column.dtype.kind == "f" else column
        lines.append(
            {
                "column": title,
                "smallest": f"{float(values.min()):.4g}",
                "largest": f"{float(values.max()):.4g}",
                "mean": f"{float(values.mean()):.4g}",
                "different": str(len(np.unique(values))),
                "missing": str(len(column) - len(values)),
            }
        )
    return lines


def _columns(dataset: Dataset) -> Iterator[str]:
    """Yield the lines of `column_summary` below a head, and the number of the other columns."""
    widths = dict.fromkeys(("smallest", "largest", "mean", "different"), 11) | {"missing": 9}
    yield f"{'column':<26}" + "".join(f"{head:>{width}}" for head, width in widths.items())
    for line in column_summary(dataset):
        title = line["column"]
        short = title if len(title) < 26 else title[:24] + "…"
        yield f"{short:<26}" + "".join(f"{line[head]:>{width}}" for head, width in widths.items())
    if len(dataset.format.words) > COLUMNS:
        yield f"… and {len(dataset.format.words) - COLUMNS} more"


def _shown(source: str) -> str:
    """Return a path relative to the working folder where that is shorter."""
    path = Path(source)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return source


def _wrapped(name: str, text: str) -> Iterator[str]:
    """Yield an entry, in several lines where it is longer than one."""
    for i, line in enumerate(textwrap.wrap(text, WIDTH - 10)):
        yield f"{'' if i else name:<10}{line}"


def _command(words: list[str]) -> Iterator[str]:
    """Yield a command, with a backslash before each new line; a flag stands beside its value."""
    parts: list[str] = []
    for word in map(shlex.quote, words[5:]):
        if word.startswith("--") or not parts:
            parts.append(word)
        else:
            parts[-1] += f" {word}"
    line = f"  {shlex.join(words[:5])}"
    for part in parts:
        if len(line) + len(part) + 3 > WIDTH:
            yield f"{line} \\"
            line = "     "
        line += f" {part}"
    yield line
