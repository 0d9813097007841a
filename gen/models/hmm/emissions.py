"""Emissions of a hidden Markov model: one law p(x_t | z_t = k) for each state k.

An emission is a frozen dataclass of hyperparameters with the methods of `Emission`. Shapes: N
observations of D variables each, K states, L levels, M components.

The two halves of an EM step are `statistics` (E-step) and `maximize` (M-step). Every prior is
given as pseudo-observations per training sequence, in the units of the statistics, which are means
over the training sequences. A prior of 0 is maximum likelihood.

No default has a unit of the data. The priors of Bernoulli, categorical and Poisson variables have
the mean of the data, and a hidden Markov model standardises the observations of Gaussian emissions,
so that x below is in units of each variable's standard deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from gen.core import check_fields, require
from gen.distributions import bernoulli_sample, logit
from gen.levels import to_index, to_value

FLOOR = 1e-30
"""A lower bound on counts, rates and variances: their logarithms are above −70."""


class Emission(Protocol):
    """The methods of an emission.

    `seen` [N, D] is False where a variable is missing. Missing variables are summed out.
    """

    @property
    def levels(self) -> int | None:
        """The fact `levels` of `gen.core.Facts`."""
        ...

    def init(self, key: jax.Array, states: int, size: int) -> Any:
        """Draw parameters that do not depend on data.

        Args:
          key: the source of the draws.
          states: the number K of states.
          size: the number D of variables in an observation.

        Returns:
          A NamedTuple of arrays [K, ...].
        """
        ...

    def log_prob(self, params: Any, x: jax.Array, seen: jax.Array) -> jax.Array:
        """Return log p(the seen variables of x_n | k), [N, K] nats.

        Args:
          params: the emission's parameters.
          x: observations, [N, D].
          seen: the mask of variables that are not missing, [N, D].
        """
        ...

    def statistics(self, params: Any, x: jax.Array, seen: jax.Array, weight: jax.Array) -> Any:
        """E-step: return the expected sufficient statistics, summed over the observations.

        Sums over parts of the data add up, and weighted means of them are statistics, too.

        Args:
          params: the parameters under which the expectation is taken.
          x: observations, [N, D].
          seen: the mask of variables that are not missing, [N, D].
          weight: the posterior p(z_n = k | x) of each observation's state, [N, K].
        """
        ...

    def maximize(self, params: Any, statistics: Any) -> tuple[Any, Any]:
        """M-step: return the new parameters, and the statistics re-expressed about the new means.

        The statistics of all emissions but the Gaussian ones are returned unchanged.

        Args:
          params: the parameters that the statistics are expressed about.
          statistics: expected sufficient statistics.
        """
        ...

    def sample(self, params: Any, key: jax.Array, k: jax.Array) -> jax.Array:
        """Draw x_n ~ p(x | k_n), [N, D].

        Args:
          params: the emission's parameters.
          key: the source of the draws.
          k: states, [N].
        """
        ...

    def complete(
        self, params: Any, key: jax.Array, k: jax.Array, x: jax.Array, seen: jax.Array
    ) -> jax.Array:
        """Return x with its missing variables drawn from p(missing | k, seen), [N, D].

        Args:
          params: the emission's parameters.
          key: the source of the draws.
          k: states, [N].
          x: observations, [N, D].
          seen: the mask of variables that are not missing, [N, D].
        """
        ...

    def table(self, params: Any) -> jax.Array:
        """Return the mean of each variable in each state, [K, D].

        A single categorical variable has its probabilities instead, [K, L].
        """
        ...


class Logits(NamedTuple):
    """The parameters of Bernoulli or categorical variables."""

    logits: jax.Array  # Bernoulli: log odds, [K, D]; categorical: log p up to a constant, [K, D, L]


class Counts(NamedTuple):
    """The expected sufficient statistics of Bernoulli, categorical or Poisson variables."""

    sums: jax.Array  # Bernoulli: number of ones; Poisson: Σ x, [K, D]; categorical: number of
    # observations of each level, [K, D, L]
    total: jax.Array  # number of observations, [K, D]


@dataclass(frozen=True)
class Bernoulli:
    """Independent binary variables: p(x | k) = Π_d μ_kd^x_d (1 − μ_kd)^(1 − x_d)."""

    prior: float = 1e-4
    """pseudo-observations, equal to the mean over all states, per training sequence (em)"""

    levels: ClassVar[int] = 2

    def __post_init__(self):
        check_fields(self, non_negative=("prior",))

    def init(self, key: jax.Array, states: int, size: int) -> Logits:
        """Draw each μ uniformly from [0.25, 0.75]."""
        return Logits(logit(jax.random.uniform(key, (states, size), minval=0.25, maxval=0.75)))

    def log_prob(self, params: Logits, x: jax.Array, seen: jax.Array) -> jax.Array:
        """Return Σ_d x_d l_kd − log(1 + exp l_kd) with logits l, two matrix products."""
        ones = jnp.where(seen, jnp.round(x), 0.0)
        return ones @ params.logits.T - seen.astype(x.dtype) @ jax.nn.softplus(params.logits).T

    def statistics(
        self, params: Logits, x: jax.Array, seen: jax.Array, weight: jax.Array
    ) -> Counts:
        """E-step: return the expected number of ones and of observations in each state."""
        ones = jnp.where(seen, jnp.round(x), 0.0)
        return Counts(weight.T @ ones, weight.T @ seen.astype(x.dtype))

    def maximize(self, params: Logits, statistics: Counts) -> tuple[Logits, Counts]:
        """M-step: μ = (ones + s x̄) / (total + s), with prior s and the mean x̄ over all states."""
        ones, total = statistics
        mean = ones.sum(0) / jnp.maximum(total.sum(0), FLOOR)
        zeros = jnp.maximum(total - ones, 0.0)  # rounding can take the difference below 0
        log_ones = jnp.log(jnp.maximum(ones + self.prior * mean[None], FLOOR))
        log_zeros = jnp.log(jnp.maximum(zeros + self.prior * (1 - mean[None]), FLOOR))
        return Logits(log_ones - log_zeros), statistics

    def sample(self, params: Logits, key: jax.Array, k: jax.Array) -> jax.Array:
        """Draw each variable with its state's μ."""
        return bernoulli_sample(key, params.logits[k])

    def complete(
        self, params: Logits, key: jax.Array, k: jax.Array, x: jax.Array, seen: jax.Array
    ) -> jax.Array:
        """Draw the missing variables, which are independent of the seen ones given the state."""
        return jnp.where(seen, jnp.round(x), self.sample(params, key, k))

    def table(self, params: Logits) -> jax.Array:
        """Return μ, [K, D]."""
        return jax.nn.sigmoid(params.logits)


