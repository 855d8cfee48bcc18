"""The exit statuses of commands, and the one line that each error becomes."""

from __future__ import annotations

from enum import IntEnum

import click

from pgworkflows.cli.commands import for_whom
from pgworkflows.cli.wording import one_line
from pgworkflows.database import DriverError, NotAllowed, explained
from pgworkflows.errors import (
    ConfigurationError,
    WorkflowEngineError,
    WorkflowNotFoundError,
    WorkflowRunNotFoundError,
)


class Exit(IntEnum):
    """What the exit status of a command says."""

    FINE = 0
    REFUSED = 1
    """The command was refused, or what it looked at is not well."""
    USAGE = 2
    DATABASE = 3
    """The database cannot be reached or used: no answer, no schema, no privilege."""
    NOT_FOUND = 4


class Failure(click.ClickException):
    """One line on standard error, and an exit status: the command was refused."""

    exit_code = Exit.REFUSED

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Misused(Failure):
    """An argument cannot be what it is."""

    exit_code = Exit.USAGE


class DatabaseFailed(Failure):
    """The database cannot be reached or used."""

    exit_code = Exit.DATABASE


class NotFound(Failure):
    """Nothing has that id."""

    exit_code = Exit.NOT_FOUND


EXPECTED = (WorkflowEngineError, DriverError, ValueError)
"""The errors that are told in one line. Any other is a fault in the library, and shows where."""


def failure_of(error: Exception) -> Failure:
    """What an error is for whoever gave the command."""
    if isinstance(error, DriverError):
        error = explained(error)
    match error:
        case NotAllowed() if (whom := for_whom()) is not None:
            return DatabaseFailed(f"the database user lacks a privilege ({error.reason}): {whom}")
        case ConfigurationError() | DriverError():
            return DatabaseFailed(str(error))
        case WorkflowRunNotFoundError() | WorkflowNotFoundError():
            return NotFound(str(error))
        case WorkflowEngineError():
            return Failure(str(error))
        case _:
            return Misused(str(error))
