"""Every argument of every public method, with whatever a caller or an attacker may pass: a documented error and nothing
written, or it works; and the next call works in any case."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from working import rows

from pgworkflows import (
    SerializationError,
    Step,
    Steps,
    Worker,
    WorkflowClient,
    WorkflowEngine,
    WorkflowEngineError,
    workflow,
    workflow_ref,
)
from pgworkflows.commands import RunCommand, StepContext
from pgworkflows.inspection import Inspector

DOCUMENTED = (ValueError, TypeError, WorkflowEngineError, TimeoutError)


def nest(depth: int, kind: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    found: Any = []
    for _ in range(depth):
        found = kind(found)
    return found


class Hostile:
    """An object that takes part in nothing."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def __repr__(self) -> str:
        raise RuntimeError("no text either")


HOSTILE: Mapping[str, Callable[[], Any]] = {
    "none": lambda: None,
    "true": lambda: True,
    "empty": lambda: "",
    "a quote": lambda: "'; drop table pgworkflows.runs cascade; --",
    "a doubled quote": lambda: "''\"\"\\'",
    "a dollar quote": lambda: "$$; select 1; $function$",
    "placeholders": lambda: "%s %(a)s {0} %%",
    "an E string": lambda: "\\'); select pg_sleep(60); --",
    "a NUL": lambda: "a\0b",
    "a lone surrogate": lambda: "a\ud800",
    "a pair of surrogates": lambda: "\ud83d\ude00",
    "direction marks": lambda: "\u202eabc\u2066\ufeff\x1b[31m",
    "256 characters": lambda: "ü" * 256,
    "257 characters": lambda: "x" * 257,
    "a million characters": lambda: "x" * 1_000_000,
    "a huge number": lambda: 10**5000,
    "a number past 64 bits": lambda: 2**63,
    "a negative number": lambda: -1,
    "zero": lambda: 0,
    "a float": lambda: 1e308,
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("-inf"),
    "a decimal": lambda: Decimal("NaN"),
    "bytes": lambda: b"\xff\0",
    "a deep list": cache(lambda: nest(100_000)),
    "a deep dict": cache(lambda: nest(100_000, lambda inner: {"a": inner})),
    "a list of names": lambda: ["default", "'; select 1"],
    "a list of nothing": lambda: [None],
    "a dict": lambda: {"': '": 1, "\0": 2},
    "a generator": lambda: (n for n in [1]),
    "a set": lambda: {1, "a"},
    "a class": lambda: int,
    "a function": lambda: nest,
    "an object": Hostile,
    "a UUID": uuid4,
    "the text of a UUID": lambda: "{" + str(uuid4()) + "}",
    "the first moment": lambda: datetime.min.replace(tzinfo=UTC),
    "the last moment": lambda: datetime.max.replace(tzinfo=UTC),
    "a long time": lambda: timedelta.max,
    "a negative time": lambda: timedelta.min,
    "a time in words": lambda: "1e400 days",
    "an ISO duration": lambda: "P" + "9" * 5000 + "D",
    "forms of digits": lambda: "\u0661\u0662 days",
}


@workflow("fuzzed")
def fuzzed(step: Step, input: Any = None) -> Steps[Any]:
    return (yield from step.wait_for("wait", "go"))


@workflow("done")
def done(step: Step) -> Steps[Any]:
    yield from step.run("nothing", lambda: None)


@dataclass(frozen=True)
class Subject:
    engine: WorkflowEngine
    client: WorkflowClient
    open_run: UUID
    done_run: UUID


@pytest.fixture(scope="module")
def subject(databases: Any, migrated_template: str) -> Iterator[Subject]:
    with (
        databases.fresh(migrated_template) as url,
        WorkflowClient(url) as client,
        WorkflowEngine(url, workflows=[fuzzed, done]) as engine,
    ):
        finished = engine.start_workflow(done)
        engine.worker().run_until_idle("30s")
        yield Subject(engine, client, engine.start_workflow(fuzzed, delay="1 day").id, finished.id)


