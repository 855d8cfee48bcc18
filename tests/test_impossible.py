"""What must be impossible: one test at least for each item of the promise, on a running worker and a real server.

The finer interleavings are in test_fencing, test_take_over, test_waits and test_control.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from waiting import until
from working import HandWorker, make_due, rows, value, worker_processes, working

from pgworkflows import (
    InvalidStatusError,
    RunStatus,
    Step,
    StepRecord,
    Steps,
    StepStatus,
    Workflow,
    WorkflowEngine,
    WorkflowRun,
    current_step,
    heartbeat,
    workflow,
    workflow_ref,
)


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url) as engine:
        yield engine


class Log:
    """What was called, in order; and what fails."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: set[str] = set()

    def __call__(self, name: str) -> str:
        self.calls.append(name)
        if name in self.failing:
            raise ValueError(f"{name} fails")
        return name


@pytest.fixture
def log() -> Log:
    return Log()


def work(engine: WorkflowEngine) -> None:
    """Let a new worker, as after a deploy, do what there is to do."""
    engine.worker().run_until_idle(timeout=30)


def step_of(engine: WorkflowEngine, run_id: UUID, step_id: str) -> StepRecord:
    [found] = [step for step in engine.get_steps(run_id) if step.step_id == step_id]
    return found


def failure(run: WorkflowRun) -> str:
    """The class of the error that the run has failed with."""
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    error_type = run.error["type"]
    assert isinstance(error_type, str)
    return error_type


class TestACompletedStepRunningAgain:
    def test_through_a_crash(self, engine: WorkflowEngine) -> None:
        with worker_processes(engine.conninfo) as processes:
            first = processes.start()
            run = engine.start_workflow(workflow_ref("story"), {"steps": ["a", "b", "c"], "gated": ["b"]})
            until(lambda: len(processes.calls()) == 2, "the run is in its second step")
            first.kill()
            processes.open_gate("b")
            second = processes.start()
            assert engine.wait_for_run(run.id, timeout=30).output == [first.pid, second.pid, second.pid]
            assert [step for step, _ in processes.calls()] == ["a", "b", "b", "c"]

    def test_through_a_retry(self, engine: WorkflowEngine, log: Log) -> None:
        @workflow("plan", retries=1)
        def plan(step: Step) -> Steps[list[str]]:
            a = yield step.run("a", log, "a")
            b = yield step.run("b", log, "b")
            return [a, b]

        engine.register_workflow(plan)
        log.failing = {"b"}
        run = engine.start_workflow(plan)
        work(engine)
        assert engine.get_run(run.id).status is RunStatus.PENDING
        make_due(engine.conninfo)
        work(engine)
        assert engine.get_run(run.id).status is RunStatus.FAILED
        engine.retry_workflow(run.id)
        log.failing = set()
        work(engine)
        assert engine.get_run(run.id).output == ["a", "b"]
        assert log.calls == ["a", "b", "b", "b"]

    def test_through_a_pause_and_an_event(self, engine: WorkflowEngine, log: Log) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[list[Any]]:
            a = yield step.run("a", log, "a")
            first = yield step.wait_for("first", "go")
            b = yield step.run("b", log, "b")
            second = yield step.wait_for("second", "go")
            return [a, first, b, second]

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        for number in (1, 2):
            work(engine)
            engine.pause_workflow(run.id)
            engine.trigger_event(run.id, "something else")
            engine.trigger_event(run.id, "go", number)
            work(engine)
            engine.resume_workflow(run.id)
            work(engine)
        assert engine.get_run(run.id).output == ["a", 1, "b", 2]
        assert log.calls == ["a", "b"]

    def test_through_a_deploy(self, engine: WorkflowEngine, log: Log) -> None:
        """The code changes behind what was done, which is what a deploy may do."""

        @workflow("plan")
        def before(step: Step) -> Steps[str]:
            yield step.run("a", log, "a")
            yield step.wait_for("go", "go")
            return "old"

        @workflow("plan")
        def after(step: Step) -> Steps[str]:
            yield step.run("a", log, "a, mended")
            yield step.wait_for("go", "go")
            yield step.run("b", log, "b, new")
            return "new"

        engine.register_workflow(before)
        run = engine.start_workflow(before)
        work(engine)
        with WorkflowEngine(engine.conninfo, workflows=[after]) as deployed:
            deployed.trigger_event(run.id, "go")
            work(deployed)
            assert deployed.get_run(run.id).output == "new"
        assert log.calls == ["a", "b, new"]


