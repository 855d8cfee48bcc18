"""The operations as SQL functions: for psql, triggers and other languages, in their own transactions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Json, Jsonb
from pydantic import BaseModel
from waiting import until
from working import HandWorker, rows, value, working

from pgworkflows import RunStatus, Step, Steps, StepStatus, WorkflowClient, WorkflowEngine, WorkflowRun, workflow

Sql = psycopg.Connection[dict[str, Any]]
MISSING, WRONG_STATUS, CONFLICT, BAD_ARGUMENT = "PW001", "PW002", "PW003", "22023"


class SignUp(BaseModel):
    email: str


@workflow("welcome")
def welcome(step: Step, input: SignUp) -> Steps[Any]:
    return (yield from step.wait_for("confirmation", "confirmed"))


@pytest.fixture
def client(database_url: str) -> Iterator[WorkflowClient]:
    with WorkflowClient(database_url) as client:
        yield client


@pytest.fixture
def sql(database_url: str) -> Iterator[Sql]:
    """A plain connection, as any language has one."""
    with psycopg.Connection[dict[str, Any]].connect(database_url, autocommit=True, row_factory=dict_row) as conn:
        yield conn


def call(sql: Sql, statement: str, *params: object) -> dict[str, Any]:
    row = sql.execute(statement.encode(), params).fetchone()
    assert row is not None
    return row


def refusal(sql: Sql, statement: str, *params: object) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as e:
        sql.execute(statement.encode(), params)
    return e.value


# --- what the functions take and return


def test_the_functions_have_pythons_parameters_in_pythons_order(sql: Sql) -> None:
    found = sql.execute(
        """
        select p.proname, p.proargnames, p.pronargdefaults, p.prorettype::regtype::text as returns,
            pg_get_function_arguments(p.oid) as arguments
        from pg_proc as p
        where p.pronamespace = 'pgworkflows'::regnamespace
            and p.proname = any (%s)
        """,
        [["start_workflow", "trigger_event", "pause_workflow", "resume_workflow", "cancel_workflow", "retry_workflow"]],
    ).fetchall()
    assert {row["returns"] for row in found} == {"pgworkflows.runs"}
    names = {row["proname"]: row["proargnames"] for row in found}
    start = ["workflow", "input", "resource_id", "idempotency_key", "priority", "retries", "timeout", "queue"]
    assert names == {
        "start_workflow": [*start, "singleton", "delay", "run_at"],
        "trigger_event": ["run_id", "event_name", "data", "resource_id", "idempotency_key"],
        "pause_workflow": ["run_id", "resource_id"],
        "resume_workflow": ["run_id", "resource_id"],
        "cancel_workflow": ["run_id", "resource_id"],
        "retry_workflow": ["run_id", "resource_id"],
    }
    for row in found:
        for default in row["arguments"].split("DEFAULT ")[1:]:
            assert default.startswith("NULL")
    needed = {row["proname"]: len(row["proargnames"]) - row["pronargdefaults"] for row in found}
    assert needed["pause_workflow"] == needed["retry_workflow"] == 1
    assert needed["trigger_event"] == 2
    assert min(len(r["proargnames"]) - r["pronargdefaults"] for r in found if r["proname"] == "start_workflow") == 1


def test_every_function_says_what_it_does_and_what_it_raises(sql: Sql) -> None:
    found = sql.execute(
        "select p.proname, obj_description(p.oid, 'pg_proc') as said from pg_proc as p "
        "where p.pronamespace = 'pgworkflows'::regnamespace"
    ).fetchall()
    said = {row["proname"]: row["said"] for row in found}
    for name in ("trigger_event", "pause_workflow", "resume_workflow", "cancel_workflow", "retry_workflow"):
        assert MISSING in said[name]
        assert WRONG_STATUS in said[name]
    assert any(
        CONFLICT in row["said"] and BAD_ARGUMENT in row["said"] for row in found if row["proname"] == "start_workflow"
    )


def test_start_workflow_returns_the_run(sql: Sql, client: WorkflowClient) -> None:
    row = call(sql, "select * from pgworkflows.start_workflow('welcome', '{\"email\": \"e\"}')")
    run = client.get_run(row["id"])
    shared = set(row) & set(vars(run))
    assert shared == set(vars(run))
    assert {name: row[name] for name in shared} == {name: getattr(run, name) for name in shared}
    assert (run.status, run.input) == (RunStatus.PENDING, {"email": "e"})


def test_the_workflow_is_all_that_a_start_needs(sql: Sql) -> None:
    row = call(sql, "select * from pgworkflows.start_workflow('a')")
    assert (row["workflow_id"], row["input"], row["resource_id"], row["priority"]) == ("a", None, None, 0)


def test_every_option_can_be_given_by_name_or_by_place(sql: Sql) -> None:
    at = datetime(2040, 1, 1, tzinfo=UTC)
    by_name = call(
        sql,
        """
        select * from pgworkflows.start_workflow(
            workflow => 'a', input => '[1]', resource_id => 'r', idempotency_key => 'k', priority => 'high',
            retries => 3, timeout => '1 hour', queue => 'q', singleton => true, run_at => '2040-01-01T00:00:00Z'
        )
        """,
    )
    by_place = call(
        sql,
        "select * from pgworkflows.start_workflow('a', '[1]', 'r', 'l', 'high', 3, '1 hour', 'q', false, null, %s)",
        at,
    )
    for row in (by_name, by_place):
        assert (row["input"], row["resource_id"], row["priority"], row["max_retries"]) == ([1], "r", 100, 3)
        assert (row["queue"], row["scheduled_at"], row["timeout_at"]) == ("q", at, at + timedelta(hours=1))
    delayed = call(sql, "select * from pgworkflows.start_workflow('a', delay => interval '90 minutes')")
    assert delayed["scheduled_at"] - delayed["created_at"] == timedelta(minutes=90)


def test_payloads_may_be_json_jsonb_or_text(sql: Sql) -> None:
    for given in (
        "'{\"a\": [1, null]}'",
        "'{\"a\": [1, null]}'::text",
        "'{\"a\": [1, null]}'::json",
        "'{\"a\": [1, null]}'::jsonb",
        "jsonb_build_object('a', array[1, null])",
        "json_build_object('a', array[1, null])",
        "(select to_jsonb(t) from (select array[1, null] as a) as t)",
    ):
        run = call(sql, f"select * from pgworkflows.start_workflow('a', {given})")
        assert run["input"] == {"a": [1, None]}
        call(sql, f"select * from pgworkflows.trigger_event('{run['id']}', 'go', {given})")
        assert call(sql, f"select data from pgworkflows.events where run_id = '{run['id']}'")["data"] == run["input"]


def test_a_driver_may_send_its_own_types(sql: Sql) -> None:
    start = "select * from pgworkflows.start_workflow(%s, %s, priority => %s, retries => %s, delay => %s)"
    for payload in ('{"a": 1}', Json({"a": 1}), Jsonb({"a": 1})):
        row = call(sql, start, "a", payload, 7, 2, timedelta(seconds=5))
        assert (row["input"], row["priority"], row["max_retries"]) == ({"a": 1}, 7, 2)
    row = call(sql, start, "a", None, None, None, None)
    assert (row["input"], row["priority"], row["max_retries"], row["scheduled_at"]) == (None, 0, 0, None)


def test_a_priority_is_a_name_or_a_number(sql: Sql) -> None:
    given = {"'high'": 100, "'low'": -100, "'normal'": 0, "-1000": -1000, "7::bigint": 7, "'7'": 7, "null": 0}
    for priority, number in given.items():
        row = call(sql, f"select * from pgworkflows.start_workflow('a', priority => {priority})")
        assert (priority, row["priority"]) == (priority, number)


def test_options_left_out_are_the_declared_ones(sql: Sql, database_url: str) -> None:
    declared = workflow("a", retries=4, priority="low", queue="slow", timeout="1h")(welcome.function)
    with WorkflowEngine(database_url, workflows=[declared]) as engine:
        engine.start(worker=False)
    row = call(sql, "select * from pgworkflows.start_workflow('a')")
    assert (row["max_retries"], row["priority"], row["queue"]) == (4, -100, "slow")
    assert row["timeout_at"] - row["created_at"] == timedelta(hours=1)


def test_a_repeated_key_returns_its_run_and_a_foreign_one_is_a_conflict(sql: Sql) -> None:
    first = call(sql, "select * from pgworkflows.start_workflow('a', idempotency_key => 'k')")
    assert call(sql, "select * from pgworkflows.start_workflow('a', idempotency_key => 'k', priority => 5)") == first
    error = refusal(sql, "select * from pgworkflows.start_workflow('b', idempotency_key => 'k')")
    assert error.sqlstate == CONFLICT
    assert f"idempotency key k is taken by run {first['id']} of workflow a" in str(error)
    assert error.diag.message_hint is not None
    assert refusal(sql, "select pgworkflows.start_workflow('a', null, 'r', 'k')").sqlstate == CONFLICT
    assert call(sql, "select count(*) as runs from pgworkflows.runs") == {"runs": 1}


def test_the_other_operations_return_the_run_as_it_is_then(sql: Sql, client: WorkflowClient) -> None:
    run_id = call(sql, "select * from pgworkflows.start_workflow('a', resource_id => 'r')")["id"]
    seen: list[tuple[str, WorkflowRun]] = []
    for name in ("pause", "resume", "cancel", "retry"):
        row = call(sql, f"select * from pgworkflows.{name}_workflow(run_id => %s, resource_id => 'r')", run_id)
        run = client.get_run(run_id)
        assert {key: row[key] for key in vars(run)} == vars(run)
        seen.append((name, run))
    assert [(name, str(run.status)) for name, run in seen] == [
        ("pause", "paused"),
        ("resume", "pending"),
        ("cancel", "cancelled"),
        ("retry", "pending"),
    ]
    row = call(sql, "select * from pgworkflows.trigger_event(%s, 'go', data => '5')", str(run_id))
    assert row["id"] == run_id


def test_fast_forward_exists_in_sql_too(sql: Sql, database_url: str) -> None:
    with WorkflowEngine(database_url, workflows=[welcome]) as engine:
        run = engine.start_workflow(welcome, {"email": "e"})
        engine.worker().run_until_idle("20s")
        row = call(sql, "select * from pgworkflows.fast_forward_workflow(%s, jsonb_build_object('at', 'noon'))", run.id)
        assert row["status"] == "pending"
        engine.worker().run_until_idle("20s")
        assert engine.get_run(run.id).output == {"at": "noon"}


# --- refusals


@pytest.mark.parametrize("name", ["pause_workflow", "resume_workflow", "cancel_workflow", "retry_workflow"])
def test_a_refused_operation_raises_its_documented_sqlstate(sql: Sql, client: WorkflowClient, name: str) -> None:
    unknown = uuid4()
    error = refusal(sql, f"select * from pgworkflows.{name}(%s)", unknown)
    assert (error.sqlstate, error.diag.message_primary) == (MISSING, f"run {unknown} was not found")
    run = client.start_workflow("a", resource_id="r")
    assert refusal(sql, f"select * from pgworkflows.{name}(%s, 'other')", run.id).sqlstate == MISSING
    if name in ("pause_workflow", "cancel_workflow"):
        run = client.cancel_workflow(run.id)
    error = refusal(sql, f"select * from pgworkflows.{name}(%s)", run.id)
    assert error.sqlstate == WRONG_STATUS
    assert str(error.diag.message_primary).startswith(f"run {run.id} is {run.status}; only ")
    assert client.get_run(run.id) == run


def test_a_refused_event_raises_its_documented_sqlstate(sql: Sql, client: WorkflowClient) -> None:
    assert refusal(sql, "select pgworkflows.trigger_event(%s, 'go')", uuid4()).sqlstate == MISSING
    run = client.cancel_workflow(client.start_workflow("a").id)
    error = refusal(sql, "select pgworkflows.trigger_event(%s, 'go')", run.id)
    assert error.sqlstate == WRONG_STATUS
    assert error.diag.message_primary == f"run {run.id} is cancelled; only unfinished runs can get events"


OUT_OF_BOUNDS = [
    ("null", "the workflow id must not be null"),
    ("''", "the workflow id must have 1 to 256 characters; this one has 0"),
    ("repeat('x', 257)", "the workflow id must have 1 to 256 characters; this one has 257"),
    ("'a', resource_id => ''", "the resource_id must have 1 to 256"),
    ("'a', repeat('1', 67108865)", "the input must have at most 67108864 characters; this one has 67108865"),
    ("'a', idempotency_key => repeat('x', 257)", "the idempotency_key must have 1 to 256"),
    ("'a', queue => ''", "the queue must have 1 to 256"),
    (
        "'a', priority => 'urgent'",
        "the priority must be high, normal, low or a number from -1000 to 1000, not urgent",
    ),
    ("'a', priority => 1001", "not 1001"),
    ("'a', priority => 99999999999999", "not 99999999999999"),
    ("'a', priority => 1.5", "not 1.5"),
    ("'a', retries => -1", "retries must lie within 0 and 1000000, not -1"),
    ("'a', timeout => '0'", "the timeout must be greater than zero"),
    ("'a', timeout => '-1 hour'", "the timeout must be greater than zero"),
    ("'a', timeout => '2000 years'", "the timeout must be greater than zero and at most 365000 days"),
    ("'a', delay => '-1 second'", "the delay must lie within zero and 365000 days"),
    ("'a', delay => '1 s', run_at => now()", "give delay or run_at, not both"),
    ("'a', run_at => 'infinity'", "run_at must lie within the years 2 and 9998, not infinity"),
    ("'a', run_at => '-infinity'", "run_at must lie within the years 2 and 9998"),
    ("'a', run_at => '20000-01-01Z'", "run_at must lie within the years 2 and 9998"),
]


def test_an_argument_out_of_bounds_is_refused(nothing_written: Sql) -> None:
    for arguments, said in OUT_OF_BOUNDS:
        error = refusal(nothing_written, f"select pgworkflows.start_workflow({arguments})")
        assert (arguments, error.sqlstate) == (arguments, BAD_ARGUMENT)
        assert said in str(error.diag.message_primary)


UNREADABLE = [
    ("'{'", "22P02"),
    ("''", "22P02"),
    ("'NaN'", "22P02"),
    ('\'{"a": "\\u0000"}\'', "22P05"),
    ('\'{"a": "\\u0000"}\'::json', "22P05"),
    ('\'{"a": "\\ud800"}\'::json', "22P02"),
    ("repeat('[', 100000)", "22023"),
    ("repeat('[', 501) || '1' || repeat(']', 501)", "22023"),
    ("repeat('{\"a\":', 501) || '1' || repeat('}', 501)", "22023"),
]


def test_json_that_could_not_be_read_again_is_refused(sql: Sql, client: WorkflowClient) -> None:
    run = client.start_workflow("b")
    for given, sqlstate in UNREADABLE:
        assert refusal(sql, f"select pgworkflows.start_workflow('a', {given})").sqlstate == sqlstate
        assert refusal(sql, f"select pgworkflows.trigger_event(%s, 'go', {given})", run.id).sqlstate == sqlstate
        assert refusal(sql, f"select pgworkflows.fast_forward_workflow(%s, {given})", run.id).sqlstate == sqlstate
    assert client.get_runs().items == [run]
    assert rows(client.conninfo, "select * from pgworkflows.events") == []


def test_json_of_500_levels_is_kept(sql: Sql, client: WorkflowClient) -> None:
    row = call(sql, "select * from pgworkflows.start_workflow('a', repeat('[', 500) || repeat(']', 500))")
    run = client.get_run(row["id"])
    depth, found = 0, run.input
    while found:
        depth, found = depth + 1, found[0]
    assert depth == 499
    assert client.get_runs().items == [run]


def test_events_need_a_name(sql: Sql, client: WorkflowClient) -> None:
    run = client.start_workflow("a")
    for name, said in (("null", "must not be null"), ("''", "1 to 256"), ("repeat('x', 257)", "1 to 256")):
        error = refusal(sql, f"select pgworkflows.trigger_event(%s, {name})", run.id)
        assert (error.sqlstate, said in str(error)) == (BAD_ARGUMENT, True)
    assert rows(client.conninfo, "select * from pgworkflows.events") == []


@pytest.fixture
def nothing_written(sql: Sql, database_url: str) -> Iterator[Sql]:
    """A connection; at the end all tables must be empty."""
    yield sql
    tables = ("runs", "queue", "events", "steps")
    counts = {table: value(database_url, f"select count(*) from pgworkflows.{table}") for table in tables}
    assert counts == dict.fromkeys(tables, 0)


def test_a_key_with_a_percent_sign_or_a_colon_is_named_as_it_is(sql: Sql) -> None:
    call(sql, "select * from pgworkflows.start_workflow('a', idempotency_key => '100%:%s')".replace("%", "%%"))
    error = refusal(sql, "select pgworkflows.start_workflow('b', idempotency_key => '100%:%s')".replace("%", "%%"))
    assert "idempotency key 100%:%s is taken" in str(error)


# --- in the caller's transaction

TRIGGER = """
create table public.customers (id int primary key, email text not null);
create function public.greet() returns trigger language plpgsql as $$
begin
    perform pgworkflows.start_workflow(
        'welcome',
        jsonb_build_object('email', new.email),
        resource_id => new.id::text,
        idempotency_key => 'welcome-' || new.id
    );
    return new;
