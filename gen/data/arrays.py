"""Make a data set of arrays, lists of sequences, texts or a data frame: `from_arrays`.

The kind of the values is found from the values, the rows are split by a hash of x, and continuous
columns are standardised by the training split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from gen.core import UserError
from gen.data import tables
from gen.data.dataset import Dataset, Format, LogProb
from gen.levels import infer_levels, span

Kind = Literal["auto", "binary", "levels", "counts", "symbols", "continuous"]
"""kind of the values of x; `auto` finds it"""

Missing = Literal["keep", "drop", "mean"]
"""missing values (NaN) stay, their rows are left out, or the training mean of the column stands in
their place"""

SPLITS = ("train", "validation", "test")
"""names of the splits"""

COLUMNS_OF_ONE_SCALE = 16
"""number of columns from which integers in the rows of a table are taken for levels or counts"""
MOST_SYMBOLS = 1_000
"""largest number of integers that are taken for symbols"""
MOST_CLASSES = 1_000
"""largest number of classes"""
FINEST = 1e-5
"""smallest ratio of a column's deviation to its size that float32 resolves well"""


class Rows(NamedTuple):
    """Examples of all splits, one after another."""

    x: np.ndarray  # [N, ...]; sequences are padded with zeros to the longest one
    length: np.ndarray | None  # [N], or None where examples are no sequences
    split: np.ndarray  # name of each row's split, [N]; empty where the rows are not split yet


