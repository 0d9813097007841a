"""Runs by the command line, in this process, or in others where a process is killed."""

import functools
import hashlib
import inspect
import json
import operator
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NETWORKS, QUICK, equal
from safetensors.numpy import save_file

from experiments import evaluation, pictures, registry
from experiments import folder as files
from experiments import run as run_module
from experiments.__main__ import main
from experiments.experiment import Experiment, from_config, to_config
from experiments.pictures import FINAL
from experiments.registry import EXPERIMENTS
from experiments.run import load_run
from gen import data, train, weights
from gen.core import UserError
from gen.models.autoregressive import Autoregressive
from gen.models.gan import GAN
from gen.models.vae import VAE
from gen.nets import MLP
from gen.optimize import Optimizer
from gen.trained import Trained

ROOT = Path(__file__).parent.parent
SMALL = ["--model.encoder.hidden", "16", "--model.decoder.hidden", "16", "--report-every", "20"]
SMALL += ["--checkpoint-every", "20", "--steps-per-dispatch", "1", "--sample-every", "100"]
STEPS = 400
OF_SEQUENCES = {"tables.png", "posterior.png", "sequences.png", "sequences.txt"}
OF_DOCUMENTS = {"words.txt", "completions.txt"}
NOT_OF_VAES = {"chains.png", "bracket.png", "filters.png"}
NOT_OF_VAES |= {"points.png", "denoising.png", "steps.png"}
DRAWN = set(FINAL) - OF_SEQUENCES - OF_DOCUMENTS - NOT_OF_VAES
CLEAN = "0" * 40  # a commit without later changes
FALLING = ["--model.optimizer.schedule", "cosine", "--sample-every", "0"]


def command(out: Path, *flags: str, steps: int = STEPS) -> list[str]:
    return ["train", "vae_digits", "--out", str(out), "--steps", str(steps), *SMALL, *flags]


STARTED: list[subprocess.Popen] = []
"""every process that `start` has started"""


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Kill the processes that a failed test left, which would slow down every later one."""
    yield
    while STARTED:
        with STARTED.pop() as process:  # closes its pipes
            process.kill()


def start(arguments: list[str], program: Sequence[str] = ("-m", "experiments"), **environment: str):
    process = subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": QUICK, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def run(arguments: list[str], **environment: str) -> tuple[int, str, str]:
    process = start(arguments, **environment)
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def wait_for(condition, process, seconds=120):
    """Wait until the condition holds; fail if the process ends first."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.001)


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def half_saved(folder: Path) -> list[Path]:
    return list((folder / "checkpoints").glob("*tmp*"))


def saving_again(folder: Path) -> bool:
    """Return whether a checkpoint is being saved while an earlier one is whole."""
    whole = [path for path in folder.glob("checkpoints/*") if path.name.isdigit()]
    return bool(whole and half_saved(folder))


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def checkpoint_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every array of the last checkpoint."""
    latest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    return json.loads((latest / "meta" / "metadata").read_text())["sha256"]


def assert_same_run(a: Path, b: Path) -> None:
    assert checkpoint_sums(a) == checkpoint_sums(b)
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Return the folder of a finished run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "reference"
    assert main(command(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def falling(tmp_path_factory):
    """Return the folder of a finished run of 20 steps, over which the learning rate falls."""
    folder = tmp_path_factory.mktemp("runs") / "falling"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "final_pictures", lambda *_: None)
        assert main(command(folder, *FALLING, steps=20)) == 0
    return folder


@pytest.fixture
def no_final_pictures(monkeypatch):
    """Let runs of this process end with the curves only: the other pictures take seconds."""
    monkeypatch.setattr(pictures, "final_pictures", lambda *_: None)


@pytest.fixture
def copy(reference, tmp_path):
    """Return a copy of the reference run that a test may change."""
    return Path(shutil.copytree(reference, tmp_path / "copy"))


def test_a_run_folder_is_complete(reference):
    names = {path.name for path in reference.iterdir()}
    assert {"config.json", "manifest.json", "metrics.jsonl", "checkpoints", "samples"} <= names
    config = json.loads((reference / "config.json").read_text())
    assert config["model"]["encoder"]["hidden"] == [16]
    assert config["model"]["shape"] == [8, 8, 1]
    manifest = json.loads((reference / "manifest.json").read_text())
    assert len(manifest["data"]["sha256"]) == 64
    (session,) = manifest["sessions"]
    assert {"command", "versions", "commit", "device", "flags"} <= session.keys()
    reports = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in reports] == list(range(20, STEPS + 1, 20))
    assert reports[-1]["loss"] < reports[0]["loss"]
    np.testing.assert_allclose(
        reports[-1]["loss"], reports[-1]["reconstruction"] + reports[-1]["kl"], rtol=1e-5
    )
    assert {path.name for path in (reference / "samples").glob("*.png")} >= DRAWN
    assert not list(reference.rglob("*.part"))


def test_repeating_a_finished_run_changes_nothing(copy, capsys):
    before = content(copy)
    assert main(command(copy)) == 0
    assert "is finished" in capsys.readouterr().out
    after = content(copy)
    del before["lock"], after["lock"]
    assert after == before


def test_a_finished_run_is_not_made_shorter(copy, capsys):
    before = content(copy)
    assert main(command(copy, steps=STEPS - 200)) == 0
    assert f"is finished: {STEPS} steps" in capsys.readouterr().out
    after = content(copy)
    del before["lock"], after["lock"]
    assert after == before


def test_pictures_that_a_kill_left_undrawn_are_drawn(copy, capsys):
    (copy / "samples" / "curves.png").unlink()
    assert main(command(copy)) == 0
    assert (copy / "samples" / "curves.png").exists()


def test_a_snapshot_that_a_kill_left_undrawn_is_drawn(copy, capsys):
    picture = copy / "samples" / f"step_{STEPS:07d}.png"
    drawn = picture.read_bytes()
    picture.unlink()
    assert main(command(copy)) == 0
    assert picture.read_bytes() == drawn


@pytest.mark.usefixtures("no_final_pictures")
def test_a_snapshot_that_a_kill_left_undrawn_is_drawn_when_the_run_goes_on(copy, capsys):
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    assert main(command(copy, "--sample-every", "20")) == 0
    assert f"resuming {copy} at step {STEPS - 20}" in capsys.readouterr().out
    assert (copy / "samples" / f"step_{STEPS - 20:07d}.png").exists()


@pytest.mark.usefixtures("no_final_pictures")
def test_a_run_killed_during_a_save_resumes_bit_for_bit(reference, tmp_path, capsys):
    folder = tmp_path / "killed"
    for _ in range(20):
        process = start(command(folder, "--sample-every", "0"))
        began = lines(folder)
        wait_for(lambda began=began: lines(folder) > began and saving_again(folder), process)
        process.kill()
        process.communicate()
        if half_saved(folder):
            break
    assert half_saved(folder), "no kill happened during a save"
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 999, "lo')  # as a kill during a write leaves it
    assert main(command(folder)) == 0
    assert "resuming" in capsys.readouterr().out
    assert not half_saved(folder)
    assert_same_run(folder, reference)


@pytest.mark.slow
def test_runs_killed_at_any_time_resume_bit_for_bit(reference, tmp_path):
    folder = tmp_path / "killed"
    for reports in (3, 8):
        process = start(command(folder))
        wait_for(lambda reports=reports: lines(folder) >= reports, process)
        process.kill()
        process.communicate()
    code, out, err = run(command(folder))
    assert code == 0, err
    assert "resuming" in out
    assert_same_run(folder, reference)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("no_final_pictures")
def test_a_signal_saves_the_current_step_and_ends_with_75(reference, tmp_path, capsys, number):
    folder = tmp_path / "stopped"
    flags = ("--checkpoint-every", "1000000", "--sample-every", "0")
    process = start(command(folder, *flags))
    wait_for(lambda: lines(folder) >= 4, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert f"{number.name}: saved step" in out
    assert "Traceback" not in err
    (step,) = (int(path.name) for path in (folder / "checkpoints").iterdir())
    assert 80 <= step < STEPS
    assert main(command(folder, *flags)) == 0
    assert f"resuming {folder} at step {step}" in capsys.readouterr().out
    assert_same_run(folder, reference)


def catches(process: subprocess.Popen, number: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> number - 1 & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system has no /proc")
def test_a_signal_before_training_ends_at_once_with_75(tmp_path):
    process = start(command(tmp_path / "early"))
    wait_for(lambda: catches(process, signal.SIGTERM), process)  # it is importing then
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (75, "SIGTERM: stopped\n")
    assert not (tmp_path / "early").exists()


@pytest.mark.slow
def test_a_start_that_was_killed_can_be_repeated(tmp_path, capsys):
    folder = tmp_path / "killed"
    (folder / "checkpoints").mkdir(parents=True)
    ended = f"gen-{socket.gethostname()}-999999999.part"
    for name in ("lock", f"manifest.json.{ended}", f"config.json.{ended}"):
        (folder / name).write_text("{")
    assert main(command(folder, steps=20)) == 0
    assert not list(folder.glob("*.part"))


HOLDER = """
import sys
from pathlib import Path
from experiments.folder import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_is_refused_with_its_process(copy, capsys):
    arguments = [sys.executable, "-c", HOLDER, str(copy)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, cwd=ROOT, **pipes) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        before = content(copy)
        assert main(command(copy, steps=STEPS + 20)) == 2
        process.kill()
    err = capsys.readouterr().err
    assert f"is in use by process {process.pid} on" in err
    assert len(err.splitlines()) == 1
    assert content(copy) == before


