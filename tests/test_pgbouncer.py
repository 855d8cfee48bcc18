"""A connection pooler in transaction mode before the server: what is recognised, what works, and how fast."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial

import bouncing
import psycopg
import pytest
from bouncing import PgBouncer
from conftest import Databases
from psycopg_pool import ConnectionPool
from waiting import until
from working import ROOT, WorkerProcesses, rows, value, worker_processes, working

from pgworkflows import (
    RunStatus,
    Step,
    Steps,
    Workflow,
    WorkflowClient,
    WorkflowEngine,
    WorkflowRun,
    claims,
    workflow,
)
from pgworkflows.database import connect, connect_worker
from pgworkflows.embedded import EmbeddedPostgres
from pgworkflows.errors import ConfigurationError
from pgworkflows.migrate import migrations
from pgworkflows.sessions import OwnConnection
from pgworkflows.worker_connection import WorkerConnection

pytestmark = pytest.mark.skipif(bouncing.PROGRAM is None, reason=bouncing.MISSING)

HOSTILE = {
    "default_transaction_isolation": "repeatable read",
    "synchronous_commit": "off",
    "timezone": "Asia/Kathmandu",
    "lock_timeout": "1ms",
    "statement_timeout": "7min",
}
CROWD = ROOT / "tests" / "programs" / "migrating_crowd.py"


@workflow("double")
def double(step: Step, input: int) -> Steps[int]:
    return 2 * (yield from step.run("once", abs, input))


@workflow("greeting")
def greeting(step: Step) -> Steps[object]:
    yield from step.run("ask", lambda: None)
    return (yield from step.wait_for("await", "answered"))


@pytest.fixture(scope="module")
def pooler(server: str) -> Iterator[PgBouncer]:
    with PgBouncer(server) as pooler:
        yield pooler


@pytest.fixture
def direct_url(databases: Databases, migrated_template: str) -> Iterator[str]:
    """A migrated database of the test's own, with no pooler before it."""
    name = databases.create(migrated_template)
    yield databases.direct_url_for(name)
    databases.drop(name)


@pytest.fixture
def url(pooler: PgBouncer, direct_url: str) -> str:
    """The same by way of the pooler."""
    return pooler.through(direct_url)


@pytest.fixture
def engine(url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(url, workflows=[double, greeting]) as engine:
        yield engine


@pytest.fixture
def processes(direct_url: str, url: str) -> Iterator[WorkerProcesses]:
    with worker_processes(url) as processes:
        yield processes


def pooler_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "connection pooler" in record.message]


# --- how it is recognised, and what each transaction brings along


def test_a_pooler_is_recognised_at_every_connection(url: str, direct_url: str) -> None:
    for _ in range(20):
        with connect(url) as conn, connect_worker(url) as workers:
            assert conn.pooled
            assert workers.pooled
    with connect(direct_url) as conn, connect_worker(direct_url) as workers:
        assert not conn.pooled
        assert not workers.pooled


@pytest.mark.parametrize("make", [connect, connect_worker])
def test_every_transaction_brings_its_settings_and_leaves_none(
    make: Callable[..., OwnConnection], url: str, direct_url: str
) -> None:
    with psycopg.connect(direct_url, autocommit=True) as conn:
        for name, setting in HOSTILE.items():
            conn.execute(f"alter database {conn.info.dbname} set {name} = '{setting}'".encode())
    wanted = {
        "transaction_isolation": "read committed",
        "synchronous_commit": "on",
        "TimeZone": "UTC",
        "lock_timeout": "5s",
        "statement_timeout": "0" if make is connect_worker else "7min",
    }
    query = f"select {', '.join(f'''current_setting('{name}')''' for name in wanted)}"
    with closing(make(url, lock_timeout_ms=5000)) as conn:
        assert dict(zip(wanted, conn.fetch(query)[0], strict=True)) == wanted
        with conn.together():
            assert dict(zip(wanted, conn.execute(query.encode()).fetchone() or (), strict=True)) == wanted
        left = [psycopg.connect(url) for _ in range(4)]  # at once, so that they get all the sessions there are
        for other in left:
            for name, setting in HOSTILE.items():
                assert other.execute(f"show {name}".encode()).fetchone() == (setting,)
            other.close()


def test_a_statement_that_fails_leaves_the_connection_usable(url: str) -> None:
    with connect(url) as conn:
        for _ in range(3):
            with pytest.raises(psycopg.errors.DivisionByZero):
                conn.fetch("select 1 / %s::integer", (0,))
            assert conn.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
            assert conn.fetch("select %s::integer", (7,)) == [(7,)]
            with pytest.raises(UnicodeEncodeError):  # in the client, with half of the transaction sent
                conn.fetch("select %s::text", ("\ud800",))
            assert conn.info.transaction_status is psycopg.pq.TransactionStatus.IDLE


