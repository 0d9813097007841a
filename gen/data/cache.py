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
    """Return `gen` in the environment variable `XDG_CACHE_HOME`, else in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "gen"


def read_cache(folder: Path) -> Mapping[str, Arrays] | None:
    """Return the splits cached in `folder`, or None if they are absent or damaged."""
    try:
        splits: dict[str, dict[str, np.ndarray]] = {}
        for path in sorted(folder.glob("*.npy")):
            split, name = path.stem.split("-")
            splits.setdefault(split, {})[name] = np.load(path)
        expected = json.loads((folder / "sha256.json").read_text())
    except (OSError, ValueError, EOFError):
        return None
    return splits if arrays_sha256(splits) == expected else None


def write_cache(folder: Path, splits: Mapping[str, Arrays]) -> None:
    """Store the splits in `folder`, one file for each array, and their SHA-256 beside them.

    The files are written to a temporary folder, which is then renamed: an interrupted write leaves
    no entry. If the disk refuses to store them, the next `load` decodes again, which is slower but
    no error.
    """
    with contextlib.suppress(OSError):
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
