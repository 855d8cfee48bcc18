"""Commands that tell how all is: status, workers, stuck."""

from __future__ import annotations

import click

from pgworkflows.cli.commands import current_client
from pgworkflows.cli.exits import Exit
from pgworkflows.cli.output import json_option, print_details, print_json, print_table, say


@click.command()
@click.option("--min-workers", type=int, default=0, metavar="N", help="Fail when fewer workers live.")
@click.option("--max-lag", metavar="DURATION", help="Fail when a run has been ready for longer.")
@json_option
def status(min_workers: int, max_lag: str | None, as_json: bool) -> None:
    """Show whether all is well, and what is unfinished.

    Exit status 1 if it is not well, 3 if the database does not answer or is not migrated.
    """
    client = current_client()
    health = client.health(min_workers=min_workers, max_queue_lag=max_lag)
    usable = health.reachable and health.migrated is not False
    backlog = client.get_backlog() if usable and health.live_workers is not None else []
    if as_json:
        print_json({**health.as_json(), "backlog": backlog})
    else:
        print_details(
            [
                ("database", "reachable" if health.reachable else "not reachable"),
                ("schema", None if health.migrated is None else "migrated" if health.migrated else "not migrated"),
                ("workers", None if health.live_workers is None else f"{health.live_workers} live"),
                ("lag", health.queue_lag),
                *(("problem", problem) for problem in health.problems),
            ]
        )
        if health.live_workers is not None:
            say()
            print_table(
                ("QUEUE", "WORKFLOW", "READY", "RUNNING", "LATER", "WAITING", "PAUSED"),
                [
                    (each.queue, each.workflow_id, each.ready, each.running, each.later, each.waiting, each.paused)
                    for each in backlog
                ],
                cut=("QUEUE", "WORKFLOW"),
            )
    if not health.ok:
        raise click.exceptions.Exit(Exit.REFUSED if usable else Exit.DATABASE)
