"""Claimed runs are opened before they are replayed, entries are sealed before they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pgworkflows.claims import ClaimedRun
from pgworkflows.decisions import StepWrite
from pgworkflows.entries import Entry
from pgworkflows.errors import SerializationError
from pgworkflows.history import ErrorInfo, StepKind, StepStatus, StoredChild, StoredStep
from pgworkflows.jsontext import ENCODED, parse_json
from pgworkflows.payloads import Payloads
from pgworkflows.results import poll_output


def opened(run: ClaimedRun, payloads: Payloads) -> ClaimedRun:
    """A claimed run with its payloads as they were before they were encoded. Raises Unreadable."""
    return run._replace(
        input=payloads.open(run.input),
        steps=tuple(_opened_step(step, payloads) for step in run.steps),
        events=tuple(replace(event, data=payloads.open(event.data)) for event in run.events),
        child=None if run.child is None else _opened_child(run.child, payloads),
    )


def _opened_step(step: StoredStep, payloads: Payloads) -> StoredStep:
    output, error = step.output, step.error
    if output is not None:
        output = payloads.open(output)
        if step.kind is StepKind.POLL and ENCODED in output:
            output = _opened_poll(output, payloads)
    return step._replace(output=output, error=None if error is None else payloads.open_error(error))


def _opened_poll(output: str, payloads: Payloads) -> str:
    """The output of a poll that was fast-forwarded: made in SQL, around data that the client has encoded."""
    data = payloads.open_part(parse_json(output)["data"])
    return output if data is None else poll_output(data)


def _opened_child(child: StoredChild, payloads: Payloads) -> StoredChild:
    return replace(
        child,
        output=None if child.output is None else payloads.open(child.output),
        error=None if child.error is None else payloads.open_error_row(child.error),
    )


def sealed(entry: Entry, payloads: Payloads) -> tuple[Entry, SerializationError | None]:
    """An entry as it is written, and what could not be encoded, if anything could not: that has failed its step, which
    the handler will see in another replay; or else the run."""
    rows: list[StepWrite] = []
    for row in entry.steps:
        try:
            rows.append(_sealed_row(row, payloads))
        except SerializationError as error:
            return _with_failure(entry, rows, row, error), error
    try:
        if entry.child is not None:
            entry = entry._replace(child=_sealed_child(entry.child, payloads))
    except SerializationError as error:
        return _with_failure(entry, rows[:-1], rows[-1], error), error
    entry = entry._replace(steps=tuple(rows))
    try:
        if entry.output is not None:
            entry = entry._replace(output=payloads.seal(entry.output, "the output of the workflow"))
    except SerializationError as error:
        return entry._replace(action="fail", output=None, error=_told(error, None)), error
    try:
        if entry.error is not None:
            entry = entry._replace(error=payloads.seal_error(entry.error))
    except SerializationError as error:
        assert entry.error is not None
        return entry._replace(error=_withheld(entry.error, error)), error
    return entry, None


def _sealed_row(row: StepWrite, payloads: Payloads) -> StepWrite:
    if row.output is not None:
        return row._replace(output=payloads.seal(row.output, f"the result of step {row.step_id!r}"))
    if row.error is None:
        return row
    try:
        return row._replace(error=payloads.seal_error(row.error))
    except SerializationError as error:
        if row.status == StepStatus.RETRYING:  # nobody has seen the message yet, and nobody has to
            return row._replace(error=_withheld(row.error, error))
        raise


def _sealed_child(child: Mapping[str, Any], payloads: Payloads) -> dict[str, Any]:
    """What a child is started with; the step that invokes it is the last of its entry."""
    return {**child, "input": payloads.seal(child["input"], f"the input of workflow {child['workflow_id']!r}")}


def _with_failure(entry: Entry, before: list[StepWrite], row: StepWrite, error: SerializationError) -> Entry:
    """What to write when something of a step cannot be encoded: the steps before it, and that it has failed."""
    failed = row._replace(
        status=StepStatus.FAILED, output=None, error=_told(error, row.step_id), wake_at=None, wake_after=None
    )
    steps = (*before, failed)
    ids = {step.step_id for step in steps}
    return entry._replace(
        action="release",
        steps=steps,
        events=tuple(taken for taken in entry.events if taken.step_id in ids),
        step_id=row.step_id,
        output=None,
        error=None,
        child=None,
    )


def _told(error: SerializationError, step_id: str | None) -> ErrorInfo:
    """Not encoded itself: it holds names only."""
    return ErrorInfo("SerializationError", error.message, None, step_id)


def _withheld(error: ErrorInfo, why: SerializationError) -> ErrorInfo:
    """An error without what could not be encoded."""
    return ErrorInfo(error.type, why.message, None, error.step_id)
