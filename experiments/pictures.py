"""The pictures and texts of a run, chosen by the capabilities and facts of its model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.folder import write_text
from gen import plots
from gen.core import METRIC_UNITS, Batch, capabilities, facts
from gen.data import LogProb
from gen.files import replacing
from gen.uses.features import encode_all
from gen.uses.latent import interpolate, plane

FINAL = (
    "samples.png",
    "points.png",
    "denoising.png",
    "steps.png",
    "strip.png",
    "reconstructions.png",
    "completions.png",
    "completions.txt",
    "filters.png",
    "chains.png",
    "bracket.png",
    "words.txt",
    "codes.png",
    "interpolations.png",
    "tables.png",
    "posterior.png",
    "sequences.png",
    "sequences.txt",
    "curves.png",
)
"""Names of the files that a finished run can have."""

SWEEPS = (0, 1, 10, 100, 1_000)
"""Numbers of Gibbs sweeps after which chains are shown."""
TEMPERATURES = (30, 100, 300, 1_000, 3_000)
"""Numbers of temperatures at which AIS brackets log Z."""
STEPS = (1_000, 50, 20, 10)
"""Numbers of sampling steps that are compared."""
ROW = 10
"""Images in a row of the pictures that show the same examples again and again."""
POINTS = 2_000
"""Points in a scatter plot, and samples in a histogram."""
COLUMNS = 16
"""Largest number of columns of a table whose histograms are drawn."""
TRIPLES = (
    ("nasa", "space", "shuttle"),
    ("god", "jesus", "bible"),
    ("car", "engine", "dealer"),
    ("windows", "dos", "drive"),
    ("hockey", "season", "team"),
    ("disease", "doctor", "patients"),
)
"""Words that documents are completed from, where all three are variables of the data."""


@partial(jax.jit, static_argnums=(0, 3))
def _sample(model: Any, state: Any, key: jax.Array, n: int) -> jax.Array:
    """Draw samples by a compiled function that later calls with an equal model reuse."""
    return model.sample(state, key, n)


def draw_samples(model: Any, state: Any, key: jax.Array, n: int = 100) -> np.ndarray:
    """Draw samples from a model.

    Args:
      model: a model with `sample`.
      state: a state of it.
      key: the source of the draws.
      n: the number of samples.

    Returns:
      [n, *shape], floats.
    """
    return np.asarray(_sample(model, state, key, n))


def snapshot(folder: Path, step: int, model: Any, state: Any, key: jax.Array) -> None:
    """Draw samples during training: images and points of the plane, as a picture and as arrays.

    `final_pictures` puts the arrays of all steps into one picture, `strip.png`. The arrays are the
    first `ROW` images as bytes, or all points.

    Args:
      folder: the folder of the pictures.
      step: the number of training steps done.
      model: a model with `sample`.
      state: its state.
      key: the source of the draws, the same at each step.
    """
    path = snapshot_path(folder, step)
    if len(model.shape) == 3:
        images = draw_samples(model, state, key)
        save_array(np.round(images[:ROW] * 255).astype(np.uint8), path)
        save(plots.grid(images, 10), path.with_suffix(".png"))
    if model.shape == (2,):
        points = draw_samples(model, state, key, POINTS)
        save_array(points, path)
        save(plots.clouds({f"step {step:,}": points}, 1), path.with_suffix(".png"))


def has_snapshots(model: Any) -> bool:
    """Return whether `snapshot` draws the samples of a model: images, and points of the plane."""
    return len(model.shape) == 3 or model.shape == (2,)


def snapshot_path(folder: Path, step: int) -> Path:
    """Return the path of the arrays that `snapshot` stores at a step."""
    return folder / f"step_{step:07d}.npy"


def final_pictures(
    folder: Path,
    model: Any,
    state: Any,
    test: Batch,
    key: jax.Array,
    symbols: str | tuple[str, ...] = "",
    words: Sequence[str] = (),
    log_prob: LogProb | None = None,
    originals: jax.Array | None = None,
    restore: Callable[[Any], Any] = np.asarray,
    labels: Sequence[str] = (),
) -> None:
    """Draw every picture that the model's capabilities allow, under the names in `FINAL`.

    Args:
      folder: the folder of the pictures.
      model: any model. Examples of shape [H, W, C] are drawn as images, of shape [2] as points.
      state: a trained state of it.
      test: test examples, decoded and binarised as in training.
      key: the source of the draws.
      symbols: the letter of each level, if examples are texts.
      words: the word of each variable, if examples are documents.
      log_prob: the log-density of the distribution that the data were drawn from, if it is known.
      originals: x of the test examples before binarisation; None where it is `test["x"]`.
      restore: maps decoded values to the units of the data, in which points and columns are drawn.
      labels: the names of the classes, if they have names.
    """
    able = capabilities(model)
    if "tables" in able:
        tables = jax.device_get(jax.jit(model.tables)(state))
        columns = {"emission": list(map(visible, symbols))} if symbols else None
        rows = "state" if facts(model).sequences else "unit"
        save(plots.heatmaps(tables, columns, rows), folder / "tables.png")
    if "bracket" in able:
        bracket_picture(folder, model, state, key)
    if "length" in test:
        sequence_pictures(folder, model, state, test, key, symbols)
    if words:
        document_texts(folder, model, state, key, words)
    if len(model.shape) == 3:
        image_pictures(folder, model, state, test, key, originals, labels)
    if model.shape == (2,):
        point_pictures(folder, model, state, test, key, log_prob, restore, labels)
    elif len(model.shape) == 1:
        column_pictures(folder, model, state, test, key, words, restore, labels)


def sequence_pictures(
    folder: Path,
    model: Any,
    state: Any,
    test: Batch,
    key: jax.Array,
    symbols: str | tuple[str, ...],
) -> None:
    """Draw test sequences beside samples, and the codes of one test sequence below it.

    Args:
      folder: the folder of the pictures.
      model: any model.
      state: a state of it.
      test: sequences [N, T, ...] with their lengths.
      key: the source of the draws.
      symbols: the letter or word of each level; with it, sequences are written as text.
    """
    able = capabilities(model)
    rows = range(min(3, len(test["x"])))
    lengths = np.minimum(np.asarray(test["length"])[: len(rows)], 300)
    real = [panel(test["x"][i], lengths[i]) for i in rows]
    if "encode" in able:
        save(posterior_figure(model, state, test, symbols), folder / "posterior.png")
    if "sample" in able:
        samples = draw_samples(model, state, key, len(rows))
        samples = [panel(samples[i], lengths[i]) for i in rows]
        if symbols:
            lines = [("test   ", real), ("sampled", samples)]
            text = "".join(
                f"{name}  {spell(sequence, symbols)}".replace("\n", "⏎") + "\n"
                for name, part in lines
                for sequence in part
            )
            write_text(folder / "sequences.txt", text)
        else:
            panels = {f"test example {i + 1}": real[i] for i in rows}
            panels |= {f"sample {i + 1}": samples[i] for i in rows}
            save(plots.stacked(panels), folder / "sequences.png")


def posterior_figure(
    model: Any, state: Any, test: Batch, symbols: str | tuple[str, ...], longest: int = 300
) -> Any:
    """Return the figure of the codes of the first test sequence below that sequence.

    Args:
      model: a model of sequences with `encode`.
      state: a state of it.
      test: sequences [N, T, ...] with their lengths.
      symbols: the letter or word of each level, if examples are texts.
      longest: steps that are drawn, at most.
    """
    length = min(longest, int(test["length"][0]))
    one = {name: jnp.asarray(values[:1]) for name, values in test.items()}
    code = np.asarray(jax.jit(model.encode)(state, one))[0]  # [T, latent]
    shown, names = panel(test["x"][0], length), {}
    if symbols:
        shown = indices(shown, symbols)
        names["test example"] = list(map(visible, symbols))
    panels = {"test example": shown, "p(z | x), a row for each state": code[:length]}
    return plots.stacked(panels, names)


def panel(x: Any, length: int) -> np.ndarray:
    """Return the first `length` steps of a sequence, as [T] for one variable and [T, D] for D."""
    x = np.asarray(x)[:length].reshape(length, -1)
    return x[:, 0] if x.shape[1] == 1 else x


def visible(symbol: str) -> str:
    """Return a letter or a word, with signs in place of a space and the end of a line."""
    return symbol.replace(" ", "␣").replace("\n", "⏎")


def spell(x: np.ndarray, symbols: str | tuple[str, ...]) -> str:
    """Return levels [T] in [0, 1] as the letters, or the words, that they stand for."""
    join = "" if isinstance(symbols, str) else " "
    return join.join(symbols[level] for level in indices(x, symbols))


def indices(x: np.ndarray, symbols: str | tuple[str, ...]) -> np.ndarray:
    """Return levels [T] in [0, 1] as the places of their symbols."""
    return np.round(x * (len(symbols) - 1)).astype(int)


def document_texts(
    folder: Path, model: Any, state: Any, key: jax.Array, words: Sequence[str]
) -> None:
    """Write the words of the hidden units, and completions of `TRIPLES`.

    `words.txt` has up to 50 hidden units, in the order of the norm of their weights, and for each
    unit the 8 words of its largest positive weights. `completions.txt` has for each triple the 10
    words that 200 completions of it contain most often, with their frequencies.

    Args:
      folder: the folder of the texts.
      model: any model of documents, each a binary vector [D] of the words that it contains.
      state: a state of it.
      key: the source of the draws.
      words: the D words.
    """
    able = capabilities(model)
    if "filters" in able:
        weights = np.asarray(jax.jit(model.filters)(state)).reshape(-1, len(words))
        units = np.argsort(-np.linalg.norm(weights, axis=1), kind="stable")[:50]
        lines = []
        for unit in units:
            largest: list[int] = np.argsort(-weights[unit], kind="stable")[:8].tolist()
            names = [words[d] for d in largest if weights[unit, d] > 0]
            lines.append(f"unit {unit:4d}  {' '.join(names)}".rstrip())
        write_text(folder / "words.txt", "\n".join(lines) + "\n")
    # A model that completes variable by variable would ignore words that stand later in its order.
    triples = [triple for triple in TRIPLES if set(triple) <= set(words)]
    if "complete" in able and facts(model).completion == "any" and triples:
        complete, lines = jax.jit(model.complete), []
        for i, triple in enumerate(triples):
            shown = np.isin(words, triple).astype(np.float32).reshape(model.shape)
            x = jnp.asarray(np.tile(shown, (200, *[1] * shown.ndim)))
            completed = complete(state, x, jnp.asarray(shown), jax.random.fold_in(key, i))
            frequency = np.asarray(completed).reshape(len(x), -1).mean(axis=0)
            hidden = np.where(shown.reshape(-1) == 1, -1, frequency)
            most = np.argsort(-hidden, kind="stable")[: min(10, len(words) - len(triple))]
            names = ", ".join(f"{words[d]} {frequency[d]:.0%}" for d in most)
            lines.append(f"{' '.join(triple)}: {names}")
        write_text(folder / "completions.txt", "\n".join(lines) + "\n")


def bracket_picture(folder: Path, model: Any, state: Any, key: jax.Array) -> None:
    """Draw both ends of the AIS bracket of log Z, by 100 chains, against the temperatures.

    Args:
      folder: the folder of the pictures.
      model: a model with `bracket`. With `log_partition`, the exact value is drawn where it exists.
      state: a state of it.
      key: the source of the draws.
    """
    brackets = [model.bracket(state, key, number, 100) for number in TEMPERATURES]
    ends = {
        "forward": [(each.forward, each.forward_stderr) for each in brackets],
        "reverse": [(each.reverse, each.reverse_stderr) for each in brackets],
    }
    exact = model.log_partition(state) if "log_partition" in capabilities(model) else None
    save(plots.brackets(TEMPERATURES, ends, exact), folder / "bracket.png")


def image_pictures(
    folder: Path,
    model: Any,
    state: Any,
    test: Batch,
    key: jax.Array,
    originals: jax.Array | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Draw the pictures of a model of images: samples, and how they come about; reconstructions,
    completions, filters and codes.

    Args:
      folder: the folder of the pictures, with the snapshots of training.
      model: any model of images [H, W, C].
      state: a state of it.
      test: test examples.
      key: the source of the draws.
      originals: x of the test examples before binarisation; None where it is `test["x"]`.
      labels: the names of the classes, if they have names.
    """
    able = capabilities(model)
    originals = test["x"] if originals is None else originals
    if "sample" in able:
        save(plots.grid(draw_samples(model, state, key), 10), folder / "samples.png")
    if "chains" in able:
        chains = jax.jit(model.chains, static_argnums=(2, 3))
        frames = {f"sweep {sweeps:,}": chains(state, key, ROW, sweeps) for sweeps in SWEEPS}
        save(row_by_row(frames), folder / "chains.png")
    if "denoising" in able:
        save(row_by_row(denoising_frames(model, state, key, ROW, 10)), folder / "denoising.png")
    if "sample_in" in able:
        save(row_by_row(samples_by_steps(model, state, key, ROW)), folder / "steps.png")
    if len(stored := snapshots(folder, (ROW, *model.shape))) > 1:
        rows = {name: values / 255 for name, values in doubling(stored).items()}
        save(row_by_row(rows), folder / "strip.png")
    if "reconstruct" in able:
        figure = reconstruction_figure(model, state, test, originals)
        save(figure, folder / "reconstructions.png")
    if "complete" in able and facts(model).completion in ("any", "raster"):
        completion_picture(folder, model, state, test, key, originals)
    if "filters" in able:
        filters = np.asarray(jax.jit(model.filters)(state))[:100]
        save(plots.grid(plots.signed(filters), 10), folder / "filters.png")
    if "label" in test and has_features(model):
        latent_picture(folder, model, state, test, labels)
    if "encode" in able and "decode" in able:
        interpolation_picture(folder, model, state, test)


