"""The thread that fires schedules."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime

from pgworkflows.backoff import Backoff
from pgworkflows.database import Locked, Unavailable, told
from pgworkflows.dispatcher import Lanes
from pgworkflows.holdings import Holdings
from pgworkflows.ticks import DueSchedule, due_schedules, fire_schedule
from pgworkflows.worker_connection import WorkerConnection

LONGEST_REST_S = 5.0
"""How long a schedule that was resumed or declared elsewhere may go unnoticed."""
SHORTEST_REST_S = 0.01
LOCKED_S = 0.25


class Scheduler(threading.Thread):
    """Owns a connection of its own while the worker has scheduled workflows, so that ticks fire on time whatever the
    other threads are at. Blocks in statements of a few milliseconds and on its bell; ends when it is closed."""

    def __init__(
        self,
        conn: WorkerConnection,
        holdings: Holdings,
        lanes: Callable[[], Lanes],
        logger: logging.Logger,
        name: str,
    ) -> None:
        super().__init__(name=f"{name}-scheduler", daemon=True)
        self.bell = threading.Event()
        """Rung when the worker has told the database what it serves."""
        self._conn = conn
        self._holdings = holdings
        self._lanes = lanes
        self._logger = logger
        self._closing = threading.Event()
        self._told: set[DueSchedule] = set()

    def stop(self) -> None:
        """Fire nothing more after what it is at."""
        self._closing.set()
        self.bell.set()

    def close(self) -> None:
        self.stop()
        self.join(5.0)

    def run(self) -> None:
        backoff = Backoff(self._logger, "firing schedules")
        while not self._closing.is_set():
            self.bell.clear()
            try:
                rest_s = self._look()
            except Exception as error:  # whatever it is, the schedules must go on
                self._conn.close()
                self._closing.wait(backoff.failed(error))
            else:
                backoff.succeeded()
                if not self._closing.is_set():
                    self.bell.wait(rest_s)
        self._conn.close()

    def _look(self) -> float | None:
        """Fire what is due; how long to rest then, in seconds, or None: until the bell."""
        if not any(workflow.plan for workflow in self._lanes().workflows.values()):
            self._conn.close()
            return None
        if not self._holdings.registered:
            return None
        agenda = due_schedules(self._conn, self._holdings.worker_id)
        rest_s = LONGEST_REST_S if agenda.next_in_s is None else min(LONGEST_REST_S, agenda.next_in_s)
        for schedule in agenda.schedules:
            rest_s = min(rest_s, self._fire(schedule, agenda.now))
        return max(SHORTEST_REST_S, rest_s)

    def _fire(self, schedule: DueSchedule, now: datetime) -> float:
        """Fire one schedule, or let it be, whatever is wrong with it; when to look at it again, in seconds."""
        try:
            outcome = fire_schedule(self._conn, schedule, now)
        except Unavailable:
            raise
        except Locked:
            return LOCKED_S
        except Exception as error:
            if schedule not in self._told:
                self._told.add(schedule)
                said = error if isinstance(error, ValueError) else told(error)  # what it says of the schedule's words
                self._logger.error(  # noqa: TRY400
                    "pgworkflows: the schedule of workflow %s stands still: %s", schedule.workflow_id, said
                )
            return LONGEST_REST_S
        return LOCKED_S if outcome == "locked" else SHORTEST_REST_S
