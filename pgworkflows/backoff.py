"""Patience with a server that is away: growing pauses with jitter, and one word in the log."""

from __future__ import annotations

import logging
import random

from pgworkflows.database import Locked, Refused, Unavailable

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


class Backoff:
    """Counts the failures in a row of one thread. Says once that something is wrong and once that it is over."""

    def __init__(self, logger: logging.Logger, what: str, *, longest_s: float = LONGEST_PAUSE_S) -> None:
        self._logger = logger
        self._what = what
        self._longest_s = longest_s
        self._failures = 0

    def failed(self, error: BaseException) -> float:
        """Note a failure; the pause to make now, in seconds."""
        if not self._failures:
            known = isinstance(error, Unavailable | Refused | Locked)
            self._logger.warning(
                "pgworkflows: %s failed, trying again: %s",
                self._what,
                str(error).strip() or type(error).__name__,
                exc_info=None if known else error,
            )
        self._failures += 1
        longest = min(self._longest_s, FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 10))
        return longest * random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Note that it works."""
        if self._failures:
            self._logger.warning("pgworkflows: %s works again after %d failures", self._what, self._failures)
            self._failures = 0
