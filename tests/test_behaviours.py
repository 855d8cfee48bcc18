"""What an engine for durable workflows is expected to do, told one behaviour at a time, on a worker and a real server.

The page docs/coming-from-pg-workflows.md names a test for each behaviour; those that no other file tells stand here.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from waiting import until
from working import HandWorker, make_due, rows, value, working

from pgworkflows import (
    DuplicateStepError,
    InvalidStatusError,
    RunStatus,
    Step,
    StepFailedError,
    StepKind,
    Steps,
    StepStatus,
    WorkflowClient,
    WorkflowEngine,
    WorkflowRun,
    WorkflowRunInProgressError,
    WorkflowRunNotFoundError,
    current_step,
    workflow,
)

MAX_MORE = 1.25  # jitter adds up to a quarter


class Calls:
    """The step functions that were called, in order; those named in `failing` fail."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.failing: set[str] = set()

    def __call__(self, name: str) -> str:
        self.made.append(name)
        if name in self.failing:
            raise ValueError(f"{name} does not work")
        return f"{name} done"


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url) as engine:
        yield engine


def work(engine: WorkflowEngine) -> None:
    """Let a new worker do what there is to do."""
    engine.worker().run_until_idle(timeout=30)


class TestStarting:
    def test_different_keys_start_different_runs_and_no_key_another_one_each(self, engine: WorkflowEngine) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[None]:
            yield from step.pause("wait")

        engine.register_workflow(plan)
        keys = ["a", "b", None, None, "a"]
        runs = [engine.start_workflow(plan, idempotency_key=key) for key in keys]
        assert len({run.id for run in runs}) == 4
        assert runs[0] == runs[4]

    def test_a_run_has_the_resource_it_was_started_for_or_none(self, engine: WorkflowEngine) -> None:
        seen: list[str | None] = []

        @workflow("plan")
        def plan(step: Step) -> Steps[None]:
            yield from step.run("look", seen.append, step.context.resource_id)

        engine.register_workflow(plan)
        for resource_id in ("user-1", None):
            run = engine.start_workflow(plan, resource_id=resource_id)
            assert run.resource_id == resource_id
            work(engine)
        assert seen == ["user-1", None]

    def test_an_event_reaches_the_run_of_a_resource_with_and_without_its_name(self, engine: WorkflowEngine) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[list[Any]]:
            first = yield step.wait_for("first", "go")
            second = yield step.wait_for("second", "go")
            return [first, second]

        engine.register_workflow(plan)
        run = engine.start_workflow(plan, resource_id="user-1")
        work(engine)
        with pytest.raises(WorkflowRunNotFoundError):
            engine.trigger_event(run.id, "go", 0, resource_id="user-2")
        engine.trigger_event(run.id, "go", 1)
        work(engine)
        engine.trigger_event(run.id, "go", 2, resource_id="user-1")
        work(engine)
        assert engine.get_run(run.id).output == [1, 2]

    def test_a_singleton_that_waits_keeps_its_place_and_gets_its_events(self, engine: WorkflowEngine) -> None:
        @workflow("plan", singleton=True)
        def plan(step: Step) -> Steps[Any]:
            answer = yield step.wait_for("go", "go")
            yield step.delay("nap", "1 hour")
            return answer

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        with pytest.raises(WorkflowRunInProgressError) as refused:
            engine.start_workflow(plan)
        assert refused.value.run_id == run.id
        engine.trigger_event(run.id, "go", "heard")
        work(engine)
        make_due(engine.conninfo)
        work(engine)
        assert engine.get_run(run.id).output == "heard"
        assert engine.start_workflow(plan).id != run.id


