"""Looking at runs: one, its steps, its progress, pages of many, and waiting for an end."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from pgworkflows.durations import Duration, parse_positive_duration
from pgworkflows.history import StepRecord
from pgworkflows.limits import checked_identifier, quoted
from pgworkflows.operations import Operations, RunId, not_found, run_key
from pgworkflows.runs import Page, RunStatus, WorkflowProgress, WorkflowRun
from pgworkflows.starts import optional_name
from pgworkflows.store import RunFilter

MAX_PAGE = 1000
FIRST_POLL_S = 0.005
LONGEST_POLL_S = 0.25


class ReadOperations(Operations):
    """How a client looks at runs."""

    def get_run(self, run_id: RunId, *, resource_id: str | None = None) -> WorkflowRun:
        """A run as it is now. Raises WorkflowRunNotFoundError."""
        key = run_key(run_id)
        run = self._store.get_run(self._reads, key, optional_name(resource_id, "resource_id"))
        if run is None:
            raise not_found(key, resource_id)
        return run

    def get_steps(self, run_id: RunId, *, resource_id: str | None = None) -> list[StepRecord]:
        """The steps a run has reached, in order. Raises WorkflowRunNotFoundError."""
        key = run_key(run_id)
        steps = self._store.get_steps(self._reads, key, optional_name(resource_id, "resource_id"))
        if steps is None:
            raise not_found(key, resource_id)
        return steps

    def check_progress(self, run_id: RunId, *, resource_id: str | None = None) -> WorkflowProgress:
        """How far a run is: the steps it has completed, out of these and the declared ones that it has not.
        Raises WorkflowRunNotFoundError."""
        key = run_key(run_id)
        found = self._store.check_progress(
            self._reads, key, optional_name(resource_id, "resource_id"), self._known_steps
        )
        if found is None:
            raise not_found(key, resource_id)
        run, completed, ahead, live_workers = found
        total = completed + ahead
        if run.status is RunStatus.COMPLETED:
            percentage = 100
        else:
            percentage = min(99, completed * 100 // total) if total else 0
        return WorkflowProgress(
            **vars(run),
            completed_steps=completed,
            total_steps=total,
            completion_percentage=percentage,
            live_workers=live_workers,
        )

    def get_runs(
        self,
        *,
        resource_id: str | None = None,
        workflow_id: str | None = None,
        statuses: Iterable[RunStatus | str] | None = None,
        idempotency_key: str | None = None,
        limit: int = 20,
        starting_after: str | None = None,
        ending_before: str | None = None,
    ) -> Page:
        """A page of runs, newest first. Cursors are a page's `next_cursor` and `prev_cursor`; `limit` is 1 to 1000.
        Raises ValueError for anything else."""
        if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
            raise ValueError(f"limit must be an int within 1 and {MAX_PAGE}, not {quoted(limit)}")
        if starting_after is not None and ending_before is not None:
            raise ValueError("give starting_after or ending_before, not both")
        wanted = RunFilter(
            optional_name(resource_id, "resource_id"),
            optional_name(workflow_id, "workflow_id"),
            optional_name(idempotency_key, "idempotency_key"),
            None if statuses is None else checked_statuses(statuses),
        )
        newer = ending_before is not None
        given = ending_before if newer else starting_after
        cursor = None if given is None else read_cursor(given)
        found = self._store.get_runs(self._reads, wanted, cursor=cursor, newer=newer, limit=limit + 1)
        beyond, items = len(found) > limit, found[:limit]
        if newer:
            items.reverse()
        has_more = bool(items) if newer else beyond
        has_prev = beyond if newer else bool(items) and cursor is not None
        return Page(
            items=items,
            next_cursor=write_cursor(items[-1].id) if has_more else None,
            prev_cursor=write_cursor(items[0].id) if has_prev else None,
            has_more=has_more,
            has_prev=has_prev,
        )

    def get_workflow_last_run(self, workflow_id: str, *, resource_id: str | None = None) -> WorkflowRun | None:
        """The newest run of a workflow, if there is one."""
        page = self.get_runs(
            workflow_id=checked_identifier(workflow_id, "workflow_id"), resource_id=resource_id, limit=1
        )
        return page.items[0] if page.items else None

    def wait_for_run(self, run_id: RunId, *, timeout: Duration | None = None) -> WorkflowRun:
        """Wait until a run is finished, however it ends, and return it. Raises WorkflowRunNotFoundError and, after
        `timeout`, TimeoutError."""
        key = run_key(run_id)
        limit_s = None if timeout is None else parse_positive_duration(timeout, "timeout").total_seconds()
        deadline = None if limit_s is None else time.monotonic() + limit_s
        pause_s = FIRST_POLL_S
        while True:
            status = self._store.get_status(self._reads, key)
            if status is None:
                raise not_found(key, None)
            if status.finished:
                return self.get_run(key)
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"run {key} is still {status} after {limit_s:g} s; it goes on")
            left_s = pause_s if deadline is None else max(0.0, deadline - time.monotonic())
            time.sleep(min(pause_s, left_s))
            pause_s = min(LONGEST_POLL_S, pause_s * 1.5)

    @property
    def _known_steps(self) -> Mapping[str, Sequence[str]]:
        """Literal step ids by workflow id, for progress where no declaration is stored."""
        return {}


def checked_statuses(statuses: Iterable[RunStatus | str]) -> list[RunStatus]:
    """Statuses as a caller gives them. Raises ValueError and TypeError."""
    if isinstance(statuses, str):
        raise TypeError("statuses must be a list of statuses, not one string")
    given: list[object] = list(statuses)
    known = {str(status): status for status in RunStatus}
    for status in given:
        if not isinstance(status, str) or status not in known:
            raise ValueError(f"{quoted(status)} is not a valid RunStatus: use {', '.join(known)}")
    return [known[str(status)] for status in given]


def write_cursor(run_id: UUID) -> str:
    """A place between pages, as callers hand it back."""
    return base64.urlsafe_b64encode(run_id.bytes).decode().rstrip("=")


def read_cursor(text: str) -> UUID:
    """The place that a cursor stands for. Raises ValueError."""
    try:
        return UUID(bytes=base64.urlsafe_b64decode(text + "=="))
    except (ValueError, TypeError, binascii.Error):
        raise ValueError(f"{quoted(text)} is no cursor: pass a page's next_cursor or prev_cursor") from None
