"""Evaluate, publish and sample a run."""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import own, pictures
from experiments.experiment import Experiment
from experiments.folder import RESULTS, commit, is_clean, read_json, write_json, write_text
from experiments.registry import EXPERIMENTS
from experiments.run import FAULTS, Run
from experiments.table import NEEDED
from gen import estimate, plots, weights
from gen.core import UserError
from gen.data import Dataset, Format
from gen.trained import WEIGHTS, Trained
from gen.uses.features import probe

HALF_SHIFT = 0.1
"""Standard errors by which float16 weights may move an estimate."""
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
    estimates = estimate.over_seeds_by_name(by_seed)
    learned = jax.tree.leaves(model.parameters(experiment.of_seed(run.state, run.shown)))
    log = run.folder / FAULTS
    faults = log.read_text().splitlines() if log.exists() else []
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
        **({"faults": faults} if faults else {}),
        "parameters": sum(math.prod(array.shape) for array in learned),
        "train_seconds": round(run.seconds, 1),
        "device": of_sessions(run, "device"),
        "command": run.sessions[-1]["command"],
        "commit": of_sessions(run, "commit"),
        "evaluated_at_commit": commit(),
    }
    name = "evaluation.json" if split == "test" else f"evaluation-{split}.json"
    write_json(run.folder / name, record)
    return record


def evaluate_published(run: Trained, split: str, data_dir: Path | None = None) -> dict[str, Any]:
    """Return the record of published weights on the registered data. Nothing is written.

    Args:
      run: the published model.
      split: train, validation or test.
      data_dir: folder of prepared data sets, as `gen.data.load` takes it.

    Returns:
      The estimates, as in a record of `evaluate_run`, and the seed and the step of the weights.
    """
    experiment, seed = of_published(run)
    dataset = replace(experiment, seed=seed, seeds=()).load_data(data_dir)
    results = evaluate_state(experiment.on(dataset), dataset, run.state, split, seed)
    estimates = {name: estimate.to_json(value) for name, value in results.items()}
    return {"experiment": run.name, "seed": seed, "step": run.step, "estimates": estimates}


def of_published(run: Trained) -> tuple[Experiment, int]:
    """Return the registered experiment of published weights with their model, and their seed.

    Args:
      run: the published model.
    """
    record = read_json(RESULTS / f"{run.name}.json", *NEEDED) or {"seeds": [0]}
    experiment = replace(EXPERIMENTS[run.name], model=run.model, binarize=run.binarize)
    return experiment, record["seeds"][0]


def evaluate_state(
    experiment: Experiment, dataset: Dataset, state: Any, split: str, seed: int
) -> dict[str, estimate.Estimate]:
    """Return the estimates of one state by name, and of its codes if the experiment probes them.

    They are in the units of the data, as `own.in_own_units` says.

    Args:
      experiment: the experiment, on its data.
      dataset: the data.
      state: a state of the model.
      split: train, validation or test.
      seed: the seed of the binarisation and of all draws.
    """
    model = experiment.model
    rows, key = experiment.decoded(dataset, split, seed)
    results = estimate.evaluate(model, state, rows, key, levels=experiment.levels(dataset))
    if experiment.probe:
        splits = {name: experiment.decoded(dataset, name, seed)[0] for name in dataset.splits}
        results |= probe(model, state, splits, split, seed, experiment.fine_tuning_rounds)
    return own.in_own_units(results, dataset)


