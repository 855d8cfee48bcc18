"""Retry policies: which errors they take, and how long they wait."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st
from tenacity import RetryCallState
from tenacity.wait import wait_base

from pgworkflows.errors import DuplicateStepError, InvalidInputError, NonDeterminismError, SerializationError
from pgworkflows.retry import MAX_PAUSE, RetryPolicy, run_retry_pause


class Answers(wait_base):
    """A strategy that answers what it is told, or raises it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, retry_state: RetryCallState) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(retry_state) if callable(self.answer) else self.answer


def test_attempts_count_all_calls() -> None:
    policy = RetryPolicy.build(attempts=3)
    assert [policy.allows(OSError(), calls_made) for calls_made in (1, 2, 3, 4)] == [True, True, False, False]


def test_errors_are_taken_by_class() -> None:
    policy = RetryPolicy.build(on=(OSError, LookupError), not_on=(ConnectionError, KeyError))
    assert policy.allows(OSError(), 1)
    assert policy.allows(IndexError(), 1)
    assert not policy.allows(ConnectionResetError(), 1)
    assert not policy.allows(KeyError(), 1)
    assert not policy.allows(ValueError(), 1)


def test_by_default_every_exception_is_taken_but_not_an_exit() -> None:
    policy = RetryPolicy.build()
    assert policy.allows(Exception(), 1)
    assert not policy.allows(SystemExit(), 1)
    assert not policy.allows(KeyboardInterrupt(), 1)


@pytest.mark.parametrize("error", [SerializationError, InvalidInputError, DuplicateStepError, NonDeterminismError])
def test_what_another_call_cannot_mend_is_never_retried(error: type[Exception]) -> None:
    assert not RetryPolicy.build(on=(Exception, error)).allows(error("no"), 1)


@pytest.mark.parametrize("attempts", [0, -1])
def test_fewer_than_one_attempt_is_refused(attempts: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RetryPolicy.build(attempts=attempts)


@pytest.mark.parametrize("attempts", [True, 1.0, "3", None])
def test_attempts_must_be_an_int(attempts: Any) -> None:
    with pytest.raises(TypeError, match="attempts must be an int"):
        RetryPolicy.build(attempts=attempts)


@pytest.mark.parametrize("kinds", ["OSError", [OSError], (OSError, "x"), int, OSError(), None])
def test_only_exception_classes_are_taken(kinds: Any) -> None:
    with pytest.raises(TypeError, match=r"^on takes exception classes"):
        RetryPolicy.build(on=kinds)
    with pytest.raises(TypeError, match=r"^not_on takes exception classes"):
        RetryPolicy.build(not_on=kinds)


@pytest.mark.parametrize(
    ("wait", "error"), [("soon", ValueError), (-1, ValueError), (True, TypeError), ([], TypeError)]
)
def test_a_wait_is_a_duration_or_a_strategy(wait: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^wait "):
        RetryPolicy.build(wait=wait)


@pytest.mark.parametrize("wait", ["1m 30s", 90, timedelta(seconds=90), tenacity.wait_fixed(90)])
def test_a_fixed_wait_is_the_same_after_every_call(wait: Any) -> None:
    policy = RetryPolicy.build(wait=wait)
    assert [policy.pause_after(calls_made, OSError()) for calls_made in (1, 2, 50)] == [timedelta(seconds=90)] * 3


def test_no_wait_at_all_is_a_wait() -> None:
    assert RetryPolicy.build(wait=0).pause_after(1, OSError()) == timedelta(0)


@given(st.integers(1, 30))
def test_by_default_pauses_double_up_to_five_minutes_with_a_quarter_of_jitter_added(calls_made: int) -> None:
    base = timedelta(seconds=min(2 ** (calls_made - 1), 300))
    for pause in (RetryPolicy.build().pause_after(calls_made, OSError()), run_retry_pause(calls_made)):
        assert base <= pause <= base * 1.25


def test_jitter_differs_from_call_to_call() -> None:
    assert len({run_retry_pause(4) for _ in range(20)}) > 1


@pytest.mark.parametrize(
    "strategy",
    [
        None,
        tenacity.wait_exponential(),
        tenacity.wait_exponential(multiplier=0.5, exp_base=3),
        tenacity.wait_random_exponential(),
        tenacity.wait_exponential_jitter(),
        tenacity.wait_incrementing(increment=1000),
        tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(2)),
        tenacity.wait_fixed(1) + tenacity.wait_random(0, 1),
    ],
)
@pytest.mark.parametrize("calls_made", [1, 2, 100, 2000, 10**6, 10**12, 10**30])
def test_huge_numbers_of_calls_do_not_overflow(strategy: wait_base | None, calls_made: int) -> None:
    pause = RetryPolicy.build(wait=strategy).pause_after(calls_made, OSError())
    assert timedelta(0) <= pause <= MAX_PAUSE
    assert timedelta(0) <= run_retry_pause(calls_made) <= timedelta(seconds=375)


def test_a_strategy_sees_the_call_and_its_error() -> None:
    class Busy(Exception):
        retry_after = 7

    def told(state: RetryCallState) -> float:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert isinstance(error, Busy)
        return error.retry_after * state.attempt_number

    policy = RetryPolicy.build(wait=Answers(told))
    assert policy.pause_after(2, Busy()) == timedelta(seconds=14)


def test_tenacitys_wait_exception_works() -> None:
    policy = RetryPolicy.build(wait=tenacity.wait_exception(lambda error: float(str(error))))
    assert policy.pause_after(1, ValueError("2.5")) == timedelta(seconds=2.5)


@pytest.mark.parametrize(
    ("answer", "pause"),
    [
        (-5, timedelta(0)),
        (float("-inf"), timedelta(0)),
        (float("inf"), MAX_PAUSE),
        (10**400, MAX_PAUSE),
        (1e300, MAX_PAUSE),
        (timedelta(minutes=1), timedelta(minutes=1)),
        (OverflowError(), MAX_PAUSE),
    ],
    ids=["negative", "minus infinity", "infinity", "a huge int", "a huge float", "a timedelta", "overflow"],
)
def test_an_answer_out_of_bounds_is_cut(answer: Any, pause: timedelta) -> None:
    assert RetryPolicy.build(wait=Answers(answer)).pause_after(1, OSError()) == pause


@pytest.mark.parametrize("answer", [None, "soon", float("nan"), RuntimeError("broken"), object()])
def test_an_answer_that_is_no_number_is_a_value_error(answer: Any) -> None:
    with pytest.raises(ValueError, match="the wait strategy"):
        RetryPolicy.build(wait=Answers(answer)).pause_after(1, OSError())
