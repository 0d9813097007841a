"""Mixtures of Gaussians: McLachlan & Peel 2000, https://doi.org/10.1002/0471721182."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

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
from gen.models.hmm.emissions import Gaussian, Moments, Normal
from gen.nets import flatten


class Params(NamedTuple):
    """The mixture's parameters."""

    log_weight: jax.Array  # log π up to a constant, [K]
    component: Normal  # means [K, D] and covariances


class Statistics(NamedTuple):
    """Expected sufficient statistics, the mean over training examples."""

    share: jax.Array  # E r_k(x), [K]
    moments: Moments  # of x about the means, weighted by r_k(x)


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

    The prior of each Σ_k acts as `prior` · N pseudo-observations of variance `variance` in every
    direction, where N is the number of training examples: a component of few examples tends to a
    ball of that variance. The data should be standardised. Values that are missing (NaN) are summed
    out.

    Deviations from Cappé & Moulines 2009:

    - A constant rate, in place of step sizes that fall to 0.
    """

    family: ClassVar[str] = "mixture"
    density: ClassVar[Density] = "tractable"
    levels: ClassVar[int] = 0
    missing: ClassVar[bool] = True

    score = objective = negative_log_prob

    shape: Shape = (2,)
    """shape of one example"""
    components: int = 20
    """number K of components"""
    covariance: Literal["full", "diagonal"] = "full"
    """form of the covariances"""
    rate: float = 1.0
    """weight of the batch in the statistics"""
    prior: float = 1e-2
    """pseudo-observations of each covariance, as a fraction of the training set"""
    variance: float = 0.1
    """variance of the pseudo-observations"""

    def __post_init__(self):
        check_fields(self, positive=("components", "rate", "prior", "variance"))

    @property
    def _law(self) -> Gaussian:
        """The law of one component."""
        return Gaussian(self.covariance, self.prior, self.variance)

    def init(self, key: jax.Array) -> State:
        """Set equal weights and the prior's variances, and draw the means from N(0, I)."""
        size, k = math.prod(self.shape), self.components
        component = self._law.init(key, k, size)
        x, weight = jnp.zeros((1, size)), jnp.zeros((1, k))
        moments = self._law.statistics(component, x, x == 0, weight)
        return State(Params(jnp.zeros(k), component), Statistics(jnp.zeros(k), moments))

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """Set the means to K drawn examples, with 0 for missing values."""
        x, k = flatten(batch["x"]), self.components
        rows = x[jax.random.choice(key, len(x), (k,), replace=k > len(x))]
        component = state.params.component._replace(mean=jnp.nan_to_num(rows))
        return state._replace(params=state.params._replace(component=component))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one step of EM; log −log p before it as `loss`."""
        # (1) Responsibilities r_k(x) = π_k p(x | k) / p(x), [B, K].
        params, (x, seen) = state.params, _observed(batch)
        joint = self._log_joint(params, x, seen)
        log_p = jax.nn.logsumexp(joint, axis=1)
        r = jnp.exp(joint - log_p[:, None])

        # (2) Expected sufficient statistics. Stepwise EM moves towards this batch's.
        moments = self._law.statistics(params.component, x, seen, r / len(x))
        of_batch, loss = pmean((Statistics(r.mean(0), moments), -log_p.mean()), axis_name)
        first_step = state.statistics.share.sum() == 0
        rate = jnp.where(first_step, 1.0, self.rate)
        share, moments = jax.tree.map(
            lambda old, new: (1 - rate) * old + rate * new, state.statistics, of_batch
        )

        # (3) M-step: π_k ∝ share_k, and the component's mean and covariance (`Gaussian.maximize`).
        # A component without examples keeps a weight above 0, so that log π is finite.
        component, moments = self._law.maximize(params.component, moments)
        params = Params(jnp.log(jnp.maximum(share, 1e-9)), component)
        return State(params, Statistics(share, moments)), {"loss": loss}

    def parameters(self, state: State) -> Any:
        """Return the weights, means and covariances."""
        return state.params

    def log_prob(self, state: State, batch: Batch) -> jax.Array:
        """Return log p(x), exact, [B] nats of a density."""
        return jax.nn.logsumexp(self._log_joint(state.params, *_observed(batch)), axis=1)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return −log p(x) as `nll`, exact."""
        nll = estimate.per_example(lambda batch, _: -self.log_prob(state, batch), data, key)
        return {"nll": estimate.mean(nll, "exact", density=True)}

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Draw k ~ π, then x ~ N(μ_k, Σ_k): [n, *shape]."""
        component_key, key = jax.random.split(key)
        k = jax.random.categorical(component_key, state.params.log_weight, shape=(n,))
        return self._law.sample(state.params.component, key, k).reshape(-1, *self.shape)

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return the responsibilities p(k | x), [B, K]."""
        return jax.nn.softmax(self._log_joint(state.params, *_observed(batch)), axis=1)

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """Draw k ~ p(k | shown), then the hidden variables from N(μ_k, Σ_k) given the shown."""
        component_key, key = jax.random.split(key)
        shown = flatten(jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)) & ~jnp.isnan(flatten(x))
        values = jnp.where(shown, flatten(x), 0.0)
        joint = self._log_joint(state.params, values, shown)
        k = jax.random.categorical(component_key, joint, axis=1)
        whole = self._law.complete(state.params.component, key, k, values, shown)
        return whole.reshape(x.shape)

    def _log_joint(self, params: Params, x: jax.Array, seen: jax.Array) -> jax.Array:
        """Return log π_k p(the seen variables of x | k), [B, K] nats."""
        weight = jax.nn.log_softmax(params.log_weight)[None]
        return weight + self._law.log_prob(params.component, x, seen)


def _observed(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return x [B, D] with 0 for missing values, and where it is not missing."""
    x = flatten(batch["x"])
    return jnp.nan_to_num(x), ~jnp.isnan(x)
