"""What an experiment is (a model, its data, how long it trains) and where it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from gen import data, train
from gen.core import Batch, UserError, capabilities
from gen.data import Binarize, Dataset
from gen.train import Decode

MAY_CHANGE = {
    "steps",
    "report_every",
    "sample_every",
    "checkpoint_every",
    "keep_every",
    "steps_per_dispatch",
}
"""Fields that say how long a run is or how it reports: a resumed run may have others."""


@dataclass(frozen=True)
class Experiment:
    """Everything that determines the result of a training run."""

    model: Annotated[Any, tyro.conf.arg(help="")]  # whose flags have a heading of their own
    """the model and its hyperparameters"""
    data: str = "mnist"
    """data set: [fashion_, binarized_]mnist, digits[_nudged], uci_{dna, mushrooms, nips}, news,
    jsb, nottingham, letters, earthquakes or eight_gaussians"""
    binarize: Binarize = "none"
    """pixels: grey, thresholded at ½, or drawn afresh at each step"""
    batch_size: int = 100
    """examples in a step"""
    steps: int = 1000
    """length of the training"""
    seed: int = 0
    """determines initial weights, row order and every draw"""
    seeds: tuple[int, ...] = ()
    """train one run for each of these at once, in place of --seed"""
    restarts: bool = False
    """the seeds are restarts: the best of them on validation stands for all"""
    probe: bool = False
    """in evaluation, train classifiers on the codes and on the raw variables"""
    report_every: int = 100
    """steps between two lines of metrics.jsonl"""
    validate_every: int = 0
    """steps between two looks at the validation split; the best state is kept if the model has an
    objective (0: the last one)"""
    sample_every: int = 0
    """steps between two pictures of samples from the same noise (0: none)"""
    checkpoint_every: int = 1000
    """steps between two checkpoints"""
    keep_every: int = 0
    """keep the checkpoints at multiples of this (0: only the newest two)"""
    steps_per_dispatch: int = 0
    """steps in one compiled call (0: 1 on a CPU, 100 elsewhere)"""

    def __post_init__(self):
        for name in ("batch_size", "steps", "report_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: take at least 1")
        for name in ("validate_every", "sample_every", "keep_every", "steps_per_dispatch"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: take at least 0")
        if self.keep_every % self.checkpoint_every:
            raise UserError(
                f"keep_every is {self.keep_every}: take a multiple of checkpoint_every, "
                f"{self.checkpoint_every}"
            )
        if self.validate_every % self.report_every:
            raise UserError(
                f"validate_every is {self.validate_every}: take a multiple of report_every, "
                f"{self.report_every}"
            )
        decay = getattr(self.model, "decay_steps", 0)
        if 0 < decay < self.steps:
            raise UserError(
                f"the step size is 0 from step {decay} on, before the {self.steps} steps are over: "
                "give --model.decay-steps too"
            )
        if self.validate_every:
            train.check_validated(self.model)
        if self.restarts and not train.has_objective(self.model):
            raise UserError(f"{type(self.model).__name__} has no objective to compare restarts by")
        if self.restarts and not 0 < self.validate_every <= self.steps:
            raise UserError(
                "restarts are compared on the validation split: give a --validate-every of at most "
                f"the {self.steps} steps"
            )
        train.check_seeds(self.all_seeds)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return self.seeds or (self.seed,)

    @property
    def fit_seed(self) -> int | tuple[int, ...]:
        """As `fit` takes it: one seed alone runs without `vmap`."""
        return self.seeds or self.seed

    def on(self, dataset: Dataset) -> Experiment:
        """With the model's shape set to that of the data. Raises `UserError` if its variables have
        other levels than the data, if these are padded sequences and it does not take any, or if
        there is nothing to probe: no labels or no codes; or if it lacks labels or classes."""
        if "length" in dataset.train and not getattr(self.model, "sequences", False):
            raise UserError(
                f"{dataset.name} has sequences of different lengths, which "
                f"{type(self.model).__name__} does not take: an HMM does"
            )
        if dataset.counts and (self.binarize != "none" or getattr(self.model, "levels", None)):
            raise UserError(
                f"{dataset.name} has counts, not levels: --binarize none and Poisson emissions"
            )
        levels = 2 if self.binarize != "none" else dataset.peak + 1
        if (getattr(self.model, "levels", None) or levels) != levels:
            raise UserError(
                f"{dataset.name} with --binarize {self.binarize} has {levels} levels, "
                f"the model {self.model.levels}: change that, or the model's levels"
            )
        if self.probe and "label" not in dataset.train:
            raise UserError(f"{dataset.name} has no labels, which --probe predicts: leave it out")
        if self.probe and "encode" not in capabilities(self.model):
            raise UserError(
                f"{type(self.model).__name__} has no codes, which --probe tries: leave it out"
            )
        if classes := getattr(self.model, "classes", 0):
            if "label" not in dataset.train:
                raise UserError(
                    f"{dataset.name} has no labels, which the model is given: --model.classes 0"
                )
            if classes <= (last := int(max(of["label"].max() for of in dataset.splits.values()))):
                raise UserError(
                    f"{dataset.name} has labels up to {last}, the model {classes} classes: "
                    f"--model.classes {last + 1}"
                )
        return replace(self, model=replace(self.model, shape=dataset.shape))

    def decode(self, dataset: Dataset) -> Decode:
        return partial(data.decode, peak=dataset.peak, binarize=self.binarize)

    def decoded(self, dataset: Dataset, split: str, seed: int) -> tuple[Batch, jax.Array]:
        """All of a split as the model takes it, and the key to evaluate it with; dynamic
        binarisation draws it once, with another key of the seed."""
        decode_key, key = jax.random.split(train.streams(seed).evaluate)
        return jax.jit(self.decode(dataset))(dict(dataset.splits[split]), decode_key), key

    @property
    def pauses(self) -> list[int]:
        """Intervals at which training has to be seen, beside that of the reports."""
        return [every for every in (self.checkpoint_every, self.sample_every) if every]

    def shown(self, carry: train.Carry) -> int:
        """The number of the seed whose model is looked at: the first, of restarts the best."""
        if not (self.restarts and self.seeds and isinstance(carry.best, train.Best)):
            return 0
        return int(np.argmin(carry.best.validation))

    def of_seed(self, tree: Any, index: int) -> Any:
        """What belongs to the seed number `index` in a tree that `fit` made."""
        return jax.tree.map(lambda array: array[index], tree) if self.seeds else tree


@dataclass(frozen=True)
class Options:
    """Where and on what a run trains: nothing that its result depends on."""

    out: Path | None = None
    """run folder (default: runs/NAME-seedN)"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    devices: int = 0
    """devices to split each batch over (0: 1, or all of them with --coordinator)"""
    coordinator: str = ""
    """host:port of process 0, to train in several processes"""
    processes: int = 1
    """number of processes"""
    process: int = 0
    """number of this process"""
    tensorboard: bool = False
    """write TensorBoard events too (extra: tensorboard)"""

    def __post_init__(self):
        if self.devices < 0:
            raise UserError(f"devices is {self.devices}: take at least 1")
        if self.coordinator and not re.fullmatch(r".+:\d+", self.coordinator):
            raise UserError(f"coordinator is {self.coordinator!r}: it has the form host:port")
        if not self.coordinator and (self.processes, self.process) != (1, 0):
            raise UserError("several processes need --coordinator host:port")


