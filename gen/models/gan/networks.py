"""The networks of DCGAN, heads for labels and codes, and packs of examples."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen import nets
from gen.core import check_fields, require
from gen.nets import (
    Axis,
    Conv,
    ConvTranspose,
    Output,
    batch_norm,
    check_image,
    dense,
    flatten,
    record,
)

DCGAN_INIT = nn.initializers.normal(0.02)
"""The law of DCGAN's first weights, N(0, 0.02²) (Radford et al. 2016, section 4)."""


class DCGANGenerator(nn.Module):
    """Transposed convolutions of stride 2 with ReLU, from z to images [H, W, C].

    Radford et al. 2016, "Unsupervised representation learning with deep convolutional generative
    adversarial networks", https://arxiv.org/abs/1511.06434, section 3 and figure 1: no dense hidden
    layers, no pooling, batch normalisation in each layer but the last.

    Deviation from the authors' program (https://github.com/Newmu/dcgan_code): the scales of batch
    normalisation start at 1, and not from N(1, 0.02²).
    """

    channels: tuple[int, ...] = (256, 128, 64)
    """channels that the transposed convolutions take in, the first at the lowest resolution"""
    size: int = 5
    """height and width of the kernels"""
    batch_norm: bool = True
    """normalise each layer but the last over the batch, before its nonlinearity"""
    out: Output = None
    axis_name: Axis = None

    set_by_model: ClassVar[tuple[str, ...]] = ("out", "axis_name")

    def __post_init__(self):
        check_fields(self, positive=("channels", "size"))
        require(len(self.channels) > 0, "DCGANGenerator: channels is empty, take one or more")
        super().__post_init__()

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool = False) -> jax.Array:
        height, width, colours = check_image("DCGANGenerator", self.out or ())
        lowest = [-(-side // 2 ** len(self.channels)) for side in (height, width)]
        bias = not self.batch_norm
        first = nn.Dense(
            math.prod(lowest) * self.channels[0], use_bias=bias, kernel_init=DCGAN_INIT
        )
        h = first(z).reshape(len(z), *lowest, self.channels[0])
        for channels in (*self.channels[1:], None):
            h = batch_norm(train, self.axis_name)(h) if self.batch_norm else h
            h = nn.relu(h)
            if channels:
                h = ConvTranspose(channels, self.size, use_bias=bias, kernel_init=DCGAN_INIT)(h)
        last = ConvTranspose(colours, self.size, kernel_init=DCGAN_INIT)
        return last(h)[:, :height, :width]


class DCGANDiscriminator(nn.Module):
    """Convolutions of stride 2 with leaky ReLU of slope 0.2, from images [H, W, C] to a logit.

    Radford et al. 2016, section 3: batch normalisation in each layer but the first.

    Deviation from the authors' program: as in `DCGANGenerator`.
    """

    channels: tuple[int, ...] = (64, 128, 256)
    """channels of the convolutions, the first at half the height and width"""
    size: int = 5
    """height and width of the kernels"""
    batch_norm: bool = True
    """normalise each layer but the first over the batch, before its nonlinearity"""
    out: Output = None
    axis_name: Axis = None

    set_by_model: ClassVar[tuple[str, ...]] = ("out", "axis_name")

    def __post_init__(self):
        check_fields(self, positive=("channels", "size"))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        check_image("DCGANDiscriminator", x.shape[1:])
        for i, channels in enumerate(self.channels):
            normalised = self.batch_norm and i > 0
            conv = Conv(channels, self.size, 2, use_bias=not normalised, kernel_init=DCGAN_INIT)
            x = conv(x)
            if normalised:
                x = batch_norm(train, self.axis_name)(x)
            x = nn.leaky_relu(x, 0.2)
            record(self, x)
        if self.out is None:
            return flatten(x)
        logits = nn.Dense(math.prod(self.out), kernel_init=DCGAN_INIT)(flatten(x))
        return logits.reshape(-1, *self.out)


class Heads(nn.Module):
    """Heads on the features h = φ(x) of a discriminator's network.

    The logit is wᵀ h + b. With `classes` a label y adds the inner product e_yᵀ h with a learned
    embedding (the projection discriminator, Miyato & Koyama 2018, https://arxiv.org/abs/1802.05637,
    eq. 3). With `posterior` numbers a hidden layer and a linear layer give the parameters of
    InfoGAN's Q(c|x), which shares the features (Chen et al. 2016, https://arxiv.org/abs/1606.03657,
    section 6 and appendix C.1). The hidden layer is normalised over the batch if the network is.

    Deviation from the papers:

    - All weights start from Glorot's uniform law, also behind a DCGAN, whose weights start from
      N(0, 0.02²).
    """

    network: nn.Module
    classes: int = 0
    posterior: int = 0
    batch_norm: bool = False
    axis_name: Axis = None

    @nn.compact
    def __call__(
        self, x: jax.Array, label: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        h = self.network(x, train=train)
        nets.check_features(self.network, h, "discriminator")
        require(
            h.shape[1] > 1,
            f"the discriminator {type(self.network).__name__} returns {list(h.shape)}, and the "
            "heads for labels and codes need several features [B, F]: leave out its last layer",
        )
        logits = dense(1, "logit")(h)[:, 0]
        if self.classes:
            logits += jnp.sum(nn.Embed(self.classes, h.shape[1], name="embedding")(label) * h, 1)
        if not self.posterior:
            return logits, None
        hidden = dense(128, "posterior_hidden", use_bias=not self.batch_norm)(h)
        if self.batch_norm:
            hidden = batch_norm(train, self.axis_name, "posterior_norm")(hidden)
        return logits, dense(self.posterior, "posterior")(nn.leaky_relu(hidden, 0.2))


def packed(x: jax.Array, pack: int) -> jax.Array:
    """Return `pack` examples in succession as one, joined along the last axis.

    [B, ..., C] becomes [B / pack, ..., pack · C] (PacGAN, Lin et al. 2018,
    https://arxiv.org/abs/1712.04086, section 2).
    """
    x = jnp.moveaxis(x.reshape(-1, pack, *x.shape[1:]), 1, -2)
    return x.reshape(*x.shape[:-2], -1)
