"""The generated parts of the documentation: Markdown from registry, docstrings and result files.

The pages in `docs/` are written by hand. A line such as
`<!-- {{ papers("gen/models/vae.py") }} -->` in one of them is replaced with what the function of
that name returns; `PARTS` lists these functions.
`mkdocs build` makes the site (`docs/hooks.py`).
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from experiments import listing, table
from experiments.flags import field_texts
from experiments.folder import read_json
from experiments.registry import EXPERIMENTS
from gen import config
from gen.core import CAPABILITIES, capabilities, require
from gen.trained import WEIGHTS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
CHAPTER = ROOT / "experiments" / "chapter"
SOURCES = "https://github.com/OWNER/gen/blob/main/"
"""Address of the files of the repository, for links to files that have no page."""

TEXT_LINES, TEXT_WIDTH = 10, 160
"""Largest numbers of lines, and of letters in a line, that a page shows of a text."""

HIDDEN = ("seeds", "parameters", "seconds", "commit")
"""Columns of the table of estimates that are the same for all estimates of a run."""

CAPTIONS = {
    "samples": "samples",
    "points": "test examples and samples",
    "sequences": "test sequences and samples",
    "reconstructions": "test examples and reconstructions",
    "completions": "test examples, completed from the part that is shown",
    "denoising": "from noise to data",
    "steps": "samples by the number of steps",
    "chains": "Gibbs chains, by the number of sweeps",
    "codes": "codes of test examples, coloured by label",
    "interpolations": "paths between codes",
    "filters": "weights of hidden units",
    "posterior": "posterior of the states",
    "tables": "tables of the model's probabilities",
    "bracket": "log Z between both ends of AIS, by temperatures",
    "strip": "samples through training",
    "curves": "training curves",
}
"""Captions of pictures by the stems of their files, in the order of the gallery."""

USE_CAPTIONS = {
    "anomaly": "scores, and the share of anomalies found by the share of false alarms",
    "defects": "heat maps of defects",
    "onset": "alarms after the onset of a fault",
    "complete": "occluded test examples and their completions",
    "documents": "words and groups of documents",
    "latent": "map of the codes, their dimensions, and paths between them",
    "features": "errors by the number of labels",
}
"""Captions of the pictures of commands that use trained models."""

SECTIONS = {
    "Judging samples": "uses/judge.md",
    "Anomalies": "uses/anomaly.md",
    "Completing test examples": "uses/complete.md",
    "Codes": "uses/latent.md",
    "Documents": "uses/documents.md",
    "Features": "uses/features.md",
}
"""Pages of sections of BUILD.md. Every other section has the page `manual/TITLE.md`."""

FILES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/results/RESULTS.md": "results.md",
}
"""Pages of whole files."""


class Comment(NamedTuple):
    """The comment above an experiment in the registry."""

    description: str
    command: str
    result: str


class Paper(NamedTuple):
    """A link in the source code, with the citation in front of it."""

    url: str
    text: str  # authors, year and title; empty if the link stands alone
    places: tuple[str, ...]  # files


@cache
def comments() -> Mapping[str, Comment]:
    """Return the comment of every experiment in the registry by the experiment's name."""
    found = {}
    for path in sorted((ROOT / "experiments" / "registry").glob("*.py")):
        entries = r'((?:^    #.*\n)+)    "(\w+)": Experiment\('
        for text, name in re.findall(entries, path.read_text(), re.MULTILINE):
            lines = [line.strip().removeprefix("#").strip() for line in text.splitlines()]
            start = next(i for i, line in enumerate(lines) if line.startswith("python -m"))
            description = " ".join(line or "\n\n" for line in lines[:start]).strip()
            found[name] = Comment(description, lines[start], " ".join(lines[start + 1 :]))
    return found


def family_of(family: str) -> dict[str, Any]:
    """Return the registered experiments of a family by name."""
    return {name: each for name, each in EXPERIMENTS.items() if each.model.family == family}


def experiments(family: str) -> str:
    """Return a block that unfolds for each experiment of a family, with all about it."""
    return "\n\n".join(map(details, family_of(family)))


