"""Write a page of HTML about one trained model or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.compilation import keep_programs
from experiments.flags import parse
from experiments.folder import commit, device_name
from gen.core import UserError, require

COMMAND = "report"


@dataclass(frozen=True)
class Flags:
    """Write one page about trained models: data, estimates, curves, samples, codes and cost.

    The page is one file of HTML that needs no network. A run without an evaluation.json is
    evaluated first.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or names of experiments with published weights"""
    out: Path = Path("report.html")
    """file of the page, which ends in .html"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    keep_programs: bool = True
    """keep compiled programs in the cache folder for later commands"""


def write_report(runs: Sequence[Path], out: Path, data_dir: Path | None = None) -> int:
    """Write the page of a report, and return its size in bytes.

    Args:
      runs: run folders, or names of experiments whose weights are published.
      out: the file of the page.
      data_dir: folder of prepared data sets, as `gen.data.load` takes it.

    Raises:
      UserError: a run cannot be read, or the file cannot be written.
    """
    check_out(out)
    from experiments.report import runs as loading

    return write_page(loading.load(runs, data_dir), out, COMMAND)


def write_page(
    entries: Sequence[Any],
    out: Path,
    made_by: str,
    deadline: float = math.inf,
    left_out: Sequence[str] = (),
) -> int:
    """Write the page about loaded runs, and return its size in bytes.

    Args:
      entries: the runs, as `experiments.report.runs` loads them.
      out: the file of the page.
      made_by: the command that makes it.
      deadline: the value of `time.monotonic()` after which sections are left out.
      left_out: a line for each model that the command left out.
    """
    from experiments.report import page, sections

    footer = f"Made by python -m experiments {made_by} at commit {commit()} on {device_name()}."
    return page.write(sections.page_of(entries, footer, deadline, left_out), out)


def check_out(out: Path) -> None:
    """Raise `UserError` unless a file is a page of HTML in a folder that exists."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: the report is HTML, give a name that ends in .html")
    require(not out.is_dir(), f"--out {out} is a folder: give the name of a file")
    folder = out.absolute().parent
    require(folder.is_dir(), f"--out {out} lies in no folder: make {folder} first")


def command(arguments: list[str]) -> int:
    """Run `report` with its flags, and return the exit code."""
    chosen = parse(Flags, arguments, COMMAND)
    require(bool(chosen.runs), "no run given: report RUN ... --out FILE.html")
    keep_programs(chosen.keep_programs)
    size = write_report(chosen.runs, chosen.out, chosen.data_dir)
    print(f"{chosen.out}, {size / 1e6:.2g} MB")
    return 0
