"""The steps that a handler's source text shows: for progress and display, never for deciding what runs."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from pgworkflows.history import StepKind

_KINDS = {**{kind.value: kind for kind in StepKind}, "sleep": StepKind.DELAY}
_MODIFIERS = frozenset({"retry", "timeout"})
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_SOMETIMES: Mapping[type[ast.AST], tuple[str, ...]] = {
    ast.If: ("body", "orelse"),
    ast.IfExp: ("body", "orelse"),
    ast.Try: ("handlers", "orelse"),
    ast.TryStar: ("handlers", "orelse"),
    ast.Match: ("cases",),
    ast.For: ("orelse",),
    ast.While: ("orelse",),
}
_REPEATED: Mapping[type[ast.AST], tuple[str, ...]] = {
    ast.For: ("body",),
    ast.While: ("test", "body"),
    ast.ListComp: ("elt",),
    ast.SetComp: ("elt",),
    ast.GeneratorExp: ("elt",),
    ast.DictComp: ("key", "value"),
}


@dataclass(frozen=True)
class StepDefinition:
    """One step as the source shows it.

    `conditional`: it may be passed over; `loop`: it may be met several times; `dynamic`: its id is computed, and `id`
    is the source text of that expression.
    """

    id: str
    kind: StepKind
    conditional: bool
    loop: bool
    dynamic: bool


@dataclass(frozen=True)
class UnyieldedCall:
    """A command that is made and thrown away: `step.run(…)` as a statement, without `yield`."""

    step_id: str
    filename: str
    line: int


@dataclass(frozen=True)
class SourceReport:
    """What a handler's source shows, in its order. `duplicates` are literal ids that occur more than once."""

    steps: tuple[StepDefinition, ...] = ()
    duplicates: tuple[str, ...] = ()
    unyielded: tuple[UnyieldedCall, ...] = ()


def find_steps(handler: Callable[..., Any]) -> SourceReport:
    """Read the handler's steps from its source; an empty report if that cannot be read.

    Steps are calls of `step.<kind>(…)`, whatever the first parameter is called. Other names for the step object, and
    nested functions that use it, are not followed.
    """
    try:
        function, first_line, filename = _parsed(handler)
        parameter = next(iter(inspect.signature(handler).parameters))
    except Exception:  # no source, or not of this function: exec, the REPL, C, a file that changed since
        return SourceReport()
    if _is_rebound(function, parameter):
        return SourceReport()
    found = _Reader(parameter)
    found.read_block(function.body, _ALWAYS)
    literal = [step.id for step in found.steps if not step.dynamic]
    return SourceReport(
        steps=tuple(found.steps),
        duplicates=tuple(dict.fromkeys(step_id for step_id in literal if literal.count(step_id) > 1)),
        unyielded=tuple(UnyieldedCall(step_id, filename, first_line + line) for step_id, line in found.unyielded),
    )


def _parsed(handler: Callable[..., Any]) -> tuple[ast.FunctionDef, int, str]:
    """The handler's syntax tree, what its line numbers must be increased by, and its file."""
    while isinstance(handler, partial):
        handler = handler.func
    function = inspect.unwrap(getattr(handler, "__func__", handler))
    lines, first_line = inspect.getsourcelines(function)
    indented = lines[0][:1].isspace()
    tree = ast.parse(("if True:\n" if indented else "") + "".join(lines))
    statement = tree.body[0].body[0] if isinstance(tree.body[0], ast.If) else tree.body[0]
    if not isinstance(statement, ast.FunctionDef) or statement.name != function.__name__:
        raise ValueError("the source is not this function's")
    return statement, first_line - 1 - indented, inspect.getsourcefile(function) or "<unknown>"


def _is_rebound(function: ast.FunctionDef, name: str) -> bool:
    """Whether `name` is given another meaning somewhere in the body: then its calls may be anything."""
    return any(
        isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load)
        for statement in function.body
        for node in ast.walk(statement)
    )


@dataclass(frozen=True)
class _Place:
    """How a piece of code may be reached."""

    conditional: bool = False
    loop: bool = False

    def sometimes(self) -> _Place:
        return _Place(conditional=True, loop=self.loop)

    def repeated(self) -> _Place:
        return _Place(conditional=self.conditional, loop=True)


_ALWAYS = _Place()


class _Reader:
    """Walks a function's body in the order of the source, without the functions and classes inside it."""

    def __init__(self, parameter: str) -> None:
        self.parameter = parameter
        self.steps: list[StepDefinition] = []
        self.unyielded: list[tuple[str, int]] = []

    def read_block(self, block: Iterable[ast.AST], place: _Place) -> None:
        for node in block:
            self._read(node, place)
            if isinstance(node, ast.stmt) and _may_leave(node):
                place = place.sometimes()

    def _read(self, node: ast.AST, place: _Place) -> None:
        if isinstance(node, _SCOPES):
            return
        if isinstance(node, ast.Expr):
            self._note_unyielded(node.value)
        if isinstance(node, ast.BoolOp):
            self._read(node.values[0], place)
            self.read_block(node.values[1:], place.sometimes())
            return
        for name, part in ast.iter_fields(node):
            self._read_part(part, _place_within(node, name, place))
        if isinstance(node, ast.Call) and (step := self._step_of(node, place)) is not None:
            self.steps.append(step)

    def _read_part(self, part: object, place: _Place) -> None:
        if isinstance(part, ast.AST):
            self._read(part, place)
        elif isinstance(part, list):
            nodes = [node for node in cast("list[object]", part) if isinstance(node, ast.AST)]
            self.read_block(nodes, place)

    def _note_unyielded(self, value: ast.expr) -> None:
        call = value
        while isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in _MODIFIERS:
            call = call.func.value
        step = self._step_of(call, _ALWAYS) if isinstance(call, ast.Call) else None
        if step is not None:
            self.unyielded.append((step.id, call.lineno))

    def _step_of(self, call: ast.Call, place: _Place) -> StepDefinition | None:
        method = call.func
        if not (isinstance(method, ast.Attribute) and method.attr in _KINDS):
            return None
        if not (isinstance(method.value, ast.Name) and method.value.id == self.parameter):
            return None
        given = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "id")]
        if not given:
            return None
        literal = given[0].value if isinstance(given[0], ast.Constant) else None
        dynamic = not isinstance(literal, str)
        name = ast.unparse(given[0]) if dynamic else str(literal)
        return StepDefinition(name, _KINDS[method.attr], place.conditional, place.loop, dynamic)


def _place_within(node: ast.AST, field: str, place: _Place) -> _Place:
    """How the part `field` of `node` may be reached, if `node` is reached as `place` says."""
    if field in _SOMETIMES.get(type(node), ()):
        return place.sometimes()
    if field in _REPEATED.get(type(node), ()):
        return place.repeated()
    return place


def _may_leave(node: ast.AST, *, in_loop: bool = False) -> bool:
    """Whether `node` may pass over what follows it."""
    if isinstance(node, _SCOPES):
        return False
    if isinstance(node, ast.Return):
        return True
    if isinstance(node, ast.Break | ast.Continue):
        return not in_loop
    in_loop = in_loop or isinstance(node, _LOOPS)
    return any(_may_leave(child, in_loop=in_loop) for child in ast.iter_child_nodes(node))
