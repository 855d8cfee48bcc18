"""Our migrations in Alembic's: in its connection and its transaction, as one of an application's revisions."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pgworkflows.borrowed import borrowed
from pgworkflows.database import Locked, Params, Row
from pgworkflows.errors import ConfigurationError
from pgworkflows.migrate import LOCK_TIMEOUT_MS, Migration, migrate_within
from pgworkflows.schema import DEFAULT_SCHEMA, statement

LOCK_NOT_AVAILABLE = "55P03"


def apply_migrations(op: Any, *, to: int | None = None, schema: str = DEFAULT_SCHEMA) -> tuple[Migration, ...]:
    """In the `upgrade` of a revision: run the migrations of pgworkflows that are pending, up to the number `to`, in
    Alembic's transaction; what was run. There is no way back: its `downgrade` does nothing.

    `op` is Alembic's. Without `to` it is whatever the installed pgworkflows brings. Raises ConfigurationError, also
    where Alembic only writes SQL (`--sql`): what is pending, only a database can tell.
    """
    if op.get_context().as_sql:
        raise ConfigurationError(
            "pgworkflows' migrations cannot be written out by Alembic (--sql): run them online, or by migrate()"
        )
    return migrate_within(_OfAlembic(op.get_bind(), schema), schema, to)


class _OfAlembic:
    """A connection of SQLAlchemy's in Alembic's transaction, always by its own methods, so that it knows of it."""

    def __init__(self, connection: Any, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self._lent = borrowed(connection)

    def fetch(self, sql: str, params: Params) -> list[Row]:
        with _lock_is_held():
            return self._lent.fetch(sql, params)

    def run(self, sql: str) -> None:
        with _lock_is_held():
            # A script takes no parameters: its percent signs are not to be read as such.
            self._connection.exec_driver_sql(sql, execution_options={"no_parameters": True})

    @contextmanager
    def together(self) -> Generator[None]:
        with self._connection.begin_nested():
            self.fetch(statement("set_lock_timeout", self._schema), (str(LOCK_TIMEOUT_MS),))
            yield


@contextmanager
def _lock_is_held() -> Generator[None]:
    try:
        yield
    except Exception as error:
        drivers = getattr(error, "orig", None)
        if LOCK_NOT_AVAILABLE in (getattr(drivers, "sqlstate", None), getattr(drivers, "pgcode", None)):
            raise Locked(str(drivers).strip()) from error
        raise
