"""Health: what `health` finds of a database and its workers, and the probe beside a worker."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from conftest import Databases
from psycopg_pool import ConnectionPool
from waiting import until
from working import HandWorker, rows, working

from pgworkflows import (
    ConfigurationError,
    EmbeddedPostgres,
    Step,
    Steps,
    WorkflowClient,
    WorkflowEngine,
    claims,
    health,
    workflow,
)
from pgworkflows.inspection import Inspector
from pgworkflows.probe import Probe


@workflow("fast")
def fast(step: Step) -> Steps[int]:
    return (yield from step.run("one", int))


@workflow("slow", queue="slow")
def slow(step: Step) -> Steps[None]:
    yield from step.run("wait", GATE.wait)


GATE = threading.Event()


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=[fast, slow]) as engine:
        yield engine


# The database -------------------------------------------------------------------------------------------------------


def test_a_database_that_is_as_it_should_be_is_healthy(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = health(database_url)
    assert (found.ok, found.reachable, found.migrated) == (True, True, True)
    assert (found.live_workers, found.queue_lag, found.problems) == (0, timedelta(0), ())
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert health() == found
    with WorkflowClient(database_url) as client, ConnectionPool(database_url, min_size=1, open=True) as pool:
        assert health(client) == client.health() == WorkflowClient(pool=pool).health() == found
    assert json.loads(json.dumps(found.as_json())) == {
        "ok": True, "reachable": True, "migrated": True, "live_workers": 0, "queue_lag": 0.0, "problems": []
    }  # fmt: skip


def test_a_database_that_cannot_be_reached_is_not_and_says_why_without_the_password() -> None:
    found = health("postgresql://ada:secret@127.0.0.1:1/none")
    assert (found.ok, found.reachable, found.migrated, found.live_workers) == (False, False, None, None)
    assert "cannot connect to PostgreSQL" in found.problems[0]
    assert "secret" not in str(found)


def test_a_schema_that_lacks_migrations_is_not_healthy(empty_database_url: str) -> None:
    found = health(empty_database_url)
    assert (found.ok, found.reachable, found.migrated) == (False, True, False)
    assert "lacks 0001_initial, " in found.problems[0]
    assert "call migrate()" in found.problems[0]


def test_a_schema_that_needs_newer_code_is_not_healthy(database_url: str) -> None:
    rows(database_url, "insert into pgworkflows.migrations values (9999, '9999_future', 9999)")
    found = health(database_url)
    assert (found.ok, found.migrated) == (False, False)
    assert "upgrade pgworkflows" in found.problems[0]


def test_a_schema_of_newer_code_that_ours_can_work_with_is_healthy(database_url: str) -> None:
    rows(database_url, "insert into pgworkflows.migrations values (9999, '9999_additive', 1)")
    assert health(database_url).ok


@pytest.mark.direct("PgBouncer refuses options")
def test_a_read_only_server_is_not_healthy(database_url: str) -> None:
    separator = "&" if "?" in database_url else "?"
    found = health(f"{database_url}{separator}options=-cdefault_transaction_read_only%3Don")
    assert (found.ok, found.reachable) == (False, True)
    assert found.problems == ("the server is read-only: connect to the primary",)


def test_a_server_that_stands_still_is_reported_in_time_and_keeps_one_thread() -> None:
    with EmbeddedPostgres() as server, WorkflowClient(server.url) as client:
        client.migrate()
        [(pid,)] = rows(server.url, "select pid from pg_stat_activity where backend_type = 'postmaster'") or [(0,)]
        assert client.health().ok
        [(backend,)] = rows(
            server.url, "select pid from pg_stat_activity where application_name = 'pgworkflows' and pid <> %s", pid
        )
        os.kill(backend, signal.SIGSTOP)
        try:
            began = time.monotonic()
            found = [client.health(timeout="0.2s") for _ in range(3)]
            assert time.monotonic() - began < 5
            assert {each.problems for each in found} == {("the database did not answer within 0.2 s",)}
            assert sum(thread.name == "pgworkflows-health" for thread in threading.enumerate()) == 1
        finally:
            os.kill(backend, signal.SIGCONT)
        until(lambda: client.health().ok, "the server answers again")


def test_wrong_arguments_are_refused(database_url: str) -> None:
    options: list[dict[str, Any]] = [
        {"min_workers": -1},
        {"timeout": 0},
        {"max_queue_lag": "soon"},
    ]
    for wrong in options:
        with pytest.raises(ValueError):
            health(database_url, **wrong)
    with pytest.raises(TypeError, match="min_workers must be an int, not bool"):
        health(database_url, min_workers=True)
    with pytest.raises(ConfigurationError, match="could not be read"):
        health("postgresql://[")


# Workers and queues -------------------------------------------------------------------------------------------------


def test_workers_that_live_are_counted_and_may_be_asked_for(engine: WorkflowEngine) -> None:
    lacking = engine.health(min_workers=1)
    assert lacking.problems == ("live workers of the workflow that fewest have: 0; at least 1 are wanted",)
    with working(engine, queues=["default"]):
        # It has both workflows, and does not serve the lane of one.
        until(lambda: health(engine.conninfo, min_workers=1).ok, "a worker lives")
        assert engine.health(min_workers=1).live_workers == 0
        with working(engine, queues=["slow"]):
            until(lambda: engine.health(min_workers=1).ok, "each workflow has a worker")
            assert health(engine.conninfo).live_workers == 2
            assert not engine.health(min_workers=2).ok


def test_a_worker_that_has_been_silent_for_its_lease_is_not_counted(database_url: str) -> None:
    with HandWorker(database_url, ["fast"], lease_s=5):
        assert health(database_url).live_workers == 1
        rows(database_url, "update pgworkflows.workers set heartbeat_at = heartbeat_at - interval '6 seconds'")
        assert health(database_url).live_workers == 0


def waited(url: str, duration: str, which: str, *values: object) -> None:
    """Let runs have been ready for that much longer."""
    rows(
        url,
        "with moved as (update pgworkflows.queue as q set ready_at = q.ready_at - %s::interval, "
        f"rank = q.rank - %s::interval where {which} returning q.run_id) "
        "update pgworkflows.runs as r set updated_at = r.updated_at - %s::interval "
        "from moved where r.id = moved.run_id",
        duration,
        duration,
        *values,
        duration,
    )


def test_a_run_that_a_worker_has_given_back_waits_since_then(engine: WorkflowEngine) -> None:
    runs = engine.start_workflows(fast, [None] * 2)
    waited(engine.conninfo, "2 hours", "true")
    with HandWorker(engine.conninfo, ["fast"]) as worker:
        [claimed] = worker.claim(1).runs
        assert claimed.run_id == str(runs[0].id)
        claims.release_unheld(worker.connection, worker.id, ())
    assert engine.get_backlog()[0].lag >= timedelta(hours=2)  # the other one's
    engine.cancel_workflow(runs[1].id)
    lags = [engine.health().queue_lag, engine.get_backlog()[0].lag, Inspector(engine).get_overview().queue_lag]
    assert [each is not None and each < timedelta(minutes=1) for each in lags] == [True] * 3


def test_more_runs_that_were_given_back_than_are_looked_up_hide_none_that_waits_longer(engine: WorkflowEngine) -> None:
    runs = engine.start_workflows(fast, [None] * 1002)
    waited(engine.conninfo, "2 hours", "true")
    rows(engine.conninfo, "update pgworkflows.runs set updated_at = now() where id <> %s", runs[-1].id)
    rows(
        engine.conninfo,
        "update pgworkflows.queue set ready_at = ready_at + interval '1 minute' where run_id = %s",
        runs[-1].id,
    )
    for lag in (engine.health().queue_lag, engine.get_backlog()[0].lag, Inspector(engine).get_overview().queue_lag):
        assert lag is not None
        assert lag > timedelta(minutes=118)


def test_runs_that_wait_for_a_worker_are_the_lag(engine: WorkflowEngine) -> None:
    engine.start_workflow(fast, delay="1 hour")
    assert engine.health(max_queue_lag=0).queue_lag == timedelta(0)
    engine.start_workflow(fast)
    other = WorkflowClient(engine.conninfo).start_workflow("of-nobody-here")
    waited(engine.conninfo, "1 minute", "q.run_id <> %s and q.wake_at is null", other.id)
    waited(engine.conninfo, "1 hour", "q.run_id = %s", other.id)
    mine = engine.health(max_queue_lag="59s")
    assert mine.queue_lag is not None
    assert timedelta(minutes=1) <= mine.queue_lag < timedelta(minutes=2)
    assert "a run has been ready for 6" in mine.problems[0]
    assert mine.problems[0].endswith("longer than 59 s")
    assert engine.health(max_queue_lag="2 minutes").ok
    everybodys = health(engine.conninfo).queue_lag
    assert everybodys is not None
    assert everybodys >= timedelta(hours=1)


@pytest.mark.direct("connects as another user")
def test_a_user_who_may_not_see_workers_finds_out_that_the_database_answers(
    database_url: str, databases: Databases
) -> None:
    role = f"health_{os.getpid()}"
    rows(database_url, f"create role {role} login")
    try:
        with WorkflowClient(database_url) as owner:
            owner.grant(client=role)
        separator = "&" if "?" in database_url else "?"
        client = WorkflowClient(f"{database_url}{separator}user={role}")
        found = client.health()
        assert (found.ok, found.reachable, found.migrated, found.live_workers) == (True, True, None, None)
        assert "may not see workers and queue" in client.health(min_workers=1).problems[0]
        client.close()
    finally:
        rows(database_url, f"drop owned by {role}")
        rows(database_url, f"drop role {role}")


# The probe ----------------------------------------------------------------------------------------------------------


def ask(probe: Probe, path: str) -> tuple[int, Any]:
    """The status and the body of an answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{probe.port}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error) if error.code == 503 else None


