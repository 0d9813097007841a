"""Variational autoencoders, also importance-weighted.

Kingma & Welling (2014), "Auto-encoding variational Bayes"; Rezende, Mohamed & Wierstra (2014);
Burda, Grosse & Salakhutdinov (2016), "Importance weighted autoencoders".
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
from gen.core import Batch, Data, Density, Metrics, Shape, adam, descend, replica_key, require
from gen.estimate import Estimate
from gen.nets import MLP, Activation, Hidden, activate, apply, dense, flatten


class State(NamedTuple):
    """Everything that training changes."""

    params: Any  # {"encoder": ..., "decoder": ...}: kernels [in, out], biases [out]
    opt_state: Any  # Adam's two moments, each shaped like params, and its step count


class Terms(NamedTuple):
    """The bound's two terms for each example, in nats; −ELBO = reconstruction + kl."""

    reconstruction: jax.Array  # [B], −log p(x|z) at one z ~ q(z|x)
    kl: jax.Array  # [B], KL(q(z|x) ‖ p(z))


class Encoder(nn.Module):
    """x [B, *shape] ↦ mean and log-variance of q(z|x), each [B, latent]: convolutions of stride 2,
    if there are any, then dense layers."""

    channels: tuple[int, ...]
    widths: tuple[int, ...]
    latent: int
    activation: Activation

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        for channels in self.channels:
            x = activate(self.activation, nn.Conv(channels, (3, 3), strides=2)(x))
        h = Hidden(self.widths, self.activation)(flatten(x))
        return dense(self.latent, "mean")(h), dense(self.latent, "logvar")(h)


