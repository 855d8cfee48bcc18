"""The worker processes of a supervisor: the place of each, what it says of itself, and how it ended."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import time

CALM_S = 60.0
"""Who has worked for so long was well: its death is not counted with earlier ones."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0


class Slot:
    """The place of one process."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.due_at = 0.0
        self._deaths_in_a_row = 0

    def fail(self, child: Child | None = None) -> float:
        """Its process has died, or could not begin: how long to wait before the next, in seconds."""
        if child is not None and child.worked_s() > CALM_S:
            self._deaths_in_a_row = 0
        longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._deaths_in_a_row, 20))
        self._deaths_in_a_row += 1
        pause_s = longest_s * random.uniform(0.5, 1.0)
        self.due_at = time.monotonic() + pause_s
        return pause_s


class Child:
    """One process, and what it says of itself."""

    def __init__(self, process: subprocess.Popen[bytes], ear: socket.socket) -> None:
        self.process = process
        self.ear = ear
        self.ear.setblocking(False)
        self.began_at = self.heard_at = time.monotonic()
        self.ready_at: float | None = None
        self.is_ready = False
        self.killed_at: float | None = None
        """Once it is told to stop: when it has had enough time for that."""
        self.is_late = False
        """It took long to be ready, which was said."""
        self._unread = b""

    @property
    def was_ready(self) -> bool:
        return self.ready_at is not None

    def worked_s(self) -> float:
        """How long ago it was ready for the first time."""
        return 0.0 if self.ready_at is None else time.monotonic() - self.ready_at

    def stop(self, patience_s: float) -> None:
        """Ask it to end, and note when that must have happened."""
        killed_at = time.monotonic() + patience_s
        self.killed_at = killed_at if self.killed_at is None else min(self.killed_at, killed_at)
        self.process.send_signal(signal.SIGTERM)

    def listen(self) -> bool:
        """Take in what it has said; whether it may say more."""
        try:
            said = self.ear.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        *lines, self._unread = (self._unread + said).split(b"\n")
        for line in lines:
            if line.startswith(b"READY="):
                self.is_ready = line == b"READY=1"
                if self.is_ready and self.ready_at is None:
                    self.ready_at = time.monotonic()
            elif line == b"WATCHDOG=1":
                self.heard_at = time.monotonic()
        return bool(said)


def how_it_ended(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
