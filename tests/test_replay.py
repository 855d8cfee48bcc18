"""Replay by example: what a handler is sent, what is decided and written, and what can never happen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, RootModel
from tenacity.wait import wait_base, wait_fixed

from pgworkflows.commands import Command, PollResult, RunCommand, Step, StepContext, Steps
from pgworkflows.decisions import CallStep, Complete, EventTaken, Fail, Raised, Returned, StepWrite, Suspend, Turn
from pgworkflows.errors import (
    DuplicateStepError,
    InvalidInputError,
    SerializationError,
    StepFailedError,
    StepTimeoutError,
    WorkflowEngineError,
    WorkflowTimeoutError,
)
from pgworkflows.failures import error_info
from pgworkflows.history import ErrorInfo, StepKind, StepStatus, StoredEvent, StoredStep
from pgworkflows.replay import Replay, Trail
from pgworkflows.serialization import codec_for_return

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
Handler = Callable[[Step], Steps[Any]]


def work(value: Any = None) -> Any:
    return value


class Told:
    """One execution of a handler: its replay, and what the handler sees of it."""

    def __init__(
        self,
        handler: Handler,
        history: Sequence[StoredStep] = (),
        mailbox: Sequence[StoredEvent] = (),
        as_of: datetime = NOW,
    ) -> None:
        self.trail = Trail()
        context = StepContext(
            run_id=UUID(int=1),
            workflow_id="told",
            resource_id=None,
            attempt=1,
            input=None,
            timeline=MappingProxyType(self.trail.timeline),
            schedule=None,
            logger=logging.LoggerAdapter(logging.getLogger("told")),
        )
        self.replay = Replay(handler(Step(context)), history=history, mailbox=mailbox, as_of=as_of, trail=self.trail)

    def begin(self) -> Turn:
        return self.replay.begin()

    def returns(self, call: CallStep, value: Any) -> Turn:
        output, decoded = codec_for_return(call.command.fn).roundtrip(value, "the result")
        return self.replay.resolve(call, Returned(output, decoded))

    def raises(self, call: CallStep, error: BaseException) -> Turn:
        return self.replay.resolve(call, Raised(error, error_info(error, call.command.id)))


def begin(
    handler: Handler,
    history: Sequence[StoredStep] = (),
    mailbox: Sequence[StoredEvent] = (),
    as_of: datetime = NOW,
) -> Turn:
    return Told(handler, history, mailbox, as_of).begin()


def call_of(turn: Turn) -> CallStep:
    assert isinstance(turn.decision, CallStep)
    return turn.decision


def failure_of(turn: Turn) -> Fail:
    assert isinstance(turn.decision, Fail)
    return turn.decision


def stored(*steps: StoredStep | tuple[str, str]) -> list[StoredStep]:
    """A history: steps as they are, at their places, or (id, output) for completed runs."""
    given = [
        step
        if isinstance(step, StoredStep)
        else StoredStep(0, step[0], StepKind.RUN, StepStatus.COMPLETED, step[1], None, 1)
        for step in steps
    ]
    return [step._replace(position=position) for position, step in enumerate(given)]


def waiting(step_id: str, kind: StepKind, wake_at: datetime | None = None, **fields: Any) -> StoredStep:
    return StoredStep(0, step_id, kind, StepStatus.WAITING, wake_at=wake_at, **fields)


def failed(step_id: str, kind: StepKind = StepKind.RUN, error: ErrorInfo | None = None) -> StoredStep:
    return StoredStep(0, step_id, kind, StepStatus.FAILED, None, error or ErrorInfo("OSError", "no"), 1)


def taken_back(step_id: str, attempts: int = 1, kind: StepKind = StepKind.RUN) -> StoredStep:
    """A failure that a retry of the run has cleared."""
    return StoredStep(0, step_id, kind, StepStatus.RETRYING, None, ErrorInfo("OSError", "no"), attempts, attempts)


def mail(*events: tuple[str, str, datetime]) -> list[StoredEvent]:
    return [StoredEvent(number, *event) for number, event in enumerate(events, 1)]


def two_steps(step: Step) -> Steps[Any]:
    first = yield from step.run("first", work)
    second = yield step.run("second", work, first)
    return [first, second]


# Steps ---------------------------------------------------------------------------------------------------------------


def test_the_first_command_is_decided_and_nothing_is_written() -> None:
    turn = begin(two_steps)
    assert turn.writes == ()
    assert (call_of(turn).command.id, call_of(turn).position, call_of(turn).attempt) == ("first", 0, 1)


def test_an_outcome_is_written_in_the_turn_that_decides_what_comes_next() -> None:
    told = Told(two_steps)
    turn = told.returns(call_of(told.begin()), 1)
    assert turn.writes == (StepWrite(0, "first", "run", "completed", "1", attempts=1),)
    assert (call_of(turn).command.id, call_of(turn).command.args, call_of(turn).position) == ("second", (1,), 1)


def test_the_last_outcome_and_the_end_are_one_turn() -> None:
    told = Told(two_steps, stored(("first", "1")))
    turn = told.returns(call_of(told.begin()), 2)
    assert [row.step_id for row in turn.writes] == ["second"]
    assert turn.decision == Complete("[1,2]")


def test_what_is_stored_is_sent_and_not_called_again() -> None:
    turn = begin(two_steps, stored(("first", '{"b":1,"a":1e16}'), ("second", "2")))
    assert turn == Turn((), (), Complete('[{"b":1,"a":1e+16},2]'))


class Money(BaseModel):
    amount: Decimal
    paid_at: datetime


@dataclass
class Point:
    x: int
    tags: tuple[str, ...]


def plain_result() -> Any: ...
def a_model() -> Money: ...  # type: ignore[empty-body]
def points() -> list[Point]: ...  # type: ignore[empty-body]
def a_moment() -> datetime: ...  # type: ignore[empty-body]
def maybe_decimal() -> Decimal | None: ...
def a_set() -> set[UUID]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("fn", "value"),
    [
        (plain_result, {"b": [1, 1.5, None], "a": "ä"}),
        (plain_result, (1, 2)),
        (a_model, Money(amount=Decimal("1.10"), paid_at=NOW)),
        (points, [Point(1, ("a", "b"))]),
        (a_moment, NOW),
        (maybe_decimal, Decimal("0.1")),
        (maybe_decimal, None),
        (a_set, {UUID(int=7)}),
    ],
)
def test_the_first_run_sees_what_a_replay_sees(fn: Callable[[], Any], value: Any) -> None:
    saw: list[Any] = []

    def handler(step: Step) -> Steps[None]:
        saw.append((yield step.run("typed", fn)))
        saw.append((yield step.poll("polled", fn)))
        saw.append(dict(step.context.timeline))

    told = Told(handler)
    turn = told.returns(call_of(told.begin()), value)
    rows = list(turn.writes)
    polled = call_of(turn)
    rows += told.returns(polled._replace(last_poll=True), value).writes
    first, saw = saw, []
    history = [
        StoredStep(row.position, row.step_id, StepKind(row.kind), StepStatus(row.status), row.output) for row in rows
    ]
    assert isinstance(begin(handler, history).decision, Complete)
    assert repr(saw) == repr(first)
    assert first[1] == PollResult(not first[0], first[0] or None)


def test_a_handler_that_ends_without_a_step_completes() -> None:
    def handler(step: Step) -> Steps[str]:
        yield from ()
        return "done"

    assert begin(handler).decision == Complete('"done"')


def test_an_output_that_is_no_json_fails_the_run_for_good() -> None:
    def handler(step: Step) -> Steps[float]:
        yield step.run("first", work)
        return float("nan")

    told = Told(handler)
    turn = told.returns(call_of(told.begin()), 1)
    assert [row.status for row in turn.writes] == ["completed"]
    assert failure_of(turn).error.type == "SerializationError"
    assert not failure_of(turn).retryable


def test_a_stored_result_that_fits_no_more_fails_the_run_and_writes_nothing() -> None:
    def handler(step: Step) -> Steps[None]:
        yield step.run("typed", a_moment)

    turn = begin(handler, stored(("typed", '"not a date"')))
    assert (turn.writes, failure_of(turn).retryable) == ((), False)
    assert failure_of(turn).error.type == "SerializationError"
    assert "let the annotation take what earlier code has stored" in failure_of(turn).error.message


# Failures and retries of steps ---------------------------------------------------------------------------------------


def retried_step(step: Step) -> Steps[Any]:
    return (yield step.run("shaky", work).retry(attempts=3, wait=5, not_on=KeyError))


def test_a_step_that_may_be_retried_lets_go_of_the_run_until_then() -> None:
    told = Told(retried_step)
    turn = told.raises(call_of(told.begin()), OSError("no"))
    [row] = turn.writes
    assert (row.status, row.attempts, row.wake_after) == ("retrying", 1, 5 * SECOND)
    assert row.error is not None
    assert row.error.type == "OSError"
    assert turn.decision == Suspend("shaky", "retry")


@pytest.mark.parametrize(("attempts", "prior", "calls_made"), [(1, 0, 1), (2, 0, 2), (5, 4, 1), (4, 4, 0)], ids=str)
def test_attempts_are_never_reset_but_a_policy_counts_from_the_retry_of_the_run(
    attempts: int, prior: int, calls_made: int
) -> None:
    before = StoredStep(
        0, "shaky", StepKind.RUN, StepStatus.RETRYING, None, ErrorInfo("OSError", "no"), attempts, prior, NOW
    )
    told = Told(retried_step, [before])
    call = call_of(told.begin())
    assert (call.attempt, call.calls_made) == (attempts + 1, calls_made)
    [row] = told.raises(call, OSError("again")).writes
    assert (row.attempts, row.prior_attempts) == (attempts + 1, prior)
    assert row.status == ("retrying" if calls_made < 2 else "failed")


def test_a_retry_that_is_not_due_yet_is_waited_for_again() -> None:
    early = StoredStep(0, "shaky", StepKind.RUN, StepStatus.RETRYING, None, None, 1, 0, NOW + SECOND)
    assert begin(retried_step, [early]) == Turn((), (), Suspend("shaky", "retry"))


def test_an_error_that_the_policy_does_not_take_fails_the_step_at_once() -> None:
    told = Told(retried_step)
    turn = told.raises(call_of(told.begin()), KeyError("x"))
    assert [row.status for row in turn.writes] == ["failed"]
    assert failure_of(turn).error.type == "KeyError"
    assert failure_of(turn).retryable


def test_what_cannot_be_stored_is_not_called_again() -> None:
    told = Told(retried_step)
    turn = told.raises(call_of(told.begin()), SerializationError("NaN"))
    assert [row.status for row in turn.writes] == ["failed"]
    assert not failure_of(turn).retryable


def test_an_error_of_the_users_that_bears_a_name_of_ours_is_retried() -> None:
    class InvalidInputError(Exception):
        pass

    told = Told(retried_step)
    turn = told.raises(call_of(told.begin()), InvalidInputError("theirs"))
    assert [row.status for row in turn.writes] == ["retrying"]

    def handler(step: Step) -> Steps[None]:
        yield step.run("shaky", work)

    told = Told(handler)
    try:
        raise InvalidInputError("theirs")
    except InvalidInputError as error:
        turn = told.raises(call_of(told.begin()), error)
    assert failure_of(turn).retryable
    assert failure_of(begin(handler, [StoredStep(0, *turn.writes[0][1:6], 1)])).retryable  # type: ignore[arg-type]  # a row's fields are a stored step's

    def raising(step: Step) -> Steps[None]:
        yield step.run("first", work)
        raise InvalidInputError("theirs")

    assert failure_of(begin(raising, stored(("first", "1")))).retryable


class Broken(wait_base):
    def __call__(self, retry_state: Any) -> float:
        raise ZeroDivisionError("the strategy")


def test_a_strategy_that_fails_fails_its_step() -> None:
    def handler(step: Step) -> Steps[str]:
        try:
            yield step.run("shaky", work).retry(wait=Broken())
        except StepFailedError as error:
            return error.error_type
        return "not reached"

    told = Told(handler)
    turn = told.raises(call_of(told.begin()), OSError("the step's"))
    assert [row.status for row in turn.writes] == ["failed"]
    assert turn.decision == Complete('"ValueError"')
    error = turn.writes[0].error
    assert error is not None
    assert "the strategy" in error.message
    assert "it was asked after OSError: the step's" in (error.traceback or "")


def test_a_failed_step_is_thrown_where_it_was_asked_for() -> None:
    seen: list[StepFailedError] = []

    def handler(step: Step) -> Steps[str]:
        try:
            yield step.run("bad", work)
        except StepFailedError as error:
            seen.append(error)
        return "went on"

    told = Told(handler)
    turn = told.raises(call_of(told.begin()), OSError("no"))
    assert turn.decision == Complete('"went on"')
    assert turn.writes[0].status == "failed"
    again = begin(handler, stored(failed("bad")))
    assert again == Turn((), (), Complete('"went on"'))
    first, second = seen
    assert (first.step_id, first.error_type, first.message) == ("bad", "OSError", "no")
    assert (second.step_id, second.error_type, second.message) == ("bad", "OSError", "no")
    assert str(first) == "step 'bad' failed: OSError: no"


def test_a_step_past_its_timeout_is_a_step_timeout_error_also_on_replay() -> None:
    def handler(step: Step) -> Steps[str]:
        try:
            yield step.run("slow", work)
        except StepTimeoutError:
            return "late"
        return "not reached"

    error = StepTimeoutError("too long", step_id="slow", error_type="StepTimeoutError")
    told = Told(handler)
    assert told.raises(call_of(told.begin()), error).decision == Complete('"late"')
    assert begin(handler, stored(failed("slow", error=error_info(error)))).decision == Complete('"late"')


# Which failure a retry of the run takes back -------------------------------------------------------------------------


def uncaught(step: Step) -> Steps[None]:
    yield step.run("bad", work)


def wrapped(step: Step) -> Steps[None]:
    try:
        yield step.run("bad", work)
    except StepFailedError as error:
        raise LookupError("wrapped") from error


def hidden(step: Step) -> Steps[None]:
    try:
        yield step.run("bad", work)
    except StepFailedError:
        raise LookupError("wrapped") from None


def in_passing(step: Step) -> Steps[None]:
    try:
        yield step.run("bad", work)
    except StepFailedError:
        raise LookupError("wrapped")  # noqa: B904  (that is the case)


def wrapped_twice(step: Step) -> Steps[None]:
    try:
        yield from wrapped(step)
    except LookupError as error:
        raise LookupError("wrapped") from error


@pytest.mark.parametrize("handler", [wrapped, hidden, in_passing, wrapped_twice])
def test_a_failure_that_gets_out_wrapped_is_its_steps(handler: Handler) -> None:
    told = Told(handler)
    for turn in (told.raises(call_of(told.begin()), OSError("no")), begin(handler, stored(failed("bad")))):
        failure = failure_of(turn)
        assert (failure.error.type, failure.error.message, failure.error.step_id) == ("LookupError", "wrapped", "bad")
        assert failure.retryable


def test_an_uncaught_failure_shows_the_steps_own_exception() -> None:
    told = Told(uncaught)
    turn = told.raises(call_of(told.begin()), OSError("no"))
    assert turn.writes[0].error == failure_of(turn).error
    assert (failure_of(turn).error.type, failure_of(turn).error.step_id) == ("OSError", "bad")


def test_a_failure_that_was_caught_is_nobodys_when_the_handler_raises_later() -> None:
    def handler(step: Step) -> Steps[None]:
        with suppress(StepFailedError):
            yield step.run("bad", work)
        raise LookupError("something else")

    assert failure_of(begin(handler, stored(failed("bad")))).error.step_id is None


def test_of_two_failures_the_one_that_got_out_is_named() -> None:
    def undone(step: Step) -> Steps[None]:
        try:
            yield step.run("charge", work)
        except StepFailedError:
            yield step.run("refund", work)

    def reraised(step: Step) -> Steps[None]:
        try:
            yield step.run("charge", work)
        except StepFailedError:
            with suppress(StepFailedError):
                yield step.run("refund", work)
            raise

    def undone_and_wrapped(step: Step) -> Steps[None]:
        try:
            yield from undone(step)
        except StepFailedError as error:
            raise LookupError("wrapped") from error

    history = stored(failed("charge"), failed("refund"))
    assert failure_of(begin(undone, history)).error.step_id == "refund"
    assert failure_of(begin(undone_and_wrapped, history)).error.step_id == "refund"
    assert failure_of(begin(reraised, history)).error.step_id == "charge"


@pytest.mark.parametrize("kind", [InvalidInputError, SerializationError, DuplicateStepError, WorkflowTimeoutError])
def test_what_another_execution_would_only_repeat_is_not_retried(kind: type[WorkflowEngineError]) -> None:
    def handler(step: Step) -> Steps[None]:
        yield step.run("first", work)
        raise kind("no")

    assert not failure_of(begin(handler, stored(("first", "1")))).retryable


def test_errors_of_the_users_are_told_apart_by_identity() -> None:
    class EqualError(Exception):
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 1

        def __bool__(self) -> bool:
            raise RuntimeError("no truth value")

    def handler(step: Step) -> Steps[None]:
        with suppress(StepFailedError):
            yield step.run("bad", work)
        try:
            raise EqualError("inner")
        except EqualError as error:
            raise EqualError("outer") from error

    failure = failure_of(begin(handler, stored(failed("bad"))))
    assert (failure.error.message, failure.error.step_id) == ("outer", None)


def test_a_failure_that_was_caught_once_is_not_taken_back_when_a_changed_handler_lets_it_out() -> None:
    history = stored(failed("bad"), waiting("it", StepKind.WAIT_FOR))
    for handler in (uncaught, wrapped):
        failure = failure_of(begin(handler, history))
        assert failure.error.type == ("OSError" if handler is uncaught else "LookupError")
        assert failure.error.step_id is None


def test_a_step_whose_failure_was_taken_back_is_called_again() -> None:
    told = Told(two_steps, stored(("first", "1"), taken_back("second", 3)))
    call = call_of(told.begin())
    assert (call.command.id, call.position, call.attempt, call.calls_made) == ("second", 1, 4, 0)
    [row] = told.returns(call, 2).writes
    assert (row.attempts, row.prior_attempts, row.status) == (4, 3, "completed")


def test_a_failure_that_was_taken_back_binds_the_handler_to_nothing() -> None:
    history = stored(("first", "1"), taken_back("abandoned"))
    assert call_of(begin(two_steps, history)).command.id == "second"
    gone_on = [*history, StoredStep(1, "second", StepKind.RUN, StepStatus.COMPLETED, "2", None, 1)]
    assert begin(two_steps, gone_on).decision == Complete("[1,2]")


def test_a_poll_whose_failure_was_taken_back_begins_anew() -> None:
    def handler(step: Step) -> Steps[Any]:
        return (yield step.poll("look", work, timeout=60))

    told = Told(handler, stored(taken_back("look", 3, StepKind.POLL)))
    call = call_of(told.begin())
    assert (call.attempt, call.last_poll) == (4, False)
    [row] = told.returns(call, 0).writes
    assert (row.attempts, row.prior_attempts, row.deadline_after) == (4, 3, 60 * SECOND)


# What is kept of an error --------------------------------------------------------------------------------------------


def fail_deep_down() -> None:
    raise OSError("deep \0 down \ud800")


def test_an_error_is_kept_without_what_postgresql_refuses_and_begins_in_the_users_code() -> None:
    def handler(step: Step) -> Steps[None]:
        yield step.run("first", work)
        fail_deep_down()

    error = failure_of(begin(handler, stored(("first", "1")))).error
    assert error.message == "deep \\x00 down \\ud800"
    lines = (error.traceback or "").splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "in handler" in lines[1]
    assert any("in fail_deep_down" in line for line in lines)
    assert "pgworkflows/replay.py" not in (error.traceback or "")


def test_an_error_without_words_is_kept_too() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    class UnmadeError(StepFailedError):
        def __init__(self) -> None:
            pass

    assert error_info(MuteError()).message == "<its text cannot be read: RuntimeError>"
    assert error_info(UnmadeError()).message == "<its text cannot be read: AttributeError>"


def test_the_traceback_of_a_wrapped_failure_tells_what_it_was_raised_from() -> None:
    error = failure_of(begin(wrapped, stored(failed("bad")))).error
    assert "step 'bad' failed: OSError: no" in (error.traceback or "")
    assert "The above exception was the direct cause" in (error.traceback or "")
    assert "pgworkflows/replay.py" not in (error.traceback or "")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_handler_that_raises_something_worse_than_an_exception_fails_its_run_only(kind: type[BaseException]) -> None:
    def handler(step: Step) -> Steps[None]:
        yield step.run("first", work)
        raise kind

    assert failure_of(begin(handler, stored(("first", "1")))).error.type == kind.__name__


# Events --------------------------------------------------------------------------------------------------------------


def confirmed(step: Step) -> Steps[Any]:
    return (yield step.wait_for("confirmation", "confirmed", timeout=60))


def test_a_wait_is_written_with_its_deadline_to_come_and_lets_go_of_the_run() -> None:
    [row] = (turn := begin(confirmed)).writes
    assert (row.status, row.wake_after, row.event_name) == ("waiting", 60 * SECOND, "confirmed")
    assert turn.decision == Suspend("confirmation", "event", "confirmed")


def test_an_event_sent_before_its_wait_ends_it_at_once() -> None:
    turn = begin(confirmed, (), mail(("confirmed", '{"by":"a"}', NOW - 9 * SECOND)))
    [row] = turn.writes
    assert (row.status, row.output, row.event_name) == ("completed", '{"by":"a"}', "confirmed")
    assert turn.events == (EventTaken(1, "confirmation"),)
    assert turn.decision == Complete('{"by":"a"}')


def test_a_wait_that_is_woken_for_nothing_writes_nothing_so_its_deadline_stays() -> None:
    history = stored(waiting("confirmation", StepKind.WAIT_FOR, NOW + 30 * SECOND))
    turn = begin(confirmed, history, mail(("another", "{}", NOW)))
    assert turn == Turn((), (), Suspend("confirmation", "event", "confirmed"))


@pytest.mark.parametrize(("late_s", "outcome"), [(-1, '{"late":1}'), (0, '{"late":1}'), (0.001, "null")])
def test_an_event_received_by_the_deadline_beats_it_and_one_after_does_not(late_s: float, outcome: str) -> None:
    deadline = NOW - 10 * SECOND
    history = stored(waiting("confirmation", StepKind.WAIT_FOR, deadline))
    turn = begin(confirmed, history, mail(("confirmed", '{"late":1}', deadline + late_s * SECOND)))
    assert turn.writes[0].output == outcome
    assert len(turn.events) == (outcome != "null")
    assert turn.decision == Complete(outcome)


def test_a_wait_ends_at_its_deadline_and_not_before() -> None:
    history = stored(waiting("confirmation", StepKind.WAIT_FOR, NOW))
    assert isinstance(begin(confirmed, history, (), NOW - timedelta(microseconds=1)).decision, Suspend)
    assert begin(confirmed, history, (), NOW).decision == Complete("null")


def test_events_of_a_name_are_taken_first_in_first_out_each_once() -> None:
    def handler(step: Step) -> Steps[Any]:
        first = yield step.wait_for("one", "note")
        second = yield step.wait_for("two", "note")
        other = yield step.wait_for("three", "other")
        third = yield step.wait_for("four", "note")
        return [first, second, other, third]

    turn = begin(handler, (), mail(("note", "1", NOW), ("other", "9", NOW), ("note", "2", NOW)))
    assert turn.events == (EventTaken(1, "one"), EventTaken(3, "two"), EventTaken(2, "three"))
    assert [row.output for row in turn.writes] == ["1", "2", "9", None]
    assert turn.decision == Suspend("four", "event", "note")


def test_an_event_that_came_too_late_for_one_wait_is_the_next_ones() -> None:
    def handler(step: Step) -> Steps[Any]:
        first = yield step.wait_for("one", "note", timeout=5)
        second = yield step.wait_for("two", "note")
        return [first, second]

    history = stored(waiting("one", StepKind.WAIT_FOR, NOW - SECOND))
    turn = begin(handler, history, mail(("note", "1", NOW)))
    assert turn.events == (EventTaken(1, "two"),)
    assert turn.decision == Complete("[null,1]")


def test_data_that_does_not_fit_the_schema_is_consumed_and_fails_the_step_for_good() -> None:
    def handler(step: Step) -> Steps[Any]:
        return (yield step.wait_for("paid", "payment", schema=Money))

    turn = begin(handler, (), mail(("payment", '{"amount":"much"}', NOW)))
    assert turn.events == (EventTaken(1, "paid"),)
    [row] = turn.writes
    assert row.status == "failed"
    assert row.error is not None
    assert (row.error.type, row.event_name) == ("InvalidInputError", "payment")
    assert failure_of(turn).error.type == "InvalidInputError"
    assert not failure_of(turn).retryable
    again = begin(handler, stored(failed("paid", StepKind.WAIT_FOR, row.error)))
    assert (again.writes, failure_of(again)) == ((), failure_of(turn))


def test_a_wait_with_a_schema_gives_what_the_schema_says_or_none_on_timeout() -> None:
    def handler(step: Step) -> Steps[str]:
        return repr((yield step.wait_for("paid", "payment", schema=Money, timeout=5)))

    data = '{"amount":"1.50","paid_at":"2030-01-01T12:00:00Z"}'
    turn = begin(handler, (), mail(("payment", data, NOW)))
    assert isinstance(turn.decision, Complete)
    assert "Decimal('1.50')" in turn.decision.output
    history = [waiting("paid", StepKind.WAIT_FOR)._replace(status=StepStatus.COMPLETED, output="null")]
    assert begin(handler, history).decision == Complete('"None"')


# Times ---------------------------------------------------------------------------------------------------------------


def test_a_wait_for_a_moment_that_the_handler_computes_anew_keeps_the_first_one() -> None:
    moments: Iterator[datetime] = iter([NOW + 5 * SECOND, NOW + 60 * SECOND, NOW + 90 * SECOND])

    def handler(step: Step) -> Steps[str]:
        yield step.wait_until("then", next(moments))
        return "then"

    [row] = (turn := begin(handler)).writes
    assert (row.wake_at, turn.decision) == (NOW + 5 * SECOND, Suspend("then", "timer"))
    history = stored(waiting("then", StepKind.WAIT_UNTIL, row.wake_at))
    assert begin(handler, history, (), NOW + 4 * SECOND) == Turn((), (), Suspend("then", "timer"))
    assert begin(handler, history, (), NOW + 5 * SECOND).decision == Complete('"then"')


def test_a_wait_does_not_end_early_for_what_the_handler_asks_now() -> None:
    def until(step: Step) -> Steps[None]:
        yield step.wait_until("then", NOW - SECOND)

    def nothing(step: Step) -> Steps[None]:
        yield step.delay("then", 0)

    later = NOW + SECOND
    assert begin(until, [waiting("then", StepKind.WAIT_UNTIL, later)]) == Turn((), (), Suspend("then", "timer"))
    assert begin(nothing, [waiting("then", StepKind.DELAY, later)]) == Turn((), (), Suspend("then", "timer"))


def test_a_moment_that_is_past_and_a_delay_of_nothing_return_at_once() -> None:
    def handler(step: Step) -> Steps[str]:
        yield step.wait_until("past", NOW)
        yield step.delay("nothing", 0)
        yield step.sleep("while", 3)
        return "awake"

    turn = begin(handler)
    assert [(row.step_id, row.status) for row in turn.writes] == [
        ("past", "completed"),
        ("nothing", "completed"),
        ("while", "waiting"),
    ]
    assert turn.writes[2].wake_after == 3 * SECOND


def test_a_pause_waits_for_somebody() -> None:
    def handler(step: Step) -> Steps[str]:
        yield step.pause("stop")
        return "went on"

    turn = begin(handler)
    assert ([row.status for row in turn.writes], turn.decision) == (["waiting"], Suspend("stop", "pause"))
    still = waiting("stop", StepKind.PAUSE)
    assert begin(handler, [still]) == Turn((), (), Suspend("stop", "pause"))
    assert begin(handler, [still._replace(status=StepStatus.COMPLETED, output="null")]).decision == Complete(
        '"went on"'
    )


# Polls ---------------------------------------------------------------------------------------------------------------


def polled(step: Step) -> Steps[Any]:
    result = yield from step.poll("look", work, interval=10, timeout=60)
    return [result.timed_out, result.data]


def test_a_poll_is_called_at_once_and_then_after_each_interval() -> None:
    told = Told(polled)
    turn = told.returns(call_of(told.begin()), None)
    [row] = turn.writes
    assert (row.status, row.attempts, row.wake_after, row.deadline_after) == ("waiting", 1, 10 * SECOND, 60 * SECOND)
    assert turn.decision == Suspend("look", "poll")


def test_a_polls_deadline_stands() -> None:
    deadline = NOW + 20 * SECOND
    history = stored(waiting("look", StepKind.POLL, NOW, attempts=4, deadline_at=deadline))
    told = Told(polled, history)
    call = call_of(told.begin())
    assert (call.attempt, call.last_poll) == (5, False)
    [row] = told.returns(call, 0).writes
    assert (row.attempts, row.deadline_at, row.deadline_after) == (5, deadline, None)


def test_a_poll_that_is_not_due_is_waited_for_again() -> None:
    history = stored(waiting("look", StepKind.POLL, NOW + SECOND, attempts=4))
    assert begin(polled, history) == Turn((), (), Suspend("look", "poll"))


@pytest.mark.parametrize(("value", "output"), [(0, "[true,null]"), ({"a": 1}, '[false,{"a":1}]')])
def test_at_its_deadline_a_poll_looks_a_last_time(value: Any, output: str) -> None:
    told = Told(polled, stored(waiting("look", StepKind.POLL, NOW, attempts=4, deadline_at=NOW)))
    call = call_of(told.begin())
    assert call.last_poll
    turn = told.returns(call, value)
    assert turn.decision == Complete(output)
    [row] = turn.writes
    again = [StoredStep(0, "look", StepKind.POLL, StepStatus.COMPLETED, row.output)]
    assert begin(polled, again).decision == Complete(output)


def test_an_exception_fails_a_poll() -> None:
    told = Told(polled)
    turn = told.raises(call_of(told.begin()), OSError("no"))
    assert [row.status for row in turn.writes] == ["failed"]
    assert failure_of(turn).error.step_id == "look"


class Truthless(BaseModel):
    x: int = 1

    def __bool__(self) -> bool:
        raise ArithmeticError("neither true nor false")


def truthless() -> Truthless: ...  # type: ignore[empty-body]
def rooted() -> RootModel[None]: ...  # type: ignore[empty-body]


def test_a_poll_whose_result_has_no_truth_value_fails() -> None:
    def handler(step: Step) -> Steps[None]:
        yield step.poll("look", truthless)

    told = Told(handler)
    call = call_of(told.begin())
    turn = told.replay.resolve(call, Returned('{"x":1}', Truthless()))
    assert failure_of(turn).error.type == "ArithmeticError"


def test_a_poll_whose_result_is_stored_as_null_has_found_nothing() -> None:
    def handler(step: Step) -> Steps[None]:
        yield step.poll("look", rooted)

    told = Told(handler)
    assert isinstance(told.returns(call_of(told.begin()), RootModel[None](None)).decision, Suspend)


def test_a_typed_poll_may_be_fast_forwarded_without_data() -> None:
    def handler(step: Step) -> Steps[Any]:
        result = yield from step.poll("look", a_moment)
        return [result.timed_out, result.data]

    forwarded = StoredStep(0, "look", StepKind.POLL, StepStatus.COMPLETED, '{"timed_out" : false, "data" : null}')
    assert begin(handler, [forwarded]).decision == Complete("[false,null]")


# Handlers that have changed, or misbehave ----------------------------------------------------------------------------


def other_id(step: Step) -> Steps[Any]:
    yield step.run("1st", work)
    yield step.run("second", work)


def other_kind(step: Step) -> Steps[Any]:
    yield step.delay("first", 1)
    yield step.run("second", work)


def other_order(step: Step) -> Steps[Any]:
    yield step.run("second", work)
    yield step.run("first", work)


def shorter(step: Step) -> Steps[Any]:
    yield step.run("first", work)


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (other_id, ["step 0", "run 'first'", "asked for run '1st'"]),
        (other_kind, ["step 0", "run 'first'", "asked for delay 'first'"]),
        (other_order, ["step 0", "run 'first'", "asked for run 'second'"]),
        (shorter, ["step 1", "run 'second'", "returned"]),
    ],
)
@pytest.mark.parametrize("last", [("second", "2"), waiting("second", StepKind.RUN), failed("second")], ids=repr)
def test_a_handler_that_does_not_do_what_it_did_is_refused_and_writes_nothing(
    handler: Handler, words: list[str], last: Any
) -> None:
    turn = begin(handler, stored(("first", "1"), last), mail(("confirmed", "{}", NOW)))
    assert (turn.writes, turn.events) == ((), ())
    failure = failure_of(turn)
    assert (failure.error.type, failure.retryable, failure.error.step_id) == ("NonDeterminismError", False, None)
    for word in [*words, "mend the handler", "then retry the run"]:
        assert word in failure.error.message


def test_a_refused_handler_runs_its_finally_blocks_and_is_not_told_why() -> None:
    seen: list[str] = []

    def handler(step: Step) -> Steps[None]:
        try:
            yield step.run("other", work)
        except Exception:
            seen.append("except")
        finally:
            seen.append("finally")

    assert failure_of(begin(handler, stored(("first", "1")))).error.type == "NonDeterminismError"
    assert seen == ["finally"]


def test_a_step_id_used_twice_fails_the_run_for_good_and_what_came_before_is_kept() -> None:
    def handler(step: Step) -> Steps[None]:
        for _ in range(2):
            try:
                yield step.run("same", work)
            except Exception:
                return

    told = Told(handler)
    turn = told.returns(call_of(told.begin()), 1)
    assert [row.step_id for row in turn.writes] == ["same"]
    failure = failure_of(turn)
    assert (failure.error.type, failure.retryable) == ("DuplicateStepError", False)
    assert "'same'" in failure.error.message
    again = failure_of(begin(handler, stored(("same", "1"))))
    assert again == failure


class StrangeCommand(Command[None]):
    pass


def inner() -> Generator[Any, Any, None]:
    yield None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (None, "not NoneType"),
        (5, "not int"),
        (inner(), "use 'yield from'"),
        (work, "not function"),
        (RunCommand, "not type"),
        (StrangeCommand("x"), "not StrangeCommand"),
    ],
)
def test_a_wrong_yield_raises_type_error_right_there(wrong: Any, words: str) -> None:
    def handler(step: Step) -> Steps[str]:
        message = "nothing"
        try:
            yield wrong
        except TypeError as error:
            message = str(error)
        yield step.run("first", work)
        return message

    told = Told(handler)
    call = call_of(told.begin())
    assert call.position == 0
    turn = told.returns(call, 1)
    assert isinstance(turn.decision, Complete)
    assert words in turn.decision.output
    assert begin(handler, stored(("first", "1"))).decision == turn.decision


def test_a_wrong_yield_that_nobody_catches_fails_the_run_in_the_users_line() -> None:
    def handler(step: Step) -> Steps[None]:
        yield 5  # type: ignore[misc]  # that is the point

    error = failure_of(begin(handler)).error
    assert error.type == "TypeError"
    assert "yield 5" in (error.traceback or "")


# Letting go ----------------------------------------------------------------------------------------------------------


def test_a_suspend_is_nothing_that_except_exception_could_swallow() -> None:
    seen: list[str] = []

    def handler(step: Step) -> Steps[str]:
        try:
            yield step.wait_for("it", "it")
        except Exception:
            seen.append("swallowed")
        else:
            seen.append("received")
        return "done"

    assert begin(handler).decision == Suspend("it", "event", "it")
    assert seen == []


def test_a_suspend_that_except_base_exception_swallows_is_a_suspend_all_the_same() -> None:
    reached: list[str] = []

    def handler(step: Step) -> Steps[str]:
        try:
            yield step.wait_for("it", "it")
        except BaseException:
            reached.append("swallowed")
        yield step.run("next", reached.append, "next")
        reached.append("after next")
        return "done"

    turn = begin(handler)
    assert turn.decision == Suspend("it", "event", "it")
    assert [row.step_id for row in turn.writes] == ["it"]
    assert reached == ["swallowed"]


def test_a_handler_that_never_lets_go_is_let_go_of() -> None:
    rounds: list[int] = []

    def handler(step: Step) -> Steps[None]:
        while len(rounds) < 500:
            try:
                yield step.wait_for(f"it-{len(rounds)}", "it")
            except BaseException:
                rounds.append(1)

    told = Told(handler)
    assert isinstance(told.begin().decision, Suspend)
    assert len(rounds) < 150
    rounds += [0] * 500  # so that the garbage collector, too, is let go


def test_a_finally_with_yields_neither_runs_them_nor_raises_through_generators_too() -> None:
    seen: list[str] = []

    def inner(step: Step) -> Generator[Command[Any], Any, None]:
        try:
            yield step.wait_for("it", "it")
        finally:
            seen.append("inner")
            try:
                yield step.run("clean-up", seen.append, "cleaned")
                seen.append("after clean-up")
            finally:
                seen.append("innermost")
                yield step.run("polish", seen.append, "polished")

    def handler(step: Step) -> Steps[str]:
        try:
            yield from inner(step)
        except Exception as error:
            seen.append(f"told of {error!r}")
        finally:
            seen.append("outer")
            yield from step.run("second", seen.append, "cleaned")
            yield step.run("third", seen.append, "cleaned")
        return "done"

    turn = begin(handler)
    assert turn.decision == Suspend("it", "event", "it")
    assert [row.step_id for row in turn.writes] == ["it"]
    assert seen == ["inner", "innermost", "outer"]


def test_once_the_wait_is_over_the_finally_runs_its_steps() -> None:
    def handler(step: Step) -> Steps[str]:
        try:
            yield step.wait_for("it", "it")
        finally:
            yield step.run("clean-up", work)
        return "done"

    told = Told(handler, stored(waiting("it", StepKind.WAIT_FOR)), mail(("it", "1", NOW)))
    call = call_of(turn := told.begin())
    assert [row.step_id for row in turn.writes] == ["it"]
    assert call.command.id == "clean-up"
    assert told.returns(call, 1).decision == Complete('"done"')


def test_closing_twice_or_too_early_does_no_harm() -> None:
    told = Told(confirmed)
    told.replay.close()
    told.replay.close()
    told = Told(two_steps)
    told.begin()
    told.replay.close()
    told.replay.close()


# What the handler sees of its own replay -----------------------------------------------------------------------------


def test_the_timeline_holds_the_outputs_of_the_steps_passed_so_far() -> None:
    seen: list[dict[str, Any]] = []

    def handler(step: Step) -> Steps[None]:
        seen.append(dict(step.context.timeline))
        yield step.run("first", a_moment)
        seen.append(dict(step.context.timeline))
        try:
            yield step.run("bad", work)
        except StepFailedError:
            seen.append(dict(step.context.timeline))
        yield step.wait_for("it", "it")
        seen.append(dict(step.context.timeline))

    history = stored(("first", f'"{NOW.isoformat()}"'), failed("bad"), waiting("it", StepKind.WAIT_FOR))
    begin(handler, history, mail(("it", "[1]", NOW)))
    assert seen == [{}, {"first": NOW}, {"first": NOW}, {"first": NOW, "it": [1]}]


@pytest.mark.parametrize(
    ("history", "spoken"),
    [
        ([], ["before first"]),
        ([("first", "1")], ["after first"]),
        ([("first", "1"), waiting("it", StepKind.WAIT_FOR)], []),
        ([("first", "1"), taken_back("it", 0, StepKind.WAIT_FOR)], []),
        ([taken_back("first")], []),
        ([("first", "1"), waiting("it", StepKind.WAIT_FOR)._replace(status=StepStatus.COMPLETED)], ["after it"]),
    ],
    ids=repr,
)
def test_the_logger_is_silent_while_replaying_and_while_letting_go(history: list[Any], spoken: list[str]) -> None:
    said: list[str] = []

    def handler(step: Step) -> Steps[None]:
        def say(words: str) -> None:
            if not told.trail.replaying:
                said.append(words)

        say("before first")
        try:
            yield step.run("first", work)
            say("after first")
            yield step.wait_for("it", "it")
            say("after it")
        except BaseException:
            say("let go")
            raise

    told = Told(handler, stored(*history))
    told.begin()
    told.replay.close()
    assert said == spoken


def test_a_retry_waits_as_its_strategy_says() -> None:
    def handler(step: Step) -> Steps[None]:
        yield step.run("shaky", work).retry(attempts=2, wait=wait_fixed(7))

    told = Told(handler)
    [row] = told.raises(call_of(told.begin()), OSError()).writes
    assert row.wake_after == 7 * SECOND
