"""The worker's statements: claims, flushes and heartbeats, each on a connection of the worker's own."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus

from pgworkflows.database import Locked, Refused, Unavailable, connect_worker, sorted_out
from pgworkflows.errors import ConfigurationError
from pgworkflows.history import ChildEnd, ErrorInfo, StepKind, StepStatus, StoredChild, StoredEvent, StoredStep
from pgworkflows.jsontext import ENCODED
from pgworkflows.runs import RunStatus
from pgworkflows.schema import numbered_statement, statement
from pgworkflows.sessions import OwnConnection
from pgworkflows.store import interval_text, moment_from

WORKER_LOCK_TIMEOUT_MS = 1000
LONGEST_WAIT_S = 60.0
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


class Answered(NamedTuple):
    """The single value that a statement returned, as text."""

    text: str | None


class WorkerConnection:
    """One connection of a worker, opened at first use and again after it broke. For one thread."""

    def __init__(self, conninfo: str, schema: str) -> None:
        self._conninfo = conninfo
        self._schema = schema
        self._conn: OwnConnection | None = None

    def fetch(self, name: str, params: Sequence[object]) -> Any:
        """The single value that the statement `name` returns. Raises Unavailable, Refused or Locked; after an error of
        the connection the next call opens a new one."""
        conn = self.open()
        try:
            row = conn.run(statement(name, self._schema), params, prepare=True).fetchone()
        except UnicodeEncodeError as error:
            raise Refused(str(error), type(error).__name__) from error
        except psycopg.Error as error:
            raise self._sorted_out(error) from error
        return None if row is None else row[0]

    def prepare(self, name: str) -> None:
        """Open the session, and have it know the statement `name`, which is then asked for and sent with less ado.
        Raises as `fetch`."""
        conn = self.open()
        try:
            conn.prepare(numbered_statement(name, self._schema))
        except psycopg.Error as error:
            raise self._sorted_out(error) from error

    def can_send(self, name: str) -> bool:
        """Whether `send` and `ask` may be used: the session is open, the statement prepared."""
        return self._conn is not None and self._conn.can_send(numbered_statement(name, self._schema))

    def ask(self, name: str, params: Sequence[str | None]) -> str | None:
        """The same as `fetch`, with less ado, if it `can_send`."""
        self.send(name, params)
        while (answer := self.answered()) is None:
            self.wait_for_answer(LONGEST_WAIT_S)
        return answer.text

    def send(self, name: str, params: Sequence[str | None]) -> None:
        """Send the statement `name` without waiting for the server, if it `can_send`: `answered` will tell. Raises
        Unavailable or Refused."""
        assert self._conn is not None
        try:
            self._conn.send(numbered_statement(name, self._schema), params)
        except UnicodeEncodeError as error:
            raise Refused(str(error), type(error).__name__) from error
        except psycopg.Error as error:
            self.close()  # who knows how much of it has gone
            raise Unavailable(str(error).strip()) from error

    def wait_for_answer(self, limit_s: float) -> None:
        """Return when there is something of the answer, or the server takes more of what was sent, and after this time
        at the latest. Any thread may wait."""
        conn = self._conn
        if conn is not None:
            with suppress(psycopg.Error):  # it is closed
                conn.wait_to_receive(limit_s)

    def answered(self) -> Answered | None:
        """The answer to what was sent, None while it is not there. Raises as `fetch` does."""
        conn = self._conn
        if conn is None:
            raise Unavailable("the connection was closed")
        try:
            result = conn.received()
        except psycopg.Error as error:
            self.close()  # who knows whether the answer still comes
            raise sorted_out(error) from error
        if result is None:
            return None
        if result.status != ExecStatus.TUPLES_OK:
            raise self._sorted_out(error_from_result(result))
        text = result.get_value(0, 0)
        return Answered(None if text is None else text.decode())

    def _sorted_out(self, error: psycopg.Error) -> Unavailable | Refused | Locked:
        conn = self._conn
        if conn is not None and (conn.closed or isinstance(error, psycopg.errors.ReadOnlySqlTransaction)):
            self.close()  # a primary that has become a standby: the next connection may find the new primary
        return sorted_out(error)

    def open(self) -> OwnConnection:
        """The session, opened if there is none. Raises Unavailable."""
        if self._conn is None:
            try:
                self._conn = connect_worker(self._conninfo, lock_timeout_ms=WORKER_LOCK_TIMEOUT_MS)
            except (psycopg.Error, ConfigurationError) as error:
                raise Unavailable(str(error).strip()) from error
        return self._conn

    def close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()


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
    answer = conn.ask("flush", outcomes) if conn.can_send("flush") else conn.fetch("flush", outcomes)
    return [] if answer is None else json.loads(answer)


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
