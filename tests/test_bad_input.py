"""Bad input: each a clear error of its own name, before anything is written; and a worker survives what a run does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast
from urllib.parse import quote, urlsplit
from uuid import UUID, uuid4

import psycopg
import pytest
import tenacity
from pydantic import BaseModel, field_serializer
from waiting import until
from working import HandWorker, rows, value, working

from pgworkflows import (
    ConfigurationError,
    EmbeddedPostgres,
    InvalidInputError,
    InvalidStatusError,
    RunStatus,
    SerializationError,
    Step,
    StepFailedError,
    Steps,
    Workflow,
    WorkflowClient,
    WorkflowEngine,
    WorkflowEngineError,
    WorkflowNotFoundError,
    WorkflowRunNotFoundError,
    current_step,
    workflow,
    workflow_ref,
)
from pgworkflows.claims import Outcomes
from pgworkflows.documents import spelled
from pgworkflows.embedded.account import account_for
from pgworkflows.embedded.binaries import find_binaries, runnable_by
from pgworkflows.entries import Entry
from pgworkflows.journal import Verdict
from pgworkflows.migrate import migrations, plan


class SignUp(BaseModel):
    email: str
    age: int


@workflow("sign-up")
def sign_up(step: Step, input: SignUp) -> Steps[str]:
    yield from step.run("create", nothing)
    return input.email


@workflow("alone")
def alone(step: Step) -> Steps[int]:
    yield from step.run("only", nothing)
    return 5


def nothing() -> None: ...


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=[sign_up, alone]) as engine:
        yield engine


def written(url: str) -> dict[str, int]:
    """How many rows each of the tables has that a client writes to."""
    tables = ("runs", "queue", "steps", "events")
    return {table: value(url, f"select count(*) from pgworkflows.{table}") for table in tables}


# --- arguments

LARGE = 100_000
UNSTORABLE: dict[str, Callable[[], Any]] = {
    "NaN": lambda: float("nan"),
    "infinity": lambda: [1, {"a": -float("inf")}],
    "NUL": lambda: "a\0b",
    "a NUL in a key": lambda: {"a\0b": 1},
    "a lone surrogate": lambda: ["\ud800"],
    "a lone surrogate in a key": lambda: {"\udfff": 1},
    "an open file": lambda: sys.__stderr__,
    "a generator": lambda: (n for n in range(3)),
    "an iterator": lambda: iter([1, 2]),
    "a map": lambda: {"a": map(str, [1])},
    "an object": object,
    "a class": lambda: SignUp,
    "a function": lambda: nothing,
    "a module": lambda: sys,
    "a circle": lambda: circle(),
    "a deep nest": lambda: nest(100_000),
    "a number of 5000 digits": lambda: 10**5000,
    "too many characters": lambda: ["x" * LARGE],
    "bytes that are no text": lambda: b"\xff\xfe",
    "keys that are the same in JSON": lambda: {1: "a", "1": "b"},
    "a key that is no JSON key": lambda: {(1, 2): "a", object(): "b"},
    "a serializer that fails": lambda: Unwilling(name="a"),
}


@pytest.fixture
def small_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads may be large, but not as large as they are otherwise."""
    monkeypatch.setattr("pgworkflows.jsontext.MAX_JSON_LENGTH", LARGE)


def circle() -> list[Any]:
    found: list[Any] = []
    found.append({"again": found})
    return found


