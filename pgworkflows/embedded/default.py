"""The process's own server: what an engine uses that was given no connection string and finds no DATABASE_URL."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from pathlib import Path

from pgworkflows.embedded.account import account_for, nearest_existing, within_reach
from pgworkflows.embedded.server import EmbeddedPostgres

FOLDER = ".pgworkflows"
NAME = "postgres"

_logger = logging.getLogger("pgworkflows")
_lock = threading.Lock()
_server: EmbeddedPostgres | None = None
_server_pid = 0


def default_embedded() -> EmbeddedPostgres:
    """The process's server, started at the first call, kept until the process ends, its data for ever.

    All engines and clients of the process share it, and so do other processes started in the same directory. The
    first call says in the log where the data is. After a fork the child gets a hold of its own on the same server.
    """
    global _server, _server_pid
    with _lock:
        if _server is None:
            data_dir = default_directory()
            server = EmbeddedPostgres(data_dir).start()
            _logger.warning(
                "no connection string and no DATABASE_URL: using an embedded PostgreSQL server in %s; "
                "set DATABASE_URL to use a server of your own",
                data_dir,
            )
        elif _server_pid != os.getpid():
            server = EmbeddedPostgres(_server.data_dir).start()
        else:
            return _server.start()
        _server, _server_pid = server, os.getpid()
        return server


def default_directory() -> Path:
    """`.pgworkflows/postgres` in the current directory; where that cannot be, a place for it in the user's or
    the system's data directory."""
    here = Path.cwd()
    wanted = here / FOLDER / NAME
    if wanted.exists():
        return wanted
    account = account_for(None)
    if account is not None:
        if within_reach(wanted, account):
            return wanted
        return Path("/var/lib/pgworkflows") / _name_for(here)
    if os.access(nearest_existing(wanted), os.W_OK):
        return wanted
    data_home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data_home).expanduser() / "pgworkflows" / _name_for(here)


def _name_for(directory: Path) -> str:
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:12]
    return f"{directory.name or 'root'}-{digest}"
