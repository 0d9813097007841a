"""Numbers that say what they are: `Estimate`, and how one is made from values per example.

>>> print(mean([1.0, 2.0, 3.0, 4.0], "upper bound"))
2.50 ± 0.65 (upper bound, n = 4)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import jax
import numpy as np
from jax.typing import ArrayLike

from gen.checks import check_data
from gen.core import Data, facts
from gen.levels import as_values

Kind = Literal[
    "exact",
    "upper bound",
    "lower bound",
    "AIS",
    "upper bound (AIS)",
    "lower bound (AIS)",
    "Monte Carlo",
    "no likelihood",
]
"""The relation of a value to the quantity that it is named after.

- `exact`: the mean of a quantity that is computed without approximation for each example.
- `upper bound`, `lower bound`: its expectation lies above, below the quantity.
- `AIS`: its normaliser is estimated by annealed importance sampling.
- `upper bound (AIS)`, `lower bound (AIS)`: a bound whose normaliser is estimated by AIS.
- `Monte Carlo`: an unbiased estimate from draws.
- `no likelihood`: a training loss that looks like a likelihood and is none.
"""

MARKS: Mapping[Kind, str] = {
    "exact": "",
    "upper bound": "≤",
    "lower bound": "≥",
    "AIS": "≈",
    "upper bound (AIS)": "≲",
    "lower bound (AIS)": "≳",
    "Monte Carlo": "≈",
    "no likelihood": "≠",
}
"""The sign that relates the true quantity to a value of that kind, for tables."""

BOUND: Mapping[Kind, Kind] = {
    "exact": "upper bound",
    "upper bound": "upper bound",
    "AIS": "upper bound (AIS)",
    "upper bound (AIS)": "upper bound (AIS)",
    "Monte Carlo": "upper bound",
}
"""The kind of an upper bound on a quantity, by the kind of the estimate that gives the bound."""


@dataclass(frozen=True)
class Estimate:
    """A measured number: value ± stderr over n examples, its kind, and the settings behind it.

    Estimates of one kind are ordered by value. Comparing two kinds raises `TypeError`, since an
    exact value and a bound have no order.
    """

    value: float
    stderr: float  # standard error; NaN where one example gives none
    kind: Kind
    n: int  # number of examples
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __lt__(self, other: Estimate) -> bool:
        return self.value < self._comparable(other)

    def __le__(self, other: Estimate) -> bool:
        return self.value <= self._comparable(other)

    def __gt__(self, other: Estimate) -> bool:
        return self.value > self._comparable(other)

    def __ge__(self, other: Estimate) -> bool:
        return self.value >= self._comparable(other)

    def _comparable(self, other: Estimate) -> float:
        """Return the other's value if it is of the same kind."""
        if not isinstance(other, Estimate) or self.kind != other.kind:
            raise TypeError(f"{self} and {other} are of different kinds: mark them (MARKS) instead")
        return other.value

    def __str__(self) -> str:
        """Return, for example, `103.42 ± 0.23 (upper bound, n = 10000)`."""
        if math.isnan(self.stderr):
            return f"{self.value:.4f} ({self.kind}, n = {self.n})"
        if self.stderr > 0 and math.isfinite(self.stderr):
            digits = max(0, 1 - math.floor(math.log10(self.stderr)))
        else:
            digits = 4
        number = f"{self.value:.{digits}f} ± {self.stderr:.{digits}f}"
        return f"{number} ({self.kind}, n = {self.n})"


def to_json(estimate: Estimate) -> dict[str, Any]:
    """Return the fields of an estimate. A standard error that does not exist becomes null."""
    fields = asdict(estimate)
    return {**fields, "stderr": None if math.isnan(estimate.stderr) else estimate.stderr}


def from_json(fields: Mapping[str, Any]) -> Estimate:
    """Return the estimate that `to_json` described."""
    stderr = math.nan if fields["stderr"] is None else fields["stderr"]
    return Estimate(**{**fields, "stderr": stderr})


