"""Compiled programs that later commands reuse."""

import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import compilation

HIT = "/jax/compilation_cache/cache_hits"
"""JAX's event of a program that was read from the disk."""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the cache folder of programs, and restore JAX's settings afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: jax.config.values[name] for name in names}
    compilation_cache.reset_cache()
    yield tmp_path / "gen" / "programs"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_something():
    """Compile a program that no other test compiles, of a new function each time, and run it."""
    return jax.jit(lambda x: jnp.tanh(x) * 3.25 + x)(jnp.arange(7.0)).block_until_ready()


@pytest.fixture
def events():
    """Return a list that receives the name of each event of JAX."""
    names = []

    def note(event, **_):
        names.append(event)

    jax.monitoring.register_event_listener(note)
    yield names
    jax.monitoring.unregister_event_listener(note)


def test_programs_are_kept_unless_the_flag_or_the_disk_says_no(cache, events, monkeypatch):
    compilation.keep_programs(False)
    first = compile_something()
    assert not cache.exists()
    compilation.keep_programs()
    compilation_cache.reset_cache()  # a command has compiled nothing yet
    kept = compile_something()
    stored = list((cache / compilation.machine()).glob("*-cache"))
    assert stored
    assert HIT not in events
    read_back = compile_something()
    assert events.count(HIT) > 0
    assert (first == kept).all()
    assert (first == read_back).all()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    compilation.keep_programs()  # stays without a cache, or with the one before, and says nothing


def test_another_number_of_threads_has_programs_of_its_own(monkeypatch):
    """XLA divides the work of a program among a fixed number of threads."""
    here = compilation.machine()
    assert here == compilation.machine()
    monkeypatch.setenv("NPROC", "3")
    assert compilation.machine() != here


def test_the_oldest_programs_are_deleted_first(tmp_path):
    for age, name in enumerate(["new", "middle", "old"]):
        path = tmp_path / name / "program"
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (1_000 - age, 1_000 - age))
    compilation.delete_oldest(tmp_path, 250)
    assert sorted(path.parent.name for path in tmp_path.rglob("program")) == ["middle", "new"]
