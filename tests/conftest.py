"""The environment of every test: 8 simulated CPU devices, strict JAX, caches of the session.

Each variable has to stand in the environment before JAX is imported.
"""

import gc
import os
import tempfile
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

# The default 4-thread pool of jax 0.10 deadlocks when programs over many devices queue up.
os.environ["NPROC"] = "16"
# scikit-learn's threads would wait for each other where several tests run at once.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
# Compiling takes most of the time of a test, and optimising the code of a small step does not pay.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# Other versions do not know the first of these flags, which halves the time of compiling.
if version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = (
    f"{QUICK} --xla_force_host_platform_device_count=8 --xla_gpu_deterministic_ops=true"
)
os.environ["JAX_PLATFORMS"] = os.environ.get("GEN_TEST_PLATFORMS", "cpu")  # cuda,cpu: on a GPU
# A GPU rounds products to TF32 by default, which no comparison with a closed form allows.
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"

# Many tests, and the processes they start, compile the same steps.
CACHE = tempfile.TemporaryDirectory()
os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{CACHE.name}/jax"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["XDG_CACHE_HOME"] = CACHE.name  # no earlier run's data hides a fault

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.experiment import Experiment
from experiments.registry import EXPERIMENTS
from gen import data, optimize
from gen.core import facts
from gen.models.autoregressive import Autoregressive, GatedPixelCNN, PixelCNN
from gen.models.dequantized import Dequantized
from gen.models.gan import GAN
from gen.models.vae import VAE
from gen.nets import MLP
from gen.train import Decode, no_decode

jax.config.update("jax_numpy_rank_promotion", "raise")

MNIST_FOLDER = os.environ.get("TFDS_DATA_DIR")

LONGEST = (
    *("trained", "contract", "readme", "diffusion", "autoregressive", "boltzmann", "runs"),
    *("report", "notebooks", "explore", "hmm", "gan", "features", "flags", "completion"),
)
"""Files whose tests take the longest, by default or with `-m slow`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process waits for one of them at the end."""
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def pytest_collection_finish() -> None:
    """Leave the imported modules out of garbage collection, which takes a second with them, and
    collect less often, since a trace makes many objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture
def eight_devices() -> None:
    """Skip tests of several devices where the accelerator has fewer than 8."""
    if jax.device_count() < 8:
        pytest.skip(f"{jax.device_count()} devices, and the test takes 8")


@pytest.fixture(scope="session")
def prepared() -> Path:
    """The folder with the real image sets; tests that need it are skipped without it."""
    if not MNIST_FOLDER or not Path(MNIST_FOLDER, "mnist").is_dir():
        pytest.skip("TFDS_DATA_DIR names no folder with prepared image sets")
    return Path(MNIST_FOLDER).absolute()


def skip_without(file: str) -> None:
    """Skip the test unless `GEN_DATA_DIR` names a folder that has the file."""
    folder = os.environ.get("GEN_DATA_DIR")
    if not folder or not Path(folder, file).is_file():
        pytest.skip(f"GEN_DATA_DIR names no folder with {file}")


class UserEncoder(nn.Module):
    """An encoder of the user's own, with batch statistics and dropout."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dense(16, use_bias=False)(x.reshape(len(x), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dropout(0.1, deterministic=not train)(x)


FASTER = optimize.Optimizer(learning_rate=1e-3)
NETWORKS = {
    "vae_batch_norm": VAE(
        encoder=MLP((16,), batch_norm=True),
        decoder=MLP((16,), batch_norm=True),
        latent=3,
        optimizer=FASTER,
    ),
    "vae_user_encoder": VAE(encoder=UserEncoder(), decoder=MLP((16,)), latent=3, optimizer=FASTER),
    "gan_batch_norm": GAN(
        latent=4,
        generator=MLP((16,), batch_norm=True),
        discriminator=MLP((16,), "leaky_relu", batch_norm=True),
    ),
}
"""Models whose networks have batch statistics and more choices than the registered ones."""

COLOUR = {
    "pixelcnn_colour": Autoregressive(PixelCNN()),
    "gated_pixelcnn_colour": Autoregressive(GatedPixelCNN()),
}
"""Models whose structure depends on the number of channels, for images in colour."""


def structure(value, choices: bool = True) -> tuple[Any, ...]:
    """Return what a model is apart from its sizes and rates: the types of it and of its parts,
    its choices and switches (optional), whether its counts are 0, 1 or more, and whether its
    weights are 0."""
    if isinstance(value, optimize.Optimizer):
        return (value.kind,)
    if not is_dataclass(value):
        return ()
    found: list[Any] = [type(value)]
    for field in fields(value):
        part: Any = getattr(value, field.name)
        if choices and isinstance(part, str | bool) and field.name not in ALIKE:
            found.append((field.name, part))
        if field.name in (COUNTS if choices else COUNTS[:4]):
            found.append((field.name, min(int(part), 2) if choices else int(part) > 1))
        if choices and field.name in WEIGHTS:
            found.append((field.name, bool(part)))
        found.append(structure(part, choices))
    return tuple(found)


