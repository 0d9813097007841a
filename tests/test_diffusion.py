"""Diffusion against closed forms for Gaussian data and sums over all paths of small chains."""

import itertools
import math
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from flax import linen as nn

from gen import estimate, train
from gen.core import UserError, capabilities, facts
from gen.models.diffusion import (
    DiscreteDiffusion,
    FlowMatching,
    GaussianDiffusion,
    ResidualMLP,
    UNet,
    common,
    discrete,
    nets,
    samplers,
    schedules,
)
from gen.models.diffusion.flow import straight
from gen.models.diffusion.gaussian import target
from gen.models.diffusion.samplers import Prediction
from gen.nets import depth_to_space, fitted, space_to_depth
from gen.optimize import Optimizer

SLOW = pytest.mark.slow


def slow(value):
    return pytest.param(value, marks=SLOW)


# Data whose noisy marginals are known.


class Mixture(NamedTuple):
    """A mixture of Gaussians N(m, Q diag(c) Qᵀ) in [−1, 1]; c = 0 is a point."""

    weights: Any  # [K]
    means: Any  # [K, D]
    axes: Any  # Q, [K, D, D]
    variances: Any  # c, [K, D]

    @property
    def size(self):
        return self.means.shape[1]

    def parts(self, x, alpha, sigma, xp: Any = jnp):
        """Return E[x|x_t], E[ε|x_t] and log q(x_t) for x_t [B, D] at α and σ [B]."""
        alpha, sigma = alpha[:, None], sigma[:, None]
        logs, xs, noises = [], [], []
        for w, m, q, c in zip(*self, strict=True):
            w, m, q, c = (xp.asarray(part, x.dtype) for part in (w, m, q, c))
            z = (x - alpha * m[None]) @ q
            v = alpha**2 * c[None] + sigma**2
            log = -0.5 * (z**2 / v + xp.log(2 * math.pi * v)).sum(1) + xp.log(w)
            logs.append(log)
            xs.append(m[None] + (alpha * c[None] / v * z) @ q.T)
            noises.append((sigma / v * z) @ q.T)
        logs = xp.stack(logs)
        logsumexp: Any = jax.nn.logsumexp if xp is jnp else scipy.special.logsumexp
        log_q = logsumexp(logs, axis=0)
        p = xp.exp(logs - log_q[None])[..., None]
        x_mean, noise_mean = ((p * xp.stack(each)).sum(0) for each in (xs, noises))
        return Prediction(x_mean, noise_mean), log_q

    def log_p(self, y):
        """Return the log-density of values y in [0, 1], in float64."""
        x = 2 * np.asarray(y, np.float64) - 1
        return self.parts(x, np.ones(len(x)), np.zeros(len(x)), np)[1] + self.size * math.log(2)

    def denoise(self, path):
        """Return the exact denoiser."""

        def exact(x, t):
            alpha, sigma = (jnp.broadcast_to(scale, len(x)) for scale in path(t))
            return self.parts(x, alpha, sigma)[0]

        return exact

    def flow(self, x, here, there):
        """Return the probability flow of one Gaussian between two (α, σ), and its log-determinant.

        The flow scales the standard deviations along the axes.
        """
        (_, m, q, c), (a, s), (a_new, s_new) = (part[0] for part in self), here, there
        scale = np.sqrt((a_new**2 * c + s_new**2) / (a**2 * c + s**2))
        return a_new * m + ((x - a * m) @ q * scale) @ q.T, np.log(scale).sum()

    @property
    def covariance(self):
        return self.axes[0] * self.variances[0] @ self.axes[0].T


def normal(mean, covariance):
    variances, axes = np.linalg.eigh(np.asarray(covariance))
    return Mixture(np.ones(1), np.array([mean]), axes[None], variances[None])


def points(weights, means):
    k, d = np.shape(means)
    return Mixture(
        np.array(weights), np.array(means), np.tile(np.eye(d), (k, 1, 1)), np.zeros((k, d))
    )


NORMAL = normal([0.2, -0.3], [[0.08, 0.05], [0.05, 0.06]])
PAIR = Mixture(
    np.array([0.3, 0.7]),
    np.array([[-0.5], [0.4]]),
    np.ones((2, 1, 1)),
    np.array([[0.01], [0.04]]),
)


class Plain(nn.Module):
    """A network without parameters: one function of x, t and the label."""

    function: Any

    @nn.compact
    def __call__(self, x, t, label, *, train=False):
        return self.function(x, t, label)


def known(data, prediction: Any = "v", ends=None):
    """Return the exact network, for ends of λ or on the straight path."""

    def exact(x, t, label):
        if ends is None:
            pair, _ = data.parts(x, *straight(t))
            return pair.noise - pair.x
        lowest, highest = ends
        alpha, sigma = scales(highest + (lowest - highest) * t)
        pair, _ = data.parts(x, alpha, sigma)
        return target(prediction, pair, alpha[:, None], sigma[:, None])

    return Plain(exact)


def scales(log_snr):
    return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


def exact_scales(log_snr):
    """Return α and σ in float64."""
    log_snr = np.asarray(log_snr, np.float64)
    return np.sqrt(scipy.special.expit(log_snr)), np.sqrt(scipy.special.expit(-log_snr))


def gaussian(data=NORMAL, ends=(-10.0, 13.3), prediction: Any = "v", net: Any = None, **options):
    """Return a model with the exact network or another one, and its state."""
    lowest, highest = ends
    model = GaussianDiffusion(
        net or known(data, prediction, ends),
        prediction=prediction,
        log_snr_min=lowest,
        log_snr_max=highest,
        **{"levels": 0, "shape": (data.size,), **options},
    )
    return model, model.init(jax.random.key(0))


def flow(data=NORMAL, net: Any = None, **options):
    """Return a model with the exact network or another one, and its state."""
    settings: dict[str, Any] = {"levels": 0, "shape": (data.size,), **options}
    model = FlowMatching(net or known(data), **settings)
    return model, model.init(jax.random.key(0))


def terms_at(model, state, x, t, timesteps, key):
    """Return the bound's terms at times t for x in [−1, 1], and the draws of ε."""
    noise_key, x_0_key = jax.random.split(key)
    keys = noise_key, x_0_key, None
    terms, *_ = model._terms(state.ema, state.stats, x, None, t, keys, timesteps)
    return terms, np.asarray(jax.random.normal(noise_key, x.shape))


def repeat(rows, n):
    """Repeat each row n times: [R, D] to [R n, D]."""
    return np.repeat(np.asarray(rows, np.float32), n, axis=0)


def groups(values, n):
    """Return the mean and its standard error for each group of n successive values."""
    values = np.asarray(values, np.float64).reshape(-1, n)
    return values.mean(1), values.std(1) / math.sqrt(n)


def near(values, n, exact, sigmas=4.5, slack=0.0):
    """Check that the mean of each group is the exact one, and return the standard errors."""
    mean, stderr = groups(values, n)
    assert (abs(mean - exact) < sigmas * stderr + slack).all(), (mean, exact, stderr)
    return stderr


# Schedules and noise.


PAPERS = {  # λ = log α² − log (1 − α²) of α² = exp(−0.1 τ − 9.95 τ²) and of α = cos(πτ/2)
    "linear": lambda tau: -np.log(np.expm1(0.1 * tau + 9.95 * tau**2)),
    "cosine": lambda tau: -2 * np.log(np.tan(0.5 * math.pi * tau)),
}
ENDS = [(-10.0, 13.3), (-5.0, 6.0)]


def paper_log_snr(schedule, ends, t):
    """Return the λ of a paper between the times at which it has these ends, in float64."""
    log_snr = PAPERS[schedule]
    find: Any = scipy.optimize.brentq
    last, first = (
        find(lambda tau, end=end: log_snr(tau) - end, 1e-12, 1 - 1e-9, xtol=1e-14) for end in ends
    )
    return log_snr(first + (last - first) * np.asarray(t, np.float64))


@partial(jax.jit, static_argnames="seed")
def perturbed(schedule, seed=1):
    """Return the parameters of a learned schedule with another curve."""
    keys = jax.random.split(jax.random.key(seed), 4)
    curve = {
        name: leaf + 0.7 * jax.random.normal(key, leaf.shape)
        for key, (name, leaf) in zip(keys, schedule["curve"].items(), strict=True)
    }
    curve["heights"] += 4.0
    return {**schedule, "curve": curve}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "log_linear", "learned", "bent"])
def test_log_snr_falls_from_its_highest_to_its_lowest_value(schedule, ends):
    if schedule in schedules.FIXED:
        log_snr = schedules.FIXED[schedule](*ends)
    else:
        params = schedules.init_learned(*ends)
        log_snr = schedules.learned(perturbed(params) if schedule == "bent" else params)
    t = jnp.linspace(0, 1, 501)
    values = jax.jit(log_snr)(t)
    np.testing.assert_allclose([values[-1], values[0]], ends, rtol=2e-5)
    assert (np.diff(values) < 0).all()
    np.testing.assert_allclose(jax.jit(log_snr)(t[37]), values[37], rtol=1e-5)
    if schedule in PAPERS:
        expected = paper_log_snr(schedule, ends, np.linspace(0, 1, 501))
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=2e-4)
    line = ends[1] + (ends[0] - ends[1]) * np.linspace(0, 1, 501)
    if schedule == "log_linear":
        np.testing.assert_allclose(values, line, rtol=1e-5, atol=1e-5)
    if schedule == "learned":  # nearly a line at first
        assert abs(values - line).max() < 0.05 * (ends[1] - ends[0])


def test_perturbed_curve_of_a_learned_schedule_is_not_linear():
    params = schedules.init_learned(-10.0, 13.3)
    t = jnp.linspace(0, 1, 101)
    bent, line = (
        np.asarray(jax.jit(schedules.learned(one))(t)) for one in (perturbed(params), params)
    )
    assert abs(bent - line).max() > 0.5


def test_linear_schedule_equals_the_1000_steps_of_ddpm():
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    ends = tuple(float(PAPERS["linear"](tau)) for tau in (1.0, 1e-3))
    t = (np.arange(1, 1001) / 1000 - 1e-3) / (1 - 1e-3)
    values = schedules.linear(*ends)(jnp.asarray(t, jnp.float32))
    expected = np.log(kept / (1 - kept))
    np.testing.assert_allclose(values[20:], expected[20:], atol=0.12)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "log_linear", "learned"])
