"""Fully visible belief nets against enumeration: at 9 pixels everything can be summed."""

import itertools
from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from experiments.bench.sampling import naive_samples
from gen.core import UserError
from gen.distributions import categorical_from_uniform, categorical_log_prob
from gen.models.autoregressive import (
    FVSBN,
    MADE,
    NADE,
    Autoregressive,
    GatedPixelCNN,
    PixelCNN,
)
from gen.models.autoregressive.pixels import causal_mask, groups, image_groups, pointwise, taps
from gen.models.autoregressive.vectors import nade_at_once, nade_in_turn
from gen.nets import MLP
from gen.optimize import Optimizer

NETS = {
    "fvsbn": FVSBN(raster=False, order_seed=3),
    "nade": NADE(5),
    "made, deep, direct": MADE((7, 6), direct=True, raster=False, activation="tanh"),
    "made, masks": MADE((9,), masks=3, raster=False),
    "pixelcnn": PixelCNN(3, 2),
    "gated pixelcnn": GatedPixelCNN(3, 3),
}
MORE_NETS = {
    "fvsbn, raster": FVSBN(),
    "made": MADE((7,)),
    "made, masks, raster": MADE((9, 8), masks=2, activation="tanh"),
    "pixelcnn, wide kernels": PixelCNN(2, 1, 5),
    "gated pixelcnn, one layer": GatedPixelCNN(2, 1, 5),
}
SHAPES = [(3, 3, 1), pytest.param((2, 4, 1), marks=pytest.mark.slow)]


def random_state(model, seed=0, scale=0.7):
    """Return a state of random weights, so that every connection matters."""
    shapes, draw = jax.eval_shape(model.init, jax.random.key(0)), np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: np.float32(scale) * draw.standard_normal(leaf.shape, np.float32),
        shapes.params,
    )
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return state._replace(params=params)


def log_prob(model, state, x):
    """Return log p(x) as a NumPy array, [B]."""
    return np.asarray(jax.jit(model.log_prob)(state, {"x": x}))


def everything(shape, levels=2):
    """Return all inputs, [levels^D, *shape]."""
    values = np.linspace(0, 1, levels, dtype=np.float32)
    grid = np.array(list(itertools.product(values, repeat=int(np.prod(shape)))), np.float32)
    return grid.reshape(-1, *shape)


@pytest.fixture(params=[*NETS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_NETS)])
def net(request):
    return (NETS | MORE_NETS)[request.param]