TERMS = ("resource_id", "priority", "retries", "timeout", "queue", "singleton", "delay", "run_at", "connection")
# Each public method of a client with arguments that are right, to be replaced one by one. Those of an engine below.
CALLS: Mapping[str, Callable[[Subject], dict[str, Any]]] = {
    "start_workflow": lambda s: {"workflow": "fuzzed", "input": 1, "idempotency_key": None, **dict.fromkeys(TERMS)},
    "start_workflows": lambda s: {
        "workflow": "fuzzed", "inputs": [1], "idempotency_keys": None, **dict.fromkeys(TERMS)
    },
    "trigger_event": lambda s: {
        "run_id": s.open_run, "event_name": "e", "data": 1, "resource_id": None, "idempotency_key": None,
        "connection": None,
    },
    "pause_workflow": lambda s: {"run_id": s.done_run, "resource_id": None, "connection": None},
    "resume_workflow": lambda s: {"run_id": s.done_run, "resource_id": None, "connection": None},
    "cancel_workflow": lambda s: {"run_id": s.done_run, "resource_id": None, "connection": None},
    "retry_workflow": lambda s: {"run_id": s.done_run, "resource_id": None, "connection": None},
    "fast_forward_workflow": lambda s: {"run_id": s.open_run, "data": 1, "resource_id": None},
    "get_run": lambda s: {"run_id": s.open_run, "resource_id": None},
    "get_steps": lambda s: {"run_id": s.open_run, "resource_id": None},
    "check_progress": lambda s: {"run_id": s.open_run, "resource_id": None},
    "get_runs": lambda s: {
        "resource_id": None, "workflow_id": None, "statuses": None, "idempotency_key": None, "limit": 1,
        "starting_after": None, "ending_before": None,
    },
    "get_workflow_last_run": lambda s: {"workflow_id": "fuzzed", "resource_id": None},
    "wait_for_run": lambda s: {"run_id": s.done_run, "timeout": None},
    "get_schedules": lambda s: {},
    "get_schedule": lambda s: {"workflow": "fuzzed"},
    "pause_schedule": lambda s: {"workflow": "fuzzed", "connection": None},
    "resume_schedule": lambda s: {"workflow": "fuzzed", "connection": None},
    "trigger_schedule": lambda s: {"workflow": "fuzzed", "connection": None},
    "prune": lambda s: {"older_than": "1 day", "workflow_id": "none"},
    "grant": lambda s: {"client": None, "worker": None, "reader": None},
    "revoke": lambda s: {"role": "no such role"},
    "get_backlog": lambda s: {},
    "health": lambda s: {"min_workers": 0, "max_queue_lag": None, "timeout": "5s"},
    "migrate": lambda s: {},
    "close": lambda s: {},
}  # fmt: skip
FILTERS = (
    "workflow_id", "statuses", "resource_id", "queue", "started_after", "started_before", "parent_run_id", "text"
)  # fmt: skip
CALLS_OF_INSPECTORS: Mapping[str, Callable[[Subject], dict[str, Any]]] = {
    "find_runs": lambda s: {**dict.fromkeys(FILTERS), "limit": 1, "cursor": None, "newer": False},
    "count_runs": lambda s: {**dict.fromkeys(FILTERS), "limit": 1},
    "get_timeline": lambda s: {"run_id": s.open_run, "limit": 1, "after_position": None, "payload_limit": None},
    "get_step": lambda s: {"run_id": s.open_run, "position": 0},
    "get_event": lambda s: {"run_id": s.open_run, "event_id": 1},
    "get_activity": lambda s: {"window": "1 hour", "workflow_id": None, "buckets": 1},
    "get_overview": lambda s: {},
    "get_workers": lambda s: {},
    "get_declared": lambda s: {},
    "get_stuck": lambda s: {"waits_older_than": 0, "steps_longer_than": 0, "lag_over": 0, "limit": 1},
    "get_changes": lambda s: {"since": None, "run_id": None, "limit": 1},
}
OPTIONS = {"queues": None, "threads": 1, "max_runs": 1, "lease": "30s", "poll_interval": "1s", "grace": "1s"}
CALLS_OF_ENGINES: Mapping[str, Callable[[Subject], dict[str, Any]]] = {
    "register_workflow": lambda s: {"workflow": fuzzed},
    "unregister_workflow": lambda s: {"workflow_id": "none"},
    "unregister_all_workflows": lambda s: {},
    "worker": lambda s: {**OPTIONS},
    "stop": lambda s: {},
}
NOT_FUZZED = {"start": "whatever worker= is, it is true or not, and with one the engine works"}


def nothing_but_steps(step: Step) -> Steps[None]:
    yield from step.pause("a")


