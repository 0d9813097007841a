"""General Boltzmann machines. Ackley, Hinton & Sejnowski (1985), "A learning algorithm for
Boltzmann machines"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen import estimate
from gen.core import Batch, Data, Density, Metrics, Shape, check_levels, pmean, require, sgd
from gen.estimate import Annealing, Estimate
from gen.models.boltzmann import learning
from gen.models.boltzmann.learning import EXACT, bernoulli
from gen.nets import flatten


class Params(NamedTuple):
    """The energy's parameters, over the D visible and then the H hidden units, N = D + H."""

    weight: jax.Array  # [N, N]: U_ij for i < j counts, the rest is 0
    biases: jax.Array  # [N], b


class State(NamedTuple):
    """Everything that training changes."""

    params: Params
    opt_state: Any  # the momentum, shaped like params, if there is one; the step count of a decay
    chains: jax.Array  # [C, N], all units of the persistent chains
    mean: jax.Array  # [D], of training examples: where AIS starts


@dataclass(frozen=True)
class BoltzmannMachine:
    """p(x) = exp(−E(x)) / Z of binary units x = (v, h), each connected to each other:

        E(x) = −Σ_i b_i x_i − Σ_{i<j} U_ij x_i x_j.

    A step goes down

        ∂/∂θ [mean over the batch of F(v) − mean over persistent chains of F(v)],

    where F(v) = −log Σ_h exp(−E(v, h)) is summed over all 2^H states of the hidden units: the two
    phases of the paper, the hidden units' part in them exact. The chains move by Gibbs sweeps, one
    unit after another, forwards and back.
    """

    family: ClassVar[str] = "Boltzmann machine"
    density: ClassVar[Density] = "approximate"
    levels: ClassVar[int] = 2

    shape: Shape = (8, 8, 1)
    """shape of one example"""
    hidden: int = 8
    """number H of hidden units, at most 16"""
    sweeps: int = 1
    """Gibbs sweeps of a step"""
    chains: int = 100
    """persistent chains"""
    learning_rate: float = 0.05
    """step size"""
    decay_steps: int = 0
    """let the step size fall to 0 over so many steps, along a cosine (0: constant)"""
    momentum: float = 0.0
    """momentum of the steps"""
    weight_decay: float = 0.0
    """share of the weights, times the step size, that a step takes off them"""
    temperatures: int = 1_000
    """temperatures of AIS"""
    annealed: int = 500
    """chains of AIS, in either direction"""
    mixing: int = 200
    """Gibbs sweeps from the chains to samples"""
    widest: float = 1.0
    """nats that the two ends of AIS may lie apart without a warning"""

    def __post_init__(self):
        require(0 <= self.hidden <= 16, f"hidden is {self.hidden}, must be 0 … 16 to sum over")
        for name in ("sweeps", "chains", "temperatures", "annealed"):
            value = getattr(self, name)
            require(value > 0, f"BoltzmannMachine: {name} is {value}, must be > 0")
        require(self.mixing >= 0, f"BoltzmannMachine: mixing is {self.mixing}, must be ≥ 0")
        _ = self._optimizer  # raises if its settings are wrong

    def init(self, key: jax.Array) -> State:
        """U ~ N(0, 0.1²) among hidden units and between them and visible ones, to tell the hidden
        units apart; else 0. The chains are fair coins."""
        weight_key, chain_key = jax.random.split(key)
        size = math.prod(self.shape)
        n = size + self.hidden
        weight = 0.1 * jnp.triu(jax.random.normal(weight_key, (n, n)), 1).at[:size, :size].set(0)
        params = Params(weight, jnp.zeros(n))
        chains = bernoulli(chain_key, jnp.zeros((self.chains, n)))
        return State(params, self._optimizer.init(params), chains, 0.5 * jnp.ones(size))

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """The visible biases begin at the log odds of the mean of training examples."""
        mean = flatten(batch["x"]).mean(0)
        biases = state.params.biases.at[: len(mean)].set(learning.log_odds(mean))
        return state._replace(params=state.params._replace(biases=biases), mean=mean)

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Moves the chains, then takes one step down the free-energy difference; logs that as
        `free_energy_gap`, and the `autocorrelation` of the chains over the step."""
        v, size = flatten(batch["x"]), math.prod(self.shape)
        chains = gibbs(state.params, state.chains, key, self.sweeps)

        def loss(params):
            gap = free_energy(params, v).mean() - free_energy(params, chains[:, :size]).mean()
            return gap, {"free_energy_gap": gap}

        gradient, metrics = pmean(jax.grad(loss, has_aux=True)(state.params), axis_name)
        metrics["autocorrelation"] = learning.autocorrelation(state.chains, chains)
        updates, opt_state = self._optimizer.update(gradient, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return State(params, opt_state, chains, state.mean), metrics

    def parameters(self, state: State) -> Any:
        """U above its diagonal, and b."""
        above = jnp.triu_indices(len(state.params.biases), 1)
        return state.params.weight[above], state.params.biases

    def log_prob_unnormalized(self, state: State, batch: Batch) -> jax.Array:
        """−F(v) = log p(v) + log Z, [B] nats."""
        return -free_energy(state.params, flatten(batch["x"]))

    def score(self, state: State, batch: Batch) -> jax.Array:
        """The free energy F(v) = −log p(v) − log Z, [B] nats."""
        return free_energy(state.params, flatten(batch["x"]))

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """p(h_j = 1 | v), exactly: the hidden units are not independent given v. [B, H]."""
        h, log_p = hidden_states(state.params, flatten(batch["x"]))
        return jax.nn.softmax(log_p, axis=1) @ h

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """`mixing` Gibbs sweeps from the chains, in turn: [n, *shape]."""
        size = math.prod(self.shape)
        return self.fantasies(state, key, n)[:, :size].reshape(-1, *self.shape)

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """x [B, *shape], with what `mask` (1: shown) hides drawn by `mixing` Gibbs sweeps with the
        rest clamped, from independent pixels: p(hidden | shown) in the limit of many."""
        shown = flatten(jnp.broadcast_to(jnp.asarray(mask, bool), x.shape))
        clamped = jnp.pad(shown, ((0, 0), (0, self.hidden)))
        start_key, key = jax.random.split(key)
        given = jnp.pad(flatten(x), ((0, 0), (0, self.hidden)))
        base = jnp.pad(learning.log_odds(state.mean), (0, self.hidden))
        start = bernoulli(start_key, jnp.broadcast_to(base[None], given.shape))
        start = jnp.where(clamped, given, start)
        drawn = gibbs(state.params, start, key, self.mixing, clamped=clamped)
        return drawn[:, : shown.shape[1]].reshape(x.shape)

    def tables(self, state: State) -> dict[str, jax.Array]:
        """The weights U + Uᵀ between all units, visible ones first."""
        return {"weights": state.params.weight + state.params.weight.T}

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """−log p(v) as `nll`: exact where there are at most 25 units in all, else by AIS; log Z by
        AIS from both sides (`learning.likelihood`). Raises `UserError` if x is not binary."""
        check_levels(data, 2)
        data_key, key = jax.random.split(key)
        energies = estimate.per_example(lambda batch, _: self.score(state, batch), data, data_key)
        return learning.likelihood(
            energies,
            self.log_partition(state),
            self.bracket(state, key),
            self.widest,
            **learning.settings(self),
        )

    def log_partition(self, state: State) -> float | None:
        """log Z, exactly, or None where there are more than 25 units."""
        if len(state.params.biases) <= EXACT:
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
        return learning.bracket(self, annealing, state, state.mean, key, temperatures, chains)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return sgd(self.learning_rate, self.decay_steps, self.momentum, self.weight_decay)

    def fantasies(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Samples with their hidden units, [n, N]."""
        order_key, key = jax.random.split(key)
        start = learning.starts(state.chains, order_key, n)
        return gibbs(state.params, start, key, self.mixing)