class TestTheTimeline:
    """What `step.context.timeline` holds for the handler, and `get_steps` for everybody else."""

    def test_grows_with_every_step(self, engine: WorkflowEngine, calls: Calls) -> None:
        seen: list[dict[str, Any]] = []

        @workflow("plan")
        def plan(step: Step) -> Steps[None]:
            for name in ("a", "b", "c"):
                yield from step.run(name, calls, name)
                seen.append(dict(step.context.timeline))

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        done = {"a": "a done", "b": "b done", "c": "c done"}
        assert seen == [dict(list(done.items())[:number]) for number in (1, 2, 3)]
        assert {step.step_id: step.output for step in engine.get_steps(run.id)} == done

    def test_goes_on_after_a_pause(self, engine: WorkflowEngine, calls: Calls) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[dict[str, Any]]:
            yield step.run("a", calls, "a")
            yield step.pause("stop")
            yield step.run("b", calls, "b")
            return dict(step.context.timeline)

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        assert [(step.step_id, step.status) for step in engine.get_steps(run.id)] == [
            ("a", StepStatus.COMPLETED),
            ("stop", StepStatus.WAITING),
        ]
        assert engine.get_run(run.id).status is RunStatus.PAUSED
        engine.resume_workflow(run.id)
        work(engine)
        assert engine.get_run(run.id).output == {"a": "a done", "stop": None, "b": "b done"}
        assert calls.made == ["a", "b"]

    def test_keeps_what_events_brought(self, engine: WorkflowEngine) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[dict[str, Any]]:
            yield step.wait_for("first", "go")
            yield step.wait_for("second", "go")
            return dict(step.context.timeline)

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        for number in (1, 2):
            work(engine)
            engine.trigger_event(run.id, "go", {"number": number})
        work(engine)
        assert engine.get_run(run.id).output == {"first": {"number": 1}, "second": {"number": 2}}
        assert [step.kind for step in engine.get_steps(run.id)] == [StepKind.WAIT_FOR] * 2


