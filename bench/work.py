"""What scenarios do to an engine: workers beside it, looks at its runs, rows filled in by SQL, rates of callers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID, uuid4

import psycopg

from bench.workflows import one
from pgworkflows import WorkflowEngine

Call = Callable[[], object]

# The newest first, which ends late and is found at once: a look from the other end walks over all that has ended.
UNFINISHED = "select from pgworkflows.queue order by run_id desc limit 1"
BARE = "create table if not exists bare_rows (run_id uuid, step_id text, output json, primary key (run_id, step_id))"


@contextmanager
def working(engine: WorkflowEngine) -> Iterator[None]:
    """A worker in a thread of this process, settled down before the work begins."""
    worker = engine.worker()
    thread = threading.Thread(target=worker.run_forever, daemon=True)
    thread.start()
    engine.wait_for_run(engine.start_workflow(one).id, timeout=30)
    time.sleep(0.5)
    try:
        yield
    finally:
        worker.stop()
        thread.join()


@contextmanager
def watching(engine: WorkflowEngine) -> Iterator[Callable[[UUID], str]]:
    """A look at a run's status over one open connection."""
    with psycopg.connect(engine.conninfo, autocommit=True) as conn:

        def status(run_id: UUID) -> str:
            row = conn.execute("select status from pgworkflows.runs where id = %s", (run_id,)).fetchone()
            assert row is not None
            return str(row[0])

        yield status


def until(status: Callable[[UUID], str], run_id: UUID, wanted: str) -> None:
    """Look every millisecond until the run has the status."""
    while status(run_id) != wanted:
        time.sleep(0.001)


def count_unfinished(engine: WorkflowEngine) -> int:
    """How many runs are still in the queue."""
    return int(value(engine, "select count(*) from pgworkflows.queue"))


def drain(engine: WorkflowEngine) -> None:
    """Return when no run is unfinished."""
    with psycopg.connect(engine.conninfo, autocommit=True) as conn:
        while conn.execute(UNFINISHED).fetchone() is not None:
            time.sleep(0.005)


def value(engine: WorkflowEngine, query: str) -> float:
    """The single number that a query gives."""
    with psycopg.connect(engine.conninfo, autocommit=True) as conn:
        row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return float(row[0])


@contextmanager
def bare_insert(engine: WorkflowEngine) -> Iterator[Call]:
    """A call that inserts one row in autocommit through psycopg: what durability costs without a library."""
    with psycopg.connect(engine.conninfo, autocommit=True) as conn:
        conn.execute(BARE)

        def insert() -> None:
            conn.execute(
                "insert into bare_rows (run_id, step_id, output) values (%s, 'step-1', %s)", (uuid4(), '{"ok": true}')
            )

        for _ in range(20):
            insert()
        yield insert


def rate(calls: Sequence[Call], seconds: float) -> float:
    """How often a second these calls are made, each in a thread of its own as often as it can."""
    together = threading.Barrier(len(calls) + 1)
    counts = [0] * len(calls)
    ends_at = 0.0

    def caller(number: int) -> None:
        together.wait()
        while time.perf_counter() < ends_at:
            calls[number]()
            counts[number] += 1

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    ends_at = began + seconds
    together.wait()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def settle(engine: WorkflowEngine) -> None:
    """What autovacuum does some time after many rows came: done now, so that it does not fall into a measurement."""
    schema = engine.schema
    with psycopg.connect(engine.conninfo, autocommit=True) as conn:
        conn.execute(f"vacuum analyze {schema}.runs, {schema}.queue, {schema}.steps".encode())


def fill_pending(engine: WorkflowEngine, runs: int) -> None:
    """Runs that are ready, as many calls of start_workflow would have left them."""
    fill(
        engine,
        """
        with run as (
            insert into pgworkflows.runs (workflow_id) select 'one' from generate_series(1, %(runs)s)
            returning id, created_at
        )
        insert into pgworkflows.queue (run_id, workflow_id, queue, rank, ready_at)
        select id, 'one', 'default', created_at, created_at from run
        """,
        runs=runs,
    )


def fill_waiting(engine: WorkflowEngine, runs: int) -> None:
    """Runs of the workflow `event` that wait; every second one's wait has an end, a day from now."""
    fill(
        engine,
        """
        with run as (
            insert into pgworkflows.runs (workflow_id, status, current_step_id, started_at)
            select 'event', 'waiting', 'go', now() from generate_series(1, %(runs)s)
            returning id, created_at
        ), timed as (
            select id, created_at, case when row_number() over () %% 2 = 0 then now() + interval '1 day' end as wake_at
            from run
        ), step as (
            insert into pgworkflows.steps (run_id, position, step_id, kind, status, started_at, event_name, wake_at)
            select id, 0, 'go', 'wait_for', 'waiting', now(), 'go', wake_at from timed
        )
        insert into pgworkflows.queue (
            run_id, workflow_id, queue, rank, status, ready_at, wake_at, wait_kind, wait_event
        )
        select id, 'event', 'default', created_at, 'waiting', created_at, wake_at, 'event', 'go' from timed
        """,
        runs=runs,
    )


def fill_history(engine: WorkflowEngine, steps: int) -> UUID:
    """A run of the workflow `story` that has finished so many steps, and waits for its event."""
    [row] = fill(
        engine,
        """
        with run as (
            insert into pgworkflows.runs (workflow_id, status, current_step_id, input, started_at)
            values ('story', 'waiting', 'go', to_json(%(steps)s::integer), now())
            returning id, created_at
        ), step as (
            insert into pgworkflows.steps (
                run_id, position, step_id, kind, status, output, attempts, started_at, completed_at
            )
            select id, n, 's' || n, 'run', 'completed', '{"ok":true}', 1, now(), now()
            from run, generate_series(0, %(steps)s - 1) as n
        ), wait as (
            insert into pgworkflows.steps (run_id, position, step_id, kind, status, started_at, event_name)
            select id, %(steps)s, 'go', 'wait_for', 'waiting', now(), 'go' from run
        )
        insert into pgworkflows.queue (run_id, workflow_id, queue, rank, status, ready_at, wait_kind, wait_event)
        select id, 'story', 'default', created_at, 'waiting', created_at, 'event', 'go' from run
        returning run_id
        """,
        steps=steps,
    )
    return UUID(str(row[0]))


def fill(engine: WorkflowEngine, statement: str, **params: int | UUID) -> list[tuple[object, ...]]:
    """Run one statement that writes rows into the engine's schema; what it returns."""
    text = statement.replace("pgworkflows.", f"{engine.schema}.")
    with psycopg.connect(engine.conninfo, autocommit=True) as conn:
        cursor = conn.execute(text.encode(), params)
        return cursor.fetchall() if cursor.description else []
