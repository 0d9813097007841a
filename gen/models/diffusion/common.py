"""What the models share: their state and its step; times of a bound; scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen.core import Metrics, descend


class State(NamedTuple):
    """Everything that training changes."""

    params: Any  # the net's, and what else is learned
    ema: Any  # their running mean, shaped like params
    opt_state: Any  # Adam's two moments, each shaped like params, and its step count


def begin(params: Any, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step: the running mean begins at the parameters."""
    return State(params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def train(
    loss: Callable[[Any], tuple[jax.Array, Metrics]],
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    state: State,
    axis_name: str | None,
) -> tuple[State, Metrics]:
    """A step of `descend`, then ema ← d ema + (1 − d) params, with d = `ema_decay`."""
    params, opt_state, metrics = descend(loss, optimizer, state.params, state.opt_state, axis_name)
    ema = optax.incremental_update(params, state.ema, 1 - ema_decay)
    return State(params, ema, opt_state), metrics


def spread_times(key: jax.Array, n: int) -> jax.Array:
    """n times, each uniform in [0, 1), together one in each n-th part of it, in a drawn order
    (Kingma et al. 2021, appendix I.1; there in order)."""
    offset_key, order_key = jax.random.split(key)
    places = jax.random.permutation(order_key, n)
    return jnp.mod(jax.random.uniform(offset_key) + places / n, 1.0)


def step_around(t: jax.Array, timesteps: int) -> tuple[jax.Array, jax.Array]:
    """The ends s < t' of the step of 1 / timesteps that t [B] in [0, 1) lies in."""
    index = jnp.minimum(jnp.floor(t * timesteps), timesteps - 1)
    return index / timesteps, (index + 1) / timesteps


def average(
    of: Callable[[jax.Array, jax.Array], jax.Array], key: jax.Array, batch: int, draws: int
) -> jax.Array:
    """The mean over t ~ U(0, 1) of of(t [B], key) [B], by `draws` times for each example, one in
    each part of [0, 1] of that length, in a memory that does not grow with their number."""
    offset_key, key = jax.random.split(key)
    offsets = jax.random.uniform(offset_key, (batch,))

    def add(i, total):
        found = of((i + offsets) / draws, jax.random.fold_in(key, i))
        return jax.tree.map(jnp.add, total, found)

    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(of, offsets, key))
    total = jax.lax.fori_loop(0, draws, add, nothing)
    return jax.tree.map(lambda value: value / draws, total)


def scaled(x: jax.Array) -> jax.Array:
    """[0, 1] to [−1, 1]."""
    return 2 * x - 1


def unscaled(x: jax.Array) -> jax.Array:
    """[−1, 1] to [0, 1], what lies outside cut off."""
    return jnp.clip((x + 1) / 2, 0.0, 1.0)


def beside(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Numbers [B] with an axis for each of an example's."""
    return values.reshape(-1, *[1] * len(shape))
