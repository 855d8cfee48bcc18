"""What the shell is told when a word is to be completed: workflows and runs as the database has them.

Whoever presses the key waits for it, and wants no errors: whatever goes wrong, there is nothing to complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeAlias

import click
from click.shell_completion import CompletionItem

from pgworkflows.cli.commands import client_of
from pgworkflows.inspection import Inspector

PATIENCE = "1s"
MOST = 100
MEANT = 8
"""A beginning that is longer is looked for; before that, the newest runs are looked through."""

_PLAIN = re.compile(r"[\w.:@/+-]+")
"""A word that a shell takes as it is: it writes what it is given into the command line, unquoted."""

Complete: TypeAlias = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
Ask: TypeAlias = Callable[[Inspector, str], Iterable[CompletionItem]]


def _completing(ask: Ask) -> Complete:
    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            client = client_of(ctx)
            if not client.health(timeout=PATIENCE).reachable:
                return []
            return list(ask(Inspector(client), incomplete))
        except Exception:  # no database, no schema, no privilege: the shell completes nothing
            return []

    return complete


def _workflows(inspector: Inspector, incomplete: str) -> Iterable[CompletionItem]:
    declared = (each.id for each in inspector.get_declared())
    return (CompletionItem(name) for name in declared if name.startswith(incomplete) and _PLAIN.fullmatch(name))


def _scheduled(inspector: Inspector, incomplete: str) -> Iterable[CompletionItem]:
    scheduled = {each.id for each in inspector.get_declared() if each.schedule is not None}
    return (item for item in _workflows(inspector, incomplete) if item.value in scheduled)


def _runs(inspector: Inspector, incomplete: str) -> Iterable[CompletionItem]:
    found = inspector.find_runs(text=incomplete if len(incomplete) > MEANT else None, limit=MOST).items
    return (
        CompletionItem(str(run.id), help=f"{run.workflow_id}, {run.status}")
        for run in found
        if str(run.id).startswith(incomplete) and run.workflow_id.isprintable()
    )


complete_workflows = _completing(_workflows)
complete_scheduled = _completing(_scheduled)
complete_runs = _completing(_runs)
