"""The command line: python -m experiments {list,train,evaluate,sample,export,table,bench}.

Modules that are slow to import (orbax, matplotlib, tensorflow-datasets) are imported where they are
used, so that help and a mistyped flag are answered at once.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings


def leave(number: int, _) -> None:
    """End the process at once: before training begins there is nothing to save."""
    print(f"{signal.Signals(number).name}: stopped", file=sys.stderr, flush=True)
    os._exit(75)


if __name__ == "__main__":  # before the imports, which take their time
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)

import difflib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

USAGE = """\
usage: python -m experiments COMMAND ...

  list             every experiment: its family, kind of density, data and capabilities
  train NAME       train an experiment; the same command again resumes it
  evaluate RUN     write estimates on the test split to RUN/evaluation.json
  sample RUN       draw samples: a PNG grid and an .npy
  export RUN FILE  write the weights of a run to a .safetensors or an .npz file
  table            write all published results to experiments/results/RESULTS.md
  bench [NAME...]  measure the speed of training and sampling

python -m experiments COMMAND --help lists the flags of a command.
"""
Arguments = TypeVar("Arguments")


@dataclass(frozen=True)
class Evaluate:
    """Write estimates on a split of the data to RUN/evaluation.json."""

    run: tyro.conf.Positional[Path]
    """run folder"""
    split: Literal["test", "validation", "train"] = "test"
    """split of the data to evaluate on"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    publish: bool = False
    """also write experiments/results/NAME.json, the pictures and the weights"""
    keep_programs: bool = True
    """keep compiled programs in the cache folder for later commands"""


@dataclass(frozen=True)
class Sample:
    """Draw samples from a trained model, as RUN/samples/seedS_nN.png and .npy."""

    run: tyro.conf.Positional[Path]
    """run folder, or the name of an experiment with published weights"""
    n: int = 100
    """number of samples"""
    seed: int = 0
    """seed of the draws"""
    label: tuple[int, ...] = ()
    """classes to draw from, one or several in turn (default: the model's choice)"""
    out: Path | None = None
    """folder of the files (default: RUN/samples; for published weights samples/NAME)"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    keep_programs: bool = True
    """keep compiled programs in the cache folder for later commands"""


@dataclass(frozen=True)
class Export:
    """Write the weights of a trained model, with their names, shapes and model in the header."""

    run: tyro.conf.Positional[Path]
    """run folder, or the name of an experiment with published weights"""
    file: tyro.conf.Positional[Path]
    """file that ends in .safetensors or .npz"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""


@dataclass(frozen=True)
class Table:
    """Write all published results to experiments/results/RESULTS.md, and print likelihoods."""

    data: tuple[str, ...] = ()
    """data sets whose likelihoods are printed (default: all)"""


@dataclass(frozen=True)
class Bench:
    """Measure the speed of training and sampling beside a large matrix product, and beside other
    libraries where they are installed (extra: compare)."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """experiments (default: all)"""
    seconds: float = 3.0
    """seconds for which each one trains, after compiling"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    json: Path | None = None
    """also write the numbers here"""

    def __post_init__(self):
        from gen.core import check_fields

        check_fields(self, positive=("seconds",))


def main(arguments: list[str]) -> int:
    """Run one command.

    Returns:
      The exit code: 0; 1 if training failed; 2 for an error that the user can mend; 75 if training
      was interrupted, and the same command resumes it.
    """
    from gen.core import UserError
    from gen.memory import keep_freed_memory

    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path can have what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
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
    except (RuntimeError, MemoryError) as error:  # of JAX and of NumPy
        if not isinstance(error, MemoryError) and "Out of memory" not in str(error):
            raise
        line = (str(error) or "Out of memory").splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        print(f"error: {line.rstrip('.')}: make the model or the batch smaller", file=sys.stderr)
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
    """List every experiment: its family, kind of density, data and capabilities."""


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
    from experiments.compilation import keep_programs
    from experiments.run import train_run

    keep_programs(chosen.options.keep_programs)
    return train_run(name, chosen.experiment, chosen.options)


