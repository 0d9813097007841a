"""Read a folder of images, whose sub-folders are classes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gen.core import UserError
from gen.data.containers import LARGEST, SPLIT_OF
from gen.data.download import first_line

ENDS = (".png", ".jpg", ".jpeg")
"""ends of the names of images"""
MOST_PIXELS = 50_000_000
"""pixels of the largest image"""


class Images(NamedTuple):
    """Images and the names of their classes, or dicts of them by split."""

    x: Any  # [N, H, W, C]: bytes, or integers of 16 bits if any image has 16 bits
    label: Any  # [N] texts, or None


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder and its sub-folders, sorted; hidden files are left out."""
    found = []
    for place, names, files in os.walk(folder):  # which does not follow links to folders
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(ENDS):
                found.append(Path(place, name))
    if not found:
        raise UserError(f"{folder} has no images: put PNG or JPEG files into it")
    return sorted(found)


def read_images(folder: Path, resize: int = 0, grey: bool = False) -> Images:
    """Return the images of a folder.

    Sub-folders are classes. If the sub-folders are called train, and validation or test, they are
    the splits, and their sub-folders are classes. Transparent pixels stand before white. Photos are
    turned as their EXIF orientation says. Images with three equal channels are grey.

    Args:
      folder: the folder.
      resize: side of the squares that images are cut and scaled to, or 0.
      grey: turn colours into grey.

    Raises:
      UserError: an image is damaged or too large, or the images have different sizes.
    """
    files = image_files(folder)
    first = {path.relative_to(folder).parts[0] for path in files}
    arrays = _read(files, resize, grey)
    if not (first <= set(SPLIT_OF) and "train" in first):
        return Images(arrays, _labels(files, folder))
    split = np.array([SPLIT_OF[path.relative_to(folder).parts[0]] for path in files])
    x = {name: arrays[split == name] for name in dict.fromkeys(split.tolist())}
    labels = {}
    for name in x:
        chosen = [path for path, each in zip(files, split, strict=True) if each == name]
        labels[name] = _labels(chosen, folder / chosen[0].relative_to(folder).parts[0])
    no_label = any(label is None for label in labels.values())
    return Images(x, None if no_label else labels)


def _labels(files: Sequence[Path], folder: Path) -> np.ndarray | None:
    """Return the name of the sub-folder of each image, or None if there are none."""
    parts = [path.relative_to(folder).parts for path in files]
    flat = [len(each) == 1 for each in parts]
    if all(flat):
        return None
    if any(flat):
        raise UserError(
            f"{folder} has images both in itself and in sub-folders, which are classes: move "
            f"{files[flat.index(True)].name} into one"
        )
    return np.array([each[0] for each in parts])


def _read(files: Sequence[Path], resize: int, grey: bool) -> np.ndarray:
    """Return images of one size, [N, H, W, C], as bytes or as integers of 16 bits.

    Bytes among images of 16 bits are multiplied by 65535 / 255 = 257.
    """
    images: list[np.ndarray] = []
    for path in files:
        image = _read_image(path, resize, grey)
        if images and image.shape[:2] != images[0].shape[:2]:
            (height, width), (h, w) = images[0].shape[:2], image.shape[:2]
            raise UserError(
                f"{path} has {w} × {h} pixels and {files[0].name} {width} × {height}: give one "
                "size to all, --resize N"
            )
        total = len(files) * image.nbytes
        if total > LARGEST:
            raise UserError(
                f"{path.parent}: {len(files)} images take {total:,} bytes, more than {LARGEST:,}: "
                "--resize N makes them smaller"
            )
        images.append(image)
    if any(image.dtype != np.uint8 for image in images):
        images = [image * np.uint16(257) if image.dtype == np.uint8 else image for image in images]
    colour = any(image.shape[2] == 3 and (image != image[..., :1]).any() for image in images)
    channels = 3 if colour else 1
    return np.stack(
        [image[..., :1] if channels == 1 else np.broadcast_to(image, (*image.shape[:2], 3))
         for image in images]
    )  # fmt: skip


def _read_image(path: Path, resize: int, grey: bool) -> np.ndarray:
    """Return an image as bytes or 16-bit integers, [H, W, 1] or [H, W, 3]."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Any = Image.open(path, formats=("PNG", "JPEG"))
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(
                    f"{path} has {image.width:,} × {image.height:,} pixels, more than "
                    f"{MOST_PIXELS:,}: make it smaller"
                )
            image = ImageOps.exif_transpose(image)
            sixteen = image.mode.startswith("I")
            if sixteen:
                image = image.convert("I").convert("F")
            elif "A" in image.mode or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image).convert("RGB")
            elif image.mode in ("1", "L"):
                image = image.convert("L")
            else:
                image = image.convert("RGB")
            if grey and not sixteen:
                image = image.convert("L")
            if resize:
                image = ImageOps.fit(image, (resize, resize), Image.Resampling.BILINEAR)
            pixels = np.array(image)
    except UserError:
        raise
    except Exception as error:  # of many kinds
        raise UserError(f"{path} is no image, or damaged ({first_line(error)})") from error
    if sixteen:
        pixels = np.clip(np.round(pixels), 0, 65_535).astype(np.uint16)
    return pixels[..., None] if pixels.ndim == 2 else pixels
