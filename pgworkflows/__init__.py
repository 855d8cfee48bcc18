"""Durable workflows in Python on the PostgreSQL you already have."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgworkflows.client import WorkflowClient, health
    from pgworkflows.commands import Command, PollResult, RunCommand, Step, StepContext, Steps
    from pgworkflows.current import CurrentStep, current_step
    from pgworkflows.definition import StepDefinition, Workflow, WorkflowRef, workflow, workflow_ref
    from pgworkflows.embedded import EmbeddedPostgres
    from pgworkflows.engine import WorkflowEngine
    from pgworkflows.errors import (
        ChildWorkflowFailedError,
        ConfigurationError,
        DuplicateStepError,
        IdempotencyConflictError,
        InvalidInputError,
        InvalidStatusError,
        NonDeterminismError,
        SerializationError,
        StepFailedError,
        StepTimeoutError,
        WorkflowEngineError,
        WorkflowNotFoundError,
        WorkflowRunInProgressError,
        WorkflowRunNotFoundError,
        WorkflowTimeoutError,
    )
    from pgworkflows.healthcheck import Backlog, Health, WorkerHealth
    from pgworkflows.history import StepKind, StepRecord, StepStatus
    from pgworkflows.inspection import Inspector
    from pgworkflows.payloads import PayloadCodec
    from pgworkflows.plugins import ExecutionOutcome, Plugin, RunContext, StepInfo
    from pgworkflows.runs import Page, RunStatus, WorkflowProgress, WorkflowRun
    from pgworkflows.schedules import Schedule
    from pgworkflows.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "Backlog",
    "ChildWorkflowFailedError",
    "Command",
    "ConfigurationError",
    "CurrentStep",
    "DuplicateStepError",
    "EmbeddedPostgres",
    "ExecutionOutcome",
    "Health",
    "IdempotencyConflictError",
    "Inspector",
    "InvalidInputError",
    "InvalidStatusError",
    "NonDeterminismError",
    "Page",
    "PayloadCodec",
    "Plugin",
    "PollResult",
    "RunCommand",
    "RunContext",
    "RunStatus",
    "Schedule",
    "SerializationError",
    "Step",
    "StepContext",
    "StepDefinition",
    "StepFailedError",
    "StepInfo",
    "StepKind",
    "StepRecord",
    "StepStatus",
    "StepTimeoutError",
    "Steps",
    "Worker",
    "WorkerHealth",
    "Workflow",
    "WorkflowClient",
    "WorkflowEngine",
    "WorkflowEngineError",
    "WorkflowNotFoundError",
    "WorkflowProgress",
    "WorkflowRef",
    "WorkflowRun",
    "WorkflowRunInProgressError",
    "WorkflowRunNotFoundError",
    "WorkflowTimeoutError",
    "current_step",
    "health",
    "workflow",
    "workflow_ref",
]

_HOMES = {
    "client": "WorkflowClient health",
    "commands": "Command PollResult RunCommand Step StepContext Steps",
    "current": "CurrentStep current_step",
    "definition": "StepDefinition Workflow WorkflowRef workflow workflow_ref",
    "embedded": "EmbeddedPostgres",
    "engine": "WorkflowEngine",
    "errors": "ChildWorkflowFailedError ConfigurationError DuplicateStepError IdempotencyConflictError "
    "InvalidInputError InvalidStatusError NonDeterminismError SerializationError StepFailedError StepTimeoutError "
    "WorkflowEngineError WorkflowNotFoundError WorkflowRunInProgressError WorkflowRunNotFoundError "
    "WorkflowTimeoutError",
    "healthcheck": "Backlog Health WorkerHealth",
    "history": "StepKind StepRecord StepStatus",
    "inspection": "Inspector",
    "payloads": "PayloadCodec",
    "plugins": "ExecutionOutcome Plugin RunContext StepInfo",
    "runs": "Page RunStatus WorkflowProgress WorkflowRun",
    "schedules": "Schedule",
    "worker": "Worker",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

if not TYPE_CHECKING:  # type checkers know all that there is, and what is not

    def __getattr__(name: str) -> Any:
        # Imported when it is asked for first: the command line, or who uses the client only, waits for nothing else.
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"pgworkflows.{_HOME_OF[name]}"), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
