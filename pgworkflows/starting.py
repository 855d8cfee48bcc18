"""Starting runs, one or many."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from pgworkflows.commands import Json
from pgworkflows.declarations import fallback_of
from pgworkflows.definition import Workflow, WorkflowRef
from pgworkflows.durations import Duration
from pgworkflows.errors import IdempotencyConflictError, InvalidInputError, WorkflowEngineError
from pgworkflows.limits import checked_identifier
from pgworkflows.operations import Operations
from pgworkflows.payloads import Payloads
from pgworkflows.plugins import Plugin, injected
from pgworkflows.runs import WorkflowRun
from pgworkflows.serialization import PLAIN
from pgworkflows.starts import StartRequest, StartTerms, in_progress, optional_name
from pgworkflows.store import Outcome

I = TypeVar("I")  # noqa: E741


class Target(NamedTuple):
    """The workflow of a start: what checks its inputs, if they are not any JSON, and what its options and its plugins
    are taken from, as far as they are known here."""

    id: str
    schema: WorkflowRef[Any, Any] | None
    code: WorkflowRef[Any, Any] | None


class StartOperations(Operations):
    """How a client starts runs."""

    plugins: tuple[Plugin, ...]
    payloads: Payloads
    logger: logging.Logger

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
        target = self._target(workflow)
        terms = StartTerms.build(
            resource_id=resource_id,
            priority=priority,
            retries=retries,
            timeout=timeout,
            queue=queue,
            singleton=singleton,
            delay=delay,
            run_at=run_at,
            headers=self._headers(target.code),
        )
        request = StartRequest(
            target.id,
            self._stored(target, input),
            optional_name(idempotency_key, "idempotency_key"),
            terms,
            fallback_of(target.code),
        )
        outcome = self._store.start_workflow(self._executor(connection), request, borrowed=self._joins(connection))
        return _started(outcome, target.id)

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
        target = self._target(workflow)
        terms = StartTerms.build(
            resource_id=resource_id,
            priority=priority,
            retries=retries,
            timeout=timeout,
            queue=queue,
            singleton=singleton,
            delay=delay,
            run_at=run_at,
            headers=self._headers(target.code),
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
        fallback = fallback_of(target.code)
        requests: list[StartRequest] = []
        for number, (value, key) in enumerate(zip(values, keys, strict=True)):
            try:
                text = self._stored(target, value)
                name = optional_name(key, "idempotency_key")
            except Exception as error:
                _say_which(error, number)
                raise
            requests.append(StartRequest(target.id, text, name, terms, fallback))
        if not requests:
            return []
        outcomes = self._store.start_workflows(self._executor(connection), requests, borrowed=self._joins(connection))
        return [_started(outcome, target.id) for outcome in outcomes]

    def _target(self, workflow: WorkflowRef[Any, Any] | str) -> Target:
        """What is to be started. Raises TypeError, ValueError or WorkflowNotFoundError."""
        if isinstance(workflow, str):
            return Target(checked_identifier(workflow, "the workflow id"), None, None)
        checked_ref(workflow)
        return Target(workflow.id, workflow, workflow)

    def _stored(self, target: Target, input: Any) -> str:
        """An input as it is stored. Raises InvalidInputError or SerializationError."""
        if target.schema is None:
            text = PLAIN.encode(input, f"the input of workflow {target.id!r}")
        else:
            text, _ = target.schema.validate_input(input)
        return self.payloads.seal(text, f"the input of workflow {target.id!r}") if self.payloads.writes else text

    def _headers(self, code: WorkflowRef[Any, Any] | str | None) -> str | None:
        """What plugins send along with a start, as JSON text: those given here, and those of the workflow."""
        plugins = (*self.plugins, *code.plugins) if isinstance(code, Workflow) else self.plugins
        headers = injected(plugins, self.logger) if plugins else None
        return json.dumps(headers, ensure_ascii=False) if headers else None


def checked_ref(workflow: object) -> None:
    """Raise TypeError for what is neither a workflow nor a reference."""
    if not isinstance(workflow, WorkflowRef):
        raise TypeError(f"start_workflow takes a workflow, a ref or an id, not {type(workflow).__name__}")


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
    if outcome.name == "conflict" and run is None:
        raise IdempotencyConflictError(
            "the idempotency key is taken by a run that another role has started: use another key for another run",
            workflow_id=workflow_id,
        )
    assert run is not None
    if outcome.name == "conflict":
        raise IdempotencyConflictError(
            f"idempotency key {run.idempotency_key!r} is taken by run {run.id} of workflow {run.workflow_id!r}, "
            f"resource {run.resource_id!r}: use another key for another run",
            workflow_id=run.workflow_id,
            run_id=run.id,
        )
    return run