def nest(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


class Unwilling(BaseModel):
    name: str

    @field_serializer("name")
    def write(self, value: str) -> str:
        raise LookupError(f"cannot write {value}")


def refused_by(call: Callable[[], object], kind: type[BaseException]) -> str:
    """The message of what a call raises."""
    with pytest.raises(kind) as e:
        call()
    assert type(e.value) is kind
    return str(e.value)


@pytest.mark.usefixtures("small_payloads")
def test_what_cannot_be_stored_is_refused_before_anything_is_written(engine: WorkflowEngine, database_url: str) -> None:
    run = engine.start_workflow(alone)
    before = written(database_url)
    for name, make in UNSTORABLE.items():
        calls: list[Callable[[], object]] = [
            partial(engine.start_workflow, workflow_ref("elsewhere"), make()),
            partial(engine.trigger_event, run.id, "go", make()),
            partial(engine.fast_forward_workflow, run.id, make()),
        ]
        messages = [refused_by(call, SerializationError) for call in calls]
        assert "the input of workflow 'elsewhere' cannot be stored as JSON: " in messages[0], name
        assert "the data of event 'go' cannot be stored as JSON: " in messages[1], name
    assert written(database_url) == before


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({}, {("email",), ("age",)}),
        ({"email": "e"}, {("age",)}),
        ({"email": 5, "age": "old"}, {("email",), ("age",)}),
        ({"email": "e", "age": 2.5}, {("age",)}),
        (None, {()}),
        ("text", {()}),
        ([], {()}),
        ({"email": "e", "age": None}, {("age",)}),
    ],
)
def test_input_that_does_not_fit_the_schema_is_refused(wrong: Any, where: set[tuple[str, ...]]) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    engine = WorkflowEngine(nowhere, workflows=[sign_up])
    for given in (sign_up, "sign-up", workflow_ref("sign-up", input_schema=SignUp), workflow_ref("sign-up")):
        with pytest.raises(InvalidInputError, match="the input of workflow 'sign-up' does not fit SignUp: ") as e:
            engine.start_workflow(given, wrong)
        assert e.value.workflow_id == "sign-up"
        assert {tuple(issue["loc"]) for issue in e.value.issues} == where
        assert all({"type", "loc", "msg"} <= set(issue) for issue in e.value.issues)


def test_a_refused_input_does_not_show_its_values() -> None:
    client = WorkflowClient("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(InvalidInputError) as e:
        client.start_workflow(sign_up, {"email": ["hush-hush"], "age": "hush-hush"})
    assert "hush-hush" not in f"{e.value} {e.value!r} {e.value.issues} {e.value.__cause__}"


def test_an_unknown_workflow_is_refused(engine: WorkflowEngine, database_url: str) -> None:
    said = refused_by(lambda: engine.start_workflow("sing-up", {"email": "e"}), WorkflowNotFoundError)
    assert said.startswith("workflow 'sing-up' is not registered with this engine: pass it in workflows=")
    wrongs: list[Any] = [None, 5, SignUp, nothing, b"sign-up", sign_up.function]
    for wrong in wrongs:
        for client in (engine, WorkflowClient(database_url)):
            said = refused_by(partial(client.start_workflow, wrong), TypeError)
            assert said == f"start_workflow takes a workflow, a ref or an id, not {type(wrong).__name__}"
    assert written(database_url) == {"runs": 0, "queue": 0, "steps": 0, "events": 0}


BAD_NAMES: dict[Any, type[Exception]] = {
    "": ValueError,
    "x" * 257: ValueError,
    "a\0": ValueError,
    "\ud800": ValueError,
    5: TypeError,
    b"bytes": TypeError,
    ("a",): TypeError,
}


def test_names_that_are_empty_too_long_or_no_text_are_refused(engine: WorkflowEngine, database_url: str) -> None:
    client = WorkflowClient(database_url)
    run = engine.start_workflow(alone)
    before = written(database_url)
    bad: Any
    for bad, kind in BAD_NAMES.items():
        calls: dict[str, Callable[[], object]] = {
            "resource_id": partial(client.start_workflow, "a", resource_id=bad),
            "idempotency_key": partial(client.start_workflow, "a", idempotency_key=bad),
            "queue": partial(client.start_workflow, "a", queue=bad),
            "event_name": partial(client.trigger_event, run.id, bad),
            "idempotency_key ": partial(client.trigger_event, run.id, "go", idempotency_key=bad),
            "resource_id ": partial(client.get_run, run.id, resource_id=bad),
            "workflow_id": partial(client.get_workflow_last_run, bad),
            "workflow_id ": partial(client.get_runs, workflow_id=bad),
        }
        if isinstance(bad, str):
            calls["the workflow id"] = partial(client.start_workflow, bad)
            calls["the workflow id "] = partial(engine.start_workflow, bad)
            calls["a workflow id"] = partial(workflow_ref, bad)
        for what, call in calls.items():
            assert refused_by(call, kind).startswith(f"{what.strip()} must "), (what, bad)
    assert written(database_url) == before
    longest = client.start_workflow("x" * 256, resource_id="r" * 256, idempotency_key="k" * 256, queue="q" * 256)
    assert client.trigger_event(longest.id, "e" * 256, idempotency_key="k" * 256) == longest


BAD_DURATIONS: list[Any] = [-1, -0.5, "-1s", float("nan"), float("inf"), "", "soon", "1 fortnight", "1s 2s", "1 month"]
WRONG_DURATIONS: list[Any] = [True, [], b"1s"]
BAD_DURATIONS += ["P1Y", "1 year", timedelta(seconds=-1), "400000 days", 10**400]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *[(ValueError, {"delay": bad}) for bad in BAD_DURATIONS],
        *[(ValueError, {"timeout": bad}) for bad in [*BAD_DURATIONS, 0, "0s", timedelta(0)]],
        *[(TypeError, {"delay": bad}) for bad in WRONG_DURATIONS],
        (ValueError, {"run_at": datetime(2040, 1, 1)}),  # noqa: DTZ001  (naive on purpose)
        (ValueError, {"run_at": "2040-01-01T00:00:00"}),
        (ValueError, {"run_at": "tomorrow"}),
        (ValueError, {"run_at": datetime.max.replace(tzinfo=UTC)}),
        (ValueError, {"run_at": datetime.min.replace(tzinfo=UTC)}),
        (TypeError, {"run_at": 5}),
        (ValueError, {"run_at": "2040-01-01T00:00:00Z", "delay": "1s"}),
        (ValueError, {"priority": "urgent"}),
        (ValueError, {"priority": 1001}),
        (ValueError, {"priority": -1001}),
        (TypeError, {"priority": True}),
        (TypeError, {"priority": 1.5}),
        (ValueError, {"retries": -1}),
        (ValueError, {"retries": 10**9}),
        (TypeError, {"retries": "3"}),
        (TypeError, {"retries": True}),
        (TypeError, {"unknown": 1}),
    ],
    ids=str,
)
def test_options_out_of_bounds_are_refused(kind: type[Exception], options: dict[str, Any]) -> None:
    client = WorkflowClient("postgresql://nobody@127.0.0.1:1/none")  # it is not even asked
    said = refused_by(lambda: client.start_workflow("a", **options), kind)
    assert any(name in said for name in options)


