"""Commands that show runs: many, or one with its timeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import click
from rich.text import Text

from pgworkflows.cli.commands import as_given_here, current_client
from pgworkflows.cli.options import given, run_argument, with_filters
from pgworkflows.cli.output import (
    STYLES,
    hint,
    json_option,
    print_details,
    print_json,
    print_table,
    say,
)
from pgworkflows.cli.timelines import run_named, timeline_of
from pgworkflows.cli.wording import age, cleaned_lines, duration, failure, moment, payload, payload_lines
from pgworkflows.history import StepStatus
from pgworkflows.inspection import Entry, Inspector, Timeline
from pgworkflows.runs import WorkflowRun


@click.command()
@with_filters
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many at most.")
@click.option("--cursor", metavar="CURSOR", help="Go on where a page ended, by its next_cursor.")
@click.option("--newer", is_flag=True, help="Go back from there, by a page's prev_cursor.")
@json_option
def runs(limit: int, cursor: str | None, newer: bool, as_json: bool, **filters: Any) -> None:
    """List runs, the newest first.

    A page looks at a bounded number of runs. If it has found fewer than it may and there are older ones, it says how
    far it has looked.
    """
    client = current_client()
    found = Inspector(client).find_runs(**given(filters, client), limit=limit, cursor=cursor, newer=newer)
    if as_json:
        print_json(found)
        return
    print_runs(found.items)
    if found.searched_back_to is not None:
        say(f"looked at the runs since {moment(found.searched_back_to)} only", stderr=True)
    if found.next_cursor is not None:
        hint(f"there are more: --cursor {found.next_cursor}")


def print_runs(items: Sequence[WorkflowRun], *, stderr: bool = False) -> None:
    """A table of runs."""
    failed = any(run.error is not None for run in items)
    rows = [
        (
            run.id,
            run.workflow_id,
            run.status,
            run.current_step_id,
            age(run.created_at),
            *([None if run.error is None else failure(run.error)] if failed else []),
        )
        for run in items
    ]
    head = ("RUN", "WORKFLOW", "STATUS", "STEP", "AGE", *(["ERROR"] if failed else []))
    print_table(head, rows, cut=("WORKFLOW", "STEP", "ERROR"), empty="no runs", stderr=stderr)


@click.command()
@run_argument
@click.option(
    "--payloads/--no-payloads", default=None, help="Whole, with tracebacks; or not at all. Default: in short."
)
@json_option
def show(run_id: str, payloads: bool | None, as_json: bool) -> None:
    """Show a run and its steps, what it waits for, and what would end that."""
    if as_json and payloads is False:
        raise click.UsageError("--json has the payloads: leave out --no-payloads")
    client = current_client()
    timeline = timeline_of(client, run_named(client, run_id))
    if as_json:
        print_json(timeline)
        return
    print_details(_about(timeline, short=payloads is None))
    if timeline.entries or timeline.ahead:
        say()
        _print_steps(timeline, short=payloads is None)
    _print_beside(timeline)
    if payloads:
        _print_payloads(timeline)


def _about(timeline: Timeline, *, short: bool) -> Iterator[tuple[str, object]]:
    run, wait = timeline.run, timeline.waits_for
    yield "run", run.id
    yield "workflow", run.workflow_id
    yield "status", run.status
    yield "queue", run.queue
    yield "priority", run.priority or None
    yield "resource", run.resource_id
    yield "key", run.idempotency_key
    if run.parent_run_id is not None:
        yield "parent", f"{run.parent_run_id}, step {run.parent_step_id}"
    yield "retries", f"{run.retry_count} of {run.max_retries}"
    yield "created", run.created_at
    yield "started", run.started_at
    yield "ended", run.completed_at
    if run.completed_at is not None:
        yield "took", run.completed_at - run.created_at
    if timeline.worker is not None:
        yield "in hand of", f"worker {timeline.worker}"
    yield "times out", None if run.status.finished else run.timeout_at
    if wait is not None:
        since = "" if wait.since is None else f", for {duration(max(timeline.now - wait.since, timedelta(0)))}"
        yield "waits for", f"{wait.what}{since}"
        yield "until", wait.until
        if wait.remedy is not None:
            yield "end it by", as_given_here(wait.remedy.command)
    if short:
        yield "input", None if run.input is None else payload(run.input)
        yield "output", None if run.output is None else payload(run.output)
    if run.error is not None:
        yield "error", Text(failure(run.error), style=STYLES["failed"])


def _print_steps(timeline: Timeline, *, short: bool) -> None:
    begun = timeline.run.created_at
    rows: list[tuple[object, ...]] = [
        (
            entry.step.step_id,
            entry.step.kind,
            entry.step.status,
            entry.step.attempts or None,
            None if entry.started_at is None else f"+{duration(entry.started_at - begun)}",
            entry.duration,
            _result(entry, short=short),
        )
        for entry in timeline.entries
    ]
    rows += [(step_id, None, Text("ahead", style="dim"), None, None, None, None) for step_id in timeline.ahead]
    print_table(("STEP", "KIND", "STATUS", "TRIES", "BEGAN", "TOOK", "RESULT"), rows, cut=("STEP", "RESULT"))


def _result(entry: Entry, *, short: bool) -> object:
    """What came of a step, or what it waits for."""
    step = entry.step
    if step.error is not None:
        return Text(failure(step.error), style=STYLES["failed"])
    if step.status is not StepStatus.COMPLETED:
        if step.child_run_id is not None:
            return f"run {step.child_run_id}"
        until = "" if step.wake_at is None else f"until {moment(step.wake_at)}"
        return f"event {step.event_name} {until}".rstrip() if step.event_name is not None else until or None
    return payload(step.output) if short and step.output is not None else None


def _print_beside(timeline: Timeline) -> None:
    """Children, and events that nobody has taken."""
    if timeline.children:
        say()
        rows = [(child.id, child.workflow_id, child.status, child.step_id) for child in timeline.children]
        print_table(("CHILD", "WORKFLOW", "STATUS", "OF STEP"), rows, cut=("WORKFLOW", "OF STEP"))
    if timeline.events:
        say()
        events = [(event.name, age(event.received_at, timeline.now)) for event in timeline.events]
        print_table(("EVENT NOT TAKEN", "AGE"), events, cut=("EVENT NOT TAKEN",))


def _print_payloads(timeline: Timeline) -> None:
    run = timeline.run
    _print_part("input", [] if run.input is None else payload_lines(run.input))
    for entry in timeline.entries:
        step = entry.step
        _print_part(f"result of {step.step_id}", [] if step.output is None else payload_lines(step.output))
        _print_part(f"error of {step.step_id}", _error_lines(step.error))
    for event in timeline.events:
        _print_part(f"data of event {event.name}", payload_lines(event.data))
    _print_part("output", [] if run.output is None else payload_lines(run.output))
    of_steps = [_error_lines(entry.step.error) for entry in timeline.entries]
    if (lines := _error_lines(run.error)) not in of_steps:
        _print_part("error", lines)


def _print_part(title: str, lines: Iterable[str]) -> None:
    for number, line in enumerate(lines):
        if number == 0:
            say()
            say(f"{title}:", "bold")
        say(f"  {line}")


def _error_lines(error: Any) -> list[str]:
    """An error with its traceback, which ends with type and message."""
    if error is None:
        return []
    return cleaned_lines(error.get("traceback") or f"{error.get('type')}: {error.get('message')}")
