"""Checkpoints with checksums: Orbax stores the arrays, and their SHA-256 sums beside them.

Orbax writes a checkpoint into a temporary folder and renames it when it is complete, so a process
that is killed during a save leaves all earlier checkpoints intact. Orbax does not detect flipped
bits, emptied folders, arrays of another dtype or a folder that was renamed to another step. The
sums do: they are taken before a save and compared after a restore.

The memory of the process grows by some 0.05 MiB a save of 40 arrays: TensorStore (0.1.86), on which
Orbax builds, does not free the JSON of an array's location.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CoroutineType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from gen import parallel
from gen.core import UserError

NO_TIMEOUT = 10**9
"""Seconds that a save may take. Orbax measures them by the clock, which may be set forward."""


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
      path: a path to that folder which Orbax takes.
      keep_every: steps between checkpoints that are kept for good (0: none).
      read_only: whether the folder stays as it is, for example because a run still writes to it.
    """

    def __init__(self, folder: Path, path: Path, keep_every: int = 0, read_only: bool = False):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        for name in ("absl", "asyncio"):  # Orbax's tracebacks: `save` and `close` report failures
            logging.getLogger(name).setLevel(logging.CRITICAL)
        kept: list[Any] = [policies.LatestN(2)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        if jax.process_count() == 1:  # no other process is waited for, which may have died
            # Folders are made at once: a thread would wait for them with a time limit of its own.
            options.async_options = ocp.AsyncOptions(
                timeout_secs=NO_TIMEOUT, create_directories_asynchronously=False
            )
        self._ocp = ocp
        self._folder, self._path = folder, path
        self._read_only = read_only
        self._manager = ocp.CheckpointManager(path, options=options)

    def save(self, step: int, tree: Any, info: dict[str, Any]) -> None:
        """Start to store a checkpoint in the background, unless one of this step exists already.

        Args:
          step: steps done.
          tree: a tree of arrays, which may be donated as soon as this returns.
          info: what to store beside them, as JSON.

        Raises:
          UserError: this checkpoint, or the one before it, cannot be written.
        """
        if step in self._manager.all_steps():
            return
        ocp = self._ocp
        meta = {"sha256": _sums(tree), "info": info, "info_sha256": _info_sum(step, info)}
        arguments = ocp.args.Composite(
            tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta)
        )
        with self._writing():
            self._manager.save(step, args=arguments)

    def restore(self, target: Any) -> Restored | None:
        """Return the latest undamaged checkpoint, or None if there is no checkpoint at all.

        If there is one, damaged checkpoints of later steps are moved to `damaged/` beside the
        folder, unless it is read-only.

        Args:
          target: the tree's `jax.ShapeDtypeStruct`s, with shardings for arrays on a mesh.

        Raises:
          UserError: there are checkpoints, and all of them are damaged or have other arrays than
            the target. Nothing is moved then.
        """
        damaged: dict[int, str] = {}
        restored = None
        steps = sorted(self._manager.all_steps(), reverse=True)
        misfit = ""
        for step in steps:
            try:
                restored = Restored(step, *self._restore(step, target), damaged)
                break
            except _SumsDifferError as error:
                damaged[step] = str(error)
            except Exception as error:  # Orbax raises many kinds, some of many lines
                damaged[step] = f"it cannot be read ({type(error).__name__})"
            misfit = misfit or self._misfit(step, target)
        if damaged and self._read_only:  # a run that still writes may have deleted it meanwhile
            self._manager.reload()
            if sorted(self._manager.all_steps(), reverse=True) != steps:
                return self.restore(target)
        if restored:
            self._set_aside(damaged)
        elif misfit:
            raise UserError(
                f"no checkpoint in {self._folder} fits this model: {misfit}: the code or the "
                "settings have changed since; train anew with another --out"
            )
        elif damaged:
            raise UserError(
                f"no checkpoint in {self._folder} can be read (steps "
                f"{', '.join(map(str, damaged))}): they are damaged, or another version wrote "
                "them; train anew with another --out"
            )
        return restored

    def _set_aside(self, steps: Collection[int]) -> None:
        """Move damaged checkpoints to `damaged/` beside the folder, to free their step numbers."""
        if self._read_only or not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                aside = self._folder.with_name("damaged") / f"{step}-{time.time_ns()}"
                aside.parent.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints")
        self._manager.reload()

    def wait(self) -> None:
        """Wait until every save has reached the disk.

        Raises:
          UserError: the last checkpoint cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until every save has reached the disk, then close the manager.

        Raises:
          UserError: the last checkpoint cannot be written.
        """
        with self._writing():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise `UserError` in place of Orbax's errors, which have many lines."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))  # as TensorStore puts it
            reason = os.strerror(int(code[1])) if code else str(error).partition("\n")[0]
            raise UserError(
                f"no checkpoint can be written to {self._folder} ({reason}): make room "
                "or give permission to write there, then repeat the command"
            ) from error

    def _restore(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        """Return the arrays and the JSON of one checkpoint, after comparing the checksums."""
        ocp = self._ocp
        arguments = ocp.args.Composite(
            tree=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
        )
        restored: Any = self._manager.restore(step, args=arguments)
        meta, info = restored.meta, restored.meta["info"]
        expected, found = meta["sha256"], _sums(restored.tree)
        for name in expected.keys() | found.keys():
            if expected.get(name) != found.get(name):
                raise _SumsDifferError(f"the SHA-256 of {name} differs")
        # An older version stored no sum of the info.
        if "info_sha256" in meta and meta["info_sha256"] != _info_sum(step, info):
            raise _SumsDifferError("the SHA-256 of its step and info differs")
        return restored.tree, info

    def _misfit(self, step: int, target: Any) -> str:
        """Return the first array that differs between a checkpoint and the target; "" for none.

        An array differs by its name, type or shape. A checkpoint whose metadata cannot be read is
        damaged, and does not count as different.
        """
        try:
            handler: Any = self._ocp.StandardCheckpointHandler()
            stored = _describe(handler.metadata(self._path / str(step) / "tree").tree)
        except Exception:  # Orbax raises many kinds
            return ""
        needed = _describe(target)
        for name in [*needed, *stored]:
            if stored.get(name) != needed.get(name):
                return (
                    f"{name} is {stored.get(name, 'absent')} in the checkpoint "
                    f"and {needed.get(name, 'absent')} in the model"
                )
        return ""


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
    _drop_complaints()
    with _plain_path(folder.absolute()) as path:
        checkpoints = Checkpoints(folder, path, keep_every, read_only)
        try:
            yield checkpoints
        finally:
            checkpoints.close()


@contextmanager
def _plain_path(folder: Path) -> Iterator[Path]:
    """Yield a path to the folder that Orbax can take.

    Orbax expands `*`, `?` and brackets in a path, and then finds no arrays to store. It also needs
    UTF-8. For a folder with such a name the path is a link in a temporary folder.
    """
    if not re.search("[*?\\[\ud800-\udfff]", str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        path.symlink_to(folder, target_is_directory=True)
        yield path


@functools.cache
def _drop_complaints() -> None:
    """Drop the tracebacks that Orbax and TensorStore print long after a failed save or restore.

    Threads of TensorStore call back an event loop that Orbax has closed, and Python complains about
    tasks and warns of coroutines that nobody awaited when it collects them, at the latest when the
    process ends. Hence this hook and this filter of warnings stay for the life of the process. They
    pass everything else on.
    """
    before, coroutine = sys.unraisablehook, CoroutineType
    dropped = ("Event loop is closed", "Encountered error while reading array index")

    def print_others(unraisable):  # it uses no globals, which are gone when the process ends
        source = unraisable.object
        if isinstance(source, coroutine):
            of_orbax = "orbax" in source.cr_code.co_filename
        else:
            of_orbax = str(unraisable.exc_value).startswith(dropped)
        if not of_orbax:
            before(unraisable)

    sys.unraisablehook = print_others
    reading = (
        "_read_shard|_read_array_index_and_device_put|_read_and_create_array|async_deserialize"
    )
    warnings.filterwarnings(
        "ignore", f"coroutine '({reading})' was never awaited", category=RuntimeWarning
    )


def _describe(tree: Any) -> dict[str, str]:
    """Return the type and shape of each array, such as `float32[64, 16]`, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _sums(tree: Any) -> dict[str, str]:
    """Return the SHA-256 of each array with its dtype and shape, by its path in the tree."""
    sums = {}
    for path, array in jax.tree_util.tree_leaves_with_path(parallel.local(tree)):
        local = np.asarray(array)
        digest = hashlib.sha256(f"{local.dtype} {local.shape} ".encode())
        digest.update(np.ascontiguousarray(local).data)
        sums[jax.tree_util.keystr(path)] = digest.hexdigest()
    return sums


def _info_sum(step: int, info: dict[str, Any]) -> str:
    """Return the SHA-256 of a checkpoint's step and info."""
    return hashlib.sha256(json.dumps([step, info], sort_keys=True).encode()).hexdigest()
