"""Completions: laws of draws against enumeration, and measures against constructed draws."""

import functools
import io
import itertools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import NAMES, batch_of, entry_of
from rich.console import Console

from experiments.experiment import Experiment
from experiments.registry import EXPERIMENTS
from experiments.uses import base, complete
from experiments.uses.base import Subject
from gen import data
from gen.core import UserError, capabilities
from gen.models.autoencoder import Autoencoder
from gen.models.autoregressive import FVSBN, MADE, Autoregressive
from gen.models.boltzmann import RBM
from gen.models.gaussian_mixture import MixtureOfGaussians
from gen.models.hmm import HMM, Bernoulli, Gaussian
from gen.models.mixture import Mixture
from gen.models.vae import VAE
from gen.nets import MLP
from gen.uses import completion

SHAPE = (2, 3, 1)
EVERYTHING = jnp.array(list(itertools.product([0.0, 1.0], repeat=6))).reshape(-1, *SHAPE)
LOWER = jnp.zeros(SHAPE).at[0].set(1)
SCATTERED = jnp.array([1, 0, 0, 1, 0, 1]).reshape(SHAPE)
NETWORK = MLP((4,), "tanh")
COMPLETING = [
    name
    for name in NAMES
    if name in EXPERIMENTS and "complete" in capabilities(EXPERIMENTS[name].model)
]
"""Registered models with `complete`."""


def grown(state, factor=3.0):
    """Return a first state with larger parameters, whose variables depend on each other."""
    params = jax.tree.map(lambda leaf: np.float32(factor) * np.asarray(leaf), state.params)
    return state._replace(params=params)


def machine():
    """Return an RBM with large weights, and its state."""
    model = RBM(shape=SHAPE, hidden=4, burn_in=60)
    state = jax.jit(model.init)(jax.random.key(0))
    noise = np.random.default_rng(1).standard_normal(state.params.weight.shape, np.float32)
    return model, state._replace(params=state.params._replace(weight=np.float32(1.2) * noise))


def log_p_of_machine(model, state):
    score = jax.jit(model.score)(state, {"x": EVERYTHING}, jax.random.key(0))
    energy = np.asarray(score, np.float64)
    return -energy - scipy.special.logsumexp(-energy)


def log_p_of_vae(model, state):
    """Return log p(x) of all x, by a fine grid over the single latent variable."""
    z = jnp.linspace(-8, 8, 2001)[:, None]
    mean = np.asarray(jax.jit(model.decode)(state, z), np.float64).reshape(len(z), -1)
    x = np.asarray(EVERYTHING).reshape(len(EVERYTHING), -1)
    log_p = x @ np.log(mean).T + (1 - x) @ np.log1p(-mean).T
    weight = scipy.stats.norm.logpdf(z[:, 0]) + np.log(16 / 2000)
    return scipy.special.logsumexp(log_p + weight, axis=1)


@functools.cache
def models():
    """Return small models with their states and log p of `EVERYTHING`, by name."""
    vae = VAE(shape=SHAPE, latent=1, encoder=NETWORK, decoder=NETWORK)
    made = {
        "mixture": (Mixture(shape=SHAPE, components=3), 3),
        "autoregressive": (Autoregressive(FVSBN(), shape=SHAPE), 40),
        "hmm": (HMM(shape=SHAPE, states=3, emission=Bernoulli()), 3),
    }
    results, draw = {}, np.random.default_rng(5).standard_normal
    for name, (model, factor) in made.items():
        state = jax.jit(model.init)(jax.random.key(2))
        if name == "autoregressive":
            drawn = jax.tree.map(lambda leaf: draw(leaf.shape, np.float32), state.params)
            state = state._replace(params=drawn)
        else:
            state = grown(state, factor)
        results[name] = model, state, jax.jit(model.log_prob)(state, {"x": EVERYTHING})
    results["rbm"] = *machine(), log_p_of_machine(*machine())
    state = jax.jit(vae.init)(jax.random.key(3))  # whose q(z|x) hardly depends on x
    decoder = jax.tree.map(lambda leaf: 4 * np.asarray(leaf), state.params["decoder"])
    state = state._replace(params={**state.params, "decoder": decoder})
    results["vae"] = vae, state, log_p_of_vae(vae, state)
    return results