@dataclass(frozen=True)
class Categorical:
    """Independent variables of L levels, which stand for 0, 1 / (L − 1), … 1 in x."""

    levels: int = 2
    """number L of values that a variable can take"""
    prior: float = 1e-4
    """pseudo-observations, equal to the mean over all states, per training sequence (em)"""

    def __post_init__(self):
        check_fields(self, non_negative=("prior",))
        require(self.levels > 1, f"Categorical: levels is {self.levels}, must be 2 or more")

    def init(self, key: jax.Array, states: int, size: int) -> Logits:
        """Draw logits from N(0, ¼)."""
        return Logits(0.5 * jax.random.normal(key, (states, size, self.levels)))

    def log_prob(self, params: Logits, x: jax.Array, seen: jax.Array) -> jax.Array:
        """Return Σ_d log p_kd(x_d), one matrix product with the one-hot coded observations."""
        log_p = jax.nn.log_softmax(params.logits)
        return self._one_hot(x, seen) @ log_p.reshape(len(log_p), -1).T

    def statistics(
        self, params: Logits, x: jax.Array, seen: jax.Array, weight: jax.Array
    ) -> Counts:
        """E-step: return the expected number of observations of each level in each state."""
        counts = (weight.T @ self._one_hot(x, seen)).reshape(params.logits.shape)
        return Counts(counts, counts.sum(2))

    def maximize(self, params: Logits, statistics: Counts) -> tuple[Logits, Counts]:
        """M-step: p = (counts + s p̄) / (total + s), with prior s and frequencies p̄ over all
        states."""
        counts, total = statistics
        mean = counts.sum(0) / jnp.maximum(total.sum(0), FLOOR)[:, None]
        p = (counts + self.prior * mean[None]) / jnp.maximum(total + self.prior, FLOOR)[..., None]
        return Logits(jnp.log(jnp.maximum(p, FLOOR))), statistics

    def sample(self, params: Logits, key: jax.Array, k: jax.Array) -> jax.Array:
        """Draw each variable from its state's probabilities."""
        return to_value(jax.random.categorical(key, params.logits[k]), self.levels)

    def complete(
        self, params: Logits, key: jax.Array, k: jax.Array, x: jax.Array, seen: jax.Array
    ) -> jax.Array:
        """Draw the missing variables, which are independent of the seen ones given the state."""
        return jnp.where(seen, x, self.sample(params, key, k))

    def table(self, params: Logits) -> jax.Array:
        """Return the mean of each variable, [K, D]; of a single one its probabilities, [K, L]."""
        p = jax.nn.softmax(params.logits)
        return p[:, 0] if p.shape[1] == 1 else p @ jnp.linspace(0, 1, self.levels)

    def _one_hot(self, x: jax.Array, seen: jax.Array) -> jax.Array:
        """Return x one-hot coded, [N, D · L], with zeros for missing variables."""
        level = to_index(jnp.where(seen, x, 0.0), self.levels)
        # One-hot codes of levels out of range would be zeros, which stand for missing variables.
        level = jnp.clip(level, 0, self.levels - 1)
        return (jax.nn.one_hot(level, self.levels) * seen[..., None]).reshape(len(x), -1)


