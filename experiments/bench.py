"""Speed of training, next to that of a large matrix product on the same machine, and of sampling
variable by variable, with what the nets cache and without."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import Experiment
from gen import data, train
from gen.models.autoregressive import Autoregressive
from gen.models.autoregressive.model import invert


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
    batch = {
        name: jax.ShapeDtypeStruct(
            (experiment.batch_size, *of.shape[1:]), jnp.float32 if name == "x" else of.dtype
        )
        for name, of in dataset.train.items()
    }
    state = jax.eval_shape(model.init, jax.random.key(0))
    compiled = jax.jit(model.step).lower(state, batch, jax.random.key(0)).compile()
    costs: Any = compiled.cost_analysis() or {}
    return costs.get("flops")


class Sampling(NamedTuple):
    """How fast a model draws its variables one after another."""

    n: int  # images, drawn at once
    cached_seconds: float
    naive_seconds: float  # by a pass through the whole net for each variable (see `sampling`)

    @property
    def ratio(self) -> float:
        return self.naive_seconds / self.cached_seconds


def naive_samples(
    model: Autoregressive, params: Any, uniforms: jax.Array, first: int | None = None
) -> jax.Array:
    """What `model.ancestral` draws under its first mask, without a cache: [B, *shape]; of the
    `first` variables in order alone, if that is given."""

    def one_variable(x, d):
        logits = model.net.logits(params, x, 0)[:, d]
        value = invert(logits, uniforms[:, d]) / (model.levels - 1)
        return x.reshape(len(x), -1).at[:, d].set(value).reshape(x.shape), None

    x = jnp.zeros((len(uniforms), *model.shape))
    return jax.lax.scan(one_variable, x, model.net.order(0, uniforms.shape[1])[:first])[0]


def sampling(experiment: Experiment, data_dir: Path | None, n: int = 64) -> Sampling | None:
    """Both samplers from the same uniforms at the first weights, after compiling; None for a model
    that does not draw variable by variable. Every pass of the naive one costs the same, so an
    eighth of them is run, and the time taken eightfold."""
    model = experiment.on(data.load(experiment.data, data_dir)).model
    if not isinstance(model, Autoregressive):
        return None
    params = jax.jit(model.init)(jax.random.key(0)).params
    uniforms = jax.random.uniform(jax.random.key(1), (n, math.prod(model.shape)))

    def cached(params, uniforms):
        nothing = jnp.zeros((n, *model.shape))
        return model.ancestral(params, uniforms, 0, nothing, jnp.zeros(model.shape, bool))[0]

    size = uniforms.shape[1]
    part = math.ceil(size / 8)

    def naive(params, uniforms):
        return naive_samples(model, params, uniforms, part)

    seconds = []
    for draw in (cached, naive):
        compiled = jax.jit(draw).lower(params, uniforms).compile()
        began = time.perf_counter()
        jax.block_until_ready(compiled(params, uniforms))
        seconds.append(time.perf_counter() - began)
    return Sampling(n, seconds[0], seconds[1] * size / part)


def sampling_table(rows: dict[str, Sampling]) -> Any:
    """The samplers for the terminal."""
    from rich.table import Table

    out = Table(title="sampling: seconds for so many images, drawn at once")
    for column in ("experiment", "images", "cached", "naive", "ratio"):
        out.add_column(column, justify="left" if column == "experiment" else "right")
    for name, row in rows.items():
        seconds = (f"{row.cached_seconds:.3f}", f"{row.naive_seconds:.2f}")
        out.add_row(name, str(row.n), *seconds, f"{row.ratio:.0f}×")
    return out


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


def as_json(
    rows: dict[str, Speed], samplers: dict[str, Sampling], peak: float, device: str
) -> dict[str, Any]:
    """The same, to be stored."""
    return {
        "device": device,
        "matmul_gflops": round(peak, 1),
        "experiments": {
            name: {key: value and float(np.round(value, 2)) for key, value in row._asdict().items()}
            for name, row in rows.items()
        },
        "sampling": {
            name: {
                "n": row.n,
                "cached_seconds": round(row.cached_seconds, 4),
                "naive_seconds": round(row.naive_seconds, 3),
            }
            for name, row in samplers.items()
        },
    }
