"""Samples, completions, codes and likelihoods by a path of Gaussian noise and a denoiser.

`GaussianDiffusion` and `FlowMatching` have the functions from `sample` to `decode` as methods. They
use these members of a model:

- `path(params)`: t ↦ (α_t, σ_t).
- `denoiser(state)`: (x_t, t) ↦ E[x|x_t] and E[ε|x_t], without labels. A model with classes also has
  `denoiser(state, label, guidance)`.
- `to_continuous(x)`: values in [0, 1] as points x_0 in [−1, 1].
- `to_values(x_0)`: the values in [0, 1] that points stand for.
- `hidden_layers(state, x_t, t)`: activations of the network's hidden layers, without labels.
- the fields `shape`, `levels`, `sampler`, `sample_steps`, `resamplings` and `ode_steps`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen import estimate
from gen.core import Batch, Data, sample_labels
from gen.estimate import Estimate
from gen.levels import to_floats
from gen.models.diffusion import samplers
from gen.models.diffusion.common import add_axes, unscaled
from gen.models.diffusion.samplers import Sampler
from gen.nets import flatten


def sample(model: Any, state: Any, key: jax.Array, n: int, label: Any = None) -> jax.Array:
    """Draw samples in `sample_steps` steps of `sampler`, [n, *shape].

    Args:
      label: the class of the samples, [] or [n]; None takes the classes in turn. Only a model with
        classes takes one.
    """
    steps = model.sample_steps
    return model.to_values(_frames(model, state, key, n, 1, model.sampler, steps, label)[-1])


def sample_in(model: Any, state: Any, key: jax.Array, n: int, steps: int) -> jax.Array:
    """Draw samples by DDIM without noise, from the start that `sample` has, [n, *shape].

    Args:
      steps: the number of steps.
    """
    return model.to_values(_frames(model, state, key, n, 1, "ddim", steps)[-1])


def denoising(
    model: Any, state: Any, key: jax.Array, n: int, frames: int, label: Any = None
) -> jax.Array:
    """Return the course of `sample` in [0, 1], before values are rounded: [frames + 1, n, *shape].

    Args:
      frames: the number of equal parts of the course.
      label: as in `sample`.
    """
    steps = model.sample_steps
    return unscaled(_frames(model, state, key, n, frames, model.sampler, steps, label))


def complete(model: Any, state: Any, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
    """Draw the hidden variables of x [B, *shape] by RePaint, without labels.

    The draws approximate p(hidden | shown) (`samplers.inpaint`). The arguments are
    `complete`'s in the contract, after the model.
    """
    x = to_floats(x, model.levels)
    shown = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
    drawn = samplers.inpaint(
        model.path(state.ema),
        model.denoiser(state),
        model.to_continuous(x),
        shown,
        samplers.falling(model.sample_steps),
        key,
        model.resamplings,
    )
    return jnp.where(shown, x, model.to_values(drawn))


def encode(model: Any, state: Any, batch: Batch) -> jax.Array:
    """Return x_1 of the probability flow from x, without labels, [B, D].

    The code of a sample of the model is a draw from N(0, I). The arguments are `encode`'s in the
    contract, after the model.
    """
    times = samplers.falling(model.ode_steps)[::-1]
    x_0 = model.to_continuous(batch["x"])
    return flatten(samplers.heun(model.path(state.ema), model.denoiser(state), x_0, times))


def layers(model: Any, state: Any, batch: Batch, t: jax.Array | float = 0.1) -> list[jax.Array]:
    """Return the activations of the network's hidden layers at α_t x, without labels.

    α_t x is the mean of the noisy example x_t. No noise is drawn, so that the features of an
    example do not vary. Baranchuk et al. 2022, https://arxiv.org/abs/2112.03126, and Xiang et al.
    2023, https://arxiv.org/abs/2303.09769, take such features of a noisy example.

    Args:
      model: a diffusion model or a flow.
      state: a state of the model.
      batch: examples.
      t: the time of the noise, in [0, 1].
    """
    t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), len(batch["x"]))
    alpha, _ = model.path(state.ema)(t)
    x_t = add_axes(alpha, model.shape) * model.to_continuous(batch["x"])
    return model.hidden_layers(state, x_t, t)


def decode(model: Any, state: Any, z: jax.Array) -> jax.Array:
    """Return x of the probability flow from x_1 = z, without labels, [B, *shape].

    The arguments are `decode`'s in the contract, after the model.
    """
    times = samplers.falling(model.ode_steps)
    x_1 = z.reshape(-1, *model.shape)
    return model.to_values(samplers.heun(model.path(state.ema), model.denoiser(state), x_1, times))


def ode_estimate(
    nll: Callable[..., jax.Array],
    data: Data,
    key: jax.Array,
    steps: int,
    examples: int,
    kind: estimate.Kind,
    **settings: Any,
) -> Estimate:
    """Return the mean of −log p(x) by the probability flow.

    Args:
      nll: nll(batch, key, steps=steps) returns the values of a batch in that many steps, [B] nats.
      data: all examples of a split.
      key: the source of probes and of dequantization.
      steps: steps of the ODE solver.
      examples: the number of examples, the first ones of the split.
      kind: the kind of the estimate.
      **settings: what to store beside it.

    Returns:
      The estimate. Its setting `discretization` is the change of the mean from half the steps to
      all of them, in nats.
    """
    first = {name: np.asarray(values)[:examples] for name, values in data.items()}
    half, full = (
        estimate.per_example(partial(nll, steps=n), first, key, block=100)
        for n in (steps // 2, steps)
    )
    change = float(abs(full.mean() - half.mean()))
    return estimate.mean(full, kind, steps=steps, discretization=change, **settings)


def _frames(
    model: Any,
    state: Any,
    key: jax.Array,
    n: int,
    frames: int,
    sampler: Sampler,
    steps: int,
    label: Any = None,
) -> jax.Array:
    """Return the course of n samples in [−1, 1], [frames + 1, n, *shape]."""
    start_key, key = jax.random.split(key)
    label = sample_labels(model, n, label)
    if label is None:
        denoise = model.denoiser(state)
    else:
        denoise = model.denoiser(state, label, model.guidance)
    start = jax.random.normal(start_key, (n, *model.shape))
    times, path = samplers.falling(steps), model.path(state.ema)
    return samplers.trajectory(sampler, path, denoise, start, times, key, frames)
