"""A connection that a test lends: the engine's calls and its worker's statements in one transaction, the test's."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from pgworkflows.borrowed import borrowed
from pgworkflows.database import Connection, Database, Executor, Params, Row
from pgworkflows.schema import statement
from pgworkflows.worker_connection import WorkerConnection


class LentConnection(WorkerConnection):
    """What a worker writes on a connection of the test's. An error of the server's is the driver's, as it comes: it has
    aborted the transaction."""

    def __init__(self, connection: Any, conninfo: str, schema: str) -> None:
        super().__init__(conninfo, schema)
        self._lent = borrowed(connection)
        self._schema_name = schema

    def fetch(self, name: str, params: Sequence[object]) -> Any:
        rows = self._lent.fetch(statement(name, self._schema_name), params)
        return rows[0][0] if rows else None

    def close(self) -> None:
        """It is the test's."""


class WatchedDatabase(Database):
    """An engine's database, whose calls are followed by something. `lent`: where they are sent instead."""

    def __init__(self, database: Database, lent: Executor | None, after: Callable[[], None]) -> None:
        super().__init__(database.conninfo, None, database.listen_conninfo)
        self._watched = database
        self._lent = lent
        self._after = after

    @property
    def borrowed(self) -> bool:
        return self._lent is not None or self._watched.borrowed

    def fetch(self, sql: str, params: Params = ()) -> list[Row]:
        rows = (self._lent or self._watched).fetch(sql, params)
        self._after()
        return rows

    @contextmanager
    def connection(self) -> Generator[Connection]:
        with self._watched.connection() as conn:
            yield conn

    def close(self) -> None:
        self._watched.close()
