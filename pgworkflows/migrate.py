"""Bring a database's schema up to this code: forward only, each migration in one transaction under a lock."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Protocol

import psycopg
from psycopg.sql import Literal

from pgworkflows.database import Connection, Executor, Locked, Params, Row, connect, explained, sorted_out
from pgworkflows.errors import ConfigurationError
from pgworkflows.schema import DEFAULT_SCHEMA, checked_schema, render, script, statement
from pgworkflows.sessions import OwnConnection

LOCK_TIMEOUT_MS = 2000
LOCK_PATIENCE_S = 60.0
ROLES_SINCE = 7
"""The migration that made the table of roles."""
OWN_NAMES = (
    "runs",
    "steps",
    "events",
    "queue",
    "workers",
    "sleepers",
    "schedules",
    "workflows",
    "roles",
    "migrations",
    "claims",
)
OWN_COLUMNS = {"number", "name", "oldest_code", "applied_at"}
"""What the table `migrations` has when it is ours."""
_FILE = re.compile(r"(\d{4})_\w+\.sql")
_OLDEST_CODE = re.compile(r"^-- oldest code: (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Migration:
    """One step of the schema. `oldest_code` is the number of the last migration known to the oldest code that can
    still work with the schema after this one."""

    number: int
    name: str
    oldest_code: int
    sql: str


class Session(Executor, Protocol):
    """What migrations are applied in: a connection of our own, or one of a framework that keeps a record of its own."""

    def run(self, sql: str) -> None:
        """Run statements without parameters. Raises Locked."""
        ...

    def together(self) -> AbstractContextManager[Any]:
        """A transaction, or a part of one that can be undone."""
        ...


def migrations() -> tuple[Migration, ...]:
    """All migrations that this code brings, in order."""
    found = [
        Migration(int(match[1]), entry.name.removesuffix(".sql"), int(oldest[1]), text)
        for entry in _migrations_folder().iterdir()
        if (match := _FILE.fullmatch(entry.name))
        and (text := entry.read_text(encoding="utf-8"))
        and (oldest := _OLDEST_CODE.search(text))
    ]
    return tuple(sorted(found, key=lambda migration: migration.number))


def plan(conninfo: str, schema: str = DEFAULT_SCHEMA) -> tuple[Migration, ...]:
    """The migrations that `migrate` would run now. Changes nothing; raises ConfigurationError like `migrate`."""
    checked_schema(schema)
    with connect(conninfo) as conn:
        return _pending(_OwnSession(conn), schema)


def migrate(conninfo: str, schema: str = DEFAULT_SCHEMA) -> tuple[Migration, ...]:
    """Run what is pending and return what was run; nothing when the schema is current.

    Many processes may call this at once. Raises ConfigurationError when the database needs newer code, when
    something else stands in the way in the schema, when a migration fails (nothing of it is applied then), or when
    another session holds a lock for over a minute.
    """
    checked_schema(schema)
    with connect(conninfo, lock_timeout_ms=LOCK_TIMEOUT_MS) as conn:
        session = _OwnSession(conn)
        return tuple(migration for migration in _pending(session, schema) if _apply(session, schema, migration))


def migrate_within(session: Session, schema: str = DEFAULT_SCHEMA, to: int | None = None) -> tuple[Migration, ...]:
    """Run what is pending, up to the migration with the number `to`, in a session whose transaction the caller ends.
    Raises ConfigurationError, and the driver's errors."""
    newest = migrations()[-1].number
    if to is not None and not 1 <= to <= newest:
        raise ConfigurationError(f"there is no migration {to}: this pgworkflows has 1 to {newest}")
    pending = _pending(session, checked_schema(schema))
    wanted = (migration for migration in pending if to is None or migration.number <= to)
    return tuple(migration for migration in wanted if apply_in_turns(session, schema, migration))


def script_of(migration: Migration, schema: str) -> tuple[str, ...]:
    """What applying a migration runs, as a script for psql: for an administrator to read, or to run in one
    transaction."""
    # Formatting turns each doubled % of the schema's name into one again, as the driver does.
    record = statement("add_migration", checked_schema(schema)) % tuple(
        Literal(value).as_string() for value in (migration.number, migration.name, migration.oldest_code)
    )
    return (*_parts(migration, schema), record)