class TestALostEvent:
    @staticmethod
    def two_waits(log: Log) -> Any:
        @workflow("plan")
        def plan(step: Step) -> Steps[list[Any]]:
            yield step.run("before", log, "before")
            first = yield step.wait_for("first", "go")
            second = yield step.wait_for("second", "go")
            return [first, second]

        return plan

    def test_sent_before_the_wait_it_is_delivered_once(self, engine: WorkflowEngine, log: Log) -> None:
        engine.register_workflow(self.two_waits(log))
        run = engine.start_workflow("plan")
        engine.trigger_event(run.id, "go", 1)
        work(engine)
        assert engine.get_run(run.id).current_step_id == "second"
        engine.trigger_event(run.id, "go", 2)
        work(engine)
        assert engine.get_run(run.id).output == [1, 2]

    def test_sent_during_the_claim(self, engine: WorkflowEngine) -> None:
        """After the worker has read the mailbox, before it says that the run waits."""

        def send() -> None:
            engine.trigger_event(current_step().run_id, "go", "now")

        @workflow("plan")
        def plan(step: Step) -> Steps[Any]:
            yield step.run("send", send)
            return (yield step.wait_for("go", "go"))

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        assert engine.get_run(run.id).output == "now"

    def test_sent_twice_both_are_delivered(self, engine: WorkflowEngine, log: Log) -> None:
        engine.register_workflow(self.two_waits(log))
        run = engine.start_workflow("plan")
        work(engine)
        engine.trigger_event(run.id, "go", 1)
        engine.trigger_event(run.id, "go", 2)
        work(engine)
        assert engine.get_run(run.id).output == [1, 2]

    def test_sent_to_a_paused_run(self, engine: WorkflowEngine, log: Log) -> None:
        engine.register_workflow(self.two_waits(log))
        run = engine.start_workflow("plan")
        engine.pause_workflow(run.id)
        engine.trigger_event(run.id, "go", 1)
        work(engine)
        assert log.calls == []
        engine.resume_workflow(run.id)
        work(engine)
        engine.pause_workflow(run.id)
        engine.trigger_event(run.id, "go", 2)
        engine.resume_workflow(run.id)
        work(engine)
        assert engine.get_run(run.id).output == [1, 2]

    def test_sent_while_its_worker_dies(self, engine: WorkflowEngine, log: Log) -> None:
        engine.register_workflow(self.two_waits(log))
        run = engine.start_workflow("plan")
        engine.trigger_event(run.id, "go", 1)
        with HandWorker(engine.conninfo, ["plan"]) as victim:
            assert len(victim.claim_one().events) == 1
            engine.trigger_event(run.id, "go", 2)
            victim.die()
            assert victim.take_over() == 1
        work(engine)
        assert engine.get_run(run.id).output == [1, 2]


class TestTwoWorkersWritingToOneRun:
    def test_of_many_runs_and_several_workers_every_step_is_done_by_one(self, engine: WorkflowEngine) -> None:
        calls: Counter[tuple[UUID, str]] = Counter()
        lock = threading.Lock()

        def count() -> str:
            with lock:
                calls[current_step().run_id, current_step().step_id] += 1
            return threading.current_thread().name

        @workflow("plan")
        def plan(step: Step) -> Steps[int]:
            for number in range(4):
                yield step.run(f"step {number}", count)
            yield step.delay("nap", 0.01)
            for number in range(4, 6):
                yield step.run(f"step {number}", count)
            return 6

        engine.register_workflow(plan)
        with contextlib.ExitStack() as workers:
            for _ in range(3):
                workers.enter_context(working(engine, threads=3))
            runs = [engine.start_workflow(plan) for _ in range(40)]
            for run in runs:
                assert engine.wait_for_run(run.id, timeout=30).output == 6
        assert calls == {(run.id, f"step {number}"): 1 for run in runs for number in range(6)}
        assert value(engine.conninfo, "select max(attempts) from pgworkflows.steps where kind = 'run'") == 1

    def test_a_claimed_run_is_given_to_nobody_else(self, engine: WorkflowEngine) -> None:
        rows(engine.conninfo, "select pgworkflows.start_workflow('plan')")
        with HandWorker(engine.conninfo, ["plan"]) as first, HandWorker(engine.conninfo, ["plan"]) as second:
            first.claim_one()
            assert second.claim().runs == ()
            assert second.take_over() == 0


