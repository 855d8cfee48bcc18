"""Commands that tell how all is: status, workers, stuck."""

from __future__ import annotations

from datetime import timedelta

import click
from rich.text import Text

from pgworkflows.cli.commands import as_given_here, current_client
from pgworkflows.cli.exits import Exit
from pgworkflows.cli.options import DURATION
from pgworkflows.cli.output import json_option, print_details, print_json, print_table, say
from pgworkflows.cli.wording import age
from pgworkflows.inspection import Inspector

UNSEEN = "the database user may not see schema, workers and queue: workers and readers may"


@click.command()
@click.option("--min-workers", type=int, default=0, metavar="N", help="Fail when fewer workers live.")
@click.option("--max-lag", type=DURATION, help="Fail when a run has been ready for longer.")
@json_option
def status(min_workers: int, max_lag: timedelta | None, as_json: bool) -> None:
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
                ("note", None if health.live_workers is not None or not health.ok else UNSEEN),
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
                empty="nothing is unfinished",
            )
    if not health.ok:
        raise click.exceptions.Exit(Exit.REFUSED if usable else Exit.DATABASE)


@click.command()
@json_option
def workers(as_json: bool) -> None:
    """List the workers, also those that have died and were not missed yet."""
    found = Inspector(current_client()).get_workers()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each.id,
            each.hostname,
            each.pid,
            ",".join(each.queues),
            len(each.workflows),
            each.runs_in_hand,
            age(each.started_at),
            age(each.heartbeat_at),
            ("asleep" if each.asleep else "awake") if each.live else Text("silent", style="bold red"),
        )
        for each in found
    ]
    head = ("WORKER", "HOST", "PID", "QUEUES", "WORKFLOWS", "RUNS", "AGE", "HEARTBEAT", "STATE")
    print_table(head, rows, cut=("HOST", "QUEUES"), empty="no workers")


@click.command()
@click.option(
    "--waits-older-than",
    type=DURATION,
    default="7 days",
    show_default=True,
    help="Pauses, and waits for events without a deadline, count from this age on.",
)
@click.option("--steps-longer-than", type=DURATION, default="1 hour", show_default=True, help="So do steps under way.")
@click.option(
    "--lag-over", type=DURATION, default="1 minute", show_default=True, help="So do runs that are ready or due."
)
@json_option
def stuck(waits_older_than: timedelta, steps_longer_than: timedelta, lag_over: timedelta, as_json: bool) -> None:
    """List runs that nothing will move, why, and what to do about it.

    Exit status 1 if there are any.
    """
    found = Inspector(current_client()).get_stuck(
        waits_older_than=waits_older_than, steps_longer_than=steps_longer_than, lag_over=lag_over
    )
    if as_json:
        print_json(found)
    for number, each in enumerate([] if as_json else found):
        if number:
            say()
        print_details(
            [
                ("stuck", each.explanation),
                ("since", each.since),
                ("remedy", as_given_here(each.remedy)),
                *(("run", run_id) for run_id in each.examples),
            ]
        )
    if found:
        raise click.exceptions.Exit(Exit.REFUSED)
    if not as_json:
        say("nothing is stuck")
