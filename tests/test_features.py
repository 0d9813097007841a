"""Judging codes: codes that separate the labels, codes that do not, and fine-tuning."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NAMES, batch_of, entry_of

from experiments.__main__ import main
from experiments.evaluation import evaluate_state
from experiments.experiment import Experiment
from experiments.registry import EXPERIMENTS
from experiments.uses.base import Subject
from experiments.uses.features import check_labelled
from gen.core import UserError, capabilities, facts
from gen.estimate import Estimate
from gen.models.autoencoder import Autoencoder
from gen.models.boltzmann import RBM
from gen.models.diffusion import GaussianDiffusion, ResidualMLP
from gen.models.gan import GAN
from gen.models.mixture import Mixture
from gen.models.vae import VAE
from gen.nets import MLP, sigmoid_layers
from gen.uses import features
from gen.uses.classifier import Classifier

SIZES = {"train": 400, "validation": 100, "test": 200}


@dataclass(frozen=True)
class Coder:
    """A model of two variables with a given encoder."""

    encoder: Callable[[jax.Array], jax.Array]

    def encode(self, state, batch):
        return self.encoder(batch["x"])


class NetworkCoder(Coder):
    """A coder with sigmoid layers, which are its state."""

    def encoder_network(self, state):
        return sigmoid_layers(state)


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
    network = sigmoid_layers(layers)
    tuned = [
        features.tuned_error(network, x, labels, "test", 0, 4, batch_size=10) for _ in range(2)
    ]
    assert tuned[0] == tuned[1]
    assert tuned[0].value < 0.05
    assert tuned[0].n == 200
    assert tuned[0].settings["steps"] in range(300, 1201, 300)
    jax.tree.map(np.testing.assert_array_equal, layers, before)
    assert features.linear_error(x, labels, "test").value > 0.3


@pytest.mark.slow
def test_a_model_with_an_encoder_network_is_fine_tuned_from_it(monkeypatch):
    """Units with weights 0 learn alike without dropout, so they cannot separate the colours. Units
    with random weights can."""
    monkeypatch.setattr(features, "DROPOUT_RATES", ((0.0, 0.0),))
    blank = [(jnp.zeros((2, 32)), jnp.zeros(32))]
    useful = [(8 * jax.random.normal(jax.random.key(1), (2, 32)), jnp.zeros(32))]
    errors = [
        features.probe(NetworkCoder(colour), layers, checkerboard(), "test", 0)["tuned_error"].value
        for layers in (blank, useful)
    ]
    assert errors[0] > 0.2
    assert errors[1] < 0.05


def test_evaluation_fine_tunes_for_the_rounds_of_the_experiment(monkeypatch, digits):
    rounds = []
    monkeypatch.setattr(features, "tuned_error", lambda *arguments: rounds.append(arguments[-1]))
    monkeypatch.setattr(features, "linear_error", lambda *arguments: Estimate(0.0, 0.0, "exact", 1))
    model = Autoencoder(encoder=MLP((4,)), shape=(8, 8, 1))
    experiment = Experiment(model, "digits", probe=True, fine_tuning_rounds=7)
    evaluate_state(experiment, digits, model.init(jax.random.key(0)), "test", 0)
    assert rounds == [7]


def test_fine_tuning_starts_from_the_network():
    rng = np.random.RandomState(0)
    layers = [(rng.randn(*shape), rng.randn(shape[1])) for shape in ((3, 4), (4, 2))]
    x = rng.randn(6, 3)
    h = x
    for weight, bias in layers:
        h = 1 / (1 + np.exp(-(h @ weight + bias)))
    layers = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), layers)
    network, variables = sigmoid_layers(layers)
    model = Classifier((3,), 5, network)
    state = features.with_encoder(jax.jit(model.init)(jax.random.key(0)), variables)
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


def blobs(n: int, classes: int = 3, seed: int = 0) -> features.Labelled:
    """Return vectors [n, 4] of classes that overlap, whose frequencies differ."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=[0.6, 0.3, 0.1][:classes])
    return features.Labelled(rng.normal(size=(n, 4)) + labels[:, None], labels)


