"""The inspector: what it finds of runs, workers and workflows."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel
from waiting import until
from working import HandWorker, rows, worker_processes, working

from pgworkflows import RunStatus, Step, Steps, WorkflowClient, WorkflowEngine, workflow
from pgworkflows.inspection import ChangeKind, Inspector, Stuck, StuckReason


class Parcel(BaseModel):
    weight_g: int


@workflow("deliver")
def deliver(step: Step, input: Parcel) -> Steps[Any]:
    yield from step.run("pack", lambda: "packed")
    signed = yield from step.wait_for("signature", "signed", timeout="1 day")
    yield from step.run("file", lambda: "filed")
    return signed


@workflow("fail")
def fail(step: Step, input: Any) -> Steps[Any]:
    yield from step.run("break", broken, input)


def broken(words: str) -> None:
    raise RuntimeError(words)


@workflow("gated")
def gated(step: Step) -> Steps[None]:
    yield from step.run("wait", GATE.wait)


@workflow("patient")
def patient(step: Step) -> Steps[Any]:
    return (yield from step.wait_for("wait", "it's here"))


GATE = threading.Event()


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=[deliver, fail, gated, patient]) as engine:
        yield engine


@pytest.fixture
def inspector(engine: WorkflowEngine) -> Inspector:
    return Inspector(engine)


def test_a_run_is_found_by_each_of_its_traits(engine: WorkflowEngine, inspector: Inspector) -> None:
    parent = engine.start_workflow(deliver, Parcel(weight_g=1), resource_id="ada", idempotency_key="order-7")
    other = engine.start_workflow(fail, "the Disk is 100% full_", queue="default")
    engine.worker().run_until_idle("20s")
    found = [
        (inspector.find_runs(), [other.id, parent.id]),
        (inspector.find_runs(workflow_id="deliver"), [parent.id]),
        (inspector.find_runs(resource_id="ada"), [parent.id]),
        (inspector.find_runs(queue="default", workflow_id="fail"), [other.id]),
        (inspector.find_runs(queue="other"), []),
        (inspector.find_runs(statuses=["waiting"]), [parent.id]),
        (inspector.find_runs(statuses=["failed"]), [other.id]),
        (inspector.find_runs(statuses=["failed"], workflow_id="fail"), [other.id]),
        (inspector.find_runs(statuses=["failed", "waiting"]), [other.id, parent.id]),
        (inspector.find_runs(statuses=[]), []),
        (inspector.find_runs(started_after=other.created_at), [other.id]),
        (inspector.find_runs(started_before=other.created_at), [parent.id]),
        (inspector.find_runs(parent_run_id=parent.id), []),
        (inspector.find_runs(text=str(other.id)), [other.id]),
        (inspector.find_runs(text=str(other.id)[:20]), [other.id]),
        (inspector.find_runs(text="order-7"), [parent.id]),
        (inspector.find_runs(text="ada"), [parent.id]),
        (inspector.find_runs(text="runtimeERROR full"), [other.id]),
        (inspector.find_runs(text="100% FULL_"), [other.id]),
        (inspector.find_runs(text="100% f_ll_"), []),
        (inspector.find_runs(text=" "), [other.id, parent.id]),
    ]
    for number, (page, expected) in enumerate(found):
        assert [run.id for run in page.items] == expected, number
        assert (page.next_cursor, page.prev_cursor, page.searched_back_to) == (None, None, None)
    assert inspector.count_runs(statuses=["failed"]).runs == 1


def test_pages_go_there_and_back(engine: WorkflowEngine, inspector: Inspector) -> None:
    runs = engine.start_workflows(fail, ["x"] * 7)
    ids = sorted((run.id for run in runs), reverse=True)
    first = inspector.find_runs(limit=3)
    second = inspector.find_runs(limit=3, cursor=first.next_cursor)
    third = inspector.find_runs(limit=3, cursor=second.next_cursor)
    assert [run.id for page in (first, second, third) for run in page.items] == ids
    assert (first.prev_cursor, third.next_cursor) == (None, None)
    back = inspector.find_runs(limit=3, cursor=third.prev_cursor, newer=True)
    assert back.items == second.items
    again = inspector.find_runs(limit=3, cursor=back.prev_cursor, newer=True)
    assert again.items == first.items
    assert again.prev_cursor is None
    assert inspector.find_runs(limit=3, cursor=again.next_cursor).items == second.items
    assert (inspector.count_runs(limit=5).runs, inspector.count_runs(limit=5).at_least) == (5, True)
    assert (inspector.count_runs(limit=7).runs, inspector.count_runs(limit=7).at_least) == (7, False)


def test_a_timeline_tells_what_was_done_what_is_waited_for_and_what_is_ahead(
    engine: WorkflowEngine, inspector: Inspector
) -> None:
    engine.start(worker=False)
    run = engine.start_workflow(deliver, Parcel(weight_g=1))
    waiting = inspector.get_timeline(run.id).waits_for
    assert waiting is not None
    assert (waiting.kind, waiting.remedy and waiting.remedy.operation) == ("worker", "start_worker")
    engine.worker().run_until_idle("20s")
    engine.trigger_event(run.id, "misspelt", {"a": 1})
    found = inspector.get_timeline(run.id)
    assert [entry.step.step_id for entry in found.entries] == ["pack", "signature"]
    assert (found.entries[0].ended_at is not None, found.entries[1].ended_at) == (True, None)
    assert [(event.name, event.data) for event in found.events] == [("misspelt", {"a": 1})]
    assert (found.ahead, found.passed_over) == (["file"], [])
    assert found.waits_for is not None
    assert found.waits_for.until is not None
    assert f"pgworkflows trigger {run.id} signed" in str(found.waits_for)
    engine.trigger_event(run.id, "signed")
    engine.worker().run_until_idle("20s")
    ended = inspector.get_timeline(run.id, limit=2)
    assert (ended.waits_for, ended.ahead, ended.next_position) == (None, [], 1)
    rest = inspector.get_timeline(run.id, after_position=ended.next_position)
    assert [entry.step.step_id for entry in rest.entries] == ["file"]


def test_an_overview_counts(engine: WorkflowEngine, inspector: Inspector) -> None:
    engine.start(worker=False)
    engine.start_workflow(deliver, Parcel(weight_g=1))
    engine.start_workflow(fail, "x")
    with working(engine):
        until(lambda: inspector.find_runs(statuses=["failed"]).items, "it fails")
        until(lambda: inspector.find_runs(statuses=["waiting"]).items, "it waits")
        found = inspector.get_overview()
        [worker] = inspector.get_workers()
    assert found.unfinished[RunStatus.WAITING] == 1
    assert (found.last_day.started, found.last_day.failed, found.live_workers) == (2, 1, 1)
    assert found.problems == ()
    assert worker.live
    assert {*worker.workflows} == {"deliver", "fail", "gated", "patient"}
    declared = {each.id: each for each in inspector.get_declared()}
    schema = declared["deliver"].input_schema
    assert schema is not None
    assert schema["properties"]["weight_g"]["type"] == "integer"
    assert declared["fail"].input_schema is None


def test_changes_are_told_once(engine: WorkflowEngine, inspector: Inspector) -> None:
    mark = inspector.get_changes().mark
    run = engine.start_workflow(fail, "x")
    engine.worker().run_until_idle("20s")
    found = inspector.get_changes(mark)
    assert [change.kind for change in found.items] == [ChangeKind.RUN_STARTED, ChangeKind.STEP, ChangeKind.RUN_ENDED]
    assert {change.run_id for change in found.items} == {run.id}
    assert inspector.get_changes(str(found.mark)).items == []
    assert [change.kind for change in inspector.get_changes(mark, run_id=run.id).items] == [
        ChangeKind.RUN_STARTED,
        ChangeKind.STEP,
        ChangeKind.RUN_ENDED,
    ]


# Stuck --------------------------------------------------------------------------------------------------------------

AT_ONCE: dict[str, Any] = {"lag_over": 0, "waits_older_than": 0, "steps_longer_than": 0}


def the_one_that_is_stuck(inspector: Inspector, reason: StuckReason, **thresholds: Any) -> Stuck:
    """What is found, once it is."""
    found = until(lambda: inspector.get_stuck(**thresholds), f"{reason} is found")
    assert [each.reason for each in found] == [reason]
    return found[0]


def test_nothing_is_stuck_where_nothing_is_or_where_all_is_well(engine: WorkflowEngine, inspector: Inspector) -> None:
    assert inspector.get_stuck(**AT_ONCE) == []
    with working(engine):
        runs = engine.start_workflows(deliver, [{"weight_g": number} for number in range(200)])
        found: list[Stuck] = []
        while len(inspector.find_runs(statuses=["waiting"], limit=201).items) < len(runs):
            found += inspector.get_stuck()
        found += inspector.get_stuck()
    assert found == []
    # Waits with a deadline are none of it, however old.
    assert inspector.get_stuck(**AT_ONCE) == []


def test_runs_that_no_worker_would_take_are_stuck(engine: WorkflowEngine, inspector: Inspector) -> None:
    client_only = WorkflowClient(engine.conninfo)
    run = client_only.start_workflow("no'body")
    assert inspector.get_stuck() == []
    alone = the_one_that_is_stuck(inspector, StuckReason.NO_WORKER_HAS_WORKFLOW, lag_over=0)
    assert (alone.workflow_id, alone.queue, alone.runs, alone.examples) == ("no'body", "default", 1, [run.id])
    assert "no worker lives" in alone.explanation
    with working(engine):
        found = the_one_that_is_stuck(inspector, StuckReason.NO_WORKER_HAS_WORKFLOW, lag_over=0)
        assert found.explanation.endswith("no live worker has that workflow")
        assert found.remedy == "start a worker whose engine has workflow \"no'body\" and serves queue 'default'"
        client_only.cancel_workflow(run.id)
        engine.start_workflow(fail, "x", queue="no such lane")
        lane = the_one_that_is_stuck(inspector, StuckReason.NO_WORKER_SERVES_QUEUE, lag_over=0)
        assert "--queues 'no such lane'" in lane.remedy
    client_only.close()


def test_what_is_due_and_not_woken_is_stuck(engine: WorkflowEngine, inspector: Inspector) -> None:
    run = engine.start_workflow(fail, "x", delay="0.1s")
    found = the_one_that_is_stuck(inspector, StuckReason.OVERDUE, lag_over="0.1s")
    assert (found.examples, found.remedy) == ([run.id], "start a worker: any live worker wakes what is due")
    with psycopg.connect(engine.conninfo) as conn:
        conn.execute("select from pgworkflows.queue for update")
        with working(engine):
            held = the_one_that_is_stuck(inspector, StuckReason.OVERDUE, lag_over="0.1s")
            assert "somebody holds the rows" in held.explanation
            conn.rollback()
            until(lambda: engine.get_run(run.id).status.finished, "it goes on")
            assert inspector.get_stuck(lag_over="0.1s") == []


def test_a_step_that_does_not_end_is_stuck_and_who_waits_for_its_worker_lags(
    engine: WorkflowEngine, inspector: Inspector
) -> None:
    GATE.clear()
    with working(engine, threads=1, max_runs=1):
        first = engine.start_workflow(gated)
        until(lambda: inspector.find_runs(statuses=["running"]).items, "it runs")
        flight = the_one_that_is_stuck(inspector, StuckReason.STEP_IN_FLIGHT, steps_longer_than="0.1s")
        assert (flight.examples, f":{os.getpid()}" in flight.explanation) == ([first.id], True)
        second = engine.start_workflow(gated)
        lagging = the_one_that_is_stuck(inspector, StuckReason.LAGGING, lag_over="0.1s")
        assert lagging.examples == [second.id]
        GATE.set()
        until(lambda: engine.get_run(second.id).status.finished, "both end")
        assert inspector.get_stuck(lag_over="0.1s", steps_longer_than="0.1s") == []


def test_waits_without_a_deadline_and_pauses_are_stuck_when_they_are_old(
    engine: WorkflowEngine, inspector: Inspector
) -> None:
    waiting, paused = engine.start_workflow(patient), engine.start_workflow(deliver, Parcel(weight_g=1))
    engine.worker().run_until_idle("20s")
    engine.pause_workflow(paused.id)
    assert inspector.get_stuck() == []
    wait, pause = sorted(inspector.get_stuck(waits_older_than=0), key=lambda each: each.reason, reverse=True)
    assert (wait.reason, wait.examples) == (StuckReason.WAITS_FOR_EVENT, [waiting.id])
    assert f"pgworkflows trigger {waiting.id} 'it'\"'\"'s here'" in wait.remedy
    assert (pause.reason, pause.examples) == (StuckReason.PAUSED, [paused.id])
    assert f"pgworkflows resume {paused.id}" in pause.remedy


def test_a_run_with_which_workers_die_is_stuck(engine: WorkflowEngine, inspector: Inspector) -> None:
    engine.start_workflow(fail, "x")
    for _ in range(3):
        with HandWorker(engine.conninfo, ["fail"]) as worker:
            worker.claim_one()
            worker.die()
            worker.take_over()
    found = the_one_that_is_stuck(inspector, StuckReason.INTERRUPTED)
    assert "up to 3 times in a row a worker died" in found.explanation


@pytest.mark.direct("without its lock a worker is dead when its lease has run out")
def test_the_runs_of_a_worker_that_is_silent_are_stuck_until_another_comes(database_url: str) -> None:
    with WorkflowClient(database_url) as client, worker_processes(database_url) as processes:
        inspector = Inspector(client)
        process = processes.start(lease="2s")
        process.await_registration()
        run = client.start_workflow("story", {"steps": ["a"], "gated": ["a"]})
        until(processes.calls, "its step is called")
        assert inspector.get_stuck(lag_over="1s") == []
        process.send(signal.SIGSTOP)
        found = the_one_that_is_stuck(inspector, StuckReason.WORKER_DEAD, lag_over="1s")
        assert (found.examples, f":{process.pid}, silent for" in found.explanation) == ([run.id], True)
        waits = inspector.get_timeline(run.id).waits_for
        assert (waits and waits.kind) == "takeover"
        process.kill()
        assert the_one_that_is_stuck(inspector, StuckReason.WORKER_DEAD, lag_over="1s").examples == [run.id]
        processes.open_gate("a")
        processes.start(lease="2s")
        client.wait_for_run(run.id, timeout="30s")
        assert inspector.get_stuck(lag_over="1s") == []


def test_a_run_that_a_worker_has_given_back_is_not_late_by_all_the_time_that_it_was_worked_on(
    engine: WorkflowEngine, inspector: Inspector
) -> None:
    engine.start_workflow(fail, "x")
    rows(
        engine.conninfo,
        "update pgworkflows.queue set ready_at = ready_at - interval '1 day', rank = rank - interval '1 day'",
    )
    with HandWorker(engine.conninfo, ["fail"]) as worker:
        worker.claim_one()
        worker.die()
        worker.take_over()
    assert inspector.get_stuck() == []
