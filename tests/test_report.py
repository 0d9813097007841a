"""The page of a report: its parts, its content on small runs, and in a browser."""

import io
import json
import math
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import browser
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.__main__ import main
from experiments.experiment import Experiment
from experiments.report import page, runs, sections
from experiments.report.page import Card, Page, Pair, Paragraph, Passages, Picture, Section, Table
from experiments.report.runs import Cost, Entry
from experiments.uses.base import Subject
from gen import data, estimate
from gen.core import UserError
from gen.estimate import Estimate
from gen.models.gan import GAN
from gen.models.mixture import Mixture
from gen.models.vae import VAE
from gen.nets import MLP

EMPTY = ("area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source")
"""Elements without an end tag."""


class Parsed(HTMLParser):
    """The elements of a page, and whether its tags match."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of some names."""
        return [attributes for tag, attributes in self.elements if tag in tags]


def check_page(path: Path) -> str:
    """Check that a page is whole, small and needs nothing else; return its text."""
    text = path.read_text()
    parsed = Parsed(text)
    assert path.stat().st_size < 5_000_000
    assert parsed.all("html") == [{"lang": "en"}]
    assert not parsed.all("script", "iframe", "object")
    for image in parsed.all("img"):
        assert (image["src"] or "").startswith("data:image/png;base64,")
        assert image["alt"]
    for source in parsed.all("source"):
        assert (source["srcset"] or "").startswith("data:image/png;base64,")
    for link in parsed.all("link"):
        assert (link["href"] or "").startswith("data:")
    anchors = {element["id"] for element in parsed.all("section")}
    for link in parsed.all("a"):
        href = link["href"] or ""
        assert href.removeprefix("#") in anchors or href.startswith("https://")
    headings = [int(tag[1]) for tag, _ in parsed.elements if tag in ("h1", "h2", "h3", "h4")]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(headings))
    return text


def figure(colour: str = "black") -> Figure:
    drawn = Figure(figsize=(2, 1))
    axes = drawn.add_subplot()
    axes.plot([0, 1], [0, 1], color=colour)
    axes.set_title("a title")
    return drawn


def small_page(*pieces) -> Page:
    cards = [Card("run <1>", "VAE", pieces), Card("run 2", "GAN", [Paragraph("a & b")])]
    parts = [Section("First part", "See https://arxiv.org/abs/1312.6114", cards, ["run 3: why"])]
    return Page("A page", "Its lead.", [("run 2", "a warning")], parts, "The end.")


def test_a_page_has_every_kind_of_piece(tmp_path):
    table = Table(
        [{"row": "a", "value": "1"}, {"row": "b", "value": "2"}], "", frozenset({(1, "value")})
    )
    passages = Passages([("a text", [("plain ", False), ("marked", True)])], "its caption")
    command = Paragraph("python -m experiments list", "command")
    pieces = (Pair(Picture(figure(), "a line"), table), passages, command)
    path = tmp_path / "page.html"
    size = page.write(small_page(*pieces), path)
    text = check_page(path)
    assert size == path.stat().st_size
    assert "run &lt;1&gt;" in text
    assert "<mark>marked</mark>" in text
    assert '<td class="best">2</td>' in text
    assert '<a href="https://arxiv.org/abs/1312.6114"' in text
    assert "run 3: why" in text
    assert "a warning" in text


def test_a_figure_has_the_ink_and_the_paper_of_both_schemes():
    from PIL import Image

    drawn = figure()
    for ink, paper in (page.LIGHT, page.DARK):
        with Image.open(io.BytesIO(page._png(drawn, 200, ink, paper))) as image:
            colours = {colour for _, colour in image.convert("RGB").getcolors(100_000) or []}
        assert tuple(bytes.fromhex(ink[1:])) in colours
        assert tuple(bytes.fromhex(paper[1:])) in colours
        assert drawn.axes[0].lines[0].get_color() == ink
    coloured = figure("C1")
    page.recolour(coloured, *page.DARK)
    assert coloured.axes[0].lines[0].get_color() == "C1"


def test_a_stored_picture_is_the_same_in_both_schemes():
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (30, 10)).save(file, "png")
    shown = page.images(file.getvalue(), 100)
    assert (shown["width"], shown["dark"]) == (30, "")


