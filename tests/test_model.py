"""The database does what a small model of statuses says, whatever clients and workers do, in and out of transactions.

Hypothesis chooses what comes next: operations on several connections, some of them in transactions that stay open,
and workers whose statements are sent one by one. After each, what is committed must be what the model says.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

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
from pgworkflows.entries import Entry
from pgworkflows.journal import Answer, Verdict
from pgworkflows.runner import Execution

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "18"))
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
WRONG = " union all ".join(f"select $${what}$$ where exists ({query})" for what, query in UNTRUE.items())
"""The names of all that is there and must never be."""


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

    worker: HandWorker
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
    "claim": 10,
    "advance": 8,
    "write": 5,
    "give back": 1,
    "die": 4,
    "come too late": 6,
}
"""What may happen, and how often."""

T = TypeVar("T")
STRANGER = UUID(int=0)
"""The id of a run that never was."""


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
        self.zombies: list[HandWorker] = []

    def teardown(self) -> None:
        for conn in (*self.connections, self.eye):
            conn.close()
        for worker in (*self.workers, *self.zombies):
            worker.die()
            worker.connection.close()
        self.client.close()

    # One rule, for hypothesis leaves out some of many in each example, and hardly any run would come far. Of what may
    # happen it draws what can: an example is short, and what comes to nothing says little.
    @rule(data=st.data())
    def happens(self, data: st.DataObject) -> None:
        can = self._can_happen()
        deed = data.draw(st.sampled_from([deed for deed in can for _ in range(DEEDS[deed])]), "deed")
        match deed:
            case "begin":
                self.begin(self._drawn(data, "lane", [lane for lane in range(LANES) if lane not in self.world.open]))
            case "commit" | "roll back":
                self.end(self._drawn(data, "lane", [*self.world.open]), keep=deed == "commit")
            case "start":
                name = self._drawn(data, "workflow", ["plan", "plan", "lone"])
                key = self._drawn(data, "key", [None, None, "a", "b"])
                fails = self._drawn(data, "fails", [False, True])
                due = self._drawn(data, "due", [True, True, True, False])
                self.start(self._drawn(data, "lane", range(LANES)), name, key, fails, due)
            case "prune":
                self.prune()
            case "claim":
                self.claim(self._drawn(data, "worker", [0, 1]))
            case "advance" | "write":
                self.advance(self._drawn(data, "claim", [*self.claimed]), 3 if deed == "advance" else 1)
            case "give back":
                self.give_back(self._drawn(data, "claim", [*self.claimed]))
            case "come too late":
                self.advance(self._drawn(data, "claim", self._late()), 1)
            case "die":
                self.die(self._drawn(data, "worker", self._mortal()))
            case _:
                lane = LANES if deed == "fast_forward" else self._drawn(data, "lane", range(LANES))
                self.change(lane, deed, self._run_for(data, lane, deed))

    def _can_happen(self) -> list[str]:
        """What may happen now, and does not come to nothing in any case."""
        cannot: set[str] = set()
        if not self.world.open:
            cannot |= {"commit", "roll back"}
        if len(self.world.open) == LANES:
            cannot.add("begin")
        if not self.claimed:
            cannot |= {"advance", "write", "give back"}
        if not self._mortal():
            cannot.add("die")
        if not self._late():
            cannot.add("come too late")
        if not self.known:
            cannot |= {*OPERATIONS, "claim", "prune"}
        return [deed for deed in DEEDS if deed not in cannot]

    @staticmethod
    def _drawn(data: st.DataObject, what: str, choices: Sequence[T]) -> T:
        return data.draw(st.sampled_from(choices), what)

    def _run_for(self, data: st.DataObject, lane: int, operation: str) -> UUID:
        """Mostly one of the last runs whose status allows the operation; else any of the last, or one that never
        was."""
        runs = self.world.seen(lane)
        allowed = [each for each in self.known if each in runs and OPERATIONS[operation](runs[each]) is not None]
        mostly = self._drawn(data, "mostly", [True, True, True, False])
        if not allowed or not mostly:
            return self._drawn(data, "run", [*self.known[-3:], STRANGER])
        in_hand = [each for each in allowed if self._in_hand(each)]
        return self._drawn(data, "run", [*allowed[-3:], *in_hand[-3:]])

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

    def change(self, lane: int, name: str, run_id: UUID) -> None:
        if name == "fast_forward":
            self.fast_forward(run_id)
        elif name == "trigger":
            self._change(lane, name, run_id, lambda conn: self.client.trigger_event(run_id, "word", connection=conn))
        else:
            operation = getattr(self.client, f"{name}_workflow")
            self._change(lane, name, run_id, lambda conn: operation(run_id, connection=conn))

    def fast_forward(self, run_id: UUID) -> None:
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

    # Workers

    def claim(self, worker: int) -> None:
        live = self.workers[worker]
        claim = live.claim(100, alone=not self._hands(live))
        assert {UUID(run.run_id) for run in claim.runs} == self.world.ready()
        for run in claim.runs:
            run_id = UUID(run.run_id)
            known = self.world.committed[run_id]
            self.claims += 1
            self.world.committed[run_id] = known.becomes(RUNNING, Place(RUNNING, holder=self.claims))
            execution = Execution(run, WORKFLOWS[run.workflow_id], QUIET)
            self.claimed[self.claims] = Claimed(live, execution, known.mail, known.signal)
            self.run_of[self.claims] = run_id
            assert len(run.events) == known.mail

    def advance(self, number: int, times: int) -> None:
        for _ in range(times):
            if number in self.claimed:
                self._advance(number)

    def _advance(self, number: int) -> None:
        hand, run_id = self.claimed[number], self.run_of[number]
        run, mine = self.world.committed.get(run_id), self._is_held_by(number)
        if hand.entry is None:
            hand.entry = self._next_entry(hand.execution)
            if mine:
                assert run is not None
                hand.expected = next_write(run, hand.mail)
                assert (hand.entry.action, hand.entry.wait_kind) == (hand.expected.action, hand.expected.wait)
        [answer] = hand.worker.write(hand.entry)
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

    def give_back(self, number: int) -> None:
        hand, run_id = self.claimed[number], self.run_of[number]
        mine = self._is_held_by(number)
        if mine and run_id in self.world.held():
            return
        [answer] = hand.worker.write(hand.execution.release_entry())
        if mine:
            run = self.world.committed[run_id]
            assert run.place is not None
            assert answer == Answer(Verdict.WRITTEN, run.place.control)
            self.world.committed[run_id] = given_back(run)
        else:
            assert answer.verdict is Verdict.STALE
        del self.claimed[number]

    def die(self, worker: int) -> None:
        """What it had goes on elsewhere; it does not know, and goes on as well: that comes to nothing."""
        dead = self.workers[worker]
        theirs = [self.run_of[number] for number in self._hands(dead) if self._is_held_by(number)]
        self.deaths += 1
        dead.die()
        assert self.workers[1 - worker].take_over() == len(theirs)
        for run_id in theirs:
            self.world.committed[run_id] = given_back(self.world.committed[run_id])
        self.zombies.append(dead)
        self.workers[worker] = HandWorker(self.url, [*WORKFLOWS])

    def _mortal(self) -> list[int]:
        """Who may die: workers with something in hand that nobody has locked."""
        held = self.world.held()
        return [
            number
            for number, worker in enumerate(self.workers)
            if self.deaths < DEATHS
            and (hands := self._hands(worker))
            and not any(self.run_of[hand] in held for hand in hands)
        ]

    def _late(self) -> list[int]:
        """The claims of the dead whose runs others have claimed since."""
        return [
            number
            for number, run_id in self.run_of.items()
            if number in self.claimed and not self._is_held_by(number) and self._in_hand(run_id)
        ]

    def _in_hand(self, run_id: UUID) -> bool:
        run = self.world.committed.get(run_id)
        return run is not None and run.place is not None and run.place.holder is not None

    def _hands(self, worker: HandWorker) -> list[int]:
        return [number for number, hand in self.claimed.items() if hand.worker is worker]

    def _is_held_by(self, number: int) -> bool:
        """Whether the run is still under this claim."""
        run = self.world.committed.get(self.run_of[number])
        return run is not None and run.place is not None and run.place.holder == number

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
        assert self.eye.execute(WRONG.encode()).fetchall() == []


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
