"""Advance a generator against its history: what was stored is sent, the first thing that was not is decided.

Pure: no database, no clock, no thread. Time is the moment of the claim, given by the database: everything that was
received by then is in the history or the mailbox, so a wait is judged by what was there at that moment.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import GeneratorType
from typing import Any, NamedTuple, TypeAlias, cast

from pgworkflows.commands import (
    Command,
    DelayCommand,
    PauseCommand,
    PollCommand,
    PollResult,
    RunCommand,
    WaitForCommand,
    WaitUntilCommand,
)
from pgworkflows.errors import (
    DuplicateStepError,
    InvalidInputError,
    NonDeterminismError,
    SerializationError,
    StepFailedError,
    StepTimeoutError,
    WorkflowEngineError,
)
from pgworkflows.history import ErrorInfo, StepStatus, StoredEvent, StoredStep
from pgworkflows.serialization import PLAIN, Codec, codec_for, codec_for_return

NO_RETRY = frozenset(
    {"NonDeterminismError", "DuplicateStepError", "SerializationError", "InvalidInputError", "WorkflowTimeoutError"}
)
"""Failures that another execution of the run would only repeat."""

ANY_NUMBER_OF_CLOSES = 100


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


@dataclass(frozen=True, slots=True)
class CallStep:
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
    """Let go of the run until something wakes it; `wait_kind` is event, timer, poll, pause or retry."""

    step_id: str
    wait_kind: str
    wait_event: str | None = None


@dataclass(frozen=True, slots=True)
class Complete:
    """The handler returned; `output` is JSON text."""

    output: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The handler raised, or cannot be replayed. `error.step_id` names the step whose failure got out of it."""

    error: ErrorInfo
    retryable: bool


Decision: TypeAlias = CallStep | Suspend | Complete | Fail


class Turn(NamedTuple):
    """One advance of the generator: what is to be stored, and what is to be done once it is."""

    writes: tuple[StepWrite, ...]
    events: tuple[EventTaken, ...]
    decision: Decision


