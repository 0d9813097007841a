"""What a state of a hidden Markov model emits: one law p(x_t | z_t = k) for each state k.

An emission is a frozen dataclass of hyperparameters; `Emission` says what its functions compute.
Shapes: N observations, D variables in each, K states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from gen.core import require

LEAST = 1e-30
"""Counts and rates are kept above this, so that no logarithm is infinite: −69 nats at least."""


class Emission(Protocol):
    """Log-probabilities, and the two halves of an EM step.

    `seen` [N, D] marks what was observed; the rest is summed out. Statistics are sums over
    observations, so those of parts of the data add up, and averages of them have a meaning.
    """

    def init(self, key: jax.Array, states: int, size: int) -> Any:
        """Random parameters, a NamedTuple of arrays [K, ...]."""
        ...

    def log_prob(self, params: Any, x: jax.Array, seen: jax.Array) -> jax.Array:
        """log p(x_n, where seen | k), [N, K] nats."""
        ...

    def statistics(self, params: Any, x: jax.Array, seen: jax.Array, weight: jax.Array) -> Any:
        """Expected sufficient statistics, each observation counting for state k by
        `weight` [N, K]."""
        ...

    def maximize(self, params: Any, statistics: Any) -> tuple[Any, Any]:
        """The M-step: the parameters under which the statistics are likeliest, and the statistics
        as they stand with respect to those. `params` are the ones that they were taken under."""
        ...

    def sample(self, params: Any, key: jax.Array, k: jax.Array) -> jax.Array:
        """x ~ p(x | k) for states k [N]: [N, D]."""
        ...

    def fill(
        self, params: Any, key: jax.Array, k: jax.Array, x: jax.Array, seen: jax.Array
    ) -> jax.Array:
        """x with what was not seen drawn from p(· | k, what was), [N, D]."""
        ...

    def table(self, params: Any) -> jax.Array:
        """The mean of each variable in each state, or of one variable its law: [K, ·]."""
        ...


class Logits(NamedTuple):
    """Of Bernoulli variables, or of the levels of categorical ones."""

    logits: jax.Array  # [K, D] or [K, D, L]


class Counts(NamedTuple):
    """Expected counts."""

    of: jax.Array  # of each value: [K, D] of ones, or [K, D, L]
    total: jax.Array  # of observations, [K, D]


@dataclass(frozen=True)
class Bernoulli:
    """Independent binary variables: p(x | k) = Π_d μ_kd^x_d (1 − μ_kd)^(1 − x_d)."""

    prior: float = 1e-4
    """pseudo-observations like the mean that a state is given, per training sequence (em)"""

    levels: ClassVar[int] = 2

    def __post_init__(self):
        check_prior(self)

    def init(self, key: jax.Array, states: int, size: int) -> Logits:
        mu = jax.random.uniform(key, (states, size), minval=0.25, maxval=0.75)
        return Logits(jnp.log(mu) - jnp.log1p(-mu))

    def log_prob(self, params: Logits, x: jax.Array, seen: jax.Array) -> jax.Array:
        ones = jnp.where(seen, jnp.round(x), 0.0)
        return ones @ params.logits.T - seen.astype(x.dtype) @ jax.nn.softplus(params.logits).T

    def statistics(
        self, params: Logits, x: jax.Array, seen: jax.Array, weight: jax.Array
    ) -> Counts:
        ones = jnp.where(seen, jnp.round(x), 0.0)
        return Counts(weight.T @ ones, weight.T @ seen.astype(x.dtype))

    def maximize(self, params: Logits, statistics: Counts) -> tuple[Logits, Counts]:
        """μ = (ones + s x̄) / (total + s), with the prior's s and x̄ the mean over all states."""
        ones, total = statistics
        mean = ones.sum(0) / jnp.maximum(total.sum(0), LEAST)
        zeros = jnp.maximum(total - ones, 0.0)  # rounding can take it below
        return Logits(
            jnp.log(jnp.maximum(ones + self.prior * mean[None], LEAST))
            - jnp.log(jnp.maximum(zeros + self.prior * (1 - mean[None]), LEAST))
        ), statistics

    def sample(self, params: Logits, key: jax.Array, k: jax.Array) -> jax.Array:
        return jax.random.bernoulli(key, jax.nn.sigmoid(params.logits)[k]).astype(jnp.float32)

    def fill(
        self, params: Logits, key: jax.Array, k: jax.Array, x: jax.Array, seen: jax.Array
    ) -> jax.Array:
        return jnp.where(seen, jnp.round(x), self.sample(params, key, k))

    def table(self, params: Logits) -> jax.Array:
        return jax.nn.sigmoid(params.logits)


