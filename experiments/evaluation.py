"""Evaluate, publish and sample a run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import own, pictures
from experiments.folder import RESULTS, commit, is_clean, write_json, write_text
from experiments.run import Run
from gen import estimate, plots, train, weights
from gen.core import UserError, capabilities, facts
from gen.uses.features import probe

WEIGHTS = "weights.safetensors"
LARGEST_COMMITTED = 6_000_000
"""Bytes of weights above which RESULTS/.gitignore lists their file."""


def evaluate_run(run: Run, split: str) -> dict[str, Any]:
    """Evaluate the model of a run, and write the record to the run's folder.

    The estimates are means over the seeds of the run. Of several restarts, the best on the
    validation split is taken. The file is evaluation.json, or evaluation-SPLIT.json for another
    split than the test split.

    Args:
      run: the run.
      split: train, validation or test.

    Returns:
      The record: the estimates, their values for each seed, and the cost and origin of the run.
    """
    experiment, model = run.experiment, run.experiment.model
    results_by_seed = evaluate_seeds(run, split)
    seeds, by_seed = list(results_by_seed), list(results_by_seed.values())
    estimates = {
        name: estimate.over_seeds([results[name] for results in by_seed]) for name in by_seed[0]
    }
    learned = jax.tree.leaves(model.parameters(experiment.of_seed(run.state, run.shown)))
    record = {
        "experiment": run.name,
        "data": run.dataset.name,
        "binarize": experiment.binarize,
        "split": split,
        "step": run.step,
        **({"stopped_early": True} if run.stopped_early else {}),
        "chosen_step": np.asarray(run.chosen_step).tolist(),
        "estimates": {name: estimate.to_json(value) for name, value in estimates.items()},
        "seeds": seeds,
        **({"restarts": list(experiment.all_seeds)} if experiment.restarts else {}),
        "per_seed": [
            {"seed": seed, **{name: _value(each) for name, each in results.items()}}
            for seed, results in zip(seeds, by_seed, strict=True)
        ],
        "parameters": sum(math.prod(array.shape) for array in learned),
        "train_seconds": round(run.seconds, 1),
        "device": _of_sessions(run, "device"),
        "command": run.sessions[-1]["command"],
        "commit": _of_sessions(run, "commit"),
        "evaluated_at_commit": commit(),
    }
    name = "evaluation.json" if split == "test" else f"evaluation-{split}.json"
    write_json(run.folder / name, record)
    return record


def evaluate_seeds(
    run: Run, split: str, draws: int | None = None
) -> dict[int, dict[str, estimate.Estimate]]:
    """Return the estimates of each seed of a run, or of the best restart, by seed.

    They are in the units of the data, as `own.in_own_units` says.

    Args:
      run: the run.
      split: train, validation or test.
      draws: the seed of the binarisation and of all draws; None for the seed of each model, so that
        one seed of a run is evaluated as a run of that seed alone.
    """
    experiment, model = run.experiment, run.experiment.model
    by_seed = {}
    seeds = [experiment.all_seeds[run.shown]] if experiment.restarts else experiment.all_seeds
    for seed in seeds:
        drawn = seed if draws is None else draws
        state = experiment.of_seed(run.state, experiment.all_seeds.index(seed))
        rows, key = experiment.decoded(run.dataset, split, drawn)
        levels = experiment.levels(run.dataset)
        results = estimate.evaluate(model, state, rows, key, levels=levels)
        if experiment.probe:
            splits = {
                name: experiment.decoded(run.dataset, name, drawn)[0] for name in run.dataset.splits
            }
            results |= probe(model, state, splits, split, drawn)
        by_seed[seed] = own.in_own_units(results, run.dataset)
    return by_seed


def _value(each: estimate.Estimate) -> dict[str, Any]:
    """Return the value and the standard error of an estimate, as JSON."""
    fields = estimate.to_json(each)
    return {"value": fields["value"], "stderr": fields["stderr"]}


def check_publishable(run: Run, split: str, evaluated_at: str | None) -> None:
    """Check that a run may be published.

    Args:
      run: the run.
      split: the split that it is evaluated on.
      evaluated_at: the commit of the evaluation.

    Raises:
      UserError: the run is unfinished, the split is not the test split, or the run was not trained
        and evaluated at a commit without later changes.
    """
    if run.step < run.experiment.steps and not run.stopped_early:
        raise UserError(
            f"{run.folder} stands at step {run.step} of {run.experiment.steps}: finish it first"
        )
    if split != "test":
        raise UserError(f"only the test split is published, not {split}")
    trained_at = _of_sessions(run, "commit")
    if not is_clean(trained_at):
        raise UserError(
            f"{run.folder} was trained at {trained_at}: train it at one commit, without changes"
        )
    if not is_clean(evaluated_at):
        raise UserError(f"this checkout is at {evaluated_at}: commit its changes, then publish")


def publish(run: Run, record: dict[str, Any]) -> Path:
    """Write the record, the final pictures and the weights of a run to experiments/results.

    The record is NAME.json. The pictures and the weights of the seed that they show are in NAME/.

    Args:
      run: a finished run.
      record: its record, from `evaluate_run`.

    Returns:
      The path of NAME.json.

    Raises:
      UserError: the run may not be published, see `check_publishable`.
    """
    check_publishable(run, record["split"], record["evaluated_at_commit"])
    folder = RESULTS / run.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in pictures.FINAL:
        (folder / name).unlink(missing_ok=True)  # an earlier run may have had other pictures
        if (run.folder / "samples" / name).exists():
            shutil.copyfile(run.folder / "samples" / name, folder / name)
    state = run.experiment.of_seed(run.state, run.shown)
    step = int(np.ravel(run.chosen_step)[run.shown])
    weights.save(folder / WEIGHTS, state, experiment=run.name, step=step)
    _list_if_large(folder / WEIGHTS)
    path = RESULTS / f"{run.name}.json"
    write_json(path, record)
    return path


def _list_if_large(path: Path) -> None:
    """Let RESULTS/.gitignore list a file of weights if it is too large to commit."""
    listing = RESULTS / ".gitignore"
    before = set(listing.read_text().splitlines()) if listing.exists() else set()
    name = f"{path.parent.name}/{path.name}"
    after = before - {name} | ({name} if path.stat().st_size > LARGEST_COMMITTED else set())
    if after != before:
        write_text(listing, "".join(f"{line}\n" for line in sorted(after)))


def _of_sessions(run: Run, field: str) -> str:
    """Return a field of the sessions of a run: one value, or all different values, joined."""
    return " and ".join(dict.fromkeys(str(session[field]) for session in run.sessions))


def sample_run(run: Run, n: int, seed: int, labels: Sequence[int] = ()) -> list[Path]:
    """Draw samples from the model of the seed that a run shows.

    Args:
      run: the run.
      n: the number of samples.
      seed: the seed of the draws.
      labels: classes to draw from, cycled over the samples; empty for the model's own choice.

    Returns:
      The paths of an .npy file with the floats [n, *shape], in the units of the data where these
      were standardised, and before it of a PNG grid of images, a text of symbols, or a table of
      named columns.

    Raises:
      UserError: the model has no sampler, or does not have the labels; n is out of range.
    """
    model = run.experiment.model
    name, classes = type(model).__name__, facts(model).classes
    if "sample" not in capabilities(model):
        raise UserError(
            f"{name} cannot sample: it has no sampler; "
            f"what it can do: {', '.join(capabilities(model))}"
        )
    if not 1 <= n <= 100_000:
        raise UserError(f"{n} samples: take 1 … 100000")
    train.check_seeds(seed)
    if labels and not classes:
        raise UserError(f"{name} of {run.folder} takes no labels: leave --label out")
    if wrong := [label for label in labels if not 0 <= label < classes]:
        raise UserError(f"label {wrong[0]} is out of range: take 0 … {classes - 1}")
    given = {"label": np.resize(np.array(labels, np.int32), n)} if labels else {}
    state = run.experiment.of_seed(run.state, run.shown)
    draw = jax.jit(model.sample, static_argnums=2)
    x = np.asarray(draw(state, train.streams(seed).sample, n, **given))
    suffix = f"_label{'-'.join(map(str, labels))}" if labels else ""
    stem = run.folder / "samples" / f"seed{seed}_n{n}{suffix}"
    picture, array = stem.with_suffix(".png"), stem.with_suffix(".npy")
    format = run.dataset.format
    pictures.save_array(format.restore(x) if format.scale else x, array)
    if len(model.shape) != 3:
        return [*own.write_samples(stem, x, format), array]
    pictures.save(plots.grid(x, math.ceil(math.sqrt(n))), picture)
    return [picture, array]


def summary(record: dict[str, Any]) -> Any:
    """Return a table of a record's estimates for the terminal."""
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
