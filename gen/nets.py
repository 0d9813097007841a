"""Networks of the project, and how a model runs a network.

A model takes one of these networks, or any Flax module of the same signature:

- encoder, discriminator: `__call__(x, *, train=False)` of x [B, *shape]. An encoder returns
  features [B, F], to which the model adds its heads; a discriminator returns logits [B] or [B, 1].
- decoder, generator: `__call__(z, *, train=False)` of z [B, latent], returns [B, *shape] or [B, D].
- network of a diffusion model: `__call__(x, t, label, *, train=False)`, returns [B, *shape].

Random keys come by `rngs` under the name `"dropout"`. Collections other than `"params"`, such as
batch statistics, live in the model's state and change in training steps only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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


def batch_norm(train: bool, axis_name: str | None) -> nn.BatchNorm:
    """Return batch normalisation over the whole batch, also where devices share it.

    Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167. The running statistics keep 0.9 of their
    past in each step. The layer before it needs no bias, since this subtracts the mean and adds a
    bias of its own.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=axis_name)


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
            x = nn.Conv(channels, (3, 3), strides=2, use_bias=not self.batch_norm)(x)
            if self.batch_norm:
                x = batch_norm(train, self.axis_name)(x)
            x = activate(self.activation, x)
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
            h = normalised(nn.ConvTranspose(channels, (3, 3), (2, 2), use_bias=bias)(h))
        return nn.ConvTranspose(colours, (3, 3), (2, 2))(h)[:, :height, :width]


def check_image(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the shape of an example, [H, W, C], or raise `UserError` if it is no image."""
    require(len(shape) == 3, f"{name} takes images [H, W, C], not examples of shape {list(shape)}")
    height, width, channels = shape
    return height, width, channels


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
    if train and stats:
        return net.apply(variables, *inputs, train=True, rngs=rngs, mutable=list(stats))
    return net.apply(variables, *inputs, train=train, rngs=rngs), stats


def check_features(net: nn.Module, output: Any) -> None:
    """Raise `UserError` unless the output of an encoder is an array of features [B, F]."""
    shape = single_shape(net, output)
    if len(shape) != 2:
        raise UserError(
            f"the encoder {type(net).__name__} returns {list(shape)}, needed are features [B, F]: "
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