class Rates(NamedTuple):
    """The parameters of Poisson variables."""

    log_rate: jax.Array  # log λ, [K, D]


@dataclass(frozen=True)
class Poisson:
    """Independent counts: p(x | k) = Π_d λ_kd^x_d exp(−λ_kd) / x_d!."""

    prior: float = 1e-4
    """pseudo-observations, equal to the mean over all states, per training sequence (em)"""

    levels: ClassVar[None] = None

    def __post_init__(self):
        check_fields(self, non_negative=("prior",))

    def init(self, key: jax.Array, states: int, size: int) -> Rates:
        """Draw log λ from N(0, 1)."""
        return Rates(jax.random.normal(key, (states, size)))

    def log_prob(self, params: Rates, x: jax.Array, seen: jax.Array) -> jax.Array:
        """Return Σ_d log p(x_d | k) in a form in which x log λ and log x! do not cancel.

        With the error δ of Stirling's formula (Loader 2000, "Fast and accurate computation of
        binomial probabilities"),

            log p(x) = −(x log(x / λ) + λ − x) − ½ log 2πx − δ(x),    log p(0) = −λ.
        """
        counts = jnp.where(seen & (x > 0), x, 1.0)
        without_rate = 0.5 * jnp.log(2 * math.pi * counts) + stirling_error(counts)
        rate = jnp.exp(params.log_rate)[None]
        log_ratio = jnp.log(counts)[:, None] - params.log_rate[None]
        deviance = counts[:, None] * log_ratio + rate - counts[:, None]  # [N, K, D]
        each = jnp.where((x > 0)[:, None], -deviance - without_rate[:, None], -rate)
        return jnp.where(seen[:, None], each, 0.0).sum(2)

    def statistics(self, params: Rates, x: jax.Array, seen: jax.Array, weight: jax.Array) -> Counts:
        """E-step: return the expected Σ x and number of observations in each state."""
        return Counts(weight.T @ jnp.where(seen, x, 0.0), weight.T @ seen.astype(x.dtype))

    def maximize(self, params: Rates, statistics: Counts) -> tuple[Rates, Counts]:
        """M-step: λ = (Σ x + s x̄) / (total + s), with prior s and the mean x̄ over all states."""
        sums, total = statistics
        mean = sums.sum(0) / jnp.maximum(total.sum(0), FLOOR)
        rate = (sums + self.prior * mean[None]) / jnp.maximum(total + self.prior, FLOOR)
        return Rates(jnp.log(jnp.maximum(rate, FLOOR))), statistics

    def sample(self, params: Rates, key: jax.Array, k: jax.Array) -> jax.Array:
        """Draw each count with its state's rate."""
        return jax.random.poisson(key, jnp.exp(params.log_rate)[k]).astype(jnp.float32)

    def complete(
        self, params: Rates, key: jax.Array, k: jax.Array, x: jax.Array, seen: jax.Array
    ) -> jax.Array:
        """Draw the missing variables, which are independent of the seen ones given the state."""
        return jnp.where(seen, x, self.sample(params, key, k))

    def table(self, params: Rates) -> jax.Array:
        """Return λ, [K, D]."""
        return jnp.exp(params.log_rate)


