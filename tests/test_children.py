"""Child workflows: begun, awaited and ended with their parents, whoever dies, cancels or retries."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel
from waiting import until
from working import HandWorker, rows, value, working

from pgworkflows import (
    ChildWorkflowFailedError,
    RunStatus,
    Step,
    StepFailedError,
    StepKind,
    Steps,
    StepStatus,
    Workflow,
    WorkflowEngine,
    WorkflowRun,
    workflow,
    workflow_ref,
)
from pgworkflows.claims import ClaimedRun
from pgworkflows.entries import Entry
from pgworkflows.history import ErrorInfo
from pgworkflows.journal import WRITTEN, Answer, Verdict, write
from pgworkflows.runner import Execution
from pgworkflows.sessions import OwnConnection
from pgworkflows.worker_connection import WORKER_LOCK_TIMEOUT_MS, WorkerConnection


class Order(BaseModel):
    number: int


class Receipt(BaseModel):
    number: int
    at: datetime


def receipt(order: Order) -> Receipt:
    return Receipt(number=order.number, at=datetime(2030, 1, 1, tzinfo=UTC))


@workflow("bill", retries=1, priority="low", queue="bills")
def bill(step: Step, input: Order) -> Steps[Receipt]:
    return (yield from step.run("print", receipt, input))


@workflow("sell")
def sell(step: Step, input: Order) -> Steps[str]:
    found = yield from step.invoke_child_workflow("bill", bill, input)
    return f"{type(found).__name__} {found.number} {found.at:%Y}"


@workflow("patient")
def patient(step: Step, input: str = "") -> Steps[str]:
    yield from step.wait_for("wait", "go")
    if input:
        raise ValueError(input)
    return "went"


@workflow("parent")
def parent(step: Step, input: str = "") -> Steps[Any]:
    yield from step.run("before", lambda: None)
    said = yield from step.invoke_child_workflow("child", patient, input)
    yield from step.run("after", lambda: None)
    return said


@workflow("careful-parent")
def careful_parent(step: Step, input: str = "") -> Steps[Any]:
    try:
        return (yield from step.invoke_child_workflow("child", patient, input))
    except ChildWorkflowFailedError as error:
        return {
            "child": str(error.child_run_id),
            "status": error.status,
            "error": None if error.error is None else error.error["message"],
            "type": error.error_type,
            "step": error.step_id,
        }


WORKFLOWS: list[Workflow[Any, Any]] = [bill, sell, patient, parent, careful_parent]


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=WORKFLOWS) as engine:
        yield engine


def idle(engine: WorkflowEngine) -> None:
    engine.worker(grace=5).run_until_idle(timeout=30)


def first_entry(claimed: ClaimedRun, workflow: Any) -> Entry:
    """What a worker writes first that has claimed the run."""
    entry = Execution(claimed, workflow, logging.getLogger("test")).work(None)
    assert entry is not None
    return entry


def child_of(engine: WorkflowEngine, run: WorkflowRun | UUID, step_id: str = "child") -> WorkflowRun:
    parent_id = run if isinstance(run, UUID) else run.id
    return engine.get_run(
        value(
            engine.conninfo,
            "select id from pgworkflows.runs where parent_run_id = %s and parent_step_id = %s",
            parent_id,
            step_id,
        )
    )


def begun(engine: WorkflowEngine, workflow: Any, input: Any = None, **options: Any) -> tuple[WorkflowRun, WorkflowRun]:
    """A parent that waits for its child, and the child, which waits for its event."""
    run = engine.start_workflow(workflow, input, **options)
    idle(engine)
    found = engine.get_run(run.id)
    child = child_of(engine, run)
    assert (found.status, child.status) == (RunStatus.WAITING, RunStatus.WAITING)
    return found, child


# --- the usual


def test_a_childs_output_comes_back_as_its_annotation_says(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(sell, Order(number=7))
    idle(engine)
    assert engine.get_run(run.id).output == "Receipt 7 2030"
    child = child_of(engine, run, "bill")
    assert (child.workflow_id, child.status, child.input) == ("bill", RunStatus.COMPLETED, {"number": 7})
    assert (child.parent_run_id, child.parent_step_id) == (run.id, "bill")
    [step] = engine.get_steps(run.id)
    assert (step.kind, step.status, step.child_run_id) == (
        StepKind.INVOKE_CHILD_WORKFLOW,
        StepStatus.COMPLETED,
        child.id,
    )
    assert step.output == child.output


def test_a_waiting_parent_says_what_it_waits_for(engine: WorkflowEngine) -> None:
    run, child = begun(engine, parent)
    assert run.current_step_id == "child"
    step = engine.get_steps(run.id)[-1]
    assert (step.step_id, step.status, step.child_run_id) == ("child", StepStatus.WAITING, child.id)
    assert rows(
        engine.conninfo,
        "select status, wait_kind, wait_event, wake_at from pgworkflows.queue where run_id = %s",
        run.id,
    ) == [("waiting", "child", "child", None)]


def test_resource_and_priority_are_inherited_and_the_rest_is_the_childs(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(sell, Order(number=1), resource_id="shop", priority=7, retries=5)
    idle(engine)
    child = child_of(engine, run, "bill")
    assert (child.resource_id, child.priority) == ("shop", 7)
    assert (child.queue, child.max_retries) == ("bills", 1)


def test_a_step_may_say_otherwise(engine: WorkflowEngine) -> None:
    @workflow("teller")
    def teller(step: Step) -> Steps[None]:
        yield from step.invoke_child_workflow(
            "child",
            patient,
            resource_id="bank",
            idempotency_key="key",
            priority="high",
            retries=4,
            timeout="1 hour",
        )

    engine.register_workflow(teller)
    _, child = begun(engine, teller, resource_id="shop", priority=7)
    assert (child.resource_id, child.idempotency_key, child.priority, child.max_retries) == ("bank", "key", 100, 4)
    assert child.timeout_at is not None
    assert (child.timeout_at - child.created_at).total_seconds() == pytest.approx(3600, abs=1)


def test_a_child_may_be_named_by_a_reference_or_an_id(engine: WorkflowEngine) -> None:
    ref = workflow_ref("bill", input_schema=Order, output_schema=Receipt)

    @workflow("by-name")
    def by_name(step: Step) -> Steps[Any]:
        typed = yield from step.invoke_child_workflow("typed", ref, Order(number=1))
        plain = yield from step.invoke_child_workflow("plain", "bill", {"number": 2})
        return [type(typed).__name__, typed.number, plain["number"]]

    engine.register_workflow(by_name)
    run = engine.start_workflow(by_name)
    idle(engine)
    assert engine.get_run(run.id).output == ["Receipt", 1, 2]


def test_a_child_nobody_knows_waits_for_a_worker_that_does(engine: WorkflowEngine) -> None:
    @workflow("hopeful")
    def hopeful(step: Step) -> Steps[Any]:
        return (yield from step.invoke_child_workflow("child", "not-yet", 3))

    @workflow("not-yet")
    def not_yet(step: Step, input: int) -> Steps[int]:
        return (yield from step.run("double", lambda: 2 * input))

    engine.register_workflow(hopeful)
    run = engine.start_workflow(hopeful)
    idle(engine)
    assert child_of(engine, run).status is RunStatus.PENDING
    assert engine.check_progress(child_of(engine, run).id).live_workers == 0
    engine.register_workflow(not_yet)
    idle(engine)
    assert engine.get_run(run.id).output == 6


def test_children_may_be_invoked_one_after_the_other_in_a_loop(engine: WorkflowEngine) -> None:
    @workflow("many-bills")
    def many_bills(step: Step) -> Steps[int]:
        total = 0
        for number in range(5):
            found = yield from step.invoke_child_workflow(f"bill-{number}", bill, Order(number=number))
            total += found.number
        return total

    engine.register_workflow(many_bills)
    run = engine.start_workflow(many_bills)
    idle(engine)
    assert engine.get_run(run.id).output == 10


def test_ten_levels_deep_works(engine: WorkflowEngine) -> None:
    @workflow("deep")
    def deep(step: Step, input: int) -> Steps[int]:
        if input == 10:
            return (yield from step.run("bottom", lambda: 1))
        below: int = yield from step.invoke_child_workflow("down", "deep", input + 1)
        return 1 + below

    engine.register_workflow(deep)
    run = engine.start_workflow(deep, 0)
    with working(engine):
        assert engine.wait_for_run(run.id, timeout=30).output == 11


def test_hundreds_of_children_of_one_parent_work(engine: WorkflowEngine) -> None:
    @workflow("small")
    def small(step: Step, input: int) -> Steps[int]:
        yield from ()
        return input

    @workflow("large")
    def large(step: Step) -> Steps[int]:
        total = 0
        for number in range(300):
            total += yield from step.invoke_child_workflow(f"small-{number}", small, number)
        return total

    engine.register_workflow(small)
    engine.register_workflow(large)
    run = engine.start_workflow(large)
    with working(engine):
        assert engine.wait_for_run(run.id, timeout=60).output == sum(range(300))


# --- failures


def test_a_childs_failure_is_the_parents_unless_it_catches_it(engine: WorkflowEngine) -> None:
    run, child = begun(engine, parent, "no")
    careful, other = begun(engine, careful_parent, "no")
    engine.trigger_event(child.id, "go")
    engine.trigger_event(other.id, "go")
    idle(engine)
    failed = engine.get_run(run.id)
    assert failed.status is RunStatus.FAILED
    assert failed.error is not None
    assert failed.error["type"] == "ChildWorkflowFailedError"
    assert failed.error["message"] == f"child run {child.id} of workflow 'patient' failed with ValueError: no"
    assert failed.error["step_id"] == "child"
    assert engine.get_steps(run.id)[-1].status is StepStatus.FAILED
    assert engine.get_run(careful.id).output == {
        "child": str(other.id),
        "status": "failed",
        "error": "no",
        "type": "ChildWorkflowFailedError",
        "step": "child",
    }


def test_what_a_child_told_is_the_same_when_it_is_replayed(engine: WorkflowEngine) -> None:
    seen: list[Any] = []

    @workflow("recounting")
    def recounting(step: Step) -> Steps[None]:
        try:
            yield from step.invoke_child_workflow("child", patient, "no")
        except ChildWorkflowFailedError as error:
            seen.append(repr(vars(error)))
        yield from step.wait_for("more", "more")

    engine.register_workflow(recounting)
    run, child = begun(engine, recounting)
    engine.trigger_event(child.id, "go")
    idle(engine)
    engine.trigger_event(run.id, "more")
    idle(engine)
    assert engine.get_run(run.id).status is RunStatus.COMPLETED
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert "<RunStatus.FAILED: 'failed'>" in seen[0]


def test_a_cancelled_child_fails_its_parents_step(engine: WorkflowEngine) -> None:
    run, child = begun(engine, careful_parent)
    engine.cancel_workflow(child.id)
    idle(engine)
    output = engine.get_run(run.id).output
    assert (output["status"], output["error"]) == ("cancelled", None)


def test_a_child_that_is_cancelled_while_its_step_runs_is_known_at_once(engine: WorkflowEngine) -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        leave.wait(20)

    @workflow("busy")
    def busy(step: Step) -> Steps[None]:
        yield from step.run("work", work)

    @workflow("busy-parent")
    def busy_parent(step: Step) -> Steps[str]:
        try:
            yield from step.invoke_child_workflow("child", busy)
        except ChildWorkflowFailedError as error:
            return error.status
        return "completed"

    engine.register_workflow(busy)
    engine.register_workflow(busy_parent)
    run = engine.start_workflow(busy_parent)
    with working(engine):
        assert entered.wait(20)
        engine.cancel_workflow(child_of(engine, run).id)
        assert engine.wait_for_run(run.id, timeout=20).output == "cancelled"
        leave.set()


def test_a_child_that_runs_out_of_time_fails_its_parents_step(engine: WorkflowEngine) -> None:
    @workflow("hasty")
    def hasty(step: Step) -> Steps[Any]:
        try:
            yield from step.invoke_child_workflow("child", patient, timeout=0.05)
        except ChildWorkflowFailedError as error:
            return error.error

    engine.register_workflow(hasty)
    run = engine.start_workflow(hasty)
    with working(engine):
        assert engine.wait_for_run(run.id, timeout=20).output["type"] == "WorkflowTimeoutError"


def test_a_child_whose_workers_die_ten_times_fails_its_parents_step(engine: WorkflowEngine) -> None:
    run, child = begun(engine, careful_parent)
    engine.trigger_event(child.id, "go")
    with HandWorker(engine.conninfo, ["patient"]) as worker:
        worker.claim_one()
    with psycopg.connect(engine.conninfo, autocommit=True) as conn:
        conn.execute("update pgworkflows.queue set interruptions = 9 where run_id = %s", [child.id])
        conn.execute("delete from pgworkflows.workers")
        with psycopg.connect(engine.conninfo) as other:
            # Somebody holds the parent's row: the child is left for the next time.
            other.execute("select from pgworkflows.queue where run_id = %s for update", [run.id])
            assert conn.execute("select pgworkflows.take_over()").fetchone() == (0,)
            assert engine.get_run(child.id).status is RunStatus.RUNNING
        conn.execute("select pgworkflows.take_over()")
    assert engine.get_run(child.id).status is RunStatus.FAILED
    assert engine.get_run(run.id).status is RunStatus.PENDING
    idle(engine)
    assert "was taken over 10 times" in engine.get_run(run.id).output["error"]


def test_an_input_that_does_not_fit_fails_the_step_and_starts_nothing(engine: WorkflowEngine) -> None:
    @workflow("clumsy", retries=3)
    def clumsy(step: Step, input: bool) -> Steps[str]:
        try:
            yield from step.invoke_child_workflow("child", bill, {"number": "many"})
        except StepFailedError as error:
            if input:
                raise
            return error.error_type
        return "fine"

    engine.register_workflow(clumsy)
    caught, uncaught = engine.start_workflow(clumsy, False), engine.start_workflow(clumsy, True)
    idle(engine)
    assert engine.get_run(caught.id).output == "InvalidInputError"
    failed = engine.get_run(uncaught.id)
    assert (failed.status, failed.retry_count) == (RunStatus.FAILED, 0)
    assert failed.error is not None
    assert failed.error["type"] == "InvalidInputError"
    assert value(engine.conninfo, "select count(*) from pgworkflows.runs where workflow_id = 'bill'") == 0


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("child", 7), {}, TypeError),
        (("child", ""), {}, ValueError),
        (("", "bill"), {}, ValueError),
        (("child", "bill"), {"priority": "urgent"}, ValueError),
        (("child", "bill"), {"retries": -1}, ValueError),
        (("child", "bill"), {"timeout": 0}, ValueError),
        (("child", "bill"), {"resource_id": ""}, ValueError),
        (("child", "bill"), {"idempotency_key": "\0"}, ValueError),
    ],
)
def test_misuse_is_refused_where_it_stands(arguments: Any, options: Any, error: type[Exception]) -> None:
    step = Step(None)  # type: ignore[arg-type]  # no context is needed to make a command
    with pytest.raises(error):
        step.invoke_child_workflow(*arguments, **options)


def test_a_key_that_names_another_run_is_refused(engine: WorkflowEngine) -> None:
    @workflow("keyed", retries=2)
    def keyed(step: Step) -> Steps[Any]:
        return (yield from step.invoke_child_workflow("child", patient, idempotency_key="taken"))

    engine.register_workflow(keyed)
    other = engine.start_workflow(patient, idempotency_key="taken")
    run = engine.start_workflow(keyed, retries=0)
    idle(engine)
    failed = engine.get_run(run.id)
    assert failed.status is RunStatus.FAILED
    assert failed.error is not None
    assert failed.error["type"] == "IdempotencyConflictError"
    assert str(other.id) in failed.error["message"]
    assert engine.get_run(other.id).parent_run_id is None
    assert value(engine.conninfo, "select count(*) from pgworkflows.runs") == 2


def test_a_singleton_child_in_progress_fails_the_step_which_can_be_retried(engine: WorkflowEngine) -> None:
    @workflow("single", singleton=True)
    def single(step: Step) -> Steps[str]:
        return (yield from patient(step, ""))

    @workflow("asker")
    def asker(step: Step) -> Steps[Any]:
        return (yield from step.invoke_child_workflow("child", single))

    engine.register_workflow(single)
    engine.register_workflow(asker)
    in_the_way = engine.start_workflow(single)
    run = engine.start_workflow(asker)
    idle(engine)
    failed = engine.get_run(run.id)
    assert failed.error is not None
    assert failed.error["type"] == "WorkflowRunInProgressError"
    assert str(in_the_way.id) in failed.error["message"]
    engine.cancel_workflow(in_the_way.id)
    engine.retry_workflow(run.id)
    idle(engine)
    assert child_of(engine, run).singleton
    engine.trigger_event(child_of(engine, run).id, "go")
    idle(engine)
    assert engine.get_run(run.id).output == "went"


# --- retries


def test_the_retry_of_a_parent_retries_the_child_from_where_it_failed(engine: WorkflowEngine) -> None:
    calls: list[str] = []

    def second() -> None:
        calls.append("second")
        if calls.count("second") < 3:
            raise ValueError("not yet")

    @workflow("shaky")
    def shaky(step: Step) -> Steps[str]:
        yield from step.run("first", lambda: calls.append("first"))
        yield from step.run("second", second)
        return "done"

    @workflow("insisting", retries=1)
    def insisting(step: Step) -> Steps[str]:
        return (yield from step.invoke_child_workflow("child", shaky))

    engine.register_workflow(shaky)
    engine.register_workflow(insisting)
    run = engine.start_workflow(insisting)
    with working(engine):
        assert engine.wait_for_run(run.id, timeout=20).status is RunStatus.FAILED
        assert calls == ["first", "second", "second"]
        engine.retry_workflow(run.id)
        assert engine.wait_for_run(run.id, timeout=20).output == "done"
    assert calls == ["first", "second", "second", "second"]
    assert value(engine.conninfo, "select count(*) from pgworkflows.runs") == 2


def test_a_child_that_was_mended_by_hand_is_found_completed(engine: WorkflowEngine) -> None:
    run, child = begun(engine, parent, "no")
    engine.trigger_event(child.id, "go")
    idle(engine)
    assert engine.get_run(run.id).status is RunStatus.FAILED
    with psycopg.connect(engine.conninfo) as conn:
        conn.execute("update pgworkflows.runs set input = '\"\"' where id = %s", [child.id])
    engine.retry_workflow(child.id)
    idle(engine)
    assert engine.get_run(child.id).status is RunStatus.COMPLETED
    assert engine.get_run(run.id).status is RunStatus.FAILED
    engine.retry_workflow(run.id)
    idle(engine)
    assert engine.get_run(run.id).output == "went"


def test_a_child_that_is_retried_before_its_parent_looks_is_waited_for_again(engine: WorkflowEngine) -> None:
    run, child = begun(engine, parent)
    engine.cancel_workflow(child.id)
    assert engine.get_run(run.id).status is RunStatus.PENDING
    engine.retry_workflow(child.id)
    idle(engine)
    assert engine.get_run(run.id).status is RunStatus.WAITING
    engine.trigger_event(child.id, "go")
    idle(engine)
    assert engine.get_run(run.id).output == "went"


def test_the_retry_of_a_cancelled_parent_retries_the_child_that_was_cancelled_with_it(engine: WorkflowEngine) -> None:
    run, child = begun(engine, parent)
    engine.cancel_workflow(run.id)
    assert engine.get_run(child.id).status is RunStatus.CANCELLED
    engine.retry_workflow(run.id)
    idle(engine)
    assert engine.get_run(child.id).status is RunStatus.WAITING
    engine.trigger_event(child.id, "go")
    idle(engine)
    assert engine.get_run(run.id).output == "went"
    assert [step.step_id for step in engine.get_steps(run.id)] == ["before", "child", "after"]


# --- cancelling and timing out


@workflow("family")
def family(step: Step, input: int) -> Steps[Any]:
    if input == 0:
        return (yield from step.wait_for("wait", "go"))
    return (yield from step.invoke_child_workflow("child", "family", input - 1))


def generations(engine: WorkflowEngine, depth: int, **options: Any) -> list[WorkflowRun]:
    engine.register_workflow(family)
    runs = [engine.start_workflow(family, depth, **options)]
    idle(engine)
    for _ in range(depth):
        runs.append(child_of(engine, runs[-1]))
    return runs


def test_cancelling_a_parent_cancels_its_children_and_theirs(engine: WorkflowEngine) -> None:
    runs = generations(engine, 3)
    engine.cancel_workflow(runs[0].id)
    found = [engine.get_run(run.id) for run in runs]
    assert [run.status for run in found] == [RunStatus.CANCELLED] * 4
    assert value(engine.conninfo, "select count(*) from pgworkflows.queue") == 0
    assert engine.get_steps(runs[0].id)[0].status is StepStatus.CANCELLED


def test_cancelling_a_child_leaves_its_parent_to_say_what_becomes_of_it(engine: WorkflowEngine) -> None:
    runs = generations(engine, 3)
    engine.cancel_workflow(runs[2].id)
    assert [engine.get_run(run.id).status for run in runs] == [
        RunStatus.WAITING,
        RunStatus.PENDING,
        RunStatus.CANCELLED,
        RunStatus.CANCELLED,
    ]
    idle(engine)
    assert engine.get_run(runs[0].id).status is RunStatus.FAILED


def test_a_parent_that_runs_out_of_time_takes_its_children_along(engine: WorkflowEngine) -> None:
    runs = generations(engine, 2, timeout="1 hour")
    with psycopg.connect(engine.conninfo) as conn:
        conn.execute("update pgworkflows.queue set timeout_at = now() where run_id = %s", [runs[0].id])
    idle(engine)
    found = [engine.get_run(run.id) for run in runs]
    assert [run.status for run in found] == [RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.CANCELLED]
    assert value(engine.conninfo, "select count(*) from pgworkflows.queue") == 0


def test_parent_and_child_may_run_out_of_time_together(engine: WorkflowEngine) -> None:
    runs = generations(engine, 2)
    with psycopg.connect(engine.conninfo) as conn:
        conn.execute("update pgworkflows.queue set timeout_at = now()")
    idle(engine)
    assert {engine.get_run(run.id).status for run in runs} == {RunStatus.FAILED}
    assert value(engine.conninfo, "select count(*) from pgworkflows.queue") == 0


@pytest.mark.parametrize("relative", [0, 2], ids=["its parent's", "its child's"])
def test_a_timeout_waits_while_somebody_holds_a_row_of_the_family(engine: WorkflowEngine, relative: int) -> None:
    runs = generations(engine, 2)
    with psycopg.connect(engine.conninfo, autocommit=True) as conn, psycopg.connect(engine.conninfo) as other:
        conn.execute("update pgworkflows.queue set timeout_at = now() where run_id = %s", [runs[1].id])
        other.execute("select from pgworkflows.queue where run_id = %s for update", [runs[relative].id])
        conn.execute("set lock_timeout = '1 s'")
        conn.execute("select pgworkflows.wake_due('-infinity')")
        assert engine.get_run(runs[1].id).status is RunStatus.WAITING
        other.rollback()
        conn.execute("select pgworkflows.wake_due('-infinity')")
    found = [engine.get_run(run.id).status for run in runs]
    assert found == [RunStatus.PENDING, RunStatus.FAILED, RunStatus.CANCELLED]


@pytest.mark.parametrize("turn", range(5))
def test_many_cancel_members_of_one_family_at_once_without_a_deadlock(engine: WorkflowEngine, turn: int) -> None:
    runs = generations(engine, 5)
    begin = threading.Barrier(len(runs))

    def cancel(run: WorkflowRun) -> str:
        begin.wait()
        try:
            return engine.cancel_workflow(run.id).status
        except Exception as error:
            return type(error).__name__

    with ThreadPoolExecutor(len(runs)) as pool:
        answers = set(pool.map(cancel, runs))
    assert answers <= {"cancelled", "InvalidStatusError"}
    assert {engine.get_run(run.id).status for run in runs} == {RunStatus.CANCELLED}


def test_cancelling_a_parent_in_the_callers_transaction_can_be_taken_back(engine: WorkflowEngine) -> None:
    run, child = begun(engine, parent)
    with psycopg.connect(engine.conninfo) as conn:
        engine.cancel_workflow(run.id, connection=conn)
        conn.rollback()
    assert engine.get_run(child.id).status is RunStatus.WAITING
    engine.trigger_event(child.id, "go")
    idle(engine)
    assert engine.get_run(run.id).output == "went"


# --- pausing, resuming, fast-forwarding


def test_neither_resume_nor_fast_forward_fake_a_childs_result(engine: WorkflowEngine) -> None:
    run, child = begun(engine, parent)
    assert engine.fast_forward_workflow(run.id, {"fake": True}).status is RunStatus.WAITING
    engine.pause_workflow(run.id)
    assert engine.fast_forward_workflow(run.id, "fake").status is RunStatus.PAUSED
    engine.resume_workflow(run.id)
    idle(engine)
    assert engine.get_run(run.id).status is RunStatus.WAITING
    engine.fast_forward_workflow(child.id)
    idle(engine)
    assert engine.get_run(run.id).output == "went"


def test_a_child_that_ends_while_its_parent_is_paused_is_seen_at_resume(engine: WorkflowEngine) -> None:
    run, child = begun(engine, parent)
    engine.pause_workflow(run.id)
    engine.trigger_event(child.id, "go")
    idle(engine)
    assert engine.get_run(child.id).status is RunStatus.COMPLETED
    assert engine.get_run(run.id).status is RunStatus.PAUSED
    engine.resume_workflow(run.id)
    idle(engine)
    assert engine.get_run(run.id).output == "went"


@pytest.mark.parametrize(
    ("operation", "undo", "between"),
    [
        ("pause_workflow", "resume_workflow", RunStatus.PAUSED),
        ("cancel_workflow", "retry_workflow", RunStatus.CANCELLED),
    ],
)
def test_a_child_is_not_begun_once_its_parent_was_stopped(
    engine: WorkflowEngine, operation: str, undo: str, between: RunStatus
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        leave.wait(20)

    @workflow("stopped")
    def stopped(step: Step) -> Steps[Any]:
        yield from step.run("work", work)
        return (yield from step.invoke_child_workflow("child", patient))

    engine.register_workflow(stopped)
    run = engine.start_workflow(stopped)
    with working(engine):
        assert entered.wait(20)
        getattr(engine, operation)(run.id)
        leave.set()
        until(
            lambda: not rows(engine.conninfo, "select 1 from pgworkflows.queue where claim_id is not null"),
            "its worker has let go of it",
        )
        assert engine.get_run(run.id).status is between
        assert [step.step_id for step in engine.get_steps(run.id)] == ["work"]
        assert value(engine.conninfo, "select count(*) from pgworkflows.runs") == 1
        getattr(engine, undo)(run.id)
        until(
            lambda: rows(engine.conninfo, "select 1 from pgworkflows.runs where parent_run_id = %s", run.id), "a child"
        )
        child = child_of(engine, run)
        engine.trigger_event(child.id, "go")
        assert engine.wait_for_run(run.id, timeout=20).output == "went"


# --- races


def test_an_end_waits_for_the_parents_row_without_holding_up_the_others(engine: WorkflowEngine) -> None:
    run, child = begun(engine, parent)
    other = engine.start_workflow(patient)
    with psycopg.connect(engine.conninfo) as conn, working(engine):
        conn.execute("select from pgworkflows.queue where run_id = %s for update", [run.id])
        engine.trigger_event(child.id, "go")
        engine.trigger_event(other.id, "go")
        assert engine.wait_for_run(other.id, timeout=20).status is RunStatus.COMPLETED
        assert not engine.get_run(child.id).status.finished
        conn.rollback()
        assert engine.wait_for_run(run.id, timeout=20).output == "went"


def test_an_end_that_is_held_over_loses_no_step(engine: WorkflowEngine) -> None:
    """Somebody holds the parent's row for so long that the child's worker dies before the end could be written."""
    calls: list[str] = []

    @workflow("working")
    def working_child(step: Step) -> Steps[str]:
        yield from step.run("work", calls.append, "called")
        return "done"

    @workflow("employer")
    def employer(step: Step) -> Steps[str]:
        return (yield from step.invoke_child_workflow("child", working_child))

    engine.register_workflow(employer)
    run = engine.start_workflow(employer)
    idle(engine)
    with HandWorker(engine.conninfo, ["working"]) as worker, psycopg.connect(engine.conninfo) as conn:
        claimed = worker.claim_one()
        execution = Execution(claimed, working_child, logging.getLogger("test"))
        execution.work(None)
        entry = execution.work(execution.next_call())
        assert entry is not None
        assert (entry.action, calls) == ("complete", ["called"])
        conn.execute("select from pgworkflows.queue where run_id = %s for update", [run.id])
        assert worker.write(entry) == [Answer(Verdict.LOCKED)]
        [step] = engine.get_steps(claimed.run_id)
        assert step.status is StepStatus.COMPLETED
        assert engine.get_run(claimed.run_id).status is RunStatus.RUNNING
        worker.die()
        worker.take_over()
    engine.register_workflow(working_child)
    idle(engine)
    assert engine.get_run(run.id).output == "done"
    assert calls == ["called"]


def test_a_child_that_ends_while_its_parent_is_in_hand_is_not_missed(engine: WorkflowEngine) -> None:
    """The parent was claimed before the end, and suspends after it."""
    run, child = begun(engine, parent)
    engine.pause_workflow(run.id)
    engine.resume_workflow(run.id)
    with HandWorker(engine.conninfo, ["parent"]) as worker:
        claimed = worker.claim_one()
        assert claimed.child is not None
        assert claimed.child.status is RunStatus.WAITING
        engine.cancel_workflow(child.id)
        entry = first_entry(claimed, parent)
        assert (entry.action, entry.wait_kind, entry.child) == ("suspend", "child", None)
        assert worker.write(entry) == [WRITTEN]
    assert engine.get_run(run.id).status is RunStatus.PENDING
    idle(engine)
    assert engine.get_run(run.id).status is RunStatus.FAILED


def test_a_child_that_ends_in_the_flush_in_which_its_parent_suspends_is_not_missed(engine: WorkflowEngine) -> None:
    """Both change the parent's row in the queue."""
    run, waiting = begun(engine, parent)
    engine.pause_workflow(run.id)
    engine.resume_workflow(run.id)
    engine.trigger_event(waiting.id, "go")
    with HandWorker(engine.conninfo, ["parent", waiting.workflow_id]) as worker:
        claimed = {each.workflow_id: each for each in worker.claim().runs}
        suspend = first_entry(claimed["parent"], parent)
        end = first_entry(claimed[waiting.workflow_id], patient)
        assert (suspend.action, end.action) == ("suspend", "complete")
        assert worker.write(suspend, end) == [WRITTEN, WRITTEN]
    assert engine.get_run(run.id).status is RunStatus.PENDING
    idle(engine)
    assert engine.get_run(run.id).output == "went"