@dataclass(frozen=True, slots=True)
class Returned:
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
        encode_output: Callable[[Any], str] = lambda value: PLAIN.encode(value, "the output"),
    ) -> None:
        self._generator = generator
        self._history = [step for step in history if not step.cleared]
        self._cleared: Mapping[str, StoredStep] = {step.step_id: step for step in history if step.cleared}
        self._mailbox = list(mailbox)
        self._as_of = as_of
        self._trail = trail
        self._encode_output = encode_output
        self._position = 0
        self._seen: set[str] = set()
        self._thrown: list[StepFailedError] = []
        self._writes: list[StepWrite] = []
        self._events: list[EventTaken] = []

    def begin(self) -> Turn:
        """Replay the history and decide what comes first after it."""
        return self._turn(self._advance(None, None))

    def resolve(self, call: CallStep, outcome: StepOutcome) -> Turn:
        """Take the outcome of a call that was decided, and decide what comes next."""
        command = call.command
        match outcome:
            case Raised():
                decision = self._raised(call, outcome)
            case Returned() if isinstance(command, RunCommand):
                self._write(_call_row(call, StepStatus.COMPLETED, outcome.elapsed_s, output=outcome.output))
                decision = self._next(command.id, outcome.value)
            case Returned():
                assert isinstance(command, PollCommand)
                decision = self._polled(call, command, outcome)
        return self._turn(decision)

    def close(self) -> None:
        """Let the generator go; whatever it does in its `finally` blocks, nothing comes out."""
        for _ in range(ANY_NUMBER_OF_CLOSES):
            try:
                self._generator.close()
                return
            except BaseException:  # noqa: S112  (there is nobody left to tell)
                # A `yield` in a `finally` is a RuntimeError here, and the generator waits at it: once more.
                continue

    def _turn(self, decision: Decision) -> Turn:
        turn = Turn(tuple(self._writes), tuple(self._events), decision)
        self._writes.clear()
        self._events.clear()
        if not isinstance(decision, CallStep):
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
        self._thrown.append(error)
        self._position += 1
        return self._advance(None, error)

    def _advance(self, value: Any, error: BaseException | None) -> Decision:
        """Resume the generator until it asks for something that is not in the history."""
        while True:
            self._trail.replaying = self._position < len(self._history)
            try:
                command: object = self._generator.send(value) if error is None else self._generator.throw(error)
            except StopIteration as stop:
                return self._returned(stop.value)
            except BaseException as raised:
                return self._escaped(raised)
            if not isinstance(command, Command):
                value, error = None, _not_a_command(command)
                continue
            answer = self._answer(command)
            if not isinstance(answer, tuple):
                return answer
            self._position += 1
            value, error = answer
            if isinstance(error, StepFailedError):
                self._thrown.append(error)
            else:
                self._trail.timeline[command.id] = value

    def _answer(self, command: Command[Any]) -> Decision | tuple[Any, StepFailedError | None]:
        """What a command gets: a decision, or the result or failure that is known already."""
        stored = self._history[self._position] if self._position < len(self._history) else None
        if stored is not None and (stored.step_id != command.id or stored.kind != command.kind):
            return _failure(
                NonDeterminismError(
                    f"step {self._position} of the history is {stored.kind} {stored.step_id!r}, but the handler asked "
                    f"for {command.kind} {command.id!r}: mend the handler so that it does what it did, then retry the run"
                )
            )
        if command.id in self._seen:
            return _failure(
                DuplicateStepError(
                    f"step id {command.id!r} is used a second time in this run; give each step an id of its own, "
                    f"for example with a number in it"
                )
            )
        self._seen.add(command.id)
        if stored is not None and stored.status is StepStatus.COMPLETED:
            return self._stored_result(command, stored.output)
        if stored is not None and stored.status is StepStatus.FAILED:
            assert stored.error is not None
            return None, step_failure(command.id, stored.error)
        match command:
            case RunCommand():
                return self._call(command, stored)
            case PollCommand():
                return self._poll(cast("PollCommand[Any]", command), stored)
            case WaitForCommand():
                return self._wait_for(command, stored)
            case WaitUntilCommand():
                return self._wait(
                    command,
                    stored,
                    StepWrite(self._position, command.id, command.kind, StepStatus.WAITING, wake_at=command.when),
                    over=command.when <= self._as_of,
                )
            case DelayCommand():
                return self._wait(
                    command,
                    stored,
                    StepWrite(
                        self._position, command.id, command.kind, StepStatus.WAITING, wake_after=command.duration
                    ),
                    over=not command.duration,
                )
            case PauseCommand():
                if stored is None:
                    self._write(StepWrite(self._position, command.id, command.kind, StepStatus.WAITING))
                return Suspend(command.id, "pause")
            case _:
                raise TypeError(f"commands of type {type(command).__name__} are unknown")

    def _stored_result(self, command: Command[Any], output: str | None) -> Fail | tuple[Any, StepFailedError | None]:
        text = "null" if output is None else output
        try:
            return decoded(command, text), None
        except InvalidInputError as error:
            return None, step_failure(command.id, ErrorInfo("InvalidInputError", str(error), None, command.id))
        except SerializationError as error:
            return _failure(error, command.id)

    def _call(self, command: RunCommand[Any], stored: StoredStep | None) -> CallStep | Suspend:
        if stored is None:
            stored = self._cleared.get(command.id)
            if stored is None:
                return CallStep(self._position, command)
        if stored.wake_at is not None and stored.wake_at > self._as_of:
            return Suspend(command.id, "retry")
        return CallStep(
            self._position,
            command,
            attempt=stored.attempts + 1,
            calls_made=stored.attempts - stored.prior_attempts,
            stored=stored,
        )

    def _poll(self, command: PollCommand[Any], stored: StoredStep | None) -> CallStep | Suspend:
        if stored is None:
            stored = self._cleared.get(command.id)
            if stored is None:
                return CallStep(self._position, command)
        if stored.wake_at is not None and stored.wake_at > self._as_of:
            return Suspend(command.id, "poll")
        up = stored.deadline_at is not None and stored.deadline_at <= self._as_of
        return CallStep(self._position, command, attempt=stored.attempts + 1, stored=stored, last_poll=up)

    def _wait_for(
        self, command: WaitForCommand[Any], stored: StoredStep | None
    ) -> Decision | tuple[Any, StepFailedError | None]:
        deadline = None if stored is None else stored.wake_at
        for event in self._mailbox:
            if event.name == command.event_name and (deadline is None or event.received_at <= deadline):
                self._mailbox.remove(event)
                self._events.append(EventTaken(event.id, command.id))
                return self._received(command, event)
        if deadline is not None and deadline <= self._as_of:
            self._write(_done(self._position, command, "null"))
            return None, None
        if stored is None:
            self._write(
                StepWrite(
                    self._position,
                    command.id,
                    command.kind,
                    StepStatus.WAITING,
                    wake_after=command.wait_timeout,
                    event_name=command.event_name,
                )
            )
        return Suspend(command.id, "event", command.event_name)

    def _received(self, command: WaitForCommand[Any], event: StoredEvent) -> tuple[Any, StepFailedError | None]:
        try:
            value = decoded(command, event.data)
        except (InvalidInputError, SerializationError) as error:
            info = ErrorInfo("InvalidInputError", str(error), None, command.id)
            self._write(_done(self._position, command, None, info))
            return None, step_failure(command.id, info)
        self._write(_done(self._position, command, event.data))
        return value, None

    def _wait(
        self, command: Command[Any], stored: StoredStep | None, row: StepWrite, *, over: bool
    ) -> Suspend | tuple[Any, None]:
        """A timer. The stored moment stands, whatever the handler computes now."""
        if stored is not None:
            over = stored.wake_at is not None and stored.wake_at <= self._as_of
        if over:
            self._write(_done(self._position, command, "null"))
            return None, None
        if stored is None:
            self._write(row)
        return Suspend(command.id, "timer")

    def _raised(self, call: CallStep, outcome: Raised) -> Decision:
        command = call.command
        policy = command.retry_policy if isinstance(command, RunCommand) else None
        calls_made = call.calls_made + 1
        if policy is not None and outcome.info.type not in NO_RETRY and policy.allows(outcome.error, calls_made):
            pause = policy.pause_after(calls_made, outcome.error)
            row = _call_row(call, StepStatus.RETRYING, outcome.elapsed_s, error=outcome.info)
            self._write(row._replace(wake_after=pause))
            return Suspend(command.id, "retry")
        self._write(_call_row(call, StepStatus.FAILED, outcome.elapsed_s, error=outcome.info))
        return self._throw(step_failure(command.id, outcome.info))

    def _polled(self, call: CallStep, command: PollCommand[Any], outcome: Returned) -> Decision:
        if outcome.value or call.last_poll:
            result: PollResult[Any] = PollResult(not outcome.value, outcome.value or None)
            output = f'{{"timed_out":false,"data":{outcome.output}}}' if outcome.value else POLL_TIMED_OUT
            self._write(_call_row(call, StepStatus.COMPLETED, outcome.elapsed_s, output=output))
            return self._next(command.id, result)
        row = _call_row(call, StepStatus.WAITING, outcome.elapsed_s)
        deadline = None if call.stored is None else call.stored.deadline_at
        self._write(
            row._replace(
                wake_after=command.interval,
                deadline_at=deadline,
                deadline_after=command.poll_timeout if deadline is None else None,
            )
        )
        return Suspend(command.id, "poll")

    def _returned(self, value: Any) -> Decision:
        if self._position < len(self._history):
            ahead = self._history[self._position]
            return _failure(
                NonDeterminismError(
                    f"the handler returned, but step {ahead.position} of the history is "
                    f"{ahead.kind} {ahead.step_id!r}: mend the handler so that it does what it did, then retry the run"
                )
            )
        try:
            return Complete(self._encode_output(value))
        except SerializationError as error:
            return _failure(error)

    def _escaped(self, raised: BaseException) -> Fail:
        """The handler raised. A step's failure that got out, also wrapped in another error, is named by its step."""
        chain = _chain(raised)
        step_id = next((thrown.step_id for thrown in reversed(self._thrown) if thrown in chain), None)
        if isinstance(raised, StepFailedError) and raised in self._thrown:
            error = ErrorInfo(raised.error_type, raised.message, raised.traceback, raised.step_id)
        else:
            error = error_info(raised, step_id)
        return Fail(error, retryable=error.type not in NO_RETRY)