class TestAnError:
    def test_fails_the_run_and_leaves_its_message_and_its_step(self, engine: WorkflowEngine, calls: Calls) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[None]:
            yield from step.run("a", calls, "a")
            yield from step.run("b", calls, "b")

        engine.register_workflow(plan)
        calls.failing = {"b"}
        run = engine.start_workflow(plan)
        work(engine)
        failed = engine.get_run(run.id)
        assert (failed.status, failed.output) == (RunStatus.FAILED, None)
        assert failed.completed_at is not None
        assert failed.error is not None
        assert (failed.error["type"], failed.error["message"]) == ("ValueError", "b does not work")
        assert failed.error["step_id"] == "b"
        assert "test_behaviours.py" in failed.error["traceback"]

    def test_is_retried_after_1_2_4_seconds_and_completed_steps_are_not_called_again(
        self, engine: WorkflowEngine, calls: Calls
    ) -> None:
        @workflow("plan", retries=3)
        def plan(step: Step) -> Steps[str]:
            yield from step.run("a", calls, "a")
            return (yield from step.run("b", calls, "b"))

        engine.register_workflow(plan)
        calls.failing = {"b"}
        run = engine.start_workflow(plan)
        for number, seconds in enumerate((1, 2, 4), start=1):
            work(engine)
            waiting = engine.get_run(run.id)
            assert (waiting.status, waiting.retry_count) == (RunStatus.PENDING, number)
            assert waiting.scheduled_at is not None
            pause = waiting.scheduled_at - waiting.updated_at
            assert seconds <= pause.total_seconds() <= seconds * MAX_MORE
            make_due(engine.conninfo)
        calls.failing = set()
        work(engine)
        assert engine.get_run(run.id).output == "b done"
        assert Counter(calls.made) == {"a": 1, "b": 4}

    def test_uses_the_retries_of_the_run_and_a_wait_gives_none_back(self, engine: WorkflowEngine, calls: Calls) -> None:
        @workflow("plan", retries=2)
        def plan(step: Step) -> Steps[None]:
            yield from step.run("a", calls, "a")
            yield from step.wait_for("go", "go")
            yield from step.run("b", calls, "b")

        engine.register_workflow(plan)
        calls.failing = {"a", "b"}
        run = engine.start_workflow(plan)
        work(engine)
        calls.failing = {"b"}
        make_due(engine.conninfo)
        work(engine)
        with WorkflowClient(engine.conninfo) as client:
            waiting = client.trigger_event(run.id, "go")
        assert (waiting.status, waiting.retry_count) == (RunStatus.PENDING, 1)
        work(engine)
        assert engine.get_run(run.id).retry_count == 2
        make_due(engine.conninfo)
        work(engine)
        assert engine.get_run(run.id).status is RunStatus.FAILED
        assert calls.made == ["a", "a", "b", "b"]

    def test_fails_the_run_for_good_once_its_retries_are_spent(self, engine: WorkflowEngine, calls: Calls) -> None:
        @workflow("plan", retries=1)
        def plan(step: Step) -> Steps[None]:
            yield from step.run("a", calls, "a")

        engine.register_workflow(plan)
        calls.failing = {"a"}
        run = engine.start_workflow(plan)
        for _ in range(3):
            work(engine)
            make_due(engine.conninfo)
        assert engine.get_run(run.id).status is RunStatus.FAILED
        assert calls.made == ["a", "a"]

    def test_of_a_step_is_retried_after_1_2_4_seconds_too(self, engine: WorkflowEngine, calls: Calls) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[str]:
            return (yield from step.run("a", calls, "a").retry(attempts=4))

        engine.register_workflow(plan)
        calls.failing = {"a"}
        run = engine.start_workflow(plan)
        for number, seconds in enumerate((1, 2, 4), start=1):
            work(engine)
            [step] = engine.get_steps(run.id)
            assert (step.status, step.attempts) == (StepStatus.RETRYING, number)
            [due] = rows(
                engine.conninfo,
                "select s.wake_at - r.updated_at, q.wake_at = s.wake_at from pgworkflows.steps as s "
                "join pgworkflows.runs as r on r.id = s.run_id join pgworkflows.queue as q on q.run_id = r.id",
            )
            assert seconds <= due[0].total_seconds() <= seconds * MAX_MORE
            assert due[1]
            make_due(engine.conninfo)
        calls.failing = set()
        work(engine)
        assert engine.get_run(run.id).output == "a done"

    def test_that_the_handler_caught_is_history_and_its_step_is_not_called_again(
        self, engine: WorkflowEngine, calls: Calls
    ) -> None:
        @workflow("plan", retries=5)
        def plan(step: Step) -> Steps[str]:
            try:
                yield step.run("a", calls, "a")
            except StepFailedError as error:
                yield step.delay("nap", "1 hour")
                return error.message
            return "it works"

        engine.register_workflow(plan)
        calls.failing = {"a"}
        run = engine.start_workflow(plan)
        work(engine)
        calls.failing = set()
        make_due(engine.conninfo)
        work(engine)
        assert engine.get_run(run.id).output == "a does not work"
        assert calls.made == ["a"]


