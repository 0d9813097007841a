"""Paired differences by truth, and the command `compare` on small runs."""

import json
import math
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from experiments import compare
from experiments.__main__ import main
from experiments.experiment import Experiment
from experiments.run import Run
from experiments.table import estimate_unit
from gen import estimate
from gen.core import UserError
from gen.estimate import Estimate
from gen.models.autoencoder import Autoencoder
from gen.models.boltzmann import DBM, RBM
from gen.models.gan import GAN
from gen.models.hmm import HMM
from gen.models.vae import VAE
from gen.nets import MLP

METRICS = ("loss", "kl", "validation")


def test_the_paired_error_is_the_spread_of_differences_on_new_examples():
    """Examples differ in difficulty by 10 nats, and the models by 1 nat on each: over 2,000 test
    sets the mean difference spreads as its error says, which the errors of the means overstate."""
    random = np.random.default_rng(0)
    difficulty = random.normal(100, 10, (2000, 50))
    a = difficulty + random.normal(0.5, 1, difficulty.shape)
    b = difficulty + random.normal(0.0, 1, difficulty.shape)
    differences, errors, unpaired = [], [], []
    for of_a, of_b in zip(a, b, strict=True):
        pair = estimate.mean(of_a, "exact"), estimate.mean(of_b, "exact")
        difference = estimate.paired_difference([pair[0]], [pair[1]])
        differences.append(difference.value)
        errors.append(difference.stderr**2)
        unpaired.append(pair[0].stderr ** 2 + pair[1].stderr ** 2)
    assert math.sqrt(np.mean(errors)) == pytest.approx(np.std(differences), rel=0.05)
    assert np.mean(differences) == pytest.approx(0.5, abs=0.02)
    assert np.mean(unpaired) > 50 * np.mean(errors)


def test_a_difference_of_ratios_has_the_error_of_the_delta_method():
    random = np.random.default_rng(1)
    sizes, values = random.integers(1, 9, 40), random.normal(5, 2, 40)
    ratio = estimate.ratio(values, sizes, "exact")
    zero = estimate.ratio(np.zeros(40), sizes, "exact")
    difference = estimate.paired_difference([ratio], [zero])
    assert difference.value == pytest.approx(values.sum() / sizes.sum())
    assert difference.stderr == pytest.approx(ratio.stderr)


def test_units_do_not_change_a_difference():
    a, b = (estimate.mean(np.arange(9.0) ** power, "exact") for power in (1, 2))
    in_nats = estimate.paired_difference([a], [b])
    in_bits = estimate.paired_difference([estimate.in_bits(a, 4)], [estimate.in_bits(b, 4)])
    scale = 1 / (4 * math.log(2))
    assert in_bits[:2] == pytest.approx((in_nats.value * scale, in_nats.stderr * scale))


def test_the_error_of_log_z_is_added_once_for_each_model():
    values = np.arange(10.0)
    nll = replace(estimate.mean(values, "AIS"), value=100.0)
    known = nll.stderr
    a, b = (replace(nll, stderr=math.hypot(known, error)) for error in (0.3, 0.4))
    difference = estimate.paired_difference([a], [b])
    assert difference[:2] == pytest.approx((0.0, 0.5))


def test_equal_models_have_no_difference_and_no_error():
    a = estimate.mean(np.random.default_rng(0).normal(90, 10, 1000), "exact")
    assert estimate.paired_difference([a], [a])[:2] == (0.0, 0.0)


def test_seeds_are_averaged_and_have_an_error_of_their_own():
    values = np.array([[1.0, 2.0, 6.0], [3.0, 4.0, 5.0], [8.0, 6.0, 4.0]])
    a, b = ([estimate.mean(row + shift, "exact") for row in values[:2]] for shift in (0.0, 1.0))
    b[1] = estimate.mean(values[2], "exact")
    difference = estimate.paired_difference(a, b)
    per_example = values[:2].mean(0) - np.stack([values[0] + 1, values[2]]).mean(0)
    assert difference.value == pytest.approx(per_example.mean())
    assert difference.stderr == pytest.approx(per_example.std(ddof=1) / math.sqrt(3))
    spread = [np.var([3.0, 4.0], ddof=1) / 2, np.var([4.0, 6.0], ddof=1) / 2]
    assert difference.seeds_stderr == pytest.approx(math.sqrt(sum(spread)))
    assert math.isnan(estimate.paired_difference(a, b[:1]).seeds_stderr)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "upper bound"}, "different kinds: upper bound, exact"),
        ({"settings": {"density": True}}, "different quantities: density True, False"),
        ({"settings": {"per": "step"}}, "different quantities: per step, example"),
        ({"per_example": None}, "no values per example"),
        ({"per_example": np.zeros(3), "n": 3}, "different examples: n = 3, 4"),
        ({}, ""),
    ],
)
def test_the_table_says_why_two_estimates_have_no_difference(changes, reason):
    of = estimate.mean(np.arange(4.0), "exact")
    assert estimate.why_incomparable(replace(of, **changes), of) == reason


def test_values_per_example_are_not_stored():
    made = estimate.mean(np.array([1.0, 2.0]), "exact", C=1)
    stored = json.loads(json.dumps(estimate.to_json(made)))
    assert stored.keys() == {"value", "stderr", "kind", "n", "settings"}
    assert estimate.from_json(stored) == made


def test_names_are_as_short_as_they_can_be(tmp_path):
    paths = [tmp_path / "a" / "seed0", tmp_path / "b" / "seed0"]
    assert compare.short_names(paths) == ["a/seed0", "b/seed0"]
    assert compare.short_names([paths[0], tmp_path / "b"]) == ["seed0", "b"]
    with pytest.raises(UserError, match="is given twice"):
        compare.short_names([paths[0], paths[0]])


