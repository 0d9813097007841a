"""Load data sets as arrays in memory, in three splits, as they are stored.

`load(name)` returns a `Dataset`. Its `Format` scales and binarises the values inside the compiled
training step. The data sets come from four places, one module for each:

- `images`: image sets of tensorflow-datasets, prepared and read without TensorFlow;
- `files`: single files, downloaded and checked by SHA-256, and one short series in the code;
- `digits`: the digits that scikit-learn includes;
- `generated`: draws from a distribution whose density is known.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from gen.core import UserError
from gen.data.dataset import Arrays, Binarize, Dataset, Format, LogProb
from gen.data.digits import read_digits, read_nudged_digits
from gen.data.download import File, fetch
from gen.data.files import (
    FILES,
    read_earthquakes,
    read_letters,
    read_music,
    read_news,
    read_uci,
)
from gen.data.generated import (
    CENTRES,
    DEVIATION,
    draw_eight_gaussians,
    draw_regimes,
    eight_gaussians_log_prob,
    regimes_log_prob,
)
from gen.data.images import IMAGES, read_images

__all__ = [
    "CENTRES",
    "DATASETS",
    "DEVIATION",
    "FILES",
    "Arrays",
    "Binarize",
    "Dataset",
    "File",
    "Format",
    "LogProb",
    "eight_gaussians_log_prob",
    "fetch",
    "load",
    "regimes_log_prob",
]

READERS: dict[str, Callable[[], Dataset]] = {
    "digits": read_digits,
    "digits_nudged": read_nudged_digits,
    "news": read_news,
    "uci_dna": partial(read_uci, "uci_dna"),
    "uci_mushrooms": partial(read_uci, "uci_mushrooms"),
    "uci_nips": partial(read_uci, "uci_nips"),
    "jsb": partial(read_music, "jsb"),
    "nottingham": partial(read_music, "nottingham"),
    "letters": read_letters,
    "earthquakes": read_earthquakes,
    "eight_gaussians": draw_eight_gaussians,
    "regimes": draw_regimes,
}
"""functions that make the data sets outside of tensorflow-datasets, by name"""

DATASETS = (*IMAGES, *READERS)
"""names that `load` takes"""


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Return the data set `name`, downloaded and prepared first where it is absent.

    Args:
      name: one of `DATASETS`.
      data_dir: folder with the prepared sets of tensorflow-datasets. The default is the environment
        variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`. Other sets ignore it.

    Raises:
      UserError: the name is unknown, the set is absent and cannot be downloaded, or its files are
        damaged.
    """
    if name in IMAGES:
        return read_images(name, data_dir)
    if name in READERS:
        return READERS[name]()
    raise UserError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
