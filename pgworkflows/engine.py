"""The engine: a client that also knows handlers, and can run a worker beside its caller."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pgworkflows.client import WorkflowClient
from pgworkflows.database import Pool
from pgworkflows.declarations import declarations, literal_ids
from pgworkflows.definition import Workflow, WorkflowRef
from pgworkflows.durations import Duration, parse_positive_duration
from pgworkflows.errors import WorkflowNotFoundError
from pgworkflows.limits import checked_identifier
from pgworkflows.payloads import PayloadCodec
from pgworkflows.plugins import Plugin
from pgworkflows.registry import WorkflowRegistry
from pgworkflows.schema import DEFAULT_SCHEMA
from pgworkflows.starting import Target, checked_ref
from pgworkflows.worker import BackgroundWorker, Worker


class WorkflowEngine(WorkflowClient):
    """A client with workflows. `start` applies migrations and runs a worker in a thread; `worker` makes one for a
    process of its own. Parameters as for WorkflowClient; `logger` is told what goes wrong with workers, `plugins` stand
    around the runs of all its workflows, and `retention` is how long finished runs are kept where their workflow does
    not say otherwise."""

    def __init__(
        self,
        conninfo: str | None = None,
        *,
        workflows: Iterable[Workflow[Any, Any]] = (),
        pool: Pool | None = None,
        schema: str = DEFAULT_SCHEMA,
        logger: logging.Logger | None = None,
        plugins: Iterable[Plugin] = (),
        retention: Duration | None = None,
        codec: PayloadCodec | None = None,
        read_codecs: Iterable[PayloadCodec] = (),
        listen_conninfo: str | None = None,
    ) -> None:
        self.retention = None if retention is None else parse_positive_duration(retention, "retention")
        self._registry = WorkflowRegistry()
        for workflow in workflows:
            self._registry.register(workflow)
        super().__init__(
            conninfo,
            pool=pool,
            schema=schema,
            plugins=plugins,
            listen_conninfo=listen_conninfo,
            codec=codec,
            read_codecs=read_codecs,
        )
        self.logger = logger or self.logger
        self._worker: Worker | None = None
        self._thread: threading.Thread | None = None

    def register_workflow(self, workflow: Workflow[Any, Any]) -> None:
        """Add a workflow, also while a worker runs. Raises ConfigurationError (the id is taken, or a step is never
        yielded) and DuplicateStepError."""
        self._registry.register(workflow)

    def unregister_workflow(self, workflow_id: str) -> None:
        """Take a workflow out: its runs stay, and wait for a worker that has it. Raises WorkflowNotFoundError."""
        self._registry.unregister(workflow_id)

    def unregister_all_workflows(self) -> None:
        """Take all workflows out."""
        self._registry.clear()

    def start(self, worker: bool = True, **options: Any) -> None:
        """Apply migrations, declare the workflows and, with `worker`, work in a background thread; the options are
        those of Worker. Raises ConfigurationError. Does nothing while the worker is running."""
        if self._thread is not None and self._thread.is_alive():
            return
        made = BackgroundWorker(self, **options)
        self.migrate()
        declared = declarations(self.registered.values(), self.retention, self.payloads)
        self._store.declare_workflows(self._database, declared)
        if worker:
            self._worker = made
            self._thread = threading.Thread(target=self._worker.run_forever, name="pgworkflows-worker", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the worker that `start` has started: steps in flight end, or are released. Idempotent."""
        worker, thread = self._worker, self._thread
        self._worker = self._thread = None
        if worker is not None and thread is not None:
            worker.stop()
            # A worker that is just starting has not been waited for. A step cannot wait for its own worker.
            if not threading.current_thread().name.startswith("pgworkflows-"):
                thread.join()

    def close(self) -> None:
        """Stop the worker and close the connections."""
        self.stop()
        super().close()

    def worker(self, **options: Any) -> Worker:
        """A worker for this engine's workflows; the options are those of Worker."""
        return Worker(self, **options)

    @property
    def registered(self) -> Mapping[str, Workflow[Any, Any]]:
        """The workflows by id, as they are now."""
        return self._registry.snapshot()

    def _target(self, workflow: WorkflowRef[Any, Any] | str) -> Target:
        """As it is registered here. A reference may also be to a workflow of another program's."""
        if isinstance(workflow, str):
            known = self._known(checked_identifier(workflow, "the workflow id"))
            if known is None:
                raise _not_registered(workflow)
            return Target(workflow, known, known)
        checked_ref(workflow)
        known = self._known(workflow.id)
        if known is None:
            if isinstance(workflow, Workflow):
                raise _not_registered(workflow.id)
            return Target(workflow.id, workflow, workflow)
        if known is workflow:
            return Target(workflow.id, known, known)
        if isinstance(workflow, Workflow):
            raise _not_registered(workflow.id)
        # A reference without a schema takes anything; the handler's annotation tells more.
        return Target(workflow.id, known if workflow.input_schema is None else workflow, known)

    def _known(self, workflow_id: str, /) -> Workflow[Any, Any] | None:
        return self._registry.get(workflow_id)

    @property
    def _lanes(self) -> Mapping[str, str]:
        return {workflow.id: workflow.queue for workflow in self.registered.values()}

    @property
    def _known_steps(self) -> Mapping[str, Sequence[str]]:
        return {workflow.id: literal_ids(workflow) for workflow in self.registered.values()}


def _not_registered(workflow_id: str) -> WorkflowNotFoundError:
    return WorkflowNotFoundError(
        f"workflow {workflow_id!r} is not registered with this engine: pass it in workflows=, or start it with a "
        f"workflow_ref or through a WorkflowClient",
        workflow_id=workflow_id,
    )
