"""The process's memory on a CPU."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for later allocations, and return whether it will.

    XLA's CPU backend allocates the intermediate values of a step in every call. glibc returns a
    large block to the system as soon as it is freed, and the system clears each of its pages again
    at the next step: a fifth of the time of a convolutional network's step. With this setting the
    process keeps the memory of its largest moment. It has an effect on Linux with glibc only, and
    belongs at the start of a program. The command line calls it; a script of your own may.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena on the heap, whose top is never given back, in place of separate mappings.
    settings = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1))
    return all(mallopt(name, value) for name, value in settings)
