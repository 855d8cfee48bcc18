"""Runs of many steps: what the last step costs against the first, and what it takes to go on after so many."""

from __future__ import annotations

import statistics
import time

import psycopg

from bench.figures import Figures
from bench.work import bare_insert, fill_history, rate, settle, until, watching, working
from bench.worker import worker_process
from bench.workflows import many
from pgworkflows import WorkflowEngine

EDGE = 100
AGAIN = 10


def long_run(engine: WorkflowEngine, steps: int) -> Figures:
    """One run of so many steps: a step among the first and the last hundred, and on the whole against a bare insert."""
    with working(engine), bare_insert(engine) as insert:
        before = rate([insert], 0.5)
        run = engine.start_workflow(many, steps)
        engine.wait_for_run(run.id, timeout=300)
        after = rate([insert], 0.5)
    with psycopg.connect(engine.conninfo) as conn:
        rows = conn.execute(
            "select extract(epoch from completed_at)::float8 from pgworkflows.steps"
            " where run_id = %s order by position",
            (run.id,),
        ).fetchall()
    ended = [float(row[0]) for row in rows]
    assert len(ended) == steps
    first_ms = (ended[EDGE] - ended[0]) / EDGE * 1000
    last_ms = (ended[-1] - ended[-1 - EDGE]) / EDGE * 1000
    step_ms = (ended[-1] - ended[0]) / (steps - 1) * 1000
    insert_ms = 1000 / ((before + after) / 2)
    return {
        "first_100_ms": first_ms,
        "last_100_ms": last_ms,
        "last_per_first": last_ms / first_ms,
        "step_ms": step_ms,
        "insert_ms": insert_ms,
        "step_per_insert": step_ms / insert_ms,
    }


def history(engine: WorkflowEngine, steps: int) -> Figures:
    """A run that waits behind so many finished steps: event → completed, and the memory that takes; beside it the same
    behind ten, and what the worker has kept after a few more such runs, one at a time."""
    with worker_process(engine) as worker, watching(engine) as status:

        def resume(finished: int) -> float:
            run_id = fill_history(engine, finished)
            settle(engine)
            time.sleep(0.2)
            began = time.perf_counter()
            engine.trigger_event(run_id, "go")
            until(status, run_id, "completed")
            return (time.perf_counter() - began) * 1000

        resume(10)
        short_ms = resume(10)
        before_mb = worker.peak_mb
        first_ms = resume(steps)
        peak_mb = worker.peak_mb
        again_ms = [resume(steps) for _ in range(AGAIN)]
        return {
            "short_ms": short_ms,
            "resume_ms": first_ms,
            "again_ms": statistics.median(again_ms),
            "memory_mb": before_mb,
            "peak_growth_mb": peak_mb - before_mb,
            "kb_per_step": (peak_mb - before_mb) * 1024 / steps,
            "again_growth_mb": worker.memory_mb - peak_mb,
        }
