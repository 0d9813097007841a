"""Restricted Boltzmann machines, of binary or Gaussian visible units.

Smolensky (1986); Hinton (2002), "Training products of experts by minimizing contrastive
divergence"; Tieleman (2008), "Training restricted Boltzmann machines using approximations to the
likelihood gradient"; Salakhutdinov & Murray (2008), "On the quantitative analysis of deep belief
networks".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen import estimate
from gen.core import Batch, Data, Density, Metrics, Shape, pmean, replica_key, require, sgd
from gen.estimate import Annealing, Estimate
from gen.models.boltzmann import learning
from gen.models.boltzmann.learning import EXACT, bernoulli, running
from gen.nets import flatten


class Params(NamedTuple):
    """The energy's parameters."""

    weight: jax.Array  # [D, H], W
    visible: jax.Array  # [D], b
    hidden: jax.Array  # [H], c
    logvar: jax.Array | None  # [D], log σ², of Gaussian units; fixed


class Offsets(NamedTuple):
    """Running means over the data: what the centred gradient takes off the units, and where the
    machine without weights stands that AIS starts from."""

    visible: jax.Array  # [D], μ
    hidden: jax.Array  # [H], λ


class State(NamedTuple):
    """Everything that training changes."""

    params: Params
    opt_state: Any  # the momentum, shaped like params, if there is one; the step count of a decay
    chains: jax.Array  # [C, D]; by tempering [R, C, D], the last of them at the model's temperature
    offsets: Offsets


