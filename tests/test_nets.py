"""Networks: the project's own, a user's, and their batch statistics."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equal
from flax import linen as nn

from gen import nets, parallel
from gen.core import UserError
from gen.models.autoencoder import Autoencoder
from gen.models.gan import GAN
from gen.models.vae import VAE
from gen.nets import MLP, ConvDecoder, ConvEncoder
from gen.optimize import Optimizer

SHAPE = (6,)
X = np.random.RandomState(0).rand(8, 6).astype(np.float32)


class UserNet(nn.Module):
    """A network of the user's own, with batch statistics of each replica's rows."""

    out: int

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dense(5)(x.reshape(len(x), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.out)(x)


def normalised(**fields) -> MLP:
    return MLP((5,), batch_norm=True, **fields)


# SGD, since the gradient of the bias before a user's normalisation is 0 but for rounding, of which
# Adam makes full steps.
FIXED: Any = {"shape": SHAPE, "optimizer": Optimizer("sgd", learning_rate=0.1)}
OWN = Autoencoder(**FIXED, encoder=normalised(), decoder=normalised(), output="linear")
USERS = Autoencoder(**FIXED, encoder=UserNet(3), decoder=UserNet(6), output="linear")
VAES = {
    "own": VAE(**FIXED, encoder=normalised(), decoder=normalised(), latent=2),
    "user's": VAE(**FIXED, encoder=UserNet(4), decoder=UserNet(6), latent=2),
}
GANS = {
    "own": GAN(**FIXED, latent=2, generator=normalised(), discriminator=normalised()),
    "user's": GAN(**FIXED, latent=2, generator=UserNet(6), discriminator=UserNet(1)),
}


def run(step, state, batch, steps=3):
    """Return the state and the metrics after some steps."""
    metrics = {}
    for i in range(steps):
        state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(2), i))
        jax.block_until_ready(metrics)
    return state, metrics


@pytest.mark.parametrize("kind", ["own", pytest.param("user's", marks=pytest.mark.slow)])
def test_the_statistics_of_a_vae_move_in_steps_and_normalise_in_evaluation(kind):
    model = VAES[kind]
    first = jax.jit(model.init)(jax.random.key(0))
    state, _ = run(jax.jit(model.step), first, {"x": X}, 1)
    moved = jax.tree.map(lambda a, b: not equal(a, b), first.stats, state.stats)
    assert all(jax.tree.leaves(moved))
    # The running mean keeps 0.9 of 0 and takes 0.1 of the batch's.
    layer = jax.tree.map(np.asarray, first.params["encoder"]["encoder"]["Dense_0"])
    expected = 0.1 * (X @ layer["kernel"] + layer.get("bias", 0)).mean(0)
    running = state.stats["encoder"]["batch_stats"]["encoder"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(running, expected, rtol=1e-5, atol=1e-7)
    # In evaluation an example's code does not depend on the others of its batch.
    encode = jax.jit(model.encode)
    codes = np.asarray(encode(state, {"x": X}))
    np.testing.assert_allclose(codes[:1], encode(state, {"x": X[:1]}), rtol=1e-5)
    before = np.asarray(encode(state._replace(stats=first.stats), {"x": X}))
    assert np.abs(before - codes).max() > 1e-4


@pytest.mark.parametrize("kind", GANS)
def test_each_player_of_a_gan_moves_its_own_statistics_only(kind):
    model = GANS[kind]
    first = jax.jit(model.init)(jax.random.key(0))
    after, _ = jax.jit(model.discriminator_step)(first, {"x": X}, jax.random.key(1))
    assert equal(after.generator, first.generator)
    assert not equal(after.discriminator.stats, first.discriminator.stats)
    after, _ = jax.jit(model.generator_step)(first, {"x": X}, jax.random.key(1))
    assert equal(after.discriminator, first.discriminator)
    assert not equal(after.generator.stats, first.generator.stats)
    samples = jax.jit(model.sample, static_argnums=2)
    reset = after._replace(generator=after.generator._replace(stats=first.generator.stats))
    assert not equal(*(samples(state, jax.random.key(3), 4) for state in (after, reset)))


def test_training_on_the_importance_weighted_bound_moves_the_decoders_statistics():
    """So that evaluation normalises as training does, whatever the number of draws."""
    model = VAE(shape=SHAPE, encoder=MLP((4,)), decoder=normalised(), latent=2, samples=3)
    first = jax.jit(model.init)(jax.random.key(0))
    state, _ = run(jax.jit(model.step), first, {"x": X}, 1)
    before, after = (s.stats["decoder"]["batch_stats"]["BatchNorm_0"] for s in (first, state))
    for name in ("mean", "var"):
        assert np.all(before[name] != after[name])


@pytest.mark.usefixtures("eight_devices")
def test_under_pmap_the_projects_networks_take_the_statistics_of_the_whole_batch():
    """Without noise, several replicas equal one device within rounding."""
    state = jax.jit(OWN.init)(jax.random.key(0))
    one, one_metrics = run(jax.jit(OWN.step), state, {"x": X})
    step = parallel.pmap_step(OWN, 4)
    many, metrics = run(step, parallel.replicate(state, 4), parallel.shard({"x": X}, 4))
    for leaf in jax.tree.leaves((many, metrics)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[0], (many, metrics))
    chex.assert_trees_all_close(first, (one, one_metrics), rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("eight_devices")
def test_under_pmap_a_users_networks_get_averaged_running_statistics():
    """Each replica normalises by the rows it has; the means of all replicas are kept by all."""
    state = jax.jit(USERS.init)(jax.random.key(0))
    shards = parallel.shard({"x": X}, 4)
    many, _ = run(parallel.pmap_step(USERS, 4), parallel.replicate(state, 4), shards, 1)
    for leaf in jax.tree.leaves(many):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    layer = jax.tree.map(np.asarray, state.params["encoder"]["Dense_0"])
    h = np.asarray(shards["x"]) @ layer["kernel"] + layer["bias"]  # [replica, row, unit]
    running = many.stats["encoder"]["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(running["mean"][0], 0.1 * h.mean((0, 1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(running["var"][0], 0.9 + 0.1 * h.var(1).mean(0), rtol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(USERS, id="autoencoder"),
        pytest.param(GANS["own"], id="gan", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("eight_devices")
def test_under_a_mesh_every_network_equals_one_device(model):
    state, mesh = jax.jit(model.init)(jax.random.key(0)), parallel.make_mesh(8)

    def sharded(state, batch, key):
        return model.step(state, parallel.split_rows(batch, mesh), key)

    everywhere = parallel.replicated(mesh)
    step = jax.jit(sharded, out_shardings=everywhere)
    many = run(step, jax.device_put(state, everywhere), {"x": X})
    one = run(jax.jit(model.step), state, {"x": X})
    chex.assert_trees_all_close(jax.device_get(many), jax.device_get(one), rtol=1e-3, atol=1e-5)


def test_models_set_fields_of_the_projects_networks_and_of_no_others():
    fitted = nets.fitted(MLP((3,)), out=(4, 2), axis_name="devices", classes=10)
    assert fitted == MLP((3,), out=(4, 2), axis_name="devices")
    assert nets.fitted(UserNet(1), out=(7,), axis_name="devices") == UserNet(1)


def test_dropout_draws_in_training_only():
    net = MLP((50,), dropout=0.5)
    params, stats = nets.init(net, jax.random.key(0), X)

    @jax.jit
    def outputs():
        """Return the output under each of two keys, in training and in evaluation."""
        keys = jax.random.split(jax.random.key(1))
        return [
            [nets.apply(net, params, stats, X, train=train, key=key)[0] for key in keys]
            for train in (True, False)
        ]

    (first, second), (still, same) = jax.tree.map(np.asarray, outputs())
    assert np.any(first != second)
    np.testing.assert_array_equal(still, same)
    # A unit that stays is doubled, so that the expectation is the evaluated unit.
    np.testing.assert_allclose(first[first != 0], 2 * still[first != 0], rtol=1e-6)
    assert 0.3 < np.mean(first[still > 0] == 0) < 0.7


@pytest.mark.parametrize("shape", [(9, 6, 3), pytest.param((28, 28, 1), marks=pytest.mark.slow)])
def test_convolutions_keep_the_shape_of_images(shape):
    encoder = ConvEncoder((4, 6), (5,), out=(2,))
    decoder = ConvDecoder((7,), (6, 4), batch_norm=True, out=shape)
    x, z = jnp.ones((2, *shape)), jnp.ones((2, 3))

    def run(net, example):
        params, stats = nets.init(net, jax.random.key(0), example)
        return params, nets.apply(net, params, stats, example, train=True)[0]

    params, features = jax.jit(lambda: run(encoder, x))()
    assert params["Conv_1"]["kernel"].shape == (3, 3, 4, 6)
    assert features.shape == (2, 2)
    params, image = jax.jit(lambda: run(decoder, z))()
    assert params["ConvTranspose_0"]["kernel"].shape == (3, 3, 6, 4)
    assert image.shape == (2, *shape)


class Pair(nn.Module):
    """An encoder that returns the mean and the log-variance, which the model adds itself."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(2)(x), nn.Dense(2)(x)


