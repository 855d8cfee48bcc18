"""When a failed step is called again, and how long a retry waits: tenacity's strategies, without its loop."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias, cast

from tenacity import Future, RetryCallState, Retrying
from tenacity.wait import wait_base, wait_exponential, wait_fixed

from pgworkflows.durations import Duration, parse_duration
from pgworkflows.errors import (
    DuplicateStepError,
    InvalidInputError,
    NonDeterminismError,
    SerializationError,
)
from pgworkflows.limits import quoted

Wait: TypeAlias = Duration | wait_base
"""How long to wait before the next call: a duration, or one of tenacity's wait strategies."""

ExceptionTypes: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]

NEVER_RETRIED = (SerializationError, InvalidInputError, DuplicateStepError, NonDeterminismError)
"""Errors that another call cannot mend."""

MAX_PAUSE = timedelta(days=365)
"""What a strategy that asks for longer, or for ever, is cut to."""

_MAX_COUNT = 1_000_000  # strategies raise 2 to this power: further on that only costs memory


class wait_added_jitter(wait_base):  # noqa: N801  (tenacity names its strategies so)
    """What `strategy` says, and up to `share` of it on top, at random: never earlier than announced."""

    def __init__(self, strategy: wait_base, share: float) -> None:
        self.strategy = strategy
        self.share = share

    def __call__(self, retry_state: RetryCallState) -> float:
        seconds = self.strategy(retry_state)
        return seconds + random.uniform(0, self.share) * seconds


DEFAULT_WAIT = wait_added_jitter(wait_exponential(multiplier=1, max=300), share=0.25)
"""1, 2, 4 … seconds, at most 5 minutes, and up to 25 % jitter added."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often a step's function is called, after which errors, and how far apart the calls are."""

    attempts: int
    wait: wait_base
    on: tuple[type[BaseException], ...]
    not_on: tuple[type[BaseException], ...]

    @classmethod
    def build(
        cls,
        *,
        attempts: int = 3,
        wait: Wait | None = None,
        on: ExceptionTypes = Exception,
        not_on: ExceptionTypes = (),
    ) -> RetryPolicy:
        """A checked policy. `attempts` counts all calls, from 1; raises ValueError or TypeError."""
        return cls(
            _checked_attempts(attempts), _strategy(wait), _exception_types(on, "on"), _exception_types(not_on, "not_on")
        )

    def allows(self, error: BaseException, calls_made: int) -> bool:
        """Whether the function may be called again after `error` ended the call number `calls_made`."""
        return (
            calls_made < self.attempts
            and isinstance(error, self.on)
            and not isinstance(error, self.not_on)
            and not isinstance(error, NEVER_RETRIED)
        )

    def pause_after(self, calls_made: int, error: BaseException | None = None) -> timedelta:
        """How long to wait before the next call, from zero to `MAX_PAUSE`.

        Raises ValueError when the strategy, which is the user's code, fails or answers with no number.
        """
        return _pause(self.wait, calls_made, error)


def run_retry_pause(retry_count: int) -> timedelta:
    """How long a run waits before its retry number `retry_count` (from 1)."""
    return _pause(DEFAULT_WAIT, retry_count, None)


def _checked_attempts(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"attempts must be an int, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"attempts counts all calls and must be at least 1, not {value}")
    return value


def _strategy(wait: Wait | None) -> wait_base:
    if wait is None:
        return DEFAULT_WAIT
    if isinstance(wait, wait_base):
        return wait
    return wait_fixed(parse_duration(wait, "wait").total_seconds())


def _exception_types(value: object, name: str) -> tuple[type[BaseException], ...]:
    kinds = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
    return tuple(_exception_type(kind, name) for kind in kinds)


def _exception_type(kind: object, name: str) -> type[BaseException]:
    given = quoted(kind)
    if isinstance(kind, type) and issubclass(kind, BaseException):
        return kind
    raise TypeError(f"{name} takes exception classes, not {given}")


def _pause(strategy: wait_base, calls_made: int, error: BaseException | None) -> timedelta:
    state = RetryCallState(Retrying(wait=strategy), None, (), {})
    state.attempt_number = max(1, min(calls_made, _MAX_COUNT))
    state.outcome = Future(state.attempt_number)
    state.outcome.set_exception(error or RuntimeError("the error of an earlier execution"))
    state.outcome_timestamp = state.start_time
    try:
        seconds = strategy(state)
    except OverflowError:
        return MAX_PAUSE
    except Exception as failure:
        raise ValueError(f"the wait strategy {strategy!r} failed: {type(failure).__name__}: {failure}") from failure
    return _within_bounds(seconds, strategy)


def _within_bounds(seconds: object, strategy: wait_base) -> timedelta:
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if not isinstance(seconds, int | float) or seconds != seconds:  # NaN
        raise ValueError(f"the wait strategy {strategy!r} answered {seconds!r}; it must give a number of seconds")
    if seconds >= MAX_PAUSE.total_seconds():
        return MAX_PAUSE
    return timedelta(seconds=max(0, seconds))
