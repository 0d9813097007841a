"""Flow matching. Lipman, Chen, Ben-Hamu, Nickel & Le (2023), "Flow matching for generative
modeling"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

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
from gen.models.diffusion import samplers
from gen.models.diffusion.common import (
    State,
    begin,
    beside,
    flow_nll,
    one_by_one,
    scaled,
    spread_times,
    train,
    unscaled,
)
from gen.models.diffusion.nets import ResidualMLP, UNet
from gen.models.diffusion.samplers import Denoise, Prediction, Sampler
from gen.nets import apply, flatten


@dataclass(frozen=True)
class FlowMatching:
    """A velocity field u(x_t, t) that takes N(0, I) at t = 1 to the data at t = 0.

    Along the straight path x_t = (1 − t) x + t ε from an example x to ε ~ N(0, I) the velocity is
    ε − x; Adam lowers (eq. 23 there, σ_min = 0, time running the other way)

        E ‖u((1 − t) x + t ε, t) − (ε − x)‖²,    one t ~ U(0, 1) and ε for each example,

    so u becomes E[ε − x | x_t], and dx/dt = u has the marginals of the path. The density of its
    end follows from the instantaneous change of variables (`samplers.ode_log_prob`).

    Levels k of K are learned as (k + U(0, 1)) / K, a density whose mean logarithm over a cell is a
    bound on the cell's log probability (uniform dequantization; Theis et al. 2016, eq. 4). Values
    are taken to [−1, 1].
    """

    family: ClassVar[str] = "diffusion"
    density: ClassVar[Density] = "approximate"

    net: UNet | ResidualMLP
    """the net that gives the velocity"""
    shape: Shape = (28, 28, 1)
    """shape of one example"""
    levels: int = 256
    """values that a variable can take (0: any, and likelihoods are of a density)"""
    sampler: Sampler = "heun"
    """how samples are made"""
    sample_steps: int = 50
    """steps of a sample"""
    resamplings: int = 5
    """times that a completion goes each step"""
    ode_steps: int = 50
    """Heun steps of codes and of the likelihood"""
    ode_examples: int = 1_000
    """examples of which `evaluate` takes the likelihood, the first ones"""
    ema_decay: float = 0.999
    """weight of the past in the running mean of the parameters, by which all is computed"""
    learning_rate: float = 1e-3
    """step size of Adam"""
    decay_steps: int = 0
    """let the step size fall to 0 over so many steps, along a cosine (0: constant)"""

    def __post_init__(self):
        for name in ("sample_steps", "resamplings", "ode_examples"):
            value = getattr(self, name)
            require(value > 0, f"FlowMatching: {name} is {value}, must be positive")
        require(
            self.levels > 1 or self.levels == 0,
            f"FlowMatching: levels is {self.levels}, must be 0 or 2 and more",
        )
        require(self.ode_steps > 1, f"FlowMatching: ode_steps is {self.ode_steps}, must be > 1")
        require(
            0 <= self.ema_decay < 1,
            f"FlowMatching: ema_decay is {self.ema_decay}, must be in [0, 1)",
        )

    def init(self, key: jax.Array) -> State:
        params = self._net.init(key, jnp.zeros((1, *self.shape)), jnp.zeros(1), None)
        return begin(params, self._optimizer)

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """One Adam step on the mean square error per variable, logged as `loss`, then one of the
        running mean."""
        key = replica_key(key, axis_name)

        def loss(params):
            value = self._objective(params, batch["x"], key).mean()
            return value, {"loss": value}

        return train(loss, self._optimizer, self.ema_decay, state, axis_name)

    def parameters(self, state: State) -> Any:
        """Of the net."""
        return state.params

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """The mean square error per variable, of the running mean, [B]."""
        return self._objective(state.ema, batch["x"], key)

    def score(self, state: State, batch: Batch) -> jax.Array:
        """What `evaluate` calls `nll`, [B] nats. Its noise comes from one fixed key, so that the
        same example always has the same score."""
        return one_by_one(
            lambda one: self._nll(state, one, jax.random.key(0), self.ode_steps), batch
        )

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """−log p(x) of the first `ode_examples` as `nll`, by one probe of the trace for each: of
        levels an upper bound, by one dequantized copy, in bits per variable, too, if there are more
        than two (`flow_nll`).

        Raises `UserError` if there are levels and values of x lie between them.
        """
        if self.levels:
            check_levels(data, self.levels)
        settings: dict[str, Any] = {"dequantized": "uniform"} if self.levels else {"density": True}
        nll = flow_nll(
            partial(self._nll, state),
            data,
            key,
            self.ode_steps,
            self.ode_examples,
            "upper bound" if self.levels else "Monte Carlo",
            **settings,
        )
        if self.levels <= 2:
            return {"nll": nll}
        return {"nll": nll, "bits_per_dim": estimate.in_bits(nll, math.prod(self.shape))}

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """n samples [n, *shape] in `sample_steps` steps of `sampler`."""
        return self._values(scaled(self.denoising(state, key, n, 1)[-1]))

    def denoising(self, state: State, key: jax.Array, n: int, frames: int) -> jax.Array:
        """Samples on their way from noise, [frames + 1, n, *shape], before they are levels."""
        start_key, key = jax.random.split(key)
        times = samplers.falling(self.sample_steps)
        start, denoise = jax.random.normal(start_key, (n, *self.shape)), self.denoiser(state.ema)
        return unscaled(
            samplers.trajectory(self.sampler, straight, denoise, start, times, key, frames)
        )

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """x [B, *shape], with what `mask` (1: shown) hides drawn by `samplers.inpaint`:
        p(hidden | shown) approximately."""
        shown = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        times = samplers.falling(self.sample_steps)
        middle, denoise = self._continuous(x, 0.5), self.denoiser(state.ema)
        drawn = samplers.inpaint(straight, denoise, middle, shown, times, key, self.resamplings)
        return jnp.where(shown, x, self._values(drawn))

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """x_1 of the flow from x, [B, D]: a normal draw where x is one of the model."""
        times, x = samplers.falling(self.ode_steps)[::-1], self._continuous(batch["x"], 0.5)
        return flatten(samplers.heun(straight, self.denoiser(state.ema), x, times))

    def decode(self, state: State, z: jax.Array) -> jax.Array:
        """x of the flow from x_1 = z, [B, *shape]."""
        times, x_1 = samplers.falling(self.ode_steps), z.reshape(-1, *self.shape)
        return self._values(samplers.heun(straight, self.denoiser(state.ema), x_1, times))

    def denoiser(self, params: Any) -> Denoise:
        """(x_t, t) ↦ E[x | x_t] = x_t − t u and E[ε | x_t] = x_t + (1 − t) u."""

        def denoise(x, t):
            u = apply(self._net, params, x, jnp.broadcast_to(t, len(x)), None)
            return Prediction(x - t * u, x + (1 - t) * u)

        return denoise

    @property
    def _net(self) -> Any:
        return self.net.module(self.shape[-1], 0)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, self.decay_steps)

    def _continuous(self, x: jax.Array, within: jax.Array | float) -> jax.Array:
        """x as it is learned, in [−1, 1]: of levels the place `within` the cell, in [0, 1)."""
        if not self.levels:
            return scaled(x)
        level = jnp.round(x * (self.levels - 1))
        return scaled((level + within) / self.levels)

    def _values(self, x: jax.Array) -> jax.Array:
        """The inverse: the level whose cell x lies in, as a value in [0, 1]; without levels x cut
        off there."""
        x = unscaled(x)
        if not self.levels:
            return jnp.clip(x, 0.0, 1.0)
        return jnp.clip(jnp.floor(x * self.levels), 0, self.levels - 1) / (self.levels - 1)

    def _objective(self, params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        times_key, noise_key, key = jax.random.split(key, 3)
        x = self._continuous(x, jax.random.uniform(key, x.shape))
        t = spread_times(times_key, len(x))
        alpha, sigma = (beside(scale, self.shape) for scale in straight(t))
        noise = jax.random.normal(noise_key, x.shape)
        u = apply(self._net, params, alpha * x + sigma * noise, t, None)
        return flatten((u - (noise - x)) ** 2).mean(1)

    def _nll(self, state: State, batch: Batch, key: jax.Array, steps: int) -> jax.Array:
        level_key, trace_key = jax.random.split(key)
        x = batch["x"]
        x = self._continuous(x, jax.random.uniform(level_key, x.shape))
        times, denoise = samplers.falling(steps)[::-1], self.denoiser(state.ema)
        log_p = samplers.ode_log_prob(straight, denoise, x, times, trace_key, probes=1)
        # [−1, 1] has two units, and a cell one of K parts of it.
        return -log_p - math.prod(self.shape) * math.log(2 / max(self.levels, 1))


def straight(t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The path of optimal transport between an example and its noise: α = 1 − t, σ = t."""
    return 1 - t, t
