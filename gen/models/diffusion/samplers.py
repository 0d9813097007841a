"""Samplers: from noise to data and back, for any path of Gaussian noise and any denoiser.

A path is x_t = α_t x + σ_t ε with ε ~ N(0, I), from x_0 ≈ x to x_1 ≈ noise. A denoiser returns the
means of x and of ε given x_t. The functions know nothing else of a model. Times fall from noise to
data, and t is one number for the whole batch.

For data from N(2, ¼) the denoiser has a closed form:

Examples:
  >>> from gen.models.diffusion.flow import straight  # α = 1 − t, σ = t
  >>> def denoise(x, t):
  ...     gain = (1 - t) / 4 / ((1 - t) ** 2 / 4 + t**2)
  ...     mean = 2 + gain * (x - 2 * (1 - t))
  ...     return Prediction(mean, (x - (1 - t) * mean) / jnp.maximum(t, 1e-6))
  >>> noise = jnp.array([[-1.0], [0.0], [1.0]])
  >>> x = dpm_solver(straight, denoise, noise, falling(40))
  >>> print(jnp.round(x[:, 0], 2))  # mean − sd, mean, mean + sd
  [1.5 2.  2.5]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen.nets import flatten

Path = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""t ↦ (α_t, σ_t), of the shape of t and differentiable; α falls and σ rises."""


class Prediction(NamedTuple):
    """The posterior means of the two parts of x_t: α_t `x` + σ_t `noise` = x_t."""

    x: jax.Array  # E[x|x_t], [B, ...]
    noise: jax.Array  # E[ε|x_t], [B, ...]


Denoise = Callable[[jax.Array, jax.Array], Prediction]
"""(x_t [B, ...], t []) ↦ the posterior means of x and ε."""

Sampler = Literal["ancestral", "ddim", "heun", "dpm"]
"""`ancestral` (DDPM), `ddim` (without noise), `heun` (probability-flow ODE), or `dpm`
(DPM-Solver++ 2M)."""

Carry = tuple[jax.Array, tuple[jax.Array, jax.Array]]
"""x_t [B, ...], and the memory of `dpm_step`: E[x|x_t] and h of the step before."""

Step = Callable[[Any, Carry], Carry]
"""(i, the carry at the i-th time) ↦ the carry at the next time."""


def falling(steps: int) -> jax.Array:
    """Return the times 1, …, 0 of equally long steps, [steps + 1]."""
    return 1 - jnp.arange(steps + 1) / steps


def ddim(
    path: Path, denoise: Denoise, x: jax.Array, times: jax.Array, key: jax.Array, eta: float = 0.0
) -> jax.Array:
    """Sample by DDIM:

        x_s = α_s E[x|x_t] + √(σ_s² − η² σ̃²) E[ε|x_t] + η σ̃ ε',   σ̃² = σ_s² (1 − SNR_t / SNR_s),

    with SNR = α²/σ² and σ̃² the variance of q(x_s | x_t, x). Song, Meng & Ermon 2021,
    https://arxiv.org/abs/2010.02502, eq. 12 and 16. η = 1 is ancestral sampling. η = 0 has no noise
    and is Euler's method on dx̄ = E[ε|x_t] d(σ/α) with x̄ = x / α (section 4.3).

    Args:
      path: the path of noise.
      denoise: the denoiser.
      x: x_t at the first time, [B, ...].
      times: falling times, [steps + 1].
      key: the source of ε', not used with η = 0.
      eta: η, the amount of noise.

    Returns:
      x at the last time, [B, ...].
    """
    return run(ddim_step(path, denoise, times, key, eta), x, times)


