"""Networks of the project, and how a model runs a network.

A model takes one of these networks, or any Flax module of the same signature:

- encoder, discriminator: `__call__(x, *, train=False)` of x [B, *shape]. An encoder returns
  features [B, F], to which the model adds its heads; a discriminator returns logits [B] or [B, 1],
  or features where the model adds heads to it, too.
- decoder, generator: `__call__(z, *, train=False)` of z [B, latent], returns [B, *shape] or [B, D].
- network of a diffusion model: `__call__(x, t, label, *, train=False)`, returns [B, *shape].

The project's encoders, discriminators and denoising networks record their hidden layers by
`record`, and `layers` returns them.

Random keys come by `rngs` under the name `"dropout"`. Collections other than `"params"`, such as
batch statistics, live in the model's state and change in training steps only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn

from gen.core import UserError, check_fields, require

Activation = Literal["relu", "elu", "tanh", "leaky_relu", "softplus", "sigmoid", "linear"]
"""A nonlinearity, by its name in `flax.linen`, or `linear` for none."""

Output = Annotated[tuple[int, ...] | None, tyro.conf.Suppress]
"""The shape of one output, which the model sets. None: the network ends with its hidden layers."""

Axis = Annotated[str | None, tyro.conf.Suppress]
"""The mapped axis of devices that share a batch, which the model sets under `pmap`."""

HIDDEN = "hidden"
"""The name under which networks record their hidden layers."""

Sides = tuple[tuple[int, int], tuple[int, int]]
"""Rows of zeros above and below an image, and columns to its left and right; negative: cut off."""

Net = TypeVar("Net", bound=nn.Module)


def activate(name: Activation, x: jax.Array) -> jax.Array:
    """Return f(x) for the nonlinearity f of that name."""
    return x if name == "linear" else getattr(nn, name)(x)


def dense(width: int, name: str | None = None, use_bias: bool = True) -> nn.Dense:
    """Return the layer x ↦ W x + b with Glorot-uniform W and b = 0.

    Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html, eq. 16.

    Args:
      width: the number of outputs.
      name: the layer's name in the parameters; by default its kind and number.
      use_bias: whether there is a b. Batch normalisation would subtract it again.
    """
    kernel_init = nn.initializers.glorot_uniform()
    return nn.Dense(width, use_bias=use_bias, kernel_init=kernel_init, name=name)


def flatten(x: jax.Array) -> jax.Array:
    """Return [B, *shape] as [B, D]."""
    return jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def record(module: nn.Module, h: jax.Array) -> None:
    """Record the activations of a hidden layer, [B, ...], for `layers`; elsewhere do nothing."""
    module.sow("intermediates", HIDDEN, h)


def batch_norm(train: bool, axis_name: str | None, name: str | None = None) -> nn.BatchNorm:
    """Return batch normalisation over the whole batch, also where devices share it.

    Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167. The running statistics keep 0.9 of their
    past in each step. The layer before it needs no bias, since this subtracts the mean and adds a
    bias of its own.

    Args:
      train: whether the statistics are the batch's; otherwise they are the running ones.
      axis_name: the mapped axis of the devices that share a batch, under `pmap`.
      name: the layer's name in the parameters; by default its kind and number.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=axis_name, name=name)


