"""Speed of hidden Markov models: EM beside other libraries, and filtering in parallel over blocks.

Every library runs the same number of EM iterations from the same random parameters on the same
data, in this process. Compiling is left out, by taking the difference of a longer and a shorter
run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from experiments.bench.timing import optional, seconds_of
from gen.levels import to_index
from gen.models.hmm import HMM, Categorical, Gaussian, inference
from gen.models.hmm.parallel import Blocks


class Setting(NamedTuple):
    """A model, and the amount of data that it is trained on."""

    model: HMM
    sequences: int


SETTINGS = {
    "Gaussian, 16 states, 8 variables, 100 × 1,000 steps": Setting(
        HMM(shape=(1_000, 8), states=16, emission=Gaussian(prior=0.0), smoothing=0.0), 100
    ),
    "categorical, 32 states, 64 symbols, 1,000,000 steps": Setting(
        HMM(
            shape=(1_000_000,),
            states=32,
            emission=Categorical(levels=64, prior=0.0),
            smoothing=0.0,
        ),
        1,
    ),
}

STEPS, STATES = 100_000, 16
"""Size of the sequence that is filtered."""
BLOCKS = (10, 100, 1_000)
"""Numbers of steps in a block of parallel filtering."""


def em_speeds(seconds: float) -> dict[str, dict[str, float | None]]:
    """Return EM iterations per second by setting and library; None where it is not installed."""
    return {name: _em_speeds(setting, seconds) for name, setting in SETTINGS.items()}


def _em_speeds(setting: Setting, seconds: float) -> dict[str, float | None]:
    model = setting.model
    truth = model.init(jax.random.key(0))
    x = jax.jit(model.sample, static_argnums=2)(truth, jax.random.key(1), setting.sequences)
    start = model.init(jax.random.key(2))
    runs = {
        "gen": _gen(model, start, x),
        "hmmlearn": _hmmlearn(model, start, np.asarray(x), "log"),
        "hmmlearn, scaling": _hmmlearn(model, start, np.asarray(x), "scaling"),
        "dynamax": _dynamax(model, start, x),
    }
    return {name: run and _rate(run, seconds) for name, run in runs.items()}


def _rate(run: Callable[[int], None], seconds: float) -> float:
    """Return iterations per second, of those that `run(iterations)` makes after the first two."""

    def timed(iterations):
        began = time.perf_counter()
        run(iterations)
        return time.perf_counter() - began

    run(1)
    few = timed(2)
    more = 1
    while (spent := timed(2 + more) - few) < seconds:
        more *= 2
    return more / spent


def _gen(model: HMM, start: Any, x: jax.Array) -> Callable[[int], None]:
    """Return a function that runs a number of EM iterations of this project."""
    step = jax.jit(model.step)

    def run(iterations):
        state = start
        for i in range(iterations):
            state, _ = step(state, {"x": x}, jax.random.key(i))
        jax.block_until_ready(state)

    return run


def _hmmlearn(
    model: HMM, start: Any, x: np.ndarray, implementation: str
) -> Callable[[int], None] | None:
    """Return a function that runs EM in hmmlearn, by logarithms (`log`) or by `scaling`."""
    hmm = optional("hmmlearn.hmm")
    if hmm is None:
        return None
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), start.params)

    def softmax(logits):
        p = np.exp(logits - logits.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True)

    def run(iterations):
        options: Any = {"n_iter": iterations, "tol": -np.inf, "init_params": ""}
        options["implementation"] = implementation
        if isinstance(model.emission, Gaussian):
            theirs: Any = hmm.GaussianHMM(model.states, "diag", **options)
            theirs.means_ = params.emission.mean
            theirs.covars_ = np.exp(params.emission.spread)
            data = x.reshape(-1, x.shape[-1])
        else:
            theirs = hmm.CategoricalHMM(model.states, **options)
            theirs.emissionprob_ = softmax(params.emission.logits)[:, 0]
            theirs.n_features = model.levels
            data = np.asarray(to_index(jnp.asarray(x), model.levels or 2)).reshape(-1, 1)
        theirs.startprob_, theirs.transmat_ = softmax(params.initial), softmax(params.transition)
        theirs.fit(data, [x.shape[1]] * len(x))

    return run


def _dynamax(model: HMM, start: Any, x: jax.Array) -> Callable[[int], None] | None:
    """Return a function that runs EM in dynamax, or None if it is not installed."""
    hmm = optional("dynamax.hidden_markov_model")
    if hmm is None:
        return None
    key, emission = jax.random.key(0), start.params.emission
    if isinstance(model.emission, Gaussian):
        theirs: Any = hmm.DiagonalGaussianHMM(model.states, x.shape[-1])
        extra = {
            "emission_means": emission.mean,
            "emission_scale_diags": jnp.exp(0.5 * emission.spread),
        }
        data = x
    else:
        theirs = hmm.CategoricalHMM(model.states, 1, model.levels)
        extra = {"emission_probs": jax.nn.softmax(emission.logits)}
        data = to_index(x, model.levels or 2)[..., None]
    params, props = theirs.initialize(
        key,
        initial_probs=jax.nn.softmax(start.params.initial),
        transition_matrix=jax.nn.softmax(start.params.transition),
        **extra,
    )

    def run(iterations):
        jax.block_until_ready(
            theirs.fit_em(params, props, data, num_iters=iterations, verbose=False)
        )

    return run


def em_table(speeds: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Return the table of the speeds that `em_speeds` measured."""
    libraries = list(next(iter(speeds.values())))
    out = Table("model and data", *libraries, title="EM iterations per second")
    for name, row in speeds.items():
        cells = ("not installed" if rate is None else f"{rate:.3g}" for rate in row.values())
        out.add_row(name, *cells)
    return out


class Filtering(NamedTuple):
    """The time of filtering one sequence of `STEPS` steps and `STATES` states."""

    block: int  # steps in a block; 0: one scan over the sequence
    seconds: float


def filtering_speeds(repeats: int = 3) -> list[Filtering]:
    """Filter one sequence by one scan and in parallel over blocks; return the best times."""
    keys = jax.random.split(jax.random.key(0), 3)
    sequence = (
        jax.nn.log_softmax(jax.random.normal(keys[0], (STATES,))),
        jax.nn.log_softmax(jax.random.normal(keys[1], (STATES, STATES))),
        jax.random.normal(keys[2], (STEPS, STATES)),
    )
    results = []
    for block in (0, *BLOCKS):
        forward = jax.jit(Blocks(block).filter if block else inference.filter)
        seconds_of(forward, *sequence)  # compiles
        results.append(
            Filtering(block, min(seconds_of(forward, *sequence) for _ in range(repeats)))
        )
    return results


def filtering_table(speeds: list[Filtering]) -> Table:
    """Return a table of what `filtering_speeds` returned."""
    out = Table(title=f"filtering one sequence of {STEPS:,} steps, {STATES} states")
    for column in ("form", "ms", "steps/s"):
        out.add_column(column, justify="left" if column == "form" else "right")
    for block, seconds in speeds:
        form = f"parallel, blocks of {block:,} steps" if block else "sequential"
        out.add_row(form, f"{1e3 * seconds:.1f}", f"{STEPS / seconds:.3g}")
    return out


def filtering_json(speeds: list[Filtering]) -> dict[str, Any]:
    """Return the same for a JSON file: the seconds by the number of steps in a block."""
    seconds = {str(block): round(seconds, 6) for block, seconds in speeds}
    return {"steps": STEPS, "states": STATES, "seconds": seconds}
