"""The clock of a test's database: it can be read, and moved forward."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime, timedelta

from pgworkflows.database import connect
from pgworkflows.errors import ConfigurationError
from pgworkflows.schema import DEFAULT_SCHEMA, script
from pgworkflows.store import moment_from
from pgworkflows.worker_connection import WorkerConnection


def make_clock_movable(conninfo: str, schema: str = DEFAULT_SCHEMA) -> None:
    """Let tests move the time of the schema in this database, which must be for tests alone. The fixture `workflows`
    brings one that is so; call this once after the migration of any other."""
    with connect(conninfo) as conn, conn.transaction():
        conn.execute(script("install_clock", schema).encode())


class Clock:
    """The time by which the database, and with it the library, judges what is due."""

    def __init__(self, connection: WorkerConnection) -> None:
        self._connection = connection
        self._found = False

    def now(self) -> datetime:
        """What time it is there. Raises ConfigurationError if that clock cannot be moved."""
        self._find()
        return datetime.fromisoformat(self._connection.fetch("read_clock", ()))

    @contextmanager
    def standing(self) -> Generator[None]:
        """It stands for the length of a with statement, and then goes on from where it is."""
        self.stand_at(self.now())
        try:
            yield
        finally:
            self._connection.fetch("run_clock", ())

    def stand_at(self, moment: datetime) -> None:
        """Let it stand at this moment, unless it is later already."""
        self._connection.fetch("stand_clock", (max(moment, self.now()).isoformat(),))

    def set_back(self) -> None:
        """It tells the real time again, if it could be moved at all."""
        if self._connection.fetch("find_clock", ()):
            self._connection.fetch("set_clock_back", ())

    def next_due(self) -> tuple[datetime | None, timedelta]:
        """When the next row of the queue becomes due, and how far the clock has gone on although it stands: a wait that
        begins then ends that much later than one reckons."""
        found = json.loads(self._connection.fetch("find_due", ()))
        return moment_from(found["due"]), timedelta(microseconds=found["looks"])

    def _find(self) -> None:
        if not self._found:
            self._found = self._connection.fetch("find_clock", ())
        if not self._found:
            raise ConfigurationError(
                "the time of this database cannot be moved: use the fixture `workflows`, or call "
                "pgworkflows.testing.make_clock_movable(url) once, on a database that is for tests alone"
            )
