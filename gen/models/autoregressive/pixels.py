"""Causal convolutions over images of one channel, pixels in raster order.

A convolution's kernel is masked: it sees rows above and, in its own row, what stands to the left.
The same modules run over whole images and, while sampling, at one pixel: there each of them keeps
the features that it was given so far, so that a pixel costs one window of every layer.

Shapes: B examples, H × W pixels, C logits for each pixel, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gen.core import require

Taps = Literal["A", "B", "above", "upto", "left", "left and self"]


class At(NamedTuple):
    """What is computed: a pixel, or (column None) a row."""

    row: Any
    column: Any = None


def taps(kind: Taps, size: int) -> np.ndarray:
    """[rows, size], 1 where a kernel of that width may look; its last row is the pixel's own.

    A and B see the rows above and the pixels to the left, B the pixel itself too; `above` sees the
    rows above, `upto` all of its own row too; `left` and `left and self` see that row alone.
    """
    mask = np.ones((size // 2 + 1, size), np.float32)
    if kind == "above":
        mask[-1] = 0
    elif kind != "upto":
        mask[-1, size // 2 + (kind in ("B", "left and self")) :] = 0
    return mask[-1:] if kind.startswith("left") else mask


class CausalConv(nn.Module):
    """A masked convolution, [B, H, W, ·] ↦ [B, H, W, features], zeros around the image.

    Called `at` a pixel or a row it returns its output there, [B, 1, 1 or W, features], and takes
    its input there alone, which it adds to what it has `seen`. Kinds that do not see the pixel
    itself stand on the image, and take all of that; `upto` is called at rows, the others that see
    it at pixels.
    """

    features: int
    kind: Taps
    size: int

    @nn.compact
    def __call__(self, x: jax.Array, at: At | None = None) -> jax.Array:
        mask = taps(self.kind, self.size)
        # He initialisation, by the taps that are there.
        init = nn.initializers.variance_scaling(2 * mask.size / mask.sum(), "fan_in", "normal")
        kernel = self.param("kernel", init, (*mask.shape, x.shape[-1], self.features))
        kernel *= mask[:, :, None, None]
        bias = self.param("bias", nn.initializers.zeros, (self.features,))[None, None, None]
        rows, side = len(mask), self.size // 2
        if at is None:
            if self.is_mutable_collection("cache"):
                self._seen(x, rows)
            around = ((rows - 1, 0), (side, side))
            layout = ("NHWC", "HWIO", "NHWC")
            return (
                jax.lax.conv_general_dilated(x, kernel, (1, 1), around, None, None, layout) + bias
            )
        window = self._window(x, at, rows)
        if at.column is None:
            out = jax.lax.conv_general_dilated(
                window, kernel, (1, 1), "VALID", None, None, ("NHWC", "HWIO", "NHWC")
            )
        else:  # one product is faster than a convolution with one result
            out = window.reshape(len(x), -1) @ kernel.reshape(-1, self.features)
            out = out[:, None, None]
        return out + bias

    def _window(self, x: jax.Array, at: At, rows: int) -> jax.Array:
        """What the kernel looks at: [B, rows, size or W + size − 1, ·]."""
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
        """The input as far as it was given, [B, ·, W + size − 1, ·], zeros around it: its last rows
        where rows are given, else all of them."""
        height = rows if self.kind == "upto" else x.shape[1] + rows - 1
        shape = (len(x), height, x.shape[2] + 2 * (self.size // 2), x.shape[3])
        return self.variable("cache", "seen", jnp.zeros, shape)


def with_frame(x: jax.Array) -> jax.Array:
    """The image and a channel of ones, which tells a black pixel from what lies outside."""
    return jnp.concatenate([x, jnp.ones_like(x)], axis=-1)


def pointwise(features: int) -> nn.Dense:
    """A 1 × 1 convolution, He-initialised."""
    return nn.Dense(features, kernel_init=nn.initializers.he_normal())


class Residual(nn.Module):
    """PixelCNN: a 7 × 7 mask-A layer, residual blocks 2F → F → F → 2F, two 1 × 1 layers."""

    features: int
    blocks: int
    size: int
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, at: At | None = None) -> jax.Array:
        h = CausalConv(2 * self.features, "A", 7)(with_frame(x), at)
        for _ in range(self.blocks):
            r = nn.relu(pointwise(self.features)(nn.relu(h)))
            r = nn.relu(CausalConv(self.features, "B", self.size)(r, at))
            h += pointwise(2 * self.features)(r)
        h = nn.relu(pointwise(2 * self.features)(nn.relu(h)))
        return nn.Dense(self.channels)(h)


def gate(a: jax.Array) -> jax.Array:
    """tanh(a₁) ⊙ σ(a₂) of the two halves of a (van den Oord et al. 2016b, eq. 2)."""
    a, b = jnp.split(a, 2, axis=-1)
    return jnp.tanh(a) * nn.sigmoid(b)


class Vertical(nn.Module):
    """The vertical stack: for each layer what it sees of the rows above, before the gate,
    [B, H, W, 2F]."""

    features: int
    layers: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array, at: At | None = None) -> list[jax.Array]:
        seen = [CausalConv(2 * self.features, "above", 7)(with_frame(x), at)]
        for _ in range(self.layers - 1):
            seen.append(CausalConv(2 * self.features, "upto", self.size)(gate(seen[-1]), at))
        return seen


class Horizontal(nn.Module):
    """The horizontal stack on the vertical one (van den Oord et al. 2016b, figure 2), and two 1 × 1
    layers: logits [B, H, W, C]."""

    features: int
    size: int
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, above: list[jax.Array], at: At | None = None) -> jax.Array:
        a = CausalConv(2 * self.features, "left", 7)(with_frame(x), at)
        h = pointwise(self.features)(gate(a + pointwise(2 * self.features)(above[0])))
        for v in above[1:]:
            a = CausalConv(2 * self.features, "left and self", self.size)(h, at)
            h += pointwise(self.features)(gate(a + pointwise(2 * self.features)(v)))
        h = nn.relu(pointwise(2 * self.features)(nn.relu(h)))
        return nn.Dense(self.channels)(h)


@dataclass(frozen=True)
class PixelCNN:
    """PixelCNN (van den Oord, Kalchbrenner & Kavukcuoglu 2016), of one channel: table 1's layers.

    It does not see all pixels before: masked kernels leave a blind spot to the right above.
    Deviations: a second input channel, of ones, marks the inside of the image (as PixelCNN++ does;
    Salimans et al. 2017); the last 1 × 1 layers are 2F wide; He initialisation and Adam in place of
    RMSProp.
    """

    features: int = 32
    """F: half the width of the residual stream"""
    blocks: int = 7
    """number of residual blocks"""
    size: int = 3
    """width of the blocks' kernels (odd)"""

    def __post_init__(self):
        check_sizes(self, self.features, self.blocks, self.size)

    @property
    def masks(self) -> int:
        return 1

    def init(self, key: jax.Array, shape: tuple[int, ...], channels: int) -> Any:
        check_image(shape)
        return self._module(channels).init(key, jnp.zeros((1, *shape)))["params"]

    def logits(self, params: Any, x: jax.Array, which: Any) -> jax.Array:
        out: Any = self._module(channels_of(params)).apply({"params": params}, x)
        return out.reshape(len(x), -1, out.shape[-1])

    def order(self, which: Any, size: int) -> jax.Array:
        return jnp.arange(size)

    def begin(self, params: Any, x: jax.Array, which: Any) -> Any:
        """The image so far, and what each convolution has seen."""
        return {"x": x, "seen": unseen(self._module(channels_of(params)), x)}

    def next(self, params: Any, cache: Any, d: jax.Array) -> tuple[jax.Array, Any]:
        at = At(*jnp.divmod(d, cache["x"].shape[2]))
        module = self._module(channels_of(params))
        out, seen = look(module, params, cache["seen"], cache["x"], at)
        return out[:, 0, 0], {**cache, "seen": seen}

    def put(self, params: Any, cache: Any, d: jax.Array, value: jax.Array) -> Any:
        return {**cache, "x": put_pixel(cache["x"], d, value)}

    def _module(self, channels: int) -> Residual:
        return Residual(self.features, self.blocks, self.size, channels)