class TestAWorkflowThatNobodyHas:
    """Its runs wait for a worker that has it: they do not fail, whoever else is at work."""

    def test_its_run_waits_and_begins_once_a_worker_with_it_appears(
        self, engine: WorkflowEngine, database_url: str
    ) -> None:
        @workflow("new")
        def new(step: Step) -> Steps[str]:
            return (yield from step.run("a", str, "at last"))

        @workflow("old")
        def old(step: Step) -> Steps[str]:
            return (yield from step.run("a", str, "as ever"))

        engine.register_workflow(old)
        with WorkflowClient(database_url) as client, working(engine, poll_interval=0.1):
            waiting = client.start_workflow("new", retries=2, priority="high")
            for _ in range(3):  # the worker looks for work again and again
                client.wait_for_run(client.start_workflow("old").id, timeout=20)
            assert client.get_run(waiting.id) == waiting
            assert client.check_progress(waiting.id).live_workers == 0
            assert (waiting.status, waiting.error, waiting.retry_count) == (RunStatus.PENDING, None, 0)
            with WorkflowEngine(database_url, workflows=[new]) as newer, working(newer):
                assert client.wait_for_run(waiting.id, timeout=20).output == "at last"

    def test_a_run_begun_by_a_worker_that_had_it_goes_on_where_it_was(
        self, engine: WorkflowEngine, calls: Calls
    ) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[str]:
            yield from step.run("a", calls, "a")
            yield from step.wait_for("go", "go")
            return (yield from step.run("b", calls, "b"))

        @workflow("other")
        def other(step: Step) -> Steps[None]:
            yield from step.run("a", calls, "other")

        engine.register_workflow(plan)
        engine.register_workflow(other)
        with working(engine, poll_interval=0.1):
            run = engine.start_workflow(plan)
            until(lambda: engine.get_run(run.id).status is RunStatus.WAITING, "the run waits for its event")
            engine.unregister_workflow("plan")
            until(lambda: engine.check_progress(run.id).live_workers == 0, "the worker says that it has it no more")
            engine.trigger_event(run.id, "go")
            engine.wait_for_run(engine.start_workflow(other).id, timeout=20)
            assert engine.get_run(run.id).status is RunStatus.PENDING
            engine.register_workflow(plan)
            assert engine.wait_for_run(run.id, timeout=20).output == "b done"
        assert calls.made == ["a", "other", "b"]

    def test_a_run_in_a_workers_hands_goes_on_and_the_next_has_the_workflow_that_was_put_in_its_place(
        self, engine: WorkflowEngine
    ) -> None:
        begun, gate = threading.Event(), threading.Event()

        def hold() -> str:
            begun.set()
            assert gate.wait(20)
            return "old"

        @workflow("plan")
        def plan(step: Step) -> Steps[list[str]]:
            first = yield step.run("a", hold)
            second = yield step.run("b", str, "old")
            return [first, second]

        @workflow("plan")
        def newer(step: Step) -> Steps[list[str]]:
            first = yield step.run("a", str, "new")
            return [first]

        engine.register_workflow(plan)
        with working(engine, poll_interval=0.1):
            run = engine.start_workflow(plan)
            assert begun.wait(20)
            engine.unregister_workflow("plan")
            until(lambda: engine.check_progress(run.id).live_workers == 0, "the worker says that it has it no more")
            engine.register_workflow(newer)
            assert engine.wait_for_run(engine.start_workflow(newer).id, timeout=20).output == ["new"]
            gate.set()
            assert engine.wait_for_run(run.id, timeout=20).output == ["old", "old"]

    def test_it_can_be_cancelled_and_runs_out_of_time_like_any_other(
        self, engine: WorkflowEngine, database_url: str
    ) -> None:
        @workflow("other")
        def other(step: Step) -> Steps[None]:
            yield from step.pause("wait")

        engine.register_workflow(other)
        cancelled = engine.cancel_workflow(_start_unknown(database_url).id)
        late = _start_unknown(database_url, timeout="1 hour")
        rows(database_url, "update pgworkflows.queue set timeout_at = now() where run_id = %s", late.id)
        with working(engine, poll_interval=0.1):
            failed = engine.wait_for_run(late.id, timeout=20)
        assert cancelled.status is RunStatus.CANCELLED
        assert failed.error is not None
        assert failed.error["type"] == "WorkflowTimeoutError"


def _start_unknown(url: str, **options: Any) -> WorkflowRun:
    with WorkflowClient(url) as client:
        return client.start_workflow("nobody-has-this", **options)


