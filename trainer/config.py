"""From bindings to a complete configuration: every name checked, every macro resolved, every default written out.

All of it happens before anything is built, on the signatures of what is registered: which calls a run will make follows
from the references, so a binding that no call would read is found here. gin itself gets the resolved text, the very one
that is saved with the run.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import gin

from trainer.config_files import Binding, Import, Macro, Reference, Statements, read, render
from trainer.configurable import Configurable
from trainer.exits import ConfigError, nearest

REQUIRED = "gin.REQUIRED"
"""`%gin.REQUIRED` marks a value that a file or parameter read later must give."""


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A configuration without macros, in which every literal default is written out."""

    modules: tuple[str, ...]
    """What it imports."""

    bindings: Mapping[str, str]
    """`scope/Name.parameter` -> value as text, sorted."""

    @property
    def text(self) -> str:
        """Valid gin, one statement a line, that makes the same run."""
        return "".join(f"import {module}\n" for module in self.modules) + "".join(
            f"{key} = {value}\n" for key, value in self.bindings.items()
        )


class Registry:
    """What configurations may name.

    Args:
      module: under which gin keeps the names; one registry a module.
      root: the name of what a configuration describes.
    """

    def __init__(self, module: str = "lockstep", root: str = "Experiment") -> None:
        self._module, self.root = module, root
        self._named: dict[str, Configurable] = {}

    def register(
        self,
        target: Callable[..., Any],
        *,
        name: str | None = None,
        given: Collection[str] = (),
        elsewhere: Mapping[str, str] | None = None,
        imported: bool = False,
        hints: Mapping[str, Any] | None = None,
    ) -> None:
        """Lets configurations name a class or function.

        Args:
          target: called with keyword arguments from the configuration.
          name: in the configuration; its own if None.
          given: parameters that the caller gives, which cannot be bound.
          elsewhere: parameters without effect here -> what to do instead.
          imported: whether it is the user's own, of whose parameters the caller may give those that have no default.
          hints: types of its parameters; those that it says itself if None.
        """
        name = name or target.__name__
        if name in self._named:
            if self._named[name].target is not target:
                raise ValueError(f"{name} is registered already, for something else")
            return
        self._named[name] = Configurable(
            name, target, frozenset(given), dict(elsewhere or {}), imported, hints
        )
        gin.external_configurable(target, name=name, module=self._module)

    # ------------------------------------------------------------------ resolve

    def resolve(self, statements: Statements, allow_imports: bool = False) -> Resolved:
        """Checks and completes what was read.

        Args:
          statements: of files and parameters.
          allow_imports: whether modules may be imported, which runs their code.

        Raises:
          ConfigError: in one line, the first thing that is wrong, its place and the nearest valid name.
        """
        for found in statements.imports:
            if not allow_imports:
                raise ConfigError(
                    f"{found.place}: import {found.module} would run the module's code: if you trust it, give --allow_imports"
                )
            self._import(found)
        bindings = statements.bindings
        for binding in bindings:
            self._check_names(binding)
        macros = {b.name: b for b in bindings if not b.parameter}
        used_macros = {m.name for b in bindings for m in _find(Macro, b.value)}
        whole = [
            dataclasses.replace(b, value=_substitute(b.value, macros, b.place, ()))
            for b in bindings
        ]
        bound = {(b.scope, b.name, b.parameter): b for b in whole if b.parameter}
        for binding in bound.values():
            if not _is_required(binding.value):
                self._named[binding.name].check_type(binding, self._named)
        for macro in macros.values():
            if macro.name not in used_macros:
                near = nearest(macro.name, used_macros)
                raise ConfigError(f"{macro.place}: macro {macro.name} is never used{near}")

        calls, values = self._calls(bound)
        for key, binding in bound.items():
            if _reads(calls, binding):
                if _is_required(binding.value):
                    lacking = _lacking(bindings[whole.index(binding)], macros)
                    raise ConfigError(
                        f"{lacking.place}: {lacking.key} is required: "
                        f"set it in a config, or by --gin_param={lacking.key}=…"
                    )
            elif _reads(self._replaced(whole, bound, whole.index(binding)), binding):
                del values[key]
            else:
                raise self._unused(binding, calls)
        ordered = sorted(values, key=lambda key: (key[1].lower(), key[1], key[0], key[2]))
        return Resolved(
            tuple(dict.fromkeys(found.module for found in statements.imports)),
            {_key(*key): render(values[key]) for key in ordered},
        )

    def _import(self, found: Import) -> None:
        """Imports a module and registers its public classes and functions."""
        try:
            module = importlib.import_module(found.module)
        except Exception as error:
            raise ConfigError(
                f"{found.place}: {found.module} cannot be imported ({type(error).__name__}: {error}): "
                "mend it, or put its folder in PYTHONPATH"
            ) from error
        for name, target in vars(module).items():
            if (
                not name.startswith("_")
                and callable(target)
                and getattr(target, "__module__", "") == module.__name__
            ):
                try:
                    self.register(target, imported=True)
                except ValueError as error:
                    raise ConfigError(
                        f"{found.place}: {found.module}: {error}: rename it"
                    ) from None

    def _check_names(self, binding: Binding) -> None:
        for reference in _find(Reference, binding.value):
            if reference.name not in self._named:
                near = nearest(reference.name, self._named)
                raise ConfigError(f"{binding.place}: {reference} is not known{near}")
        if not binding.parameter:
            return
        found = self._named.get(binding.name)
        if found is None:
            near = nearest(binding.name.rpartition(".")[2], self._named)
            raise ConfigError(f"{binding.place}: {binding.name} is not known{near}")
        found.check_name(binding)

    def _replaced(
        self, whole: Sequence[Binding], bound: Mapping[tuple[str, str, str], Binding], number: int
    ) -> set[tuple[str, str]]:
        """The calls that there would be if nothing after the statement of this number had taken the place of another."""
        last = {b.key: n for n, b in enumerate(whole)}
        before = [b for n, b in enumerate(whole) if n < last[b.key] and last[b.key] > number]
        return self._calls(
            bound, [(r.name, r.scope or b.scope) for b in before for r in _find(Reference, b.value)]
        )[0]

    def _calls(
        self,
        bound: Mapping[tuple[str, str, str], Binding],
        others: Collection[tuple[str, str]] = (),
        without: Collection[str] = (),
    ) -> tuple[set[tuple[str, str]], dict[tuple[str, str, str], Any]]:
        """Follows the references from the root, and from others, which may lack values; not those of the keys `without`.

        Returns:
          Calls, (name, active scope), and all values: those bound, and the defaults that hold in some call.
        """
        calls: set[tuple[str, str]] = set()
        values = {key: binding.value for key, binding in bound.items()}
        todo = [(self.root, ""), *others]
        while todo:
            name, active = call = todo.pop()
            if call in calls:
                continue
            calls.add(call)
            for parameter, declared in self._named[name].parameters.items():
                if f"{name}.{parameter}" in without:
                    continue
                winners = [
                    key for key in bound if key[1:] == (name, parameter) and _within(key[0], active)
                ]
                if winners:
                    value = bound[max(winners, key=lambda key: len(key[0]))].value
                elif declared.default is inspect.Parameter.empty:
                    if self._named[name].imported or others:
                        continue
                    key = _key(active, name, parameter)
                    raise ConfigError(
                        f"{key} has no value: set it in a config, or by --gin_param={key}=…"
                    )
                else:
                    value = self._default(declared.default)
                    if value is _UNWRITABLE:
                        continue
                    values["", name, parameter] = value
                # A function that is called later is called outside of the scopes of today.
                todo += [
                    (r.name, r.scope or (active if r.call else "")) for r in _find(Reference, value)
                ]
        return calls, values

    def _default(self, default: Any) -> Any:
        for found in self._named.values():
            if found.target is default:
                return Reference(found.name, "", call=False)
        try:
            same = ast.literal_eval(repr(default)) == default
        except (ValueError, SyntaxError, TypeError):
            same = False
        return default if same is True else _UNWRITABLE

    def _unused(self, binding: Binding, calls: set[tuple[str, str]]) -> ConfigError:
        scopes = sorted(scope for name, scope in calls if name == binding.name)
        if not scopes:
            why = f"nothing in this configuration refers to @{binding.name}"
        else:
            there = ", ".join(
                f"@{scope}/{binding.name}" if scope else f"@{binding.name}" for scope in scopes
            )
            why = f"there is {there}, but no @{binding.scope}/{binding.name}"
            why += nearest(binding.scope, scopes)
        return ConfigError(f"{binding.place}: {binding.key} is never used: {why}")

    # ------------------------------------------------------------------ compare

    def compare(
        self, old: Resolved, new: Resolved, may_differ: Collection[str], where: str
    ) -> None:
        """Checks that a run may go on under another configuration.

        Args:
          old: of the run so far.
          new: asked for now.
          may_differ: keys of the root that may, and with them all that they alone lead to.
          where: the workdir, for the message.

        Raises:
          ConfigError: naming the first binding that differs.
        """
        before, now = (self._decisive(side, may_differ) for side in (old, new))
        differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if differing:
            key = differing[0]
            there, here = (side.get(key, "not set") for side in (before, now))
            more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
            raise ConfigError(
                f"workdir {where} holds a run of another configuration: {key} is {there} there and "
                f"{here} here{more}; choose another --workdir, or the configuration in {where}/config.gin"
            )

    def _decisive(self, resolved: Resolved, may_differ: Collection[str]) -> dict[str, str]:
        """The bindings that are read where those of `may_differ` are not."""
        bindings = read([], [resolved.text]).bindings
        bound = {(b.scope, b.name, b.parameter): b for b in bindings}
        calls, _ = self._calls(bound, without=may_differ)
        return {
            b.key: resolved.bindings[b.key]
            for b in bindings
            if b.key not in may_differ and _reads(calls, b)
        }

    # ------------------------------------------------------------------ build

    def build(self, resolved: Resolved) -> Any:
        """Makes what the configuration describes; references that are called later keep to it until another is built, see `kept`.

        Raises:
          whatever the constructors raise, as gin wraps it: see `exits.one_line`.
        """
        gin.clear_config()
        gin.parse_config(resolved.text)
        return gin.get_configurable(f"{self._module}.{self.root}")()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """What is built within does not change what references call that were made before."""
    text = gin.config_str()
    try:
        yield
    finally:
        gin.clear_config()
        gin.parse_config(text)


