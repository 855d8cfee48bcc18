"""What has changed since one last looked: for live views, which ask again and again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self
from uuid import UUID

from pgworkflows.durations import parse_moment
from pgworkflows.history import StepKind, StepStatus
from pgworkflows.inspection.base import EPOCH, Inspection, first_id_at, moment
from pgworkflows.limits import quoted
from pgworkflows.operations import RunId, run_key
from pgworkflows.runs import RunStatus
from pgworkflows.store import moment_from

MAX_CHANGES = 10_000
OVERLAP = timedelta(seconds=5)
"""So late a transaction may commit, after the time that it wrote, and still be seen."""
_SNAPSHOT = re.compile(r"[0-9]{1,20}:[0-9]{1,20}:(?:[0-9]{1,20}(?:,[0-9]{1,20})*)?")


class ChangeKind(StrEnum):
    """What has happened."""

    RUN_STARTED = "run_started"
    STEP = "step"
    RUN_ENDED = "run_ended"


@dataclass(frozen=True)
class ChangeMark:
    """Where one has looked up to. `str` makes text of it, for a URL perhaps, and `parse` reads that."""

    moment: datetime
    snapshot: str

    def __str__(self) -> str:
        return f"{self.moment.isoformat()}~{self.snapshot}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The mark that text stands for. Raises ValueError."""
        at, _, snapshot = text.partition("~")
        if not _SNAPSHOT.fullmatch(snapshot):
            raise ValueError(f"{quoted(text)} is no mark: pass the mark of Changes as text")
        return cls(parse_moment(at, "the time of the mark"), snapshot)


@dataclass(frozen=True)
class Change:
    """A run that was started, a step that was recorded, or a run that has ended, and when.

    `status` is the run's status, as it is now, or the step's. The fields of steps are None for runs; `error_type` is
    that of a failure.
    """

    kind: ChangeKind
    at: datetime
    run_id: UUID
    workflow_id: str
    status: RunStatus | StepStatus
    error_type: str | None
    step_id: str | None = None
    step_kind: StepKind | None = None
    position: int | None = None
    attempts: int | None = None
    started_at: datetime | None = None


@dataclass(frozen=True)
class Changes:
    """What has changed, in order of time, and the mark from which to go on. `skipped`: there was more, and the oldest
    of it was left out."""

    items: list[Change]
    mark: ChangeMark
    skipped: bool


class ChangeOperations(Inspection):
    """How an inspector looks on."""

    def get_changes(
        self, since: ChangeMark | str | None = None, *, run_id: RunId | None = None, limit: int = 500
    ) -> Changes:
        """What has changed since a mark, of one run or of all; without a mark nothing, and the mark to begin with.

        `limit`, 1 to 10,000, bounds the runs started, the steps and the runs ended each; the newest are returned. Of
        all runs it tells the steps that have ended, of one run also those that wait or are to be called again. A
        transaction that commits more than five seconds after what it wrote may be missed. Raises ValueError and
        TypeError.
        """
        if type(limit) is not int or not 1 <= limit <= MAX_CHANGES:
            raise ValueError(f"limit must be an int within 1 and {MAX_CHANGES}, not {quoted(limit)}")
        key = None if run_id is None else run_key(run_id)
        mark = _checked_mark(since)
        if mark is None:
            [found] = self._fetch_json("get_mark", {})
            return Changes([], _mark(found), skipped=False)
        before = max(mark.moment, EPOCH) - OVERLAP
        params = {
            "moment": mark.moment.isoformat(),
            "since": before.isoformat(),
            "first": str(first_id_at(before)),
            "snapshot": mark.snapshot,
            "run_id": None if key is None else str(key),
            "limit": limit + 1,
        }
        [found] = self._fetch_json("get_changes", params)
        kinds = [
            [_of_run(ChangeKind.RUN_STARTED, row, row["created_at"]) for row in found["started"] or ()],
            [_of_step(row["step"], row["workflow_id"]) for row in found["steps"] or ()],
            [_of_run(ChangeKind.RUN_ENDED, row, row["completed_at"]) for row in found["ended"] or ()],
        ]
        items = [change for changes in kinds for change in changes[-limit:]]
        # At one time: the start of a run, its steps, its end.
        items.sort(key=lambda change: (change.at, _ORDER[change.kind], change.position or 0))
        return Changes(
            items=items,
            mark=_mark(found),
            skipped=any(len(changes) > limit for changes in kinds),
        )


def _mark(found: Mapping[str, Any]) -> ChangeMark:
    return ChangeMark(moment(found["now"]), found["snapshot"])


def _checked_mark(given: object) -> ChangeMark | None:
    if given is None or isinstance(given, ChangeMark):
        return given
    if isinstance(given, str):
        return ChangeMark.parse(given)
    raise TypeError(f"since must be the mark of Changes, not {type(given).__name__}")


_ORDER = {kind: at for at, kind in enumerate(ChangeKind)}


def _of_run(kind: ChangeKind, row: Mapping[str, Any], at: str) -> Change:
    return Change(
        kind=kind,
        at=moment(at),
        run_id=UUID(row["id"]),
        workflow_id=row["workflow_id"],
        status=RunStatus(row["status"]),
        error_type=row["error_type"],
    )


def _of_step(row: Mapping[str, Any], workflow_id: str) -> Change:
    return Change(
        kind=ChangeKind.STEP,
        at=moment(row["at"]),
        run_id=UUID(row["run_id"]),
        workflow_id=workflow_id,
        status=StepStatus(row["status"]),
        error_type=row["error_type"],
        step_id=row["step_id"],
        step_kind=StepKind(row["kind"]),
        position=row["position"],
        attempts=row["attempts"],
        started_at=moment_from(row["started_at"]),
    )
