"""What views and models call: each joins the transaction that Django has open on its database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from asgiref.sync import sync_to_async

from pgworkflows.commands import Json
from pgworkflows.contrib.django.engines import engine
from pgworkflows.definition import WorkflowRef
from pgworkflows.operations import RunId
from pgworkflows.runs import WorkflowRun

I = TypeVar("I")  # noqa: E741


def start_workflow(
    workflow: WorkflowRef[I, Any] | str, input: I | Json = None, *, using: str | None = None, **options: Any
) -> WorkflowRun:
    """Start a run in the transaction that is open on the database `using`, or else on the one that the routers name: it
    starts when that commits, at once where none is open, and never when it is rolled back.

    Options and errors are those of `WorkflowEngine.start_workflow`.
    """
    return engine(using).start_workflow(workflow, input, **options)


def start_workflows(
    workflow: WorkflowRef[I, Any] | str, inputs: Iterable[I | Json], *, using: str | None = None, **options: Any
) -> list[WorkflowRun]:
    """Start many runs in one statement, all or none; otherwise as `start_workflow`."""
    return engine(using).start_workflows(workflow, inputs, **options)


def trigger_event(
    run_id: RunId, event_name: str, data: Any = None, *, using: str | None = None, **options: Any
) -> WorkflowRun:
    """Send an event in the transaction that is open; options and errors are those of `WorkflowEngine.trigger_event`."""
    return engine(using).trigger_event(run_id, event_name, data, **options)


async def astart_workflow(
    workflow: WorkflowRef[I, Any] | str, input: I | Json = None, *, using: str | None = None, **options: Any
) -> WorkflowRun:
    """`start_workflow` for async views, in the thread of their other synchronous calls."""
    return await sync_to_async(start_workflow)(workflow, input, using=using, **options)
