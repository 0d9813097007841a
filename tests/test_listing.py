"""The list of experiments: one line each in 80 columns, filters, and the details of one."""

import json

import pytest

from experiments import listing
from experiments.__main__ import main
from experiments.folder import RESULTS, read_json
from experiments.registry import EXPERIMENTS
from gen.core import UserError, capabilities
from gen.estimate import Estimate, from_json, to_json


def test_every_experiment_has_one_line_of_at_most_80_columns_under_its_family(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= listing.WIDTH
    rows = {line.split()[0]: i for i, line in enumerate(lines) if line.split()[:1]}
    families = [lines.index(each.model.family) for each in EXPERIMENTS.values()]
    for (name, experiment), family in zip(EXPERIMENTS.items(), families, strict=True):
        assert lines[rows[name]].split()[:2] == [name, experiment.data]
        assert "" not in lines[family : rows[name]]
    record = read_json(RESULTS / "vae_digits.json")
    assert record
    assert lines[rows["vae_digits"]].endswith(listing.minutes(record))
    assert listing.headline(record) in lines[rows["vae_digits"]]


@pytest.mark.parametrize(
    ("name", "settings", "kind", "device", "shown"),
    [
        ("nll", {}, "upper bound", "CPU: x", ("≤ 98.25±0.30 nats", "4.3")),
        ("nll", {"per": "step"}, "exact", "CPU: x", ("98.25±0.30 nats/step", "4.3")),
        ("bits_per_dim", {}, "AIS", "a GPU", ("≈ 98.25±0.30 bits/dim", "4.3*")),
        ("mse", {}, "exact", "CPU: x", ("98.25±0.30 mse", "4.3")),
        ("error", {}, "exact", "CPU: x", ("98.25±0.30 error", "4.3")),
        ("ess", {}, "exact", "CPU: x", ("–", "4.3")),
    ],
)
def test_a_line_has_the_main_estimate_and_the_minutes(name, settings, kind, device, shown):
    estimate = to_json(Estimate(98.2467, 0.2987, kind, 10_000, settings))
    record = {"estimates": {name: estimate}, "train_seconds": 258.0, "device": device}
    assert (listing.headline(record), listing.minutes(record)) == shown


def test_filters_leave_the_experiments_that_meet_all_of_them():
    vaes = listing.select(EXPERIMENTS, family="vae")
    assert {each.model.family for each in vaes.values()} == {"VAE"}
    both = listing.select(EXPERIMENTS, data="digits", can=("sample", "log_prob"))
    assert {"nade_digits", "pixelcnn_digits"} <= both.keys()
    for experiment in both.values():
        assert experiment.data == "digits"
        assert {"sample", "log_prob"} <= {*capabilities(experiment.model)}
    assert listing.select(EXPERIMENTS) == EXPERIMENTS
    nets = listing.select(EXPERIMENTS, family="autoregressive")
    assert {each.model.family for each in nets.values()} == {"fully visible belief net"}


@pytest.mark.parametrize(
    ("filters", "named"),
    [
        ({"family": "flow"}, "no family 'flow': choose from autoencoder, VAE"),
        ({"data": "mnits"}, "no experiment on 'mnits': choose from mnist, digits"),
        ({"can": ("sample", "fly")}, "no model can 'fly': choose from begin, sample"),
    ],
)
def test_an_unknown_filter_is_refused_with_the_choices(filters, named):
    with pytest.raises(UserError, match=named):
        listing.select(EXPERIMENTS, **filters)


def test_filters_that_nothing_meets_together_say_so():
    nothing = listing.select(EXPERIMENTS, family="GAN", can=("log_prob",))
    assert listing.overview(nothing, RESULTS) == "no experiment has all of this\n"


def test_the_details_have_the_model_the_command_and_every_estimate(capsys):
    record = json.loads((RESULTS / "vae_digits.json").read_text())
    estimates = {name: from_json(fields) for name, fields in record["estimates"].items()}
    assert {"nll", "kl"} <= estimates.keys()
    assert main(["list", "vae_digits"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "family VAE (VAE)",
        "density explicit, approximated",
        "can sample, encode, decode, posterior, reconstruct",
        "command python -m experiments train vae_digits --seeds 0 1 2",
        f"parameters {record['parameters']:,}",
        *(f"{name} {value}" for name, value in estimates.items()),
        'weights published, 0.77 MB; in Python: import gen run = gen.load("vae_digits")',
    ):
        assert part in text
    unpublished = listing.details("dbm_mnist", EXPERIMENTS["dbm_mnist"], RESULTS)
    assert unpublished.count("not published") == 2  # the result and the weights
    assert main(["list", "vae"]) == 2
    assert "did you mean vae_mnist or vae_digits" in capsys.readouterr().err