@dataclass(frozen=True)
class Training:
    """Train an experiment. The same command again resumes it, and leaves a finished run alone."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")]


def to_config(name: str, experiment: Experiment) -> dict[str, Any]:
    """As JSON: the experiment's name and every field."""
    return {"experiment": name, **_lists(asdict(experiment))}


def from_config(config: Mapping[str, Any], registry: Mapping[str, Experiment]) -> Experiment:
    """The experiment that `to_config` described. Raises `UserError` if none fits."""
    values = dict(config)
    name = values.pop("experiment", None)
    if name not in registry:
        raise UserError(f"config.json names the experiment {name!r}, which is not in the registry")
    return _rebuild(registry[name], values)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`field: old -> new` for every field that differs and may not."""
    changed = []
    for field in sorted(old.keys() | new.keys()):
        before, after = old.get(field), new.get(field)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += differences(before, after, f"{prefix}{field}.")
        elif before != after and prefix + field not in MAY_CHANGE:
            changed.append(f"{prefix}{field}: {before} -> {after}")
    return changed


def _rebuild(default: Any, values: Mapping[str, Any]) -> Any:
    unknown = values.keys() - {field.name for field in fields(default)}
    if unknown:
        raise UserError(
            f"config.json has fields that {type(default).__name__} lacks: "
            f"{', '.join(sorted(unknown))} (was the run made by another version?)"
        )
    return replace(default, **{key: _value(getattr(default, key), values[key]) for key in values})


def _value(default: Any, value: Any) -> Any:
    if isinstance(value, dict) and is_dataclass(default):
        return _rebuild(default, value)
    return tuple(value) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
