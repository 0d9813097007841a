"""Draw data sets from distributions whose density is known, or from known factors."""

from __future__ import annotations

import math
from dataclasses import replace

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

STEPS = 200
"""steps of a series of `sensors`"""
WINDOW = 8
"""steps of a window of `sensors_windows`"""
SENSOR_TRANSITION = np.where(np.eye(3, dtype=bool), 0.97, 0.015)
"""p(z_t = j | z_t−1 = i) of `sensors`, [3, 3] with a row for each i"""
SENSOR_MEANS = np.array(
    [
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # idle
        [1.5, 1.2, 0.8, -1.0, 0.5, 0.0],  # load
        [2.5, 0.5, 2.0, -1.5, -0.5, 1.0],  # surge
    ]
)
"""means of x_t given the regimes of `sensors`, [3, 6]"""
SENSOR_LOADINGS = np.array(
    [
        [[0.3, 0.0], [0.3, 0.0], [0.3, 0.1], [0.0, 0.3], [0.0, 0.3], [0.1, 0.3]],
        [[0.5, 0.0], [0.5, 0.1], [0.4, 0.2], [-0.2, 0.4], [0.0, 0.4], [0.2, 0.4]],
        [[0.6, 0.2], [0.4, 0.2], [0.6, 0.0], [-0.4, 0.3], [-0.1, 0.5], [0.3, 0.3]],
    ]
)
"""loadings of the sensors of `sensors` on two common factors given the regimes, [3, 6, 2]"""
SENSOR_NOISE = 0.15
"""standard deviation of each sensor's own noise in `sensors`"""
SENSOR_COVARIANCES = np.einsum("kif,kjf->kij", SENSOR_LOADINGS, SENSOR_LOADINGS)
SENSOR_COVARIANCES = SENSOR_COVARIANCES + SENSOR_NOISE**2 * np.eye(6)
"""covariances of x_t given the regimes of `sensors`, [3, 6, 6]"""
FAULTS = ("drift", "decoupled")
"""faults in the test series of `sensors`"""
DRIFTING, DECOUPLED = 2, 4
"""numbers of the sensor that drifts and of the one that loses its coupling"""
DRIFT = 0.015
"""slope of the drift, per step"""

