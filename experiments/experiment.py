"""Define an experiment (a model, its data, the length of its training) and where it runs."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import jax
import tyro
from flax import linen as nn

from experiments import own
from gen import checks, config, data, optimize, parallel, train
from gen.core import Batch, UserError, check_fields, require
from gen.data import DATASETS, ODDS, Binarize, Dataset, Format, Reading
from gen.train import Decode, Precision
from gen.uses.features import FINE_TUNING_ROUNDS

MAY_CHANGE = {
    "steps",
    "report_every",
    "sample_every",
    "checkpoint_every",
    "keep_every",
    "steps_per_dispatch",
    "early_stop",
}
"""Fields that a resumed run may change: its length, and the intervals of its reports."""


@dataclass(frozen=True)
class FormatDecode:
    """The function from raw batches to batches as a model takes them, (raw batch, key) ↦ batch.

    It compares by its fields, so that runs on data of equal formats share compiled programs.
    """

    format: Format
    """format of the data"""
    binarize: Binarize = "none"
    """rule by which x is binarised"""

    def __call__(self, batch: Batch, key: jax.Array) -> Batch:
        return self.format.decode(batch, key, self.binarize)


@dataclass(frozen=True)
class Experiment:
    """Everything that determines the result of a training run."""

    model: Annotated[Any, tyro.conf.arg(help="")]  # whose flags have a heading of their own
    """the model and its hyperparameters"""
    data: str = "mnist"
    """data set: [fashion_, binarized_, stacked_]mnist, digits[_nudged], uci_{dna, mushrooms, nips},
    news[_groups, _foreign], jsb, nottingham, letters, earthquakes, regimes, sensors[_windows],
    textures[_brick], sprites, eight_gaussians, [fashion_]mnist_class_3 or odds_glass and their
    like; or your own: a folder of images, or a file .npz, .npy, .csv, .tsv, .txt or .mat"""
    reading: Annotated[Reading, tyro.conf.arg(name="")] = Reading()
    """how your own data are read"""
    binarize: Binarize = "none"
    """pixels: grey, thresholded at ½, or drawn afresh at each step"""
    batch_size: int = 100
    """examples in a step"""
    steps: int = 1000
    """number of training steps"""
    seed: int = 0
    """seed of the initial weights, the row order and every draw"""
    seeds: tuple[int, ...] = ()
    """train one run for each of these at once, in place of --seed"""
    restarts: bool = False
    """the seeds are restarts: the best of them on validation stands for all"""
    probe: bool = False
    """in evaluation, train classifiers on the codes and on the raw variables"""
    fine_tuning_rounds: int = FINE_TUNING_ROUNDS
    """rounds for which the probe fine-tunes an encoder that is an MLP; a round is an epoch, or 300
    steps where an epoch is shorter"""
    report_every: int = 100
    """steps between two lines of metrics.jsonl"""
    validate_every: int = 0
    """steps between two validations; the best state is kept if the model has an objective (0: no
    validation)"""
    early_stop: int = 0
    """validations without a better state after which training ends (0: never)"""
    precision: Precision = "float32"
    """inputs of the matrix products in training: bfloat16 rounds them on a GPU or TPU and changes
    nothing on a CPU; parameters, sums, convolutions and evaluation keep their precision"""
    sample_every: int = 0
    """steps between two pictures of samples from the same noise (0: none)"""
    checkpoint_every: int = 1000
    """steps between two checkpoints"""
    keep_every: int = 0
    """keep the checkpoints at multiples of this (0: only the newest two)"""
    steps_per_dispatch: int = 0
    """steps in one compiled call (0: 1 on a CPU, 100 elsewhere)"""

    def __post_init__(self):
        check_fields(
            self,
            positive=(
                "batch_size",
                "steps",
                "fine_tuning_rounds",
                "report_every",
                "checkpoint_every",
            ),
            non_negative=(
                "validate_every",
                "early_stop",
                "sample_every",
                "keep_every",
                "steps_per_dispatch",
            ),
            seeds=("seed", "seeds"),
        )
        for name, unit in (("keep_every", "checkpoint_every"), ("validate_every", "report_every")):
            value, interval = getattr(self, name), getattr(self, unit)
            require(
                value % interval == 0,
                f"{name} is {value}: take a multiple of {unit}, {interval}",
            )
        if self.validate_every:
            train.check_validated(self.model)
        checks.check_early_stop(self.model, self.early_stop, self.validate_every)
        if self.restarts:
            require(
                train.has_objective(self.model),
                f"{type(self.model).__name__} has no objective to compare restarts by",
            )
            require(
                0 < self.validate_every <= self.steps,
                "restarts are compared on the validation split: give a --validate-every of at most "
                f"the {self.steps} steps",
            )
        train.check_seeds(self.all_seeds)
        if self.data in DATASETS and self.reading != Reading():
            raise UserError(
                f"{self.data} is built in, and the options of reading are for your own data: leave "
                f"{' '.join(own.reading_flags(self.reading))} out"
            )

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Return the seeds of the run, one or several."""
        return self.seeds or (self.seed,)

    @property
    def fit_seed(self) -> int | tuple[int, ...]:
        """Return the seeds as `fit` takes them: a single seed runs without `vmap`."""
        return self.seeds or self.seed

    def load_data(self, data_dir: Path | None = None) -> Dataset:
        """Return the data set of the experiment, whose split the seed draws if it is one of `ODDS`.

        Args:
          data_dir: folder of prepared data sets, as `gen.data.load` takes it.

        Raises:
          UserError: there are several seeds, and each would draw another split.
        """
        require(
            self.data not in ODDS or len(self.all_seeds) == 1,
            f"the seed splits {self.data}, and all seeds of a run share their data: train one run "
            "for each, with --seed",
        )
        return data.load(self.data, data_dir, self.reading, self.all_seeds[0])

    def on(self, dataset: Dataset) -> Experiment:
        """Return the experiment with the model's shape set to the shape of the data.

        On data of one's own the numbers of levels and of classes are set, too, where the model has
        them as fields.

        Raises:
          UserError: the model does not fit the data's values (levels, counts or continuous), takes
            no sequences, or needs labels that the data lack; the data cannot be binarised; or
            there are no labels or no codes to probe, or the model is given the labels.
        """
        if self.data not in DATASETS:
            levels = self.levels(dataset)
            return replace(self, model=_sized(self.model, levels, dataset.classes))._on(dataset)
        return self._on(dataset)

    def _on(self, dataset: Dataset) -> Experiment:
        """Check that the model fits the data, and set its shape."""
        self._check_values(dataset)
        self._check_labels(dataset)
        return replace(self, model=replace(self.model, shape=dataset.shape))

    def _check_values(self, dataset: Dataset) -> None:
        """Raise `UserError` unless the model fits the values of the decoded data."""
        if "length" in dataset.train:
            checks.check_sequences(self.model, dataset.name)
        if self.binarize != "none" and dataset.format.levels == 0:
            values = "counts" if dataset.format.counts else "continuous values"
            raise UserError(f"{dataset.name} has {values}, not levels: give --binarize none")
        binarized = "" if self.binarize == "none" else f" with --binarize {self.binarize}"
        source, levels = f"{dataset.name}{binarized}", self.levels(dataset)
        checks.check_kind(self.model, source, levels, counts=dataset.format.counts)
        if self.data not in DATASETS:
            own.check(self.model, dataset)

    def _check_labels(self, dataset: Dataset) -> None:
        """Raise `UserError` unless the data have the labels that the model and the probe need."""
        if self.probe and not dataset.classes:
            raise UserError(f"{dataset.name} has no labels, which --probe predicts: leave it out")
        if self.probe:
            checks.check_probe(self.model)
        checks.check_classes(self.model, dataset.name, dataset.classes)

    def for_run(self) -> Experiment:
        """Return the experiment with a length for every falling schedule of the model.

        It is the number of steps of the run where none is given.
        """
        return replace(self, model=optimize.for_run(self.model, self.steps))

    def levels(self, dataset: Dataset) -> int:
        """Return the number of levels of decoded x; 0 for counts and continuous data."""
        return 2 if self.binarize != "none" else dataset.format.levels

    def decode(self, dataset: Dataset) -> Decode:
        """Return the function from raw batches to batches as the model takes them."""
        return FormatDecode(dataset.format, self.binarize)

    def decoded(self, dataset: Dataset, split: str, seed: int) -> tuple[Batch, jax.Array]:
        """Return all of a split as the model takes it, and the key to evaluate it with.

        Dynamic binarisation draws the split once, with a key of its own.

        Args:
          dataset: the data set of the experiment.
          split: train, validation or test.
          seed: the seed of both keys.
        """
        decode_key, key = jax.random.split(train.streams(seed).evaluate)
        return jax.jit(self.decode(dataset))(dict(dataset.splits[split]), decode_key), key

    def fit(self, dataset: Dataset, **options: Any) -> Iterator[train.Progress]:
        """Train on a data set by `gen.train.fit`, to which the fields of the experiment go.

        Args:
          dataset: the data set of the experiment.
          **options: further arguments of `fit`, or others in place of the experiment's.
        """
        arguments: dict[str, Any] = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "seed": self.fit_seed,
            "levels": self.levels(dataset),
            "decode": self.decode(dataset),
            "report_every": self.report_every,
            "steps_per_dispatch": self.steps_per_dispatch,
            "validation": dataset.validation,
            "validate_every": self.validate_every,
            "precision": self.precision,
        }
        return train.fit(self.model, dataset.train, **{**arguments, **options})

    @property
    def pauses(self) -> list[int]:
        """Return the intervals at which training pauses, beside the interval of the reports."""
        return [every for every in (self.checkpoint_every, self.sample_every) if every]

    def shown(self, carry: train.Carry) -> int:
        """Return the index of the seed whose model is shown: the first, or the best restart."""
        return train.shown_seed(carry, bool(self.restarts and self.seeds))

    def stalled(self, step: int, carry: train.Carry) -> bool:
        """Return whether validation ends the training at a step, see `gen.train.stalled`."""
        return train.stalled(step, carry, self.validate_every, self.early_stop)

    def of_seed(self, tree: Any, index: int) -> Any:
        """Return the part of one seed, by its index, of a tree that `fit` made."""
        return jax.tree.map(lambda array: array[index], tree) if self.seeds else tree


