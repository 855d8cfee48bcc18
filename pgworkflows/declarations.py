"""What code says of its workflows, as the tables keep it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any

from pgworkflows.definition import Workflow, WorkflowRef
from pgworkflows.payloads import AS_IS, Payloads
from pgworkflows.store import interval_text


def options_of(workflow: WorkflowRef[Any, Any]) -> Mapping[str, Any] | None:
    """What the code of a workflow, or of a mere reference, says of its runs, as `workflows` stores it."""
    if not isinstance(workflow, Workflow):
        return {"singleton": True} if workflow.singleton else None
    return {
        "queue": workflow.queue,
        "priority": workflow.priority,
        "retries": workflow.retries,
        "timeout": interval_text(workflow.timeout),
        "singleton": workflow.singleton,
    }


@lru_cache(maxsize=1024)
def fallback_of(workflow: WorkflowRef[Any, Any] | None) -> Mapping[str, str | None]:
    """The same as texts, which go along with each start; empty where there is nothing to say."""
    options = {} if workflow is None else options_of(workflow) or {}
    return {
        name: value if value is None or isinstance(value, str) else json.dumps(value) for name, value in options.items()
    }


def declarations(
    workflows: Iterable[Workflow[Any, Any]], retention: timedelta | None = None, payloads: Payloads = AS_IS
) -> list[dict[str, Any]]:
    """What `workflows` stores of each; `retention` is that of those that do not say otherwise. Raises
    SerializationError if the input of a schedule cannot be encoded."""
    return [
        {
            "id": workflow.id,
            **(options_of(workflow) or {}),
            "retention": interval_text(workflow.retention or retention),
            "steps": [
                {
                    "id": step.id,
                    "kind": step.kind,
                    "conditional": step.conditional,
                    "loop": step.loop,
                    "dynamic": step.dynamic,
                }
                for step in workflow.steps
            ],
            "step_ids": literal_ids(workflow),
            "input_schema": workflow.described_input or "null",
            "schedule": _schedule_of(workflow, payloads),
        }
        for workflow in workflows
    ]


def _schedule_of(workflow: Workflow[Any, Any], payloads: Payloads) -> dict[str, str] | None:
    """What `schedules` stores. The input is the default of the workflow's input, as JSON text."""
    plan = workflow.plan
    if plan is None:
        return None
    return {
        "expression": plan.timetable.expression,
        "timezone": plan.timetable.timezone,
        "catch_up": plan.catch_up,
        "overlap": plan.overlap,
        "input": payloads.seal(workflow.validate_input(None)[0], f"the input of workflow {workflow.id!r}"),
    }


def literal_ids(workflow: Workflow[Any, Any]) -> list[str]:
    """The ids of the steps whose ids stand in the source."""
    return [step.id for step in workflow.steps if not step.dynamic]
