"""Codes: paths, dimensions and disentanglement, against constructed codes and closed forms."""

import json
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NAMES, batch_of, entry_of

from experiments.experiment import Experiment
from experiments.registry import EXPERIMENTS
from experiments.uses import base
from experiments.uses import latent as command
from experiments.uses.base import Subject
from gen import data
from gen.core import UserError, capabilities, facts
from gen.models.autoencoder import Autoencoder
from gen.models.dequantized import Dequantized
from gen.models.diffusion import GaussianDiffusion, ResidualMLP
from gen.models.gan import GAN
from gen.models.mixture import Mixture
from gen.models.vae import VAE
from gen.nets import MLP
from gen.uses import latent

NETWORK = MLP((4,), "tanh")
SIZES = (3, 4, 5)
GRID = np.stack(np.unravel_index(np.arange(3_000) % 60, SIZES), axis=1).astype(np.int32)
"""Independent factors of 3, 4 and 5 values, [3,000, 3]."""


def random_factors(rng, n=6_000):
    return np.stack([rng.integers(0, size, n) for size in SIZES], axis=1)


def test_codes_that_equal_the_factors_have_a_gap_of_one(rng):
    gap = latent.mig(GRID.astype(float), GRID)
    assert gap.value == pytest.approx(1)
    assert gap.stderr < 0.05
    assert gap.n == 3_000
    # Order, sign and scale of the dimensions do not matter, nor do dimensions of noise.
    codes = np.column_stack([rng.standard_normal(6_000), np.zeros(6_000)])
    factors = random_factors(rng)
    codes = np.hstack([codes, (factors * np.array([-3, 0.1, 2]))[:, ::-1] + 7])
    # Counts of noise overestimate its information by about (bins − 1)(values − 1) / 2N nats.
    bias = np.mean([19 * (size - 1) / 12_000 / np.log(size) for size in SIZES])
    assert latent.mig(codes, factors).value == pytest.approx(1 - bias, abs=0.003)


def test_codes_that_are_constant_repeated_or_mixed_have_small_gaps(rng):
    factors = random_factors(rng)
    assert latent.mig(np.ones((6_000, 4)), factors).value == 0
    assert latent.mig(np.hstack([factors, factors]).astype(float), factors).value == 0
    assert latent.mig(rng.standard_normal((6_000, 4)), factors).value < 0.01
    rotated = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    assert latent.mig((factors / np.array(SIZES)) @ rotated, factors).value < 0.4


def test_mutual_information_is_the_sum_over_the_table():
    p = np.array([[4, 0, 1], [2, 3, 0]]) / 10
    pairs = np.repeat(np.argwhere(p > 0), (10 * p[p > 0]).astype(int), axis=0)
    information, entropy = latent.mutual_information(pairs[:, :1], pairs[:, 1:])
    independent = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    expected = np.sum(p[p > 0] * np.log((p / independent)[p > 0]))
    assert information[0, 0] == pytest.approx(expected)
    of_factor = p.sum(0)
    assert entropy[0] == pytest.approx(-(of_factor * np.log(of_factor)).sum())


def test_the_factor_vae_score_of_constructed_codes(rng):
    factors = random_factors(rng)
    scaled = factors * np.array([5.0, -0.1, 1.0])
    assert latent.factor_vae_score(scaled, factors).value == 1
    with_noise = np.hstack([rng.standard_normal((6_000, 2)), scaled, np.ones((6_000, 1))])
    assert latent.factor_vae_score(with_noise, factors).value == 1
    assert latent.factor_vae_score(np.ones((6_000, 3)), factors).value < 0.4
    assert latent.factor_vae_score(rng.standard_normal((6_000, 3)), factors).value < 0.45
    # One dimension that knows two factors cannot tell which of them is fixed.
    one = scaled[:, :1] + 40 * scaled[:, 2:]
    assert latent.factor_vae_score(np.hstack([one, scaled[:, 1:2]]), factors).value < 0.8


def test_factors_that_are_no_table_of_integers_are_refused():
    with pytest.raises(UserError, match=r"integers \[3, K\]"):
        latent.mig(np.ones((3, 2)), np.ones(3))
    with pytest.raises(UserError, match=r"factors \[1\] have one value"):
        latent.factor_vae_score(np.ones((3, 2)), np.array([[0, 1], [1, 1], [0, 1]]))


def vae(**fields):
    return VAE(shape=(2, 3, 1), encoder=NETWORK, decoder=NETWORK, latent=3, **fields)