def stirling_error(x: jax.Array) -> jax.Array:
    """Return δ(x) = log x! − (x log x − x + ½ log 2πx) for x ≥ 1, elementwise.

    From x = 10 on it is the series 1 / 12x − 1 / 360x³ + 1 / 1260x⁵.
    """
    log_x = jnp.log(x)
    small = jax.scipy.special.gammaln(x + 1) - (
        x * log_x - x + 0.5 * (math.log(2 * math.pi) + log_x)
    )
    inverse = 1 / x
    large = inverse * (1 / 12 - inverse**2 * (1 / 360 - inverse**2 / 1260))
    return jnp.where(x < 10, small, large)


class Normal(NamedTuple):
    """The parameters of Gaussian variables."""

    mean: jax.Array  # μ, [K, D]
    spread: jax.Array  # diagonal Σ: log σ², [K, D]; full Σ: [K, D, D], see `factor`


class Moments(NamedTuple):
    """Expected moments about the mean of the parameters, which keeps them accurate."""

    total: jax.Array  # number of observations; diagonal Σ: [K, D], full Σ: [K]
    first: jax.Array  # Σ (x − μ), [K, D]
    second: jax.Array  # diagonal Σ: Σ (x − μ)², [K, D]; full Σ: Σ (x − μ)(x − μ)ᵀ, [K, D, D]