def test_draws_take_equal_numbers_of_each_class_until_one_runs_out():
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    rows = features.draw_labelled(labels, 12, 0)
    np.testing.assert_array_equal(np.bincount(labels[rows]), [4, 4, 4])
    assert len(set(rows)) == 12
    np.testing.assert_array_equal(
        np.bincount(labels[features.draw_labelled(labels, 24, 0)]), [10, 10, 4]
    )
    assert set(rows) != set(features.draw_labelled(labels, 12, 1))
    assert set(features.draw_labelled(labels, 84, 0)) == set(range(84))
    with pytest.raises(UserError, match="5 labels of 3 classes: take 6 … 84"):
        features.draw_labelled(labels, 5, 0)


def test_every_row_is_held_out_once_and_few_labels_stay_within_the_budget():
    data = blobs(60)
    rows = features.draw_labelled(data.labels, 18, 0)
    labelled = data.at(rows)
    pairs = features.folds(labelled)
    assert len(pairs) == 5
    held = np.concatenate([held.x for _, held in pairs])
    np.testing.assert_array_equal(np.sort(held, axis=0), np.sort(labelled.x, axis=0))
    for fitted, held in pairs:
        assert len(fitted.labels) + len(held.labels) == 18
        assert not set(map(tuple, fitted.x)) & set(map(tuple, held.x))
    assert len(features.folds(blobs(features.ALL_FOLDS + 1))) == 1


def test_nearest_labels_equal_scikit_learns():
    from sklearn.neighbors import KNeighborsClassifier

    labelled, queries = blobs(90), blobs(40, seed=1).x
    for metric in features.METRICS:
        for k, predicted in zip(
            (1, 4, 10), features.nearest_labels(labelled, queries, metric, (1, 4, 10)), strict=True
        ):
            expected = KNeighborsClassifier(k, metric=metric).fit(*labelled).predict(queries)
            np.testing.assert_array_equal(predicted, expected)


def test_logistic_regression_equals_scikit_learns_on_scaled_vectors():
    from sklearn.linear_model import LogisticRegression

    labelled, test = blobs(90), blobs(300, seed=1)
    mean, scale = labelled.x.mean(axis=0), np.sqrt(labelled.x.var(axis=0).mean())
    expected = LogisticRegression(C=0.1).fit((labelled.x - mean) / scale, labelled.labels)
    wrong = expected.predict((test.x - mean) / scale) != test.labels
    np.testing.assert_array_equal(features.logistic_wrong(labelled, test, "shared", 0.1), wrong)


def test_vectors_are_scaled_to_a_mean_variance_of_one():
    x = np.random.default_rng(0).normal(size=(500, 3)) * [10, 1, 0] + 5
    for scaling, ratio in (("shared", 10), ("each", 1.5)):
        rows, queries = features.scaled(x, x[:7], scaling)
        np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(rows.var(axis=0).mean(), 1)
        np.testing.assert_array_equal(queries, rows[:7])
        deviation = rows.std(axis=0)
        assert deviation[0] / deviation[1] == pytest.approx(ratio, rel=0.1)


def test_the_version_with_the_labels_is_chosen():
    labelled = blobs(60)
    noise = np.random.default_rng(1).normal(size=(60, 4))
    vectors = {"noise": noise, "code": labelled.x}
    representation = features.Representation(
        tuple(vectors), lambda x, versions: [vectors[version] for version in versions]
    )
    assert features.choose(representation, labelled) == "code"


def test_activations_are_averaged_over_cells():
    h = jnp.arange(2 * 14 * 9 * 3.0).reshape(2, 14, 9, 3)
    cells = features.averaged(h)
    assert cells.shape == (2, 7, 7, 3)
    np.testing.assert_allclose(cells[:, 1, 0], h[:, 2:4, 0:2].mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(cells[:, 0, 2], h[:, 0:2, 3].mean(1), rtol=1e-6)
    small = h[:, :4, :4]
    np.testing.assert_allclose(features.averaged(small), small, rtol=1e-6)


def test_features_of_a_linear_autoencoder_span_the_space_of_pca():
    """Alternating least squares of g and f solves each for the other, down to the optimum."""
    from scipy.linalg import subspace_angles
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)) * [3, 2.5, 2, 0.5, 0.3, 0.1] @ rng.normal(size=(6, 6))
    x -= x.mean(axis=0)
    model = Autoencoder(shape=(6,), encoder=MLP((3,), "linear"), decoder=MLP(()), output="linear")
    w = rng.normal(size=(6, 3))
    for _ in range(500):
        decoder = np.linalg.lstsq(x @ w, x, rcond=None)[0]
        w = np.linalg.pinv(decoder)
    state = jax.jit(model.init)(jax.random.key(0))
    solved = {"Dense_0": {"kernel": jnp.asarray(w, jnp.float32), "bias": jnp.zeros(3)}}
    state = state._replace(params={**state.params, "encoder": solved})
    codes = features.features_of(model, state)["codes"].vectors(x.astype(np.float32), ["code"])[0]
    components = PCA(3).fit_transform(x)
    assert np.max(subspace_angles(codes, components)) < 1e-3
    untrained = features.features_of(model, jax.jit(model.init)(jax.random.key(0)))["codes"]
    assert np.max(subspace_angles(untrained.vectors(x, ["code"])[0], components)) > 0.1


