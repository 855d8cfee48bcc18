"""Durable workflows in Python on the PostgreSQL you already have."""

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
