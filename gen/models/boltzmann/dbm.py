"""Deep Boltzmann machines. Salakhutdinov & Hinton (2009), "Deep Boltzmann machines"."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, ClassVar, NamedTuple

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
    check_levels,
    pmean,
    replica_key,
    require,
    sgd,
)
from gen.estimate import Annealing, Estimate
from gen.models.boltzmann import learning
from gen.models.boltzmann.learning import EXACT, bernoulli, entropy, running
from gen.nets import flatten

Layers = tuple[jax.Array, ...]
"""Units of some layers, each [n, D_l]: of all, of the odd ones or of the even ones, from below."""


class Params(NamedTuple):
    """The energy's parameters; layer 0 is the visible one, of D_0 = D units."""

    weights: tuple[jax.Array, ...]  # [D_l, D_{l+1}], W_l for l = 0 … L − 1
    biases: tuple[jax.Array, ...]  # [D_l], b_l for l = 0 … L


class State(NamedTuple):
    """Everything that training changes."""

    params: Params
    opt_state: Any  # the momentum, shaped like params, if there is one; the step count of a decay
    chains: Layers  # the odd layers of the persistent chains, [C, D_l]
    offsets: tuple[jax.Array, ...]  # [D_l], μ_l: running means of each layer over the data
    count: jax.Array  # [], steps done


