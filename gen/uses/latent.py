"""Look at the codes of a model: projections, paths, dimensions, and known factors of variation.

codes = features.encode_all(model, state, data)
path = interpolate(model, codes[:8], codes[8:16], np.linspace(0, 1, 11))
gap, score = mig(codes, factors), factor_vae_score(codes, factors)
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen import estimate
from gen.core import Data, facts, require
from gen.distributions import gaussian_kl
from gen.estimate import Estimate

Projection = Literal["pca", "tsne"]
"""way to project codes to the plane"""

ACTIVE = 0.01
"""Variance of the mean code over examples above which a dimension is active."""
BINS = 20
"""Bins of equal width into which each dimension of the codes is divided to estimate entropies."""
RESAMPLES = 50
"""Resamples of the bootstrap of the mutual information gap."""


class Posterior(NamedTuple):
    """q(z|x) = N(mean, diag exp(logvar)) of each example."""

    mean: np.ndarray  # [N, latent]
    logvar: np.ndarray  # [N, latent]


def plane(codes: np.ndarray, projection: Projection = "pca") -> tuple[np.ndarray, str]:
    """Project codes to two dimensions, unless they have no more.

    t-SNE: van der Maaten & Hinton 2008, https://jmlr.org/papers/v9/vandermaaten08a.html.

    Args:
      codes: [N, latent].
      projection: principal components or t-SNE.

    Returns:
      Points [N, 2], and the name of the projection. Codes that are all alike come to lie at 0.
    """
    if codes.shape[1] <= 2:
        return np.pad(codes, ((0, 0), (0, 2 - codes.shape[1]))), "not projected"
    if not np.any(codes.std(axis=0)):  # a model that has not learned; there are no components
        return np.zeros((len(codes), 2)), "all alike"
    if projection == "pca":
        from sklearn.decomposition import PCA

        return PCA(2, random_state=0).fit_transform(codes), "PCA"
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(codes) - 1) / 3)  # of few examples
    return TSNE(init="pca", random_state=0, perplexity=perplexity).fit_transform(codes), "t-SNE"


def interpolate(model: Any, a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the path between codes that suits the law of the model's codes, [N, W, D].

    Codes that a model draws from N(0, I) (the fact `normal_codes`) are joined by great circles,
    other codes by straight lines.

    Args:
      model: the model of the codes.
      a: starts, [N, D].
      b: ends, [N, D].
      weights: w in [0, 1], [W].
    """
    return (great_circles if facts(model).normal_codes else straight_lines)(a, b, weights)


