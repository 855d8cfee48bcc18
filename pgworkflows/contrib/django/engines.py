"""The engine of a Django project: one for each database alias, on Django's own connections."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

from django.db import connections

from pgworkflows.borrowed import borrowed
from pgworkflows.contrib.django import conf, discovery, routing
from pgworkflows.contrib.django.connections import DjangoConnections
from pgworkflows.database import Connection, Database, Params, Row, connect, conninfo_of
from pgworkflows.engine import WorkflowEngine
from pgworkflows.healthcheck import Health
from pgworkflows.worker import Worker


class DjangoDatabase(Database):
    """What Django has under an alias: statements go through this thread's connection, in its transaction if it has one;
    workers connect for themselves."""

    def __init__(self, alias: str, listen_conninfo: str | None) -> None:
        super().__init__(None, None, listen_conninfo)
        self._alias = alias

    @property
    def conninfo(self) -> str:
        # Asked for each time: Django's tests give the alias another database.
        return conninfo_of(connections[self._alias].get_connection_params())

    @property
    def borrowed(self) -> bool:
        connection = connections[self._alias]
        return connection.in_atomic_block or not connection.get_autocommit()

    def fetch(self, sql: str, params: Params = ()) -> list[Row]:
        return borrowed(connections[self._alias]).fetch(sql, params)

    @contextmanager
    def connection(self) -> Generator[Connection]:
        conn = connect(self.conninfo)
        try:
            yield conn
        finally:
            conn.close()


class DjangoEngine(WorkflowEngine):
    """An engine whose calls join the transaction that Django has open on `alias`, and read what it has written. It
    knows the workflows of the project's apps, and opens no connection of its own but for a worker's."""

    def __init__(self, alias: str) -> None:
        settings = conf.settings()
        database = DjangoDatabase(alias, settings.listen_conninfo)
        super().__init__(
            database.conninfo,
            workflows=discovery.discover(),
            schema=settings.schema,
            plugins=(DjangoConnections(), *settings.plugins),
            retention=settings.retention,
            codec=settings.codec,
            read_codecs=settings.read_codecs,
        )
        self.alias = alias
        self._database = database

    def worker(self, **options: Any) -> Worker:
        """A worker for the workflows, and for the tasks, of the project. Where `queues` is left out, it serves those
        that TASKS names, too."""
        if options.get("queues") is None:
            named = {workflow.queue for workflow in self.registered.values()}
            options["queues"] = {"default"} | named | discovery.task_queues()
        return super().worker(**options)

    def _ask(self) -> Health:
        """Django's connection is the thread's, and this is asked in a thread of its own, which ends."""
        try:
            return super()._ask()
        finally:
            connections[self.alias].close()


def engine(using: str | None = None) -> DjangoEngine:
    """The engine of the database `using`; without it, of the one that the routers name for runs."""
    return _engine(routing.alias_for_writing(using))


@cache
def _engine(alias: str) -> DjangoEngine:
    return DjangoEngine(alias)


def forget() -> None:
    """Make the engines anew: the settings have changed."""
    _engine.cache_clear()