@dataclass(frozen=True)
class RBM:
    """p(v, h) = exp(−E(v, h)) / Z, with binary hidden units h and

        E(v, h) = −b·v − c·h − vᵀ W h                                       (binary v)
        E(v, h) = Σ_i ½ (v_i / σ_i − b_i)² − c·h − Σ_ij v_i / σ_i W_ij h_j    (Gaussian v).

    A step goes down the difference of free energies F(v) = −log Σ_h exp(−E(v, h)),

        ∂/∂θ [mean of F(v) over the batch − mean of F(v) over chains],

    which is that of −log p(v) in expectation, if the chains have the model's law. They move by
    `sweeps` Gibbs sweeps first: from the batch in contrastive divergence (`cd`), from where they
    were in persistent CD (`pcd`), and so at several temperatures that swap in parallel tempering
    (`pt`, Desjardins et al. 2010), from the model to the machine without weights.

    Grey values in [0, 1] are taken as probabilities of binary units: for features, not for a
    likelihood. σ² is not learned: `begin` sets it to the variance of training examples plus 0.01.

    Deviations: hidden units are summed over in both terms, where papers sample them in one, which
    changes no expectation; the centred gradient (Melchior et al. 2016) takes running means over
    the data as the offsets of both terms.
    """

    family: ClassVar[str] = "Boltzmann machine"
    density: ClassVar[Density] = "approximate"

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    hidden: int = 500
    """number H of hidden units"""
    units: Literal["binary", "gaussian"] = "binary"
    """kind of the visible units"""
    training: Literal["cd", "pcd", "pt"] = "pcd"
    """where the chains of a step start"""
    sweeps: int = 1
    """Gibbs sweeps of a step"""
    chains: int = 100
    """persistent chains (pcd, pt)"""
    ladder: int = 10
    """temperatures of the chains (pt)"""
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
    sparsity: float = 0.0
    """weight of the sparsity penalty, the cross-entropy of target and mean over a device's batch"""
    target: float = 0.1
    """mean activation that the penalty draws each hidden unit to"""
    temperatures: int = 10_000
    """temperatures of AIS"""
    annealed: int = 500
    """chains of AIS, in either direction"""
    mixing: int = 1_000
    """Gibbs sweeps from the chains to samples"""
    widest: float = 1.0
    """nats that the two ends of AIS may lie apart without a warning"""

    def __post_init__(self):
        for name in ("hidden", "sweeps", "chains", "temperatures", "annealed"):
            require(getattr(self, name) > 0, f"RBM: {name} is {getattr(self, name)}, must be > 0")
        require(self.ladder > 1, f"RBM: ladder is {self.ladder}, must be 2 or more")
        require(0 < self.target < 1, f"RBM: target is {self.target}, must be between 0 and 1")
        require(self.sparsity >= 0, f"RBM: sparsity is {self.sparsity}, must not be negative")
        require(self.mixing >= 0, f"RBM: mixing is {self.mixing}, must not be negative")
        _ = self._optimizer  # raises if its settings are wrong

    def init(self, key: jax.Array) -> State:
        """W ~ N(0, 0.01²), biases 0 and σ 1; the chains are draws of this machine without W."""
        weight_key, chain_key = jax.random.split(key)
        size, binary = math.prod(self.shape), self.units == "binary"
        params: Any = Params(
            0.01 * jax.random.normal(weight_key, (size, self.hidden)),
            jnp.zeros(size),
            jnp.zeros(self.hidden),
            None if binary else jnp.zeros(size),
        )
        levels = (self.ladder,) if self.training == "pt" else ()
        chains = draw(params, jnp.zeros((*levels, self.chains, size)), chain_key)
        offsets = Offsets(0.5 * binary * jnp.ones(size), 0.5 * jnp.ones(self.hidden))
        return State(params, self._optimizer.init(params), chains, offsets)

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """μ and b begin so that the units without weights have the mean of training examples; the
        chains are some of them."""
        v = flatten(batch["x"])
        mean, params = v.mean(0), state.params
        rows = v[jax.random.choice(key, len(v), state.chains.shape[:-1])]
        if self.units == "gaussian":
            params = params._replace(logvar=jnp.log(v.var(0) + 1e-2))
        params = params._replace(visible=base_biases(params, mean))
        chains = rows if self.units == "gaussian" else rows.round()
        return State(params, state.opt_state, chains, state.offsets._replace(visible=mean))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Moves the chains, then takes one step down the free-energy difference.

        Logs that as `free_energy_gap`; as `reconstruction` the squared error per variable of
        v ↦ E[v | E[h | v]], which is no likelihood; the shares of hidden units whose mean over the
        batch is below 1 % (`dead`) or above 99 % (`saturated`); the `autocorrelation` of the
        chains over the step; by tempering the share of `swaps` that were made.
        """
        params, v = state.params, flatten(batch["x"])
        before, after, chains, metrics = self._move(state, v, key, axis_name)

        def loss(params):
            gap = free_energy(params, v).mean() - free_energy(params, after).mean()
            h = jax.nn.sigmoid(hidden_field(params, v))
            if not self.sparsity:
                return gap, (gap, h)
            q = jnp.clip(h.mean(0), 1e-6, 1 - 1e-6)
            cross = -self.target * jnp.log(q) - (1 - self.target) * jnp.log1p(-q)
            return gap + self.sparsity * cross.sum(), (gap, h)

        gradient, (gap, h) = jax.grad(loss, has_aux=True)(params)
        metrics |= {
            "free_energy_gap": gap,
            "reconstruction": jnp.mean((v - visible_mean(params, h)) ** 2),
            "autocorrelation": learning.autocorrelation(before, after),
        }
        means = Offsets(v.mean(0), h.mean(0))
        gradient, metrics, means = pmean((gradient, metrics, means), axis_name)
        metrics |= {"dead": (means.hidden < 0.01).mean(), "saturated": (means.hidden > 0.99).mean()}
        offsets = running(state.offsets, means)
        if params.logvar is not None:
            gradient = gradient._replace(logvar=jnp.zeros_like(params.logvar))
        if self.centred:
            (weight,), (visible, hidden) = learning.centre(
                [gradient.weight],
                [gradient.visible, gradient.hidden],
                [standardised(params, offsets.visible[None])[0], offsets.hidden],
            )
            gradient = gradient._replace(weight=weight, visible=visible, hidden=hidden)
        updates, opt_state = self._optimizer.update(gradient, state.opt_state, params)
        params: Any = optax.apply_updates(params, updates)
        return State(params, opt_state, chains, offsets), metrics

    def parameters(self, state: State) -> Any:
        """W, b, c and log σ²."""
        return state.params

    def log_prob_unnormalized(self, state: State, batch: Batch) -> jax.Array:
        """−F(v) = log p(v) + log Z, [B] nats."""
        return -free_energy(state.params, flatten(batch["x"]))

    def score(self, state: State, batch: Batch) -> jax.Array:
        """The free energy F(v) = −log p(v) − log Z, [B] nats."""
        return free_energy(state.params, flatten(batch["x"]))

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """p(h = 1 | v), [B, H]."""
        return jax.nn.sigmoid(hidden_field(state.params, flatten(batch["x"])))

    def reconstruct(self, state: State, batch: Batch) -> jax.Array:
        """E[v | h] at h = E[h | v], [B, *shape]."""
        v = visible_mean(state.params, self.encode(state, batch))
        return v.reshape(-1, *self.shape)

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """`mixing` Gibbs sweeps from the chains, in turn: [n, *shape]."""
        return self.fantasies(state, key, n).reshape(-1, *self.shape)

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """x [B, *shape], with what `mask` (1: shown) hides drawn by `mixing` Gibbs sweeps with the
        rest clamped, from independent pixels: p(hidden | shown) in the limit of many."""
        shown = flatten(jnp.broadcast_to(jnp.asarray(mask, bool), x.shape))
        start_key, key = jax.random.split(key)
        given = flatten(x)
        base = base_biases(state.params, state.offsets.visible)
        base = jnp.broadcast_to(base[None], given.shape)
        start = jnp.where(shown, given, draw(state.params, base, start_key))

        def sweep(i, v):
            v = gibbs(state.params, v, jax.random.fold_in(key, i))
            return jnp.where(shown, given, v)

        return jax.lax.fori_loop(0, self.mixing, sweep, start).reshape(x.shape)

    def layers(self, state: State) -> list[tuple[jax.Array, jax.Array]]:
        """The layer v ↦ σ(c + Wᵀ v) as its weights and biases."""
        return [(state.params.weight, state.params.hidden)]

    def filters(self, state: State) -> jax.Array:
        """The weights of each hidden unit, [H, *shape]."""
        return state.params.weight.T.reshape(-1, *self.shape)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """−log p(v) as `nll`, exact where H (or a binary D) is at most 25, else by AIS; log Z by
        AIS from both sides (`learning.likelihood`); `reconstruction`, as a step logs it.

        Binary units give no probability to grey values: of these, `nll` is of the kind
        `no likelihood`. That of Gaussian units is of a density.
        """

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
            **learning.settings(self),
        )
        x = np.asarray(data["x"])
        for name in estimates.keys() & {"nll", "nll_reverse"}:
            nll = estimates[name]
            if self.units == "gaussian":
                nll = replace(nll, settings={**nll.settings, "density": True})
            elif np.any((x != 0) & (x != 1)):
                nll = replace(nll, kind="no likelihood")
            estimates[name] = nll
        return {**estimates, "reconstruction": estimate.mean(error, "no likelihood")}

    def log_partition(self, state: State) -> float | None:
        """log Z, exactly, or None where H and (of binary units) D are above 25."""
        size = math.prod(self.shape)
        if self.hidden <= EXACT or (self.units == "binary" and size <= EXACT):
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
        return learning.bracket(
            self, annealing, state, state.offsets.visible, key, temperatures, chains
        )

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return sgd(self.learning_rate, self.decay_steps, self.momentum, self.weight_decay)

    def _move(
        self, state: State, v: jax.Array, key: jax.Array, axis_name: str | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, Metrics]:
        """The chains of a step before and after it, those to keep, and what is to be logged.

        The replicas of `pmap` share persistent chains, so move them alike; those of CD start from
        each replica's rows, and the chains of the state are left as they are.
        """
        if self.training == "cd":
            after = gibbs(state.params, v, replica_key(key, axis_name), self.sweeps)
            return v, after, state.chains, {}
        if self.training == "pcd":
            after = gibbs(state.params, state.chains, key, self.sweeps)
            return state.chains, after, after, {}
        path = annealing(state.params, state.offsets.visible)

        def sweep(chains, sweep_key):
            return learning.temper(path, jnp.linspace(0.0, 1.0, self.ladder), chains, sweep_key)

        chains, swaps = jax.lax.scan(sweep, state.chains, jax.random.split(key, self.sweeps))
        return state.chains[-1], chains[-1], chains, {"swaps": swaps.mean()}

    def fantasies(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Samples before they get their shape, [n, D]."""
        chains = state.chains[-1] if self.training == "pt" else state.chains
        order_key, key = jax.random.split(key)
        start = learning.starts(chains, order_key, n)
        return gibbs(state.params, start, key, self.mixing)


