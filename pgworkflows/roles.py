"""Who may do what: the database roles of clients, workers and readers, and what each is granted."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg
from psycopg import sql

from pgworkflows.database import Connection, connect, explained
from pgworkflows.errors import ConfigurationError
from pgworkflows.limits import is_storable, quoted
from pgworkflows.migrate import LOCK_TIMEOUT_MS, check_current
from pgworkflows.schema import DEFAULT_SCHEMA, checked_schema, script, statement

MAX_ROLE_BYTES = 63


def grant(
    conninfo: str,
    schema: str = DEFAULT_SCHEMA,
    *,
    client: str | None = None,
    worker: str | None = None,
    reader: str | None = None,
) -> None:
    """Let roles that exist be a client, a worker, a reader of this schema, and nothing else in it. Call it again for
    others; a role that is named again becomes what it is named now.

    From the first call on the schema's functions are no longer everybody's, and work with their owner's rights. Connect
    as the owner. Raises ConfigurationError when a role is missing or stands above the schema's rules, ValueError and
    TypeError.
    """
    _set_kinds(conninfo, schema, _kinds(client=client, worker=worker, reader=reader))


def revoke(conninfo: str, schema: str, role: str) -> None:
    """Take from a role all that it was granted in this schema. Raises as `grant`."""
    _set_kinds(conninfo, schema, {_checked_role(role, "role"): "revoked"})


def grant_script(
    schema: str = DEFAULT_SCHEMA, *, client: str | None = None, worker: str | None = None, reader: str | None = None
) -> str:
    """What `grant` runs, as a script for psql: for an administrator to read and to run in one transaction."""
    # Formatting turns each doubled % of the schema's name into one again, as the driver does.
    add = statement("add_role", checked_schema(schema))
    kinds = _kinds(client=client, worker=worker, reader=reader)
    entries = [add % (sql.Literal(role).as_string(), sql.Literal(kind).as_string()) for role, kind in kinds.items()]
    return ";\n".join([*entries, script("grant_roles", schema)]) + ";\n"


def _kinds(**named: str | None) -> Mapping[str, str]:
    """What each role is to be."""
    kinds = {_checked_role(role, kind): kind for kind, role in named.items() if role is not None}
    if not kinds:
        raise ValueError("name a role: client=, worker= or reader=")
    if len(kinds) < sum(role is not None for role in named.values()):
        raise ValueError("a role is a client, a worker or a reader, not two of them: name another role for each")
    return kinds


def _checked_role(name: object, what: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{what} must be the name of a role, not {type(name).__name__}")
    if not is_storable(name) or not 0 < len(name.encode()) <= MAX_ROLE_BYTES:
        raise ValueError(f"{what} must be the name of a role, 1 to {MAX_ROLE_BYTES} bytes without NUL: {quoted(name)}")
    return name


def _set_kinds(conninfo: str, schema: str, kinds: Mapping[str, str]) -> None:
    checked_schema(schema)
    with connect(conninfo, lock_timeout_ms=LOCK_TIMEOUT_MS) as conn:
        check_current(conn, schema)
        try:
            with conn.transaction():
                # Not beside a migration, which grants again.
                conn.execute(script("lock_migrations", schema).encode())
                for role, kind in kinds.items():
                    _check_found(conn, schema, role, kind)
                    conn.execute(statement("add_role", schema).encode(), (role, kind))
                conn.execute(script("grant_roles", schema).encode())
        except psycopg.errors.LockNotAvailable as error:
            raise ConfigurationError(
                f"schema {schema!r}: somebody else holds a lock; nothing was granted, try again"
            ) from error
        except psycopg.Error as error:
            raise explained(error) from error


def _check_found(conn: Connection, schema: str, role: str, kind: str) -> None:
    found = conn.execute(statement("find_role", schema).encode(), (role,)).fetchone()
    if found is None:
        raise ConfigurationError(f"there is no role {role!r}: create it first, as in CREATE ROLE … LOGIN")
    if found[0] and kind != "revoked":
        raise ConfigurationError(
            f"role {role!r} may do everything in schema {schema!r}, as its owner, a superuser or past row-level "
            f"security: name another role as {kind}"
        )
