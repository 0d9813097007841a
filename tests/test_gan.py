"""The GAN's losses at their known values, and which player moves in which step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equal

from gen import parallel, train
from gen.core import UserError
from gen.models.gan import GAN, discriminator_loss, minimax_loss, non_saturating_loss
from gen.nets import MLP
from gen.optimize import Optimizer


def small(size=4, width=8, dropout=0.3, **fields) -> GAN:
    networks = {"generator": MLP((width,)), "discriminator": MLP((width,), dropout=dropout)}
    return GAN(shape=(size,), latent=3, **networks, **fields)


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


def test_losses_at_a_discriminator_that_cannot_tell():
    zero = jnp.zeros(5)  # D = ½
    np.testing.assert_allclose(discriminator_loss(zero, zero), 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(non_saturating_loss(zero), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(minimax_loss(zero), -np.log(2), rtol=1e-6)


def test_losses_equal_their_definitions():
    real, fake = np.array([0.3, -1.2, 2.0]), np.array([-0.4, 0.9, -2.2])
    d_real, d_fake = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
    np.testing.assert_allclose(
        discriminator_loss(jnp.array(real), jnp.array(fake)),
        -np.log(d_real).mean() - np.log(1 - d_fake).mean(),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        non_saturating_loss(jnp.array(fake)), -np.log(d_fake).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(minimax_loss(jnp.array(fake)), np.log(1 - d_fake).mean(), rtol=1e-5)


@pytest.mark.parametrize("logit", [-100.0, 100.0])
def test_losses_and_gradients_are_finite_at_extreme_logits(logit):
    extreme = jnp.full(3, logit)
    for loss in (non_saturating_loss, minimax_loss, lambda x: discriminator_loss(x, x)):
        value, gradient = jax.jit(jax.value_and_grad(loss))(extreme)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


def test_only_non_saturating_loss_pulls_a_losing_generator():
    """Where D(G(z)) is near 0 the minimax gradient vanishes (Goodfellow et al. 2014, section 3)."""
    losing = jnp.full(1, -20.0)
    assert abs(jax.grad(minimax_loss)(losing)[0]) < 1e-8
    np.testing.assert_allclose(jax.grad(non_saturating_loss)(losing), [-1.0], rtol=1e-6)


def test_each_half_step_moves_only_its_own_player():
    state = INIT(jax.random.key(0))
    batch = {"x": jax.random.uniform(jax.random.key(1), (6, 4))}
    after, _ = DISCRIMINATOR_STEP(state, batch, jax.random.key(2))
    assert equal(after.generator, state.generator)
    assert not equal(after.discriminator.params, state.discriminator.params)
    after, _ = GENERATOR_STEP(state, batch, jax.random.key(2))
    assert equal(after.discriminator, state.discriminator)
    assert not equal(after.generator.params, state.generator.params)


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
