"""Flags: the help shows each one that tyro takes, and a mistyped one is answered by the nearest."""

import contextlib
import io
import re
from dataclasses import fields

import pytest
import tyro
from conftest import DISTINCT

from experiments import __main__ as commands
from experiments.experiment import Options, Training
from experiments.flags import WIDTH, groups, help_text, nearest, parse, with_flags
from experiments.registry import EXPERIMENTS
from experiments.uses.features import Flags as Features
from gen.core import UserError

CLASSES = (
    *(commands.List, commands.Evaluate, commands.Compare, commands.Sample, commands.Export),
    *(commands.Table, commands.Bench),
)
CONFIG = (tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands)


def training(name: str) -> Training:
    return Training(EXPERIMENTS[name], Options())


def names(kind, default=None) -> set[str]:
    """Return the names of all flags."""
    return {flag.name for group in groups(kind, default) for flag in group.flags}


def flags_of_tyro(kind, monkeypatch, **default) -> set[str]:
    """Return the flags that tyro lists in its own help."""
    monkeypatch.setenv("COLUMNS", "1000")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], config=CONFIG, **default)
    # A flag that a text mentions comes after a word.
    return set(re.findall(r"(?:^|\W) ?(--[a-z][\w.-]*)", printed.getvalue(), re.MULTILINE)) - {
        "--help"
    }


@pytest.mark.parametrize("name", DISTINCT.values())
def test_the_help_of_an_experiment_has_every_flag_in_80_columns(name, monkeypatch):
    default = training(name)
    model = default.experiment.model
    hidden = {f"--model.{path}" for path in getattr(model, "overwrites", ())}
    for field in fields(model):  # a part that is absent has no flags
        if field.type == "Any" and getattr(model, field.name) is None:
            hidden.add(f"--model.{field.name}")
    accepted = flags_of_tyro(Training, monkeypatch, default=default)
    assert names(Training, default) == accepted - hidden
    text = help_text(Training, f"train {name}", default)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert all(flag.text for group in groups(Training, default) for flag in group.flags)
    for internal in ("shape", "parent", "name", "axis-name", "out"):
        assert f".{internal} " not in text


@pytest.mark.parametrize("kind", CLASSES)
def test_the_help_of_a_command_has_every_flag_with_its_text(kind, monkeypatch):
    own = {name for name in names(kind) if name.startswith("-")}
    assert own == flags_of_tyro(kind, monkeypatch)
    assert all(flag.text for group in groups(kind) for flag in group.flags)


def test_an_argument_without_a_default_is_no_option(capsys):
    assert commands.main(["data"]) == 2
    assert "folder of images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        commands.main(["data", "--help"])
    assert "usage: python -m experiments data DATA [FLAGS]\n" in capsys.readouterr().out


def test_the_help_states_kinds_texts_and_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(Training, ["--steps", "3", "--help"], "train vae_digits", training("vae_digits"))
    assert not caught.value.code
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "usage: python -m experiments train vae_digits [FLAGS]",
        "--steps INT number of training steps [3000]",
        "--binarize {none,threshold,dynamic} pixels:",
        "--model.encoder.hidden INT ... widths of the hidden layers [256 128]",
        "--out PATH run folder (default: runs/NAME-seedN)",
        "--no-keep-programs switch off: keep compiled programs",
        "--model.optimizer: optimiser of both networks",
    ):
        assert part in text
    assert "compare RUN [RUN ...] [FLAGS]" in help_text(commands.Compare, "compare")
    assert "bench [NAME ...] [FLAGS]" in help_text(commands.Bench, "bench")
    assert "switch off: fine-tune the encoder" in " ".join(help_text(Features, "features").split())
    assert "evaluate RUN [FLAGS]" in help_text(commands.Evaluate, "evaluate")
    assert "list [NAME] [FLAGS]" in help_text(commands.List, "list")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--lr", ["--model.optimizer.learning-rate"]),
        ("--learning_rate", ["--model.optimizer.learning-rate"]),
        ("--model.learning-rate", ["--model.optimizer.learning-rate"]),
        ("--hidden", ["--model.encoder.hidden", "--model.decoder.hidden"]),
        ("--model.latnt", ["--model.latent"]),
        ("--step", ["--steps"]),
        ("--tensorboard", []),
    ],
)
def test_a_mistyped_flag_is_answered_by_the_nearest(typed, meant):
    flags = [flag.name for each in groups(Training, training("vae_digits")) for flag in each.flags]
    assert nearest(typed, flags)[: len(meant) or None] == meant


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--lr", "3"], "unknown flag --lr: did you mean --model.optimizer.learning-rate?"),
        (["--zzz=3"], "unknown flag --zzz: python -m experiments train vae_digits --help lists"),
        (["3"], "'3' belongs to no flag"),
        (["--steps", "few"], "--steps: invalid literal for int() with base 10: 'few'"),
        (["--steps"], "Missing value for argument '--steps'"),
        (["--binarize", "grey"], "invalid choice 'grey'"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(arguments, named):
    with pytest.raises(UserError) as caught:
        parse(Training, arguments, "train vae_digits", training("vae_digits"))
    message = str(caught.value)
    assert named in message
    assert "\n" not in message
    assert not re.search("[─│╭╰]", message)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--keep-every", "20"], "--keep-every is 20: take a multiple of --checkpoint-every, 500"),
        (["--early-stop", "3"], "--early-stop is 3, without validation: give --validate-every"),
        (["--steps", "0"], "--steps is 0, must be positive"),
        (["--model.latent", "0"], "--model.latent is 0, must be positive"),
        (
            ["--model.decoder.hidden", "8", "0"],
            "--model.decoder.hidden is (8, 0), must be positive",
        ),
        (
            ["--model.optimizer.decay-steps", "3"],
            "--model.optimizer.decay-steps is 3, which needs the schedule cosine",
        ),
    ],
)
def test_errors_about_fields_name_their_flags(arguments, named):
    with pytest.raises(UserError) as caught:
        parse(Training, arguments, "train vae_digits", training("vae_digits"))
    assert str(caught.value) == named


def test_fields_in_messages_become_flags_where_they_are_meant():
    flags = [flag for each in groups(Training, training("vae_digits")) for flag in each.flags]
    for message, expected in {
        "MLP: hidden is (): take one": "--model.encoder.hidden or --model.decoder.hidden is ()",
        "x.npz holds another run (seed: 0 -> 1; model.latent: 2 -> 3; steps: 1 -> 2): choose": (
            "holds another run (--seed: 0 -> 1; --model.latent: 2 -> 3; --steps: 1 -> 2): choose"
        ),
        "seed -1 is out of range": "--seed -1 is out of range",
        "the model has no data_dir/x and seed": "the model has no data_dir/x and seed",
        "give --batch-size 3 to VAE(latent=2)": "give --batch-size 3 to VAE(latent=2)",
    }.items():
        assert expected in with_flags(message, flags)


def test_errors_of_a_command_that_runs_name_flags(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert commands.main(["sample", "vae_digits", "--n", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: --n 0 is out of range: take 1")
    assert commands.main(["train", "vae_digits", "--batch-size", "5000"]) == 2
    assert "take --batch-size 1 …" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
