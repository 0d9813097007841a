"""Causal networks over vectors: FVSBN, NADE and MADE.

`gen.models.autoregressive.CausalNet` documents their methods. Shapes: B examples, D
variables, C logits for each variable, H hidden units.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn

from gen.core import check_fields, require
from gen.nets import Activation, activate, flatten

Logits = Annotated[tuple[int, int], tyro.conf.Suppress]
"""The number D of variables and the number C of logits of each, which the model sets."""

ZEROS = nn.initializers.zeros_init()

GLOROT = nn.initializers.glorot_uniform()
"""Weights [in, out], uniform in ±√(6 / (in + out)).

Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html, eq. 16.
"""

GLOROT_OUT = nn.initializers.glorot_uniform(in_axis=1, out_axis=0, batch_axis=2)
"""Weights [D, H, C], uniform in ±√(6 / (H + D)): the C logits of a variable count as one output."""


def raster_order(net: nn.Module, mask_index: Any, size: int) -> jax.Array:
    """Return the variables in their own order, [D].

    The arguments after the network are as in `CausalNet.order`.
    """
    return jnp.arange(size)


class FVSBN(nn.Module):
    """Fully visible sigmoid belief net: logits_d = b_d + Σ_{k<d} x_k W_kd.

    A logistic regression of each variable on the variables before it in the order: Frey 1998,
    "Graphical models for machine learning and digital communication"; Gan et al. 2015,
    https://proceedings.mlr.press/v38/gan15.html.
    """

    raster: bool = True
    """take the variables in their own order, else in a drawn one"""
    order_seed: int = 0
    """seed of the drawn order"""
    out: Logits = (784, 1)

    masks: ClassVar[int] = 1
    set_by_model: ClassVar[tuple[str, ...]] = ("out",)

    def __post_init__(self):
        check_fields(self, seeds=("order_seed",))
        super().__post_init__()

    def setup(self):
        size, logits = self.out
        self.W = self.param("W", ZEROS, (size, size, logits))
        self.b = self.param("b", ZEROS, (size, logits))

    def order(self, mask_index: Any, size: int) -> jax.Array:
        if self.raster:
            return jnp.arange(size)
        return jnp.argsort(jax.random.permutation(jax.random.key(self.order_seed), size))

    def __call__(self, x: jax.Array, mask_index: Any) -> jax.Array:
        size, logits = self.out
        place = jnp.argsort(self.order(mask_index, size))
        W = self.W * is_below(place, place)[:, :, None]  # 0 unless k comes before d
        return (flatten(x) @ W.reshape(size, -1)).reshape(-1, size, logits) + self.b[None]

    def start(self, x: jax.Array, mask_index: Any) -> None:
        """Cache the sums of the logits over the variables so far, [B, D, C]."""
        self.put_variable("cache", "logits", jnp.broadcast_to(self.b, (len(x), *self.b.shape)))

    def logits_at(self, d: jax.Array, mask_index: Any) -> jax.Array:
        return self.get_variable("cache", "logits")[:, d]

    def put(self, d: jax.Array, value: jax.Array, mask_index: Any) -> None:
        logits = self.get_variable("cache", "logits")
        self.put_variable("cache", "logits", logits + value[:, None, None] * self.W[d][None])


class NADE(nn.Module):
    """Neural autoregressive distribution estimator:

        a_d = c + Σ_{k<d} x_k W_k,    logits_d = b_d + V_d σ(a_d)

    (Larochelle & Murray 2011, https://proceedings.mlr.press/v15/larochelle11a.html, eqs. 7–8).

    A CPU computes all logits by `nade_in_turn`, which takes O(B · D · H) operations. Accelerators
    run `nade_at_once`, whose few large products take O(B · D · √D · H). The two agree within
    rounding.
    """

    hidden: int = 500
    """number H of hidden units"""
    out: Logits = (784, 1)

    masks: ClassVar[int] = 1
    raster: ClassVar[bool] = True
    set_by_model: ClassVar[tuple[str, ...]] = ("out",)

    order = raster_order

    def __post_init__(self):
        check_fields(self, positive=("hidden",))
        super().__post_init__()

    def setup(self):
        size, logits = self.out
        self.W = self.param("W", GLOROT, (size, self.hidden))
        self.c = self.param("c", ZEROS, (self.hidden,))
        self.V = self.param("V", GLOROT_OUT, (size, self.hidden, logits))
        self.b = self.param("b", ZEROS, (size, logits))

    def __call__(self, x: jax.Array, mask_index: Any) -> jax.Array:
        logits = jax.lax.platform_dependent(
            flatten(x), self.W, self.c, self.V, cpu=nade_in_turn, default=nade_at_once
        )
        return logits + self.b[None]

    def start(self, x: jax.Array, mask_index: Any) -> None:
        """Cache the running sum a_d, [B, H]."""
        self.put_variable("cache", "a", jnp.broadcast_to(self.c, (len(x), self.hidden)))

    def logits_at(self, d: jax.Array, mask_index: Any) -> jax.Array:
        return jax.nn.sigmoid(self.get_variable("cache", "a")) @ self.V[d] + self.b[d][None]

    def put(self, d: jax.Array, value: jax.Array, mask_index: Any) -> None:
        a = self.get_variable("cache", "a")
        self.put_variable("cache", "a", a + value[:, None] * self.W[d][None])


def nade_in_turn(x: jax.Array, W: jax.Array, c: jax.Array, V: jax.Array) -> jax.Array:
    """Return V_d σ(a_d) of NADE, one variable after another, [B, D, C].

    The hidden units of all variables, [B, D, H], are too many to keep for the gradient. It keeps
    the sum a at the start of each of √D blocks of variables, and computes the hidden units of a
    block again: 2 √D arrays [B, H] at a time, and O(B · D · H) operations.

    Args:
      x: the variables, [B, D].
      W: weights from the variables to the hidden units, [D, H].
      c: biases of the hidden units, [H].
      V: weights from the hidden units to the logits, [D, H, C].
    """

    def one_variable(a, inputs):
        x, W, V = inputs  # [B], [H], [H, C]
        return a + x[:, None] * W[None], jax.nn.sigmoid(a) @ V

    @jax.checkpoint
    def one_block(a, inputs):
        return jax.lax.scan(one_variable, a, inputs)

    a = jnp.broadcast_to(c, (len(x), len(c)))
    _, out = jax.lax.scan(one_block, a, (in_blocks(x.T), in_blocks(W), in_blocks(V)))
    return jnp.moveaxis(out.reshape(-1, *out.shape[2:])[: len(W)], 0, 1)


def nade_at_once(x: jax.Array, W: jax.Array, c: jax.Array, V: jax.Array) -> jax.Array:
    """Compute `nade_in_turn` for all variables at once.

    The arguments are the same as in `nade_in_turn`. The variables are cut into √D blocks. The sums
    at the start of the blocks are cumulative sums over the blocks. The sums over k < d inside of a
    block are a product with a triangular matrix: O(B · D · √D · H) operations on B · D · √D floats,
    the values of each block under its mask. The hidden units take B · D · H floats, and the
    gradient keeps them.
    """
    size = len(W)
    W, V = in_blocks(W), in_blocks(V)
    x = in_blocks(x.T).swapaxes(1, 2)  # [blocks, B, block]
    sums = jnp.cumsum(x @ W, axis=0)[:-1]  # over all blocks before the second, the third, …
    a = c[None, None] + jnp.pad(sums, ((1, 0), (0, 0), (0, 0)))  # [blocks, B, H]
    block = x.shape[2]
    earlier = jnp.tril(jnp.ones((block, block)), -1)  # [d, k]: k < d
    within = (x[:, :, None] * earlier[None, None]) @ W[:, None]  # [blocks, B, block, H]
    h = jax.nn.sigmoid(a[:, :, None] + within)
    out = jnp.einsum("nbdh,ndhc->bndc", h, V)
    return out.reshape(len(out), -1, out.shape[-1])[:, :size]


def in_blocks(array: jax.Array) -> jax.Array:
    """Return [D, ...] as [⌈D / block⌉, block, ...] with block = ⌈√D⌉, padded with zeros."""
    size, *rest = array.shape
    block = math.ceil(math.sqrt(size))
    padding = [(0, -size % block)] + [(0, 0)] * len(rest)
    return jnp.pad(array, padding).reshape(-1, block, *rest)


class MADE(nn.Module):
    """Masked autoencoder for distribution estimation: an MLP with masked weights,

        h = f(b + (W ⊙ M^W) x),    logits = c + (V ⊙ M^V) h + (A ⊙ M^A) x

    (Germain et al. 2015, https://arxiv.org/abs/1502.03509, section 4), with A if `direct`.

    Variable d has the degree m(d) in 1 … D, its place in the order. A hidden unit k has a degree
    m(k), drawn uniformly from the smallest degree in the layer below to D − 1. A hidden unit sees
    the units of the layer below whose degree is at most its own (eq. 12), and the output of
    variable d sees the hidden units of degree below m(d) (eq. 13). Masks differ in the degrees of
    their hidden units, and in their orders unless these are `raster`. A step trains with one mask.

    Deviations from Germain et al. 2015:

    - The mask of a step is drawn; there the masks come in turn.
    - The degrees are drawn from `mask_seed`, so they belong to the hyperparameters.
    """

    hidden: tuple[int, ...] = (500,)
    """widths of the hidden layers"""
    activation: Activation = "relu"
    """nonlinearity f of the hidden layers"""
    masks: int = 1
    """number of masks, whose densities are averaged"""
    raster: bool = True
    """take the variables in their own order, else draw an order for each mask"""
    direct: bool = False
    """connect the inputs with the logits directly, too"""
    mask_seed: int = 0
    """seed of the orders and degrees"""
    out: Logits = (784, 1)

    set_by_model: ClassVar[tuple[str, ...]] = ("out",)

    def __post_init__(self):
        require(len(self.hidden) > 0, "MADE: hidden is (), must have one width or more")
        check_fields(self, positive=("hidden", "masks"), seeds=("mask_seed",))
        super().__post_init__()

    def setup(self):
        size, logits = self.out
        shapes = list(zip((size, *self.hidden), self.hidden, strict=False))

        def weights(key):
            keys = jax.random.split(key, len(shapes))
            return [GLOROT(key, shape) for key, shape in zip(keys, shapes, strict=True)]

        self.W = self.param("W", weights)
        self.b = self.param("b", lambda key: [jnp.zeros(width) for width in self.hidden])
        self.V = self.param("V", GLOROT_OUT, (size, self.hidden[-1], logits))
        self.c = self.param("c", ZEROS, (size, logits))
        if self.direct:
            self.A = self.param("A", ZEROS, (size, size, logits))

    def order(self, mask_index: Any, size: int) -> jax.Array:
        return jnp.argsort(self.degrees(mask_index, size)[0])

    def __call__(self, x: jax.Array, mask_index: Any) -> jax.Array:
        x = flatten(x)
        size, _ = self.out
        place, *degrees = self.degrees(mask_index, size)
        a = x @ (self.W[0] * is_at_most(place, degrees[0])) + self.b[0][None]
        h = self._last_hidden(a, degrees)
        V = self.V * is_below(degrees[-1], place).T[:, :, None]
        logits = jnp.einsum("bh,dhc->bdc", h, V) + self.c[None]
        if self.direct:
            A = self.A * is_below(place, place)[:, :, None]
            logits += (x @ A.reshape(size, -1)).reshape(logits.shape)
        return logits

    def start(self, x: jax.Array, mask_index: Any) -> None:
        """Cache the sums into the first hidden layer [B, H] and the direct ones [B, D, C]."""
        self.put_variable("cache", "a", jnp.broadcast_to(self.b[0], (len(x), self.hidden[0])))
        if self.direct:
            self.put_variable("cache", "direct", jnp.zeros((len(x), *self.c.shape)))

    def logits_at(self, d: jax.Array, mask_index: Any) -> jax.Array:
        place, *degrees = self.degrees(mask_index, self.out[0])
        h = self._last_hidden(self.get_variable("cache", "a"), degrees)
        logits = h @ (self.V[d] * (degrees[-1] < place[d])[:, None]) + self.c[d][None]
        return logits + self.get_variable("cache", "direct")[:, d] if self.direct else logits

    def put(self, d: jax.Array, value: jax.Array, mask_index: Any) -> None:
        place, first, *_ = self.degrees(mask_index, self.out[0])
        W = jnp.where(place[d] <= first, self.W[0][d], 0.0)
        a = self.get_variable("cache", "a")
        self.put_variable("cache", "a", a + value[:, None] * W[None])
        if self.direct:
            direct = self.get_variable("cache", "direct")
            direct += value[:, None, None] * self.A[d][None]
            self.put_variable("cache", "direct", direct)

    def degrees(self, mask_index: Any, size: int) -> list[jax.Array]:
        """Return the degrees under a mask: of the variables [D], then of each layer's units [H]."""
        layers = draw_degrees(self.hidden, self.masks, self.raster, self.mask_seed, size)
        return [jnp.asarray(layer)[mask_index] for layer in layers]

    def _last_hidden(self, a: jax.Array, degrees: list[jax.Array]) -> jax.Array:
        """Return the last hidden layer [B, H] from the sums a into the first one."""
        h = activate(self.activation, a)
        for i in range(1, len(self.hidden)):
            W = self.W[i] * is_at_most(degrees[i - 1], degrees[i])
            h = activate(self.activation, h @ W + self.b[i][None])
        return h


def is_at_most(degree: jax.Array, above: jax.Array) -> jax.Array:
    """Return the mask [I, J] that is 1 where degree_i ≤ above_j (Germain et al. 2015, eq. 12)."""
    return (degree[:, None] <= above[None, :]).astype(jnp.float32)


def is_below(degree: jax.Array, above: jax.Array) -> jax.Array:
    """Return the mask [I, J] that is 1 where degree_i < above_j (Germain et al. 2015, eq. 13)."""
    return (degree[:, None] < above[None, :]).astype(jnp.float32)


@lru_cache(maxsize=16)
def draw_degrees(
    hidden: tuple[int, ...], masks: int, raster: bool, seed: int, size: int
) -> list[np.ndarray]:
    """Draw the degrees of all masks, as constants: [masks, D], then [masks, H] for each layer.

    Args:
      hidden: widths of the hidden layers.
      masks: the number of masks.
      raster: whether the variables keep their own order.
      seed: the seed of the draws.
      size: the number D of variables.
    """

    def one_mask(key):
        order_key, *keys = jax.random.split(key, len(hidden) + 1)
        place = jnp.arange(size) if raster else jax.random.permutation(order_key, size)
        degrees, lowest = [place + 1], 1
        for width, layer_key in zip(hidden, keys, strict=True):
            highest = max(size - 1, 1)
            degrees.append(jax.random.randint(layer_key, (width,), lowest, highest + 1))
            lowest = degrees[-1].min()
        return degrees

    with jax.ensure_compile_time_eval():
        each = [one_mask(key) for key in jax.random.split(jax.random.key(seed), masks)]
        return [np.stack([np.asarray(d) for d in layer]) for layer in zip(*each, strict=True)]
