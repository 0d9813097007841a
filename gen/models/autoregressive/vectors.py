"""Causal nets over vectors: the variables are taken in one order, or in several.

A net is a frozen dataclass of hyperparameters; `gen.models.autoregressive.model.Net` says what its
functions compute. Shapes: B examples, D variables, C logits for each variable, H hidden units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import require
from gen.nets import Activation, activate, flatten


def uniform(key: jax.Array, fan_in: int, fan_out: int, shape: tuple[int, ...]) -> jax.Array:
    """Glorot-uniform weights: in ±√(6 / (fan_in + fan_out))."""
    limit = math.sqrt(6 / (fan_in + fan_out))
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


@dataclass(frozen=True)
class FVSBN:
    """Fully visible sigmoid belief net: logits_d = b_d + Σ_{k<d} x_k W_kd (Frey 1998; Gan et al.
    2015), a logistic regression of each variable on those before it in the order."""

    raster: bool = True
    """take the variables in their own order, else in one that is drawn"""
    order_seed: int = 0
    """determines the order that is drawn"""

    @property
    def masks(self) -> int:
        return 1

    def init(self, key: jax.Array, shape: tuple[int, ...], channels: int) -> Any:
        size = math.prod(shape)
        return {"W": jnp.zeros((size, size, channels)), "b": jnp.zeros((size, channels))}

    def logits(self, params: Any, x: jax.Array, which: Any) -> jax.Array:
        size, _, channels = params["W"].shape
        place = self._places(size)
        earlier = _below(place, place)  # [k, d]: k < d
        W = (params["W"] * earlier[:, :, None]).reshape(size, size * channels)
        return (flatten(x) @ W).reshape(-1, size, channels) + params["b"][None]

    def order(self, which: Any, size: int) -> jax.Array:
        return jnp.argsort(self._places(size))

    def _places(self, size: int) -> jax.Array:
        """Where each variable stands in the order, [D]."""
        if self.raster:
            return jnp.arange(size)
        return jax.random.permutation(jax.random.key(self.order_seed), size)

    def begin(self, params: Any, x: jax.Array, which: Any) -> Any:
        """The logits [B, D, C] as far as they are known."""
        return jnp.broadcast_to(params["b"], (len(x), *params["b"].shape))

    def next(self, params: Any, cache: Any, d: jax.Array) -> tuple[jax.Array, Any]:
        return cache[:, d], cache

    def put(self, params: Any, cache: Any, d: jax.Array, value: jax.Array) -> Any:
        return cache + value[:, None, None] * params["W"][d][None]


@dataclass(frozen=True)
class NADE:
    """Neural autoregressive distribution estimator (Larochelle & Murray 2011, eqs. 7–8):

        a_d = c + Σ_{k<d} x_k W_k,    logits_d = b_d + V_d σ(a_d).

    All logits at once cost O(B · D · H), the variables being cut into √D blocks: inside a block the
    sums over k < d are one product with a triangle, and a running sum carries over the blocks.
    """

    hidden: int = 500
    """width H of the hidden layer"""

    def __post_init__(self):
        require(self.hidden > 0, f"NADE: hidden is {self.hidden}, must be positive")

    @property
    def masks(self) -> int:
        return 1

    def init(self, key: jax.Array, shape: tuple[int, ...], channels: int) -> Any:
        size = math.prod(shape)
        W_key, V_key = jax.random.split(key)
        return {
            "W": uniform(W_key, size, self.hidden, (size, self.hidden)),
            "c": jnp.zeros(self.hidden),
            "V": uniform(V_key, self.hidden, size, (size, self.hidden, channels)),
            "b": jnp.zeros((size, channels)),
        }

    def logits(self, params: Any, x: jax.Array, which: Any) -> jax.Array:
        x = flatten(x)
        size = x.shape[1]
        block = math.ceil(math.sqrt(size))
        blocks = math.ceil(size / block)

        def cut(array):
            """[D, ...] -> [blocks, block, ...], filled up with zeros."""
            fill = [(0, blocks * block - size)] + [(0, 0)] * (array.ndim - 1)
            return jnp.pad(array, fill).reshape(blocks, block, *array.shape[1:])

        earlier = jnp.tril(jnp.ones((block, block)), -1)  # [d, k]: k < d

        @jax.checkpoint  # the hidden units of all variables, [B, D, H], are too many to keep
        def one_block(a, inputs):
            x, W, V = inputs  # [block, B], [block, H], [block, H, C]
            within = (x.T[:, None, :] * earlier[None]) @ W  # [B, block, H]
            h = jax.nn.sigmoid(a[:, None, :] + within)
            return a + x.T @ W, jax.vmap(jnp.matmul, in_axes=(1, 0), out_axes=1)(h, V)

        a = jnp.broadcast_to(params["c"], (len(x), self.hidden))
        _, out = jax.lax.scan(one_block, a, (cut(x.T), cut(params["W"]), cut(params["V"])))
        out = jnp.moveaxis(out, 1, 0).reshape(len(x), blocks * block, -1)
        return out[:, :size] + params["b"][None]

    def order(self, which: Any, size: int) -> jax.Array:
        return jnp.arange(size)

    def begin(self, params: Any, x: jax.Array, which: Any) -> Any:
        """The running sum a_d, [B, H]."""
        return jnp.broadcast_to(params["c"], (len(x), self.hidden))

    def next(self, params: Any, cache: Any, d: jax.Array) -> tuple[jax.Array, Any]:
        return jax.nn.sigmoid(cache) @ params["V"][d] + params["b"][d][None], cache

    def put(self, params: Any, cache: Any, d: jax.Array, value: jax.Array) -> Any:
        return cache + value[:, None] * params["W"][d][None]


@dataclass(frozen=True)
class MADE:
    """Masked autoencoder for distribution estimation (Germain et al. 2015).

    An MLP whose weights are masked. Variable d has the degree m(d), its place in the order; a
    hidden unit k has a degree m(k), drawn uniformly from the smallest degree below it to D − 1. A
    hidden unit sees the units below of degree ≤ its own (eq. 12), an output d those of degree
    < m(d) (eq. 13). Several masks differ in the degrees of the hidden units, and in the order
    unless it is `raster`; each step trains with one of them.

    Deviations: the mask of a step is drawn, where the paper cycles through them; the units' degrees
    are those of `mask_seed`, so they belong to the hyperparameters.
    """

    hidden: tuple[int, ...] = (500,)
    """widths of the hidden layers"""
    activation: Activation = "relu"
    """nonlinearity of the hidden layers"""
    masks: int = 1
    """number of masks; their densities are averaged"""
    raster: bool = True
    """take the variables in their own order; else every mask draws an order"""
    direct: bool = False
    """connect inputs with outputs directly, too (the paper's "direct connections")"""
    mask_seed: int = 0
    """determines orders and degrees"""

    def __post_init__(self):
        require(
            len(self.hidden) > 0 and min(self.hidden) > 0,
            f"MADE: hidden is {self.hidden}: take one or more positive widths",
        )
        require(self.masks > 0, f"MADE: masks is {self.masks}, must be positive")

    def init(self, key: jax.Array, shape: tuple[int, ...], channels: int) -> Any:
        size = math.prod(shape)
        *keys, out_key = jax.random.split(key, len(self.hidden) + 1)
        params: dict[str, Any] = {
            f"layer{i}": {
                "W": uniform(keys[i], fan_in, fan_out, (fan_in, fan_out)),
                "b": jnp.zeros(fan_out),
            }
            for i, (fan_in, fan_out) in enumerate(
                zip((size, *self.hidden), self.hidden, strict=False)
            )
        }
        last = self.hidden[-1]
        params["out"] = {
            "W": uniform(out_key, last, size, (size, last, channels)),
            "b": jnp.zeros((size, channels)),
        }
        if self.direct:
            params["direct"] = {"W": jnp.zeros((size, size, channels))}
        return params

    def logits(self, params: Any, x: jax.Array, which: Any) -> jax.Array:
        place, *degrees = self.degrees(which, math.prod(x.shape[1:]))
        x = flatten(x)
        a = self._first(params, x, place, degrees[0])
        h = self._rest(params, a, degrees)
        W = params["out"]["W"] * _below(degrees[-1], place).T[:, :, None]
        out = jnp.einsum("bh,dhc->bdc", h, W) + params["out"]["b"][None]
        if self.direct:
            W = params["direct"]["W"] * _below(place, place)[:, :, None]
            out += (x @ W.reshape(len(place), -1)).reshape(out.shape)
        return out

    def order(self, which: Any, size: int) -> jax.Array:
        return jnp.argsort(self.degrees(which, size)[0])

    def begin(self, params: Any, x: jax.Array, which: Any) -> Any:
        """The degrees, the sums into the first layer [B, H] and the direct ones [B, D, C]."""
        x = flatten(x)
        degrees = self.degrees(which, x.shape[1])
        zeros = jnp.zeros((len(x), *params["out"]["b"].shape) if self.direct else ())
        first = jnp.broadcast_to(params["layer0"]["b"], (len(x), self.hidden[0]))
        return {"degrees": degrees, "first": first, "direct": zeros}

    def next(self, params: Any, cache: Any, d: jax.Array) -> tuple[jax.Array, Any]:
        place, *degrees = cache["degrees"]
        h = self._rest(params, cache["first"], degrees)
        W = params["out"]["W"][d] * (degrees[-1] < place[d])[:, None]
        out = h @ W + params["out"]["b"][d][None]
        if self.direct:
            out += cache["direct"][:, d]
        return out, cache

    def put(self, params: Any, cache: Any, d: jax.Array, value: jax.Array) -> Any:
        place, first, *_ = cache["degrees"]
        W = jnp.where(place[d] <= first, params["layer0"]["W"][d], 0.0)
        cache = {**cache, "first": cache["first"] + value[:, None] * W[None]}
        if self.direct:
            cache["direct"] += value[:, None, None] * params["direct"]["W"][d][None]
        return cache

    def degrees(self, which: Any, size: int) -> list[jax.Array]:
        """Of mask number `which`: the places 1 … D of the variables, then each layer's degrees."""
        return [jnp.asarray(layer)[which] for layer in _degrees(self, size)]

    def _first(self, params: Any, x: jax.Array, place: jax.Array, degree: jax.Array) -> jax.Array:
        return x @ (params["layer0"]["W"] * _upto(place, degree)) + params["layer0"]["b"][None]

    def _rest(self, params: Any, a: jax.Array, degrees: list[jax.Array]) -> jax.Array:
        """The last hidden layer [B, H] from the sums `a` into the first one."""
        h = activate(self.activation, a)
        for i in range(1, len(self.hidden)):
            layer = params[f"layer{i}"]
            h = activate(
                self.activation,
                h @ (layer["W"] * _upto(degrees[i - 1], degrees[i])) + layer["b"][None],
            )
        return h


def _upto(below: jax.Array, above: jax.Array) -> jax.Array:
    """[I, J]: may a unit of degree above_j see one of degree below_i?"""
    return (below[:, None] <= above[None, :]).astype(jnp.float32)


def _below(below: jax.Array, above: jax.Array) -> jax.Array:
    """[I, J]: may the output of place above_j see a unit of degree below_i?"""
    return (below[:, None] < above[None, :]).astype(jnp.float32)


@lru_cache(maxsize=16)
def _degrees(made: MADE, size: int) -> list[np.ndarray]:
    """All masks' degrees, [masks, D] and [masks, H] for each layer, as constants."""

    def one_mask(key):
        order_key, *keys = jax.random.split(key, len(made.hidden) + 1)
        place = jnp.arange(size) if made.raster else jax.random.permutation(order_key, size)
        degrees, lowest = [place + 1], 1
        for width, layer_key in zip(made.hidden, keys, strict=True):
            highest = max(size - 1, 1)
            degrees.append(jax.random.randint(layer_key, (width,), lowest, highest + 1))
            lowest = degrees[-1].min()
        return degrees

    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(made.mask_seed), made.masks)
        masks = [one_mask(key) for key in keys]
        return [
            np.stack([np.asarray(layer) for layer in layers]) for layers in zip(*masks, strict=True)
        ]
