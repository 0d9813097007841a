"""Keep decoded arrays and downloads in the user's cache folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gen.data.dataset import Arrays, arrays_sha256


def cache_folder() -> Path:
    """Return `gen` in the environment variable `XDG_CACHE_HOME`, else in `~/.cache`.

    Raises:
      OSError: there is no home folder.
    """
    return expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gen"


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return the path with the home folder in place of `~`.

    Raises:
      OSError: there is no home folder, as for a user of a container that has no name there.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OSError(
            f"there is no home folder for {path}: set HOME, or TFDS_DATA_DIR and XDG_CACHE_HOME"
        ) from error


def read_cache(name: str) -> Mapping[str, Arrays] | None:
    """Return the splits cached under a name, or None if they are absent or damaged."""
    try:
        folder = cache_folder() / name
        splits: dict[str, dict[str, np.ndarray]] = {}
        for path in sorted(folder.glob("*.npy")):
            split, array = path.stem.split("-")
            splits.setdefault(split, {})[array] = np.load(path)
        expected = json.loads((folder / "sha256.json").read_text())
    except Exception:  # a damaged file raises errors of many kinds
        return None
    return splits if arrays_sha256(splits) == expected else None


def write_cache(name: str, splits: Mapping[str, Arrays]) -> None:
    """Store the splits under a name, one file for each array, and their SHA-256 beside them.

    The files are written to a temporary folder, which is then renamed: an interrupted write leaves
    no entry. If the disk refuses to store them or there is no home folder, the next `load` decodes
    again, which is slower but no error.
    """
    with contextlib.suppress(OSError):
        folder = cache_folder() / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix="part-"))
        try:
            for split, arrays in splits.items():
                for name, values in arrays.items():
                    np.save(part / f"{split}-{name}.npy", values)
            (part / "sha256.json").write_text(json.dumps(arrays_sha256(splits)))
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
