"""Read any set that tensorflow-datasets has prepared, without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gen.core import UserError
from gen.data import tables
from gen.data.arrays import from_arrays
from gen.data.containers import SPLIT_OF
from gen.data.dataset import Dataset
from gen.data.images import FEATURES, check_features, damaged, import_tfds
from gen.data.own import Reading

PLAIN_FEATURES = (
    *FEATURES,
    "tensorflow_datasets.core.features.tensor_feature.Tensor",
    "tensorflow_datasets.core.features.scalar.Scalar",
    "tensorflow_datasets.core.features.text_feature.Text",
)
"""classes of tensorflow-datasets that the description of a set of images or of columns may name"""


def prepared_folder(name: str, data_dir: Path) -> Path | None:
    """Return the newest prepared version of a set, or None if there is none.

    Args:
      name: the name, `NAME`, `NAME/CONFIG` or `NAME:VERSION`.
      data_dir: the folder of the prepared sets.
    """
    name, _, version = name.partition(":")
    if any(part in ("", ".", "..") for part in name.split("/")) or name.startswith("/"):
        return None
    found = [
        info.parent
        for info in (data_dir / name).glob(f"{version or '*'}/dataset_info.json")
        if all(part.isdigit() for part in info.parent.name.split("."))
    ]
    return max(
        found, key=lambda folder: [int(part) for part in folder.name.split(".")], default=None
    )


def read_any(name: str, folder: Path, reading: Reading) -> Dataset:
    """Return a prepared set: its `image` and `label`, or its numbers and classes as columns.

    A class label that is not called `label` becomes indicators of its classes. A set with a row
    that has no label, which is stored as −1, has no labels.

    Args:
      name: its name.
      folder: the folder of the prepared version.
      reading: how it is read; its options of kinds, columns and missing values apply.

    Raises:
      UserError: the files are damaged, or its features are neither images nor plain columns.
    """
    try:
        check_features(folder, PLAIN_FEATURES)
        builder = import_tfds().builder_from_directory(folder)
        features = dict(builder.info.features)
        rows = {
            split: builder.as_data_source(split).__getitems__(range(info.num_examples))
            for split, info in builder.info.splits.items()
            if info.num_examples
        }
    except Exception as error:
        raise damaged(name, folder, error) from error
    rows = {SPLIT_OF[split]: part for split, part in rows.items() if split in SPLIT_OF}
    if "train" not in rows:
        raise UserError(f"{name} has no split train")
    every = [row for part in rows.values() for row in part]
    label = None
    if "label" in features:
        label = np.array([row["label"] for row in every])
        if label.dtype.kind in "iu" and (label < 0).any():
            label = None
    labels = () if label is None else tuple(getattr(features.get("label"), "names", None) or ())
    words: tuple[str, ...] = ()
    if "image" in features:
        if len({row["image"].shape for row in every}) > 1:
            raise UserError(f"{name} has images of different sizes: save them as files, --resize N")
        x = np.stack([row["image"] for row in every])
    else:
        table = tables.of_columns(_columns(features, every), name, "", reading.columns)
        x, words = table.x, table.words
    ends = np.cumsum([len(part) for part in rows.values()])[:-1]
    given: dict[str, Any] = {"x": x, **({} if label is None else {"label": label})}
    by_split = {
        key: dict(zip(rows, np.split(array, ends), strict=True)) for key, array in given.items()
    }
    return from_arrays(
        by_split["x"],
        by_split.get("label"),
        name=name.replace("/", "-").replace(":", "-"),
        kind=reading.kind,
        levels=reading.levels,
        missing=reading.missing,
        words=words,
        labels=labels,
    )


def _columns(features: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the columns of plain features: one for each number of a vector."""
    columns: dict[str, np.ndarray] = {}
    for name in sorted(features):  # their own order differs from process to process
        if name == "label":
            continue
        values = np.array([row[name] for row in rows])
        if names := getattr(features[name], "names", None):
            columns[name] = np.array([names[value] if value >= 0 else "" for value in values])
        elif values.dtype.kind in "biuf" and values.ndim <= 2:
            parts = values.reshape(len(rows), -1).T
            titles = [name] if len(parts) == 1 else [f"{name}_{i}" for i in range(len(parts))]
            columns |= dict(zip(titles, parts, strict=True))
        elif values.ndim == 1:
            columns[name] = tables.as_texts(values)
        else:
            raise UserError(f"the feature {name} is neither a number nor a text: name --columns")
    return columns


def prepared_names(data_dir: Path) -> list[str]:
    """Return the names of the sets that are prepared in a folder."""
    found = data_dir.glob("*/*/dataset_info.json") if data_dir.is_dir() else ()
    return sorted({info.parent.parent.name for info in found})
