"""Causal networks over images: PixelCNN, gated PixelCNN.

The variables are in the order of the pixels (raster order), and within a pixel in the order of its
channels. The kernel of a causal convolution is masked: it sees the rows above and, in its own row,
the pixels to the left. Within a pixel, the features of each layer are divided into one group for
each channel. In the first layer a group sees the channels before its own, and in later layers the
groups up to its own (van den Oord, Kalchbrenner & Kavukcuoglu 2016a,
https://arxiv.org/abs/1601.06759, figure 2). The group of green therefore sees the red value of its
pixel, and the group of blue sees red and green.

The same modules run over whole images and, in sampling, at one pixel. There each convolution keeps
the features that it was given so far in the collection `cache`, so that a pixel costs one window of
every layer.

Shapes: B examples, H × W pixels of C channels, D = H · W · C variables of K logits, F features.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gen.core import check_fields, require
from gen.models.autoregressive.vectors import Logits, raster_order
from gen.nets import check_image, convolve

Taps = Literal["A", "B", "above", "upto", "left", "left and self"]
"""The pixels that a kernel sees in images of one channel.

- `A`, `B`: the rows above and the pixels to the left; B also the pixel itself.
- `above`, `upto`: the rows above; `upto` also all of the pixel's row.
- `left`, `left and self`: the pixels to the left in the pixel's row; the second also the pixel.
"""


class At(NamedTuple):
    """The position to compute: one pixel, or a whole row if the column is None."""

    row: Any
    column: Any = None
    channel: Any = None  # the channel of the pixel whose logits are needed


def taps(kind: Taps, size: int) -> np.ndarray:
    """Return the mask [rows, size] of a kernel, 1 where it sees; the last row is the pixel's."""
    mask = np.ones((size // 2 + 1, size), np.float32)
    if kind == "above":
        mask[-1] = 0
    elif kind != "upto":
        mask[-1, size // 2 + (kind in ("B", "left and self")) :] = 0
    return mask[-1:] if kind.startswith("left") else mask


def groups(features: int, channels: int, halves: int = 1) -> np.ndarray:
    """Return the channel to whose group each feature of a layer belongs, 0 … C − 1, [features].

    The groups are consecutive, in the order of the channels, and their sizes differ by at most one.

    Args:
      features: the number of features.
      channels: the number C of channels.
      halves: 2 for the input of a gate, whose two halves have the same groups; else 1.
    """
    half = features // halves
    return np.tile(np.arange(half) * channels // half, halves)


def image_groups(channels: int) -> np.ndarray:
    """Return the groups of an image `with_frame`, [C + 1]. The frame counts as the last channel."""
    return np.minimum(np.arange(channels + 1), channels - 1)


def causal_mask(kind: Taps, size: int, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Return the mask of a kernel, [rows, size, inputs, outputs], 1 where an output sees an input.

    Args:
      kind: the pixels that the kernel sees.
      size: the width of the kernel.
      inputs: the group of each input, [inputs].
      outputs: the group of each output, [outputs].
    """
    pixels = taps(kind, size)[:, :, None, None]
    mask = np.tile(pixels, (1, 1, len(inputs), len(outputs)))
    if kind in ("A", "left"):
        mask[-1, size // 2] = inputs[:, None] < outputs
    elif kind in ("B", "left and self"):
        mask[-1, size // 2] = inputs[:, None] <= outputs
    return mask


class CausalConv(nn.Module):
    """A masked convolution, [B, H, W, ·] ↦ [B, H, W, features], with zeros around the image.

    Kernels `A`, `above` and `left` read an image `with_frame`, the others read features. In its own
    pixel, a group of features sees the channels before its own (`A`, `left`) or the groups up to
    its own (`B`, `left and self`). The features of `above` and `upto` have no groups, because all
    channels of the rows above come before.

    Called `at` a pixel or a row, it returns its output there, [B, 1, 1 or W, features]. A kernel
    that reads the image is given all of it. Other kernels are given the features of this position
    alone and keep them in the cache. `upto` is called at rows, `B` and `left and self` are called
    at pixels.

    The initialisation is He's (He et al. 2015, https://arxiv.org/abs/1502.01852, eq. 10), with the
    fan-in that the mask leaves on average over the outputs.
    """

    features: int
    kind: Taps
    size: int
    channels: int = 1
    """the number C of channels, and of groups of features"""
    gated: bool = False
    """a gate follows, so each half of the features has its groups"""

    @nn.compact
    def __call__(self, x: jax.Array, at: At | None = None) -> jax.Array:
        reads_image = self.kind in ("A", "left")
        inputs = image_groups(self.channels) if reads_image else groups(x.shape[-1], self.channels)
        outputs = groups(self.features, self.channels, halves=2 if self.gated else 1)
        mask = causal_mask(self.kind, self.size, inputs, outputs)
        init = nn.initializers.variance_scaling(2 * mask.size / mask.sum(), "fan_in", "normal")
        kernel = self.param("kernel", init, mask.shape) * mask
        bias = self.param("bias", nn.initializers.zeros, (self.features,))[None, None, None]
        rows, side = len(mask), self.size // 2
        if at is None:
            if self.is_mutable_collection("cache"):
                self._seen(x, rows)
            # The rows and columns that the mask hides altogether, which are the last, cost no time.
            height, width = mask.any((1, 2, 3)).sum(), mask.any((0, 2, 3)).sum()
            around = ((rows - 1, height - rows), (side, side + width - self.size))
            return convolve(x, kernel[:height, :width], around) + bias
        window = self._window(x, at, rows)
        if at.column is None:
            out = convolve(window, kernel, ((0, 0), (0, 0)))
        else:  # one product is faster than a convolution with one result
            out = window.reshape(len(x), -1) @ kernel.reshape(-1, self.features)
            out = out[:, None, None]
        return out + bias

    def _window(self, x: jax.Array, at: At, rows: int) -> jax.Array:
        """Return the input under the kernel: [B, rows, size or W + size − 1, ·]."""
        side = self.size // 2
        if self.kind in ("A", "above", "left"):
            image = jnp.pad(x, ((0, 0), (rows - 1, 0), (side, side), (0, 0)))
            image = jax.lax.dynamic_slice_in_dim(image, at.row, rows, axis=1)
            if at.column is None:
                return image
            return jax.lax.dynamic_slice_in_dim(image, at.column, self.size, axis=2)
        seen = self._seen(x, rows)
        if at.column is None:
            row = jnp.pad(x, ((0, 0), (0, 0), (side, side), (0, 0)))
            seen.value = jnp.concatenate([seen.value[:, 1:], row], axis=1)
            return seen.value
        place = (0, rows - 1 + at.row, side + at.column, 0)
        seen.value = jax.lax.dynamic_update_slice(seen.value, x, place)
        sizes = (len(x), rows, self.size, x.shape[3])
        return jax.lax.dynamic_slice(seen.value, (0, at.row, at.column, 0), sizes)

    def _seen(self, x: jax.Array, rows: int) -> nn.Variable:
        """Return the cached input, [B, ·, W + size − 1, ·], with zeros around it.

        For `upto` it holds the last `rows` rows, otherwise the whole height.
        """
        height = rows if self.kind == "upto" else x.shape[1] + rows - 1
        shape = (len(x), height, x.shape[2] + 2 * (self.size // 2), x.shape[3])
        return self.variable("cache", "seen", jnp.zeros, shape)


def with_frame(x: jax.Array) -> jax.Array:
    """Return the image with a channel of ones, which tells black pixels from the outside."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


class Dense(nn.Module):
    """A 1 × 1 convolution in which a group of features sees the groups up to its own.

    It has the parameters of `flax.linen.Dense`, under the same names. With one channel they are
    equally initialised. With several, the fan-in is the one that the mask leaves on average over
    the outputs.
    """

    features: int
    channels: int = 1
    gain: float = 1.0
    """variance of a first weight times the fan-in: 1 is LeCun's initialisation, 2 is He's"""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, outputs = groups(x.shape[-1], self.channels), groups(self.features, self.channels)
        mask = inputs[:, None] <= outputs
        scale = self.gain * mask.size / mask.sum()
        init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, mask.shape)
        bias = self.param("bias", nn.initializers.zeros, (len(outputs),))
        return x @ (kernel * mask) + bias[None, None, None]


def pointwise(features: int, channels: int = 1) -> Dense:
    """Return a 1 × 1 convolution with He initialisation, for `channels` groups of features."""
    return Dense(features, channels, gain=2.0)


def drop(net: nn.Module, rate: float, h: jax.Array) -> jax.Array:
    """Return dropout(h) where the module has a key for it, as in a training step, else h.

    Args:
      net: the module that is asked for the key.
      rate: the probability that a feature of a pixel is set to 0.
      h: features [B, H, W, F].
    """
    return nn.Dropout(rate, deterministic=not net.has_rng("dropout"))(h)


def gate(a: jax.Array) -> jax.Array:
    """Return tanh(a₁) ⊙ σ(a₂) of the two halves of a (van den Oord et al. 2016b, eq. 2)."""
    a, b = jnp.split(a, 2, axis=-1)
    return jnp.tanh(a) * nn.sigmoid(b)


def start(net: nn.Module, x: jax.Array, mask_index: Any) -> None:
    """Cache the image so far, [B, H, W, C]; a pass over it makes the caches of the convolutions.

    The arguments after the network are as in `CausalNet.start`.
    """
    net(x, mask_index)
    net.put_variable("cache", "x", x)


def logits_at(net: nn.Module, d: jax.Array, mask_index: Any) -> jax.Array:
    """Run the network at the pixel of variable d and return the variable's logits, [B, K].

    The arguments after the network are as in `CausalNet.logits_at`.
    """
    x = net.get_variable("cache", "x")
    at = place_of(d, x)
    return net(x, mask_index, at)[:, at.channel]


def place_of(d: jax.Array, x: jax.Array) -> At:
    """Return the row, column and channel of variable d of images x [B, H, W, C]."""
    pixel, channel = jnp.divmod(d, x.shape[3])
    return At(*jnp.divmod(pixel, x.shape[2]), channel)


def put(net: nn.Module, d: jax.Array, value: jax.Array, mask_index: Any) -> None:
    """Set variable d of the cached image.

    The arguments after the network are as in `CausalNet.put`.
    """
    x = net.get_variable("cache", "x")
    row, column, channel = place_of(d, x)
    net.put_variable("cache", "x", x.at[:, row, column, channel].set(value))


def check_sizes(net: nn.Module, depth: str) -> None:
    """Check the fields of a PixelCNN, whose number of layers is the field named `depth`."""
    check_fields(net, positive=("features",), layers=(depth, "size"), fraction=("dropout",))
    require(net.size % 2 == 1, f"{type(net).__name__}: size is {net.size}, must be odd")


def count_channels(net: nn.Module, x: jax.Array) -> int:
    """Return the number of channels of images [B, H, W, C], or raise `UserError`.

    A network needs a feature for each channel, because its features are divided into groups.
    """
    name = type(net).__name__
    *_, channels = check_image(name, x.shape[1:])
    require(
        net.features >= channels,
        f"{name}: features is {net.features}, must be at least {channels}, the number of channels",
    )
    return channels


class PixelCNN(nn.Module):
    """PixelCNN: a 7 × 7 mask-A layer, residual blocks, two 1 × 1 layers.

    The layers follow table 1 of van den Oord, Kalchbrenner & Kavukcuoglu 2016a,
    https://arxiv.org/abs/1601.06759. A residual block is 2F → F → F → 2F. The network does not see
    all pixels before: masked kernels leave a blind spot to the right above. The logits of a channel
    depend on the channels before it of the same pixel (figure 2).

    Deviations from van den Oord et al. 2016a:

    - Where F is no multiple of C, the groups of features differ in size by one.
    - A further input channel, of ones, marks the inside of the image, as in PixelCNN++ (Salimans et
      al. 2017, https://arxiv.org/abs/1701.05517).
    - Dropout in each residual block, before its last layer, as in PixelCNN++ (section 2.5).
    - The last 1 × 1 layers are 2F wide.
    - He initialisation; Adam in place of RMSProp.
    """

    features: int = 32
    """F: half the width of the residual stream"""
    blocks: int = 7
    """number of residual blocks"""
    size: int = 3
    """width of the blocks' kernels (odd)"""
    dropout: float = 0.0
    """probability that a block's feature is dropped in training"""
    out: Logits = (784, 1)

    masks: ClassVar[int] = 1
    raster: ClassVar[bool] = True
    set_by_model: ClassVar[tuple[str, ...]] = ("out",)

    order, start, logits_at, put = raster_order, start, logits_at, put

    def __post_init__(self):
        check_sizes(self, "blocks")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, mask_index: Any, at: At | None = None) -> jax.Array:
        width, channels, logits = self.features, count_channels(self, x), self.out[1]
        h = CausalConv(2 * width, "A", 7, channels)(with_frame(x), at)
        for _ in range(self.blocks):
            r = nn.relu(pointwise(width, channels)(nn.relu(h)))
            r = nn.relu(CausalConv(width, "B", self.size, channels)(r, at))
            h += pointwise(2 * width, channels)(drop(self, self.dropout, r))
        h = nn.relu(pointwise(2 * width, channels)(nn.relu(h)))
        return Dense(channels * logits, channels)(h).reshape(len(x), -1, logits)


class GatedPixelCNN(nn.Module):
    """Gated PixelCNN, without labels.

    van den Oord et al. 2016b, https://arxiv.org/abs/1606.05328. A vertical stack sees the rows
    above, and a horizontal stack sees the pixel's row and the vertical stack, so that every pixel
    before is seen. The features of the horizontal stack have a group for each channel. The vertical
    stack sees whole pixels and needs no groups.

    Deviations from van den Oord et al. 2016b:

    - The sizes of the groups of features, as in `PixelCNN`.
    - The input's channel of ones, as in `PixelCNN`.
    - Dropout of the output of each gate.
    - He initialisation; Adam in place of RMSProp.
    - No skip connections to the last layers.
    """

    features: int = 32
    """F: width of both stacks"""
    layers: int = 7
    """number of gated layers"""
    size: int = 3
    """width of the kernels after the first layer (odd)"""
    dropout: float = 0.0
    """probability that a gate's output is dropped in training"""
    out: Logits = (784, 1)

    masks: ClassVar[int] = 1
    raster: ClassVar[bool] = True
    set_by_model: ClassVar[tuple[str, ...]] = ("out",)

    order, start, logits_at, put = raster_order, start, logits_at, put

    def __post_init__(self):
        check_sizes(self, "layers")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, mask_index: Any, at: At | None = None) -> jax.Array:
        channels, logits = count_channels(self, x), self.out[1]
        vertical = Vertical(self.features, self.layers, self.size, self.dropout, name="vertical")
        if at is None:
            above = vertical(x)
            if self.is_mutable_collection("cache"):
                self.put_variable("cache", "above", [jnp.zeros_like(v[:, :1]) for v in above])
        else:
            # The vertical stack is computed for a whole row at a time, where the row begins.
            cached = self.get_variable("cache", "above")
            row = nn.cond(
                (at.column == 0) & (at.channel == 0),
                lambda stack: stack(x, At(at.row)),
                lambda _: cached,
                vertical,
            )
            self.put_variable("cache", "above", row)
            above = [jax.lax.dynamic_slice_in_dim(v, at.column, 1, axis=2) for v in row]
        horizontal = Horizontal(
            self.features, self.size, self.dropout, channels, channels * logits, name="horizontal"
        )
        return horizontal(x, above, at).reshape(len(x), -1, logits)


class Vertical(nn.Module):
    """The vertical stack: each layer's view of the rows above, before the gate, [B, H, W, 2F]."""

    features: int
    layers: int
    size: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, at: At | None = None) -> list[jax.Array]:
        above = [CausalConv(2 * self.features, "above", 7)(with_frame(x), at)]
        for _ in range(self.layers - 1):
            h = drop(self, self.dropout, gate(above[-1]))
            above.append(CausalConv(2 * self.features, "upto", self.size)(h, at))
        return above


class Horizontal(nn.Module):
    """The horizontal stack on the vertical one, and two 1 × 1 layers: logits [B, H, W, C · K].

    Each layer is the block of van den Oord et al. 2016b, figure 2.
    """

    features: int
    size: int
    dropout: float
    channels: int
    logits: int

    @nn.compact
    def __call__(self, x: jax.Array, above: list[jax.Array], at: At | None = None) -> jax.Array:
        def gated(a: jax.Array, v: jax.Array) -> jax.Array:
            # Flax numbers layers in the order in which they are made. Stored parameters have these
            # numbers, so the last layer is made first.
            out = pointwise(width, channels)
            return out(drop(self, self.dropout, gate(a + pointwise(2 * width)(v))))

        width, channels = self.features, self.channels
        h = CausalConv(2 * width, "left", 7, channels, gated=True)(with_frame(x), at)
        h = gated(h, above[0])
        for v in above[1:]:
            a = CausalConv(2 * width, "left and self", self.size, channels, gated=True)(h, at)
            h += gated(a, v)
        h = nn.relu(pointwise(2 * width, channels)(nn.relu(h)))
        return Dense(self.logits, channels)(h)
