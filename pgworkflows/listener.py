"""The connection that hears NOTIFY and holds the lock that shows that its worker lives."""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from uuid import UUID

import psycopg
from psycopg import sql

from pgworkflows.database import Unavailable, connect_worker
from pgworkflows.errors import ConfigurationError
from pgworkflows.schema import statement
from pgworkflows.sessions import OwnConnection


class NoSession(Exception):
    """A pooler stands before the server: there is nothing to hear behind it, and no lock to hold."""


class Listener:
    """A dedicated session in autocommit mode. For one thread, but for `wake`."""

    def __init__(self, conninfo: str, schema: str) -> None:
        self._conninfo = conninfo
        self._schema = schema
        self._conn: OwnConnection | None = None
        self._locked: set[UUID] = set()
        self._woken, self._waker = socket.socketpair()

    def open(self, worker_id: UUID) -> bool:
        """Connect and listen, and take the worker's lock; whether it was got. Raises Unavailable and NoSession."""
        try:
            return self._listen(worker_id)
        except (psycopg.Error, ConfigurationError) as error:
            self.close()
            raise Unavailable(str(error).strip()) from error

    def wait(self, timeout_s: float) -> bool:
        """Whether a notification came within the time. Raises Unavailable."""
        assert self._conn is not None
        poll = select.poll()
        poll.register(self._conn.fileno(), select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        try:
            poll.poll(timeout_s * 1000)
            return any(True for _ in self._conn.notifies(timeout=0))
        except psycopg.Error as error:
            self.close()
            raise Unavailable(str(error).strip()) from error

    def wake(self) -> None:
        """End the wait at once, from another thread and for good."""
        with suppress(OSError):  # it has ended already
            self._waker.send(b"!")

    def close(self) -> None:
        """Close the session; `open` begins another."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def abandon(self) -> None:
        """In the child of a fork: leave the session to the process whose it is, and keep its lock from nobody once that
        has died."""
        conn, self._conn = self._conn, None
        if conn is not None:
            with suppress(OSError, psycopg.Error):
                os.close(conn.fileno())

    def end(self) -> None:
        """Close the session for good."""
        self.close()
        self._woken.close()
        self._waker.close()

    def _listen(self, worker_id: UUID) -> bool:
        if self._conn is None:
            self._locked.clear()
            self._conn = connect_worker(self._conninfo)
            if self._conn.pooled:
                self.close()
                raise NoSession
        if worker_id not in self._locked:
            row = self._conn.execute(statement("lock_worker", self._schema).encode(), (str(worker_id),)).fetchone()
            assert row is not None
            self._conn.execute(sql.SQL("listen {}").format(sql.Identifier(row[1])))
            if not row[0]:
                return False
            self._locked.add(worker_id)
        return True
