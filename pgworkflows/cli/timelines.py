"""One run as a person names it, and its timeline as far as the database user may see it."""

from __future__ import annotations

import re
from dataclasses import replace

from pgworkflows.cli.exits import Misused, NotFound
from pgworkflows.client import WorkflowClient
from pgworkflows.database import NotAllowed
from pgworkflows.inspection import Entry, Inspector, Timeline

_BEGINNING = re.compile(r"[0-9a-f]{6,31}")
_TOLD = 3
"""How many of the runs that are meant by a word are named."""


def run_named(client: WorkflowClient, word: str) -> str:
    """The id of the run that a word names: an id, or what only one begins with, six digits or more. Raises NotFound and
    Misused."""
    digits = word.replace("-", "").lower()
    if not _BEGINNING.fullmatch(digits):
        return word
    found = Inspector(client).find_runs(text=word, limit=_TOLD).items
    ids = [str(run.id) for run in found if run.id.hex.startswith(digits)]
    if not ids:
        raise NotFound(f"run {word!r} was not found: the id of none begins so")
    if len(ids) > 1:
        raise Misused(f"{word!r} begins the ids of several runs, such as {', '.join(ids)}: write more of it")
    return ids[0]


def timeline_of(client: WorkflowClient, run_id: str) -> Timeline:
    """The timeline with all its steps, however many. A database role that is a client gets what it may see."""
    try:
        return _whole_timeline(Inspector(client), run_id)
    except NotAllowed:
        return _part_for_a_client(client, run_id)


def _whole_timeline(inspector: Inspector, run_id: str) -> Timeline:
    """The timeline with all its steps, however many."""
    first = part = inspector.get_timeline(run_id)
    entries = list(first.entries)
    while part.next_position is not None:
        part = inspector.get_timeline(run_id, after_position=part.next_position)
        entries += part.entries
    return replace(part, entries=entries)


def _part_for_a_client(client: WorkflowClient, run_id: str) -> Timeline:
    """What a database role may see that is a client: its runs and their steps, and nothing beside them."""
    run = client.get_run(run_id)
    entries = [
        Entry(
            step=step,
            started_at=step.started_at,
            ended_at=step.completed_at,
            duration=None if not (step.started_at and step.completed_at) else step.completed_at - step.started_at,
            taken_back=False,
        )
        for step in client.get_steps(run_id)
    ]
    return Timeline(
        run=run,
        entries=entries,
        next_position=None,
        children=[],
        parent=None,
        waits_for=None,
        declared=[],
        ahead=[],
        passed_over=[],
        events=[],
        now=run.updated_at,
    )
