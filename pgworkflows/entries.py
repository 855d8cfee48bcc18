"""What one run writes in one flush."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from pgworkflows.decisions import EventTaken, StepWrite
from pgworkflows.history import ErrorInfo, StepStatus


class Entry(NamedTuple):
    """What one run writes in one flush: its steps, and what becomes of the run.

    `action` is checkpoint (the run goes on), suspend, complete, fail, retry (of the whole run) or release. `child` is
    what the run that its last step invokes is started with.
    """

    run_id: str
    claim_id: int
    signal: int
    action: str
    steps: tuple[StepWrite, ...] = ()
    events: tuple[EventTaken, ...] = ()
    step_id: str | None = None
    wait_kind: str | None = None
    wait_event: str | None = None
    wake_after: timedelta | None = None
    output: str | None = None
    error: ErrorInfo | None = None
    child: Mapping[str, Any] | None = None
    parent_run_id: str | None = None

    @property
    def ends(self) -> bool:
        """Whether the run is finished by it."""
        return self.action in ("complete", "fail")


def length_of(entry: Entry) -> int:
    """How many characters of results an entry holds."""
    length = len(entry.output or "") + len(entry.child["input"] if entry.child else "")
    for step in entry.steps:
        length += len(step.output or "")
    return length


def without_results(entry: Entry, reason: str) -> Entry:
    """What to write instead of an entry that was refused: the step whose result it held has failed, or else the run;
    the generator, which has seen the result, is let go and replayed."""
    message = f"PostgreSQL cannot keep what it returned: {reason}"
    for row in entry.steps:
        if row.output is not None or row.error is not None:
            info = ErrorInfo("SerializationError", message, None, row.step_id)
            failed = row._replace(status=StepStatus.FAILED, output=None, error=info, wake_at=None, wake_after=None)
            return entry._replace(
                action="release", steps=(failed,), events=(), output=None, error=None, child=None, step_id=row.step_id
            )
    return entry._replace(
        action="fail", steps=(), events=(), output=None, child=None, error=ErrorInfo("SerializationError", message)
    )
