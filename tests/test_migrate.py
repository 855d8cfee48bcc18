"""Migrations: forward only, each whole or not at all, many processes at once, any schema; and what they make."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from conftest import Databases
from psycopg import sql
from waiting import until
from working import rows, value

from pgworkflows import (
    ConfigurationError,
    RunStatus,
    Step,
    StepRecord,
    Steps,
    WorkflowClient,
    WorkflowEngine,
    WorkflowRun,
    workflow,
)
from pgworkflows.migrate import Migration, migrate, migrations, plan

NEXT = migrations()[-1].number + 1
CROWD = Path(__file__).parent / "programs" / "migrating_crowd.py"
TABLES = {"runs", "steps", "events", "queue", "workers", "sleepers", "schedules", "workflows", "roles", "migrations"}


@workflow("double")
def double(step: Step, input: int) -> Steps[int]:
    once = yield from step.run("once", abs, input)
    return 2 * once


def tables(url: str) -> set[str]:
    """All tables in the database, by schema and name."""
    found = rows(
        url,
        "select n.nspname || '.' || c.relname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace "
        "where c.relkind in ('r', 'p', 'v', 'S') and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')",
    )
    return {name for (name,) in found}


def pretend(monkeypatch: pytest.MonkeyPatch, *more: Migration) -> None:
    """Let the code bring further migrations."""
    known = migrations()
    monkeypatch.setattr("pgworkflows.migrate.migrations", lambda: (*known, *more))


# --- migrate and plan


def test_migrations_are_numbered_without_gaps_and_plain_ascii() -> None:
    found = migrations()
    assert [migration.number for migration in found] == list(range(1, len(found) + 1))
    for migration in found:
        assert migration.sql.isascii()  # a database of any encoding can hold it
        assert 0 < migration.oldest_code <= migration.number
        assert migration.name.startswith(f"{migration.number:04}_")


def test_migrate_does_what_plan_says_and_then_nothing(empty_database_url: str) -> None:
    planned = plan(empty_database_url)
    assert planned == migrations()
    assert tables(empty_database_url) == set()
    assert migrate(empty_database_url) == planned
    assert {f"pgworkflows.{name}" for name in TABLES} <= tables(empty_database_url)
    made = tables(empty_database_url)
    recorded = rows(empty_database_url, "select number, name, oldest_code, applied_at from pgworkflows.migrations")
    assert [row[:3] for row in recorded] == [(m.number, m.name, m.oldest_code) for m in planned]
    assert plan(empty_database_url) == ()
    assert migrate(empty_database_url) == ()
    assert tables(empty_database_url) == made
    assert (
        rows(empty_database_url, "select number, name, oldest_code, applied_at from pgworkflows.migrations") == recorded
    )


def test_a_client_an_engine_and_a_worker_migrate(databases: Databases) -> None:
    with databases.fresh() as url, WorkflowClient(url) as client:
        assert client.migrate() == migrations()
        assert client.migrate() == ()
    with databases.fresh() as url, WorkflowEngine(url) as engine:
        engine.start(worker=False)
        assert plan(url) == ()
    with databases.fresh() as url, WorkflowEngine(url) as engine:
        engine.worker().run_until_idle("20s")
        assert plan(url) == ()


def test_eight_processes_migrate_at_once_and_each_migration_is_done_once(empty_database_url: str) -> None:
    done = subprocess.run(
        [sys.executable, str(CROWD), empty_database_url, "8"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    # The lock is taken for each migration anew: several may take turns.
    applied = [number for line in done.stdout.splitlines() for number in json.loads(line)]
    assert sorted(applied) == [migration.number for migration in migrations()]
    assert value(empty_database_url, "select count(*) from pgworkflows.migrations") == len(migrations())


@pytest.mark.parametrize(
    "schema",
    [
        'My "Flows"',
        "it's 100% sure; %s",
        "UPPER",
        "ünïcödé 🐘",
        "a.b",
        "select",
        "back\\slash",
        "new\nline -- /*",
        "cost $5 $$ $function$ $body0$",
        "x" * 63,
        "public",
        "1",
    ],
)
def test_any_schema_name_works(empty_database_url: str, schema: str) -> None:
    with WorkflowEngine(empty_database_url, workflows=[double], schema=schema) as engine:
        assert plan(empty_database_url, schema) == migrations()
        engine.start()
        run = engine.start_workflow(double, 21, idempotency_key="k")
        assert engine.wait_for_run(run.id, timeout="20s").output == 42
        assert engine.get_runs(workflow_id="double", statuses=["completed"]).items == [engine.get_run(run.id)]
        assert engine.check_progress(run.id).completion_percentage == 100
        later = engine.start_workflow(double, 1, delay="1h")
        for change in (engine.pause_workflow, engine.resume_workflow, engine.cancel_workflow, engine.retry_workflow):
            change(later.id)
        assert engine.fast_forward_workflow(later.id).id == later.id
    assert {name.removeprefix(f"{schema}.") for name in tables(empty_database_url)} >= TABLES
    assert value(empty_database_url, "select count(*) from pg_namespace where nspname = %s", schema) == 1
    assert plan(empty_database_url, schema) == ()
    statement = sql.SQL("select status from {}.start_workflow('double')").format(sql.Identifier(schema))
    assert value(empty_database_url, statement.as_string().replace("%", "%%")) == "pending"


def test_schemas_in_one_database_do_not_see_each_other(empty_database_url: str) -> None:
    with (
        WorkflowEngine(empty_database_url, workflows=[double], schema="one") as one,
        WorkflowEngine(empty_database_url, workflows=[double], schema="two") as two,
    ):
        one.migrate()
        two.migrate()
        mine, theirs = (
            one.start_workflow(double, 1, idempotency_key="k"),
            two.start_workflow(double, 1, idempotency_key="k"),
        )
        one.worker().run_until_idle("20s")
        assert one.get_run(mine.id).status is RunStatus.COMPLETED
        assert two.get_run(theirs.id).status is RunStatus.PENDING
        assert [run.id for run in one.get_runs().items] == [mine.id]


@pytest.mark.parametrize("schema", ["", "x" * 64, "ü" * 32, "pg_flows", "a\0b", "\ud800", 5, None, b"x"])
def test_a_name_that_no_schema_can_have_is_refused(schema: object) -> None:
    expected = ValueError if isinstance(schema, str) else TypeError
    with pytest.raises(expected, match="the schema"):
        WorkflowClient("postgresql://nobody@127.0.0.1:1/none", schema=schema)  # type: ignore[arg-type]
    with pytest.raises(expected, match="the schema"):
        migrate("postgresql://nobody@127.0.0.1:1/none", schema)  # type: ignore[arg-type]


# --- what stands in the way


def record(url: str, number: int, oldest_code: int) -> None:
    rows(url, "insert into pgworkflows.migrations values (%s, 'future', %s)", number, oldest_code)


def test_a_database_that_needs_newer_code_is_refused(database_url: str) -> None:
    record(database_url, 99, oldest_code=99)
    before = tables(database_url)
    known = migrations()[-1].number
    refusals = f"needs code that knows migration 0099; this code knows up to {known:04}: upgrade pgworkflows"
    with WorkflowEngine(database_url, workflows=[double]) as engine:
        for call in (
            engine.migrate,
            engine.start,
            engine.worker().run_until_idle,
            engine.worker().run_forever,
            lambda: plan(database_url),
        ):
            with pytest.raises(ConfigurationError, match=refusals):
                call()
    assert tables(database_url) == before
    assert rows(database_url, "select * from pgworkflows.workflows") == []
    assert rows(database_url, "select * from pgworkflows.workers") == []


def test_a_newer_database_that_this_code_can_work_with_is_accepted(database_url: str) -> None:
    record(database_url, 99, oldest_code=1)
    assert plan(database_url) == ()
    assert migrate(database_url) == ()
    with WorkflowEngine(database_url, workflows=[double]) as engine:
        run = engine.start_workflow(double, 4)
        engine.worker().run_until_idle("20s")
        assert engine.get_run(run.id).output == 8


@pytest.mark.parametrize(
    "foreign",
    [
        "create table public.queue (id int)",
        "create view public.runs as select 1 as id",
        "create table public.migrations (id serial, name text, run_on timestamptz)",
        "create sequence public.claims",
    ],
)
def test_a_foreign_table_in_the_way_is_refused_and_nothing_is_written(empty_database_url: str, foreign: str) -> None:
    rows(empty_database_url, foreign)
    name = foreign.split("public.")[1].split(" ")[0]
    before = tables(empty_database_url)
    refusal = rf"schema 'public' holds tables that are not pgworkflows' \({name}\): choose another schema= or move them"
    with WorkflowEngine(empty_database_url, schema="public") as engine:
        for call in (engine.migrate, engine.start, lambda: plan(empty_database_url, "public")):
            with pytest.raises(ConfigurationError, match=refusal):
                call()
    assert tables(empty_database_url) == before
    assert migrate(empty_database_url) == migrations()  # the default schema is free


@pytest.mark.parametrize(
    "foreign",
    [
        "create function public.uuid7() returns int language sql as 'select 1'",
        "create type public.outcome as enum ('good', 'bad')",
        "create table public.customers (id int); create index queue_ready on public.customers (id)",
    ],
)
def test_other_foreign_objects_in_the_way_are_refused_too(empty_database_url: str, foreign: str) -> None:
    for statement in foreign.split("; "):
        rows(empty_database_url, statement)
    before = tables(empty_database_url)
    with pytest.raises(
        ConfigurationError, match="something that is not pgworkflows' has a name that it needs .*already exists"
    ):
        migrate(empty_database_url, "public")
    assert tables(empty_database_url) == before


def test_foreign_tables_that_are_not_in_the_way_are_left_alone(empty_database_url: str) -> None:
    rows(empty_database_url, "create table public.customers (name text)")
    rows(empty_database_url, "insert into public.customers values ('ann')")
    assert migrate(empty_database_url, "public") == migrations()
    assert rows(empty_database_url, "select * from public.customers") == [("ann",)]


def test_tables_restored_without_their_comments_are_known_again(database_url: str) -> None:
    rows(database_url, "comment on table pgworkflows.migrations is null")
    assert migrate(database_url) == ()


# --- failures and locks


def test_a_failing_migration_is_rolled_back_whole(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tables(database_url)
    broken = Migration(NEXT, "0099_broken", 1, "create table pgworkflows.new (id int); select 1 / 0;")
    with monkeypatch.context() as patch:
        pretend(patch, broken)
        with pytest.raises(
            ConfigurationError,
            match="migration 0099_broken of schema 'pgworkflows' failed, and nothing of it was applied: division by",
        ):
            migrate(database_url)
        assert [migration.name for migration in plan(database_url)] == ["0099_broken"]
    assert tables(database_url) == before
    assert value(database_url, "select max(number) from pgworkflows.migrations") == NEXT - 1
    pretend(monkeypatch, Migration(NEXT, "0099_mended", 1, "create table pgworkflows.new (id int)"))
    assert [migration.name for migration in migrate(database_url)] == ["0099_mended"]
    assert tables(database_url) == {*before, "pgworkflows.new"}


def test_the_migrations_before_a_failing_one_stay(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Migration(NEXT, "0099_broken", 1, "select 1 / 0"))
    with pytest.raises(ConfigurationError, match="0099_broken"):
        migrate(empty_database_url)
    assert [migration.number for migration in plan(empty_database_url)] == [NEXT]
    with WorkflowClient(empty_database_url) as client:
        assert client.start_workflow("a").status is RunStatus.PENDING


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are waited for in turns of 50 ms."""
    monkeypatch.setattr("pgworkflows.migrate.LOCK_TIMEOUT_MS", 50)


