"""Find the onset of a fault in series, by the scores of a model over time.

    scores = trailing_mean(step_scores(model, state, {"x": series}), 10)
    alarms = first_alarms(scores, normal_scores, rate=0.05)    # [N], T where there is no alarm

`normal_scores` are the same scores of series without a fault that the model was not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from gen import estimate
from gen.core import capabilities, facts
from gen.estimate import Estimate
from gen.uses.anomaly import p_values


def has_step_scores(model: Any) -> bool:
    """Return whether a model scores each step of a sequence."""
    return facts(model).sequences and "log_conditionals" in capabilities(model)


def step_scores(model: Any, state: Any, data: Mapping[str, ArrayLike]) -> np.ndarray:
    """Return −log p(x_t | x_1 … x_t−1), exact, of each step of each series, [N, T] nats.

    Args:
      model: a model for which `has_step_scores` holds.
      state: a state of it.
      data: decoded series, `"x"` [N, T, ...] and `"length"` [N].
    """
    batch = {name: np.asarray(data[name]) for name in ("x", "length") if name in data}
    return -np.asarray(jax.jit(model.log_conditionals)(state, batch))


def on_series(scores: np.ndarray, series: np.ndarray, step: np.ndarray, steps: int) -> np.ndarray:
    """Return scores of windows as scores over time, [N, T]; −∞ where no window ends.

    Args:
      scores: scores of windows, [M].
      series: the series of each window, 0 … N − 1, [M].
      step: the last step of each window, [M].
      steps: the number T of steps.
    """
    over_time = np.full((series.max() + 1, steps), -np.inf)
    over_time[series, step] = scores
    return over_time


def trailing_mean(scores: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the last steps at each step, [N, T]; −∞ before there are enough.

    Args:
      scores: scores of steps, [N, T].
      window: number of steps of the mean.
    """
    windows = np.lib.stride_tricks.sliding_window_view(scores, window, axis=1)
    return np.pad(windows.mean(axis=-1), ((0, 0), (window - 1, 0)), constant_values=-np.inf)


def first_alarms(scores: np.ndarray, normal: np.ndarray, rate: float) -> np.ndarray:
    """Return the first step of each series with an alarm, [N]; T where there is none.

    A step raises an alarm if its conformal p-value against the largest scores of the normal series
    is at most `rate`. A series without a fault is exchangeable with the normal ones, as a whole
    though not step by step. It therefore raises an alarm in any of its steps with a probability of
    at most `rate`.

    Args:
      scores: scores over time, [N, T].
      normal: scores over time of normal series that did not train the model, [M, T].
      rate: probability of an alarm in a series without a fault, at most.
    """
    p = p_values(scores.ravel(), normal.max(axis=1)).reshape(scores.shape)
    alarm = p <= rate
    return np.where(alarm.any(axis=1), alarm.argmax(axis=1), scores.shape[1])


def detections(alarms: np.ndarray, onsets: np.ndarray, steps: int) -> dict[str, Estimate]:
    """Return how many faults are found, and how soon.

    - `found`: the share of faults whose first alarm is at the onset or after it.
    - `early`: the share of series whose first alarm comes before the onset, a false alarm.
    - `delay`: the mean number of steps from the onset to the first alarm, of the faults found.

    Args:
      alarms: the first step with an alarm of each series with a fault, [N]; T where there is none.
      onsets: the first step of each fault, [N].
      steps: the number T of steps.
    """
    found = (alarms >= onsets) & (alarms < steps)
    values = {
        "found": estimate.mean(found, "exact"),
        "early": estimate.mean(alarms < onsets, "exact"),
    }
    if found.any():
        values["delay"] = estimate.mean((alarms - onsets)[found], "exact", found=int(found.sum()))
    return values


def step_baselines(training: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return two scores of steps without a model of time, by name, [N, T] each.

    - `one sensor at a time`: the largest squared deviation of a variable from its mean in training,
      in units of its variance (control charts: Shewhart 1931, "Economic control of quality of
      manufactured product", Van Nostrand).
    - `all sensors together`: the squared Mahalanobis distance from the mean in training, T²
      (Hotelling 1947, "Multivariate quality control", in "Techniques of statistical analysis",
      McGraw-Hill).

    Args:
      training: normal series, [M, T, D].
      x: series, [N, T, D].
    """
    rows = training.reshape(-1, training.shape[-1]).astype(np.float64)
    error = x - rows.mean(axis=0)
    precision = np.linalg.inv(np.cov(rows.T))
    return {
        "one sensor at a time": (error**2 / rows.var(axis=0)).max(axis=-1),
        "all sensors together": np.einsum("nti,ij,ntj->nt", error, precision, error),
    }
