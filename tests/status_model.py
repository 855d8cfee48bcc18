"""What becomes of runs, told without a database: a pure model of one small workflow, its queue, and open transactions.

The workflow calls "one" and "two", waits for an event, pauses, calls "three", which may fail the first time, and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias
from uuid import UUID

from pgworkflows.runs import FINISHED, PAUSABLE, RESUMABLE, RETRYABLE, TRANSITIONS, UNFINISHED, RunStatus

PENDING, RUNNING, WAITING = RunStatus.PENDING, RunStatus.RUNNING, RunStatus.WAITING
PAUSED, COMPLETED, FAILED, CANCELLED = RunStatus.PAUSED, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED

ONE, TWO, HEAR, REST, THREE, END = range(6)
"""The steps by their positions, and what comes after the last."""


@dataclass(frozen=True)
class Place:
    """A row of the queue. `holder` names the claim it is under."""

    status: RunStatus = PENDING
    wait: str | None = None
    control: str | None = None
    holder: int | None = None


@dataclass(frozen=True)
class Run:
    """A run: `at` is its first step that is not completed, `mail` counts the events that no wait has taken. `three` is
    None until that step has failed, then "failed", or "cleared" by a retry. `due` is False before a delay is over."""

    workflow: str
    key: str | None
    fails: bool
    due: bool
    status: RunStatus = PENDING
    place: Place | None = field(default_factory=Place)
    at: int = ONE
    mail: int = 0
    signal: int = 0
    three: str | None = None

    @property
    def active(self) -> bool:
        return self.status in UNFINISHED

    def becomes(self, status: RunStatus, place: Place | None) -> Run:
        """The run in another status, which must be one that may follow."""
        assert status is self.status or status in TRANSITIONS[self.status], (self, status)
        return replace(self, status=status, place=place)

    def readied(self) -> Run:
        return replace(self.becomes(PENDING, Place()), signal=self.signal + 1)


# What clients ask for: the run as it is then --------------------------------------------------------------------------

Asked: TypeAlias = Callable[[Run], "Run | None"]
"""None: the status does not allow it."""


def pause(run: Run) -> Run | None:
    if run.status not in PAUSABLE:
        return None
    assert run.place is not None
    if run.place.holder is not None:
        return run.becomes(PAUSED, replace(run.place, control="pause"))
    return run.becomes(PAUSED, Place(PAUSED))


def resume(run: Run) -> Run | None:
    if run.status not in RESUMABLE:
        return None
    assert run.place is not None
    if run.place.holder is not None:
        return run.becomes(RUNNING, replace(run.place, control=None))
    rested = run.place.wait == "pause"
    return replace(run.readied(), at=run.at + 1 if rested else run.at)


def cancel(run: Run) -> Run | None:
    if run.status in FINISHED:
        return None
    assert run.place is not None
    held = run.place.holder is not None
    return run.becomes(CANCELLED, replace(run.place, control="cancel") if held else None)


def retry(run: Run) -> Run | None:
    if run.status not in RETRYABLE:
        return None
    place = Place() if run.place is None else replace(run.place, control="retry")
    cleared = "cleared" if run.three == "failed" else run.three
    return replace(run.becomes(PENDING, place), three=cleared, due=True)


def trigger(run: Run) -> Run | None:
    if run.status in FINISHED:
        return None
    assert run.place is not None
    run = replace(run, mail=run.mail + 1)
    return run.readied() if run.place and run.place.wait == "event" else replace(run, signal=run.signal + 1)


def fast_forward(run: Run) -> Run | None:
    if run.place is None or run.place.wait is None:
        return run
    return replace(run.readied(), at=run.at + 1)


OPERATIONS: Mapping[str, Asked] = MappingProxyType(
    {
        "pause": pause,
        "resume": resume,
        "cancel": cancel,
        "retry": retry,
        "trigger": trigger,
        "fast_forward": fast_forward,
    }
)


# What workers do ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Write:
    """What a worker writes next of a run that it has claimed: the action, where the run is then, what else it says."""

    action: str
    at: int
    wait: str | None = None
    takes_mail: bool = False
    three: str | None = None


def next_write(run: Run, mail: int) -> Write:
    """The next entry of a run that was claimed when its mailbox had so much."""
    if run.at == ONE:
        return Write("checkpoint", TWO)
    if run.at in (TWO, HEAR):
        if mail:
            return Write("suspend", REST, wait="pause", takes_mail=True, three=run.three)
        return Write("suspend", HEAR, wait="event", three=run.three)
    if run.at == REST:
        return Write("suspend", REST, wait="pause", three=run.three)
    if run.at == THREE and (run.three == "failed" or (run.fails and run.three is None)):
        return Write("fail", THREE, three="failed")
    return Write("complete", END, three=run.three)


def written(run: Run, write: Write, signal: int) -> Run:
    """The run once this is written by its claim, which found it with this `signal`."""
    place = run.place
    assert place is not None
    run = replace(run, at=write.at, mail=run.mail - write.takes_mail, three=write.three)
    match place.control:
        case "cancel":
            return replace(run, place=None)
        case "pause":
            return replace(run, place=Place(PAUSED))
        case "retry":
            # The failure that it finds is taken back, too.
            return replace(run, place=Place(), three="cleared" if run.three == "failed" else run.three)
    match write.action, write.wait:
        case "checkpoint", _:
            return run
        case "complete", _:
            return run.becomes(COMPLETED, None)
        case "fail", _:
            return run.becomes(FAILED, None)
        case "suspend", "pause":
            return run.becomes(PAUSED, Place(PAUSED, "pause"))
        case "suspend", _ if run.signal == signal:
            return run.becomes(WAITING, Place(WAITING, "event"))
        case _:
            return run.becomes(PENDING, Place())


def given_back(run: Run) -> Run:
    """The run once its claim is given up."""
    place = run.place
    assert place is not None
    match place.control:
        case "cancel":
            return replace(run, place=None)
        case "pause":
            return replace(run, place=Place(PAUSED))
        case "retry":
            return replace(run, place=Place())
        case _:
            return run.becomes(PENDING, Place())


# Transactions --------------------------------------------------------------------------------------------------------

NOT_FOUND, INVALID, IN_PROGRESS, CONFLICT, BLOCKED, DONE = (
    "not found",
    "invalid status",
    "in progress",
    "conflict",
    "blocked",
    "done",
)


class World:
    """The committed runs, and for each open transaction the runs that it holds, as it sees them."""

    def __init__(self) -> None:
        self.committed: dict[UUID, Run] = {}
        self.open: dict[int, dict[UUID, Run]] = {}

    def seen(self, lane: int) -> dict[UUID, Run]:
        """The runs as a connection sees them."""
        return {**self.committed, **self.open.get(lane, {})}

    def held(self, but: int | None = None) -> dict[UUID, Run]:
        """The runs that open transactions hold, but that of one connection."""
        return {run_id: run for lane, runs in self.open.items() if lane != but for run_id, run in runs.items()}

    def asked(self, lane: int, name: str, run_id: UUID) -> tuple[set[str], Run | None]:
        """What may come of an operation, and the run as it is if it is not blocked."""
        run = self.seen(lane).get(run_id)
        if run is None:
            return {NOT_FOUND}, None
        # A finished run has no queue row that could be locked; only a retry locks the run itself.
        if run_id in self.held(lane) and (run.place is not None or name == "retry"):
            return {BLOCKED}, None
        then = OPERATIONS[name](run)
        if then is None:
            return {INVALID}, run
        if name == "retry" and run.workflow == "lone":
            return self._alone(lane, then)
        return {DONE}, then

    def started(self, lane: int, run: Run) -> tuple[set[str], UUID | None]:
        """What may come of a start, and the run that is there already, if one is."""
        same_key = {run_id: each for run_id, each in self.seen(lane).items() if run.key and each.key == run.key}
        others = self.held(lane)
        uncommitted = [each for run_id, each in others.items() if run_id not in self.committed]
        if same_key:
            [(run_id, known)] = same_key.items()
            # It waits for whoever has the known run, or another lone one, in hand.
            may_wait = run_id in others or any(each.workflow == "lone" == run.workflow for each in others.values())
            outcome = DONE if known.workflow == run.workflow else CONFLICT
            return {outcome, BLOCKED} if may_wait else {outcome}, run_id
        if run.key and any(each.key == run.key for each in uncommitted):
            return {BLOCKED}, None
        return (self._alone(lane, run)[0] if run.workflow == "lone" else {DONE}), None

    def _alone(self, lane: int, run: Run) -> tuple[set[str], Run | None]:
        """What may come of making a run of a singleton workflow active."""
        others = {run_id: each for run_id, each in self.held(lane).items() if each.workflow == "lone"}
        if any(each.active and not self._was_active(run_id) for run_id, each in others.items()):
            return {BLOCKED}, run
        taken = any(each.workflow == "lone" and each.active for each in self.seen(lane).values())
        outcome = IN_PROGRESS if taken else DONE
        return ({outcome, BLOCKED} if others else {outcome}), run

    def _was_active(self, run_id: UUID) -> bool:
        return run_id in self.committed and self.committed[run_id].active

    def keep(self, lane: int, run_id: UUID, run: Run, *, locks: bool = True) -> None:
        """Note what a connection has done, or that it holds a run that it could not change."""
        if lane in self.open:
            if locks:
                self.open[lane][run_id] = run
        else:
            self.committed[run_id] = run

    def commit(self, lane: int) -> None:
        self.committed.update(self.open.pop(lane))

    def roll_back(self, lane: int) -> None:
        self.open.pop(lane, None)

    def ready(self) -> set[UUID]:
        """The runs that a worker may claim."""
        held = self.held()
        return {
            run_id
            for run_id, run in self.committed.items()
            if run.due and run.place is not None and run.place.status is PENDING and run_id not in held
            and run.place.holder is None
        }  # fmt: skip

    def old(self) -> Iterable[UUID]:
        """The runs that are deleted for their age."""
        held = self.held()
        return [
            run_id
            for run_id, run in self.committed.items()
            if not run.active and run.place is None and run_id not in held
        ]
