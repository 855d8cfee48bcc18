"""The worker's statements: claims, flushes and heartbeats, each on a connection of the worker's own."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

from pgworkflows.history import ChildEnd, ErrorInfo, StepKind, StepStatus, StoredChild, StoredEvent, StoredStep
from pgworkflows.jsontext import ENCODED
from pgworkflows.runs import RunStatus
from pgworkflows.store import interval_text, moment_from
from pgworkflows.worker_connection import WorkerConnection

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class ClaimedRun(NamedTuple):
    """One run in a worker's hands: its fence, its fields, its history and mailbox as of the claim. `encoded`: some
    payload that came with the claim may be, perhaps one of this run."""

    run_id: str
    claim_id: int
    workflow_id: str
    resource_id: str | None
    input: str
    retry_count: int
    max_retries: int
    signal: int
    interruptions: int
    steps: tuple[StoredStep, ...]
    events: tuple[StoredEvent, ...]
    as_of: datetime
    ready_at: datetime
    schedule_tick: datetime | None = None
    headers: Mapping[str, str] = NO_HEADERS
    parent_run_id: str | None = None
    child: StoredChild | None = None
    encoded: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim. `due_in_s` is the time until the next row becomes due, in seconds; `suspects` says that
    runs wait that have to be claimed alone; `held`, to a worker without runs, that others have locked what is
    ready. `looked_s` is how long the server looked for them; `mark`, after a slow look everywhere, from where the next
    claims may look."""

    alive: bool
    runs: tuple[ClaimedRun, ...] = ()
    due_in_s: float | None = None
    suspects: bool = False
    held: bool = False
    looked_s: float = 0.0
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """Another worker as a heartbeat saw it. `lapsed`: it has no lock, and its lease has run out."""

    worker_id: str
    beats: int
    lease_s: float
    has_lock: bool
    locked: bool
    lapsed: bool


@dataclass(frozen=True, slots=True)
class Control:
    """What is asked of a claimed run: pause, cancel or retry."""

    run_id: str
    claim_id: int
    control: str


