"""Patience with a server that is away or sick: growing pauses with jitter, and few words in the log."""

from __future__ import annotations

import logging
import random
import time

from pgworkflows.database import told

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
REASONS_TOLD = 2
CALM_S = 30.0
"""How long nothing must have failed for the next failure to be another trouble; and how long one may last untold."""


class Backoff:
    """Counts the failures of one thread. Says once that something is wrong, and once that it is over: each reason once,
    for what ends the connections is often not what keeps them away, and trouble that comes and goes as one trouble."""

    def __init__(self, logger: logging.Logger, what: str, *, longest_s: float = LONGEST_PAUSE_S) -> None:
        self._logger = logger
        self._what = what
        self._longest_s = longest_s
        self._in_a_row = 0
        self._untold = 0
        self._told: set[str] = set()
        self._complaining = False
        self._began_at = self._failed_at = time.monotonic()

    def failed(self, error: BaseException) -> float:
        """Note a failure; the pause to make now, in seconds."""
        reason = " ".join(told(error).split())
        if self._is_news(reason, time.monotonic()):
            self._told.add(reason)
            self._complaining = True
            self._logger.warning("pgworkflows: %s failed, trying again: %s", self._what, reason)
        longest = min(self._longest_s, FIRST_PAUSE_S * 2.0 ** min(self._in_a_row, 10))
        self._in_a_row += 1
        self._untold += 1
        return longest * random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Note that it works."""
        self._in_a_row = 0
        if self._complaining:
            self._complaining = False
            self._logger.warning("pgworkflows: %s works again after %d failures", self._what, self._untold)
            self._untold = 0

    def _is_news(self, reason: str, now: float) -> bool:
        """Whether to say so: a reason not told yet, or trouble that goes on although it was said to be over."""
        if not self._complaining and now - self._failed_at > CALM_S:
            self._told.clear()
        if not self._in_a_row:
            self._began_at = now
        self._failed_at = now
        if not self._complaining and now - self._began_at > CALM_S:
            return True
        return reason not in self._told and len(self._told) < REASONS_TOLD