class TestADeadlineThatMoves:
    def test_when_the_run_is_woken_for_another_reason(self, engine: WorkflowEngine) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[Any]:
            return (yield step.wait_for("go", "go", timeout="1 hour"))

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        deadline = step_of(engine, run.id, "go").wake_at
        assert deadline is not None

        engine.trigger_event(run.id, "another event")
        work(engine)
        assert step_of(engine, run.id, "go").wake_at == deadline

        engine.pause_workflow(run.id)
        engine.resume_workflow(run.id)
        work(engine)
        assert step_of(engine, run.id, "go").wake_at == deadline

        engine.cancel_workflow(run.id)
        engine.retry_workflow(run.id)
        work(engine)
        assert step_of(engine, run.id, "go").wake_at == deadline

        # A worker dies with it, and the next replays it.
        engine.pause_workflow(run.id)
        engine.resume_workflow(run.id)
        with HandWorker(engine.conninfo, ["plan"]) as victim:
            victim.claim_one()
            victim.die()
            victim.take_over()
        work(engine)
        assert step_of(engine, run.id, "go").wake_at == deadline
        assert value(engine.conninfo, "select wake_at from pgworkflows.queue") == deadline
        assert engine.get_run(run.id).status is RunStatus.WAITING


class TestARelativeTimeThatRestarts:
    @pytest.mark.parametrize("kind", ["delay", "poll", "retry"])
    def test_on_replay(self, engine: WorkflowEngine, log: Log, kind: str) -> None:
        log.failing = {"fail"}

        @workflow("plan")
        def plan(step: Step) -> Steps[None]:
            match kind:
                case "delay":
                    yield step.delay("a delay", "1 hour")
                case "poll":
                    yield step.poll("a poll", lambda: None, interval="1 hour", timeout="90 minutes")
                case _:
                    yield step.run("a retry", log, "fail").retry(attempts=2, wait="1 hour")

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        times = "select wake_at, deadline_at from pgworkflows.steps"
        before = rows(engine.conninfo, times)
        assert before[0][0] is not None
        assert (before[0][1] is not None) == (kind == "poll")
        for _ in range(2):
            engine.pause_workflow(run.id)
            engine.resume_workflow(run.id)
            work(engine)
            assert rows(engine.conninfo, times) == before
        assert value(engine.conninfo, "select wake_at from pgworkflows.queue") == before[0][0]

    def test_of_a_poll_that_is_called_again(self, engine: WorkflowEngine) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[None]:
            yield step.poll("poll", lambda: None, interval="1 second", timeout="90 minutes")

        engine.register_workflow(plan)
        engine.start_workflow(plan)
        work(engine)
        deadline = value(engine.conninfo, "select deadline_at from pgworkflows.steps")
        make_due(engine.conninfo)
        work(engine)
        assert rows(engine.conninfo, "select deadline_at, attempts from pgworkflows.steps") == [(deadline, 2)]

    def test_of_a_run_that_is_taken_over(self, engine: WorkflowEngine) -> None:
        rows(engine.conninfo, "select pgworkflows.start_workflow('plan', timeout => '1 hour')")
        timeout_at = value(engine.conninfo, "select timeout_at from pgworkflows.queue")
        with HandWorker(engine.conninfo, ["plan"]) as victim:
            victim.claim_one()
            victim.die()
            victim.take_over()
        assert value(engine.conninfo, "select timeout_at from pgworkflows.queue") == timeout_at
        assert value(engine.conninfo, "select timeout_at from pgworkflows.runs") == timeout_at


