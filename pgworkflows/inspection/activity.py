"""What happened lately: runs started and ended over time, how long they took, which failed; the same of steps."""

from __future__ import annotations

from collections import Counter
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
"""How many runs are looked at, the newest ones; of one workflow, as many steps, most of which are others'."""
MOST_STEPS = 5_000
"""How many steps are looked at where it is about all workflows."""
SHOWN_STEPS = 50
"""How many ids of steps are told of: the slowest, and those that failed most often."""
MAX_BUCKETS = 1_000
STARTED_EARLIER = 7
"""Runs that ended in the window are looked for among those that were started up to so many windows before it."""


@dataclass(frozen=True)
class Bucket:
    """What happened within `Activity.width` from a time on: how many runs were started, and how many ended, and how.

    `queue_lag` is what 95 % of the runs that were begun then had been ready for at most; `step_median` and `step_p95`
    are what half of the steps that ended then, and 95 % of them, took at most. None where there were none.
    """

    at: datetime
    started: int
    completed: int
    failed: int
    cancelled: int
    queue_lag: timedelta | None = None
    step_median: timedelta | None = None
    step_p95: timedelta | None = None


@dataclass(frozen=True)
class Totals:
    """What happened from `since` on: how many runs were started, and how many ended, and how. `bounded`: only the
    newest 20,000 runs were looked at, which `since` is the time of; there may be more."""

    since: datetime
    bounded: bool
    started: int
    completed: int
    failed: int
    cancelled: int

    @property
    def failure_rate(self) -> float | None:
        """Which part of the runs that completed or failed has failed, from 0 to 1; None if there were none."""
        return _failure_rate(self.completed, self.failed)


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

    At most the newest 20,000 runs are looked at: `bounded` when that was not all, and `since` is then how far back they
    went. A run that ended in the window but was started long before it, seven times its length and more, is not
    counted. `steps` are made of the newest 5,000 steps of all workflows, or of what is one workflow's among the newest
    20,000: `steps_since` is how far back these went if that was not all, else None. Of their ids there are the 50 that
    took longest, by `p95`, and the 50 that failed most often: ids that are made at run time can be thousands.
    """

    since: datetime
    until: datetime
    width: timedelta
    bounded: bool
    buckets: list[Bucket]
    workflows: list[WorkflowActivity]
    steps: list[StepActivity]
    steps_since: datetime | None = None

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
        return _failure_rate(self.completed, self.failed)


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
        params = {
            **_newest_runs(since, until),
            "until": until.isoformat(),
            "width": interval_text(width),
            "workflow_id": optional_name(workflow_id, "workflow_id"),
            "most_steps": MOST_STEPS if workflow_id is None else MOST,
            "shown": SHOWN_STEPS,
        }
        [found] = self._fetch_json("get_activity", params)
        return _activity(found, since, until, width)

    def _get_totals(self, length: timedelta) -> Totals:
        """What happened in so long a time up to now, in numbers alone: a fifth of the work."""
        until = self._now()
        since = before(until, length)
        [found] = self._fetch_json("get_totals", _newest_runs(since, until))
        reached = _reached(found, since)
        return Totals(
            reached, reached > since, found["started"], found["completed"], found["failed"], found["cancelled"]
        )


def _newest_runs(since: datetime, until: datetime) -> dict[str, object]:
    """Which runs are looked at for what happened in a window."""
    first = first_id_at(before(since, (until - since) * STARTED_EARLIER))
    return {"since": since.isoformat(), "first": str(first), "most": MOST}


def _reached(looked: Mapping[str, Any], since: datetime) -> datetime:
    """How far back the runs that were looked at went."""
    oldest = moment_from(looked["oldest"])
    return since if looked["looked"] < MOST or oldest is None else max(since, oldest)


def _activity(found: Mapping[str, Any], since: datetime, until: datetime, width: timedelta) -> Activity:
    reached = _reached(found["runs"], since)
    return Activity(
        since=reached,
        until=until,
        width=width,
        bounded=reached > since,
        buckets=[bucket for bucket in _buckets(found, since, until, width) if bucket.at + width > reached],
        workflows=[
            WorkflowActivity(row["workflow_id"], row["runs"], row["failures"], *_times(row))
            for row in found["workflows"] or ()
        ],
        steps=[
            StepActivity(row["workflow_id"], row["step_id"], row["calls"], row["failures"], *_times(row))
            for row in found["steps"] or ()
        ],
        steps_since=moment_from(found["steps_since"]),
    )


def _buckets(found: Mapping[str, Any], since: datetime, until: datetime, width: timedelta) -> list[Bucket]:
    """Each bucket of the window, without gaps."""

    def number(at: str) -> int:
        return round((moment(at) - since) / width)

    runs = Counter[tuple[int, str]]()
    for at, what, count in found["buckets"] or ():
        runs[number(at), what] += count
    lags = {number(at): seconds(p95_s) for at, p95_s in found["lags"] or ()}
    times = {number(at): (seconds(median_s), seconds(p95_s)) for at, median_s, p95_s in found["step_times"] or ()}
    return [
        Bucket(
            since + at * width,
            runs[at, "started"],
            runs[at, "completed"],
            runs[at, "failed"],
            runs[at, "cancelled"],
            lags.get(at),
            *times.get(at, (None, None)),
        )
        for at in range(-(-(until - since) // width))
    ]


def _failure_rate(completed: int, failed: int) -> float | None:
    ended = completed + failed
    return failed / ended if ended else None


def _times(row: Mapping[str, Any]) -> tuple[timedelta, timedelta]:
    return seconds(row["median_s"]) or timedelta(0), seconds(row["p95_s"]) or timedelta(0)
