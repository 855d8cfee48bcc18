"""The thread that claims: as many runs as there is room for, as soon as they are ready, and otherwise asleep."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from pgworkflows import claims
from pgworkflows.backoff import Backoff
from pgworkflows.claims import Claim, ClaimedRun
from pgworkflows.database import Refused
from pgworkflows.declarations import declarations
from pgworkflows.definition import Workflow
from pgworkflows.holdings import Holdings
from pgworkflows.low_water import LowWater
from pgworkflows.pace import Pace
from pgworkflows.payloads import Payloads
from pgworkflows.pool import Pool
from pgworkflows.worker_connection import WorkerConnection

QUIET_S = 0.03
"""How long nothing must have been ready before the worker announces that it sleeps."""
FIRST_LOOK_S = 0.001
LONGEST_LOOK_S = 0.004
PACE_S = 0.05
"""How much work, by the pace of the last moments, is claimed before there is a thread for it."""
FULL_S = 0.05
BRIEFLY_FULL_S = 0.002
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
        low_water: LowWater,
        *,
        lanes: Callable[[], Lanes],
        served: Callable[[], None],
        accept: Callable[[ClaimedRun, Workflow[Any, Any], UUID], None],
        wait_for_lock: Callable[[UUID, float], bool],
        max_runs: int,
        lease: timedelta,
        retention: timedelta | None,
        payloads: Payloads,
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
        self._on_served = served
        self._accept = accept
        self._wait_for_lock = wait_for_lock
        self._max_runs = max_runs
        self._lease = lease
        self._retention = retention
        self._payloads = payloads
        self._poll_interval_s = poll_interval_s
        self._logger = logger
        self._closing = threading.Event()
        self._served: Lanes | None = None
        self._announced: tuple[str, ...] = ()
        self._pace = Pace(lambda: pool.turns, PACE_S)
        self._most = max_runs
        self._low_water = low_water
        self._due_at = 0.0
        self._look_s = FIRST_LOOK_S
        self._worked_at = 0.0
        self._announced_at = 0.0
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
                self._announced = ()
                self._closing.wait(backoff.failed(error))
            else:
                backoff.succeeded()

    def _look(self) -> None:
        """One look at the queue: claim, and then rest as long as the answer allows."""
        if not self._holdings.registered:
            self._register()
        lanes = self._lanes()
        if lanes != self._served:
            declared = declarations(lanes.workflows.values(), self._retention, self._payloads)
            claims.serve_workflows(self._conn, self._holdings.worker_id, lanes.queues, declared)
            self._served = lanes
            self._logger.info(
                "pgworkflows: worker %s takes runs of %d workflows, in queues %s",
                self._holdings.worker_id,
                len(lanes.workflows),
                ", ".join(lanes.queues),
            )
            self._low_water.forget()
            self._on_served()
        if self._in_doubt or time.monotonic() - self._recounted_at > RECOUNT_EVERY_S:
            self._recounted_at = time.monotonic()
            claims.release_unheld(self._conn, self._holdings.worker_id, tuple(self._holdings.executions))
        self._holdings.bell.clear()
        if self._closing.is_set():
            return  # the bell that has just been silenced was its
        worker_id = self._holdings.worker_id
        if not self._holdings.registered:
            return  # it has died in the meantime, and the id is new
        empty_handed = not self._holdings.executions
        if not lanes.workflows:
            self._in_doubt = False
            if empty_handed:
                self.idle.set()
            self._holdings.bell.wait(self._poll_interval_s)
            return
        capacity = self._capacity()
        # Also with its hands full it wakes what is due, for nobody else may: timeouts hold for the runs it has, too.
        # And in doubt, lest it says that claims work again because it has nothing to claim.
        if not capacity and not self._in_doubt and time.monotonic() < self._due_at:
            # Right after a claim nobody knows yet how fast its runs are.
            brief = self._pace.rising or time.monotonic() - self._worked_at < FULL_S
            self._holdings.bell.wait(BRIEFLY_FULL_S if brief else FULL_S)
            return
        since = self._low_water.since(time.monotonic())
        claim = self._claim(lanes, worker_id, capacity, empty_handed, since)
        self._in_doubt = False
        if not claim.alive:
            self._holdings.die(worker_id, self._logger)
            return
        for run in claim.runs:
            self._accept(run, lanes.workflows[run.workflow_id], worker_id)
        if claim.runs:
            self._worked_at = time.monotonic()
            self._look_s = FIRST_LOOK_S
            self._most = min(self._max_runs, self._most * 2)
        elif capacity:
            if empty_handed and not claim.suspects and not claim.held and not self.idle.is_set():
                # A run with a head start that nobody had before may lie below the mark: the next look tells.
                if since is not None:
                    self._low_water.forget()
                    return  # and that comes at once, for somebody may wait to be told
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
        self._served = None
        self._holdings.registered = True

    def _capacity(self) -> int:
        """How many more runs to take in hand: one for each free thread, and as many as the threads will come to in the
        next moments. Runs that would wait for a thread any longer could be worked on elsewhere."""
        if any(execution.suspect for execution in list(self._holdings.executions.values())):
            return 0
        room = self._pool.free + self._pace.expected() - self._pool.waiting
        return max(0, min(room, self._max_runs - len(self._holdings.executions), self._most))

    def _claim(self, lanes: Lanes, worker_id: UUID, capacity: int, empty_handed: bool, since: str | None) -> Claim:
        waking = bool(self._announced) and self._worked_at > self._announced_at
        try:
            claim = claims.claim(
                self._conn,
                worker_id,
                lanes.queues,
                tuple(lanes.workflows),
                capacity,
                alone=empty_handed and capacity > 0,
                awake=waking,
                since=since,
            )
        except Refused:
            # The histories of so many runs may be too long for one answer.
            self._most = max(1, capacity // 2)
            raise
        self._low_water.looked(since, claim, time.monotonic())
        if waking:
            self._announced = ()
        due_s = self._poll_interval_s if claim.due_in_s is None else max(HELD_S, claim.due_in_s)
        self._due_at = time.monotonic() + min(self._poll_interval_s, due_s)
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
            self._announced_at = time.monotonic()
            self._look_s = LONGEST_LOOK_S
        else:
            self._holdings.bell.wait(min(self._look_s, due_s))
            self._look_s = min(LONGEST_LOOK_S, self._look_s * 2)
