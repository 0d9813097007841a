"""Checks of what `fit` and `evaluate` are given, before anything is compiled.

Every refusal is a `UserError` of one line: what was given, what is needed, and how to convert it.
The command line states the same about its data sets by the same functions.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gen.core import LARGEST, UserError, capabilities, facts
from gen.levels import check_levels, conversion, infer_levels, span

VALUES_AT_ONCE = 2**22
"""Values of x, at most, that are decoded and checked at a time."""

MEASUREMENTS = ", or pass levels=0 if the values are measurements"
"""The other way out for a caller of `fit` whose measurements are rounded to few values."""


def check_data(
    model: Any,
    data: Any,
    levels: int | None = None,
    *,
    decode: Any = None,
    any_length: bool = False,
) -> None:
    """Check that a model takes the examples.

    Args:
      model: any model.
      data: arrays [N, ...] by name, `"x"` among them.
      levels: the number of levels of x, 0 for continuous data, None to infer it.
      decode: maps (raw rows, key) to the batch that the model takes, or None where the data are
        decoded. The decoded rows are checked, in blocks.
      any_length: whether sequences may have another number T of steps than the model's shape.

    Raises:
      UserError: the data are no arrays of equally many rows, or have another shape or dtype, other
        values, labels or lengths than the model takes.
    """
    if isinstance(model, type):
        raise UserError(f"the model is the class {model.__name__}: pass {model.__name__}(...)")
    check_arrays(data)
    if levels is not None:
        check_integer("levels", levels, 0)
    if "length" in data:
        check_sequences(model, "the data set")
    known = facts(model)
    first: Any = {}
    labels, symbols = [], []
    for row, batch in _blocks(data, decode):
        x = batch["x"]
        if not first:
            first = batch
            check_type("x", x)
            check_shape(model, x.shape[1:], any_length)
        if "label" in batch:
            labels.append(batch["label"])
        if "length" in batch:
            check_lengths(batch)
        x = _unpadded(batch)
        if known.levels and not jnp.issubdtype(x.dtype, jnp.floating):
            symbols += [int(x.min()), int(x.max())]
        else:
            check_values(model, x, row)
    # The advice depends on all rows, which may be sorted, and not on one block.
    if symbols:
        check_symbols(model, min(symbols), max(symbols))
    if known.classes:
        check_labels(model, {"label": np.concatenate(labels)} if labels else {})
    if known.sequences and known.levels == 0 and "length" not in data:
        check_unpadded(np.asarray(data["x"]) if decode is None else first["x"])
    if known.levels == 0:
        if levels is None:
            levels = infer_levels(data["x"] if decode is None else first["x"])
        check_kind(model, "x", levels, shape=model.shape, otherwise=MEASUREMENTS)


def check_validation(
    model: Any, data: Any, validation: Any, levels: int | None = None, *, decode: Any = None
) -> None:
    """Check that a model takes the validation data, which have lengths where the data have them.

    Args:
      model: any model.
      data: the training data.
      validation: the validation data.
      levels: as in `check_data`.
      decode: as in `check_data`.
    """
    try:
        check_data(model, validation, levels, decode=decode, any_length=True)
        if "length" in data and "length" not in validation:
            raise UserError('"length" is missing, which the training data have: pass it too')
    except UserError as error:
        raise UserError(f"validation data: {error}") from error


def check_arrays(data: Any) -> None:
    """Check that the data are arrays by name, with equally many rows."""
    if not isinstance(data, Mapping):
        raise UserError(f'the data are {_described(data)}: pass arrays by name, {{"x": x}}')
    if "x" not in data:
        names = ", ".join(map(repr, data)) or "none"
        raise UserError(f'the data have no array "x" (their names: {names}): pass {{"x": x, ...}}')
    for name, values in data.items():
        if not isinstance(values, np.ndarray | jax.Array):
            raise UserError(f"{name} is {_described(values)}: pass an array, numpy.asarray({name})")
        if isinstance(values, np.ma.MaskedArray):
            raise UserError(
                f"{name} is a masked array: pass {name}.filled(numpy.nan) to a model that takes "
                "missing values, or remove these rows"
            )
        if values.ndim == 0:
            raise UserError(f"{name} is a single number: pass an array with one row per example")
        check_type(name, values)
    rows = {name: len(values) for name, values in data.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name} has {count}" for name, count in rows.items())
        raise UserError(f"the arrays have different numbers of rows ({counts}): pass equally many")
    if not rows["x"]:
        raise UserError("x has no rows: pass at least one example")


def check_type(name: str, values: np.ndarray | jax.Array) -> None:
    """Check that an array holds real numbers, and no integers that JAX would cut to 32 bits."""
    dtype = values.dtype
    if dtype.kind not in "biuf" and not jnp.issubdtype(dtype, jnp.floating):
        remedy = "x.astype(numpy.float32)" if name == "x" else "or leave it out"
        raise UserError(f"{name} has the dtype {dtype}: pass numbers, {remedy}")
    if dtype.kind in "iu" and dtype.itemsize > 4 and values.size:
        low, high = int(values.min()), int(values.max())
        if low < -(2**31) or high >= 2**31:
            raise UserError(
                f"{name} has integers {low} … {high}, beyond 32 bits: "
                f"pass {name}.astype(numpy.float32)"
            )


def check_shape(model: Any, shape: Sequence[int], any_length: bool = False) -> None:
    """Check that examples of that shape are of the model's.

    Args:
      model: any model.
      shape: the shape of one decoded example.
      any_length: whether sequences may have another number T of steps.
    """
    needed, given = tuple(model.shape), tuple(shape)
    skip = any_length and facts(model).sequences
    if needed == given or (skip and needed[1:] == given[1:] and given):
        return
    name = type(model).__name__
    reshape = ""
    if math.prod(needed) == math.prod(given):
        reshape = f", or x.reshape({', '.join(map(str, (-1, *needed)))})"
    raise UserError(
        f"x has examples of shape {given} and the model has shape {needed}: "
        f"pass {name}(shape={given}, ...){reshape}"
    )


def check_values(model: Any, x: np.ndarray, row: int = 0) -> None:
    """Check that the values of x are finite and of the kind that the model takes.

    Args:
      model: any model.
      x: decoded rows without padding, [B, *shape]; integers where the model has no levels alone.
      row: the number of the first row, for messages.
    """
    name, known = type(model).__name__, facts(model)
    with np.errstate(over="ignore"):
        x = np.asarray(x, np.float32)
    usable = np.isfinite(x)
    allowed = usable | np.isnan(x) if known.missing else usable
    if not allowed.all():
        wrong = np.argwhere(~allowed)[0]
        place = ", ".join(map(str, (row + wrong[0], *wrong[1:])))
        raise UserError(
            f"x[{place}] is {x[tuple(wrong)]} and {name} takes finite values: remove these rows or "
            "fill them in"
        )
    x = x[usable]
    if not x.size:
        return
    if known.levels:
        check_levels({"x": x}, known.levels)
    if known.unit_interval and (x.min() < 0 or x.max() > 1):
        raise UserError(
            f"{name} takes values in [0, 1] and x has values {span(x)}: {conversion(x)}"
        )
    if known.counts:
        check_counts(model, x)


def check_symbols(model: Any, low: int, high: int) -> None:
    """Check that integers are symbols 0 … K − 1 of the model's K levels.

    Args:
      model: a model with levels.
      low: the smallest integer.
      high: the largest integer.
    """
    levels = facts(model).levels
    assert levels
    if low >= 0 and high < levels:
        return
    if low == 1 and high == levels:
        remedy = "count from 0, x - 1"
    elif low < 0 and facts(model).sequences:
        remedy = 'pass the numbers of steps before padding as "length", and missing values as NaN'
    elif low < 0:
        remedy = f"count from 0, x + {-low}"
    elif high == 255 and levels == 2:
        remedy = "binarise grey bytes, x > 127 (--binarize)"
    else:
        remedy = f"set the model's levels to {high + 1}"
    raise UserError(
        f"x has integers {low} … {high} and {type(model).__name__} the symbols 0 … {levels - 1}: "
        f"{remedy}"
    )


def check_counts(model: Any, x: np.ndarray) -> None:
    """Check that the values are counts 0, 1, 2, …"""
    if x.min() < 0 or np.any(x != np.round(x)):
        raise UserError(
            f"{type(model).__name__} models counts 0, 1, 2, … and x has other values, {span(x)}: "
            "choose other emissions, such as Gaussian"
        )


def check_kind(
    model: Any,
    source: str,
    levels: int,
    *,
    counts: bool = False,
    shape: Sequence[int] | None = None,
    otherwise: str = "",
) -> None:
    """Check that a model takes data of that kind.

    Args:
      model: any model.
      source: the name of the data, for messages.
      levels: the number of levels of x, 0 for counts and continuous data.
      counts: whether x are counts.
      shape: the shape of one example, or None where the command line sets it.
      otherwise: another way out than dequantization, for the message.

    Raises:
      UserError: x are levels, counts or continuous, and the model takes another kind.
    """
    name, known = type(model).__name__, facts(model)
    kind = "counts" if counts else f"{levels} levels" if levels else "continuous values"
    if counts and known.levels is not None:
        raise UserError(
            f"{source} has counts, not levels: take a model of counts, such as an HMM with "
            "Poisson emissions"
        )
    if known.counts and not counts and levels != 2:  # 0 and 1 are counts, too
        raise UserError(
            f"{name} models counts and {source} has {kind}: choose other data or other emissions"
        )
    if known.levels == 0 and levels == 1:
        raise UserError(
            f"{name} models a density of continuous data and all values of {source} are equal"
        )
    if known.levels == 0 and levels:
        if known.sequences:
            otherwise = f", or emission=Categorical({levels}){otherwise}"
        stated = "" if shape is None else f"shape={tuple(shape)}, "
        raise UserError(
            f"{name} models a density of continuous data and {source} has {kind}: "
            f"take Dequantized({name}(...), {stated}levels={levels}){otherwise}"
        )
    if known.levels and not levels:
        raise UserError(
            f"{source} has {kind} and {name} models {known.levels} levels: take a model of a "
            "density"
        )
    if known.levels and known.levels != levels:
        raise UserError(
            f"{source} has {levels} levels, the model {known.levels}: change that (--binarize), "
            "or the model's levels"
        )


def check_labels(model: Any, batch: Mapping[str, np.ndarray]) -> None:
    """Check that the labels are integers 0 … classes − 1 of a model with classes."""
    classes = facts(model).classes
    if "label" not in batch:
        check_classes(model, "the data set", 0)
    label = batch["label"]
    if label.ndim != 1:
        raise UserError(f"label has shape {label.shape}: pass one integer per example, [N]")
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise UserError(
            f"label has the dtype {label.dtype}: pass integers 0 … {classes - 1}, "
            "label.astype(numpy.int32)"
        )
    low, high = int(label.min()), int(label.max())
    if low == 1 and high == classes:
        raise UserError(
            f"label has {low} … {high}, needed are 0 … {classes - 1}: count from 0, label - 1"
        )
    if low < 0:
        raise UserError(
            f"label has {low}, needed are 0 … {classes - 1}: remove the rows without a label"
        )
    check_classes(model, "the data set", high + 1)


def check_classes(model: Any, source: str, classes: int) -> None:
    """Check that data have the labels that a model takes.

    Args:
      model: any model; one without classes takes no labels.
      source: the name of the data, for messages.
      classes: 1 + the largest label, or 0 if there are no labels.
    """
    taken = facts(model).classes
    if taken and not classes:
        raise UserError(
            f"{source} has no labels, which the model takes: set the model's classes to 0 "
            "(--model.classes 0)"
        )
    if taken and classes > taken:
        raise UserError(
            f"{source} has labels up to {classes - 1}, the model {taken} classes: set the model's "
            f"classes to {classes} (--model.classes {classes})"
        )


def check_probe(model: Any) -> None:
    """Check that a model has codes from which its labels can be predicted.

    A model with classes is given the label, so its codes can contain it.
    """
    name = type(model).__name__
    if "encode" not in capabilities(model):
        raise UserError(f"{name} has no codes, from which --probe predicts: leave it out")
    if facts(model).classes:
        raise UserError(
            f"{name} is given the labels, so that its codes can contain what --probe predicts: "
            "leave it out"
        )


def check_sequences(model: Any, source: str) -> None:
    """Check that a model takes sequences of different lengths, which `source` has."""
    if not facts(model).sequences:
        raise UserError(
            f"{source} has sequences of different lengths, which {type(model).__name__} does not "
            "take: an HMM does"
        )


def check_lengths(batch: Mapping[str, np.ndarray]) -> None:
    """Check that `"length"` holds integers 1 … T, one for each sequence."""
    length, steps = batch["length"], batch["x"].shape[1]
    if length.ndim != 1:
        raise UserError(f"length has shape {length.shape}: pass one integer per sequence, [N]")
    if not jnp.issubdtype(length.dtype, jnp.integer):
        raise UserError(
            f"length has the dtype {length.dtype}: pass integers 1 … {steps}, "
            "length.astype(numpy.int32)"
        )
    wrong = (length < 1) | (length > steps)
    if wrong.any():
        given = int(length[wrong][0])
        remedy = "remove empty sequences" if given < 1 else f"x has {steps} steps"
        raise UserError(
            f"length has {given}, needed are 1 … {steps}, the numbers of steps before the padding: "
            f"{remedy}"
        )


def check_unpadded(x: np.ndarray) -> None:
    """Check that continuous sequences [N, T, ...] without lengths do not look padded.

    They do where sequences end in steps of zeros of different numbers, and there is no such step
    elsewhere.
    """
    zero = (x == 0).reshape(*x.shape[:2], -1).all(axis=2)
    trailing = np.logical_and.accumulate(zero[:, ::-1], axis=1)
    padding = trailing.sum(axis=1)
    if padding.max() > 1 and len(set(padding.tolist())) > 1 and padding.sum() == zero.sum():
        raise UserError(
            f"{(padding > 0).sum()} of {len(x)} sequences end in steps of zeros, up to "
            f'{padding.max()}, which look like padding: pass "length" [N], the numbers of steps '
            f"before it, or numpy.full({len(x)}, {x.shape[1]}) if the zeros are data"
        )


def _unpadded(batch: Mapping[str, Any]) -> np.ndarray:
    """Return the x of a batch, with zeros in place of padding where there are lengths."""
    x = np.asarray(batch["x"])
    return without_padding(x, np.asarray(batch["length"])) if "length" in batch else x


def without_padding(x: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return sequences [N, T, ...] with zeros from step `length` [N] on."""
    within = np.arange(x.shape[1])[None] < length[:, None]
    return np.where(within.reshape(*within.shape, *[1] * (x.ndim - 2)), x, np.zeros((), x.dtype))