@dataclass(frozen=True)
class Categorical:
    """Independent variables of L levels, which stand for 0, 1 / (L − 1), … 1 in x."""

    levels: int = 2
    """number L of values that a variable can take"""
    prior: float = 1e-4
    """pseudo-observations like the mean that a state is given, per training sequence (em)"""

    def __post_init__(self):
        check_prior(self)
        require(self.levels > 1, f"Categorical: levels is {self.levels}, must be 2 or more")

    def init(self, key: jax.Array, states: int, size: int) -> Logits:
        return Logits(0.5 * jax.random.normal(key, (states, size, self.levels)))

    def log_prob(self, params: Logits, x: jax.Array, seen: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(params.logits)
        return self._one_hot(x, seen) @ log_p.reshape(len(log_p), -1).T

    def statistics(
        self, params: Logits, x: jax.Array, seen: jax.Array, weight: jax.Array
    ) -> Counts:
        counts = (weight.T @ self._one_hot(x, seen)).reshape(params.logits.shape)
        return Counts(counts, counts.sum(2))

    def maximize(self, params: Logits, statistics: Counts) -> tuple[Logits, Counts]:
        """p ∝ counts + s p̄, with the prior's s and p̄ the frequencies over all states."""
        counts, total = statistics
        mean = counts.sum(0) / jnp.maximum(total.sum(0), LEAST)[:, None]
        p = (counts + self.prior * mean[None]) / jnp.maximum(total + self.prior, LEAST)[..., None]
        return Logits(jnp.log(jnp.maximum(p, LEAST))), statistics

    def sample(self, params: Logits, key: jax.Array, k: jax.Array) -> jax.Array:
        return jax.random.categorical(key, params.logits[k]) / (self.levels - 1)

    def fill(
        self, params: Logits, key: jax.Array, k: jax.Array, x: jax.Array, seen: jax.Array
    ) -> jax.Array:
        return jnp.where(seen, x, self.sample(params, key, k))

    def table(self, params: Logits) -> jax.Array:
        p = jax.nn.softmax(params.logits)
        return p[:, 0] if p.shape[1] == 1 else p @ jnp.linspace(0, 1, self.levels)

    def _one_hot(self, x: jax.Array, seen: jax.Array) -> jax.Array:
        """[N, D · L], zeros where nothing was seen."""
        level = jnp.round(jnp.where(seen, x, 0.0) * (self.levels - 1)).astype(jnp.int32)
        level = jnp.clip(level, 0, self.levels - 1)  # else it would count as missing
        return (jax.nn.one_hot(level, self.levels) * seen[..., None]).reshape(len(x), -1)


class Rates(NamedTuple):
    """Of Poisson variables."""

    log_rate: jax.Array  # [K, D], log λ


@dataclass(frozen=True)
class Poisson:
    """Independent counts: p(x | k) = Π_d λ_kd^x_d exp(−λ_kd) / x_d!."""

    prior: float = 1e-4
    """pseudo-observations like the mean that a state is given, per training sequence (em)"""

    def __post_init__(self):
        check_prior(self)

    def init(self, key: jax.Array, states: int, size: int) -> Rates:
        return Rates(jax.random.normal(key, (states, size)))

    def log_prob(self, params: Rates, x: jax.Array, seen: jax.Array) -> jax.Array:
        """In Loader's form (2000), in which x log λ and log x! do not cancel: with Stirling's δ,

        log p(x) = −(x log(x / λ) + λ − x) − ½ log 2πx − δ(x),    log p(0) = −λ.
        """
        counts = jnp.where(seen & (x > 0), x, 1.0)
        own = 0.5 * jnp.log(2 * math.pi * counts) + stirling_error(counts)
        rate = jnp.exp(params.log_rate)[None]
        log_ratio = jnp.log(counts)[:, None] - params.log_rate[None]
        each = -(counts[:, None] * log_ratio + rate - counts[:, None]) - own[:, None]
        each = jnp.where((x > 0)[:, None], each, -rate)
        return jnp.where(seen[:, None], each, 0.0).sum(2)

    def statistics(self, params: Rates, x: jax.Array, seen: jax.Array, weight: jax.Array) -> Counts:
        return Counts(weight.T @ jnp.where(seen, x, 0.0), weight.T @ seen.astype(x.dtype))

    def maximize(self, params: Rates, statistics: Counts) -> tuple[Rates, Counts]:
        """λ = (Σ x + s x̄) / (total + s), with the prior's s and x̄ the mean over all states."""
        of, total = statistics
        mean = of.sum(0) / jnp.maximum(total.sum(0), LEAST)
        rate = (of + self.prior * mean[None]) / jnp.maximum(total + self.prior, LEAST)
        return Rates(jnp.log(jnp.maximum(rate, LEAST))), statistics

    def sample(self, params: Rates, key: jax.Array, k: jax.Array) -> jax.Array:
        return jax.random.poisson(key, jnp.exp(params.log_rate)[k]).astype(jnp.float32)

    def fill(
        self, params: Rates, key: jax.Array, k: jax.Array, x: jax.Array, seen: jax.Array
    ) -> jax.Array:
        return jnp.where(seen, x, self.sample(params, key, k))

    def table(self, params: Rates) -> jax.Array:
        return jnp.exp(params.log_rate)


def stirling_error(x: jax.Array) -> jax.Array:
    """δ(x) = log x! − (x log x − x + ½ log 2πx), for x ≥ 1; 1 / 12x − … where x is large."""
    log_x = jnp.log(x)
    small = jax.scipy.special.gammaln(x + 1) - (
        x * log_x - x + 0.5 * (math.log(2 * math.pi) + log_x)
    )
    inverse = 1 / x
    large = inverse * (1 / 12 - inverse**2 * (1 / 360 - inverse**2 / 1260))
    return jnp.where(x < 10, small, large)


class Normal(NamedTuple):
    """Of Gaussian variables."""

    mean: jax.Array  # [K, D]
    spread: jax.Array  # diagonal: [K, D], log σ²; full: [K, D, D], see `factor`


class Moments(NamedTuple):
    """Expected moments about the mean that the parameters had, which keeps them accurate."""

    total: jax.Array  # of observations, [K, D] or [K]
    first: jax.Array  # Σ (x − μ), [K, D]
    second: jax.Array  # Σ (x − μ)², [K, D], or Σ (x − μ)(x − μ)ᵀ, [K, D, D]


@dataclass(frozen=True)
class Gaussian:
    """N(x; μ_k, Σ_k), Σ_k diagonal or full.

    Where some variables of an observation are missing, a full Σ costs a Cholesky factor for each
    observation and state; under `vmap` it does so even where none are.

    The prior is an inverse Wishart law, as its pseudo-observations of variance v have it: where S
    is the sum of n squared deviations, Σ_k = (S + s v I) / (n + s). The mean has none.
    """

    covariance: Literal["diagonal", "full"] = "diagonal"
    """form of Σ"""
    prior: float = 1e-2
    """pseudo-observations s that a state's covariance is given, per training sequence (em)"""
    variance: float = 1.0
    """the variance v of them"""

    def __post_init__(self):
        check_prior(self)
        require(self.variance > 0, f"Gaussian: variance is {self.variance}, must be positive")

    def init(self, key: jax.Array, states: int, size: int) -> Normal:
        """Means from N(0, I), covariances v I."""
        full = self.covariance == "full"
        log_variance = jnp.full((states, size), math.log(self.variance))
        spread = diagonals(log_variance / 2) if full else log_variance
        return Normal(jax.random.normal(key, (states, size)), spread)

    def log_prob(self, params: Normal, x: jax.Array, seen: jax.Array) -> jax.Array:
        if self.covariance == "full":
            return jax.lax.cond(whole(seen), _full_log_prob, _partial_log_prob, params, x, seen)
        return _diagonal_log_prob(params, x, seen)

    def statistics(
        self, params: Normal, x: jax.Array, seen: jax.Array, weight: jax.Array
    ) -> Moments:
        if self.covariance == "full":
            return jax.lax.cond(
                whole(seen), _full_statistics, _partial_statistics, params, x, seen, weight
            )
        return _diagonal_statistics(params, x, seen, weight)

    def maximize(self, params: Normal, statistics: Moments) -> tuple[Normal, Moments]:
        full = self.covariance == "full"
        total, first, second = statistics
        n = jnp.maximum(total, LEAST)
        shift = first / (n[:, None] if full else n)
        if full:
            second -= first[:, :, None] * shift[:, None]
            prior = self.prior * self.variance * jnp.eye(first.shape[1])
            spread = factor((second + prior[None]) / (n + self.prior)[:, None, None])
        else:
            second = jnp.maximum(second - first * shift, 0.0)
            variance = (second + self.prior * self.variance) / (n + self.prior)
            spread = jnp.log(jnp.maximum(variance, LEAST))
        return Normal(params.mean + shift, spread), Moments(total, jnp.zeros_like(first), second)

    def sample(self, params: Normal, key: jax.Array, k: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, (len(k), params.mean.shape[1]))
        if self.covariance == "full":
            return params.mean[k] + jnp.einsum("nde,ne->nd", unfactor(params.spread)[k], noise)
        return params.mean[k] + jnp.exp(0.5 * params.spread)[k] * noise

    def fill(
        self, params: Normal, key: jax.Array, k: jax.Array, x: jax.Array, seen: jax.Array
    ) -> jax.Array:
        """A full covariance corrects a free draw y by what was seen (Matheron's rule):
        y + Σ_·s Σ_ss⁻¹ (x_s − y_s)."""
        drawn = self.sample(params, key, k)
        if self.covariance == "full":
            root = unfactor(params.spread)
            gain = _gain((root @ root.mT)[k], seen)
            difference = jnp.where(seen, x - drawn, 0.0)
            drawn += jnp.einsum("nde,ne->nd", gain, difference)
        return jnp.where(seen, x, drawn)

    def table(self, params: Normal) -> jax.Array:
        return params.mean


class Mixed(NamedTuple):
    """Of mixtures of M Gaussians."""

    weight: jax.Array  # [K, M], log π up to a constant
    component: Normal  # arrays [K · M, ...]


@dataclass(frozen=True)
class GaussianMixture:
    """Σ_m π_km N(x; μ_km, Σ_km) with diagonal Σ_km; the prior is that of `Gaussian`."""

    components: int = 3
    """number M of Gaussians in each state"""
    prior: float = 1e-2
    """pseudo-observations that a component is given, per training sequence (em)"""
    variance: float = 1.0
    """the variance of them"""

    def __post_init__(self):
        check_prior(self)
        require(self.variance > 0, f"GaussianMixture: variance is {self.variance}, must be > 0")
        require(
            self.components > 0,
            f"GaussianMixture: components is {self.components}, must be positive",
        )

    def init(self, key: jax.Array, states: int, size: int) -> Mixed:
        component = self.single.init(key, states * self.components, size)
        return Mixed(jnp.zeros((states, self.components)), component)

    def log_prob(self, params: Mixed, x: jax.Array, seen: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(self._joint(params, x, seen), axis=2)

    def statistics(
        self, params: Mixed, x: jax.Array, seen: jax.Array, weight: jax.Array
    ) -> tuple[jax.Array, Moments]:
        """Those of the components, weighted by p(k, m | x), and the sums of these weights."""
        each = weight[:, :, None] * jax.nn.softmax(self._joint(params, x, seen), axis=2)
        moments = self.single.statistics(params.component, x, seen, each.reshape(len(x), -1))
        return (each * seen.any(1)[:, None, None]).sum(0), moments

    def maximize(self, params: Mixed, statistics: Any) -> tuple[Mixed, Any]:
        """π_km ∝ weight + s, and `Gaussian`'s for the components."""
        weight, moments = statistics
        component, moments = self.single.maximize(params.component, moments)
        log_weight = jnp.log(jnp.maximum(weight + self.prior, LEAST))
        return Mixed(log_weight, component), (weight, moments)

    def sample(self, params: Mixed, key: jax.Array, k: jax.Array) -> jax.Array:
        component_key, key = jax.random.split(key)
        m = jax.random.categorical(component_key, params.weight[k])
        return self.single.sample(params.component, key, k * self.components + m)

    def fill(
        self, params: Mixed, key: jax.Array, k: jax.Array, x: jax.Array, seen: jax.Array
    ) -> jax.Array:
        """The component from p(m | k, what was seen), then the rest."""
        component_key, key = jax.random.split(key)
        joint = self._joint(params, x, seen)[jnp.arange(len(k)), k]
        m = jax.random.categorical(component_key, joint)
        return self.single.fill(params.component, key, k * self.components + m, x, seen)

    def table(self, params: Mixed) -> jax.Array:
        means = params.component.mean.reshape(*params.weight.shape, -1)
        return jnp.einsum("km,kmd->kd", jax.nn.softmax(params.weight), means)

    def scatter(self, states: Normal, key: jax.Array) -> Mixed:
        """To start from: each state's Gaussian as M of its variance, about means drawn from it."""
        repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, self.components, axis=0), states)
        k = jnp.arange(len(repeated.mean))
        means = self.single.sample(repeated, key, k)
        return Mixed(jnp.zeros((len(states.mean), self.components)), repeated._replace(mean=means))

    @property
    def single(self) -> Gaussian:
        """The law of one component."""
        return Gaussian("diagonal", self.prior, self.variance)

    def _joint(self, params: Mixed, x: jax.Array, seen: jax.Array) -> jax.Array:
        """log π_km p(x | k, m), [N, K, M]."""
        each = self.single.log_prob(params.component, x, seen)
        return each.reshape(len(x), *params.weight.shape) + jax.nn.log_softmax(params.weight)[None]


