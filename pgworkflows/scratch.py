"""Databases for tests on one server: made empty or as a copy, and dropped, also those of sessions that were killed."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from contextlib import contextmanager
from typing import Self
from urllib.parse import quote, urlsplit

from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgworkflows.database import connect, normalise

PREFIX = "pgworkflows_test_"


class ScratchDatabases:
    """Makes and drops databases over one connection, whose advisory lock says that the session lives. Its role must be
    allowed to create databases. Raises ConfigurationError."""

    def __init__(self, server: str) -> None:
        """`server` is the connection string of a database from which others can be created."""
        self._server = server
        self._admin = connect(server)
        self._session = secrets.token_hex(4)
        self._count = 0
        self._admin.execute("select pg_advisory_lock(hashtext(%s))", [self._session])
        # Copying files begins and ends with a checkpoint. Where that flushes nothing it is the cheaper way by half.
        flushes = self._admin.execute("show fsync").fetchone() == ("on",)
        self._strategy = sql.Identifier("wal_log" if flushes else "file_copy")

    def url_for(self, name: str) -> str:
        """The connection string of another database of the server, a URL if the server's is one."""
        if "://" in self._server:
            return urlsplit(self._server)._replace(path=f"/{quote(name)}").geturl()
        return make_conninfo(normalise(self._server), dbname=name)

    def create(self, template: str | None = None) -> str:
        """A new database's name; a copy of `template` if given, to which nobody may be connected."""
        self._count += 1
        name = f"{PREFIX}{self._session}_{self._count}"
        statement = sql.SQL("create database {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" template {} strategy {}").format(sql.Identifier(template), self._strategy)
        self._admin.execute(statement)
        return name

    def drop(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self._admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    @contextmanager
    def fresh(self, template: str | None = None) -> Generator[str]:
        """A new database for the length of a with statement: its connection string."""
        name = self.create(template)
        try:
            yield self.url_for(name)
        finally:
            self.drop(name)

    def drop_left_by_killed_sessions(self) -> None:
        """Drop the databases of sessions whose advisory lock is free."""
        query = "select datname from pg_database where datname like %s"
        found = self._admin.execute(query, [PREFIX.replace("_", r"\_") + "%"]).fetchall()
        for (name,) in found:
            session = name.removeprefix(PREFIX).split("_")[0]
            if session != self._session:
                locked = self._admin.execute("select pg_try_advisory_lock(hashtext(%s))", [session]).fetchone()
                if locked == (True,):
                    self.drop(name)
                    self._admin.execute("select pg_advisory_unlock(hashtext(%s))", [session])

    def close(self) -> None:
        self._admin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