@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_sum_to_one(net, shape):
    model = Autoregressive(net, shape=shape)
    log_p = log_prob(model, random_state(model), everything(shape))
    assert np.std(log_p) > 0.5
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "net",
    [
        NADE(4),
        MADE((6,), masks=2, raster=False),
        pytest.param(PixelCNN(2, 1), marks=pytest.mark.slow),
    ],
)
def test_probabilities_of_several_levels_sum_to_one(net):
    model = Autoregressive(net, shape=(2, 3, 1), levels=3)
    x = everything((2, 3, 1), 3)
    log_p = log_prob(model, random_state(model), x)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-5)
    estimates = model.evaluate(random_state(model), {"x": x[:50]}, jax.random.key(0))
    bits = -np.mean(log_p[:50]) / np.log(2) / 6
    np.testing.assert_allclose(estimates["bits_per_dim"].value, bits, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_jacobian_of_the_logits_is_causal_in_the_stated_order(net, shape):
    """A logit depends on no later variable and not on its own. It depends on all earlier ones,
    except where masks hide some or the PixelCNN has its blind spot."""
    size = int(np.prod(shape))
    model = Autoregressive(net, shape=shape)
    params = random_state(model).params
    x = jax.random.uniform(jax.random.key(4), (20, *shape))

    def logits(x, mask_index):
        return model.logits(params, x[None], mask_index, None)[0, :, 0]

    jacobian_of = jax.jit(jax.vmap(jax.jacobian(logits), (0, None)))
    for mask_index in range(net.masks):
        jacobian = abs(np.asarray(jacobian_of(x, mask_index))).sum(0)
        order = np.asarray(net.order(mask_index, size))
        assert sorted(order) == list(range(size))
        ordered = jacobian.reshape(size, size)[order][:, order]
        assert not np.any(np.triu(ordered))
        lower = ordered[np.tril_indices(size, -1)]
        if isinstance(net, FVSBN | NADE) or net == NETS["gated pixelcnn"]:
            assert np.all(lower != 0)
        else:
            assert np.any(lower != 0)


@pytest.mark.slow
def test_gated_pixelcnn_sees_every_pixel_before_and_pixelcnn_has_a_blind_spot():
    """The first pixel of the last row of 9 × 9 depends on these pixels."""
    shape, pixel = (9, 9, 1), 8 * 9
    x = jax.random.uniform(jax.random.key(0), (1, *shape))

    def unseen(net):
        model = Autoregressive(net, shape=shape)
        params = random_state(model).params
        gradient = jax.grad(lambda x: model.logits(params, x, 0, None)[0, pixel, 0])(x)[0, :, :, 0]
        return [(int(i), int(j)) for i, j in np.argwhere(gradient == 0) if i < 8]

    assert unseen(GatedPixelCNN(8, 6)) == []
    blind = [(i, j) for i in range(8) for j in range(9) if j > 3 + (7 - i)]
    assert unseen(PixelCNN(8, 6)) == blind


def test_cached_sampler_equals_the_naive_one_and_log_prob_is_its_product(net):
    """Both draw the same from the same uniforms, through the whole network or through its cache."""
    shape, n, size = (3, 4, 1), 40, 12
    model = Autoregressive(net, shape=shape)
    state = random_state(model)
    u = jax.random.uniform(jax.random.key(5), (n, size))
    ancestral = jax.jit(model.ancestral)

    @jax.jit
    def follow(x, product, d, mask_index):
        """Draw variable d by a pass of the whole network, and multiply by its probability."""
        logits = model.logits(state.params, x.reshape(n, *shape), mask_index, None)[:, d]
        level = categorical_from_uniform(logits, u[:, d])
        return x.at[:, d].set(level), product + categorical_log_prob(logits, level)

    for mask_index in range(net.masks):
        fast, log_shown = ancestral(
            state.params, u, mask_index, jnp.zeros((n, *shape)), jnp.zeros(shape, bool)
        )
        x, product = jnp.zeros((n, size)), jnp.zeros(n)
        for d in np.asarray(net.order(mask_index, size)):
            x, product = follow(x, product, d, mask_index)
        np.testing.assert_array_equal(fast.reshape(n, size), x)
        np.testing.assert_array_equal(log_shown, 0)
        # Clamped everywhere, the same scan gives log p of the clamped values.
        again, log_all = ancestral(state.params, u, mask_index, fast, jnp.ones(shape, bool))
        np.testing.assert_array_equal(again, fast)
        np.testing.assert_allclose(log_all, product, rtol=1e-4, atol=1e-4)
        if net.masks == 1:
            np.testing.assert_allclose(log_prob(model, state, fast), product, rtol=1e-4, atol=1e-4)


COLOUR_NETS = [
    pytest.param(PixelCNN(10, 2), id="pixelcnn"),
    pytest.param(GatedPixelCNN(10, 2), id="gated pixelcnn"),
]
"""Networks whose numbers of features, 10 and 20, are no multiples of three channels."""


@pytest.mark.parametrize("net", COLOUR_NETS)
def test_logits_of_a_channel_depend_on_all_pixels_and_channels_before_it_alone(net):
    """The images are small enough for the PixelCNN to have no blind spot."""
    model = Autoregressive(net, shape=(2, 3, 3), levels=3)
    params = random_state(model).params

    def effects(x):
        return jnp.abs(jax.jacobian(lambda x: model.logits(params, x[None], 0, None)[0])(x)).sum(1)

    x = jax.random.uniform(jax.random.key(4), (20, 2, 3, 3))
    effect = np.asarray(jax.jit(jax.vmap(effects))(x)).sum(0).reshape(18, 18)
    assert not np.any(np.triu(effect))
    assert np.all(effect[np.tril_indices(18, -1)] > 0)


@pytest.mark.parametrize("net", COLOUR_NETS)
@pytest.mark.parametrize(
    ("shape", "levels"),
    [((1, 2, 3), 2), pytest.param((2, 1, 3), 3, marks=pytest.mark.slow)],
)
def test_probabilities_of_colour_images_sum_to_one_and_are_the_law_of_samples(net, shape, levels):
    model = Autoregressive(net, shape=shape, levels=levels)
    state = random_state(model, scale=0.5)
    log_p = log_prob(model, state, everything(shape, levels))
    assert np.std(log_p) > 0.5
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-5)
    if levels == 2:
        x = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(8), 6000)
        assert chi_square(x, log_p, shape) > 1e-3