def details(name: str) -> str:
    """Return a block that unfolds: the summary of an experiment, its command and its results."""
    comment, experiment = comments()[name], EXPERIMENTS[name]
    record = read_json(RESULTS / f"{name}.json", *table.NEEDED)
    cells = [f"<code>{name}</code>", experiment.data, "not published"]
    command = comment.command
    facts = [f"{experiment.steps:,} steps of {experiment.batch_size:,} examples"]
    estimates: list[dict[str, str]] = []
    if record:
        cells[2] = f"{listing.headline(record)}, {listing.minutes(record)}\N{NO-BREAK SPACE}min"
        command = record["command"]
        facts += [
            f"{record['parameters']:,} parameters",
            f"seeds: {table.seeds(record)}",
            f"{record['train_seconds']:,.0f} s on {record['device']}",
            f"commit {table.commit(record)}".replace("commit commit", "commit"),
        ]
        estimates = [
            {key: row[key] for key in row if key not in ("experiment", *HIDDEN)}
            for row in table.estimate_rows([record])
        ]
    if (RESULTS / name / WEIGHTS).exists():
        facts.append(f'published weights, `gen.load("{name}")`')
    stems = [stem for stem in CAPTIONS if (RESULTS / name / f"{stem}.png").exists()]
    parts = (
        f'<details class="experiment" id="{name}" markdown>',
        f"<summary>{''.join(f'<span>{cell}</span>' for cell in cells)}</summary>",
        comment.description,
        f"```sh\n{command}\n```",
        comment.result,
        table.rows_as_markdown(estimates),
        "; ".join(facts) + ".",
        pictures(*(f"{name}/{stem}" for stem in stems)),
        *(excerpt(f"{name}/{path.name}") for path in sorted((RESULTS / name).glob("*.txt"))),
        "</details>",
    )
    return "\n\n".join(filter(None, parts))


def caption_of(stem: str) -> str:
    """Return the caption of a picture, by the stem of its file.

    The picture of a command can have settings in its name, as `anomaly-complexity-mnist` has. They
    stand in parentheses.
    """
    kind, _, settings = stem.partition("-")
    text = CAPTIONS.get(kind) or USE_CAPTIONS.get(kind, kind)
    return f"{text} ({settings.replace('-', ', ')})" if settings else text


def pictures(*names: str, style: str = "pictures") -> str:
    """Return pictures of results side by side, each a link to the picture alone.

    Args:
      names: `EXPERIMENT/PICTURE`, the path in the folder of the results without `.png`.
      style: classes of the style sheet.
    """
    if not names:
        return ""
    figures = []
    for name in names:
        experiment, _, stem = name.partition("/")
        several = len({each.partition("/")[0] for each in names}) > 1
        title = caption_of(stem)
        caption = f"`{experiment}`: {title}" if several else title
        address = f"../results/{name}.png"
        image = f"[![{title}]({address}){{ loading=lazy }}]({address})"
        figures.append(
            f"<figure markdown>\n{image}\n<figcaption markdown>{caption}</figcaption>\n</figure>"
        )
    return f'<div class="{style}" markdown>\n\n' + "\n\n".join(figures) + "\n\n</div>"


def excerpt(name: str) -> str:
    """Return the first lines of a text of results as a block of code.

    Args:
      name: `EXPERIMENT/FILE`, the path in the folder of the results.
    """
    lines = (RESULTS / name).read_text().splitlines()
    return "```text\n" + "\n".join(line[:TEXT_WIDTH] for line in lines[:TEXT_LINES]) + "\n```"


def models(family: str) -> dict[str, list[Any]]:
    """Return the models of the registered experiments of a family by the name of their class."""
    found: dict[str, list[Any]] = {}
    for experiment in family_of(family).values():
        found.setdefault(type(experiment.model).__name__, []).append(experiment.model)
    return found


def can(family: str) -> str:
    """Return a table of the optional methods that the models of a family have."""
    of_class = models(family)
    rows = []
    for method, text in CAPABILITIES.items():
        having = {
            name: sum(method in capabilities(model) for model in each)
            for name, each in of_class.items()
        }
        if any(having.values()):
            marks = {
                f"`{name}`": "yes" if count == len(of_class[name]) else "some" if count else "–"
                for name, count in having.items()
            }
            signature, _, explanation = text.partition(" -> ")
            rows.append(
                {"method": f"`{signature}`", **marks, "result": explanation.replace("|", "\\|")}
            )
    return table.rows_as_markdown(rows)


