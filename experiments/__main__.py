"""The command line: python -m experiments COMMAND ... (`USAGE` lists the commands).

Modules that are slow to import (orbax, matplotlib, tensorflow-datasets) are imported where they are
used, so that help and a mistyped flag are answered at once.
"""

from __future__ import annotations

import os
import sys
import textwrap
import warnings

if __name__ == "__main__":  # before the imports, which take their time
    from experiments import interruption

    interruption.watch(interruption.stop)

import difflib
import importlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro import MISSING

from experiments.flags import flags_in_errors, parse

USAGE = """\
usage: python -m experiments COMMAND ...

  list [NAME]      every experiment with its result, or the details of one
  data DATA        what your own data hold, and which experiments fit them
  train NAME       train an experiment; the same command again resumes it
  sweep NAME       train an experiment at every combination of some values
  evaluate RUN     write estimates on the test split to RUN/evaluation.json
                   (RUN is a run folder; for all commands but compare also the NAME of an
                   experiment with published weights)
  judge RUN        samples against test images, by a classifier: RUN/judge.json
  features RUN     labels predicted from features of few examples: RUN/features.json
  anomaly RUN      strange test examples, or rows of a file, with p-values and alarms at a
                   stated false-alarm rate: RUN/anomaly.json
  protocol P NAME  the AUROC of an experiment or a baseline on 20 tabular sets (odds), or on
                   one class of images against the others
  documents RUN    p(word | the other words), p(group | words), and the words that speak
                   for a group: RUN/documents.json
  complete RUN...  occluded test examples, filled in by several models: RUN/complete.json
  latent RUN       map, paths and dimensions of the codes: RUN/latent.json and .png
  compare RUN RUN  the curves of runs on one figure, and their paired differences
  report RUN...    one page of HTML about one run or several: --out FILE.html
  explore FILE     train models of several families on your data, and write their report
  sample RUN       draw samples: a PNG grid and an .npy
  export RUN FILE  write the weights of a run to a .safetensors or an .npz file
  table            write all published results to experiments/results/RESULTS.md
  bench [NAME...]  measure the speed of training and sampling
  chapter [NAME...] execute notebooks of experiments/chapter and write their outputs

python -m experiments COMMAND --help lists the flags of a command.
"""
SWEEP_USAGE = """\
usage: python -m experiments sweep NAME --over FIELD VALUE VALUE ... [--over ...] [FLAGS]

Train an experiment at every combination of the values, and rank the combinations on
the validation split. The same command again resumes the sweep.

  --over FIELD VALUE VALUE ...  a field of the experiment and its values, such as
                                --over model.latent 2 5 10; a tuple has commas,
                                --over model.encoder.hidden 256,128 64
  --out DIR                     folder of the sweep (default: runs/NAME-sweep, or
                                runs/NAME-DATA-sweep for other data)

python -m experiments sweep NAME --help lists the other flags.
"""


@dataclass(frozen=True)
class List:
    """List the experiments by family, one line each, or the details of one."""

    name: tyro.conf.Positional[str] = ""
    """experiment whose details are shown (default: a line for each experiment)"""
    family: str = ""
    """only this family, such as VAE; a part of its name is enough"""
    data: str = ""
    """only experiments on this data set"""
    can: tuple[str, ...] = ()
    """only models that have all of these methods, such as sample or log_prob"""


