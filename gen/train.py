"""The one training loop.

    for progress in fit(VAE(), {"x": images}, steps=1000, batch_size=100):
        if progress.metrics:
            print(progress.step, progress.metrics)
    state = progress.carry.state

`gen.fit` runs this loop to its end, shows how far it is, and returns the state and the metrics.

Training is a pure function of (model, data, seed): keys and row order come from (seed, step) alone,
so a run continues from (step, carry) as if it had never stopped. Grouping steps into dispatches,
using several devices and training several seeds at once change results by rounding only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import is_dataclass
from functools import lru_cache, partial, wraps
from inspect import unwrap
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gen import optimize, parallel
from gen.checks import (
    check_batch_size,
    check_data,
    check_early_stop,
    check_not_donated,
    check_seeds,
    check_settings,
    check_validated,
    check_validation,
    has_objective,
)
from gen.core import Batch, Metrics, Model, UserError, capabilities, facts
from gen.levels import as_values
from gen.memory import check_memory

Decode = Callable[[Batch, jax.Array], Batch]
"""(raw batch, key) -> the batch that the model's step takes; it runs inside the compiled step."""

BEGIN_ROWS = 5_000
"""Training examples, at most, that a model begins from."""

Program = TypeVar("Program")

PROGRAMS = 16
"""Different models and settings, at most, whose compiled functions are kept for later calls."""

AHEAD = 0.5
"""Seconds of computation by which the dispatched steps of `fit` may be ahead of the computed ones.

Without a limit a progress bar shows steps that are not done yet, and Ctrl-C waits for them.
"""

LARGEST_METRIC = 1e28
"""Metrics beyond it mean that training has diverged, although they are finite.

The gradient of a Boltzmann machine is bounded. Under a huge learning rate its parameters grow by as
much in each step and take long to overflow.
"""


class Best(NamedTuple):
    """The state with the lowest validation objective so far (early stopping)."""

    state: Any  # the model's
    validation: jax.Array  # its mean objective on the validation split, []
    step: jax.Array  # steps done then, []


class _Carry(NamedTuple):
    state: Any  # the model's
    sums: Metrics  # each metric, summed over the steps since the last report
    count: jax.Array  # the number of those steps
    best: Best | tuple[()] = ()  # empty without validation


class Carry(_Carry):
    """Everything that training carries from one step to the next; [S, ...] for several seeds.

    A dispatch reuses the memory of the carry that it takes. Asking the old carry for its `state`,
    `best` or `chosen` then raises `UserError`.
    """

    __slots__ = ()

    @property
    def state(self) -> Any:
        """The state of the model after the last step."""
        check_not_donated(tuple(self))
        return self[0]

    @property
    def best(self) -> Best | tuple[()]:
        """The state with the lowest validation objective; empty without validation."""
        check_not_donated(tuple(self))
        return self[3]

    @property
    def chosen(self) -> Any:
        """The state to use: the best on validation, or the last one while there is none."""
        if not isinstance(self.best, Best):
            return self.state
        none_yet = self.best.step == 0  # [] or [S]

        def choose(best, last):
            return jnp.where(
                none_yet.reshape(none_yet.shape + (1,) * (best.ndim - none_yet.ndim)), last, best
            )

        return jax.tree.map(choose, self.best.state, self.state)


Precision = Literal["float32", "bfloat16"]
"""The precision of the inputs of matrix products in a training step."""


class Progress(NamedTuple):
    """The state of training after a dispatch."""

    step: int  # steps done
    carry: Carry  # donated to the next dispatch: copy its state, if the state must outlive it
    metrics: dict[str, np.ndarray] | None  # at a report: means since the last, [] or [S]; at a
    # validation the mean objective there


class Streams(NamedTuple):
    """The independent keys of a seed, one for each use."""

    init: jax.Array
    order: jax.Array
    steps: jax.Array
    evaluate: jax.Array
    sample: jax.Array
    validate: jax.Array


class NonFiniteError(RuntimeError):
    """A metric became NaN, infinite, or larger than LARGEST_METRIC."""


def streams(seed: int | jax.Array) -> Streams:
    """Return the keys of a run. Seeds have 32 bits: `jax.random.key(2**32)` equals key(0)."""
    return Streams(*jax.random.split(jax.random.key(seed), len(Streams._fields)))


def no_decode(batch: Batch, key: jax.Array) -> Batch:
    """Return the batch as it is: for data that need no scaling."""
    return batch


