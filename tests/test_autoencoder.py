"""Autoencoders against their definitions and, where they are linear, against closed forms."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equal
from flax.traverse_util import flatten_dict

from gen import parallel, train
from gen.core import UserError, capabilities
from gen.models.autoencoder import Autoencoder, StackedAutoencoder
from gen.models.autoencoder.model import corrupt, largest
from gen.models.autoencoder.stacked import RANGES
from gen.nets import MLP, ConvEncoder, activate
from gen.optimize import Optimizer


def test_the_default_is_the_textbooks_network():
    model = Autoencoder()
    state = jax.eval_shape(model.init, jax.random.key(0))
    params: dict[tuple[str, ...], Any] = flatten_dict(state.params)
    assert {path: leaf.shape for path, leaf in params.items() if leaf.ndim == 2} == {
        ("encoder", "Dense_0", "kernel"): (784, 784),
        ("encoder", "Dense_1", "kernel"): (784, 256),
        ("encoder", "Dense_2", "kernel"): (256, 128),
        ("decoder", "Dense_0", "kernel"): (128, 128),
        ("decoder", "Dense_1", "kernel"): (128, 256),
        ("decoder", "Dense_2", "kernel"): (256, 784),
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(model.parameters(state))) == 1_100_320


def test_initial_weights_are_glorot_uniform():
    params = jax.jit(Autoencoder().init)(jax.random.key(0)).params
    kernel = np.asarray(params["encoder"]["Dense_1"]["kernel"])
    limit = np.sqrt(6 / (784 + 256))
    assert np.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.01)
    assert not any(leaf.any() for leaf in jax.tree.leaves(params) if leaf.ndim == 1)


def test_loss_is_the_mean_of_the_scores_and_of_the_squared_errors(digits):
    model = Autoencoder(shape=digits.shape, encoder=MLP((12, 5)), decoder=MLP((12,)))
    state = jax.jit(model.init)(jax.random.key(0))
    batch = {"x": np.asarray(digits.train["x"][:7], np.float32) / digits.format.peak}
    key = jax.random.key(1)
    _, metrics = jax.jit(model.step)(state, batch, key)
    errors = (batch["x"] - np.asarray(jax.jit(model.reconstruct)(state, batch))) ** 2
    np.testing.assert_allclose(metrics["loss"], errors.mean(), rtol=1e-5)
    scores = jax.jit(model.score)(state, batch, key)
    np.testing.assert_allclose(scores, errors.mean(axis=(1, 2, 3)), rtol=1e-5)
    mse = model.evaluate(state, batch, key)["mse"]
    np.testing.assert_allclose(mse.value, errors.mean(), rtol=1e-5)
    assert (mse.kind, mse.n) == ("exact", 7)


def test_linear_autoencoder_finds_the_principal_subspace():
    """The least squared error of a linear code of 3 is the variance outside the first 3 principal
    components (Baldi & Hornik 1989)."""
    scales = np.array([2.0, 1.5, 1.0, 0.5, 0.4, 0.3])
    x = np.asarray(jax.random.normal(jax.random.key(0), (256, 6))) * scales
    variances = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    best = variances[3:].sum() / x.size

    model = Autoencoder(shape=(6,), encoder=MLP((3,), "linear"), decoder=MLP(()), output="linear")
    data = {"x": np.asarray(x, np.float32)}
    *_, last = train.fit(model, data, steps=3000, batch_size=256, steps_per_dispatch=1000)
    error = model.evaluate(last.carry.state, data, jax.random.key(0))["mse"].value
    assert best <= error < 1.02 * best


def test_denoising_on_gaussian_data_gives_the_posterior_mean_and_the_score():
    """For x ~ N(m, S) and x̃ = x + σ ε, the posterior mean is E[x|x̃] = x̃ − σ² (S + σ² I)⁻¹ (x̃ − m),
    and the score of the noisy density N(m, S + σ² I) is (E[x|x̃] − x̃) / σ²."""
    sigma, mean = 0.8, np.array([1.0, -2.0, 0.5])
    factor = np.array([[1.5, 0.0, 0.0], [0.9, 0.6, 0.0], [-0.5, 0.3, 0.4]])
    x = mean + np.random.RandomState(0).randn(1_000, 3) @ factor.T
    model = Autoencoder(
        shape=(3,),
        encoder=MLP((3,), "linear"),
        decoder=MLP(()),
        output="linear",
        noise="gaussian",
        corruption=sigma,
        optimizer=Optimizer("adam", 0.03, "cosine"),
    )
    data = {"x": x.astype(np.float32)}
    *_, last = train.fit(model, data, steps=1_200, batch_size=1_000, steps_per_dispatch=400)
    noisy = mean + np.random.RandomState(1).randn(200, 3)
    precision = np.linalg.inv(np.cov(x.T, bias=True) + sigma**2 * np.eye(3))
    score = -(noisy - x.mean(axis=0)) @ precision
    r = np.asarray(jax.jit(model.reconstruct)(last.carry.state, {"x": jnp.asarray(noisy)}))
    np.testing.assert_allclose(r, noisy + sigma**2 * score, atol=0.1)
    np.testing.assert_allclose((r - noisy) / sigma**2, score, atol=0.15)


def test_corruption_changes_the_share_of_pixels_that_it_says():
    x, key = jnp.full((100, 50), 0.3), jax.random.key(0)
    masked = np.asarray(corrupt(x, "masking", 0.2, key))
    assert set(np.unique(masked)) == {np.float32(0), np.float32(0.3)}
    assert np.mean(masked == 0) == pytest.approx(0.2, abs=0.02)
    salted = np.asarray(corrupt(x, "salt_and_pepper", 0.4, key))
    shares = [np.mean(salted == np.float32(value)) for value in (0, 0.3, 1)]
    np.testing.assert_allclose(shares, [0.2, 0.6, 0.2], atol=0.02)
    noisy = np.asarray(corrupt(x, "gaussian", 0.5, key))
    assert noisy.std() == pytest.approx(0.5, rel=0.03)
    assert corrupt(x, "none", 0.0, key) is x


def test_k_sparse_codes_keep_their_k_largest_entries():
    z = jnp.array([[3.0, -1.0, 2.0, 2.0], [-5.0, -4.0, -3.0, -2.0]])
    expected = [[3, 0, 2, 0], [0, 0, -3, -2]]
    np.testing.assert_array_equal(largest(z, 2), expected)
    model = Autoencoder(
        (9,), MLP((20,), "linear"), MLP(()), "linear", sparsity="top_k", active=4, tied=True
    )
    state = jax.jit(model.init)(jax.random.key(0))
    codes = jax.jit(model.encode)(state, {"x": jax.random.normal(jax.random.key(1), (50, 9))})
    np.testing.assert_array_equal(np.count_nonzero(codes, axis=1), 4)
    with pytest.raises(UserError, match="active is 21, the code has 20"):
        jax.eval_shape(replace(model, active=21).init, jax.random.key(0))


def sigmoid_autoencoder(**fields) -> Autoencoder:
    fields = {"encoder": MLP((5,), "sigmoid"), "decoder": MLP(()), "output": "sigmoid", **fields}
    return Autoencoder(shape=(7,), **fields)


def first_step(model):
    """Return a state, a batch, and the state and metrics after a step on it."""
    state = jax.jit(model.init)(jax.random.key(0))
    batch = {"x": jax.random.uniform(jax.random.key(1), (6, 7))}
    return state, batch, *jax.jit(model.step)(state, batch, jax.random.key(2))


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        (MLP((5,), "sigmoid"), MLP(())),
        (MLP((5,), "tanh"), MLP(())),
        (MLP((6, 5), "sigmoid"), MLP((6,))),
    ],
    ids=("sigmoid", "tanh", "two_layers"),
)
def test_contraction_is_the_squared_norm_of_the_jacobian(encoder, decoder):
    """The penalty of one sigmoid layer is in closed form, all others are differentiated."""
    model = sigmoid_autoencoder(encoder=encoder, decoder=decoder, contraction_weight=0.3, tied=True)
    state, batch, _, metrics = first_step(model)
    jacobian_of = jax.jacfwd(lambda x: model.encode(state, {"x": x[None]})[0])
    jacobian = np.asarray(jax.jit(jax.vmap(jacobian_of))(batch["x"]))
    assert jacobian.shape == (6, 5, 7)
    norm = float(np.sum(jacobian**2)) / 6
    np.testing.assert_allclose(metrics["contraction"], norm, rtol=1e-5)
    loss = metrics["reconstruction"] + 0.3 * norm
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


def test_sparsity_penalties_are_their_formulas():
    model = sigmoid_autoencoder(sparsity="kl", sparsity_weight=0.7, sparsity_target=0.1)
    state, batch, _, metrics = first_step(model)
    rho = np.asarray(jax.jit(model.encode)(state, batch), np.float64).mean(axis=0)
    expected = np.sum(0.1 * np.log(0.1 / rho) + 0.9 * np.log(0.9 / (1 - rho)))
    np.testing.assert_allclose(metrics["sparsity"], expected, rtol=1e-5)
    loss = metrics["reconstruction"] + 0.7 * expected
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    model = sigmoid_autoencoder(
        encoder=MLP((5,), "tanh"), sparsity="l1", sparsity_weight=0.7, tied=True
    )
    state, batch, _, metrics = first_step(model)
    expected = np.abs(jax.jit(model.encode)(state, batch)).sum() / 6
    np.testing.assert_allclose(metrics["sparsity"], expected, rtol=1e-5)


@pytest.mark.usefixtures("eight_devices")
def test_mean_activity_is_taken_over_the_replicas_of_pmap():
    """The KL of a mean is not the mean of KLs, so the step equals the one on the whole batch."""
    model = sigmoid_autoencoder(
        sparsity="kl", sparsity_weight=1.0, optimizer=Optimizer("sgd", learning_rate=1.0)
    )
    state = jax.jit(model.init)(jax.random.key(0))
    batch, key = {"x": jax.random.uniform(jax.random.key(1), (8, 7))}, jax.random.key(2)
    alone, _ = jax.jit(model.step)(state, batch, key)
    shards = parallel.shard(batch, 4)
    together, _ = parallel.pmap_step(model, 4)(parallel.replicate(state, 4), shards, key)
    for one, many in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(many[0], one, rtol=1e-4, atol=1e-6)


def test_cross_entropy_is_its_formula():
    model = sigmoid_autoencoder(loss="cross_entropy")
    state, batch, _, metrics = first_step(model)
    x, g = np.asarray(batch["x"]), np.asarray(jax.jit(model.reconstruct)(state, batch))
    expected = -np.sum(x * np.log(g) + (1 - x) * np.log(1 - g)) / 6
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_tied_weights_are_transposed_and_stay_tied():
    model = sigmoid_autoencoder(
        encoder=MLP((6, 5), "sigmoid"), decoder=MLP((6,), "tanh"), tied=True
    )
    _, batch, state, _ = first_step(model)
    names = {"/".join(path) for path in flatten_dict(state.params["decoder"])}
    assert names == {"Dense_0/bias", "Dense_1/bias"}
    encoder = state.params["encoder"]
    (w1, c1), (w2, c2) = ([encoder[f"Dense_{i}"][k] for k in ("kernel", "bias")] for i in (0, 1))
    b2, b1 = (state.params["decoder"][f"Dense_{i}"]["bias"] for i in range(2))
    z = jax.nn.sigmoid(jax.nn.sigmoid(batch["x"] @ w1 + c1[None]) @ w2 + c2[None])
    x_hat = jax.nn.sigmoid(jnp.tanh(z @ w2.T + b2[None]) @ w1.T + b1[None])
    np.testing.assert_allclose(jax.jit(model.reconstruct)(state, batch), x_hat, rtol=1e-5)


def test_greedy_stages_train_one_layer_at_a_time():
    """Each layer takes `pretraining` steps, on codes of clean examples, and the last all others."""
    model = StackedAutoencoder(
        shape=(7,), hidden=(6, 5, 4), corruptions=(0.1, 0.2, 0.3), pretraining=2
    )
    assert [each.corruption for each in model.autoencoders] == [0.1, 0.2, 0.3]
    state, step = jax.jit(model.init)(jax.random.key(0)), jax.jit(model.step)
    batch, changed = {"x": jax.random.uniform(jax.random.key(1), (8, 7))}, []
    for i in range(6):
        key = jax.random.key(i)
        after, metrics = step(state, batch, key)
        pairs = zip(state.layers, after.layers, strict=True)
        changed += [layer for layer, pair in enumerate(pairs) if not equal(*pair)]
        if i == 2:  # the second layer's first step
            x = model.layers(state, batch)[0]
            _, expected = model.autoencoders[1].step(state.layers[1], {"x": x}, key)
            np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
        state = after
    assert changed == [0, 0, 1, 1, 2, 2]
    assert [h.shape for h in model.layers(state, batch)] == [(8, 6), (8, 5), (8, 4)]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_stack_is_one_network(batch_norm):
    layer = Autoencoder(
        encoder=MLP((1,), "tanh", batch_norm=batch_norm), decoder=MLP(()), output="linear"
    )
    model = StackedAutoencoder(shape=(7,), hidden=(6, 5), layer=layer)
    state = jax.jit(model.init)(jax.random.key(0))
    batch = {"x": jax.random.normal(jax.random.key(1), (4, 7))}
    network: Any
    network, variables = model.encoder_network(state)
    np.testing.assert_allclose(network.apply(variables, batch["x"]), model.encode(state, batch))


def test_filters_need_a_dense_first_layer():
    assert "filters" in capabilities(Autoencoder())
    assert "filters" not in capabilities(Autoencoder(encoder=ConvEncoder()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "cross_entropy"}, "set output sigmoid, not relu"),
        ({"noise": "masking", "corruption": 1.0}, "a share of pixels, must be below 1"),
        (
            {"noise": "salt_and_pepper", "corruption": 0.1, "output": "linear"},
            "take gaussian noise",
        ),
        ({"sparsity": "l1"}, "sparsity l1 has no effect with an untied decoder"),
        ({"contraction_weight": 0.1}, "contraction_weight has no effect with an untied decoder"),
        ({"sparsity": "top_k"}, "active is 0, must be positive with sparsity top_k"),
        ({"sparsity": "kl", "sparsity_weight": 1.0}, "take an encoder with sigmoid units"),
        ({"tied": True, "encoder": ConvEncoder()}, "take an MLP with layers as encoder"),
        ({"tied": True}, r"set decoder.hidden to \(256, 784\)"),
        (
            {"tied": True, "encoder": MLP((5,), batch_norm=True), "decoder": MLP(())},
            "no batch normalisation",
        ),
    ],
)
def test_combinations_without_sense_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Autoencoder(**fields)


def test_fields_of_another_choice_are_not_used():
    """The sparsity and the noise are off, so their other fields change nothing."""
    model = Autoencoder((7,), MLP((5,)), MLP(()))
    unused = {"corruption": 0.3, "sparsity_weight": 1.0, "sparsity_target": 0.0, "active": 9}
    key = jax.random.key(0)
    programs = []
    for each in (model, replace(model, **unused)):
        state = jax.eval_shape(each.init, key)
        programs.append(str(jax.make_jaxpr(each.step)(state, {"x": jnp.ones((2, 7))}, key)))
    assert programs[0] == programs[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": (5,)}, "must have two layers or more"),
        ({"corruptions": (0.1,)}, "must have one number for each of the 3 layers"),
        ({"corruptions": (0.0, 0.2, 1.0)}, r"corruptions is \(0.0, 0.2, 1.0\), shares"),
        ({"layer": Autoencoder()}, "take an MLP of one layer"),
        (
            {"layer": sigmoid_autoencoder(encoder=MLP((5,)), loss="cross_entropy")},
            "layer.output is sigmoid, which cannot reconstruct the relu units",
        ),
        (
            {"layer": sigmoid_autoencoder(encoder=MLP((5,), "tanh"), output="relu")},
            "layer.output is relu, which cannot reconstruct the tanh units",
        ),
        (
            {
                "layer": sigmoid_autoencoder(
                    encoder=MLP((5,)), output="relu", noise="salt_and_pepper", corruption=0.1
                )
            },
            "take sigmoid units or gaussian noise",
        ),
        (
            {"layer": sigmoid_autoencoder(optimizer=Optimizer(schedule="cosine"))},
            "set its decay_steps, for example to pretraining",
        ),
    ],
)
def test_impossible_stacks_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        StackedAutoencoder(**fields)


def test_a_layer_of_a_stack_may_have_no_corruption():
    model = StackedAutoencoder(hidden=(6, 5), corruptions=(0.0, 0.2))
    assert [each.corruption for each in model.autoencoders] == [0.0, 0.2]


def test_a_stack_takes_units_in_the_range_of_its_output():
    for encoder, output in (
        (MLP((5,), "relu"), "linear"),
        (MLP((5,), "sigmoid"), "relu"),
        (MLP((5,), "tanh"), "elu"),
    ):
        layer = sigmoid_autoencoder(encoder=encoder, output=output)
        StackedAutoencoder(hidden=(6, 5), layer=layer)
    for units, (low, high) in RANGES.items():
        values = np.asarray(activate(units, jnp.linspace(-50, 50, 1_001)))
        assert low <= values.min()
        assert values.max() <= high


def test_impossible_hyperparameters_are_refused():
    with pytest.raises(UserError, match=r"hidden is \(8, -1\), must be positive"):
        Autoencoder(encoder=MLP((8, -1)))
