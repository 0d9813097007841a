"""The files of a run folder.

config.json      the experiment with every field, and a SHA-256 of them
manifest.json    the data's SHA-256, their format, and the types and shapes of the training arrays;
                 the command, versions, commit, device and flags of each session; `stopped_early`
metrics.jsonl    a line for each report; deterministic, so it holds no times
checkpoints/     see `gen.checkpoint`; damaged checkpoints are moved to damaged/
samples/         pictures
tensorboard/     events, with `--logger tensorboard`
evaluation.json  estimates on the test split, from `evaluate`; evaluation-SPLIT.json on another
diverged.json    the reason why a run of a sweep ended
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.experiment import (
    Experiment,
    Logger,
    differences,
    from_config,
    missing,
    to_config,
)
from experiments.registry import EXPERIMENTS
from gen import config as parts
from gen import trained
from gen.core import UserError
from gen.data import Dataset
from gen.files import damaged, json_sum, read_json, replacing, writing

Log = Callable[[int, dict[str, np.ndarray]], None]
"""A log is a function of (step, metrics) that appends a report to metrics.jsonl."""

RESULTS = trained.PUBLISHED
"""Folder of the published results."""

NO_RESULTS = ":(top,exclude)experiments/results"
"""This path specification excludes the published results from a git command."""


class Config(NamedTuple):
    """An experiment that was read back from config.json."""

    name: str
    experiment: Experiment
    missing: list[str]  # `field = default` for each field that the file lacks


def default_folder(name: str, experiment: Experiment) -> Path:
    """Return runs/NAME-seedN, or runs/NAME-DATA-seedN for other data than the registered set."""
    seeds = "-".join(map(str, experiment.all_seeds))
    return Path("runs") / f"{with_own_data(name, experiment)}-seed{seeds}"


def with_own_data(name: str, experiment: Experiment) -> str:
    """Return NAME, or NAME-DATA for other data than the registered set."""
    registered = name in EXPERIMENTS and experiment.data == EXPERIMENTS[name].data
    return name if registered else f"{name}-{Path(experiment.data).stem}"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process. The system releases the lock when the process ends.

    An `OSError` of the body is raised as a `UserError` that says what to do.

    Raises:
      UserError: the folder cannot be written, or another process has the lock. The message names
        that process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        lock = os.fdopen(number, "r+")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}): choose another --out"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is in use by {lock.read().strip()}: wait for it or choose another --out"
            ) from None
        with writing(folder):
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            lock.flush()
            yield


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_config(folder: Path) -> Config | None:
    """Return the experiment in config.json, or None if there is no such file.

    Raises:
      UserError: the file is damaged or was edited, or this version has no such experiment.
    """
    config = trained.read_config(folder)
    return None if config is None else _config(folder / "config.json", config)


def read_template(path: Path) -> Config:
    """Return the experiment in a config.json as the start of another run.

    The file may be edited by hand. A learning rate that falls over the whole run falls over the
    whole of the other run, too.

    Raises:
      UserError: there is no such file, it is damaged, or this version has no such experiment.
    """
    config = read_json(path, *trained.CONFIG_KEYS)
    if config is None:
        raise UserError(f"there is no file {path}: --config takes the config.json of a run")
    config.pop("sha256", None)
    return _config(path, _without_length(config, config["steps"]))


def _without_length(config: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return a configuration without the lengths of schedules that fall over all the steps."""
    return {
        name: _without_length(value, steps)
        if isinstance(value, dict)
        else None
        if (name, value) == ("decay_steps", steps)
        else value
        for name, value in config.items()
    }


def _config(path: Path, config: dict[str, Any]) -> Config:
    """Return the experiment that the content of a file describes."""
    try:
        experiment = from_config(config, EXPERIMENTS)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    name = config["experiment"]
    return Config(name, experiment, missing(config, to_config(name, experiment)))