@dataclass(frozen=True)
class Evaluate:
    """Write estimates on a split of the data to RUN/evaluation.json. For published weights they are
    printed alone."""

    run: tyro.conf.Positional[Path]
    """run folder, or the name of an experiment with published weights"""
    split: Literal["test", "validation", "train"] = "test"
    """split of the data to evaluate on"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
    publish: bool = False
    """also write experiments/results/NAME.json, the pictures and the weights"""
    keep_programs: bool = True
    """keep compiled programs in the cache folder for later commands"""


@dataclass(frozen=True)
class Compare:
    """Draw the curves of several runs on one figure, and print their estimates side by side.

    Differences are to the first run. Their errors are paired: all runs are evaluated on the same
    examples at the same draws.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, two or more"""
    split: Literal["test", "validation", "train"] = "test"
    """split of the data to evaluate on"""
    out: Path | None = None
    """PNG file of the curves (default: compare-....png beside the first run)"""
    json: Path | None = None
    """also write the numbers here"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""
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
class Describe:
    """Say what a data set holds, and which experiments fit it, with the command for each."""

    data: tyro.conf.Positional[str]
    """folder of images, file (.npz, .npy, .csv, .tsv, .txt, .mat) or name of a data set"""
    reading: Annotated[Any, tyro.conf.arg(name="")]
    """how your own data are read"""
    data_dir: Path | None = None
    """prepared data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets)"""


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
class Chapter:
    """Execute the notebooks whose sources are experiments/chapter/NN_name.py, and write each with
    its outputs as NN_name.ipynb (extra: notebooks).

    A notebook whose code has not changed keeps its outputs, and its text is replaced.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """notebooks by name or number, such as vaes or 2 (default: all)"""
    anew: bool = False
    """execute notebooks whose code has not changed, too"""


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
      The exit code: 0; 1 if training failed; 2 for an error that the user can mend; 75 if a signal
      interrupted the command; the same `train` or `sweep` command goes on.
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
            if not command:
                print(USAGE, end="", file=sys.stderr)
                raise UserError("no command given")
            near = difflib.get_close_matches(command, COMMANDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
            raise UserError(f"unknown command {command!r}: {hint}")
        code = COMMANDS[command](rest)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the exit
        return 1
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
    chosen = parse(List, arguments, "list")
    from experiments import listing
    from experiments.folder import RESULTS
    from experiments.registry import EXPERIMENTS

    if chosen.name:
        check_name(chosen.name)
        print(listing.details(chosen.name, EXPERIMENTS[chosen.name], RESULTS), end="")
        return 0
    selected = listing.select(EXPERIMENTS, chosen.family, chosen.data, chosen.can)
    print(listing.overview(selected, RESULTS), end="")
    return 0


def data_command(arguments: list[str]) -> int:
    from gen import data

    chosen = parse(Describe, arguments, "data", Describe(MISSING, data.Reading()))
    from experiments.fitting import describe

    dataset = data.load(chosen.data, chosen.data_dir, chosen.reading)
    for line in describe(dataset, chosen.data, chosen.reading):
        print(line)
    return 0


def train_command(arguments: list[str]) -> int:
    from experiments.registry import EXPERIMENTS

    if not arguments or arguments[0] in ("-h", "--help"):
        names = textwrap.fill(", ".join(EXPERIMENTS), 80, initial_indent="NAME: ")
        print(f"usage: python -m experiments train NAME [FLAGS]\n\n{names}")
        print("\npython -m experiments train NAME --help lists the flags of an experiment,")
        print("and train --config FILE [FLAGS] starts from the config.json of any run.")
        return 0 if arguments else 2
    name, chosen = parse_training("train", arguments)
    from experiments.compilation import keep_programs
    from experiments.run import train_run

    keep_programs(chosen.options.keep_programs)
    with flags_in_errors(type(chosen), chosen, arguments):
        return train_run(name, chosen.experiment, chosen.options)


def parse_training(command: str, arguments: list[str]) -> tuple[str, Any]:
    """Return the name of an experiment, and the `Training` that the flags make of it.

    Args:
      command: the command, for the help.
      arguments: the command line after it: a name, or --config in its place, and flags.

    Raises:
      UserError: no experiment is given or there is none of that name, a flag is wrong, or --seed is
        given for a run of several seeds.
    """
    from experiments.experiment import Options, Training
    from experiments.registry import EXPERIMENTS
    from gen.core import UserError

    named = bool(arguments) and not arguments[0].startswith("-")
    name, *flags = arguments if named else ["", *arguments]
    given = parse_config(flags)
    if given:
        from experiments.folder import read_template

        template = read_template(given)
        if name not in ("", template.name):
            raise UserError(
                f"{given} is of {template.name}, not of {name}: leave the name out, or the file"
            )
        name, default = template.name, template.experiment
    elif not name:
        raise UserError(f"no experiment given: {command} NAME, or {command} --config FILE")
    else:
        check_name(name)
        default = EXPERIMENTS[name]

    chosen = parse(Training, flags, f"{command} {name}", Training(default, Options()))
    if chosen.experiment.seeds and any(flag.partition("=")[0] == "--seed" for flag in flags):
        seeds = " ".join(map(str, chosen.experiment.seeds))
        raise UserError(
            f"--seed has no effect on a run of several seeds, here {seeds}: give --seeds instead"
        )
    return name, chosen


def sweep_command(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(SWEEP_USAGE, end="")
        return 0 if arguments else 2
    from rich.console import Console

    from experiments import pictures, sweep
    from experiments.compilation import keep_programs
    from experiments.folder import write_json

    if {"-h", "--help"} & {*arguments}:
        print(SWEEP_USAGE)
    others, over = sweep.split_arguments(arguments)
    name, chosen = parse_training("sweep", others)
    flags = others if others[0].startswith("-") else others[1:]
    keep_programs(chosen.options.keep_programs)
    with flags_in_errors(type(chosen), chosen, arguments):
        code, combinations = sweep.run_sweep(name, chosen.experiment, chosen.options, over)
    if code:
        return code
    print("evaluating on the validation split", flush=True)
    with warnings_in_one_line():
        outcomes = sweep.outcomes(combinations, chosen.options.data_dir)
    out = combinations[0].folder.parent
    write_json(out / "sweep.json", sweep.to_json(outcomes))
    Console().print(sweep.terminal(outcomes))
    if figure := sweep.picture(outcomes):
        pictures.save(figure, out / "sweep.png")
        print(out / "sweep.png")
    print(sweep.conclusion(name, chosen.experiment, flags, outcomes))
    return 0


def parse_config(arguments: list[str]) -> Path | None:
    """Return the file that --config names, which gives the other flags their defaults."""
    joined = [each.removeprefix("--config=") for each in arguments if each.startswith("--config=")]
    apart = [file for flag, file in pairwise(arguments) if flag == "--config"]
    return Path((joined + apart)[-1]) if joined or apart else None


def evaluate_command(arguments: list[str]) -> int:
    chosen = parse(Evaluate, arguments, "evaluate")
    from rich.console import Console

    from experiments.compilation import keep_programs
    from experiments.evaluation import (
        check_publishable,
        evaluate_published,
        evaluate_run,
        publish,
        summary,
    )
    from experiments.folder import commit, read_config
    from experiments.run import load_run
    from gen import trained
    from gen.core import UserError

    keep_programs(chosen.keep_programs)
    if str(chosen.run) in trained.published() and read_config(chosen.run) is None:
        if chosen.publish:
            raise UserError(f"{chosen.run} is published: --publish takes a run folder")
        with warnings_in_one_line():
            weights = trained.load(chosen.run)
            record = evaluate_published(weights, chosen.split, chosen.data_dir)
        print(f"published weights of {chosen.run}, seed {record['seed']}, step {record['step']:,}")
        Console().print(summary(record))
        return 0
    run = load_run(chosen.run, chosen.data_dir)
    if chosen.publish:  # before the evaluation, which may take minutes
        check_publishable(run, chosen.split, commit())
    with warnings_in_one_line():
        record = evaluate_run(run, chosen.split)
    Console().print(summary(record))
    if chosen.publish:
        print(f"published as {publish(run, record)}")
    return 0


def compare_command(arguments: list[str]) -> int:
    chosen = parse(Compare, arguments, "compare")
    from experiments import compare
    from experiments.compilation import keep_programs
    from experiments.folder import write_json

    keep_programs(chosen.keep_programs)
    runs = compare.load_runs(chosen.runs, chosen.data_dir)
    print(compare.save_curves(runs, chosen.out), flush=True)
    with warnings_in_one_line():
        rows = compare.rows(runs, chosen.split)
    print(compare.terminal(rows, chosen.split), end="\n\n")
    print(compare.explanation(rows))
    if chosen.json:
        write_json(chosen.json, compare.to_json(rows, runs, chosen.split))
    return 0


def sample_command(arguments: list[str]) -> int:
    chosen = parse(Sample, arguments, "sample")
    from experiments.compilation import keep_programs
    from experiments.evaluation import sample_run
    from experiments.run import load_trained

    keep_programs(chosen.keep_programs)
    run = load_trained(chosen.run, chosen.data_dir)
    own = chosen.run / "samples" if chosen.run.is_dir() else Path("samples") / run.name
    with flags_in_errors(Sample, None, arguments):
        paths = sample_run(run, chosen.n, chosen.seed, chosen.label, chosen.out or own)
    for path in paths:
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
    from experiments.folder import RESULTS, write_text
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


def chapter_command(arguments: list[str]) -> int:
    chosen = parse(Chapter, arguments, "chapter")
    from experiments import notebooks

    for name in [notebooks.full_name(each) for each in chosen.names] or notebooks.names():
        print(notebooks.write(name, chosen.anew), flush=True)
    return 0


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Print each warning of the body as one line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        yield


def check_name(name: str) -> None:
    """Raise `UserError`, with the nearest names, unless `name` is an experiment."""
    from experiments.registry import EXPERIMENTS
    from gen.core import UserError

    if name not in EXPERIMENTS:
        near = [each for each in EXPERIMENTS if each.startswith(f"{name}_")][:3]
        near = near or difflib.get_close_matches(name, EXPERIMENTS)
        hint = f"did you mean {' or '.join(near)}?" if near else "see python -m experiments list"
        raise UserError(f"unknown experiment {name!r}: {hint}")


def of_module(name: str) -> Callable[[list[str]], int]:
    """Return the command of a module of `experiments`, which is imported when it runs."""

    def run(arguments: list[str]) -> int:
        return importlib.import_module(f"experiments.{name}").command(arguments)

    return run


USES = ("judge", "features", "anomaly", "protocol", "documents", "complete", "latent")
"""Commands that use trained models, each a module of `experiments.uses`."""

COMMANDS = {
    "list": list_command,
    "data": data_command,
    "train": train_command,
    "sweep": sweep_command,
    "evaluate": evaluate_command,
    **{name: of_module(f"uses.{name}") for name in USES},
    "compare": compare_command,
    "report": of_module("report.command"),
    "explore": of_module("explore"),
    "sample": sample_command,
    "export": export_command,
    "table": table_command,
    "bench": bench_command,
    "chapter": chapter_command,
}

if __name__ == "__main__":
    # Makes GPU runs repeatable; read when JAX starts its backend.
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    sys.exit(main(sys.argv[1:]))
