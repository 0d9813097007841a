"""Read data sets for anomaly detection: normal training examples, and a test split with anomalies.

The first class of every set is `normal`. The training and the validation split hold normal
examples alone.
"""

from __future__ import annotations

import os
from typing import Literal

import numpy as np

from gen.data.arrays import from_arrays, row_sums
from gen.data.dataset import Dataset, Format
from gen.data.download import File, fetch
from gen.data.files import NEWS_GROUPS, read_news
from gen.data.images import read_images

ADBENCH_URL = (
    "https://raw.githubusercontent.com/Minqi824/ADBench/"
    "3dac8221081e190f157d78e93bfa8867f90d0965/adbench/datasets/Classical"
)

ODDS = {
    name: File(f"odds/{file}", f"{ADBENCH_URL}/{file}", sha256)
    for name, (file, sha256) in {
        "odds_annthyroid": (
            "2_annthyroid.npz",
            "e738f7c58a8740d2c4aac4c71ff49ce5e1d1aa16f44178135fc9c09df05fad1b",
        ),
        "odds_breastw": (
            "4_breastw.npz",
            "4f37ce07dbc25ddad8178fdc6d664ab46d2d0000ee28c2787c3c7ff3c03ef9f6",
        ),
        "odds_cardio": (
            "6_cardio.npz",
            "bc5009bde6930b4d298b594f31b34485a9a17210cff0e8fb00a8c3068b885a2d",
        ),
        "odds_glass": (
            "14_glass.npz",
            "aa7a8db1d475ba01a10488af454bc15220a3d5951b010b03b7020567d8152cdc",
        ),
        "odds_ionosphere": (
            "18_Ionosphere.npz",
            "bca46cb0cfd1bf9ddef6cde5ad2215d54fb0189508d0d4c4eb98e788cad69001",
        ),
        "odds_letter": (
            "20_letter.npz",
            "f986d3da80cf1fa2aea83a5ebe73b7d4800e0d4c01fdd1ae074b58d20f10d039",
        ),
        "odds_lymphography": (
            "21_Lymphography.npz",
            "dad977b04f4ea65b78ccd0e9f76b45175bad605165b37e63f3cc177845e67037",
        ),
        "odds_mammography": (
            "23_mammography.npz",
            "a0308ac9712d78321073b1c2dc98dc37665c0f35c1cc33019416fe8f8d7de7ea",
        ),
        "odds_musk": (
            "25_musk.npz",
            "2ed3f4392197b76a1e59116ff880c7720a4b026cf4842073a53b56fdea265017",
        ),
        "odds_optdigits": (
            "26_optdigits.npz",
            "60de17a375a278ba220a7849727d998aa02b5e2f9fd17732a004bba28de4656e",
        ),
        "odds_pendigits": (
            "28_pendigits.npz",
            "c4936b89dcdad59d303020e492f763a0f54170080d787c77497609acbb9c2d79",
        ),
        "odds_pima": (
            "29_Pima.npz",
            "215454bb263a2f040945c9ea7bd7f06f1e89a61a3143bdb6f196e3887e801a7d",
        ),
        "odds_satellite": (
            "30_satellite.npz",
            "1f048f5686f1b8c16a227fdfa3c81a62cd9a92715714a6b24c69b1c5ad96b46e",
        ),
        "odds_satimage_2": (
            "31_satimage-2.npz",
            "1b056e357f801b8b20c3f380a30224a3c4088d7ed764ec5a24828dc9b1918d6f",
        ),
        "odds_shuttle": (
            "32_shuttle.npz",
            "26900b0f6be45d9ddb7a402c9b2f956ceda42d23a8ca4cf4406b8bc1352823d1",
        ),
        "odds_thyroid": (
            "38_thyroid.npz",
            "8de161b3f235b7647bb0b39a836d983ff61d67bf234edac461da2d71e889cb87",
        ),
        "odds_vertebral": (
            "39_vertebral.npz",
            "0816286f92b96fe6867664a41a031ac7228dcfbf1a5feefe50ca3883b2e9073d",
        ),
        "odds_vowels": (
            "40_vowels.npz",
            "4bfc4244d1c882773bbbc50d4a5db5e52276e53506e46b2d45e02d074cfcb1b6",
        ),
        "odds_wbc": (
            "42_WBC.npz",
            "650f9dcb129248f67a291be0974f533ef259fcbde50fce5c8ad2a1cb2652d03b",
        ),
        "odds_wine": (
            "45_wine.npz",
            "d5ad8965d92cc57122fe1e6572bb301adbaf795b3e166d187ae00a704d8f6e20",
        ),
    }.items()
}
"""published file of each tabular set, by name"""

ONE_CLASS = {
    f"{images}_class_{label}": (images, label)
    for images in ("mnist", "fashion_mnist")
    for label in range(10)
}
"""set of images and class of the normal examples of each one-class set, by name"""

LABELS = ("normal", "anomaly")
"""names of the classes 0 and 1"""

FEWEST_ROWS = 1_000
"""number of rows to which the published protocol resamples smaller sets"""

