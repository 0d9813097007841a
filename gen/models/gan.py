"""Generative adversarial networks.

Goodfellow et al. (2014), "Generative adversarial nets".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen import estimate
from gen.core import Batch, Data, Density, Metrics, Shape, descend, replica_key, require
from gen.estimate import Estimate
from gen.nets import MLP, Activation, apply, flatten


class State(NamedTuple):
    """Everything that training changes."""

    generator: Any  # kernels [in, out], biases [out]
    discriminator: Any  # kernels [in, out], biases [out]
    generator_opt: Any  # Adam's two moments, each shaped like generator, and its step count
    discriminator_opt: Any  # the same for the discriminator


def discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """−E[log D(x)] − E[log(1 − D(G(z)))] from logits D = σ(·), [B] each; 2 log 2 at D = ½."""
    return -jnp.mean(jax.nn.log_sigmoid(real)) - jnp.mean(jax.nn.log_sigmoid(-fake))


def non_saturating_loss(fake: jax.Array) -> jax.Array:
    """−E[log D(G(z))] from logits [B]; log 2 at D = ½ (Goodfellow et al. 2014, section 3)."""
    return -jnp.mean(jax.nn.log_sigmoid(fake))


def minimax_loss(fake: jax.Array) -> jax.Array:
    """E[log(1 − D(G(z)))] from logits [B]; −log 2 at D = ½ (Goodfellow et al. 2014, eq. 1)."""
    return jnp.mean(jax.nn.log_sigmoid(-fake))


GENERATOR_LOSSES = {"non_saturating": non_saturating_loss, "minimax": minimax_loss}


@dataclass(frozen=True)
class GAN:
    """min_G max_D E_x[log D(x)] + E_z[log(1 − D(G(z)))], z ~ N(0, I).

    A step is one Adam step of the discriminator on −log D(x) − log(1 − D(G(z))), then one of the
    generator against the new discriminator, each with noise of its own. The generator maximises
    log D(G(z)) (`loss="non_saturating"`) or minimises log(1 − D(G(z))) (`"minimax"`). Images are
    scaled to [−1, 1] for the discriminator; `sample` gives them in [0, 1].

    Deviations from the textbook chapter: the losses are taken on logits and are exact and stable;
    the chapter writes log(x + 0.01), which bounds both losses and biases the gradients. From
    Goodfellow et al. (2014): Adam in place of momentum SGD; Gaussian noise and ReLU throughout in
    place of maxout discriminators and mixed rectifier and sigmoid generators.
    """

    family: ClassVar[str] = "GAN"
    density: ClassVar[Density] = "implicit"

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    latent: int = 100
    """dimension of z"""
    generator: tuple[int, ...] = (256, 512, 1024)
    """widths of the generator's hidden layers"""
    discriminator: tuple[int, ...] = (1024, 512, 256)
    """widths of the discriminator's hidden layers"""
    activation: Activation = "relu"
    """nonlinearity of the hidden layers"""
    dropout: float = 0.3
    """share of units dropped after each hidden layer of the discriminator"""
    loss: Literal["non_saturating", "minimax"] = "non_saturating"
    """what the generator minimises"""
    learning_rate: float = 2e-4
    """step size of Adam, for both players"""
    b1: float = 0.9
    """Adam's decay of the running mean of gradients, for both players"""

    def __post_init__(self):
        widths = (*self.generator, self.latent, *self.discriminator)
        require(min(widths) > 0, f"GAN: widths {widths} must be positive")
        require(0 <= self.dropout < 1, f"GAN: dropout is {self.dropout}, must be in [0, 1)")
        require(0 <= self.b1 < 1, f"GAN: b1 is {self.b1}, must be in [0, 1)")
        require(self.learning_rate > 0, f"GAN: learning_rate is {self.learning_rate}, must be > 0")

    def init(self, key: jax.Array) -> State:
        generator_key, discriminator_key = jax.random.split(key)
        generator = self._generator.init(generator_key, jnp.zeros((1, self.latent)))
        discriminator = self._discriminator.init(
            discriminator_key, jnp.zeros((1, math.prod(self.shape)))
        )
        return State(
            generator,
            discriminator,
            self._optimizer.init(generator),
            self._optimizer.init(discriminator),
        )

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """The discriminator's step, then the generator's, with separate noise."""
        discriminator_key, generator_key = jax.random.split(key)
        state, metrics = self.discriminator_step(
            state, batch, discriminator_key, axis_name=axis_name
        )
        state, more = self.generator_step(state, batch, generator_key, axis_name=axis_name)
        return state, metrics | more

    def discriminator_step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Moves the discriminator only. Logs `d_loss`, and the means `d_real` of D(x) and `d_fake`
        of D(G(z)), dropout on."""
        noise_key, real_key, fake_key = jax.random.split(replica_key(key, axis_name), 3)
        real = 2.0 * flatten(batch["x"]) - 1.0
        fake = self._generate(state.generator, noise_key, len(real))

        def loss(discriminator):
            real_logits = self._judge(discriminator, real, real_key)
            fake_logits = self._judge(discriminator, fake, fake_key)
            d_loss = discriminator_loss(real_logits, fake_logits)
            return d_loss, {
                "d_loss": d_loss,
                "d_real": jax.nn.sigmoid(real_logits).mean(),
                "d_fake": jax.nn.sigmoid(fake_logits).mean(),
            }

        discriminator, opt_state, metrics = descend(
            loss, self._optimizer, state.discriminator, state.discriminator_opt, axis_name
        )
        return state._replace(discriminator=discriminator, discriminator_opt=opt_state), metrics

    def generator_step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Moves the generator only, on as many samples as the batch has rows. Logs `g_loss`."""
        noise_key, dropout_key = jax.random.split(replica_key(key, axis_name))

        def loss(generator):
            fake = self._generate(generator, noise_key, len(batch["x"]))
            g_loss = GENERATOR_LOSSES[self.loss](
                self._judge(state.discriminator, fake, dropout_key)
            )
            return g_loss, {"g_loss": g_loss}

        generator, opt_state, metrics = descend(
            loss, self._optimizer, state.generator, state.generator_opt, axis_name
        )
        return state._replace(generator=generator, generator_opt=opt_state), metrics

    def parameters(self, state: State) -> Any:
        """Of both players."""
        return state.generator, state.discriminator

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """What the final discriminator, without dropout, makes of `data` and of as many samples:
        `d_real` and `d_fake`, the means of D(x) and D(G(z)), and `d_accuracy`, the share that it
        tells right. A GAN has no likelihood, and these measure the game, not the samples."""

        def judge(batch, row_key):
            real = 2.0 * flatten(batch["x"]) - 1.0
            fake = self._generate(state.generator, row_key, 1)
            return self._judge(state.discriminator, real), self._judge(state.discriminator, fake)

        real, fake = estimate.per_example(judge, data, key)
        return {
            "d_real": estimate.mean(jax.nn.sigmoid(real), "exact"),
            "d_fake": estimate.mean(jax.nn.sigmoid(fake), "Monte Carlo"),
            "d_accuracy": estimate.mean(np.concatenate([real > 0, fake < 0]), "Monte Carlo"),
        }

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """G(z) with z ~ N(0, I), scaled to [0, 1]: [n, *shape]."""
        x = self._generate(state.generator, key, n)
        return jnp.reshape((x + 1.0) / 2.0, (n, *self.shape))

    @property
    def _generator(self) -> MLP:
        return MLP(self.generator, math.prod(self.shape), self.activation)

    @property
    def _discriminator(self) -> MLP:
        return MLP(self.discriminator, 1, self.activation, self.dropout)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate, b1=self.b1)

    def _generate(self, generator: Any, key: jax.Array, n: int) -> jax.Array:
        """G(z), [n, D] in [−1, 1]."""
        z = jax.random.normal(key, (n, self.latent))
        return jnp.tanh(apply(self._generator, generator, z))

    def _judge(self, discriminator: Any, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The logit of D(x), [B]; with a key, under dropout."""
        rngs = None if key is None else {"dropout": key}
        return apply(self._discriminator, discriminator, x, key is not None, rngs=rngs)[:, 0]