def test_what_a_run_is_not_ready_for_is_refused(engine: WorkflowEngine, database_url: str) -> None:
    run = engine.start_workflow(alone, resource_id="them")
    engine.worker().run_until_idle("20s")
    done = engine.get_run(run.id)
    before = written(database_url)
    said = refused_by(lambda: engine.trigger_event(run.id, "go", {"a": 1}), InvalidStatusError)
    assert said == f"run {run.id} is completed; only pending, running, waiting, paused runs can get events"
    for operation in (engine.pause_workflow, engine.resume_workflow, engine.cancel_workflow, engine.retry_workflow):
        assert f"run {run.id} is completed; only " in refused_by(partial(operation, run.id), InvalidStatusError)
    said = refused_by(lambda: engine.trigger_event(run.id, "go", resource_id="me"), WorkflowRunNotFoundError)
    assert said == f"run {run.id} was not found for resource 'me'"
    assert written(database_url) == before
    assert engine.get_run(run.id) == done


# --- the database


def everything_fails(url: str, match: str, secret: str = "hush-hush") -> None:
    """Each way to a database that does not work ends in a ConfigurationError that tells why, and no password."""
    engine = WorkflowEngine(url, workflows=[alone])
    worker = engine.worker()
    calls: list[Callable[[], object]] = [
        lambda: engine.start_workflow(alone),
        lambda: engine.get_run(uuid4()),
        lambda: engine.wait_for_run(uuid4()),
        engine.start,
        engine.migrate,
        worker.run_forever,
        worker.run_until_idle,
        lambda: plan(url),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match=match) as e:
            call()
        assert secret not in "".join(traceback.format_exception(e.value))
    engine.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_no_server_at_that_address() -> None:
    everything_fails(
        f"postgresql://ann:hush-hush@127.0.0.1:{free_port()}/db", "cannot connect to PostgreSQL: .*Connection refused"
    )
    everything_fails("host=/nowhere user=ann password=hush-hush", "cannot connect to PostgreSQL: .*No such file")


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://ann:hush-hush@127.0.0.1:{silent.getsockname()[1]}/db?connect_timeout=2"
        with pytest.raises(ConfigurationError, match="cannot connect to PostgreSQL: .*timeout") as e:
            WorkflowClient(url).get_runs()
    assert "hush-hush" not in "".join(traceback.format_exception(e.value))


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ann:hush-hush@localhost/db",
        "postgresql://ann:hush-hush@[::1/db",
        "hush-hush",
        "user=ann password=hush-hush nonsense=1",
        "postgresql://ann:hush-hush@localhost/db?nonsense=1",
    ],
)
def test_a_connection_string_that_cannot_be_read(url: str) -> None:
    for use in (WorkflowClient, WorkflowEngine, lambda url: plan(url)):
        with pytest.raises(ConfigurationError, match="connection string could not be read: use postgresql://user") as e:
            use(url)
        assert "hush-hush" not in str(e.value)
    for wrong in (5, b"postgresql://", Path("/tmp")):
        with pytest.raises(TypeError, match="the connection string must be a string, not"):
            WorkflowClient(wrong)  # type: ignore[arg-type]


