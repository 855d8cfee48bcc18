"""What the journal's thread does with entries that meet a lock, or are not wanted any more."""

from __future__ import annotations

import logging
from typing import Any
from uuid import uuid4

import pytest
from working import HandWorker

from pgworkflows import Step, Steps, WorkflowClient, held_over, workflow
from pgworkflows.entries import Entry
from pgworkflows.held_over import HeldOver, Pending
from pgworkflows.holdings import Holdings
from pgworkflows.journal import Verdict
from pgworkflows.runner import Execution
from pgworkflows.scribe import Scribe
from pgworkflows.worker_connection import WorkerConnection


@workflow("quick")
def quick(step: Step, input: int) -> Steps[int]:
    return (yield from step.run("only", int, input))


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(held_over, "time", clock)
    return clock


def pending() -> Pending:
    execution: Any = object()
    return execution, Entry(str(uuid4()), 1, 0, "checkpoint")


def test_an_entry_that_meets_a_lock_is_tried_again_after_growing_pauses(clock: Clock) -> None:
    held, entry = HeldOver(), pending()
    pauses = []
    for _ in range(6):
        held.add(entry)
        rest_s = held.rest_s()
        assert rest_s is not None
        pauses.append(round(rest_s, 3))
        assert held.take() == []
        clock.now += rest_s
        assert held.take() == [entry]
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert not held
    assert held.rest_s() is None


def test_the_pauses_of_one_run_are_not_those_of_another_or_of_its_next_entry(clock: Clock) -> None:
    held, first, second = HeldOver(), pending(), pending()
    held.add(first)
    clock.now += 0.05
    assert held.take() == [first]
    held.add(first)
    held.add(second)
    clock.now += 0.06
    assert held.take() == [second]
    clock.now += 0.05
    assert held.take() == [first]
    held.settle([first])
    held.add(first)
    assert held.rest_s() == pytest.approx(0.05)


def test_many_runs_that_were_taken_over_are_one_line(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that was cut off for long holds as many outcomes as runs."""
    with WorkflowClient(database_url) as client:
        client.start_workflows("quick", list(range(50)))
    with HandWorker(database_url, ["quick"]) as cut_off, HandWorker(database_url, ["quick"]) as other:
        runs = cut_off.claim(50).runs
        cut_off.die()
        assert other.take_over() == 50
        holdings = Holdings()
        holdings.worker_id = cut_off.id
        answers: list[Verdict] = []
        writes = Scribe(
            WorkerConnection(database_url, "pgworkflows"),
            holdings,
            lambda written: answers.extend([Verdict.WRITTEN] * len(written)),
            lambda execution, entry, answer: answers.append(answer.verdict),
            lambda: False,
            logging.getLogger("pgworkflows"),
            "test",
        )
        for run in runs:
            execution = Execution(run, quick, logging.getLogger("pgworkflows"))
            writes.submit(execution, execution.release_entry())
        writes.start()
        writes.close(20)
    assert answers == [Verdict.STALE] * 50
    [message] = caplog.messages
    assert f"not this worker's any more: 50, {runs[0].run_id} first" in message
