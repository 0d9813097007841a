"""Deep belief nets. Hinton, Osindero & Teh (2006), "A fast learning algorithm for deep belief
nets"."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from gen import estimate
from gen.core import Batch, Data, Density, Metrics, Shape, check_levels, replica_key, require
from gen.estimate import Estimate
from gen.models.boltzmann import learning, rbm
from gen.models.boltzmann.learning import bernoulli, entropy
from gen.models.boltzmann.rbm import RBM
from gen.nets import flatten


class State(NamedTuple):
    """Everything that training changes."""

    machines: tuple[rbm.State, ...]  # of each pair of layers, from below
    count: jax.Array  # [], steps done


@dataclass(frozen=True)
class DBN:
    """A stack of RBMs of binary units, trained one after another, each on draws of the hidden units
    of the one below: `pretraining` steps for each, and all the rest for the last. It generates by

        p(v, h_1, …, h_L) = p(v | h_1) … p(h_{L−2} | h_{L−1}) p(h_{L−1}, h_L),

    the last factor by the last RBM, the others by the RBMs below; q(h_l | h_{l−1}) are these RBMs'
    other conditionals.
    """

    family: ClassVar[str] = "Boltzmann machine"
    density: ClassVar[Density] = "approximate"
    levels: ClassVar[int] = 2

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    hidden: tuple[int, ...] = (500, 500)
    """numbers of hidden units, from below"""
    pretraining: int = 10_000
    """steps of each RBM but the last"""
    machine: RBM = field(default_factory=RBM)
    """how each RBM learns; its number of units is set from `hidden`"""

    def __post_init__(self):
        require(len(self.hidden) > 1, f"DBN: hidden is {self.hidden}, must have two layers or more")
        require(min(self.hidden) > 0, f"DBN: hidden is {self.hidden}, must be positive")
        require(self.pretraining > 0, f"DBN: pretraining is {self.pretraining}, must be positive")
        require(self.machine.units == "binary", "DBN: machine.units must be binary")

    @property
    def machines(self) -> tuple[RBM, ...]:
        """The RBM of each pair of layers."""
        shapes = (self.shape, *((width,) for width in self.hidden))
        pairs = zip(shapes, self.hidden, strict=False)
        return tuple(replace(self.machine, shape=shape, hidden=width) for shape, width in pairs)

    def init(self, key: jax.Array) -> State:
        keys = jax.random.split(key, len(self.hidden))
        pairs = zip(self.machines, keys, strict=True)
        return State(tuple(of.init(key) for of, key in pairs), jnp.zeros((), jnp.int32))

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """The first RBM begins from the data."""
        first = self.machines[0].begin(state.machines[0], batch, key)
        return state._replace(machines=(first, *state.machines[1:]))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """One step of the RBM at hand; logs what that logs."""
        up_key, step_key = jax.random.split(key)
        up_key = replica_key(up_key, axis_name)

        def of_layer(layer):
            below = self._up(state, flatten(batch["x"]), layer, up_key)
            of, machines = self.machines[layer], list(state.machines)
            machines[layer], metrics = of.step(
                machines[layer], {"x": below}, step_key, axis_name=axis_name
            )
            return tuple(machines), metrics

        last = len(self.hidden) - 1
        layer = jnp.minimum(state.count // self.pretraining, last)
        branches = [partial(of_layer, layer) for layer in range(last + 1)]
        machines, metrics = jax.lax.switch(layer, branches)
        return State(machines, state.count + 1), metrics

    def parameters(self, state: State) -> Any:
        """Those of every RBM."""
        return tuple(of.params for of in state.machines)

    def log_prob_unnormalized(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """The bound log p(v) + log Z ≥ E_q[Σ_{l<L} log p(h_{l−1} | h_l) + H(q(h_l | h_{l−1})) −
        F(h_{L−1})] at one draw of q, [B] nats; Z and F are the last RBM's."""
        x, value = flatten(batch["x"]), 0.0
        for layer, of in enumerate(state.machines[:-1]):
            logits = rbm.hidden_field(of.params, x)
            h = bernoulli(jax.random.fold_in(key, layer), logits)
            down = rbm.visible_field(of.params, h)
            log_p = (x * down - jax.nn.softplus(down)).sum(1)
            value, x = value + log_p + entropy(jax.nn.sigmoid(logits)).sum(1), h
        return value - rbm.free_energy(state.machines[-1].params, x)

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """The hidden units' means, each layer from the means below, side by side, [B, Σ D_l]."""
        x, means = flatten(batch["x"]), []
        for of in state.machines:
            x = jax.nn.sigmoid(rbm.hidden_field(of.params, x))
            means.append(x)
        return jnp.concatenate(means, axis=1)

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """h_{L−1} from the last RBM's chains, then down: [n, *shape]."""
        top_key, down_key = jax.random.split(key)
        x = flatten(self.machines[-1].sample(state.machines[-1], top_key, n))
        for layer in reversed(range(len(self.hidden) - 1)):
            field = rbm.visible_field(state.machines[layer].params, x)
            x = bernoulli(jax.random.fold_in(down_key, layer), field)
        return x.reshape(-1, *self.shape)

    def layers(self, state: State) -> list[tuple[jax.Array, jax.Array]]:
        """The up-pass as weights and biases of its layers x ↦ σ(c + Wᵀ x)."""
        return [(of.params.weight, of.params.hidden) for of in state.machines]

    def filters(self, state: State) -> jax.Array:
        """The weights of each unit of the first hidden layer, [D_1, *shape]."""
        return self.machines[0].filters(state.machines[0])

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """The bound on −log p(v) as `nll`, at one draw for each example; log Z of the last RBM as
        in `RBM.evaluate`. Raises `UserError` if x is not binary."""
        check_levels(data, 2)
        data_key, key = jax.random.split(key)

        def of_one(batch, row_key):
            return -self.log_prob_unnormalized(state, batch, row_key)

        energies = estimate.per_example(of_one, data, data_key)
        top = self.machines[-1]
        return learning.likelihood(
            energies,
            self.log_partition(state),
            self.bracket(state, key),
            top.widest,
            kind="upper bound",
            **learning.settings(top),
        )

    def log_partition(self, state: State) -> float | None:
        """log Z of the last RBM, exactly, or None where its layers are above 25 units."""
        return self.machines[-1].log_partition(state.machines[-1])

    def bracket(
        self,
        state: State,
        key: jax.Array,
        temperatures: int | None = None,
        chains: int | None = None,
    ) -> estimate.LogZ:
        """log Z of the last RBM by AIS from both sides (`RBM.bracket`)."""
        return self.machines[-1].bracket(state.machines[-1], key, temperatures, chains)

    def _up(self, state: State, v: jax.Array, layers: int, key: jax.Array) -> jax.Array:
        """h_layers drawn upwards from v, [B, D_layers]."""
        for layer, of in enumerate(state.machines[:layers]):
            v = bernoulli(jax.random.fold_in(key, layer), rbm.hidden_field(of.params, v))
        return v
