"""Models that an outsider might write: they have what the contract documents, and nothing else."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from experiments.experiment import Experiment, Options
from experiments.run import train_run
from gen import estimate
from gen.ais import LogZ
from gen.core import Density
from gen.models.autoregressive import FVSBN, MADE, NADE, GatedPixelCNN, PixelCNN
from gen.models.diffusion import ResidualMLP, UNet
from gen.train import fit


class State(NamedTuple):
    """The mean image."""

    mean: jax.Array  # [*shape]


@dataclass(frozen=True)
class Mean:
    """The required members alone: a running mean of the data."""

    family: ClassVar[str] = "toy"
    density: ClassVar[Density] = "none"

    shape: tuple[int, ...] = (28, 28, 1)

    def init(self, key):
        return State(jnp.zeros(self.shape))

    def step(self, state, batch, key, *, axis_name=None):
        difference = batch["x"].mean(0) - state.mean
        return State(state.mean + 0.1 * difference), {"loss": (difference**2).mean()}

    def parameters(self, state):
        return state.mean

    def evaluate(self, state, data, key):
        errors = estimate.per_example(
            lambda batch, _: ((batch["x"] - state.mean[None]) ** 2).mean((1, 2, 3)), data, key
        )
        return {"mse": estimate.mean(errors, "exact")}


@dataclass(frozen=True)
class Denoising(Mean):
    """And `denoising`, as `CAPABILITIES` documents it."""

    def denoising(self, state, key, n, frames):
        noise = jax.random.uniform(key, (n, *self.shape))
        share = jnp.linspace(0, 1, frames + 1).reshape(-1, 1, 1, 1, 1)
        return (1 - share) * noise[None] + share * state.mean[None, None]


@dataclass(frozen=True)
class Bracket(Mean):
    """And `bracket`, as `CAPABILITIES` documents it."""

    def bracket(self, state, key, temperatures=None, chains=None):
        width = 1 / (temperatures or 10)
        return LogZ(1 - width, 0.1, 5.0, 1 + width, 0.1, 5.0)


@dataclass(frozen=True)
class Chains(Mean):
    """And `chains`, as `CAPABILITIES` documents it."""

    def chains(self, state, key, n, sweeps):
        return jax.random.uniform(key, (n, *self.shape))


@pytest.mark.parametrize(
    ("model", "pictures"),
    [
        (Mean(), []),
        (Denoising(), ["denoising.png"]),
        (Bracket(), ["bracket.png"]),
        (Chains(), ["chains.png"]),
    ],
    ids=["nothing", "denoising", "bracket", "chains"],
)
def test_train_draws_what_the_model_documents_and_nothing_else(model, pictures, tmp_path):
    experiment = Experiment(model, data="digits", steps=3, report_every=1)
    assert train_run("toy", experiment, Options(out=tmp_path / "run")) == 0
    drawn = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert drawn == sorted([*pictures, "curves.png"])


@pytest.mark.parametrize(
    "kind",
    [FVSBN, MADE, NADE, PixelCNN, GatedPixelCNN, ResidualMLP, UNet],
    ids=lambda k: k.__name__,
)
def test_networks_of_the_project_are_flax_modules(kind):
    assert issubclass(kind, nn.Module)
    assert hash(kind()) == hash(kind())


def test_a_model_without_a_seed_in_its_state_trains_from_a_script(digits):
    model: Any = Mean(shape=digits.shape)
    *_, last = fit(model, {"x": digits.train["x"] / 16.0}, steps=5, batch_size=32)
    assert last.step == 5
    assert last.metrics
    assert last.metrics["loss"] > 0