def check_integer(name: str, value: Any, least: int, most: int = LARGEST) -> None:
    """Check that a setting is an integer within a range.

    Args:
      name: its name, for messages.
      value: what was given.
      least: the smallest value that it may have.
      most: the largest value that it may have.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise UserError(f"{name} is {value!r}: pass an integer")
    if not least <= number <= most:
        raise UserError(f"{name} {number} is out of range: take {least} … {most}")


def check_settings(
    steps: int,
    report_every: int,
    pause_every: Sequence[int],
    steps_per_dispatch: int,
    validate_every: int,
) -> None:
    """Check that the settings of `fit` are integers in range.

    Args:
      steps: at least 1.
      report_every: at least 1.
      pause_every: each at least 1.
      steps_per_dispatch: at least 0.
      validate_every: at least 0.
    """
    pauses = np.atleast_1d(np.asarray(pause_every, object)).tolist()
    for name, value, least in (
        ("steps", steps, 1),
        ("report_every", report_every, 1),
        *(("pause_every", pause, 1) for pause in pauses),
        ("steps_per_dispatch", steps_per_dispatch, 0),
        ("validate_every", validate_every, 0),
    ):
        check_integer(name, value, least)


def check_batch_size(batch_size: int, rows: int) -> None:
    """Check that a batch of that size can be drawn from that many rows."""
    check_integer("batch_size", batch_size, -LARGEST)
    if not 0 < batch_size <= rows:
        raise UserError(
            f"a batch of {batch_size} from {rows} training examples: take batch_size 1 … {rows}"
        )


def check_seeds(seed: int | Sequence[int]) -> None:
    """Check that every seed is a different integer of 32 bits."""
    seeds = np.atleast_1d(np.asarray(seed, object)).tolist()
    if not seeds:
        raise UserError("seed is empty: pass one integer or more")
    for number in seeds:
        check_integer("seed", number, 0, 2**32 - 1)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {' '.join(map(str, seeds))} repeat one: take different ones")


def has_objective(model: Any) -> bool:
    """Return whether validation can choose among the model's states."""
    return "objective" in capabilities(model)


