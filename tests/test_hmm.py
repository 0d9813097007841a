"""Hidden Markov models against enumeration over all paths, and EM against its theory."""

import itertools
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import equal

from gen import data, train
from gen.core import UserError
from gen.models.hmm import (
    HMM,
    Bernoulli,
    Categorical,
    Gaussian,
    GaussianMixture,
    Poisson,
    inference,
    parallel,
)
from gen.models.hmm.emissions import Normal, unfactor
from gen.models.hmm.model import Statistics, flat, log_laws, observations, scaling_of
from gen.optimize import Optimizer

T, D, K = 5, 2, 3
EMISSIONS = {
    "bernoulli": Bernoulli(prior=0.05),
    "categorical": Categorical(levels=3, prior=0.05),
    "poisson": Poisson(prior=0.05),
    "diagonal": Gaussian(prior=0.3, variance=0.5),
    "full": Gaussian("full", prior=0.3, variance=0.5),
    "mixed": GaussianMixture(components=2, prior=0.3, variance=0.5),
}
QUICKLY = ("full",)
every_emission = pytest.mark.parametrize("name", EMISSIONS)
every_emission_in_time = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICKLY else pytest.mark.slow) for name in EMISSIONS],
)


def make(name, **options) -> Any:
    """Return a model, a random state in which each parameter matters, and padded sequences in which
    some values are missing."""
    emission = EMISSIONS[name]
    model = HMM(shape=(T, D), states=K, emission=emission, **options)
    init_key, noise_key, data_key, hole_key = jax.random.split(jax.random.key(7), 4)
    state = jax.jit(model.init)(init_key)
    noise = iter(jax.random.split(noise_key, 20))
    params = jax.tree.map(
        lambda leaf: leaf + 0.7 * jax.random.normal(next(noise), leaf.shape), state.params
    )
    state = state._replace(params=params)
    u = jax.random.uniform(data_key, (6, T, D))
    x = {
        "bernoulli": jnp.round(u),
        "categorical": jnp.round(2 * u) / 2,
        "poisson": jnp.floor(6 * u),
    }.get(name, 3 * u - 1)
    holes = jax.random.bernoulli(hole_key, 0.2, x.shape).at[0].set(False).at[1, 1].set(True)
    batch = {
        "x": jnp.where(holes, jnp.nan, x),
        "length": jnp.array([5, 5, 4, 1, 2, 3]),
    }
    return model, state, batch


def reference(name, params, x):
    """Return log p(x_t | k), [T, K], of one sequence by SciPy; NaN is summed out."""
    x = np.asarray(x, np.float64)
    seen = ~np.isnan(x)
    out = np.zeros((len(x), K))
    for t, k in itertools.product(range(len(x)), range(K)):
        s = seen[t]
        v = x[t, s]
        if name == "bernoulli":
            p = 1 / (1 + np.exp(-np.asarray(params.logits, np.float64)[k, s]))
            each = scipy.stats.bernoulli.logpmf(v, p)
        elif name == "categorical":
            p = np.asarray(jax.nn.softmax(params.logits)[k], np.float64)[s]
            each = np.log([p[i, int(2 * v[i])] for i in range(len(v))])
        elif name == "poisson":
            each = scipy.stats.poisson.logpmf(v, np.exp(np.asarray(params.log_rate)[k, s]))
        elif name == "diagonal":
            scale = np.exp(0.5 * np.asarray(params.spread)[k, s])
            each = scipy.stats.norm.logpdf(v, np.asarray(params.mean)[k, s], scale)
        elif name == "full":
            spread = np.asarray(params.spread, np.float64)[k]
            root = np.tril(spread, -1) + np.diag(np.exp(np.diag(spread)))
            covariance = (root @ root.T)[np.ix_(s, s)]
            mean = np.asarray(params.mean)[k, s]
            each = [scipy.stats.multivariate_normal.logpdf(v, mean, covariance)] if s.any() else []
        else:
            weight = np.asarray(jax.nn.log_softmax(params.weight)[k], np.float64)
            mean = np.asarray(params.component.mean).reshape(K, 2, D)[k][:, s]
            scale = np.exp(0.5 * np.asarray(params.component.spread)).reshape(K, 2, D)[k][:, s]
            joint = weight + scipy.stats.norm.logpdf(v[None], mean, scale).sum(1)
            each = [np.logaddexp.reduce(joint)]
        out[t, k] = np.sum(each)
    return out


def enumerate_paths(log_initial, log_transition, log_likelihood) -> Any:
    """Return all paths, [K^T, T], and log p(x, path) by its definition."""
    steps, states = log_likelihood.shape
    paths = np.array(list(itertools.product(range(states), repeat=steps)))
    joint = log_initial[paths[:, 0]] + log_likelihood[0, paths[:, 0]]
    for t in range(1, steps):
        joint = joint + log_transition[paths[:, t - 1], paths[:, t]]
        joint = joint + log_likelihood[t, paths[:, t]]
    return paths, joint