def couplings(params: Params) -> jax.Array:
    """U + Uᵀ from above the diagonal, which is 0: [N, N]."""
    above = jnp.triu(params.weight, 1)
    return above + above.T


def energy(params: Params, x: jax.Array) -> jax.Array:
    """E(x) of all units [n, N]: [n]."""
    return -x @ params.biases - 0.5 * jnp.sum(x @ couplings(params) * x, axis=1)


def hidden_states(params: Params, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All h, [2^H, H], and −E(v, h) of v [n, D] with each, [n, 2^H]."""
    size = v.shape[1]
    hidden = len(params.biases) - size
    number = jnp.arange(2**hidden, dtype=jnp.uint32)[:, None]
    h = ((number >> jnp.arange(hidden, dtype=jnp.uint32)[None]) & 1).astype(v.dtype)
    u = couplings(params)
    among_v = -energy(Params(params.weight[:size, :size], params.biases[:size]), v)
    among_h = -energy(Params(params.weight[size:, size:], params.biases[size:]), h)
    return h, among_v[:, None] + among_h[None] + v @ u[:size, size:] @ h.T


def free_energy(params: Params, v: jax.Array) -> jax.Array:
    """F(v) = −log Σ_h exp(−E(v, h)), [n] nats."""
    return -jax.nn.logsumexp(hidden_states(params, v)[1], axis=1)


def gibbs(
    params: Params,
    x: jax.Array,
    key: jax.Array,
    sweeps: int = 1,
    base: jax.Array | float = 0.0,
    beta: jax.Array | float = 1.0,
    clamped: jax.Array | None = None,
) -> jax.Array:
    """x [n, N] after so many sweeps, each drawing every unit given all others, in order and then in
    reverse: so a sweep is reversible. Logits are `base` [N] + `beta` times the machine's; units
    that are `clamped` [n, N] stay."""
    u = couplings(params)
    n = len(params.biases)
    order = jnp.concatenate([jnp.arange(n), jnp.arange(n)[::-1]])
    base = jnp.broadcast_to(jnp.asarray(base), (n,))

    def one_sweep(i, x):
        uniforms = jax.random.uniform(jax.random.fold_in(key, i), (2 * n, len(x)))

        def one_unit(x, inputs):
            unit, uniform = inputs
            logits = base[unit] + beta * (x @ u[:, unit] + params.biases[unit])
            drawn = (uniform < jax.nn.sigmoid(logits)).astype(x.dtype)
            if clamped is not None:
                drawn = jnp.where(clamped[:, unit], x[:, unit], drawn)
            return x.at[:, unit].set(drawn), None

        return jax.lax.scan(one_unit, x, (order, uniforms))[0]

    return jax.lax.fori_loop(0, sweeps, one_sweep, x)


def annealing(params: Params, mean: jax.Array) -> Annealing:
    """From independent units, the visible ones of that mean [D], to the machine: at β all
    parameters are β times theirs, the visible biases between those of the mean and b."""
    base = jnp.pad(learning.log_odds(mean), (0, len(params.biases) - len(mean)))

    def log_density(x, beta):
        return (1 - beta) * x @ base - beta * energy(params, x)

    def transition(x, beta, key):
        return gibbs(params, x, key, base=(1 - beta) * base, beta=beta)

    def start(key, n):
        return bernoulli(key, jnp.broadcast_to(base[None], (n, len(base))))

    return Annealing(log_density, transition, start, jax.nn.softplus(base).sum())


def log_partition(params: Params) -> jax.Array:
    """log Z, summed over all states."""
    return estimate.log_sum_over_bits(lambda x: -energy(params, x), len(params.biases))