@dataclass(frozen=True)
class DBM:
    """p(x_0, …, x_L) = exp(−E) / Z of binary layers, the visible x_0 = v under the hidden ones:

        E = −Σ_l b_l·x_l − Σ_l x_lᵀ W_l x_{l+1}.

    The first steps, `pretraining` for each pair of layers, train W_l as an RBM by CD-1 on what the
    layers below make of the data. All layers but the first and the last will be driven from both
    sides: meanwhile their input from the one side counts twice (the doubled weights of the paper).

    Then all learn together, down the gradient in θ of

        mean over the batch of E(v, μ(v)) − mean over persistent chains of E,

    where the mean field μ(v) maximises the bound log p(v) ≥ −E(v, μ) + H(μ) − log Z. The chains
    move by block Gibbs sampling, the even layers given the odd ones and these given them.

    Deviations: in pretraining a layer's biases are learned as the upper ones of a pair alone, and
    the up-pass draws each layer; centred gradients (Montavon & Müller 2012) unless switched off;
    the chains' even layers count by their means given the odd ones; the number of mean-field
    updates is constant.
    """

    family: ClassVar[str] = "Boltzmann machine"
    density: ClassVar[Density] = "approximate"
    levels: ClassVar[int] = 2

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    hidden: tuple[int, ...] = (500, 1000)
    """numbers of hidden units D_1, D_2, …"""
    pretraining: int = 0
    """steps of each layer's pretraining"""
    mean_field: int = 10
    """updates of each layer's mean field in a step (in `evaluate` five times as many)"""
    sweeps: int = 1
    """Gibbs sweeps of a step"""
    chains: int = 100
    """persistent chains"""
    centred: bool = True
    """take the centred gradient"""
    learning_rate: float = 0.05
    """step size"""
    decay_steps: int = 0
    """let the step size fall to 0 over so many steps, along a cosine (0: constant)"""
    momentum: float = 0.0
    """momentum of the steps"""
    weight_decay: float = 0.0
    """share of the weights, times the step size, that a step takes off them"""
    temperatures: int = 10_000
    """temperatures of AIS"""
    annealed: int = 500
    """chains of AIS, in either direction"""
    mixing: int = 1_000
    """Gibbs sweeps from the chains to samples"""
    widest: float = 1.0
    """nats that the two ends of AIS may lie apart without a warning"""

    def __post_init__(self):
        require(len(self.hidden) > 0, "DBM: hidden is empty, must have a layer")
        require(min(self.hidden) > 0, f"DBM: hidden is {self.hidden}, must be positive")
        for name in ("mean_field", "sweeps", "chains", "temperatures", "annealed"):
            require(getattr(self, name) > 0, f"DBM: {name} is {getattr(self, name)}, must be > 0")
        for name in ("pretraining", "mixing"):
            require(getattr(self, name) >= 0, f"DBM: {name} is {getattr(self, name)}, must be ≥ 0")
        _ = self._optimizer  # raises if its settings are wrong

    def init(self, key: jax.Array) -> State:
        """W ~ N(0, 0.01²) and biases 0; the chains are draws of this machine without W."""
        weights_key, chains_key = jax.random.split(key)
        sizes = (math.prod(self.shape), *self.hidden)
        keys = jax.random.split(weights_key, len(self.hidden))
        weights = tuple(
            0.01 * jax.random.normal(key, pair)
            for key, pair in zip(keys, itertools.pairwise(sizes), strict=True)
        )
        params = Params(weights, tuple(jnp.zeros(size) for size in sizes))
        chains = draw([jnp.zeros((self.chains, size)) for size in sizes[1::2]], chains_key)
        offsets = tuple(0.5 * jnp.ones(size) for size in sizes)
        count = jnp.zeros((), jnp.int32)
        return State(params, self._optimizer.init(params), chains, offsets, count)

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """μ_0 begins at the mean of training examples, b_0 at its log odds."""
        mean = flatten(batch["x"]).mean(0)
        biases = (learning.log_odds(mean), *state.params.biases[1:])
        return state._replace(
            params=state.params._replace(biases=biases), offsets=(mean, *state.offsets[1:])
        )

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """A step of pretraining, or of all layers together.

        Logs `energy_gap`, the two terms' difference; as `reconstruction` the squared error per
        variable of v ↦ E[v | μ(v)], which is no likelihood; the shares of hidden units whose mean
        over the batch is below 1 % (`dead`) or above 99 % (`saturated`); the `autocorrelation` of
        the first layer's chains over the step. In pretraining gap and reconstruction are those of
        the pair at hand.
        """
        v = flatten(batch["x"])

        chain_key, key = jax.random.split(key)
        # The replicas of pmap share the chains, so move them alike; in pretraining they follow.
        chains = sweep_chains(state.params, state.chains, chain_key, self.sweeps)
        phases = [partial(self._together, state, v, chains)]
        if self.pretraining:
            key = replica_key(key, axis_name)
            pairs = range(len(self.hidden))
            phases = [*(partial(self._pretrain, state, v, pair, key) for pair in pairs), *phases]
        phase = jnp.minimum(state.count // max(self.pretraining, 1), len(phases) - 1)
        gradient, learns, means, metrics = jax.lax.switch(phase, phases)
        gradient, means, metrics = pmean((gradient, means, metrics), axis_name)
        hidden = jnp.concatenate(means[1:])
        metrics |= {
            "dead": (hidden < 0.01).mean(),
            "saturated": (hidden > 0.99).mean(),
            "autocorrelation": learning.autocorrelation(state.chains[0], chains[0]),
        }
        updates, opt_state = self._optimizer.update(gradient, state.opt_state, state.params)
        # What does not learn in this phase, decay and momentum do not move either.
        updates = jax.tree.map(jnp.multiply, updates, learns)
        params: Any = optax.apply_updates(state.params, updates)
        offsets = running(state.offsets, means)
        return State(params, opt_state, chains, offsets, state.count + 1), metrics

    def parameters(self, state: State) -> Any:
        """All W and b."""
        return state.params

    def log_prob_unnormalized(self, state: State, batch: Batch) -> jax.Array:
        """The bound −E(v, μ) + H(μ) ≤ log p(v) + log Z, [B] nats."""
        mu = self._mean_field(state.params, flatten(batch["x"]), 5 * self.mean_field)
        return total(entropy(m).sum(1) for m in mu[1:]) - energy(state.params, mu)

    def score(self, state: State, batch: Batch) -> jax.Array:
        """E(v, μ) − H(μ) ≥ −log p(v) − log Z, [B] nats."""
        return -self.log_prob_unnormalized(state, batch)

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """The mean field of all hidden layers side by side, [B, D_1 + D_2 + …]."""
        mu = self._mean_field(state.params, flatten(batch["x"]), 5 * self.mean_field)
        return jnp.concatenate(mu[1:], axis=1)

    def reconstruct(self, state: State, batch: Batch) -> jax.Array:
        """E[v | x_1] at x_1 = μ_1, [B, *shape]."""
        mu = self._mean_field(state.params, flatten(batch["x"]), 5 * self.mean_field)
        return jax.nn.sigmoid(field(state.params, mu, 0)).reshape(-1, *self.shape)

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """`mixing` Gibbs sweeps from the persistent chains, in turn: [n, *shape]."""
        move_key, visible_key = jax.random.split(key)
        odd = self.fantasies(state, move_key, n)
        (visible, *_) = fields(state.params, odd, even=True)
        return bernoulli(visible_key, visible).reshape(-1, *self.shape)

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """x [B, *shape], with what `mask` (1: shown) hides drawn by `mixing` Gibbs sweeps with the
        rest clamped, from independent pixels: p(hidden | shown) in the limit of many."""
        shown = flatten(jnp.broadcast_to(jnp.asarray(mask, bool), x.shape))
        start_key, up_key, key = jax.random.split(key, 3)
        given = flatten(x)
        alone = jnp.broadcast_to(learning.log_odds(state.offsets[0])[None], given.shape)
        v = jnp.where(shown, given, bernoulli(start_key, alone))
        odd = up_pass(state.params, v, len(self.hidden), up_key)[1::2]

        def sweep(i, carry):
            _, odd = carry
            even_key, odd_key = jax.random.split(jax.random.fold_in(key, i))
            visible, *rest = draw(fields(state.params, odd, even=True), even_key)
            v = jnp.where(shown, given, visible)
            return v, draw(fields(state.params, (v, *rest), even=False), odd_key)

        return jax.lax.fori_loop(0, self.mixing, sweep, (v, odd))[0].reshape(x.shape)

    def layers(self, state: State) -> list[tuple[jax.Array, jax.Array]]:
        """The up-pass as weights and biases of its layers x ↦ σ(b + Wᵀ x)."""
        *below, last = state.params.weights
        return list(zip([*(2 * w for w in below), last], state.params.biases[1:], strict=True))

    def filters(self, state: State) -> jax.Array:
        """The weights of each unit of the first hidden layer, [D_1, *shape]."""
        return state.params.weights[0].T.reshape(-1, *self.shape)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """E(v, μ) − H(μ) + log Z ≥ −log p(v) as `nll`; log Z exact where the odd or the even layers
        have at most 25 units, else by AIS, and by AIS from both sides (`learning.likelihood`);
        `reconstruction`, as a step logs it. Raises `UserError` if x is not binary.
        """
        check_levels(data, 2)

        def of_one(batch, _):
            error = flatten(self.reconstruct(state, batch) - batch["x"]) ** 2
            return self.score(state, batch), error.mean(1)

        data_key, key = jax.random.split(key)
        energies, error = estimate.per_example(of_one, data, data_key)
        estimates = learning.likelihood(
            energies,
            self.log_partition(state),
            self.bracket(state, key),
            self.widest,
            kind="upper bound",
            **learning.settings(self),
        )
        return {**estimates, "reconstruction": estimate.mean(error, "no likelihood")}

    def log_partition(self, state: State) -> float | None:
        """log Z, exactly, or None where the odd and the even layers have more than 25 units."""
        sizes = (math.prod(self.shape), *self.hidden)
        if min(sum(sizes[0::2]), sum(sizes[1::2])) <= EXACT:
            return float(learning.precisely(jax.jit(log_partition), state.params))
        return None

    def bracket(
        self,
        state: State,
        key: jax.Array,
        temperatures: int | None = None,
        chains: int | None = None,
    ) -> estimate.LogZ:
        """log Z by AIS from both sides (`learning.bracket`)."""
        return learning.bracket(self, annealing, state, state.offsets[0], key, temperatures, chains)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return sgd(self.learning_rate, self.decay_steps, self.momentum, self.weight_decay)

    def _mean_field(self, params: Params, v: jax.Array, updates: int) -> Layers:
        """v and μ_1 … μ_L: from the up-pass with doubled weights so many updates, the odd layers
        given the even ones and these given them. Each raises the bound."""
        mu = up_pass(params, v, len(self.hidden))

        def update(_, mu):
            mu = list(mu)
            for layer in (*range(1, len(mu), 2), *range(2, len(mu), 2)):
                mu[layer] = jax.nn.sigmoid(field(params, mu, layer))
            return tuple(mu)

        few = updates <= 10  # without a loop a CPU uses all of its cores
        return jax.lax.fori_loop(0, updates, update, mu, unroll=few)

    def _together(
        self, state: State, v: jax.Array, odd: Layers
    ) -> tuple[Params, Params, Layers, Metrics]:
        """The gradient of all parameters, 1 for each that learns (all of them), the means of all
        layers over the batch, and what to log."""
        mu = jax.lax.stop_gradient(self._mean_field(state.params, v, self.mean_field))

        even = tuple(map(jax.nn.sigmoid, fields(state.params, odd, even=True)))
        model = tuple(jax.lax.stop_gradient(interleave(even, odd)))

        def gap(params):
            value = energy(params, mu).mean() - energy(params, model).mean()
            return value, value

        gradient, value = jax.grad(gap, has_aux=True)(state.params)
        if self.centred:
            gradient = Params(
                *map(tuple, learning.centre(gradient.weights, gradient.biases, state.offsets))
            )
        means = tuple(m.mean(0) for m in mu)
        reconstruction = jax.nn.sigmoid(field(state.params, mu, 0))
        learns = jax.tree.map(lambda leaf: jnp.ones(()), state.params)
        return gradient, learns, means, _metrics(value, v, reconstruction)

    def _pretrain(
        self, state: State, v: jax.Array, pair: int, key: jax.Array
    ) -> tuple[Params, Params, Layers, Metrics]:
        """As `_together`, by CD-1 for layers `pair` and `pair` + 1, those below drawn upwards.

        Their weights learn and the upper biases; the lower ones in the first pair alone: others
        have learned with the pair below, which stays as it is.

        What a layer will be told from both sides, it is told twice from its only one.
        """
        here = slice(pair, pair + 2)
        weight, offsets = state.params.weights[pair], state.offsets[here]
        b, c = state.params.biases[here]
        up, down = 1 + (pair + 1 < len(self.hidden)), 1 + (pair > 0)
        up_key, hidden_key, visible_key = jax.random.split(key, 3)
        x = up_pass(state.params, v, pair, up_key)[-1]
        logits = up * x @ weight + c[None]
        h = bernoulli(hidden_key, logits)
        again = bernoulli(visible_key, down * h @ weight.T + b[None])
        data = x, jax.nn.sigmoid(logits)
        model = again, jax.nn.sigmoid(up * again @ weight + c[None])

        def gap(params):
            value = energy(params, data).mean() - energy(params, model).mean()
            return value, value

        of_pair, value = jax.grad(gap, has_aux=True)(Params((weight,), (b, c)))
        if self.centred:
            centred = learning.centre(of_pair.weights, of_pair.biases, offsets, up, down)
            of_pair = Params(*map(tuple, centred))

        def embed(params, weight, b, c):
            """The parameters, with the pair's replaced."""
            weights, biases = list(params.weights), list(params.biases)
            weights[pair], biases[here] = weight, (b, c)
            return Params(tuple(weights), tuple(biases))

        gradient = jax.tree.map(jnp.zeros_like, state.params)
        gradient = embed(gradient, *of_pair.weights, *of_pair.biases)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(()), state.params)
        learns = embed(nothing, jnp.ones(()), jnp.full((), float(pair == 0)), jnp.ones(()))
        means = list(state.offsets)
        means[here] = data[0].mean(0), data[1].mean(0)
        expected = jax.nn.sigmoid(down * data[1] @ weight.T + b[None])
        return gradient, learns, tuple(means), _metrics(value, x, expected)

    def fantasies(self, state: State, key: jax.Array, n: int) -> Layers:
        """The odd layers of samples, [n, D_l]."""
        order_key, key = jax.random.split(key)
        start = learning.starts(state.chains, order_key, n)
        return sweep_chains(state.params, start, key, self.mixing)


