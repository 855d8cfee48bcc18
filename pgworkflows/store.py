"""The client's statements: one method each, from Python values to the rows' values and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pgworkflows.database import Executor, Params
from pgworkflows.history import StepKind, StepRecord, StepStatus
from pgworkflows.jsontext import ENCODED
from pgworkflows.payloads import AS_IS, Payloads
from pgworkflows.runs import RunStatus, WorkflowRun
from pgworkflows.schema import statement
from pgworkflows.starts import StartRequest, StartTerms

_RUN_FIELDS = tuple(field.name for field in fields(WorkflowRun))
_RUN_TIMES = tuple(name for name in _RUN_FIELDS if name.endswith("_at"))


@dataclass(frozen=True)
class Outcome:
    """How an operation went (`started`, `existing`, `not_found`, `invalid_status`, …), and the run as it is then."""

    name: str
    run: WorkflowRun | None


@dataclass(frozen=True)
class RunFilter:
    """Which runs `get_runs` lists; what is None does not filter."""

    resource_id: str | None = None
    workflow_id: str | None = None
    idempotency_key: str | None = None
    statuses: Sequence[RunStatus] | None = None


class Store:
    """The statements of a client in one schema. Each takes the executor it runs on."""

    def __init__(self, schema: str, payloads: Payloads = AS_IS) -> None:
        self.schema = schema
        self.payloads = payloads

    def start_workflow(self, executor: Executor, request: StartRequest, *, borrowed: bool) -> Outcome:
        otherwise = request.fallback.get
        params = {
            "workflow": request.workflow_id,
            "input": request.input,
            "idempotency_key": request.idempotency_key,
            **_terms(request.terms, borrowed=borrowed),
            "else_queue": otherwise("queue"),
            "else_priority": otherwise("priority"),
            "else_retries": otherwise("retries"),
            "else_timeout": otherwise("timeout"),
            "else_singleton": otherwise("singleton"),
        }
        [(text,)] = executor.fetch(self._sql("start_workflow"), params)
        answer: list[Any] | dict[str, Any] = json.loads(text)
        if isinstance(answer, list):
            return Outcome("started", _just_started(request, answer, self.payloads))
        run = answer["run"]
        return Outcome(answer["outcome"], None if run is None else _run_from(run, text, self.payloads))

    def start_workflows(self, executor: Executor, requests: Sequence[StartRequest], *, borrowed: bool) -> list[Outcome]:
        """Start all, which differ in input and key only; or none, then the one outcome says what is in the way."""
        first = requests[0]
        items = ",".join(f'{{"input":{each.input},"key":{json.dumps(each.idempotency_key)}}}' for each in requests)
        params = {
            "workflow": first.workflow_id,
            "items": f"[{items}]",
            **_terms(first.terms, borrowed=borrowed),
            "fallback": json.dumps(first.fallback) if first.fallback else None,
        }
        rows = executor.fetch(self._sql("start_workflows"), params)
        return [Outcome(outcome, None if run is None else self._run(run)) for outcome, run in rows]

    def trigger_event(
        self,
        executor: Executor,
        run_id: UUID,
        event_name: str,
        data: str | None,
        resource_id: str | None,
        idempotency_key: str | None,
        *,
        borrowed: bool,
    ) -> Outcome:
        params = (str(run_id), event_name, data, resource_id, idempotency_key, _flag(borrowed))
        return self._outcome(executor, "trigger_event", params)

    def change_run(
        self, executor: Executor, operation: str, run_id: UUID, resource_id: str | None, *, borrowed: bool
    ) -> Outcome:
        """Pause, resume, cancel or retry: `operation` is the statement's name."""
        return self._outcome(executor, operation, (str(run_id), resource_id, _flag(borrowed)))

    def fast_forward_workflow(
        self, executor: Executor, run_id: UUID, data: str | None, resource_id: str | None
    ) -> Outcome:
        return self._outcome(executor, "fast_forward_workflow", (str(run_id), data, resource_id))

    def get_run(self, executor: Executor, run_id: UUID, resource_id: str | None) -> WorkflowRun | None:
        rows = executor.fetch(self._sql("get_run"), (str(run_id), resource_id, resource_id))
        return self._run(rows[0][0]) if rows else None

    def get_status(self, executor: Executor, run_id: UUID) -> RunStatus | None:
        rows = executor.fetch(self._sql("get_status"), (str(run_id),))
        return RunStatus(rows[0][0]) if rows else None

    def get_runs(
        self, executor: Executor, wanted: RunFilter, *, cursor: UUID | None, newer: bool, limit: int
    ) -> list[WorkflowRun]:
        """Up to `limit` runs: older than the cursor, newest first; or with `newer`, newer than it, oldest first."""
        params = {
            "cursor": None if cursor is None else str(cursor),
            "resource_id": wanted.resource_id,
            "workflow_id": wanted.workflow_id,
            "idempotency_key": wanted.idempotency_key,
            "statuses": None if wanted.statuses is None else [str(status) for status in wanted.statuses],
            "limit": limit,
        }
        rows = executor.fetch(self._sql("get_runs_before" if newer else "get_runs_after"), params)
        return [self._run(row[0]) for row in rows]

    def get_steps(self, executor: Executor, run_id: UUID, resource_id: str | None) -> list[StepRecord] | None:
        rows = executor.fetch(self._sql("get_steps"), (str(run_id), resource_id, resource_id))
        return [step_from(step, self.payloads) for step in json.loads(rows[0][0])] if rows else None

    def check_progress(
        self, executor: Executor, run_id: UUID, resource_id: str | None, known_steps: Mapping[str, Sequence[str]]
    ) -> tuple[WorkflowRun, int, int, int] | None:
        """The run, its completed steps, the declared ones not yet completed, and the live workers that would claim it;
        `known_steps`, by workflow id, count when no declaration is stored."""
        params = (json.dumps(known_steps), str(run_id), resource_id, resource_id)
        rows = executor.fetch(self._sql("check_progress"), params)
        return (self._run(rows[0][0]), rows[0][1], rows[0][2], rows[0][3]) if rows else None

    def get_health(self, executor: Executor, lanes: Mapping[str, str]) -> tuple[int, timedelta, bool]:
        """How many workers live, or have that of the workflows in `lanes` which fewest have; how long the longest of
        the runs that could be claimed has been ready; whether nothing can be written."""
        [(live, having, lag_s, read_only)] = executor.fetch(self._sql("get_health"), (json.dumps(lanes),))
        return min(json.loads(having).values(), default=live), timedelta(seconds=lag_s), read_only

    def get_backlog(self, executor: Executor) -> list[tuple[Any, ...]]:
        """Lane, workflow, five counts and a lag in seconds, for each lane and workflow that has unfinished runs."""
        return executor.fetch(self._sql("get_backlog"), ())

    def prune_runs(
        self, executor: Executor, workflow_id: str | None, older_than: timedelta, after: UUID | None, batch: int
    ) -> tuple[UUID | None, int]:
        """Delete what is old out of the next `batch` runs after an id: the last id, None when there are no more, and
        how many were deleted."""
        params = {
            "workflow": workflow_id,
            "older_than": interval_text(older_than),
            "after": None if after is None else str(after),
            "batch": batch,
        }
        [(last, deleted)] = executor.fetch(self._sql("prune_runs"), params)
        return last, deleted

    def get_retentions(self, executor: Executor) -> Mapping[str, timedelta]:
        """How long the finished runs of which workflows are kept."""
        rows = executor.fetch(self._sql("get_retentions"), ())
        return {workflow_id: timedelta(seconds=float(seconds)) for workflow_id, seconds in rows}

    def declare_workflows(self, executor: Executor, declarations: Sequence[Mapping[str, Any]]) -> None:
        executor.fetch(self._sql("declare_workflows"), (json.dumps(declarations, ensure_ascii=False),))

    def _outcome(self, executor: Executor, name: str, params: Params) -> Outcome:
        [(outcome, run)] = executor.fetch(self._sql(name), params)
        return Outcome(outcome, None if run is None else self._run(run))

    def _run(self, text: str) -> WorkflowRun:
        return run_from_json(text, self.payloads)

    def _sql(self, name: str) -> str:
        return statement(name, self.schema)


