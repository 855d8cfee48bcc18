"""Failures: how an exception is stored, what the handler sees of it, and whether another execution may help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import StackSummary, TracebackException, walk_tb
from types import GeneratorType
from uuid import UUID

from pgworkflows.decisions import Fail
from pgworkflows.errors import (
    ChildWorkflowFailedError,
    DuplicateStepError,
    InvalidInputError,
    NonDeterminismError,
    SerializationError,
    StepFailedError,
    StepTimeoutError,
    WorkflowEngineError,
    WorkflowTimeoutError,
)
from pgworkflows.history import ChildEnd, ErrorInfo, StoredChild, StoredStep
from pgworkflows.limits import shortened
from pgworkflows.runs import RunStatus

FINAL = (NonDeterminismError, DuplicateStepError, SerializationError, InvalidInputError, WorkflowTimeoutError)
"""Failures that another execution of the run would only repeat."""

VERBS = {RunStatus.FAILED: "failed", RunStatus.CANCELLED: "was cancelled"}

_FINAL_NAMES = frozenset(kind.__name__ for kind in FINAL)
_PACKAGE = Path(__file__).parent


def error_info(error: BaseException, step_id: str | None = None) -> ErrorInfo:
    """An exception as it is stored, its traceback beginning in the user's code."""
    text, frames = _read(_message, error, "text"), _read(_traceback, error, "traceback")
    return ErrorInfo(type(error).__name__, text, frames, step_id)


def outline(error: BaseException) -> str:
    """Where an exception came from, and what it was raised from, without its words: those may hold anything. Not the
    traceback itself, whose frames some log handlers send away with their variables."""
    return "\n".join(
        f"{type(each).__name__}\n{''.join(StackSummary.extract(walk_tb(each.__traceback__)).format())}".strip()
        for each in _linked(error)
    )


def step_failure(step_id: str, error: ErrorInfo) -> StepFailedError:
    """The exception that the handler sees for a stored failure."""
    child = error.child
    if child is not None:
        return ChildWorkflowFailedError(
            error.message,
            step_id=step_id,
            child_run_id=UUID(child.run_id),
            status=RunStatus(child.status),
            error=child.error,
        )
    kind = StepTimeoutError if error.type == "StepTimeoutError" else StepFailedError
    return kind(error.message, step_id=step_id, error_type=error.type, traceback=error.traceback)


def child_failure(child: StoredChild) -> ErrorInfo:
    """What a step tells of its child that has not completed."""
    said = "" if child.error is None else f" with {child.error.get('type')}: {child.error.get('message')}"
    return ErrorInfo(
        ChildWorkflowFailedError.__name__,
        f"child run {child.run_id} of workflow {child.workflow_id!r} {VERBS[child.status]}{said}",
        None,
        child.step_id,
        ChildEnd(str(child.run_id), child.status, child.error),
    )


def refusal(error: WorkflowEngineError, step_id: str | None = None) -> Fail:
    """The run cannot go on: `error` says why and what to mend."""
    return Fail(ErrorInfo(type(error).__name__, error.message, None, step_id), retryable=False, cause=error)


def escaped(raised: BaseException, thrown: Sequence[StepFailedError], *, early: bool) -> Fail:
    """The handler raised. A failure that was thrown in and got out, also wrapped in another error, is its step's, and a
    retry takes it back. Not so `early`, with steps of the history to come: it was caught once, and they came of it."""
    for failure in thrown:
        if failure is raised:
            step_id = None if early else failure.step_id
            error = ErrorInfo(failure.error_type, failure.message, failure.traceback, step_id)
            return Fail(error, retryable=not _is_final(error), cause=raised)
    linked = set(map(id, _linked(raised)))
    named = [failure.step_id for failure in thrown if id(failure) in linked and not early]
    info = error_info(raised, named[-1] if named else None)
    return Fail(info, retryable=not isinstance(raised, FINAL), cause=raised)


def changed(ahead: StoredStep, what_it_did: str) -> NonDeterminismError:
    """The handler does not do what it did: `ahead` is the step of the history at which it came off."""
    return NonDeterminismError(
        f"step {ahead.position} of the history is {ahead.kind} {ahead.step_id!r}, but the handler {what_it_did}: "
        f"mend the handler so that it does what it did, then retry the run"
    )


def used_twice(step_id: str) -> DuplicateStepError:
    """The handler gave two steps one id."""
    return DuplicateStepError(
        f"step id {step_id!r} is used a second time in this run; give each step an id of its own, "
        f"for example with a number in it"
    )


def not_a_command(value: object) -> TypeError:
    """What the handler gets at a `yield` of something else."""
    if isinstance(value, GeneratorType):
        return TypeError("a handler must yield commands, not a generator: use 'yield from' for it")
    return TypeError(f"a handler must yield commands such as step.run(…), not {type(value).__name__}")


def _is_final(error: ErrorInfo) -> bool:
    """Whether a stored failure is one of `FINAL`, and not a class of the user's that bears the name of one."""
    ours = error.traceback is None or f"{StepFailedError.__module__}.{error.type}" in error.traceback
    return error.type in _FINAL_NAMES and ours


def _linked(error: BaseException) -> list[BaseException]:
    """The error, what it was raised from and what it was raised while handling; `from None` only hides that."""
    found: dict[int, BaseException] = {}
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is not None and id(each) not in found:
            found[id(each)] = each
            pending += (each.__cause__, each.__context__)
    return [*found.values()]


def _read(part: Callable[[BaseException], str], error: BaseException, what: str) -> str:
    """What `part` makes of an error of the user's, whose methods may raise in their turn."""
    try:
        return shortened(part(error))
    except Exception as broken:
        return f"<its {what} cannot be read: {type(broken).__name__}>"


def _message(error: BaseException) -> str:
    return str(error.message if isinstance(error, WorkflowEngineError) else error)


def _traceback(error: BaseException) -> str:
    found = TracebackException.from_exception(error)
    pending: list[TracebackException | None] = [found]
    while pending:
        each = pending.pop()
        if each is not None:
            each.stack = _from_the_users_code_on(each.stack)
            pending += (each.__cause__, each.__context__)
    return "".join(found.format())


def _from_the_users_code_on(stack: StackSummary) -> StackSummary:
    """`stack` without the frames by which the library got to the user's code, if it did."""
    for index, frame in enumerate(stack):
        if not Path(frame.filename).is_relative_to(_PACKAGE):
            return StackSummary.from_list(stack[index:])
    return stack
