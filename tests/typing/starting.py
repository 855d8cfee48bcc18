# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnusedFunction=false
"""What type checkers make of starts: inputs fit their workflow's schema, or are JSON. Lines marked `type: ignore` are
errors to mypy --strict and to pyright."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, assert_type
from uuid import UUID

import psycopg
from psycopg_pool import ConnectionPool
from pydantic import BaseModel

from pgworkflows import (
    Page,
    RunStatus,
    Step,
    StepRecord,
    Steps,
    WorkflowClient,
    WorkflowEngine,
    WorkflowProgress,
    WorkflowRun,
    workflow,
    workflow_ref,
)


class SignUp(BaseModel):
    email: str


class Other(BaseModel):
    email: str


class Order(TypedDict):
    item: str


@workflow("sign-up")
def sign_up(step: Step, input: SignUp) -> Steps[int]:
    return (yield from step.run("count", len, input.email))


@workflow("count")
def count(step: Step, input: int) -> Steps[int]:
    return (yield from step.run("count", abs, input))


@workflow("maybe")
def maybe(step: Step, input: SignUp | None = None) -> Steps[int]:
    return (yield from step.run("count", abs, 5 if input is None else -5))


@workflow("several")
def several(step: Step, input: list[SignUp]) -> Steps[int]:
    return (yield from step.run("count", len, input))


@workflow("alone")
def alone(step: Step) -> Steps[None]:
    yield from step.pause("pause")


loose = workflow_ref("loose")
ordered = workflow_ref("ordered", input_schema=Order)
wanted = workflow_ref("wanted", input_schema=SignUp, output_schema=int)


def starts(client: WorkflowClient, engine: WorkflowEngine) -> None:
    assert_type(client.start_workflow(sign_up, SignUp(email="e")), WorkflowRun)
    assert_type(engine.start_workflow(sign_up, SignUp(email="e")), WorkflowRun)
    client.start_workflow(sign_up, {"email": "e"})
    client.start_workflow(wanted, SignUp(email="e"))
    client.start_workflow(ordered, {"item": "i"})
    client.start_workflow(ordered, Order(item="i"))
    client.start_workflow(count, 5)
    client.start_workflow(count)
    client.start_workflow(alone)
    client.start_workflow(maybe)
    client.start_workflow(maybe, SignUp(email="e"))
    client.start_workflow(several, [SignUp(email="e"), {"email": "f"}])
    client.start_workflow(loose, Other(email="e"))
    client.start_workflow(loose, datetime.now(UTC))
    client.start_workflow("by-id", {"email": ["e"]})
    client.start_workflow("by-id", Other(email="e"))
    client.start_workflow("by-id", [1, "two", None])

    assert_type(client.start_workflows(sign_up, [SignUp(email="e"), SignUp(email="f")]), list[WorkflowRun])
    client.start_workflows(sign_up, ({"email": str(n)} for n in range(5)), idempotency_keys=["a", None])
    client.start_workflows(alone, [None, None], singleton=False)
    client.start_workflows("by-id", range(5), delay="1d")
    client.start_workflows(loose, [Other(email="e")])

    client.start_workflows(sign_up, [Other(email="e")])  # type: ignore[misc]
    client.start_workflows(sign_up, 5)  # type: ignore[arg-type]
    client.start_workflow(sign_up, Other(email="e"))  # type: ignore[misc]
    client.start_workflow(wanted, Other(email="e"))  # type: ignore[misc]
    client.start_workflow(count, datetime.now(UTC))  # type: ignore[misc]
    client.start_workflow(5)  # type: ignore[arg-type]
    client.start_workflow(sign_up, {"email": "e"}, "resource")  # type: ignore[call-arg]


def options(client: WorkflowClient, connection: psycopg.Connection[Any]) -> None:
    client.start_workflow("a", priority="high", retries=3, timeout="1d", queue="q", delay=timedelta(hours=1))
    client.start_workflow("a", priority=5, timeout=1.5, run_at=datetime.now(UTC), resource_id="r")
    client.start_workflow("a", run_at="2030-01-01T00:00:00Z", idempotency_key="k", connection=connection)
    client.start_workflow("a", retries="3")  # type: ignore[arg-type]
    client.start_workflow("a", run_at=5)  # type: ignore[arg-type]
    client.start_workflow("a", resource_id=5)  # type: ignore[arg-type]


def others(client: WorkflowClient, run_id: UUID, text: str) -> None:
    assert_type(client.trigger_event(run_id, "paid", {"a": 1}, resource_id="r", idempotency_key="k"), WorkflowRun)
    assert_type(client.pause_workflow(text, resource_id="r", connection=None), WorkflowRun)
    assert_type(client.resume_workflow(run_id), WorkflowRun)
    assert_type(client.cancel_workflow(run_id), WorkflowRun)
    assert_type(client.retry_workflow(run_id), WorkflowRun)
    assert_type(client.fast_forward_workflow(run_id, 5, resource_id="r"), WorkflowRun)
    assert_type(client.get_run(text), WorkflowRun)
    assert_type(client.get_steps(run_id), list[StepRecord])
    assert_type(client.check_progress(run_id), WorkflowProgress)
    assert_type(client.get_runs(statuses=["failed", RunStatus.CANCELLED], limit=5), Page)
    assert_type(client.get_workflow_last_run("sign-up", resource_id="r"), WorkflowRun | None)
    assert_type(client.wait_for_run(run_id, timeout="1m"), WorkflowRun)
    client.get_run(5)  # type: ignore[arg-type]


def construction(pool: ConnectionPool[Any], plain: ConnectionPool) -> None:
    assert_type(WorkflowClient(), WorkflowClient)
    WorkflowClient("postgresql://…", schema="flows")
    WorkflowClient(pool=pool)
    WorkflowEngine("postgresql://…", workflows=[sign_up, count, alone], pool=plain, schema="flows", logger=None)
    with WorkflowEngine() as engine:
        assert_type(engine, WorkflowEngine)
    WorkflowEngine("postgresql://…", workflows=[loose])  # type: ignore[list-item]
    WorkflowClient("postgresql://…", "flows")  # type: ignore[call-arg, arg-type]
