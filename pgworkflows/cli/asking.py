"""The runs that filters find, and the question whether they are meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import click

from pgworkflows.cli.listing import print_runs
from pgworkflows.inspection import Inspector
from pgworkflows.runs import WorkflowRun

EXAMPLES = 10
"""How many of the runs that would be changed are shown."""
AT_ONCE = 500
"""How many of them are read at once."""


def found_by(inspector: Inspector, filters: Mapping[str, Any], at_once: int = AT_ONCE) -> Iterator[WorkflowRun]:
    """All runs that fit, from the newest back: no run comes twice, also if it is started or changed meanwhile."""
    cursor = None
    while True:
        page = inspector.find_runs(**filters, limit=at_once, cursor=cursor)
        yield from page.items
        cursor = page.next_cursor
        if cursor is None:
            return


def ask_about(inspector: Inspector, filters: Mapping[str, Any], would: str, *, at_most: bool = False) -> None:
    """Show runs that fit, say how many there are, and ask; nothing if there are none. Raises Abort."""
    # A count looks at a bounded number of runs, and may have come to none of them: the examples are looked for on.
    examples = list(islice(found_by(inspector, filters, EXAMPLES), EXAMPLES))
    if not examples:
        return
    count = inspector.count_runs(**filters)
    number = counted(max(count.runs, len(examples)))
    bound = "at least " if count.at_least else "up to " if at_most else ""
    print_runs(examples, stderr=True)
    try:
        click.confirm(f"{bound}{number} would be {would}. Go on?", abort=True, err=True)
    except RuntimeError as error:  # there is no standard input
        raise click.Abort from error


def counted(runs: int) -> str:
    """A number of runs in words."""
    return f"{runs:,} {'run' if runs == 1 else 'runs'}"
