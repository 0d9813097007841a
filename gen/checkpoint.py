"""Checkpoints with checksums: Orbax stores the arrays, and their SHA-256 sums beside them.

Orbax writes a checkpoint into a temporary folder and renames it when it is complete, so a process
that is killed during a save leaves all earlier checkpoints intact. Orbax does not detect flipped
bits, emptied folders or arrays of another dtype. The sums do: they are taken before a save and
compared after a restore.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from gen import parallel
from gen.core import UserError


class Restored(NamedTuple):
    """A checkpoint whose arrays agree with their checksums."""

    step: int  # steps done
    tree: Any  # the arrays
    info: dict[str, Any]  # the JSON that `save` stored beside the arrays
    damaged: dict[int, str]  # damaged checkpoints of later steps, each with the reason


class _SumsDifferError(Exception):
    """The checksum of a restored array differs from the stored one."""


class Checkpoints:
    """The checkpoints of one run, one folder for each step. `open_checkpoints` opens and closes it.

    Saves run in the background. The newest two checkpoints are kept, and those at multiples of
    `keep_every`.

    Args:
      folder: the folder that holds them; it is made if it does not exist.
      keep_every: steps between checkpoints that are kept for good (0: none).
      read_only: whether the folder stays as it is, for example because a run still writes to it.
    """

    def __init__(self, folder: Path, keep_every: int = 0, read_only: bool = False):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        logging.getLogger("absl").setLevel(logging.ERROR)
        kept: list[Any] = [policies.LatestN(2)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        self._ocp = ocp
        self._read_only = read_only
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, tree: Any, info: dict[str, Any]) -> None:
        """Start to store a checkpoint in the background, unless one of this step exists already.

        Args:
          step: steps done.
          tree: a tree of arrays, which may be donated as soon as this returns.
          info: what to store beside them, as JSON.
        """
        if step in self._manager.all_steps():
            return
        ocp = self._ocp
        meta = {"sha256": _sums(tree), "info": info}
        arguments = ocp.args.Composite(
            tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)
        )
        self._manager.save(step, args=arguments)

    def restore(self, target: Any) -> Restored | None:
        """Return the latest undamaged checkpoint, or None if there is no checkpoint at all.

        Damaged checkpoints are moved to `damaged/` beside the folder, unless it is read-only.

        Args:
          target: the tree's `jax.ShapeDtypeStruct`s, with shardings for arrays on a mesh.

        Raises:
          UserError: there are checkpoints and all of them are damaged.
        """
        damaged: dict[int, str] = {}
        restored = None
        steps = sorted(self._manager.all_steps(), reverse=True)
        with _no_complaints():
            for step in steps:
                try:
                    restored = Restored(step, *self._restore(step, target), damaged)
                    break
                except _SumsDifferError as error:
                    damaged[step] = str(error)
                except Exception as error:  # Orbax raises many kinds, some of many lines
                    damaged[step] = f"it cannot be read ({type(error).__name__})"
        if damaged and self._read_only:  # a run that still writes may have deleted it meanwhile
            self._manager.reload()
            if sorted(self._manager.all_steps(), reverse=True) != steps:
                return self.restore(target)
        if restored:
            self._set_aside(damaged)
        elif damaged:
            raise UserError(
                f"every checkpoint in {self._manager.directory} is damaged (steps "
                f"{', '.join(map(str, damaged))}): train anew with another --out"
            )
        return restored

    def _set_aside(self, steps: Collection[int]) -> None:
        """Move damaged checkpoints to `damaged/` beside the folder, to free their step numbers."""
        if self._read_only or not steps:
            return
        if jax.process_index() == 0:
            folder = Path(self._manager.directory)
            for step in steps:
                aside = folder.with_name("damaged") / f"{step}-{time.time_ns()}"
                aside.parent.mkdir(exist_ok=True)
                (folder / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints")
        self._manager.reload()

    def close(self) -> None:
        """Wait until every save has reached the disk, then close the manager."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _restore(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        """Return the arrays and the JSON of one checkpoint, after comparing the checksums."""
        ocp = self._ocp
        arguments = ocp.args.Composite(
            tree=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
        )
        restored: Any = self._manager.restore(step, args=arguments)
        expected, found = restored.meta["sha256"], _sums(restored.tree)
        for name in expected.keys() | found.keys():
            if expected.get(name) != found.get(name):
                raise _SumsDifferError(f"the SHA-256 of {name} differs")
        return restored.tree, restored.meta["info"]


@contextmanager
def open_checkpoints(
    folder: Path, keep_every: int = 0, read_only: bool = False
) -> Iterator[Checkpoints]:
    """Open the checkpoints of a folder, and close them when every save has reached the disk.

    Args:
      folder: the folder that holds them; it is made if it does not exist.
      keep_every: steps between checkpoints that are kept for good (0: none).
      read_only: whether the folder stays as it is.
    """
    checkpoints = Checkpoints(folder, keep_every, read_only)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


@contextmanager
def _no_complaints() -> Iterator[None]:
    """Suppress the tracebacks of a failed restore.

    Orbax leaves tasks behind that nobody awaits. Python prints their tracebacks when it collects
    them as garbage, so the collection runs here, with printing turned off.
    """
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook = before


def _sums(tree: Any) -> dict[str, str]:
    """Return the SHA-256 of each array with its dtype and shape, by its path in the tree."""
    sums = {}
    for path, array in jax.tree_util.tree_leaves_with_path(parallel.local(tree)):
        local = np.asarray(array)
        digest = hashlib.sha256(f"{local.dtype} {local.shape} ".encode())
        digest.update(np.ascontiguousarray(local).data)
        sums[jax.tree_util.keystr(path)] = digest.hexdigest()
    return sums
