"""`GAN`: two networks that train against each other, in all registered varieties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from gen import estimate, nets, optimize
from gen.core import (
    Batch,
    Data,
    Density,
    Metrics,
    Shape,
    check_fields,
    label_of,
    replica_key,
    require,
    sample_labels,
)
from gen.estimate import Estimate
from gen.models.gan import regularizers
from gen.models.gan.hints import hints
from gen.models.gan.information import (
    draw_codes,
    information_bound,
    normalized_information,
    posterior_means,
    posterior_size,
)
from gen.models.gan.losses import (
    COMPARISONS,
    LOSSES,
    PROBABILITIES,
    LossName,
    generator_and_encoder,
)
from gen.models.gan.networks import Heads, packed
from gen.models.gan.regularizers import PENALTY_WEIGHTS, Inputs, PenaltyName
from gen.nets import MLP, flatten
from gen.optimize import AnyOptimizer, Optimizer


class Player(NamedTuple):
    """The parameters and the state of the optimiser of one network."""

    params: Any  # kernels [in, out], biases [out]
    stats: Any  # batch statistics; empty without them
    opt_state: Any  # Adam's two moments, each shaped like params, and its step count


class State(NamedTuple):
    """Everything that training changes."""

    generator: Player
    discriminator: Player
    encoder: Any = ()  # a Player; empty without an encoder
    ema: Any = ()  # moving averages of the params of (generator, encoder); empty if ema_decay is 0
    power_iteration_vectors: Any = ()  # u [out] of each kernel of D; empty without spectral_norm


@dataclass(frozen=True)
class GAN:
    """min_G max_D E_x[log D(x)] + E_z[log(1 − D(G(z)))], z ~ N(0, I), and its varieties.

    Goodfellow et al. 2014, "Generative adversarial nets", https://arxiv.org/abs/1406.2661. A step
    is `discriminator_steps` steps of the discriminator, each on a part of the batch, and then one
    of the generator against the new discriminator, each with noise of its own. Images are scaled to
    [−1, 1] for the discriminator, and the generator's output passes through tanh; `sample` returns
    images in [0, 1].

    The varieties are fields, which combine freely. A combination without meaning is refused.

    - `loss`: the losses of both players (`losses`).
    - `penalty`, `weight_clip`, `spectral_norm`: bounds on the slope of D (`regularizers`).
    - `classes`, `conditioning`: G is given the one-hot label beside z (Mirza & Osindero 2014,
      https://arxiv.org/abs/1411.1784, eq. 2), and D beside x, or by a projection (`networks`).
    - `categorical_codes`, `continuous_codes`: InfoGAN. Both players subtract weighted bounds on the
      codes' mutual information with the image, λ L_I(G, Q), from their loss (`information`). In
      Chen et al. 2016, https://arxiv.org/abs/1606.03657, eq. 6, G and Q alone maximise L_I; in the
      authors' program (https://github.com/openai/InfoGAN) the layers that D shares with Q maximise
      it, too, as they do here. Section 6 takes λ = 1 for categorical codes and a smaller λ for
      continuous codes; the program takes 1 for both on MNIST.
    - `encoder`: a BiGAN (Donahue et al. 2017, https://arxiv.org/abs/1605.09782, section 3). D tells
      pairs (x, E(x)) from (G(z), z). G and E together minimise the generator's loss and its mirror
      image (`losses.generator_and_encoder`).
    - `pack`: D is given several examples at once (PacGAN, https://arxiv.org/abs/1712.04086).
    - `generator_rate`: the updates of the generator and the encoder are multiplied by this number,
      so that the players learn at different rates (Heusel et al. 2017,
      https://arxiv.org/abs/1706.08500, section 2).
    - `ema_decay`: samples and codes come from moving averages of the parameters of the generator
      and the encoder (Yazıcı et al. 2019, https://arxiv.org/abs/1806.04498). Their batch
      statistics are the players' own.

    A step logs `d_loss` and `g_loss`, which exclude the penalty and the information bound; `d_real`
    and `d_fake`, the means of D(x) and D(G(z)) under dropout; `diversity`, the mean squared
    distance between two samples relative to the distance between two rows of data; and
    `g_gradient`, the norm of the generator's gradient. `penalty` is weighted as in the loss, and
    `information` is the unweighted bound, in nats. The metrics of the discriminator are from its
    last step. `hints` names faults that they show. A diversity near 1 does not exclude a collapse
    onto a few distant modes.

    In training the discriminator is run on data and on samples in turn, so that its batch
    normalisation takes the statistics of one kind alone, as in DCGAN. Its running statistics, which
    evaluation uses, are a mixture of both kinds.

    The defaults are the textbook chapter's networks, 100 → 256 → 512 → 1024 → 784 and
    784 → 1024 → 512 → 256 → 1 with ReLU: 2,946,577 parameters.

    Deviations from the chapter's listing:

    - Losses are taken on logits and are exact; the listing writes log(x + 0.01), which bounds both
      losses and biases their gradients.
    - Each player's step moves that player alone; the listing passes no list of variables to its
      optimisers, so that each of them moves both players.
    - The discriminator drops 0.3 of its units. The listing builds it with 0.5 and then feeds 0.3 to
      a placeholder that does not exist.
    - No batch normalisation by default: the chapter's text speaks of it, the listing has none.
    - Biases start at 0; the listing draws them like the weights (Glorot).
    - The rows are shuffled in every epoch.

    Deviations from Goodfellow et al. 2014:

    - Adam in place of SGD with momentum.
    - Gaussian noise, and ReLU throughout, in place of maxout discriminators and generators of mixed
      rectifiers and sigmoids.

    Deviations from the papers of the varieties:

    - Noise is Gaussian, where Radford et al., Chen et al. and Lin et al. draw it uniformly.
    - One step has all critic steps of WGAN and WGAN-GP, so that a batch has `discriminator_steps`
      times their number of rows.
    - Weights are clipped and spectrally normalised in all layers of D, the last one too, but not in
      InfoGAN's posterior Q.
    - The generator of a projection discriminator is given the label beside z, not by conditional
      batch normalisation.
    - By default the variance of InfoGAN's continuous codes under Q is learned and the weight of
      their bound is 0.1. The authors' program for MNIST fixes the variance at 1 (`fix_std=True`)
      and takes weight 1.
    """

    family: ClassVar[str] = "GAN"
    density: ClassVar[Density] = "implicit"
    unit_interval: ClassVar[bool] = True

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    latent: int = 100
    """dimension of z"""
    generator: nn.Module = MLP((256, 512, 1024), "relu")
    """network from z, codes and label to the image, before tanh"""
    discriminator: nn.Module = MLP((1024, 512, 256), "relu", dropout=0.3)
    """network from an image in [−1, 1] to the logit of D; with a projection or codes, a network of
    your own returns features [B, F]"""
    loss: LossName = "non_saturating"
    """losses of both players"""
    penalty: PenaltyName = "none"
    """penalty on the slope of the discriminator"""
    penalty_weight: float | None = None
    """weight of the penalty (default: 10)"""
    weight_clip: float = 0.0
    """largest absolute value of a parameter of the discriminator, to which each step clips
    (0: none)"""
    spectral_norm: bool = False
    """divide the discriminator's kernels by their largest singular values"""
    discriminator_steps: int = 1
    """steps of the discriminator in one step, each on its own part of the batch"""
    conditioning: Literal["concatenate", "projection"] = "concatenate"
    """how the discriminator is given the label, where there are classes; the generator is given it
    beside z"""
    classes: int = 0
    """number of classes, whose labels both players are given (0: no labels)"""
    categorical_codes: tuple[int, ...] = ()
    """numbers of classes of InfoGAN's categorical codes"""
    continuous_codes: int = 0
    """number of InfoGAN's continuous codes, each uniform in [−1, 1]"""
    information_weight: float = 1.0
    """weight of the bound on the categorical codes' mutual information with the image"""
    continuous_weight: float = 0.1
    """weight of the bound on the continuous codes' mutual information with the image, which has no
    upper limit where the variance is learned"""
    continuous_variance: float | None = None
    """variance of the continuous codes under InfoGAN's posterior Q (None: learned)"""
    encoder: Any = None  # the command line takes the flags of a network from its value
    """network from an image in [−1, 1] to z, of a BiGAN (None: no encoder)"""
    pack: int = 1
    """examples that the discriminator is given at once"""
    ema_decay: float = 0.0
    """decay of the moving average of the parameters of generator and encoder (0: no average)"""
    optimizer: AnyOptimizer = Optimizer("adam", learning_rate=2e-4)
    """optimiser of each player"""
    generator_rate: float = 1.0
    """learning rate of the generator and the encoder relative to the discriminator's"""

    def __post_init__(self):
        check_fields(
            self,
            positive=("latent", "discriminator_steps", "pack", "generator_rate"),
            non_negative=(
                "weight_clip",
                "classes",
                "continuous_codes",
                "information_weight",
                "continuous_weight",
            ),
            fraction=("ema_decay",),
        )

        require(
            self.encoder is None or isinstance(self.encoder, nn.Module),
            f"GAN: encoder is {self.encoder!r}, must be a network, such as MLP((256, 128)), or "
            "None",
        )
        require(
            all(classes >= 2 for classes in self.categorical_codes),
            f"GAN: categorical_codes is {self.categorical_codes}, each must have 2 classes or more",
        )
        require(
            self.penalty_weight is None or self.penalty_weight > 0,
            f"GAN: penalty_weight is {self.penalty_weight}, must be positive",
        )
        require(
            self.continuous_variance is None or self.continuous_variance > 0,
            f"GAN: continuous_variance is {self.continuous_variance}, must be positive",
        )
        require(
            self.loss != "wasserstein"
            or self.penalty == "gradient_penalty"
            or self.weight_clip > 0
            or self.spectral_norm,
            "GAN: the loss wasserstein has no minimum without a bound on the slope of the "
            "discriminator, and r1 and r1_r2 bound no slope away from data and samples: set "
            "penalty to gradient_penalty, weight_clip or spectral_norm",
        )
        require(
            self.penalty == "none" or not self._has_batch_norm,
            f"GAN: the penalty {self.penalty} is on the gradient of each example, and batch "
            "normalisation makes an example's output depend on all others: switch batch_norm of "
            "the discriminator off",
        )
        require(
            not (self.spectral_norm and self._has_batch_norm),
            "GAN: batch normalisation divides by the scale of a layer's output and undoes "
            "spectral_norm: switch one of them off",
        )
        require(
            not (self.spectral_norm and self.weight_clip > 0),
            "GAN: spectral_norm divides the scale out of the kernels that weight_clip bounds: "
            "switch one of them off",
        )
        require(
            not (self.penalty == "gradient_penalty" and self.weight_clip > 0),
            "GAN: gradient_penalty holds the slope of the discriminator at 1, which clipped "
            "weights cannot reach: switch one of them off",
        )
        require(
            not (self._has_projection and self.pack > 1),
            "GAN: a projection takes one label for each logit, and a pack has several: set "
            "conditioning to concatenate, or pack to 1",
        )
        require(
            not (self._has_codes and self.pack > 1),
            "GAN: the posterior of the codes is given one image, and a pack has several: set pack "
            "to 1",
        )
        require(
            not (self._has_codes and self.encoder is not None),
            "GAN: an encoder and codes both infer what an image was made of: choose one of them",
        )
        require(
            not (self.encoder is not None and self.classes > 0),
            "GAN: a BiGAN decodes z alone, without a label: set classes to 0",
        )

    @property
    def _has_projection(self) -> bool:
        """Return whether the discriminator is given the label by a projection."""
        return self.classes > 0 and self.conditioning == "projection"

    @property
    def _has_codes(self) -> bool:
        """Return whether this is an InfoGAN."""
        return bool(self.categorical_codes) or self.continuous_codes > 0

    @property
    def _has_batch_norm(self) -> bool:
        """Return whether a field of the discriminator says that it normalises over the batch."""
        return bool(getattr(self.discriminator, "batch_norm", False))

    @property
    def _weight(self) -> float:
        """Return the weight of the penalty, 0 without one."""
        if self.penalty == "none":
            return 0.0
        return self.penalty_weight or PENALTY_WEIGHTS[self.penalty]

    @property
    def lacks(self) -> tuple[str, ...]:
        """Return the methods that need an encoder, codes, no label or single images.

        A BiGAN encodes to z, an InfoGAN to its codes alone, which do not determine the image. Its
        discriminator is no encoder where it is given labels, too. A model with classes decodes z
        only together with a label. The discriminator of a packed GAN judges no single image.
        """
        lacks = ("score", "scores") if self.pack > 1 else ()
        if self.encoder is not None:
            return lacks
        if self._has_codes:
            lacks = (*lacks, "decode", "reconstruct")
            return (*lacks, "layers", "encoder_network") if self.classes else lacks
        lacks = (*lacks, "encode", "reconstruct", "layers", "encoder_network")
        return (*lacks, "decode") if self.classes else lacks

    @property
    def normal_codes(self) -> int:
        """z ~ N(0, I); an InfoGAN has other codes beside it."""
        return 0 if self._has_codes else self.latent

    @property
    def metric_units(self) -> Mapping[str, str]:
        """The units of losses and outputs follow from the loss; other units are always the same."""
        units = {
            "diversity": "relative to data",
            "g_gradient": "norm",
            "information": "nats",
            "penalty": "nats",
            "score": "output of D" if self.encoder is None else "squared error",
        }
        if self.loss not in PROBABILITIES:
            units |= {"d_real": "output of D", "d_fake": "output of D"}
        if self.loss in ("least_squares", "hinge", "wasserstein"):
            units |= {"d_loss": "output of D", "g_loss": "output of D", "penalty": "output of D"}
        return units

    def hints(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Return a line for each fault among saturation, vanishing gradient, collapse, steepness.

        The thresholds are constants of `gen.models.gan.hints`.
        """
        return hints(self.loss, self._weight, self.weight_clip, metrics)

    def init(self, key: jax.Array) -> State:
        generator_key, discriminator_key, encoder_key, vector_key = jax.random.split(key, 4)
        generator, discriminator, encoder = self._networks(None)
        x, z = jnp.zeros((self.pack, *self.shape)), jnp.zeros((self.pack, self.latent))
        label = jnp.zeros(self.pack, jnp.int32) if self.classes else None
        latent = jnp.zeros((1, self.latent + self._codes_size))
        generator_input = self._generator_input(latent, None if label is None else label[:1])
        discriminator_input = self._discriminator_input({"x": x, "z": z}, label)

        def player(net, key, needed, *example):
            params, stats = nets.init(net, key, *example)
            out, _ = nets.apply(net, params, stats, *example)
            nets.check_output(net, out[0] if isinstance(net, Heads) else out, needed)
            if net is encoder:
                nets.check_features(net, out)
            return Player(params, stats, optimize.init(self.optimizer, params))

        state = State(
            player(generator, generator_key, self.shape, generator_input),
            player(discriminator, discriminator_key, (), *discriminator_input),
            player(encoder, encoder_key, (self.latent,), x[:1]) if encoder is not None else (),
        )
        if self.penalty != "none" or self.spectral_norm:
            switch = "spectral_norm" if self.spectral_norm else f"the penalty {self.penalty}"
            require(
                "batch_stats" not in state.discriminator.stats,
                f"GAN: {type(self.discriminator).__name__} has batch normalisation, which {switch} "
                "excludes: take a discriminator without it",
            )
        if self.ema_decay:
            params = (state.generator.params, state.encoder.params if state.encoder else ())
            state = state._replace(ema=jax.tree.map(jnp.copy, params))
        if self.spectral_norm:
            vectors = regularizers.first_vectors(state.discriminator.params, vector_key)
            state = state._replace(power_iteration_vectors=vectors)
        return state

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take the discriminator's steps, then the generator's, with separate noise.

        Raises:
          UserError: the rows of the batch cannot be split into the parts of the discriminator's
            steps, or the rows of a part not into packs.
        """
        steps, rows = self.discriminator_steps, len(batch["x"])
        require(
            rows % (steps * self.pack) == 0,
            f"GAN: a batch (of a device) has {rows} rows, and {steps} steps of the discriminator "
            f"on packs of {self.pack} need a multiple of {steps * self.pack}",
        )
        discriminator_key, generator_key = jax.random.split(key)
        keys = jax.random.split(discriminator_key, steps) if steps > 1 else [discriminator_key]
        parts = [{name: x[i::steps] for name, x in batch.items()} for i in range(steps)]
        metrics: Metrics = {}
        for part, part_key in zip(parts, keys, strict=True):
            state, metrics = self.discriminator_step(state, part, part_key, axis_name=axis_name)
        state, generator_metrics = self.generator_step(
            state, parts[-1], generator_key, axis_name=axis_name
        )
        return state, metrics | generator_metrics

    def discriminator_step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Move the discriminator alone.

        Args:
          state: the state of both players.
          batch: training examples.
          key: the source of the noise and of dropout.
          axis_name: the mapped axis to average over, under `pmap`.

        Returns:
          The next state, and the metrics `d_loss`, `d_real`, `d_fake`, `diversity`, and `penalty`
          and `information` where the model has them.
        """
        keys = jax.random.split(replica_key(key, axis_name), 6)
        noise_key, generator_key, real_key, fake_key, encoder_key, penalty_key = keys
        generator, discriminator, encoder = self._networks(axis_name)
        label = label_of(self, batch)
        # 1. Data and samples, each with the code that belongs to it.
        x = 2.0 * batch["x"] - 1.0
        latent = self.draw_latent(noise_key, len(x))
        out, _ = _run(
            generator, state.generator, generator_key, self._generator_input(latent, label)
        )
        real, fake = {"x": x}, {"x": self._image(out)}
        if encoder is not None:
            real["z"], _ = _run(encoder, state.encoder, encoder_key, x)
            fake["z"] = latent
        vectors = ()
        if self.spectral_norm:
            vectors = regularizers.power_iteration(
                state.discriminator.params, state.power_iteration_vectors
            )

        def loss(params):
            player = state.discriminator._replace(params=self._normalized(params, vectors))
            # 2. The loss on both, data first.
            real_logits, _, stats = self._discriminate(discriminator, player, real_key, real, label)
            player = player._replace(stats=stats)
            fake_logits, posterior, stats = self._discriminate(
                discriminator, player, fake_key, fake, label
            )
            d_loss = value = LOSSES[self.loss].discriminator(real_logits, fake_logits)
            metrics = {
                "d_loss": d_loss,
                "d_real": self._output(real_logits).mean(),
                "d_fake": self._output(fake_logits).mean(),
                "diversity": _spread(fake["x"]) / jnp.maximum(_spread(x), 1e-12),
            }
            # 3. The penalty on the slope of D, and the bound on the codes' mutual information.
            if self.penalty != "none":

                def logits_of(inputs: Inputs) -> jax.Array:
                    return self._discriminate(discriminator, player, real_key, inputs, label)[0]

                metrics["penalty"] = self._weight * regularizers.penalty(
                    self.penalty, logits_of, real, fake, penalty_key, self.pack
                )
                value += metrics["penalty"]
            if self._has_codes:
                bound, weighted = self._information(latent, posterior)
                metrics["information"] = bound.mean()
                value -= weighted.mean()
            return value, (metrics, stats)

        gradient, (metrics, stats) = optimize.gradient(loss, state.discriminator.params, axis_name)
        player = self._updated(state.discriminator, gradient, stats)
        if self.weight_clip:
            clipped = regularizers.clipped(player.params, self.weight_clip)
            player = player._replace(params=clipped)
        return state._replace(discriminator=player, power_iteration_vectors=vectors), metrics

    def generator_step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Move the generator, and the encoder of a BiGAN, on as many samples as the batch has rows.

        Args:
          state: the state of both players.
          batch: training examples. The relativistic loss and an encoder use all of them, a
            conditional generator the labels, others the number of rows.
          key: the source of the noise and of dropout.
          axis_name: the mapped axis to average over, under `pmap`.

        Returns:
          The next state, and the metrics `g_loss` and `g_gradient`.
        """
        keys = jax.random.split(replica_key(key, axis_name), 5)
        noise_key, generator_key, dropout_key, encoder_key, real_key = keys
        generator, discriminator, encoder = self._networks(axis_name)
        label = label_of(self, batch)
        latent = self.draw_latent(noise_key, len(batch["x"]))
        opponent = self._discriminator_player(state)

        def loss(params):
            generator_params, encoder_params = params
            # 1. Samples and their logits.
            player = state.generator._replace(params=generator_params)
            out, stats = _run(
                generator, player, generator_key, self._generator_input(latent, label)
            )
            fake, encoder_stats = {"x": self._image(out), "z": latent}, ()
            fake_logits, posterior, _ = self._discriminate(
                discriminator, opponent, dropout_key, fake, label
            )
            # 2. Logits of data, for the losses that read them.
            real_logits = fake_logits
            if self.loss == "relativistic" or encoder is not None:
                real = {"x": 2.0 * batch["x"] - 1.0}
                if encoder is not None:
                    player = state.encoder._replace(params=encoder_params)
                    real["z"], encoder_stats = _run(encoder, player, encoder_key, real["x"])
                real_logits, _, _ = self._discriminate(
                    discriminator, opponent, real_key, real, label
                )
            # 3. The loss, with its mirror image for an encoder, and the bound of an InfoGAN.
            if encoder is None:
                g_loss = LOSSES[self.loss].generator(real_logits, fake_logits)
            else:
                g_loss = generator_and_encoder(self.loss, real_logits, fake_logits)
            value = g_loss
            if self._has_codes:
                value -= self._information(latent, posterior)[1].mean()
            return value, ({"g_loss": g_loss}, (stats, encoder_stats))

        params = (state.generator.params, state.encoder.params if state.encoder else ())
        gradients, (metrics, (stats, encoder_stats)) = optimize.gradient(loss, params, axis_name)
        metrics["g_gradient"] = optax.tree.norm(gradients[0])
        player = self._updated(state.generator, gradients[0], stats, self.generator_rate)
        encoder_player = ()
        if encoder is not None:
            encoder_player = self._updated(
                state.encoder, gradients[1], encoder_stats, self.generator_rate
            )
        ema = state.ema
        if self.ema_decay:
            moved = (player.params, encoder_player.params if encoder_player else ())
            ema = optax.incremental_update(moved, ema, 1 - self.ema_decay)
        return state._replace(generator=player, encoder=encoder_player, ema=ema), metrics

    def parameters(self, state: State) -> Any:
        """Return the parameters of all players."""
        players = (state.generator, state.discriminator, state.encoder)
        return tuple(player.params for player in players if player)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return what the discriminator, without dropout, makes of `data` and of as many samples.

        `d_real` and `d_fake` are the means of D(x) and D(G(z)), and `d_accuracy` is the share of
        rows and samples that D classifies correctly: the mean of ½ [D(x) > 0] + ½ [D(G(z)) < 0]. A
        loss that only compares logits has no threshold. It has `d_pairs` in place of `d_accuracy`,
        the share of pairs (x, G(z)) with D(x) > D(G(z)). A GAN has no likelihood; these measure the
        game, not the samples.

        A BiGAN adds `mse`, the squared error per pixel of G(E(x)). With `pack`, its standard error
        is over packs. An InfoGAN adds `information`, the lower bound on the codes' mutual
        information with samples, in nats. If the data have labels, and the model is not given them,
        it also adds `nmi`, the normalised mutual information of the label and the likeliest class
        of the first categorical code (`information.normalized_information`).
        """
        _, discriminator, _ = self._networks(None)
        packs = {}
        for name in ("x", "label") if self.classes else ("x",):
            rows = np.asarray(data[name])
            rows = rows[: len(rows) // self.pack * self.pack]
            packs[name] = rows.reshape(-1, self.pack, *rows.shape[1:])
        player = self._discriminator_player(state)

        def measure(batch, row_key):
            batch = {name: x[0] for name, x in batch.items()}
            label = label_of(self, batch)
            latent = self.draw_latent(row_key, self.pack)
            real = {"x": 2.0 * batch["x"] - 1.0}
            fake = {"x": 2.0 * self.generate(state, latent, label) - 1.0, "z": latent}
            measured = {}
            if self.encoder is not None:
                real["z"] = self.encode(state, batch)
                error = batch["x"] - self.decode(state, real["z"])
                measured["mse"] = jnp.mean(error**2)[None]
            real_logits, real_posterior, _ = self._discriminate(
                discriminator, player, None, real, label
            )
            fake_logits, fake_posterior, _ = self._discriminate(
                discriminator, player, None, fake, label
            )
            if real_posterior is not None:
                measured["information"], _ = self._information(latent, fake_posterior)
                measured["codes"] = self._code_means(real_posterior)
            return measured | {"real": real_logits, "fake": fake_logits}

        measured = estimate.per_example(measure, packs, key)
        real, fake = measured["real"], measured["fake"]
        if self.loss in COMPARISONS:
            name, correct = "d_pairs", real > fake
        else:
            name, correct = "d_accuracy", ((real > 0) + 1.0 * (fake < 0)) / 2
        estimates = {
            "d_real": estimate.mean(self._output(real), "exact"),
            "d_fake": estimate.mean(self._output(fake), "Monte Carlo"),
            name: estimate.mean(correct, "Monte Carlo"),
        }
        if "mse" in measured:
            estimates["mse"] = estimate.mean(measured["mse"], "exact")
        if "information" in measured:
            estimates["information"] = estimate.mean(measured["information"], "lower bound")
        if self.categorical_codes and "label" in data and not self.classes:
            # A model with classes reads the label, so that its codes could repeat it.
            code = np.argmax(measured["codes"][:, : self.categorical_codes[0]], axis=1)
            values = normalized_information(code, np.asarray(data["label"]))
            estimates["nmi"] = estimate.mean(values, "Monte Carlo", code="categorical 1")
        return estimates

    def score(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return minus the discriminator's logit, [B]; of a BiGAN the squared error per pixel.

        The discriminator learns to tell training images from the generator's, and judges nothing
        else: images that neither resemble can have a high logit.
        """
        if self.encoder is not None:
            return jnp.mean(flatten(batch["x"] - self.reconstruct(state, batch)) ** 2, axis=1)
        return self.scores(state, batch, key)["discriminator"]

    def scores(self, state: State, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """Return minus the logit of D(x), of a BiGAN of D(x, E(x)), as `discriminator`."""
        _, discriminator, _ = self._networks(None)
        inputs = {"x": 2.0 * batch["x"] - 1.0}
        if self.encoder is not None:
            inputs["z"] = self.encode(state, batch)
        logits, _, _ = self._discriminate(
            discriminator, self._discriminator_player(state), None, inputs, label_of(self, batch)
        )
        return {"discriminator": -logits}

    def sample(
        self, state: State, key: jax.Array, n: int, label: jax.Array | int | None = None
    ) -> jax.Array:
        """Draw z ~ N(0, I) and codes, and return G's images, scaled to [0, 1]: [n, *shape].

        Args:
          label: the class of the samples, [] or [n]; None takes the classes in turn. Only a model
            with classes takes one.
        """
        labels = sample_labels(self, n, label)
        return self.generate(state, self.draw_latent(key, n), labels)

    def draw_latent(self, key: jax.Array, n: int) -> jax.Array:
        """Draw z ~ N(0, I) followed by the codes of an InfoGAN: [n, latent + codes]."""
        if not self._has_codes:
            return jax.random.normal(key, (n, self.latent))
        noise_key, code_key = jax.random.split(key)
        codes = draw_codes(code_key, n, self.categorical_codes, self.continuous_codes)
        return jnp.concatenate([jax.random.normal(noise_key, (n, self.latent)), codes], axis=1)

    def generate(
        self, state: State, latent: jax.Array, label: jax.Array | None = None
    ) -> jax.Array:
        """Return the images that the generator makes, scaled to [0, 1]: [n, *shape].

        Args:
          state: a state, of whose generator the moving average is taken if there is one.
          latent: z followed by the codes of an InfoGAN, as `draw_latent` returns them.
          label: the class of each image, [n], for a model with classes.

        Raises:
          UserError: the model has classes, and there is no label.
        """
        generator, _, _ = self._networks(None)
        params = state.ema[0] if self.ema_decay else state.generator.params
        generator_input = self._generator_input(latent, label)
        out, _ = nets.apply(generator, params, state.generator.stats, generator_input)
        return (self._image(out) + 1.0) / 2.0

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return the codes of x, [B, F].

        A BiGAN returns z = E(x). An InfoGAN returns the means of Q(c|x): the probabilities of the
        categorical codes, and then the means of the continuous ones.
        """
        x = 2.0 * batch["x"] - 1.0
        _, discriminator, encoder = self._networks(None)
        if encoder is not None:
            params = state.ema[1] if self.ema_decay else state.encoder.params
            z, _ = nets.apply(encoder, params, state.encoder.stats, x)
            return z
        player = self._discriminator_player(state)
        label = label_of(self, batch)
        _, posterior, _ = self._discriminate(discriminator, player, None, {"x": x}, label)
        assert posterior is not None
        return self._code_means(posterior)

    def layers(self, state: State, batch: Batch) -> list[jax.Array]:
        """Return the activations of the hidden layers of `encoder_network`, and then the code."""
        network, variables = self.encoder_network(state)
        return [*nets.layers(network, variables, batch["x"]), self.encode(state, batch)]

    def encoder_network(self, state: State) -> tuple[nn.Module, Any]:
        """Return E of a BiGAN, whose features are z; of an InfoGAN D without its heads."""
        _, discriminator, encoder = self._networks(None)
        if encoder is not None:
            params = state.ema[1] if self.ema_decay else state.encoder.params
            variables = {"params": params, **state.encoder.stats}
        else:
            assert isinstance(discriminator, Heads)
            player, encoder = self._discriminator_player(state), discriminator.network
            variables = {"params": player.params, **player.stats}
            variables = {
                name: values["network"] for name, values in variables.items() if "network" in values
            }
        return nets.Affine(encoder, 2.0, -1.0), nets.wrapped(variables)

    def decode(self, state: State, z: jax.Array) -> jax.Array:
        """Return G(z), scaled to [0, 1]: [B, *shape]."""
        return self.generate(state, z)

    def reconstruct(self, state: State, batch: Batch) -> jax.Array:
        """Return G(E(x)) of a BiGAN, scaled to [0, 1]: [B, *shape]."""
        return self.decode(state, self.encode(state, batch))

    @property
    def _codes_size(self) -> int:
        """Return the number of an InfoGAN's codes, each class of a categorical code counted."""
        return sum(self.categorical_codes) + self.continuous_codes

    def _networks(self, axis_name: str | None) -> tuple[nn.Module, nn.Module, nn.Module | None]:
        """Return the generator, the discriminator with its heads, and the encoder."""
        generator = nets.fitted(self.generator, out=self.shape, axis_name=axis_name)
        encoder = self.encoder
        if encoder is not None:
            encoder = nets.fitted(encoder, out=(self.latent,), axis_name=axis_name)
        if not self._has_projection and not self._has_codes:
            discriminator = nets.fitted(self.discriminator, out=(1,), axis_name=axis_name)
            return generator, discriminator, encoder
        features = nets.fitted(self.discriminator, out=None, axis_name=axis_name)
        size = posterior_size(
            self.categorical_codes, self.continuous_codes, self.continuous_variance
        )
        classes = self.classes if self._has_projection else 0
        heads = Heads(features, classes, size, self._has_batch_norm and size > 0, axis_name)
        return generator, heads, encoder

    def _generator_input(self, latent: jax.Array, label: jax.Array | None) -> jax.Array:
        """Return z and codes followed by the one-hot label, the input of the generator."""
        if not self.classes:
            return latent
        require(label is not None, "GAN: a model with classes generates an image with its label")
        return nets.beside(self.generator, latent, jax.nn.one_hot(label, self.classes))

    def _discriminator_input(
        self, inputs: Inputs, label: jax.Array | None
    ) -> tuple[jax.Array, ...]:
        """Return x with z and the label beside it, in packs; and the label for a projection."""
        x, vectors = inputs["x"], []
        if self.encoder is not None:
            vectors.append(inputs["z"])
        if self.classes and self.conditioning == "concatenate":
            vectors.append(jax.nn.one_hot(label, self.classes))
        if vectors:
            x = nets.beside(self.discriminator, x, jnp.concatenate(vectors, axis=1))
        if self.pack > 1:
            x = packed(x, self.pack)
        return (x, label) if self._has_projection else (x,)  # type: ignore

    def _discriminate(
        self,
        discriminator: nn.Module,
        player: Player,
        key: jax.Array | None,
        inputs: Inputs,
        label: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None, Any]:
        """Return the logits, [B / pack], the parameters of Q(c|x), and the batch statistics.

        Args:
          discriminator: the network with its heads.
          player: its parameters and statistics.
          key: the source of dropout in training; None in evaluation.
          inputs: x [B, *shape] in [−1, 1], and z [B, latent] for a BiGAN.
          label: [B], or None for a model without classes.
        """
        discriminator_input = self._discriminator_input(inputs, label)
        train = key is not None
        out, stats = nets.apply(
            discriminator, player.params, player.stats, *discriminator_input, train=train, key=key
        )
        logits, posterior = out if isinstance(discriminator, Heads) else (out, None)
        return logits.reshape(-1), posterior, stats

    def _normalized(self, params: Any, vectors: Any) -> Any:
        """Return the discriminator's parameters as it uses them, spectrally normalised or not."""
        if not self.spectral_norm:
            return params
        return regularizers.spectrally_normalized(params, vectors)

    def _discriminator_player(self, state: State) -> Player:
        """Return the discriminator of a state with its parameters spectrally normalised or not."""
        params = self._normalized(state.discriminator.params, state.power_iteration_vectors)
        return state.discriminator._replace(params=params)

    def _output(self, logits: Any) -> Any:
        """Return D in the units of the loss: a probability under the logarithmic losses."""
        return jax.nn.sigmoid(logits) if self.loss in PROBABILITIES else logits

    def _information(
        self, latent: jax.Array, posterior: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Return the bound on the codes' information, and what InfoGAN maximises, [B] nats each.

        The second weights categorical and continuous codes.
        """
        assert posterior is not None
        codes, first = latent[:, self.latent :], sum(self.categorical_codes)
        categorical = information_bound(
            codes[:, :first], posterior[:, :first], self.categorical_codes, 0
        )
        continuous = information_bound(
            codes[:, first:],
            posterior[:, first:],
            (),
            self.continuous_codes,
            self.continuous_variance,
        )
        weights = self.information_weight, self.continuous_weight
        return categorical + continuous, weights[0] * categorical + weights[1] * continuous

    def _code_means(self, posterior: jax.Array) -> jax.Array:
        """Return the means of the codes under Q(c|x), [B, codes]."""
        return posterior_means(posterior, self.categorical_codes, self.continuous_codes)

    def _image(self, out: jax.Array) -> jax.Array:
        """Return the generator's output as images in [−1, 1], [B, *shape]."""
        return jnp.tanh(out).reshape(-1, *self.shape)

    def _updated(self, player: Player, gradient: Any, stats: Any, rate: float = 1.0) -> Player:
        """Return a player after one step of its optimiser, at `rate` times the learning rate."""
        params, opt_state = optimize.update(
            self.optimizer, gradient, player.opt_state, player.params, rate
        )
        return Player(params, stats, opt_state)


def _run(net: nn.Module, player: Player, key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
    """Run a player in training mode, with dropout and batch statistics."""
    return nets.apply(net, player.params, player.stats, x, train=True, key=key)


def _spread(x: jax.Array) -> jax.Array:
    """Return the sum of the variances of all variables: half the mean squared distance of rows."""
    return jnp.sum(jnp.var(x, axis=0))
