"""What `init_app` has left in an application, and how to get at it."""

from __future__ import annotations

from typing import Any

from flask import Flask

from pgworkflows.contrib.flask.settings import settings_from
from pgworkflows.engine import WorkflowEngine

KEY = "pgworkflows"


def engine_of(app: Flask) -> WorkflowEngine:
    """The application's engine. Raises RuntimeError."""
    engine: WorkflowEngine | None = app.extensions.get(KEY)
    if engine is None:
        raise RuntimeError(f"application {app.name!r} has no pgworkflows: call init_app(app) where it is made")
    return engine


def worker_options(app: Flask, **given: Any) -> dict[str, Any]:
    """The options of the application's workers: those that are given, else as configured."""
    return {**settings_from(app.config).worker, **given}
