"""Causal networks over images of one channel, pixels in raster order: PixelCNN, gated PixelCNN.

The kernel of a causal convolution is masked: it sees the rows above and, in its own row, the pixels
to the left. The same modules run over whole images and, in sampling, at one pixel. There each
convolution keeps the features that it was given so far in the collection `cache`, so that a pixel
costs one window of every layer.

Shapes: B examples, H × W pixels, C logits for each pixel, F features.
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
"""The pixels that a kernel sees.

- `A`, `B`: the rows above and the pixels to the left; B also the pixel itself.
- `above`, `upto`: the rows above; `upto` also all of the pixel's row.
- `left`, `left and self`: the pixels to the left in the pixel's row; the second also the pixel.
"""


class At(NamedTuple):
    """The position to compute: one pixel, or a whole row if the column is None."""

    row: Any
    column: Any = None


def taps(kind: Taps, size: int) -> np.ndarray:
    """Return the mask [rows, size] of a kernel, 1 where it sees; the last row is the pixel's."""
    mask = np.ones((size // 2 + 1, size), np.float32)
    if kind == "above":
        mask[-1] = 0
    elif kind != "upto":
        mask[-1, size // 2 + (kind in ("B", "left and self")) :] = 0
    return mask[-1:] if kind.startswith("left") else mask


class CausalConv(nn.Module):
    """A masked convolution, [B, H, W, ·] ↦ [B, H, W, features], with zeros around the image.

    Called `at` a pixel or a row, it returns its output there, [B, 1, 1 or W, features]. A kernel
    that excludes its centre reads the image, and is given all of it. Other kernels read features.
    They are given the features of this position alone and keep them in the cache. `upto` is called
    at rows, `B` and `left and self` are called at pixels.

    The initialisation is He's (He et al. 2015, https://arxiv.org/abs/1502.01852, eq. 10), with the
    fan-in of the taps that the mask leaves.
    """

    features: int
    kind: Taps
    size: int

    @nn.compact
    def __call__(self, x: jax.Array, at: At | None = None) -> jax.Array:
        mask = taps(self.kind, self.size)
        init = nn.initializers.variance_scaling(2 * mask.size / mask.sum(), "fan_in", "normal")
        kernel = self.param("kernel", init, (*mask.shape, x.shape[-1], self.features))
        kernel *= mask[:, :, None, None]
        bias = self.param("bias", nn.initializers.zeros, (self.features,))[None, None, None]
        rows, side = len(mask), self.size // 2
        if at is None:
            if self.is_mutable_collection("cache"):
                self._seen(x, rows)
            # The rows and columns that the mask hides altogether, which are the last, cost no time.
            height, width = mask.any(1).sum(), mask.any(0).sum()
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
    return jnp.concatenate([x, jnp.ones_like(x)], axis=-1)


def pointwise(features: int) -> nn.Dense:
    """Return a 1 × 1 convolution with He initialisation."""
    return nn.Dense(features, kernel_init=nn.initializers.he_normal())


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
    """Cache the image so far, [B, H, W, 1]; a pass over it makes the caches of the convolutions.

    The arguments after the network are as in `CausalNet.start`.
    """
    net(x, mask_index)
    net.put_variable("cache", "x", x)


def logits_at(net: nn.Module, d: jax.Array, mask_index: Any) -> jax.Array:
    """Run the network at pixel d, in raster order, and return its logits there, [B, C].

    The arguments after the network are as in `CausalNet.logits_at`.
    """
    x = net.get_variable("cache", "x")
    return net(x, mask_index, At(*jnp.divmod(d, x.shape[2])))[:, 0]


def put(net: nn.Module, d: jax.Array, value: jax.Array, mask_index: Any) -> None:
    """Set pixel d of the cached image.

    The arguments after the network are as in `CausalNet.put`.
    """
    x = net.get_variable("cache", "x")
    row, column = jnp.divmod(d, x.shape[2])
    net.put_variable("cache", "x", x.at[:, row, column, 0].set(value))


def check_sizes(net: nn.Module, depth: str) -> None:
    """Check the fields of a PixelCNN, whose number of layers is the field named `depth`."""
    check_fields(net, positive=("features",), layers=(depth, "size"), fraction=("dropout",))
    require(net.size % 2 == 1, f"{type(net).__name__}: size is {net.size}, must be odd")


def check_one_channel(net: nn.Module, x: jax.Array) -> None:
    """Raise `UserError` unless x are images [B, H, W, 1]."""
    name = type(net).__name__
    *_, channels = check_image(name, x.shape[1:])
    require(channels == 1, f"{name} takes images [H, W, 1], not {channels} channels")


class PixelCNN(nn.Module):
    """PixelCNN of one channel: a 7 × 7 mask-A layer, residual blocks, two 1 × 1 layers.

    The layers follow table 1 of van den Oord, Kalchbrenner & Kavukcuoglu 2016a,
    https://arxiv.org/abs/1601.06759. A residual block is 2F → F → F → 2F. The network does not see
    all pixels before: masked kernels leave a blind spot to the right above.

    Deviations from van den Oord et al. 2016a:

    - A second input channel, of ones, marks the inside of the image, as in PixelCNN++ (Salimans et
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
        check_one_channel(self, x)
        h = CausalConv(2 * self.features, "A", 7)(with_frame(x), at)
        for _ in range(self.blocks):
            r = nn.relu(pointwise(self.features)(nn.relu(h)))
            r = nn.relu(CausalConv(self.features, "B", self.size)(r, at))
            h += pointwise(2 * self.features)(drop(self, self.dropout, r))
        h = nn.relu(pointwise(2 * self.features)(nn.relu(h)))
        logits = self.out[1]
        return nn.Dense(logits)(h).reshape(len(x), -1, logits)


class GatedPixelCNN(nn.Module):
    """Gated PixelCNN of one channel, without labels.

    van den Oord et al. 2016b, https://arxiv.org/abs/1606.05328. A vertical stack sees the rows
    above, and a horizontal stack sees the pixel's row and the vertical stack, so that every pixel
    before is seen.

    Deviations from van den Oord et al. 2016b:

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
        check_one_channel(self, x)
        vertical = Vertical(self.features, self.layers, self.size, self.dropout, name="vertical")
        if at is None:
            above = vertical(x)
            if self.is_mutable_collection("cache"):
                self.put_variable("cache", "above", [jnp.zeros_like(v[:, :1]) for v in above])
        else:
            # The vertical stack is computed for a whole row at a time, where the row begins.
            cached = self.get_variable("cache", "above")
            row = nn.cond(
                at.column == 0, lambda stack: stack(x, At(at.row)), lambda _: cached, vertical
            )
            self.put_variable("cache", "above", row)
            above = [jax.lax.dynamic_slice_in_dim(v, at.column, 1, axis=2) for v in row]
        logits = self.out[1]
        horizontal = Horizontal(self.features, self.size, self.dropout, logits, name="horizontal")
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
    """The horizontal stack on the vertical one, and two 1 × 1 layers: logits [B, H, W, C].

    Each layer is the block of van den Oord et al. 2016b, figure 2.
    """

    features: int
    size: int
    dropout: float
    logits: int

    @nn.compact
    def __call__(self, x: jax.Array, above: list[jax.Array], at: At | None = None) -> jax.Array:
        def gated(a: jax.Array, v: jax.Array) -> jax.Array:
            # Flax numbers layers in the order in which they are made. Stored parameters have these
            # numbers, so the last layer is made first.
            out = pointwise(self.features)
            return out(drop(self, self.dropout, gate(a + pointwise(2 * self.features)(v))))

        h = gated(CausalConv(2 * self.features, "left", 7)(with_frame(x), at), above[0])
        for v in above[1:]:
            h += gated(CausalConv(2 * self.features, "left and self", self.size)(h, at), v)
        h = nn.relu(pointwise(2 * self.features)(nn.relu(h)))
        return nn.Dense(self.logits)(h)
