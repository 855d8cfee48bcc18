"""The thread that claims: as many runs as there is room for, as soon as they are ready, and otherwise asleep."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from pgworkflows import claims
from pgworkflows.backoff import Backoff
from pgworkflows.claims import Claim, ClaimedRun, WorkerConnection
from pgworkflows.definition import Workflow
from pgworkflows.holdings import Holdings
from pgworkflows.pool import Pool

QUIET_S = 0.03
"""How long nothing must have been ready before the worker announces that it sleeps."""
FIRST_LOOK_S = 0.001
LONGEST_LOOK_S = 0.004
SATURATED_S = 0.05
FULL_S = 0.05
LOCK_PATIENCE_S = 3.0
HELD_S = 0.02
RECOUNT_EVERY_S = 10.0


@dataclass(frozen=True)
class Lanes:
    """What a worker serves at the moment: lanes, and the workflows it has."""

    queues: tuple[str, ...]
    workflows: Mapping[str, Workflow[Any, Any]]


class Dispatcher(threading.Thread):
    """Owns the claiming connection. Blocks in claims and on the bell; ends when it is closed.

    Awake, it looks for new runs at short and growing intervals. After a quiet moment it announces that it sleeps,
    looks once more (for what came between the last look and the announcement), and then waits for the bell, the next
    due time, or the poll interval. While it is awake, starting a run costs no NOTIFY.
    """

    def __init__(
        self,
        conn: WorkerConnection,
        holdings: Holdings,
        pool: Pool,
        *,
        lanes: Callable[[], Lanes],
        declare: Callable[[WorkerConnection, Collection[Workflow[Any, Any]]], None],
        accept: Callable[[ClaimedRun, Workflow[Any, Any], UUID], None],
        wait_for_lock: Callable[[UUID, float], bool],
        max_runs: int,
        lease: timedelta,
        poll_interval_s: float,
        logger: logging.Logger,
        name: str,
    ) -> None:
        super().__init__(name=f"{name}-dispatcher", daemon=True)
        self.idle = threading.Event()
        self._conn = conn
        self._holdings = holdings
        self._pool = pool
        self._lanes = lanes
        self._declare = declare
        self._accept = accept
        self._wait_for_lock = wait_for_lock
        self._max_runs = max_runs
        self._lease = lease
        self._poll_interval_s = poll_interval_s
        self._logger = logger
        self._closing = threading.Event()
        self._declared: Mapping[str, Workflow[Any, Any]] = {}
        self._announced: tuple[str, ...] = ()
        self._window = pool.size
        self._look_s = FIRST_LOOK_S
        self._worked_at = 0.0
        self._in_doubt = False
        self._recounted_at = time.monotonic()

    def close(self) -> None:
        self._closing.set()
        self._holdings.bell.set()
        self.join(10.0)

    def run(self) -> None:
        backoff = Backoff(self._logger, "claiming runs")
        while not self._closing.is_set():
            try:
                self._look()
            except Exception as error:  # whatever it is, this thread must not end: the heart would beat on
                # The answer to a claim may be lost, and with it runs that are ours without our knowing.
                self._in_doubt = True
                self._closing.wait(backoff.failed(error))
            else:
                backoff.succeeded()

    def _look(self) -> None:
        """One look at the queue: claim, and then rest as long as the answer allows."""
        if not self._holdings.registered:
            self._register()
        lanes = self._lanes()
        if lanes.workflows != self._declared:
            self._declare(self._conn, tuple(lanes.workflows.values()))
            self._declared = lanes.workflows
        if self._in_doubt or time.monotonic() - self._recounted_at > RECOUNT_EVERY_S:
            self._recounted_at = time.monotonic()
            claims.release_unheld(self._conn, self._holdings.worker_id, tuple(self._holdings.executions))
            self._in_doubt = False
        self._holdings.bell.clear()
        if self._closing.is_set():
            return  # the bell that has just been silenced was its
        worker_id = self._holdings.worker_id
        empty_handed = not self._holdings.executions
        capacity = self._capacity()
        if capacity <= 0 or not lanes.workflows:
            if empty_handed:
                self.idle.set()
            self._holdings.bell.wait(FULL_S if capacity <= 0 else self._poll_interval_s)
            return
        claim = self._claim(lanes, worker_id, capacity, empty_handed)
        if not claim.alive:
            self._holdings.die(worker_id, self._logger)
            return
        for run in claim.runs:
            self._accept(run, lanes.workflows[run.workflow_id], worker_id)
        if claim.runs:
            self._worked_at = time.monotonic()
            self._look_s = FIRST_LOOK_S
            self._window = min(self._max_runs, self._window * 2)
        else:
            if empty_handed and not claim.suspects:
                self.idle.set()
            self._rest(lanes, claim)

    def _register(self) -> None:
        worker_id = self._holdings.worker_id
        has_lock = self._wait_for_lock(worker_id, LOCK_PATIENCE_S)
        claims.register_worker(
            self._conn,
            worker_id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            queues=self._lanes().queues,
            has_lock=has_lock,
            lease=self._lease,
        )
        self._announced = ()
        self._holdings.registered = True

    def _capacity(self) -> int:
        """How many more runs to take in hand. Runs that wait for a thread here could be worked on elsewhere: while
        the threads are busy, none are claimed beyond a few."""
        waiting = self._pool.waiting
        if waiting and time.monotonic() - self._pool.last_taken > SATURATED_S:
            self._window = self._pool.size
            return 0
        return min(self._max_runs - len(self._holdings.executions), self._window - waiting)

    def _claim(self, lanes: Lanes, worker_id: UUID, capacity: int, empty_handed: bool) -> Claim:
        alone = any(execution.suspect for execution in list(self._holdings.executions.values()))
        if alone:
            return Claim(alive=True)
        waking = bool(self._announced) and time.monotonic() - self._worked_at < QUIET_S
        claim = claims.claim(
            self._conn,
            worker_id,
            lanes.queues,
            tuple(lanes.workflows),
            capacity,
            alone=empty_handed,
            awake=waking,
        )
        if waking:
            self._announced = ()
        return claim

    def _rest(self, lanes: Lanes, claim: Claim) -> None:
        due_s = self._poll_interval_s if claim.due_in_s is None else claim.due_in_s
        if due_s <= 0:
            # Due, and still there: somebody holds the row.
            due_s = HELD_S
        if self._announced == lanes.queues:
            # A start may have looked for sleepers before the announcement and commit long after the look that followed
            # it: the first looks in the sleep are close together.
            self._holdings.bell.wait(min(self._look_s, self._poll_interval_s, due_s))
            self._look_s = min(self._poll_interval_s, self._look_s * 2)
        elif time.monotonic() - self._worked_at > QUIET_S:
            claims.sleep(self._conn, self._holdings.worker_id, lanes.queues)
            self._announced = lanes.queues
            self._look_s = LONGEST_LOOK_S
        else:
            self._holdings.bell.wait(min(self._look_s, due_s))
            self._look_s = min(LONGEST_LOOK_S, self._look_s * 2)
