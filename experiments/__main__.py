"""The command line: python -m experiments {list,train,evaluate,sample,table,bench}.

What is slow to import (orbax, matplotlib, tensorflow-datasets) is imported where it is used, so
that help and a mistyped flag are answered at once.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings


def leave(number: int, _) -> None:
    """Ends at once, as nothing is being trained that could be saved."""
    print(f"{signal.Signals(number).name}: stopped", file=sys.stderr, flush=True)
    os._exit(75)


if __name__ == "__main__":  # before the imports, which take their time
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

USAGE = """\
usage: python -m experiments COMMAND ...

  list             every experiment: its family, kind of density, data and capabilities
  train NAME       train an experiment; the same command again resumes it
  evaluate RUN     estimates on the test split, into RUN/evaluation.json
  sample RUN       samples: a PNG grid and an .npy
  table            the likelihoods of all published runs, into experiments/results/RESULTS.md
  bench [NAME...]  speed of training and sampling, next to that of a large matrix product

python -m experiments COMMAND --help lists the flags of a command.
"""
Arguments = TypeVar("Arguments")


@dataclass(frozen=True)
class Evaluate:
    """Estimates on a split of the data, into RUN/evaluation.json."""

    run: tyro.conf.Positional[Path]
    """run folder"""
    split: Literal["test", "validation", "train"] = "test"
    """which examples"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    publish: bool = False
    """also write experiments/results/NAME.json"""


@dataclass(frozen=True)
class Sample:
    """Samples of the trained model, as RUN/samples/seedS_nN.png and .npy."""

    run: tyro.conf.Positional[Path]
    """run folder"""
    n: int = 100
    """number of samples"""
    seed: int = 0
    """determines the noise"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""


@dataclass(frozen=True)
class Table:
    """The likelihoods of all published runs, into experiments/results/RESULTS.md."""

    data: tuple[str, ...] = ()
    """data sets to print (default: all); the file has all of them"""


@dataclass(frozen=True)
class Bench:
    """Speed of training, of sampling, of the samplers of diffusion and, with an HMM among the
    experiments, of EM beside other libraries (extra: compare); next to that of a large matrix
    product."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """experiments (default: all)"""
    seconds: float = 3.0
    """how long each one trains, after compiling"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    json: Path | None = None
    """also write the numbers here"""


