"""The command `sweep`: its combinations, each of which equals the run alone, and resuming."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import chex
import numpy as np
import pytest
from conftest import QUICK, equal

from experiments import interruption, sweep
from experiments.__main__ import main, parse, parse_training
from experiments.experiment import Experiment, Options, Training, to_config
from experiments.own import flag_words
from experiments.registry import EXPERIMENTS
from experiments.run import load_run
from gen import data, plots, train
from gen.core import UserError
from gen.models.vae import VAE
from gen.nets import MLP
from gen.optimize import Optimizer

ROOT = Path(__file__).parent.parent
AE = EXPERIMENTS["ae_digits"]
SMALL = ["--model.encoder.hidden", "4", "--model.decoder.hidden", "4", "--batch-size", "100"]
SMALL += ["--report-every", "2", "--checkpoint-every", "2", "--steps-per-dispatch", "1"]
SMALL += ["--validate-every", "2"]
EVERY = ("report", "checkpoint", "validate")
RATES = ["--over", "model.optimizer.learning-rate", "1e-3", "3e-3"]
OVER = [*RATES, "--over", "seed", "0", "7"]


def command(out: Path, *over: str, steps: int = 6) -> list[str]:
    return ["sweep", "ae_digits", *over, *SMALL, "--steps", str(steps), "--out", str(out)]


def labels_of(*over: tuple[str, list[str]], base: Experiment = AE) -> list[str]:
    return sweep.labels([values for values, _ in sweep.expand("ae_digits", base, over)])


def test_arguments_are_split_into_flags_and_fields():
    words = "--steps 4 --over model.latent 2 5 --over seed 0 1 --out x"
    others, over = sweep.split_arguments(shlex.split(words))
    assert others == ["--steps", "4", "--out", "x"]
    assert over == [("model.latent", ["2", "5"]), ("seed", ["0", "1"])]


def test_every_combination_is_made_and_named_by_the_shortest_ends():
    assert labels_of(("model.optimizer.learning-rate", ["1e-3"]), ("batch-size", ["8", "9"])) == [
        "learning-rate=0.001,batch-size=8",
        "learning-rate=0.001,batch-size=9",
    ]
    hidden = ("model.encoder.hidden", ["8,4"]), ("model.decoder.hidden", ["6"])
    assert labels_of(*hidden) == ["encoder.hidden=8-4,decoder.hidden=6"]
    ((values, made),) = sweep.expand("ae_digits", AE, hidden)
    assert values == {"model.encoder.hidden": [8, 4], "model.decoder.hidden": [6]}
    assert (made.model.encoder.hidden, made.model.decoder.hidden) == ((8, 4), (6,))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (("model.lr", ["1"]), "no such field; did you mean model.optimizer.learning-rate"),
        (("learning-rate", ["1"]), r"did you mean model.optimizer.learning-rate\?"),
        (("model.optimizer.learning-rat", ["1"]), "did you mean model.optimizer.learning-rate"),
        (("xyzzy", ["1"]), "train NAME --help lists the fields"),
        (("steps", ["2", "2.5"]), "steps is 2.5, must be int"),
        (("model.encoder.hidden", ["4", "4,x"]), "hidden is '4,x', must be tuple"),
        (("model.optimizer.learning-rate", ["1e-3", "-1"]), "learning_rate is -1.0, must be pos"),
        (("model.optimizer.learning-rate", ["NaN"]), "learning_rate is nan, must be finite"),
        (("model.optimizer.learning-rate", ["fast"]), "learning_rate is 'fast', must be float"),
        (("model.optimizer.kind", ["adam", "adamw"]), "kind is 'adamw', must be 'adam', 'sgd'"),
        (("model.optimizer.momentum", ["0.9"]), "momentum has no meaning for rmsprop"),
        (("steps", ["4", "4"]), "4 stands twice"),
        (("data", ["digits"]), "data is not swept: results on different data"),
        (("seeds", ["1"]), "give --seeds"),
        (("reading.levels", ["2"]), "is not swept: results on differently read data"),
        (("columns", ["a"]), "is not swept: results on differently read data"),
    ],
)
def test_wrong_fields_and_values_are_refused_in_one_line(over, message):
    with pytest.raises(UserError, match=message) as error:
        list(sweep.expand("ae_digits", AE, [over]))
    assert "\n" not in str(error.value)


def test_wrong_command_lines_are_refused_before_anything_is_written(tmp_path, capsys):
    out = tmp_path / "out"
    for over, message in (
        ([], "needs at least one --over"),
        (["--over", "model.latent"], "--over takes a field and its values"),
        ([*RATES, *RATES], "is given twice"),
        (["--over", "batch-size", "10", "100000"], "batch-size=100000: a batch of 100000 from"),
        ([*RATES, "--devices", "2"], "a sweep trains on one device"),
        ([*OVER, "--seeds", "1", "2"], "--over seed and --seeds set the same"),
        ([*RATES, "--logger", "wandb"], "--logger wandb takes one run"),
        ([*RATES, "--seed", "1", "--seeds", "2", "3"], "--seed has no effect on a run of several"),
    ):
        assert main(command(out, *over)) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_sweep_without_a_name_is_refused_by_its_own_name(capsys):
    assert main(["sweep", "--over", "model.latent", "2", "5"]) == 2
    assert "no experiment given: sweep NAME, or sweep --config FILE" in capsys.readouterr().err


def test_the_help_of_an_experiment_has_the_flags_of_a_sweep(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "ae_digits", "--help"])
    printed = capsys.readouterr().out
    assert "--over FIELD VALUE" in printed
    assert "--model.encoder.hidden INT" in printed


def test_flags_are_written_as_they_are_read():
    """A switch has no flag for its default."""
    assert flag_words({"model.kind": "x", "model.no_bias": False, "hidden": [4, 2]}) == (
        shlex.split("--model.kind x --model.no-no-bias --hidden 4 2")
    )
    for probe in (True, False):
        values = {"probe": probe, "model.encoder.hidden": [4, 2]}
        words = shlex.split(sweep.command_alone("ae_digits", AE, ["--steps", "7"], values))
        _, chosen = parse_training("train", words[4:])
        assert chosen.experiment.probe is probe
        assert chosen.experiment.model.encoder.hidden == (4, 2)
        assert chosen.experiment.steps == 7


def test_the_default_folder_names_other_data():
    assert sweep.default_folder("ae_digits", AE) == Path("runs/ae_digits-sweep")
    other = replace(AE, data="/x/my-seed.csv", seeds=(1, 2))
    assert sweep.default_folder("ae_digits", other) == Path("runs/ae_digits-my-seed-sweep")


def test_checkpoints_of_other_runs_are_in_another_folder(digits, tmp_path):
    def folder(dataset=digits, **changes):
        each = sweep.Combination({}, replace(AE, **changes).on(dataset), tmp_path / "latent=2")
        return sweep.group_folder(tmp_path, "ae_digits", [each], dataset)

    train = {**digits.train, "x": digits.train["x"][::-1]}
    assert folder() == folder(steps=AE.steps + 1, early_stop=0, checkpoint_every=500)
    others = folder(seed=5), folder(batch_size=3), folder(replace(digits, train=train))
    assert len({folder(), *others}) == 4


def test_rates_alone_make_no_new_program():
    """Rates do not, unless one of them is 0; sizes and steps do."""

    def structure(steps=5, seed=0, latent=4, **rates):
        optimizer = Optimizer("sgd", **rates)
        model = VAE(encoder=MLP((4,)), decoder=MLP((4,)), latent=latent, optimizer=optimizer)
        return sweep.structure("", Experiment(model, steps=steps, seed=seed))

    same = structure(learning_rate=1e-3, weight_decay=0.1, momentum=0.9, clip_norm=1.0)
    assert same == structure(learning_rate=1.0, weight_decay=0.2, momentum=0.5, clip_norm=9, seed=3)
    assert structure() != structure(weight_decay=0.1)
    assert len({structure(), structure(momentum=0.1), structure(steps=6), structure(latent=5)}) == 4


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Return the folder of a finished sweep over two rates and two seeds."""
    out = tmp_path_factory.mktemp("sweep") / "whole"
    assert main(command(out, *OVER)) == 0
    return out


