"""A worker whose server goes away: it outlives that, loses nothing, and works on when the server is back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from waiting import until
from working import Door, await_heartbeats, rows, value, working

from pgworkflows import EmbeddedPostgres, Step, Steps, WorkflowEngine, workflow

QUIET_START = """
select pgworkflows.try_start_workflow(
    'quick', '1', null, null, null, null, null, null, null, null, null, null, null, null, false
)
"""
"""A start in a transaction of its own, which notifies nobody unless a worker sleeps."""


pytestmark = pytest.mark.usefixtures("quick_heart")


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url) as engine:
        yield engine


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.open.set()


@workflow("quick")
def quick(step: Step, input: Any = None) -> Steps[Any]:
    return (yield step.run("only", lambda: input))


class TestTheServerGoesAway:
    def test_it_goes_on_after_the_server_was_restarted(self, own_server: EmbeddedPostgres, door: Door) -> None:
        """A step is in flight meanwhile; its outcome is stored when the server is back."""

        @workflow("held")
        def held(step: Step) -> Steps[str]:
            yield step.run("first", lambda: None)
            return (yield from step.run("door", door.enter))

        with WorkflowEngine(own_server.url, workflows=[held, quick]) as engine:
            engine.migrate()
            with working(engine):
                run = engine.start_workflow(held)
                assert door.inside.wait(20)
                own_server.restart()
                door.open.set()
                assert engine.wait_for_run(run.id, timeout=30).output == "through the door"
                other = engine.start_workflow(quick, 1)
                assert engine.wait_for_run(other.id, timeout=30).output == 1
                assert len(rows(own_server.url, "select 1 from pgworkflows.workers")) == 1
            assert door.cancelled == [False]

    def test_a_claim_that_a_failover_has_undone_is_dropped_when_its_number_comes_again(
        self, engine: WorkflowEngine
    ) -> None:
        """A standby without the last moments has the run ready, and the sequence of claims as it was before."""
        doors = Door(), Door()
        calls = iter(doors)

        @workflow("held")
        def held(step: Step) -> Steps[object]:
            told = yield from step.run("door", lambda: [next(calls).enter(), len(list(calls))])
            return (yield from step.run("next", lambda: told))

        engine.register_workflow(held)
        with working(engine, poll_interval="50 ms"):
            run = engine.start_workflow(held)
            assert doors[0].inside.wait(20)
            claim = "select claim_id from pgworkflows.queue"
            former = value(engine.conninfo, claim)
            bounds = f"increment 2 minvalue {former} maxvalue {former + 1} start {former} restart {former} cycle"
            rows(engine.conninfo, f"alter sequence pgworkflows.claims {bounds}")
            rows(engine.conninfo, "update pgworkflows.queue set status = 'pending', claim_id = null, worker_id = null")
            assert doors[1].inside.wait(20)
            assert value(engine.conninfo, claim) == former
            doors[0].open.set()  # its outcome comes under the number that is good
            until(lambda: doors[0].cancelled, "the former execution's step returns")
            await_heartbeats(engine.conninfo)
            assert engine.get_steps(run.id) == []
            doors[1].open.set()
            assert engine.wait_for_run(run.id, timeout=20).output == ["through the door", 0]
        assert [door.entered for door in doors] == [1, 1]

    @pytest.mark.direct("about LISTEN and the lock of a worker")
    def test_it_hears_again_after_its_listener_was_ended(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(quick)
        with working(engine, poll_interval="60s"):
            listener = self.listener(engine)
            value(engine.conninfo, "select pg_terminate_backend(%s)", listener)
            until(lambda: self.listeners(engine) not in ([], [(listener,)]), "it listens again")
            until(lambda: rows(engine.conninfo, "select queue from pgworkflows.sleepers"), "it sleeps")
            for number in range(3):
                run = engine.start_workflow(quick, number)
                assert engine.wait_for_run(run.id, timeout=20).output == number

    @pytest.mark.direct("looks at the sessions of connections")
    def test_it_works_on_after_all_its_sessions_were_ended(self, engine: WorkflowEngine, door: Door) -> None:
        @workflow("held")
        def held(step: Step) -> Steps[str]:
            return (yield from step.run("door", door.enter))

        engine.register_workflow(held)
        engine.register_workflow(quick)
        with working(engine):
            run = engine.start_workflow(held)
            assert door.inside.wait(20)
            sessions = "from pg_stat_activity where pid <> pg_backend_pid() and datname = current_database()"
            for _ in range(3):
                until(lambda: value(engine.conninfo, f"select count(*) {sessions}") >= 3, "its threads are connected")
                rows(engine.conninfo, f"select pg_terminate_backend(pid) {sessions}")
                await_heartbeats(engine.conninfo)
                until(lambda: self.listeners(engine), "it listens")
            door.open.set()
            assert engine.wait_for_run(run.id, timeout=20).output == "through the door"
            other = engine.start_workflow(quick, 1)
            assert engine.wait_for_run(other.id, timeout=20).output == 1

    @pytest.mark.direct("looks at the sessions of connections")
    def test_it_signs_off_although_its_session_was_ended_while_it_slept(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(quick)
        with working(engine, poll_interval="1 hour"):
            claiming = (
                "select pid from pg_stat_activity where query ~ 'pgworkflows.?[.](claim|sleep)' and state = 'idle'"
            )
            until(lambda: rows(engine.conninfo, "select queue from pgworkflows.sleepers"), "it sleeps")
            [(pid,)] = until(
                lambda: rows(engine.conninfo, claiming + " and datname = current_database()"), "its session is idle"
            )
            value(engine.conninfo, "select pg_terminate_backend(%s)", pid)
        assert rows(engine.conninfo, "select id from pgworkflows.workers") == []

    @pytest.mark.direct("about LISTEN and the lock of a worker")
    def test_it_takes_its_lock_again_although_its_former_session_lingers(
        self, engine: WorkflowEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine.register_workflow(quick)
        with working(engine), psycopg.connect(engine.conninfo, autocommit=True) as lingering:
            worker_id = value(engine.conninfo, "select id from pgworkflows.workers where has_lock")
            key = value(engine.conninfo, "select pgworkflows.worker_lock_key(%s)", worker_id)
            waiting = threading.Thread(target=lingering.execute, args=("select pg_advisory_lock(%s)", [key]))
            waiting.start()
            until(lambda: self.holders(engine, key, granted=False), "somebody waits for the lock")
            value(engine.conninfo, "select pg_terminate_backend(%s)", self.listener(engine))
            waiting.join(20)
            [lingerer] = self.holders(engine, key)
            until(lambda: self.listeners(engine), "it listens again")
            lingering.execute("select pg_advisory_unlock_all()")
            until(lambda: self.holders(engine, key) not in ([], [lingerer]), "it has its lock again")

    def test_a_notification_that_was_lost_delays_a_run_by_no_more_than_the_poll_interval(
        self, engine: WorkflowEngine
    ) -> None:
        engine.register_workflow(quick)
        with working(engine, poll_interval=0.3):
            until(lambda: rows(engine.conninfo, "select queue from pgworkflows.sleepers"), "it sleeps")
            with psycopg.connect(engine.conninfo) as conn:
                # Without its announcement nobody notifies it.
                conn.execute("delete from pgworkflows.sleepers")
                conn.execute(QUIET_START)
                conn.commit()
            run_id = value(engine.conninfo, "select id from pgworkflows.runs")
            done = engine.wait_for_run(run_id, timeout=20)
        assert done.started_at is not None
        assert (done.started_at - done.created_at).total_seconds() < 1.5

    def test_a_start_that_commits_while_the_worker_falls_asleep_is_found_soon(self, engine: WorkflowEngine) -> None:
        """It looked for sleepers before there were any, and so notifies nobody."""
        engine.register_workflow(quick)
        with psycopg.connect(engine.conninfo) as conn:
            conn.execute(QUIET_START)
            with working(engine, poll_interval="60s"):
                until(lambda: rows(engine.conninfo, "select queue from pgworkflows.sleepers"), "it sleeps")
                conn.commit()
                run_id = value(engine.conninfo, "select id from pgworkflows.runs")
                assert engine.wait_for_run(run_id, timeout=10).output == 1

    @staticmethod
    def listeners(engine: WorkflowEngine) -> list[tuple[Any, ...]]:
        """The sessions that hold a worker's lock, or have just listened."""
        return rows(
            engine.conninfo,
            "select pid from pg_stat_activity where datname = current_database() and query like 'listen %%'",
        )

    def listener(self, engine: WorkflowEngine) -> int:
        [(pid,)] = until(lambda: self.listeners(engine), "the worker listens")
        assert isinstance(pid, int)
        return pid

    @staticmethod
    def holders(engine: WorkflowEngine, key: int, *, granted: bool = True) -> list[int]:
        """The sessions that have, or wait for, an advisory lock."""
        found = rows(
            engine.conninfo,
            "select pid from pg_locks where locktype = 'advisory' and granted = %s "
            "and classid::bigint << 32 | objid::bigint = %s",
            granted,
            key,
        )
        return [pid for (pid,) in found]