def conditional(log_p, mask, shown):
    """Return p(x | shown) of `EVERYTHING`, by enumeration."""
    same = np.all((np.asarray(EVERYTHING) == shown) | (np.asarray(mask) == 0), (1, 2, 3))
    p = np.where(same, np.exp(np.asarray(log_p, np.float64)), 0)
    return p / p.sum()


@pytest.mark.parametrize("name", ["vae", "autoregressive"])
def test_draws_have_the_exact_conditional_law(name):
    """The total variation of 4,000 exact draws from their law over 8 states is about 0.017.

    The VAE's q(z|x) is far from p(z|x), so that pseudo-Gibbs without Metropolis steps fails.
    """
    model, state, log_p = models()[name]
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-4)
    for mask in (LOWER, SCATTERED):
        if not completion.is_completed(model, np.asarray(mask)):
            assert name == "autoregressive"
            continue
        shown = np.asarray(EVERYTHING[0b101001])
        x = np.broadcast_to(np.where(mask == 1, shown, 0.0), (4000, *SHAPE))
        drawn = completion.draws(model, state, x, np.asarray(mask), 1, seed=0, block=4000)[0]
        hidden = np.asarray(mask) == 0
        np.testing.assert_array_equal(drawn[:, ~hidden], x[:, ~hidden])
        index = drawn.reshape(-1, 6).astype(int) @ 2 ** np.arange(6)[::-1]
        frequency = np.bincount(index, minlength=64) / len(drawn)
        exact = conditional(log_p, mask, shown)
        assert 0.5 * np.abs(frequency - exact).sum() < 0.04
        # The draws depend on the shown variables: their law is not the marginal law.
        marginal = conditional(log_p, jnp.zeros(SHAPE), shown).reshape(2, 2, 2, 2, 2, 2)
        axes = tuple(int(d) for d in np.flatnonzero(np.asarray(mask) == 1))
        of_hidden = exact.reshape(2, 2, 2, 2, 2, 2).sum(axes)
        assert 0.5 * np.abs(of_hidden - marginal.sum(axes)).sum() > 0.06


@pytest.mark.parametrize("name", ["mixture", "autoregressive", "hmm", "rbm"])
def test_the_conditional_log_probability_equals_enumeration(name):
    model, state, log_p = models()[name]
    log_prob = jax.jit(model.conditional_log_prob)
    for mask in (LOWER, SCATTERED):
        if not completion.is_completed(model, np.asarray(mask)):
            continue
        p = np.array([conditional(log_p, mask, np.asarray(x))[i] for i, x in enumerate(EVERYTHING)])
        values = log_prob(state, EVERYTHING, mask)
        np.testing.assert_allclose(values, np.log(p), atol=2e-4)
        of_each = jnp.broadcast_to(mask, EVERYTHING.shape)
        again = log_prob(state, EVERYTHING, of_each)
        np.testing.assert_allclose(again, values, atol=1e-5)
        nll = completion.conditional_nll(model, state, np.asarray(EVERYTHING), np.asarray(mask))
        assert nll
        assert nll.value == pytest.approx(-np.log(p).mean(), abs=1e-4)
        assert nll.kind == "exact"


def test_several_masks_of_a_network_and_large_machines_have_no_exact_conditional():
    for model in (
        Autoregressive(MADE((9,), masks=2, raster=False), shape=SHAPE),
        RBM(shape=SHAPE, hidden=26),
        RBM(shape=SHAPE, hidden=4, units="gaussian"),
    ):
        assert "conditional_log_prob" not in capabilities(model)
    assert "complete" not in capabilities(VAE(classes=3))
    assert not completion.is_completed(VAE(classes=3), np.ones((28, 28, 1)))
    own_order = Autoregressive(MADE((9,), raster=False), shape=SHAPE)
    assert not completion.is_completed(own_order, np.asarray(LOWER))
    mask = np.ones(SHAPE)
    assert completion.conditional_nll(own_order, None, np.ones((1, *SHAPE)), mask) is None