def from_arrays(
    x: Any,
    label: Any = None,
    length: Any = None,
    *,
    name: str = "arrays",
    kind: Kind = "auto",
    levels: int = 0,
    missing: Missing = "keep",
    series: bool = False,
    sequence_length: int = 200,
    columns: Sequence[str] = (),
    words: Sequence[str] = (),
    labels: Sequence[str] = (),
    symbols: str | Sequence[str] = "",
    format: Format | None = None,
    log_prob: LogProb | None = None,
) -> Dataset:
    """Return a data set of arrays, with three splits.

    **Forms of x.** Rows [N, D]; images [N, H, W] or [N, H, W, C]; sequences [N, T] or [N, T, D]
    with `length`, or a list of sequences of different lengths; sequences [N, T, D] of one length
    with `series`, since arrays [N, H, W] are images without it; a text or a list of texts; one
    series [T]; a data frame, whose columns of text become indicators `column=value`. A dict with
    `"train"` and optionally `"validation"` and `"test"` holds the caller's own splits, and so do
    then `label` and `length`.

    **Kinds.** Only 0 and 1 (or 0 and 255) are binary. Texts are symbols, and so are integers of
    sequences if all of 0 … K − 1 occur; other integers of sequences are counts. Integers 0 … 255 of
    images, and of rows with at least 16 columns, are levels: 256 of them if one is above 63. Larger
    integers of such rows are counts. Floats of images and of such rows that are equally spaced in
    [0, 1] are levels, too. All else is continuous.

    **Splits.** 80/10/10 of the distinct rows, in the order of their SHA-256 sums: equal rows are
    always in one split. A series or a single text is cut into three contiguous parts.

    **Continuous values.** Columns of rows are standardised by the training split, without missing
    values; constant columns and columns of 0 and 1 stay as they are. Images outside of [0, 1] are
    scaled to it by their smallest and largest value, images of 16 bits (uint16) by 65535. Sequences
    stay as they are.

    Args:
      x: examples, in one of the forms above.
      label: classes of the examples [N], integers or texts; or the name of a column of the frame.
      length: numbers of steps of padded sequences, [N].
      name: name of the data set, for messages.
      kind: kind of the values, in place of the one that is found.
      levels: number of levels or symbols, in place of the one that is found. Where no kind is
        given, x are then symbols in sequences of integers, and levels elsewhere.
      missing: treatment of missing values; `mean` is for columns of continuous values.
      series: x [T] or [T, D] are the steps of one series, or [N, T, D] are N sequences of T steps.
        A vector [T] always is a series.
      sequence_length: steps of the sequences that a series is cut into.
      columns: columns of a data frame to take (default: all but the labels).
      words: names of the variables.
      labels: names of the classes 0, 1, … of integer labels, which then are 0 … len(labels) − 1.
      symbols: letters or words that integers stand for.
      format: format of x. With it x is stored unchanged: no kind is found, nothing is standardised.
      log_prob: log-density of the decoded x, if it is known.

    Raises:
      UserError: the arrays do not fit together, or not to the kind; there are too few rows.
    """
    if tables.is_frame(x):
        table = tables.of_frame(x, name, label if isinstance(label, str) else "", columns)
        x, words = table.x, table.words
        label = table.label if isinstance(label, str) else label
    elif isinstance(label, str):
        raise UserError(
            f"{name} is no data frame and has no column {label!r}: give the labels as an array"
        )
    elif columns:
        raise UserError(f"{name} is no data frame and has no names of columns: leave columns out")
    texts = _texts(x)
    if texts is not None:
        vocabulary = symbols or "".join(sorted(set().union(*texts)))
        x, symbols, kind = _encode(x, vocabulary, name), vocabulary, "symbols"
    rows = _gather(x, length, name, series, sequence_length)
    classes = _gather_label(label, rows, name)
    if missing == "drop" and rows.x.dtype.kind == "f":
        whole = ~np.isnan(rows.x).reshape(len(rows.x), -1).any(axis=1)
        length = None if rows.length is None else rows.length[whole]
        rows = Rows(rows.x[whole], length, rows.split[whole] if len(rows.split) else rows.split)
        if not len(rows.x):
            raise UserError(f"{name} has missing values in every row: fill them, or drop columns")
        classes = classes[whole] if classes is not None else None
    if format is None:
        rows, coded = _code(rows, kind, levels, name, tuple(words), symbols)
        order = _split(rows, name)
        columns_alone = rows.length is None and rows.x.ndim == 2
        if missing == "mean" and (coded.levels or coded.counts or not columns_alone):
            raise UserError(
                f"{name} has no continuous columns, which alone missing mean is for: give "
                "--missing drop"
            )
        if not coded.levels and not coded.counts:
            coded = _standardised(rows, order["train"], coded, missing, name)
    else:
        order, coded = _split(rows, name), format
    class_names = tuple(labels)
    if classes is not None:
        classes, class_names = _classes(classes, class_names or coded.labels, name)
    splits = []
    for split in SPLITS:
        arrays = {"x": rows.x[order[split]]}
        if rows.length is not None:
            arrays["length"] = rows.length[order[split]].astype(np.int32)
        if classes is not None:
            arrays["label"] = classes[order[split]]
        splits.append(arrays)
    coded = replace(coded, labels=class_names or coded.labels)
    train, validation, test = splits
    return Dataset(name, train, validation, test, coded, log_prob=log_prob)


def row_sums(x: np.ndarray, length: np.ndarray | None = None) -> list[str]:
    """Return the SHA-256 sum of each row of x, without the padding of sequences."""
    x = np.ascontiguousarray(x)
    if x.dtype.kind == "f":
        x = x + 0.0  # −0 equals 0
    steps = [None] * len(x) if length is None else length
    return [
        hashlib.sha256(row[:step].tobytes()).hexdigest() for row, step in zip(x, steps, strict=True)
    ]


