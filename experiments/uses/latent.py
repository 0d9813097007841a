"""Look at the codes of trained models: a map, paths between examples, dimensions, known factors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console

from experiments.compilation import keep_programs
from experiments.flags import parse
from experiments.uses.base import (
    Outcome,
    Row,
    Subject,
    as_table,
    finish,
    load_subjects,
    of_training,
)
from gen import estimate
from gen.core import UserError, capabilities, check_fields, facts, require
from gen.estimate import Estimate
from gen.uses import latent
from gen.uses.features import encode_all
from gen.uses.latent import Projection

COMMAND = "latent"
SEED = 0
"""Seed of the binarisation of examples, of codes that are drawn, and of the bootstrap."""
PATH_STEPS = 11
"""Images of an interpolation or of a traversal."""


@dataclass(frozen=True)
class Flags:
    """Look at the codes of models, and write RUN/latent.json and latent.png.

    A map of the codes of test examples, interpolations between pairs of them, a traversal of each
    dimension with its KL or variance, active units, and on data of known factors the mutual
    information gap and the FactorVAE score.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or names of experiments with published weights"""
    examples: int = 2_000
    """number of test examples that are encoded, at most"""
    projection: Projection = "pca"
    """map of codes of more than two dimensions: principal components, or t-SNE"""
    pairs: int = 6
    """pairs of test examples that are joined by a path"""
    dimensions: int = 10
    """dimensions that are traversed, at most, by falling KL or variance"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    publish: bool = False
    """also write experiments/results/NAME/latent.json"""
    keep_programs: bool = True
    """keep compiled programs in the cache folder for later commands"""

    def __post_init__(self):
        check_fields(self, positive=("examples", "pairs", "dimensions"))


class Space(NamedTuple):
    """The codes of test examples under one state."""

    codes: np.ndarray  # [N, latent]; draws from N(0, I) for a model that cannot encode
    label: np.ndarray | None  # [N], None where there are none
    kl: list[Estimate]  # of each dimension, in nats; empty where the posterior is not known
    encoded: bool  # whether examples were encoded

    @property
    def order(self) -> np.ndarray:
        """Return the dimensions by falling KL, or variance where there is no KL, [latent]."""
        size = [each.value for each in self.kl] if self.kl else self.codes.var(axis=0)
        return np.argsort(-np.asarray(size), kind="stable")


def space_of(subject: Subject, state: Any, examples: int) -> Space:
    """Return the codes of test examples, or draws of codes for a model that cannot encode.

    Args:
      subject: the model.
      state: one of its states.
      examples: the number of codes, at most.

    Raises:
      UserError: the model has neither codes of examples nor codes that it draws and decodes.
    """
    model, able = subject.experiment.model, capabilities(subject.experiment.model)
    if "encode" not in able:
        size = facts(model).normal_codes
        if not size or "decode" not in able:
            raise UserError(
                f"{type(model).__name__} of {subject.name} has no codes: it lacks encode, and "
                "normal codes with decode: take another model"
            )
        drawn = np.random.default_rng(SEED).standard_normal((examples, size))
        return Space(drawn.astype(np.float32), None, [], False)
    test, _ = subject.experiment.decoded(subject.dataset, "test", SEED)
    test = {name: np.asarray(values)[:examples] for name, values in test.items()}
    label = test.get("label")
    if "posterior" not in able or not facts(model).normal_codes:
        return Space(encode_all(model, state, test, block=500), label, [], True)
    q = latent.posterior(model, state, test)
    return Space(q.mean, label, latent.kl_per_dimension(q), True)


def disentanglement(subject: Subject, state: Any) -> dict[str, Estimate]:
    """Return how well single dimensions know the known factors, on all splits of the data together.

    Args:
      subject: a model with codes.
      state: one of its states.

    Returns:
      The mutual information gap and the FactorVAE score, by the heading of their columns; nothing
      for data without known factors.
    """
    dataset, model = subject.dataset, subject.experiment.model
    if not dataset.factors or "encode" not in capabilities(model):
        return {}
    splits = [subject.experiment.decoded(dataset, split, SEED)[0] for split in dataset.splits]
    codes = np.concatenate([encode_all(model, state, split) for split in splits])
    factors = np.concatenate([np.asarray(split["factors"]) for split in splits])
    return {
        "MIG": latent.mig(codes, factors, SEED),
        "FactorVAE score": latent.factor_vae_score(codes, factors, SEED),
    }


