"""The testing kit: what it does to runs, what it claims of them, and what it says when that is not so."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from working import rows, value

from pgworkflows import (
    ConfigurationError,
    PollResult,
    Step,
    StepFailedError,
    Steps,
    WorkflowEngine,
    current_step,
    workflow,
)
from pgworkflows.migrate import migrate
from pgworkflows.testing import Workflows, make_clock_movable


@workflow("welcome")
def welcome(step: Step, email: str) -> Steps[str]:
    yield from step.run("mail-link", lambda: f"link to {email}")
    click = yield from step.wait_for("await-click", "clicked", timeout="24 hours")
    if click is None:
        yield from step.run("mail-reminder", lambda: f"reminder to {email}")
        return "reminded"
    return "confirmed"


@workflow("stubborn")
def stubborn(step: Step) -> Steps[str]:
    return (yield from step.run("call", lambda: "answer").retry(attempts=3, wait="1 hour"))


@workflow("week")
def week(step: Step) -> Steps[str]:
    for day in range(7):
        yield from step.delay(f"day-{day}", "1 day")
    return "over"


def two_steps(note: Callable[[str], object]) -> Any:
    def noted(step_id: str) -> None:
        note(step_id)

    @workflow("two-steps")
    def two(step: Step) -> Steps[str]:
        yield from step.run("first", noted, "first")
        yield from step.run("second", noted, "second")
        return "done"

    return two


class TestDriving:
    def test_a_start_returns_at_the_next_wait(self, workflows: Workflows) -> None:
        run = workflows.start(welcome, "ada@example.com")
        run.assert_waiting_for("clicked")
        run.assert_waiting_for("await-click")
        run.assert_step_ran_once("mail-link")
        assert run.step("mail-link").output == "link to ada@example.com"

    def test_an_event_is_taken_before_the_call_returns(self, workflows: Workflows) -> None:
        run = workflows.start(welcome, "ada@example.com")
        run.send("clicked")
        run.assert_completed("confirmed")

    def test_a_wait_can_be_skipped(self, workflows: Workflows) -> None:
        run = workflows.start(welcome, "ada@example.com")
        run.fast_forward({"by": "the test"})
        run.assert_completed("confirmed")

    def test_step_functions_and_handlers_are_called_in_the_tests_thread(self, workflows: Workflows) -> None:
        threads: list[threading.Thread] = []

        @workflow("where")
        def where(step: Step) -> Steps[None]:
            threads.append(threading.current_thread())
            yield from step.run("here", lambda: threads.append(threading.current_thread()))

        workflows.start(where).assert_completed()
        assert set(threads) == {threading.current_thread()}

    def test_a_run_that_nobody_started_here_is_driven_too(self, workflows: Workflows) -> None:
        workflows.register(welcome)
        run = workflows.engine.start_workflow("welcome", "eve@example.com")
        workflows.run_until_idle()
        workflows.run(run.id).assert_waiting_for("clicked")
        assert workflows.last_run("welcome").id == workflows.last_run(welcome).id == run.id

    def test_a_child_is_driven_and_its_end_reaches_the_parent(self, workflows: Workflows) -> None:
        @workflow("parent")
        def parent(step: Step) -> Steps[str]:
            return (yield from step.invoke_child_workflow("child", welcome, "ada@example.com"))

        workflows.register(welcome)
        run = workflows.start(parent)
        run.assert_waiting_for("child")
        workflows.last_run("welcome").send("clicked")
        run.assert_completed("confirmed")

    def test_pause_resume_cancel_and_retry_have_happened_when_they_return(self, workflows: Workflows) -> None:
        run = workflows.start(welcome, "ada@example.com")
        run.pause()
        assert run.status == "paused"
        run.resume()
        run.assert_waiting_for("clicked")
        run.cancel()
        assert run.status == "cancelled"
        run.retry()
        run.assert_waiting_for("clicked")
        run.assert_step_ran_once("mail-link")

    def test_a_pause_step_is_a_wait(self, workflows: Workflows) -> None:
        @workflow("approval")
        def approval(step: Step) -> Steps[str]:
            yield from step.pause("approve")
            return "approved"

        run = workflows.start(approval)
        run.assert_waiting_for("approve")
        run.resume()
        run.assert_completed("approved")

    def test_a_lane_that_no_workflow_names_is_served(self, workflows: Workflows) -> None:
        workflows.start(two_steps(str), queue="aside").assert_completed("done")

    def test_a_step_that_takes_too_long_times_out(self, workflows: Workflows) -> None:
        told: list[bool] = []

        def hang() -> str:
            step = current_step()
            deadline = time.monotonic() + 20
            while not step.cancelled and time.monotonic() < deadline:
                time.sleep(0.001)
            told.append(step.cancelled)
            return "late"

        @workflow("slow")
        def slow(step: Step) -> Steps[str]:
            return (yield from step.run("hang", hang).timeout("20ms"))

        run = workflows.start(slow)
        run.assert_failed("StepTimeoutError", step="hang")
        assert told == [True]

    def test_a_result_that_postgres_refuses_fails_its_step(self, workflows: Workflows) -> None:
        rows(
            workflows.engine.conninfo,
            "alter table pgworkflows.steps add constraint no_nonsense check (output::text <> '\"nonsense\"')",
        )

        @workflow("nonsense")
        def nonsense(step: Step) -> Steps[None]:
            yield from step.run("talk", lambda: "nonsense")

        workflows.start(nonsense).assert_failed("SerializationError", step="talk")

    def test_ctrl_c_in_a_step_ends_the_test_and_fails_no_step(self, workflows: Workflows) -> None:
        def interrupted() -> None:
            raise KeyboardInterrupt

        @workflow("interrupted")
        def handler(step: Step) -> Steps[None]:
            yield from step.run("long", interrupted)

        with pytest.raises(KeyboardInterrupt):
            workflows.start(handler)
        with pytest.raises(pytest.fail.Exception):
            workflows.start(two_steps(pytest.fail))

    def test_a_row_that_the_test_has_locked_is_told_of(
        self, workflows: Workflows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pgworkflows.testing.driver.PATIENCE_S", 0.0)
        url = workflows.engine.conninfo
        with psycopg.connect(url) as conn:
            run_with_lock = two_steps(lambda _: conn.execute("select from pgworkflows.queue for update"))
            with pytest.raises(RuntimeError, match="locked by another connection: end the transaction"):
                workflows.start(run_with_lock)
            conn.rollback()


class TestTime:
    def test_a_wait_of_a_day_takes_no_time(self, workflows: Workflows) -> None:
        run = workflows.start(welcome, "ada@example.com")
        workflows.travel(hours=23, minutes=59)
        run.assert_waiting_for("clicked")
        workflows.travel("1 minute")
        run.assert_completed("reminded")

    def test_what_falls_due_on_the_way_happens_at_its_time(self, workflows: Workflows) -> None:
        run = workflows.start(week)
        began = run.record.created_at
        workflows.travel("3 days 1 hour")
        run.assert_waiting_for("day-3")
        days = [step.completed_at - began for step in run.steps if step.completed_at is not None]
        assert [day // timedelta(days=1) for day in days] == [1, 2, 3]
        assert max(day % timedelta(days=1) for day in days) < timedelta(minutes=1)
        workflows.travel(days=4)
        run.assert_completed("over")

    def test_the_database_the_library_and_the_test_agree_on_the_time(self, workflows: Workflows) -> None:
        moments: list[datetime] = []

        @workflow("appointment")
        def appointment(step: Step) -> Steps[None]:
            yield from step.wait_until("then", "2040-01-01T00:00:00Z")

        before = workflows.now()
        assert abs(before - datetime.now(UTC)) < timedelta(minutes=1)
        run = workflows.start(appointment)
        workflows.travel_to(datetime(2039, 12, 31, 23, 59, tzinfo=UTC))
        run.assert_waiting_for("then")
        workflows.travel_to(datetime(2040, 1, 1, 0, 0, 1, tzinfo=UTC))
        run.assert_completed()
        moments += [run.record.completed_at or before, workflows.now(), workflows.start(week).record.created_at]
        assert all(timedelta(0) <= each - datetime(2040, 1, 1, tzinfo=UTC) < timedelta(minutes=1) for each in moments)
        assert workflows.last_run(week).id > run.id

    def test_the_next_moment_can_be_asked_for(self, workflows: Workflows) -> None:
        run = workflows.start(week)
        due = run.step("day-0").wake_at
        assert workflows.travel_to_next() == due
        run.assert_waiting_for("day-1")

    def test_without_anything_to_come_that_is_said(self, workflows: Workflows) -> None:
        workflows.start(two_steps(str))
        with pytest.raises(AssertionError, match="nothing waits for a time"):
            workflows.travel_to_next()

    def test_a_run_times_out(self, workflows: Workflows) -> None:
        run = workflows.start(week, timeout="2 days")
        workflows.travel("2 days 1 minute")
        run.assert_failed("WorkflowTimeoutError")

    def test_a_poll_is_made_again_at_its_interval(self, workflows: Workflows) -> None:
        answers = iter([None, None, {"ready": True}])

        @workflow("polling")
        def polling(step: Step) -> Steps[PollResult[Any]]:
            return (yield from step.poll("look", lambda: next(answers), interval="10 minutes"))

        run = workflows.start(polling)
        workflows.travel("15 minutes")
        run.assert_waiting_for("look")
        workflows.travel("5 minutes")
        run.assert_completed({"timed_out": False, "data": {"ready": True}})
        run.assert_step_ran("look", times=3)

    def test_a_run_is_executed_again_after_its_pause(self, workflows: Workflows) -> None:
        workflows.fail_step("first", times=2)
        run = workflows.start(two_steps(str), retries=2)
        assert run.status == "pending"
        workflows.travel("1 minute")
        run.assert_completed("done")

    def test_a_delayed_start_waits_for_its_time(self, workflows: Workflows) -> None:
        run = workflows.start(two_steps(str), delay="1 hour")
        assert run.status == "pending"
        workflows.travel("1 hour")
        run.assert_completed("done")

    def test_schedules_fire_at_their_ticks(self, workflows: Workflows) -> None:
        @workflow("nightly", schedule="0 3 * * *", timezone="Europe/Vienna", catch_up="all")
        def nightly(step: Step) -> Steps[str]:
            assert step.context.schedule is not None
            tick = step.context.schedule.timestamp
            return (yield from step.run("note", tick.isoformat))

        workflows.travel_to(datetime(2040, 3, 23, 12, tzinfo=UTC))
        workflows.register(nightly)
        workflows.travel("3 days")
        found = workflows.engine.get_runs(workflow_id="nightly").items
        assert [run.output for run in reversed(found)] == [
            "2040-03-24T02:00:00+00:00",
            "2040-03-25T01:00:00+00:00",  # summer time has begun
            "2040-03-26T01:00:00+00:00",
        ]
        assert all(run.created_at.isoformat()[:19] == run.output[:19] for run in found)

    def test_runs_that_are_kept_for_a_time_are_pruned_after_it(self, workflows: Workflows) -> None:
        workflows.start(two_steps(str))
        workflows.travel("30 days")
        assert workflows.engine.prune(older_than="31 days") == 0
        assert workflows.engine.prune(older_than="29 days") == 1

    def test_time_goes_forward_only(self, workflows: Workflows) -> None:
        with pytest.raises(ValueError, match="time goes forward only"):
            workflows.travel_to(workflows.now() - timedelta(seconds=1))
        with pytest.raises(ValueError, match="aware datetime"):
            workflows.travel_to(datetime(2040, 1, 1))  # noqa: DTZ001
        with pytest.raises(TypeError, match="travel takes a duration"):
            workflows.travel()
        with pytest.raises(TypeError, match="travel takes a duration"):
            workflows.travel("1 day", hours=1)

    def test_a_database_whose_time_cannot_be_moved_is_left_alone(self, database_url: str) -> None:
        with Workflows(WorkflowEngine(database_url)) as workflows:
            run = workflows.start(week)
            run.assert_waiting_for("day-0")
            with pytest.raises(ConfigurationError, match="the time of this database cannot be moved"):
                workflows.travel("1 day")

    def test_a_schema_that_has_no_clock_is_told_from_its_neighbour_that_has_one(self, pgworkflows_url: str) -> None:
        migrate(pgworkflows_url, "neighbour")
        with Workflows(WorkflowEngine(pgworkflows_url, schema="neighbour")) as workflows:
            workflows.start(week)
            with pytest.raises(ConfigurationError, match="the time of this database cannot be moved"):
                workflows.travel("1 day")
            make_clock_movable(pgworkflows_url, "neighbour")
            workflows.travel("7 days")
            workflows.last_run(week).assert_completed("over")

    def test_a_schema_of_any_name_can_have_a_clock(self, empty_database_url: str) -> None:
        name = 'odd "name'
        migrate(empty_database_url, name)
        for _ in range(2):
            make_clock_movable(empty_database_url, name)
        with Workflows(WorkflowEngine(empty_database_url, schema=name)) as workflows:
            run = workflows.start(week)
            workflows.travel("7 days")
            run.assert_completed("over")

    def test_every_function_and_default_that_asks_for_the_time_asks_the_clock(self, pgworkflows_url: str) -> None:
        left = (
            "select count(*) from pg_proc as p where p.pronamespace = 'pgworkflows'::regnamespace "
            "and p.prosrc ~ '(now|_timestamp)\\(\\)' and p.proname <> 'uuid7' "
            "and coalesce(p.proconfig::text !~ 'pgworkflows_test_clock', true)"
        )
        assert value(pgworkflows_url, left) == 0
        defaults = (
            "select count(*) from pg_attrdef as d join pg_class as c on c.oid = d.adrelid "
            "where c.relnamespace = 'pgworkflows'::regnamespace and pg_get_expr(d.adbin, d.adrelid) ~ '^(now|clock)'"
        )
        assert value(pgworkflows_url, defaults) == 0


class TestFaults:
    def test_a_step_fails_as_often_as_told(self, workflows: Workflows) -> None:
        workflows.fail_step("call", times=2, error=ConnectionError("nobody there"))
        run = workflows.start(stubborn)
        assert run.step("call").status == "retrying"
        assert (run.step("call").error or {})["message"] == "nobody there"
        workflows.travel("2 hours")
        run.assert_completed("answer")
        run.assert_step_ran_once("call")
        assert run.step("call").attempts == 3

    def test_an_exception_that_is_raised_again_tells_of_the_last_time_only(self, workflows: Workflows) -> None:
        workflows.fail_step("call", times=None, error=ConnectionError("nobody there"))
        run = workflows.start(stubborn)
        workflows.travel("2 hours")
        run.assert_failed("ConnectionError", step="call")
        with pytest.raises(AssertionError) as failed:
            run.assert_completed()
        assert failed.value.__cause__ is not None
        once = traceback.extract_tb(failed.value.__cause__.__traceback__)
        assert [frame.name for frame in once].count("_fail_if_told") == 1

    def test_a_step_that_always_fails_fails_the_run(self, workflows: Workflows) -> None:
        workflows.fail_step("call", times=None, error=ConnectionError)
        run = workflows.start(stubborn)
        workflows.travel("1 day")
        run.assert_failed("ConnectionError", step="call")
        run.assert_step_ran("call", times=0)

    def test_after_a_crash_a_stored_step_does_not_run_again(self, workflows: Workflows) -> None:
        noted: list[str] = []
        workflows.crash_after("first")
        run = workflows.start(two_steps(noted.append))
        run.assert_completed("done")
        run.assert_step_ran_once("first")
        run.assert_step_ran_once("second")
        assert noted == ["first", "second"]

    def test_a_crash_before_the_checkpoint_runs_the_step_again(self, workflows: Workflows) -> None:
        noted: list[str] = []
        workflows.crash_before_checkpoint("first")
        run = workflows.start(two_steps(noted.append))
        run.assert_completed("done")
        run.assert_step_ran("first", times=2)
        run.assert_step_ran_once("second")
        assert noted == ["first", "first", "second"]

    def test_a_crash_is_a_death_that_another_worker_finds(self, workflows: Workflows) -> None:
        seen: list[tuple[Any, int]] = []
        url = workflows.engine.conninfo

        def note(_: str) -> None:
            seen.extend(rows(url, "select worker_id, interruptions from pgworkflows.queue"))

        workflows.crash_before_checkpoint("first")
        workflows.start(two_steps(note)).assert_completed()
        (dead, none), (other, one), (same, cleared) = seen
        assert dead != other == same
        assert (none, one, cleared) == (0, 1, 0)

    def test_no_finally_block_runs_in_a_worker_that_dies(self, workflows: Workflows) -> None:
        left: list[str] = []

        @workflow("careful")
        def careful(step: Step) -> Steps[None]:
            try:
                yield from step.run("first", lambda: 1)
                yield from step.run("second", lambda: 2)
            finally:
                left.append("handler")

        workflows.crash_after("first")
        workflows.start(careful).assert_completed()
        assert left == ["handler"], "of the execution that went on"

    def test_a_crash_after_a_wait_loses_nothing(self, workflows: Workflows) -> None:
        workflows.crash_after("await-click")
        run = workflows.start(welcome, "ada@example.com")
        run.send("clicked")
        run.assert_completed("confirmed")

    def test_a_failure_that_the_handler_catches_is_history(self, workflows: Workflows) -> None:
        @workflow("catching")
        def catching(step: Step) -> Steps[str]:
            try:
                yield from step.run("try", lambda: "worked")
            except StepFailedError as error:
                return error.message
            return "worked"

        workflows.fail_step("try", error=ValueError("no"))
        workflows.start(catching).assert_completed("no")
        workflows.start(catching).assert_completed("worked")

    def test_a_fault_that_never_happens_is_told_of(self, workflows: Workflows) -> None:
        workflows.fail_step("frist")
        workflows.crash_after("second")
        workflows.start(two_steps(str)).assert_completed()
        with pytest.raises(AssertionError, match="nothing ever happened at step 'frist', where"):
            workflows.check_faults()
        workflows.start(renamed("frist"))


def renamed(step_id: str) -> Any:
    @workflow("renamed")
    def handler(step: Step) -> Steps[None]:
        yield from step.run(step_id, lambda: None)

    return handler


def told(claim: Callable[[], object]) -> str:
    with pytest.raises(AssertionError) as failure:
        claim()
    return str(failure.value)


class TestWhatAFailedClaimSays:
    def test_where_the_run_stands_and_how_it_got_there(self, workflows: Workflows) -> None:
        run = workflows.start(welcome, "ada@example.com")
        message = told(run.assert_completed)
        until = run.step("await-click").wake_at
        state = f"waiting for event 'clicked' in step 'await-click', until {until:%Y-%m-%d %H:%M:%S} at the latest"
        assert message.splitlines() == [
            f"run {run.id} of workflow 'welcome' is not completed",
            f"it is {state}",
            "timeline:",
            '    0  mail-link    run       completed  "link to ada@example.com"',
            f"    1  await-click  wait_for  {state}",
        ]
        assert "is not waiting for 'link'" in told(lambda: run.assert_waiting_for("link"))
        assert "has not failed" in told(run.assert_failed)
        assert "has not reached step 'mail-reminder'" in told(lambda: run.step("mail-reminder"))
        assert "has called the function of step 'mail-link' once, not 2 times" in told(
            lambda: run.assert_step_ran("mail-link", times=2)
        )

    def test_how_outputs_differ(self, workflows: Workflows) -> None:
        @workflow("report")
        def report(step: Step) -> Steps[dict[str, Any]]:
            return (yield from step.run("write", lambda: {"name": "Ada", "sum": 3, "tags": ["a", "b"]}))

        run = workflows.start(report)
        message = told(lambda: run.assert_completed({"name": "Ada", "sum": 4, "tags": ["a", "b"]}))
        assert '    -  "sum": 4,\n    +  "sum": 3,\n' in message

    def test_the_exception_itself_comes_along(self, workflows: Workflows) -> None:
        broken = ZeroDivisionError("by nothing")
        workflows.fail_step("first", error=broken)
        run = workflows.start(two_steps(str))
        with pytest.raises(AssertionError, match="failed in step 'first': ZeroDivisionError: by nothing") as failure:
            run.assert_completed()
        assert failure.value.__cause__ is broken
        assert "with another error\n" in told(lambda: run.assert_failed("ValueError"))
        assert "elsewhere\n" in told(lambda: run.assert_failed("ZeroDivisionError", step="second"))
        assert "has called the function of step 'first' 0 times, not once" in told(
            lambda: run.assert_step_ran_once("first")
        )

    def test_an_error_of_the_handler_comes_along_too(self, workflows: Workflows) -> None:
        @workflow("wrong")
        def wrong(step: Step) -> Steps[None]:
            yield from step.run("right", lambda: 1)
            raise LookupError("the handler's own")

        with pytest.raises(AssertionError, match="it is failed: LookupError") as failure:
            workflows.start(wrong).assert_completed()
        assert isinstance(failure.value.__cause__, LookupError)

    def test_why_a_run_is_pending(self, workflows: Workflows) -> None:
        workflows.fail_step("call")
        message = told(workflows.start(stubborn).assert_completed)
        assert (
            "it is pending: step 'call' failed with RuntimeError: the test lets it fail, and is called again" in message
        )
        assert "travel there" in message


class TestThePlugin:
    def test_a_suite_that_uses_no_fixture_of_it_pays_nothing(self) -> None:
        code = "import sys, pytest_pgworkflows; print({name[:3] for name in sys.modules} & {'pgw', 'psy', 'pyd'})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "set()"

    def test_each_test_has_a_database_of_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "test_apart.py").write_text(APART)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".", "."],
            cwd=tmp_path,
            env={name: text for name, text in os.environ.items() if name != "PGWORKFLOWS_TEST_URL"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "1 failed, 1 passed, 1 error" in done.stdout, done.stdout
        assert "nothing ever happened at step 'nowhere'" in done.stdout
        assert "AssertionError: run" in done.stdout
        assert "pgworkflows/testing/run.py" not in done.stdout, "the frame that is shown is the test's"


APART = """
from pgworkflows import workflow

@workflow("one")
def one(step):
    yield step.wait_for("wait", "never")

def test_one(workflows):
    workflows.start(one)
    assert len(workflows.engine.get_runs().items) == 1
    workflows.fail_step("nowhere")

def test_other(workflows):
    assert workflows.engine.get_runs().items == []
    workflows.start(one).assert_completed()
"""
