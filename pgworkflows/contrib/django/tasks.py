"""A backend for Django's tasks (`django.tasks` of Django 6, the package django-tasks before): each task is a run of one
workflow, whose steps are its attempts."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.util import find_spec
from traceback import format_exception
from typing import TYPE_CHECKING, Any

from django.core import checks
from django.utils import timezone
from django.utils.module_loading import import_string

from pgworkflows.commands import Step, Steps
from pgworkflows.contrib.django.engines import DjangoEngine, engine
from pgworkflows.current import current_step
from pgworkflows.definition import workflow
from pgworkflows.errors import WorkflowRunNotFoundError
from pgworkflows.history import StepRecord
from pgworkflows.runs import RunStatus, WorkflowRun

if TYPE_CHECKING or find_spec("django.tasks") is not None:
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import TaskContext, TaskError, TaskResult, TaskResultStatus
    from django.tasks.exceptions import TaskResultDoesNotExist
    from django.tasks.signals import task_enqueued, task_finished, task_started
    from django.utils.json import normalize_json
else:
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.base import TaskContext, TaskError, TaskResult, TaskResultStatus
    from django_tasks.exceptions import TaskResultDoesNotExist
    from django_tasks.signals import task_enqueued, task_finished, task_started
    from django_tasks.utils import normalize_json

WORKFLOW = "django.task"
OPTIONS = {"database", "attempts", "timeout"}
FIRST_WAIT_S = 1
LONGEST_WAIT_S = 300
HEAD_START = 10
"""A task's priority, from -100 to 100, times this is a run's: seconds."""

STATUSES: Mapping[RunStatus, Any] = {
    RunStatus.PENDING: TaskResultStatus.READY,
    RunStatus.WAITING: TaskResultStatus.READY,
    RunStatus.PAUSED: TaskResultStatus.READY,
    RunStatus.RUNNING: TaskResultStatus.RUNNING,
    RunStatus.COMPLETED: TaskResultStatus.SUCCESSFUL,
    RunStatus.FAILED: TaskResultStatus.FAILED,
    RunStatus.CANCELLED: TaskResultStatus.FAILED,
}


class TaskFailedError(Exception):
    """A task has failed in all its attempts."""


class TaskBackend(BaseTaskBackend):
    """Starts a run for each task, in the transaction that is open. Its OPTIONS: `database`, an alias; `attempts`, how
    often a task that fails is tried in all; `timeout`, how long one may take."""

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def engine(self) -> DjangoEngine:
        """The engine of the database that this backend's tasks are in."""
        return engine(self.options.get("database"))

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Start the run of a task. Raises what the framework raises for a task that cannot be."""
        self.validate_task(task)
        result = _result(task, args=list(args), kwargs=dict(kwargs), backend=self.alias)
        run_at = task.run_after
        if run_at is not None and timezone.is_naive(run_at):
            run_at = timezone.make_aware(run_at)
        run = self.engine().start_workflow(
            run_task,
            {
                "task": task.module_path,
                "args": result.args,
                "kwargs": result.kwargs,
                "backend": self.alias,
                "priority": task.priority,
                "queue_name": task.queue_name,
                "run_after": None if run_at is None else run_at.isoformat(),
                "attempts": self.options.get("attempts", 1),
            },
            queue=task.queue_name,
            priority=int(task.priority) * HEAD_START,
            run_at=run_at,
            timeout=self.options.get("timeout"),
        )
        _set(result, id=str(run.id), enqueued_at=run.created_at)
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> Any:
        """What is known of a task. Raises TaskResultDoesNotExist."""
        found = self.engine()
        try:
            run = found.get_run(str(result_id))
        except WorkflowRunNotFoundError:
            raise TaskResultDoesNotExist(result_id) from None
        if run.workflow_id != WORKFLOW or run.input["backend"] != self.alias:
            raise TaskResultDoesNotExist(result_id)
        return _result_of(run, found.get_steps(run.id))

    def check(self, **kwargs: Any) -> list[Any]:
        """What is wrong with the OPTIONS."""
        return [
            checks.Error(f"TASKS[{self.alias!r}]: {problem}", id="pgworkflows.E004") for problem in self._problems()
        ]

    def _problems(self) -> Iterable[str]:
        given: dict[str, Any] = dict(self.options)
        for name in sorted({*given} - OPTIONS):
            yield f"{name!r} is no option: these are {', '.join(sorted(OPTIONS))}"
        attempts: object = given.get("attempts", 1)
        if type(attempts) is not int or attempts < 1:
            yield f"attempts must be an int, at least 1, not {attempts!r}"


@workflow(WORKFLOW)
def run_task(step: Step, input: dict[str, Any]) -> Steps[Any]:
    """Call a task, and again if it fails and may be tried again."""
    failures: list[Any] = []
    for number in range(1, input["attempts"] + 1):
        outcome: dict[str, Any] = yield from step.run(f"attempt-{number}", _attempt, input, [*failures])
        if "error" not in outcome:
            return outcome["value"]
        failures.append(outcome)
        if number < input["attempts"]:
            yield from step.delay(f"wait-{number}", min(FIRST_WAIT_S * 2 ** (number - 1), LONGEST_WAIT_S))
    raise TaskFailedError(f"task {input['task']} has failed: {failures[-1]['error']['exception_class_path']}")


def _attempt(given: dict[str, Any], failures: list[Any]) -> dict[str, Any]:
    """Call the task's function: what it returned or raised, which is both an outcome of its own."""
    worker = f"{socket.gethostname()}:{os.getpid()}"
    task = _task(given)
    result = _result(task, args=given["args"], kwargs=given["kwargs"], backend=given["backend"])
    now = timezone.now()
    _set(result, id=str(current_step().run_id), status=TaskResultStatus.RUNNING, started_at=now, last_attempted_at=now)
    result.errors.extend(TaskError(**each["error"]) for each in failures)
    result.worker_ids.extend([*(each["worker"] for each in failures), worker])
    backend: object = task.get_backend()
    sender = type(backend)
    try:
        task_started.send(sender, task_result=result)
        leading: tuple[Any, ...] = (TaskContext(task_result=result),) if task.takes_context else ()
        value = normalize_json(task.call(*leading, *result.args, **result.kwargs))
    except (Exception, SystemExit) as error:
        failure = {
            "exception_class_path": f"{type(error).__module__}.{type(error).__qualname__}",
            "traceback": "".join(format_exception(error)),
        }
        result.errors.append(TaskError(**failure))
        if len(result.errors) >= given["attempts"]:
            _set(result, status=TaskResultStatus.FAILED, finished_at=timezone.now())
            task_finished.send_robust(sender, task_result=result)
        return {"error": failure, "worker": worker}
    _set(result, status=TaskResultStatus.SUCCESSFUL, finished_at=timezone.now(), _return_value=value)
    task_finished.send_robust(sender, task_result=result)
    return {"value": value, "worker": worker}


