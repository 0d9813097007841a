"""Turn models and their parts into JSON and back.

    values = to_json(VAE(latent=2))  # {"class": "VAE", "latent": 2, "encoder": {"class": "MLP", ...
    model = from_json(values)

The class of every part is named. `from_json` takes the classes of `PARTS` only: a file cannot make
it import anything else. A value that JSON cannot hold, such as a network of the user's own or an
optax transformation, is written as the name of its class, and comes back from a `default`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from flax import linen as nn

from gen.core import UserError

_AUTOREGRESSIVE = "gen.models.autoregressive"
_DIFFUSION = "gen.models.diffusion"
_EMISSIONS = "gen.models.hmm.emissions"

PARTS = {
    "AIS": "gen.models.boltzmann.partition",
    "Affine": "gen.nets",
    "Autoencoder": "gen.models.autoencoder.model",
    "Autoregressive": f"{_AUTOREGRESSIVE}.model",
    "Bernoulli": _EMISSIONS,
    "BoltzmannMachine": "gen.models.boltzmann.general",
    "Categorical": _EMISSIONS,
    "Classifier": "gen.uses.classifier",
    "ConvDecoder": "gen.nets",
    "ConvEncoder": "gen.nets",
    "DBM": "gen.models.boltzmann.dbm",
    "DBN": "gen.models.boltzmann.dbn",
    "DCGANDiscriminator": "gen.models.gan.networks",
    "DCGANGenerator": "gen.models.gan.networks",
    "Dequantized": "gen.models.dequantized",
    "DiscreteDiffusion": f"{_DIFFUSION}.discrete",
    "FVSBN": f"{_AUTOREGRESSIVE}.vectors",
    "FlowMatching": f"{_DIFFUSION}.flow",
    "Format": "gen.data.dataset",
    "GAN": "gen.models.gan.model",
    "GatedPixelCNN": f"{_AUTOREGRESSIVE}.pixels",
    "Gaussian": _EMISSIONS,
    "GaussianDiffusion": f"{_DIFFUSION}.gaussian",
    "GaussianMixture": _EMISSIONS,
    "HMM": "gen.models.hmm.model",
    "KSparse": "gen.models.autoencoder.model",
    "MADE": f"{_AUTOREGRESSIVE}.vectors",
    "MLP": "gen.nets",
    "Mixture": "gen.models.mixture",
    "MixtureOfGaussians": "gen.models.gaussian_mixture",
    "NADE": f"{_AUTOREGRESSIVE}.vectors",
    "Optimizer": "gen.optimize",
    "PixelCNN": f"{_AUTOREGRESSIVE}.pixels",
    "Poisson": _EMISSIONS,
    "RBM": "gen.models.boltzmann.rbm",
    "Reading": "gen.data.own",
    "ResidualMLP": f"{_DIFFUSION}.nets",
    "StackedAutoencoder": "gen.models.autoencoder.stacked",
    "UNet": f"{_DIFFUSION}.nets",
    "VAE": "gen.models.vae",
}
"""The module of each class that a configuration may name: models, networks and other parts."""


def to_json(value: Any) -> Any:
    """Return a value as JSON gives it back: a part as an object, a tuple as a list.

    The object of a part holds its class and its fields. The class is a name of `PARTS`, or the
    module and the name of another class. The object of a value that JSON cannot hold has its class
    alone.
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (tuple, list):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    stored = fields_to_json(value) if _is_part(value) else {}
    return {"class": _class_name(value), **stored}


def fields_to_json(part: Any) -> dict[str, Any]:
    """Return the fields of a part as JSON, without its class."""
    return {name: to_json(getattr(part, name)) for name in stored_fields(type(part))}


def from_json(value: Any, default: Any = None, name: str = "model") -> Any:
    """Return the part that `to_json` described.

    Args:
      value: the object of the part. A field that it lacks takes the default of its class.
      default: a part of the same class, or None. It gives the values that JSON cannot hold, and its
        class if the object, of an older version, names none.
      name: the name of the part, for messages.

    Raises:
      UserError: a class is not in `PARTS` and not the default's, or a field is unknown, is of
        another type or is out of its range.
    """
    label = value.get("class") if isinstance(value, dict) else None
    if isinstance(label, str) and label in PARTS:
        kind = getattr(import_module(PARTS[label]), label)
    elif isinstance(value, dict) and default is not None and label in (None, _class_name(default)):
        kind = type(default)
    else:
        known = f"has the class {reprlib.repr(label)}" if label else "names no class"
        raise UserError(
            f"{name} {known}, which this project lacks: pass the model, gen.load(path, model=...)"
        )
    if not is_dataclass(kind):  # such as an optax transformation
        return default
    stored = {field: each for field, each in value.items() if field != "class"}
    return _rebuild(kind, default if type(default) is kind else None, stored, f"{name}.")


