"""The thread that hears NOTIFY, and wakes the dispatcher."""

from __future__ import annotations

import logging
import threading
from uuid import UUID

from pgworkflows.backoff import Backoff
from pgworkflows.holdings import Holdings
from pgworkflows.listener import Listener, NoSession

LISTEN_FOR_S = 1.0


class Ear(threading.Thread):
    """Owns the listening session, which also holds the lock that shows that the worker lives. Blocks in it for a second
    at most; heals by itself, and rings the bell whenever it has begun to listen. Ends when it is closed, or once it
    finds a connection pooler where a session should be."""

    def __init__(self, listener: Listener, holdings: Holdings, logger: logging.Logger, name: str) -> None:
        super().__init__(name=f"{name}-ear", daemon=True)
        self._listener = listener
        self._holdings = holdings
        self._logger = logger
        self._closing = threading.Event()
        self._locked_for: UUID | None = None
        self._deaf = False
        self._opened = threading.Condition()

    def wait_for_lock(self, worker_id: UUID, timeout_s: float) -> bool:
        """Whether the lock of this worker is held, or is within the time."""
        with self._opened:
            self._opened.wait_for(lambda: self._deaf or self._locked_for == worker_id, timeout_s)
            return self._locked_for == worker_id

    def abandon(self) -> None:
        """In the child of a fork, where this thread is not."""
        self._listener.abandon()

    def close(self) -> None:
        self._closing.set()
        self._listener.wake()
        self.join(LISTEN_FOR_S + 1.0)

    def run(self) -> None:
        # Its lock is what protects the worker: after an outage it must not be away for long.
        backoff = Backoff(self._logger, "listening for new work", longest_s=LISTEN_FOR_S)
        while not self._closing.is_set():
            try:
                self._listen(backoff)
            except NoSession:
                self._go_without()
                break
            except Exception as error:  # whatever it is, it must listen again
                self._listener.close()
                self._closing.wait(backoff.failed(error))
        self._listener.end()

    def _listen(self, backoff: Backoff) -> None:
        worker_id = self._holdings.worker_id
        locked = self._open(worker_id)
        backoff.succeeded()
        self._holdings.bell.set()
        while not self._closing.is_set() and self._holdings.worker_id == worker_id:
            if self._listener.wait(LISTEN_FOR_S):
                self._holdings.bell.set()
            if not locked:
                # The server may not have noticed yet that the session before this one, which had the lock, is gone.
                locked = self._open(worker_id)

    def _go_without(self) -> None:
        self._logger.warning(
            "pgworkflows: a connection pooler stands before PostgreSQL, where no notification and no worker's lock can "
            "be relied on: new work is looked for once every poll_interval, and a killed worker counts as dead after "
            "its lease; give listen_conninfo= a direct connection for both at once"
        )
        with self._opened:
            self._locked_for = None
            self._deaf = True
            self._opened.notify_all()

    def _open(self, worker_id: UUID) -> bool:
        """Listen, and take the lock; whether it was got."""
        locked = self._listener.open(worker_id)
        if locked and self._locked_for != worker_id:
            with self._opened:
                self._locked_for = worker_id
                self._opened.notify_all()
        return locked