def evaluate(
    model: Any, state: Any, data: Data, key: jax.Array, *, levels: int | None = None
) -> dict[str, Estimate]:
    """Return `model.evaluate(state, data, key)`, after checking that the model takes the data.

    Args:
      model: any model.
      state: a trained state of it.
      data: all examples of a split, decoded. Integer x are symbols where the model has levels.
      key: the source of every draw.
      levels: the number of levels of x, 0 for continuous data, None to infer it.

    Raises:
      UserError: the data are not of the model's kind, see `checks.check_data`.
    """
    check_data(model, data, levels, any_length=True)
    return model.evaluate(state, as_values(data, facts(model).levels), key)


def mean(values: ArrayLike, kind: Kind, **settings: Any) -> Estimate:
    """Return the mean of values per example with its standard error, s / √N.

    Args:
      values: [N].
      kind: the relation of the mean to the quantity that it estimates.
      **settings: what to store beside it.
    """
    values = np.asarray(values, np.float64)
    stderr = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), float(stderr), kind, len(values), settings)


def ratio(values: ArrayLike, sizes: ArrayLike, kind: Kind, **settings: Any) -> Estimate:
    """Return Σ values / Σ sizes over examples, with the standard error of the delta method:

    r = Σ v_i / Σ s_i,    stderr² = N / (N − 1) · Σ (v_i − r s_i)² / (Σ s_i)².

    Args:
      values: v, [N].
      sizes: s, [N], for example lengths of sequences.
      kind: the relation of the ratio to the quantity that it estimates.
      **settings: what to store beside it.
    """
    values, sizes = np.asarray(values, np.float64), np.asarray(sizes, np.float64)
    n, value = len(values), values.sum() / sizes.sum()
    residual = ((values - value * sizes) ** 2).sum()
    stderr = math.sqrt(residual * n / (n - 1)) / sizes.sum() if n > 1 else math.nan
    return Estimate(float(value), stderr, kind, n, settings)


def in_bits(nats: Estimate, variables: int) -> Estimate:
    """Return an estimate in nats per example as one in bits per variable.

    The setting `discretization`, an error in nats, is converted with it.
    """
    unit = 1 / (math.log(2) * variables)
    settings = dict(nats.settings)
    if "discretization" in settings:
        settings["discretization"] *= unit
    return replace(nats, value=nats.value * unit, stderr=nats.stderr * unit, settings=settings)


def per_example(
    f: Callable[[Any, jax.Array], Any],
    data: Mapping[str, ArrayLike],
    key: jax.Array,
    block: int = 500,
) -> Any:
    """Return f for every example of `data`, as NumPy arrays [N, ...].

    The examples run in blocks under one compiled loop, so memory does not grow with N. The key of
    an example depends on `key` and on its position alone, so the block size changes no draw.

    Args:
      f: maps (a batch of one example, its own key) to arrays [1, ...].
      data: arrays [N, ...] by name.
      key: the source of the examples' keys.
      block: examples at a time.
    """
    data = {name: np.asarray(values) for name, values in data.items()}
    keys = jax.random.split(key, len(data["x"]))

    def one(example):
        row, row_key = example
        values = f({name: value[None] for name, value in row.items()}, row_key)
        return jax.tree.map(lambda value: value[0], values)

    with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
        values = jax.jit(lambda rows: jax.lax.map(one, rows, batch_size=block))((data, keys))
    return jax.tree.map(np.asarray, values)


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of one estimate over several seeds, which share their examples.

    Its standard error is the mean of theirs: the error over examples, which seeds do not average
    away (for kinds of AIS it contains the normaliser's error). Its settings are those that all
    seeds share, the number of `seeds`, `seeds_stderr`, the standard error s / √S over seeds, and
    the `doubts` of any of them about AIS.
    """
    first = estimates[0]
    if len(estimates) == 1:
        return first
    values = [estimate.value for estimate in estimates]
    shared = {
        name: value
        for name, value in first.settings.items()
        if all(estimate.settings.get(name) == value for estimate in estimates)
    }
    marks = [estimate.settings.get("doubts", "").split(", ") for estimate in estimates]
    if doubts := sorted({doubt for each in marks for doubt in each if doubt}):
        shared["doubts"] = ", ".join(doubts)
    spread = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    return Estimate(
        float(np.mean(values)),
        float(np.mean([estimate.stderr for estimate in estimates])),
        first.kind,
        first.n,
        {**shared, "seeds": len(values), "seeds_stderr": spread},
    )