def evaluate_command(arguments: list[str]) -> int:
    chosen = parse(Evaluate, arguments, "evaluate")
    from rich.console import Console

    from experiments.compilation import keep_programs
    from experiments.evaluation import check_publishable, evaluate_run, publish, summary
    from experiments.folder import commit
    from experiments.run import load_run

    keep_programs(chosen.keep_programs)
    run = load_run(chosen.run, chosen.data_dir)
    if chosen.publish:  # before the evaluation, which may take minutes
        check_publishable(run, chosen.split, commit())
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        record = evaluate_run(run, chosen.split)
    Console().print(summary(record))
    if chosen.publish:
        print(f"published as {publish(run, record)}")
    return 0


def sample_command(arguments: list[str]) -> int:
    chosen = parse(Sample, arguments, "sample")
    from experiments.compilation import keep_programs
    from experiments.evaluation import sample_run
    from experiments.run import load_trained

    keep_programs(chosen.keep_programs)
    run = load_trained(chosen.run, chosen.data_dir)
    own = chosen.run / "samples" if chosen.run.is_dir() else Path("samples") / run.name
    for path in sample_run(run, chosen.n, chosen.seed, chosen.label, chosen.out or own):
        print(path)
    return 0


def export_command(arguments: list[str]) -> int:
    chosen = parse(Export, arguments, "export")
    from experiments.evaluation import export
    from experiments.run import load_trained

    print(export(load_trained(chosen.run, chosen.data_dir), chosen.file))
    return 0


def table_command(arguments: list[str]) -> int:
    chosen = parse(Table, arguments, "table")
    from rich.console import Console

    from experiments import table
    from experiments.evaluation import RESULTS
    from experiments.folder import write_text
    from gen.core import UserError

    unknown = [name for name in chosen.data if name not in table.TITLES]
    if unknown:
        raise UserError(f"no table of {unknown[0]!r}: choose from {', '.join(table.TITLES)}")
    write_text(RESULTS / "RESULTS.md", table.markdown(RESULTS))
    for data in chosen.data or table.TITLES:
        Console().print(table.terminal(RESULTS, data))
    return 0


def bench_command(arguments: list[str]) -> int:
    chosen = parse(Bench, arguments, "bench")
    from rich.console import Console

    from experiments import bench
    from experiments.folder import write_json
    from experiments.registry import EXPERIMENTS
    from gen.core import UserError

    names = chosen.names or tuple(EXPERIMENTS)
    for name in names:
        check_name(name)
    if chosen.json and not chosen.json.absolute().parent.is_dir():
        raise UserError(f"{chosen.json} lies in no folder: make the folder first")
    record = bench.run(names, chosen.data_dir, chosen.seconds, Console().print)
    if chosen.json:
        write_json(chosen.json, record)
    return 0


def check_name(name: str) -> None:
    """Raise `UserError`, with the nearest names, unless `name` is an experiment."""
    from experiments.registry import EXPERIMENTS
    from gen.core import UserError

    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS)
        hint = f"did you mean {' or '.join(near)}?" if near else "see python -m experiments list"
        raise UserError(f"unknown experiment {name!r}: {hint}")


def parse(
    kind: type[Arguments], arguments: list[str], command: str, default: Arguments | None = None
) -> Arguments:
    """Return the flags of a command. On help or an error tyro prints it and exits, with 0 or 2.

    Args:
      kind: the class whose fields are the flags.
      arguments: the command line after the name of the command.
      command: the name of the command, for its help.
      default: the values of flags that are not given; None for the defaults of the class.
    """
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
    "export": export_command,
    "table": table_command,
    "bench": bench_command,
}

if __name__ == "__main__":
    # Makes GPU runs repeatable; read when JAX starts its backend.
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    sys.exit(main(sys.argv[1:]))
