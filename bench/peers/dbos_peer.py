"""DBOS Transact. Its setting is `queue`, a queue without limits that is polled as often as it comes, or `direct`, no
queue: the process that starts a run works on it at once, in a thread."""

# Its own environment has dbos; the one that checks this file has not.
# pyright: reportMissingImports=false
# mypy: disable-error-code="import-not-found,untyped-decorator"

from __future__ import annotations

import time
from typing import Any

from dbos import DBOS

from bench.figures import Figures, quantiles
from bench.peers.script import Watch, answer, database_url, pace, rates, setting

QUEUE = "bench"
UNFINISHED = "select count(*) from dbos.workflow_status where status <> 'SUCCESS'"
STATUS = "select status from dbos.workflow_status where workflow_uuid = %s"

stamps: list[float] = []


@DBOS.step()
def noop() -> Any:
    """A step that does nothing."""
    return {"ok": True}


@DBOS.workflow()
def five() -> Any:
    """Five steps that do nothing."""
    for _ in range(5):
        noop()
    return {"done": True}


@DBOS.workflow()
def one() -> Any:
    """One step that does nothing."""
    noop()
    return {"done": True}


@DBOS.workflow()
def event() -> Any:
    """A wait for an event."""
    return DBOS.recv("go", timeout_seconds=60)


@DBOS.workflow()
def long(steps: int) -> None:
    """As many steps as the input says."""
    for _ in range(steps):
        noop()
        stamps.append(time.perf_counter())


def launch(listen_to: str = QUEUE) -> None:
    """Begin anew, working on one queue."""
    DBOS.destroy()
    DBOS(
        config={
            "name": "bench",
            "system_database_url": database_url(),
            "log_level": "ERROR",
            "run_admin_server": False,
        }
    )
    DBOS.listen_queues([listen_to])
    DBOS.launch()
    DBOS.register_queue(QUEUE)


def start(work: Any, *arguments: Any) -> str:
    """Start a run in the way of the setting; its id."""
    if setting() == "queue":
        handle = DBOS.enqueue_workflow(QUEUE, work, *arguments)
    else:
        handle = DBOS.start_workflow(work, *arguments)
    return str(handle.workflow_id)


def throughput(runs: int) -> Figures:
    """Started while nobody listens to the queue, then drained. Without a queue a run is worked on from its start."""
    launch(listen_to="none")
    watch = Watch(database_url())
    began = time.perf_counter()
    for _ in range(runs):
        start(five)
    starting_s = time.perf_counter() - began
    if setting() == "queue":
        launch()
        began = time.perf_counter()
    watch.until(0, UNFINISHED, pause_s=0.02)
    return rates(runs, starting_s, time.perf_counter() - began)


def settled() -> Watch:
    """At work, and a first run done."""
    launch()
    watch = Watch(database_url())
    watch.until("SUCCESS", STATUS, start(one))
    return watch


def latency(runs: int) -> Figures:
    """One run of one step at a time."""
    watch = settled()
    seen: list[float] = []
    for _ in range(runs):
        began = time.perf_counter()
        watch.until("SUCCESS", STATUS, start(one))
        seen.append(time.perf_counter() - began)
        time.sleep(0.02)
    return quantiles(seen)


def event_latency(runs: int) -> Figures:
    """A run waits; event sent → completed."""
    watch = settled()
    seen: list[float] = []
    for _ in range(runs):
        run = str(DBOS.start_workflow(event).workflow_id)
        time.sleep(0.2)  # nothing in the database tells that it waits
        began = time.perf_counter()
        DBOS.send(run, {"a": 1}, "go")
        watch.until("SUCCESS", STATUS, run)
        seen.append(time.perf_counter() - began)
    return quantiles(seen)


def long_run(steps: int) -> Figures:
    """One run of many steps."""
    watch = settled()
    watch.until("SUCCESS", STATUS, start(long, steps), pause_s=0.02)
    return pace(stamps, steps)


if __name__ == "__main__":
    answer({"throughput": throughput, "latency": latency, "event": event_latency, "long": long_run})