end $$;
create trigger greet after insert on public.customers for each row execute function public.greet();
"""


def test_a_trigger_starts_runs_in_the_transaction_of_the_insert(database_url: str) -> None:
    rows(database_url, TRIGGER)
    with WorkflowEngine(database_url, workflows=[welcome]) as engine:
        with psycopg.connect(database_url) as conn:
            conn.execute("insert into public.customers values (1, 'lost@example.com')")
            conn.rollback()
            conn.execute("insert into public.customers select n, n || '@example.com' from generate_series(2, 4) as n")
            assert engine.get_runs().items == []
        engine.worker().run_until_idle("20s")
        runs = engine.get_runs().items
        assert [(run.resource_id, run.input, str(run.status)) for run in runs] == [
            ("4", {"email": "4@example.com"}, "waiting"),
            ("3", {"email": "3@example.com"}, "waiting"),
            ("2", {"email": "2@example.com"}, "waiting"),
        ]


def test_another_languages_savepoint_survives_a_refusal(sql: Sql, client: WorkflowClient) -> None:
    run = client.cancel_workflow(client.start_workflow("a").id)
    with sql.transaction():
        call(sql, "select pgworkflows.start_workflow('kept')")
        sql.execute("savepoint before")
        assert refusal(sql, "select pgworkflows.cancel_workflow(%s)", run.id).sqlstate == WRONG_STATUS
        sql.execute("rollback to savepoint before")
    assert [found.workflow_id for found in client.get_runs().items] == ["kept", "a"]


def test_temporary_tables_and_search_paths_do_not_lead_the_functions_astray(sql: Sql, client: WorkflowClient) -> None:
    sql.execute("create temporary table queue (run_id uuid)")
    sql.execute("create temporary table runs (id uuid)")
    sql.execute("set search_path = pg_temp, public")
    row = call(sql, "select * from pgworkflows.start_workflow('a')")
    assert client.get_run(row["id"]).status is RunStatus.PENDING
    assert call(sql, "select count(*) as n from pg_temp.queue") == {"n": 0}
    assert call(sql, "select status from pgworkflows.cancel_workflow(%s)", row["id"]) == {"status": "cancelled"}


def asleep(url: str) -> bool:
    return bool(rows(url, "select 1 from pgworkflows.sleepers"))


@pytest.mark.parametrize("by", ["sql", "connection="])
def test_a_start_that_commits_later_wakes_a_sleeping_worker(database_url: str, by: str) -> None:
    # Without its NOTIFY the worker would look again after half a minute.
    with (
        WorkflowEngine(database_url, workflows=[welcome]) as engine,
        working(engine, poll_interval="30s"),
        psycopg.connect(database_url) as conn,
    ):
        until(lambda: asleep(database_url), "the worker sleeps")
        if by == "sql":
            statement = "select (pgworkflows.start_workflow('welcome', '{\"email\": \"e\"}')).id"
            [run_id] = conn.execute(statement).fetchone() or (None,)
        else:
            run_id = engine.start_workflow(welcome, SignUp(email="e"), connection=conn).id
        assert isinstance(run_id, UUID)
        time.sleep(0.1)  # the worker must not be awake by chance when the transaction commits
        committed = time.monotonic()
        conn.commit()
        until(lambda: engine.get_run(run_id).status == "waiting", "the run is waiting")
        assert time.monotonic() - committed < 10
        until(lambda: asleep(database_url), "the worker sleeps")
        if by == "sql":
            conn.execute("select pgworkflows.trigger_event(%s, 'confirmed', '5')", [run_id])
        else:
            engine.trigger_event(run_id, "confirmed", 5, connection=conn)
        time.sleep(0.1)
        committed = time.monotonic()
        conn.commit()
        assert engine.wait_for_run(run_id, timeout="20s").output == 5
        assert time.monotonic() - committed < 10


# --- plain SQL on the tables


def test_a_timeline_is_a_plain_query(sql: Sql, database_url: str) -> None:
    with WorkflowEngine(database_url, workflows=[welcome]) as engine:
        run = engine.start_workflow(welcome, {"email": "e"}, resource_id="user-1")
        engine.worker().run_until_idle("20s")
    row = call(
        sql,
        """
        select r.status, r.input ->> 'email' as email, s.step_id, s.kind, s.status as step_status, s.event_name
        from pgworkflows.runs as r join pgworkflows.steps as s on s.run_id = r.id
        where r.resource_id = 'user-1'
        """,
    )
    assert row == {
        "status": "waiting",
        "email": "e",
        "step_id": "confirmation",
        "kind": "wait_for",
        "step_status": StepStatus.WAITING,
        "event_name": "confirmed",
    }
    assert run.resource_id == "user-1"


def test_the_database_refuses_the_impossible(sql: Sql, client: WorkflowClient, database_url: str) -> None:
    run = client.start_workflow("a")
    with HandWorker(database_url, ["a"]) as hand:
        hand.claim_one()
    impossible = [
        "update pgworkflows.runs set status = 'done'",
        "update pgworkflows.runs set status = 'completed'",
        "update pgworkflows.runs set completed_at = now()",
        "update pgworkflows.runs set status = 'failed', completed_at = now()",
        "update pgworkflows.runs set output = '1'",
        "update pgworkflows.runs set priority = 1001",
        "update pgworkflows.runs set workflow_id = ''",
        "update pgworkflows.runs set max_retries = -1",
        "update pgworkflows.queue set claim_id = null",
        "update pgworkflows.queue set status = 'pending'",
        "update pgworkflows.queue set worker_id = null",
        "update pgworkflows.queue set control = 'dance'",
        f"insert into pgworkflows.events (run_id, name) values ('{run.id}', '')",
        *(
            f"insert into pgworkflows.steps (run_id, position, step_id, kind, status) values ('{run.id}', 0, {step})"
            for step in (
                "'', 'run', 'waiting'",
                "'a', 'jog', 'waiting'",
                "'a', 'run', 'completed'",
                "'a', 'run', 'done'",
            )
        ),
    ]
    for statement in impossible:
        assert refusal(sql, statement).sqlstate == "23514", statement
