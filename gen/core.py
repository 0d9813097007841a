"""The contract that every model follows, and the facts that callers may ask a model for.

A model is a frozen dataclass. Its fields are hyperparameters, its methods are pure functions, and
it inherits from nothing: a class that has the members of `Model` is a model. A model declares an
optional ability (`sample`, `encode`, ...) by having the method. `capabilities` lists these methods,
and `facts` returns the properties that change how a caller treats the model.

Shapes: `[B, *shape]` is a batch of B examples. Units: nats per example, unless a name says
otherwise.

Examples:
  >>> from gen.models.mixture import Mixture
  >>> model = Mixture(shape=(4,), components=3)
  >>> "log_prob" in capabilities(model), facts(model).levels
  (True, 2)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    TypeVar,
)

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn
from jax.core import Tracer
from jax.typing import ArrayLike

if TYPE_CHECKING:
    from gen.estimate import Estimate

Batch = Mapping[str, jax.Array]
"""`"x"`: [B, *shape]. Labelled data add `"label"`: [B], padded sequences add `"length"`: [B]."""

Data = Mapping[str, ArrayLike]
"""All examples of a split: the arrays of a batch, [N, ...], on the host or on a device."""

Metrics = dict[str, jax.Array]
"""Scalars of one step, by name. `"loss"` is the training objective where there is only one."""

Shape = Annotated[tuple[int, ...], tyro.conf.Suppress]
"""The shape of one example. The data set determines it, so it is not a command-line flag."""

Density = Literal["tractable", "approximate", "implicit", "none"]
"""A model's place in the taxonomy: p(x) is explicit and tractable, explicit and approximated by a
bound or by sampling, implicit (the model only samples), or not modelled."""

State = TypeVar("State")
Tree = TypeVar("Tree")


class UserError(Exception):
    """An error that the user can correct. One line says what is wrong, where, and what to do."""


class Model(Protocol[State]):
    """The members that every model has.

    `State` is a NamedTuple of arrays. It holds no array twice, and no random key.
    """

    family: ClassVar[str]
    """Name of the model's family, such as `"VAE"`."""

    density: ClassVar[Density]
    """The model's place in the taxonomy."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        ...

    def init(self, key: jax.Array) -> State:
        """Return the state before the first step."""
        ...

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one training step.

        Args:
          state: what `init` or an earlier step returned.
          batch: `"x"` [B, *shape], and `"label"` or `"length"` where the data have them.
          key: the source of every draw of this step.
          axis_name: the mapped axis to average gradients and statistics over, under `pmap`.

        Returns:
          The next state and scalar metrics. A loss is taken before the parameters move.
        """
        ...

    def parameters(self, state: State) -> Any:
        """Return the arrays that training learns; a parameter count counts these."""
        ...

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return the estimates that judge a trained model.

        Call it through `gen.estimate.evaluate`, which first checks that a density is given
        continuous data.

        Args:
          state: a trained state.
          data: all examples of a split, decoded.
          key: the source of every draw; the result does not depend on training keys.

        Returns:
          Estimates by name. A likelihood in nats per example, or a bound on it, is called `nll`.

        Raises:
          UserError: the values of x are not of the kind that the likelihood is for.
        """
        ...


CAPABILITIES = {
    "begin": "begin(state, batch, key) -> the first state, from init's state and training examples",
    "sample": "sample(state, key, n) -> [n, *shape]; a model with classes also takes label=None",
    "sample_in": "sample_in(state, key, n, steps) -> [n, *shape], in another number of steps",
    "denoising": "denoising(state, key, n, frames) -> [frames + 1, n, *shape], from noise to data",
    "chains": "chains(state, key, n, sweeps) -> [n, *shape], chains after that many Gibbs sweeps",
    "log_prob": "log_prob(state, batch) -> [B], exact, in nats (a bound never has this name)",
    "log_conditionals": "log_conditionals(state, batch) -> [B, ...], log p of each variable or of "
    "each step of a sequence, given the ones before it; they sum to log_prob",
    "free_energy": "free_energy(state, batch) -> [B], −log p(x) − log Z, exact, in nats",
    "encode": "encode(state, batch) -> [B, latent]; for sequences [B, T, latent]",
    "decode": "decode(state, z) -> [B, *shape]",
    "posterior": "posterior(state, batch) -> mean and log-variance of q(z|x), each [B, latent]",
    "reconstruct": "reconstruct(state, batch) -> [B, *shape]",
    "complete": "complete(state, x, mask, key) -> x, its hidden variables (mask 0) drawn",
    "conditional_log_prob": "conditional_log_prob(state, x, mask) -> [B], log p(hidden | shown), "
    "exact, in nats, for the masks that the fact `completion` names",
    "objective": "objective(state, batch, key) -> [B], the training loss; validation selects by it",
    "score": "score(state, batch, key) -> [B], higher is stranger; in nats, unless the fact "
    "`metric_units` has another unit of `score`",
    "scores": "scores(state, batch, key) -> {kind: [B]}, further scores, higher is stranger",
    "filters": "filters(state) -> [H, *shape], the weights of each hidden unit",
    "layers": "layers(state, batch) -> hidden layers from below, [B, ...]; noise_times: also t",
    "encoder_network": "encoder_network(state) -> (Flax module, variables), from x to [B, F]",
    "bracket": "bracket(state, key, temperatures=None, chains=None) -> LogZ, AIS from both sides",
    "log_partition": "log_partition(state) -> log Z, exact, or None where it is too large to sum",
    "tables": "tables(state) -> learned matrices, by name",
    "hints": "hints(metrics) -> {fault: cause and remedy}, by the mean metrics of a report",
}
"""The optional methods of a model, with their signatures and results."""


METRIC_UNITS = {
    "loss": "nats",
    "validation": "nats",
    "score": "nats",
    "score_gap": "nats",
    "reconstruction": "nats",
    "kl": "nats",
    "ess": "effective draws",
    "d_loss": "nats",
    "g_loss": "nats",
    "d_real": "probability",
    "d_fake": "probability",
    "free_energy_gap": "nats",
    "energy_gap": "nats",
    "autocorrelation": "correlation",
    "dead": "share of units",
    "saturated": "share of units",
    "swaps": "share accepted",
}
"""Units of metrics, by name, in models that do not state another unit."""


class Facts(NamedTuple):
    """Properties of a model that callers depend on.

    A model states one by an attribute or a property of that name. The default holds otherwise.
    """

    levels: int | None = None  # K: x has K equally spaced values in [0, 1]; 0: x is continuous and
    # likelihoods are densities; None: the model requires neither
    unit_interval: bool = False  # x lies in [0, 1]; a model with levels need not state it
    counts: bool = False  # x are counts 0, 1, 2, ...
    missing: bool = False  # NaN in x are missing values, which the model sums out
    sequences: bool = False  # examples are sequences [T, ...] that may be padded
    classes: int = 0  # labels 0 ... classes − 1 condition the model; 0: it takes no labels
    codes: Literal["features", "noise"] = "features"  # what `encode` returns: learned features, or
    # the noise that a deterministic sampler maps to x
    normal_codes: int = 0  # dimension of the codes that the model draws from N(0, I) and decodes;
    # 0: its codes have another law, or it has none
    noise_times: tuple[float, ...] = ()  # t in [0, 1] to choose from for layers(state, batch, t),
    # the hidden layers of a network that sees x as it is at time t of a noise; (): there is no t
    completion: Literal["any", "raster", "order"] = "any"  # the masks for which `complete` draws
    # from p(hidden | shown): any mask; variables shown first in raster order; or first in the
    # model's own order
    sample_steps: int = 0  # steps that `sample` takes from noise to data; 0: it takes no such steps
    metric_units: Mapping[str, str] = MappingProxyType({})  # units of the metrics that are not in
    # `METRIC_UNITS`, or that have another unit there; `validation` is the mean objective
    lacks: tuple[str, ...] = ()  # optional methods that this configuration does not support


def facts(model: Any) -> Facts:
    """Return the facts of a model, with the default for each that the model does not state."""
    defaults = Facts._field_defaults
    return Facts(**{name: getattr(model, name, default) for name, default in defaults.items()})


def capabilities(model: Any) -> tuple[str, ...]:
    """Return the names of the optional methods of `model`, in the order of `CAPABILITIES`."""
    lacks = facts(model).lacks
    return tuple(
        name for name in CAPABILITIES if name not in lacks and callable(getattr(model, name, None))
    )


def negative_log_prob(model: Any, state: Any, batch: Batch, key: jax.Array) -> jax.Array:
    """Return −log p(x), [B] nats.

    A model with an exact `log_prob` writes `score = objective = negative_log_prob` in its class
    body: it trains on the likelihood, and the less likely an example is, the higher is its score.

    Args:
      model: a model with `log_prob`.
      state: a state of the model.
      batch: examples.
      key: not used; other models need one for their objective or score.
    """
    return -model.log_prob(state, batch)


def sample_labels(model: Any, n: int, label: Any) -> jax.Array | None:
    """Return the label of each of n samples, [n], or None for a model without classes.

    Args:
      model: any model.
      n: the number of samples.
      label: the class of the samples, [] or [n]; None takes the classes in turn.

    Raises:
      UserError: the model has no classes, or the label is none of them, no integer or of another
        shape.
    """
    name, classes = type(model).__name__, facts(model).classes
    if label is None:
        return jnp.arange(n) % classes if classes else None
    require(classes > 0, f"{name}: label is {label}, and the model has no classes")
    require(
        np.shape(label) in ((), (n,)),
        f"{name}: label has shape {list(np.shape(label))}, must be one label or [{n}]",
    )
    values = label if isinstance(label, Tracer) else np.asarray(label)
    require(
        np.issubdtype(values.dtype, np.integer),
        f"{name}: label has the type {values.dtype}, must be an integer",
    )
    if not isinstance(label, Tracer):
        require(
            bool(np.all((values >= 0) & (values < classes))),
            f"{name}: label is {label}, must be 0 … {classes - 1}",
        )
    return jnp.broadcast_to(jnp.asarray(label), (n,))


def label_of(model: Any, batch: Batch) -> jax.Array | None:
    """Return the labels of a batch, [B], or None for a model without classes."""
    if not facts(model).classes:
        return None
    name = type(model).__name__
    require("label" in batch, f"{name}: a model with classes needs a batch of labels")
    return batch["label"]


def require(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless the condition holds."""
    if not condition:
        raise UserError(message)


