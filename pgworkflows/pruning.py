"""Deleting finished runs that are old enough, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from pgworkflows.database import Executor
from pgworkflows.store import Store

BATCH = 500


def prune(
    store: Store, executor: Executor, older_than: timedelta | None, workflow_id: str | None = None
) -> Iterator[int]:
    """Delete what ended longer ago than `older_than`, or than the declared retention of its workflow: how many runs,
    for each batch, which is a transaction of its own."""
    for each, age in _ages(store, executor, older_than, workflow_id).items():
        last, deleted = store.prune_runs(executor, each, age, None, BATCH)
        yield deleted
        while last is not None:
            last, deleted = store.prune_runs(executor, each, age, last, BATCH)
            yield deleted


def _ages(
    store: Store, executor: Executor, older_than: timedelta | None, workflow_id: str | None
) -> dict[str | None, timedelta]:
    if older_than is not None:
        return {workflow_id: older_than}
    retentions = store.get_retentions(executor)
    return {each: age for each, age in retentions.items() if workflow_id is None or each == workflow_id}
