"""One database: how connections to it are opened and set up, how a client runs its statements, what errors mean."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Protocol

import psycopg
from psycopg import Cursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from pgworkflows.connections import Connections, has_ended
from pgworkflows.errors import ConfigurationError, SerializationError, WorkflowEngineError
from pgworkflows.failures import outline
from pgworkflows.limits import is_storable
from pgworkflows.sessions import OwnConnection

Connection = psycopg.Connection[tuple[Any, ...]]
Pool = ConnectionPool[Any]
DriverError = psycopg.Error
"""What is raised for errors of the server that the library has no words for."""
Row = tuple[Any, ...]
Params = Sequence[object] | Mapping[str, object]

CONNECT_TIMEOUT_S = 10
POOL_SIZE = 10
POOL_TIMEOUT_S = 10.0
_DEFAULTS = {
    "fallback_application_name": "pgworkflows",
    "connect_timeout": str(CONNECT_TIMEOUT_S),
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    # Keepalives are not sent while something waits to be acknowledged: a server that vanishes in the middle of a flush
    # would be waited for through all retransmissions, a quarter of an hour.
    "tcp_user_timeout": "25000",
}
# Whatever the database's encoding: what it cannot hold, the server refuses, and our own statements are UTF-8.
_ALWAYS = {"client_encoding": "utf8"}
# A statement may not be repeated or reordered under a snapshot of its transaction, and an acknowledged write must be
# on disk, whatever the server's defaults say. JSON shows times in the session's zone: UTC. Read-only stays read-only:
# hosts make a database so whose disk is nearly full. Behind a
# pooler nothing is set: it makes up the process id that it tells a client, and the sessions are others' as well.
_SET_UP = """
select set_config('default_transaction_isolation', 'read committed', false),
    set_config('timezone', 'UTC', false),
    set_config('lock_timeout', %s, false),
    set_config(
        'synchronous_commit',
        case current_setting('synchronous_commit') when 'off' then 'on' else current_setting('synchronous_commit') end,
        false
    )
where pg_backend_pid() = %s
"""
# Limits that an administrator sets for others' statements would cancel a large flush again and again, and would end a
# session that only listens. What a worker's statements may wait for, the lock timeout bounds.
_SET_UP_WORKER = """
select set_config(s.name, '0', false)
from pg_settings as s
where s.name in ('statement_timeout', 'transaction_timeout', 'idle_session_timeout')
"""


DATA_ERROR_CLASSES = frozenset({"21", "22", "23", "54", "2F", "38", "39", "P0"})
"""SQLSTATE classes of errors that one row of a statement causes, and that the same statement would only repeat. The
last four are what triggers raise that somebody has put on our tables."""


PLANNED_ANEW = "-- Planned anew"
"""How a statement begins whose right plan depends on its values: it is not prepared."""


class NotAllowed(ConfigurationError):
    """The database user lacks a privilege."""

    def __init__(self, reason: str) -> None:
        """`reason` is the server's: which object is denied."""
        super().__init__(f"the database user lacks a privilege ({reason}): grant it, or use another user")
        self.reason = reason


class ConnectionLost(ConfigurationError):
    """The connection ended under a statement, which may have been carried out or not."""


class Unavailable(Exception):
    """The server, the connection or a resource is away: the same statement may be sent again, after a pause."""


class Refused(Exception):
    """The server does not take a value of the statement. `fact` tells of it in logs: without the value."""

    def __init__(self, reason: str, fact: str = "a value was refused") -> None:
        super().__init__(reason)
        self.fact = fact


class Locked(Exception):
    """Somebody else holds a row of the statement."""


def sorted_out(error: psycopg.Error) -> Unavailable | Refused | Locked:
    """What a worker does about an error: send it again later, find the culprit, or leave it for the next time."""
    said, detail = error.diag.message_primary, error.diag.message_detail
    # Without the context, which repeats our statements.
    reason = said or str(error).strip()
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return Locked(reason)
    if error.sqlstate is not None and error.sqlstate[:2] in DATA_ERROR_CLASSES:
        return Refused(f"{reason} ({detail})" if detail else reason, _fact(error))
    return Unavailable(reason)


def told(error: BaseException) -> str:
    """What logs say of an error: its words where they hold no values, else where it came from."""
    if isinstance(error, Refused):
        return error.fact
    if isinstance(error, Unavailable | Locked | WorkflowEngineError):
        return str(error).strip() or type(error).__name__
    return outline(error)


def _fact(error: psycopg.Error) -> str:
    """What the server objected to, in names only: its words quote values."""
    place = (("constraint", error.diag.constraint_name), ("table", error.diag.table_name))
    names = "".join(f", {what} {name}" for what, name in place if name)
    return f"{type(error).__name__} ({error.sqlstate}){names}"