def test_path_preserves_variance_and_has_the_log_snr_of_its_schedule(schedule, ends):
    weighting = "likelihood" if schedule == "learned" else "simple"
    model, state = gaussian(ends=ends, schedule=schedule, weighting=weighting)
    t = jnp.linspace(0, 1, 101)
    alpha, sigma = model.path(state.params)(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
    log_snr = 2 * np.log(np.asarray(alpha, np.float64) / np.asarray(sigma, np.float64))
    np.testing.assert_allclose(log_snr, model._log_snr(state.params)(t), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose([log_snr[-1], log_snr[0]], ends, rtol=2e-5)
    scalar = model.path(state.params)(t[30])
    np.testing.assert_allclose(scalar, (alpha[30], sigma[30]), rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "timesteps"),
    [
        ("linear", 4),
        ("cosine", 0),
        pytest.param("linear", 0, marks=SLOW),
        pytest.param("cosine", 4, marks=SLOW),
    ],
)
def test_network_sees_alpha_x_plus_sigma_noise(schedule, timesteps):
    inputs = []

    def look(x, t, label):
        inputs.append(np.asarray(x))
        return x

    model, state = gaussian(ends=(-5.0, 6.0), net=Plain(look), schedule=schedule)
    x = jnp.tile(jnp.array([[0.9, -0.4]]), (2000, 1))
    for t in (0.1, 0.45, 0.8):
        times = jnp.full(len(x), t)
        _, noise = terms_at(model, state, x, times, timesteps, jax.random.key(0))
        at = math.ceil(t * timesteps) / timesteps if timesteps else t
        alpha, sigma = exact_scales(paper_log_snr(schedule, (-5.0, 6.0), at))
        np.testing.assert_allclose(inputs[-1], alpha * x + sigma * noise, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(noise.mean(0), 0, atol=5 / math.sqrt(len(x)))
        np.testing.assert_allclose(np.cov(noise.T), np.eye(2), atol=0.15)


@SLOW
def test_objective_of_flow_matching_on_the_straight_path():
    """With u = x_t: E ‖x_t − (ε − x)‖² = ∫ (2 − t)² x² + t'² dt with t' = 1 − t."""
    model, state = flow(net=Plain(lambda x, t, label: x))
    y = jnp.tile(jnp.array([[0.9, 0.25]]), (50_000, 1))
    x = 2 * np.array([0.9, 0.25]) - 1
    loss = jax.jit(model.objective)(state, {"x": y}, jax.random.key(0))
    near(loss, len(y), 7 / 3 * (x**2).mean() + 1 / 3)
    np.testing.assert_allclose(straight(jnp.array([0.0, 0.3, 1.0])), [[1, 0.7, 0], [0, 0.3, 1]])
    # The best network: E ‖E[ε − x | x_t] − (ε − x)‖² / D, averaged over the data.
    model, state = flow()
    z = np.random.RandomState(0).randn(50_000, 2)
    data = NORMAL.means + z * np.sqrt(NORMAL.variances) @ NORMAL.axes[0].T
    loss = model.objective(state, {"x": jnp.asarray((data + 1) / 2)}, jax.random.key(0))
    t, c = np.linspace(0, 1, 4001)[:, None], NORMAL.variances
    # (ε − x) given x_t has the variance c + 1 − cov² / var with cov = t − (1 − t) c.
    left = c + 1 - (t - (1 - t) * c) ** 2 / ((1 - t) ** 2 * c + t**2)
    near(loss, len(data), np.trapezoid(left.mean(1), t[:, 0]))


@pytest.mark.parametrize("n", [1, 7, 64])
def test_times_of_a_batch_are_stratified_and_each_is_uniform(n):
    keys = jax.random.split(jax.random.key(0), 2000)
    t = np.asarray(jax.vmap(partial(common.spread_times, n=n))(keys))
    assert (t >= 0).all()
    assert (t < 1).all()
    # One in each n-th part of the circle: sorted, they are 1 / n apart.
    np.testing.assert_allclose(np.diff(np.sort(t), axis=1), 1 / n, atol=1e-6)
    for column in {0, n - 1}:
        assert scipy.stats.kstest(t[:, column], "uniform").pvalue > 1e-3


def test_time_draws_of_an_example_are_stratified_and_uniform():
    times, keys = common.stratified_times(jax.random.key(0), 8, 2000)
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(keys))}) == 8
    np.testing.assert_array_equal(np.floor(8 * times), np.arange(8)[:, None] * np.ones(2000))
    near(8 * times[3] - 3, 2000, 0.5)
    near((times**2).mean(0), 2000, 1 / 3)


def test_time_draws_are_below_one(monkeypatch):
    """At t = 1 a chain of T steps would go on to 1 + 1/T."""
    largest = 1 - 2.0**-23
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, largest))
    times, _ = common.stratified_times(jax.random.key(0), 4096, 1)
    assert np.float32(4095 + largest) / 4096 == 1
    assert 0.9999 < times.max() < 1


# The outputs of a network, and the weights of its errors.


