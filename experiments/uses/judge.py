"""Judge the samples of trained models by a published classifier of the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console

from experiments.compilation import keep_programs
from experiments.flags import parse
from experiments.registry import EXPERIMENTS
from experiments.table import ANCHORS, MEASURES, cell
from experiments.uses.base import (
    Outcome,
    Subject,
    finish,
    load_subjects,
    of_training,
)
from gen import data, estimate, trained
from gen.core import UserError, capabilities, require
from gen.estimate import Estimate
from gen.trained import PUBLISHED, WEIGHTS, Trained
from gen.uses import judge
from gen.uses.classifier import Prediction, predict

CLASSIFIERS = {
    "mnist": "classifier_mnist",
    "binarized_mnist": "classifier_mnist",
    "stacked_mnist": "classifier_mnist",
    "fashion_mnist": "classifier_fashion_mnist",
    "digits": "classifier_digits",
    "digits_nudged": "classifier_digits",
}
"""The classifier that judges samples of a data set, by the name of the data set."""

SEED = 0
"""Seed of the anchors' draws, and of the binarisation of the test and training examples."""
SAMPLES, STACKED_SAMPLES = 10_000, 26_000
"""Numbers of samples, by default, of images and of Stacked MNIST."""
MIXTURE_ROWS = 10_000
"""Training examples, at most, to which the mixture is fitted."""
CHANNELS = 3
"""Channels of an image of Stacked MNIST."""


