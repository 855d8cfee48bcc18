"""A supervisor: keeps a number of worker processes running, and executes nothing itself.

Each process is begun anew from one command line, never forked with this one's memory: a crash of one is no other's,
and after SIGHUP they run the code that is deployed then. They tell how they are over a socket each (see `supervised`),
whose end tells them that this process is gone. One thread does everything, and sleeps until something happens.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from pgworkflows.processes import Child, Slot, how_it_ended
from pgworkflows.supervised import PROCESS, SUPERVISOR, SUPERVISOR_EVERY_S, Voice

USAGE = 2
"""The exit status of a command that cannot be carried out as it was given: to begin it again would not help."""

START_S = 60.0
"""How long a process may take until it is ready; one that is the first of its place only says so then."""
SILENCE_S = 10.0
AT_ONCE_S = 5.0
"""How long a worker may take that is told to hurry, or to say where it hangs."""
LOOK_EVERY_S = 1.0

ENDING = (signal.SIGTERM, signal.SIGINT)


def this_command() -> list[str]:
    """The command line of this process, to begin it once more."""
    return [sys.executable, *sys.orig_argv[1:]]


@dataclass(frozen=True)
class SupervisorHealth:
    """How worker processes are. `alive`: each says that it lives. `ready`: as many as are wanted take runs.
    `stopping`: they were told to stop. `processes`: their process ids."""

    alive: bool
    ready: bool
    stopping: bool
    processes: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {**asdict(self), "processes": list(self.processes)}


class Supervisor:
    """Runs `command` in so many processes. One that dies is begun anew, after a pause that grows while it dies again
    soon. SIGTERM or SIGINT lets all of them stop, a second one makes them hurry, and those that take longer than
    `patience` are killed. SIGHUP replaces them one after the other, each by one that is ready."""

    def __init__(self, command: Sequence[str], processes: int, *, patience: timedelta, logger: logging.Logger) -> None:
        self._command = [*command]
        self._patience_s = patience.total_seconds()
        self._logger = logger
        self._voice = Voice.found()
        self._slots = [Slot() for _ in range(processes)]
        self._children: list[Child] = []
        self._to_replace: deque[Slot] = deque()
        self._replacing: tuple[Slot, Child] | None = None
        self._somebody_was_ready = False
        self._times_told = 0
        self._status = 0

    def run_forever(self) -> int:
        """Until told to stop, in the main thread: the exit status. 0 when all ended as they should, 1 when one had to
        be killed or failed on its way out, 2 when the first says that the command cannot be carried out."""
        with selectors.DefaultSelector() as self._selector, self._hearing_signals() as signals:
            while self._children or not self._times_told:
                for child in [*self._children]:
                    self._look_at(child)
                if not self._times_told:
                    self._begin()
                    self._replace()
                if self._voice is not None:
                    self._voice.tell(self.health())
                    if not self._times_told and self._voice.is_gone():
                        self._stop()
                self._selector.select(self._pause_s())
                for number in _received(signals):
                    self._on_signal(number)
        return self._status

    def health(self) -> SupervisorHealth:
        """How the processes are; from any thread."""
        now = time.monotonic()
        children = [*self._children]
        wanted = [slot.child for slot in self._slots]
        return SupervisorHealth(
            alive=all(now - child.heard_at < (SILENCE_S if child.was_ready else START_S) for child in children),
            ready=not self._times_told and all(child is not None and child.is_ready for child in wanted),
            stopping=self._times_told > 0,
            processes=tuple(child.process.pid for child in children),
        )

    @contextmanager
    def _hearing_signals(self) -> Generator[socket.socket]:
        """A socket from which to read the numbers of signals; they end a select at once."""
        ours, wakeup = socket.socketpair()
        with ours, wakeup:
            ours.setblocking(False)
            wakeup.setblocking(False)
            self._at_terminal = os.isatty(0)
            numbers = (*ENDING, signal.SIGHUP, signal.SIGCHLD)
            before = {number: signal.signal(number, lambda _number, _frame: None) for number in numbers}
            descriptor = signal.set_wakeup_fd(wakeup.fileno())
            self._selector.register(ours, selectors.EVENT_READ)
            try:
                yield ours
            finally:
                signal.set_wakeup_fd(descriptor)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _on_signal(self, number: int) -> None:
        # The last signal of a terminal that is closed is no wish for new processes.
        hung_up = number == signal.SIGHUP and self._at_terminal and not os.isatty(0)
        if number in ENDING or hung_up:
            self._stop()
        elif number == signal.SIGHUP and not self._times_told:
            self._to_replace = deque(self._slots)

    def _stop(self) -> None:
        """Let all end: gracefully, the second time in a hurry, the third time at once."""
        self._times_told += 1
        if self._times_told == 1:
            self._logger.info("pgworkflows: %d worker processes are told to stop", len(self._children))
        for child in self._children:
            if self._times_told > 2:
                child.process.kill()
            elif self._times_told == 2:
                child.stop(AT_ONCE_S)
            elif child.killed_at is None:  # one that is being replaced was told before
                child.stop(self._patience_s)

    def _begin(self) -> None:
        """Begin what is missing. At first only one: what stands in its way stands in the way of all."""
        for slot in self._slots if self._somebody_was_ready else self._slots[:1]:
            if slot.child is None and time.monotonic() >= slot.due_at:
                slot.child = self._spawned()
                if slot.child is None:
                    slot.fail()

    def _replace(self) -> None:
        """Go on with what SIGHUP asks for: the next process, once the last one is ready and its predecessor gone."""
        if self._replacing is not None:
            slot, child = self._replacing
            if child.was_ready:
                self._replacing = None
                if slot.child is not None:
                    self._logger.info(
                        "pgworkflows: worker process %d takes the place of %d",
                        child.process.pid,
                        slot.child.process.pid,
                    )
                    slot.child.stop(self._patience_s)
                slot.child = child
            elif time.monotonic() - child.began_at > START_S:
                child.process.kill()
        elif self._to_replace and all(child.killed_at is None for child in self._children):
            slot = self._to_replace.popleft()
            successor = None if slot.child is None else self._spawned()
            if successor is not None:
                self._replacing = slot, successor

    def _spawned(self) -> Child | None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, SUPERVISOR: str(theirs.fileno()), PROCESS: "1"},
                    process_group=0,  # Ctrl-C is for us, who pass it on
                )
            except OSError as error:
                ours.close()
                self._logger.error("pgworkflows: no worker process can be started: %s", error)  # noqa: TRY400
                return None
        child = Child(process, ours)
        self._selector.register(ours, selectors.EVENT_READ)
        self._children.append(child)
        return child

    def _look_at(self, child: Child) -> None:
        """What has become of a process."""
        if not child.listen():
            self._forget_voice(child)
        self._somebody_was_ready |= child.was_ready
        status, now = child.process.poll(), time.monotonic()
        if status is not None:
            self._children.remove(child)
            self._forget_voice(child)
            self._ended(child, status)
        elif child.killed_at is not None and now >= child.killed_at:
            child.killed_at = float("inf")
            self._logger.error("pgworkflows: worker process %d does not end: it is killed", child.process.pid)
            child.process.kill()
        elif child.killed_at is None and now - child.heard_at > self._longest_silence_s(child):
            self._logger.error("pgworkflows: worker process %d says nothing any more: it is ended", child.process.pid)
            child.process.send_signal(signal.SIGABRT)  # as systemd does: faulthandler tells where it hangs
            child.killed_at = now + AT_ONCE_S
        elif not (child.was_ready or child.is_late or child.killed_at) and now - child.began_at > START_S:
            child.is_late = True
            self._logger.warning(
                "pgworkflows: worker process %d is not ready after %g s: kill -USR1 %d prints what it is doing",
                child.process.pid,
                START_S,
                child.process.pid,
            )

    def _ended(self, child: Child, status: int) -> None:
        slot = next((slot for slot in self._slots if slot.child is child), None)
        if slot is not None:
            slot.child = None
        if self._times_told:
            if status not in (0, -signal.SIGTERM):  # that signal may come before the worker is there to take it
                self._status = 1
                self._logger.warning("pgworkflows: worker process %d %s", child.process.pid, how_it_ended(status))
        elif self._replacing is not None and child is self._replacing[1]:
            self._replacing = None
            self._to_replace.clear()
            self._logger.error(
                "pgworkflows: the new worker process %d %s before it was ready: the others stay as they are",
                child.process.pid,
                how_it_ended(status),
            )
        elif slot is None:
            if status:
                self._logger.warning(
                    "pgworkflows: worker process %d, which was replaced, %s", child.process.pid, how_it_ended(status)
                )
        elif status == USAGE and not self._somebody_was_ready:
            self._status = USAGE
            self._times_told = 1
        else:
            pause_s = slot.fail(child)
            self._logger.warning(
                "pgworkflows: worker process %d %s; another starts in %.1f s",
                child.process.pid,
                how_it_ended(status),
                pause_s,
            )

    def _forget_voice(self, child: Child) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(child.ear)
        child.ear.close()

    def _longest_silence_s(self, child: Child) -> float:
        """systemd's WatchdogSec is for each process, once it has begun."""
        allowed_s = float("inf") if self._voice is None else max(2 * self._voice.every_s, 3 * SUPERVISOR_EVERY_S)
        return allowed_s if child.was_ready else max(allowed_s, START_S)

    def _pause_s(self) -> float:
        """How long there is nothing to do, if nothing happens."""
        if self._times_told:
            return LOOK_EVERY_S / 4
        due_s = [slot.due_at - time.monotonic() for slot in self._slots if slot.child is None]
        if not self._somebody_was_ready:
            due_s = due_s[:1] if self._slots[0].child is None else []
        return max(0.0, min([LOOK_EVERY_S, *due_s]))


def _received(signals: socket.socket) -> bytes:
    """The numbers of the signals that have come."""
    try:
        return signals.recv(4096)
    except BlockingIOError:
        return b""
