"""Restricted Boltzmann machines with binary or Gaussian visible units.

Smolensky 1986, "Information processing in dynamical systems: foundations of harmony theory", in
*Parallel Distributed Processing* 1, chapter 6;
Hinton 2002, "Training products of experts by minimizing contrastive divergence",
https://doi.org/10.1162/089976602760128018;
Tieleman 2008, "Training restricted Boltzmann machines using approximations to the likelihood
gradient", https://doi.org/10.1145/1390156.1390290;
Salakhutdinov & Murray 2008, "On the quantitative analysis of deep belief networks",
https://doi.org/10.1145/1390156.1390266.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gen import estimate, nets, optimize
from gen.ais import Annealing, LogZ, log_sum_over_bits
from gen.core import Batch, Data, Density, Metrics, Shape, check_fields, pmean, replica_key, require
from gen.distributions import bernoulli_sample
from gen.estimate import Estimate, Kind
from gen.levels import to_floats
from gen.models.boltzmann.learning import (
    autocorrelation,
    base_rate_biases,
    centred_gradient,
    running_mean,
    start_states,
    temper,
)
from gen.models.boltzmann.partition import AIS, EXACT, ais_bracket, nll_estimates
from gen.nets import flatten
from gen.optimize import AnyOptimizer, Optimizer


class Params(NamedTuple):
    """The parameters of the energy."""

    weight: jax.Array  # [D, H], W
    visible: jax.Array  # [D], b
    hidden: jax.Array  # [H], c
    logvar: jax.Array | None  # [D], log σ² of Gaussian units, fixed; None for binary units


class Offsets(NamedTuple):
    """Running means of the units over the data, on the scale of the energy.

    They are the offsets of the centred gradient and the means of the base-rate model.
    """

    visible: jax.Array  # [D], of v, or of v / σ for Gaussian units
    hidden: jax.Array  # [H], of E[h | v]


class State(NamedTuple):
    """Everything that training changes."""

    params: Params
    opt_state: Any  # the optimiser's; momentum, if there is any, is shaped like params
    chains: jax.Array  # [C, D], v or v / σ; [R, C, D] under pt, where the last have β = 1
    offsets: Offsets


@dataclass(frozen=True)
class RBM:
    """p(v, h) = exp(−E(v, h)) / Z, with binary hidden units h and binary or Gaussian visible v:

        E(v, h) = −b·v − c·h − vᵀ W h                                       (binary v)
        E(v, h) = Σ_i ½ (v_i / σ_i − b_i)² − c·h − Σ_ij v_i / σ_i W_ij h_j    (Gaussian v).

    Summed over h, p(v) = exp(−F(v)) / Z with the free energy F(v) = −log Σ_h exp(−E(v, h)). A step
    follows the gradient of the mean of −log p(v),

        ∂/∂θ [mean of F(v) over the batch − mean of F(v) over draws of the model],

    whose terms are the positive and the negative phase. The draws come from Markov chains, which
    take `sweeps` sweeps of block Gibbs sampling in each step, h ~ p(h | v) and v ~ p(v | h):

    - `cd`, contrastive divergence: the chains start at the batch (Hinton 2002).
    - `pcd`, persistent contrastive divergence: they start where they ended in the step before
      (Tieleman 2008).
    - `pt`, parallel tempering: they persist at `ladder` temperatures, from the base-rate model to
      the machine, and neighbours swap states (Desjardins, Courville, Bengio, Vincent & Delalleau
      2010, https://proceedings.mlr.press/v9/desjardins10a.html).

    Grey values in [0, 1] are taken as probabilities of binary units, which is fit for learning
    features, and they have no likelihood. Gaussian units have a density of continuous data:
    `Dequantized(RBM(units="gaussian"))` takes data with levels. `begin` sets σ² to the variance of
    the training examples plus a hundredth of the mean variance, and training leaves it there.

    Deviations from Hinton 2002 and Tieleman 2008:

    - The hidden units are summed out in both phases; the papers sample them in one. The expected
      gradient is the same.
    - The gradient is centred (Melchior, Fischer & Wiskott 2016,
      https://jmlr.org/papers/v17/14-237.html) unless `centred` is off. Running means over the data
      are the offsets of both phases.
    - b starts at the log-odds of the mean of the data (Hinton 2012,
      https://doi.org/10.1007/978-3-642-35289-8_32, section 8.1), and the chains at examples.

    Deviations from Hinton 2012:

    - The sparsity penalty takes the mean activation over a device's batch, not a running mean.
    - The b of Gaussian units are in units of σ.

    Deviations from Desjardins et al. 2010:

    - At β = 0 stands the base-rate model, not the uniform law. The β are evenly spaced, and β
      scales W and c and moves b from the base-rate biases to its value.
    - A fair coin chooses which pairs of neighbours may swap: (0, 1), (2, 3), … or (1, 2), (3, 4), …
    """

    family: ClassVar[str] = "Boltzmann machine"
    density: ClassVar[Density] = "approximate"
    metric_units: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"reconstruction": "squared error"}
    )

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    hidden: int = 500
    """number H of hidden units"""
    units: Literal["binary", "gaussian"] = "binary"
    """kind of the visible units"""
    training: Literal["cd", "pcd", "pt"] = "pcd"
    """contrastive divergence, persistent contrastive divergence or parallel tempering"""
    sweeps: int = 1
    """Gibbs sweeps of a training step"""
    persistent_chains: int = 100
    """number C of persistent chains, at each temperature (pcd, pt)"""
    ladder: int = 10
    """number R of temperatures of parallel tempering (pt)"""
    centred: bool = True
    """take the centred gradient"""
    optimizer: AnyOptimizer = Optimizer("sgd", learning_rate=0.05)
    """optimiser"""
    sparsity: float = 0.0
    """weight of the sparsity penalty: cross-entropy between target and mean activation"""
    target: float = 0.1
    """mean activation of each hidden unit that the sparsity penalty prefers"""
    burn_in: int = 1_000
    """Gibbs sweeps from the persistent chains to a sample, or from noise to a completion"""
    ais: AIS = AIS()
    """annealed importance sampling in evaluation"""

    def __post_init__(self):
        check_fields(
            self,
            positive=("hidden", "sweeps", "persistent_chains"),
            non_negative=("sparsity", "burn_in"),
        )
        require(self.ladder > 1, f"RBM: ladder is {self.ladder}, must be 2 or more")
        require(0 < self.target < 1, f"RBM: target is {self.target}, must be between 0 and 1")

    @property
    def levels(self) -> int | None:
        """Gaussian units are continuous; the kind of a binary estimate follows from x."""
        return 0 if self.units == "gaussian" else None

    @property
    def unit_interval(self) -> bool:
        """Binary units take values in [0, 1]."""
        return self.units == "binary"

    @property
    def lacks(self) -> tuple[str, ...]:
        """p(hidden | shown) needs a sum over all states of the hidden units, of binary machines."""
        few = self.units == "binary" and self.hidden <= EXACT
        return () if few else ("conditional_log_prob",)

    def init(self, key: jax.Array) -> State:
        """Draw W ~ N(0, 0.01²), with biases 0 and σ 1; draw the chains from the law without W."""
        weight_key, chain_key = jax.random.split(key)
        size, binary = math.prod(self.shape), self.units == "binary"
        params = Params(
            0.01 * jax.random.normal(weight_key, (size, self.hidden)),
            jnp.zeros(size),
            jnp.zeros(self.hidden),
            None if binary else jnp.zeros(size),
        )
        temperatures = (self.ladder,) if self.training == "pt" else ()
        inputs = jnp.zeros((*temperatures, self.persistent_chains, size))
        offsets = Offsets(0.5 * binary * jnp.ones(size), 0.5 * jnp.ones(self.hidden))
        opt_state = optimize.init(self.optimizer, params)
        return State(params, opt_state, draw_visible(params, inputs, chain_key), offsets)

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """Set σ and the visible biases to fit the training examples; start chains at some of them.

        Without weights the visible units then have the mean of the examples. σ is 1 where all
        examples are equal up to rounding.
        """
        x, params = flatten(batch["x"]), state.params
        if self.units == "gaussian":
            params = params._replace(logvar=log_variance(x))
        v = standardized(params, x)
        mean = v.mean(0)
        chains = v[jax.random.choice(key, len(v), state.chains.shape[:-1])]
        params = params._replace(visible=visible_base_rate(params, mean))
        return state._replace(
            params=params,
            chains=chains if self.units == "gaussian" else chains.round(),
            offsets=state.offsets._replace(visible=mean),
        )

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Move the chains, then take one step along the gradient of both phases.

        Logs the difference of free energies between the phases as `free_energy_gap`; the shares of
        hidden units whose mean over the batch is below 1 % and above 99 % as `dead` and
        `saturated`; the `autocorrelation` of the chains over the step; and under parallel tempering
        the share of accepted `swaps`.
        """
        params = state.params
        v = standardized(params, batch["x"])
        # 1. Draws of the model. The replicas of pmap move shared chains alike, and chains that
        # start at their own rows differently.
        before, chains, swaps = state.chains, state.chains, {}
        if self.training == "cd":
            before, after = v, gibbs(params, v, replica_key(key, axis_name), self.sweeps)
        elif self.training == "pcd":
            after = chains = gibbs(params, chains, key, self.sweeps)
        else:
            path, betas = self.annealing(state), jnp.linspace(0.0, 1.0, self.ladder)
            chains, accepted = jax.lax.scan(
                lambda chains, key: temper(path, betas, chains, key),
                chains,
                jax.random.split(key, self.sweeps),
            )
            before, after, swaps = before[-1], chains[-1], {"swaps": accepted.mean()}

        # 2. The gradient of the positive minus the negative phase. The derivative of F(v) is
        # −v E[h | v]ᵀ in W, −E[h | v] in c and −v in b, up to a term that cancels.
        rows, n = jnp.concatenate([v, after]), len(v)
        inputs, energies = hidden_input(params, rows), free_energy(params, rows)
        h = jax.nn.sigmoid(inputs)
        slopes = jnp.concatenate([-h[:n] / n, h[n:] / len(after)])  # of the loss in the inputs
        if self.sparsity:
            penalty = jax.grad(self._sparsity_penalty)(inputs[:n])
            slopes = slopes.at[:n].add(self.sparsity * penalty)
        gradient = Params(
            rows.T @ slopes,
            after.mean(0) - v.mean(0),
            slopes.sum(0),
            None if params.logvar is None else jnp.zeros_like(params.logvar),
        )
        gap = energies[:n].mean() - energies[n:].mean()
        metrics = {"free_energy_gap": gap, "autocorrelation": autocorrelation(before, after)}
        means = Offsets(v.mean(0), h[:n].mean(0))
        gradient, means, metrics = pmean((gradient, means, metrics | swaps), axis_name)
        metrics |= {"dead": (means.hidden < 0.01).mean(), "saturated": (means.hidden > 0.99).mean()}
        # 3. Centring, about the running means.
        offsets = running_mean(state.offsets, means)
        if self.centred:
            (weight,), (visible, hidden) = centred_gradient(
                [gradient.weight], [gradient.visible, gradient.hidden], offsets
            )
            gradient = gradient._replace(weight=weight, visible=visible, hidden=hidden)
        moved, opt_state = optimize.update(self.optimizer, gradient, state.opt_state, params)
        moved = moved._replace(logvar=params.logvar)  # no optimiser moves σ
        return State(moved, opt_state, chains, offsets), metrics

    def _sparsity_penalty(self, inputs: jax.Array) -> jax.Array:
        """Return Σ_j −t log q_j − (1 − t) log(1 − q_j), q_j the mean of σ(inputs) over the batch.

        t is the target. The inputs of the hidden units are [B, H].
        """
        q = jnp.clip(jax.nn.sigmoid(inputs).mean(0), 1e-6, 1 - 1e-6)
        return jnp.sum(-self.target * jnp.log(q) - (1 - self.target) * jnp.log1p(-q))

    def parameters(self, state: State) -> Any:
        """Return W, b, c and log σ²."""
        return state.params

    def free_energy(self, state: State, batch: Batch) -> jax.Array:
        """Return F(v) = −log p(v) − log Z, [B] nats."""
        return free_energy(state.params, standardized(state.params, batch["x"]))

    def score(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the free energy, [B] nats."""
        return self.free_energy(state, batch)

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return p(h = 1 | v), [B, H]."""
        v = standardized(state.params, batch["x"])
        return jax.nn.sigmoid(hidden_input(state.params, v))

    def reconstruct(self, state: State, batch: Batch) -> jax.Array:
        """Return E[v | h] at h = E[h | v], [B, *shape]."""
        v = visible_mean(state.params, self.encode(state, batch))
        return unstandardized(state.params, v).reshape(-1, *self.shape)

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Draw by `burn_in` Gibbs sweeps from the persistent chains: [n, *shape]."""
        return self.chains(state, key, n, self.burn_in)

    def chains(self, state: State, key: jax.Array, n: int, sweeps: int) -> jax.Array:
        """Return v after Gibbs sweeps from n persistent chains: [n, *shape]."""
        v = self.fantasies(state, key, n, sweeps)
        return unstandardized(state.params, v).reshape(-1, *self.shape)

    def fantasies(self, state: State, key: jax.Array, n: int, sweeps: int) -> jax.Array:
        """Draw fantasy particles, states of the persistent chains after further Gibbs sweeps.

        Args:
          state: a state of the model.
          key: the source of every draw.
          n: the number of particles; with n > C several start at the same chain.
          sweeps: the number of Gibbs sweeps from the persistent chains.

        Returns:
          v or v / σ, [n, D].
        """
        chains = state.chains[-1] if self.training == "pt" else state.chains
        order_key, key = jax.random.split(key)
        return gibbs(state.params, start_states(chains, order_key, n), key, sweeps)

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """Draw the hidden variables of x by `burn_in` Gibbs sweeps with the shown ones clamped.

        The start is the base-rate model. The law is p(hidden | shown) in the limit of many sweeps.
        """
        params = state.params
        shown = flatten(jnp.broadcast_to(jnp.asarray(mask, bool), x.shape))
        start_key, key = jax.random.split(key)
        given = standardized(params, x)
        base = visible_base_rate(params, state.offsets.visible)[None]
        start = draw_visible(params, jnp.broadcast_to(base, given.shape), start_key)

        def sweep(i, v):
            v = gibbs(params, v, jax.random.fold_in(key, i), 1)
            return jnp.where(shown, given, v)

        v = jax.lax.fori_loop(0, self.burn_in, sweep, jnp.where(shown, given, start))
        return jnp.where(shown, flatten(x), unstandardized(params, v)).reshape(x.shape)

    def conditional_log_prob(self, state: State, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Return −F(v) − log Σ over the hidden variables of exp(−F), [B] nats.

        The sum runs over the states of h. Given h the hidden variables are independent:

            Σ_h exp(Σ_shown v_i b_i + h·(c + Σ_shown v_i W_i)) Π_hidden (1 + exp(b_i + W_i h)).

        Args:
          state: a state of the model.
          x: examples, [B, *shape].
          mask: 1 where a variable is shown, [B, *shape] or [*shape]. A mask of the shape of one
            example is shared by the batch, and then so is the product.
        """
        params, v = state.params, standardized(state.params, x)
        mask = jnp.asarray(mask) != 0
        shared = mask.ndim == len(self.shape)
        mask = mask.reshape(-1) if shared else flatten(mask)

        def log_sum(v, mask):
            shown = jnp.where(mask, v, 0.0)
            inputs = params.hidden + shown @ params.weight

            def log_terms(h):
                hidden = jnp.where(mask[None], 0.0, jax.nn.softplus(visible_input(params, h)))
                return h @ inputs + hidden.sum(1)

            return shown @ params.visible + log_sum_over_bits(log_terms, self.hidden)

        log_sums = jax.vmap(log_sum, in_axes=(0, None if shared else 0))(v, mask)
        return -free_energy(params, v) - log_sums

    def layers(self, state: State, batch: Batch) -> list[jax.Array]:
        """Return the code alone, p(h = 1 | v), [B, H]."""
        return [self.encode(state, batch)]

    def encoder_network(self, state: State) -> tuple[nn.Module, Any]:
        """Return x ↦ σ(c + Wᵀ x) as an `MLP`, with W / σ in place of W for Gaussian x."""
        weight = standardized(state.params, state.params.weight.T).T
        return nets.sigmoid_layers([(weight, state.params.hidden)])

    def filters(self, state: State) -> jax.Array:
        """Return the weights W of each hidden unit, [H, *shape]."""
        return state.params.weight.T.reshape(-1, *self.shape)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return −log p(v) as `nll`, with the estimates of log Z that `nll_estimates` lists.

        log Z is exact if H, or D of binary units, is at most 25. `reconstruction` is the squared
        error per variable of x ↦ E[v | E[h | x]], which is no likelihood. For binary units and grey
        values `nll` is of the kind `no likelihood`.
        """
        data_key, key = jax.random.split(key)

        def one(batch, row_key):
            error = flatten(self.reconstruct(state, batch) - batch["x"]) ** 2
            return self.score(state, batch, row_key), error.mean(1)

        energies, error = estimate.per_example(one, data, data_key)
        x, gaussian = np.asarray(data["x"]), self.units == "gaussian"
        grey = not gaussian and np.any((x != 0) & (x != 1))
        kind: Kind = "no likelihood" if grey else "exact"
        settings = {"density": True} if gaussian else {}
        return {
            **nll_estimates(self, state, energies, key, kind, **settings),
            "reconstruction": estimate.mean(error, "no likelihood"),
        }

    def log_partition(self, state: State) -> float | None:
        """Return the exact log Z, or None if H and, for binary units, D are above 25."""
        size = math.prod(self.shape)
        if self.hidden > EXACT and (self.units == "gaussian" or size > EXACT):
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
        """Return the path of AIS over v, from the base-rate model to the machine.

        Salakhutdinov & Murray 2008. At β the weights and hidden biases are βW and βc, the visible
        biases are (1 − β) base + βb, and the hidden units are summed over:

            log p*_β(v) = −E_v(v; (1 − β) base + βb) + Σ_j log(1 + exp β(c_j + W_jᵀ v)).
        """
        params = state.params
        base = visible_base_rate(params, state.offsets.visible)

        def log_density(v, beta):
            summed = jax.nn.softplus(beta * hidden_input(params, v)).sum(1)
            return summed - visible_energy(params, (1 - beta) * base + beta * params.visible, v)

        def transition(v, beta, key):
            hidden_key, visible_key = jax.random.split(key)
            h = bernoulli_sample(hidden_key, beta * hidden_input(params, v))
            mixed = beta * visible_input(params, h) + (1 - beta) * base[None]
            return draw_visible(params, mixed, visible_key)

        def start(key, n):
            return draw_visible(params, jnp.broadcast_to(base[None], (n, len(base))), key)

        log_z = visible_log_partition(params, base[None], base)[0] + self.hidden * math.log(2)
        return Annealing(log_density, transition, start, log_z)


def log_variance(x: jax.Array) -> jax.Array:
    """Return log σ² of each variable of x [N, D].

    σ² is the variance of the variable plus 1 % of the mean variance of all variables. If all
    variables are constant up to rounding, log σ² is 0.
    """
    mean = x.mean(0)
    size = jnp.abs(x - mean[None]).max()
    constant = size <= 1e-6 * jnp.abs(mean).max()
    size = jnp.where(constant, 1.0, size)
    # Squares relative to the largest value neither overflow nor vanish.
    variance = (((x - mean[None]) / size) ** 2).mean(0)
    variance = jnp.where(constant, 1.0, variance + 0.01 * variance.mean())
    return jnp.log(variance) + 2 * jnp.log(size)


def standardized(params: Params, x: jax.Array) -> jax.Array:
    """Return rows [n, D] of examples on the scale of the energy: Gaussian units divided by σ."""
    v = flatten(to_floats(x, None))
    return v if params.logvar is None else v * jnp.exp(-0.5 * params.logvar)[None]


def unstandardized(params: Params, v: jax.Array) -> jax.Array:
    """Return rows [n, D] on the scale of the data: Gaussian units multiplied by σ."""
    return v if params.logvar is None else v * jnp.exp(0.5 * params.logvar)[None]


def hidden_input(params: Params, v: jax.Array) -> jax.Array:
    """Return the inputs c + Wᵀ v of the hidden units, which are the logits of h given v, [n, H]."""
    return v @ params.weight + params.hidden[None]


def visible_input(params: Params, h: jax.Array) -> jax.Array:
    """Return the inputs b + W h of the visible units, [n, D].

    They are the logits of binary v, and the means of Gaussian v / σ, given h.
    """
    return h @ params.weight.T + params.visible[None]


def visible_mean(params: Params, h: jax.Array) -> jax.Array:
    """Return E[v | h], or E[v / σ | h] of Gaussian units, [n, D]."""
    inputs = visible_input(params, h)
    return jax.nn.sigmoid(inputs) if params.logvar is None else inputs


def draw_visible(params: Params, inputs: jax.Array, key: jax.Array) -> jax.Array:
    """Draw visible units given their inputs.

    Args:
      params: the parameters, which tell binary from Gaussian units.
      inputs: logits of binary v, or means of Gaussian v / σ, [..., D].
      key: the source of the draws.
    """
    if params.logvar is None:
        return bernoulli_sample(key, inputs)
    return inputs + jax.random.normal(key, inputs.shape)


def visible_energy(params: Params, bias: jax.Array, v: jax.Array) -> jax.Array:
    """Return the term of the energy in v alone: −b·v, or Σ ½ (v − b)² for Gaussian v / σ.

    Args:
      params: the parameters, which tell binary from Gaussian units.
      bias: the visible biases b, [D].
      v: v or v / σ, [n, D].

    Returns:
      [n], nats.
    """
    return -v @ bias if params.logvar is None else 0.5 * ((v - bias[None]) ** 2).sum(1)


def free_energy(params: Params, v: jax.Array) -> jax.Array:
    """Return F(v) = −log Σ_h exp(−E(v, h)) = E_v(v) − Σ_j log(1 + exp(c_j + W_jᵀ v)), [n] nats."""
    own = visible_energy(params, params.visible, v)
    return own - jax.nn.softplus(hidden_input(params, v)).sum(1)


def gibbs(params: Params, v: jax.Array, key: jax.Array, sweeps: int) -> jax.Array:
    """Return v after sweeps of block Gibbs sampling, h ~ p(h | v) and then v ~ p(v | h).

    Args:
      params: the parameters.
      v: the states to start from, [n, D]. Grey values count as probabilities of binary v.
      key: the source of every draw.
      sweeps: the number of sweeps.
    """

    def sweep(i, v):
        hidden_key, visible_key = jax.random.split(jax.random.fold_in(key, i))
        h = bernoulli_sample(hidden_key, hidden_input(params, v))
        return draw_visible(params, visible_input(params, h), visible_key)

    few = sweeps <= 10  # without a loop a CPU uses all of its cores
    return jax.lax.fori_loop(0, sweeps, sweep, v, unroll=few)


def visible_base_rate(params: Params, mean: jax.Array) -> jax.Array:
    """Return the visible biases at which units without weights have a given mean, [D]."""
    return base_rate_biases(mean) if params.logvar is None else mean


def visible_log_partition(params: Params, inputs: jax.Array, bias: jax.Array) -> jax.Array:
    """Return log Σ_v exp(−E_v(v) + a·v), or its integral over Gaussian v, at a = inputs − b.

    Binary: Σ_i log(1 + exp input_i). Gaussian: Σ_i ½ log 2πσ_i² + ½ (input_i² − b_i²).

    Args:
      params: the parameters, which tell binary from Gaussian units.
      inputs: the inputs b + W h, [n, D].
      bias: the visible biases b, [D].

    Returns:
      [n], nats.
    """
    if params.logvar is None:
        return jax.nn.softplus(inputs).sum(1)
    normaliser = 0.5 * (math.log(2 * math.pi) + params.logvar).sum()
    return 0.5 * (inputs**2 - bias[None] ** 2).sum(1) + normaliser


def log_partition(params: Params) -> jax.Array:
    """Return the exact log Z, a sum over the hidden units, or over binary v if D < H."""
    size, hidden = params.weight.shape
    if params.logvar is None and size < hidden:
        return log_sum_over_bits(lambda v: -free_energy(params, v), size)

    def log_sum_over_visible(h):
        inputs = visible_input(params, h)
        return h @ params.hidden + visible_log_partition(params, inputs, params.visible)

    return log_sum_over_bits(log_sum_over_visible, hidden)
