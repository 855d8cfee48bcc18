"""The SQL of the documentation answers as the pages say, on a database with runs in every status."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import psycopg
import pytest
from conftest import Databases
from pages import DOCS, PAGES, blocks, page_id, titled_sql
from psycopg.rows import dict_row
from waiting import until
from working import rows, working

from pgworkflows import RunStatus, Step, Steps, Workflow, WorkflowClient, WorkflowEngine, WorkflowRun, workflow

Row = dict[str, Any]


def ok() -> str:
    return "ok"


def boom() -> None:
    raise ValueError("no such order")


def unreachable() -> None:
    raise ConnectionError("no route")


@workflow("done")
def done(step: Step, input: dict[str, str]) -> Steps[Any]:
    yield from step.run("first", ok)
    yield from step.wait_for("click", "clicked")
    yield from step.run("last", ok)


@workflow("boom")
def fails(step: Step) -> Steps[Any]:
    yield from step.run("before", ok)
    yield from step.run("boom", boom)


@workflow("late", timeout="100 ms")
def late(step: Step) -> Steps[Any]:
    yield from step.delay("nap", "1 hour")


@workflow("retrying-step")
def retrying_step(step: Step) -> Steps[Any]:
    yield from step.run("call", unreachable).retry(attempts=9, wait="1 hour")


@workflow("retrying-run", retries=9)
def retrying_run(step: Step) -> Steps[Any]:
    yield from step.run("boom", boom)


@workflow("endless")
def endless(step: Step) -> Steps[Any]:
    yield from step.wait_for("answer", "answered")


@workflow("timed")
def timed(step: Step) -> Steps[Any]:
    yield from step.wait_for("answer", "answered", timeout="1 hour")


@workflow("nap")
def nap(step: Step) -> Steps[Any]:
    yield from step.delay("nap", "1 hour")


@workflow("looks")
def looks(step: Step) -> Steps[Any]:
    yield from step.poll("look", lambda: None, interval="1 hour")


@workflow("approval")
def approval(step: Step) -> Steps[Any]:
    yield from step.pause("approve")


@workflow("held")
def held(step: Step, gate: str) -> Steps[Any]:
    yield from step.run("first", ok)
    yield from step.run("hold", GATES[gate].wait, 60)


GATES: dict[str, threading.Event] = {}
STORIES: list[Workflow[Any, Any]] = [
    done,
    fails,
    late,
    retrying_step,
    retrying_run,
    endless,
    timed,
    nap,
    looks,
    approval,
]


@dataclass(frozen=True)
class World:
    """A database with runs in every status, one of them in the hands of a worker of this process."""

    url: str
    runs: Mapping[str, UUID]

    def answer(self, sql: str, run: str = "done") -> list[Row]:
        """The rows of a block, with psql's variable set and every "how long ago" at zero."""
        return query(self.url, sql, self.runs[run])

    def names(self, found: list[Row]) -> set[str]:
        """The stories that rows are about."""
        by_id = {run_id: name for name, run_id in self.runs.items()}
        return {by_id[row["run_id"]] for row in found}


def prepared(sql: str, run_id: UUID | None) -> str:
    text = re.sub(r":'run_id'", f"'{run_id}'", sql)
    return re.sub(r"interval '(5 minutes|10 seconds)'", "interval '0'", text)


