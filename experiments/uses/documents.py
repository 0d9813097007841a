"""Ask a trained model of documents which words and which group belong to a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
    check_use_publishable,
    finish,
    load_subject,
    of_training,
)
from gen import estimate
from gen.core import capabilities, require
from gen.data import Dataset
from gen.uses import documents
from gen.uses.documents import GroupLogProb, WordLogOdds

COLUMNS = {
    "pseudo_nll": "Σ −log p(word), nats",
    "missing_word": f"missing word in {documents.FIRST}",
    "group_error": "group error",
    "group_nll": "−log p(group), nats",
}
"""Names of the measures as columns of a table."""
EXAMPLE_WORDS = 8
"""Number of words, at least, of the test documents that the picture shows."""
SPEAKING = 8
"""Number of words that the picture shows for each group."""


@dataclass(frozen=True)
class Flags:
    """Ask a model of documents for p(word | the other words) and p(group | words), and write
    RUN/documents.json: how well both do on the test split, beside simple models.

    With --words it answers for the document of these words, in RUN/document.json.
    """

    run: tyro.conf.Positional[Path]
    """run folder, or the name of an experiment with published weights"""
    words: tuple[str, ...] = ()
    """words of a document (default: measure on the test split)"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    publish: bool = False
    """also write experiments/results/NAME/documents.json"""
    keep_programs: bool = True
    """keep compiled programs in the cache folder for later commands"""

    def __post_init__(self):
        require(
            not (self.publish and self.words),
            "--publish is for the measures on the test split: leave --words out",
        )


class Splits(NamedTuple):
    """Documents of the data of a model, and the number of variables for the group among x."""

    words: tuple[str, ...]  # [W]
    names: tuple[str, ...]  # of the groups, [G]; empty without labels
    groups: int  # variables of x for the group, after the words; 0: x are words alone
    train: Mapping[str, np.ndarray]  # x [N, W] and maybe label [N]
    test: Mapping[str, np.ndarray]


class Model(NamedTuple):
    """A model of one seed, as functions of documents."""

    words: WordLogOdds
    group: GroupLogProb | None  # None without labels, or without codes to predict them from


def splits_of(dataset: Dataset) -> Splits:
    """Return the words of documents, without the variables for the group that some data have.

    They are variables at the end of x, whose names are the names of the classes.

    Raises:
      UserError: the data are no documents, binary vectors of named words.
    """
    names, words = dataset.format.labels, dataset.format.words
    require(
        dataset.format.levels == 2 and len(dataset.shape) == 1 and len(words) == dataset.shape[0],
        f"{dataset.name} has no documents, which are binary vectors of named words: take data "
        "such as news",
    )
    groups = len(names) if names and words[-len(names) :] == names else 0
    w = len(words) - groups
    train, test = ({**rows, "x": rows["x"][:, :w]} for rows in (dataset.train, dataset.test))
    return Splits(words[:w], names, groups, train, test)


def model_of(subject: Subject, seed: int, splits: Splits) -> Model:
    """Return the functions of one seed of a model.

    p(group | words) is exact where the group is among the variables of x. Elsewhere it is logistic
    regression on the model's codes.

    Args:
      subject: the model.
      seed: one of its seeds.
      splits: the documents.
    """
    model, state = subject.experiment.model, subject.states[seed]
    group = None
    if splits.groups:
        group = partial(documents.group_log_prob, model, state, groups=splits.groups)
    elif "label" in splits.train and "encode" in capabilities(model):
        train = splits.train
        group = documents.group_by_codes(model, state, train["x"], train["label"])
    words = partial(documents.word_log_odds, model, state, groups=splits.groups)
    return Model(words, group)


