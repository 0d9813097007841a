"""Load a trained model for a command that uses it, and write and publish the result.

A command is a module of this package, `gen.uses` has the use itself. The command makes an `Outcome`
for a `Subject`, and writes it to RUN/COMMAND.json and RUN/COMMAND.png.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.evaluation import check_publishable, of_published, of_sessions
from experiments.experiment import Experiment
from experiments.folder import RESULTS, commit, is_clean, read_config, read_json, write_json
from experiments.registry import EXPERIMENTS
from experiments.run import Run, load_run
from experiments.table import row_cells
from gen import estimate, trained
from gen.core import UserError, require
from gen.data import Dataset
from gen.estimate import Estimate

Row = Mapping[str, str | float | Estimate]
"""A line of a table: texts, numbers and estimates by column."""


class Subject(NamedTuple):
    """A trained model with its data."""

    name: str  # of the experiment
    experiment: Experiment  # with the model
    dataset: Dataset
    states: dict[int, Any]  # state of the model, by seed
    step: Any  # step of the states, [] or [S]
    run: Run | None  # None for published weights

    @property
    def binary(self) -> bool:
        """Return whether the pixels of the data are 0 or 1."""
        return self.experiment.levels(self.dataset) == 2


class Outcome(NamedTuple):
    """The result of a command for one model."""

    record: dict[str, Any]  # JSON: `of_training`, settings that reproduce the result, and figures
    rows: Sequence[Row]  # the same figures as lines of a table
    figure: Any = None  # of matplotlib; None without a picture


def load_subject(path: Path, data_dir: Path | None = None) -> Subject:
    """Return the model of a run folder, or a published model, with its data.

    Args:
      path: a run folder, or the name of an experiment whose weights are published.
      data_dir: folder of prepared data sets, as `gen.data.load` takes it.
    """
    if read_config(path) is not None:
        run = load_run(path, data_dir)
        experiment, seeds = run.experiment, run.experiment.all_seeds
        indices = [run.shown] if experiment.restarts else range(len(seeds))
        states = {seeds[i]: experiment.of_seed(run.state, i) for i in indices}
        return Subject(run.name, experiment, run.dataset, states, run.chosen_step, run)
    published = trained.load(path)
    require(published.name in EXPERIMENTS, f"{path}: there is no experiment {published.name}")
    experiment, seed = of_published(published)
    states = {seed: published.state}
    dataset = replace(experiment, seed=seed, seeds=()).load_data(data_dir)
    return Subject(published.name, experiment, dataset, states, published.step, None)


def load_subjects(
    paths: Sequence[Path], data_dir: Path | None = None, publish: bool = False
) -> list[Subject]:
    """Return the models of several paths, as `load_subject` does.

    Args:
      paths: run folders, or names of experiments whose weights are published.
      data_dir: folder of prepared data sets, as `gen.data.load` takes it.
      publish: whether their results are to be published, which is checked before work that may take
        minutes.
    """
    subjects = [load_subject(path, data_dir) for path in paths]
    if publish:
        for subject in subjects:
            check_use_publishable(subject)
    return subjects


def of_training(subject: Subject) -> dict[str, Any]:
    """Return the fields at the start of every record: the experiment, its data and the commits."""
    run = subject.run
    published = read_json(RESULTS / f"{subject.name}.json") or {}
    return {
        "experiment": subject.name,
        "data": subject.experiment.data,
        "binarize": subject.experiment.binarize,
        "step": np.asarray(subject.step).tolist(),
        "seeds": list(subject.states),
        "commit": of_sessions(run, "commit") if run else published.get("commit"),
        "used_at_commit": commit(),
    }


def folder_of(subject: Subject) -> Path:
    """Return the run folder, or samples/NAME for published weights."""
    return subject.run.folder if subject.run else Path("samples") / subject.name


def write(subject: Subject, command: str, outcome: Outcome) -> list[Path]:
    """Write the record, with its rows, and the figure beside the model.

    Args:
      subject: the model.
      command: the name of the command, which the files have.
      outcome: its result.

    Returns:
      The paths of the files: COMMAND.json, and COMMAND.png if there is a figure.
    """
    return _write_files(folder_of(subject), command, outcome)


def check_use_publishable(subject: Subject) -> None:
    """Raise `UserError` unless the result of a command on a model may be published.

    A run must be one that `evaluate --publish` would publish, and the checkout without changes.
    """
    if subject.run:
        check_publishable(subject.run, "test", commit())
    elif not is_clean(commit()):
        raise UserError(f"this checkout is at {commit()}: commit its changes, then publish")


def finish(subject: Subject, command: str, outcome: Outcome, published: bool) -> None:
    """Write the result of a command beside the model, publish it if asked, and print the paths.

    Args:
      subject: the model.
      command: the name of the command, which the files have.
      outcome: its result.
      published: whether it is published, too.
    """
    for path in write(subject, command, outcome):
        print(path, flush=True)
    if published:
        print(f"published as {publish(subject.name, command, outcome)}", flush=True)


def publish(name: str, command: str, outcome: Outcome) -> Path:
    """Write the record to experiments/results/NAME/COMMAND.json, with the figure as COMMAND.png.

    Args:
      name: the experiment, or a simple detector beside it.
      command: the name of the command, which the files have.
      outcome: its result.

    Returns:
      The path of the record.
    """
    return _write_files(RESULTS / name, command, outcome)[0]


def _write_files(folder: Path, command: str, outcome: Outcome) -> list[Path]:
    """Write the record, with its rows, and the figure if there is one, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{command}.json"
    write_json(path, to_json(outcome))
    if outcome.figure is None:
        return [path]
    from experiments import pictures

    picture = path.with_suffix(".png")
    pictures.save(outcome.figure, picture)
    return [path, picture]


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Return the record, with the rows as JSON where there are rows."""
    if not outcome.rows:
        return outcome.record
    rows = [
        {
            column: estimate.to_json(value) if isinstance(value, Estimate) else value
            for column, value in row.items()
        }
        for row in outcome.rows
    ]
    return {**outcome.record, "rows": rows}


def as_table(title: str, rows: Sequence[Row]) -> Any:
    """Return rows as a table for the terminal, which never cuts a text.

    Where the table would break words, the columns that have one value stand in its caption.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title)
    cells, width = row_cells(rows), Console().width
    widths = _column_widths(cells, width)
    if widths is None and len(cells) > 1:
        equal = [column for column in cells[0] if len({row[column] for row in cells}) == 1]
        if len(equal) < len(cells[0]):
            table.caption = ", ".join(f"{column}: {cells[0][column]}" for column in equal)
            cells = [{c: text for c, text in row.items() if c not in equal} for row in cells]
            widths = _column_widths(cells, width)
    for column in cells[0]:
        table.add_column(column, overflow="fold", width=widths[column] if widths else None)
    for row in cells:
        table.add_row(*row.values())
    return table


def _column_widths(cells: Sequence[Mapping[str, str]], width: int) -> dict[str, int] | None:
    """Return the widths of columns that keep words whole, or None if the table is too narrow.

    A column has the width of its longest word and a share of the spare characters. Rich would
    shrink all columns evenly and then crop the lines.

    Args:
      cells: the texts of each row, by column.
      width: the width of the table in characters.
    """
    texts = {column: [column, *(row[column] for row in cells)] for column in cells[0]}
    widths = {column: max(map(len, " ".join(texts[column]).split())) for column in texts}
    spare = width - sum(widths.values()) - 3 * len(widths)  # 3 characters between two columns
    if spare < 0:
        return None
    missing = {column: max(map(len, texts[column])) - widths[column] for column in texts}
    for i, column in enumerate(sorted(missing, key=missing.__getitem__)):
        extra = min(missing[column], spare // (len(missing) - i))
        widths[column] += extra
        spare -= extra
    return widths
