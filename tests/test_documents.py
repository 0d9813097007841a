"""Conditionals of words and groups, against enumeration; the command on documents of one's own."""

import itertools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NAMES, batch_of, entry_of

from experiments.__main__ import main
from experiments.experiment import Experiment
from experiments.registry import EXPERIMENTS
from experiments.uses import documents as command
from experiments.uses.base import Subject
from gen import data
from gen.core import UserError, capabilities
from gen.data.arrays import SPLITS
from gen.models.autoregressive import MADE, Autoregressive
from gen.models.boltzmann import RBM, BoltzmannMachine
from gen.models.mixture import Mixture
from gen.uses import documents

WORDS, GROUPS = 4, 2
ROWS = np.array(list(itertools.product((0, 1), repeat=WORDS)), np.uint8)  # all documents
SHAPE = (WORDS + GROUPS,)
MODELS = {
    "rbm": RBM(shape=SHAPE, hidden=3),
    "boltzmann_machine": BoltzmannMachine(shape=SHAPE, hidden=2),
    "mixture": Mixture(shape=SHAPE, components=3),
    "made": Autoregressive(MADE((5,)), shape=SHAPE),
}


def trained(model):
    """Return a state with large parameters, so that the variables depend on each other."""
    state = jax.jit(model.init)(jax.random.key(0))
    grow = 100 if isinstance(model, RBM) else 3
    return state._replace(params=jax.tree.map(lambda p: grow * p, state.params))


def joint_of(name):
    """Return p(x) of all x up to a constant, [2] * 6, by enumeration of all units."""
    model = MODELS[name]
    state = trained(model)
    x = np.array(list(itertools.product((0.0, 1.0), repeat=WORDS + GROUPS)))
    if name == "rbm":  # the sum over all hidden units of exp(−E), without the free energy
        weight, visible, hidden, _ = (None if p is None else np.asarray(p) for p in state.params)
        h = np.array(list(itertools.product((0.0, 1.0), repeat=model.hidden)))
        p = np.exp((x @ visible)[:, None] + h @ hidden + x @ weight @ h.T).sum(1)
    elif name == "boltzmann_machine":
        weight, biases = (np.asarray(p) for p in state.params)
        h = np.array(list(itertools.product((0.0, 1.0), repeat=model.hidden)))
        units = np.concatenate([np.repeat(x, len(h), 0), np.tile(h, (len(x), 1))], axis=1)
        energy = -units @ biases - np.einsum("ni,ij,nj->n", units, np.triu(weight, 1), units)
        p = np.exp(-energy).reshape(len(x), -1).sum(1)
    else:
        p = np.exp(model.log_prob(state, {"x": jnp.asarray(x, jnp.float32)}))
        assert p.sum() == pytest.approx(1, rel=1e-4)
    return model, state, np.asarray(p, np.float64).reshape([2] * (WORDS + GROUPS))


@pytest.mark.parametrize("name", MODELS)
def test_words_and_groups_have_the_conditionals_of_enumeration(name):
    model, state, p = joint_of(name)
    p_groups = np.stack([p[..., 1, 0], p[..., 0, 1]], axis=-1)  # exactly one group
    for groups, of_words in ((2, p_groups.sum(-1)), (0, None)):
        if of_words is None:  # a model of six words
            rows, of_words = np.array(list(itertools.product((0, 1), repeat=6)), np.uint8), p
        else:
            rows = ROWS
        odds = documents.word_log_odds(model, state, rows, groups)
        for row, row_odds in zip(rows, odds, strict=True):
            for d in range(len(row)):
                one, zero = row.copy(), row.copy()
                one[d], zero[d] = 1, 0
                expected = np.log(of_words[tuple(one)]) - np.log(of_words[tuple(zero)])
                np.testing.assert_allclose(row_odds[d], expected, rtol=1e-3, atol=1e-4)
    posterior = np.exp(documents.group_log_prob(model, state, ROWS, GROUPS))
    expected = np.stack([p_groups[tuple(row)] for row in ROWS])
    np.testing.assert_allclose(
        posterior, expected / expected.sum(1, keepdims=True), rtol=1e-3, atol=1e-6
    )
    assert posterior.std() > 0.01  # the model has something to say