def write_config(folder: Path, name: str, experiment: Experiment) -> None:
    """Write config.json.

    Args:
      folder: the run folder.
      name: the name of the experiment.
      experiment: the experiment.
    """
    config = to_config(name, experiment)
    write_json(folder / "config.json", {**config, "sha256": json_sum(config)})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return manifest.json, or None if there is none.

    Raises:
      UserError: the file is damaged, or its data or a session lacks a field.
    """
    path = folder / "manifest.json"
    manifest = read_json(path, "data", "sessions")
    if manifest is None:
        return None
    sessions = manifest["sessions"]
    if not (isinstance(sessions, list) and sessions and all(map(_is_session, sessions))):
        raise damaged(path, "a session lacks its command, device or commit")
    return manifest


def check(folder: Path, name: str, experiment: Experiment, dataset: Dataset) -> None:
    """Check that a folder is new or holds this run. Nothing is written.

    Args:
      folder: the run folder.
      name: the name of the experiment.
      experiment: the experiment on its data, before `Experiment.for_run`.
      dataset: its data.

    Raises:
      UserError: the folder has other files, another run or a run on other data, or the learning
        rate of its run falls over another number of steps.
    """
    old = read_config(folder)
    if old is None:
        # A process that is killed at the start leaves these files.
        ours = r"lock|checkpoints|manifest\.json|(manifest|config)\.json(\.gen-.+)?\.part"
        if not all(re.fullmatch(ours, path.name) for path in folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no run: choose another --out")
        return
    config, steps = to_config(old.name, old.experiment), old.experiment.steps
    if changed := differences(config, to_config(name, experiment.for_run())):
        as_long = replace(experiment, steps=steps).for_run()
        if not differences(config, to_config(name, as_long)):  # only the schedule differs
            schedule = changed[0].partition(":")[0].replace("decay_steps", "schedule")
            raise UserError(
                f"{folder} holds a run of {steps} steps, over which its learning rate falls "
                f"to 0, so that it cannot have {experiment.steps}: train anew with another --out; "
                f"runs with --{schedule} constant can be made longer"
            )
        raise UserError(
            f"{folder} holds another run ({'; '.join(changed)}): choose another --out, "
            "or repeat its own command to resume it"
        )
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} has lost its manifest.json: restore it or use another --out")
    check_data(folder, manifest, dataset)


def check_data(folder: Path, manifest: dict[str, Any], dataset: Dataset) -> None:
    """Check that a run was trained on a data set.

    Args:
      folder: the run folder, for the message.
      manifest: its manifest.json.
      dataset: the data set.

    Raises:
      UserError: the SHA-256 of the data has changed.
    """
    if manifest["data"] != {"name": dataset.name, "sha256": dataset.sha256}:
        raise UserError(
            f"{folder} was trained on other data: the SHA-256 of {dataset.name} has changed; "
            "restore the data or use another run"
        )


def note_session(
    folder: Path, name: str, experiment: Experiment, dataset: Dataset, command: str = ""
) -> None:
    """Write config.json, and append this process's session to manifest.json.

    Args:
      folder: the run folder.
      name: the name of the experiment.
      experiment: the experiment that is run.
      dataset: its data.
      command: the command of the session (default: the command of this process).
    """
    sessions = (read_manifest(folder) or {"sessions": []})["sessions"]
    manifest = {
        "data": {"name": dataset.name, "sha256": dataset.sha256},
        "format": parts.to_json(dataset.format),
        "arrays": {
            name: {"dtype": str(values.dtype), "shape": values.shape}
            for name, values in dataset.train.items()
        },
        "sessions": [*sessions, _session(command)],
    }
    write_json(folder / "manifest.json", manifest)
    write_config(folder, name, experiment)
    (folder / "samples").mkdir(exist_ok=True)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, except for an incomplete last line.

    Raises:
      UserError: the file cannot be read, or a line is damaged, or the step of a line does not come
        after the step of the line before. The message names the number of the line.
    """
    path = folder / "metrics.jsonl"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise damaged(path, error) from error
    lines: list[dict[str, Any]] = []
    before, shape = 0, None
    for number, text in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text.decode())
            step = line["step"]
            values = np.array([line[name] for name in line if name != "step"])  # [metrics, seeds]
        except (ValueError, TypeError, KeyError, RecursionError):
            step, values = 0, np.array([])
        numbers = values.size and values.dtype.kind in "if" and np.isfinite(values).all()
        same = shape in (None, values.shape[1:])
        if not (type(step) is int and step > before and numbers and same):
            raise UserError(f"{path}, line {number}, is damaged: mend it or delete that line")
        before, shape = step, values.shape[1:]
        lines.append(line)
    return lines


def note_early_stop(folder: Path, step: int) -> None:
    """Write to manifest.json that the run stopped early, and at which step."""
    manifest = read_manifest(folder)
    if manifest and manifest.get("stopped_early") != step:
        write_json(folder / "manifest.json", {**manifest, "stopped_early": step})


@contextmanager
def open_log(folder: Path, lines: list[dict[str, Any]], logger: Logger) -> Iterator[Log]:
    """Yield a function that appends reports to metrics.jsonl.

    Args:
      folder: the run folder.
      lines: the reports that the file holds at first.
      logger: the service that receives the reports, too.

    Raises:
      UserError: the package of the logger is not installed.
    """
    last = lines[-1]["step"] if lines else 0
    with LOGGERS[logger](folder, last) as send:
        path = folder / "metrics.jsonl"
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        with path.open("a") as file:

            def log(step: int, metrics: dict[str, np.ndarray]) -> None:
                values = {name: value.tolist() for name, value in metrics.items()}
                file.write(json.dumps({"step": step, **values}) + "\n")
                file.flush()
                send(step, metrics)

            yield log


