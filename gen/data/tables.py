"""Read tables: comma- or tab-separated files, and data frames."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gen.core import UserError

MISSING = ("", "?", "na", "n/a", "nan", "null", "none")
"""texts of a cell, in lower case, that stand for a missing value"""
MISSING_LABELS = ("", "?")
"""texts of a cell of the label column that stand for a missing label"""
MOST_CATEGORIES = 50
"""largest number of different texts in a column of categories"""
MOSTLY_NUMBERS = 0.9
"""share of numbers from which a text in a column is an error, and no category"""
LINES_AT_ONCE = 20_000
"""lines that are converted to numbers at a time"""
LONGEST_CELL = 1_000
"""letters of the longest cell"""


class Table(NamedTuple):
    """The variables of a table as numbers."""

    x: np.ndarray  # [N, D]: float64, or uint8 where all variables are 0 or 1
    words: tuple[str, ...]  # names of the variables; an indicator is called `column=value`
    label: np.ndarray | None  # the cells of the label column, [N], numbers or texts


def is_frame(x: Any) -> bool:
    """Return whether x is a data frame, as pandas has them: named columns, and `to_numpy`."""
    return hasattr(x, "columns") and hasattr(x, "to_numpy")


def of_frame(frame: Any, name: str, label_column: str = "", chosen: Sequence[str] = ()) -> Table:
    """Return the table of a data frame.

    Args:
      frame: a data frame; `frame[column].to_numpy()` is a column.
      name: its name, for messages.
      label_column: the column of the labels, or empty.
      chosen: the columns to take, or empty for all but the labels.
    """
    titles = [str(title) for title in frame.columns]
    _check_titles(titles, name)
    columns = {}
    for title in frame.columns:
        cells = frame[title].to_numpy()
        columns[str(title)] = cells if cells.dtype.kind in "biuf" else as_texts(cells)
    return of_columns(columns, name, label_column, chosen)


def of_columns(
    columns: Mapping[str, np.ndarray],
    name: str,
    label_column: str = "",
    chosen: Sequence[str] = (),
    lines: Sequence[int] = (),
) -> Table:
    """Return the table of columns: numbers as they are, texts as indicators of their values.

    Every value of a column of texts gets a variable `column=value`, which is 1 in the rows that
    have it. A missing text is a value of its own, `column=?`.

    Args:
      columns: arrays [N] by name, of numbers with NaN for missing ones, or of texts.
      name: the name of the table, for messages.
      label_column: the column of the labels, or empty.
      chosen: the columns to take, or empty for all but the labels.
      lines: the number of the line of each row, for messages (default: 1, 2, …).
    """
    for title in (*chosen, *([label_column] if label_column else [])):
        if title not in columns:
            shown = ", ".join([*columns][:20]) + (", …" if len(columns) > 20 else "")
            raise UserError(f"{name} has no column {title!r}: its columns are {shown}")
    taken = list(chosen) or [title for title in columns if title != label_column]
    parts, words = [], []
    for title in taken:
        cells = columns[title]
        if cells.dtype.kind == "U":
            cells = _numbers_or_texts(cells, title, name, lines)
        if cells.dtype.kind != "U":
            parts.append(np.asarray(cells, np.float64)[:, None])
            words.append(title)
            continue
        cells = np.where(_is_missing(cells), "?", cells)
        values = np.unique(cells)
        if len(values) > MOST_CATEGORIES:
            raise UserError(
                f"{name}: column {title} has {len(values)} different texts, more than "
                f"{MOST_CATEGORIES} categories: name the columns to take with --columns"
            )
        parts.append((cells[:, None] == values[None]).astype(np.float64))
        words += [f"{title}={value}" for value in values]
    if not parts:
        raise UserError(f"{name} has no columns but its labels")
    x = np.concatenate(parts, axis=1)
    if ((x == 0) | (x == 1)).all():
        x = x.astype(np.uint8)
    label = columns[label_column] if label_column else None
    if label is not None and label.dtype.kind == "U":
        absent = np.flatnonzero(np.isin(label, MISSING_LABELS))
        if absent.size:
            line = _line(lines, int(absent[0]))
            raise UserError(f"{name}, line {line}, has no label in column {label_column}")
        if not _is_missing(label).any() and (numbers := _floats(label)) is not None:
            label = numbers
    return Table(x, tuple(words), label)


def read_csv(
    path: Path, label_column: str = "", chosen: Sequence[str] = (), strict: bool = True
) -> Table:
    """Return the table of a file of comma-, semicolon- or tab-separated values, in UTF-8.

    The first line is a header if it has no number, and no cell that stands again in its column.
    Without a header the columns are called 1, 2, ….

    Args:
      path: the file.
      label_column: the column of the labels, or empty.
      chosen: the columns to take, or empty for all but the labels.
      strict: whether a file without the column of the labels, or without a chosen one, is refused;
        otherwise it has no labels, or fewer columns.

    Raises:
      UserError: the file is no table, has lines of different numbers of cells, a cell that is too
        long, or a text in a column of numbers.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
    separators = "\t" if path.suffix.lower() == ".tsv" else ",;\t"
    delimiter = max(separators, key=first.count)
    titles: list[str] = []
    chunks: list[list[np.ndarray]] = []
    lines: list[int] = []
    for starts, rows in _chunks(path, delimiter):
        if not titles:
            width = len(rows[0])
            head = len(rows) > 1 and _is_header(rows)
            titles = [cell.strip() for cell in rows[0]] if head else []
            titles = titles or [str(column + 1) for column in range(width)]
            _check_titles(titles, str(path))
            chunks = [[] for _ in titles]
            starts, rows = starts[head:], rows[head:]
        lines += starts
        for line, row in zip(starts, rows, strict=True):
            if len(row) != len(titles):
                raise UserError(
                    f"{path}, line {line}, has {len(row)} cells and the first line {len(titles)}: "
                    "give each line as many"
                )
        for title, column, cells in zip(titles, chunks, zip(*rows, strict=True), strict=False):
            if chosen and title not in (*chosen, label_column):
                continue
            if max(map(len, cells)) > LONGEST_CELL:
                row = next(i for i, cell in enumerate(cells) if len(cell) > LONGEST_CELL)
                raise UserError(
                    f"{path}, line {starts[row]}, column {title}, has more than {LONGEST_CELL:,} "
                    "letters: name the columns to take with --columns"
                )
            column.append(np.char.strip(np.array(cells)))
    if not lines:
        raise UserError(f"{path} has no rows of values")
    columns = {
        title: _joined(parts, texts=title == label_column)
        for title, parts in zip(titles, chunks, strict=True)
    }
    if not strict:
        label_column = label_column if label_column in columns else ""
        chosen = [title for title in chosen if title in columns]
    return of_columns(columns, str(path), label_column, chosen, lines)