@pytest.mark.parametrize("prediction", ["noise", "x", "v"])
def test_predictions_are_consistent(prediction):
    keys = jax.random.split(jax.random.key(0), 3)
    pair = Prediction(*(jax.random.normal(key, (5, 3)) for key in keys[:2]))
    t = jnp.linspace(0.1, 0.9, 5)
    model, state = gaussian(shape=(3,), prediction=prediction, net=Plain(lambda x, t, label: x))
    alpha, sigma = (scale[:, None] for scale in model.path({})(t))
    x_t = alpha * pair.x + sigma * pair.noise
    out = target(prediction, pair, alpha, sigma)
    expected = {"noise": pair.noise, "x": pair.x, "v": alpha * pair.noise - sigma * pair.x}
    np.testing.assert_array_equal(out, expected[prediction])

    def predict(out):
        says = replace(model, net=Plain(lambda x, t, label: out))
        return says._predict(state.ema, state.stats, x_t, t, None)[0]

    for one, other in zip(predict(out), pair, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    parts = predict(jax.random.normal(keys[2], (5, 3)))
    np.testing.assert_allclose(alpha * parts.x + sigma * parts.noise, x_t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", [slow("noise"), "x", slow("v")])
def test_denoiser_is_the_posterior_mean_for_each_prediction(prediction):
    model, state = gaussian(PAIR, prediction=prediction, ends=(-6.0, 6.0))
    x, denoise = np.linspace(-2, 2, 41)[:, None], jax.jit(model.denoiser(state))
    for t in (0.0, 0.3, 1.0):
        mean = denoise(x.astype(np.float32), np.float32(t))
        alpha, sigma = exact_scales(paper_log_snr("cosine", (-6.0, 6.0), t))
        grid = np.linspace(-4, 4, 20_001)[:, None]
        log_p = PAIR.log_p((grid + 1) / 2)[:, None] - 0.5 * ((x.T - alpha * grid) / sigma) ** 2
        p = scipy.special.softmax(log_p, axis=0)
        exact = (p * grid).sum(0)[:, None]
        np.testing.assert_allclose(mean.x, exact, atol=2e-3 if prediction == "noise" else 3e-4)
        np.testing.assert_allclose(mean.noise, (x - alpha * exact) / sigma, atol=2e-3)


@SLOW
@pytest.mark.parametrize("log_snr", [2.5, 1.0, -3.0])
def test_weightings_differ_by_their_factors(log_snr):
    """The network has x̂ = 0.3 x_t, and t is the end of the only step."""
    snr = math.exp(log_snr)
    ends = (log_snr, log_snr + 2)
    alpha, sigma = exact_scales(log_snr)

    def of(prediction: Any, weighting: Any):
        def net(x, t, label):
            guess = Prediction(0.3 * x, (x - alpha * 0.3 * x) / sigma)
            scales = (jnp.full((len(x), 1), scale) for scale in (alpha, sigma))
            return target(prediction, guess, *scales)

        model, state = gaussian(
            net=Plain(net), ends=ends, prediction=prediction, weighting=weighting, timesteps=1
        )
        y = jax.random.uniform(jax.random.key(1), (50, 2))
        x = 2 * y - 1
        terms, noise = terms_at(model, state, x, jnp.full(50, 0.5), 1, jax.random.key(2))
        square = ((x - 0.3 * (alpha * x + sigma * noise)) ** 2).sum(1)
        return model.objective(state, {"x": y}, jax.random.key(0)), terms, np.asarray(square)

    loss, terms, square = of("x", "simple")
    close = partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5)
    close(of("noise", "simple")[0], snr * loss)
    close(of("v", "simple")[0], (1 + snr) * loss)
    for prediction in ("noise", "x", "v"):
        close(of(prediction, "min_snr")[0], min(snr, 5) * loss)
    # The weight of the bound: ½ (e^{λ_s − λ_t} − 1) SNR ‖x − x̂‖².
    close(terms.diffusion, 0.5 * math.expm1(2) * snr * square)


def test_continuous_weight_is_the_slope_of_the_log_snr():
    model, state = gaussian(net=Plain(lambda x, t, label: 0.3 * x), ends=(-5.0, 6.0))
    x = jax.random.normal(jax.random.key(0), (9, 2))
    times = np.linspace(0.1, 0.9, 9)
    terms, noise = terms_at(model, state, x, jnp.asarray(times, jnp.float32), 0, jax.random.key(1))
    high, low = (paper_log_snr("cosine", (-5.0, 6.0), times + step) for step in (-1e-5, 1e-5))
    scales = exact_scales(paper_log_snr("cosine", (-5.0, 6.0), times))
    alpha, sigma = (scale[:, None] for scale in scales)
    x_t = alpha * x + sigma * noise
    square = ((noise - (sigma + 0.3 * alpha) * x_t) ** 2).sum(1)  # ε̂ = σ x_t + α v̂
    np.testing.assert_allclose(terms.diffusion, 0.5 * (high - low) / 2e-5 * square, rtol=1e-3)


def test_simple_objectives_of_a_network_that_returns_zero():
    """The mean over time and noise is 1 for ε, x² for x, ∫ α² + σ² x² dt for v, and
    ∫ min(SNR, 5) x² dt for min-SNR."""
    ends, n = (-5.0, 6.0), 40_000
    log_snr = paper_log_snr("cosine", ends, (np.arange(20_000) + 0.5) / 20_000)
    alpha, sigma = exact_scales(log_snr)
    y = np.array([0.95, 0.2])
    square = ((2 * y - 1) ** 2).mean()
    exact = {
        ("noise", "simple"): 1.0,
        ("x", "simple"): square,
        ("v", "simple"): (alpha**2 + sigma**2 * square).mean(),
        ("x", "min_snr"): np.minimum(np.exp(log_snr), 5).mean() * square,
    }
    nothing = Plain(lambda x, t, label: jnp.zeros_like(x))
    for (prediction, weighting), value in exact.items():
        model, state = gaussian(net=nothing, ends=ends, prediction=prediction, weighting=weighting)
        loss = jax.jit(model.objective)(state, {"x": repeat([y], n)}, jax.random.key(0))
        near(loss, n, value, slack=2e-4)


@SLOW
@pytest.mark.parametrize("timesteps", [0, 5])
def test_likelihood_objective_has_the_mean_of_the_bound(timesteps):
    options: dict[str, Any] = {"weighting": "likelihood", "timesteps": timesteps}
    model, state = gaussian(PAIR, ends=(-4.0, 5.0), **options)
    loss = model.objective(state, {"x": jnp.asarray(repeat(Y1, 8000))}, jax.random.key(0))
    near(loss, 8000, expected_bound(model, PAIR, Y1, timesteps))


# The bound on data of known density.


Y1 = np.array([[0.25], [0.5], [0.8]])
Y2 = np.array([[0.6, 0.35], [0.75, 0.6], [0.3, 0.35]])


def expected_bound(model, data, y, timesteps):
    """Return the bound with the exact denoiser by quadrature over noise and λ, in float64: [R]."""
    ends = model.log_snr_min, model.log_snr_max
    nodes, weights = np.polynomial.hermite_e.hermegauss(100 if data.size == 1 else 3)
    noise = np.array(list(itertools.product(nodes, repeat=data.size)))
    mass = np.array([math.prod(w) for w in itertools.product(weights, repeat=data.size)])
    mass /= mass.sum()

    def square(x, log_snr):
        """Return E ‖ε − ε̂‖², [L]."""
        alpha, sigma = (np.repeat(scale, len(noise)) for scale in exact_scales(log_snr))
        eps = np.tile(noise, (len(log_snr), 1))
        x_t = alpha[:, None] * x + sigma[:, None] * eps
        mean, _ = data.parts(x_t, alpha, sigma, np)
        return ((eps - mean.noise) ** 2).sum(1).reshape(-1, len(noise)) @ mass

    if timesteps:
        grid = paper_log_snr(model.schedule, ends, np.arange(timesteps + 1) / timesteps)
        rates = 0.5 * np.expm1(-np.diff(grid))
    else:
        grid = np.linspace(ends[1], ends[0], 2001)
    (alpha_1, sigma_1), (alpha_0, sigma_0) = (exact_scales(end) for end in ends)
    decoder = data.size * (
        0.5 + 0.5 * math.log(2 * math.pi) + math.log(sigma_0 / alpha_0) - math.log(2)
    )
    total = []
    for x in 2 * y - 1:
        prior = 0.5 * ((alpha_1 * x) ** 2 + sigma_1**2 - 1 - 2 * np.log(sigma_1)).sum()
        if timesteps:
            diffusion = rates @ square(x, grid[1:])
        else:
            diffusion = -0.5 * np.trapezoid(square(x, grid), grid)
        total.append(prior + diffusion + decoder)
    return np.array(total)


@pytest.mark.parametrize(("data", "y"), [(NORMAL, Y2), (PAIR, Y1)], ids=["normal", "mixture"])
def test_bound_tends_to_the_exact_density_from_above(data, y):
    """The quadrature, to which the tests below compare the model's bounds."""
    exact = -data.log_p(y)
    model, _ = gaussian(data)
    bounds = [expected_bound(model, data, y, T) for T in (10, 100, 1000)]
    limit = expected_bound(model, data, y, 0)
    gaps = [(bound - exact).mean() for bound in (*bounds, limit)]
    assert gaps == sorted(gaps, reverse=True)
    assert all((bound > exact).all() for bound in bounds)
    assert gaps[0] > 1
    np.testing.assert_allclose(limit, exact, atol=2e-3)
    model, _ = gaussian(data, ends=(-4.0, 5.0))  # fewer steps are small enough
    first, second, limit = (expected_bound(model, data, y, T) for T in (1000, 2000, 0))
    np.testing.assert_allclose(2 * second - first, limit, atol=2e-3)
    assert (abs(first - limit) > 1.8 * abs(second - limit)).all()


@pytest.mark.parametrize(
    ("data", "schedule", "prediction", "timesteps"),
    [
        ("mixture", "cosine", "v", 4),
        pytest.param("normal", "cosine", "noise", 20, marks=SLOW),
        ("normal", "linear", "x", 4),
        pytest.param("mixture", "cosine", "x", 0, marks=SLOW),
        ("mixture", "linear", "noise", 0),
        ("normal", "learned", "v", 0),
    ],
)
def test_bound_has_the_mean_that_quadrature_gives(data, schedule, prediction, timesteps):
    data, y = (NORMAL, Y2) if data == "normal" else (PAIR, Y1)
    weighting = "likelihood" if schedule == "learned" else "simple"
    model, state = gaussian(
        data, ends=(-4.0, 5.0), prediction=prediction, schedule=schedule, weighting=weighting
    )
    model = replace(model, time_draws=timesteps or 40)
    n = 2000
    terms = jax.jit(partial(model.bound, timesteps=timesteps))(
        state, {"x": repeat(y, n)}, jax.random.key(0)
    )
    stderr = near(sum(terms), n, expected_bound(model, data, y, timesteps))
    assert (stderr < (0.4 if timesteps else 0.12)).all()
    alpha, sigma = exact_scales(model.log_snr_min)
    x = 2 * repeat(y, n) - 1
    prior = 0.5 * ((alpha * x) ** 2 + sigma**2 - 1 - 2 * np.log(sigma)).sum(1)
    np.testing.assert_allclose(terms.prior, prior, rtol=1e-4, atol=1e-6)


@SLOW
@pytest.mark.parametrize(
    ("data", "y"),
    [pytest.param(NORMAL, Y2, id="normal", marks=SLOW), pytest.param(PAIR, Y1, id="mixture")],
)
def test_continuous_bound_is_the_exact_density(data, y):
    model, state = gaussian(data, schedule="learned", weighting="likelihood", time_draws=100)
    n = 3000
    terms = jax.jit(partial(model.bound, timesteps=0))(
        state, {"x": repeat(y, n)}, jax.random.key(0)
    )
    stderr = near(sum(terms), n, -data.log_p(y), slack=2e-3)
    assert (stderr < 0.06).all()
    # A chain of 20 steps has a larger bound.
    model = replace(model, time_draws=20)
    chain = jax.jit(partial(model.bound, timesteps=20))(
        state, {"x": repeat(y, n)}, jax.random.key(1)
    )
    mean, stderr = groups(sum(chain), n)
    assert ((mean + data.log_p(y)).mean() > 5 * stderr).all()


@SLOW
def test_continuous_bound_does_not_depend_on_the_curve():
    model, state = gaussian(
        PAIR, ends=(-4.0, 5.0), schedule="learned", weighting="likelihood", time_draws=50
    )
    exact, n = expected_bound(model, PAIR, Y1, 0), 3000
    for seed in (1, 2):
        params = {**state.ema, "schedule": perturbed(state.ema["schedule"], seed)}
        bent = jax.jit(partial(model.bound, timesteps=0))(
            state._replace(ema=params), {"x": repeat(Y1, n)}, jax.random.key(seed)
        )
        stderr = near(sum(bent), n, exact)
        assert (stderr < 0.1).all()


LEVELS = np.array([0.1, 0.2, 0.3, 0.4])
STEPS = np.linspace(0, 1, 4)[:, None]


def of_levels(**options):
    """Return the exact model of data of four levels, and its state."""
    return gaussian(points(LEVELS, 2 * STEPS - 1), ends=(-8.0, 6.0), levels=4, **options)


@pytest.mark.slow
def test_bounds_of_levels_are_their_probabilities():
    """The bound of points has no gap in continuous time."""
    model, state = of_levels(time_draws=50, ode_steps=200, ode_examples=4000)
    n = 1000
    terms = jax.jit(partial(model.bound, timesteps=0))(
        state, {"x": repeat(STEPS, n)}, jax.random.key(0)
    )
    stderr = near(sum(terms), n, -np.log(LEVELS), slack=2e-3)
    assert (stderr < 0.05).all()
    mean, stderr = groups(
        sum(
            replace(model, time_draws=10).bound(
                state, {"x": jnp.asarray(repeat(STEPS, n))}, jax.random.key(1), 10
            )
        ),
        n,
    )
    assert (mean + np.log(LEVELS)).mean() > 5 * stderr.mean()
    # The estimates of `evaluate`, by the bound and by the probability flow.
    estimates = model.evaluate(state, {"x": np.asarray(repeat(STEPS, n))}, jax.random.key(2))
    exact = -np.log(LEVELS).mean()
    for name in ("nll", "nll_ode"):
        nats, bits = estimates[name], estimates[name.replace("nll", "bits_per_dim")]
        assert nats.kind == bits.kind == "upper bound"
        assert abs(nats.value - exact) < 4.5 * nats.stderr + 0.005, name
        np.testing.assert_allclose(bits.value, nats.value / math.log(2), rtol=1e-6)
    total = sum(estimates[name].value for name in ("prior", "diffusion", "reconstruction"))
    np.testing.assert_allclose(total, estimates["nll"].value, rtol=1e-5)
    each = model._ode_nll(state, {"x": jnp.asarray(STEPS)}, jax.random.key(3), 400)
    np.testing.assert_allclose(each, -np.log(LEVELS), atol=0.04)


def test_probabilities_of_levels_sum_to_one():
    model, state = of_levels()
    x_0 = np.linspace(-1.5, 1.5, 31)[:, None]
    logs = [
        model._log_decoder(state.ema, jnp.full((31, 1), 2 * level - 1), jnp.asarray(x_0))
        for level in STEPS[:, 0]
    ]
    np.testing.assert_allclose(np.exp(logs).sum(0), 1, rtol=1e-5)
    alpha, sigma = exact_scales(6.0)
    density = -0.5 * ((x_0.T - alpha * (2 * STEPS - 1)) / sigma) ** 2
    expected = scipy.special.log_softmax(density, axis=0)
    likely = expected > -20
    np.testing.assert_allclose(np.array(logs)[likely], expected[likely], rtol=1e-3, atol=1e-4)


def test_samples_completions_and_decoded_noise_have_the_probabilities_of_the_levels():
    n = 4000
    model, state = of_levels(sample_steps=100, ode_steps=100, resamplings=1)
    nothing = jnp.zeros((n, 1))
    ways = {
        "sample": jax.jit(model.sample, static_argnums=2)(state, jax.random.key(0), n),
        "complete": jax.jit(model.complete)(state, nothing, nothing[0], jax.random.key(1)),
        "decode": jax.jit(model.decode)(state, jax.random.normal(jax.random.key(2), (n, 1))),
    }
    for way, drawn in ways.items():
        values, counts = np.unique(np.asarray(drawn), return_counts=True)
        np.testing.assert_allclose(values, STEPS[:, 0], atol=1e-6, err_msg=way)
        np.testing.assert_allclose(counts / n, LEVELS, atol=0.03, err_msg=way)


def test_fourier_features_have_periods_of_levels():
    seen = []

    def look(x, t, label):
        seen.append(x)
        return x[..., :1]

    model, state = gaussian(net=Plain(look), levels=5, fourier=3, shape=(4, 4, 1))
    x_t = jax.random.uniform(jax.random.key(1), (2, 4, 4, 1), minval=-3.0, maxval=3.0)
    model.denoiser(state)(x_t, jnp.array(0.5))
    level = 4 * (np.asarray(x_t, np.float64) + 1) / 2
    turns = [level, level / 2, level / 4]
    waves = [wave(2 * np.pi * turn) for turn in turns for wave in (np.sin, np.cos)]
    expected = np.concatenate([np.asarray(x_t), *waves], axis=-1)
    np.testing.assert_allclose(seen[-1], expected, atol=1e-5)


@pytest.mark.slow
def test_fourier_features_show_noise_below_a_level():
    """The data are K levels of equal probability, whose −log p is log K nats."""
    bounds = []
    batch = {"x": jnp.arange(64.0)[:, None] / 63}
    for fourier in (0, 6):
        model = GaussianDiffusion(
            ResidualMLP(64, 1),
            (1,),
            levels=64,
            schedule="log_linear",
            log_snr_max=10.5,  # noise of a sixth of a level
            log_snr_min=-6.0,
            weighting="likelihood",
            fourier=fourier,
            time_draws=20,
            ema_decay=0.9,
            optimizer=Optimizer(schedule="cosine", decay_steps=2_000),
        )

        @jax.jit
        def trained(state, keys, step=model.step):
            return jax.lax.scan(lambda s, key: step(s, batch, key), state, keys)[0]

        state = trained(model.init(jax.random.key(0)), jax.random.split(jax.random.key(1), 2_000))
        terms = model.bound(state, batch, jax.random.key(2), 0)
        bounds.append(float(jnp.stack(terms).sum(0).mean()))
    without, given = (bound - math.log(64) for bound in bounds)
    assert 0 < given < 0.7 * without


@pytest.mark.parametrize("levels", [slow(0), 4])
def test_score_is_the_bound_at_the_draws_of_the_key(levels):
    model, state = of_levels() if levels else gaussian(PAIR)
    score, batch = jax.jit(model.score), {"x": STEPS.astype(np.float32)}
    once, again, other = (np.asarray(score(state, batch, jax.random.key(i))) for i in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    terms = jax.tree.map(np.asarray, jax.jit(model.bound)(state, batch, jax.random.key(0)))
    np.testing.assert_allclose(once, sum(terms), rtol=1e-5)
    np.testing.assert_allclose(once, terms.total, rtol=1e-5)
    assert abs(once - other).min() > 1e-4


def test_score_tends_to_minus_log_p():
    model, state = of_levels(time_draws=5000)
    score = jax.jit(model.score)(state, {"x": jnp.asarray(STEPS)}, jax.random.key(0))
    np.testing.assert_allclose(score, -np.log(LEVELS), atol=0.15)


# Samplers.


def vp(schedule="cosine", ends=(-10.0, 13.3)):
    return gaussian(ends=ends, schedule=schedule)[0].path({})


PATHS: dict[str, Any] = {"cosine": vp(), "linear": vp("linear"), "straight": straight}
ALL_PATHS = pytest.mark.parametrize("path", ["cosine", slow("linear"), "straight"])
DETERMINISTIC = ["ddim", "heun", "dpm"]


def run(sampler, path, data, x, times, seed=0):
    """Return x at the last of the times, or of that many equal steps, by a public sampler."""
    times = samplers.falling(times) if isinstance(times, int) else times
    sample: Any = {
        "ancestral": partial(samplers.ancestral, key=jax.random.key(seed)),
        "ddim": partial(samplers.ddim, key=jax.random.key(seed)),
        "heun": samplers.heun,
        "dpm": samplers.dpm_solver,
    }[sampler]
    return jax.jit(lambda x: sample(path, data.denoise(path), x, times))(x)


@ALL_PATHS
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_deterministic_samples_have_the_moments_of_the_data(sampler, path):
    """For Gaussian data they are an affine map, determined by the images of 0 and of the axes."""
    steps = 1000 if sampler == "ddim" else 150
    x = jnp.array([[0.0, 0], [1, 0], [0, 1], [0.7, -1.9]])
    out = np.asarray(run(sampler, PATHS[path], NORMAL, x, steps), np.float64)
    mean, a = out[0], out[1:3] - out[0]
    np.testing.assert_allclose(out[3], mean + x[3] @ a, atol=1e-4)
    np.testing.assert_allclose(mean, NORMAL.means[0], atol=5e-3)
    np.testing.assert_allclose(a.T @ a, NORMAL.covariance, atol=1.5e-3)


def exact_ddim(path, data, steps, eta):
    """Return mean and covariance of DDIM's samples for Gaussian data, in float64.

    For η = 1 they follow from the posterior q(x_s|x_t, x) of Ho et al. 2020, eq. 6 and 7, otherwise
    from eq. 12 of Song, Meng & Ermon 2021.
    """
    (_, m, q, c), eye = (part[0] for part in data), np.eye(data.size)
    mean, covariance = np.zeros(data.size), eye
    times = np.linspace(1, 0, steps + 1)
    for t, s in itertools.pairwise(times):
        (a, sig), (a_s, sig_s) = path(t), path(s)
        gain = q * (a * c / (a**2 * c + sig**2)) @ q.T  # x̂ = m + gain (x_t − a m)
        kept = a / a_s
        step = sig**2 - (kept * sig_s) ** 2
        variance = eta**2 * step * sig_s**2 / sig**2
        if eta == 1:
            of_x, of_x_t = a_s * step / sig**2, kept * sig_s**2 / sig**2
        else:
            direction = math.sqrt(sig_s**2 - variance)
            of_x, of_x_t = a_s - direction * a / sig, direction / sig
        matrix = of_x * gain + of_x_t * eye
        mean = matrix @ mean + of_x * (m - a * gain @ m)
        covariance = matrix @ covariance @ matrix.T + variance * eye
    return mean, covariance


@ALL_PATHS
@pytest.mark.parametrize("eta", [slow(0.0), 0.5, 1.0])
def test_ddim_has_the_moments_of_its_chain(path, eta):
    n, steps = 20_000, 8

    def exact_path(t):
        if path == "straight":
            return 1 - t, t
        return exact_scales(paper_log_snr(path, (-10.0, 13.3), t))

    def go(x):
        arguments = PATHS[path], NORMAL.denoise(PATHS[path]), x, samplers.falling(steps)
        return samplers.ddim(*arguments, jax.random.key(1), eta)

    out = np.asarray(jax.jit(go)(jax.random.normal(jax.random.key(0), (n, 2))))
    mean, covariance = exact_ddim(exact_path, NORMAL, steps, eta)
    np.testing.assert_allclose(out.mean(0), mean, atol=5 * math.sqrt(covariance.max() / n))
    np.testing.assert_allclose(np.cov(out.T), covariance, atol=0.05 * covariance.max())
    # They differ enough from the data's moments to tell samplers apart, and tend to them.
    assert abs(covariance - NORMAL.covariance).max() > 0.05 * covariance.max()
    mean, covariance = exact_ddim(exact_path, NORMAL, 5000, eta)
    np.testing.assert_allclose(mean, NORMAL.means[0], atol=5e-3)
    np.testing.assert_allclose(covariance, NORMAL.covariance, atol=1e-3)


@SLOW
@ALL_PATHS
def test_ancestral_samples_are_distributed_as_the_data(path):
    n = 20_000
    x = jax.random.normal(jax.random.key(0), (n, 1))
    out = np.asarray(run("ancestral", PATHS[path], PAIR, x, 200))[:, 0]
    grid = np.linspace(-2, 2, 4001)
    p = np.exp(PAIR.log_p((grid[:, None] + 1) / 2)) / 2
    cdf = np.cumsum(p) * (grid[1] - grid[0])
    distance = scipy.stats.kstest(out, lambda at: np.interp(at, grid, cdf)).statistic
    assert distance < 0.03  # of 20,000 draws, in 200 steps


def test_samples_depend_on_the_key_alone():
    x = jnp.zeros((3, 2))
    one, same, other = (run("ancestral", PATHS["cosine"], NORMAL, x, 5, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert abs(one - other).max() > 1e-3
    assert abs(one[0] - one[1]).max() > 1e-3


@ALL_PATHS
@pytest.mark.parametrize("sampler", ["ddim", slow("heun")])
def test_trajectory_passes_through_the_samples_at_its_frames(sampler, path):
    x, times = jax.random.normal(jax.random.key(0), (4, 2)), samplers.falling(10)
    of, key = PATHS[path], jax.random.key(0)
    frames = jax.jit(
        lambda x: samplers.trajectory(sampler, of, NORMAL.denoise(of), x, times, key, 4)
    )(x)
    assert frames.shape == (5, 4, 2)
    np.testing.assert_array_equal(frames[0], x)
    whole = run(sampler, of, NORMAL, x, times)
    np.testing.assert_allclose(frames[-1], whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(frames[1], run(sampler, of, NORMAL, x, times[:3]), rtol=1e-4)


SMOOTH: dict[str, Any] = {"cosine": vp(ends=(-5.0, 4.0)), "linear": vp("linear", (-5.0, 4.0))}
ORDERS = [("ddim", 1), ("heun", 2), ("dpm", 2)]


def at_ends(path):
    """Return (α, σ) at t = 0 and at t = 1, in float64."""
    return [tuple(float(scale) for scale in path(jnp.array(t))) for t in (0.0, 1.0)]


@pytest.mark.parametrize("path", ["cosine", slow("linear"), "straight"])
@pytest.mark.parametrize(("sampler", "order"), ORDERS)
def test_orders_of_convergence(sampler, order, path):
    of = SMOOTH.get(path, straight)
    x = np.array([[1.0, -0.5], [-1.5, 0.3]])
    first, last = at_ends(of)
    exact, _ = NORMAL.flow(x, last, first)
    # If λ is infinite at both ends, only many steps show the order of a method in λ.
    steps = (160, 320, 640) if (sampler, path) == ("dpm", "straight") else (20, 40, 80)
    errors = [
        abs(run(sampler, of, NORMAL, jnp.asarray(x, jnp.float32), n) - exact).max() for n in steps
    ]
    assert errors[-1] > 2e-6, "lost in rounding"
    slopes = -np.diff(np.log2(errors))
    assert (abs(slopes - order) < 0.45).all(), (errors, slopes)


def ode(path, x, steps, probes=0, seed=0, data=NORMAL):
    times = samplers.falling(steps)[::-1]
    go = partial(samplers.ode_log_prob, path, data.denoise(path), probes=probes)
    return jax.jit(go)(jnp.asarray(x, jnp.float32), times, jax.random.key(seed))


@pytest.mark.parametrize("path", ["cosine", slow("linear"), slow("straight")])
def test_error_of_the_flow_likelihood_falls_with_the_square_of_the_steps(path):
    of = SMOOTH.get(path, straight)
    x = 2 * Y2 - 1
    first, last = at_ends(of)
    x_1, log_det = NORMAL.flow(x, first, last)
    exact = scipy.stats.norm.logpdf(x_1).sum(1) + log_det
    errors = [abs(np.asarray(ode(of, x, n)) - exact).max() for n in (15, 30, 60)]
    slopes = -np.diff(np.log2(errors))
    assert (abs(slopes - 2) < 0.4).all(), (errors, slopes)
    np.testing.assert_allclose(ode(of, x, 400), exact, atol=2e-3)


@ALL_PATHS
def test_likelihood_of_the_flow_equals_the_density_of_the_data(path):
    alpha = float(PATHS[path](jnp.array(0.0))[0])
    log_p = ode(PATHS[path], alpha * (2 * Y2 - 1), 300)
    exact = NORMAL.log_p(Y2) - 2 * math.log(2)
    np.testing.assert_allclose(log_p + 2 * math.log(alpha), exact, atol=0.02)
    log_p = ode(PATHS[path], alpha * (2 * Y1 - 1), 300, data=PAIR)
    np.testing.assert_allclose(log_p, PAIR.log_p(Y1) - math.log(2), atol=0.02)


def test_probes_of_the_trace_are_unbiased():
    n = 2000
    exact = np.asarray(ode(straight, 2 * Y2 - 1, 30))
    x = 2 * repeat(Y2, n) - 1
    one, four = (ode(straight, x, 30, probes) for probes in (1, 4))
    stderr_of_one = near(one, n, exact, slack=1e-4)
    stderr_of_four = near(four, n, exact, slack=1e-4)
    assert (stderr_of_one > 1e-3).all()
    np.testing.assert_allclose(stderr_of_four / stderr_of_one, 0.5, rtol=0.1)


@pytest.mark.parametrize("family", [gaussian, flow])
def test_codes_follow_the_probability_flow_and_decode_to_the_examples(family):
    model, state = family(ode_steps=200)
    path = model.path(state.ema) if family is gaussian else straight
    first, last = at_ends(path)
    exact, _ = NORMAL.flow(2 * Y2 - 1, first, last)
    z = jax.jit(model.encode)(state, {"x": jnp.asarray(Y2)})
    np.testing.assert_allclose(z, exact, atol=5e-3)
    again = jax.jit(model.decode)(state, z)
    np.testing.assert_allclose(again, Y2, atol=2e-3)
    coarse = replace(model, ode_steps=10)
    worse = abs(coarse.decode(state, coarse.encode(state, {"x": jnp.asarray(Y2)})) - Y2).max()
    assert worse > abs(again - Y2).max()


@pytest.mark.parametrize("family", [gaussian, slow(flow)])
@pytest.mark.parametrize("sampler", ["ancestral", *DETERMINISTIC])
def test_samples_of_models_have_the_moments_of_the_data(family, sampler):
    n = 8000
    narrow = normal([0.2, -0.3], NORMAL.covariance / 4)  # samples outside of [0, 1] are clipped
    steps = 600 if sampler == "ancestral" else 150
    model, state = family(narrow, sampler=sampler, sample_steps=steps)
    x = np.asarray(jax.jit(partial(model.sample, n=n))(state, jax.random.key(0)))
    assert x.shape == (n, 2)
    covariance = narrow.covariance / 4
    atol = 5 * math.sqrt(covariance.max() / n) + 2e-3
    np.testing.assert_allclose(x.mean(0), (narrow.means[0] + 1) / 2, atol=atol)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.09 * covariance.max())


@pytest.mark.slow
@pytest.mark.parametrize("family", [gaussian, flow])
def test_hidden_variables_follow_the_shown_ones(family):
    """RePaint on Gaussian data nearly has the mean and variance of the conditional."""
    model, state = family(sample_steps=300, resamplings=10)
    n = 2000
    c = NORMAL.covariance
    shown = NORMAL.means[0, 0] + 1.8 * math.sqrt(c[0, 0])
    mean = NORMAL.means[0, 1] + c[1, 0] / c[0, 0] * (shown - NORMAL.means[0, 0])
    variance = c[1, 1] - c[1, 0] ** 2 / c[0, 0]
    x = jnp.tile(jnp.array([[(shown + 1) / 2, 0.123]]), (n, 1))
    out = jax.jit(model.complete)(state, x, jnp.array([1, 0]), jax.random.key(0))
    np.testing.assert_array_equal(out[:, 0], x[:, 0])
    hidden = 2 * np.asarray(out[:, 1], np.float64) - 1
    far = mean - NORMAL.means[0, 1]
    assert abs(hidden.mean() - mean) < 0.1 * far
    assert abs(hidden.var() / variance - 1) < 0.25
    hasty = replace(model, resamplings=1).complete(state, x, jnp.array([1, 0]), jax.random.key(0))
    assert abs(2 * hasty[:, 1].mean() - 1 - mean) > 0.1 * far
    everything = model.complete(state, x[:5], jnp.ones((5, 2)), jax.random.key(0))
    np.testing.assert_array_equal(everything, x[:5])


@SLOW
@pytest.mark.parametrize("family", [gaussian, flow])
def test_density_by_the_flow_in_evaluate(family):
    model, state = family(ode_steps=200)
    y = np.tile(Y2, (400, 1)) + 1e-3 * np.random.RandomState(0).randn(1200, 2)
    estimates = model.evaluate(state, {"x": y}, jax.random.key(0))
    nll = estimates["nll_ode" if family is gaussian else "nll"]
    assert nll.kind == "Monte Carlo"
    assert nll.settings["density"]
    each = -NORMAL.log_p(y[: nll.n])
    assert abs(nll.value - each.mean()) < 4.5 * each.std() / math.sqrt(nll.n) + 0.01
    assert nll.settings["discretization"] < 0.02


@pytest.mark.parametrize("family", [gaussian, flow])
def test_density_is_not_evaluated_on_data_with_levels(family):
    model, state = family()
    with pytest.raises(UserError, match="levels"):
        estimate.evaluate(model, state, {"x": np.tile(Y2, (4, 1))}, jax.random.key(0))


def test_flow_bounds_the_probabilities_of_levels():
    """E −log(density · width) is at least −log of the mass of a cell, and near it."""
    data = normal([0.1], [[0.3]])
    model, state = flow(data, levels=8, ode_steps=100)
    level, n = np.arange(8)[:, None] / 7, 1500
    nll = jax.jit(model.score)(state, {"x": repeat(level, n)}, jax.random.key(0))
    edges = np.linspace(-1, 1, 9)
    fine = np.linspace(edges[:-1], edges[1:], 201)
    log_p = data.log_p((fine.reshape(-1, 1) + 1) / 2).reshape(fine.shape)
    near(nll, n, -(log_p - math.log(8)).mean(0), slack=5e-3)
    mass = np.diff(scipy.stats.norm.cdf(edges, 0.1, math.sqrt(0.3)))
    mean, _ = groups(nll, n)
    assert (mean > -np.log(mass) - 0.01).all()
    np.testing.assert_allclose(mean, -np.log(mass), atol=0.1)
    estimates = model.evaluate(state, {"x": level}, jax.random.key(1))
    assert estimates["nll"].kind == "upper bound"
    bits = estimates["nll"].value / math.log(2)
    np.testing.assert_allclose(estimates["bits_per_dim"].value, bits, rtol=1e-6)


# Numbers of steps.


@pytest.mark.parametrize("family", [gaussian, slow(flow)])
def test_sample_in_takes_ddim_from_the_noise_of_sample(family):
    model, state = family()
    key, by_ddim = jax.random.key(0), replace(model, sampler="ddim", sample_steps=3)
    drawn = jax.jit(model.sample_in, static_argnums=(2, 3))(state, key, 5, 3)
    expected = jax.jit(by_ddim.sample, static_argnums=2)(state, key, 5)
    np.testing.assert_allclose(drawn, expected, rtol=1e-6)
    assert abs(drawn[0] - drawn[1]).max() > 1e-3


def test_facts_of_the_models():
    gauss, _ = gaussian(sample_steps=7)
    assert facts(gauss).codes == "noise"
    assert (facts(gauss).levels, facts(gauss).classes, facts(gauss).sample_steps) == (0, 0, 7)
    assert facts(flow()[0]).codes == "noise"
    discrete_model = small("absorbing", levels=3)[0]
    assert (facts(discrete_model).levels, facts(discrete_model).sample_steps) == (3, 100)
    shared = {"sample", "sample_in", "denoising", "complete", "objective", "score", "layers"}
    assert set(capabilities(discrete_model)) == shared
    assert set(capabilities(gauss)) == shared | {"encode", "decode", "scores"}
    assert set(capabilities(flow()[0])) == shared | {"encode", "decode"}


# Labels, the moving average, the learned schedule.


def labelled(x, t, label):
    """Return (label + 1) x for an example with a label, and −x without."""
    return jnp.where(label == 3, -1.0, label + 1.0)[:, None] * x


def test_guidance_extrapolates_from_the_unconditional_model():
    options: dict[str, Any] = {"classes": 3, "net": Plain(labelled), "prediction": "x"}
    model, state = gaussian(ends=(-5.0, 6.0), **options)
    x, label = jax.random.normal(jax.random.key(0), (3, 2)), jnp.arange(3)
    t = jnp.array(0.4)
    alpha, sigma = (float(scale) for scale in model.path(state.ema)(t))
    for w in (0.0, 0.7, 3.0):
        mean = jax.jit(model.denoiser(state, label, w))(x, t)
        expected = (1 + w) * (label[:, None] + 1) * x + w * x
        np.testing.assert_allclose(mean.x, expected, rtol=1e-5)
        np.testing.assert_allclose(mean.noise, (x - alpha * expected) / sigma, rtol=1e-4)
    np.testing.assert_allclose(model.denoiser(state)(x, t).x, -x, rtol=1e-6)


PLACES = np.array([-0.6, 0.1, 0.5, 0.9])


def of_places(**options):
    """Return a model of three classes that are one point each, and 0.9 without a label."""
    places = jnp.asarray(PLACES, jnp.float32)
    net = Plain(lambda x, t, label: jnp.broadcast_to(places[label][:, None], x.shape))
    settings: dict[str, Any] = {"sampler": "ddim", "sample_steps": 5, **options}
    return gaussian(ends=(-5.0, 9.0), classes=3, net=net, prediction="x", **settings)


def test_samples_have_the_given_labels_or_each_label_in_turn():
    model, state = of_places()
    sample = partial(jax.jit(model.sample, static_argnums=2), state, jax.random.key(0))
    for label, drawn in [
        (None, np.arange(7) % 3),
        (2, np.full(7, 2)),
        (np.array([2, 0, 0, 1, 2, 1, 1]), np.array([2, 0, 0, 1, 2, 1, 1])),
    ]:
        x = 2 * sample(7, label=label) - 1
        np.testing.assert_allclose(x[:, 0], PLACES[drawn], atol=0.05)
    last = 2 * model.denoising(state, jax.random.key(0), 3, 2, label=1)[-1] - 1
    np.testing.assert_allclose(last[:, 0], PLACES[1], atol=0.05)
    in_turn = 2 * model.sample_in(state, jax.random.key(0), 7, 4) - 1
    np.testing.assert_allclose(in_turn[:, 0], PLACES[np.arange(7) % 3], atol=0.05)
    jitted = jax.jit(partial(model.sample, n=7))(state, jax.random.key(0), label=jnp.array(2))
    np.testing.assert_allclose(2 * jitted[:, 0] - 1, PLACES[2], atol=0.05)


@pytest.mark.parametrize("label", [3, -1, np.array([0, 1, 2, 3]), np.array([0, 1])])
def test_labels_out_of_range_or_of_another_number_are_refused(label):
    model, state = of_places()
    with pytest.raises(UserError, match="label"):
        model.sample(state, jax.random.key(0), 4, label=label)


def test_labels_of_a_model_without_classes_are_refused():
    for model, state in (gaussian(), flow()):
        with pytest.raises(UserError, match="no classes"):
            model.sample(state, jax.random.key(0), 4, label=0)


@SLOW
def test_guided_samples_completions_and_bounds_use_the_labels():
    model, state = of_places()
    guided = replace(model, guidance=0.25)
    x = 2 * guided.sample(state, jax.random.key(0), 3) - 1
    np.testing.assert_allclose(x[:, 1], 1.25 * PLACES[:3] - 0.25 * 0.9, atol=0.05)
    hidden = model.complete(state, jnp.zeros((2, 2)), jnp.array([1, 0]), jax.random.key(0))
    np.testing.assert_allclose(2 * hidden[:, 1] - 1, 0.9, atol=0.1)
    y = (jnp.tile(jnp.asarray(PLACES[:3, None]), (1, 2)) + 1) / 2
    right, wrong = (
        model.bound(state, {"x": y, "label": label}, jax.random.key(0))
        for label in (jnp.arange(3), jnp.array([1, 2, 0]))
    )
    np.testing.assert_allclose(right.diffusion, 0, atol=1e-4)
    assert (wrong.diffusion > 1).all()


def test_trained_model_draws_the_class_that_is_asked_for():
    """Four classes are points near the corners of a square, in the order of binary numbers."""
    corners = np.array([[0.2, 0.2], [0.2, 0.8], [0.8, 0.2], [0.8, 0.8]])
    label = np.arange(400) % 4
    x = corners[label] + 0.03 * np.random.RandomState(0).randn(400, 2)
    model = GaussianDiffusion(
        ResidualMLP(width=32, layers=1),
        (2,),
        levels=0,
        classes=4,
        sampler="ddim",
        sample_steps=20,
        ema_decay=0.98,
        optimizer=Optimizer(learning_rate=5e-3),
    )
    data = {"x": x.astype(np.float32), "label": label}
    *_, last = train.fit(model, data, steps=400, batch_size=100, steps_per_dispatch=100)
    sample = jax.jit(partial(model.sample, n=40))
    for wanted in (3, 1):
        drawn = sample(last.carry.state, jax.random.key(0), label=wanted)
        distance = np.linalg.norm(np.asarray(drawn)[:, None] - corners, axis=-1)
        assert np.mean(distance.argmin(1) == wanted) > 0.9


def test_labels_are_dropped_for_their_share():
    net = Plain(lambda x, t, label: jnp.where(label == 3, 1.0, 0.0)[:, None] + 0 * x)
    model, state = gaussian(ends=(-5.0, 6.0), classes=3, net=net, prediction="x", label_dropout=0.3)
    n = 20_000
    batch = {"x": np.full((n, 2), 0.5, np.float32), "label": np.arange(n) % 3}
    dropped = np.asarray(jax.jit(model.objective)(state, batch, jax.random.key(0)))
    assert abs(dropped.mean() - 0.3) < 4.5 * math.sqrt(0.21 / n)
    assert set(np.unique(dropped)) == {0, 1}


TINY: Any = ResidualMLP(width=8, layers=1)


@pytest.mark.parametrize(
    "model",
    [
        GaussianDiffusion(TINY, (2,), levels=0, ema_decay=0.7),
        slow(FlowMatching(TINY, (2,), levels=0, ema_decay=0.7)),
        slow(DiscreteDiffusion(TINY, (2,), ema_decay=0.7)),
    ],
    ids=["gaussian", "flow", "discrete"],
)
def test_moving_average_equals_its_closed_form(model):
    state = jax.jit(model.init)(jax.random.key(0))
    np.testing.assert_array_equal(flat(state.params), flat(state.ema))
    step, n = jax.jit(model.step), 4
    theta = [flat(state.params)]
    x = jax.random.bernoulli(jax.random.key(1), 0.5, (16, 2)).astype(float)
    for i in range(n):
        state, _ = step(state, {"x": x}, jax.random.key(i))
        theta.append(flat(state.params))
    expected = 0.7**n * theta[0] + 0.3 * sum(0.7 ** (n - i) * theta[i] for i in range(1, n + 1))
    np.testing.assert_allclose(flat(state.ema), expected, rtol=1e-5, atol=1e-7)
    assert abs(theta[-1] - theta[0]).max() > 1e-4


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def with_curve(state, seed=1):
    """Return the state with another curve and a network whose output is not 0."""
    keys = iter(jax.random.split(jax.random.key(seed), 50))
    net = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), state.params["net"]
    )
    params = {"net": net, "schedule": perturbed(state.params["schedule"])}
    return state._replace(params=params, ema=jax.tree.map(jnp.copy, params))


@pytest.mark.slow
@pytest.mark.parametrize("timesteps", [0, 3])
def test_gradients_of_a_learned_schedule(timesteps):
    """The gradients of the network and of the ends are those of the bound. The gradient of the
    curve is that of the bound's second moment in continuous time, and of the bound in steps. The
    first mean of Adam is a tenth of the gradient."""
    model = GaussianDiffusion(
        TINY, (2,), levels=0, schedule="learned", weighting="likelihood", timesteps=timesteps
    )
    state = with_curve(jax.jit(model.init)(jax.random.key(0)))
    batch, key = {"x": jax.random.uniform(jax.random.key(1), (32, 2))}, jax.random.key(2)
    moved, metrics = jax.jit(model.step)(state, batch, key)
    gradient = jax.tree.map(lambda leaf: 10 * leaf, moved.opt_state[0].mu)

    def moment(params, power):
        return (model._loss(params, state.stats, batch, key)[0] ** power).mean()

    first, second = (
        jax.jit(jax.grad(partial(moment, power=power)))(state.params) for power in (1, 2)
    )
    close = partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-3)
    close(flat(gradient["net"]), flat(first["net"]))
    close(gradient["schedule"]["ends"], first["schedule"]["ends"])
    curve = first if timesteps else second
    close(flat(gradient["schedule"]["curve"]), flat(curve["schedule"]["curve"]))
    assert abs(flat(second["schedule"]["curve"])).max() > 1e-2
    np.testing.assert_allclose(metrics["loss"], moment(state.params, 1), rtol=1e-5)


@SLOW
def test_learned_curve_lowers_the_variance_of_the_bound():
    """The mean stays, with the exact denoiser and fixed ends."""
    model, state = gaussian(
        PAIR,
        ends=(-4.0, 5.0),
        schedule="learned",
        weighting="likelihood",
        optimizer=Optimizer(learning_rate=0.03),
    )
    ends = state.params["schedule"]["ends"]
    bent = {"net": {}, "schedule": perturbed(state.params["schedule"])}
    state = state._replace(params=bent, ema=jax.tree.map(jnp.copy, bent))
    rng = np.random.RandomState(0)
    first = rng.rand(500, 1) < 0.3
    x = np.where(first, -0.5 + 0.1 * rng.randn(500, 1), 0.4 + 0.2 * rng.randn(500, 1))
    batch = {"x": jnp.asarray((x + 1) / 2, jnp.float32)}

    @jax.jit
    def trained(state):
        def move(i, state):
            state, _ = model.step(state, batch, jax.random.fold_in(jax.random.key(0), i))
            state.params["schedule"]["ends"] = ends
            return state

        return jax.lax.fori_loop(0, 150, move, state)

    after = trained(state)
    many = {"x": jnp.tile(batch["x"], (40, 1))}
    values = [
        np.asarray(model._loss(params, state.stats, many, jax.random.key(9))[0])
        for params in (state.params, after.params)
    ]
    assert values[1].var() < 0.8 * values[0].var()
    errors = [value.std() / math.sqrt(value.size) for value in values]
    assert abs(values[0].mean() - values[1].mean()) < 4.5 * math.hypot(*errors)


# Discrete states.


ALPHAS: dict[str, Any] = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: 1 - math.sin(0.5 * math.pi * t),
}
NOISES = pytest.mark.parametrize("noise", ["absorbing", "uniform"])


