"""Who may do what: three roles on a real server do their whole job, and nothing else."""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import psycopg
import pytest
from conftest import Databases
from pages import DOCS, named
from psycopg import sql
from psycopg.conninfo import make_conninfo
from test_docs import run_python
from waiting import until
from working import rows, value, worker_processes, working

from pgworkflows import (
    ConfigurationError,
    IdempotencyConflictError,
    RunStatus,
    Step,
    Steps,
    WorkflowClient,
    WorkflowEngine,
    WorkflowRunInProgressError,
    WorkflowRunNotFoundError,
    migrate,
    workflow,
)
from pgworkflows.inspection import Inspector
from pgworkflows.roles import grant_script

SECRET = "canary-7f3a"
PASSWORD = "opened-by-tests"


@dataclass(frozen=True)
class Estate:
    """A database whose schema belongs to a role, and the roles that this one has let in: name and connection string."""

    admin: str
    names: dict[str, str]

    def url(self, kind: str) -> str:
        return make_conninfo(self.admin, user=self.names[kind], password=PASSWORD)

    def client(self, kind: str = "client") -> WorkflowClient:
        return WorkflowClient(self.url(kind))


@pytest.fixture(scope="module")
def estate(databases: Databases) -> Iterator[Estate]:
    token = secrets.token_hex(4)
    kinds = ("owner", "client", "neighbour", "worker", "reader", "stranger")
    names = {kind: f"pgw test {kind} {token}" for kind in kinds}
    with databases.fresh() as admin:
        estate = Estate(admin, names)
        with psycopg.connect(admin, autocommit=True) as conn:
            for name in names.values():
                conn.execute(
                    sql.SQL("create role {} login password {}").format(sql.Identifier(name), sql.Literal(PASSWORD))
                )
            conn.execute(
                sql.SQL("grant create on database {} to {}").format(
                    sql.Identifier(conn.info.dbname), sql.Identifier(names["owner"])
                )
            )
            # The steps of worker processes write to a table of the application's.
            conn.execute(sql.SQL("grant create on schema public to {}").format(sql.Identifier(names["worker"])))
        try:
            with estate.client("owner") as owner:
                owner.migrate()
                owner.grant(client=names["client"], worker=names["worker"], reader=names["reader"])
                owner.grant(client=names["neighbour"])
            yield estate
        finally:
            with psycopg.connect(admin, autocommit=True) as conn:
                for name in names.values():
                    conn.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(name)))
                    conn.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def refusal(url: str, statement: str) -> str | None:
    """Why the server refuses a statement for want of a right; None when it has that right. Nothing remains of it."""
    with psycopg.connect(url) as conn:
        try:
            conn.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege as error:
            return str(error)
        except psycopg.Error:
            return None
        finally:
            conn.rollback()
    return None


# --- the whole of what each may do

KINDS = ("client", "worker", "reader")
CLIENTS, WORKERS, NOBODY = {"client", "worker"}, {"worker"}, set[str]()
FUNCTIONS: dict[str, set[str]] = {
    "start_workflow": CLIENTS,
    "start_at_once": CLIENTS,
    "try_start_workflow": CLIENTS,
    "try_start_workflows": CLIENTS,
    "trigger_event": CLIENTS,
    "try_trigger_event": CLIENTS,
    "pause_workflow": CLIENTS,
    "try_pause_workflow": CLIENTS,
    "resume_workflow": CLIENTS,
    "try_resume_workflow": CLIENTS,
    "cancel_workflow": CLIENTS,
    "try_cancel_workflow": CLIENTS,
    "retry_workflow": CLIENTS,
    "try_retry_workflow": CLIENTS,
    "check_name": CLIENTS,
    "check_json": CLIENTS,
    "check_times": CLIENTS,
    "priority_number": CLIENTS,
    "unwrap": CLIENTS,
    "fast_forward_workflow": WORKERS,
    "try_fast_forward_workflow": WORKERS,
    "pause_schedule": WORKERS,
    "try_pause_schedule": WORKERS,
    "resume_schedule": WORKERS,
    "try_resume_schedule": WORKERS,
    "trigger_schedule": WORKERS,
    "try_trigger_schedule": WORKERS,
    "unwrap_schedule": WORKERS,
    "channel": WORKERS,
    "worker_lock_key": WORKERS,
    "register_worker": WORKERS,
    "declare_workflows": WORKERS,
    "serve_workflows": WORKERS,
    "beat": WORKERS,
    "declare_dead": WORKERS,
    "sleep": WORKERS,
    "claim": WORKERS,
    "flush": WORKERS,
    "flush_results": WORKERS,
    "take_over": WORKERS,
    "release_unheld": WORKERS,
    "unregister_worker": WORKERS,
    "due_schedules": WORKERS,
    "fire_schedule": WORKERS,
    "prune_runs": WORKERS,
    "caller": NOBODY,
    "cancel_family": NOBODY,
    "check_start": NOBODY,
    "declare_schedules": NOBODY,
    "drop_removed_schedules": NOBODY,
    "end_waits": NOBODY,
    "give_back": NOBODY,
    "invoke_child": NOBODY,
    "invoke_children": NOBODY,
    "is_hidden": NOBODY,
    "last_step": NOBODY,
    "lock_family": NOBODY,
    "lock_parent": NOBODY,
    "lock_parents": NOBODY,
    "lock_run": NOBODY,
    "low_water": NOBODY,
    "make_ready": NOBODY,
    "may_see": NOBODY,
    "move_on": NOBODY,
    "shown": NOBODY,
    "start_tick": NOBODY,
    "take_back_failures": NOBODY,
    "tell_parents": NOBODY,
    "terms_of": NOBODY,
    "timeout_from": NOBODY,
    "uuid7": NOBODY,
    "wake_due": NOBODY,
    "wake_workers": NOBODY,
}
EVERYTHING = {"worker", "reader"}
READERS: dict[str, set[str]] = {
    "runs": {"client", *EVERYTHING},  # a client: its own
    "steps": {"client", *EVERYTHING},
    "events": EVERYTHING,
    "queue": EVERYTHING,
    "workers": EVERYTHING,
    "sleepers": EVERYTHING,
    "schedules": EVERYTHING,
    "workflows": EVERYTHING,
    "roles": EVERYTHING,
    "migrations": EVERYTHING,
}
COLUMNS_OF_CLIENTS = {("workflows", "id"), ("workflows", "step_ids"), ("workers", "workflows"), ("workers", "queues")}


