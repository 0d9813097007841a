"""The clock of the benchmarks, and the libraries that they may find."""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from gen.train import Progress


def seconds_of(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the seconds of one call, until its results are computed."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def next_report(run: Iterator[Progress]) -> Callable[[], None]:
    """Return a function that lets `fit` train until its next report, which waits for the device."""

    def advance():
        next(progress for progress in run if progress.metrics is not None)

    return advance


def interleaved(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of functions that are called by turns, so that all meet the same load.

    Each round begins with another function.

    Args:
      runs: functions without arguments by name, compiled and ready.
      rounds: the number of calls of each.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds_of(runs[name]))
    return times


def optional(module: str) -> Any:
    """Return a module, or None where it or a library that it imports is not installed.

    Raises:
      ImportError: a library is installed and broken, or a module of this project is absent.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("gen", "experiments"):
                raise
            return None
