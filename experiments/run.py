"""Run folders: training into one, resuming from it, reading it back.

config.json      the experiment, every field
manifest.json    the data's SHA-256; of each session: command, versions, commit, device, flags
metrics.jsonl    a line per report; deterministic, so it holds no times
checkpoints/     see `gen.checkpoint`
samples/         pictures
evaluation.json  estimates, from `evaluate`
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from experiments.experiment import Experiment, Options, differences, from_config, to_config
from experiments.registry import EXPERIMENTS
from gen import data, parallel, train
from gen.checkpoint import open_checkpoints
from gen.core import UserError, capabilities
from gen.data import Dataset

INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: run it again to go on


class Run(NamedTuple):
    """A run read back from its folder."""

    folder: Path
    name: str
    experiment: Experiment
    dataset: Dataset
    step: int
    state: Any  # the model's, [S, ...] for several seeds
    seconds: float  # of training, over all sessions
    session: dict[str, Any]  # of the manifest: the first


def train_run(name: str, experiment: Experiment, options: Options) -> int:
    """Trains `experiment`, or resumes it where its folder stops; returns the exit code.

    Raises `UserError` before anything is trained, `NonFiniteError` during training.
    """
    if options.coordinator:
        parallel.join(options.coordinator, options.processes, options.process)
    lead = jax.process_index() == 0  # this process alone writes, but for the checkpoints
    mesh = None
    if options.devices > 1 or options.coordinator:
        mesh = parallel.make_mesh(options.devices)
        parallel.check_batch(experiment.batch_size, options.devices)
    dataset = data.load(experiment.data, options.data_dir)
    experiment = experiment.on(dataset)
    rows = len(dataset.train["x"])
    if experiment.batch_size > rows:
        raise UserError(
            f"a batch of {experiment.batch_size} is larger than the {rows} training examples of "
            f"{dataset.name}: take at most {rows}"
        )
    seeds = "-".join(map(str, experiment.all_seeds))
    folder = options.out or Path("runs") / f"{name}-seed{seeds}"
    say = print if lead else lambda *_: None

    with ExitStack() as stack:
        if lead:
            stack.enter_context(hold(folder))
            _open(folder, name, experiment, dataset)
        _meet("folder")
        interrupted = stack.enter_context(_signals())
        checkpoints = stack.enter_context(
            open_checkpoints(folder / "checkpoints", experiment.keep_every)
        )
        restored = checkpoints.restore(_target(experiment, dataset, mesh))
        start, seconds = None, 0.0
        if restored:
            _name_damaged(restored.damaged)
            if restored.step >= experiment.steps:
                say(f"{folder} is finished: {restored.step} steps. Nothing to do.")
                return 0
            say(f"resuming {folder} at step {restored.step}")
            start, seconds = (restored.step, restored.tree), restored.info["seconds"]
        else:
            say(f"training {name} into {folder}")
        began = time.perf_counter() - seconds
        done = start[0] if start else 0
        log = stack.enter_context(_log(folder, done, options.tensorboard)) if lead else _no_log
        show = stack.enter_context(_bar(name, done, experiment.steps)) if lead else _no_log

        for progress in train.fit(
            experiment.model,
            dataset.train,
            steps=experiment.steps,
            batch_size=experiment.batch_size,
            seed=experiment.fit_seed,
            decode=experiment.decode(dataset),
            report_every=experiment.report_every,
            pause_every=[
                every for every in (experiment.checkpoint_every, experiment.sample_every) if every
            ],
            steps_per_dispatch=experiment.steps_per_dispatch,
            mesh=mesh,
            start=start,
        ):
            step, carry, metrics = progress
            if metrics:
                log(step, metrics)
            show(step, metrics)
            if lead and experiment.sample_every and step % experiment.sample_every == 0:
                _snapshot(folder, experiment, step, carry)
            done, stop = step, _agree(bool(interrupted), at_report=metrics is not None)
            finished = step == experiment.steps
            if finished and lead:  # before the last checkpoint: a finished run has its pictures
                _final_pictures(folder, experiment, dataset, carry)
            if finished or stop or step % experiment.checkpoint_every == 0:
                seconds = time.perf_counter() - began
                train.check_no_nan(step, carry)
                checkpoints.save(step, carry, {"seconds": seconds})
            if stop:
                break

    if done < experiment.steps:
        say(f"{' '.join(interrupted)}: saved step {done}; the same command goes on from there")
        return INTERRUPTED
    say(f"{experiment.steps} steps in {seconds:.1f} s; pictures in {folder}/samples")
    say(f"next: python -m experiments evaluate {folder}")
    return 0


def load_run(folder: Path, data_dir: Path | None = None) -> Run:
    """The run in `folder` at its last sound checkpoint, with its data."""
    config = read_json(folder / "config.json")
    if config is None:
        raise UserError(
            f"{folder} holds no run: python -m experiments train NAME --out {folder} makes one"
        )
    manifest = read_json(folder / "manifest.json") or {"sessions": [{}]}
    experiment = from_config(config, EXPERIMENTS)
    dataset = data.load(experiment.data, data_dir)
    _check_data(folder, manifest, dataset)
    with open_checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore(_target(experiment, dataset, None))
    if restored is None:
        raise UserError(f"{folder} has no checkpoint yet: train it for longer")
    _name_damaged(restored.damaged)
    return Run(
        folder,
        config["experiment"],
        experiment,
        dataset,
        restored.step,
        restored.tree.state,
        restored.info["seconds"],
        manifest["sessions"][0],
    )


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


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is none. Raises `UserError` if it is damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it or use another run") from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON under a temporary name first, so that no half of it is ever read."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    part.replace(path)


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


def _open(folder: Path, name: str, experiment: Experiment, dataset: Dataset) -> None:
    """Makes the folder's files, or checks that they are of the same run, and notes the session."""
    config, old = to_config(name, experiment), read_json(folder / "config.json")
    if old is None and any(
        path.name != "lock" and not path.name.startswith("manifest.json")
        for path in folder.iterdir()
    ):
        raise UserError(f"{folder} is not empty and holds no run: choose another --out")
    if old is not None and (changed := differences(old, config)):
        raise UserError(
            f"{folder} holds another run ({'; '.join(changed)}): choose another --out, "
            "or repeat its own command to resume it"
        )
    manifest = read_json(folder / "manifest.json") if old else None
    manifest = manifest or {
        "data": {"name": dataset.name, "sha256": dataset.sha256},
        "sessions": [],
    }
    _check_data(folder, manifest, dataset)
    manifest["sessions"].append(_session())
    write_json(folder / "manifest.json", manifest)
    write_json(folder / "config.json", config)
    (folder / "samples").mkdir(exist_ok=True)