def functions(url: str) -> list[tuple[str, str]]:
    """The schema's functions: name, and a call of each with nothing."""
    return rows(
        url,
        """
        select p.proname::text, 'select pgworkflows.' || p.proname || '(' || coalesce((
            select string_agg(
                'null::' || case when t.typtype = 'p' then 'text' else a.type::regtype::text end, ', ' order by a.n
            )
            from unnest(p.proargtypes) with ordinality as a (type, n) join pg_type as t on t.oid = a.type
        ), '') || ')'
        from pg_proc as p
        where p.pronamespace = 'pgworkflows'::regnamespace
        """,
    )


class TestEverything:
    def test_every_function_and_table_has_its_row_here(self, estate: Estate) -> None:
        assert {name for name, _ in functions(estate.admin)} == {*FUNCTIONS}
        relations = (
            "select relname::text from pg_class where relnamespace = 'pgworkflows'::regnamespace and relkind = %s"
        )
        assert {name for (name,) in rows(estate.admin, relations, "r")} == {*READERS}
        assert {name for (name,) in rows(estate.admin, relations, "S")} == {"claims", "events_id_seq"}
        assert rows(estate.admin, relations, "v") == rows(estate.admin, relations, "m") == []

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_role_calls_its_functions_and_no_other(self, estate: Estate, kind: str) -> None:
        for name, call in functions(estate.admin):
            refused = refusal(estate.url(kind), call)
            if kind not in FUNCTIONS[name]:
                assert f"permission denied for function {name}" in str(refused), call
            else:
                assert refused is None, call

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_role_reads_its_tables_and_writes_to_none(self, estate: Estate, kind: str) -> None:
        for table, readers in READERS.items():
            columns = rows(
                estate.admin,
                "select attname::text from pg_attribute where attrelid = ('pgworkflows.' || %s)::regclass "
                "and attnum > 0 and not attisdropped",
                table,
            )
            name = f"pgworkflows.{table}"
            may_read = kind in readers
            assert (refusal(estate.url(kind), f"select * from {name}") is None) == may_read, table
            for (column,) in columns:
                may = may_read or (kind == "client" and (table, column) in COLUMNS_OF_CLIENTS)
                assert (refusal(estate.url(kind), f"select {column} from {name}") is None) == may, (table, column)
            first = columns[0][0]
            for statement in (
                f"insert into {name} default values",
                f"update {name} set {first} = default",
                f"delete from {name}",
                f"truncate {name}",
                f"select from {name} for update",
                f"lock table {name} in access exclusive mode",
                f"copy {name} from stdin",
                f"create index on {name} ({first})",
                f"create trigger mine before insert on {name} execute function suppress_redundant_updates_trigger()",
                f"create rule mine as on insert to {name} do instead nothing",
                f"create policy mine on {name} using (true)",
                f"alter table {name} disable row level security",
                f"alter table {name} add column mine text",
                f"drop table {name}",
                f"grant select on {name} to public",
                f"comment on table {name} is 'mine'",
            ):
                if statement.startswith("grant") and may_read:
                    continue  # a mere warning: nothing is granted without the option to
                assert refusal(estate.url(kind), statement) is not None, statement

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_role_changes_nothing_of_the_schema_and_becomes_nobody_else(self, estate: Estate, kind: str) -> None:
        owner = sql.Identifier(estate.names["owner"]).as_string()
        for statement in (
            "create table pgworkflows.mine (a int)",
            "create function pgworkflows.mine() returns int language sql return 1",
            "create or replace function pgworkflows.take_over() returns integer language sql return 1",
            "alter function pgworkflows.take_over() security invoker",
            "drop function pgworkflows.take_over()",
            "create view pgworkflows.mine as select 1",
            "create sequence pgworkflows.mine",
            "create type pgworkflows.mine as (a int)",
            "alter type pgworkflows.outcome add attribute mine text",
            "alter schema pgworkflows rename to mine",
            "drop schema pgworkflows cascade",
            "select nextval('pgworkflows.events_id_seq')",
            "select setval('pgworkflows.claims', 1)",
            f"set role {owner}",
            f"set session authorization {owner}",
            f"alter default privileges for role {owner} grant all on tables to public",
        ):
            assert refusal(estate.url(kind), statement) is not None, statement
        assert (refusal(estate.url(kind), "select nextval('pgworkflows.claims')") is None) == (kind == "worker")

    def test_a_stranger_may_not_even_name_what_is_in_the_schema(self, estate: Estate) -> None:
        for statement in (*(f"select from pgworkflows.{table}" for table in READERS), "select pgworkflows.take_over()"):
            refused = refusal(estate.url("stranger"), statement)
            assert "permission denied for schema" in str(refused), statement

    def test_whoever_has_only_the_use_of_the_schema_can_call_nothing(self, estate: Estate) -> None:
        stranger = sql.Identifier(estate.names["stranger"])
        with psycopg.connect(estate.admin, autocommit=True) as conn:
            conn.execute(sql.SQL("grant usage on schema pgworkflows to {}").format(stranger))
            try:
                for name, call in functions(estate.admin):
                    refused = refusal(estate.url("stranger"), call)
                    assert f"permission denied for function {name}" in str(refused), call
            finally:
                conn.execute(sql.SQL("revoke usage on schema pgworkflows from {}").format(stranger))

    def test_what_runs_with_the_owners_rights_takes_no_types_of_the_callers_and_has_its_search_path(
        self, estate: Estate
    ) -> None:
        found = rows(
            estate.admin,
            "select p.proname, p.proconfig, array(select t.typtype from unnest(p.proargtypes) as a "
            "join pg_type as t on t.oid = a), pg_get_userbyid(p.proowner) "
            "from pg_proc as p where p.pronamespace = 'pgworkflows'::regnamespace and p.prosecdef",
        )
        assert len(found) > 20
        for name, config, kinds, owner in found:
            assert "search_path=pg_catalog, pg_temp" in config, name
            assert "p" not in kinds, name  # a pseudo-type such as anycompatible
            assert owner == estate.names["owner"]


