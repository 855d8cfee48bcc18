"""Every error of the library, under one root, each naming the fact, the id and the remedy."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from pgworkflows.runs import RunStatus


class WorkflowEngineError(Exception):
    """Root of the library's errors. `workflow_id` and `run_id` are set where they are known."""

    def __init__(self, message: str, *, workflow_id: str | None = None, run_id: UUID | str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.workflow_id = workflow_id
        self.run_id = run_id

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # By its attributes: what an __init__ asks for by name cannot be told by args alone.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(
    kind: type[WorkflowEngineError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> WorkflowEngineError:
    """An error that was copied or pickled."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class WorkflowNotFoundError(WorkflowEngineError):
    """The engine has no workflow of that id."""


class WorkflowRunNotFoundError(WorkflowEngineError):
    """No run has that id, or it belongs to another resource."""


class WorkflowRunInProgressError(WorkflowEngineError):
    """The workflow has an unfinished run, and only one is allowed; `run_id` is that run's."""


class IdempotencyConflictError(WorkflowEngineError):
    """The idempotency key is taken by a run of another workflow or resource; `run_id` is that run's."""


class InvalidInputError(WorkflowEngineError):
    """Data does not fit its schema. `issues` are pydantic's: dicts with `type`, `loc`, `msg`."""

    def __init__(
        self,
        message: str,
        *,
        issues: list[dict[str, Any]] | None = None,
        workflow_id: str | None = None,
        run_id: UUID | str | None = None,
    ) -> None:
        super().__init__(message, workflow_id=workflow_id, run_id=run_id)
        self.issues = issues or []


class InvalidStatusError(WorkflowEngineError):
    """The run's status does not allow the operation."""


class StepFailedError(WorkflowEngineError):
    """A step failed beyond its policy; thrown into the handler, which may catch it.

    `error_type` is the class name of the step's own exception, `message` its text.
    """

    def __init__(
        self,
        message: str,
        *,
        step_id: str,
        error_type: str,
        traceback: str | None = None,
        workflow_id: str | None = None,
        run_id: UUID | str | None = None,
    ) -> None:
        super().__init__(message, workflow_id=workflow_id, run_id=run_id)
        self.step_id = step_id
        self.error_type = error_type
        self.traceback = traceback

    def __str__(self) -> str:
        return f"step {self.step_id!r} failed: {self.error_type}: {self.message}"


class StepTimeoutError(StepFailedError):
    """A step's function did not return within its `.timeout`."""


class ChildWorkflowFailedError(StepFailedError):
    """A child run failed or was cancelled. `status` and `error` are the child's."""

    def __init__(
        self,
        message: str,
        *,
        step_id: str,
        child_run_id: UUID,
        status: RunStatus,
        error: dict[str, Any] | None = None,
        workflow_id: str | None = None,
        run_id: UUID | str | None = None,
    ) -> None:
        super().__init__(
            message, step_id=step_id, error_type="ChildWorkflowFailedError", workflow_id=workflow_id, run_id=run_id
        )
        self.child_run_id = child_run_id
        self.status = status
        self.error = error


class WorkflowTimeoutError(WorkflowEngineError):
    """The run was not finished within its `timeout`."""


class SerializationError(WorkflowEngineError):
    """A value cannot be stored as JSON that PostgreSQL keeps, or does not come back as its annotation says."""


class DuplicateStepError(WorkflowEngineError):
    """A step id is used twice in one workflow or one run."""


class NonDeterminismError(WorkflowEngineError):
    """The handler yielded another command than the one its history holds at this place."""


class ConfigurationError(WorkflowEngineError):
    """The library is set up in a way that cannot work: connection, schema, registration."""
