"""The documentation shows every family, experiment, paper and deviation, and its links lead."""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import gallery
from experiments.registry import EXPERIMENTS
from gen import plots

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
RENDERED = {page: gallery.render(page.read_text()) for page in PAGES}
MODELS = "gen/models"
CELLS = runpy.run_path(str(DOCS / "overview.py"))["cells"]


def test_every_family_has_a_page_in_the_navigation():
    families = {each.model.family for each in EXPERIMENTS.values()} - {"classifier"}
    pages = {gallery.argument(page, "reference"): page for page in gallery.family_pages()}
    assert pages.keys() == families
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert re.search(rf"[:-] {page.relative_to(DOCS)}\n", navigation), page


def test_every_experiment_stands_on_a_page_with_its_command():
    text = "".join(RENDERED.values())
    for name in EXPERIMENTS:
        (block,) = re.findall(rf'<details class="experiment" id="{name}".*?</details>', text, re.S)
        assert f"\npython -m experiments train {name}" in block


def test_a_block_has_all_estimates_of_the_result_file():
    block = gallery.details("vae_digits")
    record = json.loads((gallery.RESULTS / "vae_digits.json").read_text())
    for name in record["estimates"]:
        assert f"| `{name}` |" in block
    assert "23.32 ± 0.28" in block
    assert record["command"] in block
    assert "](../results/vae_digits/codes.png)" in block


def test_the_comment_of_the_registry_is_read_in_three_parts():
    comment = gallery.comments()["gan_collapsed_digits"]
    assert comment.description.startswith("A failure on purpose")
    assert comment.command == "python -m experiments train gan_collapsed_digits --seeds 0 1 2"
    assert comment.result.startswith("One image, and warnings")


def test_no_call_is_left_on_a_page():
    for page, text in RENDERED.items():
        assert not re.search(r"^<!-- \{\{", text, re.MULTILINE), page


def test_captions_of_pictures_name_the_settings_of_a_command():
    scores = gallery.USE_CAPTIONS["anomaly"]
    assert gallery.caption_of("anomaly-complexity-mnist") == f"{scores} (complexity, mnist)"
    assert gallery.caption_of("samples") == "samples"


def test_no_section_of_a_page_is_empty():
    for page, text in RENDERED.items():
        assert not re.search(r"^## [^\n]+\s*(^## |\Z)", text, re.MULTILINE), page


def test_a_page_shows_the_fields_of_every_class_of_its_family():
    for page in gallery.family_pages():
        text = RENDERED[page]
        for name in gallery.models(gallery.argument(page, "reference")).keys() - {"Dequantized"}:
            assert f"\n**`{name}`**\n" in text, (page, name)


def test_every_paper_of_a_docstring_is_listed():
    listed = RENDERED[DOCS / "papers.md"]
    families = "".join(RENDERED[page] for page in gallery.family_pages())
    for folder in ("gen", "experiments"):
        for paper in gallery.paper_list(folder):
            assert f"]({paper.url})" in listed
            if any(
                place.startswith(MODELS) and "dequantized" not in place for place in paper.places
            ):
                assert f"]({paper.url})" in families, paper


def test_a_paper_has_the_citation_in_front_of_its_link():
    papers = {paper.url: paper.text for paper in gallery.paper_list(MODELS)}
    assert papers["https://arxiv.org/abs/1312.6114"] == (
        "Kingma & Welling 2014, *Auto-encoding variational Bayes*"
    )
    assert papers["https://proceedings.mlr.press/v9/desjardins10a.html"].startswith("Desjardins")
    assert papers["https://arxiv.org/abs/1802.04826"].startswith("Mattei & Frellsen 2018")
    programs = [url for url, text in papers.items() if not text]
    assert all(url.startswith("https://github.com/") for url in programs)


def test_every_list_of_deviations_is_on_the_page_of_a_family():
    text = "".join(RENDERED[page] for page in gallery.family_pages())
    for path in gallery.python_files(MODELS):
        for name, docstring in gallery.docstrings(path):
            for start in gallery.DEVIATIONS.findall(docstring):
                title = " ".join(start.split()).removesuffix(":")
                assert title.count("(") == title.count(")"), title
                assert f"**{title}** (`{name}`)\n\n" in text, path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_of_the_pages_lead_to_files_and_sections(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if not re.match(r"\w+:", target):
            file = (page.parent / path).resolve()
            assert file.exists(), target
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M) if anchor else []
            assert not anchor or anchor in map(gallery.slug, headings), target


