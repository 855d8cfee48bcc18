"""The keeper: a process that starts an embedded server for its owner, outlives the owner, and stops the server.

It reads one JSON request from stdin and answers one JSON line on stdout, then waits on stdin for `restart`
(answered likewise), `stop` or the end of file, which comes however the owner died. Started as root, it becomes the
request's user before it touches a file. It holds no thread. Several owners of one data directory have a keeper
each; the last of them to end stops the server (see `place`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from pgworkflows.embedded.cluster import (
    AT_ONCE,
    GENTLY,
    RefusedError,
    check_version,
    initialise,
    start_server,
    stop_server,
)
from pgworkflows.embedded.place import CONTROL, Place, Postmaster, locked

TEMPORARY_PREFIX = "pgworkflows-"
DEFAULT_PORT = 5432  # without TCP it only names the socket


@dataclass(frozen=True)
class Request:
    """What the owner asks for.

    `data_dir` None: a temporary one. `closed`: its user may not enter a directory above it. `uid` None: stay who you
    are. `port` None: listen on the socket alone.
    """

    bin_dir: str
    data_dir: str | None
    closed: bool
    uid: int | None
    gid: int | None
    port: int | None
    settings: dict[str, str]


class Keeper:
    """One owner's hold on the server of one place."""

    def __init__(self, request: Request, handle: int | None) -> None:
        self.bin_dir = Path(request.bin_dir)
        self.port = request.port
        self.extra_settings = request.settings
        if request.data_dir is None:
            sweep()
            self.place = Place(Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX)))
        else:
            self.place = Place(Path(request.data_dir), handle)
            check_directory(self.place)
            check_version(self.bin_dir, self.place)
        with self.place.gate():
            if request.data_dir is None:
                self.place.temporary.touch()
            self.users_fd = self.place.open("users")
            fcntl.flock(self.users_fd, fcntl.LOCK_SH)

    def start(self) -> dict[str, Any]:
        """Bring the server up, or find it up; the answer for the owner."""
        with self.place.gate():
            if select.select([sys.stdin], [], [], 0)[0]:
                return {}  # while this waited for the gate, the owner died
            initialise(self.bin_dir, self.place)
            return self._answer(start_server(self.bin_dir, self.place, self._settings()))

    def restart(self) -> dict[str, Any]:
        """Stop the server, whoever uses it, and start it again."""
        with self.place.gate():
            stop_server(self.place)
            return self._answer(start_server(self.bin_dir, self.place, self._settings()))

    def leave(self) -> None:
        """Let go of the server; the last to leave stops it, and removes it if it was temporary."""
        os.close(self.users_fd)
        close_if_unused(self.place)

    def _settings(self) -> dict[str, str]:
        return {
            **({"fsync": "off", "full_page_writes": "off"} if self.place.temporary.exists() else {}),
            **self.extra_settings,
            "listen_addresses": "" if self.port is None else "127.0.0.1",
            "port": str(self.port or DEFAULT_PORT),
            "unix_socket_directories": f'"{self.place.socket_directory()}"',
            "unix_socket_permissions": "0700",
        }

    def _answer(self, found: Postmaster) -> dict[str, Any]:
        if self.port is not None and (not found.listens_on or found.port != self.port):
            where = f"on port {found.port}" if found.listens_on else "on its socket alone"
            raise RefusedError(
                f"the server of {self.place.name} is already running and listens {where}, not on port {self.port}; "
                "leave out port=, or stop its other users first"
            )
        return {
            "data_dir": str(self.place.name),
            "socket_dir": found.socket_dir,
            "port": found.port,
            "password": None if self.port is None else self.place.password.read_text(),
        }


def check_directory(place: Place) -> None:
    """Refuse a directory that is not ours to use, before anything is written into it."""
    path = place.data_dir
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = path.stat().st_uid
    if owner != os.geteuid():
        raise RefusedError(
            f"the data directory {place.name} belongs to {user_name(owner)}, and this process would run the server as "
            f"{user_name(os.geteuid())}; run as {user_name(owner)}, or choose another data_dir"
        )
    if not os.access(path, os.W_OK):
        raise RefusedError(f"the data directory {place.name} is not writable; choose another data_dir")
    found = place.contents()
    if not found:
        path.chmod(0o700)  # PostgreSQL insists
    elif "PG_VERSION" not in found and not (path / CONTROL).exists():
        raise RefusedError(
            f"{place.name} is not empty and not a PostgreSQL data directory (it holds {', '.join(found[:3])}"
            f"{', …' if len(found) > 3 else ''}); choose an empty directory, or one that does not exist yet"
        )


def close_if_unused(place: Place, *, wait: bool = True) -> None:
    """Stop the server of a place, and remove a temporary place, if no keeper holds it."""
    if not place.control.exists():
        return
    with contextlib.suppress(BlockingIOError), place.gate(wait=wait):
        users = place.open("users")
        try:
            if not locked(users, fcntl.LOCK_EX):
                return
            temporary = place.temporary.exists()
            stop_server(place, AT_ONCE if temporary else GENTLY)
            place.remove_socket_directory()
            if temporary:
                shutil.rmtree(place.data_dir, ignore_errors=True)
        finally:
            os.close(users)


def sweep() -> None:
    """Remove this user's temporary servers whose keepers were killed together with their owners."""
    for path in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            place = Place(path)
            if path.lstat().st_uid == os.geteuid() and place.temporary.exists():
                close_if_unused(place, wait=False)


def user_name(uid: int) -> str:
    """How messages call a user."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user with id {uid}"


def become(uid: int, gid: int) -> None:
    """Give up root for good; from here on nothing is done that this user may not do."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def reap(_signal: int, _frame: FrameType | None) -> None:
    """Bury a server that was killed: as a zombie it would count as alive."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def answered(action: Callable[[], dict[str, Any]]) -> bool:
    """Run an action and tell the owner how it went; whether it went well."""
    try:
        answer = action()
    except RefusedError as refusal:
        answer = {"error": str(refusal)}
    except OSError as error:
        answer = {"error": f"the embedded server's files cannot be used: {error}; choose another data_dir"}
    except Exception:
        answer = {"error": "the embedded server's keeper failed:\n" + traceback.format_exc()}
    with contextlib.suppress(OSError):  # the owner may be gone
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return "error" not in answer


def main() -> None:
    """Serve one owner until it says stop or is gone."""
    # Ctrl-C and a closed terminal are the owner's business: the keeper ends when the owner has ended.
    for signal_ in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_, signal.SIG_IGN)
    os.umask(0o077)
    os.chdir("/")
    line = sys.stdin.readline()
    if not line:
        return  # the owner died before it could ask
    request = Request(**json.loads(line))
    keepers: list[Keeper] = []

    def begin() -> dict[str, Any]:
        handle = os.open(request.data_dir, os.O_RDONLY) if request.data_dir is not None and request.closed else None
        if request.uid is not None and request.gid is not None:
            become(request.uid, request.gid)
        keepers.append(Keeper(request, handle))
        return keepers[0].start()

    if answered(begin):
        signal.signal(signal.SIGCHLD, reap)
        for line in sys.stdin:
            if line.strip() == "stop":
                break
            if line.strip() == "restart":
                answered(keepers[0].restart)
    for keeper in keepers:
        keeper.leave()


if __name__ == "__main__":
    main()