SPRITE_SIZE = 16
"""height and width of an image of `sprites`, in pixels"""
SPRITE_SHAPES = ("square", "ellipse", "triangle")
"""shapes of `sprites`"""
SPRITE_RADII = np.linspace(2.0, 4.5, 6)
"""half of the height of a shape, in pixels"""
SPRITE_CENTRES = np.linspace(4.5, 11.5, 16)
"""coordinates of the centre of a shape, in pixels from the left or from the top"""
SUPERSAMPLING = 4
"""points along each axis of a pixel, whose share within the shape is the grey value"""


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
    rng = np.random.default_rng(0)
    z = _draw_chains(300, 100, REGIME_TRANSITION, rng)
    # Draw x_t = μ_z + L_z ε with Σ_z = L_z L_zᵀ and ε ~ N(0, I).
    factors = np.linalg.cholesky(REGIME_COVARIANCES)
    noise = rng.standard_normal((*z.shape, 2))
    x = REGIME_MEANS[z] + np.einsum("ntij,ntj->nti", factors[z], noise)
    parts = dict(zip(SPLITS, np.split(x.astype(np.float32), [200, 250]), strict=True))
    return from_arrays(
        parts,
        length={split: np.full(len(part), x.shape[1]) for split, part in parts.items()},
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
    law = REGIME_TRANSITION, REGIME_MEANS, REGIME_COVARIANCES
    return _log_conditionals(x, *law).sum(axis=-1)


def draw_sensors() -> Dataset:
    """Return `sensors`: 200/50/300 series [200, 6] of six coupled sensors in three regimes.

    The hidden chain of regimes (idle, load, surge) starts in each of them with probability ⅓. At
    each step it stays with probability 0.97 and moves to either other regime with 0.015. Given the
    regime, x_t = μ_z + A_z f + ε with two common factors f ~ N(0, I) and ε ~ N(0, 0.15² I).
    `sensors_log_prob` has the density of series without a fault.

    The last 100 test series have a fault from a drawn step on, in turn:

    - `drift`: the third sensor drifts by 0.015 per step.
    - `decoupled`: the fifth sensor no longer follows the common factors. Its mean and its variance
      given the regime stay, so that the sensor by itself looks as before.

    The test split has the array `"onset"` [N], the first step of the fault, or 200 without one.
    """
    x, label, onset = _sensor_series()
    parts = dict(zip(SPLITS, np.split(x.astype(np.float32), [200, 250]), strict=True))
    dataset = from_arrays(
        parts,
        dict(zip(SPLITS, np.split(label, [200, 250]), strict=True)),
        length={split: np.full(len(part), STEPS) for split, part in parts.items()},
        name="sensors",
        labels=("normal", *FAULTS),
        format=Format(levels=0),
        log_prob=sensors_log_prob,
    )
    return replace(dataset, test={**dataset.test, "onset": onset[250:]})


def draw_sensor_windows() -> Dataset:
    """Return `sensors_windows`: windows of 8 steps of the series of `sensors`, [N, 8, 6].

    The training and the validation split have 25 windows of each series, one after another. The
    test split has all 193 windows of each series. A window has the label of the fault if its last
    step is at the onset or after it. The test split has three more arrays, `"series"`, `"step"` and
    `"onset"` [N]: the number of the series, the last step of the window and the first step of the
    fault. The sensors are standardised by the training series.
    """
    x, label, onset = _sensor_series()
    x = x.astype(np.float32)
    center, scale = x[:200].mean(axis=(0, 1)), x[:200].std(axis=(0, 1))
    cut = {"train": x[:200], "validation": x[200:250]}
    windows = {split: part.reshape(-1, WINDOW, 6) for split, part in cut.items()}
    labels = {split: np.zeros(len(part), np.int32) for split, part in windows.items()}
    sliding = np.lib.stride_tricks.sliding_window_view(x[250:], WINDOW, axis=1)
    series, step = np.mgrid[: sliding.shape[0], WINDOW - 1 : STEPS].reshape(2, -1)
    windows["test"] = sliding.transpose(0, 1, 3, 2).reshape(-1, WINDOW, 6)
    labels["test"] = np.where(step >= onset[250:][series], label[250:][series], 0).astype(np.int32)
    dataset = from_arrays(
        windows,
        labels,
        name="sensors_windows",
        labels=("normal", *FAULTS),
        format=Format(levels=0, center=tuple(center.tolist()), scale=tuple(scale.tolist())),
    )
    places = {"series": series, "step": step, "onset": onset[250:][series]}
    places = {name: values.astype(np.int32) for name, values in places.items()}
    return replace(dataset, test={**dataset.test, **places})


def _sensor_series() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return 550 series of `sensors` [N, T, 6], their labels and the onsets of faults, [N]."""
    n, faulty = 550, 100
    rng = np.random.default_rng(0)
    z = _draw_chains(n, STEPS, SENSOR_TRANSITION, rng)
    factors = rng.standard_normal((n, STEPS, 2))
    noise = SENSOR_NOISE * rng.standard_normal((n, STEPS, 6))
    x = SENSOR_MEANS[z] + np.einsum("ntif,ntf->nti", SENSOR_LOADINGS[z], factors) + noise
    label, onset = np.zeros(n, np.int32), np.full(n, STEPS, np.int32)
    label[-faulty:] = 1 + np.arange(faulty) % len(FAULTS)
    onset[-faulty:] = rng.integers(60, 121, faulty)
    after = np.arange(STEPS) - onset[:, None]
    drift = (label == 1)[:, None] & (after >= 0)
    x[:, :, DRIFTING] += np.where(drift, DRIFT * (after + 1), 0)
    alone = np.sqrt(SENSOR_COVARIANCES[z, DECOUPLED, DECOUPLED]) * rng.standard_normal(z.shape)
    decoupled = (label == 2)[:, None] & (after >= 0)
    x[:, :, DECOUPLED] = np.where(decoupled, SENSOR_MEANS[z, DECOUPLED] + alone, x[:, :, DECOUPLED])
    return x, label, onset


def sensors_log_prob(x: ArrayLike) -> np.ndarray:
    """Return the log-density of series x [..., T, 6] of `sensors` without a fault, [...] in nats.

    It is exact, see `regimes_log_prob`.
    """
    law = SENSOR_TRANSITION, SENSOR_MEANS, SENSOR_COVARIANCES
    return _log_conditionals(x, *law).sum(axis=-1)


def _draw_chains(
    n: int, steps: int, transition: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return n chains of three states with a uniform start, [n, steps].

    They are drawn step by step: u ~ U(0, 1) selects the next state by the cumulative probabilities
    of the present state's row.

    Args:
      n: the number of chains.
      steps: their length.
      transition: p(z_t = j | z_t−1 = i), [3, 3].
      rng: the source of the draws.
    """
    bounds = np.cumsum(transition, axis=1)[:, :-1]
    z = np.empty((n, steps), np.int32)
    z[:, 0] = rng.integers(len(transition), size=n)
    for t in range(1, steps):
        z[:, t] = np.sum(rng.random((n, 1)) > bounds[z[:, t - 1]], axis=1)
    return z


def _log_conditionals(
    x: ArrayLike, transition: np.ndarray, means: np.ndarray, covariances: np.ndarray
) -> np.ndarray:
    """Return log p(x_t | x_1 … x_t−1) of an HMM with Gaussian emissions and a uniform start.

    Args:
      x: sequences, [..., T, D].
      transition: p(z_t = j | z_t−1 = i), [K, K].
      means: means of x_t given the states, [K, D].
      covariances: covariances of x_t given the states, [K, D, D].

    Returns:
      [..., T], nats.
    """
    x = np.asarray(x, np.float64)
    # 1. log N(x_t; μ_k, Σ_k), [..., T, K]
    error = x[..., None, :] - means
    precision = np.linalg.inv(covariances)
    distance = np.einsum("...ki,kij,...kj->...k", error, precision, error)
    dimensions = x.shape[-1]
    log_normaliser = 0.5 * dimensions * np.log(2 * np.pi)
    log_normaliser = log_normaliser + 0.5 * np.linalg.slogdet(covariances).logabsdet
    log_emission = -0.5 * distance - log_normaliser
    # 2. α_1(k) = N(x_1; μ_k, Σ_k) / K, where α_t(k) = p(x_1 … x_t, z_t = k), [..., K]
    log_alpha = log_emission[..., 0, :] - np.log(len(means))
    log_evidence = [np.logaddexp.reduce(log_alpha, axis=-1)]
    # 3. α_t(j) = Σ_i α_t−1(i) p(z_t = j | z_t−1 = i) N(x_t; μ_j, Σ_j)
    for t in range(1, x.shape[-2]):
        log_joint = log_alpha[..., :, None] + np.log(transition)
        log_alpha = np.logaddexp.reduce(log_joint, axis=-2) + log_emission[..., t, :]
        log_evidence.append(np.logaddexp.reduce(log_alpha, axis=-1))
    # 4. p(x_1 … x_t) = Σ_k α_t(k)
    return np.diff(np.stack(log_evidence, axis=-1), axis=-1, prepend=0)


def draw_sprites() -> Dataset:
    """Return `sprites`: 3,686/461/461 grey images [16, 16, 1] of one shape on black, 17 levels.

    There is one image for each combination of four factors: shape (3), size (6), x (16) and y (16).
    A random order of the 4,608 combinations is cut into the splits. The array `factors` [N, 4] has
    the number of each factor's value, and the label is the shape. Binarise them dynamically for
    models of binary pixels: a pixel on an edge is lit in proportion to the area within the shape.

    The set is a small one after dSprites (Matthey et al. 2017,
    https://github.com/google-deepmind/dsprites-dataset), without rotations, under which a square
    and an ellipse look alike at several angles.
    """
    sizes = (len(SPRITE_SHAPES), len(SPRITE_RADII), len(SPRITE_CENTRES), len(SPRITE_CENTRES))
    factors = np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=1)
    factors = np.random.default_rng(0).permutation(factors).astype(np.int32)
    # 1. The points of all pixels relative to the centre, in units of the radius, [N, 64, 64].
    points = (np.arange(SPRITE_SIZE * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    radius = SPRITE_RADII[factors[:, 1], None]
    u = ((points - SPRITE_CENTRES[factors[:, 2], None]) / radius)[:, None, :]
    v = ((points - SPRITE_CENTRES[factors[:, 3], None]) / radius)[:, :, None]
    # 2. Which points lie within: a square, an ellipse of half the width, a triangle that points up.
    inside = np.select(
        [factors[:, 0, None, None] == k for k in range(3)],
        [
            (np.abs(u) < 0.9) & (np.abs(v) < 0.9),
            (2 * u) ** 2 + v**2 < 1,
            (np.abs(v) < 1) & (2 * np.abs(u) < 1 + v),
        ],
    )
    # 3. Grey values 0 … 16, the number of points within the shape.
    pixels = inside.reshape(-1, SPRITE_SIZE, SUPERSAMPLING, SPRITE_SIZE, SUPERSAMPLING)
    x = pixels.sum(axis=(2, 4)).astype(np.uint8)[..., None]
    cuts = [len(x) * 8 // 10, len(x) * 9 // 10]
    train, validation, test = (
        {"x": x_part, "label": part[:, 0].copy(), "factors": part}
        for x_part, part in zip(np.split(x, cuts), np.split(factors, cuts), strict=True)
    )
    return Dataset(
        "sprites",
        train,
        validation,
        test,
        Format(SUPERSAMPLING**2, labels=SPRITE_SHAPES),
        factors=("shape", "size", "x", "y"),
    )
