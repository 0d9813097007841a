"""Speed of diffusion models: training, and sampling by each sampler in few and in many steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from rich.table import Table

from experiments.bench.timing import seconds_of
from experiments.experiment import Experiment
from gen import data
from gen.models.diffusion import FlowMatching, GaussianDiffusion
from gen.models.diffusion.samplers import Sampler

NAMES = ("diffusion_mnist_small", "discrete_diffusion_binarized_mnist")
"""Experiments whose models are timed, in the sizes that they have there."""
STEPS = (10, 50, 250)
"""Numbers of sampling steps."""


class Sampling(NamedTuple):
    """The speed of one sampler in one number of steps."""

    sampler: str
    steps: int
    calls: int  # of the network, for one batch of samples
    samples_per_second: float


class Speed(NamedTuple):
    """The speed of a model after compiling."""

    examples_per_second: float  # in training, by batches of 100
    drawn: int  # samples drawn at once
    sampling: list[Sampling]


def speed(
    experiment: Experiment, data_dir: Path | None, seconds: float, batch: int = 100, n: int = 16
) -> Speed:
    """Train a model, and draw samples in each way, with the first parameters.

    Args:
      experiment: an experiment whose model is a diffusion model.
      data_dir: the folder of prepared data sets, or None for the default.
      seconds: the time to train for.
      batch: examples in a training step.
      n: the number of samples drawn at once.
    """
    experiment = experiment.on(data.load(experiment.data, data_dir)).for_run()
    model, key = experiment.model, jax.random.key(1)
    state = jax.jit(model.init)(jax.random.key(0))
    examples = {"x": jnp.zeros((batch, *model.shape)), "label": jnp.zeros(batch, jnp.int32)}
    step = jax.jit(model.step).lower(state, examples, key).compile()
    trained, spent = 0, 0.0
    while spent < seconds:
        spent += seconds_of(step, state, examples, key)
        trained += batch
    samplers = get_args(Sampler) if has_samplers(model) else ("ancestral",)
    sampling = [
        _sampling(model, state, sampler, steps, n) for sampler in samplers for steps in STEPS
    ]
    return Speed(trained / spent, n, sampling)


def has_samplers(model: Any) -> bool:
    """Return whether a model can be sampled by each `Sampler`: whether its noise is Gaussian."""
    return isinstance(model, GaussianDiffusion | FlowMatching)


def _sampling(model: Any, state: Any, sampler: str, steps: int, n: int) -> Sampling:
    """Draw n samples once, after compiling."""
    choice = {"sampler": sampler} if has_samplers(model) else {}
    model, key = replace(model, sample_steps=steps, **choice), jax.random.key(2)
    draw = jax.jit(model.sample, static_argnums=2).lower(state, key, n).compile()
    calls = steps * (2 if sampler == "heun" else 1)  # Heun's method calls the network twice a step
    if isinstance(model, GaussianDiffusion) and model.guidance > 0:  # with labels, and without
        calls *= 2
    return Sampling(sampler, steps, calls, n / seconds_of(draw, state, key))


def table(speeds: Mapping[str, Speed]) -> Table:
    """Return a table of the speeds by the name of the experiment."""
    out = Table(title="diffusion: samples per second, and training examples per second")
    for column in ("experiment", "sampler", "steps", "network calls", "per second"):
        out.add_column(column, justify="left" if column in ("experiment", "sampler") else "right")
    for name, row in speeds.items():
        out.add_row(name, "(training)", "–", "–", f"{row.examples_per_second:.4g}")
        for way in row.sampling:
            numbers = (str(way.steps), str(way.calls), f"{way.samples_per_second:.3g}")
            out.add_row(name, way.sampler, *numbers)
    return out


def as_json(speeds: Mapping[str, Speed]) -> dict[str, Any]:
    """Return the speeds for a JSON file, by the name of the experiment."""
    return {
        name: {**row._asdict(), "sampling": [way._asdict() for way in row.sampling]}
        for name, row in speeds.items()
    }
