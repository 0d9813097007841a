"""Generative adversarial networks.

Goodfellow et al. 2014, "Generative adversarial nets", https://arxiv.org/abs/1406.2661.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gen import estimate, nets, optimize
from gen.core import Batch, Data, Density, Metrics, Shape, check_fields, replica_key
from gen.estimate import Estimate
from gen.nets import MLP
from gen.optimize import AnyOptimizer, Optimizer


class Player(NamedTuple):
    """One of the two networks."""

    params: Any  # kernels [in, out], biases [out]
    stats: Any  # batch statistics; empty without them
    opt_state: Any  # Adam's two moments, each shaped like params, and its step count


class State(NamedTuple):
    """Everything that training changes."""

    generator: Player
    discriminator: Player


def discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return −E[log D(x)] − E[log(1 − D(G(z)))] from logits, [B] each; 2 log 2 at D = ½."""
    return -jnp.mean(jax.nn.log_sigmoid(real)) - jnp.mean(jax.nn.log_sigmoid(-fake))


def non_saturating_loss(fake: jax.Array) -> jax.Array:
    """Return −E[log D(G(z))] from logits [B]; log 2 at D = ½ (Goodfellow et al., section 3)."""
    return -jnp.mean(jax.nn.log_sigmoid(fake))


def minimax_loss(fake: jax.Array) -> jax.Array:
    """Return E[log(1 − D(G(z)))] from logits [B]; −log 2 at D = ½ (Goodfellow et al., eq. 1)."""
    return jnp.mean(jax.nn.log_sigmoid(-fake))


GENERATOR_LOSSES = {"non_saturating": non_saturating_loss, "minimax": minimax_loss}


