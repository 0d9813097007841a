"""Heat maps of images: they add up to the score, and find the pixels of defects."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.experiment import Experiment
from experiments.uses import anomaly as command
from experiments.uses.base import Subject
from gen import data
from gen.core import UserError
from gen.models.autoencoder import Autoencoder
from gen.models.autoregressive import NADE, Autoregressive, PixelCNN
from gen.models.boltzmann import RBM
from gen.nets import MLP
from gen.uses import anomaly, defects

SHAPE = (4, 4, 2)
MODELS = {
    "pixelcnn": (Autoregressive(PixelCNN(2, 1), shape=SHAPE, levels=3), "log_prob", np.sum),
    "nade": (Autoregressive(NADE(5), shape=SHAPE), "log_prob", np.sum),
    "autoencoder": (
        Autoencoder(shape=SHAPE, encoder=MLP((3,)), decoder=MLP((5,))),
        "reconstruction",
        np.mean,
    ),
    "rbm": (RBM(shape=SHAPE, hidden=3), "reconstruction", np.mean),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_heat_map_adds_up_to_the_score_of_the_image(name, rng):
    model, kind, total = MODELS[name]
    levels = model.levels if kind == "log_prob" else 2
    x = (rng.integers(0, levels, (7, *SHAPE)) / (levels - 1)).astype(np.float32)
    state = jax.jit(model.init)(jax.random.key(0))
    state = state._replace(params=jax.tree.map(lambda p: p + 0.1, state.params))
    assert defects.kinds(model) == (kind,)
    maps = defects.heat_maps(model, state, {"x": x}, kind, block=3)
    assert maps.shape == (7, 4, 4)
    scores = anomaly.score(model, state, {"x": x}, jax.random.key(1), kind)
    np.testing.assert_allclose(total(maps, axis=(1, 2)), scores, rtol=1e-4)
    assert maps.std() > 0


def test_a_heat_map_that_a_model_lacks_is_refused():
    model = MODELS["autoencoder"][0]
    with pytest.raises(UserError, match="no heat map 'log_prob': choose one of reconstruction"):
        defects.heat_maps(model, None, {"x": jnp.zeros((1, *SHAPE))}, "log_prob")
    rows = RBM(shape=(12,), hidden=3)
    assert defects.kinds(rows) == ()


def test_the_auroc_of_pixels_has_the_error_of_drawing_other_images(rng):
    def draw():
        masks = np.zeros((40, 6, 6), bool)
        masks[::2, :2, :3] = True
        shared = rng.standard_normal((40, 1, 1))  # correlates the pixels of an image
        return masks + shared + rng.standard_normal(masks.shape), masks

    maps, masks = draw()
    result = defects.pixel_auroc(maps, masks)
    assert result.value == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()))
    results = [defects.pixel_auroc(*draw()) for _ in range(200)]
    spread = np.std([each.value for each in results], ddof=1)
    assert np.mean([each.stderr for each in results]) == pytest.approx(spread, rel=0.15)
    assert anomaly.auroc(maps.ravel(), masks.ravel()).stderr < 0.8 * spread
    perfect = defects.pixel_auroc(masks.astype(float), masks)
    assert (perfect.value, perfect.stderr) == (1, 0)


def test_a_filter_spreads_a_pixel_and_keeps_the_sum():
    maps = np.zeros((2, 9, 9))
    maps[0, 4, 4] = 1
    smooth = defects.smoothed(maps, 1.0)
    assert smooth[0].sum() == pytest.approx(1)
    assert smooth[0, 4, 4] < 0.3
    assert not smooth[1].any()
    assert defects.smoothed(maps, 0) is maps


@pytest.fixture(scope="module")
def textures():
    return data.load("textures")


def test_textures_have_defects_in_test_patches_alone(textures):
    assert [len(split["x"]) for split in textures.splits.values()] == [4_000, 500, 700]
    assert not textures.train["label"].any()
    assert not textures.validation["label"].any()
    np.testing.assert_array_equal(np.bincount(textures.test["label"]), [400, 100, 100, 100])
    masks = textures.test["defects"]
    np.testing.assert_array_equal(masks.any(axis=(1, 2, 3)), textures.test["label"] > 0)
    assert textures.format.levels == 16
    assert textures.train["x"].max() <= 15


def test_defects_change_the_pixels_of_their_masks_alone(rng):
    from gen.data import textures

    patch = np.full((32, 32), 0.5)
    for change in (textures.scratch, textures.blot):
        changed, mask = change(patch, rng)
        np.testing.assert_array_equal(changed != patch, mask)
    other = np.full((32, 32), 0.7)
    changed, mask = textures.patch_of(patch, other, rng)
    np.testing.assert_array_equal(changed == other, mask)


def test_principal_components_find_what_is_not_in_training(rng):
    basis = rng.standard_normal((3, 5 * 5))
    training = (rng.standard_normal((50, 3)) @ basis).reshape(-1, 5, 5, 1)
    image = training[:1].copy()
    image[0, 2, 3] += 5
    maps = defects.pca_maps(training, image, 3, seed=0)
    assert np.unravel_index(maps[0].argmax(), (5, 5)) == (2, 3)


def test_the_command_locates_the_defects_of_textures(textures):
    """Under an untrained model, on some of the images."""
    some = {name: values[250:550] for name, values in textures.test.items()}
    train = {name: values[:300] for name, values in textures.train.items()}
    dataset = replace(textures, train=train, test=some)
    model = Autoencoder(encoder=MLP((4,)), decoder=MLP((4,)))
    experiment = Experiment(model, data="textures").on(dataset)
    state = jax.jit(experiment.model.init)(jax.random.key(0))
    subject = Subject("tiny", experiment, dataset, {0: state}, 0, None)
    results = command.located(subject, command.Flags(Path("tiny")))
    outcome: Any = results["defects"]
    record, rows, figure = outcome
    assert [row["heat map"] for row in rows] == ["reconstruction", "PCA, 32 components"]
    assert rows[1]["pixels, smoothed"].value > 0.8
    assert (record["images"], record["defective_images"]) == (300, 150)
    assert len(figure.axes) == 4 * 9
    assert not command.located(subject, command.Flags(Path("tiny"), against="digits"))
