"""Hooks of MkDocs: the pages and files of the site that are made when it is built."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from experiments import gallery
from experiments.gallery import CHAPTER, FILES, RESULTS, ROOT, located, page_of, sections


def modules() -> Iterator[str]:
    """Yield the names of the modules of the API reference."""
    for path in sorted((ROOT / "gen").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation."""
    manual = [{title: page_of(title)} for title in sections("BUILD.md") if manual_page(title)]
    chapter = [{path.stem: f"chapter/{path.stem}.md"} for path in notebooks()]
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

    def add(uri: str, content: str | bytes | None = None, source: Path | None = None) -> None:
        path = str(source) if source else None
        files.append(File.generated(config, uri, content=content, abs_src_path=path))

    for name, page in FILES.items():
        add(page, located((ROOT / name).read_text(), name, depth=0))
    for title, text in sections("BUILD.md").items():
        if manual_page(title):
            add(page_of(title), f"# {title}\n" + located(text, "BUILD.md", depth=1))
    for name in modules():
        add(f"api/{name}.md", f"# `{name}`\n\n::: {name}\n")
    for path in RESULTS.glob("*/*.png"):
        add(f"results/{path.relative_to(RESULTS)}", source=path)
    for path in notebooks():
        text, resources = MarkdownExporter().from_filename(
            str(path), resources={"unique_key": path.stem}
        )
        add(f"chapter/{path.stem}.md", text)
        for name, content in resources["outputs"].items():
            add(f"chapter/{name}", content)
    mathjax = importlib.util.find_spec("mathjax")
    assert mathjax and mathjax.submodule_search_locations
    script = Path(mathjax.submodule_search_locations[0], "static/mathjax/es5/tex-svg.js")
    add("javascripts/tex-svg.js", source=script)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the lines of a page that call functions of `experiments.gallery`."""
    return gallery.render(markdown) if not page.file.generated_by else markdown


def manual_page(title: str) -> bool:
    """Return whether a section of BUILD.md has a page of its own in the manual."""
    return page_of(title).startswith("manual/")


def notebooks() -> list[Path]:
    """Return the executed notebooks of the chapter."""
    return sorted(CHAPTER.glob("*.ipynb"))
