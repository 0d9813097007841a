"""Hooks of MkDocs: the pages and files of the site that are made when it is built."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from experiments import gallery
from experiments.gallery import CHAPTER, FILES, RESULTS, ROOT, located, page_of, sections

WIDE = "---\nhide: [navigation]\n---\n\n"
"""The head of a page that stands alone, without a list of pages at its side."""
LONGEST = 32
"""Letters of a word of code that fit into a line on a phone."""


def modules() -> Iterator[str]:
    """Yield the names of the modules of the API reference."""
    for path in sorted((ROOT / "gen").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation."""
    manual = [{title: page_of(title)} for title in sections("BUILD.md") if manual_page(title)]
    chapter = [f"chapter/{path.stem}.md" for path in notebooks()]
    assert config.nav is not None
    for part in config.nav:
        if "Guide" in part:
            part["Guide"] += manual
    config.nav.insert(-1, {"API": [{name: f"api/{name}.md"} for name in modules()]})
    if chapter:
        config.nav.insert(1, {"Chapter": chapter})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages made of other files of the repository, the pictures, and MathJax."""

    def add(uri: str, content: str | bytes) -> None:
        files.append(File.generated(config, uri, content=content))

    def copy(uri: str, source: Path) -> None:
        files.append(File.generated(config, uri, abs_src_path=str(source)))

    for name, page in FILES.items():
        text = WIDE + located((ROOT / name).read_text(), name, depth=0)
        add(page, re.sub(r"```mermaid\n.*?```\n", lambda _: gallery.cards(), text, flags=re.DOTALL))
    for title, text in sections("BUILD.md").items():
        if manual_page(title):
            add(page_of(title), f"# {title}\n" + located(text, "BUILD.md", depth=1))
    for name in modules():
        add(f"api/{name}.md", f"# `{name}`\n\n::: {name}\n")
    for path in RESULTS.glob("*/*.png"):
        copy(f"results/{path.relative_to(RESULTS)}", path)
    for path in notebooks():
        text, resources = MarkdownExporter().from_filename(
            str(path), resources={"unique_key": path.stem}
        )
        # Each figure is a link to the figure alone, which a phone can enlarge.
        text = re.sub(r"!\[png\]\((\S+)\)", r"[![figure](\1)](\1)", text)
        place = str(path.relative_to(ROOT))
        add(f"chapter/{path.stem}.md", located(text, place, depth=1))
        for name, content in resources["outputs"].items():
            add(f"chapter/{name}", content)
    folder = Path(str(importlib.resources.files("mathjax")))
    copy("javascripts/tex-svg.js", folder / "static" / "mathjax" / "es5" / "tex-svg.js")
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the lines of a page that call functions of `experiments.gallery`."""
    if page.file.generated_by:
        return markdown
    uri = page.file.src_uri
    return gallery.render(located(markdown, f"docs/{uri}", depth=uri.count("/")))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let no line end inside a value and its error, after the -- of a flag, or between a formula
    and the punctuation around it."""

    def together(text: str) -> str:
        return f'<span class="together">{text}</span>'

    def words(code: re.Match[str]) -> str:
        parts = (
            together(word) if "-" in word and len(word) <= LONGEST else word
            for word in code[1].split(" ")
        )
        return f"<code>{' '.join(parts)}</code>"

    html = re.sub(
        r"<t[dh][^>]*>[^<]*</t[dh]>",
        lambda cell: cell[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"),
        html,
    )
    html = re.sub(r"(?<!<pre>)(?<!</span>)<code>([^<]*)</code>", words, html)
    formula = r'<span class="arithmatex">[^<]*</span>'
    around = rf"\(?{formula}[.,;:)?!’]+|\({formula}"
    return re.sub(around, lambda found: together(found[0]), html)


def manual_page(title: str) -> bool:
    """Return whether a section of BUILD.md has a page of its own in the manual."""
    return page_of(title).startswith("manual/")


def notebooks() -> list[Path]:
    """Return the executed notebooks of the chapter."""
    return sorted(CHAPTER.glob("*.ipynb"))
