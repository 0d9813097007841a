"""The scikit-learn estimator: scikit-learn's checks, its pipelines and searches, and the rows."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from conftest import equal
from flax import linen as nn
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

from gen import blocks, train
from gen.core import UserError
from gen.models.autoencoder import Autoencoder
from gen.models.boltzmann import RBM
from gen.models.dequantized import Dequantized
from gen.models.diffusion.gaussian import GaussianDiffusion
from gen.models.diffusion.nets import ResidualMLP
from gen.models.gan import GAN
from gen.models.hmm.emissions import Gaussian
from gen.models.hmm.model import HMM
from gen.models.mixture import Mixture
from gen.models.vae import VAE
from gen.nets import MLP
from gen.sklearn import ArgumentError, Estimator

AUTOENCODER = Autoencoder(encoder=MLP((8, 2), "elu"), decoder=MLP((8,), "elu"), output="linear")
GAUSSIAN_HMM = HMM(states=2, emission=Gaussian())
GAUSSIAN_VAE = VAE(encoder=MLP((8,)), decoder=MLP((8,)), latent=2, likelihood="gaussian")
GAUSSIAN_RBM = RBM(hidden=3, units="gaussian", persistent_chains=5)
SMALL = {"steps": 5, "batch_size": 16, "random_state": 0}

CHECKED = [AUTOENCODER, GAUSSIAN_HMM, GAUSSIAN_VAE, GAUSSIAN_RBM]
"""Models of any continuous data. scikit-learn's checks fit these, integers among them: `levels=0`
says that integers are measurements, and a density takes them."""

NETWORK_COPIES = {
    "check_estimators_overwrite_params": "the check compares the bytes of a parameter with those "
    "of its copy, and Flax gives each copy of a network an id of its own; the two are equal"
}


def expected_failures(model) -> dict[str, str]:
    """Return the checks that fail for a model, with the reason."""
    return NETWORK_COPIES if isinstance(model, Autoencoder | VAE) else {}


@pytest.fixture(scope="module")
def clusters() -> np.ndarray:
    """Two clusters of 40 rows and 6 columns."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(80, 6)) + 4 * (np.arange(80) % 2)[:, None]


@pytest.fixture(scope="module")
def fitted(clusters) -> Estimator:
    """An autoencoder fitted to the clusters."""
    return Estimator(AUTOENCODER, **SMALL).fit(clusters)


@pytest.mark.slow
@pytest.mark.parametrize("model", CHECKED, ids=lambda model: type(model).__name__)
def test_scikit_learns_checks_pass(model):
    estimator = Estimator(model, **SMALL, levels=0)
    results = check_estimator(
        estimator, expected_failed_checks=expected_failures(model), on_skip=None
    )
    assert len(results) > 40
    assert {result["status"] for result in results} <= {"passed", "xfail", "skipped"}


QUICK = (
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_valid_tag_types",
    "check_estimators_unfitted",
    "check_estimators_empty_data_messages",
    "check_complex_data",
    "check_fit1d",
    "check_estimator_sparse_array",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
)
"""Checks of scikit-learn that compile nothing, and two that compile one small model."""


def test_scikit_learns_quick_checks_pass():
    checks: Any = estimator_checks_generator(Estimator(AUTOENCODER, **SMALL, levels=0))
    ran = set()
    for estimator, check in checks:
        if (name := check.func.__name__) in QUICK:
            check(estimator)
            ran.add(name)
    assert ran == {*QUICK}


def test_fitting_leaves_the_model_as_it_is(fitted):
    """scikit-learn's check of this cannot compare networks (`NETWORK_COPIES`)."""
    assert fitted.model == AUTOENCODER
    assert fitted.model_.shape == (6,)


SCORED = {"score_samples", "score", "predict", "decision_function", "fit_predict"}
METHODS = {"sample", "transform", "fit_transform", "inverse_transform", *SCORED}


