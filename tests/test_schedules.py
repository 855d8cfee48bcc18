"""Schedules: one run per tick, after downtime too, and what clients and SQL may do with them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from waiting import until
from working import HandWorker, rows, value, working

from pgworkflows import (
    ConfigurationError,
    Step,
    Steps,
    Workflow,
    WorkflowClient,
    WorkflowEngine,
    WorkflowNotFoundError,
    WorkflowRun,
    WorkflowRunInProgressError,
    scheduler,
    workflow,
    workflow_ref,
)
from pgworkflows.claims import serve_workflows
from pgworkflows.database import Locked
from pgworkflows.declarations import declarations
from pgworkflows.ticks import due_schedules, fire_schedule
from pgworkflows.timetable import CatchUp, Overlap
from pgworkflows.worker_connection import WorkerConnection

EVERY_MINUTE = Path(__file__).parent / "programs" / "every_minute.py"
MINUTE = (datetime.now(UTC).minute + 30) % 60
"""Of every hour, the one that is furthest from now: no test runs into a tick."""
HOURLY = f"{MINUTE} * * * *"
TWICE_HOURLY = f"{min(MINUTE, (MINUTE + 20) % 60)},{max(MINUTE, (MINUTE + 20) % 60)} * * * *"


def scheduled(
    id: str = "hourly",
    schedule: Any = HOURLY,
    *,
    catch_up: CatchUp = "latest",
    overlap: Overlap = "allow",
    singleton: bool = False,
    timezone: str = "UTC",
) -> Workflow[Any, Any]:
    @workflow(id, schedule=schedule, timezone=timezone, catch_up=catch_up, overlap=overlap, singleton=singleton)
    def handler(step: Step) -> Steps[Any]:
        assert step.context.schedule is not None
        yield from step.wait_for("go-ahead", "go")
        return step.context.schedule.timestamp

    return handler


def unscheduled(id: str = "hourly") -> Workflow[Any, Any]:
    @workflow(id)
    def handler(step: Step) -> Steps[Any]:
        yield from step.wait_for("go-ahead", "go")

    return handler


class Timekeeper(HandWorker):
    """A worker whose scheduler is played by hand: it looks at the schedules when the test says so."""

    def __init__(self, url: str, *workflows: Workflow[Any, Any]) -> None:
        super().__init__(url, [each.id for each in workflows])
        self.url = url
        self.serve(*workflows)

    def serve(self, *workflows: Workflow[Any, Any]) -> None:
        serve_workflows(self.connection, self.id, ["default"], declarations(workflows))

    def look(self) -> list[str]:
        """Do what is due, as the scheduler does; what came of each."""
        agenda = due_schedules(self.connection, self.id)
        return [fire_schedule(self.connection, schedule, agenda.now) for schedule in agenda.schedules]

    def due(self) -> list[str]:
        return [schedule.workflow_id for schedule in due_schedules(self.connection, self.id).schedules]


def sleep_through(url: str, time: timedelta, workflow_id: str = "hourly") -> None:
    """Let it be that the schedule was last looked after so long ago."""
    rows(
        url,
        "update pgworkflows.schedules set since = clock_timestamp() - %s, next_at = null where workflow_id = %s",
        time,
        workflow_id,
    )


def ticks(url: str, workflow_id: str = "hourly") -> list[datetime]:
    """The ticks that have got a run, in the order of the runs."""
    found = rows(
        url,
        "select schedule_tick from pgworkflows.runs where workflow_id = %s and schedule_tick is not null order by id",
        workflow_id,
    )
    return [each for (each,) in found]


def tick(url: str, back: int = 0) -> datetime:
    """The last tick of HOURLY, by the database's clock, or one before."""
    query = "select date_trunc('hour', clock_timestamp() - %s) + %s - %s * interval '1 hour'"
    found = value(url, query, timedelta(minutes=MINUTE), timedelta(minutes=MINUTE), back)
    assert isinstance(found, datetime)
    return found


@pytest.fixture
def client(database_url: str) -> Iterator[WorkflowClient]:
    with WorkflowClient(database_url) as made:
        yield made


