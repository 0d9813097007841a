"""Levels: how they are told from continuous data, and a density model on either."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gen import estimate, levels, optimize, train
from gen.core import (
    Density,
    Shape,
    UserError,
    capabilities,
    check_fields,
    facts,
    negative_log_prob,
)
from gen.distributions import gaussian_log_prob
from gen.models.dequantized import Dequantized
from gen.models.diffusion import GaussianDiffusion, ResidualMLP
from gen.models.hmm import HMM, Gaussian
from gen.models.vae import VAE
from gen.nets import MLP
from gen.optimize import Optimizer

RNG = np.random.RandomState(0)
NORMAL = RNG.randn(400).astype(np.float32)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.array([0, 3, 1, 3]), 4),
        (np.array([0, 255], np.uint8), 256),
        (np.array([True, False]), 2),
        (np.array([-1, 1, 0]), 3),
        (np.arange(0, 17).repeat(3) / 16, 17),
        (np.tile(np.arange(256) / 255, 2).astype(np.float32), 256),
        (np.array([0, 0.25, 1, 1], np.float32), 5),  # the levels 2 and 3 do not occur
        (np.array([-1, 1, 1, -1], np.float32), 2),
        (np.array([0, np.nan, 1, 1], np.float32), 2),
        (np.array([0, 0.3, 1, 1, 0.3 + np.pi / 10], np.float32), 0),
        (np.full(9, 0.4, np.float32), 1),
        (np.full(9, np.nan, np.float32), 0),
        (np.array([0.1, 0.7], np.float32), 0),  # no value comes twice
        (NORMAL, 0),
        (np.tile(NORMAL[:200], 2), 0),  # few values, not equally spaced
        (RNG.rand(20_000).astype(np.float32), 0),
        (np.tile(np.arange(300) / 299, 2).astype(np.float32), 0),  # more than 256
    ],
)
def test_levels_are_inferred_from_values(x, expected):
    assert levels.infer_levels(x) == expected
    assert levels.infer_levels(jnp.asarray(x).reshape(-1, 1)) == expected


@pytest.mark.parametrize("count", [2, 17, 256])
def test_dequantized_values_lie_in_the_cell_and_quantize_to_their_level(count):
    index = jnp.arange(256) % count
    x = levels.to_value(index, count)
    np.testing.assert_array_equal(levels.to_index(x, count), index)
    for within in (0.0, 0.5, jax.random.uniform(jax.random.key(0), (256,))):
        y = levels.dequantize(x, count, within)
        np.testing.assert_allclose(y, (np.asarray(index) + within) / count, atol=1e-6)
        np.testing.assert_allclose(levels.quantize(y, count), x, atol=1e-7)


def test_dequantized_values_stay_below_one_for_the_largest_draw():
    """A flow that begins with a logit needs y < 1."""
    largest = np.nextafter(np.float32(1), np.float32(0))
    for count in (2, 17, 255, 256):
        assert levels.dequantize(jnp.ones(3), count, largest).max() < 1


def test_values_between_the_levels_are_refused():
    levels.check_levels({"x": np.arange(5) / 4}, 5)
    for wrong in (0.3, 1.25, -0.25, np.nan):
        with pytest.raises(UserError, match=r"variables of 5 levels in .* other values"):
            levels.check_levels({"x": np.array([0, wrong])}, 5)


class State(NamedTuple):
    params: Any  # {"mean": [D], "logvar": [D]}
    opt_state: Any


@dataclass(frozen=True)
class Gaussians:
    """p(x) = Π_d N(x_d; mean_d, exp(logvar_d)), trained by gradient descent on −log p(x).

    The model is written as a user would write one, from the documents of `gen.core` alone.
    """

    family: ClassVar[str] = "independent Gaussians"
    density: ClassVar[Density] = "tractable"
    levels: ClassVar[int] = 0

    shape: Shape = (8, 8, 1)
    """shape of one example"""
    start_variance: float = 1.0
    """variance before the first step"""
    optimizer: optimize.AnyOptimizer = Optimizer("adam", learning_rate=0.05)
    """optimiser of the means and variances"""

    def __post_init__(self):
        check_fields(self, positive=("start_variance",))

    def init(self, key):
        size = math.prod(self.shape)
        params = {
            "mean": jnp.zeros(size),
            "logvar": jnp.full(size, math.log(self.start_variance)),
        }
        return State(params, optimize.init(self.optimizer, params))

    def step(self, state, batch, key, *, axis_name=None):
        def loss(params):
            value = -self.log_prob(state._replace(params=params), batch).mean()
            return value, {"loss": value}

        gradient, metrics = optimize.gradient(loss, state.params, axis_name)
        moved = optimize.update(self.optimizer, gradient, state.opt_state, state.params)
        return State(*moved), metrics

    def parameters(self, state):
        return state.params

    def evaluate(self, state, data, key):
        nll = estimate.per_example(lambda batch, row_key: -self.log_prob(state, batch), data, key)
        return {"nll": estimate.mean(nll, "exact", density=True)}

    def log_prob(self, state, batch):
        x = batch["x"].reshape(len(batch["x"]), -1)
        mean, logvar = (state.params[name][None] for name in ("mean", "logvar"))
        return gaussian_log_prob(x, mean, logvar)

    def sample(self, state, key, n):
        noise = jax.random.normal(key, (n, math.prod(self.shape)))
        sd = jnp.exp(state.params["logvar"] / 2)
        return (state.params["mean"][None] + sd[None] * noise).reshape(n, *self.shape)

    score = objective = negative_log_prob


@pytest.fixture(scope="module")
def grey(digits):
    """200 digits of 17 levels in [0, 1]."""
    return np.asarray(digits.train["x"][:200], np.float32) / digits.format.peak


def test_a_density_model_of_the_users_learns_continuous_data():
    """Maximum likelihood: the sample mean and variance of each variable, and −log p at them."""
    x = (NORMAL.reshape(100, 4) * [0.5, 1.0, 2.0, 1.0] + [1.0, 0.0, 0.0, -2.0]).astype(np.float32)
    model = Gaussians(shape=(4,))
    assert capabilities(model) == ("sample", "log_prob", "objective", "score")
    options: Any = {"steps": 400, "batch_size": 100, "steps_per_dispatch": 200}
    options |= {"validation": {"x": x}, "validate_every": 200}
    *_, last = train.fit(model, {"x": x}, **options)
    state = last.carry.state
    np.testing.assert_allclose(state.params["mean"], x.mean(0), atol=1e-3)
    np.testing.assert_allclose(state.params["logvar"], np.log(x.var(0)), atol=1e-3)
    nll = estimate.evaluate(model, state, {"x": x}, jax.random.key(0))["nll"]
    exact = -stats.norm.logpdf(x, x.mean(0), x.std(0)).sum(1).mean()
    np.testing.assert_allclose(nll.value, exact, atol=1e-3)
    assert (nll.kind, nll.n) == ("exact", 100)


REFUSAL = (
    "Gaussians models a density of continuous data and x has 17 levels: take "
    "Dequantized(Gaussians(...), shape=(8, 8, 1), levels=17), or pass levels=0 if the values are "
    "measurements"
)


def test_a_density_is_not_trained_or_evaluated_on_data_with_levels(grey, digits):
    model = Gaussians()
    state = jax.jit(model.init)(jax.random.key(0))
    for data in ({"x": grey}, {"x": digits.train["x"][:200]}):
        with pytest.raises(UserError) as raised:
            next(train.fit(model, data, steps=1, batch_size=10))
        assert str(raised.value) == REFUSAL
        with pytest.raises(UserError) as raised:
            estimate.evaluate(model, state, data, jax.random.key(0))
        assert str(raised.value) == REFUSAL
    with pytest.raises(UserError, match="all values of x are equal"):
        next(train.fit(model, {"x": np.ones((20, 8, 8, 1), np.float32)}, steps=1, batch_size=10))


def test_levels_that_are_stated_are_not_inferred(grey):
    model = Gaussians()
    data = {"x": grey}
    progress = next(train.fit(model, data, steps=1, batch_size=10, levels=0))
    nll = estimate.evaluate(model, progress.carry.state, data, jax.random.key(0), levels=0)["nll"]
    assert np.isfinite(nll.value)
    continuous = {"x": grey + RNG.rand(*grey.shape).astype(np.float32)}
    with pytest.raises(UserError, match="x has 5 levels"):
        next(train.fit(model, continuous, steps=1, batch_size=10, levels=5))


def test_a_vae_of_gaussian_pixels_is_a_density_and_one_of_bernoulli_pixels_is_not(grey):
    small = {"shape": (8, 8, 1), "encoder": MLP((4,)), "decoder": MLP((4,)), "latent": 2}
    model = VAE(**small, likelihood="gaussian")
    with pytest.raises(
        UserError, match=r"Dequantized\(VAE\(\.\.\.\), shape=\(8, 8, 1\), levels=17\)"
    ):
        next(train.fit(model, {"x": grey}, steps=1, batch_size=10))
    untrained: Any = None
    with pytest.raises(UserError, match="levels=17"):
        estimate.evaluate(model, untrained, {"x": grey}, jax.random.key(0))
    # Measurements may be rounded to few values; the caller can say so.
    key = jax.random.key(0)
    nll = estimate.evaluate(model, jax.jit(model.init)(key), {"x": grey}, key, levels=0)["nll"]
    assert nll.settings["density"]
    assert facts(model).levels == 0
    assert facts(VAE(**small)).levels is None


def test_only_densities_can_be_dequantized():
    with pytest.raises(UserError, match="VAE is not a density model"):
        Dequantized(VAE())
    with pytest.raises(UserError, match="levels is 1, must be 2 or more"):
        Dequantized(Gaussians(), levels=1)


def test_a_dequantized_density_has_a_bound_and_no_log_prob(grey):
    model = Dequantized(Gaussians(), shape=(8, 8, 1), levels=17)
    assert facts(model).levels == 17
    assert "log_prob" not in capabilities(model)
    assert not hasattr(model, "log_prob")
    state = jax.jit(model.init)(jax.random.key(0))
    # Validation selects by the density model's objective on dequantized examples.
    assert {"objective", "score"} < set(capabilities(model))
    objective = jax.jit(model.objective)(state, {"x": grey[:50]}, jax.random.key(1))
    middle = (np.round(grey[:50] * 16) + 0.5) / 17
    np.testing.assert_allclose(
        objective, -jax.jit(model.base.log_prob)(state, {"x": middle}), rtol=0.01
    )
    samples = model.sample(state, jax.random.key(0), 9)
    levels.check_levels({"x": samples}, 17)
    assert samples.shape == (9, 8, 8, 1)
    with pytest.raises(UserError, match="17 levels"):
        estimate.evaluate(model, state, {"x": grey + 0.01}, jax.random.key(0))


def test_a_dequantized_model_states_the_facts_of_its_density_model():
    net = ResidualMLP(width=8, layers=1)
    base = GaussianDiffusion(
        net, levels=0, classes=3, sample_steps=4, sampler="ddim", shape=(8, 8, 1)
    )
    model = Dequantized(base, shape=(8, 8, 1), levels=17)
    expected = facts(base)._replace(levels=17, lacks=facts(model).lacks)
    assert facts(model) == expected
    assert (expected.classes, expected.codes, expected.sample_steps) == (3, "noise", 4)
    state, key = jax.jit(model.init)(jax.random.key(0)), jax.random.key(1)

    def scatter(leaf):  # the network starts with an output that does not depend on the label
        return leaf + RNG.randn(*leaf.shape).astype(np.float32)

    state = state._replace(ema=jax.tree.map(scatter, state.ema))
    samples = model.sample(state, key, 4, label=2)
    np.testing.assert_array_equal(samples, model.sample(state, key, 4, jnp.full(4, 2)))
    assert not np.array_equal(samples, model.sample(state, key, 4, label=0))
    levels.check_levels({"x": samples}, 17)
    assert model.sample_in(state, key, 4, 2).shape == (4, 8, 8, 1)
    frames = model.denoising(state, key, 4, 2)
    assert frames.shape == (3, 4, 8, 8, 1)
    levels.check_levels({"x": frames}, 17)


def nats_of_levels(state, x, count):
    """Return, in nats per example, the exact mean of −log P(k), where P(k) is the density's mass
    in the cell of k, and the exact mean of the bound E_u[−log p((k + u) / K)] + D log K."""
    k = np.round(np.asarray(x, np.float64).reshape(len(x), -1) * (count - 1))
    mean = np.asarray(state.params["mean"], np.float64)
    sd = np.exp(np.asarray(state.params["logvar"], np.float64) / 2)
    low, high = ((k + edge) / count for edge in (0, 1))
    # Take the tail that is smaller on each side of the mean, to keep its digits.
    law = stats.norm(mean, sd)
    mass = np.where(low > mean, law.sf(low) - law.sf(high), law.cdf(high) - law.cdf(low))
    mean_square = ((k + 0.5) / count - mean) ** 2 + 1 / (12 * count**2)
    bound = 0.5 * (mean_square / sd**2 + np.log(2 * np.pi * sd**2)) + math.log(count)
    return -np.log(mass).sum(1).mean(), bound.sum(1).mean()


def test_a_density_per_step_is_refused_and_padded_sequences_are_not_taken(grey):
    model = Dequantized(HMM(states=2, emission=Gaussian(), per="step"), shape=(8, 8, 1), levels=17)
    assert not facts(model).sequences
    with pytest.raises(UserError, match="nll per step, needed are nats per example"):
        model.evaluate(model.init(jax.random.key(0)), {"x": grey[:20]}, jax.random.key(1))


@pytest.mark.parametrize(
    ("variance", "gap", "error"),
    [
        (1.0, (0, 0.01), 0.005),  # nearly flat over a cell: the bound is tight
        (0.01, (4, 7), 0.5),  # a standard deviation of less than two cells
    ],
)
def test_the_bound_lies_above_the_exact_probability_of_the_levels(grey, variance, gap, error):
    model = Dequantized(Gaussians(start_variance=variance), shape=(8, 8, 1), levels=17)
    state = jax.jit(model.init)(jax.random.key(0))
    params = {**state.params, "mean": jnp.asarray(grey.mean(0).ravel())}
    state = state._replace(params=params)
    exact, bound = nats_of_levels(state, grey, 17)
    data = {"x": np.tile(grey, (5, 1, 1, 1))}
    estimates = estimate.evaluate(model, state, data, jax.random.key(1))
    nll, bits = estimates["nll"], estimates["bits_per_dim"]
    assert (nll.kind, nll.n, nll.settings) == ("upper bound", 1000, {"dequantized": "uniform"})
    np.testing.assert_allclose(bits.value, nll.value / (64 * math.log(2)), rtol=1e-6)
    assert gap[0] < bound - exact < gap[1]
    assert abs(nll.value - bound) < error  # of 1,000 dequantized examples
    assert nll.value > exact - error
