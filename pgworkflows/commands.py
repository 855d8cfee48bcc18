"""What a workflow yields: frozen commands, and the `step` object that makes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from inspect import CO_COROUTINE, iscoroutinefunction
from types import FunctionType
from typing import Any, Generic, NoReturn, ParamSpec, TypeAlias, TypeVar, TypeVarTuple, overload
from uuid import UUID

from pgworkflows.durations import Duration, parse_duration, parse_moment, parse_positive_duration
from pgworkflows.limits import checked_identifier, checked_priority, checked_retries
from pgworkflows.retry import RetryPolicy, Wait
from pgworkflows.schemas import event_schema

T = TypeVar("T")
R = TypeVar("R")
I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")

Json: TypeAlias = str | int | float | bool | Mapping[str, Any] | Sequence[Any] | None
"""What an input may be besides a value of its schema: the JSON that such a value is written as."""

MIN_POLL_INTERVAL = timedelta(seconds=1)


@dataclass(frozen=True, eq=False)
class Command(Generic[T]):
    """One durable thing a workflow asks for. `yield` it, or `yield from` it to have the result typed."""

    id: str

    def __iter__(self) -> Generator[Command[Any], Any, T]:
        result: T = yield self
        return result

    def __bool__(self) -> NoReturn:
        raise TypeError(f"the command of step {self.id!r} has no truth value: yield it to get its result")

    @property
    def kind(self) -> str:
        raise NotImplementedError


Steps: TypeAlias = Generator[Command[Any], Any, R]
"""The return annotation of a handler: `def handler(step: Step, input: In) -> Steps[Out]`."""


@dataclass(frozen=True, eq=False)
class RunCommand(Command[T]):
    """Call a function once and keep its result."""

    fn: Callable[..., T]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    retry_policy: RetryPolicy | None = None
    call_timeout: timedelta | None = None

    @property
    def kind(self) -> str:
        return "run"

    def retry(
        self,
        *,
        attempts: int = 3,
        wait: Wait | None = None,
        on: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        not_on: type[BaseException] | tuple[type[BaseException], ...] = (),
    ) -> RunCommand[T]:
        """Call the function up to `attempts` times in all, durably.

        `wait` is a duration or a tenacity wait strategy; by default 1, 2, 4 … seconds, at most 5 minutes, with up
        to 25 % jitter added. `on` and `not_on` are exception classes. Raises ValueError or TypeError.
        """
        return replace(self, retry_policy=RetryPolicy.build(attempts=attempts, wait=wait, on=on, not_on=not_on))

    def timeout(self, duration: Duration) -> RunCommand[T]:
        """Let each attempt take at most `duration`; then the step fails with StepTimeoutError."""
        return replace(self, call_timeout=parse_positive_duration(duration, f"the timeout of step {self.id!r}"))


@dataclass(frozen=True, eq=False)
class WaitForCommand(Command[T]):
    """Wait for a named event; `None` is sent back on timeout."""

    event_name: str
    wait_timeout: timedelta | None = None
    schema: Any = None

    @property
    def kind(self) -> str:
        return "wait_for"


@dataclass(frozen=True, eq=False)
class WaitUntilCommand(Command[None]):
    """Wait until a moment."""

    when: datetime

    @property
    def kind(self) -> str:
        return "wait_until"


@dataclass(frozen=True, eq=False)
class DelayCommand(Command[None]):
    """Wait for a while, counted from when the wait is first stored."""

    duration: timedelta

    @property
    def kind(self) -> str:
        return "delay"


@dataclass(frozen=True, eq=False)
class PauseCommand(Command[None]):
    """Stand still until `resume_workflow`."""

    @property
    def kind(self) -> str:
        return "pause"


@dataclass(frozen=True)
class PollResult(Generic[T]):
    """What a poll ends with: the first truthy result, or `timed_out` and `data=None`."""

    timed_out: bool
    data: T | None


@dataclass(frozen=True, eq=False)
class PollCommand(Command[PollResult[T]], Generic[T]):
    """Call a function every `interval` until it returns something truthy."""

    fn: Callable[..., T]
    args: tuple[Any, ...]
    interval: timedelta
    poll_timeout: timedelta | None = None

    @property
    def kind(self) -> str:
        return "poll"


class Invocable(Generic[I, O]):
    """What a child can be invoked by besides an id: a workflow or a reference. Its subclasses say how."""

    id: str

    def validate_input(self, value: Any) -> tuple[str, Any]:
        """An input as JSON text, and as the handler will see it."""
        raise NotImplementedError

    def load_output(self, text: str) -> O:
        """A stored output as the caller of the workflow will see it."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class InvokeChildCommand(Command[T]):
    """Run another workflow as a child, and wait for its output."""

    workflow_id: str
    workflow: Invocable[Any, T] | None = None
    input: Any = None
    resource_id: str | None = None
    idempotency_key: str | None = None
    priority: int | None = None
    retries: int | None = None
    run_timeout: timedelta | None = None

    @property
    def kind(self) -> str:
        return "invoke_child_workflow"


