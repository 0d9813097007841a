"""Pictures and texts: of small models made for the test, each with few capabilities, and of small
diffusion models."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pictures
from gen import data, plots
from gen.ais import LogZ
from gen.models.diffusion import DiscreteDiffusion, FlowMatching, GaussianDiffusion, ResidualMLP
from gen.uses import latent

WORDS = ("car", "nasa", "space", "shuttle", "orbit", "moon", "team")


@dataclass(frozen=True)
class Documents:
    """Documents of seven words, with the filters [H, 7] as the state. In a completion the words
    after the fourth are always there, except for the last, which is in half of the documents."""

    shape: tuple[int, ...] = (7,)

    def filters(self, state):
        return state.reshape(-1, *self.shape)

    def complete(self, state, x, mask, key):
        half = jnp.arange(len(x))[:, None] % 2
        filled = jnp.concatenate([jnp.zeros((len(x), 4)), jnp.ones((len(x), 2)), half], axis=1)
        return jnp.where(mask[None] == 1, x, filled)


class RasterDocuments(Documents):
    completion = "raster"


class Images(Documents):
    """The same model with images for examples; its completions are uniform images."""

    def complete(self, state, x, mask, key):
        value = jax.random.uniform(key)
        return jnp.where(mask[None] == 1, x, value)


class RasterImages(Images):
    completion = "raster"


class OrderedImages(Images):
    completion = "order"


def names_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def texts_of(folder, model, weights) -> dict[str, list[str]]:
    """Return the lines of the texts that are written for a model of documents."""
    pictures.final_pictures(folder, model, jnp.asarray(weights), {}, jax.random.key(0), words=WORDS)
    return {path.name: path.read_text().splitlines() for path in folder.glob("*.txt")}


def drawn_grids(monkeypatch) -> list[tuple[np.ndarray, list[str]]]:
    """Return a list that gets the images and the row labels of every grid drawn from then on."""
    grids, grid = [], plots.grid

    def record(images, columns, labels=()):
        grids.append((np.asarray(images), list(labels)))
        return grid(images, columns, labels)

    monkeypatch.setattr(plots, "grid", record)
    return grids


def test_units_are_described_by_words_and_triples_are_completed(tmp_path):
    weights = np.zeros((60, 7), np.float32)
    weights[3, [0, 6]] = 2, 1
    weights[5] = [-9, 1, 3, 2, 0, 0, 0]
    texts = texts_of(tmp_path, Documents(), weights)
    lines = texts["words.txt"]
    assert len(lines) == 50
    assert lines[0] == "unit    5  space shuttle nasa"
    assert lines[1] == "unit    3  car team"
    (line,) = texts["completions.txt"]  # of the one triple whose words are all there
    assert line == "nasa space shuttle: orbit 100%, moon 100%, team 50%, car 0%"


def test_a_model_that_completes_in_raster_order_completes_no_triples(tmp_path):
    assert set(texts_of(tmp_path, RasterDocuments(), np.ones((2, 7)))) == {"words.txt"}


@pytest.mark.parametrize("kind", [Images, RasterImages, OrderedImages])
def test_upper_halves_are_completed_unless_the_model_has_an_order_of_its_own(
    kind, tmp_path, monkeypatch
):
    grids = drawn_grids(monkeypatch)
    x = jax.random.uniform(jax.random.key(2), (12, 4, 5, 1))
    weights = jax.random.normal(jax.random.key(1), (120, 20))
    pictures.final_pictures(tmp_path, kind((4, 5, 1)), weights, {"x": x}, jax.random.key(0))
    if kind is OrderedImages:
        assert names_in(tmp_path) == {"filters.png"}
        return
    assert names_in(tmp_path) == {"filters.png", "completions.png"}
    images, labels = grids[0]
    assert labels == ["original", "shown", "completed", "completed", "completed"]
    original, shown, *completed = images.reshape(5, 10, 4, 5, 1)
    np.testing.assert_array_equal(original, x[:10])
    np.testing.assert_array_equal(shown[:, 2:], 0.5)
    for rows in (shown, *completed):
        np.testing.assert_array_equal(rows[:, :2], x[:10, :2])
    assert len({float(rows[0, 3, 0, 0]) for rows in completed}) == 3  # three keys


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_each_filter_is_scaled_by_its_own_largest_weight_about_grey(scale):
    weights = scale * np.array([[[0.0], [1.0], [-4.0]], [[0.0], [0.0], [0.0]]])
    np.testing.assert_allclose(
        plots.signed(weights)[..., 0], [[0.5, 0.625, 0], [0.5, 0.5, 0.5]], rtol=1e-6
    )


def test_three_channels_are_drawn_in_colour_and_the_mean_of_any_other_number_in_grey():
    red = np.broadcast_to(np.array([1.0, 0.0, 0.0]), (3, 4, 5, 3))
    canvas = plots.tile(red, 2)
    assert canvas.shape == (11, 13, 3)
    np.testing.assert_array_equal(canvas[1:5, 1:6], red[0])
    np.testing.assert_array_equal(canvas[6:10, 7:12], 0.5)  # where there is no fourth image
    canvas = plots.tile(red[..., :2], 2)
    np.testing.assert_array_equal(canvas[1:5, 1:6], 0.5)


def test_lines_between_small_images_are_thin():
    """Those of 8 × 8 images would otherwise be an eighth of an image wide."""
    for figure in (
        plots.grid(np.ones((20, 8, 8, 1)), 10),
        plots.panels_of_images({"": np.ones((2, 10, 8, 8, 1))}, ["", ""]),
    ):
        (axes,) = figure.axes
        canvas = np.asarray(axes.images[0].get_array())
        rows, columns = (canvas == 0.5).all(axis=1), (canvas == 0.5).all(axis=0)
        assert (rows.sum(), columns.sum()) == (3, 11)
        assert rows.mean() < 0.16
        assert columns.mean() < 0.14


@pytest.mark.parametrize("damage", ["truncated", "of another shape", "a link to nothing", "text"])
def test_a_damaged_snapshot_is_left_out_and_named(damage, tmp_path, capsys):
    whole, path = np.ones((10, 4, 5, 1), np.uint8), tmp_path / "step_0000002.npy"
    np.save(tmp_path / "step_0000001.npy", whole)
    np.save(path, whole[:3] if damage == "of another shape" else whole)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "a link to nothing":
        path.unlink()
        path.symlink_to(tmp_path / "nothing")
    elif damage == "text":
        path.write_text("mine")
    stored = pictures.snapshots(tmp_path, whole.shape)
    assert list(stored) == ["step 1"]
    np.testing.assert_array_equal(stored["step 1"], whole)
    assert capsys.readouterr().err == f"left {path} out of strip.png: it is damaged\n"


@dataclass(frozen=True)
class Denoiser:
    """A model with `denoising` alone: its noise is 0 and its samples are 1."""

    shape: tuple[int, ...] = (2,)
    sample_steps: int = 0

    def denoising(self, state, key, n, frames):
        way = jnp.linspace(0, 1, frames + 1).reshape(-1, 1, *[1] * len(self.shape))
        return way * jnp.ones((1, n, *self.shape))


@dataclass(frozen=True)
class StepSampler:
    """A model with `sample_in` alone, whose samples are 1 / steps."""

    shape: tuple[int, ...] = (2,)

    def sample_in(self, state, key, n, steps):
        return jnp.full((n, *self.shape), 1 / steps)


@dataclass(frozen=True)
class Chains:
    """A model with `chains` alone, whose samples are the number of sweeps, as a share of 1,000."""

    shape: tuple[int, ...] = (4, 4, 1)

    def chains(self, state, key, n, sweeps):
        return jnp.full((n, *self.shape), sweeps / 1_000)


@dataclass(frozen=True)
class Bracketed:
    """A model with `bracket` alone: the ends are 1 / temperatures away from 5 nats."""

    shape: tuple[int, ...] = (3,)

    def bracket(self, state, key, temperatures: Any = None, chains: Any = None):
        width = 1 / temperatures
        return LogZ(5 - width, 0.01, chains, 5 + width, 0.01, chains)


class Summed(Bracketed):
    """The same model with `log_partition`, whose value is its state."""

    def log_partition(self, state):
        return state


@pytest.mark.parametrize(
    ("total", "labels"),
    [
        (30, ["step 0/30", "step 8/30", "step 15/30", "step 22/30", "step 30/30"]),
        (0, ["0%", "25%", "50%", "75%", "100%"]),
    ],
)
def test_frames_are_labelled_by_the_steps_or_by_the_share_of_the_way(total, labels):
    model = Denoiser(sample_steps=total)
    frames = pictures.denoising_frames(model, None, jax.random.key(0), 3, 4)
    assert list(frames) == labels
    for frame, value in zip(frames.values(), (0, 0.25, 0.5, 0.75, 1), strict=True):
        np.testing.assert_array_equal(frame, np.full((3, 2), value))


def test_denoising_alone_is_drawn(tmp_path, monkeypatch):
    for shape, name in (((4, 4, 1), "denoising.png"), ((2,), "points.png")):
        folder = tmp_path / name
        folder.mkdir()
        grids = drawn_grids(monkeypatch)
        test = {"x": jnp.full((30, *shape), 0.5)}
        pictures.final_pictures(folder, Denoiser(shape), None, test, jax.random.key(0))
        assert names_in(folder) == {name}
        if name == "denoising.png":
            ((images, labels),) = grids
            assert labels == [f"{share}%" for share in range(0, 101, 10)]
            np.testing.assert_allclose(images[:, 0, 0, 0], np.repeat(np.arange(11) / 10, 10))


def test_samples_are_drawn_in_each_number_of_steps(tmp_path, monkeypatch):
    grids = drawn_grids(monkeypatch)
    model, test = StepSampler((4, 4, 1)), {"x": jnp.zeros((30, 4, 4, 1))}
    pictures.final_pictures(tmp_path, model, None, test, jax.random.key(0))
    assert names_in(tmp_path) == {"steps.png"}
    ((images, labels),) = grids
    assert labels == ["1,000 steps", "50 steps", "20 steps", "10 steps"]
    np.testing.assert_allclose(images[::10, 0, 0, 0], [0.001, 0.02, 0.05, 0.1], rtol=1e-6)


def test_chains_are_drawn_after_each_number_of_sweeps(tmp_path, monkeypatch):
    grids = drawn_grids(monkeypatch)
    test = {"x": jnp.zeros((30, 4, 4, 1))}
    pictures.final_pictures(tmp_path, Chains(), None, test, jax.random.key(0))
    assert names_in(tmp_path) == {"chains.png"}
    ((images, labels),) = grids
    assert labels == ["sweep 0", "sweep 1", "sweep 10", "sweep 100", "sweep 1,000"]
    np.testing.assert_allclose(images[::10, 0, 0, 0], [0, 0.001, 0.01, 0.1, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "exact"), [(Bracketed(), None), (Summed(), None), (Summed(), 5.0)]
)
def test_a_bracket_is_drawn_with_the_exact_value_where_there_is_one(
    model, exact, tmp_path, monkeypatch
):
    drawn, brackets = [], plots.brackets

    def record(*arguments):
        drawn.append(arguments)
        return brackets(*arguments)

    monkeypatch.setattr(plots, "brackets", record)
    pictures.final_pictures(tmp_path, model, exact, {}, jax.random.key(0))
    assert names_in(tmp_path) == {"bracket.png"}
    ((temperatures, ends, line),) = drawn
    assert temperatures == pictures.TEMPERATURES
    assert ends["forward"] == [(5 - 1 / number, 0.01) for number in temperatures]
    assert ends["reverse"] == [(5 + 1 / number, 0.01) for number in temperatures]
    assert line == exact
    (axes,) = brackets(temperatures, ends, line).axes
    assert ("exact" in axes.get_legend_handles_labels()[1]) == (exact is not None)


@dataclass(frozen=True)
class Codes:
    """A model of images whose codes are its pixels."""

    family: ClassVar[str] = "codes"
    codes: str = "features"
    normal_codes: int = 0
    shape: tuple[int, ...] = (4, 4, 1)

    def encode(self, state, batch):
        return batch["x"].reshape(-1, 16)

    def decode(self, state, z):
        return z.reshape(-1, *self.shape)


@pytest.mark.parametrize("normal", [0, 16])
def test_normal_codes_are_joined_by_great_circles_and_others_by_straight_lines(
    normal, tmp_path, monkeypatch
):
    grids = drawn_grids(monkeypatch)
    monkeypatch.setattr(pictures, "plane", lambda codes, projection: (codes[:, :2], projection))
    x = jax.random.uniform(jax.random.key(0), (16, 4, 4, 1))
    test = {"x": x, "label": jnp.arange(16)}
    codes = "noise" if normal else "features"
    pictures.final_pictures(tmp_path, Codes(codes, normal), None, test, jax.random.key(1))
    assert names_in(tmp_path) == {"interpolations.png", *(() if normal else ("codes.png",))}
    path = np.asarray(grids[0][0]).reshape(8, 11, 16)
    a, b = np.asarray(x).reshape(2, 8, 16)
    np.testing.assert_allclose(path[:, 0], a, rtol=1e-5)
    np.testing.assert_allclose(path[:, -1], b, rtol=1e-5)
    straight = np.allclose(path[:, 5], (a + b) / 2, rtol=1e-4)
    assert straight == (not normal)


def test_great_circles_keep_the_length_of_normal_draws():
    a, b = np.random.default_rng(0).standard_normal((2, 8, 50))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    path = latent.great_circles(a, 2 * b, np.linspace(0, 1, 5))
    np.testing.assert_allclose(path[:, 0], a)
    np.testing.assert_allclose(path[:, -1], 2 * b)
    path = latent.great_circles(a, b, np.linspace(0, 1, 5))
    np.testing.assert_allclose(np.linalg.norm(path, axis=-1), 1)
    cosine = (path[:, 1:] * path[:, :-1]).sum(axis=-1)
    np.testing.assert_allclose(cosine, cosine[:, :1] * np.ones((1, 4)))  # equal angles
    middle = latent.straight_lines(a, b, np.array([0.5]))[:, 0]
    np.testing.assert_allclose(middle, (a + b) / 2)


def test_points_are_drawn_among_the_contour_lines_of_their_density():
    middle = (jnp.arange(300) + 0.5) / 300
    grid = jnp.stack(jnp.meshgrid(middle + 0.05, middle), axis=-1)
    log_p = np.asarray(data.eight_gaussians_log_prob(grid))  # moved to the left
    points = data.CENTRES - np.array([0.05, 0])
    figure = plots.clouds({"one": points, "two": points[:3], "three": points}, 2, log_p)
    assert [axes.get_title() for axes in figure.axes] == ["one", "two", "three"]
    for axes in figure.axes:
        assert axes.get_aspect() == 1
        contours: Any = axes.collections[-1]
        outer, inner = (path.vertices for path in contours.get_paths())
        for path, deviations in ((outer, 3), (inner, 1)):
            reach = deviations * data.DEVIATION
            np.testing.assert_allclose(path.min(axis=0), points.min(axis=0) - reach, atol=1e-3)
            np.testing.assert_allclose(path.max(axis=0), points.max(axis=0) + reach, atol=1e-3)


def test_models_that_are_equal_share_one_compiled_sampler():
    traces = []

    @dataclass(frozen=True)
    class Sampler:
        shape: tuple[int, ...] = (2,)

        def sample(self, state, key, n):
            traces.append(n)
            return state + jax.random.uniform(key, (n, *self.shape))

    key = jax.random.key(0)
    first, second = (pictures.draw_samples(Sampler(), offset, key, 3) for offset in (0.0, 1.0))
    np.testing.assert_allclose(second, first + 1)
    assert traces == [3]


def test_pictures_of_points_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "STEPS", (3, 2))
    net = ResidualMLP(width=8, layers=1)
    model = FlowMatching(net, shape=(2,), levels=0, sample_steps=3, ode_steps=2)
    state = jax.jit(model.init)(jax.random.key(0))
    test = {"x": jnp.full((30, 2), 0.5), "label": jnp.arange(30) % 8}
    for step in (5, 10):
        pictures.snapshot(tmp_path, step, model, state, jax.random.key(1))
    density = data.eight_gaussians_log_prob
    pictures.final_pictures(tmp_path, model, state, test, jax.random.key(1), log_prob=density)
    final = {"points.png", "steps.png", "strip.png", "codes.png"}
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == final | {"step_0000005.png", "step_0000010.png"}
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
    state = jax.jit(model.init)(jax.random.key(0))
    x = jax.random.bernoulli(jax.random.key(1), shape=(40, 4, 4, 1)).astype(jnp.float32)
    test = {"x": x, "label": jnp.arange(40) % 3}
    pictures.final_pictures(tmp_path, model, state, test, jax.random.key(2))
    expected = {"samples.png", "denoising.png", "steps.png", "completions.png"}
    if kind != "discrete":
        expected |= {"interpolations.png"}
    assert names_in(tmp_path) == expected
    assert expected <= set(pictures.FINAL)


class Binarised(Images):
    """A model whose reconstructions are the images that it is given."""

    lacks = ("filters",)

    def reconstruct(self, state, batch):
        return batch["x"]


@pytest.mark.parametrize("binarised", [True, False])
def test_originals_are_shown_as_they_are_beside_their_binarised_draws(
    binarised, tmp_path, monkeypatch
):
    grids = drawn_grids(monkeypatch)
    grey = jax.random.uniform(jax.random.key(2), (30, 4, 5, 1))
    x = jnp.round(grey) if binarised else grey
    model = Binarised((4, 5, 1))
    pictures.image_pictures(tmp_path, model, None, {"x": x}, jax.random.key(0), grey)
    (images, labels), (completed, completion_labels) = grids
    rows = (
        ["original", "binarised", "reconstructed"] if binarised else ["original", "reconstructed"]
    )
    assert labels == rows * 3
    for i, label in enumerate(labels):
        shown = images[10 * i : 10 * i + 10]
        source = grey if label == "original" else x
        np.testing.assert_array_equal(shown, source[i // len(rows) * 10 :][:10])
    np.testing.assert_array_equal(completed[:10], grey[:10])
    assert completion_labels[1] == ("shown, binarised" if binarised else "shown")


@pytest.mark.parametrize(
    ("number", "shown"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])]
)
def test_the_steps_of_a_strip_double(number, shown):
    stored = {f"step {i}": np.array(i) for i in range(1, number + 1)}
    assert list(pictures.doubling(stored)) == [f"step {i}" for i in shown]


def test_curves_have_units_and_the_validation_line_with_the_chosen_step():
    steps, loss = [10, 20, 30], np.array([3.0, 2.0, 1.0])
    metrics = {"kl": (steps, loss), "loss": (steps, loss), "validation": (steps, loss + 1)}
    units = {"kl": "nats", "loss": "nats", "validation": "nats"}
    kl, both = plots.curves(metrics, units, [20]).axes
    assert (both.get_title(), both.get_xlabel(), both.get_ylabel()) == (
        "loss",
        "training steps",
        "nats",
    )
    training, validation, dot = both.lines
    assert [line.get_label() for line in both.lines] == [
        "training",
        "validation",
        "chosen step 20",
    ]
    assert (training.get_linestyle(), validation.get_linestyle()) == ("-", "--")
    np.testing.assert_array_equal(dot.get_xydata(), [[20, 3]])
    assert len(kl.lines) == 1
    apart = plots.curves(metrics, units | {"loss": "nats/step"}, [20]).axes
    assert [axes.get_title() for axes in apart] == ["kl", "loss", "validation"]
    seeds = {name: (steps, np.stack([y, y + 1], axis=1)) for name, (_, y) in metrics.items()}
    _, both = plots.curves(seeds, units, [20, 30]).axes
    assert both.lines[0].get_color() == both.lines[2].get_color()  # one seed
    np.testing.assert_array_equal(both.lines[-1].get_xydata(), [[20, 3], [30, 3]])


@dataclass(frozen=True)
class Table:
    """A model of a table of three columns, one of them of texts; its samples are its state."""

    family: ClassVar[str] = "table"
    shape: tuple[int, ...] = (4,)

    def sample(self, state, key, n):
        return jnp.resize(state, (n, 4))

    def encode(self, state, batch):
        return batch["x"][:, :2]


def test_the_columns_of_a_table_are_drawn_as_histograms_of_data_and_samples(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append((path.name, figure)))
    height = np.linspace(0, 1, 50)
    x = np.stack([height, height > 0.5, height > 0.2, height <= 0.2], axis=1)
    test: Any = {"x": x, "label": np.arange(50) % 2}
    pictures.final_pictures(
        tmp_path,
        Table(),
        jnp.array([[2.0, 1.0, 1.0, 0.0]]),
        test,
        jax.random.key(0),
        words=("height", "adult", "kind=cat", "kind=dog"),
        restore=lambda x: x * np.array([100, 1, 1, 1]),
        labels=("no", "yes"),
    )
    (name, figure), (codes, scatter) = drawn
    assert (name, codes) == ("samples.png", "codes.png")
    by_title = {axes.get_title(): axes for axes in figure.axes}
    assert list(by_title) == ["height", "adult", "kind"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "test examples",
        "samples",
    ]
    kinds = by_title["kind"]
    assert [label.get_text() for label in kinds.get_xticklabels()] == ["cat", "dog"]
    shares = [patch.get_data().values for patch in kinds.patches]
    np.testing.assert_allclose(shares, [[0.8, 0.2], [1, 0]])
    heights = [patch.get_data() for patch in by_title["height"].patches]
    assert heights[0].edges[-1] > 99  # in the units of the data
    assert heights[1].values[-1] == 1  # 200 counts in the outermost bin
    legend = scatter.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["no", "yes"]


def test_columns_beyond_the_first_are_not_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "COLUMNS", 2)
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure))
    test: Any = {"x": np.full((5, 4), np.nan)}
    pictures.final_pictures(tmp_path, Table(), jnp.zeros((1, 4)), test, jax.random.key(0))
    assert [axes.get_title() for axes in drawn[0].axes] == ["1", "2"]


def test_a_sequence_of_symbols_names_them():
    x = np.array([0, 2, 1, 2])
    figure = plots.stacked({"text": x, "codes": np.ones((4, 3))}, {"text": ["␣", "a", "b"]})
    text, codes = figure.axes
    assert [label.get_text() for label in text.get_yticklabels()] == ["␣", "a", "b"]
    assert codes.get_title() == "codes"
    many = [f"w{i}" for i in range(500)]
    (axes,) = plots.stacked({"words": np.array([7, 499, 7])}, {"words": many}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["w7", "w499"]


def test_the_bins_of_a_histogram_can_cover_all_samples():
    samples = {"a": np.linspace(0, 1, 100), "b": np.linspace(5, 6, 100)}
    ends = [
        plots.histograms({"x": samples}, pooled=pooled).axes[0].get_xlim()[1]
        for pooled in (False, True)
    ]
    assert ends[0] < 2
    assert ends[1] > 5.9