@dataclass(frozen=True)
class Gaussian:
    """Gaussian variables: p(x | k) = N(x; μ_k, Σ_k), with Σ_k diagonal or full.

    The prior of Σ_k is an inverse Wishart law that acts as s pseudo-observations of variance v:
    where S is the sum of n squared deviations, Σ_k = (S + s v I) / (n + s), the most probable Σ_k
    given the data (MAP). The mean has no prior. As x is standardised, v is relative to the variance
    of the data.

    Where some variables of an observation are missing, a full Σ takes one Cholesky factorization
    for each observation and state. Under `vmap` it takes them even if none are missing.
    """

    covariance: Literal["diagonal", "full"] = "diagonal"
    """form of Σ"""
    prior: float = 1e-2
    """pseudo-observations s of each state's covariance, per training sequence (em)"""
    variance: float = 1.0
    """variance v of the pseudo-observations, in units of each variable's variance"""

    levels: ClassVar[int] = 0

    def __post_init__(self):
        check_fields(self, positive=("variance",), non_negative=("prior",))

    def init(self, key: jax.Array, states: int, size: int) -> Normal:
        """Draw means from N(0, I); covariances are v I."""
        log_variance = math.log(self.variance) * jnp.ones((states, size))
        full = self.covariance == "full"
        spread = diagonals(log_variance / 2) if full else log_variance
        return Normal(jax.random.normal(key, (states, size)), spread)

    def log_prob(self, params: Normal, x: jax.Array, seen: jax.Array) -> jax.Array:
        """Return log N(x; μ_k, Σ_k), of the seen variables where some are missing."""
        if self.covariance == "full":
            return jax.lax.cond(
                all_or_none(seen), _full_log_prob, _partial_log_prob, params, x, seen
            )

        def add(total, variable):  # one variable at a time: [N, K, D] would be large
            x, seen, mean, log_variance = variable
            deviation = jnp.where(seen, x, 0.0)[:, None] - mean[None]
            each = deviation**2 * jnp.exp(-log_variance)[None] + log_variance[None]
            return total + jnp.where(seen[:, None], each + math.log(2 * math.pi), 0.0), None

        variables = x.T, seen.T, params.mean.T, params.spread.T
        total, _ = jax.lax.scan(add, jnp.zeros((len(x), len(params.mean))), variables)
        return -0.5 * total

    def statistics(
        self, params: Normal, x: jax.Array, seen: jax.Array, weight: jax.Array
    ) -> Moments:
        """E-step: return the expected moments about the mean of `params`."""
        if self.covariance == "full":
            return jax.lax.cond(
                all_or_none(seen), _full_statistics, _partial_statistics, params, x, seen, weight
            )

        def moments(state):  # one state at a time: [N, K, D] would be large
            mean, weight = state
            deviation = jnp.where(seen, x - mean[None], 0.0)
            return weight @ deviation, weight @ deviation**2

        first, second = jax.lax.map(moments, (params.mean, weight.T))
        return Moments(weight.T @ seen.astype(x.dtype), first, second)

    def maximize(self, params: Normal, statistics: Moments) -> tuple[Normal, Moments]:
        """M-step: μ + first / n and (S + s v I) / (n + s), with S about the new mean."""
        total, first, second = statistics
        n = jnp.maximum(total, FLOOR)
        if self.covariance == "full":
            shift = first / n[:, None]
            second -= first[:, :, None] * shift[:, None]
            prior = self.prior * self.variance * jnp.eye(first.shape[1])
            spread = factor((second + prior[None]) / (n + self.prior)[:, None, None])
        else:
            shift = first / n
            second = jnp.maximum(second - first * shift, 0.0)
            variance = (second + self.prior * self.variance) / (n + self.prior)
            spread = jnp.log(jnp.maximum(variance, FLOOR))
        return Normal(params.mean + shift, spread), Moments(total, jnp.zeros_like(first), second)

    def sample(self, params: Normal, key: jax.Array, k: jax.Array) -> jax.Array:
        """Draw μ + R ε with ε ~ N(0, I) and R Rᵀ = Σ."""
        noise = jax.random.normal(key, (len(k), params.mean.shape[1]))
        if self.covariance == "full":
            return params.mean[k] + jnp.einsum("nde,ne->nd", unfactor(params.spread)[k], noise)
        return params.mean[k] + jnp.exp(0.5 * params.spread)[k] * noise

    def complete(
        self, params: Normal, key: jax.Array, k: jax.Array, x: jax.Array, seen: jax.Array
    ) -> jax.Array:
        """Draw the missing variables given the seen ones.

        A full covariance corrects a free draw y by Matheron's rule: with s for the seen variables,
        y + Σ_·s Σ_ss⁻¹ (x_s − y_s).
        """
        drawn = self.sample(params, key, k)
        if self.covariance == "full":
            root = unfactor(params.spread)
            gain = _gain((root @ root.mT)[k], seen)
            difference = jnp.where(seen, x - drawn, 0.0)
            drawn += jnp.einsum("nde,ne->nd", gain, difference)
        return jnp.where(seen, x, drawn)

    def table(self, params: Normal) -> jax.Array:
        """Return μ, [K, D]."""
        return params.mean


class Mixed(NamedTuple):
    """The parameters of a mixture of M Gaussians in each state."""

    weight: jax.Array  # log π up to a constant, [K, M]
    component: Normal  # arrays [K · M, ...]