class TestWaitsInTime:
    def test_a_delay_is_a_text_a_timedelta_or_seconds_and_sleep_is_delay(self, engine: WorkflowEngine) -> None:
        durations: list[str | float | timedelta] = ["1d 12h", "P1DT12H", "36 hours", timedelta(hours=36), 36 * 3600]

        @workflow("delay")
        def delay(step: Step, input: int) -> Steps[None]:
            yield from step.delay("nap", durations[input])

        @workflow("sleep")
        def sleep(step: Step, input: int) -> Steps[None]:
            yield from step.sleep("nap", durations[input])

        engine.register_workflow(delay)
        engine.register_workflow(sleep)
        runs = [engine.start_workflow(each, number) for each in (delay, sleep) for number in range(len(durations))]
        work(engine)
        for run in runs:
            [nap] = engine.get_steps(run.id)
            assert (nap.kind, nap.status) == (StepKind.DELAY, StepStatus.WAITING)
            assert nap.wake_at is not None
            assert nap.wake_at - engine.get_run(run.id).updated_at == timedelta(hours=36)
        make_due(engine.conninfo)
        work(engine)
        assert {engine.get_run(run.id).status for run in runs} == {RunStatus.COMPLETED}

    def test_wait_until_takes_a_datetime_or_a_text_and_returns_at_once_for_the_past(
        self, engine: WorkflowEngine
    ) -> None:
        moments: list[datetime | str] = [
            datetime(2001, 1, 1, tzinfo=UTC),
            "2001-01-01T01:00:00+01:00",
            datetime(2040, 1, 1, tzinfo=UTC),
            "2040-01-01T01:00:00+01:00",
        ]

        @workflow("plan")
        def plan(step: Step, input: int) -> Steps[None]:
            yield from step.wait_until("then", moments[input])

        engine.register_workflow(plan)
        runs = [engine.start_workflow(plan, number) for number in range(4)]
        work(engine)
        found = [engine.get_run(run.id).status for run in runs]
        assert found == [RunStatus.COMPLETED] * 2 + [RunStatus.WAITING] * 2
        assert {engine.get_steps(run.id)[0].wake_at for run in runs[2:]} == {moments[2]}

    def test_an_interval_below_a_second_is_refused_where_the_handler_asks_for_it(self, engine: WorkflowEngine) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[None]:
            yield from step.poll("look", lambda: None, interval="0.9 s")

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        failed = engine.get_run(run.id)
        assert failed.error is not None
        assert failed.error["type"] == "ValueError"
        assert "at least 1 second" in failed.error["message"]
        assert engine.get_steps(run.id) == []


class TestBranchesAndLoops:
    @pytest.mark.parametrize(("amount", "taken"), [(5, ["small"]), (500, ["large", "ask"])])
    def test_only_the_branch_that_is_taken_has_steps(
        self, engine: WorkflowEngine, calls: Calls, amount: int, taken: list[str]
    ) -> None:
        @workflow("plan")
        def plan(step: Step, input: int) -> Steps[int]:
            if input < 100:
                yield from step.run("small", calls, "small")
            else:
                yield from step.run("large", calls, "large")
                yield from step.run("ask", calls, "ask")
            return input

        engine.register_workflow(plan)
        run = engine.start_workflow(plan, amount)
        work(engine)
        assert engine.get_run(run.id).output == amount
        assert [step.step_id for step in engine.get_steps(run.id)] == taken == calls.made

    def test_a_loop_may_end_the_run_and_waits_in_it_are_waits_of_their_own(
        self, engine: WorkflowEngine, calls: Calls
    ) -> None:
        @workflow("plan")
        def plan(step: Step, input: list[str]) -> Steps[list[str]]:
            done: list[str] = []
            for name in input:
                done.append((yield step.run(f"do {name}", calls, name)))
                yield step.delay(f"rest after {name}", "1 hour")
            return done

        engine.register_workflow(plan)
        run = engine.start_workflow(plan, ["a", "b", "c"])
        for _ in range(4):
            work(engine)
            make_due(engine.conninfo)
        assert engine.get_run(run.id).output == ["a done", "b done", "c done"]
        assert calls.made == ["a", "b", "c"]
        assert len(engine.get_steps(run.id)) == 6

    def test_one_id_in_every_round_is_refused_and_no_round_gets_the_result_of_another(
        self, engine: WorkflowEngine, calls: Calls
    ) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[list[str]]:
            done: list[str] = []
            for name in ("a", "b"):
                done.append((yield step.run("same", calls, name)))
            return done

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        failed = engine.get_run(run.id)
        assert failed.error is not None
        assert failed.error["type"] == DuplicateStepError.__name__
        assert calls.made == ["a"]

    def test_ids_that_look_like_somebodys_bookkeeping_are_ids_like_all_others(self, engine: WorkflowEngine) -> None:
        ids = ["x", "x-poll", "x-wait-for", "x-timeout", "__start__", "__timeout_x", "runs", "0", "ä 🐘", "a'b\"c"]

        @workflow("plan")
        def plan(step: Step) -> Steps[list[Any]]:
            found: list[Any] = []
            for step_id in ids:
                found.append((yield step.run(step_id, str, step_id)))
            looked = yield step.poll("y", lambda: "found", interval="1 hour")
            polled = yield step.run("y-poll", str, "y-poll")
            return [*found, looked.data, polled]

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        assert engine.get_run(run.id).output == [*ids, "found", "y-poll"]

    def test_steps_made_by_a_function_of_ones_own_are_steps_like_all_others(
        self, engine: WorkflowEngine, calls: Calls
    ) -> None:
        """What elsewhere is a plugin's method of `step` is here a generator function."""

        def told(step: Step, whom: str) -> Steps[str]:
            told = yield step.run(f"tell {whom}", calls, whom)
            yield step.wait_for(f"answer of {whom}", f"{whom} answered")
            return f"{told}, and answered"

        @workflow("plan")
        def plan(step: Step) -> Steps[list[str]]:
            first = yield from told(step, "ada")
            second = yield from told(step, "bob")
            return [first, second]

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        for whom in ("ada", "bob"):
            work(engine)
            engine.trigger_event(run.id, f"{whom} answered")
        work(engine)
        assert engine.get_run(run.id).output == ["ada done, and answered", "bob done, and answered"]
        assert calls.made == ["ada", "bob"]