def test_evidence_is_the_change_of_the_log_odds_by_the_word():
    weight = np.array([[2.0, 0.0], [0.0, 1.0], [0.5, 0.5]])

    def log_prob(x):  # with two groups the log odds are linear in the words
        logits = x @ weight
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    x = np.array([[1, 1, 0], [0, 1, 1]], np.uint8)
    evidence = documents.evidence(log_prob, x)
    change = weight[:, :1] - weight[:, 1:]
    np.testing.assert_allclose(evidence, x[:, :, None] * np.concatenate([change, -change], 1))
    mean = documents.mean_evidence(log_prob, x, least=1)
    np.testing.assert_allclose(mean[:, 0], change[:, 0], atol=1e-12)
    assert np.isnan(documents.mean_evidence(log_prob, x, least=2)[0]).all()


def test_a_missing_word_is_found_where_it_follows_from_the_others():
    x = np.repeat(np.eye(15, dtype=np.uint8), 2, axis=1)  # words come in pairs

    def pairs(x):
        return np.where(x.reshape(len(x), 15, 2)[..., ::-1].reshape(len(x), 30) == 1, 5.0, -5.0)

    found = documents.word_measures(pairs, x)
    assert found["missing_word"].value == 1
    assert found["pseudo_nll"].value == pytest.approx(30 * np.log1p(np.exp(-5)))
    other = documents.word_measures(lambda x: -pairs(x), x)
    assert other["missing_word"].value == 0


def test_simple_models_of_words_recover_known_conditionals():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2, 4_000)
    second = np.where(rng.random(4_000) < 0.9, first, 1 - first)
    x = np.stack([first, second, rng.random(4_000) < 0.2], axis=1).astype(np.uint8)
    models = documents.words_by_words(x, inverse_penalty=1e4)
    given = np.array([[1, 0, 0], [0, 0, 0]], np.uint8)
    odds = models["logistic regression"](given)
    np.testing.assert_allclose(odds[:, 1], [np.log(9), -np.log(9)], atol=0.2)
    np.testing.assert_allclose(models["independent words"](given)[:, 2], np.log(0.25), atol=0.1)


def test_logistic_regression_that_does_not_converge_gives_no_warning():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 40)) * 10.0 ** np.linspace(-2, 2, 40)  # not documents, and separable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        documents.group_by_words(x, rng.integers(0, 2, 60), inverse_penalty=1e4)