Protocol = Literal["drawn", "published"]
"""rule that splits a tabular set, see `read_odds`"""


def marks_anomalies(dataset: Dataset) -> bool:
    """Return whether the labels say which test examples are anomalies: all but the class normal."""
    return dataset.format.labels[:1] == LABELS[:1]


def read_one_class(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Return an image set whose training and validation examples are of one class.

    The test split is the whole test split of the image set, and examples of the other nine classes
    are its anomalies.

    Args:
      name: one of `ONE_CLASS`, such as mnist_class_3.
      data_dir: folder with the prepared sets of tensorflow-datasets, as `read_images` takes it.
    """
    images, label = ONE_CLASS[name]
    whole = read_images(images, data_dir)
    x, anomalies = {}, {}
    for split, arrays in whole.splits.items():
        is_anomaly = arrays["label"] != label
        rows = np.ones(len(is_anomaly), bool) if split == "test" else ~is_anomaly
        x[split], anomalies[split] = arrays["x"][rows], is_anomaly[rows].astype(np.int32)
    return from_arrays(x, anomalies, name=name, labels=LABELS, format=whole.format)


def read_news_foreign() -> Dataset:
    """Return `news_foreign`: postings of `news` without talk, and foreign ones of talk to be found.

    The training and the validation split of `news` without the group talk are the normal examples.
    The test split has all groups, and the postings of talk (politics and religion) are its
    anomalies. Postings of less than three words are left out of all splits: they say too little.
    """
    news = read_news()
    x, anomalies = {}, {}
    for split, rows in news.splits.items():
        foreign = rows["label"] == NEWS_GROUPS.index("talk")
        chosen = (rows["x"].sum(axis=1) > 2) & (~foreign | (split == "test"))
        x[split], anomalies[split] = rows["x"][chosen], foreign[chosen].astype(np.int32)
    return from_arrays(
        x, anomalies, name="news_foreign", labels=LABELS, format=Format(words=news.format.words)
    )


def read_odds(name: str, seed: int = 0, protocol: Protocol = "drawn") -> Dataset:
    """Return one of 20 tabular sets with anomalies, as ADBench publishes them.

    The sets are from ODDS (https://odds.cs.stonybrook.edu), in the files of ADBench (Han et al.
    2022, https://arxiv.org/abs/2206.09426). Half of the normal rows are for training, a tenth of
    them for validation. The test split has the other half and all anomalies. Columns are
    standardised by the half for training; a column that is constant there keeps its scale.

    Protocols:

    - `drawn`: the seed draws the half. Equal rows come together, so that no normal row of the test
      split is in the training or the validation split. An anomaly can still equal a training row.
    - `published`: the protocol behind the figures of Livernoche et al. 2023,
      https://arxiv.org/abs/2305.18593, as their program has it (https://github.com/vicliv/DTE,
      `data_generator.py`). The half is the first one in the order of the file, in every seed. A set
      of fewer than `FEWEST_ROWS` rows is first resampled with replacement to that number, by the
      seed. Copies of one row are then on both sides, so that a model that memorises its training
      rows does well. Within the training half, equal rows come together, either in the training or
      in the validation split.

    Args:
      name: one of `ODDS`.
      seed: the seed of the split.
      protocol: how the rows are split.
    """
    with np.load(fetch(*ODDS[name])) as arrays:
        x, anomaly = arrays["X"].astype(np.float32), arrays["y"] == 1
    rng = np.random.RandomState(seed)
    rows = np.arange(len(x))
    if protocol == "published" and len(x) < FEWEST_ROWS:
        rows = rng.choice(len(x), FEWEST_ROWS, replace=True)
    normal = rows[~anomaly[rows]]
    if protocol == "published":
        half = round(len(normal) / 2)
        training, rest = normal[:half], normal[half:]
    else:
        training, rest = _split_off(x, normal, 0.5, rng)
    train, validation = _split_off(x, training, 0.9, rng)
    test = np.concatenate([rest, rows[anomaly[rows]]])

    center, scale = x[training].mean(0, np.float64), x[training].std(0, np.float64)
    scale = np.where(scale > 0, scale, 1.0)
    splits = {"train": train, "validation": validation, "test": test}
    return from_arrays(
        {split: x[part] for split, part in splits.items()},
        {split: anomaly[part].astype(np.int32) for split, part in splits.items()},
        name=name,
        labels=LABELS,
        format=Format(levels=0, center=tuple(center.tolist()), scale=tuple(scale.tolist())),
    )


def _split_off(
    x: np.ndarray, rows: np.ndarray, share: float, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Return a random share of row numbers, as near as equal rows in one part allow, and the rest.

    Args:
      x: all rows, [N, D].
      rows: row numbers, which may repeat.
      share: the share of them in the first part.
      rng: the source of the draws.
    """
    _, group, size = np.unique(row_sums(x[rows]), return_inverse=True, return_counts=True)
    order = rng.permutation(len(size))
    first = order[np.cumsum(size[order]) <= round(share * len(rows))]
    is_first = np.isin(group, first)
    return rows[is_first], rows[~is_first]
