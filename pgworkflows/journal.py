"""Batched, fenced writes: the outcomes of many runs made durable by one statement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from json.encoder import encode_basestring as _quoted
from typing import Any, NamedTuple
from uuid import UUID

from pgworkflows import claims
from pgworkflows.claims import Outcomes
from pgworkflows.database import Locked, Refused
from pgworkflows.history import ErrorInfo, StepStatus
from pgworkflows.limits import MAX_JSON_LENGTH
from pgworkflows.replay import EventTaken, StepWrite
from pgworkflows.worker_connection import WorkerConnection


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


class Verdict(Enum):
    """What became of an entry."""

    WRITTEN = "written"
    LOCKED = "locked"
    STALE = "stale"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """`control` is what was asked of the run meanwhile, and has been done; `reason` tells why an entry was refused, and
    `fact` the same for logs."""

    verdict: Verdict
    control: str | None = None
    reason: str = ""
    fact: str = ""


WRITTEN = Answer(Verdict.WRITTEN)


def write(conn: WorkerConnection, worker_id: UUID, entries: Sequence[Entry]) -> list[Answer]:
    """Write entries, at most one for each run, and answer for each.

    One bad entry does not spoil the others: on an error in the data, or a row lock that does not come free, the batch
    is halved until the culprit stands alone; so is a batch that is too large for one statement. Raises Unavailable:
    send the whole batch again, for a step that is completed is not written twice.
    """
    if len(entries) > 1 and sum(map(length_of, entries)) > MAX_JSON_LENGTH:
        return _write_halves(conn, worker_id, entries)
    try:
        told = claims.flush(conn, spelled(worker_id, entries))
    except (Refused, Locked) as error:
        if len(entries) == 1:
            if isinstance(error, Locked):
                return [Answer(Verdict.LOCKED)]
            return [Answer(Verdict.REFUSED, reason=str(error), fact=error.fact)]
        return _write_halves(conn, worker_id, entries)
    return answers(told, entries)


def _write_halves(conn: WorkerConnection, worker_id: UUID, entries: Sequence[Entry]) -> list[Answer]:
    middle = len(entries) // 2
    return write(conn, worker_id, entries[:middle]) + write(conn, worker_id, entries[middle:])


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


def answers(told: Sequence[Mapping[str, Any]], entries: Sequence[Entry]) -> list[Answer]:
    """An answer for each entry, of which the server tells what is out of the ordinary."""
    if not told:
        return [WRITTEN] * len(entries)
    by_run = {each["run_id"]: Answer(Verdict(each["answer"]), each["control"]) for each in told}
    return [by_run.get(entry.run_id, WRITTEN) for entry in entries]


def _entry_text(entry: Entry) -> str:
    """An entry as JSON. Most are checkpoints, and most others are ends, which are spelled here: a flush spends a third
    of its time in Python on making dicts and writing them."""
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
        "error": None if entry.error is None else error_text(entry.error),
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
        "error": None if step.error is None else error_text(step.error),
        "wake_at": None if step.wake_at is None else step.wake_at.isoformat(),
        "wake_after": None if step.wake_after is None else step.wake_after.total_seconds(),
        "deadline_at": None if step.deadline_at is None else step.deadline_at.isoformat(),
        "deadline_after": None if step.deadline_after is None else step.deadline_after.total_seconds(),
    }
    return json.dumps(row, ensure_ascii=False)


def error_text(error: ErrorInfo) -> str:
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
