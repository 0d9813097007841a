"""The allocator's settings."""

import platform
import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from gen.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b'1' * 2**26  # allocates 64 MiB, writes them, and frees them
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_kept_for_the_next_allocation():
    """A block that was freed is used again without a page fault for each of its pages."""
    pages = 2**26 // resource.getpagesize()
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", PROGRAM, how]))
        for how in ("keep", "-")
    }
    assert faults["keep"] < pages / 100
    assert faults["-"] > pages / 2
