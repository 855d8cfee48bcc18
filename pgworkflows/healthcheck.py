"""Whether all is well: for probes, which ask often and want an answer in time, whatever the database does."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any
from uuid import UUID

from pgworkflows.database import NotAllowed
from pgworkflows.durations import Duration, parse_duration, parse_positive_duration
from pgworkflows.errors import ConfigurationError
from pgworkflows.migrate import check_current
from pgworkflows.operations import Operations

LONGEST_S = 3600.0
"""Nobody waits for longer; and locks take no time of any length."""


@dataclass(frozen=True)
class Health:
    """What a check has found; None is what could not be asked.

    `reachable`: the database answers. `migrated`: its schema is as this code needs it. `live_workers`: how many workers
    live; of an engine with workflows, how many have that of its workflows which fewest have. `queue_lag`: how long the
    longest of the runs that could be claimed has been ready, zero when there is none; of an engine with workflows, of
    theirs. `problems`: what is not as it should be.
    """

    reachable: bool
    migrated: bool | None = None
    live_workers: int | None = None
    queue_lag: timedelta | None = None
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The same as JSON has it, the lag in seconds."""
        lag_s = None if self.queue_lag is None else self.queue_lag.total_seconds()
        return {"ok": self.ok, **asdict(self), "queue_lag": lag_s, "problems": list(self.problems)}


@dataclass(frozen=True)
class WorkerHealth:
    """How a worker of this process is. `alive`: it runs, with all its threads. `ready`: it is registered, has beaten
    within its lease, and takes runs. `stopping`: it was told to stop, and ends its steps."""

    alive: bool
    ready: bool
    worker_id: UUID | None = None
    heartbeat_age: timedelta | None = None
    runs_in_hand: int = 0
    stopping: bool = False

    def as_json(self) -> dict[str, Any]:
        """The same as JSON has it, the age in seconds."""
        age_s = None if self.heartbeat_age is None else self.heartbeat_age.total_seconds()
        worker_id = None if self.worker_id is None else str(self.worker_id)
        return {**asdict(self), "worker_id": worker_id, "heartbeat_age": age_s}


@dataclass(frozen=True)
class Backlog:
    """The unfinished runs of one workflow in one queue: how many are `ready` for a worker, `running`, to start `later`,
    `waiting`, `paused`; `lag` is how long the longest has been ready."""

    queue: str
    workflow_id: str
    ready: int
    running: int
    later: int
    waiting: int
    paused: int
    lag: timedelta


class HealthOperations(Operations):
    """How a client finds out whether all is well."""

    _asking: threading.Thread | None = None

    def health(
        self, *, min_workers: int = 0, max_queue_lag: Duration | None = None, timeout: Duration = "5s"
    ) -> Health:
        """Whether the database answers within `timeout` and is migrated; with `min_workers`, whether so many workers
        live; with `max_queue_lag`, whether no run has been ready for longer. Raises only for its arguments."""
        if type(min_workers) is not int:
            raise TypeError(f"min_workers must be an int, not {type(min_workers).__name__}")
        if min_workers < 0:
            raise ValueError("min_workers must not be negative")
        limit = None if max_queue_lag is None else parse_duration(max_queue_lag, "max_queue_lag")
        timeout_s = min(parse_positive_duration(timeout, "timeout").total_seconds(), LONGEST_S)
        found = self._asked(timeout_s)
        if found.problems:
            return found
        problems: list[str] = []
        if found.live_workers is None:
            if min_workers or limit is not None:
                problems.append("the database user may not see workers and queue: ask as a worker or a reader does")
        elif found.live_workers < min_workers:
            of_what = " of the workflow that fewest have" if self._lanes else ""
            problems.append(f"live workers{of_what}: {found.live_workers}; at least {min_workers} are wanted")
        if limit is not None and found.queue_lag is not None and found.queue_lag > limit:
            lag_s, limit_s = found.queue_lag.total_seconds(), limit.total_seconds()
            problems.append(f"a run has been ready for {lag_s:.1f} s, longer than {limit_s:g} s")
        return replace(found, problems=tuple(problems))

    def get_backlog(self) -> list[Backlog]:
        """What is unfinished, by queue and workflow."""
        return [_backlog(*row) for row in self._store.get_backlog(self._reads)]

    @property
    def _lanes(self) -> Mapping[str, str]:
        """The workflows that are asked for, and their lanes; none means all."""
        return {}

    def _asked(self, timeout_s: float) -> Health:
        """What the database says, by a thread that a silent server may keep. There is one such thread at most."""
        answer: SimpleQueue[Health] = SimpleQueue()
        silent = Health(reachable=False, problems=(f"the database did not answer within {timeout_s:g} s",))
        earlier = self._asking
        if earlier is not None and earlier.is_alive():
            earlier.join(timeout_s)
            if earlier.is_alive():
                return silent
        self._asking = threading.Thread(target=lambda: answer.put(self._ask()), name="pgworkflows-health", daemon=True)
        self._asking.start()
        try:
            return answer.get(timeout=timeout_s)
        except Empty:
            return silent

    def _ask(self) -> Health:
        try:
            lacking = self._lacking()
            if lacking is not None:
                return Health(reachable=True, migrated=False, problems=(lacking,))
            workers, lag, read_only = self._store.get_health(self._database, self._lanes)
        except NotAllowed:
            return Health(reachable=True)
        except Exception as error:  # whatever it is, a probe wants an answer
            return Health(reachable=False, problems=(" ".join(str(error).split()) or type(error).__name__,))
        problems = ("the server is read-only: connect to the primary",) if read_only else ()
        return Health(reachable=True, migrated=True, live_workers=workers, queue_lag=lag, problems=problems)

    def _lacking(self) -> str | None:
        """Why this code cannot work with the schema as it is."""
        with self._database.connection() as conn:
            try:
                check_current(conn, self.schema)
            except NotAllowed:
                raise
            except ConfigurationError as error:
                return str(error)
            finally:
                if not conn.autocommit:
                    conn.rollback()
        return None


def _backlog(
    queue: str, workflow_id: str, ready: int, running: int, later: int, waiting: int, paused: int, lag_s: float
) -> Backlog:
    return Backlog(queue, workflow_id, ready, running, later, waiting, paused, timedelta(seconds=lag_s))
