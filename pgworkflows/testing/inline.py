"""Inline mode: what the code under test starts is driven in its own thread, when its transaction is over."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

from pgworkflows.borrowed import borrowed
from pgworkflows.engine import WorkflowEngine
from pgworkflows.plugins import Plugin
from pgworkflows.testing.clock import Clock
from pgworkflows.testing.lent import LentConnection, WatchedDatabase
from pgworkflows.testing.workflows import Workflows
from pgworkflows.worker_connection import WorkerConnection


@contextmanager
def inline(engine: WorkflowEngine, *, connection: Any = None) -> Generator[Workflows]:
    """For the length of a with statement, drive what the engine is told to start or to wake, in the caller's thread: at
    once, or, where that is part of a transaction of the caller's, when a request of Django's or Flask's test client is
    over, and at the end of the block at the latest. Gives the runner, to travel, to fail steps and to look at runs.

    With `connection`, any that calls take, all that the engine and its steps' runs write goes through that, in the
    transaction that is open there: for tests that roll everything back. An engine of pgworkflows.contrib.django within
    a TestCase does so by itself.
    """
    django = _DjangoCase.of(engine, connection)
    if django is not None:
        connection = django.lent
    lent = None if connection is None else borrowed(connection)
    own = None if connection is None else LentConnection(connection, engine.conninfo, engine.schema)
    plugins: tuple[Plugin, ...] = () if django is None or django.lent is None else (django,)
    workflows = Workflows(engine, own, plugins)
    before = engine._database  # pyright: ignore[reportPrivateUsage]  # the kit stands in between

    def after_a_call() -> None:
        if not workflows.driving and (django is None or not django.in_a_block_of_its_own):
            workflows.run_until_idle()

    with ExitStack() as stack:
        for connect in (_after_requests_of_django, _after_requests_of_flask):
            stack.enter_context(connect(after_a_call))
        engine._database = WatchedDatabase(before, lent, after_a_call)  # pyright: ignore[reportPrivateUsage]
        try:
            yield workflows
            workflows.run_until_idle()
            workflows.check_faults()
        finally:
            engine._database = before  # pyright: ignore[reportPrivateUsage]
            broken = sys.exc_info()[0] is not None
            with suppress(Exception) if broken else ExitStack():
                workflows.sign_off()


def delete_runs(engine: WorkflowEngine) -> None:
    """Delete all runs and schedules of a database that is for tests alone, and set its clock back, where no transaction
    does: Django's TransactionTestCase empties the tables of its models only."""
    with closing(WorkerConnection(engine.conninfo, engine.schema)) as connection:
        connection.fetch("delete_runs", ())
        Clock(connection).set_back()


class _DjangoCase:
    """A connection of Django's, and how deep it was in blocks of transactions when the test began to look. As a plugin,
    it gives each step a savepoint: one that fails leaves nothing behind, as where it has a transaction of its own."""

    name = "testing-django"

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._depth = len(connection.atomic_blocks)

    @classmethod
    def of(cls, engine: WorkflowEngine, connection: Any) -> _DjangoCase | None:
        """That of the engine, if it is Django's, or of the connection, if that is."""
        alias = getattr(engine, "alias", None)
        if connection is None and alias is not None and "django.db" in sys.modules:
            connection = sys.modules["django.db"].connections[alias]
        return cls(connection) if hasattr(connection, "atomic_blocks") else None

    @property
    def lent(self) -> Any:
        """The connection, if the test itself is a transaction on it."""
        return self._connection if self._depth else None

    @property
    def in_a_block_of_its_own(self) -> bool:
        """Whether the code under test is in a transaction."""
        return len(self._connection.atomic_blocks) > self._depth

    def wrap_step(self, _context: object, _step: object, call: Callable[[], Any]) -> Any:
        from django.db import transaction

        block: Any = transaction.atomic(using=self._connection.alias)
        block._from_testcase = True  # a durable block may stand in it, as in a test's own
        with block:
            return call()


@contextmanager
def _after_requests_of_django(act: Callable[[], None]) -> Generator[None]:
    """Do something after each request, if Django is there."""
    if "django.core" not in sys.modules:
        yield
        return
    from django.core.signals import request_finished

    def finished(**_: object) -> None:
        act()

    request_finished.connect(finished, weak=False)
    try:
        yield
    finally:
        request_finished.disconnect(finished)


@contextmanager
def _after_requests_of_flask(act: Callable[[], None]) -> Generator[None]:
    """Do something after each request, if Flask is there."""
    if "flask" not in sys.modules:
        yield
        return
    from flask import appcontext_popped

    def popped(*_: object, **__: object) -> None:
        act()

    with appcontext_popped.connected_to(popped):
        yield
