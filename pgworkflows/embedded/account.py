"""The user that an embedded server runs as. PostgreSQL refuses root, so root lends it another user."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pgworkflows.embedded.place import HANDLES
from pgworkflows.errors import ConfigurationError

UNPRIVILEGED = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """An ordinary user, by numbers, and a name for messages."""

    uid: int
    gid: int
    name: str

    def may_enter(self, directory: Path) -> bool:
        """Whether this user can reach the directory: asked of the system, which knows about access lists."""
        return self.succeeds("/bin/sh", "-c", 'cd -- "$1"', "sh", str(directory))

    def succeeds(self, *command: str) -> bool:
        """Whether a command, run as this user, ends well. ConfigurationError if root may not become this user."""
        try:
            done = subprocess.run(
                command,
                user=self.uid,
                group=self.gid,
                extra_groups=[],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.SubprocessError as error:
            raise ConfigurationError(
                f"PostgreSQL refuses to run as root, and this root may not become user {self.name} (is this a "
                "container without that right?); run as an ordinary user, or set DATABASE_URL to a server of your own"
            ) from error
        except OSError:
            return False
        return done.returncode == 0


def account_for(data_dir: Path | None) -> Account | None:
    """Who must run the server of this directory: None for oneself; as root, the directory's owner or a default."""
    if os.geteuid() != 0:
        return None
    if data_dir is not None and data_dir.exists():
        found = data_dir.stat()
        if found.st_uid != 0:
            return _account(found.st_uid, found.st_gid)
    for name in UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid, name)
    raise ConfigurationError(
        "PostgreSQL refuses to run as root, and this system has neither a user postgres nor a user nobody to lend it; "
        "add one, run as an ordinary user, or set DATABASE_URL to a server of your own"
    )


def _account(uid: int, gid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(uid, gid, str(uid))
    return Account(uid, entry.pw_gid, entry.pw_name)


def nearest_existing(path: Path) -> Path:
    """The path itself or the closest directory above it that exists."""
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())


def within_reach(data_dir: Path, account: Account) -> bool:
    """Whether a server of the account can work in the directory, by its path or by a descriptor of root's."""
    return HANDLES.is_dir() or account.may_enter(nearest_existing(data_dir.parent))


def hand_over(data_dir: Path, account: Account) -> None:
    """As root, make sure that the directory exists, can be reached by the account, and belongs to it."""
    if not within_reach(data_dir, account):
        parent = nearest_existing(data_dir.parent)
        closed = next(p for p in (*reversed(parent.parents), parent) if not account.may_enter(p))
        raise ConfigurationError(
            f"the data directory {data_dir} is out of reach: root's server runs as user {account.name}, who may not "
            f"enter {closed}; choose a data_dir elsewhere (such as /var/lib/pgworkflows), or let others enter with "
            f"chmod o+x {closed}"
        )
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if data_dir.stat().st_uid != 0:
            return
        if any(data_dir.iterdir()):
            raise ConfigurationError(
                f"the data directory {data_dir} belongs to root and is not empty, and PostgreSQL refuses to run as "
                f"root; choose another data_dir, or give this one away with chown -R {account.name} {data_dir}"
            )
        os.chown(data_dir, account.uid, account.gid, follow_symlinks=False)
    except OSError as error:
        raise ConfigurationError(
            f"the data directory {data_dir} cannot be used: {error}; choose another one"
        ) from error
