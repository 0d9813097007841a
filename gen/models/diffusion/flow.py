"""Flow matching.

Lipman, Chen, Ben-Hamu, Nickel & Le 2023, "Flow matching for generative modeling",
https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen import estimate, nets
from gen.core import Batch, Data, Density, Metrics, Shape, check_fields, replica_key, require
from gen.estimate import Estimate
from gen.levels import check_levels, dequantize, quantize, to_floats
from gen.models.diffusion import generation, samplers
from gen.models.diffusion.common import (
    NOISE_TIMES,
    State,
    add_axes,
    init_state,
    scaled,
    spread_times,
    train_step,
    unscaled,
)
from gen.models.diffusion.nets import UNet
from gen.models.diffusion.samplers import Denoise, Path, Prediction, Sampler
from gen.nets import flatten
from gen.optimize import AnyOptimizer, Optimizer


@dataclass(frozen=True)
class FlowMatching:
    """A velocity field u(x_t, t) that takes N(0, I) at t = 1 to the data at t = 0.

    Along the straight path x_t = (1 − t) x + t ε from an example x to ε ~ N(0, I) the velocity is
    ε − x. The optimiser minimises (Lipman et al. 2023, eq. 23, with σ_min = 0)

        E ‖u((1 − t) x + t ε, t) − (ε − x)‖²,    one t ~ U(0, 1) and ε for each example,

    so that u becomes E[ε − x | x_t], and dx/dt = u has the marginals of the path. The density of x
    follows from the instantaneous change of variables (`samplers.ode_log_prob`).

    Levels k of K are learned as (k + u) / K with u ~ U(0, 1). The mean of the log-density over the
    cell of a level gives a bound on the log-probability of the level (uniform dequantization; Theis
    et al. 2016, https://arxiv.org/abs/1511.01844, eq. 4). Values are scaled to [−1, 1].

    Evaluation and sampling use the moving average of the parameters.

    Deviations from Lipman et al. 2023:

    - Time runs from data to noise.
    - The times of a batch are stratified, one in each B-th part of [0, 1), and shuffled (Kingma et
      al. 2021, https://arxiv.org/abs/2107.00630, appendix I.1).
    - The ODE is solved by Heun's method in equal steps; the paper uses an adaptive solver.
    """

    family: ClassVar[str] = "diffusion"
    density: ClassVar[Density] = "approximate"
    codes: ClassVar[Literal["features", "noise"]] = "noise"
    noise_times: ClassVar[tuple[float, ...]] = NOISE_TIMES
    metric_units: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"loss": "squared error", "validation": "squared error"}
    )

    net: nn.Module = UNet()
    """network of a noisy example and its time, which predicts the velocity"""
    shape: Shape = (28, 28, 1)
    """shape of one example"""
    levels: int = 256
    """number of values that a variable can take (0: continuous, and likelihoods are densities)"""
    sampler: Sampler = "heun"
    """sampler"""
    sample_steps: int = 50
    """steps of a sample"""
    resamplings: int = 5
    """repetitions of each step of a completion (RePaint)"""
    ode_steps: int = 50
    """Heun steps of codes and of the likelihood"""
    ode_examples: int = 1_000
    """examples whose likelihood is evaluated, the first ones"""
    ema_decay: float = 0.999
    """weight of the past in the moving average of the parameters"""
    optimizer: AnyOptimizer = Optimizer("adam", learning_rate=1e-3)
    """optimiser"""

    def __post_init__(self):
        check_fields(
            self,
            positive=("sample_steps", "resamplings", "ode_steps", "ode_examples"),
            non_negative=("levels",),
            fraction=("ema_decay",),
        )
        require(self.levels != 1, "FlowMatching: levels is 1, must be 0 or 2 and more")
        require(self.ode_steps > 1, "FlowMatching: ode_steps is 1, must be 2 or more")

    @property
    def normal_codes(self) -> int:
        """A code is the noise that the probability flow maps to x."""
        return math.prod(self.shape)

    def init(self, key: jax.Array) -> State:
        x, t = jnp.zeros((1, *self.shape)), jnp.zeros(1)
        params, stats = nets.init(self._net, key, x, t, None)
        out, _ = nets.apply(self._net, params, stats, x, t, None)
        nets.check_output(self._net, out, self.shape)
        return init_state(params, stats, self.optimizer)

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one optimiser step on the mean squared error per variable, logged as `loss`.

        The moving average follows.
        """
        key = replica_key(key, axis_name)

        def loss(params):
            value, stats = self._loss(params, state.stats, batch["x"], key, train=True)
            return value.mean(), ({"loss": value.mean()}, stats)

        return train_step(loss, state, self.optimizer, self.ema_decay, axis_name)

    def parameters(self, state: State) -> Any:
        """Return the parameters of the network."""
        return state.params

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the mean squared error per variable, [B]."""
        return self._loss(state.ema, state.stats, batch["x"], key)[0]

    def score(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the estimate of −log p(x) that `evaluate` calls `nll`, [B] nats."""
        return self._nll(state, batch, key, self.ode_steps)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return −log p(x) of the first `ode_examples` as `nll` (`generation.ode_estimate`).

        The trace is estimated by one probe for each example. On levels this is an upper bound, by
        one dequantized copy. If x has more than two levels, `bits_per_dim` is the same in bits per
        variable.
        """
        if self.levels:
            check_levels(data, self.levels)
        settings: dict[str, Any] = {"dequantized": "uniform"} if self.levels else {"density": True}
        nll = generation.ode_estimate(
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

    sample = generation.sample
    sample_in = generation.sample_in
    denoising = generation.denoising
    complete = generation.complete
    layers = generation.layers
    encode = generation.encode
    decode = generation.decode

    def path(self, params: Any) -> Path:
        """Return t ↦ (α_t, σ_t), the straight path."""
        return straight

    def denoiser(self, state: State) -> Denoise:
        """Return (x_t, t) ↦ E[x|x_t] = x_t − t u and E[ε|x_t] = x_t + (1 − t) u."""

        def denoise(x, t):
            u, _ = self._velocity(state.ema, state.stats, x, jnp.broadcast_to(t, len(x)))
            return Prediction(x - t * u, x + (1 - t) * u)

        return denoise

    def hidden_layers(self, state: State, x_t: jax.Array, t: jax.Array) -> list[jax.Array]:
        """Return the activations of the network's hidden layers, [B, ...] each.

        Args:
          state: a state of the model.
          x_t: noisy examples, [B, *shape].
          t: their times, [B].
        """
        return nets.layers(self._net, {"params": state.ema, **state.stats}, x_t, t, None)

    def to_continuous(self, x: jax.Array, within: jax.Array | float = 0.5) -> jax.Array:
        """Return 2 x − 1 of values, or of points of the cells of levels: [0, 1] becomes [−1, 1].

        Args:
          x: values, [B, *shape].
          within: u in [0, 1), the position in the cell; ½ is its middle.
        """
        return scaled(dequantize(x, self.levels, within) if self.levels else to_floats(x, 0))

    def to_values(self, x: jax.Array) -> jax.Array:
        """Return the level in whose cell each point lies; without levels invert `to_continuous`."""
        x = unscaled(x)
        return quantize(x, self.levels) if self.levels else x

    @property
    def _net(self) -> nn.Module:
        return nets.fitted(self.net, out=self.shape)

    def _velocity(
        self,
        params: Any,
        stats: Any,
        x_t: jax.Array,
        t: jax.Array,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return u(x_t, t) at times t [B], and the network's statistics."""
        u, stats = nets.apply(self._net, params, stats, x_t, t, None, train=train, key=key)
        return u.reshape(x_t.shape), stats

    def _loss(
        self, params: Any, stats: Any, x: jax.Array, key: jax.Array, train: bool = False
    ) -> tuple[jax.Array, Any]:
        """Return the mean over variables of (u − (ε − x))², [B], and the network's statistics."""
        times_key, noise_key, cell_key, net_key = jax.random.split(key, 4)
        x = self.to_continuous(x, jax.random.uniform(cell_key, x.shape))
        t = spread_times(times_key, len(x))
        alpha, sigma = (add_axes(scale, self.shape) for scale in straight(t))
        noise = jax.random.normal(noise_key, x.shape)
        u, stats = self._velocity(params, stats, alpha * x + sigma * noise, t, train, net_key)
        return flatten((u - (noise - x)) ** 2).mean(1), stats

    def _nll(self, state: State, batch: Batch, key: jax.Array, steps: int) -> jax.Array:
        """Return −log p(x) by the probability flow, or with levels a bound on it, [B] nats."""
        cell_key, trace_key = jax.random.split(key)
        x = batch["x"]
        x = self.to_continuous(x, jax.random.uniform(cell_key, x.shape))
        times, denoise = samplers.falling(steps)[::-1], self.denoiser(state)
        log_p = samplers.ode_log_prob(straight, denoise, x, times, trace_key, probes=1)
        # [−1, 1] has the length 2, and a cell is one of K parts of it.
        return -log_p - math.prod(self.shape) * math.log(2 / max(self.levels, 1))


def straight(t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return α = 1 − t and σ = t: the optimal-transport path between an example and its noise."""
    return 1 - t, t
