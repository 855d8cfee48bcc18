"""The systems that are compared, each in a setting, and how much of each scenario it is given.

The amounts differ so that each takes a few seconds: the figures are rates and medians. All run the same number of steps
in `long`, where the number is part of the work.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from bench.peers import environments
from bench.peers.environments import HERE, programs, version_of

SCENARIOS = ("throughput", "latency", "event", "long")
LONG_STEPS = 1000


@dataclass(frozen=True)
class System:
    """One row of the table. `peer` names its environment, None is this project itself."""

    name: str
    peer: str | None
    setting: str
    amounts: Mapping[str, int]

    @property
    def command(self) -> list[str]:
        """The script, before its arguments."""
        match self.peer:
            case None:
                return [sys.executable, "-m", "bench.peers.ours"]
            case "pg-workflows":
                return [str(programs(self.peer) / "node"), str(HERE / "pg_workflows_peer.mjs")]
            case peer:
                return [str(programs(peer) / "python"), "-m", f"bench.peers.{peer}_peer"]

    def amount(self, scenario: str, *, quick: bool) -> int:
        """How many runs, or steps, of a scenario; none where it is not measured."""
        whole = self.amounts.get(scenario, 0)
        return max(3, whole // 4) if quick and whole and scenario != "long" else whole

    def install(self) -> None:
        """Make what it needs. Raises NotInstalledError."""
        if self.peer is not None:
            environments.install(self.peer)


DBOS = f"DBOS {version_of('dbos', 'dbos')}"
ABSURD = f"Absurd {version_of('absurd', 'absurd-sdk')}"
PG_WORKFLOWS = f"pg-workflows {version_of('pg-workflows', 'pg-workflows')}"

OURS = System(
    "pgworkflows", None, "default", {"throughput": 4000, "latency": 60, "event": 60, "long": LONG_STEPS}
)  # fmt: skip
PEERS = (
    System(f"{DBOS}, queue", "dbos", "queue", {"throughput": 150, "latency": 5}),
    System(f"{DBOS}, no queue", "dbos", "direct", {"throughput": 150, "latency": 40, "event": 12, "long": LONG_STEPS}),
    System(
        f"{ABSURD}, concurrency 10", "absurd", "10", {"throughput": 400, "latency": 12, "event": 12, "long": LONG_STEPS}
    ),
    System(
        f"{PG_WORKFLOWS}, 3 workers",
        "pg-workflows",
        "3",
        {"throughput": 25, "latency": 6, "event": 6, "long": LONG_STEPS},
    ),
    System(f"{PG_WORKFLOWS}, 50 workers", "pg-workflows", "50", {"throughput": 400, "latency": 6}),
)
