"""The command that serves the dashboard. Needs the extra `ui`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from pgworkflows.cli.commands import current_client
from pgworkflows.cli.exits import Failure
from pgworkflows.cli.output import say
from pgworkflows.cli.working import refuse_database_of

if TYPE_CHECKING:
    from pgworkflows.engine import WorkflowEngine


@click.command()
@click.argument("target", metavar="[MODULE:ENGINE]", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="The port.")
@click.option("--actions", is_flag=True, help="Let whoever can reach it change runs, too.")
@click.option(
    "--trusted-host",
    "trusted_hosts",
    metavar="NAME",
    multiple=True,
    help="A host name that it answers to, may be repeated. On this machine's own addresses, its own names.",
)
def ui(target: str | None, host: str, port: int, actions: bool, trusted_hosts: tuple[str, ...]) -> None:
    """Serve the dashboard, for a browser.

    With MODULE:ENGINE it is that of an engine of yours, as in shop.workflows:engine: its codecs read payloads, and its
    code checks inputs before runs start.

    It asks nobody who they are: let it listen where only you can reach it, or mount it in an application that asks.
    """
    try:
        from pgworkflows.ui.serving import serve  # it needs the extra
    except ImportError as error:
        raise Failure(str(error)) from error
    try:
        names = {"trusted_hosts": trusted_hosts} if trusted_hosts else {}
        client = current_client() if target is None else _engine(target)
        serve(client, host=host, port=port, actions=actions, say=partial(say, stderr=True), **names)
    except ValueError as error:
        raise Failure(f"{error}: --trusted-host NAME") from error
    except OSError as error:
        raise Failure(f"the dashboard cannot listen on {host}:{port}: {error.strerror or error}") from error


def _engine(target: str) -> WorkflowEngine:
    from pgworkflows.cli.loading import load_engine

    refuse_database_of(target)
    return load_engine(target)
