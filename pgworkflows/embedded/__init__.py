"""An embedded PostgreSQL server: for a first try, for tests, for a program on one machine.

`EmbeddedPostgres` is the server, `keeper` the process that starts it and stops it when its owner is gone, `cluster`
what the keeper does to a data directory and `place` the locks that let many processes share one. `binaries` finds
PostgreSQL's programs, `account` the user to run them as, `default` is the server of an engine without a URL.
"""

from pgworkflows.embedded.binaries import find_binaries
from pgworkflows.embedded.default import default_embedded
from pgworkflows.embedded.server import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "default_embedded", "embedded_available"]


def embedded_available() -> bool:
    """Whether PostgreSQL's programs are here; starts nothing.

    ConfigurationError if PGWORKFLOWS_POSTGRES_BIN names a folder without them.
    """
    return find_binaries() is not None
