"""Execute the notebooks of the folder `chapter` and write them beside their sources.

The source of a notebook is `NN_name.py`, a script in the percent format of jupytext, and
`NN_name.ipynb` is the same notebook with its outputs. The cell with the tag `parameters` sets the
lengths of the trainings. Its metadata may hold shorter ones under `quick`, with which a test runs
the notebook in less time.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.folder import write_text
from gen.core import UserError

FOLDER = Path(__file__).parent / "chapter"
"""folder of the notebooks"""
COLOURS = 128
"""colours of a picture, at most, in the file of a notebook, which is small then"""
GREYS = 64
"""grey levels of a picture without colours"""
SUM = "code_sha256"
"""key, in the metadata of an executed notebook, of the checksum of its code"""


def names() -> list[str]:
    """Return the names of the notebooks, in the order of the chapter."""
    return sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))


def full_name(name: str) -> str:
    """Return the name of a notebook, which is given in full, by its number or by its words.

    Raises:
      UserError: there is no such notebook.
    """
    for each in names():
        number, _, words = each.partition("_")
        if name in (each, number, number.lstrip("0"), words):
            return each
    near = difflib.get_close_matches(name, names(), cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
    raise UserError(f"no notebook {name!r}: {hint}")


def read_source(path: Path) -> Any:
    """Return the notebook of a script in the percent format, without outputs."""
    try:
        import jupytext
    except ImportError as error:
        raise UserError("notebooks need jupytext: pip install -e '.[notebooks]'") from error
    notebook = jupytext.read(path, fmt="py:percent")
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i:02d}"  # jupytext draws random ones
    notebook.metadata.pop("jupytext", None)
    return notebook


def code_sum(notebook: Any) -> str:
    """Return the SHA-256 of the code cells of a notebook."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def with_quick_parameters(notebook: Any) -> Any:
    """Return the notebook with shorter trainings: a cell after the one with the tag `parameters`
    sets the values that the metadata of that cell hold under `quick`, as papermill does."""
    from nbformat.v4 import new_code_cell

    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if "parameters" in cell.metadata.get("tags", ()):
            values = cell.metadata.get("quick", {})
            code = "\n".join(f"{name} = {value!r}" for name, value in values.items())
            cells.append(new_code_cell(code, metadata={"tags": ["injected-parameters"]}))
    return {**notebook, "cells": cells}


def execute(notebook: Any, name: str) -> Any:
    """Return a notebook with the outputs of its cells, executed in the folder of the notebooks.

    Args:
      notebook: the notebook.
      name: its name, for the error.

    Raises:
      UserError: a cell raised an error, whose traceback has been printed.
    """
    try:
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
        from nbformat import from_dict
    except ImportError as error:
        raise UserError("notebooks need nbclient: pip install -e '.[notebooks]'") from error
    notebook = from_dict(notebook)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # a kernel can send a text in parts
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(FOLDER)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        print(error, file=sys.stderr)
        raise UserError(f"{name}: a cell raised {error.ename}: {error.evalue}") from error
    return notebook


def with_small_pictures(notebook: Any) -> Any:
    """Return the notebook with its pictures as smaller PNG files.

    Pictures in colour get a palette of COLOURS colours, and grey ones GREYS equally spaced levels.
    A picture that has been made smaller stays as it is.
    """
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                with Image.open(BytesIO(base64.b64decode(data["image/png"]))) as picture:
                    rgb, mode = picture.convert("RGB"), picture.mode
                red, green, blue = rgb.split()
                if red.tobytes() == green.tobytes() == blue.tobytes():
                    step = 255 / (GREYS - 1)
                    small = red.point([round(round(v / step) * step) for v in range(256)])
                elif mode == "P":
                    continue
                else:  # median cut, the default, would merge rare colours, such as a colour bar's
                    cover, none = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
                    small = rgb.quantize(COLOURS, cover, dither=none)
                file = BytesIO()
                small.save(file, "PNG", optimize=True)
                data["image/png"] = base64.b64encode(file.getvalue()).decode()
    return notebook


def write(name: str, anew: bool = False) -> str:
    """Execute a notebook and write it beside its source, and return a line that says so.

    The outputs of a notebook whose code has not changed are kept, and its text alone is replaced.

    Args:
      name: the name of the notebook.
      anew: execute it in any case.
    """
    import nbformat

    source, target = FOLDER / f"{name}.py", FOLDER / f"{name}.ipynb"
    notebook = read_source(source)
    old = nbformat.read(target, as_version=4) if target.exists() else None
    began = time.perf_counter()
    if old and not anew and old.metadata.get(SUM) == code_sum(notebook):
        executed = [cell for cell in old.cells if cell.cell_type == "code"]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                done = executed.pop(0)
                cell.update(outputs=done.outputs, execution_count=done.execution_count)
        notebook.metadata = old.metadata
        line = f"{target.name}: the code is unchanged, so its outputs are kept"
    else:
        notebook = execute(notebook, name)
        notebook.metadata[SUM] = code_sum(notebook)
        line = f"{target.name}: executed in {time.perf_counter() - began:.0f} s"
    write_text(target, nbformat.writes(with_small_pictures(notebook)) + "\n")
    return line
