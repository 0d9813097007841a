"""Autoencoders: a code and the reconstruction from it, no density.

Hinton & Salakhutdinov (2006), "Reducing the dimensionality of data with neural networks".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen import estimate
from gen.core import Batch, Data, Density, Metrics, Shape, descend, require
from gen.estimate import Estimate
from gen.nets import MLP, Activation, activate, apply, flatten


class State(NamedTuple):
    """Everything that training changes."""

    params: Any  # {"encoder": ..., "decoder": ...}: kernels [in, out], biases [out]
    opt_state: Any  # RMSProp's running mean of squared gradients, shaped like params


@dataclass(frozen=True)
class Autoencoder:
    """Deterministic autoencoder: minimise the mean over pixels and examples of (x − g(f(x)))².

    The code is z = f(x), activated like the hidden layers; the reconstruction is g(z).

    Deviations from Hinton & Salakhutdinov (2006): no layerwise pretraining with RBMs, so Glorot
    initialisation and RMSProp take its place; ReLU, not logistic, units; a wide ReLU code (128),
    not a narrow linear one (30); squared error, not cross-entropy. From the textbook chapter: none
    known. RMSProp is taken as g / (√v + ε) with v from 0; optax's default, g / √(v + 1e-8), all but
    stops at gradients as small as these. A ReLU output unit that is negative on all data gets no
    gradient, so that some pixels stay black for ever.
    """

    family: ClassVar[str] = "autoencoder"
    density: ClassVar[Density] = "none"

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    hidden: tuple[int, ...] = (256,)
    """widths of the encoder's hidden layers; the decoder mirrors them"""
    latent: int = 128
    """width of the code"""
    activation: Activation = "relu"
    """nonlinearity of the hidden layers and of the code"""
    output: Activation = "relu"
    """nonlinearity of the reconstruction"""
    learning_rate: float = 1e-3
    """step size of RMSProp"""
    decay: float = 0.9
    """RMSProp's decay of the running mean of squared gradients"""
    eps: float = 1e-7
    """added to the root of that mean (gradients of a mean over pixels are about 1e-5)"""

    def __post_init__(self):
        widths = (*self.hidden, self.latent)
        require(min(widths) > 0, f"Autoencoder: widths {widths} must be positive")
        require(0 <= self.decay < 1, f"Autoencoder: decay is {self.decay}, must be in [0, 1)")
        require(
            self.learning_rate > 0,
            f"Autoencoder: learning_rate is {self.learning_rate}, must be > 0",
        )

    def init(self, key: jax.Array) -> State:
        encoder_key, decoder_key = jax.random.split(key)
        x, z = jnp.zeros((1, math.prod(self.shape))), jnp.zeros((1, self.latent))
        params = {
            "encoder": self._encoder.init(encoder_key, x),
            "decoder": self._decoder.init(decoder_key, z),
        }
        return State(params, self._optimizer.init(params))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """One RMSProp step on the mean squared error. Deterministic: `key` is not used."""

        def loss(params):
            mse = self._squared_error(params, batch["x"]).mean()
            return mse, {"loss": mse}

        params, opt_state, metrics = descend(
            loss, self._optimizer, state.params, state.opt_state, axis_name
        )
        return State(params, opt_state), metrics

    def parameters(self, state: State) -> Any:
        """Of the encoder and the decoder."""
        return state.params

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """`mse`: the mean over examples of the squared error per pixel (pixels in [0, 1])."""
        errors = estimate.per_example(lambda batch, _: self.score(state, batch), data, key)
        return {"mse": estimate.mean(errors, "exact")}

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """The code f(x), [B, latent]."""
        return self._encode(state.params, batch["x"])

    def decode(self, state: State, z: jax.Array) -> jax.Array:
        """The reconstruction g(z), [B, *shape]."""
        return self._decode(state.params, z)

    def reconstruct(self, state: State, batch: Batch) -> jax.Array:
        """g(f(x)), [B, *shape]."""
        return self.decode(state, self.encode(state, batch))

    def score(self, state: State, batch: Batch) -> jax.Array:
        """The reconstruction error of each example, mean over its pixels, [B]."""
        return self._squared_error(state.params, batch["x"])

    @property
    def _encoder(self) -> MLP:
        return MLP(self.hidden, self.latent, self.activation)

    @property
    def _decoder(self) -> MLP:
        return MLP(self.hidden[::-1], math.prod(self.shape), self.activation)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.rmsprop(self.learning_rate, self.decay, self.eps, eps_in_sqrt=False)

    def _encode(self, params: Any, x: jax.Array) -> jax.Array:
        return activate(self.activation, apply(self._encoder, params["encoder"], flatten(x)))

    def _decode(self, params: Any, z: jax.Array) -> jax.Array:
        x = apply(self._decoder, params["decoder"], z)
        return jnp.reshape(activate(self.output, x), (-1, *self.shape))

    def _squared_error(self, params: Any, x: jax.Array) -> jax.Array:
        """(x − g(f(x)))², mean over pixels, [B]."""
        return jnp.mean(flatten(x - self._decode(params, self._encode(params, x))) ** 2, axis=1)
