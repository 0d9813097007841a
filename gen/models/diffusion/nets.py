"""Networks of a noisy example, its time and its label: a U-Net and a residual network of vectors.

A diffusion model takes one of these, or any Flax module with the same signature:

    __call__(x, t, label, *, train=False)

x is [B, *shape], t in [0, 1] is [B], and label is [B], or None for a model without classes. Labels
0 … classes − 1 are classes, and the label `classes` stands for "no label". The output has the size
of x for Gaussian diffusion and flow matching (without the Fourier features that x may have as extra
channels), and K logits for each variable for discrete diffusion.

The last layer of both networks starts at 0, so that their first output is 0.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import tyro
from flax import linen as nn

from gen.core import check_fields, require
from gen.nets import Conv, Output, check_image, depth_to_space, flatten, record, space_to_depth

Classes = Annotated[int, tyro.conf.Suppress]
"""The number of classes, which the model sets."""


class UNet(nn.Module):
    """A U-Net of residual blocks for images [H, W, C].

    Ho et al. 2020, https://arxiv.org/abs/2006.11239, appendix B; Ronneberger, Fischer & Brox 2015,
    https://arxiv.org/abs/1505.04597. Blocks run at each resolution on the way down, and on the way
    up on the concatenation with the features of the way down. Self-attention runs at the lowest
    resolution, between two blocks.

    Deviations from Ho et al. 2020:

    - Time and label scale and shift the normalised features (Dhariwal & Nichol 2021,
      https://arxiv.org/abs/2105.05233, section 3.1); there the time is added.
    - Self-attention at the lowest resolution alone, and no dropout.
    - The network may work on patches, whose pixels become channels.
    - With `pixel_features`, two last layers see the input of each pixel again, for which patches
      leave no room.
    """

    channels: tuple[int, ...] = (64, 128)
    """channels at each resolution; each has half the height and width of the one before"""
    blocks: int = 2
    """residual blocks of a resolution on the way down; the way up has one more"""
    patch: int = 1
    """height and width of the patches whose pixels become channels"""
    pixel_features: int = 0
    """channels of the two last layers, which see each pixel's input again (0: no such layers)"""
    out: Output = None
    classes: Classes = 0

    set_by_model: ClassVar[tuple[str, ...]] = ("out", "classes")

    def __post_init__(self):
        require(len(self.channels) > 0, "UNet: channels is (), must name one resolution or more")
        check_fields(
            self,
            positive=("channels", "patch"),
            non_negative=("pixel_features",),
            layers=("blocks",),
        )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, label: jax.Array | None, *, train: bool = False
    ) -> jax.Array:
        check_image("UNet", x.shape[1:])
        size, out = x.shape[1:3], (self.out or x.shape[1:])[-1]
        require(
            self.patch <= max(size),
            f"UNet: patch is {self.patch}, must be at most {max(size)}, the size of the image",
        )
        first, *deeper = self.channels
        condition = Condition(4 * first, self.classes)(t, label)
        # 1. Down: the features before and after each block are kept for the way up.
        h = Conv(first)(space_to_depth(x, self.patch))
        kept = [[h]]
        for _ in range(self.blocks):
            kept[-1].append(h := Block(first)(h, condition))
            record(self, h)
        for features in deeper:
            kept.append([h := Conv(features, stride=2)(h)])
            for _ in range(self.blocks):
                kept[-1].append(h := Block(features)(h, condition))
                record(self, h)
        # 2. The lowest resolution.
        last = self.channels[-1]
        h = Block(last)(Attention()(Block(last)(h, condition)), condition)
        record(self, h)
        # 3. Up: each block takes in one of the kept features.
        for features, skips in zip(reversed(self.channels), reversed(kept), strict=True):
            if h.shape[1:3] != (wider := skips[0].shape[1:3]):
                h = jax.image.resize(h, (len(h), *wider, h.shape[-1]), "nearest")
                h = Conv(features)(h)
            for skip in reversed(skips):
                h = Block(features)(jnp.concatenate([h, skip], axis=-1), condition)
                record(self, h)
        h = nn.swish(group_norm(h)(h))
        # 4. Back to pixels.
        if not self.pixel_features:
            return depth_to_space(zero_dense(self.patch**2 * out)(h), self.patch, size)
        h = nn.Dense(self.patch**2 * self.pixel_features)(h)
        h = jnp.concatenate([depth_to_space(h, self.patch, size), x], axis=-1)
        h = nn.Dense(self.pixel_features)(h)
        h = nn.Dense(self.pixel_features)(nn.swish(modulate(h, condition)))
        return zero_dense(out)(nn.swish(h))