def standardised(params: Params, v: jax.Array) -> jax.Array:
    """v [n, D] as the hidden units see it: Gaussian units divided by σ."""
    return v if params.logvar is None else v * jnp.exp(-0.5 * params.logvar)[None]


def hidden_field(params: Params, v: jax.Array) -> jax.Array:
    """The logits of h given v [n, D], [n, H]: c + Wᵀ v, of Gaussian units c + Wᵀ (v / σ)."""
    return standardised(params, v) @ params.weight + params.hidden[None]


def visible_field(params: Params, h: jax.Array) -> jax.Array:
    """b + W h of h [n, H], [n, D]: the logits of v given h, or the means of Gaussian v / σ."""
    return h @ params.weight.T + params.visible[None]


def visible_mean(params: Params, h: jax.Array) -> jax.Array:
    """E[v | h], [n, D]."""
    field = visible_field(params, h)
    if params.logvar is None:
        return jax.nn.sigmoid(field)
    return field * jnp.exp(0.5 * params.logvar)[None]


def visible_energy(params: Params, bias: jax.Array, v: jax.Array) -> jax.Array:
    """What v [n, D] adds to the energy by itself, at the visible biases given: [n]."""
    if params.logvar is None:
        return -v @ bias
    return 0.5 * ((standardised(params, v) - bias[None]) ** 2).sum(1)


