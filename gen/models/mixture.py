"""Mixtures of independent Bernoulli variables; with one component, independent variables."""

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
from gen.levels import check_levels, to_floats
from gen.nets import flatten
from gen.optimize import AnyOptimizer, Optimizer

FLOOR = 1e-3
"""A lower bound on the probability of either value, in EM's first components and its prior.

Some variables have one value in all training examples. A probability of exactly 0 for the other
value has no finite logit, and gives probability 0 to every example that has it.
"""


class Params(NamedTuple):
    """The mixture's parameters as logits, so that gradient steps keep them in range."""

    log_weight: jax.Array  # [K], log π up to a constant
    log_odds: jax.Array  # [K, D], log μ / (1 − μ)


class Statistics(NamedTuple):
    """Expected sufficient statistics, the mean over training examples."""

    share: jax.Array  # [K], E r_k(x)
    ones: jax.Array  # [K, D], E r_k(x) x


class State(NamedTuple):
    """Everything that training changes."""

    params: Params
    statistics: Any  # em: Statistics, all 0 before the first step; gradient: ()
    opt_state: Any  # gradient: the optimiser's state; em: ()


@dataclass(frozen=True)
class Mixture:
    """p(x) = Σ_k π_k Π_d μ_kd^x_d (1 − μ_kd)^(1 − x_d), for binary x.

    Training by EM (Dempster, Laird & Rubin 1977,
    https://doi.org/10.1111/j.2517-6161.1977.tb01600.x): the E-step takes the responsibilities of
    the components for each example of the batch, and from them the expected sufficient statistics,

        r_k(x) = p(k | x) = π_k p(x | k) / p(x),
        s ← (1 − rate) s + rate · mean over the batch of (r_k(x), r_k(x) x).

    The M-step sets the parameters to the most likely ones under s. With `rate` 1 and the whole
    training set as the batch this is EM; otherwise it is stepwise EM (Cappé & Moulines 2009,
    https://arxiv.org/abs/0712.4273). The first step takes rate 1. With the prior `smoothing`, EM
    maximises the posterior of the parameters: the prior draws every component towards independent
    variables.

    Training by gradient minimises −log p(x), without the prior.

    Values of x between 0 and 1 are rounded, and `evaluate` refuses them.

    Deviations from Cappé & Moulines 2009:

    - A constant rate, in place of step sizes that fall to 0.
    """

    family: ClassVar[str] = "mixture"
    density: ClassVar[Density] = "tractable"
    levels: ClassVar[int] = 2

    score = objective = negative_log_prob

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    components: int = 500
    """number K of components (1: independent variables)"""
    training: Literal["em", "gradient"] = "em"
    """EM, or gradient descent on −log p"""
    rate: float = 1.0
    """weight of the batch in the statistics (em)"""
    smoothing: float = 4e-5
    """weight of the prior: the number of examples, each equal to the data mean, that it adds to
    every component, as a fraction of the training set (em)"""
    optimizer: AnyOptimizer = Optimizer("adam", learning_rate=1e-2)
    """optimiser (gradient)"""

    def __post_init__(self):
        check_fields(self, positive=("components", "rate", "smoothing"))
        require(self.rate <= 1, f"Mixture: rate is {self.rate}, must be at most 1")

    def init(self, key: jax.Array) -> State:
        """Set equal weights π, and draw each μ uniformly from [0.25, 0.75]."""
        size = (self.components, math.prod(self.shape))
        mu = jax.random.uniform(key, size, minval=0.25, maxval=0.75)
        params = Params(jnp.zeros(self.components), logit(mu))
        if self.training == "gradient":
            return State(params, (), optimize.init(self.optimizer, params))
        return State(params, Statistics(jnp.zeros(self.components), jnp.zeros(size)), ())

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """Start EM from K drawn training examples: each μ is halfway between one and the mean."""
        if self.training == "gradient":
            return state
        x, k = _bits(batch), self.components
        rows = x[jax.random.choice(key, len(x), (k,), replace=k > len(x))]
        mu = jnp.clip(0.5 * (rows + x.mean(0)[None]), FLOOR, 1 - FLOOR)
        return state._replace(params=Params(jnp.zeros(k), logit(mu)))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one step of EM, or one optimiser step; log −log p before it as `loss`."""
        if self.training == "em":
            return self._em(state, batch, axis_name)

        def loss(params):
            nll = -self.log_prob(state._replace(params=params), batch).mean()
            return nll, {"loss": nll}

        gradient, metrics = optimize.gradient(loss, state.params, axis_name)
        params, opt_state = optimize.update(self.optimizer, gradient, state.opt_state, state.params)
        return State(params, (), opt_state), metrics

    def _em(self, state: State, batch: Batch, axis_name: str | None) -> tuple[State, Metrics]:
        """Take one step of EM: the E-step (1) and (2), the M-step (3)."""
        # (1) Responsibilities r_k(x) = π_k p(x | k) / p(x), [B, K].
        x = _bits(batch)
        joint = log_joint(state.params, x)
        log_p = jax.nn.logsumexp(joint, axis=1)
        r = jnp.exp(joint - log_p[:, None])

        # (2) Expected sufficient statistics. Stepwise EM moves towards this batch's.
        found, loss = pmean((Statistics(r.mean(0), r.T @ x / len(x)), -log_p.mean()), axis_name)
        first_step = state.statistics.share.sum() == 0
        rate = jnp.where(first_step, 1.0, self.rate)
        statistics = jax.tree.map(
            lambda old, new: (1 - rate) * old + rate * new, state.statistics, found
        )

        # (3) M-step. With the smoothing s and the mean x̄ = Σ_k ones_k of all examples,
        #         π_k ∝ share_k + s,    μ_kd = (ones_kd + s x̄_d) / (share_k + s)
        # maximise Σ_k E r_k log π_k p(x | k) + s Σ_k (log π_k + Σ_d x̄_d log μ_kd +
        # (1 − x̄_d) log(1 − μ_kd)). FLOOR keeps x̄ away from 0 and 1.
        (share, ones), s = statistics, self.smoothing
        mean = ((ones.sum(0) + FLOOR) / (share.sum() + 2 * FLOOR))[None]
        zeros = jnp.maximum(share[:, None] - ones, 0.0)  # rounding can take it below 0
        log_odds = jnp.log(ones + s * mean) - jnp.log(zeros + s * (1 - mean))
        return State(Params(jnp.log(share + s), log_odds), statistics, ()), {"loss": loss}

    def parameters(self, state: State) -> Any:
        """Return the logits of π and μ."""
        return state.params

    def log_prob(self, state: State, batch: Batch) -> jax.Array:
        """Return log p(x), exact, [B] nats."""
        return jax.nn.logsumexp(log_joint(state.params, _bits(batch)), axis=1)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return −log p(x) as `nll`, exact."""
        check_levels(data, self.levels)
        nll = estimate.per_example(lambda batch, _: -self.log_prob(state, batch), data, key)
        return {"nll": estimate.mean(nll, "exact")}

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Draw k ~ π, then x ~ p(x | k): [n, *shape]."""
        component_key, x_key = jax.random.split(key)
        k = jax.random.categorical(component_key, state.params.log_weight, shape=(n,))
        return bernoulli_sample(x_key, state.params.log_odds[k]).reshape(-1, *self.shape)

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return the responsibilities p(k | x), [B, K]."""
        return jax.nn.softmax(log_joint(state.params, _bits(batch)), axis=1)

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """Draw k ~ p(k | shown), then the hidden variables given k, from p(hidden | shown)."""
        component_key, x_key = jax.random.split(key)
        x = to_floats(x, self.levels)
        mask = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        joint = log_joint(state.params, jnp.round(flatten(x)), flatten(mask))
        k = jax.random.categorical(component_key, joint, axis=1)
        drawn = bernoulli_sample(x_key, state.params.log_odds[k])
        return jnp.where(mask, jnp.round(x), drawn.reshape(x.shape))

    def conditional_log_prob(self, state: State, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Return log p(hidden | shown) = log Σ_k π_k p(x | k) − log Σ_k π_k p(shown | k), [B]."""
        bits = _bits({"x": x})
        shown = flatten(jnp.broadcast_to(jnp.asarray(mask, bool), x.shape))
        joint, of_shown = log_joint(state.params, bits), log_joint(state.params, bits, shown)
        return jax.nn.logsumexp(joint, axis=1) - jax.nn.logsumexp(of_shown, axis=1)


def log_joint(params: Params, x: jax.Array, shown: jax.Array | None = None) -> jax.Array:
    """Return log π_k p(x | k), [B, K] nats.

    log p(x | k) = Σ_d x_d l_kd − log(1 + exp l_kd), which is two matrix products.

    Args:
      params: the mixture's parameters.
      x: binary examples, [B, D].
      shown: where x is shown, [B, D]; the other pixels are summed out. None: everywhere.
    """
    weight = jax.nn.log_softmax(params.log_weight)[None]
    normaliser = jax.nn.softplus(params.log_odds)
    if shown is None:
        return weight + x @ params.log_odds.T - normaliser.sum(1)[None]
    seen = shown.astype(x.dtype)
    return weight + (x * seen) @ params.log_odds.T - seen @ normaliser.T


def _bits(batch: Batch) -> jax.Array:
    """Return x [B, D], rounded to 0 or 1."""
    return jnp.round(flatten(to_floats(batch["x"], Mixture.levels)))
