"""Find anomalies by a trained model, with a stated false-alarm rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console

from experiments.compilation import keep_programs
from experiments.flags import parse
from experiments.uses import defects, onset
from experiments.uses.base import (
    Outcome,
    Row,
    Subject,
    as_table,
    finish,
    load_subjects,
    of_training,
)
from gen import checks, data, estimate, train
from gen.core import UserError, facts, require
from gen.data.anomalies import marks_anomalies
from gen.data.own import read_rows
from gen.levels import span
from gen.uses import anomaly

COMMAND = "anomaly"
"""Name of the command and of its files."""
BINS = 60
"""Bins of the histogram of scores."""


@dataclass(frozen=True)
class Flags:
    """Score examples by a model of normal ones, and write RUN/anomaly.json and RUN/anomaly.png.

    The names of the files have a --score other than the default and the data of --against, as in
    anomaly-complexity-mnist.json.

    The examples are the rows of a file, or the test examples of the run's data, beside which
    --against puts the test examples of other data as anomalies. The p-value of an example compares
    its score with the scores of held-out normal test examples. An alarm is a p-value of at most
    the false-alarm rate: a normal example raises one with no larger probability.
    """

    run: tyro.conf.Positional[Path]
    """run folder, or the name of an experiment with published weights"""
    file: tyro.conf.Positional[Path | None] = None
    """rows to score: .npz or .npy, .csv, .tsv or .mat as the run's data, or a folder of images;
    labels other than 0 mark known anomalies (default: the test examples)"""
    against: str = ""
    """data set whose test examples are the anomalies, such as mnist for a run on fashion_mnist"""
    score: str = "default"
    """kind of score: default, log_prob, reconstruction, mahalanobis, complexity, or another that
    the model has (elbo, importance, denoising, discriminator)"""
    false_alarm_rate: float = 0.05
    """probability of an alarm for a normal example, at most"""
    fdr: float = 0.1
    """expected share of normal examples among the discoveries of the Benjamini-Hochberg procedure,
    at most"""
    examples: int = 0
    """test examples of each kind, for slow scores: normal ones are drawn at random, anomalies are
    the first ones (0: all)"""
    shown: int = 16
    """strangest examples that are shown"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    publish: bool = False
    """also write the files to experiments/results/NAME"""
    keep_programs: bool = True
    """keep compiled programs in the cache folder for later commands"""

    def __post_init__(self):
        rates = {"--false-alarm-rate": self.false_alarm_rate, "--fdr": self.fdr}
        for flag, rate in rates.items():
            require(0 < rate < 1, f"{flag} is {rate}, must be above 0 and below 1")
        require(self.examples >= 0, f"--examples is {self.examples}, must be at least 0")
        require(self.shown > 0, f"--shown is {self.shown}, must be positive")
        require(
            not (self.file and self.against),
            "a FILE and --against both say what to score: give one of them",
        )
        require(
            not (self.publish and self.file),
            "--publish is for the test examples and for --against: leave the FILE out",
        )


class Examples(NamedTuple):
    """Examples to score, and the normal ones that they are compared with."""

    source: str  # what they are, for titles
    batch: Mapping[str, Any]  # decoded, [N, ...] by name
    stored: np.ndarray  # x as the data set stores them, [N, ...]
    anomalous: np.ndarray | None  # whether each is a known anomaly, [N]; None where unknown
    calibration: Mapping[str, Any]  # decoded normal examples, held out
    held_out: np.ndarray  # x of the calibration as the data set stores them, [n, ...]
    row: np.ndarray  # number of each in its source, [N]


def command(arguments: list[str]) -> int:
    """Run `python -m experiments anomaly`, and return the exit code."""
    flags = parse(Flags, arguments, "anomaly")
    keep_programs(flags.keep_programs)
    (subject,) = load_subjects([flags.run], flags.data_dir, flags.publish)
    outcome = find_anomalies(subject, flags)
    console = Console()
    lines = [{"figure": name, "value": value} for name, value in outcome.rows[0].items()]
    console.print(as_table(f"{subject.name}: anomalies", lines))
    strangest = strangest_rows(outcome.record, flags.shown)
    console.print(as_table("strangest examples", strangest))
    variant = variant_name(flags)
    results = {variant: outcome, **located(subject, flags)}
    for name, result in results.items():
        if name != variant:
            console.print(as_table(f"{subject.name}: {name}", result.rows))
        finish(subject, name, result, flags.publish)
    return 0