CONSTRUCTORS: Mapping[str, tuple[Callable[..., object], dict[str, Any]]] = {
    "WorkflowClient": (WorkflowClient, {"conninfo": "host=nowhere", "schema": "pgworkflows"}),
    "workflow": (
        lambda **options: workflow(**options)(nothing_but_steps),
        {
            "id": "a", "retries": 0, "timeout": None, "priority": "normal", "singleton": False, "queue": "default",
            "retention": None, "schedule": None, "timezone": "UTC", "catch_up": "latest", "overlap": "allow",
        },
    ),
    "workflow_ref": (workflow_ref, {"id": "a", "singleton": False}),
}  # fmt: skip
STEP = Step(cast("StepContext", None))
COMMANDS: Mapping[str, dict[str, Any]] = {
    "run": {"id": "a", "fn": nest},
    "wait_for": {"id": "a", "event_name": "e", "timeout": None, "schema": None},
    "wait_until": {"id": "a", "when": "2030-01-01T00:00:00Z"},
    "delay": {"id": "a", "duration": "1s"},
    "sleep": {"id": "a", "duration": "1s"},
    "pause": {"id": "a"},
    "poll": {"id": "a", "fn": nest, "interval": "30s", "timeout": None},
    "invoke_child_workflow": {
        "id": "a", "child": "b", "input": 1, "resource_id": None, "idempotency_key": None, "priority": None,
        "retries": None, "timeout": None,
    },
    "retry": {"attempts": 3, "wait": None, "on": Exception, "not_on": ()},
    "timeout": {"duration": "1s"},
}  # fmt: skip


