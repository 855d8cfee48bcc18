"""What is stored of a run's steps: the kinds, the statuses, and the record that replay reads."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from pgworkflows.limits import storable
from pgworkflows.runs import RunStatus


class StepKind(StrEnum):
    """What a step is: the method of `step` that made it."""

    RUN = "run"
    WAIT_FOR = "wait_for"
    WAIT_UNTIL = "wait_until"
    DELAY = "delay"
    PAUSE = "pause"
    POLL = "poll"
    INVOKE_CHILD_WORKFLOW = "invoke_child_workflow"


class StepStatus(StrEnum):
    """Where a step stands. A wait that timed out is `completed`, with a null output."""

    WAITING = "waiting"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class ChildEnd:
    """How a child ended that did not complete: `status` is failed or cancelled, `error` what its run tells."""

    run_id: str
    status: str
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as it is stored: the exception's class name, its text, its traceback, the step it came from; of a step
    that invoked a child, how that ended. What
    PostgreSQL cannot keep is escaped from the beginning, so that the handler sees the same each time."""

    type: str
    message: str
    traceback: str | None = None
    step_id: str | None = None
    child: ChildEnd | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", storable(self.type))
        object.__setattr__(self, "message", storable(self.message))
        object.__setattr__(self, "traceback", None if self.traceback is None else storable(self.traceback))


class StoredStep(NamedTuple):
    """One step as a claim reads it. `output` is JSON text; `attempts` counts calls over the whole life of the run,
    `prior_attempts` those made before the run was last retried."""

    position: int
    step_id: str
    kind: StepKind
    status: StepStatus
    output: str | None = None
    error: ErrorInfo | None = None
    attempts: int = 0
    prior_attempts: int = 0
    wake_at: datetime | None = None
    deadline_at: datetime | None = None

    @property
    def cleared(self) -> bool:
        """Whether a retry of the run has taken this step's failure back: it binds the replay to nothing."""
        return self.status is StepStatus.RETRYING and self.attempts == self.prior_attempts


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event in a run's mailbox that no wait has taken yet. `data` is JSON text."""

    id: int
    name: str
    data: str
    received_at: datetime


@dataclass(frozen=True, slots=True)
class StoredChild:
    """The run that a step has invoked, as it was when its parent was claimed. `output` is JSON text, `error` a JSON
    value."""

    run_id: UUID
    workflow_id: str
    step_id: str
    status: RunStatus
    output: str | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True)
class StepRecord:
    """One step of a run's timeline, as `get_steps` shows it. Payloads are JSON values."""

    position: int
    step_id: str
    kind: StepKind
    status: StepStatus
    output: Any
    error: dict[str, Any] | None
    attempts: int
    started_at: datetime | None
    completed_at: datetime | None
    wake_at: datetime | None
    event_name: str | None
    child_run_id: UUID | None
