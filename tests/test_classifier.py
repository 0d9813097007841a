"""The classifier of images: its loss, its draws in training, and its predictions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.core import UserError
from gen.nets import MLP
from gen.uses.classifier import Classifier, predict, shifted, some_binarized

SMALL = Classifier((4, 4, 1), 3, MLP((5,)))


@pytest.fixture(scope="module")
def state():
    return jax.jit(SMALL.init)(jax.random.key(0))


def test_without_training_all_labels_are_equally_probable(state):
    x = np.random.RandomState(0).rand(7, 4, 4, 1)
    seen = predict(SMALL, state, x, block=3)
    assert (seen.features.shape, seen.probabilities.shape) == ((7, 5), (7, 3))
    np.testing.assert_allclose(seen.probabilities, 1 / 3, rtol=1e-6)
    batch = {"x": jnp.asarray(x, jnp.float32), "label": jnp.arange(7) % 3}
    _, metrics = jax.jit(SMALL.step)(state, batch, jax.random.key(1))
    assert metrics["loss"] == pytest.approx(np.log(3), rel=1e-5)


def test_predictions_do_not_depend_on_the_block(state):
    x = np.random.RandomState(0).rand(7, 4, 4, 1)
    whole, parts = (predict(SMALL, state, x, block).features for block in (7, 2))
    np.testing.assert_allclose(whole, parts, rtol=1e-6)


def test_the_error_is_the_share_of_wrong_labels(state):
    top = {**state.params["top"], "bias": jnp.array([0.0, 1.0, 0.0])}
    state = state._replace(params={**state.params, "top": top})
    data = {"x": np.zeros((4, 4, 4, 1)), "label": np.array([1, 1, 0, 2])}
    assert SMALL.evaluate(state, data, jax.random.key(0))["error"].value == 0.5


def test_an_image_is_moved_by_at_most_the_shift_with_zeros_moved_in():
    x = jnp.zeros((200, 5, 5, 1)).at[:, 2, 2].set(1).at[:, 0, 0].set(1)
    moved = np.asarray(shifted(x, jax.random.key(0), 2))
    assert moved.shape == x.shape
    places = {tuple(np.argwhere(image[..., 0]).ravel()) for image in moved}
    for place in places:
        assert 1 <= len(place) // 2 <= 2
    assert len(places) == 25
    np.testing.assert_array_equal(shifted(x, jax.random.key(0), 0), x)


def test_some_images_are_drawn_with_their_values_as_means():
    x = jnp.full((400, 5, 5, 1), 0.3)
    drawn = np.asarray(some_binarized(x, jax.random.key(0), 0.25))
    binary = np.isin(drawn, (0, 1)).all(axis=(1, 2, 3))
    assert binary.mean() == pytest.approx(0.25, abs=0.08)
    assert drawn[binary].mean() == pytest.approx(0.3, abs=0.04)
    np.testing.assert_array_equal(drawn[~binary], x[~binary])


def test_inputs_are_dropped_anew_in_each_step(state):
    step = jax.jit(replace(SMALL, input_dropout=0.5).step)
    batch = {"x": jnp.ones((8, 4, 4, 1)), "label": jnp.zeros(8, int)}
    first, _ = step(state, batch, jax.random.key(1))
    second, _ = step(state, batch, jax.random.key(2))
    top = first.params["top"]["kernel"], second.params["top"]["kernel"]
    assert not np.array_equal(*top)


def test_examples_that_are_no_images_cannot_be_moved():
    with pytest.raises(UserError, match="shift is 1"):
        Classifier((16,), 3, MLP((5,)), shift=1)
