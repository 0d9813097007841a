"""Speed of training steps, beside a large matrix product on the same machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from rich.table import Table

from experiments.bench.timing import seconds_of
from experiments.experiment import Experiment
from gen import data


class Speed(NamedTuple):
    """The speed of training an experiment."""

    steps_per_second: float
    compile_seconds: float  # from the call of `fit` to its first step
    gflops: float | None  # GFLOP/s of the steps; None for a step with a loop


def matmul_gflops(size: int = 4096, repeats: int = 5) -> float:
    """Return the best GFLOP/s of a float32 product of two [size, size] matrices."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.dot)
    seconds_of(product, a, a)  # compiles
    return 2 * size**3 / min(seconds_of(product, a, a) for _ in range(repeats)) / 1e9


def speed(experiment: Experiment, data_dir: Path | None, seconds: float) -> Speed:
    """Train an experiment through `fit`, one seed, and measure the speed after compiling.

    Args:
      experiment: the experiment.
      data_dir: the folder of prepared data sets, or None for the default.
      seconds: the time to train for.
    """
    dataset = data.load(experiment.data, data_dir)
    experiment = experiment.on(dataset).for_run()
    began = time.perf_counter()
    reports = []  # (steps done, seconds since the start); the device has caught up at a report
    options = {"steps": 10**9, "seed": experiment.seed, "report_every": 50, "validate_every": 0}
    for progress in experiment.fit(dataset, **options):
        if progress.metrics is not None:
            reports.append((progress.step, time.perf_counter() - began))
            if reports[-1][1] - reports[0][1] > seconds:
                break
    (first_steps, first), (last_steps, last) = reports[0], reports[-1]
    rate = (last_steps - first_steps) / (last - first)
    flops = step_flops(experiment, dataset)
    return Speed(rate, first - first_steps / rate, flops and flops * rate / 1e9)


def step_flops(experiment: Experiment, dataset: data.Dataset) -> float | None:
    """Return the floating-point operations of one training step, as the compiler counts them.

    XLA counts the body of a loop once, however often it runs. So a step with a loop has no count,
    and neither has a step on a backend that does not count.
    """
    model = experiment.model
    batch = {
        name: jax.ShapeDtypeStruct(
            (experiment.batch_size, *values.shape[1:]),
            jnp.float32 if name == "x" else values.dtype,
        )
        for name, values in dataset.train.items()
    }
    key = jax.random.key(0)
    state = jax.eval_shape(model.init, key)
    if has_loop(jax.make_jaxpr(model.step)(state, batch, key)):
        return None
    costs: Any = jax.jit(model.step).lower(state, batch, key).compile().cost_analysis() or {}
    return costs.get("flops")


def has_loop(program: ClosedJaxpr) -> bool:
    """Return whether a program has a loop, apart from loops that are unrolled completely."""
    return any(
        equation.primitive.name == "while"
        or (
            equation.primitive.name == "scan"
            and equation.params["unroll"] < equation.params["length"]
        )
        for equation in _equations(program.jaxpr)
    )


def _equations(program: Jaxpr) -> Iterator[JaxprEqn]:
    """Yield the equations of a program and of the programs in their parameters."""
    for equation in program.eqns:
        yield equation
        for part in jax.tree.leaves(equation.params):
            if isinstance(part, ClosedJaxpr):
                yield from _equations(part.jaxpr)
            elif isinstance(part, Jaxpr):
                yield from _equations(part)


def table(speeds: Mapping[str, Speed], peak: float, device: str) -> Table:
    """Return a table of the speeds.

    Args:
      speeds: by the name of the experiment.
      peak: GFLOP/s of a large matrix product.
      device: the name of the device.
    """
    out = Table(
        title=f"training on {device}; large matmul {peak:.0f} GFLOP/s",
        caption="GFLOP/s is left out where a step has a loop, whose body the compiler counts once",
    )
    for column in ("experiment", "steps/s", "µs/step", "compile s", "GFLOP/s", "of matmul"):
        out.add_column(column, justify="left" if column == "experiment" else "right")
    for name, row in speeds.items():
        share = (f"{row.gflops:.0f}", f"{row.gflops / peak:.0%}") if row.gflops else ("–", "–")
        micros = 1e6 / row.steps_per_second
        times = (f"{row.steps_per_second:.0f}", f"{micros:.0f}", f"{row.compile_seconds:.1f}")
        out.add_row(name, *times, *share)
    return out


def as_json(speeds: Mapping[str, Speed]) -> dict[str, Any]:
    """Return the speeds for a JSON file, by the name of the experiment."""
    return {
        name: {field: value and float(np.round(value, 2)) for field, value in row._asdict().items()}
        for name, row in speeds.items()
    }
