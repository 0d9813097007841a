"""Hidden Markov models of sequences, with exact likelihoods, trained by Baum-Welch or by gradient.

Rabiner 1989, "A tutorial on hidden Markov models and selected applications in speech recognition",
https://doi.org/10.1109/5.18626.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen import estimate, optimize
from gen.checks import check_counts, without_padding
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
from gen.estimate import Estimate
from gen.levels import check_levels, to_floats
from gen.models.hmm import inference, parallel
from gen.models.hmm.emissions import (
    AnyEmission,
    Bernoulli,
    Categorical,
    GaussianMixture,
    Poisson,
)
from gen.optimize import AnyOptimizer, Optimizer

POSTERIORS_AT_ONCE = 2**25
"""Largest number B · T · K of posteriors that an E-step holds at a time."""


class Params(NamedTuple):
    """The model's parameters. Every real value is valid, so gradient steps need no constraints."""

    initial: jax.Array  # log p(z_1 = k) up to a constant, [K]
    transition: jax.Array  # log p(z_t = j | z_t−1 = i) up to a constant for each i, [K, K]
    emission: Any  # the emission's parameters


class Statistics(NamedTuple):
    """Expected sufficient statistics, the mean over training sequences."""

    initial: jax.Array  # probability of each first state, [K]
    transition: jax.Array  # number of transitions from i to j, [K, K]
    emission: Any  # the emission's statistics


class Scaling(NamedTuple):
    """The mean and standard deviation of each variable, by which observations are standardised."""

    mean: jax.Array  # [D]
    deviation: jax.Array  # [D]


class State(NamedTuple):
    """Everything that training changes."""

    params: Params
    statistics: Any  # em: Statistics, all 0 before the first step; gradient: ()
    opt_state: Any  # gradient: the optimiser's state; em: ()
    scaling: Any  # Gaussian emissions: Scaling, constant after the first state; others: ()


class Observations(NamedTuple):
    """A batch of padded sequences."""

    x: jax.Array  # standardised for Gaussian emissions, [B, T, D]
    seen: jax.Array  # False where x is missing and in the padding, [B, T, D]
    length: jax.Array  # number of steps before the padding, [B]
    log_jacobian: jax.Array  # −Σ log deviation over the seen variables of a step, [B, T]


