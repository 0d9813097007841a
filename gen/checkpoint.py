"""Checkpoints that are checked: Orbax stores them, SHA-256 sums of the arrays go inside.

Orbax writes a checkpoint into a temporary folder and renames it when it is whole, so a kill during
a save leaves the ones before it. It does not notice flipped bits, emptied folders or another dtype:
the sums, taken of the arrays before the save and compared after the restore, do.
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
    """A checkpoint that was found sound."""

    step: int
    tree: Any
    info: dict[str, Any]  # what was given to `save` beside the arrays
    damaged: dict[int, str]  # later steps that had to be skipped, with the reason


class _SumsDifferError(Exception):
    """The arrays are not those that were saved."""


class Checkpoints:
    """The checkpoints of one run, in `folder`, one folder a step.

    Saves run in the background; the newest two are kept, and every step that is a multiple of
    `keep_every` (if not 0). Use it under `open_checkpoints`.
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
        """Starts to store `tree` (arrays) and `info` (JSON) for `step`; the tree may be donated at
        once. Does nothing if `step` is stored already."""
        if step in self._manager.all_steps():
            return
        ocp = self._ocp
        meta = {"sha256": _sums(tree), "info": info}
        arguments = ocp.args.Composite(
            tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)
        )
        self._manager.save(step, args=arguments)

    def restore(self, target: Any) -> Restored | None:
        """The latest sound checkpoint, or None if there is no checkpoint at all.

        Damaged ones are moved to `damaged/` beside the folder, unless this is read-only. `target`
        is a tree of `jax.ShapeDtypeStruct`, with shardings if the arrays are to lie on a
        mesh. Raises `UserError` if there are checkpoints and none is sound.
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
        if damaged and self._read_only:  # or did a run that goes on delete it meanwhile?
            self._manager.reload()
            if sorted(self._manager.all_steps(), reverse=True) != steps:
                return self.restore(target)
        if restored:
            self._set_aside(damaged)
        elif damaged:
            raise UserError(
                f"no checkpoint in {self._manager.directory} is sound (steps "
                f"{', '.join(map(str, damaged))} are damaged): train anew with another --out"
            )
        return restored

    def _set_aside(self, steps: Collection[int]) -> None:
        """Moves damaged checkpoints to `damaged/` beside the folder: their steps come again."""
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
        """Waits for the saves that are under way."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _restore(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
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
    """`Checkpoints(...)`, closed at the end, when every save has reached the disk."""
    checkpoints = Checkpoints(folder, keep_every, read_only)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


@contextmanager
def _no_complaints() -> Iterator[None]:
    """Keeps quiet the tasks that a failed restore of Orbax leaves unawaited: Python would print
    their tracebacks when it collects them, which is made to happen here."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook = before


def _sums(tree: Any) -> dict[str, str]:
    """SHA-256 of each array with its dtype and shape, by its path in the tree."""
    sums = {}
    for path, array in jax.tree_util.tree_leaves_with_path(parallel.local(tree)):
        local = np.asarray(array)
        digest = hashlib.sha256(f"{local.dtype} {local.shape} ".encode())
        digest.update(np.ascontiguousarray(local).data)
        sums[jax.tree_util.keystr(path)] = digest.hexdigest()
    return sums
