"""Step functions in the application context: a plugin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask

from pgworkflows.plugins import RunContext, StepInfo


class AppContext:
    """Calls each step function in an application context of its own. What an extension tears down with the context it
    tears down after the step, as after a request: Flask-SQLAlchemy removes its session, and what the step has not
    committed is rolled back."""

    name = "flask"

    def __init__(self, app: Flask) -> None:
        self._app = app

    def wrap_step(self, _run: RunContext, _step: StepInfo, call: Callable[[], Any]) -> Any:
        """The call, with `current_app`, `g` and `db.session` at hand."""
        with self._app.app_context():
            return call()
