"""A flush is sent without waiting for it, by whoever works; what is out of the ordinary is written all the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import psycopg
import pytest
from waiting import until
from working import Door, rows, value, working

from pgworkflows import Step, Steps, WorkflowEngine, scribe, sessions, workflow
from pgworkflows.documents import Piece
from pgworkflows.held_over import Pending
from pgworkflows.scribe import Scribe
from pgworkflows.worker_connection import Answered, WorkerConnection

pytestmark = pytest.mark.direct("behind a pooler nothing is sent without waiting")
RUNS = 40
STEPS = 4


class Departures:
    """The flights that were sent: by which thread, with how many entries; and what happens right after."""

    def __init__(self) -> None:
        self.by: list[str] = []
        self.entries: list[int] = []
        self.then: list[Callable[[WorkerConnection], object]] = []

    def sent(self, conn: WorkerConnection, entries: int) -> None:
        self.by.append(threading.current_thread().name)
        self.entries.append(entries)
        if self.then:
            self.then.pop(0)(conn)


@pytest.fixture
def departures(monkeypatch: pytest.MonkeyPatch) -> Departures:
    departures = Departures()
    send = Scribe._send

    def noted(self: Scribe, worker_id: UUID, batch: Sequence[Pending], pieces: Sequence[Piece]) -> bool:
        sent = send(self, worker_id, batch, pieces)
        if sent:
            departures.sent(self._conn, len(batch))
        return sent

    monkeypatch.setattr(Scribe, "_send", noted)
    return departures


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def engine(database_url: str, door: Door) -> Iterator[WorkflowEngine]:
    @workflow("counts")
    def counts(step: Step, input: int) -> Steps[int]:
        total = 0
        for number in range(STEPS):
            total += yield from step.run(f"s{number}", int, input)
        return total

    @workflow("waits")
    def waits(step: Step) -> Steps[str]:
        yield from step.run("before", str)
        return (yield from step.run("door", door.enter))

    with WorkflowEngine(database_url, workflows=[counts, waits]) as engine:
        yield engine


def assert_all_done(engine: WorkflowEngine, runs: Sequence[Any]) -> None:
    """Each with its result, each step stored once and called once."""
    outputs = [engine.get_run(run.id).output for run in runs]
    assert outputs == [STEPS * number for number in range(len(runs))]
    stored = rows(engine.conninfo, "select count(*), min(attempts), max(attempts) from pgworkflows.steps")
    assert stored == [(STEPS * len(runs), 1, 1)]


def test_the_threads_that_work_send_what_has_gathered(engine: WorkflowEngine, departures: Departures) -> None:
    runs = engine.start_workflows("counts", list(range(RUNS)))
    engine.worker().run_until_idle("30s")
    assert_all_done(engine, runs)
    assert "pgworkflows-step" in departures.by
    assert max(departures.entries) > 1


def test_a_flight_lands_while_every_thread_is_in_a_long_step(
    engine: WorkflowEngine, departures: Departures, door: Door
) -> None:
    runs = engine.start_workflows("waits", [None] * 4)
    with working(engine, threads=2):
        # Two are at the door; what the others have done before is written although nobody comes back to look.
        stored = "select count(*) from pgworkflows.steps where step_id = 'before' and status = 'completed'"
        until(lambda: door.entered == 2, "both threads are held")
        until(lambda: value(engine.conninfo, stored) >= 2, "what they did before is stored")
        door.open.set()
        assert [engine.wait_for_run(run.id, timeout=20).output for run in runs] == ["through the door"] * 4


def test_what_was_in_the_air_when_the_session_ended_is_written_once(
    engine: WorkflowEngine, departures: Departures, caplog: pytest.LogCaptureFixture
) -> None:
    def hold_all(_conn: WorkerConnection) -> None:
        holder.execute("lock table pgworkflows.steps in exclusive mode")

    def end_session(conn: WorkerConnection) -> None:
        rows(engine.conninfo, "select pg_terminate_backend(%s)", conn.open().info.backend_pid)
        holder.rollback()

    with psycopg.connect(engine.conninfo) as holder:
        departures.then = [hold_all, end_session]
        runs = engine.start_workflows("counts", list(range(RUNS)))
        engine.worker().run_until_idle("30s")
    assert_all_done(engine, runs)
    assert "writing the outcomes of steps failed, trying again" in caplog.text
    assert "works again" in caplog.text


def test_an_answer_that_is_lost_after_the_commit_leaves_each_step_stored_once(
    engine: WorkflowEngine, departures: Departures
) -> None:
    def lose_the_answer(conn: WorkerConnection) -> None:
        pid = conn.open().info.backend_pid
        until(
            lambda: value(engine.conninfo, "select state from pg_stat_activity where pid = %s", pid) == "idle",
            "the flush is committed",
        )
        rows(engine.conninfo, "select pg_terminate_backend(%s)", pid)
        conn.open().pgconn.finish()

    departures.then = [lose_the_answer]
    runs = engine.start_workflows("counts", list(range(RUNS)))
    engine.worker().run_until_idle("30s")
    assert_all_done(engine, runs)


def test_one_run_that_is_locked_holds_up_no_other(engine: WorkflowEngine, departures: Departures) -> None:
    runs = engine.start_workflows("counts", list(range(RUNS)))
    held, others = runs[7], runs[:7] + runs[8:]

    def hold(_conn: WorkerConnection) -> None:
        holder.execute("select from pgworkflows.queue where run_id = %s for update", [held.id])

    with psycopg.connect(engine.conninfo) as holder:
        departures.then = [hold]
        with working(engine):
            for run in others:
                assert engine.wait_for_run(run.id, timeout=20).status == "completed"
            assert engine.get_run(held.id).status == "running"
            holder.rollback()
            assert engine.wait_for_run(held.id, timeout=20).output == 7 * STEPS
    assert_all_done(engine, runs)


def test_one_result_that_the_server_refuses_fails_its_step_alone(
    engine: WorkflowEngine, departures: Departures
) -> None:
    runs = engine.start_workflows("counts", list(range(RUNS)))
    rows(
        engine.conninfo,
        f"""
        create function refuse() returns trigger language plpgsql as $$
        begin raise check_violation using message = 'not this one'; end $$;
        create trigger refuse before insert on pgworkflows.steps for each row
        when (new.run_id = '{runs[3].id}' and new.step_id = 's2' and new.status = 'completed')
        execute function refuse()
        """,
    )
    engine.worker().run_until_idle("30s")
    assert [engine.get_run(run.id).status for run in runs] == ["completed"] * 3 + ["failed"] + ["completed"] * 36
    assert "not this one" in str(engine.get_run(runs[3].id).error)
    assert departures.by


def test_what_is_long_is_left_to_the_thread_that_may_wait(
    engine: WorkflowEngine, departures: Departures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe, "MAX_FLIGHT_LENGTH", 10)
    runs = engine.start_workflows("counts", list(range(RUNS)))
    engine.worker().run_until_idle("30s")
    assert_all_done(engine, runs)
    assert departures.by == []


def test_plans_that_have_grown_old_keep_flights_on_the_ground_for_one_flush(
    engine: WorkflowEngine, departures: Departures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "PLANS_LAST_S", 0.0)
    monkeypatch.setattr(sessions, "PLANS_SERVE", 3)
    runs = engine.start_workflows("counts", list(range(RUNS)))
    engine.worker().run_until_idle("30s")
    assert_all_done(engine, runs)
    assert departures.by


@pytest.mark.parametrize("threads", [1, 3])
def test_answers_that_come_late_and_in_pieces_are_waited_for(
    engine: WorkflowEngine, departures: Departures, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    answered = WorkerConnection.answered
    looks: list[None] = []

    def late(self: WorkerConnection) -> Answered | None:
        looks.append(None)
        return None if len(looks) % 3 else answered(self)

    monkeypatch.setattr(WorkerConnection, "answered", late)
    runs = engine.start_workflows("counts", list(range(RUNS)))
    engine.worker(threads=threads).run_until_idle("30s")
    assert_all_done(engine, runs)
    assert departures.by


def test_a_worker_that_is_told_to_stop_waits_for_what_is_in_the_air(
    engine: WorkflowEngine, departures: Departures
) -> None:
    runs = engine.start_workflows("counts", list(range(RUNS)))
    worker = engine.worker()
    departures.then = [lambda _conn: worker.stop()]
    worker.run_forever()
    in_hand = "select count(*) from pgworkflows.queue where status = 'running'"
    assert value(engine.conninfo, in_hand) == 0
    engine.worker().run_until_idle("30s")
    assert_all_done(engine, runs)
