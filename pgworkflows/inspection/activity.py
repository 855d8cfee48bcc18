"""What happened lately: runs started and ended over time, how long they took, which failed; the same of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pgworkflows.durations import Duration, parse_positive_duration
from pgworkflows.inspection.base import Inspection, before, first_id_at, moment, seconds
from pgworkflows.limits import quoted
from pgworkflows.starts import optional_name
from pgworkflows.store import interval_text, moment_from

MOST = 20_000
"""How many runs are looked at, the newest ones, and how many steps."""
MAX_BUCKETS = 1_000
STARTED_EARLIER = 7
"""Runs that ended in the window are looked for among those that were started up to so many windows before it."""


@dataclass(frozen=True)
class Bucket:
    """What happened within `Activity.width` from a time on: how many runs were started, and how many ended, and how."""

    at: datetime
    started: int
    completed: int
    failed: int
    cancelled: int


@dataclass(frozen=True)
class WorkflowActivity:
    """The runs of a workflow that ended in the window: how many, how many of them failed, and what half of them and 95
    % of them took at most, from start to end."""

    workflow_id: str
    runs: int
    failures: int
    median: timedelta
    p95: timedelta


@dataclass(frozen=True)
class StepActivity:
    """The steps of one id that call a function and ended in the window: how many, how many of them failed, and what
    half of them and 95 % of them took at most, retries and the pauses between them included."""

    workflow_id: str
    step_id: str
    calls: int
    failures: int
    median: timedelta
    p95: timedelta


@dataclass(frozen=True)
class Activity:
    """What happened from `since` to `until`, in buckets of `width`, the oldest first, without gaps.

    At most the newest 20,000 runs are looked at, and as many steps: `bounded` when that was not all, and `since` is
    then how far back they went. A run that ended in the window but was started long before it, seven times its length
    and more, is not counted.
    """

    since: datetime
    until: datetime
    width: timedelta
    bounded: bool
    buckets: list[Bucket]
    workflows: list[WorkflowActivity]
    steps: list[StepActivity]

    @property
    def started(self) -> int:
        return sum(bucket.started for bucket in self.buckets)

    @property
    def completed(self) -> int:
        return sum(bucket.completed for bucket in self.buckets)

    @property
    def failed(self) -> int:
        return sum(bucket.failed for bucket in self.buckets)

    @property
    def cancelled(self) -> int:
        return sum(bucket.cancelled for bucket in self.buckets)

    @property
    def failure_rate(self) -> float | None:
        """Which part of the runs that completed or failed has failed, from 0 to 1; None if there were none."""
        ended = self.completed + self.failed
        return self.failed / ended if ended else None


class ActivityOperations(Inspection):
    """How an inspector looks at what happened lately."""

    def get_activity(
        self, window: Duration = "1 hour", *, workflow_id: str | None = None, buckets: int = 60
    ) -> Activity:
        """What happened in the window up to now, of one workflow or of all, in so many buckets (1 to 1000). Raises
        ValueError and TypeError."""
        length = parse_positive_duration(window, "window")
        if type(buckets) is not int or not 1 <= buckets <= MAX_BUCKETS:
            raise ValueError(f"buckets must be an int within 1 and {MAX_BUCKETS}, not {quoted(buckets)}")
        width = max(length / buckets, timedelta(milliseconds=1))
        until = self._now()
        since = before(until, length)
        length = until - since
        params = {
            "since": since.isoformat(),
            "until": until.isoformat(),
            "first": str(first_id_at(before(since, length * STARTED_EARLIER))),
            "width": interval_text(width),
            "workflow_id": optional_name(workflow_id, "workflow_id"),
            "most": MOST,
        }
        [found] = self._fetch_json("get_activity", params)
        return _activity(found, since, until, width)


def _activity(found: Mapping[str, Any], since: datetime, until: datetime, width: timedelta) -> Activity:
    oldest_run, oldest_step = moment_from(found["oldest"]), moment_from(found["oldest_step"])
    reached = since
    if found["looked"] == MOST and oldest_run is not None:
        reached = max(reached, oldest_run)
    if oldest_step is not None:
        reached = max(reached, oldest_step)
    return Activity(
        since=reached,
        until=until,
        width=width,
        bounded=reached > since,
        buckets=[
            bucket
            for bucket in _without_gaps(found["buckets"] or (), since, until, width)
            if bucket.at + width > reached
        ],
        workflows=[
            WorkflowActivity(row["workflow_id"], row["runs"], row["failures"], *_times(row))
            for row in found["workflows"] or ()
        ],
        steps=[
            StepActivity(row["workflow_id"], row["step_id"], row["calls"], row["failures"], *_times(row))
            for row in found["steps"] or ()
        ],
    )


def _without_gaps(rows: Any, since: datetime, until: datetime, width: timedelta) -> list[Bucket]:
    counted = {
        round((moment(row["at"]) - since) / width): (row["started"], row["completed"], row["failed"], row["cancelled"])
        for row in rows
    }
    number = -(-(until - since) // width)
    return [Bucket(since + at * width, *counted.get(at, (0, 0, 0, 0))) for at in range(number)]


def _times(row: Mapping[str, Any]) -> tuple[timedelta, timedelta]:
    return seconds(row["median_s"]) or timedelta(0), seconds(row["p95_s"]) or timedelta(0)
