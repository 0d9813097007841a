"""Load data sets as arrays in memory, in three splits, as they are stored.

`load(name)` returns a `Dataset`. Its `Format` scales and binarises the values inside the compiled
training step. `from_arrays` makes a data set of arrays, and `load(path)` reads one from a file or
a folder (`own`, with `containers`, `tables` and `folders`). Other sets that tensorflow-datasets has
prepared are read by `prepared`. The built-in sets come from six places, one module for each:

- `images`: image sets of tensorflow-datasets, prepared and read without TensorFlow;
- `files`: single files, downloaded and checked by SHA-256, and one short series in the code;
- `digits`: the digits that scikit-learn includes;
- `anomalies`: tables and images of which some are anomalies;
- `textures`: patches of a generated or photographed texture, some of them with defects;
- `generated`: draws from a distribution whose density is known, and images of known factors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gen.core import UserError
from gen.data.anomalies import (
    ODDS,
    ONE_CLASS,
    Protocol,
    read_news_foreign,
    read_odds,
    read_one_class,
)
from gen.data.arrays import from_arrays, log_scale
from gen.data.dataset import Arrays, Binarize, Dataset, Format, LogProb
from gen.data.digits import read_digits, read_nudged_digits
from gen.data.download import File, fetch
from gen.data.files import (
    FILES,
    read_earthquakes,
    read_letters,
    read_music,
    read_news,
    read_news_groups,
    read_uci,
)
from gen.data.generated import (
    CENTRES,
    DEVIATION,
    draw_eight_gaussians,
    draw_regimes,
    draw_sensor_windows,
    draw_sensors,
    draw_sprites,
    eight_gaussians_log_prob,
    regimes_log_prob,
    sensors_log_prob,
)
from gen.data.images import IMAGES, prepared_in, read_images, read_stacked_mnist
from gen.data.own import Reading, read_path
from gen.data.prepared import prepared_folder, prepared_names, read_any
from gen.data.textures import draw_textures, read_brick

__all__ = [
    "CENTRES",
    "DATASETS",
    "DEVIATION",
    "FILES",
    "ODDS",
    "ONE_CLASS",
    "Arrays",
    "Binarize",
    "Dataset",
    "File",
    "Format",
    "LogProb",
    "Protocol",
    "Reading",
    "eight_gaussians_log_prob",
    "fetch",
    "from_arrays",
    "load",
    "log_scale",
    "read_odds",
    "regimes_log_prob",
    "sensors_log_prob",
]

READERS: dict[str, Callable[[], Dataset]] = {
    "digits": read_digits,
    "digits_nudged": read_nudged_digits,
    "news": read_news,
    "news_groups": read_news_groups,
    "news_foreign": read_news_foreign,
    "uci_dna": partial(read_uci, "uci_dna"),
    "uci_mushrooms": partial(read_uci, "uci_mushrooms"),
    "uci_nips": partial(read_uci, "uci_nips"),
    "jsb": partial(read_music, "jsb"),
    "nottingham": partial(read_music, "nottingham"),
    "letters": read_letters,
    "earthquakes": read_earthquakes,
    "textures": draw_textures,
    "textures_brick": read_brick,
    "eight_gaussians": draw_eight_gaussians,
    "regimes": draw_regimes,
    "sprites": draw_sprites,
    "sensors": draw_sensors,
    "sensors_windows": draw_sensor_windows,
}
"""functions that make the data sets outside of tensorflow-datasets, by name"""

DATASETS = (*IMAGES, "stacked_mnist", *ONE_CLASS, *ODDS, *READERS)
"""names of the built-in data sets"""


def load(
    source: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    reading: Reading | None = None,
    seed: int = 0,
) -> Dataset:
    """Return a built-in data set, one in a file or a folder, or a prepared one.

    A built-in set is downloaded and prepared first where it is absent. The data in a file of the
    name of a built-in set are read by `./NAME`.

    Args:
      source: one of `DATASETS`; a folder of images or a file .npz, .npy, .csv, .tsv, .txt or .mat;
        or the name of a set that tensorflow-datasets has prepared, `NAME`, `NAME/CONFIG` or
        `NAME:VERSION`.
      data_dir: folder with the prepared sets of tensorflow-datasets. The default is the environment
        variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`. Other sets ignore it.
      reading: how own data are read. Built-in sets ignore it.
      seed: the seed that splits the sets of `ODDS`. Other sets ignore it.

    Raises:
      UserError: the name is unknown, the set is absent and cannot be downloaded, or its files are
        damaged.
    """
    name = os.fspath(source)
    if name in IMAGES:
        return read_images(name, data_dir)
    if name == "stacked_mnist":
        return read_stacked_mnist(data_dir)
    if name in ONE_CLASS:
        return read_one_class(name, data_dir)
    if name in ODDS:
        return read_odds(name, seed)
    if name in READERS:
        return READERS[name]()
    path = Path(name)
    versioned = re.fullmatch(r"[^.~]*:[\d.]+", name)  # the end of a version is no suffix of a file
    is_path = path.suffix or path.is_absolute() or name.startswith((".", "~"))
    if path.exists() or (is_path and not versioned):
        return read_path(path, reading or Reading())
    folder = prepared_in(data_dir)
    if found := prepared_folder(name, folder):
        return read_any(name, found, reading or Reading())
    others = [each for each in prepared_names(folder) if each not in DATASETS]
    raise UserError(
        f"unknown data set {name!r}: choose one of {', '.join((*DATASETS, *others))}, or give a "
        "file or a folder of images"
    )
