"""Absurd. Its setting is the worker's concurrency, which is its batch size as well."""

# Its own environment has absurd_sdk; the one that checks this file has not.
# pyright: reportMissingImports=false
# mypy: disable-error-code="import-not-found,untyped-decorator"

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from absurd_sdk import Absurd

from bench.figures import Figures, quantiles
from bench.peers.script import Watch, answer, database_url, pace, rates, setting

QUEUE = "default"
UNFINISHED = "select count(*) from absurd.t_default where state <> 'completed'"
STATE = "select state from absurd.t_default where task_id = %s"

stamps: list[float] = []
app = Absurd(database_url(), queue_name=QUEUE)
client = Absurd(database_url(), queue_name=QUEUE)


@app.register_task("five")
def five(_params: Any, ctx: Any) -> Any:
    """Five steps that do nothing."""
    for number in range(5):
        ctx.step(f"s{number}", noop)
    return {"done": True}


@app.register_task("one")
def one(_params: Any, ctx: Any) -> Any:
    """One step that does nothing."""
    ctx.step("s", noop)
    return {"done": True}


@app.register_task("event")
def event(params: Any, ctx: Any) -> Any:
    """A wait for an event."""
    return ctx.await_event(params["event"])


@app.register_task("long")
def long(params: Any, ctx: Any) -> None:
    """As many steps as the input says."""
    for number in range(params["steps"]):
        ctx.step(f"s{number}", noop)
        stamps.append(time.perf_counter())


def noop() -> Any:
    """A step's function that does nothing."""
    return {"ok": True}


def start(task: str, **params: Any) -> Any:
    """Start a run; its id."""
    return client.spawn(task, params, queue=QUEUE)["task_id"]


def work() -> None:
    """A worker in a thread of this process."""
    size = int(setting())
    threading.Thread(target=lambda: app.start_worker(concurrency=size, batch_size=size), daemon=True).start()


def throughput(runs: int) -> Figures:
    """Started without a worker, then drained."""
    watch = Watch(database_url())
    began = time.perf_counter()
    for _ in range(runs):
        start("five")
    started = time.perf_counter()
    work()
    watch.until(0, UNFINISHED, pause_s=0.02)
    return rates(runs, started - began, time.perf_counter() - started)


def settled() -> Watch:
    """At work, and a first run done."""
    work()
    watch = Watch(database_url())
    watch.until("completed", STATE, start("one"))
    return watch


def latency(runs: int) -> Figures:
    """One run of one step at a time."""
    watch = settled()
    seen: list[float] = []
    for _ in range(runs):
        began = time.perf_counter()
        watch.until("completed", STATE, start("one"))
        seen.append(time.perf_counter() - began)
        time.sleep(0.02)
    return quantiles(seen)


def event_latency(runs: int) -> Figures:
    """A run waits; event sent → completed."""
    watch = settled()
    seen: list[float] = []
    for _ in range(runs):
        name = f"go-{uuid4()}"
        task = start("event", event=name)
        watch.until("sleeping", STATE, task)
        time.sleep(0.02)
        began = time.perf_counter()
        client.emit_event(name, {"a": 1})
        watch.until("completed", STATE, task)
        seen.append(time.perf_counter() - began)
    return quantiles(seen)


def long_run(steps: int) -> Figures:
    """One run of many steps."""
    watch = settled()
    watch.until("completed", STATE, start("long", steps=steps), pause_s=0.02)
    return pace(stamps, steps)


if __name__ == "__main__":
    subprocess.run(
        [Path(sys.executable).with_name("absurdctl"), "init"],
        env={**os.environ, "ABSURD_DATABASE_URL": database_url()},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    app.create_queue(QUEUE)
    answer({"throughput": throughput, "latency": latency, "event": event_latency, "long": long_run})
