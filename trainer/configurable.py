"""What a configuration may say of one registered class or function: its parameters, their defaults and types."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from trainer.config_files import Binding, Reference, render
from trainer.exits import ConfigError, nearest

PLAIN: dict[Any, tuple[type, ...]] = {float: (int, float)}
PLAIN |= {plain: (plain,) for plain in (int, str, bool, types.NoneType)}
UNIONS = (types.UnionType, typing.Union)


@dataclasses.dataclass(frozen=True)
class Configurable:
    """Something that configurations may name.

    Attributes:
      target: called with keyword arguments from the configuration.
      given: parameters that the caller gives, which cannot be bound.
      elsewhere: parameters without effect here -> what to do instead.
      imported: of a user's module; those of its parameters that have no default may be given by the caller.
      told: types of the parameters, of a target that does not say them; None of any other.
    """

    name: str
    target: Callable[..., Any]
    given: frozenset[str]
    elsewhere: Mapping[str, str]
    imported: bool = False
    told: Mapping[str, Any] | None = None

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Those that may be bound."""
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {
            parameter.name: parameter
            for parameter in inspect.signature(self.target).parameters.values()
            if parameter.kind in named and parameter.name not in {*self.given, *self.elsewhere}
        }

    def check_name(self, binding: Binding) -> None:
        """Checks that it has the parameter which is bound.

        Raises:
          ConfigError: if not, naming the nearest.
        """
        parameter, parameters = binding.parameter, self.parameters
        if parameter in self.elsewhere:
            raise ConfigError(
                f"{binding.place}: {self.name}.{parameter} has no effect: {self.elsewhere[parameter]}"
            )
        if parameter in self.given:
            raise ConfigError(
                f"{binding.place}: {self.name}.{parameter} is given by its caller: remove the binding"
            )
        if parameter not in parameters:
            near = nearest(parameter, parameters)
            near = near or f" (it has {', '.join(parameters) or 'none'})"
            raise ConfigError(f"{binding.place}: {self.name} has no parameter {parameter}{near}")

    @functools.cached_property
    def hints(self) -> Mapping[str, Any]:
        """Types of the parameters, as far as they are said."""
        if self.told is not None:
            return self.told
        is_class = inspect.isclass(self.target)
        try:
            return typing.get_type_hints(self.target.__init__ if is_class else self.target)
        except (NameError, TypeError, AttributeError):
            return {}

    @property
    def result(self) -> Any:
        """The class of what a call makes; None if it is not said."""
        made = self.target if inspect.isclass(self.target) else self.hints.get("return")
        return made if inspect.isclass(made) else None

    def check_type(self, binding: Binding, named: Mapping[str, Configurable]) -> None:
        """Checks the value, without macros, against the type of its parameter.

        Args:
          binding: of one of the parameters.
          named: what references may mean.

        Raises:
          ConfigError: if it does not fit, with what would.
        """
        hint, value = self.hints.get(binding.parameter, Any), binding.value
        if _fits(value, hint, named):
            return
        others: list[Any] = [[value]]
        if isinstance(value, Reference):
            called = dataclasses.replace(value, call=not value.call)
            others = [called, [value], [called]]
        better = [f"; write {render(other)}" for other in others if _fits(other, hint, named)]
        raise ConfigError(
            f"{binding.place}: {binding.key} is {render(value)}: it must be {_describe(hint)}{''.join(better[:1])}"
        )


def _fits(value: Any, hint: Any, named: Mapping[str, Configurable]) -> bool:
    """Whether a value may be of a type; yes where too little is said."""
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return any(_fits(value, one, named) for one in of)
    kind: Any = origin or hint
    if hint is Any or not inspect.isclass(kind):
        return True
    if isinstance(value, Reference):
        found = named[value.name]
        if not value.call:
            return kind is collections.abc.Callable and (not of or _is_a(found.result, of[-1]))
        return not found.given and _is_a(
            found.result, kind
        )  # What only its caller gives is missing.
    if kind is collections.abc.Sequence:
        return isinstance(value, list | tuple) and all(_fits(one, of[0], named) for one in value)
    if isinstance(value, bool) and kind in (int, float):
        return False
    return not _is_protocol(kind) and isinstance(value, PLAIN.get(kind, (kind,)))


def _is_a(made: Any, kind: Any) -> bool:
    """Whether a class is of a kind; yes where either is not said."""
    kind = typing.get_origin(kind) or kind
    if made is None or kind is Any or not inspect.isclass(kind):
        return True
    if _is_protocol(kind):
        return all(hasattr(made, name) for name, m in vars(kind).items() if _is_method(m, kind))
    return issubclass(made, kind)


def _is_protocol(kind: Any) -> bool:
    return getattr(kind, "_is_protocol", False)


def _is_method(member: Any, of: type) -> bool:
    return inspect.isfunction(member) and member.__module__ == of.__module__


def _describe(hint: Any) -> str:
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return " or ".join(map(_describe, of))
    if origin is collections.abc.Sequence:
        return f"[{_describe(of[0])}, …]"
    if origin is collections.abc.Callable:
        return "a function (@Name)"
    if hint in PLAIN:
        return "None" if hint is types.NoneType else hint.__name__
    return f"{getattr(hint, '__name__', hint)} (@Name())"
