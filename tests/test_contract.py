"""The contract, checked for every registered configuration that differs in structure.

Each model is small and works on the 8×8 digits. By default every configuration takes its first step
and uses all that it can do (`-k NAME` selects one). The other checks run for two models by default,
and for one of each type with `-m slow`.
"""

import inspect
import math
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import NAMES, TYPICAL, Entry, batch_of, entry_of, equal, narrow
from flax import linen as nn

from experiments.registry import EXPERIMENTS
from gen import core, optimize, parallel, train
from gen.checkpoint import open_checkpoints
from gen.core import facts
from gen.estimate import Estimate
from gen.models.autoencoder import StackedAutoencoder
from gen.models.diffusion import ResidualMLP, UNet
from gen.models.gan import GAN
from gen.models.vae import VAE
from gen.nets import MLP
from gen.optimize import Optimizer

pytestmark = pytest.mark.filterwarnings("ignore:log Z lies")  # after so little training

BATCH = 16
QUICKLY = {"vae_batch_norm", "rbm_binarized_mnist"}
SOME = [
    pytest.param(name, marks=() if name in QUICKLY else pytest.mark.slow, id=name)
    for name in TYPICAL
]


IMAGE: dict[str, Any] = {"shape": (4, 4, 1), "latent": 3}
STRUCTURES = {
    "vae_vamp_warmup": VAE(
        **IMAGE,
        encoder=MLP((8,), batch_norm=True),
        decoder=MLP((8,)),
        prior="vamp",
        pseudo_inputs=4,
        kl_warmup_steps=2,
    ),
    "vae_sigma_free_bits": VAE(
        **IMAGE,
        encoder=MLP((8,)),
        decoder=MLP((8,)),
        likelihood="gaussian",
        learn_variance=True,
        free_bits=0.1,
    ),
    "gan_codes_spectral_ema": GAN(
        **IMAGE,
        generator=MLP((8,)),
        discriminator=MLP((8,)),
        categorical_codes=(3,),
        spectral_norm=True,
        ema_decay=0.5,
        discriminator_steps=2,
    ),
    "gan_encoder_packed": GAN(
        **IMAGE, generator=MLP((8,)), discriminator=MLP((8,)), encoder=MLP((8,)), pack=2
    ),
}
"""Small models of structures that interact with the axis of `pmap`."""


class Setup(NamedTuple):
    """An entry with the first state of its model and a decoded batch."""

    entry: Entry
    state: Any
    batch: Any

    @property
    def model(self) -> Any:
        return self.entry.model


@pytest.fixture(scope="module")
def setups(digits):
    """Return a function from a name to its setup, which it keeps."""
    made: dict[str, Setup] = {}

    def setup_of(name):
        if name not in made:
            entry = entry_of(name, digits)
            state = jax.jit(entry.model.init)(jax.random.key(0))
            made[name] = Setup(entry, state, batch_of(entry, BATCH))
        return made[name]

    return setup_of


@pytest.fixture(params=NAMES)
def every(request, setups):
    return setups(request.param)


@pytest.fixture(params=SOME)
def some(request, setups):
    return setups(request.param)


def run(step, state, batch, steps):
    """Take steps with fresh keys; return the last state and all metrics."""
    history = []
    for i in range(steps):
        state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(2), i))
        history.append(jax.block_until_ready(metrics))
    return state, history


def fit(entry, **options):
    """Return the progress of `fit` on an entry's data, as a list."""
    return list(
        train.fit(entry.model, entry.data, levels=entry.levels, decode=entry.decode, **options)
    )


