"""What the operations of a client have in common: its statements, and the caller's transaction to join."""

from __future__ import annotations

from typing import Any, TypeAlias
from uuid import UUID

from pgworkflows.borrowed import borrowed
from pgworkflows.database import Database, Executor, Reads
from pgworkflows.definition import Workflow
from pgworkflows.errors import WorkflowEngineError, WorkflowRunNotFoundError
from pgworkflows.limits import quoted
from pgworkflows.store import Store

RunId: TypeAlias = UUID | str


class Operations:
    """A part of what a client can do, in the schema of its store."""

    schema: str
    _database: Database
    _store: Store

    def _executor(self, connection: Any) -> Executor:
        return self._database if connection is None else borrowed(connection)

    @property
    def _reads(self) -> Executor:
        """For what changes nothing."""
        return Reads(self._database)

    def _known(self, _workflow_id: str, /) -> Workflow[Any, Any] | None:
        """The workflow of that id, where its code is."""
        return None

    def _joins(self, connection: Any) -> bool:
        """Whether a call is part of a transaction that its caller ends."""
        return connection is not None or self._database.borrowed


def run_key(run_id: object) -> UUID:
    if isinstance(run_id, UUID):
        return run_id
    if not isinstance(run_id, str):
        raise TypeError(f"run_id must be a UUID or its text, not {type(run_id).__name__}")
    try:
        return UUID(run_id)
    except ValueError:
        raise WorkflowRunNotFoundError(f"run {quoted(run_id)} was not found: this is no UUID", run_id=run_id) from None


def not_found(key: UUID, resource_id: str | None) -> WorkflowEngineError:
    owner = "" if resource_id is None else f" for resource {resource_id!r}"
    return WorkflowRunNotFoundError(f"run {key} was not found{owner}", run_id=key)