class Small(nn.Module):
    """Two layers whose first output is not constant, with time as another input or without."""

    timed: bool = True
    out: Any = None

    set_by_model: ClassVar[tuple[str, ...]] = ("out",)

    @nn.compact
    def __call__(self, x, t, label, *, train=False):
        h = x.reshape(len(x), -1) - 0.5
        h = jnp.concatenate([h, t[:, None]], axis=1) if self.timed else h
        wide = nn.initializers.normal(1.0)
        h = jnp.tanh(nn.Dense(12, kernel_init=wide, bias_init=wide)(h))
        return nn.Dense(math.prod(self.out), kernel_init=nn.initializers.normal(0.6))(h)


def small(noise, levels=2, net: Any = None, **options):
    """Return a model of two variables, and its state."""
    model = DiscreteDiffusion(net or Small(), (2,), levels=levels, noise=noise, **options)
    return model, jax.jit(model.init)(jax.random.key(3))


def law_of_noise(model):
    if model.noise == "uniform":
        return np.full(model.levels, 1 / model.levels)
    return np.eye(model.levels + 1)[-1]


def transition(model, s, t):
    """Return q(x_t|x_s) as a matrix with rows x_s."""
    alpha = ALPHAS[model.schedule]
    kept = alpha(t) / alpha(s)
    pi = law_of_noise(model)
    return kept * np.eye(len(pi)) + (1 - kept) * np.tile(pi, (len(pi), 1))


