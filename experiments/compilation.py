"""Keep compiled programs between commands."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import warnings
from pathlib import Path

import jax

from gen.data.cache import cache_folder

LARGEST = 2**29
"""Bytes of compiled programs above which the oldest are deleted."""


def keep_programs(keep: bool = True) -> None:
    """Let JAX store compiled programs in the cache folder, from which later commands take them.

    Results do not depend on it: a stored program is the one that compiling would give. Programs for
    another processor or another number of threads stand in a folder of their own. If the
    environment variable JAX_COMPILATION_CACHE_DIR names a folder, JAX uses that one. If the disk
    stores nothing, programs are compiled in every command.

    Args:
      keep: whether to store programs.
    """
    if not keep or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    with contextlib.suppress(OSError):
        folder = cache_folder() / "programs" / machine()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        delete_oldest(folder.parent, LARGEST)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        # A program that cannot be read or stored is compiled, which is slower but no error.
        warnings.filterwarnings("ignore", message=".*persistent compilation cache")


def machine() -> str:
    """Return a name for the processor and the threads that XLA compiles for on a CPU."""
    threads = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    features = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = "".join(
            sorted({x for x in lines if x.startswith(("flags", "Features", "model"))})
        )
    facts = (platform.machine(), features, threads, os.environ.get("NPROC"))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def delete_oldest(folder: Path, largest: int) -> None:
    """Delete the oldest files under a folder until at most `largest` bytes are left."""
    files = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another command deletes, too
            if path.is_file():
                files.append((path.stat(), path))
    size = sum(stat.st_size for stat, _ in files)
    for stat, path in sorted(files, key=lambda item: item[0].st_mtime):
        if size <= largest:
            return
        path.unlink(missing_ok=True)
        size -= stat.st_size
