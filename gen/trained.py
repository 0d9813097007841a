"""Load a trained model in one line, and use it with NumPy arrays.

    run = gen.load("runs/vae_digits-seed0")
    images = run.sample(64)
    codes = run.encode(images)

`load` takes a run folder, a published model by the name of its experiment, or a file of
`gen.weights`. It needs no data set.

Arrays of examples have one convention, in both directions:

- Integers and Booleans are the stored values: grey bytes 0 … 255, symbols 0 … K − 1, counts. Draws
  of data with levels and of counts are integers.
- Floats of data with levels are values in [0, 1]. Whole floats whose maximum is above 1, such as
  0.0, 1.0, …, 16.0, are stored values, as integers are. Means, such as the samples of a VAE, are
  floats in [0, 1].
- Floats of continuous data are in the units of the data.

As in training, x is scaled and binarised. Dynamic binarisation draws with a fixed key.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from gen import blocks, optimize, train, weights
from gen import config as parts
from gen.checkpoint import open_checkpoints
from gen.checks import (
    check_data,
    check_integer,
    check_seeds,
    check_type,
    without_padding,
)
from gen.core import UserError, capabilities, facts
from gen.data.arrays import numbers, pad_sequences
from gen.data.cache import expand_user
from gen.data.dataset import Binarize, Format
from gen.files import damaged, json_sum, read_json

PUBLISHED = Path(__file__).parent.parent / "experiments" / "results"
"""folder of the published results, which is installed beside this package"""
WEIGHTS = "weights.safetensors"
"""name of the file of published weights in the folder of an experiment"""
CONFIG_KEYS = ("experiment", "model", "steps")
"""keys that every config.json has"""
MOST_SAMPLES = 100_000
"""samples, at most, of one call"""


class Restored(NamedTuple):
    """The last sound checkpoint of a run."""

    step: int  # steps done
    carry: train.Carry  # everything that training carries from there
    chosen_step: Any  # step of `state`, [] or [S]; below `step` where validation chose the state
    state: Any  # state of the model, [S, ...] for several seeds
    shown: int  # index of the seed whose model is shown: the first, or the best restart
    seconds: float  # training time up to the checkpoint
    damaged: dict[int, str]  # damaged checkpoints of later steps, each with the reason


@dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """A trained model with the scale of its data: NumPy arrays in, NumPy arrays out.

    A method that the model does not have raises `UserError`, which names the methods that it has.
    Methods take a single example without the batch axis, too, and then return a single result. They
    take images of one channel, and sequences of one variable, without that axis. Sequences can be a
    list, in which each has its own number of steps and no padding. Results that have a time axis
    are padded to the longest one.
    """

    name: str
    """name of the experiment"""
    model: Any
    """the model, a frozen dataclass"""
    state: Any
    """its state, for the model's own methods"""
    step: int
    """training step of the state"""
    config: Mapping[str, Any]
    """config.json of the run, or the header of the weights"""
    format: Format
    """format of the stored data"""
    binarize: Binarize = "none"
    """rule by which x is binarised"""
    padded: bool = False
    """whether it was trained on padded sequences, so that their lengths must be given"""

    def __repr__(self) -> str:
        can = ", ".join(self.abilities)
        return f"<{self.name}: {type(self.model).__name__} at step {self.step}; can {can}>"

    @property
    def abilities(self) -> tuple[str, ...]:
        """Return the names of the methods that this model supports."""
        return tuple(
            name for name in capabilities(self.model) if name == "sample" or name in blocks.METHODS
        )

    def sample(
        self, n: int, seed: int = 0, label: int | str | Sequence[int | str] | None = None
    ) -> np.ndarray:
        """Draw n samples, [n, *shape].

        Args:
          n: the number of samples.
          seed: the seed of the draws.
          label: a class, or several that the samples take in turn, by number or by name; only for a
            model with classes.

        Raises:
          UserError: the model has no sampler or no such class, or n is out of range.
        """
        self._need("sample")
        check_integer("n", n, 1, MOST_SAMPLES)
        check_seeds(seed)
        condition = {}
        if label is not None:
            condition = {"label": np.resize(self._classes(label), n)}
        return self._draws(blocks.draws(self.model, self.state, n, seed, condition))

    def encode(
        self, x: ArrayLike, *, label: ArrayLike | None = None, length: ArrayLike | None = None
    ) -> np.ndarray:
        """Return the codes of examples, [N, latent]; of sequences [N, T, latent].

        Args:
          x: examples, [N, *shape] or a single one.
          label: their classes, [N], for a model with classes.
          length: the numbers of steps of padded sequences, [N].
        """
        self._need("encode")
        batch, single = self._batch(x, label, length)
        return _unbatched(self._each("encode", batch), single)

    def decode(self, z: ArrayLike) -> np.ndarray:
        """Return the examples that codes stand for, as floats: [N, *shape].

        The model needs `encode`, too, which gives the shape of a code.

        Args:
          z: codes as `encode` returns them, [N, latent], or a single one.
        """
        self._need("decode")
        self._need("encode")
        z = np.asarray(z, np.float32)
        one: Any = {"x": jax.ShapeDtypeStruct((1, *self.model.shape), np.float32)}
        needed = jax.eval_shape(self.model.encode, self.state, one).shape[1:]
        single = z.shape == needed
        z = z[None] if single else z
        if z.shape[1:] != needed or not len(z):
            raise UserError(f"z has the shape {z.shape}: pass codes of shape {('N', *needed)}")
        return _unbatched(self._values(self._each("decode", {"z": z})), single)

    def reconstruct(
        self, x: ArrayLike, *, label: ArrayLike | None = None, length: ArrayLike | None = None
    ) -> np.ndarray:
        """Return the reconstructions of examples, as floats: [N, *shape].

        Args:
          x: examples, [N, *shape] or a single one.
          label: their classes, [N], for a model with classes.
          length: the numbers of steps of padded sequences, [N].
        """
        self._need("reconstruct")
        batch, single = self._batch(x, label, length)
        return _unbatched(self._values(self._each("reconstruct", batch)), single)

    def complete(
        self, x: ArrayLike, mask: ArrayLike, seed: int = 0, *, length: ArrayLike | None = None
    ) -> np.ndarray:
        """Return examples with their hidden variables drawn given the others, [N, *shape].

        The masks for which the draws have the model's law p(hidden | shown) depend on the model:
        see `completion` in `gen.core.Facts`. Equal rows are drawn independently of each other.

        Args:
          x: examples, [N, *shape] or a single one. The values of hidden variables do not matter.
          mask: 1 or true where a variable is shown, [*shape] or as x.
          seed: the seed of the draws.
          length: the numbers of steps of padded sequences, [N]; their padding stays as it is.
        """
        self._need("complete")
        check_seeds(seed)
        x, length = self._array(x, length)
        mask, _ = self._array(mask, None, "mask")
        if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
            raise UserError("mask has other values than 0 and 1: pass 1 where x is shown")
        x, single = self._rows(x)
        if mask.shape != x.shape:
            mask = self._rows(mask)[0]
        if mask.shape not in (x.shape, (1, *x.shape[1:])):
            raise UserError(f"mask has the shape {mask.shape} and x {x.shape}: pass equal shapes")
        mask = np.broadcast_to(mask, x.shape).astype(bool)
        batch, _ = self._batch(np.where(mask, x, np.zeros((), x.dtype)), None, length)
        if length is not None:
            mask = without_padding(mask, batch["length"])
        drawn = self._each("complete", {**batch, "mask": mask}, seed)
        if length is not None:
            drawn = without_padding(drawn, batch["length"])
        return _unbatched(self._draws(drawn), single)

    def log_prob(
        self, x: ArrayLike, *, label: ArrayLike | None = None, length: ArrayLike | None = None
    ) -> np.ndarray:
        """Return the exact log p(x) of examples, [N] nats, in the units of the data.

        It is a log-probability of discrete data and a log-density of continuous data.

        Args:
          x: examples, [N, *shape] or a single one.
          label: their classes, [N], for a model with classes.
          length: the numbers of steps of padded sequences, [N].
        """
        self._need("log_prob")
        batch, single = self._batch(x, label, length)
        values = self._each("log_prob", batch)
        if self.format.scale:  # p(x) = p(u) Π du/dx, with u = (x − center) / scale
            log_scale = np.broadcast_to(np.log(np.abs(self.format.scale)), batch["x"].shape)
            seen = ~np.isnan(np.asarray(batch["x"]))
            log_scale = np.where(seen, log_scale, 0)
            if "length" in batch:
                log_scale = without_padding(log_scale, batch["length"])
            values = values - log_scale.reshape(len(values), -1).sum(1)
        return _unbatched(values, single)

    def score(
        self,
        x: ArrayLike,
        seed: int = 0,
        *,
        label: ArrayLike | None = None,
        length: ArrayLike | None = None,
    ) -> np.ndarray:
        """Return the score of examples, [N]: the higher it is, the stranger is the example.

        Args:
          x: examples, [N, *shape] or a single one.
          seed: the seed of the draws, of a model whose score takes draws.
          label: their classes, [N], for a model with classes.
          length: the numbers of steps of padded sequences, [N].
        """
        self._need("score")
        check_seeds(seed)
        batch, single = self._batch(x, label, length)
        return _unbatched(self._each("score", batch, seed), single)

    def _need(self, method: str) -> None:
        """Raise `UserError`, which names the methods that there are, if the model lacks one."""
        if method not in self.abilities:
            raise UserError(
                f"{type(self.model).__name__} of {self.name} has no method {method}; "
                f"its methods are {', '.join(self.abilities)}"
            )

    def _classes(self, label: Any) -> np.ndarray:
        """Return labels as integers, int32, from numbers or names of classes."""
        classes, names = facts(self.model).classes, self.format.labels
        if not classes:
            raise UserError(f"{type(self.model).__name__} of {self.name} takes no labels")
        given = [label] if isinstance(label, str) or np.ndim(label) == 0 else list(label)
        numbers = []
        for each in given:
            if isinstance(each, str) and each in names:
                each = names.index(each)
            check_integer("label", each, 0, classes - 1)
            numbers.append(int(each))
        if not numbers:
            raise UserError(f"label is empty: take 0 … {classes - 1}")
        return np.array(numbers, np.int32)

    def _array(self, x: Any, length: Any, name: str = "x") -> tuple[np.ndarray, Any]:
        """Return x as an array, and its lengths. Sequences of a list are padded to the longest.

        Args:
          x: examples, or a single one.
          length: the lengths that the caller has given, or None.
          name: the name of x, for messages.
        """
        if facts(self.model).sequences and length is None:
            sequences = _listed(x, tuple(self.model.shape), name)
            if sequences is not None:
                rows = pad_sequences(sequences, name)
                return rows.x, rows.length
        try:
            return np.asarray(x), length
        except ValueError as error:
            remedy = "pass examples of one shape" if length is None else "leave length out"
            raise UserError(f"{name} is a list of different shapes: {remedy}") from error

    def _rows(self, x: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return x with the batch axis and an axis of size 1 at the end, where the model has one.

        The second result tells whether x is a single example.
        """
        shape = tuple(self.model.shape)
        any_length = facts(self.model).sequences
        tail = shape[1:] if any_length else shape

        def fits(given: tuple[int, ...]) -> bool:
            return given == shape or (any_length and given[1:] == tail and len(given) > 0)

        if fits(x.shape):
            return x[None], True
        if not fits(x.shape[1:]) and len(shape) == 3 and shape[-1] == 1:
            if x.shape == shape[:-1]:
                return x[None, ..., None], True
            if x.shape[1:] == shape[:-1]:
                return x[..., None], False
        if any_length and tail == (1,) and x.ndim == 1:
            return x[None, :, None], True
        if any_length and tail == (1,) and x.ndim == 2:
            return x[..., None], False
        return x, False

    def _batch(self, x: Any, label: Any, length: Any) -> tuple[dict[str, Any], bool]:
        """Return examples as the model takes them, and whether x is a single example."""
        x, length = self._array(x, length)
        check_type("x", x)
        x, single = self._rows(x)
        batch: dict[str, Any] = {"x": x}
        if label is not None:
            batch["label"] = self._classes(label)
        if length is not None:
            batch["length"] = np.atleast_1d(np.asarray(length))
        elif self.padded and not single:
            raise UserError(
                f"{self.name} was trained on padded sequences and x has no lengths: give length, "
                "the number of steps of each sequence, or one sequence without its padding"
            )
        self._check_shape(x)
        self._check_scale(x)
        is_float = np.issubdtype(x.dtype, np.floating) and not self.format.scale
        scaled = is_float and not self._are_stored(x)
        format = replace(self.format, peak=1 if scaled else self.format.peak, stack=1)
        decoded = format.decode(
            {**batch, "x": jax.numpy.asarray(x)}, jax.random.key(0), self.binarize
        )
        decoded = {name: np.asarray(array) for name, array in decoded.items()}
        levels = 2 if self.binarize != "none" else self.format.levels
        check_data(self.model, decoded, levels, any_length=True)
        return decoded, single

    def _check_shape(self, x: np.ndarray) -> None:
        """Raise `UserError` unless x are examples of the model's shape."""
        needed = tuple(self.model.shape)
        skip = 1 if facts(self.model).sequences else 0  # steps of a sequence
        if x.ndim != 1 + len(needed) or x.shape[1 + skip :] != needed[skip:]:
            raise UserError(
                f"x has the shape {x.shape}: {self.name} takes examples {('N', *needed)}, "
                f"N of them, or one, {needed}"
            )

    def _are_stored(self, x: np.ndarray) -> bool:
        """Return whether floats of data with levels are whole, with a maximum above 1."""
        seen = x[~np.isnan(x)]
        whole = self.format.levels > 0 and bool(np.all(seen == np.floor(seen)))
        return whole and seen.max(initial=0) > 1

    def _check_scale(self, x: np.ndarray) -> None:
        """Raise `UserError` unless x are stored values or floats in [0, 1], if x has levels."""
        if not self.format.levels or not x.size:
            return
        low, high, peak = np.nanmin(x), np.nanmax(x), self.format.peak
        if np.issubdtype(x.dtype, np.floating) and not self._are_stored(x):
            if low < 0 or high > 1:
                raise UserError(
                    f"x has floats from {low:g} to {high:g} and {self.name} takes floats in "
                    f"[0, 1] or integers 0 … {peak}: divide x by its largest possible value"
                )
        elif low < 0 or high > peak:
            raise UserError(
                f"x has integers {low:.0f} … {high:.0f} and {self.name} takes integers 0 … "
                f"{peak} or floats in [0, 1]: divide x by its largest possible value, x / 255 for "
                "bytes"
            )

    def _each(self, method: str, batch: Mapping[str, Any], seed: int = 0) -> np.ndarray:
        """Return a method's result for each row of a batch (`gen.blocks.rows`)."""
        return blocks.rows(method, self.model, self.state, batch, seed)

    def _draws(self, x: Any) -> np.ndarray:
        """Return drawn examples as stored integers, or continuous ones in their own units."""
        known = facts(self.model)
        if not (known.levels or known.counts):
            return self._values(x)
        peak = self.format.peak
        kinds = ((2**8, np.uint8), (2**16, np.uint16))
        kind = next((kind for bound, kind in kinds if peak < bound and known.levels), np.int32)
        return np.rint(np.asarray(x) * peak).astype(kind)

    def _values(self, x: Any) -> np.ndarray:
        """Return examples as floats, standardised ones in their own units."""
        x = np.asarray(x)
        return np.asarray(self.format.restore(x), np.float32) if self.format.scale else x


def _listed(x: Any, shape: tuple[int, ...], name: str) -> list[np.ndarray] | None:
    """Return the sequences [T_n, ...] of a list, or None if x is no list of sequences.

    Args:
      x: examples, or a single one.
      shape: the shape of a sequence of the model, (T, ...).
      name: the name of x, for messages.
    """
    is_list = isinstance(x, list | tuple) or (isinstance(x, np.ndarray) and x.dtype == object)
    if not is_list or not len(x) or np.isscalar(x[0]):
        return None
    sequences = [numbers(each, name) for each in x]
    if shape[1:] == (1,) and all(each.ndim == 1 for each in sequences):
        if all(len(each) == 1 for each in sequences):  # the steps of one sequence [T, 1]
            return None
        return [each[:, None] for each in sequences]
    return sequences if all(each.ndim == len(shape) for each in sequences) else None


def _unbatched(results: np.ndarray, single: bool) -> np.ndarray:
    """Return the only result where x was a single example, else all results."""
    return results[0] if single else results


def load(
    path: str | os.PathLike[str], *, model: Any = None, seed_index: int | None = None
) -> Trained:
    """Return a trained model.

    It has the state with the lowest validation objective where the run was validated, else the last
    state.

    Args:
      path: a run folder; the name of an experiment whose weights are published; or a file that
        `gen.weights.save` has written with its model.
      model: the model of the run, for one with a network or an optimiser of your own. The default
        is the model that the run names. Without a shape of its own it takes the shape of the run.
      seed_index: the position of a seed among several `seeds` of a run folder. The default is the
        first seed, or the best of several restarts.

    Raises:
      UserError: there is no such run, a file of it is damaged, it has no checkpoint yet, or its
        model has parts that this project lacks.
    """
    try:
        path = expand_user(path)
    except OSError as error:
        raise UserError(str(error)) from error
    if path.is_file():
        return load_weights(path, model)
    config = read_config(path)
    if config is None:
        return load_weights(_published(path), model)
    manifest = read_json(path / "manifest.json", "data", "sessions")
    if manifest is None:
        raise UserError(f"{path} has lost its manifest.json: restore it or use another run")
    if "format" not in manifest:
        raise UserError(
            f"{path} is of an older version, which did not store the format of its data: use it "
            "by the command line, or train it anew"
        )
    try:
        if model is None:
            model = parts.from_json(config["model"])
        else:
            shape = tuple(config["model"]["shape"])
            model = optimize.for_run(replace(model, shape=shape), config["steps"])
        format = parts.from_json(manifest["format"], name="format")
        arrays = {
            name: jax.ShapeDtypeStruct(tuple(each["shape"]), np.dtype(each["dtype"]))
            for name, each in dict(manifest["arrays"]).items()
        }
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path / "manifest.json", "the types of its arrays") from error
    restored = restore(path, config, model, arrays, format)
    for step, reason in restored.damaged.items():
        text = f"{path}: skipped the checkpoint of step {step}, which is damaged: {reason}"
        warnings.warn(text, stacklevel=2)
    seeds = config["seeds"]
    index = restored.shown
    if seed_index is not None:
        check_integer("seed_index", seed_index, 0, max(0, len(seeds) - 1))
        index = int(seed_index)
    state, step = restored.state, np.asarray(restored.chosen_step)
    if seeds:
        state = jax.tree.map(lambda array: array[index], state)
        step = np.broadcast_to(step, len(seeds))[index]  # without a validation one for all seeds
    return Trained(
        config["experiment"],
        model,
        state,
        int(step),
        config,
        format,
        config["binarize"],
        padded="length" in arrays,
    )