def test_the_kl_of_the_dimensions_sums_to_the_kl_of_the_model(rng):
    model = vae()
    state = jax.jit(model.init)(jax.random.key(0))
    x = {"x": rng.integers(0, 2, (50, 2, 3, 1)).astype(np.float32)}
    each = latent.kl_per_dimension(latent.posterior(model, state, x))
    whole = model.evaluate(state, x, jax.random.key(1))["kl"]
    assert len(each) == 3
    assert sum(kl.value for kl in each) == pytest.approx(whole.value, rel=1e-5)
    space = command.Space(np.zeros((50, 3)), None, each, True)
    total = command.total_kl(space)
    assert total.value == pytest.approx(whole.value, rel=1e-5)
    assert total.stderr == pytest.approx(whole.stderr, rel=1e-4)
    assert [each[d].value for d in space.order] == sorted((kl.value for kl in each), reverse=True)


def test_units_are_active_by_the_variance_of_the_mean_code(rng):
    codes = rng.standard_normal((5_000, 4)) * np.array([1.0, 0.2, 0.05, 0.0]) + 3
    assert latent.active_units(codes).tolist() == [True, True, False, False]


class Plain(NamedTuple):
    """A model of which a path asks for its fact alone."""

    normal_codes: int


def test_paths_have_the_codes_as_ends_and_keep_the_length_of_normal_codes(rng):
    a, b = rng.standard_normal((2, 5, 30))
    a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) * np.sqrt(30) for z in (a, b))
    weights = np.linspace(0, 1, 7)
    for model in (Plain(30), Plain(0)):
        path = latent.interpolate(model, a, b, weights)
        np.testing.assert_allclose(path[:, 0], a, atol=1e-12)
        np.testing.assert_allclose(path[:, -1], b, atol=1e-12)
        lengths = np.linalg.norm(path, axis=-1)
        if model.normal_codes:
            np.testing.assert_allclose(lengths, np.sqrt(30))
        else:
            np.testing.assert_allclose(path[:, 3], (a + b) / 2)
            assert lengths[:, 3].max() < 0.9 * np.sqrt(30)


def test_parallel_and_zero_codes_are_joined_by_straight_lines():
    a = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    b = np.array([[2.0, 0.0], [-1.0, 0.0], [3.0, 1.0]])
    middle = latent.great_circles(a, b, np.array([0.5]))[:, 0]
    np.testing.assert_allclose(middle, (a + b) / 2)


def test_a_traversal_moves_one_dimension_and_keeps_the_others(rng):
    codes = rng.standard_normal((400, 3)) * 5
    base, dimensions = codes[0], np.array([2, 0])
    path = latent.traversal(Plain(3), codes, base, dimensions, 5)
    np.testing.assert_allclose(path[0, :, 2], [-3, -1.5, 0, 1.5, 3])
    np.testing.assert_array_equal(path[0, :, :2], np.tile(base[:2], (5, 1)))
    np.testing.assert_array_equal(path[1, :, 1:], np.tile(base[1:], (5, 1)))
    path = latent.traversal(Plain(0), codes, base, dimensions, 5)
    np.testing.assert_allclose(path[1, [0, -1], 0], np.percentile(codes[:, 0], (1, 99)))


def test_codes_are_projected_unless_they_have_two_dimensions(rng):
    codes = rng.standard_normal((60, 5)) * np.array([9, 1, 5, 1, 1])
    points, name = latent.plane(codes, "pca")
    assert (points.shape, name) == ((60, 2), "PCA")
    assert abs(np.corrcoef(points[:, 0], codes[:, 0])[0, 1]) > 0.9
    assert latent.plane(codes)[1] == "PCA"
    assert latent.plane(codes[:, :2])[1] == "not projected"
    assert latent.plane(codes[:, :1])[0].shape == (60, 2)
    for projection in ("pca", "tsne"):
        assert not latent.plane(np.ones((9, 3)), projection)[0].any()


def test_the_law_of_codes_is_a_fact_of_the_model():
    shape: Any = {"shape": (2, 2, 1)}
    assert facts(vae()).normal_codes == 3
    assert facts(vae(prior="vamp")).normal_codes == 0
    assert facts(GAN(latent=7)).normal_codes == 7
    assert facts(GAN(latent=7, categorical_codes=(2,))).normal_codes == 0
    assert facts(GaussianDiffusion(net=ResidualMLP(), **shape)).normal_codes == 4
    gaussian = vae(likelihood="gaussian")
    assert facts(Dequantized(gaussian, shape=(2, 3, 1), levels=4)).normal_codes == 3
    assert facts(Mixture()).normal_codes == 0
    assert "decode" in capabilities(GAN())
    assert "decode" not in capabilities(GAN(classes=3))


