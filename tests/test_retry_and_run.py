"""One claimed run in a worker's hands, without threads: its calls, their timeouts, and when a failed run is retried."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from random_workflows import Lines
from replay_model import RUN_ID, Database

from pgworkflows.calls import Call
from pgworkflows.commands import Step, StepContext, Steps
from pgworkflows.current import CurrentStep, current_step
from pgworkflows.definition import Workflow, workflow
from pgworkflows.entries import Entry
from pgworkflows.errors import StepTimeoutError
from pgworkflows.history import StepStatus
from pgworkflows.runner import Execution
from pgworkflows.runs import RunStatus


def logger_to(lines: Lines) -> logging.Logger:
    logger = logging.Logger("told", logging.INFO)
    logger.addHandler(lines)
    return logger


def execution_of(database: Database, workflow: Workflow[Any, Any], lines: Lines | None = None) -> Execution:
    claimed = database.claim()
    assert claimed is not None
    return Execution(claimed, workflow, logger_to(lines or Lines()))


def begun(execution: Execution) -> Call:
    """The first call of a run without a history."""
    entry = execution.work(None)
    assert entry is not None
    assert (entry.action, entry.steps) == ("checkpoint", ())
    call = execution.next_call()
    assert call is not None
    return call


def worked(execution: Execution, call: Call | None) -> Entry:
    entry = execution.work(call)
    assert entry is not None
    return entry


def fail() -> None:
    raise OSError("no")


@workflow("failing")
def failing(step: Step) -> Steps[None]:
    yield step.run("bad", fail)


def test_a_failed_run_is_retried_after_1_2_4_seconds_and_a_little_more_and_then_fails() -> None:
    database = Database(max_retries=4)
    for pause_s in (1, 2, 4, 8):
        execution = execution_of(database, failing)
        entry = worked(execution, begun(execution))
        assert (entry.action, entry.step_id) == ("retry", "bad")
        assert entry.wake_after is not None
        assert timedelta(seconds=pause_s) <= entry.wake_after <= timedelta(seconds=pause_s * 1.25)
        database.flush(entry)
        assert (database.status, database.claim()) == (RunStatus.PENDING, None)
        database.now += entry.wake_after
    execution = execution_of(database, failing)
    entry = worked(execution, begun(execution))
    assert entry.action == "fail"
    database.flush(entry)
    assert database.status is RunStatus.FAILED
    assert database.history[0].attempts == 5


def test_a_retry_by_hand_gives_a_run_its_retries_anew() -> None:
    database = Database(max_retries=1)
    for action in ("retry", "fail", "retry", "fail"):
        execution = execution_of(database, failing)
        entry = worked(execution, begun(execution))
        assert entry.action == action
        database.flush(entry)
        database.retry()
        database.now += timedelta(seconds=2)


def test_a_step_failure_raised_again_is_taken_back_with_what_failed_after_it() -> None:
    calls: list[str] = []

    def charge() -> str:
        calls.append("charge")
        if len(calls) < 3:
            raise OSError("no")
        return "charged"

    def tell() -> None:
        calls.append("tell")
        raise OSError("nobody there")

    @workflow("charging")
    def charging(step: Step) -> Steps[Any]:
        try:
            charged = yield step.run("charge", charge)
        except Exception:
            try:
                yield step.run("tell", tell)
            except Exception:
                step.context.logger.info("nobody there")
            raise
        yield step.run("ship", calls.append, "ship")
        return charged

    database = Database(max_retries=1)
    for _ in range(20):
        claimed = database.claim()
        if claimed is None:
            database.now += timedelta(seconds=2)
            continue
        execution = Execution(claimed, charging, logger_to(Lines()))
        entry = worked(execution, None)
        while entry.action == "checkpoint":
            database.flush(entry)
            entry = worked(execution, execution.next_call())
        database.flush(entry)
        if database.status.finished:
            break
    assert (database.status, database.output) == (RunStatus.COMPLETED, '"charged"')
    assert calls == ["charge", "tell", "charge", "ship"]


def slow() -> str:
    return "late"


@workflow("slow")
def slow_workflow(step: Step) -> Steps[Any]:
    try:
        return (yield step.run("slow", slow).timeout("2 seconds"))
    except StepTimeoutError as error:
        return str(error)


def test_a_call_that_takes_too_long_ends_its_step_and_its_late_result_is_dropped() -> None:
    execution = execution_of(Database(), slow_workflow)
    call = begun(execution)
    assert call.timeout_s == 2
    assert execution.expire(call)
    assert call.current.cancelled
    assert execution.next_call() is None
    entry = worked(execution, None)
    assert [(row.status, row.elapsed_s) for row in entry.steps] == [(StepStatus.FAILED, 2)]
    assert entry.output is not None
    assert "StepTimeoutError: its function did not return within 2 s" in entry.output
    assert not execution.expire(call)


def test_a_call_that_returns_in_time_does_not_expire_any_more() -> None:
    execution = execution_of(Database(), slow_workflow)
    call = begun(execution)
    assert worked(execution, call).output == '"late"'
    assert not execution.expire(call)


def test_of_a_result_and_a_timeout_at_once_the_timeout_may_win() -> None:
    expired: list[bool] = []

    def late() -> str:
        expired.append(execution.expire(call))
        return "late"

    @workflow("racing")
    def racing(step: Step) -> Steps[Any]:
        return (yield step.run("slow", late).timeout(1).retry(attempts=2))

    execution = execution_of(Database(), racing)
    call = begun(execution)
    assert execution.work(call) is None
    assert expired == [True]
    assert [row.status for row in worked(execution, None).steps] == [StepStatus.RETRYING]


def test_a_step_function_knows_its_call() -> None:
    seen: list[CurrentStep] = []

    def look() -> None:
        seen.append(current_step())
        raise OSError("no")

    @workflow("looking")
    def looking(step: Step) -> Steps[None]:
        yield step.run("look", look).retry(attempts=2, wait=0)

    database = Database()
    for _ in range(2):
        execution = execution_of(database, looking)
        database.flush(worked(execution, begun(execution)))
    first, second = seen
    assert (first.run_id, first.step_id, first.attempt, second.attempt) == (RUN_ID, "look", 1, 2)
    assert first.idempotency_key == second.idempotency_key
    assert str(UUID(first.idempotency_key)) == first.idempotency_key
    assert not first.cancelled
    with pytest.raises(RuntimeError, match="inside a step function only"):
        current_step()


@pytest.mark.parametrize("how", ["ask", "drop", "let_go"])
def test_a_step_function_learns_that_its_result_is_not_wanted(how: str) -> None:
    def look() -> bool:
        before = current_step().cancelled
        if how == "ask":
            execution.ask("cancel")
        else:
            getattr(execution, how)()
        return not before and current_step().cancelled

    @workflow("looking")
    def looking(step: Step) -> Steps[Any]:
        return (yield step.run("look", look))

    execution = execution_of(Database(), looking)
    entry = execution.work(begun(execution))
    if how == "let_go":  # the run is given back: nothing is written
        assert entry is None
    else:
        assert entry is not None
        assert entry.output == "true"


def test_a_pause_does_not_tell_the_step_that_it_is_cancelled() -> None:
    execution = execution_of(Database(), slow_workflow)
    call = begun(execution)
    execution.ask("pause")
    assert not call.current.cancelled


def test_a_result_that_is_no_json_fails_its_step() -> None:
    @workflow("iterating")
    def iterating(step: Step) -> Steps[None]:
        yield step.run("bad", iter, [1]).retry(attempts=3)

    execution = execution_of(Database(max_retries=3), iterating)
    entry = worked(execution, begun(execution))
    assert (entry.action, entry.step_id) == ("fail", "bad")
    assert entry.error is not None
    assert entry.error.type == "SerializationError"


def test_an_input_that_fits_no_more_fails_the_run() -> None:
    @workflow("typed")
    def typed(step: Step, input: int) -> Steps[int]:
        yield step.run("first", slow)
        return input

    entry = worked(execution_of(Database(max_retries=3, input='"text"'), typed), None)
    assert (entry.action, entry.steps) == ("fail", ())
    assert entry.error is not None
    assert entry.error.type == "InvalidInputError"


def test_the_handler_knows_its_run_and_its_logger_speaks_once_with_the_runs_id() -> None:
    seen: list[StepContext] = []
    lines = Lines()

    @workflow("knowing")
    def knowing(step: Step, input: dict[str, int]) -> Steps[int]:
        seen.append(step.context)
        step.context.logger.info("begin")
        yield step.run("first", slow)
        step.context.logger.info("first is over", extra={"mine": 1})
        yield step.wait_for("it", "it")
        step.context.logger.info("end")
        return input["a"]

    database = Database(input='{"a":1}')
    execution = execution_of(database, knowing, lines)
    entry = worked(execution, begun(execution))
    assert entry.action == "suspend"
    database.flush(entry)
    database.trigger_event("it")
    entry = worked(execution_of(database, knowing, lines), None)
    assert entry.output == "1"
    assert lines.lines == ["begin", "first is over", "end"]
    assert {getattr(record, "run_id", None) for record in lines.records} == {str(RUN_ID)}
    assert getattr(lines.records[1], "mine", None) == 1
    for context in seen:
        assert (context.run_id, context.workflow_id, context.attempt) == (RUN_ID, "modelled", 1)
        assert (context.input, context.schedule, context.resource_id) == ({"a": 1}, None, None)
    assert dict(seen[1].timeline) == {"first": "late", "it": {}}