def values_after(decode: Decode, model: Model[Any]) -> Decode:
    """Return `decode` followed by the conversion of integers to the values that the model takes."""
    return lambda raw, key: as_values(decode(raw, key), facts(model).levels)


def begin(
    model: Model[Any],
    data: Mapping[str, Any],
    batch_size: int,
    seed: int | Sequence[int] = 0,
    *,
    decode: Decode = no_decode,
    mesh: Mesh | None = None,
    validated: bool = False,
) -> Carry:
    """Return the carry before the first step.

    `model.init` gives the first state. A model that has `begin` then starts from training examples,
    up to BEGIN_ROWS of them, drawn. Under `jax.eval_shape` this gives the shapes of a carry.

    Args:
      model: the model, its schedules of a known length (`optimize.for_run`).
      data: raw arrays [N, ...] by name.
      batch_size: examples in a step.
      seed: one seed, or several; then every array has a leading axis, one row for each.
      decode: maps raw rows to a batch.
      mesh: devices that hold the carry.
      validated: whether the run keeps its best state, which is the first state until a validation.
    """
    from_data = model.begin if "begin" in capabilities(model) else None  # type: ignore
    decode = values_after(decode, model)
    copies = np.size(seed) * (1 + validated)  # the state of each seed, and the best one so far

    def begin_one(seed, given):
        def first_step(state, rows, key):
            return model.step(state, decode(rows, key), key)

        keys = streams(seed)
        state = model.init(keys.init)
        check_memory(type(model).__name__, state, copies=copies)
        if from_data:
            rows_key, decode_key, key = jax.random.split(jax.random.fold_in(keys.init, 1), 3)
            rows = jax.random.permutation(rows_key, len(given["x"]))[:BEGIN_ROWS]
            examples = {name: values[rows] for name, values in given.items()}
            state = from_data(state, decode(examples, decode_key), key)
        batch = {
            name: jax.ShapeDtypeStruct((batch_size, *values.shape[1:]), values.dtype)
            for name, values in data.items()
        }
        _, metrics = jax.eval_shape(first_step, state, batch, keys.steps)
        sums = {name: jnp.zeros(value.shape, value.dtype) for name, value in metrics.items()}
        best = ()
        if validated:  # the largest objective there is, so that the first validation replaces it
            worst = jnp.full((), jnp.finfo(jnp.float32).max)
            best = Best(jax.tree.map(jnp.copy, state), worst, jnp.zeros((), jnp.int32))
        return Carry(state, sums, jnp.zeros((), jnp.int32), best)

    begin_seeds = begin_one if np.ndim(seed) == 0 else jax.vmap(begin_one, in_axes=(0, None))
    placement = None if mesh is None else parallel.replicated(mesh)
    # Compiled, so that no two arrays of the state share a buffer: donation would fail.
    given = dict(data) if from_data else {}
    return jax.jit(begin_seeds, out_shardings=placement)(jnp.asarray(seed, jnp.uint32), given)


