"""Judge the samples of trained models by a published classifier of the same images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.evaluation import check_publishable
from experiments.experiment import Experiment
from experiments.folder import RESULTS, commit, is_clean, read_config, read_json, write_json
from experiments.registry import EXPERIMENTS
from experiments.run import Run, load_run
from gen import data, estimate, trained
from gen.core import UserError, require
from gen.data import Dataset
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
JUDGED = "judge.json"
"""Name of the file of a record."""

NAMES = {
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "vendi_score": "Vendi score",
    "class_kl": "class KL",
    "neighbour_distance": "distance to training",
    "copies": "copies",
    "labels_read_back": "labels read back",
    "trained_on_samples": "trained on samples",
    "modes": "modes",
    "mode_kl": "mode KL",
}
"""Names of the measures, for tables."""
ANCHORS = {"train": "training examples", "mixture": "mixture of Gaussians", "test": "test examples"}
"""Names of the anchors, for tables."""


class Subject(NamedTuple):
    """A trained model that is to be judged."""

    name: str  # of the experiment
    experiment: Experiment  # with the model
    dataset: Dataset
    states: dict[int, Any]  # state of the model, by seed
    step: Any  # step of the states, [] or [S]
    run: Run | None  # None for published weights


class Anchors(NamedTuple):
    """What samples are compared with, for one data set, and the figures beside theirs."""

    classifier: Trained
    sha256: str  # of the classifier's file
    test: dict[str, np.ndarray]  # decoded, with the labels if there are any
    seen_test: Prediction
    seen_training: Prediction
    figures: dict[str, dict[str, Estimate]]  # of training examples, a mixture and test examples
    accuracy: Estimate | None  # of the classifier on the test examples; None without labels


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
    experiment = replace(
        EXPERIMENTS[published.name], model=published.model, binarize=published.binarize
    )
    record = read_json(RESULTS / f"{published.name}.json", "seeds") or {"seeds": [0]}
    states = {record["seeds"][0]: published.state}
    dataset = data.load(experiment.data, data_dir)
    return Subject(published.name, experiment, dataset, states, published.step, None)


def load_classifier(name: str, source: str) -> tuple[Trained, str]:
    """Return a classifier and the SHA-256 of its file.

    Args:
      name: a published classifier, or a file that `export` has written; empty for the classifier of
        the data set.
      source: the data set.
    """
    if not name and source not in CLASSIFIERS:
        raise UserError(
            f"no classifier of {source} is published: train a classifier, export its weights and "
            "give the file as --classifier"
        )
    name = name or CLASSIFIERS[source]
    path = Path(name) if Path(name).is_file() else PUBLISHED / name / WEIGHTS
    if not path.exists():
        raise UserError(
            f"{name} is no published classifier and no file: python -m experiments export RUN FILE "
            "writes one from a run of it"
        )
    classifier = trained.load_weights(path)
    require(
        classifier.model.family == "classifier", f"{path} is no classifier: it is {classifier!r}"
    )
    return classifier, hashlib.sha256(path.read_bytes()).hexdigest()


def stacked(subject: Subject, classifier: Trained) -> bool:
    """Return whether a model draws three images of the classifier as channels of one.

    Raises:
      UserError: its samples are neither these nor images of the classifier.
    """
    shape, needed = tuple(subject.experiment.model.shape), tuple(classifier.model.shape)
    if shape == (*needed[:-1], 3) and needed[-1] == 1:
        return True
    if shape != needed:
        raise UserError(
            f"{subject.name} draws samples of shape {list(shape)} and {classifier.name} reads "
            f"{list(needed)}: give another --classifier"
        )
    return False
