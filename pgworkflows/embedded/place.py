"""A data directory as its keepers see it: the control files in `<data_dir>/.pgworkflows/` and their locks.

- `gate` is flocked exclusively while a server is being started or stopped;
- `users` is flocked shared by each keeper whose owner uses the server: who gets it exclusively is the last one;
- `running` is flocked by the server itself, whose processes inherit the lock: it is free only when none of them
  is left. It holds the server's process id.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

CONTROL = ".pgworkflows"
HANDLES = Path("/proc/self/fd")
MAX_SOCKET_PATH_BYTES = 103  # macOS has 104 with the final NUL, Linux 108
IGNORED = frozenset({CONTROL, "lost+found"})


@dataclass(frozen=True)
class Postmaster:
    """What a server says about itself in `postmaster.pid`."""

    pid: int
    port: int
    socket_dir: str
    listens_on: str
    ready: bool


class Place:
    """A data directory, its control files and its locks.

    `name` is its path for people. `data_dir` is the path to use: the same, or, where the server's user may not enter
    a directory above, Linux's name for a descriptor that root opened, which `handles` then holds for child processes.
    """

    def __init__(self, data_dir: Path, handle: int | None = None) -> None:
        self.name = data_dir
        self.handles = () if handle is None else (handle,)
        self.data_dir = data_dir if handle is None else HANDLES / str(handle)
        self.control = self.data_dir / CONTROL
        self.log = self.control / "server.log"
        self.password = self.control / "password"
        self.temporary = self.control / "temporary"  # stands in a directory that goes when its last user goes
        self.moving_in = self.control / "moving-in"  # stands while initdb's files move to where they belong

    def open(self, name: str) -> int:
        """The control file `name`, made if need be, as a descriptor to lock."""
        return os.open(self.control / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    @contextlib.contextmanager
    def gate(self, *, wait: bool = True) -> Generator[None]:
        """Hold the gate; BlockingIOError when it is taken and `wait` is false."""
        while True:
            self.control.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = self.open("gate")
            try:
                fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_gate(fd):
                    yield
                    return
                # A temporary directory was removed while we waited: this gate leads nowhere.
            finally:
                os.close(fd)

    def _is_gate(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.lstat(self.control / "gate"))
        except FileNotFoundError:
            return False

    def contents(self) -> list[str]:
        """The names of what is in the directory and not ours."""
        return sorted(entry.name for entry in self.data_dir.iterdir() if entry.name not in IGNORED)

    def postmaster(self) -> Postmaster | None:
        """What `postmaster.pid` says, or None while there is no such file or it is half written."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
            return Postmaster(
                pid=int(lines[0]),
                port=int(lines[3]),
                socket_dir=lines[4],
                listens_on=lines[5].strip(),
                ready=len(lines) > 7 and lines[7].strip() == "ready",
            )
        except (FileNotFoundError, IndexError, ValueError):
            return None

    def log_tail(self, since: int = 0) -> str:
        """The last lines of the server's log, none from before the offset `since`."""
        try:
            text = self.log.read_bytes()[since:].decode("utf-8", "replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.strip().splitlines()[-15:]) or "(empty log)"

    def socket_directory(self) -> Path:
        """A directory closed to other users, its path short and plain enough for a socket, the same every time."""
        longest = os.fsencode(self.control / ".s.PGSQL.65535")
        plain = len(longest) <= MAX_SOCKET_PATH_BYTES and re.fullmatch(rb"[A-Za-z0-9/._+ -]+", longest)
        if plain and not self.handles:
            return self.control
        short = self._short_socket_directory()
        with contextlib.suppress(FileExistsError):
            short.mkdir(mode=0o700)
        found = short.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
            return short
        return Path(tempfile.mkdtemp(prefix="pgw-", dir="/tmp"))  # somebody else took the name

    def remove_socket_directory(self) -> None:
        """Remove the short directory if there is one of ours and it is empty."""
        short = self._short_socket_directory()
        with contextlib.suppress(OSError):
            if short.lstat().st_uid == os.geteuid():
                short.rmdir()

    def _short_socket_directory(self) -> Path:
        digest = hashlib.sha256(os.fsencode(self.name)).hexdigest()[:12]
        return Path("/tmp") / f"pgw-{os.geteuid()}-{digest}"  # noqa: S108  # made 0700, owner and mode are checked


def locked(fd: int, how: int) -> bool:
    """Take a flock if it is free now."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
