"""Every method of a client and an engine, as an application calls it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from waiting import until
from working import HandWorker, rows, value, working

from pgworkflows import (
    ConfigurationError,
    IdempotencyConflictError,
    InvalidInputError,
    InvalidStatusError,
    Page,
    PollResult,
    RunStatus,
    Step,
    StepFailedError,
    StepKind,
    Steps,
    StepStatus,
    Workflow,
    WorkflowClient,
    WorkflowEngine,
    WorkflowNotFoundError,
    WorkflowRun,
    WorkflowRunNotFoundError,
    workflow,
    workflow_ref,
)
from pgworkflows.entries import Entry
from pgworkflows.history import ErrorInfo
from pgworkflows.migrate import migrations
from pgworkflows.replay import StepWrite


class SignUp(BaseModel):
    email: str
    age: int = 18


def nothing() -> None: ...


def never() -> Any:
    return None


def fail() -> None:
    raise ValueError("no")


@workflow("sign-up", retries=3, timeout="1h", priority="high", queue="mails")
def sign_up(step: Step, input: SignUp) -> Steps[str]:
    yield from step.run("create", nothing)
    return input.email


@workflow("by-default")
def by_default(step: Step, input: SignUp = SignUp(email="nobody@example.com")) -> Steps[str]:  # noqa: B008  (read once, as here)
    yield from step.run("create", nothing)
    return input.email


@workflow("alone")
def alone(step: Step) -> Steps[int]:
    yield from step.run("only", nothing)
    return 5


@workflow("failing")
def failing(step: Step) -> Steps[None]:
    yield from step.run("fail", fail)


@workflow("event")
def event(step: Step) -> Steps[Any]:
    return (yield from step.wait_for("wait", "go", timeout="1 day"))


@workflow("timer")
def timer(step: Step) -> Steps[Any]:
    return (yield from step.delay("wait", "1 day"))


@workflow("moment")
def moment(step: Step) -> Steps[Any]:
    return (yield from step.wait_until("wait", datetime.now(UTC) + timedelta(days=1)))


@workflow("poll")
def poll(step: Step) -> Steps[Any]:
    result: PollResult[Any] = yield from step.poll("wait", never, interval="1h", timeout="1 day")
    return {"timed_out": result.timed_out, "data": result.data}


@workflow("pause")
def pause(step: Step) -> Steps[Any]:
    return (yield from step.pause("wait"))


@workflow("stations")
def stations(step: Step, input: int) -> Steps[None]:
    yield from step.run("pack", nothing)
    yield from step.wait_for("packed", "next")
    for number in range(input):
        yield from step.wait_for(f"stop-{number}", "next")
    if input > 100:
        yield from step.run("apologise", nothing)
    yield from step.wait_for("arrived", "next")
    yield from step.run("unpack", nothing)


EVERYTHING: list[Workflow[Any, Any]] = [
    sign_up,
    by_default,
    alone,
    failing,
    event,
    timer,
    moment,
    poll,
    pause,
    stations,
]


@pytest.fixture
def client(database_url: str) -> Iterator[WorkflowClient]:
    with WorkflowClient(database_url) as client:
        yield client


@pytest.fixture
def nowhere() -> WorkflowClient:
    """A client that cannot connect: what it refuses, it refuses without asking the server."""
    return WorkflowClient("postgresql://nobody@127.0.0.1:1/none")


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=EVERYTHING) as engine:
        yield engine


@pytest.fixture
def running(engine: WorkflowEngine) -> Iterator[WorkflowEngine]:
    """An engine with a worker at work."""
    with working(engine):
        yield engine


def reaches(client: WorkflowClient, run: WorkflowRun, status: str) -> WorkflowRun:
    """The run, once it has the status."""
    until(lambda: client.get_run(run.id).status == status, f"run {run.workflow_id} is {status}")
    return client.get_run(run.id)


# --- start_workflow


def test_a_started_run_is_pending_and_has_what_it_was_started_with(client: WorkflowClient, database_url: str) -> None:
    before = value(database_url, "select clock_timestamp()")
    run = client.start_workflow("welcome", {"b": 1, "a": [1e16, None]}, resource_id="user-1", idempotency_key="k")
    after = value(database_url, "select clock_timestamp()")
    assert run == client.get_run(run.id)
    assert run.id.version == 7
    assert run.status is RunStatus.PENDING
    assert (run.workflow_id, run.resource_id, run.idempotency_key) == ("welcome", "user-1", "k")
    assert run.input == {"b": 1, "a": [1e16, None]}
    assert list(run.input) == ["b", "a"]
    assert type(run.input["a"][0]) is float
    assert before <= run.created_at <= after
    assert run.created_at == run.updated_at
    assert run.created_at.tzinfo is UTC
    assert (run.queue, run.priority, run.max_retries, run.retry_count, run.singleton) == ("default", 0, 0, 0, False)
    unset = ["output", "error", "current_step_id", "parent_run_id", "parent_step_id", "scheduled_at", "timeout_at"]
    unset += ["started_at", "paused_at", "resumed_at", "completed_at"]
    assert {name: getattr(run, name) for name in unset} == dict.fromkeys(unset)


def test_a_repeated_key_returns_the_run_it_started(client: WorkflowClient) -> None:
    for key, resource_id in (("k", None), ("l", "user-1")):
        first = client.start_workflow("a", 1, resource_id=resource_id, idempotency_key=key)
        again = client.start_workflow("a", 2, resource_id=resource_id, idempotency_key=key, delay="1h", priority="high")
        assert again == first
    assert len(client.get_runs().items) == 2


def test_a_repeated_key_returns_the_run_also_when_that_is_finished(running: WorkflowEngine) -> None:
    first = running.start_workflow(alone, idempotency_key="k")
    done = running.wait_for_run(first.id, timeout="20s")
    assert done.status is RunStatus.COMPLETED
    assert running.start_workflow(alone, idempotency_key="k") == done
    failed = running.wait_for_run(running.start_workflow(failing, idempotency_key="f").id, timeout="20s")
    assert failed.status is RunStatus.FAILED
    assert running.start_workflow(failing, idempotency_key="f") == failed


def test_a_key_that_is_taken_by_another_run_is_a_conflict(client: WorkflowClient) -> None:
    nobodys = client.start_workflow("a", idempotency_key="k")
    someones = client.start_workflow("a", resource_id="user-1", idempotency_key="l")
    conflicts: list[tuple[WorkflowRun, str, str | None]] = [
        (nobodys, "b", None),
        (nobodys, "a", "user-1"),
        (someones, "a", "user-2"),
        (someones, "a", None),
        (someones, "b", "user-1"),
    ]
    for taken_by, workflow_id, resource_id in conflicts:
        with pytest.raises(
            IdempotencyConflictError, match=f"taken by run {taken_by.id} of workflow 'a'.*another key"
        ) as e:
            client.start_workflow(workflow_id, resource_id=resource_id, idempotency_key=taken_by.idempotency_key)
        assert (e.value.run_id, e.value.workflow_id) == (taken_by.id, "a")
    assert client.get_runs().items == [someones, nobodys]


def test_twenty_starts_at_once_with_one_key_start_one_run(client: WorkflowClient, database_url: str) -> None:
    with ThreadPoolExecutor(20) as threads:
        started = list(threads.map(lambda n: client.start_workflow("a", n, idempotency_key="k"), range(20)))
    assert len({run.id for run in started}) == 1
    assert rows(
        database_url, "select count(*) from pgworkflows.runs union all select count(*) from pgworkflows.queue"
    ) == [
        (1,),
        (1,),
    ]


def test_priority_is_a_name_or_a_number(client: WorkflowClient) -> None:
    given: list[str | int] = ["high", "normal", "low", 1000, -1000, 7]
    found = [client.start_workflow("a", priority=priority).priority for priority in given]
    assert found == [100, 0, -100, 1000, -1000, 7]


def test_runs_of_higher_priority_are_claimed_first(engine: WorkflowEngine) -> None:
    runs = {name: engine.start_workflow(alone, priority=name) for name in ("low", "normal", "high")}
    engine.worker(max_runs=1, threads=1).run_until_idle("30s")
    started = {name: engine.get_run(run.id).started_at for name, run in runs.items()}
    assert sorted(started, key=lambda name: str(started[name])) == ["high", "normal", "low"]


def test_a_delayed_run_starts_when_its_delay_is_over(running: WorkflowEngine, database_url: str) -> None:
    run = running.start_workflow(alone, delay="400 ms")
    due = run.created_at + timedelta(milliseconds=400)
    assert (run.status, run.scheduled_at) == (RunStatus.PENDING, due)
    done = running.wait_for_run(run.id, timeout="20s")
    assert done.started_at is not None
    assert timedelta(0) <= done.started_at - due < timedelta(seconds=2)
    assert done.scheduled_at == due


def test_run_at_is_the_time_to_start(client: WorkflowClient) -> None:
    at = datetime(2040, 1, 31, 9, tzinfo=UTC)
    assert client.start_workflow("a", run_at=at).scheduled_at == at
    assert client.start_workflow("a", run_at="2040-01-31T10:00:00+01:00").scheduled_at == at


def test_a_run_at_in_the_past_is_ready_at_once(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(alone, run_at="2001-01-01T00:00:00Z")
    engine.worker().run_until_idle("20s")
    assert engine.get_run(run.id).status is RunStatus.COMPLETED


def test_the_timeout_counts_from_when_the_run_may_first_start(client: WorkflowClient) -> None:
    now = client.start_workflow("a", timeout="1h")
    assert now.timeout_at == now.created_at + timedelta(hours=1)
    later = client.start_workflow("a", timeout="1h", delay="1d")
    assert later.timeout_at == later.created_at + timedelta(days=1, hours=1)
    at = client.start_workflow("a", timeout="1h", run_at="2040-01-31T09:00:00Z")
    assert at.timeout_at == datetime(2040, 1, 31, 10, tzinfo=UTC)
    past = client.start_workflow("a", timeout="1h", run_at="2001-01-31T09:00:00Z")
    assert past.timeout_at == past.created_at + timedelta(hours=1)
    longest = client.start_workflow("a", timeout="365000 days", run_at="9998-01-01T00:00:00Z")
    assert longest.timeout_at == datetime(9999, 12, 30, tzinfo=UTC)


def test_queue_and_retries_can_be_given(client: WorkflowClient) -> None:
    run = client.start_workflow("a", queue="slow", retries=7)
    assert (run.queue, run.max_retries) == ("slow", 7)


def options_of(run: WorkflowRun) -> tuple[Any, ...]:
    timeout = None if run.timeout_at is None else run.timeout_at - run.created_at
    return run.queue, run.priority, run.max_retries, timeout


HOUR = timedelta(hours=1)


def test_options_left_out_are_those_of_the_workflow(client: WorkflowClient) -> None:
    run = client.start_workflow(sign_up, SignUp(email="e"))
    assert options_of(run) == ("mails", 100, 3, HOUR)
    run = client.start_workflow(sign_up, SignUp(email="e"), queue="q", priority=0, retries=0, timeout="2h")
    assert options_of(run) == ("q", 0, 0, 2 * HOUR)


def test_options_left_out_are_those_last_declared_by_an_engine(client: WorkflowClient, database_url: str) -> None:
    by_id = client.start_workflow("sign-up", {"email": "e"})
    assert options_of(by_id) == ("default", 0, 0, None)
    with WorkflowEngine(database_url, workflows=[sign_up]) as engine:
        engine.start(worker=False)
    for given in ("sign-up", workflow_ref("sign-up"), workflow_ref("sign-up", input_schema=SignUp), sign_up):
        assert options_of(client.start_workflow(given, {"email": "e"})) == ("mails", 100, 3, HOUR)
    newer = workflow("sign-up", retries=9, queue="letters")(sign_up.function)
    with WorkflowEngine(database_url, workflows=[newer]) as engine:
        engine.worker().run_until_idle("20s")  # a worker declares as well
    # The declaration stands above what an older process thinks of the workflow.
    for given in ("sign-up", workflow_ref("sign-up"), workflow_ref("sign-up", input_schema=SignUp), sign_up):
        assert options_of(client.start_workflow(given, {"email": "e"})) == ("letters", 0, 9, None)


def test_an_engine_that_has_declared_nothing_gives_the_options_of_its_workflows(engine: WorkflowEngine) -> None:
    for given in ("sign-up", workflow_ref("sign-up"), workflow_ref("sign-up", input_schema=SignUp), sign_up):
        assert options_of(engine.start_workflow(given, {"email": "e"})) == ("mails", 100, 3, HOUR)


def test_input_may_be_a_model_or_the_json_of_one(engine: WorkflowEngine) -> None:
    runs = [
        engine.start_workflow(sign_up, SignUp(email="e")),
        engine.start_workflow(sign_up, {"email": "e"}),
        engine.start_workflow("sign-up", {"email": "e"}),
    ]
    assert [run.input for run in runs] == [{"email": "e", "age": 18}] * 3


def test_a_default_input_stands_for_none(running: WorkflowEngine) -> None:
    run = running.start_workflow(by_default)
    assert running.wait_for_run(run.id, timeout="20s").output == "nobody@example.com"


def test_a_handler_without_input_takes_none_and_nothing_else(engine: WorkflowEngine) -> None:
    assert engine.start_workflow(alone).input is None
    with pytest.raises(InvalidInputError, match="'alone' takes no input"):
        engine.start_workflow(alone, {})


def test_an_engine_refuses_what_it_has_not_registered(engine: WorkflowEngine) -> None:
    stranger = workflow("stranger")(alone.function)
    namesake = workflow("alone")(alone.function)
    for refused in ("stranger", stranger, namesake):
        with pytest.raises(WorkflowNotFoundError, match=r"workflow '\w+' is not registered with this engine: ") as e:
            engine.start_workflow(refused)
        assert e.value.workflow_id == (refused if isinstance(refused, str) else refused.id)
    assert engine.get_runs().items == []
    engine.register_workflow(stranger)
    assert engine.start_workflow("stranger").workflow_id == "stranger"
    engine.unregister_workflow("stranger")
    with pytest.raises(WorkflowNotFoundError):
        engine.start_workflow("stranger")


@workflow("tells-whose")
def tells_whose(step: Step) -> Steps[list[str]]:
    try:
        yield from step.run("fail", fail)
    except StepFailedError as failure:
        return [str(failure.workflow_id), str(failure.run_id), failure.step_id]
    return []


def test_a_failure_that_a_handler_sees_says_whose_it_is(database_url: str) -> None:
    with WorkflowEngine(database_url, workflows=[tells_whose]) as engine:
        run = engine.start_workflow(tells_whose)
        engine.worker().run_until_idle(timeout=20)
        assert engine.get_run(run.id).output == ["tells-whose", str(run.id), "fail"]


def test_an_engine_takes_any_reference(engine: WorkflowEngine) -> None:
    assert engine.start_workflow(workflow_ref("elsewhere"), [1]).input == [1]


def test_a_client_takes_any_id_and_any_workflow(client: WorkflowClient) -> None:
    given: list[Any] = ["unknown", "x" * 256, "Ünïcode 🐘 '%s'; --", workflow_ref("ref"), alone]
    for each in given:
        run = client.start_workflow(each)
        assert run.workflow_id == (each if isinstance(each, str) else each.id)
        assert client.get_run(run.id) == run


def test_a_reference_checks_the_input_by_its_schema(client: WorkflowClient, engine: WorkflowEngine) -> None:
    ref = workflow_ref("sign-up", input_schema=SignUp)
    assert client.start_workflow(ref, SignUp(email="e")).input == {"email": "e", "age": 18}
    with pytest.raises(InvalidInputError, match="email"):
        client.start_workflow(ref, {})
    with pytest.raises(InvalidInputError, match="email"):
        engine.start_workflow(workflow_ref("sign-up"), {})  # the engine has the handler, and asks it


def test_ids_are_given_in_the_order_of_starts(client: WorkflowClient) -> None:
    runs = [client.start_workflow("a") for _ in range(50)]
    assert sorted(runs, key=lambda run: run.id) == runs
    assert sorted(runs, key=lambda run: run.created_at) == runs


# --- run ids and resources

METHODS: dict[str, Callable[..., Any]] = {
    "trigger_event": lambda client, run_id, **scope: client.trigger_event(run_id, "go", **scope),
    "pause_workflow": lambda client, run_id, **scope: client.pause_workflow(run_id, **scope),
    "resume_workflow": lambda client, run_id, **scope: client.resume_workflow(run_id, **scope),
    "cancel_workflow": lambda client, run_id, **scope: client.cancel_workflow(run_id, **scope),
    "retry_workflow": lambda client, run_id, **scope: client.retry_workflow(run_id, **scope),
    "fast_forward_workflow": lambda client, run_id, **scope: client.fast_forward_workflow(run_id, **scope),
    "get_run": lambda client, run_id, **scope: client.get_run(run_id, **scope),
    "get_steps": lambda client, run_id, **scope: client.get_steps(run_id, **scope),
    "check_progress": lambda client, run_id, **scope: client.check_progress(run_id, **scope),
}
UNSCOPED: dict[str, Callable[..., Any]] = {"wait_for_run": lambda client, run_id: client.wait_for_run(run_id)}


def test_a_resource_sees_its_own_runs_only(client: WorkflowClient, database_url: str) -> None:
    theirs, nobodys = client.start_workflow("a", resource_id="them"), client.start_workflow("a")
    for method in METHODS.values():
        for run in (theirs, nobodys):
            with pytest.raises(WorkflowRunNotFoundError, match=f"run {run.id} was not found for resource 'me'") as e:
                method(client, run.id, resource_id="me")
            assert e.value.run_id == run.id
            assert client.get_run(run.id) == run
    assert rows(database_url, "select * from pgworkflows.events") == []


@pytest.mark.parametrize("scoped", [True, False], ids=["scoped", "unscoped"])
def test_the_owner_finds_a_run_and_so_does_who_names_no_resource(client: WorkflowClient, scoped: bool) -> None:
    run = client.start_workflow("a", resource_id="them")
    for method in METHODS.values():
        with suppress(InvalidStatusError):  # found, which is all that matters here
            method(client, run.id, resource_id="them" if scoped else None)
    assert client.get_run(run.id).status is RunStatus.PENDING  # all of it has been done: it was retried last


def test_a_run_id_that_names_no_run_is_not_found(client: WorkflowClient) -> None:
    unknown = uuid4()
    for method in [*METHODS.values(), *UNSCOPED.values()]:
        for run_id in (unknown, str(unknown)):
            with pytest.raises(WorkflowRunNotFoundError, match=f"run {unknown} was not found") as e:
                method(client, run_id)
            assert e.value.run_id == unknown


@pytest.mark.parametrize("method", [*METHODS.values(), *UNSCOPED.values()], ids=[*METHODS, *UNSCOPED])
def test_a_run_id_is_a_uuid_or_its_text(nowhere: WorkflowClient, method: Callable[..., Any]) -> None:
    for nonsense in ("nonsense", "", "'; drop table runs; --", "\0", "ü" * 36):
        with pytest.raises(WorkflowRunNotFoundError) as e:
            method(nowhere, nonsense)
        assert e.value.run_id == nonsense
    for wrong in (5, None, b"abc"):
        with pytest.raises(TypeError, match="run_id must be a UUID or its text, not"):
            method(nowhere, wrong)


def test_a_run_id_may_be_text(client: WorkflowClient) -> None:
    run = client.start_workflow("a")
    assert client.get_run(str(run.id)) == client.get_run(str(run.id).upper()) == run
    assert client.get_steps(str(run.id)) == []
    assert client.cancel_workflow(str(run.id)).id == run.id
    assert client.wait_for_run(str(run.id)).status is RunStatus.CANCELLED


# --- what may be done in which status


def finish(hand: HandWorker, action: str) -> None:
    """The claimed run's end, written by a worker."""
    claimed = hand.claim_one()
    step = StepWrite(0, "wait", "wait_for", StepStatus.WAITING, event_name="go")
    endings = {
        "waiting": Entry(
            claimed.run_id,
            claimed.claim_id,
            claimed.signal,
            "suspend",
            (step,),
            step_id="wait",
            wait_kind="event",
            wait_event="go",
        ),
        "completed": Entry(claimed.run_id, claimed.claim_id, claimed.signal, "complete", output="null"),
        "failed": Entry(claimed.run_id, claimed.claim_id, claimed.signal, "fail", error=ErrorInfo("E", "no")),
    }
    if action in endings:
        hand.write(endings[action])