SMALL_SPLITS = {"train": 120, "test": 50}
FAMILIES = [
    VAE(shape=(8, 8, 1), encoder=MLP((5,)), latent=2, decoder=MLP((4,))),
    RBM(shape=(8, 8, 1), hidden=5),
    GaussianDiffusion(ResidualMLP(width=8, layers=1), shape=(8, 8, 1), levels=17),
    Mixture(shape=(8, 8, 1), components=3),
]


@pytest.mark.parametrize("model", FAMILIES, ids=lambda model: type(model).__name__)
def test_errors_by_labels_of_each_family(model, digits, monkeypatch):
    """The untrained features are the ones of the state that `init` returns."""
    monkeypatch.setattr(features, "TUNING_STEPS", 2)
    monkeypatch.setattr(features, "TUNING_EPOCHS", 1)
    monkeypatch.setattr(features, "FOLDS", 2)
    monkeypatch.setattr(features, "DROPOUT_RATES", ((0.0, 0.0),))
    splits = {
        name: {
            "x": digits.splits[name]["x"][:n] / np.float32(16),
            "label": digits.splits[name]["label"][:n],
        }
        for name, n in SMALL_SPLITS.items()
    }
    state = jax.jit(model.init)(jax.random.key(0))
    results = features.label_errors(model, [state], splits, [20], draws=2)
    errors = {(result.method, result.labels): result.errors for result in results}
    assert len(errors) == len(results)
    for name in ("codes", "layers"):
        for classifier in ("logistic regression", "k-NN"):
            method = f"{name}, {classifier}"
            assert ((method, 20) in errors) == ((f"untrained {method}", 20) in errors)
            if (method, 20) in errors:  # draw 0 of the untrained model has the seed of the state
                assert errors[method, 20][0] == errors[f"untrained {method}", 20][0]
    able = capabilities(model)
    assert (("encoder, fine-tuned", 20) in errors) == ("encoder_network" in able)
    assert (("codes, k-NN", 20) in errors) == features.has_codes(model)


def test_codes_that_separate_the_labels_leave_no_error_with_few_labels():
    class Informed(Coder):
        """A coder whose trained state is True, and whose codes are one constant before."""

        def init(self, key):
            return False

        def encode(self, state, batch):
            return colour(batch["x"]) * state

    board = {name: rows for name, rows in checkerboard().items() if name != "validation"}
    results = features.label_errors(Informed(colour), [True], board, [20], draws=2)
    errors = {result.method: result.errors for result in results}
    for classifier in ("logistic regression", "k-NN"):
        assert errors[f"codes, {classifier}"] == (0, 0)
        assert min(errors[f"untrained codes, {classifier}"]) > 0.3
    assert min(errors["pixels, logistic regression"]) > 0.3


def test_draws_of_all_rows_differ_in_the_states_alone(digits):
    model = Mixture(shape=(8, 8, 1), components=3)
    states = [jax.jit(model.init)(jax.random.key(seed)) for seed in (0, 5)]
    rows = {"x": digits.train["x"][:80] / np.float32(16), "label": digits.train["label"][:80]}
    results = features.label_errors(model, states, {"train": rows, "test": rows}, [999], draws=3)
    errors = {result.method: result.errors for result in results}
    assert {result.labels for result in results} == {80}
    first, second = errors["codes, logistic regression"]
    assert first != second
    assert len(errors["untrained codes, logistic regression"]) == 3
    (pixels,) = (each for each in results if each.method == "pixels, logistic regression")
    assert pixels.estimate.n == 80
    assert (pixels.estimate.settings["draws"], pixels.estimate.settings["stderr_over"]) == (
        1,
        "test examples",
    )