@dataclass(frozen=True)
class GAN:
    """min_G max_D E_x[log D(x)] + E_z[log(1 − D(G(z)))], z ~ N(0, I).

    A step is one Adam step of the discriminator on −log D(x) − log(1 − D(G(z))), then one of the
    generator against the new discriminator, each with noise of its own. The generator maximises
    log D(G(z)) (`loss="non_saturating"`) or minimises log(1 − D(G(z))) (`"minimax"`). Images are
    scaled to [−1, 1] for the discriminator, and the generator's output passes through tanh;
    `sample` returns images in [0, 1].

    The defaults are the textbook chapter's networks, 100 → 256 → 512 → 1024 → 784 and
    784 → 1024 → 512 → 256 → 1 with ReLU: 2,946,577 parameters.

    Deviations from the chapter's listing:

    - Losses are taken on logits and are exact; the listing writes log(x + 0.01), which bounds both
      losses and biases their gradients.
    - Each player's step moves that player alone; the listing passes no list of variables to its
      optimisers, so that each of them moves both players.
    - The discriminator drops 0.3 of its units. The listing builds it with 0.5 and then feeds 0.3 to
      a placeholder that does not exist.
    - No batch normalisation: the chapter's text speaks of it, the listing has none.
    - Biases start at 0; the listing draws them like the weights (Glorot).
    - The rows are shuffled in every epoch.

    Deviations from Goodfellow et al. 2014:

    - Adam in place of SGD with momentum.
    - Gaussian noise, and ReLU throughout, in place of maxout discriminators and generators of mixed
      rectifiers and sigmoids.
    """

    family: ClassVar[str] = "GAN"
    density: ClassVar[Density] = "implicit"
    unit_interval: ClassVar[bool] = True

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    latent: int = 100
    """dimension of z"""
    generator: nn.Module = MLP((256, 512, 1024), "relu")
    """network from z to the image, before tanh"""
    discriminator: nn.Module = MLP((1024, 512, 256), "relu", dropout=0.3)
    """network from an image in [−1, 1] to the logit of D"""
    loss: Literal["non_saturating", "minimax"] = "non_saturating"
    """loss of the generator"""
    optimizer: AnyOptimizer = Optimizer("adam", learning_rate=2e-4)
    """optimiser of each player"""

    def __post_init__(self):
        check_fields(self, positive=("latent",))

    def init(self, key: jax.Array) -> State:
        generator_key, discriminator_key = jax.random.split(key)

        def player(net, key, example, needed):
            params, stats = nets.init(net, key, example)
            out, _ = nets.apply(net, params, stats, example)
            nets.check_output(net, out, needed)
            return Player(params, stats, optimize.init(self.optimizer, params))

        generator, discriminator = self._networks(None)
        z, x = jnp.zeros((1, self.latent)), jnp.zeros((1, *self.shape))
        return State(
            player(generator, generator_key, z, self.shape),
            player(discriminator, discriminator_key, x, ()),
        )

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take the discriminator's step, then the generator's, with separate noise."""
        discriminator_key, generator_key = jax.random.split(key)
        state, metrics = self.discriminator_step(
            state, batch, discriminator_key, axis_name=axis_name
        )
        state, more = self.generator_step(state, batch, generator_key, axis_name=axis_name)
        return state, metrics | more

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
          The next state, and the metrics `d_loss`, `d_real` and `d_fake`. The last two are the
          means of D(x) and D(G(z)) under dropout.
        """
        keys = jax.random.split(replica_key(key, axis_name), 4)
        noise_key, generator_key, real_key, fake_key = keys
        generator, discriminator = self._networks(axis_name)
        real = 2.0 * batch["x"] - 1.0
        z = jax.random.normal(noise_key, (len(real), self.latent))
        out, _ = _run(generator, state.generator, z, generator_key)
        fake = self._image(out)

        def loss(params):
            player = state.discriminator._replace(params=params)
            real_logits, stats = _run(discriminator, player, real, real_key)
            fake_logits, stats = _run(discriminator, player._replace(stats=stats), fake, fake_key)
            d_loss = discriminator_loss(real_logits.reshape(-1), fake_logits.reshape(-1))
            metrics = {
                "d_loss": d_loss,
                "d_real": jax.nn.sigmoid(real_logits).mean(),
                "d_fake": jax.nn.sigmoid(fake_logits).mean(),
            }
            return d_loss, (metrics, stats)

        player, metrics = self._update(loss, state.discriminator, axis_name)
        return state._replace(discriminator=player), metrics

    def generator_step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Move the generator alone, on as many samples as the batch has rows.

        Args:
          state: the state of both players.
          batch: training examples, of which only the number counts.
          key: the source of the noise and of dropout.
          axis_name: the mapped axis to average over, under `pmap`.

        Returns:
          The next state, and the metric `g_loss`.
        """
        noise_key, generator_key, dropout_key = jax.random.split(replica_key(key, axis_name), 3)
        generator, discriminator = self._networks(axis_name)
        z = jax.random.normal(noise_key, (len(batch["x"]), self.latent))

        def loss(params):
            player = state.generator._replace(params=params)
            out, stats = _run(generator, player, z, generator_key)
            fake, _ = _run(discriminator, state.discriminator, self._image(out), dropout_key)
            g_loss = GENERATOR_LOSSES[self.loss](fake.reshape(-1))
            return g_loss, ({"g_loss": g_loss}, stats)

        player, metrics = self._update(loss, state.generator, axis_name)
        return state._replace(generator=player), metrics

    def parameters(self, state: State) -> Any:
        """Return the parameters of both players."""
        return state.generator.params, state.discriminator.params

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return the discriminator's verdict, without dropout, on `data` and as many samples.

        `d_real` and `d_fake` are the means of D(x) and D(G(z)), and `d_accuracy` is the share that
        it classifies correctly. A GAN has no likelihood; these measure the game, not the samples.
        """
        _, discriminator = self._networks(None)
        params, stats, _ = state.discriminator

        def judge(batch, row_key):
            fake = 2.0 * self.sample(state, row_key, 1) - 1.0
            real_logit, _ = nets.apply(discriminator, params, stats, 2.0 * batch["x"] - 1.0)
            fake_logit, _ = nets.apply(discriminator, params, stats, fake)
            return real_logit.reshape(-1), fake_logit.reshape(-1)

        real, fake = estimate.per_example(judge, data, key)
        return {
            "d_real": estimate.mean(jax.nn.sigmoid(real), "exact"),
            "d_fake": estimate.mean(jax.nn.sigmoid(fake), "Monte Carlo"),
            "d_accuracy": estimate.mean(np.concatenate([real > 0, fake < 0]), "Monte Carlo"),
        }

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Draw z ~ N(0, I) and return G(z), scaled to [0, 1]: [n, *shape]."""
        generator, _ = self._networks(None)
        z = jax.random.normal(key, (n, self.latent))
        out, _ = nets.apply(generator, state.generator.params, state.generator.stats, z)
        return (self._image(out) + 1.0) / 2.0

    def _networks(self, axis_name: str | None) -> tuple[nn.Module, nn.Module]:
        """Return the generator and the discriminator."""
        generator = nets.fitted(self.generator, out=self.shape, axis_name=axis_name)
        return generator, nets.fitted(self.discriminator, out=(1,), axis_name=axis_name)

    def _image(self, out: jax.Array) -> jax.Array:
        """Return the generator's output as images in [−1, 1], [B, *shape]."""
        return jnp.tanh(out).reshape(-1, *self.shape)

    def _update(self, loss: Any, player: Player, axis_name: str | None) -> tuple[Player, Metrics]:
        """Take one optimiser step of a player on its loss."""
        gradient, (metrics, stats) = optimize.gradient(loss, player.params, axis_name)
        params, opt_state = optimize.update(
            self.optimizer, gradient, player.opt_state, player.params
        )
        return Player(params, stats, opt_state), metrics


def _run(net: nn.Module, player: Player, x: jax.Array, key: jax.Array) -> tuple[Any, Any]:
    """Run a player in training mode, with dropout and batch statistics."""
    return nets.apply(net, player.params, player.stats, x, train=True, key=key)