# --- the job of each


@workflow("order")
def order(step: Step, input: Any) -> Steps[Any]:
    first = yield from step.run("reserve", lambda: 1)
    return [first, (yield from step.wait_for("payment", "paid"))]


@workflow("part")
def part(step: Step, input: Any) -> Steps[Any]:
    return (yield from step.run("make", lambda: input))


@workflow("whole")
def whole(step: Step, input: Any) -> Steps[Any]:
    yield from step.delay("breathe", 0.05)
    made = yield from step.invoke_child_workflow("part", part, input)
    polled = yield from step.poll("ask", lambda: made, interval=1)
    return polled.data


@workflow("fragile")
def fragile(step: Step, input: Any) -> Steps[Any]:
    if input == "fail":
        raise RuntimeError("as it was told")
    return (yield from step.run("work", lambda: input))


@workflow("hourly", schedule="0 * * * *", retention="1 day")
def hourly(step: Step) -> Steps[Any]:
    return (yield from step.run("tick", lambda: str(step.context.schedule)))


@workflow("single", singleton=True)
def single(step: Step, input: Any) -> Steps[Any]:
    return (yield from step.wait_for("wait", "go"))


ALL = [order, part, whole, fragile, hourly, single]


@pytest.fixture
def engine(estate: Estate) -> Iterator[WorkflowEngine]:
    """An engine that connects as the worker, at work."""
    with WorkflowEngine(estate.url("worker"), workflows=ALL) as engine, working(engine):
        yield engine


class TestClient:
    def test_it_starts_runs_sends_events_and_reads_its_own(self, estate: Estate, engine: WorkflowEngine) -> None:
        with estate.client() as client:
            run = client.start_workflow("order", {"n": 1}, idempotency_key="order-1", resource_id="ann")
            assert client.start_workflow("order", {"n": 1}, idempotency_key="order-1", resource_id="ann").id == run.id
            client.trigger_event(run.id, "paid", {"by": "card"}, idempotency_key="payment-1")
            done = client.wait_for_run(run.id, timeout=20)
            assert done.output == [1, {"by": "card"}]
            assert client.get_run(run.id) == done
            assert [step.step_id for step in client.get_steps(run.id)] == ["reserve", "payment"]
            progress = client.check_progress(run.id)
            assert (progress.completion_percentage, progress.live_workers) == (100, 1)
            assert client.get_runs(resource_id="ann").items == [done]
            assert client.get_workflow_last_run("order") == done

    def test_it_starts_many_and_reads_the_children_of_its_runs(self, estate: Estate, engine: WorkflowEngine) -> None:
        with estate.client() as client:
            started = client.start_workflows("whole", [[1], [2]], idempotency_keys=["a", None])
            assert [client.wait_for_run(run.id, timeout=20).output for run in started] == [[1], [2]]
            [_, invoked, _] = client.get_steps(started[1].id)
            assert invoked.child_run_id is not None
            assert client.get_run(invoked.child_run_id).output == [2]
            assert client.get_steps(invoked.child_run_id)[0].output == [2]

    def test_it_steers_its_own_runs(self, estate: Estate, engine: WorkflowEngine) -> None:
        with estate.client() as client:
            run = client.start_workflow("order", delay="1 day")
            assert client.pause_workflow(run.id).status is RunStatus.PAUSED
            assert client.resume_workflow(run.id).status is RunStatus.PENDING
            assert client.cancel_workflow(run.id).status is RunStatus.CANCELLED
            failed = client.wait_for_run(client.start_workflow("fragile", "fail").id, timeout=20)
            assert failed.status is RunStatus.FAILED
            assert client.retry_workflow(failed.id).status is RunStatus.PENDING

    def test_it_does_so_in_its_own_transaction_and_in_plain_sql(self, estate: Estate, engine: WorkflowEngine) -> None:
        with estate.client() as client, psycopg.connect(estate.url("client")) as conn:
            run = client.start_workflow("order", connection=conn)
            client.trigger_event(run.id, "paid", connection=conn)
            with pytest.raises(WorkflowRunNotFoundError):
                client.get_run(run.id)
            conn.commit()
            assert client.wait_for_run(run.id, timeout=20).output == [1, {}]
            [(first,)] = conn.execute("select id from pgworkflows.start_workflow('order', '{}')").fetchall()
            conn.execute("select from pgworkflows.trigger_event(%s, 'paid', '{\"a\": 1}')", [first])
            conn.execute("select from pgworkflows.start_workflow('order', jsonb '{}', priority => 5)")
            conn.commit()
            assert client.wait_for_run(first, timeout=20).output == [1, {"a": 1}]
            assert (first,) in conn.execute("select id from pgworkflows.runs").fetchall()

    def test_logins_that_set_their_role_share_the_runs_of_that_role(self, estate: Estate) -> None:
        member = f"pgw test member {secrets.token_hex(4)}"
        with psycopg.connect(estate.admin, autocommit=True) as admin:
            names = (sql.Identifier(member), sql.Literal(PASSWORD), sql.Identifier(estate.names["client"]))
            admin.execute(sql.SQL("create role {} login password {} in role {}").format(*names))
            admin.execute(sql.SQL("alter role {} set role = {}").format(names[0], names[2]))
        try:
            with (
                WorkflowClient(make_conninfo(estate.url("client"), user=member)) as client,
                estate.client() as colleague,
            ):
                run = client.start_workflow("nobody's")
                assert colleague.cancel_workflow(run.id).id == client.get_run(run.id).id
        finally:
            rows(estate.admin, sql.SQL("drop role {}").format(sql.Identifier(member)).as_string())


