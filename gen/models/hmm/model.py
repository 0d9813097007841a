"""Hidden Markov models of sequences, with exact evidence, trained by EM or by gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen import estimate
from gen.core import (
    Batch,
    Data,
    Density,
    Metrics,
    Shape,
    UserError,
    adam,
    check_levels,
    descend,
    pmean,
    require,
)
from gen.estimate import Estimate
from gen.models.hmm import inference
from gen.models.hmm.emissions import (
    Bernoulli,
    Categorical,
    Gaussian,
    GaussianMixture,
    Poisson,
)

AT_ONCE = 2**25  # numbers [B, T, K] of an E-step's arrays: what is more is taken in parts


class Params(NamedTuple):
    """The model's parameters, so that gradient steps keep them in range."""

    initial: jax.Array  # [K], log p(z_1 = k) up to a constant
    transition: jax.Array  # [K, K], log p(z_t = j | z_t−1 = i) up to a constant for each i
    emission: Any  # the emission's


class Statistics(NamedTuple):
    """Expected sufficient statistics of a training sequence."""

    initial: jax.Array  # [K], of z_1
    transition: jax.Array  # [K, K], of pairs z_t, z_t+1
    emission: Any  # the emission's


class State(NamedTuple):
    """Everything that training changes."""

    params: Params
    memory: Any  # by EM: the Statistics; by gradient: Adam's two moments and its step count


class Observed(NamedTuple):
    """A batch of padded sequences."""

    x: jax.Array  # [B, T, D]
    seen: jax.Array  # [B, T, D], False where x is missing and in the padding
    length: jax.Array  # [B]


