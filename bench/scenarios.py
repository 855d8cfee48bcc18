"""How fast runs are: many at once, one at a time, and what the server can do at most."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

from bench.figures import Figures, quantiles
from bench.work import count_unfinished, until, watching, working
from bench.worker import drained_by_process
from bench.workflows import event, five, one
from pgworkflows import WorkflowEngine
from pgworkflows.embedded.binaries import find_binaries


def throughput(engine: WorkflowEngine, runs: int) -> Figures:
    """`runs` runs of five steps, started one by one without a worker, then drained by a worker in this process, with
    all that it is before and after; and as many by a worker process that has worked before, from its first claim on."""
    began = time.perf_counter()
    for _ in range(runs):
        engine.start_workflow(five)
    started_s = time.perf_counter() - began
    began = time.perf_counter()
    engine.worker().run_until_idle()
    inside_s = time.perf_counter() - began
    drained_s = drained_by_process(engine, five, runs)
    assert count_unfinished(engine) == 0
    return {
        "start_per_s": runs / started_s,
        "runs_per_s": runs / drained_s,
        "steps_per_s": 5 * runs / drained_s,
        "in_process_steps_per_s": 5 * runs / inside_s,
    }


def latency(engine: WorkflowEngine, runs: int) -> Figures:
    """One run of one step at a time, the worker idle: start → completed."""
    seen: list[float] = []
    with working(engine), watching(engine) as status:
        for _ in range(runs):
            began = time.perf_counter()
            run = engine.start_workflow(one)
            until(status, run.id, "completed")
            seen.append(time.perf_counter() - began)
            time.sleep(0.02)
    return quantiles(seen)


def event_latency(engine: WorkflowEngine, runs: int) -> Figures:
    """A run waits; event sent → completed."""
    seen: list[float] = []
    with working(engine), watching(engine) as status:
        for _ in range(runs):
            run = engine.start_workflow(event)
            until(status, run.id, "waiting")
            time.sleep(0.02)
            began = time.perf_counter()
            engine.trigger_event(run.id, "go", {"a": 1})
            until(status, run.id, "completed")
            seen.append(time.perf_counter() - began)
    return quantiles(seen)


def limit(url: str, clients: int, seconds: int) -> Figures:
    """What the server can do at most in this way: single-row inserts, each with its own commit, by pgbench."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "create table if not exists limit_of_inserts (run_id uuid, step_id text, output jsonb,"
            " started_at timestamptz default now(), completed_at timestamptz default now(),"
            " primary key (run_id, step_id))"
        )
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "limit.sql"
        script.write_text(
            "insert into limit_of_inserts (run_id, step_id, output)"
            " values (gen_random_uuid(), 'step-1', '{\"ok\": true}');\n"
        )
        command = [
            pgbench(),
            "-n",
            "-f",
            str(script),
            "-c",
            str(clients),
            "-j",
            "1",
            "-T",
            str(seconds),
            "-M",
            "prepared",
        ]
        out = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    [line] = [line for line in out.splitlines() if line.startswith("tps")]
    return {"inserts_per_s": float(line.split()[2])}


def pgbench() -> str:
    """The program pgbench that comes with the server's programs. Raises FileNotFoundError."""
    binaries = find_binaries()
    program = None if binaries is None else binaries.directory / "pgbench"
    if program is None or not program.exists():
        raise FileNotFoundError("pgbench")
    return str(program)