def evaluate_seeds(
    run: Run, split: str, draws: int | None = None
) -> dict[int, dict[str, estimate.Estimate]]:
    """Return the estimates of each seed of a run, or of the best restart, by seed.

    Args:
      run: the run.
      split: train, validation or test.
      draws: the seed of the binarisation and of all draws; None for the seed of each model, so that
        one seed of a run is evaluated as a run of that seed alone.
    """
    experiment, by_seed = run.experiment, {}
    seeds = [experiment.all_seeds[run.shown]] if experiment.restarts else experiment.all_seeds
    for seed in seeds:
        drawn = seed if draws is None else draws
        state = experiment.of_seed(run.state, experiment.all_seeds.index(seed))
        by_seed[seed] = evaluate_state(experiment, run.dataset, state, split, drawn)
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
      UserError: the run is unfinished, it was trained on other data than the registered ones, the
        split is not the test split, or the run was not trained and evaluated at a commit without
        later changes.
    """
    registered = EXPERIMENTS[run.name].data if run.name in EXPERIMENTS else "nothing"
    if run.experiment.data != registered:
        raise UserError(
            f"{run.folder} was trained on {run.experiment.data}, and the results of {run.name} are "
            f"of {registered}: only these are published"
        )
    if run.step < run.experiment.steps and not run.stopped_early:
        raise UserError(
            f"{run.folder} stands at step {run.step} of {run.experiment.steps}: finish it first"
        )
    if split != "test":
        raise UserError(f"only the test split is published, not {split}")
    trained_at = of_sessions(run, "commit")
    if not is_clean(trained_at):
        raise UserError(
            f"{run.folder} was trained at {trained_at}: train it at one commit, without changes"
        )
    if not is_clean(evaluated_at):
        raise UserError(f"this checkout is at {evaluated_at}: commit its changes, then publish")


def publish(run: Run, record: dict[str, Any]) -> Path:
    """Write the record, the final pictures and the weights of a run to experiments/results.

    The record is NAME.json, which is written last. The pictures and the weights of the seed that
    they show are in NAME/.

    Args:
      run: a finished run.
      record: its record, from `evaluate_run`.

    Returns:
      The path of NAME.json.

    Raises:
      UserError: the run may not be published, see `check_publishable`.
    """
    check_publishable(run, record["split"], record["evaluated_at_commit"])
    state = run.experiment.of_seed(run.state, run.shown)
    step = int(np.ravel(run.chosen_step)[run.shown])
    seed = run.experiment.all_seeds[run.shown]
    by_seed = next(each for each in record["per_seed"] if each["seed"] == seed)
    publish_weights(run.name, run.experiment, run.dataset, state, step, by_seed)
    folder = RESULTS / run.name
    for name in pictures.FINAL:
        (folder / name).unlink(missing_ok=True)  # an earlier run may have had other pictures
        if (run.folder / "samples" / name).exists():
            shutil.copyfile(run.folder / "samples" / name, folder / name)
    path = RESULTS / f"{run.name}.json"
    write_json(path, record)
    return path


def publish_weights(
    name: str,
    experiment: Experiment,
    dataset: Dataset,
    state: Any,
    step: int,
    published: Mapping[str, Any],
) -> Path:
    """Write the weights of a published result, experiments/results/NAME/weights.safetensors.

    The header has the model and the format of the data, so that `gen.load` needs nothing else. The
    weights are float16 if no estimate of the model on the test split moves by a tenth of its
    standard error, and float32 otherwise. Estimates of the probe have no part in it: fine-tuning
    amplifies the rounding of its first weights, and takes longer than everything else.

    Args:
      name: the name of the experiment.
      experiment: the experiment, on its data.
      dataset: the data.
      state: the state of the seed that the pictures show.
      step: the step of that state.
      published: that seed's entry of `per_seed` in the record.

    Returns:
      The path of the file.
    """
    seed = published["seed"]
    unprobed = replace(experiment, probe=False)
    halved = evaluate_state(unprobed, dataset, weights.halved(state), "test", seed)
    shifts = [
        abs(value.value - published[of]["value"]) / value.stderr
        for of, value in halved.items()
        if value.stderr > 0  # not of quantities that are no means over examples, such as log Z
    ]
    path = RESULTS / name / WEIGHTS
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.save(
        path,
        state,
        name,
        step,
        model=experiment.for_run().model,
        format=dataset.format,
        binarize=experiment.binarize,
        half=bool(shifts) and all(shift < HALF_SHIFT for shift in shifts),  # not of a NaN
    )
    _list_if_large(path)
    return path


def _list_if_large(path: Path) -> None:
    """Let RESULTS/.gitignore list a file of weights if it is too large to commit."""
    listing = RESULTS / ".gitignore"
    before = set(listing.read_text().splitlines()) if listing.exists() else set()
    name = f"{path.parent.name}/{path.name}"
    after = before - {name} | ({name} if path.stat().st_size > LARGEST_COMMITTED else set())
    if after != before:
        write_text(listing, "".join(f"{line}\n" for line in sorted(after)))


def of_sessions(run: Run, field: str) -> str:
    """Return a field of the sessions of a run: one value, or all different values, joined."""
    return " and ".join(dict.fromkeys(str(session[field]) for session in run.sessions))


def sample_run(run: Trained, n: int, seed: int, labels: Sequence[int], folder: Path) -> list[Path]:
    """Draw samples from a trained model.

    Args:
      run: the model.
      n: the number of samples.
      seed: the seed of the draws.
      labels: classes to draw from, cycled over the samples; empty for the model's own choice.
      folder: the folder of the files.

    Returns:
      The paths of an .npy file with the samples [n, *shape], and before it of a PNG grid of images,
      a text of symbols, or a table of named columns.

    Raises:
      UserError: the model has no sampler, or does not have the labels; n is out of range.
    """
    x = run.sample(n, seed, labels or None)
    suffix = f"_label{'-'.join(map(str, labels))}" if labels else ""
    stem = folder / f"seed{seed}_n{n}{suffix}"
    picture, array = stem.with_suffix(".png"), stem.with_suffix(".npy")
    pictures.save_array(x, array)
    if x.ndim != 4:
        return [*write_named(stem, x, run.format), array]
    if x.dtype.kind in "iu":
        values = x / run.format.peak
    elif run.format.scale:
        values = (x - run.format.center[0]) / run.format.scale[0]
    else:
        values = x
    pictures.save(plots.grid(values, math.ceil(math.sqrt(n))), picture)
    return [picture, array]


def export(run: Trained, path: Path) -> Path:
    """Write the arrays of a trained model to a safetensors file or an .npz file.

    Args:
      run: the model.
      path: the file, which ends in `.safetensors` or `.npz`.

    Returns:
      The path.
    """
    if path.suffix not in (".safetensors", ".npz"):
        raise UserError(f"{path} is of no known type: end it in .safetensors or .npz")
    weights.save(
        path,
        run.state,
        run.name,
        run.step,
        model=run.model,
        format=run.format,
        binarize=run.binarize,
    )
    return path


def write_named(stem: Path, x: np.ndarray, format: Format) -> list[Path]:
    """Write samples of symbols as a text, or of named columns as a table.

    Args:
      stem: the path without its suffix.
      x: samples as `gen.Trained.sample` returns them, [n, *shape].
      format: the format of the data.

    Returns:
      The path of the file, or nothing if the samples are neither.
    """
    if format.symbols and x.ndim == 2 and x.dtype.kind in "iu":
        join = "" if isinstance(format.symbols, str) else " "
        lines = [join.join(format.symbols[i] for i in row) for row in x]
        path = stem.with_suffix(".txt")
        write_text(path, "\n\n".join(lines) + "\n")
        return [path]
    if format.words and x.ndim == 2:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(format.words)
        writer.writerows([[f"{value:.6g}" for value in row] for row in x])
        path = stem.with_suffix(".csv")
        write_text(path, file.getvalue())
        return [path]
    return []


def summary(record: dict[str, Any]) -> Any:
    """Return a table of a record's estimates for the terminal, which never cuts their names."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("estimate", "value ± error"):
        table.add_column(column, no_wrap=True)
    for column in ("kind", "n", "settings"):
        table.add_column(column, overflow="fold")
    for name, fields in record["estimates"].items():
        value = estimate.from_json(fields)
        number, _ = str(value).split(" (", 1)
        settings = ", ".join(
            f"{key} {item:.2g}" if isinstance(item, float) else f"{key} {item}"
            for key, item in value.settings.items()
        )
        table.add_row(name, number, value.kind, str(value.n), settings)
    return table
