"""Speed of diffusion models: of training, and of sampling by each sampler in few and many steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp

from experiments.experiment import Experiment
from gen import data
from gen.models.diffusion.samplers import Sampler

NAMES = ("diffusion_mnist_small", "discrete_diffusion_binarized_mnist")
"""The experiments whose models are timed, at the sizes that they have there."""

STEPS = (10, 50, 250)
TWICE = "heun"
"""The sampler that calls the net twice in a step; the others call it once."""


class Sampling(NamedTuple):
    """One way to sample."""

    sampler: str
    steps: int
    calls: int  # of the net
    samples_per_second: float


class Speeds(NamedTuple):
    """How fast a model is, after compiling."""

    examples_per_second: float  # in training, by batches of 100
    drawn: int  # samples, at once
    sampling: list[Sampling]


def speeds(
    experiment: Experiment, data_dir: Path | None, seconds: float, batch: int = 100, n: int = 16
) -> Speeds:
    """Of training for about `seconds`, and of drawing n samples once in each way, at the first
    weights, which take as long as any."""
    model = experiment.on(data.load(experiment.data, data_dir)).model
    state = jax.jit(model.init)(jax.random.key(0))
    examples = {"x": jnp.zeros((batch, *model.shape)), "label": jnp.zeros(batch, jnp.int32)}
    step = jax.jit(model.step).lower(state, examples, jax.random.key(1)).compile()
    taken, spent = 0, 0.0
    while spent < seconds:
        spent += _seconds(step, state, examples, jax.random.key(1))
        taken += 1
    sampling = [
        _sampling(model, state, sampler, steps, n)
        for sampler in (get_args(Sampler) if hasattr(model, "sampler") else ("ancestral",))
        for steps in STEPS
    ]
    return Speeds(batch * taken / spent, n, sampling)


def _sampling(model: Any, state: Any, sampler: str, steps: int, n: int) -> Sampling:
    chosen = {"sampler": sampler} if hasattr(model, "sampler") else {}
    way = replace(model, sample_steps=steps, **chosen)
    key = jax.random.key(2)
    draw = jax.jit(way.sample, static_argnums=2).lower(state, key, n).compile()
    guided = getattr(model, "guidance", 0) > 0  # then a call with labels, and one without
    calls = steps * (2 if sampler == TWICE else 1) * (2 if guided else 1)
    return Sampling(sampler, steps, calls, n / _seconds(draw, state, key))


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """That one call takes."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def table(found: dict[str, Speeds]) -> Any:
    """The speeds for the terminal."""
    from rich.table import Table

    out = Table(title="diffusion: samples, and in training examples, a second")
    for column in ("experiment", "sampler", "steps", "calls of the net", "a second"):
        out.add_column(column, justify="left" if column in ("experiment", "sampler") else "right")
    for name, row in found.items():
        out.add_row(name, "(training)", "–", "–", f"{row.examples_per_second:.4g}")
        for way in row.sampling:
            numbers = (str(way.steps), str(way.calls), f"{way.samples_per_second:.3g}")
            out.add_row(name, way.sampler, *numbers)
    return out


def as_json(found: dict[str, Speeds]) -> dict[str, Any]:
    """The same, to be stored."""
    return {
        name: {**row._asdict(), "sampling": [way._asdict() for way in row.sampling]}
        for name, row in found.items()
    }
