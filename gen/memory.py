"""The memory of the process and of the device."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from typing import Any

import jax

from gen.core import UserError

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for later allocations, and return whether it will.

    XLA's CPU backend allocates the intermediate values of a step in every call. glibc returns a
    large block to the system as soon as it is freed, and the system clears each of its pages again
    at the next step: a fifth of the time of a convolutional network's step. With this setting the
    process keeps the memory of its largest moment. It has an effect on Linux with glibc only.

    Call it at the start of a program, before the first threads and so before the first computation:
    threads that have allocated before keep arenas of their own. The command line calls it; a script
    of your own may.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena on the heap, whose top is never given back (-1), in place of separate mappings.
    settings = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1))
    return all(mallopt(name, value) for name, value in settings)


def check_memory(name: str, arrays: Any, copies: int = 1) -> None:
    """Raise `UserError` if a model's state needs more memory than the device has.

    Only their shapes and types are read. Under `jax.eval_shape` the check is done before any of
    them is allocated.

    Args:
      name: the name of the model, for the message.
      arrays: the state, a tree of arrays or of `jax.ShapeDtypeStruct`s.
      copies: the number of states of this size.
    """
    leaves = jax.tree.leaves(arrays)
    needed = copies * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    if needed > (available := device_memory()):
        raise UserError(
            f"{name}: its state takes {needed / 2**30:,.0f} GiB, and the device has "
            f"{available / 2**30:,.0f}: make the model smaller, or train fewer seeds at a time"
        )


def device_memory() -> int:
    """Return the bytes of memory of the first device. A CPU has the memory of the machine."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