def test_a_port_that_is_none() -> None:
    everything_fails("postgresql://ann:hush-hush@127.0.0.1:port/db", "cannot connect to PostgreSQL: .*port")


def test_a_wrong_password_an_unknown_user_and_an_unknown_database() -> None:
    with EmbeddedPostgres(port=free_port(), settings={"fsync": "off"}) as server:
        parts = urlsplit(server.url)
        place = f"{parts.hostname}:{parts.port}"
        everything_fails(f"postgresql://postgres:hush-hush@{place}/postgres", "password authentication failed")
        everything_fails(f"postgresql://postgres:{quote('hush-hush %s/@:', safe='')}@{place}/postgres", "password auth")
        everything_fails(
            f"postgresql://nobody:hush-hush@{place}/postgres", 'password authentication failed for user "n'
        )
        everything_fails(f"postgresql://postgres@{place}/postgres", "no password supplied")
        assert parts.password is not None
        everything_fails(server.url_for("nowhere"), 'database "nowhere" does not exist', parts.password)


def test_a_schema_that_is_not_migrated(empty_database_url: str) -> None:
    client = WorkflowEngine(empty_database_url, workflows=[alone])
    calls: list[Callable[[], object]] = [
        lambda: client.start_workflow(alone),
        lambda: client.trigger_event(uuid4(), "go"),
        lambda: client.pause_workflow(uuid4()),
        lambda: client.fast_forward_workflow(uuid4()),
        lambda: client.get_run(uuid4()),
        lambda: client.get_runs(),
        lambda: client.get_steps(uuid4()),
        lambda: client.check_progress(uuid4()),
        lambda: client.wait_for_run(uuid4()),
    ]
    for call in calls:
        with pytest.raises(
            ConfigurationError, match=r"the schema is not there.*: call migrate\(\) or engine.start\(\)"
        ):
            call()
    client.close()


@contextlib.contextmanager
def standby(data_dir: Path, socket_dir: Path) -> Generator[str]:
    """A hot standby on a copy of a server's data: nothing can be written to it."""
    (data_dir / "standby.signal").touch()
    account = account_for(data_dir)
    binaries = find_binaries()
    assert binaries is not None
    identity: dict[str, Any] = {}
    if account is not None:
        identity = {"user": account.uid, "group": account.gid, "extra_groups": []}
        os.chown(data_dir / "standby.signal", account.uid, account.gid)
    binary = (binaries.directory if account is None else runnable_by(account, binaries)) / "postgres"
    socket_dir.chmod(0o777)
    log = (socket_dir / "log").open("w")
    options = ["-D", str(data_dir), "-k", str(socket_dir), "-c", "listen_addresses=", "-c", "hot_standby=on"]
    server = subprocess.Popen([str(binary), *options], cwd="/", stdout=log, stderr=log, **identity)
    url = f"postgresql://postgres@/postgres?host={quote(str(socket_dir), safe='')}"

    def in_recovery() -> bool:
        assert server.poll() is None, (socket_dir / "log").read_text()
        with contextlib.suppress(psycopg.OperationalError):
            return bool(value(url, "select pg_is_in_recovery()"))
        return False

    try:
        until(in_recovery, "the standby answers")
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)
        log.close()


