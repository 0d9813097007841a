"""Fill in occluded test examples by several models, and judge what they fill in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console

from experiments.compilation import keep_programs
from experiments.flags import parse
from experiments.uses.base import (
    Outcome,
    Row,
    Subject,
    as_table,
    finish,
    load_subjects,
    of_training,
)
from gen import estimate
from gen.core import UserError, capabilities, check_fields, require
from gen.uses import completion
from gen.uses.completion import OCCLUSIONS, Occlusion

COMMAND = "complete"
SEED = 0
"""Seed of the random mask, of the binarisation of examples, and of the ranks of equal sums."""
COLUMNS = 8
"""Images in a row of the picture, for each occlusion."""
HIDDEN_COLOUR = (0.45, 0.55, 0.8)
"""Colour of hidden pixels in the picture, as red, green and blue."""


@dataclass(frozen=True)
class Flags:
    """Fill in the same occluded test examples by several models, and write RUN/complete.json.

    A model takes part in the occlusions for which it draws from p(hidden | shown).
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or names of experiments with published weights, all on the same data"""
    occlusion: tuple[Occlusion, ...] = OCCLUSIONS
    """hidden part: the lower half, a random half, or a box in the middle"""
    examples: int = 100
    """number of test examples, the first ones"""
    draws: int = 19
    """completions of each example: 19, 39, 59, ..."""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    publish: bool = False
    """also write experiments/results/NAME/complete.json"""
    keep_programs: bool = True
    """keep compiled programs in the cache folder for later commands"""

    def __post_init__(self):
        check_fields(self, positive=("examples", "draws"))
        completion.check_draws(self.draws)
        require(bool(self.occlusion), f"no --occlusion given: take some of {' '.join(OCCLUSIONS)}")


class Task(NamedTuple):
    """Test examples with an occlusion, and the baseline that all models share."""

    x: np.ndarray  # [N, *shape], decoded
    mask: np.ndarray  # [*shape], 1 where a variable is shown
    neighbours: np.ndarray  # [K, N, *shape], filled in from the nearest training examples


class Completed(NamedTuple):
    """The completions of a model."""

    subject: Subject
    outcome: Outcome  # without a figure
    images: Mapping[str, np.ndarray]  # by occlusion, the first draw of the first seed, [N, *shape]


def kind_of_values(subject: Subject) -> str:
    """Return what values the examples of a model have, such as `binary (dynamic)`."""
    experiment = subject.experiment
    if experiment.binarize != "none":
        return f"binary ({experiment.binarize})"
    levels = experiment.levels(subject.dataset)
    return {0: "continuous", 2: "binary"}.get(levels, f"{levels} levels")


def tasks_of(
    subject: Subject, occlusions: Sequence[Occlusion], examples: int, draws: int
) -> dict[str, Task]:
    """Return the tasks of a model by occlusion. Models with the same values share them.

    Args:
      subject: the model.
      occlusions: the names of the masks.
      examples: the number of test examples, the first ones.
      draws: the number of neighbours, one for each completion of an example.

    Raises:
      UserError: the examples are sequences of different lengths.
    """
    dataset, experiment = subject.dataset, subject.experiment
    if "length" in dataset.test:
        raise UserError(
            f"{dataset.name} has sequences of different lengths, which have no common occlusion: "
            "take other data"
        )
    test, training = (
        np.asarray(experiment.decoded(dataset, split, SEED)[0]["x"]) for split in ("test", "train")
    )
    masks = {name: completion.occlusion_mask(name, dataset.shape, SEED) for name in occlusions}
    x = test[:examples]
    return {
        name: Task(x, mask, completion.neighbours(training, x, mask, draws))
        for name, mask in masks.items()
    }


def measures(
    x: np.ndarray, completed: np.ndarray, mask: np.ndarray
) -> dict[str, estimate.Estimate]:
    """Return the measures of completions that need no model, by the heading of their columns.

    Args:
      x: the truth, [N, *shape].
      completed: completions, [K, N, *shape].
      mask: 1 where a variable is shown, [*shape].
    """
    return {
        "squared error": completion.mean_error(x, completed, mask),
        "coverage": completion.coverage(x, completed, mask, SEED),
    }


def complete_subject(subject: Subject, tasks: Mapping[str, Task], draws: int) -> Completed:
    """Return the completions of a model, with a row for each occlusion that it takes.

    Args:
      subject: the model.
      tasks: its tasks, by occlusion.
      draws: completions of each example.

    Raises:
      UserError: the model takes none of the occlusions.
    """
    model, rows, images = subject.experiment.model, [], {}
    for name, (x, mask, neighbours) in tasks.items():
        if not completion.is_completed(model, mask):
            continue
        by_seed = []
        for seed, state in subject.states.items():
            completed = completion.draws(model, state, x, mask, draws, seed)
            images.setdefault(name, completed[0])
            nll = completion.conditional_nll(model, state, x, mask)
            exact = {"−log p, nats": nll} if nll else {}
            by_seed.append({**exact, **measures(x, completed, mask)})
        baseline = measures(x, neighbours, mask)
        rows.append(
            {
                "family": model.family,
                "values": kind_of_values(subject),
                "occlusion": name,
                **estimate.over_seeds_by_name(by_seed),
                **{f"{column} of neighbours": value for column, value in baseline.items()},
            }
        )
    if not rows:
        why = "has no method complete"
        if "complete" in capabilities(model):
            why = f"draws from p(hidden | shown) for none of the occlusions {', '.join(tasks)}"
        raise UserError(f"{type(model).__name__} of {subject.name} {why}: leave it out")
    some = next(iter(tasks.values()))
    record = {**of_training(subject), "examples": len(some.x), "draws": draws, "seed": SEED}
    return Completed(subject, Outcome(record, rows), images)


def complete_all(
    subjects: Sequence[Subject], occlusions: Sequence[Occlusion], examples: int, draws: int
) -> list[Completed]:
    """Return the completions of all models. The outcome of the first one has the common figure.

    Args:
      subjects: the models, all on the same data.
      occlusions: the names of the masks.
      examples: the number of test examples.
      draws: completions of each example.

    Raises:
      UserError: the models are trained on different data, or one of them takes no occlusion.
    """
    first = subjects[0]
    for subject in subjects[1:]:
        if subject.dataset.sha256 != first.dataset.sha256:
            raise UserError(
                f"{subject.name} is trained on {subject.dataset.name} and {first.name} on "
                f"{first.dataset.name}: give models of one data set"
            )
    tasks: dict[str, dict[str, Task]] = {}
    results = []
    for subject in subjects:
        values = kind_of_values(subject)
        if values not in tasks:
            tasks[values] = tasks_of(subject, occlusions, examples, draws)
        results.append(complete_subject(subject, tasks[values], draws))
    if len(first.dataset.shape) == 3:
        drawn = figure(results, tasks)
        first_result = results[0]
        outcome = first_result.outcome._replace(figure=drawn)
        results[0] = first_result._replace(outcome=outcome)
    return results


def figure(results: Sequence[Completed], tasks: Mapping[str, Mapping[str, Task]]) -> Any:
    """Draw the first images with a row for each model, and a panel for each occlusion.

    Above the models of one kind of values stand the test images, and the occluded images. Below
    them stand the images that are filled in from the nearest training example. A model that does
    not take an occlusion has an empty row.

    Args:
      results: the completions of all models.
      tasks: the tasks by kind of values and by occlusion.
    """
    from gen import plots

    occlusions = list(next(iter(tasks.values())))
    panels: dict[str, list[np.ndarray]] = {name: [] for name in occlusions}
    labels: list[str] = []
    for values, by_occlusion in tasks.items():
        own = [each for each in results if kind_of_values(each.subject) == values]
        for name, (x, mask, neighbours) in by_occlusion.items():
            shown = _coloured(x[:COLUMNS])
            occluded = np.where(mask[..., :1] != 0, shown, np.asarray(HIDDEN_COLOUR))
            empty = np.ones_like(shown)
            rows = [shown, occluded]
            for each in own:
                drawn = each.images.get(name)
                rows.append(empty if drawn is None else _coloured(drawn[:COLUMNS]))
            panels[name] += [*rows, _coloured(neighbours[0, :COLUMNS])]
        names = [each.subject.name for each in own]
        labels += [f"test, {values}", "shown", *names, "nearest training example"]
    return plots.panels_of_images({name: np.stack(rows) for name, rows in panels.items()}, labels)


def _coloured(x: np.ndarray) -> np.ndarray:
    """Return images [N, H, W, C] with three channels; others than three are averaged to grey."""
    x = np.clip(x, 0, 1)
    x = x if x.shape[-1] == 3 else x.mean(-1, keepdims=True)
    return np.broadcast_to(x, (*x.shape[:-1], 3))


def command(arguments: list[str]) -> int:
    """Run `complete` with its flags, and return the exit code."""
    chosen = parse(Flags, arguments, COMMAND)
    require(bool(chosen.runs), "no run given: complete RUN ..., or names of published models")
    keep_programs(chosen.keep_programs)
    subjects = load_subjects(chosen.runs, chosen.data_dir, chosen.publish)
    results = complete_all(subjects, chosen.occlusion, chosen.examples, chosen.draws)
    rows: list[Row] = [
        {"experiment": each.subject.name, **row} for each in results for row in each.outcome.rows
    ]
    examples = results[0].outcome.record["examples"]
    title = f"{examples:,} test examples of {subjects[0].dataset.name}"
    Console().print(as_table(title, rows))
    for each in results:
        finish(each.subject, COMMAND, each.outcome, chosen.publish)
    return 0
