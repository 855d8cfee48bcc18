"""PgBouncer in transaction mode before a server, for tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import IO, Self
from urllib.parse import quote, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from waiting import until

from pgworkflows.embedded.account import account_for

PROGRAM = shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))
MISSING = "pgbouncer is not installed: on Debian, apt-get install pgbouncer"

# Round robin: two transactions of a client seldom get the same session, so whoever relies on a session is found out.
CONFIGURATION = """
[databases]
* = host={host} port={port}
[pgbouncer]
pool_mode = transaction
server_round_robin = 1
default_pool_size = {pool_size}
max_client_conn = 2000
listen_addr =
listen_port = {own_port}
unix_socket_dir = {directory}
auth_type = trust
auth_file = {directory}/users
auth_user = {user}
admin_users = {user}
server_login_retry = 1
log_connections = 0
log_disconnections = 0
"""
PORT = 6432


def pooled() -> bool:
    """Whether the tests go through PgBouncer."""
    return os.environ.get("PGWORKFLOWS_TEST_POOLER") == "pgbouncer"


class PgBouncer:
    """Run by an ordinary user, in a directory of its own; any user of the server is let in."""

    def __init__(self, server: str, *, pool_size: int = 50) -> None:
        found = conninfo_to_dict(server)
        self._user, self._password = str(found.get("user", "postgres")), str(found.get("password") or "")
        self._directory = Path(tempfile.mkdtemp(prefix="pgb-"))
        self._account = account_for(None)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] = (self._directory / "log").open("ab")
        for name, text in {
            "users": f'"{self._user}" "{self._password}"\n',
            "pgbouncer.ini": CONFIGURATION.format(
                host=found["host"],
                port=found.get("port", 5432),
                pool_size=pool_size,
                own_port=PORT,
                directory=self._directory,
                user=self._user,
            ),
        }.items():
            (self._directory / name).write_text(text)
        if self._account is not None:
            for path in (self._directory, *self._directory.iterdir()):
                os.chown(path, self._account.uid, self._account.gid)

    def url_for(self, name: str) -> str:
        host = quote(str(self._directory), safe="")
        return f"postgresql://{self._user}@/{quote(name)}?host={host}&port={PORT}"

    def through(self, url: str) -> str:
        """The same database, by way of the pooler."""
        return self.url_for(urlsplit(url).path[1:])

    def start(self) -> Self:
        assert PROGRAM is not None, MISSING
        self._process = subprocess.Popen(
            [PROGRAM, "-q", str(self._directory / "pgbouncer.ini")],
            stdout=self._log,
            stderr=self._log,
            user=None if self._account is None else self._account.uid,
            group=None if self._account is None else self._account.gid,
            extra_groups=None if self._account is None else [],
        )
        until(self._answers, "PgBouncer answers")
        return self

    def kill(self) -> None:
        """End it at once."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)
        with contextlib.suppress(FileNotFoundError):
            (self._directory / f".s.PGSQL.{PORT}").unlink()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        self._log.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "log").read_text()
        try:
            with psycopg.connect(self.url_for("pgbouncer"), autocommit=True) as conn:
                return bool(psycopg.ClientCursor(conn).execute("show version"))
        except psycopg.Error:
            return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
