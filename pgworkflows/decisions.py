"""What a replay decides and has written, and what it is told of calls: frozen values, taken apart exhaustively.

Those of which each step makes one are named tuples, which are made in a third of a frozen dataclass's time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

from pgworkflows.commands import Command, InvokeChildCommand, PollCommand, RunCommand, WaitForCommand
from pgworkflows.history import ErrorInfo, StepStatus, StoredStep


class StepWrite(NamedTuple):
    """A row of `steps` to be written. Moments are absolute or, as `…_after`, counted from when it is written."""

    position: int
    step_id: str
    kind: str
    status: str
    output: str | None = None
    error: ErrorInfo | None = None
    attempts: int = 0
    prior_attempts: int = 0
    elapsed_s: float = 0.0
    wake_at: datetime | None = None
    wake_after: timedelta | None = None
    deadline_at: datetime | None = None
    deadline_after: timedelta | None = None
    event_name: str | None = None


class EventTaken(NamedTuple):
    """An event of the mailbox that a wait has consumed."""

    event_id: int
    step_id: str


class ChildStart(NamedTuple):
    """The run that a step invokes; `input` is JSON text."""

    command: InvokeChildCommand[Any]
    input: str


class CallStep(NamedTuple):
    """Call the command's function. `attempt` counts from 1 over the life of the run, `calls_made` those before it that
    count against the step's policy; `last_poll` says that a poll's time is up."""

    position: int
    command: RunCommand[Any] | PollCommand[Any]
    attempt: int = 1
    calls_made: int = 0
    stored: StoredStep | None = None
    last_poll: bool = False


@dataclass(frozen=True, slots=True)
class Suspend:
    """Let go of the run until something wakes it; `wait_kind` is event, timer, poll, pause, retry or
    child."""

    step_id: str
    wait_kind: str
    wait_event: str | None = None


@dataclass(frozen=True, slots=True)
class Complete:
    """The handler returned; `output` is JSON text."""

    output: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The handler raised, or cannot be replayed. `error.step_id` names the step whose failure got out of it; `cause` is
    what was raised, for plugins."""

    error: ErrorInfo
    retryable: bool
    cause: BaseException | None = field(default=None, compare=False, repr=False)


Decision: TypeAlias = CallStep | Suspend | Complete | Fail


class Turn(NamedTuple):
    """One advance of the generator: what is to be stored, and what is to be done once it is."""

    writes: tuple[StepWrite, ...]
    events: tuple[EventTaken, ...]
    decision: Decision
    child: ChildStart | None = None


class Returned(NamedTuple):
    """A step function returned: its result as JSON text, and that decoded."""

    output: str
    value: Any
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Raised:
    """A step function raised, or what it returned cannot be stored."""

    error: BaseException
    info: ErrorInfo
    elapsed_s: float = 0.0


StepOutcome: TypeAlias = Returned | Raised


def waiting(
    position: int, command: Command[Any], *, wake_at: datetime | None = None, wake_after: timedelta | None = None
) -> StepWrite:
    """The row of a wait that begins."""
    row = StepWrite(position, command.id, command.kind, StepStatus.WAITING, wake_at=wake_at, wake_after=wake_after)
    return _with_event_name(row, command)


def ended(
    position: int,
    command: Command[Any],
    status: StepStatus,
    *,
    output: str | None = None,
    error: ErrorInfo | None = None,
) -> StepWrite:
    """The row of a wait that is over."""
    return _with_event_name(StepWrite(position, command.id, command.kind, status, output, error), command)


def called(
    call: CallStep,
    status: StepStatus,
    elapsed_s: float,
    *,
    output: str | None = None,
    error: ErrorInfo | None = None,
) -> StepWrite:
    """The row of a step whose function was called."""
    prior = 0 if call.stored is None else call.stored.prior_attempts
    command = call.command
    return StepWrite(call.position, command.id, command.kind, status, output, error, call.attempt, prior, elapsed_s)


def _with_event_name(row: StepWrite, command: Command[Any]) -> StepWrite:
    return row._replace(event_name=command.event_name) if isinstance(command, WaitForCommand) else row
