"""Connections that a caller lends, so that a call joins the caller's transaction and never ends it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import psycopg
from psycopg.rows import tuple_row

from pgworkflows.database import Connection, Executor, Params, Row


class _DbApi:
    """A psycopg, Django or other DB-API connection, or one of its cursors. One plain statement is sent: a savepoint or
    `transaction()` on a connection whose state the caller manages can commit early."""

    def __init__(self, make_cursor: Callable[[], Any]) -> None:
        self._make_cursor = make_cursor

    def fetch(self, sql: str, params: Params) -> list[Row]:
        cursor = self._make_cursor()
        try:
            cursor.execute(sql, _positional(params))
            return [_in_order(row) for row in cursor.fetchall()]
        finally:
            cursor.close()


class _SqlAlchemy:
    """A SQLAlchemy Connection: through its own method, so that it knows of the transaction it has begun."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def fetch(self, sql: str, params: Params) -> list[Row]:
        return [tuple(row) for row in self._connection.exec_driver_sql(sql, _positional(params)).fetchall()]


def _in_order(row: Any) -> Row:
    """The values of a row, also of one that a cursor of the caller's makes a dict of."""
    return tuple(row.values() if hasattr(row, "values") else row)


def _positional(params: Params) -> Any:
    return params if isinstance(params, Mapping) else tuple(params)


def borrowed(connection: Any) -> Executor:
    """An executor for a psycopg 3 connection, Django's `connection`, a SQLAlchemy Connection or Session, or any DB-API
    connection or cursor. Raises TypeError for anything else."""
    if inspect.iscoroutinefunction(getattr(connection, "execute", None)):
        raise TypeError(f"connection= takes synchronous connections; {type(connection).__name__} is asynchronous")
    if isinstance(connection, psycopg.Connection):
        # Not its own cursor class, which may want another way of writing parameters.
        return _DbApi(partial(psycopg.Cursor, cast("Connection", connection), row_factory=tuple_row))
    if isinstance(connection, psycopg.Cursor):
        return borrowed(connection.connection)
    if callable(getattr(connection, "exec_driver_sql", None)):
        return _SqlAlchemy(connection)
    if callable(getattr(connection, "get_bind", None)) and callable(getattr(connection, "connection", None)):
        return _SqlAlchemy(connection.connection())
    if callable(getattr(connection, "cursor", None)):
        return _DbApi(connection.cursor)
    if callable(getattr(connection, "execute", None)) and callable(getattr(connection, "fetchall", None)):
        return borrowed(connection.connection)
    raise TypeError(f"connection= takes a database connection or cursor, not {type(connection).__name__}")
