"""InfoGAN's codes and the bound on their mutual information with the image.

Chen et al. 2016, "InfoGAN: interpretable representation learning by information maximizing
generative adversarial nets", https://arxiv.org/abs/1606.03657.

A vector of codes [K_1 + ... + K_J + continuous] has J categorical codes, each one-hot among K_j
classes of equal probability, and then continuous codes, each uniform in [−1, 1]. The parameters of
the posterior Q(c|x) are the logits of each categorical code, and then the means and the
log-variances of the continuous ones, which are Gaussian under Q. A variance that is fixed is not
among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gen.distributions import gaussian_log_prob


def draw_codes(key: jax.Array, n: int, categorical: Sequence[int], continuous: int) -> jax.Array:
    """Draw n vectors of codes from their prior, [n, sum(categorical) + continuous].

    Args:
      key: the source of the draws.
      n: the number of vectors.
      categorical: the number of classes of each categorical code.
      continuous: the number of continuous codes.
    """
    keys = jax.random.split(key, len(categorical) + 1)
    parts = [
        jax.nn.one_hot(jax.random.randint(key, (n,), 0, classes), classes)
        for key, classes in zip(keys, categorical, strict=False)
    ]
    parts.append(jax.random.uniform(keys[-1], (n, continuous), minval=-1.0, maxval=1.0))
    return jnp.concatenate(parts, axis=1)


def posterior_size(
    categorical: Sequence[int], continuous: int, variance: float | None = None
) -> int:
    """Return the number of parameters of Q(c|x).

    Args:
      categorical: the number of classes of each categorical code.
      continuous: the number of continuous codes.
      variance: the variance of each continuous code under Q, or None where it is learned.
    """
    return sum(categorical) + (2 if variance is None else 1) * continuous


def information_bound(
    codes: jax.Array,
    posterior: jax.Array,
    categorical: Sequence[int],
    continuous: int,
    variance: float | None = None,
) -> jax.Array:
    """Return H(c) + log Q(c|x) of each pair (c, x), [B] nats.

    Its mean L_I(G, Q) ≤ I(c; G(z, c)) (Chen et al. 2016, eq. 5), with equality where Q is the true
    posterior. H(c) = Σ_j log K_j + `continuous` · log 2.

    Args:
      codes: the codes c that G was given, [B, sum(categorical) + continuous].
      posterior: the parameters of Q(c|x) at x = G(z, c), [B, posterior_size].
      categorical: the number of classes of each categorical code.
      continuous: the number of continuous codes.
      variance: the variance of each continuous code under Q; None: `posterior` has log-variances.
    """
    entropy = sum(math.log(classes) for classes in categorical) + continuous * math.log(2)
    ends = np.cumsum(categorical, dtype=int)
    *one_hots, values = jnp.split(codes, ends, axis=1)
    *logits, moments = jnp.split(posterior, ends, axis=1)
    log_q = jnp.zeros(len(codes))
    for one_hot, logit in zip(one_hots, logits, strict=True):
        log_q += jnp.sum(one_hot * jax.nn.log_softmax(logit), axis=1)
    if continuous:
        if variance is None:
            mean, logvar = jnp.split(moments, 2, axis=1)
        else:
            mean, logvar = moments, jnp.full_like(moments, math.log(variance))
        log_q += gaussian_log_prob(values, mean, logvar)
    return entropy + log_q


def posterior_means(posterior: jax.Array, categorical: Sequence[int], continuous: int) -> jax.Array:
    """Return E_Q[c|x]: the probabilities of the categorical codes, the means of the others.

    Args:
      posterior: the parameters of Q(c|x), [B, posterior_size].
      categorical: the number of classes of each categorical code.
      continuous: the number of continuous codes.

    Returns:
      [B, sum(categorical) + continuous], in the order of the codes.
    """
    *logits, moments = jnp.split(posterior, np.cumsum(categorical, dtype=int), axis=1)
    return jnp.concatenate([*map(jax.nn.softmax, logits), moments[:, :continuous]], axis=1)


def normalized_information(code: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return values of each example whose mean is the normalised mutual information NMI, [N].

    NMI = 2 I(c; y) / S with S = H(c) + H(y), of the relative frequencies p of the pairs (c, y): a
    plug-in estimate, which is too large by about (classes of c − 1)(classes of y − 1) / (N S). It
    is 0 where S is 0. The value of an example is NMI plus its influence,

    2 (H(c, y) (−log p(c) − log p(y)) + S log p(c, y)) / S²,

    so that s / √N is the standard error of the delta method.

    Args:
      code: the class c of each example, [N] integers.
      label: its label y, [N] integers.
    """
    counts = np.zeros((code.max() + 1, label.max() + 1), int)
    np.add.at(counts, (code, label), 1)
    surprises = [
        -np.log(each / len(code))
        for each in (counts[code, label], counts.sum(1)[code], counts.sum(0)[label])
    ]
    joint, code_entropy, label_entropy = (surprise.mean() for surprise in surprises)
    total = code_entropy + label_entropy
    if total == 0:
        return np.zeros(len(code))
    influence = 2 * (joint * (surprises[1] + surprises[2]) - total * surprises[0]) / total**2
    return 2 * (total - joint) / total + influence
