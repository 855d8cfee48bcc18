"""A worker without threads: it claims, advances and writes in its caller's thread, one run after the other."""

from __future__ import annotations

import os
import socket
import time
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

from pgworkflows import claims
from pgworkflows.alarms import Alarms
from pgworkflows.calls import Call
from pgworkflows.claims import ClaimedRun
from pgworkflows.declarations import declarations
from pgworkflows.dispatcher import Lanes
from pgworkflows.engine import WorkflowEngine
from pgworkflows.entries import Entry, without_results
from pgworkflows.history import StepStatus
from pgworkflows.journal import Answer, Verdict, write
from pgworkflows.payloads import Unreadable
from pgworkflows.plugins import Plugin
from pgworkflows.runner import Execution
from pgworkflows.testing.faults import Faults
from pgworkflows.ticks import due_schedules, fire_schedule
from pgworkflows.worker_connection import WorkerConnection
from pgworkflows.wrapping import outcome_of

LEASE = timedelta(days=1)
LOCKED_S = 0.05
PATIENCE_S = 5.0


class Driver:
    """Does what a worker's threads do, with the same statements and the same Execution, until nothing is ready. Told to
    crash, it forgets its run where it stands, as a process that dies does, and another of its kind takes the run over.
    """

    def __init__(
        self, engine: WorkflowEngine, connection: WorkerConnection, plugins: tuple[Plugin, ...], faults: Faults
    ) -> None:
        """`plugins` stand outside the engine's; `faults` are among them."""
        self._engine = engine
        self._connection = connection
        self._plugins = plugins
        self._faults = faults
        self._worker_id: UUID | None = None
        self._served: Lanes | None = None
        self._queues: set[str] = {"default"}
        self._alarms: Alarms | None = None
        self._dead: list[Execution] = []
        self.next_tick: datetime | None = None
        """When the next schedule is due, as of the last look."""

    def serve(self, queue: str) -> None:
        """Serve a lane that no workflow names."""
        self._queues.add(queue)

    def run_until_idle(self) -> None:
        """Fire the schedules that are due, and advance each run that is ready to its next wait or its end."""
        while True:
            worker_id, lanes = self._registered()
            self._fire_schedules(worker_id)
            if not lanes.workflows:
                return
            found = claims.claim(
                self._connection, worker_id, lanes.queues, tuple(lanes.workflows), 1, alone=True, awake=False
            )
            if not found.alive:  # somebody's worker, in the same database, has missed our heartbeats
                self._worker_id = None
            elif found.runs:
                self._advance(found.runs[0], lanes)
            else:
                return

    def close(self) -> None:
        """Sign off."""
        if self._worker_id is not None:
            claims.release_unheld(self._connection, self._worker_id, ())
            claims.unregister_worker(self._connection, self._worker_id)
            self._worker_id = None
        if self._alarms is not None:
            self._alarms.close()
            self._alarms = None
        self._dead.clear()

    def _registered(self) -> tuple[UUID, Lanes]:
        """The worker's id and what it serves, the database knowing of both."""
        workflows = self._engine.registered
        queues = self._queues | {workflow.queue for workflow in workflows.values()}
        lanes = Lanes(tuple(sorted(queues)), workflows)
        if self._worker_id is None:
            self._worker_id = self._register(lanes)
            self._served = None
        if lanes != self._served:
            declared = declarations(workflows.values(), self._engine.retention, self._engine.payloads)
            claims.serve_workflows(self._connection, self._worker_id, lanes.queues, declared)
            self._served = lanes
        return self._worker_id, lanes

    def _register(self, lanes: Lanes) -> UUID:
        worker_id = uuid4()
        claims.register_worker(
            self._connection,
            worker_id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            queues=lanes.queues,
            has_lock=False,
            lease=LEASE,
        )
        return worker_id

    def _fire_schedules(self, worker_id: UUID) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            agenda = due_schedules(self._connection, worker_id)
            if not agenda.schedules:
                rest_s = agenda.next_in_s
                self.next_tick = None if rest_s is None else agenda.now + timedelta(seconds=rest_s)
                return
            for schedule in agenda.schedules:
                if fire_schedule(self._connection, schedule, agenda.now) == "locked":
                    _wait_for_others(deadline, f"the schedule of workflow {schedule.workflow_id}")

    def _advance(self, run: ClaimedRun, lanes: Lanes) -> None:
        """Take one claimed run to its next wait or its end, unless the worker is to crash on the way."""
        engine = self._engine
        workflow = lanes.workflows[run.workflow_id]
        execution = Execution(run, workflow, engine.logger, (*self._plugins, *engine.plugins), engine.payloads)
        while True:
            entry = self._next_entry(execution)
            steps = [row.step_id for row in entry.steps if row.status in (StepStatus.COMPLETED, StepStatus.FAILED)]
            if self._faults.crashes("before", steps):
                self._crash(execution)
                return
            if entry.action == "checkpoint" and not entry.steps and not entry.events:
                continue
            entry, answer = self._write(entry)
            if self._faults.crashes("after", steps):
                self._crash(execution)
                return
            if answer.verdict is Verdict.STALE or entry.action != "checkpoint" or answer.control is not None:
                execution.close()
                execution.leave(outcome_of(entry, answer.control))
                return

    def _next_entry(self, execution: Execution) -> Entry:
        call = execution.next_call()
        try:
            entry = self._work(execution, call)
        except Unreadable:
            raise
        except Exception as error:  # a strategy of the user's raised
            self._faults.raised[UUID(execution.run.run_id)] = error
            entry = execution.failure_entry(error)
        interrupt, self._faults.interrupt = self._faults.interrupt, None
        if interrupt is not None:
            raise interrupt
        return entry

    def _work(self, execution: Execution, call: Call | None) -> Entry:
        limit_s = None if call is None else call.timeout_s
        if call is None or limit_s is None:
            entry = execution.work(call)
            assert entry is not None
            return entry
        if self._alarms is None:
            self._alarms = Alarms("pgworkflows-testing")
            self._alarms.start()
        expired: list[bool] = []
        alarm = self._alarms.set(limit_s, partial(_expire, execution, call, expired))
        try:
            entry = execution.work(call)
        finally:
            alarm.cancel()
        if entry is None:
            while not expired:
                time.sleep(0.001)
            entry = execution.work(None)
            assert entry is not None
        return entry

    def _write(self, entry: Entry) -> tuple[Entry, Answer]:
        """What was written in the end, and what became of it."""
        assert self._worker_id is not None
        deadline = time.monotonic() + PATIENCE_S
        while True:
            [answer] = write(self._connection, self._worker_id, [entry])
            if answer.verdict is Verdict.LOCKED:
                _wait_for_others(deadline, f"run {entry.run_id}")
            elif answer.verdict is Verdict.REFUSED:
                if entry.action in ("fail", "release") and not entry.steps:
                    raise RuntimeError(f"run {entry.run_id} cannot be written: {answer.reason}")
                entry = without_results(entry, answer.reason)
            else:
                return entry, answer

    def _crash(self, execution: Execution) -> None:
        """Die: nothing is given back, no `finally` block of the handler runs. Then be another worker, who finds out."""
        self._dead.append(execution)
        dead, self._worker_id = self._worker_id, None
        self._registered()
        claims.declare_dead(self._connection, str(dead), 0)
        claims.take_over(self._connection)


def _expire(execution: Execution, call: Call, expired: list[bool]) -> None:
    """In the alarms' thread: the call's time is up."""
    expired.append(execution.expire(call))


def _wait_for_others(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError(
            f"{what} is locked by another connection: end the transaction in which the test, or what it runs, has "
            "changed it"
        )
    time.sleep(LOCKED_S)
