"""The laws of replay, over random workflows that are crashed, paused and woken before and after every decision.

A `Play` is one run of a random workflow against the model database, worked on by the runner's own `Execution`. Its
watch holds the laws that need no second play to compare with; the tests below say the others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from random_workflows import Ask, Block, Delay, Lines, Mail, Pass, Run, Told, Work, deeds, mails, trees
from replay_model import START, Database, EventRow

from pgworkflows.claims import ClaimedRun
from pgworkflows.decisions import StepWrite
from pgworkflows.definition import workflow
from pgworkflows.history import StepKind, StepStatus, StoredStep
from pgworkflows.journal import Answer, Entry, Verdict
from pgworkflows.results import POLL_TIMED_OUT
from pgworkflows.runner import Execution
from pgworkflows.runs import RunStatus

EXAMPLES = int(os.environ.get("PGWORKFLOWS_TEST_EXAMPLES", "1000"))
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FEWER = settings(MANY, max_examples=max(1, EXAMPLES // 5))
PATIENCE = 3000

# A handler that swallows GeneratorExit for ever is left to the garbage collector, which complains.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

FINAL = (StepStatus.COMPLETED, StepStatus.FAILED)
TIMED = (StepKind.WAIT_FOR, StepKind.WAIT_UNTIL, StepKind.DELAY)


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
        self.points = 0
        self._mail = sorted(mail, key=lambda each: each.at_s)
        self._plan = plan or {}
        self._late: list[Entry] = []
        self._known: dict[str, str] = {}
        self._as_of = START
        self._lines = Lines()
        self._logger = logging.Logger("modelled", logging.INFO)
        self._logger.addHandler(self._lines)

    @property
    def lines(self) -> list[str]:
        return self._lines.lines

    def run(self) -> Play:
        """Play until the run has ended, or waits for what will never come."""
        for _ in range(PATIENCE):
            claimed = self.next_claim()
            if claimed is None:
                break
            self.work(claimed)
        else:
            self.wrongs.append("it never ends")
        self._send_late()
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

    def work(self, claimed: ClaimedRun, *, flushes: int = PATIENCE, pass_s: float = 0) -> None:
        """Advance a claimed run as a worker does, for at most so many flushes; time passes between any two things."""
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
            answer = self.flush(entry)
            self._remember()
            if self._disturbance() is Disturbance.RESEND:
                self._resend(entry)
            if entry.action != "checkpoint" or answer.control is not None:
                execution.close()
                return

    def flush(self, entry: Entry) -> Answer:
        """Write an entry, watching what becomes of the rows."""
        self._watch_entry(entry)
        before = self.database.steps.copy()
        answer = self.database.flush(entry)
        assert answer.verdict is Verdict.WRITTEN
        self.watch(before)
        return answer

    def pass_time(self, seconds: float) -> None:
        self.database.now += timedelta(seconds=seconds)

    def replayed(self, claimed: ClaimedRun | None = None) -> Entry:
        """What the handler comes to with the history as it is, or as it was claimed."""
        database = self.database
        if claimed is None:
            claimed = Database().claim()
            assert claimed is not None
            claimed = replace(claimed, steps=database.history, as_of=database.now)
        entry = Execution(claimed, self.workflow, self._logger).work(None)
        assert entry is not None
        return entry

    def lines_missed(self) -> list[str]:
        """What the last execution went through, but none has logged."""
        said = set(self.lines)
        return [path for path in self.told.tellings[-1].path if path not in said]

    # What happens to it ----------------------------------------------------------------------------------------------

    def _called(self, step_id: str, attempt: int) -> None:
        self.calls.append((step_id, attempt))
        step = self.database.steps.get(step_id)
        if step is not None and step.status in FINAL:
            self.wrongs.append(f"{step_id} was called although it is {step.status}")
        if attempt != (0 if step is None else step.attempts) + 1:
            self.wrongs.append(f"{step_id} was called as attempt {attempt} after {step}")

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
        answer = self.database.flush(entry)
        assert answer.verdict is (Verdict.WRITTEN if entry.action == "checkpoint" else Verdict.STALE) or (
            answer.verdict is Verdict.STALE
        )
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

    # What is always true ---------------------------------------------------------------------------------------------

    def watch(self, before: Mapping[str, StoredStep]) -> None:
        """Compare the rows with those of a moment ago."""
        after = self.database.steps
        for step_id, old in before.items():
            new = after.get(step_id)
            if old.status is StepStatus.COMPLETED and new != old:
                self.wrongs.append(f"a completed step changed: {old} became {new}")
            if new is None or new.cleared:
                self._known.pop(step_id, None)  # it was taken back
                continue
            if old.kind in TIMED and new.wake_at != old.wake_at:
                self.wrongs.append(f"a deadline moved: {old} became {new}")
            if old.kind is StepKind.POLL and old.deadline_at not in (None, new.deadline_at):
                self.wrongs.append(f"a deadline moved: {old} became {new}")
            if (
                new.deadline_at is not None
                and new.status is StepStatus.WAITING
                and new.deadline_at < (new.wake_at or START)
            ):
                self.wrongs.append(f"a poll sleeps through its deadline: {new}")
            if new.attempts < old.attempts or new.prior_attempts < old.prior_attempts:
                self.wrongs.append(f"attempts were reset: {old} became {new}")
        binding = [step for step in self.database.history if not step.cleared]
        if [step.position for step in binding] != list(range(len(binding))):
            self.wrongs.append(f"positions are out of order: {binding}")
        if any(step.status not in FINAL for step in binding[:-1]):
            self.wrongs.append(f"a step without an outcome is followed by another: {binding}")

    def _watch_entry(self, entry: Entry) -> None:
        """Hold what is about to be written against what was known when it was decided."""
        if [row.position for row in entry.steps] != sorted({row.position for row in entry.steps}):
            self.wrongs.append(f"rows are out of order: {entry.steps}")
        left = [event for event in self.database.events if event.step_id is None]
        for row in entry.steps:
            old = self.database.steps.get(row.step_id)
            if row.kind in TIMED and row.status == StepStatus.WAITING and old is not None:
                self.wrongs.append(f"a wait was written again: {row}")
            if row.kind == StepKind.POLL and row.status != StepStatus.FAILED:
                late = old is not None and old.deadline_at is not None and old.deadline_at <= self._as_of
                if late and row.status == StepStatus.WAITING:
                    self.wrongs.append(f"a poll went on after its deadline: {row}")
                if not late and row.output == POLL_TIMED_OUT:
                    self.wrongs.append(f"a poll gave up before its deadline: {row}")
            if row.kind == StepKind.WAIT_FOR and row.status in FINAL:
                taken = [each.event_id for each in entry.events if each.step_id == row.step_id]
                self._watch_wait(row, taken, None if old is None else old.wake_at, left)
                left = [event for event in left if event.id not in taken]

    def _watch_wait(self, row: StepWrite, taken: list[int], deadline: datetime | None, left: list[EventRow]) -> None:
        """A wait that is over took the first event it could, or there was none by its deadline."""
        fit = [e.id for e in left if e.name == row.event_name and (deadline is None or e.received_at <= deadline)]
        if taken != fit[:1]:
            self.wrongs.append(f"{row.step_id} took {taken} of {fit}, its deadline being {deadline}")
        if not taken and (deadline is None or deadline > self._as_of):
            self.wrongs.append(f"{row.step_id} timed out before {deadline}")

    def _remember(self) -> None:
        """All executions see the same of a step that has its outcome."""
        for step_id, what in self.told.tellings[-1].saw:
            step = self.database.steps.get(step_id)
            if step is not None and step.status in FINAL and self._known.setdefault(step_id, repr(what)) != repr(what):
                self.wrongs.append(f"{step_id} was seen as {what!r}, and once as {self._known[step_id]}")


def shown(database: Database) -> dict[str, Any]:
    """All that the database says of the run, but tracebacks and claims."""
    place = database.place
    return {
        "run": (database.status, database.output, database.retry_count, database.max_retries, _brief(database.error)),
        "place": None if place is None else (place.status, place.wake_at, place.wait_kind, place.wait_event),
        "steps": [replace(step, error=_brief(step.error)) for step in database.history],
        "events": [
            (event.name, event.data, event.key, event.received_at, event.step_id)
            for event in database.events
            if event.name != "unrelated"
        ],
        "now": database.now,
    }


def _brief(error: Any) -> Any:
    return None if error is None else replace(error, traceback=None)


def ending(play: Play) -> dict[str, Any]:
    """How a play ended: what the database says, and what its last execution saw."""
    return shown(play.database) | {"saw": repr(play.told.tellings[-1].saw)}


retries = st.sampled_from((0, 0, 1, 2))
plans = st.dictionaries(st.integers(0, 40), st.sampled_from(Disturbance), max_size=12)
crashes = st.sets(st.integers(0, 40), max_size=15).map(lambda points: dict.fromkeys(points, Disturbance.CRASH))


@MANY
@given(trees(), mails, retries, plans | crashes)
def test_a_disturbed_run_ends_as_an_undisturbed_one(
    tree: Block, mail: list[Mail], retries: int, plan: dict[int, Disturbance]
) -> None:
    calm = Play(tree, mail=mail, retries=retries).run()
    note(f"undisturbed: {ending(calm)}")
    disturbed = Play(tree, mail=mail, retries=retries, plan=plan).run()
    assert ending(disturbed) == ending(calm)
    assert dict.fromkeys(disturbed.calls) == dict.fromkeys(calm.calls)
    assert disturbed.lines_missed() == []


@FEWER
@given(trees(), mails, retries)
def test_no_single_crash_before_or_after_any_decision_changes_how_a_run_ends(
    tree: Block, mail: list[Mail], retries: int
) -> None:
    calm = Play(tree, mail=mail, retries=retries).run()
    for point in range(calm.points):
        crashed = Play(tree, mail=mail, retries=retries, plan={point: Disturbance.CRASH}).run()
        assert ending(crashed) == ending(calm), f"crashed at point {point} of {calm.points}"
        assert len(crashed.calls) <= len(calm.calls) + 1


@FEWER
@given(trees(), mails)
def test_without_crashes_every_line_is_logged_once(tree: Block, mail: list[Mail]) -> None:
    play = Play(tree, mail=mail).run()
    assert play.lines == play.told.tellings[-1].path


@FEWER
@given(trees(), mails, retries)
def test_the_history_of_a_finished_run_replays_to_the_same_end(tree: Block, mail: list[Mail], retries: int) -> None:
    play = Play(tree, mail=mail, retries=retries).run()
    database, saw = play.database, repr(play.told.tellings[-1].saw)
    if not database.status.finished:
        return
    entry = play.replayed()
    assert (entry.steps, entry.events, entry.output) == ((), (), database.output)
    assert _brief(entry.error) == _brief(database.error)
    assert repr(play.told.tellings[-1].saw) == saw


# Another handler than the one that made the history ------------------------------------------------------------------


def changed(tree: Block, at: int, how: str) -> Block:
    """`tree` with another node at one place of its top level."""
    head, tail = tree[:at], tree[at + 1 :]
    return {
        "cut": head,
        "left out": head + tail,
        "another kind": (*head, Delay(1) if isinstance(tree[at], Run) else Run(), *tail),
        "another first": (*head, Run(), *tree[at:]),
    }[how]


@MANY
@given(
    trees(),
    mails,
    st.integers(1, 12),
    st.integers(0, 5),
    st.sampled_from(("cut", "left out", "another kind", "another first")),
)
def test_a_handler_that_does_not_do_what_it_did_writes_nothing_and_once_mended_goes_on(
    tree: Block, mail: list[Mail], claims: int, at: int, how: str
) -> None:
    calm = Play(tree, mail=mail).run()
    play = Play(tree, mail=mail)
    claimed = play.next_claim()
    for _ in range(claims):
        if claimed is not None:
            play.work(claimed, flushes=1)
            claimed = play.next_claim()
    if claimed is None or at >= len(tree):
        return
    before = play.database.history
    play.told.tree = changed(tree, at, how)
    entry = play.replayed(claimed)
    telling = play.told.tellings[-1]
    if telling.asked[: len(before)] == [(step.step_id, step.kind) for step in before]:
        assert entry.error is None or entry.error.type != "NonDeterminismError"
        return  # it differs only in what was not reached yet, or not at all
    event("refused")
    assert entry.error is not None
    # Or it stumbled over something else first: an error of its own, or a result that is not what it expects.
    assert telling.raised or entry.error.type in ("NonDeterminismError", "SerializationError")
    assert (entry.action, entry.steps, entry.events) == ("fail", (), ())
    play.flush(entry)
    assert play.database.status is RunStatus.FAILED
    assert play.database.history == before
    play.told.tree = tree
    play.database.retry()
    assert ending(play.run()) == ending(calm)


# Time passes, and anybody does anything ------------------------------------------------------------------------------


@MANY
@given(trees(), deeds, retries)
def test_whatever_anybody_does_and_however_long_it_takes_the_laws_hold(
    tree: Block, deeds: list[Work | Pass | Mail | Ask], retries: int
) -> None:
    play = Play(tree, retries=retries)
    database = play.database
    for deed in deeds:
        before = database.steps.copy()
        match deed:
            case Pass(seconds):
                play.pass_time(seconds)
            case Mail(after_s, name, data, key):
                play.pass_time(after_s)
                database.trigger_event(name, data, key)
            case Ask("fast_forward"):
                database.fast_forward("7")
            case Ask(what):
                getattr(database, what)()
            case Work(flushes, pass_s):
                claimed = database.claim()
                if claimed is not None:
                    play.work(claimed, flushes=flushes, pass_s=pass_s)
        play.watch(before)
    play.run()
