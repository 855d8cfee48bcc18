"""The floors of the house, read from the imports: what stands on what, and where each outside thing may be used.

A new module fails here until it is placed: add it to the floor whose rule it keeps.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "pgworkflows"

# Floor by floor, ground first. A room is a module or a subpackage of pgworkflows; it imports from its own floor (never
# in a circle) and from those below.
FLOORS: Mapping[str, set[str]] = {
    "0 values": {
        "annotations",
        "commands",
        "current",
        "decisions",
        "durations",
        "errors",
        "failures",
        "history",
        "jsontext",
        "limits",
        "retry",
        "runs",
        "schemas",
        "serialization",
        "starts",
    },
    "1 logic, pure": {
        "columns",
        "definition",
        "entries",
        "handlers",
        "payloads",
        "plugins",
        "registry",
        "replay",
        "results",
        "run_loggers",
        "source",
        "timetable",
    },
    "2 postgres": {
        "borrowed",
        "claims",
        "connections",
        "declarations",
        "database",
        "embedded",
        "listener",
        "migrate",
        "roles",
        "schema",
        "scratch",
        "sessions",
        "sql",
        "store",
        "worker_connection",
    },
    "3 use cases": {
        "calls",
        "client",
        "documents",
        "execution",
        "healthcheck",
        "journal",
        "operations",
        "peers",
        "inspection",
        "low_water",
        "pruning",
        "reading",
        "runner",
        "schedules",
        "sealing",
        "starting",
        "ticks",
        "wrapping",
    },
    "4 threads": {
        "alarms",
        "backoff",
        "dispatcher",
        "ear",
        "engine",
        "forks",
        "heartbeat",
        "held_over",
        "holdings",
        "janitor",
        "pace",
        "pool",
        "scheduler",
        "scribe",
        "crew",
        "worker",
    },
    "5 edges": {
        "__main__",
        "cli",
        "contrib",
        "otel",
        "probe",
        "processes",
        "supervised",
        "supervisor",
        "testing",
        "ui",
    },
}
ROOMS = {room: number for number, rooms in enumerate(FLOORS.values()) for room in rooms}
NAMES = [*FLOORS]


class Rule(NamedTuple):
    """Which floors may import some outside modules, and which rooms may besides, each with its reason."""

    modules: frozenset[str]
    floors: frozenset[int]
    exceptions: Mapping[str, str]


RULES = [
    Rule(frozenset({"psycopg", "psycopg_pool", "psycopg2"}), frozenset({2}), {}),
    Rule(
        frozenset({"threading", "queue", "concurrent", "multiprocessing"}),
        frozenset({4}),
        {
            "connections": "a lock: the threads of an application share a client's connections",
            "database": "a lock: a client is connected by whichever thread comes first",
            "embedded": "locks: the process's own server is started by whichever thread comes first",
            "contrib": "a thread that watches the files of a Django project while it is developed",
            "calls": "a lock: a call ends in its pool's thread, or in the alarm's when its time is up",
            "healthcheck": "a thread: a server that does not answer keeps that, and not the probe that asks",
            "cli": "a thread: the database is asked beside a terminal that is looked after",
            "supervised": "a thread: it tells how it is beside a worker that has the main thread",
            "probe": "a thread: it answers beside a worker that has the main thread",
            "wrapping": "a lock: both an execution's last thread and the one that stops the worker leave it",
        },
    ),
    Rule(
        frozenset(
            {
                "flask",
                "alembic",
                "django",
                "sqlalchemy",
                "starlette",
                "fastapi",
                "opentelemetry",
                "click",
                "rich",
                "typer",
                "werkzeug",
                "jinja2",
                "waitress",
                "http",
            }
        ),
        frozenset({5}),
        {},
    ),
    Rule(
        frozenset({"time", "random", "select", "socket", "os"}), frozenset({2, 3, 4, 5}), {"retry": "jitter is random"}
    ),
    Rule(frozenset({"asyncio", "pickle", "marshal", "shelve"}), frozenset(), {}),
]

# Text that starts like a statement. Statements live in .sql files and in migrations.
SQL = re.compile(
    r"\s*(SELECT|INSERT INTO|UPDATE \S+ SET|DELETE FROM|WITH \w+ AS|CREATE (TABLE|INDEX|SCHEMA|DATABASE|FUNCTION)|ALTER"
    r"|DROP|TRUNCATE|LISTEN|UNLISTEN|NOTIFY|SET|SHOW|BEGIN|COMMIT|ROLLBACK|SAVEPOINT|LOCK|CALL)\b(?!['\"])"
)
SQL_EXCEPTIONS: Mapping[str, str] = {}


class Import(NamedTuple):
    """One imported module by its dotted name, and the place that imports it, perhaps under `if TYPE_CHECKING`."""

    room: str
    path: Path
    line: int
    name: str
    for_types_only: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(PACKAGE.parent)}:{self.line} imports {self.name}"


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def sources() -> list[tuple[Path, ast.Module]]:
    """Every module of the package but its public face, which may import everything."""
    return [
        (path, ast.parse(path.read_text())) for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"
    ]


@cache
def imports() -> list[Import]:
    return [
        Import(room_of(path), path, node.lineno, name, node in for_types)
        for path, tree in sources()
        for for_types in [_under_type_checking(tree)]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in _imported(path, node)
    ]


def _under_type_checking(tree: ast.Module) -> set[ast.AST]:
    conditions = (node for node in tree.body if isinstance(node, ast.If))
    guarded = [node for node in conditions if ast.unparse(node.test) == "TYPE_CHECKING"]
    return {inner for node in guarded for inner in ast.walk(node)}


def _imported(path: Path, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=module, level=0) if module == "pgworkflows":
            yield from (f"pgworkflows.{alias.name}" for alias in node.names)
        case ast.ImportFrom(module=str(module), level=0):
            yield module
        case _:
            pytest.fail(f"{path}: import by the whole name, not a relative one")


def imported_rooms() -> Iterator[tuple[Import, str]]:
    for found in imports():
        parts = found.name.split(".")
        if parts[0] == "pgworkflows" and len(parts) > 1:
            yield found, parts[1]


def test_every_module_has_a_floor() -> None:
    unplaced = {room_of(path) for path, _ in sources()} - ROOMS.keys()
    assert not unplaced, f"place in tests/test_layers.py, on the floor whose rule it keeps: {sorted(unplaced)}"


def test_a_module_imports_only_from_its_own_floor_and_those_below() -> None:
    wrong = [
        f"{found}: floor {NAMES[ROOMS[found.room]]!r} is below {NAMES[ROOMS[room]]!r}"
        for found, room in imported_rooms()
        if ROOMS.get(found.room, 9) < ROOMS.get(room, 0)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_the_public_face() -> None:
    wrong = [str(found) for found in imports() if found.name == "pgworkflows"]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for found, room in imported_rooms():
        if found.room != room and not found.for_types_only:
            graph.setdefault(found.room, set()).add(room)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: ",".join(sorted(rule.modules)))
def test_an_outside_module_is_used_only_on_its_floor(rule: Rule) -> None:
    wrong = [
        str(found)
        for found in imports()
        if found.name.split(".")[0] in rule.modules
        and ROOMS.get(found.room) not in rule.floors
        and found.room not in rule.exceptions
    ]
    assert not wrong, "\n".join(wrong)


def test_exceptions_are_in_use() -> None:
    used = {(found.room, found.name.split(".")[0]) for found in imports()}
    idle = [
        f"{room} no longer imports any of {', '.join(sorted(rule.modules))}: remove its exception"
        for rule in RULES
        for room in rule.exceptions
        if not any((room, module) in used for module in rule.modules)
    ]
    assert not idle, "\n".join(idle)


def test_sql_is_written_in_sql_files_only() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{node.lineno} holds {node.value.strip()[:60]!r}"
        for path, tree in sources()
        if room_of(path) not in SQL_EXCEPTIONS
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.match(node.value)
    ]
    assert not wrong, "move to pgworkflows/sql/:\n" + "\n".join(wrong)
