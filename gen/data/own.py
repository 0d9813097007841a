"""Read the user's own data: files of arrays, tables and texts, and folders of images."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gen import config
from gen.core import UserError, check_fields, require
from gen.data import containers, folders, tables
from gen.data.arrays import SPLITS, Kind, Missing, from_arrays
from gen.data.cache import expand_user, read_cache, write_cache
from gen.data.dataset import Dataset

READING_VERSION = 1
"""version of the rules by which files are read; another version reads cached files again"""

LARGEST_TABLE = 500_000_000
"""bytes of the largest file of a table or a text"""

UNKNOWN = "�"
"""symbol of the words outside of the vocabulary"""


@dataclass(frozen=True)
class Reading:
    """Say how the files of a data set of one's own are read."""

    kind: Kind = "auto"
    """kind of the values in own data (default: found from the values)"""
    levels: int = 0
    """levels or symbols of own data (0: found from the values)"""
    label_column: str = ""
    """column of a table that has the labels: its name, or its number without a header"""
    columns: tuple[str, ...] = ()
    """columns of a table to take (default: all but the labels)"""
    missing: Missing = "keep"
    """empty cells of a table: kept, dropped with their rows, or filled with the column's mean"""
    series: bool = False
    """rows are the steps of one series, which is cut into sequences; an array [N, T, D] holds
    N sequences of T steps"""
    sequence_length: int = 200
    """steps of the sequences that a series or a text is cut into"""
    split_words: bool = False
    """take the words of a text as symbols, in place of its letters"""
    vocabulary: int = 1000
    """number of different words, the most frequent ones; others become one symbol"""
    resize: int = 0
    """side in pixels of the squares that images are cut and scaled to (0: as they are)"""
    grey: bool = False
    """turn images in colour into grey ones"""

    def __post_init__(self):
        check_fields(
            self,
            positive=("sequence_length",),
            non_negative=("levels", "resize"),
        )
        if self.vocabulary < 2:
            raise UserError(f"vocabulary is {self.vocabulary}, must be 2 or more")


def read_path(path: Path, reading: Reading) -> Dataset:
    """Return the data set in a file or a folder, from the cache if it is unchanged.

    Args:
      path: a folder of images, or a file .npz, .npy, .csv, .tsv, .txt or .mat.
      reading: how it is read.

    Raises:
      UserError: there is no such file, or it cannot be read as a data set.
    """
    path = expand_user(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give a file or a folder of images")
    suffix = path.suffix.lower()
    if path.is_dir():
        read: Callable[[Path, Reading], Dataset] = read_folder
        files = folders.image_files(path)
    elif suffix in READERS:
        read, files = READERS[suffix], [path]
    else:
        known = ", ".join(READERS)
        raise UserError(
            f"{path} is of no known kind: give a folder of images, or a file that ends in {known}"
        )
    if (reading.label_column or reading.columns) and suffix not in (".csv", ".tsv"):
        raise UserError(f"{path} is no table: leave --label-column and --columns out")
    cached = path.is_dir() or suffix in (".csv", ".tsv", ".txt")
    key = _stamp(path, files, reading) if cached else ""
    entry = f"own-{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]}"
    if cached and (dataset := _from_cache(entry, key, path.stem)):
        return dataset
    try:
        dataset = read(path, reading)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8 (byte {error.start}): convert it, iconv -t utf-8"
        ) from error
    if cached:
        meta = json.dumps({"key": key, "format": config.to_json(dataset.format)}).encode()
        splits = {**dataset.splits, "meta": {"json": np.frombuffer(meta, np.uint8)}}
        write_cache(entry, splits)
    return dataset


def read_npz(path: Path, reading: Reading) -> Dataset:
    """Return the data set in an .npz file: `x`, and `label`, `length`, or `x_train`, …"""
    return _of_named(path, containers.read_npz(path), reading)


def read_npy(path: Path, reading: Reading) -> Dataset:
    """Return the data set of the one array in an .npy file."""
    return _from(path, reading, containers.read_npy(path))


def read_mat(path: Path, reading: Reading) -> Dataset:
    """Return the data set in a MATLAB file, whose variables are named as in an .npz file."""
    return _of_named(path, containers.read_mat(path), reading)


def read_table(path: Path, reading: Reading) -> Dataset:
    """Return the data set in a file of comma-, semicolon- or tab-separated values."""
    _check_size(path)
    table = tables.read_csv(path, reading.label_column, reading.columns)
    if reading.series and table.label is not None:
        raise UserError(f"{path}: a series has no labels: leave --label-column out")
    return _from(path, reading, table.x, table.label, words=table.words)