def bayes(model, p_0, s, t):
    """Return p(x_s|x_t) for p_0 [..., S] and each state x_t: [..., S (x_t), S (x_s)].

    Rows of states that cannot be reached are 0.
    """
    s_given_0 = p_0 @ transition(model, 0.0, s)
    joint = s_given_0[..., None, :] * transition(model, s, t).T
    total = joint.sum(-1, keepdims=True)
    return np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)


def both(size):
    """Return all states of two variables, [size², 2]."""
    return np.array(list(itertools.product(range(size), repeat=2)))


def predictions(model, params, times):
    """Return p̂ at each time from every pair of states, [T, S², 2, S]."""
    states = np.eye(model.states, dtype=np.float32)[both(model.states)]
    t = np.repeat(np.asarray(times, np.float32), len(states))
    p, _ = jax.jit(model._predict)(params, {}, np.tile(states, (len(times), 1, 1)), t)
    return np.asarray(p, np.float64).reshape(len(times), *states.shape)


def reverse_of(model, params, timesteps):
    """Yield s, t and p(x_s|x_t) of each variable for each step, from noise to data.

    p is [S², 2, S] with rows for the pairs x_t.
    """
    x_t, ends = both(model.states), np.arange(timesteps, -1, -1) / timesteps
    for p_0, (t, s) in zip(
        predictions(model, params, ends[:-1]), itertools.pairwise(ends), strict=True
    ):
        given = bayes(model, p_0, s, t)  # [S², 2, S, S]
        rows = np.arange(len(x_t))
        yield s, t, np.stack([given[rows, i, x_t[:, i]] for i in range(2)], axis=1)


