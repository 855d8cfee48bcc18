"""Django's connections around step functions: what a request gets from Django, a step gets here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import connections, reset_queries

from pgworkflows.plugins import RunContext, StepInfo


class DjangoConnections:
    """Closes the connections of the step's thread that are broken or older than CONN_MAX_AGE, before and after each
    call of a step function; but not one on which a transaction is open: that is a test's, which the step is part of."""

    name = "django-connections"

    def wrap_step(self, _context: RunContext, _step: StepInfo, call: Callable[[], Any]) -> Any:
        reset_queries()
        _close_old_connections()
        try:
            return call()
        finally:
            _close_old_connections()


def _close_old_connections() -> None:
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
