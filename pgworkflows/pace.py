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
        counted = self._count() - self._counted
        passed_s = time.monotonic() - self._since
        if passed_s < self._over_s:
            return max(self._before, counted)
        self._before = round(counted * self._over_s / passed_s)
        self._counted += counted
        self._since += passed_s
        return self._before

    @property
    def rising(self) -> bool:
        """Whether it has risen of late."""
        return self._before > 0 or self._count() > self._counted