@dataclass(frozen=True)
class GatedPixelCNN:
    """Gated PixelCNN (van den Oord et al. 2016b), of one channel, without labels: a vertical stack
    over the rows above and a horizontal one over the row, so that every pixel before is seen.

    Deviations: the input's channel of ones, as in `PixelCNN`; He initialisation and Adam in place
    of RMSProp; no skip connections to the last layers.
    """

    features: int = 32
    """F: width of both stacks"""
    layers: int = 7
    """number of gated layers"""
    size: int = 3
    """width of the kernels after the first layer (odd)"""

    def __post_init__(self):
        check_sizes(self, self.features, self.layers, self.size)

    @property
    def masks(self) -> int:
        return 1

    def init(self, key: jax.Array, shape: tuple[int, ...], channels: int) -> Any:
        check_image(shape)
        vertical_key, horizontal_key = jax.random.split(key)
        x = jnp.zeros((1, *shape))
        vertical = self._vertical.init(vertical_key, x)["params"]
        above: Any = self._vertical.apply({"params": vertical}, x)
        horizontal = self._horizontal(channels).init(horizontal_key, x, above)["params"]
        return {"vertical": vertical, "horizontal": horizontal}

    def logits(self, params: Any, x: jax.Array, which: Any) -> jax.Array:
        above: Any = self._vertical.apply({"params": params["vertical"]}, x)
        horizontal = self._horizontal(channels_of(params["horizontal"]))
        out: Any = horizontal.apply({"params": params["horizontal"]}, x, above)
        return out.reshape(len(x), -1, out.shape[-1])

    def order(self, which: Any, size: int) -> jax.Array:
        return jnp.arange(size)

    def begin(self, params: Any, x: jax.Array, which: Any) -> Any:
        """The image so far, what each convolution has seen, and the vertical stack's outputs in the
        pixel's row."""
        whole: Any = jax.eval_shape(self._vertical.apply, {"params": params["vertical"]}, x)
        horizontal = self._horizontal(channels_of(params["horizontal"]))
        return {
            "x": x,
            "above": [jnp.zeros((len(x), 1, *v.shape[2:])) for v in whole],
            "vertical": unseen(self._vertical, x),
            "horizontal": unseen(horizontal, x, whole),
        }

    def next(self, params: Any, cache: Any, d: jax.Array) -> tuple[jax.Array, Any]:
        row, column = jnp.divmod(d, cache["x"].shape[2])

        def new_row(_):
            return look(self._vertical, params["vertical"], cache["vertical"], cache["x"], At(row))

        above, vertical = jax.lax.cond(
            column == 0, new_row, lambda _: (cache["above"], cache["vertical"]), None
        )
        here = [jax.lax.dynamic_slice_in_dim(v, column, 1, axis=2) for v in above]
        module = self._horizontal(channels_of(params["horizontal"]))
        out, horizontal = look(
            module, params["horizontal"], cache["horizontal"], cache["x"], here, At(row, column)
        )
        return out[:, 0, 0], {
            **cache,
            "above": above,
            "vertical": vertical,
            "horizontal": horizontal,
        }

    def put(self, params: Any, cache: Any, d: jax.Array, value: jax.Array) -> Any:
        return {**cache, "x": put_pixel(cache["x"], d, value)}

    @property
    def _vertical(self) -> Vertical:
        return Vertical(self.features, self.layers, self.size)

    def _horizontal(self, channels: int) -> Horizontal:
        return Horizontal(self.features, self.size, channels)


