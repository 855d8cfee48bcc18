"""Commands that change runs: trigger, pause, resume, cancel, retry, fast-forward.

Those that take several runs take their ids, or filters. With filters they say what they would change, and ask. One run
that is refused does not keep the others from being changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pgworkflows.cli.asking import ask_about, counted, found_by
from pgworkflows.cli.commands import current_client
from pgworkflows.cli.completion import complete_runs
from pgworkflows.cli.exits import EXPECTED, DatabaseFailed, Exit, Failure, failure_of
from pgworkflows.cli.options import given, read_json, run_argument, with_filters, with_options
from pgworkflows.cli.output import console, json_option, print_json, say
from pgworkflows.cli.timelines import run_named
from pgworkflows.client import WorkflowClient
from pgworkflows.errors import InvalidStatusError
from pgworkflows.inspection import Inspector
from pgworkflows.runs import CANCELLABLE, PAUSABLE, RESUMABLE, RETRYABLE, RunStatus, WorkflowRun

Change: TypeAlias = Callable[[str | UUID], WorkflowRun]


@dataclass(frozen=True)
class Operation:
    """What a command does to runs: the method of a client, what has been done then, and to which runs it can be. A run
    in one of the statuses `untouched` afterwards was left as it was."""

    method: str
    done: str
    statuses: frozenset[RunStatus]
    untouched: frozenset[RunStatus] = frozenset()


@click.command()
@run_argument
@click.argument("event_name", metavar="EVENT")
@click.option(
    "--data", metavar="JSON", callback=read_json, help="What it carries: JSON, @FILE, or - for standard input."
)
@click.option("--key", "idempotency_key", metavar="KEY", help="An event whose key the run has got is not sent again.")
@click.option("--resource", "resource_id", metavar="ID", help="Whom the run has to belong to.")
@json_option
def trigger(run_id: str, event_name: str, as_json: bool, **options: Any) -> None:
    """Send an event to a run.

    The run keeps it until a wait for an event of that name takes it.
    """
    client = current_client()
    run = client.trigger_event(run_named(client, run_id), event_name, **options)
    if as_json:
        print_json(run)
    else:
        say(f"event {event_name} was sent to run {run.id}, which is {run.status}")


_steering = with_options(
    [
        click.argument("run_ids", nargs=-1, metavar="[RUN]...", shell_complete=complete_runs),
        with_filters,
        click.option("--yes", "-y", is_flag=True, help="Do not ask."),
        json_option,
    ]
)


@click.command()
@_steering
def pause(**options: Any) -> None:
    """Pause pending, running and waiting runs.

    A step that is under way ends first. Give the ids of runs, or filters.
    """
    _steer(Operation("pause_workflow", "paused", PAUSABLE), **options)


@click.command()
@_steering
def resume(**options: Any) -> None:
    """Let paused runs go on.

    Give the ids of runs, or filters.
    """
    _steer(Operation("resume_workflow", "resumed", RESUMABLE), **options)


@click.command()
@_steering
def cancel(**options: Any) -> None:
    """End unfinished runs, and their children.

    Give the ids of runs, or filters.
    """
    _steer(Operation("cancel_workflow", "cancelled", CANCELLABLE), **options)


@click.command()
@_steering
def retry(**options: Any) -> None:
    """Let failed and cancelled runs go on after their last completed steps.

    Give the ids of runs, or filters.
    """
    _steer(Operation("retry_workflow", "retried", RETRYABLE), **options)


@click.command("fast-forward")
@_steering
@click.option("--data", metavar="JSON", callback=read_json, help="What the wait gives: JSON, @FILE, or -.")
def fast_forward(data: Any, **options: Any) -> None:
    """Complete the waits that runs are in: for events, timers, polls, a pause step.

    A run that waits for a child, or that somebody has paused, is left as it is. Give the ids of runs, or filters.
    """
    waiting = frozenset({RunStatus.WAITING, RunStatus.PAUSED})
    untouched = frozenset(RunStatus) - {RunStatus.PENDING}
    _steer(Operation("fast_forward_workflow", "fast-forwarded", waiting, untouched), data=data, **options)


def _steer(
    operation: Operation, *, run_ids: Sequence[str], yes: bool, as_json: bool, data: Any = None, **filters: Any
) -> None:
    """Do it to the runs that are named, or that the filters find."""
    client = current_client()
    wanted = given(filters, client)
    arguments = {"resource_id": wanted.get("resource_id"), **({} if data is None else {"data": data})}
    change = partial(getattr(client, operation.method), **arguments)
    if run_ids:
        if wanted.keys() - {"resource_id"}:
            raise click.UsageError("give the ids of runs, or filters, not both (but --resource)")
        failures = _steer_named(operation, client, change, run_ids, as_json=as_json)
    else:
        failures = _steer_found(operation, change, Inspector(client), wanted, yes=yes, as_json=as_json)
    if failures:
        codes = {failure.exit_code for failure in failures}
        raise click.exceptions.Exit(codes.pop() if len(codes) == 1 else Exit.REFUSED)


@dataclass
class _Tally:
    """What has come of the runs that filters have found."""

    operation: Operation
    as_json: bool
    done: int = 0
    gone: int = 0
    untouched: int = 0
    failures: list[Failure] = field(default_factory=list[Failure])

    def change(self, change: Change, run_id: UUID) -> None:
        """Change one more. Raises DatabaseFailed."""
        try:
            run = _changed(change, run_id, as_json=self.as_json)
            if run.status in self.operation.untouched:
                self.untouched += 1
            else:
                self.done += 1
        except DatabaseFailed:
            raise
        except Failure as failure:
            if isinstance(failure.__cause__, InvalidStatusError):
                self.gone += 1  # it has moved on: a child, say, that was cancelled with its parent
            else:
                _tell(run_id, failure, as_json=self.as_json)
                self.failures.append(failure)

    @property
    def said(self) -> str:
        """That in words."""
        others = ((self.untouched, "left as they were"), (self.gone, "had moved on"), (len(self.failures), "refused"))
        told = [f"{number:,} {what}" for number, what in others if number]
        return ", ".join([f"{counted(self.done)} {self.operation.done}", *told])


def _steer_named(
    operation: Operation, client: WorkflowClient, change: Change, run_ids: Sequence[str], *, as_json: bool
) -> list[Failure]:
    """Do it to runs by their ids, saying of each what came of it; what was refused."""
    failures: list[Failure] = []
    for run_id in run_ids:
        try:
            run = _changed(change, run_named(client, run_id), as_json=as_json)
        except Failure as failure:
            if isinstance(failure, DatabaseFailed) or (len(run_ids) == 1 and not as_json):
                raise
            _tell(run_id, failure, as_json=as_json)
            failures.append(failure)
        else:
            if not as_json:
                untouched = run.status in operation.untouched
                say(f"run {run.id} is {run.status}" + (f": it was not {operation.done}" if untouched else ""))
    return failures


def _steer_found(
    operation: Operation, change: Change, inspector: Inspector, filters: dict[str, Any], *, yes: bool, as_json: bool
) -> list[Failure]:
    """Do it to what the filters find, if that is wanted; what was refused."""
    if not filters:
        raise click.UsageError("which runs? Give their ids, or filters such as --workflow and --status")
    filters["statuses"] = _possible(operation, filters.get("statuses"))
    if not yes:
        ask_about(inspector, filters, operation.done)
    count = inspector.count_runs(**filters)
    tally = _Tally(operation, as_json)
    try:
        with _bar(operation.done, count.runs, hidden=as_json) as bar:
            task = bar.add_task("", total=None if count.at_least else count.runs)
            for run in found_by(inspector, filters):
                tally.change(change, run.id)
                bar.advance(task)
    finally:  # also where the database was lost, or whoever waits has had enough
        if not as_json:
            say(tally.said)
    return tally.failures


def _changed(change: Change, run_id: str | UUID, *, as_json: bool) -> WorkflowRun:
    """Change a run; in JSON, say so. Raises Failure."""
    try:
        run = change(run_id)
    except EXPECTED as error:
        raise failure_of(error) from error
    if as_json:
        print_json({"id": run.id, "status": run.status})
    return run


def _tell(run_id: str | UUID, failure: Failure, *, as_json: bool) -> None:
    if as_json:
        print_json({"id": run_id, "error": failure.message, "exit_status": failure.exit_code})
    else:
        failure.show()


def _possible(operation: Operation, statuses: Sequence[str] | None) -> list[str]:
    """The statuses that are looked for, of those in which it can be done."""
    possible = [str(status) for status in RunStatus if status in operation.statuses]
    found = [status for status in possible if statuses is None or status in statuses]
    if not found:
        raise click.UsageError(f"only {', '.join(possible)} runs can be {operation.done}")
    return found


def _bar(done: str, total: int, *, hidden: bool) -> Progress:
    """How far it is, for who sits before a terminal."""
    found = console(stderr=True)
    columns = (TextColumn(done), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=found, transient=True, disable=hidden or not found.is_terminal or total < 2)
