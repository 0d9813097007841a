"""The contract that every model follows, and the few helpers that every step needs.

A model is a frozen dataclass whose fields are hyperparameters and whose methods are pure functions.
Nothing is inherited: a class that has the members of `Model` is a model. What else it can do
(`sample`, `encode`, ...) it declares by having the method; `capabilities` reads that off.

Shapes: `[B, *shape]` is a batch of B examples. Images hold values in [0, 1].
Units: nats per example, unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

import jax
import numpy as np
import optax
import tyro
from jax.typing import ArrayLike

from gen.estimate import Estimate

Batch = Mapping[str, jax.Array]
"""`"x"`: [B, *shape]; where the data has them `"label"`: [B] and `"length"`: [B], of sequences."""

Data = Mapping[str, ArrayLike]
"""All examples of a split: a batch's arrays, [N, ...], on the host or on a device."""

Metrics = dict[str, jax.Array]
"""Scalars of one step, by name. `"loss"` is the training objective where there is only one."""

Shape = Annotated[tuple[int, ...], tyro.conf.Suppress]
"""The shape of one example: a field that is set from the data, so it is no command-line flag."""

Density = Literal["tractable", "approximate", "implicit", "none"]
"""A model's place in the taxonomy: p(x) explicit and tractable, explicit and approximated
(by a bound or by sampling), implicit (only samples), or not modelled at all."""

BIASES = ("b", "c", "bias", "visible", "hidden", "logvar", "biases")
"""Names of the parameters that weight decay leaves alone."""

State = TypeVar("State")
Tree = TypeVar("Tree")


class UserError(Exception):
    """An error that the user can mend: its text is one line, what is wrong, where, what to do."""


class Model(Protocol[State]):
    """What every model has. `State` is a NamedTuple of arrays, no array standing in it twice."""

    family: ClassVar[str]
    density: ClassVar[Density]

    @property
    def shape(self) -> tuple[int, ...]: ...

    def init(self, key: jax.Array) -> State:
        """The state before the first step."""
        ...

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """One training step. Under `pmap`, `axis_name` names the axis to average over."""
        ...

    def parameters(self, state: State) -> Any:
        """The arrays that training learns: what a count of parameters counts."""
        ...

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Estimates over all examples of `data`; a likelihood's headline is called `nll`."""
        ...


CAPABILITIES = {
    "begin": "begin(state, batch, key) -> the first state, from init's and training examples",
    "sample": "sample(state, key, n) -> [n, *shape], drawn from the model",
    "denoising": "denoising(state, key, n, frames) -> [frames + 1, n, *shape], samples from noise",
    "log_prob": "log_prob(state, batch) -> [B], exact, in nats (a bound never goes by this name)",
    "encode": "encode(state, batch) -> [B, latent]; of sequences, [B, T, latent]",
    "decode": "decode(state, z) -> [B, *shape]",
    "reconstruct": "reconstruct(state, batch) -> [B, *shape]",
    "complete": "complete(state, x, mask, key) -> x with what the mask hides filled in",
    "objective": "objective(state, batch, key) -> [B], what a step lowers: to validate by",
    "score": "score(state, batch) -> [B], higher is stranger",
    "filters": "filters(state) -> [H, *shape], the weights of each hidden unit",
    "layers": "layers(state) -> [(W, c), ...], sigmoid layers that encode: to start a classifier",
    "bracket": "bracket(state, key) -> log Z by annealed importance sampling, from both sides",
    "tables": "tables(state) -> what was learned, as matrices by name",
}
"""The optional methods of a model, by name, with what each returns."""


def capabilities(model: Any) -> tuple[str, ...]:
    """The names of the optional methods that `model` has, in the order of `CAPABILITIES`."""
    return tuple(name for name in CAPABILITIES if callable(getattr(model, name, None)))


def require(condition: bool, message: str) -> None:
    """Raises `UserError(message)` unless the condition holds: for a model's `__post_init__`."""
    if not condition:
        raise UserError(message)


def adam(
    learning_rate: float, decay_steps: int = 0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015) as the models take it.

    With `decay_steps` the step size falls to 0 over so many steps along half a cosine (Loshchilov &
    Hutter 2017, eq. 5, without restarts); with `weight_decay` the weights, not the biases,
    shrink, too, by that times the step size (decoupled; Loshchilov & Hutter 2019). Raises
    `UserError` if one is negative, or the learning rate 0.
    """
    rate = _rate(learning_rate, decay_steps, weight_decay)
    if not weight_decay:
        return optax.adam(rate)
    return optax.adamw(rate, weight_decay=weight_decay, mask=_weights)


def sgd(
    learning_rate: float, decay_steps: int = 0, momentum: float = 0.0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Gradient steps, by default plain; `decay_steps` and `weight_decay` as in `adam`, whose errors
    it has. With `momentum` m the step is along u ← m u + gradient."""
    require(0 <= momentum < 1, f"momentum is {momentum}, must be at least 0 and below 1")
    rate = _rate(learning_rate, decay_steps, weight_decay)
    shrink = [optax.add_decayed_weights(weight_decay, _weights)] if weight_decay else []
    trace = [optax.trace(momentum)] if momentum else []
    return optax.chain(*trace, *shrink, optax.scale_by_learning_rate(rate))


def _rate(learning_rate: float, decay_steps: int, weight_decay: float) -> optax.ScalarOrSchedule:
    require(learning_rate > 0, f"learning_rate is {learning_rate}, must be positive")
    require(decay_steps >= 0, f"decay_steps is {decay_steps}, must not be negative")
    require(weight_decay >= 0, f"weight_decay is {weight_decay}, must not be negative")
    return optax.cosine_decay_schedule(learning_rate, decay_steps) if decay_steps else learning_rate


def _weights(params: Any) -> Any:
    """Which leaves are weights: all but those that stand under one of the names BIASES."""

    def is_weight(path, _):
        names = [getattr(part, "key", getattr(part, "name", None)) for part in path]
        return not {name for name in names if isinstance(name, str)}.intersection(BIASES)

    return jax.tree_util.tree_map_with_path(is_weight, params)


def check_levels(data: Data, levels: int) -> None:
    """Raises `UserError` unless every x of `data` is one of `levels` equally spaced in [0, 1]."""
    level = np.asarray(data["x"], np.float64) * (levels - 1)
    nearest = np.clip(np.round(level), 0, levels - 1)
    if level.size and not np.abs(level - nearest).max() < 1e-3:
        raise UserError(
            f"the model has variables of {levels} levels in [0, 1], the data have other values: "
            "decode them, binarise them (--binarize) or take a model of other levels"
        )


def pmean(tree: Tree, axis_name: str | None) -> Tree:
    """The mean of every array over the replicas of `pmap`; without an axis, the tree itself."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def replica_key(key: jax.Array, axis_name: str | None) -> jax.Array:
    """A key of this replica's own: a replicated key would give all of them the same noise."""
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def descend(
    loss: Callable[[Any], tuple[jax.Array, Metrics]],
    optimizer: optax.GradientTransformation,
    params: Any,
    opt_state: optax.OptState,
    axis_name: str | None = None,
) -> tuple[Any, optax.OptState, Metrics]:
    """One step of `optimizer` down the gradient of `loss(params) -> (scalar, metrics)`.

    Gradients and metrics are averaged over the replicas. Returns the new parameters, the new
    optimiser state and the metrics (taken before the step).
    """
    gradient, metrics = jax.grad(loss, has_aux=True)(params)
    gradient, metrics = pmean((gradient, metrics), axis_name)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, metrics
