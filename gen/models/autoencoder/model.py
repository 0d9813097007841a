"""Autoencoders: a code and the reconstruction from it, without a density.

Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks",
https://doi.org/10.1126/science.1127647.

The varieties are fields of one model, and combine:

- denoising: Vincent et al. 2008, "Extracting and composing robust features with denoising
  autoencoders", https://doi.org/10.1145/1390156.1390294, and Vincent et al. 2010, "Stacked
  denoising autoencoders", https://jmlr.org/papers/v11/vincent10a.html;
- sparse: Ng 2011, "Sparse autoencoder" (lecture notes CS294A),
  http://nlp.stanford.edu/~socherr/sparseAutoencoder_2011new.pdf, and Makhzani & Frey 2014,
  "k-sparse autoencoders", https://arxiv.org/abs/1312.5663;
- contractive: Rifai et al. 2011, "Contractive auto-encoders: explicit invariance during feature
  extraction", https://icml.cc/2011/papers/455_icmlpaper.pdf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen import estimate, nets, optimize
from gen.core import (
    Batch,
    Data,
    Density,
    Metrics,
    Shape,
    check_fields,
    pmean,
    replica_key,
    require,
)
from gen.distributions import bernoulli_nll
from gen.estimate import Estimate
from gen.nets import MLP, Activation, ConvEncoder, activate, flatten
from gen.optimize import AnyOptimizer, Optimizer

Noise = Literal["none", "gaussian", "masking", "salt_and_pepper"]
"""The corruption q(x̃|x) of a denoising autoencoder's input."""


class State(NamedTuple):
    """Everything that training changes."""

    params: Any  # {"encoder": ..., "decoder": ...}: kernels [in, out], biases [out]; the decoder
    # has biases alone if its weights are tied
    stats: Any  # {"encoder": ..., "decoder": ...}: batch statistics; empty without them
    opt_state: Any  # RMSProp's running mean of squared gradients, shaped like params


def corrupt(x: jax.Array, noise: Noise, corruption: float, key: jax.Array) -> jax.Array:
    """Draw x̃ ~ q(x̃|x), the input of a denoising autoencoder.

    Args:
      x: examples, [B, *shape].
      noise: `gaussian` adds N(0, corruption²). `masking` sets a share `corruption` of the variables
        to 0, `salt_and_pepper` to 0 or 1 by a fair coin.
      corruption: the standard deviation of the noise, or the probability of a change.
      key: the source of the draws.
    """
    if noise == "none":
        return x
    if noise == "gaussian":
        return x + corruption * jax.random.normal(key, x.shape)
    changed_key, salt_key = jax.random.split(key)
    changed = jax.random.bernoulli(changed_key, corruption, x.shape)
    if noise == "masking":
        return jnp.where(changed, 0.0, x)
    return jnp.where(changed, jax.random.bernoulli(salt_key, 0.5, x.shape).astype(x.dtype), x)


def largest(z: jax.Array, k: int) -> jax.Array:
    """Return codes [B, F] with all but their k largest entries set to 0.

    Makhzani & Frey 2014, algorithm 1.
    """
    values, places = jax.lax.top_k(z, k)
    return jnp.put_along_axis(jnp.zeros_like(z), places, values, axis=1, inplace=False)


class KSparse(nn.Module):
    """A network of which the k largest features are kept."""

    network: nn.Module
    """network of x"""
    active: int
    """number k of features that are kept"""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        return largest(self.network(x, train=train), self.active)


def kl_sparsity(activity: jax.Array, target: float) -> jax.Array:
    """Return Σ_j KL(ρ ‖ ρ̂_j) = Σ_j ρ log ρ / ρ̂_j + (1 − ρ) log (1 − ρ) / (1 − ρ̂_j), in nats.

    Ng 2011, section 3.

    Args:
      activity: ρ̂, the mean activity of each unit over the examples, in (0, 1): [F].
      target: ρ, the target mean activity.
    """
    activity = jnp.clip(activity, 1e-6, 1 - 1e-6)
    on = target * jnp.log(target / activity)
    return jnp.sum(on + (1 - target) * jnp.log((1 - target) / (1 - activity)))