def test_masks_of_images_hide_all_channels_of_a_pixel():
    lower, scattered, box = (
        completion.occlusion_mask(name, (8, 6, 3), 0) for name in completion.OCCLUSIONS
    )
    assert lower[:4].all()
    assert not lower[4:].any()
    assert scattered.sum() == 8 * 6 * 3 / 2
    assert not box[2:6, 1:5].any()
    assert box.sum() == 3 * (48 - 16)
    for mask in (lower, scattered, box):
        assert (mask == mask[:, :, :1]).all()
    other = completion.occlusion_mask("random", (8, 6, 3), 1)
    assert (scattered != other).any()
    assert completion.occlusion_mask("lower", (5,), 0).tolist() == [1, 1, 0, 0, 0]


def test_a_density_is_completed_within_a_vector():
    """The density of hidden given shown is the joint one divided by the marginal one."""
    model = HMM(shape=(3, 1), states=2, emission=Gaussian())
    state = grown(jax.jit(model.init)(jax.random.key(3)), 2.0)
    grid = jnp.linspace(-30, 30, 4001)
    x = jnp.stack([jnp.full_like(grid, 0.3), grid, jnp.full_like(grid, -0.5)], axis=1)[..., None]
    mask = jnp.array([1, 0, 1])[:, None]
    log_p = jax.jit(model.conditional_log_prob)(state, x, mask)
    assert np.exp(np.asarray(log_p)).sum() * 60 / 4000 == pytest.approx(1, abs=1e-3)
    nll = completion.conditional_nll(model, state, np.asarray(x[:3]), np.asarray(mask))
    assert nll
    assert nll.settings == {"density": True}


def test_a_mixture_of_gaussians_completes_from_the_conditional_mixture(rng):
    """The law of the hidden variable is computed by SciPy, component by component.

    A row hides its first, second or third variable, so that the masks of rows differ.
    """
    model = MixtureOfGaussians((3,), components=2)
    state = jax.jit(model.init)(jax.random.key(0))
    factor = rng.standard_normal((2, 3, 3))
    covariance, weight = factor @ factor.swapaxes(1, 2) + 0.1 * np.eye(3), [0.2, 0.8]
    mean = np.array([[-1, 0, 1], [1, 1, -1]], np.float32)
    root = np.linalg.cholesky(covariance).astype(np.float32)
    log_weight = np.log(weight).astype(np.float32)
    params = state.params._replace(log_weight=log_weight, mean=mean, root=root)
    state = state._replace(params=params)
    row = np.array([0.4, -0.3, 0.6], np.float32)
    x = np.broadcast_to(row, (12_000, 3))
    hidden = np.arange(12_000) % 3
    mask = np.arange(3)[None] != hidden[:, None]
    complete = jax.jit(model.complete)
    drawn = np.asarray(complete(state, x, mask, jax.random.key(1)))
    np.testing.assert_array_equal(drawn[mask], x[mask])
    log_p = np.asarray(jax.jit(model.conditional_log_prob)(state, x[:3], mask[:3]))
    for d in range(3):
        s = [each for each in range(3) if each != d]
        posterior, laws = [], []
        for w, m, c in zip(weight, mean.astype(float), covariance, strict=True):
            of_shown = c[d, s] @ np.linalg.inv(c[np.ix_(s, s)])
            spread = np.sqrt(c[d, d] - of_shown @ c[s, d])
            posterior.append(w * scipy.stats.multivariate_normal(m[s], c[np.ix_(s, s)]).pdf(row[s]))
            laws.append(scipy.stats.norm(m[d] + of_shown @ (row[s] - m[s]), spread))
        posterior = np.array(posterior) / sum(posterior)

        def cdf(value, posterior=posterior, laws=laws):
            return sum(p * law.cdf(value) for p, law in zip(posterior, laws, strict=True))

        assert scipy.stats.kstest(drawn[hidden == d, d], cdf).pvalue > 1e-3
        density = sum(p * law.pdf(row[d]) for p, law in zip(posterior, laws, strict=True))
        assert log_p[d] == pytest.approx(np.log(density), abs=1e-4)
    # Two hidden variables have their joint law. One component takes all of the weight.
    log_weight = np.array([0, -1e9], np.float32)
    one = state._replace(params=state.params._replace(log_weight=log_weight))
    pairs = np.asarray(complete(one, x, np.array([1, 0, 0]), jax.random.key(2)))[:, 1:]
    c = covariance[0]
    law = c[1:, 1:] - np.outer(c[1:, 0], c[0, 1:]) / c[0, 0]
    scale = np.sqrt(np.outer(law.diagonal(), law.diagonal()))
    assert abs(law / scale)[0, 1] > 0.2
    assert np.abs((np.cov(pairs.T) - law) / scale).max() < 0.06


