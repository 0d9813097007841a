"""Autoencoders: a code and the reconstruction from it, without a density.

Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks",
https://doi.org/10.1126/science.1127647.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen import estimate, nets, optimize
from gen.core import Batch, Data, Density, Metrics, Shape, check_fields, replica_key
from gen.estimate import Estimate
from gen.nets import MLP, Activation, activate, flatten
from gen.optimize import AnyOptimizer, Optimizer


class State(NamedTuple):
    """Everything that training changes."""

    params: Any  # {"encoder": ..., "decoder": ...}: kernels [in, out], biases [out]
    stats: Any  # {"encoder": ..., "decoder": ...}: batch statistics; empty without them
    opt_state: Any  # RMSProp's running mean of squared gradients, shaped like params


@dataclass(frozen=True)
class Autoencoder:
    """Deterministic autoencoder: minimise the mean over pixels and examples of (x − g(f(x)))².

    The encoder's features are the code z = f(x). The reconstruction is g(z), the decoder's output
    after the nonlinearity `output`. The defaults are the textbook chapter's network,
    784 → 784 → 256 → 128 and 128 → 128 → 256 → 784 with ReLU throughout: 1,100,320 parameters.

    Deviations from the chapter's listing:

    - Biases start at 0; the listing draws them like the weights (Glorot).
    - RMSProp divides by √v + ε with ε = 1e-7 and v from 0. TensorFlow 1 divides by √(v + ε) with
      ε = 1e-10 and v from 1. (optax's default, √(v + 1e-8), all but stops at the gradients of a
      mean over pixels, which are about 1e-5.)
    - The rows are shuffled in every epoch.

    Deviations from Hinton & Salakhutdinov 2006:

    - No layerwise pretraining by RBMs; Glorot initialisation and RMSProp take its place.
    - ReLU units in place of logistic ones, and a ReLU code of 128 in place of a linear one of 30.
    - Squared error in place of the cross-entropy.

    A ReLU output that is negative for all data gets no gradient, so some pixels can stay black.
    """

    family: ClassVar[str] = "autoencoder"
    density: ClassVar[Density] = "none"
    metric_units: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"loss": "squared error", "score_gap": "squared error"}
    )

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    encoder: nn.Module = MLP((784, 256, 128), "relu")
    """network f from x to the code"""
    decoder: nn.Module = MLP((128, 256), "relu")
    """network g from the code to the reconstruction"""
    output: Activation = "relu"
    """nonlinearity of the reconstruction"""
    optimizer: AnyOptimizer = Optimizer("rmsprop", eps=1e-7)
    """optimiser of both networks"""

    def __post_init__(self):
        check_fields(self)

    @property
    def unit_interval(self) -> bool:
        """A sigmoid or ReLU output, which is never negative, is for data in [0, 1]."""
        return self.output in ("sigmoid", "relu")

    def init(self, key: jax.Array) -> State:
        encoder_key, decoder_key = jax.random.split(key)
        x = jnp.zeros((1, *self.shape))
        params, stats = nets.init(self.encoder, encoder_key, x)
        z, _ = nets.apply(self.encoder, params, stats, x)
        nets.check_features(self.encoder, z)
        decoder = self._decoder(None)
        decoder_params, decoder_stats = nets.init(decoder, decoder_key, z)
        x_hat, _ = nets.apply(decoder, decoder_params, decoder_stats, z)
        nets.check_output(decoder, x_hat, self.shape)
        params = {"encoder": params, "decoder": decoder_params}
        stats = {"encoder": stats, "decoder": decoder_stats}
        return State(params, stats, optimize.init(self.optimizer, params))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one optimiser step on the mean squared error; log it as `loss`."""
        encoder_key, decoder_key = jax.random.split(replica_key(key, axis_name))
        encoder = nets.fitted(self.encoder, axis_name=axis_name)
        decoder = self._decoder(axis_name)

        def loss(params):
            z, encoder_stats = nets.apply(
                encoder,
                params["encoder"],
                state.stats["encoder"],
                batch["x"],
                train=True,
                key=encoder_key,
            )
            out, decoder_stats = nets.apply(
                decoder, params["decoder"], state.stats["decoder"], z, train=True, key=decoder_key
            )
            x_hat = activate(self.output, flatten(out))
            mse = jnp.mean((flatten(batch["x"]) - x_hat) ** 2)
            return mse, ({"loss": mse}, {"encoder": encoder_stats, "decoder": decoder_stats})

        gradient, (metrics, stats) = optimize.gradient(loss, state.params, axis_name)
        params, opt_state = optimize.update(self.optimizer, gradient, state.opt_state, state.params)
        return State(params, stats, opt_state), metrics

    def parameters(self, state: State) -> Any:
        """Return the parameters of the encoder and the decoder."""
        return state.params

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return `mse`, the mean over examples of the squared error per pixel."""
        errors = estimate.per_example(
            lambda batch, row_key: self.score(state, batch, row_key), data, key
        )
        return {"mse": estimate.mean(errors, "exact")}

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return the code f(x), [B, F]."""
        return nets.apply(
            self.encoder, state.params["encoder"], state.stats["encoder"], batch["x"]
        )[0]

    def decode(self, state: State, z: jax.Array) -> jax.Array:
        """Return the reconstruction g(z), [B, *shape]."""
        out, _ = nets.apply(self._decoder(None), state.params["decoder"], state.stats["decoder"], z)
        return activate(self.output, out).reshape(-1, *self.shape)

    def reconstruct(self, state: State, batch: Batch) -> jax.Array:
        """Return g(f(x)), [B, *shape]."""
        return self.decode(state, self.encode(state, batch))

    def score(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the squared error of each example's reconstruction, the mean over its pixels."""
        return jnp.mean(flatten(batch["x"] - self.reconstruct(state, batch)) ** 2, axis=1)

    def _decoder(self, axis_name: str | None) -> nn.Module:
        return nets.fitted(self.decoder, out=self.shape, axis_name=axis_name)