@contextmanager
def _no_logger(folder: Path, last: int) -> Iterator[Log]:
    """Yield a function that does nothing."""
    yield lambda step, metrics: None


@contextmanager
def _tensorboard(folder: Path, last: int) -> Iterator[Log]:
    """Yield a function that writes TensorBoard events of the steps after `last`."""
    from tensorboardX import SummaryWriter

    events = SummaryWriter(str(folder / "tensorboard"), purge_step=last + 1)

    def send(step: int, metrics: dict[str, np.ndarray]) -> None:
        for name, value in metrics.items():
            events.add_scalar(name, float(np.mean(value)), step)
        events.flush()  # a signal can end the process at any moment

    try:
        yield send
    finally:
        events.close()


@contextmanager
def _wandb(folder: Path, last: int) -> Iterator[Log]:
    """Yield a function that sends metrics to Weights & Biases, where a resumed run goes on.

    The id of the run derives from the folder and the start of its first session. Weights & Biases
    keeps the first values that it was sent for a step.
    """
    import wandb  # type: ignore

    manifest = read_manifest(folder)
    began = manifest["sessions"][0].get("started") if manifest else None
    identity = hashlib.sha256(f"{folder.absolute()} {began}".encode()).hexdigest()[:16]
    try:
        run = wandb.init(
            project="gen",
            name=folder.name,
            id=identity,
            config=read_json(folder / "config.json"),
            allow_val_change=True,  # a resumed run may be longer
            dir=str(folder.absolute()),
            resume="allow",
        )
    except wandb.Error as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"--logger wandb cannot begin ({reason}): try wandb login") from error

    def send(step: int, metrics: dict[str, np.ndarray]) -> None:
        run.log({name: float(np.mean(value)) for name, value in metrics.items()}, step=step)

    try:
        yield send
    finally:
        run.finish()


def check_logger(logger: Logger) -> None:
    """Raise `UserError` unless the package of a logger is installed."""
    package = {"tensorboard": "tensorboardX", "wandb": "wandb"}.get(logger)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(f"--logger {logger} needs {package}: pip install -e '.[{logger}]'")


LOGGERS = {"none": _no_logger, "tensorboard": _tensorboard, "wandb": _wandb}
"""The services that `Options.logger` names: each takes the folder and the last step logged."""


def device_name() -> str:
    """Return the name of the accelerator, or of the processor with its number of cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    model = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"CPU: {model}, {cores()} core" + "s" * (cores() > 1)


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    usable = hasattr(os, "sched_getaffinity")  # macOS does not have it
    return len(os.sched_getaffinity(0)) if usable else os.cpu_count() or 1


def commit() -> str | None:
    """Return the commit of this checkout, or None outside of one.

    It ends in `-dirty` if a tracked file has changed since, or a module of `gen` or `experiments`
    is not tracked. Results are excepted: publishing one does not make the next one dirty.
    """

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("diff", "HEAD", "--name-only", "--", ":(top)", NO_RESULTS)
        modules = (":(top,glob)gen/**/*.py", ":(top,glob)experiments/**/*.py")
        untracked = git("ls-files", "--others", "--exclude-standard", "--", *modules, NO_RESULTS)
        return git("rev-parse", "HEAD") + ("-dirty" if changed or untracked else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def is_clean(commit: str | None) -> bool:
    """Return whether a result file's commit is one commit without later changes."""
    return bool(re.fullmatch("[0-9a-f]{40}", str(commit)))


def _session(command: str = "") -> dict[str, Any]:
    """Return the command, versions, commit, device and flags of this process.

    The command is the command line unless another one is given.
    """
    packages = ["jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy"]
    packages += ["tensorflow-datasets", "scikit-learn", "gen"]
    flags = {
        name: value
        for name, value in os.environ.items()
        if name in ("XLA_FLAGS", "NPROC", "OMP_NUM_THREADS") or name.startswith("JAX_")
    }
    return {
        "command": command or shlex.join(["python", "-m", "experiments", *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
        "commit": commit(),
        "device": device_name(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "flags": flags,
    }


def _is_session(session: Any) -> bool:
    """Return whether a session of manifest.json has the fields that an evaluation reports."""
    kinds = {"command": str, "device": str, "commit": str | None}
    return isinstance(session, dict) and all(
        name in session and isinstance(session[name], kind) for name, kind in kinds.items()
    )
