"""The clock of the benchmarks, and the libraries that they may find."""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax


def seconds_of(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the seconds of one call, until its results are computed."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def interleaved(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of functions that are called by turns, so that all meet the same load.

    Args:
      runs: functions without arguments by name, compiled and ready.
      rounds: the number of calls of each.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds_of(run))
    return times


def optional(module: str) -> Any:
    """Return a module, or None where it or a library that it imports is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(module)
        except ImportError:
            return None
