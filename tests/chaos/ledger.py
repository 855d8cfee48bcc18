"""The ledger: what step functions did, one line for each beginning and end of a call, in a file that only grows.

It lies outside the database. A line is one write to a file opened for appending, so that a process that is killed
leaves whole lines, in the order in which things happened.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pgworkflows.current import current_step


@dataclass(frozen=True)
class Call:
    """One execution of a step function. `ended_at` is None if its process died in it; `outcome` is ok, failed (it
    raised) or miss (a poll that found nothing). Times are seconds since 1970, by the clock of this machine."""

    id: str
    run_id: str
    step_id: str
    attempt: int
    pid: int
    began_at: float
    ended_at: float | None = None
    outcome: str | None = None


class Ledger:
    """Appends to the file; threads and processes share it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._pid = os.getpid()

    def begin(self) -> str:
        """Note that the current step's function was called: the id of this call."""
        current, call = current_step(), uuid4().hex
        self._append([call, str(current.run_id), current.step_id, current.attempt, self._pid, time.time()])
        return call

    def end(self, call: str, outcome: str) -> None:
        """Note how a call ended."""
        self._append([call, time.time(), outcome])

    def _append(self, record: list[Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        assert os.write(self._file, line) == len(line)


def read_ledger(path: Path) -> list[Call]:
    """All calls, in the order of their beginning."""
    begun: dict[str, Call] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if len(record) == 3:
            call = begun[record[0]]
            begun[record[0]] = Call(
                call.id, call.run_id, call.step_id, call.attempt, call.pid, call.began_at, record[1], record[2]
            )
        else:
            begun[record[0]] = Call(*record)
    return list(begun.values())
