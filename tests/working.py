"""Workers for tests: in a thread, in a process of their own, and played by hand over SQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import psycopg
from bouncing import pooled
from waiting import until

from pgworkflows import Worker, WorkflowEngine, claims, current_step
from pgworkflows.claims import Claim, ClaimedRun
from pgworkflows.columns import row_of
from pgworkflows.documents import piece_of
from pgworkflows.entries import Entry
from pgworkflows.journal import Answer, statement_for, write
from pgworkflows.worker_connection import WorkerConnection

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "programs" / "worker.py"


def rows(url: str, query: str, *params: object) -> list[tuple[Any, ...]]:
    """What a statement returns, on a connection of its own."""
    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(query.encode(), params)
        return cursor.fetchall() if cursor.description else []


def value(url: str, query: str, *params: object) -> Any:
    """The one value that a statement returns."""
    [(found,)] = rows(url, query, *params)
    return found


def make_due(url: str) -> None:
    """Let the time come of every wait, retry and delayed start."""
    rows(
        url,
        "with due as (update pgworkflows.queue set wake_at = now() where wake_at is not null) "
        "update pgworkflows.steps set wake_at = now() where status in ('waiting', 'retrying') and wake_at is not null",
    )


def run_out_of_time(url: str) -> None:
    """Let the timeout come of every run that has one."""
    rows(
        url,
        "with late as (update pgworkflows.queue set timeout_at = now() where timeout_at is not null) "
        "update pgworkflows.runs set timeout_at = now() where timeout_at is not null",
    )


def await_heartbeats(url: str, number: int = 1) -> None:
    """Wait until the only worker's heart has beaten so many times."""
    before = value(url, "select beats from pgworkflows.workers")
    until(lambda: value(url, "select beats from pgworkflows.workers") >= before + number, f"{number} heartbeats come")


@contextmanager
def working(engine: WorkflowEngine, **options: Any) -> Generator[Worker]:
    """A worker in a thread, stopped at the end; it is registered once this is entered."""
    worker = engine.worker(**options)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            worker.run_forever()
        except BaseException as failure:  # told to the test below
            failures.append(failure)

    before = set(rows(engine.conninfo, "select id from pgworkflows.workers"))
    thread = threading.Thread(target=run, name="worker under test")
    thread.start()
    try:
        until(
            lambda: failures or set(rows(engine.conninfo, "select id from pgworkflows.workers")) - before,
            "the worker registers",
        )
        yield worker
    finally:
        worker.stop()
        thread.join(60)
        assert not thread.is_alive()
    assert not failures, failures


def children(pid: int) -> set[int]:
    """The processes that a process has begun."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return {int(word) for word in found.stdout.split()}


class Door:
    """A step function that is held until the door opens."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.open = threading.Event()
        self.entered = 0
        self.cancelled: list[bool] = []

    def enter(self) -> str:
        self.entered += 1
        self.inside.set()
        assert self.open.wait(20)
        self.cancelled.append(current_step().cancelled)
        return "through the door"


class WorkerProcess:
    """`worker.run_forever()` in a process, with the workflows of tests/programs/stories.py, or those of `release.py` in
    a folder."""

    def __init__(self, url: str, way: str | None = None, release: Path | None = None, **options: Any) -> None:
        """`way`: another connection string, by which it gets there."""
        self._url = url
        self._log = tempfile.NamedTemporaryFile("a")  # noqa: SIM115  (closed when the process has ended)
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), way or url, json.dumps(options), *([release] if release else [])],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=self._log,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def registered(self) -> list[tuple[Any, ...]]:
        """The rows of this process among the live workers."""
        return rows(self._url, "select id from pgworkflows.workers where pid = %s", self.pid)

    def await_registration(self) -> UUID:
        """Wait until it works: its worker's id."""
        [(worker_id,)] = until(self.registered, "the process registers its worker")
        assert isinstance(worker_id, UUID)
        return worker_id

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def said(self) -> str:
        """What it has logged so far."""
        return Path(self._log.name).read_text()

    def end(self) -> int:
        """Wait for its end: the exit status."""
        return self.process.wait(30)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(30)

    def forget(self) -> None:
        """Whatever is left of it."""
        self.kill()
        self._log.close()


@contextmanager
def worker_processes(url: str) -> Generator[WorkerProcesses]:
    """Starts worker processes; whatever is left of them is killed at the end."""
    processes = WorkerProcesses(url)
    rows(
        url,
        "create table if not exists public.calls "
        "(n bigint generated always as identity, run_id uuid, step_id text, attempt integer, pid integer)",
    )
    rows(url, "create table if not exists public.gates (name text primary key)")
    try:
        yield processes
    finally:
        for process in processes.started:
            process.forget()


class WorkerProcesses:
    def __init__(self, url: str) -> None:
        self._url = url
        self.started: list[WorkerProcess] = []

    def start(self, way: str | None = None, release: Path | None = None, **options: Any) -> WorkerProcess:
        if pooled():
            options = {"lease": "4s", **options}  # without their locks the dead are dead after that
        process = WorkerProcess(self._url, way, release, **options)
        self.started.append(process)
        return process

    def calls(self, run_id: UUID | None = None) -> list[tuple[str, int]]:
        """The calls of step functions in all processes, in order: step id and process id."""
        if run_id is None:
            return rows(self._url, "select step_id, pid from public.calls order by n")
        return rows(self._url, "select step_id, pid from public.calls where run_id = %s order by n", run_id)

    def open_gate(self, name: str) -> None:
        """Let the steps go on that wait at this gate."""
        rows(self._url, "insert into public.gates values (%s) on conflict do nothing", name)


class HandWorker:
    """A worker without threads: its statements are sent one by one, so that a test decides what comes between."""

    def __init__(self, url: str, workflows: Sequence[str], *, has_lock: bool = False, lease_s: float = 30.0) -> None:
        self.id = uuid4()
        self.workflows = workflows
        self.connection = WorkerConnection(url, "pgworkflows")
        claims.register_worker(
            self.connection,
            self.id,
            hostname="by hand",
            pid=0,
            queues=["default"],
            has_lock=has_lock,
            lease=timedelta(seconds=lease_s),
        )

    def claim(self, capacity: int = 10, *, alone: bool = True) -> Claim:
        return claims.claim(self.connection, self.id, ["default"], self.workflows, capacity, alone=alone, awake=False)

    def claim_one(self) -> ClaimedRun:
        [run] = self.claim().runs
        return run

    def write(self, *entries: Entry) -> list[Answer]:
        return write(self.connection, self.id, entries)

    def fly(self, *entries: Entry) -> Any:
        """Write as a flight does, what it can by columns: the server's answer, which is None if that is all."""
        statement, params = statement_for(self.id, entries, [row_of(entry) or piece_of(entry) for entry in entries])
        return self.connection.fetch(statement, params)

    def die(self) -> None:
        """Be struck from the live, as by a peer."""
        claims.unregister_worker(self.connection, self.id)

    def take_over(self) -> int:
        return claims.take_over(self.connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.connection.close()
