"""A step on many devices: a mesh under `jit`, `pmap`, and several processes."""

from __future__ import annotations

import re
import socket
import threading
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gen.core import Model, UserError

AXIS = "devices"
"""The name of the only axis of a mesh, and of the mapped axis of `pmap`."""
HEARTBEAT = 30
"""Seconds after which a process that gives no sign of life counts as dead. JAX then aborts others
that wait for it at a barrier, as in the save of a checkpoint."""

Tree = TypeVar("Tree")


def join(coordinator: str, processes: int, process: int, seconds: float = 50) -> None:
    """Join the processes of one program, before any of them uses JAX for something else.

    Args:
      coordinator: host:port at which process 0 listens, the same in every process.
      processes: the number of processes.
      process: the number of this process, 0 ... processes − 1.
      seconds: how long to wait for the others.

    Raises:
      UserError: `coordinator` is not host:port, `process` is out of range, process 0 cannot listen
        at the port, or the others could not be reached.
    """
    port = port_of(coordinator)
    if not 0 <= process < processes:
        raise UserError(f"process {process} of {processes}: number them 0 … {processes - 1}")
    if process == 0:
        _check_free(coordinator, port)
    reason = f"waited for {seconds:.0f} s"

    def initialize():
        nonlocal reason
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                initialization_timeout=10**6,
                heartbeat_timeout_seconds=HEARTBEAT,
            )
            reason = ""
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]

    # In a thread, because JAX aborts the process with a C++ stack when its own time limit is over.
    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(seconds)
    if reason:
        raise UserError(
            f"process {process} of {processes} did not reach the others at {coordinator} "
            f"({reason}): start all of them, with the same coordinator"
        )


def port_of(coordinator: str) -> int:
    """Return the port of an address host:port.

    Raises:
      UserError: the address has another form.
    """
    address = re.fullmatch(r".+:(\d{1,5})", coordinator)
    if not (address and 0 < int(address[1]) < 2**16):
        raise UserError(
            f"coordinator is {coordinator!r}: it has the form host:port, port 1 … 65535"
        )
    return int(address[1])


def _check_free(coordinator: str, port: int) -> None:
    """Raise `UserError` unless this process can listen at the port, where JAX would crash.

    The port of a connection that was just closed counts as free (SO_REUSEADDR).
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
            listener.listen()
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen at {coordinator} ({error.strerror}): take another port, "
                "the same in every process"
            ) from error


def make_mesh(devices: int) -> Mesh:
    """Return a mesh of one axis over the first `devices` devices of all processes.

    Raises:
      UserError: there are fewer devices, or a process would be left without one.
    """
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
    """Raise `UserError`, with the nearest sizes that work, unless `devices` divides the batch."""
    if batch_size % devices:
        below = batch_size // devices * devices
        sizes = f"{below} or {below + devices}" if below else f"{devices}"
        raise UserError(
            f"a batch of {batch_size} cannot be split over {devices} devices: "
            f"the nearest sizes that work are {sizes}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding under which every device of the mesh holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(batch: Tree, mesh: Mesh) -> Tree:
    """Spread the rows of every array over the mesh; for use inside a compiled function."""
    rows = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array, rows), batch)


def local(tree: Tree) -> Tree:
    """Return replicated arrays as this process's first device of the mesh holds them."""
    return jax.tree.map(
        lambda array: array.addressable_data(0) if isinstance(array, jax.Array) else array, tree
    )


def pmap_step(model: Model[Any], devices: int) -> Any:
    """Return `model.step` under `jax.pmap` over the first `devices` local devices.

    The returned function maps (state, batch, key) to (state, metrics) with a leading axis of
    devices, and donates the state. The state comes from `replicate` and the batch, [devices,
    B / devices, ...], from `shard`. The key is a single one: each replica derives its own from it
    (`core.replica_key`). `pmap` is for code that uses it already; a mesh is the recommended way.
    """

    def step(state, batch, key):
        return model.step(state, batch, key, axis_name=AXIS)

    return jax.pmap(
        step, AXIS, in_axes=(0, 0, None), donate_argnums=0, devices=jax.local_devices()[:devices]
    )


def replicate(tree: Tree, devices: int) -> Tree:
    """Return every array with a new leading axis of `devices` equal copies."""
    return jax.tree.map(lambda array: np.broadcast_to(array, (devices, *np.shape(array))), tree)


def shard(batch: Tree, devices: int) -> Tree:
    """Return every array [B, ...] as [devices, B / devices, ...]."""
    return jax.tree.map(lambda rows: np.reshape(rows, (devices, -1, *np.shape(rows)[1:])), batch)
