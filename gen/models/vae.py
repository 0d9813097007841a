"""Variational autoencoders, also importance-weighted and conditional.

Kingma & Welling 2014, "Auto-encoding variational Bayes", https://arxiv.org/abs/1312.6114;
Rezende, Mohamed & Wierstra 2014, https://arxiv.org/abs/1401.4082;
Burda, Grosse & Salakhutdinov 2016, "Importance weighted autoencoders",
https://arxiv.org/abs/1509.00519.

The varieties are fields of one model, and combine:

- conditional on the label: Kingma et al. 2014, "Semi-supervised learning with deep generative
  models", https://arxiv.org/abs/1406.5298, model M2 with all labels known;
- β-VAE: Higgins et al. 2017, https://openreview.net/forum?id=Sy2fzU9gl;
- KL warm-up: Bowman et al. 2016, https://arxiv.org/abs/1511.06349; Sønderby et al. 2016,
  https://arxiv.org/abs/1602.02282;
- free bits: Kingma et al. 2016, "Improving variational inference with inverse autoregressive
  flow", https://arxiv.org/abs/1606.04934, appendix C.8;
- VampPrior: Tomczak & Welling 2018, "VAE with a VampPrior", https://arxiv.org/abs/1705.07120;
- σ-VAE: Rybkin, Daniilidis & Levine 2021, "Simple and effective VAE training with calibrated
  decoders", https://arxiv.org/abs/2006.13202.

Completion is by pseudo-Gibbs (Rezende et al. 2014, appendix F) and Metropolis-within-Gibbs: Mattei
& Frellsen 2018, "Leveraging the exact likelihood of deep latent variable models",
https://arxiv.org/abs/1802.04826.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gen import estimate, nets, optimize
from gen.bounds import ImportanceBound, importance_bound
from gen.core import (
    Batch,
    Data,
    Density,
    Metrics,
    Shape,
    check_fields,
    label_of,
    pmean,
    replica_key,
    require,
    sample_labels,
)
from gen.distributions import (
    bernoulli_nll,
    bernoulli_sample,
    gaussian_kl,
    gaussian_log_prob,
    gaussian_mixture_log_prob,
    logit,
)
from gen.estimate import Estimate
from gen.levels import to_floats
from gen.nets import MLP, dense, flatten
from gen.optimize import AnyOptimizer, Optimizer

SCORE_SAMPLES = 100
"""Smallest number of draws of z behind the score `importance`."""


class State(NamedTuple):
    """Everything that training changes."""

    params: Any  # {"encoder": ..., "decoder": ...}: kernels [in, out], biases [out]; with a
    # VampPrior "pseudo_inputs" [K, *shape], with a learned variance "logvar" []
    stats: Any  # {"encoder": ..., "decoder": ...}: batch statistics; empty without them; with KL
    # warm-up "count" [], the steps done
    opt_state: Any  # Adam's two moments, each shaped like params, and its step count


class Terms(NamedTuple):
    """The terms of the bound for each example, in nats: −ELBO = reconstruction + kl."""

    reconstruction: jax.Array  # [B], −log p(x|z) at one z ~ q(z|x)
    kl: jax.Array  # [B], KL(q(z|x) ‖ p(z)); with a VampPrior log q(z|x) − log p(z) at that z


class Moments(NamedTuple):
    """The parameters of q(z|x) = N(mean, diag exp(logvar))."""

    mean: jax.Array  # [B, latent]
    logvar: jax.Array  # [B, latent]


class Posterior(nn.Module):
    """q(z|x) = N(mean, diag exp(logvar)): an encoder under two linear heads."""

    encoder: nn.Module
    latent: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> Moments:
        h = self.encoder(x, train=train)
        nets.check_features(self.encoder, h)
        return Moments(dense(self.latent, "mean")(h), dense(self.latent, "logvar")(h))


def free_bits_kl(q: Moments, floor: float, axis_name: str | None = None) -> jax.Array:
    """Return Σ_j max(λ, mean over the batch of KL(q(z_j|x) ‖ N(0, 1))), in nats.

    Kingma et al. 2016, appendix C.8. A latent variable whose KL is below λ is not pushed to the
    prior any more.

    Args:
      q: q(z|x) of each example.
      floor: λ, nats for each latent variable.
      axis_name: the mapped axis to average over, under `pmap`.
    """
    each = gaussian_kl(q.mean[..., None], q.logvar[..., None])  # [B, latent]
    return jnp.sum(jnp.maximum(floor, pmean(jnp.mean(each, axis=0), axis_name)))


@dataclass(frozen=True)
class VAE:
    """p(z) = N(0, I), with p(x|z) and q(z|x) by neural networks. Adam maximises the mean over x of

        ELBO(x) = E_{q(z|x)}[log p(x|z)] − KL(q(z|x) ‖ p(z)) ≤ log p(x).

    By the reparameterization trick z = mean + exp(logvar / 2) · ε, with one ε ~ N(0, I) per example
    and step. The KL is taken in closed form (Kingma & Welling 2014, eq. 10). With `samples` k > 1
    it maximises the tighter importance-weighted bound

        E_{z_1 … z_k ~ q(z|x)}[log 1/k Σ_i w_i],    w_i = p(x, z_i) / q(z_i|x)

    (Burda et al. 2016, eq. 8).

    - Conditional (`classes`): p(x|z, label) and q(z|x, label), with p(z) the same for all labels.
      The label is appended to the inputs of both networks as a one-hot vector; to an image that
      convolutions take, as one constant channel for each class. The ELBO bounds log p(x|label).
    - `beta` weighs the KL in training. With `kl_warmup_steps` N the weight rises from 0 and is
      beta · min(1, t / N) at step t.
    - `free_bits` λ: the KL in training is Σ_j max(λ, mean over the batch of KL_j).
    - VampPrior (`prior="vamp"`): p(z) = 1/K Σ_k q(z|u_k), with K learned pseudo-inputs u_k (Tomczak
      & Welling 2018). They start at training examples. The KL has no closed form: it is
      log q(z|x) − log p(z) at the same z as the likelihood.
    - σ-VAE (`learn_variance`): the variance σ² of the Gaussian pixels is a parameter. Its optimum
      is the mean squared error (Rybkin et al. 2021).

    With Bernoulli pixels this is a bound only where x is binary. Grey pixels are accepted, and then
    `evaluate` calls its figure `bce_elbo`, not `nll`. With Gaussian pixels the ELBO bounds a
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

    Deviations from Tomczak & Welling 2018:

    - Pseudo-inputs in [0, 1] are sigmoids of their parameters, where the authors' code clips.
    - The encoder takes them without dropout and with its running batch statistics.
    - Layers are not gated, and log-variances not bounded.

    Deviation from Rybkin et al. 2021:

    - log σ² is learned by gradient; they also set it to its optimum on each batch.

    Deviations from Kingma et al. 2014:

    - All labels are known, and p(label) is no part of the model.

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
    kl_warmup_steps: int = 0
    """steps over which the weight of the KL rises linearly from 0 (with one sample)"""
    free_bits: float = 0.0
    """nats of KL that each latent variable has free in training (with one sample)"""
    classes: int = 0
    """number of classes, whose labels both networks are given (0: no labels)"""
    prior: Literal["normal", "vamp"] = "normal"
    """law of z: N(0, I), or the mean of q(z|u) over learned pseudo-inputs u"""
    pseudo_inputs: int = 500
    """number of pseudo-inputs (vamp)"""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """law of the independent pixels, p(x|z)"""
    variance: float = 0.01
    """variance of a pixel under the gaussian likelihood; the first one if it is learned"""
    learn_variance: bool = False
    """learn the variance of the gaussian likelihood, one for all pixels"""
    optimizer: AnyOptimizer = Optimizer("adam", learning_rate=1e-4)
    """optimiser of both networks"""

    def __post_init__(self):
        check_fields(
            self,
            positive=("latent", "samples", "bound_samples", "variance", "pseudo_inputs"),
            non_negative=("beta", "kl_warmup_steps", "free_bits", "classes"),
        )
        for name, default in (("beta", 1), ("kl_warmup_steps", 0), ("free_bits", 0)):
            value = getattr(self, name)
            require(
                value == default or self.samples == 1,
                f"VAE: {name} is {value}, which has no meaning with samples {self.samples} > 1: "
                "the importance-weighted bound has no KL",
            )
        require(
            self.prior == "normal" or not self.free_bits,
            f"VAE: free_bits is {self.free_bits}, and the KL to a VampPrior is no sum over latent "
            "variables: set free_bits or prior, not both",
        )
        require(
            self.prior == "normal" or not self.classes,
            f"VAE: classes is {self.classes}, and pseudo-inputs have no label for the encoder: set "
            "classes or prior, not both",
        )
        require(
            self.likelihood == "gaussian" or not self.learn_variance,
            "VAE: learn_variance needs the gaussian likelihood: bernoulli pixels have no variance "
            "of their own",
        )

    @property
    def levels(self) -> int | None:
        """Gaussian pixels are continuous; the kind of a Bernoulli estimate follows from x."""
        return 0 if self.likelihood == "gaussian" else None

    @property
    def unit_interval(self) -> bool:
        """Bernoulli pixels lie in [0, 1]."""
        return self.likelihood == "bernoulli"

    @property
    def normal_codes(self) -> int:
        """z ~ N(0, I), except under a VampPrior."""
        return self.latent if self.prior == "normal" else 0

    @property
    def lacks(self) -> tuple[str, ...]:
        """Return three methods with classes, and `begin` without a VampPrior.

        A code is decoded only together with its label, which the encoder is given, too. The states
        of other priors do not begin at training examples.
        """
        conditional = ("decode", "complete", "encoder_network") if self.classes else ()
        return conditional if self.prior == "vamp" else (*conditional, "begin")

    def init(self, key: jax.Array) -> State:
        encoder_key, decoder_key = jax.random.split(key)
        x, z = jnp.zeros((1, *self.shape)), jnp.zeros((1, self.latent))
        label = jnp.zeros(1, jnp.int32)
        x, z = self._with_label(self.encoder, x, label), self._with_label(self.decoder, z, label)
        posterior, decoder = self._networks()
        encoder_params, encoder_stats = nets.init(posterior, encoder_key, x)
        decoder_params, decoder_stats = nets.init(decoder, decoder_key, z)
        out, _ = nets.apply(decoder, decoder_params, decoder_stats, z)
        nets.check_output(decoder, out, self.shape)
        params = {"encoder": encoder_params, "decoder": decoder_params}
        if self.prior == "vamp":
            noise_key = jax.random.fold_in(key, 2)  # leaves the networks' keys as they are
            params["pseudo_inputs"] = jax.random.normal(
                noise_key, (self.pseudo_inputs, *self.shape)
            )
        if self.learn_variance:
            params["logvar"] = jnp.full((), math.log(self.variance), float)
        stats = {"encoder": encoder_stats, "decoder": decoder_stats}
        if self.kl_warmup_steps:
            stats["count"] = jnp.zeros((), jnp.int32)
        return State(params, stats, optimize.init(self.optimizer, params))

    def begin(self, state: State, batch: Batch, key: jax.Array) -> State:
        """Let the pseudo-inputs of a VampPrior start at examples, in [0.05, 0.95] for pixels."""
        x = batch["x"]
        repeat = len(x) < self.pseudo_inputs
        rows = jax.random.choice(key, len(x), (self.pseudo_inputs,), replace=repeat)
        pseudo_inputs = logit(0.05 + 0.9 * x[rows]) if self.unit_interval else x[rows]
        return state._replace(params={**state.params, "pseudo_inputs": pseudo_inputs})

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
            terms, q, stats = self._terms(at, batch, key, True, axis_name)
            reconstruction, kl = (term.mean() for term in terms)
            penalty = free_bits_kl(q, self.free_bits, axis_name) if self.free_bits else kl
            value = reconstruction + self._kl_weight(state) * penalty
            return value, ({"loss": value, "reconstruction": reconstruction, "kl": kl}, stats)

        gradient, (metrics, stats) = optimize.gradient(loss, state.params, axis_name)
        params, opt_state = optimize.update(self.optimizer, gradient, state.opt_state, state.params)
        if self.kl_warmup_steps:
            stats["count"] = state.stats["count"] + 1
        return State(params, stats, opt_state), metrics

    def parameters(self, state: State) -> Any:
        """Return the parameters of both networks, the pseudo-inputs and the learned variance."""
        return state.params

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the loss of each example after the warm-up and without free bits, [B] nats."""
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

    def scores(self, state: State, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """Return −ELBO at one z as `elbo`, and the importance-weighted bound as `importance`.

        The latter takes `bound_samples` draws of z, or `SCORE_SAMPLES` if they are more.
        """
        elbo_key, bound_key = jax.random.split(key)
        terms = self.terms(state, batch, elbo_key)
        samples = max(self.bound_samples, SCORE_SAMPLES)
        bound = self.bound(state, batch, bound_key, samples)
        return {"elbo": terms.reconstruction + terms.kl, "importance": -bound.log_mean}

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return the negative bound as `nll`, and the terms of −ELBO, `reconstruction` and `kl`.

        The bound is the ELBO with one z per example. With more than one of `bound_samples` it is
        the importance-weighted bound; then −ELBO is there too, as `negative_elbo`, and the weights'
        effective sample size, as `ess`.

        If the pixels are Bernoulli and any value of x is neither 0 nor 1, there is no likelihood to
        bound: `nll` is then called `bce_elbo` or `bce_bound`.
        """
        k = self.bound_samples
        block = max(1, 2_000 // min(k, 50))  # examples at a time, each with up to 50 draws of z

        def one(batch, row_key):
            if k == 1:
                return self.terms(state, batch, row_key), None
            terms_key, bound_key = jax.random.split(row_key)
            bound = self.bound(state, batch, bound_key, k)
            return self.terms(state, batch, terms_key), bound

        terms, bound = estimate.per_example(one, data, key, block)
        x = np.asarray(data["x"])
        settings: dict[str, Any] = {"likelihood": self.likelihood}
        if self.likelihood == "gaussian":
            settings |= {"variance": self._variance(state), "density": True}
        settings |= {"conditional": True} if self.classes else {}
        no_likelihood = self.likelihood == "bernoulli" and np.any((x != 0) & (x != 1))
        kind: estimate.Kind = "no likelihood" if no_likelihood else "upper bound"
        one_z, k_z = settings | {"z_per_example": 1}, settings | {"z_per_example": k}
        negative_elbo = estimate.mean(terms.reconstruction + terms.kl, kind, **one_z)
        parts = {
            "reconstruction": estimate.mean(terms.reconstruction, "Monte Carlo", **one_z),
            "kl": estimate.mean(terms.kl, "exact" if self.prior == "normal" else "Monte Carlo"),
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

    def sample(
        self, state: State, key: jax.Array, n: int, label: jax.Array | int | None = None
    ) -> jax.Array:
        """Draw z ~ p(z) and return the mean of p(x|z), not a draw from it: [n, *shape].

        Args:
          state: a state of the model.
          key: the source of every draw.
          n: the number of examples.
          label: the class of the samples, [] or [n]; None takes the classes in turn. Only a model
            with classes takes one.
        """
        labels = sample_labels(self, n, label)
        if self.prior == "normal":
            return self.decode(state, jax.random.normal(key, (n, self.latent)), labels)
        # Ancestral sampling of the VampPrior: a pseudo-input u_k, then z ~ q(z|u_k).
        component_key, key = jax.random.split(key)
        component = jax.random.randint(component_key, (n,), 0, self.pseudo_inputs)
        mean, logvar = (moment[component] for moment in self._components(state))
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        return self.decode(state, z)

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return the mean of q(z|x), [B, latent]."""
        q, _ = self._encode(state, batch)
        return q.mean

    def posterior(self, state: State, batch: Batch) -> Moments:
        """Return the mean and the log-variance of q(z|x), each [B, latent]."""
        return self._encode(state, batch)[0]

    def layers(self, state: State, batch: Batch) -> list[jax.Array]:
        """Return the activations of the encoder's hidden layers, and then the mean of q(z|x)."""
        x = self._with_label(self.encoder, batch["x"], label_of(self, batch))
        _, variables = self.encoder_network(state)
        return [*nets.layers(self.encoder, variables, x), self.encode(state, batch)]

    def encoder_network(self, state: State) -> tuple[nn.Module, Any]:
        """Return the encoder without the heads of q(z|x)."""
        variables = {"params": state.params["encoder"], **state.stats["encoder"]}
        of_encoder = {name: values["encoder"] for name, values in variables.items()}
        return self.encoder, of_encoder

    def decode(self, state: State, z: jax.Array, label: jax.Array | None = None) -> jax.Array:
        """Return the mean of p(x|z), [B, *shape].

        Args:
          state: a state of the model.
          z: codes, [B, latent].
          label: their classes, [B], for a model with classes.
        """
        x, _ = self._decode(state, z, label)
        x = nn.sigmoid(x) if self.likelihood == "bernoulli" else x
        return jnp.reshape(x, (-1, *self.shape))

    def reconstruct(self, state: State, batch: Batch) -> jax.Array:
        """Return the mean of p(x|z) at the mean of q(z|x), [B, *shape]."""
        return self.decode(state, self.encode(state, batch), label_of(self, batch))

    def complete(
        self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array, sweeps: int = 200
    ) -> jax.Array:
        """Draw the hidden variables of x by a Markov chain that alternates z and the hidden x.

        The first half of the sweeps is pseudo-Gibbs, z ~ q(z|x) and hidden ~ p(x|z) (Rezende et al.
        2014, https://arxiv.org/abs/1401.4082, appendix F). It comes near to p(hidden | shown) as
        far as q(z|x) does to p(z|x). The second half takes z ~ q(z|x) as a proposal, which
        Metropolis–Hastings accepts or rejects (Mattei & Frellsen 2018,
        https://arxiv.org/abs/1802.04826). Its law is p(hidden | shown) in the limit of many sweeps,
        whatever q is.

        Args:
          state: a state of the model.
          x: examples, [B, *shape].
          mask: 1 where a variable is shown, [*shape] or [B, *shape].
          key: the key of the draws.
          sweeps: the number of sweeps.
        """
        x = to_floats(x, self.levels)
        shown = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        log_prior = self._log_prior(state)

        def draw_hidden(key, out):
            """Draw the hidden variables from p(x|z), given the decoder's output at z."""
            out = out.reshape(x.shape)
            if self.likelihood == "bernoulli":
                drawn = bernoulli_sample(key, out)
            else:
                deviation = jnp.exp(0.5 * self._logvar(state))
                drawn = out + deviation * jax.random.normal(key, out.shape)
            return jnp.where(shown, x, drawn)

        def sweep(t, chain):
            x, z, out = chain
            proposal_key, accept_key, x_key = jax.random.split(jax.random.fold_in(key, t), 3)
            # 1. Propose z' ~ q(z|x).
            q, _ = self._encode(state, {"x": x})
            proposal = q.mean + jnp.exp(0.5 * q.logvar) * jax.random.normal(proposal_key, z.shape)
            proposal_out, _ = self._decode(state, proposal)

            # 2. Accept it with probability min(1, w(z') / w(z)), w(z) = p(x|z) p(z) / q(z|x), and
            #    always during the first half.
            def log_weight(z, out):
                log_p = self._log_likelihood(state, out, x) + log_prior(z)
                return log_p - gaussian_log_prob(z, q.mean, q.logvar)

            log_ratio = log_weight(proposal, proposal_out) - log_weight(z, out)
            log_u = jnp.log(jax.random.uniform(accept_key, log_ratio.shape))
            accepted = (t < sweeps // 2) | (log_u < log_ratio)
            z = jnp.where(accepted[:, None], proposal, z)
            out = jnp.where(accepted.reshape(-1, *[1] * (out.ndim - 1)), proposal_out, out)

            # 3. Draw the hidden variables from p(x|z).
            return draw_hidden(x_key, out), z, out

        start_key, x_key = jax.random.split(jax.random.fold_in(key, sweeps))
        z = jax.random.normal(start_key, (len(x), self.latent))
        out, _ = self._decode(state, z)
        return jax.lax.fori_loop(0, sweeps, sweep, (draw_hidden(x_key, out), z, out))[0]

    def _networks(self, axis_name: str | None = None) -> tuple[Posterior, nn.Module]:
        """Return the networks of q(z|x) and of p(x|z)."""
        encoder = nets.fitted(self.encoder, axis_name=axis_name)
        decoder = nets.fitted(self.decoder, out=self.shape, axis_name=axis_name)
        return Posterior(encoder, self.latent), decoder

    def _with_label(self, net: nn.Module, x: jax.Array, label: jax.Array | None) -> jax.Array:
        """Return the input of a network, with the one-hot label beside it if there are classes."""
        if not self.classes:
            return x
        require(label is not None, "VAE: a model with classes decodes a code with its label")
        return nets.beside(net, x, jax.nn.one_hot(label, self.classes))

    def _encode(
        self,
        state: State,
        batch: Batch,
        key: jax.Array | None = None,
        train: bool = False,
        axis_name: str | None = None,
    ) -> tuple[Moments, Any]:
        """Return q(z|x), and the encoder's statistics."""
        posterior, _ = self._networks(axis_name)
        params, stats = state.params["encoder"], state.stats["encoder"]
        x = self._with_label(self.encoder, batch["x"], label_of(self, batch))
        return nets.apply(posterior, params, stats, x, train=train, key=key)

    def _decode(
        self,
        state: State,
        z: jax.Array,
        label: jax.Array | None = None,
        key: jax.Array | None = None,
        train: bool = False,
        axis_name: str | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return the decoder's output, logits or means of the pixels, and its statistics."""
        _, decoder = self._networks(axis_name)
        params, stats = state.params["decoder"], state.stats["decoder"]
        z = self._with_label(self.decoder, z, label)
        return nets.apply(decoder, params, stats, z, train=train, key=key)

    def _components(self, state: State) -> Moments:
        """Return q(z|u_k) for each of the K pseudo-inputs of a VampPrior."""
        u = state.params["pseudo_inputs"]
        u = nn.sigmoid(u) if self.unit_interval else u
        return self._encode(state, {"x": u})[0]

    def _log_prior(self, state: State) -> Callable[[jax.Array], jax.Array]:
        """Return the function z [..., latent] ↦ log p(z) [...], in nats."""
        if self.prior == "normal":
            return lambda z: gaussian_log_prob(z, jnp.zeros(()), jnp.zeros(()))
        q = self._components(state)
        return lambda z: gaussian_mixture_log_prob(z, q.mean, q.logvar)

    def _kl_weight(self, state: State) -> Any:
        """Return beta, or with KL warm-up beta · min(1, t / N) at step t."""
        if not self.kl_warmup_steps:
            return self.beta
        return self.beta * jnp.minimum(1.0, state.stats["count"] / self.kl_warmup_steps)

    def _terms(
        self,
        state: State,
        batch: Batch,
        key: jax.Array,
        train: bool = False,
        axis_name: str | None = None,
    ) -> tuple[Terms, Moments, Any]:
        """Return the terms of −ELBO, q(z|x), and the networks' statistics."""
        z_key, encoder_key, decoder_key = jax.random.split(key, 3)
        x, label = batch["x"], label_of(self, batch)
        # 1. q(z|x) = N(mean, diag exp(logvar)).
        q, encoder_stats = self._encode(state, batch, encoder_key, train, axis_name)
        # 2. The reparameterization trick.
        z = q.mean + jnp.exp(0.5 * q.logvar) * jax.random.normal(z_key, q.mean.shape)
        # 3. −log p(x|z), and the KL in closed form or at that z.
        out, decoder_stats = self._decode(state, z, label, decoder_key, train, axis_name)
        if self.prior == "normal":
            kl = gaussian_kl(q.mean, q.logvar)
        else:
            kl = gaussian_log_prob(z, q.mean, q.logvar) - self._log_prior(state)(z)
        terms = Terms(-self._log_likelihood(state, out, x), kl)
        return terms, q, {"encoder": encoder_stats, "decoder": decoder_stats}

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
        x, label = batch["x"], label_of(self, batch)
        (mean, logvar), encoder_stats = self._encode(state, batch, encoder_key, train, axis_name)
        log_prior = self._log_prior(state)

        def draw(key, n):
            """Return n draws z ~ q(z|x), [n, B, latent]."""
            noise = jax.random.normal(key, (n, *mean.shape))
            return mean[None] + jnp.exp(0.5 * logvar)[None] * noise

        def repeated(values, n):
            """Return n copies of the values of each example, [n · B, ...]."""
            return jnp.broadcast_to(values[None], (n, *values.shape)).reshape(-1, *values.shape[1:])

        def log_weight(key, n):
            """Return log p(x|z) + log p(z) − log q(z|x) at n draws z ~ q(z|x), [n, B]."""
            noise_key, decoder_key = jax.random.split(key)
            z = draw(noise_key, n)
            each, labels = z.reshape(-1, self.latent), None if label is None else repeated(label, n)
            out, _ = self._decode(state, each, labels, decoder_key, train, axis_name)
            log_p = self._log_likelihood(state, out, repeated(x, n)).reshape(n, -1)
            return log_p + log_prior(z) - gaussian_log_prob(z, mean[None], logvar[None])

        decoder_stats = state.stats["decoder"]
        if train and decoder_stats:
            noise_key, decoder_key = jax.random.split(stats_key)
            z = draw(noise_key, 1)[0]
            _, decoder_stats = self._decode(state, z, label, decoder_key, train, axis_name)
        bound = importance_bound(log_weight, z_key, samples)
        return bound, {"encoder": encoder_stats, "decoder": decoder_stats}

    def _log_likelihood(self, state: State, out: jax.Array, x: jax.Array) -> jax.Array:
        """Return log p(x|z) from the decoder's output, [B] nats."""
        out, x = flatten(out), flatten(x)
        if self.likelihood == "bernoulli":
            return -bernoulli_nll(out, x)
        return gaussian_log_prob(x, out, self._logvar(state))

    def _logvar(self, state: State) -> jax.Array:
        """Return the log-variance of a pixel under the gaussian likelihood, []."""
        fixed = jnp.full((), math.log(self.variance))
        return state.params["logvar"] if self.learn_variance else fixed

    def _variance(self, state: State) -> float:
        """Return the variance of a pixel under the gaussian likelihood."""
        return math.exp(self._logvar(state))
