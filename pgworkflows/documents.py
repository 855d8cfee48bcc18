"""Entries as the JSON documents of a flush: whatever they say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.encoder import encode_basestring as _quoted
from typing import Any, NamedTuple
from uuid import UUID

from pgworkflows.claims import Outcomes
from pgworkflows.decisions import StepWrite
from pgworkflows.entries import Entry
from pgworkflows.history import ErrorInfo, StepStatus


class Piece(NamedTuple):
    """What an entry adds to the JSON of a flush: an object, and others with commas between them."""

    entry: str
    steps: str


def piece_of(entry: Entry) -> Piece:
    """An entry's piece of the flush that it is going to be in."""
    return Piece(_entry_text(entry), ",".join([_step_text(entry.run_id, step) for step in entry.steps]))


def spelled(worker_id: UUID, entries: Sequence[Entry], pieces: Sequence[Piece] | None = None) -> Outcomes:
    """Entries as a flush takes them; `pieces` are theirs, if they are known already."""
    if pieces is None:
        pieces = [piece_of(entry) for entry in entries]
    events = [
        {"run_id": entry.run_id, "event_id": taken.event_id, "step_id": taken.step_id}
        for entry in entries
        if entry.events
        for taken in entry.events
    ]
    parents = {entry.parent_run_id for entry in entries if entry.parent_run_id is not None and entry.ends}
    return Outcomes(
        str(worker_id),
        f"[{','.join([piece.entry for piece in pieces])}]",
        f"[{','.join([piece.steps for piece in pieces if piece.steps])}]",
        json.dumps(events, ensure_ascii=False) if events else None,
        f"{{{','.join(sorted(parents))}}}" if parents else None,
    )


def _entry_text(entry: Entry) -> str:
    """An entry as JSON. Checkpoints and ends are spelled here, which is quicker than to make dicts and write them: they
    are most where batches go by documents only, behind a pooler."""
    if entry.action == "checkpoint":
        return (
            f'{{"run_id":"{entry.run_id}","claim_id":{entry.claim_id},"action":"checkpoint","signal":{entry.signal}}}'
        )
    if entry.action == "complete" and entry.output is not None and entry.parent_run_id is None:
        last = "null" if entry.step_id is None else _quoted(entry.step_id)
        return (
            f'{{"run_id":"{entry.run_id}","claim_id":{entry.claim_id},"action":"complete","signal":{entry.signal},'
            f'"step_id":{last},"output":{_quoted(entry.output)}}}'
        )
    row: dict[str, Any] = {
        "run_id": entry.run_id,
        "claim_id": entry.claim_id,
        "action": entry.action,
        "signal": entry.signal,
        "step_id": entry.step_id,
        "wait_kind": entry.wait_kind,
        "wait_event": entry.wait_event,
        "wake_after": None if entry.wake_after is None else entry.wake_after.total_seconds(),
        "output": entry.output,
        "error": None if entry.error is None else _error_text(entry.error),
    }
    if entry.child is not None:
        row["child"] = entry.child
    if entry.parent_run_id is not None and entry.ends:
        row["parent_run_id"] = entry.parent_run_id
    return json.dumps(row, ensure_ascii=False)


def _step_text(run_id: str, step: StepWrite) -> str:
    """A step as JSON, spelled for those that are completed."""
    if step.status == StepStatus.COMPLETED and step.output is not None and step.event_name is None:
        return (
            f'{{"run_id":"{run_id}","position":{step.position},"step_id":{_quoted(step.step_id)},"kind":"{step.kind}",'
            f'"status":"completed","output":{_quoted(step.output)},"attempts":{step.attempts},'
            f'"prior_attempts":{step.prior_attempts},"elapsed":{step.elapsed_s:.6f}}}'
        )
    row = {
        "run_id": run_id,
        "position": step.position,
        "step_id": step.step_id,
        "kind": step.kind,
        "status": step.status,
        "output": step.output,
        "attempts": step.attempts,
        "prior_attempts": step.prior_attempts,
        "elapsed": step.elapsed_s,
        "event_name": step.event_name,
        "error": None if step.error is None else _error_text(step.error),
        "wake_at": None if step.wake_at is None else step.wake_at.isoformat(),
        "wake_after": None if step.wake_after is None else step.wake_after.total_seconds(),
        "deadline_at": None if step.deadline_at is None else step.deadline_at.isoformat(),
        "deadline_after": None if step.deadline_after is None else step.deadline_after.total_seconds(),
    }
    return json.dumps(row, ensure_ascii=False)


def _error_text(error: ErrorInfo) -> str:
    """An error as JSON text."""
    row: dict[str, Any] = {
        "type": error.type,
        "message": error.message,
        "traceback": error.traceback,
        "step_id": error.step_id,
    }
    if error.child is not None:
        row["child"] = {"run_id": error.child.run_id, "status": error.child.status, "error": error.child.error}
    return json.dumps(row, ensure_ascii=False)
