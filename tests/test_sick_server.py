"""A worker and a client on a server that is sick: it takes no connection, cancels, refuses to write, or is silent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import Databases
from sickness import MAX_RUNS, ROLES, Attempts, Patient, Proxy, crowd, end_sessions, fill_disk, proxy, small_disk
from waiting import until
from working import rows, working

from pgworkflows import ConfigurationError, EmbeddedPostgres, WorkflowClient, WorkflowEngine
from pgworkflows.embedded.account import account_for
from pgworkflows.embedded.place import CONTROL
from pgworkflows.migrate import migrate
from pgworkflows.testing.server import SETTINGS

GRANTS = """
grant usage on schema pgworkflows to app, keyholder;
grant select, insert, update, delete on all tables in schema pgworkflows to app, keyholder;
grant usage on all sequences in schema pgworkflows to app, keyholder;
"""
MOST_CONNECTIONS = 20
LIMITS = ("statement_timeout", "lock_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout")


@pytest.fixture(scope="module")
def sick_server(_no_settings_from_outside: None) -> Iterator[EmbeddedPostgres]:
    """A server with room for few, with an ordinary user for the worker and another for a crowd."""
    settings = {
        **SETTINGS,
        "max_connections": str(MOST_CONNECTIONS),
        "log_line_prefix": "%m %u@%d ",
        "autovacuum": "off",
    }
    with EmbeddedPostgres(settings=settings) as embedded:
        rows(embedded.url, "create role app login; create role crowd login; create role keyholder login")
        yield embedded


@pytest.fixture(scope="module")
def clinic(sick_server: EmbeddedPostgres) -> Iterator[tuple[Databases, str]]:
    """Makes databases on it, and the name of a migrated one to copy."""
    with Databases(sick_server.url) as databases:
        template = databases.create()
        migrate(databases.url_for(template))
        rows(databases.url_for(template), GRANTS)
        yield databases, template


@pytest.fixture
def admin(clinic: tuple[Databases, str]) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's session in a database of the test's own."""
    databases, template = clinic
    with databases.fresh(template) as url, psycopg.connect(url, autocommit=True) as conn:
        yield conn


@pytest.fixture
def database(admin: psycopg.Connection[Any]) -> str:
    assert admin.info.dbname
    return admin.info.dbname


@pytest.fixture
def app_url(sick_server: EmbeddedPostgres, database: str) -> str:
    return sick_server.url_for(database).replace("//postgres@", "//app@")


@pytest.fixture
def patient(app_url: str, tmp_path: Path) -> Patient:
    return Patient(app_url, tmp_path / "ledger")


def let_default_to(admin: psycopg.Connection[Any], setting: str, text: str) -> None:
    admin.execute(f"alter database {admin.info.dbname} set {setting} = '{text}'".encode())


