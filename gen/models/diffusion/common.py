"""What the models share: their state and its step; times of a bound; estimates; scales."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen import estimate
from gen.core import Batch, Data, Metrics, descend
from gen.estimate import Estimate


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


BELOW_ONE = 1 - 2.0**-24
"""The largest number below 1, which rounding may reach."""


def average(
    of: Callable[[jax.Array, jax.Array], jax.Array], key: jax.Array, batch: int, draws: int
) -> jax.Array:
    """The mean over t ~ U(0, 1) of of(t [B], key) [B], by `draws` times for each example, one in
    each part of [0, 1] of that length, in a memory that does not grow with their number."""
    offset_key, key = jax.random.split(key)
    offsets = jax.random.uniform(offset_key, (batch,))

    def add(i, total):
        t = jnp.minimum((i + offsets) / draws, BELOW_ONE)
        return jax.tree.map(jnp.add, total, of(t, jax.random.fold_in(key, i)))

    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(of, offsets, key))
    total = jax.lax.fori_loop(0, draws, add, nothing)
    return jax.tree.map(lambda value: value / draws, total)


def scaled(x: jax.Array) -> jax.Array:
    """[0, 1] to [−1, 1]."""
    return 2 * x - 1


def unscaled(x: jax.Array) -> jax.Array:
    """[−1, 1] to [0, 1]."""
    return (x + 1) / 2


def beside(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Numbers [B] with an axis for each of an example's."""
    return values.reshape(-1, *[1] * len(shape))


def one_by_one(f: Callable[[Batch], jax.Array], batch: Batch) -> jax.Array:
    """f of each example as a batch of its own, [B]: so that all get the same noise."""

    def of_one(row):
        return f({name: value[None] for name, value in row.items()})[0]

    return jax.vmap(of_one)(dict(batch))


def flow_nll(
    nll: Callable[..., jax.Array],
    data: Data,
    key: jax.Array,
    steps: int,
    examples: int,
    kind: estimate.Kind,
    **settings: Any,
) -> Estimate:
    """The mean of nll(batch, key, steps=steps) over the first `examples`; as `discretization` in
    its settings the mean change from half the steps, in nats."""
    first = {name: np.asarray(values)[:examples] for name, values in data.items()}
    half, full = (
        estimate.per_example(partial(nll, steps=n), first, key, block=100)
        for n in (steps // 2, steps)
    )
    change = float(abs(full.mean() - half.mean()))
    return estimate.mean(full, kind, steps=steps, discretization=change, **settings)
