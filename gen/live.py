"""Train a model to the end of its run and show how far it is.

    result = gen.fit(VAE(), {"x": images}, steps=1000, batch_size=100)
    samples = VAE().sample(result.state, key, 64)
    print(result.history["loss"])

`gen.train.fit` is the loop itself, for callers who want every step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from gen import train
from gen.core import METRIC_UNITS, Model, facts

SECONDS_BETWEEN = 2.0
"""Seconds, at least, between two drawings of the curve in a notebook."""
DRAWING_SHARE = 0.05
"""Share of the time of training, at most, that the drawing of the curve takes."""

Show = Callable[[int, Mapping[str, np.ndarray] | None], None]
"""Function of the steps done and a report, if there is one."""


class Fitted(NamedTuple):
    """A trained state and the course of its training."""

    state: Any  # the model's; [S, ...] for several seeds
    history: dict[str, np.ndarray]  # "step" [R], and each metric [R], or [R, S] for several seeds


class Display(NamedTuple):
    """The functions that tell how far a run is."""

    show: Show
    say: Callable[[str], None]  # of a line of text, such as what the run does next


def fit(
    model: Model[Any],
    data: Mapping[str, Any],
    *,
    steps: int,
    batch_size: int,
    seed: int | Sequence[int] = 0,
    show: bool = True,
    on_progress: Callable[[train.Progress], None] | None = None,
    **options: Any,
) -> Fitted:
    """Train a model to the end of its run, and return its state and its metrics.

    The progress is shown as a bar on a terminal and as curves in a notebook. Nothing is shown where
    the output is neither of them.

    Args:
      model: any model of the contract.
      data: arrays [N, ...] by name.
      steps: the number of training steps.
      batch_size: examples in a step.
      seed: one seed, or several that train at once; then the results have an axis of seeds.
      show: whether to show the progress.
      on_progress: is called after every dispatch, to draw samples during training, for example. Its
        carry is valid until the function returns.
      options: the other arguments of `gen.train.fit`, such as `decode`, `report_every`, or
        `validation` with `validate_every`.

    Returns:
      `state`, the state with the lowest validation objective, or the last one without validation;
      and `history`, arrays with an entry for each report: `"step"`, and each metric by its name. A
      metric that was not taken at a report, such as `"validation"`, is NaN there.

    Raises:
      UserError: `gen.train.fit` refuses the data or a setting.
      NonFiniteError: a metric was NaN, or beyond `gen.train.LARGEST_METRIC`.
    """
    training = train.fit(model, data, steps=steps, batch_size=batch_size, seed=seed, **options)
    done, carry = options.get("start") or (0, None)
    reports: list[tuple[int, Mapping[str, np.ndarray]]] = []
    with display(model, done, steps, show) as shown:
        for progress in training:
            carry = progress.carry
            if progress.metrics:
                reports.append((progress.step, progress.metrics))
            shown.show(progress.step, progress.metrics)
            if on_progress:
                on_progress(progress)
    assert carry is not None
    return Fitted(carry.chosen, history_of(reports))


@contextmanager
def display(model: Model[Any], done: int, steps: int, show: bool) -> Iterator[Display]:
    """Show the progress of a run as a bar on a terminal, as curves in a notebook, or not at all.

    Args:
      model: the model.
      done: steps done before.
      steps: the number of the last step.
      show: whether to show anything.
    """
    name = type(model).__name__
    if show and in_notebook():
        with curves(name, steps, facts(model).metric_units) as shown:
            yield shown
    elif show and sys.stdout.isatty():
        with bar(name, done, steps) as shown:
            yield shown
    else:
        yield Display(lambda step, metrics: None, lambda text: None)


def in_notebook() -> bool:
    """Return whether a kernel of IPython runs this process, for a notebook or a console."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return bool(shell) and "IPKernelApp" in shell.config


