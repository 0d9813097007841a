"""General Boltzmann machines.

Ackley, Hinton & Sejnowski 1985, "A learning algorithm for Boltzmann machines",
https://doi.org/10.1207/s15516709cog0901_7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from gen import estimate, optimize
from gen.ais import Annealing, LogZ, log_sum_over_bits
from gen.core import Batch, Data, Density, Metrics, Shape, check_fields, require
from gen.distributions import bernoulli_sample
from gen.estimate import Estimate
from gen.levels import check_levels
from gen.models.boltzmann.learning import autocorrelation, base_rate_biases, start_states
from gen.models.boltzmann.partition import AIS, EXACT, ais_bracket, nll_estimates
from gen.nets import flatten
from gen.optimize import AnyOptimizer, Optimizer


class Params(NamedTuple):
    """The parameters of the energy, over the D visible and then the H hidden units; N = D + H."""

    weight: jax.Array  # [N, N]: U_ij for i < j, and 0 elsewhere
    biases: jax.Array  # [N], b


class State(NamedTuple):
    """Everything that training changes."""

    params: Params
    opt_state: Any  # the optimiser's; momentum, if there is any, is shaped like params
    chains: jax.Array  # [C, N], all units of the persistent chains
    mean: jax.Array  # [D], mean of training examples: the base-rate model of AIS


@dataclass(frozen=True)
class BoltzmannMachine:
    """p(x) = exp(−E(x)) / Z of binary units x = (v, h), every two of them connected:

        E(x) = −Σ_i b_i x_i − Σ_{i<j} U_ij x_i x_j.

    A step follows the gradient of the mean of −log p(v),

        ∂/∂θ [mean of F(v) over the batch − mean of F(v) over persistent chains],

    whose terms are the positive and the negative phase. The free energy
    F(v) = −log Σ_h exp(−E(v, h)) is summed over all 2^H states of the hidden units. The chains move
    by Gibbs sampling: a sweep draws one unit after another, forwards and then backwards.

    Deviations from Ackley, Hinton & Sejnowski 1985:

    - The hidden units are summed out in both phases; the paper samples them by annealing.
    - The negative phase takes persistent chains (Tieleman 2008,
      https://doi.org/10.1145/1390156.1390290); the paper anneals from a random state each time.
    - Units are drawn in a fixed order, so that a sweep is reversible; the paper's order is random.
    - The visible biases start at the log-odds of the mean of the data.
    """

    family: ClassVar[str] = "Boltzmann machine"
    density: ClassVar[Density] = "approximate"
    levels: ClassVar[int] = 2

    shape: Shape = (8, 8, 1)
    """shape of one example"""
    hidden: int = 8
    """number H of hidden units, at most 16"""
    sweeps: int = 1
    """Gibbs sweeps of a training step"""
    persistent_chains: int = 100
    """number C of persistent chains"""
    optimizer: AnyOptimizer = Optimizer("sgd", learning_rate=0.05)
    """optimiser"""
    burn_in: int = 200
    """Gibbs sweeps from the persistent chains to a sample, or from noise to a completion"""
    ais: AIS = AIS(temperatures=1_000)
    """annealed importance sampling in evaluation"""

    def __post_init__(self):
        check_fields(self, positive=("sweeps", "persistent_chains"), non_negative=("burn_in",))
        require(
            0 <= self.hidden <= 16,
            f"BoltzmannMachine: hidden is {self.hidden}, must be 0 … 16 to sum over the states",
        )

    def init(self, key: jax.Array) -> State:
        """Draw U ~ N(0, 0.1²) for pairs with a hidden unit, to tell these apart; set the rest to 0.

        The chains are fair coins.
        """
        weight_key, chain_key = jax.random.split(key)
        size = math.prod(self.shape)
        n = size + self.hidden
        weight = 0.1 * jnp.triu(jax.random.normal(weight_key, (n, n)), 1).at[:size, :size].set(0)
        params = Params(weight, jnp.zeros(n))
        chains = bernoulli_sample(chain_key, jnp.zeros((self.persistent_chains, n)))
        opt_state = optimize.init(self.optimizer, params)
        return State(params, opt_state, chains, 0.5 * jnp.ones(size))

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """Set the visible biases to the log-odds of the mean of the training examples."""
        mean = flatten(batch["x"]).mean(0)
        biases = state.params.biases.at[: len(mean)].set(base_rate_biases(mean))
        return state._replace(params=state.params._replace(biases=biases), mean=mean)

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Move the chains, then take one step along the gradient of both phases.

        Logs the difference of free energies between the phases as `free_energy_gap`, and the
        `autocorrelation` of the chains over the step.
        """
        v, size = flatten(batch["x"]), math.prod(self.shape)
        chains = gibbs(state.params, state.chains, key, self.sweeps)

        def loss(params):
            gap = free_energy(params, v).mean() - free_energy(params, chains[:, :size]).mean()
            return gap, {"free_energy_gap": gap}

        gradient, metrics = optimize.gradient(loss, state.params, axis_name)
        metrics["autocorrelation"] = autocorrelation(state.chains, chains)
        params, opt_state = optimize.update(self.optimizer, gradient, state.opt_state, state.params)
        return State(params, opt_state, chains, state.mean), metrics

    def parameters(self, state: State) -> Any:
        """Return U above its diagonal, and b."""
        above = jnp.triu_indices(len(state.params.biases), 1)
        return state.params.weight[above], state.params.biases

    def free_energy(self, state: State, batch: Batch) -> jax.Array:
        """Return F(v) = −log p(v) − log Z, [B] nats."""
        return free_energy(state.params, flatten(batch["x"]))

    def score(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the free energy, [B] nats."""
        return self.free_energy(state, batch)

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return p(h_j = 1 | v), [B, H], exact although the h_j are not independent given v."""
        h, log_p = hidden_states(state.params, flatten(batch["x"]))
        return jax.nn.softmax(log_p, axis=1) @ h

    def layers(self, state: State, batch: Batch) -> list[jax.Array]:
        """Return the code alone, p(h_j = 1 | v), [B, H]."""
        return [self.encode(state, batch)]

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Draw by `burn_in` Gibbs sweeps from the persistent chains: [n, *shape]."""
        return self.chains(state, key, n, self.burn_in)

    def chains(self, state: State, key: jax.Array, n: int, sweeps: int) -> jax.Array:
        """Return v after Gibbs sweeps from n persistent chains: [n, *shape]."""
        x = self.fantasies(state, key, n, sweeps)
        return x[:, : math.prod(self.shape)].reshape(-1, *self.shape)

    def fantasies(self, state: State, key: jax.Array, n: int, sweeps: int) -> jax.Array:
        """Draw fantasy particles, states of the persistent chains after further Gibbs sweeps.

        Args:
          state: a state of the model.
          key: the source of every draw.
          n: the number of particles; with n > C several start at the same chain.
          sweeps: the number of Gibbs sweeps from the persistent chains.

        Returns:
          All units, [n, N].
        """
        order_key, key = jax.random.split(key)
        start = start_states(state.chains, order_key, n)
        return gibbs(state.params, start, key, sweeps)

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """Draw the hidden variables of x by `burn_in` Gibbs sweeps with the shown ones clamped.

        The start is the base-rate model. The law is p(hidden | shown) in the limit of many sweeps.
        """
        shown = flatten(jnp.broadcast_to(jnp.asarray(mask, bool), x.shape))
        clamped = jnp.pad(shown, ((0, 0), (0, self.hidden)))
        start_key, key = jax.random.split(key)
        given = jnp.pad(flatten(x), ((0, 0), (0, self.hidden)))
        base = jnp.pad(base_rate_biases(state.mean), (0, self.hidden))
        start = bernoulli_sample(start_key, jnp.broadcast_to(base[None], given.shape))
        start = jnp.where(clamped, given, start)
        drawn = gibbs(state.params, start, key, self.burn_in, clamped=clamped)
        return drawn[:, : shown.shape[1]].reshape(x.shape)

    def tables(self, state: State) -> dict[str, jax.Array]:
        """Return the weights U + Uᵀ between all units, visible ones first."""
        return {"weights": couplings(state.params)}

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return −log p(v) as `nll`, with the estimates of log Z that `nll_estimates` lists.

        log Z is exact if there are at most 25 units in all.
        """
        check_levels(data, 2)
        data_key, key = jax.random.split(key)
        energies = estimate.per_example(
            lambda batch, row_key: self.score(state, batch, row_key), data, data_key
        )
        return nll_estimates(self, state, energies, key)

    def log_partition(self, state: State) -> float | None:
        """Return the exact log Z, or None if there are more than 25 units."""
        if len(state.params.biases) > EXACT:
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
        """Return the path of AIS over all units, from the base-rate model to the machine.

        log p*_β(x) = (1 − β) base·x − β E(x): at β all parameters are β times the machine's, and
        the visible biases are (1 − β) base + βb.
        """
        params = state.params
        base = jnp.pad(base_rate_biases(state.mean), (0, self.hidden))

        def log_density(x, beta):
            return (1 - beta) * x @ base - beta * energy(params, x)

        def transition(x, beta, key):
            return gibbs(params, x, key, 1, base=(1 - beta) * base, beta=beta)

        def start(key, n):
            return bernoulli_sample(key, jnp.broadcast_to(base[None], (n, len(base))))

        return Annealing(log_density, transition, start, jax.nn.softplus(base).sum())


def couplings(params: Params) -> jax.Array:
    """Return U + Uᵀ, whose diagonal is 0, from the upper triangle of U: [N, N]."""
    above = jnp.triu(params.weight, 1)
    return above + above.T


def energy(params: Params, x: jax.Array) -> jax.Array:
    """Return E(x) of all units x [n, N]: [n] nats."""
    return -x @ params.biases - 0.5 * jnp.sum(x @ couplings(params) * x, axis=1)


def hidden_states(params: Params, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return all states h of the hidden units, and −E(v, h) of each row of v with each state.

    Args:
      params: the parameters.
      v: visible units, [n, D].

    Returns:
      h, [2^H, H], and −E(v, h), [n, 2^H].
    """
    size = v.shape[1]
    hidden = len(params.biases) - size
    number = jnp.arange(2**hidden, dtype=jnp.uint32)[:, None]
    h = ((number >> jnp.arange(hidden, dtype=jnp.uint32)[None]) & 1).astype(v.dtype)
    u, b = couplings(params), params.biases
    among_v = v @ b[:size] + 0.5 * jnp.sum(v @ u[:size, :size] * v, axis=1)
    among_h = h @ b[size:] + 0.5 * jnp.sum(h @ u[size:, size:] * h, axis=1)
    return h, among_v[:, None] + among_h[None] + v @ u[:size, size:] @ h.T


def free_energy(params: Params, v: jax.Array) -> jax.Array:
    """Return F(v) = −log Σ_h exp(−E(v, h)), [n] nats."""
    return -jax.nn.logsumexp(hidden_states(params, v)[1], axis=1)


def gibbs(
    params: Params,
    x: jax.Array,
    key: jax.Array,
    sweeps: int,
    base: jax.Array | float = 0.0,
    beta: jax.Array | float = 1.0,
    clamped: jax.Array | None = None,
) -> jax.Array:
    """Return x after Gibbs sweeps, which draw each unit given all others.

    A sweep visits the units in order and then in reverse order, so it is reversible.

    Args:
      params: the parameters.
      x: all units, [n, N].
      key: the source of every draw.
      sweeps: the number of sweeps.
      base: numbers added to the logits of the units, [N] or 0.
      beta: the factor of the machine's logits b_i + Σ_j U_ij x_j.
      clamped: the units that keep their values, [n, N]; None draws all.
    """
    u, n = couplings(params), len(params.biases)
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


def log_partition(params: Params) -> jax.Array:
    """Return the exact log Z, a sum over all 2^N states."""
    return log_sum_over_bits(lambda x: -energy(params, x), len(params.biases))