@pytest.mark.usefixtures("no_final_pictures")
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_resumed(reference, copy, capsys):
    for path in (copy / "checkpoints" / str(STEPS) / "tree").rglob("d/*"):  # of all arrays
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert main(command(copy)) == 0
    out, err = capsys.readouterr()
    assert f"skipped the checkpoint of step {STEPS}, which is damaged" in err
    assert f"at step {STEPS - 20}" in out
    assert_same_run(copy, reference)


@pytest.mark.slow
def test_a_run_that_is_made_longer_equals_one_that_was_long_at_first(reference, tmp_path):
    folder = tmp_path / "longer"  # the short one ends between two reports
    assert main(command(folder, steps=STEPS - 207)) == 0
    assert main(command(folder)) == 0
    assert_same_run(folder, reference)


def test_the_schedule_falls_over_the_steps_of_the_run(falling):
    """A run may be longer than the published one, and config.json has the schedule's length."""
    experiment = replace(EXPERIMENTS["nade_digits"], steps=5_000)
    assert experiment.model.optimizer.decay_steps is None
    assert experiment.for_run().model.optimizer.decay_steps == 5_000
    config = json.loads((falling / "config.json").read_text())
    assert config["model"]["optimizer"]["schedule"] == "cosine"
    assert config["model"]["optimizer"]["decay_steps"] == 20
    assert (
        EXPERIMENTS["dbn_binarized_mnist"].for_run().model.machine.optimizer.decay_steps == 50_000
    )


def test_a_run_with_a_falling_schedule_is_not_made_longer_or_shorter(falling, capsys):
    before = content(falling)
    for steps in (40, 10):
        assert main(command(falling, *FALLING, steps=steps)) == 2
        err = capsys.readouterr().err
        assert "a run of 20 steps, over which its learning rate falls to 0" in err
        assert "another --out" in err
        assert "--model.optimizer.schedule constant" in err
        assert len(err.splitlines()) == 1
    assert main(command(falling, *FALLING, steps=20)) == 0
    assert "is finished: 20 steps" in capsys.readouterr().out
    after = content(falling)
    del before["lock"], after["lock"]
    assert after == before


@pytest.mark.usefixtures("no_final_pictures")
def test_a_run_with_a_constant_schedule_is_made_longer(copy, capsys):
    assert main(command(copy, steps=STEPS + 20)) == 0
    assert f"resuming {copy} at step {STEPS}" in capsys.readouterr().out
    assert load_run(copy).step == STEPS + 20


@pytest.mark.slow
def test_another_interval_of_reports_starts_at_the_resume(tmp_path, capsys):
    def losses(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return {line["step"]: line["loss"] for line in map(json.loads, lines)}

    changed, fine = tmp_path / "changed", tmp_path / "fine"
    assert main(command(changed, steps=60)) == 0
    assert main(command(changed, "--report-every", "50", steps=100)) == 0
    assert main(command(fine, "--report-every", "10", steps=100)) == 0
    assert list(losses(changed)) == [20, 40, 60, 100]
    by_ten = losses(fine)
    expected = np.mean([by_ten[step] for step in (70, 80, 90, 100)])
    assert losses(changed)[100] == pytest.approx(expected, rel=1e-5)


DEEP = pytest.param("[" * 200_000, id="deep")


def test_a_damaged_log_is_named_and_left_alone(copy, capsys):
    path = copy / "metrics.jsonl"
    whole = path.read_bytes()
    for number, damaged in ((3, b'{"step": 60, \xff'), (3, b"3"), (1, b"")):
        lines = whole.split(b"\n")
        lines[number - 1] = damaged
        path.write_bytes(b"\n".join(lines))
        assert main(command(copy, steps=STEPS + 20)) == 2
        assert f"metrics.jsonl, line {number}, is damaged" in capsys.readouterr().err
        assert path.read_bytes() == b"\n".join(lines)


@pytest.mark.parametrize(
    "line",
    [
        '{"step": true, "loss": 1.0}',
        '{"step": 20, "loss": 1.0}',  # the step of the line before
        '{"step": 40}',
        '{"step": 40, "loss": "x"}',
        '{"step": 40, "loss": null}',
        '{"step": 40, "loss": NaN}',
        '{"step": 40, "loss": {"a": 1}}',
        '{"step": 40, "loss": [1.0, 2.0]}',  # of two seeds, after a line of one
        DEEP,
    ],
)
def test_a_line_of_the_log_is_a_report_of_finite_numbers(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 20, "loss": 2.0}}\n{line}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2, is damaged"):
        files.read_metrics(tmp_path)


