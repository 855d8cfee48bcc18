"""The client: start runs, send them events, change and read them. Needs no handler code."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar
from uuid import UUID

from pydantic import BaseModel

from pgworkflows import embedded
from pgworkflows.borrowed import borrowed
from pgworkflows.commands import Json
from pgworkflows.database import Database, Executor, Pool
from pgworkflows.declarations import options_of
from pgworkflows.definition import Workflow, WorkflowRef
from pgworkflows.durations import Duration, parse_positive_duration
from pgworkflows.errors import (
    ConfigurationError,
    IdempotencyConflictError,
    InvalidInputError,
    InvalidStatusError,
    WorkflowEngineError,
    WorkflowRunNotFoundError,
)
from pgworkflows.history import StepRecord
from pgworkflows.limits import checked_identifier
from pgworkflows.migrate import Migration, migrate
from pgworkflows.plugins import Plugin, checked_plugins, injected
from pgworkflows.pruning import prune
from pgworkflows.runs import PAUSABLE, RESUMABLE, RETRYABLE, UNFINISHED, Page, RunStatus, WorkflowProgress, WorkflowRun
from pgworkflows.schedules import ScheduleOperations
from pgworkflows.schema import DEFAULT_SCHEMA, checked_schema
from pgworkflows.serialization import PLAIN
from pgworkflows.starts import StartRequest, StartTerms, in_progress, optional_name
from pgworkflows.store import Outcome, RunFilter, Store

MAX_PAGE = 1000
FIRST_POLL_S = 0.005
LONGEST_POLL_S = 0.25

RunId: TypeAlias = UUID | str
I = TypeVar("I")  # noqa: E741


class WorkflowClient(ScheduleOperations):
    """Starts and steers the runs of one schema of one database.

    `conninfo` is a connection string or URL; None means `$DATABASE_URL`, else an embedded server if the extra
    `embedded` is installed, else ConfigurationError. With `pool`, a psycopg_pool ConnectionPool, that is used instead.
    Connections open at first use. Threads may share a client. What `plugins` inject travels with the runs it starts.
    """

    def __init__(
        self,
        conninfo: str | None = None,
        *,
        pool: Pool | None = None,
        schema: str = DEFAULT_SCHEMA,
        plugins: Iterable[Plugin] = (),
    ) -> None:
        self.plugins = checked_plugins(plugins)
        self.logger = logging.getLogger("pgworkflows")
        self.schema = checked_schema(schema)
        if conninfo is None and pool is None:
            conninfo = _default_conninfo()
        self._database = Database(conninfo, pool)
        self._store = Store(self.schema)

    @property
    def conninfo(self) -> str:
        """What to connect with."""
        return self._database.conninfo

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, but those of a pool that was given. The client opens new ones when used again."""
        self._database.close()

    def migrate(self) -> tuple[Migration, ...]:
        """Bring the schema up to date; what was applied. Raises ConfigurationError."""
        return migrate(self.conninfo, self.schema)

    def start_workflow(
        self,
        workflow: WorkflowRef[I, Any] | str,
        input: I | Json = None,
        *,
        resource_id: str | None = None,
        idempotency_key: str | None = None,
        priority: str | int | None = None,
        retries: int | None = None,
        timeout: Duration | None = None,
        queue: str | None = None,
        singleton: bool | None = None,
        delay: Duration | None = None,
        run_at: datetime | str | None = None,
        connection: Any = None,
    ) -> WorkflowRun:
        """Start a run; a repeated `idempotency_key` returns the run it has started.

        Options left out are the workflow's. With `connection` the run is part of the caller's transaction: it starts
        when that commits. Raises InvalidInputError, SerializationError, WorkflowNotFoundError, IdempotencyConflictError
        and, while a singleton workflow has an unfinished run, WorkflowRunInProgressError; all before anything is
        written.
        """
        terms = StartTerms.build(
            resource_id=resource_id,
            priority=priority,
            retries=retries,
            timeout=timeout,
            queue=queue,
            singleton=singleton,
            delay=delay,
            run_at=run_at,
            headers=self._headers(workflow),
        )
        key = optional_name(idempotency_key, "idempotency_key")
        workflow_id, text, fallback = self._prepared(workflow, input)
        request = StartRequest(workflow_id, text, key, terms, fallback)
        outcome = self._store.start_workflow(self._executor(connection), request, borrowed=connection is not None)
        return _started(outcome, workflow_id)

    def start_workflows(
        self,
        workflow: WorkflowRef[I, Any] | str,
        inputs: Iterable[I | Json],
        *,
        resource_id: str | None = None,
        idempotency_keys: Iterable[str | None] | None = None,
        priority: str | int | None = None,
        retries: int | None = None,
        timeout: Duration | None = None,
        queue: str | None = None,
        singleton: bool | None = None,
        delay: Duration | None = None,
        run_at: datetime | str | None = None,
        connection: Any = None,
    ) -> list[WorkflowRun]:
        """Start a run for each of `inputs` in one round trip, all or none, and return them in that order.

        `idempotency_keys` has one for each input, or None for those without. Otherwise as `start_workflow`: what is
        wrong with one input or key starts nothing.
        """
        terms = StartTerms.build(
            resource_id=resource_id,
            priority=priority,
            retries=retries,
            timeout=timeout,
            queue=queue,
            singleton=singleton,
            delay=delay,
            run_at=run_at,
            headers=self._headers(workflow),
        )
        given: object = inputs
        if isinstance(given, str | bytes | Mapping | BaseModel):
            raise TypeError("inputs must be a list of inputs, not a single one: use start_workflow for that")
        values = list(inputs)
        if isinstance(idempotency_keys, str):
            raise TypeError("idempotency_keys must be a list of keys, not one string")
        keys = [None] * len(values) if idempotency_keys is None else list(idempotency_keys)
        if len(keys) != len(values):
            raise ValueError(f"there are {len(values)} inputs, but {len(keys)} idempotency_keys: give one for each")
        requests: list[StartRequest] = []
        for number, (value, key) in enumerate(zip(values, keys, strict=True)):
            try:
                workflow_id, text, fallback = self._prepared(workflow, value)
                name = optional_name(key, "idempotency_key")
            except Exception as error:
                _say_which(error, number)
                raise
            requests.append(StartRequest(workflow_id, text, name, terms, fallback))
        if not requests:
            return []
        outcomes = self._store.start_workflows(self._executor(connection), requests, borrowed=connection is not None)
        return [_started(outcome, requests[0].workflow_id) for outcome in outcomes]

    def trigger_event(
        self,
        run_id: RunId,
        event_name: str,
        data: Any = None,
        *,
        resource_id: str | None = None,
        idempotency_key: str | None = None,
        connection: Any = None,
    ) -> WorkflowRun:
        """Send an event to an unfinished run, which keeps it until a wait of that name takes it.

        With `connection` it is sent when the caller's transaction commits. An event with an `idempotency_key` that
        this run has got already is not sent again. Raises WorkflowRunNotFoundError, InvalidStatusError (the run is
        finished) and SerializationError.
        """
        key = _run_key(run_id)
        checked_identifier(event_name, "event_name")
        text = None if data is None else PLAIN.encode(data, f"the data of event {event_name!r}")
        outcome = self._store.trigger_event(
            self._executor(connection),
            key,
            event_name,
            text,
            optional_name(resource_id, "resource_id"),
            optional_name(idempotency_key, "idempotency_key"),
            borrowed=connection is not None,
        )
        return _changed(outcome, key, resource_id, UNFINISHED, "get events")

    def pause_workflow(self, run_id: RunId, *, resource_id: str | None = None, connection: Any = None) -> WorkflowRun:
        """Pause a pending, running or waiting run; a step in flight ends first. Raises WorkflowRunNotFoundError and
        InvalidStatusError."""
        return self._change("pause_workflow", run_id, resource_id, connection, PAUSABLE, "be paused")

    def resume_workflow(self, run_id: RunId, *, resource_id: str | None = None, connection: Any = None) -> WorkflowRun:
        """Let a paused run go on. Raises WorkflowRunNotFoundError and InvalidStatusError."""
        return self._change("resume_workflow", run_id, resource_id, connection, RESUMABLE, "be resumed")

    def cancel_workflow(self, run_id: RunId, *, resource_id: str | None = None, connection: Any = None) -> WorkflowRun:
        """End an unfinished run. Raises WorkflowRunNotFoundError and InvalidStatusError."""
        return self._change("cancel_workflow", run_id, resource_id, connection, UNFINISHED, "be cancelled")

    def retry_workflow(self, run_id: RunId, *, resource_id: str | None = None, connection: Any = None) -> WorkflowRun:
        """Let a failed or cancelled run go on after its last completed step, with its retries and its timeout anew.
        Raises WorkflowRunNotFoundError, InvalidStatusError and, while a singleton workflow has another unfinished run,
        WorkflowRunInProgressError."""
        return self._change("retry_workflow", run_id, resource_id, connection, RETRYABLE, "be retried")

    def fast_forward_workflow(self, run_id: RunId, data: Any = None, *, resource_id: str | None = None) -> WorkflowRun:
        """Complete the wait a run is in now, with `data` where it has a result; otherwise do nothing. Raises
        WorkflowRunNotFoundError and SerializationError."""
        key = _run_key(run_id)
        text = None if data is None else PLAIN.encode(data, "the data to go on with")
        outcome = self._store.fast_forward_workflow(
            self._database, key, text, optional_name(resource_id, "resource_id")
        )
        return _changed(outcome, key, resource_id, UNFINISHED, "be fast-forwarded")

    def get_run(self, run_id: RunId, *, resource_id: str | None = None) -> WorkflowRun:
        """A run as it is now. Raises WorkflowRunNotFoundError."""
        key = _run_key(run_id)
        run = self._store.get_run(self._database, key, optional_name(resource_id, "resource_id"))
        if run is None:
            raise _not_found(key, resource_id)
        return run

    def get_steps(self, run_id: RunId, *, resource_id: str | None = None) -> list[StepRecord]:
        """The steps a run has reached, in order. Raises WorkflowRunNotFoundError."""
        key = _run_key(run_id)
        steps = self._store.get_steps(self._database, key, optional_name(resource_id, "resource_id"))
        if steps is None:
            raise _not_found(key, resource_id)
        return steps

    def check_progress(self, run_id: RunId, *, resource_id: str | None = None) -> WorkflowProgress:
        """How far a run is: the steps it has completed, out of these and the declared ones that it has not.
        Raises WorkflowRunNotFoundError."""
        key = _run_key(run_id)
        found = self._store.check_progress(
            self._database, key, optional_name(resource_id, "resource_id"), self._known_steps
        )
        if found is None:
            raise _not_found(key, resource_id)
        run, completed, ahead, live_workers = found
        total = completed + ahead
        if run.status is RunStatus.COMPLETED:
            percentage = 100
        else:
            percentage = min(99, completed * 100 // total) if total else 0
        return WorkflowProgress(
            **vars(run),
            completed_steps=completed,
            total_steps=total,
            completion_percentage=percentage,
            live_workers=live_workers,
        )

    def get_runs(
        self,
        *,
        resource_id: str | None = None,
        workflow_id: str | None = None,
        statuses: Iterable[RunStatus | str] | None = None,
        idempotency_key: str | None = None,
        limit: int = 20,
        starting_after: str | None = None,
        ending_before: str | None = None,
    ) -> Page:
        """A page of runs, newest first. Cursors are a page's `next_cursor` and `prev_cursor`; `limit` is 1 to 1000.
        Raises ValueError for anything else."""
        if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
            raise ValueError(f"limit must be an int within 1 and {MAX_PAGE}, not {limit!r}")
        if starting_after is not None and ending_before is not None:
            raise ValueError("give starting_after or ending_before, not both")
        wanted = RunFilter(
            optional_name(resource_id, "resource_id"),
            optional_name(workflow_id, "workflow_id"),
            optional_name(idempotency_key, "idempotency_key"),
            None if statuses is None else _checked_statuses(statuses),
        )
        newer = ending_before is not None
        given = ending_before if newer else starting_after
        cursor = None if given is None else _read_cursor(given)
        found = self._store.get_runs(self._database, wanted, cursor=cursor, newer=newer, limit=limit + 1)
        beyond, items = len(found) > limit, found[:limit]
        if newer:
            items.reverse()
        has_more = bool(items) if newer else beyond
        has_prev = beyond if newer else bool(items) and cursor is not None
        return Page(
            items=items,
            next_cursor=_write_cursor(items[-1].id) if has_more else None,
            prev_cursor=_write_cursor(items[0].id) if has_prev else None,
            has_more=has_more,
            has_prev=has_prev,
        )

    def get_workflow_last_run(self, workflow_id: str, *, resource_id: str | None = None) -> WorkflowRun | None:
        """The newest run of a workflow, if there is one."""
        page = self.get_runs(
            workflow_id=checked_identifier(workflow_id, "workflow_id"), resource_id=resource_id, limit=1
        )
        return page.items[0] if page.items else None

    def wait_for_run(self, run_id: RunId, *, timeout: Duration | None = None) -> WorkflowRun:
        """Wait until a run is finished, however it ends, and return it. Raises WorkflowRunNotFoundError and, after
        `timeout`, TimeoutError."""
        key = _run_key(run_id)
        limit_s = None if timeout is None else parse_positive_duration(timeout, "timeout").total_seconds()
        deadline = None if limit_s is None else time.monotonic() + limit_s
        pause_s = FIRST_POLL_S
        while True:
            status = self._store.get_status(self._database, key)
            if status is None:
                raise _not_found(key, None)
            if status.finished:
                return self.get_run(key)
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"run {key} is still {status} after {limit_s:g} s; it goes on")
            left_s = pause_s if deadline is None else max(0.0, deadline - time.monotonic())
            time.sleep(min(pause_s, left_s))
            pause_s = min(LONGEST_POLL_S, pause_s * 1.5)

    def prune(self, *, older_than: Duration | None = None, workflow_id: str | None = None) -> int:
        """Delete finished runs with their steps and events; how many.

        Those that ended longer ago than `older_than`; without it, than the retention that their workflows declare.
        With `workflow_id` only that workflow's. Goes in small transactions that nothing waits for; the children of an
        unfinished run stay.
        """
        if workflow_id is not None:
            checked_identifier(workflow_id, "workflow_id")
        age = None if older_than is None else parse_positive_duration(older_than, "older_than")
        return sum(prune(self._store, self._database, age, workflow_id))

    def _prepared(self, workflow: WorkflowRef[Any, Any] | str, input: Any) -> tuple[str, str, Mapping[str, Any] | None]:
        """The workflow's id, the input as JSON text, and the options that the workflow's code gives."""
        if isinstance(workflow, str):
            workflow_id = checked_identifier(workflow, "the workflow id")
            return workflow_id, PLAIN.encode(input, f"the input of workflow {workflow_id!r}"), None
        checked_ref(workflow)
        return workflow.id, workflow.validate_input(input)[0], options_of(workflow)

    def _headers(self, workflow: WorkflowRef[Any, Any] | str) -> str | None:
        """What plugins send along with a start, as JSON text: those given here, and those of the workflow."""
        inner = workflow.plugins if isinstance(workflow, Workflow) else ()
        headers = injected((*self.plugins, *inner), self.logger)
        return json.dumps(headers, ensure_ascii=False) if headers else None

    @property
    def _known_steps(self) -> Mapping[str, Sequence[str]]:
        """Literal step ids by workflow id, for progress where no declaration is stored."""
        return {}

    def _change(
        self,
        operation: str,
        run_id: RunId,
        resource_id: str | None,
        connection: Any,
        allowed: frozenset[RunStatus],
        verb: str,
    ) -> WorkflowRun:
        key = _run_key(run_id)
        outcome = self._store.change_run(
            self._executor(connection),
            operation,
            key,
            optional_name(resource_id, "resource_id"),
            borrowed=connection is not None,
        )
        return _changed(outcome, key, resource_id, allowed, verb)

    def _executor(self, connection: Any) -> Executor:
        return self._database if connection is None else borrowed(connection)