def load_weights(path: Path, model: Any = None) -> Trained:
    """Return a trained model from a file that `gen.weights.save` has written with its model.

    Args:
      path: the file.
      model: the model, or None to take the one that the file describes.
    """
    about = weights.header(path)
    model = weights.model_of(path, about) if model is None else model
    if "format" not in about:
        raise UserError(f"{path} does not say how its data are stored: write it anew, weights.save")
    format = parts.from_json(about["format"], name="format")
    state = weights.load(path, model)
    name, step = about["experiment"], about["step"]
    return Trained(name, model, state, step, about, format, about["binarize"])


def published() -> list[str]:
    """Return the names of the experiments whose weights are published."""
    return sorted(path.parent.name for path in PUBLISHED.glob(f"*/{WEIGHTS}"))


def _published(path: Path) -> Path:
    """Return the file of published weights that a name stands for."""
    names = published()
    if str(path) in names:
        return PUBLISHED / path / WEIGHTS
    if path.name == str(path) and (PUBLISHED / f"{path}.json").is_file():
        raise UserError(
            f"the weights of {path} are not published: python -m experiments train {path} makes "
            f"the run runs/{path}-seed0, which can be given in its place"
        )
    near = difflib.get_close_matches(str(path), names)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"{len(names)} models are published, such as vae_digits, and python -m experiments "
        "list NAME says whether NAME is one of them"
    )
    raise UserError(
        f"{path} holds no run and is no published model: python -m experiments train NAME --out "
        f"{path} makes a run; {hint}"
    )


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the content of config.json without its sum, or None if there is no such file.

    Raises:
      UserError: the file is damaged or was edited.
    """
    path = folder / "config.json"
    config = read_json(path, *CONFIG_KEYS)
    # An older version wrote no sum.
    if config is not None and config.pop("sha256", None) not in (None, json_sum(config)):
        raise damaged(path, "it was changed, its SHA-256 differs")
    return config


def restore(
    folder: Path,
    config: Mapping[str, Any],
    model: Any,
    arrays: Mapping[str, Any],
    format: Format,
) -> Restored:
    """Return the last sound checkpoint of a run. Nothing is written.

    Args:
      folder: the run folder.
      config: its config.json.
      model: its model, with the shape of the data and a length for every falling schedule.
      arrays: the training arrays, or their shapes and types, by name.
      format: their format.

    Raises:
      UserError: there is no checkpoint, or every one is damaged or of another model.
    """
    seeds = tuple(config["seeds"])
    validated = config["validate_every"] > 0 and train.has_objective(model)
    target = carry_shapes(
        model,
        arrays,
        config["batch_size"],
        seeds or config["seed"],
        decode=partial(format.decode, binarize=config["binarize"]),
        validated=validated,
        placement=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]),
    )
    with open_checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore(target)
    if restored is None:
        raise UserError(f"{folder} has no checkpoint yet: train it for longer")
    carry = restored.tree
    return Restored(
        restored.step,
        carry,
        train.chosen_step(restored.step, carry),
        carry.chosen,
        train.shown_seed(carry, bool(config["restarts"] and seeds)),
        restored.info["seconds"],
        restored.damaged,
    )


def carry_shapes(
    model: Any,
    arrays: Mapping[str, Any],
    batch_size: int,
    seed: int | Sequence[int],
    *,
    decode: train.Decode,
    validated: bool,
    placement: Any,
) -> Any:
    """Return the shapes of the carry of a run, placed on devices, as a target of a restore.

    Args:
      model: the model.
      arrays: the training arrays, or their shapes and types, by name.
      batch_size: examples in a step.
      seed: one seed, or several.
      decode: maps raw rows to a batch.
      validated: whether the run keeps its best state.
      placement: the sharding of every array.
    """
    shapes = jax.eval_shape(
        lambda given: train.begin(
            model, given, batch_size, seed, decode=decode, validated=validated
        ),
        dict(arrays),
    )
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement), shapes
    )