def apply_in_turns(session: Session, schema: str, migration: Migration) -> bool:
    """Run one migration unless it was run; whether it was run now. Waits for locks in short turns, so that nobody
    queues up behind a waiting lock: the session's lock timeout is short. Raises ConfigurationError when another
    session holds a lock for over a minute."""
    give_up = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            with session.together():
                return _apply_locked(session, schema, migration)
        except Locked as error:
            if time.monotonic() > give_up:
                raise ConfigurationError(
                    f"schema {schema!r} could not be migrated: another session held a lock for over "
                    f"{LOCK_PATIENCE_S:.0f} s ({error})"
                ) from error


def check_current(conn: Connection, schema: str) -> None:
    """Raise ConfigurationError unless this code can work with the schema as it is."""
    pending = _pending(_Reading(conn), schema)
    if pending:
        names = ", ".join(migration.name for migration in pending)
        raise ConfigurationError(
            f"schema {schema!r} lacks {names}: call migrate() or engine.start(), or run pgworkflows migrate, first"
        )


def _migrations_folder() -> Traversable | Path:
    installed = files("pgworkflows") / "migrations"
    if installed.is_dir():
        return installed
    return Path(__file__).parent.parent / "migrations"


def _pending(executor: Executor, schema: str) -> tuple[Migration, ...]:
    known = migrations()
    applied = _applied(executor, schema)
    newest_needed = max(applied.values(), default=0)
    if newest_needed > known[-1].number:
        raise ConfigurationError(
            f"schema {schema!r} was migrated by a newer pgworkflows and needs code that knows migration "
            f"{newest_needed:04}; this code knows up to {known[-1].number:04}: upgrade pgworkflows"
        )
    return tuple(migration for migration in known if migration.number not in applied)


def _applied(executor: Executor, schema: str) -> dict[int, int]:
    """Number → oldest code of the migrations that the database has."""
    found: dict[str, list[str]] = dict(executor.fetch(statement("find_own_names", schema), (schema, list(OWN_NAMES))))
    if not found:
        return {}
    if set(found.get("migrations", ())) != OWN_COLUMNS:
        names = ", ".join(sorted(found))
        raise ConfigurationError(
            f"schema {schema!r} holds tables that are not pgworkflows' ({names}): choose another schema= or move them"
        )
    try:
        applied = executor.fetch(statement("get_migrations", schema), ())
    except psycopg.Error as error:
        raise explained(error) from error
    return dict(applied)


class _Reading:
    """Any connection of psycopg's."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def fetch(self, sql: str, params: Params) -> list[Row]:
        with _lock_is_held():
            return self._conn.execute(sql.encode(), params).fetchall()


class _OwnSession(_Reading):
    """A connection of our own, whose lock timeout is short."""

    def __init__(self, conn: OwnConnection) -> None:
        super().__init__(conn)
        self.together = conn.together

    def run(self, sql: str) -> None:
        with _lock_is_held():
            self._conn.execute(sql.encode())


@contextmanager
def _lock_is_held() -> Generator[None]:
    try:
        yield
    except psycopg.errors.LockNotAvailable as error:
        raise sorted_out(error) from error


def _apply(session: _OwnSession, schema: str, migration: Migration) -> bool:
    try:
        return apply_in_turns(session, schema, migration)
    except psycopg.Error as error:
        raise _refusal(error, schema, migration) from error


def _refusal(error: psycopg.Error, schema: str, migration: Migration) -> ConfigurationError:
    failed = f"migration {migration.name} of schema {schema!r} failed, and nothing of it was applied"
    match error:
        case psycopg.errors.DuplicateTable() | psycopg.errors.DuplicateObject() | psycopg.errors.DuplicateFunction():
            return ConfigurationError(
                f"{failed}: something that is not pgworkflows' has a name that it needs "
                f"({error.diag.message_primary}); choose another schema= or move it"
            )
        case _:
            known = explained(error)
            return ConfigurationError(f"{failed}: {known if isinstance(known, ConfigurationError) else error}")


def _apply_locked(session: Session, schema: str, migration: Migration) -> bool:
    session.run(script("lock_migrations", schema))
    if migration.number in _applied(session, schema):
        return False
    for part in _parts(migration, schema):
        session.run(part)
    session.fetch(statement("add_migration", schema), (migration.number, migration.name, migration.oldest_code))
    return True


def _parts(migration: Migration, schema: str) -> Iterator[str]:
    if migration.number == 1:
        yield script("create_migrations", schema)
    yield render(migration.sql, schema)
    if migration.number >= ROLES_SINCE:
        # What it has made anew is with the roles at once: they are at work.
        yield script("grant_roles", schema)
