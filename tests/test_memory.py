"""The allocator's settings."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from gen.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        b'1' * 2**26  # allocates 64 MiB, writes them, and frees them
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = faults()
assert keep_freed_memory()
faults()  # the memory that is kept from here on
print(given_back, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_kept_for_the_next_allocation():
    """A block that was freed is used again without a page fault for each of its pages.

    A page has 4 KiB or, where the system gives huge pages, 2 MiB. One fault for each page of ten
    blocks makes 163,840 faults or 320.
    """
    out = subprocess.check_output([sys.executable, "-c", PROGRAM], text=True)
    given_back, kept = map(int, out.split())
    assert given_back >= 10 * 2**26 / 2**21
    assert kept < given_back / 10
