"""The database does what a small model of statuses says, whatever clients and workers do, in and out of transactions.

Hypothesis chooses what comes next: operations on several connections, some of them in transactions that stay open,
and workers whose statements are sent one by one. After each, what is committed must be what the model says.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from status_model import (
    BLOCKED,
    CONFLICT,
    DONE,
    IN_PROGRESS,
    INVALID,
    NOT_FOUND,
    OPERATIONS,
    RUNNING,
    Place,
    Run,
    World,
    Write,
    given_back,
    next_write,
    written,
)
from storm import UNTRUE
from working import HandWorker

from pgworkflows import (
    IdempotencyConflictError,
    InvalidStatusError,
    Step,
    Steps,
    Workflow,
    WorkflowClient,
    WorkflowRun,
    WorkflowRunInProgressError,
    WorkflowRunNotFoundError,
    current_step,
    workflow,
)
from pgworkflows.journal import Answer, Entry, Verdict
from pgworkflows.runner import Execution

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "20"))
STEPS = 60
LANES = 3
DEATHS = 2  # a run that was taken over three times is claimed alone
QUIET = logging.getLogger("modelled")
QUIET.disabled = True

OUTCOMES: dict[type[Exception], str] = {
    InvalidStatusError: INVALID,
    WorkflowRunNotFoundError: NOT_FOUND,
    WorkflowRunInProgressError: IN_PROGRESS,
    IdempotencyConflictError: CONFLICT,
    psycopg.errors.LockNotAvailable: BLOCKED,
}

COMMITTED = """
select r.id, r.workflow_id, r.idempotency_key, r.status, q.status, q.wait_kind, q.control, q.worker_id is not null,
    (select count(*) from pgworkflows.steps as s where s.run_id = r.id and s.status = 'completed'),
    (select count(*) from pgworkflows.events as e where e.run_id = r.id and e.consumed_at is null)
from pgworkflows.runs as r left join pgworkflows.queue as q on q.run_id = r.id
"""


def work() -> None:
    """Nothing that could fail."""


def work_or_fail(fails: bool) -> None:
    if fails and current_step().attempt == 1:
        raise ValueError("the first time it fails")


def handler(step: Step, fails: bool) -> Steps[None]:
    yield step.run("one", work)
    yield step.run("two", work)
    yield step.wait_for("hear", "word")
    yield step.pause("rest")
    yield step.run("three", work_or_fail, fails)


WORKFLOWS: dict[str, Workflow[Any, Any]] = {name: workflow(name)(handler) for name in ("plan", "lone")}


@dataclass
class Claimed:
    """A run in a worker's hand, in the model and in earnest: as the claim found it, and where it is since."""

    worker: int
    execution: Execution
    mail: int
    signal: int
    entry: Entry | None = None
    expected: Write | None = None


DEEDS = {
    "begin": 2,
    "commit": 2,
    "roll back": 1,
    "start": 3,
    "pause": 2,
    "resume": 5,
    "cancel": 2,
    "retry": 3,
    "trigger": 5,
    "fast_forward": 2,
    "prune": 1,
    "claim": 8,
    "advance": 8,
    "write": 5,
    "give back": 1,
    "die": 1,
}
"""What may happen, and how often."""

lanes = st.integers(0, LANES - 1)
choices = st.integers(0, 1000)


