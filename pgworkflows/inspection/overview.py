"""How things stand: unfinished runs, workers, what code declares, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pgworkflows.inspection.activity import ActivityOperations, Totals
from pgworkflows.inspection.base import declared_steps, moment, seconds
from pgworkflows.runs import UNFINISHED, RunStatus
from pgworkflows.schedules import Schedule, schedule_from_json
from pgworkflows.source import StepDefinition


@dataclass(frozen=True)
class WorkerInfo:
    """A worker. `live`: its heart has beaten within its lease. `asleep`: it has nothing to do and waits for a
    NOTIFY."""

    id: UUID
    hostname: str
    pid: int
    queues: list[str]
    workflows: list[str]
    schedules: list[str]
    started_at: datetime
    heartbeat_at: datetime
    live: bool
    lease: timedelta
    runs_in_hand: int
    asleep: bool


@dataclass(frozen=True)
class DeclaredWorkflow:
    """A workflow as code last declared it, at `declared_at` if that was a change. `input_schema` is the JSON Schema of
    its input, where it is known; `live_workers` are those that have it."""

    id: str
    queue: str
    priority: int
    retries: int
    timeout: timedelta | None
    retention: timedelta | None
    singleton: bool
    steps: list[StepDefinition]
    input_schema: Mapping[str, Any] | None
    schedule: Schedule | None
    declared_at: datetime
    live_workers: int


@dataclass(frozen=True)
class Overview:
    """How things stand. `unfinished` counts the runs of each unfinished status; `last_day` is what happened in the last
    24 hours, in numbers; `queue_lag` is how long the longest of the runs that could be claimed has been ready;
    `schedules_due` are the workflows whose tick has come and has not been dealt with; `problems` are those of
    `client.health()`."""

    now: datetime
    unfinished: dict[RunStatus, int]
    last_day: Totals
    queue_lag: timedelta
    live_workers: int
    schedules_due: list[str]
    problems: tuple[str, ...]


class OverviewOperations(ActivityOperations):
    """How an inspector looks at the whole."""

    def get_overview(self) -> Overview:
        """How things stand."""
        [found] = self._fetch_json("get_overview", {})
        counted: Mapping[str, int] = found["unfinished"] or {}
        return Overview(
            now=moment(found["now"]),
            unfinished={status: counted.get(status, 0) for status in RunStatus if status in UNFINISHED},
            last_day=self._get_totals(timedelta(days=1)),
            queue_lag=timedelta(seconds=found["lag_s"]),
            live_workers=found["live_workers"],
            schedules_due=found["schedules_due"] or [],
            problems=self.client.health().problems,
        )

    def get_workers(self) -> list[WorkerInfo]:
        """The workers that are registered, the oldest first; also those that have died and were not missed yet."""
        return [_worker(row) for row in self._fetch_json("get_workers", {})]

    def get_declared(self) -> list[DeclaredWorkflow]:
        """The workflows that code has declared, by id."""
        return [self._declared(row) for row in self._fetch_json("get_declared", {})]

    def _declared(self, row: Mapping[str, Any]) -> DeclaredWorkflow:
        return DeclaredWorkflow(
            id=row["id"],
            queue=row["queue"],
            priority=row["priority"],
            retries=row["retries"],
            timeout=seconds(row["timeout_s"]),
            retention=seconds(row["retention_s"]),
            singleton=row["singleton"],
            steps=declared_steps(row["steps"]),
            input_schema=row["input_schema"],
            schedule=None if row["schedule"] is None else schedule_from_json(row["schedule"], self._payloads),
            declared_at=moment(row["declared_at"]),
            live_workers=row["live_workers"],
        )


def _worker(row: Mapping[str, Any]) -> WorkerInfo:
    return WorkerInfo(
        id=UUID(row["id"]),
        hostname=row["hostname"],
        pid=row["pid"],
        queues=row["queues"],
        workflows=row["workflows"],
        schedules=row["schedules"],
        started_at=moment(row["started_at"]),
        heartbeat_at=moment(row["heartbeat_at"]),
        live=row["live"],
        lease=timedelta(seconds=row["lease_s"]),
        runs_in_hand=row["runs_in_hand"],
        asleep=row["asleep"],
    )
