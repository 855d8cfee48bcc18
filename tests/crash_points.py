"""The table of crash points: every write of worker and client, and the play in which a process meets its end at it.

A statement of the library that writes and does not stand here fails `test_crash_points.py`, and so does a flush with
entries that no row here names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Moment: TypeAlias = Literal["before", "sent", "after"]
MOMENTS: tuple[Moment, ...] = get_args(Moment)
Start: TypeAlias = Literal["ready", "due", "late", "orphan", "silent", "scheduled", "resumed"]


@dataclass(frozen=True)
class Point:
    """`write` is a statement's name, or what a flush holds; the process is killed when it comes to it the `nth` time.
    The run that it is at is a tour with these `stops`; `started` says how the process finds it. `repeated`: that the
    call of a step was in flight, whenever it was killed; None: that it may have been."""

    write: str
    stops: tuple[str, ...] = ()
    started: Start = "ready"
    nth: int = 1
    runs: int = 1
    options: Mapping[str, int] | None = None
    repeated: bool | None = False

    @property
    def name(self) -> str:
        return " ".join([self.write, *self.stops, *([self.started] if self.started != "ready" else [])])

    @property
    def begun(self) -> bool:
        """Whether its run has gone as far as it can before."""
        return self.started == "resumed"

    @property
    def holds_a_call(self) -> bool:
        """Whether it writes what came of the call of a step: without it, that is called again."""
        return (
            re.search(r"\b(run|poll) (completed|failed|retrying|waiting)|several runs|in flight", self.write)
            is not None
        )


@dataclass(frozen=True)
class ClientPoint:
    """A client is killed in an operation, which finds a tour with these `stops`, as far as that goes by itself."""

    write: str
    operation: str
    stops: tuple[str, ...] | None = None
    workflow: str | None = None
    repeatable: bool = True

    @property
    def name(self) -> str:
        return self.operation

    @property
    def begun(self) -> bool:
        """Whether its run has gone as far as it can before."""
        return self.stops is not None or self.workflow == "child"


def _ended(what: str) -> str:
    return f"flush: checkpoint, {what}"


WORKER_POINTS: tuple[Point, ...] = (
    # Its life
    Point("lock_worker"),
    Point("register_worker"),
    Point("serve_workflows"),
    Point("sleep", ("event",), repeated=None),
    Point("beat", ("hang",), repeated=None),
    Point("unregister_worker", ("stop and hang",), options={"grace": 0}, repeated=True),
    # Its claims
    Point("claim"),
    Point("claim", started="due"),
    Point("claim", started="late"),
    Point("release_unheld", ("stop and hang",), options={"grace": 0}, repeated=True),
    # What it does for others
    Point("take_over", started="orphan"),
    Point("take_over", started="silent", nth=2),
    Point("declare_dead", started="silent"),
    # Sent, it may be carried out, and its run begun by another thread, before this one gets to its end.
    Point("fire_schedule", started="scheduled", repeated=None),
    # Its journal: what comes of a step
    Point(_ended("run completed")),
    Point("flush: suspend retry, run retrying", ("flaky",)),
    Point(_ended("run failed"), ("caught",)),
    Point("flush: complete, run completed"),
    Point("flush: fail, run failed", ("flawed",)),
    Point("flush: retry, run failed", ("flawed",), options={"retries": 1}),
    Point("flush: several runs", ("crowd",), runs=8, repeated=None),
    Point("flush: in flight", ("crowd",), runs=8, repeated=None),
    # waits
    Point("flush: suspend timer, run completed, delay waiting", ("delay",)),
    Point(_ended("delay completed"), ("delay",)),
    Point("flush: suspend timer, run completed, wait_until waiting", ("until",)),
    Point(_ended("wait_until completed"), ("until",)),
    Point(_ended("run completed, wait_until completed"), ("past",)),
    Point("flush: suspend event, run completed, wait_for waiting", ("event",)),
    Point("flush: suspend event", ("event",), started="resumed"),
    Point(_ended("wait_for completed, by an event"), ("event",)),
    Point(_ended("wait_for completed"), ("no event",)),
    Point("flush: suspend pause, run completed, pause waiting", ("pause",)),
    Point("flush: suspend poll, poll waiting", ("poll",)),
    Point(_ended("poll completed"), ("poll",)),
    # children
    Point("flush: suspend child, run completed, invoke_child_workflow waiting", ("child",)),
    Point("flush: complete, run completed, of a child", ("child",)),
    Point(_ended("invoke_child_workflow completed"), ("child",)),
    Point("flush: fail, run failed, of a child", ("bad child",)),
    Point(_ended("invoke_child_workflow failed"), ("bad child",)),
    # and what is nobody's step
    Point("flush: complete, delay completed", ("delay", "end")),
    Point("flush: complete, run completed", ("end",)),
    Point("flush: fail, run completed", ("raise",)),
    Point("flush: release", ("stop", "run")),
)

CLIENT_POINTS: tuple[ClientPoint, ...] = (
    ClientPoint("start_workflow", "start"),
    ClientPoint("start_workflows", "start several"),
    ClientPoint("trigger_event", "event", ("event",)),
    ClientPoint("pause_workflow", "pause", ("event",)),
    ClientPoint("resume_workflow", "resume", ("pause",)),
    ClientPoint("cancel_workflow", "cancel", ("event",)),
    ClientPoint("retry_workflow", "retry", ("flawed",)),
    ClientPoint("fast_forward_workflow", "fast forward", ("event",)),
    ClientPoint("prune_runs", "prune", workflow="child"),
    ClientPoint("declare_workflows", "declare", workflow="yearly"),
    ClientPoint("pause_schedule", "pause schedule", workflow="yearly"),
    ClientPoint("resume_schedule", "resume schedule", workflow="yearly"),
    ClientPoint("trigger_schedule", "trigger schedule", workflow="yearly", repeatable=False),
)

POINTS: tuple[Point | ClientPoint, ...] = (*WORKER_POINTS, *CLIENT_POINTS)

MIGRATION_POINTS: Mapping[str, tuple[int, ...]] = {
    "lock_migrations": (1, 3),
    "create_migrations": (1,),
    "add_migration": (1, 5),
}
"""The statements around a migration, and the how manieth is met."""

EXEMPT: Mapping[str, str] = {
    "due_schedules": "it reads; it is volatile since it tells the time",
    "add_role": "it is half of grant(), one transaction that may be said again",
    "grant_roles": "the other half; within a migration, part of its transaction",
    "install_clock": "for tests only, like the four below: it may be said again",
    "stand_clock": "for tests only",
    "run_clock": "for tests only",
    "set_clock_back": "for tests only",
    "delete_runs": "for tests only",
}
