"""RESULTS.md: every published likelihood, by data set, made from the result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.folder import read_json
from experiments.published import PUBLISHED
from gen.estimate import MARKS, from_json

TITLES = {
    "binarized_mnist": "MNIST, binarised once (Larochelle; 50,000 / 10,000 / 10,000)",
    "mnist": "MNIST, binarised dynamically",
    "digits": "scikit-learn's digits, 8 × 8, binarised dynamically",
    "mnist_grey": "MNIST, 256 grey levels, bits per pixel",
    "digits_grey": "scikit-learn's digits, 8 × 8, 17 grey levels, bits per pixel",
    "uci_dna": "DNA (180 binary variables)",
    "uci_mushrooms": "mushrooms (112 binary variables)",
    "uci_nips": "NIPS-0-12 (500 binary variables)",
    "news": "20 newsgroups (100 binary variables, split by distinct documents)",
    "jsb": "JSB chorales, nats per time step",
    "nottingham": "Nottingham, nats per time step",
    "letters": "letters of tiny Shakespeare, nats per symbol",
}
"""The data sets that have a table, in their order; some have one of their grey levels, too."""

PER_STEP = ("jsb", "nottingham", "letters")  # sequences, whose nats are per time step
DYNAMIC = ("mnist", "digits")  # grey images, whose table is of their dynamic binarisation
GREY = "_grey"  # ends the names of those of grey levels

HEADER = """\
# Results

Test negative log-likelihood in nats per example, of sequences per time step, lower is better, ± the
standard error over test examples. Made by `python -m experiments table` from the files beside this
one; each names its commit, command, device, cost and values per seed. Hyperparameters and, in a run
that validates, its best step were chosen on the validation split, and so was the best of restarts.

Values of different kinds have no order among them: an exact value carries no mark, ≤ marks an upper
bound (the true value lies at or below it), ≈ an estimate of the normaliser by annealed importance
sampling (forward; *reverse end* is that of the reverse chains, and the truth is expected between
them), ≲ a bound with such a normaliser. Of diffusion models the bound is that of the chain, and *by
the flow* is that of the probability flow, of as many examples as the file says. Rows are sorted by
what is printed. *Spread* is the standard error of the mean over seeds. *Seconds* are of training,
all seeds together. *Distance* is to the published figure; below 0 is better than it.
"""


def records(folder: Path) -> list[dict[str, Any]]:
    """The result files that hold a probability of discrete data. Raises `UserError` if a file is
    damaged."""
    found = []
    for path in sorted(folder.glob("*_*.json")):
        record = read_json(path, "experiment", "data", "binarize", "estimates")
        assert record
        nll = record["estimates"].get("nll")
        if nll and not nll["settings"].get("density"):
            found.append(record)
    return found


def markdown(folder: Path) -> str:
    """RESULTS.md: the tables of all data sets that have results."""
    found, parts = records(folder), [HEADER]
    for data, title in TITLES.items():
        rows, sources = lines(found, data)
        if rows:
            columns = list(rows[0])
            text = [f"## {title}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            text += [f"| {' | '.join(row.values())} |" for row in rows]
            text += ["", *(f"[{i}] {source}  " for i, source in enumerate(sources, 1))]
            parts.append("\n".join(text).rstrip() + "\n")
    return "\n".join(parts)


def terminal(folder: Path, data: str) -> Any:
    """The same for one data set, without what a terminal has no room for."""
    from rich.table import Table

    rows, _ = lines(records(folder), data)
    columns = ("experiment", "test", "kind", "spread", "published", "distance")
    out = Table(*columns, title=TITLES[data])
    for row in rows:
        out.add_row(*(row[column].strip("`") for column in columns))
    return out


def lines(found: list[dict[str, Any]], data: str) -> tuple[list[dict[str, str]], list[str]]:
    """One data set's rows by rising value, cells by column; and the sources of its published
    figures, which the cells number from 1."""
    binarize = "dynamic" if data in DYNAMIC else "none"
    measure = "bits_per_dim" if data.endswith(GREY) else "nll"
    chosen = [
        (from_json(row["estimates"][measure]), row)
        for row in found
        if (row["data"], row["binarize"]) == (data.removesuffix(GREY), binarize)
        and measure in row["estimates"]
        and (row["estimates"]["nll"]["settings"].get("per") == "step") == (data in PER_STEP)
    ]
    rows, sources = [], []
    for estimate, row in sorted(chosen, key=lambda pair: pair[0].value):
        name, mark = row["experiment"], MARKS[estimate.kind]
        published = PUBLISHED.get(name)
        reference, distance = "–", "–"
        if published:
            sources.append(published.source)
            value = f"{MARKS[published.kind]} {published.value:.2f}".strip()
            reference = f"{value} [{len(sources)}]"
            if published.kind == estimate.kind:
                distance = f"{estimate.value - published.value:+.2f}"
        spread = estimate.settings.get("seeds_stderr")
        draws = estimate.settings.get("z_per_example", 1)
        restarts = row.get("restarts")
        kind = f"{estimate.kind}, {draws:,} samples" if draws > 1 else estimate.kind
        if "nll_reverse" in row["estimates"]:
            kind += f", reverse end {row['estimates']['nll_reverse']['value']:.2f}"
        if f"{measure}_ode" in row["estimates"]:
            kind += f", by the flow {row['estimates'][f'{measure}_ode']['value']:.3f}"
        if estimate.settings.get("conditional"):
            kind += ", given labels"
        if how := estimate.settings.get("dequantized"):
            kind += f", dequantized ({how})"
        rows.append(
            {
                "experiment": f"`{name}`",
                "test": f"{mark} {estimate}".split(" (")[0].strip(),
                "kind": kind,
                "seeds": f"best of {len(restarts)}" if restarts else str(len(row["seeds"])),
                "spread": "–" if spread is None else f"± {spread:.2g}",
                "parameters": f"{row['parameters']:,}",
                "seconds": f"{row['train_seconds']:,.0f}",
                "device": row["device"],
                "published": reference,
                "distance": distance,
                "command": f"`{row['command']}`",
            }
        )
    return rows, sources