class TestOutOfConnections:
    """SQLSTATE 53300; for an ordinary user already when only the slots of superusers are left."""

    def test_a_worker_that_lost_its_connections_goes_on_when_there_is_room_again(
        self, patient: Patient, sick_server: EmbeddedPostgres, admin: psycopg.Connection[Any]
    ) -> None:
        with patient.at_work():
            attempts = Attempts(sick_server, "app")
            with crowd(sick_server.url.replace("//postgres@", "//crowd@")) as fill:
                while end_sessions(admin, "app"):
                    fill()
                patient.door.set()
                until(lambda: patient.complaining() >= ROLES, "it complains")
                until(lambda: attempts.count() >= 20, "it tries again")
                with pytest.raises(ConfigurationError, match="cannot connect to PostgreSQL: .*connection slots"):
                    WorkflowClient(patient.url).start_workflow("patient", 0)
                assert patient.held() <= MAX_RUNS
                assert sum(patient.calls().values()) <= len(patient.at_door) + 2 * MAX_RUNS
            attempts.check_pace()
            patient.await_recovery()
            patient.check_words("connection slots", ROLES)
        patient.check_ledger()

    def test_a_worker_that_cannot_begin_says_why(
        self, app_url: str, sick_server: EmbeddedPostgres, admin: psycopg.Connection[Any]
    ) -> None:
        with WorkflowEngine(app_url) as engine:
            with crowd(sick_server.url.replace("//postgres@", "//crowd@")):
                for begin in (engine.start, engine.worker().run_forever, engine.migrate):
                    with pytest.raises(ConfigurationError, match="cannot connect to PostgreSQL: .*connection slots"):
                        begin()
            engine.start()
            until(lambda: rows(app_url, "select 1 from pgworkflows.workers"), "it works")

    def test_a_worker_that_was_started_beside_the_last_free_connection_begins_when_there_are_more(
        self,
        patient: Patient,
        sick_server: EmbeddedPostgres,
        admin: psycopg.Connection[Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """`start` has returned, so nobody would hear of its failure."""
        patient.door.set()
        declare = patient.engine._store.declare_workflows
        with patient.engine as engine, ExitStack() as stack:

            def declare_and_be_too_late(*args: Any) -> None:
                declare(*args)
                sessions = "select count(*) from pg_stat_activity where usename = 'app'"
                until(lambda: admin.execute(sessions).fetchone() == (1,), "the session that migrates has ended")
                stack.enter_context(crowd(sick_server.url.replace("//postgres@", "//crowd@")))

            monkeypatch.setattr(engine._store, "declare_workflows", declare_and_be_too_late)
            engine.start()
            until(lambda: "listening for new work" in patient.complaining(), "it complains")
            until(lambda: "claiming runs" in patient.complaining(), "it complains")
            patient.start(1)
            stack.close()
            patient.await_recovery()
            patient.check_words("connection slots", {"listening for new work", "claiming runs"})
        patient.check_ledger()


class TestCancelled:
    """SQLSTATE 57014."""

    def test_limits_that_an_administrator_sets_for_others_do_not_cut_a_worker_short(
        self, patient: Patient, admin: psycopg.Connection[Any]
    ) -> None:
        with patient.at_work():
            for setting in LIMITS:
                let_default_to(admin, setting, "150ms")
            end_sessions(admin, "app")
            with psycopg.connect(patient.url.replace("//app@", "//postgres@")) as holder:
                holder.execute("set statement_timeout = 0; set idle_in_transaction_session_timeout = 0")
                holder.execute("lock table pgworkflows.steps in access exclusive mode")
                patient.door.set()
                waiting = (
                    "select 1 from pg_stat_activity where usename = 'app' and wait_event_type = 'Lock' "
                    "and now() - query_start > interval '600 ms'"
                )
                until(lambda: admin.execute(waiting).fetchall(), "a flush waits several times as long as others may")
            for setting in LIMITS:  # of the client's calls they count
                let_default_to(admin, setting, "0")
            patient.await_recovery()
            assert patient.said("canceling statement|statement timeout") == []
        patient.check_ledger()

    def test_statements_that_are_cancelled_again_and_again(
        self, patient: Patient, sick_server: EmbeddedPostgres, admin: psycopg.Connection[Any]
    ) -> None:
        with patient.at_work():
            attempts = Attempts(sick_server, "app")
            with psycopg.connect(patient.url.replace("//app@", "//postgres@")) as holder:
                holder.execute("lock table pgworkflows.steps in access exclusive mode")
                patient.door.set()

                def cancelled_often() -> bool:
                    admin.execute(
                        "select pg_cancel_backend(pid) from pg_stat_activity "
                        "where usename = 'app' and wait_event_type = 'Lock'"
                    )
                    return attempts.count() >= 10

                until(cancelled_often, "statements are cancelled")
                assert patient.held() <= MAX_RUNS
                attempts.check_pace()
            patient.await_recovery()
            patient.check_words("user request|lock timeout", {"writing the outcomes of steps"})
        patient.check_ledger()

    def test_a_call_that_is_cancelled_has_done_nothing(self, app_url: str, admin: psycopg.Connection[Any]) -> None:
        let_default_to(admin, "statement_timeout", "300ms")
        with WorkflowClient(app_url) as client:
            client.start_workflow("patient", 0)
            with admin.transaction():
                admin.execute("lock table pgworkflows.runs in access exclusive mode")
                with pytest.raises(psycopg.errors.QueryCanceled, match="canceling statement due to statement timeout"):
                    client.start_workflow("patient", 0)
            client.start_workflow("patient", 0)
            assert len(client.get_runs().items) == 2


def test_a_flush_that_is_the_victim_of_a_deadlock_is_sent_again(
    patient: Patient, sick_server: EmbeddedPostgres, admin: psycopg.Connection[Any]
) -> None:
    """SQLSTATE 40P01. Somebody locks the rows of a run in the opposite order."""
    let_default_to(admin, "deadlock_timeout", "400ms")
    log = sick_server.data_dir / CONTROL / "server.log"
    begin = log.stat().st_size
    with patient.at_work():
        run_id = sorted(patient.at_door)[0]
        with psycopg.connect(patient.url.replace("//app@", "//postgres@")) as other:
            other.execute("set deadlock_timeout = '1min'")
            other.commit()
            opened = False

            def is_deadlock() -> bool:
                nonlocal opened
                other.execute("select 1 from pgworkflows.runs where id = %s for update", [run_id])
                if not opened:
                    patient.door.set()
                    opened = True
                blocked = "select 1 from pg_stat_activity where usename = 'app' and wait_event_type = 'Lock'"
                until(lambda: admin.execute(blocked).fetchall(), "a flush waits for the row", within_s=20)
                other.execute("select 1 from pgworkflows.queue where run_id = %s for update", [run_id])
                other.rollback()
                return b"deadlock detected" in log.read_bytes()[begin:]

            until(is_deadlock, "the two wait for each other")
        patient.await_recovery()
        patient.check_words("deadlock detected", {"writing the outcomes of steps"})
    patient.check_ledger()


class TestSerializationFailures:
    """SQLSTATE 40001."""

    @pytest.mark.parametrize("level", ["repeatable read", "serializable"])
    def test_a_default_isolation_level_does_not_reach_a_worker(
        self, patient: Patient, sick_server: EmbeddedPostgres, admin: psycopg.Connection[Any], level: str
    ) -> None:
        let_default_to(admin, "default_transaction_isolation", level)
        attempts = Attempts(sick_server, "app")
        with patient.at_work():
            patient.door.set()
            patient.await_recovery()
        assert patient.said() == []
        assert attempts.count() == 0
        patient.check_ledger()

    def test_in_a_callers_transaction_it_is_the_callers_to_repeat(self, app_url: str) -> None:
        with WorkflowClient(app_url) as client, psycopg.connect(app_url) as conn:
            run = client.start_workflow("patient", 0)
            conn.execute("set default_transaction_isolation = 'repeatable read'")
            conn.commit()
            tries = 0
            while True:
                tries += 1
                conn.execute("select 1")  # its snapshot
                if tries == 1:
                    client.trigger_event(run.id, "before")
                try:
                    client.trigger_event(run.id, "meanwhile", connection=conn)
                    conn.commit()
                    break
                except psycopg.errors.SerializationFailure:
                    conn.rollback()
            assert tries == 2
            assert [name for (name,) in rows(app_url, "select name from pgworkflows.events order by id")] == [
                "before",
                "meanwhile",
            ]


def test_a_database_that_is_read_only_is_written_when_it_is_not_any_more(
    patient: Patient, sick_server: EmbeddedPostgres, admin: psycopg.Connection[Any]
) -> None:
    """SQLSTATE 25006: after a failover to a standby, or where a host protects a disk that is nearly full."""
    with patient.at_work():
        attempts = Attempts(sick_server, "app")
        let_default_to(admin, "default_transaction_read_only", "on")
        end_sessions(admin, "app")
        patient.door.set()
        until(lambda: len(patient.complaining()) >= 3, "it complains")
        until(lambda: attempts.count() >= 15, "it tries again")
        with WorkflowClient(patient.url) as client:
            with pytest.raises(ConfigurationError, match="read-only: connect to the primary, or find out why"):
                client.start_workflow("patient", 0)
            assert client.get_run(patient.started[0]).status == "running"
        assert patient.held() <= MAX_RUNS
        attempts.check_pace()
        let_default_to(admin, "default_transaction_read_only", "off")
        end_sessions(admin, "app")
        patient.await_recovery()
        patient.check_words("read-only transaction", ROLES - {"listening for new work"})
    patient.check_ledger()


def test_a_worker_whose_sessions_are_ended_again_and_again_says_so_once(
    patient: Patient, sick_server: EmbeddedPostgres, admin: psycopg.Connection[Any]
) -> None:
    """SQLSTATE 57P01, in the midst of flushes and claims as well."""
    with patient.at_work(runs=100):
        patient.door.set()
        ended = 0

        def ended_often() -> bool:
            nonlocal ended
            ended += end_sessions(admin, "app")
            return ended > 60

        until(ended_often, "sessions are ended")
        patient.await_recovery()
        patient.await_calm()
        for role in patient.complaining():
            assert len(patient.said(role)) <= 4  # how often ever: that is what its backoff allows in half a minute
        others = patient.said("^(?!.*(failed, trying again|works again after))")
        assert len(others) == len(patient.said("not this worker's any more")) <= 5
    patient.check_ledger()


def test_a_password_that_was_changed_is_told_and_is_no_end(
    sick_server: EmbeddedPostgres, admin: psycopg.Connection[Any], database: str, tmp_path: Path
) -> None:
    """SQLSTATE 28P01. The password is not in the log."""
    rules = sick_server.data_dir / "pg_hba.conf"
    before = rules.read_text()
    admin.execute("alter role keyholder password 'open-sesame'")
    rules.write_text("local all keyholder scram-sha-256\n" + before)
    admin.execute("select pg_reload_conf()")
    url = sick_server.url_for(database).replace("//postgres@", "//keyholder:open-sesame@")
    patient = Patient(url, tmp_path / "ledger")
    try:
        with patient.at_work():
            attempts = Attempts(sick_server, "keyholder")
            admin.execute("alter role keyholder password 'changed'")
            end_sessions(admin, "keyholder")
            patient.door.set()
            until(lambda: patient.complaining() >= ROLES, "it complains")
            until(lambda: attempts.count() >= 20, "it tries again")
            assert patient.held() <= MAX_RUNS
            attempts.check_pace()
            admin.execute("alter role keyholder password 'open-sesame'")
            patient.await_recovery()
            patient.check_words("password authentication failed", ROLES)
            assert patient.said("sesame|changed") == []
        patient.check_ledger()
    finally:
        rules.write_text(before)
        admin.execute("select pg_reload_conf()")


class TestSilence:
    """Connections are taken, and nobody answers."""

    @pytest.fixture
    def between(self, sick_server: EmbeddedPostgres, make_directory: Callable[[], Path]) -> Iterator[Proxy]:
        with proxy(sick_server, make_directory()) as made:
            yield made

    @pytest.fixture
    def through(self, between: Proxy, database: str) -> str:
        return f"postgresql://app@/{database}?host={between.directory}&port=5432&connect_timeout=2"

    def test_what_was_sent_is_answered_later(self, between: Proxy, through: str, tmp_path: Path) -> None:
        patient = Patient(through, tmp_path / "ledger")
        with patient.at_work():
            between.hold()
            patient.door.set()
            until(lambda: len(patient.at_door) >= 4, "it goes on as far as it can")
            time.sleep(2.0)  # a silence cannot be waited for otherwise
            assert patient.held() <= MAX_RUNS
            assert between.accepted <= 20
            between.flow()
            patient.await_recovery()
            assert patient.said() == []
        patient.check_ledger()

    def test_what_was_sent_is_sent_again_when_the_connections_have_ended(
        self, between: Proxy, through: str, tmp_path: Path
    ) -> None:
        patient = Patient(through, tmp_path / "ledger")
        with patient.at_work():
            between.hold()
            patient.door.set()
            before = between.accepted
            between.cut()
            until(lambda: between.accepted >= before + 8, "it connects again, in vain")
            assert patient.held() <= MAX_RUNS
            between.cut()
            between.flow()
            patient.await_recovery()
            patient.check_words("timeout expired", ROLES)
        patient.check_ledger()

    def test_a_worker_that_was_cut_off_drops_what_another_has_taken_over(
        self, between: Proxy, through: str, app_url: str, tmp_path: Path
    ) -> None:
        cut_off = Patient(through, tmp_path / "ledger", "cut-off", lease="2s")
        other = Patient(app_url, tmp_path / "ledger", "other")
        other.door.set()
        with cut_off.at_work(runs=6):
            between.hold()
            cut_off.door.set()
            with other.engine, working(other.engine):
                for run_id in cut_off.started:
                    assert other.engine.wait_for_run(run_id, timeout=30).status == "completed"
                between.flow()
                until(lambda: cut_off.said("declared dead|not this worker's any more"), "it learns of its death")
                until(lambda: len(rows(app_url, "select 1 from pgworkflows.workers")) == 2, "it begins anew")
                assert len(cut_off.said()) <= 5, cut_off.said()
                cut_off.await_recovery()
        stored = rows(
            app_url,
            "select step_id, output #>> '{}' from pgworkflows.steps where run_id = any (%s)",
            cut_off.started[:6],
        )
        assert {(step_id, output) for step_id, output in stored} <= {
            ("a", "cut-off"),
            ("a", "other"),
            ("b", "other"),
            ("c", "other"),
        }
        assert len(stored) == 18
        assert max(cut_off.calls().values()) == 2


class TestAFullDisk:
    """SQLSTATE 53100."""

    def test_of_the_data_outcomes_wait_until_there_is_room(
        self,
        clinic: tuple[Databases, str],
        sick_server: EmbeddedPostgres,
        make_directory: Callable[[], Path],
        tmp_path: Path,
    ) -> None:
        databases, template = clinic
        owner = sick_server.data_dir.stat().st_uid
        with small_disk(make_directory(), 40, owner) as disk, ExitStack() as stack:
            rows(sick_server.url, f"create tablespace small location '{disk}'")
            stack.callback(rows, sick_server.url, "drop tablespace small")
            name = f"{template}_small"
            rows(sick_server.url, f"create database {name} template {template} tablespace small strategy wal_log")
            stack.callback(databases.drop, name)
            patient = Patient(databases.url_for(name).replace("//postgres@", "//app@"), tmp_path / "ledger")
            with patient.at_work(size=40_000):
                ballast = fill_disk(disk)
                attempts = Attempts(sick_server, "app")
                patient.door.set()
                until(lambda: "writing the outcomes of steps" in patient.complaining(), "it complains")
                until(lambda: attempts.count() >= 4, "it tries again")
                assert patient.held() <= MAX_RUNS
                calls = sum(patient.calls().values())
                until(lambda: attempts.count() >= 5, "it tries again")
                assert sum(patient.calls().values()) <= calls + MAX_RUNS
                attempts.check_pace()

                def start_until_full() -> None:
                    for _ in range(1000):
                        patient.start(1)

                with pytest.raises(psycopg.errors.DiskFull, match="No space left on device"):
                    start_until_full()
                ballast.unlink()
                patient.await_recovery()
                patient.check_words("No space left on device", {"writing the outcomes of steps"})
            patient.check_ledger()

    @pytest.mark.sick
    def test_of_the_log_ends_the_server_and_nothing_is_lost(
        self, make_directory: Callable[[], Path], tmp_path: Path
    ) -> None:
        """It panics, and cannot recover until somebody has made room."""
        owner = account_for(None)
        with small_disk(make_directory(), 160, 0 if owner is None else owner.uid) as disk:
            settings = {"max_wal_size": "32MB", "min_wal_size": "32MB", "autovacuum": "off"}
            with EmbeddedPostgres(disk, settings=settings) as server:
                migrate(server.url)
                patient = Patient(server.url, tmp_path / "ledger")
                with patient.at_work(size=40_000):
                    ballast = fill_disk(disk)
                    patient.door.set()
                    until(lambda: self.write_until_it_panics(server.url), "it panics", within_s=60)
                    until(lambda: patient.complaining() >= ROLES, "it complains")
                    log = disk / CONTROL / "server.log"
                    until(lambda: "shutting down due to startup process failure" in log.read_text(), "it gives up")
                    assert patient.held() <= MAX_RUNS
                    calls = sum(patient.calls().values())
                    time.sleep(5)  # so long nobody is there to be waited for
                    assert sum(patient.calls().values()) <= calls + MAX_RUNS
                    ballast.unlink()
                    server.restart()
                    patient.await_recovery()
                    patient.check_words("", ())
                patient.check_ledger()

    @staticmethod
    def write_until_it_panics(url: str) -> bool:
        try:
            with psycopg.connect(url, autocommit=True) as conn:
                conn.execute("select pg_logical_emit_message(false, 'ballast', repeat('x', 1000000))")
        except psycopg.OperationalError as error:
            return not isinstance(error, psycopg.errors.DiskFull)
        return False


@pytest.mark.sick
def test_a_worker_that_is_told_to_stop_ends_although_the_server_is_silent(
    sick_server: EmbeddedPostgres, make_directory: Callable[[], Path], database: str, tmp_path: Path
) -> None:
    with proxy(sick_server, make_directory()) as between:
        url = f"postgresql://app@/{database}?host={between.directory}&port=5432&connect_timeout=2"
        patient = Patient(url, tmp_path / "ledger", grace="1s")
        with patient.at_work() as worker:
            between.hold()
            patient.door.set()
            worker.stop()  # returns
            assert patient.said("the worker could not sign off: the server does not answer")
            between.flow()
            between.cut()