def checked_ref(workflow: object) -> None:
    """Raise TypeError for what is neither a workflow nor a reference."""
    if not isinstance(workflow, WorkflowRef):
        raise TypeError(f"start_workflow takes a workflow, a ref or an id, not {type(workflow).__name__}")


def _default_conninfo() -> str:
    url = os.environ.get("DATABASE_URL")
    if url:
        return url
    if not embedded.embedded_available():
        raise ConfigurationError(
            "no database: pass a connection string, set DATABASE_URL, or install pgworkflows[embedded]"
        )
    return embedded.default_embedded().url


def _run_key(run_id: object) -> UUID:
    if isinstance(run_id, UUID):
        return run_id
    if not isinstance(run_id, str):
        raise TypeError(f"run_id must be a UUID or its text, not {type(run_id).__name__}")
    try:
        return UUID(run_id)
    except ValueError:
        raise WorkflowRunNotFoundError(f"run {run_id!r} was not found: this is no UUID", run_id=run_id) from None


def _checked_statuses(statuses: Iterable[RunStatus | str]) -> list[RunStatus]:
    if isinstance(statuses, str):
        raise TypeError("statuses must be a list of statuses, not one string")
    try:
        return [RunStatus(status) for status in statuses]
    except ValueError as error:
        raise ValueError(f"{error}: use {', '.join(RunStatus)}") from None


