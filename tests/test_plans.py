"""What workers and clients do all the time reads what it writes, whatever was there when its plan was made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from waiting import until
from working import HandWorker, rows

from pgworkflows import WorkflowClient, claims, sessions
from pgworkflows.claims import ClaimedRun
from pgworkflows.entries import Entry
from pgworkflows.history import ErrorInfo, StepStatus
from pgworkflows.journal import WRITTEN
from pgworkflows.replay import EventTaken, StepWrite

pytestmark = pytest.mark.direct("looks at the statistics of one session")

RUNS = 400
FEW = 20
READ_PER_RUN = 20
"""Index entries that may be read for one run: a statement that finds it by its id reads one or two, others all."""
PLANNED = 7
"""How many times a statement is executed until PostgreSQL keeps its plan: five, and then it thinks it over."""


BACKLOG = """
with run as (
    insert into pgworkflows.runs (workflow_id, status, started_at)
    select 'other', 'waiting', now() from generate_series(1, 2000)
    returning id
), place as (
    insert into pgworkflows.queue (run_id, workflow_id, queue, rank, ready_at, status, wake_at, wait_kind, wait_event)
    select id, 'other', 'default', now(), now(), 'waiting', now() + interval '1 day', 'event', 'go' from run
), step as (
    insert into pgworkflows.steps (run_id, position, step_id, kind, status, started_at)
    select id, 0, 'wait', 'wait_for', 'waiting', now() from run
)
insert into pgworkflows.events (run_id, name, data) select id, 'other', '{}' from run
"""


class Reader:
    """Counts the rows of the schema's tables and the entries of its indexes that a session reads."""

    def __init__(self, conn: psycopg.Connection[tuple[Any, ...]]) -> None:
        self.conn = conn

    @contextmanager
    def at_most(self, entries: int, what: str) -> Iterator[None]:
        """The statements of the block read no more of them."""
        # A session reports what it has read at the end of a transaction, and forgets it.
        with self.conn.transaction():
            before = self._read()
            yield
            read = self._read() - before
        assert read <= entries, f"{what}: {read} rows and index entries were read, at most {entries} are right"

    def _read(self) -> int:
        row = self.conn.execute(
            "select sum(pg_stat_get_xact_tuples_returned(c.oid)) from pg_class as c"
            " where c.relnamespace = 'pgworkflows'::regnamespace and c.relkind in ('r', 'i')"
        )
        [found] = row.fetchone() or [0]
        return int(found)


def entry(run: ClaimedRun, action: str, position: int, step_id: str = "", **changes: Any) -> Entry:
    """A completed step, and what becomes of its run."""
    step = StepWrite(position, step_id or f"s{position}", "run", StepStatus.COMPLETED, "1", attempts=1)
    return Entry(run.run_id, run.claim_id, run.signal, action, (step,), **changes)


def nap(run: ClaimedRun) -> Entry:
    """A timer, for which the run waits."""
    step = StepWrite(0, "nap", "delay", StepStatus.WAITING, wake_after=timedelta(hours=1))
    return Entry(run.run_id, run.claim_id, run.signal, "suspend", (step,), step_id="nap", wait_kind="timer")


def begin_to_wait(run: ClaimedRun) -> Entry:
    """A wait for an event."""
    step = StepWrite(0, "wait", "wait_for", StepStatus.WAITING, event_name="go")
    return Entry(
        run.run_id, run.claim_id, run.signal, "suspend", (step,), step_id="wait", wait_kind="event", wait_event="go"
    )


def take_event_and_fail(run: ClaimedRun) -> Entry:
    """The wait's end, and the run's."""
    step = StepWrite(0, "wait", "wait_for", StepStatus.COMPLETED, "{}", event_name="go")
    taken = EventTaken(run.events[0].id, "wait")
    return Entry(run.run_id, run.claim_id, run.signal, "fail", (step,), (taken,), error=ErrorInfo("ValueError", "no"))


