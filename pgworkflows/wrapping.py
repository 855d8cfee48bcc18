"""One execution inside its plugins: a context of its own, entered and left once, by whichever threads work on it; and
what plugins are told of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Lock
from types import MappingProxyType
from typing import Any, TypeVar
from uuid import UUID

from pgworkflows.claims import ClaimedRun
from pgworkflows.commands import StepContext
from pgworkflows.entries import Entry
from pgworkflows.plugins import (
    Entered,
    ExecutionOutcome,
    Plugin,
    RunContext,
    StepInfo,
    WrappedCall,
    enter,
    injected,
    leave,
)

T = TypeVar("T")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Wrapping:
    """What stands around one execution. The handler is advanced in its context, step functions in copies of it: one
    that hangs keeps nobody out. One thread at a time is inside; who may not wait finds it busy, and lets it be."""

    __slots__ = ("_busy", "_context", "_entered", "_left", "_logger", "_plugins", "_variables")

    def __init__(self, plugins: Sequence[Plugin], logger: logging.Logger) -> None:
        self._plugins = plugins
        self._logger = logger
        self._variables = Context()
        self._busy = Lock()
        self._context: RunContext | None = None
        self._entered: list[Entered] = []
        self._left = False

    def enter(self, context: RunContext) -> None:
        """Enter the plugins."""
        self._context = context
        self._entered = self.inside(partial(enter, self._plugins, context, self._logger))

    def inside(self, act: Callable[[], T]) -> T:
        """Do something in the execution's context."""
        with self._busy:
            return self._variables.run(act)

    def inside_if_free(self, act: Callable[[], object]) -> None:
        """Do something in the execution's context, unless another thread does."""
        if self._busy.acquire(blocking=False):
            try:
                self._variables.run(act)
            finally:
                self._busy.release()

    def in_a_copy(self, act: Callable[[], T]) -> T:
        """Do something in a copy of the execution's context."""
        return self._variables.copy().run(act)

    def call(self, step: StepInfo, function: Callable[[], Any]) -> WrappedCall:
        """The call of a step function inside the plugins."""
        assert self._context is not None
        return WrappedCall(self._plugins, self._context, step, function, self._logger)

    def headers(self, own: Mapping[str, str]) -> dict[str, str]:
        """What goes along with the start of a child; `own` came along with this run. Not while the handler is
        advanced."""
        return self.inside(partial(injected, self._plugins, self._logger, own))

    def leave(self, outcome: ExecutionOutcome, failure: BaseException | None) -> bool:
        """Leave the plugins, unless that was done or another thread is inside; whether they are left now."""
        if not self._left and self._busy.acquire(blocking=False):
            try:
                self._leave(outcome, failure)
            finally:
                self._busy.release()
        return self._left

    def _leave(self, outcome: ExecutionOutcome, failure: BaseException | None) -> None:
        entered, self._entered = self._entered, []
        if self._context is not None and not self._left:
            self._context.end(outcome)
            self._variables.run(leave, entered, self._context, failure, self._logger)
        self._left = True


def run_context(run: ClaimedRun, context: StepContext, logger: logging.LoggerAdapter[logging.Logger]) -> RunContext:
    """What plugins may know of an execution: what its handler may, and what the claim says."""
    seen: dict[str, Any] = {**vars(context), "logger": logger}
    return RunContext(
        **seen,
        headers=MappingProxyType(run.headers),
        queue_lag=max(timedelta(0), run.as_of - run.ready_at),
        age=max(timedelta(0), _age(context.run_id, run.as_of)),
        resumed=bool(run.steps) or run.retry_count > 0,
    )


def _age(run_id: UUID, now: datetime) -> timedelta:
    """How long ago a run was started: a UUID of version 7 begins with that moment, in milliseconds."""
    return now - EPOCH - timedelta(milliseconds=run_id.int >> 80)


def outcome_of(entry: Entry, control: str | None) -> ExecutionOutcome:
    """How an execution ended, for its plugins: by its last entry, if clients have not asked for something else."""
    match control, entry.action, entry.wait_kind:
        case "cancel", _, _:
            return ExecutionOutcome.CANCELLED
        case "pause", _, _:
            return ExecutionOutcome.PAUSED
        case "retry", _, _:
            return ExecutionOutcome.RELEASED
        case _, "complete", _:
            return ExecutionOutcome.COMPLETED
        case _, "fail", _:
            return ExecutionOutcome.FAILED
        case (_, "retry", _) | (_, _, "retry"):
            return ExecutionOutcome.RETRYING
        case _, _, "pause":
            return ExecutionOutcome.PAUSED
        case _, "suspend", _:
            return ExecutionOutcome.WAITING
        case _:
            return ExecutionOutcome.RELEASED