def test_a_page_that_is_too_large_takes_a_lower_resolution_or_is_refused(tmp_path, monkeypatch):
    noise = Figure(figsize=(1, 1))
    noise.add_axes((0, 0, 1, 1)).imshow(np.random.default_rng(0).random((99, 99)))
    content, path = small_page(Picture(noise, "noise")), tmp_path / "page.html"
    sizes = {dpi: len(page.render(content, dpi).encode()) for dpi in page.RESOLUTIONS[:2]}
    monkeypatch.setattr(page, "LARGEST", sizes[page.RESOLUTIONS[1]])
    assert page.write(content, path) == sizes[page.RESOLUTIONS[1]]
    monkeypatch.setattr(page, "LARGEST", 1_000)
    with pytest.raises(UserError, match="report fewer runs"):
        page.write(content, path)


def entry(label: str, model, dataset, estimates, binarize: data.Binarize = "dynamic") -> Entry:
    experiment = Experiment(model, data=dataset.name, binarize=binarize)
    subject = Subject(label, experiment, dataset, {0: ()}, 1, None)
    cost = Cost(10, 1.0, 5, "CPU", "python -m experiments train")
    return Entry(label, subject, estimates, "", [], cost)


def nll(value: float, kind: estimate.Kind = "exact", **settings) -> dict[str, Estimate]:
    return {"nll": Estimate(value, 0.1, kind, 50, settings)}


def test_only_estimates_of_one_kind_on_the_same_data_are_ranked(digits):
    other = data.from_arrays(np.eye(8, dtype=np.uint8)[np.arange(40) % 8], name="other")
    model = Mixture(shape=(8, 8, 1))
    entries = [
        entry("a", model, digits, nll(3.0)),
        entry("b", model, digits, nll(2.0)),
        entry("c", model, digits, nll(1.0, "upper bound")),
        entry("d", model, digits, nll(1.0), binarize="none"),
        entry("e", model, other, nll(1.0)),
        entry("f", model, digits, nll(1.0, per="step")),
        entry("g", model, digits, nll(math.nan)),
        entry("h", model, digits, {"kl": nll(1.0)["nll"]}),
    ]
    assert runs.ranks(entries, "nll") == {"a": (2, 3), "b": (1, 3)}
    assert runs.ranks(entries, "kl") == {}
    groups = runs.comparable(entries, "nll")
    assert [[each.label for each in group] for group in groups] == [
        ["a", "b", "g"],
        ["c"],
        ["d"],
        ["e"],
        ["f"],
    ]
    rows = sections.overview(entries).cards[0].pieces[0]
    assert isinstance(rows, Table)
    assert [row["rank"] for row in rows.rows] == ["2 of 3", "1 of 3", *["–"] * 6]
    assert [row["data"] for row in rows.rows][4] == "other"


def test_the_card_of_a_data_set_names_the_models_that_binarise_it(digits):
    model = Mixture(shape=(8, 8, 1))
    other = data.from_arrays(np.arange(400).reshape(100, 4) % 7 / 7, name="other")
    entries = [
        entry("a", model, digits, nll(1.0)),
        entry("b", model, digits, nll(1.0), binarize="none"),
        entry("c", Mixture(shape=(4,)), other, nll(1.0), binarize="none"),
    ]
    cards = sections.data_section(entries).cards
    assert "dynamic for a" in str(cards[0])
    assert "binarised" not in str(cards[1])


def test_the_lowest_estimate_of_a_group_is_bold(digits):
    model = Mixture(shape=(8, 8, 1))
    entries = [
        entry("a", model, digits, nll(3.0)),
        entry("b", model, digits, nll(2.0)),
        entry("c", model, digits, nll(1.0, "upper bound")),
    ]
    section = sections.estimates_section(entries)
    table = section.cards[0].pieces[0]
    assert isinstance(table, Table)
    assert table.best == {(0, "b")}
    assert table.rows[0]["c"] == "≤ 1.00 ± 0.10 (n = 50)"
    assert "≤ upper bound" in section.intro


def test_fields_of_a_model_that_differ_from_the_defaults():
    model = VAE(shape=(8, 8, 1), latent=7, encoder=MLP((16,), "elu"))
    assert sections.changed_fields(model) == {"latent": "7", "encoder.hidden": "(16)"}
    changed = sections.changed_fields(GAN(shape=(8, 8, 1)))
    assert changed == {}


def test_the_longest_piece_of_a_text_in_a_corpus():
    assert sections.longest_piece("xxabcdyyab", "0abcd1ab") == (2, 4)
    assert sections.longest_piece("xyz", "abc") == (0, 0)
    assert sections.longest_piece("", "abc") == (0, 0)


