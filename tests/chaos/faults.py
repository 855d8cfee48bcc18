"""What breaks: one fault after the other, dealt out by seed, each with what it hit."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .stage import Seat, Stage

LONGEST_FROZEN_LEASE_S = 10.0
"""Who has a longer lease is not stopped for longer than that: it would take the storm's time."""
ANSWERS_COME_S = 3.0


@dataclass
class Fault:
    """One fault. `hit` counts the processes, sessions or connections it met; `in_flight` are the runs that workers had
    in hand just before. Times are seconds since 1970."""

    kind: str
    at: float
    in_flight: frozenset[str] = frozenset()
    hit: int = 0
    over_at: float | None = None


class Faults:
    """Breaks things for as long as it is told to. Faults of one worker come close together; those that meet everybody
    are rare, as after each of them nobody is taken for dead for a while."""

    def __init__(
        self, stage: Stage, seed: str, *, every_s: float, for_all_every_s: float, frozen_s: float, only: str | None
    ) -> None:
        self.faults: list[Fault] = []
        self.failures: list[BaseException] = []
        self._stage = stage
        self._dice = random.Random(f"{seed} faults")
        self._every_s = every_s
        self._for_all_every_s = for_all_every_s
        self._frozen_s = frozen_s
        self._under_way: list[threading.Thread] = []
        self._of_one: list[tuple[int, str, Callable[[Fault, Seat], None]]] = [
            (6, "worker killed", self._kill),
            (3, "worker stopped for a moment", self._stop_briefly),
            (3, "worker stopped for longer than its lease", self._stop_for_long),
            (2, "worker told to end, another started", self._relieve),
            (4, "backends of a worker terminated", self._terminate),
            (3, "listener's socket cut", self._cut_listener),
            (3, "answer to a flush lost", self._lose("scribe")),
            (2, "answer to a claim lost", self._lose("dispatcher")),
            (2, "worker's connections silent", self._hush),
            (2, "connections of a worker refused", self._refuse),
        ]
        self._of_clients: list[tuple[int, str, Callable[[Fault, Seat], None]]] = [
            (2, "answer to a client lost", self._lose_clients_answer),
            (1, "clients' connections cut", self._cut_clients),
        ]
        self._of_all: list[tuple[str, Callable[[Fault], None]]] = [
            ("server restarted in immediate mode", self._restart),
            ("all connections refused", self._refuse_all),
            ("all backends terminated", self._terminate_all),
        ]
        self._choices = [choice for choice in (*self._of_one, *self._of_clients) if only is None or choice[1] == only]
        if only is not None:
            self._of_all = []

    def rage(self, seconds: float) -> None:
        """Break things for so long, and mend them all."""
        end = time.monotonic() + seconds
        next_for_all = time.monotonic() + 0.4 * self._for_all_every_s
        turn = 0
        while time.monotonic() < end and not self.failures:
            self._stage.tend()
            time.sleep(self._dice.uniform(0.4, 1.6) * self._every_s)
            if self._of_all and time.monotonic() > next_for_all:
                kind, act = self._of_all[turn % len(self._of_all)]
                turn += 1
                self._begin(kind, act)
                next_for_all = time.monotonic() + self._for_all_every_s
                continue
            weights = [weight for weight, _, _ in self._choices]
            [(_, kind, at_one)] = self._dice.choices(self._choices, weights)
            seats = self._stage.seats
            if at_one == self._stop_for_long:
                seats = [seat for seat in seats if seat.lease_s <= LONGEST_FROZEN_LEASE_S]
            seat = self._dice.choice(seats)
            if seat.busy.acquire(blocking=False):
                self._begin(kind, self._and_free(seat, at_one), None if "client" in kind else seat.pid)
        for thread in self._under_way:
            thread.join()
        self._stage.mend()

    @staticmethod
    def _and_free(seat: Seat, act: Callable[[Fault, Seat], None]) -> Callable[[Fault], None]:
        def at_seat(fault: Fault) -> None:
            try:
                act(fault, seat)
            finally:
                seat.busy.release()

        return at_seat

    def _begin(self, kind: str, act: Callable[[Fault], None], pid: int | None = None) -> None:
        fault = Fault(kind, time.time(), self._stage.runs_in_hand(pid))
        fault.at = time.time()

        def go() -> None:
            try:
                act(fault)
                fault.over_at = time.time()
            except BaseException as failure:  # told at the end
                self.failures.append(failure)

        self.faults.append(fault)
        thread = threading.Thread(target=go, name=kind, daemon=True)
        self._under_way.append(thread)
        thread.start()

    # Of one worker ----------------------------------------------------------------------------------------------------

    def _kill(self, fault: Fault, seat: Seat) -> None:
        fault.hit = seat.kill()
        time.sleep(self._some(0.0, 2.0))
        seat.start()

    def _stop_briefly(self, fault: Fault, seat: Seat) -> None:
        fault.hit = seat.freeze(self._some(0.2, 1.5))

    def _stop_for_long(self, fault: Fault, seat: Seat) -> None:
        # A peer must see the whole lease go by, and the runs be taken over and worked on, before it wakes.
        fault.hit = seat.freeze(seat.lease_s + self._some(0.5, 1.0) * self._frozen_s)

    def _relieve(self, fault: Fault, seat: Seat) -> None:
        fault.hit = seat.relieve()

    def _terminate(self, fault: Fault, seat: Seat) -> None:
        fault.hit = self._stage.terminate(seat.lane, at_most=self._dice.choice((1, 2, 10)))

    def _cut_listener(self, fault: Fault, seat: Seat) -> None:
        fault.hit = self._stage.proxy.order("cut", seat.lane, role="listener")

    def _lose(self, role: str) -> Callable[[Fault, Seat], None]:
        return lambda fault, seat: self._lose_answer(fault, seat.lane, role)

    def _lose_answer(self, fault: Fault, lane: str, role: str | None) -> None:
        """Lose the next answer that comes, if one comes soon."""
        proxy = self._stage.proxy
        before = proxy.order("say what was lost", lane)
        proxy.order("lose answer", lane, role=role)
        give_up = time.monotonic() + ANSWERS_COME_S
        while fault.hit == 0 and time.monotonic() < give_up:
            time.sleep(0.01)
            fault.hit = proxy.order("say what was lost", lane) - before
        proxy.order("lose no more", lane, role=role)

    def _hush(self, fault: Fault, seat: Seat) -> None:
        fault.hit = self._stage.proxy.order("hush", seat.lane)
        time.sleep(self._some(0.5, 3.0))
        self._stage.proxy.order("flow", seat.lane)

    def _refuse(self, fault: Fault, seat: Seat) -> None:
        fault.hit = self._stage.proxy.order("refuse", seat.lane)
        time.sleep(self._some(0.5, 4.0))
        self._stage.proxy.order("open", seat.lane)

    # Of clients -------------------------------------------------------------------------------------------------------

    def _lose_clients_answer(self, fault: Fault, _seat: Seat) -> None:
        self._lose_answer(fault, "clients", None)

    def _cut_clients(self, fault: Fault, _seat: Seat) -> None:
        fault.hit = self._stage.proxy.order("cut", "clients")

    # Of everybody -----------------------------------------------------------------------------------------------------

    def _restart(self, fault: Fault) -> None:
        fault.hit = self._stage.restart_server()

    def _refuse_all(self, fault: Fault) -> None:
        lanes = self._stage.lanes
        fault.hit = self._stage.proxy.order("refuse", *lanes)
        time.sleep(self._some(1.0, 4.0))
        # A worker of its own lane may still be refused by another fault, which is over in time.
        self._stage.proxy.order("open", *lanes)

    def _terminate_all(self, fault: Fault) -> None:
        fault.hit = self._stage.terminate(None, at_most=1000)

    def _some(self, least: float, most: float) -> float:
        return self._dice.uniform(least, most)