def end_a_session_that_waits(url: str) -> None:
    waiting = "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    [(pid,)] = until(lambda: rows(url, waiting), "a statement waits")
    assert value(url, "select pg_terminate_backend(%s, 5000)", pid)


def test_a_statement_whose_session_ends_says_why_and_closes_the_connection(url: str, direct_url: str) -> None:
    rows(direct_url, "create table public.held as select 1 as x")
    with connect(direct_url) as holder, connect(url) as conn, ThreadPoolExecutor(1) as threads:
        with holder.transaction():
            holder.execute("lock table public.held")
            waiting = threads.submit(conn.fetch, "select x from public.held")
            end_a_session_that_waits(direct_url)
            with pytest.raises(psycopg.errors.AdminShutdown):
                waiting.result(20)
        assert conn.closed


def test_waiting_for_a_run_goes_on_when_a_session_ends(engine: WorkflowEngine, direct_url: str) -> None:
    run = engine.start_workflow(double, 4)
    with connect(direct_url) as holder, ThreadPoolExecutor(1) as threads:
        with holder.transaction():
            holder.execute("lock table pgworkflows.runs in access exclusive mode")
            waiting = threads.submit(engine.wait_for_run, run.id, timeout=30)
            end_a_session_that_waits(direct_url)
        with working(engine, poll_interval="100 ms"):
            assert waiting.result(30).output == 8


def test_a_locked_row_is_waited_for_as_long_as_the_lock_timeout_says(url: str, direct_url: str) -> None:
    with connect(direct_url) as holder, connect(url, lock_timeout_ms=50) as conn:
        rows(direct_url, "create table public.held as select 1 as x")
        with holder.transaction():
            holder.execute("lock table public.held")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                conn.fetch("select x from public.held")


# --- clients


def test_a_client_needs_no_prepared_statement(url: str) -> None:
    with WorkflowClient(url) as client:
        runs = [client.start_workflow("w", n).id for n in range(30)]
        for run_id in runs:
            client.trigger_event(run_id, "e", {})
            assert client.get_run(run_id).status is RunStatus.PENDING
        assert len(client.get_runs(limit=100).items) == 30
    conn = WorkerConnection(url, "pgworkflows")
    assert [claims.take_over(conn) for _ in range(30)] == [0] * 30
    conn.close()


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_given_pool_may_go_through_a_pooler(url: str, autocommit: bool) -> None:
    """Of the driver's defaults it needs nothing changed: after five times it would prepare a statement."""
    with (
        ConnectionPool(url, kwargs={"autocommit": autocommit}, min_size=1, max_size=4, open=True) as pool,
        WorkflowEngine(pool=pool, workflows=[double]) as engine,
    ):
        runs = [engine.start_workflow(double, n) for n in range(30)]
        with working(engine):
            assert [engine.wait_for_run(run.id, timeout=30).output for run in runs] == [2 * n for n in range(30)]


def test_a_crowd_of_processes_migrates_through_a_pooler_once(pooler: PgBouncer, databases: Databases) -> None:
    name = databases.create()
    done = subprocess.run(
        [sys.executable, str(CROWD), pooler.url_for(name), "6"], capture_output=True, text=True, timeout=60, check=False
    )
    databases.drop(name)
    assert done.returncode == 0, done.stderr
    applied = [number for line in done.stdout.splitlines() for number in json.loads(line)]
    assert sorted(applied) == [migration.number for migration in migrations()]


def test_session_settings_in_the_url_are_refused_with_the_poolers_word(url: str) -> None:
    with (
        WorkflowClient(f"{url}&options=-c%20statement_timeout%3D1") as client,
        pytest.raises(ConfigurationError, match="unsupported startup parameter.*options"),
    ):
        client.get_runs()


# --- workers


def test_a_worker_polls_and_says_so_once(engine: WorkflowEngine, caplog: pytest.LogCaptureFixture) -> None:
    with working(engine, poll_interval="100 ms"):
        runs = [engine.start_workflow(greeting).id for _ in range(20)]
        until(
            lambda: all(engine.get_run(run_id).status is RunStatus.WAITING for run_id in runs), "they wait for an event"
        )
        for number, run_id in enumerate(runs):
            engine.trigger_event(run_id, "answered", number)
        assert [engine.wait_for_run(run_id, timeout=30).output for run_id in runs] == list(range(20))
        assert rows(engine.conninfo, "select has_lock from pgworkflows.workers") == [(False,)]
        # Declared dead it registers anew, and does not say it again.
        former = value(engine.conninfo, "delete from pgworkflows.workers returning id")
        until(lambda: rows(engine.conninfo, "select id from pgworkflows.workers where id <> %s", former), "it is back")
        again = engine.start_workflow(double, 4)
        assert engine.wait_for_run(again.id, timeout=30).output == 8
    [warning] = pooler_warnings(caplog)
    assert "listen_conninfo" in warning
    assert rows(engine.conninfo, "select id from pgworkflows.workers") == []