def _task(given: Mapping[str, Any]) -> Any:
    """The task that a run is of."""
    run_after = given["run_after"]
    return import_string(given["task"]).using(
        priority=given["priority"],
        queue_name=given["queue_name"],
        run_after=None if run_after is None else datetime.fromisoformat(run_after),
        backend=given["backend"],
    )


def _result(task: Any, *, args: list[Any], kwargs: dict[str, Any], backend: str) -> Any:
    return TaskResult(
        task=task,
        id="",
        status=TaskResultStatus.READY,
        enqueued_at=None,
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=args,
        kwargs=kwargs,
        backend=backend,
        errors=[],
        worker_ids=[],
    )


def _result_of(run: WorkflowRun, steps: list[StepRecord]) -> Any:
    given = run.input
    result = _result(_task(given), args=given["args"], kwargs=given["kwargs"], backend=given["backend"])
    attempts = [each for each in steps if each.step_id.startswith("attempt-") and each.output is not None]
    _set(
        result,
        id=str(run.id),
        status=STATUSES[run.status],
        enqueued_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.completed_at,
        last_attempted_at=attempts[-1].started_at if attempts else run.started_at,
        _return_value=run.output,
    )
    result.worker_ids.extend(each.output["worker"] for each in attempts)
    result.errors.extend(TaskError(**each.output["error"]) for each in attempts if "error" in each.output)
    if run.error is not None and not result.errors:
        # Not the function's own: the run's time was up, or a result could not be stored.
        path = f"{TaskFailedError.__module__}.{TaskFailedError.__qualname__}"
        text = run.error.get("traceback") or f"{run.error['type']}: {run.error['message']}"
        result.errors.append(TaskError(exception_class_path=path, traceback=text))
    return result


def _set(result: Any, **values: Any) -> None:
    """Set fields of a result, which is frozen for others."""
    for name, value in values.items():
        object.__setattr__(result, name, value)
