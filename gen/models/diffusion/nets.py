"""Networks of a noisy example and its time: a U-Net for images, residual layers for vectors.

Each has `module(out, classes)`, a Flax module x [B, ..., C], t [B] in [0, 1], label ↦ [B, ...,
out]. With classes > 0 it takes labels [B] from 0 to classes, of which the last stands for none,
else it is given None. The last layer begins as zeros, so the first output is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen.core import require
from gen.nets import flatten


def embed_time(t: jax.Array, width: int) -> jax.Array:
    """sin and cos of 1000 t at frequencies from 1 down to 1/10,000 (Ho et al. 2020; Vaswani et al.
    2017, section 3.5): [B, width]."""
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(width // 2) / (width // 2 - 1))
    angle = 1000 * t[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


class Condition(nn.Module):
    """t [B], and a label [B] if there are classes, as [B, width]."""

    width: int
    classes: int

    @nn.compact
    def __call__(self, t: jax.Array, label: jax.Array | None) -> jax.Array:
        h = nn.Dense(self.width)(embed_time(t, 64))
        if self.classes:
            h += nn.Embed(self.classes + 1, self.width)(label)
        return nn.swish(nn.Dense(self.width)(nn.swish(h)))


def zeros(features: int) -> nn.Dense:
    """A dense layer that begins as 0."""
    return nn.Dense(features, kernel_init=nn.initializers.zeros)


def modulated(h: jax.Array, condition: jax.Array) -> jax.Array:
    """h [B, H, W, C] scaled and shifted by the condition [B, D] (Dhariwal & Nichol 2021, section
    3.1), at first not at all."""
    scale, shift = jnp.split(zeros(2 * h.shape[-1])(condition)[:, None, None], 2, axis=-1)
    return h * (1 + scale) + shift


def norm(x: jax.Array) -> nn.GroupNorm:
    """Group normalisation (Wu & He 2018) in groups of some 16 channels."""
    return nn.GroupNorm(num_groups=math.gcd(x.shape[-1], max(1, x.shape[-1] // 16)))


class Block(nn.Module):
    """x + convolutions of it, each of a normalised input, the second one's `modulated`."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        h = nn.Conv(self.features, (3, 3))(nn.swish(norm(x)(x)))
        h = nn.swish(modulated(norm(h)(h), condition))
        h = nn.Conv(self.features, (3, 3), kernel_init=nn.initializers.zeros)(h)
        return h + (x if x.shape[-1] == self.features else nn.Dense(self.features)(x))


