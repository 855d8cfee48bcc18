"""What is stuck: each reason by what really brings it about, and nothing where all is well."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Iterator
from typing import Any

import click
import psycopg
import pytest
from waiting import until
from working import HandWorker, rows, worker_processes, working

from pgworkflows import Step, Steps, WorkflowClient, WorkflowEngine, workflow
from pgworkflows.cli.program import program
from pgworkflows.inspection import Inspector, Remedy, Stuck, StuckReason


@workflow("quick")
def quick(step: Step) -> Steps[None]:
    yield from step.run("nothing", lambda: None)


@workflow("gated")
def gated(step: Step) -> Steps[None]:
    yield from step.run("wait", GATE.wait)


@workflow("patient")
def patient(step: Step) -> Steps[Any]:
    return (yield from step.wait_for("wait", "it's here"))


@workflow("until-tomorrow")
def until_tomorrow(step: Step) -> Steps[Any]:
    return (yield from step.wait_for("wait", "go", timeout="1 day"))


GATE = threading.Event()
WORKFLOWS = [quick, gated, patient, until_tomorrow]


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=WORKFLOWS) as engine:
        yield engine


@pytest.fixture
def inspector(engine: WorkflowEngine) -> Inspector:
    return Inspector(engine)


AT_ONCE: dict[str, Any] = {"lag_over": 0, "waits_older_than": 0, "steps_longer_than": 0}


def the_one_that_is_stuck(inspector: Inspector, reason: StuckReason, **thresholds: Any) -> Stuck:
    """What is found, once it is."""
    found = until(lambda: inspector.get_stuck(**thresholds), f"{reason} is found")
    assert [each.reason for each in found] == [reason]
    return found[0]


def test_nothing_is_stuck_where_nothing_is_or_where_all_is_well(engine: WorkflowEngine, inspector: Inspector) -> None:
    assert inspector.get_stuck(**AT_ONCE) == []
    with working(engine):
        runs = engine.start_workflows(until_tomorrow, [None] * 200)
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
        engine.start_workflow(quick, queue="no such lane")
        lane = the_one_that_is_stuck(inspector, StuckReason.NO_WORKER_SERVES_QUEUE, lag_over=0)
        assert "--queue 'no such lane'" in lane.remedy
    client_only.close()


def test_what_is_due_and_not_woken_is_stuck(engine: WorkflowEngine, inspector: Inspector) -> None:
    run = engine.start_workflow(quick, delay="0.1s")
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
    waiting, paused = engine.start_workflow(patient), engine.start_workflow(until_tomorrow)
    engine.worker().run_until_idle("20s")
    engine.pause_workflow(paused.id)
    assert inspector.get_stuck() == []
    wait, pause = sorted(inspector.get_stuck(waits_older_than=0), key=lambda each: each.reason, reverse=True)
    assert (wait.reason, wait.examples) == (StuckReason.WAITS_FOR_EVENT, [waiting.id])
    assert f"pgworkflows trigger {waiting.id} 'it'\"'\"'s here'" in wait.remedy
    assert (pause.reason, pause.examples) == (StuckReason.PAUSED, [paused.id])
    assert f"pgworkflows resume {paused.id}" in pause.remedy


def test_a_run_with_which_workers_die_is_stuck(engine: WorkflowEngine, inspector: Inspector) -> None:
    engine.start_workflow(quick)
    for _ in range(3):
        with HandWorker(engine.conninfo, ["quick"]) as worker:
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
    engine.start_workflow(quick)
    rows(
        engine.conninfo,
        "update pgworkflows.queue set ready_at = ready_at - interval '1 day', rank = rank - interval '1 day'",
    )
    with HandWorker(engine.conninfo, ["quick"]) as worker:
        worker.claim_one()
        worker.die()
        worker.take_over()
    assert inspector.get_stuck() == []


def test_remedies_are_commands_that_there_are(engine: WorkflowEngine, inspector: Inspector) -> None:
    run = engine.start_workflow(patient)
    waits = [inspector.get_timeline(run.id).waits_for]
    engine.worker().run_until_idle("20s")
    waits.append(inspector.get_timeline(run.id).waits_for)
    engine.pause_workflow(run.id)
    waits.append(inspector.get_timeline(run.id).waits_for)
    remedies = [wait.remedy for wait in waits if wait is not None and wait.remedy is not None]
    assert [each.operation for each in remedies] == ["start_worker", "trigger_event", "resume_workflow"]
    remedies += [Remedy(name, {"run_id": str(run.id)}) for name in ("fast_forward_workflow", "cancel_workflow")]
    for remedy in remedies:
        _, name, *arguments = shlex.split(remedy.command)
        command = program.get_command(click.Context(program), name)
        assert command is not None, name
        command.make_context(name, arguments)