def chain_law(model, params, timesteps):
    """Return p(x_0) for all pairs of states, summed over all paths: [S, S]."""
    pi = law_of_noise(model)
    law = np.outer(pi, pi).ravel()
    for _, _, p in reverse_of(model, params, timesteps):
        law = law @ np.einsum("na,nb->nab", p[:, 0], p[:, 1]).reshape(len(law), -1)
    return law.reshape(model.states, model.states)


def chain_bound(model, params, timesteps):
    """Return Σ_t E KL(q(x_s|x_t, x_0) ‖ p(x_s|x_t)) for all pairs of levels, [K²]."""
    values, x_t = both(model.levels), both(model.states)
    bound = np.zeros(len(values))
    for s, t, p in reverse_of(model, params, timesteps):
        for row, x_0 in enumerate(values):
            one_hot = np.eye(model.states)[x_0]  # [2, S]
            mass = (one_hot @ transition(model, 0.0, t))[[[0], [1]], x_t.T].prod(0)
            given = bayes(model, one_hot, s, t)
            for pixel in range(2):
                q = given[pixel, x_t[:, pixel]]
                kl = scipy.special.rel_entr(q, p[:, pixel]).sum(1)
                bound[row] += mass[mass > 0] @ kl[mass > 0]
    return bound


def level_values(model):
    return both(model.levels) / (model.levels - 1)


CHAINS = pytest.mark.parametrize(
    ("noise", "levels", "schedule"),
    [
        pytest.param("absorbing", 2, "linear", marks=SLOW),
        pytest.param("uniform", 2, "cosine", marks=SLOW),
        ("absorbing", 3, "cosine"),
        ("uniform", 3, "linear"),
    ],
)


INVERSE_ALPHAS: dict[str, Any] = {
    "linear": lambda alpha: 1 - alpha,
    "cosine": lambda alpha: math.asin(1 - alpha) / (0.5 * math.pi),
}


@CHAINS
def test_marginals_and_their_composition(noise, levels, schedule):
    model, _ = small(noise, levels, schedule=schedule)
    x = np.eye(model.states, dtype=np.float32)[: model.levels][:, None]  # [K, 1, S]
    alpha, alpha_of = ALPHAS[schedule], jax.jit(model._alpha)
    marginal_of, corrupt = jax.jit(model._marginal), jax.jit(model._corrupt)

    def times(t, n=model.levels):
        return np.full(n, t, np.float32)

    for t in (0.0, 0.3, 0.7, 1.0):
        np.testing.assert_allclose(alpha_of(times(t, 1)).ravel(), alpha(t), atol=1e-7)
        expected = transition(model, 0.0, t)[: model.levels]
        marginal = np.asarray(marginal_of(x, times(t)))
        np.testing.assert_allclose(marginal[:, 0], expected, atol=1e-6)
    # From time 0.3 to 0.7 the chain moves as from 0 to the time whose α is α_0.7 / α_0.3.
    rest = INVERSE_ALPHAS[schedule](alpha(0.7) / alpha(0.3))
    composed = marginal_of(marginal_of(x, times(0.3)), times(rest))
    np.testing.assert_allclose(composed, marginal_of(x, times(0.7)), atol=1e-6)
    np.testing.assert_allclose(model.pi, law_of_noise(model))
    n = 20_000
    x_0 = jax.jit(model._one_hot)(np.tile(np.array([[0.0, 1.0]], np.float32), (n, 1)))
    for t in (0.0, 0.4, 1.0):
        x_t = np.asarray(corrupt(x_0, times(t, n), jax.random.key(0)))
        expected = transition(model, 0.0, t)[[0, model.levels - 1]]
        np.testing.assert_allclose(x_t.mean(0), expected, atol=5 * 0.5 / math.sqrt(n))
        np.testing.assert_array_equal(x_t.sum(-1), 1)


@CHAINS
@pytest.mark.parametrize(
    ("s", "t"),
    [
        (0.0, 0.25),
        pytest.param(0.3, 0.6, marks=SLOW),
        (0.75, 1.0),
        pytest.param(0.0, 1.0, marks=SLOW),
    ],
)
def test_reverse_is_bayes_rule(noise, levels, schedule, s, t):
    model, _ = small(noise, levels, schedule=schedule)
    size = model.states
    at = np.full(size, s, np.float32), np.full(size, t, np.float32)
    x_t, reverse = (
        np.tile(np.eye(size, dtype=np.float32)[:, None], (1, 2, 1)),
        jax.jit(model._reverse),
    )
    laws = [np.eye(size)[k] for k in range(levels)]
    laws.append(
        np.append(np.random.RandomState(0).dirichlet(np.ones(levels)), np.zeros(size - levels))
    )
    for p_0 in laws:
        expected = bayes(model, p_0, s, t)
        p = np.asarray(reverse(x_t, np.broadcast_to(p_0.astype(np.float32), x_t.shape), *at))
        reached = p_0 @ transition(model, 0.0, t) > 0
        for pixel in range(2):
            np.testing.assert_allclose(p[reached, pixel], expected[reached], rtol=1e-4, atol=1e-6)


@NOISES
def test_predictions_are_probabilities_of_levels(noise):
    model, state = small(noise, 3)
    for t in (0.0, 0.5, 1.0):
        p = predictions(model, state.ema, [t])[0]
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)
        if noise == "absorbing":  # never the mask, and a variable that is not masked stays
            states = both(4)
            masked = states == 3
            np.testing.assert_array_equal(p[masked][:, 3], 0)
            np.testing.assert_array_equal(p[~masked], np.eye(4)[states[~masked]])
            assert p[masked].std(0)[:3].min() > 0.01
        else:
            assert p.std(0).min() > 0.01


@jax.jit
def stirred(state):
    """Return the state with random numbers added to the parameters."""
    keys = iter(jax.random.split(jax.random.key(0), 50))
    ema = jax.tree.map(
        lambda leaf: leaf + 0.5 * jax.random.normal(next(keys), leaf.shape), state.ema
    )
    return state._replace(ema=ema)