@pytest.mark.parametrize(
    ("model", "methods"),
    [
        (GAN(), {"sample", *SCORED}),
        (GAN(pack=2), {"sample"}),
        (VAE(), METHODS),
        (RBM(), {"sample", "transform", "fit_transform", *SCORED}),
        (AUTOENCODER, {"transform", "fit_transform", "inverse_transform", *SCORED}),
    ],
    ids=["gan", "packed_gan", "vae", "rbm", "autoencoder"],
)
def test_an_estimator_has_the_methods_of_its_model(model, methods):
    estimator = Estimator(model)
    assert {name for name in METHODS if hasattr(estimator, name)} == methods


def test_without_contamination_there_is_no_prediction(clusters):
    estimator = Estimator(AUTOENCODER, **SMALL, contamination=None).fit(clusters)
    assert not hasattr(estimator, "predict")
    assert not hasattr(estimator, "offset_")
    again: Any = Estimator(AUTOENCODER, **SMALL).fit(clusters)
    again.set_params(contamination=None).fit(clusters)  # leaves nothing of the fit before
    assert not hasattr(again, "offset_")
    assert estimator.score_samples(clusters).shape == (80,)


def test_an_integer_is_the_seed_of_fit(clusters, fitted):
    x = {"x": clusters.astype(np.float32)}
    *_, last = train.fit(fitted.model_, x, steps=5, batch_size=16, seed=0)
    assert equal(fitted.state_, last.carry.state)


def test_other_random_states_draw_a_seed(clusters):
    def seed(random_state):
        settings = {**SMALL, "random_state": random_state}
        return Estimator(AUTOENCODER, **settings).fit(clusters).seed_

    assert seed(np.random.RandomState(7)) == seed(np.random.RandomState(7))
    assert seed(None) != seed(None)


def test_fields_of_the_model_are_parameters():
    estimator = Estimator(GAUSSIAN_VAE)
    parameters = estimator.get_params()
    assert parameters["model__latent"] == 2
    assert parameters["model__optimizer__learning_rate"] == 1e-4
    assert parameters["model__encoder__hidden"] == (8,)
    copy: Any = clone(estimator)
    copy.set_params(
        model__latent=3, model__encoder=MLP((5,)), model__encoder__activation="tanh", steps=7
    )
    assert (copy.steps, copy.model.latent) == (7, 3)
    assert copy.model.encoder == MLP((5,), "tanh")
    assert copy.model.decoder == GAUSSIAN_VAE.decoder
    assert estimator.model == GAUSSIAN_VAE


def test_fields_that_need_each_other_are_set_together():
    estimator = Estimator(GAUSSIAN_VAE)
    estimator.set_params(model__optimizer__momentum=0.9, model__optimizer__kind="sgd")
    assert estimator.model.optimizer.momentum == 0.9


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model__latnet", "Invalid parameter 'latnet': VAE has the parameters shape, encoder, "),
        ("model__latent__x", "Invalid parameter 'x': int has no parameters"),
        ("step", "Invalid parameter 'step'"),
    ],
)
def test_unknown_parameters_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        Estimator(GAUSSIAN_VAE).set_params(**{name: 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": VAE}, r"model is <class .*>, must be a model, such as VAE\(\)"),
        ({"contamination": 0.6}, "contamination is 0.6, must be above 0, at most 0.5"),
        ({"contamination": "auto"}, "contamination is 'auto', must be above 0"),
        ({"batch_size": "all"}, "batch_size is 'all': pass an integer"),
        ({"steps": 0}, "steps 0 is out of range"),
        ({"random_state": -1}, "seed -1 is out of range"),
        ({"model": Mixture()}, "2 levels in .* and the data have other values"),
    ],
)
def test_wrong_parameters_are_refused_in_fit(changes, message, clusters):
    with pytest.raises(ArgumentError, match=message) as error:
        Estimator(AUTOENCODER, **SMALL).set_params(**changes).fit(clusters)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, UserError)
    assert isinstance(error.value, ValueError)