def exact(name, params, batch, i):
    """Return the paths of sequence i over its own length, and log p(x, path)."""
    initial, transition = (
        np.asarray(jax.nn.log_softmax(x), np.float64) for x in (params.initial, params.transition)
    )
    x = np.asarray(batch["x"][i])[: int(batch["length"][i])]
    return enumerate_paths(initial, transition, reference(name, params.emission, x))


def chain(key, steps, states) -> Any:
    """Return random laws with one impossible transition, and log-likelihoods with one missing
    observation."""
    keys = jax.random.split(jax.random.key(key), 3)
    log_initial = jax.nn.log_softmax(jax.random.normal(keys[0], (states,)))
    logits = jax.random.normal(keys[1], (states, states))
    log_transition = jax.nn.log_softmax(logits.at[0, 1].set(-jnp.inf))
    log_likelihood = 3 * jax.random.normal(keys[2], (steps, states))
    return log_initial, log_transition, log_likelihood.at[steps // 2].set(0.0)


def algorithms(block) -> Any:
    return parallel.Blocks(block) if block else inference


@every_emission
@pytest.mark.parametrize("block", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_evidence_posteriors_and_best_paths_equal_enumeration(name, block):
    model, state, batch = make(name, block=block)
    log_p, posterior, best = jax.jit(
        lambda *of: (model.log_prob(*of), model.encode(*of), model.most_probable_path(*of))
    )(state, batch)
    for i, length in enumerate(map(int, batch["length"])):
        paths, joint = exact(name, state.params, batch, i)
        evidence = np.logaddexp.reduce(joint)
        np.testing.assert_allclose(log_p[i], evidence, rtol=1e-5, atol=1e-5)
        weight = np.exp(joint - evidence)
        shares = [[weight[paths[:, t] == k].sum() for k in range(K)] for t in range(length)]
        np.testing.assert_allclose(posterior[i, :length], shares, atol=2e-5)
        np.testing.assert_array_equal(best[i, :length], paths[joint.argmax()])


@pytest.mark.parametrize(("steps", "states"), [(1, 3), (6, 3)])
@pytest.mark.parametrize("block", [0, 4, pytest.param(1, marks=pytest.mark.slow)])
def test_inference_equals_enumeration(steps, states, block):
    log_initial, log_transition, log_likelihood = laws = chain(steps, steps, states)
    paths, joint = enumerate_paths(*(np.asarray(law, np.float64) for law in laws))
    evidence = np.logaddexp.reduce(joint)
    weight = np.exp(joint - evidence)

    @jax.jit
    def infer(*laws):
        filtered = algorithms(block).filter(*laws)
        smoothed = algorithms(block).smooth(laws[1], filtered)
        count = partial(inference.expected_transitions, laws[1], filtered, smoothed)
        return (
            filtered,
            smoothed,
            jax.vmap(count)(jnp.arange(1, steps + 1)),
            algorithms(block).viterbi(*laws),
            algorithms(block).viterbi(*laws, length=1)[0],
        )

    filtered, smoothed, counts, (path, log_joint), short = infer(*laws)
    np.testing.assert_allclose(filtered.log_evidence.sum(), evidence, rtol=1e-5, atol=1e-5)
    for t in range(steps):
        prefix, up_to = enumerate_paths(
            np.asarray(log_initial), np.asarray(log_transition), np.asarray(log_likelihood)[: t + 1]
        )
        p = np.exp(up_to - np.logaddexp.reduce(up_to))
        now = np.array([p[prefix[:, t] == k].sum() for k in range(states)])
        np.testing.assert_allclose(filtered.state[t], now, atol=1e-5)
        later = now @ np.exp(np.asarray(log_transition))
        np.testing.assert_allclose(filtered.predicted[t], later, atol=1e-5)

    pairs = np.zeros((steps - 1, states, states))
    for t in range(steps):
        shares = [weight[paths[:, t] == k].sum() for k in range(states)]
        np.testing.assert_allclose(smoothed[t], shares, atol=1e-5)
        if t + 1 < steps:
            np.add.at(pairs[t], (paths[:, t], paths[:, t + 1]), weight)
    np.testing.assert_array_equal(counts[0], 0)
    np.testing.assert_allclose(np.diff(counts, axis=0), pairs, atol=1e-5)
    np.testing.assert_allclose(counts[-1], pairs.sum(0), atol=2e-5)
    np.testing.assert_array_equal(path, paths[joint.argmax()])
    np.testing.assert_allclose(log_joint, joint.max(), rtol=1e-5)
    assert set(np.asarray(short).tolist()) == {int((log_initial + log_likelihood[0]).argmax())}


@pytest.mark.parametrize(
    "block", [64, *(pytest.param(b, marks=pytest.mark.slow) for b in (1, 500))]
)
def test_parallel_equals_sequential_on_a_long_sequence(block):
    laws, key = chain(0, 300, 5), jax.random.key(1)

    def infer(block):
        of = algorithms(block)
        filtered = of.filter(*laws)

        def log_p(log_likelihood):
            return of.filter(*laws[:2], log_likelihood).log_evidence.sum()

        return filtered, of.viterbi(*laws), jax.grad(log_p)(laws[2])

    @jax.jit
    def both():
        (one, path, gradient), (other, other_path, other_gradient) = infer(0), infer(block)
        forms = inference, parallel.Blocks(block)
        return (
            (one, other),
            [of.smooth(laws[1], one) for of in forms],
            (path, other_path),
            [of.posterior_sample(key, laws[1], one) for of in forms],
            (gradient, other_gradient),
        )

    (one, other), smoothed, paths, drawn, gradients = both()
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(*smoothed, atol=1e-5)
    np.testing.assert_array_equal(paths[0][0], paths[1][0])
    np.testing.assert_allclose(paths[0][1], paths[1][1], rtol=1e-5)
    np.testing.assert_array_equal(*drawn)
    np.testing.assert_allclose(*gradients, atol=1e-5)
    np.testing.assert_allclose(gradients[0], smoothed[0], atol=1e-5)  # Fisher's identity


@pytest.mark.slow
def test_a_million_steps_lose_no_precision():
    """Transitions that forget the state make log p a sum over steps, known in float64."""
    steps, states = 10**6, 2
    share = jnp.log(jnp.array([0.3, 0.7]))
    log_transition = jnp.broadcast_to(share, (states, states))
    each = 20 * jax.random.normal(jax.random.key(0), (steps, states))
    wide = np.asarray(each, np.float64) + np.asarray(share, np.float64)
    known = np.logaddexp(*wide.T).sum()
    log_p = jax.jit(lambda *laws: parallel.Blocks(1000).filter(*laws).log_evidence.sum())
    np.testing.assert_allclose(log_p(share, log_transition, each), known, rtol=1e-5)
    log_joint = jax.jit(inference.viterbi)(share, log_transition, each)[1]
    np.testing.assert_allclose(log_joint, wide.max(1).sum(), rtol=1e-5)
    part = 10**5
    found = jax.jit(inference.filter)(share, log_transition, each[:part])
    np.testing.assert_allclose(
        np.sum(np.asarray(found.log_evidence, np.float64)),
        np.logaddexp(*wide[:part].T).sum(),
        rtol=1e-6,
    )
    smoothed = jax.jit(inference.smooth)(log_transition, found)
    known = np.exp(wide[:part] - np.logaddexp(*wide[:part].T)[:, None])
    np.testing.assert_allclose(smoothed, known, atol=1e-5)


@pytest.mark.parametrize("block", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_huge_differences_and_impossible_data_are_no_nan(block):
    """The chain has to begin in state 0 and to stay there, and the data speak for state 1."""
    log_initial = jnp.array([0.0, -jnp.inf])
    log_transition = jnp.log(jnp.eye(2))
    each = jnp.array([[-5000.0, 0.0]] * 4)
    of = algorithms(block)
    filtered = of.filter(log_initial, log_transition, each)
    np.testing.assert_allclose(filtered.log_evidence.sum(), -20000.0)
    np.testing.assert_array_equal(of.smooth(log_transition, filtered), [[1, 0]] * 4)
    path, log_joint = of.viterbi(log_initial, log_transition, each)
    np.testing.assert_array_equal(path, [0, 0, 0, 0])
    np.testing.assert_allclose(log_joint, -20000.0)
    never = each.at[2, 0].set(-jnp.inf)
    assert of.filter(log_initial, log_transition, never).log_evidence.sum() == -jnp.inf


@pytest.mark.parametrize("block", [0, 2])
def test_posterior_samples_have_the_law_of_the_paths(block):
    laws = chain(3, 4, 3)
    paths, joint = enumerate_paths(*(np.asarray(law, np.float64) for law in laws))
    p = np.exp(joint - np.logaddexp.reduce(joint))
    filtered = inference.filter(*laws)
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.vmap(lambda key: algorithms(block).posterior_sample(key, laws[1], filtered))
    drawn = jax.jit(draw)(keys)
    index = np.asarray(drawn) @ 3 ** np.arange(4)[::-1]
    counts = np.bincount(index, minlength=len(paths))
    assert counts[p < 1e-9].sum() == 0
    common = p * len(drawn) > 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(p[common], p[~common].sum()) * len(drawn)
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


@every_emission
@pytest.mark.parametrize("prior", [pytest.param(False, marks=pytest.mark.slow), True])
def test_em_never_lowers_what_it_maximises(name, prior):
    """EM maximises Σ log p over the batch plus the logarithm of the priors, if there are any."""
    model, state, batch = make(name, smoothing=0.02 if prior else 0.0)
    if not prior:
        # A Gaussian without a prior may collapse onto a point: it has to have enough of them.
        model = replace(model, emission=replace(model.emission, prior=0.0))
        bigger = jax.random.split(jax.random.key(0), 40)
        x = jnp.concatenate([batch["x"] for _ in bigger])
        noise = 0.3 * jax.random.normal(bigger[0], x.shape)
        gaussian = name in ("diagonal", "full", "mixed")
        batch = {"x": x + noise * gaussian, "length": jnp.tile(batch["length"], 40)}
    mean = jnp.nanmean(jnp.where(within(batch), batch["x"], jnp.nan), axis=(0, 1))

    def objective(state):
        total = model.log_prob(state, batch).mean()
        if prior:
            initial, transition, _ = state.params
            total += 0.02 * jax.nn.log_softmax(initial).sum()
            total += 0.02 * jax.nn.log_softmax(transition).sum()
            total += log_prior(name, model.emission, state.params.emission, batch, mean)
        return total

    step, values = jax.jit(model.step), []
    objective = jax.jit(objective)
    for i in range(40):
        state, metrics = step(state, batch, jax.random.key(i))
        values.append(float(objective(state)))
        assert np.isfinite(metrics["loss"])
    assert np.diff(values).min() > -2e-6 * abs(values[0])
    assert values[-1] - values[0] > 0.01


def within(batch):
    return (jnp.arange(T)[None] < batch["length"][:, None])[:, :, None]


def log_prior(name, emission, params, batch, mean):
    """Return the term of the emission's prior, up to a constant."""
    s = emission.prior
    if name == "bernoulli":
        log_mu, log_not = jax.nn.log_sigmoid(params.logits), jax.nn.log_sigmoid(-params.logits)
        return s * (mean[None] * log_mu + (1 - mean[None]) * log_not).sum()
    if name == "categorical":
        x = jnp.where(within(batch), batch["x"], jnp.nan)
        share = jnp.stack(
            [jnp.nanmean(jnp.where(jnp.isnan(x), x, x == v), (0, 1)) for v in (0, 0.5, 1)], -1
        )
        return s * (share[None] * jax.nn.log_softmax(params.logits)).sum()
    if name == "poisson":
        return s * (mean[None] * params.log_rate - jnp.exp(params.log_rate)).sum()
    if name == "full":
        spread = params.spread
        root = jnp.tril(spread, -1) + jax.vmap(jnp.diag)(jnp.exp(jax.vmap(jnp.diag)(spread)))
        precision = jnp.linalg.inv(root @ root.mT)
        trace = jnp.trace(precision, axis1=1, axis2=2) * emission.variance
        return -0.5 * s * (2 * jnp.trace(spread, axis1=1, axis2=2) + trace).sum()
    log_variance = params.component.spread if name == "mixed" else params.spread
    value = -0.5 * s * (log_variance + emission.variance * jnp.exp(-log_variance)).sum()
    if name == "mixed":
        value += s * jax.nn.log_softmax(params.weight).sum()
    return value


@every_emission_in_time
def test_stepwise_em_mixes_statistics_and_rate_one_is_em(name):
    """A stepwise update sets the parameters to the M-step of the mixed statistics of two batches.
    At rate 1 the statistics of earlier batches play no part."""
    model, state, batch = make(name)
    other = {key: values[::-1] for key, values in batch.items()}
    step = jax.jit(model.step)
    first, _ = step(state, {key: values[:3] for key, values in batch.items()}, jax.random.key(0))
    whole, _ = step(first, other, jax.random.key(1))
    empty = first._replace(statistics=jax.tree.map(jnp.zeros_like, first.statistics))
    forgotten, _ = step(empty, other, jax.random.key(1))
    assert close(whole, forgotten)
    part, _ = jax.jit(replace(model, rate=0.25).step)(first, other, jax.random.key(1))

    @jax.jit
    def mix(first):
        expected = expected_statistics(model, first, other)
        mixed = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, first.statistics, expected)
        emission, _ = model.emission.maximize(first.params.emission, mixed.emission)
        initial, transition = (jnp.log(counts + model.smoothing) for counts in mixed[:2])
        return initial, transition, emission

    by_hand = mix(first)
    assert close(tuple(part.params), by_hand)
    assert not close(part.params, whole.params)


@partial(jax.jit, static_argnums=0)
def expected_statistics(model, state, batch):
    """Return the mean over the batch of the expected statistics."""
    x, seen, length, _ = observations(batch)
    _, log_transition = log_laws(state.params)
    log_likelihood = model._log_likelihood(state.params, observations(batch))
    filtered = jax.vmap(partial(inference.filter, *log_laws(state.params)))(log_likelihood)
    posterior = model.encode(state, batch)
    count = partial(inference.expected_transitions, log_transition)
    transitions = jax.vmap(count)(filtered, posterior, length)
    weight = jnp.where(within(batch), posterior, 0.0)
    emission = model.emission.statistics(
        state.params.emission, flat(x), flat(seen), flat(weight) / len(x)
    )
    return Statistics(posterior[:, 0].mean(0), transitions.mean(0), emission)


def close(a, b, atol=1e-5):
    same = jax.tree.map(lambda x, y: bool(np.allclose(x, y, rtol=1e-4, atol=atol)), a, b)
    return all(jax.tree.leaves(same))


@pytest.mark.parametrize("name", ["diagonal", "full"])
def test_stepwise_moments_are_those_of_both_batches(name):
    """Means and covariances equal those of raw moments in float64, mixed over both batches."""
    model, state, _ = make(name, rate=0.25)
    model = replace(model, emission=replace(model.emission, prior=0.0))
    batches = [
        {"x": 2 + (i + 1) * jax.random.normal(jax.random.key(i), (40, T, D))} for i in range(2)
    ]
    step, encode = jax.jit(model.step), jax.jit(model.encode)
    raw = []
    for batch in batches:
        weight = np.asarray(encode(state, batch), np.float64).reshape(-1, K) / 40
        x = np.asarray(batch["x"], np.float64).reshape(-1, D)
        raw.append((weight.sum(0), weight.T @ x, np.einsum("nk,nd,ne->kde", weight, x, x)))
        state, _ = step(state, batch, jax.random.key(0))
    total, first, second = (0.75 * old + 0.25 * new for old, new in zip(*raw, strict=True))
    mean = first / total[:, None]
    covariance = second / total[:, None, None] - mean[:, :, None] * mean[:, None]
    emission = state.params.emission
    np.testing.assert_allclose(emission.mean, mean, rtol=1e-3, atol=1e-4)
    if name == "full":
        root = np.asarray(unfactor(emission.spread))
        np.testing.assert_allclose(root @ root.swapaxes(1, 2), covariance, rtol=1e-3, atol=1e-4)
    else:
        variance = np.diagonal(covariance, axis1=1, axis2=2)
        np.testing.assert_allclose(np.exp(emission.spread), variance, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "diagonal", "mixed"])
def test_gaussians_begin_well_far_from_the_origin(name):
    """A shift of the data by a thousand changes no likelihood, and no component takes all."""
    model, _, _ = make(name)
    z = jax.random.randint(jax.random.key(0), (60, T, 1), 0, 3)
    x = 5.0 * z + jax.random.normal(jax.random.key(1), (60, T, D))
    found = []
    for shift in (0.0, 1000.0):
        *_, last = train.fit(model, {"x": x + shift}, steps=20, batch_size=60)
        state = last.carry.state
        found.append(float(model.log_prob(state, {"x": x + shift}).mean()))
    np.testing.assert_allclose(found[1], found[0], rtol=0.02)
    if name == "mixed":
        assert jax.nn.softmax(state.params.emission.weight).min() > 0.02


@every_emission_in_time
def test_gradient_is_the_expected_gradient_of_the_complete_data(name):
    """Fisher's identity holds: ∇ log p(x) = E[∇ log p(x, z) | x] with the posterior fixed."""
    model, state, batch = make(name)
    posterior = jax.jit(model.encode)(state, batch)
    expected = expected_statistics(model, state, batch)

    def complete(params):
        each = model._log_likelihood(params, observations(batch))
        emitted = (jnp.where(within(batch), posterior, 0.0) * each).sum() / len(each)
        initial, transition = log_laws(params)
        starts, transitions = expected[:2]
        return emitted + (starts * initial).sum() + (transitions * transition).sum()

    def log_p(params):
        return model.log_prob(state._replace(params=params), batch).mean()

    gradient, expected_gradient = jax.jit(
        lambda params: (jax.grad(log_p)(params), jax.grad(complete)(params))
    )(state.params)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_many_sequences_are_taken_in_parts(monkeypatch):
    model, state, batch = make("full")
    whole, _ = model.step(state, batch, jax.random.key(0))
    monkeypatch.setattr("gen.models.hmm.model.POSTERIORS_AT_ONCE", 4 * T * K)
    parts, _ = model.step(state, batch, jax.random.key(0))
    assert close(whole, parts)


def test_sample_has_the_law_of_the_model():
    """The frequencies of all sequences of three binary observations pass a χ² test."""
    model = HMM(shape=(3, 1), states=2, emission=Bernoulli())
    state = jax.jit(model.init)(jax.random.key(3))
    state = state._replace(params=jax.tree.map(lambda leaf: 3 * leaf, state.params))
    everything = jnp.array(list(itertools.product([0.0, 1.0], repeat=3)))[..., None]
    p = np.exp(np.asarray(jax.jit(model.log_prob)(state, {"x": everything}), np.float64))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    x = np.asarray(model.sample(state, jax.random.key(4), 20_000)).reshape(-1, 3)
    counts = np.bincount(x.astype(int) @ np.array([4, 2, 1]), minlength=8)
    assert scipy.stats.chisquare(counts, p / p.sum() * len(x)).pvalue > 1e-3


def test_complete_draws_from_the_exact_conditional():
    model = HMM(shape=(3, 2), states=2, emission=Bernoulli())
    state = jax.jit(model.init)(jax.random.key(3))
    state = state._replace(params=jax.tree.map(lambda leaf: 3 * leaf, state.params))
    everything = jnp.array(list(itertools.product([0.0, 1.0], repeat=6))).reshape(-1, 3, 2)
    mask = jnp.array([[1, 0], [0, 0], [0, 1]])
    shown = jnp.array([[1.0, 0.5], [0.5, 0.5], [0.5, 0.0]])
    same = np.all((np.asarray(everything) == np.asarray(shown)) | (np.asarray(mask) == 0), (1, 2))
    log_p = np.asarray(jax.jit(model.log_prob)(state, {"x": everything}), np.float64)
    p = np.where(same, np.exp(log_p), 0)
    x = jnp.broadcast_to(shown, (20_000, 3, 2))
    drawn = jax.jit(model.complete)(state, x, mask, jax.random.key(5))
    drawn = np.asarray(drawn).reshape(-1, 6)
    counts = np.bincount(drawn.astype(int) @ 2 ** np.arange(6)[::-1], minlength=64)
    assert counts[~same].sum() == 0
    assert scipy.stats.chisquare(counts[same], p[same] / p.sum() * len(x)).pvalue > 1e-3


@pytest.mark.slow
def test_a_mixture_completes_an_observation_by_what_is_shown_of_it():
    """The shown variable tells which of two distant components the hidden variable belongs to."""
    emission = GaussianMixture(components=2)
    model = HMM(shape=(1, D), states=1, emission=emission)
    state = jax.jit(model.init)(jax.random.key(0))
    means = jnp.array([[0.0, -8.0], [3.0, 8.0]])
    mixed = state.params.emission._replace(
        weight=jnp.log(jnp.array([[0.3, 0.7]])), component=Normal(means, jnp.zeros((2, D)))
    )
    state = state._replace(params=state.params._replace(emission=mixed))
    x = jnp.broadcast_to(jnp.array([[1.2, 0.0]]), (20_000, 1, D))
    drawn = model.complete(state, x, jnp.array([[1, 0]]), jax.random.key(1))[:, 0, 1]
    p = np.array([0.3, 0.7]) * np.exp(-0.5 * (1.2 - np.array([0.0, 3.0])) ** 2)
    share = p[1] / p.sum()
    assert abs((drawn > 0).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(x))
    np.testing.assert_allclose(drawn[drawn > 0].mean(), 8, atol=0.05)


@pytest.mark.slow
def test_a_full_covariance_completes_an_observation_by_its_regression():
    model, state, _ = make("full")
    one = HMM(shape=(1, D), states=1, emission=model.emission)
    spread = jnp.array([[[0.0, 0.0], [0.8, -0.3]]])
    emission = state.params.emission._replace(mean=state.params.emission.mean[:1], spread=spread)
    only = state._replace(
        params=state.params._replace(
            initial=jnp.zeros(1), transition=jnp.zeros((1, 1)), emission=emission
        )
    )
    x = jnp.broadcast_to(jnp.array([[0.4, 9.0]]), (20_000, 1, D))
    drawn = np.asarray(one.complete(only, x, jnp.array([[1, 0]]), jax.random.key(0)))[:, 0]
    np.testing.assert_array_equal(drawn[:, 0], np.float32(0.4))
    root = np.array([[1.0, 0.0], [0.8, np.exp(-0.3)]])
    cov, mean = root @ root.T, np.asarray(emission.mean[0])
    slope = cov[1, 0] / cov[0, 0]
    sd = np.sqrt(cov[1, 1] - slope * cov[0, 1])
    expected = mean[1] + slope * (0.4 - mean[0])
    assert abs(drawn[:, 1].mean() - expected) < 4 * sd / np.sqrt(len(x))
    np.testing.assert_allclose(drawn[:, 1].std(), sd, rtol=0.03)


@every_emission_in_time
def test_samples_are_likelier_under_their_own_model(name):
    """The samples' mean −log p is the entropy, and is higher under another state's law."""
    model, state, _ = make(name)
    other = jax.jit(model.init)(jax.random.key(9))

    @jax.jit
    def draw(state):
        x = model.sample(state, jax.random.key(0), 500)
        hidden = model.complete(state, x, jnp.zeros((T, D)), jax.random.key(1))
        return x, hidden, model.log_prob(state, {"x": x}), model.log_prob(other, {"x": x})

    x, hidden, own, others = draw(state)
    assert own.mean() > others.mean() + 0.1
    np.testing.assert_allclose(hidden.mean((0, 1)), x.mean((0, 1)), atol=0.25 * x.std())


@pytest.mark.parametrize("start", [pytest.param("kmeans", marks=pytest.mark.slow), "examples"])
def test_it_begins_from_the_data(start):
    """The best of four seeds finds three distant clusters."""
    centres = jnp.array([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    z = jax.random.randint(jax.random.key(0), (50, T), 0, 3)
    x = centres[z] + jax.random.normal(jax.random.key(1), (50, T, D))
    model = HMM(shape=(T, D), states=3, emission=Gaussian(), start=start)
    *_, last = train.fit(model, {"x": x}, steps=30, batch_size=50, seed=[0, 1, 2, 3])
    errors = []
    for mean in np.asarray(jax.vmap(model.tables)(last.carry.state)["emission"]):
        distance = np.linalg.norm(mean[:, None] - np.asarray(centres)[None], axis=2)
        errors.append(distance.min(1).max() + distance.min(0).max())
    assert min(errors) < 0.6
    plain = HMM(shape=(T, D), states=3, emission=Gaussian(), start="random")
    state = jax.jit(plain.init)(jax.random.key(0))
    begun = jax.jit(plain.begin)(state, {"x": x}, jax.random.key(1))
    assert equal(begun.params, state.params)
    np.testing.assert_allclose(begun.scaling.mean, x.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(begun.scaling.deviation, x.std((0, 1)), rtol=1e-4)


@pytest.mark.parametrize("training", ["em", "gradient"])
@pytest.mark.parametrize(
    "name",
    ["diagonal", *(pytest.param(name, marks=pytest.mark.slow) for name in ("full", "mixed"))],
)
def test_gaussians_have_no_unit_of_the_data(name, training):
    """Training on x and on scale · x reaches the same parameters, in units of the deviations.

    The log-densities differ by log(scale) for each value that is seen. At the two extreme scales
    squares of the values are beyond float32, and the log-densities are large and round accordingly.
    """
    model, state, batch = make(name, training=training)
    begin, step, log_prob = jax.jit(model.begin), jax.jit(model.step), jax.jit(model.log_prob)
    tolerances = {100.0: 1e-5, 2.0**-83: 1e-4, 2.0**83: 1e-4}

    def fitted(scale):
        scaled = {**batch, "x": scale * batch["x"]}
        trained = begin(state, scaled, jax.random.key(0))
        for i in range(10):
            trained, _ = step(trained, scaled, jax.random.key(i))
        return trained, log_prob(trained, scaled)

    a, log_p = fitted(1.0)
    assert not close(a.params, state.params)
    seen = (within(batch) & ~np.isnan(batch["x"])).sum((1, 2))
    for scale, atol in tolerances.items():
        b, log_p_scaled = fitted(scale)
        assert close(a.params, b.params, atol=atol)
        np.testing.assert_allclose(b.scaling.mean, scale * a.scaling.mean, rtol=1e-5)
        np.testing.assert_allclose(b.scaling.deviation, scale * a.scaling.deviation, rtol=1e-5)
        moved = seen * np.log(scale)
        np.testing.assert_allclose(log_p - log_p_scaled, moved, rtol=1e-4, atol=1e-3)


def test_the_deviations_of_daily_returns_are_found():
    """The returns have regimes of deviations 0.005 and 0.020, far below 1."""
    rng = np.random.default_rng(0)
    regime = np.cumsum(rng.random(4000) < 0.02) % 2
    x = jnp.asarray(rng.normal(0.0004, np.array([0.005, 0.020])[regime])[None, :, None])
    model = HMM(shape=(4000, 1), states=2, emission=Gaussian())
    batch, step = {"x": x}, jax.jit(model.step)
    state = jax.jit(model.begin)(model.init(jax.random.key(0)), batch, jax.random.key(1))
    for i in range(60):
        state, _ = step(state, batch, jax.random.key(i))
    deviations = jnp.exp(0.5 * state.params.emission.spread) * state.scaling.deviation[None]
    np.testing.assert_allclose(np.sort(deviations.ravel()), [0.005, 0.020], rtol=0.04)


def test_variables_that_are_constant_or_far_from_the_origin_are_standardised():
    x = 1e4 + jnp.stack([jnp.zeros(300), jax.random.normal(jax.random.key(0), (300,))], 1)
    scaling = scaling_of(x, jnp.ones((300, 2), bool))
    assert scaling.deviation[0] == 1
    np.testing.assert_allclose(scaling.mean, np.asarray(x, np.float64).mean(0), atol=1e-3)
    np.testing.assert_allclose(scaling.deviation[1], np.asarray(x, np.float64).std(0)[1], rtol=1e-3)


@pytest.mark.slow
@every_emission
def test_gradient_and_stepwise_em_reach_what_em_reaches(name):
    model, state, _ = make(name)
    x = model.sample(state, jax.random.key(0), 300)
    reached = {}
    for how, options, steps, size in (
        ("em", {}, 100, 300),
        ("stepwise", {"rate": 0.1}, 400, 100),
        (
            "gradient",
            {"training": "gradient", "optimizer": Optimizer("adam", learning_rate=0.03)},
            600,
            300,
        ),
    ):
        trained = replace(model, smoothing=1e-4, **options)
        trained = replace(trained, emission=replace(trained.emission, prior=1e-3))
        *_, last = train.fit(trained, {"x": x}, steps=steps, batch_size=size, seed=[0, 1, 2])
        log_p = jax.vmap(lambda state, of=trained: of.log_prob(state, {"x": x}).mean())
        reached[how] = float(log_p(last.carry.state).max())
    assert abs(reached["em"] - reached["stepwise"]) < 0.1
    assert abs(reached["em"] - reached["gradient"]) < 0.15


@pytest.mark.parametrize(
    ("states", "published"),
    [
        pytest.param(1, 391.9189, marks=pytest.mark.slow),
        pytest.param(2, 341.8787, marks=pytest.mark.slow),
        (3, 328.5275),
    ],
)
def test_the_earthquakes_likelihoods_are_the_published_ones(states, published):
    """The values are from Zucchini & MacDonald 2009, with free initial probabilities."""
    series = data.load("earthquakes")
    model = HMM(
        shape=series.shape,
        states=states,
        emission=Poisson(prior=0.0),
        smoothing=0.0,
        per="step",
    )
    rows = {"x": series.train["x"].astype(np.float32), "length": series.train["length"]}
    *_, last = train.fit(model, rows, steps=500, batch_size=1, steps_per_dispatch=100)
    found = model.evaluate(last.carry.state, rows, jax.random.key(0))
    np.testing.assert_allclose(found["total_nll"].value, published, atol=1e-3)
    np.testing.assert_allclose(found["nll"].value, published / 107, atol=1e-5)


def test_evaluate_per_step_is_a_ratio_with_its_error():
    model, state, batch = make("categorical", per="step")
    nll = -np.asarray(jax.jit(model.log_prob)(state, batch), np.float64)
    length = np.asarray(batch["length"])
    found = model.evaluate(state, batch, jax.random.key(0))
    value = nll.sum() / length.sum()
    np.testing.assert_allclose(found["nll"].value, value, rtol=1e-6)
    np.testing.assert_allclose(found["bits"].value, value / np.log(2), rtol=1e-6)
    np.testing.assert_allclose(found["total_nll"].value, nll.sum(), rtol=1e-6)
    residual = nll - value * length
    stderr = np.sqrt(6 * residual.var(ddof=1)) / length.sum()
    np.testing.assert_allclose(found["nll"].stderr, stderr, rtol=1e-4)
    with pytest.raises(UserError, match="levels"):
        model.evaluate(state, {"x": np.full((2, T, D), 0.3)}, jax.random.key(0))


def test_bad_hyperparameters_are_refused():
    for build in (
        lambda: HMM(states=0),
        lambda: HMM(rate=0.0),
        lambda: HMM(smoothing=-1.0),
        lambda: HMM(block=-1),
        lambda: Categorical(levels=1),
        lambda: Bernoulli(prior=-1.0),
        lambda: Gaussian(variance=0.0),
        lambda: GaussianMixture(components=0),
    ):
        with pytest.raises(UserError):
            build()


def test_results_equal_hmmlearn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn = pytest.importorskip("hmmlearn.hmm", reason="extra: compare")
    model, state, _ = make("diagonal")
    x = model.sample(state, jax.random.key(0), 4)
    theirs = learn.GaussianHMM(K, "diag")
    theirs.startprob_ = np.asarray(jax.nn.softmax(state.params.initial), np.float64)
    theirs.startprob_ /= theirs.startprob_.sum()
    theirs.transmat_ = np.asarray(jax.nn.softmax(state.params.transition), np.float64)
    theirs.transmat_ /= theirs.transmat_.sum(1, keepdims=True)
    theirs.means_ = np.asarray(state.params.emission.mean)
    theirs.covars_ = np.exp(np.asarray(state.params.emission.spread))
    flat, lengths = np.asarray(x).reshape(-1, D), [T] * 4
    np.testing.assert_allclose(
        jax.jit(model.log_prob)(state, {"x": x}).sum(),
        theirs.score(flat, lengths),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        jax.jit(model.encode)(state, {"x": x}).reshape(-1, K),
        theirs.predict_proba(flat, lengths),
        atol=1e-5,
    )
    np.testing.assert_array_equal(
        model.most_probable_path(state, {"x": x}).reshape(-1), theirs.predict(flat, lengths)
    )


def test_results_equal_dynamax():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("dynamax.hidden_markov_model", reason="extra: compare")
    log_initial, log_transition, each = chain(5, 40, 4)
    laws = jnp.exp(log_initial), jnp.exp(log_transition)
    with jax.numpy_rank_promotion("allow"):
        posterior = theirs.hmm_smoother(*laws, each)
        best = theirs.hmm_posterior_mode(*laws, each)
    filtered = inference.filter(log_initial, log_transition, each)
    np.testing.assert_allclose(filtered.log_evidence.sum(), posterior.marginal_loglik, rtol=1e-5)
    np.testing.assert_allclose(filtered.state, posterior.filtered_probs, atol=1e-5)
    smoothed = inference.smooth(log_transition, filtered)
    np.testing.assert_allclose(smoothed, posterior.smoothed_probs, atol=1e-5)
    path, _ = inference.viterbi(log_initial, log_transition, each)
    np.testing.assert_array_equal(path, best)
