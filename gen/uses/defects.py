"""Locate defects in images by a model that was trained on images without defects.

    maps = heat_maps(model, state, {"x": images}, "log_prob")   # [N, H, W]
    pixels = pixel_auroc(smoothed(maps, 1.0), masks)

A heat map says how strange each pixel is. Two follow from a model's methods, see `KINDS`. Their sum
or their mean over the pixels is a score of the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from gen import estimate, train
from gen.core import capabilities, facts, require
from gen.estimate import Estimate
from gen.uses.anomaly import auroc

KINDS = {
    "log_prob": "−log p of the pixel given the pixels before it, in nats; the sum is −log p(x)",
    "reconstruction": "squared error of the reconstruction; the mean is the score of that name",
}
"""The kinds of heat map."""


def kinds(model: Any) -> tuple[str, ...]:
    """Return the kinds of heat map of a model: `log_prob` first, if the model has it."""
    able = capabilities(model)
    needed = {
        "log_prob": "log_conditionals" in able and not facts(model).sequences,
        "reconstruction": "reconstruct" in able,
    }
    return tuple(kind for kind in KINDS if needed[kind] and len(model.shape) == 3)


def heat_maps(
    model: Any, state: Any, data: Mapping[str, ArrayLike], kind: str, block: int = 100
) -> np.ndarray:
    """Return a heat map of each image, [N, H, W], higher for stranger pixels.

    Over channels −log p is summed, and squared errors are averaged.

    Args:
      model: a model of images.
      state: a state of it.
      data: decoded images, arrays [N, ...] by name.
      kind: one of `kinds`.
      block: images at a time, which bounds the memory.

    Raises:
      UserError: the model has no such heat map.
    """
    known = kinds(model)
    require(
        kind in known,
        f"{type(model).__name__} has no heat map {kind!r}: choose one of "
        f"{', '.join(known) or 'none'}",
    )
    arrays = {name: np.asarray(values) for name, values in data.items()}
    return _program(model, kind, block)(state, arrays)


@train.keep_programs
def _program(model: Any, kind: str, block: int) -> Callable[..., np.ndarray]:
    """Return the compiled function from (state, data) to heat maps."""

    def of_image(state, batch):
        if kind == "log_prob":
            return -model.log_conditionals(state, batch).sum(axis=-1)
        return ((batch["x"] - model.reconstruct(state, batch)) ** 2).mean(axis=-1)

    return estimate.row_program(of_image, block)


def smoothed(maps: np.ndarray, sigma: float) -> np.ndarray:
    """Return heat maps after a Gaussian filter, since a defect covers more than one pixel.

    Args:
      maps: heat maps, [N, H, W].
      sigma: standard deviation of the filter in pixels; 0 for no filter.
    """
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(maps, (0, sigma, sigma)) if sigma else maps


def pca_maps(training: np.ndarray, images: np.ndarray, components: int, seed: int) -> np.ndarray:
    """Return the squared error of each pixel under PCA, [N, H, W], with which to compare a model.

    Args:
      training: decoded training images, [M, H, W, C].
      images: decoded images, [N, H, W, C].
      components: number of principal components.
      seed: the seed of the randomised solver.
    """
    from sklearn.decomposition import PCA

    flat, rows = (np.asarray(x).reshape(len(x), -1) for x in (training, images))
    pca = PCA(components, svd_solver="randomized", random_state=seed).fit(flat)
    error = (rows - pca.inverse_transform(pca.transform(rows))) ** 2
    return error.reshape(images.shape).mean(axis=-1)


def pixel_auroc(maps: np.ndarray, masks: np.ndarray) -> Estimate:
    """Return the AUROC of all pixels of all images: a defect's pixels against all others.

    Pixels of one image are correlated, so the standard error is over images (Obuchowski 1997,
    https://doi.org/10.2307/2533958). With V_ip the share of the n normal pixels that score below
    pixel p of a defect in image i, W_iq the share of the m pixels of defects above normal pixel q,
    and A the AUROC,

        stderr² = I / (I − 1) · Σ_i [Σ_p (V_ip − A) / m + Σ_q (W_iq − A) / n]²

    for I images. The paper counts only the images with pixels of a kind in the factors
    I / (I − 1) of the two squares.

    Args:
      maps: heat maps, [I, H, W].
      masks: whether each pixel belongs to a defect, [I, H, W].
    """
    from scipy.stats import rankdata

    whole = auroc(maps.ravel(), masks.ravel())
    m, n = masks.sum(), (~masks).sum()
    rank = rankdata(maps).reshape(maps.shape)  # among all, less the rank within its own kind
    share = np.empty(maps.shape)
    share[masks] = (rank[masks] - rankdata(maps[masks])) / n / m
    share[~masks] = (1 - (rank[~masks] - rankdata(maps[~masks])) / m) / n
    share -= whole.value * np.where(masks, 1 / m, 1 / n)
    of_images, count = share.sum(axis=(1, 2)), len(maps)
    stderr = float(np.sqrt(count / (count - 1) * np.sum(of_images**2))) if count > 1 else np.nan
    return replace(whole, stderr=stderr, settings={**whole.settings, "images": count})
