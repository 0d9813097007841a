"""Diffusion of binary and categorical variables.

Austin, Johnson, Ho, Tarlow & van den Berg 2021, "Structured denoising diffusion models in discrete
state-spaces" (D3PM), https://arxiv.org/abs/2107.03006; in continuous time Campbell et al. 2022,
https://arxiv.org/abs/2205.14987.

Each variable has S states: its K levels, and the mask if the noise is absorbing. Arrays
[B, *shape, S] are probabilities of the states, or states in one-hot form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.scipy.special import xlogy

from gen import estimate, nets
from gen.core import Batch, Data, Density, Metrics, Shape, check_fields, replica_key, require
from gen.distributions import invert_cdf
from gen.estimate import Estimate
from gen.levels import check_levels, to_floats, to_index, to_value
from gen.models.diffusion.common import (
    NOISE_TIMES,
    State,
    add_axes,
    init_state,
    spread_times,
    step_around,
    stratified_times,
    train_step,
)
from gen.models.diffusion.nets import UNet
from gen.models.diffusion.samplers import record
from gen.optimize import AnyOptimizer, Optimizer

SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: 2 * jnp.sin(0.25 * math.pi * (1 - t)) ** 2,
}
"""α_t, the probability that a variable is unchanged at time t, from 1 at t = 0 to 0 at t = 1. The
cosine schedule is 1 − sin ½πt (Chang et al. 2022, https://arxiv.org/abs/2202.04200, section 3.3).
"""

MIN_PROBABILITY = 1e-30
"""The smallest probability of which a logarithm is taken."""


@dataclass(frozen=True)
class DiscreteDiffusion:
    """A Markov chain turns x_0 into noise, and a model of its reverse generates.

    p(x_0) = Σ p(x_1) Π p(x_s|x_t). In the forward chain each variable on its own keeps its value
    with probability α_t and is drawn from π otherwise:

        q(x_t|x_0) = α_t δ(x_t, x_0) + (1 − α_t) π(x_t),

    where π is the mask (`absorbing`) or uniform over the levels. A network predicts p̂(x_0|x_t) for
    each variable from all of x_t, and the reverse is (Austin et al. 2021, eq. 4)

        p(x_s|x_t) ∝ q(x_t|x_s) Σ_{x_0} q(x_s|x_0) p̂(x_0|x_t).

    The factor q(x_t|x_s) already accounts for the variable's own x_t, so the optimal p̂ of a
    variable depends on the other variables of x_t alone.

    The optimiser minimises the bound

        −log p(x_0) ≤ Σ_t E KL(q(x_s|x_t, x_0) ‖ p(x_s|x_t)),

    whose last step is the reconstruction and whose prior term is 0, at one t for each example. With
    `timesteps` 0 it is the limit of infinitely many steps. With absorbing noise this limit is the
    mean over all orders of the variables of −log p of an autoregressive model (Hoogeboom et al.
    2022, https://arxiv.org/abs/2110.02037).

    Evaluation and sampling use the moving average of the parameters.

    Deviations from Austin et al. 2021:

    - The loss is the bound alone, without the auxiliary cross-entropy.
    - A variable that is not masked is predicted to keep its value, which changes nothing (Sahoo et
      al. 2024, https://arxiv.org/abs/2406.07524).
    - The times of a batch are stratified, one in each B-th part of [0, 1), and shuffled (Kingma et
      al. 2021, https://arxiv.org/abs/2107.00630, appendix I.1).
    """

    family: ClassVar[str] = "diffusion"
    density: ClassVar[Density] = "approximate"
    noise_times: ClassVar[tuple[float, ...]] = NOISE_TIMES

    net: nn.Module = UNet()
    """network of a noisy example and its time, which predicts logits of x_0"""
    shape: Shape = (28, 28, 1)
    """shape of one example"""
    levels: int = 2
    """number of values that a variable can take"""
    noise: Literal["absorbing", "uniform"] = "absorbing"
    """law of a noisy variable: the mask, or a level drawn uniformly"""
    schedule: Literal["linear", "cosine"] = "linear"
    """course of the probability that a variable is unchanged"""
    timesteps: int = 0
    """steps of the chain whose bound is minimised (0: continuous time)"""
    report_timesteps: tuple[int, ...] = (100,)
    """numbers of steps for which evaluation also gives the bound of the same network"""
    sample_steps: int = 100
    """steps of a sample"""
    time_draws: int = 100
    """times for each example at which evaluation takes the bound"""
    ema_decay: float = 0.999
    """weight of the past in the moving average of the parameters"""
    optimizer: AnyOptimizer = Optimizer("adam", learning_rate=1e-3)
    """optimiser"""

    def __post_init__(self):
        check_fields(
            self,
            positive=("report_timesteps", "sample_steps", "time_draws"),
            non_negative=("timesteps",),
            fraction=("ema_decay",),
        )
        require(self.levels > 1, f"DiscreteDiffusion: levels is {self.levels}, must be 2 or more")

    def init(self, key: jax.Array) -> State:
        x = self._inputs(jnp.zeros((1, *self.shape, self.states)))
        params, stats = nets.init(self._net, key, x, jnp.zeros(1), None)
        out, _ = nets.apply(self._net, params, stats, x, jnp.zeros(1), None)
        nets.check_output(self._net, out, (*self.shape, self.levels))
        return init_state(params, stats, self.optimizer)

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one optimiser step on the bound, logged as `loss`. The moving average follows."""
        key = replica_key(key, axis_name)

        def loss(params):
            value, stats = self._loss(params, state.stats, batch["x"], key, train=True)
            return value.mean(), ({"loss": value.mean()}, stats)

        return train_step(loss, state, self.optimizer, self.ema_decay, axis_name)

    def parameters(self, state: State) -> Any:
        """Return the parameters of the network."""
        return state.params

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the bound's integrand at one time for each example, [B] nats."""
        return self._loss(state.ema, state.stats, batch["x"], key)[0]

    def score(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the bound on −log p(x), [B] nats."""
        return self.bound(state, batch, key)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return the bound on −log p(x) as `nll`.

        `nll_T` for each T of `report_timesteps` is the bound of a chain of T steps with the same
        network. If x has more than two levels, `bits_per_dim` is `nll` in bits per variable.
        """
        check_levels(data, self.levels)

        def nll(timesteps):
            bound = partial(self.bound, state, timesteps=timesteps)
            settings = {"timesteps": timesteps or "infinite", "time_draws": self.time_draws}
            return estimate.mean(estimate.per_example(bound, data, key), "upper bound", **settings)

        results = {"nll": nll(self.timesteps)}
        results |= {f"nll_{timesteps}": nll(timesteps) for timesteps in self.report_timesteps}
        if self.levels > 2:
            results["bits_per_dim"] = estimate.in_bits(results["nll"], math.prod(self.shape))
        return results

    def bound(
        self, state: State, batch: Batch, key: jax.Array, timesteps: int | None = None
    ) -> jax.Array:
        """Return the bound on −log p(x), [B] nats.

        Args:
          state: a state of the model.
          batch: `"x"` [B, *shape].
          key: the source of the times and the noise.
          timesteps: steps T of the chain, 0 for continuous time, None for the model's own number.
        """
        timesteps = self.timesteps if timesteps is None else timesteps
        x_0 = self._one_hot(batch["x"])

        def at(draw):
            t, noise_key = draw
            keys = noise_key, None
            return self._integrand(state.ema, state.stats, x_0, t, keys, timesteps)[0]

        draws = stratified_times(key, self.time_draws, len(x_0))
        return jax.lax.map(at, draws).mean(0)

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Draw samples by ancestral sampling in `sample_steps` steps, [n, *shape]."""
        return self._frames(state, key, n, 1, self.sample_steps)[-1]

    def sample_in(self, state: State, key: jax.Array, n: int, steps: int) -> jax.Array:
        """Draw samples by ancestral sampling from the start that `sample` has, [n, *shape].

        Args:
          steps: the number of steps.
        """
        return self._frames(state, key, n, 1, steps)[-1]

    def denoising(self, state: State, key: jax.Array, n: int, frames: int) -> jax.Array:
        """Return the course of `sample`, with masks as ½: [frames + 1, n, *shape].

        Args:
          frames: the number of equal parts of the course.
        """
        return self._frames(state, key, n, frames, self.sample_steps)

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """Draw the hidden variables of x [B, *shape] while the shown variables are held.

        With absorbing noise they are held at their values, and the draws are from p(hidden | shown)
        of the network. With uniform noise they are held at fresh noisy copies of their values, and
        the draws are approximate (Lugmayr et al. 2022, https://arxiv.org/abs/2201.09865).
        """
        shown = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        x_0 = self._one_hot(x)
        start_key, move_key, copy_key = jax.random.split(key, 3)
        steps = self.sample_steps

        def hold(i, drawn):
            if self.noise == "absorbing":
                return jnp.where(shown[..., None], x_0, drawn)
            t = jnp.broadcast_to(1 - i / steps, len(x))
            copies = self._corrupt(x_0, t, jax.random.fold_in(copy_key, i))
            return jnp.where(shown[..., None], copies, drawn)

        def move(i, drawn):
            return hold(i + 1, self._move(state, move_key, i, steps, drawn))

        start = hold(0, self._noise(start_key, len(x)))
        drawn = jax.lax.fori_loop(0, steps, move, start)
        return jnp.where(shown, to_floats(x, self.levels), self._values(drawn))

    def layers(self, state: State, batch: Batch, t: jax.Array | float = 0.1) -> list[jax.Array]:
        """Return the activations of the network's hidden layers, [B, ...] each.

        The network is given the probabilities q(x_t|x) of the states, and not states drawn from
        them, so that the features of an example do not vary.

        Args:
          t: the time of the noise, in [0, 1].
        """
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), len(batch["x"]))
        inputs = self._inputs(self._marginal(self._one_hot(batch["x"]), t)), t, None
        return nets.layers(self._net, {"params": state.ema, **state.stats}, *inputs)

    @property
    def states(self) -> int:
        """The number S of states of a variable: its levels, and the mask if there is one."""
        return self.levels + (self.noise == "absorbing")

    @property
    def pi(self) -> jax.Array:
        """The law π of noise over the states, [S]."""
        if self.noise == "uniform":
            return jnp.full(self.levels, 1 / self.levels)
        return jnp.zeros(self.states).at[-1].set(1)

    @property
    def _net(self) -> nn.Module:
        *rest, last = self.shape
        out = (*rest, self.levels * last) if len(self.shape) == 3 else (*self.shape, self.levels)
        return nets.fitted(self.net, out=out)

    def _inputs(self, x: jax.Array) -> jax.Array:
        """Return states as the network's input; for images as channels, [B, H, W, C·S]."""
        return x.reshape(*x.shape[:3], -1) if len(self.shape) == 3 else x

    def _one_hot(self, x: jax.Array) -> jax.Array:
        """Return values in [0, 1] as states, [B, *shape, S]."""
        return jax.nn.one_hot(to_index(x, self.levels), self.states)

    def _values(self, x: jax.Array) -> jax.Array:
        """Return states as values in [0, 1], the mask as ½, [..., *shape]."""
        values = jnp.append(to_value(jnp.arange(self.levels), self.levels), 0.5)[: self.states]
        return (x * values.reshape([1] * (x.ndim - 1) + [-1])).sum(-1)

    def _loss(
        self, params: Any, stats: Any, x: jax.Array, key: jax.Array, train: bool = False
    ) -> tuple[jax.Array, Any]:
        """Return the bound's integrand at one t for each example, and the network's statistics."""
        times_key, *keys = jax.random.split(key, 3)
        t = spread_times(times_key, len(x))
        x_0 = self._one_hot(x)
        return self._integrand(params, stats, x_0, t, keys, self.timesteps, train)

    def _integrand(
        self,
        params: Any,
        stats: Any,
        x_0: jax.Array,
        t: jax.Array,
        keys: Sequence[Any],
        timesteps: int,
        train: bool = False,
    ) -> tuple[jax.Array, Any]:
        """Return the integrand of the bound at t, whose mean over t ~ U(0, 1) is the bound.

        Args:
          params: the parameters.
          stats: the network's statistics.
          x_0: examples as states, [B, *shape, S].
          t: times in [0, 1), [B]. With finitely many steps, each stands for the step around it.
          keys: the keys of x_t and of the network's dropout.
          timesteps: steps T of the chain, 0 for continuous time.
          train: whether the network is in training mode.

        Returns:
          The integrand, [B] nats, and the network's statistics after the call.
        """
        noise_key, net_key = keys
        s, t = step_around(t, timesteps) if timesteps else (t, t)

        # 1. A noisy copy x_t ~ q(x_t|x_0), and the network's p̂(x_0|x_t).
        x_t = self._corrupt(x_0, t, noise_key)
        p_0, stats = self._predict(params, stats, x_t, t, train, net_key)

        # 2. With T steps: T KL(q(x_s|x_t, x_0) ‖ p(x_s|x_t)) for the step from t to s = t − 1/T.
        if timesteps:
            q, p = (self._reverse(x_t, law, s, t) for law in (x_0, p_0))
            kl = xlogy(q, q) - xlogy(q, jnp.maximum(p, MIN_PROBABILITY))
            return timesteps * kl.reshape(len(t), -1).sum(1), stats

        # 3. The limit for T → ∞. The chain leaves its state at the rate β = −α'/α for a draw of π.
        #    Backward it goes from x_t to y at the rate β π(x_t) ρ(y), with
        #    ρ(y) = q(x_t = y|x_0) / q(x_t|x_0), and in the model at the rate β π(x_t) ρ̂(y), where
        #    p̂ takes the place of x_0. The KL of these two processes is, for each unit of time,
        #    β π(x_t) Σ_{y ≠ x_t} ρ log(ρ / ρ̂) − ρ + ρ̂.
        alpha = SCHEDULES[self.schedule]
        slope = jax.jvp(alpha, (t,), (jnp.ones_like(t),))[1]
        marginals = (self._marginal(law, t) for law in (x_0, p_0))
        rho, rho_hat = (m / (m * x_t).sum(-1, keepdims=True) for m in marginals)
        log_rho_hat = jnp.log(jnp.maximum(rho_hat, MIN_PROBABILITY))
        each = xlogy(rho, rho) - rho * log_rho_hat - rho + rho_hat
        kl = jnp.where(x_t == 1, 0.0, each).sum(-1) * self._pi_of(x_t)
        return -slope / alpha(t) * kl.reshape(len(t), -1).sum(1), stats

    def _predict(
        self,
        params: Any,
        stats: Any,
        x_t: jax.Array,
        t: jax.Array,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return p̂(x_0|x_t) [B, *shape, S] at times t [B], and the network's statistics."""
        inputs = self._inputs(x_t), t, None
        logits, stats = nets.apply(self._net, params, stats, *inputs, train=train, key=key)
        p = jax.nn.softmax(logits.reshape(*x_t.shape[:-1], self.levels))
        if self.noise == "absorbing":  # never the mask; and what is not masked keeps its value
            p = jnp.concatenate([p, jnp.zeros_like(p[..., :1])], axis=-1)
            p = jnp.where(x_t[..., -1:] == 1, p, x_t)
        return p, stats

    def _alpha(self, t: jax.Array) -> jax.Array:
        """Return α_t at times [B], [B, 1, …, 1]."""
        return add_axes(SCHEDULES[self.schedule](t), (*self.shape, self.states))

    def _pi_like(self, x: jax.Array) -> jax.Array:
        """Return π with as many axes as x has, [1, …, S]."""
        return self.pi.reshape([1] * (x.ndim - 1) + [-1])

    def _pi_of(self, x_t: jax.Array) -> jax.Array:
        """Return π(x_t) for states x_t, [B, *shape]."""
        return (x_t * self._pi_like(x_t)).sum(-1)

    def _noise(self, key: jax.Array, n: int) -> jax.Array:
        """Draw every variable of n examples from π, [n, *shape, S]."""
        state = jax.random.categorical(key, jnp.log(self.pi), shape=(n, *self.shape))
        return jax.nn.one_hot(state, self.states)

    def _marginal(self, x_0: jax.Array, t: jax.Array) -> jax.Array:
        """Return q(x_t|x_0) at times t [B], or its mean if x_0 are probabilities."""
        alpha = self._alpha(t)
        return alpha * x_0 + (1 - alpha) * self._pi_like(x_0)

    def _corrupt(self, x_0: jax.Array, t: jax.Array, key: jax.Array) -> jax.Array:
        """Draw x_t ~ q(x_t|x_0) at times t [B], [B, *shape, S]."""
        return draw(key, self._marginal(x_0, t))

    def _reverse(self, x_t: jax.Array, x_0: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
        """Return q(x_s|x_t, x_0) for states x_0, and p(x_s|x_t) for probabilities of x_0 (eq. 4).

        Args:
          x_t: states, [B, *shape, S].
          x_0: states or probabilities, [B, *shape, S].
          s: the earlier times, [B].
          t: the later times, [B].

        Returns:
          Probabilities of x_s, [B, *shape, S].
        """
        kept = self._alpha(t) / self._alpha(s)
        joint = kept * x_t + (1 - kept) * self._pi_of(x_t)[..., None]  # q(x_t|x_s) for every x_s
        joint *= self._marginal(x_0, s)
        return joint / joint.sum(-1, keepdims=True)

    def _move(self, state: State, key: jax.Array, i: Any, steps: int, x_t: jax.Array) -> jax.Array:
        """Draw x_s ~ p(x_s|x_t) for step i of `steps`, [B, *shape, S]."""
        t = jnp.broadcast_to(1 - i / steps, len(x_t))
        s = jnp.broadcast_to(1 - (i + 1) / steps, len(x_t))
        p_0, _ = self._predict(state.ema, state.stats, x_t, t)
        return draw(jax.random.fold_in(key, i), self._reverse(x_t, p_0, s, t))

    def _frames(self, state: State, key: jax.Array, n: int, frames: int, steps: int) -> jax.Array:
        """Return the course of n samples from noise to data, [frames + 1, n, *shape]."""
        start_key, key = jax.random.split(key)

        def step(i, carry):
            x_t, memory = carry
            return self._move(state, key, i, steps, x_t), memory

        return self._values(record(step, self._noise(start_key, n), steps, frames))


def draw(key: jax.Array, p: jax.Array) -> jax.Array:
    """Draw states with probabilities p [..., S], in one-hot form."""
    return jax.nn.one_hot(invert_cdf(p, jax.random.uniform(key, p.shape[:-1])), p.shape[-1])
