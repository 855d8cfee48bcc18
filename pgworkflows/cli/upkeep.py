"""Commands that look after the tables: migrate, prune, grant, revoke, export."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from pgworkflows.cli.asking import ask_about
from pgworkflows.cli.commands import current_client
from pgworkflows.cli.options import DURATION, run_argument
from pgworkflows.cli.output import console, json_option, print_json, say
from pgworkflows.cli.timelines import run_named
from pgworkflows.inspection import Inspector
from pgworkflows.migrate import plan
from pgworkflows.runs import RunStatus


@click.command()
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be applied, and change nothing.")
@json_option
def migrate(only_plan: bool, as_json: bool) -> None:
    """Bring pgworkflows' tables up to date."""
    client = current_client()
    found = plan(client.conninfo, client.schema) if only_plan else client.migrate()
    if as_json:
        print_json({"pending" if only_plan else "applied": [migration.name for migration in found]})
        return
    for migration in found:
        say(f"{'would apply' if only_plan else 'applied'} {migration.name}")
    if not found:
        say("nothing to apply")


@click.command()
@click.option("--older-than", type=DURATION, help="How long ago they ended. Default: the declared retention.")
@click.option("--workflow", "workflow_id", metavar="ID", help="Those of one workflow.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask. Nobody is asked but who sits before a terminal.")
@json_option
def prune(older_than: timedelta | None, workflow_id: str | None, yes: bool, as_json: bool) -> None:
    """Delete finished runs.

    Without --older-than, those that ended longer ago than the retention that their workflow declares, and nobody is
    asked.
    """
    client = current_client()
    if older_than is not None and not yes and sys.stdin is not None and sys.stdin.isatty():
        _ask_whether_to_delete(Inspector(client), older_than, workflow_id)
    progress = console(stderr=True)
    with progress.status("deleting …") if progress.is_terminal else nullcontext():
        deleted = client.prune(older_than=older_than, workflow_id=workflow_id)
    if as_json:
        print_json({"deleted": deleted})
    else:
        say(f"{deleted} {'run' if deleted == 1 else 'runs'} deleted")


def _ask_whether_to_delete(inspector: Inspector, older_than: timedelta, workflow_id: str | None) -> None:
    """Show what may be old enough. Raises Abort."""
    # When runs have ended is in no index: those are counted that were started early enough.
    filters: dict[str, Any] = {
        "statuses": [status for status in RunStatus if status.finished],
        "started_before": datetime.now(UTC) - older_than,
        **({} if workflow_id is None else {"workflow_id": workflow_id}),
    }
    ask_about(inspector, filters, "deleted, for good", at_most=True)


@click.command()
@click.option("--client", metavar="ROLE", help="Starts runs, and reads and steers those that it has started.")
@click.option("--worker", metavar="ROLE", help="Executes runs.")
@click.option("--reader", metavar="ROLE", help="Reads everything, and changes nothing.")
def grant(client: str | None, worker: str | None, reader: str | None) -> None:
    """Let database roles be a client, a worker, a reader.

    The roles exist already, and may do nothing more in the schema from then on. Connect as the schema's owner.
    """
    if client is None and worker is None and reader is None:
        raise click.UsageError("name a role: --client, --worker or --reader")
    current_client().grant(client=client, worker=worker, reader=reader)
    for role, kind in ((client, "client"), (worker, "worker"), (reader, "reader")):
        if role is not None:
            say(f"{role} is a {kind}")


@click.command()
@click.argument("role")
def revoke(role: str) -> None:
    """Take from a database role all that it was granted."""
    current_client().revoke(role)
    say(f"{role} may do nothing any more")


@click.command()
@run_argument
def export(run_id: str) -> None:
    """Print the history of a run as JSON, for check_replay.

    It holds the payloads of the run: what is confidential in them, pgworkflows.testing.export_run can take out.
    """
    from pgworkflows.testing.histories import export_run  # the testing kit is for those who ask for it

    client = current_client()
    print_json(export_run(client, run_named(client, run_id)))