def model_fields(*names: str) -> str:
    """Return tables of the fields of some classes: name, default and one line of explanation.

    Args:
      names: names of classes in `gen.config.PARTS`.
    """
    parts = []
    for name in names:
        kind = getattr(import_module(config.PARTS[name]), name)
        (tree,) = ast.parse(inspect.getsource(kind)).body
        assert isinstance(tree, ast.ClassDef)
        texts = field_texts(kind)
        rows = [
            {
                "field": f"`{ast.unparse(field.target)}`",
                "default": f"`{ast.unparse(field.value)}`" if field.value else "",
                "meaning": " ".join(texts[ast.unparse(field.target)].split()),
            }
            for field in tree.body
            if isinstance(field, ast.AnnAssign)
            and ast.unparse(field.target) in texts
            and "ClassVar" not in ast.unparse(field.annotation)
        ]
        cells = [{key: cell.replace("|", "\\|") for key, cell in row.items()} for row in rows]
        parts.append(f"**`{name}`**\n\n{table.rows_as_markdown(cells)}")
    return "\n".join(parts)


def reference(family: str, *paths: str) -> str:
    """Return the sections that follow the formulas on the page of a family.

    Args:
      family: the name of the family in the registry.
      paths: Python files and folders of the repository that belong to it.
    """
    files = [file for path in paths for file in python_files(path)]
    own = [
        name
        for name, module in config.PARTS.items()
        if ROOT / f"{module.replace('.', '/')}.py" in files
    ]
    first = list(models(family))  # models before their parts
    names = sorted(own, key=lambda name: first.index(name) if name in first else len(first))
    parts = {
        "Experiments": "[How to read these sections](index.md)\n\n" + experiments(family),
        "Deviations from the papers": deviations(*paths),
        "Papers": papers(*paths),
        "Fields": f'<div class="explained" markdown>\n\n{model_fields(*names)}\n\n</div>',
        "Methods": f'<div class="explained" markdown>\n\n{can(family)}\n\n</div>',
    }
    return "\n".join(f"## {title}\n\n{text}\n" for title, text in parts.items())


def python_files(path: str) -> list[Path]:
    """Return a Python file of the repository, or all Python files of a folder."""
    return sorted((ROOT / path).rglob("*.py")) if not path.endswith(".py") else [ROOT / path]