@dataclass(frozen=True)
class GaussianMixture:
    """Gaussian mixtures: p(x | k) = Σ_m π_km N(x; μ_km, Σ_km), with diagonal Σ_km.

    The prior of Σ_km is the same as in `Gaussian`. It also adds s to the expected number of
    observations of each component in the estimate of π.
    """

    components: int = 3
    """number M of Gaussians in each state"""
    prior: float = 1e-2
    """pseudo-observations s of each component, per training sequence (em)"""
    variance: float = 1.0
    """variance v of the pseudo-observations, in units of each variable's variance"""

    levels: ClassVar[int] = 0

    def __post_init__(self):
        check_fields(self, positive=("components", "variance"), non_negative=("prior",))

    @property
    def single(self) -> Gaussian:
        """The law of one component."""
        return Gaussian("diagonal", self.prior, self.variance)

    def init(self, key: jax.Array, states: int, size: int) -> Mixed:
        """Draw the components as `Gaussian` does; their weights are equal."""
        component = self.single.init(key, states * self.components, size)
        return Mixed(jnp.zeros((states, self.components)), component)

    def log_prob(self, params: Mixed, x: jax.Array, seen: jax.Array) -> jax.Array:
        """Return log Σ_m π_km N(x; μ_km, Σ_km)."""
        return jax.nn.logsumexp(self._joint(params, x, seen), axis=2)

    def statistics(
        self, params: Mixed, x: jax.Array, seen: jax.Array, weight: jax.Array
    ) -> tuple[jax.Array, Moments]:
        """E-step: return the expected number of observations and the moments of each component.

        Observation n counts for component m of state k by p(z_n = k, m | x). An observation of
        which nothing is seen does not count for the number.
        """
        each = weight[:, :, None] * jax.nn.softmax(self._joint(params, x, seen), axis=2)
        moments = self.single.statistics(params.component, x, seen, each.reshape(len(x), -1))
        return (each * seen.any(1)[:, None, None]).sum(0), moments

    def maximize(self, params: Mixed, statistics: Any) -> tuple[Mixed, Any]:
        """M-step: π_km ∝ number of observations + s, and the components' as in `Gaussian`."""
        number, moments = statistics
        component, moments = self.single.maximize(params.component, moments)
        log_weight = jnp.log(jnp.maximum(number + self.prior, FLOOR))
        return Mixed(log_weight, component), (number, moments)

    def sample(self, params: Mixed, key: jax.Array, k: jax.Array) -> jax.Array:
        """Draw a component m ~ π_k, then x from it."""
        component_key, key = jax.random.split(key)
        m = jax.random.categorical(component_key, params.weight[k])
        return self.single.sample(params.component, key, k * self.components + m)

    def complete(
        self, params: Mixed, key: jax.Array, k: jax.Array, x: jax.Array, seen: jax.Array
    ) -> jax.Array:
        """Draw a component from p(m | k, seen), then the missing variables from it."""
        component_key, key = jax.random.split(key)
        joint = self._joint(params, x, seen)[jnp.arange(len(k)), k]
        m = jax.random.categorical(component_key, joint)
        return self.single.complete(params.component, key, k * self.components + m, x, seen)

    def table(self, params: Mixed) -> jax.Array:
        """Return the mean of each state's mixture, [K, D]."""
        means = params.component.mean.reshape(*params.weight.shape, -1)
        return jnp.einsum("km,kmd->kd", jax.nn.softmax(params.weight), means)

    def scatter(self, states: Normal, key: jax.Array) -> Mixed:
        """Return first parameters from one Gaussian per state.

        The M components of a state have the variance of its Gaussian, and means drawn from it.
        """
        repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, self.components, axis=0), states)
        k = jnp.arange(len(repeated.mean))
        means = self.single.sample(repeated, key, k)
        return Mixed(jnp.zeros((len(states.mean), self.components)), repeated._replace(mean=means))

    def _joint(self, params: Mixed, x: jax.Array, seen: jax.Array) -> jax.Array:
        """Return log π_km p(x | k, m), [N, K, M]."""
        each = self.single.log_prob(params.component, x, seen)
        return each.reshape(len(x), *params.weight.shape) + jax.nn.log_softmax(params.weight)[None]


AnyEmission = Bernoulli | Categorical | Poisson | Gaussian | GaussianMixture
"""The type of a hidden Markov model's field `emission`."""


def factor(covariance: jax.Array) -> jax.Array:
    """Return the Cholesky factors of [K, D, D] with the logarithms of their diagonals in place.

    Every lower triangle is such a factor, so gradient steps need no constraints.
    """
    root = jnp.linalg.cholesky(covariance)
    return jnp.tril(root, -1) + diagonals(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)))


def unfactor(spread: jax.Array) -> jax.Array:
    """Return the Cholesky factors R, Σ = R Rᵀ, from the result of `factor`."""
    return jnp.tril(spread, -1) + diagonals(jnp.exp(jnp.diagonal(spread, axis1=1, axis2=2)))


def diagonals(values: jax.Array) -> jax.Array:
    """Return diagonal matrices [K, D, D] with the diagonals [K, D]."""
    return jax.vmap(jnp.diag)(values)


def all_or_none(seen: jax.Array) -> jax.Array:
    """Return whether every observation is seen as a whole or missing as a whole, []."""
    return (seen.all(1) | ~seen.any(1)).all()


