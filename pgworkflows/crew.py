"""The threads of a worker, and what passes between them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pgworkflows import claims
from pgworkflows.alarms import Alarms
from pgworkflows.calls import Call
from pgworkflows.claims import ClaimedRun
from pgworkflows.database import Locked, Refused, Unavailable, told
from pgworkflows.definition import Workflow
from pgworkflows.dispatcher import Dispatcher, Lanes
from pgworkflows.ear import Ear
from pgworkflows.entries import Entry, without_results
from pgworkflows.failures import outline
from pgworkflows.healthcheck import WorkerHealth
from pgworkflows.heartbeat import Heartbeat
from pgworkflows.held_over import Pending
from pgworkflows.holdings import Holdings
from pgworkflows.janitor import Janitor
from pgworkflows.journal import WRITTEN, Answer, Verdict
from pgworkflows.limits import cleaned
from pgworkflows.listener import Listener
from pgworkflows.low_water import LowWater
from pgworkflows.payloads import Unreadable
from pgworkflows.plugins import ExecutionOutcome
from pgworkflows.pool import Pool, ThreadLost
from pgworkflows.runner import Execution
from pgworkflows.scheduler import Scheduler
from pgworkflows.scribe import Scribe
from pgworkflows.store import Store
from pgworkflows.worker_connection import WorkerConnection
from pgworkflows.wrapping import outcome_of

if TYPE_CHECKING:
    from pgworkflows.engine import WorkflowEngine

SIGN_OFF_S = 5.0
LEAVE_S = 5.0
"""How long a worker that stops waits for plugins that take their time to leave an execution."""


class Crew:
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
        self._lease_s = lease.total_seconds()
        self._plugins = engine.plugins
        self._payloads = engine.payloads
        self._unreadable: set[tuple[str, str]] = set()
        self._inside: set[Execution] = set()
        self._closing = threading.Event()
        name = "pgworkflows"
        self._holdings = Holdings()
        self._pool = Pool(threads, self._work, name)
        low_water = LowWater()
        self._alarms = Alarms(name)
        self._ear = Ear(Listener(engine.listen_conninfo, self._schema), self._holdings, self._logger, name)
        self._heartbeat = Heartbeat(self._connection(), self._holdings, low_water, self._logger, name)
        self._scribe = Scribe(
            self._connection(),
            self._holdings,
            self._written,
            self._answered,
            lambda: self._pool.one_works,
            self._logger,
            name,
        )
        self._scheduler = Scheduler(self._connection(), self._holdings, lanes, self._logger, name)
        retained = partial(_anything_retained, engine.retention, lanes)
        self._janitor = Janitor(Store(self._schema), self._conninfo, retained, self._logger, name)
        self._claims = self._connection()
        self.dispatcher = Dispatcher(
            self._claims,
            self._holdings,
            self._pool,
            low_water,
            lanes=lanes,
            served=self._scheduler.bell.set,
            accept=self._accept,
            wait_for_lock=self._ear.wait_for_lock,
            max_runs=max_runs,
            lease=lease,
            retention=engine.retention,
            payloads=self._payloads,
            poll_interval_s=poll_interval_s,
            logger=self._logger,
            name=name,
        )

    def start(self) -> None:
        self._ear.start()
        self._heartbeat.start()
        self._scribe.start()
        self._alarms.start()
        self._janitor.start()
        self._pool.start()
        self._scheduler.start()
        self.dispatcher.start()

    def owns_this_thread(self) -> bool:
        return threading.current_thread().name.startswith("pgworkflows-step")

    def abandon(self) -> None:
        """In the child of a fork, where these threads are not."""
        self._ear.abandon()

    def health(self) -> WorkerHealth:
        """How it is with these threads."""
        closing, age_s = self._closing.is_set(), self._heartbeat.age_s
        vital = (self._heartbeat, self._scribe, self.dispatcher)
        beating = self._holdings.registered and age_s is not None and age_s < self._lease_s
        return WorkerHealth(
            alive=closing or all(thread.is_alive() for thread in vital),
            ready=beating and not closing,
            worker_id=self._holdings.worker_id,
            heartbeat_age=None if age_s is None else timedelta(seconds=age_s),
            runs_in_hand=len(self._holdings.executions),
            stopping=closing,
        )

    def finish(self, grace_s: float, hurried: Callable[[], bool]) -> None:
        """Claim no more, let the steps in flight end, write everything, and give back what is left; at once when
        `hurried` says so."""
        self._closing.set()
        self._logger.info(
            "pgworkflows: worker %s is stopping, with %d runs in hand",
            self._holdings.worker_id,
            len(self._holdings.executions),
        )
        self._scheduler.stop()
        self._janitor.stop()
        self.dispatcher.close()
        deadline = time.monotonic() + grace_s
        while self._holdings.executions and time.monotonic() < deadline and not hurried():
            self._holdings.bell.wait(0.05)
            self._holdings.bell.clear()
        if hurried():
            deadline = time.monotonic()
        for execution in list(self._holdings.executions.values()):
            execution.let_go()
        self._pool.close(0.2)
        self._scribe.close(max(5.0, deadline - time.monotonic()))
        self._scheduler.close()
        self._janitor.close()
        self._heartbeat.close()
        self._alarms.close()
        self._sign_off()
        self._ear.close()
        self._part(0.0 if hurried() else LEAVE_S)

    def _part(self, limit_s: float) -> None:
        """Leave the plugins of the executions that nobody works on any more, and wait for those who are at it."""
        if not self._inside:
            return
        threading.Thread(target=self._leave_all, name="pgworkflows-parting", daemon=True).start()
        deadline = time.monotonic() + limit_s
        while self._inside and time.monotonic() < deadline:
            time.sleep(0.002)

    def _leave_all(self) -> None:
        """In a thread of its own, which a plugin may keep."""
        for execution in list(self._inside):
            self._leave(execution, ExecutionOutcome.RELEASED)

    def _sign_off(self) -> None:
        """Give back what is still in hand and strike the worker from the live, if the server answers in time."""
        outcome: SimpleQueue[str | None] = SimpleQueue()
        threading.Thread(
            target=lambda: outcome.put(self._unregister()), name="pgworkflows-signing-off", daemon=True
        ).start()
        try:
            problem = outcome.get(timeout=SIGN_OFF_S)
        except Empty:
            problem = "the server does not answer"
        if problem is not None:
            self._logger.warning("pgworkflows: the worker could not sign off: %s", problem)

    def _unregister(self) -> str | None:
        """Sign off, without blame for the runs; what is in the way of that, if anything. The session may have broken in
        the meantime without anybody noticing: once more, on a new one."""
        problem = None
        for _ in range(2):
            try:
                if self._holdings.registered:
                    claims.release_unheld(self._claims, self._holdings.worker_id, ())
                    claims.unregister_worker(self._claims, self._holdings.worker_id)
                problem = None
                break
            except (Unavailable, Refused, Locked) as error:
                problem = told(error)
        self._claims.close()
        return problem

    def _connection(self) -> WorkerConnection:
        return WorkerConnection(self._conninfo, self._schema)

    def _accept(self, run: ClaimedRun, workflow: Workflow[Any, Any], worker_id: UUID) -> None:
        execution = Execution(run, workflow, self._logger, self._plugins, self._payloads)
        if self._holdings.add(execution, worker_id):
            if execution.wrapped:
                self._inside.add(execution)
            self._pool.put(execution)

    def _work(self, execution: Execution) -> None:
        """In a thread of the pool: take a run to the next thing that has to be stored, and hand that to the scribe."""
        while not execution.dropped:
            call = execution.next_call()
            if call is not None and (self._closing.is_set() or execution.control is not None):
                self._submit(execution, execution.release_entry())
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
                self._submit(execution, entry)
                return
        execution.close()
        self._leave(execution, execution.ending)

    def _submit(self, execution: Execution, entry: Entry) -> None:
        """Hand an entry to the scribe. If it is the execution's last, leave the plugins: after that, so that one that
        takes its time, or the process with it, holds up no write."""
        if entry.action == "checkpoint" or not execution.wrapped:
            self._scribe.submit(execution, entry)
            return
        # Asked before: once the entry is written, the run is not ours any more either.
        outcome = ExecutionOutcome.LOST if execution.dropped else outcome_of(entry, execution.control)
        self._scribe.submit(execution, entry)
        self._pool.hand_on()
        execution.close()
        self._leave(execution, outcome)

    def _leave(self, execution: Execution, outcome: ExecutionOutcome) -> None:
        if execution.wrapped and execution.leave(outcome):
            self._inside.discard(execution)

    def _next_entry(self, execution: Execution, call: Call | None) -> Entry | None:
        try:
            entry = execution.work(call)
        except Unreadable as why:
            self._set_aside(execution, str(why))
            return None
        except BaseException as error:
            # Nothing a handler or a step does ends up here: a strategy of the user's raised, or we are wrong.
            self._logger.error(  # noqa: TRY400  (its message may hold anything)
                "pgworkflows: run %s could not be advanced: %s", execution.run.run_id, outline(error)
            )
            return execution.failure_entry(error)
        # Without an entry its call was given up: by its timeout, or since the worker closes.
        if entry is None and not self._closing.is_set() and self._pool.has_too_many():
            raise ThreadLost
        return entry

    def _set_aside(self, execution: Execution, why: str) -> None:
        """Leave a run to those who can read it. Not given back at once, for it would be back at once: the next count of
        what this worker holds does that."""
        run = execution.run
        if (run.workflow_id, why) not in self._unreadable:
            self._unreadable.add((run.workflow_id, why))
            self._logger.error(
                "pgworkflows: run %s of workflow %s %s; it is left to other workers, and so are all others like it",
                run.run_id,
                run.workflow_id,
                why,
            )
        self._holdings.remove(execution)
        self._leave(execution, ExecutionOutcome.RELEASED)

    def _expire(self, execution: Execution, call: Call) -> None:
        """In the alarms' thread: a call's time is up. Another thread goes on with the run."""
        if not execution.dropped and execution.expire(call):
            if not self._pool.replace_one():
                self._logger.error("pgworkflows: too many steps hang past their timeout; a thread is lost to each")
            self._pool.put(execution)

    def _written(self, batch: Sequence[Pending]) -> None:
        """In the thread that finds out: entries are written, and nothing is asked of their runs."""
        going_on: list[Execution] = []
        for execution, entry in batch:
            if entry.action == "checkpoint" and not execution.suspect:
                going_on.append(execution)
            else:
                self._answered(execution, entry, WRITTEN)
        self._pool.put(*going_on)

    def _answered(self, execution: Execution, entry: Entry, answer: Answer) -> None:
        """In the thread that finds out: what became of an entry."""
        match answer.verdict:
            case Verdict.STALE:
                self._let_go(execution, entry)
            case Verdict.REFUSED if entry.action in ("fail", "release") and not entry.steps:
                # A constraint or a trigger of somebody else's. Not given back at once, for it would be back at once:
                # the next count of what this worker holds does that.
                self._logger.error("pgworkflows: run %s cannot be written: %s", execution.run.run_id, answer.fact)
                self._let_go(execution, entry)
            case Verdict.REFUSED:
                self._scribe.submit(execution, without_results(entry, answer.reason))
            case _ if entry.action == "checkpoint" and answer.control is None:
                if execution.suspect:
                    execution.suspect = False
                    self._holdings.bell.set()
                self._pool.put(execution)
            case _:
                execution.ending = outcome_of(entry, answer.control)
                self._report(execution, entry)
                self._let_go(execution, entry)

    def _let_go(self, execution: Execution, entry: Entry) -> None:
        """The run is not ours any more. Its generator, where it still stands, is closed by the pool: what its `finally`
        blocks do may take long, and must not hold up the writes of the others."""
        self._holdings.remove(execution)
        if entry.action in ("checkpoint", "release") and (execution.wrapped or not self._closing.is_set()):
            self._pool.put(execution)
        else:
            execution.close()

    def _report(self, execution: Execution, entry: Entry) -> None:
        """Say what somebody may have to look at: names only, for a message may hold what is nobody's business."""
        retries = entry.action == "retry" or entry.wait_kind == "retry"
        error = entry.error or next((row.error for row in entry.steps if row.error is not None), None)
        if error is None or not (retries or entry.action == "fail"):
            return
        self._logger.log(
            logging.INFO if retries else logging.WARNING,
            "pgworkflows: run %s of workflow %s %s: %s in step %s",
            execution.run.run_id,
            cleaned(execution.run.workflow_id),
            "is tried again later" if retries else "failed",
            cleaned(error.type),
            cleaned(entry.step_id or "-"),
        )


def _anything_retained(retention: timedelta | None, lanes: Callable[[], Lanes]) -> bool:
    """Whether finished runs of any workflow are kept for a time only."""
    return retention is not None or any(each.retention is not None for each in lanes().workflows.values())