class TestControl:
    def test_a_wait_does_not_count_as_paused_and_can_be_paused(self, engine: WorkflowEngine) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[Any]:
            return (yield from step.wait_for("go", "go"))

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        assert engine.get_run(run.id).status is RunStatus.WAITING
        with pytest.raises(InvalidStatusError, match="only paused runs can be resumed"):
            engine.resume_workflow(run.id)
        assert engine.pause_workflow(run.id).status is RunStatus.PAUSED
        engine.trigger_event(run.id, "go", "kept")
        work(engine)
        assert engine.get_run(run.id).status is RunStatus.PAUSED
        engine.resume_workflow(run.id)
        work(engine)
        assert engine.get_run(run.id).output == "kept"

    def test_of_a_run_that_is_missing_nothing_can_be_had(self, engine: WorkflowEngine) -> None:
        missing = uuid4()
        for call in (
            engine.get_run,
            engine.get_steps,
            engine.check_progress,
            engine.pause_workflow,
            engine.resume_workflow,
            engine.cancel_workflow,
            engine.retry_workflow,
            engine.fast_forward_workflow,
            engine.wait_for_run,
        ):
            with pytest.raises(WorkflowRunNotFoundError, match=f"run {missing} was not found"):
                call(missing)
        with pytest.raises(WorkflowRunNotFoundError):
            engine.trigger_event(missing, "go")

    def test_code_after_a_wait_is_not_reached_before_the_wait_is_over(self, engine: WorkflowEngine) -> None:
        reached: list[Any] = []

        @workflow("plan")
        def plan(step: Step) -> Steps[None]:
            answer = yield from step.wait_for("go", "go", timeout="1 hour")
            reached.append(answer)

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        assert reached == []
        engine.trigger_event(run.id, "go", {"by": "ada"})
        work(engine)
        assert reached == [{"by": "ada"}]

    def test_while_a_step_runs_neither_its_run_is_locked_nor_a_transaction_open(
        self, engine: WorkflowEngine, database_url: str
    ) -> None:
        open_for_long: list[int] = []
        statuses: list[str] = []

        def look() -> None:
            run_id = current_step().run_id
            with WorkflowClient(database_url) as client:
                statuses.append(client.pause_workflow(run_id).status)
                statuses.append(client.resume_workflow(run_id).status)
            open_for_long.append(
                value(
                    database_url,
                    "select count(*) from pg_stat_activity where datname = current_database() "
                    "and pid <> pg_backend_pid() and state = 'idle in transaction'",
                )
            )

        @workflow("plan")
        def plan(step: Step) -> Steps[None]:
            yield from step.run("look", look)

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        assert engine.get_run(run.id).status is RunStatus.COMPLETED
        assert (statuses, open_for_long) == (["paused", "running"], [0])