def _chunks(path: Path, delimiter: str) -> Iterator[tuple[list[int], list[list[str]]]]:
    """Yield the cells of some rows at a time, and the number of the line that each row begins in.

    Empty lines are left out. A cell in quotes can hold breaks of lines.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        starts: list[int] = []
        rows: list[list[str]] = []
        start = 1
        reader = csv.reader(file, delimiter=delimiter)
        try:
            for row in reader:
                if row:
                    starts.append(start)
                    rows.append(row)
                start = reader.line_num + 1
                if len(rows) == LINES_AT_ONCE:
                    yield starts, rows
                    starts, rows = [], []
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}") from error
        if rows:
            yield starts, rows


def _check_titles(titles: Sequence[str], name: str) -> None:
    """Raise `UserError` if two columns have the same name."""
    if len(set(titles)) < len(titles):
        double = next(title for title in titles if titles.count(title) > 1)
        raise UserError(f"{name} has two columns {double!r}: rename one")


def _line(lines: Sequence[int], row: int) -> int:
    """Return the number of the line of a row, which is counted from 0."""
    return lines[row] if len(lines) else row + 1


def _is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the first row names the columns."""
    below = [set(column) for column in zip(*rows[1:1000], strict=False)]
    names = [cell.strip() for cell in rows[0]]
    no_numbers = _floats(np.array([name for name in names if name] or [""])) is None
    alone = not any(_floats(np.array([name])) is not None and name for name in names)
    again = any(name in column for name, column in zip(names, below, strict=False))
    return no_numbers and alone and not again


def _joined(parts: Sequence[np.ndarray], texts: bool) -> np.ndarray:
    """Return a column of texts as numbers, or as it is if any part of it has other texts.

    Args:
      parts: texts of some rows at a time; none of a column that is not taken.
      texts: keep the texts of numbers, too.
    """
    numbers = []
    for part in parts:
        converted = None if texts else _floats(part)
        if converted is None:
            return np.concatenate(parts)
        numbers.append(converted)
    return np.concatenate(numbers) if numbers else np.array([])


def _numbers_or_texts(cells: np.ndarray, title: str, name: str, lines: Sequence[int]) -> np.ndarray:
    """Return a column of texts as numbers if it has no other text than missing values.

    Raises:
      UserError: most cells are numbers and some are texts.
    """
    numbers = _floats(cells)
    if numbers is not None:
        return numbers
    seen = np.flatnonzero(~_is_missing(cells))
    numeric = np.array([_floats(cells[i : i + 1]) is not None for i in seen])
    if numeric.mean() >= MOSTLY_NUMBERS:
        row = int(seen[~numeric][0])
        raise UserError(
            f"{name}, line {_line(lines, row)}, column {title}: {str(cells[row])!r} is no number "
            "as the other cells are: mend it, or name the columns to take with --columns"
        )
    return cells


def _floats(cells: np.ndarray) -> np.ndarray | None:
    """Return texts as float64 with NaN for missing ones, or None if one is no number."""
    try:
        return np.where(_is_missing(cells), "nan", cells).astype(np.float64)
    except ValueError:
        return None


def _is_missing(cells: np.ndarray) -> np.ndarray:
    """Return which texts stand for a missing value."""
    return np.isin(np.char.lower(cells), MISSING)


def as_texts(cells: np.ndarray) -> np.ndarray:
    """Return objects as texts, with an empty text for a missing one (None, NaN, NaT, NA)."""
    texts = []
    for cell in cells.tolist():
        text = cell.decode() if isinstance(cell, bytes) else str(cell)
        missing = not isinstance(cell, str) and text in ("nan", "<NA>", "NaT", "None")
        texts.append("" if missing else text)
    return np.array(texts)
