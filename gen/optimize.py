"""Optimisers as frozen values, and the gradient step in two functions.

A model's field `optimizer` is an `Optimizer`, whose fields are command-line flags, or an optax
transformation of the user's. A step is

    gradient, aux = optimize.gradient(loss, params, axis_name)
    params, opt_state = optimize.update(optimizer, gradient, opt_state, params)

so that a model whose gradient is not the gradient of a loss, such as a Boltzmann machine, uses the
second line alone.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from numbers import Real
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import optax

from gen.core import UserError, check_fields, pmean, require

NO_DECAY = ("b", "c", "bias", "biases", "visible", "hidden", "logvar", "scale", "pseudo_inputs")
"""Names of the parameters that weight decay leaves alone.

They are biases, variances, the scales of normalisation, and the pseudo-inputs of a VampPrior.
"""

Config = TypeVar("Config")
Aux = TypeVar("Aux")

ONLY_FOR = {
    "momentum": ("sgd",),
    "b1": ("adam",),
    "b2": ("adam",),
    "decay": ("rmsprop",),
    "eps": ("adam", "rmsprop"),
}
"""For each field, the kinds of optimiser that use it. All kinds use the other fields."""


RATES = ("learning_rate", "clip_norm", "weight_decay", "momentum", "eps")
"""Real fields whose value changes no shape and no structure of a compiled step, except for being 0.