class TestPages:
    def test_lead_forward_and_back_through_the_runs_of_one_resource(self, engine: WorkflowEngine) -> None:
        with WorkflowClient(engine.conninfo) as client:
            runs = [client.start_workflow("a", resource_id=f"user-{number % 2}") for number in range(14)]
            mine = [run for run in reversed(runs) if run.resource_id == "user-1"]
            first = client.get_runs(resource_id="user-1", limit=3)
            second = client.get_runs(resource_id="user-1", limit=3, starting_after=first.next_cursor)
            third = client.get_runs(resource_id="user-1", limit=3, starting_after=second.next_cursor)
            assert [first.items, second.items, third.items] == [mine[:3], mine[3:6], mine[6:]]
            assert [page.has_more for page in (first, second, third)] == [True, True, False]
            assert client.get_runs(resource_id="user-1", limit=3, ending_before=third.prev_cursor) == second
            assert client.get_runs(resource_id="user-1", limit=3, ending_before=second.prev_cursor) == first

    def test_miss_nothing_that_was_started_in_the_same_moment(self, engine: WorkflowEngine) -> None:
        started = rows(
            engine.conninfo,
            "select (pgworkflows.start_workflow('a', to_json(n))).id from generate_series(1, 25) as n",
        )
        rows(engine.conninfo, "update pgworkflows.runs set created_at = now()")
        found: list[Any] = []
        page = engine.get_runs(limit=10)
        found += page.items
        while page.has_more:
            page = engine.get_runs(limit=10, starting_after=page.next_cursor)
            found += page.items
        assert [run.id for run in found] == [run_id for (run_id,) in reversed(started)]