def public(kind: type) -> dict[str, set[str]]:
    """The public methods of a class, with the names of their arguments."""
    return {
        name: {*inspect.signature(method).parameters} - {"self"}
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_every_argument_of_every_public_method_has_its_place_here(subject: Subject) -> None:
    known = {name: {*make(subject)} for name, make in CALLS.items()}
    assert public(WorkflowClient) == known
    known |= {name: {*make(subject)} for name, make in CALLS_OF_ENGINES.items()} | {"worker": {"options"}}
    assert {name: names for name, names in public(WorkflowEngine).items() if name not in NOT_FUZZED} == known
    assert {*inspect.signature(Worker).parameters} == {"engine", *OPTIONS}
    assert public(Worker) == {"run_forever": set(), "run_until_idle": {"timeout"}, "stop": set(), "health": set()}
    assert public(Inspector) == {name: {*make(subject)} for name, make in CALLS_OF_INSPECTORS.items()}
    commands = {name: {*arguments} for name, arguments in COMMANDS.items()}
    assert {"retry", "timeout"} <= public(RunCommand).keys()
    variadic = {"run": {"args", "kwargs"}, "poll": {"args"}}
    assert {name: names - variadic.get(name, set()) for name, names in public(Step).items()} == {
        name: names for name, names in commands.items() if name not in ("retry", "timeout")
    }
    for name, (made, arguments) in CONSTRUCTORS.items():
        objects = {
            "pool",
            "plugins",
            "listen_conninfo",
            "codec",
            "read_codecs",
            "input_schema",
            "output_schema",
            "options",
        }
        given_here = {"workflow": workflow}.get(name, made)
        assert {*inspect.signature(given_here).parameters} - objects == {*arguments}


COUNTS = """
select (select count(*) from pgworkflows.runs), (select count(*) from pgworkflows.queue),
    (select count(*) from pgworkflows.steps), (select count(*) from pgworkflows.events),
    (select count(*) from pgworkflows.schedules), (select count(*) from pgworkflows.roles)
"""


def counts(url: str) -> tuple[int, ...]:
    """How many rows there are in each table that a call may write to."""
    [row] = rows(url, COUNTS)
    return row


def attempt(call: Callable[..., object], arguments: Mapping[str, Any], what: str) -> BaseException | None:
    """The documented error that a call raises, if it does; any other fails the test."""
    try:
        call(**arguments)
    except DOCUMENTED as error:
        if isinstance(error, UnicodeError) or len(str(error)) > 10_000:
            raise AssertionError(f"{what} raised a {type(error).__name__} that says too little or too much") from error
        return error
    except BaseException as error:
        raise AssertionError(f"{what} raised {type(error).__name__}") from error
    return None


@pytest.mark.parametrize("method", [*CALLS, *CALLS_OF_ENGINES])
def test_a_method_takes_it_or_refuses_it_and_writes_nothing(subject: Subject, method: str) -> None:
    url = subject.engine.conninfo
    right = (CALLS.get(method) or CALLS_OF_ENGINES[method])(subject)
    whose = [subject.engine] if method in CALLS_OF_ENGINES else [subject.client, subject.engine]
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as conn:
        before = conn.execute(COUNTS).fetchone()
        for argument in right:
            for name, make in HOSTILE.items():
                target = whose[len(name) % len(whose)]
                error = attempt(getattr(target, method), {**right, argument: make()}, f"{method}({argument}={name})")
                after = conn.execute(COUNTS).fetchone()
                assert error is None or after == before, (argument, name, error)
                before = after
    assert subject.client.get_run(subject.done_run).status == "completed"
    assert subject.engine.get_run(subject.open_run).id == subject.open_run
    subject.engine.unregister_all_workflows()
    subject.engine.register_workflow(fuzzed)


@pytest.mark.parametrize("method", CALLS_OF_INSPECTORS)
def test_an_inspection_takes_it_or_refuses_it(subject: Subject, method: str) -> None:
    inspector = Inspector(subject.client)
    right = CALLS_OF_INSPECTORS[method](subject)
    for argument in right:
        for name, make in HOSTILE.items():
            attempt(getattr(inspector, method), {**right, argument: make()}, f"{method}({argument}={name})")
    assert inspector.get_timeline(subject.open_run).run.id == subject.open_run


@pytest.mark.parametrize(
    "mark",
    [
        "",
        "~",
        "0001-01-01T00:00:00Z~1:1:",
        "9999-12-31T23:59:59Z~1:1:",
        "2026-01-01T00:00:00Z~0:0:",
        "2026-01-01T00:00:00Z~99999999999999999999:1:",
        "2026-01-01T00:00:00Z~5:1:",
        "2026-01-01T00:00:00Z~1:9:8,7,6",
        "x~1:1:",
        "2026-01-01T00:00:00Z~1:1:'; select 1",
    ],
)
def test_a_mark_is_taken_or_refused(subject: Subject, mark: str) -> None:
    attempt(Inspector(subject.client).get_changes, {"since": mark}, mark)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_it_or_refuses_it(command: str) -> None:
    target = STEP.run("a", nest, 1) if command in ("retry", "timeout") else STEP
    for argument in COMMANDS[command]:
        for name, make in HOSTILE.items():
            arguments = {**COMMANDS[command], argument: make()}
            positional = [arguments.pop(each) for each in ("id", "fn") if each in arguments]
            attempt(
                lambda positional=positional, **rest: getattr(target, command)(*positional, **rest),
                arguments,
                f"step.{command}({argument}={name})",
            )


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_a_constructor_takes_it_or_refuses_it(constructor: str) -> None:
    call, right = CONSTRUCTORS[constructor]
    for argument in right:
        for name, make in HOSTILE.items():
            if (argument, name) != ("conninfo", "none"):  # which may start an embedded server
                attempt(call, {**right, argument: make()}, f"{constructor}({argument}={name})")


# --- what is taken comes back as it was

TEXT = st.text(st.characters(codec=None), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
FEW = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def storable(given_value: Any) -> bool:
    """Whether PostgreSQL and JSON can keep it."""
    match given_value:
        case str():
            return "\0" not in given_value and not any("\ud800" <= each <= "\udfff" for each in given_value)
        case float():
            return given_value == given_value and abs(given_value) != float("inf")
        case list():
            return all(map(storable, given_value))
        case dict():
            parts = cast("dict[str, Any]", given_value)
            return all(storable(key) and storable(each) for key, each in parts.items())
        case _:
            return True


@FEW
@given(JSON)
def test_a_payload_comes_back_as_it_was_or_is_refused(subject: Subject, payload: Any) -> None:
    url, client = subject.engine.conninfo, subject.client
    before = counts(url)
    if not storable(payload):
        for call in (
            lambda: client.start_workflow("fuzzed", payload),
            lambda: client.start_workflows("fuzzed", [1, payload]),
            lambda: client.trigger_event(subject.open_run, "e", payload),
            lambda: client.fast_forward_workflow(subject.open_run, payload),
        ):
            with pytest.raises(SerializationError):
                call()
        assert counts(url) == before
        return
    run = client.start_workflow("fuzzed", payload)
    assert repr(run.input) == repr(client.get_run(run.id).input) == repr(payload)
    [first, second] = client.start_workflows("fuzzed", [payload, payload])
    assert repr(first.input) == repr(second.input) == repr(payload)
    client.trigger_event(run.id, "e", payload)
    kept = "select data::text, data::jsonb is not null from pgworkflows.events where run_id = %s"
    [(text, readable)] = rows(url, kept, run.id)
    assert readable
    assert payload is None or repr(json.loads(text)) == repr(payload)


@FEW
@given(TEXT, TEXT, TEXT)
def test_names_come_back_as_they_were_or_are_refused(subject: Subject, name: str, resource: str, key: str) -> None:
    url, client = subject.engine.conninfo, subject.client
    good = all(each and storable(each) for each in (name, resource, key))
    before = counts(url)
    try:
        run = client.start_workflow(name, resource_id=resource, idempotency_key=f"{uuid4()}{key}", queue=name)
    except ValueError:
        assert not good
        assert counts(url) == before
        return
    assert (run.workflow_id, run.resource_id, run.queue) == (name, resource, name)
    assert client.get_runs(workflow_id=name, resource_id=resource, limit=1000).items[0] == run
    assert run.idempotency_key is not None
    assert run.idempotency_key.endswith(key)


# --- what steps return, and what stands in SQL


@workflow("answers")
def answers(step: Step, names: list[str]) -> Steps[Any]:
    told = ""
    for name in names:
        try:
            told = repr((yield step.run(name, HOSTILE[name])))
        except Exception as error:
            told = type(error).__name__
    return told


def test_whatever_a_step_returns_the_worker_lives(subject: Subject) -> None:
    with WorkflowEngine(subject.engine.conninfo, workflows=[answers]) as engine:
        logging.getLogger("pgworkflows").setLevel(logging.ERROR)
        runs = {name: engine.start_workflow(answers, [name]) for name in HOSTILE}
        engine.worker().run_until_idle("60s")
        logging.getLogger("pgworkflows").setLevel(logging.NOTSET)
        for name, run in runs.items():
            ended = engine.get_run(run.id)
            assert ended.status.finished, name
            assert ended.error is None or ended.error["type"] == "SerializationError", (name, ended.error)


SQL_PAYLOADS = (
    ("repeat('[', 100000) || repeat(']', 100000)", {"22023"}),
    ("repeat('{\"a\":', 100000) || '1' || repeat('}', 100000)", {"22023"}),
    ("(repeat('[', 100000) || repeat(']', 100000))::json", {"54001"}),  # the type's own refusal
    ("(repeat('[', 502) || repeat(']', 502))::jsonb", {"22023"}),
    ("to_json(repeat('x', 67108864))", {"22023"}),
    ('\'{"a": "\\u0000"}\'', {"22P05"}),
    ('\'{"a": "\\ud800"}\'', {"22P02"}),
    ("'{''; drop table runs; --'", {"22P02"}),
    ("'NaN'", {"22P02"}),
    ("''", {"22P02"}),
)


@pytest.mark.parametrize(("payload", "sqlstates"), SQL_PAYLOADS, ids=range(len(SQL_PAYLOADS)))
def test_sql_refuses_what_could_not_be_read(subject: Subject, payload: str, sqlstates: set[str]) -> None:
    url = subject.engine.conninfo
    before = counts(url)
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as conn:
        for call in (
            f"select pgworkflows.start_workflow('fuzzed', {payload})",
            f"select pgworkflows.trigger_event('{subject.open_run}', 'e', {payload})",
            f"select pgworkflows.fast_forward_workflow('{subject.open_run}', {payload})",
        ):
            with pytest.raises(psycopg.Error) as refused:
                conn.execute(call.encode())
            assert refused.value.sqlstate in sqlstates, call
        assert conn.execute("select 1").fetchone() == (1,)
    assert counts(url) == before


SQL_ARGUMENTS = ("workflow", "resource_id", "idempotency_key", "priority", "queue")


@pytest.mark.parametrize("argument", SQL_ARGUMENTS)
def test_sql_takes_a_name_as_it_is_or_refuses_it(subject: Subject, argument: str) -> None:
    url = subject.engine.conninfo
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as conn:
        for name, make in HOSTILE.items():
            given_value = make()
            if not isinstance(given_value, str) or not storable(given_value):
                continue
            others = "" if argument == "workflow" else "workflow => 'fuzzed', "
            column = "workflow_id" if argument == "workflow" else argument
            call = f"select to_json(r.{column})::text from pgworkflows.start_workflow({others}{argument} => %s) as r"
            before = counts(url)
            try:
                [(kept,)] = conn.execute(call.encode(), [given_value]).fetchall()
            except psycopg.errors.InvalidParameterValue:
                assert counts(url) == before
            else:
                assert argument == "priority" or json.loads(kept) == given_value, name