def field(params: Params, layers: Sequence[jax.Array], layer: int) -> jax.Array:
    """The logits of a layer given its neighbours: b_l + W_{l−1}ᵀ x_{l−1} + W_l x_{l+1}."""
    logits = params.biases[layer][None]
    if layer > 0:
        logits = logits + layers[layer - 1] @ params.weights[layer - 1]
    if layer < len(params.weights):
        logits = logits + layers[layer + 1] @ params.weights[layer].T
    return logits


def interleave(even: Sequence[Any], odd: Sequence[Any]) -> list[Any]:
    """All layers in order from the even ones and the odd ones."""
    layers: list[Any] = [None] * (len(even) + len(odd))
    layers[0::2], layers[1::2] = even, odd
    return layers


def fields(params: Params, others: Layers, even: bool) -> Layers:
    """The logits of the even layers given the odd ones, or of these given them."""
    unknown = [None] * (len(params.biases) - len(others))
    layers = interleave(unknown, others) if even else interleave(others, unknown)
    return tuple(field(params, layers, layer) for layer in range(0 if even else 1, len(layers), 2))


def draw(logits: Sequence[jax.Array], key: jax.Array) -> Layers:
    """Units of several layers, of these logits."""
    keys = jax.random.split(key, len(logits))
    return tuple(bernoulli(key, of_layer) for key, of_layer in zip(keys, logits, strict=True))


