"""Estimates and samples from a finished run."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import pictures
from experiments.folder import commit, write_json
from experiments.probe import probe
from experiments.run import Run
from gen import estimate, plots, train
from gen.core import UserError, capabilities

RESULTS = Path(__file__).parent / "results"


def evaluate_run(run: Run, split: str) -> dict[str, Any]:
    """The record of the model's estimates on a split and of what they cost: over the run's seeds,
    or if they are restarts of the best on validation; with those of the probes, if the experiment
    asks for them. It is written to evaluation.json (evaluation-SPLIT.json for another than the test
    split)."""
    experiment, model = run.experiment, run.experiment.model
    by_seed = []
    seeds = [experiment.all_seeds[run.shown]] if experiment.restarts else experiment.all_seeds
    for seed in seeds:
        state = experiment.of_seed(run.state, experiment.all_seeds.index(seed))
        rows, key = experiment.decoded(run.dataset, split, seed)
        found = model.evaluate(state, rows, key)
        if experiment.probe:
            splits = {
                name: experiment.decoded(run.dataset, name, seed)[0] for name in run.dataset.splits
            }
            found |= probe(model, state, splits, split, seed)
        by_seed.append(found)
    estimates = {name: estimate.over_seeds([of[name] for of in by_seed]) for name in by_seed[0]}
    learned = jax.tree.leaves(model.parameters(experiment.of_seed(run.state, run.shown)))
    record = {
        "experiment": run.name,
        "data": run.dataset.name,
        "binarize": experiment.binarize,
        "split": split,
        "step": run.step,
        "chosen_step": np.asarray(run.chosen_step).tolist(),
        "estimates": {name: estimate.to_json(value) for name, value in estimates.items()},
        "seeds": list(seeds),
        **({"restarts": list(experiment.all_seeds)} if experiment.restarts else {}),
        "per_seed": [
            {
                "seed": seed,
                **{
                    name: {key: estimate.to_json(e)[key] for key in ("value", "stderr")}
                    for name, e in of.items()
                },
            }
            for seed, of in zip(seeds, by_seed, strict=True)
        ],
        "parameters": sum(math.prod(array.shape) for array in learned),
        "train_seconds": round(run.seconds, 1),
        "device": _all(run, "device"),
        "command": run.sessions[-1]["command"],
        "commit": _all(run, "commit"),
        "evaluated_at_commit": commit(),
    }
    name = "evaluation.json" if split == "test" else f"evaluation-{split}.json"
    write_json(run.folder / name, record)
    return record


def publish(run: Run, record: dict[str, Any]) -> Path:
    """Writes a finished run's record on the test split to experiments/results/NAME.json, and its
    final pictures to experiments/results/NAME/."""
    if run.step < run.experiment.steps:
        raise UserError(
            f"{run.folder} stands at step {run.step} of {run.experiment.steps}: finish it first"
        )
    if record["split"] != "test":
        raise UserError(f"only the test split is published, not {record['split']}")
    if not re.fullmatch("[0-9a-f]{40}", str(record["commit"])):
        raise UserError(f"{run.folder} was trained at {record['commit']}: train it at one commit")
    pictured = RESULTS / run.name
    pictured.mkdir(parents=True, exist_ok=True)
    for name in pictures.FINAL:
        if (run.folder / "samples" / name).exists():
            shutil.copyfile(run.folder / "samples" / name, pictured / name)
    path = RESULTS / f"{run.name}.json"
    write_json(path, record)
    return path


def _all(run: Run, field: str) -> str:
    """What the sessions of a run have in that field: one value, or several joined."""
    return " and ".join(dict.fromkeys(str(session[field]) for session in run.sessions))


def sample_run(run: Run, n: int, seed: int) -> list[Path]:
    """n samples of the shown seed's model: the floats [n, *shape] as .npy and, of images, a PNG
    grid."""
    model = run.experiment.model
    if "sample" not in capabilities(model):
        raise UserError(
            f"{type(model).__name__} cannot sample: it has no sampler; "
            f"what it can do: {', '.join(capabilities(model))}"
        )
    if not 1 <= n <= 100_000:
        raise UserError(f"{n} samples: take 1 … 100000")
    train.check_seeds(seed)
    images = pictures.draw_samples(
        model, run.experiment.of_seed(run.state, run.shown), train.streams(seed).sample, n
    )
    stem = run.folder / "samples" / f"seed{seed}_n{n}"
    picture, array = stem.with_suffix(".png"), stem.with_suffix(".npy")
    np.save(array, images)
    if len(model.shape) != 3:
        return [array]
    pictures.save(plots.grid(images, math.ceil(math.sqrt(n))), picture)
    return [picture, array]


def summary(record: dict[str, Any]) -> Any:
    """A table of a record's estimates for the terminal."""
    from rich.table import Table

    table = Table("estimate", "value ± standard error", "kind", "n", "settings")
    for name, fields in record["estimates"].items():
        value = estimate.from_json(fields)
        number, _ = str(value).split(" (", 1)
        settings = ", ".join(
            f"{key} {item:.2g}" if isinstance(item, float) else f"{key} {item}"
            for key, item in value.settings.items()
        )
        table.add_row(name, number, value.kind, str(value.n), settings)
    return table
