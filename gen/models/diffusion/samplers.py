"""From noise to data and back, for every path of Gaussian noise and every denoiser.

A path is x_t = α_t x + σ_t ε with ε ~ N(0, I), from x_0 ≈ x to x_1 ≈ noise. A denoiser gives the
means of x and of ε given x_t. These functions know nothing else of a model: they take any path and
any denoiser. Times fall, to make examples; t is one number for the whole batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from gen.nets import flatten

Path = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""t ↦ (α_t, σ_t), of t's shape, differentiable; α falls and σ rises."""


class Prediction(NamedTuple):
    """What x_t = α_t x + σ_t ε is made of, on average: α_t `x` + σ_t `noise` = x_t."""

    x: jax.Array  # E[x | x_t], [B, ...]
    noise: jax.Array  # E[ε | x_t], [B, ...]


Denoise = Callable[[jax.Array, jax.Array], Prediction]
"""(x_t [B, ...], t []) ↦ its parts."""

Move = Callable[[Path, Denoise, jax.Array, jax.Array, jax.Array], jax.Array]
"""(path, denoise, x_t, t, s) ↦ x_s, without noise."""

Sampler = Literal["ancestral", "ddim", "heun", "dpm"]
"""`ancestral` (DDPM), `ddim` (without noise), `heun` (of the probability-flow ODE), `dpm`
(DPM-Solver++ 2M)."""


def falling(steps: int) -> jax.Array:
    """The times 1, …, 0 of so many steps, evenly apart, [steps + 1]."""
    return 1 - jnp.arange(steps + 1) / steps


def sample(
    sampler: Sampler, path: Path, denoise: Denoise, x: jax.Array, times: jax.Array, key: jax.Array
) -> jax.Array:
    """x_s at the last of `times` from x = x_t at the first, by that sampler."""
    if sampler == "ancestral":
        return ancestral(path, denoise, x, times, key)
    if sampler == "ddim":
        return ddim(path, denoise, x, times, key, eta=0.0)
    if sampler == "heun":
        return heun(path, denoise, x, times)
    return dpm_solver(path, denoise, x, times)


def trajectory(
    sampler: Sampler,
    path: Path,
    denoise: Denoise,
    x: jax.Array,
    times: jax.Array,
    key: jax.Array,
    frames: int,
) -> jax.Array:
    """`sample` in so many parts: x, and what it has become after each, [frames + 1, B, ...]."""
    ends = [round(i * (len(times) - 1) / frames) for i in range(frames + 1)]
    found = [x]
    for i, (begin, end) in enumerate(itertools.pairwise(ends)):
        part = times[begin : end + 1]
        found.append(sample(sampler, path, denoise, found[-1], part, jax.random.fold_in(key, i)))
    return jnp.stack(found)


def ancestral(
    path: Path, denoise: Denoise, x: jax.Array, times: jax.Array, key: jax.Array
) -> jax.Array:
    """By draws of q(x_s | x_t, x) at x = E[x | x_t] (Ho et al. 2020, algorithm 2, with σ² = β̃;
    Kingma et al. 2021, eq. 33)."""
    return ddim(path, denoise, x, times, key, eta=1.0)


def ddim(
    path: Path, denoise: Denoise, x: jax.Array, times: jax.Array, key: jax.Array, eta: float = 0.0
) -> jax.Array:
    """Song, Meng & Ermon (2021), eq. 12 and 16: along

        x_s = α_s E[x|x_t] + √(σ_s² − η² σ̃²) E[ε|x_t] + η σ̃ ε',   σ̃² = σ_s² (1 − SNR_t / SNR_s),

    with SNR = α²/σ² and σ̃² the variance of q(x_s | x_t, x). η = 1 is ancestral sampling, η = 0
    has no noise and is Euler's method on dx̄ = E[ε|x_t] d(σ/α) for x̄ = x / α (section 4.3).
    """

    def step(i, x):
        alpha, sigma = path(times[i])
        alpha_s, sigma_s = path(times[i + 1])
        x_mean, noise_mean = denoise(x, times[i])
        # SNR_t / SNR_s, where α_t may be 0, and σ_s.
        ratio = (alpha * sigma_s / (alpha_s * sigma)) ** 2
        variance = eta**2 * sigma_s**2 * (1 - ratio)
        noise = jax.random.normal(jax.random.fold_in(key, i), x.shape) if eta else 0.0
        direction = jnp.sqrt(jnp.maximum(sigma_s**2 - variance, 0.0)) * noise_mean
        return alpha_s * x_mean + direction + jnp.sqrt(jnp.maximum(variance, 0.0)) * noise

    return jax.lax.fori_loop(0, len(times) - 1, step, x)