def measure(subject: Subject, splits: Splits) -> Outcome:
    """Return the measures of a model on the test split, means over its seeds, and the picture."""
    x, label = splits.test["x"], splits.test.get("label")
    models = {seed: model_of(subject, seed, splits) for seed in subject.states}

    def measures(words: WordLogOdds | None, group: GroupLogProb | None):
        of_words = documents.word_measures(words, x) if words else {}
        if group is None or label is None:
            return of_words
        return of_words | documents.group_measures(group, x, label)

    by_seed = [measures(*model) for model in models.values()]
    own = estimate.over_seeds_by_name(by_seed)
    others = {
        name: (words, None) for name, words in documents.words_by_words(splits.train["x"]).items()
    }
    if label is not None:
        by_words = documents.group_by_words(splits.train["x"], splits.train["label"])
        others |= {name: (others.get(name, (None,))[0], group) for name, group in by_words.items()}
    compared = {name: measures(*functions) for name, functions in others.items()}
    source = "joint" if splits.groups else "codes" if "group_error" in own else "none"
    record = {
        **of_training(subject),
        "test_examples": len(x),
        "group_from": source,
        "estimates": to_json(own),
        "per_seed": [
            {"seed": seed, **{name: {"value": each.value} for name, each in estimates.items()}}
            for seed, estimates in zip(models, by_seed, strict=True)
        ],
        "compared": {name: to_json(estimates) for name, estimates in compared.items()},
    }
    rows = [row_of("the model", own), *(row_of(name, each) for name, each in compared.items())]
    first = next(iter(models.values()))
    return Outcome(record, rows, picture(first, splits, examples(splits)))


def answer(subject: Subject, splits: Splits, words: tuple[str, ...]) -> Outcome:
    """Return what the first seed of a model says about the document of some words.

    Args:
      subject: the model.
      splits: the documents of its data.
      words: the words.
    """
    x = documents.document_of(words, splits.words)
    seed = next(iter(subject.states))
    model = model_of(subject, seed, splits)
    likely = documents.likely_words(model.words, x)
    record: dict[str, Any] = {
        **of_training(subject),
        "seed": seed,
        "words": list(words),
        "likely_words": {splits.words[d]: round(p, 4) for d, p in likely},
    }
    rows: list[Row] = [{"word": splits.words[d], "p(word | the document)": p} for d, p in likely]
    if model.group:
        p = np.exp(model.group(x[None])[0])
        record["groups"] = dict(zip(splits.names, p.round(4).tolist(), strict=True))
        evidence = documents.evidence(model.group, x[None])[0]
        record["evidence"] = {
            word: dict(zip(splits.names, evidence[d].round(4).tolist(), strict=True))
            for d, word in enumerate(splits.words)
            if word in words
        }
    return Outcome(record, rows, picture(model, splits, {"the document": x}))


def examples(splits: Splits) -> dict[str, np.ndarray]:
    """Return test documents with at least `EXAMPLE_WORDS` words, the first one of each group."""
    x, label = splits.test["x"], splits.test.get("label")
    long = x.sum(axis=1) >= EXAMPLE_WORDS
    if label is None:
        return {f"test document {row}": x[row] for row in np.flatnonzero(long)[:4]}
    first = {name: np.flatnonzero(long & (label == g)) for g, name in enumerate(splits.names)}
    return {f"a document of {name}": x[rows[0]] for name, rows in first.items() if len(rows)}


