"""One run, with all that one wants to see beside it: what it did, what it waits for, what is still ahead."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pgworkflows.history import StepRecord, StepStatus
from pgworkflows.inspection.base import Inspection, declared_steps, moment
from pgworkflows.limits import quoted
from pgworkflows.operations import RunId, not_found, run_key
from pgworkflows.payloads import Payloads
from pgworkflows.runs import RunStatus, WorkflowRun
from pgworkflows.source import StepDefinition
from pgworkflows.store import moment_from, run_from_json, step_from

MAX_ENTRIES = 10_000


@dataclass(frozen=True)
class Entry:
    """A step of a timeline. `ended_at` is None while it lasts; `duration` is then that so far. `taken_back`: it failed,
    and a retry of the run has taken that back, so that the step will be done anew. `omitted_bytes` is the stored size
    of an output that was left out, being larger than was asked for; the step's is None then."""

    step: StepRecord
    started_at: datetime | None
    ended_at: datetime | None
    duration: timedelta | None
    taken_back: bool
    omitted_bytes: int | None = None


@dataclass(frozen=True)
class ChildSummary:
    """A run that a step of this one has invoked."""

    id: UUID
    workflow_id: str
    status: RunStatus
    step_id: str
    created_at: datetime
    completed_at: datetime | None


@dataclass(frozen=True)
class MailboxEvent:
    """An event that no wait has taken yet. `data` is a JSON value; `omitted_bytes` the stored size of one that was left
    out, being larger than was asked for."""

    id: int
    name: str
    data: Any
    received_at: datetime
    omitted_bytes: int | None = None


@dataclass(frozen=True)
class Holder:
    """The worker that has a run in hand, by its host and process; `live`: it has given a sign of life in time."""

    hostname: str
    pid: int
    live: bool

    def __str__(self) -> str:
        return f"{self.hostname}:{self.pid}" + ("" if self.live else ", which is silent")


@dataclass(frozen=True)
class Remedy:
    """What would end a wait: an operation of the client by its name, with its arguments, or "start_worker"."""

    operation: str
    arguments: Mapping[str, Any]

    @property
    def command(self) -> str:
        """The same on the command line."""
        return _COMMANDS[self.operation].format(
            **{name: shlex.quote(str(value)) for name, value in self.arguments.items()}
        )


_COMMANDS = {
    "trigger_event": "pgworkflows trigger {run_id} {event_name}",
    "fast_forward_workflow": "pgworkflows fast-forward {run_id}",
    "resume_workflow": "pgworkflows resume {run_id}",
    "cancel_workflow": "pgworkflows cancel {run_id}",
    "start_worker": "pgworkflows worker MODULE:ENGINE --queue {queue}",
}


@dataclass(frozen=True)
class Wait:
    """What a run waits for. `kind` is event, timer, poll, child, pause (a step), operator (who has paused it), retry,
    start (a delayed one), worker (it is ready), or takeover (its worker is dead); `what` says it in words. `until` is
    when the wait ends by itself, `remedy` what would end it now."""

    kind: str
    what: str
    step_id: str | None
    since: datetime | None
    until: datetime | None
    remedy: Remedy | None

    def __str__(self) -> str:
        until = "" if self.until is None else f", until {self.until:%Y-%m-%d %H:%M:%S} UTC"
        since = "" if self.since is None else f", since {self.since:%Y-%m-%d %H:%M:%S} UTC"
        remedy = "" if self.remedy is None else f"; end it with: {self.remedy.command}"
        return f"{self.what}{since}{until}{remedy}"


@dataclass(frozen=True)
class Timeline:
    """A run and what stands beside it, all at one moment, `now`.

    `entries` are its steps in order; `next_position` is set when there are more, which `after_position` brings.
    `events` are those that no wait has taken. `worker` has the run in hand now. `declared` are the steps that its
    workflow's code was last seen to have; of the ids among them, `ahead` are those that the run has not come to,
    `passed_over` those that it has left behind without.
    """

    run: WorkflowRun
    entries: list[Entry]
    next_position: int | None
    children: list[ChildSummary]
    parent: WorkflowRun | None
    waits_for: Wait | None
    declared: list[StepDefinition]
    ahead: list[str]
    passed_over: list[str]
    events: list[MailboxEvent]
    now: datetime
    worker: Holder | None = None