def variant_name(flags: Flags) -> str:
    """Return the name of the command's files, with the score and the data that are not default."""
    score = "" if flags.score == "default" else flags.score
    return "-".join(filter(None, (COMMAND, score, Path(flags.against).stem)))


def located(subject: Subject, flags: Flags) -> dict[str, Outcome]:
    """Return where the anomalies of the run's own test split are, if the data say it.

    They are pixels of defects (`defects`), or the steps of a series from which on it has a fault
    (`onset`).
    """
    if flags.file or flags.against:
        return {}
    if defects.has_masks(subject.dataset):
        return {defects.COMMAND: defects.locate(subject)}
    if onset.has_onsets(subject.dataset):
        return {onset.COMMAND: onset.find_onsets(subject, flags.false_alarm_rate)}
    return {}


def find_anomalies(subject: Subject, flags: Flags) -> Outcome:
    """Return p-values, alarms and discoveries, and AUROC where anomalies are known.

    AUROC and average precision are means over the seeds of a run. All other figures are of its
    first seed.

    Args:
      subject: the model.
      flags: the flags of the command.

    Raises:
      UserError: the model has no such score, the examples do not fit the model, or there are too
        few held-out examples for the false-alarm rate.
    """
    model, seeds = subject.experiment.model, list(subject.states)
    examples = examples_of(subject, flags)
    reference = None
    if flags.score == "mahalanobis":
        reference, _ = subject.experiment.decoded(subject.dataset, "train", seeds[0])
    levels = subject.experiment.levels(subject.dataset)

    def score(seed: int, batch: Mapping[str, Any]) -> np.ndarray:
        key = train.streams(seed).evaluate
        state = subject.states[seed]
        return anomaly.score(model, state, batch, key, flags.score, reference, levels)

    scores, calibration = (
        score(seeds[0], batch) for batch in (examples.batch, examples.calibration)
    )
    n = len(calibration)
    require(
        (n + 1) * flags.false_alarm_rate >= 1,
        f"{n} held-out normal examples give no p-value below {1 / (n + 1):.2g}, so that there is "
        f"no alarm at --false-alarm-rate {flags.false_alarm_rate}: raise it, or hold out more",
    )
    p = anomaly.p_values(scores, calibration)
    alarms, found = p <= flags.false_alarm_rate, anomaly.discoveries(p, flags.fdr)
    known_rows = {
        "train": subject.dataset.train["x"],
        "validation": subject.dataset.validation["x"],
        "held_out": examples.held_out,
    }
    repeated = {part: anomaly.repeats(examples.stored, x) for part, x in known_rows.items()}

    row: dict[str, Any] = {"examples": examples.source, "score": flags.score}
    row |= {"scored": float(len(p)), "held out": float(n)}
    if examples.anomalous is not None and 0 < examples.anomalous.sum() < len(p):
        known = examples.anomalous
        each = [scores, *(score(seed, examples.batch) for seed in seeds[1:])]
        row["AUROC"] = estimate.over_seeds([anomaly.auroc(s, known) for s in each])
        row["average precision"] = estimate.over_seeds(
            [anomaly.average_precision(s, known) for s in each]
        )
        row["false alarms"] = estimate.mean(alarms[~known], "exact")
        row["detected"] = estimate.mean(alarms[known], "exact")
        row["false discoveries"] = float(found[~known].sum() / max(1, found.sum()))
    row |= {"alarms": float(alarms.sum()), "discoveries": float(found.sum())}
    row |= {
        f"repeats of {part.replace('_', '-')} rows": float(each.sum())
        for part, each in repeated.items()
    }

    order = np.argsort(-scores, kind="stable")
    record = {
        **of_training(subject),
        "score": flags.score,
        "false_alarm_rate": flags.false_alarm_rate,
        "fdr": flags.fdr,
        "examples": [
            {
                "row": int(examples.row[i]),
                "score": round(float(scores[i]), 6),
                "p_value": round(float(p[i]), 6),
                "alarm": bool(alarms[i]),
                "discovery": bool(found[i]),
                **({} if examples.anomalous is None else {"anomaly": bool(examples.anomalous[i])}),
                "repeats": [part for part, each in repeated.items() if each[i]],
            }
            for i in (order if flags.file else order[: flags.shown])
        ],
    }
    figure = draw(examples, scores, calibration, p, flags)
    return Outcome(record, [row], figure)


