"""Numbers that say what they are: `Estimate`, and how one is made from values per example.

Examples:
  >>> print(mean([1.0, 2.0, 3.0, 4.0], "upper bound"))
  2.50 ± 0.65 (upper bound, n = 4)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from gen.checks import check_data, check_not_donated
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
    # [N], values whose mean is `value` up to a constant and whose spread is the error over
    # examples; None where there are none. They are not stored.
    per_example: np.ndarray | None = field(default=None, repr=False, compare=False)

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
        if digits > 6:  # most of them would be zeros
            number = f"{self.value:.6g} ± {self.stderr:.2g}"
        else:
            number = f"{self.value:.{digits}f} ± {self.stderr:.{digits}f}"
        return f"{number} ({self.kind}, n = {self.n})"


def to_json(estimate: Estimate) -> dict[str, Any]:
    """Return the fields of an estimate, without its values per example.

    A standard error that does not exist becomes null.
    """
    fields = asdict(replace(estimate, per_example=None))
    del fields["per_example"]
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
      UserError: the data are not of the model's kind, see `checks.check_data`, or later training
        steps have overwritten the state.
    """
    check_not_donated(state)
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
    return Estimate(float(values.mean()), float(stderr), kind, len(values), settings, values)


def ratio(values: ArrayLike, sizes: ArrayLike, kind: Kind, **settings: Any) -> Estimate:
    """Return Σ values / Σ sizes over examples, with the standard error of the delta method:

    r = Σ v_i / Σ s_i,    stderr² = N / (N − 1) · Σ (v_i − r s_i)² / (Σ s_i)².

    The value of an example is r + (v_i − r s_i) N / Σ s: their mean is r, and s / √N is the error.

    Args:
      values: v, [N].
      sizes: s, [N], for example lengths of sequences.
      kind: the relation of the ratio to the quantity that it estimates.
      **settings: what to store beside it.
    """
    values, sizes = np.asarray(values, np.float64), np.asarray(sizes, np.float64)
    n, value = len(values), values.sum() / sizes.sum()
    residuals = values - value * sizes
    stderr = math.sqrt((residuals**2).sum() * n / (n - 1)) / sizes.sum() if n > 1 else math.nan
    return Estimate(float(value), stderr, kind, n, settings, value + residuals * n / sizes.sum())


def in_bits(nats: Estimate, variables: int) -> Estimate:
    """Return an estimate in nats per example as one in bits per variable.

    The setting `discretization`, an error in nats, is converted with it.
    """
    unit = 1 / (math.log(2) * variables)
    settings = dict(nats.settings)
    if "discretization" in settings:
        settings["discretization"] *= unit
    return replace(
        nats,
        value=nats.value * unit,
        stderr=nats.stderr * unit,
        settings=settings,
        per_example=None if nats.per_example is None else nats.per_example * unit,
    )


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
    return row_program(lambda _, row: f(row[0], row[1][0]), block)((), (data, keys))


def row_program(f: Callable[..., Any], block: int = 500) -> Callable[..., Any]:
    """Return the function from (state, data, ...) to f of every row of data, as arrays [N, ...].

    It is compiled at its first call. The rows run in blocks under one compiled loop, so memory does
    not grow with N.

    Args:
      f: maps (state, a batch of one row, further arguments that all rows share) to arrays [1, ...].
      block: rows at a time.
    """

    def run(state, data, *shared):
        def one(row):
            values = f(state, jax.tree.map(lambda value: value[None], row), *shared)
            return jax.tree.map(lambda value: value[0], values)

        return jax.lax.map(one, data, batch_size=block)

    program = jax.jit(run)

    def run_precisely(*arguments):
        with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
            return jax.tree.map(np.asarray, program(*arguments))

    return run_precisely


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