def with_fields(default: Any, values: Mapping[str, Any]) -> Any:
    """Return the part `default` with the fields that `fields_to_json` described.

    Args:
      default: a part, which gives the values that JSON cannot hold.
      values: JSON values by field. A field that is absent takes the default of the class.

    Raises:
      UserError: as `from_json`.
    """
    return _rebuild(type(default), default, values, "")


def _class_name(value: Any) -> str:
    """Return the name of a value's class, with its module unless the class is in `PARTS`."""
    kind = type(value)
    known = PARTS.get(kind.__name__) == kind.__module__
    return kind.__name__ if known else f"{kind.__module__}.{kind.__qualname__}"


def _is_part(value: Any) -> bool:
    """Return whether a value is an object whose fields are stored."""
    return is_dataclass(value) and not isinstance(value, type)


def stored_fields(kind: Any) -> list[str]:
    """Return the names of the fields that are stored.

    A Flax module has further fields, which Flax or the model sets.
    """
    internal = {*getattr(kind, "set_by_model", ()), "parent", "name"}
    skipped = internal if issubclass(kind, nn.Module) else set()
    return [field.name for field in fields(kind) if field.init and field.name not in skipped]


def _holds(value: Any) -> bool:
    """Return whether JSON can hold a value, as the versions decided that named no classes."""
    if isinstance(value, tuple | list):
        return all(map(_holds, value))
    return _is_part(value) or value is None or isinstance(value, bool | int | float | str)


def _rebuild(kind: Any, default: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """Return a part from the JSON values of its fields.

    Args:
      kind: the class of the part.
      default: a part of that class, or None.
      values: JSON values by field.
      prefix: the name of the part, with a dot, for messages.
    """
    names = stored_fields(kind)
    if unknown := values.keys() - set(names):
        raise UserError(
            f"{kind.__name__} lacks the fields {', '.join(sorted(unknown))} "
            "(was the run made by another version?)"
        )
    hints, own_defaults = get_type_hints(kind), {field.name: field for field in fields(kind)}
    chosen = {}
    for name in names:
        given = None if default is None else getattr(default, name)
        if name in values:
            chosen[name] = _value(given, hints[name], values[name], f"{prefix}{name}")
        elif not _holds(given):  # which older versions left out
            chosen[name] = given
        elif own_defaults[name].default is not MISSING:
            chosen[name] = own_defaults[name].default
        elif default is None and own_defaults[name].default_factory is MISSING:
            raise UserError(f"{prefix}{name} is missing and has no default")
    return kind(**chosen) if default is None else replace(default, **chosen)


def _value(default: Any, hint: Any, value: Any, name: str) -> Any:
    """Return a field's value from JSON. Raise `UserError` unless it has the field's type.

    Args:
      default: the value of the field in the default part, or None.
      hint: the field's type.
      value: the value from JSON.
      name: the name of the field, for messages.
    """
    is_object = isinstance(value, dict)
    if is_object and ("class" in value or _is_part(default)):
        part = from_json(value, default, name)
        if has_type(part, hint):
            return part
    elif is_object or _is_part(default) or not has_type(value, hint):
        pass
    elif isinstance(value, list):  # a tuple, of numbers or of parts
        same = isinstance(default, tuple) and len(default) == len(value)
        parts = default if same else [None] * len(value)
        return tuple(_value(part, Any, item, name) for part, item in zip(parts, value, strict=True))
    else:
        return value
    needed = ", ".join(map(repr, get_args(hint))) if get_origin(hint) is Literal else hint
    needed = needed.__name__ if isinstance(needed, type) else needed
    raise UserError(f"{name} is {reprlib.repr(value)}, must be {needed}")


def has_type(value: Any, hint: Any) -> bool:
    """Return whether a value from JSON has a field's type. A list stands for a tuple."""
    kind, options = get_origin(hint), get_args(hint)
    if kind is Literal:
        return isinstance(value, str) and value in options
    if kind in (Union, UnionType):
        return any(has_type(value, each) for each in options)
    if kind is tuple and isinstance(value, list):
        kinds = [options[0]] * len(value) if options[-1] is ... else options
        return len(value) == len(kinds) and all(map(has_type, value, kinds))
    if hint is float:
        return type(value) in (float, int)
    if hint in (bool, int, str, NoneType):
        return type(value) is hint  # True is an int for `isinstance`
    if isinstance(hint, type) and (is_dataclass(hint) or issubclass(hint, tuple | nn.Module)):
        return isinstance(value, hint)
    return kind is not tuple  # a type that a network of the user's has
