"""Deep Boltzmann machines.

Salakhutdinov & Hinton 2009, "Deep Boltzmann machines",
https://proceedings.mlr.press/v5/salakhutdinov09a.html.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gen import estimate, nets, optimize
from gen.ais import Annealing, LogZ, log_sum_over_bits
from gen.core import Batch, Data, Density, Metrics, Shape, check_fields, pmean, replica_key, require
from gen.distributions import bernoulli_entropy, bernoulli_sample
from gen.estimate import Estimate
from gen.levels import check_levels
from gen.models.boltzmann.learning import (
    autocorrelation,
    base_rate_biases,
    centred_gradient,
    running_mean,
    start_states,
)
from gen.models.boltzmann.partition import AIS, EXACT, ais_bracket, nll_estimates
from gen.nets import flatten
from gen.optimize import AnyOptimizer, Optimizer

Layers = tuple[jax.Array, ...]
"""Units of several layers from below, [n, D_l] each: of all, the even or the odd layers."""


class Params(NamedTuple):
    """The parameters of the energy; layer 0 is the visible one, of D_0 = D units."""

    weights: tuple[jax.Array, ...]  # [D_l, D_{l+1}], W_l for l = 0 … L − 1
    biases: tuple[jax.Array, ...]  # [D_l], b_l for l = 0 … L


class State(NamedTuple):
    """Everything that training changes."""

    params: Params
    opt_state: Any  # the optimiser's; momentum, if there is any, is shaped like params
    chains: Layers  # the odd layers of the persistent chains, [C, D_l]
    offsets: tuple[jax.Array, ...]  # [D_l], running means of each layer over the data
    count: jax.Array  # [], steps done


@dataclass(frozen=True)
class DBM:
    """p(x_0, …, x_L) = exp(−E) / Z of binary layers, the visible x_0 = v under the hidden ones:

        E = −Σ_l b_l·x_l − Σ_l x_lᵀ W_l x_{l+1}.

    First comes greedy layerwise pretraining: `pretraining` steps for each pair of layers train W_l
    as an RBM by CD-1 on draws of the layer below. A layer that will have two neighbours gets its
    single input doubled during pretraining. These are the doubled weights of the paper.

    Then all layers learn together. A step follows the gradient in θ of

        mean over the batch of E(v, μ(v)) − mean over persistent chains of E,

    the positive minus the negative phase. The mean field μ(v), the means of a factorial q(h | v),
    maximises the bound log p(v) ≥ −E(v, μ) + H(μ) − log Z. The chains take `sweeps` sweeps of block
    Gibbs sampling: the even layers given the odd ones, then the odd layers given the even ones.

    Deviations from Salakhutdinov & Hinton 2009:

    - In pretraining, the hidden biases of a layer are learned only when it is the upper layer of a
      pair, and the visible biases with the first pair. The upward pass samples each layer.
    - Gradients are centred (Montavon & Müller 2012, https://doi.org/10.1007/978-3-642-35289-8_33)
      unless `centred` is off.
    - The chains' even layers enter the gradient as their means given the odd layers.
    - The number of mean-field updates is constant; the mean field starts at the upward pass.
    - The visible biases start at the log-odds of the mean of the data.
    - AIS has evenly spaced temperatures and starts at the base-rate model.
    """

    family: ClassVar[str] = "Boltzmann machine"
    density: ClassVar[Density] = "approximate"
    levels: ClassVar[int] = 2
    metric_units: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"reconstruction": "squared error"}
    )

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    hidden: tuple[int, ...] = (500, 1000)
    """numbers of hidden units D_1, D_2, …"""
    pretraining: int = 0
    """steps of pretraining for each pair of layers"""
    mean_field_updates: int = 10
    """updates of each layer's mean field in a step; evaluation makes five times more"""
    sweeps: int = 1
    """Gibbs sweeps of a training step"""
    persistent_chains: int = 100
    """number C of persistent chains"""
    centred: bool = True
    """take the centred gradient"""
    optimizer: AnyOptimizer = Optimizer("sgd", learning_rate=0.05)
    """optimiser"""
    burn_in: int = 1_000
    """Gibbs sweeps from the persistent chains to a sample, or from noise to a completion"""
    ais: AIS = AIS()
    """annealed importance sampling in evaluation"""

    def __post_init__(self):
        require(len(self.hidden) > 0, "DBM: hidden is empty, must have a layer")
        check_fields(
            self,
            positive=("hidden", "mean_field_updates", "sweeps", "persistent_chains"),
            non_negative=("pretraining", "burn_in"),
        )

    def init(self, key: jax.Array) -> State:
        """Draw W ~ N(0, 0.01²), with biases 0; draw the chains from the law without W."""
        weights_key, chains_key = jax.random.split(key)
        sizes = (math.prod(self.shape), *self.hidden)
        keys = jax.random.split(weights_key, len(self.hidden))
        weights = tuple(
            0.01 * jax.random.normal(key, pair)
            for key, pair in zip(keys, itertools.pairwise(sizes), strict=True)
        )
        params = Params(weights, tuple(jnp.zeros(size) for size in sizes))
        chains = draw(
            [jnp.zeros((self.persistent_chains, size)) for size in sizes[1::2]], chains_key
        )
        offsets = tuple(0.5 * jnp.ones(size) for size in sizes)
        opt_state = optimize.init(self.optimizer, params)
        return State(params, opt_state, chains, offsets, jnp.zeros((), jnp.int32))

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """Set the visible biases to the log-odds of the mean of the training examples."""
        mean = flatten(batch["x"]).mean(0)
        biases = (base_rate_biases(mean), *state.params.biases[1:])
        return state._replace(
            params=state.params._replace(biases=biases), offsets=(mean, *state.offsets[1:])
        )

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take a step of pretraining for one pair of layers, or of all layers together.

        Logs the difference of the energies between the phases as `energy_gap`; the squared error
        per variable of v ↦ E[v | μ(v)], which is no likelihood, as `reconstruction`; the shares of
        hidden units whose mean over the batch is below 1 % and above 99 % as `dead` and
        `saturated`; and the `autocorrelation` of the first hidden layer's chains over the step.
        In pretraining gap and reconstruction belong to the pair.
        """
        v = flatten(batch["x"])
        chain_key, key = jax.random.split(key)
        # The replicas of pmap share the chains, so they move them alike.
        chains = gibbs(state.params, state.chains, chain_key, self.sweeps)
        pairs = range(len(self.hidden)) if self.pretraining else ()
        phase = jnp.minimum(state.count // max(self.pretraining, 1), len(pairs))
        key = replica_key(key, axis_name)
        phases = [partial(self._pretraining_gradient, state, v, pair, key) for pair in pairs]
        phases.append(partial(self._joint_gradient, state, v, chains))
        gradient, means, metrics = pmean(jax.lax.switch(phase, phases), axis_name)

        hidden = jnp.concatenate(means[1:])
        metrics |= {
            "dead": (hidden < 0.01).mean(),
            "saturated": (hidden > 0.99).mean(),
            "autocorrelation": autocorrelation(state.chains[0], chains[0]),
        }
        # W_l learns in the phase of its pair and in the last phase, b_{l+1} with W_l, and b_0 with
        # W_0. In other phases neither weight decay nor momentum moves them, and the optimiser's
        # moments see a gradient of 0.
        learns = [(phase == pair) | (phase == len(pairs)) for pair in range(len(self.hidden))]
        learns = Params(tuple(learns), (learns[0], *learns))
        gradient = jax.tree.map(lambda on, g: jnp.where(on, g, 0.0), learns, gradient)
        params, opt_state = optimize.update(self.optimizer, gradient, state.opt_state, state.params)
        params = jax.tree.map(jnp.where, learns, params, state.params)
        offsets = running_mean(state.offsets, means)
        return State(params, opt_state, chains, offsets, state.count + 1), metrics

    def parameters(self, state: State) -> Any:
        """Return all W_l and b_l."""
        return state.params

    def score(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return E(v, μ) − H(μ) ≥ −log p(v) − log Z, [B] nats."""
        mu = mean_field(state.params, flatten(batch["x"]), 5 * self.mean_field_updates)
        return energy(state.params, mu) - total(bernoulli_entropy(m).sum(1) for m in mu[1:])

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return the mean field of all hidden layers side by side, [B, D_1 + D_2 + …]."""
        return jnp.concatenate(self.layers(state, batch), axis=1)

    def reconstruct(self, state: State, batch: Batch) -> jax.Array:
        """Return E[v | x_1] at x_1 = μ_1, [B, *shape]."""
        mu = mean_field(state.params, flatten(batch["x"]), 5 * self.mean_field_updates)
        return jax.nn.sigmoid(layer_input(state.params, mu, 0)).reshape(-1, *self.shape)

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Draw by `burn_in` Gibbs sweeps from the persistent chains: [n, *shape]."""
        return self.chains(state, key, n, self.burn_in)

    def chains(self, state: State, key: jax.Array, n: int, sweeps: int) -> jax.Array:
        """Return v after Gibbs sweeps from n persistent chains: [n, *shape]."""
        move_key, visible_key = jax.random.split(key)
        odd = self.fantasies(state, move_key, n, sweeps)
        visible, *_ = inputs(state.params, odd, even=True)
        return bernoulli_sample(visible_key, visible).reshape(-1, *self.shape)

    def fantasies(self, state: State, key: jax.Array, n: int, sweeps: int) -> Layers:
        """Draw fantasy particles, states of the persistent chains after further Gibbs sweeps.

        Args:
          state: a state of the model.
          key: the source of every draw.
          n: the number of particles; with n > C several start at the same chain.
          sweeps: the number of Gibbs sweeps from the persistent chains.

        Returns:
          The odd layers, [n, D_l] each.
        """
        order_key, key = jax.random.split(key)
        start = start_states(state.chains, order_key, n)
        return gibbs(state.params, start, key, sweeps)

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """Draw the hidden variables of x by `burn_in` Gibbs sweeps with the shown ones clamped.

        The start is the base-rate model. The law is p(hidden | shown) in the limit of many sweeps.
        """
        shown = flatten(jnp.broadcast_to(jnp.asarray(mask, bool), x.shape))
        start_key, up_key, key = jax.random.split(key, 3)
        given = flatten(x)
        base = jnp.broadcast_to(base_rate_biases(state.offsets[0])[None], given.shape)
        v = jnp.where(shown, given, bernoulli_sample(start_key, base))
        odd = up_pass(state.params, v, len(self.hidden), up_key)[1::2]

        def sweep(i, carry):
            _, odd = carry
            even_key, odd_key = jax.random.split(jax.random.fold_in(key, i))
            visible, *rest = draw(inputs(state.params, odd, even=True), even_key)
            v = jnp.where(shown, given, visible)
            return v, draw(inputs(state.params, (v, *rest), even=False), odd_key)

        return jax.lax.fori_loop(0, self.burn_in, sweep, (v, odd))[0].reshape(x.shape)

    def layers(self, state: State, batch: Batch) -> list[jax.Array]:
        """Return the mean field of each hidden layer, [B, D_l]; side by side they are the code."""
        mu = mean_field(state.params, flatten(batch["x"]), 5 * self.mean_field_updates)
        return list(mu[1:])

    def encoder_network(self, state: State) -> tuple[nn.Module, Any]:
        """Return the upward pass as an `MLP` of layers x ↦ σ(b + Wᵀ x), all but the last doubled.

        The mean field starts from it.
        """
        *below, last = state.params.weights
        weights = [*(2 * w for w in below), last]
        return nets.sigmoid_layers(list(zip(weights, state.params.biases[1:], strict=True)))

    def filters(self, state: State) -> jax.Array:
        """Return the weights of each unit of the first hidden layer, [D_1, *shape]."""
        return state.params.weights[0].T.reshape(-1, *self.shape)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return E(v, μ) − H(μ) + log Z ≥ −log p(v) as `nll`, and the estimates of log Z.

        `nll_estimates` lists them. log Z is exact if the odd or the even layers have at most
        25 units. `reconstruction` is the error that a step logs.
        """
        check_levels(data, 2)
        data_key, key = jax.random.split(key)

        def one(batch, row_key):
            error = flatten(self.reconstruct(state, batch) - batch["x"]) ** 2
            return self.score(state, batch, row_key), error.mean(1)

        energies, error = estimate.per_example(one, data, data_key)
        return {
            **nll_estimates(self, state, energies, key, "upper bound"),
            "reconstruction": estimate.mean(error, "no likelihood"),
        }

    def log_partition(self, state: State) -> float | None:
        """Return the exact log Z, or None if odd and even layers have more than 25 units each."""
        sizes = (math.prod(self.shape), *self.hidden)
        if min(sum(sizes[0::2]), sum(sizes[1::2])) > EXACT:
            return None
        with jax.default_matmul_precision("highest"):
            return float(jax.jit(log_partition)(state.params))

    def bracket(
        self,
        state: State,
        key: jax.Array,
        temperatures: int | None = None,
        chains: int | None = None,
    ) -> LogZ:
        """Bracket log Z by AIS from both sides."""
        return ais_bracket(self, state, key, temperatures, chains)

    def annealing(self, state: State) -> Annealing:
        """Return the path of AIS over the odd layers, from the base-rate model to the machine.

        At β the parameters are βW_l and βb_l, except for the visible biases (1 − β) base + βb_0,
        and the even layers are summed over:

            log p*_β(odd) = β Σ_odd b_l·x_l + Σ_even Σ_i log(1 + exp input_i at β).
        """
        params = state.params
        base = base_rate_biases(state.offsets[0])

        def even_inputs(odd, beta):
            visible, *rest = (beta * each for each in inputs(params, odd, even=True))
            return [visible + (1 - beta) * base[None], *rest]

        def log_density(odd, beta):
            summed = total(jax.nn.softplus(each).sum(1) for each in even_inputs(odd, beta))
            return summed + beta * total(x @ b for x, b in zip(odd, odd_biases, strict=True))

        def transition(odd, beta, key):
            even_key, odd_key = jax.random.split(key)
            even = draw(even_inputs(odd, beta), even_key)
            return draw([beta * each for each in inputs(params, even, even=False)], odd_key)

        def start(key, n):
            return draw([jnp.zeros((n, len(b))) for b in odd_biases], key)

        odd_biases = params.biases[1::2]
        log_z = jax.nn.softplus(base).sum() + sum(self.hidden) * math.log(2)
        return Annealing(log_density, transition, start, log_z)

    def _joint_gradient(
        self, state: State, v: jax.Array, odd: Layers
    ) -> tuple[Params, Layers, Metrics]:
        """Return the gradient of all parameters, the layers' means over the batch, and metrics."""
        # 1. Positive phase: the mean field. Negative phase: the chains.
        data = mean_field(state.params, v, self.mean_field_updates)
        model: list[Any] = [None] * len(data)
        model[0::2] = map(jax.nn.sigmoid, inputs(state.params, odd, even=True))
        model[1::2] = odd
        data, model = jax.lax.stop_gradient((data, model))
        # 2. The gradient of the difference of energies, with the units held fixed.
        gradient, gap = energy_gradient(state.params, data, model)
        if self.centred:
            gradient = Params(*centred_gradient(*gradient, state.offsets))
        error = v - jax.nn.sigmoid(layer_input(state.params, data, 0))
        metrics = {"energy_gap": gap, "reconstruction": jnp.mean(error**2)}
        return gradient, tuple(x.mean(0) for x in data), metrics

    def _pretraining_gradient(
        self, state: State, v: jax.Array, pair: int, key: jax.Array
    ) -> tuple[Params, Layers, Metrics]:
        """Return the CD-1 gradient of the layers `pair` and `pair` + 1, else as `_joint_gradient`.

        The layers below are drawn upwards from v. The gradient of other layers is 0, and their
        means are the running means.
        """
        here = slice(pair, pair + 2)
        (weight,), (b, c) = state.params.weights[pair : pair + 1], state.params.biases[here]
        # 1. The doubled inputs: upwards below the last pair, downwards above the first.
        up, down = 1 + (pair + 1 < len(self.hidden)), 1 + (pair > 0)
        up_key, hidden_key, visible_key = jax.random.split(key, 3)
        # 2. Positive phase: the data of the pair. Negative phase: their reconstruction.
        x = up_pass(state.params, v, pair, up_key)[-1]
        logits = up * x @ weight + c[None]
        h = bernoulli_sample(hidden_key, logits)
        again = bernoulli_sample(visible_key, down * h @ weight.T + b[None])
        data = x, jax.nn.sigmoid(logits)
        model = again, jax.nn.sigmoid(up * again @ weight + c[None])
        # 3. The gradient of the difference of the pair's energies, with the units held fixed.
        of_pair, gap = energy_gradient(Params((weight,), (b, c)), data, model)
        if self.centred:
            of_pair = centred_gradient(*of_pair, state.offsets[here], up, down)
        weights, biases = map(list, jax.tree.map(jnp.zeros_like, state.params))
        (weights[pair],), biases[here] = of_pair
        means = list(state.offsets)
        means[here] = data[0].mean(0), data[1].mean(0)
        error = x - jax.nn.sigmoid(down * data[1] @ weight.T + b[None])
        metrics = {"energy_gap": gap, "reconstruction": jnp.mean(error**2)}
        return Params(tuple(weights), tuple(biases)), tuple(means), metrics


def layer_input(
    params: Params, layers: Sequence[jax.Array] | Mapping[int, jax.Array], layer: int
) -> jax.Array:
    """Return the inputs b_l + W_{l−1}ᵀ x_{l−1} + W_l x_{l+1} of a layer, the logits of its units.

    Args:
      params: the parameters.
      layers: the units x_l by l, [n, D_l] each; only the neighbours of the layer are read.
      layer: the index l of the layer.

    Returns:
      [n, D_l].
    """
    logits = params.biases[layer][None]
    if layer > 0:
        logits = logits + layers[layer - 1] @ params.weights[layer - 1]
    if layer < len(params.weights):
        logits = logits + layers[layer + 1] @ params.weights[layer].T
    return logits


def inputs(params: Params, others: Sequence[jax.Array], *, even: bool) -> Layers:
    """Return the inputs of the even layers given the odd ones, or the other way round.

    Args:
      params: the parameters.
      others: the odd layers if `even`, otherwise the even layers.
      even: True returns the inputs of the even layers, False the inputs of the odd layers.
    """
    first, count = (0 if even else 1), len(params.biases)
    layers = dict(zip(range(1 - first, count, 2), others, strict=True))
    return tuple(layer_input(params, layers, layer) for layer in range(first, count, 2))


def draw(logits: Sequence[jax.Array], key: jax.Array) -> Layers:
    """Draw the units of several layers from their logits."""
    keys = jax.random.split(key, len(logits))
    return tuple(bernoulli_sample(key, each) for key, each in zip(keys, logits, strict=True))


def gibbs(params: Params, odd: Layers, key: jax.Array, sweeps: int) -> Layers:
    """Return the odd layers after sweeps of block Gibbs sampling.

    A sweep draws the even layers given the odd ones, then the odd layers given the even ones.

    Args:
      params: the parameters.
      odd: the odd layers to start from, [n, D_l] each.
      key: the source of every draw.
      sweeps: the number of sweeps.
    """

    def sweep(i, odd):
        even_key, odd_key = jax.random.split(jax.random.fold_in(key, i))
        even = draw(inputs(params, odd, even=True), even_key)
        return draw(inputs(params, even, even=False), odd_key)

    few = sweeps <= 10  # without a loop a CPU uses all of its cores
    return jax.lax.fori_loop(0, sweeps, sweep, odd, unroll=few)


def up_pass(params: Params, v: jax.Array, layers: int, key: jax.Array | None = None) -> Layers:
    """Return v and the layers above it, each layer from the one below alone.

    All layers but the machine's last get their input doubled, in place of the input from above.

    Args:
      params: the parameters.
      v: the visible units, [n, D].
      layers: the number of hidden layers to return.
      key: the source of draws of the layers; None returns their means.
    """
    states = [v]
    for layer in range(layers):
        times = 1 + (layer + 1 < len(params.weights))
        logits = times * states[-1] @ params.weights[layer] + params.biases[layer + 1][None]
        if key is None:
            states.append(jax.nn.sigmoid(logits))
        else:
            states.append(bernoulli_sample(jax.random.fold_in(key, layer), logits))
    return tuple(states)


def mean_field(params: Params, v: jax.Array, updates: int) -> Layers:
    """Return v and the mean field μ_1 … μ_L after coordinate ascent on the bound on log p(v).

    The start is the upward pass. An update sets the odd layers to μ_l = σ(input of l), then the
    even hidden layers. No update lowers the bound.

    Args:
      params: the parameters.
      v: the visible units, [n, D].
      updates: the number of updates of each layer.
    """
    order = (*range(1, len(params.biases), 2), *range(2, len(params.biases), 2))

    def update(_, mu):
        mu = list(mu)
        for layer in order:
            mu[layer] = jax.nn.sigmoid(layer_input(params, mu, layer))
        return tuple(mu)

    few = updates <= 10  # without a loop a CPU uses all of its cores
    mu = up_pass(params, v, len(params.weights))
    return jax.lax.fori_loop(0, updates, update, mu, unroll=few)


def energy(params: Params, layers: Sequence[jax.Array]) -> jax.Array:
    """Return E(x_0, …, x_L), [n] nats; at means its expectation over independent units."""
    biases = total(x @ b for x, b in zip(layers, params.biases, strict=True))
    pairs = zip(layers, params.weights, layers[1:], strict=False)
    return -biases - total(jnp.sum(x @ w * y, axis=1) for x, w, y in pairs)


def energy_gradient(
    params: Params, data: Sequence[jax.Array], model: Sequence[jax.Array]
) -> tuple[Params, jax.Array]:
    """Return the gradient of the mean energy of the positive minus the negative phase.

    In W_l it is the mean of −x_l x_{l+1}ᵀ over the data minus that mean over the model.

    Args:
      params: the parameters.
      data: all layers in the positive phase, [n, D_l] each.
      model: all layers in the negative phase, [m, D_l] each.

    Returns:
      The gradient, and the difference of the mean energies.
    """

    def gap(params):
        value = energy(params, data).mean() - energy(params, model).mean()
        return value, value

    return jax.grad(gap, has_aux=True)(params)


def total(terms: Iterable[jax.Array]) -> jax.Array:
    """Return the sum of arrays."""
    return sum(terms, start=jnp.zeros(()))


def log_partition(params: Params) -> jax.Array:
    """Return the exact log Z, a sum over the states of the odd or of the even layers.

    The layers with fewer units are enumerated, and the others are summed over in closed form.
    """
    sizes = [len(b) for b in params.biases]
    over_odd = sum(sizes[1::2]) <= sum(sizes[0::2])
    first = 1 if over_odd else 0

    def log_sum_over_others(x):
        layers = jnp.split(x, np.cumsum(sizes[first::2])[:-1], axis=1)
        biases = total(x @ b for x, b in zip(layers, params.biases[first::2], strict=True))
        others = inputs(params, layers, even=over_odd)
        return biases + total(jax.nn.softplus(each).sum(1) for each in others)

    return log_sum_over_bits(log_sum_over_others, sum(sizes[first::2]))
