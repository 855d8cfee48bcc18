"""What the annotations of the user's functions say, as far as it can be known when they run."""

from __future__ import annotations

import inspect
import types
import typing
from collections import abc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar, cast


class Nothing:
    """What an annotation is that is missing or cannot be resolved."""


NOTHING: Any = Nothing()

_LAZY = (
    abc.Iterator,
    abc.Generator,
    abc.AsyncIterator,
    abc.AsyncGenerator,
    abc.AsyncIterable,
    abc.Awaitable,
    abc.Coroutine,
)
_JSON_CLASSES = frozenset({bool, int, float, str, list, dict})
_MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)


def return_annotation(fn: Callable[..., Any], names: Mapping[str, Any] | None = None) -> Any:
    """The annotation of what `fn` returns, its names looked up as `resolved` does; NOTHING if there is none.

    A class returns its instances; partials, bound methods, wrapped functions and objects with `__call__` are looked
    through.
    """
    if isinstance(fn, partial):
        return return_annotation(fn.func, names)
    if isinstance(fn, type):
        return fn
    fn = getattr(fn, "__func__", fn)
    if not hasattr(fn, "__code__") and not hasattr(fn, "__wrapped__"):
        fn = type(fn).__call__
    return resolved(annotations_of(fn).get("return", NOTHING), fn, names)


def annotations_of(fn: object) -> Mapping[str, Any]:
    """The annotations of a function as they are written: objects, or source text."""
    try:
        found: object = getattr(fn, "__annotations__", None)
    except Exception:  # evaluated lazily since Python 3.14, names may be missing
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def resolved(annotation: Any, fn: object, names: Mapping[str, Any] | None = None) -> Any:
    """`annotation`, its names looked up in `names`, the closure and the module of `fn`; NOTHING if one is missing."""
    if annotation is NOTHING:
        return NOTHING
    while isinstance(fn, partial):
        fn = fn.func
    source = inspect.unwrap(cast("Callable[..., Any]", fn))

    def probe() -> None: ...

    probe.__annotations__ = {"value": annotation}
    try:
        hints = typing.get_type_hints(
            probe,
            globalns=getattr(source, "__globals__", {}),
            localns={**(names or {}), **_closure_of(source)},
            include_extras=True,
        )
    except Exception:
        return NOTHING
    return hints["value"]


def restorable(annotation: Any) -> Any:
    """`annotation` as far as a stored value can follow it: Any where it says nothing, or promises an iterator."""
    origin = typing.get_origin(annotation) or annotation
    if isinstance(annotation, TypeVar):
        return restorable(annotation.__bound__) if annotation.__bound__ is not None else Any
    if origin is abc.Iterable:  # pydantic would give back a one-time iterator
        items = typing.get_args(annotation)
        return list[items[0]] if items else list  # type: ignore[valid-type]  # the type is known at run time only
    if origin in (NOTHING, object, typing.NoReturn, typing.Never) or origin in _LAZY:
        return Any
    if origin in (typing.Union, types.UnionType) and Any in typing.get_args(annotation):
        return Any
    return annotation


def json_types(annotation: Any) -> frozenset[type] | None:
    """The classes of which JSON gives back exactly the values of `annotation`; None if JSON's classes do not tell."""
    if annotation is None or annotation is types.NoneType:
        return frozenset({types.NoneType})
    if isinstance(annotation, type) and annotation in _JSON_CLASSES:
        return frozenset({annotation})
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [json_types(part) for part in arguments]
        known = [part for part in parts if part is not None]
        return frozenset[type]().union(*known) if len(known) == len(parts) else None
    if origin in _MAPPINGS and arguments in ((str, Any), ()):
        return frozenset({dict})
    if origin is list and arguments in ((Any,), ()):
        return frozenset({list})
    return None


def shown(annotation: Any) -> str:
    """`annotation` as a reader would write it."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__qualname__
    try:
        text = str(annotation).replace("typing.", "")
    except Exception:  # what is no annotation may have no text
        return f"an unreadable {type(annotation).__name__}"
    return text if len(text) <= 1000 else f"{text[:997]}..."


def _closure_of(fn: object) -> dict[str, Any]:
    """The variables of enclosing functions that `fn` uses, as far as they are set."""
    names = getattr(getattr(fn, "__code__", None), "co_freevars", ())
    found: dict[str, Any] = {}
    for name, cell in zip(names, getattr(fn, "__closure__", None) or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    return found