class Unflattened(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(2)(x[..., None])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            VAE(shape=SHAPE, encoder=Unflattened()),
            "the encoder Unflattened returns [1, 6, 2], needed are features [B, F]: flatten its "
            "output",
        ),
        (VAE(shape=SHAPE, encoder=Pair()), "Pair returns a tuple, needed is one array"),
        (
            VAE(shape=(3, 2), encoder=MLP((4,)), decoder=UserNet(5)),
            "UserNet returns [1, 5], needed is [B, 3, 2]: change its last layer",
        ),
        (Autoencoder(shape=SHAPE, encoder=Pair()), "Pair returns a tuple, needed is one array"),
        (
            Autoencoder(shape=SHAPE, encoder=MLP((4,)), decoder=UserNet(5)),
            "UserNet returns [1, 5], needed is [B, 6]: change its last layer",
        ),
        (
            GAN(shape=SHAPE, latent=2, discriminator=UserNet(2)),
            "UserNet returns [1, 2], needed is [B, 1]: change its last layer",
        ),
        (
            GAN(shape=SHAPE, latent=2, generator=UserNet(5)),
            "UserNet returns [1, 5], needed is [B, 6]: change its last layer",
        ),
        (
            VAE(shape=SHAPE, encoder=ConvEncoder((4,))),
            "ConvEncoder takes images [H, W, C], not examples of shape [6]",
        ),
        (
            VAE(shape=SHAPE, encoder=MLP((4,)), decoder=ConvDecoder()),
            "ConvDecoder takes images [H, W, C], not examples of shape [6]",
        ),
        (
            VAE(shape=SHAPE, encoder=nn.Sequential([nn.Dense(4), nn.relu])),
            "Dense.__call__ has no argument train: write a module whose method is "
            "__call__(self, x, *, train=False)",
        ),
        (
            GAN(shape=SHAPE, latent=2, generator=nn.Dense(6)),
            "Dense.__call__ has no argument train: write a module whose method is "
            "__call__(self, x, *, train=False)",
        ),
    ],
)
def test_a_network_that_does_not_fit_gives_one_clear_line(model, message):
    with pytest.raises(UserError) as raised:
        jax.eval_shape(model.init, jax.random.key(0))
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (MLP, {"hidden": (8, -1)}, r"MLP: hidden is \(8, -1\), must be positive"),
        (MLP, {"dropout": 1.0}, "MLP: dropout is 1.0, must be at least 0 and below 1"),
        (ConvEncoder, {"channels": (0,)}, r"ConvEncoder: channels is \(0,\), must be positive"),
        (ConvDecoder, {"channels": ()}, "ConvDecoder: channels is empty"),
    ],
)
def test_impossible_fields_are_refused(kind: Any, fields, message):
    with pytest.raises(UserError, match=message):
        kind(**fields)


