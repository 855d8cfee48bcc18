"""Django's connections around step functions: what a request gets from Django, a step gets here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import close_old_connections, reset_queries

from pgworkflows.plugins import RunContext, StepInfo


class DjangoConnections:
    """Closes the connections of the step's thread that are broken or older than CONN_MAX_AGE, before and after each
    call of a step function."""

    name = "django-connections"

    def wrap_step(self, _context: RunContext, _step: StepInfo, call: Callable[[], Any]) -> Any:
        reset_queries()
        close_old_connections()
        try:
            return call()
        finally:
            close_old_connections()
