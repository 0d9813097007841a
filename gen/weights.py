"""Save a trained state as a safetensors file, and load it.

    weights.save("weights.safetensors", state, experiment="vae_digits", step=3_000)
    state = weights.load("weights.safetensors", model)

Each array has its path in the state as its name, such as `params/encoder/Dense_0/kernel`. Arrays
under `opt_state` are left out: samples and estimates do not need them, and `load` takes them from
the model's `init`, so that training can go on.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from gen import optimize
from gen.core import UserError
from gen.files import replacing

ANY_STEPS = 10**9
"""A length for falling schedules; an optimiser's first state is the same for every length."""


def save(path: str | os.PathLike[str], state: Any, experiment: str, step: int) -> None:
    """Write a state, except for its optimiser's arrays, to a safetensors file.

    Args:
      path: the file.
      state: the state of a model.
      experiment: the name of the experiment, for the file's header.
      step: the training step of the state, for the header.

    Raises:
      UserError: the file cannot be written.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in _named(state).items() if _is_stored(name)}
    # One entry: several would stand in a random order, and equal states would give unequal files.
    about = json.dumps({"experiment": experiment, "step": step})
    with replacing(Path(path)) as file:
        file.write(safetensors.numpy.save(arrays, metadata={"gen": about}))


def header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the `experiment` and the `step` of a file that `save` has written."""
    return _read(path)[1]


def load(path: str | os.PathLike[str], model: Any) -> Any:
    """Return the state of a model from a file that `save` has written.

    Args:
      path: the file.
      model: the model, with the shape of its data: `EXPERIMENTS[name].on(dataset).model`.

    Raises:
      UserError: the file cannot be read, or its arrays differ from the arrays of the model's state
        in name, shape or type.
    """
    arrays, about = _read(path)
    # Only the optimiser's arrays stay of this state, and the key does not determine them.
    state = jax.jit(optimize.for_run(model, ANY_STEPS).init)(jax.random.key(0))
    first = _named(state)
    needed = {name: _describe(leaf) for name, leaf in first.items() if _is_stored(name)}
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
    leaves = [jnp.asarray(arrays.get(name, leaf)) for name, leaf in first.items()]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a file by name, and its header."""
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, json.loads((file.metadata() or {}).get("gen", "{}"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from error


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
