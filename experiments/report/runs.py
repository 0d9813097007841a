"""Load the runs of a report, with their estimates, warnings and cost, and rank the estimates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.compare import other_data, shortest_ends
from experiments.evaluation import evaluate_published, evaluate_run, of_sessions
from experiments.folder import RESULTS, read_json
from experiments.run import FAULTS
from experiments.table import NEEDED
from experiments.uses.base import Subject, load_subject
from gen import estimate, trained
from gen.core import UserError, require
from gen.data.download import first_line
from gen.estimate import Estimate

FAILURES = (UserError, MemoryError, RuntimeError)
"""Errors after which a report goes on with its other parts, the last two of NumPy and of JAX."""

RANKED = ("bits_per_dim", "bits_per_dim_ode", "nll", "mse", "error")
"""Estimates that are ranked, lower before higher."""


class Cost(NamedTuple):
    """The cost of a training."""

    steps: int
    seconds: float  # of all seeds together; NaN where it is not recorded
    parameters: int
    device: str
    command: str  # that repeats it


class Entry(NamedTuple):
    """A run of a report."""

    label: str
    subject: Subject
    estimates: dict[str, Estimate]
    without: str  # why there are no estimates
    warnings: list[str]
    cost: Cost

    @property
    def family(self) -> str:
        """Return the family of the model."""
        return self.subject.experiment.model.family

    @property
    def state(self) -> Any:
        """Return the state of the first seed, or of the best restart."""
        return next(iter(self.subject.states.values()))

    @property
    def seed(self) -> int:
        """Return the seed of `state`."""
        return next(iter(self.subject.states))


def load(paths: Sequence[Path], data_dir: Path | None = None) -> list[Entry]:
    """Return the runs of a report, the runs of one family side by side.

    Estimates come from RUN/evaluation.json if it is of the run's present state; else the run is
    evaluated, and the file is written.

    Args:
      paths: run folders, or names of experiments whose weights are published.
      data_dir: folder of prepared data sets, as `gen.data.load` takes it.

    Raises:
      UserError: a run cannot be read, or is given twice.
    """
    names = [
        (str(path),) if str(path) in trained.published() else path.absolute().parts
        for path in paths
    ]
    twice = [path for path, name in zip(paths, names, strict=True) if names.count(name) > 1]
    require(not twice, f"{twice[0] if twice else ''} is given twice: give different runs")
    labels = ["/".join(end) for end in shortest_ends(names)]
    subjects = [load_subject(path, data_dir) for path in paths]
    entries = [
        entry_of(subject, label, data_dir) for subject, label in zip(subjects, labels, strict=True)
    ]
    return side_by_side(entries)


def side_by_side(entries: Sequence[Entry]) -> list[Entry]:
    """Return runs with the runs of one family side by side, families by their first run."""
    families = list(dict.fromkeys(entry.family for entry in entries))
    return sorted(entries, key=lambda entry: families.index(entry.family))


def entry_of(
    subject: Subject, label: str, data_dir: Path | None = None, without: str = ""
) -> Entry:
    """Return a run of a report with its estimates, which are computed if they are not stored.

    Args:
      subject: the model with its data.
      label: the name of the run on the page.
      data_dir: folder of prepared data sets.
      without: why they are not computed, or an empty text.
    """
    texts, record = list(recorded_warnings(subject)), stored_record(subject)
    if record is None and without:
        record = {"estimates": {}}
    if record is None:
        print(f"{label}: evaluating", flush=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                if subject.run:
                    record = evaluate_run(subject.run, "test")
                else:
                    published = trained.load(subject.name)
                    record = evaluate_published(published, "test", data_dir)
            except FAILURES as error:
                record, without = {"estimates": {}}, first_line(error)
        texts += [f"evaluation: {each.message}" for each in caught if is_of_users(each)]
    found = {name: estimate.from_json(each) for name, each in record["estimates"].items()}
    return Entry(label, subject, found, without, texts, cost_of(subject, record))


def is_of_users(warning: warnings.WarningMessage) -> bool:
    """Return whether a warning is for users, and not for the developers of a library."""
    others = (DeprecationWarning, PendingDeprecationWarning, ResourceWarning)
    return not issubclass(warning.category, others)


def stored_record(subject: Subject) -> dict[str, Any] | None:
    """Return the stored evaluation of a model's present state, or None if there is none."""
    run = subject.run
    if run is None:
        return read_json(RESULTS / f"{subject.name}.json", *NEEDED)
    record = read_json(run.folder / "evaluation.json")
    now = {
        "data": run.dataset.name,
        "binarize": run.experiment.binarize,
        "split": "test",
        "step": run.step,
        "chosen_step": np.asarray(run.chosen_step).tolist(),
    }
    is_present = record is not None and all(record.get(key) == now[key] for key in now)
    return record if is_present and record and "estimates" in record else None


def recorded_warnings(subject: Subject) -> list[str]:
    """Return the faults that the training of a model showed, and whether it is unfinished."""
    run = subject.run
    if run is None:
        return list((read_json(RESULTS / f"{subject.name}.json") or {}).get("faults", []))
    log = run.folder / FAULTS
    texts = log.read_text().splitlines() if log.exists() else []
    if run.step < run.experiment.steps and not run.stopped_early:
        texts.append(f"unfinished: step {run.step:,} of {run.experiment.steps:,}")
    ended = read_json(run.folder / "diverged.json")
    return texts + ([f"diverged: {ended.get('reason', 'see diverged.json')}"] if ended else [])


def cost_of(subject: Subject, record: Mapping[str, Any]) -> Cost:
    """Return the cost of a training.

    Args:
      subject: the model.
      record: its evaluation, which has the cost of published weights.
    """
    model, run = subject.experiment.model, subject.run
    state = next(iter(subject.states.values()))
    learned = jax.tree.leaves(model.parameters(state))
    parameters = sum(math.prod(array.shape) for array in learned)
    if run:
        command = run.sessions[-1]["command"]
        return Cost(run.step, run.seconds, parameters, of_sessions(run, "device"), command)
    return Cost(
        int(record.get("step", np.max(subject.step))),
        float(record.get("train_seconds", math.nan)),
        parameters,
        str(record.get("device", "not recorded")),
        str(record.get("command", f"python -m experiments train {subject.name}")),
    )


def comparable(entries: Sequence[Entry], measure: str) -> list[list[Entry]]:
    """Return the runs that have an estimate, in groups whose values can be ordered.

    In a group, the data, the treatment of pixels, the kind of the estimate and its settings that
    change the quantity are the same.

    Args:
      entries: runs.
      measure: the name of the estimate.
    """
    groups: list[list[Entry]] = []
    for entry in entries:
        if measure not in entry.estimates:
            continue
        own = entry.estimates[measure]
        for group in groups:
            first = group[0]
            reason = other_data(first.subject, entry.subject)
            if not reason and not estimate.why_not_ordered(first.estimates[measure], own):
                group.append(entry)
                break
        else:
            groups.append([entry])
    return groups


def ranks(entries: Sequence[Entry], measure: str) -> dict[str, tuple[int, int]]:
    """Return (rank, size of the group) by label, in groups of two comparable runs or more.

    Args:
      entries: runs.
      measure: the name of the estimate; one that is not in `RANKED` gives no ranks.
    """
    found = {}
    for group in comparable(entries, measure) if measure in RANKED else []:
        values = [entry.estimates[measure].value for entry in group]
        for entry, value in zip(group, values, strict=True):
            if len(group) > 1 and not math.isnan(value):
                found[entry.label] = 1 + sum(other < value for other in values), len(group)
    return found