@contextmanager
def bar(name: str, done: int, steps: int) -> Iterator[Display]:
    """Show a progress bar above the last report, on a terminal.

    Args:
      name: the name of the run.
      done: steps done before.
      steps: the number of the last step.
    """
    from rich import progress as bars
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    columns = bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=None),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[speed]}"),
        bars.TimeRemainingColumn(),
    )
    task = columns.add_task(name, total=steps, completed=done, speed="")
    report = Text()

    def show(step: int, metrics: Mapping[str, np.ndarray] | None) -> None:
        columns.update(task, completed=step)
        if metrics:
            report.plain = as_text(metrics)
            speed = columns.tasks[task].speed
            columns.update(task, speed=f"{speed:.0f} steps/s" if speed else "")

    def say(text: str) -> None:
        report.plain = text  # Live draws it within a quarter of a second

    with Live(Group(columns, report)):
        yield Display(show, say)


@contextmanager
def curves(name: str, steps: int, units: Mapping[str, str]) -> Iterator[Display]:
    """Show the curves of all metrics in a notebook, drawn anew as training goes on.

    Args:
      name: the name of the run.
      steps: the number of the last step.
      units: units of the metrics by name, where they differ from `gen.core.METRIC_UNITS`.
    """
    from IPython.display import display as show_in_cell

    from gen import plots

    reports: list[tuple[int, Mapping[str, np.ndarray]]] = []
    line = f"{name}: compiling"
    handle = show_in_cell({"text/plain": line}, raw=True, display_id=True)
    assert handle is not None
    began = time.perf_counter()
    due = began + SECONDS_BETWEEN

    def draw() -> None:
        nonlocal due
        start = time.perf_counter()
        if reports:
            figure = plots.curves(curves_of(history_of(reports)), {**METRIC_UNITS, **units})
            figure.suptitle(line, fontsize=9)
            handle.update(figure)
        else:
            handle.update({"text/plain": line}, raw=True)
        now = time.perf_counter()
        due = now + max(SECONDS_BETWEEN, (now - start) / DRAWING_SHARE)

    def show(step: int, metrics: Mapping[str, np.ndarray] | None) -> None:
        nonlocal line
        seconds = time.perf_counter() - began
        line = f"{name}: step {step:,} of {steps:,}, {seconds:.0f} s"
        if metrics:
            reports.append((step, metrics))
        if time.perf_counter() >= due:
            draw()

    def say(text: str) -> None:
        nonlocal line
        line = f"{name}: {text}"
        draw()

    try:
        yield Display(show, say)
    finally:
        draw()


def as_text(metrics: Mapping[str, np.ndarray]) -> str:
    """Return the metrics of a report as text."""
    return "  ".join(f"{name} {spread(value)}" for name, value in metrics.items())


def spread(values: np.ndarray) -> str:
    """Return a value as text, or the mean ± standard error over seeds."""
    if values.size == 1:
        return f"{values.item():.4g}"
    return f"{values.mean():.4g} ± {values.std(ddof=1) / np.sqrt(len(values)):.2g}"


def history_of(reports: list[tuple[int, Mapping[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Return the steps of reports, [R], and each metric by its name, [R] or [R, S]."""
    names = dict.fromkeys(name for _, metrics in reports for name in metrics)
    history = {"step": np.array([step for step, _ in reports], np.int64)}
    for name in names:
        missing = np.full_like(next(m[name] for _, m in reports if name in m), np.nan)
        history[name] = np.array([metrics.get(name, missing) for _, metrics in reports])
    return history


def curves_of(history: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the steps and the values of each metric, the loss first, for `gen.plots.curves`."""
    steps, found = history["step"], {}
    for name in sorted(history.keys() - {"step"}, key=lambda name: (name != "loss", name)):
        values = history[name]
        taken = ~np.isnan(values.reshape(len(steps), -1)).all(axis=1)
        found[name] = steps[taken], values[taken]
    return found