def mixture_truth(n=2_000):
    """Return draws of the mixture as truth, with its model and state."""
    model, state, _ = models()["mixture"]
    sample = jax.jit(model.sample, static_argnums=2)
    return model, state, np.asarray(sample(state, jax.random.key(8), n))


def test_draws_of_the_true_law_have_uniform_ranks_and_cover_the_truth():
    model, state, x = mixture_truth()
    mask = np.asarray(SCATTERED)
    drawn = completion.draws(model, state, x, mask, 19, seed=1, block=500)
    counts = np.bincount(completion.ranks(x, drawn, mask, seed=2), minlength=20)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    covered = completion.coverage(x, drawn, mask, seed=2)
    assert abs(covered.value - 0.9) < 3.3 * np.sqrt(0.09 / len(x))
    # Too narrow and too wide draws.
    narrow = np.repeat(drawn[:1], 19, axis=0)
    assert completion.coverage(x, narrow, mask, seed=2).value < 0.8
    values = np.random.default_rng(0).standard_normal((20, 400, *SHAPE))
    assert completion.coverage(values[0], 3 * values[1:], mask, seed=2).value > 0.97
    with pytest.raises(UserError, match="19, 39"):
        completion.coverage(x, drawn[:18], mask, seed=2)


def test_the_error_of_the_mean_does_not_depend_on_the_number_of_draws():
    """The expectation of the measure is the error of E[hidden | shown], which is enumerated."""
    model, state, x = mixture_truth()
    mask, log_p = np.asarray(SCATTERED), models()["mixture"][2]
    everything = np.asarray(EVERYTHING)
    p = np.array([conditional(log_p, mask, each) for each in everything])
    means = np.einsum("nm,mhwc->nhwc", p, everything)
    index = x.reshape(-1, 6).astype(int) @ 2 ** np.arange(6)[::-1]
    hidden = mask == 0
    exact = ((means[index] - x)[:, hidden] ** 2).mean()
    for count in (2, 19):
        drawn = completion.draws(model, state, x, mask, count, seed=3, block=2_000)
        error = completion.mean_error(x, drawn, mask)
        assert abs(error.value - exact) < 3.3 * error.stderr
    assert error.settings == {"draws": 19}


def test_neighbours_fill_in_the_hidden_part_of_the_nearest_training_examples():
    training = np.array([[0.0, 0, 9, 9], [1, 1, 5, 5], [4, 4, 2, 2]])
    mask = np.array([1, 1, 0, 0])
    filled = completion.neighbours(training, np.array([[0.9, 1, 7, 7]]), mask, 2)
    assert filled.tolist() == [[[0.9, 1, 5, 5]], [[0.9, 1, 9, 9]]]
    with pytest.raises(UserError, match="fewer draws"):
        completion.neighbours(training, training, mask, 4)


def test_a_model_without_completions_is_refused():
    with pytest.raises(UserError, match="VAE has no method complete"):
        completion.draws(VAE(classes=2), None, np.zeros((1, 2)), np.ones(2), 1, 0)


def subject(name, model):
    """Return a model of the digits in its first state, as a command loads it."""
    dataset = data.load("digits")
    experiment = Experiment(model, data="digits", binarize="threshold").on(dataset)
    states = {0: jax.jit(experiment.model.init)(jax.random.key(0))}
    return Subject(name, experiment, dataset, states, 0, None)


SMALL = {
    "mixture": Mixture(components=2),
    "pixels": Autoregressive(FVSBN()),
    "machine": RBM(hidden=3, burn_in=2),
    "vae": VAE(encoder=NETWORK, decoder=NETWORK, latent=2),
}


