"""Mixtures of independent Bernoulli variables; with one component, independent pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen import estimate
from gen.core import (
    Batch,
    Data,
    Density,
    Metrics,
    Shape,
    adam,
    check_levels,
    descend,
    pmean,
    require,
)
from gen.estimate import Estimate
from gen.nets import flatten

FLOOR = 1e-3  # the least probability that EM's prior and start give either value of a pixel


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
    memory: Any  # by EM: the Statistics; by gradient: Adam's two moments and its step count


@dataclass(frozen=True)
class Mixture:
    """p(x) = Σ_k π_k Π_d μ_kd^x_d (1 − μ_kd)^(1 − x_d), on binary x.

    By EM, a step takes the responsibilities of its batch,

        r_k(x) = π_k p(x | k) / p(x),    s ← (1 − rate) s + rate · mean over the batch of (r, r x),

    and sets the parameters to what maximises the expected log-likelihood under s: with `rate` 1 and
    the whole training set as the batch this is EM (Dempster, Laird & Rubin 1977), else stepwise EM
    (Cappé & Moulines 2009, but at a constant rate). `smoothing` is a prior (see `maximize`).

    By gradient, a step lowers −log p by Adam. Values of x between 0 and 1 are rounded; `evaluate`
    refuses them.
    """

    family: ClassVar[str] = "mixture"
    density: ClassVar[Density] = "tractable"
    levels: ClassVar[int] = 2

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    components: int = 500
    """number K of components (1: independent pixels)"""
    training: Literal["em", "gradient"] = "em"
    """how a step learns"""
    rate: float = 1.0
    """weight of the batch in the statistics (em)"""
    smoothing: float = 4e-5
    """pseudo-examples like the mean that a component is given, per training example (em)"""
    learning_rate: float = 1e-2
    """step size of Adam (gradient)"""
    decay_steps: int = 0
    """let the step size fall to 0 over so many steps, along a cosine (gradient; 0: constant)"""

    def __post_init__(self):
        require(self.components > 0, f"Mixture: components is {self.components}, must be positive")
        require(0 < self.rate <= 1, f"Mixture: rate is {self.rate}, must be in (0, 1]")
        require(self.smoothing > 0, f"Mixture: smoothing is {self.smoothing}, must be positive")

    def init(self, key: jax.Array) -> State:
        """Equal weights; pixels μ uniform in [0.25, 0.75]. EM's statistics are still empty."""
        size = math.prod(self.shape)
        mu = jax.random.uniform(key, (self.components, size), minval=0.25, maxval=0.75)
        params = Params(jnp.zeros(self.components), logit(mu))
        if self.training == "gradient":
            return State(params, self._optimizer.init(params))
        return State(params, Statistics(jnp.zeros(self.components), jnp.zeros_like(mu)))

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """EM starts from K training examples, drawn: each μ lies halfway between one of them and
        the mean."""
        if self.training == "gradient":
            return state
        x, k = _bits(batch), self.components
        rows = x[jax.random.choice(key, len(x), (k,), replace=k > len(x))]
        mu = jnp.clip(0.5 * (rows + x.mean(0)[None]), FLOOR, 1 - FLOOR)
        return state._replace(params=Params(jnp.zeros(k), logit(mu)))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """One EM update, or one Adam step; logs −log p before it as `loss`."""
        x = _bits(batch)
        if self.training == "gradient":

            def nll(params):
                value = -jax.nn.logsumexp(log_joint(params, x), axis=1).mean()
                return value, {"loss": value}

            params, opt_state, metrics = descend(
                nll, self._optimizer, state.params, state.memory, axis_name
            )
            return State(params, opt_state), metrics

        joint = log_joint(state.params, x)
        log_p = jax.nn.logsumexp(joint, axis=1)
        r = jnp.exp(joint - log_p[:, None])
        found = Statistics(r.mean(0), r.T @ x / len(x))
        found, loss = pmean((found, -log_p.mean()), axis_name)
        rate = jnp.where(state.memory.share.sum() == 0, 1.0, self.rate)
        statistics = jax.tree.map(
            lambda old, new: (1 - rate) * old + rate * new, state.memory, found
        )
        return State(self.maximize(statistics), statistics), {"loss": loss}

    def maximize(self, statistics: Statistics) -> Params:
        """The M-step: with the smoothing s and the mean x̄ = Σ_k ones_k over all components,

            π_k ∝ share_k + s,    μ_kd = (ones_kd + s x̄_d) / (share_k + s),

        which maximises Σ_k E r_k log π_k p(x | k) + s Σ_k (log π_k + Σ_d x̄_d log μ_kd +
        (1 − x̄_d) log(1 − μ_kd)): every component is drawn towards independent pixels. x̄ is kept
        off 0 and 1 by FLOOR.
        """
        share, ones = statistics.share[:, None], statistics.ones
        mean = (ones.sum(0) + FLOOR) / (share.sum() + 2 * FLOOR)
        zeros = jnp.maximum(share - ones, 0.0)  # rounding can take it below
        return Params(
            jnp.log(statistics.share + self.smoothing),
            jnp.log(ones + self.smoothing * mean[None])
            - jnp.log(zeros + self.smoothing * (1 - mean[None])),
        )

    def parameters(self, state: State) -> Any:
        """π and μ."""
        return state.params

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """−log p(x), [B] nats."""
        return -self.log_prob(state, batch)

    def log_prob(self, state: State, batch: Batch) -> jax.Array:
        """log p(x), exact, [B] nats."""
        return jax.nn.logsumexp(log_joint(state.params, _bits(batch)), axis=1)

    def score(self, state: State, batch: Batch) -> jax.Array:
        """−log p(x), [B] nats."""
        return -self.log_prob(state, batch)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """−log p(x) as `nll`, exact. Raises `UserError` if x is not binary."""
        check_levels(data, 2)
        nll = -estimate.per_example(lambda batch, _: self.log_prob(state, batch), data, key)
        return {"nll": estimate.mean(nll, "exact")}

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """k ~ π, then x ~ p(x | k): [n, *shape]."""
        component_key, pixel_key = jax.random.split(key)
        k = jax.random.categorical(component_key, state.params.weight, shape=(n,))
        return self._pixels(state.params.pixel[k], pixel_key)

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """The responsibilities p(k | x), [B, K]."""
        return jax.nn.softmax(log_joint(state.params, _bits(batch)), axis=1)

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """x [B, *shape], with what `mask` (1: shown) hides drawn from p(hidden | shown), exactly:
        k ~ p(k | shown), then the hidden pixels given k."""
        component_key, pixel_key = jax.random.split(key)
        mask = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        joint = log_joint(state.params, jnp.round(flatten(x)), flatten(mask))
        k = jax.random.categorical(component_key, joint, axis=1)
        return jnp.where(mask, jnp.round(x), self._pixels(state.params.pixel[k], pixel_key))

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, self.decay_steps)

    def _pixels(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        x = jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(jnp.float32)
        return x.reshape(-1, *self.shape)


def logit(mu: jax.Array) -> jax.Array:
    """log μ / (1 − μ)."""
    return jnp.log(mu) - jnp.log1p(-mu)


def log_joint(params: Params, x: jax.Array, shown: jax.Array | None = None) -> jax.Array:
    """log π_k p(x | k) for x [B, D] in {0, 1}: [B, K]; over the `shown` pixels alone, if given.

    log p(x | k) = Σ_d x_d l_kd − log(1 + exp l_kd), two matrix products.
    """
    weight = jax.nn.log_softmax(params.weight)[None]
    normaliser = jax.nn.softplus(params.pixel)
    if shown is None:
        return weight + x @ params.pixel.T - normaliser.sum(1)[None]
    seen = shown.astype(x.dtype)
    return weight + (x * seen) @ params.pixel.T - seen @ normaliser.T


def _bits(batch: Batch) -> jax.Array:
    """x [B, D], rounded to 0 or 1."""
    return jnp.round(flatten(batch["x"]))
