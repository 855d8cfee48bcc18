"""What of the schedules is due, and firing it: one transaction a schedule, in which the first of many workers wins."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pgworkflows.timetable import CatchUp, due, parse_schedule
from pgworkflows.worker_connection import WorkerConnection


@dataclass(frozen=True)
class DueSchedule:
    """A schedule whose next tick has come, or is not computed yet. Its ticks up to `since` are dealt with."""

    workflow_id: str
    expression: str
    timezone: str
    catch_up: CatchUp
    since: datetime


@dataclass(frozen=True)
class Agenda:
    """What a worker has to do at `now`, by the database's clock, and how long the schedules that are not due rest."""

    now: datetime
    schedules: tuple[DueSchedule, ...]
    next_in_s: float | None


def due_schedules(conn: WorkerConnection, worker_id: UUID) -> Agenda:
    """The schedules that this worker declares and that have something to be done."""
    answer = json.loads(conn.fetch("due_schedules", (str(worker_id),)))
    return Agenda(
        now=datetime.fromisoformat(answer["now"]),
        schedules=tuple(
            DueSchedule(
                row["workflow_id"],
                row["expression"],
                row["timezone"],
                row["catch_up"],
                datetime.fromisoformat(row["since"]),
            )
            for row in answer["due"] or ()
        ),
        next_in_s=answer["next_in_s"],
    )


def fire_schedule(conn: WorkerConnection, schedule: DueSchedule, now: datetime) -> str:
    """Start the runs of the ticks that are due, and note the next one: "fired"; "lost" if another worker was first;
    "locked" while somebody has the schedule's row. Raises ValueError if the stored expression cannot be read."""
    found = due(parse_schedule(schedule.expression, schedule.timezone), schedule.since, now, schedule.catch_up)
    outcome: str = conn.fetch(
        "fire_schedule",
        (
            schedule.workflow_id,
            schedule.expression,
            schedule.timezone,
            schedule.since.isoformat(),
            [tick.isoformat() for tick in found.ticks],
            found.since.isoformat(),
            found.next_at.isoformat(),
        ),
    )
    return outcome
