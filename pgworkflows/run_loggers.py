"""Loggers that say which run they speak of; the handler's says nothing twice."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from pgworkflows.replay import Trail


class LoggerOfRun(logging.LoggerAdapter[logging.Logger]):
    """A logger that says which run it speaks of, in extra fields."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class SilentWhileReplaying(LoggerOfRun):
    """The handler's logger: what it said in an earlier execution is not said again."""

    def __init__(self, logger: logging.Logger, extra: dict[str, object], trail: Trail) -> None:
        super().__init__(logger, extra)
        self._trail = trail

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  (logging's name)
        return not self._trail.replaying and super().isEnabledFor(level)
