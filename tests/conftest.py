"""What every test runs under: 8 simulated CPU devices, strict JAX, caches of the session's own.

Each has to stand in the environment before JAX is imported.
"""

import os
import tempfile
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

# The default 4-thread pool of jax 0.10 deadlocks when programs over many devices queue up.
os.environ["NPROC"] = "16"
# scikit-learn's threads would wait for each other where several tests run at once.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
# Compiling takes most of the time of a test, and optimising the code of a small step does not pay.
QUICK = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{QUICK} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

# Many tests, and the processes they start, compile the same steps.
CACHE = tempfile.TemporaryDirectory()
os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{CACHE.name}/jax"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["XDG_CACHE_HOME"] = CACHE.name  # no earlier run's data hides a fault

import jax
import numpy as np
import pytest

from experiments.registry import EXPERIMENTS
from gen import data

jax.config.update("jax_numpy_rank_promotion", "raise")

MNIST_FOLDER = os.environ.get("TFDS_DATA_DIR")


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(scope="session")
def prepared() -> Path:
    """The folder with the real image sets; tests that need it are skipped without it."""
    if not MNIST_FOLDER or not Path(MNIST_FOLDER, "mnist").is_dir():
        pytest.skip("TFDS_DATA_DIR names no folder with prepared image sets")
    return Path(MNIST_FOLDER).absolute()


def structure(value):
    """What a model is apart from its sizes, rates and switches: the types of it and of its parts,
    and whether there is one or many of what MANY names."""
    if not is_dataclass(value):
        return ()
    many = [name for name in MANY if getattr(value, name, 1) > 1]
    return type(value), *many, *(structure(getattr(value, f.name)) for f in fields(value))


MANY = ("samples", "masks", "components")
DISTINCT = {structure(EXPERIMENTS[name].model): name for name in reversed(EXPERIMENTS)}
"""One registry entry for each structure of a model: the first that has it."""


QUICKLY = {"vae_mnist", "hmm_jsb", "rbm_binarized_mnist"}
ENTRIES = [
    pytest.param(name, marks=() if name in QUICKLY else pytest.mark.slow)
    for name in reversed(DISTINCT.values())
]


@pytest.fixture(scope="session", params=ENTRIES)
def entry(request, digits):
    """Every kind of registry entry as (model, decode), its model small and on the shape of the
    digits, which are thresholded where its own data are binary."""
    experiment = EXPERIMENTS[request.param]
    experiment = replace(experiment, model=narrow(experiment.model), steps=1)
    binary = experiment.data in ("earthquakes", "binarized_mnist")
    if getattr(experiment.model, "levels", 0) == 2 or binary:
        experiment = replace(experiment, binarize="threshold")
    experiment = experiment.on(digits)
    return experiment.model, experiment.decode(digits)


def narrow(model):
    """The model with an eighth of the units in every list of layers, and small counts."""
    small: dict[str, Any] = {}
    for field in fields(model):
        value = getattr(model, field.name)
        if is_dataclass(value):
            small[field.name] = narrow(value)
        elif isinstance(value, tuple) and field.name != "shape":
            small[field.name] = tuple(max(1, min(width // 8, 64)) for width in value)
        elif field.name in SMALL:
            small[field.name] = min(value, SMALL[field.name])
        elif field.name == "per":
            small[field.name] = "sequence"
    return replace(model, **small)


SMALL = {"hidden": 20, "components": 5, "masks": 3, "features": 3, "blocks": 2, "layers": 2}
SMALL |= {
    "states": 4,
    "levels": 2,
    "rate": 0.1,
    "samples": 4,
    "bound_samples": 60,
    "decay_steps": 500,
    "pretraining": 5,
    "chains": 20,
    "temperatures": 50,
    "annealed": 20,
    "mixing": 20,
    "width": 32,
    "timesteps": 20,
    "draws": 5,
    "sample_steps": 5,
    "resamplings": 2,
    "ode_steps": 4,
    "ode_examples": 16,
    "ema_decay": 0.5,
}


def equal(a, b) -> bool:
    """Whether two trees hold the same bits."""
    same = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return all(jax.tree.leaves(same))
