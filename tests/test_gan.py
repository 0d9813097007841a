"""The GAN's losses and regularizers at their known values, and which player moves in which step."""

import itertools
from dataclasses import replace
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equal
from flax import linen as nn
from scipy.stats import wasserstein_distance
from sklearn.metrics import normalized_mutual_info_score

from experiments.experiment import Experiment
from experiments.run import FAULTS, known_faults, print_faults
from gen import estimate, parallel, train
from gen.core import UserError
from gen.models.gan import GAN, DCGANDiscriminator, DCGANGenerator, regularizers
from gen.models.gan.information import information_bound, normalized_information
from gen.models.gan.losses import LOSSES, generator_and_encoder
from gen.models.gan.networks import Heads, packed
from gen.models.gan.regularizers import PENALTY_WEIGHTS
from gen.nets import MLP, ConvEncoder, beside
from gen.optimize import Optimizer


def small(size=4, width=8, dropout=0.3, **fields) -> GAN:
    networks = {"generator": MLP((width,)), "discriminator": MLP((width,), dropout=dropout)}
    return GAN(**{"shape": (size,), "latent": 3, **networks, **fields})


SMALL = small()
INIT, STEP, DISCRIMINATOR_STEP, GENERATOR_STEP = map(
    jax.jit, (SMALL.init, SMALL.step, SMALL.discriminator_step, SMALL.generator_step)
)


def test_the_default_is_the_textbooks_network():
    model = GAN()
    state = jax.eval_shape(model.init, jax.random.key(0))

    def kernels(player):
        return [player.params[f"Dense_{i}"]["kernel"].shape for i in range(4)]

    assert kernels(state.generator) == [(100, 256), (256, 512), (512, 1024), (1024, 784)]
    assert kernels(state.discriminator) == [(784, 1024), (1024, 512), (512, 256), (256, 1)]
    assert sum(leaf.size for leaf in jax.tree.leaves(model.parameters(state))) == 2_946_577


def law(counts) -> np.ndarray:
    """Return the points 0, 1, ... as often as `counts` says, so that means are expectations."""
    return np.repeat(np.arange(len(counts)), counts)


P, Q = np.array([4, 2, 1, 1]) / 8, np.array([1, 1, 2, 4]) / 8
REAL, FAKE = law([4, 2, 1, 1]), law([1, 1, 2, 4])
KL = {name: np.sum(law * np.log(2 * law / (P + Q))) for name, law in (("p", P), ("q", Q))}
OPTIMAL = {  # the optimal D at each point, and the losses of both players there
    "minimax": (
        np.log(P / Q),
        np.log(4) - KL["p"] - KL["q"],  # log 4 − 2 JSD
        KL["q"] - np.log(2),
    ),
    "non_saturating": (
        np.log(P / Q),
        np.log(4) - KL["p"] - KL["q"],
        -np.sum(Q * np.log(P / (P + Q))),
    ),
    "least_squares": (
        (P - Q) / (P + Q),
        1 - 0.5 * np.sum((P - Q) ** 2 / (P + Q)),  # half of Pearson's χ²(p + q ‖ 2q)
        0.5 * np.sum(Q * ((P - Q) / (P + Q)) ** 2),
    ),
    "hinge": (
        np.sign(P - Q),
        2 - np.abs(P - Q).sum(),  # 2 − 2 TV
        -np.sum(Q * np.sign(P - Q)),
    ),
}


@pytest.mark.parametrize("name", OPTIMAL)
def test_losses_take_their_known_values_at_the_optimal_discriminator(name):
    at_optimum, d_loss, g_loss = OPTIMAL[name]
    discriminator, generator = LOSSES[name]
    values = np.asarray(at_optimum, np.float32)

    @jax.jit
    def losses(values):
        real, fake = values[REAL], values[FAKE]
        return discriminator(real, fake), generator(real, fake)

    np.testing.assert_allclose(losses(values), (d_loss, g_loss), rtol=1e-5)
    # No other D has a lower loss: its gradient by the value at each point is 0, or D is at a kink.
    gradient = jax.jit(jax.grad(lambda values: losses(values)[0]))(values)
    if name != "hinge":
        np.testing.assert_allclose(gradient, np.zeros(4), atol=1e-6)
    for e in np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32):
        assert losses(values + e)[0] >= d_loss - 1e-5


def test_the_generators_part_of_least_squares_is_half_the_pearson_divergence():
    """Together with ½ E[D(x)²], which the generator cannot change."""
    at_optimum = (P - Q) / (P + Q)
    loss = LOSSES["least_squares"].generator(jnp.zeros(8), jnp.asarray(at_optimum)[FAKE])
    chi_squared = np.sum((2 * Q - (P + Q)) ** 2 / (P + Q))
    np.testing.assert_allclose(loss + 0.5 * np.sum(P * at_optimum**2), 0.5 * chi_squared, rtol=1e-5)


