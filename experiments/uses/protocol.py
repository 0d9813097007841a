"""Compare anomaly detectors by the protocols of publications: train, score, AUROC, set by set."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console

from experiments.compilation import keep_programs
from experiments.experiment import Experiment, to_config
from experiments.flags import parse
from experiments.folder import commit, is_clean, read_json, write_json
from experiments.registry import EXPERIMENTS
from experiments.uses.base import Outcome, Row, as_table, publish
from gen import data, estimate, train
from gen.core import UserError, facts, require
from gen.data import ODDS, ONE_CLASS, Dataset, Format, Protocol
from gen.estimate import Estimate
from gen.uses import anomaly, baselines

SETS = {
    "odds": tuple(ODDS),
    "one_class_mnist": tuple(name for name in ONE_CLASS if name.startswith("mnist")),
    "one_class_fashion_mnist": tuple(name for name in ONE_CLASS if name.startswith("fashion")),
}
"""Data sets of each protocol."""


@dataclass(frozen=True)
class Flags:
    """Train a detector on each set of a protocol, score the test split, and write its AUROC.

    The same command again goes on where an interrupted one stopped.
    """

    protocol: tyro.conf.Positional[Literal["odds", "one_class_mnist", "one_class_fashion_mnist"]]
    """20 tabular sets, or one class of images against the other nine, for each class"""
    name: tyro.conf.Positional[str]
    """experiment, or a baseline: nearest_neighbours, nearest_neighbour, pca_distance, pca_error or
    isolation_forest"""
    split: Protocol = "drawn"
    """tabular sets: the seed draws the half for training, or it is the half of the published
    figures, whose small sets have copies of test rows in training"""
    score: str = "default"
    """kind of score, as in anomaly"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """seeds of the splits and of training"""
    sets: tuple[str, ...] = ()
    """only these data sets of the protocol"""
    out: Path | None = None
    """JSON file (default: runs/PROTOCOL-SPLIT-NAME-SCORE.json)"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    publish: bool = False
    """also write experiments/results/NAME/PROTOCOL.json, of the published split
    PROTOCOL_published.json; a --score other than the default stands in the name, as in
    odds-denoising.json. All sets and the default seeds are needed"""
    keep_programs: bool = True
    """keep compiled programs in the cache folder for later commands"""

    def __post_init__(self):
        train.check_seeds(self.seeds)
        unknown = set(self.sets) - set(SETS[self.protocol])
        require(not unknown, f"--sets {' '.join(unknown)}: {self.protocol} has no such data set")
        require(
            self.protocol == "odds" or self.split == "drawn",
            f"--split {self.split} is for odds, and {self.protocol} has one split: leave it out",
        )
        whole = not self.sets or set(self.sets) == set(SETS[self.protocol])
        require(
            not self.publish or (whole and self.seeds == Flags.seeds),
            "--publish needs all sets and the default seeds: leave --sets and --seeds out",
        )
        require(
            self.name not in baselines.BASELINES or self.score == "default",
            f"{self.name} has one score: leave --score {self.score} out",
        )


class Split(NamedTuple):
    """Decoded examples of one data set at one seed."""

    dataset: Dataset  # of decoded values
    anomalous: np.ndarray  # whether each test example is an anomaly, [N]
    repeated: np.ndarray  # whether each test example equals a training example, [N]


def command(arguments: list[str]) -> int:
    """Run `python -m experiments protocol`, and return the exit code."""
    flags = parse(Flags, arguments, "protocol")
    keep_programs(flags.keep_programs)
    require(
        flags.name in EXPERIMENTS or flags.name in baselines.BASELINES,
        f"{flags.name} is no experiment and no baseline: choose an experiment (python -m "
        f"experiments list), or {', '.join(baselines.BASELINES)}",
    )
    if flags.protocol == "odds" and flags.name in EXPERIMENTS:
        check_takes_tables(flags.name, EXPERIMENTS[flags.name])
    if flags.publish:
        require(is_clean(commit()), f"this checkout is at {commit()}: commit its changes first")
    variant = f"{flags.split}-" if flags.protocol == "odds" else ""
    file = f"{flags.protocol}-{variant}{flags.name}-{flags.score}.json"
    path = flags.out or Path("runs") / file
    outcome = run(flags, path)
    console = Console()
    console.print(as_table(f"{flags.name}: {flags.protocol}", set_rows(outcome.record)))
    console.print(as_table("means over the sets", outcome.rows))
    print(path)
    if flags.publish:
        print(f"published as {publish(flags.name, published_name(flags), outcome)}")
    return 0