@pytest.fixture(scope="module")
def subject():
    """An untrained mixture on 300 documents of five words and two groups."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 300)
    likely = np.array([[0.8, 0.7, 0.1, 0.2, 0.5], [0.1, 0.2, 0.8, 0.7, 0.5]])[group]
    words = ("sea", "ship", "sky", "plane", "the")
    x = (rng.random((300, 5)) < likely).astype(np.uint8)
    x = np.split(x, [200, 250])
    dataset = data.from_arrays(
        dict(zip(SPLITS, x, strict=True)),
        dict(zip(SPLITS, np.split(group, [200, 250]), strict=True)),
        words=words,
        labels=("water", "air"),
    )
    experiment = Experiment(Mixture(components=2), data="own.csv").on(dataset)
    states = {seed: jax.jit(experiment.model.init)(jax.random.key(seed)) for seed in (0, 1)}
    return Subject("tiny", experiment, dataset, states, 0, None)


def test_the_command_measures_a_model_beside_simple_ones(subject):
    splits = command.splits_of(subject.dataset)
    assert (splits.groups, splits.names) == (0, ("water", "air"))
    outcome: Any = command.measure(subject, splits)
    record, rows, figure = outcome
    assert record["group_from"] == "codes"
    assert {*record["estimates"]} == {"pseudo_nll", "missing_word", "group_error", "group_nll"}
    assert [row["by"] for row in rows] == [
        "the model",
        "independent words",
        "logistic regression",
        "naive Bayes",
    ]
    assert rows[2]["group error"].value < 0.35
    assert len(record["per_seed"]) == 2
    assert figure.axes


def test_the_command_answers_for_the_document_of_some_words(subject):
    splits = command.splits_of(subject.dataset)
    record, rows, _ = command.answer(subject, splits, ("sea", "ship"))
    assert {*record["evidence"]} == {"sea", "ship"}
    assert sum(record["groups"].values()) == pytest.approx(1, abs=1e-3)
    assert {row["word"] for row in rows} == {"sky", "plane", "the"}
    with pytest.raises(UserError, match="the data have no word 'train'"):
        command.answer(subject, splits, ("train",))


def test_variables_for_the_group_are_no_words(subject):
    rows = subject.dataset.train
    one_hot = np.eye(2, dtype=np.uint8)[rows["label"]]
    joint = data.from_arrays(
        np.concatenate([rows["x"], one_hot], axis=1),
        rows["label"],
        words=(*subject.dataset.format.words, "water", "air"),
        labels=("water", "air"),
    )
    splits = command.splits_of(joint)
    assert (splits.groups, len(splits.words)) == (2, 5)
    assert splits.train["x"].shape[1] == 5


def test_data_without_words_are_refused_in_one_line(capsys):
    assert main(["documents", "rbm_tempered_digits"]) == 2
    error = capsys.readouterr().err
    assert "has no documents" in error
    assert len(error.splitlines()) == 1


def test_the_word_of_no_document_is_refused():
    with pytest.raises(UserError, match="no word 'boat': choose from sea, ship"):
        documents.document_of(("boat",), ("ship", "sea"))


def test_models_with_conditionals_are_found_by_capability():
    models = [experiment.model for experiment in EXPERIMENTS.values()]
    able = {type(model).__name__ for model in models if documents.has_conditionals(model)}
    assert {"RBM", "BoltzmannMachine", "Mixture", "Autoregressive", "HMM"} <= able
    assert not able & {"VAE", "GAN", "Autoencoder", "GaussianDiffusion", "DBN", "DBM"}


WITH_CONDITIONALS = [
    name
    for name in NAMES
    if name in EXPERIMENTS and documents.has_conditionals(EXPERIMENTS[name].model)
]
"""Registered models whose log p(x) is exact up to a constant."""


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_CONDITIONALS)
def test_every_registered_model_of_binary_variables_answers_for_documents(name, digits):
    """All models with conditionals, small and in their first state, found by capability."""
    entry = entry_of(name, digits)
    if entry.levels != 2:
        pytest.skip("its variables are not binary")
    model = entry.model
    state = jax.jit(model.init)(jax.random.key(0))
    x = np.asarray(batch_of(entry, 12)["x"]).reshape(12, -1).astype(np.uint8)
    groups, label = 3, np.arange(12) % 3
    words = x[:, :-groups]

    def odds(x):
        return documents.word_log_odds(model, state, x, groups)

    def log_prob(x):
        return documents.group_log_prob(model, state, x, groups)

    assert np.isfinite(odds(words)).all()
    assert np.isfinite(documents.word_log_odds(model, state, x)).all()
    np.testing.assert_allclose(np.exp(log_prob(words)).sum(axis=1), 1, rtol=1e-5)
    measures = documents.word_measures(odds, words) | documents.group_measures(
        log_prob, words, label
    )
    assert all(np.isfinite(each.value) for each in measures.values())
    assert np.isfinite(documents.mean_evidence(log_prob, words, least=0)).all()
    assert len(documents.likely_words(odds, words[0])) == documents.FIRST
    if "encode" in capabilities(model):
        by_codes = documents.group_by_codes(model, state, x.reshape(-1, *model.shape), label)
        assert np.isfinite(by_codes(x.reshape(-1, *model.shape))).all()
