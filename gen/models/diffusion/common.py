"""State, training step and times, which the three diffusion models share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen import optimize
from gen.core import Metrics
from gen.optimize import AnyOptimizer

NOISE_TIMES = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Times of the noise at which a diffusion model's hidden layers are features to choose from."""
BELOW_ONE = 1 - 2.0**-24
"""The largest float32 below 1."""


class State(NamedTuple):
    """Everything that training changes."""

    params: Any  # the parameters of the network and of a learned schedule
    stats: Any  # the network's batch statistics; empty without them
    ema: Any  # exponential moving average of params, used in evaluation and sampling
    opt_state: Any  # Adam's two moments, each shaped like params, and its step count


def init_state(params: Any, stats: Any, optimizer: AnyOptimizer) -> State:
    """Return the state before the first step; the moving average starts at the parameters.

    Args:
      params: the learned parameters.
      stats: the network's other collections (batch statistics).
      optimizer: the optimiser.
    """
    return State(params, stats, jax.tree.map(jnp.copy, params), optimize.init(optimizer, params))


def train_step(
    loss: Callable[[Any], tuple[jax.Array, tuple[Metrics, Any]]],
    state: State,
    optimizer: AnyOptimizer,
    ema_decay: float,
    axis_name: str | None,
) -> tuple[State, Metrics]:
    """Take one optimiser step, then ema ← d · ema + (1 − d) · params with d = `ema_decay`.

    Args:
      loss: maps params to (a scalar, (metrics, batch statistics)).
      state: the state before the step.
      optimizer: the update rule.
      ema_decay: the weight d of the past in the moving average.
      axis_name: the mapped axis to average over, under `pmap`.
    """
    gradient, (metrics, stats) = optimize.gradient(loss, state.params, axis_name)
    params, opt_state = optimize.update(optimizer, gradient, state.opt_state, state.params)
    ema = optax.incremental_update(params, state.ema, 1 - ema_decay)
    return State(params, stats, ema, opt_state), metrics


def spread_times(key: jax.Array, n: int) -> jax.Array:
    """Draw n times, each uniform in [0, 1), with one in each n-th part of [0, 1): [n].

    Kingma et al. 2021, https://arxiv.org/abs/2107.00630, appendix I.1. There the times rise with
    the position in the batch; here their order is drawn.
    """
    offset_key, order_key = jax.random.split(key)
    position = jax.random.permutation(order_key, n)
    return jnp.mod(jax.random.uniform(offset_key) + position / n, 1.0)


def stratified_times(key: jax.Array, draws: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """Draw several times for each example, one in each part of [0, 1) of length 1 / `draws`.

    All times of an example have the same offset in their parts. If a chain has as many steps as
    there are draws, each step is visited once.

    Args:
      key: the source of the offsets.
      draws: times for each example.
      batch: the number of examples.

    Returns:
      The times, [draws, batch], and a key for each row, [draws].
    """
    offset_key, key = jax.random.split(key)
    offset = jax.random.uniform(offset_key, (batch,))
    index = jnp.arange(draws)
    times = jnp.minimum((index[:, None] + offset[None]) / draws, BELOW_ONE)  # may round to 1
    return times, jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def step_around(t: jax.Array, timesteps: int) -> tuple[jax.Array, jax.Array]:
    """Return the ends s < t' of the step of length 1 / `timesteps` in which t in [0, 1) lies."""
    index = jnp.minimum(jnp.floor(t * timesteps), timesteps - 1)
    return index / timesteps, (index + 1) / timesteps


def scaled(x: jax.Array) -> jax.Array:
    """Map [0, 1] to [−1, 1]."""
    return 2 * x - 1


def unscaled(x: jax.Array) -> jax.Array:
    """Map [−1, 1] to [0, 1]."""
    return (x + 1) / 2


def add_axes(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return numbers [B] as [B, 1, …], with an axis of length 1 for each axis of an example."""
    return values.reshape(-1, *[1] * len(shape))
