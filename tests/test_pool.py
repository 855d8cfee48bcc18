"""The threads that call step functions: who is woken, and who writes what they have done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Queue
from typing import Any
from uuid import UUID

import pytest
from working import Door, working

from pgworkflows import Step, Steps, WorkflowEngine, claims, workflow
from pgworkflows.columns import columns_of
from pgworkflows.documents import spelled
from pgworkflows.pace import Pace
from pgworkflows.pool import Pool

THREADS = 6


class Meeting:
    """A step that ends only once as many threads are in it as a pool has."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(THREADS)

    def attend(self, input: int) -> int:
        self._barrier.wait(20)
        return input


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def engine(database_url: str, door: Door) -> Iterator[WorkflowEngine]:
    meeting = Meeting()

    @workflow("meet")
    def meet(step: Step, input: int) -> Steps[int]:
        first = yield from step.run("first", meeting.attend, input)
        return (yield from step.run("again", meeting.attend, first))

    @workflow("steps")
    def steps(step: Step, input: int) -> Steps[int]:
        for number in range(input):
            yield from step.run(f"s{number}", int)
        return input

    @workflow("held")
    def held(step: Step) -> Steps[str]:
        return (yield from step.run("door", door.enter))

    with WorkflowEngine(database_url, workflows=[meet, steps, held]) as engine:
        yield engine


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The thread of each flush and how many entries it had."""
    writers: list[tuple[str, int]] = []

    def noted(spell: Callable[..., Any]) -> Callable[..., Any]:
        def spell_and_note(worker_id: UUID, entries: Sequence[Any], *pieces: Any) -> Any:
            writers.append((threading.current_thread().name, len(entries)))
            return spell(worker_id, entries, *pieces)

        return spell_and_note

    monkeypatch.setattr("pgworkflows.journal.spelled", noted(spelled))
    monkeypatch.setattr("pgworkflows.journal.columns_of", noted(columns_of))
    return writers


def test_steps_that_block_get_all_threads(engine: WorkflowEngine) -> None:
    runs = [engine.start_workflow("meet", number) for number in range(THREADS * 3)]
    with working(engine, threads=THREADS):
        assert [engine.wait_for_run(run.id, timeout=30).output for run in runs] == list(range(THREADS * 3))


def test_a_step_that_blocks_among_quick_ones_holds_up_none_of_them(engine: WorkflowEngine, door: Door) -> None:
    runs = engine.start_workflows("steps", [3] * 100)
    held = engine.start_workflow("held")
    more = engine.start_workflows("steps", [3] * 100)
    with working(engine, threads=2):
        assert [engine.wait_for_run(run.id, timeout=30).output for run in runs + more] == [3] * 200
        assert door.inside.is_set()
        door.open.set()
        assert engine.wait_for_run(held.id, timeout=30).output == "through the door"


class TestWhereOneThreadIsEnough:
    """And where not, though it seems so: what a thread is in now may take long."""

    @pytest.fixture
    def begun(self) -> Queue[Any]:
        return Queue()

    @pytest.fixture
    def pool(self, begun: Queue[Any], door: Door) -> Iterator[Pool]:
        def work(execution: Any) -> None:
            begun.put(execution)
            if execution == "blocks":
                door.inside.set()
                door.open.wait(60)
            elif isinstance(execution, list):
                pool.put(*execution)

        pool = Pool(3, work, "test")
        yield pool
        door.open.set()
        pool.close(20)

    def test_what_comes_in_while_it_blocks_is_taken_by_the_others(
        self, pool: Pool, begun: Queue[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Pace, "expected", lambda self: 1_000_000)
        pool.start()
        executions: list[Any] = ["blocks", "blocks", *range(20)]
        pool.put(*executions)
        assert [begun.get(timeout=20) for _ in executions] == executions

    def test_one_that_blocks_keeps_no_other_from_going_on(
        self, pool: Pool, begun: Queue[Any], door: Door, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pgworkflows.pool.STAND_BY_S", 3600.0)
        monkeypatch.setattr(Pace, "expected", lambda self: 1_000_000 * (begun.qsize() > 1))
        pool.start()
        executions: list[Any] = ["blocks", *range(50)]
        pool.put(executions[0])
        assert door.inside.wait(20)
        pool.put(*executions[1:])
        assert {begun.get(timeout=20) for _ in executions} == {*executions}

    def test_what_it_puts_before_it_goes_to_sleep_is_not_left_to_one_that_blocks(
        self, pool: Pool, begun: Queue[Any], door: Door, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Pool, "_others_are_enough", lambda self, turns, since: bool(self._at_work))
        pool.start()
        executions: list[Any] = ["blocks", ["put by a thread of the pool"]]
        pool.put(executions[0])
        assert door.inside.wait(20)
        pool.put(executions[1])
        assert [begun.get(timeout=20) for _ in range(3)] == [*executions, "put by a thread of the pool"]


def test_a_run_that_is_alone_is_written_by_the_thread_that_works_on_it(
    engine: WorkflowEngine, writers: list[tuple[str, int]]
) -> None:
    run = engine.start_workflow("steps", 20)
    engine.worker().run_until_idle(timeout=20)
    assert engine.get_run(run.id).output == 20
    assert {thread for thread, _ in writers} == {"pgworkflows-step"}


def test_runs_in_company_are_written_together(engine: WorkflowEngine, writers: list[tuple[str, int]]) -> None:
    runs = engine.start_workflows("steps", [5] * 50)
    engine.worker().run_until_idle(timeout=30)
    assert [engine.get_run(run.id).output for run in runs] == [5] * 50
    assert max(entries for _, entries in writers) > 1
    assert len(writers) < 50 * 5


def test_what_the_working_thread_could_not_write_the_scribe_writes_and_tells_of(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flush_results = claims.flush_results
    failed: list[str] = []

    def broken_in_the_pool(*args: Any) -> Any:
        if threading.current_thread().name == "pgworkflows-step":
            failed.append("once more")
            raise ArithmeticError("nobody expects this")
        return flush_results(*args)

    monkeypatch.setattr(claims, "flush_results", broken_in_the_pool)
    run = engine.start_workflow("steps", 2)
    engine.worker().run_until_idle(timeout=20)
    assert engine.get_run(run.id).output == 2
    assert failed
    assert "nobody expects this" in caplog.text
