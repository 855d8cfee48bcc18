"""Starts: singletons, and many runs at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel
from waiting import until
from working import rows, value, working

from pgworkflows import (
    IdempotencyConflictError,
    InvalidInputError,
    RunStatus,
    SerializationError,
    Step,
    Steps,
    WorkflowClient,
    WorkflowEngine,
    WorkflowNotFoundError,
    WorkflowRunInProgressError,
    workflow,
    workflow_ref,
)


class Order(BaseModel):
    number: int
    note: str = ""


@workflow("ship", priority="high", queue="orders", retries=2)
def ship(step: Step, input: Order) -> Steps[int]:
    return (yield from step.run("pack", lambda: input.number))


@workflow("report", singleton=True)
def report(step: Step) -> Steps[str]:
    yield from step.wait_for("wait", "go")
    return "done"


@workflow("broken-report", singleton=True)
def broken_report(step: Step) -> Steps[None]:
    yield from step.wait_for("wait", "go")
    raise ValueError("no paper")


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=[ship, report, broken_report]) as engine:
        yield engine


def together(count: int, act: Callable[[], Any]) -> list[Any]:
    """What `count` threads that begin at once get of `act`: results or errors."""
    begin = threading.Barrier(count)

    def one() -> Any:
        begin.wait()
        try:
            return act()
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(one) for _ in range(count)]]


# --- singletons


def test_a_singleton_has_at_most_one_unfinished_run(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(report)
    assert run.singleton
    with pytest.raises(
        WorkflowRunInProgressError, match=f"'report' is a singleton, and run {run.id} of it is pending"
    ) as e:
        engine.start_workflow(report)
    assert (e.value.run_id, e.value.workflow_id) == (run.id, "report")
    engine.pause_workflow(run.id)
    with pytest.raises(WorkflowRunInProgressError, match="is paused"):
        engine.start_workflow(report)
    engine.cancel_workflow(run.id)
    assert engine.start_workflow(report).id != run.id


def test_once_a_singleton_has_ended_it_can_be_started_again(engine: WorkflowEngine) -> None:
    first, second = engine.start_workflow(report), engine.start_workflow(broken_report)
    with working(engine):
        for run in (first, second):
            engine.trigger_event(run.id, "go")
        assert engine.wait_for_run(first.id, timeout=20).status is RunStatus.COMPLETED
        assert engine.wait_for_run(second.id, timeout=20).status is RunStatus.FAILED
    assert engine.start_workflow(report).status is RunStatus.PENDING
    assert engine.start_workflow(broken_report).status is RunStatus.PENDING


def test_of_a_hundred_starts_at_once_one_starts_a_singleton(engine: WorkflowEngine) -> None:
    found = together(100, lambda: engine.start_workflow(report))
    started = [each for each in found if not isinstance(each, Exception)]
    assert len(started) == 1
    refused = [each for each in found if isinstance(each, WorkflowRunInProgressError)]
    assert len(refused) == 99
    assert {error.run_id for error in refused} == {started[0].id}
    assert value(engine.conninfo, "select count(*) from pgworkflows.runs") == 1


def test_a_singleton_that_times_out_makes_room(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(report, timeout=0.05)
    with working(engine):
        assert engine.wait_for_run(run.id, timeout=20).status is RunStatus.FAILED
    assert engine.start_workflow(report).status is RunStatus.PENDING


def test_a_singleton_that_was_cancelled_while_its_step_runs_makes_room(engine: WorkflowEngine) -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        leave.wait(20)

    @workflow("busy", singleton=True)
    def busy(step: Step) -> Steps[None]:
        yield from step.run("work", work)

    engine.register_workflow(busy)
    run = engine.start_workflow(busy)
    with working(engine):
        assert entered.wait(20)
        engine.cancel_workflow(run.id)
        again = engine.start_workflow(busy)
        leave.set()
        assert engine.wait_for_run(again.id, timeout=20).status is RunStatus.COMPLETED


def test_the_retry_of_a_singleton_is_refused_while_another_run_is_unfinished(engine: WorkflowEngine) -> None:
    first = engine.start_workflow(report)
    engine.cancel_workflow(first.id)
    second = engine.start_workflow(report)
    with pytest.raises(WorkflowRunInProgressError) as e:
        engine.retry_workflow(first.id)
    assert e.value.run_id == second.id
    assert engine.get_run(first.id).status is RunStatus.CANCELLED
    engine.cancel_workflow(second.id)
    assert engine.retry_workflow(first.id).status is RunStatus.PENDING


def test_of_many_retries_and_starts_at_once_one_gets_the_singleton(engine: WorkflowEngine) -> None:
    cancelled = []
    for _ in range(8):
        run = engine.start_workflow(report)
        engine.cancel_workflow(run.id)
        cancelled.append(run.id)
    ids = iter(cancelled)
    lock = threading.Lock()

    def act() -> Any:
        with lock:
            run_id = next(ids, None)
        return engine.start_workflow(report) if run_id is None else engine.retry_workflow(run_id)

    found = together(16, act)
    assert len([each for each in found if not isinstance(each, Exception)]) == 1
    assert len([each for each in found if isinstance(each, WorkflowRunInProgressError)]) == 15
    assert value(engine.conninfo, "select count(*) from pgworkflows.queue") == 1


def test_an_idempotency_key_wins_over_the_singleton(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(report, idempotency_key="monday")
    assert engine.start_workflow(report, idempotency_key="monday").id == run.id
    with pytest.raises(WorkflowRunInProgressError):
        engine.start_workflow(report, idempotency_key="tuesday")


def test_a_start_may_say_otherwise_than_the_workflow(engine: WorkflowEngine) -> None:
    engine.start_workflow(report)
    assert not engine.start_workflow(report, singleton=False).singleton
    assert engine.start_workflow(ship, Order(number=1), singleton=True).singleton
    with pytest.raises(WorkflowRunInProgressError):
        engine.start_workflow(ship, Order(number=2), singleton=True)
    with pytest.raises(TypeError, match="singleton must be True or False, not str"):
        engine.start_workflow(report, singleton="no")  # type: ignore[arg-type]  # that is what is refused


def test_what_is_declared_counts_for_a_client_that_knows_only_the_id(engine: WorkflowEngine) -> None:
    engine.start(worker=False)
    with WorkflowClient(engine.conninfo) as client:
        assert client.start_workflow("report").singleton
        with pytest.raises(WorkflowRunInProgressError):
            client.start_workflow("report")


def test_a_reference_says_it_where_nothing_is_declared(database_url: str) -> None:
    ref = workflow_ref("elsewhere", singleton=True)
    with WorkflowClient(database_url) as client:
        run = client.start_workflow(ref)
        with pytest.raises(WorkflowRunInProgressError) as e:
            client.start_workflow(ref)
        assert e.value.run_id == run.id

    @ref.handler()
    def elsewhere(step: Step) -> Steps[None]:
        yield from step.delay("a-moment", 0)

    assert elsewhere.singleton
    assert not workflow_ref("other").singleton
    with pytest.raises(TypeError, match="singleton must be True or False, not int"):
        workflow_ref("other", singleton=1)  # type: ignore[call-overload]  # that is what is refused


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "not declared"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"idempotency_key": "k", "resource_id": "user-1"},
        {"priority": "low", "retries": 0, "timeout": "90 minutes", "queue": "slow", "singleton": True},
        {"delay": "1 hour", "timeout": "1 day"},
        {"delay": "0 seconds"},
        {"run_at": "2001-02-03T04:05:06.789+02:00"},
        {"run_at": "9998-12-30T00:00:00Z", "timeout": "104 weeks"},
    ],
    ids=lambda options: ", ".join(options) or "nothing",
)
def test_a_start_returns_the_run_as_it_is_stored(
    engine: WorkflowEngine, options: dict[str, Any], declared: bool
) -> None:
    if declared:
        engine.worker().run_until_idle(timeout=20)
        assert engine.get_runs(limit=1).items == []
    given = Order(number=12345678901234567890, note="é\u2028 \N{EGYPTIAN HIEROGLYPH A001}")
    assert rows(engine.conninfo, "select id from pgworkflows.workflows where id = 'ship'") == ([("ship",)] * declared)
    run = engine.start_workflow(ship, given, **options)
    assert run == engine.get_run(run.id)
    assert run.queue == options.get("queue", "orders")
    with psycopg.connect(engine.conninfo, options="-c timezone=Asia/Kathmandu -c intervalstyle=iso_8601") as conn:
        again = {**options, "idempotency_key": "another", "singleton": False}
        theirs = engine.start_workflow("ship", given.model_dump(), connection=conn, **again)
        existing = engine.start_workflow("ship", given.model_dump(), connection=conn, **again)
        conn.commit()
    assert theirs == existing == engine.get_run(theirs.id)


class Urgency(int, Enum):
    HIGH = 100


def test_a_number_may_be_a_member_of_an_enum(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(ship, Order(number=1), priority=Urgency.HIGH)
    several = engine.start_workflows(ship, [Order(number=1)], priority=Urgency.HIGH)
    assert [each.priority for each in (run, *several)] == [100, 100]


def test_the_refusal_does_not_abort_the_callers_transaction(engine: WorkflowEngine) -> None:
    running = engine.start_workflow(report)
    with psycopg.connect(engine.conninfo) as conn:
        with pytest.raises(WorkflowRunInProgressError):
            engine.start_workflow(report, connection=conn)
        with pytest.raises(WorkflowRunInProgressError):
            engine.start_workflows(report, [None], connection=conn)
        other = engine.start_workflow(ship, Order(number=1), connection=conn)
        engine.cancel_workflow(running.id)
        cancelled = engine.start_workflow(report, connection=conn)
        engine.cancel_workflow(cancelled.id, connection=conn)
    assert engine.get_run(other.id).status is RunStatus.PENDING
    again = engine.start_workflow(report)
    with psycopg.connect(engine.conninfo) as conn:
        with pytest.raises(WorkflowRunInProgressError):
            engine.retry_workflow(cancelled.id, connection=conn)
        assert conn.execute("select 1").fetchone() == (1,)
    assert engine.get_run(again.id).status is RunStatus.PENDING


def test_sql_refuses_a_second_singleton_with_its_own_state(engine: WorkflowEngine) -> None:
    engine.start(worker=False)
    with psycopg.connect(engine.conninfo, autocommit=True) as conn:
        conn.execute("select pgworkflows.start_workflow('report')")
        with pytest.raises(psycopg.Error, match="workflow report is a singleton, and run .* of it is pending") as e:
            conn.execute("select pgworkflows.start_workflow('report')")
        assert e.value.sqlstate == "PW004"
        conn.execute("select pgworkflows.start_workflow('report', singleton => false)")


# --- many at once


def test_many_runs_start_in_the_order_of_their_inputs(engine: WorkflowEngine) -> None:
    runs = engine.start_workflows(ship, [Order(number=n) for n in range(2500)], resource_id="shop")
    assert [run.input["number"] for run in runs] == list(range(2500))
    assert sorted(runs, key=lambda run: run.id) == runs
    first = runs[0]
    assert (first.queue, first.priority, first.max_retries, first.resource_id) == ("orders", 100, 2, "shop")
    assert first == engine.get_run(first.id)
    assert value(engine.conninfo, "select count(*) from pgworkflows.queue") == 2500


def test_what_was_started_together_is_executed(engine: WorkflowEngine) -> None:
    runs = engine.start_workflows(ship, [{"number": n} for n in range(50)])
    with working(engine):
        for number, run in enumerate(runs):
            assert engine.wait_for_run(run.id, timeout=20).output == number


def test_an_input_that_does_not_fit_starts_nothing(engine: WorkflowEngine) -> None:
    inputs: list[dict[str, Any]] = [{"number": 1}, {"number": "many"}, {"number": 3}]
    with pytest.raises(InvalidInputError) as e:
        engine.start_workflows(ship, inputs)
    assert e.value.message.startswith("inputs[1]: the input of workflow 'ship' does not fit")
    assert e.value.issues[0]["loc"] == (1, "number")
    with pytest.raises(SerializationError, match=r"^inputs\[1\]: "):
        engine.start_workflows("ship", [{"number": 1}, {"number": 2, "note": "\0"}])
    with pytest.raises(WorkflowNotFoundError):
        engine.start_workflows("unknown", [None])
    assert value(engine.conninfo, "select count(*) from pgworkflows.runs") == 0


@pytest.mark.parametrize("inputs", [{"number": 1}, Order(number=1), "1", b"1", 1, None])
def test_one_input_is_not_many(engine: WorkflowEngine, inputs: Any) -> None:
    with pytest.raises(TypeError):
        engine.start_workflows(ship, inputs)


def test_no_inputs_start_nothing(engine: WorkflowEngine) -> None:
    assert engine.start_workflows(ship, []) == []
    assert engine.start_workflows(ship, iter([])) == []


def test_each_input_may_have_a_key(engine: WorkflowEngine) -> None:
    orders = [Order(number=n) for n in range(4)]
    first = engine.start_workflows(ship, orders, idempotency_keys=["a", "b", None, "a"])
    assert first[3].id == first[0].id
    assert [run.idempotency_key for run in first] == ["a", "b", None, "a"]
    second = engine.start_workflows(ship, orders, idempotency_keys=["b", "c", None, "a"])
    assert (second[0].id, second[3].id) == (first[1].id, first[0].id)
    assert {second[1].id, second[2].id}.isdisjoint(run.id for run in first)
    assert value(engine.conninfo, "select count(*) from pgworkflows.runs") == 5
    with pytest.raises(ValueError, match="there are 4 inputs, but 1 idempotency_keys"):
        engine.start_workflows(ship, orders, idempotency_keys=["a"])
    with pytest.raises(ValueError, match="idempotency_key must have 1 to 256 characters") as e:
        engine.start_workflows(ship, orders, idempotency_keys=["a", "", None, "c"])
    assert e.value.__notes__ == ["at inputs[1]"]
    with pytest.raises(TypeError, match="idempotency_keys must be a list of keys"):
        engine.start_workflows(ship, orders, idempotency_keys="abcd")


def test_a_key_of_another_run_takes_all_back(engine: WorkflowEngine) -> None:
    other = engine.start_workflow(report, idempotency_key="taken")
    with pytest.raises(IdempotencyConflictError, match="'taken'") as e:
        engine.start_workflows(ship, [{"number": 1}, {"number": 2}], idempotency_keys=["new", "taken"])
    assert e.value.run_id == other.id
    with pytest.raises(IdempotencyConflictError):
        engine.start_workflows(report, [None], idempotency_keys=["taken"], resource_id="somebody")
    assert value(engine.conninfo, "select count(*) from pgworkflows.runs") == 1
    assert value(engine.conninfo, "select count(*) from pgworkflows.queue") == 1


def test_two_runs_of_a_singleton_cannot_be_started_together(engine: WorkflowEngine) -> None:
    with pytest.raises(WorkflowRunInProgressError, match="only one run of it can be started at a time"):
        engine.start_workflows(report, [None, None])
    assert value(engine.conninfo, "select count(*) from pgworkflows.runs") == 0
    [run] = engine.start_workflows(report, [None])
    with pytest.raises(WorkflowRunInProgressError) as e:
        engine.start_workflows(report, [None])
    assert e.value.run_id == run.id


def test_many_starts_with_the_same_keys_in_any_order_start_each_once(engine: WorkflowEngine) -> None:
    keys = [f"key-{n}" for n in range(300)]
    turn = iter(range(6))
    lock = threading.Lock()

    def act() -> list[Any]:
        with lock:
            number = next(turn)
        order = keys[number * 50 :] + keys[: number * 50]
        runs = engine.start_workflows(ship, [Order(number=1) for _ in order], idempotency_keys=order)
        return sorted((run.idempotency_key, run.id) for run in runs)

    found = together(6, act)
    assert all(each == found[0] for each in found)
    assert value(engine.conninfo, "select count(*) from pgworkflows.runs") == 300


def test_in_the_callers_transaction_they_start_when_it_commits(engine: WorkflowEngine) -> None:
    with psycopg.connect(engine.conninfo) as conn:
        engine.start_workflows(ship, [{"number": 1}, {"number": 2}], connection=conn)
        assert value(engine.conninfo, "select count(*) from pgworkflows.runs") == 0
        conn.rollback()
        assert value(engine.conninfo, "select count(*) from pgworkflows.runs") == 0
        engine.start_workflows(ship, [{"number": 3}], connection=conn, delay="1 hour")
    [(number, wait)] = rows(
        engine.conninfo,
        "select r.input ->> 'number', q.wake_at - r.created_at from pgworkflows.runs as r "
        "join pgworkflows.queue as q on q.run_id = r.id",
    )
    assert (number, wait.total_seconds()) == ("3", 3600)


def test_a_sleeping_worker_is_woken_by_them(engine: WorkflowEngine) -> None:
    with working(engine, poll_interval="10 s"):
        until(lambda: rows(engine.conninfo, "select queue from pgworkflows.sleepers"), "it sleeps")
        [run] = engine.start_workflows(ship, [{"number": 7}])
        done = engine.wait_for_run(run.id, timeout=5)
    assert done.output == 7


def test_what_was_sent_is_kept_to_the_letter(engine: WorkflowEngine) -> None:
    with WorkflowClient(engine.conninfo) as client:
        [run] = client.start_workflows("any", [{"z": 1e16, "a": [1.0, "ü\u2028"]}])
    assert list(run.input) == ["z", "a"]
    assert isinstance(run.input["z"], float)
    assert run.input["a"] == [1.0, "ü\u2028"]


# --- who is there


def test_progress_says_how_many_live_workers_would_take_the_run(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(report)
    elsewhere = engine.start_workflow(report, singleton=False, queue="elsewhere")
    assert engine.check_progress(run.id).live_workers == 0
    with working(engine):
        until(lambda: engine.check_progress(run.id).live_workers == 1, "a worker serves it")
        assert engine.check_progress(elsewhere.id).live_workers == 0
        engine.unregister_workflow("report")
        until(lambda: engine.check_progress(run.id).live_workers == 0, "the worker has it no more")
        engine.register_workflow(report)
        until(lambda: engine.check_progress(run.id).live_workers == 1, "the worker has it again")
    assert engine.check_progress(run.id).live_workers == 0