def run_folders(out: Path) -> list[Path]:
    return sorted(path for path in out.iterdir() if path.is_dir() and path.name != "groups")


def test_each_combination_equals_the_run_alone(swept, digits):
    (members,) = swept.glob("groups/*/members.json")  # one program
    assert len(json.loads(members.read_text())["members"]) == len(run_folders(swept)) == 4
    for folder in run_folders(swept):
        found = load_run(folder)
        experiment = found.experiment
        *_, alone = train.fit(
            experiment.model,
            digits.train,
            steps=6,
            batch_size=100,
            seed=experiment.seed,
            levels=experiment.levels(digits),
            decode=experiment.decode(digits),
            validation=digits.validation,
            validate_every=2,
            report_every=2,
        )
        chex.assert_trees_all_close(found.state, alone.carry.chosen, rtol=1e-4, atol=1e-6)
        assert alone.metrics
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        for name, value in alone.metrics.items():
            np.testing.assert_allclose(last[name], value, rtol=1e-5, atol=1e-6)  # a gap is about 0


def test_the_table_is_of_the_validation_split_and_its_command_trains_the_best(swept, capsys):
    record = json.loads((swept / "sweep.json").read_text())
    assert (record["split"], record["criterion"]) == ("validation", "mse")
    values = {each["run"]: each["estimates"]["mse"]["value"] for each in record["combinations"]}
    assert record["best"] == min(values, key=lambda run: values[run])
    assert not list(swept.glob("*/evaluation.json"))  # of the test split
    assert (swept / "sweep.png").stat().st_size > 1000
    assert main(command(swept, *OVER)) == 0
    printed = capsys.readouterr().out
    alone = next(line for line in printed.splitlines() if line.startswith("alone: "))
    name, *flags = shlex.split(alone.removeprefix("alone: python -m experiments train "))
    chosen = parse(Training, flags, "train", Training(EXPERIMENTS[name], Options()))
    assert chosen.options.out is None
    best = load_run(swept / record["best"]).experiment
    dataset = data.load("digits")
    assert to_config(name, chosen.experiment.on(dataset)) == to_config(name, best)


