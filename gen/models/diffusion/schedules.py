"""Noise schedules: the log signal-to-noise ratio λ of a variance-preserving path at time t.

x_t = α_t x + σ_t ε with α² = σ(λ) and σ² = σ(−λ), where σ(·) is the logistic function. λ falls in t
from `log_snr_max` at t = 0 to `log_snr_min` at t = 1. `linear` and `cosine` are segments of the
schedules of their papers, with time rescaled so that λ has these ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

LogSNR = Callable[[jax.Array], jax.Array]
"""t ↦ λ_t, of the shape of t."""


def linear(log_snr_min: float, log_snr_max: float) -> LogSNR:
    """Return the schedule whose β is linear in time: α_τ² = exp(−0.1 τ − 9.95 τ²).

    β rises from 0.1 to 20 in continuous time: Ho et al. 2020, https://arxiv.org/abs/2006.11239,
    section 4; Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix C.
    """

    def inverse(log_snr):
        """Return τ with −log α_τ² = log(1 + e^{−λ})."""
        minus_log_alpha_squared = math.log1p(math.exp(-log_snr))
        return (math.sqrt(0.01 + 4 * 9.95 * minus_log_alpha_squared) - 0.1) / (2 * 9.95)

    begin, end = inverse(log_snr_max), inverse(log_snr_min)

    def log_snr(t):
        tau = begin + (end - begin) * t
        return -jnp.log(jnp.expm1(0.1 * tau + 9.95 * tau**2))

    return log_snr


def cosine(log_snr_min: float, log_snr_max: float) -> LogSNR:
    """Return the schedule α_τ = cos(πτ/2), for which λ = −2 log tan(πτ/2).

    Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672, eq. 17, without their offset; in terms
    of λ Hoogeboom, Heek & Salimans 2023, https://arxiv.org/abs/2301.11093, eq. 4.
    """
    begin, end = (math.atan(math.exp(-0.5 * log_snr)) for log_snr in (log_snr_max, log_snr_min))
    rest = math.atan(math.exp(0.5 * log_snr_min))  # ½π − end, where a difference would round to 0

    def log_snr(t):
        cos, sin = jnp.sin(rest + (end - begin) * (1 - t)), jnp.sin(begin + (end - begin) * t)
        return 2 * (jnp.log(cos) - jnp.log(sin))

    return log_snr


def log_linear(log_snr_min: float, log_snr_max: float) -> LogSNR:
    """Return the schedule whose λ is linear in time.

    Training visits each unit of λ equally often, and each unit can cost the bound up to ½ nat for
    each variable.
    """

    def log_snr(t):
        return log_snr_max + (log_snr_min - log_snr_max) * t

    return log_snr


FIXED = {"linear": linear, "cosine": cosine, "log_linear": log_linear}
"""The schedules without parameters by name, as functions of (log_snr_min, log_snr_max)."""


def init_learned(log_snr_min: float, log_snr_max: float, width: int = 64) -> Any:
    """Return parameters of `learned` with which λ is nearly linear in time.

    Args:
      log_snr_min: λ at t = 1.
      log_snr_max: λ at t = 0.
      width: the number of sigmoids in the curve.
    """
    curve = {
        "straight": jnp.zeros(()),
        "heights": jnp.log(0.1 / width) * jnp.ones(width),
        "steepness": jnp.log(10.0) * jnp.ones(width),
        "places": jnp.linspace(0.0, 1.0, width),
    }
    return {"ends": jnp.array([log_snr_max, log_snr_min]), "curve": curve}


def learned(params: Any) -> LogSNR:
    """Return the schedule whose λ falls along a learned monotone curve between two learned ends.

    The curve is e^a t + Σ_k e^{h_k} σ(e^{s_k} (t − p_k)), normalised to rise from 0 to 1: the
    monotone network of Kingma et al. 2021, https://arxiv.org/abs/2107.00630, appendix H.
    """
    log_snr_max, log_snr_min = params["ends"]
    curve = params["curve"]

    def rise(t):
        after = t.reshape(-1, 1) - curve["places"][None]
        steps = jax.nn.sigmoid(jnp.exp(curve["steepness"])[None] * after)
        risen = (jnp.exp(curve["heights"])[None] * steps).sum(1)
        return jnp.exp(curve["straight"]) * t + risen.reshape(t.shape)

    def log_snr(t):
        zero, one = rise(jnp.zeros(())), rise(jnp.ones(()))
        return log_snr_max + (log_snr_min - log_snr_max) * (rise(t) - zero) / (one - zero)

    return log_snr
