"""Diffusion against closed forms of Gaussian data and sums over all paths of small chains."""

import itertools
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from flax import linen as nn

from gen.core import UserError
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
from gen.models.diffusion.gaussian import aim, parts
from gen.models.diffusion.samplers import Prediction

SLOW = pytest.mark.slow


def slow(value):
    return pytest.param(value, marks=SLOW)


# Data whose every noisy marginal is known.


class Mixture(NamedTuple):
    """Of Gaussians in [−1, 1], each N(m, Q diag(c) Qᵀ); c = 0 is a point."""

    weights: Any  # [K]
    means: Any  # [K, D]
    axes: Any  # Q, [K, D, D]
    variances: Any  # c, [K, D]

    @property
    def size(self):
        return self.means.shape[1]

    def parts(self, x, alpha, sigma, xp: Any = jnp):
        """E[x | x_t], E[ε | x_t] and log q(x_t), of x_t [B, D] at α, σ [B]."""
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
        """Of values in [0, 1], in float64."""
        x = 2 * np.asarray(y, np.float64) - 1
        return self.parts(x, np.ones(len(x)), np.zeros(len(x)), np)[1] + self.size * math.log(2)

    def denoise(self, path):
        def of(x, t):
            alpha, sigma = (jnp.broadcast_to(scale, len(x)) for scale in path(t))
            return self.parts(x, alpha, sigma)[0]

        return of

    def flow(self, x, here, there):
        """The probability flow of one Gaussian between two (α, σ), and log |∂x/∂x|: it scales its
        standard deviations along the axes."""
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


@dataclass(frozen=True, eq=False)
class Known:
    """A net that knows the data; `ends` of λ, or none on the straight path."""

    data: Mixture
    predicted: Any = "v"
    ends: tuple[float, float] | None = None

    def module(self, out, classes):
        return KnownModule(self)


class KnownModule(nn.Module):
    of: Known

    @nn.compact
    def __call__(self, x, t, label):
        if self.of.ends is None:
            found, _ = self.of.data.parts(x, *straight(t))
            return found.noise - found.x
        lowest, highest = self.of.ends
        alpha, sigma = scales(highest + (lowest - highest) * t)
        found, _ = self.of.data.parts(x, alpha, sigma)
        return aim(self.of.predicted, found, alpha[:, None], sigma[:, None])


@dataclass(frozen=True, eq=False)
class Plain:
    """A net that is one function of x, t and the label."""

    function: Any

    def module(self, out, classes):
        return PlainModule(self)


class PlainModule(nn.Module):
    of: Plain

    @nn.compact
    def __call__(self, x, t, label):
        return self.of.function(x, t, label)


def scales(log_snr):
    return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


def exact_scales(log_snr):
    """In float64."""
    log_snr = np.asarray(log_snr, np.float64)
    return np.sqrt(scipy.special.expit(log_snr)), np.sqrt(scipy.special.expit(-log_snr))


def gaussian(data=NORMAL, ends=(-10.0, 13.3), prediction: Any = "v", net: Any = None, **options):
    """(model, its state) with the net that knows the data."""
    chosen: Any = net or Known(data, prediction, ends)
    settings: dict[str, Any] = {"levels": 0, "shape": (data.size,), **options}
    lowest, highest = ends
    model = GaussianDiffusion(
        chosen, prediction=prediction, lowest=lowest, highest=highest, **settings
    )
    return model, model.init(jax.random.key(0))


def flow(data=NORMAL, net: Any = None, **options):
    settings: dict[str, Any] = {"levels": 0, "shape": (data.size,), **options}
    chosen: Any = net or Known(data)
    model = FlowMatching(chosen, **settings)
    return model, model.init(jax.random.key(0))


def repeat(rows, n):
    """[R, D] -> [R n, D]."""
    return jnp.repeat(jnp.asarray(rows, jnp.float32), n, axis=0)


def groups(values, n):
    """(mean, its standard error) of each n values in a row."""
    values = np.asarray(values, np.float64).reshape(-1, n)
    return values.mean(1), values.std(1) / math.sqrt(n)


def near(values, n, exact, sigmas=4.5, slack=0.0):
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
    """A paper's λ between the times at which it has these ends, in float64."""
    log_snr = PAPERS[schedule]
    find: Any = scipy.optimize.brentq
    last, first = (
        find(lambda tau, end=end: log_snr(tau) - end, 1e-12, 1 - 1e-9, xtol=1e-14) for end in ends
    )
    return log_snr(first + (last - first) * np.asarray(t, np.float64))


def perturbed(schedule, seed=1):
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
    found = jax.jit(log_snr)(t)
    np.testing.assert_allclose([found[-1], found[0]], ends, rtol=2e-5)
    assert (np.diff(found) < 0).all()
    np.testing.assert_allclose(jax.jit(log_snr)(t[37]), found[37], rtol=1e-5)
    if schedule in PAPERS:
        expected = paper_log_snr(schedule, ends, np.linspace(0, 1, 501))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)
    line = ends[1] + (ends[0] - ends[1]) * np.linspace(0, 1, 501)
    if schedule == "log_linear":
        np.testing.assert_allclose(found, line, rtol=1e-5, atol=1e-5)
    if schedule == "learned":  # nearly a line at first
        assert abs(found - line).max() < 0.05 * (ends[1] - ends[0])


def test_bent_curve_is_no_line():
    params = schedules.init_learned(-10.0, 13.3)
    t = jnp.linspace(0, 1, 101)
    bent, line = (schedules.learned(one)(t) for one in (perturbed(params), params))
    assert abs(bent - line).max() > 0.5


def test_linear_schedule_is_that_of_ddpm():
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    ends = tuple(float(PAPERS["linear"](tau)) for tau in (1.0, 1e-3))
    t = (np.arange(1, 1001) / 1000 - 1e-3) / (1 - 1e-3)
    found = schedules.linear(*ends)(jnp.asarray(t, jnp.float32))
    expected = np.log(kept / (1 - kept))
    np.testing.assert_allclose(found[20:], expected[20:], atol=0.12)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("schedule", ["linear", "cosine", "log_linear", "learned"])