def convolve(x: jax.Array, kernel: jax.Array, around: Sides, stride: int = 1) -> jax.Array:
    """Return the convolution (cross-correlation) of images with a kernel, [B, H', W', O].

    out[b, i, j, o] = Σ_u,v,c x[b, stride · i + u, stride · j + v, c] · kernel[u, v, c, o]

    XLA's convolution runs on accelerators. Where the default backend is the CPU, matrix products
    run if they are faster, by `cpu_form`; BUILD.md has the measurements. The two agree within
    rounding. `jax.lax.platform_dependent`, by which NADE chooses, would trace both forms of every
    convolution of a network. The default backend is known before tracing, so one form is traced. A
    computation that is placed on the CPU beside an accelerator is therefore correct, but slower.

    Args:
      x: images, [B, H, W, C]. Images and kernel are converted to their common type.
      kernel: [rows, columns, C, O].
      around: zeros around the image.
      stride: pixels between two positions of the kernel.
    """
    dtype = jnp.result_type(x, kernel)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    on_cpu = jax.default_backend() == "cpu"
    form = cpu_form(x.shape, kernel.shape, stride) if on_cpu else "xla"
    if form == "patches":
        return convolve_by_patches(x, kernel, around, stride)
    if form == "rows":
        return convolve_by_rows(x, kernel, around)
    if form == "tiles":
        return convolve_by_tiles(x, kernel, around)
    layout, strides = ("NHWC", "HWIO", "NHWC"), (stride, stride)
    return jax.lax.conv_general_dilated(x, kernel, strides, around, dimension_numbers=layout)


def cpu_form(
    x: tuple[int, ...], kernel: tuple[int, ...], stride: int
) -> Literal["patches", "rows", "tiles", "xla"]:
    """Return the fastest form of a convolution on a CPU, as measured.

    Args:
      x: the shape of the images, [B, H, W, C].
      kernel: the shape of the kernel, [rows, columns, C, O].
      stride: pixels between two positions of the kernel.
    """
    taps = math.prod(kernel[:3])
    if stride == 1:
        if kernel[:2] == (3, 3) and tiles_save(x, kernel):
            return "tiles"
        return "patches" if taps <= 64 else "rows"
    patches = math.prod(x[:3]) // stride**2 * taps
    return "patches" if patches <= 2**21 else "xla"  # beyond 8 MiB they leave the caches


