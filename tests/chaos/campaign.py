"""One storm from its beginning to the proof: work begins, things break, things mend, everything comes to an end."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from .checker import Violation, check
from .clients import Client
from .faults import Fault, Faults
from .history import History, read_tables
from .ledger import read_ledger
from .plans import Dealer
from .stage import Stage

SETTLED = """
select (select count(*) from pgworkflows.queue),
    array(select pid from pgworkflows.workers order by pid)
"""


@dataclass(frozen=True)
class Conditions:
    """How long, how many and how often. `only` is the one kind of fault there is, if not all of them."""

    seconds: float = 300.0
    leases_s: tuple[float | None, ...] = (5.0, None, 5.0, None)
    clients: int = 4
    runs_per_s: float = 45.0
    crowd: int = 600
    fault_every_s: float = 0.9
    fault_for_all_every_s: float = 30.0
    frozen_s: float = 4.0
    longest_wait_s: float = 4.0
    long_ones: float = 0.02
    only: str | None = None
    drain_s: float = 120.0
    settings: dict[str, str] = field(default_factory=dict[str, str])
    sabotage: str | None = None


@dataclass
class Result:
    """What a storm has brought to light, and what it was made of."""

    seed: int
    conditions: Conditions
    history: History
    violations: list[Violation]
    faults: list[Fault]
    said: str
    told: dict[str, int]
    stormed_s: float
    drained_s: float


def storm(seed: int, conditions: Conditions) -> Result:
    """Let it all happen, wait until all is quiet, and check."""
    with Stage(conditions.leases_s, settings=conditions.settings, sabotage=conditions.sabotage) as stage:
        clients = [
            Client(
                stage.url("clients"),
                Dealer(f"{seed}.{number}", conditions.longest_wait_s, conditions.long_ones),
                runs_per_s=conditions.runs_per_s / conditions.clients,
                crowd=conditions.crowd // conditions.clients,
            )
            for number in range(conditions.clients)
        ]
        faults = Faults(
            stage,
            str(seed),
            every_s=conditions.fault_every_s,
            for_all_every_s=conditions.fault_for_all_every_s,
            frozen_s=conditions.frozen_s,
            only=conditions.only,
        )
        _await_workers(stage, 60)
        begun = time.monotonic()
        for client in clients:
            client.start()
        faults.rage(conditions.seconds)
        mended = time.monotonic()
        stuck = _drain(stage, clients, conditions.drain_s)
        drained = time.monotonic()
        history = History(tries=[each for client in clients for each in client.tries])
        history.exit_statuses = stage.dismiss()
        stage.direct(lambda conn: read_tables(conn, history))
        history.calls = read_ledger(stage.ledger)
        history.leavings = [leaving for seat in stage.seats for leaving in seat.leavings]
        failures = [*faults.failures, *(client.failure for client in clients if client.failure is not None)]
        violations = [Violation("the_storm_itself_goes_well", repr(failure)) for failure in failures]
        violations += [Violation("everything_comes_to_an_end_in_time", each) for each in stuck]
        violations += check(history)
        return Result(
            seed,
            conditions,
            history,
            violations,
            faults.faults,
            stage.said(),
            _summed([client.told for client in clients]),
            mended - begun,
            drained - mended,
        )


def _await_workers(stage: Stage, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while len(stage.direct(lambda conn: conn.execute(SETTLED).fetchone())[1]) < len(stage.seats):
        assert time.monotonic() < deadline, stage.said()
        time.sleep(0.05)


def _drain(stage: Stage, clients: list[Client], limit_s: float) -> list[str]:
    """Wait until the clients have done their errands, no run is left, and the dead are off the list; what is not so."""
    deadline = time.monotonic() + limit_s
    for client in clients:
        client.finish()
    stuck = ["a client has errands left" for client in clients if not client.join(deadline - time.monotonic())]
    while True:
        stage.tend()
        left, registered = stage.direct(lambda conn: conn.execute(SETTLED).fetchone())
        pids = sorted(seat.pid for seat in stage.seats)
        if not left and registered == pids:
            return stuck
        if time.monotonic() > deadline:
            return [*stuck, f"{left} runs left; the workers are {registered}, and should be {pids}"]
        time.sleep(0.05)


def _summed(counts: list[Any]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for what, number in count.items():
            total[what] = total.get(what, 0) + number
    return total


def seed_from_chance() -> int:
    return int.from_bytes(os.urandom(3), "big")