_UNWRITABLE = object()


def _key(scope: str, name: str, parameter: str) -> str:
    return f"{scope}/{name}.{parameter}" if scope else f"{name}.{parameter}"


def _reads(calls: Collection[tuple[str, str]], binding: Binding) -> bool:
    return any(name == binding.name and _within(binding.scope, active) for name, active in calls)


def _lacking(binding: Binding, macros: Mapping[str, Binding]) -> Binding:
    """Of a binding that has no value yet the macro that must be given one, or itself."""
    for macro in _find(Macro, binding.value):
        found = macros.get(macro.name)
        if found and _is_required(_substitute(found.value, macros, found.place, ())):
            return _lacking(found, macros)
    return binding


def _within(scope: str, active: str) -> bool:
    """Whether a binding in `scope` holds where `active` is: gin looks in all prefixes of the active scope."""
    return not scope or active == scope or active.startswith(f"{scope}/")


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list | tuple) else ()


def _find(kind: type, value: Any) -> Iterator[Any]:
    if isinstance(value, kind):
        yield value
    for part in _parts(value):
        yield from _find(kind, part)


def _is_required(value: Any) -> bool:
    return any(macro.name == REQUIRED for macro in _find(Macro, value))


def _substitute(
    value: Any, macros: Mapping[str, Binding], place: str, within: tuple[str, ...]
) -> Any:
    if isinstance(value, Macro):
        if value.name == REQUIRED:
            return value
        if value.name in within:
            raise ConfigError(f"{place}: macro {value} refers to itself: give it a value")
        if value.name not in macros:
            raise ConfigError(f"{place}: macro {value} is not defined{nearest(value.name, macros)}")
        found = macros[value.name]
        return _substitute(found.value, macros, found.place, (*within, value.name))
    if isinstance(value, dict):
        return {
            _substitute(k, macros, place, within): _substitute(v, macros, place, within)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(_substitute(part, macros, place, within) for part in value)
    return value
