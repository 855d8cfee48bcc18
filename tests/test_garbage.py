"""A run that a worker lets go of is freed at once: not by the garbage collector, which stops all threads meanwhile. A
failure holds its frames, and they the run: those are the collector's."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from waiting import until
from working import working

from pgworkflows import Step, Steps, Workflow, WorkflowEngine, workflow
from pgworkflows.runner import Execution

# What other tests have left is collected at the beginning, and may complain.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

RUNS = 20


@workflow("completes")
def completes(step: Step) -> Steps[int]:
    return (yield from step.run("work", int))


@workflow("waits")
def waits(step: Step) -> Steps[None]:
    yield from step.run("work", int)
    yield from step.wait_for("wait", "go")


@workflow("waits-for-an-hour")
def waits_for_an_hour(step: Step) -> Steps[None]:
    yield from step.run("work", int)
    yield from step.wait_for("wait", "go", timeout="1 hour")


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def in_memory(work: Workflow[Any, Any]) -> list[Execution]:
    """The executions of a workflow that something holds; other tests may have left theirs."""
    return [each for each in gc.get_objects() if isinstance(each, Execution) and each.workflow is work]


@pytest.mark.parametrize("work", [completes, waits, waits_for_an_hour], ids=lambda work: str(work.id))
@pytest.mark.usefixtures("no_collector")
def test_nothing_is_left_in_memory_of_a_run_that(work: Workflow[Any, Any], database_url: str) -> None:
    with WorkflowEngine(database_url, workflows=[work]) as engine:
        engine.start_workflows(work, [None] * RUNS)
        with working(engine):
            until(lambda: all(run.current_step_id for run in engine.get_runs(limit=RUNS).items), "each was worked on")
            until(lambda: not in_memory(work), "the worker has forgotten them all")