`b1`, `b2` and `decay` are left out: 1 − b2 loses five digits if b2 is an array of 32 bits.
"""


@dataclass(frozen=True)
class Optimizer:
    """Adam, SGD or RMSProp with a learning-rate schedule, gradient clipping and weight decay.

    - `adam`: Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1.
    - `sgd`: θ ← θ − η u with u ← momentum · u + gradient.
    - `rmsprop`: θ ← θ − η g / (√v + ε) with v ← decay · v + (1 − decay) g² from v = 0 (Hinton's
      lecture). optax's default puts ε inside of the root.

    The learning rate η rises linearly from 0 over `warmup_steps`. Then it stays, or falls to 0
    along half a cosine (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5, without
    restarts). Weight decay is decoupled from the gradient: θ ← θ − η · weight_decay · θ, for
    weights and not for biases (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101).
    """

    kind: Literal["adam", "sgd", "rmsprop"] = "adam"
    """update rule"""
    learning_rate: float = 1e-3
    """step size, the largest of the schedule"""
    schedule: Literal["constant", "cosine"] = "constant"
    """course of the learning rate after the warm-up"""
    decay_steps: int | None = None
    """step at which the cosine schedule reaches 0 (default: the last step of the run)"""
    warmup_steps: int = 0
    """steps over which the learning rate rises linearly from 0"""
    clip_norm: float = 0.0
    """largest global norm of the gradient (0: no clipping)"""
    weight_decay: float = 0.0
    """decoupled weight decay, in units of the learning rate"""
    b1: float = 0.9
    """decay of the running mean of gradients (adam)"""
    b2: float = 0.999
    """decay of the running mean of squared gradients (adam)"""
    momentum: float = 0.0
    """momentum (sgd)"""
    decay: float = 0.9
    """decay of the running mean of squared gradients (rmsprop)"""
    eps: float = 1e-8
    """added to the root of the mean square (adam, rmsprop)"""

    def __post_init__(self):
        check_fields(
            self,
            positive=("learning_rate", "eps"),
            non_negative=("warmup_steps", "clip_norm", "weight_decay"),
            fraction=("b1", "b2", "momentum", "decay"),
        )
        for field in dataclasses.fields(self):
            kinds = ONLY_FOR.get(field.name, (self.kind,))
            unset = getattr(self, field.name) == field.default
            require(
                unset or self.kind in kinds,
                f"Optimizer: {field.name} has no meaning for {self.kind}, only for "
                f"{' and '.join(kinds)}",
            )
        if self.decay_steps is not None:
            require(
                self.schedule == "cosine",
                f"Optimizer: decay_steps is {self.decay_steps}, which needs the schedule cosine",
            )
            require(
                self.decay_steps > self.warmup_steps,
                f"Optimizer: decay_steps is {self.decay_steps}, must be above warmup_steps, "
                f"{self.warmup_steps}",
            )

    def transformation(self) -> optax.GradientTransformation:
        """Return the optax transformation.

        Raises:
          UserError: the schedule falls and its length is not known. `gen.train.fit` sets it.
        """
        rule = {
            "adam": optax.scale_by_adam(self.b1, self.b2, self.eps),
            "sgd": optax.trace(self.momentum) if _is_used(self.momentum) else optax.identity(),
            "rmsprop": optax.scale_by_rms(self.decay, self.eps, eps_in_sqrt=False),
        }[self.kind]
        parts = [rule]
        if _is_used(self.clip_norm):
            parts.insert(0, optax.clip_by_global_norm(self.clip_norm))
        if _is_used(self.weight_decay):
            parts.append(optax.add_decayed_weights(self.weight_decay, is_weight))
        return optax.chain(*parts, optax.scale_by_learning_rate(self._rate()))

    def _rate(self) -> optax.ScalarOrSchedule:
        """Return the learning rate as a function of the step, or as a number if it is constant."""
        if self.schedule == "constant" and not self.warmup_steps:
            return self.learning_rate
        if self.schedule == "constant":
            rate = optax.constant_schedule(self.learning_rate)
        elif self.decay_steps is None:
            raise UserError(
                "Optimizer: the cosine schedule has no length: set decay_steps to the number of "
                "training steps"
            )
        else:
            length = self.decay_steps - self.warmup_steps
            rate = optax.cosine_decay_schedule(self.learning_rate, length)
        if not self.warmup_steps:
            return rate
        rise = optax.linear_schedule(0.0, self.learning_rate, self.warmup_steps)
        return optax.join_schedules([rise, rate], [self.warmup_steps])


def _is_used(rate: Any) -> bool:
    """Return whether a rate is not 0. A traced array stands for rates none of which is 0."""
    return not isinstance(rate, Real) or rate != 0


AnyOptimizer = Optimizer | optax.GradientTransformation
"""The type of a model's field `optimizer`: the project's value, or any optax transformation."""


def transformation(optimizer: AnyOptimizer) -> optax.GradientTransformation:
    """Return the optax transformation of an optimiser."""
    return optimizer.transformation() if isinstance(optimizer, Optimizer) else optimizer


def init(optimizer: AnyOptimizer, params: Any) -> optax.OptState:
    """Return the optimiser's state before the first step, which no length of a schedule changes."""
    if isinstance(optimizer, Optimizer):
        optimizer = for_run(optimizer, optimizer.warmup_steps + 1)
    return transformation(optimizer).init(params)


def gradient(
    loss: Callable[[Any], tuple[jax.Array, Aux]], params: Any, axis_name: str | None = None
) -> tuple[Any, Aux]:
    """Return the gradient of a loss, averaged over the replicas.

    Args:
      loss: maps params to (a scalar, auxiliary arrays such as metrics and batch statistics).
      params: any tree of arrays.
      axis_name: the mapped axis to average over, under `pmap`.

    Returns:
      The gradient, shaped like params, and the auxiliary arrays, both averaged.
    """
    return pmean(jax.grad(loss, has_aux=True)(params), axis_name)


def update(
    optimizer: AnyOptimizer,
    gradient: Any,
    opt_state: optax.OptState,
    params: Any,
    rate: float = 1.0,
) -> tuple[Any, optax.OptState]:
    """Apply one step of an optimiser.

    Args:
      optimizer: the rule.
      gradient: the averaged gradient, shaped like params.
      opt_state: what `init` or an earlier call returned.
      params: the parameters before the step.
      rate: a factor of the step.

    Returns:
      The parameters and the optimiser's state after the step.
    """
    updates, opt_state = transformation(optimizer).update(gradient, opt_state, params)
    if rate != 1.0:
        updates = jax.tree.map(lambda update: rate * update, updates)
    return optax.apply_updates(params, updates), opt_state