POLL_TIMED_OUT = '{"timed_out":true,"data":null}'


def decoded(command: Command[Any], output: str) -> Any:
    """A stored output as its command's annotation says. Raises SerializationError; InvalidInputError for events."""
    match command:
        case RunCommand(fn=fn):
            return codec_for_return(fn).decode(output, f"the result of step {command.id!r}")
        case PollCommand(fn=fn):
            return _decoded_poll(command.id, output, codec_for_return(fn))
        case WaitForCommand(schema=schema) if schema is not None and output != "null":
            try:
                return codec_for(schema).decode(output, f"the event of step {command.id!r}")
            except SerializationError as error:
                raise InvalidInputError(str(error)) from error
        case WaitForCommand():
            return PLAIN.decode(output, f"the event of step {command.id!r}")
        case _:
            return None


def _decoded_poll(step_id: str, output: str, codec: Codec) -> PollResult[Any]:
    what = f"the result of step {step_id!r}"
    plain = PLAIN.decode(output, what)
    if plain["timed_out"]:
        return PollResult(True, None)
    if codec is PLAIN:
        return PollResult(False, plain["data"])
    return PollResult(False, codec.decode(PLAIN.encode(plain["data"], what), what))


def step_failure(step_id: str, error: ErrorInfo) -> StepFailedError:
    """The exception that the handler sees for a stored failure."""
    kind = StepTimeoutError if error.type == "StepTimeoutError" else StepFailedError
    return kind(error.message, step_id=step_id, error_type=error.type, traceback=error.traceback)