def published_name(flags: Flags) -> str:
    """Return the name of the published result, with a split and a score that are not default."""
    split = "_published" if flags.split == "published" else ""
    score = "" if flags.score == "default" else f"-{flags.score}"
    return f"{flags.protocol}{split}{score}"


def check_takes_tables(name: str, experiment: Experiment) -> None:
    """Raise `UserError` unless the model of an experiment takes rows of continuous values."""
    properties = facts(experiment.model)
    continuous = not (properties.levels or properties.unit_interval or properties.counts)
    require(
        continuous
        and experiment.binarize == "none"
        and not (properties.sequences or properties.classes),
        f"{name} does not model continuous tables: NAME must be an experiment that does, such as "
        "gaussians_odds, or a baseline",
    )


def seeds_share_test(name: str, flags: Flags) -> bool:
    """Return whether a data set has the same test split at all seeds.

    Args:
      name: the data set.
      flags: the flags of the command, with the seeds.
    """
    if name not in ODDS:
        return True
    first, *others = (data.read_odds(name, seed, flags.split).test["x"] for seed in flags.seeds)
    return all(np.array_equal(first, other) for other in others)


def run(flags: Flags, path: Path) -> Outcome:
    """Return the AUROC of a detector on every set, and write it to a file set by set.

    Args:
      flags: the flags of the command.
      path: the file, from which finished sets are taken if it was written by the same settings.

    Raises:
      UserError: the file has other settings.
    """
    experiment = EXPERIMENTS.get(flags.name)
    settings: dict[str, Any] = {
        "experiment": flags.name,
        "protocol": flags.protocol,
        "score": flags.score,
        "seeds": list(flags.seeds),
        "commit": commit(),
    }
    if flags.protocol == "odds":
        settings["split"] = flags.split
    if experiment:
        settings["config"] = json.loads(json.dumps(to_config(flags.name, experiment)))
    record: dict[str, Any] = {**settings, "sets": {}}
    if old := read_json(path):
        changed = [name for name in settings if old.get(name) != settings[name]]
        if changed:
            raise UserError(f"{path} was written with another {changed[0]}: move it, or give --out")
        record = old

    for name in flags.sets or SETS[flags.protocol]:
        if name in record["sets"]:
            continue
        began = time.time()
        results = [evaluate(flags, experiment, name, seed) for seed in flags.seeds]
        mean = estimate.over_seeds if seeds_share_test(name, flags) else estimate.over_splits
        record["sets"][name] = {
            **{
                measure: estimate.to_json(mean([each[measure] for each in results]))
                for measure in MEASURES
                if all(measure in each for each in results)
            },
            "per_seed": [
                {measure: round(each[measure].value, 5) for measure in each} for each in results
            ],
            "seconds": round(time.time() - began, 1),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        print(f"{name}: AUROC {100 * record['sets'][name]['auroc']['value']:.1f}", flush=True)
    return Outcome(record, [mean_row(record)])


def evaluate(
    flags: Flags, experiment: Experiment | None, name: str, seed: int
) -> dict[str, Estimate]:
    """Return the AUROC and the average precision of a detector on one data set at one seed.

    `auroc_distinct` is the AUROC without the normal test examples that equal a training example, if
    others are left, and `repeats` is the share of test examples that equal a training example.

    Args:
      flags: the flags of the command.
      experiment: the experiment that is trained; None for a baseline.
      name: the data set.
      seed: the seed.
    """
    split = load_split(name, seed, flags)
    dataset, anomalous = split.dataset, split.anomalous
    if experiment is None:
        known = np.concatenate([dataset.train["x"], dataset.validation["x"]])
        scores = baselines.BASELINES[flags.name](known, dataset.test["x"], seed)
    else:
        scores = trained_scores(experiment, dataset, flags.score, seed)
    estimates = {
        "auroc": anomaly.auroc(scores, anomalous),
        "average_precision": anomaly.average_precision(scores, anomalous),
        "repeats": estimate.mean(split.repeated, "exact"),
    }
    kept = ~split.repeated | anomalous
    if not anomalous[kept].all():
        estimates["auroc_distinct"] = anomaly.auroc(scores[kept], anomalous[kept])
    return estimates


def load_split(name: str, seed: int, flags: Flags) -> Split:
    """Return a data set of a protocol with decoded values, which no format has to decode again.

    Training then compiles one program for all seeds whose splits have equal sizes.

    Args:
      name: the data set.
      seed: the seed of the split.
      flags: the flags of the command.
    """
    if name in ODDS:
        stored = data.read_odds(name, seed, flags.split)
    else:
        stored = data.load(name, flags.data_dir)
    format = stored.format
    parts = {}
    for part, arrays in stored.splits.items():
        x = arrays["x"].astype(np.float32)
        if format.scale:
            center, scale = (np.array(each, np.float32) for each in (format.center, format.scale))
            x = (x - center) / scale
        parts[part] = {"x": x / format.peak}
    decoded = Format(peak=1, levels=format.levels)
    known = np.concatenate([stored.train["x"], stored.validation["x"]])
    repeated = anomaly.repeats(stored.test["x"], known)
    return Split(Dataset(name, **parts, format=decoded), stored.test["label"] == 1, repeated)


def trained_scores(experiment: Experiment, dataset: Dataset, kind: str, seed: int) -> np.ndarray:
    """Train an experiment on a data set, and return the scores of its test examples, [N].

    A batch is at most the training split.

    Args:
      experiment: the experiment.
      dataset: decoded examples.
      kind: the kind of score.
      seed: the seed of training and of the scores' draws.

    Raises:
      UserError: the model has no such score, which is found before training.
    """
    experiment = replace(
        experiment, seed=seed, batch_size=min(experiment.batch_size, len(dataset.train["x"]))
    )
    experiment = replace(experiment, model=replace(experiment.model, shape=dataset.shape)).for_run()
    is_grey = experiment.binarize == "none"
    shapes = jax.eval_shape(experiment.model.init, jax.random.key(seed))
    levels = experiment.levels(dataset)
    anomaly.check_kind(experiment.model, shapes, dataset.test, kind, levels)
    decode: Any = train.no_decode if is_grey else experiment.decode(dataset)
    carry: Any = None
    fitting = experiment.fit(dataset, decode=decode, early_stop=experiment.early_stop)
    for progress in fitting:
        carry = progress.carry
    key = train.streams(seed).evaluate
    test, training = (decode(part, key) for part in (dataset.test, dataset.train))
    return anomaly.score(experiment.model, carry.chosen, test, key, kind, training, levels)


MEASURES = {
    "auroc": "AUROC, %",
    "auroc_distinct": "AUROC without repeats, %",
    "average_precision": "average precision, %",
    "repeats": "repeats of training rows, %",
}
"""Titles of the measures of a set."""


def set_rows(record: Mapping[str, Any]) -> list[Row]:
    """Return a line for each set, with the means over seeds in percent, and the seconds."""
    return [
        {
            "set": name,
            **{
                title: in_percent(estimate.from_json(results[measure]))
                for measure, title in MEASURES.items()
                if measure in results
            },
            "seconds": results["seconds"],
        }
        for name, results in record["sets"].items()
    ]


def in_percent(share: Estimate) -> Estimate:
    """Return an estimate of a share as one of a percentage, without its settings."""
    return Estimate(100 * share.value, 100 * share.stderr, share.kind, share.n)


def mean_row(record: Mapping[str, Any]) -> Row:
    """Return a line with the means over the sets, in percent.

    The sets are fixed and independent: the mean over D of them has the standard error √Σ se² / D.
    Sets whose normal test rows all repeat training rows have no part in the mean without repeats.
    """
    sets = record["sets"].values()
    means = {}
    for measure, title in MEASURES.items():
        shares = [estimate.from_json(each[measure]) for each in sets if measure in each]
        if shares:
            value = float(np.mean([each.value for each in shares]))
            stderr = float(np.linalg.norm([each.stderr for each in shares])) / len(shares)
            n = sum(each.n for each in shares)
            means[title] = in_percent(Estimate(value, stderr, "exact", n))
    seconds = float(sum(results["seconds"] for results in sets))
    counts = {"sets": f"{len(sets)}", "seeds": f"{len(record['seeds'])}"}
    return {"score": record["score"], **counts, **means, "seconds": seconds}
