"""Ways to break the engine itself, each of which the checker has to notice. They live here, not in the engine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any
from unittest import mock
from uuid import UUID

import psycopg

from pgworkflows import scribe
from pgworkflows.entries import Entry
from pgworkflows.history import StepStatus
from pgworkflows.journal import WRITTEN, Answer, write
from pgworkflows.schema import DEFAULT_SCHEMA, render
from pgworkflows.worker_connection import WorkerConnection

NO_FENCE = "no fence"
LOST_EVENT = "lost event"
SKIPPED_CHECKPOINT = "skipped checkpoint"
SABOTAGES = (NO_FENCE, LOST_EVENT, SKIPPED_CHECKPOINT)

_FENCED = (
    "q.claim_id = e.claim_id and coalesce(q.worker_id = flush.worker_id, false)",
    "q.claim_id is not null",
)
_FENCED_RESULTS = (
    """q.run_id = r.run_id and q.claim_id = r.claim_id
                and coalesce(q.worker_id = flush_results.worker_id, false)""",
    "q.run_id = r.run_id and q.claim_id is not null",
)
_KEPT = (
    "insert into pgworkflows.events (",
    "if random() < 0.3 then return ('accepted', run)::pgworkflows.outcome; end if; insert into pgworkflows.events (",
)


def sabotage_database(conn: psycopg.Connection[Any], name: str | None) -> None:
    """Let a function of the schema do other than it should: a flush writes whoever has the claim, or some events are
    accepted but not kept."""
    match name:
        case "no fence":
            _rewrite(conn, "flush", _FENCED)
            _rewrite(conn, "flush_results", _FENCED_RESULTS)
        case "lost event":
            _rewrite(conn, "try_trigger_event", _KEPT)
        case _:
            pass


def _rewrite(conn: psycopg.Connection[Any], function: str, change: tuple[str, str]) -> None:
    right, wrong = (render(text, DEFAULT_SCHEMA) for text in change)
    found = conn.execute(
        "select pg_get_functiondef(p.oid) from pg_proc as p "
        "where p.proname = %s and p.pronamespace = 'pgworkflows'::regnamespace",
        [function],
    ).fetchall()
    [(text,)] = found
    assert right in text, f"pgworkflows.{function} has changed: bring its sabotage up to date"
    conn.execute(text.replace(right, wrong).encode())


def sabotage_worker(name: str | None) -> None:
    """Let this process's worker go on after some steps without writing their checkpoints."""
    if name == SKIPPED_CHECKPOINT:
        mock.patch.object(scribe, "write", _write_most).start()
        mock.patch.object(scribe.Scribe, "_launch", return_value=None).start()


def _write_most(conn: WorkerConnection, worker_id: UUID, entries: Sequence[Entry]) -> list[Answer]:
    skipped = [_is_a_result(entry) and random.random() < 0.1 for entry in entries]
    kept = [entry for entry, skip in zip(entries, skipped, strict=True) if not skip]
    answers = iter(write(conn, worker_id, kept) if kept else [])
    return [WRITTEN if skip else next(answers) for skip in skipped]


def _is_a_result(entry: Entry) -> bool:
    return entry.action == "checkpoint" and any(step.status is StepStatus.COMPLETED for step in entry.steps)