def test_links_lead_to_pages_of_the_site():
    text = gallery.located(
        "[a](README.md) [b](#judging-samples) [c](BUILD.md#your-own-data) [d](gen/models/vae.py) "
        "[e](docs/families/vae.md) [f](LICENSE) [g](https://a.b/c.md) "
        "[h](experiments/chapter/01_a.ipynb) ![i](experiments/results/a/b.png) `f[0](x)` "
        "\n```python\nf[0](x)\n```\n",
        "BUILD.md",
        depth=1,
    )
    assert re.findall(r"\]\((.+?)\)", text) == [
        "../index.md",
        "../uses/judge.md",
        "../manual/your-own-data.md",
        "../api/gen.models.vae.md",
        "../families/vae.md",
        gallery.SOURCES + "LICENSE",
        "https://a.b/c.md",
        "../chapter/01_a.md",
        "../results/a/b.png",
        "x",
        "x",
    ]


def test_a_page_links_to_its_notebook_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "CHAPTER", tmp_path)
    assert gallery.notebook(2) == ""
    (tmp_path / "02_vaes.ipynb").touch()
    assert "](../chapter/02_vaes.md)" in gallery.notebook(2)


def test_the_chart_of_the_families_agrees_with_the_registry():
    (chart,) = re.findall(r"```mermaid\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    groups = {}
    for start, ends in re.findall(r"^ *(\w+)[^\n]*? --> (.+)$", chart, re.MULTILINE):
        groups[start] = set(re.findall(r"(?:^|& )(\w+)", ends))
    expected = {}
    for page in gallery.family_pages():
        family = gallery.argument(page, "reference")
        for each in gallery.family_of(family).values():
            expected.setdefault(each.model.density, set()).add(page.stem)
    assert {density: groups[density] for density in expected} == expected
    assert groups["explicit"] == {"tractable", "approximate"}


def test_the_speeds_are_the_ones_of_the_benchmark():
    bench = json.loads((gallery.RESULTS / "bench.json").read_text())
    for name, row in bench["pytorch"].items():
        assert f"| `{name}` | {row['parameters']:,} | {row['gen']:.3g} |" in gallery.speed()


def test_the_picture_of_all_families_is_small():
    picture = DOCS / "overview.png"
    assert picture.stat().st_size < 400_000
    with Image.open(picture) as image:
        assert image.width == 1200


@pytest.mark.parametrize("dpi", [100, 200])
@pytest.mark.parametrize("labels", [(), ("originals", "reconstructions")])
def test_the_picture_of_all_families_takes_whole_images(tmp_path, rng, labels, dpi):
    images = rng.integers(0, 256, (20, 28, 28, 1)) / 255
    plots.grid(images, 10, labels).savefig(tmp_path / "grid.png", dpi=dpi)
    found = CELLS(tmp_path / "grid.png")
    np.testing.assert_allclose(found.reshape(images.shape), images, atol=2 / 255)


@pytest.mark.parametrize(("side", "dpi"), [(8, 100), (28, 130)])
def test_the_picture_of_all_families_refuses_other_grids(tmp_path, rng, side, dpi):
    plots.grid(rng.random((20, side, side, 1)), 10).savefig(tmp_path / "grid.png", dpi=dpi)
    with pytest.raises(ValueError, match=r"grid\.png is not a grid of images of 28 × 28 pixels"):
        CELLS(tmp_path / "grid.png")


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="needs the extra docs")
def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 80
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="?([^">\s]+)', text)
        loaded += re.findall(r'<link[^>]* rel="?stylesheet"?[^>]* href="?([^">\s]+)', text)
        loaded += re.findall(r'<link href="?([^">\s]+)"? rel="?stylesheet', text)
        assert not [address for address in loaded if re.match("(https?:)?//", address)], page
        assert 'data-md-component="source"' not in text  # the theme would ask api.github.com
    assert 'class="arithmatex"' in (tmp_path / "families" / "vae.html").read_text()