class TestInspector:
    def test_a_reader_sees_all_and_a_client_finds_its_own_runs(self, estate: Estate) -> None:
        with estate.client() as client, estate.client("neighbour") as neighbour, estate.client("reader") as reader:
            mine, other = client.start_workflow("seen", delay="1 day"), neighbour.start_workflow("seen", delay="1 day")
            everything = Inspector(reader)
            assert {run.id for run in everything.find_runs(workflow_id="seen", statuses=["pending"]).items} == {
                mine.id, other.id
            }  # fmt: skip
            assert everything.get_timeline(mine.id).run.id == mine.id
            mark = everything.get_changes().mark
            everything.get_changes(mark)
            for look in (
                everything.get_overview,
                everything.get_workers,
                everything.get_declared,
                everything.get_stuck,
            ):
                look()
            own = Inspector(client)
            for statuses in (None, ["pending"]):
                found = own.find_runs(workflow_id="seen", statuses=statuses).items
                assert [run.id for run in found] == [mine.id]
            assert own.find_runs(text=str(other.id)).items == []
            for refused in (lambda: own.get_timeline(mine.id), own.get_overview, own.get_workers, own.get_stuck):
                with pytest.raises(ConfigurationError, match="lacks a privilege"):
                    refused()


class TestWorker:
    def test_it_does_all_that_a_worker_does(self, estate: Estate, engine: WorkflowEngine) -> None:
        """Besides runs, children, timers, polls and events, which the tests of the client need it for."""
        failed = engine.wait_for_run(engine.start_workflow(fragile, "fail").id, timeout=20)
        assert failed.error is not None
        assert failed.error["message"] == "as it was told"
        assert engine.get_schedule("hourly").workflow_id == "hourly"
        assert engine.wait_for_run(engine.trigger_schedule("hourly").id, timeout=20).status is RunStatus.COMPLETED
        engine.pause_schedule("hourly")
        engine.resume_schedule("hourly")
        ticks = "select count(*) from pgworkflows.runs where schedule_tick is not null"
        before = value(estate.admin, ticks)
        rows(estate.admin, "update pgworkflows.schedules set since = now() - interval '1 hour', next_at = null")
        until(lambda: value(estate.admin, ticks) > before, "the schedule fires")
        waiting = engine.start_workflow(order)
        until(lambda: engine.get_run(waiting.id).status is RunStatus.WAITING, "it waits")
        engine.fast_forward_workflow(waiting.id, {"skipped": True})
        assert engine.wait_for_run(waiting.id, timeout=20).output == [1, {"skipped": True}]

    def test_it_deletes_what_is_old(self, estate: Estate, engine: WorkflowEngine) -> None:
        run = engine.wait_for_run(engine.start_workflow(fragile, 1).id, timeout=20)
        old = UUID(int=run.id.int & ((1 << 80) - 1) | 1 << 80)
        moved = "update pgworkflows.runs set id = %s, completed_at = '2000-01-01' where id = %s"
        rows(estate.admin, moved, old, run.id)
        assert engine.prune(older_than=timedelta(days=1), workflow_id="fragile") == 1

    def test_it_takes_over_from_one_that_was_killed(self, estate: Estate) -> None:
        with worker_processes(estate.url("worker")) as processes:
            first = processes.start(lease="2s")
            first.await_registration()
            with estate.client() as client:
                run = client.start_workflow("story", {"steps": ["one", "two"], "gated": ["two"]})
                until(lambda: len(processes.calls(run.id)) == 2, "the second step waits at its gate")
                first.send(signal.SIGKILL)
                processes.start().await_registration()
                processes.open_gate("two")
                done = client.wait_for_run(run.id, timeout=30)
            assert done.status is RunStatus.COMPLETED
            assert [step for step, _ in processes.calls(run.id)] == ["one", "two", "two"]

    def test_an_engine_starts_that_connects_as_one(self, estate: Estate) -> None:
        with WorkflowEngine(estate.url("worker"), workflows=ALL) as engine:
            engine.start()
            try:
                assert engine.wait_for_run(engine.start_workflow(part, 5).id, timeout=20).output == 5
            finally:
                engine.stop()


