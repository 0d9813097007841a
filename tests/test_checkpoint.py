"""Checkpoints that are damaged, emptied or incomplete are named and skipped."""

import gc
import shutil
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equal

from gen import checkpoint
from gen.checkpoint import open_checkpoints
from gen.core import UserError

# Random bytes cannot be compressed, so they stand in a file as they are in memory.
RANDOM = np.frombuffer(np.random.RandomState(0).bytes(20_000), np.uint32)
TREE = {"a": jnp.asarray(RANDOM), "b": (jnp.ones((3, 3)), jnp.int32(7))}
TARGET = jax.eval_shape(lambda: TREE)


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 10 and 20, the second with other values."""
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(10, TREE, {"note": "first"})
        checkpoints.save(20, jax.tree.map(lambda leaf: leaf + 1, TREE), {"note": "second"})
    return tmp_path / "checkpoints"


def restore(folder, target=TARGET, read_only=True) -> Any:
    with open_checkpoints(folder, read_only=read_only) as checkpoints:
        return checkpoints.restore(target)


def test_the_latest_checkpoint_is_restored(folder):
    restored = restore(folder)
    assert (restored.step, restored.info, restored.damaged) == (20, {"note": "second"}, {})
    assert equal(restored.tree, jax.tree.map(lambda leaf: leaf + 1, TREE))
    assert type(restored.tree["b"]) is tuple


def test_no_checkpoint_is_none(tmp_path):
    assert restore(tmp_path / "none", read_only=False) is None


def array_bytes(step):
    """Return the file that holds the array `a` of step 20 or of step 10, and where it begins."""
    array = RANDOM + np.uint32(step.name == "20")
    for path in (step / "tree").rglob("*"):
        if path.is_file() and (begin := path.read_bytes().find(array.tobytes())) >= 0:
            return path, begin
    raise AssertionError(f"the array's bytes stand in no file of {step}")


def flip_a_bit(step):
    path, begin = array_bytes(step)
    content = bytearray(path.read_bytes())
    content[begin + RANDOM.nbytes // 2] ^= 16
    path.write_bytes(content)


def truncate(step):
    path, begin = array_bytes(step)
    path.write_bytes(path.read_bytes()[: begin + RANDOM.nbytes // 2])


def empty(step):
    for child in step.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()


def lose_the_arrays(step):
    shutil.rmtree(step / "tree")


def lose_the_sums(step):
    shutil.rmtree(step / "meta")


def garble_the_sums(step):
    (path,) = (path for path in (step / "meta").rglob("metadata") if path.is_file())
    path.write_text(path.read_text().replace('"sha256"', '"sha257"'))


def change_the_info(step):
    (path,) = (path for path in (step / "meta").rglob("metadata") if path.is_file())
    path.write_text(path.read_text().replace("second", "third"))


DAMAGE = [flip_a_bit, truncate, empty, lose_the_arrays, lose_the_sums, garble_the_sums]
DAMAGE += [change_the_info]


REASONS = {
    flip_a_bit: "the SHA-256 of ['a'] differs",
    change_the_info: "the SHA-256 of its step and info differs",
    garble_the_sums: "it cannot be read (KeyError)",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_skipped(folder, damage):
    damage(folder / "20")
    restored = restore(folder)
    assert restored.step == 10
    assert equal(restored.tree, TREE)
    assert list(restored.damaged) == [20]
    reason = restored.damaged[20]
    assert reason == REASONS.get(damage, reason) != ""


def test_a_checkpoint_that_was_renamed_to_another_step_is_damaged(folder):
    (folder / "20").rename(folder / "30")
    restored = restore(folder)
    assert restored.step == 10
    assert restored.damaged == {30: REASONS[change_the_info]}


def test_a_folder_may_have_brackets_in_its_name(tmp_path):
    """Orbax takes them for a pattern, and stores nothing."""
    folder = tmp_path / "run[1]" / "checkpoints"
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(10, TREE, {})
    assert restore(folder).step == 10
    assert (folder / "10").is_dir()


def test_the_clock_may_be_set_a_year_forward_during_a_save(tmp_path, monkeypatch):
    now, jumps = time.time, []

    def forward():
        waiting = sys._getframe(1).f_code.co_name == "get_remaining_time"
        jumps.extend([waiting] * waiting)
        return now() + 365 * 86_400 * waiting

    monkeypatch.setattr(time, "time", forward)
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, TREE, {})
    assert jumps, "Orbax did not look at the clock"
    assert restore(tmp_path).step == 10


def test_a_damaged_checkpoint_is_moved_aside_so_that_its_step_can_be_saved_again(folder):
    flip_a_bit(folder / "20")
    with open_checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(TARGET)
        assert restored
        assert restored.step == 10
        checkpoints.save(20, TREE, {})
    assert len(list(folder.with_name("damaged").glob("20-*"))) == 1
    restored = restore(folder)
    assert (restored.step, restored.damaged) == (20, {})


def test_only_damaged_checkpoints_are_an_error(folder):
    for step in (10, 20):
        flip_a_bit(folder / str(step))
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(steps 20, 10\)"):
        restore(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"a": jax.ShapeDtypeStruct((5000,), jnp.float16)}, "a is uint32.* and float16"),
        (
            {"a": jax.ShapeDtypeStruct((7,), jnp.uint32)},
            r"a is uint32\[5000\] .* uint32\[7\] in the",
        ),
        (
            {"c": jax.ShapeDtypeStruct((), jnp.int32)},
            r"c is absent in the checkpoint and int32\[\] in",
        ),
        ({"b": (TARGET["b"][0],)}, r"b/1 is int32\[\] in the checkpoint and absent in the model"),
    ],
)
def test_checkpoints_of_another_model_are_named_and_stay(folder, changes, named):
    with pytest.raises(UserError, match=f"fits this model: {named}.*: the code or the settings"):
        restore(folder, {**TARGET, **changes}, read_only=False)
    gc.collect()  # tasks that Orbax left would complain here
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]
    assert not folder.with_name("damaged").exists()


def test_only_complaints_of_orbax_are_dropped(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    checkpoint._drop_complaints.__wrapped__()

    def coroutine_in(path):
        scope: dict[str, Any] = {}
        exec(compile("async def waits(): ...", path, "exec"), scope)
        coroutine = scope["waits"]()
        coroutine.close()
        return coroutine

    messages = ["Event loop is closed", "Encountered error while reading array index: ()", "x"]
    complaints = [
        SimpleNamespace(object=source, exc_value=RuntimeError(message))
        for source in (None, coroutine_in("/home/mine.py"), coroutine_in("/lib/orbax/saving.py"))
        for message in messages
    ]
    for complaint in complaints:
        sys.unraisablehook(complaint)  # type: ignore
    assert shown == complaints[2:6]


def test_only_warnings_of_orbax_are_dropped(monkeypatch, recwarn):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    checkpoint._drop_complaints.__wrapped__()
    for name in ("_read_array_index_and_device_put", "async_deserialize", "fetch"):
        warnings.warn(f"coroutine '{name}' was never awaited", RuntimeWarning, stacklevel=1)
    assert [str(warning.message) for warning in recwarn] == ["coroutine 'fetch' was never awaited"]


FAILED_RESTORES = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from gen.checkpoint import open_checkpoints
from gen.core import UserError
folder = Path(sys.argv[1])
tree = {name: jnp.ones((32, 64)) for name in "abcdefghijklmnopqrstuvwxyz"}
def target(width):
    return {name: jax.ShapeDtypeStruct((32, width), "float32") for name in tree}
with open_checkpoints(folder) as checkpoints:
    checkpoints.save(10, tree, {})
for width in (65, 64):
    try:
        with open_checkpoints(folder, read_only=True) as checkpoints:
            checkpoints.restore(target(width))
    except UserError as error:
        print(error)
    for path in (folder / "10" / "tree").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
"""


