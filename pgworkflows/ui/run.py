"""One run: its timeline to scale, its payloads, what it waits for, and what may be done to it."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from werkzeug.exceptions import BadRequest, NotFound
from werkzeug.wrappers import Response

from pgworkflows.history import StepKind, StepStatus
from pgworkflows.inspection import Entry, Timeline
from pgworkflows.reading import MAX_PAGE
from pgworkflows.runs import WorkflowRun
from pgworkflows.ui.chart import Chart
from pgworkflows.ui.redaction import what_came_of
from pgworkflows.ui.steering import RUN_ACTIONS, allowed_actions
from pgworkflows.ui.visit import Visit
from pgworkflows.ui.wording import SHOWN

ENTRIES = 200
MOST_BESIDE = 1000
"""So many children and events a timeline has."""
UNENDED = frozenset({StepStatus.WAITING, StepStatus.RETRYING})


def show_run(visit: Visit, run: WorkflowRun) -> Response:
    """The page of a run; of a long timeline one part."""
    after = visit.request.args.get("after", "")
    if after and not (after.isdecimal() and len(after) < 10):
        raise BadRequest("after is the position of a step, a number.")
    position = int(after) if after else None
    timeline = visit.inspector.get_timeline(run.id, limit=ENTRIES, after_position=position, payload_limit=SHOWN)
    return visit.page(
        "run.html",
        run=timeline.run,
        timeline=timeline,
        chart=Chart(timeline),
        allowed=allowed_actions(visit, timeline.run),
        actions=RUN_ACTIONS,
        may_start=visit.may("start"),
        after=position,
        what_came_of=what_came_of,
        remark_on=remark_on,
        most=MOST_BESIDE,
        relatives=_relatives(visit, timeline),
    )


def _relatives(visit: Visit, timeline: Timeline) -> set[UUID]:
    """The parent and the children that this visitor may view."""
    if visit.dashboard.authorize is None:
        ids = {timeline.run.parent_run_id, *(entry.step.child_run_id for entry in timeline.entries)}
        return {*(each for each in ids if each is not None), *(child.id for child in timeline.children)}
    found = [] if timeline.parent is None else [timeline.parent]
    if timeline.children:
        found += visit.inspector.find_runs(parent_run_id=timeline.run.id, limit=MAX_PAGE).items
    return {each.id for each in found if visit.may("view", each)}


def remark_on(entry: Entry, run: WorkflowRun) -> str:
    """What a step's status alone does not say of it."""
    step, ended = entry.step, entry.step.completed_at
    if entry.taken_back:
        return "taken back"
    if step.status in UNENDED and run.status.finished:
        return "when the run ended"
    if step.status is not StepStatus.COMPLETED or step.wake_at is None or ended is None:
        return ""
    match step.kind:
        case StepKind.DELAY | StepKind.WAIT_UNTIL if ended < step.wake_at:
            return "fast-forwarded"
        case StepKind.WAIT_FOR if ended >= step.wake_at and step.output is None and not entry.omitted_bytes:
            return "timed out"
        case _:
            return ""


def send_payload(visit: Visit, run: WorkflowRun, what: Any) -> Response:
    """The whole of a run's input, output or error."""
    return _as_json(visit.dashboard.redaction.shown(what, getattr(run, what)))


def send_step_payload(visit: Visit, run: WorkflowRun, position: int, what: Any) -> Response:
    """The whole of a step's output or error."""
    step = visit.inspector.get_step(run.id, position)
    if step is None:
        raise NotFound(f"Run {run.id} has no step at position {position}.")
    kind = what_came_of(step) if what == "output" else what
    return _as_json(visit.dashboard.redaction.shown(kind, getattr(step, what)))


def send_event_payload(visit: Visit, run: WorkflowRun, number: int) -> Response:
    """The whole of what came with an event that no wait has taken yet."""
    event = visit.inspector.get_event(run.id, number)
    if event is None:
        raise NotFound(f"Run {run.id} keeps no event {number}; perhaps a wait has taken it.")
    return _as_json(visit.dashboard.redaction.shown("event", event.data))


def _as_json(value: Any) -> Response:
    for indent in (2, None):  # what is nested deeply can be written on one line only
        try:
            text = json.dumps(value, ensure_ascii=False, default=str, indent=indent)
        except RecursionError:
            continue
        return Response(f"{text}\n", mimetype="application/json")
    raise NotFound("This payload is nested too deeply to be shown: read it in SQL.")
