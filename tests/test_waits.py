"""Waits on a running worker: events, timers, polls, pauses; what wakes a run, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel
from waiting import until
from working import make_due, rows, value, working

from pgworkflows import (
    PollResult,
    RunStatus,
    Step,
    StepFailedError,
    StepRecord,
    Steps,
    StepStatus,
    WorkflowEngine,
    current_step,
    workflow,
)

EXACT_S = 0.75
"""How late a timer may be on a machine with much else to do. Never early, not by a microsecond."""


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url) as engine:
        yield engine


def await_status(engine: WorkflowEngine, run_id: UUID, status: RunStatus) -> None:
    until(lambda: engine.get_run(run_id).status is status, f"run {run_id} is {status}")


def step_of(engine: WorkflowEngine, run_id: UUID, step_id: str) -> StepRecord:
    [found] = [step for step in engine.get_steps(run_id) if step.step_id == step_id]
    return found


def lateness_s(step: StepRecord) -> float:
    assert step.wake_at is not None
    assert step.completed_at is not None
    return (step.completed_at - step.wake_at).total_seconds()


@workflow("two-events")
def two_events(step: Step) -> Steps[list[Any]]:
    first = yield step.wait_for("first", "go")
    second = yield step.wait_for("second", "go")
    return [first, second]


@workflow("with-deadline")
def with_deadline(step: Step, input: float) -> Steps[list[Any]]:
    in_time = yield step.wait_for("in-time", "go", timeout=input)
    return [in_time, (yield step.wait_for("afterwards", "go", timeout="1 hour"))]


class TestEvents:
    def test_a_waiting_run_gets_the_data_of_its_event(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(two_events)
        with working(engine):
            run = engine.start_workflow(two_events)
            await_status(engine, run.id, RunStatus.WAITING)
            assert engine.get_run(run.id).current_step_id == "first"
            engine.trigger_event(run.id, "go", {"by": "Ada", "at": [1, 2.5, None]})
            until(lambda: engine.get_run(run.id).current_step_id == "second", "the run goes on")
            engine.trigger_event(run.id, "go")
            done = engine.wait_for_run(run.id, timeout=20)
        assert done.output == [{"by": "Ada", "at": [1, 2.5, None]}, {}]

    def test_events_are_taken_in_the_order_in_which_they_came(self, engine: WorkflowEngine) -> None:
        @workflow("seven")
        def seven(step: Step) -> Steps[list[int]]:
            got: list[int] = []
            for number in range(7):
                got.append((yield step.wait_for(f"wait {number}", "number")))
            return got

        engine.register_workflow(seven)
        run = engine.start_workflow(seven)
        for number in range(4):
            engine.trigger_event(run.id, "number", number)
        with working(engine):
            await_status(engine, run.id, RunStatus.WAITING)
            for number in range(4, 7):
                engine.trigger_event(run.id, "number", number)
            assert engine.wait_for_run(run.id, timeout=20).output == [0, 1, 2, 3, 4, 5, 6]

    def test_an_event_of_another_name_wakes_nobody_and_is_kept(self, engine: WorkflowEngine) -> None:
        @workflow("names")
        def names(step: Step) -> Steps[list[Any]]:
            yes = yield step.wait_for("yes", "yes")
            no = yield step.wait_for("no", "no")
            return [yes, no]

        engine.register_workflow(names)
        run = engine.start_workflow(names)
        engine.worker().run_until_idle()
        engine.trigger_event(run.id, "no", "early")
        assert engine.get_run(run.id).status is RunStatus.WAITING
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).current_step_id == "yes"
        engine.trigger_event(run.id, "yes", "late")
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).output == ["late", "early"]

    def test_an_event_with_the_same_idempotency_key_counts_once(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(two_events)
        run = engine.start_workflow(two_events)
        for data in ("first", "again"):
            engine.trigger_event(run.id, "go", data, idempotency_key="click-1")
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).current_step_id == "second"
        engine.trigger_event(run.id, "go", "once more", idempotency_key="click-1")
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).status is RunStatus.WAITING
        engine.trigger_event(run.id, "go", "second", idempotency_key="click-2")
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).output == ["first", "second"]

    def test_an_event_that_comes_while_the_run_is_claimed_is_not_missed(self, engine: WorkflowEngine) -> None:
        """It is not in the mailbox that the claim read, and no row waits for it yet when it comes."""

        def send() -> None:
            engine.trigger_event(current_step().run_id, "go", "sent by the run itself")

        @workflow("race")
        def race(step: Step) -> Steps[Any]:
            yield step.run("send", send)
            return (yield step.wait_for("wait", "go"))

        engine.register_workflow(race)
        run = engine.start_workflow(race)
        engine.worker().run_until_idle(timeout=20)
        assert engine.get_run(run.id).output == "sent by the run itself"

    def test_an_event_that_commits_while_the_suspend_waits_is_not_missed(self, engine: WorkflowEngine) -> None:
        """The sender's transaction is open when the run wants to suspend, and commits later."""
        opened, committed = threading.Event(), threading.Event()

        def send() -> None:
            with psycopg.connect(engine.conninfo) as conn:
                engine.trigger_event(run.id, "go", "from a transaction", connection=conn)
                opened.set()
                committed.wait(20)

        def wait_for_sender() -> None:
            assert opened.wait(20)

        @workflow("slow-sender")
        def slow_sender(step: Step) -> Steps[Any]:
            yield step.run("meet", wait_for_sender)
            return (yield step.wait_for("wait", "go"))

        engine.register_workflow(slow_sender)
        run = engine.start_workflow(slow_sender)
        with working(engine):
            await_status(engine, run.id, RunStatus.RUNNING)
            sender = threading.Thread(target=send)
            sender.start()
            # The checkpoint of `meet` is held over: the sender has the row. Other runs are not held up.
            other = engine.start_workflow(slow_sender)
            engine.trigger_event(other.id, "go", "another")
            assert engine.wait_for_run(other.id, timeout=20).output == "another"
            assert engine.get_run(run.id).status is RunStatus.RUNNING
            committed.set()
            assert engine.wait_for_run(run.id, timeout=20).output == "from a transaction"
            sender.join(20)

    def test_many_events_from_many_threads_all_arrive(self, engine: WorkflowEngine) -> None:
        @workflow("collector")
        def collector(step: Step, input: int) -> Steps[list[int]]:
            got: list[int] = []
            for number in range(input):
                got.append((yield step.wait_for(f"wait {number}", "number", timeout="1 minute")))
            return got

        engine.register_workflow(collector)
        with working(engine):
            run = engine.start_workflow(collector, 40)

            def send(start: int) -> None:
                for number in range(start, start + 10):
                    engine.trigger_event(run.id, "number", number)

            senders = [threading.Thread(target=send, args=(start,)) for start in (0, 10, 20, 30)]
            for sender in senders:
                sender.start()
            got = engine.wait_for_run(run.id, timeout=30).output
            for sender in senders:
                sender.join()
        assert sorted(got) == list(range(40))
        for start in (0, 10, 20, 30):
            own = [number for number in got if start <= number < start + 10]
            assert own == sorted(own)

    def test_data_that_does_not_fit_the_schema_is_consumed_and_fails_the_step(self, engine: WorkflowEngine) -> None:
        class Click(BaseModel):
            at: datetime

        @workflow("typed")
        def typed(step: Step) -> Steps[list[str]]:
            refused = ""
            try:
                yield from step.wait_for("first", "click", schema=Click)
            except StepFailedError as error:
                refused = error.error_type
            click = yield from step.wait_for("second", "click", schema=Click)
            return [refused, click.at.isoformat()]

        engine.register_workflow(typed)
        run = engine.start_workflow(typed)
        engine.trigger_event(run.id, "click", {"at": "teatime"})
        engine.trigger_event(run.id, "click", {"at": "2026-01-02T03:04:05Z"})
        engine.worker().run_until_idle(timeout=20)
        assert engine.get_run(run.id).output == ["InvalidInputError", "2026-01-02T03:04:05+00:00"]
        assert step_of(engine, run.id, "first").status is StepStatus.FAILED

    def test_waiting_runs_hold_no_thread_and_no_place(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(two_events)
        with working(engine, threads=1, max_runs=2):
            runs = [engine.start_workflow(two_events) for _ in range(20)]
            for run in runs:
                await_status(engine, run.id, RunStatus.WAITING)
            assert value(engine.conninfo, "select count(*) from pgworkflows.queue where claim_id is not null") == 0
            for run in runs:
                engine.trigger_event(run.id, "go", 1)
                engine.trigger_event(run.id, "go", 2)
            assert [engine.wait_for_run(run.id, timeout=20).output for run in runs] == [[1, 2]] * 20


class TestDeadlines:
    def test_a_wait_without_an_event_ends_with_none_at_its_deadline(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(with_deadline)
        with working(engine, poll_interval="60s"):
            run = engine.start_workflow(with_deadline, 0.3)
            until(lambda: engine.get_run(run.id).current_step_id == "afterwards", "the deadline passes")
            wait = step_of(engine, run.id, "in-time")
            assert (wait.status, wait.output) == (StepStatus.COMPLETED, None)
            assert 0 <= lateness_s(wait) < EXACT_S

    def test_an_event_that_arrived_by_the_deadline_beats_it(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(with_deadline)
        run = engine.start_workflow(with_deadline, 3600)
        engine.worker().run_until_idle()
        engine.trigger_event(run.id, "go", "in time")
        # The deadline comes right after the event, and nobody works until it is over.
        make_due(engine.conninfo)
        engine.worker().run_until_idle()
        assert step_of(engine, run.id, "in-time").output == "in time"

    def test_an_event_after_the_deadline_is_kept_for_the_next_wait(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(with_deadline)
        run = engine.start_workflow(with_deadline, 3600)
        engine.worker().run_until_idle()
        make_due(engine.conninfo)
        engine.trigger_event(run.id, "go", "too late")
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).output == [None, "too late"]

    def test_an_event_whose_sender_commits_after_the_deadline_counts_by_when_it_was_received(
        self, engine: WorkflowEngine
    ) -> None:
        engine.register_workflow(with_deadline)
        run = engine.start_workflow(with_deadline, 1)
        engine.worker().run_until_idle()
        deadline = step_of(engine, run.id, "in-time").wake_at
        with working(engine), psycopg.connect(engine.conninfo) as sender:
            engine.trigger_event(run.id, "go", "in time", connection=sender)
            until(lambda: value(engine.conninfo, "select now() > %s", deadline), "the deadline passes")
            # The worker is awake and wants to wake the run; the sender holds its row.
            other = engine.start_workflow(with_deadline, 3600)
            await_status(engine, other.id, RunStatus.WAITING)
            assert step_of(engine, run.id, "in-time").status is StepStatus.WAITING
            sender.commit()
            until(lambda: engine.get_run(run.id).current_step_id == "afterwards", "the run goes on")
        assert step_of(engine, run.id, "in-time").output == "in time"


class TestTimers:
    def test_a_delay_ends_on_time(self, engine: WorkflowEngine) -> None:
        @workflow("naps")
        def naps(step: Step) -> Steps[None]:
            yield step.delay("nap", 0.2)
            yield step.sleep("siesta", timedelta(milliseconds=200))
            yield step.delay("none at all", 0)

        engine.register_workflow(naps)
        # Only the due time itself can wake the worker: it polls once a minute.
        with working(engine, poll_interval="60s"):
            run = engine.start_workflow(naps)
            engine.wait_for_run(run.id, timeout=20)
        nap, siesta, none = engine.get_steps(run.id)
        for step in (nap, siesta):
            assert step.kind == "delay"
            assert step.started_at is not None
            assert step.wake_at is not None
            assert abs((step.wake_at - step.started_at).total_seconds() - 0.2) < 0.001
            assert 0 <= lateness_s(step) < EXACT_S
        assert none.status is StepStatus.COMPLETED

    def test_a_timer_rings_although_its_worker_has_been_stopped(self, engine: WorkflowEngine) -> None:
        @workflow("nap")
        def nap(step: Step) -> Steps[str]:
            yield step.delay("nap", 1)
            return "rested"

        engine.register_workflow(nap)
        run = engine.start_workflow(nap)
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).status is RunStatus.WAITING
        with working(engine):
            assert engine.wait_for_run(run.id, timeout=20).output == "rested"

    def test_wait_until_a_moment_of_the_future_ends_then(self, engine: WorkflowEngine) -> None:
        moments: list[datetime] = []

        @workflow("appointment")
        def appointment(step: Step) -> Steps[None]:
            # Another moment at every execution: the first one stands.
            moments.append(datetime.now(UTC) + timedelta(seconds=0.3))
            yield step.wait_until("appointment", moments[-1])

        engine.register_workflow(appointment)
        with working(engine, poll_interval="60s"):
            run = engine.start_workflow(appointment)
            engine.wait_for_run(run.id, timeout=20)
        [step] = engine.get_steps(run.id)
        assert len(moments) == 2
        assert step.wake_at == moments[0]
        assert 0 <= lateness_s(step) < EXACT_S

    def test_wait_until_a_moment_of_the_past_goes_on_at_once(self, engine: WorkflowEngine) -> None:
        executions: list[int] = []

        @workflow("missed")
        def missed(step: Step) -> Steps[None]:
            executions.append(1)
            yield step.wait_until("long ago", "2001-02-03T04:05:06+02:00")
            yield step.wait_until("just now", datetime.now(UTC))

        engine.register_workflow(missed)
        run = engine.start_workflow(missed)
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).status is RunStatus.COMPLETED
        # It has never let go of the run for what was over: one execution, or two if the clocks differ for `just now`.
        assert executions in ([1], [1, 1])
        assert step_of(engine, run.id, "long ago").status is StepStatus.COMPLETED

    @pytest.mark.direct("about LISTEN and the lock of a worker")
    def test_a_delayed_start_begins_on_time_although_the_worker_sleeps(self, engine: WorkflowEngine) -> None:
        @workflow("later")
        def later(step: Step) -> Steps[None]:
            yield step.run("now", lambda: None)

        engine.register_workflow(later)
        with working(engine, poll_interval="60s") as worker:
            until(lambda: rows(engine.conninfo, "select queue from pgworkflows.sleepers"), "the worker sleeps")
            assert worker._crew is not None
            worker._crew.dispatcher._look_s = 60.0  # as after a long quiet time: its next look is far away
            run = engine.start_workflow(later, delay=0.3)
            assert run.status is RunStatus.PENDING
            done = engine.wait_for_run(run.id, timeout=20)
        assert done.scheduled_at is not None
        assert done.started_at is not None
        assert abs((done.scheduled_at - done.created_at).total_seconds() - 0.3) < 0.001
        assert 0 <= (done.started_at - done.scheduled_at).total_seconds() < EXACT_S

    def test_a_run_at_of_the_past_starts_at_once(self, engine: WorkflowEngine) -> None:
        @workflow("overdue")
        def overdue(step: Step) -> Steps[None]:
            yield step.run("now", lambda: None)

        engine.register_workflow(overdue)
        run = engine.start_workflow(overdue, run_at="2020-01-01T00:00:00Z")
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).status is RunStatus.COMPLETED

    def test_timers_ring_in_the_order_of_their_moments(self, engine: WorkflowEngine) -> None:
        rung: list[float] = []

        @workflow("alarm")
        def alarm(step: Step, input: float) -> Steps[None]:
            yield step.delay("wait", input)
            yield step.run("ring", rung.append, input)

        engine.register_workflow(alarm)
        for delay in (0.7, 0.1, 0.4):
            engine.start_workflow(alarm, delay)
        with working(engine, threads=1):
            until(lambda: len(rung) == 3, "all alarms ring")
        assert rung == [0.1, 0.4, 0.7]


