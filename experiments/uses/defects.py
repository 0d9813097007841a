"""Locate defects in the test images of a run, pixel by pixel; `anomaly` calls it."""

from __future__ import annotations

import numpy as np

from experiments.uses.base import Outcome, Row, Subject, of_training
from gen import estimate
from gen.data import Dataset
from gen.uses import anomaly, defects

COMMAND = "defects"
"""Name of the files."""
SMOOTHING = 1.0
"""Standard deviation in pixels of the filter of the heat maps."""
COMPONENTS = 32
"""Number of principal components of the model that stands beside."""
SHOWN = 9
"""Number of images that the picture shows."""


def has_masks(dataset: Dataset) -> bool:
    """Return whether the test images say which pixels belong to defects."""
    return "defects" in dataset.test


def locate(subject: Subject) -> Outcome:
    """Return how well each heat map of a model finds defects, and which pixels belong to them.

    The scores of an image are the mean of its heat map and the maximum after smoothing. Figures are
    means over the seeds of a run, and the picture is of the first one. Principal component analysis
    stands beside.

    Args:
      subject: a model of images, on data whose test split has the array `"defects"`.
    """
    from gen import plots

    experiment, dataset = subject.experiment, subject.dataset
    seeds = list(subject.states)
    test, _ = experiment.decoded(dataset, "test", seeds[0])
    training, _ = experiment.decoded(dataset, "train", seeds[0])
    images, is_anomaly = {"x": np.asarray(test["x"])}, np.asarray(test["label"]) != 0
    masks: np.ndarray = np.max(dataset.test["defects"], axis=-1) > 0

    def measure(maps: np.ndarray) -> dict[str, estimate.Estimate]:
        smooth = defects.smoothed(maps, SMOOTHING)
        return {
            "images, by the mean": anomaly.auroc(maps.mean(axis=(1, 2)), is_anomaly),
            "images, by the maximum": anomaly.auroc(smooth.max(axis=(1, 2)), is_anomaly),
            "pixels": defects.pixel_auroc(maps, masks),
            "pixels, smoothed": defects.pixel_auroc(smooth, masks),
        }

    rows: list[Row] = []
    shown: dict[str, np.ndarray] = {}
    for kind in defects.kinds(experiment.model):
        by_seed = []
        for seed in seeds:
            maps = defects.heat_maps(experiment.model, subject.states[seed], images, kind)
            by_seed.append(measure(maps))
            shown.setdefault(kind, defects.smoothed(maps, SMOOTHING))
        rows.append({"heat map": kind, **estimate.over_seeds_by_name(by_seed)})
    maps = defects.pca_maps(np.asarray(training["x"]), images["x"], COMPONENTS, seeds[0])
    rows.append({"heat map": f"PCA, {COMPONENTS} components", **measure(maps)})
    shown[f"PCA-{COMPONENTS}"] = defects.smoothed(maps, SMOOTHING)
    record = {
        **of_training(subject),
        "smoothing": SMOOTHING,
        "components": COMPONENTS,
        "images": len(masks),
        "defective_images": int(is_anomaly.sum()),
        "share_of_defective_pixels": float(masks[is_anomaly].mean()),
    }
    defective = np.flatnonzero(is_anomaly)[:SHOWN]
    return Outcome(record, rows, plots.defects(images["x"], masks, shown, defective))