ENDS: dict[str, Callable[[ClaimedRun], Entry]] = {
    "complete": lambda run: entry(run, "complete", 2, output="1"),
    "suspend": nap,
    "release": lambda run: entry(run, "release", 2),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_worker_that_began_beside_empty_tables_reads_each_run_of_many_once(database_url: str, end: str) -> None:
    with WorkflowClient(database_url) as client, HandWorker(database_url, ["many"]) as worker:
        for count in [1] * PLANNED + [RUNS]:
            client.start_workflows("many", [None] * count)
            for run in carry(worker, count, end):
                client.cancel_workflow(run.run_id)


@pytest.mark.parametrize("end", ENDS)
def test_a_worker_whose_plans_knew_an_empty_queue_reads_of_a_backlog_what_it_has_claimed(
    database_url: str, end: str
) -> None:
    with WorkflowClient(database_url) as client, HandWorker(database_url, ["many"]) as worker:
        client.start_workflows("many", [None] * RUNS)
        for run in carry(worker, RUNS, end):
            client.cancel_workflow(run.run_id)
        until(lambda: nothing_dead(database_url), "what is dead is removed")
        for _ in range(PLANNED):
            assert claim(worker, RUNS) == ()
        client.start_workflows("many", [None] * 5 * RUNS)
        for _ in range(PLANNED):
            carry(worker, FEW, end)


def claim(worker: HandWorker, capacity: int) -> Sequence[ClaimedRun]:
    """A claim from a mark on, which finds no new one: for that it reads more, where a look took long."""
    answer = claims.claim(
        worker.connection,
        worker.id,
        ["default"],
        worker.workflows,
        capacity,
        alone=True,
        awake=False,
        since="-infinity",
    )
    return answer.runs


def carry(worker: HandWorker, count: int, end: str) -> Sequence[ClaimedRun]:
    """Claim so many runs and take them to an end, reading little; those that stay unfinished."""
    reader, most = Reader(worker.connection.open()), READ_PER_RUN * max(count, FEW)
    with reader.at_most(most, "the claim"):
        claimed = claim(worker, count)
    assert len(claimed) == count
    with reader.at_most(most, "a flush of checkpoints by documents"):
        answers = worker.write(*(entry(run, "checkpoint", 0) for run in claimed))
    assert answers == [WRITTEN] * count
    with reader.at_most(most, "a flush of checkpoints by columns"):
        assert worker.fly(*(entry(run, "checkpoint", 1, f"of {run.claim_id}") for run in claimed)) is None
    ends = [ENDS[end](run) for run in claimed]
    with reader.at_most(most, f"a flush of entries that {end}, by documents"):
        answers = worker.write(*ends[: count // 2])
    assert answers == [WRITTEN] * (count // 2)
    with reader.at_most(most, f"a flush of entries that {end}, by columns where they can"):
        assert worker.fly(*ends[count // 2 :]) is None
    return () if end == "complete" else claimed


def take_events(worker: HandWorker, client: WorkflowClient, count: int, most: int) -> None:
    """Let so many runs wait for an event, get it, and fail, reading little."""
    reader = Reader(worker.connection.open())
    client.start_workflows("many", [None] * count)
    with reader.at_most(most, "the claim"):
        claimed = claim(worker, count)
    with reader.at_most(most, "a flush of entries that suspend"):
        worker.write(*map(begin_to_wait, claimed))
    for run in claimed:
        client.trigger_event(run.run_id, "go")
    with reader.at_most(most, "the claim with events"):
        claimed = claim(worker, count)
    assert len(claimed) == count
    with reader.at_most(most, "a flush of entries that take events and fail"):
        answers = worker.write(*map(take_event_and_fail, claimed))
    assert answers == [WRITTEN] * count


def nothing_dead(url: str) -> bool:
    """Do what autovacuum does, which lets PostgreSQL know how many rows are there; whether nothing is left to remove.
    What a session may still see stays for the next time, and its index entries are read until then."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("vacuum pgworkflows.queue, pgworkflows.runs, pgworkflows.steps, pgworkflows.events")
    [(dead,)] = rows(url, "select sum(n_dead_tup)::int from pg_stat_user_tables where schemaname = 'pgworkflows'")
    return bool(dead == 0)


def fill_in_backlog(url: str) -> None:
    """Many runs that wait, each with a step and an event of another name."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(BACKLOG)


def test_plans_that_a_worker_has_made_beside_empty_tables_do_not_grow_old(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "PLANS_LAST_S", 0.0)
    until(lambda: nothing_dead(database_url), "PostgreSQL knows that nothing is there")
    with WorkflowClient(database_url) as client, HandWorker(database_url, ["many"]) as worker:
        for _ in range(PLANNED):
            take_events(worker, client, 1, READ_PER_RUN * RUNS)
        fill_in_backlog(database_url)
        for _ in range(sessions.PLANS_SERVE + 1):
            claims.beat(worker.connection, worker.id)
        for _ in range(PLANNED):
            take_events(worker, client, FEW, READ_PER_RUN * FEW)


def test_a_client_that_began_beside_empty_tables_finds_each_of_many_runs_by_its_id(database_url: str) -> None:
    until(lambda: nothing_dead(database_url), "PostgreSQL knows that nothing is there")
    with WorkflowClient(database_url) as client, psycopg.connect(database_url, autocommit=True) as conn:
        for number in range(PLANNED):
            steer(client, conn, number, READ_PER_RUN * RUNS)
        fill_in_backlog(database_url)
        steer(client, conn, PLANNED, 3 * READ_PER_RUN)


def steer(client: WorkflowClient, conn: psycopg.Connection[tuple[Any, ...]], number: int, most: int) -> None:
    """All that clients do to a run, in a session of their own."""
    reader, key = Reader(conn), f"key-{number}"
    run = client.start_workflow("many", idempotency_key=key, connection=conn)
    for _ in range(2):
        with reader.at_most(most, "a start"):
            run = client.start_workflow("many", idempotency_key=key, connection=conn)
        with reader.at_most(most, "an event"):
            client.trigger_event(run.id, "go", idempotency_key=key, connection=conn)
    for act in (client.pause_workflow, client.resume_workflow, client.cancel_workflow, client.retry_workflow):
        with reader.at_most(most, act.__name__):
            act(run.id, connection=conn)


def test_every_function_that_looks_for_runs_may_not_read_whole_tables(database_url: str) -> None:
    """`create or replace` forgets the settings of a function that it does not repeat."""
    found = rows(
        database_url,
        r"""
        select p.proname from pg_proc as p
        where p.pronamespace = 'pgworkflows'::regnamespace
            and p.prosrc ~ '(from|join|update|using) "?pgworkflows"?\.(runs|queue|steps|events)\y'
            and not coalesce(p.proconfig @> '{enable_seqscan=off,jit=off}', false)
        """,
    )
    assert found == []
