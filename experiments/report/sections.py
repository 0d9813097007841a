"""Make the sections of a report. Each one takes the models that have its capability.

A function of a section returns the pieces of one run, or raises `UserError` with the reason why
there are none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import pictures
from experiments.fitting import column_summary, properties
from experiments.folder import RESULTS, read_metrics
from experiments.listing import DENSITIES, HEADLINES
from experiments.report.page import (
    Card,
    Page,
    Pair,
    Paragraph,
    Passages,
    Picture,
    Piece,
    Section,
    Table,
    Terms,
)
from experiments.report.runs import FAILURES, RANKED, Entry, ranks
from experiments.run import duration
from experiments.table import estimate_unit, marked, row_cells
from experiments.uses import anomaly as anomalies
from experiments.uses import complete, latent
from gen import config, plots, train
from gen.core import METRIC_UNITS, UserError, capabilities, facts, require
from gen.data import Dataset
from gen.data.download import first_line
from gen.estimate import MARKS
from gen.uses import anomaly, completion, judge

IMAGES = 30
"""Images in a picture of samples, in rows of `pictures.ROW`."""
ROWS = 4
"""Rows of a table, and texts, that are shown."""
SEQUENCES = 2
"""Sequences that are drawn."""
LONGEST = 200
"""Steps of a sequence that are shown, at most."""
SAMPLES = 200
"""Samples whose distances to the training rows are taken."""
CODES = 1_000
"""Test examples whose codes are drawn, at most."""
COMPLETED, DRAWS = 32, 19
"""Test examples that are completed, and completions of each."""
STRANGEST = 9
"""Strangest test examples that are shown."""
SCORED = 1_000
"""Test examples that are scored, at most."""
FALSE_ALARMS = 0.05
"""False-alarm rate of the threshold in the picture of the scores."""
COLUMNS = 12
"""Columns of a row that are shown, at most."""
CORPUS = 2_000_000
"""Letters of the training text that are searched, at most."""


class Gathering(NamedTuple):
    """The runs of a report, and the moment after which no section is computed any more."""

    entries: Sequence[Entry]
    deadline: float = math.inf  # of time.monotonic()

    def section(
        self,
        title: str,
        intro: str,
        make: Callable[[Entry], list[Piece]],
        *,
        always: bool = False,
        wide: bool = False,
    ) -> list[Section]:
        """Return the section of all runs in a list, or an empty list if no run has pieces.

        Args:
          title: the title.
          intro: the text below it.
          make: makes the pieces of a run, or raises `UserError` with the reason for having none.
          always: whether a reader expects the section for every model. The reasons of runs without
            pieces are given then, and where another run has the section.
          wide: whether each run takes the whole width.
        """
        cards, absent = [], []
        for entry in self.entries:
            try:
                if time.monotonic() > self.deadline:
                    raise UserError("left out, since the time was over")
                print(f"{entry.label}: {title.lower()}", flush=True)
                cards.append(Card(entry.label, entry.family, make(entry)))
            except FAILURES as error:
                absent.append(f"{entry.label}: {first_line(error)}")
        if not cards and not always:
            return []
        return [Section(title, intro if cards else "", cards, absent, wide)]


def page_of(
    entries: Sequence[Entry],
    footer: str,
    deadline: float = math.inf,
    left_out: Sequence[str] = (),
) -> Page:
    """Return the page of a report.

    Args:
      entries: the runs, the runs of one family side by side.
      footer: the text at the end.
      deadline: the value of `time.monotonic()` after which sections are left out.
      left_out: a line for each model that was left out of the report.
    """
    gathered = Gathering(entries, deadline)
    sections = [
        overview(entries),
        data_section(entries),
        models_section(entries),
        estimates_section(entries),
        *gathered.section(
            "Training",
            "The metrics against the training step. The dot is the step that validation chose.",
            curves,
            always=True,
        ),
        *gathered.section(
            "Samples",
            "Samples beside the nearest rows of the training split: a sample that equals its "
            "neighbour is a copy.",
            samples,
            always=True,
            wide=any(len(entry.subject.dataset.shape) == 1 for entry in entries),
        ),
        *gathered.section(
            "Reconstructions",
            "Test examples as the model reconstructs them from its codes or hidden units.",
            reconstructions,
        ),
        *gathered.section("Codes", "The codes of test examples.", codes, wide=True),
        *completions_section(gathered),
        *gathered.section(
            "Strangest test examples",
            "A p-value compares the score of a test example with the scores of other test "
            "examples, which are held out for it: one half of the split is scored, and the other "
            "half is held out.",
            strangest,
            always=True,
            wide=True,
        ),
        cost_section(entries),
    ]
    if left_out:
        sections.append(Section("Left out", "", [], left_out))
    names = list(dict.fromkeys(entry.subject.dataset.name for entry in entries))
    families = list(dict.fromkeys(entry.family for entry in entries))
    title = f"{entries[0].label} on {names[0]}"
    if len(entries) > 1:
        title = f"{len(entries)} models trained on {_listed(names)}"
    lead = f"{_listed(families)}. Estimates are means over the test split, and ± is the standard "
    lead += "error over its examples."
    alarms = [(entry.label, text) for entry in entries for text in entry.warnings]
    return Page(title, lead[0].upper() + lead[1:], alarms, sections, footer)


def _listed(names: Sequence[str]) -> str:
    """Return names as `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


# Numbers


def headline(entry: Entry) -> str:
    """Return the name of the main estimate of a run, or an empty text."""
    return next((name for name in HEADLINES if name in entry.estimates), "")


def unit_of(entry: Entry, measure: str) -> str:
    """Return the unit of an estimate of a run, per step for sequences."""
    per = entry.estimates[measure].settings.get("per")
    unit = estimate_unit(entry.subject.experiment.model, measure)
    return f"{unit} per {per}" if per else unit


def overview(entries: Sequence[Entry]) -> Section:
    """Return the section with the table that compares all runs."""
    rows = []
    several = len({entry.subject.dataset.sha256 for entry in entries}) > 1
    order = {name: ranks(entries, name) for name in RANKED}
    for entry in entries:
        name = headline(entry)
        rank = order.get(name, {}).get(entry.label)
        value = entry.estimates.get(name)
        row = {
            "model": entry.label,
            "main estimate": f"{name} {marked(value)} {unit_of(entry, name)}" if value else "–",
            "kind": value.kind if value else "–",
        }
        if any(order.values()):
            row["rank"] = f"{rank[0]} of {rank[1]}" if rank else "–"
        row["family"] = entry.family
        if several:
            row["data"] = entry.subject.dataset.name
        row |= {
            "parameters": f"{entry.cost.parameters:,}",
            "steps": f"{entry.cost.steps:,}",
            "training": _time(entry.cost.seconds),
        }
        rows.append(row)
    intro = ""
    if len(entries) > 1:
        intro = (
            "Only estimates of the same name and the same kind, on the same data, are ranked, and "
            "1 is the lowest: an exact value and a bound have no order. "
        )
        intro += (
            "A rank says nothing about the errors; python -m experiments compare takes paired "
            "differences of runs."
            if any(order.values())
            else "Here no two estimates can be ranked."
        )
    return Section("Overview", intro, [Card("", "", [Table(rows)])], wide=True)


def _time(seconds: float) -> str:
    """Return a training time as text, or a dash."""
    return "–" if math.isnan(seconds) else duration(seconds)


def estimates_section(entries: Sequence[Entry]) -> Section:
    """Return the section with all estimates, a row for each and a column for each run."""
    rows, best = [], set()
    for name in dict.fromkeys(name for entry in entries for name in entry.estimates):
        having = [entry for entry in entries if name in entry.estimates]
        for unit in dict.fromkeys(unit_of(entry, name) for entry in having):
            row = {"estimate": name, "unit": unit}
            for entry in entries:
                value = entry.estimates.get(name)
                known = value is not None and unit_of(entry, name) == unit
                row[entry.label] = f"{marked(value)} (n = {value.n:,})" if known and value else "–"
            best |= {
                (len(rows), label)
                for label, (rank, _) in ranks(entries, name).items()
                if rank == 1 and row[label] != "–"
            }
            rows.append(row)
    kinds = {value.kind for entry in entries for value in entry.estimates.values()}
    marks = [f"{MARKS[kind]} {kind}" for kind in MARKS if kind in kinds and MARKS[kind]]
    intro = f"Values without a sign are exact. {'; '.join(marks)}." if marks else ""
    if best:
        intro += " The lowest value of each group that can be ordered is bold."
    pieces: list[Piece] = [Table(rows, "", frozenset(best))] if rows else []
    doubts = [
        Paragraph(f"{entry.label}, {name}: {value.settings['doubts']}", "warning")
        for entry in entries
        for name, value in entry.estimates.items()
        if value.settings.get("doubts")
    ]
    absent = [f"{entry.label}: {entry.without}" for entry in entries if entry.without]
    cards = [Card("", "", [*pieces, *doubts])] if pieces else []
    return Section("Estimates", intro.strip(), cards, absent, wide=True)


def cost_section(entries: Sequence[Entry]) -> Section:
    """Return the section with the cost of each run, and the command that repeats it."""
    cards = []
    for entry in entries:
        cost, experiment = entry.cost, entry.subject.experiment
        terms = {
            "steps": f"{cost.steps:,} of {experiment.batch_size:,} examples",
            "training": _time(cost.seconds),
            "parameters": f"{cost.parameters:,}",
            "device": cost.device,
        }
        cards.append(
            Card(entry.label, entry.family, [Terms(terms), Paragraph(cost.command, "command")])
        )
    return Section("Cost and commands", "The command repeats the training.", cards)


# Data and models


def data_section(entries: Sequence[Entry]) -> Section:
    """Return the section with a card for each data set."""
    cards, seen = [], {}
    for entry in entries:
        seen.setdefault(entry.subject.dataset.sha256, []).append(entry)
    for of_data in seen.values():
        dataset = of_data[0].subject.dataset
        rules = {each.label: each.subject.experiment.binarize for each in of_data}
        terms = properties(dataset)
        binarised = []
        for rule in sorted({*rules.values()} - {"none"}):
            names = [label for label, each in rules.items() if each == rule]
            binarised.append(rule + f" for {', '.join(names)}" * (len(names) < len(rules)))
        if binarised:
            terms["binarised"] = "; ".join(binarised)
        x = dataset.format.decode(
            {"x": jax.numpy.asarray(dataset.train["x"][:IMAGES])}, jax.random.key(0)
        )["x"]
        examples: list[Piece] = []
        if len(dataset.shape) == 1 and dataset.format.words:
            examples.append(Table(column_summary(dataset)))
        else:
            length = dataset.train.get("length")
            rows = {"training row": np.asarray(x)}
            alt = f"Rows of the training split of {dataset.name}"
            examples += beside(dataset, rows, alt, length)
        pieces: list[Piece] = [Terms(terms), *examples]
        if len(examples) == 1 and isinstance(examples[0], Picture | Table):
            pieces = [Pair(Terms(terms), examples[0])]
        cards.append(Card(dataset.name, "", pieces))
    return Section("Data", "", cards, wide=True)


def models_section(entries: Sequence[Entry]) -> Section:
    """Return the section with the fields of each model that differ from their defaults."""
    cards = []
    for entry in entries:
        experiment = entry.subject.experiment
        terms = {
            "model": type(experiment.model).__name__,
            "p(x)": DENSITIES[experiment.model.density],
            **changed_fields(experiment.model),
        }
        if experiment.binarize != "none":
            terms["binarize"] = experiment.binarize
        if len(experiment.all_seeds) > 1:
            terms["seeds"] = ", ".join(map(str, experiment.all_seeds))
        cards.append(Card(entry.label, entry.family, [Terms(terms)]))
    return Section("Models", "Fields that differ from the defaults of the model.", cards)


def changed_fields(model: Any) -> dict[str, str]:
    """Return the fields of a model that differ from their defaults, as texts.

    The shape, which the data determine, is left out.
    """
    values = config.to_json(model)
    defaults = {}
    for field in fields(model):
        default = field.default
        if default is MISSING and field.default_factory is not MISSING:
            default = field.default_factory()
        if default is not MISSING:
            defaults[field.name] = config.to_json(default)
    return {
        name: text
        for name, text in _differences(values, defaults).items()
        if name.rpartition(".")[2] not in ("shape", "class")
    }


def _differences(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, str]:
    """Return the values that differ from the defaults, as texts, by the paths of their fields."""
    changed = {}
    for name, value in values.items():
        default = defaults.get(name)
        if (
            isinstance(value, dict)
            and isinstance(default, dict)
            and value.get("class") == default.get("class")
        ):
            parts = _differences(value, default)
            changed |= {f"{name}.{part}": text for part, text in parts.items()}
        elif name not in defaults or value != default:
            changed[name] = _as_text(value)
    return changed


def _as_text(value: Any) -> str:
    """Return a value of a configuration as text: a part as `MLP(hidden = 256, 128)`."""
    if isinstance(value, dict):
        inside = ", ".join(
            f"{name} = {_as_text(each)}" for name, each in value.items() if name != "class"
        )
        return f"{value.get('class', '')}({inside})"
    if isinstance(value, list):
        return f"({', '.join(map(_as_text, value))})" if value else "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


# Examples side by side


def beside(
    dataset: Dataset, groups: Mapping[str, np.ndarray], alt: str, length: Any = None
) -> list[Piece]:
    """Return the examples of several groups side by side, in the form that suits the data.

    Args:
      dataset: the data set.
      groups: decoded examples [N, *shape] by the name of the group; the i-th ones belong together.
      alt: a description of the picture.
      length: the numbers of steps of sequences, [N] or more; None for all of them.
    """
    format, shape = dataset.format, dataset.shape
    count = min(len(x) for x in groups.values())
    if len(shape) == 3:
        columns = min(pictures.ROW, count)
        count = min(IMAGES, count // columns * columns)
        stacked = np.stack([x[:count].reshape(-1, columns, *shape) for x in groups.values()], 1)
        labels = list(groups) * len(stacked) if len(groups) > 1 else []
        return [Picture(plots.grid(stacked.reshape(-1, *shape), columns, labels), alt)]
    if "length" in dataset.train or len(shape) == 2:
        few = range(min(SEQUENCES, count))
        steps = [min(LONGEST, shape[0] if length is None else int(length[i])) for i in few]
        parts = [
            (f"{name} {i + 1}" if count > 1 else name, pictures.panel(x[i], steps[i]))
            for i in few
            for name, x in groups.items()
        ]
        if format.symbols:
            texts = [(label, [(pictures.spell(x, format.symbols), False)]) for label, x in parts]
            return [Passages(texts)]
        return [Picture(plots.stacked(dict(parts)), alt)]
    rows = []
    for i in range(min(ROWS, count)):
        for name, x in groups.items():
            cells = row_of(dataset, x[i])
            rows.append({"row": f"{name} {i + 1}", **cells})
    return [Table(rows)]


def row_of(dataset: Dataset, x: np.ndarray) -> dict[str, str]:
    """Return the first columns of a row in the units of the data, as texts.

    The variables of a column of texts are one cell. A document is one cell with its words.

    Args:
      dataset: the data set.
      x: the decoded row, [D].
    """
    format = dataset.format
    values = np.asarray(format.restore(x[None]))[0].reshape(-1)
    words = format.words or tuple(str(d + 1) for d in range(len(values)))
    columns = pictures.columns_of(words)
    binary = format.levels == 2 and all(len(places) == 1 for places in columns.values())
    if binary and format.words and len(values) > COLUMNS:
        return {"variables that are 1": ", ".join(words[d] for d in np.flatnonzero(values > 0.5))}
    cells = {}
    for title, places in list(columns.items())[:COLUMNS]:
        if len(places) > 1:
            cells[title] = words[places[int(values[places].argmax())]].partition("=")[2]
        else:
            cells[title] = f"{values[places[0]]:.4g}"
    if len(columns) > COLUMNS:
        cells["…"] = f"{len(columns) - COLUMNS} more"
    return cells


def rows_of(entry: Entry, split: str = "test") -> dict[str, np.ndarray]:
    """Return a split as the model takes it, as NumPy arrays by name."""
    subject = entry.subject
    batch, _ = subject.experiment.decoded(subject.dataset, split, entry.seed)
    return {name: np.asarray(values) for name, values in batch.items()}


# Sections of one run


def curves(entry: Entry) -> list[Piece]:
    """Return the curves of a run, or the picture that was published with its weights."""
    subject, run = entry.subject, entry.subject.run
    alt = f"Curves of the training metrics of {entry.label}"
    if run is None:
        path = RESULTS / subject.name / "curves.png"
        require(path.exists(), "the curves of these published weights are not stored")
        return [Picture(path.read_bytes(), alt)]
    lines = read_metrics(run.folder)
    require(bool(lines), "the run has reported no metrics yet")
    units = facts(subject.experiment.model).metric_units
    chosen = np.atleast_1d(run.chosen_step).tolist() if subject.experiment.validate_every else ()
    return [Picture(pictures.metric_figure(lines, units, chosen, columns=2), alt)]


def samples(entry: Entry) -> list[Piece]:
    """Return samples beside their nearest training rows, and how near they are."""
    subject, model = entry.subject, entry.subject.experiment.model
    if "sample" not in capabilities(model):
        reason = "does not model p(x)" if model.density == "none" else "has no sampler"
        raise UserError(f"no samples, since {type(model).__name__} {reason}")
    key = train.streams(entry.seed).sample
    if "length" in subject.dataset.train:
        return sequence_samples(entry, pictures.draw_samples(model, entry.state, key, ROWS))
    drawn = pictures.draw_samples(model, entry.state, key, SAMPLES)
    training, test = (rows_of(entry, split)["x"] for split in ("train", "test"))
    flat = [x.reshape(len(x), -1) for x in (drawn, test, training)]
    places, _ = judge.nearest(flat[0], flat[2])
    groups = {"sample": drawn, "nearest": training[places]}
    dataset, pieces = subject.dataset, []
    alt = f"Samples of {entry.label}, each beside its nearest training row"
    if len(model.shape) == 1:
        restored = {"training rows": training, "samples": drawn}
        restored = {name: np.asarray(dataset.format.restore(x)) for name, x in restored.items()}
        if model.shape == (2,):
            pieces.append(Picture(plots.clouds(restored, 2), f"Training rows and {alt.lower()}"))
        else:
            figure = pictures.column_histograms(restored, dataset.format.words)
            described = f"Histograms of the columns of samples of {entry.label} and training rows"
            pieces.append(Picture(figure, described))
    pieces += beside(dataset, groups, alt)
    if subject.binary:  # a model can return means, and binary rows have other distances
        random = np.random.default_rng(entry.seed)
        flat[0] = (random.random(flat[0].shape) < flat[0]).astype(np.float32)
    found = judge.memorisation(*flat)
    own, copies = found["neighbour_distance"], found["copies"]
    of_test = judge.nearest_distances(flat[1], flat[2])
    near = 1 - judge.NEAREST
    text = (
        f"Mean distance to the nearest training row: {own.value:.3g} for {SAMPLES} samples and "
        f"{of_test.mean():.3g} for the test examples. {copies.value:.1%} of the samples are nearer "
        f"to a training row than {near:.0%} of the test examples are."
    )
    return [*pieces, Paragraph(text)]


def sequence_samples(entry: Entry, drawn: np.ndarray) -> list[Piece]:
    """Return sampled sequences, each beside the training row that is nearest to it.

    Of texts the nearest row is the one that has the longest piece of the sample.

    Args:
      entry: the run.
      drawn: samples, [N, T, ...].
    """
    dataset = entry.subject.dataset
    training = rows_of(entry, "train")
    lengths = training["length"]
    steps = int(min(LONGEST, np.median(lengths)))
    if not dataset.format.symbols:
        long = np.flatnonzero(lengths >= steps)
        rows, own = (x[:, :steps].reshape(len(x), -1) for x in (training["x"][long], drawn))
        places, _ = judge.nearest(np.nan_to_num(own), np.nan_to_num(rows))
        groups = {"sample": drawn, "nearest training row": training["x"][long[places]]}
        alt = f"Sequences sampled from {entry.label}, each above its nearest training row"
        return beside(dataset, groups, alt, np.full(len(drawn), steps))

    def spelled(x, length):
        return pictures.spell(pictures.panel(x, length), dataset.format.symbols)

    corpus, size = [], 0
    for x, length in zip(training["x"], lengths, strict=True):
        corpus.append(spelled(x, int(length)))
        size += len(corpus[-1])
        if size > CORPUS:
            break
    text, test = "\n".join(corpus), rows_of(entry)
    excerpts = [
        spelled(x, min(steps, int(length)))
        for x, length in zip(test["x"][:ROWS], test["length"], strict=False)
    ]
    own = [spelled(x, steps) for x in drawn]
    rows = []
    for i, sample in enumerate(own):
        start, length = longest_piece(sample, text)
        piece = sample[start : start + length]
        place = text.find(piece)
        before, after = text[max(0, place - 60) : place], text[place + length :][:60]
        parts = [(sample[:start], False), (piece, True), (sample[start + length :], False)]
        rows.append((f"sample {i + 1}", parts))
        rows.append(
            ("training text", [(f"… {before}", False), (piece, True), (f"{after} …", False)])
        )
    shared = [longest_piece(each, text)[1] for each in own]
    of_test = [longest_piece(each, text)[1] for each in excerpts]
    caption = (
        "The longest piece of a sample that also stands in the training text is marked. It has "
        f"{np.mean(shared):.0f} letters on average, and in {len(of_test)} excerpts of the test "
        f"text {np.mean(of_test):.0f}."
    )
    return [Passages(rows, caption)]


def longest_piece(text: str, corpus: str) -> tuple[int, int]:
    """Return the start and the length of the longest piece of a text that a corpus contains."""
    start = length = 0
    for i in range(len(text)):
        while i + length < len(text) and text[i : i + length + 1] in corpus:
            start, length = i, length + 1
    return start, length


def reconstructions(entry: Entry) -> list[Piece]:
    """Return test examples beside their reconstructions."""
    subject, model = entry.subject, entry.subject.experiment.model
    if "reconstruct" not in capabilities(model):
        raise UserError(
            f"no reconstructions, since {type(model).__name__} reconstructs no examples"
        )
    test = rows_of(entry)
    rows = np.resize(np.arange(len(test["x"])), IMAGES)
    batch = {name: jax.numpy.asarray(values[rows]) for name, values in test.items()}
    alt = f"Test examples and their reconstructions by {entry.label}"
    if len(model.shape) == 3:
        dataset = subject.dataset
        originals = (
            dataset.format.decode(
                {"x": jax.numpy.asarray(dataset.test["x"][rows])}, jax.random.key(0)
            )["x"]
            if dataset.format.stack == 1
            else batch["x"]
        )
        figure = pictures.reconstruction_figure(model, entry.state, batch, originals)
        return [Picture(figure, alt)]
    back = np.asarray(jax.jit(model.reconstruct)(entry.state, batch))
    groups = {"test": np.asarray(batch["x"]), "reconstruction": back}
    groups = {name: x[: len(test["x"])] for name, x in groups.items()}
    return beside(subject.dataset, groups, alt, test.get("length"))


def codes(entry: Entry) -> list[Piece]:
    """Return the map of the codes, or the states of a sequence."""
    subject, model = entry.subject, entry.subject.experiment.model
    able, known, name = capabilities(model), facts(model), type(model).__name__
    if known.sequences:
        require("encode" in able, f"no codes, since {name} has no method encode")
        symbols = subject.dataset.format.symbols
        test: Any = rows_of(entry)
        figure = pictures.posterior_figure(model, entry.state, test, symbols, LONGEST)
        alt = f"A test sequence and the posterior of its hidden states under {entry.label}"
        return [Picture(figure, alt)]
    if "encode" not in able and not (known.normal_codes and "decode" in able):
        raise UserError(f"no codes, since {name} has no method encode")
    require(
        "encode" not in able or known.codes == "features",
        f"no map of codes, since the codes of {name} are the noise of its sampler",
    )
    flags = latent.Flags(runs=(Path(entry.label),), examples=CODES)
    outcome = latent.latent_subject(subject._replace(name=entry.label), flags)
    alt = f"Map of the codes of {entry.label}, the sizes of their dimensions and decoded paths"
    (row,) = row_cells(outcome.rows)
    return [Pair(Picture(outcome.figure, alt), Terms(row))]


def completions_section(gathered: Gathering) -> list[Section]:
    """Return the section of completions in a list: a card for the models of each data set."""
    cards, absent, groups = [], [], []
    for entry in gathered.entries:
        model, dataset = entry.subject.experiment.model, entry.subject.dataset
        masks = occlusions_of(dataset).values()
        if any(completion.is_completed(model, mask) for mask in masks):
            same = (group for group in groups if group[0].subject.dataset.sha256 == dataset.sha256)
            group = next(same, None)
            if group is None:
                groups.append([entry])
            else:
                group.append(entry)
        else:
            name = type(model).__name__
            reason = "has no method complete"
            if "complete" in capabilities(model):
                reason = "completes variables in an order of its own"
            absent.append(f"{entry.label}: no completions, since {name} {reason}")
    for group in groups:
        label = _listed([entry.label for entry in group])
        try:
            if time.monotonic() > gathered.deadline:
                raise UserError("left out, since the time was over")
            print(f"{label}: completions", flush=True)
            cards.append(Card(label, "", completions(group)))
        except FAILURES as error:
            absent.append(f"{label}: {first_line(error)}")
    if not groups:
        return []
    of_picture = ""
    if any(len(group[0].subject.dataset.shape) == 3 for group in groups):
        of_picture = (
            "The last row has the nearest training example, and a row is empty where a model does "
            "not draw from p(hidden | shown). "
        )
    intro = (
        f"The hidden part of test examples, filled in by draws from the model. {of_picture}"
        "The squared error is of the mean of the draws. The coverage is the share of examples "
        "whose truth lies in the central 90 % of the draws."
    )
    return [Section("Completions", intro if cards else "", cards, absent, wide=True)]


def occlusions_of(dataset: Dataset) -> dict[completion.Occlusion, np.ndarray]:
    """Return the masks by name that hide a part of an example, and not all of a short row."""
    masks: dict[completion.Occlusion, np.ndarray] = {
        name: completion.occlusion_mask(name, dataset.shape, complete.SEED)
        for name in completion.OCCLUSIONS
    }
    return {name: mask for name, mask in masks.items() if 0 < mask.sum() < mask.size}


def completions(group: Sequence[Entry]) -> list[Piece]:
    """Return the completions by models of one data set."""
    names = tuple(occlusions_of(group[0].subject.dataset))
    subjects = [entry.subject._replace(name=entry.label) for entry in group]
    results = complete.complete_all(subjects, names, COMPLETED, DRAWS)
    rows = [{"model": each.subject.name, **row} for each in results for row in each.outcome.rows]
    pieces: list[Piece] = []
    if results[0].outcome.figure is not None:
        alt = "Occluded test examples, filled in by each model and from the nearest training row"
        pieces.append(Picture(results[0].outcome.figure, alt))
    return [*pieces, Table(row_cells(rows))]


def strangest(entry: Entry) -> list[Piece]:
    """Return the test examples with the highest scores."""
    subject, model = entry.subject, entry.subject.experiment.model
    batch, levels = rows_of(entry), subject.experiment.levels(subject.dataset)
    kinds = anomaly.kinds(model, entry.state, batch, levels)
    require(bool(kinds), f"no scores, since {type(model).__name__} scores no single examples")
    held_out = -(-min(len(batch["x"]), 2 * SCORED) // 2)
    require(len(batch["x"]) > 3, f"no scores: the test split has {len(batch['x'])} examples alone")
    flags = anomalies.Flags(
        run=Path(entry.label),
        score=kinds[0],
        false_alarm_rate=max(FALSE_ALARMS, math.ceil(100 / (held_out + 1)) / 100),
        examples=SCORED if len(batch["x"]) > 2 * SCORED else 0,
        shown=STRANGEST,
    )
    outcome = anomalies.find_anomalies(subject, flags)
    strange = outcome.record["examples"]
    rows = row_cells(anomalies.strangest_rows(outcome.record, STRANGEST))
    unit = METRIC_UNITS["score"]
    unit = facts(model).metric_units.get("score", unit) if kinds[0] == "default" else ""
    meaning = f"The score, {unit}" if unit else f"The score, {anomaly.KINDS[kinds[0]]}"
    alt = f"Histograms of the scores of {entry.label} for scored and held-out test examples"
    scores = Table(rows, f"{meaning}: higher is stranger.")
    pieces: list[Piece] = [Pair(Picture(outcome.figure, alt), scores)]
    if len(model.shape) != 3:
        places = np.array([each["row"] for each in strange])
        length = batch["length"][places] if "length" in batch else None
        groups = {"strangest": batch["x"][places]}
        pieces += beside(subject.dataset, groups, f"Strangest examples by {entry.label}", length)
    return pieces