class TestARunThatNeverCompletes:
    """Completion is the generator's return, not the last step in the source."""

    @staticmethod
    def assert_completed(engine: WorkflowEngine, run_id: UUID, output: object) -> None:
        done = engine.get_run(run_id)
        assert (done.status, done.output) == (RunStatus.COMPLETED, output)
        assert engine.check_progress(run_id).completion_percentage == 100

    @pytest.mark.parametrize("length", [0, 1, 3])
    def test_because_it_ends_in_a_dynamic_loop(self, engine: WorkflowEngine, log: Log, length: int) -> None:
        @workflow("plan")
        def plan(step: Step, input: int) -> Steps[int]:
            yield step.run("first", log, "first")
            for number in range(input):
                yield step.run(f"item {number}", log, f"item {number}")
            return input

        engine.register_workflow(plan)
        run = engine.start_workflow(plan, length)
        work(engine)
        self.assert_completed(engine, run.id, length)
        assert len(log.calls) == 1 + length

    @pytest.mark.parametrize("last", [True, False])
    def test_because_its_last_step_stands_in_a_branch(self, engine: WorkflowEngine, log: Log, last: bool) -> None:
        @workflow("plan")
        def plan(step: Step, input: bool) -> Steps[str]:
            yield step.run("first", log, "first")
            if input:
                yield step.run("last", log, "last")
            return "done"

        engine.register_workflow(plan)
        run = engine.start_workflow(plan, last)
        work(engine)
        self.assert_completed(engine, run.id, "done")
        assert log.calls == (["first", "last"] if last else ["first"])

    def test_because_it_returns_early_or_without_a_step(self, engine: WorkflowEngine, log: Log) -> None:
        @workflow("plan")
        def plan(step: Step, input: str) -> Steps[str]:
            if input == "at once":
                return "nothing to do"
            yield step.wait_for("wait", "go")
            if input == "early":
                return "early"
            yield step.run("last", log, "last")
            return "late"

        engine.register_workflow(plan)
        at_once, early = engine.start_workflow(plan, "at once"), engine.start_workflow(plan, "early")
        engine.trigger_event(early.id, "go")
        work(engine)
        self.assert_completed(engine, at_once.id, "nothing to do")
        self.assert_completed(engine, early.id, "early")
        assert log.calls == []


class TestASuspendOrACancelThatIsSwallowed:
    def test_by_except_exception(self, engine: WorkflowEngine, log: Log) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[Any]:
            try:
                got = yield step.wait_for("wait", "go")
            except Exception:
                got = yield step.run("swallowed", log, "swallowed")
            return got

        engine.register_workflow(plan)
        goes_on, cancelled = engine.start_workflow(plan), engine.start_workflow(plan)
        work(engine)
        assert [engine.get_run(run.id).status for run in (goes_on, cancelled)] == [RunStatus.WAITING] * 2
        engine.cancel_workflow(cancelled.id)
        engine.trigger_event(goes_on.id, "go", 5)
        work(engine)
        assert engine.get_run(goes_on.id).output == 5
        assert engine.get_run(cancelled.id).status is RunStatus.CANCELLED
        assert log.calls == []

    @pytest.mark.parametrize("caught", [Exception, BaseException])
    def test_while_it_runs(self, engine: WorkflowEngine, log: Log, caught: type[BaseException]) -> None:
        inside, door = threading.Event(), threading.Event()

        def held() -> None:
            inside.set()
            assert door.wait(20)

        @workflow("plan")
        def plan(step: Step) -> Steps[str]:
            try:
                yield step.run("held", held)
                yield step.run("next", log, "next")
            except caught:
                yield step.run("swallowed", log, "swallowed")
            return "done"

        engine.register_workflow(plan)
        with working(engine):
            run = engine.start_workflow(plan)
            assert inside.wait(20)
            engine.cancel_workflow(run.id)
            door.set()
            until(lambda: not rows(engine.conninfo, "select 1 from pgworkflows.queue"), "the worker lets go")
        assert engine.get_run(run.id).status is RunStatus.CANCELLED
        assert log.calls == []
        assert [step.step_id for step in engine.get_steps(run.id)] == ["held"]

    def test_even_by_a_loop_around_except_base_exception(self, engine: WorkflowEngine, log: Log) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[Any]:
            for number in range(5):
                try:
                    return (yield step.wait_for(f"wait {number}", "go"))
                except BaseException:
                    log(f"swallowed {number}")
            return "gave up"

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        assert engine.get_run(run.id).status is RunStatus.WAITING
        assert [step.step_id for step in engine.get_steps(run.id)] == ["wait 0"]
        engine.trigger_event(run.id, "go", "at last")
        work(engine)
        assert engine.get_run(run.id).output == "at last"


class TestAFinallyThatBreaksASuspend:
    def test_by_a_yield_in_it(self, engine: WorkflowEngine, log: Log) -> None:
        """It runs in the memory of the one execution, as `finally` does, but asks for nothing; at the end of the run
        it is a step like any other."""

        @workflow("plan")
        def plan(step: Step) -> Steps[Any]:
            try:
                return (yield step.wait_for("wait", "go"))
            finally:
                yield step.run("clean up", log, "clean up")

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        assert engine.get_run(run.id).status is RunStatus.WAITING
        assert log.calls == []
        assert [step.step_id for step in engine.get_steps(run.id)] == ["wait"]
        engine.pause_workflow(run.id)
        engine.resume_workflow(run.id)
        work(engine)
        assert log.calls == []
        engine.trigger_event(run.id, "go", 1)
        work(engine)
        assert engine.get_run(run.id).output == 1
        assert log.calls == ["clean up"]
        assert [step.step_id for step in engine.get_steps(run.id)] == ["wait", "clean up"]

    def test_by_an_error_in_it(self, engine: WorkflowEngine) -> None:
        closing = True

        @workflow("plan")
        def plan(step: Step) -> Steps[Any]:
            try:
                return (yield step.wait_for("wait", "go"))
            finally:
                if closing:
                    raise RuntimeError("while the run is let go")

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        assert engine.get_run(run.id).status is RunStatus.WAITING
        closing = False
        engine.trigger_event(run.id, "go", 1)
        work(engine)
        assert engine.get_run(run.id).output == 1