def tiles_save(x: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Return whether `convolve_by_tiles` has at most 3/4 of the other forms' multiplications.

    The arguments are the same as in `cpu_form`.
    """
    batch, height, width, channels = x
    features = kernel[3]
    places = 36 * -(-height // 4) * -(-width // 4)
    transforms = batch * places * height * width * (channels + features)
    products = (batch * places + 36 * 9) * channels * features  # with the kernel's own transform
    others = batch * height * width * 9 * channels * features
    return transforms + products <= 0.75 * others


def convolve_by_patches(
    x: jax.Array, kernel: jax.Array, around: Sides, stride: int = 1
) -> jax.Array:
    """Compute `convolve` as one matrix product of all patches with the kernel.

    The arguments are the same as in `convolve`. The patches take rows · columns · C floats for each
    output pixel.
    """
    rows, columns, channels, features = kernel.shape
    x = pad(x, around)
    height = max(0, (x.shape[1] - rows) // stride + 1)
    width = max(0, (x.shape[2] - columns) // stride + 1)
    patches = [
        x[:, u : u + stride * height : stride, v : v + stride * width : stride][:, :height, :width]
        for u in range(rows)
        for v in range(columns)
    ]
    patches = jnp.concatenate(patches, axis=-1).reshape(-1, rows * columns * channels)
    return (patches @ kernel.reshape(-1, features)).reshape(len(x), height, width, features)


def convolve_by_rows(x: jax.Array, kernel: jax.Array, around: Sides) -> jax.Array:
    """Compute `convolve` with stride 1 as a product of patches that are one row high.

    The arguments are the same as in `convolve`. The product gives the contribution of every image
    row through every row of the kernel. Each output row sums the contributions of the image rows
    under the kernel. Patches and product take columns · C + rows · O floats for each pixel.
    """
    rows, columns, channels, features = kernel.shape
    batch, height, _, _ = x.shape
    (above, below), sides = around
    x = pad(x, ((0, 0), sides))
    width = max(0, x.shape[2] - columns + 1)
    out_height = max(0, height + above + below - rows + 1)
    patches = jnp.concatenate([x[:, :, v : v + width] for v in range(columns)], axis=-1)
    patches = patches.reshape(-1, columns * channels)
    by_row = kernel.transpose(1, 2, 0, 3).reshape(columns * channels, rows * features)
    product = (patches @ by_row).reshape(batch, height, width, rows * features)
    out = jnp.zeros((batch, out_height, width, features), x.dtype)
    for u in range(rows):
        contribution = product[..., u * features : (u + 1) * features]
        first = above - u  # the output row to which the first image row contributes
        out += pad(contribution, ((first, out_height - height - first), (0, 0)))
    return out


def convolve_by_tiles(x: jax.Array, kernel: jax.Array, around: Sides) -> jax.Array:
    """Compute `convolve` with stride 1 and 3 × 3 taps by Winograd's minimal filtering.

    The arguments are the same as in `convolve`. The image is cut into tiles d of 6 × 6 pixels that
    overlap by two. A tile and a kernel g give the 4 × 4 outputs Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A (Lavin &
    Gray 2016, https://arxiv.org/abs/1509.09308, eq. 8). With channels, ⊙ is a matrix product for
    each of the 36 places in a tile. If the outputs of the tiles cover the image exactly, these
    products take a quarter of the multiplications of the other forms. Cutting into tiles is a part
    of Bᵀ d B, which is one product of a matrix with all pixels of an image. Its cost limits this
    form to small images. Rounding errors are about five times larger than in the other forms.
    """
    batch, height, width, channels = x.shape
    features = kernel.shape[-1]
    tiles_y, taps, out_y = tile_matrices(height, around[0])
    tiles_x, _, out_x = tile_matrices(width, around[1])
    pixels = len(out_y) * len(out_x)
    if 0 in (pixels, x.size, features):  # there is nothing to sum
        return jnp.zeros((batch, len(out_y), len(out_x), features), x.dtype)
    # XLA runs the product of a batch of small matrices on one thread. The two halves of the 36
    # places do not depend on each other, so that two threads compute them at the same time.
    tiles = np.einsum("nih,mjw->nmijhw", tiles_y, tiles_x).reshape(2, -1, height * width)
    taps = np.einsum("nu,mv->nmuv", taps, taps).reshape(2, 18, 9)
    out = np.einsum("hni,wmj->nmijhw", out_y, out_x).reshape(2, tiles.shape[1], pixels)
    out = out.swapaxes(1, 2)
    x = x.transpose(1, 2, 0, 3).reshape(height * width, batch * channels)
    kernel = kernel.reshape(9, channels * features)
    y = jnp.zeros((pixels, batch * features), x.dtype)
    for half in zip(tiles, taps, out, strict=True):
        into, weights, back = (jnp.asarray(matrix, x.dtype) for matrix in half)
        d = (into @ x).reshape(18, -1, channels)  # Bᵀ d B
        g = (weights @ kernel).reshape(18, channels, features)  # G g Gᵀ
        y += back @ (d @ g).reshape(-1, batch * features)  # Aᵀ[…]A
    return y.reshape(len(out_y), len(out_x), batch, features).transpose(2, 0, 1, 3)


def tile_matrices(
    length: int, around: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the matrices of Winograd's minimal filtering F(4, 3) along one axis of an image.

    Polynomials with 4 coefficients y and 3 coefficients g are multiplied by evaluating them at the
    points 0, ±1, ½, −2 and ∞, A y and G g, and interpolating the 6 products by B. The convolution
    Aᵀ[(G g) ⊙ (Bᵀ d)] is the transpose of this map (Barabasz et al. 2020,
    https://arxiv.org/abs/1803.10986). Rounding errors depend on the points. They are a quarter
    smaller than with Lavin & Gray's 2 in place of ½.

    Args:
      length: the number of pixels.
      around: the numbers of zeros before and after the pixels; negative: cut off.

    Returns:
      Bᵀ for each tile, [6, tiles, length]; G, [6, 3]; Aᵀ for each tile, [outputs, 6, tiles].
    """
    points = np.array([0, 1, -1, 0.5, -2])

    def evaluation(terms):  # at ∞ a polynomial's value is its last coefficient
        return np.vstack([points[:, None] ** np.arange(terms), np.eye(terms)[-1]])

    outputs = max(0, length + sum(around) - 2)
    tiles = -(-outputs // 4)
    pixels = np.eye(4 * tiles + 2, length, -around[0])
    pixels = pixels[4 * np.arange(tiles)[:, None] + np.arange(6)]  # [tiles, 6, length]
    into = np.einsum("kn,ikp->nip", np.linalg.inv(evaluation(6)), pixels)
    back = np.einsum("nk,ij->iknj", evaluation(4), np.eye(tiles))
    return into, evaluation(3), back.reshape(4 * tiles, 6, tiles)[:outputs]


def pad(x: jax.Array, around: Sides) -> jax.Array:
    """Return images [B, H, W, C] with rows and columns of zeros around them, or some cut off."""
    return jax.lax.pad(
        x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*n, 0) for n in around), (0, 0, 0))
    )


