"""A connection of our own, and what is otherwise where a pooler stands before the server."""

from __future__ import annotations

import select
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import Cursor, IsolationLevel
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

PLANS_LAST_S = 5.0
PLANS_SERVE = 20
"""How long, and for how many statements, a session's plans are kept at least."""

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
    _served = 0
    _planned_at = 0.0
    _all_sent = True
    _result: PGresult | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known: dict[str, bytes] = {}

    def is_pooled(self, *, lock_timeout_ms: int, statement_timeout: str | None) -> None:
        """From now on, every transaction brings its settings. None leaves the server's."""
        self.pooled = True
        self._settings = (str(lock_timeout_ms), statement_timeout)
        self.prepare_threshold = None
        self.isolation_level = IsolationLevel.READ_COMMITTED

    def run(self, sql: str, params: Any, *, prepare: bool | None = None) -> Cursor[tuple[Any, ...]]:
        """One statement in a transaction of its own, in one trip."""
        if not self.pooled:
            self._let_no_plan_grow_old()
            return self.execute(sql.encode(), params, prepare=prepare)
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
        return cursor

    def prepare(self, sql: str) -> None:
        """Have the server know a statement, with `$1`, `$2` for its parameters, that is going to be sent again and
        again. Nothing happens behind a pooler."""
        if self.pooled or sql in self._known:
            return
        name = f"pgworkflows_{len(self._known)}".encode()
        result = self.pgconn.prepare(name, sql.encode())
        if result.status != ExecStatus.COMMAND_OK:
            raise error_from_result(result)
        self._known[sql] = name

    def can_send(self, sql: str) -> bool:
        """Whether `send` may be used: the statement is prepared, and the plans serve that were made for it."""
        return sql in self._known and not self.closed and not self._plans_are_old

    def send(self, sql: str, params: Sequence[str | None]) -> None:
        """Begin what `run` does, without waiting for the server, if it `can_send`; and without a cursor, which costs as
        much as all else that Python does for a small statement. Nothing else may be asked of the session until
        `received` has given the answer."""
        self._served += 1
        values = [None if each is None else each.encode() for each in params]
        self.pgconn.send_query_prepared(self._known[sql], values)
        self._all_sent = not self.pgconn.flush()

    def received(self) -> PGresult | None:
        """The answer to what was sent, as soon as all of it is there; None until then. Waits for nothing."""
        self._all_sent = self._all_sent or not self.pgconn.flush()
        self.pgconn.consume_input()
        while not self.pgconn.is_busy():
            result = self.pgconn.get_result()
            if result is None:
                answer, self._result = self._result, None
                return answer
            self._result = result
        return None

    def wait_to_receive(self, limit_s: float) -> None:
        """Return when `received` has something to do, and after this time at the latest. Any thread may wait."""
        ready = select.poll()
        ready.register(self.pgconn.socket, select.POLLIN if self._all_sent else select.POLLIN | select.POLLOUT)
        ready.poll(limit_s * 1000)

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
