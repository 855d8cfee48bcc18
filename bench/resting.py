"""Runs that wait: how late a timer fires, what many waiting runs cost an idle worker, how fast one of them wakes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import UUID

import psycopg

from bench.figures import Figures, quantiles
from bench.work import drain, fill_waiting, settle, until, value, watching, working
from bench.worker import worker_process
from bench.workflows import nap, one
from pgworkflows import WorkflowEngine

FIRST_TIMER_MS = 700
TIMERS_APART_MS = 60

FEW = 100
WAKINGS = 50
IDLE_S = 15.0
SETTLE_S = 5.0


def timers(engine: WorkflowEngine, runs: int) -> Figures:
    """Steps that delay and starts that are delayed, due one after the other on an idle worker: how late they go on, by
    the server's clock."""
    with working(engine):
        for number in range(runs):
            due_ms = FIRST_TIMER_MS + 2 * number * TIMERS_APART_MS
            engine.start_workflow(nap, due_ms)
            engine.start_workflow(one, delay=f"{due_ms + TIMERS_APART_MS}ms")
        drain(engine)
    with psycopg.connect(engine.conninfo) as conn:
        delays = conn.execute(
            "select extract(epoch from r.completed_at - s.wake_at)::float8 from pgworkflows.runs as r"
            " join pgworkflows.steps as s on s.run_id = r.id where r.workflow_id = 'nap'"
        ).fetchall()
        starts = conn.execute(
            "select extract(epoch from started_at - scheduled_at)::float8 from pgworkflows.runs"
            " where scheduled_at is not null"
        ).fetchall()
    late, started_late = quantiles([row[0] for row in delays]), quantiles([row[0] for row in starts])
    return {**late, "start_p50_ms": started_late["p50_ms"], "start_p95_ms": started_late["p95_ms"]}


def waiting(engine: WorkflowEngine, runs: int) -> Figures:
    """An idle worker process beside a hundred waiting runs, then beside so many: its statements, its memory, and how
    long an event takes to complete a run that waits for it."""
    with worker_process(engine) as worker:
        fill_waiting(engine, FEW)
        settle(engine)
        few = wake(engine, waiting_runs(engine, WAKINGS))
        time.sleep(SETTLE_S)
        memory_mb = worker.memory_mb
        few_statements = statements_per_second(engine)
        fill_waiting(engine, runs)
        settle(engine)
        time.sleep(SETTLE_S)
        statements = statements_per_second(engine)
        grown_mb = worker.memory_mb - memory_mb
        many = wake(engine, waiting_runs(engine, WAKINGS))
        return {
            "statements_per_s": statements,
            "few_statements_per_s": few_statements,
            "memory_mb": memory_mb,
            "memory_growth_mb": grown_mb,
            "few_p50_ms": few["p50_ms"],
            "p50_ms": many["p50_ms"],
            "p50_ratio": many["p50_ms"] / few["p50_ms"],
            "few_p95_ms": few["p95_ms"],
            "p95_ms": many["p95_ms"],
        }


def statements_per_second(engine: WorkflowEngine) -> float:
    """Transactions in the database while nobody asks for anything: each statement of a worker is one of its own."""
    query = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
    before, began = value(engine, query), time.monotonic()
    time.sleep(IDLE_S)
    return (value(engine, query) - before) / (time.monotonic() - began)


def waiting_runs(engine: WorkflowEngine, count: int) -> list[UUID]:
    """Some of the runs that wait, wherever they stand."""
    with psycopg.connect(engine.conninfo, autocommit=True) as conn:
        rows = conn.execute(
            "select run_id from pgworkflows.queue where status = 'waiting' order by random() limit %s", (count,)
        ).fetchall()
    return [row[0] for row in rows]


def wake(engine: WorkflowEngine, run_ids: Sequence[UUID]) -> Figures:
    """Event sent → completed, one run after the other, the worker asleep each time."""
    seen: list[float] = []
    with watching(engine) as status:
        for run_id in run_ids:
            time.sleep(0.1)
            began = time.perf_counter()
            engine.trigger_event(run_id, "go")
            until(status, run_id, "completed")
            seen.append(time.perf_counter() - began)
    return quantiles(seen)
