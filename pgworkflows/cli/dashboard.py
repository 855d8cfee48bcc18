"""The command that serves the dashboard. Needs the extra `ui`."""

from __future__ import annotations

from functools import partial

import click

from pgworkflows.cli.commands import current_client
from pgworkflows.cli.exits import Failure
from pgworkflows.cli.output import say


@click.command()
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
def ui(host: str, port: int, actions: bool, trusted_hosts: tuple[str, ...]) -> None:
    """Serve the dashboard, for a browser.

    It asks nobody who they are: let it listen where only you can reach it, or mount it in an application that asks.
    """
    try:
        from pgworkflows.ui.serving import serve  # it needs the extra
    except ImportError as error:
        raise Failure(str(error)) from error
    try:
        names = {"trusted_hosts": trusted_hosts} if trusted_hosts else {}
        serve(current_client(), host=host, port=port, actions=actions, say=partial(say, stderr=True), **names)
    except ValueError as error:
        raise Failure(f"{error}: --trusted-host NAME") from error
    except OSError as error:
        raise Failure(f"the dashboard cannot listen on {host}:{port}: {error.strerror or error}") from error