def test_with_a_direct_connection_to_listen_with_a_start_wakes_a_sleeping_worker(
    url: str, direct_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        WorkflowEngine(url, workflows=[greeting], listen_conninfo=direct_url) as engine,
        working(engine, poll_interval="1 hour"),
    ):
        sleeping = "select count(*) from pgworkflows.sleepers"
        until(lambda: value(direct_url, sleeping), "the worker sleeps")
        run = engine.start_workflow(greeting)
        until(lambda: engine.get_run(run.id).status is RunStatus.WAITING, "the start wakes it")
        until(lambda: value(direct_url, sleeping), "the worker sleeps again")
        engine.trigger_event(run.id, "answered", "yes")
        assert engine.wait_for_run(run.id, timeout=20).output == "yes"
        assert rows(direct_url, "select has_lock from pgworkflows.workers") == [(True,)]
    assert pooler_warnings(caplog) == []


def test_a_pooler_where_a_direct_connection_should_be_is_told(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with WorkflowEngine(url, workflows=[double], listen_conninfo=url) as engine, working(engine):
        run = engine.start_workflow(double, 4)
        assert engine.wait_for_run(run.id, timeout=30).output == 8
    assert len(pooler_warnings(caplog)) == 1


def test_a_killed_worker_is_dead_after_its_lease(processes: WorkerProcesses, url: str) -> None:
    lease_s = 4.0
    with WorkflowClient(url) as client:
        victim = processes.start(lease=lease_s)
        victim.await_registration()
        run = client.start_workflow("story", {"steps": ["a", "b"], "gated": ["b"]})
        until(lambda: len(processes.calls()) == 2, "the run is in its second step")
        other = processes.start(lease=lease_s)
        other.await_registration()
        victim.send(signal.SIGKILL)
        killed_at = time.monotonic()
        processes.open_gate("b")
        assert client.wait_for_run(run.id, timeout=30).output == [victim.pid, other.pid]
        # Its last heartbeat came up to half a second before the end.
        assert time.monotonic() - killed_at > lease_s - 1.0
        assert victim.registered() == []
        assert processes.calls() == [("a", victim.pid), ("b", victim.pid), ("b", other.pid)]


def test_with_direct_connections_to_listen_with_a_killed_worker_is_dead_long_before_its_lease(
    processes: WorkerProcesses, url: str, direct_url: str
) -> None:
    with WorkflowClient(url) as client:
        victim = processes.start(lease="1 hour", listen_conninfo=direct_url)
        victim.await_registration()
        run = client.start_workflow("story", {"steps": ["a", "b"], "gated": ["b"]})
        until(lambda: len(processes.calls()) == 2, "the run is in its second step")
        other = processes.start(lease="1 hour", listen_conninfo=direct_url)
        other.await_registration()
        victim.send(signal.SIGKILL)
        processes.open_gate("b")
        assert client.wait_for_run(run.id, timeout=30).output == [victim.pid, other.pid]


def start_again(engine: WorkflowEngine, workflow: Workflow[int, int]) -> list[WorkflowRun]:
    """The pooler lends sessions that have ended, and says so when it has been asked: then the call is repeated."""
    with suppress(ConfigurationError):
        return [engine.start_workflow(workflow, 50, idempotency_key="after")]
    return []


class TestWhatFailsBehindTheClient:
    """The pooler dies, and the server behind it: clients and workers go on, and nothing is lost or done twice."""

    @pytest.mark.parametrize("who", ["pooler", "server"])
    def test_work_goes_on(self, own_server: EmbeddedPostgres, who: str) -> None:
        calls: list[int] = []

        @workflow("noting", retries=0)
        def noting(step: Step, input: int) -> Steps[int]:
            yield from step.run("note", calls.append, input)
            return input

        with (
            PgBouncer(own_server.url) as pooler,
            WorkflowEngine(pooler.url_for("postgres"), workflows=[noting]) as engine,
            ExitStack() as stack,
        ):
            engine.migrate()
            stack.enter_context(working(engine, poll_interval="100 ms"))
            before = engine.start_workflows(noting, range(50))
            if who == "pooler":
                pooler.kill()
                pooler.start()
            else:
                own_server.restart()
            [after] = until(partial(start_again, engine, noting), "a call is answered")
            for number, run in enumerate([*before, after]):
                assert engine.wait_for_run(run.id, timeout=60).output == number
        assert sorted(calls) == list(range(51))


def test_the_pgbouncer_of_these_tests_keeps_no_session(url: str) -> None:
    """Otherwise they would prove nothing."""
    with connect(url) as conn, connect(url) as other:
        with conn.transaction(), other.transaction():
            pids = {each.execute("select pg_backend_pid()").fetchone() for each in (conn, other)}
        assert len(pids) == 2
        assert {conn.execute("select pg_backend_pid()").fetchone() for _ in range(10)} == pids
