"""The pictures of a run, drawn from what its model can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen import plots
from gen.core import Batch, capabilities
from gen.data import LogProb

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
    "latent.png",
    "interpolations.png",
    "tables.png",
    "posterior.png",
    "sequences.png",
    "sequences.txt",
    "curves.png",
)
SWEEPS = (0, 1, 10, 100, 1_000)  # after which chains are shown
TEMPERATURES = (30, 100, 300, 1_000, 3_000)  # at which log Z is bracketed
STRIP = 10  # samples that are followed through training
STEPS = (1_000, 50, 20, 10)  # in which the same noise is denoised
CLOUD = 2_000  # points of a cloud
SHOWN = (
    ("nasa", "space", "shuttle"),
    ("god", "jesus", "bible"),
    ("car", "engine", "dealer"),
    ("windows", "dos", "drive"),
    ("hockey", "season", "team"),
    ("disease", "doctor", "patients"),
)
"""Words that documents are completed from, where all three are variables of the data."""


def draw_samples(model: Any, state: Any, key: jax.Array, n: int = 100) -> np.ndarray:
    """n samples as floats [n, *shape]."""
    return np.asarray(jax.jit(model.sample, static_argnums=2)(state, key, n))


def snapshot(folder: Path, step: int, model: Any, state: Any, key: jax.Array) -> None:
    """Samples of the moment, where they are images or points of the plane: a picture of them, and
    what the strip needs, of images the first few as bytes."""
    path = folder / f"step_{step:07d}.npy"
    if len(model.shape) == 3:
        images = draw_samples(model, state, key)
        np.save(path, np.round(images[:STRIP] * 255).astype(np.uint8))
        save(plots.grid(images, 10), path.with_suffix(".png"))
    if model.shape == (2,):
        points = draw_samples(model, state, key, CLOUD)
        np.save(path, points)
        save(plots.clouds({f"step {step:,}": points}, 1), path.with_suffix(".png"))


def final_pictures(
    folder: Path,
    model: Any,
    state: Any,
    test: Batch,
    key: jax.Array,
    symbols: str = "",
    words: Sequence[str] = (),
    log_prob: LogProb | None = None,
) -> None:
    """Draws every picture that the model's capabilities allow: of its tables, of images [H, W, C],
    of points [2], whose density `log_prob` gives if it is known, of sequences, whose values
    `symbols` name if they are letters, and of documents, whose variables `words` name.

    `test` is decoded, and binarised as in training.
    """
    able = capabilities(model)
    if "tables" in able:
        tables = jax.device_get(jax.jit(model.tables)(state))
        labels = {"emission": list(symbols.replace(" ", "␣"))} if symbols else None
        rows = "unit" if "bracket" in able else "state"
        save(plots.heatmaps(tables, labels, rows), folder / "tables.png")
    if "bracket" in able:
        bracket_picture(folder, model, state, key)
    if "length" in test:
        sequence_pictures(folder, model, state, test, key, symbols)
    if words:
        document_texts(folder, model, state, key, words)
    if len(model.shape) == 3:
        image_pictures(folder, model, state, test, key)
    if model.shape == (2,):
        point_pictures(folder, model, state, test, key, log_prob)


def sequence_pictures(
    folder: Path, model: Any, state: Any, test: Batch, key: jax.Array, symbols: str
) -> None:
    """Of sequences [T, ...]: test examples beside samples, as text if they are letters; and a test
    example with its code, [T, latent], below it."""
    able = capabilities(model)
    rows = range(min(3, len(test["x"])))
    lengths = np.minimum(np.asarray(test["length"])[: len(rows)], 300)
    real = [panel(test["x"][i], lengths[i]) for i in rows]
    if "encode" in able:
        one = {name: values[:1] for name, values in test.items()}
        code = np.asarray(jax.jit(model.encode)(state, one))[0]
        panels = {"test example": real[0], "p(z | x), a row for each state": code[: lengths[0]]}
        save(plots.stacked(panels), folder / "posterior.png")
    if "sample" in able:
        drawn = draw_samples(model, state, key, len(rows))
        drawn = [panel(drawn[i], lengths[i]) for i in rows]
        if symbols:
            lines = [("test   ", real), ("sampled", drawn)]
            text = "".join(
                f"{name}  {spell(sequence, symbols)}\n" for name, part in lines for sequence in part
            )
            (folder / "sequences.txt").write_text(text)
        else:
            panels = {f"test example {i + 1}": real[i] for i in rows}
            panels |= {f"sample {i + 1}": drawn[i] for i in rows}
            save(plots.stacked(panels), folder / "sequences.png")


def panel(x: Any, length: int) -> np.ndarray:
    """A sequence [T, ...] up to its length, as [T] if it has one variable, else [T, D]."""
    x = np.asarray(x)[:length].reshape(length, -1)
    return x[:, 0] if x.shape[1] == 1 else x


def spell(x: np.ndarray, symbols: str) -> str:
    """Levels [T] in [0, 1] as the letters that they stand for."""
    return "".join(symbols[level] for level in np.round(x * (len(symbols) - 1)).astype(int))


def document_texts(
    folder: Path, model: Any, state: Any, key: jax.Array, words: Sequence[str]
) -> None:
    """Of documents, which contain some of `words` [D]: for up to 50 hidden units, those of the
    longest weight vectors first, the 8 words of the largest positive weights; and of each triple of
    SHOWN the 10 words that 200 completions of it contain most often, with their frequencies."""
    able = capabilities(model)
    if "filters" in able:
        weights = np.asarray(jax.jit(model.filters)(state)).reshape(-1, len(words))
        units = np.argsort(-np.linalg.norm(weights, axis=1), kind="stable")[:50]
        lines = []
        for unit in units:
            largest: list[int] = np.argsort(-weights[unit], kind="stable")[:8].tolist()
            names = [words[d] for d in largest if weights[unit, d] > 0]
            lines.append(f"unit {unit:4d}  {' '.join(names)}".rstrip())
        (folder / "words.txt").write_text("\n".join(lines) + "\n")
    # A model that fills in one variable after another misses what is shown after it.
    triples = [triple for triple in SHOWN if set(triple) <= set(words)]
    if "complete" in able and not hasattr(model, "raster") and triples:
        complete, lines = jax.jit(model.complete), []
        for i, triple in enumerate(triples):
            shown = np.isin(words, triple).astype(np.float32).reshape(model.shape)
            x = jnp.asarray(np.tile(shown, (200, *[1] * shown.ndim)))
            drawn = complete(state, x, jnp.asarray(shown), jax.random.fold_in(key, i))
            frequency = np.asarray(drawn).reshape(len(x), -1).mean(axis=0)
            hidden = np.where(shown.reshape(-1) == 1, -1, frequency)
            most = np.argsort(-hidden, kind="stable")[: min(10, len(words) - len(triple))]
            names = ", ".join(f"{words[d]} {frequency[d]:.0%}" for d in most)
            lines.append(f"{' '.join(triple)}: {names}")
        (folder / "completions.txt").write_text("\n".join(lines) + "\n")


def bracket_picture(folder: Path, model: Any, state: Any, key: jax.Array) -> None:
    """Both ends of AIS on log Z by 100 chains, against the number of temperatures."""
    ends = [model.bracket(state, key, number, 100) for number in TEMPERATURES]
    series = {
        "forward": [(end.forward, end.forward_stderr) for end in ends],
        "reverse": [(end.reverse, end.reverse_stderr) for end in ends],
    }
    exact = model.log_partition(state)
    save(plots.brackets(TEMPERATURES, series, exact), folder / "bracket.png")


def image_pictures(folder: Path, model: Any, state: Any, test: Batch, key: jax.Array) -> None:
    """Of images [H, W, C]: samples, their way from noise and through training, reconstructions,
    completions of the upper halves, up to 100 filters, and codes."""
    able = capabilities(model)
    if "sample" in able:
        save(plots.grid(draw_samples(model, state, key), 10), folder / "samples.png")
    if "sample" in able and hasattr(model, "mixing"):
        frames = [draw_samples(replace(model, mixing=n), state, key, STRIP) for n in SWEEPS]
        labels = [f"{n:,} sweeps" for n in SWEEPS]
        save(plots.grid(np.concatenate(frames), STRIP, labels), folder / "chains.png")
    if "denoising" in able:
        save(row_by_row(way_from_noise(model, state, key, STRIP, 10)), folder / "denoising.png")
        save(row_by_row(in_fewer_steps(model, state, key, STRIP)), folder / "steps.png")
    if len(stored := snapshots(folder)) > 1:
        images = {name: values / 255 for name, values in stored.items()}
        save(row_by_row(images), folder / "strip.png")
    if "reconstruct" in able:
        x = {"x": test["x"][:30]}
        both = np.stack([x["x"], jax.jit(model.reconstruct)(state, x)])  # [2, 30, *shape]
        rows = both.reshape(2, 3, 10, *model.shape).swapaxes(0, 1)
        images = rows.reshape(60, *model.shape)
        save(
            plots.grid(images, 10, ["original", "reconstructed"] * 3),
            folder / "reconstructions.png",
        )
    if "complete" in able and getattr(model, "raster", True):  # else the upper half is not first
        x = jnp.asarray(test["x"][:10])
        upper = jnp.zeros(model.shape).at[: model.shape[0] // 2].set(1)
        shown = jnp.where(upper[None] == 1, x, 0.5)
        keys = jax.random.split(jax.random.fold_in(key, 1), 3)
        completed = [jax.jit(model.complete)(state, x, upper, each) for each in keys]
        rows = ["original", "shown", *["completed"] * len(keys)]
        images = np.concatenate([x, shown, *completed])
        save(plots.grid(images, 10, rows), folder / "completions.png")
    if "filters" in able:
        filters = np.asarray(jax.jit(model.filters)(state))[:100]
        save(plots.grid(plots.signed(filters), 10), folder / "filters.png")
    if "encode" in able and "label" in test and "denoising" not in able:  # else codes are noise
        latent_picture(folder, model, state, test)
    if "encode" in able and "decode" in able:
        codes = encoded(model, state, test, 16)
        way = great_circles if "denoising" in able else straight  # the codes are normal draws
        path = way(codes[:8], codes[8:], np.linspace(0, 1, 11))  # [8, 11, latent]
        images = jax.jit(model.decode)(state, path.reshape(-1, codes.shape[1]))
        save(plots.grid(images, 11), folder / "interpolations.png")


def point_pictures(
    folder: Path, model: Any, state: Any, test: Batch, key: jax.Array, log_prob: LogProb | None
) -> None:
    """Of points [2]: test examples, and samples or their way from noise, among the lines of the
    true density; samples in fewer steps and through training; and codes."""
    able = capabilities(model)
    log_density = None
    if log_prob:
        middles = (jnp.arange(300) + 0.5) / 300
        log_density = np.asarray(log_prob(jnp.stack(jnp.meshgrid(middles, middles), axis=-1)))
    panels = {"test examples": np.asarray(test["x"])[:CLOUD]}
    if "denoising" in able:
        panels |= way_from_noise(model, state, key, CLOUD, 6)
        save(plots.clouds(in_fewer_steps(model, state, key, CLOUD), 4), folder / "steps.png")
    elif "sample" in able:
        panels["samples"] = draw_samples(model, state, key, CLOUD)
    save(plots.clouds(panels, 4, log_density), folder / "points.png")
    if len(stored := snapshots(folder)) > 1:
        save(plots.clouds(stored, 4), folder / "strip.png")
    if "encode" in able and "label" in test:
        latent_picture(folder, model, state, test)


def way_from_noise(
    model: Any, state: Any, key: jax.Array, n: int, frames: int
) -> dict[str, np.ndarray]:
    """n samples [n, *shape] at `frames` + 1 moments of their making, by the steps behind them."""
    found = jax.jit(model.denoising, static_argnums=(2, 3))(state, key, n, frames)
    total = model.sample_steps
    behind = [round(i * total / frames) for i in range(frames + 1)]
    return {
        f"step {step:,}/{total:,}": np.asarray(frame)
        for step, frame in zip(behind, found, strict=True)
    }


def in_fewer_steps(model: Any, state: Any, key: jax.Array, n: int) -> dict[str, np.ndarray]:
    """n samples [n, *shape] from the same noise in the numbers of STEPS: by DDIM, which adds none,
    if the model takes samplers."""
    fixed = {"sampler": "ddim"} if hasattr(model, "sampler") else {}
    models = {f"{steps:,} steps": replace(model, sample_steps=steps, **fixed) for steps in STEPS}
    return {name: draw_samples(each, state, key, n) for name, each in models.items()}


def snapshots(folder: Path) -> dict[str, np.ndarray]:
    """What `snapshot` has stored, by step."""
    return {
        f"step {int(path.stem[5:]):,}": np.load(path) for path in sorted(folder.glob("step_*.npy"))
    }


def row_by_row(images: Mapping[str, np.ndarray]) -> Any:
    """A grid with one row for each name, of its images [STRIP, H, W, C]."""
    return plots.grid(np.concatenate(list(images.values())), STRIP, list(images))


def latent_picture(folder: Path, model: Any, state: Any, test: Batch) -> None:
    """Codes of up to 2,000 labelled examples."""
    codes = encoded(model, state, test, 2_000)
    points, how = plane(codes.reshape(len(codes), -1))
    labels = np.asarray(test["label"][: len(codes)])
    title = f"{model.family}: codes of {len(labels)} test examples, {how}"
    save(plots.scatter(points, labels, title), folder / "latent.png")


def encoded(model: Any, state: Any, test: Batch, n: int) -> np.ndarray:
    """Codes of up to n examples, 500 at a time to spare memory."""
    encode = jax.jit(model.encode)
    parts = (
        {name: values[i : min(i + 500, n)] for name, values in test.items()}
        for i in range(0, min(n, len(test["x"])), 500)
    )
    return np.concatenate([encode(state, part) for part in parts])


def straight(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(1 − w) a + w b for a and b [N, D] and each weight w: [N, W, D]."""
    w = weights[None, :, None]
    return (1 - w) * a[:, None] + w * b[:, None]