READERS = {
    "config.json": files.read_config,
    "manifest.json": files.read_manifest,
    "metrics.jsonl": files.read_metrics,
}


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
@pytest.mark.parametrize(
    "text", ["[]", "3", "{}", "{", '{"experiment": "vae_digits"}', "\xff", DEEP]
)
def test_damaged_json_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        READERS[name](tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_a_folder_in_place_of_a_file_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{name} is damaged \(.*Is a directory"):
        READERS[name](tmp_path)
    assert not READERS[name](tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_commands_name_damaged_json(copy, capsys, name):
    (copy / name).write_text("{")
    for arguments in (command(copy), ["evaluate", str(copy)]):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert f"{name} is damaged" in err
        assert len(err.splitlines()) == 1


def part_of(content: Any, keys: tuple[Any, ...]) -> Any:
    """Return the part of a JSON value that is reached by the keys."""
    return functools.reduce(operator.getitem, keys, content)


def edit(path: Path, *keys: Any, **changes: Any) -> None:
    """Change the values in an object of a JSON file, which is reached by the keys."""
    content = json.loads(path.read_text())
    part_of(content, keys).update(changes)
    path.write_text(json.dumps(content))


def test_an_edited_config_is_named(copy, capsys):
    edit(copy / "config.json", "model", likelihood="gaussian")
    for arguments in (command(copy), ["evaluate", str(copy)]):
        assert main(arguments) == 2
        assert "config.json is damaged (it was changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "change", "named"),
    [
        ((), {"experiment": ["vae_digits"]}, r"the experiment \['vae_digits'\] is not in"),
        ((), {"steps": "300"}, "steps is '300', must be int"),
        ((), {"steps": True}, "steps is True, must be int"),
        ((), {"steps": -1}, "steps is -1, must be positive"),
        ((), {"seeds": 3}, r"seeds is 3, must be tuple\[int, ...\]"),
        ((), {"seeds": [0, "1"]}, r"seeds is \[0, '1'\], must be tuple"),
        ((), {"binarize": "no"}, "binarize is 'no', must be 'none', 'threshold', 'dynamic'"),
        ((), {"model": None}, "model is None, must be"),
        (("model",), {"likelihood": "be2noulli"}, "model.likelihood is 'be2noulli', must be 'b"),
        (("model",), {"latent": {"a": 1}}, "model.latent is {'a': 1}, must be int"),
        (("model",), {"encoder": [16]}, r"model.encoder is \[16\], must be Module"),
        (("model", "encoder"), {"hidden": ["16"]}, r"model.encoder.hidden is \['16'\], must be"),
        (("model", "optimizer"), {"learning_rate": None}, "rate is None, must be float"),
        (("model", "optimizer"), {"decay_steps": 2.5}, r"decay_steps is 2.5, must be int \| None"),
    ],
)
def test_a_value_of_config_json_has_the_type_of_its_field(keys, change, named):
    config = json.loads(json.dumps(to_config("vae_digits", EXPERIMENTS["vae_digits"])))
    part_of(config, keys).update(change)
    with pytest.raises(UserError, match=named):
        from_config(config, EXPERIMENTS)


def test_fields_that_an_older_version_lacked_take_their_defaults_and_are_named(copy, capsys):
    config = json.loads((copy / "config.json").read_text())
    del config["sha256"], config["validate_every"], config["model"]["likelihood"]
    (copy / "config.json").write_text(json.dumps(config))
    named = "config.json is of an older version: validate_every = 0, model.likelihood = bernoulli"
    assert main(command(copy)) == 0
    out, err = capsys.readouterr()
    assert "is finished" in out
    assert named in err
    assert load_run(copy).experiment.model.likelihood == "bernoulli"
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("sessions", [[], {}, [3], [{"command": "x", "device": 3, "commit": None}]])
def test_a_manifest_with_other_types_is_named(tmp_path, sessions):
    files.write_json(tmp_path / "manifest.json", {"data": {}, "sessions": sessions})
    with pytest.raises(UserError, match=r"manifest.json is damaged \(a session lacks"):
        files.read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--model.latent", "3"], "model.latent: 10 -> 3"),
        (["--seed", "5"], "seed: 0 -> 5"),
        (["--binarize", "threshold"], "binarize: dynamic -> threshold"),
    ],
)
def test_another_configuration_is_refused_with_the_fields(copy, capsys, flags, named):
    before = content(copy)
    assert main(command(copy, *flags)) == 2
    err = capsys.readouterr().err
    assert named in err
    assert len(err.splitlines()) == 1
    after = content(copy)
    del before["lock"], after["lock"]
    assert after == before


