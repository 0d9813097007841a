"""Compare runs: their curves on one figure, and paired differences of their estimates.

All runs are evaluated on the same examples at the same draws, so that the difference of two models
is a mean of differences example by example. Its standard error is far below the error of either
mean where examples that are hard for one model are hard for the other.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import pictures
from experiments.evaluation import evaluate_seeds
from experiments.flags import WIDTH
from experiments.folder import read_metrics
from experiments.run import Run, load_run
from experiments.table import estimate_unit, marked, number
from experiments.uses.base import Subject
from gen import estimate, plots
from gen.core import METRIC_UNITS, UserError, facts
from gen.estimate import MARKS, Difference, Estimate

DRAWS = 0
"""Seed of the binarisation and of all draws, for every run."""


class Row(NamedTuple):
    """An estimate of a run, and its difference from the estimate of the first run."""

    name: str  # of the estimate
    run: str
    unit: str
    value: Estimate  # the mean over the run's seeds
    difference: Difference | None  # the run's value minus the first run's
    reason: str  # why there is no difference; "" for the first run itself


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest end of each path, in whole parts, that tells all of them apart.

    Raises:
      UserError: a folder is given twice.
    """
    parts = [folder.absolute().parts for folder in folders]
    if twice := {path for path in parts if parts.count(path) > 1}:
        raise UserError(f"{Path(*twice.pop())} is given twice: take different runs")
    return ["/".join(end) for end in shortest_ends(parts)]