class ResidualMLP(nn.Module):
    """Residual blocks of two dense layers for vectors.

    He et al. 2016, https://arxiv.org/abs/1512.03385. The input of each layer is normalised (layer
    normalisation), and time and label are added inside each block.
    """

    width: int = 256
    """units of each layer"""
    layers: int = 3
    """residual blocks"""
    out: Output = None
    classes: Classes = 0

    set_by_model: ClassVar[tuple[str, ...]] = ("out", "classes")

    def __post_init__(self):
        check_fields(self, positive=("width",), layers=("layers",))
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, label: jax.Array | None, *, train: bool = False
    ) -> jax.Array:
        out = self.out or x.shape[1:]
        condition = Condition(self.width, self.classes)(t, label)
        h = nn.Dense(self.width)(flatten(x))
        for _ in range(self.layers):
            r = nn.Dense(self.width)(nn.swish(nn.LayerNorm()(h)))
            r = nn.swish(nn.LayerNorm()(r) + nn.Dense(self.width)(condition))
            h += nn.Dense(self.width, kernel_init=nn.initializers.zeros)(r)
            record(self, h)
        h = zero_dense(math.prod(out))(nn.swish(nn.LayerNorm()(h)))
        return h.reshape(-1, *out)


class Condition(nn.Module):
    """Map times [B], and labels [B] if there are classes, to features [B, width]."""

    width: int
    classes: int

    @nn.compact
    def __call__(self, t: jax.Array, label: jax.Array | None) -> jax.Array:
        h = nn.Dense(self.width)(embed_time(t, 64))
        if self.classes:
            h += nn.Embed(self.classes + 1, self.width)(label)
        return nn.swish(nn.Dense(self.width)(nn.swish(h)))


class Block(nn.Module):
    """Return x plus two convolutions, each of a normalised input; the second one's is modulated."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        h = Conv(self.features)(nn.swish(group_norm(x)(x)))
        h = nn.swish(modulate(group_norm(h)(h), condition))
        h = Conv(self.features, kernel_init=nn.initializers.zeros)(h)
        return h + (x if x.shape[-1] == self.features else nn.Dense(self.features)(x))


class Attention(nn.Module):
    """Return x plus self-attention over all positions, in heads of about 32 channels.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        positions = group_norm(x)(x).reshape(len(x), -1, x.shape[-1])
        heads = math.gcd(x.shape[-1], max(1, x.shape[-1] // 32))
        out = nn.MultiHeadDotProductAttention(
            heads, out_kernel_init=nn.initializers.zeros, deterministic=True
        )(positions)
        return x + out.reshape(x.shape)


def embed_time(t: jax.Array, width: int) -> jax.Array:
    """Return sin and cos of 1000 t at `width` / 2 frequencies from 1 to 1/10,000: [B, width].

    Ho et al. 2020, appendix B, for times t in [0, 1]; Vaswani et al. 2017, section 3.5.
    """
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(width // 2) / (width // 2 - 1))
    angle = 1000 * t[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def modulate(h: jax.Array, condition: jax.Array) -> jax.Array:
    """Return h (1 + scale) + shift, both from a dense layer of the condition that starts at 0.

    Dhariwal & Nichol 2021, section 3.1 (adaptive group normalisation). h is [B, H, W, C], the
    condition [B, D].
    """
    scale, shift = jnp.split(zero_dense(2 * h.shape[-1])(condition)[:, None, None], 2, axis=-1)
    return h * (1 + scale) + shift


def zero_dense(width: int) -> nn.Dense:
    """Return a dense layer whose weights and biases start at 0."""
    return nn.Dense(width, kernel_init=nn.initializers.zeros)


def group_norm(x: jax.Array) -> nn.GroupNorm:
    """Return group normalisation of x in groups of about 16 channels.

    Wu & He 2018, https://arxiv.org/abs/1803.08494.
    """
    return nn.GroupNorm(num_groups=math.gcd(x.shape[-1], max(1, x.shape[-1] // 16)))
