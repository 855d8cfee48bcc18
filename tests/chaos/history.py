"""All that is known when a storm is over: what clients were told, what the ledger says, what the tables hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import class_row

from .ledger import Call
from .plans import Scenario


@dataclass
class Sent:
    """An event that a client sent, `data` being like no other's. `accepted`: a call returned; `refused`: one said that
    the run had ended."""

    name: str
    data: Any
    accepted: bool = False
    refused: bool = False


@dataclass
class Try:
    """A run as the client sees it that started it. `start` is accepted, refused, unknown (the connection broke, and it
    was not repeated) or taken back; so are the entries of `cancels` and `retries`, one for each call."""

    scenario: Scenario
    start: str = "unknown"
    run_id: str | None = None
    sent: list[Sent] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    retries: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    id: str
    workflow_id: str
    status: str
    input: Any
    output: Any
    error: Any
    parent_run_id: str | None
    parent_step_id: str | None
    schedule_tick: float | None
    created_at: float
    completed_at: float | None


@dataclass(frozen=True)
class StepRow:
    run_id: str
    position: int
    step_id: str
    kind: str
    status: str
    output: Any
    error: Any
    attempts: int
    started_at: float | None
    completed_at: float | None
    wake_at: float | None
    child_run_id: str | None


@dataclass(frozen=True)
class EventRow:
    id: int
    run_id: str
    name: str
    data: Any
    received_at: float
    consumed_at: float | None
    step_id: str | None


@dataclass(frozen=True)
class Place:
    """A row of the queue."""

    run_id: str
    status: str
    control: str | None
    worker_id: str | None


@dataclass(frozen=True)
class Worker:
    """A worker as it was registered; `gone_at` is when it was struck from the live."""

    worker_id: str
    pid: int
    began_at: float
    gone_at: float | None


@dataclass(frozen=True)
class Claim:
    run_id: str
    worker_id: str
    at: float


@dataclass(frozen=True)
class Outcome:
    """What was stored of a step, each time that it was."""

    run_id: str
    step_id: str
    status: str
    attempts: int
    output: Any
    error: Any
    at: float


@dataclass(frozen=True)
class Ending:
    run_id: str
    status: str
    output: Any
    at: float


@dataclass(frozen=True)
class Schedule:
    """A schedule of one tick a minute: the ticks after `since` and up to `dealt_with` have had their runs."""

    workflow_id: str
    since: float
    dealt_with: float


@dataclass(frozen=True)
class Leaving:
    """A process was told to end gracefully: what it was at after `gives_back_at` may be done again."""

    pid: int
    gives_back_at: float


@dataclass
class History:
    """Times are seconds since 1970, by one clock."""

    tries: Sequence[Try] = ()
    calls: Sequence[Call] = ()
    runs: Sequence[Run] = ()
    steps: Sequence[StepRow] = ()
    events: Sequence[EventRow] = ()
    places: Sequence[Place] = ()
    workers: Sequence[Worker] = ()
    claims: Sequence[Claim] = ()
    outcomes: Sequence[Outcome] = ()
    endings: Sequence[Ending] = ()
    schedules: Sequence[Schedule] = ()
    leavings: Sequence[Leaving] = ()
    exit_statuses: Sequence[int] = ()
    registered_pids: Sequence[int] = ()
    taken_over: Sequence[tuple[str, float]] = ()


def _at(name: str) -> str:
    return f"extract(epoch from {name})::double precision as {name}"


_RUNS = f"""
select id::text, workflow_id, status, input, output, error, parent_run_id::text, parent_step_id,
    {_at("schedule_tick")}, {_at("created_at")}, {_at("completed_at")}
from pgworkflows.runs order by id
"""
_STEPS = f"""
select run_id::text, position, step_id, kind, status, output, error, attempts,
    {_at("started_at")}, {_at("completed_at")}, {_at("wake_at")}, child_run_id::text
from pgworkflows.steps order by run_id, position
"""
_EVENTS = f"""
select id, run_id::text, name, data, {_at("received_at")}, {_at("consumed_at")}, step_id
from pgworkflows.events order by id
"""
_PLACES = "select run_id::text, status, control, worker_id::text from pgworkflows.queue"
_WORKERS = f"select worker_id::text, pid, {_at('began_at')}, {_at('gone_at')} from chaos.workers order by began_at"
_CLAIMS = f"select run_id::text, worker_id::text, {_at('at')} from chaos.claims order by at"
_OUTCOMES = f"""
select run_id::text, step_id, status, attempts, output, error, {_at("at")} from chaos.outcomes order by n
"""
_ENDINGS = f"select run_id::text, status, output, {_at('at')} from chaos.endings order by n"
_SCHEDULES = """
select s.workflow_id, extract(epoch from b.since)::double precision as since,
    extract(epoch from s.since)::double precision as dealt_with
from pgworkflows.schedules as s join chaos.begun as b using (workflow_id)
"""


def read_tables(conn: psycopg.Connection[Any], history: History) -> None:
    """Fill in what the tables hold."""

    def read(kind: type[Any], query: str) -> list[Any]:
        with conn.cursor(row_factory=class_row(kind)) as cursor:
            return cursor.execute(query.encode()).fetchall()

    history.runs = read(Run, _RUNS)
    history.steps = read(StepRow, _STEPS)
    history.events = read(EventRow, _EVENTS)
    history.places = read(Place, _PLACES)
    history.workers = read(Worker, _WORKERS)
    history.claims = read(Claim, _CLAIMS)
    history.outcomes = read(Outcome, _OUTCOMES)
    history.endings = read(Ending, _ENDINGS)
    history.schedules = read(Schedule, _SCHEDULES)
    history.registered_pids = [pid for (pid,) in conn.execute("select pid from pgworkflows.workers").fetchall()]
    history.taken_over = conn.execute(
        "select run_id::text, extract(epoch from at)::double precision from chaos.taken_over"
    ).fetchall()
