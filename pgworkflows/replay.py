"""Advance a generator against its history: what was stored is sent, the first thing that was not is decided.

Pure: no database, no clock, no thread. Time is the moment of the claim, given by the database: everything that was
received by then is in the history or the mailbox, so a wait is judged by what was there at that moment.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, TypeAlias, TypeGuard, assert_never
from uuid import UUID

from pgworkflows.commands import (
    Command,
    DelayCommand,
    InvokeChildCommand,
    PauseCommand,
    PollCommand,
    PollResult,
    RunCommand,
    WaitForCommand,
    WaitUntilCommand,
)
from pgworkflows.decisions import (
    CallStep,
    ChildStart,
    Complete,
    Decision,
    EventTaken,
    Fail,
    Raised,
    Returned,
    StepOutcome,
    StepWrite,
    Suspend,
    Turn,
    called,
    ended,
    waiting,
)
from pgworkflows.errors import InvalidInputError, SerializationError, StepFailedError, WorkflowEngineError
from pgworkflows.failures import (
    changed,
    child_failure,
    error_info,
    escaped,
    not_a_command,
    refusal,
    step_failure,
    used_twice,
)
from pgworkflows.history import ErrorInfo, StepStatus, StoredChild, StoredEvent, StoredStep
from pgworkflows.results import NOTHING_TO_SAY, POLL_TIMED_OUT, decoded, poll_output
from pgworkflows.runs import RunStatus
from pgworkflows.serialization import PLAIN

__all__ = [
    "CallStep",
    "ChildStart",
    "Complete",
    "Decision",
    "EventTaken",
    "Fail",
    "Raised",
    "Replay",
    "Returned",
    "StepOutcome",
    "StepWrite",
    "Suspend",
    "Trail",
    "Turn",
    "error_info",
]

AnyCommand: TypeAlias = (
    RunCommand[Any]
    | PollCommand[Any]
    | WaitForCommand[Any]
    | WaitUntilCommand
    | DelayCommand
    | PauseCommand
    | InvokeChildCommand[Any]
)
"""All that is answered here; a command of another class is refused like anything else."""
COMMANDS = (
    RunCommand,
    PollCommand,
    WaitForCommand,
    WaitUntilCommand,
    DelayCommand,
    PauseCommand,
    InvokeChildCommand,
)

DECISIONS = (CallStep, Suspend, Complete, Fail)
GOING_ON = (CallStep, Complete)
"""After which the generator need not be closed: it is still wanted, or has ended."""

Sent: TypeAlias = tuple[Any, StepFailedError | None]
"""What a command is answered with at once: a result to send in, or a failure to throw in."""

ANY_NUMBER_OF_YIELDS = 100


class LetGo(BaseException):
    """Raised in a handler at the command that its run waits at, so that its `finally` blocks run. What it yields from
    then on is not heard."""


class Trail:
    """What an execution shows the handler while it goes along: the outputs so far, and whether it is replaying."""

    __slots__ = ("replaying", "timeline")

    def __init__(self) -> None:
        self.timeline: dict[str, Any] = {}
        self.replaying = True


class Replay:
    """One execution of a run's generator. `begin` it, then answer each CallStep with `resolve`, until another
    decision comes; after any other decision the generator is closed."""

    def __init__(
        self,
        generator: Generator[Command[Any], Any, Any],
        *,
        history: Sequence[StoredStep],
        mailbox: Sequence[StoredEvent],
        as_of: datetime,
        trail: Trail,
        child: StoredChild | None = None,
        encode_output: Callable[[Any], str] = lambda value: PLAIN.encode(value, "the output"),
        workflow_id: str | None = None,
        run_id: UUID | None = None,
    ) -> None:
        """`history` and `mailbox` are in order, by position and by id; `child` is that of the last step, if it has
        invoked one; the ids are told in failures."""
        self._workflow_id = workflow_id
        self._run_id = run_id
        self._generator = generator
        self._history = [step for step in history if not step.cleared]
        self._cleared: Mapping[str, StoredStep] = {step.step_id: step for step in history if step.cleared}
        taken_back = any(step.position == len(self._history) for step in self._cleared.values())
        self._reached = len(self._history) + taken_back
        self._mailbox = list(mailbox)
        self._child = child
        self._as_of = as_of
        self._trail = trail
        self._encode_output = encode_output
        self._position = 0
        self._seen: set[str] = set()
        self._thrown: list[StepFailedError] = []
        self._writes: list[StepWrite] = []
        self._events: list[EventTaken] = []
        self._child_start: ChildStart | None = None

    def begin(self) -> Turn:
        """Replay the history and decide what comes first after it."""
        return self._turn(self._advance(None, None))

    def resolve(self, call: CallStep, outcome: StepOutcome) -> Turn:
        """Take the outcome of a call that was decided, and decide what comes next."""
        command = call.command
        if isinstance(outcome, Raised):
            decision = self._raised(call, outcome)
        elif isinstance(command, PollCommand):
            decision = self._polled(call, command, outcome)
        else:
            self._write(called(call, StepStatus.COMPLETED, outcome.elapsed_s, output=outcome.output))
            decision = self._next(command.id, outcome.value)
        return self._turn(decision)

    def close(self) -> None:
        """Let the generator go; whatever it does in its `finally` blocks, nothing comes out, not even to its logger."""
        self._trail.replaying = True
        for _ in range(ANY_NUMBER_OF_YIELDS):
            try:
                # Not close(): where a generator that is delegated to yields once more, its caller gets a RuntimeError.
                self._generator.throw(LetGo("the run is let go until something wakes it; this is no error"))
            except BaseException:
                return
        with suppress(BaseException):
            self._generator.close()

    def _turn(self, decision: Decision) -> Turn:
        turn = Turn(tuple(self._writes), tuple(self._events), decision, self._child_start)
        self._writes.clear()
        self._events.clear()
        if not isinstance(decision, GOING_ON):
            self.close()
        return turn

    def _write(self, row: StepWrite) -> None:
        self._writes.append(row)

    def _next(self, step_id: str, value: Any) -> Decision:
        """The step has its result: send it in."""
        self._trail.timeline[step_id] = value
        self._position += 1
        return self._advance(value, None)

    def _throw(self, error: StepFailedError) -> Decision:
        """The step has failed for good: throw that in."""
        self._note(error)
        self._position += 1
        return self._advance(None, error)

    def _note(self, error: StepFailedError) -> None:
        """Remember what is thrown in, to know it when it comes out."""
        error.workflow_id, error.run_id = self._workflow_id, self._run_id
        self._thrown.append(error)

    def _advance(self, value: Any, error: StepFailedError | TypeError | None) -> Decision:
        """Resume the generator until it asks for something that is not in the history."""
        while True:
            self._trail.replaying = self._position < self._reached
            try:
                command: object = self._generator.send(value) if error is None else self._generator.throw(error)
            except StopIteration as stop:
                return self._returned(stop.value)
            except BaseException as raised:
                return escaped(raised, self._thrown, early=self._position < len(self._history))
            if not _is_known(command):
                value, error = None, not_a_command(command)
                continue
            answer = self._answer(command)
            if isinstance(answer, DECISIONS):
                return answer
            value, error = answer
            self._position += 1
            if error is None:
                self._trail.timeline[command.id] = value
            else:
                self._note(error)

    def _answer(self, command: AnyCommand) -> Decision | Sent:
        """What a command gets: the result or failure that is known already, or else a decision."""
        stored = self._history[self._position] if self._position < len(self._history) else None
        if stored is not None and (stored.step_id != command.id or stored.kind != command.kind):
            return refusal(changed(stored, f"asked for {command.kind} {command.id!r}"))
        if command.id in self._seen:
            return refusal(used_twice(command.id))
        self._seen.add(command.id)
        if stored is not None and stored.status is StepStatus.COMPLETED:
            return self._stored_result(command, stored.output)
        if stored is not None and stored.status is StepStatus.FAILED:
            assert stored.error is not None
            return None, step_failure(command.id, stored.error)
        return self._decide(command, stored)

    def _stored_result(self, command: AnyCommand, output: str | None) -> Fail | Sent:
        text = NOTHING_TO_SAY if output is None else output
        try:
            return decoded(command, text), None
        except InvalidInputError as error:
            return None, step_failure(command.id, ErrorInfo("InvalidInputError", str(error), None, command.id))
        except SerializationError as error:
            return refusal(error, command.id)

    def _decide(self, command: AnyCommand, stored: StoredStep | None) -> Decision | Sent:
        """What becomes of a step that has no outcome yet; `stored` is what is known of it."""
        match command:
            case RunCommand() | PollCommand():
                return self._call(command, stored or self._cleared.get(command.id))
            case WaitForCommand():
                return self._wait_for(command, stored)
            case WaitUntilCommand(when=when):
                return self._wait(command, stored, wake_at=when, over=when <= self._as_of)
            case DelayCommand(duration=duration):
                return self._wait(command, stored, wake_after=duration, over=not duration)
            case PauseCommand():
                if stored is None:
                    self._write(waiting(self._position, command))
                return Suspend(command.id, "pause")
            case InvokeChildCommand():
                return self._invoke(command, stored)
        assert_never(command)

    def _invoke(self, command: InvokeChildCommand[Any], stored: StoredStep | None) -> Suspend | Fail | Sent:
        """A child's end is known by the child. One that was not begun, or is there no more, is begun."""
        child = self._child
        if stored is None or child is None or child.step_id != command.id:
            return self._begin_child(command)
        match child.status:
            case RunStatus.COMPLETED:
                output = NOTHING_TO_SAY if child.output is None else child.output
                self._write(ended(self._position, command, StepStatus.COMPLETED, output=output))
                return self._stored_result(command, output)
            case RunStatus.FAILED | RunStatus.CANCELLED:
                return self._failed(command, child_failure(child))
            case _:
                return Suspend(command.id, "child", command.id)

    def _begin_child(self, command: InvokeChildCommand[Any]) -> Suspend | Sent:
        try:
            if command.workflow is None:
                text = PLAIN.encode(command.input, f"the input of workflow {command.workflow_id!r}")
            else:
                text, _ = command.workflow.validate_input(command.input)
        except WorkflowEngineError as error:
            return self._failed(command, ErrorInfo(type(error).__name__, error.message, None, command.id))
        self._write(waiting(self._position, command))
        self._child_start = ChildStart(command, text)
        return Suspend(command.id, "child", command.id)

    def _failed(self, command: AnyCommand, info: ErrorInfo) -> Sent:
        """The wait is over, with a failure."""
        self._write(ended(self._position, command, StepStatus.FAILED, error=info))
        return None, step_failure(command.id, info)

    def _call(self, command: RunCommand[Any] | PollCommand[Any], stored: StoredStep | None) -> CallStep | Suspend:
        if stored is None:
            return CallStep(self._position, command)
        if stored.wake_at is not None and stored.wake_at > self._as_of:
            return Suspend(command.id, "retry" if isinstance(command, RunCommand) else "poll")
        return CallStep(
            self._position,
            command,
            attempt=stored.attempts + 1,
            calls_made=stored.attempts - stored.prior_attempts,
            stored=stored,
            last_poll=stored.deadline_at is not None and stored.deadline_at <= self._as_of,
        )

    def _wait_for(self, command: WaitForCommand[Any], stored: StoredStep | None) -> Suspend | Sent:
        deadline = None if stored is None else stored.wake_at
        for event in self._mailbox:
            if event.name == command.event_name and (deadline is None or event.received_at <= deadline):
                self._mailbox.remove(event)
                self._events.append(EventTaken(event.id, command.id))
                return self._received(command, event)
        if deadline is not None and deadline <= self._as_of:
            return self._done(command)
        if stored is None:
            self._write(waiting(self._position, command, wake_after=command.wait_timeout))
        return Suspend(command.id, "event", command.event_name)

    def _received(self, command: WaitForCommand[Any], event: StoredEvent) -> Sent:
        try:
            value = decoded(command, event.data)
        except (InvalidInputError, SerializationError) as error:
            return self._failed(command, ErrorInfo("InvalidInputError", str(error), None, command.id))
        self._write(ended(self._position, command, StepStatus.COMPLETED, output=event.data))
        return value, None

    def _wait(
        self,
        command: WaitUntilCommand | DelayCommand,
        stored: StoredStep | None,
        *,
        wake_at: datetime | None = None,
        wake_after: timedelta | None = None,
        over: bool,
    ) -> Suspend | Sent:
        """A timer. The stored moment stands, whatever the handler computes now."""
        if stored is not None:
            over = stored.wake_at is not None and stored.wake_at <= self._as_of
        if over:
            return self._done(command)
        if stored is None:
            self._write(waiting(self._position, command, wake_at=wake_at, wake_after=wake_after))
        return Suspend(command.id, "timer")

    def _done(self, command: AnyCommand) -> Sent:
        """The wait is over, with nothing to say."""
        self._write(ended(self._position, command, StepStatus.COMPLETED, output=NOTHING_TO_SAY))
        return None, None

    def _raised(self, call: CallStep, outcome: Raised) -> Decision:
        command = call.command
        try:
            pause = _pause_before_next_call(call, outcome.error)
        except Exception as broken:  # the user's strategy; the step has failed either way
            broken.add_note(f"it was asked after {outcome.info.type}: {outcome.info.message}")
            outcome = Raised(broken, error_info(broken, command.id), outcome.elapsed_s)
            pause = None
        if pause is not None:
            row = called(call, StepStatus.RETRYING, outcome.elapsed_s, error=outcome.info)
            self._write(row._replace(wake_after=pause))
            return Suspend(command.id, "retry")
        self._write(called(call, StepStatus.FAILED, outcome.elapsed_s, error=outcome.info))
        return self._throw(step_failure(command.id, outcome.info))

    def _polled(self, call: CallStep, command: PollCommand[Any], outcome: Returned) -> Decision:
        try:
            found = bool(outcome.value) and outcome.output != NOTHING_TO_SAY
        except Exception as error:  # the user's class has no truth value
            return self._raised(call, Raised(error, error_info(error, command.id), outcome.elapsed_s))
        if found or call.last_poll:
            result: PollResult[Any] = PollResult(not found, outcome.value if found else None)
            output = poll_output(outcome.output) if found else POLL_TIMED_OUT
            self._write(called(call, StepStatus.COMPLETED, outcome.elapsed_s, output=output))
            return self._next(command.id, result)
        row = called(call, StepStatus.WAITING, outcome.elapsed_s)
        deadline = None if call.stored is None else call.stored.deadline_at
        self._write(
            row._replace(
                wake_after=command.interval,
                deadline_at=deadline,
                deadline_after=command.poll_timeout if deadline is None else None,
            )
        )
        return Suspend(command.id, "poll")

    def _returned(self, value: Any) -> Complete | Fail:
        if self._position < len(self._history):
            return refusal(changed(self._history[self._position], "returned"))
        try:
            return Complete(self._encode_output(value))
        except SerializationError as error:
            return refusal(error)


def _is_known(command: object) -> TypeGuard[AnyCommand]:
    return isinstance(command, COMMANDS)


def _pause_before_next_call(call: CallStep, error: BaseException) -> timedelta | None:
    """How long the step waits before it is called again; None if its policy, or having none, forbids that."""
    policy = call.command.retry_policy if isinstance(call.command, RunCommand) else None
    calls_made = call.calls_made + 1
    if policy is None or not policy.allows(error, calls_made):
        return None
    return policy.pause_after(calls_made, error)
