"""The inspector: what it finds of runs, workers and workflows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel
from waiting import until
from working import HandWorker, rows, working

from pgworkflows import RunStatus, Step, Steps, WorkflowClient, WorkflowEngine, WorkflowRun, workflow
from pgworkflows.inspection import ChangeKind, Inspector, finding


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


@pytest.mark.parametrize(("scanned", "limit"), [(7, 3), (20, 2)])
def test_pages_that_may_look_at_few_rows_find_all_the_same(
    engine: WorkflowEngine, inspector: Inspector, monkeypatch: pytest.MonkeyPatch, scanned: int, limit: int
) -> None:
    monkeypatch.setattr(finding, "SCANNED_ROWS", scanned)
    monkeypatch.setattr(finding, "SCANNED_ERRORS", scanned)
    for number in range(40):
        owner = f"r{number % 3}"
        if number % 4:
            engine.start_workflow(
                fail, "odd" if number % 10 == 1 else "even", resource_id=owner, queue=f"q{number % 2}"
            )
        else:
            engine.start_workflow(deliver, Parcel(weight_g=1), resource_id=owner)
    engine.worker(queues=["default", "q0", "q1"]).run_until_idle("20s")
    everything = engine.get_runs(limit=1000).items
    for run in [run for run in everything if run.status == "waiting"][::3]:
        engine.pause_workflow(run.id)
    everything = engine.get_runs(limit=1000).items
    middle = everything[20].created_at
    filters: list[tuple[dict[str, Any], Callable[[WorkflowRun], object]]] = [
        ({}, lambda run: True),
        ({"workflow_id": "fail"}, lambda run: run.workflow_id == "fail"),
        ({"statuses": ["failed"]}, lambda run: run.status == "failed"),
        ({"statuses": ["failed"], "workflow_id": "deliver"}, lambda run: False),
        ({"statuses": ["failed"], "resource_id": "r1"}, lambda run: run.status == "failed" and run.resource_id == "r1"),
        ({"statuses": ["paused"]}, lambda run: run.status == "paused"),
        ({"statuses": ["paused", "waiting"]}, lambda run: run.workflow_id == "deliver"),
        ({"statuses": ["paused", "failed"], "queue": "q1"}, lambda run: run.status == "failed" and run.queue == "q1"),
        ({"text": "r2"}, lambda run: run.resource_id == "r2"),
        ({"text": "ODD runtime"}, lambda run: run.error and run.error["message"] == "odd"),
        ({"text": "odd", "workflow_id": "fail"}, lambda run: run.error and run.error["message"] == "odd"),
        ({"started_after": middle}, lambda run: run.created_at >= middle),
        (
            {"started_before": middle, "queue": "default"},
            lambda run: run.created_at < middle and run.queue == "default",
        ),
    ]
    for wanted, fits in filters:
        expected = [run.id for run in everything if fits(run)]
        assert all_pages(inspector, newer=False, limit=limit, **wanted) == expected, wanted
        assert all_pages(inspector, newer=True, limit=limit, **wanted) == expected[::-1], wanted
        counted = inspector.count_runs(**wanted)
        assert (counted.runs, counted.at_least) == (len(expected), False), wanted


def all_pages(inspector: Inspector, *, newer: bool, **wanted: Any) -> list[UUID]:
    """The ids on all pages, from one end to the other."""
    found: list[UUID] = []
    cursor = None
    while True:
        page = inspector.find_runs(cursor=cursor, newer=newer, **wanted)
        found += [run.id for run in (reversed(page.items) if newer else page.items)]
        cursor = page.prev_cursor if newer else page.next_cursor
        if cursor is None:
            return found


def test_what_is_looked_for_is_taken_literally(engine: WorkflowEngine, inspector: Inspector) -> None:
    words = ["%", "_", "\\", "'; drop table pgworkflows.runs; --", "$1", "%s", "{}", "\u202e", "ﬁ", "a\tb"]
    for word in words:
        engine.start_workflow(fail, f"<{word}>")
    engine.worker().run_until_idle("20s")
    for word in words:
        messages = [run.error and run.error["message"] for run in inspector.find_runs(text=f"<{word}>").items]
        assert messages == [f"<{word}>"], word
    for wrong in ("a\0b", "a\ud800", "x" * 1001):
        with pytest.raises(ValueError, match="text must"):
            inspector.find_runs(text=wrong)


def test_no_index_of_runs_names_what_the_end_of_a_run_changes(database_url: str) -> None:
    named = rows(
        database_url,
        "select distinct a.attname::text from pg_index as i "
        "join pg_depend as d on d.objid = i.indexrelid and d.refobjid = i.indrelid and d.refobjsubid > 0 "
        "join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = d.refobjsubid "
        "where i.indrelid = 'pgworkflows.runs'::regclass",
    )
    changed = {"status", "output", "updated_at", "completed_at", "current_step_id", "started_at", "scheduled_at"}
    assert {name for (name,) in named} & changed == set()
    assert "error" in {name for (name,) in named}  # which only failures change


def test_a_run_of_ten_thousand_steps_is_shown_in_parts(engine: WorkflowEngine, inspector: Inspector) -> None:
    run = engine.start_workflow(fail, "x")
    rows(
        engine.conninfo,
        "insert into pgworkflows.steps (run_id, position, step_id, kind, status, output, started_at, completed_at) "
        "select %s, n, 's' || n, 'run', 'completed', '1', now(), now() from generate_series(0, 9999) as n",
        run.id,
    )
    seen: list[int] = []
    after = None
    while True:
        found = inspector.get_timeline(run.id, limit=4000, after_position=after)
        seen += [entry.step.position for entry in found.entries]
        after = found.next_position
        if after is None:
            break
    assert seen == [*range(10_000)]


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


def test_large_payloads_are_left_out_where_that_is_asked_for(engine: WorkflowEngine, inspector: Inspector) -> None:
    run = engine.start_workflow(fail, "x")
    outputs = ["null", '"' + "é" * 49 + '"', '"' + "é" * 50 + '"', '"' + "x" * 50_000 + '"', None]
    rows(
        engine.conninfo,
        "insert into pgworkflows.steps (run_id, position, step_id, kind, status, output, started_at, completed_at) "
        "select %s, n, 's' || n, 'run', 'completed', each::json, now(), now() "
        "from unnest(%s::text[]) with ordinality as given (each, n)",
        run.id,
        outputs,
    )
    rows(
        engine.conninfo,
        "insert into pgworkflows.steps (run_id, position, step_id, kind, status, output, started_at, completed_at) "
        "select %s, 6, 's6', 'run', 'completed', to_json(string_agg(md5(n::text), '')), now(), now() "
        "from generate_series(1, 30000) as n",
        run.id,
    )
    engine.trigger_event(run.id, "small", 1)
    engine.trigger_event(run.id, "large", "x" * 100)
    found = inspector.get_timeline(run.id, payload_limit=100)
    assert [entry.step.output for entry in found.entries] == [None, "é" * 49, None, None, None, None]
    assert [entry.omitted_bytes is not None for entry in found.entries] == [False, False, True, True, False, True]
    assert [(event.data, event.omitted_bytes is not None) for event in found.events] == [(1, False), (None, True)]
    sizes = [entry.omitted_bytes or 0 for entry in found.entries]
    assert (sizes[3] < 5_000, sizes[5] > 960_000) == (True, True)  # as they are stored: the one is compressed
    whole = inspector.get_timeline(run.id)
    assert [len(str(entry.step.output)) for entry in whole.entries] == [4, 49, 50, 50_000, 4, 960_000]
    assert [event.data for event in whole.events] == [1, "x" * 100]
    assert [inspector.get_step(run.id, entry.step.position) for entry in whole.entries] == [
        entry.step for entry in whole.entries
    ]
    assert [inspector.get_event(run.id, event.id) for event in found.events] == whole.events
    other = engine.start_workflow(fail, "x")
    assert (inspector.get_step(run.id, 0), inspector.get_event(other.id, found.events[0].id)) == (None, None)
    assert {entry.omitted_bytes for entry in whole.entries} == {event.omitted_bytes for event in whole.events} == {None}
    for wrong in (-1, True, "9", 1 << 31):
        with pytest.raises(ValueError, match="payload_limit must be a number of bytes"):
            inspector.get_timeline(run.id, payload_limit=wrong)  # type: ignore[arg-type]  # what is refused
    for position in (-1, 1 << 31):
        with pytest.raises(ValueError, match="position must be the position of a step"):
            inspector.get_step(run.id, position)
    for number in (-1, 1 << 63):
        with pytest.raises(ValueError, match="event_id must be the id of an event"):
            inspector.get_event(run.id, number)


def test_a_run_in_hand_counts_as_what_it_was_asked_to_become(database_url: str) -> None:
    with WorkflowClient(database_url) as client, HandWorker(database_url, ["fail"]) as worker:
        runs = client.start_workflows("fail", [None] * 4)
        assert len(worker.claim(3).runs) == 3
        held = [run.id for run in client.get_runs(statuses=["running"]).items]
        client.pause_workflow(held[0])
        client.cancel_workflow(held[1])
        inspector = Inspector(client)
        counts = {
            status: inspector.count_runs(statuses=[status]).runs
            for status in ("pending", "running", "waiting", "paused", "cancelled")
        }
        assert counts == {"pending": 1, "running": 1, "waiting": 0, "paused": 1, "cancelled": 1}
        unfinished = inspector.find_runs(statuses=["pending", "running", "paused"]).items
        assert {run.id for run in unfinished} == {run.id for run in runs} - {held[1]}
        assert [run.id for run in inspector.find_runs(statuses=["paused"]).items] == [held[0]]


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


def test_a_start_that_is_committed_late_is_told_of(engine: WorkflowEngine, inspector: Inspector) -> None:
    with psycopg.connect(engine.conninfo) as conn:
        run = engine.start_workflow(fail, "x", connection=conn)
        mark = inspector.get_changes().mark
        assert inspector.get_changes(mark).items == []
        conn.commit()
    [change] = inspector.get_changes(mark).items
    assert (change.kind, change.run_id) == (ChangeKind.RUN_STARTED, run.id)


def test_of_many_changes_the_newest_are_told_and_that_there_were_more(
    engine: WorkflowEngine, inspector: Inspector
) -> None:
    mark = inspector.get_changes().mark
    runs = engine.start_workflows(fail, ["x"] * 5)
    found = inspector.get_changes(mark, limit=2)
    assert (found.skipped, len(found.items)) == (True, 2)
    assert not inspector.get_changes(mark, limit=5).skipped
    assert inspector.get_changes(found.mark).items == []
    assert {change.run_id for change in found.items} < {run.id for run in runs}


def test_what_waits_and_is_called_again_is_told_of_one_run(engine: WorkflowEngine, inspector: Inspector) -> None:
    run = engine.start_workflow(deliver, Parcel(weight_g=1))
    mark = inspector.get_changes().mark
    engine.worker().run_until_idle("20s")
    found = [change for change in inspector.get_changes(mark, run_id=run.id).items if change.kind is ChangeKind.STEP]
    assert [(change.step_id, change.status) for change in found] == [("pack", "completed"), ("signature", "waiting")]
    engine.cancel_workflow(run.id)
    kinds = [change.kind for change in inspector.get_changes(mark).items]
    assert kinds.count(ChangeKind.RUN_ENDED) == 1


def test_older_code_leaves_the_schema_of_an_input_as_it_is(engine: WorkflowEngine, inspector: Inspector) -> None:
    engine.start(worker=False)
    known = {each.id: each.input_schema for each in inspector.get_declared()}
    assert known["deliver"] is not None
    older = [{"id": "deliver", "queue": "default", "priority": 0, "retries": 1, "steps": [], "step_ids": []}]
    rows(engine.conninfo, "select pgworkflows.declare_workflows(%s)", json.dumps(older))
    found = {each.id: each for each in inspector.get_declared()}
    assert (found["deliver"].retries, found["deliver"].input_schema) == (1, known["deliver"])
    none = [{**older[0], "input_schema": "null"}]
    rows(engine.conninfo, "select pgworkflows.declare_workflows(%s)", json.dumps(none))
    assert {each.id: each.input_schema for each in inspector.get_declared()}["deliver"] is None


class Upwards:
    name = "upwards"

    def encode(self, text: str) -> str:
        return text[::-1]

    def decode(self, data: str) -> str:
        return data[::-1]


def test_what_is_encoded_is_shown_decoded_or_as_it_is_stored(database_url: str) -> None:
    with (
        WorkflowEngine(database_url, workflows=[deliver], codec=Upwards()) as engine,
        WorkflowClient(database_url) as without,
    ):
        run = engine.start_workflow(deliver, Parcel(weight_g=7))
        engine.trigger_event(run.id, "misspelt", {"a": 1})
        engine.worker().run_until_idle("20s")
        shown, stored = Inspector(engine).get_timeline(run.id), Inspector(without).get_timeline(run.id)
        assert (shown.run.input, shown.events[0].data, shown.entries[0].step.output) == (
            {"weight_g": 7}, {"a": 1}, "packed"
        )  # fmt: skip
        assert {"pgworkflows:encoded"} < {*stored.run.input} | {*stored.events[0].data}
        assert Inspector(without).find_runs().items[0] == stored.run