def test_sprites_have_one_image_for_each_combination_of_factors():
    sprites = data.load("sprites")
    x = np.concatenate([split["x"] for split in sprites.splits.values()])
    factors = np.concatenate([split["factors"] for split in sprites.splits.values()])
    assert x.shape == (4_608, 16, 16, 1)
    assert len(np.unique(factors, axis=0)) == len(np.unique(x, axis=0)) == len(x)
    assert factors.max(0).tolist() == [2, 5, 15, 15]
    assert (x.min(), x.max()) == (0, 16)
    np.testing.assert_array_equal(sprites.test["label"], sprites.test["factors"][:, 0])
    # Centre and area of the squares follow from the factors.
    squares = factors[:, 0] == 0
    weight = x[squares, ..., 0] / x[squares, ..., 0].sum((1, 2), keepdims=True)
    place = np.arange(16) + 0.5
    expected = np.linspace(4.5, 11.5, 16)[factors[squares][:, 2:]]
    np.testing.assert_allclose((weight.sum(1) * place).sum(1), expected[:, 0], atol=0.13)
    np.testing.assert_allclose((weight.sum(2) * place).sum(1), expected[:, 1], atol=0.13)
    side = 1.8 * np.linspace(2, 4.5, 6)[factors[squares, 1]]
    assert np.abs(np.sqrt(x[squares].sum((1, 2, 3)) / 16) - side).max() < 0.3


@dataclass(frozen=True)
class Oracle:
    """A model whose codes are the factors, which the sum of the pixels cannot tell."""

    family = "oracle"
    shape: tuple[int, ...] = (16, 16, 1)

    def encode(self, state, batch):
        return batch["factors"].astype(jnp.float32)


def subject(model, name="codes", dataset="digits", **fields):
    """Return a model in its first state, as a command loads it."""
    loaded = data.load(dataset)
    experiment = Experiment(model, data=dataset, **fields)
    experiment = experiment if isinstance(model, Oracle) else experiment.on(loaded)
    state = () if isinstance(model, Oracle) else jax.jit(experiment.model.init)(jax.random.key(0))
    return Subject(name, experiment, loaded, {0: state}, 0, None)


def test_codes_of_known_factors_are_judged_on_all_splits():
    estimates = command.disentanglement(subject(Oracle(), dataset="sprites"), ())
    assert estimates["MIG"].value == pytest.approx(1)
    assert estimates["MIG"].n == 4_608
    assert estimates["FactorVAE score"].value == 1
    mixture = subject(Mixture(components=2), binarize="threshold")
    assert command.disentanglement(mixture, mixture.states[0]) == {}


FAMILIES = {
    "vae": (VAE(encoder=NETWORK, decoder=NETWORK, latent=3), "threshold"),
    "ae": (Autoencoder(encoder=NETWORK, decoder=NETWORK), "none"),
    "gan": (GAN(generator=NETWORK, discriminator=NETWORK, latent=4), "none"),
    "mixture": (Mixture(components=3), "threshold"),
}


def test_the_command_writes_a_record_and_a_picture_of_each_family(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    subjects = {
        name: subject(model, name, binarize=binarize)
        for name, (model, binarize) in FAMILIES.items()
    }
    monkeypatch.setattr(base, "load_subject", lambda path, _: subjects[str(path)])
    monkeypatch.setattr(command, "of_training", lambda of: {"experiment": of.name})
    assert command.command([*subjects, "--examples", "30", "--no-keep-programs"]) == 0
    rows = {}
    for name in subjects:
        record = json.loads((tmp_path / f"samples/{name}/latent.json").read_text())
        assert (tmp_path / f"samples/{name}/latent.png").stat().st_size > 1_000
        (rows[name],) = record["rows"]
        assert len(record["units"]) == rows[name]["dimensions"]
        assert all(("kl" in unit) == (name == "vae") for unit in record["units"])
    assert {name for name, row in rows.items() if row["codes"] == "normal"} == {"vae", "gan"}
    assert {name for name, row in rows.items() if "KL, nats" in row} == {"vae"}
    assert {name for name, row in rows.items() if "active units" in row} == {"vae"}
    assert "codes of digits" in capsys.readouterr().out
    # One example has no pair to be joined with.
    assert command.command(["vae", "--examples", "1", "--no-keep-programs"]) == 0


def test_a_model_without_codes_is_refused():
    conditional = subject(GAN(generator=NETWORK, discriminator=NETWORK, classes=10))
    with pytest.raises(UserError, match="GAN of codes has no codes"):
        command.space_of(conditional, conditional.states[0], 5)


ENCODING = [
    name
    for name in NAMES
    if name in EXPERIMENTS and {"encode", "decode"} & {*capabilities(EXPERIMENTS[name].model)}
]
"""Registered models with codes."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODING)
def test_the_codes_of_every_registered_model_are_drawn(name, digits):
    """All models with codes, small and in their first state, found by capability."""
    entry = entry_of(name, digits)
    batch = {key: np.asarray(values) for key, values in batch_of(entry, 12).items()}
    experiment = Experiment(entry.model)
    dataset = replace(digits, test=batch, format=data.Format(1, levels=entry.levels))
    state = jax.jit(entry.model.init)(jax.random.key(0))
    of = Subject(name, experiment, dataset, {0: state}, 0, None)
    space = command.space_of(of, state, 12)
    assert np.isfinite(space.codes).all()
    flags = command.Flags((), pairs=2, dimensions=2)
    assert command.figure(of, state, space, flags).axes
