"""pgworkflows on the work that the peers do. It has no setting: everything is left as it comes."""

from __future__ import annotations

import time
from typing import Any

from bench import scenarios
from bench.figures import Figures
from bench.peers.script import answer, database_url, pace
from bench.workflows import WORKFLOWS, noop, one
from pgworkflows import Step, WorkflowEngine, workflow

stamps: list[float] = []


@workflow("long")
def long(step: Step, steps: int) -> Any:
    """As many steps as the input says."""
    for number in range(steps):
        yield step.run(f"s{number}", noop)
        stamps.append(time.perf_counter())


def long_run(engine: WorkflowEngine, steps: int) -> Figures:
    """One run of many steps, the worker otherwise idle."""
    engine.start()
    engine.wait_for_run(engine.start_workflow(one).id, timeout=30)
    run = engine.start_workflow(long, steps)
    engine.wait_for_run(run.id, timeout=120)
    return pace(stamps, steps)


if __name__ == "__main__":
    with WorkflowEngine(database_url(), workflows=[*WORKFLOWS, long]) as engine:
        engine.migrate()
        answer(
            {
                "throughput": lambda n: scenarios.throughput(engine, n),
                "latency": lambda n: scenarios.latency(engine, n),
                "event": lambda n: scenarios.event_latency(engine, n),
                "long": lambda n: long_run(engine, n),
            }
        )