def picture(model: Model, splits: Splits, shown: Mapping[str, np.ndarray]) -> Any:
    """Draw each document with the words that speak for its group, and the words that it may lack.

    Below stand the words that speak for each group over the test split, if there is more than one
    document.

    Args:
      model: the model.
      splits: the documents of the data.
      shown: documents [W] by title.
    """
    from matplotlib.figure import Figure

    several = model.group is not None and len(shown) > 1
    columns = max(len(shown), len(splits.names) if several else 1)
    rows = 3 if several else 2
    figure = Figure(figsize=(max(4.2, 3.1 * columns), 2.9 * rows), layout="constrained")
    axes = np.atleast_2d(figure.subplots(rows, columns, squeeze=False))
    for column, (title, x) in enumerate(shown.items()):
        likely = documents.likely_words(model.words, x)
        bars(axes[1, column], [splits.words[d] for d, _ in likely], [p for _, p in likely])
        axes[1, column].set(xlabel="p(word | the document)", title="words not in the document")
        if not model.group:
            axes[0, column].axis("off")
            axes[0, column].set_title(f"{title}:\n{' '.join(words_of(x, splits.words))}")
            continue
        p = np.exp(model.group(x[None])[0])
        best = int(p.argmax())
        values = documents.evidence(model.group, x[None])[0][:, best]
        order = [d for d in np.argsort(-values, kind="stable") if x[d]]
        bars(axes[0, column], [splits.words[d] for d in order], values[order])
        posterior = ", ".join(f"{name} {p[g]:.2f}" for g, name in enumerate(splits.names[:6]))
        axes[0, column].set(
            xlabel=f"evidence for {splits.names[best]}, nats", title=f"{title}\n{posterior}"
        )
        axes[0, column].title.set_fontsize(8)
    if several and model.group:
        mean = documents.mean_evidence(model.group, splits.test["x"])
        for g, name in enumerate(splits.names):
            order = np.argsort(-np.nan_to_num(mean[:, g], nan=-np.inf))[:SPEAKING]
            bars(axes[2, g], [splits.words[d] for d in order], mean[order, g])
            axes[2, g].set(xlabel="mean evidence, nats", title=f"words that speak for {name}")
    for unused in axes[:, len(shown) :][:2].flat:
        unused.axis("off")
    return figure


def bars(axes: Any, names: Sequence[str], values: Sequence[float] | np.ndarray) -> None:
    """Draw horizontal bars with their names, the first one on top; negative ones in red.

    Args:
      axes: the axes to draw into.
      names: names of the bars.
      values: their lengths.
    """
    values = np.asarray(values)
    axes.barh(range(len(names)), values, color=np.where(values < 0, "tab:red", "tab:blue"))
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.6)
    axes.title.set_fontsize(9)


def words_of(x: np.ndarray, words: Sequence[str]) -> list[str]:
    """Return the words of a document."""
    return [word for word, present in zip(words, x, strict=True) if present]


def row_of(name: str, estimates: Mapping[str, estimate.Estimate]) -> Row:
    """Return the line of a table for the measures of one model."""
    return {"by": name, **{COLUMNS[key]: value for key, value in estimates.items()}}


def to_json(estimates: Mapping[str, estimate.Estimate]) -> dict[str, Any]:
    """Return estimates by name as JSON."""
    return {name: estimate.to_json(value) for name, value in estimates.items()}


def command(arguments: list[str]) -> int:
    """Run `documents` with its flags, and return the exit code."""
    chosen = parse(Flags, arguments, "documents")
    keep_programs(chosen.keep_programs)
    subject = load_subject(chosen.run, chosen.data_dir)
    model = subject.experiment.model
    splits = splits_of(subject.dataset)
    require(
        documents.has_conditionals(model),
        f"{type(model).__name__} of {subject.name} has no exact log p(x), not even up to a "
        "constant: take a model with log_prob or free_energy",
    )
    if chosen.publish:
        check_use_publishable(subject)
    if chosen.words:
        outcome = answer(subject, splits, chosen.words)
        for word, groups in outcome.record.get("evidence", {}).items():
            print(f"{word}:", ", ".join(f"{name} {value:+.2f}" for name, value in groups.items()))
        if "groups" in outcome.record:
            groups = outcome.record["groups"]
            print("p(group):", ", ".join(f"{name} {p:.3f}" for name, p in groups.items()))
    else:
        outcome = measure(subject, splits)
    Console().print(as_table(f"{subject.name}, {subject.dataset.name}", outcome.rows))
    finish(subject, "document" if chosen.words else "documents", outcome, chosen.publish)
    return 0
