"""The thread that writes: whatever has gathered while the last flush was under way goes into the next."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from uuid import UUID

from pgworkflows.backoff import Backoff
from pgworkflows.columns import Row, row_of
from pgworkflows.database import Locked, Refused
from pgworkflows.documents import Piece, piece_of
from pgworkflows.entries import Entry, length_of
from pgworkflows.held_over import HeldOver, Pending
from pgworkflows.holdings import Holdings
from pgworkflows.journal import Answer, Unusual, Verdict, answers_in, statement_for, write
from pgworkflows.runner import Execution
from pgworkflows.worker_connection import WorkerConnection

STATEMENTS = ("flush_results", "flush")
MAX_BATCH = 500
MAX_FLIGHT_LENGTH = 1_000_000
"""How many characters are sent without waiting for the server to take them."""
GLANCE_EVERY = 4
"""How many entries come in between two glances at a flush under way."""
WATCH_S = 0.05
"""How long this thread waits for an answer at most before it looks whether another has taken it."""


class Flight:
    """A flush under way: sent, and not answered yet. `told`, once the answer is more than that all is written, is that
    answer, or what went wrong: for the scribe, who can wait."""

    __slots__ = ("batch", "told")

    def __init__(self, batch: list[Pending]) -> None:
        self.batch = batch
        self.told: list[Answer] | Exception | None = None


class Scribe(threading.Thread):
    """Owns the journal's connection, which is used by whoever has the pen.

    Entries go into flushes, one at a time. In the usual case a flush is a flight: it is sent without waiting, by the
    thread that had put down the last entry and goes on working, and its answer is noticed, and the next one sent, by
    the next such thread that looks. So a busy pool does not wait for this thread to get the interpreter's lock. This
    thread looks after a flight that nobody else looks after; and it does, waiting, all that is out of the ordinary: it
    opens the connection, writes what is locked or refused until every entry has its answer, and while the server is
    away it keeps what it has, at most one entry for each run in hand, and sends it again.

    Ends when it is closed and has nothing left, or when told to give up."""

    def __init__(
        self,
        conn: WorkerConnection,
        holdings: Holdings,
        written: Callable[[Sequence[Pending]], None],
        answered: Callable[[Execution, Entry, Answer], None],
        alone: Callable[[], bool],
        logger: logging.Logger,
        name: str,
    ) -> None:
        """`written` is told of entries that were written and of whose runs nothing is asked, `answered` of any other
        answer."""
        super().__init__(name=f"{name}-scribe", daemon=True)
        self._conn = conn
        self._holdings = holdings
        self._written = written
        self._answered = answered
        self._alone = alone
        self._logger = logger
        self._entries: deque[tuple[Pending, Row | Piece | None]] = deque()
        self._pen = threading.Lock()
        self._bell = threading.Event()
        self._flight: Flight | None = None
        self._glances = 0
        self._grounded = False
        self._failed_at_once: Exception | None = None
        self._held_over = HeldOver()
        self._closing = False
        self._give_up = threading.Event()

    def submit(self, execution: Execution, entry: Entry) -> None:
        """Write an entry as soon as possible. What became of it is told in the thread that finds out: this one, which
        writes itself where nothing else is to be written or worked on, another one that submits something, or the
        scribe's."""
        if self._is_quiet() and self._alone() and not self._closing and self._pen.acquire(blocking=False):
            if self._is_quiet():
                self._write_at_once(execution, entry)
                return
            self._put_down_pen()
        self._put_down(execution, entry)
        self._help()

    def close(self, timeout_s: float) -> None:
        """Write what is left and end; what is not written in time is left to whoever takes the runs over."""
        self._closing = True
        self._bell.set()
        self.join(timeout_s)
        self._give_up.set()
        self.join(1.0)

    def run(self) -> None:
        backoff = Backoff(self._logger, "writing the outcomes of steps")
        with self._pen:
            self._prepare()  # before there is anything to write
        while not self._give_up.is_set():
            self._bell.clear()
            self._grounded = self._held_over.is_due
            flight = self._flight
            if flight is not None and flight.told is None:
                self._conn.wait_for_answer(WATCH_S)
                self._move_on()
            elif flight is not None:
                self._make_up_for(flight, backoff)
            elif self._write_waiting(backoff) or self._flight is not None:
                continue
            elif self._closing and not self._held_over and self._has_ended():
                return
            elif not self._entries:  # nobody rings for what came in while this thread had the pen
                self._bell.wait(self._held_over.rest_s())
        self._pen.acquire(timeout=1.0)  # whoever keeps it hangs, until the connection is closed
        self._conn.close()

    # In the thread that has put an entry down.

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
                self._put_down(execution, entry)
            self._put_down_pen()
        if answer.verdict is Verdict.WRITTEN:
            self._answered(execution, entry, answer)

    def _put_down(self, execution: Execution, entry: Entry) -> None:
        """Spelled here, in the thread that has it at hand, so that a flight can leave as soon as one has landed."""
        piece: Row | Piece | None = None
        with suppress(Exception):  # the scribe will meet it, and tell
            if length_of(entry) < MAX_FLIGHT_LENGTH:
                piece = row_of(entry) or piece_of(entry)
        self._entries.append(((execution, entry), piece))

    def _help(self) -> None:
        """See to it that what was put down is written: by a flight, as soon as there is none under way."""
        if self._flight is not None:
            self._glances += 1
            if self._glances % GLANCE_EVERY:
                return
        if self._pen.acquire(blocking=False):
            self._advance()

    # In any thread.

    def _is_quiet(self) -> bool:
        """Whether there is nothing to write, and nothing under way."""
        return self._flight is None and not self._entries

    def _move_on(self) -> None:
        self._pen.acquire()
        self._advance()

    def _advance(self) -> None:
        """With the pen: note that a flight is over, send the next, and put the pen down; then tell."""
        landed: Sequence[Pending] = ()
        try:
            landed = self._land()
            if self._flight is None and self._entries:
                self._launch()
        finally:
            self._put_down_pen()
        if landed:
            self._written(landed)

    def _put_down_pen(self) -> None:
        """Whoever wanted it meanwhile has left its entry to the one who had it."""
        self._pen.release()
        if self._entries and self._flight is None:
            self._bell.set()

    def _land(self) -> Sequence[Pending]:
        """What the flight has written, if all of it was; anything else is left to the scribe."""
        flight = self._flight
        if flight is None or flight.told is not None:
            return ()
        try:
            answer = self._conn.answered()
            if answer is None:
                return ()
            if answer.text is None:
                self._flight = None
                self._held_over.settle(flight.batch)
                return flight.batch
            flight.told = answers_in(answer.text, [entry for _, entry in flight.batch])
        except Exception as error:  # whatever it is, what is in the batch must be written
            flight.told = error
        self._bell.set()
        return ()

    def _launch(self) -> None:
        """Send what has gathered, if that is quickly done; or leave it where it is, to the scribe."""
        if self._grounded or self._failed_at_once is not None or not all(map(self._conn.can_send, STATEMENTS)):
            return
        worker_id = self._holdings.worker_id
        taken = [self._entries.popleft() for _ in range(min(MAX_BATCH, len(self._entries)))]
        batch = [pending for pending, _ in taken]
        with suppress(Exception):  # the scribe will meet it, too, and tell
            if self._send(worker_id, batch, [piece for _, piece in taken if piece is not None]):
                self._flight = Flight(batch)
                self._bell.set()
                return
        self._entries.extendleft(reversed(taken))
        self._grounded = True  # until the scribe, which is rung for, has seen to it

    def _send(self, worker_id: UUID, batch: Sequence[Pending], pieces: Sequence[Row | Piece]) -> bool:
        """Send a batch to the server, unless there is too much of it, or something in it that is not wanted."""
        if len(pieces) < len(batch) or any(execution.dropped for execution, _ in batch):
            return False
        statement, params = statement_for(worker_id, [entry for _, entry in batch], pieces)
        if sum(map(len, filter(None, params))) > MAX_FLIGHT_LENGTH:
            return False
        self._conn.send(statement, params)
        return True

    def _prepare(self) -> None:
        """Have the session ready for flights. What fails is told when there is something to write."""
        with suppress(Exception):
            for statement in STATEMENTS:
                self._conn.prepare(statement)

    def _gather(self, batch: list[Pending]) -> list[Pending]:
        """The next batch: these, and what has come in."""
        while len(batch) < MAX_BATCH and self._entries:
            batch.append(self._entries.popleft()[0])
        return batch

    # In the scribe's own thread, which may wait.

    def _write_waiting(self, backoff: Backoff) -> bool:
        """See to what has gathered, and to what was held over for long enough; whether there was anything."""
        self._move_on()
        with self._pen:
            if self._flight is not None:
                return True
            batch = self._gather(self._held_over.take())
            self._grounded = bool(batch)
        return self._write(batch, backoff)

    def _make_up_for(self, flight: Flight, backoff: Backoff) -> None:
        """See to a flight that has not written all."""
        with self._pen:
            self._grounded = True
            self._flight = None
        told, flight.told = flight.told, None  # a traceback leads back to the flight
        if isinstance(told, list):
            backoff.succeeded()
            self._tell(flight.batch, told)
            return
        if told is not None and not isinstance(told, Refused | Locked | Unusual):
            self._give_up.wait(backoff.failed(told))
        self._write(flight.batch, backoff)

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
                    told = write(self._conn, worker_id, [entry for _, entry in batch])
                    self._prepare()  # the connection may be a new one
            except Exception as error:  # whatever it is, what is in the batch must be written
                self._give_up.wait(backoff.failed(error))
                continue
            backoff.succeeded()
            self._tell(batch, told)
            break
        return True

    def _wanted(self, execution: Execution, entry: Entry) -> bool:
        """Whether the run is still this worker's, for all it knows; if not, nobody needs to ask the server."""
        if execution.dropped:
            self._held_over.settle([(execution, entry)])
            self._answered(execution, entry, Answer(Verdict.STALE))
            return False
        return True

    def _tell(self, batch: Sequence[Pending], told: Sequence[Answer]) -> None:
        """Tell each of its answer, and put off what was locked."""
        self._tell_of_stale(batch, told)
        for (execution, entry), answer in zip(batch, told, strict=True):
            if answer.verdict is Verdict.LOCKED:
                self._held_over.add((execution, entry))
            else:
                self._held_over.settle([(execution, entry)])
                self._answered(execution, entry, answer)

    def _tell_of_stale(self, batch: Sequence[Pending], told: Sequence[Answer]) -> None:
        """Say in one line for all of them that runs are not this worker's any more, unless it has dropped them."""
        stale = [
            entry.run_id
            for (execution, entry), answer in zip(batch, told, strict=True)
            if answer.verdict is Verdict.STALE and not execution.dropped
        ]
        if stale:
            self._logger.warning(
                "pgworkflows: runs that are not this worker's any more: %d, %s first; what it did since their last "
                "checkpoints is dropped, unless a flush whose answer was lost has stored it",
                len(stale),
                stale[0],
            )

    def _has_ended(self) -> bool:
        """Whether nothing is left to write. If so, the connection is closed, and nobody sends anything any more."""
        with self._pen:
            if self._entries or self._flight is not None:
                return False
            self._conn.close()
            return True
