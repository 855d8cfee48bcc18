"""All at a glance: what is unfinished, how fast it goes, what fails, and what is stuck."""

from __future__ import annotations

import json
from datetime import timedelta

from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Response

from pgworkflows.errors import ConfigurationError
from pgworkflows.inspection import Activity
from pgworkflows.ui.visit import Visit

WINDOWS = ("15 minutes", "1 hour", "6 hours", "1 day", "7 days")
DEFAULT = "1 hour"


def show_overview(visit: Visit) -> Response:
    """The page that one opens first."""
    inspector = visit.inspector
    return visit.page(
        "overview.html",
        overview=inspector.get_overview(),
        activity=_activity(visit),
        workers=inspector.get_workers(),
        schedules=visit.client.get_schedules(),
        stuck=inspector.get_stuck(),
        window=_window(visit),
        windows=WINDOWS,
    )


def send_activity(visit: Visit) -> Response:
    """The numbers behind the plots."""
    found = _activity(visit)
    return Response(json.dumps(_columns(found)), mimetype="application/json")


def _columns(activity: Activity) -> dict[str, list[float | None]]:
    """By series, as plots want it: a failure rate in per cent, times in seconds, None where there was nothing."""
    buckets = activity.buckets
    return {
        "at": [each.at.timestamp() for each in buckets],
        "started": [each.started for each in buckets],
        "completed": [each.completed for each in buckets],
        "failed": [each.failed for each in buckets],
        "cancelled": [each.cancelled for each in buckets],
        "failure_rate": [
            100 * each.failed / (each.completed + each.failed) if each.completed + each.failed else None
            for each in buckets
        ],
        "queue_lag": [_seconds(each.queue_lag) for each in buckets],
        "step_median": [_seconds(each.step_median) for each in buckets],
        "step_p95": [_seconds(each.step_p95) for each in buckets],
    }


def _seconds(span: timedelta | None) -> float | None:
    return None if span is None else span.total_seconds()


def _activity(visit: Visit) -> Activity:
    workflow_id = visit.request.args.get("workflow") or None
    try:
        return visit.inspector.get_activity(_window(visit), workflow_id=workflow_id)
    except ConfigurationError:
        raise
    except ValueError as error:
        raise BadRequest(f"{error}.") from None


def _window(visit: Visit) -> str:
    window = visit.request.args.get("window", DEFAULT)
    if window not in WINDOWS:
        raise BadRequest(f"A window is one of: {', '.join(WINDOWS)}.")
    return window