def _check_data(folder: Path, manifest: dict[str, Any], dataset: Dataset) -> None:
    if "data" in manifest and manifest["data"]["sha256"] != dataset.sha256:
        raise UserError(
            f"{folder} was trained on other data: the SHA-256 of {dataset.name} has changed; "
            "restore the data or use another run"
        )


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
        "commit": _commit(),
        "device": device_name(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "flags": flags,
    }


def _commit() -> str | None:
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


def _target(experiment: Experiment, dataset: Dataset, mesh: Any) -> Any:
    """The shapes of the carry, placed on the mesh, for a restore."""
    shapes = jax.eval_shape(
        lambda: train.begin(
            experiment.model, dataset.train, experiment.fit_seed, decode=experiment.decode(dataset)
        )
    )
    placement = (
        jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        if mesh is None
        else parallel.replicated(mesh)
    )
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement), shapes
    )


def _name_damaged(damaged: dict[int, str]) -> None:
    for step, reason in damaged.items():
        print(f"skipped the checkpoint of step {step}, which is damaged: {reason}", file=sys.stderr)


def _meet(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _agree(flag: bool, at_report: bool) -> bool:
    """Whether to stop; several processes ask each other, at reports only."""
    if jax.process_count() == 1:
        return flag
    return at_report and bool(np.any(multihost_utils.process_allgather(np.array(flag))))


@contextmanager
def _signals() -> Iterator[list[str]]:
    """A list that SIGTERM or Ctrl-C puts its name into; a second signal acts as it always does."""
    caught: list[str] = []
    before = {}

    def catch(number, _):
        caught.append(signal.Signals(number).name)
        signal.signal(number, before[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _no_log(step: int, metrics: Any) -> None:
    """For the processes that do not write."""


@contextmanager
def _log(folder: Path, done: int, tensorboard: bool) -> Iterator[Any]:
    """Appends reports to metrics.jsonl, after cutting off what lies beyond step `done`."""
    path = folder / "metrics.jsonl"
    kept = [json.dumps(line) + "\n" for line in read_metrics(folder) if line["step"] <= done]
    part = path.with_suffix(".part")
    part.write_text("".join(kept))
    part.replace(path)
    events = None
    if tensorboard:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError(
                "--tensorboard needs tensorboardX: pip install 'gen[tensorboard]'"
            ) from None
        events = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    with path.open("a") as lines:

        def log(step: int, metrics: dict[str, np.ndarray]) -> None:
            values = {name: value.tolist() for name, value in metrics.items()}
            lines.write(json.dumps({"step": step, **values}) + "\n")
            lines.flush()
            if events:
                for name, value in metrics.items():
                    events.add_scalar(name, float(np.mean(value)), step)

        try:
            yield log
        finally:
            if events:
                events.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last one that a kill cut short is left out."""
    lines = []
    with suppress(FileNotFoundError, ValueError):
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            lines.append(json.loads(line))
    return lines


@contextmanager
def _bar(name: str, done: int, steps: int) -> Iterator[Any]:
    """A progress bar with the last report below it, on a terminal; nothing elsewhere."""
    if not sys.stdout.isatty():
        yield _no_log
        return
    from rich import progress as bars
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    bar = bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=None),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[speed]}"),
        bars.TimeRemainingColumn(),
    )
    task = bar.add_task(name, total=steps, completed=done, speed="")
    report = Text()

    def show(step: int, metrics: dict[str, np.ndarray] | None) -> None:
        bar.update(task, completed=step)
        if metrics:
            report.plain = "  ".join(f"{key} {_spread(value)}" for key, value in metrics.items())
            speed = bar.tasks[task].speed
            bar.update(task, speed=f"{speed:.0f} steps/s" if speed else "")

    with Live(Group(bar, report)):
        yield show


def _spread(values: np.ndarray) -> str:
    """A value, or the mean ± standard error over seeds."""
    if values.ndim == 0:
        return f"{values:.4g}"
    stderr = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{values.mean():.4g} ± {stderr:.2g}"


def _first_state(experiment: Experiment, carry: train.Carry) -> Any:
    """The state of the first seed, as it lies on this process's first device."""
    return experiment.of_seed(parallel.local(carry.state), 0)


def _snapshot(folder: Path, experiment: Experiment, step: int, carry: train.Carry) -> None:
    from experiments import pictures

    if "sample" in capabilities(experiment.model):
        keys = train.streams(experiment.all_seeds[0])
        state = _first_state(experiment, carry)
        pictures.snapshot(folder / "samples", step, experiment.model, state, keys.sample)


def _final_pictures(
    folder: Path, experiment: Experiment, dataset: Dataset, carry: train.Carry
) -> None:
    from experiments import pictures

    keys = train.streams(experiment.all_seeds[0])
    test = {name: jnp.asarray(values[:2000]) for name, values in dataset.test.items()}
    test = experiment.decode(dataset)(test, keys.evaluate)
    state = _first_state(experiment, carry)
    pictures.final_pictures(folder / "samples", experiment.model, state, test, keys.sample)
    pictures.metric_curves(folder / "samples", read_metrics(folder))
