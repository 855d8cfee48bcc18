"""Which view answers which path, and what a visitor must be allowed for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from werkzeug.routing import IntegerConverter, Map, Rule
from werkzeug.wrappers import Response

from pgworkflows.ui import overview, run, runs, schedules, start, static_pages, steering
from pgworkflows.ui.visit import MAX_FORM, MAX_PAYLOAD_FORM


@dataclass(frozen=True)
class Route:
    """A view and what its visitor must be allowed: `action` where it is about no single run, `run_action` to the run
    whose id is in the path, besides to view it. Neither: it shows nothing of the database."""

    path: str
    view: Callable[..., Response]
    action: str | None = None
    run_action: str | None = None
    methods: tuple[str, ...] = ("GET",)
    max_form: int = MAX_FORM


class NumberConverter(IntegerConverter):
    """A number that a database can hold: no more digits, and those of ASCII."""

    regex = "[0-9]{1,18}"


POST = ("POST",)

ROUTES = {
    "overview": Route("/", overview.show_overview, "view"),
    "activity": Route("/activity.json", overview.send_activity, "view"),
    "runs": Route("/runs", runs.show_runs, "view"),
    "bulk": Route("/runs/bulk", runs.confirm_bulk, "view"),
    "act_on_runs": Route("/runs/bulk", runs.act_on_runs, "view", methods=POST),
    "run": Route("/runs/<uuid:run_id>", run.show_run, run_action="view"),
    "payload": Route("/runs/<uuid:run_id>/<any(input, output, error):what>", run.send_payload, run_action="view"),
    "step_payload": Route(
        "/runs/<uuid:run_id>/steps/<number(max=2147483647):position>/<any(output, error):what>",
        run.send_step_payload,
        run_action="view",
    ),
    "event_payload": Route("/runs/<uuid:run_id>/events/<number:number>", run.send_event_payload, run_action="view"),
    **{
        action: Route(
            f"/runs/<uuid:run_id>/{action.replace('_', '-')}",
            steering.view_of(action),
            run_action=action,
            methods=POST,
            max_form=MAX_PAYLOAD_FORM if action in steering.WITH_DATA else MAX_FORM,
        )
        for action in steering.RUN_ACTIONS
    },
    "start_again": Route("/runs/<uuid:run_id>/start-again", start.start_again, run_action="start", methods=POST),
    "start": Route("/start", start.show_form, "start"),
    "send_start": Route("/start", start.take_form, "start", methods=POST, max_form=MAX_PAYLOAD_FORM),
    "schedules": Route("/schedules", schedules.show_schedules, "view"),
    **{
        f"{verb}_schedule": Route(f"/schedules/{verb}", schedules.view_of(verb), f"{verb}_schedule", methods=POST)
        for verb in schedules.VERBS
    },
    "help": Route("/help", static_pages.show_help),
    "theme": Route("/theme", static_pages.take_theme, methods=POST),
}

MAP = Map(
    [
        *(
            Rule(route.path, endpoint=endpoint, methods=route.methods, strict_slashes=False, merge_slashes=False)
            for endpoint, route in ROUTES.items()
        ),
        Rule("/static/<path:path>", endpoint="static", methods=("GET",)),
    ],
    strict_slashes=False,
    merge_slashes=False,
    redirect_defaults=False,
    converters={"number": NumberConverter},
)
