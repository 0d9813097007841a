"""A model of a density, applied to data with levels by uniform dequantization."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gen import estimate, nets
from gen.core import (
    CAPABILITIES,
    Batch,
    Data,
    Density,
    Metrics,
    Shape,
    capabilities,
    check_fields,
    facts,
    replica_key,
    require,
)
from gen.estimate import BOUND, Estimate
from gen.levels import check_levels, dequantize, quantize, to_floats


@dataclass(frozen=True)
class Dequantized:
    """P(k) = ∫ over the cell of k of p(y) dy, for levels k and a model p of a density.

    The cell of k = (k_1, …, k_D) consists of the points y = (k + u) / K with u in [0, 1)^D and has
    the volume K^−D. By Jensen's inequality

        log P(k) ≥ E_{u ~ U[0, 1)^D} log p((k + u) / K) − D log K

    (Theis, van den Oord & Bethge 2016, https://arxiv.org/abs/1511.01844, section 3.1). Each
    training step draws new u. There is a bound and no `log_prob`, whatever the density model has.
    Padded sequences are not taken: their padding has no cells.
    """

    base: Any
    """model of the density p"""
    shape: Shape = (28, 28, 1)
    """shape of one example"""
    levels: int = 256
    """number K of values that a variable can take"""

    def __post_init__(self):
        check_fields(self)
        require(self.levels > 1, f"Dequantized: levels is {self.levels}, must be 2 or more")
        require(
            facts(self.base).levels == 0,
            f"Dequantized: {type(self.base).__name__} is not a density model",
        )

    @property
    def family(self) -> str:
        """The family of the density model."""
        return self.base.family

    @property
    def density(self) -> Density:
        """The integral over a cell is bounded, not computed."""
        return "approximate"

    @property
    def classes(self) -> int:
        """The number of classes that condition the density model, or 0."""
        return facts(self.base).classes

    @property
    def codes(self) -> Literal["features", "noise"]:
        """The kind of the density model's codes."""
        return facts(self.base).codes

    @property
    def normal_codes(self) -> int:
        """The dimension of the density model's normal codes."""
        return facts(self._model).normal_codes

    @property
    def noise_times(self) -> tuple[float, ...]:
        """The times of the density model's noise at which it has hidden layers."""
        return facts(self.base).noise_times

    @property
    def completion(self) -> Literal["any", "raster", "order"]:
        """The masks for which the density model completes."""
        return facts(self.base).completion

    @property
    def sample_steps(self) -> int:
        """The steps of the density model's sampler."""
        return facts(self.base).sample_steps

    @property
    def metric_units(self) -> Mapping[str, str]:
        """The units of the density model's metrics."""
        return facts(self.base).metric_units

    @property
    def lacks(self) -> tuple[str, ...]:
        """Methods that are unavailable because the density model lacks them."""
        has = capabilities(self.base)
        return tuple(name for name in CAPABILITIES if name not in has)

    @property
    def _model(self) -> Any:
        return replace(self.base, shape=self.shape)

    def init(self, key: jax.Array) -> Any:
        """Return the first state of the density model."""
        return self._model.init(key)

    def begin(self, state: Any, batch: Batch, key: jax.Array) -> Any:
        """Let the density model begin from dequantized examples."""
        noise_key, key = jax.random.split(key)
        return self._model.begin(state, self._dequantized(batch, noise_key), key)

    def step(
        self, state: Any, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[Any, Metrics]:
        """Take a step of the density model on a dequantized batch; its metrics are logged."""
        noise_key, key = jax.random.split(key)
        noisy = self._dequantized(batch, replica_key(noise_key, axis_name))
        return self._model.step(state, noisy, key, axis_name=axis_name)

    def parameters(self, state: Any) -> Any:
        """Return the parameters of the density model."""
        return self._model.parameters(state)

    def evaluate(self, state: Any, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return the bound on −log P(k) as `nll`, from one dequantized copy of each example.

        `bits_per_dim` is the bound in bits per variable. Other estimates are the density model's,
        on the dequantized data.
        """
        check_levels(data, self.levels)
        noise_key, key = jax.random.split(key)
        x = estimate.per_example(
            lambda batch, row_key: self._dequantized(batch, row_key)["x"], data, noise_key
        )
        variables = math.prod(self.shape)
        results = {}
        for name, value in self._model.evaluate(state, {**data, "x": x}, key).items():
            if value.settings.get("density"):
                require(
                    "per" not in value.settings,
                    f"Dequantized: {type(self.base).__name__} gives {name} per "
                    f"{value.settings.get('per')}, needed are nats per example: per sequence",
                )
                require(
                    value.kind in BOUND,
                    f"Dequantized: {name} of {type(self.base).__name__} is of the kind "
                    f"{value.kind!r}, which gives no upper bound",
                )
                settings = {key: item for key, item in value.settings.items() if key != "density"}
                value = replace(
                    value,
                    value=value.value + variables * math.log(self.levels),
                    kind=BOUND[value.kind],
                    settings={**settings, "dequantized": "uniform"},
                )
            results[name] = value
        return {**results, "bits_per_dim": estimate.in_bits(results["nll"], variables)}

    def sample(
        self, state: Any, key: jax.Array, n: int, label: jax.Array | int | None = None
    ) -> jax.Array:
        """Draw from the density and return the levels whose cells the draws lie in: [n, *shape].

        Args:
          state: a state of the model.
          key: the source of every draw.
          n: the number of examples.
          label: the class of each example, [n] or one for all, for a model with classes.
        """
        condition = {"label": label} if self.classes else {}
        return quantize(self._model.sample(state, key, n, **condition), self.levels)

    def sample_in(self, state: Any, key: jax.Array, n: int, steps: int) -> jax.Array:
        """Return the levels of draws in another number of steps: [n, *shape].

        Args:
          state: a state of the model.
          key: the source of every draw.
          n: the number of examples.
          steps: steps of the density model's sampler.
        """
        return quantize(self._model.sample_in(state, key, n, steps), self.levels)

    def denoising(
        self,
        state: Any,
        key: jax.Array,
        n: int,
        frames: int,
        label: jax.Array | int | None = None,
    ) -> jax.Array:
        """Return the levels on the way from noise to data: [frames + 1, n, *shape].

        Args:
          state: a state of the model.
          key: the source of every draw.
          n: the number of examples.
          frames: the number of frames after the noise.
          label: the class of each example, as in `sample`.
        """
        condition = {"label": label} if self.classes else {}
        return quantize(self._model.denoising(state, key, n, frames, **condition), self.levels)

    def chains(self, state: Any, key: jax.Array, n: int, sweeps: int) -> jax.Array:
        """Return the levels of the density model's chains: [n, *shape].

        Args:
          state: a state of the model.
          key: the source of every draw.
          n: the number of chains.
          sweeps: Gibbs sweeps from the persistent chains.
        """
        return quantize(self._model.chains(state, key, n, sweeps), self.levels)

    def encode(self, state: Any, batch: Batch) -> jax.Array:
        """Return the code of the middle of the cell."""
        return self._model.encode(state, self._middle(batch))

    def posterior(self, state: Any, batch: Batch) -> Any:
        """Return the moments of q(z|x) of the middle of the cell."""
        return self._model.posterior(state, self._middle(batch))

    def layers(self, state: Any, batch: Batch, **noise: Any) -> list[jax.Array]:
        """Return the hidden layers of the density model at the middle of the cell.

        Args:
          noise: the time `t` of a model with `noise_times`.
        """
        return self._model.layers(state, self._middle(batch), **noise)

    def encoder_network(self, state: Any) -> tuple[nn.Module, Any]:
        """Return the density model's network of the middle of the cell."""
        network, variables = self._model.encoder_network(state)
        scale, shift = (self.levels - 1) / self.levels, 0.5 / self.levels
        return nets.Affine(network, scale, shift), nets.wrapped(variables)

    def decode(self, state: Any, z: jax.Array) -> jax.Array:
        """Return the levels of the decoded values, [B, *shape]."""
        return quantize(self._model.decode(state, z), self.levels)

    def reconstruct(self, state: Any, batch: Batch) -> jax.Array:
        """Return the levels of the reconstruction of the middle of the cell, [B, *shape]."""
        return quantize(self._model.reconstruct(state, self._middle(batch)), self.levels)

    def complete(self, state: Any, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """Return x with its hidden variables drawn given the middles of the shown cells."""
        x = to_floats(x, self.levels)
        middle = self._middle({"x": x})["x"]
        drawn = quantize(self._model.complete(state, middle, mask, key), self.levels)
        return jnp.where(jnp.broadcast_to(mask, x.shape) != 0, x, drawn)

    def objective(self, state: Any, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the density model's loss of each dequantized example, [B]."""
        noise_key, key = jax.random.split(key)
        return self._model.objective(state, self._dequantized(batch, noise_key), key)

    def score(self, state: Any, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the density model's score of each dequantized example, [B]."""
        noise_key, key = jax.random.split(key)
        return self._model.score(state, self._dequantized(batch, noise_key), key)

    def scores(self, state: Any, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """Return the density model's further scores of each dequantized example."""
        noise_key, key = jax.random.split(key)
        return self._model.scores(state, self._dequantized(batch, noise_key), key)

    def filters(self, state: Any) -> jax.Array:
        """Return the weights of each hidden unit of the density model, [H, *shape]."""
        return self._model.filters(state)

    def _dequantized(self, batch: Any, key: jax.Array) -> Any:
        """Return the batch with a uniform draw from the cell of each level."""
        x = batch["x"]
        return {**batch, "x": dequantize(x, self.levels, jax.random.uniform(key, np.shape(x)))}

    def _middle(self, batch: Any) -> Any:
        """Return the batch with the middle of the cell of each level."""
        return {**batch, "x": dequantize(batch["x"], self.levels, 0.5)}