def test_a_suspend_that_is_sent_again_begins_no_second_child(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(careful_parent)
    with HandWorker(engine.conninfo, ["careful-parent"]) as worker:
        entry = first_entry(worker.claim_one(), careful_parent)
        assert entry.child is not None
        assert worker.write(entry) == [WRITTEN]
        # Its answer was lost.
        assert worker.write(entry) == [Answer(Verdict.STALE)]
    first = child_of(engine, run)
    with psycopg.connect(engine.conninfo) as conn:
        # And as if the parent did not know of it.
        conn.execute("delete from pgworkflows.steps where step_id = 'child'")
    engine.pause_workflow(run.id)
    engine.resume_workflow(run.id)
    idle(engine)
    assert child_of(engine, run).id == first.id
    assert engine.get_steps(run.id)[-1].child_run_id == first.id
    engine.trigger_event(first.id, "go")
    idle(engine)
    assert engine.get_run(run.id).output == "went"


def test_a_child_that_was_deleted_by_hand_is_begun_again(engine: WorkflowEngine) -> None:
    run, child = begun(engine, parent)
    with psycopg.connect(engine.conninfo) as conn:
        conn.execute("delete from pgworkflows.queue where run_id = %s", [child.id])
        conn.execute("delete from pgworkflows.runs where id = %s", [child.id])
    engine.pause_workflow(run.id)
    engine.resume_workflow(run.id)
    idle(engine)
    again = child_of(engine, run)
    assert again.id != child.id
    engine.trigger_event(again.id, "go")
    idle(engine)
    assert engine.get_run(run.id).output == "went"


def abandoned(engine: WorkflowEngine) -> tuple[WorkflowRun, WorkflowRun]:
    """A parent that has failed while it waits for its child, such as for code that was changed; the child goes on."""
    run, child = begun(engine, parent)
    engine.pause_workflow(run.id)
    engine.resume_workflow(run.id)
    with HandWorker(engine.conninfo, ["parent"]) as worker:
        claimed = worker.claim_one()
        error = ErrorInfo("NonDeterminismError", "the code was changed")
        entry = Entry(claimed.run_id, claimed.claim_id, claimed.signal, "fail", error=error)
        assert worker.write(entry) == [WRITTEN]
    return engine.get_run(run.id), child


class InTransaction(WorkerConnection):
    """A worker whose statements are the part of a transaction that is still open."""

    def __init__(self, conn: OwnConnection) -> None:
        self._schema = "pgworkflows"
        self._conn = conn
        conn.execute("select 1")  # it begins the transaction


def cancelled(engine: WorkflowEngine, child: WorkflowRun, conn: OwnConnection) -> None:
    engine.cancel_workflow(child.id, connection=conn)


def out_of_time(engine: WorkflowEngine, child: WorkflowRun, conn: OwnConnection) -> None:
    rows(engine.conninfo, "update pgworkflows.queue set timeout_at = now() where run_id = %s", child.id)
    conn.execute("select pgworkflows.wake_due('-infinity')")


def completed(engine: WorkflowEngine, child: WorkflowRun, conn: OwnConnection) -> None:
    engine.trigger_event(child.id, "go")
    with HandWorker(engine.conninfo, ["patient"]) as worker:
        entry = first_entry(worker.claim_one(), patient)
        assert write(InTransaction(conn), worker.id, [entry]) == [WRITTEN]


def killed_ten_times(engine: WorkflowEngine, child: WorkflowRun, conn: OwnConnection) -> None:
    engine.trigger_event(child.id, "go")
    with HandWorker(engine.conninfo, ["patient"]) as worker:
        worker.claim_one()
        rows(engine.conninfo, "update pgworkflows.queue set interruptions = 9 where run_id = %s", child.id)
        worker.die()
    conn.execute("select pgworkflows.take_over()")


@pytest.mark.parametrize("end", [cancelled, out_of_time, completed, killed_ten_times])
def test_a_parent_that_is_retried_while_its_child_ends_does_not_wait_for_ever(
    engine: WorkflowEngine, end: Callable[[WorkflowEngine, WorkflowRun, OwnConnection], None]
) -> None:
    run, child = abandoned(engine)
    assert run.status is RunStatus.FAILED
    with OwnConnection.connect(engine.conninfo) as conn, ThreadPoolExecutor(1) as pool:
        end(engine, child, conn)
        retried = pool.submit(engine.retry_workflow, run.id)
        with working(engine):
            until(
                lambda: (
                    rows(engine.conninfo, "select 1 from pg_locks where not granted")
                    or engine.get_run(run.id).status is RunStatus.WAITING
                ),
                "it is retried, or its retry waits",
            )
            conn.commit()
            retried.result(20)
            assert engine.get_run(child.id).status.finished
            ended = engine.wait_for_run(run.id, timeout=20)
    assert ended.status is (RunStatus.COMPLETED if end is completed else RunStatus.FAILED)


@workflow("single", singleton=True)
def single(step: Step) -> Steps[str]:
    return (yield from patient(step, ""))


@workflow("asker")
def asker(step: Step, input: str | None = None) -> Steps[Any]:
    child = single if input is None else patient
    return (yield from step.invoke_child_workflow("child", child, idempotency_key=input))


@pytest.mark.parametrize(("key", "wanted"), [(None, single), ("key", patient)])
@pytest.mark.parametrize("commits", [True, False])
def test_a_start_in_a_callers_transaction_holds_up_only_the_parent_that_invokes_the_same(
    engine: WorkflowEngine, key: str | None, wanted: Workflow[Any, Any], commits: bool
) -> None:
    engine.register_workflow(single)
    engine.register_workflow(asker)
    run, other = engine.start_workflow(asker, key), engine.start_workflow(careful_parent)
    with HandWorker(engine.conninfo, ["asker", "careful-parent"]) as worker, psycopg.connect(engine.conninfo) as conn:
        entries = [
            first_entry(claimed, asker if claimed.run_id == str(run.id) else careful_parent)
            for claimed in worker.claim().runs
        ]
        engine.start_workflow(wanted, idempotency_key=key, connection=conn)
        began = time.monotonic()
        answers = {entry.run_id: answer for entry, answer in zip(entries, worker.write(*entries), strict=True)}
        assert time.monotonic() - began < WORKER_LOCK_TIMEOUT_MS / 1000
        assert answers == {str(run.id): Answer(Verdict.LOCKED), str(other.id): WRITTEN}
        [held_over] = [entry for entry in entries if entry.run_id == str(run.id)]
        if commits:
            conn.commit()
        else:
            conn.rollback()
        assert worker.write(held_over) == [WRITTEN]
    idle(engine)
    [step] = engine.get_steps(run.id)
    assert step.status is (StepStatus.FAILED if commits else StepStatus.WAITING)
    assert (step.child_run_id is None) is commits


def test_a_parent_whose_child_is_deleted_just_when_it_is_retried_gets_a_new_one(engine: WorkflowEngine) -> None:
    run, child = begun(engine, parent)
    engine.cancel_workflow(run.id)
    with (
        HandWorker(engine.conninfo, ["parent"]) as worker,
        psycopg.connect(engine.conninfo) as conn,
        ThreadPoolExecutor(1) as pool,
    ):
        # It was found old enough before its parent was retried.
        conn.execute("select 1 from pgworkflows.runs where id = %s for update", [child.id])
        engine.retry_workflow(run.id)
        entry = first_entry(worker.claim_one(), parent)
        written = pool.submit(worker.write, entry)
        until(
            lambda: written.done() or rows(engine.conninfo, "select 1 from pg_locks where not granted"),
            "the write waits, or is held over",
        )
        conn.execute("delete from pgworkflows.runs where id = %s", [child.id])
        conn.commit()
        if written.result(20) != [WRITTEN]:
            assert worker.write(entry) == [WRITTEN]
    again = child_of(engine, run)
    assert again.id != child.id
    engine.trigger_event(again.id, "go")
    idle(engine)
    assert engine.get_run(run.id).output == "went"


def test_the_end_of_a_claim_to_a_child_that_ran_out_of_time_waits_for_nobody(engine: WorkflowEngine) -> None:
    """Its parent was told at once. Whoever has the parent's row may wait for the child's."""
    run, child = begun(engine, careful_parent)
    engine.trigger_event(child.id, "go")
    with HandWorker(engine.conninfo, ["patient"]) as worker, psycopg.connect(engine.conninfo) as conn:
        worker.claim_one()
        rows(engine.conninfo, "update pgworkflows.queue set timeout_at = now() where run_id = %s", child.id)
        rows(engine.conninfo, "select pgworkflows.wake_due('-infinity')")
        assert engine.get_run(child.id).status is RunStatus.FAILED
        engine.trigger_event(run.id, "unheard", connection=conn)
        worker.die()
        assert worker.take_over() == 1
    idle(engine)
    assert engine.get_run(run.id).output["error"].startswith("run ")
    assert value(engine.conninfo, "select count(*) from pgworkflows.queue") == 0


def test_a_step_whose_child_cannot_be_retried_still_knows_it(engine: WorkflowEngine) -> None:
    engine.register_workflow(single)
    engine.register_workflow(asker)
    run, child = begun(engine, asker)
    engine.cancel_workflow(run.id)
    engine.start_workflow(single)
    engine.retry_workflow(run.id)
    idle(engine)
    [step] = engine.get_steps(run.id)
    assert (step.status, step.child_run_id) == (StepStatus.FAILED, child.id)
    assert "singleton" in str(step.error)


def test_a_child_that_could_not_be_retried_at_once_is_retried_by_the_next_worker(engine: WorkflowEngine) -> None:
    run, child = begun(engine, parent)
    engine.cancel_workflow(run.id)
    engine.retry_workflow(run.id)
    with HandWorker(engine.conninfo, ["parent"]) as worker, psycopg.connect(engine.conninfo) as conn:
        conn.execute("select 1 from pgworkflows.runs where id = %s for update", [child.id])
        assert worker.write(first_entry(worker.claim_one(), parent)) == [Answer(Verdict.LOCKED)]
        worker.die()
        worker.take_over()
    idle(engine)
    assert engine.get_run(child.id).status is RunStatus.WAITING
    engine.trigger_event(child.id, "go")
    idle(engine)
    assert engine.get_run(run.id).output == "went"


def test_what_became_of_a_child_is_kept_with_it_also_when_the_parent_was_cancelled_and_retried_meanwhile(
    engine: WorkflowEngine,
) -> None:
    run, child = begun(engine, careful_parent)
    engine.cancel_workflow(child.id)
    with HandWorker(engine.conninfo, ["careful-parent"]) as worker:
        entry = first_entry(worker.claim_one(), careful_parent)
        engine.cancel_workflow(run.id)
        engine.retry_workflow(run.id)
        assert worker.write(entry) == [Answer(Verdict.WRITTEN, "retry")]
    [step] = engine.get_steps(run.id)
    assert (step.status, step.child_run_id) == (StepStatus.FAILED, child.id)
    idle(engine)
    assert engine.get_run(run.id).output["child"] == str(child.id)
