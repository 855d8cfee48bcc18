"""Commands for schedules: list, pause, resume, trigger."""

from __future__ import annotations

import click

from pgworkflows.cli.commands import current_client
from pgworkflows.cli.completion import complete_scheduled
from pgworkflows.cli.output import json_option, print_json, print_table, say
from pgworkflows.cli.wording import age, moment
from pgworkflows.schedules import Schedule

_workflow_argument = click.argument("workflow_id", metavar="WORKFLOW", shell_complete=complete_scheduled)


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def schedules(ctx: click.Context, as_json: bool) -> None:
    """List schedules; pause, resume or trigger one.

    The subcommands name a schedule by its workflow.
    """
    if ctx.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError(f"--json comes after {ctx.invoked_subcommand}")
        return
    found = current_client().get_schedules()
    if as_json:
        print_json(found)
    else:
        rows = [(each.workflow_id, each.expression, each.timezone, _next(each), _last(each)) for each in found]
        head = ("WORKFLOW", "SCHEDULE", "ZONE", "NEXT", "LAST")
        print_table(head, rows, cut=("WORKFLOW", "SCHEDULE", "ZONE"), empty="no schedules")


@schedules.command("pause")
@_workflow_argument
@json_option
def pause_schedule(workflow_id: str, as_json: bool) -> None:
    """Let the ticks of a schedule pass without a run."""
    _told(current_client().pause_schedule(workflow_id), as_json=as_json)


@schedules.command("resume")
@_workflow_argument
@json_option
def resume_schedule(workflow_id: str, as_json: bool) -> None:
    """Let a paused schedule go on with its next tick."""
    _told(current_client().resume_schedule(workflow_id), as_json=as_json)


@schedules.command("trigger")
@_workflow_argument
@json_option
def trigger_schedule(workflow_id: str, as_json: bool) -> None:
    """Start a run as the schedule would, now."""
    run = current_client().trigger_schedule(workflow_id)
    if as_json:
        print_json(run)
    else:
        say(f"run {run.id} of workflow {run.workflow_id} is {run.status}")


def _told(schedule: Schedule, *, as_json: bool) -> None:
    if as_json:
        print_json(schedule)
    else:
        when = _next(schedule) or "when a worker has computed it"
        say(f"the next tick of workflow {schedule.workflow_id}: {when}")


def _next(schedule: Schedule) -> str | None:
    if schedule.paused_at is not None:
        return "paused"
    return None if schedule.next_at is None else moment(schedule.next_at)


def _last(schedule: Schedule) -> str | None:
    return None if schedule.last_tick_at is None else age(schedule.last_tick_at)