@dataclass(frozen=True)
class HMM:
    """p(x) = Σ_z p(z_1) Π_t p(z_t | z_t−1) Π_t p(x_t | z_t), with z_t one of K states.

    An example is a sequence [T, ...], and the axes after the first belong to one observation. A
    batch may have `length` [B], the number of steps of each sequence before its padding, and
    `mask`, an array like x (1: shown). Masked values and NaN are missing and are summed out.

    Training by EM is the Baum-Welch algorithm (Baum et al. 1970,
    https://doi.org/10.1214/aoms/1177697196). The E-step runs the forward-backward algorithm under
    the parameters and takes the expected sufficient statistics: counts of starts and transitions,
    and the emission's statistics,

        s ← (1 − rate) s + rate · mean over the batch of E[statistics | x].

    The M-step sets the parameters to the most likely ones under s. With `rate` 1 and the whole
    training set as the batch this is EM; otherwise it is stepwise EM (Cappé & Moulines 2009,
    https://arxiv.org/abs/0712.4273). The first step has rate 1. The priors `smoothing` and the
    emission's `prior` make EM maximise the posterior of the parameters.

    Training by gradient minimises −log p(x), without priors.

    Gaussian emissions are scale-free. `begin` takes the mean m_d and the standard deviation s_d of
    each variable over the training examples, and the emission models (x_d − m_d) / s_d. Its
    parameters, its prior and the optimiser's steps are in these units. The densities are of x:
    log p(x) contains −log s_d for each seen variable. `sample`, `complete` and `tables` are in the
    units of x.

    Deviations from Rabiner 1989:

    - The backward pass computes p(z_t | x) from the filtered probabilities, without scaled backward
      variables.
    - The first emissions come from k-means on single observations, without segmental k-means.
    - Pseudo-counts act as priors in the M-step.
    - Continuous observations are standardised.

    Deviation from Cappé & Moulines 2009:

    - The rate is constant; their step sizes fall to 0.
    """

    family: ClassVar[str] = "hidden Markov model"
    density: ClassVar[Density] = "tractable"
    sequences: ClassVar[bool] = True
    missing: ClassVar[bool] = True
    metric_units: ClassVar[Mapping[str, str]] = MappingProxyType({"loss": "nats/step"})

    score = objective = negative_log_prob

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    states: int = 16
    """number K of states"""
    emission: AnyEmission = Bernoulli()
    """law of an observation given its state"""
    start: Literal["kmeans", "examples", "random"] = "kmeans"
    """first emissions: around the centres of k-means, around K observations, or at random"""
    training: Literal["em", "gradient"] = "em"
    """Baum-Welch algorithm (EM), or gradient descent on −log p"""
    rate: float = 1.0
    """weight of the batch in the statistics (em)"""
    smoothing: float = 1e-4
    """pseudo-counts of each start and transition, per training sequence (em)"""
    optimizer: AnyOptimizer = Optimizer("adam", learning_rate=1e-2)
    """optimiser (gradient)"""
    block: int = 0
    """steps per block of parallel inference, for long sequences (0: sequential inference)"""
    per: Literal["sequence", "step"] = "sequence"
    """unit of `nll`: nats per sequence or per time step"""

    def __post_init__(self):
        check_fields(self, positive=("states", "rate"), non_negative=("smoothing", "block"))
        require(self.rate <= 1, f"HMM: rate is {self.rate}, must be at most 1")

    @property
    def levels(self) -> int | None:
        """The emission's number of levels."""
        return self.emission.levels

    @property
    def counts(self) -> bool:
        """Poisson variables are counts."""
        return isinstance(self.emission, Poisson)

    @property
    def _inference(self) -> Any:
        """The algorithms of inference: sequential, or in parallel over blocks of steps."""
        return parallel.Blocks(self.block) if self.block else inference

    def init(self, key: jax.Array) -> State:
        """Draw parameters that do not depend on data: initial and transition logits ~ N(0, ¼)."""
        initial_key, transition_key, emission_key = jax.random.split(key, 3)
        size = math.prod(self.shape[1:])
        emission: Any = self.emission
        params = Params(
            0.5 * jax.random.normal(initial_key, (self.states,)),
            0.5 * jax.random.normal(transition_key, (self.states, self.states)),
            emission.init(emission_key, self.states, size),
        )
        scaling = Scaling(jnp.zeros(size), jnp.ones(size)) if self.levels == 0 else ()
        if self.training == "gradient":
            return State(params, (), optimize.init(self.optimizer, params), scaling)
        x, weight = jnp.zeros((1, size)), jnp.zeros((1, self.states))
        statistics = Statistics(
            jnp.zeros_like(params.initial),
            jnp.zeros_like(params.transition),
            emission.statistics(params.emission, x, x == 0, weight),
        )
        return State(params, statistics, (), scaling)

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """Estimate the first emissions from training examples, unless `start` is random.

        Gaussian emissions are of observations standardised by these examples.

        Each observation belongs to the nearest of K centres, one for each state. The centres are
        drawn observations (`examples`), or k-means moves them from there (`kmeans`). An observation
        has weight 1 / 2K in every state, and ½ more in the state of its centre. In distances a
        missing value is the mean of the seen values of its variable, and categorical levels are
        numbers.
        """
        if self.levels == 0:
            x, seen, *_ = observations(batch, levels=self.levels)
            state = state._replace(scaling=scaling_of(flat(x), flat(seen)))
        if self.start == "random":
            return state
        emission: Any = self.emission
        x, seen, length, _ = observations(batch, state.scaling, self.levels)
        real = (jnp.arange(x.shape[1])[None] < length[:, None]).reshape(-1)
        x, seen = flat(x), flat(seen)
        mean = jnp.where(seen, x, 0.0).sum(0) / jnp.maximum(seen.sum(0), 1)
        filled = jnp.where(seen, x, mean[None])
        cluster_key, scatter_key, init_key = jax.random.split(key, 3)
        iterations = 20 if self.start == "kmeans" else 0
        nearest = kmeans(filled, real, cluster_key, self.states, iterations)
        own = jax.nn.one_hot(nearest, self.states)
        weight = real[:, None] * (0.5 * own + 0.5 / self.states) / len(length)
        mixture = isinstance(emission, GaussianMixture)
        single: Any = emission.single if mixture else emission
        first = single.init(init_key, self.states, x.shape[1])
        for _ in range(2):  # moments about the first mean, which may be far off, are inaccurate
            first, _ = single.maximize(first, single.statistics(first, x, seen, weight))
        if mixture:
            first = emission.scatter(first, scatter_key)
        params = state.params._replace(emission=first)
        if self.training == "gradient":
            state = state._replace(opt_state=optimize.init(self.optimizer, params))
        return state._replace(params=params)

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one step of the Baum-Welch algorithm, or one optimiser step.

        Logs −log p before the step, in nats per time step, as `loss`.
        """
        if self.training == "em":
            return self._baum_welch(state, batch, axis_name)
        mean_length = pmean(observations(batch).length.mean(), axis_name)

        def loss(params):
            nll = -self.log_prob(state._replace(params=params), batch).mean() / mean_length
            return nll, {"loss": nll}

        gradient, metrics = optimize.gradient(loss, state.params, axis_name)
        params, opt_state = optimize.update(self.optimizer, gradient, state.opt_state, state.params)
        return state._replace(params=params, opt_state=opt_state), metrics

    def _baum_welch(
        self, state: State, batch: Batch, axis_name: str | None
    ) -> tuple[State, Metrics]:
        """Take one step of the Baum-Welch algorithm: the E-step (1) to (4), the M-step (5)."""
        params, emission, algorithms = state.params, self.emission, self._inference
        log_initial, log_transition = log_laws(params)

        def e_step(sequences: Observations) -> tuple[Statistics, jax.Array]:
            """Return the statistics, summed over these sequences, and log p of each, [B]."""
            # (1) Emission log-likelihoods log p(x_t | z_t = k), [B, T, K].
            log_likelihood = self._log_likelihood(params, sequences)

            # (2) Forward pass (filtering): p(z_t = k | x_1 … x_t), [B, T, K], and log p(x).
            forward = partial(algorithms.filter, log_initial, log_transition)
            filtered = jax.vmap(forward)(log_likelihood)
            log_p = filtered.log_evidence.sum(1)

            # (3) Backward pass (smoothing): p(z_t = k | x), [B, T, K].
            smoothed = jax.vmap(partial(algorithms.smooth, log_transition))(filtered)

            # (4) Expected counts of starts and transitions, and the emission's statistics.
            x, seen, length, _ = sequences
            within = jnp.arange(x.shape[1])[None] < length[:, None]
            weight = jnp.where(within[:, :, None], smoothed, 0.0)
            count_transitions = partial(inference.expected_transitions, log_transition)
            transitions = jax.vmap(count_transitions)(filtered, smoothed, length)
            with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
                emitted = emission.statistics(params.emission, flat(x), flat(seen), flat(weight))
            return Statistics(weight[:, 0].sum(0), transitions.sum(0), emitted), log_p

        sequences = observations(batch, state.scaling, self.levels)
        rows, steps, _ = sequences.x.shape
        part = max(1, POSTERIORS_AT_ONCE // (steps * self.states))
        total, log_p = sum_over_parts(e_step, sequences, part)
        expected = jax.tree.map(lambda total: total / rows, total)
        expected, nll = pmean((expected, -log_p.mean()), axis_name)
        mean_length = pmean(sequences.length.mean(), axis_name)

        # Stepwise EM: the statistics move towards this batch's.
        first_step = state.statistics.initial.sum() == 0
        rate = jnp.where(first_step, 1.0, self.rate)
        statistics = jax.tree.map(
            lambda old, new: (1 - rate) * old + rate * new, state.statistics, expected
        )

        # (5) M-step: p(z_1 = k) ∝ initial_k + s and p(j | i) ∝ transition_ij + s with the smoothing
        # s, and the emission's parameters.
        initial = inference.log(statistics.initial + self.smoothing)
        transition = inference.log(statistics.transition + self.smoothing)
        never_left = jnp.isneginf(transition).all(1)  # or never entered: all rows are as likely
        transition = jnp.where(never_left[:, None], 0.0, transition)
        emission_params, emitted = emission.maximize(params.emission, statistics.emission)
        statistics = statistics._replace(emission=emitted)
        params = Params(initial, transition, emission_params)
        state = state._replace(params=params, statistics=statistics)
        return state, {"loss": nll / mean_length}

    def parameters(self, state: State) -> Any:
        """Return the parameters of starts, transitions and emissions.

        Gaussian emissions are in units of `state.scaling`.
        """
        return state.params

    def log_prob(self, state: State, batch: Batch) -> jax.Array:
        """Return log p(x), exact, by the forward algorithm: [B] nats."""
        return self.log_conditionals(state, batch).sum(1)

    def log_conditionals(self, state: State, batch: Batch) -> jax.Array:
        """Return log p(x_t | x_1 … x_t−1), exact, by the forward algorithm: [B, T] nats.

        In the padding it is 0, up to rounding.
        """
        sequences = observations(batch, state.scaling, self.levels)
        log_likelihood = self._log_likelihood(state.params, sequences)
        forward = partial(self._inference.filter, *log_laws(state.params))
        return jax.vmap(forward)(log_likelihood).log_evidence

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return −log p(x) as `nll`, exact, per sequence or per time step.

        Per step it is the ratio of two sums over sequences, with the standard error of the delta
        method. Then `total_nll` is −log p of all of the data, and `bits` is `nll` in bits where the
        emission is categorical. Gaussian emissions give the negative log of a density.

        Raises:
          UserError: x has other values than the emission is for.
        """
        x = np.asarray(data["x"])
        if "length" in data:
            x = without_padding(x, np.asarray(data["length"]))
        x = x[~np.isnan(x)]
        if self.levels:
            check_levels({"x": x}, self.levels)
        if self.counts and x.size:
            check_counts(self, x)
        settings = {"density": True} if self.levels == 0 else {}
        nll = -estimate.per_example(lambda batch, _: self.log_prob(state, batch), data, key)
        nll = np.asarray(nll, np.float64)
        if self.per == "sequence":
            return {"nll": estimate.mean(nll, "exact", **settings)}
        longest = np.full(len(nll), np.shape(data["x"])[1])
        steps = np.asarray(data.get("length", longest), np.float64)
        total = {"per": "data", **settings}
        estimates = {
            "nll": estimate.ratio(nll, steps, "exact", per="step", **settings),
            "total_nll": Estimate(float(nll.sum()), math.nan, "exact", len(nll), total),
        }
        if isinstance(self.emission, Categorical):
            estimates["bits"] = estimate.ratio(nll / math.log(2), steps, "exact", per="step")
        return estimates

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Draw z_1, then each z_t ~ p(z_t | z_t−1), then each x_t ~ p(x_t | z_t): [n, *shape]."""
        first_key, path_key, emission_key = jax.random.split(key, 3)
        first = jax.random.categorical(first_key, state.params.initial, shape=(n,))

        def move(z, key):
            following = jax.random.categorical(key, state.params.transition[z])
            return following, following

        keys = jax.random.split(path_key, self.shape[0] - 1)
        _, following = jax.lax.scan(move, first, keys)
        path = jnp.concatenate([first[None], following]).T
        x = self.emission.sample(state.params.emission, emission_key, path.reshape(-1))
        return in_units_of_x(x, state.scaling).reshape(n, *self.shape)

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return p(z_t = k | x), [B, T, K], by the forward-backward algorithm."""
        log_initial, log_transition = log_laws(state.params)
        sequences = observations(batch, state.scaling, self.levels)
        log_likelihood = self._log_likelihood(state.params, sequences)

        def forward_backward(log_likelihood):
            filtered = self._inference.filter(log_initial, log_transition, log_likelihood)
            return self._inference.smooth(log_transition, filtered)

        return jax.vmap(forward_backward)(log_likelihood)

    def most_probable_path(self, state: State, batch: Batch) -> jax.Array:
        """Return arg max_z p(z | x), [B, T], by the Viterbi algorithm."""
        sequences = observations(batch, state.scaling, self.levels)
        log_likelihood = self._log_likelihood(state.params, sequences)
        viterbi = partial(self._inference.viterbi, *log_laws(state.params))
        return jax.vmap(viterbi)(log_likelihood, sequences.length)[0]

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """Draw the hidden variables of x from p(hidden | shown), exactly: [B, *shape].

        A path of states is drawn from its posterior, by forward filtering and backward sampling.
        The hidden variables follow, given their states and the shown variables of the same
        observation. The mask has to hide the padding of shorter sequences.
        """
        x = to_floats(x, self.levels)
        mask = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        sequences = observations({"x": x, "mask": mask}, state.scaling)
        log_initial, log_transition = log_laws(state.params)
        log_likelihood = self._log_likelihood(state.params, sequences)
        path_key, emission_key = jax.random.split(key)

        def draw_path(key, log_likelihood):
            filtered = self._inference.filter(log_initial, log_transition, log_likelihood)
            return self._inference.posterior_sample(key, log_transition, filtered)

        path = jax.vmap(draw_path)(jax.random.split(path_key, len(x)), log_likelihood)
        completed = self.emission.complete(
            state.params.emission,
            emission_key,
            path.reshape(-1),
            flat(sequences.x),
            flat(sequences.seen),
        )
        completed = in_units_of_x(completed, state.scaling).reshape(x.shape)
        return jnp.where(sequences.seen.reshape(x.shape), x, completed)

    def conditional_log_prob(self, state: State, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Return log p(x) − log p(shown), each by the forward algorithm: [B] nats.

        Args:
          state: a state of the model.
          x: sequences, [B, *shape]. The padding of shorter ones has to be NaN, so that it is summed
            out of both.
          mask: 1 where a variable is shown, [*shape] or [B, *shape].
        """
        mask = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        return self.log_prob(state, {"x": x}) - self.log_prob(state, {"x": x, "mask": mask})

    def tables(self, state: State) -> dict[str, jax.Array]:
        """Return p(j | i), [K, K], as `transition`, and the table of the `emission`, [K, ...]."""
        _, log_transition = log_laws(state.params)
        emission = self.emission.table(state.params.emission)
        emission = in_units_of_x(emission, state.scaling)
        return {"transition": jnp.exp(log_transition), "emission": emission}

    def _log_likelihood(self, params: Params, sequences: Observations) -> jax.Array:
        """Return log p(x_t | z_t = k), [B, T, K]; 0 where all of x_t is missing."""
        x, seen, _, log_jacobian = sequences
        with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
            log_likelihood = self.emission.log_prob(params.emission, flat(x), flat(seen))
        return log_likelihood.reshape(*x.shape[:2], self.states) + log_jacobian[:, :, None]


def observations(batch: Batch, scaling: Any = (), levels: int | None = None) -> Observations:
    """Return the sequences of a batch, with the missing values and the padding marked.

    Args:
      batch: `"x"` [B, T, ...], and maybe `"length"` [B] and `"mask"` [B, T, ...].
      scaling: a `Scaling` that standardises x, or an empty tuple.
      levels: the number of levels of x, of which integers are the indices, or 0 or None.
    """
    x = to_floats(batch["x"], levels)
    x = x.reshape(*x.shape[:2], -1)
    length = jnp.asarray(batch.get("length", jnp.full(len(x), x.shape[1])))
    seen = ~jnp.isnan(x) & (jnp.arange(x.shape[1])[None] < length[:, None])[:, :, None]
    if "mask" in batch:
        seen &= batch["mask"].reshape(x.shape) != 0
    if not isinstance(scaling, Scaling):
        return Observations(x, seen, length, jnp.zeros(x.shape[:2]))
    mean, deviation = (each[None, None] for each in scaling)
    log_jacobian = -jnp.where(seen, jnp.log(deviation), 0.0).sum(2)
    return Observations((x - mean) / deviation, seen, length, log_jacobian)


def scaling_of(x: jax.Array, seen: jax.Array) -> Scaling:
    """Return the mean and the standard deviation of each variable over the seen values.

    A variable that is constant up to rounding has the deviation 1.

    Args:
      x: observations, [N, D].
      seen: the mask of variables that are not missing, [N, D].
    """
    count = jnp.maximum(seen.sum(0), 1)

    def average(values):
        return jnp.where(seen, values, 0.0).sum(0) / count

    mean = average(x)
    mean += average(x - mean[None])  # corrects the rounding of a mean far from 0
    centred = jnp.where(seen, x - mean[None], 0.0)
    size = jnp.maximum(jnp.abs(centred).max(0), jnp.finfo(x.dtype).tiny)
    # Squares relative to the largest value neither overflow nor vanish.
    deviation = size * jnp.sqrt(average((centred / size[None]) ** 2))
    return Scaling(mean, jnp.where(deviation > 1e-6 * jnp.abs(mean), deviation, 1.0))


def in_units_of_x(standardised: jax.Array, scaling: Any) -> jax.Array:
    """Return x [N, D] from its standardised values, or the same values without a `Scaling`."""
    if not isinstance(scaling, Scaling):
        return standardised
    return scaling.mean[None] + scaling.deviation[None] * standardised


def flat(array: jax.Array) -> jax.Array:
    """Return [B, T, ...] as [B · T, ...]."""
    return array.reshape(-1, *array.shape[2:])


def log_laws(params: Params) -> tuple[jax.Array, jax.Array]:
    """Return log p(z_1), [K], and log p(z_t | z_t−1), [K, K], normalised."""
    return jax.nn.log_softmax(params.initial), jax.nn.log_softmax(params.transition)


def sum_over_parts(
    f: Callable[[Observations], tuple[Any, jax.Array]], sequences: Observations, part: int
) -> tuple[Any, jax.Array]:
    """Return the results of f for a batch, from parts of it one after another.

    Args:
      f: maps sequences to any tree of sums over them, and one value for each, [B]. Sequences of
        length 0, which fill up the last part, must add nothing to the sums.
      sequences: the batch.
      part: the number of sequences in a part.
    """
    rows = len(sequences.length)
    if rows <= part:
        return f(sequences)
    parts = -(-rows // part)

    def cut(array):
        fill = [(0, parts * part - rows)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, fill).reshape(parts, part, *array.shape[1:])

    def add(total, sequences):
        sums, values = f(sequences)
        return jax.tree.map(jnp.add, total, sums), values

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(f, sequences)[0])
    total, values = jax.lax.scan(add, zeros, jax.tree.map(cut, sequences))
    return total, values.reshape(-1)[:rows]


def kmeans(
    x: jax.Array, real: jax.Array, key: jax.Array, clusters: int, iterations: int
) -> jax.Array:
    """Return the cluster of each row by k-means (Lloyd's algorithm), [N].

    Args:
      x: rows, [N, D]; they are centred and scaled to a mean variance of 1.
      real: False for rows of padding, which count for no cluster, [N].
      key: the source of the first centres, which are real rows, and of the breaking of ties.
      clusters: their number K.
      iterations: updates of the centres; 0 keeps the drawn rows.
    """
    count = jnp.maximum(real.sum(), 1)
    x = x - (real[:, None] * x).sum(0)[None] / count
    variance = (real[:, None] * x**2).sum() / (count * x.shape[1])
    x = x * jax.lax.rsqrt(jnp.maximum(variance, 1e-30))
    choice_key, tie_key = jax.random.split(key)
    chosen = jax.random.choice(
        choice_key, len(x), (clusters,), replace=clusters > len(x), p=real / real.sum()
    )
    noise = 1e-3 * jax.random.uniform(tie_key, (len(x), clusters))

    def nearest(centre):
        # |x − c|² without |x|², which is the same for all c.
        distance = (centre**2).sum(1)[None] - 2 * x @ centre.T
        return (distance + noise).argmin(1)

    def move(centre, _):
        own = jax.nn.one_hot(nearest(centre), clusters) * real[:, None]
        count = own.sum(0)[:, None]
        return jnp.where(count > 0, own.T @ x / jnp.maximum(count, 1), centre), None

    centre, _ = jax.lax.scan(move, x[chosen], length=iterations)
    return nearest(centre)
