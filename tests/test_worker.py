"""A worker's life: start, work, stop; time limits; heartbeats. What it does without its server: test_worker_outages."""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from waiting import until
from working import (
    Door,
    HandWorker,
    WorkerProcesses,
    await_heartbeats,
    make_due,
    rows,
    run_out_of_time,
    value,
    worker_processes,
    working,
)

from pgworkflows import (
    RunStatus,
    Step,
    StepFailedError,
    Steps,
    StepStatus,
    StepTimeoutError,
    WorkflowEngine,
    WorkflowNotFoundError,
    claims,
    current_step,
    workflow,
    workflow_ref,
)
from pgworkflows.holdings import Holdings
from pgworkflows.listener import Listener
from pgworkflows.runner import Execution

pytestmark = pytest.mark.usefixtures("quick_heart")


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url) as engine:
        yield engine


@pytest.fixture
def processes(database_url: str) -> Iterator[WorkerProcesses]:
    with worker_processes(database_url) as processes:
        yield processes


THREADS = {f"pgworkflows-{role}" for role in ("worker", "dispatcher", "ear", "heartbeat", "scribe", "alarms", "step")}


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.open.set()


@workflow("quick")
def quick(step: Step, input: Any = None) -> Steps[Any]:
    return (yield step.run("only", lambda: input))


def start_story(engine: WorkflowEngine, plan: dict[str, Any]) -> UUID:
    """A run for the worker processes, whose workflows this engine does not have."""
    return engine.start_workflow(workflow_ref("story"), plan).id


def status_of(engine: WorkflowEngine, run_id: UUID) -> RunStatus:
    return engine.get_run(run_id).status


def await_status(engine: WorkflowEngine, run_id: UUID, status: RunStatus) -> None:
    until(lambda: status_of(engine, run_id) is status, f"run {run_id} is {status}")


class TestAProcess:
    def test_sigterm_lets_the_step_in_flight_end_and_gives_the_rest_back(
        self, engine: WorkflowEngine, processes: WorkerProcesses
    ) -> None:
        first = processes.start(threads=2)
        first.await_registration()
        plan = {"steps": ["a", "b", "c"], "gated": ["b"]}
        runs = [start_story(engine, plan) for _ in range(5)]
        until(lambda: Counter(step for step, _ in processes.calls())["b"] == 2, "both threads are in a second step")
        in_flight = {run_id for run_id in runs if ("b", first.pid) in processes.calls(run_id)}
        first.send(signal.SIGTERM)
        until(lambda: "is stopping" in first.said(), "it has heard")
        processes.open_gate("b")
        assert first.end() == 0
        assert not first.registered()
        for run_id in runs:
            assert status_of(engine, run_id) is RunStatus.PENDING
        for run_id in in_flight:
            assert [step.step_id for step in engine.get_steps(run_id)] == ["a", "b"]
        second = processes.start()
        for run_id in runs:
            assert engine.wait_for_run(run_id, timeout=30).status is RunStatus.COMPLETED
            assert [step for step, _ in processes.calls(run_id)] == ["a", "b", "c"]
        second.send(signal.SIGINT)
        assert second.end() == 0

    def test_what_exceeds_its_grace_is_given_back_at_once_and_without_blame(
        self, engine: WorkflowEngine, processes: WorkerProcesses
    ) -> None:
        first = processes.start(grace="200ms")
        first.await_registration()
        run_id = start_story(engine, {"steps": ["a", "b"], "gated": ["b"]})
        until(lambda: len(processes.calls()) == 2, "the run is in its second step")
        first.send(signal.SIGTERM)
        assert first.end() == 0
        assert status_of(engine, run_id) is RunStatus.PENDING
        assert value(engine.conninfo, "select interruptions from pgworkflows.queue") == 0
        assert [step.step_id for step in engine.get_steps(run_id)] == ["a"]

    def test_a_second_signal_ends_it_without_grace(self, engine: WorkflowEngine, processes: WorkerProcesses) -> None:
        first = processes.start(grace="1 hour")
        first.await_registration()
        run_id = start_story(engine, {"steps": ["a"], "gated": ["a"]})
        until(lambda: len(processes.calls()) == 1, "the run is in its step")
        first.send(signal.SIGTERM)
        first.send(signal.SIGINT)  # two of a kind that come together may be one
        assert first.end() == 0
        assert status_of(engine, run_id) is RunStatus.PENDING


