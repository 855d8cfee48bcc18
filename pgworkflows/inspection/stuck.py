"""What is stuck: unfinished runs that nothing will move, or that are long in coming, why, and what to do about it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from pgworkflows.durations import Duration, parse_duration
from pgworkflows.inspection.base import Inspection, before, first_id_at, moment
from pgworkflows.limits import quoted
from pgworkflows.store import interval_text

MAX_GROUPS = 1_000


class StuckReason(StrEnum):
    """Why runs do not move."""

    NO_WORKER_HAS_WORKFLOW = "no_worker_has_workflow"
    NO_WORKER_SERVES_QUEUE = "no_worker_serves_queue"
    LAGGING = "lagging"
    OVERDUE = "overdue"
    INTERRUPTED = "interrupted"
    WORKER_DEAD = "worker_dead"
    STEP_IN_FLIGHT = "step_in_flight"
    WAITS_FOR_EVENT = "waits_for_event"
    PAUSED = "paused"


@dataclass(frozen=True)
class Stuck:
    """Runs of one workflow in one queue that are stuck for one reason: how many, up to three of them, and since when
    the longest of them is. Of waits, pauses and what is due the oldest 2,000 are looked at. `explanation` says what is
    the matter, `remedy` what to do: a command, or what to deploy."""

    reason: StuckReason
    workflow_id: str
    queue: str
    runs: int
    examples: list[UUID]
    since: datetime
    explanation: str
    remedy: str


class StuckOperations(Inspection):
    """How an inspector looks for what is stuck."""

    def get_stuck(
        self,
        *,
        waits_older_than: Duration = "7 days",
        steps_longer_than: Duration = "1 hour",
        lag_over: Duration = "1 minute",
        limit: int = 100,
    ) -> list[Stuck]:
        """What is stuck, the longest first.

        `waits_older_than`: waits for an event without a deadline, and pauses, count from this age on.
        `steps_longer_than`: steps in flight do. `lag_over`: so long may a run be ready or due, or in the hands of a
        worker that is silent. `limit` is 1 to 1000. Raises ValueError and TypeError.
        """
        if type(limit) is not int or not 1 <= limit <= MAX_GROUPS:
            raise ValueError(f"limit must be an int within 1 and {MAX_GROUPS}, not {quoted(limit)}")
        waits = parse_duration(waits_older_than, "waits_older_than")
        now = self._now()
        params = {
            "now": now.isoformat(),
            "first": str(first_id_at(before(now, waits))),
            "wait_over": interval_text(waits),
            "step_over": interval_text(parse_duration(steps_longer_than, "steps_longer_than")),
            "lag_over": interval_text(parse_duration(lag_over, "lag_over")),
            "limit": limit,
        }
        return [_stuck(row) for row in self._fetch_json("get_stuck", params)]


def _stuck(row: Mapping[str, Any]) -> Stuck:
    reason = StuckReason(row["reason"])
    examples = [UUID(text) for text in row["examples"]]
    since, now = moment(row["since"] or row["now"]), moment(row["now"])
    explanation, remedy = _words(reason, row, examples[0], now - since)
    return Stuck(reason, row["workflow_id"], row["queue"], row["runs"], examples, since, explanation, remedy)


def _words(reason: StuckReason, row: Mapping[str, Any], example: UUID, age: timedelta) -> tuple[str, str]:
    """What is the matter with these runs, and what to do about it."""
    more: Mapping[str, Any] = row["more"] or {}
    runs = "1 run" if row["runs"] == 1 else f"{row['runs']} runs"
    facts: dict[str, object] = {
        **more,
        "runs": f"{runs} of workflow {row['workflow_id']!r} in queue {row['queue']!r}",
        "workflow": row["workflow_id"],
        "queue": row["queue"],
        "queue_argument": shlex.quote(row["queue"]),
        "event_argument": shlex.quote(more.get("event_name", "")),
        "long": spoken(age),
        "example": example,
        "worker": f"worker {more['hostname']}:{more['pid']}" if more.get("pid") else "a worker that is gone",
    }
    explanation, remedy = _WORDS[reason] if row["live_workers"] else _WORDS_WITHOUT_WORKERS.get(reason, _WORDS[reason])
    return explanation.format(**facts), remedy.format(**facts)


_START_ONE = "start a worker whose engine has workflow {workflow!r} and serves queue {queue!r}"
_WORDS = {
    StuckReason.NO_WORKER_HAS_WORKFLOW: (
        "{runs}, ready for up to {long}: no live worker has that workflow",
        _START_ONE,
    ),
    StuckReason.NO_WORKER_SERVES_QUEUE: (
        "{runs}, ready for up to {long}: live workers have that workflow, but none of them serves that queue",
        "pgworkflows worker MODULE:ENGINE --queue {queue_argument}, or let another worker serve queue {queue!r}",
    ),
    StuckReason.LAGGING: (
        (
            "{runs}, ready for up to {long}, although live workers would take them: these have too much to do, or"
            " somebody holds the rows"
        ),
        "start more workers for queue {queue!r}; end transactions that have been open for as long (pg_stat_activity)",
    ),
    StuckReason.OVERDUE: (
        (
            "{runs}, whose timer, timeout or retry has been due for up to {long}: somebody holds the rows, or the"
            " workers stand still"
        ),
        "end transactions that have been open for as long (pg_stat_activity), or restart the workers",
    ),
    StuckReason.INTERRUPTED: (
        (
            "{runs}: up to {interruptions} times in a row a worker died with it before its next checkpoint; after"
            " ten the run fails"
        ),
        "see in the logs of the workers what ends them, mend it, or: pgworkflows cancel {example}",
    ),
    StuckReason.WORKER_DEAD: (
        "{runs} in the hands of {worker}, silent for up to {long}: no other worker has taken them over",
        "start a worker: any live worker takes over from the dead",
    ),
    StuckReason.STEP_IN_FLIGHT: (
        "{runs} in a step that has not ended for up to {long}, on {worker}",
        (
            "see what that process does (py-spy dump --pid {pid}); end it, and the run goes on elsewhere; give "
            "the step a .timeout()"
        ),
    ),
    StuckReason.WAITS_FOR_EVENT: (
        "{runs}, waiting for event {event_name!r} without a deadline for up to {long}",
        "pgworkflows trigger {example} {event_argument}, or: pgworkflows cancel {example}; give the wait a timeout=",
    ),
    StuckReason.PAUSED: (
        "{runs}, paused for up to {long}",
        "pgworkflows resume {example}, or: pgworkflows cancel {example}",
    ),
}
_WORDS_WITHOUT_WORKERS = {
    StuckReason.NO_WORKER_HAS_WORKFLOW: ("{runs}, ready for up to {long}: no worker lives", _START_ONE),
    StuckReason.OVERDUE: (
        "{runs}, whose timer, timeout or retry has been due for up to {long}: no worker lives",
        "start a worker: any live worker wakes what is due",
    ),
}


def spoken(duration: timedelta) -> str:
    """A duration in its two largest units, for people."""
    total = max(0, int(duration.total_seconds()))
    parts = (total // 86400, "d"), (total // 3600 % 24, "h"), (total // 60 % 60, "min"), (total % 60, "s")
    shown = [f"{number} {unit}" for number, unit in parts if number]
    return " ".join(shown[:2]) or "0 s"
