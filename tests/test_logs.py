"""What is logged: names, never payloads nor secrets, whatever goes wrong and at whatever level."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import psycopg
import pytest
from conftest import Databases
from psycopg.conninfo import make_conninfo
from tenacity.wait import wait_base
from waiting import until
from working import make_due, rows, value, working

from pgworkflows import (
    ConfigurationError,
    InvalidInputError,
    RunStatus,
    Step,
    StepFailedError,
    Steps,
    WorkflowClient,
    WorkflowEngine,
    WorkflowEngineError,
    WorkflowRun,
    workflow,
)

CANARY = "canary5d1c"


class Careless:
    """A plugin whose errors say what it saw."""

    name = "careless"

    def wrap_step(self, context: Any, step_info: Any, call: Any) -> Any:
        result = call()
        if step_info.step_id == "seen":
            raise ValueError(f"{result} {CANARY}")
        return result

    def inject(self, headers: dict[str, str]) -> None:
        raise LookupError(CANARY)


class CarelessWait(wait_base):
    def __call__(self, retry_state: Any) -> float:
        raise ArithmeticError(CANARY)


def fail(given: Any) -> None:
    try:
        raise KeyError(given)
    except KeyError as error:
        raise RuntimeError(f"cannot take {given} {CANARY}") from error


@workflow("child")
def child(step: Step, input: Any) -> Steps[Any]:
    yield from step.run("fails", fail, input)


@workflow("mixed")
def mixed(step: Step, input: Any) -> Steps[Any]:
    yield from step.run("seen", lambda: input)
    got = yield from step.wait_for("wait", "go")
    yield from step.poll("poll", lambda: got, interval=1)
    try:
        yield from step.run("again", fail, input).retry(attempts=2, wait=0.001)
    except StepFailedError as failure:
        step.context.logger.debug("the handler's own words")
        got = [got, str(failure)]
    try:
        yield from step.invoke_child_workflow("child", child, input)
    except StepFailedError as failure:
        got = [got, str(failure)]
    return got


@workflow("failing", retries=1)
def failing(step: Step, input: Any) -> Steps[Any]:
    yield from step.run("fails", fail, input)


@workflow("careless")
def careless(step: Step, input: Any) -> Steps[Any]:
    yield from step.run("fails", fail, input).retry(attempts=3, wait=CarelessWait())


@workflow("unstorable")
def unstorable(step: Step, input: Any) -> Steps[Any]:
    yield from step.run("makes", lambda: {CANARY: object()})


@workflow("fits not")
def fits_not(step: Step, input: Mapping[str, int]) -> Steps[Any]:
    yield from step.run("makes", lambda: 1)


@workflow("refused")
def refused(step: Step, input: Any) -> Steps[Any]:
    return (yield from step.run("kept", lambda: f"refuse {input}"))


ALL = [mixed, child, failing, careless, unstorable, fits_not, refused]


@pytest.fixture
def secret_url(databases: Databases, migrated_template: str) -> Iterator[str]:
    """A database whose connection string holds a password."""
    with databases.fresh(migrated_template) as url:
        yield make_conninfo(url, password=CANARY, options="-c default_statistics_target=101")


GUARD = """
create function public.guard() returns trigger language plpgsql as $$
begin
    if new.workflow_id = 'refused' and new.status in ('completed', 'failed') then
        raise exception 'must not be: %', new.input using detail = new.input;
    end if;
    return new;
