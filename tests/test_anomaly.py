"""Anomalies: metrics and p-values against hand cases, data splits, and the two commands."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NAMES, batch_of, entry_of, skip_without
from scipy.stats import binom
from sklearn.metrics import average_precision_score, roc_auc_score

from experiments.__main__ import main
from experiments.experiment import Experiment
from experiments.registry import EXPERIMENTS
from experiments.uses import anomaly as command
from experiments.uses import protocol
from experiments.uses.anomaly import halves
from experiments.uses.base import Subject
from gen import core, data, estimate
from gen.core import UserError
from gen.data import anomalies
from gen.data.own import Reading, read_rows
from gen.models.autoencoder import Autoencoder
from gen.models.boltzmann import RBM
from gen.models.dequantized import Dequantized
from gen.models.diffusion import GaussianDiffusion, ResidualMLP
from gen.models.gan import GAN
from gen.models.gaussian_mixture import MixtureOfGaussians
from gen.models.mixture import Mixture
from gen.models.vae import VAE
from gen.nets import MLP
from gen.train import fit
from gen.uses import anomaly, baselines, defects, onset

SHAPE = (4, 4, 1)
NETS = {"encoder": MLP((5,)), "decoder": MLP((5,)), "latent": 2, "shape": SHAPE}
PLAYERS = {"generator": MLP((5,)), "discriminator": MLP((5,)), "latent": 2, "shape": SHAPE}
DIFFUSION = GaussianDiffusion(ResidualMLP(4, 1), shape=SHAPE, levels=0, time_draws=4)
MODELS = {
    "autoencoder": (
        Autoencoder(shape=SHAPE, encoder=MLP((2,)), decoder=MLP((5,))),
        ("default", "reconstruction", "mahalanobis"),
    ),
    "vae": (
        VAE(**NETS),
        ("default", "reconstruction", "mahalanobis", "elbo", "importance"),
    ),
    "gan": (GAN(**PLAYERS), ("default", "discriminator")),
    "bigan": (
        GAN(**PLAYERS, encoder=MLP((5,))),
        ("default", "reconstruction", "mahalanobis", "discriminator"),
    ),
    "rbm": (RBM(shape=SHAPE, hidden=3), ("default", "reconstruction", "mahalanobis")),
    "mixture": (
        Mixture(shape=SHAPE, components=3),
        ("default", "log_prob", "mahalanobis", "complexity"),
    ),
    "gaussians": (
        MixtureOfGaussians(shape=SHAPE, components=3),
        ("default", "log_prob", "mahalanobis"),
    ),
    "diffusion": (DIFFUSION, ("default", "mahalanobis", "denoising")),
    "dequantized": (
        Dequantized(DIFFUSION, shape=SHAPE, levels=2),
        ("default", "mahalanobis", "complexity", "denoising"),
    ),
}
"""A small model of each family, and its kinds of score."""


# Scores


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_scores_that_its_methods_allow(name, rng):
    model, expected = MODELS[name]
    state = jax.eval_shape(model.init, jax.random.key(0))
    assert anomaly.kinds(model, state, {"x": np.zeros((2, *SHAPE), np.float32)}) == expected


@pytest.mark.parametrize("name", ["vae", pytest.param("diffusion", marks=pytest.mark.slow)])
def test_the_score_of_an_example_does_not_depend_on_the_others(name, rng):
    model, _ = MODELS[name]
    state = jax.jit(model.init)(jax.random.key(0))
    x = rng.integers(0, 2, (5, *SHAPE)).astype(np.float32)
    key = jax.random.key(1)
    scores = anomaly.score(model, state, {"x": x}, key)
    reverse = anomaly.score(model, state, {"x": x[::-1]}, key, block=2)
    np.testing.assert_allclose(reverse[::-1], scores, rtol=1e-5)


def test_reconstruction_and_log_prob_are_the_methods_of_the_model(rng):
    x = rng.integers(0, 2, (6, *SHAPE)).astype(np.float32)
    for name in ("autoencoder", "mixture"):
        model, _ = MODELS[name]
        state = jax.jit(model.init)(jax.random.key(0))
        kind = "reconstruction" if name == "autoencoder" else "log_prob"
        score = anomaly.score(model, state, {"x": x}, jax.random.key(1), kind)
        if name == "autoencoder":
            again = jax.jit(model.reconstruct)(state, {"x": x})
            expected = np.mean((x - again) ** 2, axis=(1, 2, 3))
        else:
            expected = -np.asarray(jax.jit(model.log_prob)(state, {"x": x}))
        np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_a_discriminator_that_prefers_bright_images_finds_dark_ones_strange():
    model = GAN(**{**PLAYERS, "discriminator": MLP(())})
    state = jax.jit(model.init)(jax.random.key(0))
    ones = jax.tree.map(jnp.ones_like, state.discriminator.params)
    state = state._replace(discriminator=state.discriminator._replace(params=ones))
    x = np.stack([np.zeros(SHAPE), np.ones(SHAPE)]).astype(np.float32)
    dark, bright = anomaly.score(model, state, {"x": x}, jax.random.key(0))
    assert (dark, bright) == (16 - 1, -16 - 1)  # minus the sum of 2 x − 1 and of the bias 1


def test_a_packed_discriminator_gives_no_score():
    assert "score" not in core.capabilities(GAN(**PLAYERS, pack=2))


def test_a_score_that_a_model_lacks_is_refused_with_those_it_has():
    model, _ = MODELS["autoencoder"]
    state = jax.eval_shape(model.init, jax.random.key(0))
    batch = {"x": np.zeros((2, *SHAPE), np.float32)}
    with pytest.raises(UserError, match="no score 'elbo': choose one of default, reconstruction"):
        anomaly.score(model, state, batch, jax.random.key(0), "elbo")
    with pytest.raises(UserError, match="needs training examples"):
        anomaly.score(model, state, batch, jax.random.key(0), "mahalanobis")


def test_the_importance_score_of_a_vae_is_below_its_elbo(rng):
    model, _ = MODELS["vae"]
    state = jax.jit(model.init)(jax.random.key(0))
    x = {"x": rng.integers(0, 2, (40, *SHAPE)).astype(np.float32)}
    elbo, importance = (
        anomaly.score(model, state, x, jax.random.key(1), kind) for kind in ("elbo", "importance")
    )
    assert importance.mean() < elbo.mean()


@pytest.mark.parametrize("name", MODELS)
def test_complexity_needs_a_score_in_nats(name):
    model, _ = MODELS[name]
    state = jax.eval_shape(model.init, jax.random.key(0))
    kinds = anomaly.kinds(model, state, {"x": np.zeros((2, *SHAPE), np.float32)}, levels=2)
    assert ("complexity" in kinds) == (name not in ("autoencoder", "gan", "bigan"))


def test_mahalanobis_distances_are_squared_distances_of_whitened_codes(rng):
    mixing = np.array([[2.0, 0.0], [1.0, 0.5]])
    reference = rng.standard_normal((20_000, 2)) @ mixing.T + 3
    codes = np.array([[1.0, 0.0], [0.0, 2.0]]) @ mixing.T + 3
    np.testing.assert_allclose(anomaly.mahalanobis(codes, reference), [1, 4], rtol=0.05)


def test_noise_is_longer_than_a_constant_image_after_compression(rng):
    flat, noise = np.full((1, 28, 28, 1), 0.2), rng.random((1, 28, 28, 1))
    lengths = anomaly.compressed_nats(np.concatenate([flat, noise]), 256)
    assert lengths[1] > 5 * lengths[0]
    assert lengths[1] > 28 * 28 * math.log(256)  # uniform bytes are not compressible
    rows = np.concatenate([np.zeros((1, 300)), rng.integers(0, 2, (1, 300))])
    assert np.diff(anomaly.compressed_nats(rows, 2)) > 0


# Figures


def test_simple_images_are_likelier_and_the_length_of_a_compressor_corrects_it(rng):
    """The failure of likelihoods (Nalisnick et al. 2019, https://arxiv.org/abs/1810.09136)."""
    model = Mixture(shape=(16, 16, 1), components=1)
    state = jax.jit(model.init)(jax.random.key(0))
    log_odds = jnp.full_like(state.params.log_odds, -1.0)
    state = state._replace(params=state.params._replace(log_odds=log_odds))
    normal = rng.random((30, 16, 16, 1)) < 1 / (1 + np.exp(1.0))  # drawn from the model
    simple = np.zeros((30, 16, 16, 1))
    simple[:, 4:8, 4:8] = 1
    x = np.concatenate([normal, simple]).astype(np.float32)
    is_simple, key = np.arange(60) >= 30, jax.random.key(1)
    area = {
        kind: anomaly.auroc(anomaly.score(model, state, {"x": x}, key, kind), is_simple).value
        for kind in ("default", "complexity")
    }
    assert area["default"] == 0
    assert area["complexity"] == 1


def test_auroc_is_the_share_of_pairs_in_order_with_the_error_of_delong(rng):
    anomalies = rng.random(200) < 0.2
    scores = np.round(rng.standard_normal(200) + anomalies, 1)  # with ties
    area = anomaly.auroc(scores, anomalies)
    strange, normal = scores[anomalies, None], scores[None, ~anomalies]
    pairs = (strange > normal) + 0.5 * (strange == normal)
    m, n = pairs.shape
    variance = pairs.mean(1).var(ddof=1) / m + pairs.mean(0).var(ddof=1) / n
    assert area.value == pytest.approx(pairs.mean())
    assert area.value == pytest.approx(float(roc_auc_score(anomalies, scores)))
    assert area.stderr == pytest.approx(math.sqrt(variance))


def test_average_precision_of_a_short_list():
    scores, anomalies = [0.9, 0.8, 0.7, 0.6], [True, False, True, False]
    found = anomaly.average_precision(scores, anomalies)
    assert found.value == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found.value == pytest.approx(average_precision_score(anomalies, scores))
    assert anomaly.average_precision(np.arange(50), np.arange(50) >= 40).stderr == 0


def test_the_error_of_average_precision_is_its_spread_over_samples(rng):
    def draw():
        anomalies = np.arange(400) < 80
        return rng.standard_normal(400) + anomalies, anomalies

    spread = np.std([average_precision_score(y, s) for s, y in (draw() for _ in range(200))])
    assert anomaly.average_precision(*draw()).stderr == pytest.approx(spread, rel=0.3)


def test_an_infinite_score_is_the_strangest_and_one_that_is_no_number_is_refused():
    anomalies = [True, False, True, False]
    for figure in (anomaly.auroc, anomaly.average_precision):
        infinite = figure([math.inf, 0.8, 0.7, -math.inf], anomalies)
        assert infinite == figure([9.0, 0.8, 0.7, 0.6], anomalies)
        with pytest.raises(UserError, match="not a number"):
            figure([math.nan, 0.8, 0.7, 0.6], anomalies)


def test_figures_without_anomalies_or_without_normal_examples_are_refused():
    for known in ([False, False], [True, True]):
        with pytest.raises(UserError, match="need both"):
            anomaly.auroc([1.0, 2.0], known)


def test_p_values_count_the_held_out_scores_above():
    p = anomaly.p_values([0.0, 2.0, 2.5, 9.0], [1.0, 2.0, 3.0])
    np.testing.assert_allclose(p, [4 / 4, 3 / 4, 2 / 4, 1 / 4])
    with pytest.raises(UserError, match="not a number"):
        anomaly.p_values([math.nan], [1.0])
    with pytest.raises(UserError, match="none given"):
        anomaly.p_values([1.0], [])


@pytest.fixture(scope="module")
def normal_scores():
    """Scores of 60 normal rows by each of 200 trained models, [200, 60].

    Each model is trained from a seed of its own and scores rows of its own.
    """
    rng = np.random.default_rng(0)
    training = rng.standard_normal((40, 2)).astype(np.float32)
    model = MixtureOfGaussians((2,), 3, prior=0.1)
    *_, last = fit(model, {"x": training}, steps=10, batch_size=40, seed=range(200))
    rows = rng.standard_normal((200, 60, 2)).astype(np.float32)
    scores = jax.jit(jax.vmap(lambda state, x: -model.log_prob(state, {"x": x})))
    return np.asarray(scores(last.carry.state, rows))


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_false_alarms_are_as_frequent_as_stated(normal_scores, rate):
    """The alarms are independent, because each of the 200 seeds tests one row of its own.

    The n other rows are held out. The probability of a false alarm is ⌊rate (n + 1)⌋ / (n + 1).
    """
    n = normal_scores.shape[1] - 1
    alarms = [anomaly.p_values(s[:1], s[1:])[0] <= rate for s in normal_scores]
    exact = math.floor(rate * (n + 1) + 1e-9) / (n + 1)
    low, high = binom.interval(0.999, len(alarms), exact)
    assert low <= np.sum(alarms) <= high
    assert exact <= rate


def test_no_series_has_windows_on_both_sides_of_the_calibration():
    series, normal = np.repeat(np.arange(10), 5), np.arange(48)
    held_out, scored = halves(normal, series, 0)
    assert len(held_out) == len(set(series[held_out])) == 5
    assert set(series[scored]) == set(range(10)) - set(series[held_out])
    independent = halves(normal, None, 7)
    assert [len(rows) for rows in independent] == [7, 7]
    assert not set(independent[0]) & set(independent[1])


def test_discoveries_are_the_rows_below_the_line_of_benjamini_and_hochberg(rng):
    p = np.concatenate([rng.random(50), rng.random(10) / 500])
    ordered = np.sort(p)
    below = np.flatnonzero(ordered <= 0.1 * np.arange(1, 61) / 60)
    threshold = ordered[below[-1]]
    np.testing.assert_array_equal(anomaly.discoveries(p, 0.1), p <= threshold)


def test_rows_that_repeat_a_training_row_are_named(rng):
    training = rng.random((10, 3)).astype(np.float32)
    rows = np.concatenate([training[[4]], rng.random((2, 3), np.float32), training[[0]]])
    np.testing.assert_array_equal(anomaly.repeats(rows, training), [True, False, False, True])


def test_rows_of_another_type_repeat_a_training_row_of_equal_values():
    training = np.array([[0, 1], [2, 0]], np.uint8)
    rows = np.array([[0, 1], [2, 1], [2, 0]])
    for kind in (np.int64, np.float32, np.float64):
        np.testing.assert_array_equal(
            anomaly.repeats(rows.astype(kind), training), [True, False, True]
        )
    np.testing.assert_array_equal(
        anomaly.repeats(np.array([[-0.0, 1.0], [0.5, 1.0]]), training), [True, False]
    )
    assert anomaly.repeats(np.array([[0.1]]), np.array([[0.1]], np.float32)).all()


def test_simple_detectors_find_a_far_point(rng):
    training = rng.standard_normal((60, 4)) @ np.diag([2, 1, 0.1, 0.1])
    examples = np.concatenate([training[:5], [[0, 0, 3, 3]]])
    for detect in baselines.BASELINES.values():
        assert detect(training, examples, 0).argmax() == 5


# The mixture of Gaussians


def test_the_density_of_a_mixture_of_gaussians_is_the_sum_of_its_components(rng):
    from scipy.stats import multivariate_normal

    x = rng.standard_normal((50, 3)).astype(np.float32)
    model = MixtureOfGaussians((3,), 2, prior=0.1)
    keys = jax.random.split(jax.random.key(0))
    state = jax.jit(lambda x: model.begin(model.init(keys[0]), {"x": x}, keys[1]))(x)
    step, losses = jax.jit(model.step), []
    for _ in range(20):
        state, metrics = step(state, {"x": x}, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    weight, mean, root = (np.asarray(each, float) for each in state.params)
    expected = np.log(
        sum(
            w * multivariate_normal(m, r @ r.T).pdf(x)
            for w, m, r in zip(np.exp(weight) / np.exp(weight).sum(), mean, root, strict=True)
        )
    )
    found = jax.jit(model.log_prob)(state, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_em_of_one_gaussian_gives_the_moments_with_the_prior(rng):
    x = (rng.standard_normal((80, 2)) @ [[1, 0.5], [0, 1]] + 1).astype(np.float32)
    model = MixtureOfGaussians((2,), 1, prior=0.25, variance=2.0)
    key = jax.random.key(0)
    state, _ = jax.jit(lambda x: model.step(model.init(key), {"x": x}, key))(x)
    root = np.asarray(state.params.root[0])
    expected = (np.cov(x.T, bias=True) + 0.25 * 2.0 * np.eye(2)) / 1.25
    np.testing.assert_allclose(state.params.mean[0], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(root @ root.T, expected, rtol=1e-4)


# Data


@pytest.fixture
def odds(tmp_path, monkeypatch):
    """Write a set of 90 rows, a third of them twice, with 9 anomalies, in place of `odds_glass`."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((61, 3))
    x = np.concatenate([normal, normal[:20], 6 + rng.standard_normal((9, 3))])
    np.savez(tmp_path / "glass.npz", X=x, y=np.arange(90) >= 81)
    monkeypatch.setattr(anomalies, "fetch", lambda *_: tmp_path / "glass.npz")
    return x


def test_the_seed_draws_the_half_and_no_normal_test_row_is_in_training(odds):
    first, second = (data.load("odds_glass", seed=seed) for seed in (0, 1))
    known = np.concatenate([first.train["x"], first.validation["x"]])
    assert not anomaly.repeats(first.test["x"], known).any()
    assert not anomaly.repeats(first.validation["x"], first.train["x"]).any()
    assert len(known) == pytest.approx(81 / 2, abs=2)
    assert first.test["label"].sum() == 9
    assert not first.train["label"].any()
    assert not np.array_equal(first.train["x"], second.train["x"])
    decoded = (known - first.format.center) / first.format.scale
    np.testing.assert_allclose(decoded.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(decoded.std(0), 1, rtol=1e-4)


def test_the_published_split_resamples_small_sets_and_repeats_training_rows(odds):
    dataset = data.read_odds("odds_glass", 3, "published")
    assert sum(len(split["x"]) for split in dataset.splits.values()) == 1_000
    assert anomaly.repeats(dataset.test["x"], dataset.train["x"]).mean() > 0.5


def test_one_class_sets_train_on_one_class_and_test_on_all(digits, monkeypatch):
    monkeypatch.setattr(anomalies, "read_images", lambda *_: digits)
    dataset = data.load("mnist_class_3")
    assert len(dataset.train["x"]) == (digits.train["label"] == 3).sum()
    np.testing.assert_array_equal(dataset.test["label"], digits.test["label"] != 3)
    assert dataset.format.labels == ("normal", "anomaly")


@pytest.mark.slow
@pytest.mark.parametrize("split", ["drawn", "published"])
def test_real_tables_have_their_rows(split):
    sizes = {"odds_glass": 214, "odds_musk": 3_062, "odds_shuttle": 49_097}
    for name, rows in sizes.items():
        skip_without(anomalies.ODDS[name].name)
        dataset = data.read_odds(name, 0, split)
        expected = max(rows, 1_000) if split == "published" else rows
        assert sum(len(part["x"]) for part in dataset.splits.values()) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_registered_model_has_the_scores_that_its_methods_allow(name, digits):
    """All models, small and in their first state, found by capability.

    A score is one finite number an example. The heat map by `log_prob` and the scores of the steps
    of a sequence add up to −log p of the example.
    """
    entry = entry_of(name, digits)
    model, able = entry.model, core.capabilities(entry.model)
    properties = core.facts(model)
    state = jax.jit(model.init)(jax.random.key(0))
    batch = {part: np.asarray(values) for part, values in batch_of(entry, 6).items()}
    kinds = anomaly.kinds(model, state, batch, entry.levels)
    assert ("default" in kinds) == ("score" in able)
    assert ("log_prob" in kinds) == ("log_prob" in able)
    for kind in kinds:
        scores = anomaly.score(
            model, state, batch, jax.random.key(1), kind, batch, entry.levels, block=4
        )
        assert scores.shape == (6,)
        assert np.isfinite(scores).all()
    exact = -np.asarray(model.log_prob(state, batch)) if "log_prob" in able else np.zeros(6)
    for kind in defects.kinds(model):
        maps = defects.heat_maps(model, state, batch, kind)
        assert maps.shape == (6, 8, 8)
        assert np.isfinite(maps).all()
        if kind == "log_prob":
            np.testing.assert_allclose(maps.sum((1, 2)), exact, rtol=1e-4)
    if onset.has_step_scores(model):
        steps = onset.step_scores(model, state, batch)
        np.testing.assert_allclose(steps.sum(1), exact, rtol=1e-4)
    assert properties.sequences or "encode" not in able or "mahalanobis" in kinds


# Commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder for the files of commands."""
    return tmp_path_factory.mktemp("anomalies")


def test_the_command_scores_the_rows_of_a_file(folder, monkeypatch, capsys):
    """Digits with half of their pixels flipped are anomalies for a published machine of digits."""
    monkeypatch.chdir(folder)
    x = data.load("digits").test["x"][:30].copy()
    digits = data.load("digits")
    x[:3] = digits.train["x"][0], digits.validation["x"][0], digits.test["x"][40]
    x[20:] = np.random.default_rng(0).permuted(x[20:].reshape(10, -1), axis=1).reshape(10, 8, 8, 1)
    np.savez(
        folder / "mine.npz", x=x.astype(np.int64), y=np.arange(30) >= 20
    )  # x in int64, stored as uint8
    assert main(["anomaly", "rbm_tempered_digits", "mine.npz"]) == 0
    record = json.loads(Path("samples/rbm_tempered_digits/anomaly.json").read_text())
    (row,) = record["rows"]
    assert row["AUROC"]["value"] > 0.9
    assert row["held out"] == 250
    assert row["detected"]["value"] > 0.7
    assert len(record["examples"]) == 30
    assert record["examples"][0]["anomaly"]
    repeats = {each["row"]: each["repeats"] for each in record["examples"]}
    assert [repeats[i] for i in (0, 1, 2, 25)] == [["train"], ["validation"], ["held_out"], []]
    scores = [each["score"] for each in record["examples"]]
    assert scores == sorted(scores, reverse=True)
    assert Path("samples/rbm_tempered_digits/anomaly.png").stat().st_size > 10_000
    assert "strangest examples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rbm_tempered_digits", "absent.npz"], "absent.npz does not exist"),
        (["rbm_tempered_digits", "--false-alarm-rate", "1"], "--false-alarm-rate is 1.0"),
        (["rbm_tempered_digits", "--false-alarm-rate", "0.001"], "no p-value below"),
        (["rbm_tempered_digits", "--against", "eight_gaussians"], "has examples of shape [2]"),
        (["rbm_tempered_digits", "a.npz", "--against", "digits"], "give one of them"),
        (["rbm_tempered_digits", "a.npz", "--publish"], "leave the FILE out"),
        (["rbm_tempered_digits", "--score", "elbo"], "no score 'elbo'"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(arguments, message, capsys):
    assert main(["anomaly", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def subject_of(name, **test):
    """Return an experiment with shapes in place of a state, and other arrays of the test split."""
    experiment, dataset = EXPERIMENTS[name], data.load(EXPERIMENTS[name].data)
    dataset = replace(dataset, test={**dataset.test, **test})
    experiment = experiment.on(dataset).for_run()
    state = jax.eval_shape(experiment.model.init, jax.random.key(0))
    return Subject(name, experiment, dataset, {0: state}, 0, None)


def test_rows_of_a_file_are_given_to_a_model_of_sequences_of_one_length(tmp_path):
    subject = subject_of("hmm_regimes")
    x = subject.dataset.test["x"][:4]
    np.save(tmp_path / "rows.npy", x)
    examples = command.examples_of(subject, command.Flags(Path("run"), tmp_path / "rows.npy"))
    np.testing.assert_array_equal(examples.batch["length"], [x.shape[1]] * 4)
    assert examples.calibration.keys() == {"x", "length"}
    shorter = np.full(len(subject.dataset.test["x"]), 5)
    with pytest.raises(UserError, match="sequences of different lengths"):
        command.check_takes_rows(subject_of("hmm_regimes", length=shorter))


DIGITS = np.arange(128).reshape(2, 8, 8) % 17
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"x": DIGITS[:0]}, "has no rows"),
    "beyond": ({"x": 3 * DIGITS}, "has values from 0 to 48, and digits stores integers 0 … 16"),
    "scaled": ({"x": DIGITS / 16}, "give the rows in its units"),
    "missing": (
        {"x": np.where(DIGITS == 5, np.nan, DIGITS)},
        "missing or infinite values in 2 of 2 rows, the first in row 0",
    ),
    "texts": ({"x": DIGITS, "y": ["normal", "odd"]}, "has labels that are no numbers"),
    "unlabelled": ({"x": DIGITS, "y": [0, np.nan]}, "has labels that are no numbers"),
    "one label": ({"x": DIGITS, "y": 1}, "has labels of shape [1] and 2 rows"),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_of_a_file_that_the_model_does_not_take_are_refused(case, tmp_path):
    given, message = ROWS[case]
    arrays: dict[str, Any] = {name: np.asarray(values) for name, values in given.items()}
    path = tmp_path / "rows.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=re.escape(message)):
        command.examples_of(subject_of("vae_digits"), command.Flags(Path("run"), path))


def test_labels_of_a_file_may_be_a_column_or_be_absent(tmp_path):
    """MATLAB stores a vector of labels as a matrix [N, 1]."""
    subject, path = subject_of("vae_digits"), tmp_path / "rows.npz"
    np.savez(path, x=DIGITS, y=np.array([[0], [1]]))
    flags = command.Flags(Path("run"), path)
    np.testing.assert_array_equal(command.examples_of(subject, flags).anomalous, [False, True])
    np.savez(path, x=DIGITS)
    assert command.examples_of(subject, flags).anomalous is None


def test_rows_of_a_table_need_no_labels_and_may_have_other_columns(tmp_path):
    path, reading = tmp_path / "rows.csv", Reading(label_column="state")
    names = [f"n{i},{i},x" for i in range(60)]  # more names than a variable has categories
    path.write_text("\n".join(["name,a,kind", *names]))
    x, label = read_rows(path, reading, ("kind=x", "kind=y", "a"))
    np.testing.assert_array_equal(x, [[1, 0, i] for i in range(60)])
    assert label is None
    path.write_text("a,state,b\n1,0,2\n3,1,4\n")
    x, label = read_rows(path, reading, ("b", "a"))
    np.testing.assert_array_equal(x, [[2, 1], [4, 3]])
    np.testing.assert_array_equal(label, [0, 1])
    with pytest.raises(UserError, match="has no column c, d=x: give the columns of x"):
        read_rows(path, reading, ("a", "c", "d=x"))


def test_infinite_scores_are_drawn():
    """A density of float32 gives them to examples that are far from all that it knows."""
    x, known = np.zeros((6, 2)), np.array([False, False, False, True, True, True])
    examples = command.Examples("rows", {"x": x}, x, known, {"x": x}, x, np.arange(6))
    scores = np.array([0.0, 1.0, 2.0, 3.0, np.inf, np.inf])
    for calibration in (scores[:3], scores[3:]):
        flags = command.Flags(Path("run"), false_alarm_rate=0.5)
        p = anomaly.p_values(scores, calibration)
        histogram, curve = command.draw(examples, scores, calibration, p, flags).axes
        assert np.isfinite(histogram.get_xlim()).all()
        assert curve.get_title().startswith("AUROC 1.000")


def test_models_with_classes_are_refused_where_labels_are_missing():
    with pytest.raises(UserError, match="needs the class of each example"):
        command.examples_of(subject_of("cvae_digits"), command.Flags(Path("run"), Path("a.npz")))


def test_rows_of_a_file_are_refused_where_examples_are_drawn_from_several():
    subject = subject_of("gan_digits")
    stacked = replace(subject.dataset, format=replace(subject.dataset.format, stack=3))
    with pytest.raises(UserError, match="draws an example from 3 of its images"):
        command.check_takes_rows(subject._replace(dataset=stacked))


def test_a_model_without_any_score_is_refused_with_what_to_take():
    model = subject_of("classifier_digits").experiment.model
    with pytest.raises(UserError, match="no score of any kind: take a model with"):
        anomaly.check_kind(model, None, {"x": np.zeros((1, 8, 8, 1))}, "default")


def test_files_of_variants_have_names_of_their_own():
    assert command.variant_name(command.Flags(Path("run"))) == "anomaly"
    variant = command.Flags(Path("run"), against="mnist", score="complexity")
    assert command.variant_name(variant) == "anomaly-complexity-mnist"
    default = protocol.Flags("odds", "vae_odds")
    assert f"{protocol.published_name(default)}.json" == "odds.json"
    denoising = protocol.Flags("odds", "diffusion_odds", split="published", score="denoising")
    assert f"{protocol.published_name(denoising)}.json" == "odds_published-denoising.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["odds", "gan_digits"], "NAME must be an experiment that does, such as gaussians_odds"),
        (["one_class_mnist", "vae_mnist", "--split", "published"], "is for odds"),
        (["odds", "vae_odds", "--publish", "--sets", "odds_glass"], "needs all sets"),
        (["odds", "vae_odds", "--publish", "--seeds", "0"], "needs all sets"),
        (["odds", "pca_error", "--score", "elbo"], "has one score"),
    ],
)
def test_a_protocol_refuses_what_it_cannot_do(arguments, message, capsys):
    assert main(["protocol", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gaussians_odds", "vae_odds", "rbm_odds", "diffusion_odds"])
def test_a_protocol_of_tables_takes_models_of_continuous_values(name):
    protocol.check_takes_tables(name, EXPERIMENTS[name])


def test_a_protocol_checks_the_score_before_training(odds, monkeypatch):
    monkeypatch.setattr(Experiment, "fit", lambda *_, **__: pytest.fail("training began"))
    flags = protocol.Flags("odds", "gaussians_odds")
    dataset = protocol.load_split("odds_glass", 0, flags).dataset
    with pytest.raises(UserError, match="no score 'elbo'"):
        protocol.trained_scores(EXPERIMENTS["gaussians_odds"], dataset, "elbo", 0)


def test_means_over_splits_and_sets_have_standard_errors(odds):
    flags = protocol.Flags("odds", "pca_error")
    assert not protocol.seeds_share_test("odds_glass", flags)
    assert protocol.seeds_share_test("mnist_class_3", flags)
    of_splits = [estimate.Estimate(value, 0.2, "exact", 50) for value in (0.7, 0.8, 0.9)]
    mean = estimate.over_splits(of_splits)
    assert (mean.value, mean.stderr) == pytest.approx((0.8, 0.1 / math.sqrt(3)))
    assert estimate.over_splits(of_splits[:1]) == of_splits[0]
    sets = {
        name: {"auroc": estimate.to_json(estimate.Estimate(value, error, "exact", 9)), "seconds": 1}
        for name, value, error in (("a", 0.5, 0.03), ("b", 0.7, 0.04))
    }
    record = {"sets": sets, "seeds": [0], "score": "default"}
    over_sets: Any = protocol.mean_row(record)["AUROC, %"]
    of_set: Any = protocol.set_rows(record)[1]["AUROC, %"]
    assert (over_sets.value, over_sets.stderr) == pytest.approx((60, 2.5))
    assert of_set.stderr == pytest.approx(4)


def test_a_protocol_goes_on_where_it_stopped(odds, tmp_path, capsys):
    path = tmp_path / "result.json"
    arguments = ["protocol", "odds", "nearest_neighbours", "--out", str(path), "--seeds", "0", "1"]
    assert main([*arguments, "--sets", "odds_glass"]) == 0
    record = json.loads(path.read_text())
    assert record["sets"]["odds_glass"]["auroc"]["value"] > 0.95
    record["sets"]["odds_glass"]["seconds"] = -1.0
    path.write_text(json.dumps(record))
    assert main([*arguments, "--sets", "odds_glass", "odds_wine"]) == 0
    sets = json.loads(path.read_text())["sets"]
    assert sets["odds_glass"]["seconds"] == -1.0  # which was not computed again
    assert sets.keys() == {"odds_glass", "odds_wine"}
    assert main([*arguments[:-1], "2"]) == 2
    assert "another seeds" in capsys.readouterr().err


def test_a_protocol_trains_an_experiment_on_decoded_rows(odds):
    experiment = protocol.EXPERIMENTS["gaussians_odds"]
    experiment = replace(
        experiment,
        model=replace(experiment.model, components=2),
        steps=6,
        validate_every=0,
        early_stop=0,
    )
    flags = protocol.Flags("odds", "gaussians_odds")
    split = protocol.load_split("odds_glass", 0, flags)
    scores = protocol.trained_scores(experiment, split.dataset, "default", 0)
    assert anomaly.auroc(scores, split.anomalous).value > 0.95