def for_run(config: Config, steps: int) -> Config:
    """Return a model with `decay_steps` set to `steps` in each falling schedule that lacks it.

    Args:
      config: a model or a part of one; its optimisers are found in its fields, at any depth.
      steps: the number of training steps of the run.

    Raises:
      UserError: the warm-up of a falling schedule takes the whole run.
    """
    if isinstance(config, Optimizer):
        if config.schedule == "constant" or config.decay_steps is not None:
            return config
        require(
            config.warmup_steps < steps,
            f"Optimizer: warmup_steps is {config.warmup_steps} and the run has {steps} steps: take "
            "a shorter warm-up or a longer run",
        )
        return dataclasses.replace(config, decay_steps=steps)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    parts = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if dataclasses.is_dataclass(getattr(config, field.name))
    }
    changed = {name: for_run(part, steps) for name, part in parts.items()}
    changed = {name: part for name, part in changed.items() if part is not parts[name]}
    return dataclasses.replace(config, **changed) if changed else config


def rates(config: Any, prefix: str = "") -> dict[str, float]:
    """Return the fields RATES of every `Optimizer` of a model, by their path.

    Examples:
      >>> from gen.models.mixture import Mixture
      >>> rates(Mixture())["optimizer.learning_rate"]
      0.01

    Args:
      config: a model or a part of one; its optimisers are found in its fields, at any depth.
      prefix: the path of the part, with a dot.
    """
    if isinstance(config, Optimizer):
        return {f"{prefix}{name}": getattr(config, name) for name in RATES}
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return {}
    parts = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        path: rate
        for name, part in parts.items()
        for path, rate in rates(part, f"{prefix}{name}.").items()
    }


def with_rates(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a model with other rates, which may be traced arrays.

    Args:
      config: a model or a part of one.
      values: scalars by the paths that `rates` returns. Their ranges are not checked.
    """
    changed = copy.copy(config)
    for path, value in values.items():
        name, _, rest = path.partition(".")
        part = with_rates(getattr(changed, name), {rest: value}) if rest else value
        object.__setattr__(changed, name, part)  # `replace` would compare the traced value with 0
    return changed


def check_rates(config: Any, values: Mapping[str, Sequence[float]]) -> None:
    """Raise `UserError` unless a compiled step of a model can take these rates as arrays.

    Args:
      config: a model or a part of one.
      values: rates by the paths that `rates` returns.

    Raises:
      UserError: a path is no rate of the model, the kind of its optimiser does not use the rate, or
        a value is out of its range, or is 0 where the model's own is not or the other way round:
        the program of a rate of 0 leaves out a part.
    """
    own = rates(config)
    for path, given in values.items():
        if path not in own:
            has = f"has {', '.join(own)}" if own else "has none"
            raise UserError(f"{path} is no rate of {type(config).__name__}, which {has}")
        *parts, name = path.split(".")
        optimizer = reduce(getattr, parts, config)
        kinds = ONLY_FOR.get(name, (optimizer.kind,))
        require(
            optimizer.kind in kinds,
            f"{path} has no meaning for {optimizer.kind}, only for {' and '.join(kinds)}",
        )
        for value in np.ravel(given).tolist():
            dataclasses.replace(optimizer, **{name: value})  # checks the range
            require(
                (value == 0) == (own[path] == 0),
                f"{path} has the value {value} and the model {own[path]}: a rate of 0 and other "
                "rates are different programs, train them by separate calls",
            )


def is_weight(params: Any) -> Any:
    """Mark the leaves that weight decay shrinks: all but those whose last name is in NO_DECAY.

    A leaf `biases[0]` is named `biases`. The kernel of a layer named `logvar` is named `kernel`.
    """

    def marked(path, _):
        names = [getattr(part, "key", getattr(part, "name", None)) for part in path]
        names = [name for name in names if isinstance(name, str)]
        return not names or names[-1] not in NO_DECAY

    return jax.tree_util.tree_map_with_path(marked, params)
