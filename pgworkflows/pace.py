"""How fast something is counted up, as it was of late."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """How much a count rises within `over_s`, to judge by the last moments. Where several threads ask at once, one of
    them may be told too little."""

    def __init__(self, count: Callable[[], int], over_s: float) -> None:
        self._count = count
        self._over_s = over_s
        self._counted = 0
        self._since = time.monotonic()
        self._before = 0

    def expected(self) -> int:
        """How much it will be, for all that is known."""
        count, now = self._count(), time.monotonic()
        counted, passed_s = count - self._counted, now - self._since
        if passed_s < self._over_s:
            return max(self._before, counted)
        self._counted, self._since = count, now
        self._before = expected = round(counted * self._over_s / passed_s)
        return expected

    @property
    def rising(self) -> bool:
        """Whether it has risen of late."""
        return self._before > 0 or self._count() > self._counted