def test_wrong_rows_and_codes_are_refused(clusters, fitted):
    with pytest.raises(ValueError, match="6 features"):
        fitted.transform(clusters[:, :5])
    with pytest.raises(ArgumentError, match="X has 3 columns, and the codes of the model have 2"):
        fitted.inverse_transform(np.zeros((1, 3)))


def test_codes_and_their_inverse_are_the_models(clusters, fitted):
    codes = fitted.transform(clusters)
    x = jax.numpy.asarray(clusters, np.float32)
    expected = fitted.model_.encode(fitted.state_, {"x": x})
    np.testing.assert_allclose(codes, expected, atol=1e-5)
    reconstruction = fitted.model_.reconstruct(fitted.state_, {"x": x})
    np.testing.assert_allclose(fitted.inverse_transform(codes), reconstruction, atol=1e-5)
    assert fitted.get_feature_names_out().tolist() == ["autoencoder0", "autoencoder1"]


def test_outliers_are_the_rows_of_the_lowest_score(clusters, fitted):
    scores = fitted.score_samples(clusters)
    np.testing.assert_array_equal(
        fitted.predict(clusters), np.where(scores < fitted.offset_, -1, 1)
    )
    assert (fitted.predict(clusters) == -1).sum() == 8  # a tenth
    assert fitted.predict(clusters[:1] + 100) == [-1]
    assert fitted.score(clusters) == pytest.approx(scores.mean())


def test_levels_are_values_or_indices_and_the_score_is_exact():
    bits = np.random.default_rng(0).integers(0, 2, (40, 4), np.uint8)
    estimator = Estimator(Mixture(shape=(2, 2, 1), components=2), **SMALL).fit(bits)
    assert estimator.model_.shape == (2, 2, 1)
    batch = {"x": jax.numpy.asarray(bits.reshape(-1, 2, 2, 1))}
    log_prob = estimator.model_.log_prob(estimator.state_, batch)
    np.testing.assert_allclose(estimator.score_samples(bits), log_prob, rtol=1e-5)
    np.testing.assert_array_equal(
        estimator.score_samples(bits), estimator.score_samples(bits.astype(float))
    )
    assert estimator.score(bits) == pytest.approx(float(log_prob.mean()))
    drawn = estimator.sample(3, random_state=7)
    assert drawn.shape == (3, 4)
    model, state = estimator.model_, estimator.state_
    np.testing.assert_array_equal(drawn, blocks.draws(model, state, 3, seed=7).reshape(3, 4))
    np.testing.assert_array_equal(estimator.sample(3), estimator.sample(3, random_state=0))
    with pytest.raises(ArgumentError, match="y is given, and the model has no classes"):
        estimator.sample(3, y=0)


def test_a_random_score_depends_on_the_row_alone():
    symbols = np.random.default_rng(0).integers(0, 5, (blocks.BLOCK + 6, 3))
    estimator = Estimator(Dequantized(GAUSSIAN_RBM, levels=5), **SMALL).fit(symbols)
    scores = estimator.score_samples(symbols)
    np.testing.assert_array_equal(estimator.score_samples(symbols[::-1])[::-1], scores)
    np.testing.assert_array_equal(estimator.score_samples(symbols[7:9]), scores[7:9])
    np.testing.assert_array_equal(estimator.score_samples(symbols / 4), scores)
    again: Any = clone(estimator)
    again.set_params(random_state=1).fit(symbols)
    assert abs(again.score_samples(symbols) - scores).max() > 1e-3


def test_rows_are_whole_sequences_with_missing_values():
    rows = np.random.default_rng(0).normal(size=(30, 4))
    rows[:10, 2:] = 0  # zeros that end some of the rows are no padding
    rows[20, 1] = np.nan
    estimator = Estimator(GAUSSIAN_HMM, **SMALL, levels=0).fit(rows)
    assert np.isfinite(estimator.score_samples(rows)).all()
    assert estimator.transform(rows).shape == (30, 4 * 2)