@dataclass(frozen=True)
class ScheduleContext:
    """The tick a scheduled run was started for."""

    timestamp: datetime


@dataclass(frozen=True)
class StepContext:
    """What a handler may know of its run: `step.context`.

    `attempt` is 1-based and counts executions of the run after failures; `timeline` holds the outputs, by step id,
    of the steps passed so far; `logger` is silent while the run is being replayed.
    """

    run_id: UUID
    workflow_id: str
    resource_id: str | None
    attempt: int
    input: Any
    timeline: Mapping[str, Any]
    schedule: ScheduleContext | None
    logger: logging.LoggerAdapter[logging.Logger]


class Step:
    """Makes the commands of one execution of a run; the first argument of every handler."""

    __slots__ = ("context",)

    def __init__(self, context: StepContext) -> None:
        self.context = context

    def run(self, id: str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> RunCommand[T]:
        """Call `fn(*args, **kwargs)` as the step `id`. The result must be JSON or something pydantic writes as JSON;
        the arguments are not stored."""
        checked_identifier(id, "a step id")
        _check_callable(id, fn)
        return RunCommand(id, fn, args, kwargs)

    @overload
    def wait_for(self, id: str, event_name: str) -> WaitForCommand[Any]: ...
    @overload
    def wait_for(self, id: str, event_name: str, *, schema: type[T]) -> WaitForCommand[T]: ...
    @overload
    def wait_for(self, id: str, event_name: str, *, timeout: Duration) -> WaitForCommand[Any | None]: ...
    @overload
    def wait_for(self, id: str, event_name: str, *, timeout: Duration, schema: type[T]) -> WaitForCommand[T | None]: ...

    def wait_for(
        self, id: str, event_name: str, *, timeout: Duration | None = None, schema: Any = None
    ) -> WaitForCommand[Any]:
        """Wait for the event `event_name`: its data (`{}` if it had none), or `None` once `timeout` has passed.

        `schema` is anything pydantic's TypeAdapter takes, else ConfigurationError; data that does not fit it fails the
        step.
        """
        checked_identifier(id, "a step id")
        checked_identifier(event_name, "an event name")
        limit = None if timeout is None else parse_positive_duration(timeout, f"the timeout of step {id!r}")
        if schema is not None:
            event_schema(schema)
        return WaitForCommand(id, event_name, limit, schema)

    def wait_until(self, id: str, when: datetime | str) -> WaitUntilCommand:
        """Wait until `when`, an aware datetime or an ISO 8601 string with an offset; a past time returns at once."""
        checked_identifier(id, "a step id")
        return WaitUntilCommand(id, parse_moment(when, f"step {id!r}"))

    def delay(self, id: str, duration: Duration) -> DelayCommand:
        """Wait for `duration`."""
        checked_identifier(id, "a step id")
        return DelayCommand(id, parse_duration(duration, f"the delay of step {id!r}"))

    def sleep(self, id: str, duration: Duration) -> DelayCommand:
        """The same as `delay`."""
        return self.delay(id, duration)

    def pause(self, id: str) -> PauseCommand:
        """Stand still, as `paused`, until `resume_workflow`."""
        checked_identifier(id, "a step id")
        return PauseCommand(id)

    def poll(
        self,
        id: str,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        interval: Duration = "30s",
        timeout: Duration | None = None,
    ) -> PollCommand[T]:
        """Call `fn(*args)` now and every `interval` (at least 1 s) until its result is truthy.

        Sends back `PollResult(timed_out, data)`; an exception fails the step.
        """
        checked_identifier(id, "a step id")
        _check_callable(id, fn)
        pace = parse_positive_duration(interval, f"the interval of step {id!r}")
        if pace < MIN_POLL_INTERVAL:
            raise ValueError(f"the interval of step {id!r} is {interval!r}; it must be at least 1 second")
        limit = None if timeout is None else parse_positive_duration(timeout, f"the timeout of step {id!r}")
        return PollCommand(id, fn, args, pace, limit)

    @overload
    def invoke_child_workflow(
        self,
        id: str,
        child: Invocable[I, O],
        input: I | Json = None,
        *,
        resource_id: str | None = None,
        idempotency_key: str | None = None,
        priority: str | int | None = None,
        retries: int | None = None,
        timeout: Duration | None = None,
    ) -> InvokeChildCommand[O]: ...
    @overload
    def invoke_child_workflow(
        self,
        id: str,
        child: str,
        input: Any = None,
        *,
        resource_id: str | None = None,
        idempotency_key: str | None = None,
        priority: str | int | None = None,
        retries: int | None = None,
        timeout: Duration | None = None,
    ) -> InvokeChildCommand[Any]: ...

    def invoke_child_workflow(
        self,
        id: str,
        child: Invocable[Any, Any] | str,
        input: Any = None,
        *,
        resource_id: str | None = None,
        idempotency_key: str | None = None,
        priority: str | int | None = None,
        retries: int | None = None,
        timeout: Duration | None = None,
    ) -> InvokeChildCommand[Any]:
        """Run `child`, a workflow, a reference or an id, as a run of its own, and wait for its output.

        Resource and priority are this run's where they are left out; the other options are those of a start. A child
        that fails or is cancelled throws ChildWorkflowFailedError; an input that does not fit, a key that is taken and
        a singleton in progress fail the step, with nothing started. Invoked by an id alone, the output is plain JSON.
        """
        checked_identifier(id, "a step id")
        if not isinstance(child, str | Invocable):  # pyright: ignore[reportUnnecessaryIsInstance]  (not all check types)
            raise TypeError(f"step {id!r} invokes a workflow, a ref or an id, not {type(child).__name__}")
        return InvokeChildCommand(
            id,
            checked_identifier(child if isinstance(child, str) else child.id, "a workflow id"),
            None if isinstance(child, str) else child,
            input,
            None if resource_id is None else checked_identifier(resource_id, "resource_id"),
            None if idempotency_key is None else checked_identifier(idempotency_key, "idempotency_key"),
            None if priority is None else checked_priority(priority),
            None if retries is None else checked_retries(retries),
            None if timeout is None else parse_positive_duration(timeout, f"the timeout of step {id!r}"),
        )


def _check_callable(step_id: str, fn: object) -> None:
    if type(fn) is FunctionType and not fn.__dict__ and not fn.__code__.co_flags & CO_COROUTINE:
        return  # the usual case, known at once: a replay comes here for each of its steps
    if not callable(fn):
        raise TypeError(f"step {step_id!r} needs a function to call, not {type(fn).__name__}")
    if iscoroutinefunction(fn):
        raise TypeError(f"step {step_id!r} has an async function; step functions are synchronous for now")
