"""Diffusion of binary and categorical variables.

Austin, Johnson, Ho, Tarlow & van den Berg (2021), "Structured denoising diffusion models in
discrete state-spaces" (D3PM); in continuous time Campbell et al. (2022).

Each variable has S states: its K levels, and where noise absorbs one more, the mask. Shapes: B
examples; `[B, *shape, S]` are probabilities of the states, or a state as one of them that is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

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
from gen.models.diffusion.common import (
    State,
    average,
    begin,
    one_by_one,
    spread_times,
    step_around,
    train,
)
from gen.models.diffusion.nets import ResidualMLP, UNet
from gen.models.diffusion.samplers import film
from gen.nets import apply

SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: 2 * jnp.sin(0.25 * math.pi * (1 - t)) ** 2,
}
"""α_t: the probability that a variable is untouched at time t, from 1 at t = 0 to 0 at t = 1; the
cosine's is 1 − sin ½πt (Chang et al. 2022, section 3.3)."""


@dataclass(frozen=True)
class DiscreteDiffusion:
    """A Markov chain turns x_0 into noise; its reverse is learned, p(x_0) = Σ p(x_1) Π p(x_s|x_t).

    Forward each variable alone keeps its value with probability α_t, else it is drawn from π:

        q(x_t | x_0) = α_t δ(x_t, x_0) + (1 − α_t) π(x_t),

    π being the mask (`absorbing`) or uniform over the levels. A net predicts p̂(x_0 | x_t) for each
    variable from all of x_t, and the reverse is (eq. 4)

        p(x_s | x_t) ∝ q(x_t | x_s) Σ_{x_0} q(x_s | x_0) p̂(x_0 | x_t).

    As q(x_t | x_s) stands there, too, the best p̂ of a variable is what the others' x_t say of it.

    Adam lowers the bound −log p(x_0) ≤ Σ_t E KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t)), whose last step
    is the reconstruction and whose prior term is 0, at one t for each example; with `timesteps` 0
    its limit of infinitely many steps (`continuous`). Absorbed, that is the mean over all orders of
    the variables of an autoregressive model's −log p (Hoogeboom et al. 2022).

    Deviations: the bound alone, without Austin et al.'s auxiliary cross-entropy; a variable that is
    not masked is predicted to be what it is, which changes nothing (Sahoo et al. 2024); evenly
    spread times (Kingma et al. 2021, appendix I.1).
    """

    family: ClassVar[str] = "diffusion"
    density: ClassVar[Density] = "approximate"

    net: UNet | ResidualMLP
    """the net that predicts x_0"""
    shape: Shape = (28, 28, 1)
    """shape of one example"""
    levels: int = 2
    """values that a variable can take"""
    noise: Literal["absorbing", "uniform"] = "absorbing"
    """what a variable turns into: the mask, or a level drawn uniformly"""
    schedule: Literal["linear", "cosine"] = "linear"
    """how the share of untouched variables falls with time"""
    timesteps: int = 0
    """steps of the chain whose bound is lowered (0: infinitely many)"""
    few: tuple[int, ...] = (100,)
    """`evaluate` gives the bound of the same net for so many steps, too"""
    sample_steps: int = 100
    """steps of a sample"""
    draws: int = 100
    """times at which `evaluate` takes the bound of an example"""
    ema_decay: float = 0.999
    """weight of the past in the running mean of the parameters, by which all is computed"""
    learning_rate: float = 1e-3
    """step size of Adam"""
    decay_steps: int = 0
    """let the step size fall to 0 over so many steps, along a cosine (0: constant)"""

    def __post_init__(self):
        require(self.levels > 1, f"DiscreteDiffusion: levels is {self.levels}, must be 2 or more")
        require(self.timesteps >= 0, f"DiscreteDiffusion: timesteps is {self.timesteps}, not ≥ 0")
        counts = (self.sample_steps, self.draws, *self.few)
        require(
            min(counts) > 0,
            f"DiscreteDiffusion: sample_steps {self.sample_steps}, draws {self.draws}, "
            f"few {self.few}: must be positive",
        )
        require(
            0 <= self.ema_decay < 1,
            f"DiscreteDiffusion: ema_decay is {self.ema_decay}, must be at least 0 and below 1",
        )

    def init(self, key: jax.Array) -> State:
        x = self._inputs(jnp.zeros((1, *self.shape, self.states)))
        params = self._net.init(key, x, jnp.zeros(1), None)
        return begin(params, self._optimizer)

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """One Adam step on the bound, logged as `loss`, then one of the running mean."""
        key = replica_key(key, axis_name)

        def loss(params):
            value = self._objective(params, batch["x"], key).mean()
            return value, {"loss": value}

        return train(loss, self._optimizer, self.ema_decay, state, axis_name)

    def parameters(self, state: State) -> Any:
        """Of the net."""
        return state.params

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """The bound at one time for each example, [B] nats."""
        return self._objective(state.ema, batch["x"], key)

    def bound(
        self, state: State, batch: Batch, key: jax.Array, timesteps: int, draws: int
    ) -> jax.Array:
        """The bound on −log p(x) of a chain of so many steps (0: infinitely many), [B] nats, from
        `draws` noisy copies of each example, at times spread evenly: as many as steps visit each
        step once."""
        x_0 = self._one_hot(batch["x"])

        def at(t, key):
            return self._term(state.ema, x_0, t, key, timesteps)

        return average(at, key, len(x_0), draws)

    def score(self, state: State, batch: Batch) -> jax.Array:
        """The bound by `draws` noisy copies, [B] nats. Their noise comes from one fixed key, so
        the same example always has the same score."""
        key = jax.random.key(0)
        return one_by_one(
            lambda one: self.bound(state, one, key, self.timesteps, self.draws), batch
        )

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """The bound on −log p(x) as `nll`, and as `nll_T` for each T of `few`, of a chain of T
        steps with the same net; on more than two levels the first in bits per variable, too.

        Raises `UserError` if values of x lie between the levels.
        """
        check_levels(data, self.levels)
        estimates = {}
        for timesteps in (self.timesteps, *self.few):
            nll = estimate.per_example(
                lambda batch, row_key, steps=timesteps: self.bound(
                    state, batch, row_key, steps, self.draws
                ),
                data,
                key,
            )
            settings = {"timesteps": timesteps or "infinite", "draws": self.draws}
            name = f"nll_{timesteps}" if estimates else "nll"
            estimates[name] = estimate.mean(nll, "upper bound", **settings)
        if self.levels > 2:
            bits = estimate.in_bits(estimates["nll"], math.prod(self.shape))
            estimates["bits_per_dim"] = bits
        return estimates

    def sample(self, state: State, key: jax.Array, n: int) -> jax.Array:
        """Ancestral sampling in `sample_steps` steps, [n, *shape]."""
        return self.denoising(state, key, n, 1)[-1]

    def denoising(self, state: State, key: jax.Array, n: int, frames: int) -> jax.Array:
        """Samples on their way from noise, [frames + 1, n, *shape]; what is masked is ½."""
        start_key, key = jax.random.split(key)

        def step(i, carry):
            return self._move(state.ema, key, i, carry[0]), carry[1]

        return self._values(film(step, self._noise(start_key, n), self.sample_steps, frames))

    def complete(self, state: State, x: jax.Array, mask: jax.Array, key: jax.Array) -> jax.Array:
        """x [B, *shape], with what `mask` (1: shown) hides sampled while the rest is held: at its
        values where noise absorbs, so that these are draws of the net's p(hidden | shown), else at
        fresh noisy copies of them, by which it is approximate (Lugmayr et al. 2022)."""
        shown = jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
        x_0 = self._one_hot(x)
        start_key, move_key, copy_key = jax.random.split(key, 3)

        def hold(i, drawn):
            if self.noise == "absorbing":
                return jnp.where(shown[..., None], x_0, drawn)
            t = jnp.broadcast_to(1 - i / self.sample_steps, len(x))
            copies = self._corrupt(x_0, t, jax.random.fold_in(copy_key, i))
            return jnp.where(shown[..., None], copies, drawn)

        def move(i, drawn):
            return hold(i + 1, self._move(state.ema, move_key, i, drawn))

        start = hold(0, self._noise(start_key, len(x)))
        drawn = jax.lax.fori_loop(0, self.sample_steps, move, start)
        return jnp.where(shown, x, self._values(drawn))

    def corrupt(self, x: jax.Array, t: jax.Array, key: jax.Array) -> jax.Array:
        """A draw of q(x_t | x_0) for x_0 = x [B, *shape] at t [B], as states [B, *shape, S]."""
        return self._corrupt(self._one_hot(x), t, key)

    def predict(self, params: Any, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """p̂(x_0 | x_t) [B, *shape, S] from states x_t [B, *shape, S] at t [B]."""
        logits = apply(self._net, params, self._inputs(x_t), t, None)
        p = jax.nn.softmax(logits.reshape(*x_t.shape[:-1], self.levels))
        if self.noise == "uniform":
            return p
        p = jnp.concatenate([p, jnp.zeros_like(p[..., :1])], axis=-1)
        return jnp.where(x_t[..., -1:] == 1, p, x_t)

    @property
    def states(self) -> int:
        """S: the levels, and the mask if there is one."""
        return self.levels + (self.noise == "absorbing")

    @property
    def pi(self) -> jax.Array:
        """The law of noise over the states, [S]."""
        if self.noise == "uniform":
            return jnp.full(self.levels, 1 / self.levels)
        return jnp.zeros(self.states).at[-1].set(1)

    @property
    def _net(self) -> Any:
        image = len(self.shape) == 3
        return self.net.module(self.levels * (self.shape[-1] if image else 1), 0)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, self.decay_steps)

    def _inputs(self, x: jax.Array) -> jax.Array:
        """States as the net takes them: of images the channels, [B, H, W, C·S]."""
        return x.reshape(*x.shape[:3], -1) if len(self.shape) == 3 else x

    def _one_hot(self, x: jax.Array) -> jax.Array:
        """Values in [0, 1] as states."""
        level = jnp.round(x * (self.levels - 1)).astype(jnp.int32)
        return jax.nn.one_hot(level, self.states)

    def _values(self, x: jax.Array) -> jax.Array:
        """States as values in [0, 1], the mask ½: [B, *shape]."""
        values = jnp.append(jnp.arange(self.levels) / (self.levels - 1), 0.5)
        return (x * values[: self.states].reshape([1] * (x.ndim - 1) + [-1])).sum(-1)

    def _noise(self, key: jax.Array, n: int) -> jax.Array:
        """n draws of π for every variable."""
        state = jax.random.categorical(key, jnp.log(self.pi), shape=(n, *self.shape))
        return jax.nn.one_hot(state, self.states)

    def _alpha(self, t: jax.Array) -> jax.Array:
        """α_t, with an axis for each of a state's."""
        return SCHEDULES[self.schedule](t).reshape(-1, *[1] * len(self.shape), 1)

    def _chance(self, x_t: jax.Array) -> jax.Array:
        """π(x_t) of states x_t, [B, *shape]."""
        return (x_t * self.pi.reshape([1] * (x_t.ndim - 1) + [-1])).sum(-1)

    def _marginal(self, x_0: jax.Array, alpha: jax.Array) -> jax.Array:
        """q(x_t | x_0), or its mean over probabilities of x_0, where α_t is alpha."""
        return alpha * x_0 + (1 - alpha) * self.pi.reshape([1] * (x_0.ndim - 1) + [-1])

    def _corrupt(self, x_0: jax.Array, t: jax.Array, key: jax.Array) -> jax.Array:
        return draw(key, self._marginal(x_0, self._alpha(t)))

    def _reverse(self, x_t: jax.Array, x_0: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
        """q(x_s | x_t, x_0) for a state x_0; for probabilities of it p(x_s | x_t), eq. 4."""
        alpha_s, alpha_t = self._alpha(s), self._alpha(t)
        kept = alpha_t / alpha_s
        joint = kept * x_t + (1 - kept) * self._chance(x_t)[..., None]  # q(x_t | x_s), of every x_s
        joint *= self._marginal(x_0, alpha_s)
        return joint / joint.sum(-1, keepdims=True)

    def _move(self, params: Any, key: jax.Array, i: Any, x_t: jax.Array) -> jax.Array:
        """Step i of `sample_steps`: a draw of p(x_s | x_t)."""
        t = jnp.broadcast_to(1 - i / self.sample_steps, len(x_t))
        s = jnp.broadcast_to(1 - (i + 1) / self.sample_steps, len(x_t))
        p = self._reverse(x_t, self.predict(params, x_t, t), s, t)
        return draw(jax.random.fold_in(key, i), p)

    def _objective(self, params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        times_key, key = jax.random.split(key)
        t = spread_times(times_key, len(x))
        return self._term(params, self._one_hot(x), t, key, self.timesteps)

    def _term(
        self, params: Any, x_0: jax.Array, t: jax.Array, key: jax.Array, timesteps: int
    ) -> jax.Array:
        """What of the bound falls to t ~ U(0, 1), [B] nats: T KL(q(x_s|x_t, x_0) ‖ p(x_s|x_t)) at
        the step of T that t is in, or the limit of that."""
        if timesteps:
            s, t = step_around(t, timesteps)
            x_t = self._corrupt(x_0, t, key)
            q, p = (self._reverse(x_t, x, s, t) for x in (x_0, self.predict(params, x_t, t)))
            kl = jax.scipy.special.xlogy(q, q) - jax.scipy.special.xlogy(q, jnp.maximum(p, TINY))
            return timesteps * kl.reshape(len(t), -1).sum(1)
        x_t = self._corrupt(x_0, t, key)
        return self._continuous(x_t, x_0, self.predict(params, x_t, t), t)

    def _continuous(self, x_t: jax.Array, x_0: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
        """The limit of `_term` for T → ∞.

        The chain leaves its state at the rate β = −α'/α for a draw of π. Backward it goes from x_t
        to y at the rate β π(x_t) ρ(y), with ρ(y) = q_t(y | x_0) / q_t(x_t | x_0), in the model with
        ρ̂(y) where p̂ takes the place of x_0; and the KL of two such processes is, per time,

            β π(x_t) Σ_{y ≠ x_t} ρ log(ρ / ρ̂) − ρ + ρ̂.
        """
        alpha = self._alpha(t)
        _, slope = jax.jvp(SCHEDULES[self.schedule], (t,), (jnp.ones_like(t),))

        def ratios(x):
            marginal = self._marginal(x, alpha)
            return marginal / (marginal * x_t).sum(-1, keepdims=True)

        true, model = ratios(x_0), ratios(p)
        log_model = jnp.log(jnp.maximum(model, TINY))
        kl = jax.scipy.special.xlogy(true, true) - true * log_model - true + model
        rates = jnp.where(x_t == 1, 0.0, kl).sum(-1)
        rate = -slope / SCHEDULES[self.schedule](t)
        each = rates * self._chance(x_t)
        return rate * each.reshape(len(t), -1).sum(1)


TINY = 1e-30
"""The least probability that a logarithm is taken of."""


def draw(key: jax.Array, p: jax.Array) -> jax.Array:
    """Draws of states [...] with probabilities p [..., S], as one of S that is 1."""
    cumulative = jnp.cumsum(p, axis=-1)
    u = (
        jax.random.uniform(key, p.shape[:-1]) * cumulative[..., -1]
    )  # which may round to less than 1
    return jax.nn.one_hot((u[..., None] >= cumulative[..., :-1]).sum(-1), p.shape[-1])
