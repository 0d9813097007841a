"""Find the onsets of faults in the test series of a run; `anomaly` calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.uses.base import Outcome, Row, Subject, of_training
from gen import estimate, train
from gen.core import METRIC_UNITS, capabilities, facts, require
from gen.data import Dataset
from gen.uses import anomaly, onset

COMMAND = "onset"
"""Name of the files."""
AVERAGED = 10
"""Steps over which scores of single steps are averaged."""


class Series(NamedTuple):
    """The test series of a data set."""

    x: np.ndarray  # [N, T, D], in the units of the data
    label: np.ndarray  # 0 for a series without a fault, else the number of the fault, [N]
    onset: np.ndarray  # first step of the fault, T without one, [N]


def has_onsets(dataset: Dataset) -> bool:
    """Return whether the test examples say when a fault begins."""
    return "onset" in dataset.test


def find_onsets(subject: Subject, rate: float) -> Outcome:
    """Return how many faults the alarms of a model find, how soon, and how many alarms are false.

    Every second test series without a fault calibrates the alarms, and the others are tested with
    the faulty ones. Figures are means over the seeds of a run, and the picture is of the first one.
    Control charts stand beside.

    Args:
      subject: a model of series, or of their windows, on data whose test split has `"onset"`.
      rate: probability of an alarm in a series without a fault, at most.
    """
    dataset, seeds = subject.dataset, list(subject.states)
    series = series_of(dataset)
    normal = np.flatnonzero(series.label == 0)
    held_out, tested = normal[::2], np.concatenate([normal[1::2], np.flatnonzero(series.label)])
    require(
        anomaly.rank_of_threshold(rate, len(held_out)) >= 1,
        f"{len(held_out)} held-out normal series give no alarm at a rate of {rate}: raise "
        "--false-alarm-rate",
    )

    def alarms_of(scores: np.ndarray) -> np.ndarray:
        return onset.first_alarms(scores[tested], scores[held_out], rate)

    training = dataset.train["x"]
    charts = {
        name: onset.trailing_mean(values, AVERAGED)
        for name, values in onset.step_baselines(training, series.x).items()
    }
    own = [over_time(subject, seed, series) for seed in seeds]
    alarms = {"the model": [alarms_of(scores) for scores in own]}
    alarms |= {name: [alarms_of(scores)] for name, scores in charts.items()}
    rows: list[Row] = []
    for name, of_seeds in alarms.items():
        for fault in range(1, len(dataset.format.labels)):
            measured = [measure(each, series, tested, fault) for each in of_seeds]
            means = {
                column: estimate.over_seeds([each[column] for each in measured if column in each])
                for column in measured[0]
            }
            rows.append({"score": name, "fault": dataset.format.labels[fault], **means})
    record = {
        **of_training(subject),
        "false_alarm_rate": rate,
        "averaged_steps": AVERAGED if onset.has_step_scores(subject.experiment.model) else 1,
        "calibration_series": len(held_out),
        "tested_series": len(tested),
    }
    rank = anomaly.rank_of_threshold(rate, len(held_out))
    threshold = np.sort(own[0][held_out].max(axis=1))[-rank]
    units = facts(subject.experiment.model).metric_units
    figure = picture(
        dataset,
        series,
        tested,
        own[0],
        float(threshold),
        {name: of_seeds[0] for name, of_seeds in alarms.items()},
        units.get("score_gap", METRIC_UNITS["score_gap"]),
    )
    return Outcome(record, rows, figure)


def series_of(dataset: Dataset) -> Series:
    """Return the test series, put together from their windows where the examples are windows."""
    test, labels = dataset.test, dataset.test["label"]
    if "series" not in test:
        return Series(test["x"], labels, test["onset"])
    n, steps = int(test["series"].max()) + 1, int(test["step"].max()) + 1
    window, sensors = dataset.shape
    x, label, first = np.zeros((n, steps, sensors)), np.zeros(n, int), np.zeros(n, int)
    for offset in range(window):  # every step is in some window
        x[test["series"], test["step"] - offset] = test["x"][:, window - 1 - offset]
    np.maximum.at(label, test["series"], labels)
    first[test["series"]] = test["onset"]
    return Series(x, label, first)


def over_time(subject: Subject, seed: int, series: Series) -> np.ndarray:
    """Return the score of one seed of a model at each step of each test series, [N, T].

    A model of sequences gives −log p of each step given the steps before it, of which the mean over
    the last `AVERAGED` steps is taken. Any other model gives its `score` of the window that ends at
    the step.

    Args:
      subject: the model.
      seed: one of its seeds.
      series: the test series.

    Raises:
      UserError: the model has neither.
    """
    experiment, state = subject.experiment, subject.states[seed]
    model = experiment.model
    test, _ = experiment.decoded(subject.dataset, "test", seed)
    if onset.has_step_scores(model):
        scores = onset.step_scores(model, state, {name: test[name] for name in ("x", "length")})
        return onset.trailing_mean(scores, AVERAGED)
    require(
        "score" in capabilities(model) and "series" in test,
        f"{type(model).__name__} has no score of the steps of a series, nor of windows: take an "
        "HMM on sensors, or a model with score on sensors_windows",
    )
    windows = {"x": test["x"]}
    scores = anomaly.score(model, state, windows, train.streams(seed).evaluate)
    row, step = (np.asarray(test[name]) for name in ("series", "step"))
    return onset.on_series(scores, row, step, series.x.shape[1])


def measure(
    alarms: np.ndarray, series: Series, tested: np.ndarray, fault: int
) -> dict[str, estimate.Estimate]:
    """Return the share of false alarms, and the detections of one kind of fault.

    Args:
      alarms: the first step with an alarm of each tested series, [M].
      series: all test series.
      tested: numbers of the tested series, [M].
      fault: the label of the fault.
    """
    label, steps = series.label[tested], series.x.shape[1]
    false_alarms = estimate.mean(alarms[label == 0] < steps, "exact")
    chosen = label == fault
    found = onset.detections(alarms[chosen], series.onset[tested][chosen], steps)
    return {"false alarms": false_alarms, **found}


def picture(
    dataset: Dataset,
    series: Series,
    tested: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    alarms: Mapping[str, np.ndarray],
    unit: str,
) -> Any:
    """Draw a series of each fault with its score over time, and the delays of all faults.

    Args:
      dataset: the data set.
      series: its test series.
      tested: numbers of the tested series, [M].
      scores: the score of the model over time, [N, T].
      threshold: the score above which there is an alarm.
      alarms: the first step with an alarm of each tested series [M], by the name of the score.
      unit: the unit of the score.
    """
    from matplotlib.figure import Figure

    names, steps = dataset.format.labels, series.x.shape[1]
    label, first = series.label[tested], series.onset[tested]
    faults = [fault for fault in range(1, len(names)) if (label == fault).any()]
    figure = Figure(figsize=(4.3 * (len(faults) + 1), 5.2), layout="constrained")
    axes = figure.subplots(2, len(faults) + 1, squeeze=False)
    for column, fault in enumerate(faults):
        place = int(np.flatnonzero(label == fault)[0])
        row, begin, alarm = tested[place], first[place], alarms["the model"][place]
        for d in range(series.x.shape[2]):
            axes[0, column].plot(series.x[row, :, d], linewidth=0.7, label=f"sensor {d + 1}")
        axes[1, column].plot(scores[row], color="black", linewidth=0.9)
        axes[1, column].axhline(threshold, color="grey", linestyle="--", linewidth=0.9)
        axes[1, column].set_yscale("symlog")
        for each in axes[:, column]:
            each.axvline(begin, color="tab:red", linewidth=1)
            each.set(xlabel="step", xlim=(0, steps - 1))
        title = f"alarm {alarm - begin} steps after the onset" if alarm < steps else "no alarm"
        if alarm < begin:
            title = f"false alarm {begin - alarm} steps before the onset"
        axes[1, column].axvline(min(alarm, steps - 1), color="tab:blue", linestyle=":")
        axes[0, column].set_title(f"{names[fault]}, onset in red", fontsize=10)
        axes[1, column].set_title(f"{title} (dashed: threshold)", fontsize=10)
    axes[0, 0].set_ylabel("sensors, in the units of the data")
    axes[0, 0].legend(fontsize=6, ncols=3, frameon=False)
    axes[1, 0].set_ylabel(f"score of the model, {unit}")
    for row, fault in enumerate(faults[:2]):
        chosen = label == fault
        for name, of_score in alarms.items():
            delay = (of_score - first)[chosen]
            delay = np.where((delay >= 0) & (of_score[chosen] < steps), delay, steps)
            shares = (delay[:, None] <= np.arange(steps)).mean(axis=0)
            axes[row, -1].step(np.arange(steps), shares, where="post", label=name)
        axes[row, -1].set(
            xlabel="steps after the onset",
            ylabel="share of the faults found",
            xlim=(0, 120),
            ylim=(0, 1.02),
            title=names[fault],
        )
        axes[row, -1].legend(fontsize=7, frameon=False, loc="lower right")
    return figure
