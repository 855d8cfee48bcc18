"""The client: start runs, send them events, change and read them. Needs no handler code."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from pgworkflows import embedded, roles
from pgworkflows.database import Database, Pool
from pgworkflows.durations import Duration, parse_positive_duration
from pgworkflows.errors import ConfigurationError, InvalidStatusError, WorkflowRunInProgressError
from pgworkflows.healthcheck import Health, HealthOperations
from pgworkflows.limits import checked_identifier
from pgworkflows.migrate import Migration, migrate
from pgworkflows.operations import RunId, not_found, run_key
from pgworkflows.payloads import PayloadCodec, Payloads
from pgworkflows.plugins import Plugin, checked_plugins
from pgworkflows.pruning import prune
from pgworkflows.reading import ReadOperations
from pgworkflows.runs import PAUSABLE, RESUMABLE, RETRYABLE, UNFINISHED, RunStatus, WorkflowRun
from pgworkflows.schedules import ScheduleOperations
from pgworkflows.schema import DEFAULT_SCHEMA, checked_schema
from pgworkflows.serialization import PLAIN
from pgworkflows.starting import StartOperations
from pgworkflows.starts import in_progress, optional_name
from pgworkflows.store import Outcome, Store


class WorkflowClient(StartOperations, ReadOperations, ScheduleOperations, HealthOperations):
    """Starts and steers the runs of one schema of one database.

    `conninfo` is a connection string or URL; None means `$DATABASE_URL`, else an embedded server if the extra
    `embedded` is installed, else ConfigurationError. With `pool`, a psycopg_pool ConnectionPool, that is used instead.
    Connections open at first use. Threads may share a client. What `plugins` inject travels with the runs it starts.
    What `codec` encodes is stored that way; it reads what bears its name, and so do `read_codecs`.
    Where the rest goes through a connection pooler, workers listen with `listen_conninfo`, a direct connection.
    """

    def __init__(
        self,
        conninfo: str | None = None,
        *,
        pool: Pool | None = None,
        schema: str = DEFAULT_SCHEMA,
        plugins: Iterable[Plugin] = (),
        codec: PayloadCodec | None = None,
        read_codecs: Iterable[PayloadCodec] = (),
        listen_conninfo: str | None = None,
    ) -> None:
        self.plugins = checked_plugins(plugins)
        self.payloads = Payloads(codec, read_codecs)
        self.logger = logging.getLogger("pgworkflows")
        self.schema = checked_schema(schema)
        if conninfo is None and pool is None:
            conninfo = _default_conninfo()
        self._database = Database(conninfo, pool, listen_conninfo)
        self._store = Store(self.schema, self.payloads)

    @property
    def conninfo(self) -> str:
        """What to connect with."""
        return self._database.conninfo

    @property
    def listen_conninfo(self) -> str:
        """What workers listen with."""
        return self._database.listen_conninfo

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

    def grant(self, *, client: str | None = None, worker: str | None = None, reader: str | None = None) -> None:
        """Let database roles, which exist, be a client, a worker, a reader of the schema, and nothing more. Connect as
        the schema's owner. Raises ConfigurationError, ValueError and TypeError."""
        roles.grant(self.conninfo, self.schema, client=client, worker=worker, reader=reader)

    def revoke(self, role: str) -> None:
        """Take from a role all that it was granted. Raises as `grant`."""
        roles.revoke(self.conninfo, self.schema, role)

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
        key = run_key(run_id)
        checked_identifier(event_name, "event_name")
        text = None if data is None else self._encoded(data, f"the data of event {event_name!r}")
        outcome = self._store.trigger_event(
            self._executor(connection),
            key,
            event_name,
            text,
            optional_name(resource_id, "resource_id"),
            optional_name(idempotency_key, "idempotency_key"),
            borrowed=self._joins(connection),
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
        key = run_key(run_id)
        text = None if data is None else self._encoded(data, "the data to go on with")
        outcome = self._store.fast_forward_workflow(
            self._database, key, text, optional_name(resource_id, "resource_id")
        )
        return _changed(outcome, key, resource_id, UNFINISHED, "be fast-forwarded")

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

    def _encoded(self, data: Any, what: str) -> str:
        """Data as it is stored. Raises SerializationError."""
        return self.payloads.seal(PLAIN.encode(data, what), what)

    def _change(
        self,
        operation: str,
        run_id: RunId,
        resource_id: str | None,
        connection: Any,
        allowed: frozenset[RunStatus],
        verb: str,
    ) -> WorkflowRun:
        key = run_key(run_id)
        outcome = self._store.change_run(
            self._executor(connection),
            operation,
            key,
            optional_name(resource_id, "resource_id"),
            borrowed=self._joins(connection),
        )
        return _changed(outcome, key, resource_id, allowed, verb)


def health(
    client: WorkflowClient | str | None = None,
    *,
    min_workers: int = 0,
    max_queue_lag: Duration | None = None,
    timeout: Duration = "5s",
) -> Health:
    """What `client.health` finds: of a client or an engine, or of the database that a connection string names, or
    `$DATABASE_URL`."""
    if isinstance(client, WorkflowClient):
        return client.health(min_workers=min_workers, max_queue_lag=max_queue_lag, timeout=timeout)
    with WorkflowClient(client) as own:
        return own.health(min_workers=min_workers, max_queue_lag=max_queue_lag, timeout=timeout)


def _default_conninfo() -> str:
    url = os.environ.get("DATABASE_URL")
    if url:
        return url
    if not embedded.embedded_available():
        raise ConfigurationError(
            "no database: pass a connection string, set DATABASE_URL, or install pgworkflows[embedded]"
        )
    return embedded.default_embedded().url


def _run_of(outcome: Outcome) -> WorkflowRun:
    assert outcome.run is not None
    return outcome.run


def _changed(
    outcome: Outcome, key: UUID, resource_id: str | None, allowed: frozenset[RunStatus], verb: str
) -> WorkflowRun:
    if outcome.name == "not_found":
        raise not_found(key, resource_id)
    if outcome.name == "in_progress":
        if outcome.run is None:
            raise WorkflowRunInProgressError(
                f"run {key} cannot be retried: another role has an unfinished run of its workflow, a singleton"
            )
        raise in_progress(outcome.run, outcome.run.workflow_id)
    run = _run_of(outcome)
    if outcome.name == "invalid_status":
        names = ", ".join(status for status in RunStatus if status in allowed)
        raise InvalidStatusError(
            f"run {key} is {run.status}; only {names} runs can {verb}", workflow_id=run.workflow_id, run_id=key
        )
    return run