@CHAINS
def test_bound_and_samples_of_a_chain_equal_sums_over_its_paths(noise, levels, schedule):
    net = TINY if (noise, levels) == ("uniform", 3) else None
    model, state = small(noise, levels, net, schedule=schedule, sample_steps=4)
    state = stirred(state)
    law = chain_law(model, state.ema, 4)
    np.testing.assert_allclose(law[:levels, :levels].sum(), 1, rtol=1e-5)
    exact = -np.log(law[:levels, :levels].ravel())
    assert np.ptp(exact) > 0.5
    bound = chain_bound(model, state.ema, 4)
    assert (bound > exact).all()
    n = 1000
    estimates = jax.jit(partial(replace(model, time_draws=8).bound, timesteps=4))(
        state, {"x": repeat(level_values(model), n)}, jax.random.key(0)
    )
    stderr = near(estimates, n, bound, slack=1e-5)
    assert (stderr < 0.2 * (bound - exact) + 0.05).all()
    n = 20_000
    x = jax.jit(partial(model.sample, n=n))(state, jax.random.key(1))
    index = np.rint(np.asarray(x) * (levels - 1)).astype(int)
    np.testing.assert_allclose(x, index / (levels - 1), atol=1e-6)
    share = np.bincount(index @ [levels, 1], minlength=levels**2) / n
    assert 0.5 * abs(share - law[:levels, :levels].ravel()).sum() < 0.02


@pytest.mark.parametrize(
    ("noise", "schedule"),
    [
        ("absorbing", "linear"),
        ("uniform", "cosine"),
        pytest.param("absorbing", "cosine", marks=SLOW),
        pytest.param("uniform", "linear", marks=SLOW),
    ],
)
def test_continuous_bound_is_finite_near_both_ends(noise, schedule):
    """The rate of the bound is −α' / α, and α_1 is 0."""
    model, state = small(noise, 3, schedule=schedule)
    x_0 = jax.jit(model._one_hot)(level_values(model))

    @jax.jit
    def integrand(at, key):
        return model._integrand(state.ema, {}, x_0, at, (key, None), 0)[0]

    for t in (0.0, 1e-7, 1e-4, 0.9998, 0.99995, 1 - 2.0**-20, 1 - 2.0**-23):
        at = np.full(len(x_0), t, np.float32)
        for seed in range(3):
            value = np.asarray(integrand(at, jax.random.key(seed)))
            assert np.isfinite(value).all(), t
            assert (value > -0.2).all(), t
        if t > 0.5:
            exact = {"linear": 1 - t, "cosine": 2 * math.sin(0.25 * math.pi * (1 - t)) ** 2}
            alpha = np.asarray(jax.jit(model._alpha)(at)).ravel()[0]
            np.testing.assert_allclose(alpha, exact[schedule], rtol=1e-3)


@SLOW
@NOISES
def test_objective_and_score_have_the_mean_of_the_bound(noise):
    model, state = small(noise, timesteps=3, time_draws=6)
    bound, n = chain_bound(model, state.ema, 3), 3000
    batch = {"x": jnp.asarray(repeat(level_values(model), n))}
    near(model.objective(state, batch, jax.random.key(0)), n, bound)
    score = jax.jit(replace(model, time_draws=6000).score)
    batch = {"x": jnp.asarray(level_values(model))}
    np.testing.assert_allclose(score(state, batch, jax.random.key(0)), bound, atol=0.15)


@pytest.mark.parametrize("noise", ["absorbing", slow("uniform")])
def test_score_of_discrete_data_is_the_bound_at_the_draws_of_the_key(noise):
    model, state = small(noise, time_draws=5)
    batch, score = {"x": jnp.asarray(level_values(model))}, jax.jit(model.score)
    once = score(state, batch, jax.random.key(0))
    np.testing.assert_array_equal(once, score(state, batch, jax.random.key(0)))
    np.testing.assert_allclose(
        once, jax.jit(model.bound)(state, batch, jax.random.key(0)), rtol=1e-5
    )
    assert abs(once - score(state, batch, jax.random.key(1))).max() > 1e-4


def test_samples_in_another_number_of_steps_start_from_the_same_noise():
    model, state = small("uniform", sample_steps=6)
    key, in_three = jax.random.key(0), replace(model, sample_steps=3)
    drawn = jax.jit(model.sample_in, static_argnums=(2, 3))(state, key, 50, 3)
    np.testing.assert_array_equal(drawn, jax.jit(in_three.sample, static_argnums=2)(state, key, 50))


@SLOW
@CHAINS
def test_bound_of_many_steps_tends_to_the_continuous_one(noise, levels, schedule):
    model, state = small(noise, levels, schedule=schedule)
    first, second = (chain_bound(model, state.ema, timesteps) for timesteps in (100, 200))
    limit, n = 2 * second - first, 2000  # Richardson extrapolation removes the first order
    estimates = jax.jit(partial(model.bound, timesteps=0))(
        state, {"x": repeat(level_values(model), n)}, jax.random.key(0)
    )
    stderr = near(estimates, n, limit, slack=2e-3)
    assert (stderr < 0.06).all()
    assert (abs(second - limit) < abs(first - limit)).all()
    assert abs(chain_bound(model, state.ema, 2) - limit).max() > 0.02


@pytest.mark.parametrize("levels", [slow(2), 3])
def test_absorbed_bound_is_the_mean_over_the_orders_of_autoregression(levels):
    """The network does not use the time."""
    model, state = small("absorbing", levels, Small(timed=False))
    state = stirred(state)
    log_p = np.log(predictions(model, state.ema, [0.3])[0] + 1e-300).reshape(
        levels + 1, levels + 1, 2, levels + 1
    )
    mask = levels
    exact = [
        -0.5
        * (
            log_p[mask, mask, 0, a]
            + log_p[a, mask, 1, b]  # the first variable, then the second
            + log_p[mask, mask, 1, b]
            + log_p[mask, b, 0, a]
        )
        for a, b in both(levels)
    ]
    n = 2000
    for schedule in ("linear", "cosine"):
        scheduled = replace(model, schedule=schedule, time_draws=50)
        estimates = jax.jit(scheduled.bound)(
            state, {"x": repeat(level_values(model), n)}, jax.random.key(0)
        )
        stderr = near(estimates, n, np.array(exact))
        assert (stderr < 0.05).all()


def exact_net(law, noise, own=False):
    """Return the exact network for a law of two variables [K, K].

    It predicts each variable from the other one, or with `own` from both.
    """

    def exact(x, t, label):
        levels, p_0 = len(law), jnp.asarray(law, jnp.float32)
        kept = (1 - t)[:, None, None]
        if noise == "uniform":  # q(x_t|x_0) of each variable and level, [B, 2, K]
            q = kept * x + (1 - kept) / levels
        else:
            q = kept * x[..., :levels] + (1 - kept) * x[..., levels:]
        p = jnp.stack([q[:, 1] @ p_0.T, q[:, 0] @ p_0], axis=1)
        return jnp.log(p * q if own else p)

    return Plain(exact)


LAWS = {
    2: np.array([[0.4, 0.1], [0.05, 0.45]]),
    3: np.array([[0.3, 0.05, 0.05], [0.05, 0.02, 0.13], [0.1, 0.2, 0.1]]),
}


@NOISES
@pytest.mark.parametrize("levels", [slow(2), 3])
def test_exact_network_has_the_probabilities_of_the_data(noise, levels):
    law = LAWS[levels]
    model, state = small(noise, levels, exact_net(law, noise), time_draws=50)
    exact = -np.log(law.ravel())
    p = law.ravel()
    gaps = []
    for timesteps in (2, 10, 50):
        bound = chain_bound(model, state.ema, timesteps)
        drawn = chain_law(model, state.ema, timesteps)[:levels, :levels].ravel()
        assert (bound > -np.log(drawn) - 1e-5).all()
        gaps.append((p @ (bound - exact), 0.5 * abs(drawn - p).sum()))
    assert all(gaps[i][0] > 2 * gaps[i + 1][0] > 0 for i in range(2))
    assert gaps[2][0] < 0.02
    assert gaps[0][1] > gaps[2][1]
    assert gaps[2][1] < 0.012
    n = 2000
    estimates = jax.jit(model.bound)(
        state, {"x": repeat(level_values(model), n)}, jax.random.key(0)
    )
    mean, stderr = groups(estimates, n)
    assert abs(p @ (mean - exact)) < 4.5 * math.hypot(*(p * stderr)) + 1e-4
    if noise == "uniform":  # in eq. 4 p̂ conditions on the other variables, not on all
        posterior, state = small(noise, levels, exact_net(law, noise, own=True))
        assert p @ (chain_bound(posterior, state.ema, 50) - exact) > gaps[2][0] + 0.02


@SLOW
@pytest.mark.parametrize("levels", [slow(2), 3])
def test_absorbed_completions_are_drawn_from_the_conditional_of_the_network(levels):
    model, state = small("absorbing", levels, Small(timed=False), sample_steps=20)
    state, n = stirred(state), 6000
    p = predictions(model, state.ema, [0.5]).reshape(levels + 1, levels + 1, 2, levels + 1)
    shown = np.arange(levels)
    x = jnp.asarray(repeat(np.stack([shown / (levels - 1), np.full(levels, 0.321)], axis=1), n))
    out = jax.jit(model.complete)(state, x, jnp.array([1, 0]), jax.random.key(0))
    np.testing.assert_array_equal(out[:, 0], x[:, 0])
    index = np.rint(np.asarray(out[:, 1]) * (levels - 1)).astype(int).reshape(levels, n)
    for value in shown:
        share = np.bincount(index[value], minlength=levels) / n
        np.testing.assert_allclose(share, p[value, levels, 1, :levels], atol=0.03)
    # With all variables hidden it is a sample, and with all shown it is x.
    drawn = model.complete(state, x, jnp.zeros(2), jax.random.key(1))
    law = chain_law(model, state.ema, 20)[:levels, :levels].ravel()
    share = np.rint(np.asarray(drawn) * (levels - 1)).astype(int) @ [levels, 1]
    share = np.bincount(share, minlength=levels**2) / len(x)
    np.testing.assert_allclose(share, law, atol=0.03)
    np.testing.assert_array_equal(model.complete(state, x, jnp.ones(2), jax.random.key(1)), x)


def test_uniform_completions_tend_to_the_conditional():
    law = LAWS[2]
    model, state = small("uniform", 2, exact_net(law, "uniform"), sample_steps=50)
    n = 3000
    x = repeat([[0.0, 0.0], [1.0, 0.0]], n)
    out = jax.jit(model.complete)(state, x, jnp.array([1, 0]), jax.random.key(0))
    np.testing.assert_array_equal(out[:, 0], x[:, 0])
    share = np.asarray(out[:, 1]).reshape(2, n).mean(1)
    exact, alone = law[:, 1] / law.sum(1), law[:, 1].sum()
    assert (abs(share - exact) < 0.6 * abs(alone - exact)).all(), (share, exact, alone)


def test_masks_are_shown_as_half_and_unmasked_variables_stay():
    model, state = small("absorbing", sample_steps=6)
    frames = model.denoising(state, jax.random.key(0), 50, 3)
    assert frames.shape == (4, 50, 2)
    np.testing.assert_array_equal(frames[0], 0.5)
    assert set(np.unique(frames[-1])) == {0, 1}
    masked = (np.asarray(frames) == 0.5).mean((1, 2))
    assert (np.diff(masked) < 0).all()
    np.testing.assert_array_equal(frames[-1], model.sample(state, jax.random.key(0), 50))
    for before, after in itertools.pairwise(np.asarray(frames)):
        np.testing.assert_array_equal(after[before != 0.5], before[before != 0.5])