class Executor(Protocol):
    """Runs one statement of ours and returns its rows: on a connection of the pool, or on one that a caller lent."""

    def fetch(self, sql: str, params: Params) -> list[Row]: ...


def normalise(conninfo: object) -> str:
    """A connection string for libpq. Understands SQLAlchemy's `postgresql+psycopg://`; raises ConfigurationError, and
    TypeError for what is no string."""
    if not isinstance(conninfo, str):
        raise TypeError(f"the connection string must be a string, not {type(conninfo).__name__}")
    if not is_storable(conninfo):
        raise ConfigurationError("the connection string must not hold NUL or lone surrogates")
    scheme, separator, rest = conninfo.partition("://")
    if separator and "+" in scheme:
        conninfo = f"{scheme.split('+')[0]}://{rest}"
    try:
        given = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        # The driver's message repeats the string, which may hold a password.
        raise ConfigurationError(
            "the connection string could not be read: use postgresql://user:password@host:port/database"
        ) from None
    # Of several hosts, the one that can be written to.
    several = "," in str(given.get("host") or given.get("hostaddr") or "")
    which = {"target_session_attrs": "primary"} if several else {}
    return make_conninfo("", **{**_DEFAULTS, **which, **given, **_ALWAYS})


def connect(conninfo: str, *, lock_timeout_ms: int = 0) -> OwnConnection:
    """A connection of our own, in autocommit mode. Raises ConfigurationError with the server's reason."""
    return _connect(conninfo, lock_timeout_ms, worker=False)


def connect_worker(conninfo: str, *, lock_timeout_ms: int = 0) -> OwnConnection:
    """The same for a worker's statements, which no default of the server's cuts short."""
    return _connect(conninfo, lock_timeout_ms, worker=True)


def _connect(conninfo: str, lock_timeout_ms: int, *, worker: bool) -> OwnConnection:
    given = normalise(conninfo)
    try:
        # The driver prepares nothing: if it has, a transaction that it rolls back takes our prepared statements along.
        conn = OwnConnection.connect(given, autocommit=True, prepare_threshold=None, row_factory=tuple_row)
    except psycopg.Error as error:
        raise ConfigurationError(f"cannot connect to PostgreSQL: {str(error).strip()}") from error
    try:
        if not conn.execute(_SET_UP, (str(lock_timeout_ms), conn.info.backend_pid)).fetchall():
            conn.is_pooled(lock_timeout_ms=lock_timeout_ms, statement_timeout="0" if worker else None)
        elif worker:
            conn.execute(_SET_UP_WORKER)
    except BaseException as error:
        conn.close()
        if isinstance(error, psycopg.Error):
            raise ConfigurationError(f"cannot set up a connection to PostgreSQL: {str(error).strip()}") from error
        raise
    return conn


class Database:
    """One database for a client: a pool opened at first use, and the way to connections outside it."""

    def __init__(self, conninfo: str | None, pool: Pool | None, listen_conninfo: str | None = None) -> None:
        self._conninfo = None if conninfo is None else normalise(conninfo)
        self._listen_conninfo = None if listen_conninfo is None else normalise(listen_conninfo)
        self._given = pool
        self._given_is_pooled: bool | None = None
        self._own: Connections | None = None
        self._lock = Lock()
        self._left_behind: list[Connections] = []

    @property
    def borrowed(self) -> bool:
        """Whether statements join a transaction that somebody else ends."""
        return False

    @property
    def conninfo(self) -> str:
        """What a worker connects with."""
        if self._conninfo is not None:
            return self._conninfo
        assert self._given is not None
        given, kwargs = self._given.conninfo, self._given.kwargs
        conninfo = given() if callable(given) else given
        parameters = kwargs() if callable(kwargs) else kwargs
        return normalise(make_conninfo(normalise(conninfo), **_connect_parameters(parameters)))

    @property
    def listen_conninfo(self) -> str:
        """What a worker listens with."""
        return self._listen_conninfo or self.conninfo

    @contextmanager
    def connection(self) -> Generator[Connection]:
        """A connection that works, for the length of a with statement. Raises ConfigurationError."""
        source, conn = self._take_one()
        try:
            yield conn
        finally:
            source.putconn(conn)

    def fetch(self, sql: str, params: Params = ()) -> list[Row]:
        """Run one statement on a connection of the client's. Raises the library's errors where there is one."""
        source, conn = self._take_one()
        try:
            if isinstance(conn, OwnConnection):
                return conn.fetch(sql, params, prepare=_prepare(sql))
            return self._fetch_given(conn, sql, params)
        except psycopg.Error as error:
            lost = conn.closed
            if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                conn.close()  # a primary that has become a standby: the next one may find the new primary
            elif not lost:
                conn.rollback()
            raise explained(error, lost=lost) from error
        finally:
            source.putconn(conn)

    def _take_one(self) -> tuple[Connections | Pool, Connection]:
        """A connection that works, and to whom it is given back. Raises ConfigurationError."""
        if self._given is not None:
            return self._given, _take(self._given, self)
        own = self._opened()
        return own, own.getconn()

    def _fetch_given(self, conn: Connection, sql: str, params: Params) -> list[Row]:
        """On a connection of a pool that was given, which may not be in autocommit mode."""
        with Cursor(conn, row_factory=tuple_row) as cursor:
            if self._given_is_pooled is None:
                found = cursor.execute("select pg_catalog.pg_backend_pid()").fetchall()
                conn.commit()
                self._given_is_pooled = found != [(conn.info.backend_pid,)]
            cursor.execute(sql.encode(), params, prepare=False if self._given_is_pooled else _prepare(sql))
            rows = cursor.fetchall()
        if not conn.autocommit:
            conn.commit()
        return rows

    def close(self) -> None:
        """Close the connections, but not a pool that was given."""
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            self._let_go(own)

    def _opened(self) -> Connections:
        own = self._own
        if own is not None and own.owner == os.getpid():
            return own
        with self._lock:
            if self._own is not None and self._own.owner != os.getpid():
                self._let_go(self._own)
                self._own = None
            if self._own is None:
                self._own = Connections(lambda: connect(self.conninfo), size=POOL_SIZE, patience_s=POOL_TIMEOUT_S)
            return self._own

    def _let_go(self, own: Connections) -> None:
        if own.owner == os.getpid():
            own.close()
        else:
            # After a fork: the sockets are the parent's. Kept here, they are neither used nor closed.
            self._left_behind.append(own)


