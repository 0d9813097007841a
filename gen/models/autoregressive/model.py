"""A causal net as a model: exact log p, ancestral samples, completions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from gen import estimate
from gen.core import Batch, Data, Density, Metrics, Shape, adam, check_levels, descend, require
from gen.estimate import Estimate
from gen.models.autoregressive.pixels import GatedPixelCNN, PixelCNN
from gen.models.autoregressive.vectors import FVSBN, MADE, NADE


class State(NamedTuple):
    """Everything that training changes."""

    params: Any  # the net's
    opt_state: Any  # Adam's two moments, each shaped like params, and its step count


class Net(Protocol):
    """Logits that are causal: those of a variable depend on x through the ones before it alone.

    C logits for each of the D variables: one if it is binary, else one for each level. `which` is
    the number of the mask, below `masks`; each mask may have an order of its own.

    `begin`, `next` and `put` give the same logits a variable at a time, for sampling: `next` those
    of variable d once every earlier one was `put`, from a cache of what they have in common.
    """

    @property
    def masks(self) -> int: ...

    def init(self, key: jax.Array, shape: tuple[int, ...], channels: int) -> Any:
        """Parameters, for examples of that shape and C = `channels`."""
        ...

    def logits(self, params: Any, x: jax.Array, which: Any) -> jax.Array:
        """x [B, *shape] ↦ [B, D, C]."""
        ...

    def order(self, which: Any, size: int) -> jax.Array:
        """The variables in their order, [D]."""
        ...

    def begin(self, params: Any, x: jax.Array, which: Any) -> Any:
        """The cache before the first variable, for a batch like x (of zeros)."""
        ...

    def next(self, params: Any, cache: Any, d: jax.Array) -> tuple[jax.Array, Any]:
        """The logits [B, C] of variable d, the next in order, and the cache."""
        ...

    def put(self, params: Any, cache: Any, d: jax.Array, value: jax.Array) -> Any:
        """The cache once variable d has the values [B]."""
        ...


@dataclass(frozen=True)
class Autoregressive:
    """log p(x) = Σ_d log p(x_d | x_<d), exact, maximised by Adam.

    Each variable has `levels` values in [0, 1], equally spaced. A binary one follows a Bernoulli
    law of one logit, others a softmax over their levels. Values of x between two levels are rounded
    to one of them; `evaluate` refuses them.

    If the net has several masks, a step trains with one of them, drawn, and the model is their
    mixture: p(x) = 1/M Σ_m p_m(x) (Uria, Murray & Larochelle 2014).

    Deviation from the papers of all of its nets: Adam with a cosine in place of SGD (NADE), Adagrad
    or Adadelta (MADE) and RMSProp (PixelCNN).
    """

    family: ClassVar[str] = "fully visible belief net"
    density: ClassVar[Density] = "tractable"

    net: FVSBN | NADE | MADE | PixelCNN | GatedPixelCNN
    """the causal net"""
    shape: Shape = (28, 28, 1)
    """shape of one example"""
    levels: int = 2
    """values that a variable can take"""
    learning_rate: float = 1e-3
    """step size of Adam"""
    decay_steps: int = 0
    """let the step size fall to 0 over so many steps, along a cosine (0: constant)"""
    weight_decay: float = 0.0
    """decoupled weight decay (AdamW)"""

    def __post_init__(self):
        require(self.levels > 1, f"Autoregressive: levels is {self.levels}, must be 2 or more")

    def init(self, key: jax.Array) -> State:
        params = self.net.init(key, self.shape, 1 if self.levels == 2 else self.levels)
        return State(params, self._optimizer.init(params))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """One Adam step on −log p under one mask, the same for all replicas; logs it as `loss`."""
        which = self._draw_mask(key)

        def loss(params):
            value = -self._log_prob(params, batch["x"], which).mean()
            return value, {"loss": value}

        params, opt_state, metrics = descend(
            loss, self._optimizer, state.params, state.opt_state, axis_name
        )
        return State(params, opt_state), metrics

    def parameters(self, state: State) -> Any:
        """Of the net; what a mask hides counts too."""
        return state.params

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """−log p under one mask, drawn for each example alike, [B] nats."""
        return -self._log_prob(state.params, batch["x"], self._draw_mask(key))

    def log_prob(self, state: State, batch: Batch) -> jax.Array:
        """log p(x), exact, [B] nats."""
        each = jax.lax.map(
            lambda which: self._log_prob(state.params, batch["x"], which),
            jnp.arange(self.net.masks),
        )
        return jax.nn.logsumexp(each, axis=0) - math.log(self.net.masks)

    def score(self, state: State, batch: Batch) -> jax.Array:
        """−log p(x), [B] nats."""
        return -self.log_prob(state, batch)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """−log p(x) as `nll`, exact; on more than two levels in bits per variable, too.

        Raises `UserError` if values of x lie between the levels.
        """
        check_levels(data, self.levels)
        nll = -estimate.per_example(lambda batch, _: self.log_prob(state, batch), data, key)
        settings = {"masks": self.net.masks} if self.net.masks > 1 else {}
        estimates = {"nll": estimate.mean(nll, "exact", **settings)}
        if self.levels > 2:
            bits = nll / (math.log(2) * math.prod(self.shape))
            estimates["bits_per_dim"] = estimate.mean(bits, "exact", **settings)
        return estimates

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """n draws, [n, *shape], variable by variable. Several masks share them evenly: each draw is
        one of p, and those that the masks make are as independent as draws without replacement."""
        masks_key, uniforms_key, order_key = jax.random.split(key, 3)
        each = -(-n // self.net.masks)
        masks = jax.random.permutation(masks_key, self.net.masks)[: -(-n // each)]
        uniforms = jax.random.uniform(uniforms_key, (len(masks), each, math.prod(self.shape)))
        nothing = jnp.zeros((each, *self.shape))

        def of_mask(inputs):
            which, u = inputs
            return self.ancestral(state.params, u, which, nothing, jnp.zeros(self.shape, bool))[0]

        x = jax.lax.map(of_mask, (masks, uniforms)).reshape(-1, *self.shape)
        return jax.random.permutation(order_key, x)[:n]

    def complete(
        self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array, particles: int = 1
    ) -> jax.Array:
        """x [B, *shape], with what `mask` (1: shown) hides drawn in order, given what comes before.

        Under one mask these are draws of p(hidden | shown) where everything shown comes before the
        first hidden variable, as the upper half of an image does in raster order. Elsewhere a draw
        misses what is shown after it, and of several masks one is drawn for each particle without
        regard to what is shown. Of several `particles` one is taken in proportion to
        Π p(x_d | x_<d) over the shown variables, which tends to p(hidden | shown) as their number
        grows (sampling importance resampling, Rubin 1988).
        """
        mask = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        masks_key, uniforms_key, choice_key = jax.random.split(key, 3)
        masks = jax.random.randint(masks_key, (particles,), 0, self.net.masks)
        uniforms = jax.random.uniform(uniforms_key, (particles, len(x), math.prod(self.shape)))

        def particle(inputs):
            which, u = inputs
            return self.ancestral(state.params, u, which, x, mask)

        drawn, log_weight = jax.lax.map(particle, (masks, uniforms))
        chosen = jax.random.categorical(choice_key, log_weight, axis=0)
        return drawn[chosen, jnp.arange(len(x))]

    def ancestral(
        self, params: Any, uniforms: jax.Array, which: Any, x: jax.Array, shown: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Each variable in order by inversion, x_d = F⁻¹(u_d | x_<d), or clamped where it is shown.

        One compiled scan over the variables, with the net's cache. Args: uniforms [B, D] in [0, 1);
        which mask; x [B, *shape] and where it is shown, a mask of its shape or of one example's.
        Returns the images [B, *shape] and Σ log p(x_d | x_<d) over the shown variables, [B].
        """
        size = uniforms.shape[1]
        given = jnp.round(x.reshape(-1, size) * (self.levels - 1)).astype(jnp.int32)
        clamped = jnp.broadcast_to(shown, x.shape).reshape(-1, size)

        def one_variable(carry, d):
            cache, log_weight = carry
            logits, cache = self.net.next(params, cache, d)
            drawn = invert(logits, uniforms[:, d])
            level = jnp.where(clamped[:, d], given[:, d], drawn)
            log_weight += jnp.where(clamped[:, d], log_mass(logits, level), 0.0)
            cache = self.net.put(params, cache, d, level / (self.levels - 1))
            return (cache, log_weight), level

        start = self.net.begin(params, jnp.zeros_like(x), which), jnp.zeros(len(x))
        order = self.net.order(which, size)
        (_, log_weight), drawn = jax.lax.scan(one_variable, start, order)
        values = drawn[jnp.argsort(order)].T / (self.levels - 1)
        return values.reshape(x.shape), log_weight

    @property
    def raster(self) -> bool:
        """Whether there is one order, that of the variables themselves."""
        return self.net.masks == 1 and getattr(self.net, "raster", True)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, self.decay_steps, self.weight_decay)

    def _draw_mask(self, key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (), 0, self.net.masks)

    def _log_prob(self, params: Any, x: jax.Array, which: Any) -> jax.Array:
        """Under one mask, [B]."""
        level = jnp.round(x * (self.levels - 1))
        logits = self.net.logits(params, level / (self.levels - 1), which)
        level = level.astype(jnp.int32).reshape(logits.shape[:2])
        return log_mass(logits, level).sum(axis=1)


def log_mass(logits: jax.Array, level: jax.Array) -> jax.Array:
    """log p(level), [...], from logits [..., C]: one logit of level 1, or one for each level."""
    if logits.shape[-1] == 1:
        return -jax.nn.softplus(jnp.where(level == 1, -logits[..., 0], logits[..., 0]))
    return -optax.softmax_cross_entropy_with_integer_labels(logits, level)


def invert(logits: jax.Array, u: jax.Array) -> jax.Array:
    """The level at which the distribution function first exceeds u [...], for u in [0, 1); of a
    binary variable, 1 where u < σ(logit)."""
    if logits.shape[-1] == 1:
        return (u < jax.nn.sigmoid(logits[..., 0])).astype(jnp.int32)
    cumulative = jnp.cumsum(jax.nn.softmax(logits), axis=-1)[..., :-1]
    return jnp.sum(u[..., None] >= cumulative, axis=-1)
