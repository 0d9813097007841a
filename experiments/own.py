"""Check models on the user's own data, and report results in the units of these data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from gen.core import UserError, facts
from gen.data import Dataset, Reading, log_scale
from gen.estimate import Estimate
from gen.levels import span

FEW = 10
"""largest number of different integers in a column that is not continuous"""
SHOWN = 8
"""columns, at most, that a message names"""


def check(model: Any, dataset: Dataset) -> None:
    """Check that a model takes the missing values, the columns and the range of own data.

    Args:
      model: any model.
      dataset: data of the user's own.

    Raises:
      UserError: it does not.
    """
    name, known, format = type(model).__name__, facts(model), dataset.format
    missing = sum(int(np.isnan(split["x"]).sum()) for split in _floats(dataset))
    rows_of_columns = bool(format.scale) and len(dataset.shape) == 1
    if known.sequences and rows_of_columns:
        raise UserError(
            f"{dataset.name} has rows of columns and {name} takes sequences: give --series if the "
            "rows are steps of one series"
        )
    if missing and not known.missing:
        fill = " or --missing mean" if rows_of_columns else ""
        raise UserError(
            f"{dataset.name} has {missing} missing values, which {name} does not take: give "
            f"--missing drop{fill}"
        )
    if known.unit_interval and not format.levels:
        x = dataset.train["x"] / format.peak
        if format.scale and not rows_of_columns:
            x = (x - format.center[0]) / format.scale[0]
        if rows_of_columns or x.min() < 0 or x.max() > 1:
            values = "standardised columns" if rows_of_columns else f"values {span(x)}"
            raise UserError(f"{name} takes values in [0, 1] and {dataset.name} has {values}")
    if known.levels == 0:
        _check_continuous(name, dataset)


def columns_of_few_values(dataset: Dataset) -> list[int]:
    """Return the columns that have two values, or at most `FEW` different integers.

    A density of such a column has no largest value: it grows without bound at these values.
    """
    shape = dataset.shape
    if dataset.format.levels or dataset.format.counts or len(shape) not in (1, 2):
        return []
    if len(shape) == 2 and "length" not in dataset.train:
        return []
    x = dataset.train["x"].reshape(-1, shape[len(shape) - 1])
    if "length" in dataset.train:
        steps = np.arange(dataset.train["x"].shape[1])[None] < dataset.train["length"][:, None]
        x = x[steps.reshape(-1)]
    found = []
    for column, values in enumerate(x.T):
        values = values[~np.isnan(values)]
        different = np.unique(values)
        whole = bool((different == np.round(different)).all())
        if len(values) > 2 * FEW and len(different) <= (FEW if whole else 2):
            found.append(column)
    return found


def columns_for_a_density(dataset: Dataset) -> list[str]:
    """Return the names, or the numbers from 1 on, of the columns that a density can describe.

    Indicators of categories, which are called `column=value`, are no such columns.
    """
    few, columns = columns_of_few_values(dataset), dataset.shape[-1]
    words = dataset.format.words or tuple(str(column + 1) for column in range(columns))
    return [word for column, word in enumerate(words) if column not in few and "=" not in word]


def _check_continuous(name: str, dataset: Dataset) -> None:
    """Raise `UserError` if a model of a density is given columns of few values."""
    few = columns_of_few_values(dataset)
    if not few:
        return
    columns = dataset.shape[-1]
    words = dataset.format.words or tuple(str(column + 1) for column in range(columns))
    others = columns_for_a_density(dataset)
    shown = ", ".join(words[column] for column in few[:SHOWN]) + (", …" if len(few) > SHOWN else "")
    if others:
        listed = " ".join(repr(word) for word in others[:SHOWN])
        remedy = f"leave them out, --columns {listed}{' …' if len(others) > SHOWN else ''}"
    else:
        remedy = "take a model of levels or counts, with --kind levels or --kind counts"
    raise UserError(
        f"{name} models a density and {dataset.name} has columns of few values ({shown}), where a "
        f"density has no bound: {remedy}"
    )


def in_own_units(estimates: Mapping[str, Estimate], dataset: Dataset) -> dict[str, Estimate]:
    """Return estimates on standardised data in the units of the data.

    For y = (x − c) / s, −log p(x) = −log p(y) + Σ log s: estimates of densities are moved by the
    last term, which stands in their settings as `log_scale`. A squared error is multiplied by s² if
    one s scales all of x; else its settings say that its units are standardised.

    Args:
      estimates: estimates by name, on decoded data.
      dataset: the data.
    """
    scale = dataset.format.scale
    if not scale:
        return dict(estimates)
    moved = log_scale(dataset)
    # Of a bound on a density, the term −E log p(x | z) contains the density's unit.
    density = any(value.settings.get("density") for value in estimates.values())
    converted = {}
    for name, value in estimates.items():
        settings = dict(value.settings)
        # An RBM calls the squared error of its reconstructions so, and no term of a bound.
        no_term = name == "reconstruction" and value.kind == "no likelihood"
        squared = name == "mse" or no_term
        if settings.get("density") or (density and name == "reconstruction" and not squared):
            settings["log_scale"] = moved
            value = _map(value, lambda nats: nats + moved)
            value = replace(value, settings=settings)
        elif squared and len(scale) == 1:
            value = _map(value, lambda error: error * scale[0] ** 2)
            value = replace(value, stderr=value.stderr * scale[0] ** 2)
        elif squared:
            value = replace(value, settings={**settings, "units": "standardised"})
        converted[name] = value
    return converted


def _map(estimate: Estimate, convert: Callable[[Any], Any]) -> Estimate:
    """Return an estimate with its value, and its values per example, converted."""
    each = estimate.per_example
    return replace(
        estimate,
        value=convert(estimate.value),
        per_example=None if each is None else convert(each),
    )


def _floats(dataset: Dataset) -> list[Any]:
    """Return the splits whose x are floats, among which values can be missing."""
    return [split for split in dataset.splits.values() if split["x"].dtype.kind == "f"]


def flag_words(flags: Mapping[str, Any]) -> list[str]:
    """Return flags as words of a command line.

    Args:
      flags: the values by the paths of their fields, such as `model.latent`. A switch that is off
        has `no-` before its last part, as in `--model.no-bias`.
    """
    words = []
    for path, value in flags.items():
        part, dot, name = path.replace("_", "-").rpartition(".")
        if isinstance(value, bool):
            words.append(f"--{part}{dot}{'' if value else 'no-'}{name}")
        else:
            values = value if isinstance(value, tuple | list) else [value]
            words += [f"--{part}{dot}{name}", *map(str, values)]
    return words


def reading_flags(reading: Reading) -> list[str]:
    """Return the options of reading that differ from their defaults, as words of a command line."""
    default = asdict(Reading())
    return flag_words(
        {name: value for name, value in asdict(reading).items() if value != default[name]}
    )
