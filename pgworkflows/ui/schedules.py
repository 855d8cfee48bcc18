"""Schedules: when they tick, and pausing, resuming and triggering them."""

from __future__ import annotations

from collections.abc import Callable

from werkzeug.wrappers import Response

from pgworkflows.ui.steering import REFUSALS, refused
from pgworkflows.ui.visit import Visit

VERBS = {"pause": "paused", "resume": "resumed", "trigger": "triggered"}


def show_schedules(visit: Visit) -> Response:
    """All schedules with their next and last ticks."""
    return visit.page(
        "schedules.html",
        schedules=visit.client.get_schedules(),
        allowed=[verb for verb in VERBS if visit.may(f"{verb}_schedule")],
    )


def view_of(verb: str) -> Callable[[Visit], Response]:
    """The view that does something to a schedule."""

    def take(visit: Visit) -> Response:
        workflow_id = visit.request.form.get("workflow", "")
        try:
            if verb == "trigger":
                visit.say(
                    f"Schedule {workflow_id!r}: started {visit.named(visit.client.trigger_schedule(workflow_id))}."
                )
            else:
                change = visit.client.pause_schedule if verb == "pause" else visit.client.resume_schedule
                change(workflow_id)
                visit.say(f"Schedule {workflow_id!r}: {VERBS[verb]}.")
        except REFUSALS as refusal:
            visit.say(refused(visit, refusal), well=False)
        return visit.go(visit.back(visit.url("schedules")))

    return take