def by_hash(sums: Sequence[str], held_out: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the row numbers of the training split and of splits that a tenth is held out for.

    The distinct rows are ranked by their SHA-256 sums, which looks random and depends on nothing
    but the rows. The last tenth of the ranks is the last split, the tenth before it the split
    before. Every row comes with all of its repeats, so no row is in two splits.

    Args:
      sums: SHA-256 sum of each row, [N].
      held_out: names of the other splits, such as validation and test.
    """
    ordered = sorted(set(sums))
    rank = np.searchsorted(ordered, list(sums))
    tenth = max(1, round(len(ordered) / 10))
    from_end = (len(ordered) - 1 - rank) // tenth
    chosen = {"train": np.flatnonzero(from_end >= len(held_out))}
    for place, split in enumerate(reversed(held_out)):
        chosen[split] = np.flatnonzero(from_end == place)
    return chosen


def _split(rows: Rows, name: str) -> dict[str, np.ndarray]:
    """Return the row numbers of each split: the rows' own, and by the hash those that lack."""
    given = {split: np.flatnonzero(rows.split == split) for split in SPLITS}
    if not len(rows.split):
        given["train"] = np.arange(len(rows.x))
    lacking = [split for split in SPLITS[1:] if not len(given[split])]
    if not lacking:
        return given
    train = given["train"]
    sums = row_sums(rows.x[train], None if rows.length is None else rows.length[train])
    if len(set(sums)) < len(lacking) + 1:
        raise UserError(
            f"{name} has {len(set(sums))} distinct rows, too few for {len(lacking) + 1} splits: "
            "give more rows, or the same arrays as three splits"
        )
    chosen = {split: train[part] for split, part in by_hash(sums, lacking).items()}
    return {**given, **chosen}


def _texts(x: Any) -> list[str] | None:
    """Return all texts of x, or None if x holds no texts."""
    parts = list(x.values()) if isinstance(x, Mapping) else [x]
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Sequence) and part and all(isinstance(each, str) for each in part):
            texts += part
        else:
            return None
    return texts


def _encode(x: Any, symbols: str | Sequence[str], name: str) -> Any:
    """Return texts as arrays of the positions of their letters among the symbols."""
    if isinstance(x, Mapping):
        return {split: _encode(part, symbols, name) for split, part in x.items()}
    if not isinstance(x, str):
        return [_encode(text, symbols, name) for text in x]
    position = {symbol: i for i, symbol in enumerate(symbols)}
    codes = np.frombuffer(x.encode("utf-32-le", "surrogatepass"), "<u4")
    different, index = np.unique(codes, return_inverse=True)
    letters = [chr(code) for code in different]
    if unknown := [letter for letter in letters if letter not in position]:
        raise UserError(f"{name} has the letter {unknown[0]!r}, which is not among the symbols")
    return np.array([position[letter] for letter in letters], np.int32)[index.reshape(-1)]


def _gather(x: Any, length: Any, name: str, series: bool, sequence_length: int) -> Rows:
    """Return the examples of all splits in one array."""
    if not isinstance(x, Mapping):
        return _rows_of(x, length, name, series, sequence_length)
    x = {split: part for split, part in x.items() if part is not None}
    if length is not None and not isinstance(length, Mapping):
        raise UserError(f"{name} has splits and lengths in one array: give the lengths by split")
    lengths = length or {}
    lists = [each for part in x.values() if isinstance(part, Sequence) for each in part]
    ragged = len({np.shape(each) for each in lists}) > 1
    if "train" not in x or not set(x) <= set(SPLITS):
        raise UserError(
            f"{name} has the splits {', '.join(map(str, x))}: name them train, validation and "
            "test, and give train at least"
        )
    if ragged and lengths:
        raise UserError(f"{name} has lists of sequences and has lengths: leave the lengths out")
    parts = []
    for split, part in x.items():
        if ragged:
            rows = pad_sequences([numbers(each, name) for each in part], name)
        else:
            title = f"{name}, {split}"
            rows = _rows_of(part, lengths.get(split), title, series, sequence_length, 1)
        parts.append(rows._replace(split=np.full(len(rows.x), split)))
    return _joined(parts, name)