class Conv(nn.Module):
    """A convolution, [B, H, W, C] ↦ [B, ⌈H / stride⌉, ⌈W / stride⌉, features].

    It has the parameters of `flax.linen.Conv`, under the same names and equally initialised.
    """

    features: int
    size: int = 3
    stride: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        rows, columns = (same_padding(n, self.size, self.stride) for n in x.shape[1:3])
        return with_bias(self, convolve(x, kernel, (rows, columns), self.stride))


class ConvTranspose(nn.Module):
    """A transposed convolution, [B, H, W, C] ↦ [B, stride · H, stride · W, features].

    It has the parameters of `flax.linen.ConvTranspose` with padding `SAME`, under the same names
    and equally initialised. Which taps of the kernel meet an input pixel depends on the place of
    the output pixel in its cell of stride × stride pixels. So one convolution computes an output
    channel for every place, and the channels are laid out as pixels (Shi et al. 2016,
    https://arxiv.org/abs/1609.05158, section 3.2). XLA's own form inserts zeros between the input
    pixels and multiplies by them.
    """

    features: int
    size: int = 3
    stride: int = 2
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        place, first, last = transposed_taps(self.size, self.stride)
        cells = jnp.einsum("nas,mbt,stco->nmcabo", place, place, kernel)
        cells = cells.reshape(len(place), len(place), x.shape[-1], -1)
        sides = (-first, last)
        out = convolve(x, cells, (sides, sides))
        size = (self.stride * x.shape[1], self.stride * x.shape[2])
        return with_bias(self, depth_to_space(out, self.stride, size))


def with_bias(layer: Conv | ConvTranspose, x: jax.Array) -> jax.Array:
    """Add the layer's parameter `bias`, if it has one, to each channel."""
    if not layer.use_bias:
        return x
    return x + layer.param("bias", nn.initializers.zeros, (x.shape[-1],))[None, None, None]


