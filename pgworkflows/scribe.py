"""The thread that writes: whatever has gathered while the last flush was under way goes into the next."""

from __future__ import annotations

import logging
import threading
import time
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
LONGEST_LOCKED_PAUSE_S = 0.5

Pending: TypeAlias = tuple[Execution, Entry]


class HeldOver:
    """Entries that met a lock of somebody else's. Each is tried again after a pause, which grows while it meets one: it
    may stay for as long as a client's transaction, and asking costs the other runs' flush."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, Pending]] = []
        self._pauses_s: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, pending: Pending) -> None:
        run_id = pending[1].run_id
        pause_s = self._pauses_s.get(run_id, LOCKED_PAUSE_S)
        self._waiting.append((time.monotonic() + pause_s, pending))
        self._pauses_s[run_id] = min(LONGEST_LOCKED_PAUSE_S, pause_s * 2)

    def settle(self, entry: Entry) -> None:
        """Forget an entry's pauses: it was answered otherwise."""
        if self._pauses_s:
            self._pauses_s.pop(entry.run_id, None)

    def take(self) -> list[Pending]:
        """Those whose pause is over."""
        if not self._waiting:
            return []
        now = time.monotonic()
        due = [pending for due_at, pending in self._waiting if due_at <= now]
        self._waiting = [each for each in self._waiting if each[0] > now]
        return due

    def rest_s(self) -> float | None:
        """How long it is until the next pause is over."""
        if not self._waiting:
            return None
        return max(0.0, min(due_at for due_at, _ in self._waiting) - time.monotonic())


class Scribe(threading.Thread):
    """Owns the entries not yet durable, and the journal's connection, which it lends to a thread that has only one to
    write. Blocks on its queue, on the return of the connection, and in flushes; while the server is away it keeps what
    it has, at most one entry for each run in hand, and sends it again. Ends when it is closed and has nothing left, or
    when told to give up."""

    def __init__(
        self,
        conn: WorkerConnection,
        holdings: Holdings,
        answered: Callable[[Execution, Entry, Answer], None],
        alone: Callable[[], bool],
        logger: logging.Logger,
        name: str,
    ) -> None:
        super().__init__(name=f"{name}-scribe", daemon=True)
        self._conn = conn
        self._holdings = holdings
        self._answered = answered
        self._alone = alone
        self._pen = threading.Lock()
        self._failed_at_once: Exception | None = None
        self._logger = logger
        self._queue: SimpleQueue[Pending | None] = SimpleQueue()
        self._held_over = HeldOver()
        self._closing = False
        self._give_up = threading.Event()

    def submit(self, execution: Execution, entry: Entry) -> None:
        """Write an entry as soon as possible; `answered` is called with what became of it, in the thread that writes:
        the scribe's, or, where nothing else is to be written or worked on, this one."""
        if self._alone() and not self._closing and self._queue.empty() and self._pen.acquire(blocking=False):
            self._write_at_once(execution, entry)
            return
        self._queue.put((execution, entry))

    def _write_at_once(self, execution: Execution, entry: Entry) -> None:
        """Write a single entry in the thread that made it, which has the pen, without handing it to another and back.
        What could not be written is the scribe's to try again, and to tell of: it has that before the pen."""
        answer = Answer(Verdict.STALE)
        try:
            if not execution.dropped:
                [answer] = write(self._conn, self._holdings.worker_id, [entry])
        except Exception as error:  # whatever it is, what is in the entry must be written
            self._failed_at_once = error
        finally:
            if answer.verdict is not Verdict.WRITTEN:
                self._queue.put((execution, entry))
            self._pen.release()
        if answer.verdict is Verdict.WRITTEN:
            self._answered(execution, entry, answer)

    def close(self, timeout_s: float) -> None:
        """Write what is left and end; what is not written in time is left to whoever takes the runs over."""
        self._queue.put(None)
        self.join(timeout_s)
        self._give_up.set()
        self.join(1.0)

    def run(self) -> None:
        backoff = Backoff(self._logger, "writing the outcomes of steps")
        while not self._give_up.is_set():
            if self._write(self._gather(), backoff) or not self._closing:
                continue
            if self._held_over:
                self._give_up.wait(self._held_over.rest_s())
                continue
            with self._pen:
                if self._queue.empty():
                    break
        self._conn.close()

    def _gather(self) -> list[Pending]:
        """The next batch: what was held over for long enough, and what has come in. Waits for the first entry."""
        batch = self._held_over.take()
        while len(batch) < MAX_BATCH:
            try:
                if batch or self._closing:
                    item = self._queue.get_nowait()
                else:
                    item = self._queue.get(timeout=self._held_over.rest_s())
            except Empty:
                break
            if item is None:
                self._closing = True
            else:
                batch.append(item)
        return batch

    def _write(self, batch: list[Pending], backoff: Backoff) -> bool:
        """Write a batch, and hold on to nothing of it; whether there was anything."""
        if not batch:
            return False
        if self._failed_at_once is not None:
            pause_s = backoff.failed(self._failed_at_once)
            self._failed_at_once = None  # at once, for its traceback holds an execution
            self._give_up.wait(pause_s)
        while not self._give_up.is_set():
            worker_id = self._holdings.worker_id
            batch = [pending for pending in batch if self._wanted(*pending)]
            if not batch:
                break
            try:
                with self._pen:
                    answers = write(self._conn, worker_id, [entry for _, entry in batch])
            except Exception as error:  # whatever it is, what is in the batch must be written
                self._give_up.wait(backoff.failed(error))
                continue
            backoff.succeeded()
            self._tell_of_stale(batch, answers)
            for (execution, entry), answer in zip(batch, answers, strict=True):
                if answer.verdict is Verdict.LOCKED:
                    self._held_over.add((execution, entry))
                else:
                    self._held_over.settle(entry)
                    self._answered(execution, entry, answer)
            break
        return True

    def _tell_of_stale(self, batch: list[Pending], answers: list[Answer]) -> None:
        """Say in one line for all of them that runs are not this worker's any more, unless it has dropped them."""
        stale = [
            entry.run_id
            for (execution, entry), answer in zip(batch, answers, strict=True)
            if answer.verdict is Verdict.STALE and not execution.dropped
        ]
        if stale:
            self._logger.warning(
                "pgworkflows: runs that are not this worker's any more: %d, %s first; what it did since their last "
                "checkpoints is dropped, unless a flush whose answer was lost has stored it",
                len(stale),
                stale[0],
            )

    def _wanted(self, execution: Execution, entry: Entry) -> bool:
        """Whether the run is still this worker's, for all it knows; if not, nobody needs to ask the server."""
        if execution.dropped:
            self._held_over.settle(entry)
            self._answered(execution, entry, Answer(Verdict.STALE))
            return False
        return True
