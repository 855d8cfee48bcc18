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
        self.last_taken = time.monotonic()
        self._work = work
        self._name = name
        self._ready: SimpleQueue[Execution | None] = SimpleQueue()
        self._threads: set[threading.Thread] = set()
        self._lost = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        for _ in range(self.size):
            self._spawn()

    def put(self, execution: Execution) -> None:
        """Queue an execution for the next free thread."""
        self._ready.put(execution)

    @property
    def waiting(self) -> int:
        """How many executions wait for a thread."""
        return self._ready.qsize()

    def replace_one(self) -> bool:
        """Start a thread in the place of one whose call was given up; False when there are too many of those."""
        with self._lock:
            if self._lost >= self.size:
                return False
            self._lost += 1
        self._spawn()
        return True

    def has_too_many(self) -> bool:
        """Whether the thread of a call that was given up, and has returned now, is one too many and should end."""
        with self._lock:
            if self._lost == 0:
                return False
            self._lost -= 1
            return True

    def close(self, timeout_s: float) -> None:
        """End the threads that are free; those in a step function end with it."""
        for _ in list(self._threads):
            self._ready.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _spawn(self) -> None:
        thread = threading.Thread(target=self._run, name=f"{self._name}-step", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _run(self) -> None:
        while (execution := self._ready.get()) is not None:
            self.last_taken = time.monotonic()
            try:
                self._work(execution)
            except ThreadLost:
                break
        self._threads.discard(threading.current_thread())


class ThreadLost(Exception):
    """The call that this thread was in was given up, and another thread has taken its place."""
