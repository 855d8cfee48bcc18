"""Starting runs: a form made of the input's schema, the JSON itself where one likes that better, and the same again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Response

from pgworkflows.definition import Workflow, WorkflowRef, workflow_ref
from pgworkflows.engine import WorkflowEngine
from pgworkflows.errors import InvalidInputError
from pgworkflows.limits import checked_identifier
from pgworkflows.runs import WorkflowRun
from pgworkflows.ui.fields import ABSENT, Field, Kind, Schema
from pgworkflows.ui.forms import FormMaker
from pgworkflows.ui.redaction import holds_mask, still_hidden
from pgworkflows.ui.steering import IN_THE_WAY, REFUSALS, refused
from pgworkflows.ui.typed import place, remove_item, value_of
from pgworkflows.ui.visit import Visit
from pgworkflows.ui.wording import pretty

OPTIONS = {
    "resource_id": "Resource",
    "idempotency_key": "Idempotency key",
    "priority": "Priority",
    "queue": "Queue",
    "delay": "Delay",
}


@dataclass(frozen=True)
class Startable:
    """A workflow to start; `schema` is its input's JSON Schema, if that is known. `known`: code has declared it."""

    id: str
    schema: Schema | None
    known: bool = True


def show_form(visit: Visit) -> Response:
    """The workflows to start, or the form of one, empty or with the input of a run."""
    workflow_id = visit.request.args.get("workflow", "")
    if not workflow_id:
        return visit.page("start_which.html", workflows=_all(visit))
    found = _startable(visit, workflow_id)
    origin = visit.request.args.get("from")
    stored, value = (ABSENT, ABSENT) if origin is None else _input_of(visit, origin)
    top = _fields(found, value, as_json=visit.request.args.get("as") == "json")
    return _page(visit, found, top, hidden_of=origin if origin and stored != value else "")


def take_form(visit: Visit) -> Response:
    """Start a run, or show the form again: longer, shorter, as JSON, or with what is wrong at its fields."""
    form = visit.request.form
    found = _startable(visit, form.get("workflow", ""))
    maker = FormMaker(found.schema or {})
    top = maker.of_form(form)
    verb, _, name = form.get("do", "start").partition(":")
    match verb:
        case "add":
            maker.add_item(top, name)
        case "remove":
            remove_item(top, name)
        case "json" | "fields":
            top = _switched(found, top, as_json=verb == "json")
        case "start":
            return _started(visit, found, top)
        case _:
            raise BadRequest("This form does not know that button.")
    return _page(visit, found, top)


def start_again(visit: Visit, run: WorkflowRun) -> Response:
    """Start another run with the same input, whoever may see it or not."""
    try:
        new = visit.client.start_workflow(
            _known(visit, run.workflow_id),
            run.input,
            resource_id=run.resource_id,
            queue=run.queue,
            priority=run.priority,
        )
    except REFUSALS as refusal:
        # What pydantic says of the stored input is shown as an error of the run's would be.
        told = {"type": type(refusal).__name__, "message": refused(visit, refusal), "traceback": None}
        shown = visit.error(told) if isinstance(refusal, InvalidInputError) else told
        visit.say(str((shown or told)["message"]), well=False)
        return visit.go(visit.url("run", run_id=run.id))
    visit.say(f"Started {visit.named(new)} with the input of run {run.id}.")
    return _to(visit, new)