def test_a_model_with_classes_takes_y_as_labels(clusters):
    model = GaussianDiffusion(
        net=ResidualMLP(width=8, layers=1), levels=0, fourier=0, classes=2, sample_steps=2
    )
    estimator = Estimator(model, **SMALL, contamination=None)
    x, y = (clusters + 10) / 30, np.arange(80) % 2
    with pytest.raises(ArgumentError, match="the data set has no labels"):
        estimator.fit(x)
    with pytest.raises(ArgumentError, match="labels up to 2, the model 2 classes"):
        estimator.fit(x, y + 1 - (y == 0))
    estimator.fit(x, y)
    assert estimator.sample(3, y=1, random_state=0).shape == (3, 6)
    with pytest.raises(ArgumentError, match="labels up to 2, the model 2 classes"):
        estimator.sample(3, y=2)


def test_a_pipeline_ends_in_an_estimator(clusters):
    pipeline = make_pipeline(StandardScaler(), Estimator(AUTOENCODER, **SMALL)).fit(clusters)
    assert (pipeline.predict(clusters) == -1).sum() == 8
    scaled = StandardScaler().fit_transform(clusters)
    np.testing.assert_array_equal(
        pipeline.score_samples(clusters), pipeline[-1].score_samples(scaled)
    )


def test_a_classifier_learns_from_the_codes(clusters):
    labels = np.arange(80) % 2
    estimator = Estimator(AUTOENCODER, **SMALL)
    pipeline = make_pipeline(estimator, LogisticRegression()).fit(clusters, labels)
    assert pipeline.score(clusters, labels) > 0.95
    names: Any = pipeline[:-1].get_feature_names_out()
    assert names.tolist() == ["autoencoder0", "autoencoder1"]


def test_a_grid_search_chooses_among_models():
    """The mean of log p(x), exact, chooses the number of components."""
    bits = np.repeat(np.random.default_rng(0).integers(0, 2, (60, 1)), 4, axis=1)
    estimator = Estimator(Mixture(), **{**SMALL, "batch_size": None})
    search = GridSearchCV(estimator, {"model__components": [1, 2]}, cv=2).fit(bits)
    assert search.best_params_ == {"model__components": 2}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.model_.components == 2


def test_a_vae_is_chosen_by_its_bound(clusters):
    estimator = Estimator(GAUSSIAN_VAE, **SMALL).fit(clusters)
    bound = estimator.score(clusters)
    assert bound == pytest.approx(estimator.score(clusters[::-1]))
    nll = estimator.model_.evaluate(estimator.state_, {"x": clusters}, jax.random.key(0))["nll"]
    assert -bound == pytest.approx(nll.value, abs=6 * nll.stderr)


class ListOfWidths(nn.Module):
    """A network of the user's own with a field that has no hash."""

    widths: list[int]

    @nn.compact
    def __call__(self, x, *, train=False):
        for width in self.widths:
            x = nn.Dense(width)(x.reshape(len(x), -1))
        return x


def test_a_network_without_a_hash_is_taken(clusters):
    model = replace(AUTOENCODER, encoder=ListOfWidths([4, 2]))
    with pytest.raises(TypeError, match="hash"):
        hash(model)
    assert Estimator(model, **SMALL).fit(clusters).transform(clusters).shape == (80, 2)


def test_rows_beyond_the_training_range_are_refused_with_the_scaler_that_clips():
    x = np.random.default_rng(0).uniform(size=(20, 4))
    model = VAE(encoder=MLP((4,)), decoder=MLP((4,)), latent=2)
    estimator = Estimator(model, steps=1, batch_size=10, random_state=0, contamination=None)
    for scaler in (MinMaxScaler(), MinMaxScaler(clip=True)):
        pipeline = make_pipeline(scaler, estimator).fit(x)
        if scaler.clip:
            assert pipeline.transform(x * 2).shape == (20, 2)
        else:
            with pytest.raises(ValueError, match=r"in \[0, 1\] .* MinMaxScaler\(clip=True\) keeps"):
                pipeline.transform(x * 2)
