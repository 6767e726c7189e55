"""gin files and `--gin_param`s, read into bindings that know where they stand; nothing is looked up or called yet."""

from __future__ import annotations

import dataclasses
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gin import config_parser

from trainer.exits import ConfigError, nearest

SHIPPED = Path(__file__).resolve().parent.parent / "configs"
"""Beside this package in a checkout and in an installation alike."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/Name`, or its result, `@scope/Name()`."""

    name: str
    scope: str
    call: bool

    def __str__(self) -> str:
        return f"@{self.scope + '/' if self.scope else ''}{self.name}{'()' if self.call else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME`."""

    name: str

    def __str__(self) -> str:
        return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Binding:
    """`scope/Name.parameter = value`, or a macro `NAME = value`, which has no parameter.

    Attributes:
      place: where it stands, for messages: `configs/gan/digits.gin:12`.
    """

    scope: str
    name: str
    parameter: str
    value: Any
    place: str

    @property
    def key(self) -> str:
        return (
            f"{self.scope + '/' if self.scope else ''}{self.name}"
            f"{'.' + self.parameter if self.parameter else ''}"
        )


@dataclasses.dataclass(frozen=True)
class Import:
    """`import module`, after which a configuration may name the module's classes and functions."""

    module: str
    place: str


@dataclasses.dataclass(frozen=True)
class Statements:
    """What configurations say, in their order."""

    bindings: list[Binding]
    imports: list[Import]


def render(value: Any) -> str:
    """`value` as gin reads it, on one line."""
    if isinstance(value, Reference | Macro):
        return str(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(render, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(render, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{render(k)}: {render(v)}' for k, v in value.items())}}}"
    # Beyond every number: gin has no name for it.
    return repr(value).replace("inf", "1e999") if isinstance(value, float) else repr(value)


def shipped() -> list[str]:
    """The names of the configurations in `configs/`."""
    return sorted(
        path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.gin")
    )


def find(name: str, folder: Path | None = None) -> Path:
    """The file that a path or a short name such as `gan/digits` means.

    Args:
      name: as given.
      folder: of the file that includes it, where a path may begin too. What is shipped includes what is shipped,
        wherever it is used.

    Raises:
      ConfigError: if there is none.
    """
    short = name.removesuffix(".gin")
    shipping = folder is not None and folder.resolve().is_relative_to(SHIPPED.resolve())
    paths = [Path(name)] if name.endswith(".gin") and not shipping else []
    if folder is not None:
        paths.insert(0, folder / f"{short}.gin")
    for path in [*paths, SHIPPED / f"{short}.gin"]:
        if path.is_file():
            return path
    names = shipped()
    # A last word alone is a good guess too: "digits" for "gan/digits".
    guess = nearest(short, names) or nearest(short, (n for n in names if short in n.split("/")))
    there = f" (there are: {', '.join(names)})" if names else ""
    raise ConfigError(f'there is no config "{name}"{guess}{there}')


def read(names: Sequence[str], params: Sequence[str] = ()) -> Statements:
    """The statements of these files, then of these parameters; later bindings win. Nothing is imported.

    Args:
      names: paths, or names in `configs/`.
      params: `Name.parameter=value`.

    Raises:
      ConfigError: with the place, if something cannot be read.
    """
    statements: list[Binding | Import] = []
    for name in names:
        statements += _read_file(find(name), ())
    for param in params:
        statements += _parse(param, f"--gin_param {' '.join(param.split())}", None, ())
    return Statements(
        [statement for statement in statements if isinstance(statement, Binding)],
        [statement for statement in statements if isinstance(statement, Import)],
    )


def _read_file(path: Path, including: tuple[Path, ...]) -> list[Binding | Import]:
    resolved = path.resolve()
    if resolved in including:
        raise ConfigError(f"{_label(path)} includes itself: remove one of the include lines")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_label(path)} cannot be read: {error}") from None
    return _parse(text, _label(path), path.parent, (*including, resolved))


def _label(path: Path) -> str:
    if path.is_relative_to(SHIPPED):
        return f"configs/{path.relative_to(SHIPPED).as_posix()}"
    return str(path)


def _parse(
    text: str, label: str, folder: Path | None, including: tuple[Path, ...]
) -> list[Binding | Import]:
    statements: list[Binding | Import] = []
    here: dict[str, tuple[str, int]] = {}  # what this very file binds: key -> value, line
    for statement in _statements(text, label):
        line = statement.location.line_num
        place = f"{label}:{line}" if folder else label
        if isinstance(statement, config_parser.ImportStatement):
            if statement.is_from or statement.alias:
                raise ConfigError(
                    f"{place}: a config cannot say {statement.format()!r}: write import and the module's name"
                )
            statements.append(Import(statement.module, place))
        if isinstance(statement, config_parser.IncludeStatement):
            try:
                included = find(statement.filename, folder)
            except ConfigError as error:
                raise ConfigError(f"{place}: {error}") from None
            statements += _read_file(included, including)
        elif isinstance(statement, config_parser.BindingStatement):
            scope, name, parameter, value, _ = statement
            if not parameter:
                scope, name = "", f"{scope}/{name}" if scope else name
            binding = Binding(scope, name, parameter, value, place)
            value_text = render(value)
            other = here.setdefault(binding.key, (value_text, line))
            if other[0] != value_text:
                raise ConfigError(
                    f"{place}: {binding.key} is {value_text} here and {other[0]} in line "
                    f"{other[1]} of the same file: keep one"
                )
            statements.append(binding)
    return statements


def _statements(text: str, label: str) -> Iterator[Any]:
    try:
        yield from config_parser.ConfigParser(text, _Delegate())
    except tokenize.TokenError as error:
        message, (line, _) = error.args
        raise ConfigError(f"{label}:{line}: cannot read this: {message}") from None
    except SyntaxError as error:
        place = f"{label}:{error.lineno}" if not label.startswith("--") else label
        raise ConfigError(f"{place}: {_explain(error)}") from None


def _explain(error: SyntaxError) -> str:
    message = str(error.msg)
    token = re.search(r"Failed to parse token '(.*)'", message)
    source = (error.text or "").strip()
    name, equals, value = source.partition("=")
    if token:
        # Of a path the token is but the beginning.
        path = re.fullmatch(r"[\w.~-]*/[\w./-]*", value.strip())
        word = path[0] if path else token[1]
        return f'the value {word} is not a literal: a text needs quotes ("{word}"), a name @ or %'
    if equals and "Unable to parse value" in message and value.strip()[:1] not in {*"\"'([{"}:
        text = render(value.strip()).replace("'", '"')
        return f"the value {value.strip()} is not a literal: a text needs quotes, --gin_param='{name.strip()}={text}'"
    return f"cannot read {source!r}: {' '.join(message.split()).rstrip('.')}"


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        scope, _, name = scoped_configurable_name.rpartition("/")
        return Reference(name, scope, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)
