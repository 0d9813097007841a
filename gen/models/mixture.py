"""Mixtures of independent Bernoulli variables; with one component, independent pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gen import estimate, optimize
from gen.core import (
    Batch,
    Data,
    Density,
    Metrics,
    Shape,
    check_fields,
    negative_log_prob,
    pmean,
    require,
)
from gen.distributions import bernoulli_sample, logit
from gen.estimate import Estimate
from gen.levels import check_levels
from gen.nets import flatten
from gen.optimize import AnyOptimizer, Optimizer

PROBABILITY_FLOOR = 1e-3
"""The least probability of either value of a pixel in EM's prior and in its first components."""


class Params(NamedTuple):
    """The mixture's parameters as logits, so that gradient steps keep them in range."""

    weight: jax.Array  # [K], log π up to a constant
    pixel: jax.Array  # [K, D], log μ / (1 − μ)


class Statistics(NamedTuple):
    """Expected sufficient statistics of an example, under the responsibilities r_k(x)."""

    share: jax.Array  # [K], E r_k
    ones: jax.Array  # [K, D], E r_k x


class State(NamedTuple):
    """Everything that training changes."""

    params: Params
    memory: Any  # by EM: the Statistics; by gradient: the optimiser's state


@dataclass(frozen=True)
class Mixture:
    """p(x) = Σ_k π_k Π_d μ_kd^x_d (1 − μ_kd)^(1 − x_d), on binary x.

    By EM (Dempster, Laird & Rubin 1977, https://doi.org/10.1111/j.2517-6161.1977.tb01600.x), the
    E-step of a training step takes the responsibilities of its batch,

        r_k(x) = π_k p(x | k) / p(x),    s ← (1 − rate) s + rate · mean over the batch of (r, r x),

    and the M-step sets the parameters to the maximum of the expected log-likelihood under s. With
    `rate` 1 and the whole training set as the batch this is EM, else stepwise EM (Cappé & Moulines
    2009, https://arxiv.org/abs/0712.4273). `smoothing` is a prior (see `maximize`).

    By gradient, a step lowers −log p by an optimiser. Values of x between 0 and 1 are rounded in
    training, and `evaluate` refuses them.

    Deviations from Cappé & Moulines 2009:

    - The rate of stepwise EM is constant.
    """

    family: ClassVar[str] = "mixture"
    density: ClassVar[Density] = "tractable"
    levels: ClassVar[int] = 2

    score = objective = negative_log_prob

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    components: int = 500
    """number K of components (1: independent pixels)"""
    training: Literal["em", "gradient"] = "em"
    """expectation-maximisation, or gradient steps on −log p"""
    rate: float = 1.0
    """weight of the batch in the statistics (em)"""
    smoothing: float = 4e-5
    """pseudo-examples like the mean in each component, per training example (em)"""
    optimizer: AnyOptimizer = Optimizer("adam", learning_rate=1e-2)
    """optimiser (gradient)"""

    def __post_init__(self):
        check_fields(self, positive=("components", "rate", "smoothing"))
        require(self.rate <= 1, f"Mixture: rate is {self.rate}, must be at most 1")

    def init(self, key: jax.Array) -> State:
        """Return equal weights and pixels μ uniform in [0.25, 0.75]; EM's statistics are empty."""
        size = math.prod(self.shape)
        mu = jax.random.uniform(key, (self.components, size), minval=0.25, maxval=0.75)
        params = Params(jnp.zeros(self.components), logit(mu))
        if self.training == "gradient":
            return State(params, optimize.init(self.optimizer, params))
        return State(params, Statistics(jnp.zeros(self.components), jnp.zeros_like(mu)))

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """Let EM start from K training examples, drawn: each μ lies halfway to the mean."""
        if self.training == "gradient":
            return state
        x, k = _bits(batch), self.components
        rows = x[jax.random.choice(key, len(x), (k,), replace=k > len(x))]
        halfway = 0.5 * (rows + x.mean(0)[None])
        mu = jnp.clip(halfway, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
        return state._replace(params=Params(jnp.zeros(k), logit(mu)))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one EM step or one gradient step; log −log p before it as `loss`."""
        x = _bits(batch)
        if self.training == "gradient":

            def loss(params):
                nll = -jax.nn.logsumexp(log_joint(params, x), axis=1).mean()
                return nll, {"loss": nll}

            gradient, metrics = optimize.gradient(loss, state.params, axis_name)
            return State(
                *optimize.update(self.optimizer, gradient, state.memory, state.params)
            ), metrics

        # 1. E-step: the responsibilities, and the statistics of the batch.
        joint = log_joint(state.params, x)
        log_p = jax.nn.logsumexp(joint, axis=1)
        r = jnp.exp(joint - log_p[:, None])
        batch_statistics = Statistics(r.mean(0), r.T @ x / len(x))
        batch_statistics, nll = pmean((batch_statistics, -log_p.mean()), axis_name)
        # 2. Stepwise EM: a running mean of the statistics, which begins at the first batch's.
        rate = jnp.where(state.memory.share.sum() == 0, 1.0, self.rate)
        statistics = jax.tree.map(
            lambda old, new: (1 - rate) * old + rate * new, state.memory, batch_statistics
        )
        # 3. M-step.
        return State(self.maximize(statistics), statistics), {"loss": nll}

    def maximize(self, statistics: Statistics) -> Params:
        """Return the parameters of the M-step.

        With the smoothing s and the mean x̄ = Σ_k ones_k over all components,

            π_k ∝ share_k + s,    μ_kd = (ones_kd + s x̄_d) / (share_k + s)

        maximise Σ_k E r_k log π_k p(x | k) + s Σ_k (log π_k + Σ_d x̄_d log μ_kd +
        (1 − x̄_d) log(1 − μ_kd)): the prior draws every component towards independent pixels. x̄ is
        kept away from 0 and 1 by PROBABILITY_FLOOR.
        """
        share, ones = statistics.share[:, None], statistics.ones
        mean = (ones.sum(0) + PROBABILITY_FLOOR) / (share.sum() + 2 * PROBABILITY_FLOOR)
        zeros = jnp.maximum(share - ones, 0.0)  # rounding can take it below
        return Params(
            jnp.log(statistics.share + self.smoothing),
            jnp.log(ones + self.smoothing * mean[None])
            - jnp.log(zeros + self.smoothing * (1 - mean[None])),
        )

    def parameters(self, state: State) -> Any:
        """Return π and μ, as logits."""
        return state.params

    def log_prob(self, state: State, batch: Batch) -> jax.Array:
        """Return log p(x), exact, [B] nats."""
        return jax.nn.logsumexp(log_joint(state.params, _bits(batch)), axis=1)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return −log p(x) as `nll`, exact. Raises `UserError` if x is not binary."""
        check_levels(data, 2)
        nll = -estimate.per_example(lambda batch, _: self.log_prob(state, batch), data, key)
        return {"nll": estimate.mean(nll, "exact")}

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Draw k ~ π, then x ~ p(x | k): [n, *shape]."""
        component_key, pixel_key = jax.random.split(key)
        k = jax.random.categorical(component_key, state.params.weight, shape=(n,))
        return bernoulli_sample(pixel_key, state.params.pixel[k]).reshape(-1, *self.shape)

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return the responsibilities p(k | x), [B, K]."""
        return jax.nn.softmax(log_joint(state.params, _bits(batch)), axis=1)

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """Return x with its hidden pixels drawn from p(hidden | shown), exactly.

        k ~ p(k | shown), then the hidden pixels are drawn given k.
        """
        component_key, pixel_key = jax.random.split(key)
        mask = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        joint = log_joint(state.params, jnp.round(flatten(x)), flatten(mask))
        k = jax.random.categorical(component_key, joint, axis=1)
        drawn = bernoulli_sample(pixel_key, state.params.pixel[k])
        return jnp.where(mask, jnp.round(x), drawn.reshape(x.shape))


def log_joint(params: Params, x: jax.Array, shown: jax.Array | None = None) -> jax.Array:
    """Return log π_k p(x | k), [B, K] nats.

    log p(x | k) = Σ_d x_d l_kd − log(1 + exp l_kd), which is two matrix products.

    Args:
      params: the mixture's parameters.
      x: binary examples, [B, D].
      shown: where x is shown, [B, D]; the other pixels are summed out. None: everywhere.
    """
    weight = jax.nn.log_softmax(params.weight)[None]
    normaliser = jax.nn.softplus(params.pixel)
    if shown is None:
        return weight + x @ params.pixel.T - normaliser.sum(1)[None]
    seen = shown.astype(x.dtype)
    return weight + (x * seen) @ params.pixel.T - seen @ normaliser.T


def _bits(batch: Batch) -> jax.Array:
    """Return x [B, D], rounded to 0 or 1."""
    return jnp.round(flatten(batch["x"]))
