"""The laws that hold for every run at every moment, with nothing to compare it with: a watch over its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from replay_model import Database, EventRow

from pgworkflows.decisions import StepWrite
from pgworkflows.entries import Entry
from pgworkflows.history import StepKind, StepStatus, StoredStep
from pgworkflows.results import POLL_TIMED_OUT

FINAL = (StepStatus.COMPLETED, StepStatus.FAILED)
TIMED = (StepKind.WAIT_FOR, StepKind.WAIT_UNTIL, StepKind.DELAY)


class Watch:
    """Watches one run, and notes in `wrongs` what must not be."""

    def __init__(self, database: Database, wrongs: list[str]) -> None:
        self._database = database
        self._wrongs = wrongs
        self._known: dict[str, str] = {}

    def call(self, step_id: str, attempt: int) -> None:
        """A step function is called: not after it was written, and its attempts are counted on."""
        step = self._database.steps.get(step_id)
        if step is not None and step.status in FINAL:
            self._wrongs.append(f"{step_id} was called although it is {step.status}")
        if attempt != (0 if step is None else step.attempts) + 1:
            self._wrongs.append(f"{step_id} was called as attempt {attempt} after {step}")

    def rows(self, before: Mapping[str, StoredStep]) -> None:
        """Something was done: compare the rows with those of a moment ago."""
        for step_id, old in before.items():
            new = self._database.steps.get(step_id)
            if old.status is StepStatus.COMPLETED and new != old:
                self._wrongs.append(f"a completed step changed: {old} became {new}")
            if new is None or new.cleared:
                self._known.pop(step_id, None)  # it was taken back
            else:
                self._row(old, new)
        binding = [step for step in self._database.history if not step.cleared]
        if [step.position for step in binding] != list(range(len(binding))):
            self._wrongs.append(f"positions are out of order: {binding}")
        if any(step.status not in FINAL for step in binding[:-1]):
            self._wrongs.append(f"a step without an outcome is followed by another: {binding}")

    def _row(self, old: StoredStep, new: StoredStep) -> None:
        if old.kind in TIMED and new.wake_at != old.wake_at:
            self._wrongs.append(f"a deadline moved: {old} became {new}")
        if new.attempts < old.attempts:
            self._wrongs.append(f"attempts were reset: {old} became {new}")
        if old.kind is StepKind.POLL and old.deadline_at is not None:
            if new.deadline_at != old.deadline_at:
                self._wrongs.append(f"a deadline moved: {old} became {new}")
            if new.status is StepStatus.WAITING and (new.wake_at or old.deadline_at) > old.deadline_at:
                self._wrongs.append(f"a poll sleeps through its deadline: {new}")

    def entry(self, entry: Entry, as_of: datetime) -> None:
        """Something is about to be written that was decided on what was there at `as_of`."""
        if [row.position for row in entry.steps] != sorted({row.position for row in entry.steps}):
            self._wrongs.append(f"rows are out of order: {entry.steps}")
        left = [event for event in self._database.events if event.step_id is None]
        for row in entry.steps:
            old = self._database.steps.get(row.step_id)
            if row.kind in TIMED and row.status == StepStatus.WAITING and old is not None:
                self._wrongs.append(f"a wait was written again: {row}")
            if row.kind == StepKind.POLL and row.status != StepStatus.FAILED:
                self._poll(row, late=old is not None and old.deadline_at is not None and old.deadline_at <= as_of)
            if row.kind == StepKind.WAIT_FOR and row.status in FINAL:
                taken = [each.event_id for each in entry.events if each.step_id == row.step_id]
                self._wait(row, taken, left, None if old is None else old.wake_at, as_of)
                left = [event for event in left if event.id not in taken]

    def _poll(self, row: StepWrite, *, late: bool) -> None:
        if late and row.status == StepStatus.WAITING:
            self._wrongs.append(f"a poll went on after its deadline: {row}")
        if not late and row.output == POLL_TIMED_OUT:
            self._wrongs.append(f"a poll gave up before its deadline: {row}")

    def _wait(
        self, row: StepWrite, taken: list[int], left: list[EventRow], deadline: datetime | None, as_of: datetime
    ) -> None:
        """A wait that is over took the first event it could, or there was none by its deadline."""
        fit = [e.id for e in left if e.name == row.event_name and (deadline is None or e.received_at <= deadline)]
        if taken != fit[:1]:
            self._wrongs.append(f"{row.step_id} took {taken} of {fit}, its deadline being {deadline}")
        if not taken and (deadline is None or deadline > as_of):
            self._wrongs.append(f"{row.step_id} timed out before {deadline}")

    def seen(self, saw: Sequence[tuple[str, Any]]) -> None:
        """All executions see the same of a step that has its outcome."""
        for step_id, what in saw:
            step = self._database.steps.get(step_id)
            if step is not None and step.status in FINAL and self._known.setdefault(step_id, repr(what)) != repr(what):
                self._wrongs.append(f"{step_id} was seen as {what!r}, and once as {self._known[step_id]}")

    def rest(self) -> None:
        """Nothing more will happen: no event has come that the run waits for."""
        place = self._database.place
        for event in self._database.events:
            if (
                place is not None
                and place.wait_kind == "event"
                and (event.name, event.step_id) == (place.wait_event, None)
            ):
                self._wrongs.append(f"the run waits, but it was sent {event}")
