"""A worker: the threads that claim runs, advance them, and write what they did."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any

from pgworkflows import forks
from pgworkflows.crew import Crew
from pgworkflows.dispatcher import Lanes
from pgworkflows.durations import Duration, parse_duration, parse_positive_duration
from pgworkflows.healthcheck import WorkerHealth
from pgworkflows.limits import checked_identifier

if TYPE_CHECKING:
    from pgworkflows.engine import WorkflowEngine

DEFAULT_THREADS = 16
DEFAULT_MAX_RUNS = 2048
SIGNALS_EVERY_S = 0.25


class Worker:
    """Executes the runs of an engine's workflows.

    `queues` are the lanes it serves, by default "default" and those its workflows name. `threads` bounds the step
    functions called at once, `max_runs` the runs in hand. Without a sign of life for `lease` it counts as dead.
    `poll_interval` is how often it looks for runs when nothing wakes it. `grace` is how long steps may go on once it is
    told to stop; what takes longer is released and begun again elsewhere. Durations as everywhere.
    """

    def __init__(
        self,
        engine: WorkflowEngine,
        *,
        queues: Iterable[str] | None = None,
        threads: int = DEFAULT_THREADS,
        max_runs: int = DEFAULT_MAX_RUNS,
        lease: Duration = "30s",
        poll_interval: Duration = "1s",
        grace: Duration = "30s",
    ) -> None:
        self._engine = engine
        self._queues = None if queues is None else _checked_queues(queues)
        self._threads = _checked_number(threads, "threads")
        self._max_runs = _checked_number(max_runs, "max_runs")
        self._lease = parse_positive_duration(lease, "lease")
        if self._lease < timedelta(seconds=2):
            raise ValueError(f"lease must be at least 2 seconds, not {lease!r}: heartbeats come twice a second")
        self._poll_interval_s = parse_positive_duration(poll_interval, "poll_interval").total_seconds()
        self._grace_s = parse_duration(grace, "grace").total_seconds()
        self._logger: logging.Logger = engine.logger
        self._signals = _Signals(self._on_signal)
        self._forked = forks.Forked(self._stay, self._begin_anew)
        self._has_said_that_it_stays = False
        self._rest()

    def _rest(self) -> None:
        """Not running."""
        self._wishes = _Wishes()
        self._finished = threading.Event()
        self._running = threading.Lock()
        self._crew: Crew | None = None
        self._runs_in: int | None = None

    def run_forever(self) -> None:
        """Work until `stop` is called; in the main thread also until SIGTERM or SIGINT, which end it gracefully. A
        second signal ends it at once. Applies pending migrations first; raises ConfigurationError."""
        with self._signals:
            self._run(self._wishes.wait_for_stop)

    def run_until_idle(self, timeout: Duration | None = None) -> None:
        """Work until no run is ready and none is in hand. Runs that wait for an event or a later time are not ready.

        Raises TimeoutError when that takes longer than `timeout`.
        """
        limit_s = None if timeout is None else parse_positive_duration(timeout, "timeout").total_seconds()
        late = False

        def wait() -> None:
            nonlocal late
            assert self._crew is not None
            deadline = None if limit_s is None else time.monotonic() + limit_s
            while not self._wishes.stop and not self._crew.dispatcher.idle.wait(0.05):
                if deadline is not None and time.monotonic() > deadline:
                    late = True
                    return

        self._run(wait)
        if late:
            raise TimeoutError(f"runs were still ready or in hand after {limit_s:g} s")

    def stop(self) -> None:
        """End `run_forever` gracefully and wait for that. Idempotent; from within a step, or a signal handler, it does
        not wait."""
        self._wishes.ask_to_stop()
        crew = self._crew
        if crew is not None and not crew.owns_this_thread() and threading.get_ident() != self._runs_in:
            self._finished.wait()

    def health(self) -> WorkerHealth:
        """How the worker is, without asking the database. One that is just starting is alive, and not ready yet."""
        crew = self._crew
        return WorkerHealth(alive=self._running.locked(), ready=False) if crew is None else crew.health()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._wishes.stop:
            self._wishes.hurry = True
        self._wishes.ask_to_stop()

    def _run(self, wait: Callable[[], object]) -> None:
        if not self._running.acquire(blocking=False):
            raise RuntimeError("this worker is running already; make another one with engine.worker()")
        try:
            self._runs_in = threading.get_ident()
            self._finished.clear()
            forks.enter(self._forked)
            self._prepare()
            self._crew = Crew(
                self._engine, self._lanes, self._threads, self._max_runs, self._lease, self._poll_interval_s
            )
            self._crew.start()
            try:
                wait()
            finally:
                self._crew.finish(self._grace_s, lambda: self._wishes.hurry)
        finally:
            forks.leave(self._forked)
            self._crew = self._runs_in = None
            self._wishes = _Wishes()
            self._finished.set()
            self._running.release()

    def _stay(self) -> None:
        """This process has been forked."""
        if self._runs_in != threading.main_thread().ident and not self._has_said_that_it_stays:
            self._has_said_that_it_stays = True
            self._logger.warning(
                "pgworkflows: process %d was forked while a worker ran in a thread of it, and the worker stays there: "
                "the child has none; call engine.start() after the fork, in each process that shall work",
                os.getpid(),
            )

    def _begin_anew(self) -> None:
        """This process is the child of a fork, in which no thread of the worker's runs."""
        if self._crew is not None:
            self._crew.abandon()
        self._rest()
        self._signals.give_back()

    def _prepare(self) -> None:
        self._engine.migrate()

    def _lanes(self) -> Lanes:
        workflows = self._engine.registered
        if self._queues is not None:
            return Lanes(self._queues, workflows)
        named = {"default"} | {workflow.queue for workflow in workflows.values()}
        return Lanes(tuple(sorted(named)), workflows)


class BackgroundWorker(Worker):
    """The worker of `engine.start`, which has migrated: it needs no connection to begin, and so cannot fail for want of
    one where nobody would hear of it."""

    def _prepare(self) -> None:
        pass


class _Wishes:
    """What a worker is asked for. Takes no lock: a signal handler asks, and another may interrupt it."""

    def __init__(self) -> None:
        self.stop = False
        self.hurry = False
        self._asked: SimpleQueue[None] = SimpleQueue()

    def ask_to_stop(self) -> None:
        self.stop = True
        self._asked.put(None)

    def wait_for_stop(self) -> None:
        # Now and then awake: a signal that comes just before the wait begins, or in another thread, does not end it.
        while not self.stop:
            with suppress(Empty):
                self._asked.get(timeout=SIGNALS_EVERY_S)


def _checked_queues(queues: Iterable[str]) -> tuple[str, ...]:
    if isinstance(queues, str):
        raise TypeError("queues must be a list of names, not one string")
    return tuple(sorted({checked_identifier(queue, "a queue") for queue in queues}))


def _checked_number(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if not 1 <= value <= 10_000:
        raise ValueError(f"{what} must lie within 1 and 10000, not {value}")
    return value


class _Signals:
    """SIGTERM and SIGINT go to a handler while this is entered, if this is the main thread."""

    def __init__(self, handler: Callable[[int, FrameType | None], None]) -> None:
        self._handler = handler
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handler)

    def __exit__(self, *exc: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """To who had them before. In the child of a fork, its only thread is the main thread."""
        while self._previous:
            signal.signal(*self._previous.popitem())
