"""The losses of the discriminator and the generator, as functions of logits.

`real` are the discriminator's outputs D(x) for data and `fake` its outputs D(G(z)) for samples,
both [B] before any sigmoid. Where a paper writes D for a probability, that is σ(D) here. Both
players minimise their loss. Only the relativistic generator reads `real`.

| loss | value at the optimal discriminator |
|---|---|
| `minimax`, `non_saturating` | log 4 − 2 JSD(p ‖ q) |
| `least_squares` | 1 − ½ χ²(p + q ‖ 2q) |
| `hinge` | 2 − 2 TV(p, q) |
| `wasserstein` | −W₁(p, q), if D has the Lipschitz constant 1 |
| `relativistic` | log 2 where p = q |

The values are the discriminator's losses; p is the law of the data and q the law of the samples.
χ²(p + q ‖ 2q) = Σ (p − q)² / (p + q), and TV(p, q) = ½ Σ |p − q|.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

LossName = Literal[
    "non_saturating", "minimax", "least_squares", "hinge", "wasserstein", "relativistic"
]
"""The name of a loss pair in `LOSSES`."""


class Loss(NamedTuple):
    """The losses of the two players, each a function (real [B], fake [B]) ↦ []."""

    discriminator: Callable[[jax.Array, jax.Array], jax.Array]
    generator: Callable[[jax.Array, jax.Array], jax.Array]


def minimax_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return −E[log σ(D(x))] − E[log(1 − σ(D(G(z))))]; 2 log 2 where σ(D) = ½.

    Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661, eq. 1. Theorem 1: at the optimum it is
    log 4 − 2 JSD(p ‖ q).
    """
    return -jnp.mean(jax.nn.log_sigmoid(real)) - jnp.mean(jax.nn.log_sigmoid(-fake))


def minimax_generator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return E[log(1 − σ(D(G(z))))] (Goodfellow et al. 2014, eq. 1); −log 2 where σ(D) = ½."""
    return jnp.mean(jax.nn.log_sigmoid(-fake))


def non_saturating_generator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return −E[log σ(D(G(z)))] (Goodfellow et al. 2014, section 3); log 2 where σ(D) = ½."""
    return -jnp.mean(jax.nn.log_sigmoid(fake))


def least_squares_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return ½ E[(D(x) − 1)²] + ½ E[(D(G(z)) + 1)²].

    Mao et al. 2017, https://arxiv.org/abs/1611.04076, eq. 2 with the codes a = −1 for samples and
    b = 1 for data. The optimum is D = (p − q) / (p + q).
    """
    return 0.5 * jnp.mean((real - 1) ** 2) + 0.5 * jnp.mean((fake + 1) ** 2)


def least_squares_generator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return ½ E[D(G(z))²] (Mao et al. 2017, eq. 2 with the code c = 0).

    Together with ½ E[D(x)²], which does not depend on the generator, it is half the Pearson
    divergence χ²(p + q ‖ 2q) at the optimal discriminator.
    """
    return 0.5 * jnp.mean(fake**2)


def hinge_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return E[max(0, 1 − D(x))] + E[max(0, 1 + D(G(z)))].

    Lim & Ye 2017, https://arxiv.org/abs/1705.02894; Miyato et al. 2018,
    https://arxiv.org/abs/1802.05957, eq. 16. The optimum D = sign(p − q) gives 2 − 2 TV(p, q).
    """
    return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))


def wasserstein_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return E[D(G(z))] − E[D(x)] (Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875, eq. 3).

    Its minimum over functions D of Lipschitz constant 1 is −W₁(p, q) (eq. 2). The constant is held
    by a penalty, by clipping or by spectral normalisation.
    """
    return jnp.mean(fake) - jnp.mean(real)


def critic_generator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return −E[D(G(z))], for the Wasserstein loss (algorithm 1) and the hinge loss (eq. 17)."""
    return -jnp.mean(fake)


def relativistic_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return E[softplus(−(D(x) − D(G(z))))], each row of data beside one sample.

    Jolicoeur-Martineau 2019, https://arxiv.org/abs/1807.00734; Huang et al. 2024 (R3GAN),
    https://arxiv.org/abs/2501.05441, eq. 2, with penalties on both sides (`r1_r2`).
    """
    return jnp.mean(jax.nn.softplus(fake - real))


def relativistic_generator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return E[softplus(−(D(G(z)) − D(x)))], the discriminator's loss mirrored."""
    return jnp.mean(jax.nn.softplus(real - fake))


LOSSES: dict[LossName, Loss] = {
    "non_saturating": Loss(minimax_discriminator, non_saturating_generator),
    "minimax": Loss(minimax_discriminator, minimax_generator),
    "least_squares": Loss(least_squares_discriminator, least_squares_generator),
    "hinge": Loss(hinge_discriminator, critic_generator),
    "wasserstein": Loss(wasserstein_discriminator, critic_generator),
    "relativistic": Loss(relativistic_discriminator, relativistic_generator),
}
"""The loss pairs by name."""

PROBABILITIES = ("non_saturating", "minimax")
"""Losses under which σ(D(x)) is the probability that x is data."""

COMPARISONS = ("wasserstein", "relativistic")
"""Losses that do not change if a constant is added to D, so that 0 is no threshold."""


def generator_and_encoder(name: LossName, real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return the loss of a BiGAN's generator and encoder: L_G(real, fake) + L_G(−fake, −real), [].

    The second term is the mirror image of the generator's loss L_G, in which both logits change
    sign and places, and which moves the encoder. Under the minimax loss the sum is the negative of
    the discriminator's loss (Donahue et al. 2017, https://arxiv.org/abs/1605.09782, section 3). The
    relativistic loss is its own mirror image and counts once.

    Args:
      name: the loss.
      real: the logits D(x, E(x)), [B].
      fake: the logits D(G(z), z), [B].
    """
    generator = LOSSES[name].generator
    if name == "relativistic":
        return generator(real, fake)
    return generator(real, fake) + generator(-fake, -real)