def _started(visit: Visit, found: Startable, top: Field) -> Response:
    value, hidden_of = value_of(top), visit.request.form.get("hidden_of", "")
    if any(each.errors for each in top.walk()):
        return _page(visit, found, top, problem="Nothing was started: some fields cannot be read.")
    if holds_mask(value) or (hidden_of and still_hidden(*_input_of(visit, hidden_of), value)):
        return _page(visit, found, top, problem="Nothing was started: replace what is hidden by what it is.")
    options = {name: text.strip() for name in OPTIONS if (text := visit.request.form.get(f"option:{name}", "")).strip()}
    try:
        before = _holder(visit, options.get("idempotency_key"))
        run = visit.client.start_workflow(
            _known(visit, found.id), None if value is ABSENT else value, **_options(options)
        )
    except InvalidInputError as error:
        place(top, error.issues)
        problem = "Nothing was started: the input does not fit." if error.issues else refused(visit, error)
        return _page(visit, found, top, problem=problem)
    except REFUSALS as refusal:
        return _page(visit, found, top, problem=f"Nothing was started. {refused(visit, refusal)}")
    if run.id != before:
        visit.say(f"Started {visit.named(run)}.")
    elif visit.may("view", run):
        visit.say(f"Nothing was started: run {run.id} has that idempotency key.", well=False)
    else:
        return _page(visit, found, top, problem=f"Nothing was started: {IN_THE_WAY}.")
    return _to(visit, run)


def _holder(visit: Visit, idempotency_key: str | None) -> UUID | None:
    """The run that has an idempotency key, which a start answers with."""
    if idempotency_key is None:
        return None
    return next((run.id for run in visit.client.get_runs(idempotency_key=idempotency_key, limit=1).items), None)


def _to(visit: Visit, run: WorkflowRun) -> Response:
    """On to a run that was started, for whoever may view it."""
    return visit.go(visit.url("run", run_id=run.id) if visit.may("view", run) else visit.url("start"))


def _options(given: dict[str, str]) -> dict[str, Any]:
    """A start's options as the client takes them: a priority may be a number."""
    priority = given.get("priority")
    if priority is not None and priority.lstrip("+-").isdecimal() and len(priority) < 10:
        return {**given, "priority": int(priority)}
    return dict(given)


def _page(visit: Visit, found: Startable, top: Field, *, problem: str = "", hidden_of: str = "") -> Response:
    return visit.page(
        "start.html",
        status=422 if problem else 200,
        workflow=found,
        top=top,
        problem=problem,
        hidden_of=hidden_of or visit.request.form.get("hidden_of", ""),
        options={name: (label, visit.request.form.get(f"option:{name}", "")) for name, label in OPTIONS.items()},
    )


def _fields(found: Startable, value: Any, *, as_json: bool) -> Field:
    if found.schema is None or as_json:
        text = "" if value is ABSENT else pretty(value)
        return Field(path=(), label="Input", kind=Kind.JSON, required=False, hint="JSON", text=text)
    return FormMaker(found.schema).of_value(value)


def _switched(found: Startable, top: Field, *, as_json: bool) -> Field:
    """The same input in the other way, or as it was, if it cannot be read."""
    value = value_of(top)
    return top if any(each.errors for each in top.walk()) else _fields(found, value, as_json=as_json)


def _input_of(visit: Visit, run_id: str) -> tuple[Any, Any]:
    """The input of a run as it is stored, and as this visitor may see it."""
    run = visit.client.get_run(run_id)
    visit.require("view", run)
    return run.input, visit.dashboard.redaction.shown("input", run.input)


def _registered(visit: Visit) -> dict[str, Workflow[Any, Any]]:
    return dict(visit.client.registered) if isinstance(visit.client, WorkflowEngine) else {}


def _known(visit: Visit, workflow_id: str) -> WorkflowRef[Any, Any]:
    """The workflow as its code has it, where this process knows that."""
    return _registered(visit).get(workflow_id) or workflow_ref(workflow_id)


def _all(visit: Visit) -> list[Startable]:
    declared = {each.id: Startable(each.id, each.input_schema) for each in visit.inspector.get_declared()}
    # The code that checks the input says what it takes; what was declared may be of another release, or not be yet.
    registered = {
        each.id: Startable(each.id, json.loads(each.described_input or "null")) for each in _registered(visit).values()
    }
    return sorted({**declared, **registered}.values(), key=lambda each: each.id)


def _startable(visit: Visit, workflow_id: str) -> Startable:
    for each in _all(visit):
        if each.id == workflow_id:
            return each
    try:
        return Startable(checked_identifier(workflow_id, "the workflow id"), None, known=False)
    except ValueError as error:
        raise BadRequest(f"{error}.") from None