def test_rows_are_in_the_units_of_the_data():
    x = np.array([[1.5, 0, 1], [2.5, 1, 0], [3.5, 0, 1], [4.5, 1, 0]] * 10, np.float32)
    x[:, 0] += np.arange(40) / 100
    dataset = data.from_arrays(x, name="table", words=("length", "kind=a", "kind=b"))
    row = np.asarray(dataset.format.decode({"x": dataset.train["x"][:1]}, None)["x"])[0]  # type: ignore
    first = dataset.train["x"][0]
    assert sections.row_of(dataset, row) == {
        "length": f"{first[0]:.4g}",
        "kind": "a" if first[1] else "b",
    }


RUN = ("--steps", "4", "--report-every", "2", "--checkpoint-every", "4", "--no-pictures")


def show_few(monkeypatch):
    """Let the sections show few examples, in small pictures."""
    for name, value in {"SAMPLES": 20, "CODES": 40, "COMPLETED": 8, "SCORED": 60}.items():
        monkeypatch.setattr(sections, name, value)
    monkeypatch.setattr(page, "RESOLUTIONS", (50,))


@pytest.fixture
def few(monkeypatch):
    show_few(monkeypatch)


def test_two_runs_stand_side_by_side(tmp_path, few, capsys):
    folders = [str(tmp_path / name) for name in ("mine", "other")]
    for seed, folder in enumerate(folders):
        assert main(["train", "ae_digits", *RUN, "--seed", str(seed), "--out", folder]) == 0
    (tmp_path / "other" / "faults.log").write_text("step 2, seed 1: dead: many units are 0\n")
    out = tmp_path / "page.html"
    assert main(["report", *folders, "--out", str(out)]) == 0
    text = check_page(out)
    for title in ("Overview", "Data", "Models", "Estimates", "Training", "Reconstructions"):
        assert f'title">{title}</h2>' in text
    for title in ("Codes", "Strangest test examples", "Cost and commands"):
        assert f'title">{title}</h2>' in text
    for folder in folders:
        record = json.loads(Path(folder, "evaluation.json").read_text())
        shown = estimate.from_json(record["estimates"]["mse"])
        assert str(shown).split(" (")[0] in text
        assert record["command"].partition(" ")[0] in text
    assert "<td>1 of 2</td>" in text
    assert "<td>2 of 2</td>" in text
    assert "dead: many units are 0" in text
    assert "mine: no samples, since Autoencoder does not model p(x)" in text
    assert "no completions" not in text  # which nobody expects of autoencoders alone
    before = Path(folders[0], "evaluation.json").stat().st_mtime_ns
    entry = runs.load([Path(folders[0])])[0]
    assert entry.cost.steps == 4
    assert Path(folders[0], "evaluation.json").stat().st_mtime_ns == before
    assert "unfinished" not in text


@pytest.mark.slow
def test_runs_of_two_families_stand_side_by_side(tmp_path, few):
    folders = [str(tmp_path / "vae"), str(tmp_path / "ae")]
    assert main(["train", "vae_digits", *RUN, "--out", folders[0]]) == 0
    assert main(["train", "ae_digits", *RUN, "--out", folders[1]]) == 0
    out = tmp_path / "page.html"
    assert main(["report", *folders, "--out", str(out)]) == 0
    text = check_page(out)
    record = json.loads(Path(folders[0], "evaluation.json").read_text())
    shown = estimate.from_json(record["estimates"]["nll"])
    assert f"≤ {str(shown).split(' (')[0]}" in text
    assert 'title">Samples</h2>' in text
    assert 'title">Completions</h2>' in text
    assert "ae: no samples, since Autoencoder does not model p(x)" in text
    assert "ae: no completions, since Autoencoder has no method complete" in text
    assert "Here no two estimates can be ranked." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run given"),
        (["absent"], "absent holds no run"),
        (["vae_digits", "vae_digits"], "vae_digits is given twice"),
        (["vae_digits", "--out", "page.pdf"], "give a name that ends in .html"),
        (["vae_digits", "--out", "none/page.html"], "lies in no folder"),
    ],
)
def test_refusals_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Data of one's own of every form: images in colour, a table, a text and sequences."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    for i in range(60):
        place = folder / "photos" / ("dark" if i % 2 else "light")
        place.mkdir(parents=True, exist_ok=True)
        image = random.integers(100 * (1 - i % 2), 150 + 100 * (1 - i % 2), (8, 8, 3))
        Image.fromarray(image.astype(np.uint8)).save(place / f"{i}.png")
    table = random.normal(size=(120, 4)) @ random.normal(size=(4, 4))
    lines = [",".join([*(f"{value:.4f}" for value in row), "ab"[int(row[0] > 0)]]) for row in table]
    (folder / "table.csv").write_text("\n".join(["p,q,r,s,class", *lines]))
    flags = random.integers(0, 2, (120, 14))
    names = ",".join(f"word{i}" for i in range(14))
    (folder / "words.csv").write_text(
        "\n".join([names, *(",".join(map(str, row)) for row in flags)])
    )
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran"]
    text = " ".join(words[i] for i in random.integers(0, len(words), 4_000))
    (folder / "story.txt").write_text(text)
    length = random.integers(10, 20, 60)
    x = random.normal(size=(60, 20, 2)).cumsum(1)
    np.savez(folder / "series.npz", x=x.astype(np.float32), length=length)
    return folder


