"""What can be done to a run: each action as the client has it, and what it says when it is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response

from pgworkflows.client import WorkflowClient
from pgworkflows.errors import (
    ConfigurationError,
    IdempotencyConflictError,
    WorkflowEngineError,
    WorkflowRunInProgressError,
)
from pgworkflows.runs import CANCELLABLE, PAUSABLE, RESUMABLE, RETRYABLE, RunStatus, WorkflowRun
from pgworkflows.ui.visit import Visit


@dataclass(frozen=True)
class RunAction:
    """An action on a run: its name on buttons, the statuses that allow it, what was done, and the client's method."""

    label: str
    allowed: frozenset[RunStatus]
    done: str
    call: Callable[[WorkflowClient, WorkflowRun, MultiDict[str, str]], WorkflowRun]


def _trigger(client: WorkflowClient, run: WorkflowRun, form: MultiDict[str, str]) -> WorkflowRun:
    return client.trigger_event(run.id, form.get("event", "").strip(), _json(form.get("data", ""), "The event's data"))


def _fast_forward(client: WorkflowClient, run: WorkflowRun, form: MultiDict[str, str]) -> WorkflowRun:
    return client.fast_forward_workflow(run.id, _json(form.get("data", ""), "The data"))


RUN_ACTIONS: Mapping[str, RunAction] = {
    "pause": RunAction("Pause", PAUSABLE, "paused", lambda client, run, _: client.pause_workflow(run.id)),
    "resume": RunAction("Resume", RESUMABLE, "resumed", lambda client, run, _: client.resume_workflow(run.id)),
    "cancel": RunAction("Cancel", CANCELLABLE, "cancelled", lambda client, run, _: client.cancel_workflow(run.id)),
    "retry": RunAction("Retry", RETRYABLE, "retried", lambda client, run, _: client.retry_workflow(run.id)),
    "fast_forward": RunAction("Fast-forward", CANCELLABLE, "fast-forwarded", _fast_forward),
    "trigger": RunAction("Send event", CANCELLABLE, "sent the event", _trigger),
}
WITH_DATA = ("trigger", "fast_forward")
"""Those whose forms carry a payload."""
MANY = ("pause", "resume", "cancel", "retry", "fast_forward")
"""Those that are done to many runs at once."""


def allowed_actions(visit: Visit, run: WorkflowRun) -> list[str]:
    """What this visitor may do to a run, as it stands."""
    return [name for name, action in RUN_ACTIONS.items() if run.status in action.allowed and visit.may(name, run)]


def view_of(name: str) -> Callable[[Visit, WorkflowRun], Response]:
    """The view that does an action to one run."""
    action = RUN_ACTIONS[name]

    def take(visit: Visit, run: WorkflowRun) -> Response:
        try:
            now = action.call(visit.client, run, visit.request.form)
        except REFUSALS as refusal:
            visit.say(refused(visit, refusal), well=False)
        else:
            visit.say(_told(name, run, now))
        return visit.go(visit.back(visit.url("run", run_id=run.id)))

    return take


REFUSALS = (WorkflowEngineError, ValueError, TypeError)
IN_THE_WAY = "another run is in the way: it has that idempotency key, or only one may be unfinished"
"""Of a run that the visitor may not view, whatever it is that it does."""


def refused(visit: Visit, refusal: Exception) -> str:
    """Why an action was not done, as a sentence. Raises what is no refusal: a database that cannot be used."""
    if isinstance(refusal, ConfigurationError):
        raise refusal
    text = str(refusal)
    if isinstance(refusal, IdempotencyConflictError | WorkflowRunInProgressError) and not _may_know(visit, refusal):
        text = IN_THE_WAY
    return f"{text[:1].upper()}{text[1:]}." if text else type(refusal).__name__


def _may_know(visit: Visit, refusal: WorkflowEngineError) -> bool:
    """Whether this visitor may view the run that a refusal speaks of."""
    return refusal.run_id is None or visit.may_view(refusal.run_id)


def _told(name: str, before: WorkflowRun, now: WorkflowRun) -> str:
    if name == "fast_forward" and (now.status, now.updated_at) == (before.status, before.updated_at):
        return f"Nothing was done: run {now.id} is {now.status}, and waits for nothing that can be skipped."
    return f"Run {now.id}: {RUN_ACTIONS[name].done}. It is {now.status} now."


def _json(text: str, what: str) -> Any:
    """The JSON value that was typed, None for nothing. Raises ValueError."""
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is no JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