@pytest.mark.parametrize("name", ["thesis.txt", "film.1999.part"])
def test_a_folder_with_other_files_is_left_alone(tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    assert main(command(tmp_path)) == 2
    assert "is not empty and holds no run" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"


def test_changed_data_is_refused(copy, capsys):
    edit(copy / "manifest.json", "data", sha256="0" * 64)
    for arguments in (command(copy), ["evaluate", str(copy)]):
        assert main(arguments) == 2
        assert "was trained on other data" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    assert main(command(tmp_path / "nan", "--model.optimizer.learning-rate", "1e30")) == 1
    err = capsys.readouterr().err
    assert err.startswith("stopped: step 20: ")
    assert "loss" in err or "kl" in err or "reconstruction" in err
    assert "there is no checkpoint" in err
    assert len(err.splitlines()) == 1


def test_the_last_good_checkpoint_outlives_a_loss_that_is_not_finite(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "late"
    whole = train.train_step

    def fails_at_50(model, carry, data, order, seed, step, **options):
        carry = whole(model, carry, data, order, seed, step, **options)
        bad = {name: jnp.where(step == 50, jnp.nan, value) for name, value in carry.sums.items()}
        return carry._replace(sums=bad)

    monkeypatch.setattr(train, "train_step", fails_at_50)
    monkeypatch.setattr(train, "_programs", inspect.unwrap(train._programs))  # none is kept
    assert main(command(folder)) == 1
    assert "the checkpoint of step 40 stays" in capsys.readouterr().err
    assert sorted(int(p.name) for p in (folder / "checkpoints").iterdir()) == [20, 40]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "no command"),
        (["trian"], "unknown command 'trian': did you mean train"),
        (["train", "vae"], "did you mean vae_mnist or vae_digits"),
        (["train", "vae_digits", "--lr", "1"], "did you mean --model.optimizer.learning-rate"),
        (["train", "vae_digits", "--early-stop", "3"], "give --validate-every"),
        (["train", "--config", "nowhere.json"], "there is no file nowhere.json"),
        (["train", "vae_minst"], "did you mean vae_mnist"),
        (["bench", "vae_minst"], "did you mean vae_mnist"),
        (["train", "vae_digits", "--data", "mnits"], "unknown data set 'mnits'"),
        (["train", "vae_digits", "--steps", "0"], "steps is 0"),
        (["train", "vae_digits", "--batch-size", "5000"], "1297 training examples"),
        (["train", "vae_digits", "--seeds", "1", "1"], "repeat"),
        (["train", "vae_digits", "--model.latent", "0"], "must be positive"),
        (
            ["train", "vae_digits", "--devices", "50"],
            f"50 devices asked for, {jax.device_count()} present",
        ),
        (["train", "vae_digits", "--devices", "-1"], "devices is -1"),
        (["train", "vae_digits", "--processes", "2"], "need --coordinator"),
        (["train", "vae_digits", "--coordinator", "here"], "host:port"),
        (["bench", "vae_digits", "--json", "nowhere/x.json"], "make the folder first"),
        (["evaluate", "/etc/hostname"], "holds no run"),
        (["train", "vae_digits", "--out", "/proc/nowhere"], "cannot be written"),
        (["evaluate", "nowhere"], "holds no run"),
        (["sample", "nowhere"], "holds no run"),
    ],
)
def test_errors_of_the_users_are_one_line_and_2(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert named in err
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.usefixtures("eight_devices")
def test_a_batch_that_the_devices_do_not_divide_is_refused(capsys, tmp_path):
    assert main(["train", "vae_digits", "--devices", "3", "--out", str(tmp_path / "run")]) == 2
    assert "99 or 102" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help(arguments, capsys):
    assert main(arguments) == 0
    assert "usage: python -m experiments" in capsys.readouterr().out


def test_two_experiments_of_one_name_are_refused():
    with pytest.raises(UserError, match="two experiments are called gan_mnist"):
        registry.join([{"gan_mnist": Experiment(GAN())}, {"gan_mnist": Experiment(GAN())}])


def test_config_json_describes_every_experiment_and_nothing_internal():
    for name, registered in EXPERIMENTS.items():
        experiment = replace(registered, steps=registered.steps + 1, seed=3).for_run()
        config = json.loads(json.dumps(to_config(name, experiment)))
        assert from_config(config, EXPERIMENTS) == experiment
        keys = all_keys(config["model"])
        assert not keys & {"parent", "name", "out", "axis_name"}
    deep = Experiment(VAE(encoder=MLP((5, 6), "tanh"), optimizer=Optimizer(clip_norm=2.0)))
    config = json.loads(json.dumps(to_config("vae_mnist", deep)))
    assert from_config(config, EXPERIMENTS) == deep
    config["model"]["encoder"]["depth"] = 3
    with pytest.raises(UserError, match="MLP lacks the fields depth"):
        from_config(config, EXPERIMENTS)


def test_config_json_names_the_class_of_values_that_only_code_can_state():
    import optax

    experiment = Experiment(GAN(optimizer=optax.sgd(0.1)))
    config = json.loads(json.dumps(to_config("own", experiment)))
    assert list(config["model"]["optimizer"]) == ["class"]
    assert from_config(config, {"own": experiment}) == experiment
    del config["model"]["optimizer"]  # as an older version wrote it
    assert from_config(config, {"own": experiment}) == experiment
    user = Experiment(NETWORKS["vae_user_encoder"])
    assert to_config("own", user)["model"]["encoder"] == {"class": "conftest.UserEncoder"}


def all_keys(part: Any) -> set[str]:
    """Return the keys of an object and of all objects in it."""
    if not isinstance(part, dict):
        return set()
    return set(part).union(*map(all_keys, part.values()))


def test_the_summary_takes_kinds_that_have_brackets():
    fields = {"value": 84.5, "stderr": 0.2, "kind": "upper bound (AIS)", "n": 9, "settings": {}}
    table = evaluation.summary({"estimates": {"nll": fields}})
    assert list(table.columns[1].cells) == ["84.50 ± 0.20"]
    assert list(table.columns[2].cells) == ["upper bound (AIS)"]


def test_evaluate_and_sample(copy, capsys):
    assert main(["evaluate", str(copy)]) == 0
    record = json.loads((copy / "evaluation.json").read_text())
    assert record["experiment"] == "vae_digits"
    assert record["estimates"]["nll"]["kind"] == "upper bound"
    assert record["estimates"]["nll"]["n"] == 250
    assert record["seeds"] == [0]
    assert record["per_seed"][0]["nll"]["value"] == record["estimates"]["nll"]["value"]
    # 64·16+16 + 2·(16·10+10) + 10·16+16 + 16·64+64, twice a Dense each way
    assert record["parameters"] == 1040 + 340 + 176 + 1088
    assert record["train_seconds"] > 0
    assert main(["sample", str(copy), "--n", "7", "--seed", "3"]) == 0
    samples = np.load(copy / "samples" / "seed3_n7.npy")
    assert samples.shape == (7, 8, 8, 1)
    assert (copy / "samples" / "seed3_n7.png").stat().st_size > 0
    assert main(["sample", str(copy), "--n", "0"]) == 2


@dataclass(frozen=True)
class Labelled:
    """A model whose samples are their labels."""

    shape: tuple[int, ...] = (2,)
    classes: ClassVar[int] = 5

    def sample(self, state, key, n, label=None):
        label = jnp.full(n, 4.0) if label is None else label
        return jnp.broadcast_to(label[:, None], (n, *self.shape)) + state


def test_samples_are_drawn_from_the_labels_in_turn(tmp_path, digits, copy, capsys):
    run = Trained("labelled", Labelled(), jnp.zeros(()), 1, {}, digits.format)
    (array,) = evaluation.sample_run(run, 5, 0, (3, 1), tmp_path)
    assert array.name == "seed0_n5_label3-1.npy"
    assert np.load(array)[:, 0].tolist() == [3, 1, 3, 1, 3]
    (array,) = evaluation.sample_run(run, 5, 0, (), tmp_path)
    assert np.load(array)[:, 0].tolist() == [4] * 5
    with pytest.raises(UserError, match=r"label 5 is out of range: take 0 … 4"):
        evaluation.sample_run(run, 5, 0, (3, 5), tmp_path)
    assert main(["sample", str(copy), "--label", "3"]) == 2
    err = capsys.readouterr().err
    assert "takes no labels" in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_a_diffusion_model_is_sampled_with_labels(tmp_path, capsys):
    folder = tmp_path / "run"
    flags = ["--model.classes", "10", "--model.net.width", "8", "--model.net.layers", "1"]
    flags += ["--model.sample-steps", "5", "--steps", "10", "--sample-every", "0"]
    flags += ["--validate-every", "0"]
    assert main(["train", "diffusion_digits", *flags, "--out", str(folder)]) == 0
    assert main(["sample", str(folder), "--n", "4", "--label", "3"]) == 0
    assert np.load(folder / "samples" / "seed0_n4_label3.npy").shape == (4, 8, 8, 1)
    assert main(["sample", str(folder), "--label", "10"]) == 2
    assert "take 0 … 9" in capsys.readouterr().err


def trained_at(folder: Path, commit: str) -> None:
    edit(folder / "manifest.json", "sessions", 0, commit=commit)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Let results be published in a folder of the test's own, from a clean checkout."""
    monkeypatch.setattr(evaluation, "RESULTS", tmp_path / "results")
    for module in (evaluation, files):
        monkeypatch.setattr(module, "commit", lambda: CLEAN)
    return tmp_path / "results"


def test_publishing_writes_record_pictures_and_weights(copy, results, capsys, monkeypatch):
    trained_at(copy, CLEAN)
    assert main(["evaluate", str(copy), "--publish"]) == 0
    published = json.loads((results / "vae_digits.json").read_text())
    assert published == json.loads((copy / "evaluation.json").read_text())
    names = {path.name for path in (results / "vae_digits").iterdir()}
    assert names == DRAWN | {"weights.safetensors"}
    assert not (results / ".gitignore").exists()

    run, path = load_run(copy), results / "vae_digits" / "weights.safetensors"
    about = weights.header(path)
    assert (about["experiment"], about["step"]) == ("vae_digits", STEPS)
    assert about["arrays"]["params/decoder/Dense_0/kernel"] == "float16[10, 16]"
    loaded = weights.load(path)
    assert equal(loaded._replace(opt_state=()), weights.halved(run.state)._replace(opt_state=()))
    first = jax.jit(run.experiment.model.init)(jax.random.key(0))
    assert equal(loaded.opt_state, first.opt_state)
    with pytest.raises(UserError, match=r"float32\[10, 16\] and not float32\[3, 16\] \(and 4 more"):
        weights.load(path, replace(run.experiment.model, latent=3))
    with pytest.raises(UserError, match=r"Dense_0/bias is absent and not float32\[3\]"):
        weights.load(path, GAN(shape=(8, 8, 1), generator=MLP((3,)), discriminator=MLP((3,))))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read as weights"):
        weights.load(path, run.experiment.model)
    save_file({}, path, metadata={"gen": "not JSON"})
    with pytest.raises(UserError, match="cannot be read as weights"):
        weights.load(path, run.experiment.model)

    record = json.loads((copy / "evaluation.json").read_text())
    monkeypatch.setattr(evaluation, "HALF_SHIFT", 0.0)  # the estimates move by more
    for limit, listed in ((1_000, ["vae_digits/weights.safetensors"]), (10**9, [])):
        monkeypatch.setattr(evaluation, "LARGEST_COMMITTED", limit)
        evaluation.publish(run, record)
        assert (results / ".gitignore").read_text().splitlines() == listed
    loaded = weights.load(path)
    assert equal(loaded._replace(opt_state=()), run.state._replace(opt_state=()))


@pytest.mark.parametrize("name", ["vae_batch_norm", "gan_batch_norm"])
def test_weights_hold_batch_statistics(name, tmp_path):
    model = replace(NETWORKS[name], shape=(8, 8, 1))
    state = jax.jit(lambda key: jax.tree.map(lambda leaf: leaf + 1, model.init(key)))(
        jax.random.key(3)
    )
    loaded = saved_and_loaded(state, model, tmp_path / "weights")
    assert_same_but_for_the_optimizer(state, loaded)


def test_weights_are_loaded_into_a_model_whose_schedule_has_no_length(falling, tmp_path):
    run = load_run(falling)
    model = replace(run.experiment.model, optimizer=Optimizer(schedule="cosine"))
    loaded = saved_and_loaded(run.state, model, tmp_path / "weights")
    assert_same_but_for_the_optimizer(run.state, loaded)


def saved_and_loaded(state: Any, model: Any, path: Path) -> Any:
    weights.save(path, state, "name", 1)
    first = path.read_bytes()
    weights.save(path, state, "name", 1)
    assert path.read_bytes() == first, "equal states give unequal files"
    return weights.load(path, model)


def assert_same_but_for_the_optimizer(state: Any, loaded: Any) -> None:
    assert jax.tree.structure(state) == jax.tree.structure(loaded)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), after in zip(leaves, jax.tree.leaves(loaded), strict=True):
        if "opt_state" not in jax.tree_util.keystr(path):
            np.testing.assert_array_equal(leaf, after)