def docstrings(path: Path) -> Iterable[tuple[str, str]]:
    """Yield the name and the docstring of a module, and of its classes and functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield (path.stem if isinstance(node, ast.Module) else node.name), text


DEVIATIONS = re.compile(r"^Deviations? from (?:[^:]|:(?=//))+:", re.MULTILINE)
"""The heading of deviations in a docstring: text up to a colon that is in no address."""


def deviations(*paths: str) -> str:
    """Return the lists of deviations from papers that stand in docstrings.

    Args:
      paths: Python files and folders of the repository.
    """
    parts = []
    for path in (file for each in paths for file in python_files(each)):
        for name, text in docstrings(path):
            for start in DEVIATIONS.finditer(text):
                listed = re.match(r"\s*\n((?:- .*\n?(?:  .*\n?)*|\n(?=- ))+)", text[start.end() :])
                sentence = text[start.end() :].partition("\n\n")[0].strip()
                # A Greek letter is a symbol, whose capital is another one.
                capital = sentence[:1].upper() if sentence[:1].isascii() else sentence[:1]
                body = listed[1] if listed else capital + sentence[1:]
                title = " ".join(start[0].split())
                parts.append(f"**{title.removesuffix(':')}** (`{name}`)\n\n{body}\n")
    return "\n".join(parts)


AUTHOR = r"(?:van den |van der |de )?[A-ZÀ-ÖØ-Þ][\w’-]+"
ADDRESS = r"https?://(?:[^\s()\],;\"'>`]|\([^\s()]*\))+"
LINK = re.compile(ADDRESS)
CITATION = re.compile(  # authors, year, at most a title and a venue without a year, address
    rf"({AUTHOR}(?:, {AUTHOR})*(?:,? (?:&|and) {AUTHOR}| et al\.)?) (\d{{4}}[ab]?)"
    rf"((?:(?!https?://|\. [A-Z]|;|\b(?:19|20)\d\d).){{0,200}}?)({ADDRESS})"
)


def text_of(path: Path) -> str:
    """Return the docstrings and comments of a Python file as text without line breaks."""
    remarks = re.findall(r"#\s(.*)", path.read_text())
    return " ".join(" ".join([*(text for _, text in docstrings(path)), *remarks]).split())


@cache
def paper_list(*paths: str) -> tuple[Paper, ...]:
    """Return the links in docstrings and comments, each with its longest citation.

    Args:
      paths: Python files and folders of the repository.
    """
    texts: dict[str, str] = {}
    places: dict[str, list[str]] = {}
    for path in (file for each in paths for file in python_files(each)):
        text = text_of(path)
        for url in map(clean, LINK.findall(text)):
            if "OWNER" not in url:
                texts.setdefault(url, "")
                name = str(path.relative_to(ROOT))
                if name not in places.setdefault(url, []):
                    places[url].append(name)
        for authors, year, between, url in CITATION.findall(text):
            title = re.search(r'"([^"]+)"', between)
            citation = f"{authors} {year}" + (f", *{title[1].rstrip(',')}*" if title else "")
            if len(citation) > len(texts[clean(url)]):
                texts[clean(url)] = citation
    papers = (Paper(url, text, tuple(places[url])) for url, text in texts.items())
    return tuple(sorted(papers, key=lambda each: (not each.text, each.text.lower(), each.url)))


def clean(url: str) -> str:
    """Return a link without the full stop or colon of the sentence around it."""
    return url.rstrip(".:")


def papers(*paths: str) -> str:
    """Return the list of the papers that docstrings and comments cite, with links.

    Args:
      paths: Python files and folders of the repository.
    """
    return "".join(
        f"- [{each.text or short(each.url)}]({each.url})\n" for each in paper_list(*paths)
    )


def short(url: str) -> str:
    """Return a link without its protocol."""
    return re.sub(r"https?://(www\.)?", "", url).rstrip("/")


def notebook(number: int) -> str:
    """Return a link to a notebook of the chapter, or nothing if there is none of this number."""
    found = sorted(CHAPTER.glob(f"{number:02}_*.ipynb"))
    if not found:
        return ""
    address = f"../chapter/{found[0].stem}.md"
    return f"[Notebook {number}]({address}) trains and examines models of this family."


def use(*commands: str) -> str:
    """Return the published results and pictures of commands that use trained models.

    Args:
      commands: `judge`, or keys of `table.USES`.
    """
    parts = []
    if "judge" in commands:
        parts += [
            f"**{title}**\n\n{table.rows_as_markdown(table.judgement_rows(records))}"
            for title, records in table.judgements(RESULTS).items()
        ]
    for command in commands:
        if rows := command in table.USES and table.use_rows(RESULTS, command):
            heading, explanation = table.USES[command]
            parts.append(f"**{heading}**\n\n{explanation}\n{table.rows_as_markdown(rows)}")
        records = [*RESULTS.glob(f"*/{command}.json"), *RESULTS.glob(f"*/{command}-*.json")]
        drawn = [path for path in sorted(records) if path.with_suffix(".png").exists()]
        names = (f"{path.parent.name}/{path.stem}" for path in drawn)
        parts.append(pictures(*names, style="pictures large"))
    return "\n\n".join(filter(None, parts)) or "No results are published."


def speed() -> str:
    """Return the tables of speeds beside other libraries, from bench.json."""
    bench = json.loads((RESULTS / "bench.json").read_text())
    em = [
        {
            "EM": task,
            "gen": f"{row['gen']:.3g}",
            "hmmlearn": f"{row['hmmlearn, scaling']:.3g}",
            "dynamax": f"{row['dynamax']:.3g}",
        }
        for task, row in bench["em"].items()
    ]
    rbm = [
        {
            "RBM": row["machine"],
            "gen": f"{row['gen']:,.0f}",
            "scikit-learn": f"{row['sklearn']:,.0f}",
        }
        for row in bench["rbm"]["training"]
    ]
    steps = [
        {
            "experiment": f"`{name}`",
            "parameters": f"{row['parameters']:,}",
            "gen": f"{row['gen']:.3g}",
            "PyTorch": f"{row['torch']:.3g}",
            "PyTorch, fused Adam": f"{row['fused']:.3g}",
        }
        for name, row in bench["pytorch"].items()
    ]
    titles = ("Iterations per second", "Rows per second", "Training steps per second")
    parts = [f"Measured on {bench['device']}.\n"]
    for title, rows in zip(titles, (em, rbm, steps), strict=True):
        parts.append(f"## {title}\n\n{table.rows_as_markdown(rows)}")
    return "\n".join(parts)


def sections(file: str) -> dict[str, str]:
    """Return the sections of a document of the repository by their headings of the second level."""
    parts = re.split(r"^## (.+)$", (ROOT / file).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def section(title: str) -> str:
    """Return a section of BUILD.md, for a page in a folder of the documentation."""
    return located(sections("BUILD.md")[title], "BUILD.md", depth=1)


def readme_code(title: str) -> str:
    """Return the blocks of code of a section of README.md."""
    return "\n".join(re.findall(r"```\w+\n.*?```\n", sections("README.md")[title], re.DOTALL))


def slug(title: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def page_of(section: str) -> str:
    """Return the page of a section of BUILD.md."""
    return SECTIONS.get(section, f"manual/{slug(section)}.md")


LINKS = r"""```.*?```|`[^`]*`|(?P<before>\]\(|src=")(?P<address>[^)"\s]+)(?P<after>[)"])"""
"""A block or span of code, or the address of a link or a picture."""


def located(text: str, file: str, depth: int) -> str:
    """Return a document of the repository with links that hold in the documentation.

    Args:
      text: Markdown with links relative to the file.
      file: path of the document in the repository.
      depth: number of folders above the page that shows it.
    """
    up = "../" * depth
    anchors = {slug(each): page_of(each) for each in sections("BUILD.md")}

    def target(address: str) -> str:
        path, _, anchor = address.partition("#")
        if re.match(r"\w+:", address):
            return address
        if path:
            path = str((ROOT / file).parent.joinpath(path).resolve().relative_to(ROOT))
        else:
            path = file
        if path == "BUILD.md":
            return up + (anchors[anchor] if anchor else "manual/install.md")
        if path in FILES:
            return up + FILES[path] + ("#" + anchor) * bool(anchor)
        if path.startswith("docs/"):
            return up + path.removeprefix("docs/")
        if path.startswith(("experiments/results/", "experiments/chapter/")):
            name = path.removeprefix("experiments/").replace(".ipynb", ".md")
            return up + name if name.endswith((".md", ".png")) else SOURCES + path
        if path.startswith("gen/"):
            return f"{up}api/{path.removesuffix('.py').replace('/', '.')}.md"
        return SOURCES + path

    def replaced(match: re.Match[str]) -> str:
        before, address, after = match.group("before", "address", "after")
        return match[0] if address is None else f"{before}{target(address)}{after}"

    return re.sub(LINKS, replaced, text, flags=re.DOTALL)


def cards() -> str:
    """Return a card for each family, in the groups of the taxonomy."""
    groups: dict[str, list[str]] = {}
    for page in family_pages():
        picture = argument(page, "pictures")
        density = next(iter(family_of(argument(page, "reference")).values())).model.density
        title = page.read_text().partition("\n")[0].removeprefix("# ")
        image = f"![{title}](results/{picture}.png){{ loading=lazy }}"
        groups.setdefault(density, []).append(f"- [{image}{title}](families/{page.name})\n")
    parts = [
        f"<div markdown>\n\n**p(x) is {text}**\n\n{''.join(groups[density])}\n</div>\n"
        for density, text in listing.DENSITIES.items()
        if density in groups
    ]
    return '<div class="cards" markdown>\n\n' + "\n".join(parts) + "\n</div>\n"


def family_pages() -> list[Path]:
    """Return the hand-written page of each family."""
    pages = sorted((ROOT / "docs" / "families").glob("*.md"))
    return [page for page in pages if page.stem != "index"]


def argument(page: Path, function: str) -> str:
    """Return the first argument of the first call of a function on a page."""
    call = re.search(rf'^<!-- \{{\{{ {function}\("([^"]+)"', page.read_text(), re.MULTILINE)
    require(call is not None, f"{page}: no line {{{{ {function}(...) }}}}")
    assert call
    return call[1]


PARTS: dict[str, Callable[..., str]] = {
    each.__name__: each
    for each in (
        *(reference, experiments, model_fields, pictures, excerpt, papers, notebook),
        *(use, speed, section, readme_code),
    )
}
"""Functions that a page can call."""


def render(text: str) -> str:
    """Return a page with each line `<!-- {{ function("argument", ...) }} -->` replaced.

    The line is a comment, so that a page reads well without its generated parts, too.
    """

    def part(match: re.Match[str]) -> str:
        return PARTS[match[1]](*ast.literal_eval(f"({match[2]},)" if match[2] else "()"))

    return re.sub(r"^<!-- \{\{ (\w+)\((.*)\) \}\} -->$", part, text, flags=re.MULTILINE)
