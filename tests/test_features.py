"""Judging codes: codes that separate the labels, codes that do not, and fine-tuning."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.registry import EXPERIMENTS
from gen.core import UserError
from gen.models.vae import VAE
from gen.nets import MLP
from gen.uses import features
from gen.uses.classifier import Classifier

SIZES = {"train": 400, "validation": 100, "test": 200}


@dataclass(frozen=True)
class Coder:
    """A model of two variables with a given encoder."""

    encoder: Callable[[jax.Array], jax.Array]

    def encode(self, state, batch):
        return self.encoder(batch["x"])


class LayeredCoder(Coder):
    """A coder with sigmoid layers, which are its state."""

    def layers(self, state):
        return state


def checkerboard(seed: int = 0) -> dict[str, Any]:
    """Return points [N, 2] of two by two squares whose two colours no line separates."""
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


def colour(x: jax.Array) -> jax.Array:
    """Return the label of each point as a one-hot code, [N, 2]."""
    corner = (x > 0.5).astype(int)
    return jax.nn.one_hot(corner[:, 0] ^ corner[:, 1], 2)


def test_codes_that_separate_the_labels_leave_no_error():
    estimates = features.probe(Coder(colour), None, checkerboard(), "test", 0)
    assert estimates["probe_error"].value == 0
    assert estimates["retrieval_precision"].value == 1
    assert estimates["retrieval_precision"].settings == {"neighbours": 10, "rows": 400}
    assert estimates["probe_error_raw"].value > 0.3
    assert "tuned_error" not in estimates
    for estimate in estimates.values():
        assert (estimate.kind, estimate.n) == ("exact", 200)
    raw = estimates["probe_error_raw"]
    assert raw.stderr == pytest.approx(np.sqrt(raw.value * (1 - raw.value) / 199))


def test_equal_codes_give_the_majority_error_and_the_label_frequencies():
    splits = checkerboard()
    equal = Coder(lambda x: jnp.ones((len(x), 3)))
    estimates = features.probe(equal, None, splits, "test", 0)
    share = {name: np.bincount(rows["label"]) / len(rows["label"]) for name, rows in splits.items()}
    majority = share["train"].argmax()
    assert estimates["probe_error"].value == pytest.approx(1 - share["test"][majority])
    expected = share["train"] @ share["test"]
    assert estimates["retrieval_precision"].value == pytest.approx(expected)


def test_retrieval_precision_equals_scikit_learns_neighbours():
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.RandomState(0)
    x, queries = rng.randn(300, 5), rng.randn(700, 5)
    labels, wanted = rng.randint(0, 3, 300), rng.randint(0, 3, 700)
    search = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(x)
    nearest = search.kneighbors(queries, return_distance=False)
    expected = (labels[nearest] == wanted[:, None]).mean()
    precision = features.retrieval_precision(x, labels, queries, wanted)
    assert precision.value == pytest.approx(expected)


def test_the_penalty_is_selected_on_validation():
    """The labels follow one variable, beside noise that a weak penalty overfits."""
    rng = np.random.RandomState(0)
    x = {name: rng.randn(n, 60) for name, n in SIZES.items()}
    labels = {name: (rows[:, 0] + rng.randn(len(rows)) > 0).astype(int) for name, rows in x.items()}
    x["train"], labels["train"] = x["train"][:80], labels["train"][:80]
    selected = features.linear_error(x, labels, "validation")
    with pytest.MonkeyPatch.context() as patch:
        errors = {}
        for c in features.INVERSE_PENALTIES:
            patch.setattr(features, "INVERSE_PENALTIES", (c,))
            errors[c] = features.linear_error(x, labels, "validation").value
    assert selected.value == min(errors.values()) < errors[100.0]
    assert errors[selected.settings["C"]] == selected.value


def test_fine_tuning_learns_what_no_line_separates():
    key = jax.random.key(1)
    layers = [(8 * jax.random.normal(key, (2, 32)), jnp.zeros(32)), (jnp.eye(32), jnp.zeros(32))]
    before = jax.tree.map(np.array, layers)
    splits = checkerboard()
    x = {name: np.asarray(rows["x"]) for name, rows in splits.items()}
    labels = {name: np.asarray(rows["label"]) for name, rows in splits.items()}
    tuned = [features.tuned_error(layers, x, labels, "test", 0, 4, batch_size=10) for _ in range(2)]
    assert tuned[0] == tuned[1]
    assert tuned[0].value < 0.05
    assert tuned[0].n == 200
    assert tuned[0].settings["steps"] in range(300, 1201, 300)
    jax.tree.map(np.testing.assert_array_equal, layers, before)
    assert features.linear_error(x, labels, "test").value > 0.3


@pytest.mark.slow
def test_a_model_with_layers_is_fine_tuned_from_them(monkeypatch):
    """Units with weights 0 learn alike without dropout, so they cannot separate the colours. Units
    with random weights can."""
    monkeypatch.setattr(features, "DROPOUT_RATES", ((0.0, 0.0),))
    blank = [(jnp.zeros((2, 32)), jnp.zeros(32))]
    useful = [(8 * jax.random.normal(jax.random.key(1), (2, 32)), jnp.zeros(32))]
    errors = [
        features.probe(LayeredCoder(colour), layers, checkerboard(), "test", 0)["tuned_error"].value
        for layers in (blank, useful)
    ]
    assert errors[0] > 0.2
    assert errors[1] < 0.05


def test_fine_tuning_starts_from_the_layers():
    rng = np.random.RandomState(0)
    layers = [(rng.randn(*shape), rng.randn(shape[1])) for shape in ((3, 4), (4, 2))]
    x = rng.randn(6, 3)
    h = x
    for weight, bias in layers:
        h = 1 / (1 + np.exp(-(h @ weight + bias)))
    model = Classifier((3,), 5, MLP((4, 2), "sigmoid"))
    layers = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), layers)
    state = features.with_layers(model.init(jax.random.key(0)), layers)
    codes, logits = model.features_and_logits(state, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(codes, h, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(logits, np.zeros((6, 5)))


def test_rows_are_evenly_spaced():
    np.testing.assert_array_equal(features._evenly_spaced(3, 5), [0, 1, 2])
    np.testing.assert_array_equal(features._evenly_spaced(10, 4), [0, 2, 5, 7])


@pytest.mark.parametrize("n", [7, 1_200])
def test_codes_stand_in_the_order_of_the_rows_whatever_the_block(n):
    class LabelledCoder:
        def encode(self, state, batch):
            return batch["x"] + batch["label"][:, None, None]

    data = {"x": jnp.arange(n * 4.0).reshape(n, 2, 2), "label": jnp.arange(n)}
    expected = np.arange(n * 4.0).reshape(n, 4) + np.arange(n)[:, None]
    for block in (3 if n < 10 else 500, n):
        codes = features.encode_all(LabelledCoder(), None, data, block)
        np.testing.assert_array_equal(codes, expected)


@pytest.mark.slow
def test_evaluate_probes_each_seed(tmp_path, capsys):
    folder = tmp_path / "run"
    sizes = ["--model.encoder.hidden", "16", "--model.decoder.hidden", "16"]
    flags = [*sizes, "--steps", "20", "--probe"]
    assert main(["train", "vae_digits", *flags, "--seeds", "0", "1", "--out", str(folder)]) == 0
    assert main(["evaluate", str(folder)]) == 0
    record = json.loads((folder / "evaluation.json").read_text())
    raw = record["estimates"]["probe_error_raw"]
    assert raw["value"] < 0.15
    assert raw["n"] == 250
    errors = [estimates["probe_error"]["value"] for estimates in record["per_seed"]]
    assert errors[0] != errors[1]
    assert record["estimates"]["probe_error"]["value"] == pytest.approx(np.mean(errors))


def test_models_without_codes_or_given_the_labels_and_data_without_labels_are_refused(digits):
    experiment = replace(EXPERIMENTS["gan_digits"], probe=True)
    with pytest.raises(UserError, match="GAN has no codes"):
        experiment.on(digits)
    for probed in (
        lambda: replace(EXPERIMENTS["cvae_digits"], probe=True).on(digits),
        lambda: features.probe(VAE(classes=10), None, {}, "test", 0),
    ):
        with pytest.raises(UserError, match="VAE is given the labels"):
            probed()
    unlabelled = replace(digits, train={"x": digits.train["x"]})
    with pytest.raises(UserError, match="digits has no labels"):
        replace(experiment, model=VAE()).on(unlabelled)