def test_a_finished_sweep_is_not_trained_again(swept, monkeypatch, capsys):
    monkeypatch.setattr(train, "fit", None)
    monkeypatch.setattr(sweep, "evaluate_run", None)
    assert main(command(swept, *OVER)) == 0
    assert "best: " in capsys.readouterr().out


@pytest.fixture
def copied(swept, tmp_path):
    """Return a copy of the finished sweep."""
    return shutil.copytree(swept, tmp_path / "copied")


def test_an_evaluation_of_another_configuration_or_of_other_data_is_repeated(copied, monkeypatch):
    first, second, *_ = run_folders(copied)
    records = {}
    for folder, of in ((first, "config"), (second, "data")):
        path = folder / "evaluation-validation.json"
        record = records[folder] = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "of": {**record["of"], of: "other"}}))
    repeated = []

    def evaluate_run(run, split):
        repeated.append(run.folder)
        return records[run.folder]

    monkeypatch.setattr(sweep, "evaluate_run", evaluate_run)
    for _ in range(2):
        assert main(command(copied, *OVER)) == 0
        assert sorted(repeated) == [first, second]


def test_fewer_steps_than_a_folder_has_are_refused(swept, capsys):
    assert main(command(swept, *OVER, steps=4)) == 2
    assert "stands at step 6, beyond --steps 4: give --steps 6" in capsys.readouterr().err


def test_another_early_stop_resumes_what_has_stopped_early(copied):
    folder, *_ = run_folders(copied)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "stopped_early": 4}))
    for early_stop, step in ((0, 4), (3, None)):
        experiment = replace(EXPERIMENTS["vae_digits"], early_stop=early_stop, validate_every=100)
        assert sweep.stopped_early_at(sweep.Combination({}, experiment, folder)) == step


def test_a_combination_goes_on_from_its_own_checkpoint(copied, monkeypatch):
    """The checkpoint of its group is of another step, because the combination stopped early or was
    trained alone."""
    behind, *others = run_folders(copied)
    (behind / "checkpoints" / "6").rename(behind / "checkpoints" / "4")
    trained = []

    def train_group(name, group, together, *_):
        trained.append(("together", {each.folder for each in together}))
        return 0

    def train_alone(name, combination, options):
        trained.append(("alone", combination.folder))
        return interruption.INTERRUPTED

    monkeypatch.setattr(sweep, "train_group", train_group)
    monkeypatch.setattr(sweep, "train_alone", train_alone)
    assert main(command(copied, *OVER, steps=8)) == interruption.INTERRUPTED
    assert trained == [("together", set(others)), ("alone", behind)]