def factor(covariance: jax.Array) -> jax.Array:
    """Cholesky's factors of [K, D, D], with the logarithms of their diagonals in their place: any
    lower triangle is one."""
    root = jnp.linalg.cholesky(covariance)
    return jnp.tril(root, -1) + diagonals(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)))


def unfactor(spread: jax.Array) -> jax.Array:
    """The factors themselves, from what `factor` returns."""
    return jnp.tril(spread, -1) + diagonals(jnp.exp(jnp.diagonal(spread, axis1=1, axis2=2)))


def diagonals(values: jax.Array) -> jax.Array:
    """[K, D] as the diagonals of [K, D, D]."""
    return jax.vmap(jnp.diag)(values)


def whole(seen: jax.Array) -> jax.Array:
    """Whether each observation was seen as a whole or not at all."""
    return (seen.all(1) | ~seen.any(1)).all()


def _diagonal_log_prob(params: Normal, x: jax.Array, seen: jax.Array) -> jax.Array:
    """Variable by variable, as [N, K, D] would be large."""

    def add(total, variable):
        x, seen, mean, log_variance = variable
        deviation = jnp.where(seen, x, 0.0)[:, None] - mean[None]
        each = deviation**2 * jnp.exp(-log_variance)[None] + log_variance[None]
        return total + jnp.where(seen[:, None], each + math.log(2 * math.pi), 0.0), None

    nothing = jnp.zeros((len(x), len(params.mean)))
    total, _ = jax.lax.scan(add, nothing, (x.T, seen.T, params.mean.T, params.spread.T))
    return -0.5 * total


