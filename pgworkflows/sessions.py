"""A connection of our own, and what is otherwise where a pooler stands before the server."""

from __future__ import annotations

import select
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from types import NoneType
from typing import Any, cast

import psycopg
from psycopg import IsolationLevel
from psycopg.abc import Buffer
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.waiting import Ready, Wait

from pgworkflows.schema import numbered

USES_UNPREPARED = 5
"""How often a statement is sent before it is worth another trip to prepare it."""
PLANS_LAST_S = 5.0
PLANS_SERVE = 20
"""How long, and for how many statements, a session's plans are kept at least."""

_TEXTS = {str, NoneType}
_TEXT_OID = psycopg.adapters.types["text"].oid
_BEGIN = "begin isolation level read committed"
# As a session's are, for one transaction. What a session keeps would reach whoever is given it next.
_SET_UP_TRANSACTION = """
select set_config('timezone', 'UTC', true),
    set_config('lock_timeout', %s, true),
    set_config('statement_timeout', coalesce(%s, current_setting('statement_timeout')), true),
    set_config(
        'synchronous_commit',
        case current_setting('synchronous_commit') when 'off' then 'on' else current_setting('synchronous_commit') end,
        true
    )
"""


class OwnConnection(psycopg.Connection[tuple[Any, ...]]):
    """In autocommit mode. `pooled`: each transaction may run in another session of the server's, as behind PgBouncer
    in transaction mode, so that nothing may be left in a session or expected there: no setting, no prepared statement,
    no lock, no LISTEN."""

    pooled = False
    _settings: tuple[str, str | None] = ("0", None)
    _named = 0
    _served = 0
    _planned_at = 0.0
    _all_sent = True
    _result: PGresult | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known: dict[str, bytes] = {}
        self._uses: dict[str, int] = {}

    def is_pooled(self, *, lock_timeout_ms: int, statement_timeout: str | None) -> None:
        """From now on, every transaction brings its settings. None leaves the server's."""
        self.pooled = True
        self._settings = (str(lock_timeout_ms), statement_timeout)
        self.isolation_level = IsolationLevel.READ_COMMITTED

    def fetch(
        self, sql: str, params: Sequence[object] | Mapping[str, object] = (), *, prepare: bool | None = None
    ) -> list[tuple[Any, ...]]:
        """The rows of one statement in a transaction of its own, in one trip. It is prepared at once, or never; or when
        it has been used a few times. Raises what the driver's cursors raise."""
        if self.pooled:
            return self._fetch_pooled(sql, params)
        self._let_no_plan_grow_old()
        if prepare or (prepare is None and self._is_used_often(sql)):
            self.prepare(sql)
        self._send(sql, self._dumped(numbered(sql).values(params)))
        return self._loaded(self.wait(self._awaited()))

    def prepare(self, sql: str) -> None:
        """Have the server know a statement that is going to be sent again and again. Nothing happens behind a
        pooler."""
        if self.pooled or sql in self._known:
            return
        self._named += 1  # whatever comes of it: who is interrupted does not know whether the server has taken the name
        name = f"pgworkflows_{self._named}".encode()
        self._result = None
        self.pgconn.send_prepare(name, numbered(sql).text.encode())
        self._all_sent = not self.pgconn.flush()
        result = self.wait(self._awaited())
        if result.status != ExecStatus.COMMAND_OK:
            raise error_from_result(result)
        self._known[sql] = name

    def can_send(self, sql: str) -> bool:
        """Whether `send` may be used: the statement is prepared, and the plans serve that were made for it."""
        return sql in self._known and not self.closed and not self._plans_are_old

    def send(self, sql: str, params: Sequence[str | None]) -> None:
        """Begin what `fetch` does, without waiting for the server, if it `can_send`. Nothing else may be asked of the
        session until `received` has given the answer."""
        self._served += 1
        self._send(sql, [None if each is None else each.encode() for each in params])

    def received(self) -> PGresult | None:
        """The answer to what was sent, as soon as all of it is there; None until then. Waits for nothing."""
        try:
            self._all_sent = self._all_sent or not self.pgconn.flush()
            self.pgconn.consume_input()
        except psycopg.Error:
            if self._result is not None and self._result.status == ExecStatus.FATAL_ERROR:
                return self._taken()  # the server had said why it was going to leave
            raise
        while not self.pgconn.is_busy():
            result = self.pgconn.get_result()
            if result is None:
                return self._taken()
            self._result = result
        return None

    def wait_to_receive(self, limit_s: float) -> None:
        """Return when `received` has something to do, and after this time at the latest. Any thread may wait."""
        ready = select.poll()
        ready.register(self.pgconn.socket, select.POLLIN if self._all_sent else select.POLLIN | select.POLLOUT)
        ready.poll(limit_s * 1000)

    def _taken(self) -> PGresult | None:
        result, self._result = self._result, None
        return result

    def _send(self, sql: str, values: Sequence[Buffer | None]) -> None:
        """Send a statement without a cursor of the driver's, which costs as much as all else that Python does for a
        small one."""
        name = self._known.get(sql)
        self._result = None  # left by one that was interrupted
        if name is None:
            self.pgconn.send_query_params(numbered(sql).text.encode(), values)
        else:
            self.pgconn.send_query_prepared(name, values)
        self._all_sent = not self.pgconn.flush()

    def _awaited(self) -> Generator[Wait, Ready | int, PGresult]:
        """The answer to what was sent, for the driver's own way of waiting: Ctrl-C cancels the statement."""
        while True:
            yield Wait.R if self._all_sent else Wait.RW
            if (result := self.received()) is not None:
                return result

    def _dumped(self, values: Sequence[object]) -> Sequence[Buffer | None]:
        if _TEXTS.issuperset(map(type, values)):
            return [None if each is None else _in_bytes(cast("str", each)) for each in values]
        return Transformer(self).dump_sequence(values, [PyFormat.TEXT] * len(values))

    def _loaded(self, result: PGresult) -> list[tuple[Any, ...]]:
        if result.status == ExecStatus.COMMAND_OK:
            return []
        if result.status != ExecStatus.TUPLES_OK:
            raise error_from_result(result)
        columns = range(result.nfields)
        if any(result.ftype(column) != _TEXT_OID for column in columns):
            loader = Transformer(self)
            loader.set_pgresult(result)
            return loader.load_rows(0, result.ntuples, tuple)
        return [tuple([_as_text(result.get_value(row, column)) for column in columns]) for row in range(result.ntuples)]

    def _is_used_often(self, sql: str) -> bool:
        uses = self._uses[sql] = self._uses.get(sql, 0) + 1
        return uses > USES_UNPREPARED

    def _fetch_pooled(self, sql: str, params: Sequence[object] | Mapping[str, object]) -> list[tuple[Any, ...]]:
        try:
            with self.pipeline():
                self.execute(_BEGIN)
                self.execute(_SET_UP_TRANSACTION, self._settings)
                cursor = self.execute(sql.encode(), params)
                self.execute("commit")
        except BaseException as error:
            if not self.closed and not self._rolled_back():
                self.close()
                if isinstance(error, psycopg.Error) and isinstance(error.__context__, psycopg.Error):
                    raise error.__context__ from None
            raise
        return cursor.fetchall() if cursor.description is not None else []

    @property
    def _plans_are_old(self) -> bool:
        return self._served >= PLANS_SERVE and time.monotonic() - self._planned_at > PLANS_LAST_S

    def _let_no_plan_grow_old(self) -> None:
        """PostgreSQL keeps a plan until somebody has counted the rows that came since. One that was made beside an
        empty queue would read all of a backlog again and again; made anew, it knows how large the tables are now."""
        if self._plans_are_old:
            self._served, self._planned_at = 0, time.monotonic()
            self.execute(b"discard plans")
        self._served += 1

    def _rolled_back(self) -> bool:
        """Whether it can be used again. When the session ends under a pipeline the driver hears why, and does not read
        on to the end; its next error is about the pipeline."""
        try:
            self.rollback()
        except psycopg.Error:
            return False
        return True

    @contextmanager
    def together(self) -> Generator[None]:
        """A transaction of several statements."""
        with self.transaction():
            if self.pooled:
                self.execute(_SET_UP_TRANSACTION, self._settings)
            yield


def _in_bytes(text: str) -> bytes:
    if "\0" in text:
        raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return text.encode()


def _as_text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
