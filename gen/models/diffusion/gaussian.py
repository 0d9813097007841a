"""Diffusion by Gaussian noise, in discrete and in continuous time.

Ho, Jain & Abbeel (2020), "Denoising diffusion probabilistic models"; Kingma, Salimans, Poole & Ho
(2021), "Variational diffusion models".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen import estimate
from gen.core import (
    Batch,
    Data,
    Density,
    Metrics,
    Shape,
    adam,
    check_levels,
    replica_key,
    require,
)
from gen.estimate import Estimate
from gen.models.diffusion import samplers, schedules
from gen.models.diffusion.common import (
    State,
    average,
    begin,
    beside,
    flow_nll,
    one_by_one,
    scaled,
    spread_times,
    step_around,
    train,
    unscaled,
)
from gen.models.diffusion.nets import ResidualMLP, UNet
from gen.models.diffusion.samplers import Denoise, Path, Prediction, Sampler
from gen.nets import apply, flatten

Predicted = Literal["noise", "x", "v"]
"""What a net gives: ε, x or v = α_t ε − σ_t x (Salimans & Ho 2022)."""


class Terms(NamedTuple):
    """The bound's terms for each example, in nats: −log p(x) ≤ prior + diffusion + reconstruction
    (Kingma et al. 2021, eq. 11)."""

    prior: jax.Array  # [B], KL(q(x_1|x) ‖ N(0, I))
    diffusion: jax.Array  # [B], an unbiased estimate of Σ_t E KL(q(x_s|x_t, x) ‖ p(x_s|x_t))
    reconstruction: jax.Array  # [B], −log p(x|x_0) at one x_0 ~ q(x_0|x)


class Noised(NamedTuple):
    """A noisy copy of each example."""

    diffusion: jax.Array  # [B], what of the bound's diffusion term falls to its time, nats
    true: Prediction  # x and ε, [B, *shape]
    found: Prediction  # what is predicted of them
    alpha: jax.Array  # [B, 1, …]
    sigma: jax.Array  # [B, 1, …]


@dataclass(frozen=True)
class GaussianDiffusion:
    """x_t = α_t x + σ_t ε, ε ~ N(0, I), from data at t = 0 to noise at t = 1, with α² + σ² = 1 and
    log α²/σ² = λ_t; a net that is given x_t and λ_t learns what x_t is made of.

    In T = `timesteps` steps the model is x_1 ~ N(0, I), p(x_s | x_t) = q(x_s | x_t, x = x̂), and at
    t = 0 each variable's p(x | x_0) ∝ N(x_0; α_0 x, σ_0²) over its levels, or with `levels` 0 the
    density N(x; x_0 / α_0, σ_0²/α_0²), in nats as one of values in [0, 1]. The bound's diffusion
    term is the sum over the steps (eq. 14), or its limit for T → ∞ (`timesteps` 0; eq. 17), of

        ½ E (e^{λ_s − λ_t} − 1) ‖ε − ε̂‖²,    ∫ ½ (−λ'_t) E ‖ε − ε̂‖² dt.

    Adam lowers, at one t ~ U(0, 1) for each example, by `weighting`:

    - `simple`: the mean square error of what the net predicts (Ho et al. 2020, eq. 14);
    - `likelihood`: the bound;
    - `min_snr`: the mean of min(SNR, 5) (x − x̂)² (Hang et al. 2023, section 3.4).

    A learned schedule's ends lower the bound; in continuous time the curve between them does not
    move the bound, and lowers its variance (sections 5.1, 5.3).

    With `classes`, the net is given the label, left out for a share of the examples; samples follow
    x̂ = (1 + w) x̂(label) − w x̂() for `guidance` w (Ho & Salimans 2022, eq. 6).

    Images are taken to [−1, 1]. Deviations: the net is given λ between its ends, as time; the ends
    of fixed schedules are those of λ; Adam. Samples are the levels nearest to x_0, not draws of
    p(x | x_0), and take `sample_steps` steps, whatever T is.
    """

    family: ClassVar[str] = "diffusion"
    density: ClassVar[Density] = "approximate"

    net: UNet | ResidualMLP
    """the net"""
    shape: Shape = (28, 28, 1)
    """shape of one example"""
    levels: int = 256
    """values that a variable can take (0: any, and likelihoods are of a density)"""
    schedule: Literal["linear", "cosine", "log_linear", "learned"] = "cosine"
    """how the log signal-to-noise ratio falls with time"""
    lowest: float = -10.0
    """log signal-to-noise ratio at t = 1 (a learned schedule's at first)"""
    highest: float = 13.3
    """log signal-to-noise ratio at t = 0 (a learned schedule's at first)"""
    prediction: Predicted = "v"
    """what the net predicts: noise, x or v"""
    weighting: Literal["simple", "likelihood", "min_snr"] = "simple"
    """how errors at different times count in training"""
    timesteps: int = 0
    """steps of the chain (0: continuous time)"""
    fourier: int = 0
    """Fourier features of x_t that the net is given, of periods of 1, 2, 4, … levels"""
    classes: int = 0
    """labels that the net is given (0: none)"""
    unlabelled: float = 0.1
    """share of the examples whose label a step leaves out"""
    guidance: float = 0.0
    """w of samples with labels (0: the conditional model)"""
    sampler: Sampler = "ancestral"
    """how samples are made"""
    sample_steps: int = 250
    """steps of a sample"""
    resamplings: int = 5
    """times that a completion goes each step"""
    draws: int = 20
    """times at which `evaluate` takes the bound of an example"""
    ode_steps: int = 50
    """Heun steps of codes and of the likelihood by the probability flow"""
    ode_examples: int = 1_000
    """examples of which `evaluate` takes that likelihood, the first ones (0: none)"""
    ema_decay: float = 0.999
    """weight of the past in the running mean of the parameters, by which all is computed"""
    learning_rate: float = 1e-3
    """step size of Adam"""
    decay_steps: int = 0
    """let the step size fall to 0 over so many steps, along a cosine (0: constant)"""

    def __post_init__(self):
        counts = ("sample_steps", "resamplings", "draws")
        for name in counts:
            value = getattr(self, name)
            require(value > 0, f"GaussianDiffusion: {name} is {value}, must be positive")
        require(
            self.levels > 1 or self.levels == 0,
            f"GaussianDiffusion: levels is {self.levels}, must be 0 or 2 and more",
        )
        require(
            self.ode_steps > 1, f"GaussianDiffusion: ode_steps is {self.ode_steps}, must be > 1"
        )
        for name in ("timesteps", "fourier", "classes", "ode_examples"):
            value = getattr(self, name)
            require(value >= 0, f"GaussianDiffusion: {name} is {value}, must not be negative")
        for name in ("ema_decay", "unlabelled"):
            value = getattr(self, name)
            require(0 <= value < 1, f"GaussianDiffusion: {name} is {value}, must be in [0, 1)")
        require(
            -30 <= self.lowest < self.highest <= 30,
            f"GaussianDiffusion: lowest {self.lowest}, highest {self.highest}: must rise, within "
            "-30 and 30",
        )
        require(
            self.weighting == "likelihood" or self.schedule != "learned",
            f"GaussianDiffusion: a learned schedule needs the weighting likelihood, not "
            f"{self.weighting}",
        )
        require(
            self.fourier == 0 or self.levels > 0,
            f"GaussianDiffusion: fourier is {self.fourier}, whose periods need levels",
        )
        require(
            self.classes == 0 or self.unlabelled > 0,
            "GaussianDiffusion: unlabelled is 0, so that nothing is learned without labels",
        )
        require(
            self.guidance == 0 or self.classes > 0,
            f"GaussianDiffusion: guidance is {self.guidance}, which needs classes",
        )

    def init(self, key: jax.Array) -> State:
        x, t = self._features(jnp.zeros((1, *self.shape))), jnp.zeros(1)
        label = jnp.zeros(1, jnp.int32) if self.classes else None
        params = {"net": self._net.init(key, x, t, label)}
        if self.schedule == "learned":
            params["schedule"] = schedules.init_learned(self.lowest, self.highest)
        return begin(params, self._optimizer)

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """One Adam step on what `weighting` says, logged as `loss`; one of the running mean."""
        key = replica_key(key, axis_name)

        def loss(params):
            value = self._objective(params, batch, key)
            metrics = {"loss": value.mean()}
            if self.schedule == "learned" and not self.timesteps:
                held = jax.lax.stop_gradient(params)
                ends = {**params["schedule"], "curve": held["schedule"]["curve"]}
                curve = {**held["schedule"], "curve": params["schedule"]["curve"]}
                value = self._objective({**params, "schedule": ends}, batch, key)
                # The squares' mean is the variance, but for what the curve does not move.
                value += self._objective({**held, "schedule": curve}, batch, key) ** 2
            return value.mean(), metrics

        return train(loss, self._optimizer, self.ema_decay, state, axis_name)

    def parameters(self, state: State) -> Any:
        """Of the net and of a learned schedule."""
        return state.params

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """What a step lowers, of the running mean, [B]."""
        return self._objective(state.ema, batch, key)

    def bound(self, state: State, batch: Batch, key: jax.Array, timesteps: int) -> Terms:
        """The terms of the bound on −log p(x), or on −log p(x | label), in so many steps (0:
        continuous time), each [B] nats, from `draws` noisy copies of each example, at times spread
        evenly: as many as steps visit each step once."""
        x, label = scaled(batch["x"]), self._label(batch)
        draws_key, key = jax.random.split(key)

        def at(t, key):
            return self._noised(state.ema, x, t, label, key, timesteps).diffusion

        diffusion = average(at, draws_key, len(x), self.draws)
        return Terms(self._prior(state.ema, x), diffusion, self._reconstruction(state.ema, x, key))

    def score(self, state: State, batch: Batch) -> jax.Array:
        """The bound, [B] nats. Its noise comes from one fixed key, so that the same example always
        has the same score."""

        def total(one):
            terms = self.bound(state, one, jax.random.key(0), self.timesteps)
            return terms.prior + terms.diffusion + terms.reconstruction

        return one_by_one(total, batch)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """The bound on −log p(x) as `nll`, and its terms `prior`, `diffusion`, `reconstruction`; by
        the probability flow `nll_ode`, of the first `ode_examples`; both in bits per variable, too,
        where x has more than two levels.

        The flow gives a density of x_0. On levels it bounds −log p(x) as a model of x_0 that is
        drawn from q(x_0 | x), the bound's own noise at t = 0 (dequantization by that Gaussian;
        Kingma et al. 2021, eq. 8), with one draw and one probe of the trace for each example.
        See `flow_nll`.

        Raises `UserError` if there are levels and values of x lie between them.
        """
        if self.levels:
            check_levels(data, self.levels)
        bound_key, ode_key = jax.random.split(key)
        terms = estimate.per_example(
            lambda batch, row_key: self.bound(state, batch, row_key, self.timesteps),
            data,
            bound_key,
            block=100,
        )
        total = terms.prior + terms.diffusion + terms.reconstruction
        settings: dict[str, Any] = {} if self.levels else {"density": True}
        settings |= {"conditional": True} if self.classes else {}
        of_chain = {"timesteps": self.timesteps or "infinite", "draws": self.draws}
        found = {"nll": estimate.mean(total, "upper bound", **of_chain, **settings)}
        found |= {
            name: estimate.mean(value, "Monte Carlo") for name, value in terms._asdict().items()
        }
        if self.ode_examples:
            found["nll_ode"] = flow_nll(
                partial(self._ode_nll, state),
                data,
                ode_key,
                self.ode_steps,
                self.ode_examples,
                "upper bound" if self.levels else "Monte Carlo",
                **({"dequantized": "gaussian"} if self.levels else {}),
                **settings,
            )
        if self.levels > 2:
            found |= {
                name.replace("nll", "bits_per_dim"): estimate.in_bits(value, math.prod(self.shape))
                for name, value in found.items()
                if name.startswith("nll")
            }
        return found

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """n samples [n, *shape] in `sample_steps` steps of `sampler`; with `classes` of each label
        in turn."""
        return self._values(self.denoising(state, key, n, 1)[-1])

    def denoising(self, state: State, key: jax.Array, n: int, frames: int) -> jax.Array:
        """Samples on their way from noise, [frames + 1, n, *shape], before they are levels."""
        start_key, key = jax.random.split(key)
        label = jnp.arange(n) % self.classes if self.classes else None
        denoise = self.denoiser(state.ema, label, self.guidance)
        times = samplers.falling(self.sample_steps)
        path, start = self.path(state.ema), jax.random.normal(start_key, (n, *self.shape))
        return unscaled(samplers.trajectory(self.sampler, path, denoise, start, times, key, frames))

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """x [B, *shape], with what `mask` (1: shown) hides drawn by `samplers.inpaint`, without
        labels: p(hidden | shown) approximately."""
        shown = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        drawn = samplers.inpaint(
            self.path(state.ema),
            self.denoiser(state.ema, self._unlabelled(len(x))),
            scaled(x),
            shown,
            samplers.falling(self.sample_steps),
            key,
            self.resamplings,
        )
        return jnp.where(shown, x, self._values(unscaled(drawn)))

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """x_1 of the probability flow from x, without labels, [B, D]: a normal draw where x is one
        of the model."""
        x, times = scaled(batch["x"]), samplers.falling(self.ode_steps)[::-1]
        denoise = self.denoiser(state.ema, self._unlabelled(len(x)))
        return flatten(samplers.heun(self.path(state.ema), denoise, x, times))

    def decode(self, state: State, z: jax.Array) -> jax.Array:
        """x of the probability flow from x_1 = z, without labels, [B, *shape]."""
        denoise = self.denoiser(state.ema, self._unlabelled(len(z)))
        times, x_1 = samplers.falling(self.ode_steps), z.reshape(-1, *self.shape)
        x = samplers.heun(self.path(state.ema), denoise, x_1, times)
        return self._values(unscaled(x))

    def path(self, params: Any) -> Path:
        """t ↦ (α_t, σ_t)."""
        log_snr = self._log_snr(params)

        def of_time(t):
            return jnp.sqrt(jax.nn.sigmoid(log_snr(t))), jnp.sqrt(jax.nn.sigmoid(-log_snr(t)))

        return of_time

    def denoiser(self, params: Any, label: jax.Array | None, guidance: float = 0.0) -> Denoise:
        """(x_t, t) ↦ E[x | x_t], E[ε | x_t] by the net, of labels [B] (`classes`: none)."""

        def denoise(x, t):
            t = jnp.broadcast_to(t, len(x))
            found = self._predict(params, x, t, label)
            if not guidance:
                return found
            free = self._predict(params, x, t, self._unlabelled(len(x)))
            return jax.tree.map(lambda c, f: (1 + guidance) * c - guidance * f, found, free)

        return denoise

    @property
    def _net(self) -> Any:
        return self.net.module(self.shape[-1], self.classes)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, self.decay_steps)

    def _log_snr(self, params: Any) -> schedules.LogSNR:
        if self.schedule == "learned":
            return schedules.learned(params["schedule"])
        return schedules.FIXED[self.schedule](self.lowest, self.highest)

    def _values(self, x: jax.Array) -> jax.Array:
        """The level nearest to x, as a value in [0, 1]; without levels x cut off there."""
        x = jnp.clip(x, 0.0, 1.0)
        return jnp.round(x * (self.levels - 1)) / (self.levels - 1) if self.levels else x

    def _label(self, batch: Batch) -> jax.Array | None:
        if not self.classes:
            return None
        require("label" in batch, "GaussianDiffusion: a model with classes needs a batch of labels")
        return batch["label"]

    def _unlabelled(self, n: int) -> jax.Array | None:
        return jnp.full(n, self.classes) if self.classes else None

    def _scales(self, params: Any, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """α_t and σ_t at t [B], with the axes of an example."""
        alpha, sigma = self.path(params)(t)
        return beside(alpha, self.shape), beside(sigma, self.shape)

    def _features(self, x_t: jax.Array) -> jax.Array:
        """What the net is given of x_t: beside it sin and cos of 2πk / 2ⁿ, n < `fourier`, of the
        level k = (K − 1) (x_t + 1) / 2, which tell apart values within a level (Kingma et al. 2021,
        appendix C, with n = 0, 1)."""
        level = (self.levels - 1) * unscaled(x_t)
        angles = [2 * math.pi * level / 2**n for n in range(self.fourier)]
        waves = [wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)]
        return jnp.concatenate([x_t, *waves], axis=-1)

    def _predict(
        self, params: Any, x_t: jax.Array, t: jax.Array, label: jax.Array | None
    ) -> Prediction:
        """E[x | x_t] and E[ε | x_t] at t [B]."""
        log_snr = self._log_snr(params)
        first, last = log_snr(jnp.zeros(())), log_snr(jnp.ones(()))
        time = (first - log_snr(t)) / (first - last)
        out = apply(self._net, params["net"], self._features(x_t), time, label)
        return parts(self.prediction, out, x_t, *self._scales(params, t))

    def _noised(
        self,
        params: Any,
        x: jax.Array,
        t: jax.Array,
        label: jax.Array | None,
        key: jax.Array,
        timesteps: int,
    ) -> Noised:
        """x at times t ~ U(0, 1), in steps at the ends of those that they fall in, and what the net
        makes of it."""
        log_snr = self._log_snr(params)
        if timesteps:
            s, t = step_around(t, timesteps)
            rate = timesteps * jnp.expm1(log_snr(s) - log_snr(t))
        else:
            _, slope = jax.jvp(log_snr, (t,), (jnp.ones_like(t),))
            rate = -slope
        alpha, sigma = self._scales(params, t)
        noise = jax.random.normal(key, x.shape)
        found = self._predict(params, alpha * x + sigma * noise, t, label)
        diffusion = 0.5 * rate * flatten((noise - found.noise) ** 2).sum(1)
        return Noised(diffusion, Prediction(x, noise), found, alpha, sigma)

    def _objective(self, params: Any, batch: Batch, key: jax.Array) -> jax.Array:
        """What `weighting` says, [B]."""
        x, label = scaled(batch["x"]), self._label(batch)
        times_key, label_key, noise_key, key = jax.random.split(key, 4)
        if label is not None:
            left_out = jax.random.bernoulli(label_key, self.unlabelled, label.shape)
            label = jnp.where(left_out, self.classes, label)
        t = spread_times(times_key, len(x))
        noised = self._noised(params, x, t, label, noise_key, self.timesteps)
        if self.weighting == "likelihood":
            ends = self._prior(params, x) + self._reconstruction(params, x, key)
            return noised.diffusion + ends
        _, true, found, alpha, sigma = noised
        if self.weighting == "min_snr":
            weight = jnp.minimum((alpha / sigma) ** 2, MOST)
            return flatten(weight * (true.x - found.x) ** 2).mean(1)
        aims = [aim(self.prediction, both, alpha, sigma) for both in (true, found)]
        return flatten((aims[0] - aims[1]) ** 2).mean(1)

    def _prior(self, params: Any, x: jax.Array) -> jax.Array:
        """KL(N(α_1 x, σ_1²) ‖ N(0, 1)) = ½ Σ α_1² x² + σ_1² − 1 − log σ_1², [B] nats."""
        alpha, sigma = self.path(params)(jnp.ones(()))
        each = (alpha * x) ** 2 + sigma**2 - 1 - 2 * jnp.log(sigma)
        return 0.5 * flatten(each).sum(1)

    def _reconstruction(self, params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        """−log p(x | x_0) at a draw of q(x_0 | x), [B] nats."""
        alpha, sigma = self.path(params)(jnp.zeros(()))
        x_0 = alpha * x + sigma * jax.random.normal(key, x.shape)
        return -self._log_decoder(params, x, x_0)

    def _log_decoder(self, params: Any, x: jax.Array, x_0: jax.Array) -> jax.Array:
        """log p(x | x_0), [B] nats."""
        alpha, sigma = self.path(params)(jnp.zeros(()))
        if not self.levels:
            each = jax.scipy.stats.norm.logpdf(x, x_0 / alpha, sigma / alpha) + math.log(2)
            return flatten(each).sum(1)
        values = jnp.linspace(-1.0, 1.0, self.levels)
        logits = -0.5 * ((flatten(x_0)[..., None] - alpha * values[None, None]) / sigma) ** 2
        level = jnp.round((flatten(x) + 1) / 2 * (self.levels - 1)).astype(jnp.int32)
        return -optax.softmax_cross_entropy_with_integer_labels(logits, level).sum(1)

    def _ode_nll(self, state: State, batch: Batch, key: jax.Array, steps: int) -> jax.Array:
        """−log p(x) by the probability flow, or with levels a bound on it, [B] nats."""
        noise_key, trace_key = jax.random.split(key)
        x = scaled(batch["x"])
        path, denoise = self.path(state.ema), self.denoiser(state.ema, self._label(batch))
        alpha, sigma = path(jnp.zeros(()))
        noise = jax.random.normal(noise_key, x.shape) if self.levels else 0.0
        x_0 = alpha * x + sigma * noise
        times = samplers.falling(steps)[::-1]
        log_p = samplers.ode_log_prob(path, denoise, x_0, times, trace_key, probes=1)
        if not self.levels:  # the density of x in [0, 1], where x_0 is α_0 (2x − 1)
            return -(log_p + math.prod(self.shape) * jnp.log(2 * alpha))
        log_q = flatten(jax.scipy.stats.norm.logpdf(noise) - jnp.log(sigma)).sum(1)
        return log_q - self._log_decoder(state.ema, x, x_0) - log_p


MOST = 5.0
"""The largest weight of `min_snr`."""


def parts(
    prediction: Predicted, out: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> Prediction:
    """x and ε with α x + σ ε = x_t, from one of ε, x and v = α ε − σ x, where α² + σ² = 1."""
    if prediction == "noise":
        return Prediction((x_t - sigma * out) / alpha, out)
    if prediction == "x":
        return Prediction(out, (x_t - alpha * out) / sigma)
    return Prediction(alpha * x_t - sigma * out, sigma * x_t + alpha * out)


def aim(prediction: Predicted, both: Prediction, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """What is predicted, of x and ε."""
    return {
        "noise": both.noise,
        "x": both.x,
        "v": alpha * both.noise - sigma * both.x,
    }[prediction]
