"""Prepare and read image sets of tensorflow-datasets, without TensorFlow.

A set that is already prepared is read as it is. A set that is absent is prepared from its download,
under the checksums of tensorflow-datasets. Decoding the images takes seconds, so the decoded arrays
are cached.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gen.core import UserError
from gen.data.arrays import from_arrays
from gen.data.cache import expand_user, read_cache, write_cache
from gen.data.dataset import Arrays, Dataset, Format
from gen.data.download import first_line

Example = tuple[int, dict[str, Any]]
"""number of a row, and its features as tensorflow-datasets encodes them"""


def read_images(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Return the image set `name`, from the cache where it is there.

    The validation split of MNIST and Fashion-MNIST is the last 5,000 training examples. They are a
    random subset, because tensorflow-datasets stores examples in the order of a hash.

    Args:
      name: one of `IMAGES`.
      data_dir: folder with the prepared sets of tensorflow-datasets. The default is the environment
        variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
      UserError: the set is absent and cannot be prepared, or its files are damaged.
    """
    folder = prepared_in(data_dir)
    version = IMAGES[name].version
    info = folder / name / version / "dataset_info.json"
    if not info.exists():
        prepare(name, folder)
    # The description of the prepared set is part of the cache's key, so a set that was prepared
    # differently has an entry of its own.
    try:
        key = hashlib.sha256(info.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise damaged(name, info.parent, error) from error
    cache = f"{name}-{version}-{key}"
    splits = read_cache(cache)
    if splits is None:
        splits = read_prepared(name, folder)
        write_cache(cache, splits)
    train, test = splits["train"], splits["test"]
    if "validation" in splits:
        validation = splits["validation"]
    else:
        validation = {array: values[-5000:] for array, values in train.items()}
        train = {array: values[:-5000] for array, values in train.items()}
    parts = {"train": train, "validation": validation, "test": test}
    return from_arrays(
        {split: part["x"] for split, part in parts.items()},
        {split: part["label"] for split, part in parts.items()} if "label" in train else None,
        name=name,
        format=Format(IMAGES[name].peak),
    )


def read_stacked_mnist(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Return MNIST in a format that stacks three digits as the channels of an image.

    Three digits give 1,000 classes, the modes that a model's samples are counted in (Metz et al.
    2017, https://arxiv.org/abs/1611.02163, section 3.3.1). The stored images are MNIST's. Each
    batch is stacked anew inside the compiled step. The labels of single digits are left out.
    """
    mnist = read_images("mnist", data_dir)
    return from_arrays(
        {split: arrays["x"] for split, arrays in mnist.splits.items()},
        name="stacked_mnist",
        format=replace(mnist.format, stack=3),
    )


def prepared_in(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the prepared sets: the given one, or the default of `read_images`."""
    return expand_user(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def read_prepared(name: str, data_dir: Path) -> dict[str, Arrays]:
    """Decode every split of a set that tensorflow-datasets has prepared in `data_dir`.

    Raises:
      UserError: the files are damaged.
    """
    tfds = import_tfds()
    folder = data_dir / name / IMAGES[name].version
    try:
        check_features(folder, FEATURES)
        builder = tfds.builder_from_directory(folder)
        splits: dict[str, Arrays] = {}
        for split, info in builder.info.splits.items():
            rows = builder.as_data_source(split).__getitems__(range(info.num_examples))
            splits[split] = {"x": np.stack([row["image"] for row in rows])}
            if "label" in builder.info.features:
                label = np.array([row["label"] for row in rows], np.int32)
                splits[split] = {**splits[split], "label": label}
    except Exception as error:
        raise damaged(name, folder, error) from error
    return splits


def damaged(name: str, folder: Path, error: Exception) -> UserError:
    """Return the error that says which folder is damaged and how to mend it.

    Args:
      name: the name of the data set.
      folder: the folder of the prepared set.
      error: the fault that was found.
    """
    return UserError(
        f"{name} in {folder} is damaged ({first_line(error)}): "
        "delete that folder and run again, which prepares the set again"
    )


def check_features(folder: Path, expected: Sequence[str]) -> None:
    """Raise `ValueError` if the description of a prepared set names a class that is not expected.

    tensorflow-datasets imports the module of every feature class that the two JSON files name, so a
    folder from an untrusted source could run any module that Python finds.

    Args:
      folder: the folder of the prepared set.
      expected: the classes that it may name.
    """

    def check(part: dict[str, Any]) -> dict[str, Any]:
        for key in ("pythonClassName", "python_class_name", "type"):
            feature = part.get(key, expected[0])
            if "." in feature and feature not in expected:
                raise ValueError(f"it names the class {feature}, which no such set has")
        return part

    for file in ("features.json", "dataset_info.json"):
        json.loads((folder / file).read_text(), object_hook=check)


def prepare(name: str, data_dir: Path) -> None:
    """Let tensorflow-datasets download, check and store a set, with readers free of TensorFlow.

    The builders of tensorflow-datasets call TensorFlow to decompress files, to open them and to
    encode PNGs. All three calls are in the methods that list the examples, so the method that names
    those is replaced on the builder instance. The downloaded files that the folder
    `GEN_DATA_DIR/name` has are taken from it instead of the network.

    Raises:
      UserError: a file cannot be downloaded, or it has another checksum.
    """
    import requests

    tfds = import_tfds()
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    urls = list(builder.url_infos)
    builder._split_generators = lambda manager: {
        split: IMAGES[name].examples(*paths)
        for split, paths in files_of_splits(manager.download({url: url for url in urls})).items()
    }
    downloads = expand_user(os.environ.get("GEN_DATA_DIR") or "absent") / name
    config = tfds.download.DownloadConfig(manual_dir=downloads if downloads.is_dir() else None)
    absent = [url for url in urls if not (downloads / builder.url_infos[url].filename).is_file()]
    try:
        if absent:
            # Without a network this fails at once, where tensorflow-datasets retries for minutes.
            requests.head(absent[0], timeout=10)
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=config)
    except Exception as error:
        if (data_dir / name / IMAGES[name].version / "dataset_info.json").exists():
            return  # another process prepared the set meanwhile, and completed it by a rename
        offline = isinstance(error, requests.ConnectionError | requests.Timeout)
        reason = f"no connection to {absent[0]}" if offline else first_line(error)
        raise UserError(
            f"{name} is not in {data_dir} and could not be prepared from its download "
            f"({reason}): set TFDS_DATA_DIR or --data-dir to a folder that has it, put "
            f"its files into GEN_DATA_DIR/{name}, or run once with a network"
        ) from error


def files_of_splits(paths: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Group downloaded files, given by their addresses, by split, with images before labels."""
    prefixes = {
        "train": "train",
        "t10k": "test",
        "binarized_mnist_train": "train",
        "binarized_mnist_valid": "validation",
        "binarized_mnist_test": "test",
    }
    files: dict[str, list[Path]] = {}
    for url in sorted(paths):  # "images" sorts before "labels"
        prefix = url.rsplit("/", 1)[1].split("-")[0].split(".")[0]
        files.setdefault(prefixes[prefix], []).append(Path(paths[url]))
    return files


def idx_examples(images: Path, labels: Path) -> Iterator[Example]:
    """Yield the examples of two gzipped IDX files, whose headers take 16 and 8 bytes."""
    x = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16)
    label = np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
    for row, (image, digit) in enumerate(zip(x.reshape(-1, 28, 28), label, strict=True)):
        yield row, {"image": encode_png(image), "label": int(digit)}


def amat_examples(path: Path) -> Iterator[Example]:
    """Yield the examples of a text file whose lines have 784 numbers, each 0 or 1."""
    with path.open() as lines:
        for row, line in enumerate(lines):
            x = np.array(line.split(), np.float32).astype(np.uint8)
            yield row, {"image": encode_png(x.reshape(28, 28))}


def encode_png(image: np.ndarray) -> io.BytesIO:
    """Return an image as PNG bytes, which tensorflow-datasets stores without encoding them."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    file.seek(0)
    return file


def import_tfds() -> Any:
    """Import tensorflow-datasets when it is needed, as it is slow, and silence its messages."""
    os.environ.setdefault("TFDS_DISABLE_GCS", "1")
    import tensorflow_datasets as tfds

    for logger in ("absl", "urllib3"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    return tfds


FEATURES = tuple(
    f"tensorflow_datasets.core.features.{name}"
    for name in (
        "features_dict.FeaturesDict",
        "image_feature.Image",
        "class_label_feature.ClassLabel",
    )
)
"""classes of tensorflow-datasets that the descriptions of the image sets name"""


@dataclass(frozen=True)
class ImageSet:
    """Describe an image set of tensorflow-datasets."""

    version: str
    """version in tensorflow-datasets"""
    peak: int
    """largest value of a pixel"""
    examples: Callable[..., Iterator[Example]]
    """generator of the examples of a split from its downloaded files"""


IMAGES = {
    "mnist": ImageSet("3.0.1", 255, idx_examples),
    "fashion_mnist": ImageSet("3.0.1", 255, idx_examples),
    "binarized_mnist": ImageSet("1.0.0", 1, amat_examples),
}
"""image sets by name"""
