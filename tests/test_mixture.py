"""Mixtures against enumeration, and EM against its theory."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equal
from test_autoregressive import chi_square

from gen import train
from gen.core import UserError
from gen.models.mixture import Mixture, Params, State, Statistics
from gen.optimize import Optimizer

SHAPE = (2, 4, 1)
EVERYTHING = jnp.array(list(itertools.product([0.0, 1.0], repeat=8))).reshape(-1, *SHAPE)


def random_state(components, key=0):
    weight_key, pixel_key = jax.random.split(jax.random.key(key))
    weight = jax.random.normal(weight_key, (components,))
    return State(Params(weight, 2 * jax.random.normal(pixel_key, (components, 8))), (), ())


def clusters(n=600, key=3):
    """Return binary data with structure: four noisy prototypes."""
    prototype_key, choice_key, noise_key = jax.random.split(jax.random.key(key), 3)
    prototypes = jax.random.bernoulli(prototype_key, 0.5, (4, 8))
    chosen = prototypes[jax.random.randint(choice_key, (n,), 0, 4)]
    flipped = jax.random.bernoulli(noise_key, 0.1, chosen.shape)
    return (chosen ^ flipped).astype(jnp.float32).reshape(n, *SHAPE)


@pytest.mark.parametrize("components", [1, 3])
def test_log_prob_is_the_definition_and_sums_to_one(components):
    model, state = Mixture(shape=SHAPE, components=components), random_state(components)
    x = np.asarray(EVERYTHING).reshape(-1, 8)
    pi = np.asarray(jax.nn.softmax(state.params.log_weight))
    mu = np.asarray(jax.nn.sigmoid(state.params.log_odds))
    each = np.prod(np.where(x[:, None] == 1, mu[None], 1 - mu[None]), axis=2)
    p = each @ pi
    np.testing.assert_allclose(
        np.exp(jax.jit(model.log_prob)(state, {"x": EVERYTHING})), p, rtol=1e-4
    )
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(model.encode)(state, {"x": EVERYTHING}).sum(1), 1, rtol=1e-5)


def test_one_component_is_the_frequency_of_each_pixel():
    x = clusters()
    model = Mixture(shape=SHAPE, components=1, smoothing=1e-9)
    state, _ = jax.jit(model.step)(
        jax.jit(model.init)(jax.random.key(0)), {"x": x}, jax.random.key(1)
    )
    np.testing.assert_allclose(
        jax.nn.sigmoid(state.params.log_odds)[0], np.asarray(x).reshape(-1, 8).mean(0), rtol=1e-5
    )


@pytest.mark.parametrize("smoothing", [1e-9, 0.01])
def test_em_never_lowers_what_it_maximises(smoothing):
    """The mean log-likelihood, plus the log of the prior where there is one."""
    x = clusters()
    model = Mixture(shape=SHAPE, components=5, smoothing=smoothing)
    mean = (x.reshape(-1, 8).mean(0) + 1e-3) / 1.002

    def objective(state):
        log_pi = jax.nn.log_softmax(state.params.log_weight)
        log_mu = jax.nn.log_sigmoid(state.params.log_odds)
        log_not = jax.nn.log_sigmoid(-state.params.log_odds)
        prior = log_pi.sum() + (mean[None] * log_mu + (1 - mean[None]) * log_not).sum()
        return model.log_prob(state, {"x": x}).mean() + smoothing * prior

    step, objective_of = jax.jit(model.step), jax.jit(objective)
    state = jax.jit(model.init)(jax.random.key(0))
    values = []
    for i in range(60):
        state, metrics = step(state, {"x": x}, jax.random.key(i))
        values.append(objective_of(state))
        assert np.isfinite(metrics["loss"])
    assert np.all(np.diff(values) > -2e-6)
    assert values[-1] - values[0] > 0.05


def test_em_update_is_the_weighted_mean_by_hand():
    x = clusters(50)
    model = Mixture(shape=SHAPE, components=3, smoothing=0.02)
    state = State(random_state(3).params, Statistics(jnp.ones(3) / 3, jnp.ones((3, 8)) / 6), ())
    r = np.asarray(jax.jit(model.encode)(state, {"x": x}))
    share, ones = r.mean(0), r.T @ np.asarray(x).reshape(50, 8) / 50
    mean = (ones.sum(0) + 1e-3) / 1.002
    new, metrics = jax.jit(model.step)(state, {"x": x}, jax.random.key(0))
    np.testing.assert_allclose(
        jax.nn.softmax(new.params.log_weight), (share + 0.02) / (1 + 0.06), rtol=1e-4
    )
    np.testing.assert_allclose(
        jax.nn.sigmoid(new.params.log_odds),
        (ones + 0.02 * mean) / (share[:, None] + 0.02),
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        metrics["loss"], -jax.jit(model.log_prob)(state, {"x": x}).mean(), rtol=1e-5
    )


def test_stepwise_em_averages_its_statistics():
    x = clusters(100)
    state = State(random_state(3).params, Statistics(jnp.ones(3) / 3, jnp.ones((3, 8)) / 6), ())
    full, _ = Mixture(shape=SHAPE, components=3).step(state, {"x": x}, jax.random.key(0))
    part, _ = Mixture(shape=SHAPE, components=3, rate=0.25).step(state, {"x": x}, jax.random.key(0))
    for old, new, mixed in zip(state.statistics, full.statistics, part.statistics, strict=True):
        np.testing.assert_allclose(mixed, 0.75 * old + 0.25 * new, rtol=1e-5)


@pytest.mark.slow
def test_stepwise_em_and_gradient_reach_what_em_reaches():
    x = clusters()
    options = {"shape": SHAPE, "components": 4}
    runs = {
        "em": (Mixture(**options), 30, 600),
        "stepwise": (Mixture(**options, rate=0.2), 200, 200),
        "gradient": (
            Mixture(**options, training="gradient", optimizer=Optimizer(learning_rate=0.1)),
            400,
            200,
        ),
    }
    reached = {}
    for name, (model, steps, batch) in runs.items():
        best = []
        for seed in range(4):
            *_, last = train.fit(model, {"x": x}, steps=steps, batch_size=batch, seed=seed)
            best.append(float(-jax.jit(model.log_prob)(last.carry.state, {"x": x}).mean()))
        reached[name] = min(best)
    assert abs(reached["em"] - reached["stepwise"]) < 0.05
    assert abs(reached["em"] - reached["gradient"]) < 0.1
    alone = Mixture(shape=SHAPE, components=1)
    *_, last = train.fit(alone, {"x": x}, steps=2, batch_size=600)
    assert reached["em"] < float(-jax.jit(alone.log_prob)(last.carry.state, {"x": x}).mean()) - 0.5


def test_em_begins_from_examples():
    """Each component begins halfway between an example and the mean, and starts differ by seed."""
    x = clusters(32)
    model = Mixture(shape=SHAPE, components=4)
    state = jax.jit(model.begin)(
        jax.jit(model.init)(jax.random.key(0)), {"x": x}, jax.random.key(1)
    )
    rows, mean = np.asarray(x).reshape(32, 8), np.asarray(x).reshape(32, 8).mean(0)
    for mu in np.asarray(jax.nn.sigmoid(state.params.log_odds)):
        distance = np.abs(mu[None] - 0.5 * (rows + mean[None])).max(1)
        assert distance.min() < 2e-3
    starts = [train.begin(model, {"x": x}, 8, seed).state.params.log_odds for seed in (0, 1)]
    logits = jax.jit(model.init)(train.streams(0).init).params.log_odds
    assert np.abs(starts[0] - starts[1]).max() > 0.1
    assert np.abs(starts[0] - logits).max() > 0.1
    seeds = train.begin(model, {"x": x}, 8, [0, 1]).state.params.log_odds
    np.testing.assert_allclose(seeds, np.stack(starts), rtol=1e-5)
    gradient = Mixture(shape=SHAPE, components=4, training="gradient")
    state = jax.jit(gradient.init)(jax.random.key(0))
    assert equal(state, jax.jit(gradient.begin)(state, {"x": x}, jax.random.key(1)))


def test_sample_frequencies_match_the_exact_probabilities():
    model, state = Mixture(shape=SHAPE, components=3), random_state(3)
    x = model.sample(state, jax.random.key(5), 8000)
    assert chi_square(x, jax.jit(model.log_prob)(state, {"x": EVERYTHING}), SHAPE) > 1e-3
    other = jax.jit(model.log_prob)(random_state(3, key=1), {"x": EVERYTHING})
    assert chi_square(x, other, SHAPE) < 1e-6


def test_complete_draws_from_the_exact_conditional():
    """Every other pixel is shown here; any mask would do."""
    model, state = Mixture(shape=SHAPE, components=3), random_state(3)
    mask = jnp.array([1, 0, 1, 0, 1, 0, 1, 0]).reshape(SHAPE)
    shown = EVERYTHING[0b10100010]
    same = np.all(
        (np.asarray(EVERYTHING) == np.asarray(shown)) | (np.asarray(mask) == 0), (1, 2, 3)
    )
    exact = np.where(same, np.exp(jax.jit(model.log_prob)(state, {"x": EVERYTHING})), 0)
    exact /= exact.sum()
    x = jnp.broadcast_to(jnp.where(mask == 1, shown, 0.7), (6000, *SHAPE))
    drawn = np.asarray(model.complete(state, x, mask, jax.random.key(2))).reshape(-1, 8)
    index = drawn.astype(int) @ (2 ** np.arange(8)[::-1])
    frequency = np.bincount(index, minlength=256) / len(drawn)
    assert 0.5 * np.abs(frequency - exact).sum() < 0.03


def test_bad_hyperparameters_and_grey_data_are_refused():
    for make in (
        lambda: Mixture(components=0),
        lambda: Mixture(rate=0.0),
        lambda: Mixture(smoothing=0.0),
    ):
        with pytest.raises(UserError):
            make()
    model = replace(Mixture(shape=SHAPE), components=2)
    with pytest.raises(UserError, match="binarise"):
        model.evaluate(random_state(2), {"x": np.full((3, *SHAPE), 0.5)}, jax.random.key(0))
