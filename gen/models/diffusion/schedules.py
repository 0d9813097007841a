"""Noise schedules: the log signal-to-noise ratio λ of a variance-preserving path at time t.

x_t = α_t x + σ_t ε with α² = σ(λ), σ² = σ(−λ), σ(·) the logistic function; λ falls in t from
`highest` at t = 0 to `lowest` at t = 1. `linear` and `cosine` are parts of their papers' schedules,
their time stretched so that the ends are these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

LogSNR = Callable[[jax.Array], jax.Array]
"""t ↦ λ_t, of t's shape."""


def linear(lowest: float, highest: float) -> LogSNR:
    """β linear in time, from 0.1 to 20 in continuous time (Ho et al. 2020, section 4; Song et al.
    2021, appendix C): α_τ² = exp(−0.1 τ − 9.95 τ²)."""

    def inverse(log_snr):
        """τ with −log α_τ² = log(1 + e^{−λ})."""
        spent = math.log1p(math.exp(-log_snr))
        return (math.sqrt(0.01 + 4 * 9.95 * spent) - 0.1) / (2 * 9.95)

    begin, end = inverse(highest), inverse(lowest)

    def log_snr(t):
        tau = begin + (end - begin) * t
        return -jnp.log(jnp.expm1(0.1 * tau + 9.95 * tau**2))

    return log_snr


def cosine(lowest: float, highest: float) -> LogSNR:
    """α_τ = cos(πτ/2) (Nichol & Dhariwal 2021, eq. 17, without their offset): λ = −2 log tan(πτ/2)
    (as Hoogeboom et al. 2023, eq. 4)."""
    begin, end = (math.atan(math.exp(-0.5 * log_snr)) for log_snr in (highest, lowest))
    rest = math.atan(math.exp(0.5 * lowest))  # ½π − end, where a difference would round to 0

    def log_snr(t):
        cos, sin = jnp.sin(rest + (end - begin) * (1 - t)), jnp.sin(begin + (end - begin) * t)
        return 2 * (jnp.log(cos) - jnp.log(sin))

    return log_snr


def log_linear(lowest: float, highest: float) -> LogSNR:
    """λ linear in time: training visits each unit of λ equally often, each of which can cost the
    bound ½ nat for each variable."""

    def log_snr(t):
        return highest + (lowest - highest) * t

    return log_snr


FIXED = {"linear": linear, "cosine": cosine, "log_linear": log_linear}
"""The schedules that nothing is learned of, by name: (lowest, highest) ↦ λ."""


def init_learned(lowest: float, highest: float, width: int = 64) -> Any:
    """Parameters of `learned`: nearly a straight line between these ends."""
    curve = {
        "straight": jnp.zeros(()),
        "heights": jnp.log(0.1 / width) * jnp.ones(width),
        "steepness": jnp.log(10.0) * jnp.ones(width),
        "places": jnp.linspace(0.0, 1.0, width),
    }
    return {"ends": jnp.array([highest, lowest]), "curve": curve}


def learned(params: Any) -> LogSNR:
    """λ falls between two learned ends along a learned monotone curve (Kingma et al. 2021, appendix
    H): e^a t + Σ_k e^{h_k} σ(e^{s_k} (t − p_k)), stretched to rise from 0 to 1."""
    highest, lowest = params["ends"]
    curve = params["curve"]

    def rise(t):
        after = t.reshape(-1, 1) - curve["places"][None]
        steps = jax.nn.sigmoid(jnp.exp(curve["steepness"])[None] * after)
        risen = (jnp.exp(curve["heights"])[None] * steps).sum(1)
        return jnp.exp(curve["straight"]) * t + risen.reshape(t.shape)

    def log_snr(t):
        zero, one = rise(jnp.zeros(())), rise(jnp.ones(()))
        return highest + (lowest - highest) * (rise(t) - zero) / (one - zero)

    return log_snr
