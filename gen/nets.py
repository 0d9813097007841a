"""Flax blocks that two or more families use."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

Activation = Literal["relu", "elu", "tanh", "leaky_relu", "softplus", "sigmoid", "linear"]
"""A nonlinearity of `flax.linen`, by its name there, or none."""


def activate(name: Activation, x: jax.Array) -> jax.Array:
    """f(x) for the nonlinearity f of that name."""
    return x if name == "linear" else getattr(nn, name)(x)


def dense(width: int, name: str | None = None) -> nn.Dense:
    """x ↦ W x + b with Glorot-uniform W (Glorot & Bengio 2010, eq. 16) and b = 0."""
    return nn.Dense(width, kernel_init=nn.initializers.glorot_uniform(), name=name)


class Hidden(nn.Module):
    """A stack of layers x ↦ dropout(f(W x + b)); with no widths it is the identity."""

    widths: tuple[int, ...]
    activation: Activation
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width in self.widths:
            x = activate(self.activation, dense(width)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x


class MLP(nn.Module):
    """Hidden layers, then one linear layer of `out` units."""

    hidden: tuple[int, ...]
    out: int
    activation: Activation
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Hidden(self.hidden, self.activation, self.dropout)(x, train)
        return dense(self.out)(x)


def apply(net: nn.Module, params: Any, *inputs: Any, **options: Any) -> Any:
    """`net.apply`, typed by what these nets return: their output, never with mutated variables."""
    return net.apply(params, *inputs, **options)


def flatten(x: jax.Array) -> jax.Array:
    """[B, *shape] -> [B, D]."""
    return jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))