def test_draws_have_their_probabilities():
    p = jnp.array([[0.5, 0.0, 0.3, 0.2], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    n = 20_000
    states = discrete.draw(jax.random.key(0), jnp.broadcast_to(p, (n, 3, 4)))
    np.testing.assert_array_equal(states.sum(-1), 1)
    np.testing.assert_allclose(states.mean(0), p, atol=0.02)
    np.testing.assert_array_equal(states.mean(0)[p == 0], 0)


def test_draws_never_have_probability_zero(monkeypatch):
    """The rounded sum of the others may stay below the largest uniform number."""
    monkeypatch.setattr(
        jax.random, "uniform", lambda key, shape: jnp.full(shape, 1 - 2.0**-23, jnp.float32)
    )
    for levels in (2, 18, 19, 24, 42, 102):
        p = scipy.special.softmax(np.sin(np.arange(levels) * 1.7).astype(np.float32))
        p = jnp.asarray(np.append(p, 0.0), jnp.float32)
        assert discrete.draw(jax.random.key(0), p[None])[0, -1] == 0, levels


@pytest.mark.slow
def test_discrete_evaluate_reports_bounds_of_chains():
    model, state = small("absorbing", 3, time_draws=12, report_timesteps=(2, 4))
    values = np.tile(level_values(model), (200, 1))
    estimates = model.evaluate(state, {"x": values}, jax.random.key(0))
    assert set(estimates) == {"nll", "nll_2", "nll_4", "bits_per_dim"}
    for timesteps in (2, 4):
        estimate = estimates[f"nll_{timesteps}"]
        exact = chain_bound(model, state.ema, timesteps).mean()
        assert estimate.kind == "upper bound"
        assert abs(estimate.value - exact) < 4.5 * estimate.stderr
    bits = estimates["nll"].value / (2 * math.log(2))
    np.testing.assert_allclose(estimates["bits_per_dim"].value, bits, rtol=1e-6)
    with pytest.raises(UserError, match="levels"):
        model.evaluate(state, {"x": values + 0.1}, jax.random.key(0))


def test_images_of_several_channels_keep_each_variables_states_together():
    """The network predicts each variable from itself."""
    shape = (2, 3, 2)
    net = Plain(lambda x, t, label: 30 * x)
    model = DiscreteDiffusion(net, shape, levels=3, noise="uniform")
    state = jax.jit(model.init)(jax.random.key(0))
    index = jax.random.randint(jax.random.key(1), (4, *shape), 0, 3)
    states = jax.nn.one_hot(index, 3)
    p, _ = model._predict(state.ema, {}, states, jnp.full(4, 0.5))
    np.testing.assert_allclose(p, states, atol=1e-6)
    x_t = model._corrupt(model._one_hot(index / 2), jnp.zeros(4), jax.random.key(2))
    np.testing.assert_array_equal(x_t, states)


# Networks.


@pytest.mark.parametrize("size", [(7, 5), (8, 8), (1, 3)])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_become_depth_and_back(size, patch):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    depth = space_to_depth(x, patch)
    rows, columns = (-(-n // patch) for n in size)
    assert depth.shape == (2, rows, columns, patch**2 * 3)
    np.testing.assert_array_equal(depth_to_space(depth, patch, size), x)
    for i, j in itertools.product(range(rows), range(columns)):
        block = x[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
        np.testing.assert_allclose(
            depth[:, i, j].sum(-1), block.sum((1, 2, 3)), rtol=1e-4, atol=1e-5
        )


def test_time_is_embedded_in_sines_and_cosines():
    t = np.array([0.0, 0.013, 0.7, 1.0])
    frequencies = 10_000.0 ** -(np.arange(4) / 3)
    angle = 1000 * t[:, None] * frequencies
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(nets.embed_time(jnp.asarray(t), 8), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        pytest.param(UNet((8, 16), blocks=1, patch=2), (7, 5, 3)),
        pytest.param(UNet((8, 8, 16), blocks=1), (5, 3, 1), marks=SLOW),
        pytest.param(UNet((8,), blocks=1), (4, 4, 1), marks=SLOW),
        pytest.param(UNet((8,), blocks=1, patch=2, pixel_features=4), (5, 4, 2), marks=SLOW),
        (ResidualMLP(8, 1), (5, 3)),
        pytest.param(ResidualMLP(8, 2), (4, 3, 2), marks=SLOW),
    ],
)
@pytest.mark.parametrize("classes", [slow(0), 3])
def test_networks_start_at_zero_and_depend_on_all_inputs(net, shape, classes):
    module = fitted(net, out=(*shape[:-1], 4), classes=classes)
    x = jax.random.normal(jax.random.key(0), (2, *shape))
    t, label = jnp.array([0.2, 0.9]), jnp.array([0, 3]) if classes else None
    params: Any = jax.jit(module.init)(jax.random.key(1), x, t, label)
    apply: Any = jax.jit(module.apply)
    first = apply(params, x, t, label)
    assert first.shape == (2, *shape[:-1], 4)
    np.testing.assert_array_equal(first, 0)
    draw = np.random.default_rng(2).standard_normal
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.2 * draw(leaf.shape, np.float32), params
    )
    out = apply(params, x, t, label)
    assert np.isfinite(out).all()
    assert np.ptp(out) > 1e-2
    assert abs(apply(params, x, t[::-1], label) - out).max() > 1e-3
    # The last position depends on the first one, by attention or by dense layers.
    moved = apply(params, x.at[:, 0, 0].add(5.0), t, label)
    assert abs(moved - out)[:, -1, -1].max() > 1e-5
    # The output for an example does not depend on the other examples.
    alone = apply(params, x[:1], t[:1], label if label is None else label[:1])
    np.testing.assert_allclose(alone, out[:1], rtol=1e-3, atol=1e-4)
    if classes:
        assert abs(apply(params, x, t, jnp.array([1, 2])) - out).max() > 1e-3


class Users(nn.Module):
    """A user's own network, with batch statistics and dropout, and a flat output."""

    size: int

    @nn.compact
    def __call__(self, x, t, label, *, train=False):
        h = jnp.concatenate([x.reshape(len(x), -1), t[:, None]], axis=1)
        h = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(16)(h))
        h = nn.Dropout(0.5, deterministic=not train)(nn.relu(h))
        return nn.Dense(self.size)(h)


OWN: dict[str, Any] = {
    "gaussian": GaussianDiffusion(Users(12), (3, 2, 2), levels=4, fourier=2, sample_steps=3),
    "flow": FlowMatching(Users(12), (3, 2, 2), levels=4, sample_steps=3),
    "discrete": DiscreteDiffusion(Users(48), (3, 2, 2), levels=4, sample_steps=3),
}


@pytest.mark.parametrize("name", ["gaussian", slow("flow"), slow("discrete")])
def test_networks_of_the_user_are_trained_with_their_batch_statistics(name):
    model = OWN[name]
    state = jax.jit(model.init)(jax.random.key(0))
    batch = {"x": jax.random.randint(jax.random.key(1), (20, 3, 2, 2), 0, 4) / 3}
    step = jax.jit(model.step)
    moved, _ = step(state, batch, jax.random.key(2))
    assert jax.tree.structure(moved) == jax.tree.structure(state)
    assert abs(flat(moved.stats) - flat(state.stats)).max() > 1e-3
    assert abs(flat(moved.params) - flat(state.params)).max() > 1e-4
    # Dropout and the statistics of the batch are for training alone.
    _, metrics = step(state, batch, jax.random.key(3))
    loss = jax.jit(model.objective)(state, batch, jax.random.key(3)).mean()
    assert abs(metrics["loss"] - loss) > 1e-3
    drawn = jax.eval_shape(partial(model.sample, n=5), moved, jax.random.key(4))
    assert drawn.shape == (5, 3, 2, 2)


@pytest.mark.parametrize("name", OWN)
def test_networks_of_another_output_size_are_refused(name):
    with pytest.raises(UserError, match="Users returns"):
        jax.eval_shape(replace(OWN[name], net=Users(7)).init, jax.random.key(0))


GOOD: dict[Any, dict[str, Any]] = {
    GaussianDiffusion: {"net": TINY},
    FlowMatching: {"net": TINY},
    DiscreteDiffusion: {"net": TINY},
    UNet: {},
    ResidualMLP: {},
}


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        *(
            (GaussianDiffusion, n, 0)
            for n in ("sample_steps", "resamplings", "time_draws", "ode_steps")
        ),
        *(
            (GaussianDiffusion, n, -1)
            for n in ("levels", "timesteps", "fourier", "classes", "ode_examples")
        ),
        *((GaussianDiffusion, n, v) for n in ("ema_decay", "label_dropout") for v in (-0.1, 1.0)),
        (GaussianDiffusion, "log_snr_min", 14.0),
        (GaussianDiffusion, "log_snr_min", -31.0),
        (GaussianDiffusion, "log_snr_max", 31.0),
        (GaussianDiffusion, "schedule", "learned"),
        (GaussianDiffusion, "guidance", 1.0),
        *(
            (FlowMatching, n, 0)
            for n in ("sample_steps", "resamplings", "ode_steps", "ode_examples")
        ),
        (FlowMatching, "levels", -1),
        *((FlowMatching, "ema_decay", v) for v in (-0.1, 1.0)),
        (DiscreteDiffusion, "levels", 1),
        (DiscreteDiffusion, "timesteps", -1),
        (DiscreteDiffusion, "sample_steps", 0),
        (DiscreteDiffusion, "time_draws", 0),
        (DiscreteDiffusion, "report_timesteps", (100, 0)),
        *((DiscreteDiffusion, "ema_decay", v) for v in (-0.1, 1.0)),
        (UNet, "channels", ()),
        (UNet, "channels", (8, 0)),
        (UNet, "blocks", 0),
        (UNet, "patch", 0),
        (UNet, "pixel_features", -1),
        (ResidualMLP, "width", 0),
        (ResidualMLP, "layers", 0),
    ],
)
def test_settings_out_of_range_are_refused(model, name, value):
    model(**GOOD[model])
    with pytest.raises(UserError, match=name) as error:
        model(**GOOD[model], **{name: value})
    assert model.__name__ in str(error.value)


def test_fourier_features_need_levels():
    with pytest.raises(UserError, match="fourier"):
        GaussianDiffusion(TINY, levels=0, fourier=2)


@pytest.mark.parametrize("model", [GaussianDiffusion, FlowMatching])
@pytest.mark.parametrize("name", ["levels", "ode_steps"])
def test_one_level_and_one_ode_step_are_refused(model, name):
    setting: Any = {name: 1}
    with pytest.raises(UserError, match=name):
        model(TINY, **setting)


def test_labels_that_are_never_dropped_are_refused():
    with pytest.raises(UserError, match="label_dropout"):
        GaussianDiffusion(TINY, classes=3, label_dropout=0.0)


def test_labels_are_needed_by_a_model_with_classes():
    model, state = gaussian(classes=3, net=Plain(labelled), prediction="x")
    with pytest.raises(UserError, match="label"):
        model.objective(state, {"x": jnp.zeros((2, 2))}, jax.random.key(0))


def test_data_between_the_levels_is_refused():
    for model, state in (of_levels(), flow(PAIR, levels=4)):
        with pytest.raises(UserError, match="levels"):
            model.evaluate(state, {"x": np.array([[0.4]])}, jax.random.key(0))


def test_images_are_needed_by_a_u_net():
    with pytest.raises(UserError, match="images"):
        GaussianDiffusion(UNet((8,)), (5,)).init(jax.random.key(0))


@pytest.mark.parametrize("kind", [GaussianDiffusion, FlowMatching])
def test_continuous_values_have_no_bounds(kind):
    """Standardised columns lie outside of [0, 1], and so must their samples."""
    model = kind(ResidualMLP(8, 1), shape=(2,), levels=0)
    x = jnp.array([[-3.0, 0.5], [4.0, 1.5]])
    np.testing.assert_allclose(model.to_values(model.to_continuous(x)), x, rtol=1e-6)
    samples = model.sample(jax.jit(model.init)(jax.random.key(0)), jax.random.key(1), 200)
    assert samples.min() < 0
    assert samples.max() > 1
