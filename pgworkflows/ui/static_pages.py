"""Pages that show nothing of the database."""

from __future__ import annotations

from werkzeug.wrappers import Response

from pgworkflows.ui.visit import Visit


def show_help(visit: Visit) -> Response:
    """Keys, and what the words on the pages mean."""
    return visit.page("help.html")


def take_theme(visit: Visit) -> Response:
    """Light, dark, or as the system has it."""
    answer = visit.go(visit.back(visit.url("overview")))
    visit.set_theme(answer, visit.request.form.get("theme", ""))
    return answer
