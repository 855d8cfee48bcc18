"""Parents and children while everything happens to them at once: whoever waits is woken, and nobody waits for ever."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from typing import Any

import pytest
from test_impossible import Trouble
from waiting import until
from working import HandWorker, rows, working

from pgworkflows import InvalidStatusError, RunStatus, Step, Steps, WorkflowEngine, current_step, heartbeat, workflow
from pgworkflows.claims import ClaimedRun
from pgworkflows.entries import Entry
from pgworkflows.journal import Verdict
from pgworkflows.runner import Execution

AGAIN: list[str] = []


def call(name: str, url: str) -> str:
    """Notes when it is called although its outcome is stored."""
    current = current_step()
    stored = rows(
        url,
        "select 1 from pgworkflows.steps where run_id = %s and step_id = %s and status = 'completed'",
        current.run_id,
        current.step_id,
    )
    if stored:
        AGAIN.append(f"{current.run_id} {current.step_id}")
    threading.Event().wait(random.uniform(0, 0.02))
    return name


class FamilyTrouble(Trouble):
    """Of all members that are there at the moment, as children come and end."""

    def look_for_members(self) -> None:
        found = rows(self._engine.conninfo, "select id from pgworkflows.runs where status <> 'completed'")
        self._runs = [run_id for (run_id,) in found] or self._runs


def first_entry(claimed: ClaimedRun, workflow: Any) -> Entry:
    """What a worker writes first that has claimed the run."""
    entry = Execution(claimed, workflow, logging.getLogger("test")).work(None)
    assert entry is not None
    return entry


@pytest.mark.parametrize("parent_first", [True, False])
def test_a_parent_may_have_a_child_retried_in_the_flush_in_which_a_worker_lets_go_of_that_child(
    database_url: str, parent_first: bool
) -> None:
    """The child was cancelled with its parent while a worker had it. Once its parent is retried, so is the child."""

    @workflow("child")
    def child(step: Step) -> Steps[Any]:
        return (yield from step.wait_for("event", "go"))

    @workflow("parent")
    def parent(step: Step) -> Steps[Any]:
        return (yield from step.invoke_child_workflow("child", child))

    with WorkflowEngine(database_url, workflows=[child, parent]) as engine:
        run = engine.start_workflow(parent)
        engine.worker().run_until_idle(timeout=30)
        [begun] = engine.get_runs(workflow_id="child").items
        engine.trigger_event(begun.id, "go", "went")
        with HandWorker(database_url, ["child", "parent"]) as worker:
            letting_go = first_entry(worker.claim_one(), child)
            assert letting_go.action == "complete"
            engine.cancel_workflow(run.id)
            engine.retry_workflow(run.id)
            invoking = first_entry(worker.claim_one(), parent)
            assert invoking.child is not None
            entries = [invoking, letting_go] if parent_first else [letting_go, invoking]
            assert {answer.verdict for answer in worker.write(*entries)} == {Verdict.WRITTEN}
        assert (
            rows(
                database_url,
                "select 1 from pgworkflows.runs as r where r.status not in ('completed', 'failed', 'cancelled') "
                "and not exists (select from pgworkflows.queue as q where q.run_id = r.id)",
            )
            == []
        )
        engine.worker().run_until_idle(timeout=30)
        assert engine.get_run(run.id).output == "went"


def test_families_come_to_their_end_whatever_happens_to_their_members(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "TAKE_OVER_EVERY_S", 0.2)
    AGAIN.clear()

    @workflow("child")
    def child(step: Step, input: int) -> Steps[str]:
        first = yield step.run("first", call, "a", database_url)
        yield step.wait_for("event", "go", timeout=0.3)
        if input:
            second = yield step.invoke_child_workflow("grandchild", "child", input - 1)
        else:
            second = yield step.run("second", call, "b", database_url)
        yield step.delay("nap", 0.01)
        return f"{first}{second}"

    @workflow("parent")
    def parent(step: Step) -> Steps[list[str]]:
        results: list[str] = []
        for number in range(4):
            results.append((yield step.invoke_child_workflow(f"child {number}", child, number % 3)))
            results.append((yield step.run(f"call {number}", call, "c", database_url)))
        return results

    with WorkflowEngine(database_url, workflows=[child, parent]) as engine, contextlib.ExitStack() as workers:
        for _ in range(2):
            workers.enter_context(working(engine, threads=3, poll_interval=0.2))
        parents = [engine.start_workflow(parent).id for _ in range(6)]
        seed = random.randrange(10**6)
        trouble = FamilyTrouble(engine, list(parents), seed)
        maker = threading.Thread(target=trouble.make)
        maker.start()
        for _ in range(20):
            trouble.over.wait(0.1)  # no waiting for a thing: two seconds it lasts
            trouble.look_for_members()
        trouble.over.set()
        maker.join(20)

        def all_have_ended_well() -> bool:
            """Whoever was stopped is let go on; everybody else has to come on by himself."""
            stopped = rows(
                database_url,
                "select id, status from pgworkflows.runs where status in ('paused', 'failed', 'cancelled')",
            )
            for run_id, status in stopped:
                with contextlib.suppress(InvalidStatusError):
                    (engine.resume_workflow if status == "paused" else engine.retry_workflow)(run_id)
            return all(engine.get_run(run_id).status is RunStatus.COMPLETED for run_id in parents)

        until(all_have_ended_well, f"all parents end (seed {seed})", within_s=40)
        for run_id in parents:
            assert engine.get_run(run_id).output == ["ab", "c", "aab", "c", "aaab", "c", "ab", "c"], seed
        until(lambda: rows(database_url, "select 1 from pgworkflows.queue") == [], f"nobody is left (seed {seed})")
    assert AGAIN == [], seed
    twins = (
        "select 1 from pgworkflows.runs where parent_run_id is not null group by parent_run_id, parent_step_id having"
    )
    assert rows(database_url, f"{twins} count(*) > 1") == []
