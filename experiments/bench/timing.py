"""The clock of the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


def seconds_of(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the seconds of one call, until its results are computed."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began
