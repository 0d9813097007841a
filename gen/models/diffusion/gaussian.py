"""Gaussian diffusion, in discrete and in continuous time.

Ho, Jain & Abbeel 2020, "Denoising diffusion probabilistic models",
https://arxiv.org/abs/2006.11239;
Kingma, Salimans, Poole & Ho 2021, "Variational diffusion models",
https://arxiv.org/abs/2107.00630.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen import estimate, nets
from gen.core import (
    Batch,
    Data,
    Density,
    Metrics,
    Shape,
    check_fields,
    label_of,
    replica_key,
    require,
)
from gen.distributions import categorical_log_prob
from gen.estimate import Estimate
from gen.levels import check_levels, to_floats, to_index, to_value
from gen.models.diffusion import generation, samplers, schedules
from gen.models.diffusion.common import (
    NOISE_TIMES,
    State,
    add_axes,
    init_state,
    scaled,
    spread_times,
    step_around,
    stratified_times,
    train_step,
    unscaled,
)
from gen.models.diffusion.nets import UNet
from gen.models.diffusion.samplers import Denoise, Path, Prediction, Sampler
from gen.nets import flatten
from gen.optimize import AnyOptimizer, Optimizer

Predicted = Literal["noise", "x", "v"]
"""The output of a network: ε, x, or v = α_t ε − σ_t x (Salimans & Ho 2022,
https://arxiv.org/abs/2202.00512)."""

MAX_WEIGHT = 5.0
"""The largest weight under the weighting `min_snr` (Hang et al. 2023, section 3.4)."""


class Terms(NamedTuple):
    """The terms of the bound for each example, in nats.

    −log p(x) ≤ prior + diffusion + reconstruction (Kingma et al. 2021, eq. 11).
    """

    prior: jax.Array  # [B], KL(q(x_1|x) ‖ N(0, I))
    diffusion: jax.Array  # [B], an unbiased estimate of Σ_t E KL(q(x_s|x_t, x) ‖ p(x_s|x_t))
    reconstruction: jax.Array  # [B], −log p(x|x_0) at one x_0 ~ q(x_0|x)

    @property
    def total(self) -> jax.Array:
        """The bound, [B]."""
        return self.prior + self.diffusion + self.reconstruction


@dataclass(frozen=True)
class GaussianDiffusion:
    """x_t = α_t x + σ_t ε with ε ~ N(0, I), from data at t = 0 to noise at t = 1.

    α² + σ² = 1 and log α²/σ² = λ_t, the log signal-to-noise ratio. A network is given x_t and λ_t
    and predicts ε, x, or v = α_t ε − σ_t x.

    In T = `timesteps` steps the model is x_1 ~ N(0, I) and p(x_s|x_t) = q(x_s|x_t, x = x̂). At t = 0
    each variable has p(x|x_0) ∝ N(x_0; α_0 x, σ_0²) over its levels, or with `levels` 0 the density
    N(x; x_0 / α_0, σ_0²/α_0²), in nats for values in [0, 1]. The diffusion term of the bound is the
    sum over the steps (Kingma et al. 2021, eq. 14), or its limit for T → ∞ (`timesteps` 0; eq. 17):

        Σ_t ½ E (e^{λ_s − λ_t} − 1) ‖ε − ε̂‖²,    ∫ ½ (−λ'_t) E ‖ε − ε̂‖² dt.

    The optimiser minimises a loss at one t ~ U(0, 1) for each example, by `weighting`:

    - `simple`: the mean squared error of the network's output (Ho et al. 2020, eq. 14).
    - `likelihood`: the bound.
    - `min_snr`: the mean of min(SNR, 5) (x − x̂)² (Hang et al. 2023,
      https://arxiv.org/abs/2303.09556, section 3.4).

    The ends of a learned schedule minimise the bound. The curve between them does not change the
    bound in continuous time, and minimises its variance (Kingma et al. 2021, sections 5.1, 5.3).

    With `classes` the network is given the label, which is dropped for a share of the examples.
    Samples with `guidance` w follow x̂ = (1 + w) x̂(label) − w x̂(no label) (Ho & Salimans 2022,
    https://arxiv.org/abs/2207.12598, eq. 6).

    Images are scaled to [−1, 1]. Evaluation and sampling use the moving average of the parameters;
    the batch statistics of a user's network are not averaged.

    Deviations from Kingma et al. 2021:

    - The network is given the position of λ between its two ends, as a time in [0, 1].
    - The times of a batch are stratified, one in each B-th part of [0, 1), and shuffled; the paper
      does not shuffle them.
    - `fourier` Fourier features of x_t, with periods of 1, 2, 4, … levels; the paper has two.
    - Samples are the levels nearest to x_0, not draws of p(x|x_0), and take `sample_steps` steps
      for any T.
    - The default optimiser is Adam without weight decay.

    Deviations from the papers of the fixed schedules: λ has the ends `log_snr_min` and
    `log_snr_max`, to which time is rescaled.
    """

    family: ClassVar[str] = "diffusion"
    density: ClassVar[Density] = "approximate"
    codes: ClassVar[Literal["features", "noise"]] = "noise"
    noise_times: ClassVar[tuple[float, ...]] = NOISE_TIMES

    net: nn.Module = UNet()
    """network of a noisy example, its time and its label"""
    shape: Shape = (28, 28, 1)
    """shape of one example"""
    levels: int = 256
    """number of values that a variable can take (0: continuous, and likelihoods are densities)"""
    schedule: Literal["linear", "cosine", "log_linear", "learned"] = "cosine"
    """course of the log signal-to-noise ratio in time"""
    log_snr_min: float = -10.0
    """log signal-to-noise ratio at t = 1 (learned schedule: the first value)"""
    log_snr_max: float = 13.3
    """log signal-to-noise ratio at t = 0 (learned schedule: the first value)"""
    prediction: Predicted = "v"
    """output of the network: noise, x or v"""
    weighting: Literal["simple", "likelihood", "min_snr"] = "simple"
    """weights of the squared errors at different times in training"""
    timesteps: int = 0
    """steps of the chain (0: continuous time)"""
    fourier: int = 0
    """Fourier features of x_t for the network, with periods of 1, 2, 4, ... levels"""
    classes: int = 0
    """number of classes, whose labels the network is given (0: no labels)"""
    label_dropout: float = 0.1
    """share of the examples whose label is dropped in a training step"""
    guidance: float = 0.0
    """weight w of classifier-free guidance in sampling (0: the conditional model)"""
    sampler: Sampler = "ancestral"
    """sampler"""
    sample_steps: int = 250
    """steps of a sample"""
    resamplings: int = 5
    """repetitions of each step of a completion (RePaint)"""
    time_draws: int = 20
    """times for each example at which evaluation takes the bound"""
    ode_steps: int = 50
    """Heun steps of codes and of the likelihood by the probability flow"""
    ode_examples: int = 1_000
    """examples whose likelihood by the probability flow is evaluated, the first ones (0: none)"""
    ema_decay: float = 0.999
    """weight of the past in the moving average of the parameters"""
    optimizer: AnyOptimizer = Optimizer("adam", learning_rate=1e-3)
    """optimiser"""

    def __post_init__(self):
        check_fields(
            self,
            positive=("sample_steps", "resamplings", "time_draws", "ode_steps"),
            non_negative=("levels", "timesteps", "fourier", "classes", "ode_examples"),
            fraction=("ema_decay", "label_dropout"),
        )
        require(self.levels != 1, "GaussianDiffusion: levels is 1, must be 0 or 2 and more")
        require(self.ode_steps > 1, "GaussianDiffusion: ode_steps is 1, must be 2 or more")
        require(
            -30 <= self.log_snr_min < self.log_snr_max <= 30,
            f"GaussianDiffusion: log_snr_min {self.log_snr_min}, log_snr_max {self.log_snr_max}: "
            "must rise, within −30 and 30",
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
            self.fourier <= 32,
            f"GaussianDiffusion: fourier is {self.fourier}, must be at most 32: periods double",
        )
        require(
            self.classes == 0 or self.label_dropout > 0,
            "GaussianDiffusion: label_dropout is 0, so nothing is learned without labels",
        )
        require(
            self.guidance == 0 or self.classes > 0,
            f"GaussianDiffusion: guidance is {self.guidance}, which needs classes",
        )

    @property
    def normal_codes(self) -> int:
        """A code is the noise that the probability flow maps to x."""
        return math.prod(self.shape)

    @property
    def metric_units(self) -> Mapping[str, str]:
        """The unit of the loss, which depends on the weighting."""
        unit = "nats" if self.weighting == "likelihood" else "squared error"
        return {"loss": unit, "validation": unit}

    def init(self, key: jax.Array) -> State:
        x, t = self._features(jnp.zeros((1, *self.shape))), jnp.zeros(1)
        label = jnp.zeros(1, jnp.int32) if self.classes else None
        net_params, stats = nets.init(self._net, key, x, t, label)
        out, _ = nets.apply(self._net, net_params, stats, x, t, label)
        nets.check_output(self._net, out, self.shape)
        params = {"net": net_params}
        if self.schedule == "learned":
            params["schedule"] = schedules.init_learned(self.log_snr_min, self.log_snr_max)
        return init_state(params, stats, self.optimizer)

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one optimiser step on the loss of `weighting`, logged as `loss`.

        The moving average follows. In continuous time the curve of a learned schedule minimises the
        mean square of the bound. This is the variance of the bound plus its squared mean, and the
        mean does not depend on the curve.
        """
        key = replica_key(key, axis_name)

        def loss(params):
            value, stats = self._loss(params, state.stats, batch, key, train=True)
            metrics = {"loss": value.mean()}
            if self.schedule == "learned" and not self.timesteps:
                held = jax.lax.stop_gradient(params)
                ends = {**params["schedule"], "curve": held["schedule"]["curve"]}
                curve = {**held["schedule"], "curve": params["schedule"]["curve"]}
                bound = partial(self._loss, stats=state.stats, batch=batch, key=key, train=True)
                value, _ = bound({**params, "schedule": ends})
                value += bound({**held, "schedule": curve})[0] ** 2
            return value.mean(), (metrics, stats)

        return train_step(loss, state, self.optimizer, self.ema_decay, axis_name)

    def parameters(self, state: State) -> Any:
        """Return the parameters of the network and of a learned schedule."""
        return state.params

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the training loss of each example, [B]."""
        return self._loss(state.ema, state.stats, batch, key)[0]

    def score(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the bound on −log p(x), or on −log p(x|label), [B] nats."""
        return self.bound(state, batch, key).total

    def scores(self, state: State, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """Return the training loss of `weighting` at `time_draws` times as `denoising`.

        With the weighting `simple` or `min_snr` it is a denoising error over all noise levels.
        """
        x, label = self.to_continuous(batch["x"]), label_of(self, batch)
        times, noise_keys = stratified_times(key, self.time_draws, len(x))

        def at(draw):
            t, noise_key = draw
            keys = noise_key, noise_key, None
            _, loss, _ = self._terms(state.ema, state.stats, x, label, t, keys, self.timesteps)
            return loss

        return {"denoising": jax.lax.map(at, (times, noise_keys)).mean(0)}

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return the bound on −log p(x) as `nll`, and −log p(x) by the probability flow.

        The terms of the bound are `prior`, `diffusion` and `reconstruction`. The probability flow
        gives `nll_ode`, for the first `ode_examples` (`generation.ode_estimate`). If x has more
        than two levels, `bits_per_dim` and `bits_per_dim_ode` are the same in bits per variable.

        The probability flow defines a density of x_0. For data with levels, x is dequantized by the
        bound's own noise at t = 0, x_0 ~ q(x_0|x) (Kingma et al. 2021, eq. 8), which gives a bound
        on −log p(x). Each example takes one draw of x_0 and one probe of the trace.
        """
        if self.levels:
            check_levels(data, self.levels)
        bound_key, ode_key = jax.random.split(key)
        terms = estimate.per_example(partial(self.bound, state), data, bound_key, block=100)
        settings: dict[str, Any] = {} if self.levels else {"density": True}
        settings |= {"conditional": True} if self.classes else {}
        draws = {"timesteps": self.timesteps or "infinite", "time_draws": self.time_draws}
        results = {"nll": estimate.mean(terms.total, "upper bound", **draws, **settings)}
        for name, values in terms._asdict().items():
            results[name] = estimate.mean(values, "Monte Carlo")
        if self.ode_examples:
            results["nll_ode"] = generation.ode_estimate(
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
            for name in [name for name in results if name.startswith("nll")]:
                bits = estimate.in_bits(results[name], math.prod(self.shape))
                results[name.replace("nll", "bits_per_dim")] = bits
        return results

    def bound(
        self, state: State, batch: Batch, key: jax.Array, timesteps: int | None = None
    ) -> Terms:
        """Return the terms of the bound on −log p(x), or on −log p(x|label), each [B] nats.

        Args:
          state: a state of the model.
          batch: `"x"` [B, *shape], and `"label"` [B] for a model with classes.
          key: the source of the times and the noise.
          timesteps: steps T of the chain, 0 for continuous time, None for the model's own number.
        """
        timesteps = self.timesteps if timesteps is None else timesteps
        draws_key, x_0_key = jax.random.split(key)
        times, noise_keys = stratified_times(draws_key, self.time_draws, len(batch["x"]))
        x, label = self.to_continuous(batch["x"]), label_of(self, batch)

        def at(draw):
            t, noise_key = draw
            keys = noise_key, x_0_key, None
            return self._terms(state.ema, state.stats, x, label, t, keys, timesteps)[0]

        # The diffusion term is the mean over the time draws, the other terms do not depend on t.
        # The compiler drops what is not used of each call.
        diffusion = jax.lax.map(lambda draw: at(draw).diffusion, (times, noise_keys)).mean(0)
        return at((times[0], noise_keys[0]))._replace(diffusion=diffusion)

    sample = generation.sample
    sample_in = generation.sample_in
    denoising = generation.denoising
    complete = generation.complete
    layers = generation.layers
    encode = generation.encode
    decode = generation.decode

    def path(self, params: Any) -> Path:
        """Return t ↦ (α_t, σ_t)."""
        log_snr = self._log_snr(params)

        def path_at(t):
            return jnp.sqrt(jax.nn.sigmoid(log_snr(t))), jnp.sqrt(jax.nn.sigmoid(-log_snr(t)))

        return path_at

    def denoiser(
        self, state: State, label: jax.Array | None = None, guidance: float = 0.0
    ) -> Denoise:
        """Return (x_t, t) ↦ E[x|x_t] and E[ε|x_t] by the network.

        Args:
          state: a state of the model.
          label: the label of each example, [B]; None is "no label".
          guidance: the weight w of classifier-free guidance.
        """

        def denoise(x, t):
            t = jnp.broadcast_to(t, len(x))
            predict = partial(self._predict, state.ema, state.stats, x, t)
            no_label = jnp.full(len(x), self.classes) if self.classes else None
            given, _ = predict(no_label if label is None else label)
            if not guidance:
                return given
            free, _ = predict(no_label)
            return jax.tree.map(lambda c, f: (1 + guidance) * c - guidance * f, given, free)

        return denoise

    def hidden_layers(self, state: State, x_t: jax.Array, t: jax.Array) -> list[jax.Array]:
        """Return the activations of the network's hidden layers, without labels, [B, ...] each.

        Args:
          state: a state of the model.
          x_t: noisy examples, [B, *shape].
          t: their times, [B].
        """
        label = jnp.full(len(x_t), self.classes) if self.classes else None
        inputs = self._features(x_t), self._time(state.ema, t), label
        return nets.layers(self._net, {"params": state.ema["net"], **state.stats}, *inputs)

    def to_continuous(self, x: jax.Array) -> jax.Array:
        """Return 2 x − 1 of values, or of integer levels: [0, 1] becomes [−1, 1]."""
        return scaled(to_floats(x, self.levels))

    def to_values(self, x: jax.Array) -> jax.Array:
        """Return the level nearest to each point; without levels the inverse of `to_continuous`."""
        x = unscaled(x)
        if not self.levels:
            return x
        return to_value(to_index(jnp.clip(x, 0.0, 1.0), self.levels), self.levels)

    @property
    def _net(self) -> nn.Module:
        return nets.fitted(self.net, out=self.shape, classes=self.classes)

    def _log_snr(self, params: Any) -> schedules.LogSNR:
        """Return t ↦ λ_t."""
        if self.schedule == "learned":
            return schedules.learned(params["schedule"])
        return schedules.FIXED[self.schedule](self.log_snr_min, self.log_snr_max)

    def _loss(
        self, params: Any, stats: Any, batch: Batch, key: jax.Array, train: bool = False
    ) -> tuple[jax.Array, Any]:
        """Return the training loss of each example, [B], and the network's statistics."""
        x, label = self.to_continuous(batch["x"]), label_of(self, batch)
        times_key, label_key, *keys = jax.random.split(key, 5)
        if label is not None:
            dropped = jax.random.bernoulli(label_key, self.label_dropout, label.shape)
            label = jnp.where(dropped, self.classes, label)
        t = spread_times(times_key, len(x))
        _, loss, stats = self._terms(params, stats, x, label, t, keys, self.timesteps, train)
        return loss, stats

    def _terms(
        self,
        params: Any,
        stats: Any,
        x: jax.Array,
        label: jax.Array | None,
        t: jax.Array,
        keys: Sequence[Any],
        timesteps: int,
        train: bool = False,
    ) -> tuple[Terms, jax.Array, Any]:
        """Return the terms of the bound and the training loss at one time for each example.

        The compiler removes the computation of results that a caller does not use.

        Args:
          params: the parameters.
          stats: the network's statistics.
          x: examples in [−1, 1], [B, *shape].
          label: labels [B], or None for a model without classes.
          t: times in [0, 1), [B]. With finitely many steps, each stands for the step around it.
          keys: the keys of ε, of x_0 and of the network's dropout.
          timesteps: steps T of the chain, 0 for continuous time.
          train: whether the network is in training mode.

        Returns:
          The terms; the loss by `weighting`, [B]; and the network's statistics after the call.
        """
        noise_key, x_0_key, net_key = keys
        log_snr, path = self._log_snr(params), self.path(params)

        # 1. Prior: KL(q(x_1|x) ‖ N(0, I)) = ½ Σ α_1² x² + σ_1² − 1 − log σ_1².
        alpha, sigma = path(jnp.ones(()))
        each = (alpha * x) ** 2 + sigma**2 - 1 - 2 * jnp.log(sigma)
        prior = 0.5 * flatten(each).sum(1)

        # 2. Diffusion: the integrand at t, ½ T (e^{λ_s − λ_t} − 1) ‖ε − ε̂‖² for the step from t to
        #    s = t − 1/T, and its limit ½ (−λ'_t) ‖ε − ε̂‖². The mean over t ~ U(0, 1) is the term.
        if timesteps:
            s, t = step_around(t, timesteps)
            rate = timesteps * jnp.expm1(log_snr(s) - log_snr(t))
        else:
            rate = -jax.jvp(log_snr, (t,), (jnp.ones_like(t),))[1]
        alpha, sigma = (add_axes(scale, self.shape) for scale in path(t))
        noise = jax.random.normal(noise_key, x.shape)
        x_t = alpha * x + sigma * noise
        predicted, stats = self._predict(params, stats, x_t, t, label, train, net_key)
        diffusion = 0.5 * rate * flatten((noise - predicted.noise) ** 2).sum(1)

        # 3. Reconstruction: −log p(x|x_0) at one x_0 ~ q(x_0|x).
        alpha_0, sigma_0 = path(jnp.zeros(()))
        x_0 = alpha_0 * x + sigma_0 * jax.random.normal(x_0_key, x.shape)
        reconstruction = -self._log_decoder(params, x, x_0)

        # 4. The loss: the bound, or a weighted mean of squared errors.
        if self.weighting == "likelihood":
            loss = diffusion + (prior + reconstruction)
        elif self.weighting == "min_snr":
            weight = jnp.minimum((alpha / sigma) ** 2, MAX_WEIGHT)
            loss = flatten(weight * (x - predicted.x) ** 2).mean(1)
        else:
            true, out = (
                target(self.prediction, pair, alpha, sigma)
                for pair in (Prediction(x, noise), predicted)
            )
            loss = flatten((true - out) ** 2).mean(1)
        return Terms(prior, diffusion, reconstruction), loss, stats

    def _predict(
        self,
        params: Any,
        stats: Any,
        x_t: jax.Array,
        t: jax.Array,
        label: jax.Array | None,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[Prediction, Any]:
        """Return E[x|x_t] and E[ε|x_t] at times t [B], and the network's statistics.

        The network's output is one of ε, x and v; the others follow from α x + σ ε = x_t.
        """
        inputs = self._features(x_t), self._time(params, t), label
        out, stats = nets.apply(self._net, params["net"], stats, *inputs, train=train, key=key)
        out = out.reshape(x_t.shape)
        alpha, sigma = (add_axes(scale, self.shape) for scale in self.path(params)(t))
        if self.prediction == "noise":
            return Prediction((x_t - sigma * out) / alpha, out), stats
        if self.prediction == "x":
            return Prediction(out, (x_t - alpha * out) / sigma), stats
        return Prediction(alpha * x_t - sigma * out, sigma * x_t + alpha * out), stats

    def _time(self, params: Any, t: jax.Array) -> jax.Array:
        """Return the network's time: the position of λ_t between its two ends, [B] in [0, 1]."""
        log_snr = self._log_snr(params)
        first, last = log_snr(jnp.zeros(())), log_snr(jnp.ones(()))
        return (first - log_snr(t)) / (first - last)

    def _features(self, x_t: jax.Array) -> jax.Array:
        """Return the network's input: x_t, and beside it Fourier features as extra channels.

        They are sin and cos of 2πk / 2ⁿ with n < `fourier`, for the level k = (K − 1)(x_t + 1) / 2,
        and tell apart values within a level (Kingma et al. 2021, appendix C, for n = 0, 1).
        """
        level = (self.levels - 1) * unscaled(x_t)
        angles = [2 * math.pi * level / 2**n for n in range(self.fourier)]
        waves = [wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)]
        return jnp.concatenate([x_t, *waves], axis=-1)

    def _log_decoder(self, params: Any, x: jax.Array, x_0: jax.Array) -> jax.Array:
        """Return log p(x|x_0) for x and x_0 [B, *shape] in [−1, 1], [B] nats."""
        alpha, sigma = self.path(params)(jnp.zeros(()))
        if not self.levels:  # log 2: values in [0, 1] are x in half the units
            each = jax.scipy.stats.norm.logpdf(x, x_0 / alpha, sigma / alpha) + math.log(2)
            return flatten(each).sum(1)
        values = jnp.linspace(-1.0, 1.0, self.levels)
        logits = -0.5 * ((flatten(x_0)[..., None] - alpha * values[None, None]) / sigma) ** 2
        return categorical_log_prob(logits, to_index(unscaled(flatten(x)), self.levels)).sum(1)

    def _ode_nll(self, state: State, batch: Batch, key: jax.Array, steps: int) -> jax.Array:
        """Return −log p(x) by the probability flow, or with levels a bound on it, [B] nats."""
        noise_key, trace_key = jax.random.split(key)
        x = self.to_continuous(batch["x"])
        path, denoise = self.path(state.ema), self.denoiser(state, label_of(self, batch))
        alpha, sigma = path(jnp.zeros(()))
        noise = jax.random.normal(noise_key, x.shape) if self.levels else 0.0
        x_0 = alpha * x + sigma * noise
        times = samplers.falling(steps)[::-1]
        log_p = samplers.ode_log_prob(path, denoise, x_0, times, trace_key, probes=1)
        if not self.levels:  # the density of x in [0, 1], where x_0 is α_0 (2x − 1)
            return -(log_p + math.prod(self.shape) * jnp.log(2 * alpha))
        log_q = flatten(jax.scipy.stats.norm.logpdf(noise) - jnp.log(sigma)).sum(1)
        return log_q - self._log_decoder(state.ema, x, x_0) - log_p


def target(
    prediction: Predicted, pair: Prediction, alpha: jax.Array, sigma: jax.Array
) -> jax.Array:
    """Return the network output that x and ε correspond to: ε, x, or v = α ε − σ x.

    Args:
      prediction: the network's output.
      pair: x and ε, [B, *shape].
      alpha: α_t, [B, 1, …].
      sigma: σ_t, [B, 1, …].
    """
    return {
        "noise": pair.noise,
        "x": pair.x,
        "v": alpha * pair.noise - sigma * pair.x,
    }[prediction]
