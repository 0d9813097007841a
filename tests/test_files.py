"""Files that are written as a whole: on a full disk, through links and by several processes."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import folder as files
from experiments.pictures import save_array
from gen import weights
from gen.checkpoint import open_checkpoints
from gen.core import UserError
from gen.files import delete_leftovers, replacing, temporary

NOBODY = 999_999_999
"""A process id above the largest that Linux gives."""
# Random bytes cannot be compressed, so they take the disk space that they take in memory.
TREE = {"a": jnp.asarray(np.frombuffer(np.random.RandomState(0).bytes(20_000), np.uint32))}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes, which stands for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_array(np.zeros(10_000), path),
        lambda path: weights.save(path, TREE, "name", 1),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path, write):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UserError, match=r"file cannot be written .*: make room"), full_disk(1_000):
        write(path)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


def test_a_checkpoint_on_a_full_disk_is_an_error_of_one_line(tmp_path, capfd):
    folder = tmp_path / "checkpoints"
    with (
        pytest.raises(UserError, match=r"no checkpoint .* \(File too large\): make room"),
        full_disk(10_000),
        open_checkpoints(folder) as checkpoints,
    ):
        checkpoints.save(10, TREE, {})
    assert capfd.readouterr().err == ""
    with open_checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.restore(jax.eval_shape(lambda: TREE)) is None


def test_every_file_has_the_usual_mode(tmp_path):
    before = os.umask(0o027)
    try:
        with files.hold(tmp_path), open_checkpoints(tmp_path / "checkpoints") as checkpoints:
            weights.save(tmp_path / "weights.safetensors", TREE, "name", 1)
            save_array(np.zeros(3), tmp_path / "samples" / "samples.npy")
            files.write_json(tmp_path / "config.json", {})
            checkpoints.save(10, TREE, {})
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


def test_two_processes_write_to_different_temporary_files(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    with replacing(path) as first:
        first.write(b"first")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: NOBODY)
            with replacing(path) as second:
                second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_file_of_an_earlier_process_of_the_same_id_is_replaced(tmp_path):
    path = tmp_path / "config.json"
    temporary(path).write_text("longer than the content")
    files.write_text(path, "content")
    assert path.read_text() == "content"
    assert list(tmp_path.iterdir()) == [path]


def test_only_temporary_files_of_ended_processes_are_deleted(tmp_path):
    mine = temporary(tmp_path / "config.json").name
    kept = {mine, "config.json", "film.part", "film.1999.part", f"a.gen-elsewhere-{NOBODY}.part"}
    for name in (*kept, mine.replace(str(os.getpid()), str(NOBODY))):
        (tmp_path / name).write_text("")
    delete_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept
    delete_leftovers(tmp_path / "nowhere")


def test_writes_never_follow_links(tmp_path):
    mine, folder = tmp_path / "thesis.txt", tmp_path / "run"
    mine.write_text("mine")
    folder.mkdir()
    for name in ("metrics.jsonl", temporary(folder / "metrics.jsonl").name, "lock"):
        (folder / name).symlink_to(mine)
    with files.open_log(folder, [], "none") as log:
        log(1, {"loss": np.array(2.0)})
    assert (folder / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'
    with pytest.raises(UserError, match="cannot be written"), files.hold(folder):
        pass
    assert mine.read_text() == "mine"