def test_a_read_only_server(make_directory: Callable[[], Path]) -> None:
    place = make_directory()
    with (
        EmbeddedPostgres(place, settings={"fsync": "off"}) as server,
        WorkflowEngine(server.url, workflows=[alone]) as engine,
    ):
        engine.start(worker=False)
        run = engine.start_workflow(alone)
    with standby(place, make_directory()) as url, WorkflowEngine(url, workflows=[alone]) as engine:
        assert engine.get_run(run.id) == run  # it can be read
        assert engine.check_progress(run.id).total_steps == 1
        calls: list[Callable[[], object]] = [
            lambda: engine.start_workflow(alone),
            lambda: engine.trigger_event(run.id, "go"),
            lambda: engine.cancel_workflow(run.id),
            engine.start,
        ]
        unmigrated = WorkflowEngine(url, schema="elsewhere")
        calls += [unmigrated.migrate, unmigrated.start, unmigrated.worker().run_forever]
        for call in calls:
            with pytest.raises(ConfigurationError, match="the server is read-only: connect to the primary"):
                call()
        assert len(plan(url, "elsewhere")) == len(migrations())


# --- a worker survives what a run does


def returning(name: str, make: Callable[[], Any], *, retries: int = 3) -> Workflow[Any, Any]:
    """A workflow with a step that returns what `make` makes, or raises what that raises."""

    @workflow(name, retries=retries)
    def handler(step: Step) -> Steps[Any]:
        return (yield from step.run("bad", make))

    return handler


def ending_with(name: str, make: Callable[[], Any]) -> Workflow[Any, Any]:
    """A workflow that returns what `make` makes, or raises what that raises."""

    @workflow(name)
    def handler(step: Step) -> Steps[Any]:
        yield from step.run("good", nothing)
        return make()

    return handler


def yielding(name: str, make: Callable[[Step], Any]) -> Workflow[Any, Any]:
    """A workflow that yields what `make` makes of its `step`."""

    @workflow(name)
    def handler(step: Step) -> Steps[Any]:
        yield from step.run("good", nothing)
        return (yield make(step))

    return handler


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even its text")


def raise_(error: BaseException) -> NoReturn:
    raise error


def recursive() -> NoReturn:
    recursive()


def wrong_type() -> int:
    return "five"  # type: ignore[return-value]


def wrong_model() -> SignUp:
    return SignUp.model_construct(email=None, age="old")


async def asynchronous() -> None: ...


async def many() -> AsyncIterator[int]:
    yield 5


def retry_that_fails(step: Step) -> Any:
    class Wait(tenacity.wait.wait_base):
        def __call__(self, retry_state: tenacity.RetryCallState) -> float:
            raise ArithmeticError("no idea")

    return step.run("bad", lambda: raise_(ValueError("x"))).retry(attempts=3, wait=Wait())


def twice(step: Step) -> Any:
    return step.run("good", nothing)