def test_first_step_and_capabilities(every):
    """The parts of the contract that a model most often breaks, in seconds."""
    model, state, batch = every.model, every.state, every.batch
    documented(model)
    assert hasattr(state, "_fields")
    leaves = jax.tree.leaves(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.size]
    assert len(set(buffers)) == len(buffers), "an array stands twice in the state"

    state, metrics = jax.jit(model.step)(state, batch, jax.random.key(3))
    # A weak type would become a strong one in the first step, and the second would compile again.
    types = jax.tree.map(lambda leaf: (leaf.aval, leaf.weak_type), (every.state, state))
    assert types[0] == types[1]
    units = core.METRIC_UNITS | {**facts(model).metric_units}
    for name, value in metrics.items():
        assert name in units, f"{name} has no unit"
        assert value.shape == (), name
        assert np.isfinite(value), name

    if isinstance(getattr(model, "net", None), UNet):
        samples = jax.eval_shape(lambda: model.sample(state, jax.random.key(6), 5))
        assert samples.shape == (5, *model.shape)
        model, state = with_a_quick_network(model)
    estimates = model.evaluate(state, batch, jax.random.key(5))
    check_estimates(model, estimates)
    check_capabilities(model, state, batch, estimates)


@pytest.mark.slow
def test_every_method_runs_and_its_results_are_finite(every):
    """The methods that `check_capabilities` traces alone, compiled and run, U-Nets too."""
    model, state, batch = every.model, every.state, every.batch
    able, key = core.capabilities(model), jax.random.key(7)

    def finite(result):
        for leaf in jax.tree.leaves(result):
            assert np.isfinite(leaf).all()

    if "begin" in able:
        state = jax.jit(model.begin)(state, batch, key)
    state, _ = jax.jit(model.step)(state, batch, key)
    check_estimates(model, model.evaluate(state, batch, key))
    if "sample" in able:
        finite(jax.jit(model.sample, static_argnums=2)(state, key, 3))
    if "denoising" in able:
        finite(jax.jit(model.denoising, static_argnums=(2, 3))(state, key, 3, 2))
    if "complete" in able:
        mask = jnp.zeros(model.shape).at[:4].set(1)
        finite(jax.jit(model.complete)(state, batch["x"], mask, key))
    for name in [name for name in ("score", "objective") if name in able]:
        finite(jax.jit(getattr(model, name))(state, batch, key))
    if "scores" in able:
        finite(jax.jit(model.scores)(state, batch, key))
    if "encode" in able:
        codes = jax.jit(model.encode)(state, batch)
        finite(codes)
        if "decode" in able:
            finite(jax.jit(model.decode)(state, codes))


def with_a_quick_network(model):
    """Return a diffusion model with a residual network in place of its U-Net, and a state of it in
    which each weight matters.

    A U-Net takes several times as long to compile in each of the model's methods, which call either
    network in the same way.
    """
    model = replace(model, net=ResidualMLP(width=16, layers=1))
    state, draw = jax.jit(model.init)(jax.random.key(3)), np.random.default_rng(0).standard_normal
    moved = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.01 * draw(leaf.shape, np.float32), state.ema
    )
    return model, state._replace(params=moved, ema=moved)


@pytest.mark.parametrize(
    "name",
    [
        "ae_mnist",
        "vae_conv_mnist",
        "gan_conv_mnist",
        "diffusion_mnist_likelihood",
        pytest.param("flow_matching_mnist", marks=pytest.mark.slow),
        pytest.param("discrete_diffusion_binarized_mnist", marks=pytest.mark.slow),
    ],
)
def test_shapes_are_those_of_images_in_colour(name):
    """The steps and capabilities of each family are traced on three channels, not compiled."""
    model = optimize.for_run(replace(narrow(EXPERIMENTS[name].model), shape=(8, 8, 3)), 10)
    keys, x = jax.random.split(jax.random.key(0), 3), jnp.zeros((4, 8, 8, 3))
    state = jax.eval_shape(model.init, keys[0])
    after, _ = jax.eval_shape(model.step, state, {"x": x}, keys[1])
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    able = core.capabilities(model)
    if "sample" in able:
        assert jax.eval_shape(lambda s: model.sample(s, keys[2], 4), state).shape == x.shape
    if "complete" in able:
        completed = jax.eval_shape(model.complete, state, x, jnp.ones((8, 8, 3)), keys[2])
        assert completed.shape == x.shape
    if "encode" in able and "decode" in able:
        z = jax.eval_shape(model.encode, state, {"x": x})
        assert jax.eval_shape(model.decode, state, z).shape == x.shape
    if "score" in able:
        assert jax.eval_shape(model.score, state, {"x": x}, keys[2]).shape == (4,)


