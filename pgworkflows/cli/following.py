"""The command that follows runs: a line for each thing that happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, timedelta
from functools import partial
from typing import TypeVar

import click
from rich.text import Text

from pgworkflows.cli.commands import current_client
from pgworkflows.cli.completion import complete_runs, complete_workflows
from pgworkflows.cli.exits import Exit
from pgworkflows.cli.output import STYLES, console, json_option, print_json
from pgworkflows.cli.timelines import run_named, timeline_of
from pgworkflows.cli.wording import duration, one_line
from pgworkflows.client import WorkflowClient
from pgworkflows.database import DriverError, NotAllowed
from pgworkflows.errors import ConfigurationError
from pgworkflows.history import StepStatus
from pgworkflows.inspection import Change, ChangeKind, ChangeMark, Inspector, Timeline
from pgworkflows.limits import cleaned
from pgworkflows.runs import RunStatus

T = TypeVar("T")

EVERY_S = 0.5
AGAIN_S = 1.0
MOST = 10_000
"""How many things of each kind are told after one look; of more, the newest."""
GAP = "  "

AWAY = (ConfigurationError, DriverError)
"""What is raised while the database is away."""


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False, shell_complete=complete_runs)
@click.option(
    "--workflow", "workflow_id", metavar="ID", shell_complete=complete_workflows, help="Of one workflow only."
)
@json_option
def tail(run_id: str | None, workflow_id: str | None, as_json: bool) -> None:
    """Print what happens to runs as it happens, until Ctrl-C.

    With RUN, print what has happened to this run already, and go on until it ends. Exit status 1 if it has not
    completed then.
    """
    if run_id is not None and workflow_id is not None:
        raise click.UsageError("name a run or a workflow, not both")
    client = current_client()
    told = partial(tell, as_json=as_json)
    try:
        if run_id is None:
            follow_all(client, told, workflow_id)
        elif follow_run(client, run_named(client, run_id), told) != RunStatus.COMPLETED:
            raise click.exceptions.Exit(Exit.REFUSED)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(Exit.FINE) from None


def follow_all(client: WorkflowClient, tell: Callable[[Change], None], workflow_id: str | None = None) -> None:
    """Tell what happens to all runs from now on, or to those of a workflow; for ever."""
    inspector = Inspector(client)
    for change in _changes(inspector, inspector.get_changes().mark):
        if workflow_id in (None, change.workflow_id):
            tell(change)


def follow_run(client: WorkflowClient, run_id: str, tell: Callable[[Change], None]) -> RunStatus:
    """Tell what has happened to a run, and what happens until it ends: its last status."""
    inspector = Inspector(client)
    mark = inspector.get_changes(run_id=run_id).mark
    timeline = timeline_of(client, run_id)
    told: set[tuple[object, ...]] = set()
    for changes in (_so_far(timeline), _changes(inspector, mark, run_id)):
        for change in changes:
            happened = (change.kind, change.position, change.status, change.attempts)
            if happened in told:
                continue
            told.add(happened)
            tell(change)
            if change.kind is ChangeKind.RUN_ENDED:
                return RunStatus(change.status)
    raise AssertionError("changes come for ever")


def _so_far(timeline: Timeline) -> Iterator[Change]:
    """What a timeline shows, as if one had looked on."""
    run = timeline.run
    yield Change(ChangeKind.RUN_STARTED, run.created_at, run.id, run.workflow_id, run.status, None)
    for entry in timeline.entries:
        step = entry.step
        yield Change(
            ChangeKind.STEP,
            entry.ended_at or entry.started_at or timeline.now,
            run.id,
            run.workflow_id,
            step.status,
            None if step.error is None else step.error["type"],
            step_id=step.step_id,
            step_kind=step.kind,
            position=step.position,
            attempts=step.attempts,
            started_at=step.started_at,
        )
    if run.completed_at is not None:
        error_type = None if run.error is None else run.error["type"]
        yield Change(ChangeKind.RUN_ENDED, run.completed_at, run.id, run.workflow_id, run.status, error_type)


def _changes(inspector: Inspector, mark: ChangeMark, run_id: str | None = None) -> Iterator[Change]:
    """What happens from a mark on, for ever."""
    while True:
        found = _patiently(partial(inspector.get_changes, mark, run_id=run_id, limit=MOST))
        if found.skipped:
            _note("more has happened than can be told: lines are left out")
        yield from found.items
        mark = found.mark
        time.sleep(EVERY_S)


def _patiently(ask: Callable[[], T]) -> T:
    """What the database answers, however long it is away; said once that it is, and once that it is back."""
    away = False
    while True:
        try:
            answer = ask()
        except NotAllowed:
            raise
        except AWAY as error:
            if not away:
                _note(f"the database does not answer, trying again: {one_line(str(error))}")
            away = True
            time.sleep(AGAIN_S)
        else:
            if away:
                _note("the database answers again")
            return answer


def tell(change: Change, as_json: bool = False) -> None:
    """Print what has happened, in a line."""
    if as_json:
        print_json(change)
        return
    at = change.at.astimezone(UTC).strftime("%H:%M:%S.%f")[:-3] + "Z"
    head = Text(GAP.join((at, str(change.run_id), cleaned(change.workflow_id))) + GAP)
    console().print(head.append_text(happened(change)), soft_wrap=True)


def happened(change: Change) -> Text:
    """What has happened, in words."""
    if change.kind is ChangeKind.RUN_STARTED:
        return Text("started")
    words = Text("" if change.step_id is None else f"{cleaned(change.step_id)} ")
    words.append(change.status, style=STYLES.get(change.status, ""))
    details: list[str] = []
    if change.error_type is not None:
        details.append(cleaned(change.error_type))
    if change.attempts is not None and change.attempts > 1:
        details.append(f"attempt {change.attempts}")
    if change.started_at is not None and change.status is not StepStatus.WAITING:
        details.append(duration(max(change.at - change.started_at, timedelta(0))))
    return words.append(f" ({', '.join(details)})" if details else "")


def _note(text: str) -> None:
    console(stderr=True).print(Text(text, style="yellow"), soft_wrap=True)