def check_validated(model: Any) -> None:
    """Check that the model has an objective or a score to validate by."""
    if not {"objective", "score"}.intersection(capabilities(model)):
        raise UserError(
            f"{type(model).__name__} has no objective and no score to validate: validate_every 0"
        )


def check_early_stop(model: Any, early_stop: int, validate_every: int) -> None:
    """Check that validation can end the training.

    Args:
      model: any model.
      early_stop: validations without a better state after which training ends, 0 for never.
      validate_every: steps between two validations, 0 for none.

    Raises:
      UserError: `early_stop` is no integer of at least 0, there is no validation, or the model has
        no objective.
    """
    check_integer("early_stop", early_stop, 0)
    if early_stop and not validate_every:
        raise UserError(f"early_stop is {early_stop}, without validation: give validate_every")
    if early_stop and not has_objective(model):
        raise UserError(
            f"{type(model).__name__} has no objective by which a state is better: early_stop 0"
        )


def check_not_donated(tree: Any) -> None:
    """Raise `UserError` if training has reused the memory of an array of the tree."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted():
            raise UserError(
                "later training steps have overwritten this state: copy a state that must outlive "
                "its step, jax.tree.map(jax.numpy.copy, progress.carry.state), or use gen.fit, "
                "which returns the last one"
            )


def _described(value: Any) -> str:
    """Return the type of a value with an article, and the shape of an array."""
    if isinstance(value, np.ndarray | jax.Array):
        return f"a bare array of shape {value.shape}"
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"


def _blocks(data: Mapping[str, Any], decode: Any) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield the number of the first row and the decoded arrays of each block of rows.

    All blocks have equally many rows, so that `decode` compiles once: the last one begins earlier
    if it must. Draws of `decode`, such as dynamic binarisation, take a key of their own.
    """
    arrays = {name: np.asarray(values) for name, values in data.items()}
    rows = len(arrays["x"])
    size = min(rows, max(1, VALUES_AT_ONCE // max(1, math.prod(arrays["x"].shape[1:]))))
    run = jax.jit(decode) if decode else None
    for first in range(0, rows, size):
        first = min(first, rows - size)
        block = {name: values[first : first + size] for name, values in arrays.items()}
        yield first, jax.device_get(run(block, jax.random.key(0))) if run else block