class TestTicks:
    def test_a_new_schedule_fires_at_its_next_tick_and_not_for_the_past(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with Timekeeper(database_url, scheduled()) as worker:
            before = client.get_schedule("hourly")
            assert (before.next_at, before.last_tick_at, before.last_run_id) == (None, None, None)
            assert worker.look() == ["fired"]
            assert client.get_schedule("hourly").next_at == tick(database_url, -1)
            assert worker.look() == []
            assert ticks(database_url) == []
            assert 0 < (due_schedules(worker.connection, worker.id).next_in_s or 0) <= 3600

    def test_a_tick_starts_one_run_with_the_default_of_the_input_and_the_workflows_options(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        @workflow("hourly", schedule=HOURLY, priority="high", queue="reports", retries=3)
        def hourly(step: Step, input: dict[str, int] = {"days": 7}) -> Steps[Any]:  # noqa: B006  (nobody changes it)
            yield from step.delay("nap", 1)

        with Timekeeper(database_url, hourly) as worker:
            sleep_through(database_url, timedelta(hours=1))
            assert worker.look() == ["fired"]
        [run] = client.get_runs().items
        assert (run.workflow_id, run.input, run.queue, run.priority, run.max_retries) == (
            "hourly", {"days": 7}, "reports", 100, 3,
        )  # fmt: skip
        assert ticks(database_url) == [tick(database_url)]
        schedule = client.get_schedule("hourly")
        assert (schedule.last_tick_at, schedule.last_run_id) == (tick(database_url), run.id)
        assert (schedule.expression, schedule.input) == (HOURLY, {"days": 7})

    def test_many_workers_that_race_start_one_run_per_tick(self, database_url: str) -> None:
        with Timekeeper(database_url, scheduled(schedule="* * * * *", catch_up="all")) as worker:
            sleep_through(database_url, timedelta(minutes=250))
            begin = threading.Barrier(12)

            def race() -> list[str]:
                conn = WorkerConnection(database_url, "pgworkflows")
                outcomes: list[str] = []
                begin.wait()
                while (agenda := due_schedules(conn, worker.id)).schedules:
                    outcomes.append(fire_schedule(conn, agenda.schedules[0], agenda.now))
                conn.close()
                return outcomes

            with ThreadPoolExecutor(12) as threads:
                outcomes = [outcome for each in [threads.submit(race) for _ in range(12)] for outcome in each.result()]
            assert outcomes.count("fired") == 3
            assert set(outcomes) <= {"fired", "lost", "locked"}
        found = ticks(database_url)
        assert found == [found[0] + timedelta(minutes=minute) for minute in range(len(found))]
        assert 249 <= len(found) <= 251

    def test_the_unique_index_has_the_last_word(self, database_url: str) -> None:
        with Timekeeper(database_url, scheduled()) as worker:
            for _ in range(2):
                sleep_through(database_url, timedelta(hours=1))
                assert worker.look() == ["fired"]
        assert ticks(database_url) == [tick(database_url)]

    def test_a_schedule_that_somebody_holds_is_left_and_fires_later(self, database_url: str) -> None:
        with Timekeeper(database_url, scheduled(), scheduled("other")) as worker:
            sleep_through(database_url, timedelta(hours=1), "hourly")
            sleep_through(database_url, timedelta(hours=1), "other")
            with psycopg.connect(database_url) as conn:
                conn.execute("select from pgworkflows.pause_schedule('hourly')")
                assert sorted(worker.look()) == ["fired", "locked"]
                conn.rollback()
            assert worker.look() == ["fired"]
        assert ticks(database_url) == ticks(database_url, "other") == [tick(database_url)]

    def test_a_client_whose_transaction_holds_what_a_tick_waits_for_is_no_victim_of_a_deadlock(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with (
            Timekeeper(database_url, scheduled(singleton=True)) as worker,
            psycopg.connect(database_url) as conn,
            ThreadPoolExecutor(1) as thread,
        ):
            sleep_through(database_url, timedelta(hours=1))
            client.start_workflow("hourly", connection=conn)
            firing = thread.submit(worker.look)
            until(
                lambda: value(database_url, "select count(*) from pg_locks where not granted"),
                "the tick waits for the singleton of the open transaction",
            )
            client.pause_schedule("hourly", connection=conn)  # waits for the schedule, which the tick holds
            with pytest.raises(Locked):
                firing.result(20)
            conn.rollback()
            assert worker.look() == ["fired"]
        assert ticks(database_url) == [tick(database_url)]


class TestDowntime:
    @pytest.mark.parametrize(("catch_up", "fired"), [("latest", [0]), ("all", [2, 1, 0]), ("none", [])])
    def test_of_the_ticks_that_were_missed_those_fire_that_are_to_be_made_up_for(
        self, database_url: str, catch_up: CatchUp, fired: list[int]
    ) -> None:
        with Timekeeper(database_url, scheduled(catch_up=catch_up)) as worker:
            worker.look()
            worker.die()
        rows(
            database_url,
            "update pgworkflows.schedules set since = %s, next_at = %s",
            tick(database_url, 3),
            tick(database_url, 2),
        )
        with Timekeeper(database_url, scheduled(catch_up=catch_up)) as worker:
            assert worker.look() == ["fired"]
            assert worker.look() == []
        assert ticks(database_url) == [tick(database_url, back) for back in fired]


class TestOverlap:
    def test_ticks_overlap_unless_they_are_told_not_to(self, database_url: str) -> None:
        with Timekeeper(database_url, scheduled(catch_up="all")) as worker:
            sleep_through(database_url, timedelta(hours=3))
            worker.look()
        assert len(ticks(database_url)) == 3

    @pytest.mark.parametrize("how", [{"overlap": "skip"}, {"singleton": True}])
    def test_a_tick_is_skipped_while_the_last_run_is_unfinished(
        self, database_url: str, client: WorkflowClient, how: dict[str, Any]
    ) -> None:
        with Timekeeper(database_url, scheduled(catch_up="all", **how)) as worker:
            sleep_through(database_url, timedelta(hours=3))
            assert worker.look() == ["fired"]
            assert ticks(database_url) == [tick(database_url, 2)]
            schedule = client.get_schedule("hourly")
            assert schedule.last_tick_at == tick(database_url, 2)
            assert schedule.last_skipped_at == tick(database_url)
            assert schedule.last_run_id is not None
            client.cancel_workflow(schedule.last_run_id)
            sleep_through(database_url, timedelta(hours=1))
            assert worker.look() == ["fired"]
        assert ticks(database_url) == [tick(database_url, 2), tick(database_url)]

    def test_skipping_looks_at_the_schedules_own_runs_and_a_singleton_at_all(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with Timekeeper(database_url, scheduled(overlap="skip"), scheduled("single", singleton=True)) as worker:
            for each in ("hourly", "single"):
                client.start_workflow(each)
                sleep_through(database_url, timedelta(hours=1), each)
            worker.look()
        assert ticks(database_url) == [tick(database_url)]
        assert ticks(database_url, "single") == []


class TestPauseAndResume:
    def test_ticks_that_pass_while_a_schedule_is_paused_do_not_fire(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with Timekeeper(database_url, scheduled(catch_up="all")) as worker:
            worker.look()
            paused = client.pause_schedule("hourly")
            assert paused.paused_at is not None
            assert paused.next_at is None
            assert client.pause_schedule("hourly") == paused
            sleep_through(database_url, timedelta(hours=3))
            assert worker.due() == []
            resumed = client.resume_schedule("hourly")
            assert resumed.paused_at is None
            assert client.resume_schedule("hourly") == resumed
            assert worker.look() == ["fired"]
            assert client.get_schedule("hourly").next_at == tick(database_url, -1)
        assert ticks(database_url) == []

    def test_a_schedule_paused_after_it_was_found_due_does_not_fire(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with Timekeeper(database_url, scheduled()) as worker:
            sleep_through(database_url, timedelta(hours=1))
            agenda = due_schedules(worker.connection, worker.id)
            client.pause_schedule("hourly")
            assert fire_schedule(worker.connection, agenda.schedules[0], agenda.now) == "lost"
        assert ticks(database_url) == []

    def test_pausing_and_resuming_join_the_callers_transaction(self, database_url: str, client: WorkflowClient) -> None:
        with Timekeeper(database_url, scheduled()), psycopg.connect(database_url) as conn:
            assert client.pause_schedule("hourly", connection=conn).paused_at is not None
            assert client.get_schedule("hourly").paused_at is None
            conn.rollback()
            assert client.get_schedule("hourly").paused_at is None
            client.pause_schedule("hourly", connection=conn)
            conn.commit()
            assert client.get_schedule("hourly").paused_at is not None
            client.resume_schedule("hourly", connection=conn)
            conn.commit()
            assert client.get_schedule("hourly").paused_at is None


class TestTrigger:
    def test_a_run_starts_now_whether_the_schedule_is_paused_or_its_last_run_unfinished(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with Timekeeper(database_url, scheduled(overlap="skip")) as worker:
            worker.look()
            next_at = client.get_schedule("hourly").next_at
            first = client.trigger_schedule("hourly")
            client.pause_schedule("hourly")
            second = client.trigger_schedule("hourly")
            client.resume_schedule("hourly")
            schedule = client.get_schedule("hourly")
            assert first.id != second.id == schedule.last_run_id
            assert schedule.next_at == next_at
            now = value(database_url, "select clock_timestamp()")
            assert schedule.last_tick_at is not None
            assert now - timedelta(seconds=20) < schedule.last_tick_at <= now
            # The run it has started is one of the schedule's: the next tick looks at it.
            sleep_through(database_url, timedelta(hours=1))
            worker.look()
        assert len(ticks(database_url)) == 2

    def test_what_plugins_send_along_comes_with_the_run(self, database_url: str) -> None:
        class Tracing:
            name = "tracing"

            def inject(self, headers: dict[str, str]) -> None:
                headers["trace"] = "t-1"

        with WorkflowClient(database_url, plugins=[Tracing()]) as client, Timekeeper(database_url, scheduled()):
            client.trigger_schedule("hourly")
        assert value(database_url, "select headers ->> 'trace' from pgworkflows.runs") == "t-1"

    def test_a_singleton_in_progress_is_refused_without_aborting_the_callers_transaction(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with Timekeeper(database_url, scheduled(singleton=True)), psycopg.connect(database_url) as conn:
            run = client.trigger_schedule("hourly", connection=conn)
            with pytest.raises(WorkflowRunInProgressError, match="singleton") as refused:
                client.trigger_schedule("hourly", connection=conn)
            assert refused.value.run_id == run.id
            with pytest.raises(WorkflowNotFoundError):
                client.trigger_schedule("unknown", connection=conn)
            conn.commit()
        assert len(ticks(database_url)) == 1

    def test_a_trigger_that_is_rolled_back_starts_nothing(self, database_url: str, client: WorkflowClient) -> None:
        with Timekeeper(database_url, scheduled()), psycopg.connect(database_url) as conn:
            client.trigger_schedule("hourly", connection=conn)
            conn.rollback()
            assert client.get_schedule("hourly").last_run_id is None
        assert ticks(database_url) == []

    def test_what_has_no_schedule_is_not_found(self, client: WorkflowClient) -> None:
        operations: list[Callable[[str], object]] = [
            client.pause_schedule,
            client.resume_schedule,
            client.trigger_schedule,
            client.get_schedule,
        ]
        for operation in operations:
            with pytest.raises(WorkflowNotFoundError, match="'unknown' has no schedule") as refused:
                operation("unknown")
            assert refused.value.workflow_id == "unknown"
            with pytest.raises(ValueError, match="1 to 256"):
                operation("")
        assert client.get_schedules() == []


class TestSql:
    def test_the_operations_answer_with_the_schedule_or_the_run(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with Timekeeper(database_url, scheduled()), psycopg.connect(database_url, autocommit=True) as conn:
            schedule = "select (pgworkflows.{}('hourly')).*"
            paused = conn.execute(f"select paused_at from ({schedule.format('pause_schedule')}) as s").fetchone()
            assert paused == (client.get_schedule("hourly").paused_at,)
            resumed = conn.execute(f"select paused_at from ({schedule.format('resume_schedule')}) as s").fetchone()
            assert resumed == (None,)
            run = conn.execute("select id, status from pgworkflows.trigger_schedule('hourly')").fetchone()
            assert run == (client.get_schedule("hourly").last_run_id, "pending")

    @pytest.mark.parametrize("operation", ["pause_schedule", "resume_schedule", "trigger_schedule"])
    def test_a_workflow_without_a_schedule_raises_pw005(self, database_url: str, operation: str) -> None:
        with pytest.raises(psycopg.Error, match="workflow unknown has no schedule") as refused:
            rows(database_url, f"select pgworkflows.{operation}('unknown')")
        assert refused.value.sqlstate == "PW005"

    def test_triggering_a_singleton_in_progress_raises_pw004(self, database_url: str) -> None:
        with Timekeeper(database_url, scheduled(singleton=True)):
            rows(database_url, "select pgworkflows.trigger_schedule('hourly')")
            with pytest.raises(psycopg.Error) as refused:
                rows(database_url, "select pgworkflows.trigger_schedule('hourly')")
        assert refused.value.sqlstate == "PW004"


class TestDeclarations:
    def test_the_schedules_are_listed_as_they_are_declared(self, database_url: str, client: WorkflowClient) -> None:
        berlin = scheduled("b", "30  4 * * SUN", timezone="Europe/Berlin", catch_up="all", overlap="skip")
        with Timekeeper(database_url, berlin, scheduled("a", timedelta(minutes=90)), unscheduled("c")):
            listed = client.get_schedules()
        told = [(each.workflow_id, each.expression, each.timezone, each.catch_up, each.overlap) for each in listed]
        assert told == [
            ("a", "1 hour 30 minutes", "UTC", "latest", "allow"),
            ("b", "30 4 * * SUN", "Europe/Berlin", "all", "skip"),
        ]
        assert all(each.declared_at.tzinfo == UTC for each in listed)

    def test_a_redeploy_with_the_same_schedule_in_other_words_changes_nothing(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with Timekeeper(database_url, scheduled(schedule="90 minutes")) as worker:
            worker.look()
            before = client.get_schedule("hourly")
            worker.serve(scheduled(schedule="PT1H30M"))
            assert client.get_schedule("hourly") == before

    def test_another_expression_begins_anew_and_what_else_changes_leaves_the_ticks(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with Timekeeper(database_url, scheduled()) as worker:
            sleep_through(database_url, timedelta(hours=1))
            worker.serve(scheduled(schedule=TWICE_HOURLY))
            assert worker.look() == ["fired"]
            assert ticks(database_url) == []
            before = client.get_schedule("hourly")
            worker.serve(scheduled(schedule=TWICE_HOURLY, overlap="skip"))
            after = client.get_schedule("hourly")
            assert (after.next_at, after.overlap) == (before.next_at, "skip")
            worker.serve(scheduled(schedule=TWICE_HOURLY, timezone="Europe/Berlin", overlap="skip"))
            assert client.get_schedule("hourly").next_at is None

    def test_a_tick_computed_from_the_old_expression_does_not_fire_under_the_new(self, database_url: str) -> None:
        with Timekeeper(database_url, scheduled()) as worker:
            sleep_through(database_url, timedelta(hours=1))
            agenda = due_schedules(worker.connection, worker.id)
            worker.serve(scheduled(schedule=TWICE_HOURLY))
            rows(database_url, "update pgworkflows.schedules set since = %s", agenda.schedules[0].since)
            assert fire_schedule(worker.connection, agenda.schedules[0], agenda.now) == "lost"
        assert ticks(database_url) == []

    def test_an_unchanged_declaration_does_not_wait_for_whoever_holds_the_schedule(self, database_url: str) -> None:
        with Timekeeper(database_url, scheduled()) as worker, psycopg.connect(database_url) as conn:
            conn.execute("select from pgworkflows.pause_schedule('hourly')")
            worker.serve(scheduled())  # raises Locked otherwise
            conn.rollback()

    def test_a_schedule_that_the_code_has_dropped_is_forgotten_once_no_live_worker_declares_it(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with Timekeeper(database_url, scheduled()) as old, Timekeeper(database_url, unscheduled()) as new:
            sleep_through(database_url, timedelta(hours=1))
            assert new.due() == []
            assert old.due() == ["hourly"]
            old.die()
            assert client.get_schedules() == []
            assert old.look() == []
            new.serve(scheduled())
            new.look()
        assert ticks(database_url) == []

    def test_while_no_worker_has_the_workflow_its_schedule_is_kept_but_does_not_fire(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with Timekeeper(database_url, scheduled()) as first, Timekeeper(database_url, scheduled("other")) as second:
            first.die()
            sleep_through(database_url, timedelta(hours=1))
            assert second.due() == ["other"]
            assert [each.workflow_id for each in client.get_schedules()] == ["hourly", "other"]

    def test_a_worker_that_takes_the_schedule_out_while_it_runs_forgets_it(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with Timekeeper(database_url, scheduled()) as worker:
            worker.serve(unscheduled())
            assert client.get_schedules() == []

    def test_workers_that_come_and_go_at_once_leave_the_right_schedules(
        self, database_url: str, client: WorkflowClient
    ) -> None:
        with Timekeeper(database_url, unscheduled()) as stays:

            def come_and_go(number: int) -> None:
                with Timekeeper(database_url, scheduled() if number % 2 else unscheduled()) as worker:
                    worker.look()
                    worker.die()

            with ThreadPoolExecutor(8) as threads:
                list(threads.map(come_and_go, range(40)))
            stays.serve(unscheduled(), scheduled("other"))
            assert [each.workflow_id for each in client.get_schedules()] == ["other"]

    def test_a_scheduled_workflow_must_start_without_input(self) -> None:
        @workflow("needs-input", schedule="1 hour")
        def needs_input(step: Step, input: int) -> Steps[Any]:
            yield from step.delay("nap", input)

        with pytest.raises(
            ConfigurationError, match=r"'needs-input' has a schedule.*give the handler's input a default"
        ):
            WorkflowEngine("dbname=unused", workflows=[needs_input])

    def test_bad_schedules_are_refused_at_definition(self) -> None:
        with pytest.raises(ValueError, match="cron fields"):
            workflow("bad", schedule="every now and then")
        with pytest.raises(ValueError, match="unknown"):
            workflow_ref("bad").handler(schedule="0 9 * * *", timezone="Europe/Bielefeld")
        with pytest.raises(ValueError, match="overlap must be one of 'allow', 'skip'"):
            workflow("bad", schedule="1 hour", overlap="queue")  # type: ignore[arg-type]  # that is what is tried

    def test_a_reference_gets_its_schedule_with_its_handler(self) -> None:
        @workflow_ref("nightly").handler(schedule="0 3 * * *", timezone="Europe/Berlin", catch_up="none")
        def nightly(step: Step) -> Steps[Any]:
            yield from step.delay("nap", 1)

        assert nightly.plan is not None
        assert (nightly.plan.timetable.expression, nightly.plan.catch_up) == ("0 3 * * *", "none")


def await_run(engine: WorkflowEngine) -> WorkflowRun:
    """The run of a tick, once it has fired."""
    run = until(lambda: engine.get_workflow_last_run("hourly"), "the tick fires")
    assert run is not None
    return run


def await_next(engine: WorkflowEngine) -> None:
    """Wait until all ticks are dealt with and the next are computed."""
    until(
        lambda: (found := engine.get_schedules()) and all(schedule.next_at for schedule in found),
        "the next tick is computed",
    )


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers look again and again: they see what a test has changed by SQL."""
    monkeypatch.setattr(scheduler, "LONGEST_REST_S", 0.05)


class TestWorkers:
    @pytest.mark.usefixtures("restless")
    def test_a_worker_fires_ticks_and_the_run_knows_its_own(self, database_url: str) -> None:
        hourly = scheduled()
        with WorkflowEngine(database_url, workflows=[hourly]) as engine, working(engine):
            await_next(engine)
            sleep_through(database_url, timedelta(hours=1))
            run = await_run(engine)
            engine.trigger_event(run.id, "go")
            assert engine.wait_for_run(run.id, timeout="20s").output == tick(database_url).isoformat().replace(
                "+00:00", "Z"
            )

    def test_a_tick_fires_at_its_time(self, database_url: str) -> None:
        """Not after the five seconds that the scheduler rests at most."""
        with WorkflowEngine(database_url, workflows=[scheduled()]) as engine, working(engine):
            await_next(engine)
            soon = value(
                database_url,
                "update pgworkflows.schedules set since = since - interval '1 hour', "
                "next_at = clock_timestamp() + interval '1.5 s' returning next_at",
            )
            with working(engine):  # it finds the tick ahead when it starts
                run = await_run(engine)
            assert timedelta(0) <= run.created_at - soon < timedelta(seconds=1)

    @pytest.mark.usefixtures("restless")
    def test_ticks_fire_while_all_threads_are_busy(self, database_url: str) -> None:
        release = threading.Event()

        @workflow("busy")
        def busy(step: Step) -> Steps[Any]:
            yield from step.run("wait", release.wait, 30)

        with (
            WorkflowEngine(database_url, workflows=[busy, scheduled()]) as engine,
            working(engine, threads=1, grace="1s"),
        ):
            runs = [engine.start_workflow("busy") for _ in range(3)]
            until(lambda: engine.get_run(runs[0].id).status == "running", "the only thread is taken")
            sleep_through(database_url, timedelta(hours=1))
            try:
                until(lambda: ticks(database_url), "the tick fires")
            finally:
                release.set()

    def test_a_schedule_is_added_changed_and_taken_out_while_the_worker_runs(self, database_url: str) -> None:
        with WorkflowEngine(database_url, workflows=[unscheduled("other")]) as engine, working(engine):
            assert engine.get_schedules() == []
            engine.register_workflow(scheduled())
            await_next(engine)
            engine.unregister_workflow("hourly")
            engine.register_workflow(scheduled(schedule=TWICE_HOURLY))
            until(lambda: engine.get_schedule("hourly").expression == TWICE_HOURLY, "the new expression is declared")
            until(lambda: engine.get_schedule("hourly").next_at, "its tick is computed at once", within_s=4)
            engine.unregister_workflow("hourly")
            engine.register_workflow(unscheduled())
            until(lambda: not engine.get_schedules(), "the schedule is forgotten")

    @pytest.mark.usefixtures("restless")
    def test_what_cannot_be_read_stops_no_other_schedule_and_is_logged_once(
        self, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with WorkflowEngine(database_url, workflows=[scheduled("bad"), scheduled()]) as engine, working(engine):
            await_next(engine)
            rows(
                database_url,
                "update pgworkflows.schedules set expression = 'nonsense', next_at = null where workflow_id = 'bad'",
            )
            for _ in range(2):
                sleep_through(database_url, timedelta(hours=1))
                until(lambda: engine.get_schedule("hourly").next_at, "the other goes on")
        told = [record.getMessage() for record in caplog.records if "stands still" in record.getMessage()]
        assert len(told) == 1
        assert told[0].startswith("pgworkflows: the schedule of workflow bad stands still: the schedule is 'nonsense'")

    @pytest.mark.usefixtures("restless")
    def test_a_refusal_of_the_server_stops_no_other_schedule(
        self, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows(database_url, "alter table pgworkflows.runs add check (workflow_id <> 'bad')")
        with WorkflowEngine(database_url, workflows=[scheduled("bad"), scheduled()]) as engine, working(engine):
            until(lambda: len(engine.get_schedules()) == 2, "the schedules are declared")
            sleep_through(database_url, timedelta(hours=1), "bad")
            sleep_through(database_url, timedelta(hours=1))
            until(lambda: ticks(database_url), "the other fires")
        assert [record for record in caplog.records if "stands still" in record.getMessage()]

    @pytest.mark.usefixtures("restless")
    @pytest.mark.direct("ends the sessions that the pooler lends")
    def test_schedules_go_on_after_the_server_has_closed_all_connections(self, database_url: str) -> None:
        with WorkflowEngine(database_url, workflows=[scheduled()]) as engine, working(engine):
            await_next(engine)
            rows(
                database_url,
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()",
            )
            sleep_through(database_url, timedelta(hours=1))
            until(lambda: ticks(database_url), "the tick fires")

    @pytest.mark.usefixtures("restless")
    def test_a_schema_of_another_name_has_schedules_of_its_own(self, database_url: str) -> None:
        hourly = scheduled()
        with (
            WorkflowEngine(database_url, workflows=[hourly], schema='my "own" ünit') as engine,
            WorkflowEngine(database_url, workflows=[unscheduled()]) as other,
            working(other),
        ):
            engine.start()
            await_next(engine)
            run = engine.trigger_schedule("hourly")
            engine.trigger_event(run.id, "go")
            assert engine.wait_for_run(run.id, timeout="20s").status == "completed"
            assert other.get_schedules() == []
            engine.unregister_workflow("hourly")
            engine.register_workflow(unscheduled())
            until(lambda: not engine.get_schedules(), "the schedule is forgotten")

    @pytest.mark.direct("looks at the sessions of connections")
    def test_the_connection_of_the_scheduler_is_open_only_while_there_are_schedules(self, database_url: str) -> None:
        def connections() -> int:
            found = value(
                database_url,
                "select count(*) from pg_stat_activity "
                "where application_name = 'pgworkflows' and datname = current_database()",
            )
            assert isinstance(found, int)
            return found

        with WorkflowEngine(database_url, workflows=[unscheduled()]) as engine, working(engine):
            run = engine.start_workflow("hourly")
            until(lambda: engine.get_run(run.id).status == "waiting", "the journal has written")
            engine.close()  # the client's own
            until(lambda: connections() == 4, "four connections are open")
            engine.register_workflow(scheduled("more"))
            until(lambda: connections() == 5, "the scheduler has opened its own")
            engine.unregister_workflow("more")
            until(lambda: connections() == 4, "it has closed it")

    @pytest.mark.usefixtures("restless")
    def test_a_worker_that_was_declared_dead_fires_again_once_it_has_registered_anew(self, database_url: str) -> None:
        with WorkflowEngine(database_url, workflows=[scheduled()]) as engine, working(engine):
            await_next(engine)
            rows(database_url, "delete from pgworkflows.workers")
            sleep_through(database_url, timedelta(hours=1))
            until(lambda: ticks(database_url), "the tick fires")

    def test_processes_fire_each_tick_once_also_when_some_are_killed_in_the_middle(self, database_url: str) -> None:
        def started() -> int:
            found = value(database_url, "select count(*) from pgworkflows.runs")
            assert isinstance(found, int)
            return found

        def more_than(number: int) -> bool:
            return started() > number

        days = 5
        with Timekeeper(database_url, scheduled("every-minute", "1 minute", catch_up="all")) as before:
            before.die()
        sleep_through(database_url, timedelta(days=days), "every-minute")
        processes = [
            subprocess.Popen([sys.executable, str(EVERY_MINUTE), database_url], stderr=subprocess.DEVNULL)
            for _ in range(3)
        ]
        try:
            for number, process in enumerate(processes[1:], 1):
                until(partial(more_than, number * 1000), "many ticks have fired")
                process.kill()
            assert started() < days * 1440
            until(
                lambda: value(database_url, "select next_at > clock_timestamp() from pgworkflows.schedules"),
                "all ticks are dealt with",
            )
        finally:
            for process in processes:
                process.kill()
                process.wait(30)
        found = ticks(database_url, "every-minute")
        assert found == [found[0] + timedelta(minutes=minute) for minute in range(len(found))]
        assert len(found) >= days * 1440
