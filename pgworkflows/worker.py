"""A worker: the threads that claim runs, advance them, and write what they did."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pgworkflows import claims
from pgworkflows.alarms import Alarms
from pgworkflows.claims import ClaimedRun, WorkerConnection
from pgworkflows.database import Locked, Refused, Unavailable
from pgworkflows.definition import Workflow
from pgworkflows.dispatcher import Dispatcher, Lanes
from pgworkflows.durations import Duration, parse_duration, parse_positive_duration
from pgworkflows.ear import Ear
from pgworkflows.heartbeat import Heartbeat
from pgworkflows.holdings import Holdings
from pgworkflows.journal import Answer, Entry, Verdict, without_results
from pgworkflows.limits import checked_identifier
from pgworkflows.listener import Listener
from pgworkflows.pool import Pool, ThreadLost
from pgworkflows.replay import error_info
from pgworkflows.runner import Call, Execution
from pgworkflows.scribe import Scribe

if TYPE_CHECKING:
    from pgworkflows.engine import WorkflowEngine

DEFAULT_THREADS = 16
DEFAULT_MAX_RUNS = 256


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
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._finished = threading.Event()
        self._running = threading.Lock()
        self._crew: _Crew | None = None
        self._runs_in: int | None = None

    def run_forever(self) -> None:
        """Work until `stop` is called; in the main thread also until SIGTERM or SIGINT, which end it gracefully. A
        second signal ends it at once. Applies pending migrations first; raises ConfigurationError."""
        with _Signals(self._on_signal):
            self._run(self._stop.wait)

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
            while not self._stop.is_set() and not self._crew.dispatcher.idle.wait(0.05):
                if deadline is not None and time.monotonic() > deadline:
                    late = True
                    return

        self._run(wait)
        if late:
            raise TimeoutError(f"runs were still ready or in hand after {limit_s:g} s")

    def stop(self) -> None:
        """End `run_forever` gracefully and wait for that. Idempotent; from within a step, or a signal handler, it does
        not wait."""
        self._stop.set()
        crew = self._crew
        if crew is not None and not crew.owns_this_thread() and threading.get_ident() != self._runs_in:
            self._finished.wait()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def _run(self, wait: Callable[[], object]) -> None:
        if not self._running.acquire(blocking=False):
            raise RuntimeError("this worker is running already; make another one with engine.worker()")
        try:
            self._runs_in = threading.get_ident()
            self._finished.clear()
            self._engine.migrate()
            self._crew = _Crew(
                self._engine, self._lanes, self._threads, self._max_runs, self._lease, self._poll_interval_s
            )
            self._crew.start()
            try:
                wait()
            finally:
                self._crew.finish(0.0 if self._hurry.is_set() else self._grace_s, self._hurry)
        finally:
            self._crew = self._runs_in = None
            self._stop.clear()
            self._hurry.clear()
            self._finished.set()
            self._running.release()

    def _lanes(self) -> Lanes:
        workflows = self._engine.registered
        if self._queues is not None:
            return Lanes(self._queues, workflows)
        named = {"default"} | {workflow.queue for workflow in workflows.values()}
        return Lanes(tuple(sorted(named)), workflows)


class _Crew:
    """The threads of one time of running, and what passes between them."""

    def __init__(
        self,
        engine: WorkflowEngine,
        lanes: Callable[[], Lanes],
        threads: int,
        max_runs: int,
        lease: timedelta,
        poll_interval_s: float,
    ) -> None:
        self._logger: logging.Logger = engine.logger
        self._conninfo = engine.conninfo
        self._schema = engine.schema
        self._closing = threading.Event()
        name = "pgworkflows"
        self._holdings = Holdings()
        self._pool = Pool(threads, self._work, name)
        self._alarms = Alarms(name)
        self._ear = Ear(Listener(self._conninfo, self._schema), self._holdings, self._logger, name)
        self._heartbeat = Heartbeat(self._connection(), self._holdings, self._logger, name)
        self._scribe = Scribe(self._connection(), self._holdings, self._answered, self._logger, name)
        self._claims = self._connection()
        self.dispatcher = Dispatcher(
            self._claims,
            self._holdings,
            self._pool,
            lanes=lanes,
            declare=engine.declare_through,
            accept=self._accept,
            wait_for_lock=self._ear.wait_for_lock,
            max_runs=max_runs,
            lease=lease,
            poll_interval_s=poll_interval_s,
            logger=self._logger,
            name=name,
        )

    def start(self) -> None:
        self._ear.start()
        self._heartbeat.start()
        self._scribe.start()
        self._alarms.start()
        self._pool.start()
        self.dispatcher.start()

    def owns_this_thread(self) -> bool:
        return threading.current_thread().name.startswith("pgworkflows-step")

    def finish(self, grace_s: float, hurry: threading.Event) -> None:
        """Claim no more, let the steps in flight end, write everything, and give back what is left."""
        self._closing.set()
        self.dispatcher.close()
        deadline = time.monotonic() + grace_s
        while self._holdings.executions and time.monotonic() < deadline and not hurry.is_set():
            self._holdings.bell.wait(0.05)
            self._holdings.bell.clear()
        for execution in list(self._holdings.executions.values()):
            execution.let_go()
        self._pool.close(0.2)
        self._scribe.close(max(5.0, deadline - time.monotonic()))
        self._heartbeat.close()
        self._alarms.close()
        self._unregister()
        self._ear.close()

    def _unregister(self) -> None:
        """Give back what is still in hand, without blame, and sign off. The session may have broken in the meantime
        without anybody noticing: once more, on a new one."""
        for last in (False, True):
            try:
                if self._holdings.registered:
                    claims.release_unheld(self._claims, self._holdings.worker_id, ())
                    claims.unregister_worker(self._claims, self._holdings.worker_id)
                break
            except (Unavailable, Refused, Locked) as error:
                if last:
                    self._logger.warning("pgworkflows: the worker could not sign off: %s", str(error).strip())
        self._claims.close()

    def _connection(self) -> WorkerConnection:
        return WorkerConnection(self._conninfo, self._schema)

    def _accept(self, run: ClaimedRun, workflow: Workflow[Any, Any], worker_id: UUID) -> None:
        execution = Execution(run, workflow, self._logger)
        if self._holdings.add(execution, worker_id):
            self._pool.put(execution)

    def _work(self, execution: Execution) -> None:
        """In a thread of the pool: take a run to the next thing that has to be stored, and hand that to the scribe."""
        while not execution.dropped:
            call = execution.next_call()
            if call is not None and (self._closing.is_set() or execution.control is not None):
                self._scribe.submit(execution, execution.release_entry())
                return
            if call is None or call.timeout_s is None:
                entry = self._next_entry(execution, call)
            else:
                alarm = self._alarms.set(call.timeout_s, partial(self._expire, execution, call))
                try:
                    entry = self._next_entry(execution, call)
                finally:
                    alarm.cancel()
            if entry is None:
                return
            if entry.action != "checkpoint" or entry.steps or entry.events:
                self._scribe.submit(execution, entry)
                return
        execution.close()

    def _next_entry(self, execution: Execution, call: Call | None) -> Entry | None:
        try:
            entry = execution.work(call)
        except Exception as error:
            # Nothing a handler or a step does ends up here: a strategy of the user's raised, or we are wrong.
            self._logger.exception("pgworkflows: run %s could not be advanced", execution.run.run_id)
            return execution.failure_entry(error_info(error))
        if entry is None and self._pool.has_too_many():
            raise ThreadLost
        return entry

    def _expire(self, execution: Execution, call: Call) -> None:
        """In the alarms' thread: a call's time is up. Another thread goes on with the run."""
        if not execution.dropped and execution.expire(call):
            if not self._pool.replace_one():
                self._logger.error("pgworkflows: too many steps hang past their timeout; a thread is lost to each")
            self._pool.put(execution)

    def _answered(self, execution: Execution, entry: Entry, answer: Answer) -> None:
        """In the scribe's thread: what became of an entry."""
        match answer.verdict:
            case Verdict.STALE:
                self._logger.warning(
                    "pgworkflows: run %s was taken over; what this worker did since its last checkpoint is dropped",
                    execution.run.run_id,
                )
                self._holdings.remove(execution)
                execution.close()
            case Verdict.REFUSED if entry.action == "fail" and not entry.steps:
                self._logger.error("pgworkflows: run %s cannot be ended: %s", execution.run.run_id, answer.reason)
                self._scribe.submit(execution, execution.release_entry())
            case Verdict.REFUSED:
                self._scribe.submit(execution, without_results(entry, answer.reason))
            case _ if entry.action == "checkpoint" and answer.control is None:
                if execution.suspect:
                    execution.suspect = False
                    self._holdings.bell.set()
                self._pool.put(execution)
            case _:
                self._holdings.remove(execution)
                execution.close()


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
        for number, previous in self._previous.items():
            signal.signal(number, previous)
