"""Models as JSON and back, by the classes that the JSON names."""

import importlib
import json
import pkgutil
from dataclasses import is_dataclass, replace

import optax
import pytest
from conftest import NETWORKS

import gen.models
from experiments.registry import EXPERIMENTS
from gen import config, optimize
from gen.core import UserError
from gen.data import Format
from gen.models.vae import VAE
from gen.nets import MLP, ConvEncoder

BUILT_BY_OTHERS = {
    "Attention", "Block", "Blocks", "CausalConv", "Condition", "Conv", "ConvTranspose", "Dense",
    "Heads", "Horizontal", "Posterior", "Vertical", "WholePasses",
}  # fmt: skip
"""Layers and helpers that networks and models build: no configuration has them as a value."""


def through_json(value):
    return json.loads(json.dumps(config.to_json(value)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_registered_model_comes_back_without_the_registry(name):
    experiment = EXPERIMENTS[name]
    model = optimize.for_run(experiment.model, experiment.steps)
    assert config.from_json(through_json(model)) == model


def test_parts_of_other_types_than_the_defaults_come_back():
    model = VAE((8, 8, 1), encoder=ConvEncoder((4,)), decoder=MLP((5, 6), dropout=0.1))
    assert config.from_json(through_json(model)) == model
    format = Format(words=("a", "b"), levels=0, center=(0.5, 1.0), scale=(1.5, 2.0))
    assert config.from_json(through_json(format)) == format


def test_the_table_has_every_model_network_and_part():
    modules = [module.name for module in pkgutil.walk_packages(gen.models.__path__, "gen.models.")]
    classes = {}
    others = ("gen.nets", "gen.optimize", "gen.uses.classifier", "gen.data.dataset", "gen.data.own")
    for module in (*modules, *others):
        for name, value in vars(importlib.import_module(module)).items():
            if is_dataclass(value) and value.__module__ == module:
                classes[name] = module
    for name in (*BUILT_BY_OTHERS, "Dataset"):
        del classes[name]
    assert classes == config.PARTS


def test_values_of_the_users_own_come_back_from_the_model_alone():
    model = replace(NETWORKS["vae_user_encoder"], optimizer=optax.sgd(0.1))
    stored = through_json(model)
    assert config.from_json(stored, model) == model
    with pytest.raises(UserError, match=r"model.encoder has the class 'conftest.UserEncoder'"):
        config.from_json(stored)
    with pytest.raises(UserError, match=r"optimizer has the class 'optax.*gen.load\(path, model="):
        config.from_json(through_json(VAE(optimizer=optax.sgd(0.1))))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"class": "os.system"}, "model has the class 'os.system', which this project lacks"),
        ({"class": ["VAE"]}, r"model has the class \['VAE'\]"),
        ({"class": None}, "model names no class"),
        ({"depth": 3}, "VAE lacks the fields depth"),
        ({"latent": "3"}, "model.latent is '3', must be int"),
        ({"latent": -3}, "latent is -3, must be positive"),
        ({"encoder": 3}, "model.encoder is 3, must be Module"),
        ({"encoder": {"class": "AIS"}}, "model.encoder is .*, must be Module"),
        ({"optimizer": {"class": "MLP"}}, "model.optimizer is .*, must be"),
        ({"optimizer": [1]}, r"model.optimizer is \[1\], must be"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_named(change, named):
    with pytest.raises(UserError, match=named):
        config.from_json(through_json(VAE()) | change)
