"""Laws of `check_progress`, asked by a client that has no handlers, of runs that take every way there is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal
from uuid import UUID

import pytest
from conftest import Databases
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from working import make_due

from pgworkflows import (
    ChildWorkflowFailedError,
    RunStatus,
    Step,
    StepFailedError,
    Steps,
    WorkflowClient,
    WorkflowEngine,
    WorkflowProgress,
    current_step,
    workflow,
)

RETRIES = 1


class Way(BaseModel):
    """What happens to a journey: how many stops and letters, which branches, and how often each step fails at first."""

    stops: int
    letters: int
    detour: bool
    early: bool
    failures: dict[str, int]
    fast_forward: bool
    pauses: bool
    errand: Literal["none", "caught", "uncaught"]


@dataclass
class Watch:
    """A client without handlers, and what it was told, in order, also from inside of steps."""

    client: WorkflowClient
    failures: dict[str, int] = field(default_factory=dict[str, int])
    told: dict[UUID, list[WorkflowProgress]] = field(default_factory=dict[UUID, list[WorkflowProgress]])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, run_id: UUID) -> WorkflowProgress:
        with self.lock:
            found = self.client.check_progress(run_id)
            self.told.setdefault(run_id, []).append(found)
            return found


WATCH: list[Watch] = []


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url) as engine:
        yield engine


@pytest.fixture
def client(database_url: str) -> Iterator[WorkflowClient]:
    with WorkflowClient(database_url) as client:
        yield client


def call() -> str:
    """Looks at the progress of its own run, and fails as often as the way says."""
    [watch] = WATCH
    step = current_step()
    watch.look(step.run_id)
    left = watch.failures.get(step.step_id, 0)
    watch.failures[step.step_id] = left - 1
    if left > 0:
        raise ValueError(step.step_id)
    return step.step_id


def look_for() -> bool:
    try:
        call()
    except ValueError:
        return False
    return True


@workflow("errand")
def errand(step: Step) -> Steps[str]:
    yield step.run("go there", call)
    for number in range(2):
        yield step.run(f"ask {number}", call).retry(attempts=2, wait="1 hour")
    return (yield from step.run("come back", call))


@workflow("journey", retries=RETRIES)
def journey(step: Step, input: Way) -> Steps[str]:
    yield step.run("pack", call)
    for number in range(input.stops):
        yield step.run(f"stop {number}", call).retry(attempts=2, wait="1 hour")
    if input.early:
        return "home again"
    if input.detour:
        yield step.delay("rest", "1 hour")
        yield step.run("detour", call)
    else:
        yield step.wait_for("a sign", "sign", timeout="1 hour")
    try:
        yield step.run("the bridge", call)
    except StepFailedError:
        yield step.run("the ferry", call)
    try:
        if input.errand != "none":
            yield step.invoke_child_workflow("the errand", errand)
    except ChildWorkflowFailedError:
        if input.errand == "uncaught":
            raise
        yield step.run("go yourself", call)
    yield step.poll("the ship", look_for, interval="1 hour", timeout="1 day")
    if input.pauses:
        yield step.pause("customs")
    left = input.letters
    while left:
        yield step.wait_for(f"letter {left}", "letter")
        left -= 1
    yield step.run("unpack", call)
    return "arrived"


NAMES = ["pack", "stop 0", "stop 1", "stop 7", "detour", "the bridge", "the ferry", "the ship", "unpack"]
NAMES += ["go there", "ask 0", "ask 1", "come back", "go yourself"]
LITERAL = {"pack", "rest", "detour", "a sign", "the bridge", "the ferry", "the ship", "customs", "unpack"}
LITERAL |= {"the errand", "go yourself"}

ways = st.builds(
    Way,
    stops=st.integers(0, 9),
    letters=st.integers(0, 2),
    detour=st.booleans(),
    early=st.sampled_from([False, False, False, True]),
    failures=st.dictionaries(st.sampled_from(NAMES), st.integers(1, 5), max_size=3),
    fast_forward=st.booleans(),
    pauses=st.booleans(),
    errand=st.sampled_from(["none", "caught", "uncaught"]),
)


def travel(engine: WorkflowEngine, watch: Watch, way: Way) -> UUID:
    """A journey from its start to its completion, retried by hand whenever it has failed."""
    url = engine.conninfo
    watch.failures = dict(way.failures)
    run = engine.start_workflow(journey, way)
    watch.look(run.id)
    for _ in range(100):
        engine.worker(threads=1).run_until_idle(timeout=30)
        seen = watch.look(run.id)
        match seen.status:
            case RunStatus.COMPLETED:
                return run.id
            case RunStatus.FAILED:
                watch.client.retry_workflow(run.id)
            case RunStatus.PAUSED:
                watch.client.resume_workflow(run.id)
            case RunStatus.WAITING if way.fast_forward and seen.current_step_id != "the errand":
                watch.client.fast_forward_workflow(run.id)
            case _:
                watch.client.trigger_event(run.id, "letter")
                make_due(url)
        watch.look(run.id)
    raise AssertionError(f"{way} has not come to its end: {watch.told[run.id][-1]}")


def assert_laws(told: list[WorkflowProgress]) -> None:
    for progress in told:
        assert 0 <= progress.completed_steps <= progress.total_steps
        if progress.status is RunStatus.COMPLETED:
            assert progress.completion_percentage == 100
        else:
            assert progress.completion_percentage <= 99
            exact = progress.completed_steps * 100 // max(1, progress.total_steps)
            assert progress.completion_percentage == min(99, exact)
    for before, after in pairwise(told):
        assert before.completed_steps <= after.completed_steps
        assert before.completion_percentage <= after.completion_percentage


def test_it_never_falls_is_at_most_99_before_the_end_and_100_at_the_end(
    databases: Databases, migrated_template: str
) -> None:
    with (
        databases.fresh(migrated_template) as url,
        WorkflowClient(url) as client,
        WorkflowEngine(url, workflows=[journey, errand]) as engine,
    ):
        engine.start(worker=False)

        @settings(max_examples=15, deadline=None)
        @given(ways)
        def law(way: Way) -> None:
            watch = Watch(client)
            WATCH[:] = [watch]
            run_id = travel(engine, watch, way)
            for told in watch.told.values():
                assert_laws(told)
            last = watch.told[run_id][-1]
            done = {step.step_id for step in client.get_steps(run_id) if step.status == "completed"}
            assert last.completed_steps == len(done)
            assert last.total_steps == len(done | LITERAL)
            if not way.failures:
                assert {progress.completed_steps for progress in watch.told[run_id]} >= {0, len(done)}

        law()


def test_steps_whose_ids_are_computed_count_once_they_are_done(engine: WorkflowEngine, client: WorkflowClient) -> None:
    @workflow("rounds")
    def rounds(step: Step, input: int) -> Steps[None]:
        for number in range(input):
            yield step.run(f"round {number}", str)
        yield step.pause("stop")
        yield step.run("last", str)

    engine.register_workflow(rounds)
    runs = [engine.start_workflow(rounds, number) for number in (0, 2, 98, 1000)]
    engine.worker().run_until_idle(timeout=30)
    found = [client.check_progress(run.id) for run in runs]
    assert [(each.completed_steps, each.total_steps) for each in found] == [(0, 2), (2, 4), (98, 100), (1000, 1002)]
    assert [each.completion_percentage for each in found] == [0, 50, 98, 99]


def test_a_deploy_that_adds_steps_is_all_that_can_lower_it(engine: WorkflowEngine, client: WorkflowClient) -> None:
    @workflow("plan")
    def before(step: Step) -> Steps[None]:
        yield step.run("a", str)
        yield step.pause("b")

    @workflow("plan")
    def after(step: Step) -> Steps[None]:
        yield step.run("a", str)
        yield step.pause("b")
        yield step.run("c", str)
        yield step.run("d", str)

    engine.register_workflow(before)
    run = engine.start_workflow(before)
    engine.worker().run_until_idle(timeout=30)
    assert client.check_progress(run.id).completion_percentage == 50
    engine.unregister_workflow("plan")
    engine.register_workflow(after)
    engine.worker().run_until_idle(timeout=30)
    assert client.check_progress(run.id).completion_percentage == 25
    client.resume_workflow(run.id)
    engine.worker().run_until_idle(timeout=30)
    assert client.check_progress(run.id).completion_percentage == 100


def test_of_a_handler_whose_source_cannot_be_read_it_knows_only_what_is_done(
    engine: WorkflowEngine, client: WorkflowClient
) -> None:
    names: dict[str, Any] = {}
    exec("def plan(step):\n    yield step.run('a', str)\n    yield step.pause('b')\n", names)
    plan = workflow("plan")(names["plan"])
    engine.register_workflow(plan)
    run = engine.start_workflow(plan)
    assert client.check_progress(run.id).completion_percentage == 0
    engine.worker().run_until_idle(timeout=30)
    found = client.check_progress(run.id)
    assert (found.completed_steps, found.total_steps, found.completion_percentage) == (1, 1, 99)
    client.resume_workflow(run.id)
    engine.worker().run_until_idle(timeout=30)
    assert client.check_progress(run.id).completion_percentage == 100