def shortest_ends(paths: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the ends of paths, all of one length, that are just long enough to differ.

    Args:
      paths: different paths, each as its parts.
    """
    length = 1
    while len({tuple(path[-length:]) for path in paths}) < len(paths):
        length += 1
    return [tuple(path[-length:]) for path in paths]


def load_runs(folders: Sequence[Path], data_dir: Path | None = None) -> dict[str, Run]:
    """Return the runs of two folders or more by their short names.

    Args:
      folders: the run folders.
      data_dir: folder of prepared data sets.

    Raises:
      UserError: there is one folder alone, a folder is given twice, or one cannot be read.
    """
    if len(folders) < 2:
        raise UserError("one run has nothing to be compared with: give two run folders or more")
    names = short_names(folders)
    return {name: load_run(folder, data_dir) for name, folder in zip(names, folders, strict=True)}


def metric_unit(model: Any, metric: str) -> str:
    """Return the unit of a metric of a model."""
    return {**METRIC_UNITS, **facts(model).metric_units}.get(metric, "")


def curves(runs: Mapping[str, Run]) -> Any:
    """Return the figure of all metrics of all runs, one panel for each metric and unit.

    `validation` is drawn as a dashed line into the panel of `loss`, if it has the same unit.
    """
    panels: dict[tuple[str, str], list[plots.Curve]] = {}
    for name, run in runs.items():
        lines = read_metrics(run.folder)
        model = run.experiment.model
        for metric in dict.fromkeys(key for line in lines for key in line if key != "step"):
            reports = [line for line in lines if metric in line]
            validation = metric == "validation"
            same = validation and metric_unit(model, metric) == metric_unit(model, "loss")
            panel = ("loss" if same else metric), metric_unit(model, metric)
            steps, values = zip(*((line["step"], line[metric]) for line in reports), strict=True)
            panels.setdefault(panel, []).append(plots.Curve(name, steps, values, validation))
    return plots.overlaid(panels, list(runs))


def rows(runs: Mapping[str, Run], split: str) -> list[Row]:
    """Evaluate all runs and return their estimates, one row for each estimate and run.

    Differences are taken to the first run that has the estimate.

    Args:
      runs: the runs by name.
      split: train, validation or test.
    """
    results = {name: evaluate_seeds(run, split, DRAWS) for name, run in runs.items()}
    by_run = {name: list(of_seeds.values()) for name, of_seeds in results.items()}
    table = []
    for measure in dict.fromkeys(key for seeds in by_run.values() for key in seeds[0]):
        having = [name for name, seeds in by_run.items() if measure in seeds[0]]
        for name in having:
            first, own = ([each[measure] for each in by_run[run]] for run in (having[0], name))
            difference, reason = None, ""
            if name != having[0]:
                reason = other_data(runs[having[0]], runs[name])
                reason = reason or estimate.why_incomparable(own[0], first[0])
                difference = None if reason else estimate.paired_difference(own, first)
            value = estimate.over_seeds(own)
            per = value.settings.get("per")
            of = estimate_unit(runs[name].experiment.model, measure) + (
                f" per {per}" if per else ""
            )
            table.append(Row(measure, name, of, value, difference, reason))
    return table


def other_data(a: Run | Subject, b: Run | Subject) -> str:
    """Return why two runs have no examples in common; "" if they have the same ones."""
    if a.dataset.name != b.dataset.name:
        return f"different data: {a.dataset.name}, {b.dataset.name}"
    if a.dataset.sha256 != b.dataset.sha256:
        return f"different data of the name {a.dataset.name}"
    if a.experiment.binarize != b.experiment.binarize:
        return f"binarised differently: {a.experiment.binarize}, {b.experiment.binarize}"
    return ""


def terminal(table: Sequence[Row], split: str) -> str:
    """Return the rows as text, under the name of each estimate.

    A name is never cut: if the lines would be longer than `WIDTH`, each name has a line of its own.
    So has the reason why there is no difference.

    Args:
      table: rows of the same estimate follow one another.
      split: the split that they are for.
    """
    several = any(row.difference and not math.isnan(row.difference.seeds_stderr) for row in table)
    heads = ["value ± error", "difference to the first", "± over seeds"][: 3 if several else 2]
    numbers = [[marked(row.value), change(row), over_seeds(row.difference)] for row in table]
    widths = [max(map(len, column)) for column in zip(heads, *numbers, strict=False)]
    name_width = max(len(row.run) for row in table)
    apart = 2 + name_width + sum(2 + width for width in widths) > WIDTH

    def line(name: str, cells: Sequence[str]) -> str:
        pairs = zip(cells, widths, strict=False)
        aligned = "".join(f"  {cell:{width}}" for cell, width in pairs).rstrip()
        if apart:
            return f"  {name}\n  {aligned}" if name else f"  {aligned}"
        return f"  {name:{name_width}}{aligned}"

    lines, before = [f"{split} split", line("", heads)], None
    for row, cells in zip(table, numbers, strict=True):
        if row.name != before:
            lines += ["", f"{row.name}, {row.unit}"]
        lines.append(line(row.run, cells))
        if row.reason:
            reason = textwrap.wrap(f"no difference: {row.reason}", WIDTH - 4)
            lines += [f"    {part}" for part in reason]
        before = row.name
    return "\n".join(lines)


def change(row: Row) -> str:
    """Return the difference with its sign and its paired error, or a dash."""
    if row.difference is None:
        return "–"
    value, stderr, _ = row.difference
    text = number(Estimate(value, stderr, "exact", row.value.n))
    return text if text.startswith("-") else f"+{text}"


def over_seeds(difference: Difference | None) -> str:
    """Return the error of a difference over seeds, or a dash."""
    if difference is None or math.isnan(difference.seeds_stderr):
        return "–"
    return f"± {difference.seeds_stderr:.2g}"


def explanation(table: Sequence[Row]) -> str:
    """Return the lines under the table, which say what its signs and its errors are."""
    lines = [
        "The paired error is the standard error of the mean difference, example by",
        "example. It does not cover the choice of the seed: with several --seeds in both",
        "runs, the error over seeds stands beside it.",
    ]
    if marks := {MARKS[row.value.kind]: row.value.kind for row in table if MARKS[row.value.kind]}:
        lines.append("; ".join(f"{mark} {kind}" for mark, kind in marks.items()) + ".")
    return "\n".join(lines)


def to_json(table: Sequence[Row], runs: Mapping[str, Run], split: str) -> dict[str, Any]:
    """Return the comparison as JSON.

    Args:
      table: its rows.
      runs: the runs by name.
      split: the split that the runs were evaluated on.
    """

    def number_or_null(value):
        return None if math.isnan(value) else value

    return {
        "split": split,
        "runs": {name: str(run.folder) for name, run in runs.items()},
        "estimates": [
            {
                "estimate": row.name,
                "run": row.run,
                "unit": row.unit,
                **estimate.to_json(row.value),
                "difference": row.difference
                and {
                    name: number_or_null(value) for name, value in row.difference._asdict().items()
                },
                "no_difference": row.reason or None,
            }
            for row in table
        ],
    }


def save_curves(runs: Mapping[str, Run], out: Path | None) -> Path:
    """Draw the curves into a PNG file, and return its path.

    Args:
      runs: the runs by name.
      out: the file; None for `compare-NAME-NAME….png` beside the first run.

    Raises:
      UserError: the file is no PNG, or it cannot be written.
    """
    first = next(iter(runs.values())).folder
    names = "-".join(name.replace("/", "_") for name in runs)
    path = out or first.absolute().parent / f"compare-{names[:100]}.png"
    if path.suffix.lower() != ".png":
        raise UserError(f"--out {path}: the figure is a PNG, give a name that ends in .png")
    pictures.save(curves(runs), path)
    return path