@pytest.mark.parametrize(
    ("trained", "evaluated", "named"),
    [
        (f"{CLEAN}-dirty", CLEAN, "train it at one commit"),
        (f"{CLEAN} and {'1' * 40}", CLEAN, "train it at one commit"),
        (CLEAN, f"{CLEAN}-dirty", "commit its changes, then publish"),
        (CLEAN, None, "commit its changes, then publish"),
    ],
)
def test_publishing_refuses_changed_checkouts(
    copy, results, capsys, monkeypatch, trained, evaluated, named
):
    monkeypatch.setattr(files, "commit", lambda: evaluated)
    trained_at(copy, trained)
    assert main(["evaluate", str(copy), "--publish"]) == 2
    err = capsys.readouterr().err
    assert named in err
    assert len(err.splitlines()) == 1
    assert not results.exists()
    assert not (copy / "evaluation.json").exists(), "the refusal came after the evaluation"


def test_only_the_test_split_of_a_finished_run_is_published(copy, results, capsys):
    trained_at(copy, CLEAN)
    assert main(["evaluate", str(copy), "--split", "validation", "--publish"]) == 2
    assert "only the test split is published" in capsys.readouterr().err
    config = files.read_config(copy)
    assert config
    files.write_config(copy, config.name, replace(config.experiment, steps=STEPS + 1))
    assert main(["evaluate", str(copy), "--publish"]) == 2
    assert f"stands at step {STEPS} of {STEPS + 1}" in capsys.readouterr().err


def test_a_run_that_stopped_early_is_finished(copy):
    trained_at(copy, CLEAN)
    unfinished = load_run(copy)._replace(step=20)
    with pytest.raises(UserError, match="finish it first"):
        evaluation.check_publishable(unfinished, "test", CLEAN)
    evaluation.check_publishable(unfinished._replace(stopped_early=True), "test", CLEAN)


def test_results_do_not_make_a_checkout_dirty(tmp_path, monkeypatch):
    def git(*arguments):
        user = ["-c", "user.name=a", "-c", "user.email=b"]
        subprocess.run(["git", *user, *arguments], cwd=tmp_path, check=True, capture_output=True)

    code, result = tmp_path / "experiments/folder.py", tmp_path / "experiments/results/RESULTS.md"
    monkeypatch.setattr(files, "__file__", str(code))
    result.parent.mkdir(parents=True)
    assert not files.is_clean(files.commit())
    git("init")
    for path in (code, result):
        path.write_text("first")
    git("add", ".")
    git("commit", "-m", "first")
    assert files.is_clean(files.commit())
    result.write_text("second")
    assert files.is_clean(files.commit())
    code.write_text("second")
    assert str(files.commit()).endswith("-dirty")
    assert not files.is_clean(files.commit())
    code.write_text("first")
    (tmp_path / "notes.txt").write_text("an untracked file that no run imports")
    assert files.is_clean(files.commit())
    (tmp_path / "gen").mkdir()
    (tmp_path / "gen/new.py").write_text("an untracked module")
    assert not files.is_clean(files.commit())


