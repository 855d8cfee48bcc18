"""What a worker's process tells whoever has started it: systemd, or the supervisor of `worker --processes`.

Both are told in the words of sd_notify(3): READY=1 once the worker takes runs, WATCHDOG=1 for as long as it lives,
STOPPING=1, and a STATUS in words. The supervisor's socket is also how a worker learns that its supervisor is gone.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Protocol, Self

SUPERVISOR = "PGWORKFLOWS_SUPERVISOR"
"""The environment variable that holds the file descriptor of a supervisor's socket."""
PROCESS = "PGWORKFLOWS_PROCESS"
"""The environment variable that is there in the processes of `worker --processes`, whose command line is the same."""

LOOK_EVERY_S = 0.2
SUPERVISOR_EVERY_S = 1.0
"""How often a supervisor hears of a worker to which nothing happens."""


def is_supervised() -> bool:
    """Whether this is one of the processes of `worker --processes`."""
    return PROCESS in os.environ


class Condition(Protocol):
    """How a worker is, or a supervisor."""

    @property
    def alive(self) -> bool: ...
    @property
    def ready(self) -> bool: ...
    @property
    def stopping(self) -> bool: ...
    def as_json(self) -> dict[str, Any]: ...


class Asked(Protocol):
    """A worker, or a supervisor: it knows how it is."""

    def health(self) -> Condition: ...


class Voice:
    """Where to tell it. Nothing is said twice, but once in `every_s` that it lives."""

    def __init__(self, listener: socket.socket, every_s: float, *, lifeline: bool = False) -> None:
        self._listener = listener
        self._lifeline = lifeline
        self._listener.setblocking(False)
        self._every_s = every_s
        self._said = ""
        self._said_at = 0.0

    @classmethod
    def found(cls) -> Self | None:
        """Who listens, as the environment says; which is cleared of it, for steps may start processes too."""
        os.environ.pop(PROCESS, None)
        descriptor = os.environ.pop(SUPERVISOR, None)
        address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = os.environ.pop("WATCHDOG_USEC", "")
        watched = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if descriptor is not None:
            listener = socket.socket(fileno=int(descriptor))
            listener.set_inheritable(False)
            return cls(listener, SUPERVISOR_EVERY_S, lifeline=True)
        if not address.startswith(("/", "@")):
            return None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            listener.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        except OSError:  # as sd_notify has it: in a container the variable may be there, and the socket not
            listener.close()
            return None
        return cls(listener, int(watchdog_us) / 2e6 if watched and watchdog_us.isdecimal() else float("inf"))

    @property
    def every_s(self) -> float:
        """How often it wants to hear of somebody who lives."""
        return self._every_s

    def tell(self, health: Condition) -> None:
        """Say how it is, if that is news or it is time again."""
        text, now = _words(health), time.monotonic()
        if text != self._said or now - self._said_at >= self._every_s:
            self._said, self._said_at = text, now
            self.say(text)

    def say(self, text: str) -> None:
        """Send these words, without waiting. Who is not there any more, or too busy to listen, has not heard them."""
        with suppress(OSError):
            self._listener.send(text.encode())

    def is_gone(self, wait_s: float = 0.0) -> bool:
        """Whether a supervisor has died, within that time."""
        if not self._lifeline:
            time.sleep(wait_s)
            return False
        if not select.select([self._listener], [], [], wait_s)[0]:
            return False
        try:
            return not self._listener.recv(1)
        except OSError:
            return True

    def close(self) -> None:
        self._listener.close()


def _words(health: Condition) -> str:
    if health.stopping:
        return "STOPPING=1\nREADY=0\nSTATUS=stopping: steps in flight end, or go back in the queue\nWATCHDOG=1\n"
    # READY=0 is for our supervisor; systemd wants to know it once only.
    status = "READY=1\nSTATUS=ready\n" if health.ready else "READY=0\nSTATUS=not ready: it starts, or has no database\n"
    return status + ("WATCHDOG=1\n" if health.alive else "")


class Reports:
    """Tells how a `worker` is, once there is one, for the length of a with statement; nothing where nobody listens.
    When a supervisor dies, its process ends as at SIGTERM, also one that has no worker yet."""

    def __init__(self) -> None:
        self.worker: Asked | None = None
        self._voice = Voice.found()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pgworkflows-reports", daemon=True)

    def __enter__(self) -> Self:
        if self._voice is not None:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        if self._voice is not None:
            self._thread.join()
            self._voice.say("STOPPING=1\n")
            self._voice.close()

    def _run(self) -> None:
        """In a thread of its own, beside the worker and the import of its module. It waits for nothing but the clock,
        and ends with the worker."""
        assert self._voice is not None
        while not self._ended.is_set():
            if self.worker is not None:
                self._voice.tell(self.worker.health())
            if self._voice.is_gone(LOOK_EVERY_S):
                os.kill(os.getpid(), signal.SIGTERM)
                return