def test_the_command_fills_in_the_same_examples_by_every_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    subjects = {name: subject(name, model) for name, model in SMALL.items()}
    monkeypatch.setattr(base, "load_subject", lambda path, _: subjects[str(path)])
    monkeypatch.setattr(complete, "of_training", lambda of: {"experiment": of.name})
    flags = ["--occlusion", "lower", "box", "--examples", "12", "--no-keep-programs"]
    assert complete.command([*subjects, *flags]) == 0
    records = {
        name: json.loads((tmp_path / f"samples/{name}/complete.json").read_text())
        for name in subjects
    }
    for name, record in records.items():
        assert record["examples"] == 12
        occlusions = ["lower"] if name == "pixels" else ["lower", "box"]
        assert [row["occlusion"] for row in record["rows"]] == occlusions
        for row in record["rows"]:
            assert ("−log p, nats" in row) == (name != "vae")
            assert 0 < row["squared error"]["value"] < 1
            assert row["coverage"]["settings"]["draws"] == 19
            # All models are compared with the same neighbours.
            assert (
                row["coverage of neighbours"]
                == records["mixture"]["rows"][occlusions.index(row["occlusion"])][
                    "coverage of neighbours"
                ]
            )
    assert (tmp_path / "samples/mixture/complete.png").stat().st_size > 1_000
    assert not (tmp_path / "samples/vae/complete.png").exists()
    assert "12 test examples of digits" in capsys.readouterr().out


def test_a_table_too_wide_for_the_terminal_has_its_equal_columns_in_the_caption(monkeypatch):
    rows = [{"experiment": "gaussians_odds", "occlusion": name, "a": 1.0} for name in "bc"]
    monkeypatch.setenv("COLUMNS", "60")
    wide = base.as_table("title", rows)
    monkeypatch.setenv("COLUMNS", "30")
    narrow = base.as_table("title", rows)
    assert [column.header for column in wide.columns] == ["experiment", "occlusion", "a"]
    assert wide.caption is None
    assert [column.header for column in narrow.columns] == ["occlusion"]
    assert narrow.caption == "experiment: gaussians_odds, a: 1"
    # A table of one row, or of equal rows, keeps its columns.
    for same in (rows[:1], [rows[0], rows[0]]):
        assert len(base.as_table("title", same).columns) == 3


@pytest.mark.parametrize("width", [30, 40, 50, 80])
def test_a_table_never_cuts_a_text(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [{"a": "the cat sat on the mat and ran off", "b": 30 * "B"}, {"a": "x", "b": 30 * "C"}]
    printed = io.StringIO()
    Console(file=printed).print(base.as_table("title", rows))
    assert printed.getvalue().count("B") == 30


def test_models_of_other_data_and_without_completions_are_refused():
    mixture = subject("mixture", Mixture(components=2))
    other = mixture._replace(name="other", dataset=data.load("eight_gaussians"))
    with pytest.raises(UserError, match="other is trained on eight_gaussians and mixture on digit"):
        complete.complete_all([mixture, other], ["box"], 5, 19)
    masked = Autoregressive(MADE((4,), masks=2))
    tasks = complete.tasks_of(mixture, ["box"], 5, 19)
    for model, message in (
        (masked, "none of the occlusions box"),
        (Autoencoder(encoder=NETWORK, decoder=NETWORK), "no method complete"),
    ):
        refused = mixture._replace(experiment=replace(mixture.experiment, model=model))
        with pytest.raises(UserError, match=message):
            complete.complete_subject(refused, tasks, 19)
    with pytest.raises(UserError, match="19, 39"):
        complete.Flags((), draws=20)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPLETING)
def test_every_registered_model_completes_digits(name, digits):
    """All models with `complete`, small and in their first state, found by capability."""
    entry = entry_of(name, digits)
    state = jax.jit(entry.model.init)(jax.random.key(0))
    batch = batch_of(entry, 4)
    x = np.asarray(batch["x"])
    for occlusion in completion.OCCLUSIONS:
        mask = completion.occlusion_mask(occlusion, x.shape[1:], 0)
        if completion.is_completed(entry.model, mask):
            drawn = completion.draws(entry.model, state, x, mask, 2, seed=0)
            assert np.isfinite(drawn).all()
            np.testing.assert_array_equal(drawn[:, :, mask != 0], np.stack([x, x])[:, :, mask != 0])