class Reads:
    """Runs statements that only read: once more, on another connection, when the first was lost under one. An idle
    connection that has ended is found out before; behind a pooler, only by its use."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def fetch(self, sql: str, params: Params) -> list[Row]:
        try:
            return self._database.fetch(sql, params)
        except ConnectionLost:
            return self._database.fetch(sql, params)


def _prepare(sql: str) -> bool | None:
    """Whether to prepare a statement; None leaves it to the driver."""
    return False if sql.startswith(PLANNED_ANEW) else None


def _take(pool: Pool, database: Database) -> Connection:
    """A connection of a pool that was given, which itself would find out only by its use that one has broken."""
    while True:
        try:
            conn: Connection = pool.getconn()
        except PoolTimeout as error:
            connect(database.conninfo).close()  # raises with the server's reason, if it is that
            raise ConfigurationError(
                f"no connection was free within {pool.timeout:g} s: all {pool.max_size} of the pool are in use"
            ) from error
        except PoolClosed as error:
            raise ConfigurationError(f"the pool that was given is not open ({error}): open it first") from error
        if not has_ended(conn):
            return conn
        pool.putconn(conn)


def conninfo_of(parameters: Mapping[str, Any]) -> str:
    """The connection string in what somebody passes to `connect`: what libpq knows of it, without their driver's own
    arguments, and without an encoding, which is ours."""
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()} - {"client_encoding"}
    given = {key: value for key, value in parameters.items() if key in known and value is not None}
    return make_conninfo("", **given)


def _connect_parameters(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of a pool's arguments for `connect` is libpq's, not psycopg's."""
    drivers = {"autocommit", "row_factory", "prepare_threshold", "cursor_factory", "context"}
    return {key: value for key, value in (kwargs or {}).items() if key not in drivers}


def explained(error: psycopg.Error, *, lost: bool = False) -> Exception:
    """The library's error for what a statement of ours can meet on the server; the driver's where there is none.
    `lost`: the connection has ended with it."""
    reason = str(error).strip()
    fact = error.diag.message_primary or reason  # without the lines of our statement
    found: WorkflowEngineError
    match error:
        case psycopg.errors.UndefinedTable() | psycopg.errors.UndefinedFunction() | psycopg.errors.InvalidSchemaName():
            found = ConfigurationError(
                "the schema is not there, or of another version: call migrate() or engine.start(), or run pgworkflows "
                f"migrate, first ({fact})"
            )
        case psycopg.errors.ReadOnlySqlTransaction():
            found = ConfigurationError(
                "the server is read-only: connect to the primary, or find out why default_transaction_read_only is on "
                f"({fact})"
            )
        case psycopg.errors.InsufficientPrivilege():
            found = NotAllowed(fact)
        case _ if error.sqlstate is not None and error.sqlstate[:2] in {"22", "54"}:
            found = SerializationError(f"PostgreSQL refused a value ({reason})")
        case _ if lost:
            found = ConnectionLost(
                f"the connection to PostgreSQL was lost ({reason}): the call may have been carried out or not; a start "
                "or an event with an idempotency_key can be repeated safely"
            )
        case _:
            return error
    return found
