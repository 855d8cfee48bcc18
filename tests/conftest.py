"""The PostgreSQL that tests run on: one server a session, one migrated template, one clone of it a test.

The server is embedded and temporary, or the one that PGWORKFLOWS_TEST_URL names, whose role must be allowed to create
databases; there the session drops what it made, and what a killed session left. With PGWORKFLOWS_TEST_POOLER=pgbouncer
all but the making of databases goes through PgBouncer, in transaction mode.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from bouncing import PgBouncer, pooled
from psycopg import sql

from pgworkflows.embedded import EmbeddedPostgres
from pgworkflows.embedded.place import CONTROL

PREFIX = "pgworkflows_test_"
MEMORY = Path("/dev/shm")
MEMORY_WANTED = 4 << 30
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "max_wal_size": "512MB",
    "shared_buffers": "64MB",
    "max_prepared_transactions": "10",
    "log_min_duration_statement": "5s",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Through PgBouncer goes what asks the session's server, but for tests that say why they cannot."""
    if not pooled():
        return
    for item in items:
        for direct in item.iter_markers("direct"):
            item.add_marker(pytest.mark.skip(reason=f"not through a pooler: {direct.args[0]}"))
    others = [item for item in items if "server" not in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in set(others)]


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Tests say themselves which server they use, and what libpq's defaults are."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [*os.environ]:
            if name == "DATABASE_URL" or (name.startswith("PG") and not name.startswith("PGWORKFLOWS_")):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def server(_no_settings_from_outside: None) -> Iterator[str]:
    """The session's server: the connection string of a database from which others can be created."""
    named = os.environ.get("PGWORKFLOWS_TEST_URL")
    if named:
        yield named
    else:
        with pytest.MonkeyPatch.context() as patch:
            if _room_in_memory() > MEMORY_WANTED:
                patch.setenv("TMPDIR", str(MEMORY))  # a copy of the template takes 10 ms there, on a disk up to 250
            embedded = EmbeddedPostgres(settings=SETTINGS).start()
        with embedded:
            yield embedded.url


def _room_in_memory() -> int:
    """The free bytes in the file system in memory; 0 where there is none."""
    return shutil.disk_usage(MEMORY).free if os.access(MEMORY, os.W_OK) else 0


class Databases:
    """Makes and drops this session's databases over one connection, whose advisory lock says that the session lives."""

    def __init__(self, server: str, admin: psycopg.Connection, pooler: PgBouncer | None = None) -> None:
        self._server = server
        self._pooler = pooler
        self._admin = admin
        self._session = secrets.token_hex(4)
        self._count = 0
        admin.execute("SELECT pg_advisory_lock(hashtext(%s))", [self._session])

    def url_for(self, name: str) -> str:
        return self.direct_url_for(name) if self._pooler is None else self._pooler.url_for(name)

    def direct_url_for(self, name: str) -> str:
        """The connection string with which no pooler stands before the server."""
        return urlsplit(self._server)._replace(path=f"/{quote(name)}").geturl()

    def create(self, template: str | None = None) -> str:
        """A new database's name; a copy of `template` if given."""
        self._count += 1
        name = f"{PREFIX}{self._session}_{self._count}"
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {} STRATEGY wal_log").format(sql.Identifier(template))
        self._admin.execute(statement)
        return name

    def drop(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self._admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

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
        found = self._admin.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", [f"{PREFIX}%"]).fetchall()
        for (name,) in found:
            session = name.removeprefix(PREFIX).split("_")[0]
            locked = self._admin.execute("SELECT pg_try_advisory_lock(hashtext(%s))", [session]).fetchone()
            if session != self._session and locked == (True,):
                self.drop(name)


@pytest.fixture(scope="session")
def databases(server: str) -> Iterator[Databases]:
    """Creates further databases on the session's server."""
    with psycopg.connect(server, autocommit=True) as admin, ExitStack() as stack:
        pooler = stack.enter_context(PgBouncer(server)) if pooled() else None
        made = Databases(server, admin, pooler)
        made.drop_left_by_killed_sessions()
        yield made


@pytest.fixture(scope="session")
def migrated_template(databases: Databases) -> Iterator[str]:
    """The name of a migrated database to copy. Nobody connects to it: a copy needs it free."""
    from pgworkflows.migrate import migrate

    name = databases.create()
    try:
        migrate(databases.direct_url_for(name))  # a pooler would stay connected
        yield name
    finally:
        databases.drop(name)


@pytest.fixture
def database_url(databases: Databases, migrated_template: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    with databases.fresh(migrated_template) as url:
        yield url


@pytest.fixture
def empty_database_url(databases: Databases) -> Iterator[str]:
    """A database of the test's own without a table in it."""
    with databases.fresh() as url:
        yield url


@pytest.fixture(scope="session")
def shop_template(databases: Databases) -> Iterator[str]:
    """The name of a database with all tables of the Django project of the tests, to copy."""
    from django.core.management import call_command
    from djangoing import pointed_at

    name = databases.create()
    try:
        with pointed_at(databases.direct_url_for(name)):
            call_command("migrate", run_syncdb=True, verbosity=0)
        yield name
    finally:
        databases.drop(name)


@pytest.fixture
def shop_url(databases: Databases, shop_template: str) -> Iterator[str]:
    """A database of the test's own for the Django project, whose default database in this process it is."""
    from djangoing import pointed_at

    with databases.fresh(shop_template) as url, pointed_at(url):
        yield url


@pytest.fixture
def own_server(_no_settings_from_outside: None) -> Iterator[EmbeddedPostgres]:
    """A temporary server of the test's own, to restart or to kill (its process id is `pid`)."""
    with EmbeddedPostgres(settings=SETTINGS) as embedded:
        yield embedded


@pytest.fixture
def make_directory() -> Iterator[Callable[[], Path]]:
    """Makes short, empty directories that other users may enter; `tmp_path` is closed to root's server user."""
    made: list[Path] = []

    def make() -> Path:
        path = Path(tempfile.mkdtemp(prefix="pgw-test-"))
        path.chmod(0o755)
        made.append(path)
        return path

    yield make
    for path in made:
        for running in path.rglob(f"{CONTROL}/running"):
            with running.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH)  # the server of a process that has ended is still stopping
        shutil.rmtree(path)