@dataclass(frozen=True)
class HMM:
    """p(x) = Σ_z p(z_1) Π_t p(z_t | z_t−1) Π_t p(x_t | z_t), z_t one of K states (Rabiner 1989).

    An example is a sequence [T, ...]; what follows its first axis is one observation. A batch may
    have the sequences' `length` [B], what lies behind it being padding, and a `mask` (1: shown), an
    array like x; masked observations and NaN are missing, and summed out.

    By EM (Baum et al. 1970), a step takes the posteriors of its batch under the parameters, the
    expected counts of starts, of transitions and of the emission's statistics,

        s ← (1 − rate) s + rate · mean over the batch of E[counts | x],

    and sets the parameters to what is likeliest under s: with `rate` 1 and the whole training set
    as the batch this is EM, else stepwise EM (Cappé & Moulines 2009, but at a constant rate).
    `smoothing` and the emission's `prior` make it maximise the posterior.

    By gradient, a step lowers −log p by Adam, without priors.
    """

    family: ClassVar[str] = "hidden Markov model"
    sequences: ClassVar[bool] = True
    density: ClassVar[Density] = "tractable"

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    states: int = 16
    """number K of states"""
    emission: Bernoulli | Categorical | Poisson | Gaussian | GaussianMixture = Bernoulli()  # noqa: RUF009
    """law of an observation given its state"""
    start: Literal["kmeans", "examples", "random"] = "kmeans"
    """first parameters: clusters of observations, those around K examples, or none of the data"""
    training: Literal["em", "gradient"] = "em"
    """how a step learns"""
    rate: float = 1.0
    """weight of the batch in the statistics (em)"""
    smoothing: float = 1e-4
    """pseudo-counts of each start and transition, per training sequence (em)"""
    learning_rate: float = 1e-2
    """step size of Adam (gradient)"""
    decay_steps: int = 0
    """let the step size fall to 0 over so many steps, along a cosine (gradient; 0: constant)"""
    block: int = 0
    """steps in a block of the parallel form of inference (0: one scan over all steps)"""
    per: Literal["sequence", "step"] = "sequence"
    """what `nll` is divided by: the number of sequences, or of time steps"""

    def __post_init__(self):
        require(self.states > 0, f"HMM: states is {self.states}, must be positive")
        require(0 < self.rate <= 1, f"HMM: rate is {self.rate}, must be in (0, 1]")
        require(self.smoothing >= 0, f"HMM: smoothing is {self.smoothing}, must not be negative")
        require(self.block >= 0, f"HMM: block is {self.block}, must not be negative")

    @property
    def levels(self) -> int | None:
        """Values that a variable can take, if there are so many; they are equally spaced."""
        return getattr(self.emission, "levels", None)

    def init(self, key: jax.Array) -> State:
        """Random parameters that know nothing of the data; EM's statistics are still empty."""
        initial_key, transition_key, emission_key = jax.random.split(key, 3)
        size = math.prod(self.shape[1:])
        params = Params(
            0.5 * jax.random.normal(initial_key, (self.states,)),
            0.5 * jax.random.normal(transition_key, (self.states, self.states)),
            self.emission.init(emission_key, self.states, size),
        )
        if self.training == "gradient":
            return State(params, self._optimizer.init(params))
        return State(params, jax.tree.map(jnp.zeros_like, self._shapes(params, size)))

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """Emissions from the observations of training examples, if `start` says so.

        Each observation belongs to the nearest of K centres, which are observations drawn
        (`examples`) or their clusters (`kmeans`); each state takes half of its weight from those of
        its centre, half from all. What is missing counts as the mean of what was seen; categorical
        levels are compared as numbers.
        """
        if self.start == "random":
            return state
        emission: Any = self.emission
        x, seen, length = self._observed(batch)
        real = (jnp.arange(x.shape[1])[None] < length[:, None]).reshape(-1)
        x, seen = x.reshape(len(real), -1), seen.reshape(len(real), -1)
        mean = jnp.where(seen, x, 0.0).sum(0) / jnp.maximum(seen.sum(0), 1)
        cluster_key, scatter_key = jax.random.split(key)
        nearest = clusters(
            jnp.where(seen, x, mean[None]),
            real,
            cluster_key,
            self.states,
            20 * (self.start == "kmeans"),
        )
        own = jax.nn.one_hot(nearest, self.states)
        weight = real[:, None] * (0.5 * own + 0.5 / self.states) / len(length)
        single = emission.single if isinstance(emission, GaussianMixture) else emission
        found: Any = single.init(key, self.states, x.shape[1])
        for _ in range(2):  # moments about a mean that is far off would not be accurate
            found, _ = single.maximize(found, single.statistics(found, x, seen, weight))
        if isinstance(emission, GaussianMixture):
            found = emission.scatter(found, scatter_key)
        params = state.params._replace(emission=found)
        if self.training == "gradient":
            return State(params, self._optimizer.init(params))
        return State(params, state.memory)

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """One EM update, or one Adam step; logs −log p before it, in nats per time step, as
        `loss`."""
        observed = self._observed(batch)
        length = pmean(observed.length.mean(), axis_name)
        if self.training == "gradient":

            def nll(params):
                value = -self._log_prob(params, observed).mean() / length
                return value, {"loss": value}

            params, opt_state, metrics = descend(
                nll, self._optimizer, state.params, state.memory, axis_name
            )
            return State(params, opt_state), metrics

        found, log_p = self._expectations(state.params, observed)
        found, loss = pmean((found, -log_p.mean()), axis_name)
        empty = state.memory.initial.sum() == 0
        rate = jnp.where(empty, 1.0, self.rate)
        statistics = jax.tree.map(
            lambda old, new: (1 - rate) * old + rate * new, state.memory, found
        )
        params, statistics = self.maximize(state.params, statistics)
        return State(params, statistics), {"loss": loss / length}

    def maximize(self, params: Params, statistics: Statistics) -> tuple[Params, Statistics]:
        """The M-step, p(z_1 = k) ∝ initial_k + s and p(j | i) ∝ transition_ij + s with the
        smoothing s, and the emission's; and the statistics as they stand with respect to it."""
        emission, emission_statistics = self.emission.maximize(params.emission, statistics.emission)
        initial = inference.log(statistics.initial + self.smoothing)
        transition = inference.log(statistics.transition + self.smoothing)
        never_left = jnp.isneginf(transition).all(1)  # or not reached: any row is as good
        transition = jnp.where(never_left[:, None], 0.0, transition)
        return (
            Params(initial, transition, emission),
            statistics._replace(emission=emission_statistics),
        )

    def parameters(self, state: State) -> Any:
        """Of starts, transitions and emissions."""
        return state.params

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """−log p(x), [B] nats."""
        return -self.log_prob(state, batch)

    def log_prob(self, state: State, batch: Batch) -> jax.Array:
        """log p(x), exact, [B] nats."""
        return self._log_prob(state.params, self._observed(batch))

    def score(self, state: State, batch: Batch) -> jax.Array:
        """−log p(x), [B] nats."""
        return -self.log_prob(state, batch)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """−log p(x) as `nll`, exact, per sequence or per time step as `per` says.

        Per step it is the ratio of two sums over sequences, with the delta method's standard error;
        then −log p of all of the data is given as `total_nll`, and of categorical emissions `nll`
        in `bits`, too. Of Gaussian emissions it is a density's. Raises `UserError` if x has other
        values than the emission's.
        """
        x = np.asarray(data["x"])
        x = x[~np.isnan(x)]
        if self.levels:
            check_levels({"x": x}, self.levels)
        if isinstance(self.emission, Poisson) and (x.min() < 0 or np.any(x != np.round(x))):
            raise UserError("Poisson emissions take counts, the data have other values")
        density = isinstance(self.emission, Gaussian | GaussianMixture)
        settings = {"density": True} if density else {}
        nll = -estimate.per_example(lambda batch, _: self.log_prob(state, batch), data, key)
        nll = np.asarray(nll, np.float64)
        if self.per == "sequence":
            return {"nll": estimate.mean(nll, "exact", **settings)}
        steps = np.asarray(data.get("length", np.full(len(nll), self.shape[0])), np.float64)
        estimates = {
            "nll": estimate.ratio(nll, steps, "exact", per="step", **settings),
            "total_nll": Estimate(float(nll.sum()), math.nan, "exact", len(nll), {"per": "data"}),
        }
        if isinstance(self.emission, Categorical):
            estimates["bits"] = estimate.ratio(nll / math.log(2), steps, "exact", per="step")
        return estimates

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """z_1, then z_t ~ p(z_t | z_t−1), and x_t ~ p(x_t | z_t): [n, *shape]."""
        first_key, path_key, emission_key = jax.random.split(key, 3)
        first = jax.random.categorical(first_key, state.params.initial, shape=(n,))

        def move(z, key):
            later = jax.random.categorical(key, state.params.transition[z])
            return later, later

        keys = jax.random.split(path_key, self.shape[0] - 1)
        _, later = jax.lax.scan(move, first, keys)
        path = jnp.concatenate([first[None], later]).T
        x = self.emission.sample(state.params.emission, emission_key, path.reshape(-1))
        return x.reshape(n, *self.shape)

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """p(z_t = k | x), [B, T, K]."""
        _, transition = log_laws(state.params)
        filtered = self._filter(state.params, self._observed(batch))
        return jax.vmap(lambda f: inference.smooth(transition, f, self.block))(filtered)

    def most_probable_path(self, state: State, batch: Batch) -> jax.Array:
        """arg max p(z | x), [B, T], by Viterbi's algorithm."""
        observed = self._observed(batch)
        each = self._log_likelihood(state.params, observed)
        return jax.vmap(
            lambda e, n: inference.viterbi(*log_laws(state.params), e, n, self.block)[0]
        )(each, observed.length)

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """x [B, *shape], with what `mask` (1: shown) hides drawn from p(hidden | shown), exactly:
        a path from its posterior, then the hidden variables given their states and what of the
        same observation is shown. What lies behind a shorter sequence is to be hidden."""
        mask = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        observed = self._observed({"x": x, "mask": mask})
        _, transition = log_laws(state.params)
        filtered = self._filter(state.params, observed)
        path_key, emission_key = jax.random.split(key)
        path = jax.vmap(lambda key, f: inference.posterior_sample(key, transition, f, self.block))(
            jax.random.split(path_key, len(x)), filtered
        )
        flat = observed.x.reshape(-1, observed.x.shape[2])
        filled = self.emission.fill(
            state.params.emission,
            emission_key,
            path.reshape(-1),
            flat,
            observed.seen.reshape(flat.shape),
        )
        return filled.reshape(x.shape)

    def tables(self, state: State) -> dict[str, jax.Array]:
        """What it learned, as matrices: p(j | i) [K, K], and the emission's [K, ·]."""
        _, transition = log_laws(state.params)
        return {
            "transition": jnp.exp(transition),
            "emission": self.emission.table(state.params.emission),
        }

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, self.decay_steps)

    def _observed(self, batch: Batch) -> Observed:
        x = batch["x"].reshape(*batch["x"].shape[:2], -1)
        length = jnp.asarray(batch.get("length", jnp.full(len(x), x.shape[1])))
        seen = ~jnp.isnan(x) & (jnp.arange(x.shape[1])[None] < length[:, None])[:, :, None]
        if "mask" in batch:
            seen &= batch["mask"].reshape(x.shape) != 0
        return Observed(x, seen, length)

    def _log_likelihood(self, params: Params, observed: Observed) -> jax.Array:
        """log p(x_t | z_t = k), [B, T, K]."""
        x, seen, _ = observed
        flat = x.reshape(-1, x.shape[2])
        log_prob = inference.precise(self.emission.log_prob)
        each = log_prob(params.emission, flat, seen.reshape(flat.shape))
        return each.reshape(*x.shape[:2], self.states)

    def _filter(self, params: Params, observed: Observed) -> inference.Filtered:
        """For each sequence."""
        each = self._log_likelihood(params, observed)
        return jax.vmap(lambda e: inference.filter(*log_laws(params), e, self.block))(each)

    def _log_prob(self, params: Params, observed: Observed) -> jax.Array:
        return self._filter(params, observed).log_evidence.sum(1)

    def _expectations(self, params: Params, observed: Observed) -> tuple[Statistics, jax.Array]:
        """The E-step: statistics averaged over the sequences, and log p of each, [B]; some
        sequences at a time where the posteriors of all would not fit into memory."""
        rows, steps, _ = observed.x.shape
        part = max(1, AT_ONCE // (steps * self.states))
        if rows <= part:
            found, log_p = self._sums(params, observed)
        else:
            parts = -(-rows // part)

            def cut(array):  # filled up with sequences of length 0
                fill = [(0, parts * part - rows)] + [(0, 0)] * (array.ndim - 1)
                return jnp.pad(array, fill).reshape(parts, part, *array.shape[1:])

            def add(total, observed):
                found, log_p = self._sums(params, observed)
                return jax.tree.map(jnp.add, total, found), log_p

            nothing = jax.tree.map(jnp.zeros_like, self._shapes(params, observed.x.shape[2]))
            found, log_p = jax.lax.scan(add, nothing, jax.tree.map(cut, observed))
            log_p = log_p.reshape(-1)[:rows]
        return jax.tree.map(lambda sums: sums / rows, found), log_p

    def _sums(self, params: Params, observed: Observed) -> tuple[Statistics, jax.Array]:
        """The E-step of these sequences: summed statistics, and log p."""
        x, seen, length = observed
        _, transition = log_laws(params)
        filtered = self._filter(params, observed)
        smoothed = jax.vmap(lambda f: inference.smooth(transition, f, self.block))(filtered)
        pairs = jax.vmap(lambda *each: inference.expected_transitions(transition, *each))(
            filtered, smoothed, length
        )
        within = jnp.arange(x.shape[1])[None] < length[:, None]
        weight = jnp.where(within[:, :, None], smoothed, 0.0)
        flat = x.reshape(-1, x.shape[2])
        emission = inference.precise(self.emission.statistics)(
            params.emission, flat, seen.reshape(flat.shape), weight.reshape(len(flat), -1)
        )
        statistics = Statistics(weight[:, 0].sum(0), pairs.sum(0), emission)
        return statistics, filtered.log_evidence.sum(1)

    def _shapes(self, params: Params, size: int) -> Statistics:
        """The shapes of the statistics."""
        nothing = Observed(
            jnp.zeros((1, 2, size)), jnp.zeros((1, 2, size), bool), jnp.zeros(1, jnp.int32)
        )
        return jax.eval_shape(lambda: self._sums(params, nothing))[0]


def log_laws(params: Params) -> tuple[jax.Array, jax.Array]:
    """log p(z_1) [K] and log p(z_t | z_t−1) [K, K], normalised."""
    return jax.nn.log_softmax(params.initial), jax.nn.log_softmax(params.transition)


def clusters(x: jax.Array, real: jax.Array, key: jax.Array, centres: int, rounds: int) -> jax.Array:
    """The nearest centre of each row of x [N, D], [N]: K of the `real` rows, drawn, then moved
    through so many rounds of Lloyd's algorithm (k-means). Ties are broken by chance."""
    count = jnp.maximum(real.sum(), 1)
    x = x - (real[:, None] * x).sum(0)[None] / count
    variance = (real[:, None] * x**2).sum() / (count * x.shape[1])
    x = x * jax.lax.rsqrt(jnp.maximum(variance, 1e-30))
    choice_key, tie_key = jax.random.split(key)
    chosen = jax.random.choice(
        choice_key, len(x), (centres,), replace=centres > len(x), p=real / real.sum()
    )
    noise = 1e-3 * jax.random.uniform(tie_key, (len(x), centres))

    def nearest(centre):
        # |x − c|² without |x|², which is the same for all c.
        distance = (centre**2).sum(1)[None] - 2 * x @ centre.T
        return (distance + noise).argmin(1)

    def move(centre, _):
        own = jax.nn.one_hot(nearest(centre), centres) * real[:, None]
        count = own.sum(0)[:, None]
        return jnp.where(count > 0, own.T @ x / jnp.maximum(count, 1), centre), None

    centre, _ = jax.lax.scan(move, x[chosen], length=rounds)
    return nearest(centre)
