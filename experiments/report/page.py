"""Write a page of HTML that needs no other file: its pieces, their pictures inlined, and its size.

A `Page` has sections, a section has cards, and a card has pieces: pictures, tables, texts, terms
and paragraphs. `page.html` is the template, `page.css` the style.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.collections import Collection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from gen.core import UserError
from gen.files import replacing

LARGEST = 5_000_000
"""Bytes of a page, at most."""
RESOLUTIONS = (180, 140, 100, 70, 50)
"""Dots per inch of the pictures. A page that is too large takes the next one."""
COLOURS = 256
"""Colours of a picture that has at most `DISTINCT` different ones."""
DISTINCT = 20_000
"""Number of different colours from which a picture is a photograph and keeps all of them."""
LIGHT = ("#1f2328", "#ffffff")
"""Ink and paper of a figure on a light page, the colours of `page.css`."""
DARK = ("#d5d9e0", "#191c22")
"""Ink and paper of a figure on a dark page, the colours of `page.css`."""


class Picture(NamedTuple):
    """A figure of matplotlib, or the bytes of a PNG."""

    source: Figure | bytes
    alt: str  # description for those who do not see it
    caption: str = ""


class Table(NamedTuple):
    """A table with a head. Cells are texts; a cell in `best` is bold."""

    rows: Sequence[Mapping[str, str]]  # texts by column; all rows have the same columns
    caption: str = ""
    best: frozenset[tuple[int, str]] = frozenset()  # (row, column)


class Passages(NamedTuple):
    """Pieces of text, each under its label."""

    rows: Sequence[tuple[str, Sequence[tuple[str, bool]]]]  # label, [(text, whether it is marked)]
    caption: str = ""


class Terms(NamedTuple):
    """A list of terms and their descriptions."""

    rows: Mapping[str, str]


class Paragraph(NamedTuple):
    """A paragraph, a warning, or a command."""

    text: str
    kind: str = "note"  # note, warning or command


class Pair(NamedTuple):
    """Two pieces, side by side where there is room."""

    first: Picture | Table | Terms
    second: Picture | Table | Terms


Piece = Picture | Table | Passages | Terms | Paragraph | Pair


class Card(NamedTuple):
    """The pieces of a section that belong to one run, or to several."""

    title: str
    subtitle: str
    pieces: Sequence[Piece]


class Section(NamedTuple):
    """A section of the page."""

    title: str
    intro: str
    cards: Sequence[Card]
    absent: Sequence[str] = ()  # a line for each run that a reader would expect here
    wide: bool = False  # whether each card takes the whole width

    @property
    def anchor(self) -> str:
        """Return the name of the section in links."""
        return "-".join(self.title.lower().split())


class Page(NamedTuple):
    """Everything on a page."""

    title: str
    lead: str
    warnings: Sequence[tuple[str, str]]  # (run, warning)
    sections: Sequence[Section]
    footer: str


def write(page: Page, path: Path) -> int:
    """Write a page to a file and return its size in bytes.

    Args:
      page: the page.
      path: the file, which is replaced as a whole.

    Raises:
      UserError: the page is too large even with its pictures at the lowest resolution.
    """
    content = b""
    for dpi in RESOLUTIONS:
        content = render(page, dpi).encode()
        if len(content) <= LARGEST:
            with replacing(path) as file:
                file.write(content)
            return len(content)
    raise UserError(
        f"the page would have {len(content) / 1e6:.1f} MB, and {LARGEST / 1e6:g} MB are the most: "
        "report fewer runs"
    )


def render(page: Page, dpi: int) -> str:
    """Return the HTML of a page with its pictures at a resolution in dots per inch."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("experiments.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda piece: type(piece).__name__
    environment.filters["images"] = lambda picture: images(picture.source, dpi)
    template = environment.get_template("page.html")
    return template.render(page=page, colours={"light": LIGHT, "dark": DARK})


def images(source: Figure | bytes, dpi: int) -> dict[str, Any]:
    """Return a picture as data URLs, `light` and `dark`, and its width in CSS pixels.

    `dark` is empty where both are the same.

    Args:
      source: the figure, or the bytes of a PNG.
      dpi: dots per inch.
    """
    if isinstance(source, bytes):
        from PIL import Image

        with Image.open(io.BytesIO(source)) as image:
            return {"light": _url(source), "dark": "", "width": image.width}
    light, dark = (_png(source, dpi, *colours) for colours in (LIGHT, DARK))
    return {
        "light": _url(light),
        "dark": _url(dark) if dark != light else "",
        "width": round(100 * source.get_size_inches()[0]),
    }


def _url(png: bytes) -> str:
    """Return a PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _png(figure: Figure, dpi: int, ink: str, paper: str) -> bytes:
    """Return a figure as a PNG with few colours, unless it has photographs."""
    from PIL import Image

    recolour(figure, ink, paper)
    raw, small = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png", dpi=dpi, facecolor=paper)
    with Image.open(raw) as opened:
        image = opened.convert("RGB")
    if image.getcolors(DISTINCT) is not None:
        image = image.quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def recolour(figure: Figure, ink: str, paper: str) -> None:
    """Give the text, the frames and the black lines of a figure a colour, and its ground another.

    Args:
      figure: the figure, which is changed.
      ink: the colour of texts and lines.
      paper: the colour of the ground.
    """
    inks = {"#000000", LIGHT[0], DARK[0]}
    for axes in figure.axes:
        axes.set_facecolor(paper)
        axes.tick_params(which="both", colors=ink)
        for edge in axes.spines.values():
            edge.set_edgecolor(ink)
    for text in figure.findobj(Text):
        text.set_color(ink)  # type: ignore[attr-defined]
    for line in figure.findobj(Line2D):
        assert isinstance(line, Line2D)
        if to_hex(line.get_color()) in inks:  # type: ignore
            line.set_color(ink)
    for lines in figure.findobj(Collection):
        assert isinstance(lines, Collection)
        edges = lines.get_edgecolor()
        if len(edges) and {to_hex(edge) for edge in edges} <= inks:  # type: ignore
            lines.set_edgecolor(ink)
