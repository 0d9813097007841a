"""What every test runs under: 8 simulated CPU devices, strict JAX, caches of the session's own.

Each has to stand in the environment before JAX is imported.
"""

import os
import tempfile
from dataclasses import fields, replace
from pathlib import Path

# The default 4-thread pool of jax 0.10 deadlocks when programs over many devices queue up.
os.environ["NPROC"] = "16"
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


@pytest.fixture(scope="session", params=list(EXPERIMENTS))
def entry(request, digits):
    """Every registry entry as (model, decode), its model small and on the shape of the digits."""
    experiment = EXPERIMENTS[request.param].on(digits)
    return narrow(experiment.model), experiment.decode(digits)


def narrow(model):
    """The model with an eighth of the units in every list of layers."""
    layers = {
        field.name: tuple(max(1, width // 8) for width in getattr(model, field.name))
        for field in fields(model)
        if field.name != "shape" and isinstance(getattr(model, field.name), tuple)
    }
    return replace(model, **layers)


def equal(a, b) -> bool:
    """Whether two trees hold the same bits."""
    same = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return all(jax.tree.leaves(same))
