"""The files of a run folder.

config.json      the experiment, every field
manifest.json    the data's SHA-256; of each session: command, versions, commit, device, flags
metrics.jsonl    a line per report; deterministic, so it holds no times
checkpoints/     see `gen.checkpoint`; what was damaged lies in damaged/
samples/         pictures
evaluation.json  estimates, from `evaluate`
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.experiment import Experiment, differences, to_config
from gen.core import UserError
from gen.data import Dataset

Log = Callable[[int, dict[str, np.ndarray]], None]


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps `folder` for this process; the system lets go when the process ends, however it ends.

    Raises `UserError`, naming the process, if another one has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): choose another --out"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"{folder} is in use by {lock.read().strip()}: wait for it or choose another --out"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


def read_json(path: Path, *needed: str) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file. Raises `UserError` if it is damaged
    or lacks a key that is needed."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it or use another run") from error
    missing = needed if not isinstance(value, dict) else [key for key in needed if key not in value]
    if missing or not isinstance(value, dict):
        raise UserError(
            f"{path} is damaged (it lacks {', '.join(missing)}): restore it or use another run"
        )
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes JSON under a temporary name first, so that no half of it is ever read."""
    _write(path, json.dumps(value, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any] | None:
    """config.json; None if there is none."""
    return read_json(folder / "config.json", "experiment", "model")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """manifest.json; None if there is none."""
    return read_json(folder / "manifest.json", "data", "sessions")


def check(folder: Path, name: str, experiment: Experiment, dataset: Dataset) -> None:
    """Raises `UserError` unless `folder` is new or holds this very run; writes nothing."""
    old = read_config(folder)
    if old is None:
        ours = {"lock", "manifest.json", "checkpoints"}  # as a kill at the start leaves them
        strange = [p for p in folder.iterdir() if p.name not in ours and p.suffix != ".part"]
        if strange:
            raise UserError(f"{folder} is not empty and holds no run: choose another --out")
        return
    if changed := differences(old, to_config(name, experiment)):
        raise UserError(
            f"{folder} holds another run ({'; '.join(changed)}): choose another --out, "
            "or repeat its own command to resume it"
        )
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} has lost its manifest.json: restore it or use another --out")
    check_data(folder, manifest, dataset)


def check_data(folder: Path, manifest: dict[str, Any], dataset: Dataset) -> None:
    """Raises `UserError` unless the run was trained on `dataset`."""
    if manifest["data"] != {"name": dataset.name, "sha256": dataset.sha256}:
        raise UserError(
            f"{folder} was trained on other data: the SHA-256 of {dataset.name} has changed; "
            "restore the data or use another run"
        )


def note_session(folder: Path, name: str, experiment: Experiment, dataset: Dataset) -> None:
    """Writes config.json, and this process's session into manifest.json."""
    sessions = (read_manifest(folder) or {"sessions": []})["sessions"]
    record = {"name": dataset.name, "sha256": dataset.sha256}
    write_json(folder / "manifest.json", {"data": record, "sessions": [*sessions, _session()]})
    write_json(folder / "config.json", to_config(name, experiment))
    (folder / "samples").mkdir(exist_ok=True)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without a last one that a kill cut short.

    Raises `UserError`, with its number, at a line that is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise UserError(f"{path}, line {number}, is damaged: mend it or delete that line")
        lines.append(line)
    return lines


@contextmanager
def open_log(folder: Path, lines: list[dict[str, Any]], tensorboard: bool) -> Iterator[Log]:
    """Makes `lines` the content of metrics.jsonl; then every call appends a report."""
    events = None
    if tensorboard:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError(
                "--tensorboard needs tensorboardX: pip install 'gen[tensorboard]'"
            ) from None
        last = lines[-1]["step"] if lines else 0
        events = SummaryWriter(str(folder / "tensorboard"), purge_step=last + 1)
    _write(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    with (folder / "metrics.jsonl").open("a") as file:

        def log(step: int, metrics: dict[str, np.ndarray]) -> None:
            values = {name: value.tolist() for name, value in metrics.items()}
            file.write(json.dumps({"step": step, **values}) + "\n")
            file.flush()
            if events:
                for name, value in metrics.items():
                    events.add_scalar(name, float(np.mean(value)), step)

        try:
            yield log
        finally:
            if events:
                events.close()


def device_name() -> str:
    """The accelerator's name, or the processor's with its number of cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    model = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    here = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if here else os.cpu_count()
    return f"CPU: {model}, {cores} cores"


def commit() -> str | None:
    """The commit of this checkout, marked where files have changed since; None outside of one."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _session() -> dict[str, Any]:
    """How, with what and on what this process runs."""
    packages = ["jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy"]
    packages += ["tensorflow-datasets", "scikit-learn", "gen"]
    flags = {
        name: value
        for name, value in os.environ.items()
        if name in ("XLA_FLAGS", "NPROC", "OMP_NUM_THREADS") or name.startswith("JAX_")
    }
    return {
        "command": shlex.join(["python", "-m", "experiments", *sys.argv[1:]]),
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


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