def test_the_wasserstein_loss_is_the_distance_of_point_masses():
    """D(x) = −x attains W₁ where the samples lie above the data; no D of slope 1 has less."""
    discriminator, generator = LOSSES["wasserstein"]
    data, samples = np.array([0.0, 3.0]), np.array([1.0, 7.0])
    distance = wasserstein_distance(data, samples)
    np.testing.assert_allclose(discriminator(-jnp.array(data), -jnp.array(samples)), -distance)
    np.testing.assert_allclose(generator(-jnp.array(data), -jnp.array(samples)), 4.0)
    rng = np.random.default_rng(0)
    for _ in range(20):  # piecewise linear, with slopes in [−1, 1] between the integers
        d = jnp.asarray(np.append(0.0, np.cumsum(rng.uniform(-1, 1, 7))))
        assert discriminator(d[data.astype(int)], d[samples.astype(int)]) >= -distance


def test_the_relativistic_losses_compare_pairs_and_mirror_each_other():
    real, fake = jnp.array([0.3, -1.2, 2.0]), jnp.array([-0.4, 0.9, -2.2])
    discriminator, generator = LOSSES["relativistic"]
    np.testing.assert_allclose(discriminator(real, real), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(
        discriminator(real, fake), np.log1p(np.exp(-(real - fake))).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(generator(real, fake), discriminator(fake, real))
    np.testing.assert_allclose(discriminator(real + 5, fake + 5), discriminator(real, fake))
    np.testing.assert_allclose(
        generator_and_encoder("relativistic", real, fake), generator(real, fake)
    )
    for loss in (discriminator, generator):
        of_both = jax.jit(lambda both, loss=loss: loss(both[:3], both[3:]))
        both = np.concatenate([real, fake])
        step = 1e-2 * np.eye(6, dtype=np.float32)
        differences = [(of_both(both + e) - of_both(both - e)) / 2e-2 for e in step]
        np.testing.assert_allclose(jax.jit(jax.grad(of_both))(both), differences, atol=1e-4)


def softplus(x):
    return np.log1p(np.exp(x))


R, F = np.array([0.3, -1.2, 2.0]), np.array([-0.4, 0.9, -2.2])
PAIRS = {  # the loss of a BiGAN's generator and encoder at the logits R of data and F of samples
    "minimax": -softplus(F).mean() - softplus(-R).mean(),
    "non_saturating": softplus(-F).mean() + softplus(R).mean(),
    "least_squares": 0.5 * (F**2).mean() + 0.5 * (R**2).mean(),
    "hinge": R.mean() - F.mean(),
    "wasserstein": R.mean() - F.mean(),
    "relativistic": softplus(R - F).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_an_encoder_adds_the_mirror_image_of_the_generators_loss(name):
    loss = generator_and_encoder(name, jnp.array(R), jnp.array(F))
    np.testing.assert_allclose(loss, PAIRS[name], rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_finite_at_extreme_logits(name):
    for loss in LOSSES[name]:
        for logit in (-100.0, 100.0):
            both = np.full((2, 3), logit, np.float32)
            value, gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))(*both)
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()


def test_only_non_saturating_loss_pulls_a_losing_generator():
    """Where D(G(z)) is near 0 the minimax gradient vanishes (Goodfellow et al. 2014, section 3)."""
    losing = jnp.full(1, -20.0)
    pull = {
        name: jax.grad(LOSSES[name].generator, 1)(losing, losing)[0]
        for name in ("minimax", "non_saturating")
    }
    assert abs(pull["minimax"]) < 1e-8
    np.testing.assert_allclose(pull["non_saturating"], -1.0, rtol=1e-6)


def curved(inputs):
    """Return a smooth D of pairs (x, z), [B]."""
    return jnp.sin(inputs["x"] @ jnp.array([1.0, -2.0, 0.5])) + jnp.sum(inputs["z"] ** 2, axis=1)


def pairs_of(key):
    x_key, z_key = jax.random.split(key)
    return {"x": jax.random.normal(x_key, (4, 3)), "z": jax.random.normal(z_key, (4, 2))}


def squared_slopes(inputs) -> np.ndarray:
    """Return ‖∇D‖² of each row by finite differences, [B]."""
    total, h, compiled = np.zeros(4), 1e-2, jax.jit(curved)
    for name, values in inputs.items():
        for d in range(values.shape[1]):
            move = np.zeros(values.shape, np.float32)
            move[:, d] = h
            ends = [
                np.asarray(compiled({**inputs, name: np.asarray(values) + sign * move}))
                for sign in (1, -1)
            ]
            total += ((ends[0] - ends[1]) / (2 * h)) ** 2
    return total


def test_penalties_equal_finite_differences():
    real, fake = pairs_of(jax.random.key(0)), pairs_of(jax.random.key(1))
    key = jax.random.key(2)
    r1, r2 = 0.5 * squared_slopes(real).mean(), 0.5 * squared_slopes(fake).mean()
    u = jax.random.uniform(key, (4,))[:, None]
    between = jax.tree.map(lambda a, b: u * a + (1 - u) * b, real, fake)
    expected: dict[Any, Any] = {
        "gradient_penalty": np.mean((np.sqrt(squared_slopes(between)) - 1) ** 2),
        "r1": r1,
        "r1_r2": r1 + r2,
    }
    for name, value in expected.items():
        found = jax.jit(partial(regularizers.penalty, name, curved))(real, fake, key)
        np.testing.assert_allclose(found, value, rtol=2e-3)


def test_a_logit_of_a_pack_has_the_slope_of_all_its_rows():
    inputs = pairs_of(jax.random.key(0))
    packs = regularizers.squared_slopes(lambda x: curved(x).reshape(-1, 2).sum(1), inputs)
    np.testing.assert_allclose(packs, squared_slopes(inputs).reshape(-1, 2).sum(1), rtol=2e-3)


def test_spectral_normalisation_divides_by_the_largest_singular_value():
    """A convolution counts as a matrix [rows · columns · in, out]."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "Conv": {"kernel": jax.random.normal(keys[0], (3, 3, 2, 5))},
        "Dense": {"kernel": jax.random.normal(keys[1], (7, 4)), "bias": jnp.arange(4.0)},
    }
    vectors = regularizers.first_vectors(params, keys[2])
    vectors = jax.lax.fori_loop(
        0, 200, lambda _, u: regularizers.power_iteration(params, u), vectors
    )
    divided = regularizers.spectrally_normalized(params, vectors)
    for name in params:
        kernel = np.asarray(params[name]["kernel"])
        largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        np.testing.assert_allclose(divided[name]["kernel"], kernel / largest, rtol=1e-4)
    np.testing.assert_array_equal(divided["Dense"]["bias"], params["Dense"]["bias"])


def test_bounds_on_the_slope_of_d_leave_the_posterior_of_the_codes_alone():
    params = {
        name: {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
        for name in ("logit", "posterior_hidden", "posterior")
    }
    vectors = regularizers.first_vectors(params, jax.random.key(0))
    bounded = regularizers.clipped(params, 0.1), regularizers.spectrally_normalized(params, vectors)
    for after in bounded:
        assert equal(after["posterior"], params["posterior"])
        assert equal(after["posterior_hidden"], params["posterior_hidden"])
        assert not equal(after["logit"]["kernel"], params["logit"]["kernel"])


def test_the_bound_of_an_infogan_lies_below_the_mutual_information():
    """Three codes and two noises, all pairs equally likely, make one of four images."""
    image = np.array([[0, 1], [1, 2], [3, 3]])  # of each code and noise
    joint = np.zeros((3, 4))  # p(c, x)
    for c in range(3):
        np.add.at(joint[c], image[c], 1 / 6)
    marginal = joint.sum(0)
    information = np.nansum(joint * np.log(np.where(joint > 0, joint, 1) / (marginal / 3)))
    codes = jax.nn.one_hot(jnp.repeat(jnp.arange(3), 2), 3)

    def bound(logits):  # [x, c], of Q(c|x)
        posterior = jnp.asarray(logits, jnp.float32)[image.reshape(-1)]
        return float(information_bound(codes, posterior, (3,), 0).mean())

    exact = np.log(np.maximum(joint.T, 1e-30) / marginal[:, None])
    np.testing.assert_allclose(bound(exact), information, rtol=1e-5)
    rng = np.random.default_rng(0)
    assert max(bound(exact + rng.normal(size=exact.shape)) for _ in range(20)) < information


def test_the_bound_of_continuous_codes_is_their_entropy_plus_the_log_density():
    codes, posterior = jnp.array([[0.5]]), jnp.array([[0.25, 2 * np.log(0.1)]])
    log_density = -0.5 * (0.25 / 0.1) ** 2 - np.log(0.1 * np.sqrt(2 * np.pi))
    found = information_bound(codes, posterior, (), 1)
    np.testing.assert_allclose(found, [np.log(2) + log_density], rtol=1e-5)
    # A fixed variance takes the place of the learned one.
    found = information_bound(codes, posterior[:, :1], (), 1, 0.1**2)
    np.testing.assert_allclose(found, [np.log(2) + log_density], rtol=1e-5)


def test_an_infogan_trains_with_a_fixed_variance_of_its_continuous_codes():
    fields = {"categorical_codes": (2,), "continuous_codes": 1}
    learned, fixed = small(**fields), small(**fields, continuous_variance=1.0)
    state = jax.jit(fixed.init)(jax.random.key(0))
    kernel = state.discriminator.params["posterior"]["kernel"]
    first = jax.jit(learned.init)(jax.random.key(0)).discriminator.params["posterior"]["kernel"]
    assert (kernel.shape[1], first.shape[1]) == (3, 4)
    batch = {"x": jnp.linspace(0, 1, 24).reshape(6, 4)}
    state, metrics = jax.jit(fixed.step)(state, batch, jax.random.key(1))
    latent, posterior = jnp.full((6, 6), 0.5), jnp.full((6, 3), 0.25)
    continuous = information_bound(latent[:, 5:], posterior[:, 2:], (), 1, 1.0)
    categorical = information_bound(latent[:, 3:5], posterior[:, :2], (2,), 0)
    bound, _ = fixed._information(latent, posterior)
    np.testing.assert_allclose(bound, categorical + continuous, rtol=1e-5)
    assert np.isfinite(metrics["information"])
    assert jax.jit(fixed.encode)(state, batch).shape == (6, 3)
    with pytest.raises(UserError, match="continuous_variance is"):
        small(**fields, continuous_variance=0.0)


def test_nmi_is_scikit_learns_with_the_error_of_the_jackknife():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 600)
    code = np.where(rng.random(600) < 0.7, label, rng.integers(0, 4, 600))
    nmi = estimate.mean(normalized_information(code, label), "Monte Carlo")
    np.testing.assert_allclose(nmi.value, normalized_mutual_info_score(label, code), rtol=1e-9)
    others = np.arange(600)
    without = [normalized_information(code[others != i], label[others != i]).mean() for i in others]
    np.testing.assert_allclose(nmi.stderr, np.std(without) * np.sqrt(599), rtol=0.03)
    assert estimate.mean(normalized_information(label * 0, label), "Monte Carlo").value < 1e-9
    assert not normalized_information(label * 0, label * 0).any()


class Plain(nn.Module):
    """A network of the user's own, which returns features; batch statistics are optional."""

    width: int
    normalised: bool = False

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        return nn.BatchNorm(use_running_average=not train)(x) if self.normalised else x


IMAGE = (4, 4, 1)
NETWORKS = {
    "mlp": (MLP((4,)), MLP((4,))),
    "dcgan": (DCGANGenerator((4,)), DCGANDiscriminator((2,), batch_norm=False)),
    "dcgan, normalised": (DCGANGenerator((4,)), DCGANDiscriminator((2,))),
    "user's": (Plain(16), Plain(1)),
    "user's, normalised": (Plain(16), Plain(1, normalised=True)),
}


PENALTIES = ("none", *PENALTY_WEIGHTS)


@pytest.mark.parametrize("networks", NETWORKS)
def test_every_pair_of_loss_penalty_and_network_is_traced_or_refused(networks):
    """The MLP with every loss and every penalty, the others with every loss under one penalty and
    with every penalty under one loss."""
    generator, discriminator = NETWORKS[networks]
    state = jax.eval_shape(GAN(IMAGE, 2, generator, discriminator).init, jax.random.key(0))
    batch = {"x": jax.ShapeDtypeStruct((4, *IMAGE), jnp.float32)}
    for loss, penalty in itertools.product(LOSSES, PENALTIES):
        if networks != "mlp" and loss != "hinge" and penalty != "r1":
            continue

        def model(loss: Any = loss, penalty: Any = penalty):
            return GAN(IMAGE, 2, generator, discriminator, loss=loss, penalty=penalty)

        if loss == "wasserstein" and penalty != "gradient_penalty":
            with pytest.raises(UserError, match="no minimum without a bound on the slope"):
                model()
        elif penalty != "none" and "normalised" in networks:
            with pytest.raises(UserError, match="batch normalisation"):
                jax.eval_shape(model().init, jax.random.key(0))
        else:
            after, metrics = jax.eval_shape(model().step, state, batch, jax.random.key(0))
            assert jax.tree.structure(after) == jax.tree.structure(state)
            assert ("penalty" in metrics) == (penalty != "none")


@pytest.mark.slow
@pytest.mark.parametrize("networks", NETWORKS)
def test_every_pair_of_loss_penalty_and_network_takes_finite_steps(networks):
    generator, discriminator = NETWORKS[networks]
    batch = {"x": jax.random.uniform(jax.random.key(1), (4, *IMAGE))}
    for loss, penalty in itertools.product(LOSSES, PENALTIES):
        if penalty != "none" and "normalised" in networks:
            continue
        if loss == "wasserstein" and penalty != "gradient_penalty":
            continue
        chosen: Any = {"loss": loss, "penalty": penalty}
        model = GAN(IMAGE, 2, generator, discriminator, **chosen)
        state = jax.jit(model.init)(jax.random.key(0))
        for i in range(2):
            state, metrics = jax.jit(model.step)(state, batch, jax.random.key(i))
        values = [*metrics.values(), *jax.tree.leaves(model.parameters(state))]  # type: ignore
        assert all(np.isfinite(value).all() for value in values), (loss, penalty)


def test_a_step_of_each_loss_and_of_each_penalty_is_finite_and_moves_both_players():
    rules = {
        "non_saturating": {"penalty": "r1"},
        "minimax": {},
        "least_squares": {"penalty": "gradient_penalty"},
        "hinge": {"spectral_norm": True, "pack": 2},
        "wasserstein": {"weight_clip": 0.01, "discriminator_steps": 2},
        "relativistic": {"penalty": "r1_r2", "ema_decay": 0.9},
    }
    models = {loss: small(dropout=0.0, loss=loss, **rule) for loss, rule in rules.items()}

    @jax.jit
    def steps(key, x):
        states = {loss: model.init(key) for loss, model in models.items()}
        return states, {
            loss: model.step(states[loss], {"x": x}, key) for loss, model in models.items()
        }

    before, after = steps(jax.random.key(0), jax.random.uniform(jax.random.key(1), (8, 4)))
    for loss, (state, metrics) in after.items():
        assert np.isfinite(list(metrics.values())).all(), loss
        for player in ("generator", "discriminator"):
            moved = getattr(state, player).params
            assert not equal(getattr(before[loss], player).params, moved)
    state = after["wasserstein"][0]
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(state.discriminator.params)) <= 0.01
    state = after["relativistic"][0]
    expected = jax.tree.map(
        lambda old, new: 0.9 * old + 0.1 * new,
        before["relativistic"].generator.params,
        state.generator.params,
    )
    chex.assert_trees_all_close(state.ema[0], expected, rtol=1e-5)
    model, z = models["relativistic"], jnp.ones((2, 3))
    averaged = state.generator._replace(params=expected)
    chex.assert_trees_all_close(
        model.generate(state, z),
        replace(model, ema_decay=0.0).generate(state._replace(generator=averaged), z),
        rtol=1e-5,
    )
    # Each step advances the power iteration once.
    vectors = {each: state.power_iteration_vectors for each, (state, _) in after.items()}
    start = before["hinge"]
    advanced = regularizers.power_iteration(
        start.discriminator.params, start.power_iteration_vectors
    )
    chex.assert_trees_all_close(vectors.pop("hinge"), advanced, rtol=1e-4)
    assert not any(vectors.values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_clip": 0.01, "spectral_norm": True}, "switch one of them off"),
        ({"weight_clip": 0.01, "penalty": "gradient_penalty"}, "clipped weights cannot reach"),
        (
            {"spectral_norm": True, "discriminator": MLP((4,), batch_norm=True)},
            "undoes spectral_norm",
        ),
        ({"penalty_weight": 0.0}, "penalty_weight is 0.0, must be positive"),
        ({"loss": "wasserstein", "penalty": "r1"}, "r1 and r1_r2 bound no slope away from data"),
        ({"conditioning": "projection", "classes": 3, "pack": 2}, "a pack has several"),
        ({"continuous_codes": 1, "pack": 2}, "the posterior of the codes is given one image"),
        ({"categorical_codes": (1,)}, "each must have 2 classes or more"),
        ({"categorical_codes": (3,), "encoder": MLP((4,))}, "choose one of them"),
        ({"encoder": MLP((4,)), "classes": 3}, "a BiGAN decodes z alone"),
        ({"encoder": (3,)}, "encoder is .*, must be a network"),
    ],
)
def test_combinations_without_meaning_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        small(**fields)