def ddim_step(
    path: Path, denoise: Denoise, times: jax.Array, key: jax.Array, eta: float = 0.0
) -> Step:
    """Return the step of `ddim`, whose arguments these are."""

    def step(i, carry):
        x, memory = carry
        alpha, sigma = path(times[i])
        alpha_s, sigma_s = path(times[i + 1])
        x_mean, noise_mean = denoise(x, times[i])
        ratio = (alpha * sigma_s / (alpha_s * sigma)) ** 2  # SNR_t / SNR_s; α_t or σ_s may be 0
        variance = eta**2 * sigma_s**2 * (1 - ratio)
        noise = jax.random.normal(jax.random.fold_in(key, i), x.shape) if eta else 0.0
        direction = jnp.sqrt(jnp.maximum(sigma_s**2 - variance, 0.0)) * noise_mean
        x = alpha_s * x_mean + direction + jnp.sqrt(jnp.maximum(variance, 0.0)) * noise
        return x, memory

    return step


def ancestral(
    path: Path, denoise: Denoise, x: jax.Array, times: jax.Array, key: jax.Array
) -> jax.Array:
    """Sample by draws of q(x_s | x_t, x) at x = E[x|x_t].

    Ho et al. 2020, https://arxiv.org/abs/2006.11239, algorithm 2, with σ² = β̃; Kingma et al. 2021,
    https://arxiv.org/abs/2107.00630, eq. 33. Arguments and result are as in `ddim`.
    """
    return ddim(path, denoise, x, times, key, eta=1.0)


def dpm_solver(path: Path, denoise: Denoise, x: jax.Array, times: jax.Array) -> jax.Array:
    """Sample by DPM-Solver++ 2M. With λ = log α/σ, h = λ_s − λ_t and r = h_before / h,

        x_s = (σ_s / σ_t) x_t − α_s (e^{−h} − 1) D,
        D = (1 + 1/2r) E[x|x_t] − 1/2r E[x|x_before].

    Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2. The first step is of first order
    (D = E[x|x_t]). So are the last step, whose h may be infinite, and a step after an infinite h.

    Args:
      path: the path of noise.
      denoise: the denoiser.
      x: x_t at the first time, [B, ...].
      times: falling times, [steps + 1].

    Returns:
      x at the last time, [B, ...].
    """
    return run(dpm_step(path, denoise, times), x, times)


def dpm_step(path: Path, denoise: Denoise, times: jax.Array) -> Step:
    """Return the step of `dpm_solver`, whose arguments these are."""

    def step(i, carry):
        x, (before, h_before) = carry
        alpha, sigma = path(times[i])
        alpha_s, sigma_s = path(times[i + 1])
        h = jnp.log(alpha_s / sigma_s) - jnp.log(alpha / sigma)
        mean = denoise(x, times[i]).x
        inner = (i > 0) & (i < len(times) - 2)
        weight = jnp.where(inner, h / (2 * h_before), 0.0)
        d = mean + weight * (mean - before)
        shrunk = sigma_s / sigma
        # α_s (1 − e^{−h}), also where α_t or σ_s is 0.
        return shrunk * x + (alpha_s - alpha * shrunk) * d, (mean, h)

    return step


def velocity(path: Path, denoise: Denoise, x: jax.Array, t: jax.Array) -> jax.Array:
    """Return dx/dt = α'_t E[x|x_t] + σ'_t E[ε|x_t], the probability-flow ODE.

    Its solutions x_t have the marginals of the path: Lipman et al. 2023,
    https://arxiv.org/abs/2210.02747, theorem 1; Song et al. 2021, https://arxiv.org/abs/2011.13456,
    eq. 13.

    Args:
      path: the path of noise.
      denoise: the denoiser.
      x: x_t, [B, ...].
      t: the time, [].
    """
    _, (alpha_slope, sigma_slope) = jax.jvp(path, (t,), (jnp.ones_like(t),))
    x_mean, noise_mean = denoise(x, t)
    return alpha_slope * x_mean + sigma_slope * noise_mean


def heun(path: Path, denoise: Denoise, x: jax.Array, times: jax.Array) -> jax.Array:
    """Solve the probability-flow ODE by Heun's method in t, which is of second order.

    Each step calls the denoiser twice.

    Args:
      path: the path of noise.
      denoise: the denoiser.
      x: x_t at the first time, [B, ...].
      times: falling times for sampling, rising times for encoding, [steps + 1].

    Returns:
      x at the last time, [B, ...].
    """
    return run(heun_step(path, denoise, times), x, times)


