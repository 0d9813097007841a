"""Mixtures of Gaussians: McLachlan & Peel 2000, https://doi.org/10.1002/0471721182."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from gen import estimate
from gen.core import (
    Batch,
    Data,
    Density,
    Metrics,
    Shape,
    check_fields,
    negative_log_prob,
    pmean,
)
from gen.estimate import Estimate
from gen.nets import flatten


class Params(NamedTuple):
    """The mixture's parameters."""

    log_weight: jax.Array  # log π up to a constant, [K]
    mean: jax.Array  # μ, [K, D]
    root: jax.Array  # Cholesky factors R of Σ = R Rᵀ, lower triangular, [K, D, D]


class Statistics(NamedTuple):
    """Expected sufficient statistics, the mean over training examples."""

    share: jax.Array  # E r_k(x), [K]
    first: jax.Array  # E r_k(x) x, [K, D]
    second: jax.Array  # E r_k(x) x xᵀ, [K, D, D]


class State(NamedTuple):
    """Everything that training changes."""

    params: Params
    statistics: Statistics  # all 0 before the first step


@dataclass(frozen=True)
class MixtureOfGaussians:
    """p(x) = Σ_k π_k N(x; μ_k, Σ_k), for continuous x.

    Training by EM (Dempster, Laird & Rubin 1977,
    https://doi.org/10.1111/j.2517-6161.1977.tb01600.x): the E-step takes the responsibilities
    r_k(x) = p(k | x) of the components for each example of the batch. The expected statistics, the
    number and the first two moments of the examples of each component, move towards the batch's,

        s ← (1 − rate) s + rate · mean over the batch.

    The M-step sets the parameters to the most probable ones under s. With `rate` 1 and the whole
    training set as the batch this is EM; otherwise it is stepwise EM (Cappé & Moulines 2009,
    https://arxiv.org/abs/0712.4273). The first step takes rate 1.

    The prior of each Σ_k is an inverse Wishart law that acts as s N pseudo-observations of variance
    v in every direction, with s `prior`, v `variance` and N training examples: a component of few
    examples tends to a ball of that variance. The means and weights have no prior. The data should
    be standardised, since v has their units and second moments are taken about 0.

    Deviations from Cappé & Moulines 2009:

    - A constant rate, in place of step sizes that fall to 0.
    """

    family: ClassVar[str] = "mixture"
    density: ClassVar[Density] = "tractable"
    levels: ClassVar[int] = 0

    score = objective = negative_log_prob

    shape: Shape = (2,)
    """shape of one example"""
    components: int = 20
    """number K of components"""
    rate: float = 1.0
    """weight of the batch in the statistics"""
    prior: float = 1e-2
    """pseudo-observations s of each covariance, as a fraction of the training set"""
    variance: float = 0.1
    """variance v of the pseudo-observations"""

    def __post_init__(self):
        check_fields(self, positive=("components", "rate", "prior", "variance"))

    def init(self, key: jax.Array) -> State:
        """Set equal weights and the prior's covariances, and draw the means from N(0, I)."""
        size, k = math.prod(self.shape), self.components
        root = math.sqrt(self.variance) * jnp.broadcast_to(jnp.eye(size), (k, size, size))
        params = Params(jnp.zeros(k), jax.random.normal(key, (k, size)), root)
        statistics = Statistics(jnp.zeros(k), jnp.zeros((k, size)), jnp.zeros((k, size, size)))
        return State(params, statistics)

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """Set the means to K drawn examples."""
        x, k = flatten(batch["x"]), self.components
        mean = x[jax.random.choice(key, len(x), (k,), replace=k > len(x))]
        return state._replace(params=state.params._replace(mean=mean))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one step of EM; log −log p before it as `loss`."""
        # (1) Responsibilities r_k(x) = π_k p(x | k) / p(x), [B, K].
        x = flatten(batch["x"])
        joint = log_joint(state.params, x)
        log_p = jax.nn.logsumexp(joint, axis=1)
        r = jnp.exp(joint - log_p[:, None])

        # (2) Expected sufficient statistics. Stepwise EM moves towards this batch's.
        second = jax.lax.map(lambda weight: (weight[:, None] * x).T @ x / len(x), r.T)
        of_batch = Statistics(r.mean(0), r.T @ x / len(x), second)
        of_batch, loss = pmean((of_batch, -log_p.mean()), axis_name)
        first_step = state.statistics.share.sum() == 0
        rate = jnp.where(first_step, 1.0, self.rate)
        statistics = jax.tree.map(
            lambda old, new: (1 - rate) * old + rate * new, state.statistics, of_batch
        )

        # (3) M-step: π_k ∝ share_k, μ_k = first_k / share_k, and with the prior
        #         Σ_k = (second_k − share_k μ_k μ_kᵀ + s v I) / (share_k + s).
        # A component without examples keeps a tiny share, so that log π and μ are finite.
        (share, first, second), s = statistics, self.prior
        share = jnp.maximum(share, 1e-9)
        mean = first / share[:, None]
        scatter = second - first[:, :, None] * mean[:, None]
        scatter += s * self.variance * jnp.eye(x.shape[1])[None]
        root = jnp.linalg.cholesky(scatter / (share + s)[:, None, None])
        return State(Params(jnp.log(share), mean, root), statistics), {"loss": loss}

    def parameters(self, state: State) -> Any:
        """Return the weights, means and Cholesky factors of the covariances."""
        return state.params

    def log_prob(self, state: State, batch: Batch) -> jax.Array:
        """Return log p(x), exact, [B] nats of a density."""
        return jax.nn.logsumexp(log_joint(state.params, flatten(batch["x"])), axis=1)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return −log p(x) as `nll`, exact."""
        nll = estimate.per_example(lambda batch, _: -self.log_prob(state, batch), data, key)
        return {"nll": estimate.mean(nll, "exact", density=True)}

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Draw k ~ π, then x = μ_k + R_k ε with ε ~ N(0, I): [n, *shape]."""
        component_key, key = jax.random.split(key)
        weight, mean, root = state.params
        k = jax.random.categorical(component_key, weight, shape=(n,))
        noise = jax.random.normal(key, (n, mean.shape[1]))
        return (mean[k] + jnp.einsum("nij,nj->ni", root[k], noise)).reshape(-1, *self.shape)

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return the responsibilities p(k | x), [B, K]."""
        return jax.nn.softmax(log_joint(state.params, flatten(batch["x"])), axis=1)

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """Draw k ~ p(k | shown), then the hidden variables given k and the shown ones.

        With S the shown variables, y ~ N(μ_k, Σ_k) is corrected to the conditional law by

            y + Σ_k[:, S] Σ_k[S, S]⁻¹ (x[S] − y[S]).
        """
        component_key, noise_key = jax.random.split(key)
        rows, shown = flatten(x), _shown(x, mask)
        joint = log_joint_of_shown(state.params, rows, shown)
        k = jax.random.categorical(component_key, joint, axis=1)
        noise = jax.random.normal(noise_key, rows.shape)

        def draw(row):  # one at a time: [B, D, D] would be large
            x, shown, k, noise = row
            mean, root = state.params.mean[k], state.params.root[k]
            y = mean + root @ noise
            factor = _factor_of_shown(root, shown)
            gap = jnp.where(shown, x - y, 0.0)
            return y + root @ (root.T @ jax.scipy.linalg.cho_solve((factor, True), gap))

        drawn = jax.lax.map(draw, (rows, shown, k, noise))
        return jnp.where(shown, rows, drawn).reshape(x.shape)

    def conditional_log_prob(self, state: State, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Return log p(hidden | shown) = log Σ_k π_k p(x | k) − log Σ_k π_k p(shown | k), [B]."""
        rows = flatten(x)
        joint = log_joint(state.params, rows)
        of_shown = log_joint_of_shown(state.params, rows, _shown(x, mask))
        return jax.nn.logsumexp(joint, axis=1) - jax.nn.logsumexp(of_shown, axis=1)


def log_joint(params: Params, x: jax.Array) -> jax.Array:
    """Return log π_k N(x; μ_k, Σ_k), [B, K] nats.

    Args:
      params: the mixture's parameters.
      x: examples, [B, D].
    """
    constant = 0.5 * x.shape[1] * math.log(2 * math.pi)

    def log_prob(component):  # one at a time: [B, K, D] would be large
        mean, root = component
        scaled = jax.scipy.linalg.solve_triangular(root, (x - mean[None]).T, lower=True)  # [D, B]
        log_det = jnp.log(jnp.diagonal(root)).sum()  # ½ log det Σ
        return -0.5 * (scaled**2).sum(0) - log_det - constant

    log_p = jax.lax.map(log_prob, (params.mean, params.root))
    return jax.nn.log_softmax(params.log_weight)[None] + log_p.T


def log_joint_of_shown(params: Params, x: jax.Array, shown: jax.Array) -> jax.Array:
    """Return log π_k N(x[S]; μ_k[S], Σ_k[S, S]) with S the shown variables, [B, K] nats.

    Args:
      params: the mixture's parameters.
      x: examples, [B, D].
      shown: where x is shown, [B, D]; the other variables are integrated out.
    """

    def log_prob(mean, root, x, shown):  # of one component and one example
        factor = _factor_of_shown(root, shown)
        gap = jnp.where(shown, x - mean, 0.0)
        scaled = jax.scipy.linalg.solve_triangular(factor, gap, lower=True)
        log_det = jnp.log(jnp.abs(jnp.diagonal(factor))).sum()  # ½ log det Σ[S, S]
        return -0.5 * (scaled**2).sum() - log_det - 0.5 * shown.sum() * math.log(2 * math.pi)

    def of_row(row):  # one component at a time: [K, D, D] would be large
        components = params.mean, params.root
        return jax.lax.map(lambda component: log_prob(*component, *row), components)

    log_p = jax.lax.map(of_row, (x, shown))
    return jax.nn.log_softmax(params.log_weight)[None] + log_p


def _factor_of_shown(root: jax.Array, shown: jax.Array) -> jax.Array:
    """Return L [D, D], lower triangular, with L Lᵀ = Σ[S, S], for Σ = R Rᵀ and the shown variables.

    In L Lᵀ the hidden variables are independent, of variance 1. L is from a QR decomposition of the
    rows of R, because Σ has the square of the condition number of R. The diagonal of L can have
    either sign.
    """
    of_hidden = jnp.diag(jnp.where(shown, 0.0, 1.0))
    rows = jnp.concatenate([jnp.where(shown[:, None], root, 0.0), of_hidden], axis=1)
    return jnp.linalg.qr(rows.T, mode="r").T


def _shown(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Return where x is shown, [B, D], for a mask that broadcasts to x."""
    return flatten(jnp.broadcast_to(jnp.asarray(mask, bool), x.shape))
