"""`gen.fit` beside the generator, its history and its displays; carries that were overwritten."""

import subprocess
import sys
import types
from typing import Any

import jax
import numpy as np
import pytest
from conftest import equal

import gen
from gen import blocks, estimate, live, plots, train
from gen.core import UserError
from gen.models.mixture import Mixture

X = np.random.default_rng(0).integers(0, 2, (40, 6)).astype(np.float32)
DATA, MODEL = {"x": X}, Mixture(shape=(6,), components=2)
VALIDATED: Any = {"validation": {"x": X[:7]}, "validate_every": 20}
RUN: Any = {"steps": 50, "batch_size": 8, "report_every": 10, **VALIDATED}


@pytest.mark.parametrize("seed", [3, [0, 1, 2]])
def test_fit_gives_the_state_and_the_reports_of_the_generator(seed):
    result = gen.fit(MODEL, DATA, seed=seed, **RUN)
    progress, reports = None, []
    for progress in train.fit(MODEL, DATA, seed=seed, **RUN):
        if progress.metrics:
            reports.append((progress.step, progress.metrics))
    assert progress
    assert equal(result.state, progress.carry.chosen)
    assert result.history["step"].tolist() == [step for step, _ in reports] == [10, 20, 30, 40, 50]
    for i, (_, metrics) in enumerate(reports):
        for name in ("loss", "validation"):
            value = metrics.get(name, np.full(np.shape(seed), np.nan))
            np.testing.assert_array_equal(result.history[name][i], value)
    assert result.history["loss"].shape == (5, *np.shape(seed))


def test_a_function_sees_every_step():
    seen = {}

    def see(progress):
        seen[progress.step] = np.asarray(progress.carry.count)

    gen.fit(MODEL, DATA, steps=3, batch_size=8, on_progress=see)
    assert seen == {1: 1, 2: 2, 3: 3}


def test_a_fit_continues_from_a_carry():
    *_, half = train.fit(MODEL, DATA, steps=20, batch_size=8)
    rest = gen.fit(MODEL, DATA, steps=30, batch_size=8, start=(20, half.carry))
    assert equal(rest.state, gen.fit(MODEL, DATA, steps=30, batch_size=8).state)


def test_a_carry_that_was_donated_is_refused_in_one_line():
    carries = [progress.carry for progress in train.fit(MODEL, DATA, steps=2, batch_size=8)]
    for use in (
        lambda: carries[0].state,
        lambda: carries[0].best,
        lambda: carries[0].chosen,
        lambda: next(train.fit(MODEL, DATA, steps=2, batch_size=8, start=(1, carries[0]))),
    ):
        with pytest.raises(UserError, match=r"^later training steps have overwritten .*") as error:
            use()
        assert "\n" not in str(error.value)
    assert carries[1].chosen is carries[1].state


def test_a_state_that_was_donated_is_refused_where_it_is_used():
    states = [progress.carry.state for progress in train.fit(MODEL, DATA, steps=2, batch_size=8)]
    for use in (
        lambda state: blocks.rows("log_prob", MODEL, state, DATA),
        lambda state: blocks.draws(MODEL, state, 3, seed=0),
        lambda state: estimate.evaluate(MODEL, state, DATA, jax.random.key(0)),
    ):
        with pytest.raises(UserError, match="overwritten"):
            use(states[0])
        use(states[1])


def test_fit_prints_nothing_where_there_is_no_terminal(capsys):
    gen.fit(MODEL, DATA, steps=2, batch_size=8)
    assert capsys.readouterr() == ("", "")


def test_fit_shows_a_bar_on_a_terminal_unless_told_not_to(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    gen.fit(MODEL, DATA, steps=2, batch_size=8, show=False)
    assert capsys.readouterr().out == ""
    gen.fit(MODEL, DATA, steps=2, batch_size=8)
    out = capsys.readouterr().out
    assert "2/2" in out
    assert "loss" in out


class Handle:
    """A stand-in for the display handle of IPython that records its updates."""

    def __init__(self):
        self.shown = []

    def update(self, shown, **options):
        self.shown.append(shown)


def test_fit_draws_its_curves_in_a_notebook(capsys, monkeypatch):
    handle = Handle()
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython, ipython.version_info = lambda: shell, (9, 0)
    display: Any = types.ModuleType("IPython.display")
    display.display = lambda *shown, **options: handle
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(live, "SECONDS_BETWEEN", -1.0)
    monkeypatch.setattr(live, "DRAWING_SHARE", float("inf"))
    gen.fit(MODEL, DATA, **RUN)
    assert handle.shown[0]["text/plain"].startswith("Mixture: step 1 of 50")
    assert isinstance(handle.shown[-1], plots.Figure)
    lines = handle.shown[-1].axes[0].lines
    assert np.asarray(lines[0].get_xdata()).tolist() == [10, 20, 30, 40, 50]
    assert np.asarray(lines[1].get_xdata()).tolist() == [20, 40]
    assert capsys.readouterr() == ("", "")
    shell.config = {}  # a shell on a terminal
    handle.shown.clear()
    gen.fit(MODEL, DATA, **RUN)
    assert not handle.shown


def test_a_figure_shows_itself_in_a_notebook_and_opens_no_window():
    """IPython asks for `_repr_png_`, and neither pyplot nor IPython is imported for it."""
    code = """
import sys
import numpy as np
from gen import plots
figure = plots.grid(np.full((1, 1, 1, 1), 0.5), 1)
assert figure._repr_png_().startswith(b"\\x89PNG")
assert not {"matplotlib.pyplot", "IPython"} & set(sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).stderr == b""