@pytest.mark.parametrize("net", COLOUR_NETS)
def test_cached_sampler_of_colour_images_equals_whole_passes(net):
    shape, n = (2, 3, 3), 30
    model = Autoregressive(net, shape=shape, levels=3)
    state = random_state(model)
    u = jax.random.uniform(jax.random.key(5), (n, 18))
    ancestral = jax.jit(model.ancestral)
    x, _ = ancestral(state.params, u, 0, jnp.zeros((n, *shape)), jnp.zeros(shape, bool))
    np.testing.assert_array_equal(x, jax.jit(partial(naive_samples, model))(state.params, u))
    # Clamped everywhere, the same scan gives log p of the clamped values.
    again, log_p = ancestral(state.params, u, 0, x, jnp.ones(shape, bool))
    np.testing.assert_array_equal(again, x)
    np.testing.assert_allclose(log_p, log_prob(model, state, x), rtol=1e-4)


def test_groups_of_features_stand_in_the_order_of_the_channels():
    np.testing.assert_array_equal(groups(5, 3), [0, 0, 1, 1, 2])
    np.testing.assert_array_equal(groups(8, 3, halves=2), [0, 0, 1, 2, 0, 0, 1, 2])
    # Inputs are red, green, blue and the frame; outputs are one feature for each channel.
    image, outputs = image_groups(3), groups(3, 3)
    first = causal_mask("A", 3, image, outputs)
    np.testing.assert_array_equal(first[-1, 1], [[0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]])
    later = causal_mask("B", 3, outputs, outputs)
    np.testing.assert_array_equal(later[-1, 1], np.triu(np.ones((3, 3))))
    for mask in (first, later):
        assert np.all(mask[0] == 1)
        assert np.all(mask[-1, 0] == 1)
        assert not np.any(mask[-1, 2])


def test_log_prob_of_several_masks_is_the_log_prob_of_their_mixture():
    model = Autoregressive(MADE((9,), masks=3, raster=False), shape=(3, 3, 1))
    state, x = random_state(model), everything((3, 3, 1))
    each, logits_of = [], jax.jit(model.logits)
    for mask_index in range(3):
        logits = np.asarray(logits_of(state.params, x, mask_index, None))[..., 0]
        bits = x.reshape(len(x), -1)
        each.append(
            np.prod(np.where(bits == 1, jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)), 1)
        )
    assert np.abs(each[0] - each[1]).max() > 1e-3
    np.testing.assert_allclose(np.exp(log_prob(model, state, x)), np.mean(each, 0), rtol=1e-4)


def chi_square(x, log_p, shape):
    """Return the p-value of the counts of samples [n, *shape] under exp(log_p) of all inputs.

    The inputs are in the order of `everything`. Cells that expect fewer than 5 are taken together.
    """
    bits = np.asarray(x).reshape(len(x), -1).astype(int)
    index = bits @ (2 ** np.arange(bits.shape[1])[::-1])
    counts = np.bincount(index, minlength=len(log_p)).astype(float)
    expected = np.exp(np.asarray(log_p, np.float64))
    expected *= len(x) / expected.sum()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 0
    assert kept.sum() > 2
    return stats.chisquare(counts[kept], expected[kept]).pvalue


def test_sample_frequencies_match_the_exact_probabilities(net):
    shape = (2, 3, 1)
    model = Autoregressive(net, shape=shape)
    state = random_state(model, scale=0.4)
    log_p = log_prob(model, state, everything(shape))
    x = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(8), 6000)
    assert chi_square(x, log_p, shape) > 1e-3
    # The test can fail: other weights give another law.
    other = log_prob(model, random_state(model, seed=7), everything(shape))
    assert chi_square(x, other, shape) < 1e-6


def test_samples_of_few_images_from_many_masks():
    model = Autoregressive(MADE((9,), masks=8, raster=False), shape=(2, 3, 1))
    state, sample = random_state(model), jax.jit(model.sample, static_argnums=2)
    for n in (1, 3, 8, 11):
        assert sample(state, jax.random.key(1), n).shape == (n, 2, 3, 1)


