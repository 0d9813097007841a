"""Define a data set and its format, which decodes stored values into values of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Batch, require

Arrays = Mapping[str, np.ndarray]
"""arrays of one split by name, with N rows each: `"x"`, and `"label"`, `"length"` or `"factors"`"""

Binarize = Literal["none", "threshold", "dynamic"]
"""rule by which `Format.decode` makes grey values binary"""

LogProb = Callable[[jax.Array], jax.Array | np.ndarray]
"""function from x [..., *shape] to its log-density log p(x) [...], in nats"""


@dataclass(frozen=True)
class Format:
    """Say how the stored x of a data set stand for the values that a model takes.

    The stored x and the decoded x (`decode`) depend on the kind of the data:

    - Discrete levels (pixels, keys of a piano, letters): integers 0 … `levels` − 1, with `peak` =
      `levels` − 1. Decoded, they are equally spaced in [0, 1].
    - Counts (`counts` is true, `levels` is 0): integers without a largest possible value, with
      `peak` 1. Decoded, they are the same numbers as floats.
    - Continuous data (`counts` is false, `levels` is 0): real numbers, or fixed-point numbers of
      the unit interval with their `peak`. Columns with a `center` and a `scale` are standardised:
      decoded, they are (x − center) / scale.

    Only discrete levels can be binarised.
    """

    peak: int = 1
    """divisor of x in `decode`: the largest value that x can take, such as 255 for grey bytes and 1
    for binary pixels, or 1 where x has no largest value"""
    levels: int = -1
    """number of equally spaced values 0 … levels − 1 that the stored x can take, such as 256 for
    grey bytes, or 0 for counts and continuous data (default: 0 for counts, else `peak` + 1)"""
    counts: bool = False
    """x are counts"""
    symbols: str | tuple[str, ...] = ""
    """symbols that the values 0 … levels − 1 stand for: letters in one text, or a tuple of words"""
    words: tuple[str, ...] = ()
    """names of the variables of x, such as words or the columns of a table, if they have names"""
    labels: tuple[str, ...] = ()
    """names of the classes 0, 1, …, if they have names"""
    center: tuple[float, ...] = ()
    """number that is subtracted from each column of x, or one for all of x; empty where x is not
    standardised"""
    scale: tuple[float, ...] = ()
    """number that each column of x, or all of x, is then divided by; empty where x is not
    standardised"""
    stack: int = 1
    """number of stored images that `decode` draws as the channels of one example"""

    def __post_init__(self):
        if self.levels < 0:
            object.__setattr__(self, "levels", 0 if self.counts else self.peak + 1)
        require(self.stack >= 1, f"Format: stack is {self.stack}, must be positive")
        require(
            self.stack == 1 or not self.labels,
            f"Format: labels is {self.labels}, and examples of {self.stack} stacked images have no "
            "labels: leave it out",
        )

    def decode(self, batch: Batch, key: jax.Array, binarize: Binarize = "none") -> Batch:
        """Scale the stored x of a batch to x / `peak` or (x − center) / scale, and binarise it.

        Only data with levels can be binarised: there x / `peak` lies in [0, 1]. With `stack` k the
        channels of an example are k images of the batch, which k random orders of the batch put
        side by side: every image is in k examples.

        Args:
          batch: stored arrays, with x [B, *shape].
          key: random key of stacking and of dynamic binarisation; the other rules ignore it.
          binarize: `none` keeps the scaled x, `threshold` sets values above ½ to 1 and all others
            to 0, `dynamic` draws Bernoulli variables with the means x / `peak`.

        Returns:
          The batch with x as float32; its other arrays are unchanged.

        Raises:
          UserError: the images are stacked, and the batch has labels, each of a single image.
        """
        require(
            self.stack == 1 or "label" not in batch,
            f"Format: stack is {self.stack}, and a label is of a single image: leave labels out",
        )
        x = batch["x"].astype(jnp.float32)
        if self.stack > 1:
            *order_keys, key = jax.random.split(key, self.stack + 1)
            x = jnp.concatenate([jax.random.permutation(order, x) for order in order_keys], axis=-1)
        if self.scale:
            columns = (1,) * (x.ndim - 1) + (-1,)
            center, scale = jnp.asarray(self.center), jnp.asarray(self.scale)
            x = (x - center.reshape(columns)) / scale.reshape(columns)
        else:
            x /= self.peak
        if binarize == "threshold":
            x = (x > 0.5).astype(jnp.float32)
        elif binarize == "dynamic":
            x = jax.random.bernoulli(key, x).astype(jnp.float32)
        return {**batch, "x": x}

    def restore(self, x: Any) -> Any:
        """Return decoded values in the units of the stored x; the inverse of `decode`.

        Values of levels are not rounded: a mean lies between them.
        """
        if self.scale:
            return x * np.asarray(self.scale, np.float32) + np.asarray(self.center, np.float32)
        return x * self.peak


@dataclass(frozen=True)
class Dataset:
    """Hold the three splits of a data set as they are stored, and their format.

    Each split maps names to arrays with N rows:

    - `"x"` [N, *shape]: the stored values; with `format.stack` k they have 1 / k of the channels.
    - `"label"` [N] int32: the classes 0 … `classes` − 1, if the examples have labels.
    - `"length"` [N] int32: the numbers of steps, if the examples are sequences. Then x is
      [N, T, ...], T is the largest length over all splits, and the steps from `length` on are
      padding with zeros.
    - `"factors"` [N, K] int32: the values 0, 1, … of the K factors from which x was generated, if
      they are known. `factors` has their names.
    """

    name: str
    """name that `load` takes"""
    train: Arrays
    """training split"""
    validation: Arrays
    """validation split"""
    test: Arrays
    """test split"""
    format: Format
    """kind and scale of the stored x"""
    log_prob: LogProb | None = None
    """log-density of the decoded x, if the distribution that x was drawn from is known"""
    factors: tuple[str, ...] = ()
    """names of the factors from which x was generated, if they are known"""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one decoded example."""
        shape = self.train["x"].shape[1:]
        return shape if self.format.stack == 1 else (*shape[:-1], shape[-1] * self.format.stack)

    @property
    def splits(self) -> dict[str, Arrays]:
        """Return the three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def decoded(
        self, split: str, binarize: Binarize = "none", seed: int = 0
    ) -> dict[str, np.ndarray]:
        """Return all arrays of a split as a model takes them, on the host.

        Args:
          split: train, validation or test.
          binarize: the rule by which x is binarised, as in `Format.decode`.
          seed: the seed of the draws of dynamic binarisation.
        """
        rows = {name: jnp.asarray(values) for name, values in self.splits[split].items()}
        decoded = self.format.decode(rows, jax.random.key(seed), binarize)
        return {name: np.asarray(values) for name, values in decoded.items()}

    @property
    def classes(self) -> int:
        """Return 1 + the largest label over all splits, or 0 if there are no labels."""
        if "label" not in self.train:
            return 0
        return 1 + max(int(split["label"].max()) for split in self.splits.values())

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the arrays of all splits, with their names, types and shapes."""
        return arrays_sha256(self.splits)


def arrays_sha256(splits: Mapping[str, Arrays]) -> str:
    """Return the SHA-256 of all arrays of all splits, with their names, types and shapes."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        for name in sorted(splits[split]):
            values = np.ascontiguousarray(splits[split][name])
            digest.update(f"{split}/{name} {values.dtype} {values.shape}\n".encode())
            digest.update(values.data)
    return digest.hexdigest()
