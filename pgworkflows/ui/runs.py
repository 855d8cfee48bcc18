"""Runs: filtered, in pages, and many steered at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Response

from pgworkflows.errors import ConfigurationError, WorkflowRunNotFoundError
from pgworkflows.inspection import Count, FoundRuns
from pgworkflows.runs import RunStatus, WorkflowRun
from pgworkflows.ui.steering import MANY, REFUSALS, RUN_ACTIONS, refused
from pgworkflows.ui.visit import Visit

PAGE = 50
AT_ONCE = 1000
"""So many runs are steered by one form: a browser waits for the answer."""
PAGES_AT_ONCE = 100
"""So many pages are looked at for them, whoever may see how many of their runs."""


@dataclass(frozen=True)
class Filters:
    """What a list of runs is narrowed down to, as its address says it."""

    text: str | None
    workflow_id: str | None
    statuses: tuple[RunStatus, ...]
    resource_id: str | None
    queue: str | None
    parent_run_id: UUID | None
    started_after: datetime | None
    started_before: datetime | None

    @classmethod
    def read(cls, given: MultiDict[str, str]) -> Filters:
        """Raises BadRequest."""
        known = {str(status): status for status in RunStatus}
        chosen = [name for name in given.getlist("status") if name]
        if any(name not in known for name in chosen):
            raise BadRequest(f"A status is one of {', '.join(known)}.")
        return cls(
            text=_word(given, "q"),
            workflow_id=_word(given, "workflow"),
            statuses=tuple(known[name] for name in known if name in chosen),
            resource_id=_word(given, "resource"),
            queue=_word(given, "queue"),
            parent_run_id=_uuid(given, "parent"),
            started_after=_time(given, "after"),
            started_before=_time(given, "before"),
        )

    @property
    def query(self) -> dict[str, Any]:
        """The same as the query of an address."""
        return {
            "q": self.text,
            "workflow": self.workflow_id,
            "status": [str(status) for status in self.statuses] or None,
            "resource": self.resource_id,
            "queue": self.queue,
            "parent": self.parent_run_id,
            "after": _written(self.started_after),
            "before": _written(self.started_before),
        }

    @property
    def any(self) -> bool:
        return any(value is not None for value in self.query.values())

    def arguments(self, statuses: Iterable[RunStatus] | None = None) -> dict[str, Any]:
        """The same as the Inspector takes it; with only some of the `statuses`."""
        wanted = list(statuses) if statuses is not None else list(self.statuses)
        return {**vars(self), "statuses": wanted or None}


def show_runs(visit: Visit) -> Response:
    """A page of runs, the newest first."""
    given = visit.request.args
    filters = Filters.read(given)
    cursor = given.get("cursor") or None
    newer = given.get("newer") == "1"
    found = _found(visit, filters.arguments(), cursor=cursor, newer=newer)
    return visit.page(
        "runs.html",
        filters=filters,
        found=found,
        runs=[run for run in found.items if visit.may("view", run)],
        newest=cursor is None,
        newer=newer,
        statuses=[*RunStatus],
        workflows=sorted({each.id for each in visit.inspector.get_declared()}),
        actions={name: RUN_ACTIONS[name] for name in MANY if visit.dashboard.actions and _allowed(filters, name)},
    )


def confirm_bulk(visit: Visit) -> Response:
    """How many runs an action would touch, before it does."""
    name = _chosen_action(visit, visit.request.args)
    filters = Filters.read(visit.request.args)
    statuses = _allowed(filters, name)
    return visit.page(
        "bulk.html",
        filters=filters,
        count=_count(visit, filters, statuses, name),
        name=name,
        action=RUN_ACTIONS[name],
        statuses=statuses,
        most=AT_ONCE,
    )


def act_on_runs(visit: Visit) -> Response:
    """Do something to the runs that were ticked, or to those that match."""
    form = visit.request.form
    name = _chosen_action(visit, form)
    if form.get("matching") == "1":
        filters = Filters.read(form)
        chosen = _matching(visit, filters, _allowed(filters, name))
    else:
        chosen = _ticked(visit)
    done, refusals, more = 0, Counter[str](), False
    for run in chosen:
        if run is None or done + refusals.total() >= AT_ONCE:
            more = True
            break
        if not visit.may(name, run):
            refusals["you may not do that to them"] += 1
            continue
        try:
            RUN_ACTIONS[name].call(visit.client, run, MultiDict())
            done += 1
        except REFUSALS as refusal:
            refusals[refused(visit, refusal)] += 1
    visit.say(_told(name, done, refusals, more), well=not refusals)
    return visit.go(visit.back(visit.url("runs")))


def _told(name: str, done: int, refusals: Counter[str], more: bool) -> str:
    told = f"{done:,} {'run' if done == 1 else 'runs'} {RUN_ACTIONS[name].done}."
    if refusals:
        told += f" {refusals.total():,} not: " + " ".join(why for why, _ in refusals.most_common(5))
    if more:
        told += f" There may be more: one form does at most {AT_ONCE:,}, and looks at {PAGES_AT_ONCE * PAGE:,}."
    return told


def _chosen_action(visit: Visit, given: MultiDict[str, str]) -> str:
    name = given.get("action", "")
    if name not in MANY:
        raise BadRequest(f"Choose what is to be done: {', '.join(MANY)}.")
    if not visit.dashboard.actions:
        visit.require(name)
    return name


def _ticked(visit: Visit) -> Iterator[WorkflowRun | None]:
    """The runs that were ticked and may be seen; None at the end if there were too many."""
    given = list(dict.fromkeys(visit.request.form.getlist("run")))
    for text in given[:AT_ONCE]:
        try:
            run = visit.client.get_run(text)
        except WorkflowRunNotFoundError:
            continue  # it is gone, which its list did not know
        if visit.may("view", run):
            yield run
    if len(given) > AT_ONCE:
        yield None


def _matching(visit: Visit, filters: Filters, statuses: list[RunStatus]) -> Iterator[WorkflowRun | None]:
    """The runs that match and may be seen; None at the end if not all were looked at."""
    cursor = None
    for _ in range(PAGES_AT_ONCE if statuses else 0):
        found = _found(visit, filters.arguments(statuses), cursor=cursor)
        yield from (run for run in found.items if visit.may("view", run))
        cursor = found.next_cursor
        if cursor is None:
            return
    if cursor is not None:
        yield None


def _count(visit: Visit, filters: Filters, statuses: list[RunStatus], name: str) -> Count | None:
    """How many runs an action would touch; of those that this visitor may not see, not even their number is told."""
    if not statuses:
        return None
    if visit.dashboard.authorize is None:
        try:
            return visit.inspector.count_runs(**filters.arguments(statuses), limit=PAGES_AT_ONCE * PAGE)
        except ValueError as error:
            raise BadRequest(f"{error}.") from None
    runs = 0
    for run in _matching(visit, filters, statuses):
        if run is None or runs == AT_ONCE:
            return Count(runs, at_least=True)
        runs += visit.may(name, run)
    return Count(runs, at_least=False)


def _allowed(filters: Filters, name: str) -> list[RunStatus]:
    """The statuses that the list shows and the action takes."""
    allowed = RUN_ACTIONS[name].allowed
    return [status for status in (filters.statuses or RunStatus) if status in allowed]


def _found(visit: Visit, arguments: dict[str, Any], *, cursor: str | None, newer: bool = False) -> FoundRuns:
    try:
        return visit.inspector.find_runs(**arguments, limit=PAGE, cursor=cursor, newer=newer)
    except ConfigurationError:
        raise
    except ValueError as error:
        raise BadRequest(f"{error}.") from None


def _word(given: MultiDict[str, str], name: str) -> str | None:
    return given.get(name, "").strip() or None


def _uuid(given: MultiDict[str, str], name: str) -> UUID | None:
    text = _word(given, name)
    try:
        return None if text is None else UUID(text)
    except ValueError:
        raise BadRequest(f"The {name} is the id of a run, a UUID.") from None


def _time(given: MultiDict[str, str], name: str) -> datetime | None:
    text = _word(given, name)
    try:
        found = None if text is None else datetime.fromisoformat(text)
        if found is not None:
            found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadRequest(f"A time is written like 2026-01-31T14:30, in UTC; {name} is not.") from None
    return found


def _written(value: datetime | None) -> str | None:
    return None if value is None else value.replace(tzinfo=None).isoformat(timespec="seconds")