def query(url: str, sql: str, run_id: UUID | None = None) -> list[Row]:
    with psycopg.connect(url, autocommit=True) as conn, conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute(prepared(sql, run_id).encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def world(databases: Databases, migrated_template: str) -> Iterator[World]:
    with databases.fresh(migrated_template) as url:
        with WorkflowEngine(url, workflows=STORIES) as engine:
            runs = tell_stories(engine)
        GATES["world"] = threading.Event()
        with WorkflowEngine(url, workflows=[held]) as engine, working(engine, grace="10s"):
            runs["held"] = engine.start_workflow(held, "world").id
            until(lambda: len(engine.get_steps(runs["held"])) == 1, "the held run is in its second step")
            try:
                yield World(url, runs)
            finally:
                GATES["world"].set()


def tell_stories(engine: WorkflowEngine) -> dict[str, UUID]:
    engine.start(worker=False)
    runs: dict[str, WorkflowRun] = {"done": engine.start_workflow(done, {"email": "ada@example.com"})}
    engine.trigger_event(runs["done"].id, "clicked", {"at": "noon"})
    for story in STORIES[1:]:
        runs[story.id] = engine.start_workflow(story)
    runs["stopped"] = engine.start_workflow(endless)
    runs["cancelled"] = engine.start_workflow(nap)
    runs["later"] = engine.start_workflow(nap, delay="1 day")
    worker = engine.worker()
    worker.run_until_idle("20s")
    while not engine.get_run(runs["late"].id).status.finished:
        worker.run_until_idle("20s")
    engine.pause_workflow(runs["stopped"].id)
    engine.cancel_workflow(runs["cancelled"].id)
    engine.trigger_event(runs["endless"].id, "anserwed")
    with WorkflowClient(engine.conninfo) as client:
        runs["nobodys"] = client.start_workflow("nobodys")
    rows(  # its pause is a second; here it is to last
        engine.conninfo,
        "update pgworkflows.queue set status = 'pending', wake_at = now() + interval '1 hour' where run_id = %s",
        runs["retrying-run"].id,
    )
    return {name: run.id for name, run in runs.items()}


SQL = titled_sql(DOCS / "sql.md")
OPERATIONS = titled_sql(DOCS / "operations.md")


def test_the_stories_are_in_every_status(world: World) -> None:
    found = query(world.url, "select distinct status from pgworkflows.runs")
    assert {row["status"] for row in found} == set(RunStatus)


def test_every_block_of_sql_is_tested() -> None:
    assert list(SQL) == [
        "Runs per status",
        "How far behind each queue is",
        "The oldest ready runs",
        "Runs that nobody would take",
        "Workers alive",
        "What each worker is at",
        "What waits for what",
        "What is being retried",
        "What is stuck",
        "Events that no wait has taken yet",
        "Failures of today",
        "The timeline of a run",
        "Progress",
        "How long steps take",
        "How long runs take",
        "What starts by itself, and when",
        "A value inside of results",
        "The operations",
        "The operations (2)",
        "Schedules",
        "From psql",
        "Start a run in a trigger",
        "Tell the run when a row changes",
    ]
    assert list(OPERATIONS) == ["Deploys and migrations", "Connections", "A run is stuck", "Who holds a row"]
    others = [page for page in PAGES if page.name not in ("sql.md", "operations.md")]
    assert not [page_id(page) for page in others if titled_sql(page)]


class TestQueries:
    def test_runs_per_status(self, world: World) -> None:
        found = world.answer(SQL["Runs per status"])
        assert {"workflow_id": "nap", "status": "waiting", "runs": 1} in found
        assert {"workflow_id": "nap", "status": "cancelled", "runs": 1} in found
        assert sum(row["runs"] for row in found) == len(world.runs)

    def test_what_starts_by_itself(self, database_url: str) -> None:
        @workflow("report", schedule="0 6 * * *")
        def report(step: Step) -> Steps[Any]:
            yield from step.run("add-up", ok)

        with WorkflowEngine(database_url, workflows=[report]) as engine, working(engine):
            until(lambda: [each for each in engine.get_schedules() if each.next_at], "the next tick is computed")
            [run] = query(database_url, SQL["Schedules"])
            engine.wait_for_run(run["id"], timeout="20s")
            [row] = query(database_url, SQL["What starts by itself, and when"])
            assert (row["workflow_id"], row["expression"], row["last_status"]) == ("report", "0 6 * * *", "completed")
            assert row["keepers"] == 1
            assert row["next_at"] > row["last_tick_at"]

    def test_the_lag_of_queues(self, world: World) -> None:
        [row] = world.answer(SQL["How far behind each queue is"])
        assert row.pop("lag").total_seconds() > 0
        assert row == {"queue": "default", "ready": 1, "running": 1, "later": 3, "waiting": 4, "paused": 2}

    def test_the_oldest_ready_runs(self, world: World) -> None:
        [row] = found = world.answer(SQL["The oldest ready runs"])
        assert world.names(found) == {"nobodys"}
        assert row["ready_for"].total_seconds() > 0

    def test_runs_that_nobody_would_take(self, world: World) -> None:
        found = world.answer(SQL["Runs that nobody would take"])
        assert [(row["workflow_id"], row["queue"], row["runs"]) for row in found] == [("nobodys", "default", 1)]
        assert found[0]["for_how_long"].total_seconds() > 0

    def test_workers_alive(self, world: World) -> None:
        [row] = world.answer(SQL["Workers alive"])
        assert (row["pid"], row["queues"], row["workflows"], row["runs_in_hand"]) == (
            os.getpid(),
            ["default"],
            ["held"],
            1,
        )
        assert row["silent_for"].total_seconds() < 10

    def test_what_each_worker_is_at(self, world: World) -> None:
        [row] = found = world.answer(SQL["What each worker is at"])
        assert world.names(found) == {"held"}
        assert (row["pid"], row["last_step"]) == (os.getpid(), "first")
        assert row["quiet_for"].total_seconds() > 0

    def test_what_waits_for_what(self, world: World) -> None:
        found = world.answer(SQL["What waits for what"])
        assert {(row["step_id"], row["kind"], row["event_name"], row["status"]) for row in found} == {
            ("answer", "wait_for", "answered", "waiting"),
            ("answer", "wait_for", "answered", "paused"),
            ("nap", "delay", None, "waiting"),
            ("look", "poll", None, "waiting"),
            ("approve", "pause", None, "paused"),
        }
        assert world.names(found) == {"endless", "stopped", "timed", "nap", "looks", "approval"}

    def test_what_is_being_retried(self, world: World) -> None:
        found = world.answer(SQL["What is being retried"])
        assert world.names(found) == {"retrying-step", "retrying-run"}
        assert {(row["step_id"], row["attempts"], row["error"], row["message"]) for row in found} == {
            ("call", 1, "ConnectionError", "no route"),
            ("boom", 1, "ValueError", "no such order"),
        }

    def test_what_is_stuck(self, world: World) -> None:
        found = world.answer(SQL["What is stuck"])
        reasons = {
            name: {row["reason"] for row in found if row["run_id"] == run_id} for name, run_id in world.runs.items()
        }
        assert {name: found for name, found in reasons.items() if found} == {
            "nobodys": {"ready, and nobody claims it"},
            "held": {"in one worker's hands"},
            "stopped": {"paused"},
            "approval": {"paused"},
            "endless": {"waits for an event, without a timeout"},
        }
        with psycopg.connect(world.url) as conn:  # and rolled back
            conn.execute("update pgworkflows.queue set wake_at = now() - interval '1 hour' where wake_at is not null")
            conn.execute("update pgworkflows.queue set interruptions = 2 where status = 'paused'")
            conn.execute("delete from pgworkflows.workers")
            reasons_now = {row[3] for row in conn.execute(prepared(SQL["What is stuck"], None).encode())}
            conn.rollback()
        assert {"due, and nobody wakes it", "its worker is gone", "workers died with it 2 times"} <= reasons_now

    def test_events_not_taken(self, world: World) -> None:
        [row] = found = world.answer(SQL["Events that no wait has taken yet"])
        assert world.names(found) == {"endless"}
        assert (row["name"], row["waits_for"]) == ("anserwed", "answered")

    def test_failures_of_today(self, world: World) -> None:
        found = world.answer(SQL["Failures of today"])
        assert {(row["workflow_id"], row["step_id"], row["error"]) for row in found} == {
            ("boom", "boom", "ValueError"),
            ("late", None, "WorkflowTimeoutError"),
        }
        assert "no such order" in {row["message"] for row in found}

    def test_the_timeline_of_a_run(self, world: World) -> None:
        found = world.answer(SQL["The timeline of a run"])
        assert [(row["position"], row["step_id"], row["kind"], row["result"]) for row in found] == [
            (0, "first", "run", "ok"),
            (1, "click", "wait_for", {"at": "noon"}),
            (2, "last", "run", "ok"),
        ]
        assert all(row["after"].total_seconds() >= 0 and row["took"].total_seconds() >= 0 for row in found)
        failed = world.answer(SQL["The timeline of a run"], run="boom")
        assert failed[-1]["result"] == "no such order"

    def test_progress_is_what_check_progress_says(self, world: World) -> None:
        found = {row["run_id"]: row for row in world.answer(SQL["Progress"])}
        assert len(found) == len(world.runs)
        with WorkflowClient(world.url) as client:
            for run_id, row in found.items():
                said = client.check_progress(run_id)
                assert row == {
                    "run_id": run_id,
                    "workflow_id": said.workflow_id,
                    "status": said.status,
                    "completed_steps": said.completed_steps,
                    "total_steps": said.total_steps,
                    "completion_percentage": said.completion_percentage,
                }

    def test_durations(self, world: World) -> None:
        steps = world.answer(SQL["How long steps take"])
        assert {(row["workflow_id"], row["step_id"]) for row in steps} == {
            ("done", "first"), ("done", "last"), ("boom", "before"), ("held", "first")
        }  # fmt: skip
        assert all(row["p95"] >= row["median"] and row["most_attempts"] == 1 for row in steps)
        runs = world.answer(SQL["How long runs take"])
        assert {(row["workflow_id"], row["status"]) for row in runs} == {
            ("done", "completed"), ("boom", "failed"), ("late", "failed"), ("nap", "cancelled")
        }  # fmt: skip
        assert all(row["median_whole"] >= (row["median_start"] or timedelta()) for row in runs)

    def test_a_value_inside_of_results(self, world: World) -> None:
        [row] = found = world.answer(SQL["A value inside of results"])
        assert world.names(found) == {"done"}
        assert row["email"] == "ada@example.com"

    def test_tables_shown_have_the_columns_of_the_query(self, world: World) -> None:
        shown = 0
        for page in (DOCS / "sql.md", DOCS / "operations.md"):
            for block, following in pairwise(blocks(page)):
                if block.language == "sql" and following.language == "text" and following.line == block.end + 3:
                    shown += 1
                    columns = [name.strip() for name in following.text.splitlines()[0].split("|")]
                    assert list(world.answer(block.text)[0]) == columns
        assert shown

    def test_a_run_at_3_a_m(self, world: World) -> None:
        [row] = world.answer(OPERATIONS["A run is stuck"], run="held")
        assert (row["status"], row["pid"], row["wake_at"]) == ("running", os.getpid(), None)
        [row] = world.answer(OPERATIONS["A run is stuck"], run="endless")
        assert (row["status"], row["wait_event"], row["current_step_id"]) == ("waiting", "answered", "answer")
        [row] = world.answer(OPERATIONS["A run is stuck"], run="boom")
        assert (row["status"], row["error"]) == ("failed", "no such order")

    @pytest.mark.direct("looks at the sessions of connections")
    def test_who_holds_a_row(self, world: World) -> None:
        with psycopg.connect(world.url) as holder, WorkflowClient(world.url) as client:
            client.pause_workflow(world.runs["timed"], connection=holder)
            found = world.answer(OPERATIONS["Who holds a row"])
            assert holder.info.backend_pid in {row["pid"] for row in found}
            holder.rollback()

    @pytest.mark.direct("looks at the sessions of connections")
    def test_connections(self, world: World) -> None:
        found = world.answer(OPERATIONS["Connections"])
        assert sum(row["connections"] for row in found if row["application_name"] == "pgworkflows") >= 4


class TestOperationsInSql:
    def test_a_run_is_started_and_told(self, database_url: str) -> None:
        [started] = query(database_url, SQL["The operations"])
        assert started["status"] == "pending"
        [told] = query(database_url, SQL["The operations (2)"], started["id"])
        assert told == {"status": "pending"}
        assert rows(database_url, "select name, data from pgworkflows.events") == [("paid", {"cents": 1250})]
        assert rows(database_url, "select priority from pgworkflows.runs") == [(100,)]

    def test_triggers_start_runs_and_tell_them(self, database_url: str) -> None:
        @workflow("order")
        def order(step: Step, input: dict[str, int]) -> Steps[Any]:
            paid = yield from step.wait_for("await-payment", "paid")
            return {"order": input["order_id"], "paid": bool(paid["at"])}

        query(database_url, SQL["Start a run in a trigger"])
        query(database_url, SQL["Tell the run when a row changes"])
        with psycopg.connect(database_url) as conn:
            conn.execute("insert into orders (customer) values ('nobody')")
            conn.rollback()
        assert rows(database_url, "select id from pgworkflows.runs") == []
        rows(database_url, "insert into orders (customer) values ('ada')")
        rows(database_url, "update orders set paid_at = now()")
        with WorkflowEngine(database_url, workflows=[order]) as engine:
            engine.worker().run_until_idle("20s")
            [run] = engine.get_runs(resource_id="ada").items
            assert run.output == {"order": run.input["order_id"], "paid": True}
        rows(database_url, "update orders set paid_at = null")
        rows(database_url, "update orders set paid_at = now()")  # the run has ended: no harm is done

    def test_the_sqlstates_are_those_of_the_page(self, database_url: str) -> None:
        text = (DOCS / "sql.md").read_text()
        [(ada,)] = rows(database_url, "select (pgworkflows.start_workflow('a', idempotency_key => 'k')).id")
        rows(database_url, "select pgworkflows.cancel_workflow(%s)", ada)
        refusals = {
            "select pgworkflows.pause_workflow(gen_random_uuid())": ("PW001", "WorkflowRunNotFoundError"),
            f"select pgworkflows.resume_workflow('{ada}')": ("PW002", "InvalidStatusError"),
            "select pgworkflows.start_workflow('b', idempotency_key => 'k')": ("PW003", "IdempotencyConflictError"),
            "select pgworkflows.pause_schedule('a')": ("PW005", "WorkflowNotFoundError"),
            "select pgworkflows.start_workflow('')": ("22023", "ValueError"),
            "select pgworkflows.start_workflow('a', 'no json')": ("22P02", "SerializationError"),
        }
        for statement, (code, error) in refusals.items():
            with pytest.raises(psycopg.Error) as caught:
                rows(database_url, statement)
            assert caught.value.sqlstate == code
            assert re.search(rf"^\| {code}.*\|.*\| `{error}` \|$", text, re.MULTILINE)

    def test_every_operation_on_the_page_exists_with_these_parameters(self, database_url: str) -> None:
        table = re.findall(r"^\| `(\w+)\(([\w, ]+)\)` \|", (DOCS / "sql.md").read_text(), re.MULTILINE)
        assert len(table) == 10
        found = rows(
            database_url,
            "select p.proname, array_to_string(p.proargnames, ', ') from pg_proc as p"
            " where p.pronamespace = 'pgworkflows'::regnamespace",
        )
        assert set(table) <= set(found)

    def test_the_columns_on_the_page_are_those_of_the_tables(self, database_url: str) -> None:
        text = (DOCS / "sql.md").read_text()
        for table in ("runs", "steps"):
            [listed] = re.findall(rf"^Columns of `{table}`: `(.*?)`\.$", text, re.MULTILINE | re.DOTALL)
            found = rows(
                database_url,
                "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped "
                "order by attnum",
                f"pgworkflows.{table}",
            )
            assert re.split(r",\s+", listed) == [name for (name,) in found]

    def test_the_grants_are_enough_to_start_and_to_work(self, database_url: str) -> None:
        with psycopg.connect(database_url) as conn:  # rolled back: roles belong to the whole server
            conn.execute(re.sub(r"\bapp\b", "pgworkflows_test_app", OPERATIONS["Deploys and migrations"]).encode())
            conn.execute("set local role pgworkflows_test_app")
            conn.execute("select pgworkflows.start_workflow('a')")
            worker = "00000000-0000-0000-0000-000000000001"
            conn.execute("select pgworkflows.register_worker(%s, 'here', 1, '{default}', false, '1 minute')", [worker])
            claimed = conn.execute("select pgworkflows.claim(%s, '{default}', '{a}', 1, true, true)", [worker])
            [(answer,)] = claimed.fetchall()
            assert len(answer["runs"]) == 1
            conn.rollback()