def dpm_solver(path: Path, denoise: Denoise, x: jax.Array, times: jax.Array) -> jax.Array:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): with λ = log α/σ, h = λ_s − λ_t and
    r = h_before / h,

        x_s = (σ_s / σ_t) x_t − α_s (e^{−h} − 1) D,
        D = (1 + 1/2r) E[x|x_t] − 1/2r E[x|x_before].

    The first step is of first order (D = E[x|x_t]), and so is the last, whose h may be infinite.
    """

    def step(i, carry):
        x, before, h_before = carry
        alpha, sigma = path(times[i])
        alpha_s, sigma_s = path(times[i + 1])
        h = jnp.log(alpha_s / sigma_s) - jnp.log(alpha / sigma)
        mean = denoise(x, times[i]).x
        inner = (i > 0) & (i < len(times) - 2)
        weight = jnp.where(inner, h / (2 * h_before), 0.0)
        d = mean + weight * (mean - before)
        shrunk = sigma_s / sigma
        # α_s (1 − e^{−h}), where α_t may be 0 and σ_s, too.
        return shrunk * x + (alpha_s - alpha * shrunk) * d, mean, h

    begin = x, jnp.zeros_like(x), jnp.ones(())
    return jax.lax.fori_loop(0, len(times) - 1, step, begin)[0]


def velocity(path: Path, denoise: Denoise, x: jax.Array, t: jax.Array) -> jax.Array:
    """dx/dt of the probability-flow ODE, whose x_t are distributed as the path's:
    α'_t E[x|x_t] + σ'_t E[ε|x_t] (Lipman et al. 2023, theorem 1; Song et al. 2021, eq. 13)."""
    _, (alpha_slope, sigma_slope) = jax.jvp(path, (t,), (jnp.ones_like(t),))
    x_mean, noise_mean = denoise(x, t)
    return alpha_slope * x_mean + sigma_slope * noise_mean


def heun(path: Path, denoise: Denoise, x: jax.Array, times: jax.Array) -> jax.Array:
    """Heun's method on the probability-flow ODE in t, of second order: two calls of the denoiser
    for each step. `times` may rise, too: then it encodes."""

    def step(i, x):
        t, s = times[i], times[i + 1]
        first = velocity(path, denoise, x, t)
        second = velocity(path, denoise, x + (s - t) * first, s)
        return x + 0.5 * (s - t) * (first + second)

    return jax.lax.fori_loop(0, len(times) - 1, step, x)


def ode_log_prob(
    path: Path, denoise: Denoise, x: jax.Array, times: jax.Array, key: jax.Array, probes: int
) -> jax.Array:
    """log p_0(x) [B], nats of a density, where x_1 ~ N(0, I) and x_t follows the probability flow:
    the instantaneous change of variables (Chen et al. 2018, eq. 8; Grathwohl et al. 2019),

        log p_0(x_0) = log N(x_1; 0, I) + ∫_0^1 tr(∂velocity/∂x) dt,

    by Heun's method along rising `times`. The trace is Hutchinson's unbiased estimate by so many
    probes v of ±1 for each example, vᵀ (∂velocity/∂x) v, or with 0 probes exact, by as many
    derivatives as x has variables. The method's error falls with the square of the steps.
    """
    size = flatten(x).shape[1]
    if probes:
        v = jax.random.rademacher(key, (probes, *x.shape), x.dtype)
    else:  # Σ_d e_dᵀ J e_d
        v = jnp.broadcast_to(jnp.eye(size).reshape(size, 1, *x.shape[1:]), (size, *x.shape))

    def slopes(x, t):
        field, pushed = jax.linearize(lambda x: velocity(path, denoise, x, t), x)
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
    """x [B, ...] with what `shown` (same shape, 1: shown) hides drawn: ancestral sampling, where
    after each step the rest is replaced by a noisy copy of what it is; and each step is gone
    `resamplings` times, back by fresh noise in between, for the parts to agree (RePaint, Lugmayr et
    al. 2022, algorithm 1, with jumps of one step)."""
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
            # At the first time of a step z is x_t already, later it is x_s and goes back.
            again = kept * z + spread * jax.random.normal(back_key, z.shape)
            z = jnp.where(j > 0, again, z)
            drawn = ddim(path, denoise, z, jnp.stack([t, s]), move_key, eta=1.0)
            copy = alpha_s * x + sigma_s * jax.random.normal(copy_key, x.shape)
            return jnp.where(shown, copy, drawn)

        return jax.lax.fori_loop(0, resamplings, once, z)

    start = jax.random.normal(start_key, x.shape)
    drawn = jax.lax.fori_loop(0, len(times) - 1, step, start)
    return jnp.where(shown, x, drawn)