def test_a_process_says_nothing_more_about_a_failed_restore_until_it_ends(tmp_path):
    arguments = [sys.executable, "-c", FAILED_RESTORES, str(tmp_path / "checkpoints")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    misfit, damage = done.stdout.splitlines()
    assert "a is float32[32, 64] in the checkpoint and float32[32, 65] in the model" in misfit
    assert "(steps 10): they are damaged" in damage


def test_a_temporary_folder_of_a_killed_save_is_ignored(folder):
    shutil.copytree(folder / "20", folder / "30.orbax-checkpoint-tmp")
    assert restore(folder).step == 20
    assert restore(folder, read_only=False).step == 20


def test_a_reader_finds_the_newest_checkpoint_although_a_writer_deleted_the_listed_ones(folder):
    with open_checkpoints(folder, read_only=True) as reader:
        with open_checkpoints(folder) as writer:
            for step in (30, 40):
                writer.save(step, TREE, {})
        restored = reader.restore(TARGET)
    assert restored
    assert (restored.step, restored.damaged) == (40, {})


def test_the_newest_two_checkpoints_and_every_nth_are_kept(tmp_path):
    with open_checkpoints(tmp_path, keep_every=20) as checkpoints:
        for step in range(10, 80, 10):
            checkpoints.save(step, TREE, {})
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [20, 40, 60, 70]


def test_donating_right_after_a_save_is_safe(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree), donate_argnums=0)
    tree = {"a": jax.random.normal(jax.random.key(0), (1000, 1000))}
    before = np.asarray(tree["a"]).copy()
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree, {})
        for _ in range(5):
            tree = step(tree)
    restored = restore(tmp_path, jax.eval_shape(lambda: {"a": jnp.zeros((1000, 1000))}))
    np.testing.assert_array_equal(restored.tree["a"], before)