def look(module: nn.Module, params: Any, seen: Any, *inputs: Any) -> tuple[Any, Any]:
    """The module's output at a place, and what its convolutions have seen then."""
    variables = {"params": params, "cache": seen}
    out, changed = module.apply(variables, *inputs, mutable=["cache"])
    return out, changed.get("cache", {})


def unseen(module: nn.Module, *inputs: Any) -> Any:
    """What a module's convolutions have seen before the first pixel: zeros."""
    variables: Any = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), variables.get("cache", {}))


def put_pixel(x: jax.Array, d: jax.Array, value: jax.Array) -> jax.Array:
    """x [B, H, W, 1] with pixel d set to the values [B]."""
    row, column = jnp.divmod(d, x.shape[2])
    return x.at[:, row, column, 0].set(value)


def channels_of(params: Any) -> int:
    """C, as the last layer has it."""
    return params["Dense_" + str(sum(name.startswith("Dense_") for name in params) - 1)][
        "bias"
    ].shape[0]


def check_sizes(net: Any, features: int, depth: int, size: int) -> None:
    name = type(net).__name__
    require(
        min(features, depth) > 0 and size % 2 == 1,
        f"{name}: {features} features, {depth} layers, kernels of width {size}: "
        "take positive numbers and an odd width",
    )


def check_image(shape: tuple[int, ...]) -> None:
    require(
        len(shape) == 3 and shape[2] == 1,
        f"a PixelCNN models images [H, W, 1], not examples of shape {list(shape)}",
    )