def _diagonal_statistics(
    params: Normal, x: jax.Array, seen: jax.Array, weight: jax.Array
) -> Moments:
    """State by state, for the same reason."""

    def of_state(state):
        mean, weight = state
        deviation = jnp.where(seen, x - mean[None], 0.0)
        return weight @ deviation, weight @ deviation**2

    first, second = jax.lax.map(of_state, (params.mean, weight.T))
    return Moments(weight.T @ seen.astype(x.dtype), first, second)


def _full_log_prob(params: Normal, x: jax.Array, seen: jax.Array) -> jax.Array:
    deviation = jnp.where(seen, x, 0.0)[None] - params.mean[:, None]  # [K, N, D]
    root = unfactor(params.spread)
    scaled = jax.scipy.linalg.solve_triangular(root, deviation.mT, lower=True)  # [K, D, N]
    log_det = jnp.trace(params.spread, axis1=1, axis2=2)  # of the factor
    constant = 0.5 * x.shape[1] * math.log(2 * math.pi)
    log_p = -0.5 * (scaled**2).sum(1) - log_det[:, None] - constant
    return jnp.where(seen.all(1)[:, None], log_p.T, 0.0)


def _full_statistics(params: Normal, x: jax.Array, seen: jax.Array, weight: jax.Array) -> Moments:
    weight = jnp.where(seen.all(1)[:, None], weight, 0.0)
    deviation = jnp.where(seen, x, 0.0)[None] - params.mean[:, None]  # [K, N, D]
    weighted = weight.T[:, :, None] * deviation
    return Moments(weight.sum(0), weighted.sum(1), weighted.mT @ deviation)


