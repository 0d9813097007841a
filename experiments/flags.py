"""Parse the flags of a command, print what each one does, and name the nearest to a mistyped one.

tyro makes the flags from the fields of frozen dataclasses. The help is written here, in 80 columns:
the text of a flag is the docstring of its field.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import io
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro
from flax import linen as nn
from tyro.conf import Positional, Suppress

from gen.core import UserError

WIDTH = 80
"""Columns of help, of lists and of descriptions."""
TEXT_COLUMN = 22
"""Column at which the text of a flag begins. A longer flag has its text in the next line."""
INTERNAL = ("parent", "name")
"""Fields that Flax adds to every module, which are no flags."""

Arguments = TypeVar("Arguments")


class Flag(NamedTuple):
    """A flag as the help shows it, or an argument without a flag."""

    name: str  # --model.latent; without a flag RUN, [RUN] if it may be left out, RUN [RUN ...]
    values: str  # the kind of its values, such as INT; empty for a switch
    text: str  # the description of the flag, with its default
    path: str  # the path of its field, such as model.latent
    owner: str  # the class that has the field, such as VAE


class Group(NamedTuple):
    """The flags of one part of a configuration, such as the optimiser of a model."""

    title: str
    flags: list[Flag]


def parse(
    kind: type[Arguments], arguments: Sequence[str], command: str, default: Arguments | None = None
) -> Arguments:
    """Return the flags of a command. At --help, print the help and exit.

    Args:
      kind: the class whose fields are the flags.
      arguments: the command line after the name of the command.
      command: the name of the command, for its help.
      default: the values of flags that are not given; None for the defaults of the class.

    Raises:
      UserError: a flag is unknown, or a value is missing or of another kind.
    """
    if {"-h", "--help"} & {*arguments}:
        print(help_text(kind, command, default), end="")
        sys.exit(0)
    extra: dict[str, Any] = {} if default is None else {"default": default}
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), flags_in_errors(kind, default, arguments):
            chosen, unknown = tyro.cli(
                kind,
                args=arguments,
                prog=command,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
                return_unknown_args=True,
                **extra,
            )
    except SystemExit:
        # tyro frames its message under a title. A horizontal line separates it from the advice, and
        # from the title where the terminal has no signs for a frame.
        lines = [line.strip(" │|") for line in box.getvalue().splitlines()[1:]]
        parts = re.split("[─-]{4,}", " ".join(lines))
        message = next(part.strip(" .") for part in parts if part.strip())
        raise UserError(f"{message}; {_see_help(command)}") from None
    if unknown:
        names = [flag.name for group in groups(kind, default) for flag in group.flags]
        raise UserError(refusal(unknown[0], names, command))
    return chosen


@contextlib.contextmanager
def flags_in_errors(kind: type[Any], default: Any, arguments: Sequence[str]) -> Iterator[None]:
    """Name flags in place of fields in every `UserError` of the body.

    Args:
      kind: the class whose fields are the flags.
      default: an instance, whose parts have flags, too; None for the defaults of the class.
      arguments: the command line after the name of the command.
    """
    try:
        yield
    except UserError as error:
        listed = [flag for group in groups(kind, default) for flag in group.flags]
        raise UserError(with_flags(str(error), listed, arguments)) from error


def with_flags(message: str, flags: Sequence[Flag], arguments: Sequence[str] = ()) -> str:
    """Return a message about fields with the names of their flags.

    Fields stand in messages in four forms: `VAE: latent is`, where several parts can be of one
    class; a name with a dot or an underscore, such as `machine.units` or `validate_every`; the name
    of a field of the command itself at the start, `seed -1 is`; and a change, `steps: 10 -> 20`.

    Args:
      message: the text of an error.
      flags: the flags of the command.
      arguments: the command line. Of several flags that a field can stand for, the given ones are
        named.
    """
    given = {"--" + word.partition("=")[0].lstrip("-").replace("_", "-") for word in arguments}

    def named(candidates: Sequence[Flag], text: str) -> str:
        names = [flag.name for flag in candidates]
        return " or ".join([name for name in names if name in given] or names) or text

    def of_class(match: re.Match[str]) -> str:
        owner, field = match.groups()
        own = [flag for flag in flags if flag.owner == owner]
        return named([f for f in own if f.path.rpartition(".")[2] == field], match.group())

    def of_end(match: re.Match[str]) -> str:
        end = f".{match.group()}"
        return named([flag for flag in flags if f".{flag.path}".endswith(end)], match.group())

    def of_path(match: re.Match[str]) -> str:
        return named([flag for flag in flags if flag.path == match.group()], match.group())

    message = re.sub(r"\b([A-Z]\w*): ([a-z]\w*)(?= is\b)", of_class, message)
    message = re.sub(r"^[a-z]\w*(?= is\b| \S+ is\b)", of_path, message)
    message = re.sub(r"(?<![\w./-])[a-z][\w.]*(?=: [^:;]* -> )", of_path, message)
    return re.sub(r"(?<![\w./-])[a-z]+(?:[_.][a-z_]+)+(?![\w/(=])", of_end, message)


def refusal(argument: str, names: Sequence[str], command: str) -> str:
    """Return the line that refuses an unknown argument, with the flags that it may stand for.

    Args:
      argument: the argument.
      names: the flags of the command.
      command: the name of the command.
    """
    if not argument.startswith("-"):
        return f"{argument!r} belongs to no flag; {_see_help(command)}"
    flag = argument.partition("=")[0]
    near = nearest(flag, names)
    return f"unknown flag {flag}: " + (
        f"did you mean {' or '.join(near)}?" if near else _see_help(command)
    )


def _see_help(command: str) -> str:
    return f"python -m experiments {command} --help lists the flags"


def nearest(flag: str, names: Sequence[str]) -> list[str]:
    """Return up to three flags that a mistyped one may stand for, the likeliest first.

    The flag of a part, `--model.optimizer.learning-rate`, is also found by the name of its field,
    `--learning-rate`, by a word of it, `--rate`, and by its first letters, `--lr`.

    Args:
      flag: the mistyped flag.
      names: the flags of the command.
    """
    typed = flag.strip("-").replace("_", "-").lower()

    def likeness(name: str) -> float:
        whole = name.strip("-").lower()
        field = whole.rpartition(".")[2]
        words = field.split("-")
        if typed == field or (len(words) > 1 and typed == "".join(word[0] for word in words)):
            return 1.0
        ratios = (difflib.SequenceMatcher(None, typed, each).ratio() for each in (whole, field))
        return max(0.7 if typed in words else 0.0, *ratios)

    near = sorted((-likeness(name), i) for i, name in enumerate(names))
    if near and near[0][0] == -1.0:  # it stands for these exactly
        near = [pair for pair in near if pair[0] == -1.0]
    return [names[i] for minus, i in near[:3] if -minus >= 0.7]


def help_text(kind: type[Any], command: str, default: Any = None) -> str:
    """Return the help of a command: each flag, the kind of its values, its text and its default.

    Args:
      kind: the class whose fields are the flags.
      command: the name of the command.
      default: the values of flags that are not given; None for the defaults of the class.
    """
    listed = groups(kind, default)
    names = [flag.name for group in listed for flag in group.flags]
    arguments = "".join(f" {name}" for name in names if not name.startswith("-"))
    parts = [
        f"usage: python -m experiments {command}{arguments} [FLAGS]",
        textwrap.fill(" ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()), WIDTH),
    ]
    for group in listed:
        if group.flags:
            lines = [line for flag in group.flags for line in _lines(flag)]
            parts.append("\n".join([*textwrap.wrap(group.title, WIDTH), *lines]))
    return "\n\n".join(parts) + "\n"


def _lines(flag: Flag) -> list[str]:
    """Return a flag and its text as lines of two columns."""
    head = f"  {flag.name} {flag.values}".rstrip()
    text = textwrap.wrap(flag.text, WIDTH - TEXT_COLUMN, break_on_hyphens=False) or [""]
    lines = [f"{'':{TEXT_COLUMN}}{line}" for line in text]
    if len(head) + 2 <= TEXT_COLUMN:
        return [f"{head:{TEXT_COLUMN}}{text[0]}", *lines[1:]]
    heads = [head] if len(head) <= WIDTH else [f"  {flag.name}", f"      {flag.values}"]
    return [*heads, *lines]


def groups(kind: type[Any], default: Any = None, prefix: str = "", title: str = "") -> list[Group]:
    """Return the flags that tyro makes of a class, and after them the flags of its parts.

    Fields that the class sets itself, whose paths are its `overwrites`, are left out.

    Args:
      kind: a dataclass.
      default: an instance, whose values are the defaults; None for the defaults of the class.
      prefix: the name of this part with a dot, which begins its flags.
      title: the title of this part.
    """
    hints, texts = get_type_hints(kind, include_extras=True), field_texts(kind)
    overwritten = {f"{prefix}{path}".replace("-", "_") for path in getattr(kind, "overwrites", ())}
    own, parts = Group(title or "flags:", []), []
    for field in fields(kind):
        hint, marks = _split(hints[field.name])
        internal = issubclass(kind, nn.Module) and field.name in INTERNAL
        if Suppress in marks or internal:
            continue
        value = field.default if default is None else getattr(default, field.name)
        value = MISSING if value is tyro.MISSING else value
        if hint is Any and value is None:  # a part that is absent has no flags
            continue
        renamed = [mark.name for mark in marks if hasattr(mark, "name") and mark.name is not None]
        name = prefix + (renamed[0] if renamed else field.name.replace("_", "-"))
        text = " ".join(texts.get(field.name, "").split())
        place = (name.replace("-", "_"), kind.__name__)
        if is_dataclass(value) and not isinstance(value, type):
            inner = groups(type(value), value, name and f"{name}.", f"--{name}: {text}")
            if not name:  # the flags of this part stand among the flags of the whole
                own.flags.extend(inner.pop(0).flags)
            parts += inner
        elif Positional in marks:
            argument, repeated = field.name.upper(), ""
            if get_origin(hint) is tuple:  # `runs` is RUN [RUN ...]
                argument = argument.removesuffix("S")
                repeated = f" [{argument} ...]" if value is MISSING else " ..."
            argument += repeated
            argument = argument if value is MISSING else f"[{argument}]"
            own.flags.append(Flag(argument, "", _with_default(text, value), *place))
        elif isinstance(value, bool):
            switch = f"{prefix}no-{name.removeprefix(prefix)}" if value else name
            own.flags.append(Flag(f"--{switch}", "", f"{'switch off: ' * value}{text}", *place))
        elif value is MISSING or not _is_code(value):
            text = _with_default(text, value)
            own.flags.append(Flag(f"--{name}", _kinds(hint), text, *place))
    return [
        group._replace(flags=[flag for flag in group.flags if flag.path not in overwritten])
        for group in (own, *parts)
    ]


def field_texts(kind: type[Any]) -> dict[str, str]:
    """Return the docstring of each field of a class: the text in the line below it."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except (OSError, TypeError, SyntaxError):  # a class without a source file
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    return {
        field.target.id: str(text.value.value)
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a field's type without its annotations, and the annotations."""
    if get_origin(hint) is Annotated:
        return get_args(hint)[0], get_args(hint)[1:]
    return hint, ()


def _is_code(value: Any) -> bool:
    """Return whether a value, or a part of it, is one that only code can state."""
    if isinstance(value, tuple | list):
        return any(map(_is_code, value))
    return not (value is None or isinstance(value, bool | int | float | str | Path))


def _kinds(hint: Any) -> str:
    """Return the kind of the values of a flag: INT, {a,b}, or `INT ...` for several."""
    hint, _ = _split(hint)
    options = [option for option in get_args(hint) if option not in (NoneType, ...)]
    if get_origin(hint) is Literal:
        return f"{{{','.join(map(str, options))}}}"
    if get_origin(hint) in (Union, UnionType):
        return "|".join(map(_kinds, options))
    if get_origin(hint) in (tuple, list):
        several = len(options) == 1
        return f"{_kinds(options[0])} ..." if several else " ".join(map(_kinds, options))
    return hint.__name__.upper() if isinstance(hint, type) else str(hint).upper()


def _with_default(text: str, value: Any) -> str:
    """Return the text of a flag with its default, unless it has none or the text states it."""
    if value is None or value is MISSING or value in ("", ()):
        return text
    parts = value if isinstance(value, tuple) else (value,)
    return f"{text} [{' '.join(map(str, parts))}]"