def energy(params: Params, layers: Sequence[jax.Array]) -> jax.Array:
    """E(x_0, …, x_L), or as it is linear in each unit its mean over independent ones: [n]."""
    pairs = zip(layers, params.weights, layers[1:], strict=False)
    return -own(layers, params.biases) - total(jnp.sum(x @ w * y, axis=1) for x, w, y in pairs)


def own(layers: Sequence[jax.Array], biases: Sequence[jax.Array]) -> jax.Array:
    """Σ_l b_l·x_l over some layers, [n]."""
    return total(x @ b for x, b in zip(layers, biases, strict=True))


def summed(logits: Sequence[jax.Array]) -> jax.Array:
    """log Σ_x exp(Σ_l x_l·logits_l) over all units of some layers: Σ log(1 + exp logits), [n]."""
    return total(jax.nn.softplus(of_layer).sum(1) for of_layer in logits)


def total(terms: Iterable[jax.Array]) -> jax.Array:
    """Their sum."""
    return reduce(jnp.add, terms)


def up_pass(params: Params, v: jax.Array, layers: int, key: jax.Array | None = None) -> Layers:
    """v and so many layers above it, each from the one below alone: its mean, or with a key a draw.
    All but the machine's last layer count their input twice."""
    found = [v]
    for layer in range(layers):
        times = 1 + (layer + 1 < len(params.weights))
        logits = times * found[-1] @ params.weights[layer] + params.biases[layer + 1][None]
        if key is None:
            found.append(jax.nn.sigmoid(logits))
        else:
            found.append(bernoulli(jax.random.fold_in(key, layer), logits))
    return tuple(found)


