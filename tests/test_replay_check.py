"""The replay check: histories of real runs, and today's code that does as they did, or does not."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from plays import Play
from random_workflows import Block, Mail, Told, mails, trees
from replay_model import RUN_ID

from pgworkflows import PollResult, Step, StepFailedError, Steps, Workflow, WorkflowRunNotFoundError, workflow
from pgworkflows.payloads import Payloads
from pgworkflows.testing import Run, Workflows, check_replay, export_run
from pgworkflows.testing.histories import history_from


@dataclasses.dataclass
class Person:
    name: str
    born: datetime


ADA = Person("Ada", datetime(1815, 12, 10, tzinfo=UTC))


def find() -> Person:
    return ADA


@workflow("child")
def child(step: Step) -> Steps[str]:
    return (yield from step.run("play", lambda: "toy"))


@workflow("everything", retries=2)
def everything(step: Step, input: Person) -> Steps[Any]:
    person = yield from step.run("find", find)
    assert (person, input) == (ADA, ADA)
    try:
        yield from step.run("fragile", lambda: 1 / 0).retry(attempts=2, wait="1 minute")
    except StepFailedError as error:
        yield from step.run(error.error_type, lambda: None)
    polled: PollResult[Any] = yield from step.poll("look", lambda: None, interval="1 hour", timeout="90 minutes")
    assert polled.timed_out
    assert (yield from step.wait_for("reply", "replied", timeout="1 day")) is None
    try:
        yield from step.invoke_child_workflow("raise", child)
    except StepFailedError as error:
        yield from step.run(f"{'no toy' in error.message}", lambda: None)
    assert (yield from step.wait_for("go", "go")) == {"on": 1e16}
    yield from step.delay("rest", "2 days")
    return f"{step.context.attempt} {sorted(step.context.timeline)}"


def to_the_end(workflows: Workflows) -> Run:
    workflows.register(child)
    workflows.fail_step("play", error=LookupError("no toy"))
    run = workflows.start(everything, ADA)
    workflows.travel("2 days")
    run.send("go", {"on": 1e16})
    workflows.travel("2 days")
    run.assert_completed()
    return run


def exported(workflows: Workflows, run: Run) -> dict[str, Any]:
    """As it is read from a file."""
    history: dict[str, Any] = json.loads(json.dumps(export_run(workflows.engine, run.id)))
    return history


class TestRealRuns:
    def test_a_run_with_everything_in_it_replays(self, workflows: Workflows, tmp_path: Path) -> None:
        run = to_the_end(workflows)
        history = export_run(workflows.engine, str(run.id))
        assert [step["kind"] for step in history["steps"]] == [str(step.kind) for step in run.steps]
        check_replay(everything, history)
        file = tmp_path / "run.json"
        file.write_text(json.dumps(history))
        check_replay(everything, file)
        check_replay(everything, str(file))

    def test_at_any_point_of_its_way_a_run_replays(self, workflows: Workflows) -> None:
        workflows.register(child)
        workflows.fail_step("play", error=LookupError("no toy"))
        run = workflows.start(everything, ADA)
        seen = [exported(workflows, run)]
        for _ in range(4):
            workflows.travel_to_next()
            seen.append(exported(workflows, run))
        run.pause()
        seen.append(exported(workflows, run))
        run.cancel()
        seen.append(exported(workflows, run))
        assert {history["run"]["status"] for history in seen} >= {"pending", "waiting", "paused", "cancelled"}
        for history in seen:
            check_replay(everything, history)

    def test_a_failed_run_and_its_next_execution_replay(self, workflows: Workflows) -> None:
        workflows.fail_step("find", times=2)
        run = workflows.start(everything, ADA)
        check_replay(everything, exported(workflows, run))
        workflows.travel("1 minute")
        history = exported(workflows, run)
        assert history["run"]["attempt"] == 3
        check_replay(everything, history)

        workflows.fail_step("only", times=None)
        failed = workflows.start(one_step("only"))
        failed.assert_failed()
        check_replay(one_step("only"), exported(workflows, failed))

    def test_a_run_knows_the_tick_that_started_it(self, workflows: Workflows) -> None:
        @workflow("hourly", schedule="0 * * * *")
        def hourly(step: Step) -> Steps[None]:
            assert step.context.schedule is not None
            yield from step.run(f"at-{step.context.schedule.timestamp:%Y-%m-%dT%H:%M}", lambda: None)

        workflows.register(hourly)
        workflows.travel("1 hour")
        check_replay(hourly, exported(workflows, workflows.last_run(hourly)))

    def test_what_is_not_there_has_no_history(self, workflows: Workflows) -> None:
        with pytest.raises(WorkflowRunNotFoundError):
            export_run(workflows.engine, "01890000-0000-7000-8000-000000000000")

    def test_what_is_confidential_can_be_left_out(self, workflows: Workflows) -> None:
        workflows.fail_step("fragile", times=2, error=ZeroDivisionError("4111 1111 1111 1111"))
        run = to_the_end(workflows)
        places: list[str] = []

        def redact(place: str, value: Any) -> Any:
            places.append(place)
            return "***" if place.endswith(("error", "output")) else value

        history = export_run(workflows.engine, run.id, redact=redact)
        assert history["redacted"]
        assert {"input", "output", "steps.find", "steps.fragile.error", "steps.raise.error"} <= set(places)
        assert "4111" not in json.dumps(history)
        assert "Traceback" not in json.dumps(history)
        assert "4111" in json.dumps(export_run(workflows.engine, run.id))
        history["run"]["input"]["name"] = "Bob"
        with pytest.raises(AssertionError, match=r"step 1 differs\nstored: run 'fragile'\ntoday:  the end: Asser"):
            check_replay(everything, history)


def one_step(step_id: str) -> Workflow[Any, Any]:
    @workflow("one-step")
    def handler(step: Step) -> Steps[None]:
        yield from step.run(step_id, lambda: None)

    return handler


def three(*kinds: str, ending: BaseException | None = None, result: Any = int) -> Workflow[Any, Any]:
    """A workflow whose steps are the words, which say what they are: `delay`, or else a step that is run."""

    def typed() -> Any:
        return 1

    typed.__annotations__["return"] = result

    @workflow("three")
    def handler(step: Step) -> Steps[str]:
        try:
            for kind in kinds:
                if kind.startswith("delay"):
                    yield from step.delay(kind, "1 hour")
                else:
                    yield from step.run(kind, typed)
        finally:
            yield from step.run("never", lambda: None)
        if ending is not None:
            raise ending
        return "done"

    return handler


class TestChangedWorkflows:
    @pytest.fixture
    def history(self, workflows: Workflows) -> dict[str, Any]:
        run = workflows.start(three("a", "b", "delay"))
        workflows.travel("1 hour")
        run.assert_completed("done")
        history = exported(workflows, run)
        check_replay(three("a", "b", "delay"), history)
        return history

    def told(self, changed: Workflow[Any, Any], history: dict[str, Any]) -> list[str]:
        with pytest.raises(AssertionError) as failure:
            check_replay(changed, history)
        return str(failure.value).splitlines()

    def test_the_first_step_that_differs_is_shown_in_its_place(self, history: dict[str, Any]) -> None:
        assert self.told(three("a", "c", "delay"), history) == [
            f"workflow 'three' does not replay run {history['run']['id']}: step 1 differs",
            "stored: run 'b'",
            "today:  run 'c'",
            "      0  run    a",
            "    - 1  run 'b'",
            "    + 1  run 'c'",
        ]

    def test_another_kind_an_insertion_and_a_removal_differ(self, history: dict[str, Any]) -> None:
        assert self.told(three("delay", "a", "b"), history)[1:3] == ["stored: run 'a'", "today:  delay 'delay'"]
        assert self.told(three("a", "new", "b", "delay"), history)[1:3] == ["stored: run 'b'", "today:  run 'new'"]
        assert self.told(three("b", "delay"), history)[1:3] == ["stored: run 'a'", "today:  run 'b'"]
        assert self.told(three("a", "b"), history)[1:3] == ["stored: delay 'delay'", "today:  run 'never'"]

    def test_a_step_after_the_end_of_a_completed_run_differs(self, history: dict[str, Any]) -> None:
        said = self.told(three("a", "b", "delay", "more"), history)
        assert said[1:3] == ["stored: run 'never'", "today:  run 'more'"]
        history["steps"].pop()
        assert self.told(three("a", "b", "delay"), history)[1:3] == [
            "stored: the end: it returned",
            "today:  run 'never'",
        ]

    def test_an_end_that_comes_too_early_differs(self, history: dict[str, Any]) -> None:
        @workflow("three")
        def short(step: Step) -> Steps[str]:
            yield from step.run("a", lambda: 1)
            return "done"

        assert self.told(short, history)[1:3] == ["stored: run 'b'", "today:  the end: it returns"]

    def test_an_error_where_it_returned_differs_and_comes_along(self, history: dict[str, Any]) -> None:
        broken = KeyError("new code")
        with pytest.raises(
            AssertionError, match="step 4 differs\nstored: the end: it returned\ntoday:  the end: KeyErr"
        ) as f:
            check_replay(three("a", "b", "delay", ending=broken), history)
        assert f.value.__cause__ is broken

    def test_a_result_that_does_not_fit_its_annotation_any_more_differs(self, history: dict[str, Any]) -> None:
        said = self.told(three("a", "b", "delay", result=list[int]), history)
        assert said[0].endswith("step 0 differs")
        assert said[1] == "stored: run 'a'"
        assert said[2].startswith("today:  run 'a', and the end: SerializationError: ")

    def test_an_input_that_is_refused_today_differs(self, workflows: Workflows) -> None:
        @workflow("taking")
        def taking(step: Step, input: int) -> Steps[None]:
            yield from step.run("a", lambda: None)

        history = exported(workflows, workflows.start(taking, 7))

        @workflow("taking")
        def other(step: Step, input: list[str]) -> Steps[None]:
            yield from step.run("a", lambda: None)

        check_replay(taking, history)
        assert "its input is refused: " in self.told(other, history)[0]

    def test_another_result_or_step_function_does_not_differ(self, history: dict[str, Any]) -> None:
        @workflow("three")
        def renewed(step: Step) -> Steps[dict[str, Any]]:
            yield from step.run("a", lambda: "other")
            yield from step.run("b", lambda: pytest.fail("no step function is called"))
            yield from step.delay("delay", "5 days")
            yield from step.run("never", lambda: None)
            return {"much": "more"}

        check_replay(renewed, history)

    def test_an_unfinished_run_may_go_on_in_another_way(self, workflows: Workflows) -> None:
        run = workflows.start(three("a", "delay", "b"))
        history = exported(workflows, run)
        check_replay(three("a", "delay", "c", "d"), history)
        assert self.told(three("a", "delay-2", "b"), history)[1:3] == [
            "stored: delay 'delay'",
            "today:  delay 'delay-2'",
        ]

    def test_another_workflows_history_and_other_files_are_refused(self, history: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="of a run of 'three', not of 'one-step'"):
            check_replay(one_step("a"), history)
        with pytest.raises(ValueError, match="no history of version 1"):
            check_replay(three(), {**history, "version": 2})
        with pytest.raises(ValueError, match="no history of version 1"):
            check_replay(three(), {})


# Random workflows ---------------------------------------------------------------------------------------------------


def rows_of(play: Play) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A played run as the database keeps it."""
    database = play.database
    run = {
        "id": str(RUN_ID),
        "workflow_id": "modelled",
        "status": str(database.status),
        "input": None,
        "output": None if database.output is None else json.loads(database.output),
        "error": None if database.error is None else dataclasses.asdict(database.error),
        "resource_id": None,
        "retry_count": database.retry_count,
        "schedule_tick": None,
    }
    steps = [
        {
            "position": step.position,
            "step_id": step.step_id,
            "kind": str(step.kind),
            "status": str(step.status),
            "output": None if step.output is None else json.loads(step.output),
            "error": None if step.error is None else dataclasses.asdict(step.error),
            "attempts": step.attempts,
            "event_name": None,
        }
        for step in database.history
        if not step.cleared
    ]
    return run, steps


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees(), mails, st.sampled_from((0, 0, 2)), st.integers(1, 30))
def test_any_history_of_any_workflow_replays(tree: Block, mail: list[Mail], retries: int, claims: int) -> None:
    play = Play(tree, mail=mail, retries=retries)
    for _ in range(claims):
        claimed = play.next_claim()
        if claimed is None:
            break
        play.work(claimed)
        history = json.loads(json.dumps(history_from(*rows_of(play), Payloads(), None)))
        check_replay(play.workflow, history)
    event(str(play.database.status))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees(), st.sampled_from((0, 2)))
def test_the_history_of_a_real_run_of_any_workflow_replays(workflows: Workflows, tree: Block, retries: int) -> None:
    workflows.engine.unregister_all_workflows()
    told = Told(tree, start=workflows.now(), now=workflows.now, called=lambda *_: None)
    any_tree = workflow("tree")(told.handler)
    run = workflows.start(any_tree, retries=retries)
    for what in ("apple", "pear", "apple"):
        check_replay(any_tree, exported(workflows, run))
        if not run.status.finished:
            run.send(what, 3)
            workflows.travel("1 hour")
    event(str(run.status))
    check_replay(any_tree, exported(workflows, run))
    assert not told.wrongs, told.wrongs
