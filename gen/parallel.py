"""One step on many devices: a mesh under `jit`, `pmap`, and several processes."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gen.core import Model, UserError

AXIS = "devices"
Tree = TypeVar("Tree")


def join(coordinator: str, processes: int, process: int) -> None:
    """Joins `processes` processes into one program through the one at `coordinator` (host:port).

    Call it in every process, with its own number `process`, before JAX is used for anything else.
    """
    if not 0 <= process < processes:
        raise UserError(f"process {process} of {processes}: number them 0 … {processes - 1}")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except RuntimeError as error:
        raise UserError(
            f"process {process} of {processes} did not reach the others at {coordinator} "
            f"({str(error).splitlines()[0]}): start all of them, with the same coordinator"
        ) from error


def make_mesh(devices: int) -> Mesh:
    """A mesh of one axis over the first `devices` devices of all processes."""
    present = jax.device_count()
    if not 1 <= devices <= present:
        raise UserError(
            f"{devices} devices asked for, {present} present: take 1 … {present} (a CPU simulates "
            "N of them under XLA_FLAGS=--xla_force_host_platform_device_count=N)"
        )
    chosen = jax.devices()[:devices]
    if len({device.process_index for device in chosen}) < jax.process_count():
        raise UserError(
            f"{devices} devices leave a process without one: take all {present} or drop --devices"
        )
    # Explicit axes, JAX's default, would refuse ordinary slicing.
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def check_batch(batch_size: int, devices: int) -> None:
    """Raises `UserError`, with the nearest sizes that work, unless `devices` divides the batch."""
    if batch_size % devices:
        below = batch_size // devices * devices
        sizes = f"{below} or {below + devices}" if below else f"{devices}"
        raise UserError(
            f"a batch of {batch_size} cannot be split over {devices} devices: "
            f"the nearest sizes that work are {sizes}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(batch: Tree, mesh: Mesh) -> Tree:
    """Inside a compiled function: the rows of every array are spread over the mesh."""
    rows = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array, rows), batch)


def local(tree: Tree) -> Tree:
    """Of replicated arrays, the copy on this process's first device of the mesh."""
    return jax.tree.map(
        lambda array: array.addressable_data(0) if isinstance(array, jax.Array) else array, tree
    )


def pmap_step(model: Model[Any], devices: int) -> Any:
    """`model.step` under `jax.pmap` over the first `devices` local devices, state donated.

    It takes (state, batch, key): the state replicated by `replicate`, the batch shaped
    [devices, B / devices, ...] by `shard`, and one key, the same for all. A mesh is the
    recommended way; `pmap` is for code that has it already.
    """

    def step(state, batch, key):
        return model.step(state, batch, key, axis_name=AXIS)

    return jax.pmap(
        step, AXIS, in_axes=(0, 0, None), donate_argnums=0, devices=jax.local_devices()[:devices]
    )


def replicate(tree: Tree, devices: int) -> Tree:
    """Every array with a new leading axis of `devices` equal copies."""
    return jax.tree.map(lambda array: np.broadcast_to(array, (devices, *np.shape(array))), tree)


def shard(batch: Tree, devices: int) -> Tree:
    """[B, ...] -> [devices, B / devices, ...]."""
    return jax.tree.map(lambda rows: np.reshape(rows, (devices, -1, *np.shape(rows)[1:])), batch)