def reconstruction_figure(model: Any, state: Any, test: Batch, originals: jax.Array) -> Any:
    """Return the figure of 30 test images, and below each row of 10 their reconstructions.

    Between them stand the binarised images that the model was given, if they were binarised.

    Args:
      model: a model with `reconstruct`.
      state: a state of it.
      test: test images as the model takes them, at least 30.
      originals: the test images before binarisation, [N, *shape].
    """
    batch = {name: values[:30] for name, values in test.items()}
    rows = {"original": originals[:30]}
    if not np.array_equal(rows["original"], batch["x"]):
        rows["binarised"] = batch["x"]
    rows["reconstructed"] = jax.jit(model.reconstruct)(state, batch)
    images = np.stack([np.reshape(x, (-1, ROW, *model.shape)) for x in rows.values()], axis=1)
    names = list(rows) * len(images)
    return plots.grid(images.reshape(-1, *model.shape), ROW, names)


def completion_picture(
    folder: Path, model: Any, state: Any, test: Batch, key: jax.Array, originals: jax.Array
) -> None:
    """Draw 10 test images and three completions of their upper halves.

    Args:
      folder: the folder of the pictures.
      model: a model whose `complete` takes an upper half, which comes first in raster order.
      state: a state of it.
      test: test images as the model takes them, at least 10.
      key: the source of the draws.
      originals: the test images before binarisation, [N, *shape].
    """
    x = jnp.asarray(test["x"][:ROW])
    upper = jnp.zeros(model.shape).at[: model.shape[0] // 2].set(1)
    shown = jnp.where(upper[None] == 1, x, 0.5)
    complete, keys = jax.jit(model.complete), jax.random.split(jax.random.fold_in(key, 1), 3)
    completed = [complete(state, x, upper, each) for each in keys]
    binarised = not np.array_equal(originals[:ROW], x)
    rows = ["original", "shown, binarised" if binarised else "shown", *["completed"] * len(keys)]
    images = np.concatenate([originals[:ROW], shown, *completed])
    save(plots.grid(images, ROW, rows), folder / "completions.png")


def interpolation_picture(folder: Path, model: Any, state: Any, test: Batch) -> None:
    """Draw the decoded paths between the codes of 8 pairs of test images.

    Codes that the model draws from N(0, I) are joined by great circles, others by straight lines.

    Args:
      folder: the folder of the pictures.
      model: a model with `encode` and `decode`.
      state: a state of it.
      test: test images, at least 16.
    """
    codes = encode_all(model, state, {name: values[:16] for name, values in test.items()})
    path = interpolate(model, codes[:8], codes[8:], np.linspace(0, 1, 11))  # [8, 11, latent]
    images = jax.jit(model.decode)(state, path.reshape(-1, codes.shape[1]))
    save(plots.grid(images, 11), folder / "interpolations.png")


def point_pictures(
    folder: Path,
    model: Any,
    state: Any,
    test: Batch,
    key: jax.Array,
    log_prob: LogProb | None,
    restore: Callable[[Any], Any],
    labels: Sequence[str] = (),
) -> None:
    """Draw the pictures of a model of points in the plane: test examples, samples and codes.

    Args:
      folder: the folder of the pictures, with the snapshots of training.
      model: any model of points [2].
      state: a state of it.
      test: test examples.
      key: the source of the draws.
      log_prob: the log-density that the test examples were drawn from, drawn as contour lines.
      restore: maps decoded values to the units of the data.
      labels: the names of the classes, if they have names.
    """

    def clouds(panels):
        return plots.clouds({name: restore(x) for name, x in panels.items()}, 4, log_density)

    able = capabilities(model)
    log_density = None
    if log_prob:
        middles = (jnp.arange(300) + 0.5) / 300
        log_density = np.asarray(log_prob(jnp.stack(jnp.meshgrid(middles, middles), axis=-1)))
    panels = {"test examples": np.asarray(test["x"])[:POINTS]}
    if "denoising" in able:
        panels |= denoising_frames(model, state, key, POINTS, 6)
    elif "sample" in able:
        panels["samples"] = draw_samples(model, state, key, POINTS)
    save(clouds(panels), folder / "points.png")
    log_density = None
    if "sample_in" in able:
        save(clouds(samples_by_steps(model, state, key, POINTS)), folder / "steps.png")
    if len(stored := snapshots(folder, (POINTS, *model.shape))) > 1:
        save(clouds(doubling(stored)), folder / "strip.png")
    if "encode" in able and "label" in test and not facts(model).classes:
        latent_picture(folder, model, state, test, labels)


def column_pictures(
    folder: Path,
    model: Any,
    state: Any,
    test: Batch,
    key: jax.Array,
    words: Sequence[str],
    restore: Callable[[Any], Any],
    labels: Sequence[str] = (),
) -> None:
    """Draw the pictures of a model of the rows of a table: histograms of its columns, and codes.

    `samples.png` has the marginal histograms of test examples and of samples, for the first
    `COLUMNS` columns. Indicators `column=value` of one column are one histogram of its values.

    Args:
      folder: the folder of the pictures.
      model: any model of rows [D].
      state: a state of it.
      test: test examples.
      key: the source of the draws.
      words: the names of the columns, if they have names.
      restore: maps decoded values to the units of the data.
      labels: the names of the classes, if they have names.
    """
    able = capabilities(model)
    if "sample" in able and len(test["x"]):
        samples = draw_samples(model, state, key, POINTS)
        rows = {"test examples": restore(np.asarray(test["x"])), "samples": restore(samples)}
        save(column_histograms(rows, words), folder / "samples.png")
    if "label" in test and has_features(model):
        latent_picture(folder, model, state, test, labels)


def column_histograms(rows: Mapping[str, np.ndarray], words: Sequence[str]) -> Any:
    """Return the figure of the histograms of the first `COLUMNS` columns of several tables.

    Args:
      rows: rows [N, D] in the units of the data, by the name of the table.
      words: the names of the columns, if they have names.
    """
    columns, categories = {}, {}
    width = next(iter(rows.values())).shape[1]
    for title, places in columns_of(words or range(1, width + 1)).items():
        if len(columns) == COLUMNS:
            break
        if len(places) > 1:
            categories[title] = [words[d].partition("=")[2] for d in places]
            columns[title] = {name: x[:, places].argmax(1) for name, x in rows.items()}
        else:
            columns[title] = {name: x[:, places[0]] for name, x in rows.items()}
    return plots.histograms(columns, categories)


def columns_of(words: Iterable[Any]) -> dict[str, list[int]]:
    """Return the places of the variables of each column of a table, by its name.

    A column of texts has one variable, `column=value`, for each value. Any other column has one.
    """
    columns: dict[str, list[int]] = {}
    for place, word in enumerate(map(str, words)):
        name, equals, _ = word.partition("=")
        columns.setdefault(name if equals else word, []).append(place)
    return columns


def denoising_frames(
    model: Any, state: Any, key: jax.Array, n: int, frames: int
) -> dict[str, np.ndarray]:
    """Return samples on their way from noise to data, by the label of the frame.

    Args:
      model: a model with `denoising`.
      state: a state of it.
      key: the source of the draws.
      n: the number of samples.
      frames: the number of frames after the first, which is the noise.

    Returns:
      Arrays [n, *shape]. A label is the number of steps done, `step 5/50`, or the share of the way
      done, `10%`, where the model's fact `sample_steps` is 0.
    """
    images = np.asarray(jax.jit(model.denoising, static_argnums=(2, 3))(state, key, n, frames))
    total = facts(model).sample_steps
    labels = [
        f"step {round(i * total / frames):,}/{total:,}" if total else f"{i / frames:.0%}"
        for i in range(frames + 1)
    ]
    return dict(zip(labels, images, strict=True))  # frames between the same steps are shown once


def samples_by_steps(model: Any, state: Any, key: jax.Array, n: int) -> dict[str, np.ndarray]:
    """Return samples from the same key in the numbers of steps `STEPS`, by the name of each.

    Args:
      model: a model with `sample_in`.
      state: a state of it.
      key: the source of the draws.
      n: the number of samples.

    Returns:
      Arrays [n, *shape].
    """
    sample_in = jax.jit(model.sample_in, static_argnums=(2, 3))
    return {f"{steps:,} steps": np.asarray(sample_in(state, key, n, steps)) for steps in STEPS}


def snapshots(folder: Path, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return the arrays that `snapshot` stored, by the name of the step.

    A file that holds no array of this shape is left out, with a warning.

    Args:
      folder: the folder of the pictures.
      shape: the shape of each array.
    """
    arrays = {}
    for path in sorted(folder.glob("step_*.npy")):
        try:
            step = int(path.stem[5:])
            array = np.load(path, mmap_mode="r")  # compares the header with the size of the file
            sound = array.shape == shape and array.dtype.kind in "uf"
        except Exception:  # NumPy raises many kinds at a damaged header
            sound = False
        if sound:
            arrays[f"step {step:,}"] = np.array(array)
        else:
            print(f"left {path} out of strip.png: it is damaged", file=sys.stderr)
    return arrays


def doubling(snapshots: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the first, second, fourth, eighth, ... snapshot, and the last one.

    Samples change fast at first and slowly later, so that the steps of a strip double.
    """
    names = list(snapshots)
    places = {2**i - 1 for i in range(len(names).bit_length())} | {len(names) - 1}
    return {names[place]: snapshots[names[place]] for place in sorted(places)}


def row_by_row(images: Mapping[str, Any]) -> Any:
    """Return a grid with one row of `ROW` images [ROW, H, W, C] for each name."""
    return plots.grid(np.concatenate(list(images.values())), ROW, list(images))


def has_features(model: Any) -> bool:
    """Return whether a model learns codes that can be drawn by label.

    The codes of a model with classes do not qualify: it is given the label, which they can contain.
    """
    known = facts(model)
    return "encode" in capabilities(model) and known.codes == "features" and not known.classes


def latent_picture(
    folder: Path, model: Any, state: Any, test: Batch, names: Sequence[str] = ()
) -> None:
    """Draw the codes of labelled test examples in the plane.

    Args:
      folder: the folder of the pictures.
      model: a model with `encode`.
      state: a state of it.
      test: test examples with labels, of which the first `POINTS` are shown.
      names: the names of the classes, if they have names.
    """
    shown = {name: values[:POINTS] for name, values in test.items()}
    points, projection = plane(encode_all(model, state, shown, block=500), "tsne")
    labels = np.asarray(shown["label"])
    title = f"{model.family}: codes of {len(labels)} test examples, {projection}"
    save(plots.scatter(points, labels, title, names), folder / "codes.png")


def metric_figure(
    lines: list[dict[str, Any]],
    units: Mapping[str, str],
    chosen: Sequence[int] = (),
    columns: int = 3,
) -> Any:
    """Return the figure of the metrics of a run against the step.

    Args:
      lines: the lines of metrics.jsonl.
      units: the units of the metrics for which `METRIC_UNITS` has none, or another one.
      chosen: the step of the state that validation chose, for each seed.
      columns: panels in a row, at most.
    """
    names = dict.fromkeys(name for line in lines for name in line if name != "step")
    series = {
        name: (
            [line["step"] for line in lines if name in line],
            np.array([line[name] for line in lines if name in line]),
        )
        for name in names
    }
    return plots.curves(series, METRIC_UNITS | {**units}, chosen, columns)


def save(figure: Any, path: Path) -> None:
    """Write a figure as a PNG."""
    with replacing(path) as file:
        figure.savefig(file, format="png")


def save_array(array: np.ndarray, path: Path) -> None:
    """Write an array as an .npy file."""
    with replacing(path) as file:
        np.save(file, array)