def great_circles(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """As `straight`, at the angle wθ from a to b, where θ is that between them: as long as normal
    draws, which straight lines cut short (Shoemake 1985; Song et al. 2021, section 5.3)."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    angle = np.arccos(np.clip((a * b).sum(axis=1) / lengths, -1, 1))[:, None, None]
    w = weights[None, :, None]
    return (np.sin((1 - w) * angle) * a[:, None] + np.sin(w * angle) * b[:, None]) / np.sin(angle)


def metric_curves(path: Path, lines: list[dict[str, Any]]) -> None:
    """The metrics of a run, as metrics.jsonl has them, against the step."""
    names = dict.fromkeys(name for line in lines for name in line if name != "step")
    series = {
        name: (
            [line["step"] for line in lines if name in line],
            np.array([line[name] for line in lines if name in line]),
        )
        for name in names
    }
    save(plots.curves(series), path)


def plane(codes: np.ndarray) -> tuple[np.ndarray, str]:
    """Codes [N, latent] in two dimensions, and how: themselves, or by t-SNE."""
    if codes.shape[1] <= 2:
        return np.pad(codes, ((0, 0), (0, 2 - codes.shape[1]))), "as they are"
    from sklearn.manifold import TSNE

    return TSNE(init="pca", random_state=0).fit_transform(codes), "t-SNE"


def save(figure: Any, path: Path) -> None:
    """Writes a PNG under a temporary name first, so that no half of one is ever seen."""
    part = path.with_suffix(".part")
    figure.savefig(part, format="png")
    part.replace(path)
