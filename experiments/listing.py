"""List the experiments: one line each, or everything about one of them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.experiment import Experiment
from experiments.flags import WIDTH
from experiments.folder import read_json
from experiments.table import ESTIMATE_UNITS, NEEDED, number
from gen.core import CAPABILITIES, UserError, capabilities
from gen.estimate import MARKS, from_json
from gen.trained import WEIGHTS

HEADLINES = ("bits_per_dim", "nll", "mse", "nmi", "d_accuracy", "d_pairs", "error")
"""Estimates that can be the headline of an experiment, which is the first it has."""

DENSITIES = {
    "tractable": "explicit and tractable",
    "approximate": "explicit, approximated by a bound or by sampling",
    "implicit": "implicit: the model only samples",
    "none": "not modelled",
}
"""The places of a model in the taxonomy, `core.Density`, in words."""

FOOTNOTE = """\
Results: test estimate ± standard error; ≤ upper bound, ≈ estimate by AIS or by
draws, ≲ upper bound with AIS, ≠ no likelihood. min: minutes of training of the
published run, all its seeds together, mostly on two CPU cores; * on a GPU.
python -m experiments list NAME shows the details of an experiment.
"""


def select(
    experiments: Mapping[str, Experiment], family: str = "", data: str = "", can: Sequence[str] = ()
) -> dict[str, Experiment]:
    """Return the experiments of a family, on a data set, whose models have all of some methods.

    Args:
      experiments: experiments by name.
      family: a part of the name of a family, or of its room in `gen/models`, in any case; empty for
        all.
      data: a data set; empty for all.
      can: optional methods of a model, names of `core.CAPABILITIES`.

    Raises:
      UserError: no experiment has the family or the data set, or there is no such method.
    """

    def of_family(experiment: Experiment) -> bool:
        names = (experiment.model.family, type(experiment.model).__module__.split(".")[2])
        return any(family.lower() in name.lower() for name in names)

    families = list(dict.fromkeys(each.model.family for each in experiments.values()))
    sets = list(dict.fromkeys(each.data for each in experiments.values()))
    if not any(map(of_family, experiments.values())):
        raise UserError(f"no family {family!r}: choose from {', '.join(families)}")
    if data and data not in sets:
        raise UserError(f"no experiment on {data!r}: choose from {', '.join(sets)}")
    if unknown := [method for method in can if method not in CAPABILITIES]:
        raise UserError(f"no model can {unknown[0]!r}: choose from {', '.join(CAPABILITIES)}")
    return {
        name: each
        for name, each in experiments.items()
        if of_family(each) and data in ("", each.data) and {*can} <= {*capabilities(each.model)}
    }


def overview(experiments: Mapping[str, Experiment], results: Path) -> str:
    """Return one line for each experiment, under the name of its family.

    A line has the name, the data, the headline result and the minutes of training. A name is never
    cut.

    Args:
      experiments: experiments by name.
      results: the folder of the published results.
    """
    if not experiments:
        return "no experiment has all of this\n"
    head = ("", "data", "test result", "min")
    families: dict[str, list[tuple[str, ...]]] = {}
    for name, experiment in experiments.items():
        record = read_json(results / f"{name}.json", *NEEDED)
        measured = (headline(record), minutes(record)) if record else ("–", "–")
        row = (name, experiment.data, *measured)
        families.setdefault(experiment.model.family, []).append(row)
    rows = [head, *(row for rows in families.values() for row in rows)]
    a, b, c, d = (max(map(len, column)) for column in zip(*rows, strict=True))

    def line(row: tuple[str, ...]) -> str:
        return f"{row[0]:{a}} {row[1]:{b}} {row[2]:{c}} {row[3]:>{d}}"

    lines = [line(head)]
    for family, rows in families.items():
        lines += ["", family, *map(line, rows)]
    return "\n".join(lines) + "\n\n" + FOOTNOTE


def headline(record: Mapping[str, Any]) -> str:
    """Return the main estimate of a result file with its error and its unit.

    An estimate that is not in nats or bits has its name in place of the unit; `d_`, which stands
    for the discriminator, is left out.
    """
    name = next((each for each in HEADLINES if each in record["estimates"]), None)
    if name is None:
        return "–"
    estimate = from_json(record["estimates"][name])
    unit = ESTIMATE_UNITS.get(name, "nats")
    unit = unit if unit in ("nats", "bits/dim") else name.removeprefix("d_")
    per = "/step" * (estimate.settings.get("per") == "step")
    return f"{MARKS[estimate.kind]} {number(estimate).replace(' ', '')} {unit}{per}".strip()


def minutes(record: Mapping[str, Any]) -> str:
    """Return the training time of a result file in minutes, at least 0.1, with a star for a GPU."""
    time = record["train_seconds"] / 60
    mark = "" if record["device"].startswith("CPU") else "*"
    return f"{time:.0f}{mark}" if time >= 9.95 else f"{max(time, 0.1):.1f}{mark}"


def details(name: str, experiment: Experiment, results: Path) -> str:
    """Return everything about one experiment: its model, its data, its command and its result.

    Args:
      name: the name of the experiment.
      experiment: the experiment.
      results: the folder of the published results.
    """
    model = experiment.model
    terms = {
        "family": f"{model.family} ({type(model).__name__})",
        "density": DENSITIES[model.density],
        "data": experiment.data,
        "binarize": experiment.binarize,
        "can": ", ".join(capabilities(model)),
        "training": f"{experiment.steps:,} steps of {experiment.batch_size:,} examples",
        "command": f"python -m experiments train {name}",
    }
    record = read_json(results / f"{name}.json", *NEEDED)
    if record:
        estimates = {each: from_json(fields) for each, fields in record["estimates"].items()}
        terms |= {
            "command": record["command"],
            "parameters": f"{record['parameters']:,}",
            "trained in": f"{record['train_seconds']:,.0f} s on {record['device']}",
            "seeds": ", ".join(map(str, record["seeds"])),
            "result": "",
        }
        terms |= {f"  {each}": str(estimate) for each, estimate in estimates.items()}
    else:
        terms["result"] = "not published"
    path = results / name / WEIGHTS
    rows = list(terms.items())
    if path.exists():
        rows.append(("weights", f"published, {path.stat().st_size / 1e6:.2g} MB; in Python:"))
        rows += [("", "import gen"), ("", f'run = gen.load("{name}")')]
    else:
        rows.append(("weights", "not published"))
    column = max(len(term) for term, _ in rows) + 2
    text = [name]
    for term, value in rows:
        lines = textwrap.wrap(value, WIDTH - column, break_on_hyphens=False) or [""]
        text += [
            f"{term:{column}}{lines[0]}".rstrip(),
            *(" " * column + each for each in lines[1:]),
        ]
    return "\n".join(text) + "\n"
