"""RESULTS.md: every published likelihood, by data set, made from the result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.published import PUBLISHED
from gen.estimate import MARKS, Estimate, marked

TITLES = {
    "binarized_mnist": "MNIST, binarised once (Larochelle; 50,000 / 10,000 / 10,000)",
    "mnist": "MNIST, binarised dynamically",
    "digits": "scikit-learn's digits, 8 × 8, binarised dynamically",
    "uci_dna": "DNA (180 binary variables)",
    "uci_mushrooms": "mushrooms (112 binary variables)",
    "uci_nips": "NIPS-0-12 (500 binary variables)",
}
"""The data sets that have a table, in their order."""

HEADER = """\
# Results

Test negative log-likelihood in nats per example, lower is better, ± the standard error over test
examples. Made by `python -m experiments table` from the files beside this one; each names its
commit, command, device, cost and values per seed. The test split was evaluated once; the state to
evaluate and every choice came from the validation split.

Values of different kinds have no order among them: an exact value carries no mark, ≤ marks an upper
bound (the true value lies at or below it). Rows are sorted by what is printed. *Spread* is the
standard error of the mean over seeds. *Seconds* are of training, all seeds together. *Distance* is
to the published figure; below 0 is better than it.
"""


def records(folder: Path) -> list[dict[str, Any]]:
    """The result files that hold a likelihood."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*_*.json"))]
    return [record for record in found if "nll" in record["estimates"]]


def markdown(folder: Path, names: tuple[str, ...]) -> str:
    """The tables of these data sets; a set without results is left out."""
    parts = [
        section(title, rows)
        for data, title in TITLES.items()
        if data in names
        if (rows := [r for r in records(folder) if r["data"] == data])
    ]
    return "\n".join([HEADER, *parts])


def section(title: str, rows: list[dict[str, Any]]) -> str:
    """One data set's table, its rows by rising value, and the sources of its published figures."""
    by_estimate = {id(e := Estimate(**row["estimates"]["nll"])): (e, row) for row in rows}
    lines = [
        f"## {title}",
        "",
        "| experiment | test nats | kind | seeds | spread | parameters | seconds | device "
        "| published | distance | command |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for mark, estimate in marked([estimate for estimate, _ in by_estimate.values()]):
        row = by_estimate[id(estimate)][1]
        published = PUBLISHED.get(row["experiment"])
        reference, distance = "–", "–"
        if published:
            notes.append(published.source)
            of = MARKS[published.kind]
            reference = f"{of} {published.value:.2f} [{len(notes)}]".strip()
            distance = f"{estimate.value - published.value:+.2f}"
        value = str(estimate).split(" (")[0]
        spread = estimate.settings.get("seeds_stderr")
        draws = estimate.settings.get("z_per_example")
        kind = f"{estimate.kind}, {draws:,} samples" if draws else estimate.kind
        cells = [
            f"`{row['experiment']}`",
            f"{mark} {value}".strip(),
            kind,
            str(len(row["seeds"])),
            "–" if spread is None else f"± {spread:.2g}",
            f"{row['parameters']:,}",
            f"{row['train_seconds']:,.0f}",
            row["device"],
            reference,
            distance,
            f"`{row['command']}`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [""] + [f"[{i}] {source}  " for i, source in enumerate(notes, 1)]
    return "\n".join(lines).rstrip() + "\n"
