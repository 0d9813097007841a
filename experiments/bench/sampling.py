"""Speed of ancestral sampling from autoregressive models, with a cache and without.

The naive sampler runs the whole network for every variable. The model's own sampler keeps the parts
of the computation that all variables share in a cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.table import Table

from experiments.bench.timing import seconds_of
from experiments.experiment import Experiment
from gen import data, levels
from gen.distributions import categorical_from_uniform
from gen.models.autoregressive import Autoregressive


class Speed(NamedTuple):
    """The time of drawing images variable by variable."""

    n: int  # images, drawn at once
    cached_seconds: float
    naive_seconds: float

    @property
    def ratio(self) -> float:
        """The speed-up by the cache."""
        return self.naive_seconds / self.cached_seconds


def naive_samples(
    model: Autoregressive, params: Any, uniforms: jax.Array, first: int | None = None
) -> jax.Array:
    """Draw the samples that `model.ancestral` draws, without a cache, under the first mask.

    Args:
      model: the model.
      params: its parameters.
      uniforms: draws in [0, 1), [B, D], one for each variable.
      first: the number of variables to draw, the first ones in the order; None for all. The others
        are 0.

    Returns:
      [B, *shape].
    """

    def one_variable(x, d):
        logits = model.logits(params, x, 0, None)[:, d]
        value = levels.to_value(categorical_from_uniform(logits, uniforms[:, d]), model.levels)
        return x.reshape(len(x), -1).at[:, d].set(value).reshape(x.shape), None

    x = jnp.zeros((len(uniforms), *model.shape))
    return jax.lax.scan(one_variable, x, model.net.order(0, uniforms.shape[1])[:first])[0]


def speed(experiment: Experiment, data_dir: Path | None, n: int = 64) -> Speed:
    """Draw the same samples by both samplers, with the first parameters, after compiling.

    All passes of the naive sampler cost the same. So an eighth of them is run, and the time is
    multiplied by 8.

    Args:
      experiment: an experiment whose model is autoregressive.
      data_dir: the folder of prepared data sets, or None for the default.
      n: the number of samples.
    """
    experiment = experiment.on(data.load(experiment.data, data_dir)).for_run()
    model = experiment.model
    params = jax.jit(model.init)(jax.random.key(0)).params
    uniforms = jax.random.uniform(jax.random.key(1), (n, math.prod(model.shape)))
    size = uniforms.shape[1]
    part = math.ceil(size / 8)

    def cached(params, uniforms):
        hidden = jnp.zeros((n, *model.shape))
        return model.ancestral(params, uniforms, 0, hidden, jnp.zeros(model.shape, bool))[0]

    def naive(params, uniforms):
        return naive_samples(model, params, uniforms, part)

    cached_seconds, naive_seconds = (
        seconds_of(jax.jit(draw).lower(params, uniforms).compile(), params, uniforms)
        for draw in (cached, naive)
    )
    return Speed(n, cached_seconds, naive_seconds * size / part)


def table(speeds: Mapping[str, Speed]) -> Table:
    """Return a table of the speeds by the name of the experiment."""
    out = Table(title="ancestral sampling: seconds for images drawn at once")
    for column in ("experiment", "images", "cached", "naive", "ratio"):
        out.add_column(column, justify="left" if column == "experiment" else "right")
    for name, row in speeds.items():
        seconds = (f"{row.cached_seconds:.3f}", f"{row.naive_seconds:.2f}")
        out.add_row(name, str(row.n), *seconds, f"{row.ratio:.0f}×")
    return out


def as_json(speeds: Mapping[str, Speed]) -> dict[str, Any]:
    """Return the speeds for a JSON file, by the name of the experiment."""
    return {
        name: {
            "n": row.n,
            "cached_seconds": round(row.cached_seconds, 4),
            "naive_seconds": round(row.naive_seconds, 3),
        }
        for name, row in speeds.items()
    }