@pytest.mark.parametrize("diverged", [False, True])
def test_a_signal_in_the_last_step_ends_the_sweep_after_its_group(
    copied, diverged, monkeypatch, capsys
):
    """The folder of a combination that is finished stays as it is."""
    finished, *others = run_folders(copied)
    for folder in others:
        shutil.rmtree(folder / "checkpoints")
    log = finished / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 8, "loss": 1.0}\n')
    before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    acts = []

    def watch(act):
        acts.append(act)
        return lambda: None

    def fit(*arguments, **options):
        acts[-1].__self__.end()  # of compiling
        acts[-1]("SIGINT")
        if diverged:
            raise train.NonFiniteError("the loss is NaN")
        yield from ()

    monkeypatch.setattr(interruption, "watch", watch)
    monkeypatch.setattr(train, "fit", fit)
    assert main(command(copied, *OVER)) == interruption.INTERRUPTED
    assert "SIGINT: these runs are finished" in capsys.readouterr().out
    for folder in others:
        assert (folder / ("diverged.json" if diverged else "checkpoints/6")).exists()
    assert {path: path.read_bytes() for path in before} == before


def test_own_data_are_swept_and_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(100, 3))
    rows = "\n".join(",".join(f"{value:.4f}" for value in row) for row in x)
    Path("points.csv").write_text(f"a,b,c\n{rows}\n")
    words = ["--data", "points.csv", "--columns", "a", "c", *SMALL, "--batch-size", "20"]
    assert (
        main(
            [
                "sweep",
                "ae_digits",
                *words,
                "--model.output",
                "linear",
                "--steps",
                "2",
                "--over",
                "seed",
                "3",
            ]
        )
        == 0
    )
    run = load_run(Path("runs/ae_digits-points-sweep/seed=3"))
    assert run.experiment.reading.columns == ("a", "c")
    assert run.dataset.shape == (2,)
    assert main(["evaluate", str(run.folder)]) == 0


class Killed(BaseException):
    """The end of a process in the middle of training."""


def test_a_killed_sweep_goes_on_bit_for_bit(swept, tmp_path, monkeypatch):
    """The sweep is killed a step after a checkpoint, and again when two of four combinations have
    their own checkpoint."""
    out, fit, open_checkpoints = tmp_path / "killed", train.fit, sweep.open_checkpoints
    opened = []

    def killed_at_step_5(*arguments, **options):
        for progress in fit(*arguments, **options):
            if progress.step == 5:
                raise Killed
            yield progress

    def killed_at_the_third_folder(folder, *arguments):
        opened.append(folder.parent)
        if len(opened) == 4:  # the first is the group's
            raise Killed
        return open_checkpoints(folder, *arguments)

    for module, name, killed in (
        (train, "fit", killed_at_step_5),
        (sweep, "open_checkpoints", killed_at_the_third_folder),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed)
            with pytest.raises(Killed):
                main(command(out, *OVER))
    assert len(list(out.glob("*/checkpoints/6"))) == 2
    assert main(command(out, *OVER)) == 0
    assert_same_sweep(out, swept)


