"""The threads that advance generators and call step functions."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from pgworkflows.pace import Pace
from pgworkflows.runner import Execution

STAND_BY_S = 0.001
QUICK_TURNS_PER_S = 10_000
"""From when on more threads than one are of no use. A thread that never waits for anything comes to two or four times
as many: a turn costs the interpreter twenty to forty microseconds."""
QUICK_OVER_S = 0.005


class Pool:
    """Threads that take executions from one ready queue.

    Each thread owns the execution it has taken, may block in a step function for as long as that likes, and ends when
    the pool is closed. A thread whose call was given up is replaced, so that hanging steps do not eat the pool; at
    most as many are replaced as the pool has threads.

    At most one thread at a time is on its way from its sleep to what is ready; having taken something, it wakes the
    next. Where step functions block, all threads are soon at work. Where they end at once, one thread takes what is
    ready, another stands by, for a millisecond at a time, and those that have become too many go back to sleep: all of
    them would spend their time in handing on the interpreter's lock.
    """

    def __init__(self, size: int, work: Callable[[Execution], None], name: str) -> None:
        self.size = size
        self._work = work
        self._name = name
        self._ready: deque[Execution] = deque()
        self._wakes: SimpleQueue[bool] = SimpleQueue()
        self._waking = False
        self._here = threading.local()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._at_work: set[int] = set()
        self._hanging = 0
        self._turns = 0
        self._pace = Pace(lambda: self._turns, QUICK_OVER_S)

    def start(self) -> None:
        with self._lock:
            for _ in range(self.size):
                self._spawn()

    def put(self, *executions: Execution) -> None:
        """Queue executions for the next free threads: if a thread of the pool puts them, that is perhaps itself."""
        self._ready.extend(executions)
        if executions and not hasattr(self._here, "working"):
            self._wake()

    def hand_on(self) -> None:
        """Leave what waits to another thread: this one, which may have put it, does not come for it soon."""
        if self._ready:
            self._wake()

    @property
    def waiting(self) -> int:
        """How many executions wait for a thread."""
        return len(self._ready)

    @property
    def one_works(self) -> bool:
        """Whether one thread has something to do, and no other will have."""
        return len(self._at_work) == 1 and not self._ready

    @property
    def free(self) -> int:
        """How many threads have nothing to do but to take what waits."""
        return len(self._threads) - len(self._at_work)

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
            self._wakes.put(False)
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _spawn(self) -> None:
        thread = threading.Thread(target=self._run, name=f"{self._name}-step", daemon=True)
        thread.start()
        self._threads.add(thread)

    def _run(self) -> None:
        try:
            self._here.working = True
            while self._wakes.get():
                self._stand_by()
                # Before the look: who puts something while this is set relies on the look that follows.
                self._waking = False
                while self._take_and_stay():
                    pass
        except ThreadLost:
            pass
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _stand_by(self) -> None:
        """Wait while another thread takes what is ready so quickly that two would fight for the lock only."""
        while self._ready and self._pace.expected() > QUICK_TURNS_PER_S * QUICK_OVER_S * len(self._at_work) > 0:
            turns = self._turns
            time.sleep(STAND_BY_S)
            if self._turns == turns:
                return  # it is in a step that blocks

    def _take_and_stay(self) -> bool:
        """Work on an execution; whether to look for another one."""
        turns, since = self._turns + 1, time.monotonic()
        if not self._take():
            return False
        if self._others_are_enough(turns, since):
            self.hand_on()  # to one that stands by: what they are in now may take long
            return False
        return True

    def _others_are_enough(self, turns: int, since: float) -> bool:
        """Whether those at work, which this thread is not, have all come back since then as quickly as a thread that
        waits for nothing. One that blocks has not, and many that wait side by side have not either."""
        others = len(self._at_work)
        return others > 0 and self._turns - turns > QUICK_TURNS_PER_S * (time.monotonic() - since) * others

    def _wake(self) -> None:
        if not self._waking:
            self._waking = True
            self._wakes.put(True)

    def _take(self) -> bool:
        """Work on an execution, and do not hold on to it while waiting for the next: its history may be long."""
        try:
            execution = self._ready.popleft()
        except IndexError:
            return False
        self.hand_on()
        me = threading.get_ident()
        self._at_work.add(me)
        try:
            self._work(execution)
        finally:
            self._at_work.discard(me)
            self._turns += 1  # one that two threads count at once may be lost: it is for the pace
        return True


class ThreadLost(Exception):
    """The call that this thread was in was given up, and another thread has taken its place."""
