"""Measure how well labels are predicted from a model's features, by the number of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from experiments.compilation import keep_programs
from experiments.flags import parse
from experiments.uses.base import (
    Outcome,
    Row,
    Subject,
    as_table,
    check_use_publishable,
    finish,
    load_subject,
    of_training,
)
from gen import data
from gen.core import require
from gen.data import Binarize
from gen.uses import features
from gen.uses.features import Result

SEED = 0
"""Seed of the binarisation of the examples."""


@dataclass(frozen=True)
class Flags:
    """Predict labels from a model's features with few labels and many, and write RUN/features.json
    and RUN/features.png.

    Beside the model stand raw pixels, principal components and the untrained model.
    """

    run: tyro.conf.Positional[Path]
    """run folder, or the name of an experiment with published weights"""
    labels: tuple[int, ...] = (100, 1_000, 10_000, 55_000)
    """numbers of labels; one beyond the training split takes all of it"""
    draws: int = features.DRAWS
    """draws of the labelled examples, for each number of labels"""
    tune: bool = True
    """fine-tune the encoder on the labels, which takes most of the time"""
    data: str = ""
    """other data with labels, of the same shape (default: the data of the model)"""
    binarize: Binarize = "none"
    """rule by which other data are binarised"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    publish: bool = False
    """also write experiments/results/NAME/features.json"""
    keep_programs: bool = True
    """keep compiled programs in the cache folder for later commands"""

    def __post_init__(self):
        require(
            bool(self.data) or self.binarize == "none",
            f"--binarize is {self.binarize}, and the data of the model are as in training: give "
            "--data, too",
        )
        require(2 <= self.draws <= 100, f"--draws is {self.draws}: take 2 … 100")
        fewest = min(self.labels, default=0)
        require(fewest > 0, f"--labels is {self.labels}: give one positive number or more")


def check_labelled(subject: Subject) -> None:
    """Raise `UserError` unless the model has features, and its data labels and no padding."""
    features.check_features(subject.experiment.model)
    name, training = subject.dataset.name, subject.dataset.train
    require(
        subject.dataset.classes > 1,
        f"{name} has no labels, which could be predicted: give labelled data by --data",
    )
    require(
        "length" not in training,
        f"{name} has padded sequences, which have no features: take a model of images or vectors",
    )


def on_labelled_data(
    subject: Subject, name: str, binarize: Binarize, data_dir: Path | None = None
) -> Subject:
    """Return the model with other data, as one that was trained on images without labels needs.

    Args:
      subject: the model.
      name: the name of a data set.
      binarize: the rule by which it is binarised.
      data_dir: folder of prepared data sets.

    Raises:
      UserError: the data have another shape, or values that the model does not take.
    """
    dataset, needed = data.load(name, data_dir), subject.experiment.model.shape
    require(
        tuple(dataset.shape) == tuple(needed),
        f"{name} has the shape {list(dataset.shape)} and {subject.name} takes {list(needed)}: give "
        "other --data",
    )
    experiment = replace(subject.experiment, data=name, binarize=binarize, probe=False).on(dataset)
    return subject._replace(experiment=experiment, dataset=dataset)


def outcome_of(
    subject: Subject,
    labels: Sequence[int],
    draws: int = features.DRAWS,
    tune: bool = True,
    report: Callable[[Result], None] = lambda result: None,
) -> Outcome:
    """Return the errors of every method at every number of labels, with their figure.

    Args:
      subject: the model.
      labels: the numbers of labels.
      draws: draws of the labelled examples.
      tune: whether encoders are fine-tuned.
      report: is called with each result when it is there.
    """
    check_labelled(subject)
    experiment, dataset = subject.experiment, subject.dataset
    splits = {split: experiment.decoded(dataset, split, SEED)[0] for split in ("train", "test")}
    states = list(subject.states.values())
    results = features.label_errors(
        experiment.model, states, splits, labels, draws=draws, tune=tune, report=report
    )
    record = {
        **of_training(subject),
        "labelled": "equal numbers of each class",
        "draws": draws,
        "test_examples": len(splits["test"]["x"]),
        "per_draw": [
            {
                "method": result.method,
                "labels": result.labels,
                "errors": result.errors,
                "settings": result.settings,
            }
            for result in results
        ],
    }
    return Outcome(record, rows_of(results), figure_of(results, subject.name))


def rows_of(results: Sequence[Result]) -> list[Row]:
    """Return a row for each method, with its error rate at each number of labels."""
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        row = rows.setdefault(result.method, {"method": result.method})
        row[f"{result.labels:,} labels"] = result.estimate
    return list(rows.values())


def figure_of(results: Sequence[Result], name: str) -> Any:
    """Return the figure of errors against the number of labels.

    Args:
      results: the results.
      name: the name of the experiment.
    """
    from gen import plots

    return plots.by_labels(features.error_lines(results), f"{name}: labels predicted from features")


def command(arguments: list[str]) -> int:
    """Run `features` with its flags, and return the exit code."""
    chosen = parse(Flags, arguments, "features")
    keep_programs(chosen.keep_programs)
    subject = load_subject(chosen.run, chosen.data_dir)
    if chosen.data:
        subject = on_labelled_data(subject, chosen.data, chosen.binarize, chosen.data_dir)
    check_labelled(subject)
    if chosen.publish:  # before the training, which may take hours
        check_use_publishable(subject)

    def report(result: Result) -> None:
        error = f"{result.estimate.value:.4f} ± {result.estimate.stderr:.4f}"
        print(f"{result.labels:7,} labels  {result.method}: error {error}", flush=True)

    outcome = outcome_of(subject, chosen.labels, chosen.draws, chosen.tune, report)
    title = f"{subject.name}: error rate ± standard error over draws, of one draw over examples"
    Console().print(as_table(title, outcome.rows))
    finish(subject, "features", outcome, chosen.publish)
    return 0
