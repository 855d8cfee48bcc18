"""What was acknowledged is on disk: every process of the server is killed right after each kind of write.

The server's default is `synchronous_commit = off`, under which what is not written otherwise is lost by such a kill: a
plain insert shows it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from waiting import until
from working import HandWorker, value

from pgworkflows import Step, Steps, WorkflowEngine, workflow
from pgworkflows.decisions import StepWrite
from pgworkflows.embedded import EmbeddedPostgres
from pgworkflows.entries import Entry

SETTINGS = {"fsync": "on", "synchronous_commit": "off", "wal_writer_delay": "10s"}


@workflow("plan")
def plan(step: Step, input: int) -> Steps[Any]:
    yield from step.run("work", int)
    yield from step.wait_for("word", "word")
    return input


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(settings=SETTINGS) as server:
        with WorkflowEngine(server.url, workflows=[plan]) as engine:
            engine.start(worker=False)
        yield server


@pytest.fixture
def engine(server: EmbeddedPostgres) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(server.url, workflows=[plan]) as engine:
        yield engine


def kill(server: EmbeddedPostgres) -> None:
    """End the postmaster and every process of its at once, and start the server again."""
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)  # it forks nobody any more, and ends nobody gently
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    server.restart()
    until(lambda: value(server.url, "select 1") == 1, "the server answers")


def pending(engine: WorkflowEngine) -> Any:
    return engine.start_workflow(plan, 1).id


def paused(engine: WorkflowEngine) -> Any:
    return engine.pause_workflow(pending(engine)).id


def cancelled(engine: WorkflowEngine) -> Any:
    return engine.cancel_workflow(pending(engine)).id


def waiting(engine: WorkflowEngine) -> Any:
    run_id = pending(engine)
    engine.worker().run_until_idle(timeout=20)
    assert engine.get_run(run_id).status == "waiting"
    return run_id


OPERATIONS: list[tuple[str, Callable[[WorkflowEngine], Any], Callable[[WorkflowEngine, Any], Any], str]] = [
    ("start_workflow", lambda engine: None, lambda engine, _: engine.start_workflow(plan, 1).id, "pending"),
    ("start_workflows", lambda engine: None, lambda engine, _: engine.start_workflows(plan, [1, 2])[1].id, "pending"),
    ("pause_workflow", pending, lambda engine, run_id: engine.pause_workflow(run_id), "paused"),
    ("resume_workflow", paused, lambda engine, run_id: engine.resume_workflow(run_id), "pending"),
    ("cancel_workflow", pending, lambda engine, run_id: engine.cancel_workflow(run_id), "cancelled"),
    ("retry_workflow", cancelled, lambda engine, run_id: engine.retry_workflow(run_id), "pending"),
    ("fast_forward_workflow", waiting, lambda engine, run_id: engine.fast_forward_workflow(run_id, 1), "pending"),
    ("trigger_event", waiting, lambda engine, run_id: engine.trigger_event(run_id, "word", 1), "pending"),
]


@pytest.mark.parametrize(
    ("before", "operation", "status"), [rest for _, *rest in OPERATIONS], ids=[name for name, *_ in OPERATIONS]
)
def test_an_acknowledged_call_survives_a_kill_of_the_server(
    server: EmbeddedPostgres,
    engine: WorkflowEngine,
    before: Callable[[WorkflowEngine], Any],
    operation: Callable[[WorkflowEngine, Any], Any],
    status: str,
) -> None:
    run_id = before(engine)
    found = operation(engine, run_id)
    kill(server)
    assert engine.get_run(run_id or found).status == status


def test_an_acknowledged_outcome_of_a_step_survives_a_kill_of_the_server(
    server: EmbeddedPostgres, engine: WorkflowEngine
) -> None:
    for each in engine.get_runs(statuses=["pending"]).items:
        engine.cancel_workflow(each.id)
    run_id = pending(engine)
    step = StepWrite(0, "work", "run", "completed", "42", None, 1, 0, 0.001)
    with HandWorker(server.url, ["plan"]) as worker:
        run = worker.claim_one()
        worker.write(Entry(run.run_id, run.claim_id, run.signal, "checkpoint", (step,)))
        kill(server)
    [stored] = engine.get_steps(run_id)
    assert (stored.status, stored.output) == ("completed", 42)


def test_an_acknowledged_end_survives_a_kill_of_the_server(server: EmbeddedPostgres, engine: WorkflowEngine) -> None:
    run_id = waiting(engine)
    engine.trigger_event(run_id, "word")
    engine.worker().run_until_idle(timeout=20)
    kill(server)
    assert engine.get_run(run_id).output == 1


def test_what_is_written_otherwise_is_lost_by_such_a_kill(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.url, autocommit=True) as conn:
        conn.execute("set synchronous_commit = on")
        conn.execute("create table public.notes (note text)")
        conn.execute("set synchronous_commit = off")
        conn.execute("insert into public.notes values ('lost')")
        kill(server)
    assert value(server.url, "select count(*) from public.notes") == 0
