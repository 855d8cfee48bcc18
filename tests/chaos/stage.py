"""Where a storm takes place: a server of its own, the proxy before it, and worker processes in their seats."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgworkflows import EmbeddedPostgres, WorkflowEngine
from pgworkflows.migrate import migrate

from .history import Leaving
from .ledger import Ledger
from .proxy import Proxy
from .sabotage import sabotage_database
from .stories import workflows

ROOT = Path(__file__).parents[2]
GRACE_S = 1.0
MISSED_MINUTES = 5
"""The schedules come to a storm with so many ticks missed, as after an outage."""
_MINUTE_S = 60


class Seat:
    """A place for a worker process: whoever is killed here is followed by another."""

    def __init__(self, stage: Stage, lane: str, lease_s: float | None, sabotage: str | None) -> None:
        self.lane = lane
        self.lease_s = lease_s or 30.0
        self.busy = threading.Lock()
        self.leavings: list[Leaving] = []
        self._options: dict[str, Any] = {
            "url": stage.url(lane),
            "ledger": str(stage.ledger),
            "sabotage": sabotage,
            "grace": f"{GRACE_S} s",
            **({} if lease_s is None else {"lease": f"{lease_s} s"}),
        }
        self._log = stage.directory / f"{lane}.log"
        self.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", json.dumps(self._options)],
                cwd=ROOT if __name__.startswith("tests.") else ROOT / "tests",
                stdin=subprocess.DEVNULL,
                stderr=log,
            )

    def kill(self) -> int:
        """End the process as if the power went; how many that were."""
        ran = self._process.poll() is None
        self._process.kill()
        self._process.wait()
        return int(ran)

    def freeze(self, seconds: float) -> int:
        """Let the process stand still for so long."""
        if self._process.poll() is not None:
            return 0
        os.kill(self.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self.pid, signal.SIGCONT)
        return 1

    def tend(self) -> None:
        """Start a process in the place of one that has ended by itself, as one does that finds no server."""
        if self.busy.acquire(blocking=False):
            try:
                if self._process.poll() is not None:
                    self.start()
            finally:
                self.busy.release()

    def relieve(self) -> int:
        """Let the process end gracefully, and another take its place, as in a deploy."""
        former = self._process
        if former.poll() is not None:
            return 0
        self.leave()
        self.start()
        former.wait(60)
        return 1

    def leave(self) -> None:
        """Tell the process to end gracefully."""
        self.leavings.append(Leaving(self.pid, time.time() + GRACE_S))
        self._process.terminate()

    def wait(self) -> int:
        """Wait for the end of the process: its exit status."""
        return self._process.wait(60)

    @property
    def said(self) -> str:
        """What the processes of this seat have logged."""
        return self._log.read_text()


class Stage:
    """Set up when entered, and gone when left. `leases_s` has a worker each; None is the default lease."""

    def __init__(
        self, leases_s: tuple[float | None, ...], *, settings: dict[str, str] | None = None, sabotage: str | None = None
    ) -> None:
        self._leases_s = leases_s
        self._settings = {"max_connections": "300", "log_min_messages": "fatal", **(settings or {})}
        self._sabotage = sabotage
        self._stack = ExitStack()
        self._admin_lock = threading.Lock()
        self._server_lock = threading.Lock()
        self.seats: list[Seat] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgw-chaos-")))
            self.ledger = self.directory / "ledger"
            self._server = stack.enter_context(EmbeddedPostgres(settings=self._settings))
            stack.callback(self._close_admin)
            self._admin: psycopg.Connection[Any] | None = None
            self._prepare()
            self.lanes = [f"worker-{number}" for number in range(len(self._leases_s))]
            self.proxy = Proxy(self.directory, self._socket(), [*self.lanes, "clients"])
            stack.callback(self.proxy.close)
            stack.callback(self._kill_all)
            for lane, lease_s in zip(self.lanes, self._leases_s, strict=True):
                self.seats.append(Seat(self, lane, lease_s, self._sabotage))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def url(self, lane: str) -> str:
        """Where workers and clients connect to."""
        return self.proxy.url(lane, "postgres", lane)

    def direct(self, ask: Callable[[psycopg.Connection[Any]], Any]) -> Any:
        """Ask the server past the proxy, again and again while it is away."""
        deadline = time.monotonic() + 60
        with self._admin_lock:
            while True:
                try:
                    if self._admin is None:
                        self._admin = psycopg.connect(self._server.url, autocommit=True, application_name="chaos")
                    return ask(self._admin)
                except psycopg.OperationalError:
                    self._close_admin()
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)

    def runs_in_hand(self, pid: int | None) -> frozenset[str]:
        """The runs that a worker process has claimed now, or all of them."""
        query = (
            "select q.run_id::text from pgworkflows.queue as q join pgworkflows.workers as w on w.id = q.worker_id "
            "where w.pid = coalesce(%s, w.pid)"
        )
        return frozenset(run_id for (run_id,) in self.direct(lambda conn: conn.execute(query, [pid]).fetchall()))

    def terminate(self, lane: str | None, *, at_most: int) -> int:
        """Terminate backends of a lane, or of all: how many that were."""
        query = (
            "select pg_terminate_backend(pid) from (select pid from pg_stat_activity "
            "where backend_type = 'client backend' and application_name <> 'chaos' "
            "and application_name = coalesce(%s, application_name) order by random() limit %s) as chosen"
        )
        return len(self.direct(lambda conn: conn.execute(query, [lane, at_most]).fetchall()))

    def restart_server(self) -> int:
        """Let the server end at once, without a checkpoint, and recover; how many sessions that ended."""
        query = "select count(*) from pg_stat_activity where backend_type = 'client backend'"
        with self._server_lock:
            sessions = self.direct(lambda conn: conn.execute(query).fetchone())[0]
            with self._admin_lock:
                self._close_admin()
                os.kill(self._server.pid, signal.SIGQUIT)
                self._server.restart()
        return int(sessions)

    def tend(self) -> None:
        """Let nobody's place be empty."""
        for seat in self.seats:
            seat.tend()

    def mend(self) -> None:
        """Let everything flow."""
        for order in ("open", "flow"):
            self.proxy.order(order, *self.lanes, "clients")

    def dismiss(self) -> list[int]:
        """Let all workers end gracefully: their exit statuses."""
        for seat in self.seats:
            seat.leave()
        return [seat.wait() for seat in self.seats]

    def said(self) -> str:
        """What the workers have logged."""
        return "".join(seat.said for seat in self.seats)

    def _prepare(self) -> None:
        url = self._server.url
        migrate(url)
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute((Path(__file__).parent / "audit.sql").read_bytes())
            sabotage_database(conn, self._sabotage)
            with WorkflowEngine(url, workflows=workflows(Ledger(self.ledger))) as engine:
                engine.start(worker=False)
            conn.execute(
                "update pgworkflows.schedules set since = since - %s * interval '1 minute', next_at = null",
                [MISSED_MINUTES],
            )
            conn.execute("create table chaos.begun as select workflow_id, since from pgworkflows.schedules")

    def _socket(self) -> str:
        given = conninfo_to_dict(self._server.url)
        return f"{given['host']}/.s.PGSQL.{given['port']}"

    def _close_admin(self) -> None:
        conn, self._admin = self._admin, None
        if conn is not None:
            conn.close()

    def _kill_all(self) -> None:
        for seat in self.seats:
            seat.kill()