class TestTwoStepsThatShareAnId:
    def test_do_not_share_a_result(self, engine: WorkflowEngine, log: Log) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[list[str]]:
            got: list[str] = []
            for name in ("first", "second"):
                same = "the same id"
                got.append((yield step.run(same, log, name)))
            return got

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        failed = engine.get_run(run.id)
        assert failure(failed) == "DuplicateStepError"
        assert failed.error is not None
        assert "'the same id'" in failed.error["message"]
        assert log.calls == ["first"]

    def test_also_when_the_first_is_history(self, engine: WorkflowEngine, log: Log) -> None:
        @workflow("plan")
        def plan(step: Step) -> Steps[list[str]]:
            same = "the same id"
            first = yield step.run(same, log, "first")
            yield step.wait_for("wait", "go")
            return [first, (yield step.run(same, log, "second"))]

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        work(engine)
        engine.trigger_event(run.id, "go")
        work(engine)
        assert failure(engine.get_run(run.id)) == "DuplicateStepError"
        assert log.calls == ["first"]
        assert step_of(engine, run.id, "the same id").output == "first"


ORIGINAL = ["run a", "run b", "wait go", "run c"]


def workflow_of(shape: list[str], log: Log, **options: Any) -> Workflow[None, str]:
    """A workflow of these commands, one after the other."""

    def handler(step: Step) -> Steps[str]:
        for kind, name in map(str.split, shape):
            match kind:
                case "run":
                    yield step.run(name, log, name)
                case "delay":
                    yield step.delay(name, 0)
                case _:
                    yield step.wait_for(name, "go")
        return "done"

    return workflow("plan", **options)(handler)


class TestAWorkflowThatChangedUnderARun:
    @pytest.mark.parametrize(
        "shape",
        [
            pytest.param(["run A", "run b", "wait go", "run c"], id="another id"),
            pytest.param(["delay a", "run b", "wait go", "run c"], id="another kind"),
            pytest.param(["run z", "run a", "run b", "wait go", "run c"], id="a step before"),
            pytest.param(["run a", "run b", "run z", "wait go", "run c"], id="a step before the wait"),
            pytest.param(["run a", "wait go", "run c"], id="a step less"),
            pytest.param(["run b", "run a", "wait go", "run c"], id="the other order"),
            pytest.param(["run a"], id="an early end"),
            pytest.param(["run a", "run b"], id="an end before the wait"),
            pytest.param([], id="nothing at all"),
        ],
    )
    def test_writes_no_wrong_history_and_the_run_goes_on_after_it_is_mended(
        self, engine: WorkflowEngine, log: Log, shape: list[str]
    ) -> None:
        engine.register_workflow(workflow_of(ORIGINAL, log, retries=3))
        run = engine.start_workflow("plan")
        work(engine)
        history = engine.get_steps(run.id)
        assert [step.status for step in history] == [StepStatus.COMPLETED, StepStatus.COMPLETED, StepStatus.WAITING]

        with WorkflowEngine(engine.conninfo, workflows=[workflow_of(shape, log)]) as deployed:
            deployed.trigger_event(run.id, "go", 1)
            work(deployed)
            failed = deployed.get_run(run.id)
            assert failure(failed) == "NonDeterminismError"
            assert failed.retry_count == 0
            assert failed.error is not None
            assert "retry the run" in failed.error["message"]
            assert deployed.get_steps(run.id) == history
            assert value(deployed.conninfo, "select consumed_at from pgworkflows.events") is None
            assert log.calls == ["a", "b"]

        engine.retry_workflow(run.id)
        work(engine)
        assert engine.get_run(run.id).output == "done"
        assert log.calls == ["a", "b", "c"]
        assert step_of(engine, run.id, "go").output == 1


