"""System checks: what is wrong with a project's settings and workflows. None of them needs the database."""

from __future__ import annotations

from typing import Any

from django.conf import settings as djangos
from django.core import checks
from django.db import connections

from pgworkflows.contrib.django import conf, discovery, routing
from pgworkflows.errors import WorkflowEngineError
from pgworkflows.registry import WorkflowRegistry

Messages = list[checks.CheckMessage]


def register() -> None:
    """Let Django run these checks."""
    for check in (check_settings, check_database, check_workflows):
        checks.register(check, "pgworkflows")


def check_settings(app_configs: Any, **_more: Any) -> Messages:
    """PGWORKFLOWS has known keys with values that make sense."""
    _, problems = conf.examine(getattr(djangos, "PGWORKFLOWS", {}))
    return [checks.Error(f"PGWORKFLOWS: {problem}", id="pgworkflows.E001") for problem in problems]


def check_database(app_configs: Any, **_more: Any) -> Messages:
    """Runs are written to PostgreSQL."""
    alias = routing.alias_for_writing()
    connection = connections[alias]
    if connection.vendor == "postgresql":
        return []
    return [
        checks.Error(
            f"database {alias!r}, where runs are written, is {connection.display_name}, not PostgreSQL",
            hint="Let a database router send the app pgworkflows to a PostgreSQL database.",
            id="pgworkflows.E002",
        )
    ]


def check_workflows(app_configs: Any, **_more: Any) -> Messages:
    """The workflows of the apps can be registered together."""
    registry = WorkflowRegistry()
    found: Messages = []
    for workflow in discovery.discover():
        try:
            registry.register(workflow)
        except WorkflowEngineError as error:
            found.append(checks.Error(str(error), obj=workflow.id, id="pgworkflows.E003"))
    return found