def _rows_of(
    x: Any, length: Any, name: str, series: bool, sequence_length: int, splits: int = 3
) -> Rows:
    """Return one array of examples of x, which is in any form but a mapping.

    Args:
      x: an array, or a list of sequences.
      length: the numbers of steps, or None.
      name: the name of the data, for messages.
      series: x are the steps of one series, or sequences [N, T, D] of one length.
      sequence_length: steps of a sequence of a series.
      splits: 3 if a series is split into three parts, else 1.
    """
    no_splits = np.array([], "<U10")
    ragged = isinstance(x, Sequence) and len({np.shape(part) for part in x}) > 1
    if ragged or (isinstance(x, np.ndarray) and x.dtype == object):
        if length is not None:
            raise UserError(f"{name} is a list of sequences and has lengths: leave the lengths out")
        return _joined([pad_sequences([numbers(part, name) for part in x], name)], name)
    x = numbers(x, name)
    if x.ndim == 1 or (series and x.ndim == 2):
        if length is not None:
            raise UserError(f"{name} is one series and has lengths: leave the lengths out")
        return _cut(x, name, sequence_length, splits)
    if x.ndim == 0 or (series and x.ndim > 3):
        raise UserError(
            f"{name} has the shape {x.shape}: a series has the shape [T] or [T, D], and sequences "
            "have [N, T, D]"
        )
    if series and length is None:
        return Rows(x, np.full(len(x), x.shape[1], np.int32), no_splits)
    if length is None:
        return Rows(x, None, no_splits)
    length = np.asarray(length)
    fits = length.shape == (len(x),) and length.dtype.kind in "iuf"
    if not fits or not ((length >= 1) & (length <= x.shape[1])).all():
        raise UserError(
            f"{name} has lengths that do not fit: needed is an integer 1 … {x.shape[1]} for each "
            f"of the {len(x)} sequences"
        )
    length = length.astype(np.int32)
    within = np.arange(x.shape[1])[None] < length[:, None]
    padded = np.where(within.reshape(*within.shape, *[1] * (x.ndim - 2)), x, np.zeros((), x.dtype))
    return Rows(padded, length, no_splits)


def numbers(x: Any, name: str) -> np.ndarray:
    """Return x as an array of real numbers."""
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise UserError(f"{name} has rows of different shapes: give rows of one shape") from error
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name} has the dtype {array.dtype}: give numbers")
    if not array.size:
        raise UserError(f"{name} has no values: give at least one row")
    if array.dtype.kind == "f" and np.isinf(array).any():
        raise UserError(f"{name} has infinite values: remove them, or make them missing (NaN)")
    return array


def _cut(x: np.ndarray, name: str, sequence_length: int, splits: int) -> Rows:
    """Return a series as sequences, of three contiguous parts if it is not split yet."""
    if len(x) < splits:
        raise UserError(f"{name} is a series of {len(x)} steps: needed are {splits} or more")
    if sequence_length < 1:
        raise UserError(f"the sequence length is {sequence_length}, must be positive")
    if splits == 1:
        parts = {"train": x}
    else:
        held_out = max(1, round(len(x) / 10))
        ends = [len(x) - 2 * held_out, len(x) - held_out]
        parts = dict(zip(SPLITS, np.split(x, ends), strict=True))
    rows = []
    for split, part in parts.items():
        pieces = [part[i : i + sequence_length] for i in range(0, len(part), sequence_length)]
        padded = pad_sequences(pieces, name)
        rows.append(padded._replace(split=np.full(len(pieces), split)))
    return _joined(rows, name)


def pad_sequences(sequences: Sequence[np.ndarray], name: str) -> Rows:
    """Return sequences [T_n, ...] padded with zeros to the longest one."""
    shapes = {sequence.shape[1:] for sequence in sequences}
    if len(shapes) > 1 or any(not sequence.ndim for sequence in sequences):
        raise UserError(f"{name} has sequences of different numbers of variables")
    length = np.array([len(sequence) for sequence in sequences], np.int32)
    dtype = np.result_type(*sequences)
    x = np.zeros((len(sequences), int(length.max()), *shapes.pop()), dtype)
    for row, sequence in zip(x, sequences, strict=True):
        row[: len(sequence)] = sequence
    return Rows(x, length, np.array([], "<U10"))