@dataclass(frozen=True)
class Flags:
    """Judge the samples of models by the features of a classifier, and write RUN/judge.json.

    Beside each figure stand the figures of training images, a mixture's samples and test images.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or names of experiments with published weights"""
    samples: int = 0
    """number of samples (0: 10,000; of Stacked MNIST 26,000)"""
    classifier: str = ""
    """published classifier, or a file that export wrote (default: the one of the data)"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    publish: bool = False
    """also write experiments/results/NAME/judge.json"""
    keep_programs: bool = True
    """keep compiled programs in the cache folder for later commands"""

    def __post_init__(self):
        enough = self.samples == 0 or 10 <= self.samples <= 1_000_000
        require(enough, f"--samples is {self.samples}: take 10 … 1000000, or 0 for the default")


class Judge(NamedTuple):
    """A classifier, and its predictions for the examples with which samples are compared."""

    classifier: Trained
    sha256: str  # of the classifier's file
    stacked: bool  # whether samples have three images of the classifier as channels
    test: Mapping[str, Any]  # decoded test examples; of Stacked MNIST the single images
    training: Mapping[str, Any]  # the same for training
    seen_test: Prediction
    seen_training: Prediction

    def see(self, x: np.ndarray) -> Prediction:
        """Return what the classifier predicts for samples, channel by channel of stacked ones."""
        if self.stacked:
            x = np.moveaxis(x, -1, 1).reshape(-1, *self.classifier.model.shape)
        return predict(self.classifier.model, self.classifier.state, x)

    def measure(self, seen: Prediction) -> dict[str, Estimate]:
        """Return the measures of samples that need no labels."""
        if self.stacked:
            shares = judge.class_shares(self.seen_test)
            return judge.modes(seen.labels.reshape(-1, CHANNELS), shares)
        return judge.judge(seen, self.seen_test, self.seen_training, SEED)


def load_judge(subject: Subject, name: str = "", data_dir: Path | None = None) -> Judge:
    """Return the judge of a model's samples.

    Args:
      subject: the model.
      name: a published classifier, or a file that `export` has written; empty for the classifier of
        the data set.
      data_dir: folder of prepared data sets.

    Raises:
      UserError: there is no such classifier, or it reads images of another shape or other values
        than the samples have.
    """
    source = subject.experiment.data
    if not name and source not in CLASSIFIERS:
        raise UserError(
            f"no classifier of {source} is published: train one on it, such as classifier_mnist, "
            "export its weights, and give the file as --classifier"
        )
    name = name or CLASSIFIERS[source]
    path = Path(name) if Path(name).is_file() else PUBLISHED / name / WEIGHTS
    if not path.exists():
        raise UserError(
            f"{name} is no published classifier and no file: python -m experiments export RUN FILE "
            "writes the file of a run"
        )
    classifier = trained.load_weights(path)
    if classifier.model.family != "classifier" or classifier.name not in EXPERIMENTS:
        raise UserError(f"{path} has a {classifier.model.family} and no classifier: give another")

    shape, needed = tuple(subject.experiment.model.shape), tuple(classifier.model.shape)
    is_stacked = needed[-1] == 1 and shape == (*needed[:-1], CHANNELS)
    if shape != needed and not is_stacked:
        raise UserError(
            f"{subject.name} draws samples of shape {list(shape)} and {classifier.name} reads "
            f"{list(needed)}: samples of other shapes are not judged"
        )
    experiment, dataset = subject.experiment, subject.dataset
    if is_stacked:  # the channels are single images
        experiment = EXPERIMENTS[classifier.name]
        dataset = data.load(experiment.data, data_dir)
    require(
        dataset.format.levels > 0,
        f"{dataset.name} has no levels, and a classifier reads values in [0, 1]: take other data",
    )
    test, training = (experiment.decoded(dataset, split, SEED)[0] for split in ("test", "train"))
    seen = [predict(classifier.model, classifier.state, rows["x"]) for rows in (test, training)]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Judge(classifier, sha256, is_stacked, test, training, *seen)


def anchors(judging: Judge, n: int, binary: bool) -> dict[str, dict[str, Estimate]]:
    """Return the figures that stand beside the samples' own, by the keys of `ANCHORS`.

    - `train`: n training examples in place of samples. It is the floor of every distance, except
      that training examples are copies of themselves.
    - `mixture`: samples of `judge.mixture_samples`, a simple model.
    - `test`: the test examples, for the measures that compare with training or with nothing.

    Args:
      judging: the judge.
      n: the number of samples.
      binary: whether the pixels are binary.
    """
    rng = np.random.default_rng(SEED)
    training = np.asarray(judging.training["x"])
    if judging.stacked:
        rows = rng.integers(0, len(training), (n, CHANNELS))
        training = np.concatenate([training[rows[:, i]] for i in range(CHANNELS)], axis=-1)
    some = np.arange(min(n, len(training))) * len(training) // min(n, len(training))
    mixture = judge.mixture_samples(training[some[:MIXTURE_ROWS]], n, SEED)
    if binary:
        mixture = (rng.random(mixture.shape) < mixture).astype(np.float32)
    figures = {
        "train": judging.measure(judging.see(training[some])),
        "mixture": judging.measure(judging.see(mixture)),
    }
    if not judging.stacked:
        own = judging.seen_test.features
        figures["test"] = {
            "vendi_score": judge.vendi_score(own, SEED),
            **judge.memorisation(own, own, judging.seen_training.features),
        }
    return figures


def judge_seed(subject: Subject, judging: Judge, seed: int, n: int) -> tuple[Any, list[float]]:
    """Return the estimates of one seed's samples by name, and the shares of their classes.

    Args:
      subject: the model.
      judging: the judge.
      seed: the seed of the model, which also draws the samples.
      n: the number of samples.
    """
    model, state = subject.experiment.model, subject.states[seed]
    drawn = judge.draw(model, state, n, seed, binary=subject.binary)
    seen = judging.see(drawn["x"])
    figures = judging.measure(seen)
    if "label" in drawn and not judging.stacked:
        figures["labels_read_back"] = judge.labels_read_back(seen, drawn["label"])
        own = replace(EXPERIMENTS[judging.classifier.name], model=judging.classifier.model)
        if "label" in judging.test:
            figures["trained_on_samples"] = judge.trained_on_samples(
                own.for_run().model, drawn, judging.test, own.steps, own.batch_size, seed
            )
    return figures, [round(share, 4) for share in judge.class_shares(seen).tolist()]


def judge_subject(
    subject: Subject, judging: Judge, figures: Mapping[str, Mapping[str, Estimate]], n: int
) -> dict[str, Any]:
    """Judge the samples of a model, and return the record.

    The estimates are means over the seeds of a run.

    Args:
      subject: the model.
      judging: the judge.
      figures: what `anchors` returned.
      n: the number of samples.
    """
    results = {seed: judge_seed(subject, judging, seed, n) for seed in subject.states}
    by_seed = [estimates for estimates, _ in results.values()]
    accuracy = {}
    if "label" in judging.test:
        right = judging.seen_test.labels == np.asarray(judging.test["label"])
        accuracy = {"accuracy": estimate.to_json(estimate.mean(right, "exact"))}
    return {
        **of_training(subject),
        "samples": n,
        "test_examples": len(judging.test["x"]),
        "estimates": {
            name: estimate.to_json(value)
            for name, value in estimate.over_seeds_by_name(by_seed).items()
        },
        "per_seed": [
            {
                "seed": seed,
                "class_shares": shares,
                **{name: {"value": each.value} for name, each in estimates.items()},
            }
            for seed, (estimates, shares) in results.items()
        ],
        "anchors": {
            anchor: {name: estimate.to_json(each) for name, each in of_anchor.items()}
            for anchor, of_anchor in figures.items()
        },
        "class_shares": [round(each, 4) for each in judge.class_shares(judging.seen_test).tolist()],
        "classifier": {
            "experiment": judging.classifier.name,
            "sha256": judging.sha256,
            **accuracy,
        },
    }


def judge_all(
    subjects: Sequence[Subject], samples: int, classifier: str = "", data_dir: Path | None = None
) -> Iterator[tuple[Subject, dict[str, Any]]]:
    """Yield each model with its record.

    Models on the same data share the anchors.

    Args:
      subjects: the models.
      samples: the number of samples of each seed; 0 for `SAMPLES`, of Stacked MNIST
        `STACKED_SAMPLES`.
      classifier: as in `load_judge`.
      data_dir: folder of prepared data sets.
    """
    for subject in subjects:
        name = type(subject.experiment.model).__name__
        able = "sample" in capabilities(subject.experiment.model)
        require(able, f"{name} of {subject.name} has no method sample, so nothing to judge")
    kept: dict[Any, Any] = {}
    for subject in subjects:
        shape, experiment = subject.experiment.model.shape, subject.experiment
        key = (experiment.data, experiment.binarize, experiment.reading, shape)
        if key not in kept:
            judging = load_judge(subject, classifier, data_dir)
            n = samples or (STACKED_SAMPLES if judging.stacked else SAMPLES)
            kept[key] = judging, anchors(judging, n, subject.binary), n
        yield subject, judge_subject(subject, *kept[key])


def summary(record: Mapping[str, Any]) -> Any:
    """Return a table for the terminal: each measure of the samples, and the anchors beside it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{record['experiment']}: {record['samples']:,} samples, {len(record['seeds'])} seed(s)"
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title)
    table.add_column("measure")
    table.add_column("samples", overflow="fold")
    for anchor in record["anchors"]:
        table.add_column(ANCHORS[anchor], overflow="fold")
    for name, fields in record["estimates"].items():
        others = [of_anchor.get(name) for of_anchor in record["anchors"].values()]
        table.add_row(MEASURES[name], *map(cell, (fields, *others)))
    return table


def class_lines(record: Mapping[str, Any]) -> str:
    """Return the shares of the labels among the samples of the first seed and the test examples."""
    rows = {"samples": record["per_seed"][0]["class_shares"], "test": record["class_shares"]}
    shares = [f"{name:8}" + "".join(f"{100 * share:6.1f}" for share in rows[name]) for name in rows]
    return "\n".join(["shares of the labels that the classifier reads, %", *shares])


def command(arguments: list[str]) -> int:
    """Run `judge` with its flags, and return the exit code."""
    chosen = parse(Flags, arguments, "judge")
    require(bool(chosen.runs), "no run given: judge RUN, or the name of a published model")
    keep_programs(chosen.keep_programs)
    subjects = load_subjects(chosen.runs, chosen.data_dir, chosen.publish)
    judged = judge_all(subjects, chosen.samples, chosen.classifier, chosen.data_dir)
    for subject, record in judged:
        Console().print(summary(record))
        print(class_lines(record))
        finish(subject, "judge", Outcome(record, ()), chosen.publish)
    return 0
