"""What a handler is: a generator function of `(step)` or `(step, input)`, and what its signature says."""

from __future__ import annotations

import inspect
import typing
from collections import abc
from collections.abc import Callable, Mapping
from typing import Any

from pgworkflows.annotations import NOTHING, return_annotation


def input_parameter(function: object, what: str) -> inspect.Parameter | None:
    """The parameter of `function` that takes the input, or None. Raises TypeError if it is no handler."""
    if not callable(function):
        raise TypeError(f"{what} must be a generator function, not {type(function).__name__}")
    code = inspect.unwrap(function)
    if any(inspect.iscoroutinefunction(part) or inspect.isasyncgenfunction(part) for part in (function, code)):
        raise TypeError(f"{what} must not be async: write `def`, and `yield` its steps")
    if not (inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(code)):
        raise TypeError(f"{what} must be a generator function: it has to `yield` its steps")
    parameters = inspect.signature(function).parameters.values()
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    others = [each for each in parameters if each not in positional]
    if len(positional) not in (1, 2) or any(
        each.kind is not each.KEYWORD_ONLY or each.default is each.empty for each in others
    ):
        raise TypeError(f"{what} must take (step) or (step, input), not {inspect.signature(function)}")
    if positional[0].name in ("self", "cls"):
        raise TypeError(f"{what} is a method without its object: define the workflow with the bound method")
    return positional[1] if len(positional) == 2 else None


def output_annotation(function: Callable[..., Any], names: Mapping[str, Any] | None) -> Any:
    """The R of a handler that returns `Steps[R]` or `Generator[…, …, R]`; NOTHING for another, or if unresolved."""
    annotation = return_annotation(function, names)
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is abc.Generator and len(arguments) == 3:
        return arguments[2]
    return NOTHING


def names_at_definition() -> Mapping[str, Any] | None:
    """The names of the function or class body whose code called the caller; None for a module, as its are found anyway.

    Annotations that are text may name a class of the function in which the handler is defined.
    """
    frame = inspect.currentframe()
    for _ in range(2):
        frame = None if frame is None else frame.f_back
    if frame is None or frame.f_locals is frame.f_globals:
        return None
    return dict(frame.f_locals)