def over_seeds_by_name(of_seeds: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """Return the mean over seeds of each estimate, by the names that the first seed has."""
    return {name: over_seeds([each[name] for each in of_seeds]) for name in of_seeds[0]}


def over_splits(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of one estimate over several splits, which have examples of their own.

    Its standard error is s / √S over the values of S splits; of one split it is the estimate's own.
    """
    first = estimates[0]
    if len(estimates) == 1:
        return first
    values = np.array([estimate.value for estimate in estimates])
    stderr = float(values.std(ddof=1) / math.sqrt(len(values)))
    return Estimate(float(values.mean()), stderr, first.kind, first.n, {"splits": len(values)})


class Difference(NamedTuple):
    """The difference a − b of two estimates on the same examples, with its standard errors."""

    value: float
    stderr: float  # over examples, from the differences example by example
    seeds_stderr: float  # over the seeds of both; NaN where one of them has a single seed


MUST_AGREE = {"density": False, "per": "example", "conditional": False}
"""Settings that change the quantity that an estimate is of, with their defaults."""


def why_not_ordered(a: Estimate, b: Estimate) -> str:
    """Return why the values of two estimates of one name have no order; "" if they have one."""
    if a.kind != b.kind:
        return f"different kinds: {a.kind}, {b.kind}"
    for name, default in MUST_AGREE.items():
        of_a, of_b = a.settings.get(name, default), b.settings.get(name, default)
        if of_a != of_b:
            return f"different quantities: {name} {of_a}, {of_b}"
    return ""


def why_incomparable(a: Estimate, b: Estimate) -> str:
    """Return why two estimates of one name have no paired difference; "" if they have one."""
    if reason := why_not_ordered(a, b):
        return reason
    if a.per_example is None or b.per_example is None:
        return "no values per example"
    if len(a.per_example) != len(b.per_example):
        return f"different examples: n = {a.n}, {b.n}"
    return ""


def paired_difference(a: Sequence[Estimate], b: Sequence[Estimate]) -> Difference:
    """Return the difference of two estimates, each the mean over one or several seeds.

    1. a_i and b_i are the values of example i, averaged over the seeds, and d_i = a_i − b_i. The
       error over N examples is s_d / √N. An error that both models share, because an example is
       hard for both, cancels.
    2. An estimate can have an error beside its examples', such as the error of log Z by AIS:
       e² = stderr² − s² / N. It is taken as independent in a and b, and e_a² + e_b² is added.
    3. The error over seeds is √(s_a² / S_a + s_b² / S_b), with the spreads over the seeds' values.
       It is reported beside the first.

    Args:
      a: the estimate of each seed of one model, for which `why_incomparable` gives no reason.
      b: the estimate of each seed of the other model.
    """
    differences = _mean_values(a) - _mean_values(b)
    over_examples = differences.var(ddof=1) / len(differences) if len(differences) > 1 else math.nan
    value = np.mean([each.value for each in a]) - np.mean([each.value for each in b])
    over_seeds = [
        np.var([each.value for each in seeds], ddof=1) / len(seeds) if len(seeds) > 1 else math.nan
        for seeds in (a, b)
    ]
    return Difference(
        float(value),
        math.sqrt(over_examples + _other_variance(a) + _other_variance(b)),
        math.sqrt(sum(over_seeds)),
    )


def _mean_values(estimates: Sequence[Estimate]) -> np.ndarray:
    """Return the values per example, averaged over seeds, [N]."""
    return np.mean([np.asarray(each.per_example) for each in estimates], axis=0)


def _other_variance(estimates: Sequence[Estimate]) -> float:
    """Return the variance of a mean over seeds that does not come from the examples."""
    total = 0.0
    for each in estimates:
        values = np.asarray(each.per_example)
        if len(values) > 1:
            rest = 1 - values.var(ddof=1) / len(values) / max(each.stderr**2, 1e-300)
            total += each.stderr**2 * rest if rest > 1e-9 else 0.0  # below it is rounding
    return total / len(estimates) ** 2