def test_a_worker_is_alive_and_ready_while_it_runs(engine: WorkflowEngine) -> None:
    GATE.clear()
    worker = engine.worker(threads=2)
    with Probe(worker, port=0) as probe:
        assert ask(probe, "/live")[0] == ask(probe, "/ready")[0] == 503
        assert ask(probe, "/") == (404, None)
        thread = threading.Thread(target=worker.run_forever)
        thread.start()
        try:
            until(lambda: ask(probe, "/ready")[0] == 200, "the worker is ready")
            run = engine.start_workflow(slow)
            until(lambda: ask(probe, "/ready?why")[1]["runs_in_hand"] == 1, "it has a run in hand")
            assert ask(probe, "/live")[0] == 200
            stopping = threading.Thread(target=worker.stop)
            stopping.start()
            until(lambda: ask(probe, "/ready")[0] == 503, "a worker that stops is not ready")
            assert ask(probe, "/live")[0] == 200
        finally:
            GATE.set()
            worker.stop()
            thread.join(20)
        stopping.join(20)
        assert ask(probe, "/live")[0] == 503
    assert engine.get_run(run.id).status == "completed"


def test_a_worker_whose_server_is_away_is_alive_and_not_ready() -> None:
    with EmbeddedPostgres() as server, WorkflowEngine(server.url, workflows=[fast]) as engine:
        worker = engine.worker(lease="2s", grace=0)
        with Probe(worker, port=0) as probe:
            thread = threading.Thread(target=worker.run_forever)
            thread.start()
            until(lambda: ask(probe, "/ready")[0] == 200, "the worker is ready")
            server.stop()
            until(lambda: ask(probe, "/ready")[0] == 503, "it is not ready without the server")
            assert ask(probe, "/live")[0] == 200
            worker.stop()
            thread.join(20)


def test_a_probe_leaves_its_port_free(engine: WorkflowEngine) -> None:
    with Probe(engine.worker(), port=0) as probe:
        port = probe.port
    with Probe(engine.worker(), port=port) as probe:
        assert ask(probe, "/live")[0] == 503
