"""Wait on the thing, not for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, *, within_s: float = 20.0) -> T:
    """The first truthy value of `condition`, which is asked again and again; fails when it takes too long."""
    deadline = time.monotonic() + within_s
    pause_s = 0.002
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {within_s:g} s in vain: {what}")
        time.sleep(pause_s)
        pause_s = min(0.05, pause_s * 1.5)
