"""A run: its fields, its statuses, and the one table of which status may follow which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any
from uuid import UUID


class RunStatus(StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        return self in FINISHED


FINISHED = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED})
UNFINISHED = frozenset(set(RunStatus) - FINISHED)

PAUSABLE = frozenset({RunStatus.PENDING, RunStatus.RUNNING, RunStatus.WAITING})
RESUMABLE = frozenset({RunStatus.PAUSED})
CANCELLABLE = UNFINISHED
RETRYABLE = frozenset({RunStatus.FAILED, RunStatus.CANCELLED})

TRANSITIONS: Mapping[RunStatus, frozenset[RunStatus]] = MappingProxyType(
    {
        RunStatus.PENDING: frozenset({RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.FAILED, RunStatus.CANCELLED}),
        RunStatus.RUNNING: frozenset(set(RunStatus) - {RunStatus.RUNNING}),
        RunStatus.WAITING: frozenset({RunStatus.PENDING, RunStatus.PAUSED, RunStatus.FAILED, RunStatus.CANCELLED}),
        RunStatus.PAUSED: frozenset({RunStatus.PENDING, RunStatus.RUNNING, RunStatus.FAILED, RunStatus.CANCELLED}),
        RunStatus.COMPLETED: frozenset(),
        RunStatus.FAILED: frozenset({RunStatus.PENDING}),
        RunStatus.CANCELLED: frozenset({RunStatus.PENDING}),
    }
)
"""Which status may follow which; the diagram in the docs and the tests of the SQL read it."""


@dataclass(frozen=True)
class WorkflowRun:
    """One execution of a workflow, as it is stored. Payloads are JSON values, times are aware and in UTC.

    `current_step_id` is exact while the run waits, is paused or has failed, and may lag while it is running.
    """

    id: UUID
    workflow_id: str
    status: RunStatus
    input: Any
    output: Any
    error: dict[str, Any] | None
    resource_id: str | None
    idempotency_key: str | None
    queue: str
    priority: int
    singleton: bool
    current_step_id: str | None
    retry_count: int
    max_retries: int
    parent_run_id: UUID | None
    parent_step_id: str | None
    scheduled_at: datetime | None
    timeout_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    paused_at: datetime | None
    resumed_at: datetime | None
    completed_at: datetime | None


@dataclass(frozen=True)
class WorkflowProgress(WorkflowRun):
    """A run and how far it is. `completion_percentage` is rounded down, at most 99 until the run is completed.
    `live_workers` have the run's workflow and serve its queue: while there are none, a ready run stays pending."""

    completed_steps: int
    total_steps: int
    completion_percentage: int
    live_workers: int


@dataclass(frozen=True)
class Page:
    """One page of runs, newest first. Cursors are opaque; pass them as `starting_after` or `ending_before`."""

    items: list[WorkflowRun]
    next_cursor: str | None
    prev_cursor: str | None
    has_more: bool
    has_prev: bool