QUICK = ("--model.sample-steps", "5", "--model.time-draws", "2", "--model.ode-examples", "0")
"""Few steps of a diffusion model."""
SHORT_AIS = ("--model.ais.temperatures", "10", "--model.ais.chains", "5")
"""Few temperatures and chains of annealed importance sampling."""

KINDS = {
    "images in grey, diffusion": ("diffusion_digits", *QUICK),
    "images in grey, GAN": ("gan_digits",),
    "images in grey, labels": ("cvae_mnist", "--data", "digits"),
    "images, RBM": ("rbm_tempered_digits", "--validate-every", "0", *SHORT_AIS),
    "images, PixelCNN": ("pixelcnn_digits", "--validate-every", "0"),
    "images, discrete diffusion": (
        "discrete_diffusion_digits",
        "--model.sample-steps",
        "5",
        "--validate-every",
        "0",
    ),
    "images, mixture": ("mixture_binarized_mnist", "--data", "digits", "--binarize", "threshold"),
    "images, classifier": ("classifier_digits", "--validate-every", "0"),
    "images in colour": ("vae_conv_mnist", "--data", "photos"),
    "table, mixture": ("gaussians_odds", "--data", "table.csv", "--label-column", "class"),
    "points": ("diffusion_toy", *QUICK, "--validate-every", "0"),
    "text": ("hmm_letters", "--data", "story.txt"),
    "sequences": ("hmm_regimes", "--data", "series.npz"),
    "documents": ("rbm_digits_nudged", "--data", "words.csv", "--no-probe", *SHORT_AIS),
}
"""A model for each kind of data, and of each family."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_and_every_kind_of_data_has_a_page(kind, files, tmp_path, few, monkeypatch):
    name, *flags = KINDS[kind]
    monkeypatch.chdir(files)
    common = ["--batch-size", "20", *RUN[:-1]]
    if "--validate-every" not in flags:
        common += ["--validate-every", "2" if name.startswith(("hmm", "gaussians")) else "0"]
    arguments = ["train", name, *flags, *common, "--no-pictures", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "run"), "--out", str(out)]) == 0
    text = check_page(out)
    assert 'title">Samples</h2>' in text
    assert 'title">Strangest test examples</h2>' in text


@pytest.mark.slow
def test_published_weights_stand_beside_a_run(tmp_path, few):
    run, out = tmp_path / "run", tmp_path / "page.html"
    assert main(["train", "vae_digits", *RUN, "--out", str(run)]) == 0
    assert main(["report", "vae_digits", "rbm_tempered_digits", str(run), "--out", str(out)]) == 0
    text = check_page(out)
    assert text.count("<h3>vae_digits <span>VAE</span></h3>") > 3
    assert "1 of 2" in text


@pytest.mark.slow
def test_a_browser_shows_the_page_on_a_desk_and_on_a_phone(files, tmp_path, few, monkeypatch):
    if not browser.CHROMIUM:
        pytest.skip("there is no Chromium: apt-get install chromium")
    monkeypatch.chdir(files)
    folders = []
    for name in ("images in grey, GAN", "table, mixture", "text"):
        experiment, *flags = KINDS[name]
        folders.append(str(tmp_path / experiment))
        train = ["train", experiment, *flags, "--batch-size", "20", *RUN, "--out", folders[-1]]
        assert main([*train, "--validate-every", "2"]) == 0
    out = tmp_path / "page.html"
    assert main(["report", *folders, "--out", str(out)]) == 0
    grounds = set()
    for width in (1280, 390):
        for dark in (False, True):
            seen = browser.view(out, width, dark)
            assert seen.messages == []
            assert seen.content == width
            assert seen.overflowing == []
            grounds.add(seen.background)
    assert len(grounds) == 2