def _terms(terms: StartTerms, *, borrowed: bool) -> dict[str, object]:
    return {
        "resource_id": terms.resource_id,
        "priority": None if terms.priority is None else str(int(terms.priority)),
        "retries": None if terms.retries is None else str(int(terms.retries)),
        "timeout": interval_text(terms.timeout),
        "queue": terms.queue,
        "singleton": None if terms.singleton is None else _flag(terms.singleton),
        "delay": interval_text(terms.delay),
        "run_at": None if terms.run_at is None else terms.run_at.isoformat(),
        "headers": terms.headers,
        "borrowed": _flag(borrowed),
    }


def interval_text(duration: timedelta | None) -> str | None:
    """A duration as PostgreSQL reads it through any driver, exact to the microsecond."""
    if duration is None:
        return None
    seconds = duration.days * 86400 + duration.seconds
    return f"{seconds}.{duration.microseconds:06} seconds"


def run_from_json(text: str, payloads: Payloads) -> WorkflowRun:
    """A row of `runs` that the server wrote as JSON. A payload that nobody here can decode stays as it is."""
    return _run_from(json.loads(text), text, payloads)


def _just_started(request: StartRequest, said: Sequence[Any], payloads: Payloads) -> WorkflowRun:
    """The run of a start that met nothing in its way: what was asked for, and what `start_at_once` says besides."""
    run_id, created_at, queue, priority, retries, singleton, scheduled_at, timeout_at = said
    created = moment_from(created_at)
    given = json.loads(request.input)
    return _run_of(
        {
            "id": UUID(run_id),
            "workflow_id": request.workflow_id,
            "status": RunStatus.PENDING,
            "input": payloads.shown(given) if ENCODED in request.input else given,
            "output": None,
            "error": None,
            "resource_id": request.terms.resource_id,
            "idempotency_key": request.idempotency_key,
            "queue": queue,
            "priority": priority,
            "singleton": singleton,
            "current_step_id": None,
            "retry_count": 0,
            "max_retries": retries,
            "parent_run_id": None,
            "parent_step_id": None,
            "scheduled_at": moment_from(scheduled_at),
            "timeout_at": moment_from(timeout_at),
            "created_at": created,
            "started_at": None,
            "updated_at": created,
            "paused_at": None,
            "resumed_at": None,
            "completed_at": None,
        }
    )