class Deep(nn.Module):
    """A network of the user's own, whose codes have an axis too many."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(3)(x)[:, None]


def test_an_encoder_whose_codes_are_no_vectors_is_refused():
    with pytest.raises(UserError, match=r"encoder Deep returns \[1, 1, 3\], needed are features"):
        jax.eval_shape(small(encoder=Deep()).init, jax.random.key(0))


def test_a_batch_that_cannot_be_split_is_refused():
    model = small(discriminator_steps=2, pack=2)
    state = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(UserError, match=r"has 6 rows, .* need a multiple of 4"):
        jax.eval_shape(model.step, state, {"x": jnp.zeros((6, 4))}, jax.random.key(0))


def test_labels_are_required_and_reach_both_players():
    model = small(classes=3, conditioning="projection", categorical_codes=(2,))
    state = jax.jit(model.init)(jax.random.key(0))
    z, labels = jnp.ones((3, 5)), jnp.arange(3)
    with pytest.raises(UserError, match="generates an image with its label"):
        model.generate(state, z)
    images = np.asarray(model.generate(state, z, labels))
    assert len(np.unique(images, axis=0)) == 3
    rows = {"x": np.full((3, 4), 0.3, np.float32), "label": np.arange(3)}
    estimates = model.evaluate(state, rows, jax.random.key(0))
    assert "nmi" not in estimates  # the codes are read with the label
    outputs = estimates["d_real"].per_example
    assert outputs is not None
    assert len(set(outputs)) == 3
    (beside_x,) = small(classes=3)._discriminator_input({"x": jnp.zeros((3, 4))}, labels)
    np.testing.assert_array_equal(beside_x[:, 4:], np.eye(3))


def test_the_projection_adds_the_inner_product_of_embedding_and_features():
    heads = Heads(Plain(4), classes=3)
    x, label = jax.random.normal(jax.random.key(1), (2, 5)), jnp.array([2, 0])
    params = jax.jit(heads.init)(jax.random.key(0), x, label)["params"]
    logits, posterior = heads.apply({"params": params}, x, label)
    params = jax.tree.map(np.asarray, params)
    dense, logit = params["network"]["Dense_0"], params["logit"]
    h = np.asarray(x) @ dense["kernel"] + dense["bias"]
    embedding = params["embedding"]["embedding"][np.asarray(label)]
    expected = h @ logit["kernel"][:, 0] + logit["bias"] + (embedding * h).sum(1)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    assert posterior is None
    with pytest.raises(UserError, match=r"discriminator Plain returns \[2, 1\], .* several"):
        Heads(Plain(1), classes=3).init(jax.random.key(0), x, label)


def test_the_hidden_layer_of_q_is_normalised_where_the_discriminator_is():
    x = jax.random.normal(jax.random.key(1), (50, 5))
    heads = Heads(Plain(4), posterior=3, batch_norm=True)
    variables = jax.jit(heads.init)(jax.random.key(0), x)
    (_, out), _ = heads.apply(variables, x, train=True, mutable=["batch_stats"])
    params = jax.tree.map(np.asarray, variables["params"])
    dense = params["network"]["Dense_0"]
    h = np.asarray(x) @ dense["kernel"] + dense["bias"]
    hidden = h @ params["posterior_hidden"]["kernel"]
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    expected = hidden @ params["posterior"]["kernel"] + params["posterior"]["bias"]
    np.testing.assert_allclose(out, expected, atol=1e-4)
    model = small(discriminator=MLP((8,), batch_norm=True), categorical_codes=(3,))
    assert "posterior_norm" in jax.eval_shape(model.init, jax.random.key(0)).discriminator.params


def test_evaluation_of_an_infogan_and_of_a_bigan_equals_its_formulas():
    rows = {"x": jax.random.uniform(jax.random.key(2), (8, 4)), "label": jnp.array([0, 1] * 4)}
    model = small(dropout=0.0, categorical_codes=(3,), continuous_codes=1)
    state = jax.jit(model.init)(jax.random.key(0))
    estimates = model.evaluate(state, rows, jax.random.key(1))
    codes = np.asarray(jax.jit(model.encode)(state, rows))
    assert codes.shape == (8, 4)
    np.testing.assert_allclose(codes[:, :3].sum(1), 1, rtol=1e-5)
    nmi = normalized_mutual_info_score(rows["label"], codes[:, :3].argmax(1))
    np.testing.assert_allclose(estimates["nmi"].value, nmi, atol=1e-6)
    assert estimates["information"].kind == "lower bound"
    model = small(dropout=0.0, encoder=MLP((4,)), ema_decay=0.5)
    state = jax.jit(model.init)(jax.random.key(0))
    first: Any = MLP((4,), out=(3,)).apply({"params": state.encoder.params}, 2 * rows["x"] - 1)
    away = state.encoder._replace(params=jax.tree.map(lambda w: w + 1, state.encoder.params))
    state = state._replace(encoder=away)  # the average is as it was
    error = rows["x"] - jax.jit(model.reconstruct)(state, rows)
    mse = model.evaluate(state, rows, jax.random.key(1))["mse"].value
    np.testing.assert_allclose(mse, np.mean(np.square(error)), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(model.encode)(state, rows), first, rtol=1e-5)


def test_accuracy_is_of_rows_and_samples_or_of_pairs():
    """The logit of a discriminator without weights is its bias, the same for every input."""
    rows = {"x": np.random.RandomState(0).rand(6, 4).astype(np.float32)}
    state = INIT(jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, state.discriminator.params)
    params["Dense_1"]["bias"] = jnp.ones(1)
    state = state._replace(discriminator=state.discriminator._replace(params=params))
    accuracy = SMALL.evaluate(state, rows, jax.random.key(0))["d_accuracy"]
    assert (accuracy.value, accuracy.stderr, accuracy.n) == (0.5, 0.0, 6)
    estimates = small(loss="relativistic").evaluate(state, rows, jax.random.key(0))
    assert estimates["d_pairs"].value == 0.0  # no output is above another
    assert "d_accuracy" not in estimates


def test_steps_of_the_discriminator_have_rows_of_their_own(monkeypatch):
    seen = []

    def record(self, state, batch, key, *, axis_name=None):
        seen.append(np.asarray(batch["x"]))
        return state, {}

    model = small(discriminator_steps=3)
    monkeypatch.setattr(GAN, "discriminator_step", record)
    monkeypatch.setattr(GAN, "generator_step", record)
    x = jnp.arange(24.0).reshape(6, 4)
    model.step(INIT(jax.random.key(0)), {"x": x}, jax.random.key(1))
    np.testing.assert_array_equal(np.sort(np.concatenate(seen[:3]), axis=0), x)


def test_the_two_weights_of_information_weight_their_own_codes():
    latent = jnp.concatenate([jnp.zeros((2, 3)), jnp.array([[1.0, 0, 0.5], [0, 1.0, -0.5]])], 1)
    posterior = jax.random.normal(jax.random.key(0), (2, 4))
    categorical = information_bound(latent[:, 3:5], posterior[:, :2], (2,), 0)
    continuous = information_bound(latent[:, 5:], posterior[:, 2:], (), 1)
    fields = {"categorical_codes": (2,), "continuous_codes": 1}
    model = small(**fields, information_weight=3.0, continuous_weight=0.5)
    bound, weighted = model._information(latent, posterior)
    np.testing.assert_allclose(bound, categorical + continuous, rtol=1e-5)
    np.testing.assert_allclose(weighted, 3.0 * categorical + 0.5 * continuous, rtol=1e-5)


def test_a_pack_joins_examples_in_succession_along_the_channels():
    x = jnp.arange(2 * 2 * 3 * 1).reshape(4, 3, 1)
    np.testing.assert_array_equal(packed(x, 2)[0, :, 0], [0, 1, 2])
    np.testing.assert_array_equal(packed(x, 2)[0, :, 1], [3, 4, 5])
    assert packed(x, 2).shape == (2, 3, 2)


def test_a_vector_beside_an_image_is_constant_over_its_pixels():
    images, vector = jnp.zeros((2, 3, 3, 1)), jnp.array([[1.0, 2.0], [3.0, 4.0]])
    channels = beside(ConvEncoder((2,)), images, vector)
    assert channels.shape == (2, 3, 3, 3)
    np.testing.assert_array_equal(channels[1, ..., 2], np.full((3, 3), 4.0))
    flat = beside(MLP((2,)), images, vector)
    np.testing.assert_array_equal(flat[:, 9:], vector)


@pytest.mark.parametrize(
    ("metrics", "fault"),
    [
        ({"d_loss": 0.001}, "discriminator saturated"),
        ({"g_gradient": 1e-7}, "generator's gradient vanished"),
        ({"diversity": 0.01}, "collapse"),
        ({"penalty": 2_000.0}, "penalty exploding"),
    ],
)
def test_hints_name_the_fault_that_metrics_show(metrics, fault):
    model = small(penalty="r1")
    sound = {"d_loss": 1.2, "g_gradient": 0.3, "diversity": 0.9, "penalty": 0.1}
    assert model.hints(sound) == {}
    assert list(model.hints(sound | metrics)) == [fault]


def test_a_small_gradient_is_no_fault_with_clipped_weights_and_minimax_is_named_under_it_alone():
    metrics = {"d_loss": 1.2, "g_gradient": 1e-7, "diversity": 0.9}
    assert small(loss="wasserstein", weight_clip=0.01).hints(metrics) == {}
    (line,) = small(loss="minimax").hints(metrics).values()
    assert "in place of minimax" in line
    (line,) = SMALL.hints(metrics).values()
    assert "minimax" not in line


def test_a_constant_generator_is_named_a_collapse():
    state = INIT(jax.random.key(0))
    constant = jax.tree.map(jnp.zeros_like, state.generator.params)
    state = state._replace(generator=state.generator._replace(params=constant))
    batch = {"x": jax.random.uniform(jax.random.key(1), (6, 4))}
    _, metrics = DISCRIMINATOR_STEP(state, batch, jax.random.key(2))
    assert metrics["diversity"] == 0
    assert "collapse" in SMALL.hints({**metrics, "g_gradient": 1.0})


def test_a_fault_is_logged_once_for_each_seed_after_the_first_tenth_of_a_run(capsys, tmp_path):
    experiment = Experiment(SMALL, steps=100, seeds=(3, 5))
    sound = np.array([0.9, 0.9])
    metrics = {"d_loss": sound, "g_gradient": sound, "diversity": np.array([0.9, 0.01])}
    assert print_faults(tmp_path, experiment, 5, metrics, set()) == set()
    assert known_faults(tmp_path) == set()
    faults = print_faults(tmp_path, experiment, 10, metrics, set())
    assert faults == known_faults(tmp_path) == {(5, "collapse")}
    assert print_faults(tmp_path, experiment, 20, metrics, faults) == faults
    assert (tmp_path / FAULTS).read_text().startswith("step 10, seed 5: collapse: diversity is")
    assert capsys.readouterr().err.count("warning: step 10, seed 5: collapse: diversity is") == 1


def test_diversity_is_the_mean_squared_distance_of_samples_relative_to_data():
    state = INIT(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (6, 4))
    _, metrics = DISCRIMINATOR_STEP(state, {"x": x}, jax.random.key(2))
    noise_key = jax.random.split(jax.random.key(2), 6)[0]
    samples = np.asarray(SMALL.generate(state, SMALL.draw_latent(noise_key, 6)))

    def distance(rows):
        return np.square(rows[:, None] - rows[None]).sum(-1).mean()

    expected = distance(samples) / distance(np.asarray(x))
    np.testing.assert_allclose(metrics["diversity"], expected, rtol=1e-4)


def test_each_half_step_moves_only_its_own_player():
    state = INIT(jax.random.key(0))
    batch = {"x": jax.random.uniform(jax.random.key(1), (6, 4))}
    after, _ = DISCRIMINATOR_STEP(state, batch, jax.random.key(2))
    assert equal(after.generator, state.generator)
    assert not equal(after.discriminator.params, state.discriminator.params)
    after, _ = GENERATOR_STEP(state, batch, jax.random.key(2))
    assert equal(after.discriminator, state.discriminator)
    assert not equal(after.generator.params, state.generator.params)


def test_the_rate_of_the_generator_multiplies_its_updates_and_the_encoders_alone():
    batch = {"x": jax.random.uniform(jax.random.key(1), (8, 4))}
    slow = small(dropout=0.0, encoder=MLP((8,)))
    fast = replace(slow, generator_rate=5.0)
    before = jax.jit(slow.init)(jax.random.key(0))
    ones, fives = (
        jax.jit(model.step)(before, batch, jax.random.key(2))[0] for model in (slow, fast)
    )
    chex.assert_trees_all_equal(ones.discriminator, fives.discriminator)

    def updates(after):
        players = [(each.generator.params, each.encoder.params) for each in (before, after)]
        return jax.tree.map(lambda old, new: new - old, *players)

    fivefold = jax.tree.map(lambda update: 5 * update, updates(ones))
    chex.assert_trees_all_close(fivefold, updates(fives), atol=1e-6)


def test_step_is_the_discriminators_half_then_the_generators():
    state = INIT(jax.random.key(0))
    batch = {"x": jax.random.uniform(jax.random.key(1), (6, 4))}
    first, second = jax.random.split(jax.random.key(2))
    halfway, d_metrics = DISCRIMINATOR_STEP(state, batch, first)
    expected, g_metrics = GENERATOR_STEP(halfway, batch, second)
    after, metrics = STEP(state, batch, jax.random.key(2))
    chex.assert_trees_all_close(after, expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(metrics, d_metrics | g_metrics, rtol=1e-5)


def test_half_steps_lower_their_own_loss():
    """Without dropout, against an opponent that stays, the same noise in every step."""
    model = small(dropout=0.0)
    state = jax.jit(model.init)(jax.random.key(0))
    batch = {"x": jax.random.uniform(jax.random.key(1), (64, 4))}
    for half, name in ((model.discriminator_step, "d_loss"), (model.generator_step, "g_loss")):
        step, moved, losses = jax.jit(half), state, []
        for _ in range(100):
            moved, metrics = step(moved, batch, jax.random.key(3))
            losses.append(float(metrics[name]))
        assert losses[-1] < losses[0]


def test_dropout_acts_in_training_and_not_in_evaluation():
    state = INIT(jax.random.key(0))
    batch = {"x": np.random.RandomState(0).rand(6, 4).astype(np.float32)}
    # Of all draws in a step, dropout alone moves D(x).
    in_training = [
        float(DISCRIMINATOR_STEP(state, batch, jax.random.key(i))[1]["d_real"]) for i in range(2)
    ]
    assert in_training[0] != in_training[1]
    hidden, last = (
        jax.tree.map(np.asarray, state.discriminator.params[name])
        for name in ("Dense_0", "Dense_1")
    )
    h = np.maximum((2 * batch["x"] - 1) @ hidden["kernel"] + hidden["bias"], 0)
    d_real = 1 / (1 + np.exp(-(h @ last["kernel"] + last["bias"])))
    judged = SMALL.evaluate(state, batch, jax.random.key(0))["d_real"]
    np.testing.assert_allclose(judged.value, d_real.mean(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("eight_devices")
def test_replicas_under_pmap_draw_noise_of_their_own():
    """Equal rows and one key for all: only noise can tell the replicas' mean from a single one."""
    state = INIT(jax.random.key(0))
    batch = {"x": jnp.full((2, 4), 0.3)}
    key = jax.random.key(2)
    _, alone = STEP(state, batch, key)
    shards = parallel.shard({"x": jnp.full((8, 4), 0.3)}, 4)
    _, together = parallel.pmap_step(SMALL, 4)(parallel.replicate(state, 4), shards, key)
    assert abs(together["d_fake"][0] - alone["d_fake"]) > 1e-4


@pytest.mark.slow
def test_learns_a_distribution_of_two_points():
    """Samples end near the data: all mass at two corners of the square, about half at each."""
    x = np.array([[0.1, 0.9], [0.9, 0.1]] * 64, np.float32)
    model = small(2, 32, optimizer=Optimizer("adam", learning_rate=1e-3))
    *_, last = train.fit(model, {"x": x}, steps=3000, batch_size=64, steps_per_dispatch=100)
    samples = np.asarray(model.sample(last.carry.state, jax.random.key(9), 500))
    distance = np.linalg.norm(samples[:, None] - np.unique(x, axis=0)[None], axis=-1)
    assert np.median(distance.min(axis=1)) < 0.15
    assert 0.1 < (distance.argmin(axis=1) == 0).mean() < 0.9


def test_impossible_hyperparameters_are_refused():
    with pytest.raises(UserError, match="GAN: latent is 0, must be positive"):
        GAN(latent=0)
    with pytest.raises(UserError, match=r"MLP: dropout is 1\.0"):
        GAN(discriminator=MLP(dropout=1.0))
