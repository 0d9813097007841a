"""Deep belief nets.

Hinton, Osindero & Teh 2006, "A fast learning algorithm for deep belief nets",
https://doi.org/10.1162/neco.2006.18.7.1527.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen import estimate, nets
from gen.ais import LogZ
from gen.core import Batch, Data, Density, Metrics, Shape, check_fields, replica_key, require
from gen.distributions import bernoulli_entropy, bernoulli_nll, bernoulli_sample
from gen.estimate import Estimate
from gen.levels import check_levels
from gen.models.boltzmann.partition import nll_estimates
from gen.models.boltzmann.rbm import RBM, free_energy, hidden_input, visible_input
from gen.models.boltzmann.rbm import State as MachineState
from gen.nets import flatten
from gen.optimize import Optimizer


class State(NamedTuple):
    """Everything that training changes."""

    machines: tuple[MachineState, ...]  # the RBM of each pair of layers, from below
    count: jax.Array  # [], steps done


@dataclass(frozen=True)
class DBN:
    """p(v, h_1, …, h_L) = p(v | h_1) … p(h_{L−2} | h_{L−1}) p(h_{L−1}, h_L), all units binary.

    The last factor is an RBM; the others are the conditionals p(visible | hidden) of RBMs below
    it. Training is greedy and layerwise: the RBMs learn one after another, each on draws of the
    hidden units of the one below. Each takes `pretraining` steps, and the last all further steps.
    With q(h_l | h_{l−1}) the other conditionals of the RBMs and F the free energy of the last,

        log p(v) ≥ E_q[Σ_{l<L} log p(h_{l−1} | h_l) + H(q(h_l | h_{l−1})) − F(h_{L−1})] − log Z,
        where h_0 = v.

    Deviations from Hinton, Osindero & Teh 2006:

    - There is no fine-tuning by the up-down algorithm, so recognition and generative weights of the
      lower layers stay tied.
    - There are no labels among the units of the last RBM.
    - The RBMs learn as `machine` says, by default by persistent contrastive divergence with centred
      gradients; the paper's learn by contrastive divergence.
    - An RBM starts at small random weights. The paper's guarantee that a layer raises the bound
      holds for one that starts at the transposed weights of the RBM below.
    """

    family: ClassVar[str] = "Boltzmann machine"
    density: ClassVar[Density] = "approximate"
    levels: ClassVar[int] = 2

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    hidden: tuple[int, ...] = (500, 500)
    """numbers of hidden units, from below"""
    pretraining: int = 10_000
    """training steps of each RBM but the last"""
    machine: RBM = RBM()
    """RBM of each pair of layers; its shape and hidden are set by the net"""

    def __post_init__(self):
        require(len(self.hidden) > 1, f"DBN: hidden is {self.hidden}, must have two layers or more")
        check_fields(self, positive=("hidden", "pretraining"))
        require(self.machine.units == "binary", "DBN: machine.units must be binary")
        optimizer = self.machine.optimizer
        require(
            not isinstance(optimizer, Optimizer)
            or optimizer.schedule == "constant"
            or optimizer.decay_steps is not None,
            "DBN: machine.optimizer has a cosine schedule without a length, and no RBM trains for "
            f"the whole run: set its decay_steps, for example to pretraining, {self.pretraining}",
        )

    @property
    def machines(self) -> tuple[RBM, ...]:
        """The RBM of each pair of layers, from below."""
        shapes = (self.shape, *((width,) for width in self.hidden))
        pairs = zip(shapes, self.hidden, strict=False)
        return tuple(replace(self.machine, shape=shape, hidden=width) for shape, width in pairs)

    def init(self, key: jax.Array) -> State:
        keys = jax.random.split(key, len(self.hidden))
        pairs = zip(self.machines, keys, strict=True)
        return State(tuple(each.init(key) for each, key in pairs), jnp.zeros((), jnp.int32))

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """Let the first RBM begin from the data."""
        first = self.machines[0].begin(state.machines[0], batch, key)
        return state._replace(machines=(first, *state.machines[1:]))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one step of the RBM whose turn it is, and log its metrics."""
        up_key, step_key = jax.random.split(key)
        up_key = replica_key(up_key, axis_name)

        def step_of(layer):
            h = flatten(batch["x"])
            for below, each in enumerate(state.machines[:layer]):
                logits = hidden_input(each.params, h)
                h = bernoulli_sample(jax.random.fold_in(up_key, below), logits)
            machines = list(state.machines)
            machines[layer], metrics = self.machines[layer].step(
                machines[layer], {"x": h}, step_key, axis_name=axis_name
            )
            return tuple(machines), metrics

        count = len(self.hidden)
        layer = jnp.minimum(state.count // self.pretraining, count - 1)
        branches = [partial(step_of, layer) for layer in range(count)]
        machines, metrics = jax.lax.switch(layer, branches)
        return State(machines, state.count + 1), metrics

    def parameters(self, state: State) -> Any:
        """Return the parameters of every RBM."""
        return tuple(each.params for each in state.machines)

    def score(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the bound on −log p(v) − log Z at one draw from q, [B] nats."""
        x, value = flatten(batch["x"]), 0.0
        for layer, each in enumerate(state.machines[:-1]):
            logits = hidden_input(each.params, x)
            h = bernoulli_sample(jax.random.fold_in(key, layer), logits)
            value += bernoulli_nll(visible_input(each.params, h), x)
            value -= bernoulli_entropy(jax.nn.sigmoid(logits)).sum(1)
            x = h
        return value + free_energy(state.machines[-1].params, x)

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return the means of the hidden units, each layer from the means below: [B, Σ D_l]."""
        return jnp.concatenate(self.layers(state, batch), axis=1)

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Draw by `machine.burn_in` Gibbs sweeps of the last RBM, then downwards: [n, *shape]."""
        return self.chains(state, key, n, self.machine.burn_in)

    def chains(self, state: State, key: jax.Array, n: int, sweeps: int) -> jax.Array:
        """Draw v from h_{L−1} after Gibbs sweeps of the last RBM's chains: [n, *shape]."""
        top_key, down_key = jax.random.split(key)
        x = self.machines[-1].chains(state.machines[-1], top_key, n, sweeps)
        for layer in reversed(range(len(self.hidden) - 1)):
            logits = visible_input(state.machines[layer].params, x)
            x = bernoulli_sample(jax.random.fold_in(down_key, layer), logits)
        return x.reshape(-1, *self.shape)

    def layers(self, state: State, batch: Batch) -> list[jax.Array]:
        """Return the means of each hidden layer, [B, D_l]; side by side they are the code."""
        x, means = flatten(batch["x"]), []
        for each in state.machines:
            x = jax.nn.sigmoid(hidden_input(each.params, x))
            means.append(x)
        return means

    def encoder_network(self, state: State) -> tuple[nn.Module, Any]:
        """Return the upward pass as an `MLP` of layers x ↦ σ(c + Wᵀ x)."""
        weights = [(each.params.weight, each.params.hidden) for each in state.machines]
        return nets.sigmoid_layers(weights)

    def filters(self, state: State) -> jax.Array:
        """Return the weights of each unit of the first hidden layer, [D_1, *shape]."""
        return self.machines[0].filters(state.machines[0])

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return the bound on −log p(v) at one draw for each example as `nll`.

        log Z of the last RBM is estimated as in `RBM.evaluate`.
        """
        check_levels(data, 2)
        data_key, key = jax.random.split(key)
        energies = estimate.per_example(partial(self.score, state), data, data_key)
        last = self.machines[-1], state.machines[-1]
        return nll_estimates(*last, energies, key, "upper bound")

    def log_partition(self, state: State) -> float | None:
        """Return the exact log Z of the last RBM, or None if both its layers exceed 25 units."""
        return self.machines[-1].log_partition(state.machines[-1])

    def bracket(
        self,
        state: State,
        key: jax.Array,
        temperatures: int | None = None,
        chains: int | None = None,
    ) -> LogZ:
        """Bracket log Z of the last RBM by AIS from both sides."""
        return self.machines[-1].bracket(state.machines[-1], key, temperatures, chains)
