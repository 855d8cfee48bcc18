"""What a worker has in its hands: its id, the runs it has claimed, and the bell that wakes its dispatcher."""

from __future__ import annotations

import logging
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
        self._lock = threading.Lock()

    def add(self, execution: Execution, worker_id: UUID) -> bool:
        """Take a run in hand that was claimed under this id; False if the worker has died since."""
        with self._lock:
            if worker_id != self.worker_id:
                return False
            former = self.executions.get(execution.run.run_id)
            if former is not None:
                # The database does not know of that claim any more: a failover to a standby that lacks it. Even its
                # number may be the new one's.
                former.drop()
            self.executions[execution.run.run_id] = execution
            return True

    def remove(self, execution: Execution) -> None:
        """Let go of a run that is written, or not ours any more."""
        with self._lock:
            if self.executions.get(execution.run.run_id) is execution:
                del self.executions[execution.run.run_id]
        execution.dropped = True
        self.bell.set()

    def die(self, worker_id: UUID, logger: logging.Logger) -> None:
        """Drop everything, for another worker may have it. What is still in flight finds itself dropped, and what
        slips through is fenced off."""
        with self._lock:
            if worker_id != self.worker_id:
                return
            logger.warning(
                "pgworkflows: worker %s was declared dead, drops its %d runs and registers anew",
                worker_id,
                len(self.executions),
            )
            self.registered = False
            for execution in list(self.executions.values()):
                execution.drop()
            self.executions = {}
            self.worker_id = uuid4()
        self.bell.set()