def test_scales_of_a_path(schedule, ends):
    weighting = "likelihood" if schedule == "learned" else "simple"
    model, state = gaussian(ends=ends, schedule=schedule, weighting=weighting)
    t = jnp.linspace(0, 1, 101)
    alpha, sigma = model.path(state.params)(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
    found = 2 * np.log(np.asarray(alpha, np.float64) / np.asarray(sigma, np.float64))
    np.testing.assert_allclose(found, model._log_snr(state.params)(t), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose([found[-1], found[0]], ends, rtol=2e-5)
    scalar = model.path(state.params)(t[30])
    np.testing.assert_allclose(scalar, (alpha[30], sigma[30]), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("timesteps", [0, 4])
def test_moments_of_noisy_examples(schedule, timesteps):
    """By a net that says that x is x_t."""
    identity = Plain(lambda x, t, label: x)
    model, state = gaussian(ends=(-5.0, 6.0), net=identity, prediction="x", schedule=schedule)
    x = jnp.tile(jnp.array([[0.9, -0.4]]), (20_000, 1))
    for t in (0.1, 0.45, 0.8):
        noised = model._noised(
            state.ema, x, jnp.full(len(x), t), None, jax.random.key(0), timesteps
        )
        at = math.ceil(t * timesteps) / timesteps if timesteps else t
        alpha, sigma = exact_scales(paper_log_snr(schedule, (-5.0, 6.0), at))
        x_t = np.asarray(noised.found.x)
        np.testing.assert_allclose(x_t.mean(0), alpha * x[0], atol=5 * sigma / math.sqrt(len(x)))
        np.testing.assert_allclose(np.cov(x_t.T), sigma**2 * np.eye(2), atol=0.05 * sigma**2)
        np.testing.assert_allclose(noised.alpha[:, 0], alpha, rtol=1e-4)
        np.testing.assert_allclose(noised.sigma[:, 0], sigma, rtol=1e-4)
        again = noised.alpha * noised.true.x + noised.sigma * noised.true.noise
        np.testing.assert_allclose(x_t, again, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(noised.true.x, x)


@SLOW
def test_straight_path_by_its_objective():
    """By a net u = x_t: E ‖x_t − (ε − x)‖² = ∫ (2 − t)² x² + t'² dt with t' = 1 − t."""
    model, state = flow(net=Plain(lambda x, t, label: x))
    y = jnp.tile(jnp.array([[0.9, 0.25]]), (50_000, 1))
    x = 2 * np.array([0.9, 0.25]) - 1
    found = jax.jit(model.objective)(state, {"x": y}, jax.random.key(0))
    near(found, len(y), 7 / 3 * (x**2).mean() + 1 / 3)
    np.testing.assert_allclose(straight(jnp.array([0.0, 0.3, 1.0])), [[1, 0.7, 0], [0, 0.3, 1]])
    # The best net: E ‖E[ε − x | x_t] − (ε − x)‖² / D, averaged over the data.
    model, state = flow()
    z = np.random.RandomState(0).randn(50_000, 2)
    data = NORMAL.means + z * np.sqrt(NORMAL.variances) @ NORMAL.axes[0].T
    found = model.objective(state, {"x": jnp.asarray((data + 1) / 2)}, jax.random.key(0))
    t, c = np.linspace(0, 1, 4001)[:, None], NORMAL.variances
    # (ε − x) given x_t: variance c + 1 less cov² / var, of cov = t − (1 − t) c.
    left = c + 1 - (t - (1 - t) * c) ** 2 / ((1 - t) ** 2 * c + t**2)
    near(found, len(data), np.trapezoid(left.mean(1), t[:, 0]))


@pytest.mark.parametrize("n", [1, 7, 64])
def test_times_are_spread_evenly(n):
    keys = jax.random.split(jax.random.key(0), 2000)
    t = np.asarray(jax.vmap(partial(common.spread_times, n=n))(keys))
    assert (t >= 0).all()
    assert (t < 1).all()
    # One in each n-th part of the circle: sorted, they are 1 / n apart.
    np.testing.assert_allclose(np.diff(np.sort(t), axis=1), 1 / n, atol=1e-6)
    for column in {0, n - 1}:
        assert scipy.stats.kstest(t[:, column], "uniform").pvalue > 1e-3


def test_average_over_time():
    key = jax.random.key(0)

    def of(t, key) -> Any:
        return {"square": t**2, "part": jnp.where((t >= 0.25) & (t < 0.5), 1.0, 0.0)}

    found = common.average(of, key, 2000, 8)
    near(found["square"], 2000, 1 / 3)
    np.testing.assert_allclose(found["part"], 0.25, rtol=1e-6)  # two draws of eight, always


def test_times_of_a_bound_are_below_one():
    """At t = 1 a chain of T steps would go on to 1 + 1/T."""
    latest = common.average(
        lambda t, key: jnp.where(t < 1, 0.0, 1.0), jax.random.key(0), 40_000, 4096
    )
    assert latest.max() == 0


# What a net predicts, and what weighs its errors.


@pytest.mark.parametrize("prediction", ["noise", "x", "v"])
def test_predictions_are_consistent(prediction):
    keys = jax.random.split(jax.random.key(0), 3)
    both = Prediction(*(jax.random.normal(key, (5, 3)) for key in keys[:2]))
    alpha, sigma = (scale[:, None] for scale in scales(jnp.linspace(-4, 4, 5)))
    x_t = alpha * both.x + sigma * both.noise
    out = aim(prediction, both, alpha, sigma)
    expected = {"noise": both.noise, "x": both.x, "v": alpha * both.noise - sigma * both.x}
    np.testing.assert_array_equal(out, expected[prediction])
    found = parts(prediction, out, x_t, alpha, sigma)
    for one, other in zip(found, both, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    found = parts(prediction, jax.random.normal(keys[2], (5, 3)), x_t, alpha, sigma)
    np.testing.assert_allclose(alpha * found.x + sigma * found.noise, x_t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", [slow("noise"), "x", slow("v")])
def test_denoiser_is_the_posterior_mean_whatever_the_net_predicts(prediction):
    model, state = gaussian(PAIR, prediction=prediction, ends=(-6.0, 6.0))
    x = np.linspace(-2, 2, 41)[:, None]
    for t in (0.0, 0.3, 1.0):
        found = model.denoiser(state.ema, None)(jnp.asarray(x, jnp.float32), jnp.array(t))
        alpha, sigma = exact_scales(paper_log_snr("cosine", (-6.0, 6.0), t))
        grid = np.linspace(-4, 4, 20_001)[:, None]
        log_p = PAIR.log_p((grid + 1) / 2)[:, None] - 0.5 * ((x.T - alpha * grid) / sigma) ** 2
        p = scipy.special.softmax(log_p, axis=0)
        mean = (p * grid).sum(0)[:, None]
        np.testing.assert_allclose(found.x, mean, atol=2e-3 if prediction == "noise" else 3e-4)
        np.testing.assert_allclose(found.noise, (x - alpha * mean) / sigma, atol=2e-3)


@SLOW
@pytest.mark.parametrize("log_snr", [2.5, 1.0, -3.0])
def test_weightings_differ_by_their_factors(log_snr):
    """At one time, the end of the only step: the net says x̂ = 0.3 x_t."""
    snr = math.exp(log_snr)
    ends = (log_snr, log_snr + 2)
    alpha, sigma = exact_scales(log_snr)

    def of(prediction: Any, weighting: Any):
        def net(x, t, label):
            guess = Prediction(0.3 * x, (x - alpha * 0.3 * x) / sigma)
            return aim(
                prediction, guess, jnp.full((len(x), 1), alpha), jnp.full((len(x), 1), sigma)
            )

        model, state = gaussian(
            net=Plain(net), ends=ends, prediction=prediction, weighting=weighting, timesteps=1
        )
        batch = {"x": jax.random.uniform(jax.random.key(1), (50, 2))}
        noised = model._noised(
            state.ema, 2 * batch["x"] - 1, jnp.full(50, 0.5), None, jax.random.key(2), 1
        )
        return model.objective(state, batch, jax.random.key(0)), noised

    x, noised = of("x", "simple")
    close = partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5)
    close(of("noise", "simple")[0], snr * x)
    close(of("v", "simple")[0], (1 + snr) * x)
    for prediction in ("noise", "x", "v"):
        close(of(prediction, "min_snr")[0], min(snr, 5) * x)
    # The bound's: ½ (e^{λ_s − λ_t} − 1) SNR ‖x − x̂‖².
    square = np.asarray(((noised.true.x - noised.found.x) ** 2).sum(1))
    close(noised.diffusion, 0.5 * math.expm1(2) * snr * square)


def test_continuous_weight_is_the_slope_of_the_log_snr():
    model, state = gaussian(net=Plain(lambda x, t, label: 0.3 * x), ends=(-5.0, 6.0))
    x = jax.random.normal(jax.random.key(0), (9, 2))
    t = jnp.linspace(0.1, 0.9, 9)
    noised = model._noised(state.ema, x, t, None, jax.random.key(1), 0)
    times = np.linspace(0.1, 0.9, 9)
    high, low = (paper_log_snr("cosine", (-5.0, 6.0), times + step) for step in (-1e-5, 1e-5))
    square = np.asarray(((noised.true.noise - noised.found.noise) ** 2).sum(1))
    np.testing.assert_allclose(noised.diffusion, 0.5 * (high - low) / 2e-5 * square, rtol=1e-3)


def test_simple_objectives_of_a_net_that_says_nothing():
    """Their means over time and noise: of ε 1, of x x², of v ∫ α² + σ² x², of min-SNR
    ∫ min(SNR, 5) x²."""
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
        found = model.objective(state, {"x": repeat([y], n)}, jax.random.key(0))
        near(found, n, value, slack=2e-4)


@SLOW
@pytest.mark.parametrize("timesteps", [0, 5])
def test_likelihood_objective_has_the_mean_of_the_bound(timesteps):
    options: dict[str, Any] = {"weighting": "likelihood", "timesteps": timesteps}
    model, state = gaussian(PAIR, ends=(-4.0, 5.0), **options)
    found = model.objective(state, {"x": repeat(Y1, 8000)}, jax.random.key(0))
    near(found, 8000, expected_bound(model, PAIR, Y1, timesteps))


# The bound, on data whose density is known.


Y1 = np.array([[0.25], [0.5], [0.8]])
Y2 = np.array([[0.6, 0.35], [0.75, 0.6], [0.3, 0.35]])


def expected_bound(model, data, y, timesteps):
    """The bound with the right denoiser, by quadrature over noise and λ, in float64: [R]."""
    ends = model.lowest, model.highest
    nodes, weights = np.polynomial.hermite_e.hermegauss(100 if data.size == 1 else 3)
    noise = np.array(list(itertools.product(nodes, repeat=data.size)))
    mass = np.array([math.prod(w) for w in itertools.product(weights, repeat=data.size)])
    mass /= mass.sum()

    def square(x, log_snr):
        """E ‖ε − ε̂‖², [L]."""
        alpha, sigma = (np.repeat(scale, len(noise)) for scale in exact_scales(log_snr))
        eps = np.tile(noise, (len(log_snr), 1))
        x_t = alpha[:, None] * x + sigma[:, None] * eps
        found, _ = data.parts(x_t, alpha, sigma, np)
        return ((eps - found.noise) ** 2).sum(1).reshape(-1, len(noise)) @ mass

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
    """In float64: what the model's own bounds are held against below."""
    exact = -data.log_p(y)
    model, _ = gaussian(data)
    bounds = [expected_bound(model, data, y, T) for T in (10, 100, 1000)]
    limit = expected_bound(model, data, y, 0)
    gaps = [(bound - exact).mean() for bound in (*bounds, limit)]
    assert gaps == sorted(gaps, reverse=True)
    assert all((bound > exact).all() for bound in bounds)
    assert gaps[0] > 1
    np.testing.assert_allclose(limit, exact, atol=2e-3)
    model, _ = gaussian(data, ends=(-4.0, 5.0))  # where steps are soon small
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
    model = replace(model, draws=timesteps or 40)
    n = 2000
    terms = jax.jit(partial(model.bound, timesteps=timesteps))(
        state, {"x": repeat(y, n)}, jax.random.key(0)
    )
    stderr = near(sum(terms), n, expected_bound(model, data, y, timesteps))
    assert (stderr < (0.4 if timesteps else 0.12)).all()
    alpha, sigma = exact_scales(model.lowest)
    x = 2 * repeat(y, n) - 1
    prior = 0.5 * ((alpha * x) ** 2 + sigma**2 - 1 - 2 * np.log(sigma)).sum(1)
    np.testing.assert_allclose(terms.prior, prior, rtol=1e-4, atol=1e-6)


@SLOW
@pytest.mark.parametrize(
    ("data", "y"),
    [pytest.param(NORMAL, Y2, id="normal", marks=SLOW), pytest.param(PAIR, Y1, id="mixture")],
)
def test_continuous_bound_is_the_exact_density(data, y):
    model, state = gaussian(data, schedule="learned", weighting="likelihood", draws=100)
    n = 3000
    terms = jax.jit(partial(model.bound, timesteps=0))(
        state, {"x": repeat(y, n)}, jax.random.key(0)
    )
    stderr = near(sum(terms), n, -data.log_p(y), slack=2e-3)
    assert (stderr < 0.06).all()
    # Two pictures of the same: more steps than a few are nearer.
    model = replace(model, draws=20)
    few = jax.jit(partial(model.bound, timesteps=20))(state, {"x": repeat(y, n)}, jax.random.key(1))
    mean, stderr = groups(sum(few), n)
    assert ((mean + data.log_p(y)).mean() > 5 * stderr).all()


@SLOW
def test_continuous_bound_does_not_depend_on_the_curve():
    model, state = gaussian(
        PAIR, ends=(-4.0, 5.0), schedule="learned", weighting="likelihood", draws=50
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
    """(model, state) that knows data of four levels."""
    return gaussian(points(LEVELS, 2 * STEPS - 1), ends=(-8.0, 6.0), levels=4, **options)


@pytest.mark.slow
def test_bounds_of_levels_are_their_probabilities():
    """Of points with probabilities, whose bound has no gap in continuous time."""
    model, state = of_levels(draws=50, ode_steps=200, ode_examples=4000)
    n = 1000
    found = jax.jit(partial(model.bound, timesteps=0))(
        state, {"x": repeat(STEPS, n)}, jax.random.key(0)
    )
    stderr = near(sum(found), n, -np.log(LEVELS), slack=2e-3)
    assert (stderr < 0.05).all()
    mean, stderr = groups(
        sum(replace(model, draws=10).bound(state, {"x": repeat(STEPS, n)}, jax.random.key(1), 10)),
        n,
    )
    assert (mean + np.log(LEVELS)).mean() > 5 * stderr.mean()
    # What `evaluate` says of them, by the bound and by the probability flow.
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
    near_it = expected > -20
    np.testing.assert_allclose(np.array(logs)[near_it], expected[near_it], rtol=1e-3, atol=1e-4)


def test_samples_are_levels_as_often_as_the_datas():
    n = 4000
    model, state = of_levels(sample_steps=100, ode_steps=100, resamplings=1)
    nothing = jnp.zeros((n, 1))
    ways = {
        "sample": jax.jit(model.sample, static_argnums=2)(state, jax.random.key(0), n),
        "complete": jax.jit(model.complete)(state, nothing, nothing[0], jax.random.key(1)),
        "decode": jax.jit(model.decode)(state, jax.random.normal(jax.random.key(2), (n, 1))),
    }
    for way, drawn in ways.items():
        found, counts = np.unique(np.asarray(drawn), return_counts=True)
        np.testing.assert_allclose(found, STEPS[:, 0], atol=1e-6, err_msg=way)
        np.testing.assert_allclose(counts / n, LEVELS, atol=0.03, err_msg=way)


def test_fourier_features_have_periods_of_levels():
    seen = []

    def look(x, t, label):
        seen.append(x)
        return x[..., :1]

    model, state = gaussian(net=Plain(look), levels=5, fourier=3, shape=(4, 4, 1))
    x_t = jax.random.uniform(jax.random.key(1), (2, 4, 4, 1), minval=-3.0, maxval=3.0)
    model.denoiser(state.ema, None)(x_t, jnp.array(0.5))
    level = 4 * (np.asarray(x_t, np.float64) + 1) / 2
    turns = [level, level / 2, level / 4]
    waves = [wave(2 * np.pi * turn) for turn in turns for wave in (np.sin, np.cos)]
    expected = np.concatenate([np.asarray(x_t), *waves], axis=-1)
    np.testing.assert_allclose(seen[-1], expected, atol=1e-5)


@pytest.mark.slow
def test_fourier_features_let_a_net_see_noise_below_a_level():
    """Of levels that are equally probable, which cost log K nats."""
    bounds = []
    batch = {"x": jnp.arange(64.0)[:, None] / 63}
    for fourier in (0, 6):
        model = GaussianDiffusion(
            ResidualMLP(64, 1),
            (1,),
            levels=64,
            schedule="log_linear",
            highest=10.5,  # noise of a sixth of a level
            lowest=-6.0,
            weighting="likelihood",
            fourier=fourier,
            draws=20,
            ema_decay=0.9,
            decay_steps=2_000,
        )

        @jax.jit
        def trained(state, keys, step=model.step):
            return jax.lax.scan(lambda s, key: step(s, batch, key), state, keys)[0]

        state = trained(model.init(jax.random.key(0)), jax.random.split(jax.random.key(1), 2_000))
        terms = model.bound(state, batch, jax.random.key(2), 0)
        bounds.append(float(jnp.stack(terms).sum(0).mean()))
    without, given = (bound - math.log(64) for bound in bounds)
    assert 0 < given < 0.7 * without


@pytest.mark.parametrize("levels", [0, 4])
def test_score_depends_on_the_example_alone(levels):
    model, state = of_levels() if levels else gaussian(PAIR)
    score = jax.jit(model.score)
    x = jnp.asarray(STEPS, jnp.float32)
    once = score(state, {"x": x})
    np.testing.assert_array_equal(once, score(state, {"x": x}))
    again = score(state, {"x": x[::-1]})[::-1]
    np.testing.assert_allclose(again, once, rtol=1e-5)


def test_score_tends_to_minus_log_p():
    model, state = of_levels(draws=5000)
    score = jax.jit(model.score)(state, {"x": jnp.asarray(STEPS)})
    np.testing.assert_allclose(score, -np.log(LEVELS), atol=0.15)


# Samplers.


def vp(schedule="cosine", ends=(-10.0, 13.3)):
    return gaussian(ends=ends, schedule=schedule)[0].path({})


PATHS: dict[str, Any] = {"cosine": vp(), "linear": vp("linear"), "straight": straight}
ALL_PATHS = pytest.mark.parametrize("path", ["cosine", slow("linear"), "straight"])
DETERMINISTIC = ["ddim", "heun", "dpm"]


def run(sampler, path, data, x, steps, seed=0, frames=None):
    def go(x):
        arguments = path, data.denoise(path), x, samplers.falling(steps), jax.random.key(seed)
        if frames:
            return samplers.trajectory(sampler, *arguments, frames)
        return samplers.sample(sampler, *arguments)

    return jax.jit(go)(x)


@ALL_PATHS
@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_deterministic_samples_have_the_datas_moments(sampler, path):
    """Of Gaussian data they are an affine map, which the images of 0 and of the axes tell."""
    steps = 1000 if sampler == "ddim" else 150
    x = jnp.array([[0.0, 0], [1, 0], [0, 1], [0.7, -1.9]])
    out = np.asarray(run(sampler, PATHS[path], NORMAL, x, steps), np.float64)
    mean, a = out[0], out[1:3] - out[0]
    np.testing.assert_allclose(out[3], mean + x[3] @ a, atol=1e-4)
    np.testing.assert_allclose(mean, NORMAL.means[0], atol=5e-3)
    np.testing.assert_allclose(a.T @ a, NORMAL.covariance, atol=1.5e-3)


def exact_ddim(path, data, steps, eta):
    """Mean and covariance of its samples of one Gaussian, by the posterior q(x_s | x_t, x) of Ho et
    al. (2020), eq. 6 and 7, where η = 1, else by eq. 12 of Song, Meng & Ermon (2021); float64."""
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
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
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
    # Far enough from the data's for this to tell samplers apart, and at them after many steps.
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
    assert distance < 0.03  # of a 20,000th, and of 200 steps


def test_samples_of_one_key_are_the_same_and_of_another_are_not():
    x = jnp.zeros((3, 2))
    one, same, other = (run("ancestral", PATHS["cosine"], NORMAL, x, 5, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert abs(one - other).max() > 1e-3
    assert abs(one[0] - one[1]).max() > 1e-3


@ALL_PATHS
@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_trajectory_ends_at_the_sample(sampler, path):
    x = jax.random.normal(jax.random.key(0), (4, 2))
    frames = run(sampler, PATHS[path], NORMAL, x, 10, frames=4)
    assert frames.shape == (5, 4, 2)
    np.testing.assert_array_equal(frames[0], x)
    whole = run(sampler, PATHS[path], NORMAL, x, 10)
    np.testing.assert_allclose(frames[-1], whole, rtol=1e-4, atol=1e-5)
    times = samplers.falling(10)
    go = jax.jit(partial(samplers.sample, sampler, PATHS[path], NORMAL.denoise(PATHS[path])))
    np.testing.assert_allclose(frames[1], go(x, times[:3], jax.random.key(0)), rtol=1e-4)


SMOOTH: dict[str, Any] = {"cosine": vp(ends=(-5.0, 4.0)), "linear": vp("linear", (-5.0, 4.0))}
ORDERS = [("ddim", 1), ("heun", 2), ("dpm", 2)]


def at_ends(path):
    """(α, σ) at t = 0 and at t = 1, in float64."""
    return [tuple(float(scale) for scale in path(jnp.array(t))) for t in (0.0, 1.0)]


@pytest.mark.parametrize("path", ["cosine", slow("linear"), "straight"])
@pytest.mark.parametrize(("sampler", "order"), ORDERS)
def test_orders_of_convergence(sampler, order, path):
    of = SMOOTH.get(path, straight)
    x = np.array([[1.0, -0.5], [-1.5, 0.3]])
    first, last = at_ends(of)
    exact, _ = NORMAL.flow(x, last, first)
    # Where λ begins and ends at infinity, only many steps show the order of a method in λ.
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


@pytest.mark.parametrize("path", ["cosine", slow("linear"), "straight"])
def test_likelihood_of_the_flow_is_exact_and_of_second_order(path):
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
def test_likelihood_of_the_flow_is_that_of_the_data(path):
    alpha = float(PATHS[path](jnp.array(0.0))[0])
    found = ode(PATHS[path], alpha * (2 * Y2 - 1), 300)
    exact = NORMAL.log_p(Y2) - 2 * math.log(2)
    np.testing.assert_allclose(found + 2 * math.log(alpha), exact, atol=0.02)
    found = ode(PATHS[path], alpha * (2 * Y1 - 1), 300, data=PAIR)
    np.testing.assert_allclose(found, PAIR.log_p(Y1) - math.log(2), atol=0.02)


def test_probes_of_the_trace_are_unbiased():
    n = 2000
    exact = np.asarray(ode(straight, 2 * Y2 - 1, 30))
    x = 2 * repeat(Y2, n) - 1
    one, four = (ode(straight, x, 30, probes) for probes in (1, 4))
    few = near(one, n, exact, slack=1e-4)
    many = near(four, n, exact, slack=1e-4)
    assert (few > 1e-3).all()
    np.testing.assert_allclose(many / few, 0.5, rtol=0.1)


@pytest.mark.parametrize("family", [gaussian, flow])
def test_codes_are_those_of_the_flow_and_decode_to_the_examples(family):
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
def test_samples_of_models_have_the_datas_moments(family, sampler):
    n = 8000
    narrow = normal([0.2, -0.3], NORMAL.covariance / 4)  # what lies outside of [0, 1] is cut off
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
def test_hidden_variables_follow_those_that_are_shown(family):
    """RePaint on Gaussian data: nearly the conditional's mean and variance."""
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
def test_density_by_the_flow_in_evaluate():
    for family, levels in ((gaussian, 0), (flow, 0)):
        model, state = family(levels=levels, ode_steps=200)
        estimates = model.evaluate(state, {"x": np.tile(Y2, (400, 1))}, jax.random.key(0))
        name = "nll_ode" if family is gaussian else "nll"
        found = estimates[name]
        assert found.kind == "Monte Carlo"
        exact = -NORMAL.log_p(Y2).mean()
        each = np.tile(-NORMAL.log_p(Y2), 400)
        assert abs(found.value - exact) < 4.5 * each.std() / math.sqrt(len(each)) + 0.01
        assert found.settings["discretization"] < 0.02


def test_flow_bounds_the_probabilities_of_levels():
    """Four cells of a density: E −log(density · width) ≥ −log of the cell's mass, and near it."""
    data = normal([0.1], [[0.3]])
    model, state = flow(data, levels=8, ode_steps=100)
    level, n = np.arange(8)[:, None] / 7, 1500
    found = jax.jit(partial(model._nll, steps=100))(
        state, {"x": repeat(level, n)}, jax.random.key(0)
    )
    edges = np.linspace(-1, 1, 9)
    fine = np.linspace(edges[:-1], edges[1:], 201)
    log_p = data.log_p((fine.reshape(-1, 1) + 1) / 2).reshape(fine.shape)
    near(found, n, -(log_p - math.log(8)).mean(0), slack=5e-3)
    mass = np.diff(scipy.stats.norm.cdf(edges, 0.1, math.sqrt(0.3)))
    mean, _ = groups(found, n)
    assert (mean > -np.log(mass) - 0.01).all()
    np.testing.assert_allclose(mean, -np.log(mass), atol=0.1)
    estimates = model.evaluate(state, {"x": level}, jax.random.key(1))
    assert estimates["nll"].kind == "upper bound"
    bits = estimates["nll"].value / math.log(2)
    np.testing.assert_allclose(estimates["bits_per_dim"].value, bits, rtol=1e-6)


# Labels, the running mean, the learned schedule.


def labelled(x, t, label):
    """(label + 1) · x of each example, and of none −x."""
    return jnp.where(label == 3, -1.0, label + 1.0)[:, None] * x


def test_guidance_goes_beyond_the_conditional_model():
    options: dict[str, Any] = {"classes": 3, "net": Plain(labelled), "prediction": "x"}
    model, state = gaussian(ends=(-5.0, 6.0), **options)
    x, label = jax.random.normal(jax.random.key(0), (3, 2)), jnp.arange(3)
    t = jnp.array(0.4)
    alpha, sigma = (float(scale) for scale in model.path(state.ema)(t))
    for w in (0.0, 0.7, 3.0):
        found = model.denoiser(state.ema, label, w)(x, t)
        expected = (1 + w) * (label[:, None] + 1) * x + w * x
        np.testing.assert_allclose(found.x, expected, rtol=1e-5)
        np.testing.assert_allclose(found.noise, (x - alpha * expected) / sigma, rtol=1e-4)
    np.testing.assert_allclose(model.denoiser(state.ema, jnp.full(3, 3))(x, t).x, -x, rtol=1e-6)


@SLOW
def test_samples_have_each_label_in_turn_and_bounds_that_of_the_example():
    """By a net that says that x is its label's point, or 0.9 without one."""
    places = jnp.array([-0.6, 0.1, 0.5, 0.9])
    net = Plain(lambda x, t, label: jnp.broadcast_to(places[label][:, None], x.shape))
    options: dict[str, Any] = {"classes": 3, "net": net, "prediction": "x", "sample_steps": 5}
    model, state = gaussian(ends=(-5.0, 9.0), sampler="ddim", **options)
    found = 2 * model.sample(state, jax.random.key(0), 7) - 1
    np.testing.assert_allclose(found[:, 0], places[jnp.arange(7) % 3], atol=0.05)
    guided = replace(model, guidance=0.25)
    found = 2 * guided.sample(state, jax.random.key(0), 3) - 1
    np.testing.assert_allclose(found[:, 1], 1.25 * places[:3] - 0.25 * 0.9, atol=0.05)
    hidden = model.complete(state, jnp.zeros((2, 2)), jnp.array([1, 0]), jax.random.key(0))
    np.testing.assert_allclose(2 * hidden[:, 1] - 1, 0.9, atol=0.1)
    right, wrong = (
        model.bound(
            state,
            {"x": (jnp.tile(places[:3, None], (1, 2)) + 1) / 2, "label": label},
            jax.random.key(0),
            0,
        )
        for label in (jnp.arange(3), jnp.array([1, 2, 0]))
    )
    np.testing.assert_allclose(right.diffusion, 0, atol=1e-4)
    assert (wrong.diffusion > 1).all()


def test_labels_are_left_out_of_their_share():
    net = Plain(lambda x, t, label: jnp.where(label == 3, 1.0, 0.0)[:, None] + 0 * x)
    model, state = gaussian(ends=(-5.0, 6.0), classes=3, net=net, prediction="x", unlabelled=0.3)
    n = 20_000
    batch = {"x": jnp.full((n, 2), 0.5), "label": jnp.arange(n) % 3}
    lost = model.objective(state, batch, jax.random.key(0))
    assert abs(lost.mean() - 0.3) < 4.5 * math.sqrt(0.21 / n)
    assert set(np.unique(lost)) == {0, 1}


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
def test_running_mean_is_its_closed_form(model):
    state = model.init(jax.random.key(0))
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
    """The state with a bent schedule and a net that says something."""
    keys = iter(jax.random.split(jax.random.key(seed), 50))
    net = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), state.params["net"]
    )
    params = {"net": net, "schedule": perturbed(state.params["schedule"])}
    return state._replace(params=params, ema=jax.tree.map(jnp.copy, params))


@pytest.mark.slow
@pytest.mark.parametrize("timesteps", [0, 3])
def test_gradients_of_a_learned_schedule(timesteps):
    """The net's and the ends' are the bound's; the curve's is that of the bound's second moment in
    continuous time, and of the bound in steps. Adam's first mean is a tenth of the gradient."""
    model = GaussianDiffusion(
        TINY, (2,), levels=0, schedule="learned", weighting="likelihood", timesteps=timesteps
    )
    state = with_curve(model.init(jax.random.key(0)))
    batch, key = {"x": jax.random.uniform(jax.random.key(1), (32, 2))}, jax.random.key(2)
    moved, metrics = jax.jit(model.step)(state, batch, key)
    gradient = jax.tree.map(lambda leaf: 10 * leaf, moved.opt_state[0].mu)

    def moment(params, power):
        return (model._objective(params, batch, key) ** power).mean()

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
    """And its mean stays, by the right denoiser between ends that are held."""
    model, state = gaussian(
        PAIR, ends=(-4.0, 5.0), schedule="learned", weighting="likelihood", learning_rate=0.03
    )
    ends = state.params["schedule"]["ends"]
    bent = {"net": {}, "schedule": perturbed(state.params["schedule"])}
    state = state._replace(params=bent, ema=jax.tree.map(jnp.copy, bent))
    rng = np.random.RandomState(0)
    which = rng.rand(500, 1) < 0.3
    x = np.where(which, -0.5 + 0.1 * rng.randn(500, 1), 0.4 + 0.2 * rng.randn(500, 1))
    batch = {"x": jnp.asarray((x + 1) / 2, jnp.float32)}

    @jax.jit
    def train(state):
        def move(i, state):
            state, _ = model.step(state, batch, jax.random.fold_in(jax.random.key(0), i))
            state.params["schedule"]["ends"] = ends
            return state

        return jax.lax.fori_loop(0, 150, move, state)

    after = train(state)
    many = {"x": jnp.tile(batch["x"], (40, 1))}
    values = [
        np.asarray(model._objective(params, many, jax.random.key(9)))
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


@dataclass(frozen=True)
class Small:
    """Two layers whose first output is no constant, with time as one more input or without."""

    timed: bool = True

    def module(self, out, classes):
        return SmallModule(out, self.timed)


class SmallModule(nn.Module):
    out: int
    timed: bool

    @nn.compact
    def __call__(self, x, t, label):
        h = x.reshape(len(x), -1) - 0.5
        h = jnp.concatenate([h, t[:, None]], axis=1) if self.timed else h
        wide = nn.initializers.normal(1.0)
        h = jnp.tanh(nn.Dense(12, kernel_init=wide, bias_init=wide)(h))
        h = nn.Dense(math.prod(x.shape[1:-1]) * self.out, kernel_init=nn.initializers.normal(0.6))(
            h
        )
        return h.reshape(*x.shape[:-1], self.out)


def small(noise, levels=2, net: Any = None, **options):
    """(model, state) of two variables."""
    chosen: Any = net or Small()
    model = DiscreteDiffusion(chosen, (2,), levels=levels, noise=noise, **options)
    return model, model.init(jax.random.key(3))


def law_of_noise(model):
    if model.noise == "uniform":
        return np.full(model.levels, 1 / model.levels)
    return np.eye(model.levels + 1)[-1]


def transition(model, s, t):
    """q(x_t | x_s), rows x_s, as a matrix."""
    alpha = ALPHAS[model.schedule]
    kept = alpha(t) / alpha(s)
    pi = law_of_noise(model)
    return kept * np.eye(len(pi)) + (1 - kept) * np.tile(pi, (len(pi), 1))


def bayes(model, p_0, s, t):
    """Of p_0 [..., S]: p(x_s | x_t) for each state x_t: [..., S (x_t), S (x_s)]; rows of states
    that cannot be reached are 0."""
    s_given_0 = p_0 @ transition(model, 0.0, s)
    joint = s_given_0[..., None, :] * transition(model, s, t).T
    total = joint.sum(-1, keepdims=True)
    return np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)


def both(size):
    """All states of two variables, [size², 2]."""
    return np.array(list(itertools.product(range(size), repeat=2)))


def predictions(model, params, times):
    """p̂ [T, S², 2, S] at each time from every pair of states."""
    states = jax.nn.one_hot(both(model.states), model.states)
    t = jnp.repeat(jnp.asarray(times, jnp.float32), len(states))
    p = jax.jit(model.predict)(params, jnp.tile(states, (len(times), 1, 1)), t)
    return np.asarray(p, np.float64).reshape(len(times), *states.shape)


def reverse_of(model, params, timesteps):
    """For each step from the last one, s and t and p(x_s | x_t) of each variable, [S², 2, S], rows
    pairs x_t."""
    x_t, ends = both(model.states), np.arange(timesteps, -1, -1) / timesteps
    for p_0, (t, s) in zip(
        predictions(model, params, ends[:-1]), itertools.pairwise(ends), strict=True
    ):
        given = bayes(model, p_0, s, t)  # [S², 2, S, S]
        rows = np.arange(len(x_t))
        yield s, t, np.stack([given[rows, i, x_t[:, i]] for i in range(2)], axis=1)


def chain_law(model, params, timesteps):
    """p(x_0) over all pairs of states, summed over all paths: [S, S]."""
    pi = law_of_noise(model)
    law = np.outer(pi, pi).ravel()
    for _, _, p in reverse_of(model, params, timesteps):
        law = law @ np.einsum("na,nb->nab", p[:, 0], p[:, 1]).reshape(len(law), -1)
    return law.reshape(model.states, model.states)


def chain_bound(model, params, timesteps):
    """Σ_t E KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t)) for all pairs of levels: [K²]."""
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


@CHAINS
def test_marginals_and_their_composition(noise, levels, schedule):
    model, _ = small(noise, levels, schedule=schedule)
    x = jnp.eye(model.states)[: model.levels][:, None]  # [K, 1, S]
    alpha = {t: model._alpha(jnp.full(1, t)) for t in (0.0, 0.3, 0.7, 1.0)}
    for t, found in alpha.items():
        np.testing.assert_allclose(found.ravel(), ALPHAS[schedule](t), atol=1e-7)
        expected = transition(model, 0.0, t)[: model.levels]
        np.testing.assert_allclose(model._marginal(x, found)[:, 0], expected, atol=1e-6)
    at_s = model._marginal(x, alpha[0.3])
    at_t = model._marginal(at_s, alpha[0.7] / alpha[0.3])
    np.testing.assert_allclose(at_t, model._marginal(x, alpha[0.7]), atol=1e-6)
    np.testing.assert_allclose(model.pi, law_of_noise(model))
    n = 20_000
    values = jnp.tile(jnp.array([[0.0, 1.0]]), (n, 1))
    for t in (0.0, 0.4, 1.0):
        found = model.corrupt(values, jnp.full(n, t), jax.random.key(0))
        expected = transition(model, 0.0, t)[[0, model.levels - 1]]
        np.testing.assert_allclose(found.mean(0), expected, atol=5 * 0.5 / math.sqrt(n))
        np.testing.assert_array_equal(found.sum(-1), 1)


@CHAINS
@pytest.mark.parametrize(("s", "t"), [(0.0, 0.25), (0.3, 0.6), (0.75, 1.0), (0.0, 1.0)])
def test_reverse_is_bayes_rule(noise, levels, schedule, s, t):
    model, _ = small(noise, levels, schedule=schedule)
    size = model.states
    at = jnp.full(size, s), jnp.full(size, t)
    x_t = jnp.tile(jnp.eye(size)[:, None], (1, 2, 1))
    laws = [np.eye(size)[k] for k in range(levels)]
    laws.append(
        np.append(np.random.RandomState(0).dirichlet(np.ones(levels)), np.zeros(size - levels))
    )
    for p_0 in laws:
        expected = bayes(model, p_0, s, t)
        found = model._reverse(x_t, jnp.broadcast_to(jnp.asarray(p_0), x_t.shape), *at)
        reached = p_0 @ transition(model, 0.0, t) > 0
        for pixel in range(2):
            np.testing.assert_allclose(
                found[reached, pixel], expected[reached], rtol=1e-4, atol=1e-6
            )


@NOISES
def test_predictions_are_probabilities_of_levels(noise):
    model, state = small(noise, 3)
    for t in (0.0, 0.5, 1.0):
        p = predictions(model, state.ema, [t])[0]
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)
        if noise == "absorbing":  # the mask never, and what is not masked itself
            states = both(4)
            masked = states == 3
            np.testing.assert_array_equal(p[masked][:, 3], 0)
            np.testing.assert_array_equal(p[~masked], np.eye(4)[states[~masked]])
            assert p[masked].std(0)[:3].min() > 0.01
        else:
            assert p.std(0).min() > 0.01


def stirred(state, seed=0):
    """The state with random numbers added to the parameters."""
    keys = iter(jax.random.split(jax.random.key(seed), 50))
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
    found = jax.jit(partial(model.bound, timesteps=4, draws=8))(
        state, {"x": repeat(level_values(model), n)}, jax.random.key(0)
    )
    stderr = near(found, n, bound, slack=1e-5)
    assert (stderr < 0.2 * (bound - exact) + 0.05).all()
    n = 20_000
    x = jax.jit(partial(model.sample, n=n))(state, jax.random.key(1))
    index = np.rint(np.asarray(x) * (levels - 1)).astype(int)
    np.testing.assert_allclose(x, index / (levels - 1), atol=1e-6)
    share = np.bincount(index @ [levels, 1], minlength=levels**2) / n
    assert 0.5 * abs(share - law[:levels, :levels].ravel()).sum() < 0.02


@NOISES
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_continuous_bound_is_finite_near_both_ends(noise, schedule):
    """α_1 is 0, but no α before: the bound's rate is −α' / α."""
    model, state = small(noise, 3, schedule=schedule)
    x_0 = model._one_hot(jnp.asarray(level_values(model)))
    for t in (0.0, 1e-7, 1e-4, 0.9998, 0.99995, 1 - 2.0**-20, 1 - 2.0**-23):
        at = jnp.full(len(x_0), t)
        for seed in range(3):
            value = model._term(state.ema, x_0, at, jax.random.key(seed), 0)
            assert np.isfinite(value).all(), t
            assert (value > -0.2).all(), t
        if t > 0.5:
            exact = {"linear": 1 - t, "cosine": 2 * math.sin(0.25 * math.pi * (1 - t)) ** 2}
            np.testing.assert_allclose(model._alpha(at).ravel()[0], exact[schedule], rtol=1e-3)


@SLOW
@NOISES
def test_objective_and_score_have_the_mean_of_the_bound(noise):
    model, state = small(noise, timesteps=3, draws=6)
    bound, n = chain_bound(model, state.ema, 3), 3000
    batch = {"x": repeat(level_values(model), n)}
    near(model.objective(state, batch, jax.random.key(0)), n, bound)
    score = jax.jit(replace(model, draws=6000).score)
    batch = {"x": jnp.asarray(level_values(model))}
    np.testing.assert_allclose(score(state, batch), bound, atol=0.15)
    np.testing.assert_array_equal(score(state, batch), score(state, batch))


@NOISES
def test_score_of_discrete_data_depends_on_the_example_alone(noise):
    model, state = small(noise, draws=5)
    x = jnp.asarray(level_values(model))
    once, again = model.score(state, {"x": x}), model.score(state, {"x": x[::-1]})[::-1]
    np.testing.assert_allclose(again, once, rtol=1e-5)


@SLOW
@CHAINS
def test_bound_of_many_steps_tends_to_the_continuous_one(noise, levels, schedule):
    model, state = small(noise, levels, schedule=schedule)
    first, second = (chain_bound(model, state.ema, timesteps) for timesteps in (100, 200))
    limit, n = 2 * second - first, 2000  # Richardson: the first order goes
    found = jax.jit(partial(model.bound, timesteps=0, draws=100))(
        state, {"x": repeat(level_values(model), n)}, jax.random.key(0)
    )
    stderr = near(found, n, limit, slack=2e-3)
    assert (stderr < 0.06).all()
    assert (abs(second - limit) < abs(first - limit)).all()
    assert abs(chain_bound(model, state.ema, 2) - limit).max() > 0.02


@pytest.mark.parametrize("levels", [slow(2), 3])
def test_absorbed_bound_is_the_mean_over_the_orders_of_autoregression(levels):
    """Of a net that ignores the time."""
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
            + log_p[a, mask, 1, b]  # the first, then the second
            + log_p[mask, mask, 1, b]
            + log_p[mask, b, 0, a]
        )
        for a, b in both(levels)
    ]
    n = 2000
    for schedule in ("linear", "cosine"):
        of = replace(model, schedule=schedule)
        found = jax.jit(partial(of.bound, timesteps=0, draws=50))(
            state, {"x": repeat(level_values(model), n)}, jax.random.key(0)
        )
        stderr = near(found, n, np.array(exact))
        assert (stderr < 0.05).all()


@dataclass(frozen=True, eq=False)
class Knowing:
    """A net that knows the law of two variables [K, K] that noise took from time 0 to t: of each,
    what the other says of it, or with `own` what it says itself, too."""

    law: Any
    noise: str
    own: bool = False

    def module(self, out, classes):
        return KnowingModule(self)


class KnowingModule(nn.Module):
    of: Knowing

    @nn.compact
    def __call__(self, x, t, label):
        law = jnp.asarray(self.of.law, jnp.float32)
        levels = len(law)
        kept = (1 - t)[:, None, None]
        if self.of.noise == "uniform":  # q(x_t | x_0) of each variable and level, [B, 2, K]
            q = kept * x + (1 - kept) / levels
        else:
            q = kept * x[..., :levels] + (1 - kept) * x[..., levels:]
        p = jnp.stack([q[:, 1] @ law.T, q[:, 0] @ law], axis=1)
        return jnp.log(p * q if self.of.own else p)


LAWS = {
    2: np.array([[0.4, 0.1], [0.05, 0.45]]),
    3: np.array([[0.3, 0.05, 0.05], [0.05, 0.02, 0.13], [0.1, 0.2, 0.1]]),
}


@NOISES
@pytest.mark.parametrize("levels", [slow(2), 3])
def test_right_net_has_the_datas_probabilities(noise, levels):
    law = LAWS[levels]
    model, state = small(noise, levels, Knowing(law, noise))
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
    found = jax.jit(partial(model.bound, timesteps=0, draws=50))(
        state, {"x": repeat(level_values(model), n)}, jax.random.key(0)
    )
    mean, stderr = groups(found, n)
    assert abs(p @ (mean - exact)) < 4.5 * math.hypot(*(p * stderr)) + 1e-4
    if noise == "uniform":  # eq. 4 asks what the other variables say of one, not what all do
        posterior, state = small(noise, levels, Knowing(law, noise, own=True))
        assert p @ (chain_bound(posterior, state.ema, 50) - exact) > gaps[2][0] + 0.02


@SLOW
@pytest.mark.parametrize("levels", [slow(2), 3])
def test_absorbed_completions_are_drawn_from_the_nets_conditional(levels):
    model, state = small("absorbing", levels, Small(timed=False), sample_steps=20)
    state, n = stirred(state), 6000
    p = predictions(model, state.ema, [0.5]).reshape(levels + 1, levels + 1, 2, levels + 1)
    shown = np.arange(levels)
    x = repeat(np.stack([shown / (levels - 1), np.full(levels, 0.321)], axis=1), n)
    out = jax.jit(model.complete)(state, x, jnp.array([1, 0]), jax.random.key(0))
    np.testing.assert_array_equal(out[:, 0], x[:, 0])
    index = np.rint(np.asarray(out[:, 1]) * (levels - 1)).astype(int).reshape(levels, n)
    for value in shown:
        share = np.bincount(index[value], minlength=levels) / n
        np.testing.assert_allclose(share, p[value, levels, 1, :levels], atol=0.03)
    # With nothing shown it is a sample, and with all shown nothing happens.
    drawn = model.complete(state, x, jnp.zeros(2), jax.random.key(1))
    law = chain_law(model, state.ema, 20)[:levels, :levels].ravel()
    share = np.rint(np.asarray(drawn) * (levels - 1)).astype(int) @ [levels, 1]
    share = np.bincount(share, minlength=levels**2) / len(x)
    np.testing.assert_allclose(share, law, atol=0.03)
    np.testing.assert_array_equal(model.complete(state, x, jnp.ones(2), jax.random.key(1)), x)


def test_uniform_completions_lean_to_what_is_shown():
    law = LAWS[2]
    model, state = small("uniform", 2, Knowing(law, "uniform"), sample_steps=50)
    n = 3000
    x = repeat([[0.0, 0.0], [1.0, 0.0]], n)
    out = jax.jit(model.complete)(state, x, jnp.array([1, 0]), jax.random.key(0))
    np.testing.assert_array_equal(out[:, 0], x[:, 0])
    share = np.asarray(out[:, 1]).reshape(2, n).mean(1)
    exact, alone = law[:, 1] / law.sum(1), law[:, 1].sum()
    assert (abs(share - exact) < 0.6 * abs(alone - exact)).all(), (share, exact, alone)


def test_noisy_samples_show_masks_as_half():
    model, state = small("absorbing", sample_steps=6)
    frames = model.denoising(state, jax.random.key(0), 50, 3)
    assert frames.shape == (4, 50, 2)
    np.testing.assert_array_equal(frames[0], 0.5)
    assert set(np.unique(frames[-1])) == {0, 1}
    masked = (np.asarray(frames) == 0.5).mean((1, 2))
    assert (np.diff(masked) < 0).all()
    np.testing.assert_array_equal(frames[-1], model.sample(state, jax.random.key(0), 50))
    # What was seen stays.
    for before, after in itertools.pairwise(np.asarray(frames)):
        np.testing.assert_array_equal(after[before != 0.5], before[before != 0.5])


def test_draws_have_their_probabilities():
    p = jnp.array([[0.5, 0.0, 0.3, 0.2], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    n = 20_000
    found = discrete.draw(jax.random.key(0), jnp.broadcast_to(p, (n, 3, 4)))
    np.testing.assert_array_equal(found.sum(-1), 1)
    np.testing.assert_allclose(found.mean(0), p, atol=0.02)
    np.testing.assert_array_equal(found.mean(0)[p == 0], 0)


def test_draws_never_have_probability_zero(monkeypatch):
    """Not where the rounded sum of the others stays below the largest uniform number, either."""
    monkeypatch.setattr(
        jax.random, "uniform", lambda key, shape: jnp.full(shape, 1 - 2.0**-23, jnp.float32)
    )
    for levels in (2, 18, 19, 24, 42, 102):
        p = scipy.special.softmax(np.sin(np.arange(levels) * 1.7).astype(np.float32))
        p = jnp.asarray(np.append(p, 0.0), jnp.float32)
        assert discrete.draw(jax.random.key(0), p[None])[0, -1] == 0, levels


@pytest.mark.slow
def test_discrete_evaluate_gives_bounds_of_few_steps_too():
    model, state = small("absorbing", 3, draws=12, few=(2, 4))
    values = np.tile(level_values(model), (200, 1))
    found = model.evaluate(state, {"x": values}, jax.random.key(0))
    assert set(found) == {"nll", "nll_2", "nll_4", "bits_per_dim"}
    for timesteps in (2, 4):
        estimate = found[f"nll_{timesteps}"]
        exact = chain_bound(model, state.ema, timesteps).mean()
        assert estimate.kind == "upper bound"
        assert abs(estimate.value - exact) < 4.5 * estimate.stderr
    bits = found["nll"].value / (2 * math.log(2))
    np.testing.assert_allclose(found["bits_per_dim"].value, bits, rtol=1e-6)
    with pytest.raises(UserError, match="levels"):
        model.evaluate(state, {"x": values + 0.1}, jax.random.key(0))


def test_images_of_several_channels_keep_each_variables_states_together():
    """A net that says of each variable what it is."""
    shape = (2, 3, 2)
    net: Any = Plain(lambda x, t, label: 30 * x)
    model = DiscreteDiffusion(net, shape, levels=3, noise="uniform")
    state = model.init(jax.random.key(0))
    index = jax.random.randint(jax.random.key(1), (4, *shape), 0, 3)
    states = jax.nn.one_hot(index, 3)
    p = model.predict(state.ema, states, jnp.full(4, 0.5))
    np.testing.assert_allclose(p, states, atol=1e-6)
    x_t = model.corrupt(index / 2, jnp.zeros(4), jax.random.key(2))
    np.testing.assert_array_equal(x_t, states)


# Nets.


@pytest.mark.parametrize("size", [(7, 5), (8, 8), (1, 3)])
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_are_put_back(size, patch):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    depth = nets.to_depth(x, patch)
    rows, columns = (-(-n // patch) for n in size)
    assert depth.shape == (2, rows, columns, patch**2 * 3)
    np.testing.assert_array_equal(nets.from_depth(depth, patch, size), x)
    for i, j in itertools.product(range(rows), range(columns)):
        block = x[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
        np.testing.assert_allclose(
            depth[:, i, j].sum(-1), block.sum((1, 2, 3)), rtol=1e-4, atol=1e-5
        )


def test_time_is_embedded_in_sines():
    t = np.array([0.0, 0.013, 0.7, 1.0])
    frequencies = 10_000.0 ** -(np.arange(4) / 3)
    angle = 1000 * t[:, None] * frequencies
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(nets.embed_time(jnp.asarray(t), 8), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        pytest.param(UNet((8, 16), blocks=1, patch=2), (7, 5, 3), marks=SLOW),
        pytest.param(UNet((8, 8, 16), blocks=1), (5, 3, 1), marks=SLOW),
        pytest.param(UNet((8,), blocks=1), (4, 4, 1), marks=SLOW),
        pytest.param(UNet((8,), blocks=1, patch=2, pixels=4), (5, 4, 2), marks=SLOW),
        (ResidualMLP(8, 1), (5, 3)),
        (ResidualMLP(8, 2), (4, 3, 2)),
    ],
)
@pytest.mark.parametrize("classes", [slow(0), 3])
def test_nets_begin_at_zero_and_depend_on_all_they_are_given(net, shape, classes):
    module = net.module(4, classes)
    x = jax.random.normal(jax.random.key(0), (2, *shape))
    t, label = jnp.array([0.2, 0.9]), jnp.array([0, 3]) if classes else None
    params: Any = jax.jit(module.init)(jax.random.key(1), x, t, label)
    apply: Any = jax.jit(module.apply)
    first = apply(params, x, t, label)
    assert first.shape == (2, *shape[:-1], 4)
    np.testing.assert_array_equal(first, 0)
    keys = iter(jax.random.split(jax.random.key(2), 1000))
    params = jax.tree.map(
        lambda leaf: leaf + 0.2 * jax.random.normal(next(keys), leaf.shape), params
    )
    out = apply(params, x, t, label)
    assert np.isfinite(out).all()
    assert np.ptp(out) > 1e-2
    assert abs(apply(params, x, t[::-1], label) - out).max() > 1e-3
    # The last place sees the first one: by attention, or by dense layers.
    moved = apply(params, x.at[:, 0, 0].add(5.0), t, label)
    assert abs(moved - out)[:, -1, -1].max() > 1e-5
    # Examples do not see each other.
    alone = apply(params, x[:1], t[:1], label if label is None else label[:1])
    np.testing.assert_allclose(alone, out[:1], rtol=1e-3, atol=1e-4)
    if classes:
        assert abs(apply(params, x, t, jnp.array([1, 2])) - out).max() > 1e-3


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
        *((GaussianDiffusion, n, 0) for n in ("sample_steps", "resamplings", "draws", "ode_steps")),
        *(
            (GaussianDiffusion, n, -1)
            for n in ("levels", "timesteps", "fourier", "classes", "ode_examples")
        ),
        *((GaussianDiffusion, n, v) for n in ("ema_decay", "unlabelled") for v in (-0.1, 1.0)),
        (GaussianDiffusion, "lowest", 14.0),
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
        (DiscreteDiffusion, "draws", 0),
        (DiscreteDiffusion, "few", (100, 0)),
        *((DiscreteDiffusion, "ema_decay", v) for v in (-0.1, 1.0)),
        (UNet, "channels", ()),
        (UNet, "channels", (8, 0)),
        (UNet, "blocks", 0),
        (UNet, "patch", 0),
        (UNet, "pixels", -1),
        (ResidualMLP, "width", 0),
        (ResidualMLP, "layers", 0),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, name, value):
    model(**GOOD[model])
    with pytest.raises(UserError, match=name) as found:
        model(**GOOD[model], **{name: value})
    assert model.__name__ in str(found.value)


def test_fourier_features_need_levels():
    with pytest.raises(UserError, match="fourier"):
        GaussianDiffusion(TINY, levels=0, fourier=2)


def test_counts_below_two_are_refused():
    """One level says nothing, and half of one step is none."""
    for model in (GaussianDiffusion, FlowMatching):
        for name in ("levels", "ode_steps"):
            setting: Any = {name: 1}
            with pytest.raises(UserError, match=name):
                model(TINY, **setting)


def test_labels_that_are_never_left_out_are_refused():
    with pytest.raises(UserError, match="unlabelled"):
        GaussianDiffusion(TINY, classes=3, unlabelled=0.0)
    for ends in ((-31.0, 10.0), (-10.0, 31.0)):
        with pytest.raises(UserError, match="lowest"):
            GaussianDiffusion(TINY, lowest=ends[0], highest=ends[1])


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