def squared_jacobian(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Return ‖∂f(x)/∂x‖²_F = Σ_ij (∂f_j/∂x_i)² of each example, exactly, [B].

    Args:
      f: maps examples [B, *shape] to codes [B, F], each example by itself.
      x: examples, [B, *shape].
    """
    jacobian = jax.vmap(jax.jacrev(lambda row: f(row[None])[0]))(x)  # [B, F, *shape]
    return jnp.sum(flatten(jacobian) ** 2, axis=1)


def reconstruction(model: Any, state: Any, batch: Batch) -> jax.Array:
    """Return g(f(x)), [B, *shape].

    Args:
      model: a model with `encode`, f, and `decode`, g.
      state: a state of the model.
      batch: examples.
    """
    return model.decode(state, model.encode(state, batch))


def squared_error(model: Any, state: Any, batch: Batch, key: jax.Array) -> jax.Array:
    """Return the squared error of each example's reconstruction, the mean over its pixels, [B].

    Args:
      model: a model with `reconstruct`.
      state: a state of the model.
      batch: examples.
      key: not used; the scores of other models need one.
    """
    return jnp.mean(flatten(batch["x"] - model.reconstruct(state, batch)) ** 2, axis=1)


def mean_squared_error(model: Any, state: Any, data: Data, key: jax.Array) -> dict[str, Estimate]:
    """Return `mse`, the mean over examples of the squared error per pixel.

    Args:
      model: a model whose `score` is `squared_error`.
      state: a state of the model.
      data: all examples of a split.
      key: not used; the estimates of other models need one.
    """
    errors = estimate.per_example(
        lambda batch, row_key: model.score(state, batch, row_key), data, key
    )
    return {"mse": estimate.mean(errors, "exact")}


@dataclass(frozen=True)
class Autoencoder:
    """Deterministic autoencoder: minimise the mean over examples of L(x, g(f(x))).

    The encoder's features are the code z = f(x). The reconstruction is g(z), the decoder's output
    after the nonlinearity `output`. L is the squared error, averaged over the pixels, or the
    cross-entropy −Σ_i x_i log g_i + (1 − x_i) log(1 − g_i), in nats.

    - Denoising (`noise`): the code is taken from a corrupted x̃ and the reconstruction is compared
      with x. Where L is the squared error and the noise is N(0, σ²), the optimum g(f(x̃)) is the
      posterior mean E[x|x̃], so that (g(f(x̃)) − x̃) / σ² is the score ∇ log p(x̃) of the noisy data
      (Vincent 2011, https://doi.org/10.1162/NECO_a_00142; Alain & Bengio 2014,
      https://arxiv.org/abs/1211.4246).
    - Sparse (`sparsity`): the loss adds `sparsity_weight` times Σ_j KL(ρ ‖ ρ̂_j), where ρ̂_j is the
      mean of unit j over the batch (`kl`), or times the mean of Σ_j |z_j| (`l1`). With `top_k` the
      code keeps its `active` largest entries.
    - Contractive (`contraction_weight`): the loss adds this weight times the mean of
      ‖∂f(x)/∂x‖²_F = Σ_ij (∂z_j/∂x_i)², the squared Frobenius norm of the encoder's Jacobian.
    - The contractive and the `l1` penalty need tied weights, as in Rifai et al. 2011. An
      untied decoder could undo any scale of the code: if the encoder divides the code by 1,000 and
      the decoder multiplies it by 1,000, the reconstruction stays and the penalty vanishes.
    - Tied weights (`tied`): layer l of the decoder has the transposed kernel of layer L − l of the
      encoder, and biases of its own.

    The defaults are the textbook chapter's network, 784 → 784 → 256 → 128 and
    128 → 128 → 256 → 784 with ReLU throughout: 1,100,320 parameters.

    Deviations from the chapter's listing:

    - Biases start at 0; the listing draws them like the weights (Glorot).
    - RMSProp divides by √v + ε with ε = 1e-7 and v from 0. TensorFlow 1 divides by √(v + ε) with
      ε = 1e-10 and v from 1. (optax's default, √(v + 1e-8), all but stops at the gradients of a
      mean over pixels, which are about 1e-5.)
    - The rows are shuffled in every epoch.

    Deviations from Hinton & Salakhutdinov 2006:

    - No layerwise pretraining by RBMs; Glorot initialisation and RMSProp take its place.
      `StackedAutoencoder` pretrains layer by layer.
    - ReLU units in place of logistic ones, and a ReLU code of 128 in place of a linear one of 30.
    - Squared error in place of the cross-entropy, by default.

    Deviations from Ng 2011:

    - The squared error is a mean over pixels without the factor ½.
    - ρ̂ is taken over the batch and not over all data.
    - There is no weight decay by default, and Adam or RMSProp takes the place of L-BFGS.

    Deviations from Makhzani & Frey 2014:

    - A trained model keeps as many entries of the code as in training.
    - k does not fall during training.

    Deviations from Vincent et al. 2008 and 2010:

    - Masking and salt-and-pepper noise change each pixel independently with the probability
      `corruption`; the papers change a fixed number of pixels.
    - All pixels have the same weight in the loss; Vincent et al. 2010 also emphasise the corrupted
      ones.
    - Adam or RMSProp on batches takes the place of stochastic gradient descent.

    Deviations from Rifai et al. 2011:

    - The squared error is the default; they take the cross-entropy.
    - Encoders of more than one layer are accepted. Their Jacobian is taken by automatic
      differentiation.

    A ReLU output that is negative for all data gets no gradient, so some pixels can stay black.
    """

    family: ClassVar[str] = "autoencoder"
    density: ClassVar[Density] = "none"
    reconstruct = reconstruction
    score = squared_error
    evaluate = mean_squared_error

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    encoder: nn.Module = MLP((784, 256, 128), "relu")
    """network f from x to the code"""
    decoder: nn.Module = MLP((128, 256), "relu")
    """network g from the code to the reconstruction"""
    output: Activation = "relu"
    """nonlinearity of the reconstruction"""
    loss: Literal["squared_error", "cross_entropy"] = "squared_error"
    """loss of the reconstruction: the mean over pixels of squared errors, or the sum over pixels of
    cross-entropies"""
    noise: Noise = "none"
    """corruption of the encoder's input in training"""
    corruption: float = 0.0
    """standard deviation of gaussian noise, or the share of pixels that masking and salt_and_pepper
    change"""
    sparsity: Literal["none", "kl", "l1", "top_k"] = "none"
    """sparsity of the code: a penalty on its mean activity or on its absolute values, or only the
    largest entries kept"""
    sparsity_weight: float = 0.0
    """weight of the penalty (kl, l1)"""
    sparsity_target: float = 0.05
    """target mean activity of each unit (kl)"""
    active: int = 0
    """entries of the code that are kept (top_k)"""
    contraction_weight: float = 0.0
    """weight of the squared Frobenius norm of the encoder's Jacobian"""
    tied: bool = False
    """the decoder's weights are the transposed weights of the encoder, both MLPs"""
    optimizer: AnyOptimizer = Optimizer("rmsprop", eps=1e-7)
    """optimiser of both networks"""

    def __post_init__(self):
        check_fields(
            self,
            non_negative=("corruption", "sparsity_weight", "active", "contraction_weight"),
            fraction=("sparsity_target",),
        )

        def rule(condition: bool, message: str) -> None:
            require(condition, f"Autoencoder: {message}")

        rule(
            self.loss == "squared_error" or self.output == "sigmoid",
            f"loss cross_entropy needs probabilities: set output sigmoid, not {self.output}",
        )
        rule(
            self.noise in ("none", "gaussian") or self.corruption < 1,
            f"corruption is {self.corruption}, a share of pixels, must be below 1",
        )
        rule(
            self.noise != "salt_and_pepper" or self.unit_interval,
            f"noise salt_and_pepper sets pixels to 0 and 1, and output {self.output} is for data "
            "beyond [0, 1]: take gaussian noise",
        )
        rule(
            self.sparsity != "top_k" or self.active > 0,
            "active is 0, must be positive with sparsity top_k",
        )
        penalty = "contraction_weight" if self.contraction_weight else "sparsity l1"
        rule(
            self.tied or not (self.contraction_weight or self.sparsity == "l1"),
            f"{penalty} has no effect with an untied decoder, which makes up for any scale of the "
            "code: set tied",
        )
        rule(
            self.sparsity != "kl" or self.sparsity_target > 0,
            "sparsity_target is 0, must be positive with sparsity kl",
        )
        rule(
            self.sparsity != "kl"
            or not isinstance(self.encoder, MLP | ConvEncoder)
            or self.encoder.activation == "sigmoid",
            "sparsity kl needs activities in (0, 1): take an encoder with sigmoid units",
        )
        if self.tied:
            self._check_tied(rule)

    def _check_tied(self, rule: Callable[[bool, str], None]) -> None:
        """Raise `UserError` unless the two networks can share their weights."""
        encoder, decoder = self.encoder, self.decoder
        rule(
            isinstance(encoder, MLP) and isinstance(decoder, MLP) and len(encoder.hidden) > 0,
            "tied weights are transposed matrices: take an MLP with layers as encoder and an MLP "
            "as decoder",
        )
        assert isinstance(encoder, MLP)
        assert isinstance(decoder, MLP)
        mirrored = encoder.hidden[-2::-1]
        rule(
            decoder.hidden == mirrored,
            f"tied weights need the encoder's widths in reverse: set decoder.hidden to {mirrored}",
        )
        rule(
            not (encoder.batch_norm or decoder.batch_norm),
            "tied weights have no batch normalisation, which rescales each of them",
        )

    @property
    def unit_interval(self) -> bool:
        """Data must lie in [0, 1] if the output is a sigmoid or ReLU, which is never negative."""
        return self.output in ("sigmoid", "relu")

    @property
    def metric_units(self) -> Mapping[str, str]:
        """Return units that follow from the loss and the penalty. Scores are squared errors."""
        unit = "squared error" if self.loss == "squared_error" else "nats"
        penalty = "absolute values" if self.sparsity == "l1" else "nats"
        return {
            "loss": unit,
            "score": "squared error",
            "reconstruction": unit,
            "sparsity": penalty,
            "contraction": "squared slopes",
            "score_gap": "squared error",
        }

    @property
    def lacks(self) -> tuple[str, ...]:
        """Return `filters` unless the first layer is dense."""
        return () if isinstance(self.encoder, MLP) and self.encoder.hidden else ("filters",)

    def init(self, key: jax.Array) -> State:
        encoder_key, decoder_key = jax.random.split(key)
        x = jnp.zeros((1, *self.shape))
        params, stats = nets.init(self.encoder, encoder_key, x)
        z, _ = nets.apply(self.encoder, params, stats, x)
        nets.check_features(self.encoder, z)
        require(
            self.sparsity != "top_k" or self.active <= z.shape[1],
            f"Autoencoder: active is {self.active}, the code has {z.shape[1]} entries",
        )
        decoder = self._decoder(None)
        decoder_params, decoder_stats = nets.init(decoder, decoder_key, z)
        x_hat, _ = nets.apply(decoder, decoder_params, decoder_stats, z)
        nets.check_output(decoder, x_hat, self.shape)
        if self.tied:
            decoder_params = {
                name: {"bias": layer["bias"]} for name, layer in decoder_params.items()
            }
        params = {"encoder": params, "decoder": decoder_params}
        stats = {"encoder": stats, "decoder": decoder_stats}
        return State(params, stats, optimize.init(self.optimizer, params))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one optimiser step on L(x, g(f(x̃))) and the penalties; log their sum as `loss`.

        Beside a penalty its unweighted value is logged, as `sparsity` or `contraction`, and L as
        `reconstruction`.
        """
        keys = jax.random.split(replica_key(key, axis_name), 3)
        encoder_key, decoder_key, noise_key = keys
        encoder = nets.fitted(self.encoder, axis_name=axis_name)
        decoder = self._decoder(axis_name)
        x = batch["x"]

        def loss(params):
            # 1. The code of the corrupted example, z = f(x̃).
            noisy = corrupt(x, self.noise, self.corruption, noise_key)
            of_encoder = params["encoder"], state.stats["encoder"]
            z, encoder_stats = nets.apply(encoder, *of_encoder, noisy, train=True, key=encoder_key)
            z = self._kept(z)
            # 2. The loss L of the reconstruction g(z).
            of_decoder = self._decoder_params(params), state.stats["decoder"]
            out, decoder_stats = nets.apply(decoder, *of_decoder, z, train=True, key=decoder_key)
            out, target = flatten(out), flatten(x)
            if self.loss == "cross_entropy":
                value = jnp.mean(bernoulli_nll(out, target))
            else:
                value = jnp.mean((target - activate(self.output, out)) ** 2)
            metrics, reconstruction = {}, value
            # 3. The penalties on the code.
            if self.sparsity == "kl":
                activity = pmean(jnp.mean(z, axis=0), axis_name)
                metrics["sparsity"] = kl_sparsity(activity, self.sparsity_target)
            if self.sparsity == "l1":
                metrics["sparsity"] = jnp.mean(jnp.sum(jnp.abs(z), axis=1))
            if "sparsity" in metrics:
                value += self.sparsity_weight * metrics["sparsity"]
            if self.contraction_weight:
                metrics["contraction"] = jnp.mean(self._squared_jacobian(params, x))
                value += self.contraction_weight * metrics["contraction"]
            if metrics:
                metrics["reconstruction"] = reconstruction
            stats = {"encoder": encoder_stats, "decoder": decoder_stats}
            return value, ({"loss": value, **metrics}, stats)

        gradient, (metrics, stats) = optimize.gradient(loss, state.params, axis_name)
        params, opt_state = optimize.update(self.optimizer, gradient, state.opt_state, state.params)
        return State(params, stats, opt_state), metrics

    def parameters(self, state: State) -> Any:
        """Return the parameters of the encoder and the decoder."""
        return state.params

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return the code f(x), [B, F]."""
        of_encoder = state.params["encoder"], state.stats["encoder"]
        return self._kept(nets.apply(self.encoder, *of_encoder, batch["x"])[0])

    def decode(self, state: State, z: jax.Array) -> jax.Array:
        """Return the reconstruction g(z), [B, *shape]."""
        of_decoder = self._decoder_params(state.params), state.stats["decoder"]
        out, _ = nets.apply(self._decoder(None), *of_decoder, z)
        return activate(self.output, out).reshape(-1, *self.shape)

    def filters(self, state: State) -> jax.Array:
        """Return the weights of each unit of the first layer, [H, *shape]."""
        return state.params["encoder"]["Dense_0"]["kernel"].T.reshape(-1, *self.shape)

    def layers(self, state: State, batch: Batch) -> list[jax.Array]:
        """Return the activations of the encoder's hidden layers; the last one is the code."""
        variables = {"params": state.params["encoder"], **state.stats["encoder"]}
        *below, last = nets.layers(self.encoder, variables, batch["x"])
        return [*below, self._kept(flatten(last))]

    def encoder_network(self, state: State) -> tuple[nn.Module, Any]:
        """Return f, whose features are the code."""
        variables = {"params": state.params["encoder"], **state.stats["encoder"]}
        if self.sparsity == "top_k":
            return KSparse(self.encoder, self.active), nets.wrapped(variables)
        return self.encoder, variables

    def _decoder(self, axis_name: str | None) -> nn.Module:
        return nets.fitted(self.decoder, out=self.shape, axis_name=axis_name)

    def _decoder_params(self, params: Any) -> Any:
        """Return the decoder's parameters; tied kernels are the encoder's, transposed."""
        if not self.tied:
            return params["decoder"]
        encoder, biases = params["encoder"], params["decoder"]
        names = [f"Dense_{i}" for i in range(len(biases))]
        return {
            name: {"kernel": encoder[mirror]["kernel"].T, **biases[name]}
            for name, mirror in zip(names, reversed(names), strict=True)
        }

    def _kept(self, z: jax.Array) -> jax.Array:
        """Return the code, of which `top_k` keeps the largest entries."""
        return largest(z, self.active) if self.sparsity == "top_k" else z

    def _squared_jacobian(self, params: Any, x: jax.Array) -> jax.Array:
        """Return ‖∂f(x)/∂x‖²_F, [B].

        One sigmoid layer has the closed form Σ_j (h_j (1 − h_j))² Σ_i W_ij² (Rifai et al. 2011).
        Other encoders take automatic differentiation.
        """

        def f(x):
            return self._kept(nets.apply(self.encoder, params["encoder"], {}, x)[0])

        encoder = self.encoder
        if (
            self.sparsity != "top_k"
            and isinstance(encoder, MLP)
            and (encoder.activation, encoder.batch_norm, len(encoder.hidden))
            == ("sigmoid", False, 1)
        ):
            h, weights = f(x), params["encoder"]["Dense_0"]["kernel"]
            return (h * (1 - h)) ** 2 @ jnp.sum(weights**2, axis=0)
        return squared_jacobian(f, x)
