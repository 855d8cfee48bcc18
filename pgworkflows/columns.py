"""The entries that say no more than that a step has returned at its first call: most. They are columns of a flush."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from pgworkflows.entries import Entry
from pgworkflows.history import StepKind, StepStatus

SEPARATOR = "\x1f"
"""Stands between the texts of a column: JSON has it escaped."""


class Row(NamedTuple):
    """Such an entry. `end` is the output of its run, if that ends; like `output` it is JSON text. `elapsed_us` is how
    many microseconds its call took."""

    run_id: str
    claim_id: int
    position: int
    step_id: str
    output: str
    elapsed_us: int
    end: str | None


class Columns(NamedTuple):
    """The rows of a flush as PostgreSQL's arrays, or as texts with separators; those whose runs end come first."""

    worker_id: str
    run_ids: str
    claim_ids: str
    positions: str
    step_ids: str
    outputs: str
    elapsed: str
    ends: str | None


def row_of(entry: Entry) -> Row | None:
    """An entry as a row, if it says no more than that."""
    if len(entry.steps) != 1 or entry.events:
        return None
    if entry.action == "complete" and entry.output is not None and entry.parent_run_id is None:
        end = entry.output
    elif entry.action == "checkpoint":
        end = None
    else:
        return None
    step = entry.steps[0]
    if step.kind != StepKind.RUN or step.status != StepStatus.COMPLETED or step.output is None:
        return None
    if step.attempts != 1 or step.prior_attempts != 0:
        return None
    for text in (step.step_id, step.output, end or ""):
        if SEPARATOR in text or "\0" in text:
            return None
    return Row(
        entry.run_id, entry.claim_id, step.position, step.step_id, step.output, int(step.elapsed_s * 1_000_000), end
    )


def columns_of(worker_id: UUID, rows: Sequence[Row]) -> Columns:
    """Rows as a flush takes them."""
    ends = [row for row in rows if row.end is not None]
    if ends:
        rows = ends + [row for row in rows if row.end is None]
    run_ids, claim_ids, positions, step_ids, outputs, elapsed, _ = zip(*rows, strict=True)
    return Columns(
        str(worker_id),
        f"{{{','.join(run_ids)}}}",
        f"{{{','.join(map(str, claim_ids))}}}",
        f"{{{','.join(map(str, positions))}}}",
        SEPARATOR.join(step_ids),
        SEPARATOR.join(outputs),
        f"{{{','.join(map(str, elapsed))}}}",
        SEPARATOR.join([row.end for row in ends if row.end is not None]) if ends else None,
    )
