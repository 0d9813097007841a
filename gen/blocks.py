"""Run a method of a trained model on NumPy arrays, block by block.

    codes = blocks.rows("encode", model, state, {"x": x})
    x = blocks.draws(model, state, 64, seed=0)

`gen.load` and the estimator of `gen.sklearn` are built on these two functions.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from gen import train
from gen.checks import check_not_donated

BLOCK = 64
"""Rows, at most, that are computed at a time."""

METHODS: Mapping[str, Callable[..., jax.Array]] = {
    "encode": lambda model, state, batch: model.encode(state, batch),
    "decode": lambda model, state, batch: model.decode(state, batch["z"]),
    "reconstruct": lambda model, state, batch: model.reconstruct(state, batch),
    "log_prob": lambda model, state, batch: model.log_prob(state, batch),
    "complete": lambda model, state, batch, key: model.complete(
        state, batch["x"], batch["mask"], key
    ),
    "score": lambda model, state, batch, key: model.score(state, batch, key),
}
"""Methods of a model that map a batch to an array with a row for each example."""

KEYED = ("complete", "score")
"""Methods that take a random key."""


def rows(
    method: str,
    model: Any,
    state: Any,
    batch: Mapping[str, Any],
    seed: int = 0,
    *,
    smallest: int = 1,
) -> np.ndarray:
    """Return a method's result for each row of a batch, [n, ...].

    The draws of a row depend on the seed and on the values of the row alone. A row has the same
    result in any order of rows and in any subset of them, within rounding. Equal rows have equal
    scores, but `complete` draws each of them anew.

    All blocks have equally many rows, a power of two up to `BLOCK`, so that few programs are
    compiled. The last block begins again with the first rows.

    Args:
      method: one of `METHODS`.
      model: the model.
      state: its state.
      batch: arrays [n, ...] by name: examples as the model takes them and, for `complete`, the
        `"mask"`; or codes `"z"`.
      seed: the seed of the draws.
      smallest: the rows of the smallest block, a power of two. With `BLOCK` all blocks have the
        same shape, and subsets give the same bits. A smaller one computes few rows in less time.
    """
    check_not_donated(state)
    batch = {name: _narrow(np.asarray(array)) for name, array in batch.items()}
    n = len(next(iter(batch.values())))
    checksums = _checksums(batch, method) if method in KEYED else np.zeros(n, np.uint32)
    size = min(BLOCK, max(smallest, 1 << (n - 1).bit_length()))
    run, results = _block_program(method, model), []
    with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
        for first in range(0, n, size):
            chosen = np.arange(first, first + size) % n
            block = {name: array[chosen] for name, array in batch.items()}
            results.append(np.asarray(run(state, block, checksums[chosen], np.uint32(seed))))
    return np.concatenate(results)[:n]


def draws(
    model: Any, state: Any, n: int, seed: int, condition: Mapping[str, Any] | None = None
) -> np.ndarray:
    """Draw n samples from a model, [n, *shape].

    Args:
      model: a model with `sample`.
      state: its state.
      n: the number of samples.
      seed: the seed of the draws.
      condition: further arguments of `sample`, such as `"label"`, [n].
    """
    check_not_donated(state)
    key = train.streams(seed).sample
    return np.asarray(_sample_program(model, n)(state, key, dict(condition or {})))


@train.keep_programs
def _block_program(method: str, model: Any) -> Callable[..., jax.Array]:
    """Return a method as a compiled function of (state, block, checksums, seed).

    The seed and the checksum of a row make the key of a row. A method without a key takes the whole
    block at once.
    """
    run = METHODS[method]

    def with_keys(state, block, checksums, seed):
        key = train.streams(seed).evaluate

        def one(row, checksum):
            batch = {name: value[None] for name, value in row.items()}
            return run(model, state, batch, jax.random.fold_in(key, checksum))[0]

        return jax.vmap(one)(block, checksums)

    def without_keys(state, block, checksums, seed):
        return run(model, state, block)

    return jax.jit(with_keys if method in KEYED else without_keys)


@train.keep_programs
def _sample_program(model: Any, n: int) -> Callable[..., jax.Array]:
    """Return the drawing of n samples as a compiled function of (state, key, condition)."""
    return jax.jit(lambda state, key, condition: model.sample(state, key, n, **condition))


def _checksums(batch: Mapping[str, np.ndarray], method: str) -> np.ndarray:
    """Return a CRC of the values of each row, [n]; for `complete` equal rows have different ones.

    Args:
      batch: arrays [n, ...] by name.
      method: the method that the rows are for.
    """
    checksums, seen = [], Counter()
    for row in zip(*(batch[name] for name in sorted(batch)), strict=True):
        checksum = zlib.crc32(b"".join(values.tobytes() for values in row))
        if method == "complete":
            seen[checksum] += 1
            checksum = zlib.crc32(str(seen[checksum]).encode(), checksum)
        checksums.append(checksum)
    return np.array(checksums, np.uint32)


def _narrow(array: np.ndarray) -> np.ndarray:
    """Return an array in the types of 32 bits in which JAX computes."""
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int32, copy=False)
