"""Probes: codes that tell the labels apart, codes that do not, and tuning beyond what is linear."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import probe
from experiments.__main__ import main
from experiments.registry import EXPERIMENTS
from gen.core import UserError
from gen.models.vae import VAE

SIZES = {"train": 400, "validation": 100, "test": 200}


@dataclass(frozen=True)
class Fake:
    """A model of two variables with given codes and layers."""

    code: Callable[[jax.Array], jax.Array]

    def encode(self, state, batch):
        return self.code(batch["x"])


class Layered(Fake):
    def layers(self, state):
        return state


def squares(seed: int = 0) -> dict[str, Any]:
    """Points [N, 2] of a checkerboard of two by two squares, which no line tells apart."""
    rng = np.random.RandomState(seed)
    splits = {}
    for name, n in SIZES.items():
        corner = rng.randint(0, 2, (n, 2))
        x = corner + rng.uniform(-0.3, 0.3, (n, 2))
        splits[name] = {
            "x": jnp.asarray(x, jnp.float32),
            "label": jnp.asarray(corner[:, 0] ^ corner[:, 1]),
        }
    return splits


def one_hot(x: jax.Array) -> jax.Array:
    corner = (x > 0.5).astype(int)
    return jax.nn.one_hot(corner[:, 0] ^ corner[:, 1], 2)


def test_codes_that_tell_the_labels_apart_leave_no_error():
    found = probe.probe(Fake(one_hot), None, squares(), "test", 0)
    assert found["probe_error"].value == 0
    assert found["retrieval_precision"].value == 1
    assert found["retrieval_precision"].settings == {"neighbours": 10, "rows": 400}
    assert found["probe_error_raw"].value > 0.3
    assert "tuned_error" not in found
    for of in found.values():
        assert (of.kind, of.n) == ("exact", 200)
    p = found["probe_error_raw"]
    assert p.stderr == pytest.approx(np.sqrt(p.value * (1 - p.value) / 199))


def test_codes_that_are_all_the_same_are_worth_the_shares_of_the_labels():
    splits = squares()
    found = probe.probe(Fake(lambda x: jnp.ones((len(x), 3))), None, splits, "test", 0)
    share = {name: np.bincount(of["label"]) / len(of["label"]) for name, of in splits.items()}
    majority = share["train"].argmax()
    assert found["probe_error"].value == pytest.approx(1 - share["test"][majority])
    expected = share["train"] @ share["test"]
    assert found["retrieval_precision"].value == pytest.approx(expected)


def test_precision_is_that_of_the_nearest_neighbours():
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.RandomState(0)
    x, queries = rng.randn(300, 5), rng.randn(700, 5)
    labels, wanted = rng.randint(0, 3, 300), rng.randint(0, 3, 700)
    search = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(x)
    near = search.kneighbors(queries, return_distance=False)
    expected = (labels[near] == wanted[:, None]).mean()
    assert probe.retrieval_precision(x, labels, queries, wanted).value == pytest.approx(expected)


def test_the_penalty_is_the_one_that_does_best_on_validation():
    """Labels that follow one variable, beside noise that a weak penalty learns by heart."""
    rng = np.random.RandomState(0)
    x = {name: rng.randn(n, 60) for name, n in SIZES.items()}
    labels = {name: (of[:, 0] + rng.randn(len(of)) > 0).astype(int) for name, of in x.items()}
    x["train"], labels["train"] = x["train"][:80], labels["train"][:80]
    found = probe.linear_error(x, labels, "validation")
    with pytest.MonkeyPatch.context() as patch:
        errors = {}
        for penalty in probe.PENALTIES:
            patch.setattr(probe, "PENALTIES", (penalty,))
            errors[penalty] = probe.linear_error(x, labels, "validation").value
    assert found.value == min(errors.values()) < errors[100.0]
    assert errors[found.settings["C"]] == found.value


def test_tuning_learns_what_no_line_tells_apart():
    key = jax.random.key(1)
    layers = [(8 * jax.random.normal(key, (2, 32)), jnp.zeros(32)), (jnp.eye(32), jnp.zeros(32))]
    before = jax.tree.map(np.array, layers)
    splits = squares()
    x = {name: np.asarray(of["x"]) for name, of in splits.items()}
    labels = {name: np.asarray(of["label"]) for name, of in splits.items()}
    tuned = [probe.tuned_error(layers, x, labels, "test", 0, 15, batch_size=10) for _ in range(2)]
    assert tuned[0] == tuned[1]
    assert tuned[0].value < 0.05
    assert tuned[0].n == 200
    assert tuned[0].settings["steps"] in range(300, 4501, 300)
    jax.tree.map(np.testing.assert_array_equal, layers, before)
    assert probe.linear_error(x, labels, "test").value > 0.3


@pytest.mark.slow
def test_a_model_with_layers_is_tuned_from_them(monkeypatch):
    """With weights 0 the units learn alike, without dropout, and cannot tell the squares apart;
    others can."""
    monkeypatch.setattr(probe, "DROPOUTS", ((0.0, 0.0),))
    blank = [(jnp.zeros((2, 32)), jnp.zeros(32))]
    useful = [(8 * jax.random.normal(jax.random.key(1), (2, 32)), jnp.zeros(32))]
    errors = [
        probe.probe(Layered(one_hot), layers, squares(), "test", 0)["tuned_error"].value
        for layers in (blank, useful)
    ]
    assert errors[0] > 0.2
    assert errors[1] < 0.05


def test_the_logits_are_those_of_the_layers():
    rng = np.random.RandomState(0)
    shapes = [(3, 4), (4, 2), (2, 5)]
    layers = [(rng.randn(*shape), rng.randn(shape[1])) for shape in shapes]
    x = rng.randn(6, 3)
    h = x
    for weight, bias in layers[:-1]:
        h = 1 / (1 + np.exp(-(h @ weight + bias)))
    expected = h @ layers[-1][0] + layers[-1][1]
    model = probe.Tuned((4, 2), 5, (3,))
    given = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), layers)
    np.testing.assert_allclose(
        model.logits(given, jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-5
    )


def test_dropout_keeps_the_mean_and_needs_a_key():
    model = probe.Tuned((2_000,), 1, (2_000,), dropout=(0.2, 0.5))
    x = jnp.ones((20, 2_000))
    layers = [(jnp.eye(2_000), jnp.zeros(2_000)), (jnp.ones((2_000, 1)) / 2_000, jnp.zeros(1))]
    whole = model.logits(layers, x)
    np.testing.assert_allclose(whole, jax.nn.sigmoid(1.0), rtol=1e-5)
    # Of the inputs 0.2 are dropped, and the others 1.25; of the hidden units half.
    expected = 0.2 * 0.5 + 0.8 * jax.nn.sigmoid(1.25)
    dropped = model.logits(layers, x, jax.random.key(0))
    assert dropped.std() > 0
    np.testing.assert_allclose(dropped.mean(), expected, rtol=0.02)


def test_rows_are_spread_over_all():
    np.testing.assert_array_equal(probe._spread(3, 5), [0, 1, 2])
    np.testing.assert_array_equal(probe._spread(10, 4), [0, 2, 5, 7])


def test_codes_do_not_depend_on_the_block():
    x = np.random.RandomState(0).rand(7, 2, 2).astype(np.float32)
    model = Fake(lambda x: jnp.cumsum(x, axis=2))
    whole, parts = (probe.encoded(model, None, x, block) for block in (7, 3))
    assert whole.shape == (7, 4)
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.slow
def test_evaluation_probes_each_seed_if_asked(tmp_path, capsys):
    folder = tmp_path / "run"
    flags = ["--model.encoder", "16", "--model.decoder", "16", "--steps", "20", "--probe"]
    assert main(["train", "vae_digits", *flags, "--seeds", "0", "1", "--out", str(folder)]) == 0
    assert main(["evaluate", str(folder)]) == 0
    record = json.loads((folder / "evaluation.json").read_text())
    raw = record["estimates"]["probe_error_raw"]
    assert raw["value"] < 0.15
    assert raw["n"] == 250
    errors = [of["probe_error"]["value"] for of in record["per_seed"]]
    assert errors[0] != errors[1]
    assert record["estimates"]["probe_error"]["value"] == pytest.approx(np.mean(errors))


def test_what_cannot_be_probed_is_refused(digits):
    experiment = replace(EXPERIMENTS["gan_digits"], probe=True)
    with pytest.raises(UserError, match="GAN has no codes"):
        experiment.on(digits)
    without = replace(digits, train={"x": digits.train["x"]})
    with pytest.raises(UserError, match="digits has no labels"):
        replace(experiment, model=VAE()).on(without)
