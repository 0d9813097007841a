"""Draw data sets from distributions whose density is known."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gen.data.arrays import SPLITS, from_arrays
from gen.data.dataset import Dataset, Format

ANGLES = np.arange(8) * math.pi / 4
CENTRES = 0.5 + 0.35 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
"""means of the components of `eight_gaussians`, [8, 2]"""
DEVIATION = 0.02
"""standard deviation of every component of `eight_gaussians`"""

REGIME_TRANSITION = np.where(np.eye(3, dtype=bool), 0.95, 0.025)
"""p(z_t = j | z_t−1 = i) of `regimes`, [3, 3] with a row for each i"""
REGIME_MEANS = np.array([[-1.5, -1.0], [0.0, 1.5], [1.2, -0.5]])
"""means of x_t given the states of `regimes`, [3, 2]"""
REGIME_COVARIANCES = np.array(
    [
        [[0.25, 0.20], [0.20, 0.25]],  # strongly correlated: 0.8
        [[0.16, 0.02], [0.02, 0.16]],  # nearly round
        [[0.40, -0.12], [-0.12, 0.35]],  # larger spread
    ]
)
"""covariances of x_t given the states of `regimes`, [3, 2, 2]"""


def draw_eight_gaussians() -> Dataset:
    """Return `eight_gaussians`: 20,000/2,000/5,000 points [2] drawn from a mixture of Gaussians.

    `eight_gaussians_log_prob` has its density. x is stored in units of 1/65,535, which is 1/1,300
    of a component's standard deviation. The label is the component.
    """
    rng = np.random.default_rng(0)
    label = rng.integers(len(CENTRES), size=27_000, dtype=np.int32)
    points = CENTRES[label] + DEVIATION * rng.standard_normal((len(label), 2))
    x = np.round(points * 65_535).astype(np.uint16)
    x_splits, label_splits = np.split(x, [20_000, 22_000]), np.split(label, [20_000, 22_000])
    return from_arrays(
        dict(zip(SPLITS, x_splits, strict=True)),
        dict(zip(SPLITS, label_splits, strict=True)),
        name="eight_gaussians",
        format=Format(65_535, levels=0),
        log_prob=eight_gaussians_log_prob,
    )


def eight_gaussians_log_prob(x: jax.Array) -> jax.Array:
    """Return the log-density of points x [..., 2] of `eight_gaussians`, [...] in nats.

        p(x) = ⅛ Σ_k N(x; c_k, s² I),    c_k = ½ + 0.35 (cos kπ/4, sin kπ/4),    s = 0.02

    Neighbouring c_k are 13 s apart, and every c_k is at least 7.5 s away from the edges of the unit
    square. Overlaps of the components and mass outside of the square therefore change the entropy
    by less than 1e-9. It is log 8 + log(2πe s²) = −2.907 nats, and the expected −log p(x) of every
    model is at least as large.
    """
    z = (x[..., None, :] - CENTRES.reshape(*[1] * (x.ndim - 1), 8, 2)) / DEVIATION
    log_components = -0.5 * jnp.sum(z**2, axis=-1) - math.log(2 * math.pi * DEVIATION**2)
    return jax.nn.logsumexp(log_components, axis=-1) - math.log(len(CENTRES))


def draw_regimes() -> Dataset:
    """Return `regimes`: 200/50/50 sequences [100, 2] drawn from a hidden Markov model.

    The hidden chain z_1, z_2, … has three states. It starts in each of them with probability ⅓. At
    each step it stays with probability 0.95 and moves to either other state with 0.025. Given its
    state, x_t ~ N(μ_z, Σ_z) with a full covariance; nearly all values lie in [−3, 3].

    All sequences have the same length. `regimes_log_prob` has their density: the mean of −log p(x)
    over the test split is 147.8 ± 3.0 nats per sequence.
    """
    n, steps = 300, 100
    rng = np.random.default_rng(0)
    # 1. Draw all chains step by step: u ~ U(0, 1) selects the next state by the cumulative
    #    probabilities of the present state's row.
    bounds = np.cumsum(REGIME_TRANSITION, axis=1)[:, :-1]
    z = np.empty((n, steps), np.int32)
    z[:, 0] = rng.integers(3, size=n)
    for t in range(1, steps):
        z[:, t] = np.sum(rng.random((n, 1)) > bounds[z[:, t - 1]], axis=1)
    # 2. Draw x_t = μ_z + L_z ε with Σ_z = L_z L_zᵀ and ε ~ N(0, I).
    factors = np.linalg.cholesky(REGIME_COVARIANCES)
    noise = rng.standard_normal((n, steps, 2))
    x = REGIME_MEANS[z] + np.einsum("ntij,ntj->nti", factors[z], noise)
    parts = dict(zip(SPLITS, np.split(x.astype(np.float32), [200, 250]), strict=True))
    return from_arrays(
        parts,
        length={split: np.full(len(part), steps) for split, part in parts.items()},
        name="regimes",
        format=Format(levels=0),
        log_prob=regimes_log_prob,
    )


def regimes_log_prob(x: ArrayLike) -> np.ndarray:
    """Return the log-density of sequences x [..., T, 2] of `regimes`, [...] in nats.

    It is exact, by the forward algorithm (Rabiner 1989, eq. 19 to 21,
    https://doi.org/10.1109/5.18626) on logarithms, in float64 on the host. Sequences of any length
    T ≥ 1 are allowed; they must not be padded.
    """
    x = np.asarray(x, np.float64)
    # 1. log N(x_t; μ_k, Σ_k), [..., T, 3]
    error = x[..., None, :] - REGIME_MEANS
    precision = np.linalg.inv(REGIME_COVARIANCES)
    distance = np.einsum("...ki,kij,...kj->...k", error, precision, error)
    log_normaliser = np.log(2 * np.pi) + 0.5 * np.linalg.slogdet(REGIME_COVARIANCES).logabsdet
    log_emission = -0.5 * distance - log_normaliser
    # 2. α_1(k) = ⅓ N(x_1; μ_k, Σ_k), where α_t(k) = p(x_1 … x_t, z_t = k), [..., 3]
    log_alpha = log_emission[..., 0, :] - np.log(3)
    # 3. α_t(j) = Σ_i α_t−1(i) p(z_t = j | z_t−1 = i) N(x_t; μ_j, Σ_j)
    for t in range(1, x.shape[-2]):
        log_joint = log_alpha[..., :, None] + np.log(REGIME_TRANSITION)
        log_alpha = np.logaddexp.reduce(log_joint, axis=-2) + log_emission[..., t, :]
    # 4. p(x) = Σ_k α_T(k)
    return np.logaddexp.reduce(log_alpha, axis=-1)
