"""A causal network as a model: exact log p, ancestral samples, completions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gen import estimate, nets, optimize
from gen.core import (
    Batch,
    Data,
    Density,
    Metrics,
    Shape,
    check_fields,
    negative_log_prob,
    replica_key,
    require,
)
from gen.distributions import categorical_from_uniform, categorical_log_prob
from gen.estimate import Estimate
from gen.levels import check_levels, to_index, to_value
from gen.optimize import AnyOptimizer, Optimizer


class State(NamedTuple):
    """Everything that training changes."""

    params: Any  # the network's parameters
    ema: Any  # their exponential moving average; () if ema_decay is 0
    opt_state: Any  # Adam's two moments, each shaped like params, and its step count


class CausalNet(Protocol):
    """A Flax module whose logits are causal: the logits of x_d depend on the variables before it.

    Each of the D variables has C logits: one if it is binary, else one for each level. A module
    that lists `out` in `set_by_model` is given (D, C) as that field. A network may have several
    masks, each with an order of its own. It has parameters alone: no batch statistics. It may use
    dropout in training steps, where `self.has_rng("dropout")` is true.

    `start`, `logits_at` and `put` compute the same logits one variable at a time, for sampling.
    They run inside of `apply`, and the computation that the variables share lives in the Flax
    collection `cache`. Without these three methods, sampling runs the whole network for each
    variable.
    """

    @property
    def masks(self) -> int:
        """Number of masks."""
        ...

    @property
    def raster(self) -> bool:
        """Every mask takes the variables in their own order, 0 … D − 1."""
        ...

    def order(self, mask_index: Any, size: int) -> jax.Array:
        """Return the variables in the order of a mask, [D]; `size` is D."""
        ...

    def __call__(self, x: jax.Array, mask_index: Any) -> jax.Array:
        """Return the logits [B, D, C] of all variables of x [B, *shape], under a mask."""
        ...

    def start(self, x: jax.Array, mask_index: Any) -> None:
        """Fill the cache as it is before the first variable; x is zeros, [B, *shape]."""
        ...

    def logits_at(self, d: jax.Array, mask_index: Any) -> jax.Array:
        """Return the logits [B, C] of variable d, after `put` of all variables before it."""
        ...

    def put(self, d: jax.Array, value: jax.Array, mask_index: Any) -> None:
        """Add to the cache that variable d has the values [B].

        Args:
          d: the variable, [].
          value: its values in [0, 1], [B].
          mask_index: the mask, [].
        """
        ...


class WholePasses(nn.Module):
    """Incremental sampling for a network that lacks it: one whole pass for each variable."""

    net: nn.Module

    def start(self, x, mask_index):
        self.put_variable("cache", "x", x)

    def logits_at(self, d, mask_index):
        return self.net(self.get_variable("cache", "x"), mask_index)[:, d]

    def put(self, d, value, mask_index):
        x = self.get_variable("cache", "x")
        x = nets.flatten(x).at[:, d].set(value).reshape(x.shape)
        self.put_variable("cache", "x", x)


@dataclass(frozen=True)
class Autoregressive:
    """log p(x) = Σ_d log p(x_d | x_<d), exact, maximised by Adam.

    Each variable has `levels` equally spaced values in [0, 1]. A binary variable is Bernoulli with
    one logit; others follow a softmax over their levels. Values of x between two levels are rounded
    to one of them, and `evaluate` refuses them.

    If the network has M > 1 masks, a step trains with one of them, drawn, and the model is their
    mixture: p(x) = 1/M Σ_m p_m(x) (Uria, Murray & Larochelle 2014,
    https://arxiv.org/abs/1310.1757).

    Deviations from the papers of all networks:

    - Adam, in the published runs with a cosine schedule, in place of SGD (NADE), Adagrad or
      Adadelta (MADE) and RMSProp (PixelCNN).
    - With `ema_decay` the model is evaluated at an exponential moving average of its parameters.
    """

    family: ClassVar[str] = "fully visible belief net"
    density: ClassVar[Density] = "tractable"

    score = negative_log_prob

    net: nn.Module
    """causal network: FVSBN, NADE, MADE, PixelCNN, GatedPixelCNN, or any `CausalNet`"""
    shape: Shape = (28, 28, 1)
    """shape of one example"""
    levels: int = 2
    """number of values that a variable can take"""
    optimizer: AnyOptimizer = Optimizer("adam", learning_rate=1e-3)
    """optimiser"""
    ema_decay: float = 0.0
    """weight of the past in the moving average of the parameters, which evaluation and sampling use
    (0: they use the parameters themselves)"""

    def __post_init__(self):
        check_fields(self, fraction=("ema_decay",))
        require(self.levels > 1, f"Autoregressive: levels is {self.levels}, must be 2 or more")
        for name in ("masks", "raster", "order"):
            require(
                hasattr(self.net, name),
                f"Autoregressive: the network {type(self.net).__name__} lacks `{name}`: add what "
                "gen.models.autoregressive.CausalNet lists",
            )

    @property
    def completion(self) -> Literal["raster", "order"]:
        """A completion is exact where all shown variables come first in the order."""
        return "raster" if self._net.masks == 1 and self._net.raster else "order"

    @property
    def lacks(self) -> tuple[str, ...]:
        """Several masks have no common order, so that no variables come first in all of them."""
        return ("log_conditionals", "conditional_log_prob") if self._net.masks > 1 else ()

    def init(self, key: jax.Array) -> State:
        net, name, x = self._net, type(self.net).__name__, jnp.zeros((1, *self.shape))
        params, others = nets.init(net, key, x, 0)
        others = sorted(set(others) - {"cache"})
        require(not others, f"{name} has {others}, Autoregressive takes parameters alone")
        needed, logits = (1, *self._out), jax.eval_shape(self.logits, params, x, 0, None)
        require(
            logits.shape == needed,
            f"{name} returns logits {list(logits.shape)} of one example, needed is {list(needed)}",
        )
        ema = jax.tree.map(jnp.copy, params) if self.ema_decay else ()
        return State(params, ema, optimize.init(self.optimizer, params))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one optimiser step on −log p under one mask, equal for all replicas; log `loss`."""
        mask_key, dropout_key = jax.random.split(key)
        mask_index = self._draw_mask(mask_key)
        dropout_key = replica_key(dropout_key, axis_name)

        def loss(params):
            nll = -self._log_prob(params, batch["x"], mask_index, dropout_key).mean()
            return nll, {"loss": nll}

        gradient, metrics = optimize.gradient(loss, state.params, axis_name)
        params, opt_state = optimize.update(self.optimizer, gradient, state.opt_state, state.params)
        ema = state.ema
        if self.ema_decay:
            ema = optax.incremental_update(params, ema, 1 - self.ema_decay)
        return State(params, ema, opt_state), metrics

    def parameters(self, state: State) -> Any:
        """Return the network's parameters, also the weights that a mask hides."""
        return state.params

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return −log p under one mask, drawn for the whole batch, [B] nats."""
        return -self._log_prob(self._averaged(state), batch["x"], self._draw_mask(key))

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return −log p(x) as `nll`, exact; on more than two levels also as `bits_per_dim`."""
        check_levels(data, self.levels)
        nll = estimate.per_example(lambda batch, _: -self.log_prob(state, batch), data, key)
        settings = {"masks": self._net.masks} if self._net.masks > 1 else {}
        estimates = {"nll": estimate.mean(nll, "exact", **settings)}
        if self.levels > 2:
            bits = estimate.in_bits(estimates["nll"], math.prod(self.shape))
            estimates["bits_per_dim"] = bits
        return estimates

    def log_prob(self, state: State, batch: Batch) -> jax.Array:
        """Return log 1/M Σ_m p_m(x) over the masks, exact, [B] nats."""
        masks = self._net.masks
        under_each = jax.lax.map(
            lambda mask_index: self._log_prob(self._averaged(state), batch["x"], mask_index),
            jnp.arange(masks),
        )
        return jax.nn.logsumexp(under_each, axis=0) - math.log(masks)

    def log_conditionals(self, state: State, batch: Batch) -> jax.Array:
        """Return log p(x_d | x_<d), exact, under the only mask: [B, *shape] nats."""
        return self._log_conditionals(self._averaged(state), batch["x"], 0).reshape(-1, *self.shape)

    def _log_prob(
        self, params: Any, x: jax.Array, mask_index: Any, key: jax.Array | None = None
    ) -> jax.Array:
        """Return Σ_d log p(x_d | x_<d) under one mask, [B] nats. A key turns dropout on."""
        return self._log_conditionals(params, x, mask_index, key).sum(axis=1)

    def _log_conditionals(
        self, params: Any, x: jax.Array, mask_index: Any, key: jax.Array | None = None
    ) -> jax.Array:
        """Return log p(x_d | x_<d) under one mask, [B, D] nats. A key turns dropout on."""
        index = to_index(x, self.levels)
        values = to_value(index, self.levels)
        logits = self.logits(params, values, mask_index, key)
        return categorical_log_prob(logits, index.reshape(logits.shape[:2]))

    def logits(
        self, params: Any, x: jax.Array, mask_index: Any, key: jax.Array | None
    ) -> jax.Array:
        """Return the logits of all variables, [B, D, C].

        Args:
          params: the network's parameters.
          x: values in [0, 1], [B, *shape].
          mask_index: the mask, below the network's number of masks.
          key: the key of dropout; None turns dropout off.
        """
        rngs = None if key is None else {"dropout": key}
        return self._net.apply({"params": params}, x, mask_index, rngs=rngs)

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Draw n samples by ancestral sampling, variable by variable, [n, *shape].

        Several masks share the samples evenly. Each sample is a draw of p, and the masks of
        different samples are drawn without replacement.
        """
        masks_key, uniforms_key, order_key = jax.random.split(key, 3)
        each = -(-n // self._net.masks)
        masks = jax.random.permutation(masks_key, self._net.masks)[: -(-n // each)]
        uniforms = jax.random.uniform(uniforms_key, (len(masks), each, math.prod(self.shape)))
        hidden, shown = jnp.zeros((each, *self.shape)), jnp.zeros(self.shape, bool)

        def under_mask(inputs):
            mask_index, u = inputs
            return self.ancestral(self._averaged(state), u, mask_index, hidden, shown)[0]

        x = jax.lax.map(under_mask, (masks, uniforms)).reshape(-1, *self.shape)
        return jax.random.permutation(order_key, x)[:n]

    def complete(
        self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array, particles: int = 1
    ) -> jax.Array:
        """Return x with its hidden variables drawn in order, each given the variables before it.

        With one mask these are draws of p(hidden | shown) if all shown variables come before the
        first hidden one, as the upper half of an image does in raster order. Otherwise a draw
        ignores the shown variables that come after it in the order, and with several masks each
        particle takes a random mask whatever is shown. One of the particles is chosen
        in proportion to Π p(x_d | x_<d) over the shown variables, and its law tends to
        p(hidden | shown) as their number grows (sampling importance resampling; Smith & Gelfand
        1992, https://doi.org/10.1080/00031305.1992.10475856).

        Args:
          particles: the number of draws of which one is chosen.
        """
        mask = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        masks_key, uniforms_key, choice_key = jax.random.split(key, 3)
        masks = jax.random.randint(masks_key, (particles,), 0, self._net.masks)
        uniforms = jax.random.uniform(uniforms_key, (particles, len(x), math.prod(self.shape)))

        def particle(inputs):
            mask_index, u = inputs
            return self.ancestral(self._averaged(state), u, mask_index, x, mask)

        drawn, log_weight = jax.lax.map(particle, (masks, uniforms))
        chosen = jax.random.categorical(choice_key, log_weight, axis=0)
        return drawn[chosen, jnp.arange(len(x))]

    def conditional_log_prob(self, state: State, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Return Σ log p(x_d | x_<d) over the hidden variables, [B] nats.

        Args:
          state: a state of the model.
          x: examples, [B, *shape].
          mask: 1 where a variable is shown, [*shape] or [B, *shape]. The sum is
            log p(hidden | shown) if all shown variables come before the first hidden one.
        """
        each = self._log_conditionals(self._averaged(state), x, 0)
        hidden = nets.flatten(jnp.broadcast_to(jnp.asarray(mask) == 0, x.shape))
        return jnp.where(hidden, each, 0.0).sum(axis=1)

    def ancestral(
        self, params: Any, uniforms: jax.Array, mask_index: Any, x: jax.Array, shown: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Draw the variables in order, x_d = F⁻¹(u_d | x_<d), and keep those that are shown.

        One compiled scan over the variables, with the network's cache.

        Args:
          params: the network's parameters.
          uniforms: u in [0, 1), [B, D].
          mask_index: the mask, below the network's number of masks.
          x: examples, [B, *shape]; hidden values do not matter.
          shown: where x is shown, [B, *shape] or [*shape].

        Returns:
          x with its hidden variables drawn, [B, *shape], and Σ log p(x_d | x_<d) over the shown
          variables, [B] nats.
        """
        size = uniforms.shape[1]
        given = to_index(x.reshape(-1, size), self.levels)
        clamped = jnp.broadcast_to(shown, x.shape).reshape(-1, size)
        net, variables = self._net, {"params": params}
        if not hasattr(net, "logits_at"):
            net, variables = WholePasses(net), {"params": {"net": params}}

        def run(method, cache, *inputs):
            """Return the output of a method of the network, and the cache after it."""
            return net.apply({**variables, **cache}, *inputs, method=method, mutable=["cache"])

        def one_variable(carry, d):
            cache, log_weight = carry
            logits, cache = run("logits_at", cache, d, mask_index)
            drawn = categorical_from_uniform(logits, uniforms[:, d])
            index = jnp.where(clamped[:, d], given[:, d], drawn)
            log_weight += jnp.where(clamped[:, d], categorical_log_prob(logits, index), 0.0)
            _, cache = run("put", cache, d, to_value(index, self.levels), mask_index)
            return (cache, log_weight), index

        _, cache = run("start", {}, jnp.zeros(x.shape), mask_index)
        order = self._net.order(mask_index, size)
        (_, log_weight), drawn = jax.lax.scan(one_variable, (cache, jnp.zeros(len(x))), order)
        values = to_value(drawn[jnp.argsort(order)].T, self.levels)
        return values.reshape(x.shape), log_weight

    def _averaged(self, state: State) -> Any:
        """Return the parameters that evaluation and sampling use."""
        return state.ema if self.ema_decay else state.params

    def _draw_mask(self, key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (), 0, self._net.masks)

    @property
    def _out(self) -> tuple[int, int]:
        """The number of variables, and the number of logits of each."""
        return math.prod(self.shape), 1 if self.levels == 2 else self.levels

    @property
    def _net(self) -> Any:
        """The network, a `CausalNet` that knows its number of variables and logits."""
        net: nn.Module = self.net
        return nets.fitted(net, out=self._out)
