"""The thread that ends calls whose time is up."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable


class Alarms(threading.Thread):
    """Owns a heap of moments and what to do at them. Blocks until the next one; ends when it is closed."""

    def __init__(self, name: str) -> None:
        super().__init__(name=f"{name}-alarms", daemon=True)
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._closing = False

    def set(self, after_s: float, action: Callable[[], None]) -> None:
        """Call `action` in this thread after `after_s` seconds."""
        with self._changed:
            heapq.heappush(self._heap, (time.monotonic() + after_s, next(self._numbers), action))
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self.join(5.0)

    def run(self) -> None:
        while (action := self._next()) is not None:
            action()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._closing:
                wait_s = self._heap[0][0] - time.monotonic() if self._heap else None
                if wait_s is not None and wait_s <= 0:
                    return heapq.heappop(self._heap)[2]
                self._changed.wait(wait_s)
        return None