def test_the_standard_error_of_a_single_draw_is_over_test_examples():
    one = features.Result("pixels", "k-NN", 80, (0.2,), ({},), 50).estimate
    assert (one.value, one.n) == (pytest.approx(0.2), 50)
    assert one.stderr == pytest.approx(np.sqrt(0.2 * 0.8 / 49))
    two = features.Result("codes", "k-NN", 80, (0.2, 0.4), ({}, {}), 50).estimate
    assert two.value == pytest.approx(0.3)
    assert two.stderr == pytest.approx(0.1)  # s = √0.02 over √2
    assert two.settings["stderr_over"] == "draws"


def test_models_without_features_or_with_labels_have_no_errors_by_labels():
    with pytest.raises(
        UserError, match=r"GAN has no hidden layers and no codes.* with encode, such as"
    ):
        features.check_features(GAN())
    with pytest.raises(UserError, match="VAE is given the labels"):
        features.check_features(VAE(classes=10))


def test_too_few_labels_are_refused_before_other_numbers_of_labels_are_computed():
    rows = {"x": np.zeros((40, 4)), "label": np.arange(40) % 2}
    model = VAE(shape=(4,), encoder=MLP((3,)), latent=2, decoder=MLP((3,)))
    with pytest.raises(UserError, match="3 labels of 2 classes: take 4 … 40"):
        features.label_errors(
            model,
            [],
            {"train": rows, "test": rows},
            [10, 3],
            report=lambda each: pytest.fail(str(each)),
        )


def test_the_command_writes_the_errors_and_their_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["features", "vae_digits", "--labels", "20", "--draws", "2", "--no-tune"]) == 0
    record = json.loads(Path("samples/vae_digits/features.json").read_text())
    assert Path("samples/vae_digits/features.png").stat().st_size > 10_000
    rows = {row["method"]: row["20 labels"]["value"] for row in record["rows"]}
    for each in record["per_draw"]:
        assert rows[each["method"]] == pytest.approx(np.mean(each["errors"]))
        assert (each["labels"], len(each["settings"])) == (20, 2)
    assert "untrained layers, k-NN" in capsys.readouterr().out
    assert main(["features", "vae_digits", "--labels", "5"]) == 2
    assert "5 labels of 10 classes" in capsys.readouterr().err


def test_data_without_labels_are_refused(digits):
    unlabelled = replace(digits, train={"x": digits.train["x"]})
    experiment = EXPERIMENTS["vae_digits"]
    subject = Subject("vae_digits", experiment, unlabelled, {}, 0, None)
    with pytest.raises(UserError, match=r"digits has no labels.*: give labelled data by --data"):
        check_labelled(subject)


WITH_FEATURES = [
    name
    for name in NAMES
    if name in EXPERIMENTS
    and not facts(EXPERIMENTS[name].model).classes
    and (
        "layers" in capabilities(EXPERIMENTS[name].model)
        or features.has_codes(EXPERIMENTS[name].model)
    )
]
"""Registered models with features."""


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_FEATURES)
def test_labels_are_predicted_from_every_registered_model(name, digits, monkeypatch):
    """All models with features, small and in their first state, found by capability."""
    monkeypatch.setattr(features, "TUNING_STEPS", 2)
    monkeypatch.setattr(features, "TUNING_EPOCHS", 1)
    monkeypatch.setattr(features, "ALL_FOLDS", 1)
    monkeypatch.setattr(features, "DROPOUT_RATES", ((0.0, 0.0),))
    monkeypatch.setattr(features, "ROUND_STEPS", 1)
    entry = entry_of(name, digits)
    state = jax.jit(entry.model.init)(jax.random.key(0))
    x = np.asarray(batch_of(entry, 90)["x"])
    labels = digits.train["label"][:90] % 2
    splits = {
        split: {"x": x[rows], "label": labels[rows]}
        for split, rows in {
            "train": slice(0, 60),
            "validation": slice(60, 75),
            "test": slice(75, 90),
        }.items()
    }
    results = features.label_errors(entry.model, [state], splits, [20], draws=2)
    represented = features.features_of(entry.model, state)
    assert represented
    assert {result.features for result in results} >= {*represented, "pixels", "PCA"}
    able = capabilities(entry.model)
    assert ("encoder" in {result.features for result in results}) == ("encoder_network" in able)
    for result in results:
        assert len(result.errors) == 2
        assert np.isfinite([result.estimate.value, result.estimate.stderr]).all()
    if "encode" in able:
        monkeypatch.setattr(features, "INVERSE_PENALTIES", (1.0,))
        estimates = features.probe(entry.model, state, splits, "test", 0)
        assert all(np.isfinite(each.value) for each in estimates.values())
