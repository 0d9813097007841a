"""The shape of the code: imports, questions to models, and docstrings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gen.core import CAPABILITIES, Model
from gen.models.autoregressive import CausalNet
from gen.models.hmm.emissions import Emission

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("gen/**/*.py"), *ROOT.glob("experiments/**/*.py")])

NOT_MODELS = {
    "gen/nets.py": "fields of a network that its model sets, and nonlinearities of flax by name",
    "gen/optimize.py": "fields of an optimiser, and the parts of a path in a tree",
    "gen/config.py": "fields of a model and of its parts, to and from JSON",
    "gen/sklearn.py": "fields of a model and of its parts, which are parameters of an estimator",
    "experiments/gallery.py": "the classes of a module",
    "gen/data/tables.py": "the columns of a data frame",
    "gen/data/prepared.py": "the names of a feature's classes",
    "experiments/experiment.py": "fields of an experiment",
    "experiments/flags.py": "the names of flags, and the fields of their values",
    "experiments/folder.py": "functions of the operating system",
}
"""Files that ask objects other than models for attributes by name, and what they ask for."""


LOOKUPS = ("getattr", "hasattr", "vars")


class Public(NamedTuple):
    """A public function or method."""

    place: str  # file:line name
    node: ast.FunctionDef
    method: bool


def names_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parsed() -> Iterator[tuple[str, ast.Module]]:
    for path in SOURCES:
        yield names_of(path), ast.parse(path.read_text())


def documented(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Yield every function with a docstring, and the docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield node, text


def public_functions() -> Iterator[Public]:
    """Yield the functions of modules and the methods of classes without a leading underscore."""
    for name, tree in parsed():
        for node in tree.body:
            members = node.body if isinstance(node, ast.ClassDef) else [node]
            for member in members:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                    place = f"{name}:{member.lineno} {member.name}"
                    yield Public(place, member, isinstance(node, ast.ClassDef))


def test_models_are_asked_only_through_core():
    """Outside of `gen/models` and `gen/core.py`, no attribute is looked up by name, except in the
    listed files, whose objects are not models."""
    found = []
    for name, tree in parsed():
        if name.startswith("gen/models/") or name == "gen/core.py" or name in NOT_MODELS:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in LOOKUPS:
                found.append(f"{name}:{node.lineno}")
            if isinstance(node, ast.ExceptHandler) and "AttributeError" in ast.unparse(node):
                found.append(f"{name}:{node.lineno}")
    assert not found


def test_the_listed_exceptions_exist():
    for name in NOT_MODELS:
        assert re.search(r"\b(getattr|hasattr|vars)\(", (ROOT / name).read_text()), name


def imported(tree: ast.Module, modules: set[str]) -> set[str]:
    """Return the modules of `gen` that a module imports when it is imported itself."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found & modules


def test_imports_make_no_circle_and_gen_does_not_import_experiments():
    graph = {}
    trees = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): tree
        for name, tree in parsed()
    }
    for module, tree in trees.items():
        packages = {module.rsplit(".", depth)[0] for depth in range(module.count(".") + 1)}
        graph[module] = imported(tree, set(trees)) - packages
        if module.startswith("gen"):
            assert not [name for name in graph[module] if name.startswith("experiments")]
    # A module imports its siblings through their package, which is no circle by itself.
    done: set[str] = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])


POOR_STARTS = set(
    re.findall(
        r"\w+",
        "a an the of what whether how those these that this which it its as in on at by for from "
        "with to under over where when all both each so two",
    )
)
"""First words of docstrings that are fragments and no sentences."""


def test_docstrings_of_functions_begin_with_a_verb():
    poor = []
    for name, tree in parsed():
        for node, text in documented(tree):
            if not is_property(node):
                first = re.split(r"\W", text, maxsplit=1)[0].lower()
                if first in POOR_STARTS:
                    poor.append(f"{name}:{node.lineno} {text.splitlines()[0]}")
    assert not poor


def is_property(node: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize(
    "phrase", ["so many", "that of", "those of", "as it stands", "as they stand", "at hand"]
)
def test_phrases_that_must_be_read_twice_do_not_stand_in_the_code(phrase):
    files = [*SOURCES, ROOT / "README.md", ROOT / "BUILD.md", ROOT / "CONTRIBUTING.md"]
    found = [
        f"{names_of(path)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if phrase in line.lower()
    ]
    assert not found


CONTRACT = {
    name
    for protocol in (Model, CausalNet, Emission)
    for name in vars(protocol)
    if not name.startswith("_")
} | set(CAPABILITIES)
"""Methods whose arguments are documented once, in the protocol that names them."""


def test_public_functions_of_three_arguments_document_them():
    lacking = []
    for place, node, method in public_functions():
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        count = len(arguments) - method
        text = ast.get_docstring(node) or ""
        if (
            count >= 3
            and not re.search("Args:|[Aa]rguments", text)
            and not (method and node.name in CONTRACT)
        ):
            lacking.append(place)
    assert not lacking
