"""A random workflow played against the model database, worked on by the runner's own `Execution`, and disturbed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from enum import Enum
from typing import Any

from laws import Watch
from random_workflows import EVENTS, EVER, Block, Lines, Mail, Told
from replay_model import START, Database

from pgworkflows.claims import ClaimedRun
from pgworkflows.definition import workflow
from pgworkflows.entries import Entry
from pgworkflows.history import ErrorInfo
from pgworkflows.journal import Answer, Verdict
from pgworkflows.runner import Execution
from pgworkflows.runs import RunStatus

TICK = timedelta(microseconds=1)


class Disturbance(Enum):
    """What happens to a run at one point of its way; none of it may change how it ends."""

    CRASH = "its worker dies; what it was about to write comes too late"
    NUDGE = "an event comes that it does not wait for"
    PAUSE = "it is paused, and resumed once it is parked"
    STOP_AND_GO = "it is paused and resumed at once"
    RESEND = "the answer to a flush is lost, and it is sent again"


class Play:
    """One run of a tree, disturbed as planned: the plan says what happens at which point of it."""

    def __init__(
        self,
        tree: Block,
        *,
        mail: Sequence[Mail] = (),
        retries: int = 0,
        plan: Mapping[int, Disturbance] | None = None,
    ) -> None:
        self.database = Database(max_retries=retries)
        self.told = Told(tree, start=START, now=lambda: self.database.now, called=self._called)
        self.workflow = workflow("modelled")(self.told.handler)
        self.calls: list[tuple[str, int]] = []
        self.wrongs = self.told.wrongs
        self.watch = Watch(self.database, self.wrongs)
        self.points = 0
        self._mail = sorted(mail, key=lambda each: each.at_s)
        self._plan = plan or {}
        self._late: list[Entry] = []
        self._as_of = START
        self._lines = Lines()
        self._logger = logging.Logger("modelled", logging.INFO)
        self._logger.addHandler(self._lines)

    @property
    def lines(self) -> list[str]:
        return self._lines.lines

    def run(self) -> Play:
        """Play until the run has ended, or waits for what will never come."""
        for _ in range(EVER):
            claimed = self.next_claim()
            if claimed is None:
                break
            self.work(claimed)
        else:
            self.wrongs.append("it never ends")
        self._send_late()
        self.watch.rest()
        assert not self.wrongs, self.wrongs
        return self

    def next_claim(self) -> ClaimedRun | None:
        """Let time pass and events come until the run can be claimed; None if it never can."""
        self._deliver()
        claimed = self.database.claim()
        while claimed is None and self._wait():
            self._deliver()
            claimed = self.database.claim()
        return claimed

    def work(
        self, claimed: ClaimedRun, *, flushes: int = EVER, pass_s: float = 0, meanwhile: Sequence[str] = ()
    ) -> None:
        """Advance a claimed run as a worker does, for at most so many flushes; time passes between any two things, and
        clients make their calls before the first flush."""
        execution = Execution(claimed, self.workflow, self._logger)
        self._as_of = claimed.as_of
        while self._goes_on(execution, None):
            call = execution.next_call()
            entry = execution.work(call)
            assert entry is not None
            if entry.action == "retry":
                entry = entry._replace(wake_after=timedelta(seconds=1))  # without jitter, so that plays compare
            self.pass_time(pass_s)
            if not self._goes_on(execution, entry):
                return
            if entry.action == "checkpoint" and not entry.steps and not entry.events:
                continue
            if flushes == 0:
                self._crash(execution, entry)
                return
            flushes -= 1
            for what in meanwhile:
                self.ask(what)
            meanwhile = ()
            answer = self.flush(entry)
            self.watch.seen(self.told.tellings[-1].saw)
            if self._disturbance() is Disturbance.RESEND:
                self._resend(entry)
            if entry.action != "checkpoint" or answer.control is not None:
                execution.close()
                return

    def flush(self, entry: Entry) -> Answer:
        """Write an entry, watching what becomes of the rows."""
        self.watch.entry(entry, self._as_of)
        before = self.database.steps.copy()
        answer = self.database.flush(entry)
        assert answer.verdict is Verdict.WRITTEN
        self.watch.rows(before)
        return answer

    def ask(self, what: str) -> None:
        """Do what a client asks for, or send the event of that name: later than the claim, which it finds."""
        if what in EVENTS:
            self.database.now += TICK
            self.database.trigger_event(what, "1")
        elif what == "fast_forward":
            self.database.fast_forward("7")
        else:
            getattr(self.database, what)()

    def pass_time(self, seconds: float) -> None:
        self.database.now += timedelta(seconds=seconds)

    def replayed(self, claimed: ClaimedRun | None = None) -> Entry:
        """What the handler comes to with the history as it is, or as it was claimed."""
        database = self.database
        if claimed is None:
            claimed = Database().claim()
            assert claimed is not None
            claimed = claimed._replace(steps=database.history, as_of=database.now)
        execution = Execution(claimed, self.workflow, self._logger)
        entry = execution.work(None)
        execution.close()
        assert entry is not None
        return entry

    def lines_missed(self) -> list[str]:
        """What the last execution went through, but none has logged."""
        said = set(self.lines)
        return [path for path in self.told.tellings[-1].path if path not in said]

    # What happens to it ----------------------------------------------------------------------------------------------

    def _called(self, step_id: str, attempt: int) -> None:
        self.calls.append((step_id, attempt))
        self.watch.call(step_id, attempt)

    def _disturbance(self) -> Disturbance | None:
        self.points += 1
        return self._plan.get(self.points - 1)

    def _goes_on(self, execution: Execution, entry: Entry | None) -> bool:
        """One point of the way; `entry` is what was about to be written at it."""
        match self._disturbance():
            case Disturbance.CRASH:
                self._crash(execution, entry)
                return False
            case Disturbance.NUDGE:
                self.database.trigger_event("unrelated")
            case Disturbance.PAUSE:
                self.database.pause()
            case Disturbance.STOP_AND_GO:
                self.database.pause()
                self.database.resume()
            case Disturbance.RESEND | None:
                pass
        return True

    def _crash(self, execution: Execution, entry: Entry | None) -> None:
        execution.close()
        self.database.take_over()
        self._send_late()
        if entry is not None:
            self._late.append(entry)

    def _send_late(self) -> None:
        """Workers that were taken for dead send what they had: nothing of it may be taken."""
        for entry in self._late:
            before = shown(self.database)
            assert self.database.flush(entry).verdict is Verdict.STALE
            assert shown(self.database) == before
        self._late.clear()

    def _resend(self, entry: Entry) -> None:
        before = shown(self.database)
        verdict = self.database.flush(entry).verdict
        assert verdict is Verdict.STALE or (verdict is Verdict.WRITTEN and entry.action == "checkpoint")
        assert shown(self.database) == before

    def _deliver(self) -> None:
        while self._mail and START + timedelta(seconds=self._mail[0].at_s) <= self.database.now:
            mail = self._mail.pop(0)
            self.database.trigger_event(mail.name, mail.data, mail.key)

    def _wait(self) -> bool:
        """Nothing is ready: let the next thing happen. False if nothing ever will."""
        match self._disturbance():
            case Disturbance.NUDGE:
                self.database.trigger_event("unrelated")
            case Disturbance.PAUSE | Disturbance.STOP_AND_GO:
                self.database.pause()
            case _:
                pass
        if self.database.status is RunStatus.PAUSED:
            self.database.resume()
            return True
        if self.database.place is None:
            return False
        if self.database.place.ready:
            return True
        moments = [START + timedelta(seconds=mail.at_s) for mail in self._mail[:1]]
        moments += [self.database.due_at] if self.database.due_at is not None else []
        if not moments:
            return False
        self.database.now = max(self.database.now, min(moments))
        return True


def shown(database: Database) -> dict[str, Any]:
    """All that the database says of the run, but tracebacks and claims."""
    place = database.place
    return {
        "run": (
            database.status,
            database.output,
            database.retry_count,
            database.max_retries,
            without_traceback(database.error),
        ),
        "place": None if place is None else (place.status, place.wake_at, place.wait_kind, place.wait_event),
        "steps": [step._replace(error=without_traceback(step.error)) for step in database.history],
        "events": [
            (event.name, event.data, event.key, event.received_at, event.step_id)
            for event in database.events
            if event.name != "unrelated"
        ],
        "now": database.now,
    }


def without_traceback(error: ErrorInfo | None) -> ErrorInfo | None:
    return None if error is None else replace(error, traceback=None)


def ending(play: Play) -> dict[str, Any]:
    """How a play ended: what the database says, and what its last execution saw."""
    return shown(play.database) | {"saw": repr(play.told.tellings[-1].saw)}