def sweep_chains(params: Params, odd: Layers, key: jax.Array, sweeps: int) -> Layers:
    """The odd layers after so many sweeps: even given odd, odd given even."""

    def sweep(i, odd):
        even_key, odd_key = jax.random.split(jax.random.fold_in(key, i))
        even = draw(fields(params, odd, even=True), even_key)
        return draw(fields(params, even, even=False), odd_key)

    return jax.lax.fori_loop(0, sweeps, sweep, odd, unroll=sweeps <= 10)


def annealing(params: Params, mean: jax.Array) -> Annealing:
    """From independent units to the machine, over the odd layers, the even ones summed over: at β
    all parameters are β times theirs, the visible biases between those of `mean` [D] and b_0."""
    base = learning.log_odds(mean)

    def bend(logits, beta, even):
        """Those of fields at β = 1, as they are at β."""
        visible = [(1 - beta) * base[None]] if even else []
        rest = [0.0] * (len(logits) - len(visible))
        return [
            beta * of_layer + more for of_layer, more in zip(logits, visible + rest, strict=True)
        ]

    def at(odd, beta):
        even = bend(fields(params, odd, even=True), beta, even=True)
        return summed(even) + beta * own(odd, params.biases[1::2])

    def transition(odd, beta, key):
        even_key, odd_key = jax.random.split(key)
        even = draw(bend(fields(params, odd, even=True), beta, even=True), even_key)
        return draw(bend(fields(params, even, even=False), beta, even=False), odd_key)

    def start(key, n):
        return draw([jnp.zeros((n, len(b))) for b in params.biases[1::2]], key)

    hidden = sum(len(b) for b in params.biases[1:])
    log_z = jax.nn.softplus(base).sum() + hidden * math.log(2)
    return Annealing(at, transition, start, log_z)


def log_partition(params: Params) -> jax.Array:
    """log Z, exactly: summed over the odd layers, or over the even ones where these are smaller."""
    sizes = [len(b) for b in params.biases]
    over_odd = sum(sizes[1::2]) <= sum(sizes[0::2])
    mine = sizes[1::2] if over_odd else sizes[0::2]
    biases = params.biases[1::2] if over_odd else params.biases[0::2]

    def of_bits(x):
        layers = tuple(jnp.split(x, np.cumsum(mine)[:-1], axis=1))
        return own(layers, biases) + summed(fields(params, layers, even=over_odd))

    return estimate.log_sum_over_bits(of_bits, sum(mine))


def _metrics(gap: jax.Array, v: jax.Array, expected: jax.Array) -> Metrics:
    """What a phase logs, from its gap and an input with its reconstruction."""
    return {"energy_gap": gap, "reconstruction": jnp.mean((v - expected) ** 2)}
