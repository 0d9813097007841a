"""Numbers that say what they are: `Estimate`, how one is made from per-example values, and bounds
and normalisers that are functions of log-densities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

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
"""How a value relates to the quantity it is named after.

- `exact`: the mean of a quantity that is computed without approximation for each example.
- `upper bound`, `lower bound`: its expectation lies above, below the quantity.
- `AIS`: its normaliser is estimated by annealed importance sampling.
- `upper bound (AIS)`, `lower bound (AIS)`: a bound, whose normaliser is estimated by AIS.
- `Monte Carlo`: unbiased, from draws.
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


def in_bits(nats: Estimate, variables: int) -> Estimate:
    """An estimate in nats per example as one in bits per variable; with its `discretization`."""
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


class Annealing(NamedTuple):
    """A path of unnormalised densities p*_β(x), β from 0, where the normaliser is known, to 1,
    where it is sought. The states x are arrays [n, ...] of n chains."""

    log_density: Callable[[Any, jax.Array], jax.Array]  # (x, β) ↦ log p*_β(x), [n]
    transition: Callable[[Any, jax.Array, jax.Array], Any]  # (x, β, key) ↦ x', reversible under p_β
    start: Callable[[jax.Array, int], Any]  # (key, n) ↦ n exact draws of p_0
    log_z: jax.Array  # log Σ_x p*_0(x)


def ais(path: Annealing, temperatures: int | jax.Array, key: jax.Array, chains: int) -> jax.Array:
    """log w [chains], by annealed importance sampling (Neal 2001): E w = Z, the sum of p*_1.

    Over `temperatures` steps from β_0 = 0 to β_T = 1, evenly spaced, with x_0 ~ p_0,

        log w = log Z_0 + Σ_t log p*_{β_t}(x_{t−1}) − log p*_{β_{t−1}}(x_{t−1}),

    and x_t from x_{t−1} by the transition at β_t. log mean w is at most log Z on average.
    """
    start_key, key = jax.random.split(key)

    def step(t, carry):
        x, log_w = carry
        low, high = t / temperatures, (t + 1) / temperatures
        log_w += path.log_density(x, high) - path.log_density(x, low)
        return path.transition(x, high, jax.random.fold_in(key, t)), log_w

    begin = path.start(start_key, chains), jnp.full(chains, path.log_z)
    return jax.lax.fori_loop(0, temperatures, step, begin)[1]


def reverse_ais(
    path: Annealing, temperatures: int | jax.Array, key: jax.Array, x: Any
) -> jax.Array:
    """log w [n] from x ~ p_1, n draws: E 1/w = 1/Z (Grosse, Ghahramani & Adams 2015).

    The chain of `ais` run backwards: its weights at x_{T−1} = x, then by the transition at
    β_{T−1} those at x_{T−2}, and so on. −log mean 1/w is at least log Z on average, if x are exact
    draws; draws that miss a part of p_1 can take it below.
    """
    chains = len(jax.tree.leaves(x)[0])

    def step(i, carry):
        x, log_w = carry
        t = temperatures - 1 - i
        low, high = t / temperatures, (t + 1) / temperatures
        log_w += path.log_density(x, high) - path.log_density(x, low)
        return path.transition(x, low, jax.random.fold_in(key, t)), log_w

    return jax.lax.fori_loop(0, temperatures, step, (x, jnp.full(chains, path.log_z)))[1]


class LogZ(NamedTuple):
    """A log normaliser from both sides, each with its standard error and effective sample size."""

    forward: float  # log mean w: in expectation at most log Z
    forward_stderr: float
    forward_ess: float
    reverse: float  # −log mean 1/w: in expectation at least log Z
    reverse_stderr: float
    reverse_ess: float

    @property
    def width(self) -> float:
        """Of the bracket: how far the two ends lie apart, in nats."""
        return abs(self.reverse - self.forward)


def log_z(forward: ArrayLike, reverse: ArrayLike) -> LogZ:
    """The bracket from the log weights of `ais` and of `reverse_ais`.

    The standard error of log mean w is that of mean w divided by it (delta method): √(n / ESS − 1)
    / √(n − 1), with ESS = (Σ w)² / Σ w². It is too small where few chains carry the weight.
    """

    def log_mean(log_w):
        log_w = np.asarray(log_w, np.float64)
        n, largest = len(log_w), log_w.max()
        w = np.exp(log_w - largest)
        ess = w.sum() ** 2 / (w**2).sum()
        stderr = math.sqrt(max(n / ess - 1, 0) / (n - 1)) if n > 1 else math.nan
        return float(largest + np.log(w.mean())), stderr, float(ess)

    value, stderr, ess = log_mean(-np.asarray(reverse, np.float64))
    return LogZ(*log_mean(forward), -value, stderr, ess)


def log_sum_over_bits(
    log_f: Callable[[jax.Array], jax.Array], bits: int, block: int = 12
) -> jax.Array:
    """log Σ exp log_f(x) over all 2^bits x in {0, 1}^bits, exactly.

    `log_f` maps [n, bits] to [n]; it is given 2^`block` rows at a time, so memory grows as
    2^(bits − block) only.
    """
    low = min(block, bits)
    rows = jnp.arange(2**low, dtype=jnp.uint32)[:, None]

    def of_block(high):
        number = (high << low) + rows
        x = (number >> jnp.arange(bits, dtype=jnp.uint32)[None]) & 1
        return jax.nn.logsumexp(log_f(x.astype(jnp.float32)))

    return jax.nn.logsumexp(jax.lax.map(of_block, jnp.arange(2 ** (bits - low), dtype=jnp.uint32)))


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of one estimate over several seeds, which share their examples.

    Its stderr is the mean of theirs: the error over examples, which seeds do not average away (of
    the kinds of AIS with the normaliser's). `settings` are those that all seeds share, the number
    of `seeds` and the `seeds_stderr` of the mean over them, s / √S.
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
            **{
                name: value
                for name, value in first.settings.items()
                if all(estimate.settings.get(name) == value for estimate in estimates)
            },
            "seeds": len(values),
            "seeds_stderr": float(np.std(values, ddof=1) / math.sqrt(len(values))),
        },
    )