def _joined(parts: Sequence[Rows], name: str) -> Rows:
    """Return the rows of all parts, sequences padded to the longest one of all."""
    longest = max(part.x.shape[1] for part in parts)
    if len({part.length is None for part in parts}) > 1:
        raise UserError(f"{name} has lengths in some of its splits: give them for all, or for none")
    if parts[0].length is None:
        if len({part.x.shape[1:] for part in parts}) > 1:
            shapes = ", ".join(str(part.x.shape[1:]) for part in parts)
            raise UserError(f"{name} has splits of different shapes: {shapes}")
        x = np.concatenate([part.x for part in parts])
        return Rows(x, None, np.concatenate([part.split for part in parts]))
    if len({part.x.shape[2:] for part in parts}) > 1:
        raise UserError(f"{name} has splits with different numbers of variables")
    x = np.concatenate(
        [
            np.pad(part.x, [(0, 0), (0, longest - part.x.shape[1]), *[(0, 0)] * (part.x.ndim - 2)])
            for part in parts
        ]
    )
    length = np.concatenate([part.length for part in parts if part.length is not None])
    return Rows(x, length, np.concatenate([part.split for part in parts]))


def _gather_label(label: Any, rows: Rows, name: str) -> np.ndarray | None:
    """Return the labels of all splits in one array, as many as there are rows."""
    if label is None:
        return None
    if isinstance(label, Mapping):
        present = list(dict.fromkeys(rows.split.tolist()))
        if not present:
            raise UserError(f"{name} has labels by split and one array x: split both, or neither")
        if lacking := [split for split in present if label.get(split) is None]:
            raise UserError(f"{name} has no labels for {lacking[0]}: give them for all splits")
        label = np.concatenate([_label_array(label[split]).reshape(-1) for split in present])
    label = _label_array(label)
    label = label.reshape(-1) if label.size == len(label) else label  # [N, 1]
    if label.shape != (len(rows.x),):
        count = f"{label.shape[0]} labels" if label.ndim == 1 else f"labels {list(label.shape)}"
        raise UserError(f"{name} has {count} and {len(rows.x)} rows: give one label for each row")
    return label


def _label_array(label: Any) -> np.ndarray:
    """Return labels as an array; texts among missing ones (None, NaN) stay Python objects."""
    texts = isinstance(label, Sequence) and any(isinstance(each, str) for each in label)
    return np.asarray(label, object if texts else None)


