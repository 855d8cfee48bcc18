"""The scenarios by name: what measures each, how much of its work is enough, and what it is meant to reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench import dashboard, importing, inspecting, lasting, load, resting, scenarios, starting
from bench.figures import Figures
from pgworkflows import WorkflowEngine


@dataclass(frozen=True)
class Scenario:
    """`size` counts runs, steps or rows, milliseconds of a slice, or seconds: what `measure` says. A heavy one is
    measured once, and only when it is named."""

    measure: Callable[[WorkflowEngine, int], Figures]
    size: int
    targets: Mapping[str, str] = field(default_factory=dict[str, str])
    heavy: bool = False


SCENARIOS: Mapping[str, Scenario] = {
    "throughput": Scenario(scenarios.throughput, 6000, {"steps_per_insert": "≥ 1.5 × pgbench's inserts"}),
    "latency": Scenario(scenarios.latency, 100, {"p50_ms": "p50 ≤ 10 ms", "p95_ms": "p95 ≤ 25 ms"}),
    "event": Scenario(scenarios.event_latency, 100, {"p50_ms": "p50 ≤ 10 ms", "p95_ms": "p95 ≤ 25 ms"}),
    "start": Scenario(
        starting.start, 250, {"start_per_insert": "≥ 0.5 × a bare insert", "bulk_per_s": "≥ 10,000 a second"}
    ),
    "notify": Scenario(starting.notify, 500, {"ratio": "≥ 0.9 of the rate without NOTIFY"}),
    "timers": Scenario(resting.timers, 40, {"p95_ms": "p95 ≤ 50 ms", "start_p95_ms": "p95 ≤ 50 ms"}),
    "long": Scenario(
        lasting.long_run,
        10_000,
        {"last_per_first": "≤ 1.2 × the first 100", "step_per_insert": "≤ 1.8 × a bare insert"},
    ),
    "history": Scenario(
        lasting.history,
        10_000,
        {"resume_ms": "≤ 300 ms", "peak_growth_mb": "in proportion to the steps"},
    ),
    "processes": Scenario(load.processes, 2000),
    "import": Scenario(importing.imports, 5, {"ms": "≤ 60 ms", "extras_imported": "none"}),
    "backlog": Scenario(load.backlog, 1_000_000, {"ratio": "≤ 1.5 × the cost at 1,000"}, heavy=True),
    "waiting": Scenario(
        resting.waiting,
        100_000,
        {"statements_per_s": "≤ 5 a second", "memory_growth_mb": "no growth", "p50_ratio": "≤ 1.5 × few runs"},
        heavy=True,
    ),
    "inspection": Scenario(inspecting.inspection, 1_000_000, {"slowest_page_ms": "≤ 50 ms"}, heavy=True),
    "ui": Scenario(dashboard.pages, 1_000_000, {"slowest_p95_ms": "p95 ≤ 200 ms"}, heavy=True),
    "soak": Scenario(load.soak, 100_000, {"growth_mb": "≤ 20 MB"}, heavy=True),
    "pinned": Scenario(load.pinned, 600, {"p99_ratio": "p99 ≤ 2 × the first minute's"}, heavy=True),
}

LIGHT = [name for name, scenario in SCENARIOS.items() if not scenario.heavy]
