"""Pictures of filters, of what is denoised and of points, and texts of documents: from models of
the test's own, and from small diffusion models."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pictures
from gen import data, plots
from gen.models.diffusion import DiscreteDiffusion, FlowMatching, GaussianDiffusion, ResidualMLP

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


@dataclass(frozen=True)
class Denoiser:
    """Its noise is 0, its samples are 1, and half of that for another sampler than DDIM."""

    shape: tuple[int, ...] = (2,)
    sampler: str = "heun"
    sample_steps: int = 30

    def sample(self, state, key, n):
        return self.denoising(state, key, n, 1)[-1]

    def denoising(self, state, key, n, frames):
        end = 1.0 if self.sampler == "ddim" else 0.5
        return jnp.linspace(0, end, frames + 1).reshape(-1, 1, 1) * jnp.ones((1, n, *self.shape))


def test_the_way_from_noise_is_told_by_the_steps_behind():
    way = pictures.way_from_noise(Denoiser(), None, jax.random.key(0), 3, 4)
    steps = ["step 0/30", "step 8/30", "step 15/30", "step 22/30", "step 30/30"]
    assert list(way) == steps
    for frame, value in zip(way.values(), (0, 0.125, 0.25, 0.375, 0.5), strict=True):
        np.testing.assert_array_equal(frame, np.full((3, 2), value))


def test_fewer_steps_are_those_of_ddim_from_the_same_noise():
    found = pictures.in_fewer_steps(Denoiser(), None, jax.random.key(0), 3)
    assert list(found) == ["1,000 steps", "50 steps", "20 steps", "10 steps"]
    assert all((values == 1).all() for values in found.values())


def test_great_circles_keep_the_length_of_normal_draws():
    a, b = np.random.default_rng(0).standard_normal((2, 8, 50))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    path = pictures.great_circles(a, 2 * b, np.linspace(0, 1, 5))
    np.testing.assert_allclose(path[:, 0], a)
    np.testing.assert_allclose(path[:, -1], 2 * b)
    path = pictures.great_circles(a, b, np.linspace(0, 1, 5))
    np.testing.assert_allclose(np.linalg.norm(path, axis=-1), 1)
    turned = (path[:, 1:] * path[:, :-1]).sum(axis=-1)
    np.testing.assert_allclose(turned, turned[:, :1] * np.ones((1, 4)))  # by one angle
    middle = pictures.straight(a, b, np.array([0.5]))[:, 0]
    np.testing.assert_allclose(middle, (a + b) / 2)


def test_points_are_drawn_among_the_lines_of_their_density():
    middle = (jnp.arange(300) + 0.5) / 300
    grid = jnp.stack(jnp.meshgrid(middle + 0.05, middle), axis=-1)
    log_p = np.asarray(data.eight_gaussians_log_prob(grid))  # moved to the left
    points = data.CENTRES - np.array([0.05, 0])
    figure = plots.clouds({"one": points, "two": points[:3], "three": points}, 2, log_p)
    assert [axes.get_title() for axes in figure.axes] == ["one", "two", "three"]
    for axes in figure.axes:
        assert axes.get_aspect() == 1
        drawn: Any = axes.collections[-1]
        outer, inner = (path.vertices for path in drawn.get_paths())
        for path, deviations in ((outer, 3), (inner, 1)):
            reach = deviations * data.DEVIATION
            np.testing.assert_allclose(path.min(axis=0), points.min(axis=0) - reach, atol=1e-3)
            np.testing.assert_allclose(path.max(axis=0), points.max(axis=0) + reach, atol=1e-3)


def test_codes_are_of_all_rows_in_order_with_their_labels():
    class Codes:
        def encode(self, state, batch):
            return batch["x"] + batch["label"][:, None]

    test = {"x": jnp.arange(1200.0)[:, None], "label": jnp.arange(1200)}
    for n in (16, 1100, 5000):
        expected = 2.0 * np.arange(min(n, 1200))[:, None]
        np.testing.assert_array_equal(pictures.encoded(Codes(), None, test, n), expected)


def test_pictures_of_points_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "STEPS", (3, 2))
    net = ResidualMLP(width=8, layers=1)
    model = FlowMatching(net, shape=(2,), levels=0, sample_steps=3, ode_steps=2)
    state = model.init(jax.random.key(0))
    test = {"x": jnp.full((30, 2), 0.5), "label": jnp.arange(30) % 8}
    for step in (5, 10):
        pictures.snapshot(tmp_path, step, model, state, jax.random.key(1))
    density = data.eight_gaussians_log_prob
    pictures.final_pictures(tmp_path, model, state, test, jax.random.key(1), log_prob=density)
    found = {path.name for path in tmp_path.glob("*.png")}
    final = {"points.png", "steps.png", "strip.png", "latent.png"}
    assert found == final | {"step_0000005.png", "step_0000010.png"}
    assert final <= set(pictures.FINAL)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "labelled", "discrete", "flow"])
def test_pictures_of_images_that_are_denoised_are_drawn(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "STEPS", (3, 2))
    net, small = ResidualMLP(width=8, layers=1), {"shape": (4, 4, 1), "sample_steps": 3}
    model: Any = {
        "gaussian": GaussianDiffusion(net, levels=2, ode_steps=2, resamplings=1, **small),
        "labelled": GaussianDiffusion(net, classes=3, ode_steps=2, resamplings=1, **small),
        "discrete": DiscreteDiffusion(net, **small),
        "flow": FlowMatching(net, ode_steps=2, resamplings=1, **small),
    }[kind]
    state = model.init(jax.random.key(0))
    x = jax.random.bernoulli(jax.random.key(1), shape=(40, 4, 4, 1)).astype(jnp.float32)
    test = {"x": x, "label": jnp.arange(40) % 3}
    pictures.final_pictures(tmp_path, model, state, test, jax.random.key(2))
    expected = {"samples.png", "denoising.png", "steps.png", "completions.png"}
    if kind != "discrete":
        expected |= {"interpolations.png"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert expected <= set(pictures.FINAL)