def train_step(
    model: Model[Any],
    carry: Carry,
    data: Batch,
    order: jax.Array,
    seed: jax.Array,
    step: jax.Array,
    *,
    batch_size: int,
    report_every: int,
    decode: Decode = no_decode,
    mesh: Mesh | None = None,
) -> Carry:
    """Take step number `step` of a run, from raw data to the next carry.

    An epoch has N // batch_size steps. The rows left over are skipped in that epoch; the next
    epoch is shuffled anew.

    Args:
      model: the model.
      carry: what the step before returned.
      data: the whole training set, raw arrays [N, ...] by name.
      order: the epoch's row order, [N].
      seed: the seed of the run, [].
      step: the number of steps done, [].
      batch_size: examples in a step.
      report_every: steps between reports, at which the sums of the metrics start anew.
      decode: maps raw rows to a batch.
      mesh: devices over which the batch is split.
    """
    position = step % (order.shape[0] // batch_size) * batch_size
    rows = jax.lax.dynamic_slice_in_dim(order, position, batch_size)
    batch = {name: values[rows] for name, values in data.items()}
    if mesh is not None:
        batch = parallel.split_rows(batch, mesh)
    decode_key, step_key = jax.random.split(jax.random.fold_in(streams(seed).steps, step))
    state, metrics = model.step(carry.state, decode(batch, decode_key), step_key)
    first = step % report_every == 0
    sums = {name: jnp.where(first, 0, carry.sums[name]) + metrics[name] for name in metrics}
    return Carry(state, sums, jnp.where(first, 0, carry.count) + 1, carry.best)


def validate(
    model: Any,
    carry: Carry,
    data: Batch,
    seed: jax.Array,
    step: jax.Array,
    *,
    decode: Decode = no_decode,
    block: int = 100,
) -> tuple[Carry, jax.Array]:
    """Take the mean objective on the validation split, at the same draws each time.

    Args:
      model: a model with `objective`.
      carry: the carry of a validated run.
      data: raw arrays of the validation split, [N, ...] by name.
      seed: the seed of the run, [].
      step: steps done, [].
      decode: maps raw rows to a batch.
      block: examples at a time.

    Returns:
      The carry, its best state replaced if the mean is lower than before, and the mean.
    """
    value = _mean(partial(model.objective, carry.state), data, seed, decode, block)
    assert isinstance(carry.best, Best)
    better = value < carry.best.validation
    best = jax.tree.map(
        lambda new, old: jnp.where(better, new, old),
        Best(carry.state, value, step),
        carry.best,
    )
    return carry._replace(best=best), value


def score_gap(
    model: Any,
    carry: Carry,
    training: Batch,
    validation: Batch,
    seed: jax.Array,
    *,
    decode: Decode = no_decode,
    block: int = 100,
) -> jax.Array:
    """Return the mean score of the validation data minus the mean over equally many training rows.

    A growing gap shows overfitting where scores share an unknown normaliser, as free energies do.

    Args:
      model: a model with `score`.
      carry: the carry of a run.
      training: raw arrays of the training split, [N, ...] by name.
      validation: raw arrays of the validation split.
      seed: the seed of the run, [].
      decode: maps raw rows to a batch.
      block: examples at a time.
    """
    count = min(len(training["x"]), len(validation["x"]))
    rows = np.linspace(0, len(training["x"]) - 1, count).astype(np.int32)  # may be in label order
    training = {name: values[rows] for name, values in training.items()}
    score = partial(model.score, carry.state)
    of_validation, of_training = (
        _mean(score, data, seed, decode, block) for data in (validation, training)
    )
    return of_validation - of_training


def _mean(
    f: Callable[[Batch, jax.Array], jax.Array],
    data: Batch,
    seed: jax.Array,
    decode: Decode,
    block: int,
) -> jax.Array:
    """Return the mean of f(batch, key) [B] over decoded `data`, block by block."""
    decode_key, key = jax.random.split(streams(seed).validate)
    rows = len(data["x"])

    def of_block(index):
        # The last block begins earlier if it must, and counts its new rows only.
        begin = jnp.minimum(index * block, rows - min(block, rows))
        batch = {
            name: jax.lax.dynamic_slice_in_dim(values, begin, min(block, rows))
            for name, values in data.items()
        }
        batch = decode(batch, jax.random.fold_in(decode_key, index))
        values = f(batch, jax.random.fold_in(key, index))
        return jnp.where(begin + jnp.arange(len(values)) >= index * block, values, 0.0).sum()

    return jax.lax.map(of_block, jnp.arange(-(-rows // block))).sum() / rows


class Programs(NamedTuple):
    """The compiled functions of a run, for one seed or for several."""

    begin: Callable[..., Carry]  # (data, seeds) -> the first carry
    advance: Callable[..., Carry]  # (carry, data, order, seeds, rates, step, end) -> the next carry
    order_rows: Callable[..., jax.Array]  # (seeds, epoch) -> the epoch's row order
    assess: Callable[..., tuple[Carry, jax.Array]]  # (carry, validation, seeds, step) -> `validate`
    gap: Callable[..., jax.Array]  # (carry, data, validation, seeds) -> `score_gap`


def keep_programs(build: Callable[..., Program]) -> Callable[..., Program]:
    """Keep what a function builds for its last PROGRAMS different arguments, so it compiles once.

    Compiled functions, and the arguments that they close over, live until PROGRAMS others are built
    or the process ends. Arguments must therefore compare by their values. Arguments without a hash,
    such as a network with a list among its fields, build it anew and nothing is kept. The function
    itself, which keeps nothing, is `inspect.unwrap` of the result.
    """
    kept = lru_cache(maxsize=PROGRAMS, typed=True)(build)

    @wraps(build)
    def build_or_reuse(*arguments: Any, **settings: Any) -> Program:
        try:
            hash((arguments, *settings.values()))
        except TypeError:
            return build(*arguments, **settings)
        return kept(*arguments, **settings)

    return build_or_reuse


@keep_programs
def _programs(
    model: Any,
    batch_size: int,
    decode: Decode,
    mesh: Mesh | None,
    *,
    rows: int,
    report_every: int,
    group: int,
    several: bool,
    validated: bool,
    precision: Precision,
) -> Programs:
    """Return the compiled functions of a run.

    Args:
      model: the model, its schedules of a known length.
      batch_size: examples in a step.
      decode: maps raw rows to a batch.
      mesh: devices over which the batch is split.
      rows: the number of training examples.
      report_every: steps between two reports.
      group: steps in one call of `advance`, at most.
      several: whether there is an axis of seeds.
      validated: whether the run keeps its best state.
      precision: the precision of matrix products in a step, as in `fit`.
    """
    first = partial(
        begin, model, batch_size=batch_size, decode=decode, mesh=mesh, validated=validated
    )
    decode = values_after(decode, model)
    placement = None if mesh is None else parallel.replicated(mesh)

    def advance(carry, data, order, seed, rates, step, end):
        """Take the steps from `step` up to `end`, the last not included."""
        step_once = partial(
            train_step,
            optimize.with_rates(model, rates) if rates else model,
            batch_size=batch_size,
            report_every=report_every,
            decode=decode,
            mesh=mesh,
        )
        with products_in(precision):
            if group == 1:
                return step_once(carry, data, order, seed, step)
            return jax.lax.fori_loop(
                step, end, lambda i, carry: step_once(carry, data, order, seed, i), carry
            )

    def order_rows(seed, epoch):
        return jax.random.permutation(jax.random.fold_in(streams(seed).order, epoch), rows)

    assess = partial(validate, model, decode=decode)
    gap = partial(score_gap, model, decode=decode)

    if several:
        assess = jax.vmap(assess, in_axes=(0, None, 0, None))
        gap = jax.vmap(gap, in_axes=(0, None, None, 0))
        advance = jax.vmap(advance, in_axes=(0, None, 0, 0, 0, None, None))
        order_rows = jax.vmap(order_rows, in_axes=(0, None))
    return Programs(
        begin=jax.jit(lambda data, seeds: first(data, seed=seeds), out_shardings=placement),
        advance=jax.jit(advance, donate_argnums=0, out_shardings=placement),
        order_rows=jax.jit(order_rows, out_shardings=placement),
        assess=jax.jit(assess, donate_argnums=0, out_shardings=placement),
        gap=jax.jit(gap, out_shardings=placement),
    )


def fit(
    model: Model[Any],
    data: Mapping[str, Any],
    *,
    steps: int,
    batch_size: int,
    seed: int | Sequence[int] = 0,
    levels: int | None = None,
    decode: Decode = no_decode,
    report_every: int = 100,
    pause_every: Sequence[int] = (),
    steps_per_dispatch: int = 0,
    mesh: Mesh | None = None,
    start: tuple[int, Carry] | None = None,
    validation: Mapping[str, Any] | None = None,
    validate_every: int = 0,
    early_stop: int = 0,
    precision: Precision = "float32",
    rates: Mapping[str, Sequence[float]] | None = None,
    keep_going: bool = False,
) -> Iterator[Progress]:
    """Train a model, yielding after every dispatch; the last one is at step `steps`.

    With `early_stop` the last one can come before: when `stalled` holds.

    Examples:
      >>> import numpy as np
      >>> from gen.models.mixture import Mixture
      >>> x = np.array([[0, 0, 1], [1, 1, 0], [0, 0, 1], [1, 1, 0]], np.float32)
      >>> model = Mixture(shape=(3,), components=2)
      >>> [progress.step for progress in fit(model, {"x": x}, steps=3, batch_size=4)]
      [1, 2, 3]

    Args:
      model: any model of the contract. A falling schedule without a length falls over `steps`.
      data: arrays [N, ...] by name; they are put on the device once. Integer x are the symbols
        0 … K − 1 of a model of K levels, floating x are its values k / (K − 1) in [0, 1].
      steps: the number of the last step.
      batch_size: examples in a step.
      seed: one seed, or several that train independently at once (`vmap`); 32-bit, not negative.
      levels: the number of equally spaced values of x, 0 for continuous data. None infers it:
        integers have levels, and so have floats of at most 256 equally spaced values.
      decode: maps raw rows to a batch, for example `Format(255).decode`. Later calls reuse the
        compiled programs if it is an equal dataclass with a hash. Other functions compare by
        identity, so their programs are not kept.
      report_every: steps between two reports; metrics are fetched from the device only there.
      pause_every: a dispatch also ends at every multiple of each of these.
      steps_per_dispatch: steps in one compiled call; 0 takes 1 on a CPU, where loops slow down the
        convolutions that XLA computes (`nets.cpu_form`), and 100 elsewhere.
      mesh: devices over which the batch is split.
      start: (steps done, carry) to continue from, on the mesh if there is one. A run that continues
        with more steps keeps its falling schedule only if the model gives `decay_steps`.
      validation: raw arrays of the validation split.
      validate_every: steps between two validations (0: none). The state with the lowest mean
        `objective` is kept as `carry.best`. A model without an objective logs its `score_gap`, and
        no best state is kept.
      early_stop: validations without a better state after which training ends (0: never).
      precision: `bfloat16` rounds the inputs of matrix products in training steps to bfloat16 and
        sums in float32, on GPUs and TPUs. Parameters, convolutions, validation and everything on a
        CPU keep their precision. `float32` leaves the products as the device has them: a GPU may
        round their inputs to TF32.
      rates: rates of optimisers by path (`optimize.rates`), one value for each of several seeds,
        which may then repeat. They are arguments of the compiled step, mapped like the seeds, so
        that runs with different rates are one program, and the carry has the same arrays. The kind
        of the optimiser must use the rate, and all values are 0 or none is, as in the model.
      keep_going: go on while the metrics of any seed are finite.

    Raises:
      UserError: the decoded data are not of the model's kind (`checks.check_data`), such as a
        density's with levels; a batch is larger than the data, or the mesh cannot split it; a
        setting is no integer or out of its range; rates are out of their range, or none of the
        model's (`optimize.check_rates`); `start` has a carry that later steps have overwritten.
      NonFiniteError: a metric was NaN, or beyond LARGEST_METRIC, at a report.
    """
    check_settings(steps, report_every, pause_every, steps_per_dispatch, validate_every)
    check_seeds(list(np.unique(seed)) if rates else seed)
    checked_decode = None if decode is no_decode else decode
    check_data(model, data, levels, decode=checked_decode)
    if validate_every:
        check_validated(model)
        if validation is None:
            raise UserError(f"validate_every is {validate_every}, and there is no validation data")
        check_validation(model, data, validation, levels, decode=checked_decode)
    check_early_stop(model, early_stop, validate_every)
    rows = len(data["x"])
    check_batch_size(batch_size, rows)
    model = optimize.for_run(model, steps)
    on_cpu = jax.default_backend() == "cpu"
    if mesh is not None:
        parallel.check_batch(batch_size, mesh.size)
    # Many simulated devices deadlock when programs queue up (jax 0.10).
    wait = on_cpu and mesh is not None and mesh.size > 1
    group = steps_per_dispatch or (1 if on_cpu else 100)
    epoch_steps = rows // batch_size
    several = np.ndim(seed) > 0
    seeds = np.asarray(seed, np.uint32)
    rate_arrays = {path: np.asarray(values, np.float32) for path, values in (rates or {}).items()}
    for path, values in rate_arrays.items():
        if values.shape != seeds.shape or not several:
            raise UserError(f"{path} has {values.size} values: give one for each of several seeds")
    optimize.check_rates(model, rates or {})
    # A function compares by identity, so its programs would be kept and hardly ever found again.
    by_value = decode is no_decode or is_dataclass(decode)
    build = _programs if by_value else unwrap(_programs)
    programs = build(
        model,
        batch_size,
        decode,
        mesh,
        rows=rows,
        report_every=report_every,
        group=group,
        several=several,
        validated=validate_every > 0 and has_objective(model),
        precision=precision,
    )
    placement = None if mesh is None else parallel.replicated(mesh)
    data = jax.device_put(dict(data), placement)
    if validate_every:
        assert validation is not None
        validation = jax.device_put(dict(validation), placement)

    if start is not None:
        check_not_donated(start[1])
    step, carry = start or (0, programs.begin(data, seeds))
    epoch, order = -1, None
    ahead, most_ahead, waited = 0, 1.0, time.monotonic()  # dispatches that are not computed yet
    while step < steps and not stalled(step, carry, validate_every, early_stop):
        if step // epoch_steps != epoch:
            epoch = step // epoch_steps
            order = programs.order_rows(seeds, np.uint32(epoch))
        intervals = (report_every, validate_every or steps, *pause_every, epoch_steps)
        pauses = [(step // every + 1) * every for every in intervals]
        end = min(steps, step + group, *pauses)
        carry = programs.advance(
            carry, data, order, seeds, rate_arrays, np.int32(step), np.int32(end)
        )
        step = end
        ahead += 1
        if wait or ahead >= most_ahead:
            jax.block_until_ready(carry)
            now = time.monotonic()
            most_ahead, ahead, waited = AHEAD * ahead / max(now - waited, 1e-9), 0, now
        metrics = {}
        if step % report_every == 0 or step == steps:
            metrics |= _means(carry)
        if validate_every and step % validate_every == 0:
            if has_objective(model):
                carry, value = programs.assess(carry, validation, seeds, np.int32(step))
                metrics["validation"] = np.asarray(value)
            else:
                metrics["score_gap"] = np.asarray(programs.gap(carry, data, validation, seeds))
        _check_metrics(metrics, step, seeds, keep_going)
        yield Progress(step, carry, metrics or None)


def chosen_step(step: int, carry: Carry) -> np.ndarray:
    """Return the step of `carry.chosen`, [] or [S], after `step` steps."""
    best = np.asarray(carry.best.step) if isinstance(carry.best, Best) else np.zeros((), int)
    return np.where(best == 0, step, best)


def shown_seed(carry: Carry, restarts: bool) -> int:
    """Return the index of the seed whose model is shown: the first, or the best of restarts."""
    if not (restarts and isinstance(carry.best, Best)):
        return 0
    return int(np.argmin(carry.best.validation))


def stalled(step: int, carry: Carry, validate_every: int, early_stop: int) -> bool:
    """Return whether the last `early_stop` validations brought no better state.

    With several seeds, this must hold for all of them at once. The carry determines the answer, so
    that a resumed run ends at the same step.

    Args:
      step: steps done. A step without a validation does not end a run.
      carry: the carry after that step.
      validate_every: steps between two validations.
      early_stop: a number of validations; 0 never ends a run.
    """
    if not early_stop or step == 0 or step % validate_every or not isinstance(carry.best, Best):
        return False
    since = step - np.asarray(carry.best.step)  # [] or [S]
    return bool(np.all(since >= early_stop * validate_every))


def products_in(precision: Precision) -> Any:
    """Return a context in which JAX traces matrix products of this precision.

    JAX's own name "bfloat16" stands for the default of the device, which is TF32 on a GPU.
    """
    if precision == "float32":
        return nullcontext()
    return jax.default_matmul_precision("BF16_BF16_F32")


def without_sums(carry: Carry) -> Carry:
    """Return the carry with empty sums, as it is after a report."""
    sums, count = jax.tree.map(jnp.zeros_like, (carry.sums, carry.count))
    return carry._replace(sums=sums, count=count)


def check_finite(step: int, carry: Carry) -> None:
    """Raise `NonFiniteError`, naming the array, if the carry holds NaN or +∞ (−∞ is log 0)."""
    for path, found in jax.tree_util.tree_leaves_with_path(jax.device_get(_any_bad(carry))):
        if found:
            raise NonFiniteError(f"step {step}: {jax.tree_util.keystr(path)} holds NaN or infinity")


@jax.jit
def _any_bad(tree: Any) -> Any:
    return jax.tree.map(lambda array: (jnp.isnan(array) | (array == jnp.inf)).any(), tree)


def _means(carry: Carry) -> dict[str, np.ndarray]:
    """Return the mean of each metric since the last report, in one transfer."""
    sums, count = jax.device_get((carry.sums, carry.count))
    return {name: np.asarray(total / count) for name, total in sums.items()}


def has_diverged(metrics: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return whether any metric is NaN or exceeds LARGEST_METRIC, for each seed: [] or [S]."""
    return np.any([~(np.abs(value) <= LARGEST_METRIC) for value in metrics.values()], axis=0)


def _check_metrics(
    metrics: Mapping[str, np.ndarray], step: int, seeds: np.ndarray, keep_going: bool
) -> None:
    """Raise `NonFiniteError` if a metric is NaN or exceeds LARGEST_METRIC.

    The message names the metric and the seeds. With `keep_going`, it is raised if every seed has
    such a metric.
    """
    if keep_going and not np.all(has_diverged(metrics)):
        return
    for name, value in metrics.items():
        if not np.all(good := np.abs(value) <= LARGEST_METRIC):
            of = ", ".join(map(str, np.atleast_1d(seeds)[~np.atleast_1d(good)]))
            raise NonFiniteError(
                f"step {step}: {name} of seed {of} is not finite, or beyond {LARGEST_METRIC:g}"
            )