def _run_from(row: dict[str, Any], text: str, payloads: Payloads) -> WorkflowRun:
    """A row of `runs` as JSON, which stands in that text."""
    if ENCODED in text:
        row["input"], row["output"] = payloads.shown(row["input"]), payloads.shown(row["output"])
        row["error"] = payloads.shown_error(row["error"])
    values = {name: row[name] for name in _RUN_FIELDS}
    for name in _RUN_TIMES:
        if values[name] is not None:
            values[name] = moment_from(values[name])
    values["id"] = UUID(values["id"])
    values["status"] = RunStatus(values["status"])
    if values["parent_run_id"] is not None:
        values["parent_run_id"] = UUID(values["parent_run_id"])
    return _run_of(values)


def _run_of(values: Mapping[str, Any]) -> WorkflowRun:
    run = object.__new__(WorkflowRun)
    run.__dict__.update(values)  # its own __init__ sets one field of a frozen dataclass after the other
    return run


def moment_from(text: str | None) -> datetime | None:
    """A `timestamptz` that the server wrote as JSON, in UTC."""
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    # The sessions of our own are in UTC, a caller's may not be.
    return moment if moment.tzinfo is UTC else moment.astimezone(UTC)


def step_from(row: Mapping[str, Any], payloads: Payloads) -> StepRecord:
    """A row of `steps` that the server wrote as JSON. A payload that nobody here can decode stays as it is."""
    output = payloads.shown(row["output"])
    if row["kind"] == StepKind.POLL and isinstance(output, dict) and "data" in output:
        output["data"] = payloads.shown(output["data"])  # of one that was fast-forwarded
    return StepRecord(
        position=row["position"],
        step_id=row["step_id"],
        kind=StepKind(row["kind"]),
        status=StepStatus(row["status"]),
        output=output,
        error=payloads.shown_error(row["error"]),
        attempts=row["attempts"],
        started_at=moment_from(row["started_at"]),
        completed_at=moment_from(row["completed_at"]),
        wake_at=moment_from(row["wake_at"]),
        event_name=row["event_name"],
        child_run_id=None if row["child_run_id"] is None else UUID(row["child_run_id"]),
    )


def _flag(value: bool) -> str:
    return "true" if value else "false"