def documented(model):
    """Check that a configuration is a frozen value whose fields have docstrings."""
    assert is_dataclass(model)
    assert hash(model) == hash(
        type(model)(**{f.name: getattr(model, f.name) for f in fields(model)})
    )
    source = inspect.getsource(type(model))
    internal = ("parent", "name", *getattr(type(model), "set_by_model", ()))
    for field in fields(model):
        if field.name in internal and isinstance(model, nn.Module):
            continue
        after = source.split(f"    {field.name}: ")[1].splitlines()[1]
        assert after.strip().startswith('"""'), f"{field.name} has no docstring"
        part = getattr(model, field.name)
        if is_dataclass(part) and type(part).__module__.startswith("gen."):
            documented(part)


def check_estimates(model, estimates):
    """Check that estimates say what they are."""
    assert estimates
    for name, estimate in estimates.items():
        assert isinstance(estimate, Estimate)
        assert np.isfinite(estimate.value), name
        assert estimate.stderr >= 0 or math.isnan(estimate.stderr)
    nll = estimates.get("nll")
    if "log_prob" in core.capabilities(model):
        assert nll.kind == "exact", "log_prob is exact or absent"
        assert facts(model).levels is not None or facts(model).counts
    if nll:
        density = bool(nll.settings.get("density"))
        assert density == (facts(model).levels == 0), "a density is one of continuous data"


