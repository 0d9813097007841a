"""Make patches of a texture, and test patches with defects whose pixels are known.

The training and the validation split have normal patches alone. The test split has patches with
scratches, blots and pieces of a foreign texture, too, and beside x the array `"defects"`,
[N, H, W, 1], which is 1 in the pixels of a defect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gen.data.arrays import from_arrays
from gen.data.dataset import Dataset, Format
from gen.data.download import File, fetch

SIDE = 32
"""side of a patch in pixels"""
LEVELS = 16
"""number of grey levels, few enough that autoregressive models train in minutes"""
NORMAL, DEFECTIVE = 400, 300
"""numbers of test patches without and with a defect"""
LABELS = ("normal", "scratch", "blot", "foreign")
"""names of the classes"""
THREAD = 8
"""width of a thread of the generated cloth in pixels"""

SKIMAGE_URL = "https://github.com/scikit-image/scikit-image/raw/v0.25.2/skimage/data"
PHOTOGRAPHS = {
    name: File(f"{name}.png", f"{SKIMAGE_URL}/{name}.png", sha256)
    for name, sha256 in {
        "brick": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
        "grass": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
        "gravel": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    }.items()
}
"""photographs of textures that scikit-image includes, grey, 512 × 512 pixels, under CC0"""

Draw = Callable[[int, np.random.Generator], np.ndarray]
"""function from a number and a source of draws to patches [n, SIDE, SIDE] in [0, 1]"""


def draw_textures() -> Dataset:
    """Return `textures`: 4,000/500/700 patches of a generated cloth, [N, 32, 32, 1].

    Warp and weft cross every 8 pixels. The position, a rotation by up to 5°, the brightness of each
    thread and the noise are drawn. The foreign texture is a twill, whose threads run diagonally.
    The levels are 16.
    """
    rng = np.random.default_rng(0)
    return _with_defects("textures", (draw_cloth,) * 3, draw_twill, (4_000, 500), rng)


def read_brick() -> Dataset:
    """Return `textures_brick`: 4,000/500/700 patches of a photograph of bricks, [N, 32, 32, 1].

    Of the 512 columns of the photograph, training patches come from the first 320, validation
    patches from the next 64 and test patches from the last 128. Half of the patches are mirrored.
    The foreign textures are grass and gravel, in the mean grey of the bricks. The levels are 16.
    """
    from PIL import Image

    images = {}
    for name, file in PHOTOGRAPHS.items():
        with Image.open(fetch(*file)) as image:
            images[name] = np.asarray(image, np.float32) / 255
    brick = images["brick"]
    columns = ((0, 320), (320, 384), (384, 512))
    draws = tuple(_patches_of(brick[:, start:end]) for start, end in columns)
    foreign = np.concatenate([images["grass"], images["gravel"]], axis=1)
    foreign = np.clip(foreign - foreign.mean() + brick.mean(), 0, 1)
    rng = np.random.default_rng(0)
    return _with_defects("textures_brick", draws, _patches_of(foreign), (4_000, 500), rng)


def draw_cloth(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return patches of a plain weave, in which warp and weft lie on top in turn."""
    across, along = _threads(n, rng, 5.0)
    warp, weft = _shades(across, rng), _shades(along, rng)
    on_top = np.sin(np.pi * across / THREAD) * np.sin(np.pi * along / THREAD)
    share = 0.5 + 0.5 * np.tanh(4 * on_top)
    return _noisy(share * warp + (1 - share) * weft, rng)


