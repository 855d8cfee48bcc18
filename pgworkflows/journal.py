"""Batched, fenced writes: the outcomes of many runs made durable by one statement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from uuid import UUID

from pgworkflows import claims
from pgworkflows.columns import Row, columns_of, row_of
from pgworkflows.database import Locked, Refused
from pgworkflows.documents import Piece, spelled
from pgworkflows.entries import Entry, length_of
from pgworkflows.limits import MAX_JSON_LENGTH
from pgworkflows.worker_connection import WorkerConnection

NOTHING_ELSE = (None, None, None, None, None)


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


class Unusual(Exception):
    """Something of a flight is out of the ordinary, and nothing of it was written: it is for `write`."""


def write(conn: WorkerConnection, worker_id: UUID, entries: Sequence[Entry]) -> list[Answer]:
    """Write entries, at most one for each run, and answer for each.

    One bad entry does not spoil the others: on an error in the data, or a row lock that does not come free, the batch
    is halved until the culprit stands alone; so is a batch that is too large for one statement. Raises Unavailable:
    send the whole batch again, for a step that is completed is not written twice.
    """
    if len(entries) == 1 and _is_written_as_row(conn, worker_id, entries[0]):
        return [WRITTEN]
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


def _is_written_as_row(conn: WorkerConnection, worker_id: UUID, entry: Entry) -> bool:
    row = row_of(entry)
    try:
        return row is not None and claims.flush_results(conn, (*columns_of(worker_id, [row]), *NOTHING_ELSE))
    except (Refused, Locked):
        return False


def _write_halves(conn: WorkerConnection, worker_id: UUID, entries: Sequence[Entry]) -> list[Answer]:
    middle = len(entries) // 2
    return write(conn, worker_id, entries[:middle]) + write(conn, worker_id, entries[middle:])


def statement_for(
    worker_id: UUID, entries: Sequence[Entry], pieces: Sequence[Row | Piece]
) -> tuple[str, Sequence[str | None]]:
    """The statement that writes entries, of which these are the pieces, and its parameters."""
    rows = [piece for piece in pieces if isinstance(piece, Row)]
    if len(rows) == len(pieces):
        return "flush_results", (*columns_of(worker_id, rows), *NOTHING_ELSE)
    others = [entry for entry, piece in zip(entries, pieces, strict=True) if isinstance(piece, Piece)]
    outcomes = spelled(worker_id, others, [piece for piece in pieces if isinstance(piece, Piece)])
    return ("flush_results", (*columns_of(worker_id, rows), *outcomes)) if rows else ("flush", outcomes)


def answers_in(answer: str, entries: Sequence[Entry]) -> list[Answer] | Unusual:
    """What the answer to a flight says, which is more than that all is written."""
    if answer == "false":
        return Unusual()
    return answers(json.loads(answer), entries)


def answers(told: Sequence[Mapping[str, Any]], entries: Sequence[Entry]) -> list[Answer]:
    """An answer for each entry, of which the server tells what is out of the ordinary."""
    if not told:
        return [WRITTEN] * len(entries)
    by_run = {each["run_id"]: Answer(Verdict(each["answer"]), each["control"]) for each in told}
    return [by_run.get(entry.run_id, WRITTEN) for entry in entries]