def heun_step(path: Path, denoise: Denoise, times: jax.Array) -> Step:
    """Return the step of `heun`, whose arguments these are."""

    def step(i, carry):
        x, memory = carry
        t, s = times[i], times[i + 1]
        first = velocity(path, denoise, x, t)
        second = velocity(path, denoise, x + (s - t) * first, s)
        return x + 0.5 * (s - t) * (first + second), memory

    return step


SAMPLERS: dict[Sampler, Callable[[Path, Denoise, jax.Array, jax.Array], Step]] = {
    "ancestral": partial(ddim_step, eta=1.0),
    "ddim": partial(ddim_step, eta=0.0),
    "heun": lambda path, denoise, times, key: heun_step(path, denoise, times),
    "dpm": lambda path, denoise, times, key: dpm_step(path, denoise, times),
}
"""The step of each sampler, as a function of path, denoiser, times and key."""


def trajectory(
    sampler: Sampler,
    path: Path,
    denoise: Denoise,
    x: jax.Array,
    times: jax.Array,
    key: jax.Array,
    frames: int,
) -> jax.Array:
    """Sample, and return the course from noise to data.

    Args:
      sampler: the name of the sampler.
      path: the path of noise.
      denoise: the denoiser.
      x: x_t at the first time, [B, ...].
      times: falling times, [steps + 1].
      key: the source of noise, for samplers that add some.
      frames: the number of equal parts of the course.

    Returns:
      x, and its successor after each part, [frames + 1, B, ...].
    """
    return record(SAMPLERS[sampler](path, denoise, times, key), x, len(times) - 1, frames)


def run(step: Step, x: jax.Array, times: jax.Array) -> jax.Array:
    """Return x at the last of `times`, from x at the first one.

    Args:
      step: the step of a sampler.
      x: x_t at the first time, [B, ...].
      times: the times from the first to the last, [steps + 1].
    """
    return record(step, x, len(times) - 1, 1)[-1]


def record(step: Step, x: jax.Array, steps: int, frames: int) -> jax.Array:
    """Take steps and return x before the first one and after each of several equal parts.

    Args:
      step: the step of a sampler.
      x: x before the first step.
      steps: the number of steps.
      frames: the number of parts; their ends are rounded to whole steps.

    Returns:
      [frames + 1, *x.shape].
    """
    ends = np.round(np.linspace(0, steps, frames + 1)).astype(int)
    frame_of_step = jnp.asarray(np.searchsorted(ends, np.arange(steps + 1)))

    def body(i, carry):
        moved, film = carry
        moved = step(i, moved)
        return moved, film.at[frame_of_step[i + 1]].set(moved[0])  # the last step of a part stays

    memory = jnp.zeros_like(x), jnp.ones(())
    film = jnp.broadcast_to(x[None], (frames + 1, *x.shape))
    _, film = jax.lax.fori_loop(0, steps, body, ((x, memory), film))
    return film[np.searchsorted(ends, ends)]  # parts without a step repeat the frame before