def examples_of(subject: Subject, flags: Flags) -> Examples:
    """Return the examples to score and the held-out normal test examples.

    With a file, all normal test examples are held out. Otherwise `halves` says which are held out
    and which are scored.
    """
    experiment, dataset, seed = subject.experiment, subject.dataset, next(iter(subject.states))
    batch, _ = experiment.decoded(dataset, "test", seed)
    test = {name: np.asarray(values) for name, values in batch.items()}
    marked = marks_anomalies(dataset)
    anomalous = test["label"] != 0 if marked else np.zeros(len(test["x"]), bool)
    normal = np.flatnonzero(~anomalous)
    stored = dataset.test["x"]
    if flags.file or flags.against:
        check_takes_rows(subject)

    def of_rows(arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[rows] for name, values in arrays.items()}

    if flags.file:
        given, known = read_rows(flags.file, experiment.reading, dataset.format.words)
        decoded = decode_rows(subject, given, str(flags.file))
        calibration = of_rows({name: test[name] for name in decoded}, normal)
        is_anomaly = None if known is None else known_anomalies(known, len(given), str(flags.file))
        rows = np.arange(len(given))
        held_out = stored[normal]
        return Examples(flags.file.name, decoded, given, is_anomaly, calibration, held_out, rows)

    held_out, scored = halves(normal, dataset.test.get("series"), flags.examples)
    calibration = of_rows(test, held_out)
    if flags.against:
        other = data.load(flags.against, flags.data_dir)
        x = other.test["x"][: flags.examples or None]
        require(
            other.shape == dataset.shape and other.format.peak == dataset.format.peak,
            f"{flags.against} has examples of shape {list(other.shape)} up to {other.format.peak}, "
            f"and the run has {list(dataset.shape)} up to {dataset.format.peak}: take other data",
        )
        require(
            "length" not in other.test or bool((other.test["length"] == x.shape[1]).all()),
            f"{flags.against} has sequences of different lengths: take data with equal lengths",
        )
        strange = decode_rows(subject, x, flags.against)
        both = {
            name: np.concatenate([test[name][scored], values]) for name, values in strange.items()
        }
        is_anomaly = np.arange(len(both["x"])) >= len(scored)
        rows = np.concatenate([scored, np.arange(len(x))])
        source = f"test, anomalies from {flags.against}"
        calibration = {name: calibration[name] for name in strange}
        both_stored = np.concatenate([stored[scored], x])
        return Examples(source, both, both_stored, is_anomaly, calibration, stored[held_out], rows)
    strange = np.flatnonzero(anomalous)[: flags.examples or None]
    rows = np.concatenate([scored, strange])
    is_anomaly = anomalous[rows] if marked else None
    return Examples(
        "test", of_rows(test, rows), stored[rows], is_anomaly, calibration, stored[held_out], rows
    )


