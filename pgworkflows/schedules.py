"""Schedules as clients see and steer them: pause, resume, trigger now."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from pgworkflows.definition import WorkflowRef
from pgworkflows.errors import WorkflowNotFoundError
from pgworkflows.limits import checked_identifier
from pgworkflows.operations import Operations
from pgworkflows.payloads import Payloads
from pgworkflows.runs import WorkflowRun
from pgworkflows.schema import statement
from pgworkflows.starts import in_progress
from pgworkflows.store import moment_from, run_from_json


@dataclass(frozen=True)
class Schedule:
    """When runs of a workflow start by themselves, as workers last declared it. Times are aware and in UTC.

    `expression` is five cron fields, read in `timezone`, or an interval in words. `next_at` is None while the schedule
    is paused, and until a worker has computed it. `last_tick_at` is the tick that started `last_run_id`,
    `last_skipped_at` the last that found a run unfinished.
    """

    workflow_id: str
    expression: str
    timezone: str
    catch_up: str
    overlap: str
    input: Any
    next_at: datetime | None
    last_tick_at: datetime | None
    last_run_id: UUID | None
    last_skipped_at: datetime | None
    paused_at: datetime | None
    declared_at: datetime


_FIELDS = tuple(field.name for field in fields(Schedule))
_TIMES = tuple(name for name in _FIELDS if name.endswith("_at"))


class ScheduleOperations(Operations):
    """What a client can do with schedules; a workflow is named by itself, a reference or its id."""

    def pause_schedule(self, workflow: WorkflowRef[Any, Any] | str, *, connection: Any = None) -> Schedule:
        """Let the ticks of a workflow's schedule pass without a run, until it is resumed. With `connection` in the
        caller's transaction. Raises WorkflowNotFoundError if it has no schedule."""
        return self._change_schedule("pause_schedule", _key(workflow), connection)

    def resume_schedule(self, workflow: WorkflowRef[Any, Any] | str, *, connection: Any = None) -> Schedule:
        """Let a paused schedule go on with the next tick to come; those that passed do not fire. With `connection` in
        the caller's transaction. Raises WorkflowNotFoundError if the workflow has no schedule."""
        return self._change_schedule("resume_schedule", _key(workflow), connection)

    def trigger_schedule(self, workflow: WorkflowRef[Any, Any] | str, *, connection: Any = None) -> WorkflowRun:
        """Start a run as the schedule would, now, also while it is paused or its last run is unfinished. With
        `connection` in the caller's transaction. Raises WorkflowNotFoundError if the workflow has no schedule, and
        WorkflowRunInProgressError if it is a singleton with an unfinished run."""
        workflow_id = _key(workflow)
        headers = self._headers(self._known(workflow_id) or workflow)
        params = (workflow_id, headers, "true" if self._joins(connection) else "false")
        [(outcome, text)] = self._fetch_schedules("trigger_schedule", params, connection)
        if outcome == "not_found":
            raise _not_found(workflow_id)
        run = run_from_json(text, self._store.payloads)
        if outcome == "in_progress":
            raise in_progress(run, workflow_id)
        return run

    def get_schedules(self) -> list[Schedule]:
        """The schedules of all workflows, by workflow."""
        return [self._schedule(text) for (text,) in self._found_schedules(None)]

    def get_schedule(self, workflow: WorkflowRef[Any, Any] | str) -> Schedule:
        """The schedule of a workflow. Raises WorkflowNotFoundError if it has none."""
        workflow_id = _key(workflow)
        rows = self._found_schedules(workflow_id)
        if not rows:
            raise _not_found(workflow_id)
        return self._schedule(rows[0][0])

    def _change_schedule(self, operation: str, workflow_id: str, connection: Any) -> Schedule:
        [(outcome, text)] = self._fetch_schedules(operation, (workflow_id,), connection)
        if outcome == "not_found":
            raise _not_found(workflow_id)
        return self._schedule(text)

    def _schedule(self, text: str) -> Schedule:
        return schedule_from_json(text, self._store.payloads)

    def _found_schedules(self, workflow_id: str | None) -> list[tuple[Any, ...]]:
        return self._reads.fetch(statement("get_schedules", self.schema), (workflow_id, workflow_id))

    def _fetch_schedules(self, name: str, params: tuple[object, ...], connection: Any) -> list[tuple[Any, ...]]:
        return self._executor(connection).fetch(statement(name, self.schema), params)

    def _headers(self, code: WorkflowRef[Any, Any] | str) -> str | None:
        """What plugins send along with a start, as JSON text."""
        raise NotImplementedError


def _key(workflow: WorkflowRef[Any, Any] | str) -> str:
    return workflow.id if isinstance(workflow, WorkflowRef) else checked_identifier(workflow, "a workflow id")


def _not_found(workflow_id: str) -> WorkflowNotFoundError:
    return WorkflowNotFoundError(
        f"workflow {workflow_id!r} has no schedule: start a worker that has it with schedule=, which declares it",
        workflow_id=workflow_id,
    )


def schedule_from_json(text: str, payloads: Payloads) -> Schedule:
    """A row of `schedules` that the server wrote as JSON. An input that nobody here can decode stays as it is."""
    row = json.loads(text)
    values: dict[str, Any] = {name: row[name] for name in _FIELDS}
    for name in _TIMES:
        values[name] = moment_from(values[name])
    if values["last_run_id"] is not None:
        values["last_run_id"] = UUID(values["last_run_id"])
    if values["paused_at"] is not None:
        values["next_at"] = None
    values["input"] = payloads.shown(values["input"])
    return Schedule(**values)
