"""Judge how models fill in the hidden part of test examples.

    mask = occlusion_mask("lower", model.shape, seed=0)
    completed = draws(model, state, x, mask, 19, seed=0)
    error, covered = mean_error(x, completed, mask), coverage(x, completed, mask, seed=0)

An occlusion hides the same variables of every example. A mask is 1 where a variable is shown.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from gen import estimate, train
from gen.core import capabilities, facts, require
from gen.estimate import Estimate

Occlusion = Literal["lower", "random", "box"]
"""name of a mask of `occlusion_mask`"""

OCCLUSIONS: tuple[Occlusion, ...] = get_args(Occlusion)
"""all names of masks"""

INTERVAL = 0.9
"""Probability of the central interval of the draws that `coverage` takes."""
STEP = 20
"""Draws and truth together are a multiple of this, so that exactly 90 % of them are central."""


def occlusion_mask(name: Occlusion, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Return the mask of an occlusion, 1 where a variable is shown, [*shape].

    Args:
      name: `lower` hides the second half of the rows (of a vector, of its variables), `random` half
        of the pixels, and `box` the middle half of the rows and columns. The channels of a pixel
        are hidden together.
      shape: the shape of an example.
      seed: the seed of `random`.
    """
    channels = 1 if len(shape) > 2 else 0  # an image is [H, W, C]
    grid = shape[: len(shape) - channels]
    mask = np.ones(grid, np.float32)
    rows = len(mask)
    if name == "lower":
        mask[rows // 2 :] = 0
    elif name == "random":
        order = np.random.default_rng(seed).permutation(mask.size)
        mask.reshape(-1)[order[: mask.size // 2]] = 0
    else:
        mask[tuple(slice(size // 4, size - size // 4) for size in grid)] = 0
    return np.broadcast_to(mask.reshape(*grid, *[1] * channels), shape)


def is_completed(model: Any, mask: np.ndarray) -> bool:
    """Return whether the draws of `complete` have the model's law p(hidden | shown) for a mask.

    The fact `completion` says for which masks they do. A model with an order of its own does not
    tell it, so that no mask is known to suit it.

    Args:
      model: any model.
      mask: 1 where a variable is shown, [*shape].
    """
    if "complete" not in capabilities(model) or facts(model).completion == "order":
        return False
    shown = np.reshape(mask, -1) != 0
    return facts(model).completion == "any" or not np.any(~shown[:-1] & shown[1:])


def draws(
    model: Any, state: Any, x: np.ndarray, mask: np.ndarray, count: int, seed: int, block: int = 100
) -> np.ndarray:
    """Draw the hidden variables of each example several times, [K, N, *shape].

    Args:
      model: a model with `complete`.
      state: a state of it.
      x: decoded examples, [N, *shape].
      mask: 1 where a variable is shown, [*shape].
      count: the number K of draws.
      seed: the seed of the draws.
      block: examples at a time, which bounds the memory.
    """
    name = type(model).__name__
    require("complete" in capabilities(model), f"{name} has no method complete: take another model")
    x = np.asarray(x, np.float32)
    block = min(block, len(x))
    key, complete = train.streams(seed).sample, jax.jit(model.complete)
    completed = np.empty((count, *x.shape), np.float32)
    with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
        for k in range(count):
            for first in range(0, len(x), block):
                first = min(first, len(x) - block)  # all blocks have one size
                rows = slice(first, first + block)
                block_key = jax.random.fold_in(jax.random.fold_in(key, k), first)
                completed[k, rows] = complete(state, x[rows], jnp.asarray(mask), block_key)
    return completed


def neighbours(training: np.ndarray, x: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
    """Fill in the hidden part of each example from its nearest training examples, [K, N, *shape].

    The distance is Euclidean over the shown variables. It is a baseline: the neighbours stand in
    the place of draws of a model.

    Args:
      training: training examples, [M, *shape].
      x: examples, [N, *shape].
      mask: 1 where a variable is shown, [*shape].
      count: the number K of neighbours.
    """
    from sklearn.neighbors import NearestNeighbors

    require(
        len(training) >= count,
        f"{len(training)} training examples have no {count} neighbours: take fewer draws",
    )
    shown = np.reshape(mask, -1) != 0
    require(bool(shown.any()), "the occlusion hides all variables: take another one")
    rows, asked = (np.reshape(each, (len(each), -1))[:, shown] for each in (training, x))
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(rows)
    nearest = np.asarray(training)[search.kneighbors(asked, return_distance=False).T]
    return np.where(mask != 0, x, nearest)


def conditional_nll(model: Any, state: Any, x: np.ndarray, mask: np.ndarray) -> Estimate | None:
    """Return the mean of −log p(hidden | shown) of the truth, or None where it is not computed.

    It is exact, in nats per example. Only models with `conditional_log_prob` have it.

    Args:
      model: any model.
      state: a state of it.
      x: decoded examples, [N, *shape].
      mask: 1 where a variable is shown, [*shape].
    """
    if "conditional_log_prob" not in capabilities(model) or not is_completed(model, mask):
        return None
    shown = jnp.asarray(mask)
    nll = estimate.per_example(
        lambda batch, _: -model.conditional_log_prob(state, batch["x"], shown),
        {"x": np.asarray(x)},
        jax.random.key(0),  # the values take no draws
        block=100,
    )
    density = {"density": True} if facts(model).levels == 0 else {}
    return estimate.mean(nll, "exact", **density)


def mean_error(x: np.ndarray, completed: np.ndarray, mask: np.ndarray) -> Estimate:
    """Return the squared error of the mean of the draws, per hidden variable.

    Of binary variables it is the Brier score. Its expectation is smallest for E[hidden | shown].
    The mean of K draws differs from the mean of their law by the variance s² / K, which is
    subtracted, so that the estimate does not depend on K.

    Args:
      x: the truth, [N, *shape].
      completed: K ≥ 2 draws, [K, N, *shape].
      mask: 1 where a variable is shown, [*shape].
    """
    truth, drawn = _hidden(x, mask), _hidden(completed, mask)
    count = len(drawn)
    errors = (drawn.mean(0) - truth) ** 2 - drawn.var(0, ddof=1) / count
    return estimate.mean(errors.mean(-1), "Monte Carlo", draws=count)


def ranks(x: np.ndarray, completed: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
    """Return the number of draws whose sum over the hidden variables is below the truth's, [N].

    The sum of binary pixels is the number of lit ones. Among equal sums the truth takes a random
    place. If truth and draws have the same law p(hidden | shown), the ranks 0 … K are equally
    likely (Gneiting, Balabdaoui & Raftery 2007, https://doi.org/10.1111/j.1467-9868.2007.00587.x).

    Args:
      x: the truth, [N, *shape].
      completed: K draws, [K, N, *shape].
      mask: 1 where a variable is shown, [*shape].
      seed: the seed of the places among equal sums.
    """
    truth, drawn = _hidden(x, mask).sum(-1), _hidden(completed, mask).sum(-1)
    # Rounded, so that sums which differ by their order alone are equal.
    truth, drawn = np.round(truth, 6), np.round(drawn, 6)
    below, equal = (drawn < truth).sum(0), (drawn == truth).sum(0)
    return below + np.random.default_rng(seed).integers(0, equal + 1)


def coverage(x: np.ndarray, completed: np.ndarray, mask: np.ndarray, seed: int) -> Estimate:
    """Return the share of examples whose truth lies in the central 90 % of the draws.

    The interval is one of the sum over the hidden variables. It leaves out the lowest and the
    highest 5 % of the K + 1 `ranks`. The expectation is 0.9 if truth and draws have the same law.
    It is smaller for draws that vary too little, and larger for draws that vary too much.

    Args:
      x: the truth, [N, *shape].
      completed: K draws, [K, N, *shape], with K = 19, 39, ….
      mask: 1 where a variable is shown, [*shape].
      seed: the seed of the places among equal sums.
    """
    count = len(completed)
    check_draws(count)
    left_out = (count + 1) // STEP
    rank = ranks(x, completed, mask, seed)
    inside = (rank >= left_out) & (rank <= count - left_out)
    return estimate.mean(inside, "Monte Carlo", draws=count, interval=INTERVAL)


def check_draws(count: int) -> None:
    """Raise `UserError` unless a central interval holds exactly 90 % of the ranks of K draws."""
    require(
        count > 0 and (count + 1) % STEP == 0,
        f"draws is {count}: take 19, 39, 59, …, so that an interval has exactly 90 % of the ranks",
    )


def _hidden(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the hidden variables of examples [..., *shape] as vectors, [..., H], in float64."""
    x = np.asarray(x, np.float64)
    return x.reshape(*x.shape[: x.ndim - np.ndim(mask)], -1)[..., np.reshape(mask, -1) == 0]
