"""The notebooks of `experiments/chapter`: their outputs belong to their sources, and they run."""

import base64
import re
from io import BytesIO

import jupytext
import nbformat
import numpy as np
import pytest
from PIL import Image

from experiments import notebooks
from experiments.__main__ import main
from gen.core import UserError

NAMES = notebooks.names()
LARGEST = 400_000
"""Bytes of a notebook with its outputs, at most."""


def executed(name):
    return nbformat.read(notebooks.FOLDER / f"{name}.ipynb", as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_has_a_source():
    assert NAMES
    assert sorted(path.stem for path in notebooks.FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_outputs_belong_to_the_source(name):
    source, notebook = notebooks.read_source(notebooks.FOLDER / f"{name}.py"), executed(name)
    for cells in zip(source.cells, notebook.cells, strict=True):
        assert [cell.cell_type for cell in cells] == 2 * [cells[0].cell_type]
        assert cells[0].source == cells[1].source
        assert cells[0].metadata == cells[1].metadata
    command = f"python -m experiments chapter {name}"
    assert notebook.metadata[notebooks.SUM] == notebooks.code_sum(source), command


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_was_executed_in_order_without_an_error(name):
    notebook = executed(name)
    code = code_of(notebook)
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_small_and_names_no_path_of_a_machine(name):
    text = (notebooks.FOLDER / f"{name}.ipynb").read_text()
    assert len(text) < LARGEST
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|usr|work)/\S*", text)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_its_parameters_in_one_cell(name):
    """The shorter values are of names that the cell sets, so that they have an effect."""
    source = notebooks.read_source(notebooks.FOLDER / f"{name}.py")
    (cell,) = [cell for cell in source.cells if "parameters" in cell.metadata.get("tags", ())]
    values = {}
    exec(cell.source, values)
    quick = cell.metadata["quick"]
    assert quick
    assert all(type(values[each]) is type(value) for each, value in quick.items())


@pytest.mark.slow
@pytest.mark.usefixtures("prepared")
@pytest.mark.filterwarnings("default")  # of the client of Jupyter
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_with_short_trainings(name):
    source = notebooks.read_source(notebooks.FOLDER / f"{name}.py")
    notebook = notebooks.execute(notebooks.with_quick_parameters(source), name)
    assert len(code_of(notebook)) == len(code_of(source)) + 1


SOURCE = """\
# %% [markdown]
# Text

# %% tags=["parameters"] quick={"STEPS": 2}
STEPS = 20

# %%
print(STEPS)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with a small notebook, in place of the chapter's."""
    (tmp_path / "01_small.py").write_text(SOURCE)
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("default")
def test_the_command_executes_a_notebook_whose_code_has_changed(folder, capsys):
    def printed():
        return code_of(executed("01_small"))[1].outputs[0].text

    assert main(["chapter"]) == 0
    assert "executed in" in capsys.readouterr().out
    assert printed() == "20\n"
    (folder / "01_small.py").write_text(SOURCE.replace("Text", "Another text"))
    assert main(["chapter", "small"]) == 0
    assert "outputs are kept" in capsys.readouterr().out
    assert executed("01_small").cells[0].source == "Another text"
    assert printed() == "20\n"
    (folder / "01_small.py").write_text(SOURCE.replace("20", "30"))
    assert main(["chapter", "1"]) == 0
    assert printed() == "30\n"
    (folder / "01_small.py").write_text(f"{SOURCE}1 / 0\n")
    assert main(["chapter", "1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: 01_small: a cell raised ZeroDivisionError: division by zero"
    assert printed() == "30\n"


def test_short_parameters_follow_the_cell_of_the_parameters(folder):
    quick = notebooks.with_quick_parameters(notebooks.read_source(folder / "01_small.py"))
    assert [cell["source"] for cell in quick["cells"]] == [
        "Text",
        "STEPS = 20",
        "STEPS = 2",
        "print(STEPS)",
    ]


@pytest.mark.parametrize("grey", [False, True])
def test_pictures_are_reduced_to_few_colours_once(rng, grey):
    pixels = rng.integers(0, 256, (80, 80, 1 if grey else 3), np.uint8)
    pixels[0, :2] = [[0], [255]]
    file = BytesIO()
    Image.fromarray(np.broadcast_to(pixels, (80, 80, 3))).save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    output = nbformat.v4.new_output("display_data", {"image/png": picture})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])])
    (cell,) = notebooks.with_small_pictures(notebook).cells
    small = cell.outputs[0].data["image/png"]
    with Image.open(BytesIO(base64.b64decode(small))) as reduced:
        assert reduced.size == (80, 80)
        assert len(reduced.getcolors() or ()) == (notebooks.GREYS if grey else notebooks.COLOURS)
        if grey:
            np.testing.assert_allclose(np.asarray(reduced), pixels[..., 0], atol=3)
            assert reduced.getextrema() == (0, 255)
    (again,) = notebooks.with_small_pictures(notebook).cells
    assert again.outputs[0].data["image/png"] == small


def test_an_unknown_notebook_is_refused_with_the_nearest(folder):
    assert [notebooks.full_name(name) for name in ("1", "01", "small", "01_small")] == [
        "01_small"
    ] * 4
    with pytest.raises(UserError, match="no notebook 'smal': did you mean 01_small"):
        notebooks.full_name("smal")


def test_a_source_is_what_jupytext_writes():
    """A notebook that is edited in Jupyter and synchronised leaves no other changes."""
    for name in NAMES:
        path = notebooks.FOLDER / f"{name}.py"
        body = path.read_text().partition("# ---\n\n")[2]
        written = jupytext.writes(jupytext.read(path), fmt="py:percent")
        assert written.partition("# ---\n\n")[2] == body, name