class TimelineOperations(Inspection):
    """How an inspector looks at one run."""

    def get_timeline(
        self,
        run_id: RunId,
        *,
        limit: int = 1000,
        after_position: int | None = None,
        payload_limit: int | None = None,
    ) -> Timeline:
        """A run with up to `limit` (1 to 10,000) of its steps, those after a position if one is given, and a thousand
        each of its children and events. Outputs of steps and data of events that have more than `payload_limit` bytes
        as JSON are left out. Raises WorkflowRunNotFoundError, ValueError and TypeError."""
        key = run_key(run_id)
        if type(limit) is not int or not 1 <= limit <= MAX_ENTRIES:
            raise ValueError(f"limit must be an int within 1 and {MAX_ENTRIES}, not {quoted(limit)}")
        if after_position is not None and (type(after_position) is not int or abs(after_position) >= 1 << 31):
            raise ValueError(f"after_position must be the position of a step, not {quoted(after_position)}")
        if payload_limit is not None and (type(payload_limit) is not int or not 0 <= payload_limit < 1 << 31):
            raise ValueError(f"payload_limit must be a number of bytes, not {quoted(payload_limit)}")
        params = {"run_id": str(key), "limit": limit, "after": after_position, "payload_limit": payload_limit}
        rows = self._fetch_json("get_timeline", params)
        if not rows:
            raise not_found(key, None)
        return _timeline(rows[0], self._payloads)

    def get_step(self, run_id: RunId, position: int) -> StepRecord | None:
        """The step at a position, whole; None if the run has none there. Raises ValueError."""
        if type(position) is not int or not 0 <= position < 1 << 31:
            raise ValueError(f"position must be the position of a step, not {quoted(position)}")
        found = self._fetch_json("get_step", {"run_id": str(run_key(run_id)), "position": position})
        return step_from(found[0], self._payloads) if found else None

    def get_event(self, run_id: RunId, event_id: int) -> MailboxEvent | None:
        """An event that no wait has taken yet, by its id, whole; None if the run has no such event. Raises
        ValueError."""
        if type(event_id) is not int or not 0 <= event_id < 1 << 63:
            raise ValueError(f"event_id must be the id of an event, not {quoted(event_id)}")
        found = self._fetch_json("get_event", {"run_id": str(run_key(run_id)), "event_id": event_id})
        return _event(found[0], self._payloads) if found else None


def _timeline(found: Mapping[str, Any], payloads: Payloads) -> Timeline:
    now = moment(found["now"])
    run = run_from_json(found["run"], payloads)
    entries = [_entry(row, run, now, payloads) for row in found["steps"] or ()]
    last = entries[-1].step.position if entries else None
    current = None if found["current"] is None else step_from(found["current"], payloads)
    declared = declared_steps(found["declared"] or ())
    ahead, passed_over = _unreached(declared, found["reached"] or (), finished=run.status.finished)
    return Timeline(
        run=run,
        entries=entries,
        next_position=last if last is not None and last < found["last_position"] else None,
        children=[
            ChildSummary(
                UUID(child["id"]),
                child["workflow_id"],
                RunStatus(child["status"]),
                child["parent_step_id"],
                moment(child["created_at"]),
                moment_from(child["completed_at"]),
            )
            for child in found["children"] or ()
        ],
        parent=None if found["parent"] is None else run_from_json(found["parent"], payloads),
        waits_for=_wait(run, current, found),
        declared=declared,
        ahead=ahead,
        passed_over=passed_over,
        events=[_event(event, payloads) for event in found["events"] or ()],
        now=now,
        worker=None if (held := found["worker"]) is None else Holder(held["hostname"], held["pid"], held["live"]),
    )