class TestStopping:
    def test_stop_waits_for_the_step_in_flight_and_stores_its_outcome(self, engine: WorkflowEngine, door: Door) -> None:
        @workflow("held")
        def held(step: Step) -> Steps[str]:
            yield step.run("door", door.enter)
            return (yield from step.run("after", lambda: "after"))

        engine.register_workflow(held)
        with working(engine) as worker:
            run = engine.start_workflow(held)
            assert door.inside.wait(20)
            stopping = threading.Thread(target=worker.stop)
            stopping.start()
            until(lambda: worker.health().stopping, "it begins to stop")
            assert stopping.is_alive()
            door.open.set()
            stopping.join(20)
            assert not stopping.is_alive()
        assert status_of(engine, run.id) is RunStatus.PENDING
        assert [step.status for step in engine.get_steps(run.id)] == [StepStatus.COMPLETED]
        assert door.cancelled == [False]

    def test_a_step_that_exceeds_grace_is_told_and_its_late_result_dropped(
        self, engine: WorkflowEngine, door: Door
    ) -> None:
        @workflow("held")
        def held(step: Step) -> Steps[str]:
            return (yield from step.run("door", door.enter))

        engine.register_workflow(held)
        with working(engine, grace=0.1) as worker:
            run = engine.start_workflow(held)
            assert door.inside.wait(20)
            worker.stop()
        assert status_of(engine, run.id) is RunStatus.PENDING
        assert rows(engine.conninfo, "select 1 from pgworkflows.workers") == []
        door.open.set()
        until(lambda: door.cancelled, "the step returns at last")
        assert door.cancelled == [True]
        assert engine.get_steps(run.id) == []
        engine.worker().run_until_idle(timeout=20)
        assert engine.get_run(run.id).output == "through the door"
        assert door.cancelled == [True, False]

    def test_a_worker_can_be_stopped_twice_and_run_again(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(quick)
        worker = engine.worker()
        worker.run_until_idle()
        run = engine.start_workflow(quick, 1)
        worker.run_until_idle()
        assert engine.get_run(run.id).output == 1
        with working(engine) as other:
            other.stop()
            other.stop()
        assert rows(engine.conninfo, "select 1 from pgworkflows.workers") == []

    def test_a_worker_that_was_stopped_before_it_runs_ends_at_once(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(quick)
        worker = engine.worker()
        worker.stop()
        thread = threading.Thread(target=worker.run_forever)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()

    def test_a_step_may_stop_its_own_worker(self, engine: WorkflowEngine) -> None:
        worker = engine.worker()

        @workflow("last-will")
        def last_will(step: Step) -> Steps[str]:
            yield step.run("stop", worker.stop)
            return (yield from step.run("after", lambda: "after"))

        engine.register_workflow(last_will)
        run = engine.start_workflow(last_will)
        thread = threading.Thread(target=worker.run_forever)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert [step.step_id for step in engine.get_steps(run.id)] == ["stop"]

    def test_a_signal_handler_may_stop_a_worker_that_runs_in_the_main_thread(self, engine: WorkflowEngine) -> None:
        worker = engine.worker()
        engine.register_workflow(quick)
        previous = signal.signal(signal.SIGUSR1, lambda *_: worker.stop())
        try:

            def knock() -> None:
                until(lambda: rows(engine.conninfo, "select id from pgworkflows.workers"), "it works")
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

            knocker = threading.Thread(target=knock)
            knocker.start()
            worker.run_forever()
            knocker.join(20)
        finally:
            signal.signal(signal.SIGUSR1, previous)
        assert rows(engine.conninfo, "select id from pgworkflows.workers") == []

    def test_a_stop_just_before_it_looks_is_heard(self, engine: WorkflowEngine) -> None:
        """Before each look the bell is silenced; it may just have rung for the end."""
        engine.register_workflow(quick)
        with working(engine, poll_interval="1 hour") as worker:
            crew = worker._crew
            assert crew is not None
            dispatcher, bell = crew.dispatcher, crew._holdings.bell

            class Bell(threading.Event):
                silenced = False

                def clear(self) -> None:
                    self.silenced = True
                    dispatcher._closing.set()
                    self.set()
                    super().clear()

            until(lambda: rows(engine.conninfo, "select queue from pgworkflows.sleepers"), "it sleeps")
            dispatcher._look_s = 3600.0  # as after a long quiet time
            crew._holdings.bell = new_bell = Bell()
            bell.set()

            def silenced() -> bool:
                if not new_bell.silenced:
                    new_bell.set()  # if the dispatcher just went over to it
                return new_bell.silenced

            until(silenced, "it looks")
            dispatcher.join(20)
            assert not dispatcher.is_alive()

    def test_one_worker_runs_once_at_a_time(self, engine: WorkflowEngine) -> None:
        with working(engine) as worker, pytest.raises(RuntimeError, match="running already"):
            worker.run_until_idle()

    def test_the_engine_starts_and_stops_one_in_the_background(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(quick)
        engine.start()
        engine.start()
        run = engine.start_workflow(quick, 7)
        assert engine.wait_for_run(run.id, timeout=20).output == 7
        assert value(engine.conninfo, "select count(*) from pgworkflows.workers") == 1
        engine.stop()
        engine.stop()
        assert rows(engine.conninfo, "select 1 from pgworkflows.workers") == []

    def test_an_engine_that_is_stopped_at_once_leaves_no_worker(self, engine: WorkflowEngine) -> None:
        engine.start()
        engine.stop()
        until(
            lambda: not {thread.name for thread in threading.enumerate()} & THREADS,
            "its threads end",
        )
        assert rows(engine.conninfo, "select 1 from pgworkflows.workers") == []


class TestUntilIdle:
    def test_it_works_off_what_is_ready_and_leaves_what_waits(self, engine: WorkflowEngine) -> None:
        @workflow("waiter")
        def waiter(step: Step) -> Steps[None]:
            yield step.wait_for("event", "go")

        engine.register_workflow(quick)
        engine.register_workflow(waiter)
        ready = [engine.start_workflow(quick, number) for number in range(30)]
        waits = engine.start_workflow(waiter)
        later = engine.start_workflow(quick, delay="1 hour")
        engine.worker().run_until_idle(timeout=20)
        assert [engine.get_run(run.id).output for run in ready] == list(range(30))
        assert status_of(engine, waits.id) is RunStatus.WAITING
        assert status_of(engine, later.id) is RunStatus.PENDING

    def test_it_ends_at_once_when_there_is_no_workflow(self, engine: WorkflowEngine) -> None:
        started = time.monotonic()
        engine.worker().run_until_idle(timeout=20)
        assert time.monotonic() - started < 10

    def test_it_tells_when_its_time_is_up(self, engine: WorkflowEngine, door: Door) -> None:
        @workflow("held")
        def held(step: Step) -> Steps[str]:
            return (yield from step.run("door", door.enter))

        engine.register_workflow(held)
        run = engine.start_workflow(held)
        with pytest.raises(TimeoutError, match=r"0\.2 s"):
            engine.worker(grace=0).run_until_idle(timeout=0.2)
        assert status_of(engine, run.id) is RunStatus.PENDING

    def test_it_needs_no_start_and_no_migration_before(self, empty_database_url: str) -> None:
        with WorkflowEngine(empty_database_url, workflows=[quick]) as engine:
            engine.worker().run_until_idle(timeout=20)
            run = engine.start_workflow(quick, "first")
            engine.worker().run_until_idle(timeout=20)
            assert engine.get_run(run.id).output == "first"


class TestWhatItServes:
    def test_a_workflow_that_is_registered_while_it_runs_is_served(self, engine: WorkflowEngine) -> None:
        with working(engine, poll_interval=0.1):
            engine.register_workflow(quick)
            run = engine.start_workflow(quick, 1)
            assert engine.wait_for_run(run.id, timeout=20).output == 1
            assert value(engine.conninfo, "select steps::text like '%%only%%' from pgworkflows.workflows")

    def test_the_runs_of_a_workflow_that_is_unregistered_wait(self, engine: WorkflowEngine) -> None:
        @workflow("other")
        def other(step: Step) -> Steps[str]:
            return (yield from step.run("only", lambda: "other"))

        engine.register_workflow(quick)
        engine.register_workflow(other)
        with working(engine, poll_interval=0.1):
            run = engine.start_workflow(quick, 1)
            engine.wait_for_run(run.id, timeout=20)
            engine.unregister_workflow("quick")
            with pytest.raises(WorkflowNotFoundError):
                engine.start_workflow(quick, 2)
            with HandWorker(engine.conninfo, []) as somebody:
                rows(engine.conninfo, "select pgworkflows.start_workflow('quick', '3')")
                marker = engine.start_workflow(other)
                engine.wait_for_run(marker.id, timeout=20)
                [(waiting, status)] = rows(
                    engine.conninfo, "select id, status from pgworkflows.runs where input::text = '3'"
                )
                assert status == "pending"
                engine.register_workflow(quick)
                assert engine.wait_for_run(waiting, timeout=20).output == 3
                somebody.die()

    def test_by_default_it_serves_the_default_lane_and_those_its_workflows_name(self, engine: WorkflowEngine) -> None:
        @workflow("mail", queue="mails")
        def mail(step: Step) -> Steps[None]:
            yield step.run("send", lambda: None)

        engine.register_workflow(quick)
        engine.register_workflow(mail)
        served = [
            engine.start_workflow(mail),
            engine.start_workflow(quick),
            engine.start_workflow(mail, queue="default"),
        ]
        not_served = engine.start_workflow(quick, queue="reports")
        engine.worker().run_until_idle(timeout=20)
        assert [status_of(engine, run.id) for run in served] == [RunStatus.COMPLETED] * 3
        assert status_of(engine, not_served.id) is RunStatus.PENDING
        engine.worker(queues=["reports"]).run_until_idle(timeout=20)
        assert status_of(engine, not_served.id) is RunStatus.COMPLETED

    def test_it_serves_only_the_lanes_it_is_told(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(quick)
        default = engine.start_workflow(quick)
        engine.worker(queues=["reports"]).run_until_idle(timeout=20)
        assert status_of(engine, default.id) is RunStatus.PENDING

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"queues": "default"}, TypeError),
            ({"queues": [""]}, ValueError),
            ({"threads": 0}, ValueError),
            ({"threads": "4"}, TypeError),
            ({"max_runs": True}, TypeError),
            ({"lease": "1s"}, ValueError),
            ({"poll_interval": 0}, ValueError),
            ({"grace": -1}, ValueError),
            ({"grace": "soon"}, ValueError),
        ],
    )
    def test_options_that_make_no_sense_are_refused(
        self, engine: WorkflowEngine, options: dict[str, Any], error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            engine.worker(**options)

    def test_runs_are_begun_by_priority_and_then_by_age(self, engine: WorkflowEngine) -> None:
        begun: list[str] = []

        @workflow("ordered")
        def ordered(step: Step, input: str) -> Steps[None]:
            yield step.run("begin", begun.append, input)

        engine.register_workflow(ordered)
        for name, priority in [("low", "low"), ("normal 1", None), ("high", "high"), ("normal 2", 0), ("higher", 101)]:
            engine.start_workflow(ordered, name, priority=priority)
        aged = engine.start_workflow(ordered, "low and old", priority="low")
        # Priority is a head start in seconds, so that nothing starves.
        rows(engine.conninfo, "update pgworkflows.queue set rank = rank - interval '150 s' where run_id = %s", aged.id)
        engine.worker(threads=1, max_runs=1).run_until_idle(timeout=20)
        assert begun == ["higher", "high", "low and old", "normal 1", "normal 2", "low"]


class TestStepTimeouts:
    def test_the_function_is_told_its_late_result_dropped_and_the_handler_goes_on(
        self, engine: WorkflowEngine, door: Door
    ) -> None:
        @workflow("impatient")
        def impatient(step: Step) -> Steps[str]:
            try:
                yield step.run("slow", door.enter).timeout(0.2)
            except StepTimeoutError as error:
                return f"{error.error_type}: {error.message}"
            return "in time"

        engine.register_workflow(impatient)
        with working(engine, threads=1):
            run = engine.start_workflow(impatient)
            done = engine.wait_for_run(run.id, timeout=20)
            assert done.output == "StepTimeoutError: its function did not return within 0.2 s"
            before = engine.get_steps(run.id)
            assert before[0].status is StepStatus.FAILED
            # The only thread is still behind the door; another has taken its place.
            engine.register_workflow(quick)
            other = engine.start_workflow(quick, 1)
            assert engine.wait_for_run(other.id, timeout=20).output == 1
            assert not door.cancelled
            door.open.set()
            until(lambda: door.cancelled, "the function returns at last")
            assert door.cancelled == [True]
            assert engine.get_steps(run.id) == before

    def test_it_holds_for_each_attempt(self, engine: WorkflowEngine) -> None:
        attempts: list[int] = []

        def slow_at_first() -> str:
            attempts.append(current_step().attempt)
            until(lambda: current_step().cancelled or len(attempts) == 3, "its time is up")
            return f"attempt {current_step().attempt}"

        @workflow("persistent")
        def persistent(step: Step) -> Steps[str]:
            return (yield from step.run("slow", slow_at_first).timeout(0.15).retry(attempts=3, wait=0))

        engine.register_workflow(persistent)
        with working(engine):
            run = engine.start_workflow(persistent)
            assert engine.wait_for_run(run.id, timeout=20).output == "attempt 3"
        assert attempts == [1, 2, 3]

    def test_a_function_in_time_is_not_disturbed(self, engine: WorkflowEngine) -> None:
        @workflow("swift")
        def swift(step: Step) -> Steps[bool]:
            return (yield from step.run("swift", lambda: current_step().cancelled).timeout("1 minute"))

        engine.register_workflow(swift)
        run = engine.start_workflow(swift)
        engine.worker().run_until_idle(timeout=20)
        assert engine.get_run(run.id).output is False

    def test_more_hanging_functions_than_threads_do_not_cripple_the_worker_for_good(
        self, engine: WorkflowEngine, door: Door, caplog: pytest.LogCaptureFixture
    ) -> None:
        @workflow("hanging")
        def hanging(step: Step) -> Steps[str]:
            return (yield from step.run("slow", door.enter).timeout(0.05))

        engine.register_workflow(hanging)
        engine.register_workflow(quick)
        with working(engine, threads=2):
            runs = [engine.start_workflow(hanging) for _ in range(4)]
            # As many threads again take the places of those that hang; then there is nobody left.
            until(lambda: door.entered == 4, "all hang")
            until(lambda: "a thread is lost" in caplog.text, "the last two are given up")
            door.open.set()
            for run in runs:
                engine.wait_for_run(run.id, timeout=20)
            for _ in range(3):
                others = [engine.start_workflow(quick, number) for number in range(10)]
                assert [engine.wait_for_run(run.id, timeout=20).output for run in others] == list(range(10))


class TestRunTimeouts:
    """Past its timeout a run has failed, in whatever unfinished status it is."""

    @staticmethod
    def assert_timed_out(engine: WorkflowEngine, run_id: UUID) -> None:
        done = engine.wait_for_run(run_id, timeout=20)
        assert done.status is RunStatus.FAILED
        assert done.error is not None
        assert done.error["type"] == "WorkflowTimeoutError"
        assert done.timeout_at is not None
        assert done.completed_at is not None
        assert done.completed_at >= done.timeout_at

    def test_pending(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(quick)
        run = engine.start_workflow(quick, queue="nobody serves it", timeout=0.2)
        with working(engine):
            self.assert_timed_out(engine, run.id)
        assert engine.get_steps(run.id) == []

    def test_it_counts_from_when_the_run_may_first_start(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(quick)
        run = engine.start_workflow(quick, 5, delay=0.4, timeout=0.2)
        assert run.timeout_at is not None
        assert run.scheduled_at is not None
        assert (run.timeout_at - run.scheduled_at).total_seconds() == 0.2
        with working(engine):
            assert engine.wait_for_run(run.id, timeout=20).output == 5

    def test_waiting_and_paused(self, engine: WorkflowEngine) -> None:
        @workflow("waiter", timeout="1 hour")
        def waiter(step: Step) -> Steps[None]:
            try:
                yield step.wait_for("event", "go")
            except Exception:
                yield step.run("never", lambda: None)

        engine.register_workflow(waiter)
        waiting, paused = engine.start_workflow(waiter), engine.start_workflow(waiter)
        with working(engine, poll_interval=0.1):
            for run in (waiting, paused):
                await_status(engine, run.id, RunStatus.WAITING)
            engine.pause_workflow(paused.id)
            run_out_of_time(engine.conninfo)
            self.assert_timed_out(engine, waiting.id)
            self.assert_timed_out(engine, paused.id)
            for run in (waiting, paused):
                [step] = engine.get_steps(run.id)
                assert (step.step_id, step.status) == ("event", StepStatus.CANCELLED)

    def test_waiting_for_a_retry(self, engine: WorkflowEngine) -> None:
        def fail() -> None:
            raise ValueError

        @workflow("retrying", timeout=0.3)
        def retrying(step: Step) -> Steps[None]:
            yield step.run("fail", fail).retry(attempts=5, wait="1 hour")

        engine.register_workflow(retrying)
        run = engine.start_workflow(retrying)
        with working(engine):
            self.assert_timed_out(engine, run.id)

    def test_running(self, engine: WorkflowEngine, door: Door) -> None:
        begun, told = threading.Event(), threading.Event()

        def watch() -> str:
            begun.set()
            until(lambda: current_step().cancelled, "the function is told")
            told.set()
            return door.enter()

        @workflow("held", timeout="1 hour", retries=5)
        def held(step: Step) -> Steps[None]:
            yield step.run("door", watch)
            yield step.run("never", lambda: None)

        engine.register_workflow(held)
        with working(engine, poll_interval=0.1):
            run = engine.start_workflow(held)
            assert begun.wait(20)
            run_out_of_time(engine.conninfo)
            self.assert_timed_out(engine, run.id)
            assert told.wait(20)
            door.open.set()
            until(lambda: not rows(engine.conninfo, "select 1 from pgworkflows.queue"), "the worker lets go")
        # No retry, and the outcome of the step in flight is there.
        self.assert_timed_out(engine, run.id)
        assert [(step.step_id, step.status) for step in engine.get_steps(run.id)] == [("door", StepStatus.COMPLETED)]


class TestRetries:
    def test_the_attempts_of_a_step_survive_the_worker(self, engine: WorkflowEngine) -> None:
        attempts: list[int] = []

        def flaky() -> str:
            attempts.append(current_step().attempt)
            if len(attempts) < 4:
                raise ConnectionError(f"attempt {attempts[-1]}")
            return "at last"

        @workflow("flaky")
        def flaky_run(step: Step) -> Steps[str]:
            return (yield from step.run("flaky", flaky).retry(attempts=4, wait="1 hour"))

        engine.register_workflow(flaky_run)
        run = engine.start_workflow(flaky_run)
        for number in (1, 2, 3):
            engine.worker().run_until_idle(timeout=20)  # a new worker for every attempt
            [step] = engine.get_steps(run.id)
            assert (step.status, step.attempts) == (StepStatus.RETRYING, number)
            assert step.error is not None
            assert step.error["message"] == f"attempt {number}"
            assert status_of(engine, run.id) is RunStatus.PENDING
            make_due(engine.conninfo)
        engine.worker().run_until_idle(timeout=20)
        assert engine.get_run(run.id).output == "at last"
        assert attempts == [1, 2, 3, 4]
        assert engine.get_run(run.id).retry_count == 0

    def test_a_step_without_a_policy_is_called_once(self, engine: WorkflowEngine) -> None:
        attempts: list[int] = []

        def fail() -> None:
            attempts.append(1)
            raise ValueError("no")

        @workflow("once")
        def once(step: Step) -> Steps[str]:
            try:
                yield step.run("fail", fail)
            except StepFailedError as error:
                return str(error)
            return "?"

        engine.register_workflow(once)
        run = engine.start_workflow(once)
        engine.worker().run_until_idle(timeout=20)
        assert engine.get_run(run.id).output == "step 'fail' failed: ValueError: no"
        assert attempts == [1]

    def test_the_retries_of_a_run_begin_with_the_step_that_failed(self, engine: WorkflowEngine) -> None:
        calls: list[tuple[str, int]] = []

        def call(name: str, attempt: int) -> None:
            calls.append((name, attempt))
            if name == "b" and attempt < 2:
                raise ValueError("not yet")

        @workflow("twice", retries=2)
        def twice(step: Step) -> Steps[int]:
            yield step.run("a", call, "a", step.context.attempt)
            yield step.run("b", call, "b", step.context.attempt)
            return step.context.attempt

        engine.register_workflow(twice)
        run = engine.start_workflow(twice)
        engine.worker().run_until_idle(timeout=20)
        retried = engine.get_run(run.id)
        assert (retried.status, retried.retry_count) == (RunStatus.PENDING, 1)
        assert retried.error is not None
        assert retried.error["message"] == "not yet"
        assert retried.scheduled_at is not None
        assert 1 <= (retried.scheduled_at - retried.updated_at).total_seconds() <= 1.25
        with working(engine, poll_interval="60s"):
            done = engine.wait_for_run(run.id, timeout=20)
        assert (done.output, done.error, done.retry_count) == (2, None, 1)
        assert calls == [("a", 1), ("b", 1), ("b", 2)]
        assert done.completed_at is not None
        assert done.completed_at > retried.scheduled_at

    def test_after_the_last_retry_the_run_has_failed(self, engine: WorkflowEngine) -> None:
        def fail() -> None:
            raise LookupError("still not there")

        @workflow("stubborn")
        def stubborn(step: Step) -> Steps[None]:
            yield step.run("fail", fail)

        engine.register_workflow(stubborn)
        run = engine.start_workflow(stubborn, retries=1)
        with working(engine):
            failed = engine.wait_for_run(run.id, timeout=20)
        assert (failed.status, failed.retry_count) == (RunStatus.FAILED, 1)
        assert failed.error is not None
        assert (failed.error["type"], failed.error["step_id"]) == ("LookupError", "fail")
        assert engine.get_steps(run.id)[0].attempts == 2


class TestRunsThatMisbehave:
    """One run's fault ends that run, and neither its worker nor its neighbours."""

    @pytest.mark.parametrize(
        ("fault", "error_type"),
        [
            (lambda: float("nan"), "SerializationError"),
            (lambda: "\0", "SerializationError"),
            (lambda: "\ud800", "SerializationError"),
            (lambda: object(), "SerializationError"),
            (lambda: iter([1]), "SerializationError"),
            (lambda: raise_(SystemExit(3)), "SystemExit"),
            (lambda: raise_(KeyboardInterrupt()), "KeyboardInterrupt"),
            (lambda: raise_(ValueError("\0\ud800")), "ValueError"),
            (lambda: raise_(ExceptionGroup("several", [ValueError("a"), TypeError("b")])), "ExceptionGroup"),
            (lambda: [].append(current_step().nothing), "AttributeError"),  # type: ignore[attr-defined]  # the fault
        ],
    )
    def test_a_step(self, engine: WorkflowEngine, fault: Callable[[], Any], error_type: str) -> None:
        @workflow("faulty")
        def faulty(step: Step) -> Steps[None]:
            yield step.run("fault", fault)

        engine.register_workflow(faulty)
        engine.register_workflow(quick)
        runs = [engine.start_workflow(faulty), engine.start_workflow(quick, 1), engine.start_workflow(quick, 2)]
        engine.worker(threads=1).run_until_idle(timeout=20)
        failed, *others = [engine.get_run(run.id) for run in runs]
        assert failed.status is RunStatus.FAILED
        assert failed.error is not None
        assert (failed.error["type"], failed.error["step_id"]) == (error_type, "fault")
        assert [run.output for run in others] == [1, 2]

    def test_a_handler(self, engine: WorkflowEngine) -> None:
        def deep(depth: int) -> Any:
            return [deep(depth - 1)] if depth else 1

        @workflow("faulty")
        def faulty(step: Step, input: str) -> Steps[Any]:
            match input:
                case "exit":
                    raise SystemExit(1)
                case "not a command":
                    yield 42  # type: ignore[misc]  # the fault
                case "a generator":
                    yield (number for number in range(3))  # type: ignore[misc]  # the fault
                case "no JSON":
                    return object()
                case "no step":
                    return input
                case "recursion":
                    return (lambda again: again(again))(lambda again: again(again))
            return None

        engine.register_workflow(faulty)
        engine.register_workflow(quick)
        runs = {
            name: engine.start_workflow(faulty, name)
            for name in ("exit", "not a command", "a generator", "no JSON", "recursion", "no step")
        }
        good = engine.start_workflow(quick, "good")
        engine.worker(threads=1).run_until_idle(timeout=20)
        assert engine.get_run(good.id).output == "good"
        assert engine.get_run(runs["no step"].id).output == "no step"
        failures = {name: engine.get_run(run.id).error for name, run in runs.items() if name != "no step"}
        assert {name: error and error["type"] for name, error in failures.items()} == {
            "exit": "SystemExit",
            "not a command": "TypeError",
            "a generator": "TypeError",
            "no JSON": "SerializationError",
            "recursion": "RecursionError",
        }

    @pytest.mark.direct("settings of a database reach new sessions only")
    def test_a_value_that_only_the_server_refuses(self, engine: WorkflowEngine) -> None:
        def deep() -> Any:
            found: Any = 1
            for _ in range(900):
                found = [found]
            return found

        @workflow("deep")
        def deep_run(step: Step) -> Steps[str]:
            yield step.run("deep", deep)
            return "kept"

        engine.register_workflow(deep_run)
        engine.register_workflow(quick)
        runs = [engine.start_workflow(deep_run), engine.start_workflow(quick, 1)]
        rows(
            engine.conninfo,
            "alter database current set max_stack_depth = '100kB'".replace("current", database_of(engine)),
        )
        engine.worker(threads=1).run_until_idle(timeout=20)
        deep_done, good = [engine.get_run(run.id) for run in runs]
        assert good.output == 1
        assert deep_done.status is RunStatus.FAILED
        assert deep_done.error is not None
        assert (deep_done.error["type"], deep_done.error["step_id"]) == ("SerializationError", "deep")
        assert "PostgreSQL" in deep_done.error["message"]

    def test_an_input_that_does_not_fit_any_more(self, engine: WorkflowEngine) -> None:
        @workflow("typed", retries=3)
        def typed(step: Step, input: int) -> Steps[int]:
            return (yield from step.run("only", lambda: input))

        engine.register_workflow(typed)
        [(run_id,)] = rows(engine.conninfo, "select id from pgworkflows.start_workflow('typed', '\"seven\"')")
        engine.worker().run_until_idle(timeout=20)
        failed = engine.get_run(run_id)
        assert failed.status is RunStatus.FAILED
        assert failed.error is not None
        assert failed.error["type"] == "InvalidInputError"


def raise_(error: BaseException) -> None:
    raise error


def database_of(engine: WorkflowEngine) -> str:
    name = value(engine.conninfo, "select current_database()")
    assert isinstance(name, str)
    return name


@pytest.mark.parametrize(
    ("place", "name"),
    [(claims, "claim"), (claims, "flush_results"), (claims, "beat"), (Listener, "wait"), (claims, "serve_workflows")],
)
@pytest.mark.direct("about LISTEN and the lock of a worker")
def test_an_error_that_nobody_expects_is_told_and_ends_no_thread(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: Any, name: str
) -> None:
    honest = getattr(place, name)
    raised = threading.Event()

    def broken_once(*args: Any, **kwargs: Any) -> Any:
        if not raised.is_set():
            raised.set()
            raise ArithmeticError("nobody expects this")
        return honest(*args, **kwargs)

    monkeypatch.setattr(place, name, broken_once)
    engine.register_workflow(quick)
    with working(engine, threads=1):
        run = engine.start_workflow(quick, 1)
        assert raised.wait(20)
        assert engine.wait_for_run(run.id, timeout=20).output == 1
        await_heartbeats(engine.conninfo)
        assert {thread.name for thread in threading.enumerate()} >= THREADS - {"pgworkflows-worker"}
    assert "ArithmeticError" in caplog.text
    assert "in broken_once" in caplog.text
    assert "nobody expects this" not in caplog.text.replace('raise ArithmeticError("nobody expects this")', "")


class TestHeartbeats:
    @pytest.mark.direct("about LISTEN and the lock of a worker")
    def test_a_worker_shows_that_it_lives(self, engine: WorkflowEngine) -> None:
        with working(engine, queues=["b", "a"], lease="1 minute"):
            first = until(lambda: value(engine.conninfo, "select beats from pgworkflows.workers"), "it beats")
            until(lambda: value(engine.conninfo, "select beats from pgworkflows.workers") > first, "it beats again")
            [(queues, lease, has_lock)] = rows(
                engine.conninfo, "select queues, extract(epoch from lease)::int, has_lock from pgworkflows.workers"
            )
        assert (queues, lease, has_lock) == (["a", "b"], 60, True)
        assert rows(engine.conninfo, "select 1 from pgworkflows.workers") == []

    def test_a_worker_that_was_declared_dead_drops_its_runs_and_begins_anew(
        self, engine: WorkflowEngine, door: Door, caplog: pytest.LogCaptureFixture
    ) -> None:
        @workflow("held")
        def held(step: Step) -> Steps[str]:
            return (yield from step.run("door", door.enter))

        engine.register_workflow(held)
        with caplog.at_level(logging.WARNING), working(engine):
            run = engine.start_workflow(held)
            assert door.inside.wait(20)
            former = value(engine.conninfo, "delete from pgworkflows.workers returning id")
            anew = until(lambda: rows(engine.conninfo, "select id from pgworkflows.workers"), "it registers anew")
            assert anew != [(former,)]
            # Its own former run is an orphan, and it takes that over like any other.
            with HandWorker(engine.conninfo, []) as other:
                until(lambda: other.take_over() or status_of(engine, run.id) is RunStatus.RUNNING, "it is taken over")
                other.die()
            door.open.set()
            assert engine.wait_for_run(run.id, timeout=20).output == "through the door"
        assert True in door.cancelled
        assert "declared dead" in caplog.text

    def test_a_claim_that_comes_back_after_the_workers_death_is_not_taken_in_hand(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(quick)
        engine.start_workflow(quick)
        with HandWorker(engine.conninfo, ["quick"]) as hand:
            run = hand.claim_one()
        holdings = Holdings()
        former = holdings.worker_id
        kept, late = (Execution(run, quick, logging.getLogger()) for _ in range(2))
        assert holdings.add(kept, former)
        holdings.die(former, logging.getLogger("test"))
        assert kept.dropped
        assert not holdings.add(late, former)
        assert holdings.executions == {}
        holdings.die(uuid4(), logging.getLogger("test"))
        assert holdings.worker_id != former


def test_an_idle_worker_keeps_nothing_of_the_runs_it_had(engine: WorkflowEngine) -> None:
    """Their histories may be long, and its threads are many."""
    engine.register_workflow(quick)
    with working(engine):
        for number in range(40):
            engine.wait_for_run(engine.start_workflow(quick, number).id, timeout=20)

        def kept() -> int:
            gc.collect()
            return sum(type(each) is Execution for each in gc.get_objects())

        until(lambda: kept() == 0, "the executions are let go of")
