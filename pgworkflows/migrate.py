"""Bring a database's schema up to this code: forward only, each migration in one transaction under a lock."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import psycopg

from pgworkflows.database import connect
from pgworkflows.errors import ConfigurationError
from pgworkflows.schema import DEFAULT_SCHEMA, checked_schema, render, script, statement

LOCK_PATIENCE_S = 60.0
Connection = psycopg.Connection[tuple[Any, ...]]
OWN_NAMES = (
    "runs",
    "steps",
    "events",
    "queue",
    "workers",
    "sleepers",
    "schedules",
    "workflows",
    "migrations",
    "claims",
)
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
    with connect(conninfo) as conn:
        return _pending(conn, checked_schema(schema))


def migrate(conninfo: str, schema: str = DEFAULT_SCHEMA) -> tuple[Migration, ...]:
    """Run what is pending and return it; nothing when the schema is current.

    Many processes may call this at once. Raises ConfigurationError when the database needs newer code, when
    something else stands in the way in the schema, or when another migration holds the lock for over a minute.
    """
    checked_schema(schema)
    with connect(conninfo, lock_timeout_ms=2000) as conn:
        pending = _pending(conn, schema)
        for migration in pending:
            _apply(conn, schema, migration)
        return pending


def check_current(conn: Connection, schema: str) -> None:
    """Raise ConfigurationError unless this code can work with the schema as it is."""
    pending = _pending(conn, schema)
    if pending:
        names = ", ".join(migration.name for migration in pending)
        raise ConfigurationError(f"schema {schema!r} lacks {names}: call migrate() or engine.start() first")


def _migrations_folder() -> Traversable | Path:
    installed = files("pgworkflows") / "migrations"
    if installed.is_dir():
        return installed
    return Path(__file__).parent.parent / "migrations"


def _pending(conn: Connection, schema: str) -> tuple[Migration, ...]:
    known = migrations()
    applied = _applied(conn, schema)
    newest_needed = max(applied.values(), default=0)
    if newest_needed > known[-1].number:
        raise ConfigurationError(
            f"schema {schema!r} was migrated by a newer pgworkflows and needs code that knows migration "
            f"{newest_needed:04}; this code knows up to {known[-1].number:04}: upgrade pgworkflows"
        )
    return tuple(migration for migration in known if migration.number not in applied)


def _applied(conn: Connection, schema: str) -> dict[int, int]:
    """Number → oldest code of the migrations that the database has."""
    rows = conn.execute(statement("find_own_names", schema).encode(), (schema, list(OWN_NAMES))).fetchall()
    found: dict[str, str | None] = dict(rows)
    if not found:
        return {}
    if not str(found.get("migrations") or "").startswith("The migrations of pgworkflows"):
        names = ", ".join(sorted(found))
        raise ConfigurationError(
            f"schema {schema!r} holds tables that are not pgworkflows' ({names}): choose another schema= or move them"
        )
    applied = conn.execute(script("get_migrations", schema).encode()).fetchall()
    return dict(applied)


def _apply(conn: Connection, schema: str, migration: Migration) -> None:
    """Run one migration, waiting for the lock in short turns, so that nobody queues up behind a waiting lock."""
    give_up = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            with conn.transaction():
                _apply_locked(conn, schema, migration)
            return
        except psycopg.errors.LockNotAvailable as error:
            if time.monotonic() > give_up:
                raise ConfigurationError(
                    f"schema {schema!r} could not be migrated: another session held a lock for over "
                    f"{LOCK_PATIENCE_S:.0f} s ({error.diag.message_primary})"
                ) from error


def _apply_locked(conn: Connection, schema: str, migration: Migration) -> None:
    conn.execute(script("lock_migrations", schema).encode())
    if migration.number in _applied(conn, schema):
        return
    if migration.number == 1:
        conn.execute(script("create_migrations", schema).encode())
    conn.execute(render(migration.sql, schema).encode())
    conn.execute(statement("add_migration", schema).encode(), (migration.number, migration.name, migration.oldest_code))
