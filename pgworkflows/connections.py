"""The connections of a client: opened when a call needs one, kept for the next, replaced when they have broken."""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Condition, Lock
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from pgworkflows.errors import ConfigurationError

Connection = psycopg.Connection[tuple[Any, ...]]

MAX_IDLE_S = 600.0
JUST_NOW_S = 0.001
"""A connection that has been used so lately is not looked at before it is used again."""
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 0.25


class Connections:
    """Up to `size` connections, which `connect` opens. Threads may share it.

    It has no thread of its own: whoever needs a connection opens it, and is told at once why that fails. Only who has
    been connected before is patient for `patience_s`, as servers restart; so is who waits for a busy connection.
    """

    def __init__(self, connect: Callable[[], Connection], *, size: int, patience_s: float) -> None:
        self.owner = os.getpid()
        self._connect = connect
        self._size = size
        self._patience_s = patience_s
        self._lock = Lock()
        # The same lock: one that is free is taken without calling any Python code.
        self._freed = Condition(self._lock)
        self._waiting = 0
        self._in_use = 0
        # The most recently used last: the others grow old and are closed.
        self._idle: deque[tuple[float, Connection]] = deque()
        self._been_connected = False
        self._closed = False

    def __del__(self) -> None:
        # A client that nobody has closed leaves no open connections, which Python would warn of. Those of a parent
        # process are not ours to close.
        with suppress(Exception):
            if self.owner == os.getpid():
                self.close()

    def getconn(self) -> Connection:
        """A connection that works, until `putconn`. Raises ConfigurationError."""
        with self._lock:
            if self._in_use >= self._size:
                self._wait_for_one()
            self._in_use += 1
            kept = self._idle.pop() if self._idle else None
        try:
            return self._kept(kept) or self._opened()
        except BaseException:
            with self._lock:
                self._one_is_free()
            raise

    def putconn(self, conn: Connection) -> None:
        """Give a connection back."""
        now = time.monotonic()
        old: list[Connection] = []
        usable = conn.pgconn.transaction_status == TransactionStatus.IDLE
        with self._lock:
            if usable and not self._closed:
                self._idle.append((now, conn))
            else:
                old.append(conn)
            while self._idle and now - self._idle[0][0] > MAX_IDLE_S:
                old.append(self._idle.popleft()[1])
            self._one_is_free()
        for each in old:
            each.close()

    def close(self) -> None:
        """Close the connections, those in use when they are given back."""
        with self._lock:
            self._closed = True
            idle = list(self._idle)
            self._idle.clear()
        for _, conn in idle:
            conn.close()

    def _kept(self, kept: tuple[float, Connection] | None) -> Connection | None:
        """This idle connection if it works, or else another one that does."""
        while kept is not None:
            used_at, conn = kept
            if time.monotonic() - used_at < JUST_NOW_S or not has_ended(conn):
                return conn
            conn.close()
            with self._lock:
                kept = self._idle.pop() if self._idle else None
        return None

    def _wait_for_one(self) -> None:
        self._waiting += 1
        try:
            if not self._freed.wait_for(lambda: self._in_use < self._size, self._patience_s):
                raise ConfigurationError(
                    f"no connection was free within {self._patience_s:g} s: all {self._size} of this client are in use"
                )
        finally:
            self._waiting -= 1

    def _one_is_free(self) -> None:
        self._in_use -= 1
        if self._waiting:
            self._freed.notify()

    def _opened(self) -> Connection:
        give_up = time.monotonic() + self._patience_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                conn = self._connect()
            except ConfigurationError:
                if not self._been_connected or time.monotonic() + pause_s > give_up:
                    raise
                time.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
            else:
                self._been_connected = True
                return conn


def has_ended(conn: Connection) -> bool:
    """Whether an idle connection was closed by the server. Costs no round trip: an idle socket that has something to
    read has got the server's farewell, or a notice."""
    poll = select.poll()
    try:
        poll.register(conn.fileno(), select.POLLIN)
        if poll.poll(0):
            conn.execute("")
    except psycopg.Error:
        return True
    return False