RAISED: dict[str, tuple[Callable[[], Any], str]] = {
    "an error with NUL": (lambda: raise_(ValueError("a\0b")), "ValueError"),
    "an error with a surrogate": (lambda: raise_(ValueError("\ud800")), "ValueError"),
    "an error without readable text": (lambda: raise_(Unreadable()), "Unreadable"),
    "a large error": (lambda: raise_(ValueError("x" * 1_000_000)), "ValueError"),
    "an exit": (lambda: sys.exit(3), "SystemExit"),
    "a keyboard interrupt": (lambda: raise_(KeyboardInterrupt("now")), "KeyboardInterrupt"),
    "a generator exit": (lambda: raise_(GeneratorExit("now")), "GeneratorExit"),
    "no memory": (lambda: raise_(MemoryError("none left")), "MemoryError"),
    "an endless recursion": (recursive, "RecursionError"),
    "an error of the library's own": (lambda: raise_(WorkflowEngineError("no")), "WorkflowEngineError"),
    "a group": (lambda: raise_(ExceptionGroup("two", [ValueError("a"), KeyError("b")])), "ExceptionGroup"),
}
YIELDED: dict[str, tuple[Callable[[Step], Any], str]] = {
    "a number": (lambda step: 5, "TypeError"),
    "nothing": (lambda step: None, "TypeError"),
    "a generator": (lambda step: (n for n in range(3)), "TypeError"),
    "an async step": (lambda step: step.run("bad", asynchronous), "TypeError"),
    "a step without function": (lambda step: step.run("bad", 5), "TypeError"),  # type: ignore[arg-type]
    "an empty id": (lambda step: step.run("", nothing), "ValueError"),
    "a long id": (lambda step: step.run("x" * 257, nothing), "ValueError"),
    "an id with NUL": (lambda step: step.run("a\0b", nothing), "ValueError"),
    "an id with a surrogate": (lambda step: step.run("\ud800", nothing), "ValueError"),
    "an id that is no text": (lambda step: step.run(5, nothing), "TypeError"),  # type: ignore[arg-type]
    "an id twice": (twice, "DuplicateStepError"),
    "a naive time": (lambda step: step.wait_until("bad", datetime(2040, 1, 1)), "ValueError"),  # noqa: DTZ001  (on purpose)
    "a nonsensical time": (lambda step: step.wait_until("bad", "soon"), "ValueError"),
    "a bad duration": (lambda step: step.delay("bad", "1 month"), "ValueError"),
    "a negative duration": (lambda step: step.delay("bad", -1), "ValueError"),
    "a wait of no time": (lambda step: step.wait_for("bad", "go", timeout=0), "ValueError"),
    "an event without name": (lambda step: step.wait_for("bad", ""), "ValueError"),
    "a poll too often": (lambda step: step.poll("bad", nothing, interval=0.5), "ValueError"),
    "a retry without attempts": (lambda step: step.run("bad", nothing).retry(attempts=0), "ValueError"),
    "a wait between retries that fails": (retry_that_fails, "ValueError"),
    "the truth of a command": (lambda step: bool(cast("Any", step.run("bad", nothing))), "TypeError"),
    "step outside a step": (lambda step: current_step(), "RuntimeError"),
}


@pytest.mark.usefixtures("small_payloads")
def test_a_worker_survives_every_bad_run(database_url: str) -> None:
    expected: dict[str, str] = {}
    workflows: list[Workflow[Any, Any]] = [alone, sign_up]

    def expect(made: Workflow[Any, Any], error_type: str) -> None:
        workflows.append(made)
        expected[made.id] = error_type

    for name, make in UNSTORABLE.items():
        expect(returning(f"a step returns {name}", make), "SerializationError")
        expect(ending_with(f"the handler returns {name}", make), "SerializationError")
    for name, (make, error_type) in RAISED.items():
        expect(returning(f"a step raises {name}", make, retries=0), error_type)
        expect(ending_with(f"the handler raises {name}", make), error_type)
    for name, (make_command, error_type) in YIELDED.items():
        expect(yielding(f"the handler yields {name}", make_command), error_type)
    expect(returning("a step returns what it does not announce", wrong_type), "SerializationError")
    expect(returning("a step returns a wrong model", wrong_model), "SerializationError")
    expect(returning("a step returns a coroutine", lambda: asynchronous()), "SerializationError")
    expect(returning("a step returns an async generator", lambda: many()), "SerializationError")

    with WorkflowEngine(database_url, workflows=workflows) as engine, working(engine, threads=4):
        [(worker_id,)] = rows(database_url, "select id from pgworkflows.workers")
        runs = {name: engine.start_workflow(name) for name in expected}
        for wrong in ('{"email": 5}', "null", "[]", '"text"', '{"email": "e", "age": 1e400}'):
            [(run_id,)] = rows(database_url, "select (pgworkflows.start_workflow('sign-up', %s)).id", wrong)
            runs[f"sign-up {wrong}"] = engine.get_run(run_id)
            expected[f"sign-up {wrong}"] = "InvalidInputError"
        [(run_id,)] = rows(database_url, "select (pgworkflows.start_workflow('alone', '5')).id")
        runs["alone 5"] = engine.get_run(run_id)
        expected["alone 5"] = "InvalidInputError"
        ended = {name: engine.wait_for_run(run.id, timeout="60s") for name, run in runs.items()}
        assert {name: (run.error or {}).get("type") for name, run in ended.items()} == expected
        assert {run.status for run in ended.values()} == {RunStatus.FAILED}
        good = engine.wait_for_run(engine.start_workflow(alone).id, timeout="20s")
        assert good.output == 5
        assert rows(database_url, "select id from pgworkflows.workers") == [(worker_id,)]
        assert {run.retry_count for run in ended.values()} == {0}
        readable = "select count(error ->> 'message') from pgworkflows.runs where status = 'failed'"
        assert value(database_url, readable) == len(expected)
    for name, run in ended.items():
        assert run.error is not None
        assert run.error["message"], name
        if name.startswith("a step"):
            assert (name, run.error["step_id"], run.current_step_id) == (name, "bad", "bad")


