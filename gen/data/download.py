"""Find a published file on this machine, or download it, under its SHA-256 sum."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from gen.core import UserError
from gen.data.cache import cache_folder, expand_user


class File(NamedTuple):
    """Describe a published file."""

    name: str
    """name of the file in `GEN_DATA_DIR` and in the cache, with a folder where it is in one"""
    url: str
    """address to download it from"""
    sha256: str
    """SHA-256 sum of its content, in hexadecimal"""


def fetch(name: str, url: str, sha256: str) -> Path:
    """Return the path of a published file whose SHA-256 is right.

    The file is taken from the folder `GEN_DATA_DIR` if it is there, else from the cache, else it is
    downloaded into the cache.

    Args:
      name: name of the file in `GEN_DATA_DIR` and in the cache.
      url: address to download it from.
      sha256: SHA-256 sum of its content, in hexadecimal.

    Raises:
      UserError: the file has another SHA-256, or it cannot be downloaded.
    """
    with warnings.catch_warnings():
        # pooch loads tqdm, which asks for ipywidgets in a notebook without them.
        warnings.filterwarnings("ignore", "IProgress not found")
        import pooch

    folder = os.environ.get("GEN_DATA_DIR")
    if folder and (local := expand_user(folder) / name).is_file():
        if pooch.file_hash(str(local)) != sha256:
            raise UserError(f"{local} is damaged (its SHA-256 is not {sha256}): replace it")
        return local
    pooch.get_logger().setLevel(logging.ERROR)
    downloader: Any = pooch.HTTPDownloader(timeout=10)
    try:
        cache = cache_folder() / name
        return Path(pooch.retrieve(url, sha256, cache.name, cache.parent, downloader=downloader))
    except Exception as error:
        raise UserError(
            f"{name} is not in GEN_DATA_DIR and could not be downloaded from {url} "
            f"({first_line(error)}): put the file into that folder, or run once with a network"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first 300 characters of an error's first line, or its type if it has no text."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
