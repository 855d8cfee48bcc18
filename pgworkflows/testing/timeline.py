"""A run as text: where it stands, and the steps that got it there."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from pgworkflows.history import StepKind, StepRecord, StepStatus
from pgworkflows.runs import RunStatus, WorkflowRun

MAX_LENGTH = 100


def state(run: WorkflowRun, steps: Sequence[StepRecord]) -> str:
    """Where a run stands, in one sentence."""
    match run.status:
        case RunStatus.COMPLETED:
            return f"completed with {shown(run.output)}"
        case RunStatus.FAILED:
            where = f" in step {run.error['step_id']!r}" if run.error and run.error["step_id"] else ""
            return f"failed{where}: {_error(run.error)}"
        case RunStatus.WAITING | RunStatus.PAUSED if (wait := waiting_step(steps)) is not None:
            return f"{run.status} {_waits_for(wait)}"
        case RunStatus.PENDING:
            return f"pending: {_why_pending(run, steps)}"
        case _:
            return str(run.status)


def waiting_step(steps: Iterable[StepRecord]) -> StepRecord | None:
    """The step that a run waits in."""
    return next((step for step in steps if step.status is StepStatus.WAITING), None)


def timeline(steps: Iterable[StepRecord]) -> str:
    """The steps a run has reached, one a line."""
    rows = [(str(step.position), step.step_id, str(step.kind), _outcome(step)) for step in steps]
    if not rows:
        return "(no step was reached)"
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{position:>{widths[0]}}  {step_id:{widths[1]}}  {kind:{widths[2]}}  {outcome}"
        for position, step_id, kind, outcome in rows
    )


def difference(expected: Any, actual: Any) -> str:
    """How two JSON values differ, line by line."""
    lines = (_lines(expected), _lines(actual))
    return "\n".join(difflib.unified_diff(*lines, "expected", "actual", lineterm="", n=3))


def shown(value: Any) -> str:
    """A JSON value in one short line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}…"


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _lines(value: Any) -> list[str]:
    return json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True).splitlines()


def _waits_for(step: StepRecord) -> str:
    until = "" if step.wake_at is None else f", until {step.wake_at:%Y-%m-%d %H:%M:%S} at the latest"
    match step.kind:
        case StepKind.WAIT_FOR:
            return f"for event {step.event_name!r} in step {step.step_id!r}{until}"
        case StepKind.INVOKE_CHILD_WORKFLOW:
            return f"for child run {step.child_run_id} in step {step.step_id!r}"
        case _:
            return f"in step {step.step_id!r} ({step.kind}){until}"


def _why_pending(run: WorkflowRun, steps: Iterable[StepRecord]) -> str:
    retrying = next((step for step in steps if step.status is StepStatus.RETRYING and step.wake_at), None)
    if retrying is not None:
        return (
            f"step {retrying.step_id!r} failed with {_error(retrying.error)}, and is called again at "
            f"{retrying.wake_at:%Y-%m-%d %H:%M:%S}: travel there"
        )
    if run.error is not None:
        return f"it failed with {_error(run.error)}, and is executed again at {run.scheduled_at}: travel there"
    return "ready, but nobody has advanced it: register its workflow, or call run_until_idle()"


def _outcome(step: StepRecord) -> str:
    calls = f" after {step.attempts} calls" if step.attempts > 1 else ""
    match step.status:
        case StepStatus.COMPLETED:
            return f"completed{calls}  {shown(step.output)}"
        case StepStatus.FAILED | StepStatus.RETRYING:
            return f"{step.status}{calls}  {_error(step.error)}"
        case StepStatus.WAITING:
            return f"waiting {_waits_for(step)}"
        case StepStatus.CANCELLED:
            return "cancelled"


def _error(error: dict[str, Any] | None) -> str:
    if error is None:
        return "?"
    message = str(error["message"])
    return f"{error['type']}: {message if len(message) <= MAX_LENGTH else message[:MAX_LENGTH] + '…'}"