CONVOLUTIONS = [  # images, kernel, stride, around, form on a CPU
    ((4, 9, 8, 3), (3, 5, 3, 5), 1, ((2, 0), (2, 2)), "patches"),
    ((3, 7, 6, 30), (3, 3, 30, 4), 1, ((1, 1), (1, 1)), "rows"),
    ((2, 8, 8, 40), (1, 2, 40, 3), 1, ((0, 0), (2, -1)), "rows"),  # a column is cut off
    ((2, 8, 8, 40), (2, 5, 40, 3), 1, ((2, -1), (0, 0)), "rows"),  # a row is cut off
    ((3, 7, 6, 30), (3, 3, 30, 4), 2, ((1, 1), (0, 1)), "patches"),
    ((64, 14, 14, 256), (4, 4, 256, 2), 2, ((1, 1), (1, 1)), "xla"),
    # Kernels taller, or taller and wider, than the image.
    ((2, 1, 6, 30), (3, 3, 30, 4), 1, ((2, 0), (1, 1)), "rows"),
    ((2, 4, 2, 8), (7, 9, 8, 2), 1, ((6, 0), (4, 4)), "rows"),
    ((2, 2, 3, 1), (7, 9, 1, 4), 1, ((3, 3), (8, 0)), "patches"),
    # One tile, and several of which the last are cut.
    ((16, 4, 4, 32), (3, 3, 32, 32), 1, ((1, 1), (1, 1)), "tiles"),
    ((16, 3, 4, 48), (3, 3, 48, 48), 1, ((2, -1), (0, 3)), "tiles"),
    ((8, 8, 4, 48), (3, 3, 48, 48), 1, ((0, 1), (1, 1)), "tiles"),
]
FORMS = {
    "patches": nets.convolve_by_patches,
    "rows": lambda x, kernel, around, _: nets.convolve_by_rows(x, kernel, around),
    "tiles": lambda x, kernel, around, _: nets.convolve_by_tiles(x, kernel, around),
    "xla": nets.convolve,
}


