"""The PostgreSQL that tests run on: one server a session, one migrated template, one clone of it a test.

The server is embedded and temporary, or the one that PGWORKFLOWS_TEST_URL names, whose role must be allowed to create
databases; there the session drops what it made, and what a killed session left. With PGWORKFLOWS_TEST_POOLER=pgbouncer
all but the making of databases goes through PgBouncer, in transaction mode.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bouncing import PgBouncer, pooled

from pgworkflows.embedded import EmbeddedPostgres
from pgworkflows.embedded.place import CONTROL
from pgworkflows.scratch import ScratchDatabases
from pgworkflows.testing.server import SETTINGS, session_server

if TYPE_CHECKING:
    from browsing import Chromium


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
    with session_server() as url:
        yield url


@pytest.fixture(scope="session")
def pgworkflows_server(server: str) -> str:
    """The testing kit's databases are on the same server."""
    return server


class Databases(ScratchDatabases):
    """Makes and drops this session's databases; what connects to them goes through the pooler, if there is one."""

    def __init__(self, server: str, pooler: PgBouncer | None = None) -> None:
        super().__init__(server)
        self._pooler = pooler

    def url_for(self, name: str) -> str:
        return self.direct_url_for(name) if self._pooler is None else self._pooler.url_for(name)

    def direct_url_for(self, name: str) -> str:
        """The connection string with which no pooler stands before the server."""
        return super().url_for(name)


@pytest.fixture(scope="session")
def databases(server: str) -> Iterator[Databases]:
    """Creates further databases on the session's server."""
    with ExitStack() as stack:
        pooler = stack.enter_context(PgBouncer(server)) if pooled() else None
        made = stack.enter_context(Databases(server, pooler))
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
def quick_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this process beat so often that nobody has to wait long for a heartbeat."""
    from pgworkflows import heartbeat

    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.1)


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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    """A browser for the tests of one file. While it runs this thread counts as one with an event loop, where Django
    would refuse to ask the database."""
    from browsing import find_chromium, running

    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium: install Debian's package chromium, or name one in PGWORKFLOWS_CHROMIUM")
    with pytest.MonkeyPatch.context() as patch, running(path) as browser:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield browser
