"""The command that starts a run."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from pgworkflows.cli.commands import current_client
from pgworkflows.cli.completion import complete_workflows
from pgworkflows.cli.options import DURATION, read_json
from pgworkflows.cli.output import json_option, print_json, say
from pgworkflows.database import NotAllowed
from pgworkflows.inspection import Inspector


@click.command()
@click.argument("workflow", metavar="WORKFLOW", shell_complete=complete_workflows)
@click.option("--input", "input_", metavar="JSON", callback=read_json, help="JSON, @FILE, or - for standard input.")
@click.option("--resource", "resource_id", metavar="ID", help="Whom the run belongs to.")
@click.option("--key", "idempotency_key", metavar="KEY", help="A second start with this key brings the first's run.")
@click.option("--priority", metavar="PRIORITY", help="high, normal, low, or seconds of head start within ±1000.")
@click.option("--retries", type=int, help="How many further executions after a failure.")
@click.option("--timeout", type=DURATION, help="How long it may take.")
@click.option("--queue", metavar="QUEUE", help="The queue it goes to.")
@click.option("--singleton/--no-singleton", default=None, help="Whether only one such run may be unfinished.")
@click.option("--delay", type=DURATION, help="How long until it begins.")
@click.option("--run-at", metavar="TIME", help="When it begins, as in 2030-01-31T09:00:00+01:00.")
@json_option
def start(workflow: str, input_: Any, priority: str | None, as_json: bool, **options: Any) -> None:
    """Start a run.

    Options that are left out are the workflow's, as it was last declared.
    """
    client = current_client()
    run = client.start_workflow(workflow, input_, priority=_priority(priority), **options)
    if as_json:
        print_json(run)
    else:
        say(f"run {run.id} of workflow {run.workflow_id} is {run.status}")
    with suppress(NotAllowed):
        if workflow not in {each.id for each in Inspector(client).get_declared()}:
            say(f"note: no worker has ever had workflow {workflow!r}: the run waits for one that has", stderr=True)


def _priority(word: str | None) -> str | int | None:
    try:
        return None if word is None else int(word)
    except ValueError:
        return word