class Machine(RuleBasedStateMachine):
    url: str

    def __init__(self) -> None:
        super().__init__()
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute("truncate pgworkflows.runs, pgworkflows.steps, pgworkflows.events, pgworkflows.queue")
        self.world = World()
        self.known: list[UUID] = []
        self.claimed: dict[int, Claimed] = {}
        self.run_of: dict[int, UUID] = {}
        self.claims = 0
        self.deaths = 0
        self.eye = psycopg.connect(self.url, autocommit=True)
        self.connections = [psycopg.connect(self.url, autocommit=True) for _ in range(LANES)]
        for conn in self.connections:
            conn.execute("set lock_timeout = 10")  # nobody else is at work: what has to wait at all, would for ever
        self.client = WorkflowClient(self.url)
        self.workers = [HandWorker(self.url, [*WORKFLOWS]) for _ in range(2)]

    def teardown(self) -> None:
        for conn in (*self.connections, self.eye):
            conn.close()
        for worker in self.workers:
            worker.die()
            worker.connection.close()
        self.client.close()

    # One rule, for hypothesis leaves out some of many in each example, and hardly any run would come far.
    @rule(
        deed=st.sampled_from([deed for deed, weight in DEEDS.items() for _ in range(weight)]),
        lane=lanes,
        choice=choices,
        name=st.sampled_from(["plan", "plan", "lone"]),
        key=st.sampled_from([None, None, "a", "b"]),
        fails=st.booleans(),
        due=st.sampled_from([True, True, True, False]),
    )
    def happens(self, deed: str, lane: int, choice: int, name: str, key: str | None, fails: bool, due: bool) -> None:
        match deed:
            case "begin":
                self.begin(lane)
            case "commit" | "roll back":
                self.end(lane, keep=deed == "commit")
            case "start":
                self.start(lane, name, key, fails, due)
            case "fast_forward":
                self.fast_forward(choice)
            case "prune":
                self.prune()
            case "claim":
                self.claim(lane % 2)
            case "advance" if self.claimed:
                self.advance(choice, 3)
            case "write" if self.claimed:
                self.advance(choice, 1)
            case "give back" if self.claimed:
                self.give_back(choice)
            case "die" if self.deaths < DEATHS:
                self.die(lane % 2)
            case _ if deed in OPERATIONS:
                self.change(lane, deed, choice)

    # Clients

    def begin(self, lane: int) -> None:
        if lane not in self.world.open:
            self.connections[lane].execute("begin")
            self.world.open[lane] = {}

    def end(self, lane: int, keep: bool) -> None:
        if lane in self.world.open:
            self.connections[lane].execute("commit" if keep else "rollback")
            (self.world.commit if keep else self.world.roll_back)(lane)

    def start(self, lane: int, name: str, key: str | None, fails: bool, due: bool) -> None:
        run = Run(name, key, fails, due)
        expected, known = self.world.started(lane, run)
        outcome, found = self._attempt(
            lane,
            lambda conn: self.client.start_workflow(
                name,
                fails,
                idempotency_key=key,
                singleton=name == "lone",
                delay=None if due else "1 hour",
                connection=conn,
            ),
        )
        assert outcome in expected, (outcome, expected)
        if found is not None and known is not None:
            assert found.id == known
        elif found is not None:
            self.known.append(found.id)
            self.world.keep(lane, found.id, run)

    def change(self, lane: int, name: str, choice: int) -> None:
        run_id = self._any_run(choice)
        if name == "trigger":
            self._change(lane, name, run_id, lambda conn: self.client.trigger_event(run_id, "word", connection=conn))
        else:
            operation = getattr(self.client, f"{name}_workflow")
            self._change(lane, name, run_id, lambda conn: operation(run_id, connection=conn))

    def fast_forward(self, choice: int) -> None:
        run_id = self._any_run(choice)
        if BLOCKED in self.world.asked(LANES, "fast_forward", run_id)[0]:
            return  # the client's own connection would wait for as long as it takes
        self._change(LANES, "fast_forward", run_id, lambda _: self.client.fast_forward_workflow(run_id))

    def prune(self) -> None:
        old = [*self.world.old()]
        assert self.client.prune(older_than=1e-6) == len(old)
        for run_id in old:
            del self.world.committed[run_id]

    def _change(self, lane: int, name: str, run_id: UUID, operation: Callable[[Any], WorkflowRun]) -> None:
        before = self.world.seen(lane).get(run_id)
        expected, run = self.world.asked(lane, name, run_id)
        outcome, found = self._attempt(lane, operation)
        assert outcome in expected, (name, outcome, expected, before)
        if outcome == DONE:
            assert run is not None
            assert found is not None
            assert (found.id, found.status) == (run_id, run.status)
            self.world.keep(lane, run_id, run)
        elif outcome in (INVALID, IN_PROGRESS) and before is not None:
            self.world.keep(lane, run_id, before, locks=before.place is not None or name == "retry")

    def _attempt(self, lane: int, operation: Callable[[Any], WorkflowRun]) -> tuple[str, WorkflowRun | None]:
        """What comes of an operation. A refusal leaves the transaction as it is; only what is blocked ends it."""
        conn = self.connections[lane] if lane < LANES else None
        try:
            return DONE, operation(conn)
        except tuple(OUTCOMES) as error:
            outcome = OUTCOMES[type(error)]
            if outcome == BLOCKED and lane in self.world.open:
                self.connections[lane].execute("rollback")
                self.world.roll_back(lane)
            return outcome, None

    def _any_run(self, choice: int) -> UUID:
        """One of the last runs, or one that never was."""
        young = self.known[-3:]
        return young[choice % len(young)] if young else uuid4()

    # Workers

    def claim(self, worker: int) -> None:
        claim = self.workers[worker].claim(100, alone=not self._hands(worker))
        assert {UUID(run.run_id) for run in claim.runs} == self.world.ready()
        for run in claim.runs:
            run_id = UUID(run.run_id)
            known = self.world.committed[run_id]
            self.claims += 1
            self.world.committed[run_id] = known.becomes(RUNNING, Place(RUNNING, holder=self.claims))
            execution = Execution(run, WORKFLOWS[run.workflow_id], QUIET)
            self.claimed[self.claims] = Claimed(worker, execution, known.mail, known.signal)
            self.run_of[self.claims] = run_id
            assert len(run.events) == known.mail

    def advance(self, choice: int, times: int) -> None:
        number = [*self.claimed][choice % len(self.claimed)]
        for _ in range(times):
            if number in self.claimed:
                self._advance(number)

    def _advance(self, number: int) -> None:
        hand, run_id = self.claimed[number], self.run_of[number]
        run = self.world.committed.get(run_id)
        mine = run is not None and run.place is not None and run.place.holder == number
        if hand.entry is None:
            hand.entry = self._next_entry(hand.execution)
            if mine:
                assert run is not None
                hand.expected = next_write(run, hand.mail)
                assert (hand.entry.action, hand.entry.wait_kind) == (hand.expected.action, hand.expected.wait)
        [answer] = self.workers[hand.worker].write(hand.entry)
        if not mine:
            assert answer.verdict is Verdict.STALE
        elif run_id in self.world.held():
            assert answer.verdict is Verdict.LOCKED
            return
        else:
            assert run is not None
            assert run.place is not None
            assert hand.expected is not None
            assert answer == Answer(Verdict.WRITTEN, run.place.control)
            self.world.committed[run_id] = then = written(run, hand.expected, hand.signal)
            if then.place is not None and then.place.holder == number:
                hand.entry = hand.expected = None
                return
        del self.claimed[number]

    def give_back(self, choice: int) -> None:
        number = [*self.claimed][choice % len(self.claimed)]
        hand, run_id = self.claimed[number], self.run_of[number]
        run = self.world.committed.get(run_id)
        if run is None or run.place is None or run.place.holder != number or run_id in self.world.held():
            return
        [answer] = self.workers[hand.worker].write(hand.execution.release_entry())
        assert answer == Answer(Verdict.WRITTEN, run.place.control)
        self.world.committed[run_id] = given_back(run)
        del self.claimed[number]

    def die(self, worker: int) -> None:
        """What it had goes on elsewhere; what it writes afterwards comes to nothing."""
        hands = self._hands(worker)
        if any(self.run_of[number] in self.world.held() for number in hands):
            return
        self.deaths += 1
        self.workers[worker].die()
        theirs = [
            self.run_of[number]
            for number in hands
            if (place := self.world.committed[self.run_of[number]].place) is not None and place.holder == number
        ]
        assert self.workers[1 - worker].take_over() == len(theirs)
        for run_id in theirs:
            self.world.committed[run_id] = given_back(self.world.committed[run_id])
        dead = self.workers[worker]
        for number in hands:
            run_id = self.run_of[number]
            entry = self.claimed.pop(number).execution.release_entry()
            assert dead.write(entry)[0].verdict is Verdict.STALE, run_id
        dead.connection.close()
        self.workers[worker] = HandWorker(self.url, [*WORKFLOWS])

    def _hands(self, worker: int) -> list[int]:
        return [number for number, hand in self.claimed.items() if hand.worker == worker]

    @staticmethod
    def _next_entry(execution: Execution) -> Entry:
        while True:
            entry = execution.work(execution.next_call())
            assert entry is not None
            if entry.action != "checkpoint" or entry.steps or entry.events:
                return entry

    # What is committed

    @invariant()
    def the_database_agrees(self) -> None:
        found = {row[0]: row[1:] for row in self.eye.execute(COMMITTED).fetchall()}
        assert found == {run_id: row_of(run) for run_id, run in self.world.committed.items()}
        for what, query in UNTRUE.items():
            assert self.eye.execute(query.encode()).fetchall() == [], what


def row_of(run: Run) -> tuple[Any, ...]:
    """What the database says of a run."""
    place = run.place
    queue = (None,) * 3 if place is None else (place.status, place.wait, place.control)
    held = place is not None and place.holder is not None
    return (run.workflow, run.key, run.status, *queue, held, run.at, run.mail)


@pytest.mark.direct("bounds by the session how long its callers wait for locks")
def test_whatever_is_done_the_database_agrees_with_the_model(database_url: str) -> None:
    class Here(Machine):
        url = database_url

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
