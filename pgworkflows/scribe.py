"""The thread that writes: whatever has gathered while the last flush was under way goes into the next."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeAlias

from pgworkflows.backoff import Backoff
from pgworkflows.claims import WorkerConnection
from pgworkflows.holdings import Holdings
from pgworkflows.journal import Answer, Entry, Verdict, write
from pgworkflows.runner import Execution

MAX_BATCH = 500
LOCKED_PAUSE_S = 0.05

Pending: TypeAlias = tuple[Execution, Entry]


class Scribe(threading.Thread):
    """Owns the journal's connection and the entries not yet durable. Blocks on its queue and in flushes; while the
    server is away it keeps what it has, at most one entry for each run in hand, and sends it again. Ends when it is
    closed and has nothing left, or when told to give up."""

    def __init__(
        self,
        conn: WorkerConnection,
        holdings: Holdings,
        answered: Callable[[Execution, Entry, Answer], None],
        logger: logging.Logger,
        name: str,
    ) -> None:
        super().__init__(name=f"{name}-scribe", daemon=True)
        self._conn = conn
        self._holdings = holdings
        self._answered = answered
        self._logger = logger
        self._queue: SimpleQueue[Pending | None] = SimpleQueue()
        self._held_over: list[Pending] = []
        self._closing = False
        self._give_up = threading.Event()

    def submit(self, execution: Execution, entry: Entry) -> None:
        """Write an entry as soon as possible; `answered` is called in this thread with what became of it."""
        self._queue.put((execution, entry))

    def close(self, timeout_s: float) -> None:
        """Write what is left and end; what is not written in time is left to whoever takes the runs over."""
        self._queue.put(None)
        self.join(timeout_s)
        self._give_up.set()
        self.join(1.0)

    def run(self) -> None:
        backoff = Backoff(self._logger, "writing the outcomes of steps")
        while not self._give_up.is_set():
            batch = self._gather()
            if batch:
                self._write(batch, backoff)
            elif self._closing:
                break
        self._conn.close()

    def _gather(self) -> list[Pending]:
        """The next batch: what was held over, and what has come in. Waits for the first entry."""
        batch, self._held_over = self._held_over, []
        wait_s = LOCKED_PAUSE_S if batch else None
        while len(batch) < MAX_BATCH:
            try:
                if (batch and wait_s is None) or (self._closing and not batch):
                    item = self._queue.get_nowait()
                else:
                    item = self._queue.get(timeout=wait_s)
            except Empty:
                break
            wait_s = None
            if item is None:
                self._closing = True
                if not batch:
                    break
            else:
                batch.append(item)
        return batch

    def _write(self, batch: list[Pending], backoff: Backoff) -> None:
        while not self._give_up.is_set():
            worker_id = self._holdings.worker_id
            batch = [pending for pending in batch if self._wanted(*pending)]
            if not batch:
                return
            try:
                answers = write(self._conn, worker_id, [entry for _, entry in batch])
            except Exception as error:  # whatever it is, what is in the batch must be written
                self._give_up.wait(backoff.failed(error))
                continue
            backoff.succeeded()
            for (execution, entry), answer in zip(batch, answers, strict=True):
                if answer.verdict is Verdict.LOCKED:
                    self._held_over.append((execution, entry))
                else:
                    self._answered(execution, entry, answer)
            return

    def _wanted(self, execution: Execution, entry: Entry) -> bool:
        """Whether the run is still this worker's, for all it knows; if not, nobody needs to ask the server."""
        if execution.dropped:
            self._answered(execution, entry, Answer(Verdict.STALE))
            return False
        return True
