"""Pause, resume, cancel, retry and fast-forward against a run in every state it can be in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from waiting import until
from working import HandWorker, await_heartbeats, make_due, rows, run_out_of_time, value, working

from pgworkflows import (
    InvalidStatusError,
    RunStatus,
    Step,
    StepFailedError,
    StepRecord,
    Steps,
    StepStatus,
    WorkflowEngine,
    WorkflowRun,
    claims,
    current_step,
    workflow,
)

PENDING, RUNNING, WAITING = RunStatus.PENDING, RunStatus.RUNNING, RunStatus.WAITING
PAUSED, COMPLETED, FAILED, CANCELLED = RunStatus.PAUSED, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED


pytestmark = pytest.mark.usefixtures("quick_heart")


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url) as engine:
        yield engine


class Scene:
    """A workflow of three steps whose second is held at a door, and what was called."""

    def __init__(self, engine: WorkflowEngine) -> None:
        self.engine = engine
        self.calls: list[str] = []
        self.inside = threading.Event()
        self.door = threading.Event()
        self.told_to_stop = threading.Event()
        self.failing: set[str] = set()

        @workflow("scene")
        def scene(step: Step) -> Steps[list[Any]]:
            first = yield step.run("first", self.call, "first")
            second = yield step.run("second", self.held, "second")
            third = yield step.run("third", self.call, "third")
            return [first, second, third]

        engine.register_workflow(scene)

    def call(self, name: str) -> str:
        self.calls.append(name)
        if name in self.failing:
            raise ValueError(f"{name} was told to fail")
        return name

    def held(self, name: str) -> str:
        self.inside.set()
        deadline = time.monotonic() + 20
        while not self.door.wait(0.01):
            assert time.monotonic() < deadline
            if current_step().cancelled:
                self.told_to_stop.set()
        return self.call(name)

    def start(self) -> UUID:
        """A run that is in its second step."""
        run = self.engine.start_workflow("scene")
        assert self.inside.wait(20)
        return run.id

    def run(self, run_id: UUID) -> WorkflowRun:
        return self.engine.get_run(run_id)

    def steps(self, run_id: UUID) -> dict[str, StepStatus]:
        return {step.step_id: step.status for step in self.engine.get_steps(run_id)}

    def let_go(self, run_id: UUID) -> None:
        """Wait until the worker has let go of the run."""
        until(
            lambda: not rows(self.engine.conninfo, "select 1 from pgworkflows.queue where claim_id is not null"),
            "the worker lets go of the run",
        )


@pytest.fixture
def scene(engine: WorkflowEngine) -> Iterator[Scene]:
    scene = Scene(engine)
    yield scene
    scene.door.set()


@workflow("wait")
def wait(step: Step, input: float = 3600) -> Steps[Any]:
    return (yield step.wait_for("event", "go", timeout=input))


def waiting_run(engine: WorkflowEngine, timeout_s: float = 3600) -> UUID:
    """A run of `wait` that waits for its event."""
    if "wait" not in engine.registered:
        engine.register_workflow(wait)
    run = engine.start_workflow(wait, timeout_s)
    engine.worker().run_until_idle(timeout=20)
    assert engine.get_run(run.id).status is WAITING
    return run.id


def step_of(engine: WorkflowEngine, run_id: UUID, step_id: str) -> StepRecord:
    [found] = [step for step in engine.get_steps(run_id) if step.step_id == step_id]
    return found


class TestPause:
    def test_a_pending_run_is_not_begun_until_it_is_resumed(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(wait)
        run = engine.start_workflow(wait)
        paused = engine.pause_workflow(run.id)
        assert paused.status is PAUSED
        assert paused.paused_at is not None
        engine.worker().run_until_idle()
        assert engine.get_steps(run.id) == []
        resumed = engine.resume_workflow(run.id)
        assert resumed.status is PENDING
        assert resumed.resumed_at is not None
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).status is WAITING

    def test_a_delayed_run_that_is_paused_and_resumed_still_starts_at_its_time(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(wait)
        run = engine.start_workflow(wait, delay="1 hour")
        engine.pause_workflow(run.id)
        engine.resume_workflow(run.id)
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).status is PENDING
        assert value(engine.conninfo, "select wake_at from pgworkflows.queue") == run.scheduled_at

    def test_of_a_running_run_the_step_in_flight_ends_and_is_kept_and_the_next_waits(
        self, engine: WorkflowEngine, scene: Scene
    ) -> None:
        with working(engine):
            run_id = scene.start()
            assert engine.pause_workflow(run_id).status is PAUSED
            assert value(engine.conninfo, "select control from pgworkflows.queue") == "pause"
            scene.door.set()
            scene.let_go(run_id)
            assert scene.run(run_id).status is PAUSED
            assert scene.run(run_id).current_step_id == "second"
            assert scene.steps(run_id) == {"first": "completed", "second": "completed"}
            engine.resume_workflow(run_id)
            assert engine.wait_for_run(run_id, timeout=20).output == ["first", "second", "third"]
        assert scene.calls == ["first", "second", "third"]
        assert not scene.told_to_stop.is_set()

    def test_a_run_that_is_resumed_before_its_worker_let_go_just_goes_on(
        self, engine: WorkflowEngine, scene: Scene
    ) -> None:
        with working(engine):
            run_id = scene.start()
            engine.pause_workflow(run_id)
            assert engine.resume_workflow(run_id).status is RUNNING
            scene.door.set()
            assert engine.wait_for_run(run_id, timeout=20).output == ["first", "second", "third"]
        assert scene.calls == ["first", "second", "third"]

    def test_it_goes_on_also_if_the_worker_had_heard_of_the_pause(self, engine: WorkflowEngine, scene: Scene) -> None:
        with working(engine):
            run_id = scene.start()
            engine.pause_workflow(run_id)
            await_heartbeats(engine.conninfo, 2)  # one of them brings the pause
            engine.resume_workflow(run_id)
            scene.door.set()
            assert engine.wait_for_run(run_id, timeout=20).output == ["first", "second", "third"]
        assert scene.calls == ["first", "second", "third"]

    def test_a_run_that_ends_with_the_step_in_flight_stays_paused_and_ends_when_resumed(
        self, engine: WorkflowEngine, scene: Scene
    ) -> None:
        @workflow("short")
        def short(step: Step) -> Steps[str]:
            return (yield from step.run("only", scene.held, "only"))

        engine.register_workflow(short)
        with working(engine):
            run = engine.start_workflow(short)
            assert scene.inside.wait(20)
            engine.pause_workflow(run.id)
            scene.door.set()
            scene.let_go(run.id)
            assert scene.run(run.id).status is PAUSED
            assert scene.run(run.id).output is None
            engine.resume_workflow(run.id)
            assert engine.wait_for_run(run.id, timeout=20).output == "only"
        assert scene.calls == ["only"]

    def test_a_run_whose_step_in_flight_fails_stays_paused_and_fails_when_resumed(
        self, engine: WorkflowEngine, scene: Scene
    ) -> None:
        scene.failing = {"second"}
        with working(engine):
            run_id = scene.start()
            engine.pause_workflow(run_id)
            scene.door.set()
            scene.let_go(run_id)
            assert scene.run(run_id).status is PAUSED
            engine.resume_workflow(run_id)
            failed = engine.wait_for_run(run_id, timeout=20)
        assert failed.status is FAILED
        assert failed.error is not None
        assert failed.error["type"] == "ValueError"
        assert scene.calls == ["first", "second"]

    def test_an_event_to_a_paused_run_is_kept_and_does_not_resume_it(self, engine: WorkflowEngine) -> None:
        run_id = waiting_run(engine)
        assert engine.pause_workflow(run_id).current_step_id == "event"
        engine.trigger_event(run_id, "go", "while paused")
        engine.worker().run_until_idle()
        assert engine.get_run(run_id).status is PAUSED
        engine.resume_workflow(run_id)
        engine.worker().run_until_idle()
        assert engine.get_run(run_id).output == "while paused"

    def test_a_deadline_runs_on_while_paused_and_acts_at_resume(self, engine: WorkflowEngine) -> None:
        run_id = waiting_run(engine)
        engine.pause_workflow(run_id)
        make_due(engine.conninfo)
        deadline = step_of(engine, run_id, "event").wake_at
        engine.worker().run_until_idle()
        assert engine.get_run(run_id).status is PAUSED
        assert step_of(engine, run_id, "event").status is StepStatus.WAITING
        engine.resume_workflow(run_id)
        engine.worker().run_until_idle()
        assert engine.get_run(run_id).status is COMPLETED
        assert step_of(engine, run_id, "event").wake_at == deadline

    def test_a_run_that_waits_for_its_retry_keeps_its_time(self, engine: WorkflowEngine) -> None:
        calls: list[int] = []

        def fail() -> None:
            calls.append(1)
            raise ValueError

        @workflow("retrying")
        def retrying(step: Step) -> Steps[None]:
            yield step.run("fail", fail).retry(attempts=2, wait="1 hour")

        engine.register_workflow(retrying)
        run = engine.start_workflow(retrying)
        engine.worker().run_until_idle()
        before = step_of(engine, run.id, "fail").wake_at
        engine.pause_workflow(run.id)
        engine.worker().run_until_idle()
        engine.resume_workflow(run.id)
        engine.worker().run_until_idle()
        assert calls == [1]
        assert engine.get_run(run.id).status is PENDING
        assert step_of(engine, run.id, "fail").wake_at == before
        assert value(engine.conninfo, "select wake_at from pgworkflows.queue") == before

    def test_the_step_a_paused_run_stands_at_is_exact_after_a_worker_has_let_go_of_it(
        self, engine: WorkflowEngine, scene: Scene
    ) -> None:
        with working(engine) as worker:
            run_id = scene.start()
            stopper = threading.Thread(target=worker.stop)
            stopper.start()
            until(
                lambda: worker.health().stopping, "the worker begins to stop"
            )  # or the step would be followed by the next
            scene.door.set()
            stopper.join(20)
        assert scene.run(run_id).status is PENDING
        assert scene.steps(run_id) == {"first": "completed", "second": "completed"}
        assert engine.pause_workflow(run_id).current_step_id == "second"


class TestCancel:
    def test_a_pending_run_is_never_begun(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(wait)
        run = engine.start_workflow(wait)
        assert engine.cancel_workflow(run.id).status is CANCELLED
        engine.worker().run_until_idle()
        assert engine.get_steps(run.id) == []
        assert rows(engine.conninfo, "select 1 from pgworkflows.queue") == []

    def test_of_a_running_run_the_step_is_told_its_outcome_kept_and_the_next_never_begun(
        self, engine: WorkflowEngine, scene: Scene
    ) -> None:
        with working(engine):
            run_id = scene.start()
            cancelled = engine.cancel_workflow(run_id)
            assert cancelled.status is CANCELLED
            assert cancelled.completed_at is not None
            assert scene.told_to_stop.wait(20)
            scene.door.set()
            scene.let_go(run_id)
        assert scene.run(run_id) == cancelled or scene.run(run_id).updated_at > cancelled.updated_at
        assert scene.run(run_id).status is CANCELLED
        assert scene.run(run_id).completed_at == cancelled.completed_at
        assert scene.steps(run_id) == {"first": "completed", "second": "completed"}
        assert scene.calls == ["first", "second"]
        assert rows(engine.conninfo, "select 1 from pgworkflows.queue") == []

    def test_a_run_that_is_cancelled_while_it_waits_for_a_thread_begins_no_further_step(
        self, engine: WorkflowEngine, scene: Scene
    ) -> None:
        """Its last step is stored, its next not begun: the only thread is busy with another run."""
        begun, row_is_held = threading.Event(), threading.Event()

        def before() -> None:
            begun.set()
            assert row_is_held.wait(20)

        @workflow("ready")
        def ready(step: Step) -> Steps[None]:
            yield step.run("before", before)
            yield step.run("after", scene.call, "after")

        @workflow("scene")
        def only_held(step: Step) -> Steps[None]:
            yield step.run("second", scene.held, "second")

        engine.unregister_all_workflows()
        engine.register_workflow(ready)
        engine.register_workflow(only_held)
        with working(engine, threads=1):
            run = engine.start_workflow(ready)
            assert begun.wait(20)
            with psycopg.connect(engine.conninfo) as somebody:
                # While somebody holds its row, its checkpoint has to wait, and its thread takes the other run.
                somebody.execute("select from pgworkflows.queue where run_id = %s for update", [run.id])
                row_is_held.set()
                engine.start_workflow(only_held)
                assert scene.inside.wait(20)
            until(lambda: engine.get_steps(run.id), "its first step is stored")
            engine.cancel_workflow(run.id)
            await_heartbeats(engine.conninfo, 2)  # one of them brings the word
            scene.door.set()
            scene.let_go(run.id)
        assert scene.calls == ["second"]
        assert scene.run(run.id).status is CANCELLED

    def test_a_run_that_would_have_ended_with_the_step_in_flight_stays_cancelled(
        self, engine: WorkflowEngine, scene: Scene
    ) -> None:
        @workflow("short")
        def short(step: Step) -> Steps[str]:
            return (yield from step.run("only", scene.held, "only"))

        engine.register_workflow(short)
        with working(engine):
            run = engine.start_workflow(short)
            assert scene.inside.wait(20)
            engine.cancel_workflow(run.id)
            scene.door.set()
            scene.let_go(run.id)
        assert scene.run(run.id).status is CANCELLED
        assert scene.run(run.id).output is None
        assert scene.steps(run.id) == {"only": "completed"}

    def test_the_wait_of_a_waiting_run_is_cancelled_with_it(self, engine: WorkflowEngine) -> None:
        run_id = waiting_run(engine)
        engine.cancel_workflow(run_id)
        assert step_of(engine, run_id, "event").status is StepStatus.CANCELLED
        with pytest.raises(InvalidStatusError):
            engine.trigger_event(run_id, "go")

    def test_a_paused_run_can_be_cancelled(self, engine: WorkflowEngine) -> None:
        run_id = waiting_run(engine)
        engine.pause_workflow(run_id)
        assert engine.cancel_workflow(run_id).status is CANCELLED
        assert step_of(engine, run_id, "event").status is StepStatus.CANCELLED

    def test_a_running_run_that_was_paused_can_be_cancelled(self, engine: WorkflowEngine, scene: Scene) -> None:
        with working(engine):
            run_id = scene.start()
            engine.pause_workflow(run_id)
            assert engine.cancel_workflow(run_id).status is CANCELLED
            scene.door.set()
            scene.let_go(run_id)
        assert scene.run(run_id).status is CANCELLED
        assert scene.calls == ["first", "second"]
        assert rows(engine.conninfo, "select 1 from pgworkflows.queue") == []

    def test_a_step_that_waits_for_its_retry_is_cancelled(self, engine: WorkflowEngine) -> None:
        def fail() -> None:
            raise ValueError

        @workflow("retrying")
        def retrying(step: Step) -> Steps[None]:
            yield step.run("fail", fail).retry(attempts=2, wait="1 hour")

        engine.register_workflow(retrying)
        run = engine.start_workflow(retrying)
        engine.worker().run_until_idle()
        engine.cancel_workflow(run.id)
        assert step_of(engine, run.id, "fail").status is StepStatus.CANCELLED


class TestRetry:
    def test_a_failed_run_goes_on_with_the_step_that_failed(self, engine: WorkflowEngine, scene: Scene) -> None:
        scene.door.set()
        scene.failing = {"third"}
        run = engine.start_workflow("scene")
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).status is FAILED
        scene.failing = set()
        retried = engine.retry_workflow(run.id)
        assert (retried.status, retried.error, retried.completed_at) == (PENDING, None, None)
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).output == ["first", "second", "third"]
        assert scene.calls == ["first", "second", "third", "third"]
        assert step_of(engine, run.id, "third").attempts == 2

    def test_it_gets_its_retries_and_its_timeout_anew(self, engine: WorkflowEngine, scene: Scene) -> None:
        scene.door.set()
        scene.failing = {"first"}
        run = engine.start_workflow("scene", retries=1, timeout="1 hour")
        with working(engine):
            failed = engine.wait_for_run(run.id, timeout=20)
        assert failed.retry_count == 1
        retried = engine.retry_workflow(run.id)
        assert retried.retry_count == 0
        assert retried.timeout_at is not None
        assert run.timeout_at is not None
        assert retried.timeout_at == retried.updated_at + timedelta(hours=1)
        assert retried.timeout_at > run.timeout_at
        engine.worker().run_until_idle()
        # It failed again, and has an automatic retry before it.
        again = engine.get_run(run.id)
        assert (again.status, again.retry_count) == (PENDING, 1)
        assert scene.calls == ["first"] * 3

    def test_a_cancelled_run_goes_on_with_what_it_waited_for_under_the_same_deadline(
        self, engine: WorkflowEngine
    ) -> None:
        run_id = waiting_run(engine, 3600)
        deadline = step_of(engine, run_id, "event").wake_at
        engine.cancel_workflow(run_id)
        assert engine.retry_workflow(run_id).status is PENDING
        engine.worker().run_until_idle()
        assert engine.get_run(run_id).status is WAITING
        assert step_of(engine, run_id, "event").wake_at == deadline
        engine.trigger_event(run_id, "go", "after all")
        engine.worker().run_until_idle()
        assert engine.get_run(run_id).output == "after all"

    def test_a_cancelled_run_that_is_still_claimed_goes_on_once_its_worker_let_go(
        self, engine: WorkflowEngine, scene: Scene
    ) -> None:
        with working(engine):
            run_id = scene.start()
            engine.cancel_workflow(run_id)
            assert engine.retry_workflow(run_id).status is PENDING
            # Nobody else may have it yet: its step is still under way.
            with HandWorker(engine.conninfo, ["scene"]) as other:
                assert other.claim().runs == ()
                other.die()
            scene.door.set()
            assert engine.wait_for_run(run_id, timeout=20).output == ["first", "second", "third"]
        assert scene.calls == ["first", "second", "third"]

    @pytest.mark.parametrize("operation", ["pause", "cancel"])
    def test_a_run_that_was_retried_while_claimed_can_be_paused_and_cancelled(
        self, engine: WorkflowEngine, scene: Scene, operation: str
    ) -> None:
        with working(engine):
            run_id = scene.start()
            engine.cancel_workflow(run_id)
            engine.retry_workflow(run_id)
            if operation == "pause":
                engine.pause_workflow(run_id)
            else:
                engine.cancel_workflow(run_id)
            scene.door.set()
            scene.let_go(run_id)
            assert scene.run(run_id).status is (PAUSED if operation == "pause" else CANCELLED)
            assert scene.calls == ["first", "second"]
            (engine.resume_workflow if operation == "pause" else engine.retry_workflow)(run_id)
            assert engine.wait_for_run(run_id, timeout=20).output == ["first", "second", "third"]
        assert scene.calls == ["first", "second", "third"]

    def test_a_step_that_failed_after_the_run_was_cancelled_is_called_again_on_retry(
        self, engine: WorkflowEngine, scene: Scene
    ) -> None:
        scene.failing = {"second"}
        with working(engine):
            run_id = scene.start()
            engine.cancel_workflow(run_id)
            scene.door.set()
            scene.let_go(run_id)
            assert scene.run(run_id).status is CANCELLED
            assert scene.steps(run_id) == {"first": "completed", "second": "failed"}
            scene.failing = set()
            engine.retry_workflow(run_id)
            assert engine.wait_for_run(run_id, timeout=20).output == ["first", "second", "third"]
        assert scene.calls == ["first", "second", "second", "third"]

    def test_a_step_that_failed_after_the_run_was_out_of_time_is_called_again_on_retry(
        self, engine: WorkflowEngine, scene: Scene
    ) -> None:
        scene.failing = {"second"}
        with working(engine, poll_interval=0.1):
            run = engine.start_workflow("scene", timeout="1 hour")
            assert scene.inside.wait(20)
            run_out_of_time(engine.conninfo)
            timed_out = engine.wait_for_run(run.id, timeout=20)
            assert timed_out.error is not None
            assert timed_out.error["type"] == "WorkflowTimeoutError"
            scene.door.set()
            scene.let_go(run.id)
            assert scene.run(run.id).error == {**timed_out.error, "step_id": "second"}
            scene.failing = set()
            engine.retry_workflow(run.id)
            assert engine.wait_for_run(run.id, timeout=20).output == ["first", "second", "third"]
        assert scene.calls == ["first", "second", "second", "third"]

    def test_a_failure_that_the_handler_caught_is_not_taken_back(self, engine: WorkflowEngine) -> None:
        calls: list[str] = []

        def call(name: str, fails: bool) -> str:
            calls.append(name)
            if fails:
                raise ValueError(name)
            return name

        @workflow("catcher")
        def catcher(step: Step) -> Steps[str]:
            with suppress(StepFailedError):
                yield step.run("caught", call, "caught", True)
            return (yield from step.run("uncaught", call, "uncaught", len(calls) < 2))

        engine.register_workflow(catcher)
        run = engine.start_workflow(catcher)
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).status is FAILED
        engine.retry_workflow(run.id)
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).output == "uncaught"
        assert calls == ["caught", "uncaught", "uncaught"]


class TestWhereARunStands:
    """`current_step_id`, when the run does not move."""

    def test_a_run_that_its_handler_failed_stands_at_the_last_step_it_reached(self, engine: WorkflowEngine) -> None:
        @workflow("fussy")
        def fussy(step: Step) -> Steps[None]:
            yield step.run("first", lambda: None)
            yield step.run("second", lambda: None)
            raise ValueError("not to my taste")

        engine.register_workflow(fussy)
        run = engine.start_workflow(fussy)
        engine.worker().run_until_idle()
        failed = engine.get_run(run.id)
        assert (failed.status, failed.current_step_id) == (FAILED, "second")
        assert failed.error is not None
        assert failed.error["step_id"] is None

    def test_a_run_that_failed_in_a_step_stands_there(self, engine: WorkflowEngine, scene: Scene) -> None:
        scene.door.set()
        scene.failing = {"second"}
        run = engine.start_workflow("scene")
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).current_step_id == "second"

    def test_a_run_that_is_out_of_time_stands_at_the_last_step_it_reached(
        self, engine: WorkflowEngine, scene: Scene
    ) -> None:
        with working(engine, poll_interval=0.1):
            run = engine.start_workflow("scene", timeout="1 hour")
            assert scene.inside.wait(20)
            run_out_of_time(engine.conninfo)
            stood = engine.wait_for_run(run.id, timeout=20).current_step_id
            scene.door.set()
        assert stood == "first"


class TestFastForward:
    def test_a_wait_for_an_event_ends_with_the_data(self, engine: WorkflowEngine) -> None:
        run_id = waiting_run(engine)
        assert engine.fast_forward_workflow(run_id, {"by": "hand"}).status is PENDING
        engine.worker().run_until_idle()
        assert engine.get_run(run_id).output == {"by": "hand"}

    def test_an_event_that_comes_later_is_left_for_the_next_wait(self, engine: WorkflowEngine) -> None:
        run_id = waiting_run(engine)
        engine.fast_forward_workflow(run_id)
        engine.trigger_event(run_id, "go", "real")
        engine.worker().run_until_idle()
        assert engine.get_run(run_id).output == {}
        assert value(engine.conninfo, "select consumed_at from pgworkflows.events") is None

    @pytest.mark.parametrize("kind", ["delay", "wait_until", "pause"])
    def test_a_timer_and_a_pause_step_end_at_once(self, engine: WorkflowEngine, kind: str) -> None:
        @workflow("long")
        def long(step: Step) -> Steps[Any]:
            if kind == "delay":
                return (yield step.delay("delay", "3 days"))
            if kind == "pause":
                return (yield step.pause("pause"))
            return (yield step.wait_until("wait_until", "2999-01-01T00:00:00Z"))

        engine.register_workflow(long)
        run = engine.start_workflow(long)
        engine.worker().run_until_idle()
        engine.fast_forward_workflow(run.id, "ignored: these have no result")
        engine.worker().run_until_idle()
        done = engine.get_run(run.id)
        assert (done.status, done.output) == (COMPLETED, None)

    def test_a_poll_ends_with_the_data_as_if_it_had_found_it(self, engine: WorkflowEngine) -> None:
        @workflow("watch")
        def watch(step: Step) -> Steps[Any]:
            found = yield from step.poll("look", lambda: None, interval="1 hour")
            return [found.timed_out, found.data]

        engine.register_workflow(watch)
        run = engine.start_workflow(watch)
        engine.worker().run_until_idle()
        engine.fast_forward_workflow(run.id, [1, 2])
        engine.worker().run_until_idle()
        assert engine.get_run(run.id).output == [False, [1, 2]]

    def test_of_a_pending_and_of_a_finished_run_it_changes_nothing(self, engine: WorkflowEngine) -> None:
        engine.register_workflow(wait)
        pending = engine.start_workflow(wait)
        assert engine.fast_forward_workflow(pending.id, 1) == pending
        run_id = waiting_run(engine)
        cancelled = engine.cancel_workflow(run_id)
        assert engine.fast_forward_workflow(run_id, 1) == cancelled
        assert step_of(engine, run_id, "event").output is None

    def test_of_a_running_run_it_changes_nothing(self, engine: WorkflowEngine, scene: Scene) -> None:
        with working(engine):
            run_id = scene.start()
            assert engine.fast_forward_workflow(run_id, 1).status is RUNNING
            scene.door.set()
            assert engine.wait_for_run(run_id, timeout=20).output == ["first", "second", "third"]

    def test_an_operators_pause_is_not_forwarded(self, engine: WorkflowEngine) -> None:
        run_id = waiting_run(engine)
        paused = engine.pause_workflow(run_id)
        assert engine.fast_forward_workflow(run_id, 1) == paused
        assert step_of(engine, run_id, "event").status is StepStatus.WAITING

    def test_a_run_that_waits_for_its_retry_is_not_forwarded(self, engine: WorkflowEngine) -> None:
        def fail() -> None:
            raise ValueError

        @workflow("retrying")
        def retrying(step: Step) -> Steps[None]:
            yield step.run("fail", fail).retry(attempts=2, wait="1 hour")

        engine.register_workflow(retrying)
        run = engine.start_workflow(retrying)
        engine.worker().run_until_idle()
        before = engine.get_run(run.id)
        assert engine.fast_forward_workflow(run.id, 1) == before
        assert step_of(engine, run.id, "fail").status is StepStatus.RETRYING


class TestRefusals:
    """What no status allows changes nothing and says why."""

    @staticmethod
    def in_status(engine: WorkflowEngine, status: RunStatus) -> UUID:
        run_id = waiting_run(engine)
        match status:
            case RunStatus.PAUSED:
                engine.pause_workflow(run_id)
            case RunStatus.CANCELLED:
                engine.cancel_workflow(run_id)
            case RunStatus.COMPLETED:
                engine.trigger_event(run_id, "go")
                engine.worker().run_until_idle()
            case RunStatus.FAILED:
                engine.unregister_workflow("wait")

                @workflow("wait")
                def changed(step: Step) -> Steps[None]:
                    yield step.delay("something else", 1)

                engine.register_workflow(changed)
                engine.trigger_event(run_id, "go")
                engine.worker().run_until_idle()
            case RunStatus.PENDING:
                engine.trigger_event(run_id, "go")
            case _:
                pass
        assert engine.get_run(run_id).status is status
        return run_id

    @pytest.mark.parametrize(
        ("status", "refused"),
        [
            (PENDING, "resume retry"),
            (WAITING, "resume retry"),
            (PAUSED, "pause retry"),
            (COMPLETED, "pause resume cancel retry"),
            (FAILED, "pause resume cancel"),
            (CANCELLED, "pause resume cancel"),
        ],
    )
    def test_an_operation_that_the_status_does_not_allow_is_refused(
        self, engine: WorkflowEngine, status: RunStatus, refused: str
    ) -> None:
        run_id = self.in_status(engine, status)
        before = engine.get_run(run_id), rows(engine.conninfo, "select * from pgworkflows.queue")
        operations: dict[str, Callable[[UUID], object]] = {
            "pause": engine.pause_workflow,
            "resume": engine.resume_workflow,
            "cancel": engine.cancel_workflow,
            "retry": engine.retry_workflow,
        }
        for name in refused.split():
            with pytest.raises(InvalidStatusError, match=f"is {status}; only"):
                operations[name](run_id)
        assert (engine.get_run(run_id), rows(engine.conninfo, "select * from pgworkflows.queue")) == before

    def test_a_running_run_can_be_neither_resumed_nor_retried(self, engine: WorkflowEngine, scene: Scene) -> None:
        with working(engine):
            run_id = scene.start()
            for refused in (engine.resume_workflow, engine.retry_workflow):
                with pytest.raises(InvalidStatusError, match="is running; only"):
                    refused(run_id)
            scene.door.set()
            assert engine.wait_for_run(run_id, timeout=20).output == ["first", "second", "third"]


def test_what_was_asked_of_an_earlier_claim_is_not_asked_of_a_later_one(
    engine: WorkflowEngine, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat's answer may be old when it is read: the run was cancelled, let go, retried and claimed again."""
    honest_beat = claims.beat
    stale: list[claims.Control] = []

    def beat(*args: Any) -> claims.Beat:
        honest = honest_beat(*args)
        return claims.Beat(honest.alive, (*honest.controls, *stale), honest.peers)

    monkeypatch.setattr(claims, "beat", beat)
    with working(engine):
        run_id = scene.start()
        claim_id = value(engine.conninfo, "select claim_id from pgworkflows.queue")
        stale.append(claims.Control(str(run_id), claim_id - 1, "cancel"))
        await_heartbeats(engine.conninfo, 2)
        assert not scene.told_to_stop.is_set()
        scene.door.set()
        engine.wait_for_run(run_id, timeout=20)
    assert value(engine.conninfo, "select last_value from pgworkflows.claims") >= claim_id
    assert scene.calls == ["first", "second", "third"]