def test_units_are_the_models():
    assert [compare.metric_unit(VAE(), name) for name in ("loss", "validation")] == ["nats"] * 2
    assert compare.metric_unit(HMM(), "loss") == "nats/step"
    assert estimate_unit(VAE(), "reconstruction") == "nats"
    assert {estimate_unit(each, "reconstruction") for each in (RBM(), DBM())} == {"squared error"}
    assert estimate_unit(Autoencoder(), "mse") == "squared error"
    assert estimate_unit(GAN(), "d_real") == "probability"
    critic = GAN(loss="wasserstein", penalty="gradient_penalty")
    assert estimate_unit(critic, "d_real") == "output of D"


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory):
    """Return untrained models as runs of one seed and of two seeds, by name."""
    made = {}
    for latent in (2, 3):
        for seeds in ((4,), (1, 2)):
            model = VAE(latent=latent, encoder=MLP((8,)), decoder=MLP((8,)))
            experiment = Experiment(model, "digits", binarize="dynamic", seeds=seeds).on(digits)
            keys = jax.vmap(jax.random.key)(np.array(seeds))
            state = jax.jit(jax.vmap(experiment.model.init))(keys)
            folder = tmp_path_factory.mktemp(f"latent{latent}-{len(seeds)}", numbered=False)
            reports = [
                {"step": step, **{name: [9.0 / step] * len(seeds) for name in METRICS}}
                for step in (1, 2, 3)
            ]
            lines = "".join(json.dumps(line) + "\n" for line in reports)
            (folder / "metrics.jsonl").write_text(lines)
            last = np.array([3] * len(seeds))
            run = Run(folder, "vae_digits", experiment, digits, 3, last, state, 0, 1.0, [])
            made[folder.name] = run
    return made


def test_differences_are_means_over_the_same_examples(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(compare, "load_run", lambda folder, _: runs[folder.name])
    files = ["--out", str(tmp_path / "c.png"), "--json", str(tmp_path / "c.json")]
    assert main(["compare", "latent2-1", "latent3-1", *files]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[1:])) <= 80
    assert (tmp_path / "c.png").stat().st_size > 1000
    table = json.loads((tmp_path / "c.json").read_text())["estimates"]
    first, second = [row for row in table if row["estimate"] == "nll"]
    assert first["difference"] is None
    bounds = []
    for name in ("latent2-1", "latent3-1"):
        experiment, state = (
            runs[name].experiment,
            runs[name].experiment.of_seed(runs[name].state, 0),
        )
        batch, key = experiment.decoded(runs[name].dataset, "test", compare.DRAWS)
        terms = estimate.per_example(partial(experiment.model.terms, state), batch, key)
        bounds.append(np.float64(terms.reconstruction) + terms.kl)
    gaps = bounds[1] - bounds[0]
    assert second["difference"]["value"] == pytest.approx(gaps.mean(), rel=1e-5)
    error = gaps.std(ddof=1) / math.sqrt(len(gaps))
    assert second["difference"]["stderr"] == pytest.approx(error, rel=1e-4)


def test_seeds_other_data_and_other_binarisation_are_told(runs):
    a, b = runs["latent2-2"], runs["latent3-2"]
    data = b._replace(dataset=replace(b.dataset, name="other"))
    threshold = b._replace(experiment=replace(b.experiment, binarize="threshold"))
    table = compare.rows({"a": a, "b": b, "data": data, "threshold": threshold}, "validation")
    rows = {row.run: row for row in table if row.name == "nll"}
    assert rows["a"].difference is None
    difference = rows["b"].difference
    assert difference
    assert difference.seeds_stderr > 0
    assert rows["data"].reason == "different data: digits, other"
    train = {**b.dataset.train, "x": b.dataset.train["x"][::-1]}
    reordered = b._replace(dataset=replace(b.dataset, train=train))
    assert compare.other_data(a, reordered) == "different data of the name digits"
    assert rows["threshold"].reason == "binarised differently: dynamic, threshold"


def test_validation_is_dashed_in_the_panel_of_the_loss(runs):
    figure = compare.curves(runs)
    axes = {each.get_title(): each for each in figure.axes}
    assert set(axes) == {"loss", "kl"}
    assert axes["loss"].get_ylabel() == "nats"
    dashed = [line for line in axes["loss"].lines if line.get_linestyle() == "--"]
    assert len(dashed) == len(runs)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [*runs, "training", "validation"]


def test_errors_name_what_to_do(runs, tmp_path, capsys):
    assert main(["compare", str(tmp_path / "a")]) == 2
    assert "give two run folders or more" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"ends in \.png"):
        compare.save_curves(runs, tmp_path / "x.pdf")


def test_signs_and_errors_are_printed():
    values = [estimate.mean(np.arange(4.0) + shift, "exact") for shift in (0, 1)]
    row = compare.Row("nll", "b", "nats", values[1], estimate.Difference(1.0, 0.25, math.nan), "")
    assert compare.change(row) == "+1.00 ± 0.25"
    assert compare.change(row._replace(difference=estimate.Difference(-1.0, 0.25, 0.0))) == (
        "-1.00 ± 0.25"
    )
    short = compare.terminal([row, row._replace(difference=None, reason="because")], "test")
    assert short.splitlines()[3:] == [
        "nll, nats",
        "  b  2.50 ± 0.65    +1.00 ± 0.25",
        "  b  2.50 ± 0.65    –",
        "    no difference: because",
    ]
    name = "model.optimizer.learning-rate=0.0003,latent=" + "9" * 30
    long = compare.terminal([row._replace(run=name), row], "test").splitlines()
    assert long[4:] == [f"  {name}", "    2.50 ± 0.65    +1.00 ± 0.25", "  b", long[5]]
    assert isinstance(values[0], Estimate)
