"""Deploys: workers that are told to stop under load, and two releases of an application at work side by side."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from waiting import until
from working import WorkerProcesses, rows, value, worker_processes

from pgworkflows import RunStatus, StepStatus, WorkflowClient

GRACE_S = 2


@pytest.fixture
def client(database_url: str) -> Iterator[WorkflowClient]:
    with WorkflowClient(database_url) as client:
        yield client


@pytest.fixture
def processes(database_url: str) -> Iterator[WorkerProcesses]:
    with worker_processes(database_url) as processes:
        yield processes


def test_sigterm_under_load_loses_nothing_and_gives_everything_back_within_grace(
    client: WorkflowClient, processes: WorkerProcesses, database_url: str
) -> None:
    stopped = processes.start(threads=8, grace=GRACE_S)
    stopped.await_registration()
    slow = [run.id for run in client.start_workflows("story", [{"steps": ["slow"], "gated": ["slow"]}] * 3)]
    until(lambda: len(processes.calls()) == 3, "the slow steps are in flight")
    quick = [run.id for run in client.start_workflows("story", [{"steps": ["a", "b", "c"]}] * 200)]
    until(lambda: len(processes.calls()) > 100, "it is in the middle of them")
    told_at = time.monotonic()
    stopped.send(signal.SIGTERM)
    assert stopped.end() == 0
    took_s = time.monotonic() - told_at
    assert GRACE_S <= took_s < GRACE_S + 3, "the slow steps had their grace, and no more"
    assert rows(database_url, "select 1 from pgworkflows.workers") == []
    assert value(database_url, "select count(*) from pgworkflows.queue where claim_id is not null") == 0
    assert value(database_url, "select max(interruptions) from pgworkflows.queue") == 0
    # What was called is stored, but for the three.
    calls = Counter(rows(database_url, "select run_id, step_id from public.calls"))
    stored = set(rows(database_url, "select run_id, step_id from pgworkflows.steps where status = 'completed'"))
    assert set(calls) - stored == {(run_id, "slow") for run_id in slow}
    assert stored <= set(calls)
    assert value(database_url, "select count(*) from pgworkflows.queue") > len(slow), "there was more to do"

    processes.open_gate("slow")
    processes.start()
    until(lambda: not rows(database_url, "select 1 from pgworkflows.queue"), "another does the rest", within_s=60)
    assert {client.get_run(run_id).status for run_id in [*slow, *quick]} == {RunStatus.COMPLETED}
    calls = Counter(rows(database_url, "select run_id, step_id from public.calls"))
    assert Counter(calls.values()) == {2: len(slow), 1: 3 * len(quick)}


OLD = """
from stories import call
from pgworkflows import Step, Steps, workflow

@workflow("order")
def order(step: Step) -> Steps[list[int]]:
    reserved = yield step.run("reserve", call, False)
    yield step.wait_for("payment", "paid")
    return [reserved, (yield step.run("ship", call, False))]

@workflow("fax")
def fax(step: Step) -> Steps[int]:
    return (yield step.run("send", call, False))

@workflow("mail")
def mail(step: Step) -> Steps[int]:
    return (yield step.run("send", call, False))

WORKFLOWS = [order, fax, mail]
"""
# The fax is gone, invoices have come, and orders have a step more, before the wait in which some of them are.
NEW = (
    OLD.replace("""    yield step.wait_for""", """    yield step.run("check", call, False)\n    yield step.wait_for""")
    .replace('"fax"', '"invoice"')
    .replace("fax", "invoice")
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return release(tmp_path / "old", OLD)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return release(tmp_path / "new", NEW)


def release(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "release.py").write_text(text)
    return folder


def test_of_two_releases_at_work_each_claims_only_what_it_has(
    client: WorkflowClient, processes: WorkerProcesses, old: Path, new: Path
) -> None:
    before, after = processes.start(release=old), processes.start(release=new)
    before.await_registration()
    after.await_registration()
    faxes, invoices, mails = (
        [run.id for run in client.start_workflows(name, [None] * 30)] for name in ("fax", "invoice", "mail")
    )

    def done_by(runs: list[UUID]) -> set[int]:
        return {client.wait_for_run(run_id, timeout=30).output for run_id in runs}

    assert done_by(faxes) == {before.pid}
    assert done_by(invoices) == {after.pid}
    assert done_by(mails) <= {before.pid, after.pid}

    before.send(signal.SIGTERM)
    assert before.end() == 0
    late = client.start_workflow("fax").id
    assert done_by([client.start_workflow("invoice").id for _ in range(5)]) == {after.pid}
    assert client.get_run(late).status is RunStatus.PENDING
    assert client.check_progress(late).live_workers == 0
    again = processes.start(release=old)
    assert done_by([late]) == {again.pid}


def test_runs_that_the_new_code_cannot_replay_are_parked_and_go_on_after_a_rollback(
    client: WorkflowClient, processes: WorkerProcesses, database_url: str, old: Path, new: Path
) -> None:
    first = processes.start(release=old)
    runs = [run.id for run in client.start_workflows("order", [None] * 12)]
    until(lambda: all(client.get_run(run_id).status is RunStatus.WAITING for run_id in runs), "all wait to be paid")
    history = {run_id: client.get_steps(run_id) for run_id in runs}
    second = processes.start(release=new)
    second.await_registration()
    # While both are at work, either may take a run; the old code could have gone on with each.
    for run_id in runs[:6]:
        client.trigger_event(run_id, "paid")
    ended = {run_id: client.wait_for_run(run_id, timeout=30) for run_id in runs[:6]}
    first.send(signal.SIGTERM)
    assert first.end() == 0
    for run_id in runs[6:]:
        client.trigger_event(run_id, "paid")
    ended |= {run_id: client.wait_for_run(run_id, timeout=30) for run_id in runs[6:]}
    parked = [run_id for run_id, run in ended.items() if run.status is RunStatus.FAILED]
    assert set(parked) >= set(runs[6:])
    for run_id in runs:
        error = ended[run_id].error
        if run_id in parked:
            assert error is not None
            assert error["type"] == "NonDeterminismError"
            assert client.get_steps(run_id) == history[run_id], "its history is as it was, and its wait goes on"
        else:
            assert ended[run_id].output == [first.pid, first.pid]
    unread = "select count(*) from pgworkflows.events where consumed_at is null"
    assert value(database_url, unread) == len(parked), "the payments are kept"
    assert "check" not in {step_id for step_id, _ in processes.calls()}

    # The rollback, and what docs/operations.md says to do then.
    second.send(signal.SIGTERM)
    assert second.end() == 0
    third = processes.start(release=old)
    retried = rows(
        database_url,
        "select (pgworkflows.retry_workflow(id)).id from pgworkflows.runs "
        "where status = 'failed' and error ->> 'type' = 'NonDeterminismError'",
    )
    assert {run_id for (run_id,) in retried} == set(parked)
    for run_id in parked:
        assert client.wait_for_run(run_id, timeout=30).output == [first.pid, third.pid]
    assert {step.status for run_id in runs for step in client.get_steps(run_id)} == {StepStatus.COMPLETED}
    assert Counter(step_id for step_id, _ in processes.calls()) == {"reserve": 12, "ship": 12}
    assert value(database_url, unread) == 0
