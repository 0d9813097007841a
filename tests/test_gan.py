"""The GAN's losses at their known values, and who moves when."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equal

from gen import parallel
from gen.models.gan import GAN, discriminator_loss, minimax_loss, non_saturating_loss

SMALL = GAN(shape=(4,), latent=3, generator=(8,), discriminator=(8,))


def test_default_is_the_chapters_network():
    state = jax.eval_shape(GAN().init, jax.random.key(0))

    def kernels(params):
        return sorted(leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 2)

    assert kernels(state.generator) == sorted([(100, 256), (256, 512), (512, 1024), (1024, 784)])
    assert kernels(state.discriminator) == sorted([(784, 1024), (1024, 512), (512, 256), (256, 1)])


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
        value, gradient = jax.value_and_grad(loss)(extreme)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


def test_only_non_saturating_loss_pulls_a_losing_generator():
    """Where D(G(z)) is near 0 the minimax gradient vanishes (Goodfellow et al. 2014, section 3)."""
    losing = jnp.full(1, -20.0)
    assert abs(jax.grad(minimax_loss)(losing)[0]) < 1e-8
    np.testing.assert_allclose(jax.grad(non_saturating_loss)(losing), [-1.0], rtol=1e-6)


def test_each_half_step_moves_only_its_own_player():
    state = jax.jit(SMALL.init)(jax.random.key(0))
    batch = {"x": jax.random.uniform(jax.random.key(1), (6, 4))}
    after, _ = jax.jit(SMALL.discriminator_step)(state, batch, jax.random.key(2))
    assert equal(after.generator, state.generator)
    assert equal(after.generator_opt, state.generator_opt)
    assert not equal(after.discriminator, state.discriminator)
    after, _ = jax.jit(SMALL.generator_step)(state, batch, jax.random.key(2))
    assert equal(after.discriminator, state.discriminator)
    assert equal(after.discriminator_opt, state.discriminator_opt)
    assert not equal(after.generator, state.generator)


def test_step_is_the_discriminators_half_then_the_generators():
    state = jax.jit(SMALL.init)(jax.random.key(0))
    batch = {"x": jax.random.uniform(jax.random.key(1), (6, 4))}
    first, second = jax.random.split(jax.random.key(2))
    halfway, d_metrics = jax.jit(SMALL.discriminator_step)(state, batch, first)
    expected, g_metrics = jax.jit(SMALL.generator_step)(halfway, batch, second)
    after, metrics = jax.jit(SMALL.step)(state, batch, jax.random.key(2))
    chex.assert_trees_all_close(after, expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(metrics, d_metrics | g_metrics, rtol=1e-5)


def test_half_steps_lower_their_own_loss():
    """Without dropout, and against a frozen opponent, the same noise over and over."""
    model = GAN(shape=(4,), latent=3, generator=(8,), discriminator=(8,), dropout=0.0)
    state = jax.jit(model.init)(jax.random.key(0))
    batch = {"x": jax.random.uniform(jax.random.key(1), (64, 4))}
    for half, name in ((model.discriminator_step, "d_loss"), (model.generator_step, "g_loss")):
        step, moved, losses = jax.jit(half), state, []
        for _ in range(100):
            moved, metrics = step(moved, batch, jax.random.key(3))
            losses.append(float(metrics[name]))
        assert losses[-1] < losses[0]


def test_dropout_acts_in_training_and_not_in_evaluation():
    state = jax.jit(SMALL.init)(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (6, 4))
    once = SMALL._judge(state.discriminator, x, jax.random.key(1))
    assert not equal(once, SMALL._judge(state.discriminator, x, jax.random.key(2)))
    assert equal(SMALL._judge(state.discriminator, x), SMALL._judge(state.discriminator, x))


@pytest.mark.slow
def test_replicas_under_pmap_draw_noise_of_their_own():
    """Equal rows and one key for all: only noise can tell the replicas' mean from a single one."""
    state = jax.jit(SMALL.init)(jax.random.key(0))
    batch = {"x": jnp.full((2, 4), 0.3)}
    key = jax.random.key(2)
    _, alone = jax.jit(SMALL.step)(state, batch, key)
    shards = parallel.shard({"x": jnp.full((8, 4), 0.3)}, 4)
    _, together = parallel.pmap_step(SMALL, 4)(parallel.replicate(state, 4), shards, key)
    assert abs(together["d_fake"][0] - alone["d_fake"]) > 1e-4


@pytest.mark.slow
def test_learns_a_distribution_of_two_points():
    """Samples end near the data: all mass at two corners of the square, about half at each."""
    from gen import train

    x = np.array([[0.1, 0.9], [0.9, 0.1]] * 64, np.float32)
    model = GAN(shape=(2,), latent=4, generator=(32,), discriminator=(32,), learning_rate=1e-3)
    *_, last = train.fit(model, {"x": x}, steps=3000, batch_size=64, steps_per_dispatch=100)
    samples = np.asarray(model.sample(last.carry.state, jax.random.key(9), 500))
    distance = np.linalg.norm(samples[:, None] - np.unique(x, axis=0)[None], axis=-1)
    assert np.median(distance.min(axis=1)) < 0.15
    assert 0.1 < (distance.argmin(axis=1) == 0).mean() < 0.9