LOCK = "select pg_advisory_xact_lock(hashtextextended('pgworkflows migrations pgworkflows', 0))"


@pytest.mark.usefixtures("impatient")
def test_migrating_waits_for_a_lock_that_another_session_holds(empty_database_url: str) -> None:
    applied: list[Sequence[Migration]] = []
    with psycopg.connect(empty_database_url) as holder:
        holder.execute(LOCK)
        thread = threading.Thread(target=lambda: applied.append(migrate(empty_database_url)))
        thread.start()
        # It has given up its turn more than once, and asks again.
        asked = (
            "select count(*) from pg_stat_activity where application_name = 'pgworkflows' and wait_event = 'advisory'"
        )
        until(lambda: value(empty_database_url, asked) == 1, "migrate asks for the lock")
        time.sleep(0.2)
        assert thread.is_alive()
        until(lambda: value(empty_database_url, asked) == 1, "migrate asks again")
        assert tables(empty_database_url) == set()
        holder.commit()
        thread.join(20)
    assert applied == [migrations()]


@pytest.mark.usefixtures("impatient")
def test_migrating_gives_up_when_a_lock_is_never_free(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgworkflows.migrate.LOCK_PATIENCE_S", 0.1)
    with psycopg.connect(empty_database_url) as holder:
        holder.execute(LOCK)
        with pytest.raises(ConfigurationError, match="could not be migrated: another session held a lock for over"):
            migrate(empty_database_url)
    assert tables(empty_database_url) == set()


@pytest.mark.usefixtures("impatient")
def test_a_lock_on_another_schema_does_not_hold_up(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url) as holder:
        holder.execute(LOCK)
        assert migrate(empty_database_url, "other") == migrations()


# --- who may migrate, and where


@pytest.fixture
def limited(empty_database_url: str) -> Iterator[tuple[str, str]]:
    """A role that may connect and nothing else: its name and its connection string."""
    role = f"limited_{value(empty_database_url, 'select current_database()')}"
    rows(empty_database_url, f"create role {role} login password 'secret'")
    user, _, rest = empty_database_url.partition("@")
    yield role, f"{user.split('://')[0]}://{role}:secret@{rest}"
    rows(empty_database_url, f"drop owned by {role} cascade")
    rows(empty_database_url, f"drop role {role}")


def test_a_role_without_rights_is_told_so(empty_database_url: str, limited: tuple[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="the database user lacks a privilege.*permission denied for database"):
        migrate(limited[1])
    migrate(empty_database_url)
    with WorkflowClient(limited[1]) as client:
        with pytest.raises(
            ConfigurationError, match="the database user lacks a privilege.*permission denied for schema"
        ) as e:
            client.start_workflow("a")
        assert "secret" not in str(e.value)
        with pytest.raises(ConfigurationError, match="lacks a privilege"):
            client.migrate()


def test_a_role_migrates_the_schema_that_an_administrator_made_for_it(
    empty_database_url: str, limited: tuple[str, str]
) -> None:
    role, url = limited
    rows(empty_database_url, f"create schema flows authorization {role}")
    assert migrate(url, "flows") == migrations()
    with WorkflowEngine(url, workflows=[double], schema="flows") as engine:
        run = engine.start_workflow(double, 3)
        engine.worker().run_until_idle("20s")
        assert engine.get_run(run.id).output == 6


@pytest.mark.parametrize("encoding", ["LATIN1", "LATIN2", "SQL_ASCII"])
def test_a_database_of_any_encoding_can_be_migrated(server: str, databases: Databases, encoding: str) -> None:
    name = f"pgworkflows_test_encoding_{encoding.lower()}"
    rows(server, f"drop database if exists {name}")
    rows(server, f"create database {name} encoding '{encoding}' template template0 lc_collate 'C' lc_ctype 'C'")
    try:
        with WorkflowEngine(databases.url_for(name), workflows=[double]) as engine:
            engine.start()
            run = engine.start_workflow(double, 5, resource_id="ä")
            assert engine.wait_for_run(run.id, timeout="20s").resource_id == "ä"
            assert engine.get_runs(resource_id="ä").items[0].output == 10
    finally:
        databases.drop(name)


# --- what is made


def test_every_table_and_column_has_a_comment(database_url: str) -> None:
    silent = rows(
        database_url,
        """
        select c.relname, a.attname
        from pg_class as c
        left join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and c.relkind = 'r'
        where c.relnamespace = 'pgworkflows'::regnamespace
            and c.relkind in ('r', 'S')
            and not exists (select from pg_depend as d where d.objid = c.oid and d.deptype = 'i')
            and (
                obj_description(c.oid, 'pg_class') is null
                or (c.relkind = 'r' and col_description(c.oid, a.attnum) is null)
            )
        """,
    )
    assert silent == []
    assert (
        value(
            database_url,
            "select count(*) from pg_class where relnamespace = 'pgworkflows'::regnamespace and relkind = 'r'",
        )
        >= 8
    )


@pytest.mark.parametrize(("table", "kind"), [("runs", WorkflowRun), ("steps", StepRecord)])
def test_the_columns_are_the_fields(database_url: str, table: str, kind: type[WorkflowRun] | type[StepRecord]) -> None:
    found = rows(
        database_url,
        "select attname from pg_attribute where attrelid = ('pgworkflows.' || %s)::regclass and attnum > 0",
        table,
    )
    assert {field.name for field in fields(kind)} <= {name for (name,) in found}


def test_every_time_has_a_time_zone(database_url: str) -> None:
    times = rows(
        database_url,
        """
        select c.relname || '.' || a.attname, a.atttypid::regtype::text
        from pg_class as c join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
        where c.relnamespace = 'pgworkflows'::regnamespace and c.relkind = 'r'
            and (a.attname like '%%\\_at' or a.atttypid::regtype::text ~ 'timestamp|date')
        """,
    )
    assert len(times) > 15
    assert [time for time in times if time[1] != "timestamp with time zone"] == []


def test_payloads_are_json_and_keep_their_order_and_their_floats(database_url: str) -> None:
    kinds = rows(
        database_url,
        "select distinct data_type from information_schema.columns where table_schema = 'pgworkflows' "
        "and column_name in ('input', 'output', 'error', 'data')",
    )
    assert kinds == [("json",)]


def test_every_function_has_a_fixed_search_path_or_is_bound_at_its_definition(database_url: str) -> None:
    loose = rows(
        database_url,
        """
        select p.proname from pg_proc as p
        where p.pronamespace = 'pgworkflows'::regnamespace
            and p.prosqlbody is null
            and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)
        """,
    )
    assert loose == []


def test_ids_are_ordered_uuids_of_version_7_that_tell_the_time(database_url: str) -> None:
    several = b"select pgworkflows.uuid7() from generate_series(1, %s)"
    with (
        psycopg.connect(database_url, autocommit=True, prepare_threshold=None) as one,
        psycopg.connect(database_url, autocommit=True, prepare_threshold=None) as other,
    ):
        before = datetime.now(UTC) - timedelta(seconds=1)
        made: list[UUID] = []
        for conn, count in ((one, 20_000), (other, 1000), *[(one, 1), (other, 1)] * 50):
            made += [made_id for (made_id,) in conn.execute(several, [count]).fetchall()]
        after = datetime.now(UTC) + timedelta(seconds=1)
    assert {(each.version, each.variant) for each in made} == {(7, "specified in RFC 4122")}
    assert len(set(made)) == len(made)
    assert made == sorted(made)
    told = datetime.fromtimestamp((made[0].int >> 80) / 1000, UTC)
    assert before < told < after
