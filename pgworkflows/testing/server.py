"""The server of a test session: one that is named, or an embedded one that is gone afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgworkflows.embedded import EmbeddedPostgres
from pgworkflows.migrate import migrate
from pgworkflows.testing.clock import make_clock_movable

URL_VARIABLE = "PGWORKFLOWS_TEST_URL"
MEMORY = Path("/dev/shm")  # noqa: S108  (the embedded server makes a directory of its own there, as anywhere)
MEMORY_WANTED = 4 << 30
SETTINGS = {
    "timezone": "UTC",  # whatever TZ says, which Django sets for its whole process
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "max_wal_size": "512MB",
    "shared_buffers": "64MB",
    "max_prepared_transactions": "10",
    "log_min_duration_statement": "5s",
}


@contextmanager
def session_server() -> Generator[str]:
    """The connection string of a database from which others can be created: what $PGWORKFLOWS_TEST_URL names, or an
    embedded server's. Raises ConfigurationError."""
    named = os.environ.get(URL_VARIABLE)
    if named:
        yield named
        return
    with _temporary_server() as server:
        yield server.url


def _temporary_server() -> EmbeddedPostgres:
    server = EmbeddedPostgres(settings=SETTINGS)
    if not (os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_WANTED):
        return server.start()
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(MEMORY)  # a copy of the template takes 10 ms there, on a disk up to 250
    try:
        return server.start()
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def prepare(url: str, then: Any = None) -> None:
    """Migrate a database and let its time be moved; `then`, called with its URL, adds what else tests need there."""
    migrate(url)
    make_clock_movable(url)
    if then is not None:
        then(url)
