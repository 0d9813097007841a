"""Write files as a whole: a reader finds the old content or the new content, never a part."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from gen.core import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `UserError`, which says what to do, in place of an `OSError` of the body."""
    try:
        yield
    except BrokenPipeError:  # standard output was closed
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be written ({error.strerror or error}): make room or "
            "give permission to write there, then repeat the command"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of `path` when the body has written all of it.

    Until then the file is called `NAME.gen-HOST-PROCESS.part` (`temporary`), so that two processes
    never write to the same file. A symbolic link is replaced, and the file to which it points stays
    as it is.

    Raises:
      UserError: the file cannot be written. `path` is unchanged then.
    """
    part = temporary(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # a killed process of the same id left it
        try:
            with part.open("xb") as file:  # x: never through a link
                yield file
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def read_json(path: Path, *needed: str) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is no such file.

    Args:
      path: the file.
      *needed: keys that the object must have.

    Raises:
      UserError: the file is damaged or lacks a key.
    """
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    absent = needed if not isinstance(value, dict) else [key for key in needed if key not in value]
    if absent or not isinstance(value, dict):
        raise damaged(path, f"it lacks {', '.join(absent)}")
    return value


def json_sum(value: Any) -> str:
    """Return the SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def damaged(path: Path, reason: object) -> UserError:
    """Return the error that a file of a run folder is damaged."""
    return UserError(f"{path} is damaged ({reason}): restore it or use another run")


def temporary(path: Path) -> Path:
    """Return the path of the file that this process writes before it takes the place of `path`."""
    return path.with_name(f"{path.name}.gen-{socket.gethostname()}-{os.getpid()}.part")


def delete_leftovers(folder: Path) -> None:
    """Delete the temporary files in a folder that `replacing` left because its process was killed.

    Files of running processes and of other hosts stay, and so do files that cannot be deleted.
    """
    pattern = rf".+\.gen-{re.escape(socket.gethostname())}-(\d{{1,9}})\.part"
    for path in folder.glob("*.part"):
        name = re.fullmatch(pattern, path.name, re.DOTALL)
        if name and not _is_running(int(name[1])):
            with suppress(OSError):
                path.unlink()


def _is_running(process: int) -> bool:
    """Return whether this machine has a process of that id."""
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        return True
    return True