def run_in(status: RunStatus, client: WorkflowClient, hand: HandWorker) -> WorkflowRun:
    """A new run in this status."""
    run = client.start_workflow("a")
    match status:
        case RunStatus.PENDING:
            pass
        case RunStatus.RUNNING | RunStatus.WAITING | RunStatus.COMPLETED | RunStatus.FAILED:
            finish(hand, status)
        case RunStatus.PAUSED:
            client.pause_workflow(run.id)
        case RunStatus.CANCELLED:
            client.cancel_workflow(run.id)
    run = client.get_run(run.id)
    assert run.status is status
    return run


@pytest.mark.parametrize(
    ("method", "allowed", "after", "verb"),
    [
        ("pause_workflow", {"pending", "running", "waiting"}, {"paused"}, "be paused"),
        ("resume_workflow", {"paused"}, {"pending"}, "be resumed"),
        ("cancel_workflow", {"pending", "running", "waiting", "paused"}, {"cancelled"}, "be cancelled"),
        ("retry_workflow", {"failed", "cancelled"}, {"pending"}, "be retried"),
        (
            "trigger_event",
            {"pending", "running", "waiting", "paused"},
            {"pending", "running", "paused"},
            "get events",
        ),
    ],
)
def test_an_operation_is_for_some_statuses_and_refused_in_the_others(
    client: WorkflowClient, database_url: str, method: str, allowed: set[str], after: set[str], verb: str
) -> None:
    with HandWorker(database_url, ["a"]) as hand:
        for status in RunStatus:
            run = run_in(status, client, hand)
            if status in allowed:
                changed = METHODS[method](client, run.id)
                assert changed == client.get_run(run.id)
                assert changed.status in after
            else:
                with pytest.raises(InvalidStatusError, match=f"run {run.id} is {status}; only .* runs can {verb}") as e:
                    METHODS[method](client, run.id)
                named = str(e.value).split("only ")[1].split(" runs")[0].split(", ")
                assert set(named) == allowed
                assert (e.value.run_id, e.value.workflow_id) == (run.id, "a")
                assert client.get_run(run.id) == run
            if not client.get_run(run.id).status.finished:
                client.cancel_workflow(run.id)  # out of the way of the next claim


