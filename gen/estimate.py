"""Numbers that say what they are: `Estimate`, how one is made from per-example values, and bounds
that are functions of log-densities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Kind = Literal["exact", "upper bound", "lower bound", "AIS", "Monte Carlo", "no likelihood"]
"""How a value relates to the quantity it is named after.

- `exact`: the mean of a quantity that is computed without approximation for each example.
- `upper bound`, `lower bound`: its expectation lies above, below the quantity.
- `AIS`: annealed importance sampling.
- `Monte Carlo`: unbiased, from draws.
- `no likelihood`: a training loss that looks like a likelihood and is none.
"""


MARKS: Mapping[Kind, str] = {
    "exact": "",
    "upper bound": "≤",
    "lower bound": "≥",
    "AIS": "≈",
    "Monte Carlo": "≈",
    "no likelihood": "≠",
}
"""How the true quantity relates to a value of that kind, for tables."""


@dataclass(frozen=True)
class Estimate:
    """A measured number: value ± stderr over n examples, its kind, and the settings behind it."""

    value: float
    stderr: float
    kind: Kind
    n: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __lt__(self, other: Estimate) -> bool:
        """Values are compared. Raises `TypeError` between kinds: an exact value and a bound have no
        order. `MARKS` tells them apart where they stand in one list."""
        return self.value < self._comparable(other)

    def __le__(self, other: Estimate) -> bool:
        return self.value <= self._comparable(other)

    def __gt__(self, other: Estimate) -> bool:
        return self.value > self._comparable(other)

    def __ge__(self, other: Estimate) -> bool:
        return self.value >= self._comparable(other)

    def _comparable(self, other: Estimate) -> float:
        """The other's value, if it is of the same kind."""
        if not isinstance(other, Estimate) or self.kind != other.kind:
            raise TypeError(f"{self} and {other} are of different kinds: mark them (MARKS) instead")
        return other.value

    def __str__(self) -> str:
        """For example `103.42 ± 0.23 (upper bound, n = 10000)`; without an error if it has none."""
        if math.isnan(self.stderr):
            return f"{self.value:.4f} ({self.kind}, n = {self.n})"
        if self.stderr > 0 and math.isfinite(self.stderr):
            digits = max(0, 1 - math.floor(math.log10(self.stderr)))
        else:
            digits = 4
        number = f"{self.value:.{digits}f} ± {self.stderr:.{digits}f}"
        return f"{number} ({self.kind}, n = {self.n})"


def to_json(estimate: Estimate) -> dict[str, Any]:
    """Its fields; a standard error that one example does not have is null."""
    fields = asdict(estimate)
    return {**fields, "stderr": None if math.isnan(estimate.stderr) else estimate.stderr}


def from_json(fields: Mapping[str, Any]) -> Estimate:
    """The estimate whose `to_json` this is."""
    stderr = math.nan if fields["stderr"] is None else fields["stderr"]
    return Estimate(**{**fields, "stderr": stderr})


def mean(values: ArrayLike, kind: Kind, **settings: Any) -> Estimate:
    """The mean of per-example values [N] with its standard error, s / √N (s with N − 1)."""
    values = np.asarray(values, np.float64)
    stderr = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), float(stderr), kind, len(values), settings)


def ratio(values: ArrayLike, sizes: ArrayLike, kind: Kind, **settings: Any) -> Estimate:
    """Σ values / Σ sizes over examples [N], with the standard error of the delta method:

    r = Σ v_i / Σ s_i,    stderr² = N / (N − 1) · Σ (v_i − r s_i)² / (Σ s_i)².
    """
    values, sizes = np.asarray(values, np.float64), np.asarray(sizes, np.float64)
    n, value = len(values), values.sum() / sizes.sum()
    residual = ((values - value * sizes) ** 2).sum()
    stderr = math.sqrt(residual * n / (n - 1)) / sizes.sum() if n > 1 else math.nan
    return Estimate(float(value), stderr, kind, n, settings)


def per_example(
    f: Callable[[Any, jax.Array], Any],
    data: Mapping[str, ArrayLike],
    key: jax.Array,
    block: int = 500,
) -> Any:
    """f(batch of one example, its own key) for every example of `data`, as NumPy arrays [N, ...].

    Runs `block` examples at a time under one compiled loop, so memory does not grow with N. Each
    example's key comes from `key` and its position alone: the block size changes no draw.
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


class ImportanceBound(NamedTuple):
    """Of importance weights w_1 … w_k, for each example."""

    log_mean: jax.Array  # log 1/k Σ w_i, whose expectation is at most log E w
    ess: jax.Array  # (Σ w_i)² / Σ w_i², the effective sample size, in [1, k]


def importance_bound(
    log_weight: Callable[[jax.Array, int], jax.Array],
    key: jax.Array,
    samples: int,
    block: int = 50,
) -> ImportanceBound:
    """The importance-weighted bound on log E w, from `samples` draws (Burda et al. 2016, eq. 8).

    `log_weight(key, n)` draws n weights for each example: their logarithms, [n, B]. Runs `block`
    draws at a time, so memory does not grow with their number, unless a gradient is taken. The
    draws depend on `block`.
    """
    block = min(block, samples)

    def add(carry, index):
        log_w = log_weight(jax.random.fold_in(key, index), block)  # [block, B]
        counts = index * block + jnp.arange(block) < samples
        log_w = jnp.where(counts[:, None], log_w, -jnp.inf)
        sums = jax.nn.logsumexp(log_w, axis=0), jax.nn.logsumexp(2 * log_w, axis=0)
        return jax.tree.map(jnp.logaddexp, carry, sums), None

    shape = jax.eval_shape(lambda: log_weight(key, block)).shape[1:]
    nothing = jnp.full(shape, -jnp.inf)
    blocks = -(-samples // block)
    if blocks == 1:  # without a loop a CPU uses all of its cores
        (log_sum, log_squares), _ = add((nothing, nothing), 0)
    else:
        (log_sum, log_squares), _ = jax.lax.scan(add, (nothing, nothing), jnp.arange(blocks))
    return ImportanceBound(log_sum - math.log(samples), jnp.exp(2 * log_sum - log_squares))


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of one estimate over several seeds, which share their examples.

    Its stderr is the mean of theirs: the error over examples, which seeds do not average away.
    `settings` names the number of `seeds` and the `seeds_stderr` of the mean over them, s / √S.
    """
    first = estimates[0]
    if len(estimates) == 1:
        return first
    values = [estimate.value for estimate in estimates]
    return Estimate(
        float(np.mean(values)),
        float(np.mean([estimate.stderr for estimate in estimates])),
        first.kind,
        first.n,
        {
            **first.settings,
            "seeds": len(values),
            "seeds_stderr": float(np.std(values, ddof=1) / math.sqrt(len(values))),
        },
    )