def same_padding(n: int, size: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and after a row of pixels, which give it ⌈n / stride⌉ outputs.

    Args:
      n: the number of pixels.
      size: the number of taps of the kernel.
      stride: pixels between two positions of the kernel.
    """
    total = max(0, (-(-n // stride) - 1) * stride + size - n)
    return total // 2, total - total // 2


def transposed_taps(size: int, stride: int) -> tuple[np.ndarray, int, int]:
    """Return which tap of a transposed convolution stands between an input and an output pixel.

    Returns:
      A mask [last − first + 1, stride, size]: 1 where the pixel at place a of the cell i sees the
      input pixel i + first + n through tap t; then `first` and `last`, relative to the cell.
    """
    before = size - 1 if stride > size - 1 else -(-(size + stride - 2) // 2)
    seen = [
        ((a + t - before) // stride, a, t)
        for a in range(stride)
        for t in range(size)
        if (a + t - before) % stride == 0
    ]
    first, last = min(seen)[0], max(seen)[0]
    mask = np.zeros((last - first + 1, stride, size), np.float32)
    for n, a, t in seen:
        mask[n - first, a, t] = 1
    return mask, first, last


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """Return [B, H, W, C] as patches [B, ⌈H/p⌉, ⌈W/p⌉, p² C], with zeros beyond the edges."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)))
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    return x.reshape(b, h // patch, w // patch, -1)


def depth_to_space(x: jax.Array, patch: int, size: tuple[int, ...]) -> jax.Array:
    """Return the images [B, *size, C] whose `space_to_depth` is x.

    Args:
      x: patches [B, ⌈H/p⌉, ⌈W/p⌉, p² C].
      patch: the height and width p of a patch.
      size: (H, W).
    """
    b, h, w, depth = x.shape
    x = x.reshape(b, h, w, patch, patch, depth // patch**2).swapaxes(2, 3)
    return x.reshape(b, h * patch, w * patch, -1)[:, : size[0], : size[1]]


class MLP(nn.Module):
    """Hidden layers x ↦ dropout(f(W x + b)), then a linear layer if `out` is given.

    With `batch_norm` a hidden layer is x ↦ dropout(f(norm(W x))).
    """

    hidden: tuple[int, ...] = (256,)
    """widths of the hidden layers"""
    activation: Activation = "relu"
    """nonlinearity of the hidden layers"""
    dropout: float = 0.0
    """share of units dropped after each hidden layer"""
    batch_norm: bool = False
    """normalise each hidden layer over the batch, before its nonlinearity"""
    out: Output = None
    axis_name: Axis = None

    set_by_model: ClassVar[tuple[str, ...]] = ("out", "axis_name")

    def __post_init__(self):
        check_fields(self, positive=("hidden",), fraction=("dropout",))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        h = flatten(x)
        for width in self.hidden:
            h = dense(width, use_bias=not self.batch_norm)(h)
            if self.batch_norm:
                h = batch_norm(train, self.axis_name)(h)
            h = activate(self.activation, h)
            record(self, h)
            h = nn.Dropout(self.dropout, deterministic=not train)(h)
        if self.out is None:
            return h
        return dense(math.prod(self.out))(h).reshape(-1, *self.out)


class ConvEncoder(nn.Module):
    """3 × 3 convolutions of stride 2 over images [H, W, C], then dense hidden layers."""

    channels: tuple[int, ...] = (32, 64)
    """channels of the convolutions, the first at half the height and width"""
    hidden: tuple[int, ...] = ()
    """widths of the dense layers after them"""
    activation: Activation = "relu"
    """nonlinearity of all layers"""
    batch_norm: bool = False
    """normalise each layer over the batch, before its nonlinearity"""
    out: Output = None
    axis_name: Axis = None

    set_by_model: ClassVar[tuple[str, ...]] = ("out", "axis_name")

    def __post_init__(self):
        check_fields(self, positive=("channels", "hidden"))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        check_image("ConvEncoder", x.shape[1:])
        for channels in self.channels:
            x = Conv(channels, stride=2, use_bias=not self.batch_norm)(x)
            if self.batch_norm:
                x = batch_norm(train, self.axis_name)(x)
            x = activate(self.activation, x)
            record(self, x)
        rest = MLP(self.hidden, self.activation, 0.0, self.batch_norm, self.out, self.axis_name)
        return rest(x, train=train)


class ConvDecoder(nn.Module):
    """Dense hidden layers, then 3 × 3 transposed convolutions of stride 2, to images [H, W, C]."""

    hidden: tuple[int, ...] = ()
    """widths of the dense layers"""
    channels: tuple[int, ...] = (64, 32)
    """channels that the transposed convolutions take in, the first at the lowest resolution"""
    activation: Activation = "relu"
    """nonlinearity of all layers but the last"""
    batch_norm: bool = False
    """normalise each layer but the last over the batch, before its nonlinearity"""
    out: Output = None
    axis_name: Axis = None

    set_by_model: ClassVar[tuple[str, ...]] = ("out", "axis_name")

    def __post_init__(self):
        check_fields(self, positive=("channels", "hidden"))
        require(len(self.channels) > 0, "ConvDecoder: channels is empty, take one number or more")
        super().__post_init__()

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool = False) -> jax.Array:
        height, width, colours = check_image("ConvDecoder", self.out or ())
        lowest = [-(-side // 2 ** len(self.channels)) for side in (height, width)]

        def normalised(h):
            h = batch_norm(train, self.axis_name)(h) if self.batch_norm else h
            return activate(self.activation, h)

        first = MLP(self.hidden, self.activation, 0.0, self.batch_norm, None, self.axis_name)
        bias = not self.batch_norm
        h = dense(math.prod(lowest) * self.channels[0], use_bias=bias)(first(z, train=train))
        h = normalised(h).reshape(len(z), *lowest, self.channels[0])
        for channels in self.channels[1:]:
            h = normalised(ConvTranspose(channels, use_bias=bias)(h))
        return ConvTranspose(colours)(h)[:, :height, :width]


def sigmoid_layers(
    layers: Sequence[tuple[jax.Array, jax.Array]],
) -> tuple[MLP, dict[str, Any]]:
    """Return an `MLP` of layers x ↦ σ(x W + c), and its variables.

    Args:
      layers: weights W [D, H] and biases c [H] of each layer, from below.
    """
    params = {
        f"Dense_{i}": {"kernel": weight, "bias": bias} for i, (weight, bias) in enumerate(layers)
    }
    return MLP(tuple(len(bias) for _, bias in layers), "sigmoid"), {"params": params}


class Affine(nn.Module):
    """A network of scale · x + shift, for x in other units than the network takes."""

    network: nn.Module
    """network of the scaled values"""
    scale: float = 1.0
    """factor of the values"""
    shift: float = 0.0
    """number that is added to the scaled values"""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        return self.network(self.scale * x + self.shift, train=train)


def check_image(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape of an example, [H, W, C], or raise `UserError` if it is no image."""
    require(len(shape) == 3, f"{name} takes images [H, W, C], not examples of shape {list(shape)}")
    height, width, channels = shape
    return height, width, channels


def beside(network: nn.Module, x: jax.Array, vector: jax.Array) -> jax.Array:
    """Return x with a vector beside each example, as the input of a network.

    The vector becomes channels of an image that are constant over its pixels (Reed et al. 2016,
    https://arxiv.org/abs/1605.05396, section 4.1, where it is an embedding of text). An `MLP`, and
    any network of examples that are no images [H, W, C], is given the numbers of x followed by the
    vector (Mirza & Osindero 2014, https://arxiv.org/abs/1411.1784, section 3.2).

    Args:
      network: the network that takes the input.
      x: examples, [B, *shape].
      vector: [B, K].
    """
    if x.ndim != 4 or isinstance(network, MLP):
        return jnp.concatenate([flatten(x), vector], axis=1)
    channels = jnp.broadcast_to(vector[:, None, None], (*x.shape[:3], vector.shape[1]))
    return jnp.concatenate([x, channels], axis=3)


def fitted(net: Net, **known: Any) -> Net:
    """Return a network with those fields set that the model determines, such as its output shape.

    A network of the project lists these fields in `set_by_model`. A user's module has no such list
    and is returned unchanged.

    Args:
      net: a network.
      **known: values by field: `out`, `axis_name`, `classes`; fields that are not listed are left.
    """
    names = set(getattr(type(net), "set_by_model", ()))
    values = {name: value for name, value in known.items() if name in names}
    return net.clone(**values) if values else net


def init(net: nn.Module, key: jax.Array, *inputs: Any) -> tuple[Any, Any]:
    """Return a network's first parameters, and its other collections (batch statistics).

    Args:
      net: a network.
      key: the source of the parameters.
      *inputs: examples of its inputs, whose values do not matter.
    """
    with _refusing_networks_without_train():
        variables = dict(net.init({"params": key}, *inputs))
    return variables.pop("params", {}), variables


def apply(
    net: nn.Module,
    params: Any,
    stats: Mapping[str, Any],
    *inputs: Any,
    train: bool = False,
    key: jax.Array | None = None,
) -> tuple[Any, Any]:
    """Run a network.

    Args:
      net: a network.
      params: its parameters.
      stats: its other collections; empty for a network that has none.
      *inputs: what it is called with.
      train: whether this is a training step, which drops units and updates the statistics.
      key: the source of its draws in training.

    Returns:
      The output, and the collections after the call.
    """
    variables = {"params": params, **stats}
    rngs = None if key is None else {"dropout": key}
    with _refusing_networks_without_train():
        if train and stats:
            return net.apply(variables, *inputs, train=True, rngs=rngs, mutable=list(stats))
        return net.apply(variables, *inputs, train=train, rngs=rngs), stats


@contextmanager
def _refusing_networks_without_train() -> Iterator[None]:
    """Raise `UserError` where a network, such as `nn.Sequential`, has no argument `train`."""
    try:
        yield
    except TypeError as error:
        if "unexpected keyword argument 'train'" not in str(error):
            raise
        raise UserError(
            f"{str(error).partition('(')[0]} has no argument train: write a module whose method is "
            "__call__(self, x, *, train=False)"
        ) from error


def layers(net: nn.Module, variables: Mapping[str, Any], *inputs: Any) -> list[jax.Array]:
    """Return the activations of the hidden layers of a network, [B, ...] each, from below.

    A network of the project records them. For any other module the outputs of its submodules are
    returned, in the order of their calls, and then its own output.

    Args:
      net: a network.
      variables: its parameters, `"params"`, and its other collections.
      *inputs: the arguments of the network; the first one has B rows.
    """
    _, captured = net.apply(
        variables, *inputs, capture_intermediates=True, mutable=["intermediates"]
    )

    def named(tree):
        for name, value in tree.items():
            if isinstance(value, Mapping):
                yield from named(value)
            else:
                yield from ((name, each) for each in value)

    outputs = list(named(captured["intermediates"]))
    recorded = [h for name, h in outputs if name == HIDDEN]
    rows = len(inputs[0])
    return recorded or [
        h for _, h in outputs if isinstance(h, jax.Array) and h.ndim > 1 and len(h) == rows
    ]


def wrapped(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of a module whose field `network` is a network with these variables."""
    return {name: {"network": values} for name, values in variables.items()}


def with_dropout(net: Net, rate: float) -> Net:
    """Return a network that drops this share of its hidden units, if it has a field `dropout`.

    An `Affine` network passes the rate on.
    """
    if isinstance(net, Affine):
        return net.clone(network=with_dropout(net.network, rate))
    return net.clone(dropout=rate) if hasattr(net, "dropout") else net


def check_features(net: nn.Module, output: Any, role: str = "encoder") -> None:
    """Check that a network's output is an array of features [B, F].

    Args:
      net: the network, for the message.
      output: the output of the network.
      role: the network's place in the model, for the message.

    Raises:
      UserError: the output has another shape, or is not one array.
    """
    shape = single_shape(net, output)
    if len(shape) != 2:
        raise UserError(
            f"the {role} {type(net).__name__} returns {list(shape)}, needed are features [B, F]: "
            "flatten its output"
        )


def check_output(net: nn.Module, output: Any, needed: tuple[int, ...]) -> None:
    """Check that a network's output [B, ...] has as many numbers for each example as needed.

    Args:
      net: the network, for the message.
      output: what it returned.
      needed: the shape of one example's output.

    Raises:
      UserError: it has another number, or is not one array.
    """
    shape = single_shape(net, output)
    if math.prod(shape[1:]) != math.prod(needed):
        raise UserError(
            f"{type(net).__name__} returns {list(shape)}, needed is [B, "
            f"{', '.join(map(str, needed)) or '1'}]: change its last layer"
        )


def single_shape(net: nn.Module, output: Any) -> tuple[int, ...]:
    """Return the shape of a network's output, or raise `UserError` if it is not one array."""
    if not isinstance(output, jax.Array | np.ndarray):
        raise UserError(
            f"{type(net).__name__} returns a {type(output).__name__}, needed is one array"
        )
    return output.shape
