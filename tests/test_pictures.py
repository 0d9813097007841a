"""Pictures of filters and texts of documents, from a model of the test's own."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pictures
from gen import plots

WORDS = ("car", "nasa", "space", "shuttle", "orbit", "moon", "team")


@dataclass(frozen=True)
class Documents:
    """Its state is the filters [H, D]; hidden words after the third are there with certainty, but
    for the last, which is there in half of the documents."""

    shape: tuple[int, ...] = (7,)

    def filters(self, state):
        return state.reshape(-1, *self.shape)

    def complete(self, state, x, mask, key):
        half = jnp.arange(len(x))[:, None] % 2
        filled = jnp.concatenate([jnp.zeros((len(x), 4)), jnp.ones((len(x), 2)), half], axis=1)
        return jnp.where(mask[None] == 1, x, filled)


class InOrder(Documents):
    raster = True


def drawn(folder, model, weights):
    pictures.final_pictures(folder, model, jnp.asarray(weights), {}, jax.random.key(0), words=WORDS)
    return {path.name: path.read_text().splitlines() for path in folder.glob("*.txt")}


def test_units_are_told_by_their_words_and_triples_are_completed(tmp_path):
    weights = np.zeros((60, 7), np.float32)
    weights[3, [0, 6]] = 2, 1
    weights[5] = [-9, 1, 3, 2, 0, 0, 0]
    texts = drawn(tmp_path, Documents(), weights)
    lines = texts["words.txt"]
    assert len(lines) == 50
    assert lines[0] == "unit    5  space shuttle nasa"
    assert lines[1] == "unit    3  car team"
    (line,) = texts["completions.txt"]  # of the one triple whose words are all there
    assert line == "nasa space shuttle: orbit 100%, moon 100%, team 50%, car 0%"


def test_a_model_that_fills_in_word_after_word_completes_no_triples(tmp_path):
    assert set(drawn(tmp_path, InOrder(), np.ones((2, 7)))) == {"words.txt"}


def test_filters_are_drawn_where_they_are_images(tmp_path):
    model = Documents(shape=(4, 5, 1))
    test = {"x": jnp.zeros((1, 4, 5, 1))}
    weights = jax.random.normal(jax.random.key(1), (120, 20))
    pictures.image_pictures(tmp_path, InOrderImages(model.shape), weights, test, jax.random.key(0))
    assert [path.name for path in tmp_path.iterdir()] == ["filters.png"]


class InOrderImages(Documents):
    raster = False


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_each_filter_is_scaled_by_its_own_largest_weight_about_grey(scale):
    weights = scale * np.array([[[0.0], [1.0], [-4.0]], [[0.0], [0.0], [0.0]]])
    np.testing.assert_allclose(
        plots.signed(weights)[..., 0], [[0.5, 0.625, 0], [0.5, 0.5, 0.5]], rtol=1e-6
    )