def _say_which(error: Exception, number: int) -> None:
    """Let the refusal of one input of many name it."""
    if isinstance(error, WorkflowEngineError):
        error.message = f"inputs[{number}]: {error.message}"
        if isinstance(error, InvalidInputError):
            error.issues = [{**issue, "loc": (number, *issue["loc"])} for issue in error.issues]
    else:
        error.add_note(f"at inputs[{number}]")


def _started(outcome: Outcome, workflow_id: str) -> WorkflowRun:
    run = outcome.run
    if outcome.name == "in_progress":
        raise in_progress(run, workflow_id)
    assert run is not None
    if outcome.name == "conflict":
        raise IdempotencyConflictError(
            f"idempotency key {run.idempotency_key!r} is taken by run {run.id} of workflow {run.workflow_id!r}, "
            f"resource {run.resource_id!r}: use another key for another run",
            workflow_id=run.workflow_id,
            run_id=run.id,
        )
    return run


def _run_of(outcome: Outcome) -> WorkflowRun:
    assert outcome.run is not None
    return outcome.run


def _changed(
    outcome: Outcome, key: UUID, resource_id: str | None, allowed: frozenset[RunStatus], verb: str
) -> WorkflowRun:
    if outcome.name == "not_found":
        raise _not_found(key, resource_id)
    run = _run_of(outcome)
    if outcome.name == "in_progress":
        raise in_progress(run, run.workflow_id)
    if outcome.name == "invalid_status":
        names = ", ".join(status for status in RunStatus if status in allowed)
        raise InvalidStatusError(
            f"run {key} is {run.status}; only {names} runs can {verb}", workflow_id=run.workflow_id, run_id=key
        )
    return run


def _not_found(key: UUID, resource_id: str | None) -> WorkflowEngineError:
    owner = "" if resource_id is None else f" for resource {resource_id!r}"
    return WorkflowRunNotFoundError(f"run {key} was not found{owner}", run_id=key)


def _write_cursor(run_id: UUID) -> str:
    return base64.urlsafe_b64encode(run_id.bytes).decode().rstrip("=")


def _read_cursor(text: str) -> UUID:
    try:
        return UUID(bytes=base64.urlsafe_b64decode(text + "=="))
    except (ValueError, TypeError, binascii.Error):
        raise ValueError(f"{text!r} is no cursor: pass a page's next_cursor or prev_cursor") from None