def check_capabilities(model, state, batch, estimates):
    """Check each optional method of a model: shapes, ranges, and how they fit together."""
    able, known = core.capabilities(model), facts(model)
    low, high = (-jnp.inf, jnp.inf) if known.counts or known.levels == 0 else (0, 1)

    def check_values(x, rows):
        assert x.shape == (rows, *model.shape)
        assert np.isfinite(x).all()
        assert x.min() >= low
        assert x.max() <= high

    if "sample" in able:
        samples = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(6), 5)
        check_values(samples, 5)
        assert not equal(samples[0], samples[1])
    if known.classes and "sample" in able:
        labelled = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(6), 5, label=1)
        check_values(labelled, 5)
    if "sample_in" in able:
        check_values(
            jax.jit(model.sample_in, static_argnums=(2, 3))(state, jax.random.key(6), 3, 2), 3
        )
    if "chains" in able:
        check_values(
            jax.jit(model.chains, static_argnums=(2, 3))(state, jax.random.key(6), 3, 1), 3
        )
    if "denoising" in able:
        frames = jax.eval_shape(lambda: model.denoising(state, jax.random.key(6), 3, 2))
        assert frames.shape == (3, 3, *model.shape)
    if "encode" in able:
        codes = jax.eval_shape(model.encode, state, batch)
        assert len(codes) == BATCH
        if "decode" in able:
            assert jax.eval_shape(model.decode, state, codes).shape == batch["x"].shape
    if "reconstruct" in able:
        again = jax.jit(model.reconstruct)(state, batch)
        assert again.shape == batch["x"].shape
        if "decode" in able:
            decoded = jax.jit(lambda state, batch: model.decode(state, model.encode(state, batch)))
            np.testing.assert_allclose(decoded(state, batch), again, rtol=1e-5, atol=1e-6)
    for name in [name for name in ("score", "objective") if name in able]:
        values = jax.eval_shape(getattr(model, name), state, batch, jax.random.key(7))
        assert values.shape == (BATCH,), name
    if "scores" in able:
        for name, values in jax.eval_shape(model.scores, state, batch, jax.random.key(7)).items():
            assert values.shape == (BATCH,), name
    if "log_prob" in able:
        terms = model.log_conditionals if "log_conditionals" in able else model.log_prob
        scores, log_prob, terms = jax.jit(
            lambda state, batch, key: (
                model.score(state, batch, key),
                model.log_prob(state, batch),
                terms(state, batch),
            )
        )(state, batch, jax.random.key(7))
        np.testing.assert_allclose(log_prob, -scores, rtol=1e-5)
        np.testing.assert_allclose(terms.reshape(BATCH, -1).sum(1), log_prob, rtol=1e-5)
        np.testing.assert_allclose(estimates["nll"].value, -log_prob.mean(), rtol=1e-5)
    if "free_energy" in able:
        energies, scores = jax.jit(
            lambda state, batch, key: (
                model.free_energy(state, batch),
                model.score(state, batch, key),
            )
        )(state, batch, jax.random.key(7))
        np.testing.assert_array_equal(energies, scores)
    if "complete" in able:
        mask = jnp.zeros(model.shape).at[:4].set(1)
        whole = jax.jit(model.complete)(state, batch["x"], mask, jax.random.key(8))
        check_values(whole, BATCH)
        np.testing.assert_array_equal(whole[:, :4], batch["x"][:, :4])
        assert set(np.unique(whole)) <= {0, 1} or known.levels != 2
    if "conditional_log_prob" in able:
        nothing_shown = jnp.zeros(model.shape)
        if "log_prob" in able:
            hidden = jax.jit(model.conditional_log_prob)(state, batch["x"], nothing_shown)
            np.testing.assert_allclose(hidden, log_prob, rtol=1e-4)
        else:
            values = jax.eval_shape(model.conditional_log_prob, state, batch["x"], nothing_shown)
            assert values.shape == (BATCH,)
    if "filters" in able:
        assert model.filters(state).shape[1:] == model.shape
    if "tables" in able:
        assert all(np.ndim(table) == 2 for table in model.tables(state).values())
    if "layers" in able:
        check_layers(model, state, batch)
    if "encoder_network" in able:
        network, variables = model.encoder_network(state)
        assert jax.eval_shape(network.apply, variables, batch["x"]).shape[0] == BATCH
        fresh = jax.eval_shape(network.init, jax.random.key(0), batch["x"])
        assert jax.tree.map(jnp.shape, dict(fresh)) == jax.tree.map(jnp.shape, dict(variables))
    if "begin" in able:
        begun = jax.eval_shape(model.begin, state, batch, jax.random.key(11))
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (state, begun))
        assert shapes[0] == shapes[1]
    if "bracket" in able:
        bracket = model.bracket(state, jax.random.key(9), 20, 10)
        exact = model.log_partition(state) if "log_partition" in able else None
        for end in (bracket.forward, bracket.reverse):
            assert np.isfinite(end)
            # AIS of a model that has hardly moved from its base rate is near to the truth.
            assert exact is None or abs(end - exact) < 2


def check_layers(model, state, batch):
    """Check that the last hidden layer is the code, or that all of them side by side are."""
    run = jax.jit(model.layers)
    layers = run(state, batch)
    assert all(len(h) == BATCH and h.ndim > 1 for h in layers)
    times = facts(model).noise_times
    if times:
        later = run(state, batch, max(times))
        assert not equal(layers, later)
        assert jax.tree.map(jnp.shape, later) == jax.tree.map(jnp.shape, layers)
    elif "encode" in core.capabilities(model):
        code = jax.jit(model.encode)(state, batch)
        last = layers[-1].reshape(BATCH, -1)
        if last.shape != code.shape:
            last = jnp.concatenate([h.reshape(BATCH, -1) for h in layers], axis=1)
        np.testing.assert_allclose(last, code, rtol=1e-5, atol=1e-6)