LARGEST = 2_000_000_000
"""Largest integer of a field: devices count steps and sizes in 32 bits."""

LARGEST_FLOAT = 3.4028234e38
"""Largest float of a field, the largest of 32 bits."""

MOST_LAYERS = 1_000
"""Largest number of layers of a network, which Python builds one by one."""


def check_fields(
    config: Any,
    *,
    positive: Sequence[str] = (),
    non_negative: Sequence[str] = (),
    fraction: Sequence[str] = (),
    layers: Sequence[str] = (),
    seeds: Sequence[str] = (),
) -> None:
    """Check the networks and the ranges of all numbers among the fields of a configuration.

    A field of the type `nn.Module` must be a network, a field of the type `int` an integer, and
    `shape` positive. Every integer must lie within ±LARGEST and every float must be finite in 32
    bits. The arguments name the fields with other bounds. A tuple is checked element by element.

    Args:
      config: a model, or a part of one.
      positive: names of fields that must be above 0.
      non_negative: names of fields that must be at least 0.
      fraction: names of fields that must be at least 0 and below 1.
      layers: names of fields that must be from 1 to MOST_LAYERS.
      seeds: names of fields that must be from 0 to 2³² − 1.

    Raises:
      UserError: the first field of another type or out of its range, with its value.
    """
    integer = (Integral, "an integer")
    network = (nn.Module, "a network, such as MLP((256, 128)) or a Flax module of your own")
    types = {"int": integer, int: integer, "nn.Module": network, nn.Module: network}
    for field in fields(config):
        value = getattr(config, field.name)
        kind, needed = types.get(field.type, (object, ""))
        if not isinstance(value, kind) or (kind is Integral and isinstance(value, bool)):
            raise UserError(f"{type(config).__name__}: {field.name} is {value!r}, must be {needed}")
    names = [field.name for field in fields(config)]
    ranges = (
        (seeds, lambda number: 0 <= number < 2**32, f"0 … {2**32 - 1}"),
        ([name for name in names if name not in seeds], is_small, f"within ±{LARGEST}"),
        (names, is_finite, "finite in 32 bits"),
        ([*positive, *({"shape"} & {*names})], lambda number: number > 0, "positive"),
        (non_negative, lambda number: number >= 0, "at least 0"),
        (fraction, lambda number: 0 <= number < 1, "at least 0 and below 1"),
        (layers, lambda number: 1 <= number <= MOST_LAYERS, f"1 … {MOST_LAYERS}"),
    )
    for checked, holds, needed in ranges:
        for name in checked:
            value = getattr(config, name)
            parts = value if isinstance(value, tuple) else (value,)
            if not all(holds(part) for part in parts):
                raise UserError(f"{type(config).__name__}: {name} is {value}, must be {needed}")


def is_small(value: Any) -> bool:
    """Return whether a value, if it is an integer, lies within ±LARGEST."""
    return not isinstance(value, Integral) or abs(int(value)) <= LARGEST


def is_finite(value: Any) -> bool:
    """Return whether a value, if it is a number, is finite in 32 bits."""
    return not isinstance(value, Real) or abs(float(value)) <= LARGEST_FLOAT


def pmean(tree: Tree, axis_name: str | None) -> Tree:
    """Return the mean of every array over the replicas of `pmap`, or the tree without an axis.

    Every array keeps its type, integers too, such as a counter among a network's statistics.
    """
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.pmean(x, axis_name).astype(x.dtype), tree)


def replica_key(key: jax.Array, axis_name: str | None) -> jax.Array:
    """Return a key of this replica's own: a replicated key would give all replicas equal noise."""
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))
