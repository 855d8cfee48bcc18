"""Entries that wait for somebody else's lock to go."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TypeAlias

from pgworkflows.entries import Entry
from pgworkflows.runner import Execution

LOCKED_PAUSE_S = 0.05
LONGEST_LOCKED_PAUSE_S = 0.5

Pending: TypeAlias = tuple[Execution, Entry]


class HeldOver:
    """Entries that met a lock of somebody else's. Each is tried again after a pause, which grows while it meets one: it
    may stay for as long as a client's transaction, and asking costs the other runs' flush."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, Pending]] = []
        self._pauses_s: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, pending: Pending) -> None:
        run_id = pending[1].run_id
        pause_s = self._pauses_s.get(run_id, LOCKED_PAUSE_S)
        self._waiting.append((time.monotonic() + pause_s, pending))
        self._pauses_s[run_id] = min(LONGEST_LOCKED_PAUSE_S, pause_s * 2)

    @property
    def is_due(self) -> bool:
        """Whether any pause is over."""
        return self.rest_s() == 0

    def settle(self, answered: Iterable[Pending]) -> None:
        """Forget the pauses of entries that were answered otherwise. In any thread."""
        if self._pauses_s:
            for _, entry in answered:
                self._pauses_s.pop(entry.run_id, None)

    def take(self) -> list[Pending]:
        """Those whose pause is over."""
        if not self._waiting:
            return []
        now = time.monotonic()
        due = [pending for due_at, pending in self._waiting if due_at <= now]
        self._waiting = [each for each in self._waiting if each[0] > now]
        return due

    def rest_s(self) -> float | None:
        """How long it is until the next pause is over."""
        if not self._waiting:
            return None
        return max(0.0, min(due_at for due_at, _ in self._waiting) - time.monotonic())