def ode_log_prob(
    path: Path, denoise: Denoise, x: jax.Array, times: jax.Array, key: jax.Array, probes: int
) -> jax.Array:
    """Return log p_0(x), where x_1 ~ N(0, I) and x_t follows the probability flow:

        log p_0(x_0) = log N(x_1; 0, I) + ∫_0^1 tr(∂velocity/∂x) dt.

    This is the instantaneous change of variables (Chen et al. 2018,
    https://arxiv.org/abs/1806.07366, eq. 8). The trace is Hutchinson's unbiased estimate
    vᵀ (∂velocity/∂x) v by probes v of ±1 (Grathwohl et al. 2019, https://arxiv.org/abs/1810.01367),
    or exact, by as many derivatives as x has variables. Both integrals are Heun's method, whose
    error falls with the square of the number of steps.

    Args:
      path: the path of noise.
      denoise: the denoiser.
      x: x_0, [B, ...].
      times: rising times from 0 to 1, [steps + 1].
      key: the source of the probes.
      probes: the number of probes for each example; 0 takes the exact trace.

    Returns:
      [B], nats of a density.
    """
    size = flatten(x).shape[1]
    if probes:
        v = jax.random.rademacher(key, (probes, *x.shape), x.dtype)
    else:  # Σ_d e_dᵀ J e_d
        v = jnp.broadcast_to(jnp.eye(size).reshape(size, 1, *x.shape[1:]), (size, *x.shape))

    def slopes(x, t):
        """Return dx/dt, and the trace."""
        field_at = partial(velocity, path, denoise, t=t)
        if probes == 1:
            field, pushed = jax.jvp(field_at, (x,), (v[0],))
            return field, jnp.sum(flatten(v[0] * pushed), axis=1)
        field, pushed = jax.linearize(field_at, x)
        traces = jax.lax.map(lambda one: jnp.sum(flatten(one * pushed(one)), axis=1), v)
        return field, traces.mean(0) if probes else traces.sum(0)

    def step(i, carry):
        x, integral = carry
        t, s = times[i], times[i + 1]
        first, trace = slopes(x, t)
        second, trace_s = slopes(x + (s - t) * first, s)
        half = 0.5 * (s - t)
        return x + half * (first + second), integral + half * (trace + trace_s)

    x_1, integral = jax.lax.fori_loop(0, len(times) - 1, step, (x, jnp.zeros(len(x))))
    return jax.scipy.stats.norm.logpdf(flatten(x_1)).sum(1) + integral


def inpaint(
    path: Path,
    denoise: Denoise,
    x: jax.Array,
    shown: jax.Array,
    times: jax.Array,
    key: jax.Array,
    resamplings: int,
) -> jax.Array:
    """Draw the hidden variables of x by RePaint.

    Lugmayr et al. 2022, https://arxiv.org/abs/2201.09865, algorithm 1, with jumps of one step. Each
    step is one of ancestral sampling, after which the shown variables are replaced by a noisy copy
    of their values. Each step but the last is repeated, after a return to its start by fresh noise,
    so that the two parts agree.

    Many steps with many repetitions approach draws of p(hidden | shown). Without repetitions the
    hidden part hardly follows the shown one. A few steps with many repetitions vary too little.

    Args:
      path: the path of noise.
      denoise: the denoiser.
      x: x_0 where it is shown, [B, ...].
      shown: whether a variable is shown, [B, ...].
      times: falling times, [steps + 1].
      key: the source of every draw.
      resamplings: how often each step but the last is taken.

    Returns:
      x with its hidden variables drawn, [B, ...].
    """
    start_key, key = jax.random.split(key)

    def step(i, z):
        t, s = times[i], times[i + 1]
        alpha, sigma = path(t)
        alpha_s, sigma_s = path(s)
        kept = alpha / alpha_s
        spread = jnp.sqrt(jnp.maximum(sigma**2 - (kept * sigma_s) ** 2, 0.0))

        def once(j, z):
            move_key, copy_key, back_key = jax.random.split(
                jax.random.fold_in(jax.random.fold_in(key, i), j), 3
            )
            # z is x_t in the first repetition; later it is x_s and goes back to x_t.
            again = kept * z + spread * jax.random.normal(back_key, z.shape)
            z = jnp.where(j > 0, again, z)
            drawn = ancestral(path, denoise, z, jnp.stack([t, s]), move_key)
            copy = alpha_s * x + sigma_s * jax.random.normal(copy_key, x.shape)
            return jnp.where(shown, copy, drawn)

        last = i == len(times) - 2
        return jax.lax.fori_loop(0, jnp.where(last, 1, resamplings), once, z)

    start = jax.random.normal(start_key, x.shape)
    drawn = jax.lax.fori_loop(0, len(times) - 1, step, start)
    return jnp.where(shown, x, drawn)
