"""MODULE:ENGINE: finds the engine that a command line names, and says what is wrong with the name, or in the module."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TypeVar

import click

from pgworkflows.cli.exits import EXPECTED, Misused, failure_of
from pgworkflows.engine import WorkflowEngine

T = TypeVar("T")


def load_engine(target: str) -> WorkflowEngine:
    """The engine that `target` names, as in shop.workflows:engine, or that the callable of this name makes. Modules are
    looked for in the current directory first."""
    name, colon, attribute = target.partition(":")
    parts = attribute.split(".")
    if not colon or not all(part.isidentifier() for part in (*name.split("."), *parts)):
        raise Misused(f"{target!r} names no engine: write MODULE:ENGINE, as in shop.workflows:engine")
    if name.endswith(".py"):
        raise Misused(f"there is no module {name!r}: write {name[:-3]}:{attribute}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module = _imported(name)
    found: object = module
    for number, part in enumerate(parts):
        if not hasattr(found, part):
            raise Misused(_no_such_name(module, ":".join((name, ".".join(parts[:number]))).rstrip(":"), found, part))
        found = getattr(found, part)
    if isinstance(found, WorkflowEngine):
        return found
    if not callable(found):
        raise Misused(f"{target} is {_a(found)}, and neither a WorkflowEngine nor a callable that makes one")
    made = _guarded(f"{target}()", found)
    if not isinstance(made, WorkflowEngine):
        raise Misused(f"{target}() gives {_a(made)}, and no WorkflowEngine")
    return made


def _imported(name: str) -> ModuleType:
    def load() -> ModuleType:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # of another module, which this one imports
            raise Misused(f"there is no module {error.name!r}, in {Path.cwd()} or elsewhere") from error

    return _guarded(f"the module {name}", load)


def _guarded(what: str, call: Callable[[], T]) -> T:
    """What a call of the user's code gives. If it fails, its own lines are shown, and not those of this library."""
    try:
        return call()
    except click.ClickException:
        raise
    except (Exception, SystemExit) as error:
        error.__traceback__ = _of_others(error.__traceback__)
        click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
        fact = f"{what} failed: {type(error).__name__}: {error}"
        if isinstance(error, EXPECTED) and not isinstance(error, ValueError):
            raise type(failure_of(error))(fact) from error
        raise Misused(fact) from error


def _of_others(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from where it leaves this module and Python's import."""
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, import_module.__code__.co_filename):
        trace = trace.tb_next
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith("<frozen importlib"):
        trace = trace.tb_next
    return trace


def _no_such_name(module: ModuleType, place: str, holder: object, name: str) -> str:
    engines = [each for each, value in vars(module).items() if isinstance(value, WorkflowEngine)]
    near = engines or get_close_matches(name, [each for each in dir(holder) if not each.startswith("_")], 1)
    return f"{place} has no {name!r}" + (f"; it has {', '.join(map(repr, near))}" if near else "")


def _a(value: object) -> str:
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