class TestPolls:
    def test_a_poll_calls_at_once_and_then_at_its_interval_until_there_is_something(
        self, engine: WorkflowEngine
    ) -> None:
        calls: list[float] = []
        answers: list[Any] = [None, {"rows": 3}]

        def look() -> Any:
            calls.append(time.monotonic())
            return answers[len(calls) - 1]

        @workflow("watch")
        def watch(step: Step) -> Steps[Any]:
            found = yield from step.poll("look", look, interval=1)
            assert isinstance(found, PollResult)
            return [found.timed_out, found.data]

        engine.register_workflow(watch)
        with working(engine, poll_interval="60s"):
            run = engine.start_workflow(watch)
            started = time.monotonic()
            await_status(engine, run.id, RunStatus.WAITING)
            assert len(calls) == 1
            assert calls[0] - started < EXACT_S
            done = engine.wait_for_run(run.id, timeout=20)
        assert done.output == [False, {"rows": 3}]
        assert len(calls) == 2
        assert 1 <= calls[1] - calls[0] < 1 + EXACT_S
        assert step_of(engine, run.id, "look").attempts == 2

    def test_a_poll_gives_up_at_its_timeout_after_a_last_look(self, engine: WorkflowEngine) -> None:
        calls: list[float] = []

        @workflow("watch")
        def watch(step: Step) -> Steps[Any]:
            found = yield from step.poll("look", lambda: calls.append(time.monotonic()), interval="1s", timeout=0.3)
            return [found.timed_out, found.data]

        engine.register_workflow(watch)
        with working(engine, poll_interval="60s"):
            run = engine.start_workflow(watch)
            done = engine.wait_for_run(run.id, timeout=20)
        assert done.output == [True, None]
        assert len(calls) == 2
        assert 0.3 <= calls[1] - calls[0] < 0.3 + EXACT_S

    def test_an_exception_fails_the_poll(self, engine: WorkflowEngine) -> None:
        def look() -> None:
            raise PermissionError("the door is locked")

        @workflow("watch")
        def watch(step: Step) -> Steps[Any]:
            yield step.poll("look", look)

        engine.register_workflow(watch)
        run = engine.start_workflow(watch)
        engine.worker().run_until_idle(timeout=20)
        done = engine.get_run(run.id)
        assert done.status is RunStatus.FAILED
        assert done.error is not None
        assert (done.error["type"], done.error["step_id"]) == ("PermissionError", "look")


class TestPauseSteps:
    def test_a_pause_step_stands_still_until_it_is_resumed(self, engine: WorkflowEngine) -> None:
        @workflow("gatekeeper")
        def gatekeeper(step: Step) -> Steps[str]:
            yield step.run("knock", lambda: None)
            answer = yield step.pause("closed")
            yield step.pause("closed again")
            return f"open, {answer}"

        engine.register_workflow(gatekeeper)
        run = engine.start_workflow(gatekeeper)
        for step_id in ("closed", "closed again"):
            engine.worker().run_until_idle()
            paused = engine.get_run(run.id)
            assert (paused.status, paused.current_step_id) == (RunStatus.PAUSED, step_id)
            assert paused.paused_at is not None
            assert step_of(engine, run.id, step_id).status is StepStatus.WAITING
            assert engine.resume_workflow(run.id).status is RunStatus.PENDING
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).output == "open, None"
        assert [step.status for step in engine.get_steps(run.id)] == [StepStatus.COMPLETED] * 3
