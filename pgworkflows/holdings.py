"""What a worker has in its hands: its id, the runs it has claimed, and the bell that wakes its dispatcher."""

from __future__ import annotations

import threading
from uuid import UUID, uuid4

from pgworkflows.runner import Execution


class Holdings:
    """Shared by a worker's threads. A worker that was declared dead drops everything and gets a new id."""

    def __init__(self) -> None:
        self.worker_id: UUID = uuid4()
        self.registered = False
        self.executions: dict[str, Execution] = {}
        self.bell = threading.Event()

    def add(self, execution: Execution) -> None:
        """Take a claimed run in hand."""
        self.executions[execution.run.run_id] = execution

    def remove(self, execution: Execution) -> None:
        """Let go of a run that is written, or not ours any more."""
        if self.executions.get(execution.run.run_id) is execution:
            del self.executions[execution.run.run_id]
        execution.dropped = True
        self.bell.set()

    def die(self, worker_id: UUID) -> None:
        """Drop everything, for another worker may have it. What is still in flight finds itself dropped, and what
        slips through is fenced off."""
        if worker_id != self.worker_id:
            return
        self.registered = False
        for execution in list(self.executions.values()):
            execution.drop()
        self.executions = {}
        self.worker_id = uuid4()
        self.bell.set()
