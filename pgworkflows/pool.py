"""The threads that advance generators and call step functions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from pgworkflows.runner import Execution


class Pool:
    """Threads that take executions from one ready queue.

    Each thread owns the execution it has taken, may block in a step function for as long as that likes, and ends when
    the pool is closed. A thread whose call was given up is replaced, so that hanging steps do not eat the pool; at
    most as many are replaced as the pool has threads.
    """

    def __init__(self, size: int, work: Callable[[Execution], None], name: str) -> None:
        self.size = size
        self._work = work
        self._name = name
        self._ready: SimpleQueue[Execution | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._busy = 0
        self._hanging = 0
        self._turns = 0

    def start(self) -> None:
        with self._lock:
            for _ in range(self.size):
                self._spawn()

    def put(self, execution: Execution) -> None:
        """Queue an execution for the next free thread."""
        self._ready.put(execution)

    @property
    def waiting(self) -> int:
        """How many executions wait for a thread."""
        return self._ready.qsize()

    @property
    def free(self) -> int:
        """How many threads have nothing to do but to take what waits."""
        return len(self._threads) - self._busy

    @property
    def turns(self) -> int:
        """How often a thread has come back from an execution, since the start."""
        return self._turns

    def replace_one(self) -> bool:
        """Start a thread in the place of one whose call was given up; False when there are too many of those."""
        with self._lock:
            self._hanging += 1
            if len(self._threads) - self._hanging < self.size:
                if len(self._threads) >= 2 * self.size:
                    return False
                self._spawn()
            return True

    def has_too_many(self) -> bool:
        """Whether this thread, whose call was given up and has returned now, is one too many. If so it has to end."""
        with self._lock:
            # Below zero for a moment, when it comes back before it was replaced.
            self._hanging -= 1
            if len(self._threads) - self._hanging <= self.size:
                return False
            self._threads.discard(threading.current_thread())
            return True

    def close(self, timeout_s: float) -> None:
        """End the threads that are free; those in a step function end with it."""
        with self._lock:
            threads = list(self._threads)
        for _ in threads:
            self._ready.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _spawn(self) -> None:
        thread = threading.Thread(target=self._run, name=f"{self._name}-step", daemon=True)
        thread.start()
        self._threads.add(thread)

    def _run(self) -> None:
        try:
            while self._take(self._ready.get()):
                pass
        except ThreadLost:
            pass
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _take(self, execution: Execution | None) -> bool:
        """Work on an execution, and do not hold on to it while waiting for the next: its history may be long."""
        if execution is None:
            return False
        with self._lock:
            self._busy += 1
        try:
            self._work(execution)
        finally:
            with self._lock:
                self._busy -= 1
                self._turns += 1
        return True


class ThreadLost(Exception):
    """The call that this thread was in was given up, and another thread has taken its place."""