def read_text(path: Path, reading: Reading) -> Dataset:
    """Return a text in UTF-8 as sequences of its letters or of its words.

    Words are separated by white space; the end of a line is a letter and no word. Of the words only
    the most frequent are symbols of their own.
    """
    _check_size(path)
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise UserError(f"{path} is empty")
    if not reading.split_words:
        return _from(path, reading, text)
    words = text.split()
    counts = Counter(words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    frequent = ranked[: reading.vocabulary - (len(counts) > reading.vocabulary)]
    vocabulary = tuple(sorted(frequent))
    if len(vocabulary) < len(counts):
        vocabulary = (*vocabulary, UNKNOWN)
    position = {word: i for i, word in enumerate(vocabulary)}
    unknown = len(vocabulary) - 1
    x = np.fromiter((position.get(word, unknown) for word in words), np.int32, len(words))
    options = replace(reading, kind="symbols", levels=len(vocabulary))
    return _from(path, options, x, symbols=vocabulary)


def read_folder(path: Path, reading: Reading) -> Dataset:
    """Return the data set of a folder of images, whose sub-folders are classes."""
    images = folders.read_images(path, reading.resize, reading.grey)
    return _from(path, reading, images.x, images.label)


def read_rows(
    path: Path, reading: Reading, words: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the rows of a file or a folder in their order, as they are stored, without splits.

    Args:
      path: a folder of images, or a file .npz, .npy, .mat, .csv or .tsv, without splits.
      reading: the label column of a table, which may be absent, and the size of images.
      words: names of the columns that a table must have, in the order of the result, without its
        other columns; () for all of its columns. A column `name=value` that is absent is 0 if
        others of the same name exist.

    Returns:
      x, [N, ...], and the labels, [N], or None.

    Raises:
      UserError: there is no such file, it cannot be read, or a column is missing.
    """
    path = expand_user(path)
    require(path.exists(), f"{path} does not exist: give a file or a folder of images")
    suffix = path.suffix.lower()
    if path.is_dir():
        images = folders.read_images(path, reading.resize, reading.grey)
        return images.x, images.label
    if suffix in (".csv", ".tsv"):
        _check_size(path)
        asked = dict.fromkeys(each for word in words for each in (word, word.partition("=")[0]))
        table = tables.read_csv(path, reading.label_column, tuple(asked), strict=False)
        wanted, place = words or table.words, {word: i for i, word in enumerate(table.words)}
        titles = {word.partition("=")[0] for word in table.words if "=" in word}
        absent = [
            word for word in wanted if word not in place and word.partition("=")[0] not in titles
        ]
        require(not absent, f"{path} has no column {', '.join(absent[:8])}: give the columns of x")
        columns = [
            table.x[:, place[word]] if word in place else 0 * table.x[:, 0] for word in wanted
        ]
        return np.stack(columns, axis=1), table.label
    require(
        suffix in (".npz", ".npy", ".mat"),
        f"{path} is of no known kind: give a folder of images, or a file .npz, .npy, .mat, .csv or "
        ".tsv",
    )
    if suffix == ".npy":
        return containers.read_npy(path), None
    read = containers.read_npz if suffix == ".npz" else containers.read_mat
    x, label, _ = containers.assign(read(path), str(path))
    require(not isinstance(x, Mapping), f"{path} has splits: give one array x")
    return np.asarray(x), None if label is None else np.asarray(label)


READERS: Mapping[str, Callable[[Path, Reading], Dataset]] = {
    ".npz": read_npz,
    ".npy": read_npy,
    ".csv": read_table,
    ".tsv": read_table,
    ".txt": read_text,
    ".mat": read_mat,
}
"""functions that read a file, by the end of its name"""


def _of_named(path: Path, arrays: Mapping[str, Any], reading: Reading) -> Dataset:
    """Return the data set of arrays by name."""
    x, label, length = containers.assign(arrays, str(path))
    return _from(path, reading, x, label, length)


def _from(
    path: Path,
    reading: Reading,
    x: Any,
    label: Any = None,
    length: Any = None,
    words: Sequence[str] = (),
    symbols: str | Sequence[str] = "",
) -> Dataset:
    """Return the data set of what a file holds, by the user's options."""
    try:
        return from_arrays(
            x,
            label,
            length,
            name=path.stem,
            kind=reading.kind,
            levels=reading.levels,
            missing=reading.missing,
            series=reading.series,
            sequence_length=reading.sequence_length,
            words=words,
            symbols=symbols,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _check_size(path: Path) -> None:
    """Raise `UserError` if a file of a table or a text is too large to read."""
    size = path.stat().st_size
    if size > LARGEST_TABLE:
        raise UserError(
            f"{path} has {size:,} bytes, more than {LARGEST_TABLE:,}: store it as .npy or .npz"
        )


def _stamp(path: Path, files: Sequence[Path], reading: Reading) -> str:
    """Return a sum that changes when a file or an option changes."""
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    content = json.dumps([READING_VERSION, str(path.absolute()), states, asdict(reading)])
    return hashlib.sha256(content.encode()).hexdigest()


def _from_cache(entry: str, key: str, name: str) -> Dataset | None:
    """Return the cached data set, or None if it is absent, damaged or of another state."""
    splits = read_cache(entry)
    if splits is None or "meta" not in splits:
        return None
    try:
        meta = json.loads(splits["meta"]["json"].tobytes())
        if meta["key"] != key:
            return None
        format = config.from_json(meta["format"], name="format")
        return Dataset(name, *(splits[split] for split in SPLITS), format=format)
    except (ValueError, KeyError, TypeError, UserError):
        return None