class TestReader:
    def test_it_reads_every_run_with_its_payloads(self, estate: Estate, engine: WorkflowEngine) -> None:
        with estate.client() as client, estate.client("reader") as reader:
            run = client.wait_for_run(client.start_workflow("part", SECRET).id, timeout=20)
            assert reader.wait_for_run(run.id) == run
            assert [step.output for step in reader.get_steps(run.id)] == [SECRET]
            assert reader.check_progress(run.id).completion_percentage == 100
            assert run in reader.get_runs(workflow_id="part").items
            assert [schedule.workflow_id for schedule in reader.get_schedules()] == ["hourly"]

    def test_it_can_start_nothing(self, estate: Estate) -> None:
        with estate.client("reader") as reader, pytest.raises(ConfigurationError, match="lacks a privilege"):
            reader.start_workflow("part")


# --- what belongs to others


class TestOthersRuns:
    @pytest.fixture
    def run(self, estate: Estate) -> Iterator[UUID]:
        """A run of a neighbour, which nobody works on."""
        with estate.client("neighbour") as neighbour:
            run = neighbour.start_workflow("secret", SECRET, idempotency_key=f"key-{secrets.token_hex(4)}")
            yield run.id
            neighbour.cancel_workflow(run.id)

    def test_a_client_cannot_read_them(self, estate: Estate, run: UUID) -> None:
        with estate.client() as client:
            for read in (client.get_run, client.get_steps, client.check_progress, client.wait_for_run):
                with pytest.raises(WorkflowRunNotFoundError):
                    read(run)
            assert client.get_runs(workflow_id="secret").items == []
            assert client.get_workflow_last_run("secret") is None
        assert rows(estate.url("client"), "select from pgworkflows.runs where id = %s", run) == []
        assert rows(estate.url("client"), "select from pgworkflows.steps where run_id = %s", run) == []

    def test_a_client_cannot_touch_them_nor_hold_them_up(self, estate: Estate, run: UUID) -> None:
        with estate.client() as client, psycopg.connect(estate.url("client")) as conn:
            for change in (
                client.pause_workflow,
                client.resume_workflow,
                client.cancel_workflow,
                client.retry_workflow,
            ):
                with pytest.raises(WorkflowRunNotFoundError):
                    change(run, connection=conn)
            with pytest.raises(WorkflowRunNotFoundError):
                client.trigger_event(run, "go", connection=conn)
            # Its transaction is open, and has locked nothing of theirs.
            rows(estate.admin, "select from pgworkflows.queue where run_id = %s for update nowait", run)
            with pytest.raises(psycopg.Error, match="was not found"):
                conn.execute("select pgworkflows.cancel_workflow(%s)", [run])

    def test_a_client_cannot_touch_the_child_of_anothers_run(self, estate: Estate, engine: WorkflowEngine) -> None:
        with estate.client("neighbour") as neighbour, estate.client() as client:
            run = neighbour.wait_for_run(neighbour.start_workflow("whole", SECRET).id, timeout=20)
            child = neighbour.get_steps(run.id)[1].child_run_id
            assert child is not None
            assert neighbour.get_run(child).output == SECRET
            with pytest.raises(WorkflowRunNotFoundError):
                client.get_run(child)

    def test_a_taken_key_tells_no_more_than_that_it_is_taken(self, estate: Estate, run: UUID) -> None:
        key = value(estate.admin, "select idempotency_key from pgworkflows.runs where id = %s", run)
        with estate.client() as client, psycopg.connect(estate.url("client")) as conn:
            for start in (
                lambda: client.start_workflow("secret", idempotency_key=key),
                lambda: client.start_workflows("secret", [1], idempotency_keys=[key]),
            ):
                with pytest.raises(IdempotencyConflictError, match="another role") as refused:
                    start()
                assert refused.value.run_id is None
                assert str(run) not in str(refused.value)
            with pytest.raises(psycopg.Error, match="taken by a run that another role has started"):
                conn.execute("select pgworkflows.start_workflow('secret', idempotency_key => %s)", [key])
            conn.rollback()
            [(answer,)] = conn.execute(
                "select pgworkflows.try_start_workflow('secret', null, null, %s, null, null, null, null, null, null, "
                "null, null, null, null, false)::text",
                [key],
            ).fetchall()
            assert answer == "(conflict,)"
            [(answer,)] = conn.execute(
                "select pgworkflows.start_at_once('secret', null, null, %s, null, null, null, null, null, null, null, "
                "null, null, null, null, null, null, false)",
                [key],
            ).fetchall()
            assert json.loads(answer) == {"outcome": "conflict", "run": None}

    def test_a_singleton_in_progress_tells_no_more_than_that(self, estate: Estate) -> None:
        with estate.client("neighbour") as neighbour, estate.client() as client:
            theirs = neighbour.start_workflow("alone", SECRET, singleton=True)
            mine = client.start_workflow("alone", singleton=False)
            client.cancel_workflow(mine.id)
            rows(estate.admin, "update pgworkflows.runs set singleton = true where id = %s", mine.id)
            try:
                for start in (
                    lambda: client.start_workflow("alone", singleton=True),
                    lambda: client.start_workflows("alone", [1], singleton=True),
                    lambda: client.retry_workflow(mine.id),
                ):
                    with pytest.raises(WorkflowRunInProgressError, match="singleton") as refused:
                        start()
                    assert refused.value.run_id is None
                    assert str(theirs.id) not in str(refused.value)
                with psycopg.connect(estate.url("client")) as conn, pytest.raises(psycopg.Error, match="another role"):
                    conn.execute("select pgworkflows.retry_workflow(%s)", [mine.id])
            finally:
                neighbour.cancel_workflow(theirs.id)

    def test_what_the_owner_started_is_no_clients(self, estate: Estate) -> None:
        with estate.client("owner") as owner, estate.client() as client:
            run = owner.start_workflow("secret", SECRET)
            assert value(estate.admin, "select started_by from pgworkflows.runs where id = %s", run.id) is None
            with pytest.raises(WorkflowRunNotFoundError):
                client.cancel_workflow(run.id)
            assert owner.cancel_workflow(run.id).status is RunStatus.CANCELLED


