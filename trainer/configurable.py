"""What a configuration may say of one registered class or function: its parameters, their defaults and plain types."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from trainer.config_files import Binding, Macro, Reference, render
from trainer.exits import ConfigError, nearest

PLAIN: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "None": (type(None),),
}


@dataclasses.dataclass(frozen=True)
class Configurable:
    """Something that configurations may name.

    Attributes:
      target: called with keyword arguments from the configuration.
      given: parameters that the caller gives, which cannot be bound.
      elsewhere: parameters without effect here -> what to do instead.
    """

    name: str
    target: Callable[..., Any]
    given: frozenset[str]
    elsewhere: Mapping[str, str]

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

    def check_type(self, binding: Binding) -> None:
        """Checks the value, without macros, against annotations such as `int | None`.

        Raises:
          ConfigError: if it does not fit.
        """
        annotation = self.parameters[binding.parameter].annotation
        text = (
            annotation
            if isinstance(annotation, str)
            else getattr(annotation, "__name__", str(annotation))
        )
        kinds = [kind.strip() for kind in text.split("|")]
        if isinstance(binding.value, Reference | Macro) or not set(kinds) <= PLAIN.keys():
            return
        fits = any(
            isinstance(binding.value, PLAIN[kind])
            and (not isinstance(binding.value, bool) or kind == "bool")
            for kind in kinds
        )
        if not fits:
            raise ConfigError(
                f"{binding.place}: {binding.key} is {render(binding.value)}: "
                f"it must be {' or '.join(kinds)}"
            )
