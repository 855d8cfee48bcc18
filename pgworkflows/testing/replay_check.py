"""The replay check: would today's code go on with a run that yesterday's has begun? Without a database."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pgworkflows.commands import Command, ScheduleContext, Step, StepContext
from pgworkflows.decisions import Complete, Decision, Fail
from pgworkflows.definition import Workflow
from pgworkflows.errors import DuplicateStepError, NonDeterminismError, SerializationError, WorkflowEngineError
from pgworkflows.replay import COMMANDS, LetGo, Replay, Trail
from pgworkflows.run_loggers import SilentWhileReplaying
from pgworkflows.runs import RunStatus
from pgworkflows.testing.histories import History, read_history

BEFORE_ALL = datetime.min.replace(tzinfo=UTC)


def check_replay(workflow: Workflow[Any, Any], history: Mapping[str, Any] | str | os.PathLike[str]) -> None:
    """Replay the history of a run, as `export_run` has made it or a path to that, against the workflow as it is today.

    Raises AssertionError with the first step that differs, where a worker would refuse to go on: another step, or none,
    in its place, or a result that does not fit its annotation any more; or, of a completed run, another step after the
    last one. No step function is called. What a handler returns may change, and so may arguments. Raises ValueError for
    what is no history of this workflow.
    """
    __tracebackhide__ = True
    past = read_history(history)
    if past.workflow_id != workflow.id:
        raise ValueError(f"this is the history of a run of {past.workflow_id!r}, not of {workflow.id!r}")
    try:
        value = workflow.load_input(past.input)
    except WorkflowEngineError as error:
        raise AssertionError(
            f"workflow {workflow.id!r} does not replay run {past.run_id}: its input is refused: {error.message}"
        ) from error
    listened, decision = _replayed(workflow, past, value)
    position = _first_difference(past, listened.asked, decision)
    if position is not None:
        cause = decision.cause if isinstance(decision, Fail) else None
        raise AssertionError(_told(past, listened.asked, decision, position)) from cause


class _Listened(Generator[Command[Any], Any, Any]):
    """A handler's generator, and what it has asked for until it was let go: kind and id."""

    def __init__(self, generator: Generator[Command[Any], Any, Any]) -> None:
        self._generator = generator
        self._let_go = False
        self.asked: list[tuple[str, str]] = []

    def send(self, value: Any, /) -> Command[Any]:
        command = self._generator.send(value)
        self._note(command)
        return command

    def throw(self, error: Any, /, *more: Any) -> Command[Any]:
        self._let_go = self._let_go or isinstance(error, LetGo)
        command = self._generator.throw(error, *more)
        self._note(command)
        return command

    def _note(self, command: object) -> None:
        if not self._let_go and isinstance(command, COMMANDS):
            self.asked.append((command.kind, command.id))


def _replayed(workflow: Workflow[Any, Any], past: History, value: Any) -> tuple[_Listened, Decision]:
    trail = Trail()
    context = StepContext(
        run_id=past.run_id,
        workflow_id=past.workflow_id,
        resource_id=past.resource_id,
        attempt=past.attempt,
        input=value,
        timeline=trail.timeline,
        schedule=None if past.schedule_timestamp is None else ScheduleContext(past.schedule_timestamp),
        logger=SilentWhileReplaying(logging.getLogger("pgworkflows"), {}, trail),
    )
    listened = _Listened(workflow.begin(Step(context), value))
    replay = Replay(
        listened,
        history=past.steps,
        mailbox=(),
        as_of=BEFORE_ALL,
        trail=trail,
        encode_output=partial(workflow.output_codec.encode, what="the output of the workflow"),
        workflow_id=past.workflow_id,
        run_id=past.run_id,
    )
    decision = replay.begin().decision
    replay.close()
    return listened, decision


def _first_difference(past: History, asked: list[tuple[str, str]], decision: Decision) -> int | None:
    """The position at which today's handler does not do what it did; None if it does."""
    stored = [(str(step.kind), step.step_id) for step in past.steps]
    for position, (before, today) in enumerate(zip(stored, asked, strict=False)):
        if before != today:
            return position
    if isinstance(decision, Fail) and isinstance(decision.cause, (DuplicateStepError, SerializationError)):
        as_then = past.status is RunStatus.FAILED and past.error_type == decision.error.type
        of_a_step = isinstance(decision.cause, DuplicateStepError) or decision.error.step_id is not None
        if not as_then:
            return len(asked) - 1 if of_a_step else len(asked)
    if len(asked) < len(stored):
        return len(asked)
    if past.status is RunStatus.COMPLETED and not isinstance(decision, Complete):
        return len(stored)
    return None


def _told(past: History, asked: list[tuple[str, str]], decision: Decision, position: int) -> str:
    stored = [(str(step.kind), step.step_id) for step in past.steps]
    before = _command(stored[position]) if position < len(stored) else _end(past)
    today = _command(asked[position]) if position < len(asked) else _outcome(decision)
    if before == today:
        today = f"{today}, and {_outcome(decision)}"
    width = max(len(kind) for kind, _ in (*stored, *asked, ("", "")))
    said = [
        f"workflow {past.workflow_id!r} does not replay run {past.run_id}: step {position} differs",
        f"stored: {before}",
        f"today:  {today}",
        *(f"      {number}  {kind:{width}}  {step_id}" for number, (kind, step_id) in enumerate(stored[:position])),
        f"    - {position}  {before}",
        f"    + {position}  {today}",
    ]
    return "\n".join(said)


def _command(asked: tuple[str, str]) -> str:
    kind, step_id = asked
    return f"{kind} {step_id!r}"


def _end(past: History) -> str:
    return "the end: it returned" if past.status is RunStatus.COMPLETED else f"the end: it is {past.status}"


def _outcome(decision: Decision) -> str:
    match decision:
        case Complete() | Fail(cause=NonDeterminismError()):
            return "the end: it returns"
        case Fail(error):
            return f"the end: {error.type}: {error.message}"
        case _:
            return "another step"
