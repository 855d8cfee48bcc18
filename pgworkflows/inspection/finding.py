"""Finding runs: pages of them and counts, by filters, in a table of any size. A page looks at a bounded number of rows
of the one index that leads there best, and says how far it has looked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from pgworkflows.database import NotAllowed
from pgworkflows.durations import parse_moment
from pgworkflows.inspection.base import FIRST_ID, LAST_ID, Inspection, first_id_at, started_at
from pgworkflows.limits import MAX_IDENTIFIER_LENGTH, checked_flag, is_storable, quoted
from pgworkflows.operations import RunId, run_key
from pgworkflows.reading import MAX_PAGE, checked_statuses, read_cursor, write_cursor
from pgworkflows.runs import UNFINISHED, RunStatus, WorkflowRun
from pgworkflows.starts import optional_name
from pgworkflows.store import run_from_json

SCANNED_ROWS = 10_000
"""How many rows a page looks at, at most."""
SCANNED_ERRORS = 1_000
"""The same where the words of errors are read."""
COUNTED_PER_PAGE = 10
"""A count looks at so many times as much."""
MAX_COUNT = 100_000
MAX_TEXT = 1_000
_DIGITS = re.compile("[0-9a-f]{6,32}")
"""What an id begins with, if it is looked for by its beginning."""


@dataclass(frozen=True)
class FoundRuns:
    """A page of runs, newest first. Cursors are opaque; pass `next_cursor` as `cursor` for older runs, `prev_cursor`
    with `newer=True` for newer ones. `searched_back_to` is set when the page has looked at as many rows as it may and
    there is more to look at: it looked at the runs started since then (with `newer`: until then), and its cursor goes
    on there."""

    items: list[WorkflowRun]
    next_cursor: str | None
    prev_cursor: str | None
    searched_back_to: datetime | None


@dataclass(frozen=True)
class Count:
    """How many runs there are; `at_least`: there may be more, which were not looked at."""

    runs: int
    at_least: bool


@dataclass(frozen=True)
class _Search:
    """Filters as the statement takes them. `source` is the index that it walks along."""

    source: str
    first: UUID
    last: UUID
    workflow_id: str | None
    queue: str | None
    resource_id: str | None
    parent_run_id: UUID | None
    statuses: list[RunStatus] | None
    words: list[str] | None


@dataclass(frozen=True)
class _Seen:
    """A run that was looked at: 1 if it fits and else 0, its row if it does, and whether it was the last that might be
    looked at. Or a number of those that fit, with the last if there was one."""

    run_id: UUID | None
    runs: int
    row: str | None
    last: bool


class FindOperations(Inspection):
    """How an inspector finds runs."""

    def find_runs(
        self,
        *,
        workflow_id: str | None = None,
        statuses: Iterable[RunStatus | str] | None = None,
        resource_id: str | None = None,
        queue: str | None = None,
        started_after: datetime | str | None = None,
        started_before: datetime | str | None = None,
        parent_run_id: RunId | None = None,
        text: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
        newer: bool = False,
    ) -> FoundRuns:
        """A page of the runs that fit all filters, newest first.

        `started_after` (inclusive) and `started_before` (exclusive) are aware datetimes or ISO 8601 text. `text` is the
        first of these that there is: the id or the idempotency key of a run, the resource of runs, at least six digits
        that ids begin with; else words, all of which stand in an error's type or message, whatever their case.
        `limit` is 1 to 1000. Raises ValueError and TypeError for arguments that are none.
        """
        _check_limit(limit, MAX_PAGE)
        search = self._search(
            workflow_id, statuses, resource_id, queue, started_after, started_before, parent_run_id, text
        )
        at = None if cursor is None else read_cursor(cursor)
        newer = checked_flag(newer, "newer")
        seen = self._find(search, at, newer=newer, limit=limit + 1, scan=_bound(search), rows=True)
        found = [each.row for each in seen if each.row is not None]
        items = [run_from_json(row, self._payloads) for row in found[:limit]]
        # Either there is one more than was asked for, or what was looked at last, if there may be more behind it.
        horizon = seen[-1].run_id if len(found) <= limit and seen and seen[-1].last else None
        beyond = items[-1].id if len(found) > limit else horizon
        back = None if at is None else items[0].id if items else _beside(at, newer=newer)
        if newer:
            items.reverse()
        return FoundRuns(
            items=items,
            next_cursor=_optional_cursor(back if newer else beyond),
            prev_cursor=_optional_cursor(beyond if newer else back),
            searched_back_to=None if horizon is None else started_at(horizon),
        )

    def count_runs(
        self,
        *,
        workflow_id: str | None = None,
        statuses: Iterable[RunStatus | str] | None = None,
        resource_id: str | None = None,
        queue: str | None = None,
        started_after: datetime | str | None = None,
        started_before: datetime | str | None = None,
        parent_run_id: RunId | None = None,
        text: str | None = None,
        limit: int = 10_000,
    ) -> Count:
        """How many runs fit all filters, which are those of `find_runs`; counts up to `limit`, which is at most
        100,000. Raises like `find_runs`."""
        _check_limit(limit, MAX_COUNT)
        search = self._search(
            workflow_id, statuses, resource_id, queue, started_after, started_before, parent_run_id, text
        )
        seen = self._find(
            search, None, newer=False, limit=limit + 1, scan=_bound(search) * COUNTED_PER_PAGE, rows=False
        )
        runs = sum(each.runs for each in seen)
        return Count(min(runs, limit), runs > limit or bool(seen and seen[-1].last))

    def _find(self, search: _Search, at: UUID | None, *, newer: bool, limit: int, scan: int, rows: bool) -> list[_Seen]:
        """Up to `limit` runs in order from a place on, and what was looked at last if there may be more behind it;
        without `rows` their number."""
        # Who looks for few gets them by the order of an index, where for many the planner might sort all there are.
        few = min(scan, 4 * limit)
        seen = self._look(search, at, newer=newer, limit=limit, scan=few, rows=rows)
        fit = [each for each in seen if each.runs]
        missing = limit - sum(each.runs for each in fit)
        if not missing or few == scan or not (seen and seen[-1].last):
            return seen
        more = self._look(search, seen[-1].run_id, newer=newer, limit=missing, scan=scan - few, rows=rows)
        return [*(replace(each, last=False) for each in fit), *more]

    def _look(self, search: _Search, at: UUID | None, *, newer: bool, limit: int, scan: int, rows: bool) -> list[_Seen]:
        first, last = search.first, search.last
        if at is not None and newer:
            first = max(first, _beside(at, newer=True))
        elif at is not None:
            last = min(last, _beside(at, newer=False))
        params: dict[str, object] = {
            "source": search.source,
            "first": str(first),
            "last": str(last),
            "workflow_id": search.workflow_id,
            "queue": search.queue,
            "resource_id": search.resource_id,
            "parent_run_id": None if search.parent_run_id is None else str(search.parent_run_id),
            "statuses": None if search.statuses is None else [str(status) for status in search.statuses],
            "words": search.words,
            "newer": "true" if newer else "false",
            "rows": "true" if rows else "false",
            "scan": scan,
            "limit": limit,
        }
        if search.source == "queue":
            try:
                return [_seen(*row) for row in self._fetch("find_unfinished", params)]
            except NotAllowed:  # a client's role, which has its own runs but not the queue
                params["source"] = "all" if search.workflow_id is None else "workflow"
        return [_seen(*row) for row in self._fetch("find_runs", params)]

    def _search(
        self,
        workflow_id: str | None,
        statuses: Iterable[RunStatus | str] | None,
        resource_id: str | None,
        queue: str | None,
        started_after: datetime | str | None,
        started_before: datetime | str | None,
        parent_run_id: RunId | None,
        text: str | None,
    ) -> _Search:
        """The filters, checked; and where to look for them."""
        workflow_id = optional_name(workflow_id, "workflow_id")
        resource_id = optional_name(resource_id, "resource_id")
        queue = optional_name(queue, "queue")
        wanted = None if statuses is None else checked_statuses(statuses)
        parent = None if parent_run_id is None else run_key(parent_run_id)
        first, last = FIRST_ID, LAST_ID
        if started_after is not None:
            first = first_id_at(parse_moment(started_after, "started_after"))
        if started_before is not None:
            last = _beside(first_id_at(parse_moment(started_before, "started_before")), newer=False)
        words = None
        named = None if text is None else self._named(_checked_text(text))
        if named is not None:
            first, last, words = max(first, named.first), min(last, named.last), named.words
        by_resource = resource_id if resource_id is not None else None if named is None else named.resource_id
        if named is not None and named.resource_id is not None and named.resource_id != by_resource:
            last, first = FIRST_ID, LAST_ID  # of two resources there is no run
        return _Search(
            _source(workflow_id, wanted, by_resource, parent, words),
            first,
            last,
            workflow_id,
            queue,
            by_resource,
            parent,
            wanted,
            words,
        )

    def _named(self, text: str) -> _Named:
        """What a text stands for."""
        if not text:
            return _Named()
        whole, first, last = _ids_beginning(text)
        params = {
            "id": None if whole is None else str(whole),
            "text": text if len(text) <= MAX_IDENTIFIER_LENGTH else None,
            "first": None if first is None else str(first),
            "last": None if last is None else str(last),
        }
        [(by_id, by_key, of_resource, begins)] = self._fetch("resolve_text", params)
        if by_id or by_key:
            run_id = UUID(by_id or by_key)
            return _Named(run_id, run_id)
        if of_resource:
            return _Named(resource_id=text)
        if begins and first is not None and last is not None:
            return _Named(first, last)
        return _Named(words=text.split())


def _seen(run_id: str | None, runs: int, row: str | None, last: bool) -> _Seen:
    return _Seen(None if run_id is None else UUID(run_id), runs, row, last)


@dataclass(frozen=True)
class _Named:
    """What a text that is looked for means for the filters."""

    first: UUID = FIRST_ID
    last: UUID = LAST_ID
    resource_id: str | None = None
    words: list[str] | None = None


def _source(
    workflow_id: str | None,
    statuses: list[RunStatus] | None,
    resource_id: str | None,
    parent_run_id: UUID | None,
    words: list[str] | None,
) -> str:
    """The index that leads to the fewest runs that are none of those that are looked for."""
    if parent_run_id is not None:
        return "parent"
    if resource_id is not None:
        return "resource"
    if words is not None or (statuses and set(statuses) == {RunStatus.FAILED}):
        return "failed" if workflow_id is None else "workflow failed"
    if statuses and set(statuses) <= UNFINISHED:
        return "queue"
    return "all" if workflow_id is None else "workflow"


def _bound(search: _Search) -> int:
    """How many rows a page looks at."""
    return SCANNED_ROWS if search.words is None else SCANNED_ERRORS


def _ids_beginning(text: str) -> tuple[UUID | None, UUID | None, UUID | None]:
    """The id that a text is, if it is one, and else the first and the last of those that begin so."""
    digits = text.replace("-", "").lower()
    if not _DIGITS.fullmatch(digits):
        return None, None, None
    if len(digits) == 32:
        return UUID(digits), None, None
    return None, UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def _beside(run_id: UUID, *, newer: bool) -> UUID:
    """The next id, or the one before."""
    return UUID(int=min(run_id.int + 1, LAST_ID.int) if newer else max(run_id.int - 1, 0))


def _optional_cursor(run_id: UUID | None) -> str | None:
    return None if run_id is None else write_cursor(run_id)


def _check_limit(limit: object, most: int) -> None:
    if type(limit) is not int or not 1 <= limit <= most:
        raise ValueError(f"limit must be an int within 1 and {most}, not {quoted(limit)}")


def _checked_text(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, not {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise ValueError(f"text must have at most {MAX_TEXT} characters; this one has {len(text)}")
    if not is_storable(text):
        raise ValueError(f"text must not hold NUL or lone surrogates: {quoted(text)}")
    return text.strip()
