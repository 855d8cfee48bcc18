"""Retention: finished runs are deleted with all that is theirs, and nothing else is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest
from waiting import until
from working import HandWorker, rows, value, working

from pgworkflows import (
    RunStatus,
    Step,
    Steps,
    WorkflowClient,
    WorkflowEngine,
    WorkflowRunNotFoundError,
    janitor,
    pruning,
    workflow,
)


@workflow("short-lived", retention="1 day")
def short_lived(step: Step) -> Steps[Any]:
    yield from step.run("work", lambda: 1)
    return (yield from step.wait_for("wait", "go"))


@workflow("kept")
def kept(step: Step) -> Steps[None]:
    yield from step.run("work", lambda: None)


@workflow("parent")
def parent(step: Step) -> Steps[Any]:
    yield from step.invoke_child_workflow("child", kept)
    return (yield from step.wait_for("wait", "go"))


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=[short_lived, kept, parent]) as engine:
        engine.start(worker=False)
        yield engine


def idle(engine: WorkflowEngine) -> None:
    engine.worker(grace=5).run_until_idle(timeout=30)


AGE = """
with aged as (
    select id as before,
        encode(overlay(uuid_send(id) placing substring(int8send(ms) from 3) from 1 for 6), 'hex')::uuid as id
    from pgworkflows.runs,
        lateral (select (extract(epoch from clock_timestamp() - %(age)s::interval) * 1000)::bigint as ms) as moment
), runs as (
    update pgworkflows.runs as r
    set id = a.id, created_at = r.created_at - %(age)s::interval, completed_at = r.completed_at - %(age)s::interval
    from aged as a where r.id = a.before
), children as (
    update pgworkflows.steps as s set child_run_id = a.id from aged as a where s.child_run_id = a.before
), queue as (
    update pgworkflows.queue as q set run_id = a.id from aged as a where q.run_id = a.before
), events as (
    update pgworkflows.events as e set run_id = a.id from aged as a where e.run_id = a.before
)
update pgworkflows.steps as s set run_id = a.id from aged as a where s.run_id = a.before
"""


def grow_old(engine: WorkflowEngine, days: int) -> None:
    """Let all that is there have happened so many days earlier."""
    with psycopg.connect(engine.conninfo) as conn:
        children = conn.execute("select 1 from pgworkflows.runs where parent_run_id is not null").fetchall()
        assert not children, "their parents' ids would not be changed along"
        conn.execute(AGE.replace("%(age)s", f"'{days} days'").encode())


def counts(engine: WorkflowEngine) -> tuple[int, int, int]:
    """How many runs, steps and events there are."""
    [found] = rows(
        engine.conninfo,
        "select (select count(*) from pgworkflows.runs), (select count(*) from pgworkflows.steps), "
        "(select count(*) from pgworkflows.events)",
    )
    return found


def finished(engine: WorkflowEngine, **options: Any) -> UUID:
    """A completed run with steps and events, one of them never taken."""
    run = engine.start_workflow(short_lived, **options)
    engine.trigger_event(run.id, "go")
    engine.trigger_event(run.id, "nobody-waits-for-it")
    idle(engine)
    assert engine.get_run(run.id).status is RunStatus.COMPLETED
    return run.id


def test_what_ended_before_the_retention_is_deleted_with_its_steps_and_events(engine: WorkflowEngine) -> None:
    finished(engine)
    assert counts(engine) == (1, 2, 2)
    assert engine.prune() == 0
    grow_old(engine, 2)
    young = finished(engine)
    assert engine.prune() == 1
    assert counts(engine) == (1, 2, 2)
    assert engine.get_run(young).status is RunStatus.COMPLETED


def test_a_workflow_without_retention_keeps_its_runs_unless_told_otherwise(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(kept)
    idle(engine)
    grow_old(engine, 1000)
    assert engine.prune() == 0
    assert engine.prune(older_than="2000 days") == 0
    assert engine.prune(older_than="30 days", workflow_id="short-lived") == 0
    assert engine.prune(older_than="30 days", workflow_id="kept") == 1
    with pytest.raises(WorkflowRunNotFoundError):
        engine.get_run(run.id)


def test_a_client_prunes_what_it_does_not_know(engine: WorkflowEngine) -> None:
    engine.cancel_workflow(WorkflowClient(engine.conninfo).start_workflow("unheard-of").id)
    finished(engine)
    grow_old(engine, 2)
    with WorkflowClient(engine.conninfo) as client:
        assert client.prune(workflow_id="kept") == 0
        assert client.prune() == 1
        assert client.prune(older_than="1 day") == 1
    assert counts(engine) == (0, 0, 0)


def test_an_unfinished_run_stays_however_old_it_is(engine: WorkflowEngine) -> None:
    engine.start_workflow(short_lived)
    idle(engine)
    engine.pause_workflow(engine.start_workflow(short_lived).id)
    engine.start_workflow(short_lived)
    grow_old(engine, 1000)
    assert engine.prune(older_than="1 second") == 0
    assert counts(engine)[0] == 3


def test_age_counts_from_the_end_not_from_the_start(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(short_lived)
    idle(engine)
    grow_old(engine, 10)
    [(aged,)] = rows(engine.conninfo, "select id from pgworkflows.runs")
    assert aged != run.id
    engine.cancel_workflow(aged)
    assert engine.prune() == 0


def test_a_run_that_was_cancelled_while_a_worker_has_it_stays_until_it_lets_go(engine: WorkflowEngine) -> None:
    engine.start_workflow(kept)
    with HandWorker(engine.conninfo, ["kept"]) as worker:
        claimed = worker.claim_one()
        engine.cancel_workflow(claimed.run_id)
        grow_old(engine, 10)
        assert engine.prune(older_than="1 day") == 0
        worker.die()
        worker.take_over()
    assert engine.prune(older_than="1 day") == 1


def test_the_children_of_an_unfinished_run_stay(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(parent)
    idle(engine)
    rows(engine.conninfo, "update pgworkflows.runs set completed_at = completed_at - interval '9 days'")
    with psycopg.connect(engine.conninfo) as conn:
        # Ids carry the time of the start.
        conn.execute(
            "update pgworkflows.runs set id = '00000000-0000-7000-8000-000000000001' where parent_run_id is not null"
        )
    assert engine.prune(older_than="1 day") == 0
    engine.cancel_workflow(run.id)
    assert engine.prune(older_than="1 day") == 1


def test_many_batches_are_deleted_while_runs_are_started(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "BATCH", 7)
    for run in engine.start_workflows(kept, [None] * 60):
        engine.cancel_workflow(run.id)
    waiting = engine.start_workflows(kept, [None] * 20)
    for run in engine.start_workflows(kept, [None] * 40):
        engine.cancel_workflow(run.id)
    grow_old(engine, 5)
    with psycopg.connect(engine.conninfo) as conn:
        # Whoever starts runs at the same time, also with a key of a run that goes, waits for nothing long.
        conn.execute("set lock_timeout = '1 s'")
        engine.start_workflow(kept, connection=conn)
        assert engine.prune(older_than="1 day") == 100
    assert counts(engine)[0] == len(waiting) + 1


def test_several_prune_at_once_and_each_run_goes_once(engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "BATCH", 5)
    for run in engine.start_workflows(kept, [None] * 100):
        engine.cancel_workflow(run.id)
    grow_old(engine, 5)
    found: list[int] = []
    begin = threading.Barrier(4)

    def act() -> None:
        begin.wait()
        found.append(engine.prune(older_than="1 day"))

    threads = [threading.Thread(target=act) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    # What another had locked just then may be left for the next time.
    assert sum(found) + engine.prune(older_than="1 day") == 100


def test_a_key_is_free_again_once_its_run_is_deleted(engine: WorkflowEngine) -> None:
    first = finished(engine, idempotency_key="key")
    grow_old(engine, 2)
    assert engine.prune() == 1
    assert engine.start_workflow(short_lived, idempotency_key="key").id != first


@pytest.mark.parametrize("kept_after_all", [False, True])
@pytest.mark.parametrize("many", [False, True])
def test_a_start_with_the_key_of_a_run_that_is_being_deleted_waits_to_see_what_comes_of_it(
    engine: WorkflowEngine, many: bool, kept_after_all: bool
) -> None:
    finished(engine, idempotency_key="key")
    grow_old(engine, 2)
    [(first,)] = rows(engine.conninfo, "select id from pgworkflows.runs")

    def start() -> UUID:
        if many:
            return engine.start_workflows(short_lived, [None], idempotency_keys=["key"])[0].id
        return engine.start_workflow(short_lived, idempotency_key="key").id

    with psycopg.connect(engine.conninfo) as conn, ThreadPoolExecutor(1) as pool:
        conn.execute("select pgworkflows.prune_runs(null, '1 day', null, 500)")
        started = pool.submit(start)
        until(lambda: rows(engine.conninfo, "select 1 from pg_locks where not granted"), "the start waits")
        if kept_after_all:
            conn.rollback()
        else:
            conn.commit()
        assert (started.result(20) == first) is kept_after_all
    assert counts(engine)[0] == 1


def test_a_run_that_is_being_retried_is_not_deleted(engine: WorkflowEngine) -> None:
    engine.cancel_workflow(engine.start_workflow(short_lived).id)
    grow_old(engine, 2)
    [(run_id,)] = rows(engine.conninfo, "select id from pgworkflows.runs")
    with psycopg.connect(engine.conninfo) as conn:
        engine.retry_workflow(run_id, connection=conn)
        assert engine.prune() == 0
    assert engine.get_run(run_id).status is RunStatus.PENDING
    assert value(engine.conninfo, "select count(*) from pgworkflows.queue") == 1


def test_a_worker_prunes_by_itself(engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "PRUNE_EVERY_S", 0.6)
    finished(engine)
    grow_old(engine, 2)
    with working(engine):
        until(lambda: counts(engine) == (0, 0, 0), "the worker prunes")


def test_an_engines_retention_is_that_of_the_workflows_that_do_not_say(database_url: str) -> None:
    with WorkflowEngine(database_url, workflows=[short_lived, kept], retention="30 days") as engine:
        engine.start(worker=False)
        found = rows(
            database_url, "select id, extract(epoch from retention)::int / 86400 from pgworkflows.workflows order by id"
        )
        assert [(name, days) for name, days in found] == [("kept", 30), ("short-lived", 1)]
    with WorkflowEngine(database_url, workflows=[kept]) as engine:
        engine.start(worker=False)
    assert value(database_url, "select retention from pgworkflows.workflows where id = 'kept'") is None


@pytest.mark.parametrize("wrong", [0, "-1 day", "2 months", "soon", ""])
def test_what_is_no_duration_is_refused(database_url: str, wrong: Any) -> None:
    with pytest.raises(ValueError):
        WorkflowEngine(database_url, retention=wrong)
    with pytest.raises(ValueError):
        workflow("a", retention=wrong)
    with WorkflowClient(database_url) as client, pytest.raises(ValueError):
        client.prune(older_than=wrong)
