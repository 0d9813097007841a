"""Save a trained state as a safetensors or an .npz file, and load it.

    weights.save("weights.safetensors", state, "vae_digits", step=3_000, model=model)
    state = weights.load("weights.safetensors")

Each array has its path in the state as its name, such as `params/encoder/Dense_0/kernel`. Arrays
under `opt_state` are left out: samples and estimates do not need them, and `load` takes them from
the model's `init`, so that training can go on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from gen import config, optimize
from gen.core import UserError
from gen.data.containers import read_npz
from gen.data.dataset import Binarize, Format
from gen.files import replacing

ANY_STEPS = 10**9
"""A length for falling schedules; an optimiser's first state is the same for every length."""


def save(
    path: str | os.PathLike[str],
    state: Any,
    experiment: str,
    step: int,
    *,
    model: Any = None,
    format: Format | None = None,
    binarize: Binarize = "none",
    half: bool = False,
) -> None:
    """Write a state, except for its optimiser's arrays, to a safetensors file or an .npz file.

    The header is a JSON object: the entry `gen` of a safetensors file's metadata, or the string
    `header` of an .npz file. It has the arguments below, the model and the format as
    `config.to_json` returns them, and under `arrays` the type and the shape of each array by name.

    Args:
      path: the file; its ending chooses the type, `.npz` or any other for safetensors.
      state: the state of a model.
      experiment: the name of the experiment.
      step: the training step of the state.
      model: the model, with the shape of its data; with it, `gen.load` takes the file.
      format: the format of the data.
      binarize: the rule by which they were binarised.
      half: whether to store float32 arrays as float16. `load` returns them as float32.

    Raises:
      UserError: the file cannot be written.
    """
    arrays: dict[str, Any] = {
        name: np.asarray(leaf) for name, leaf in _named(state).items() if _is_stored(name)
    }
    if half:
        arrays = {name: _halved(array) for name, array in arrays.items()}
    about = {"experiment": experiment, "step": step}
    if model is not None:
        about |= {"model": config.to_json(model), "binarize": binarize}
        about |= {"format": config.to_json(format or Format())}
    about["arrays"] = {name: _describe(array) for name, array in sorted(arrays.items())}
    # One entry: several would stand in a random order, and equal states would give unequal files.
    text = json.dumps(about)
    with replacing(Path(path)) as file:
        if Path(path).suffix == ".npz":
            np.savez(file, header=np.array(text), **arrays)
        else:
            file.write(safetensors.numpy.save(arrays, metadata={"gen": text}))


def header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the header of a file that `save` has written.

    Raises:
      UserError: the file cannot be read, or has no header of `save`.
    """
    return _read(path)[1]


def load(path: str | os.PathLike[str], model: Any = None) -> Any:
    """Return the state of a model from a file that `save` has written.

    Args:
      path: the file.
      model: the model, with the shape of its data; None takes the model of the header.

    Raises:
      UserError: the file cannot be read or names no model, or its arrays differ from the arrays of
        the model's state in name, shape or type.
    """
    arrays, about = _read(path)
    model = model_of(path, about) if model is None else model
    init = optimize.for_run(model, ANY_STEPS).init

    def optimizer_arrays(key: jax.Array) -> dict[str, Any]:
        return {name: leaf for name, leaf in _named(init(key)).items() if not _is_stored(name)}

    # The key does not determine the optimiser's arrays. The others are not computed.
    state = jax.eval_shape(init, jax.random.key(0))
    first = _named(state) | jax.jit(optimizer_arrays)(jax.random.key(0))
    needed = {name: _describe(leaf) for name, leaf in first.items() if _is_stored(name)}
    for name in needed.keys() & arrays.keys():
        if arrays[name].dtype == np.float16:
            arrays[name] = arrays[name].astype(first[name].dtype)
    stored = {name: _describe(array) for name, array in arrays.items()}
    if stored != needed:
        different = [
            f"{name} is {stored.get(name, 'absent')} and not {needed.get(name, 'absent')}"
            for name in sorted(stored.keys() | needed.keys())
            if stored.get(name) != needed.get(name)
        ]
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise UserError(
            f"{path} does not fit this {type(model).__name__}: {different[0]}{more}; "
            f"take the model of the experiment {about.get('experiment')} on its data"
        )
    leaves = [jnp.asarray(arrays.get(name, first[name])) for name in _named(state)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def model_of(path: str | os.PathLike[str], about: Mapping[str, Any]) -> Any:
    """Return the model that the header of a file describes.

    Args:
      path: the file, for messages.
      about: its header.

    Raises:
      UserError: the header has no model, or one with a network or an optimiser of the user's own.
    """
    if "model" not in about:
        raise UserError(f"the header of {path} has no model: pass the model")
    try:
        return config.from_json(about["model"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def halved(state: Any) -> Any:
    """Return the state that `load` gives back after `save` has stored it as float16."""

    def rounded(path: Any, leaf: Any) -> Any:
        stored = _is_stored(jax.tree_util.keystr(path, simple=True, separator="/"))
        return jnp.asarray(_halved(np.asarray(leaf)), leaf.dtype) if stored else leaf

    return jax.tree_util.tree_map_with_path(rounded, state)


def _halved(array: np.ndarray) -> np.ndarray:
    """Return a float32 array as float16, where no value is too large, and others as they are."""
    finite = array[np.isfinite(array)] if array.dtype == np.float32 else array
    fits = array.dtype == np.float32 and np.all(np.abs(finite) <= np.finfo(np.float16).max)
    return array.astype(np.float16) if fits else array


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a file by name, and its header.

    Raises:
      UserError: the file is damaged, holds Python objects or unpacks to too much, or its header is
        no object with the experiment and the step.
    """
    try:
        if Path(path).suffix == ".npz":
            arrays = read_npz(Path(path))
            text = str(arrays.pop("header", ""))
        else:
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                text = (file.metadata() or {}).get("gen", "")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from error
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not {"experiment", "step"} <= about.keys():
        raise UserError(
            f"{path} cannot be read as weights: no header with an experiment and a step; take "
            "a file that `python -m experiments export` or gen.weights.save has written"
        )
    return arrays, about


def _named(state: Any) -> dict[str, Any]:
    """Return the arrays of a state by their paths, in the order of its leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _is_stored(name: str) -> bool:
    """Return whether an array of that name belongs into the file."""
    return "opt_state" not in name.split("/")


def _describe(array: Any) -> str:
    """Return the type and shape of an array as text, such as `float32[64, 16]`."""
    return f"{array.dtype}{list(array.shape)}"