class Outcomes(NamedTuple):
    """The parameters of a flush, as text. `entries`, `steps` and `events` are JSON arrays; `parents` is PostgreSQL's
    array of the parents of the runs that end."""

    worker_id: str
    entries: str
    steps: str
    events: str | None
    parents: str | None


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat."""

    alive: bool
    controls: tuple[Control, ...]
    peers: tuple[Peer, ...]


def claim(
    conn: WorkerConnection,
    worker_id: UUID,
    queues: Collection[str],
    workflows: Collection[str],
    capacity: int,
    *,
    alone: bool,
    awake: bool,
    since: str | None = None,
) -> Claim:
    """Claim up to `capacity` ready runs. `alone`: this worker holds nothing; `awake`: take back that it sleeps;
    `since`: look only from this mark on."""
    params = (str(worker_id), list(queues), list(workflows), capacity, alone, awake, since)
    text = conn.fetch("claim", params)
    answer = json.loads(text)
    if not answer["alive"]:
        return Claim(alive=False)
    now = datetime.fromisoformat(answer["now"])
    due = moment_from(answer["next_due"])
    encoded = ENCODED in text
    return Claim(
        alive=True,
        runs=tuple(_claimed_run(run, answer["claim_id"], now, encoded) for run in answer["runs"]),
        due_in_s=None if due is None else (due - now).total_seconds(),
        suspects=answer["suspects"],
        held=answer["held"],
        looked_s=answer["looked_s"],
        mark=answer["mark"],
    )


def _claimed_run(run: dict[str, Any], claim_id: int, as_of: datetime, encoded: bool) -> ClaimedRun:
    return ClaimedRun(
        run["run_id"],
        claim_id,
        run["workflow_id"],
        run["resource_id"],
        run["input"],
        run["retry_count"],
        run["max_retries"],
        run["signal"],
        run["interruptions"],
        tuple(map(_stored_step, run["steps"] or ())),
        tuple(map(_stored_event, run["events"] or ())),
        as_of,
        datetime.fromisoformat(run["ready_at"]),
        moment_from(run["schedule_tick"]),
        run["headers"] or NO_HEADERS,
        run["parent_run_id"],
        None if run["child"] is None else _stored_child(run["child"]),
        encoded,
    )


def _stored_child(row: dict[str, Any]) -> StoredChild:
    return StoredChild(
        UUID(row["run_id"]),
        row["workflow_id"],
        row["step_id"],
        RunStatus(row["status"]),
        row["output"],
        row["error"],
    )


def _stored_step(row: dict[str, Any]) -> StoredStep:
    error = row["error"]
    return StoredStep(
        row["position"],
        row["step_id"],
        StepKind(row["kind"]),
        StepStatus(row["status"]),
        row["output"],
        None if error is None else error_from(error),
        row["attempts"],
        row["prior_attempts"],
        moment_from(row["wake_at"]),
        moment_from(row["deadline_at"]),
    )


def _stored_event(row: dict[str, Any]) -> StoredEvent:
    return StoredEvent(row["id"], row["name"], row["data"], datetime.fromisoformat(row["received_at"]))


def error_from(error: Mapping[str, Any]) -> ErrorInfo:
    """A stored error; made by hand in SQL, it may lack fields."""
    child = error.get("child")
    return ErrorInfo(
        str(error.get("type")),
        str(error.get("message")),
        error.get("traceback"),
        error.get("step_id"),
        None if child is None else ChildEnd(child["run_id"], child["status"], child["error"]),
    )


def flush(conn: WorkerConnection, outcomes: Outcomes) -> list[dict[str, Any]]:
    """Write the outcomes of many runs; what is not in the answer was written."""
    answer = conn.fetch("flush", outcomes)
    return [] if answer is None else json.loads(answer)


def flush_results(conn: WorkerConnection, columns: Sequence[str | None]) -> bool:
    """Write what steps have returned; whether that could be done: all of it, or nothing."""
    return conn.fetch("flush_results", columns) is None


def sleep(conn: WorkerConnection, worker_id: UUID, queues: Collection[str]) -> None:
    """Announce that the worker sleeps; claim once more afterwards."""
    conn.fetch("sleep", (str(worker_id), list(queues)))


def register_worker(
    conn: WorkerConnection,
    worker_id: UUID,
    *,
    hostname: str,
    pid: int,
    queues: Collection[str],
    has_lock: bool,
    lease: timedelta,
) -> None:
    """Enter the worker among the live."""
    conn.fetch("register_worker", (str(worker_id), hostname, pid, list(queues), has_lock, interval_text(lease)))


def serve_workflows(
    conn: WorkerConnection, worker_id: UUID, queues: Collection[str], declarations: Sequence[Mapping[str, Any]]
) -> None:
    """Store what the worker says of its workflows, and that it serves them in these lanes."""
    conn.fetch("serve_workflows", (str(worker_id), list(queues), json.dumps(declarations, ensure_ascii=False)))


def unregister_worker(conn: WorkerConnection, worker_id: UUID) -> None:
    """Strike the worker, which has stopped."""
    conn.fetch("unregister_worker", (str(worker_id),))


def beat(conn: WorkerConnection, worker_id: UUID) -> Beat:
    """A heartbeat."""
    answer = json.loads(conn.fetch("beat", (str(worker_id),)))
    if not answer["alive"]:
        return Beat(False, (), ())
    controls = tuple(Control(c["run_id"], c["claim_id"], c["control"]) for c in answer["controls"] or ())
    peers = tuple(
        Peer(p["worker_id"], p["beats"], p["lease"], p["has_lock"], p["locked"], p["lapsed"])
        for p in answer["peers"] or ()
    )
    return Beat(True, controls, peers)


def declare_dead(conn: WorkerConnection, worker_id: str, beats: int) -> bool:
    """Strike a peer, unless it has beaten since."""
    return bool(conn.fetch("declare_dead", (worker_id, beats)))


def take_over(conn: WorkerConnection) -> int:
    """Return the runs of dead workers to the queue; how many there were."""
    return int(conn.fetch("take_over", ()))


def release_unheld(conn: WorkerConnection, worker_id: UUID, held: Collection[str]) -> int:
    """Return the runs that bear the worker's id but are not in `held`; how many there were."""
    return int(conn.fetch("release_unheld", (str(worker_id), list(held))))