def assert_same_sweep(a: Path, b: Path) -> None:
    """Check that two sweeps have the same combinations, states and reports, bit for bit."""
    assert [path.name for path in run_folders(a)] == [path.name for path in run_folders(b)]
    for own, other in zip(run_folders(a), run_folders(b), strict=True):
        assert equal(load_run(own).state, load_run(other).state)
        assert (own / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def test_a_combination_that_diverges_is_left_out_and_the_others_go_on(tmp_path, capsys):
    over = ["--over", "model.optimizer.learning-rate", "1e-3", "1e30"]
    assert main(command(tmp_path / "s", *over)) == 0
    captured = capsys.readouterr()
    assert "learning-rate=1e+30: diverged, seen at step" in captured.err
    assert "diverged at" in captured.out
    assert "best: " in captured.out
    good, bad = (tmp_path / "s" / f"learning-rate={rate}" for rate in ("0.001", "1e+30"))
    assert load_run(good).step == 6
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_run(bad)
    before = (tmp_path / "s" / "sweep.json").read_bytes()
    assert main(command(tmp_path / "s", *over)) == 0
    assert (tmp_path / "s" / "sweep.json").read_bytes() == before
    assert "training" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_combination_of_several_seeds_is_a_run_of_several_seeds(tmp_path, digits, capsys):
    """A value that is added later is trained alone, and longer runs go on."""
    out, seeds = tmp_path / "s", ["--seeds", "1", "2"]
    assert main([*command(out, *RATES, steps=2), *seeds]) == 0
    more = [*RATES, "1e-2"]
    assert main([*command(out, *more, steps=2), *seeds]) == 0
    assert "training 1 combination," in capsys.readouterr().out
    assert main([*command(out, *more, steps=4), *seeds]) == 0
    assert capsys.readouterr().out.count("from step 2") == 2
    for folder in run_folders(out):
        found = load_run(folder)
        assert (found.step, found.experiment.seeds) == (4, (1, 2))
        *_, alone = train.fit(
            found.experiment.model,
            digits.train,
            steps=4,
            batch_size=100,
            seed=(1, 2),
            levels=17,
            decode=found.experiment.decode(digits),
        )
        chex.assert_trees_all_close(found.state, alone.carry.state, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_early_stopping_ends_each_combination_where_it_ends_the_run_alone(tmp_path, digits):
    out = tmp_path / "s"
    over = ["--over", "model.optimizer.learning-rate", "1e-3", "0.1", "--early-stop", "1"]
    arguments = ["sweep", "vae_digits", *command(out, *over, steps=40)[2:]]
    assert main(arguments) == 0
    steps = []
    for folder in run_folders(out):
        found = load_run(folder)
        experiment = found.experiment
        *_, alone = train.fit(
            experiment.model,
            digits.train,
            steps=40,
            batch_size=100,
            levels=experiment.levels(digits),
            decode=experiment.decode(digits),
            validation=digits.validation,
            validate_every=2,
            early_stop=1,
        )
        chex.assert_trees_all_close(found.state, alone.carry.chosen, rtol=1e-4, atol=1e-6)
        assert found.step == alone.step
        steps.append(found.step)
    assert steps[1] < 40
    assert len(set(steps)) == 2
    before = (out / "sweep.json").read_bytes()
    assert main(arguments) == 0
    assert (out / "sweep.json").read_bytes() == before
    assert main([*arguments, "--early-stop", "0"]) == 0
    for folder in run_folders(out):
        assert load_run(folder).step == 40
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [*range(2, 41, 2)]


@pytest.mark.slow
def test_a_sweep_that_is_killed_by_the_system_goes_on_bit_for_bit(tmp_path):
    arguments = [sys.executable, "-m", "experiments"]
    environment = {**os.environ, "XLA_FLAGS": QUICK}
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    every = [word for unit in EVERY for word in (f"--{unit}-every", "100")]

    def start(out):
        return subprocess.Popen(
            [*arguments, *command(out, *OVER, steps=2000), *every], cwd=ROOT, env=environment
        )

    assert start(whole).wait(timeout=300) == 0
    for saved in (100, 500):
        process = start(killed)
        end = time.monotonic() + 120
        while not any(
            int(path.name) >= saved
            for path in killed.glob("groups/*/checkpoints/*")
            if path.name.isdigit()
        ):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(killed).wait(timeout=300) == 0
    assert_same_sweep(whole, killed)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ((1, 2, 4), "log"),
        ((1e-3, 3e-4), "log"),
        ((2, 5, 10), "log"),
        ((1, 2, 3), "linear"),
        ((5, 10, 15), "linear"),
        ((1, 2), "linear"),
        ((0.0, 1e-3, 1e-2), "linear"),
        ((7,), "linear"),
    ],
)
def test_the_axis_is_logarithmic_where_the_values_are_spaced_geometrically(values, scale):
    (axes,) = plots.against({"": [(x, 1.0, 0.1) for x in values]}, "latent", "nll").axes
    assert axes.get_xscale() == scale
    if scale == "log":
        shown = [label.get_text() for label in axes.get_xticklabels()]
        assert shown == [f"{x:g}" for x in sorted(values)]
