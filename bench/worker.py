"""A worker in a process of its own: `python -m bench.worker` works until its standard input ends, on $DATABASE_URL."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import psycopg

from bench.work import UNFINISHED, value
from bench.workflows import WORKFLOWS
from pgworkflows import Worker, Workflow, WorkflowEngine, claims


@dataclass(frozen=True)
class WorkerProcess:
    """A worker process, and what it takes of memory."""

    process: subprocess.Popen[bytes]

    @property
    def memory_mb(self) -> float:
        """What it has in memory now."""
        answer = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(self.process.pid)], capture_output=True, text=True, check=True
        )
        return int(answer.stdout) / 1024

    @property
    def peak_mb(self) -> float:
        """The most it has had in memory; where the system does not tell, what it has now."""
        status = Path(f"/proc/{self.process.pid}/status")
        if not status.exists():
            return self.memory_mb
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024


@contextmanager
def worker_processes(engine: WorkflowEngine, count: int) -> Iterator[list[WorkerProcess]]:
    """So many worker processes, registered and asleep."""
    with ExitStack() as stack:
        workers = [stack.enter_context(_process(engine)) for _ in range(count)]
        while value(engine, "select count(distinct worker_id) from pgworkflows.sleepers") < count:
            time.sleep(0.05)
        yield workers


@contextmanager
def worker_process(engine: WorkflowEngine, claims_to: Path | None = None) -> Iterator[WorkerProcess]:
    """One, which notes its claims in a file if that is asked for."""
    with _process(engine, claims_to) as worker:
        while value(engine, "select count(*) from pgworkflows.sleepers") < 1:
            time.sleep(0.05)
        yield worker


def drained_by_process(engine: WorkflowEngine, workflow: Workflow[None, Any], runs: int) -> float:
    """How long a worker process takes for so many runs that are there at once, in seconds, from its first claim on. It
    has worked on as many before."""
    with worker_process(engine), psycopg.connect(engine.conninfo, autocommit=True) as conn:
        took_s = 0.0
        for _ in range(2):
            first, *_ = engine.start_workflows(workflow, [None] * runs)
            while conn.execute(UNFINISHED).fetchone() is not None:
                time.sleep(0.005)
            took = conn.execute(
                "select extract(epoch from clock_timestamp() - min(started_at)) from pgworkflows.runs where id >= %s",
                (first.id,),
            )
            took_s = float(took.fetchall()[0][0])
    return took_s


@contextmanager
def _process(engine: WorkflowEngine, claims_to: Path | None = None) -> Iterator[WorkerProcess]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.worker", *([] if claims_to is None else [str(claims_to)])],
        stdin=subprocess.PIPE,
        env={**os.environ, "DATABASE_URL": engine.conninfo},
    )
    assert process.stdin is not None
    try:
        yield WorkerProcess(process)
    finally:
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> None:
    with ExitStack() as stack:
        if len(sys.argv) > 1:
            stack.enter_context(noting_claims(stack.enter_context(Path(sys.argv[1]).open("w"))))
        worker = stack.enter_context(WorkflowEngine(workflows=WORKFLOWS)).worker()
        gc.freeze()  # as the command `pgworkflows worker` does
        threading.Thread(target=stop_at_the_end_of_input, args=(worker,), daemon=True).start()
        worker.run_forever()


def stop_at_the_end_of_input(worker: Worker) -> None:
    """However the one who started it ends, the worker does not outlive it."""
    sys.stdin.read()
    worker.stop()


@contextmanager
def noting_claims(file: TextIO) -> Iterator[None]:
    """A line for each claim: when it was answered, how many milliseconds that took, how many runs it brought."""
    claim = claims.claim

    def noted(*args: Any, **kwargs: Any) -> claims.Claim:
        began = time.perf_counter()
        answer = claim(*args, **kwargs)
        took_s = time.perf_counter() - began
        file.write(f"{time.time()} {took_s * 1000:.3f} {len(answer.runs)}\n")
        return answer

    with mock.patch.object(claims, "claim", noted):
        yield


if __name__ == "__main__":
    main()