def by_xla(x, kernel, around, stride=1):
    layout, strides = ("NHWC", "HWIO", "NHWC"), (stride, stride)
    return jax.lax.conv_general_dilated(x, kernel, strides, around, dimension_numbers=layout)


@pytest.mark.parametrize(("image", "kernel", "stride", "around", "form"), CONVOLUTIONS)
def test_convolutions_by_products_equal_those_of_xla(image, kernel, stride, around, form):
    """The output, both gradients, the forward derivative and a vmap over kernels."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], image)
    weights = jax.random.normal(keys[1], kernel) / np.sqrt(np.prod(kernel[:3]))
    assert nets.cpu_form(image, kernel, stride) == form

    def derivatives(convolution):
        def f(x, weights):
            return convolution(x, weights, around, stride)

        cotangent = jax.random.normal(keys[2], jax.eval_shape(f, x, weights).shape)
        out, pull = jax.vjp(f, x, weights)
        tangent = jax.jvp(f, (x, weights), (x, weights))[1]
        many = jax.vmap(f, in_axes=(None, 0))(x, jnp.stack([weights, -weights]))
        return out, pull(cotangent), tangent, many

    chex.assert_trees_all_close(
        jax.jit(derivatives, static_argnums=0)(FORMS[form]),
        jax.jit(derivatives, static_argnums=0)(by_xla),
        atol=2e-4 if form == "tiles" else 2e-5,
        rtol=2e-5,
    )


@pytest.mark.parametrize("image", [(2, 2, 5, 3), (2, 0, 5, 3), (0, 4, 4, 3)])
def test_tiles_without_outputs_are_empty(image):
    x, kernel, around = jnp.zeros(image), jnp.ones((3, 3, 3, 4)), ((0, 0), (1, 1))
    assert (
        nets.convolve_by_tiles(x, kernel, around).shape
        == nets.convolve_by_patches(x, kernel, around).shape
    )


@pytest.mark.parametrize("form", FORMS)
def test_convolutions_take_images_of_any_type(form, monkeypatch):
    monkeypatch.setattr(nets, "cpu_form", lambda *_: form)
    pixels, around = np.random.RandomState(0).rand(2, 5, 4, 2) < 0.5, ((1, 1), (2, 0))
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
    expected = by_xla(jnp.asarray(pixels, jnp.float32), kernel, around)
    for dtype in (jnp.bool_, jnp.uint8, jnp.bfloat16):
        out = nets.convolve(jnp.asarray(pixels, dtype), kernel, around)
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(("size", "stride"), [((3, 7), 1), ((7, 3), 1), ((9, 9), 2)])
def test_a_kernel_that_does_not_fit_into_the_image_has_no_output(size, stride):
    def shape(convolution):
        images = jax.ShapeDtypeStruct((2, 4, 3, 5), jnp.float32)
        kernel = jax.ShapeDtypeStruct((*size, 5, 6), jnp.float32)
        around = ((1, 1), (0, 0))
        return jax.eval_shape(lambda x, k: convolution(x, k, around, stride), images, kernel).shape

    assert 0 in shape(by_xla)
    assert shape(nets.convolve_by_patches) == shape(by_xla)
    assert stride > 1 or shape(FORMS["rows"]) == shape(by_xla)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (4, 2), (5, 2), (2, 2), (4, 3)])
def test_convolution_layers_equal_those_of_flax(size, stride):
    """Both layers have the same parameters, from the same key, and the same outputs."""
    x = jax.random.normal(jax.random.key(0), (3, 5, 4, 6))
    kernel, strides = (size, size), (stride, stride)
    pairs = [
        (nets.Conv(7, size, stride), nn.Conv(7, kernel, strides)),
        (nets.ConvTranspose(7, size, stride), nn.ConvTranspose(7, kernel, strides)),
    ]
    for ours, theirs in pairs:
        variables, same = (jax.jit(each.init)(jax.random.key(1), x) for each in (ours, theirs))
        assert equal(variables, same)
        outputs = (jax.jit(each.apply)(variables, x) for each in (ours, theirs))
        np.testing.assert_allclose(*outputs, atol=1e-5, rtol=1e-5)


def test_hidden_layers_are_the_activations_of_every_layer():
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    network: Any = ConvEncoder((2, 4), (5,), out=(7,))
    variables: Any = jax.jit(network.init)(jax.random.key(1), x)
    first, second, last = jax.jit(partial(nets.layers, network))(variables, x)
    assert (first.shape, second.shape, last.shape) == ((3, 4, 4, 2), (3, 2, 2, 4), (3, 5))
    top = variables["params"]["MLP_0"]["Dense_1"]
    expected = np.asarray(last) @ np.asarray(top["kernel"]) + np.asarray(top["bias"])
    out = jax.jit(network.apply)(variables, x)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_hidden_layers_of_a_users_network_are_the_outputs_of_its_modules():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(2)(nn.relu(nn.Dense(4)(x)))

    x = jax.random.normal(jax.random.key(0), (3, 6))
    network: Any = Own()
    variables = jax.jit(network.init)(jax.random.key(1), x)
    layers = jax.jit(lambda x: nets.layers(network, variables, x))(x)
    assert [h.shape for h in layers] == [(3, 4), (3, 2), (3, 2)]
    np.testing.assert_allclose(layers[-1], network.apply(variables, x), rtol=1e-5)


def test_an_affine_network_shifts_its_input_and_passes_dropout_on():
    x = jax.random.normal(jax.random.key(0), (3, 6))
    network = MLP((4,))
    variables = jax.jit(network.init)(jax.random.key(1), x)
    affine = nets.Affine(network, 2.0, -1.0)
    shifted = affine.apply(nets.wrapped(variables), x)
    np.testing.assert_array_equal(shifted, network.apply(variables, 2 * x - 1))
    assert nets.with_dropout(affine, 0.5).network.dropout == 0.5
    assert nets.with_dropout(ConvEncoder(), 0.5) == ConvEncoder()
