"""Read arrays by name from .npz, .npy and .mat files, without unpickling anything."""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gen.core import UserError
from gen.data.download import first_line

LARGEST = 4_000_000_000
"""bytes of the largest array, and of all arrays of a file together"""

NAMES = {
    "x": ("x", "X", "data", "images", "image", "arr_0"),
    "label": ("label", "labels", "y", "Y", "target", "class"),
    "length": ("length", "lengths"),
}
"""names of the arrays of a file that stand for x, the labels and the lengths"""
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
"""names of the splits in the names of arrays"""
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
"""the split that each of these names stands for"""


def assign(arrays: Mapping[str, Any], source: str) -> tuple[Any, Any, Any]:
    """Return x, the labels and the lengths among arrays by name.

    x is called x, X or data, the labels are called label, labels or y, the lengths length or
    lengths (`NAMES`). Splits stand before or after the name: `x_train`, `train_x`, `y_test`,
    `train_data`, `traindata`. A file of one array needs no name.

    Args:
      arrays: arrays by name.
      source: the file, for messages.

    Returns:
      x, labels and lengths: arrays, or dicts of arrays by split, or None.
    """
    if not arrays:
        raise UserError(f"{source} holds no arrays")
    split: dict[str, dict[str, Any]] = {"x": {}, "label": {}, "length": {}}
    whole: dict[str, Any] = {}
    for name, array in arrays.items():
        for role, titles in NAMES.items():
            if role == "length":
                if not isinstance(array, np.ndarray) or array.ndim == 0:
                    continue  # a number is no length of each row
                array = array.reshape(-1)
            if name in titles:
                whole.setdefault(role, array)
            for part, parts in SPLITS.items():
                pairs = [(title, each) for title in titles for each in parts]
                pairs += [(each, title) for title, each in pairs]
                if name in {f"{a}{join}{b}" for a, b in pairs for join in ("_", "")}:
                    split[role][part] = array
    for part, parts in SPLITS.items():  # the name of a split alone
        for each in parts:
            if each in arrays:
                split["x"].setdefault(part, arrays[each])
    if "train" in split["x"]:
        return split["x"], split["label"] or None, split["length"] or None
    if "x" not in whole and len(arrays) == 1:
        whole["x"] = next(iter(arrays.values()))
    if "x" not in whole:
        raise UserError(
            f"{source} has no array x: its arrays are {', '.join(arrays)}; name them x, and label "
            "or length, or x_train, x_validation, x_test"
        )
    return whole["x"], whole.get("label"), whole.get("length")


def read_npy(path: Path) -> np.ndarray:
    """Return the array of an .npy file.

    Raises:
      UserError: it is damaged, holds Python objects, or is too large.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        _check_header(file, size, str(path))
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): store it again") from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name.

    The sizes in the zip directory and in the headers of the arrays are checked before an array is
    read.

    Raises:
      UserError: it is damaged, holds Python objects, or unpacks to more than `LARGEST` bytes.
    """
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(path) as archive:
            warnings.simplefilter("ignore")  # files that Python 2 wrote
            total = sum(entry.file_size for entry in archive.infolist())
            if total > LARGEST:
                raise UserError(
                    f"{path} unpacks to {total:,} bytes, more than {LARGEST:,}: store less in it"
                )
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    _check_header(file, entry.file_size, f"{path}, array {entry.filename}")
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): store it again") from error
    except RuntimeError as error:  # an encrypted archive
        raise UserError(f"{path} cannot be read ({first_line(error)})") from error


def _check_header(file: Any, size: int, source: str) -> None:
    """Raise `UserError` unless an array in NumPy's format holds numbers and fits its size.

    Args:
      file: the open file, at its beginning.
      size: its number of bytes.
      source: its name, for messages.
    """
    try:
        version = np.lib.format.read_magic(file)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = reader(file)
    except (ValueError, KeyError, EOFError) as error:
        raise UserError(f"{source} is no array of NumPy ({first_line(error)})") from error
    if dtype.hasobject:
        raise UserError(
            f"{source} holds Python objects, which are never unpickled: store padded arrays and "
            '"length", or numbers'
        )
    needed = math.prod(shape) * dtype.itemsize
    if needed > LARGEST:
        raise UserError(f"{source} has {needed:,} bytes, more than {LARGEST:,}: store a part of it")
    present = size - file.tell()  # the bytes behind the header
    if needed > present:
        raise UserError(f"{source} is truncated: it has {present:,} of {needed:,} bytes")


def read_mat(path: Path) -> dict[str, Any]:
    """Return the arrays of a MATLAB file by name: numbers, sparse matrices and cells of sequences.

    Raises:
      UserError: it is damaged, too large, of version 7.3, or holds no arrays.
    """
    import scipy.io
    import scipy.sparse

    _check_unpacked(path)
    try:
        content = scipy.io.loadmat(path, spmatrix=False)
    except NotImplementedError as error:
        raise UserError(f"{path} is of MATLAB's version 7.3: save it with -v7") from error
    except Exception as error:  # damaged files raise errors of many kinds
        raise UserError(f"{path} is no MATLAB file, or damaged ({first_line(error)})") from error
    arrays: dict[str, Any] = {}
    for name, value in content.items():
        if scipy.sparse.issparse(value):
            size = math.prod(value.shape) * value.dtype.itemsize
            if size > LARGEST:
                raise UserError(f"{path}: {name} has {size:,} bytes when it is dense: store less")
            arrays[name] = value.toarray()
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            arrays[name] = value
        elif isinstance(value, np.ndarray) and value.dtype == object:
            cells = [cell for cell in value.reshape(-1)]
            if all(isinstance(cell, np.ndarray) and cell.dtype.kind in "biuf" for cell in cells):
                arrays[name] = cells
            elif all(isinstance(cell, np.ndarray) and cell.dtype.kind == "U" for cell in cells):
                arrays[name] = np.array([str(cell.item()) if cell.size else "" for cell in cells])
    if not arrays:
        raise UserError(f"{path} holds no arrays of numbers")
    return arrays


def _check_unpacked(path: Path) -> None:
    """Raise `UserError` if the parts of a MATLAB file unpack to more than `LARGEST` bytes."""
    total = 0
    with path.open("rb") as file:
        file.seek(126)
        order = {b"IM": "<u4", b"MI": ">u4"}.get(file.read(2))
        while order and len(tag := file.read(8)) == 8:
            kind, size = (int(number) for number in np.frombuffer(tag, order))
            if kind != 15:  # not compressed
                total += size
                file.seek(size, 1)
            else:
                total += _unpacked_size(file, size, LARGEST - total)
            if total > LARGEST:
                raise UserError(f"{path} unpacks to more than {LARGEST:,} bytes: store less in it")


def _unpacked_size(file: BinaryIO, size: int, most: int) -> int:
    """Return the size of zlib's data when it is unpacked, or more than `most` once it exceeds that.

    Args:
      file: an open file, from which the data are read.
      size: their number of bytes.
      most: the size at which counting ends.
    """
    unpacked, packed = zlib.decompressobj(), b""
    end, total = file.tell() + size, 0
    try:
        while total <= most and (packed or file.tell() < end):
            packed = packed or file.read(min(2**16, end - file.tell()))
            if not packed:
                break
            total += len(unpacked.decompress(packed, 2**24))
            packed = unpacked.unconsumed_tail
    except zlib.error:
        pass  # scipy names the damage
    file.seek(end)
    return total
