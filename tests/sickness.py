"""A server that can be made sick in earnest, a worker at work on it, and a ledger of what its steps did."""

from __future__ import annotations

import gc
import logging
import os
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from waiting import until
from working import rows, working

from pgworkflows import EmbeddedPostgres, Step, Steps, WorkflowEngine, current_step, workflow
from pgworkflows.embedded.place import CONTROL
from pgworkflows.runner import Execution

THREADS = 4
MAX_RUNS = 8
STEPS = ("a", "b", "c")
ROLES = {
    "claiming runs",
    "writing the outcomes of steps",
    "the worker's heartbeat",
    "listening for new work",
}
"""The threads of a worker that speak to the server all the time, as its log calls them."""


class Recorder(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


class Patient:
    """A worker in a thread, with runs of three steps. Each call is one line of a file, for the database is sick; step
    b waits at a door. What the worker logs goes to a logger of its own."""

    def __init__(self, url: str, ledger: Path, name: str = "patient", **options: Any) -> None:
        self.url = url
        self.door = threading.Event()
        self.at_door: set[UUID] = set()
        self.started: list[UUID] = []
        self.records: list[logging.LogRecord] = []
        self._ledger = ledger
        self._ledger.touch()
        self._size = 0
        self._options = {"threads": THREADS, "max_runs": MAX_RUNS, **options}
        self._name = name
        logger = logging.getLogger(f"sick.{name}")
        logger.setLevel(logging.INFO)
        logger.handlers = [Recorder(self.records)]
        self.engine = WorkflowEngine(url, workflows=[self._workflow()], logger=logger)

    def _workflow(self) -> Any:
        @workflow("patient")
        def patient(step: Step, input: int) -> Steps[list[str]]:
            notes: list[str] = []
            for name in STEPS:
                notes.append((yield step.run(name, self._note, input)))
            return notes

        return patient

    def _note(self, size: int) -> str:
        """Note the call; wait at the door; something that does not compress."""
        current = current_step()
        line = f"{current.run_id} {current.step_id} {self._name}\n"
        fd = os.open(self._ledger, os.O_WRONLY | os.O_APPEND)
        os.write(fd, line.encode())
        os.close(fd)
        if current.step_id == "b":
            self.at_door.add(current.run_id)
            assert self.door.wait(60)
        return self._name + os.urandom(size // 2).hex()

    @contextmanager
    def at_work(self, *, runs: int = 20, size: int = 0) -> Generator[Any]:
        """With runs at the door, and more than it may hold waiting for it."""
        self._size = size
        with self.engine:
            self.start(runs)
            with working(self.engine, **self._options) as worker:
                try:
                    until(lambda: len(self.at_door) == THREADS, "its threads are in steps")
                    until(lambda: worker.health().ready, "its heart beats")
                    yield worker
                finally:
                    self.door.set()

    def start(self, runs: int) -> None:
        self.started += [self.engine.start_workflow("patient", self._size).id for _ in range(runs)]

    def calls(self) -> Counter[tuple[str, str]]:
        """How often the function of each step of each run was called."""
        return Counter((line.split()[0], line.split()[1]) for line in self._ledger.read_text().splitlines())

    def said(self, what: str = "") -> list[str]:
        """What it has logged as a warning or worse."""
        return [
            record.getMessage()
            for record in list(self.records)
            if record.levelno >= logging.WARNING and re.search(what, record.getMessage())
        ]

    def complaining(self) -> set[str]:
        """The roles that have said that something is wrong."""
        found = (re.match("pgworkflows: (.*) failed, trying again: .", message) for message in self.said())
        return {match[1] for match in found if match}

    def held(self) -> int:
        """How many of its runs it has in memory: what other tests have left there is not its own."""
        gc.collect()
        own = {str(run_id) for run_id in self.started}
        return sum(type(each) is Execution and each.run.run_id in own for each in gc.get_objects())

    def await_calm(self) -> None:
        """Wait until the last word of each role is that it works again."""

        def calm() -> bool:
            last = {role: self.said(role)[-1] for role in self.complaining()}
            return all("works again" in message for message in last.values())

        until(calm, "everybody says that it works again")

    def await_recovery(self, more_runs: int = 8) -> None:
        """Wait until everything that was started is completed, and more."""
        self.start(more_runs)
        for run_id in self.started:
            assert self.engine.wait_for_run(run_id, timeout=60).status == "completed"

    def check_ledger(self) -> None:
        """Each step of each run was called once, and is stored."""
        expected = {(str(run_id), name) for run_id in self.started for name in STEPS}
        assert self.calls() == Counter(dict.fromkeys(expected, 1))
        stored = rows(self.url, "select run_id::text, step_id from pgworkflows.steps where status = 'completed'")
        assert Counter(stored) == Counter(expected)

    def check_words(self, reason: str, roles: Iterable[str]) -> None:
        """Each role has said once what is wrong, perhaps after how it lost its connection, and once that it is over;
        nobody anything else."""
        self.await_calm()
        for role in roles:
            assert len(self.said(f"{role} failed, trying again: .*({reason})")) == 1, self.said()
        for role in self.complaining():
            assert len(self.said(f"{role} failed, trying again: ")) <= 2, self.said()
            assert len(self.said(f"{role} works again after [0-9]+ failures")) == 1, self.said()
        assert len(self.said()) == len(self.said("failed, trying again|works again after")), self.said()
        assert not any("\n" in message for message in self.said())
        assert not any(record.exc_info for record in self.records)


class Attempts:
    """Counts what the server refuses a user while it is sick."""

    def __init__(self, server: EmbeddedPostgres, user: str) -> None:
        self._log = server.data_dir / CONTROL / "server.log"
        self._user = user
        self._begin = self._log.stat().st_size
        self._since = time.monotonic()

    def count(self) -> int:
        with self._log.open("rb") as log:
            log.seek(self._begin)
            return len(re.findall(rf"\b{self._user}@\S* (?:FATAL|ERROR|PANIC): ".encode(), log.read()))

    def check_pace(self) -> None:
        """No more than pauses that grow to five seconds, and to one for hearts and listeners, leave room for; more time
        than was meant to pass leaves room for more."""
        passed_s = time.monotonic() - self._since
        assert self.count() <= 25 + 5 * passed_s


@contextmanager
def crowd(url: str) -> Generator[Callable[[], None]]:
    """Other sessions, as many as the server lets in; calling it fills what has come free."""
    with ExitStack() as stack:

        def fill() -> None:
            while True:
                try:
                    stack.enter_context(psycopg.connect(url))
                except psycopg.OperationalError as error:
                    if not re.search("too many clients|connection slots are reserved", str(error)):
                        raise
                    return

        fill()
        yield fill


def end_sessions(admin: psycopg.Connection[Any], user: str) -> int:
    """Terminate a user's sessions, as an administrator or a failover does: how many there were."""
    return len(
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [user]).fetchall()
    )


class Proxy:
    """Stands between a worker and its server, on a socket of its own. While it holds, it takes connections and bytes
    and does nothing with them."""

    def __init__(self, server: EmbeddedPostgres, directory: Path) -> None:
        with psycopg.connect(server.url) as conn:
            self._target = f"{conn.info.host}/.s.PGSQL.{conn.info.port}"
        self.directory = directory
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(directory / ".s.PGSQL.5432"))
        self._listening.listen(100)
        self._flowing = threading.Event()
        self._flowing.set()
        self._open: list[socket.socket] = []
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        """End all connections."""
        found, self._open = self._open, []
        for each in found:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.close()
        self.cut()
        self.flow()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listening.accept()[0]
            except OSError:
                return
            self.accepted += 1
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._flowing.wait()
        server = socket.socket(socket.AF_UNIX)
        with client, server:
            try:
                server.connect(self._target)
            except OSError:
                return
            self._open.append(server)
            back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
            back.start()
            self._pump(client, server)
            back.join()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(server: EmbeddedPostgres, directory: Path) -> Generator[Proxy]:
    made = Proxy(server, directory)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def small_disk(directory: Path, megabytes: int, owner: int) -> Generator[Path]:
    """A file system in memory of so many megabytes. Skips the test where it cannot be had."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700,uid={owner}", "tmpfs", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small file system could be mounted: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill_disk(directory: Path) -> Path:
    """Leave not a byte free: the file to delete."""
    ballast = directory / "ballast"
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(65536))
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0")
    return ballast
