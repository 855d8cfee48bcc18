"""The inspector: what it finds of runs, workers and workflows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from waiting import until
from working import working

from pgworkflows import RunStatus, Step, Steps, WorkflowClient, WorkflowEngine, workflow
from pgworkflows.inspection import ChangeKind, Inspector


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


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=[deliver, fail]) as engine:
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
    assert {*worker.workflows} == {"deliver", "fail"}
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


def test_what_nobody_has_is_stuck(database_url: str) -> None:
    with WorkflowClient(database_url) as client:
        inspector = Inspector(client)
        assert inspector.get_stuck(lag_over=0) == []
        run = client.start_workflow("nobody-has-it")
        [found] = inspector.get_stuck(lag_over=0)
        assert (found.reason, found.runs, found.examples) == ("no_worker_has_workflow", 1, [run.id])