def test_complete_draws_from_the_exact_conditional(net):
    """With the first row shown, against p(hidden | shown) by enumeration. An order other than
    raster, and several masks, need particles."""
    shape = (2, 3, 1)
    model = Autoregressive(net, shape=shape)
    state = random_state(model)
    all_x = everything(shape)
    mask = np.zeros(shape)
    mask[0] = 1
    shown = all_x[0b101000]
    consistent = np.all((all_x == shown) | (mask == 0), (1, 2, 3))
    log_p = np.where(consistent, log_prob(model, state, all_x), -np.inf)
    raster = model.completion == "raster"
    x = np.array(np.broadcast_to(shown, (4000, *shape)))
    x[:, 1] = 0.7  # hidden values, on which the draws must not depend
    complete = jax.jit(model.complete, static_argnames="particles")
    drawn = complete(state, x, mask, jax.random.key(9), particles=1 if raster else 200)
    drawn = np.asarray(drawn)
    np.testing.assert_array_equal(drawn[:, 0], x[:, 0])
    bits = drawn.reshape(len(drawn), -1).astype(int) @ (2 ** np.arange(6)[::-1])
    frequency = np.bincount(bits, minlength=64) / len(drawn)
    exact = np.exp(log_p - log_p.max())
    exact /= exact.sum()
    assert 0.5 * np.abs(frequency - exact).sum() < 0.04
    assert set(np.flatnonzero(frequency)) <= set(np.flatnonzero(consistent))


def test_particles_correct_for_what_is_shown_later():
    """With the last row shown, one particle ignores it; many give the exact conditional."""
    shape = (2, 3, 1)
    model = Autoregressive(FVSBN(), shape=shape)
    state = random_state(model)
    all_x = everything(shape)
    mask = np.zeros(shape)
    mask[1] = 1
    shown = all_x[0b000110]
    consistent = np.all((all_x == shown) | (mask == 0), (1, 2, 3))
    exact = np.where(consistent, np.exp(log_prob(model, state, all_x)), 0)
    exact /= exact.sum()
    x = np.broadcast_to(shown, (4000, *shape))

    def distance(particles):
        complete = jax.jit(model.complete, static_argnames="particles")
        drawn = complete(state, x, mask, jax.random.key(2), particles=particles)
        bits = np.asarray(drawn).reshape(len(drawn), -1).astype(int) @ (2 ** np.arange(6)[::-1])
        return 0.5 * np.abs(np.bincount(bits, minlength=64) / len(drawn) - exact).sum()

    assert distance(1) > 0.15
    assert distance(200) < 0.04


@pytest.mark.slow
def test_gradient_of_nade_equals_the_gradient_of_its_definition():
    """Rematerialisation changes nothing against the sum over k < d."""
    net, shape = NADE(6), (3, 5, 1)
    model = Autoregressive(net, shape=shape)
    params = random_state(model).params
    x = (jax.random.uniform(jax.random.key(1), (4, *shape)) > 0.5).astype(jnp.float32)

    def plain(params):
        flat = x.reshape(4, 15)
        seen = flat[:, :, None] * params["W"][None]
        a = params["c"][None, None] + jnp.cumsum(seen, 1) - seen
        out = jnp.sum(jax.nn.sigmoid(a) * params["V"][None, :, :, 0], -1) + params["b"][None, :, 0]
        return jnp.sum(jnp.sin(out)), out

    def fast(params):
        out = model.logits(params, x, 0, None)[..., 0]
        return jnp.sum(jnp.sin(out)), out

    expected, out = jax.grad(plain, has_aux=True)(params)
    found, logits = jax.grad(fast, has_aux=True)(params)
    np.testing.assert_allclose(logits, out, rtol=1e-4, atol=1e-5)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [9, 11])
def test_both_forms_of_nade_and_their_gradients_are_equal(size):
    keys = jax.random.split(jax.random.key(0), 5)
    x = (jax.random.uniform(keys[0], (4, size)) > 0.5).astype(jnp.float32)
    shapes = (size, 6), (6,), (size, 6, 2)
    W, c, V = (jax.random.normal(key, shape) for key, shape in zip(keys[1:4], shapes, strict=True))
    weight = jax.random.normal(keys[4], (4, size, 2))

    def value_and_gradient(form):
        def loss(x, W, c, V):
            out = form(x, W, c, V)
            return jnp.sum(weight * jnp.sin(out)), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(x, W, c, V)

    expected, found = value_and_gradient(nade_in_turn), value_and_gradient(nade_at_once)
    chex.assert_trees_all_close(found, expected, rtol=2e-6, atol=2e-6)


