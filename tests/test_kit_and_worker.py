"""What the testing kit does to a run, a worker does: random workflows driven by the one, worked on by the other."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from random_workflows import Block, Told, trees

from pgworkflows import InvalidStatusError, WorkflowEngine, workflow
from pgworkflows.testing import Run, Workflows, delete_runs
from pgworkflows.testing.driver import Driver

DEEDS = ("travel", "travel", "travel", "apple", "pear", "pause", "resume", "cancel", "retry", "fast_forward")


class RealWorker:
    """In the place of the kit's driver: a worker with all its threads works until nothing is ready."""

    next_tick: datetime | None = None

    def __init__(self, engine: WorkflowEngine) -> None:
        self._engine = engine

    def run_until_idle(self) -> None:
        self._engine.worker().run_until_idle("20s")

    def close(self) -> None:
        """It has ended."""


def with_a_real_worker(url: str) -> Workflows:
    """The same runner, its clock and its calls, in front of a real worker."""
    workflows = Workflows(WorkflowEngine(url))
    workflows._driver = cast("Driver", RealWorker(workflows.engine))
    return workflows


def seen_of(run: Run) -> dict[str, Any]:
    """All that can be seen of a run, but what passes between two looks at a clock."""
    record = run.record
    return {
        "status": record.status,
        "output": record.output,
        "error": without_traceback(record.error),
        "at": record.current_step_id,
        "retries": record.retry_count,
        "steps": [
            (
                each.position,
                each.step_id,
                each.kind,
                each.status,
                each.output,
                without_traceback(each.error),
                each.attempts,
                each.event_name,
                each.completed_at is None,
                each.wake_at is None,
            )
            for each in run.steps
        ],
    }


def without_traceback(error: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if error is None else {key: value for key, value in error.items() if key != "traceback"}


def do(what: str, run: Run, workflows: Workflows) -> str:
    """What a client does to the run, or time: and whether it was refused."""
    try:
        match what:
            case "travel":
                due = workflows._next_due()
                if due is not None:
                    workflows._go_to(due)
            case "apple" | "pear":
                run.send(what, 3)
            case "fast_forward":
                run.fast_forward(7)
            case _:
                getattr(run, what)()
    except InvalidStatusError:
        return "refused"
    return "done"


def story_of(workflows: Workflows, tree: Block, retries: int, deeds: list[str]) -> list[Any]:
    """What is seen of a run of the tree after each deed, and which step functions were called."""
    calls: list[tuple[str, int]] = []
    told = Told(tree, start=workflows.now(), now=workflows.now, called=lambda *call: calls.append(call))
    workflows.engine.unregister_all_workflows()
    with workflows._clock.standing():  # or a wait of a second ends by itself on a busy machine
        run = workflows.start(workflow("tree")(told.handler), retries=retries)
        story: list[Any] = [seen_of(run)]
        for what in deeds:
            story += [what, do(what, run, workflows), seen_of(run)]
    assert not told.wrongs, told.wrongs
    event(str(run.status))
    delete_runs(workflows.engine)
    return [*story, calls]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees(), st.sampled_from((0, 1)), st.lists(st.sampled_from(DEEDS), max_size=8))
def test_a_run_goes_the_same_way_in_the_kit_and_with_a_worker(
    workflows: Workflows, tree: Block, retries: int, deeds: list[str]
) -> None:
    in_the_kit = story_of(workflows, tree, retries, deeds)
    with with_a_real_worker(workflows.engine.conninfo) as others:
        assert story_of(others, tree, retries, deeds) == in_the_kit