def draw(params: Params, field: jax.Array, key: jax.Array) -> jax.Array:
    """Visible units of these fields [..., D]."""
    if params.logvar is None:
        return bernoulli(key, field)
    deviation = jnp.broadcast_to(jnp.exp(0.5 * params.logvar), field.shape)
    return deviation * (field + jax.random.normal(key, field.shape))


def free_energy(params: Params, v: jax.Array) -> jax.Array:
    """F(v) = −log Σ_h exp(−E(v, h)) = E_v(v) − Σ_j log(1 + exp(c_j + W_jᵀ v)): [n] nats."""
    own = visible_energy(params, params.visible, v)
    return own - jax.nn.softplus(hidden_field(params, v)).sum(1)


def gibbs(params: Params, v: jax.Array, key: jax.Array, sweeps: int = 1) -> jax.Array:
    """v [n, D] after so many sweeps h ~ p(h | v), v ~ p(v | h). Grey values count as p(v = 1)."""

    def sweep(i, v):
        hidden_key, visible_key = jax.random.split(jax.random.fold_in(key, i))
        h = bernoulli(hidden_key, hidden_field(params, v))
        return draw(params, visible_field(params, h), visible_key)

    few = sweeps <= 10  # without a loop a CPU uses all of its cores
    return jax.lax.fori_loop(0, sweeps, sweep, v, unroll=few)


def base_biases(params: Params, mean: jax.Array) -> jax.Array:
    """The visible biases at which independent units have that mean, [D]."""
    return learning.log_odds(mean) if params.logvar is None else standardised(params, mean[None])[0]


def annealing(params: Params, mean: jax.Array) -> Annealing:
    """From independent visible units of that mean to the machine (Salakhutdinov & Murray 2008): at
    β the weights and hidden biases are β times theirs, the visible biases lie between those of the
    mean and b, and the hidden units are summed over."""
    base = base_biases(params, mean)

    def bias(beta):
        return (1 - beta) * base + beta * params.visible

    def log_density(v, beta):
        summed = jax.nn.softplus(beta * hidden_field(params, v)).sum(1)
        return summed - visible_energy(params, bias(beta), v)

    def transition(v, beta, key):
        hidden_key, visible_key = jax.random.split(key)
        h = bernoulli(hidden_key, beta * hidden_field(params, v))
        field = beta * visible_field(params, h) + (1 - beta) * base[None]
        return draw(params, field, visible_key)

    def start(key, n):
        return draw(params, jnp.broadcast_to(base[None], (n, len(base))), key)

    alone = visible_log_partition(params, base[None], base)[0]
    return Annealing(log_density, transition, start, alone + len(params.hidden) * math.log(2))


def visible_log_partition(params: Params, field: jax.Array, bias: jax.Array) -> jax.Array:
    """log Σ_v (or ∫ dv) exp(−E_v(v) + a·v) at a = field − bias (Gaussian: a·v / σ), of fields
    [n, D]: [n].

    Binary: Σ log(1 + exp field). Gaussian: Σ ½ log 2πσ² + ½ (field² − bias²).
    """
    if params.logvar is None:
        return jax.nn.softplus(field).sum(1)
    normaliser = 0.5 * (math.log(2 * math.pi) + params.logvar).sum()
    return 0.5 * (field**2 - bias[None] ** 2).sum(1) + normaliser


def log_partition(params: Params) -> jax.Array:
    """log Z, exactly: summed over the hidden units, or binary visible ones where they are fewer."""
    size, hidden = params.weight.shape
    if params.logvar is None and size < hidden:
        return estimate.log_sum_over_bits(lambda v: -free_energy(params, v), size)

    def of_hidden(h):
        field = visible_field(params, h)
        return h @ params.hidden + visible_log_partition(params, field, params.visible)

    return estimate.log_sum_over_bits(of_hidden, hidden)
