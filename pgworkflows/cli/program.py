"""`pgworkflows …`: the commands on the database that a connection string names."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from pgworkflows import __version__
from pgworkflows.cli.commands import Commands

if TYPE_CHECKING:
    from pgworkflows.client import WorkflowClient

EXIT_STATUSES = """\b
Exit status:
  0  done, or all is well
  1  refused, or not well
  2  these words make no command
  3  the database cannot be reached or used
  4  no such run, workflow or schedule
"""


def _connect(ctx: click.Context) -> WorkflowClient:
    from pgworkflows.cli.exits import DatabaseFailed  # they import the driver
    from pgworkflows.client import WorkflowClient
    from pgworkflows.embedded.default import default_directory

    url = ctx.params["url"]
    if url is None and (ctx.resilient_parsing or not default_directory().exists()):
        # No server is begun just to be looked at, nor to complete a word.
        raise DatabaseFailed("no database is named: set DATABASE_URL, or give --url before the command")
    client = WorkflowClient(url, schema=ctx.params["schema"])
    ctx.call_on_close(client.close)
    return client


@click.group(
    "pgworkflows",
    cls=Commands,
    connect=_connect,
    epilog=EXIT_STATUSES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--url", envvar="DATABASE_URL", show_envvar=True, help="The database, as a connection string.")
@click.option(
    "--schema", envvar="PGWORKFLOWS_SCHEMA", show_envvar=True, default="pgworkflows", help="Where its tables are."
)
@click.version_option(__version__, prog_name="pgworkflows")
def program(url: str | None, schema: str) -> None:  # noqa: ARG001  (the client is made when a command asks for it)
    """Start, watch and steer durable workflows on PostgreSQL."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        # Where the encoding lacks a character it is shown by its number.
        reconfigure(errors="backslashreplace")
