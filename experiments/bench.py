"""Training speed of experiments, next to that of a large matrix product on the same machine."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import Experiment
from gen import data, train


class Speed(NamedTuple):
    """How fast an experiment trains."""

    steps_per_second: float
    compile_seconds: float  # until the first dispatch is done
    gflops: float | None  # that the steps reach; None where the compiler does not count


def matmul_gflops(size: int = 4096, repeats: int = 5) -> float:
    """The best rate of a float32 product of two [size, size] matrices."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.dot)
    product(a, a).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e9


def speed(experiment: Experiment, data_dir: Path | None, seconds: float) -> Speed:
    """Trains through `fit`, as `train` does, for about `seconds` after compiling."""
    dataset = data.load(experiment.data, data_dir)
    experiment = replace(experiment.on(dataset), seeds=())
    began = time.perf_counter()
    mark, marked_step, rate = 0.0, 0, 0.0
    for progress in train.fit(
        experiment.model,
        dataset.train,
        steps=10**9,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        decode=experiment.decode(dataset),
        report_every=50,
        steps_per_dispatch=experiment.steps_per_dispatch,
    ):
        if progress.metrics is None:  # at reports the device has caught up with the loop
            continue
        now = time.perf_counter()
        if not mark:
            compile_seconds, mark, marked_step = now - began, now, progress.step
            continue
        rate = (progress.step - marked_step) / (now - mark)
        if now - mark > seconds:
            break
    first = marked_step / rate
    flops = step_flops(experiment, dataset)
    return Speed(rate, compile_seconds - first, flops and flops * rate / 1e9)


def step_flops(experiment: Experiment, dataset: data.Dataset) -> float | None:
    """Floating-point operations of one step, as the compiler counts them."""
    model = experiment.model
    row = jax.ShapeDtypeStruct((experiment.batch_size, *dataset.shape), jnp.float32)
    state = jax.eval_shape(model.init, jax.random.key(0))
    compiled = jax.jit(model.step).lower(state, {"x": row}, jax.random.key(0)).compile()
    costs: Any = compiled.cost_analysis() or {}
    return costs.get("flops")


def table(rows: dict[str, Speed], peak: float, device: str) -> Any:
    """The speeds for the terminal."""
    from rich.table import Table

    out = Table(title=f"{device}; large matmul {peak:.0f} GFLOP/s")
    for column in ("experiment", "steps/s", "µs/step", "compile s", "GFLOP/s", "of matmul"):
        out.add_column(column, justify="left" if column == "experiment" else "right")
    for name, row in rows.items():
        share = (f"{row.gflops:.0f}", f"{row.gflops / peak:.0%}") if row.gflops else ("–", "–")
        micros = 1e6 / row.steps_per_second
        out.add_row(
            name,
            f"{row.steps_per_second:.0f}",
            f"{micros:.0f}",
            f"{row.compile_seconds:.1f}",
            *share,
        )
    return out


def as_json(rows: dict[str, Speed], peak: float, device: str) -> dict[str, Any]:
    """The same, to be stored."""
    return {
        "device": device,
        "matmul_gflops": round(peak, 1),
        "experiments": {
            name: {key: value and float(np.round(value, 2)) for key, value in row._asdict().items()}
            for name, row in rows.items()
        },
    }