class Attention(nn.Module):
    """x + self-attention over all places, in heads of some 32 channels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        places = norm(x)(x).reshape(len(x), -1, x.shape[-1])
        heads = math.gcd(x.shape[-1], max(1, x.shape[-1] // 32))
        out = nn.MultiHeadDotProductAttention(
            heads, out_kernel_init=nn.initializers.zeros, deterministic=True
        )(places)
        return x + out.reshape(x.shape)


class UNetModule(nn.Module):
    """Residual blocks at each resolution on the way down and, with what was there, on the way up;
    self-attention at the lowest one.

    Deviations: it may work on patches; and with `pixels`, two last layers of that many channels see
    each pixel's input again, which patches leave no room for.
    """

    channels: tuple[int, ...]
    blocks: int
    patch: int
    pixels: int
    out: int
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, label: jax.Array | None) -> jax.Array:
        require(
            x.ndim == 4,
            f"a U-Net takes images [H, W, C], not examples of shape {list(x.shape[1:])}",
        )
        first, *deeper = self.channels
        condition = Condition(4 * first, self.classes)(t, label)
        h = nn.Conv(first, (3, 3))(to_depth(x, self.patch))
        levels = [[h]]
        for _ in range(self.blocks):
            levels[-1].append(h := Block(first)(h, condition))
        for features in deeper:
            levels.append([h := nn.Conv(features, (3, 3), strides=2)(h)])
            for _ in range(self.blocks):
                levels[-1].append(h := Block(features)(h, condition))
        last = self.channels[-1]
        h = Block(last)(Attention()(Block(last)(h, condition)), condition)
        for features, level in zip(reversed(self.channels), reversed(levels), strict=True):
            if h.shape[1:3] != (size := level[0].shape[1:3]):
                wider = (len(h), *size, h.shape[-1])
                h = nn.Conv(features, (3, 3))(jax.image.resize(h, wider, "nearest"))
            for skip in reversed(level):
                h = Block(features)(jnp.concatenate([h, skip], axis=-1), condition)
        h, size = nn.swish(norm(h)(h)), x.shape[1:3]
        if not self.pixels:
            return from_depth(zeros(self.patch**2 * self.out)(h), self.patch, size)
        h = from_depth(nn.Dense(self.patch**2 * self.pixels)(h), self.patch, size)
        h = nn.Dense(self.pixels)(jnp.concatenate([h, x], axis=-1))
        h = nn.Dense(self.pixels)(nn.swish(modulated(h, condition)))
        return zeros(self.out)(nn.swish(h))


@dataclass(frozen=True)
class UNet:
    """A U-Net for images [H, W, C] (Ho et al. 2020; Ronneberger et al. 2015)."""

    channels: tuple[int, ...] = (64, 128)
    """channels at each resolution, each half of the one before"""
    blocks: int = 2
    """residual blocks of a resolution on the way down; one more on the way up"""
    patch: int = 1
    """height and width of the patches whose pixels become channels, which is cheaper"""
    pixels: int = 0
    """channels of the last layers, of each pixel and what the rest says of it (0: no such)"""

    def __post_init__(self):
        sizes = (*self.channels, self.blocks, self.patch)
        require(
            len(self.channels) > 0 and min(sizes) > 0,
            f"UNet: channels {self.channels}, blocks {self.blocks}, patch {self.patch}: "
            "all must be positive, and there must be one of channels",
        )
        require(self.pixels >= 0, f"UNet: pixels is {self.pixels}, must not be negative")

    def module(self, out: int, classes: int) -> nn.Module:
        return UNetModule(self.channels, self.blocks, self.patch, self.pixels, out, classes)


class ResidualModule(nn.Module):
    """As `ResidualMLP` says."""

    width: int
    layers: int
    out: int
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, label: jax.Array | None) -> jax.Array:
        condition = Condition(self.width, self.classes)(t, label)
        h = nn.Dense(self.width)(flatten(x))
        for _ in range(self.layers):
            r = nn.Dense(self.width)(nn.swish(nn.LayerNorm()(h)))
            r = nn.swish(nn.LayerNorm()(r) + nn.Dense(self.width)(condition))
            h += nn.Dense(self.width, kernel_init=nn.initializers.zeros)(r)
        h = zeros(math.prod(x.shape[1:-1]) * self.out)(nn.swish(nn.LayerNorm()(h)))
        return h.reshape(*x.shape[:-1], self.out)


@dataclass(frozen=True)
class ResidualMLP:
    """Residual blocks of two dense layers (He et al. 2016), each normalised, the time added inside
    each block."""

    width: int = 256
    """units of each layer"""
    layers: int = 3
    """residual blocks"""

    def __post_init__(self):
        require(
            min(self.width, self.layers) > 0,
            f"ResidualMLP: width {self.width}, layers {self.layers}: must be positive",
        )

    def module(self, out: int, classes: int) -> nn.Module:
        return ResidualModule(self.width, self.layers, out, classes)


def to_depth(x: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B, ⌈H/p⌉, ⌈W/p⌉, p² C], zeros around."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)))
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    return x.reshape(b, h // patch, w // patch, -1)


def from_depth(x: jax.Array, patch: int, size: tuple[int, ...]) -> jax.Array:
    """The images [B, *size, C] whose `to_depth` this is."""
    b, h, w, depth = x.shape
    x = x.reshape(b, h, w, patch, patch, depth // patch**2).swapaxes(2, 3)
    return x.reshape(b, h * patch, w * patch, -1)[:, : size[0], : size[1]]
