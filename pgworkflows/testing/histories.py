"""Histories of runs as JSON: taken from a database, kept in a file, read again where there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias, cast
from uuid import UUID

from pgworkflows.claims import error_from
from pgworkflows.client import WorkflowClient
from pgworkflows.database import connect
from pgworkflows.history import StepKind, StepStatus, StoredStep
from pgworkflows.operations import RunId, not_found, run_key
from pgworkflows.payloads import Payloads
from pgworkflows.runs import RunStatus
from pgworkflows.schema import statement
from pgworkflows.store import moment_from

FORMAT = "pgworkflows history"
VERSION = 1

Redact: TypeAlias = Callable[[str, Any], Any]


@dataclass(frozen=True)
class History:
    """What a replay needs to know of a run. `input` is JSON text, `error_type` what it failed with."""

    run_id: UUID
    workflow_id: str
    status: RunStatus
    input: str
    error_type: str | None
    resource_id: str | None
    attempt: int
    schedule_timestamp: datetime | None
    steps: tuple[StoredStep, ...]


def export_run(client: WorkflowClient, run_id: RunId, *, redact: Redact | None = None) -> dict[str, Any]:
    """The history of a run, finished or not, as a JSON value: for `check_replay`, in a file beside your tests.

    `redact(place, value)` is given what may be confidential, and returns what to keep in its place: the input (place
    "input"), the output ("output"), a step's result ("steps.<id>") and the messages of errors ("error",
    "steps.<id>.error"). Leave what the handler decides by. Tracebacks are left out. Raises WorkflowRunNotFoundError.
    """
    key = run_key(run_id)
    with connect(client.conninfo) as conn:
        found = conn.fetch(statement("get_history", client.schema), (str(key),))
    if not found:
        raise not_found(key, None)
    row = json.loads(found[0][0])
    return history_from(row["run"], row["steps"], client.payloads, redact)


def history_from(
    run: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], payloads: Payloads, redact: Redact | None
) -> dict[str, Any]:
    """A history made of the rows of a run and of its steps."""
    keep: Redact = redact or _everything
    tick = moment_from(run["schedule_tick"])
    return {
        "format": FORMAT,
        "version": VERSION,
        "redacted": redact is not None,
        "run": {
            "id": run["id"],
            "workflow_id": run["workflow_id"],
            "status": run["status"],
            "input": keep("input", payloads.shown(run["input"])),
            "output": keep("output", payloads.shown(run["output"])),
            "error": _error(payloads.shown_error(run["error"]), "error", keep),
            "resource_id": run["resource_id"],
            "attempt": run["retry_count"] + 1,
            "schedule_timestamp": None if tick is None else tick.isoformat(),
        },
        "steps": [_step(step, payloads, keep) for step in steps],
    }


def read_history(history: Mapping[str, Any] | str | os.PathLike[str]) -> History:
    """A history as `export_run` has made it, or the path of a file with it as JSON. Raises ValueError."""
    if isinstance(history, str | os.PathLike):
        history = cast("Mapping[str, Any]", json.loads(Path(history).read_text(encoding="utf-8")))
    if history.get("format") != FORMAT or history.get("version") != VERSION:
        raise ValueError(f"this is no history of version {VERSION}: make it with pgworkflows.testing.export_run")
    run = history["run"]
    return History(
        run_id=UUID(run["id"]),
        workflow_id=run["workflow_id"],
        status=RunStatus(run["status"]),
        input=_text(run["input"]),
        error_type=None if run["error"] is None else run["error"]["type"],
        resource_id=run["resource_id"],
        attempt=run["attempt"],
        schedule_timestamp=moment_from(run["schedule_timestamp"]),
        steps=tuple(_stored(step) for step in history["steps"]),
    )


def _everything(_place: str, value: Any) -> Any:
    return value


def _step(step: Mapping[str, Any], payloads: Payloads, keep: Redact) -> dict[str, Any]:
    place = f"steps.{step['step_id']}"
    output: Any = payloads.shown(step["output"])
    if step["kind"] == StepKind.POLL and step["status"] == StepStatus.COMPLETED and "data" in output:
        output["data"] = payloads.shown(output["data"])  # of one that was fast-forwarded
    return {
        "position": step["position"],
        "id": step["step_id"],
        "kind": step["kind"],
        "status": step["status"],
        "output": keep(place, output),
        "error": _error(payloads.shown_error(step["error"]), f"{place}.error", keep),
        "attempts": step["attempts"],
        "event_name": step["event_name"],
    }


def _error(error: Mapping[str, Any] | None, place: str, keep: Redact) -> dict[str, Any] | None:
    """What a handler may see of a failure."""
    if error is None:
        return None
    told = {"type": error["type"], "message": keep(place, error["message"]), "step_id": error.get("step_id")}
    child = error.get("child")
    if child is not None:
        told["child"] = {**child, "error": _error(child["error"], place, keep)}
    return told


def _stored(step: Mapping[str, Any]) -> StoredStep:
    """Without times: at the beginning of all time no wait is over that was not over then."""
    status = StepStatus(step["status"])
    return StoredStep(
        step["position"],
        step["id"],
        StepKind(step["kind"]),
        status,
        _text(step["output"]) if status is StepStatus.COMPLETED else None,
        None if step["error"] is None else error_from(step["error"]),
        step["attempts"],
    )


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