# --- what a hostile client might try


class TestHostileClients:
    @pytest.fixture
    def conn(self, estate: Estate) -> Iterator[psycopg.Connection]:
        with psycopg.connect(estate.url("client"), autocommit=True, prepare_threshold=None) as conn:
            yield conn

    @pytest.fixture
    def run(self, estate: Estate) -> Iterator[UUID]:
        with estate.client() as client:
            run = client.start_workflow("nobody's")
            yield run.id
            client.cancel_workflow(run.id)

    @pytest.mark.direct("makes temporary things, in a session")
    def test_a_cast_of_its_own_runs_with_its_own_rights(
        self, estate: Estate, conn: psycopg.Connection, run: UUID
    ) -> None:
        conn.execute("create type pg_temp.mine as (a int)")
        conn.execute(
            "create function pg_temp.spy(pg_temp.mine) returns text language sql "
            "as $$ select to_json(current_user)::text $$"
        )
        conn.execute("create cast (pg_temp.mine as text) with function pg_temp.spy(pg_temp.mine)")
        conn.execute("select pgworkflows.trigger_event(%s, 'spied', row(1)::pg_temp.mine)", [run])
        seen = value(estate.admin, "select data #>> '{}' from pgworkflows.events where run_id = %s", run)
        assert seen == estate.names["client"]

    @pytest.mark.direct("makes temporary things, in a session")
    def test_what_it_puts_before_the_search_path_is_not_found(self, conn: psycopg.Connection, run: UUID) -> None:
        conn.execute(
            "create temp table runs (id int); create temp table queue (id int); create temp table events (a int)"
        )
        for name, kind in (
            ("length(text)", "int"),
            ("clock_timestamp()", "timestamptz"),
            ("json_array_length(json)", "int"),
        ):
            body = "as $$ begin raise exception 'stepped into'; end $$"
            conn.execute(f"create function pg_temp.{name} returns {kind} language plpgsql {body}".encode())
        conn.execute("set search_path = pg_temp, pgworkflows, pg_catalog")
        conn.execute("select pgworkflows.trigger_event(%s, 'e', '[1]')", [run])
        conn.execute("select pgworkflows.start_workflow('nobody''s', '1', idempotency_key => 'shadowed')")

    @pytest.mark.direct("makes temporary things, in a session")
    def test_a_leaky_function_sees_no_row_of_others(self, estate: Estate, conn: psycopg.Connection) -> None:
        with estate.client("neighbour") as neighbour:
            theirs = neighbour.start_workflow("secret", "of the neighbour alone")
        seen: list[str] = []
        conn.add_notice_handler(lambda notice: seen.append(notice.message_primary or ""))
        conn.execute(
            "create function pg_temp.leak(r text) returns boolean cost 0.0000000001 language plpgsql "
            "as $$ begin raise notice '%', r; return true; end $$"
        )
        conn.execute("select from pgworkflows.runs as r where pg_temp.leak(r::text)")
        conn.execute("create temp view v as select * from pgworkflows.runs")
        conn.execute("select from v where pg_temp.leak(input::text)")
        assert seen
        assert not any("of the neighbour alone" in text or str(theirs.id) in text for text in seen)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("set row_security = off; select from pgworkflows.runs")

    DEEP = "[" * 3000 + "]" * 3000
    REFUSED = (
        ("input => %s::json", DEEP, "nested"),
        ("headers => %s::json", DEEP, "nested"),
        ("input => to_json(repeat('x', %s::int))", "67108865", "at most 67108864 characters"),
        ("run_at => %s::timestamptz", "infinity", "run_at"),
        ("delay => %s::interval", "1000000 days", "delay"),
        ("timeout => %s::interval", "-1 day", "timeout"),
        ("fallback => %s::json", '{"timeout": "-1 day"}', "timeout"),
        ("schedule_tick => %s::timestamptz", "2030-01-01 00:00Z", "only a worker"),
        ("workflow => %s", "", "identifier"),
        ("priority => %s::integer", "100000", "priority"),
        ("queue => %s", "x" * 257, "identifier"),
    )

    OF_EVERY_START = (
        *("workflow", "input", "resource_id", "idempotency_key", "priority", "retries", "timeout", "queue"),
        *("singleton", "delay", "run_at", "headers", "borrowed"),
    )
    OF_A_START: ClassVar[dict[str, tuple[str, ...]]] = {
        "try_start_workflow": (*OF_EVERY_START, "schedule_tick", "fallback"),
        "start_at_once": (
            *OF_EVERY_START,
            *("else_queue", "else_priority", "else_retries", "else_timeout", "else_singleton"),
        ),
    }

    @pytest.mark.parametrize(
        ("function", "argument", "given", "reason"),
        [
            *(("try_start_workflow", *each) for each in REFUSED),
            *(("start_at_once", *each) for each in REFUSED if not each[0].startswith(("fallback", "schedule_tick"))),
            ("start_at_once", "else_timeout => %s::interval", "-1 day", "timeout"),
            ("start_at_once", "else_priority => %s::integer", "100000", "priority"),
        ],
    )
    def test_what_a_worker_could_not_read_is_refused_also_without_our_client(
        self, estate: Estate, conn: psycopg.Connection, function: str, argument: str, given: str, reason: str
    ) -> None:
        named = argument.split(" => ")[0]
        plain = {"workflow": "'w'", "borrowed": "true"}
        others = [f"{name} => {plain.get(name, 'null')}" for name in self.OF_A_START[function] if name != named]
        before = value(estate.admin, "select count(*) from pgworkflows.runs")
        with pytest.raises(psycopg.Error, match=reason):
            conn.execute(f"select pgworkflows.{function}({', '.join([argument, *others])})".encode(), [given])
        assert value(estate.admin, "select count(*) from pgworkflows.runs") == before

    def test_and_so_are_such_inputs_of_many_and_such_events(self, conn: psycopg.Connection, run: UUID) -> None:
        items = json.dumps([{"input": 1}])[:-1] + f', {{"input": {self.DEEP}}}]'
        with pytest.raises(psycopg.Error, match="nested"):
            conn.execute(
                "select pgworkflows.try_start_workflows('w', %s, null, null, null, null, null, null, null, null, null, "
                "null, false)",
                [items],
            )
        with pytest.raises(psycopg.Error, match="nested"):
            conn.execute("select pgworkflows.try_trigger_event(%s, 'e', %s, null, null, false)", [run, self.DEEP])

    def test_a_worker_does_not_mind_what_anybody_sends_to_its_channel(
        self, estate: Estate, engine: WorkflowEngine, conn: psycopg.Connection
    ) -> None:
        channel = value(estate.admin, "select pgworkflows.channel()")
        for payload in ("", "default", "\x01" * 100, "x" * 7000, "é" * 100, "'; drop table runs"):
            conn.execute("select pg_notify(%s, %s)", [channel, payload])
        with estate.client() as client:
            assert client.wait_for_run(client.start_workflow("part", 1).id, timeout=20).output == 1