def _full_log_prob(params: Normal, x: jax.Array, seen: jax.Array) -> jax.Array:
    """Return log N(x; μ_k, Σ_k), [N, K], of observations that are seen as a whole or missing."""
    deviation = jnp.where(seen, x, 0.0)[None] - params.mean[:, None]  # [K, N, D]
    root = unfactor(params.spread)
    scaled = jax.scipy.linalg.solve_triangular(root, deviation.mT, lower=True)  # [K, D, N]
    log_det = jnp.trace(params.spread, axis1=1, axis2=2)  # ½ log det Σ
    constant = 0.5 * x.shape[1] * math.log(2 * math.pi)
    log_p = -0.5 * (scaled**2).sum(1) - log_det[:, None] - constant
    return jnp.where(seen.all(1)[:, None], log_p.T, 0.0)


def _full_statistics(params: Normal, x: jax.Array, seen: jax.Array, weight: jax.Array) -> Moments:
    """Return the moments of observations that are seen as a whole or missing."""
    weight = jnp.where(seen.all(1)[:, None], weight, 0.0)
    deviation = jnp.where(seen, x, 0.0)[None] - params.mean[:, None]  # [K, N, D]
    weighted = weight.T[:, :, None] * deviation
    return Moments(weight.sum(0), weighted.sum(1), weighted.mT @ deviation)


def _partial_log_prob(params: Normal, x: jax.Array, seen: jax.Array) -> jax.Array:
    """Return log N(x_s; μ_s, Σ_ss), [N, K], where s are the seen variables of each observation."""

    def marginal(state):  # one state at a time: [K, N, D, D] would be large
        mean, covariance = state
        deviation = jnp.where(seen, x - mean[None], 0.0)
        each = jnp.broadcast_to(covariance, (len(x), *covariance.shape))
        root = jnp.linalg.cholesky(_masked(each, seen))
        scaled = jax.scipy.linalg.solve_triangular(root, deviation[..., None], lower=True)[..., 0]
        log_det = jnp.log(jnp.diagonal(root, axis1=1, axis2=2)).sum(1)  # ½ log det Σ_ss
        return -0.5 * ((scaled**2).sum(1) + seen.sum(1) * math.log(2 * math.pi)) - log_det

    root = unfactor(params.spread)
    return jax.lax.map(marginal, (params.mean, root @ root.mT)).T


def _partial_statistics(
    params: Normal, x: jax.Array, seen: jax.Array, weight: jax.Array
) -> Moments:
    """Return the moments with the conditional expectations, given k and the seen variables, of the
    missing variables and of their products."""
    weight = jnp.where(seen.any(1)[:, None], weight, 0.0)

    def moments(state):  # one state at a time: [K, N, D, D] would be large
        mean, covariance, w = state
        gain = _gain(jnp.broadcast_to(covariance, (len(x), *covariance.shape)), seen)
        deviation = jnp.where(seen, x - mean[None], 0.0)
        expected = jnp.einsum("nde,ne->nd", gain, deviation)
        conditional = covariance[None] - gain @ covariance[None]  # covariance, 0 where seen
        weighted = w[:, None] * expected
        second = weighted.T @ expected + jnp.einsum("n,nde->de", w, conditional)
        return weighted.sum(0), second

    root = unfactor(params.spread)
    first, second = jax.lax.map(moments, (params.mean, root @ root.mT, weight.T))
    return Moments(weight.sum(0), first, second)


def _masked(covariance: jax.Array, seen: jax.Array) -> jax.Array:
    """Return Σ [N, D, D] with the rows and columns of missing variables from the identity."""
    both = seen[:, :, None] & seen[:, None, :]
    return jnp.where(both, covariance, jnp.broadcast_to(jnp.eye(seen.shape[1]), both.shape))


def _gain(covariance: jax.Array, seen: jax.Array) -> jax.Array:
    """Return Σ_·s Σ_ss⁻¹, [N, D, D], with zero columns for missing variables."""
    columns = jnp.where(seen[:, None, :], covariance, 0.0)
    gain = jnp.linalg.solve(_masked(covariance, seen), columns.mT).mT
    return jnp.where(seen[:, None, :], gain, 0.0)