Logger = Literal["none", "tensorboard", "wandb"]
"""A service that shows the metrics of a run, beside metrics.jsonl."""


@dataclass(frozen=True)
class Options:
    """Where and on which devices a run trains. The result does not depend on these fields."""

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
    logger: Logger = "none"
    """send the metrics to TensorBoard or Weights & Biases, too (extras tensorboard and wandb)"""
    config: Path | None = None
    """config.json of any run, whose values are the defaults of the other flags"""
    pictures: bool = True
    """draw the pictures of the finished run"""
    keep_programs: bool = True
    """keep compiled programs in the cache folder for later commands"""

    def __post_init__(self):
        check_fields(self, positive=("processes",), non_negative=("devices", "process"))
        if self.coordinator:
            parallel.port_of(self.coordinator)
        if not self.coordinator and (self.processes, self.process) != (1, 0):
            raise UserError("several processes need --coordinator host:port")


@dataclass(frozen=True)
class Training:
    """Train an experiment. The same command again resumes it, and leaves a finished run alone."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")]


def _sized(model: Any, levels: int, classes: int) -> Any:
    """Return a model with the numbers of levels and classes of the data.

    Args:
      model: a model, or a part of one such as the emission of an HMM.
      levels: the number of levels, 0 for counts and continuous data. A model of levels alone keeps
        its own number then.
      classes: the number of classes, 0 without labels. A model that takes no labels takes none.
    """
    for field in fields(model):
        value = getattr(model, field.name)
        if field.name == "levels" or (field.name == "classes" and value):
            with suppress(UserError):
                model = replace(
                    model, **{field.name: levels if field.name == "levels" else classes}
                )
        elif is_dataclass(value) and not isinstance(value, nn.Module | type):
            model = replace(model, **{field.name: _sized(value, levels, 0)})
    return model


def to_config(name: str, experiment: Experiment) -> dict[str, Any]:
    """Return the experiment as JSON: its name and every field.

    Of a value that JSON cannot hold, such as an optax transformation in place of an `Optimizer`, it
    has the class alone: the value stands in the registry.
    """
    return {"experiment": name, **config.fields_to_json(experiment)}


def from_config(stored: Mapping[str, Any], registry: Mapping[str, Experiment]) -> Experiment:
    """Return the experiment that `to_config` described.

    Args:
      stored: the experiment as JSON. A field that it lacks takes its default.
      registry: the experiments by name. They give the values that JSON cannot hold.

    Raises:
      UserError: the registry has no such experiment, or a field is unknown, is of another type or
        is out of its range.
    """
    values = dict(stored)
    name = values.pop("experiment", None)
    if not isinstance(name, str) or name not in registry:
        raise UserError(f"the experiment {reprlib.repr(name)} is not in the registry")
    return config.with_fields(registry[name], values)


def missing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return `field = value` for every field of `new` that `old` lacks.

    Args:
      old: a configuration that an older version may have written.
      new: the same configuration with every field.
      prefix: the name of the part that both describe, with a dot.
    """
    lacking = [
        f"{prefix}{field} = {new[field]}"
        for field in new
        if field not in old and field != "class"  # which follows from the registry
    ]
    for field, value in old.items():
        if isinstance(value, dict):
            lacking += missing(value, new[field], f"{prefix}{field}.")
    return lacking


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return `field: old -> new` for every field that differs and may not.

    Args:
      old: the configuration of a run.
      new: the configuration to continue it with.
      prefix: the name of the part that both describe, with a dot.
    """
    changed = []
    for field in sorted(old.keys() | new.keys()):
        before, after = old.get(field), new.get(field)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += differences(before, after, f"{prefix}{field}.")
        elif before != after and prefix + field not in MAY_CHANGE:
            changed.append(f"{prefix}{field}: {before} -> {after}")
    return changed


def field_types(part: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of every field that a flag sets, by its path, such as `model.latent`.

    Args:
      part: an experiment or a part of one.
      prefix: the path of the part, with a dot.
    """
    hints, types = get_type_hints(type(part)), {}
    for name in config.stored_fields(type(part)):
        value = getattr(part, name)
        if is_dataclass(value):
            types |= field_types(value, f"{prefix}{name}.")
        elif name != "shape":  # which the data determine
            types[f"{prefix}{name}"] = hints[name]
    return types


def read_value(text: str, hint: Any) -> Any:
    """Return the JSON value of a field's type that a text stands for, or the text if none does.

    Args:
      text: a number, a word, or the items of a tuple with commas between them.
      hint: the type of the field.
    """
    words = {"True": True, "False": False, "None": None}

    def read(word):
        try:
            return words[word] if word in words else json.loads(word)
        except ValueError:
            return word

    items = [read(word) for word in text.split(",")]
    candidates = (items[0] if len(items) == 1 else text, text, items)
    value = next((value for value in candidates if config.has_type(value, hint)), candidates[0])
    return float(value) if hint is float and type(value) is int else value