def error_info(error: BaseException, step_id: str | None = None) -> ErrorInfo:
    """An exception as it is stored: without what PostgreSQL cannot keep, and without the library's own frames."""
    frames = "".join(traceback.format_exception(error))
    return ErrorInfo(type(error).__name__, _storable(_message(error)), _storable(frames), step_id)


def _message(error: BaseException) -> str:
    if isinstance(error, WorkflowEngineError):
        return error.message
    try:
        return str(error)
    except Exception as broken:
        return f"<its text cannot be read: {type(broken).__name__}>"


def _storable(text: str) -> str:
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def _failure(error: WorkflowEngineError, step_id: str | None = None) -> Fail:
    return Fail(ErrorInfo(type(error).__name__, error.message, None, step_id), retryable=False)


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error and what it was raised from, or while handling."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def _not_a_command(value: object) -> TypeError:
    if isinstance(value, GeneratorType):
        return TypeError("a handler must yield commands, not a generator: use 'yield from' for it")
    return TypeError(f"a handler must yield commands such as step.run(…), not {type(value).__name__}")


def _done(position: int, command: Command[Any], output: str | None, error: ErrorInfo | None = None) -> StepWrite:
    status = StepStatus.COMPLETED if error is None else StepStatus.FAILED
    name = command.event_name if isinstance(command, WaitForCommand) else None
    return StepWrite(position, command.id, command.kind, status, output, error, event_name=name)


def _call_row(
    call: CallStep, status: StepStatus, elapsed_s: float, output: str | None = None, error: ErrorInfo | None = None
) -> StepWrite:
    prior = 0 if call.stored is None else call.stored.prior_attempts
    return StepWrite(
        call.position, call.command.id, call.command.kind, status, output, error, call.attempt, prior, elapsed_s
    )
