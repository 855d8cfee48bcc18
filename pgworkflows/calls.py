"""One call of a step function, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any
from uuid import UUID

from pgworkflows.commands import PollCommand, RunCommand
from pgworkflows.current import CurrentStep, reset_current, set_current
from pgworkflows.decisions import CallStep, Raised, Returned, StepOutcome
from pgworkflows.errors import SerializationError
from pgworkflows.failures import error_info
from pgworkflows.plugins import StepInfo, WrappedCall
from pgworkflows.serialization import codec_for_return
from pgworkflows.wrapping import Wrapping


class Call:
    """One call of a step function, which ends once: by its return, or by its timeout."""

    __slots__ = ("_settling", "current", "decision")

    def __init__(self, decision: CallStep, run_id: UUID) -> None:
        self.decision = decision
        self.current = CurrentStep(run_id, decision.command.id, decision.attempt)
        self._settling = Lock()

    @property
    def timeout_s(self) -> float | None:
        """How long the call may take."""
        command = self.decision.command
        if not isinstance(command, RunCommand) or command.call_timeout is None:
            return None
        return command.call_timeout.total_seconds()

    def settle(self) -> bool:
        """Whether the caller is the first to say how the call ended."""
        return self._settling.acquire(blocking=False)


def perform_inside(call: Call, wrapping: Wrapping) -> StepOutcome:
    """Call the step function inside the plugins of its execution, in a copy of its context."""
    command, current = call.decision.command, call.current
    step = StepInfo(current.step_id, command.kind, current.attempt, current.idempotency_key)
    return wrapping.in_a_copy(partial(perform, call, wrapping.call(step, _bound(command))))


def _bound(command: RunCommand[Any] | PollCommand[Any]) -> Callable[[], Any]:
    """The step function with its arguments."""
    return partial(command.fn, *command.args, **(command.kwargs if isinstance(command, RunCommand) else {}))


def perform(call: Call, wrapped: WrappedCall | None = None) -> StepOutcome:
    """Call the step function, or what plugins have made of it."""
    command = call.decision.command
    started = time.monotonic()
    token = set_current(call.current)
    try:
        if wrapped is not None:
            value = wrapped()
        elif isinstance(command, PollCommand):
            value = command.fn(*command.args)
        else:
            value = command.fn(*command.args, **command.kwargs)
    except BaseException as error:
        # The user's frames tell what happened; this one does not.
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            error.__traceback__ = error.__traceback__.tb_next
        return Raised(error, error_info(error, command.id), time.monotonic() - started)
    finally:
        reset_current(token)
    outcome = _returned(command, value, time.monotonic() - started)
    if wrapped is not None and isinstance(outcome, Raised) and wrapped.take_back(value, outcome.error):
        outcome = _returned(command, wrapped.own_result, outcome.elapsed_s)
    return outcome


def _returned(command: RunCommand[Any] | PollCommand[Any], value: Any, elapsed_s: float) -> StepOutcome:
    """The result as it is stored, and as the handler gets it: decoded from what is stored."""
    try:
        output, decoded = codec_for_return(command.fn).roundtrip(value, f"the result of step {command.id!r}")
    except SerializationError as error:
        return Raised(error, error_info(error, command.id), elapsed_s)
    return Returned(output, decoded, elapsed_s)
