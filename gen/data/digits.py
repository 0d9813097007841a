"""Read the handwritten digits that scikit-learn includes."""

from __future__ import annotations

from typing import Any

import numpy as np

from gen.data.arrays import SPLITS, from_arrays
from gen.data.dataset import Dataset, Format


def read_digits() -> Dataset:
    """Return `digits`: 1,797 images of 8×8 pixels in 17 grey levels, with 10 classes.

    The split 1,297/250/250 is stratified by class.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    x, label = digits.images[..., None].astype(np.uint8), digits.target.astype(np.int32)
    rows, test = train_test_split(range(len(x)), test_size=250, random_state=0, stratify=label)
    train, validation = train_test_split(rows, test_size=250, random_state=0, stratify=label[rows])
    return _split("digits", x, label, (train, validation, test))


def read_nudged_digits() -> Dataset:
    """Return `digits_nudged`: each digit of `digits`, and its copies moved by one pixel.

    The copies are moved up, left, right and down, and zeros move in at the border. The 8,985 rows
    are split 6,469/719/1,797.

    The rows and the test split match scikit-learn's example of Bernoulli RBM features
    (https://scikit-learn.org/stable/auto_examples/neural_networks/plot_rbm_logistic_classification.html).
    The example then stretches each pixel to [0, 1] over the rows; here all pixels are divided by
    16. The split is random over the moved rows, so the training split contains copies of test
    digits that are one pixel away. An error on this test split compares with the example's, and
    says little about digits that are not in the training split.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    framed = np.pad(digits.images.astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    # The window's upper left corner in the framed image: still, then moving the digit up, left,
    # right and down.
    corners = (1, 1), (2, 1), (1, 2), (1, 0), (0, 1)
    x = np.concatenate([framed[:, i : i + 8, j : j + 8, None] for i, j in corners])
    label = np.tile(digits.target.astype(np.int32), len(corners))
    rows, test = train_test_split(range(len(x)), test_size=0.2, random_state=0)
    train, validation = train_test_split(rows, test_size=0.1, random_state=0)
    return _split("digits_nudged", x, label, (train, validation, test))


def _split(name: str, x: np.ndarray, label: np.ndarray, rows: Any) -> Dataset:
    """Return the data set of 17 grey levels with the given rows in its three splits."""
    parts = dict(zip(SPLITS, rows, strict=True))
    return from_arrays(
        {split: x[chosen] for split, chosen in parts.items()},
        {split: label[chosen] for split, chosen in parts.items()},
        name=name,
        format=Format(16),
    )