def halves(
    normal: np.ndarray, series: np.ndarray | None, examples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of normal examples that are held out, and of those that are scored.

    Every second one is held out, after a permutation, because the order of a test split can have a
    meaning. Windows of a series are dependent, and no series has windows on both sides: of every
    second series one window is held out, drawn at random, and all windows of the others are scored.

    Args:
      normal: rows of the normal examples, [n].
      series: the series of each test example, [N]; None where examples are independent.
      examples: the number of each kind, at most; 0 for all.
    """
    rng = np.random.default_rng(0)
    if series is None:
        shuffled = rng.permutation(normal)[: 2 * examples or None]
        return np.sort(shuffled[::2]), np.sort(shuffled[1::2])
    shuffled = rng.permutation(np.unique(series[normal]))
    windows = rng.permutation(normal)
    _, first = np.unique(series[windows], return_index=True)
    held_out = windows[first][np.isin(series[windows[first]], shuffled[::2])]
    scored = windows[np.isin(series[windows], shuffled[1::2])]
    return np.sort(held_out[: examples or None]), np.sort(scored[: examples or None])


def check_takes_rows(subject: Subject) -> None:
    """Raise `UserError` if the model needs more of an example than x, sequences of any length, or
    examples that are drawn from several rows."""
    dataset = subject.dataset
    require(
        dataset.format.stack == 1,
        f"{dataset.name} draws an example from {dataset.format.stack} of its images, which neither "
        "a FILE nor --against gives: leave them out",
    )
    require(
        not facts(subject.experiment.model).classes,
        f"{subject.name} needs the class of each example, which neither a FILE nor --against "
        "gives: leave them out, or take a model without classes",
    )
    length = dataset.test.get("length")
    require(
        length is None or bool((length == dataset.test["x"].shape[1]).all()),
        f"{dataset.name} has sequences of different lengths, which neither a FILE nor --against "
        "can give: leave them out",
    )


def decode_rows(subject: Subject, x: np.ndarray, source: str) -> dict[str, Any]:
    """Return rows of other data as the model takes them: x, and the length of sequences.

    Args:
      subject: the model, which `check_takes_rows` has checked.
      x: values as the data set of the model stores them, [N, *shape].
      source: where the rows come from, for messages.

    Raises:
      UserError: there are no rows, they have another shape than the examples of the model, or
        values that the model does not take.
    """
    dataset, shape = subject.dataset, tuple(subject.dataset.shape)
    if x.shape[1:] != shape and (*x.shape[1:], 1) == shape:
        x = x[..., None]
    require(
        x.shape[1:] == shape,
        f"the rows of {source} have the shape {list(x.shape[1:])}, and {subject.name} takes "
        f"{list(shape)}: give rows of that shape, in a file .npy or .npz",
    )
    require(len(x) > 0, f"{source} has no rows: give one or more")
    checks.check_type("x", x)
    check_stored(subject, x, source)
    decode = subject.experiment.decode(dataset)
    seed = next(iter(subject.states))
    batch = {"x": x}
    if "length" in dataset.test:
        batch["length"] = np.full(len(x), x.shape[1], np.int32)
    decoded = jax.jit(decode)(batch, jax.random.fold_in(train.streams(seed).evaluate, 1))
    decoded = {name: np.asarray(values) for name, values in decoded.items()}
    try:
        checks.check_values(subject.experiment.model, decoded["x"])
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return decoded


def check_stored(subject: Subject, x: np.ndarray, source: str) -> None:
    """Raise `UserError` if rows have missing values, or values that the data set does not store.

    Levels in other units, such as grey values in [0, 1] in place of 0 … 255, would be decoded to
    wrong values and scored, and so would missing values where decoding draws binary pixels.

    Args:
      subject: the model.
      x: rows, [N, ...].
      source: where they come from, for messages.
    """
    dataset, values = subject.dataset, np.asarray(x, np.float64)
    usable = np.isfinite(values)
    wrong = np.flatnonzero(~usable.reshape(len(x), -1).all(axis=1))
    if len(wrong) and not facts(subject.experiment.model).missing:
        raise UserError(
            f"{source} has missing or infinite values in {len(wrong)} of {len(x)} rows, the first "
            f"in row {wrong[0]}: fill them in, or leave these rows out"
        )
    levels, values = dataset.format.levels, values[usable]
    if not levels or not values.size:
        return
    whole = bool((values == np.round(values)).all())
    require(
        whole and values.min() >= 0 and values.max() < levels,
        f"{source} has values {span(values)}, and {dataset.name} stores integers 0 … {levels - 1}: "
        "give the rows in its units",
    )


def known_anomalies(label: np.ndarray, rows: int, source: str) -> np.ndarray:
    """Return which rows of a file have a label other than 0, [N].

    Args:
      label: the labels of the file, [N] or [N, 1].
      rows: the number N of rows.
      source: the file, for messages.

    Raises:
      UserError: the labels are no numbers, or not one for each row.
    """
    label = np.atleast_1d(label)
    label = label.reshape(-1) if label.size == len(label) else label
    require(
        label.shape == (rows,),
        f"{source} has labels of shape {list(label.shape)} and {rows} rows: give one for each row",
    )
    require(
        label.dtype.kind in "biuf" and not np.isnan(label).any(),
        f"{source} has labels that are no numbers: give 0 for normal rows and 1 for anomalies, or "
        "leave the labels out",
    )
    return label != 0


def strangest_rows(record: Mapping[str, Any], shown: int) -> list[Row]:
    """Return a line for each of the strangest examples of a record."""
    return [
        {
            "row": str(each["row"]),
            "score": each["score"],
            "p-value": each["p_value"],
            "alarm": "yes" if each["alarm"] else "no",
            "discovery": "yes" if each["discovery"] else "no",
            **({"known": "anomaly" if each["anomaly"] else "normal"} if "anomaly" in each else {}),
        }
        for each in record["examples"][:shown]
    ]


def draw(
    examples: Examples,
    scores: np.ndarray,
    calibration: np.ndarray,
    p: np.ndarray,
    flags: Flags,
) -> Any:
    """Draw the histograms of the scores, the ROC curve of known anomalies, and strange images.

    A score of an example that is far from all others can be infinite. It lies in the last bin.

    Args:
      examples: the examples.
      scores: their scores, [N].
      calibration: scores of held-out normal examples, [n].
      p: p-values, [N].
      flags: the flags of the command.
    """
    from matplotlib.figure import Figure

    known = examples.anomalous
    has_curve = known is not None and 0 < known.sum() < len(known)
    x = np.asarray(examples.batch["x"])
    is_image = x.ndim == 4 and x.shape[-1] in (1, 3)
    panels = 1 + has_curve + is_image
    figure = Figure(figsize=(4.6 * panels, 3.8), dpi=100, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]

    groups = {"held-out normal": calibration}
    if known is None:
        groups["scored"] = scores
    else:
        groups |= {"scored normal": scores[~known], "anomalies": scores[known]}
    every = np.concatenate([calibration, scores])
    finite = every[np.isfinite(every)]
    low, high = np.quantile(finite, (0.001, 0.995)) if finite.size else (0.0, 1.0)
    edges = np.linspace(low, high, BINS + 1)
    for name, values in groups.items():
        if len(values):
            shares = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
            axes[0].stairs(shares, edges, fill=name.startswith("held"), alpha=0.7, label=name)
    rank = anomaly.rank_of_threshold(flags.false_alarm_rate, len(calibration))
    threshold = min(np.sort(calibration)[-rank], finite.max(initial=high))
    axes[0].axvline(threshold, color="black", linewidth=1, label=f"p = {flags.false_alarm_rate}")
    axes[0].set_xlabel(f"score ({flags.score}), outermost bins with all beyond")
    axes[0].set_ylabel("share of the examples")
    axes[0].legend(frameon=False, fontsize=8)

    if has_curve:
        from sklearn.metrics import roc_curve

        assert known is not None
        ranks, known = anomaly.ranked(scores, known)
        false_alarms, detected, _ = roc_curve(known, ranks)
        area = anomaly.auroc(scores, known)
        axes[1].plot(false_alarms, detected)
        axes[1].plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
        axes[1].set_title(f"AUROC {area.value:.3f} ± {area.stderr:.3f}", fontsize=10)
        axes[1].set_xlabel("share of the normal examples with an alarm")
        axes[1].set_ylabel("share of the anomalies with an alarm")
    if is_image:
        show_images(axes[-1], x, scores, p, flags.shown)
    return figure


def show_images(axes: Any, x: np.ndarray, scores: np.ndarray, p: np.ndarray, shown: int) -> None:
    """Show the strangest images, row by row.

    Args:
      axes: the axes to draw into.
      x: images, [N, H, W, C].
      scores: their scores, [N].
      p: their p-values, [N].
      shown: number of images, at most.
    """
    from gen.plots import tile

    order = np.argsort(-scores, kind="stable")[:shown]
    columns = int(np.ceil(np.sqrt(len(order))))
    axes.imshow(tile(x[order], columns).squeeze(), cmap="gray", vmin=0, vmax=1)
    axes.set_title(f"the {len(order)} strangest, p ≤ {p[order].max():.2g}", fontsize=10)
    axes.set_axis_off()