class Trouble:
    """Everything that can happen to runs and workers from outside, at random, until told to stop."""

    def __init__(self, engine: WorkflowEngine, runs: list[UUID], seed: int) -> None:
        self._engine = engine
        self._runs = runs
        self._chance = random.Random(seed)
        self.over = threading.Event()

    def make(self) -> None:
        while not self.over.is_set():
            run_id = self._chance.choice(self._runs)
            mischief = self._chance.choices(
                [
                    lambda: self._engine.pause_workflow(run_id),  # noqa: B023  (called in this round)
                    lambda: self._engine.resume_workflow(run_id),  # noqa: B023
                    lambda: self._engine.cancel_workflow(run_id),  # noqa: B023
                    lambda: self._engine.retry_workflow(run_id),  # noqa: B023
                    lambda: self._engine.trigger_event(run_id, "go"),  # noqa: B023
                    lambda: self._engine.fast_forward_workflow(run_id),  # noqa: B023
                    self._end_a_session,
                    self._bury_a_worker,
                ],
                weights=[20, 30, 6, 14, 30, 5, 2, 2],
            )[0]
            with contextlib.suppress(InvalidStatusError):
                mischief()
            self.over.wait(self._chance.uniform(0, 0.01))

    def _end_a_session(self) -> None:
        """Of a worker: its claims, its journal, its heartbeat, or its ear."""
        rows(
            self._engine.conninfo,
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
            "and pid <> pg_backend_pid() and application_name = 'pgworkflows' "
            "and query ~ 'claim|flush|beat|listen' order by random() limit 1",
        )

    def _bury_a_worker(self) -> None:
        """One that lives: as if its peers had taken it for dead."""
        rows(
            self._engine.conninfo,
            "delete from pgworkflows.workers where id = (select id from pgworkflows.workers order by random() limit 1)",
        )


def test_nothing_of_this_happens_when_everything_happens_at_once(
    engine: WorkflowEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "TAKE_OVER_EVERY_S", 0.2)
    wrong: list[str] = []

    def call(previous: str | None) -> str:
        """A result that no other call has; that of the step before must be what is stored of it, now and for ever."""
        current = current_step()
        stored = dict(
            rows(
                database_url,
                "select step_id, output #>> '{}' from pgworkflows.steps where run_id = %s and status = 'completed'",
                current.run_id,
            )
        )
        number = int(current.step_id.split()[1])
        if current.step_id in stored:
            wrong.append(f"{current.run_id} runs {current.step_id} again")
        if previous is not None and stored.get(f"call {number - 1}") != previous:
            wrong.append(f"{current.run_id} goes on from {previous}, which is not stored: {stored}")
        threading.Event().wait(random.uniform(0, 0.03))
        return f"{current.step_id} {uuid4()}"

    @workflow("plan")
    def plan(step: Step) -> Steps[list[str]]:
        results: list[str] = []
        for number in range(12):
            results.append((yield step.run(f"call {number}", call, results[-1] if results else None)))
            if number % 3 == 2:
                yield step.wait_for(f"event {number}", "go", timeout=0.3)
                yield step.delay(f"nap {number}", 0.01)
        return results

    engine.register_workflow(plan)
    seed = random.randrange(10**6)
    with contextlib.ExitStack() as workers:
        for _ in range(2):
            workers.enter_context(working(engine, threads=3, poll_interval=0.2))
        runs = [engine.start_workflow(plan).id for _ in range(10)]
        trouble = Trouble(engine, runs, seed)
        maker = threading.Thread(target=trouble.make)
        maker.start()
        trouble.over.wait(2)  # no waiting for a thing: that long it lasts
        trouble.over.set()
        maker.join(20)
        for run_id in runs:
            with contextlib.suppress(InvalidStatusError):
                engine.resume_workflow(run_id)
            with contextlib.suppress(InvalidStatusError):
                engine.retry_workflow(run_id)
        for run_id in runs:
            done = engine.wait_for_run(run_id, timeout=30)
            assert done.status is RunStatus.COMPLETED, seed
            assert done.output == [step.output for step in engine.get_steps(run_id) if step.kind == "run"], seed
            assert len(done.output) == 12, seed
    assert wrong == [], seed
    assert rows(database_url, "select 1 from pgworkflows.queue") == []
    # Each event was taken by one wait at most, and each wait took one at most.
    assert (
        rows(
            database_url,
            "select 1 from pgworkflows.events where step_id is not null group by run_id, step_id having count(*) > 1",
        )
        == []
    )