def main(arguments: list[str]) -> int:
    """Runs one command and returns its exit code: 0; 2 for an error of the user's; 75 if it was
    interrupted, and the same command goes on; 1 if training failed."""
    from gen.core import UserError

    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        if command in ("-h", "--help"):
            print(USAGE, end="")
            return 0
        if command not in COMMANDS:
            print(USAGE, end="", file=sys.stderr)
            raise UserError(f"unknown command {command!r}" if command else "no command given")
        return COMMANDS[command](rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def list_command(arguments: list[str]) -> int:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from experiments.registry import EXPERIMENTS
    from gen.core import capabilities

    parse(List, arguments, "list")
    table = Table(box=SIMPLE, padding=0)
    table.add_column("experiment", no_wrap=True)
    for column in ("family", "density", "data", "pixels", "can"):
        table.add_column(column, overflow="fold")
    for name, experiment in EXPERIMENTS.items():
        model = experiment.model
        density = (
            model.density if model.density in ("none", "implicit") else f"explicit, {model.density}"
        )
        able = " ".join(capabilities(model))
        table.add_row(name, model.family, density, experiment.data, experiment.binarize, able)
    Console().print(table)
    return 0


@dataclass(frozen=True)
class List:
    """Every experiment: its family, its place in the taxonomy, its data and its capabilities."""


def train_command(arguments: list[str]) -> int:
    from experiments.experiment import Options, Training
    from experiments.registry import EXPERIMENTS

    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python -m experiments train NAME [FLAGS]\n\nNAME: {', '.join(EXPERIMENTS)}")
        print("\npython -m experiments train NAME --help lists the flags of an experiment.")
        return 0 if arguments else 2
    name = arguments[0]
    check_name(name)

    chosen = parse(Training, arguments[1:], f"train {name}", Training(EXPERIMENTS[name], Options()))
    from experiments.run import train_run

    return train_run(name, chosen.experiment, chosen.options)


def evaluate_command(arguments: list[str]) -> int:
    chosen = parse(Evaluate, arguments, "evaluate")
    from rich.console import Console

    from experiments.evaluation import evaluate_run, publish, summary
    from experiments.run import load_run

    run = load_run(chosen.run, chosen.data_dir)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        record = evaluate_run(run, chosen.split)
    Console().print(summary(record))
    if chosen.publish:
        print(f"published as {publish(run, record)}")
    return 0


def sample_command(arguments: list[str]) -> int:
    chosen = parse(Sample, arguments, "sample")
    from experiments.evaluation import sample_run
    from experiments.run import load_run

    for path in sample_run(load_run(chosen.run, chosen.data_dir), chosen.n, chosen.seed):
        print(path)
    return 0


def table_command(arguments: list[str]) -> int:
    chosen = parse(Table, arguments, "table")
    from rich.console import Console

    from experiments import table
    from experiments.evaluation import RESULTS
    from gen.core import UserError

    unknown = [name for name in chosen.data if name not in table.TITLES]
    if unknown:
        raise UserError(f"no table of {unknown[0]!r}: choose from {', '.join(table.TITLES)}")
    (RESULTS / "RESULTS.md").write_text(table.markdown(RESULTS))
    for data in chosen.data or table.TITLES:
        Console().print(table.terminal(RESULTS, data))
    return 0


def bench_command(arguments: list[str]) -> int:
    chosen = parse(Bench, arguments, "bench")
    from rich.console import Console

    from experiments import bench, bench_diffusion, bench_hmm, bench_rbm
    from experiments.folder import device_name, write_json
    from experiments.registry import EXPERIMENTS
    from gen.core import UserError
    from gen.models.boltzmann import RBM
    from gen.models.hmm import HMM

    names = chosen.names or tuple(EXPERIMENTS)
    for name in names:
        check_name(name)
    if chosen.json and not chosen.json.absolute().parent.is_dir():
        raise UserError(f"{chosen.json} lies in no folder: make the folder first")
    peak = bench.matmul_gflops()
    rows = {name: bench.speed(EXPERIMENTS[name], chosen.data_dir, chosen.seconds) for name in names}
    Console().print(bench.table(rows, peak, device_name()))
    drawn = {name: bench.sampling(EXPERIMENTS[name], chosen.data_dir) for name in names}
    samplers = {name: row for name, row in drawn.items() if row}
    if samplers:
        Console().print(bench.sampling_table(samplers))
    others: dict[str, Any] = {}
    if any(isinstance(EXPERIMENTS[name].model, HMM) for name in names):
        others["em"] = bench_hmm.em_speeds(chosen.seconds)
        Console().print(bench_hmm.em_table(others["em"]))
    if any(isinstance(EXPERIMENTS[name].model, RBM) for name in names):
        found = bench_rbm.speeds()
        others["rbm"] = found._asdict()
        Console().print(bench_rbm.table(found))
    if denoisers := [name for name in names if name in bench_diffusion.NAMES]:
        timed = {
            name: bench_diffusion.speeds(EXPERIMENTS[name], chosen.data_dir, chosen.seconds)
            for name in denoisers
        }
        others["diffusion"] = bench_diffusion.as_json(timed)
        Console().print(bench_diffusion.table(timed))
    if chosen.json:
        measured = bench.as_json(rows, samplers, peak, device_name())
        write_json(chosen.json, {**measured, **others})
    return 0


def check_name(name: str) -> None:
    """Raises `UserError`, with the nearest names, unless `name` is an experiment."""
    from experiments.registry import EXPERIMENTS
    from gen.core import UserError

    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS)
        hint = f"did you mean {' or '.join(near)}?" if near else "see python -m experiments list"
        raise UserError(f"unknown experiment {name!r}: {hint}")


def parse(
    kind: type[Arguments], arguments: list[str], command: str, default: Arguments | None = None
) -> Arguments:
    """The flags of a command. On help or an error tyro prints it and exits, with 0 or 2."""
    extra: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(
        kind,
        args=arguments,
        prog=f"python -m experiments {command}",
        compact_help=True,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
        **extra,
    )


COMMANDS = {
    "list": list_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "sample": sample_command,
    "table": table_command,
    "bench": bench_command,
}

if __name__ == "__main__":
    # Makes GPU runs repeatable; read when JAX starts its backend.
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    sys.exit(main(sys.argv[1:]))