ALIKE = ("activation", "output", "name", "start", "per", "centred", "raster", "direct")
"""Choices that change a formula's details and not the structure of a model."""
COUNTS = (
    "samples",
    "masks",
    "components",
    "classes",
    "timesteps",
    "pixel_features",
    "fourier",
    "pack",
    "continuous_codes",
)
"""Counts whose being 0, 1 or more changes the structure of a model."""
WEIGHTS = ("contraction_weight", "free_bits", "kl_warmup_steps")
"""Numbers whose being above 0 adds a term to the objective of a model."""


DISTINCT = {structure(EXPERIMENTS[name].model): name for name in reversed(EXPERIMENTS)}
"""One registered experiment for each structure of a model: the first that has it."""
NAMES = [*reversed(DISTINCT.values()), *NETWORKS, *COLOUR]
TYPES = {structure(EXPERIMENTS[name].model, choices=False): name for name in reversed(EXPERIMENTS)}
TYPICAL = [*reversed(TYPES.values()), *NETWORKS, *COLOUR]
"""One registered experiment for each combination of types, whatever its choices."""


class Entry(NamedTuple):
    """A model, small and on the shape of the digits, with data that it takes."""

    model: Any
    data: data.Arrays  # raw rows of the training split
    levels: int  # of the data
    decode: Decode


def entry_of(name: str, digits: data.Dataset) -> Entry:
    """Return a registered model narrowed to a small one, and the digits as its data: thresholded
    where its own data are binary, with uniform noise where they are continuous."""
    if name in COLOUR:
        digits = in_colour(digits)
    own = NETWORKS | COLOUR
    experiment = Experiment(own[name]) if name in own else EXPERIMENTS[name]
    model = optimize.for_run(narrow(experiment.model), steps=500)
    if isinstance(model, Dequantized):  # of two levels its samples would have one, at first
        model = replace(model, levels=digits.format.levels)
    if facts(model).levels == 0:
        noise = np.random.default_rng(0).random(digits.train["x"].shape, np.float32)
        rows = {**digits.train, "x": (digits.train["x"] + noise) / 17}
        return Entry(replace(model, shape=digits.shape), rows, 0, no_decode)
    binary = experiment.data in ("earthquakes", "binarized_mnist")
    if facts(model).levels == 2 or binary:
        experiment = replace(experiment, binarize="threshold")
    experiment = replace(experiment, model=model, steps=1).on(digits)
    levels = 2 if experiment.binarize != "none" else digits.format.levels
    return Entry(experiment.model, digits.train, levels, experiment.decode(digits))


def in_colour(dataset: data.Dataset) -> data.Dataset:
    """Return grey images in three channels, of which two are moved."""
    splits = {
        name: {**rows, "x": np.concatenate([np.roll(rows["x"], i, i) for i in range(3)], axis=3)}
        for name, rows in dataset.splits.items()
    }
    return replace(dataset, **splits)


def narrow(model):
    """Return the model with small layers and counts."""
    small: dict[str, Any] = {}
    for field in fields(model):
        value: Any = getattr(model, field.name)
        if is_dataclass(value) and not isinstance(value, optimize.Optimizer):
            small[field.name] = narrow(value)
        elif isinstance(value, tuple) and field.name in WIDTHS:
            depth = 1 if field.name == "channels" else 2
            small[field.name] = tuple(max(1, min(width // 8, 32)) for width in value[:depth])
        elif isinstance(value, tuple) and field.name == "corruptions":  # of each hidden layer
            small[field.name] = value[:2]
        elif field.name in SMALL and value is not None:
            small[field.name] = min(value, SMALL[field.name])  # type: ignore
        elif field.name == "per":
            small[field.name] = "sequence"
    return model.clone(**small) if isinstance(model, nn.Module) else replace(model, **small)


WIDTHS = ("hidden", "channels", "report_timesteps")
SMALL = {
    "hidden": 16,  # exact sums over hidden units have 2^16 terms
    "latent": 6,
    "components": 3,
    "masks": 3,
    "features": 3,
    "blocks": 1,
    "layers": 2,
    "states": 4,
    "levels": 2,
    "rate": 0.1,
    "samples": 4,
    "bound_samples": 60,
    "pretraining": 5,
    "active": 3,
    "pseudo_inputs": 5,
    "kl_warmup_steps": 5,
    "persistent_chains": 20,
    "temperatures": 50,
    "chains": 20,
    "burn_in": 20,
    "width": 32,
    "timesteps": 20,
    "time_draws": 5,
    "sample_steps": 3,
    "resamplings": 2,
    "ode_steps": 2,
    "ode_examples": 16,
    "ema_decay": 0.5,
    "discriminator_steps": 2,
}


def equal(a, b) -> bool:
    """Return whether two trees hold the same bits."""
    same = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
    return all(jax.tree.leaves(same))


def batch_of(entry: Entry, rows: int) -> Any:
    """Return the first rows of an entry's data, decoded."""
    raw = {name: jnp.asarray(values[:rows]) for name, values in entry.data.items()}
    return entry.decode(raw, jax.random.key(1))