def test_pause_and_resume_leave_their_times(client: WorkflowClient) -> None:
    run = client.start_workflow("a")
    paused = client.pause_workflow(run.id)
    assert paused.paused_at == paused.updated_at
    assert paused.paused_at is not None
    resumed = client.resume_workflow(run.id)
    assert resumed.resumed_at is not None
    assert (resumed.paused_at, resumed.resumed_at >= paused.paused_at) == (paused.paused_at, True)


def test_a_resumed_run_still_waits_for_its_time_to_start(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(alone, delay="1h")
    engine.pause_workflow(run.id)
    engine.resume_workflow(run.id)
    engine.worker().run_until_idle("20s")
    assert engine.get_run(run.id).status is RunStatus.PENDING


def test_a_cancelled_run_has_ended(running: WorkflowEngine) -> None:
    run = reaches(running, running.start_workflow(event), "waiting")
    cancelled = running.cancel_workflow(run.id)
    assert (cancelled.status, cancelled.error, cancelled.output) == (RunStatus.CANCELLED, None, None)
    assert cancelled.completed_at is not None
    assert [step.status for step in running.get_steps(run.id)] == [StepStatus.CANCELLED]


def test_a_retry_restarts_the_budget_and_the_timeout(client: WorkflowClient, engine: WorkflowEngine) -> None:
    run = engine.start_workflow(failing, retries=0, timeout="1h")
    engine.worker().run_until_idle("20s")
    failed = client.get_run(run.id)
    assert failed.status is RunStatus.FAILED
    assert failed.error is not None
    assert (failed.error["type"], failed.error["message"], failed.error["step_id"]) == ("ValueError", "no", "fail")
    assert "fail()" in failed.error["traceback"] or "in fail" in failed.error["traceback"]
    retried = client.retry_workflow(run.id)
    assert (retried.error, retried.retry_count, retried.completed_at) == (None, 0, None)
    assert retried.timeout_at == retried.updated_at + HOUR


# --- events


def test_an_event_reaches_the_wait_of_its_name(running: WorkflowEngine) -> None:
    run = reaches(running, running.start_workflow(event), "waiting")
    assert running.trigger_event(run.id, "other", {"x": 1}).status is RunStatus.WAITING
    assert running.trigger_event(run.id, "go", {"x": 2}).status is RunStatus.PENDING
    assert running.wait_for_run(run.id, timeout="20s").output == {"x": 2}


def test_an_event_sent_before_its_wait_is_kept(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(event)
    assert engine.trigger_event(run.id, "go", [1, {"a": "ä"}]).status is RunStatus.PENDING
    engine.worker().run_until_idle("20s")
    assert engine.get_run(run.id).output == [1, {"a": "ä"}]


def test_an_event_without_data_brings_an_empty_dict(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(event)
    engine.trigger_event(run.id, "go")
    engine.worker().run_until_idle("20s")
    assert engine.get_run(run.id).output == {}


def test_an_event_with_a_repeated_key_is_taken_once(client: WorkflowClient, database_url: str) -> None:
    run, other = client.start_workflow("a"), client.start_workflow("a")
    for number in range(3):
        assert client.trigger_event(run.id, "go", number, idempotency_key="k") == run
    client.trigger_event(other.id, "go", 3, idempotency_key="k")
    sent = rows(database_url, "select run_id, name, data, idempotency_key from pgworkflows.events order by id")
    assert sent == [(run.id, "go", 0, "k"), (other.id, "go", 3, "k")]
    client.cancel_workflow(run.id)
    assert client.trigger_event(run.id, "go", 4, idempotency_key="k").status is RunStatus.CANCELLED
    with pytest.raises(InvalidStatusError):
        client.trigger_event(run.id, "go", 4, idempotency_key="new")


def test_twenty_events_at_once_with_one_key_are_one_event(client: WorkflowClient, database_url: str) -> None:
    run = client.start_workflow("a")
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(lambda n: client.trigger_event(run.id, "go", n, idempotency_key="k"), range(20)))
    assert value(database_url, "select count(*) from pgworkflows.events") == 1


# --- fast_forward_workflow


def test_fast_forward_completes_the_wait_a_run_is_in(running: WorkflowEngine) -> None:
    waits: list[tuple[Any, str, Any, Any]] = [
        (event, "waiting", {"by": "hand"}, {"by": "hand"}),
        (event, "waiting", None, {}),
        (timer, "waiting", {"by": "hand"}, None),
        (moment, "waiting", {"by": "hand"}, None),
        (poll, "waiting", {"by": "hand"}, {"timed_out": False, "data": {"by": "hand"}}),
        (pause, "paused", {"by": "hand"}, None),
    ]
    for waiting, status, data, output in waits:
        run = reaches(running, running.start_workflow(waiting), status)
        assert run.current_step_id == "wait"
        assert running.fast_forward_workflow(run.id, data).status is RunStatus.PENDING
        done = running.wait_for_run(run.id, timeout="20s")
        assert (waiting, done.status, done.output) == (waiting, RunStatus.COMPLETED, output)
        [step] = running.get_steps(run.id)
        assert (waiting, step.status, step.output) == (waiting, StepStatus.COMPLETED, output)


def test_fast_forward_of_nothing_changes_nothing(
    client: WorkflowClient, engine: WorkflowEngine, database_url: str
) -> None:
    paused_by_hand = engine.start_workflow(event)
    engine.worker().run_until_idle("20s")
    engine.pause_workflow(paused_by_hand.id)
    delayed = client.start_workflow("a", delay="1h")
    unchanged = [paused_by_hand.id, delayed.id]
    with HandWorker(database_url, ["a"]) as hand:
        for status in set(RunStatus) - {RunStatus.WAITING, RunStatus.PENDING}:
            unchanged.append(run_in(status, client, hand).id)
        for run_id in unchanged:
            before, steps = client.get_run(run_id), client.get_steps(run_id)
            assert client.fast_forward_workflow(run_id, {"x": 1}) == before
            assert client.get_run(run_id) == before
            assert client.get_steps(run_id) == steps


def test_fast_forward_leaves_the_pause_before_a_retry_alone(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(failing, retries=1)
    engine.worker().run_until_idle("20s")
    before = engine.get_run(run.id)
    assert (before.status, before.retry_count) == (RunStatus.PENDING, 1)
    assert engine.fast_forward_workflow(run.id) == before


# --- get_runs and get_workflow_last_run


def pages(client: WorkflowClient, limit: int, **wanted: Any) -> list[Page]:
    """All pages from the newest on."""
    found = [client.get_runs(limit=limit, **wanted)]
    while found[-1].has_more:
        found.append(client.get_runs(limit=limit, starting_after=found[-1].next_cursor, **wanted))
    return found


def test_pages_go_from_the_newest_to_the_oldest_and_back(client: WorkflowClient) -> None:
    runs = [client.start_workflow("a", number) for number in range(7)][::-1]
    there = pages(client, 3)
    assert [page.items for page in there] == [runs[0:3], runs[3:6], runs[6:]]
    assert [(page.has_prev, page.has_more) for page in there] == [(False, True), (True, True), (True, False)]
    assert there[0].prev_cursor is None
    assert there[-1].next_cursor is None
    back = [there[-1]]
    while back[-1].has_prev:
        back.append(client.get_runs(limit=3, ending_before=back[-1].prev_cursor))
    assert [page.items for page in back] == [runs[6:], runs[3:6], runs[0:3]]
    assert [(page.has_prev, page.has_more) for page in back] == [(True, False), (True, True), (False, True)]
    assert back[-1].prev_cursor is None
    # A page found from below leads on like the same page found from above.
    again = client.get_runs(limit=3, starting_after=back[1].next_cursor)
    assert again == there[-1]


def test_a_full_last_page_has_no_more(client: WorkflowClient) -> None:
    assert client.get_runs() == Page([], None, None, has_more=False, has_prev=False)
    runs = [client.start_workflow("a") for _ in range(4)][::-1]
    assert [page.items for page in pages(client, 2)] == [runs[:2], runs[2:]]
    assert client.get_runs(limit=4).has_more is False


def test_a_page_shows_what_was_started_since_only_before_it(client: WorkflowClient) -> None:
    old = [client.start_workflow("a") for _ in range(4)][::-1]
    first = client.get_runs(limit=2)
    new = client.start_workflow("a")
    assert client.get_runs(limit=2, starting_after=first.next_cursor).items == old[2:]
    second = client.get_runs(limit=2, starting_after=first.next_cursor)
    assert client.get_runs(limit=5, ending_before=second.prev_cursor).items == [new, *old[:2]]


def test_twenty_runs_are_a_page_and_a_thousand_the_largest(client: WorkflowClient) -> None:
    for _ in range(21):
        client.start_workflow("a")
    assert len(client.get_runs().items) == 20
    assert len(client.get_runs(limit=1000).items) == 21
    assert len(client.get_runs(limit=1).items) == 1


def test_every_filter_narrows_the_pages(client: WorkflowClient) -> None:
    runs: list[WorkflowRun] = []
    for number in range(12):
        run = client.start_workflow(
            "ab"[number % 2], resource_id=["r", "s", None][number % 3], idempotency_key=f"k{number}"
        )
        if number % 4 == 0:
            run = client.cancel_workflow(run.id)
        if number % 4 == 1:
            run = client.pause_workflow(run.id)
        runs.insert(0, run)
    filters: list[tuple[dict[str, Any], Callable[[WorkflowRun], bool]]] = [
        ({"workflow_id": "a"}, lambda run: run.workflow_id == "a"),
        ({"resource_id": "r"}, lambda run: run.resource_id == "r"),
        ({"idempotency_key": "k7"}, lambda run: run.idempotency_key == "k7"),
        ({"statuses": ["cancelled"]}, lambda run: run.status == "cancelled"),
        ({"statuses": [RunStatus.PAUSED, "pending"]}, lambda run: run.status in ("paused", "pending")),
        ({"statuses": (status for status in ["failed"])}, lambda run: False),
        (
            {"workflow_id": "b", "resource_id": "s", "statuses": {"paused", "pending"}},
            lambda run: run.workflow_id == "b" and run.resource_id == "s",
        ),
        ({"workflow_id": "nothing"}, lambda run: False),
    ]
    for wanted, fits in filters:
        expected = [run for run in runs if fits(run)]
        assert client.get_runs(**wanted).items == expected
        if "statuses" in wanted and not isinstance(wanted["statuses"], list | set):
            continue
        there = pages(client, 2, **wanted)
        assert [run for page in there for run in page.items] == expected
        back = list(there[-1].items)
        cursor = there[-1].prev_cursor
        while cursor is not None:
            page = client.get_runs(limit=2, ending_before=cursor, **wanted)
            back = page.items + back
            cursor = page.prev_cursor
        assert back == expected


@pytest.mark.parametrize("limit", [0, -1, 1001, 2.5, "5", True, None])
def test_a_limit_is_1_to_1000(nowhere: WorkflowClient, limit: Any) -> None:
    with pytest.raises(ValueError, match="limit must be an int within 1 and 1000"):
        nowhere.get_runs(limit=limit)


@pytest.mark.parametrize("cursor", ["nonsense", "", "é", "AAAA", "=" * 30, 5, str(UUID(int=7))])
def test_only_a_page_makes_cursors(nowhere: WorkflowClient, cursor: Any) -> None:
    for direction in ("starting_after", "ending_before"):
        with pytest.raises(ValueError, match=r"is no cursor: pass a page's next_cursor or prev_cursor"):
            nowhere.get_runs(**{direction: cursor})


def test_a_page_has_one_direction(nowhere: WorkflowClient) -> None:
    cursor = "A" * 22
    with pytest.raises(ValueError, match="not both"):
        nowhere.get_runs(starting_after=cursor, ending_before=cursor)


def test_an_unknown_status_is_refused(nowhere: WorkflowClient) -> None:
    with pytest.raises(ValueError, match=r"'done' is not a valid RunStatus: use pending, running, "):
        nowhere.get_runs(statuses=["done"])
    with pytest.raises(TypeError, match="statuses must be a list"):
        nowhere.get_runs(statuses="failed")


def test_the_last_run_of_a_workflow_is_its_newest(client: WorkflowClient) -> None:
    assert client.get_workflow_last_run("a") is None
    mine = client.start_workflow("a", resource_id="me")
    client.start_workflow("b")
    newest = client.start_workflow("a")
    assert client.get_workflow_last_run("a") == newest
    assert client.get_workflow_last_run("a", resource_id="me") == mine
    assert client.get_workflow_last_run("a", resource_id="you") is None


# --- get_steps and check_progress


def test_steps_are_those_reached_in_order(running: WorkflowEngine) -> None:
    run = reaches(running, running.start_workflow(stations, 1), "waiting")
    pack, packed = running.get_steps(run.id)
    assert (pack.position, pack.step_id, pack.kind, pack.status) == (0, "pack", StepKind.RUN, StepStatus.COMPLETED)
    assert (pack.attempts, pack.output, pack.error) == (1, None, None)
    assert pack.started_at is not None
    assert pack.completed_at is not None
    assert pack.started_at <= pack.completed_at
    assert (packed.position, packed.step_id, packed.kind) == (1, "packed", StepKind.WAIT_FOR)
    assert (packed.status, packed.event_name, packed.wake_at) == (StepStatus.WAITING, "next", None)
    assert (packed.completed_at, packed.child_run_id) == (None, None)
    for _ in range(3):
        running.trigger_event(run.id, "next")
    running.wait_for_run(run.id, timeout="20s")
    steps = running.get_steps(run.id)
    assert [step.step_id for step in steps] == ["pack", "packed", "stop-0", "arrived", "unpack"]
    assert [step.position for step in steps] == [0, 1, 2, 3, 4]
    assert {step.status for step in steps} == {StepStatus.COMPLETED}


def waits_at(client: WorkflowClient, run: WorkflowRun, step_id: str) -> bool:
    found = client.get_run(run.id)
    return (found.status, found.current_step_id) == (RunStatus.WAITING, step_id)


def test_the_steps_of_a_run_that_has_not_begun_are_none(client: WorkflowClient) -> None:
    assert client.get_steps(client.start_workflow("a").id) == []


def test_a_failed_step_shows_its_error(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(failing)
    engine.worker().run_until_idle("20s")
    [step] = engine.get_steps(run.id)
    assert (step.status, step.output, step.attempts) == (StepStatus.FAILED, None, 1)
    assert step.error is not None
    assert (step.error["type"], step.error["message"]) == ("ValueError", "no")


def test_progress_rises_to_99_and_is_100_when_completed(engine: WorkflowEngine, client: WorkflowClient) -> None:
    engine.start(worker=False)
    run = engine.start_workflow(stations, 4)
    seen = [client.check_progress(run.id)]
    with working(engine):
        for stop in ["packed", "stop-0", "stop-1", "stop-2", "stop-3", "arrived"]:
            until(lambda stop=stop: waits_at(client, run, stop), f"run {run.id} waits at {stop}")  # type: ignore[misc]  # mypy infers no lambda with a default
            seen.append(client.check_progress(run.id))
            assert seen[-1] == engine.check_progress(run.id)
            engine.trigger_event(run.id, "next")
        engine.wait_for_run(run.id, timeout="20s")
    seen.append(client.check_progress(run.id))
    # pack, packed, apologise (skipped), arrived, unpack are declared; the stops have ids made while running.
    assert [(p.completed_steps, p.total_steps) for p in seen] == [
        (0, 5),
        (1, 5),
        (2, 5),
        (3, 6),
        (4, 7),
        (5, 8),
        (6, 9),
        (8, 9),
    ]
    assert [p.completion_percentage for p in seen] == [0, 20, 40, 50, 57, 62, 66, 100]
    assert seen[-1].status is RunStatus.COMPLETED
    assert {name: getattr(seen[-1], name) for name in vars(client.get_run(run.id))} == vars(client.get_run(run.id))


def test_progress_of_a_run_whose_steps_are_all_done_is_99_until_it_is_completed(running: WorkflowEngine) -> None:
    @workflow("last-wait")
    def last_wait(step: Step, input: list[str]) -> Steps[None]:
        for name in input:
            yield from step.wait_for(name, "next")

    running.register_workflow(last_wait)
    run = reaches(running, running.start_workflow(last_wait, ["a", "b"]), "waiting")
    running.trigger_event(run.id, "next")
    until(lambda: running.check_progress(run.id).completed_steps == 1, "the first step is completed")
    found = running.check_progress(run.id)
    assert (found.total_steps, found.completion_percentage) == (1, 99)
    running.trigger_event(run.id, "next")
    running.wait_for_run(run.id, timeout="20s")
    assert running.check_progress(run.id).completion_percentage == 100


def test_progress_without_any_declaration_counts_what_is_there(client: WorkflowClient) -> None:
    found = client.check_progress(client.start_workflow("unknown").id)
    assert (found.completed_steps, found.total_steps, found.completion_percentage) == (0, 0, 0)


def test_an_engine_knows_the_steps_of_its_workflows_before_they_are_declared(engine: WorkflowEngine) -> None:
    found = engine.check_progress(engine.start_workflow(stations, 1).id)
    assert (found.completed_steps, found.total_steps, found.completion_percentage) == (0, 5, 0)


def test_a_run_without_steps_is_100_percent_complete_when_completed(engine: WorkflowEngine) -> None:
    @workflow("empty")
    def empty(step: Step) -> Steps[None]:
        yield from ()

    engine.register_workflow(empty)
    run = engine.start_workflow(empty)
    assert engine.check_progress(run.id).completion_percentage == 0
    engine.worker().run_until_idle("20s")
    found = engine.check_progress(run.id)
    assert (found.total_steps, found.completion_percentage) == (0, 100)


def test_progress_of_a_failed_run_stays_below_100(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(failing)
    engine.worker().run_until_idle("20s")
    found = engine.check_progress(run.id)
    assert (found.status, found.completed_steps, found.total_steps) == (RunStatus.FAILED, 0, 1)
    assert found.completion_percentage == 0


# --- wait_for_run


def test_wait_for_run_returns_the_run_however_it_ended(running: WorkflowEngine) -> None:
    done = running.wait_for_run(running.start_workflow(alone).id, timeout=20)
    assert (done.status, done.output) == (RunStatus.COMPLETED, 5)
    assert running.wait_for_run(done.id) == done
    failed = running.wait_for_run(running.start_workflow(failing).id, timeout="20s")
    assert failed.status is RunStatus.FAILED
    cancelled = running.cancel_workflow(reaches(running, running.start_workflow(event), "waiting").id)
    assert running.wait_for_run(cancelled.id, timeout=timedelta(seconds=20)) == cancelled


def test_wait_for_run_gives_up_after_its_timeout(client: WorkflowClient) -> None:
    run = client.start_workflow("a")
    with pytest.raises(TimeoutError, match=rf"run {run.id} is still pending after 0.05 s"):
        client.wait_for_run(run.id, timeout=0.05)
    assert client.get_run(run.id) == run


@pytest.mark.parametrize("timeout", [0, -1, "0s", "soon", float("nan")])
def test_the_timeout_of_wait_for_run_is_a_duration_above_zero(nowhere: WorkflowClient, timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout is"):
        nowhere.wait_for_run(uuid4(), timeout=timeout)


# --- the engine's own methods


def test_an_engine_starts_a_worker_and_stops_it(empty_database_url: str) -> None:
    with WorkflowEngine(empty_database_url, workflows=EVERYTHING) as engine:
        engine.start()
        engine.start()  # again: nothing
        assert engine.wait_for_run(engine.start_workflow(alone).id, timeout="20s").output == 5
        assert value(empty_database_url, "select count(*) from pgworkflows.workers") == 1
        engine.stop()
        engine.stop()
        assert value(empty_database_url, "select count(*) from pgworkflows.workers") == 0
        waiting = engine.start_workflow(alone)
        engine.start()
        assert engine.wait_for_run(waiting.id, timeout="20s").output == 5
    assert value(empty_database_url, "select count(*) from pgworkflows.workers") == 0


def test_an_engine_stopped_at_once_has_stopped(database_url: str) -> None:
    for _ in range(5):
        with WorkflowEngine(database_url, workflows=EVERYTHING) as engine:
            engine.start()
            engine.stop()
            assert value(database_url, "select count(*) from pgworkflows.workers") == 0


def test_an_engine_started_without_a_worker_only_migrates_and_declares(empty_database_url: str) -> None:
    with WorkflowEngine(empty_database_url, workflows=[sign_up]) as engine:
        engine.start(worker=False)
        run = engine.start_workflow(sign_up, {"email": "e"})
        assert value(empty_database_url, "select count(*) from pgworkflows.workers") == 0
        assert engine.get_run(run.id).status is RunStatus.PENDING
        found = rows(
            empty_database_url, "select id, queue, priority, retries, timeout, step_ids from pgworkflows.workflows"
        )
        assert found == [("sign-up", "mails", 100, 3, HOUR, ["create"])]


def test_a_with_statement_neither_starts_nor_migrates(empty_database_url: str) -> None:
    with WorkflowEngine(empty_database_url, workflows=EVERYTHING) as engine:
        assert value(empty_database_url, "select count(*) from pg_namespace where nspname = 'pgworkflows'") == 0
        assert engine.migrate() == migrations()
        assert engine.migrate() == ()
        assert engine.start_workflow(alone).status is RunStatus.PENDING


def test_workflows_come_and_go_while_a_worker_runs(running: WorkflowEngine) -> None:
    late = workflow("late")(alone.function)
    running.register_workflow(late)
    assert running.wait_for_run(running.start_workflow(late).id, timeout="20s").output == 5
    with pytest.raises(ConfigurationError, match="'late' is registered already"):
        running.register_workflow(workflow("late")(alone.function))
    running.unregister_all_workflows()
    with pytest.raises(WorkflowNotFoundError):
        running.start_workflow(late)
    with pytest.raises(WorkflowNotFoundError, match="no workflow 'late' is registered"):
        running.unregister_workflow("late")
    orphan = running.start_workflow(workflow_ref("late"))
    running.register_workflow(late)
    assert running.wait_for_run(orphan.id, timeout="20s").output == 5


def test_an_engine_takes_a_logger(database_url: str) -> None:
    logger = logging.getLogger("mine")
    assert WorkflowEngine(database_url, logger=logger).logger is logger
    assert WorkflowEngine(database_url).logger.name == "pgworkflows"


def test_a_workflow_may_serve_several_engines(engine: WorkflowEngine, database_url: str) -> None:
    with WorkflowEngine(database_url, workflows=EVERYTHING) as other:
        run = other.start_workflow(alone)
        engine.worker().run_until_idle("20s")
        assert isinstance(run.id, UUID)
        assert other.get_run(run.id).output == 5
