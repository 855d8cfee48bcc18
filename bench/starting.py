"""How fast runs are started: alone, in a crowd, in bulk, and what waking workers costs those who start."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg

from bench.figures import Figures
from bench.work import bare_insert, rate
from bench.worker import worker_process
from bench.workflows import five, one
from pgworkflows import WorkflowEngine

CALLERS = 8
SLICES = 4
IN_BULK = 1000

NEVER_NOTIFY = """
create or replace function pgworkflows.wake_workers(queue text, always boolean) returns void
language plpgsql volatile as $$ begin end $$
"""


def start(engine: WorkflowEngine, milliseconds: int) -> Figures:
    """Starts without a worker, and bare inserts by as many callers, in slices of so many milliseconds by turns."""
    seconds = milliseconds / 1000
    seen: dict[str, list[float]] = {name: [] for name in ("inserts_1", "starts_1", "inserts_8", "starts_8", "bulk")}

    def begin() -> None:
        engine.start_workflow(five)

    with ExitStack() as stack:
        inserts = [stack.enter_context(bare_insert(engine)) for _ in range(CALLERS)]
        rate([begin] * CALLERS, 0.2)
        for _ in range(SLICES):
            seen["inserts_1"].append(rate(inserts[:1], seconds))
            seen["starts_1"].append(rate([begin], seconds))
            seen["inserts_8"].append(rate(inserts, seconds))
            seen["starts_8"].append(rate([begin] * CALLERS, seconds))
            began = time.perf_counter()
            engine.start_workflows(five, [None] * IN_BULK)
            seen["bulk"].append(IN_BULK / (time.perf_counter() - began))
    means = {name: statistics.fmean(rates) for name, rates in seen.items()}
    return {
        "insert_per_s": means["inserts_1"],
        "start_per_s": means["starts_1"],
        "start_per_insert": means["starts_1"] / means["inserts_1"],
        "insert_8_per_s": means["inserts_8"],
        "start_8_per_s": means["starts_8"],
        "start_8_per_insert": means["starts_8"] / means["inserts_8"],
        "bulk_per_s": means["bulk"],
        "bulk_per_insert": means["bulk"] / means["inserts_1"],
    }


def notify(engine: WorkflowEngine, milliseconds: int) -> Figures:
    """Starts by eight callers while a worker works them off, as they are and with NOTIFY taken out, by turns."""

    def begin() -> None:
        engine.start_workflow(one)

    seen: dict[str, list[float]] = {"with": [], "without": []}
    with worker_process(engine):
        rate([begin] * CALLERS, 0.5)
        for turn in range(SLICES):
            for name in ("with", "without") if turn % 2 == 0 else ("without", "with"):
                with ExitStack() as stack:
                    if name == "without":
                        stack.enter_context(without_notify(engine))
                    seen[name].append(rate([begin] * CALLERS, milliseconds / 1000))
    started, silently = statistics.fmean(seen["with"]), statistics.fmean(seen["without"])
    return {"start_8_per_s": started, "without_per_s": silently, "ratio": started / silently}


@contextmanager
def without_notify(engine: WorkflowEngine) -> Iterator[None]:
    """Nothing sends a NOTIFY meanwhile."""
    with psycopg.connect(engine.conninfo, autocommit=True) as conn:
        row = conn.execute("select pg_get_functiondef('pgworkflows.wake_workers'::regproc)").fetchone()
        assert row is not None
        conn.execute(NEVER_NOTIFY)
        yield
        conn.execute(str(row[0]).encode())
