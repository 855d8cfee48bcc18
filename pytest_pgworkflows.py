"""The fixtures of pgworkflows.testing, a plugin of pytest's.

It stands outside the package and imports it only where a fixture is asked for: a suite that uses none pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pgworkflows.scratch import ScratchDatabases
    from pgworkflows.testing import Workflows


@pytest.fixture(scope="session")
def pgworkflows_server() -> Iterator[str]:
    """The session's server: $PGWORKFLOWS_TEST_URL, or an embedded one. Override it to name another: the connection
    string of a database from which others can be created."""
    from pgworkflows.testing.server import session_server

    with session_server() as url:
        yield url


@pytest.fixture(scope="session")
def pgworkflows_prepare() -> Callable[[str], None]:
    """Called once a session with the URL of the database that all others are copies of. Override it to make your own
    tables there; keep no connection open."""

    def nothing(url: str) -> None:
        pass

    return nothing


@pytest.fixture(scope="session")
def _pgworkflows_databases(pgworkflows_server: str) -> Iterator[ScratchDatabases]:
    from pgworkflows.scratch import ScratchDatabases

    with ScratchDatabases(pgworkflows_server) as databases:
        databases.drop_left_by_killed_sessions()
        yield databases


@pytest.fixture(scope="session")
def _pgworkflows_template(
    _pgworkflows_databases: ScratchDatabases, pgworkflows_prepare: Callable[[str], None]
) -> Iterator[str]:
    from pgworkflows.testing.server import prepare

    name = _pgworkflows_databases.create()
    try:
        prepare(_pgworkflows_databases.url_for(name), pgworkflows_prepare)
        yield name
    finally:
        _pgworkflows_databases.drop(name)


@pytest.fixture
def pgworkflows_url(_pgworkflows_databases: ScratchDatabases, _pgworkflows_template: str) -> Iterator[str]:
    """A migrated database of the test's own, whose time can be moved: its connection string."""
    with _pgworkflows_databases.fresh(_pgworkflows_template) as url:
        yield url


@pytest.fixture
def workflows(pgworkflows_url: str) -> Iterator[Workflows]:
    """Drives workflows in the test's thread, on a database of the test's own."""
    from pgworkflows.engine import WorkflowEngine
    from pgworkflows.testing import Workflows

    with Workflows(WorkflowEngine(pgworkflows_url)) as workflows:
        yield workflows
        workflows.check_faults()
