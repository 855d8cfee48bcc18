"""The workflows that one engine knows, by their ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgworkflows.definition import Workflow, WorkflowRef
from pgworkflows.errors import ConfigurationError, WorkflowNotFoundError
from pgworkflows.limits import quoted


class WorkflowRegistry:
    """The workflows of one engine by their ids. Threads may use it at once: each change is one step of a dict."""

    def __init__(self) -> None:
        # Each entry is a tuple of its own, so that setdefault tells who came first, also for the same workflow.
        self._entries: dict[str, tuple[Workflow[Any, Any]]] = {}

    def register(self, workflow: Workflow[Any, Any]) -> None:
        """Add a workflow. Raises ConfigurationError if its id is taken, TypeError for what is no workflow, and what
        `check_registrable` raises."""
        _check_kind(workflow)
        workflow.check_registrable()
        entry = (workflow,)
        if self._entries.setdefault(workflow.id, entry) is not entry:
            raise ConfigurationError(
                f"workflow {workflow.id!r} is registered already; unregister it first", workflow_id=workflow.id
            )

    def unregister(self, workflow_id: str) -> Workflow[Any, Any]:
        """Take a workflow out and return it. Raises WorkflowNotFoundError."""
        entry = self._entries.pop(workflow_id, None)
        if entry is None:
            raise WorkflowNotFoundError(f"no workflow {quoted(workflow_id)} is registered", workflow_id=workflow_id)
        return entry[0]

    def clear(self) -> None:
        """Take all workflows out."""
        self._entries.clear()

    def get(self, workflow_id: str) -> Workflow[Any, Any] | None:
        """The workflow of that id, or None."""
        entry = self._entries.get(workflow_id)
        return None if entry is None else entry[0]

    def snapshot(self) -> Mapping[str, Workflow[Any, Any]]:
        """The workflows by id as they are now; later changes do not show."""
        return {workflow_id: entry[0] for workflow_id, entry in self._entries.copy().items()}


def _check_kind(given: object) -> None:
    if isinstance(given, Workflow):
        return
    name = quoted(given)
    if isinstance(given, WorkflowRef):
        raise TypeError(f"{name} has no handler: make a workflow of it with @ref.handler(), and register that")
    raise TypeError(f"a workflow is made with @workflow(…), which {name} is not")
