"""The operations as psql has them: typed by a person, in a script, and in a trigger of the application's own table."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from pages import DOCS, titled_sql
from pydantic import BaseModel
from working import rows

from pgworkflows import RunStatus, Step, Steps, WorkflowEngine, workflow
from pgworkflows.embedded.binaries import find_binaries


def find_psql() -> str | None:
    """The psql that came with the server's programs, else the PATH's."""
    binaries = find_binaries()
    return (binaries and shutil.which("psql", path=str(binaries.directory))) or shutil.which("psql")


PSQL = find_psql()
pytestmark = pytest.mark.skipif(PSQL is None, reason="neither the server's programs nor the PATH have a psql")


class Order(BaseModel):
    order_id: int


@workflow("order", retries=3)
def order(step: Step, input: Order) -> Steps[Any]:
    return (yield from step.wait_for("await-payment", "paid"))


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=[order]) as engine:
        engine.start(worker=False)  # declares what SQL is to know of the workflow, such as its retries
        yield engine


def psql(url: str, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What psql says to a script: plain rows on stdout, errors on stderr, 3 as its status when it stopped at one."""
    assert PSQL is not None
    return subprocess.run(
        [PSQL, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose", *arguments, "-d", url],
        input=script,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def said(url: str, script: str, *arguments: str) -> list[str]:
    done = psql(url, script, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def work(engine: WorkflowEngine) -> None:
    engine.worker().run_until_idle(timeout=30)


def test_a_run_is_started_told_and_seen_to_its_end(engine: WorkflowEngine, database_url: str) -> None:
    [run_id] = said(database_url, """select id from pgworkflows.start_workflow('order', '{"order_id": 7}');""")
    work(engine)
    told = "select status from pgworkflows.trigger_event(:'run_id', 'paid', '{\"cents\": 1250}');"
    assert said(database_url, told, "-v", f"run_id={run_id}") == ["pending"]
    work(engine)
    seen = "select status, output ->> 'cents' from pgworkflows.runs where id = :'run_id';"
    assert said(database_url, seen, "-v", f"run_id={run_id}") == ["completed|1250"]


def test_every_operation_can_be_typed(engine: WorkflowEngine, database_url: str) -> None:
    script = """
select id as run_id from pgworkflows.start_workflow('order', '{"order_id": 7}', priority => 'high') \\gset
select status from pgworkflows.pause_workflow(:'run_id');
select status from pgworkflows.resume_workflow(:'run_id');
select status from pgworkflows.cancel_workflow(:'run_id');
select status from pgworkflows.retry_workflow(:'run_id');
"""
    assert said(database_url, script) == ["paused", "pending", "cancelled", "pending"]
    work(engine)
    [run] = engine.get_runs().items
    assert (run.status, run.priority) == (RunStatus.WAITING, 100)
    forward = "select status from pgworkflows.fast_forward_workflow(:'run_id', '{\"cents\": 0}');"
    assert said(database_url, forward, "-v", f"run_id={run.id}") == ["pending"]
    work(engine)
    assert engine.get_run(run.id).output == {"cents": 0}


def test_the_script_on_the_page_does_what_the_page_says(engine: WorkflowEngine, database_url: str) -> None:
    assert said(database_url, titled_sql(DOCS / "sql.md")["From psql"]) == ["pending"]
    work(engine)
    [run] = engine.get_runs().items
    assert (run.status, run.output) == (RunStatus.COMPLETED, {"cents": 1250})


@pytest.mark.parametrize(("end", "expected"), [("commit", 1), ("rollback", 0)])
def test_a_transaction_starts_its_runs_when_it_commits_or_not_at_all(
    engine: WorkflowEngine, database_url: str, end: str, expected: int
) -> None:
    said(database_url, f"begin; select pgworkflows.start_workflow('order', '{{\"order_id\": 7}}') \\gset\n{end};")
    work(engine)
    assert [run.status for run in engine.get_runs().items] == [RunStatus.WAITING] * expected


def test_a_refusal_stops_a_script_with_its_sqlstate_its_reason_and_a_hint(database_url: str) -> None:
    missing = UUID(int=0)
    done = psql(database_url, f"select pgworkflows.pause_workflow('{missing}'); select 'never reached';")
    assert (done.returncode, done.stdout) == (3, "")
    assert f"PW001: run {missing} was not found" in done.stderr
    done = psql(database_url, "select pgworkflows.start_workflow('a', priority => 'urgent');")
    assert done.returncode == 3
    assert "22023: the priority must be high, normal, low or a number from -1000 to 1000, not urgent" in done.stderr
    assert rows(database_url, "select 1 from pgworkflows.runs") == []


ORDERS = """
create table public.orders (id int primary key, number text not null);
create function public.start_order() returns trigger language plpgsql as $$
begin
    perform pgworkflows.start_workflow(
        'order', json_build_object('order_id', new.number), idempotency_key => 'order-' || new.id
    );
    return null;
end
$$;
create trigger start_order after insert on public.orders for each row execute function public.start_order();
"""


class TestATrigger:
    def test_starts_the_run_with_the_commit_of_the_row(self, engine: WorkflowEngine, database_url: str) -> None:
        said(database_url, ORDERS)
        said(database_url, "begin; insert into public.orders values (1, '1');\nrollback;")
        said(database_url, "begin; insert into public.orders values (2, '2'), (3, '3');\ncommit;")
        said(database_url, "insert into public.orders values (4, '4');")
        work(engine)
        keys = {run.idempotency_key: run.status for run in engine.get_runs().items}
        assert keys == dict.fromkeys(["order-2", "order-3", "order-4"], RunStatus.WAITING)

    def test_that_is_refused_takes_the_row_with_it(self, engine: WorkflowEngine, database_url: str) -> None:
        said(database_url, ORDERS)
        engine.start_workflow(order, Order(order_id=1), idempotency_key="order-1", resource_id="somebody")
        done = psql(database_url, "insert into public.orders values (1, '1');")
        assert done.returncode == 3
        assert "PW003: idempotency key order-1 is taken by run" in done.stderr
        assert rows(database_url, "select id from public.orders") == []


class TestInputThatDoesNotFitTheSchema:
    """SQL knows no schema; the worker does. The run fails before its first step, and is not tried again."""

    def test_fails_the_run_with_an_error_that_names_the_place(self, engine: WorkflowEngine, database_url: str) -> None:
        said(database_url, ORDERS)
        said(database_url, "insert into public.orders values (1, 'seven');")
        work(engine)
        [run] = engine.get_runs().items
        assert (run.status, run.retry_count, run.max_retries) == (RunStatus.FAILED, 0, 3)
        assert run.error is not None
        assert (run.error["type"], run.error["step_id"]) == ("InvalidInputError", None)
        assert "order_id" in run.error["message"]
        assert "'order'" in run.error["message"]
        assert "seven" not in run.error["message"]
        assert engine.get_steps(run.id) == []
        query = "select error ->> 'type' from pgworkflows.runs where status = 'failed';"
        assert said(database_url, query) == ["InvalidInputError"]

    @pytest.mark.parametrize("given", ["", ", '[]'", ", '{}'", ", '\"text\"'", ", '{\"order_id\": null}'"])
    def test_whatever_it_is(self, engine: WorkflowEngine, database_url: str, given: str) -> None:
        said(database_url, f"select pgworkflows.start_workflow('order'{given}) \\gset")
        fine = engine.start_workflow(order, Order(order_id=1))
        work(engine)
        [failed] = engine.get_runs(statuses=["failed"]).items
        assert failed.error is not None
        assert failed.error["type"] == "InvalidInputError"
        assert engine.get_run(fine.id).status is RunStatus.WAITING