end $$;
create trigger guard before update on pgworkflows.runs for each row execute function public.guard();
"""


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All that any logger is told at any level, with the errors and arguments that handlers see."""
    with caplog.at_level(logging.DEBUG):
        for name in ("pgworkflows", "psycopg", "psycopg.pool"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        try:
            yield caplog
        finally:
            for name in ("pgworkflows", "psycopg", "psycopg.pool"):
                logging.getLogger(name).setLevel(logging.NOTSET)


def everything(caplog: pytest.LogCaptureFixture) -> str:
    formatter = logging.Formatter("%(message)s %(args)s")
    return "\n".join(f"{formatter.format(record)} {vars(record)}" for record in caplog.records)


def moved_on(engine: WorkflowEngine, run: WorkflowRun) -> bool:
    """Let whatever it waits for be due; whether it is finished."""
    make_due(engine.conninfo)
    return engine.get_run(run.id).status.finished


@pytest.mark.direct("names its session in the options of a connection")
def test_neither_payloads_nor_secrets_are_logged_by_a_worker(secret_url: str, logged: pytest.LogCaptureFixture) -> None:
    with psycopg.connect(secret_url) as conn:
        conn.execute(GUARD)
    payload = {"token": CANARY}
    plugins: Any = [Careless()]
    with WorkflowEngine(secret_url, workflows=ALL, plugins=plugins) as engine, working(engine):
        long = engine.start_workflow(mixed, payload, resource_id="ann")
        ended = [engine.start_workflow(each, payload) for each in (failing, careless, unstorable)]
        stuck = engine.start_workflow(refused, payload)
        engine.trigger_event(long.id, "go", payload)
        until(lambda: moved_on(engine, ended[0]), "it has failed twice")
        until(lambda: "cannot be written" in logged.text, "a trigger refuses an end")
        until(lambda: "again" in {step.step_id for step in engine.get_steps(long.id)}, "the mix goes on")
        rows(
            secret_url,
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()",
        )
        until(lambda: "works again" in logged.text, "it is connected again")
        until(lambda: moved_on(engine, long), "the mix ends")
        assert all(engine.wait_for_run(run.id, timeout=20).status is RunStatus.FAILED for run in ended)
        assert CANARY in str(engine.get_run(ended[0].id).error)  # which is where one looks
        rows(secret_url, "drop trigger guard on pgworkflows.runs")
        engine.cancel_workflow(stuck.id)
    for expected in ("plugin careless raised in", "failed", "is tried again later"):
        assert expected in logged.text, expected
    assert value(secret_url, "select count(*) from pgworkflows.runs where input::text like %s", f"%{CANARY}%") > 4
    assert CANARY not in everything(logged)


@pytest.mark.direct("names its session in the options of a connection")
def test_neither_payloads_nor_secrets_are_logged_by_a_client(secret_url: str, logged: pytest.LogCaptureFixture) -> None:
    with WorkflowEngine(secret_url, workflows=ALL) as engine:
        run = engine.start_workflow(mixed, {"token": CANARY}, idempotency_key="key")
        calls: list[Callable[[], object]] = [
            lambda: engine.start_workflow(fits_not, cast("Any", CANARY)),
            lambda: engine.start_workflow(mixed, {CANARY: object()}),
            lambda: engine.start_workflow(failing, CANARY, idempotency_key="key"),
            lambda: engine.trigger_event(run.id, "go", {CANARY: float("nan")}),
        ]
        for call in calls:
            with pytest.raises(WorkflowEngineError):
                call()
        with pytest.raises(InvalidInputError) as e:
            engine.start_workflow(fits_not, cast("Any", {"a": CANARY}))
        assert CANARY not in f"{e.value!r} {e.value.issues}"
    for broken in (
        make_conninfo(secret_url, port=1, host="127.0.0.1"),
        make_conninfo(secret_url, user="nobody here"),
        make_conninfo(secret_url, dbname="nothing here"),
        f"postgresql://user:{CANARY}@[::1/none",
        f"host=127.0.0.1 passwort={CANARY}",
    ):
        with pytest.raises(ConfigurationError) as refused:
            WorkflowClient(broken).get_runs()
        assert CANARY not in f"{refused.value!r} {refused.value.__cause__!r}"
    assert CANARY not in everything(logged)


def test_the_password_of_a_client_shows_in_none_of_its_names(secret_url: str) -> None:
    engine = WorkflowEngine(secret_url, workflows=ALL)
    worker = engine.worker()
    for thing in (engine, worker, engine._database, engine._store):  # what a debugger or an error report prints
        assert CANARY not in f"{thing!r} {thing}"


def test_a_name_with_control_characters_forges_no_line_and_moves_no_cursor(
    database_url: str, logged: pytest.LogCaptureFixture
) -> None:
    name = "one\x1b[2J\r\nroot: all is well\u202e"

    @workflow("made-of-input")
    def made_of_input(step: Step) -> Steps[None]:
        yield from step.run(name, int, "x")

    with WorkflowEngine(database_url, workflows=[made_of_input]) as engine:
        engine.migrate()
        engine.start_workflow(made_of_input)
        engine.worker().run_until_idle()
    [line] = [record.getMessage() for record in logged.records if "failed: " in record.getMessage()]
    assert line.isprintable()
    assert line.endswith("failed: ValueError in step one\\x1b[2J\\r\\nroot: all is well\\u202e")