def test_a_result_that_cannot_be_stored_can_be_caught(database_url: str) -> None:
    @workflow("careful")
    def careful(step: Step) -> Steps[str]:
        try:
            yield from step.run("bad", lambda: float("nan"))
        except StepFailedError as error:
            return f"{error.error_type}: {error.message}"
        return "stored"

    with WorkflowEngine(database_url, workflows=[careful]) as engine:
        run = engine.start_workflow(careful)
        engine.worker().run_until_idle("20s")
        done = engine.get_run(run.id)
        assert str(done.output).startswith(
            "SerializationError: the result of step 'bad' cannot be stored as JSON: Out of range float"
        )
        [step] = engine.get_steps(run.id)
        assert (str(step.status), step.output) == ("failed", None)


def test_results_that_are_too_large_for_one_statement_are_written_in_several(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgworkflows.journal.MAX_JSON_LENGTH", 1000)
    sent: list[int] = []

    def counted(worker_id: UUID, entries: Sequence[Entry]) -> Outcomes:
        sent.append(len(entries))
        return spelled(worker_id, entries)

    monkeypatch.setattr("pgworkflows.journal.spelled", counted)
    with WorkflowClient(database_url) as client, HandWorker(database_url, ["a"]) as hand:
        runs = [client.start_workflow("a") for _ in range(8)]
        ends = [Entry(r.run_id, r.claim_id, r.signal, "complete", output=f'"{"x" * 300}"') for r in hand.claim().runs]
        assert [answer.verdict for answer in hand.write(*ends)] == [Verdict.WRITTEN] * 8
        assert {client.get_run(run.id).output for run in runs} == {"x" * 300}
    assert sent == [2, 2, 2, 2]


def test_an_event_that_does_not_fit_its_schema_fails_only_its_step(database_url: str) -> None:
    @workflow("expecting")
    def expecting(step: Step) -> Steps[Any]:
        found: list[str] = []
        for number in range(3):
            try:
                event = yield from step.wait_for(f"wait-{number}", "go", schema=SignUp)
                found.append(event.email)
            except StepFailedError as error:
                found.append(error.error_type)
        return found

    with WorkflowEngine(database_url, workflows=[expecting]) as engine:
        run = engine.start_workflow(expecting)
        engine.trigger_event(run.id, "go", {"email": 5})
        engine.trigger_event(run.id, "go")
        engine.trigger_event(run.id, "go", {"email": "e", "age": 5})
        engine.worker().run_until_idle("20s")
        assert engine.get_run(run.id).output == ["InvalidInputError", "InvalidInputError", "e"]
        assert value(database_url, "select count(*) from pgworkflows.events where consumed_at is null") == 0


# --- enormous errors


@workflow("loud")
def loud(step: Step, input: str) -> Steps[None]:
    yield from step.run("shout", shout, input)


def shout(what: str) -> NoReturn:
    raise RuntimeError(f"begin {what * 3_000_000} end")


@workflow("loud by itself")
def loud_by_itself(step: Step, input: str) -> Steps[None]:
    yield from step.run("nothing", nothing)
    shout(input)


@pytest.mark.parametrize("shouting", [loud, loud_by_itself], ids=["of a step", "of a handler"])
@pytest.mark.parametrize("what", ["x", "ü\0", "\ud800"], ids=ascii)
def test_an_enormous_error_is_stored_without_its_middle(
    database_url: str, shouting: Workflow[str, None], what: str
) -> None:
    with WorkflowEngine(database_url, workflows=[shouting]) as engine:
        run = engine.start_workflow(shouting, "x")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{__name__}.shout", lambda given: honest_shout(what))
            engine.worker().run_until_idle("60s")
        error = engine.get_run(run.id).error
    assert error is not None
    for text in (error["message"], error["traceback"]):
        assert 100_000 < len(text) < 1_000_000
        assert " characters left out … " in text
        assert text.rstrip().endswith(" end")
    assert error["message"].startswith("begin ")
    assert error["type"] == "RuntimeError"


honest_shout = shout