def test_init_is_deterministic_and_depends_on_the_key(some):
    model, state = some.model, some.state
    assert equal(state, jax.jit(model.init)(jax.random.key(0)))
    if not any(np.any(leaf) for leaf in jax.tree.leaves(model.parameters(state))):
        pytest.skip("starts at zero, whatever the key: its objective is convex")
    assert not equal(state, jax.jit(model.init)(jax.random.key(1)))


def test_step_compiles_once_can_be_donated_and_depends_on_its_arguments_alone(some):
    model, state, batch = some.model, some.state, some.batch
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(model.step, n=1), donate_argnums=0)
    once, history = run(step, jax.tree.map(jnp.copy, state), batch, 3)
    again, _ = run(step, jax.tree.map(jnp.copy, state), batch, 3)
    assert equal(once, again)
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())


def test_no_key_is_used_twice(some):
    model, state, batch = some.model, some.state, some.batch
    with jax.debug_key_reuse(True):
        jax.jit(model.step)(state, batch, jax.random.key(3))
        jax.jit(model.init)(jax.random.key(3))
        if "sample" in core.capabilities(model):
            jax.jit(model.sample, static_argnums=2)(state, jax.random.key(3), 4)


def test_training_lowers_the_objective(some):
    """From where `init` leaves it: what a model takes from the data to begin with counts, too."""
    model = some.model
    _, first = jax.jit(model.step)(some.state, some.batch, jax.random.key(0))
    losses = [
        progress.metrics["loss"]
        for progress in fit(some.entry, steps=300, batch_size=64, report_every=1)
        if progress.metrics and "loss" in progress.metrics
    ]
    if not losses and model.family == "GAN":
        pytest.skip("two objectives against each other: neither need fall")
    if not losses and model.family == "Boltzmann machine":
        pytest.skip("its objective has no value: log Z is unknown")
    last, margin = np.mean(losses[-40:]), 0.05 * abs(first["loss"])
    assert last < first["loss"] - margin


@pytest.mark.usefixtures("eight_devices")
def test_mesh_equals_one_device(some):
    """Every metric of 100 steps within 2e-5, and the state within 1e-5 on average.

    Not every weight: where a gradient is zero but for rounding, dividing by √v makes a full step of
    it, up or down. Such a weight differs and hardly matters.
    """
    model, state, batch = some.model, some.state, some.batch
    one, one_history = run(jax.jit(model.step), state, batch, 100)
    mesh = parallel.make_mesh(8)

    def sharded(state, batch, key):
        return model.step(state, parallel.split_rows(batch, mesh), key)

    everywhere = parallel.replicated(mesh)
    step = jax.jit(sharded, out_shardings=everywhere)
    many, many_history = run(step, jax.device_put(state, everywhere), batch, 100)
    chex.assert_trees_all_close(
        jax.device_get(one_history), jax.device_get(many_history), rtol=2e-5, atol=2e-5
    )
    distance = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).ravel(), one, many)
    assert np.concatenate(jax.tree.leaves(distance)).mean() < 1e-5


@pytest.mark.usefixtures("eight_devices")
def test_pmap_replicas_agree_and_learn_from_every_shard(some):
    check_pmap(some.model, some.state, some.batch)


@pytest.mark.slow
@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize("name", STRUCTURES)
def test_pmap_replicas_of_other_structures_agree(name):
    model = STRUCTURES[name]
    state = jax.jit(model.init)(jax.random.key(0))
    check_pmap(model, state, {"x": jax.random.uniform(jax.random.key(1), (BATCH, 4, 4, 1))})


