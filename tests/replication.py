"""A primary with a synchronous standby, for tests: two real servers that replicate, of which one is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

import psycopg
from waiting import until

from pgworkflows.embedded.account import Account, account_for
from pgworkflows.embedded.binaries import find_binaries, runnable_by

SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "100"}


class Server:
    """One server on 127.0.0.1, of which `url` leads to the database postgres."""

    def __init__(self, place: Path, bin_dir: Path, account: Account | None) -> None:
        self.data = place / "data"
        self.port = _free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._bin_dir = bin_dir
        self._account = account
        self._log = (place / "log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's programs, to its end."""
        subprocess.run(
            [str(self._bin_dir / program), *arguments],
            check=True,
            env={"PATH": os.environ["PATH"]},
            cwd="/",
            stdout=self._log,
            stderr=self._log,
            user=None if self._account is None else self._account.uid,
            group=None if self._account is None else self._account.gid,
            extra_groups=None if self._account is None else [],
        )

    def start(self) -> None:
        settings = {**SETTINGS, "port": str(self.port)}
        self._process = subprocess.Popen(
            [
                str(self._bin_dir / "postgres"),
                "-D",
                str(self.data),
                *(f"--{name}={text}" for name, text in settings.items()),
            ],
            env={"PATH": os.environ["PATH"]},
            cwd="/",
            stdout=self._log,
            stderr=self._log,
            user=None if self._account is None else self._account.uid,
            group=None if self._account is None else self._account.gid,
            extra_groups=None if self._account is None else [],
        )
        until(self.answers, f"the server in {self.data} answers")

    def answers(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False

    def value(self, query: str) -> Any:
        with psycopg.connect(self.url, autocommit=True) as conn:
            row = conn.execute(query.encode()).fetchone()
            return row and row[0]

    def kill(self) -> None:
        """End the postmaster and every process of its at once, as when the host loses its power."""
        assert self._process is not None
        pid = self._process.pid
        os.kill(pid, signal.SIGSTOP)  # it forks nobody any more
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        self._process.wait(20)
        self._process = None
        (self.data / "postmaster.pid").unlink()

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(20)
            self._process = None
        self._log.close()


class Pair:
    """A primary and its synchronous standby. `url` names both, and leads to whichever is the primary."""

    def __init__(self) -> None:
        binaries, account = find_binaries(), account_for(None)
        assert binaries is not None
        self._directory = Path(tempfile.mkdtemp(prefix="pgw-pair-"))
        self._directory.chmod(0o755)
        bin_dir = binaries.directory if account is None else runnable_by(account, binaries)
        places = [self._directory / name for name in ("primary", "standby")]
        for place in places:
            place.mkdir(mode=0o755)
            if account is not None:
                os.chown(place, account.uid, account.gid)
        self.primary, self.standby = (Server(place, bin_dir, account) for place in places)

    @property
    def url(self) -> str:
        hosts = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def start(self) -> Self:
        primary, standby = self.primary, self.standby
        primary.run("initdb", "-D", str(primary.data), "-U", "postgres", "-A", "trust", "--no-locale", "-E", "UTF8")
        primary.start()
        place = f"host=127.0.0.1 port={primary.port} user=postgres application_name=standby"
        standby.run("pg_basebackup", "-d", place, "-D", str(standby.data), "-R", "-X", "stream", "-c", "fast")
        standby.start()
        for statement in "alter system set synchronous_standby_names = 'standby'", "select pg_reload_conf()":
            with psycopg.connect(primary.url, autocommit=True) as conn:
                conn.execute(statement.encode())
        in_step = "select sync_state from pg_stat_replication"
        until(lambda: primary.value(in_step) == "sync", "the standby is in step")
        return self

    def promote(self) -> None:
        """Make the standby the primary; it can be written to on return."""
        assert self.standby.value("select pg_promote()") is True

    def return_as_standby(self) -> None:
        """Start the former primary again as what it may be now: a server that can be read only."""
        (self.primary.data / "standby.signal").touch()
        self.primary.start()

    def stop(self) -> None:
        self.standby.stop()
        self.primary.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
