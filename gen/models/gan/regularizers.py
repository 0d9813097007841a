"""Gradient penalties, spectral normalisation and weight clipping of the discriminator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

PenaltyName = Literal["none", "gradient_penalty", "r1", "r1_r2"]
"""The name of a gradient penalty."""

PENALTY_WEIGHTS: dict[PenaltyName, float] = {"gradient_penalty": 10.0, "r1": 10.0, "r1_r2": 10.0}
"""The default weight of each penalty: λ of Gulrajani et al., and 10, as Mescheder et al. take for
R1. R3GAN sets γ for each data set."""

Inputs = Mapping[str, jax.Array]
"""The discriminator's input: `"x"` [B, *shape] in [−1, 1], and for a BiGAN `"z"` [B, latent]."""

SMALLEST = 1e-12
"""Number below which a norm counts as 0, and which is added under a root, whose slope at 0 is
infinite."""


def squared_slopes(critic: Callable[[Inputs], jax.Array], inputs: Inputs) -> jax.Array:
    """Return the squared norm of each logit's gradient by its inputs, [L].

    A logit depends on the rows of its own pack alone, so one backward pass gives all gradients.
    Batch normalisation would make it depend on all rows.

    Args:
      critic: maps inputs of B rows to logits [L]. A logit belongs to B / L rows in succession.
      inputs: arrays [B, ...].
    """
    logits, pull = jax.vjp(critic, inputs)
    (gradients,) = pull(jnp.ones_like(logits))
    rows = [x.reshape(len(logits), -1) for x in jax.tree.leaves(gradients)]
    return jnp.sum(jnp.concatenate(rows, axis=1) ** 2, axis=1)


def penalty(
    name: PenaltyName,
    critic: Callable[[Inputs], jax.Array],
    real: Inputs,
    fake: Inputs,
    key: jax.Array,
    pack: int = 1,
) -> jax.Array:
    """Return a gradient penalty of weight 1, [].

    - `gradient_penalty`: E[(‖∇D(x̂)‖ − 1)²] at x̂ = u x + (1 − u) G(z), u ~ U(0, 1) (WGAN-GP,
      Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028, eq. 3 and algorithm 1).
    - `r1`: ½ E[‖∇D(x)‖²] at data (Mescheder et al. 2018, https://arxiv.org/abs/1801.04406, eq. 9).
    - `r1_r2`: the sum of `r1` and the same at samples, ½ E[‖∇D(G(z))‖²] (eq. 10), as R3GAN has it
      (Huang et al. 2024, https://arxiv.org/abs/2501.05441).

    Args:
      name: the penalty.
      critic: maps inputs to logits.
      real: inputs with data, [B, ...].
      fake: inputs with samples, [B, ...].
      key: the source of u.
      pack: rows that share a logit, and therefore u.
    """
    if name == "gradient_penalty":
        u = jnp.repeat(jax.random.uniform(key, (len(real["x"]) // pack,)), pack)

        def between(x: jax.Array, sample: jax.Array) -> jax.Array:
            weight = u.reshape(-1, *[1] * (x.ndim - 1))
            return weight * x + (1 - weight) * sample

        slopes = jnp.sqrt(squared_slopes(critic, jax.tree.map(between, real, fake)) + SMALLEST)
        return jnp.mean((slopes - 1) ** 2)
    value = 0.5 * jnp.mean(squared_slopes(critic, real))
    return value + 0.5 * jnp.mean(squared_slopes(critic, fake)) if name == "r1_r2" else value


def kernels(params: Any) -> dict[str, jax.Array]:
    """Return every kernel of D as a matrix W [in, out], by its path in the parameters.

    A kernel is an array of two or more axes, of which the last counts the outputs. The layers of
    InfoGAN's Q alone are left out. A convolution's
    [rows, columns, in, out] becomes [rows · columns · in, out], as in Miyato et al. 2018,
    so that its singular value differs from the norm of the convolution as a linear map.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path): w.reshape(-1, w.shape[-1])
        for path, w in leaves
        if w.ndim > 1 and not of_posterior(path)
    }


def of_posterior(path: Any) -> bool:
    """Return whether a parameter is of the layers of InfoGAN's Q that D does not share (`Heads`).

    A bound on the slope of D is no bound on Q, whose likelihood needs sharp outputs.
    """
    return jax.tree_util.keystr(path).startswith("['posterior")


def first_vectors(params: Any, key: jax.Array) -> dict[str, jax.Array]:
    """Draw the vector u [out] of each kernel, from which power iteration starts."""
    matrices = kernels(params)
    keys = jax.random.split(key, max(1, len(matrices)))
    return {
        path: unit(jax.random.normal(key, w.shape[1:]))
        for key, (path, w) in zip(keys, matrices.items(), strict=False)
    }


def power_iteration(params: Any, vectors: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Return u ← Wᵀ v / ‖Wᵀ v‖ with v = W u / ‖W u‖ for each kernel.

    Miyato et al. 2018, "Spectral normalization", https://arxiv.org/abs/1802.05957, algorithm 1,
    whose W is transposed. One iteration in each step suffices, because the kernels move slowly.

    Args:
      params: the network's parameters.
      vectors: u [out] of each kernel, by path.
    """
    matrices = jax.lax.stop_gradient(kernels(params))
    return {path: unit(w.T @ unit(w @ vectors[path])) for path, w in matrices.items()}


def spectrally_normalized(params: Any, vectors: Mapping[str, jax.Array]) -> Any:
    """Return the parameters with each kernel of `kernels` divided by its largest singular value σ.

    σ = vᵀ W u with v = W u / ‖W u‖. The gradient takes u and v as constants. Other arrays, such as
    biases, stay.

    Args:
      params: the network's parameters.
      vectors: u [out] of each kernel, by path.
    """
    singular_values = {}
    for path, w in kernels(params).items():
        v = jax.lax.stop_gradient(unit(w @ vectors[path]))
        singular_values[path] = jnp.maximum(v @ w @ vectors[path], SMALLEST)

    def divide(path: Any, w: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        return w / singular_values[name] if name in singular_values else w

    return jax.tree_util.tree_map_with_path(divide, params)


def unit(vector: jax.Array) -> jax.Array:
    """Return a vector of length 1, or 0 for a vector of length 0."""
    return vector / jnp.maximum(jnp.linalg.norm(vector), SMALLEST)


def clipped(params: Any, bound: float) -> Any:
    """Return the parameters of D clipped to [−bound, bound]. InfoGAN's Q alone stays.

    WGAN, Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875, algorithm 1, where bound is 0.01.
    """

    def clip(path: Any, w: jax.Array) -> jax.Array:
        return w if of_posterior(path) else jnp.clip(w, -bound, bound)

    return jax.tree_util.tree_map_with_path(clip, params)
