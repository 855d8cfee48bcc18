"""The fence: a worker writes to a run while its claim stands, and at no other time. Every interleaving by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from threading import Thread
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from working import HandWorker, rows, value

from pgworkflows import RunStatus, StepStatus, WorkflowClient, claims
from pgworkflows.claims import ClaimedRun
from pgworkflows.entries import Entry
from pgworkflows.journal import Answer, Verdict
from pgworkflows.replay import EventTaken, StepWrite

WRITTEN, STALE, LOCKED = Answer(Verdict.WRITTEN), Answer(Verdict.STALE), Answer(Verdict.LOCKED)


@pytest.fixture
def client(database_url: str) -> Iterator[WorkflowClient]:
    with WorkflowClient(database_url) as client:
        yield client


@pytest.fixture
def first(database_url: str) -> Iterator[HandWorker]:
    with HandWorker(database_url, ["plan"]) as worker:
        yield worker


@pytest.fixture
def second(database_url: str) -> Iterator[HandWorker]:
    with HandWorker(database_url, ["plan"]) as worker:
        yield worker


def outcome(run: ClaimedRun, step_id: str, output: Any, *, position: int = 0, action: str = "checkpoint") -> Entry:
    """What a worker writes after the step: its result and what becomes of the run."""
    step = StepWrite(position, step_id, "run", StepStatus.COMPLETED, json.dumps(output), attempts=1)
    output_text = json.dumps(output) if action == "complete" else None
    return Entry(run.run_id, run.claim_id, run.signal, action, (step,), step_id=step_id, output=output_text)


def suspension(run: ClaimedRun, step_id: str, event_name: str) -> Entry:
    """What a worker writes when the run begins to wait for an event."""
    step = StepWrite(0, step_id, "wait_for", StepStatus.WAITING, event_name=event_name)
    return Entry(
        run.run_id,
        run.claim_id,
        run.signal,
        "suspend",
        (step,),
        step_id=step_id,
        wait_kind="event",
        wait_event=event_name,
    )


def outputs(client: WorkflowClient, run_id: UUID | str) -> dict[str, Any]:
    return {step.step_id: step.output for step in client.get_steps(run_id)}


def hand_over(first: HandWorker, second: HandWorker) -> ClaimedRun:
    """The first worker dies, and the second takes its run."""
    first.die()
    assert second.take_over() == 1
    return second.claim_one()


def test_a_write_under_a_claim_is_stored(client: WorkflowClient, first: HandWorker) -> None:
    client.start_workflow("plan")
    run = first.claim_one()
    assert first.write(outcome(run, "a", 1)) == [WRITTEN]
    assert outputs(client, run.run_id) == {"a": 1}


def test_a_write_under_a_claim_that_another_worker_has_taken_changes_nothing(
    client: WorkflowClient, first: HandWorker, second: HandWorker
) -> None:
    client.start_workflow("plan")
    lost = first.claim_one()
    hand_over(first, second)
    assert first.write(outcome(lost, "a", "late")) == [STALE]
    assert outputs(client, lost.run_id) == {}
    assert client.get_run(lost.run_id).status is RunStatus.RUNNING


@pytest.mark.parametrize("action", ["checkpoint", "complete", "fail", "retry", "suspend", "release"])
def test_nothing_that_a_stale_worker_wants_happens(
    client: WorkflowClient, first: HandWorker, second: HandWorker, action: str, database_url: str
) -> None:
    client.start_workflow("plan")
    lost = first.claim_one()
    hand_over(first, second)
    before = rows(database_url, "select * from pgworkflows.queue"), client.get_run(lost.run_id)
    assert first.write(outcome(lost, "a", "late", action=action)) == [STALE]
    assert (rows(database_url, "select * from pgworkflows.queue"), client.get_run(lost.run_id)) == before
    assert outputs(client, lost.run_id) == {}


def test_the_number_of_a_claim_alone_opens_no_fence(
    client: WorkflowClient, first: HandWorker, second: HandWorker
) -> None:
    # After a failover a sequence may give a number a second time; the worker's id is new at every registration.
    client.start_workflow("plan")
    run = first.claim_one()
    assert second.write(outcome(run, "a", "foreign")) == [STALE]
    assert outputs(client, run.run_id) == {}


def test_a_worker_cannot_write_under_an_earlier_claim_of_its_own(client: WorkflowClient, first: HandWorker) -> None:
    client.start_workflow("plan")
    earlier = first.claim_one()
    assert claims.release_unheld(first.connection, first.id, []) == 1
    later = first.claim_one()
    assert first.write(outcome(earlier, "a", "earlier")) == [STALE]
    assert first.write(outcome(later, "a", "later")) == [WRITTEN]
    assert outputs(client, later.run_id) == {"a": "later"}


def test_a_row_that_somebody_holds_is_held_over_and_delays_no_other(
    client: WorkflowClient, first: HandWorker, database_url: str
) -> None:
    for _ in range(3):
        client.start_workflow("plan")
    runs = first.claim().runs
    entries = [outcome(run, "a", 1) for run in runs]
    with psycopg.connect(database_url) as somebody:
        somebody.execute("select from pgworkflows.queue where run_id = %s for update", [runs[1].run_id])
        assert first.write(*entries) == [WRITTEN, LOCKED, WRITTEN]
        assert outputs(client, runs[1].run_id) == {}
    assert first.write(entries[1]) == [WRITTEN]
    assert [outputs(client, run.run_id) for run in runs] == [{"a": 1}] * 3


def test_a_single_entry_whose_row_somebody_holds_is_held_over(
    client: WorkflowClient, first: HandWorker, database_url: str
) -> None:
    client.start_workflow("plan")
    run = first.claim_one()
    with psycopg.connect(database_url) as somebody:
        somebody.execute("select from pgworkflows.queue for update")
        assert first.write(outcome(run, "a", 1, action="complete")) == [LOCKED]
        assert client.get_run(run.run_id).status is RunStatus.RUNNING
    assert first.write(outcome(run, "a", 1, action="complete")) == [WRITTEN]
    assert client.get_run(run.run_id).output == 1


def test_a_held_row_that_another_worker_claims_meanwhile_is_stale_afterwards(
    client: WorkflowClient, first: HandWorker, second: HandWorker, database_url: str
) -> None:
    client.start_workflow("plan")
    run = first.claim_one()
    first.die()
    with psycopg.connect(database_url) as somebody:
        somebody.execute("select from pgworkflows.queue for update")
        assert first.write(outcome(run, "a", "zombie")) == [LOCKED]
        assert second.take_over() == 0
    assert second.take_over() == 1
    assert first.write(outcome(run, "a", "zombie")) == [STALE]


class TestAZombieAgainstATakeOver:
    """The first worker was declared dead but still runs: its write, at each moment of the take-over."""

    def test_before_it_the_write_counts_and_the_successor_sees_it(
        self, client: WorkflowClient, first: HandWorker, second: HandWorker
    ) -> None:
        client.start_workflow("plan")
        run = first.claim_one()
        first.die()
        assert first.write(outcome(run, "a", "in time")) == [WRITTEN]
        assert second.take_over() == 1
        [successor] = second.claim().runs
        assert [(step.step_id, step.output) for step in successor.steps] == [("a", '"in time"')]

    def test_while_it_commits_the_write_is_neither_stored_nor_blocked(
        self, client: WorkflowClient, first: HandWorker, second: HandWorker, database_url: str
    ) -> None:
        client.start_workflow("plan")
        run = first.claim_one()
        first.die()
        with psycopg.connect(database_url) as successor:
            assert successor.execute("select pgworkflows.take_over()").fetchone() == (1,)
            assert first.write(outcome(run, "a", "zombie")) == [LOCKED]
        assert first.write(outcome(run, "a", "zombie")) == [STALE]
        assert outputs(client, run.run_id) == {}

    def test_if_it_is_rolled_back_the_write_counts(
        self, client: WorkflowClient, first: HandWorker, database_url: str
    ) -> None:
        client.start_workflow("plan")
        run = first.claim_one()
        first.die()
        with psycopg.connect(database_url) as successor:
            assert successor.execute("select pgworkflows.take_over()").fetchone() == (1,)
            assert first.write(outcome(run, "a", "in time")) == [LOCKED]
            successor.rollback()
        assert first.write(outcome(run, "a", "in time")) == [WRITTEN]

    def test_while_the_write_commits_the_run_is_not_taken(
        self, client: WorkflowClient, first: HandWorker, second: HandWorker, database_url: str
    ) -> None:
        client.start_workflow("plan")
        run = first.claim_one()
        first.die()
        step = {"run_id": run.run_id, "position": 0, "step_id": "a", "kind": "run", "status": "completed"}
        entry = {"run_id": run.run_id, "claim_id": run.claim_id, "action": "checkpoint", "signal": run.signal}
        with psycopg.connect(database_url) as zombie:
            told = zombie.execute(
                "select pgworkflows.flush(%s, %s::json, %s::json, null, null)",
                [first.id, json.dumps([entry]), json.dumps([{**step, "output": '"in time"', "attempts": 1}])],
            ).fetchone()
            assert told == (None,)
            assert second.take_over() == 0
            assert second.claim().runs == ()
        assert second.take_over() == 1
        [successor] = second.claim().runs
        assert [step.output for step in successor.steps] == ['"in time"']

    def test_after_it_and_before_the_next_claim_the_write_is_stale(
        self, client: WorkflowClient, first: HandWorker, second: HandWorker
    ) -> None:
        client.start_workflow("plan")
        run = first.claim_one()
        first.die()
        assert second.take_over() == 1
        assert first.write(outcome(run, "a", "zombie")) == [STALE]
        assert second.claim_one().steps == ()

    def test_while_the_next_claim_commits_the_write_is_not_stored(
        self, client: WorkflowClient, first: HandWorker, second: HandWorker, database_url: str
    ) -> None:
        client.start_workflow("plan")
        run = first.claim_one()
        first.die()
        second.take_over()
        with psycopg.connect(database_url) as successor:
            claimed = successor.execute(
                "select pgworkflows.claim(%s, array['default'], array['plan'], 5, true, false) -> 'runs'", [second.id]
            ).fetchone()
            assert claimed is not None
            assert len(claimed[0]) == 1
            assert first.write(outcome(run, "a", "zombie")) == [STALE]
        assert first.write(outcome(run, "a", "zombie")) == [STALE]
        assert outputs(client, run.run_id) == {}

    def test_after_the_successors_checkpoint_its_value_stays(
        self, client: WorkflowClient, first: HandWorker, second: HandWorker
    ) -> None:
        client.start_workflow("plan")
        lost = first.claim_one()
        won = hand_over(first, second)
        assert second.write(outcome(won, "a", "successor")) == [WRITTEN]
        assert first.write(outcome(lost, "a", "zombie")) == [STALE]
        assert outputs(client, lost.run_id) == {"a": "successor"}

    def test_after_the_run_has_ended_its_result_stays(
        self, client: WorkflowClient, first: HandWorker, second: HandWorker
    ) -> None:
        client.start_workflow("plan")
        lost = first.claim_one()
        won = hand_over(first, second)
        assert second.write(outcome(won, "a", "successor", action="complete")) == [WRITTEN]
        assert first.write(outcome(lost, "a", "zombie", action="complete")) == [STALE]
        assert client.get_run(lost.run_id).output == "successor"

    def test_its_neighbours_in_the_same_flush_are_written(
        self, client: WorkflowClient, first: HandWorker, second: HandWorker, database_url: str
    ) -> None:
        for _ in range(3):
            client.start_workflow("plan")
        runs = first.claim().runs
        rows(
            database_url,
            "update pgworkflows.queue set worker_id = %s where run_id = %s",
            second.id,
            runs[1].run_id,
        )
        assert first.write(*(outcome(run, "a", 1) for run in runs)) == [WRITTEN, STALE, WRITTEN]
        assert [outputs(client, run.run_id) for run in runs] == [{"a": 1}, {}, {"a": 1}]


def test_a_checkpoint_sent_twice_is_stored_once(client: WorkflowClient, first: HandWorker, database_url: str) -> None:
    # The answer to the first was lost with the connection; whether it was committed is unknown.
    client.start_workflow("plan")
    run = first.claim_one()
    assert first.write(outcome(run, "a", 1)) == [WRITTEN]
    before = rows(database_url, "select *, xmin from pgworkflows.steps")
    assert first.write(outcome(run, "a", 1)) == [WRITTEN]
    assert rows(database_url, "select *, xmin from pgworkflows.steps") == before


def test_a_completed_step_is_never_written_over(client: WorkflowClient, first: HandWorker) -> None:
    client.start_workflow("plan")
    run = first.claim_one()
    assert first.write(outcome(run, "a", "first")) == [WRITTEN]
    assert first.write(outcome(run, "a", "second")) == [WRITTEN]
    assert outputs(client, run.run_id) == {"a": "first"}


@pytest.mark.parametrize("action", ["suspend", "complete"])
def test_an_entry_that_let_go_of_the_run_is_stale_when_it_is_sent_again(
    client: WorkflowClient, first: HandWorker, action: str
) -> None:
    client.start_workflow("plan")
    run = first.claim_one()
    entry = outcome(run, "a", 1, action="complete") if action == "complete" else suspension(run, "go", "go")
    assert first.write(entry) == [WRITTEN]
    before = client.get_run(run.run_id), client.get_steps(run.run_id)
    assert first.write(entry) == [STALE]
    assert (client.get_run(run.run_id), client.get_steps(run.run_id)) == before


def test_the_deadline_of_a_wait_does_not_move_when_its_suspension_is_written_again(
    client: WorkflowClient, first: HandWorker, second: HandWorker
) -> None:
    started = client.start_workflow("plan")
    run = first.claim_one()
    wait = StepWrite(0, "nap", "delay", StepStatus.WAITING, wake_after=timedelta(hours=1))
    entry = Entry(run.run_id, run.claim_id, run.signal, "checkpoint", (wait,))
    assert first.write(entry) == [WRITTEN]
    [before] = client.get_steps(started.id)
    run = hand_over(first, second)
    # A worker whose history held the wait would not write it again; one that did must not move it.
    assert second.write(entry._replace(claim_id=run.claim_id)) == [WRITTEN]
    assert client.get_steps(started.id) == [before]


def test_a_stale_worker_consumes_no_event(
    client: WorkflowClient, first: HandWorker, second: HandWorker, database_url: str
) -> None:
    started = client.start_workflow("plan")
    client.trigger_event(started.id, "go", 7)
    lost = first.claim_one()
    [event] = lost.events
    won = hand_over(first, second)
    step = StepWrite(0, "go", "wait_for", StepStatus.COMPLETED, event.data, event_name="go")
    taken = (EventTaken(event.id, "go"),)
    assert first.write(Entry(lost.run_id, lost.claim_id, lost.signal, "checkpoint", (step,), taken)) == [STALE]
    assert value(database_url, "select consumed_at from pgworkflows.events") is None
    assert second.write(Entry(won.run_id, won.claim_id, won.signal, "checkpoint", (step,), taken)) == [WRITTEN]
    assert value(database_url, "select step_id from pgworkflows.events") == "go"
    assert outputs(client, started.id) == {"go": 7}


def test_one_bad_entry_does_not_spoil_the_flush(client: WorkflowClient, first: HandWorker) -> None:
    for _ in range(5):
        client.start_workflow("plan")
    runs = first.claim().runs
    entries = [outcome(run, "a", 1) for run in runs]
    [step] = entries[2].steps
    entries[2] = entries[2]._replace(steps=(step._replace(output='{"nul": "\\u0000"'),))  # no JSON
    answers = first.write(*entries)
    assert [answer.verdict for answer in answers] == [
        Verdict.WRITTEN,
        Verdict.WRITTEN,
        Verdict.REFUSED,
        Verdict.WRITTEN,
        Verdict.WRITTEN,
    ]
    assert "json" in answers[2].reason
    assert outputs(client, runs[2].run_id) == {}
    assert outputs(client, runs[4].run_id) == {"a": 1}


def test_two_claims_at_the_same_moment_share_no_run(
    client: WorkflowClient, first: HandWorker, second: HandWorker, database_url: str
) -> None:
    started = {str(client.start_workflow("plan").id) for _ in range(6)}
    with psycopg.connect(database_url) as one:
        answer = one.execute(
            "select pgworkflows.claim(%s, array['default'], array['plan'], 4, true, false) -> 'runs'", [first.id]
        ).fetchone()
        assert answer is not None
        ones = {run["run_id"] for run in answer[0]}
        others = {run.run_id for run in second.claim().runs}
    assert len(ones) == 4
    assert len(others) == 2
    assert ones | others == started


def test_a_claim_sees_every_checkpoint_that_was_written_before_it(
    client: WorkflowClient, first: HandWorker, second: HandWorker
) -> None:
    """Two workers pass one run to each other as fast as they can. In one statement, a claim that locks the row just
    after a checkpoint commits would read a history from before it, and that step would run again."""
    client.start_workflow("plan")
    checkpoints = 0
    missed: list[tuple[int, int]] = []

    def pass_on(worker: HandWorker) -> None:
        nonlocal checkpoints
        while checkpoints < 150 and not missed:
            for run in worker.claim().runs:
                if len(run.steps) != checkpoints:
                    missed.append((len(run.steps), checkpoints))
                checkpoints += 1
                position = len(run.steps)
                entry = outcome(run, f"step {position}", position, position=position, action="release")
                while worker.write(entry) == [LOCKED]:
                    pass  # the other's claim has looked at the row, and forgets it when it ends

    threads = [Thread(target=pass_on, args=(worker,)) for worker in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not missed
    assert checkpoints >= 150


def test_a_worker_that_is_not_among_the_live_claims_nothing(client: WorkflowClient, first: HandWorker) -> None:
    client.start_workflow("plan")
    first.die()
    claim = first.claim()
    assert not claim.alive
    assert claim.runs == ()


def test_runs_that_a_worker_does_not_know_of_are_released_without_blame(
    client: WorkflowClient, first: HandWorker, database_url: str
) -> None:
    # The answer to a claim was lost: the rows bear the worker's id, and it does not know.
    client.start_workflow("plan")
    client.start_workflow("plan")
    known, _unknown = first.claim().runs
    assert claims.release_unheld(first.connection, first.id, [known.run_id]) == 1
    assert rows(database_url, "select status, interruptions from pgworkflows.queue order by status") == [
        ("pending", 0),
        ("running", 0),
    ]
    assert [run.run_id for run in first.claim().runs] == [_unknown.run_id]


def test_a_worker_id_that_nobody_registered_writes_nothing(
    client: WorkflowClient, first: HandWorker, database_url: str
) -> None:
    client.start_workflow("plan")
    run = first.claim_one()
    first.id = uuid4()
    assert first.write(outcome(run, "a", 1)) == [STALE]
    assert value(database_url, "select count(*) from pgworkflows.steps") == 0