def _masked(covariance: jax.Array, seen: jax.Array) -> jax.Array:
    """Σ [..., D, D] with the rows and columns of what was not seen as those of the identity."""
    both = seen[..., :, None] & seen[..., None, :]
    return jnp.where(both, covariance, jnp.broadcast_to(jnp.eye(seen.shape[-1]), both.shape))


def _gain(covariance: jax.Array, seen: jax.Array) -> jax.Array:
    """Σ_·s Σ_ss⁻¹, [..., D, D], with zero columns for what was not seen."""
    columns = jnp.where(seen[..., None, :], covariance, 0.0)
    return jnp.where(
        seen[..., None, :], jnp.linalg.solve(_masked(covariance, seen), columns.mT).mT, 0.0
    )


def _each_state(params: Normal) -> tuple[jax.Array, jax.Array]:
    """Means and covariances, to go through one by one: [N, D, D] for all of them would be large."""
    root = unfactor(params.spread)
    return params.mean, root @ root.mT


def _partial_log_prob(params: Normal, x: jax.Array, seen: jax.Array) -> jax.Array:
    """The marginal N(x_s; μ_s, Σ_ss) of what was seen."""

    def of_state(state):
        mean, covariance = state
        deviation = jnp.where(seen, x - mean[None], 0.0)
        root = jnp.linalg.cholesky(
            _masked(jnp.broadcast_to(covariance, (len(x), *covariance.shape)), seen)
        )
        scaled = jax.scipy.linalg.solve_triangular(root, deviation[..., None], lower=True)[..., 0]
        log_det = jnp.log(jnp.diagonal(root, axis1=1, axis2=2)).sum(1)
        return -0.5 * ((scaled**2).sum(1) + seen.sum(1) * math.log(2 * math.pi)) - log_det

    return jax.lax.map(of_state, _each_state(params)).T


def _partial_statistics(
    params: Normal, x: jax.Array, seen: jax.Array, weight: jax.Array
) -> Moments:
    """With the expectations, given k and what was seen, of the rest and of its products."""
    weight = jnp.where(seen.any(1)[:, None], weight, 0.0)

    def of_state(state):
        (mean, covariance), w = state
        gain = _gain(jnp.broadcast_to(covariance, (len(x), *covariance.shape)), seen)
        deviation = jnp.where(seen, x - mean[None], 0.0)
        expected = jnp.einsum("nde,ne->nd", gain, deviation)
        rest = covariance[None] - gain @ covariance[None]  # its covariance, 0 where seen
        weighted = w[:, None] * expected
        return weighted.sum(0), weighted.T @ expected + jnp.einsum("n,nde->de", w, rest)

    first, second = jax.lax.map(of_state, (_each_state(params), weight.T))
    return Moments(weight.sum(0), first, second)


def check_prior(emission: Any) -> None:
    name = type(emission).__name__
    require(emission.prior >= 0, f"{name}: prior is {emission.prior}, must not be negative")