def draw_twill(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return patches of diagonal threads, of the same width and shades as the cloth's."""
    across, along = _threads(n, rng, 5.0)
    return _noisy(_shades((across + along) / np.sqrt(2), rng), rng)


def _threads(n: int, rng: np.random.Generator, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of pixels, moved and rotated at random, two times [n, SIDE, SIDE]."""
    row, column = np.mgrid[:SIDE, :SIDE].astype(float)
    angle = np.deg2rad(rng.uniform(-degrees, degrees, (n, 1, 1)))
    shift = rng.uniform(0, 2 * THREAD, (2, n, 1, 1))
    across = np.cos(angle) * column - np.sin(angle) * row + shift[0]
    along = np.sin(angle) * column + np.cos(angle) * row + shift[1]
    return across, along


def _shades(position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the grey of threads across a position [n, ...]: round, each of its own brightness."""
    number = np.floor(position / THREAD).astype(int)
    number -= number.min()
    brightness = rng.normal(0, 0.04, (len(position), number.max() + 1))
    own = brightness[np.arange(len(position)).reshape(-1, 1, 1), number]
    return 0.4 + 0.3 * np.abs(np.sin(np.pi * position / THREAD)) + own


def _noisy(patches: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return patches with noise of standard deviation 0.03, in [0, 1]."""
    return np.clip(patches + rng.normal(0, 0.03, patches.shape), 0, 1)


def _patches_of(image: np.ndarray) -> Draw:
    """Return the function that cuts patches at random from an image [H, W], half mirrored."""

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(image, (SIDE, SIDE))
        rows, columns = (rng.integers(0, size, n) for size in windows.shape[:2])
        patches = windows[rows, columns]
        mirrored = rng.random((n, 1, 1)) < 0.5
        return np.where(mirrored, patches[:, :, ::-1], patches)

    return draw


def _with_defects(
    name: str,
    draws: tuple[Draw, ...],
    foreign: Draw,
    sizes: tuple[int, int],
    rng: np.random.Generator,
) -> Dataset:
    """Return a data set of normal patches, with defects in some of the test patches.

    Args:
      name: the name of the data set.
      draws: functions that draw normal patches of training, validation and test.
      foreign: the function that draws patches of a foreign texture.
      sizes: numbers of training and of validation patches.
      rng: the source of the draws.
    """
    train, validation = (draw(n, rng) for draw, n in zip(draws, sizes, strict=False))
    test = draws[2](NORMAL + DEFECTIVE, rng)
    masks = np.zeros(test.shape, bool)
    kinds = (scratch, blot, lambda patch, rng: patch_of(patch, foreign(1, rng)[0], rng))
    for i in range(NORMAL, len(test)):
        test[i], masks[i] = kinds[i % len(kinds)](test[i], rng)
    x = {
        split: np.round(patches * (LEVELS - 1)).astype(np.uint8)[..., None]
        for split, patches in (("train", train), ("validation", validation), ("test", test))
    }
    label = {split: np.zeros(len(patches), np.int32) for split, patches in x.items()}
    label["test"][NORMAL:] = 1 + np.arange(NORMAL, len(test)) % len(kinds)
    format = Format(LEVELS - 1)
    dataset = from_arrays(x, label, name=name, labels=LABELS, format=format)
    defects = masks[..., None].astype(np.uint8)
    return replace(dataset, test={**dataset.test, "defects": defects})


def scratch(patch: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a patch with a straight scratch, and its pixels: 12 to 24 long, 1.5 to 2.5 wide.

    It is darker or brighter than the patch by 0.2 to 0.35.
    """
    row, column = np.mgrid[:SIDE, :SIDE]
    centre, angle = rng.uniform(10, SIDE - 10, 2), rng.uniform(0, np.pi)
    length, width = rng.uniform(12, 24), rng.uniform(1.5, 2.5)
    along = (row - centre[0]) * np.sin(angle) + (column - centre[1]) * np.cos(angle)
    across = (row - centre[0]) * np.cos(angle) - (column - centre[1]) * np.sin(angle)
    mask = (np.abs(along) < length / 2) & (np.abs(across) < width / 2)
    change = rng.uniform(0.2, 0.35) * rng.choice([-1, 1])
    return np.clip(patch + change * mask, 0, 1), mask


def blot(patch: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a patch with a round blot, and its pixels: radius 3 to 5, darker by 0.15 to 0.3."""
    mask = _disc(rng.uniform(6, SIDE - 6, 2), rng.uniform(3, 5))
    return np.clip(patch - rng.uniform(0.15, 0.3) * mask, 0, 1), mask


def patch_of(
    patch: np.ndarray, other: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a patch with a round piece of another one in it, and its pixels: radius 6 to 9.

    Args:
      patch: a patch, [SIDE, SIDE].
      other: a patch of another texture.
      rng: the source of the draws.
    """
    mask = _disc(rng.uniform(9, SIDE - 9, 2), rng.uniform(6, 9))
    return np.where(mask, other, patch), mask


def _disc(centre: np.ndarray, radius: float) -> np.ndarray:
    """Return the pixels of a disc, [SIDE, SIDE]."""
    row, column = np.mgrid[:SIDE, :SIDE]
    return (row - centre[0]) ** 2 + (column - centre[1]) ** 2 < radius**2
