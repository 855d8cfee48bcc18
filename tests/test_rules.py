"""The rules between workers, clients and the database: a page that names the tests of each, and tests of what is
nobody else's affair."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from uuid import UUID

import psycopg
import pytest
from pages import DOCS
from working import HandWorker, rows, value

from pgworkflows import Step, Steps, WorkflowClient, WorkflowEngine, claims, workflow
from pgworkflows.entries import Entry
from pgworkflows.history import StepStatus
from pgworkflows.journal import WRITTEN
from pgworkflows.replay import StepWrite

NUMBER_OF_RULES = 31


@pytest.fixture
def client(database_url: str) -> Iterator[WorkflowClient]:
    with WorkflowClient(database_url) as client:
        yield client


@pytest.fixture
def worker(database_url: str) -> Iterator[HandWorker]:
    with HandWorker(database_url, ["plan"]) as worker:
        yield worker


def test_every_rule_names_tests_that_try_to_break_it() -> None:
    section = (DOCS / "reliability.md").read_text().split("\n## Rules and their tests\n")[1].split("\n## ")[0]
    rules = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    assert [int(number) for number, _, _ in rules] == [*range(1, NUMBER_OF_RULES + 1)]
    assert [number for number, _, tests in rules if not re.search(r"`test_\w+\.py::\w+", tests)] == []


@pytest.mark.direct("about LISTEN and the lock of a worker")
class TestNotifications:
    """They cost a lock that all writers share at commit."""

    @pytest.fixture
    def ear(self, database_url: str) -> Iterator[psycopg.Connection]:
        with psycopg.connect(database_url, autocommit=True) as ear:
            ear.execute(f"listen {value(database_url, 'select pgworkflows.channel()')}".encode())
            yield ear

    @staticmethod
    def heard(ear: psycopg.Connection) -> list[str]:
        """What has come by now: a notification is there before the answer to a later statement."""
        ear.execute("select 1")
        return [notification.payload for notification in ear.notifies(timeout=0)]

    def test_nobody_is_told_while_nobody_sleeps(
        self, client: WorkflowClient, worker: HandWorker, ear: psycopg.Connection
    ) -> None:
        client.start_workflow("plan")
        client.start_workflows("plan", [None] * 3)
        client.trigger_event(client.start_workflow("plan").id, "go")
        assert self.heard(ear) == []

    def test_who_sleeps_is_told_once_for_each_lane_and_transaction(
        self, client: WorkflowClient, worker: HandWorker, ear: psycopg.Connection
    ) -> None:
        claims.sleep(worker.connection, worker.id, ["default"])
        client.start_workflows("plan", [None] * 5)
        assert self.heard(ear) == ["default"]
        client.start_workflow("plan", queue="elsewhere")
        assert self.heard(ear) == [], "nobody sleeps there"
        claims.claim(worker.connection, worker.id, ["default"], ["plan"], 0, alone=False, awake=True)
        client.start_workflow("plan")
        assert self.heard(ear) == [], "it is awake"

    def test_the_end_of_a_run_tells_nobody(
        self, client: WorkflowClient, worker: HandWorker, ear: psycopg.Connection
    ) -> None:
        client.start_workflow("plan")
        run = worker.claim_one()
        claims.sleep(worker.connection, worker.id, ["default"])
        assert worker.write(Entry(run.run_id, run.claim_id, run.signal, "complete", output="null")) == [WRITTEN]
        assert self.heard(ear) == []


WAKERS: dict[str, Callable[[WorkflowClient, UUID], object]] = {
    "event": lambda client, run_id: client.trigger_event(run_id, "go"),
    "fast forward": lambda client, run_id: client.fast_forward_workflow(run_id),
    "resume": lambda client, run_id: (client.pause_workflow(run_id), client.resume_workflow(run_id)),
}


@pytest.mark.parametrize("name", WAKERS)
def test_whatever_may_end_a_wait_raises_the_signal_of_its_run(
    name: str, client: WorkflowClient, worker: HandWorker, database_url: str
) -> None:
    run_id = client.start_workflow("plan").id
    worker.write(suspension(worker.claim_one()))
    signal = value(database_url, "select signal from pgworkflows.queue")
    WAKERS[name](client, run_id)
    assert value(database_url, "select signal from pgworkflows.queue") > signal
    assert value(database_url, "select status from pgworkflows.queue") == "pending"


def test_an_event_between_a_claim_and_its_suspend_leaves_the_run_ready(
    client: WorkflowClient, worker: HandWorker, database_url: str
) -> None:
    run_id = client.start_workflow("plan").id
    run = worker.claim_one()
    client.trigger_event(run_id, "go")
    assert worker.write(suspension(run)) == [WRITTEN]
    assert rows(database_url, "select status, wait_kind, claim_id from pgworkflows.queue") == [("pending", None, None)]


def suspension(run: claims.ClaimedRun) -> Entry:
    wait = StepWrite(0, "wait", "wait_for", StepStatus.WAITING, event_name="go")
    return Entry(
        run.run_id, run.claim_id, run.signal, "suspend", (wait,), step_id="wait", wait_kind="event", wait_event="go"
    )


def test_a_suspend_clears_the_blame_in_the_same_write_that_lets_go_of_the_run(
    client: WorkflowClient, worker: HandWorker, database_url: str
) -> None:
    """A second update of one row in one statement would be lost."""
    client.start_workflow("plan")
    for _ in range(2):
        with HandWorker(database_url, ["plan"]) as victim:
            victim.claim_one()
            victim.die()
            assert worker.take_over() == 1
    run = worker.claim_one()
    assert run.interruptions == 2
    assert worker.write(suspension(run)) == [WRITTEN]
    told = rows(database_url, "select status, wait_kind, interruptions, claim_id from pgworkflows.queue")
    assert told == [("waiting", "event", 0, None)]


@pytest.mark.parametrize("name", ["claim", "wake_due", "flush", "move_on", "beat", "take_over"])
def test_no_statement_of_a_worker_runs_under_a_savepoint(name: str, database_url: str) -> None:
    """What an exception block locks is locked by a transaction of its own, which costs another look at every row."""
    sources = rows(database_url, "select prosrc from pg_proc where proname = %s", name)
    assert sources
    assert not any(re.search(r"^\s*exception\b", source, re.MULTILINE) for (source,) in sources)


def test_no_step_begins_before_what_came_before_it_is_stored(database_url: str) -> None:
    """Asked of the database, by each step."""
    stored = "select count(*) from pgworkflows.steps where run_id = %s and status = 'completed'"

    @workflow("plan")
    def plan(step: Step) -> Steps[list[int]]:
        seen: list[int] = []
        for number in range(10):
            seen.append((yield step.run(f"{number}", value, database_url, stored, step.context.run_id)))
        return seen

    with WorkflowEngine(database_url, workflows=[plan]) as engine:
        runs = [run.id for run in engine.start_workflows(plan, [None] * 20)]
        engine.worker().run_until_idle(timeout=60)
        assert [engine.get_run(run_id).output for run_id in runs] == [[*range(10)]] * 20