def latent_subject(subject: Subject, chosen: Flags) -> Outcome:
    """Return the record, the row and the figure of a model. The figure is of the first seed.

    Args:
      subject: the model.
      chosen: the flags of the command.
    """
    model = subject.experiment.model
    spaces = {
        seed: space_of(subject, state, chosen.examples) for seed, state in subject.states.items()
    }
    first = next(iter(spaces.values()))
    by_seed = [disentanglement(subject, state) for state in subject.states.values()]
    row: dict[str, str | float | Estimate] = {
        "family": model.family,
        "codes": "normal" if facts(model).normal_codes else "not normal",
        "dimensions": first.codes.shape[1],
    }
    if "posterior" in capabilities(model):  # other codes have an arbitrary scale
        active = [latent.active_units(space.codes).sum() for space in spaces.values()]
        row["active units"] = float(np.mean(active))
    if first.kl:
        row["KL, nats"] = estimate.over_seeds([total_kl(space) for space in spaces.values()])
    row |= estimate.over_seeds_by_name(by_seed)
    record = {
        **of_training(subject),
        "examples": len(first.codes),
        "projection": chosen.projection,
        "units": [
            {
                "dimension": int(dimension),
                "variance": float(first.codes[:, dimension].var()),
                **({"kl": estimate.to_json(first.kl[dimension])} if first.kl else {}),
            }
            for dimension in first.order
        ],
    }
    state = next(iter(subject.states.values()))
    return Outcome(record, [row], figure(subject, state, first, chosen))


def total_kl(space: Space) -> Estimate:
    """Return the KL of all dimensions together, in nats per example."""
    per_example = np.sum([np.asarray(each.per_example) for each in space.kl], axis=0)
    return estimate.mean(per_example, "exact")


def figure(subject: Subject, state: Any, space: Space, chosen: Flags) -> Any:
    """Draw the map of the codes, the size of each dimension, interpolations and traversals.

    Images are drawn for a model of images that decodes codes without labels.

    Args:
      subject: the model.
      state: one of its states.
      space: its codes.
      chosen: the flags of the command.
    """
    from gen import plots

    model, dataset = subject.experiment.model, subject.dataset
    labels = space.label if space.label is not None else np.zeros(len(space.codes), int)
    points, projection = latent.plane(space.codes, chosen.projection)
    name = "KL(q(z|x) ‖ N(0, 1)) / nats" if space.kl else "variance of the code"
    sizes = np.array([each.value for each in space.kl]) if space.kl else space.codes.var(axis=0)
    order = space.order
    grids = {}
    if "decode" in capabilities(model) and len(model.shape) == 3:
        decode = jax.jit(model.decode)
        weights = np.linspace(0, 1, PATH_STEPS)
        pairs = min(chosen.pairs, len(space.codes) // 2)
        if pairs:
            ends = space.codes[: 2 * pairs]
            between = latent.interpolate(model, ends[:pairs], ends[pairs:], weights)
            way = "great circles" if facts(model).normal_codes else "straight lines"
            source = "test examples" if space.encoded else "draws"
            grids[f"between two {source}, {way}"] = (decode_rows(decode, state, between), None)
        moved = order[: chosen.dimensions]
        path = latent.traversal(model, space.codes, space.codes[0], moved, PATH_STEPS)
        span = "−3 to 3" if facts(model).normal_codes else "1st to 99th percentile"
        grids[f"one dimension at a time, {span}"] = (
            decode_rows(decode, state, path),
            [f"z{dimension}: {sizes[dimension]:.2f}" for dimension in moved],
        )
    title = f"{subject.name}: {len(points)} {'test examples' if space.encoded else 'draws'}"
    return plots.latent_space(
        points,
        labels if space.label is not None else None,
        f"{title}, {projection}",
        dataset.format.labels,
        sizes[order],
        name,
        grids,
    )


def decode_rows(decode: Any, state: Any, codes: np.ndarray) -> np.ndarray:
    """Return the images of codes [rows, columns, latent], [rows, columns, H, W, C].

    Args:
      decode: the model's compiled `decode`.
      state: the state.
      codes: the codes.
    """
    flat = codes.reshape(-1, codes.shape[-1]).astype(np.float32)
    images = np.asarray(decode(state, flat))
    return images.reshape(*codes.shape[:2], *images.shape[1:])


def command(arguments: list[str]) -> int:
    """Run `latent` with its flags, and return the exit code."""
    chosen = parse(Flags, arguments, COMMAND)
    require(bool(chosen.runs), "no run given: latent RUN, or the name of a published model")
    keep_programs(chosen.keep_programs)
    for subject in load_subjects(chosen.runs, chosen.data_dir, chosen.publish):
        outcome = latent_subject(subject, chosen)
        rows: list[Row] = [{"experiment": subject.name, **row} for row in outcome.rows]
        Console().print(as_table(f"codes of {subject.dataset.name}", rows))
        finish(subject, COMMAND, outcome, chosen.publish)
    return 0