class ConvDecoder(nn.Module):
    """z [B, latent] ↦ logits or means of the pixels, [B, D]: dense layers, then as many transposed
    convolutions of stride 2 as the encoder has convolutions."""

    shape: tuple[int, ...]
    widths: tuple[int, ...]
    channels: tuple[int, ...]
    activation: Activation

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        height, width, colours = self.shape
        shrunk = [-(-side // 2 ** len(self.channels)) for side in (height, width)]
        h = Hidden(self.widths, self.activation)(z)
        h = activate(self.activation, dense(math.prod(shrunk) * self.channels[-1])(h))
        h = h.reshape(len(z), *shrunk, self.channels[-1])
        for channels in self.channels[-2::-1]:
            h = activate(self.activation, nn.ConvTranspose(channels, (3, 3), (2, 2))(h))
        h = nn.ConvTranspose(colours, (3, 3), (2, 2))(h)
        return flatten(h[:, :height, :width])


def gaussian_kl(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, diag exp(logvar)) ‖ N(0, I)) = ½ Σ (mean² + exp(logvar) − 1 − logvar), [B] nats.

    Kingma & Welling (2014), appendix B.
    """
    chex.assert_equal_shape((mean, logvar))
    return 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar, axis=-1)


def bernoulli_nll(logits: jax.Array, x: jax.Array) -> jax.Array:
    """−log p(x) of independent Bernoullis, summed over the last axis, [B] nats; stable in logits.

    −x log σ(l) − (1 − x) log σ(−l) = log(1 + exp l) − x l: for x strictly between 0 and 1 it is a
    cross-entropy and no likelihood.
    """
    chex.assert_equal_shape((logits, x))
    return jnp.sum(jax.nn.softplus(logits) - x * logits, axis=-1)


def gaussian_log_prob(z: jax.Array, mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """log N(z; mean, diag exp(logvar)), summed over the last axis, nats."""
    return -0.5 * jnp.sum(
        (z - mean) ** 2 * jnp.exp(-logvar) + logvar + math.log(2 * math.pi), axis=-1
    )


def gaussian_nll(mean: jax.Array, x: jax.Array, variance: float) -> jax.Array:
    """−log N(x; mean, variance · I), summed over the last axis, [B] nats (of a density)."""
    chex.assert_equal_shape((mean, x))
    return 0.5 * jnp.sum((x - mean) ** 2 / variance + math.log(2 * math.pi * variance), axis=-1)


@dataclass(frozen=True)
class VAE:
    """p(z) = N(0, I), p(x|z) and q(z|x) by neural networks; maximises, by Adam, the mean over x of

        ELBO(x) = E_{q(z|x)}[log p(x|z)] − KL(q(z|x) ‖ p(z)) ≤ log p(x),

    with z = mean + exp(logvar / 2) · ε, one ε ~ N(0, I) per example and step, and the KL in closed
    form (Kingma & Welling 2014, eq. 10). With `samples` k > 1 it maximises the tighter bound

        E_{z_1 … z_k ~ q(z|x)}[log 1/k Σ_i w_i],    w_i = p(x, z_i) / q(z_i|x)

    (Burda et al. 2016, eq. 8). `beta` weighs the KL (Higgins et al. 2017).

    With Bernoulli pixels this is a bound only where x is binary. Grey pixels are accepted, and then
    `evaluate` calls its figure `bce_elbo`, not `nll`. With Gaussian pixels of the stated variance
    the bound is on a density.

    Deviations from the textbook chapter: the decoder is fed z, not x; the second head is the
    log-variance, and is used as one; logits and a stable cross-entropy take the place of
    log(p + 1e-8)-like guards; the registry binarises the pixels dynamically. From Kingma & Welling
    (2014): ELU layers, more of them, in place of one tanh layer; Adam in place of Adagrad; Glorot
    initialisation in place of N(0, 0.01²) (convolutions keep Flax's, LeCun's); no weight decay.
    From Burda et al. (2016): Adam's ε is 1e-8, not 1e-4; a cosine in place of their steps of the
    learning rate; their 3,280 epochs are a matter of `steps`.
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
    channels: tuple[int, ...] = ()
    """channels of stride-2 convolutions below the encoder's layers and, mirrored, the decoder's"""
    samples: int = 1
    """z drawn for each example in a step; more than 1: the importance-weighted bound"""
    bound_samples: int = 1
    """z drawn for each example to evaluate by; more than 1: the importance-weighted bound"""
    beta: float = 1.0
    """weight of the KL in training (with one sample)"""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """p(x|z): independent pixels of this law"""
    variance: float = 0.01
    """variance of a pixel under the gaussian likelihood"""
    learning_rate: float = 1e-4
    """step size of Adam"""
    decay_steps: int = 0
    """let the step size fall to 0 over so many steps, along a cosine (0: constant)"""

    def __post_init__(self):
        widths = (*self.encoder, self.latent, *self.decoder, *self.channels)
        require(min(widths) > 0, f"VAE: widths {widths} must be positive")
        require(self.variance > 0, f"VAE: variance is {self.variance}, must be positive")
        require(
            min(self.samples, self.bound_samples) > 0,
            f"VAE: samples {self.samples}, bound_samples {self.bound_samples}: must be positive",
        )
        require(
            self.beta == 1 or self.samples == 1,
            f"VAE: beta is {self.beta}, which has no meaning with samples {self.samples} > 1",
        )
        require(
            not self.channels or len(self.shape) == 3,
            f"VAE: convolutions need images [H, W, C], not examples of shape {list(self.shape)}",
        )

    def init(self, key: jax.Array) -> State:
        encoder_key, decoder_key = jax.random.split(key)
        x, z = jnp.zeros((1, *self.shape)), jnp.zeros((1, self.latent))
        params = {
            "encoder": self._encoder.init(encoder_key, x),
            "decoder": self._decoder.init(decoder_key, z),
        }
        return State(params, self._optimizer.init(params))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """One Adam step on −ELBO, logged as `loss`, and its terms `reconstruction` and `kl`; or on
        the negative importance-weighted bound, logged as `loss`, and the weights' `ess`."""
        key = replica_key(key, axis_name)

        def loss(params):
            if self.samples > 1:
                bound = self._bound(params, batch["x"], key, self.samples)
                value = -bound.log_mean.mean()
                return value, {"loss": value, "ess": bound.ess.mean()}
            terms = Terms(*(term.mean() for term in self._terms(params, batch["x"], key)))
            value = terms.reconstruction + self.beta * terms.kl
            return value, {"loss": value, **terms._asdict()}

        params, opt_state, metrics = descend(
            loss, self._optimizer, state.params, state.opt_state, axis_name
        )
        return State(params, opt_state), metrics

    def parameters(self, state: State) -> Any:
        """Of the encoder and the decoder."""
        return state.params

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """What a step lowers, [B] nats."""
        if self.samples > 1:
            return -self._bound(state.params, batch["x"], key, self.samples).log_mean
        terms = self._terms(state.params, batch["x"], key)
        return terms.reconstruction + self.beta * terms.kl

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """The negative bound as `nll` (an upper bound), and −ELBO's terms at one z per example,
        `reconstruction` and `kl`.

        The bound is the ELBO, or with more than one of `bound_samples` the importance-weighted one;
        then −ELBO is there too as `negative_elbo`, and the weights' effective sample size as `ess`.

        If the pixels are modelled as Bernoulli and any of `data` is neither 0 nor 1, there is no
        likelihood to bound: `bce_elbo` or `bce_bound` is then the name of what was `nll`.
        """
        k = self.bound_samples

        def of_one(batch, row_key):
            terms = self.terms(state, batch, row_key)
            return terms, self.bound(state, batch, row_key, k) if k > 1 else None

        terms, bound = estimate.per_example(of_one, data, key)
        x = np.asarray(data["x"])
        settings: dict[str, Any] = {"likelihood": self.likelihood}
        if self.likelihood == "gaussian":
            settings |= {"variance": self.variance, "density": True, "dequantized": False}
        no_likelihood = self.likelihood == "bernoulli" and np.any((x != 0) & (x != 1))
        kind: estimate.Kind = "no likelihood" if no_likelihood else "upper bound"
        one = settings | {"z_per_example": 1}
        negative_elbo = estimate.mean(terms.reconstruction + terms.kl, kind, **one)
        parts = {
            "reconstruction": estimate.mean(terms.reconstruction, "Monte Carlo", **one),
            "kl": estimate.mean(terms.kl, "exact"),
        }
        if k == 1:
            return {"bce_elbo" if no_likelihood else "nll": negative_elbo, **parts}
        many = settings | {"z_per_example": k}
        return {
            "bce_bound" if no_likelihood else "nll": estimate.mean(-bound.log_mean, kind, **many),
            "negative_elbo": negative_elbo,
            **parts,
            "ess": estimate.mean(bound.ess, "Monte Carlo", **many),
        }

    def bound(
        self, state: State, batch: Batch, key: jax.Array, samples: int
    ) -> estimate.ImportanceBound:
        """log 1/k Σ_i p(x, z_i) / q(z_i|x) with k = `samples` draws, [B] nats, in a memory that
        does not grow with k; and the weights' effective sample size, [B]."""
        return self._bound(state.params, batch["x"], key, samples)

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
        return Encoder(self.channels, self.encoder, self.latent, self.activation)

    @property
    def _decoder(self) -> MLP | ConvDecoder:
        if self.channels:
            return ConvDecoder(self.shape, self.decoder, self.channels, self.activation)
        return MLP(self.decoder, math.prod(self.shape), self.activation)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, self.decay_steps)

    def _posterior(self, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return apply(self._encoder, params["encoder"], x)

    def _terms(self, params: Any, x: jax.Array, key: jax.Array) -> Terms:
        mean, logvar = self._posterior(params, x)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        return Terms(self._reconstruction(params, x, z), gaussian_kl(mean, logvar))

    def _reconstruction(self, params: Any, x: jax.Array, z: jax.Array) -> jax.Array:
        """−log p(x|z), [B]."""
        out = apply(self._decoder, params["decoder"], z)
        if self.likelihood == "bernoulli":
            return bernoulli_nll(out, flatten(x))
        return gaussian_nll(out, flatten(x), self.variance)

    def _bound(
        self, params: Any, x: jax.Array, key: jax.Array, samples: int
    ) -> estimate.ImportanceBound:
        mean, logvar = self._posterior(params, x)

        def log_weight(key, n):
            """log p(x|z) + log p(z) − log q(z|x) at n draws z ~ q(z|x), [n, B]."""
            noise = jax.random.normal(key, (n, *mean.shape))
            z = mean[None] + jnp.exp(0.5 * logvar)[None] * noise
            repeated = jnp.broadcast_to(x[None], (n, *x.shape)).reshape(-1, *x.shape[1:])
            nll = self._reconstruction(params, repeated, z.reshape(-1, self.latent))
            prior = gaussian_log_prob(z, jnp.zeros(()), jnp.zeros(()))
            return prior - nll.reshape(n, -1) - gaussian_log_prob(z, mean[None], logvar[None])

        return estimate.importance_bound(log_weight, key, samples)
