"""Speed of EM for hidden Markov models, beside hmmlearn's and dynamax's where they are installed.

Each runs the same number of iterations from random parameters on the same data, in this process;
compiling is left out, by taking the difference of a longer and a shorter run.
"""

from __future__ import annotations

import importlib
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen.models.hmm import HMM, Categorical, Gaussian


class Setting(NamedTuple):
    """A model, and how much data it is trained on."""

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


def em_speeds(seconds: float) -> dict[str, dict[str, float | None]]:
    """EM iterations per second of each library, by setting; None where it is not installed."""
    return {name: _speeds(*setting, seconds) for name, setting in SETTINGS.items()}


def _speeds(model: HMM, sequences: int, seconds: float) -> dict[str, float | None]:
    truth = model.init(jax.random.key(0))
    x = jax.jit(model.sample, static_argnums=2)(truth, jax.random.key(1), sequences)
    start = model.init(jax.random.key(2))
    runs = {
        "gen": _gen(model, start, x),
        "hmmlearn": _hmmlearn(model, start, np.asarray(x), "log"),
        "hmmlearn, scaling": _hmmlearn(model, start, np.asarray(x), "scaling"),
        "dynamax": _dynamax(model, start, x),
    }
    return {name: run and _rate(run, seconds) for name, run in runs.items()}


def _rate(run: Callable[[int], None], seconds: float) -> float:
    """Iterations per second: those that `run(iterations)` adds after its first two."""

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
    """In logarithms, which is its default, or scaled, which is faster."""
    hmm = optional("hmmlearn.hmm")
    if hmm is None:
        return None
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), start.params)

    def law(logits):
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
            theirs.emissionprob_ = law(params.emission.logits)[:, 0]
            theirs.n_features = model.levels
            data = symbols(model, x).reshape(-1, 1)
        theirs.startprob_, theirs.transmat_ = law(params.initial), law(params.transition)
        theirs.fit(data, [x.shape[1]] * len(x))

    return run


def symbols(model: HMM, x: np.ndarray) -> np.ndarray:
    """Levels in [0, 1] as whole numbers."""
    return np.round(x * ((model.levels or 2) - 1)).astype(np.int32)


def _dynamax(model: HMM, start: Any, x: jax.Array) -> Callable[[int], None] | None:
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
        data = jnp.asarray(symbols(model, np.asarray(x)))[..., None]
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


def optional(module: str) -> Any:
    """The module, or None where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(module)
        except ImportError:
            return None


def em_table(speeds: dict[str, dict[str, float | None]]) -> Any:
    """The speeds for the terminal."""
    from rich.table import Table

    libraries = list(next(iter(speeds.values())))
    out = Table("model and data", *libraries, title="EM iterations per second")
    for name, row in speeds.items():
        cells = ("not installed" if rate is None else f"{rate:.3g}" for rate in row.values())
        out.add_row(name, *cells)
    return out
