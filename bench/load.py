"""Much to do: a long backlog, several worker processes, many runs one after the other, a snapshot that stays open."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psycopg

from bench.figures import Figures, quantile
from bench.work import count_unfinished, drain, fill_pending, settle
from bench.worker import worker_process, worker_processes
from bench.workflows import WORKFLOWS, five, one
from pgworkflows import WorkflowEngine, claims
from pgworkflows.worker_connection import WorkerConnection

FEW = 1000
CLAIMS = 200
CLAIMED = 16
MANY = "pgworkflows_many"

SOAK_WARM_UP = 5000
SOAK_BATCH = 2000

PINNED_RUNS_PER_S = 300


def backlog(engine: WorkflowEngine, pending: int) -> Figures:
    """Claims of sixteen runs where a thousand are pending, and by turns in a second schema where so many are."""
    with psycopg.connect(engine.conninfo, autocommit=True) as conn:
        conn.execute(f"drop schema if exists {MANY} cascade".encode())
    with WorkflowEngine(engine.conninfo, schema=MANY, workflows=WORKFLOWS) as crowded:
        crowded.migrate()
        began = time.perf_counter()
        fill_pending(engine, FEW)
        fill_pending(crowded, pending)
        filled_s = time.perf_counter() - began
        settle(engine)
        settle(crowded)
        few, many = Claimant(engine), Claimant(crowded)
        for _ in range(20):
            few.claim()
            many.claim()
        seen = [(few.claim(), many.claim()) for _ in range(CLAIMS)]
        few.conn.close()
        many.conn.close()
    with psycopg.connect(engine.conninfo, autocommit=True) as conn:
        conn.execute(f"drop schema {MANY} cascade".encode())
    few_ms, many_ms = ([pair[place] * 1000 for pair in seen] for place in (0, 1))
    return {
        "fill_s": filled_s,
        "few_claim_ms": statistics.median(few_ms),
        "claim_ms": statistics.median(many_ms),
        "ratio": statistics.median(many_ms) / statistics.median(few_ms),
        "few_claim_p95_ms": quantile(few_ms, 0.95),
        "claim_p95_ms": quantile(many_ms, 0.95),
    }


class Claimant:
    """Claims as a worker does, and gives back what it got, so that the backlog stays."""

    def __init__(self, engine: WorkflowEngine) -> None:
        self.conn = WorkerConnection(engine.conninfo, engine.schema)
        self._worker_id = uuid4()
        self._lanes = ("default",)
        claims.register_worker(
            self.conn,
            self._worker_id,
            hostname="bench",
            pid=os.getpid(),
            queues=self._lanes,
            has_lock=False,
            lease=timedelta(hours=1),
        )

    def claim(self) -> float:
        """How long a claim took, in seconds."""
        workflows = tuple(workflow.id for workflow in WORKFLOWS)
        began = time.perf_counter()
        claim = claims.claim(self.conn, self._worker_id, self._lanes, workflows, CLAIMED, alone=True, awake=False)
        took_s = time.perf_counter() - began
        assert len(claim.runs) == CLAIMED
        claims.release_unheld(self.conn, self._worker_id, ())
        return took_s


def processes(engine: WorkflowEngine, runs: int) -> Figures:
    """So many runs of five steps, there at once, worked off by one, two and four worker processes."""
    figures: Figures = {}
    for count in (1, 2, 4):
        with worker_processes(engine, count):
            engine.start_workflows(five, [None] * (runs // 4))
            drain(engine)
            engine.start_workflows(five, [None] * runs)
            began, left = time.perf_counter(), count_unfinished(engine)
            drain(engine)
            figures[f"steps_per_s_{count}"] = 5 * left / (time.perf_counter() - began)
    return figures


def soak(engine: WorkflowEngine, runs: int) -> Figures:
    """So many runs of five steps through one worker process: what it has in memory after the first and after all."""
    with worker_process(engine) as worker:
        work_through(engine, SOAK_WARM_UP)
        first_mb = worker.memory_mb
        began = time.perf_counter()
        work_through(engine, runs)
        passed_s = time.perf_counter() - began
        last_mb = worker.memory_mb
        return {
            "runs_per_s": runs / passed_s,
            "first_mb": first_mb,
            "last_mb": last_mb,
            "growth_mb": last_mb - first_mb,
            "peak_mb": worker.peak_mb,
        }


def work_through(engine: WorkflowEngine, runs: int) -> None:
    """Start so many runs and see them finished, a few thousand under way at a time."""
    for _ in range(0, runs, SOAK_BATCH):
        engine.start_workflows(five, [None] * SOAK_BATCH)
        while count_unfinished(engine) > SOAK_BATCH:
            time.sleep(0.02)
    drain(engine)


def pinned(engine: WorkflowEngine, seconds: int) -> Figures:
    """300 runs a second while another session keeps a snapshot, under which nothing dead can be removed: claims in the
    first and in the last tenth of the time."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "claims"
        with worker_process(engine, claims_to=file), psycopg.connect(engine.conninfo) as pinning:
            start_evenly(engine, PINNED_RUNS_PER_S, 3)
            pinning.execute("set transaction isolation level repeatable read")
            pinning.execute("select count(*) from pgworkflows.queue")
            began = time.time()
            start_evenly(engine, PINNED_RUNS_PER_S, seconds)
            ended = time.time()
            left = count_unfinished(engine)
        noted = [tuple(map(float, line.split())) for line in file.read_text().splitlines()]
    window_s = seconds / 10
    first = [(took_ms, runs) for at, took_ms, runs in noted if began <= at < began + window_s]
    last = [(took_ms, runs) for at, took_ms, runs in noted if ended - window_s <= at < ended]
    figures = {
        "runs_per_s": PINNED_RUNS_PER_S * seconds / (ended - began),
        "unfinished": left,
        **claim_figures("first", first),
        **claim_figures("last", last),
    }
    return {**figures, "p99_ratio": figures["last_p99_ms"] / figures["first_p99_ms"]}


def claim_figures(name: str, noted: Sequence[tuple[float, float]]) -> Figures:
    """How many claims, how long they took, and how many runs they brought."""
    took_ms = [took for took, _ in noted]
    return {
        f"{name}_claims": len(noted),
        f"{name}_p50_ms": quantile(took_ms, 0.5),
        f"{name}_p99_ms": quantile(took_ms, 0.99),
    }


def start_evenly(engine: WorkflowEngine, per_second: int, seconds: int) -> None:
    """Start runs of one step at an even pace, catching up after a delay."""
    began = time.monotonic()
    for number in range(per_second * seconds):
        ahead_s = began + number / per_second - time.monotonic()
        if ahead_s > 0:
            time.sleep(ahead_s)
        engine.start_workflow(one)
