"""One execution inside its plugins: a context of its own, entered and left once, by whichever threads work on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from functools import partial
from threading import Lock
from typing import Any, TypeVar

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