@pytest.mark.slow
def test_several_seeds_at_once(tmp_path, capsys):
    folder = tmp_path / "seeds"
    assert main(command(folder, "--seeds", "0", "4", steps=40)) == 0
    assert main(["evaluate", str(folder)]) == 0
    record = json.loads((folder / "evaluation.json").read_text())
    values = [seed["nll"]["value"] for seed in record["per_seed"]]
    assert record["seeds"] == [0, 4]
    assert record["estimates"]["nll"]["value"] == pytest.approx(np.mean(values))
    stderr = np.std(values, ddof=1) / np.sqrt(2)
    assert record["estimates"]["nll"]["settings"]["seeds_stderr"] == pytest.approx(stderr)
    alone = tmp_path / "alone"
    assert main(command(alone, "--seed", "4", steps=40)) == 0
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    last_alone = json.loads((alone / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"][1] == pytest.approx(last_alone["loss"], rel=1e-5)


@pytest.mark.slow
def test_the_bar_shows_step_speed_and_terms_on_a_terminal_and_nothing_elsewhere(
    tmp_path, capsys, monkeypatch
):
    assert main(command(tmp_path / "quiet", steps=60)) == 0
    printed = capsys.readouterr().out.splitlines()
    begins = [line.split()[0] for line in printed]
    assert begins == ["training", "compiling", "drawing", "60", "next:"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(command(tmp_path / "shown", steps=60)) == 0
    out = capsys.readouterr().out
    for part in ("60/60", "steps/s", "loss", "reconstruction", "kl"):
        assert part in out


@pytest.mark.usefixtures("no_final_pictures")
def test_an_autoencoder_does_not_sample(tmp_path, capsys):
    folder = tmp_path / "ae"
    small = ["--model.encoder.hidden", "8", "4", "--model.decoder.hidden", "8", "--steps", "20"]
    assert main(["train", "ae_digits", "--out", str(folder), *small]) == 0
    assert main(["sample", str(folder)]) == 2
    assert "Autoencoder of ae_digits has no method sample" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("eight_devices")
def test_a_mesh_trains_as_one_device_does(tmp_path, capsys):
    one, many = tmp_path / "one", tmp_path / "many"
    assert main(command(one, "--batch-size", "96", steps=40)) == 0
    assert main(command(many, "--batch-size", "96", "--devices", "8", steps=40)) == 0
    for a, b in zip(
        (one / "metrics.jsonl").read_text().splitlines(),
        (many / "metrics.jsonl").read_text().splitlines(),
        strict=True,
    ):
        assert json.loads(a) == pytest.approx(json.loads(b), rel=1e-5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start_two(*commands: list[str]) -> list[subprocess.Popen]:
    """Start two processes that train together."""
    flags = ["--processes", "2", "--coordinator", f"localhost:{free_port()}"]
    return [start([*commands[i % len(commands)], *flags, "--process", str(i)]) for i in range(2)]


def in_two_processes(*commands: list[str]) -> list[tuple[int, str]]:
    """Return the exit codes and errors of two processes that train together."""
    ends = []
    for process in start_two(*commands):
        _, err = process.communicate(timeout=120)
        assert "Traceback" not in err, err
        ends.append((process.returncode, err))
    return ends


@pytest.mark.slow
def test_an_error_in_one_of_two_processes_ends_both(tmp_path):
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("mine")
    for code, err in in_two_processes(command(strange)):
        assert (code, "holds no run" in err) == (2, True)
    folder = tmp_path / "different"
    for other in (command(folder, "--seed", "5"), command(tmp_path / "elsewhere")):
        for code, err in in_two_processes(command(folder), other):
            assert (code, "different flags" in err) == (2, True)


@pytest.mark.slow
def test_the_death_of_one_of_two_processes_ends_the_other_with_75(tmp_path):
    folder = tmp_path / "run"
    # No checkpoint is saved meanwhile: JAX aborts a process that waits for another one's save.
    flags = ("--batch-size", "96", "--checkpoint-every", str(10**6))
    lead, other = start_two(command(folder, *flags, steps=10**6))
    wait_for(lambda: lines(folder) >= 2, lead)
    other.kill()
    _, err = lead.communicate(timeout=200)
    other.communicate()
    assert lead.returncode == 75, err
    assert "another process has ended" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["_by_lead", "open_checkpoints"])
def test_the_death_of_one_of_two_processes_before_training_ends_the_other_with_75(tmp_path, moment):
    program = f"import os, sys; from experiments import __main__, run; run.{moment} = "
    program += "lambda *_: os._exit(1); __main__.main(sys.argv[1:])"
    arguments = [*command(tmp_path / "run"), "--processes", "2"]
    arguments += ["--coordinator", f"localhost:{free_port()}", "--process"]
    other = start([*arguments, "1"], ("-c", program))
    lead = start([*arguments, "0"])
    _, err = lead.communicate(timeout=200)
    assert other.wait(timeout=10) == 1
    assert lead.returncode == 75, err
    assert "another process has ended" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_nobody_at_the_coordinator_is_an_error_after_the_time_limit():
    script = "import os, sys; from gen import parallel\n"
    script += "try: parallel.join(sys.argv[1], 2, 1, seconds=1)\n"
    script += "except Exception as error: print(error, flush=True); os._exit(2)"
    arguments = [sys.executable, "-c", script, f"localhost:{free_port()}"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "process 1 of 2 did not reach the others" in done.stdout
    assert "(waited for 1 s)" in done.stdout


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    together = tmp_path / "together"
    for code, err in in_two_processes(command(together, "--batch-size", "96", steps=40)):
        assert code == 0, err
    alone = tmp_path / "alone"
    assert main(command(alone, "--batch-size", "96", steps=40)) == 0
    for a, b in zip(
        (together / "metrics.jsonl").read_text().splitlines(),
        (alone / "metrics.jsonl").read_text().splitlines(),
        strict=True,
    ):
        assert json.loads(a) == pytest.approx(json.loads(b), rel=1e-5)
    manifest = json.loads((together / "manifest.json").read_text())
    assert manifest["sessions"][0]["processes"] == 2


@pytest.mark.slow
def test_tensorboard_events_hold_the_metrics(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    folder = tmp_path / "events"
    assert main(command(folder, "--logger", "tensorboard", steps=40)) == 0
    (events,) = (folder / "tensorboard").iterdir()
    for name in (b"loss", b"kl", b"reconstruction"):
        assert name in events.read_bytes()


class FakeWandb:
    """The functions of the package wandb that a run calls, with what they were given."""

    def __init__(self):
        self.began, self.logged, self.finished = [], [], 0

    class Error(Exception):
        pass

    def init(self, *, project, name, id, config, allow_val_change, dir, resume):
        self.began.append({"name": name, "id": id, "config": config, "resume": resume})
        return self

    def log(self, metrics, *, step):
        self.logged.append((step, metrics))

    def finish(self):
        self.finished += 1


def test_wandb_gets_the_metrics_and_a_resumed_run_goes_on(copy, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (20, 40):
        with files.open_log(copy, [], "wandb") as log:
            log(step, {"loss": np.array([1.0, 2.0])})
    assert wandb.logged == [(20, {"loss": 1.5}), (40, {"loss": 1.5})]
    first, second = wandb.began
    assert first == second
    assert (first["name"], first["resume"]) == ("copy", "allow")
    assert first["config"]["experiment"] == "vae_digits"
    assert wandb.finished == 2


@pytest.mark.parametrize(
    ("logger", "module"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")]
)
def test_a_logger_that_is_not_installed_names_its_extra_and_leaves_nothing(
    logger, module, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(command(tmp_path / "run", "--logger", logger)) == 2
    assert f"pip install -e '.[{logger}]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_config_of_a_run_stands_for_the_flags(reference, copy, falling, capsys):
    """A learning rate that fell over all steps falls over all steps of the other run."""
    config = str(reference / "config.json")
    assert main(["train", "--config", config, "--out", str(copy)]) == 0
    assert f"{copy} is finished" in capsys.readouterr().out
    assert (
        main(["train", "vae_digits", f"--config={config}", "--out", str(copy), "--seed", "1"]) == 2
    )
    assert "holds another run (--seed: 0 -> 1)" in capsys.readouterr().err
    assert main(["train", "gan_digits", "--config", config, "--out", str(copy)]) == 2
    assert f"{config} is of vae_digits, not of gan_digits" in capsys.readouterr().err
    content = json.loads((falling / "config.json").read_text())
    assert content["model"]["optimizer"]["decay_steps"] == 20
    edited = copy / "edited.json"
    edited.write_text(json.dumps({**content, "batch_size": 7}))
    template = files.read_template(edited).experiment
    assert template.batch_size == 7
    assert template.model.optimizer.decay_steps is None
    assert template.model.optimizer.schedule == "cosine"


def test_where_there_is_no_terminal_a_line_tells_the_progress_every_30_seconds(capsys):
    time = iter([0.0, 10.0, 31.0, 40.0, 61.0])
    show = run_module._line_writer(0, 4_000, lambda: next(time))
    show(1, None)
    show(500, {"loss": np.array(2.5)})
    show(1_241, None)
    show(1_500, {"loss": np.array([1.0, 2.0]), "kl": np.array([3.0, 3.0])})
    show(2_441, None)
    assert capsys.readouterr().out.splitlines() == [
        "step 1,241 of 4,000  loss 2.5  40 steps/s  1 min 9 s left",
        "step 2,441 of 4,000  loss 1.5 ± 0.5  kl 3 ± 0  40 steps/s  39 s left",
    ]
    assert run_module.duration(3 * 3600 + 125) == "3 h 2 min"


NADE = ["train", "nade_digits", "--model.net.hidden", "4", "--report-every", "10"]
NADE += ["--checkpoint-every", "10", "--sample-every", "0"]
NADE += ["--model.optimizer.schedule", "constant"]


def evaluated(folder):
    assert main(["evaluate", str(folder)]) == 0
    return json.loads((folder / "evaluation.json").read_text())


@pytest.mark.slow
def test_the_best_state_on_validation_is_evaluated_also_after_a_resume(
    tmp_path, capsys, monkeypatch
):
    """Validation prefers unlikely data here, so that an early state is the best."""

    def log_prob(self, state, batch, key):
        return self.log_prob(state, batch)

    monkeypatch.setattr(Autoregressive, "objective", log_prob)
    flags = ["--validate-every", "20", "--model.optimizer.learning-rate", "0.03"]
    flags += ["--seeds", "0", "1"]
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert main([*NADE, *flags, "--steps", "80", "--out", str(whole)]) == 0
    for steps in ("40", "80"):
        assert main([*NADE, *flags, "--steps", steps, "--out", str(halved)]) == 0
    log = (whole / "metrics.jsonl").read_text()
    assert (halved / "metrics.jsonl").read_text() == log
    lines = [json.loads(line) for line in log.splitlines()]
    seen = {line["step"]: line["validation"] for line in lines if "validation" in line}
    assert list(seen) == [20, 40, 60, 80]
    best = [min(seen, key=lambda step, s=seed: seen[step][s]) for seed in range(2)]
    assert best == [20, 20]
    record = evaluated(whole)
    assert record["chosen_step"] == best
    assert record["per_seed"] == evaluated(halved)["per_seed"]
    for seed, of_seed in enumerate(record["per_seed"]):
        # Another split and another binarisation, yet near the value at the best step.
        assert abs(of_seed["nll"]["value"] + seen[best[seed]][seed]) < 3
    assert main([*NADE, "--validate-every", "10", "--seeds", "0", "1", "--out", str(whole)]) == 2
    assert "--validate-every: 20 -> 10" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("no_final_pictures")
def test_a_run_that_stops_early_stops_at_the_same_step_when_resumed(tmp_path, capsys, monkeypatch):
    """Validation prefers unlikely data here, so that the first state that it sees is the best."""

    def log_prob(self, state, batch, key):
        return self.log_prob(state, batch)

    monkeypatch.setattr(Autoregressive, "objective", log_prob)
    flags = [*NADE, "--validate-every", "10", "--model.optimizer.learning-rate", "0.03"]
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    longer = ["--early-stop", "2", "--steps", "90"]
    assert main([*flags, *longer, "--out", str(whole)]) == 0
    assert "stopped early: 2 validations brought no better state" in capsys.readouterr().out
    assert main([*flags, "--early-stop", "2", "--steps", "20", "--out", str(halved)]) == 0
    assert main([*flags, *longer, "--out", str(halved)]) == 0
    assert_same_run(whole, halved)
    assert lines(whole) == 3  # at the steps 10, 20 and 30
    assert files.read_json(whole / "manifest.json", "stopped_early") is not None
    capsys.readouterr()
    assert main([*flags, *longer, "--out", str(halved)]) == 0
    assert "is finished: the run stopped early after 30 steps" in capsys.readouterr().out
    stopped = load_run(halved)
    assert (stopped.step, stopped.stopped_early) == (30, True)
    assert main([*flags, "--early-stop", "3", "--steps", "90", "--out", str(halved)]) == 0
    assert lines(halved) == 4  # one more validation
    manifest = files.read_json(halved / "manifest.json")
    assert manifest
    assert manifest["stopped_early"] == 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "saved"),
    [("compiling", "nothing is saved yet"), ("drawing samples of step 20", "step 20 is saved")],
)
def test_a_signal_ends_a_run_at_once_while_it_compiles_or_draws(moment, saved, tmp_path):
    folder = tmp_path / "stopped"
    process = start(command(folder, "--sample-every", "20", "--no-keep-programs", steps=40))
    assert process.stdout
    while moment not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert saved in err
    assert len(err.splitlines()) == 1
    code, _, err = run(command(folder, "--sample-every", "20", steps=40))
    assert code == 0, err


@pytest.mark.slow
def test_before_the_first_validation_the_last_state_is_used(tmp_path, capsys):
    folder = tmp_path / "run"
    flags = ["--validate-every", "50", "--steps", "30", "--model.optimizer.learning-rate", "0.03"]
    assert main([*NADE, *flags, "--out", str(folder)]) == 0
    record = evaluated(folder)
    assert record["chosen_step"] == 30
    assert record["estimates"]["nll"]["value"] < 35  # at the start it is 64 log 2 = 44


def test_vectors_are_trained_evaluated_sampled_and_drawn_as_histograms(
    tmp_path, capsys, monkeypatch
):
    x = np.random.RandomState(0).randint(0, 2, (60, 7)).astype(np.float32)
    np.savez(tmp_path / "uci_dna.npz", train_data=x, valid_data=x[:20], test_data=x[:30])
    digest = hashlib.sha256((tmp_path / "uci_dna.npz").read_bytes()).hexdigest()
    monkeypatch.setitem(
        data.FILES, "uci_dna", data.File("uci_dna.npz", "http://127.0.0.1:9/", digest)
    )
    monkeypatch.setenv("GEN_DATA_DIR", str(tmp_path))
    folder = tmp_path / "run"
    flags = ["--batch-size", "60", "--steps", "3", "--validate-every", "1"]
    assert main(["train", "mixture_uci_dna", *flags, "--out", str(folder)]) == 0
    assert evaluated(folder)["data"] == "uci_dna"
    assert main(["sample", str(folder), "--n", "5"]) == 0
    assert np.load(folder / "samples" / "seed0_n5.npy").shape == (5, 7)
    drawn = {path.name for path in (folder / "samples").glob("*.png")}
    assert drawn == {"curves.png", "samples.png"}


EARTHQUAKES = ["train", "hmm_earthquakes", "--steps", "4", "--report-every", "2"]
EARTHQUAKES += ["--model.start", "random", "--seeds", "0", "1", "2"]


@pytest.mark.slow
def test_of_restarts_the_best_on_validation_stands_for_all(tmp_path, capsys):
    folders = tmp_path / "restarts", tmp_path / "seeds"
    flags = ["--validate-every", "2"]
    assert main([*EARTHQUAKES, *flags, "--restarts", "--out", str(folders[0])]) == 0
    assert main([*EARTHQUAKES, *flags, "--out", str(folders[1])]) == 0
    kept, every = evaluated(folders[0]), evaluated(folders[1])
    values = [of_seed["total_nll"]["value"] for of_seed in every["per_seed"]]
    best = int(np.argmin(values))  # its validation split is its test split
    assert kept["restarts"] == [0, 1, 2]
    assert kept["seeds"] == [best]
    assert kept["estimates"]["total_nll"]["value"] == values[best]
    assert len(every["seeds"]) == 3
    assert kept["estimates"]["total_nll"]["stderr"] is None  # one series gives none
    drawn = {path.name for path in (folders[0] / "samples").iterdir()}
    assert drawn == OF_SEQUENCES - {"sequences.txt"} | {"curves.png"}
    assert main([*EARTHQUAKES, "--restarts", "--out", str(tmp_path / "none")]) == 2
    assert "give a --validate-every" in capsys.readouterr().err


@pytest.mark.slow
def test_letters_are_sampled_as_text(tmp_path, capsys, monkeypatch):
    """The text is the test's own."""
    text = ("The quick brown fox, jumps over the lazy dog!\n" * 200).encode()
    (tmp_path / "tinyshakespeare.txt").write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    file = data.File("tinyshakespeare.txt", "http://127.0.0.1:9/", digest)
    monkeypatch.setitem(data.FILES, "letters", file)
    monkeypatch.setenv("GEN_DATA_DIR", str(tmp_path))
    folder = tmp_path / "run"
    flags = ["--batch-size", "8", "--steps", "4", "--report-every", "2", "--validate-every", "2"]
    flags += ["--seeds", "0"]
    assert main(["train", "hmm_letters_2", *flags, "--out", str(folder)]) == 0
    record = evaluated(folder)
    bits, nats = (record["estimates"][name]["value"] for name in ("bits", "nll"))
    assert np.isclose(bits, nats / np.log(2))
    lines = (folder / "samples" / "sequences.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["test", "sampled"]
    assert "quick brown fox jumps over the lazy dog the" in lines[0]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["hmm_earthquakes", "--data", "digits", "--model.emission.prior", "-1"], "prior is -1.0"),
        (["vae_digits", "--data", "earthquakes"], "VAE does not take"),
        (["hmm_binarized_mnist", "--data", "earthquakes"], "has counts, not levels"),
        (["nade_digits", "--validate-every", "33"], "take a multiple of --report-every"),
        (["nade_digits", "--binarize", "none"], "has 17 levels, the model 2"),
        (["mixture_uci_dna", "--data", "digits"], "has 17 levels, the model 2"),
        (
            ["diffusion_toy", "--data", "digits"],
            "take Dequantized(GaussianDiffusion(...), levels=17",
        ),
        (["nade_digits", "--data", "eight_gaussians"], "--binarize none"),
        (
            ["nade_digits", "--data", "regimes", "--binarize", "none"],
            "Autoregressive does not take",
        ),
        (
            ["mixture_uci_dna", "--data", "eight_gaussians"],
            "has continuous values and Mixture models",
        ),
        (["hmm_regimes", "--data", "digits"], "take Dequantized(HMM(...), levels=17)"),
        (["hmm_regimes", "--data", "earthquakes"], "has counts, not levels"),
        (["hmm_earthquakes", "--data", "digits"], "HMM models counts and digits has 17 levels"),
        (["diffusion_digits", "--model.classes", "9"], "has labels up to 9, the model 9 classes"),
        (["ae_digits", "--model.optimizer.b1", "0.5"], "b1 has no meaning for rmsprop"),
        (["gan_digits", "--model.pack", "2", "--validate-every", "1000"], "GAN has no objective"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, named, tmp_path, capsys):
    assert main(["train", *flags, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_models_and_probes_get_the_labels_and_codes_that_they_need(digits):
    splits: Any = {name: {"x": split["x"]} for name, split in digits.splits.items()}
    unlabelled = replace(digits, **splits)
    cases = [
        (Experiment(Labelled()), digits, "has labels up to 9, the model 5 classes"),
        (Experiment(Labelled()), unlabelled, "has no labels, which the model takes"),
        (Experiment(GAN(), probe=True), digits, "has no codes, from which --probe predicts"),
        (Experiment(VAE(), probe=True), unlabelled, "has no labels, which --probe predicts"),
    ]
    for experiment, dataset, named in cases:
        with pytest.raises(UserError, match=named):
            experiment.on(dataset)