def check_pmap(model, state, batch):
    step = parallel.pmap_step(model, 4)
    shards = parallel.shard(batch, 4)
    states, history = run(step, parallel.replicate(state, 4), shards, 3)
    for leaf in jax.tree.leaves((states, history)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    # Another last shard gives another state: the mean is over all of them.
    other = {**shards, "x": np.concatenate([shards["x"][:3], 1 - np.asarray(shards["x"][3:])])}
    others, _ = run(step, parallel.replicate(state, 4), other, 3)
    assert not equal(states, others)


def test_seeds_under_vmap_equal_each_alone(some):
    options = {"steps": 30, "batch_size": BATCH, "report_every": 10}
    together = fit(some.entry, seed=[0, 7], **options)[-1]
    alone = fit(some.entry, seed=7, **options)[-1]
    of_seven = jax.tree.map(lambda leaf: leaf[1], together.carry)
    carries = map(without_key_biases, (of_seven, alone.carry))
    chex.assert_trees_all_close(*carries, rtol=1e-4, atol=1e-4)
    assert together.metrics
    assert alone.metrics
    for name, values in together.metrics.items():
        np.testing.assert_allclose(values[1], alone.metrics[name], rtol=1e-4)


def test_grouping_steps_changes_nothing(some):
    options = {"steps": 25, "batch_size": BATCH, "report_every": 10}
    one = fit(some.entry, steps_per_dispatch=1, **options)
    grouped = fit(some.entry, steps_per_dispatch=7, **options)
    assert [p.step for p in grouped] == [7, 10, 17, 20, 25]
    carries = (without_key_biases(progress[-1].carry) for progress in (one, grouped))
    chex.assert_trees_all_close(*carries, rtol=1e-5, atol=1e-6)


def without_key_biases(tree):
    """Return the leaves by path, without the biases of attention's keys, which softmax does not
    see: their gradient is rounding alone, of which Adam makes full steps."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if "['key']['bias']" not in name}


def test_restored_run_continues_bit_for_bit(some, tmp_path):
    model, data, _, decode = some.entry
    options = {"batch_size": BATCH, "report_every": 10, "seed": 3, "steps_per_dispatch": 7}
    whole = fit(some.entry, steps=25, **options)[-1]
    half = fit(some.entry, steps=13, pause_every=[13], **options)[-1]
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(half.step, half.carry, {"note": 1})
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        target = jax.eval_shape(lambda: train.begin(model, data, BATCH, 3, decode=decode))
        restored = checkpoints.restore(target)
    assert restored
    assert (restored.step, restored.info, restored.damaged) == (13, {"note": 1}, {})
    assert equal(restored.tree, half.carry)
    resumed = fit(some.entry, steps=25, start=(restored.step, restored.tree), **options)[-1]
    assert equal(resumed.carry, whole.carry)
    assert resumed.metrics == whole.metrics


def test_evaluate_does_not_depend_on_earlier_calls(some):
    first, second = (
        some.model.evaluate(some.state, some.batch, jax.random.key(5)) for _ in range(2)
    )
    assert first == second


def test_score_is_higher_for_strangers_after_training(some):
    model, state, batch = some.model, some.state, some.batch
    if "score" not in core.capabilities(model):
        pytest.skip("has no score")
    if isinstance(model, GAN):
        pytest.skip("a discriminator tells data from samples, and from nothing else")
    if isinstance(model, StackedAutoencoder):  # each layer has to learn before it reconstructs
        model = replace(model, pretraining=75)
    noise = jax.random.uniform(jax.random.key(7), batch["x"].shape)
    learned, _ = run(jax.jit(model.step), state, batch, 150)
    score, key = jax.jit(model.score), jax.random.key(8)
    stranger = score(learned, {**batch, "x": noise}, key).mean()
    assert stranger > score(learned, batch, key).mean()


def test_facts_have_defaults_and_follow_the_model():
    class Plain:
        pass

    class Conditional:
        classes, lacks, sample = 3, ("sample",), max

    assert facts(Plain()) == core.Facts()
    assert facts(Conditional()).classes == 3
    assert core.capabilities(Conditional()) == ()


def test_optimizer_is_a_value_of_every_model_that_follows_a_gradient(every):
    """The learning rate is a flag of its own: no model has a second place for it."""
    names = {field.name for field in fields(every.model)}
    assert not names & {"learning_rate", "decay_steps", "weight_decay", "momentum", "b1"}
    if "optimizer" in names:
        assert isinstance(every.model.optimizer, Optimizer)
