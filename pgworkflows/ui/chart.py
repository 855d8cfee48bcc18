"""A run's timeline drawn to scale: where each bar begins and how long it is, in parts of a hundred."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from pgworkflows.inspection import Entry, Timeline
from pgworkflows.runs import RunStatus

TICKS = 4


@dataclass(frozen=True)
class Bar:
    """A span of time on the scale: `x` and `width` in per cent."""

    x: float
    width: float
    open: bool


class Chart:
    """The scale of a timeline, from when its run was made to its end, or to now."""

    def __init__(self, timeline: Timeline) -> None:
        run = timeline.run
        self._start = run.created_at
        end = run.completed_at if run.completed_at is not None and run.status.finished else timeline.now
        self._end = max([end, self._start, *(entry.ended_at for entry in timeline.entries if entry.ended_at)])
        self._span_s = (self._end - self._start).total_seconds() or 1e-6
        self.queued = self._bar(self._start, run.started_at or self._end)
        self.whole = self._bar(run.started_at or self._end, self._end, open=not run.status.finished)
        self.took = self._end - (run.started_at or self._start)
        self.in_hand, self.in_hand_for = self._in_hand(timeline)

    def _in_hand(self, timeline: Timeline) -> tuple[Bar | None, timedelta]:
        """The span since the last step ended, while a worker has the run: what it calls is not recorded yet."""
        run, begun = timeline.run, timeline.run.started_at
        ahead = timeline.next_position is not None or timeline.waits_for is not None
        if run.status is not RunStatus.RUNNING or begun is None or ahead:
            return None, timedelta(0)
        since = max([begun, *(entry.ended_at for entry in timeline.entries if entry.ended_at)])
        return self._bar(since, self._end, open=True), self._end - since

    @property
    def length(self) -> timedelta:
        return self._end - self._start

    @property
    def ticks(self) -> list[tuple[float, timedelta]]:
        """Marks of the scale: where, and how long after the start."""
        return [(100 * part / TICKS, self.length * part / TICKS) for part in range(TICKS + 1)]

    def bar(self, entry: Entry) -> Bar | None:
        """The span of a step; None of one that has not begun."""
        if entry.started_at is None:
            return None
        return self._bar(entry.started_at, entry.ended_at or self._end, open=entry.ended_at is None)

    def _bar(self, start: datetime, end: datetime, *, open: bool = False) -> Bar:
        x = min(max(self._part(start), 0), 100)
        return Bar(round(x, 3), round(max(min(self._part(end), 100) - x, 0), 3), open)

    def _part(self, time: datetime) -> float:
        return 100 * (time - self._start).total_seconds() / self._span_s
