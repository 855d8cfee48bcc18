"""The application's database: one pool of connections a process."""

from __future__ import annotations

import os
from functools import cache
from typing import Any, TypeAlias

from psycopg import Connection
from psycopg_pool import ConnectionPool

Pool: TypeAlias = ConnectionPool[Connection[tuple[Any, ...]]]


@cache
def pool() -> Pool:
    """The process's pool. `with pool().connection() as conn:` is one transaction, committed at its end."""
    return ConnectionPool(os.environ["DATABASE_URL"], min_size=1, max_size=8, timeout=10, open=True)
