"""The thread that ends calls whose time is up."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

CANCELLED_KEPT = 1000


class Alarm:
    """One action at one moment. Cancelled, it lets go of what the action holds."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Alarms(threading.Thread):
    """Owns a heap of moments and what to do at them. Blocks until the next one; ends when it is closed."""

    def __init__(self, name: str) -> None:
        super().__init__(name=f"{name}-alarms", daemon=True)
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()
        self._sweep_at = CANCELLED_KEPT
        self._closing = False

    def set(self, after_s: float, action: Callable[[], None]) -> Alarm:
        """Call `action` in this thread after `after_s` seconds, unless the alarm is cancelled before."""
        alarm = Alarm(action)
        with self._changed:
            heapq.heappush(self._heap, (time.monotonic() + after_s, next(self._numbers), alarm))
            if len(self._heap) > self._sweep_at:
                self._sweep()
            if self._heap[0][2] is alarm:
                self._changed.notify()
        return alarm

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self.join(5.0)

    def run(self) -> None:
        while (alarm := self._next()) is not None:
            action = alarm.action
            if action is not None:
                action()

    def _next(self) -> Alarm | None:
        with self._changed:
            while not self._closing:
                wait_s = self._heap[0][0] - time.monotonic() if self._heap else None
                if wait_s is not None and wait_s <= 0:
                    return heapq.heappop(self._heap)[2]
                self._changed.wait(None if wait_s is None else min(wait_s, threading.TIMEOUT_MAX))
        return None

    def _sweep(self) -> None:
        """Forget the cancelled alarms: most calls end long before their time."""
        self._heap = [entry for entry in self._heap if entry[2].action is not None]
        heapq.heapify(self._heap)
        self._sweep_at = CANCELLED_KEPT + 2 * len(self._heap)
