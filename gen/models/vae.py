"""Variational autoencoders.

Kingma & Welling (2014), "Auto-encoding variational Bayes"; Rezende, Mohamed & Wierstra (2014).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from gen import estimate
from gen.core import Batch, Data, Density, Metrics, Shape, descend, replica_key, require
from gen.estimate import Estimate
from gen.nets import MLP, Activation, Hidden, apply, dense, flatten


class State(NamedTuple):
    """Everything that training changes."""

    params: Any  # {"encoder": ..., "decoder": ...}: kernels [in, out], biases [out]
    opt_state: Any  # Adam's two moments, each shaped like params, and its step count


class Terms(NamedTuple):
    """The bound's two terms for each example, in nats; −ELBO = reconstruction + kl."""

    reconstruction: jax.Array  # [B], −log p(x|z) at one z ~ q(z|x)
    kl: jax.Array  # [B], KL(q(z|x) ‖ p(z))


class Encoder(nn.Module):
    """x [B, D] ↦ mean and log-variance of q(z|x), each [B, latent]."""

    widths: tuple[int, ...]
    latent: int
    activation: Activation

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = Hidden(self.widths, self.activation)(x)
        return dense(self.latent, "mean")(h), dense(self.latent, "logvar")(h)


def gaussian_kl(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, diag exp(logvar)) ‖ N(0, I)) = ½ Σ (mean² + exp(logvar) − 1 − logvar), [B] nats.

    Kingma & Welling (2014), appendix B.
    """
    chex.assert_equal_shape((mean, logvar))
    return 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar, axis=-1)


def bernoulli_nll(logits: jax.Array, x: jax.Array) -> jax.Array:
    """−log p(x) of independent Bernoullis, summed over the last axis, [B] nats; stable in logits.

    −x log σ(l) − (1 − x) log σ(−l): for x strictly between 0 and 1 it is a cross-entropy and no
    likelihood.
    """
    chex.assert_equal_shape((logits, x))
    return optax.sigmoid_binary_cross_entropy(logits, x).sum(axis=-1)


def gaussian_nll(mean: jax.Array, x: jax.Array, variance: float) -> jax.Array:
    """−log N(x; mean, variance · I), summed over the last axis, [B] nats (of a density)."""
    chex.assert_equal_shape((mean, x))
    return 0.5 * jnp.sum((x - mean) ** 2 / variance + math.log(2 * math.pi * variance), axis=-1)


@dataclass(frozen=True)
class VAE:
    """p(z) = N(0, I), p(x|z) and q(z|x) by neural networks; maximises, by Adam, the mean over x of

        ELBO(x) = E_{q(z|x)}[log p(x|z)] − KL(q(z|x) ‖ p(z)) ≤ log p(x),

    with z = mean + exp(logvar / 2) · ε, one ε ~ N(0, I) per example and step, and the KL in closed
    form (Kingma & Welling 2014, eq. 10).

    With Bernoulli pixels this is a bound only where x is binary. Grey pixels are accepted, and then
    `evaluate` calls its figure `bce_elbo`, not `nll`. With Gaussian pixels of the stated variance
    the bound is on a density.

    Deviations from the textbook chapter: the decoder is fed z, not x; the second head is the
    log-variance, and is used as one; logits and a stable cross-entropy take the place of
    log(p + 1e-8)-like guards; the registry binarises the pixels dynamically. From Kingma & Welling
    (2014): ELU layers, more of them, in place of one tanh layer; Adam in place of Adagrad; Glorot
    initialisation in place of N(0, 0.01²); no weight decay.
    """

    family: ClassVar[str] = "VAE"
    density: ClassVar[Density] = "approximate"

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    encoder: tuple[int, ...] = (256, 128)
    """widths of the encoder's hidden layers"""
    latent: int = 10
    """dimension of z"""
    decoder: tuple[int, ...] = (256, 384, 512)
    """widths of the decoder's hidden layers"""
    activation: Activation = "elu"
    """nonlinearity of the hidden layers"""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """p(x|z): independent pixels of this law"""
    variance: float = 0.01
    """variance of a pixel under the gaussian likelihood"""
    learning_rate: float = 1e-4
    """step size of Adam"""

    def __post_init__(self):
        widths = (*self.encoder, self.latent, *self.decoder)
        require(min(widths) > 0, f"VAE: widths {widths} must be positive")
        require(self.variance > 0, f"VAE: variance is {self.variance}, must be positive")
        require(self.learning_rate > 0, f"VAE: learning_rate is {self.learning_rate}, must be > 0")

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
        """One Adam step on −ELBO; logs it as `loss`, and its terms `reconstruction` and `kl`."""
        key = replica_key(key, axis_name)

        def loss(params):
            terms = Terms(*(term.mean() for term in self._terms(params, batch["x"], key)))
            negative_elbo = terms.reconstruction + terms.kl
            return negative_elbo, {"loss": negative_elbo, **terms._asdict()}

        params, opt_state, metrics = descend(
            loss, self._optimizer, state.params, state.opt_state, axis_name
        )
        return State(params, opt_state), metrics

    def parameters(self, state: State) -> Any:
        """Of the encoder and the decoder."""
        return state.params

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """−ELBO with one z per example, as `nll` (an upper bound), `reconstruction` and `kl`.

        If the pixels are modelled as Bernoulli and any of `data` is neither 0 nor 1, there is no
        likelihood to bound: the same figure is then called `bce_elbo`.
        """
        terms: Terms = estimate.per_example(
            lambda batch, row_key: self.terms(state, batch, row_key), data, key
        )
        x = np.asarray(data["x"])
        settings: dict[str, Any] = {"likelihood": self.likelihood, "z_per_example": 1}
        if self.likelihood == "gaussian":
            settings |= {"variance": self.variance, "density": True, "dequantized": False}
        if self.likelihood == "bernoulli" and np.any((x != 0) & (x != 1)):
            name, kind = "bce_elbo", "no likelihood"
        else:
            name, kind = "nll", "upper bound"
        return {
            name: estimate.mean(terms.reconstruction + terms.kl, kind, **settings),
            "reconstruction": estimate.mean(terms.reconstruction, "Monte Carlo", **settings),
            "kl": estimate.mean(terms.kl, "exact"),
        }

    def terms(self, state: State, batch: Batch, key: jax.Array) -> Terms:
        """The terms of −ELBO for each example, each [B], at one z drawn with `key`."""
        return self._terms(state.params, batch["x"], key)

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """z ~ N(0, I), then the mean of p(x|z), not a draw from it: [n, *shape]."""
        return self.decode(state, jax.random.normal(key, (n, self.latent)))

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """The mean of q(z|x), [B, latent]."""
        return self._posterior(state.params, batch["x"])[0]

    def decode(self, state: State, z: jax.Array) -> jax.Array:
        """The mean of p(x|z), [B, *shape]."""
        x = apply(self._decoder, state.params["decoder"], z)
        if self.likelihood == "bernoulli":
            x = nn.sigmoid(x)
        return jnp.reshape(x, (-1, *self.shape))

    def reconstruct(self, state: State, batch: Batch) -> jax.Array:
        """The mean of p(x|z) at the mean of q(z|x), [B, *shape]."""
        return self.decode(state, self.encode(state, batch))

    @property
    def _encoder(self) -> Encoder:
        return Encoder(self.encoder, self.latent, self.activation)

    @property
    def _decoder(self) -> MLP:
        return MLP(self.decoder, math.prod(self.shape), self.activation)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def _posterior(self, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return apply(self._encoder, params["encoder"], flatten(x))

    def _terms(self, params: Any, x: jax.Array, key: jax.Array) -> Terms:
        mean, logvar = self._posterior(params, x)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        out = apply(self._decoder, params["decoder"], z)
        if self.likelihood == "bernoulli":
            reconstruction = bernoulli_nll(out, flatten(x))
        else:
            reconstruction = gaussian_nll(out, flatten(x), self.variance)
        return Terms(reconstruction, gaussian_kl(mean, logvar))
