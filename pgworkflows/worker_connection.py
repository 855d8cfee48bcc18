"""A worker's connection: opened at first use and again after it broke, its errors sorted into what a worker does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, TransactionStatus

from pgworkflows.database import Locked, Refused, Unavailable, connect_worker, sorted_out
from pgworkflows.errors import ConfigurationError
from pgworkflows.schema import statement
from pgworkflows.sessions import OwnConnection

WORKER_LOCK_TIMEOUT_MS = 1000


class Answered(NamedTuple):
    """The single value that a statement returned, as text."""

    text: str | None


class WorkerConnection:
    """One connection of a worker, opened at first use and again after it broke. For one thread at a time; while one
    waits for an answer, another may take it."""

    def __init__(self, conninfo: str, schema: str) -> None:
        self._conninfo = conninfo
        self._schema = schema
        self._conn: OwnConnection | None = None

    def fetch(self, name: str, params: Sequence[object]) -> Any:
        """The single value that the statement `name` returns. Raises Unavailable, Refused or Locked; after an error of
        the connection the next call opens a new one."""
        conn = self.open()
        try:
            rows = conn.fetch(statement(name, self._schema), params, prepare=True)
        except UnicodeEncodeError as error:
            raise Refused(str(error), type(error).__name__) from error
        except psycopg.Error as error:
            raise self._sorted_out(error) from error
        return rows[0][0] if rows else None

    def prepare(self, name: str) -> None:
        """Open the session, and have it know the statement `name`, so that it `can_send` it. Raises as `fetch`."""
        conn = self.open()
        try:
            conn.prepare(statement(name, self._schema))
        except psycopg.Error as error:
            raise self._sorted_out(error) from error

    def can_send(self, name: str) -> bool:
        """Whether `send` may be used: the session is open, the statement prepared."""
        return self._conn is not None and self._conn.can_send(statement(name, self._schema))

    def send(self, name: str, params: Sequence[str | None]) -> None:
        """Send the statement `name` without waiting for the server, if it `can_send`: `answered` will tell. Raises
        Unavailable or Refused."""
        assert self._conn is not None
        try:
            self._conn.send(statement(name, self._schema), params)
        except UnicodeEncodeError as error:
            raise Refused(str(error), type(error).__name__) from error
        except psycopg.Error as error:
            self.close()  # who knows how much of it has gone
            raise Unavailable(str(error).strip()) from error

    def wait_for_answer(self, limit_s: float) -> None:
        """Return when there is something of the answer, or the server takes more of what was sent, and after this time
        at the latest. Any thread may wait."""
        conn = self._conn
        if conn is not None:
            with suppress(psycopg.Error):  # it is closed
                conn.wait_to_receive(limit_s)

    def answered(self) -> Answered | None:
        """The answer to what was sent, None while it is not there. Raises as `fetch` does."""
        conn = self._conn
        if conn is None:
            raise Unavailable("the connection was closed")
        try:
            result = conn.received()
        except psycopg.Error as error:
            self.close()  # who knows whether the answer still comes
            raise sorted_out(error) from error
        if result is None:
            return None
        if result.status != ExecStatus.TUPLES_OK:
            raise self._sorted_out(error_from_result(result))
        text = result.get_value(0, 0)
        return Answered(None if text is None else text.decode())

    def _sorted_out(self, error: psycopg.Error) -> Unavailable | Refused | Locked:
        conn = self._conn
        # Closed; or an answer could not be read, and may still come; or a primary has become a standby, and the next
        # connection may find the new primary.
        unread = conn is not None and conn.pgconn.transaction_status == TransactionStatus.ACTIVE
        if conn is not None and (conn.closed or unread or isinstance(error, psycopg.errors.ReadOnlySqlTransaction)):
            self.close()
        return sorted_out(error)

    def open(self) -> OwnConnection:
        """The session, opened if there is none. Raises Unavailable."""
        if self._conn is None:
            try:
                self._conn = connect_worker(self._conninfo, lock_timeout_ms=WORKER_LOCK_TIMEOUT_MS)
            except (psycopg.Error, ConfigurationError) as error:
                raise Unavailable(str(error).strip()) from error
        return self._conn

    def close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()
