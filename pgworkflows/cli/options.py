"""Options and arguments that several commands have, and how their words are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pgworkflows.cli.completion import complete_runs, complete_workflows
from pgworkflows.cli.timelines import run_named
from pgworkflows.client import WorkflowClient
from pgworkflows.durations import parse_duration, parse_moment
from pgworkflows.runs import RunStatus

F = TypeVar("F", bound=Callable[..., Any])


if TYPE_CHECKING:
    _Durations = click.ParamType[timedelta]
else:
    _Durations = click.ParamType  # not generic in every release


class _DurationType(_Durations):
    """A duration in words; the message of one that is none names the option as it was given."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        try:
            return parse_duration(value, "it")
        except ValueError as error:
            return self.fail(str(error), param, ctx)


DURATION = _DurationType()
run_argument = click.argument("run_id", metavar="RUN", shell_complete=complete_runs)


def read_json(_ctx: click.Context, _param: click.Parameter, word: str | None) -> Any:
    """The value of an option: JSON, @ and the name of a file with it, or - for standard input."""
    if word is None:
        return None
    text, where = word, "this"
    try:
        if word == "-" and sys.stdin is None:
            raise click.BadParameter("standard input is closed")
        if word == "-":
            text, where = sys.stdin.read(), "standard input"
        elif word.startswith("@"):
            text, where = Path(word[1:]).read_text(encoding="utf-8"), word[1:]
        return json.loads(text)
    except OSError as error:
        raise click.BadParameter(f"{word[1:]} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{where} is no JSON: {error}") from error


def read_time(_ctx: click.Context, param: click.Parameter, word: str | None) -> datetime | None:
    """A time: so long ago, or in ISO 8601."""
    if word is None:
        return None
    try:
        return datetime.now(UTC) - parse_duration(word)
    except (ValueError, OverflowError):
        pass
    try:
        return parse_moment(word, f"--{param.name}")
    except ValueError as error:
        raise click.BadParameter(
            f"{word!r} is neither how long ago, as in '2 hours', nor a time, as in 2030-01-31T09:00:00+01:00"
        ) from error


_FILTERS = (
    click.option("--workflow", "workflow_id", metavar="ID", shell_complete=complete_workflows, help="Of one workflow."),
    click.option(
        "--status",
        "statuses",
        multiple=True,
        type=click.Choice([str(status) for status in RunStatus]),
        help="In this status; may be given again.",
    ),
    click.option("--resource", "resource_id", metavar="ID", help="That belong to this resource."),
    click.option("--queue", metavar="QUEUE", help="In one queue."),
    click.option("--since", "started_after", metavar="TIME", callback=read_time, help="Started then or later."),
    click.option("--until", "started_before", metavar="TIME", callback=read_time, help="Started before that."),
    click.option("--parent", "parent_run_id", metavar="RUN", shell_complete=complete_runs, help="Children of a run."),
    click.option("--text", metavar="TEXT", help="An id or its beginning, a key, a resource, or words of an error."),
)


def with_filters(function: F) -> F:
    """Give a command the options that choose runs: `given` makes the filters of what it is called with."""
    return with_options(_FILTERS)(function)


def given(filters: Mapping[str, Any], client: WorkflowClient) -> dict[str, Any]:
    """The filters that were given, as Inspector.find_runs takes them."""
    found = {name: value for name, value in filters.items() if value is not None and value != ()}
    if "parent_run_id" in found:
        found["parent_run_id"] = run_named(client, found["parent_run_id"])
    return found


def with_options(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    """Give a command these options, in this order."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
