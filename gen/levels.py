"""Levels and values: which data are discrete, and how a density model is applied to them.

K levels 0 ... K − 1 stand in x as the values k / (K − 1) in [0, 1]. A model of a density reaches
such data by dequantization, y = (k + u) / K with u in [0, 1): the density of y gives a lower bound
on the log-probability of k (Theis, van den Oord & Bethge 2016, https://arxiv.org/abs/1511.01844,
section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Data, UserError


def to_index(x: jax.Array, levels: int) -> jax.Array:
    """Return the index of the level nearest to each value of x in [0, 1], int32.

    Integers and Booleans are indices already.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.asarray(x, jnp.int32)
    return jnp.round(x * (levels - 1)).astype(jnp.int32)


def to_value(index: jax.Array, levels: int) -> jax.Array:
    """Return the value in [0, 1] of each level index."""
    return index / (levels - 1)


def to_floats(x: Any, levels: int | None) -> Any:
    """Return x as floats of at least 32 bits.

    Integers and Booleans are the indices 0 … K − 1 of levels where there are levels, and become the
    values k / (K − 1). Elsewhere the numbers stay the same.

    Args:
      x: examples, [B, *shape].
      levels: the number K of levels, or 0 or None where x has no levels.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(np.float32)
        return to_value(x, levels) if levels else x
    return x if x.dtype.itemsize >= 4 else x.astype(np.float32)


def as_values(batch: Mapping[str, Any], levels: int | None) -> Mapping[str, Any]:
    """Return the batch with x as floats (`to_floats`)."""
    return {**batch, "x": to_floats(batch["x"], levels)}


def dequantize(x: jax.Array, levels: int, within: jax.Array | float) -> jax.Array:
    """Return y = (k + u) / K < 1, a point of the cell of each level.

    Args:
      x: values of K levels in [0, 1], or their indices as integers, [...].
      levels: the number K of levels.
      within: u in [0, 1), [...]; uniform draws, or ½ for the middle of the cell.
    """
    y = (to_index(x, levels) + within) / levels
    # For u just below 1 the sum rounds to k + 1, which at the last level would give y = 1.
    return jnp.minimum(y, jnp.nextafter(jnp.ones((), y.dtype), 0))


def quantize(y: jax.Array, levels: int) -> jax.Array:
    """Return the value of the level whose cell y lies in; the inverse of `dequantize`."""
    return jnp.clip(jnp.floor(y * levels), 0, levels - 1) / (levels - 1)


def infer_levels(x: Any) -> int:
    """Return the number of levels of data, or 0 for continuous data.

    Integers have levels: one more than the largest, counted from 0 or from the smallest negative
    value. Floats have levels if they take at most 256 equally spaced values, and take some value
    more than once. Missing values (NaN) are left out.
    """
    x = np.asarray(x)
    if x.dtype.kind in "biu":
        return int(x.max()) - min(int(x.min()), 0) + 1 if x.size else 0
    x = x[np.isfinite(x)].ravel()
    if not x.size or len(np.unique(x[:10_000])) > 256:  # the first values settle most cases
        return 0
    values = np.unique(x.astype(np.float64))
    if len(values) > 256 or len(values) == x.size:
        return 0
    steps = np.diff(values)
    if not steps.size:
        return 1
    # Rounding spreads each level of float32 data by some 1e-7 of the range.
    distinct = steps[steps > 1e-5 * (values[-1] - values[0])]
    position = (values - values[0]) / distinct.min()
    equally_spaced = np.abs(position - np.round(position)).max() < 1e-2
    levels = round(position[-1]) + 1
    return levels if equally_spaced and levels <= 256 else 0


def check_levels(data: Data, levels: int) -> None:
    """Check that every x of `data` is one of `levels` equally spaced values in [0, 1].

    Integers 0 … K − 1 are indices of levels.

    Raises:
      UserError: a value lies between the levels or outside of them.
    """
    x = np.asarray(data["x"])
    if x.dtype.kind in "biu" and x.size and x.min() >= 0 and x.max() < levels:
        return
    x = np.asarray(x, np.float64)
    position = x * (levels - 1)
    nearest = np.clip(np.round(position), 0, levels - 1)
    if position.size and not np.abs(position - nearest).max() < 1e-3:
        raise UserError(
            f"the model has variables of {levels} levels in [0, 1] and the data have other values, "
            f"{span(x)}: {conversion(x, levels)}"
        )


def span(x: np.ndarray) -> str:
    """Return the smallest and the largest value of x as text."""
    return f"from {x.min():g} to {x.max():g}"


def conversion(x: np.ndarray, levels: int = 0) -> str:
    """Return how to convert values that are no levels in [0, 1], or that lie outside of [0, 1].

    Args:
      x: floats.
      levels: the number K of levels that are needed, or 0 where any value in [0, 1] is taken.
    """
    low, high = x.min(), x.max()
    whole = np.isfinite(x).all() and bool((x == np.round(x)).all())
    if np.isnan(low):
        return "remove or fill in the missing values (NaN)"
    if low >= 0 and high <= 1:  # between the levels
        binarise = "binarise them, (x > 0.5).astype(x.dtype) (--binarize)"
        rounding = f"round them, numpy.round(x * {levels - 1}) / {levels - 1}"
        return f"{binarise if levels == 2 else rounding}, or set the model's levels"
    if -1 <= low < 0 and high <= 1:
        return "pass (x + 1) / 2, which maps [-1, 1] to [0, 1]"
    if whole and low >= 0 and high < levels:
        return f"symbols need an integer dtype, x.astype(numpy.int32), or pass x / {levels - 1}"
    if whole and low >= 0 and high < 256:
        binarise = " and binarise it, x > 127 (--binarize)" if levels == 2 else ""
        return f"divide x by its largest possible value, x / 255 for bytes{binarise}"
    return "scale x to [0, 1], (x - x.min()) / (x.max() - x.min())"