def _entry(row: dict[str, Any], run: WorkflowRun, now: datetime, payloads: Payloads) -> Entry:
    step = step_from(row, payloads)
    until = step.completed_at or run.completed_at or now
    return Entry(
        step=step,
        started_at=step.started_at,
        ended_at=step.completed_at,
        duration=None if step.started_at is None else max(until - step.started_at, timedelta(0)),
        taken_back=step.status is StepStatus.RETRYING and row["attempts"] == row["prior_attempts"],
        omitted_bytes=row["omitted_bytes"],
    )


def _event(row: Mapping[str, Any], payloads: Payloads) -> MailboxEvent:
    data, received_at = payloads.shown(row["data"]), moment(row["received_at"])
    return MailboxEvent(row["id"], row["name"], data, received_at, row.get("omitted_bytes"))


def _unreached(
    declared: Sequence[StepDefinition], reached: Sequence[str], *, finished: bool
) -> tuple[list[str], list[str]]:
    """The declared ids that a run has still ahead, and those that it has passed over."""
    ids = [step.id for step in declared if not step.dynamic]
    last = len(ids) if finished else max((at for at, step_id in enumerate(ids) if step_id in reached), default=-1)
    return (
        [step_id for at, step_id in enumerate(ids) if at > last and step_id not in reached],
        [step_id for at, step_id in enumerate(ids) if at < last and step_id not in reached],
    )


def _wait(run: WorkflowRun, current: StepRecord | None, found: Mapping[str, Any]) -> Wait | None:
    """What the run waits for, by its place in the queue."""
    place = found["place"]
    if place is None or run.status.finished:
        return None
    until = moment_from(place["wake_at"])
    step_id = None if current is None else current.step_id
    since = run.updated_at if current is None else current.started_at
    ends = {"run_id": str(run.id)}
    forward, resume = Remedy("fast_forward_workflow", ends), Remedy("resume_workflow", ends)
    if run.status is RunStatus.PAUSED:
        if place["wait_kind"] == "pause":
            return Wait("pause", f"somebody to resume it, in step {step_id!r}", step_id, since, None, resume)
        return Wait("operator", "somebody to resume it: it was paused", step_id, run.paused_at, None, resume)
    if run.status is RunStatus.WAITING:
        match place["wait_kind"]:
            case "event":
                event = {**ends, "event_name": place["wait_event"]}
                remedy = Remedy("trigger_event", event)
                return Wait("event", f"event {place['wait_event']!r}", step_id, since, until, remedy)
            case "child":
                child = None if current is None else current.child_run_id
                return Wait("child", f"its child, run {child}", step_id, since, until, None)
            case "poll":
                return Wait("poll", f"the next call of poll {step_id!r}", step_id, since, until, forward)
            case _:
                return Wait("timer", "its time to come", step_id, since, until, forward)
    if run.status is RunStatus.PENDING:
        return _wait_of_pending(run, current, found)
    worker = found["worker"]
    if worker is None or not worker["live"]:
        what = "a worker to take it over: the one that has it is dead"
        since = run.updated_at if worker is None else moment(worker["heartbeat_at"])
        return Wait("takeover", what, step_id, since, None, Remedy("start_worker", {"queue": run.queue}))
    return None


def _wait_of_pending(run: WorkflowRun, current: StepRecord | None, found: Mapping[str, Any]) -> Wait:
    until = moment_from(found["place"]["wake_at"])
    since = moment(found["place"]["ready_at"])
    if until is not None and current is not None and current.status is StepStatus.RETRYING:
        return Wait(
            "retry", f"the next attempt of step {current.step_id!r}", current.step_id, run.updated_at, until, None
        )
    if until is not None and run.error is not None:
        return Wait("retry", "its next attempt", None, run.updated_at, until, None)
    if until is not None:
        return Wait("start", "the time of its start", None, run.created_at, until, None)
    if found["live_workers"]:
        return Wait("worker", "a worker that has room for it", None, since, None, None)
    what = f"a worker that has workflow {run.workflow_id!r} and serves queue {run.queue!r}: none is alive"
    return Wait("worker", what, None, since, None, Remedy("start_worker", {"queue": run.queue}))
