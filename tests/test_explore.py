"""`explore`: the choice of models, the plan of a training, and the command on small files."""

import math
import os
import shlex
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_report import check_page, show_few

from experiments import explore, interruption
from experiments.__main__ import main, parse_training
from experiments.experiment import to_config
from experiments.explore import Flags, Pace, Plan
from experiments.fitting import Candidate, candidates, fit
from experiments.interruption import Interruption
from experiments.registry import EXPERIMENTS
from gen import data
from gen.data import Dataset, Reading

READING = Reading(label_column="class")


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A table of 150 rows with four columns and a label."""
    random = np.random.default_rng(0)
    x = random.normal(size=(150, 4)) @ random.normal(size=(4, 4))
    lines = [",".join([*(f"{value:.4f}" for value in row), "ab"[int(row[0] > 0)]]) for row in x]
    path = tmp_path_factory.mktemp("table") / "table.csv"
    path.write_text("\n".join(["p,q,r,s,class", *lines]))
    return path


@pytest.fixture(scope="module")
def dataset(table) -> Dataset:
    return data.load(str(table), reading=READING)


def of_names(dataset: Dataset, *names: str, likelihood: bool = True) -> list[Candidate]:
    return [Candidate(name, {}, EXPERIMENTS[name], 1_000, likelihood) for name in names]


@pytest.mark.slow
def test_models_of_different_families_are_chosen(dataset, table):
    choice = explore.choose(dataset, candidates(dataset, str(table), READING), str(table), READING)
    names = [each.name for each in choice.chosen]
    families = [each.experiment.model.family for each in choice.chosen]
    assert {"vae_odds", "rbm_odds", "gaussians_odds", "diffusion_odds"} <= {*names}
    assert len({*families}) == len(families) <= explore.MOST
    reasons = dict(line.split(": ", 1) for line in choice.left_out)
    assert "takes values in [0, 1]" in reasons["GAN"]
    assert reasons["classifier"] == "it is no generative model"
    everything = {each.model.family for each in EXPERIMENTS.values()}
    assert {*reasons} | {*families} == everything


def test_a_likelihood_comes_first_and_a_demonstration_never(dataset):
    few = of_names(dataset, "vae_odds") + of_names(dataset, "vae_digits", likelihood=False)
    few += of_names(dataset, "gan_collapsed_digits")
    choice = explore.choose(dataset, few, "table.csv", READING)
    # One family alone: a second model of it is taken, too.
    assert [each.name for each in choice.chosen] == ["vae_odds", "vae_digits"]


def test_seven_families_are_one_too_many(dataset):
    names = ("vae_odds", "rbm_odds", "gaussians_odds", "diffusion_odds", "ae_digits", "gan_digits")
    choice = explore.choose(
        dataset, of_names(dataset, *names, "pixelcnn_digits"), "table.csv", READING
    )
    assert len(choice.chosen) == 6
    assert sum("enough for 6 families" in line for line in choice.left_out) == 1


@pytest.fixture(scope="module")
def vae(dataset, table) -> Candidate:
    own = replace(EXPERIMENTS["vae_odds"], data=str(table), reading=READING)
    return Candidate("vae_odds", {}, fit("vae_odds", own, dataset), 1_000, True)


def plan_or_reason(vae, dataset, table, pace: Pace, seconds: float):
    flags = Flags(str(table), READING, seed=3)
    return explore.plan_of(vae, dataset, flags, pace, time.monotonic() + seconds, Path("out"))


def plan(*arguments) -> Plan:
    planned = plan_or_reason(*arguments)
    assert isinstance(planned, Plan)
    return planned


def test_a_fast_model_has_its_registered_steps(vae, dataset, table):
    planned = plan(vae, dataset, table, Pace(1.0, 1e-4), 60)
    assert planned.experiment.steps == EXPERIMENTS["vae_odds"].steps
    assert planned.experiment.seed == 3
    assert planned.experiment.early_stop == explore.PATIENCE
    assert planned.experiment.validate_every == planned.experiment.steps // explore.REPORTS


def test_the_steps_of_a_slow_model_fit_into_the_time(vae, dataset, table):
    pace = Pace(compiling=4.0, step=0.1)
    planned = plan(vae, dataset, table, pace, 60)
    steps = planned.experiment.steps
    blocks = math.ceil(len(dataset.validation["x"]) / planned.experiment.batch_size)
    training = 0.1 * (steps + explore.REPORTS * blocks)
    assert 25 < training < explore.MARGIN * (0.6 * 60 - 4)
    assert steps % planned.experiment.validate_every == 0


def test_a_model_that_is_too_slow_is_left_out_with_the_reason(vae, dataset, table):
    reason = plan_or_reason(vae, dataset, table, Pace(4.0, 10.0), 60)
    assert reason == ("0 of its 1,500 steps fit into the time, beside 4 s for compiling")


def test_the_command_of_a_plan_makes_the_same_run(vae, dataset, table, tmp_path, monkeypatch):
    """The flags are parsed, and give the experiment that was planned."""
    monkeypatch.chdir(tmp_path)
    planned = plan(vae, dataset, table, Pace(4.0, 0.1), 60)
    words = shlex.split(planned.command)
    assert words[:4] == ["python", "-m", "experiments", "train"]
    name, training = parse_training("train", words[4:])
    assert training.options.out == Path("out")
    again = fit(name, training.experiment, dataset)
    assert to_config(name, again) == to_config(name, planned.experiment)


def test_the_command_of_a_run_of_restarts_makes_one_of_a_single_seed(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("the cat sat on the mat. " * 400)
    story = data.load(str(path))
    found = {each.name: each for each in candidates(story, str(path), Reading())}
    flags = Flags(str(path), Reading())
    end = time.monotonic() + 60
    planned = explore.plan_of(found["hmm_letters"], story, flags, Pace(1.0, 0.01), end, Path("out"))
    assert not isinstance(planned, str)
    _, training = parse_training("train", shlex.split(planned.command)[4:])
    assert training.experiment.all_seeds == planned.experiment.all_seeds == (0,)
    assert not training.experiment.restarts


@pytest.mark.parametrize("before", ["", explore.OVER])
def test_a_patient_process_goes_on_after_the_first_signal(before, monkeypatch):
    ended = []
    monkeypatch.setattr(interruption, "leave", lambda message, code=75: ended.append(message))
    signals = Interruption(before, patient=True, say=lambda text: None)
    signals.begin("compiling")
    signals.act("SIGINT")
    signals.begin("drawing pictures")
    assert (signals.received, ended) == ("SIGINT", [])
    signals.act("SIGINT")
    assert ended == ["SIGINT: stopped"]


def test_the_end_of_the_time_never_replaces_a_signal():
    signals = Interruption(patient=True, say=lambda text: None)
    signals.exchange("", explore.OVER)
    assert signals.received == explore.OVER
    signals.act("SIGINT")
    for expected, new in (("", explore.OVER), (explore.OVER, "")):
        signals.exchange(expected, new)
        assert signals.received == "SIGINT"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.csv"], "absent.csv"),
        (["table.csv", "--minutes", "0.1"], "too short for any model"),
        (["table.csv", "--minutes", "-1"], "too short for any model"),
        (["table.csv", "--seed", "-1"], "seed"),
        (["table.csv", "--out", "full"], "full is there already"),
        (["gaps.csv"], "no experiment fits gaps.csv"),
    ],
)
def test_refusals_are_one_line(arguments, message, table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text(table.read_text())
    rows = [f"{i / 7:.3f},{'' if i % 3 else i}" for i in range(60)]
    (tmp_path / "gaps.csv").write_text("\n".join(["a,b", *rows]))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert main(["explore", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_table_is_explored_within_the_time(table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [str(table), "--label-column", "class", "--minutes", "1.5", "--out", "out"]
    assert main(["explore", *arguments]) == 0
    assert "150 rows of 4 (columns)" in capsys.readouterr().out
    text = check_page(tmp_path / "out" / "report.html")
    runs = [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert len(runs) > 1
    for name in runs:
        assert f"train {name}" in text
    assert "GAN: GAN takes values in [0, 1]" in text


@pytest.mark.slow
def test_ctrl_c_keeps_the_finished_runs(table, tmp_path, monkeypatch, capsys):
    """The signal comes during the second training."""
    monkeypatch.chdir(tmp_path)
    trained = []
    run_plan = explore.run_plan

    def interrupted(*arguments):
        trained.append(arguments[1])
        if len(trained) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            while not arguments[4].received:
                time.sleep(0.01)
        return run_plan(*arguments)

    monkeypatch.setattr(explore, "run_plan", interrupted)
    arguments = [str(table), "--label-column", "class", "--minutes", "3", "--out", "out"]
    assert main(["explore", *arguments]) == interruption.INTERRUPTED
    text = check_page(tmp_path / "out" / "report.html")
    assert len(trained) == 2
    assert f"train {trained[0]}" in text
    assert f"{trained[1]}: SIGINT came before its end" in text
    assert "SIGINT came before its training" in text


def short_trainings(dataset: Dataset, table: Path) -> list[Candidate]:
    """Return two models in the order in which `explore` trains them."""
    found = []
    for name in ("gaussians_odds", "vae_odds"):
        own = replace(EXPERIMENTS[name], data=str(table), reading=READING, batch_size=60, steps=10)
        found.append(Candidate(name, {}, fit(name, own, dataset), 1_000, True))
    return found


def killed_at_the_mixture(connection, data_dir, keep):
    """Evaluate as `explore` does, in a process that is killed while it evaluates the mixture."""
    evaluate_run = explore.evaluate_run

    def evaluate(run, split):
        if run.name == "gaussians_odds":
            os.kill(os.getpid(), signal.SIGKILL)
        return evaluate_run(run, split)

    explore.evaluate_run = evaluate
    explore.evaluate_received(connection, data_dir, keep)


@pytest.mark.slow
def test_a_killed_evaluation_is_reported_in_one_line_and_nothing_else_is_lost(
    dataset, table, tmp_path, monkeypatch, capsys
):
    show_few(monkeypatch)
    monkeypatch.setattr(explore, "evaluate_received", killed_at_the_mixture)
    flags, out = Flags(str(table), READING), tmp_path / "out"
    end = time.monotonic() + 600
    assert explore.explore(dataset, short_trainings(dataset, table), flags, out, end) == 0
    text = check_page(out / "report.html")
    reason = "the evaluation was ended: its process has ended, probably for lack of memory"
    lines = [line for line in text.splitlines() if reason in line]
    assert len(lines) == 1
    assert f"gaussians_odds: no estimates, since {reason}" in lines[0]
    assert "vae_odds: no estimates" not in text
    for name in ("gaussians_odds", "vae_odds"):
        assert f"train {name}" in text
    assert not (out / "gaussians_odds" / "evaluation.json").exists()
    assert (out / "vae_odds" / "evaluation.json").exists()
    assert capsys.readouterr().err == ""


def interrupts_its_starter(connection, data_dir, keep):
    """Send Ctrl-C to `explore` in place of evaluating a run, and never answer."""
    connection.recv()
    os.kill(os.getppid(), signal.SIGINT)
    connection.recv()


@pytest.mark.slow
def test_ctrl_c_after_the_end_of_the_time_keeps_the_run_that_is_evaluated(
    dataset, table, tmp_path, monkeypatch, capsys
):
    """The clock has ended the training of the run."""
    left, marks = [], []
    run_plan = explore.run_plan

    def trains_until_the_end(plan, *arguments):
        endless = replace(plan.experiment, steps=10_000_000, validate_every=0, early_stop=0)
        run_plan(plan._replace(experiment=endless, seconds=0.5), *arguments)
        marks.append(arguments[3].received)

    show_few(monkeypatch)
    monkeypatch.setattr(explore, "run_plan", trains_until_the_end)
    monkeypatch.setattr(explore, "evaluate_received", interrupts_its_starter)
    monkeypatch.setattr(interruption, "leave", lambda message, code=75: left.append(message))
    flags, out = Flags(str(table), READING), tmp_path / "out"
    chosen, end = short_trainings(dataset, table), time.monotonic() + 600
    assert explore.explore(dataset, chosen, flags, out, end) == interruption.INTERRUPTED
    assert (marks, left) == ([explore.OVER], [])
    text = check_page(out / "report.html")
    assert "train gaussians_odds" in text
    assert "gaussians_odds: no estimates, since the evaluation was ended: SIGINT" in text
    assert "vae_odds: SIGINT came before its training" in text


def test_a_training_ends_when_its_time_is_over(vae, dataset, table, tmp_path, capsys):
    signals = Interruption(patient=True)
    flags = Flags(str(table), READING)
    planned = explore.plan_of(
        vae, dataset, flags, Pace(1.0, 1e-6), time.monotonic() + 9e4, tmp_path / "run"
    )
    assert not isinstance(planned, str)
    longer = replace(planned.experiment, steps=10_000_000)
    timed = planned._replace(experiment=longer, seconds=0.5)
    explore.run_plan(timed, "vae_odds", tmp_path / "run", None, signals, time.monotonic() + 90)
    assert signals.received == explore.OVER
    assert threading.active_count() < 50
    assert "saved step" in capsys.readouterr().out