def straight_lines(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (1 − w) a + w b, linear interpolation.

    Args:
      a: starts, [N, D].
      b: ends, [N, D].
      weights: w in [0, 1], [W].

    Returns:
      [N, W, D].
    """
    w = weights[None, :, None]
    return (1 - w) * a[:, None] + w * b[:, None]


def great_circles(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (sin((1 − w) θ) a + sin(w θ) b) / sin θ, spherical linear interpolation (slerp).

    θ is the angle between a and b. The path has the length of normal draws, whereas the middle of a
    straight line is too short: Shoemake 1985, https://doi.org/10.1145/325165.325242; Song, Meng &
    Ermon 2021, https://arxiv.org/abs/2010.02502, section 5.3. Codes of one direction or of opposite
    directions have no unique circle and are joined by a straight line.

    Args:
      a: starts, [N, D].
      b: ends, [N, D].
      weights: w in [0, 1], [W].

    Returns:
      [N, W, D].
    """
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.where(lengths == 0, 1, lengths)
    parallel = (lengths == 0) | (np.abs(cosine) > 1 - 1e-6)
    angle = np.arccos(np.where(parallel, 0, cosine))[:, None, None]
    w = weights[None, :, None]
    circles = (np.sin((1 - w) * angle) * a[:, None] + np.sin(w * angle) * b[:, None]) / np.sin(
        angle
    )
    return np.where(parallel[:, None, None], straight_lines(a, b, weights), circles)


def posterior(model: Any, state: Any, data: Data) -> Posterior:
    """Return the mean and the log-variance of q(z|x) of all examples.

    Args:
      model: a model with `posterior`.
      state: a state of it.
      data: decoded examples, arrays [N, ...] by name.
    """
    moments = estimate.per_example(
        lambda batch, _: model.posterior(state, batch), data, jax.random.key(0)
    )
    return Posterior(*moments)


def kl_per_dimension(q: Posterior) -> list[Estimate]:
    """Return the mean over examples of KL(q(z_j|x) ‖ N(0, 1)) of each dimension j, in nats.

    Their sum is the KL of a VAE with a normal prior, of which q is the product of its dimensions.
    """
    with jax.default_matmul_precision("highest"):
        mean, logvar = (jnp.asarray(moment)[..., None] for moment in q)
        each = np.asarray(gaussian_kl(mean, logvar))  # [N, latent]
    return [estimate.mean(of_dimension, "exact") for of_dimension in each.T]


def active_units(codes: np.ndarray) -> np.ndarray:
    """Return for each dimension whether Var_x(E[z_j|x]) > 0.01, [latent] (`ACTIVE`).

    Burda, Grosse & Salakhutdinov 2016, https://arxiv.org/abs/1509.00519, section 5.2. The threshold
    is for the means of a q(z|x) that is compared with N(0, I). Other codes have an arbitrary scale.

    Args:
      codes: E[z|x] of many examples, [N, latent].
    """
    return codes.var(axis=0) > ACTIVE


def traversal(
    model: Any, codes: np.ndarray, base: np.ndarray, dimensions: np.ndarray, count: int
) -> np.ndarray:
    """Return codes in which one dimension moves and the others stay, [dimensions, count, latent].

    A dimension moves from −3 to 3 in codes that the model draws from N(0, I). In other codes it
    moves from its 1st to its 99th percentile.

    Args:
      model: the model of the codes.
      codes: codes of many examples, [N, latent].
      base: the code whose dimensions move, [latent].
      dimensions: the dimensions that move, [dimensions].
      count: the number of values of a dimension.
    """
    path = np.tile(base, (len(dimensions), count, 1))
    for row, dimension in enumerate(dimensions):
        low, high = -3.0, 3.0
        if not facts(model).normal_codes:
            low, high = np.percentile(codes[:, dimension], (1, 99))
        path[row, :, dimension] = np.linspace(low, high, count)
    return path


def mig(codes: np.ndarray, factors: np.ndarray, seed: int = 0) -> Estimate:
    """Return the mutual information gap between the two dimensions that know most of a factor:

        MIG = 1/K Σ_k (I(z_j(k); v_k) − max_{j ≠ j(k)} I(z_j; v_k)) / H(v_k),

    where j(k) is the dimension of the largest mutual information with factor v_k (Chen et al. 2018,
    https://arxiv.org/abs/1802.04942, eq. 6). It is 1 where each factor is known from one dimension
    and the other dimensions know nothing of it, and 0 where two dimensions know equally much.

    Deviations from Chen et al. 2018:

    - z is the mean code of an example, and its mutual information is computed from counts in `BINS`
      bins of equal width, as Locatello et al. 2019 do (https://arxiv.org/abs/1811.12359, appendix
      C); the paper integrates over q(z|x). Counts of N examples overestimate the information by
      about (bins − 1)(values − 1) / 2N nats.

    The standard error is by bootstrap over examples.

    Args:
      codes: [N, latent].
      factors: the values 0, 1, … of each factor, integers [N, K].
      seed: the seed of the bootstrap.
    """
    _check_factors(factors, len(codes))
    binned = _binned(codes)

    def gap(rows):
        information, entropy = mutual_information(binned[rows], factors[rows])
        ordered = np.sort(information, axis=0)
        second = ordered[-2] if len(ordered) > 1 else 0.0
        return float(np.mean((ordered[-1] - second) / entropy))

    n = len(codes)
    rng = np.random.default_rng(seed)
    resampled = [gap(rng.integers(0, n, n)) for _ in range(RESAMPLES)]
    error = float(np.std(resampled, ddof=1))
    return Estimate(gap(slice(None)), error, "Monte Carlo", n, {"bins": BINS})


def mutual_information(codes: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return I(z_j; v_k) in nats, [latent, K], and H(v_k), [K], of the empirical distribution.

    I = Σ p(z, v) log p(z, v) / (p(z) p(v)).

    Args:
      codes: integers 0, 1, …, [N, latent].
      factors: integers 0, 1, …, [N, K].
    """
    information = np.empty((codes.shape[1], factors.shape[1]))
    entropy = np.empty(factors.shape[1])
    for k, factor in enumerate(factors.T):
        values = int(factor.max()) + 1
        for j, code in enumerate(codes.T):
            counts = np.bincount(code * values + factor, minlength=(code.max() + 1) * values)
            p = counts.reshape(-1, values) / len(code)
            of_code, of_factor = _entropy(p.sum(1)), _entropy(p.sum(0))
            information[j, k] = of_code + of_factor - _entropy(p.ravel())
        entropy[k] = of_factor
    return information, entropy


def factor_vae_score(
    codes: np.ndarray,
    factors: np.ndarray,
    seed: int = 0,
    votes: int = 800,
    batch_size: int = 64,
) -> Estimate:
    """Return the accuracy with which the steadiest dimension tells which factor was held fixed.

    A vote draws a factor k and examples that have one value of it. Of the dimensions, each divided
    by its standard deviation over all examples, d has the smallest variance over the drawn ones.
    A classifier predicts k from d by the majority of the first half of the votes. The score is its
    accuracy on the second half (Kim & Mnih 2018, https://arxiv.org/abs/1802.05983, section 4).
    It is 1 if every factor has a dimension of its own, and about 1 / K for codes that know nothing.

    Deviation from Kim & Mnih 2018:

    - Dimensions are left out if they are constant; theirs are left out if they are not active.

    Args:
      codes: [N, latent].
      factors: the values 0, 1, … of each factor, integers [N, K].
      seed: the seed of the votes.
      votes: votes of each half.
      batch_size: examples of a vote.
    """
    _check_factors(factors, len(codes))
    rng = np.random.default_rng(seed)
    deviation = codes.std(axis=0)
    varies = deviation > 1e-6 * np.abs(codes).max(initial=1e-30)
    scaled = codes[:, varies] / deviation[varies]
    count = factors.shape[1]
    chosen = rng.integers(0, count, 2 * votes)
    steadiest = np.zeros(2 * votes, int)
    for vote, k in enumerate(chosen):
        value = factors[rng.integers(len(factors)), k]
        rows = rng.choice(np.flatnonzero(factors[:, k] == value), batch_size)
        if scaled.shape[1]:
            steadiest[vote] = scaled[rows].var(axis=0).argmin()
    table = np.zeros((max(1, scaled.shape[1]), count), int)
    np.add.at(table, (steadiest[:votes], chosen[:votes]), 1)
    right = table.argmax(axis=1)[steadiest[votes:]] == chosen[votes:]
    return estimate.mean(right, "Monte Carlo", votes=votes, batch_size=batch_size)


def _check_factors(factors: np.ndarray, n: int) -> None:
    """Raise `UserError` unless factors are integers [N, K] of N examples, each of two values."""
    require(
        factors.ndim == 2 and len(factors) == n and factors.dtype.kind in "iu",
        f"factors have the shape {factors.shape} and the type {factors.dtype}: pass integers "
        f"[{n}, K]",
    )
    constant = np.flatnonzero(factors.min(0) == factors.max(0))
    require(not len(constant), f"factors {constant.tolist()} have one value alone: leave them out")


def _binned(codes: np.ndarray) -> np.ndarray:
    """Return the bin 0 … `BINS` − 1 of each value, bins of equal width per dimension, [N, latent].

    A constant dimension lies in one bin.
    """
    low, high = codes.min(axis=0), codes.max(axis=0)
    width = np.where(high > low, high - low, 1)
    return np.minimum((codes - low) / width * BINS, BINS - 1).astype(int)


def _entropy(p: np.ndarray) -> float:
    """Return −Σ p log p in nats."""
    p = p[p > 0]
    return -float((p * np.log(p)).sum())
