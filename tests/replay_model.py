"""One run as the database keeps it, in memory: what the migrations' SQL functions do, with a clock to set.

Each method has the name of its function and does what that does, in that order. Left out is what is no part of a run's
history: other runs, lanes and priorities, the lives of workers, resources, timeouts of runs, NOTIFY.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from pgworkflows.claims import ClaimedRun
from pgworkflows.decisions import StepWrite
from pgworkflows.entries import Entry
from pgworkflows.history import ErrorInfo, StepKind, StepStatus, StoredEvent, StoredStep
from pgworkflows.journal import Answer, Verdict
from pgworkflows.runs import CANCELLABLE, PAUSABLE, RESUMABLE, RETRYABLE, TRANSITIONS, RunStatus

START = datetime(2030, 1, 1, tzinfo=UTC)
RUN_ID = UUID("01890000-0000-7000-8000-000000000000")
CALLED = frozenset({StepKind.RUN, StepKind.POLL})


@dataclass(frozen=True)
class EventRow:
    """A row of `events`."""

    id: int
    name: str
    data: str
    key: str | None
    received_at: datetime
    step_id: str | None = None


@dataclass
class Place:
    """A row of `queue`."""

    status: RunStatus = RunStatus.PENDING
    wake_at: datetime | None = None
    wait_kind: str | None = None
    wait_event: str | None = None
    claim_id: int | None = None
    control: str | None = None
    signal: int = 0

    @property
    def ready(self) -> bool:
        return self.status is RunStatus.PENDING and self.wake_at is None


class Database:
    """One run: its rows of `runs`, `queue`, `steps` and `events`, and the server's clock."""

    def __init__(self, *, max_retries: int = 0, input: str = "null", now: datetime = START) -> None:
        self.now = now
        self.input = input
        self.max_retries = max_retries
        self.retry_count = 0
        self.status = RunStatus.PENDING
        self.output: str | None = None
        self.error: ErrorInfo | None = None
        self.current_step_id: str | None = None
        self.scheduled_at: datetime | None = None
        self.place: Place | None = Place()
        self.steps: dict[str, StoredStep] = {}
        self.events: list[EventRow] = []
        self._claims = 0

    # What a worker asks for ------------------------------------------------------------------------------------------

    def claim(self) -> ClaimedRun | None:
        self._wake_due()
        place = self.place
        if place is None or not place.ready:
            return None
        self._claims += 1
        place.status = RunStatus.RUNNING
        place.claim_id = self._claims
        place.wait_kind = place.wait_event = None
        self._becomes(RunStatus.RUNNING)
        return ClaimedRun(
            run_id=str(RUN_ID),
            claim_id=self._claims,
            workflow_id="modelled",
            resource_id=None,
            input=self.input,
            retry_count=self.retry_count,
            max_retries=self.max_retries,
            signal=place.signal,
            interruptions=0,
            steps=self.history,
            events=tuple(
                StoredEvent(event.id, event.name, event.data, event.received_at)
                for event in self.events
                if event.step_id is None
            ),
            as_of=self.now,
            ready_at=self.now,
        )

    def flush(self, entry: Entry) -> Answer:
        place = self.place
        if place is None or place.claim_id != entry.claim_id:
            return Answer(Verdict.STALE)
        for row in entry.steps:
            self._save(row)
        for taken in entry.events:
            self.events = [
                replace(event, step_id=taken.step_id) if event.id == taken.event_id else event for event in self.events
            ]
        control = place.control
        if entry.action != "checkpoint" or control is not None:
            self._move_on(entry, place)
        return Answer(Verdict.WRITTEN, control)

    def take_over(self) -> None:
        """The worker has died, and its claim is given back."""
        place = self.place
        if place is None or place.claim_id is None:
            return
        control, place.control, place.claim_id = place.control, None, None
        if control == "cancel":
            self.place = None
            self._end_waits()
            return
        place.status = RunStatus.PAUSED if control == "pause" else RunStatus.PENDING
        if control is None:
            self._becomes(RunStatus.PENDING)

    # What clients ask for --------------------------------------------------------------------------------------------

    def trigger_event(self, name: str, data: str = "{}", key: str | None = None) -> str:
        if key is not None and any(event.key == key for event in self.events):
            return "existing"
        place = self.place
        if place is None or self.status.finished:
            return "invalid_status"
        self.events.append(EventRow(len(self.events) + 1, name, data, key, self.now))
        if place.status is RunStatus.WAITING and place.wait_kind == "event" and place.wait_event == name:
            self._make_ready(place, None)
        else:
            place.signal += 1
        return "accepted"

    def pause(self) -> str:
        place = self.place
        if place is None or self.status not in PAUSABLE:
            return "invalid_status"
        if place.status is RunStatus.RUNNING:
            place.control = "pause"
        else:
            place.status = RunStatus.PAUSED
        place.wake_at = place.wait_kind = place.wait_event = None
        self.current_step_id = self._last_step
        self._becomes(RunStatus.PAUSED)
        return "paused"

    def resume(self) -> str:
        place = self.place
        if place is None or self.status not in RESUMABLE:
            return "invalid_status"
        if place.status is RunStatus.RUNNING:
            place.control = None
            self._becomes(RunStatus.RUNNING)
            return "resumed"
        if place.wait_kind == "pause":
            self._complete_wait(StepKind.PAUSE, "null")
        self._make_ready(place, self.scheduled_at)
        return "resumed"

    def cancel(self) -> str:
        place = self.place
        if place is None or self.status not in CANCELLABLE:
            return "invalid_status"
        if place.status is RunStatus.RUNNING:
            place.control = "cancel"
        else:
            self.place = None
        self._becomes(RunStatus.CANCELLED)
        self._end_waits()
        return "cancelled"

    def retry(self) -> str:
        if self.status not in RETRYABLE:
            return "invalid_status"
        self._take_back_failures()
        for step_id, step in self.steps.items():
            if step.status is not StepStatus.CANCELLED:
                continue
            if step.kind is StepKind.RUN:
                self.steps[step_id] = step._replace(
                    status=StepStatus.RETRYING, prior_attempts=step.attempts, wake_at=None
                )
            else:
                self.steps[step_id] = step._replace(status=StepStatus.WAITING)
        self._becomes(RunStatus.PENDING)
        self.error = self.scheduled_at = None
        self.retry_count = 0
        if self.place is None:
            self.place = Place()
        else:
            self.place.control = "retry"
        return "retried"

    def fast_forward(self, data: str | None = None) -> str:
        place = self.place
        if place is None or place.status is RunStatus.RUNNING or place.wait_kind in (None, "retry"):
            return "nothing"
        outputs = {
            StepKind.WAIT_FOR: "{}" if data is None else data,
            StepKind.POLL: f'{{"timed_out" : false, "data" : {"null" if data is None else data}}}',
        }
        step = self.steps.get(self.current_step_id or "")
        if step is None or not self._complete_wait(step.kind, outputs.get(step.kind, "null")):
            return "nothing"
        self._make_ready(place, None)
        return "forwarded"

    # What is looked at -----------------------------------------------------------------------------------------------

    @property
    def history(self) -> tuple[StoredStep, ...]:
        """The rows of `steps`, as a claim reads them."""
        return tuple(sorted(self.steps.values(), key=lambda step: step.position))

    @property
    def due_at(self) -> datetime | None:
        """When the run becomes ready by itself."""
        return None if self.place is None else self.place.wake_at

    @property
    def _last_step(self) -> str | None:
        return self.history[-1].step_id if self.steps else None

    # Inside ----------------------------------------------------------------------------------------------------------

    def _becomes(self, status: RunStatus) -> None:
        assert status == self.status or status in TRANSITIONS[self.status], f"{self.status} -> {status}"
        self.status = status

    def _wake_due(self) -> None:
        place = self.place
        if place is None or place.wake_at is None or place.wake_at > self.now:
            return
        place.status = RunStatus.PENDING
        place.wake_at = place.wait_kind = place.wait_event = None
        self._becomes(RunStatus.PENDING)

    def _make_ready(self, place: Place, not_before: datetime | None) -> None:
        place.status = RunStatus.PENDING
        place.wake_at = not_before if not_before is not None and not_before > self.now else None
        place.wait_kind = place.wait_event = None
        place.signal += 1
        self._becomes(RunStatus.PENDING)

    def _save(self, new: StepWrite) -> None:
        """The upsert of flush."""
        old = self.steps.get(new.step_id)
        if old is not None and old.status is StepStatus.COMPLETED:
            return
        deadline_at = new.deadline_at or self._after(new.deadline_after)
        wake_at = new.wake_at or _least(self._after(new.wake_after), deadline_at)
        error = new.error
        if old is not None:
            if new.status != StepStatus.COMPLETED:
                error = new.error or old.error
            wake_at = (wake_at or old.wake_at) if old.kind in CALLED else (old.wake_at or wake_at)
            deadline_at = old.deadline_at or deadline_at
        row = StoredStep(
            new.position,
            new.step_id,
            StepKind(new.kind) if old is None else old.kind,
            StepStatus(new.status),
            new.output,
            error,
            new.attempts,
            new.prior_attempts,
            wake_at,
            deadline_at,
        )
        _check(row)
        self.steps[new.step_id] = row

    def _move_on(self, entry: Entry, place: Place) -> None:
        control = place.control
        signalled = place.signal != entry.signal
        step = self.steps.get(entry.step_id or "") if entry.action == "suspend" else None
        step_wakes = None if step is None else step.wake_at
        becomes: RunStatus | None
        if control == "cancel":
            becomes = None
        elif control == "pause":
            becomes = RunStatus.PAUSED
        elif control == "retry":
            becomes = RunStatus.PENDING
        elif entry.action in ("complete", "fail"):
            becomes = None
        elif entry.action in ("release", "retry") or (entry.wait_kind == "event" and signalled):
            becomes = RunStatus.PENDING
        elif entry.wait_kind == "pause":
            becomes = RunStatus.PAUSED
        elif entry.wait_kind == "retry" or (step_wakes is not None and step_wakes <= self.now):
            becomes = RunStatus.PENDING
        else:
            becomes = RunStatus.WAITING
        wakes = None
        if control is None and not (entry.wait_kind == "event" and signalled) and entry.wait_kind != "pause":
            if entry.action == "suspend":
                wakes = step_wakes
            elif entry.action == "retry":
                wakes = self._after(entry.wake_after)
        if becomes is None:
            self.place = None
        else:
            place.status = becomes
            place.claim_id = place.control = None
            place.wake_at = wakes if wakes is not None and wakes > self.now else None
            parked = becomes is RunStatus.WAITING or (becomes is RunStatus.PAUSED and control is None)
            place.wait_kind = entry.wait_kind if parked else None
            place.wait_event = entry.wait_event if becomes is RunStatus.WAITING else None
        last = self._last_step if becomes in (RunStatus.PAUSED, None) else None
        self.current_step_id = entry.step_id or last or self.current_step_id
        if control is None:
            self._show(entry, becomes, wakes)
        elif control == "cancel":
            if entry.error is not None:
                self.error = replace(self.error or entry.error, step_id=entry.error.step_id)
            self._end_waits()
        elif control == "retry" and entry.error is not None:
            self.error = entry.error
            self._take_back_failures()

    def _show(self, entry: Entry, becomes: RunStatus | None, wakes: datetime | None) -> None:
        """The update of `runs` in move_on, when no operator has had a word."""
        if entry.action == "complete":
            self._becomes(RunStatus.COMPLETED)
            self.output, self.error = entry.output, None
        elif entry.action == "fail":
            self._becomes(RunStatus.FAILED)
            assert entry.error is not None
            self.error = entry.error
        else:
            assert becomes is not None
            self._becomes(becomes)
        if entry.action == "retry":
            self.error = entry.error
            self.retry_count += 1
            self.scheduled_at = wakes
            self._take_back_failures()

    def _take_back_failures(self) -> None:
        failed = None if self.error is None else self.steps.get(self.error.step_id or "")
        if failed is None or failed.status is not StepStatus.FAILED:
            return
        later = [step for step in self.steps.values() if step.position >= failed.position]
        if any(step.status is StepStatus.COMPLETED for step in later):
            return
        for step in later:
            if step.status is not StepStatus.FAILED:
                continue
            if step.kind in CALLED:
                self.steps[step.step_id] = step._replace(
                    status=StepStatus.RETRYING, prior_attempts=step.attempts, wake_at=None, deadline_at=None
                )
            else:
                del self.steps[step.step_id]

    def _end_waits(self) -> None:
        for step_id, step in self.steps.items():
            if step.status in (StepStatus.WAITING, StepStatus.RETRYING):
                self.steps[step_id] = step._replace(status=StepStatus.CANCELLED)

    def _complete_wait(self, kind: StepKind, output: str) -> bool:
        step = self.steps.get(self.current_step_id or "")
        if step is None or step.kind is not kind or step.status is not StepStatus.WAITING:
            return False
        self.steps[step.step_id] = step._replace(status=StepStatus.COMPLETED, output=output)
        return True

    def _after(self, span: timedelta | None) -> datetime | None:
        return None if span is None else self.now + span


def _least(left: datetime | None, right: datetime | None) -> datetime | None:
    """SQL's least: what is null does not count."""
    return left if right is None else right if left is None else min(left, right)


def _check(row: StoredStep) -> None:
    """The constraints of the table."""
    assert row.status is not StepStatus.FAILED or row.error is not None
    assert row.output is None or row.status is StepStatus.COMPLETED
    assert row.attempts >= row.prior_attempts >= 0
    assert 1 <= len(row.step_id) <= 256
