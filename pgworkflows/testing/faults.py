"""What a test does to steps, and what it sees of them: a plugin around each call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pgworkflows.errors import StepFailedError
from pgworkflows.plugins import RunContext, StepInfo


@dataclass
class Fault:
    """Something that is to happen to a step, so many times from now on; None: always."""

    step_id: str
    times: int | None = 1
    error: BaseException | type[BaseException] = RuntimeError
    met: bool = False

    def happens(self) -> bool:
        """Whether it happens now; then it has one time less to happen."""
        if self.times == 0:
            return False
        self.met = True
        if self.times is not None:
            self.times -= 1
        return True


class Faults:
    """A plugin that counts the calls of step functions, lets them fail as told, and remembers what was raised."""

    name = "testing"

    def __init__(self) -> None:
        self.calls: Counter[tuple[UUID, str]] = Counter()
        self.raised: dict[UUID, BaseException] = {}
        self.interrupt: BaseException | None = None
        self._failures: list[Fault] = []
        self._crashes: dict[str, list[Fault]] = {"before": [], "after": []}

    def fail(self, fault: Fault) -> None:
        self._failures.append(fault)

    def crash(self, moment: str, fault: Fault) -> None:
        """`moment` is "before" or "after" the checkpoint of the step."""
        self._crashes[moment].append(fault)

    def crashes(self, moment: str, step_ids: list[str]) -> bool:
        """Whether the worker dies now, at a moment of the checkpoint of these steps."""
        return any(fault.step_id in step_ids and fault.happens() for fault in self._crashes[moment])

    def unmet(self) -> list[str]:
        """The steps that something was to happen to which has not happened once."""
        every = [*self._failures, *self._crashes["before"], *self._crashes["after"]]
        return [fault.step_id for fault in every if not fault.met]

    @contextmanager
    def wrap_run(self, context: RunContext) -> Generator[None]:
        try:
            yield
        except BaseException as error:
            self._note(context.run_id, error)
            raise

    def wrap_step(self, context: RunContext, step: StepInfo, call: Callable[[], Any]) -> Any:
        try:
            self._fail_if_told(step.step_id)
            self.calls[context.run_id, step.step_id] += 1
            return call()
        except BaseException as error:
            self._note(context.run_id, error)
            raise

    def _fail_if_told(self, step_id: str) -> None:
        for fault in self._failures:
            if fault.step_id == step_id and fault.happens():
                error = fault.error
                # One exception may be raised again and again: without the places where that was before.
                raise error.with_traceback(None) if isinstance(error, BaseException) else error

    def _note(self, run_id: UUID, error: BaseException) -> None:
        """Keep what was raised, to show it where the test finds that the run has failed. What is meant for the test
        itself, Ctrl-C or pytest's own, is raised there at once, which the engine would not do."""
        if not isinstance(error, StepFailedError):
            self.raised[run_id] = error
        if not isinstance(error, (Exception, SystemExit, GeneratorExit)):
            self.interrupt = error