def _classes(
    label: np.ndarray, labels: tuple[str, ...], name: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels as classes 0 … K − 1, int32, and their names unless they are their numbers.

    Args:
      label: integers or texts, [N].
      labels: names of the classes 0 … K − 1, or empty for the classes that occur.
      name: the name of the data, for messages.
    """
    if label.dtype.kind == "f":
        if np.isnan(label).any():
            row = int(np.flatnonzero(np.isnan(label))[0])
            raise UserError(f"{name} has no label in row {row + 1}: give each row one")
        if (label != np.round(label)).any():
            raise UserError(f"{name} has labels that are no integers: give classes, or no labels")
        label = label.astype(np.int64)
    if label.dtype.kind in "OUS":
        label = tables.as_texts(label)
        if (label == "").any():
            row = int(np.flatnonzero(label == "")[0])
            raise UserError(f"{name} has no label in row {row + 1}: give each row one")
    values, index = np.unique(label, return_inverse=True)
    if labels:
        whole = label.dtype.kind in "iub"
        wrong = [each for each in values.tolist() if not (whole and 0 <= each < len(labels))]
        if wrong:
            raise UserError(
                f"{name} has the label {wrong[0]!r} and {len(labels)} names of classes: give "
                f"integers 0 … {len(labels) - 1}"
            )
        return label.astype(np.int32), labels
    if len(values) > MOST_CLASSES:
        raise UserError(f"{name} has {len(values)} different labels: give at most {MOST_CLASSES}")
    if label.dtype.kind in "iub" and np.array_equal(values, np.arange(len(values))):
        return label.astype(np.int32), ()
    return index.reshape(-1).astype(np.int32), tuple(map(str, values.tolist()))


def _code(
    rows: Rows,
    kind: Kind,
    levels: int,
    name: str,
    words: tuple[str, ...],
    symbols: str | Sequence[str],
) -> tuple[Rows, Format]:
    """Return the rows as they are stored, and their format without its scale."""
    x, sequences = rows.x, rows.length is not None
    seen = _seen(rows)
    finite = seen[~np.isnan(seen)] if seen.dtype.kind == "f" else seen
    if not finite.size:
        raise UserError(f"{name} has missing values alone: give numbers")
    if kind == "auto":
        kind, found = _kind_of(x, finite, sequences)
        if levels and levels != found:
            kind = "symbols" if sequences and x.ndim == 2 else "levels"
        levels = levels or found
    elif levels and (kind in ("counts", "continuous") or (kind == "binary" and levels != 2)):
        raise UserError(f"{name} has {levels} levels and the kind {kind}: leave one of them out")
    elif kind in ("levels", "symbols"):
        levels = levels or (
            _number_of_levels(finite) if kind == "levels" else int(finite.max()) + 1
        )
    low, high = float(finite.min()), float(finite.max())
    whole, image = _whole(finite), not sequences and x.ndim > 2
    named: Any = {"words": words}
    if kind == "binary":
        top = 255 if high == 255 else 1
        if not np.isin(finite, (0, top)).all():
            raise UserError(
                f"{name} has other values than 0 and 1, {span(finite)}: give another --kind, or "
                "binarise it with --binarize"
            )
        x, format = _stored(x, top), Format(top, levels=2, **named)
    elif kind in ("levels", "symbols"):
        if not whole and kind == "levels" and low >= 0 and high <= 1 and levels > 1:
            x, whole, high = np.round(x * (levels - 1)), True, levels - 1
        if not whole or low < 0 or high >= levels:
            raise UserError(
                f"{name} has values {span(finite)}, which are no {kind}: needed are integers "
                f"0 … {max(levels - 1, 1)}"
            )
        peak = max(levels - 1, 1)
        x = _stored(x, peak)
        spelled = symbols if isinstance(symbols, str) else tuple(symbols)
        format = Format(peak, symbols=spelled if kind == "symbols" else "", **named)
    elif kind == "counts":
        if not whole or low < 0:
            raise UserError(f"{name} has values {span(finite)}, which are no counts 0, 1, 2, …")
        x, format = _stored(x, int(high)), Format(counts=True, **named)
    elif image and x.dtype == np.uint16:
        format = Format(65_535, levels=0, **named)
    else:
        x, format = x.astype(np.float32), Format(levels=0, **named)
    one_channel = image and x.ndim == 3
    if one_channel or (sequences and x.ndim == 2 and kind not in ("symbols", "levels")):
        x = x[..., None]
    return Rows(x, rows.length, rows.split), format


def _seen(rows: Rows) -> np.ndarray:
    """Return the values without padding, [V]."""
    if rows.length is None:
        return rows.x.reshape(-1)
    return rows.x[np.arange(rows.x.shape[1])[None] < rows.length[:, None]].reshape(-1)


def _whole(values: np.ndarray) -> bool:
    """Return whether all values are integers of 32 bits."""
    if values.dtype.kind in "bu" and values.dtype.itemsize < 4:
        return True
    return bool((values == np.round(values)).all() and np.abs(values).max() < 2**31)


def _kind_of(x: np.ndarray, values: np.ndarray, sequences: bool) -> tuple[Kind, int]:
    """Return the kind that the values have, and their number of levels.

    Args:
      x: examples, [N, ...].
      values: the values without missing ones and padding, [V].
      sequences: the examples are sequences.
    """
    low, high = float(values.min()), float(values.max())
    table = x.ndim == 2 and not sequences
    if not _whole(values):
        one_scale = not sequences and (x.ndim > 2 or x.shape[1] >= COLUMNS_OF_ONE_SCALE)
        if one_scale and low >= 0 and high <= 1:
            if np.abs(values * 255 - np.round(values * 255)).max() < 1e-3:
                return "levels", 256
            levels = infer_levels(values)
            if levels > 2 and low == 0 and high == 1:
                return "levels", levels
        return "continuous", 0
    if high <= 1 and low >= 0:
        return "binary", 2
    if x.dtype == np.uint8 and np.isin(values, (0, 255)).all():
        return "binary", 2
    if low < 0 or (x.dtype == np.uint16 and x.ndim > 2 and not sequences):
        return "continuous", 0
    if sequences:
        every = high < MOST_SYMBOLS and len(np.unique(values)) == high + 1
        return ("symbols", int(high) + 1) if every and x.ndim == 2 else ("counts", 0)
    if table and x.shape[1] < COLUMNS_OF_ONE_SCALE:
        return "continuous", 0
    if high <= 255:
        return "levels", _number_of_levels(values)
    return ("counts", 0) if table else ("continuous", 0)


def _number_of_levels(values: np.ndarray) -> int:
    """Return 1 + the largest integer, 256 for bytes above 63, or the levels of floats in [0, 1]."""
    high = float(values.max())
    if not _whole(values):
        return infer_levels(values) or 256
    return 256 if 63 < high <= 255 else int(high) + 1


def _stored(x: np.ndarray, peak: int) -> np.ndarray:
    """Return integers in the smallest type that holds them, or floats if values are missing."""
    if x.dtype.kind == "f" and np.isnan(x).any():
        return x.astype(np.float32)
    if peak <= 255:
        return x.astype(np.uint8)
    return x.astype(np.uint16 if peak <= 65_535 else np.int32)


def _standardised(
    rows: Rows, train: np.ndarray, format: Format, missing: Missing, name: str
) -> Format:
    """Return the format of continuous values with its center and scale.

    Missing values are replaced in place by the training means if `missing` is mean.
    """
    x = rows.x
    if rows.length is not None or format.peak > 1:
        return format
    if x.ndim > 2:
        low, high = float(np.nanmin(x)), float(np.nanmax(x))
        if (low >= 0 and high <= 1) or low == high:
            return format
        return replace(format, center=(low,), scale=(high - low,))
    columns = x[train].astype(np.float64)
    empty = np.isnan(columns).all(axis=0)
    if empty.any():
        column = int(np.flatnonzero(empty)[0])
        title = format.words[column] if format.words else str(column + 1)
        raise UserError(f"{name}: column {title} has no values: leave it out")
    center, scale = np.nanmean(columns, axis=0), np.nanstd(columns, axis=0)
    if missing == "mean":
        np.copyto(x, center.astype(np.float32)[None], where=np.isnan(x))
    fine = (scale > 0) & (scale < FINEST * np.abs(center))
    if fine.any():
        column = int(np.flatnonzero(fine)[0])
        title = format.words[column] if format.words else str(column + 1)
        raise UserError(
            f"{name}: column {title} varies by {scale[column]:.2g} around {center[column]:g}, "
            "which 32 bits do not resolve: subtract a constant first"
        )
    indicator = (np.isnan(columns) | (columns == 0) | (columns == 1)).all(axis=0)
    center = np.where(indicator, 0.0, center)
    scale = np.where(indicator | (scale == 0), 1.0, scale)
    return replace(format, center=tuple(center.tolist()), scale=tuple(scale.tolist()))


def log_scale(dataset: Dataset) -> float:
    """Return Σ log scale over the variables of an example, in nats.

    A density of standardised x plus this is one of x in its own units: for y = (x − c) / s,
    −log p(x) = −log p(y) + Σ log s.
    """
    if not dataset.format.scale:
        return 0.0
    repeats = math.prod(dataset.shape) / len(dataset.format.scale)
    return repeats * float(np.sum(np.log(dataset.format.scale)))