class TestPriorityIsAHeadStart:
    """rank = ready_at minus priority times one second, and the lowest rank is claimed first."""

    @pytest.mark.parametrize(
        ("flood", "patient", "head_start_s"),
        [
            ("high", "normal", 100),
            ("normal", "low", 100),
            ("high", "low", 200),
            (10, 0, 10),
            (1000, "normal", 1000),
            (1000, -1000, 2000),
        ],
    )
    def test_under_an_endless_flood_a_run_is_claimed_as_soon_as_the_head_start_of_the_flood_is_over(
        self, database_url: str, flood: str | int, patient: str | int, head_start_s: int
    ) -> None:
        ticks, capacity = 10, 3
        with WorkflowClient(database_url) as client, HandWorker(database_url, ["a"]) as worker:
            run = client.start_workflow("a", priority=patient)
            client.start_workflow("a", priority=patient)  # one behind it, which is not before it
            for tick in range(ticks):
                for _ in range(capacity):
                    client.start_workflow("a", priority=flood)
                claimed = {each.run_id for each in worker.claim(capacity).runs}
                assert len(claimed) == capacity
                assert str(run.id) not in claimed, f"after {tick / ticks:.0%} of the head start"
                _time_passes(database_url, head_start_s / ticks)
            for _ in range(capacity):
                client.start_workflow("a", priority=flood)
            assert worker.claim(1).runs[0].run_id == str(run.id)

    def test_under_a_flood_beyond_what_can_be_done_it_comes_after_the_runs_of_the_head_start_and_no_others(
        self, database_url: str
    ) -> None:
        with WorkflowClient(database_url) as client, HandWorker(database_url, ["a"]) as worker:
            run = client.start_workflow("a")
            ahead = [client.start_workflow("a", priority="high") for _ in range(2)]
            for tick in range(1, 16):  # every ten seconds
                _time_passes(database_url, 10)
                flood = [client.start_workflow("a", priority="high") for _ in range(2)]
                ahead += flood if tick < 10 else []
            claimed = [worker.claim(1).runs[0].run_id for _ in range(len(ahead) + 1)]
            assert claimed == [*(str(each.id) for each in ahead), str(run.id)]
            assert value(database_url, "select count(*) from pgworkflows.queue where status = 'pending'") == 12

    def test_every_way_into_the_queue_gives_it(self, engine: WorkflowEngine) -> None:
        def boom() -> None:
            raise ValueError("no")

        @workflow("plan", retries=1)
        def plan(step: Step, input: str = "wait") -> Steps[Any]:
            if input == "fail":
                yield step.run("boom", boom)
            if input == "child":
                yield step.invoke_child_workflow("child", "plan", "nap")
            yield step.delay("nap", "1 hour")
            yield step.wait_for("go", "go")

        @workflow("ticking", schedule="1 hour", priority=9)
        def ticking(step: Step) -> Steps[None]:
            yield from step.pause("stop")

        engine.register_workflow(plan)
        engine.register_workflow(ticking)
        engine.start(worker=False)
        url = engine.conninfo

        def head_starts() -> list[tuple[int, float]]:
            return rows(
                url,
                "select distinct r.priority, extract(epoch from q.ready_at - q.rank)::float "
                "from pgworkflows.queue as q join pgworkflows.runs as r on r.id = q.run_id order by 1",
            )

        failing = engine.start_workflow(plan, "fail", priority="high")
        engine.start_workflow(plan, "child", priority=1000)
        engine.start_workflow(plan, priority="low", delay="1 hour")
        engine.start_workflow(plan, priority=-1000, run_at=datetime(2040, 1, 1, tzinfo=UTC))
        engine.start_workflows(plan, ["wait", "wait"], priority=33)
        rows(url, "select pgworkflows.start_workflow('plan', '\"wait\"', priority => 44)")
        with working(engine):
            engine.trigger_schedule("ticking")
        expected = [(-1000, -1000.0), (-100, -100.0), (9, 9.0), (33, 33.0), (44, 44.0), (100, 100.0), (1000, 1000.0)]
        work(engine)
        assert head_starts() == expected  # as they wait: for a retry, a child, an hour
        make_due(url)
        work(engine)
        assert engine.get_run(failing.id).status is RunStatus.FAILED
        engine.retry_workflow(failing.id)
        assert head_starts() == expected
        for run in engine.get_runs(statuses=["waiting", "pending"]).items:
            engine.trigger_event(run.id, "go")
            engine.fast_forward_workflow(run.id)
            engine.pause_workflow(run.id)
            engine.resume_workflow(run.id)
        assert head_starts() == expected

    def test_it_counts_from_when_the_run_is_ready_again(self, database_url: str) -> None:
        with WorkflowClient(database_url) as client, HandWorker(database_url, ["a"]) as worker:
            old = client.start_workflow("a", priority="high", delay="1 hour")
            _time_passes(database_url, 1800)
            early = client.start_workflow("a")
            _time_passes(database_url, 1800 - 90)
            late = client.start_workflow("a")
            _time_passes(database_url, 90)
            # `old` is due now: 100 s before this, `early` was ready and `late` was not.
            claimed = [worker.claim(1).runs[0].run_id for _ in range(3)]
            assert claimed == [str(run.id) for run in (early, old, late)]


def _time_passes(url: str, seconds: float) -> None:
    """As if what is in the queue had been there for so much longer."""
    rows(
        url,
        "update pgworkflows.queue set ready_at = ready_at - p.passed, rank = rank - p.passed, "
        "wake_at = wake_at - p.passed from (select make_interval(secs => %s) as passed) as p where status = 'pending'",
        seconds,
    )


def test_the_worker_that_works_is_this_process(engine: WorkflowEngine) -> None:
    """No server, no broker: a worker is a thread of the process that starts the engine."""

    @workflow("plan")
    def plan(step: Step) -> Steps[int]:
        return (yield from step.run("who", os.getpid))

    engine.register_workflow(plan)
    engine.start()
    assert engine.wait_for_run(engine.start_workflow(plan).id, timeout=20).output == os.getpid()
