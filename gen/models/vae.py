"""Variational autoencoders, also importance-weighted.

Kingma & Welling 2014, "Auto-encoding variational Bayes", https://arxiv.org/abs/1312.6114;
Rezende, Mohamed & Wierstra 2014, https://arxiv.org/abs/1401.4082;
Burda, Grosse & Salakhutdinov 2016, "Importance weighted autoencoders",
https://arxiv.org/abs/1509.00519.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gen import estimate, nets, optimize
from gen.bounds import ImportanceBound, importance_bound
from gen.core import Batch, Data, Density, Metrics, Shape, check_fields, replica_key, require
from gen.distributions import bernoulli_nll, gaussian_kl, gaussian_log_prob
from gen.estimate import Estimate
from gen.nets import MLP, dense, flatten
from gen.optimize import AnyOptimizer, Optimizer


class State(NamedTuple):
    """Everything that training changes."""

    params: Any  # {"encoder": ..., "decoder": ...}: kernels [in, out], biases [out]
    stats: Any  # {"encoder": ..., "decoder": ...}: batch statistics; empty without them
    opt_state: Any  # Adam's two moments, each shaped like params, and its step count


class Terms(NamedTuple):
    """The terms of the bound for each example, in nats: −ELBO = reconstruction + kl."""

    reconstruction: jax.Array  # [B], −log p(x|z) at one z ~ q(z|x)
    kl: jax.Array  # [B], KL(q(z|x) ‖ p(z))


class Posterior(nn.Module):
    """q(z|x) = N(mean, diag exp(logvar)): an encoder under two linear heads."""

    encoder: nn.Module
    latent: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        h = self.encoder(x, train=train)
        nets.check_features(self.encoder, h)
        return dense(self.latent, "mean")(h), dense(self.latent, "logvar")(h)


@dataclass(frozen=True)
class VAE:
    """p(z) = N(0, I), with p(x|z) and q(z|x) by neural networks. Adam maximises the mean over x of

        ELBO(x) = E_{q(z|x)}[log p(x|z)] − KL(q(z|x) ‖ p(z)) ≤ log p(x).

    By the reparameterization trick z = mean + exp(logvar / 2) · ε, with one ε ~ N(0, I) per example
    and step. The KL is taken in closed form (Kingma & Welling 2014, eq. 10). With `samples` k > 1
    it maximises the tighter importance-weighted bound

        E_{z_1 … z_k ~ q(z|x)}[log 1/k Σ_i w_i],    w_i = p(x, z_i) / q(z_i|x)

    (Burda et al. 2016, eq. 8). `beta` weighs the KL (Higgins et al. 2017,
    https://openreview.net/forum?id=Sy2fzU9gl).

    With Bernoulli pixels this is a bound only where x is binary. Grey pixels are accepted, and then
    `evaluate` calls its figure `bce_elbo`, not `nll`. With Gaussian pixels the bound is one on a
    density, so the data must be continuous: `Dequantized(VAE(...))` takes data with levels.

    The defaults are the textbook chapter's network, 784 → 784 → 256 → 128 with ELU and two heads of
    10, then 10 → 256 → 384 → 512 → 784: 1,552,692 parameters.

    Deviations from the chapter's listing:

    - The decoder is fed z, not x.
    - The second head is the log-variance, and is used as one.
    - Cross-entropies are computed from logits; the listing guards its logarithms by adding 1e-10.
    - Biases start at 0; the listing draws them like the weights (Glorot).
    - The rows are shuffled in every epoch, and `vae_mnist` binarises the pixels dynamically.

    Deviations from Kingma & Welling 2014:

    - Three ELU layers in place of one tanh layer; Adam in place of Adagrad; no weight decay.
    - Glorot initialisation in place of N(0, 0.01²); convolutions keep Flax's (LeCun's).

    Deviations from Burda et al. 2016:

    - Adam's ε is 1e-8, not 1e-4; a cosine schedule takes the place of their steps.
    - The number of epochs, 3,280 in the paper, is set by the run.
    """

    family: ClassVar[str] = "VAE"
    density: ClassVar[Density] = "approximate"

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    encoder: nn.Module = MLP((784, 256, 128), "elu")
    """network from x to the features under the heads of q(z|x)"""
    latent: int = 10
    """dimension of z"""
    decoder: nn.Module = MLP((256, 384, 512), "elu")
    """network from z to the logits (bernoulli) or means (gaussian) of the pixels"""
    samples: int = 1
    """draws of z per example in a step; more than 1 train the importance-weighted bound"""
    bound_samples: int = 1
    """draws of z per example in evaluation; more than 1 give the importance-weighted bound"""
    beta: float = 1.0
    """weight of the KL in training (with one sample)"""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """law of the independent pixels, p(x|z)"""
    variance: float = 0.01
    """variance of a pixel under the gaussian likelihood"""
    optimizer: AnyOptimizer = Optimizer("adam", learning_rate=1e-4)
    """optimiser of both networks"""

    def __post_init__(self):
        check_fields(
            self,
            positive=("latent", "samples", "bound_samples", "variance"),
            non_negative=("beta",),
        )
        require(
            self.beta == 1 or self.samples == 1,
            f"VAE: beta is {self.beta}, which has no meaning with samples {self.samples} > 1",
        )

    @property
    def levels(self) -> int | None:
        """Gaussian pixels are continuous; the kind of a Bernoulli estimate follows from x."""
        return 0 if self.likelihood == "gaussian" else None

    @property
    def unit_interval(self) -> bool:
        """Bernoulli pixels lie in [0, 1]."""
        return self.likelihood == "bernoulli"

    def init(self, key: jax.Array) -> State:
        encoder_key, decoder_key = jax.random.split(key)
        x, z = jnp.zeros((1, *self.shape)), jnp.zeros((1, self.latent))
        posterior, decoder = self._networks()
        encoder_params, encoder_stats = nets.init(posterior, encoder_key, x)
        decoder_params, decoder_stats = nets.init(decoder, decoder_key, z)
        out, _ = nets.apply(decoder, decoder_params, decoder_stats, z)
        nets.check_output(decoder, out, self.shape)
        params = {"encoder": encoder_params, "decoder": decoder_params}
        stats = {"encoder": encoder_stats, "decoder": decoder_stats}
        return State(params, stats, optimize.init(self.optimizer, params))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one optimiser step on −ELBO or on the negative importance-weighted bound.

        Logs it as `loss`; beside −ELBO its terms `reconstruction` and `kl`, beside the
        importance-weighted bound the weights' effective sample size `ess`.
        """
        key = replica_key(key, axis_name)

        def loss(params):
            at = state._replace(params=params)
            if self.samples > 1:
                bound, stats = self._bound(at, batch, key, self.samples, True, axis_name)
                value = -bound.log_mean.mean()
                return value, ({"loss": value, "ess": bound.ess.mean()}, stats)
            terms, stats = self._terms(at, batch, key, True, axis_name)
            reconstruction, kl = (term.mean() for term in terms)
            value = reconstruction + self.beta * kl
            return value, ({"loss": value, "reconstruction": reconstruction, "kl": kl}, stats)

        gradient, (metrics, stats) = optimize.gradient(loss, state.params, axis_name)
        params, opt_state = optimize.update(self.optimizer, gradient, state.opt_state, state.params)
        return State(params, stats, opt_state), metrics

    def parameters(self, state: State) -> Any:
        """Return the parameters of the encoder and the decoder."""
        return state.params

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the loss of each example, [B] nats."""
        if self.samples > 1:
            return -self.bound(state, batch, key, self.samples).log_mean
        terms = self.terms(state, batch, key)
        return terms.reconstruction + self.beta * terms.kl

    def score(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the negative bound of `evaluate`, with `bound_samples` draws of z, [B] nats."""
        if self.bound_samples > 1:
            return -self.bound(state, batch, key, self.bound_samples).log_mean
        terms = self.terms(state, batch, key)
        return terms.reconstruction + terms.kl

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return the negative bound as `nll`, and the terms of −ELBO, `reconstruction` and `kl`.

        The bound is the ELBO with one z per example. With more than one of `bound_samples` it is
        the importance-weighted bound; then −ELBO is there too, as `negative_elbo`, and the weights'
        effective sample size, as `ess`.

        If the pixels are Bernoulli and any value of x is neither 0 nor 1, there is no likelihood to
        bound: `nll` is then called `bce_elbo` or `bce_bound`.
        """
        k = self.bound_samples

        def one(batch, row_key):
            if k == 1:
                return self.terms(state, batch, row_key), None
            terms_key, bound_key = jax.random.split(row_key)
            bound = self.bound(state, batch, bound_key, k)
            return self.terms(state, batch, terms_key), bound

        terms, bound = estimate.per_example(one, data, key)
        x = np.asarray(data["x"])
        settings: dict[str, Any] = {"likelihood": self.likelihood}
        if self.likelihood == "gaussian":
            settings |= {"variance": self.variance, "density": True}
        no_likelihood = self.likelihood == "bernoulli" and np.any((x != 0) & (x != 1))
        kind: estimate.Kind = "no likelihood" if no_likelihood else "upper bound"
        one_z, k_z = settings | {"z_per_example": 1}, settings | {"z_per_example": k}
        negative_elbo = estimate.mean(terms.reconstruction + terms.kl, kind, **one_z)
        parts = {
            "reconstruction": estimate.mean(terms.reconstruction, "Monte Carlo", **one_z),
            "kl": estimate.mean(terms.kl, "exact"),
        }
        if k == 1:
            return {"bce_elbo" if no_likelihood else "nll": negative_elbo, **parts}
        return {
            "bce_bound" if no_likelihood else "nll": estimate.mean(-bound.log_mean, kind, **k_z),
            "negative_elbo": negative_elbo,
            **parts,
            "ess": estimate.mean(bound.ess, "Monte Carlo", **k_z),
        }

    def terms(self, state: State, batch: Batch, key: jax.Array) -> Terms:
        """Return the terms of −ELBO at one z per example, each [B] nats.

        Args:
          state: a state of the model.
          batch: examples.
          key: the source of the draws of z.
        """
        return self._terms(state, batch, key)[0]

    def bound(self, state: State, batch: Batch, key: jax.Array, samples: int) -> ImportanceBound:
        """Return log 1/k Σ_i p(x, z_i) / q(z_i|x) for each example, in nats.

        Args:
          state: a state of the model.
          batch: examples.
          key: the source of the draws of z.
          samples: their number k; memory does not grow with it.
        """
        return self._bound(state, batch, key, samples)[0]

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Draw z ~ N(0, I) and return the mean of p(x|z), not a draw from it: [n, *shape]."""
        return self.decode(state, jax.random.normal(key, (n, self.latent)))

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return the mean of q(z|x), [B, latent]."""
        (mean, _), _ = self._encode(state, batch["x"])
        return mean

    def decode(self, state: State, z: jax.Array) -> jax.Array:
        """Return the mean of p(x|z), [B, *shape]."""
        x, _ = self._decode(state, z)
        x = nn.sigmoid(x) if self.likelihood == "bernoulli" else x
        return jnp.reshape(x, (-1, *self.shape))

    def reconstruct(self, state: State, batch: Batch) -> jax.Array:
        """Return the mean of p(x|z) at the mean of q(z|x), [B, *shape]."""
        return self.decode(state, self.encode(state, batch))

    def _networks(self, axis_name: str | None = None) -> tuple[Posterior, nn.Module]:
        """Return the networks of q(z|x) and of p(x|z)."""
        encoder = nets.fitted(self.encoder, axis_name=axis_name)
        decoder = nets.fitted(self.decoder, out=self.shape, axis_name=axis_name)
        return Posterior(encoder, self.latent), decoder

    def _encode(
        self,
        state: State,
        x: jax.Array,
        key: jax.Array | None = None,
        train: bool = False,
        axis_name: str | None = None,
    ) -> tuple[tuple[jax.Array, jax.Array], Any]:
        """Return (mean, logvar) of q(z|x), each [B, latent], and the encoder's statistics."""
        posterior, _ = self._networks(axis_name)
        params, stats = state.params["encoder"], state.stats["encoder"]
        return nets.apply(posterior, params, stats, x, train=train, key=key)

    def _decode(
        self,
        state: State,
        z: jax.Array,
        key: jax.Array | None = None,
        train: bool = False,
        axis_name: str | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return the decoder's output, logits or means of the pixels, and its statistics."""
        _, decoder = self._networks(axis_name)
        params, stats = state.params["decoder"], state.stats["decoder"]
        return nets.apply(decoder, params, stats, z, train=train, key=key)

    def _terms(
        self,
        state: State,
        batch: Batch,
        key: jax.Array,
        train: bool = False,
        axis_name: str | None = None,
    ) -> tuple[Terms, Any]:
        """Return the terms of −ELBO, and the networks' statistics."""
        z_key, encoder_key, decoder_key = jax.random.split(key, 3)
        x = batch["x"]
        # 1. q(z|x) = N(mean, diag exp(logvar)).
        (mean, logvar), encoder_stats = self._encode(state, x, encoder_key, train, axis_name)
        # 2. The reparameterization trick.
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(z_key, mean.shape)
        # 3. −log p(x|z), and the KL in closed form.
        out, decoder_stats = self._decode(state, z, decoder_key, train, axis_name)
        terms = Terms(-self._log_likelihood(out, x), gaussian_kl(mean, logvar))
        return terms, {"encoder": encoder_stats, "decoder": decoder_stats}

    def _bound(
        self,
        state: State,
        batch: Batch,
        key: jax.Array,
        samples: int,
        train: bool = False,
        axis_name: str | None = None,
    ) -> tuple[ImportanceBound, Any]:
        """Return the importance-weighted bound, and the networks' statistics.

        The weights are computed in blocks of draws, which do not update the decoder's batch
        statistics. One more draw of z for each example does.
        """
        z_key, encoder_key, stats_key = jax.random.split(key, 3)
        x = batch["x"]
        (mean, logvar), encoder_stats = self._encode(state, x, encoder_key, train, axis_name)

        def draw(key, n):
            """Return n draws z ~ q(z|x), [n, B, latent]."""
            noise = jax.random.normal(key, (n, *mean.shape))
            return mean[None] + jnp.exp(0.5 * logvar)[None] * noise

        def log_weight(key, n):
            """Return log p(x|z) + log p(z) − log q(z|x) at n draws z ~ q(z|x), [n, B]."""
            noise_key, decoder_key = jax.random.split(key)
            z = draw(noise_key, n)
            repeated = jnp.broadcast_to(x[None], (n, *x.shape)).reshape(-1, *x.shape[1:])
            each = z.reshape(-1, self.latent)
            out, _ = self._decode(state, each, decoder_key, train, axis_name)
            log_p = self._log_likelihood(out, repeated).reshape(n, -1)
            prior = gaussian_log_prob(z, jnp.zeros(()), jnp.zeros(()))
            return log_p + prior - gaussian_log_prob(z, mean[None], logvar[None])

        decoder_stats = state.stats["decoder"]
        if train and decoder_stats:
            noise_key, decoder_key = jax.random.split(stats_key)
            z = draw(noise_key, 1)[0]
            _, decoder_stats = self._decode(state, z, decoder_key, train, axis_name)
        bound = importance_bound(log_weight, z_key, samples)
        return bound, {"encoder": encoder_stats, "decoder": decoder_stats}

    def _log_likelihood(self, out: jax.Array, x: jax.Array) -> jax.Array:
        """Return log p(x|z) from the decoder's output, [B] nats."""
        out, x = flatten(out), flatten(x)
        if self.likelihood == "bernoulli":
            return -bernoulli_nll(out, x)
        return gaussian_log_prob(x, out, jnp.full((), math.log(self.variance)))
