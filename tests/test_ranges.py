"""Test that every number of a configuration has a range, and that huge ones end in one line."""

import io
import math
import sys
from dataclasses import fields, is_dataclass, replace
from typing import get_type_hints

import jax
import numpy as np
import pytest
from flax import linen as nn

from experiments.__main__ import COMMANDS, main
from experiments.experiment import Options
from experiments.registry import EXPERIMENTS
from gen.core import MOST_LAYERS, UserError
from gen.memory import check_memory
from gen.models.autoencoder import Autoencoder
from gen.models.autoregressive import NADE, Autoregressive, GatedPixelCNN, PixelCNN
from gen.models.boltzmann import RBM
from gen.models.diffusion import FlowMatching, GaussianDiffusion
from gen.models.diffusion.nets import ResidualMLP, UNet
from gen.models.gan import GAN
from gen.models.vae import VAE
from gen.train import begin


def parts(value):
    """Return a value and all its parts that are configurations."""
    inner = [getattr(value, field.name) for field in fields(value)]
    return [value, *(part for each in inner if is_dataclass(each) for part in parts(each))]


PARTS = {type(part): part for each in (*EXPERIMENTS.values(), Options()) for part in parts(each)}
"""a configuration of every type"""


def fields_of_type(part, kind) -> list[str]:
    """Return the names of the fields of a configuration that have exactly this type."""
    internal = (*getattr(type(part), "set_by_model", ()), "parent", "name")
    hints = get_type_hints(type(part))
    return [
        field.name
        for field in fields(part)
        if hints[field.name] is kind
        and not (isinstance(part, nn.Module) and field.name in internal)
    ]


def is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@pytest.mark.parametrize("part", PARTS.values(), ids=lambda part: type(part).__name__)
def test_every_number_of_a_configuration_has_a_range(part):
    for field in fields(part):
        value, huge = getattr(part, field.name), ()
        if isinstance(value, float):
            huge = (math.inf, -math.inf, math.nan, 1e300)
        elif is_integer(value):
            huge = (10**30, -(10**30), 2**32)
        elif isinstance(value, tuple) and value and all(map(is_integer, value)):
            huge = ((10**30,) * len(value), (2**32,) * len(value))
        for number in huge:
            with pytest.raises(UserError, match=field.name):
                replace(part, **{field.name: number})


@pytest.mark.parametrize("value", [2.5, "3", True, None])
def test_a_field_that_is_no_integer_is_named(value):
    named = [(part, name) for part in PARTS.values() for name in fields_of_type(part, int)]
    assert len(named) > 50
    for part, name in named:
        with pytest.raises(UserError, match=f"{name} is .*, must be an integer"):
            replace(part, **{name: value})


def test_a_shape_without_variables_is_refused():
    with pytest.raises(UserError, match=r"shape is \(0,\), must be positive"):
        RBM(shape=(0,))


@pytest.mark.parametrize(
    "part",
    [Autoencoder(), VAE(), GAN(), Autoregressive(NADE(3)), GaussianDiffusion(), FlowMatching()],
    ids=lambda part: type(part).__name__,
)
@pytest.mark.parametrize("value", [(256, 128), UNet, None])
def test_a_value_in_place_of_a_network_is_named(part, value):
    names = fields_of_type(part, nn.Module)
    assert names
    for name in names:
        with pytest.raises(UserError, match=rf"{name} is .*, must be a network"):
            replace(part, **{name: value})


@pytest.mark.parametrize(
    ("net", "name"),
    [(UNet, "blocks"), (ResidualMLP, "layers"), (PixelCNN, "blocks"), (GatedPixelCNN, "layers")],
)
def test_a_network_has_no_more_layers_than_python_builds_soon(net, name):
    net(**{name: MOST_LAYERS})
    with pytest.raises(UserError, match=f"{name} is {MOST_LAYERS + 1}, must be 1 … {MOST_LAYERS}"):
        net(**{name: MOST_LAYERS + 1})


@pytest.mark.parametrize(
    "flags",
    [
        "vae_digits --report-every 2147483648",
        "vae_digits --model.optimizer.learning-rate inf",
        "vae_digits --processes 2147483648 --coordinator localhost:1",
        "vae_digits --coordinator localhost:65536",
        f"hmm_earthquakes --model.states {10**30}",
        "diffusion_digits --model.net.layers 2147483648",
    ],
)
def test_a_number_out_of_its_range_ends_in_one_line(flags, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *flags.split(), "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not out.exists()


def test_a_model_larger_than_the_memory_is_refused_before_it_is_allocated():
    def init(hidden):
        state = RBM(hidden=hidden).init(jax.random.key(0))
        check_memory("RBM", state)
        return state

    jax.eval_shape(lambda: init(10))
    with pytest.raises(UserError, match=r"RBM: its state takes 5,856 GiB, and the device has"):
        jax.eval_shape(lambda: init(2_000_000_000))


def test_all_seeds_and_the_best_state_count_against_the_memory(monkeypatch):
    monkeypatch.setattr("gen.memory.device_memory", lambda: 10_000)
    data = {"x": np.zeros((4, 16), np.float32)}
    model = RBM(shape=(16,), hidden=16, persistent_chains=2)  # 1.4 kB
    begin(model, data, 2)
    for seeds, validated in ((10, False), (5, True)):
        with pytest.raises(UserError, match="the device has"):
            begin(model, data, 2, seed=range(seeds), validated=validated)


def test_a_terminal_without_a_character_shows_its_code(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setitem(COMMANDS, "list", lambda arguments: print("training into ü") or 0)
    assert main(["list"]) == 0
    assert terminal.buffer.getvalue() == b"training into \\xfc\n"


def test_a_command_that_runs_out_of_memory_ends_in_one_line(monkeypatch, capsys):
    def fail(arguments):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nmore"
        )

    monkeypatch.setitem(COMMANDS, "list", fail)
    assert main(["list"]) == 2
    assert capsys.readouterr().err == (
        "error: Out of memory allocating 8 bytes: make the model or the batch smaller\n"
    )