# --- granting


class TestGranting:
    def test_it_may_be_said_again_and_again(self, estate: Estate) -> None:
        acls = (
            "select relname::text, relacl::text, relrowsecurity from pg_class "
            "where relnamespace = 'pgworkflows'::regnamespace union all "
            "select oid::regprocedure::text, proacl::text, prosecdef from pg_proc "
            "where pronamespace = 'pgworkflows'::regnamespace order by 1"
        )

        def sorted_acls() -> list[Any]:
            return [
                (name, sorted((acl or "").strip("{}").split(",")), on) for name, acl, on in rows(estate.admin, acls)
            ]

        before = sorted_acls()
        with estate.client("owner") as owner:
            owner.grant(client=estate.names["client"])
            owner.grant(worker=estate.names["worker"], reader=estate.names["reader"])
        assert sorted_acls() == before

    def test_a_role_becomes_what_it_is_named_last_and_nothing_once_it_is_revoked(self, estate: Estate) -> None:
        stranger = estate.names["stranger"]
        with estate.client("owner") as owner, estate.client("stranger") as client:
            owner.grant(worker=stranger)
            assert rows(estate.url("stranger"), "select pgworkflows.take_over()") == [(0,)]
            owner.grant(reader=stranger)
            assert refusal(estate.url("stranger"), "select pgworkflows.take_over()") is not None
            assert len(client.get_runs(workflow_id="secret").items) >= 0
            owner.grant(client=stranger)
            assert client.get_runs().items == []
            client.cancel_workflow(client.start_workflow("nobody's").id)
            owner.revoke(stranger)
            with pytest.raises(ConfigurationError, match="permission denied for schema"):
                client.get_runs()
            policies = "select count(*) from pg_policies where policyname = %s"
            assert value(estate.admin, policies, stranger) == 0
            assert rows(estate.admin, "select from pgworkflows.roles where role = %s", stranger) == []

    def test_a_migration_grants_again_what_it_makes_anew(self, estate: Estate, monkeypatch: pytest.MonkeyPatch) -> None:
        known = migrate.migrations()
        anew = migrate.Migration(
            9000,
            "9000_anew",
            1,
            "create table pgworkflows.novelty (a int); create function pgworkflows.novel() returns int language sql "
            "return 1; create or replace function pgworkflows.last_step(run_id uuid) returns text language sql "
            "as $function$ select 'x' $function$; "
            "alter function pgworkflows.take_over() security invoker; "
            "grant all on function pgworkflows.take_over() to public",
        )
        monkeypatch.setattr(migrate, "migrations", lambda: (*known, anew))
        try:
            migrate.migrate(estate.url("owner"))
            assert rows(estate.url("worker"), "select pgworkflows.take_over()") == [(0,)]
            assert rows(estate.url("reader"), "select from pgworkflows.novelty") == []
            assert refusal(estate.url("client"), "select from pgworkflows.novelty") is not None
            assert refusal(estate.url("client"), "select pgworkflows.take_over()") is not None
            assert refusal(estate.url("client"), "select pgworkflows.novel()") is not None
        finally:
            rows(
                estate.url("owner"),
                "drop table pgworkflows.novelty; drop function pgworkflows.novel; "
                "delete from pgworkflows.migrations where number = 9000",
            )

    def test_the_program_on_the_page_grants(self, estate: Estate, tmp_path: Path) -> None:
        program = named(DOCS / "security.md", "grants.py")
        for name, kind in {"shop": "client", "jobs": "worker", "grafana": "reader", "newsletter": "stranger"}.items():
            program = program.replace(f'"{name}"', repr(estate.names[kind]))
        done = run_python(program, tmp_path, estate.url("owner"))
        assert done.returncode == 0, done.stderr
        kinds = dict(rows(estate.admin, "select role, kind from pgworkflows.roles"))
        assert kinds == {estate.names[kind]: kind for kind in KINDS} | {estate.names["neighbour"]: "client"}

    def test_the_script_is_what_is_run(self, estate: Estate) -> None:
        script = grant_script(client=estate.names["client"], reader='it\'s 100% "quoted"')
        with psycopg.connect(estate.url("owner")) as conn:
            conn.execute(script.encode())  # that reader does not exist, and is passed over
            found = conn.execute("select role, kind from pgworkflows.roles where role like 'it%'").fetchall()
            assert found == [('it\'s 100% "quoted"', "reader")]
            conn.rollback()

    def test_a_schema_of_any_name_can_be_granted(self, estate: Estate) -> None:
        schema = 'it\'s 100% {a} "schema"'
        with WorkflowClient(estate.url("owner"), schema=schema) as owner:
            owner.migrate()
            owner.grant(client=estate.names["client"])
            owner.grant(client=estate.names["client"])
        with WorkflowClient(estate.url("client"), schema=schema) as client:
            run = client.start_workflow("w", 1)
            assert client.cancel_workflow(run.id).started_at is None
        rows(
            estate.admin,
            sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)).as_string().replace("%", "%%"),
        )

    @pytest.mark.parametrize(
        ("named", "error", "reason"),
        [
            ({}, ValueError, "name a role"),
            ({"client": "a", "reader": "a"}, ValueError, "not two of them"),
            ({"client": ""}, ValueError, "name of a role"),
            ({"client": "a\0"}, ValueError, "name of a role"),
            ({"client": "a" * 64}, ValueError, "name of a role"),
            ({"client": 5}, TypeError, "name of a role"),
            ({"client": "pgw no such role"}, ConfigurationError, "there is no role 'pgw no such role'"),
        ],
    )
    def test_what_cannot_be_granted_is_refused(
        self, estate: Estate, named: dict[str, Any], error: type[Exception], reason: str
    ) -> None:
        with estate.client("owner") as owner, pytest.raises(error, match=reason):
            owner.grant(**named)

    def test_whoever_stands_above_the_rules_is_refused(self, estate: Estate) -> None:
        superuser = value(estate.admin, "select current_user::text")
        with estate.client("owner") as owner:
            for name in (estate.names["owner"], superuser):
                with pytest.raises(ConfigurationError, match="may do everything"):
                    owner.grant(client=name)

    def test_only_the_owner_grants(self, estate: Estate) -> None:
        for kind in ("worker", "client"):
            with estate.client(kind) as client, pytest.raises(ConfigurationError, match="privilege"):
                client.grant(client=estate.names["client"])

    def test_a_schema_of_two_owners_is_refused(self, estate: Estate) -> None:
        superuser = value(estate.admin, "select quote_ident(current_user)")
        owner = value(estate.admin, "select quote_ident(%s)", estate.names["owner"])
        rows(estate.admin, f"alter function pgworkflows.take_over() owner to {superuser}")
        try:
            with (
                WorkflowClient(estate.admin) as client,
                pytest.raises(ConfigurationError, match="take_over.* belongs to"),
            ):
                client.grant(client=estate.names["client"])
        finally:
            rows(estate.admin, f"alter function pgworkflows.take_over() owner to {owner}")

    def test_without_roles_everything_is_as_it_was(self, database_url: str) -> None:
        functions_of_the_owner = "select count(*) from pg_proc where pronamespace = 'pgworkflows'::regnamespace and "
        assert value(database_url, functions_of_the_owner + "(prosecdef or proacl is not null)") == 0
        assert value(database_url, "select count(*) from pg_policies where schemaname = 'pgworkflows'") == 0
        with WorkflowClient(database_url) as client:
            run = client.start_workflow("w")
            assert value(database_url, "select started_by from pgworkflows.runs where id = %s", run.id) is None