def test_taps_equal_the_masks_of_the_papers():
    a = [[1, 1, 1], [1, 0, 0]]
    b = [[1, 1, 1], [1, 1, 0]]
    np.testing.assert_array_equal(taps("A", 3), a)
    np.testing.assert_array_equal(taps("B", 3), b)
    np.testing.assert_array_equal(taps("above", 3), [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(taps("upto", 3), np.ones((2, 3)))
    np.testing.assert_array_equal(taps("left", 5), [[1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(taps("left and self", 5), [[1, 1, 1, 0, 0]])


def test_made_degrees_are_in_range_and_reproducible():
    made = MADE((50, 40), masks=4, raster=False)
    place, first, second = map(np.asarray, made.degrees(2, 10))
    assert sorted(place) == list(range(1, 11))
    assert first.min() >= 1
    assert first.max() == 9
    assert second.min() >= first.min()
    again = replace(made, activation="tanh").degrees(2, 10)
    np.testing.assert_array_equal(place, again[0])
    assert not np.array_equal(place, made.degrees(1, 10)[0])
    other = replace(made, mask_seed=1).degrees(2, 10)
    assert not np.array_equal(first, other[1])


@pytest.mark.slow
def test_objective_is_minus_log_p_of_one_mask_and_a_bound_on_average_of_several():
    x = jnp.asarray(everything((2, 3, 1)))
    one = Autoregressive(NADE(4), shape=(2, 3, 1))
    state = random_state(one)
    np.testing.assert_allclose(
        one.objective(state, {"x": x}, jax.random.key(0)),
        one.score(state, {"x": x}, jax.random.key(0)),
        rtol=1e-5,
    )
    many = Autoregressive(MADE((9,), masks=3, raster=False), shape=(2, 3, 1))
    state = random_state(many)
    keys = jax.random.split(jax.random.key(1), 60)
    drawn = np.unique(jax.vmap(lambda key: many.objective(state, {"x": x}, key))(keys), axis=0)
    assert len(drawn) == 3  # one of the masks, for all examples alike
    assert np.all(drawn.mean(0) >= many.score(state, {"x": x}, jax.random.key(0)) - 1e-4)


def test_bench_compares_samplers_that_draw_the_same():
    model = Autoregressive(PixelCNN(3, 2), shape=(3, 4, 1), levels=3)
    params = random_state(model).params
    u = jax.random.uniform(jax.random.key(2), (9, 12))
    nothing = jnp.zeros((9, 3, 4, 1)), jnp.zeros((3, 4, 1), bool)
    cached, _ = jax.jit(model.ancestral)(params, u, 0, *nothing)
    np.testing.assert_array_equal(jax.jit(partial(naive_samples, model))(params, u), cached)


@pytest.mark.parametrize("levels", [2, 5])
def test_inversion_draws_by_the_law_of_the_logits(levels):
    logits = jax.random.normal(jax.random.key(0), (1 if levels == 2 else levels,))
    u = (jnp.arange(10_000) + 0.5) / 10_000
    level = categorical_from_uniform(jnp.broadcast_to(logits, (len(u), *logits.shape)), u)
    frequency = np.bincount(np.asarray(level), minlength=levels) / len(u)
    expected = [np.exp(categorical_log_prob(logits, jnp.array(value))) for value in range(levels)]
    np.testing.assert_allclose(frequency, expected, atol=2e-4)


def test_values_between_levels_are_refused_in_evaluation():
    model = Autoregressive(FVSBN(), shape=(2, 2, 1))
    state = model.init(jax.random.key(0))
    for value in (0.5, -1.0, 2.0, 255.0, np.nan):
        with pytest.raises(UserError, match="variables of 2 levels"):
            model.evaluate(state, {"x": np.full((3, 2, 2, 1), value)}, jax.random.key(0))


class UserNet(nn.Module):
    """A causal network of the user's own, without a cache: x_<d is summed with one weight each."""

    masks = 1
    raster = True
    size: int = 6
    channels: int = 1
    statistics: bool = False

    def order(self, mask_index, size):
        return jnp.arange(size)

    @nn.compact
    def __call__(self, x, mask_index):
        x = x.reshape(len(x), -1)
        if self.statistics:
            x = nn.BatchNorm(use_running_average=True)(x)
        before = jnp.cumsum(x * self.param("w", nn.initializers.ones, (self.size,))[None], axis=1)
        before = jnp.pad(before, ((0, 0), (1, 0)))[:, :-1, None]
        return nn.Dense(self.channels)(before)


def test_a_network_of_the_users_own_needs_no_cache():
    shape = (2, 3, 1)
    model = Autoregressive(UserNet(), shape=shape)
    state = random_state(model)
    state, _ = jax.jit(model.step)(state, {"x": everything(shape)}, jax.random.key(0))
    log_p = log_prob(model, state, everything(shape))
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-5)
    x = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(8), 6000)
    assert chi_square(x, log_p, shape) > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NADE(0), "hidden is 0"),
        (lambda: MADE(()), "must have one width or more"),
        (lambda: MADE((0, 5)), "hidden is .0, 5., must be positive"),
        (lambda: MADE(masks=0), "masks is 0"),
        (lambda: PixelCNN(size=4), "size is 4, must be odd"),
        (lambda: GatedPixelCNN(layers=0), "must be 1 … 1000"),
        (lambda: Autoregressive(FVSBN(), levels=1), "levels is 1"),
        (
            lambda: Autoregressive(PixelCNN(), shape=(5,)).init(jax.random.key(0)),
            "images .H, W, C., not examples of shape .5.",
        ),
        (
            lambda: Autoregressive(PixelCNN(2), shape=(5, 5, 3)).init(jax.random.key(0)),
            "features is 2, must be at least 3, the number of channels",
        ),
        (lambda: Autoregressive(MLP()), "the network MLP lacks `masks`"),
        (
            lambda: Autoregressive(UserNet(statistics=True), shape=(6,)).init(jax.random.key(0)),
            "UserNet has .'batch_stats'., Autoregressive takes parameters alone",
        ),
        (
            lambda: Autoregressive(UserNet(), shape=(6,), levels=3).init(jax.random.key(0)),
            "returns logits .1, 6, 1. of one example, needed is .1, 6, 3.",
        ),
        (
            lambda: Autoregressive(FVSBN(), optimizer=Optimizer(weight_decay=-1.0)),
            "weight_decay is -1",
        ),
    ],
)
def test_bad_hyperparameters_are_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_evaluation_uses_the_moving_average_of_the_parameters():
    """ema ← d · ema + (1 − d) · params, from the first parameters, in every step."""
    net, x = FVSBN(), jnp.asarray([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    model = Autoregressive(net, shape=(3,), optimizer=Optimizer("sgd", 1.0), ema_decay=0.5)
    state = jax.jit(model.init)(jax.random.key(0))
    expected, step = state.params, jax.jit(model.step)
    for i in range(3):
        state, _ = step(state, {"x": x}, jax.random.key(i))
        expected = jax.tree.map(lambda ema, new: (ema + new) / 2, expected, state.params)
    chex.assert_trees_all_close(state.ema, expected, rtol=1e-6)
    plain = Autoregressive(net, shape=(3,))
    first = jax.jit(plain.init)(jax.random.key(0))
    assert first.ema == ()
    averaged = first._replace(params=expected)
    np.testing.assert_allclose(log_prob(model, state, x), log_prob(plain, averaged, x), rtol=1e-6)
    samples = [
        jax.jit(each.sample, static_argnums=2)(of_state, jax.random.key(9), 20)
        for each, of_state in ((model, state), (plain, averaged))
    ]
    np.testing.assert_array_equal(*samples)


@pytest.mark.parametrize("net", [PixelCNN(2, 1, 3), GatedPixelCNN(2, 2, 3)], ids=["plain", "gated"])
def test_dropout_acts_in_training_steps_alone(net):
    """The loss of a step depends on the key, and the log-likelihood is that without dropout."""
    without = Autoregressive(net, shape=(3, 3, 1))
    model = replace(without, net=net.clone(dropout=0.5))
    x = jax.random.bernoulli(jax.random.key(1), shape=(8, 3, 3, 1)).astype(jnp.float32)
    state = jax.jit(model.init)(jax.random.key(0))
    log_p = log_prob(model, state, x)
    np.testing.assert_array_equal(log_p, log_prob(without, state, x))
    step = jax.jit(lambda key: model.step(state, {"x": x}, key)[1]["loss"])
    losses = [float(step(jax.random.key(seed))) for seed in range(3)]
    assert len({*losses, -float(log_p.mean())}) == 4


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_weights_of_a_masked_layer_have_the_variance_of_its_fan_in(channels):
    x = jnp.ones((1, 1, 1, 300))
    kernel = np.asarray(pointwise(300, channels).init(jax.random.key(0), x)["params"]["kernel"])
    hidden = (channels - 1) / (2 * channels)  # share of the inputs that the mask hides
    np.testing.assert_allclose(np.var(kernel), 2 / (300 * (1 - hidden)), rtol=0.02)
    if channels == 1:  # as Flax initialises
        dense = nn.Dense(300, kernel_init=nn.initializers.he_normal())
        equal = dense.init(jax.random.key(0), x)["params"]["kernel"]
        np.testing.assert_array_equal(kernel, equal)
