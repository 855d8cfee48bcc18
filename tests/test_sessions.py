"""A connection of our own does what the driver's cursors do, with less ado."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from socket import SHUT_RDWR, socket
from uuid import UUID

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from waiting import until

from pgworkflows.database import connect
from pgworkflows.sessions import OwnConnection

VALUES: list[tuple[str, object]] = [
    ("text", "ä 'b' \\ \"c\""),
    ("text", ""),
    ("text", None),
    ("integer", -7),
    ("bigint", 2**40),
    ("double precision", 0.1),
    ("boolean", True),
    ("uuid", UUID(int=7)),
    ("timestamptz", datetime(2026, 11, 23, 4, 5, 6, 789, tzinfo=UTC)),
    ("text[]", ["a", 'b,"c"', ""]),
    ("uuid[]", [UUID(int=1), UUID(int=2)]),
    ("json", '{"a": [1, null]}'),
]


@pytest.fixture
def conn(database_url: str) -> Iterator[OwnConnection]:
    with closing(connect(database_url)) as conn:
        yield conn


def prepared(conn: OwnConnection) -> int:
    [(count,)] = conn.execute("select count(*) from pg_prepared_statements where name like 'pgworkflows%'").fetchall()
    return int(count)


@pytest.mark.parametrize("prepare", [True, False, None])
def test_values_go_and_come_as_with_a_cursor(conn: OwnConnection, prepare: bool | None) -> None:
    for kind, given in VALUES:
        sql = f"select %s::{kind}, 'x', %s::{kind} is null"
        wanted = conn.execute(sql.encode(), (given, given)).fetchall()
        for _ in range(8):
            assert conn.fetch(sql, (given, given), prepare=prepare) == wanted


def test_a_name_may_stand_in_a_statement_twice_and_a_percent_sign_for_itself(conn: OwnConnection) -> None:
    sql = "select %(a)s::integer - %(b)s::integer, %(a)s::integer, 7 %% 4"
    assert conn.fetch(sql, {"b": 2, "a": 5, "unused": 0}) == [(3, 5, 3)]


def test_there_may_be_many_rows_or_none_and_statements_without_any(conn: OwnConnection) -> None:
    assert conn.fetch("select n::text from generate_series(1, 3) as n") == [("1",), ("2",), ("3",)]
    assert conn.fetch("select n from generate_series(1, 0) as n") == []
    assert conn.fetch("create temporary table t (x integer)") == []


@pytest.mark.direct("behind a pooler nothing is prepared")
def test_a_statement_is_prepared_when_it_has_been_used_a_few_times(conn: OwnConnection) -> None:
    for _ in range(5):
        conn.fetch("select 1")
    assert prepared(conn) == 0
    for _ in range(3):
        conn.fetch("select 1")
        conn.fetch("select 2", prepare=True)
        conn.fetch("select 3", prepare=False)
    assert prepared(conn) == 2


@pytest.mark.parametrize("prepare", [True, False])
def test_an_error_of_the_server_is_the_drivers_and_leaves_the_connection_usable(
    conn: OwnConnection, prepare: bool
) -> None:
    for _ in range(3):
        with pytest.raises(psycopg.errors.DivisionByZero, match="division by zero"):
            conn.fetch("select 1 / %s::integer", (0,), prepare=prepare)
        assert conn.fetch("select %s::integer", (7,), prepare=prepare) == [(7,)]


def test_what_text_cannot_hold_is_refused_before_anything_is_sent(conn: OwnConnection) -> None:
    with pytest.raises(psycopg.DataError, match="NUL"):
        conn.fetch("select %s::text", ("a\0b",))
    with pytest.raises(UnicodeEncodeError):
        conn.fetch("select %s::text", ("\ud800",))
    assert conn.fetch("select 1") == [(1,)]


def test_more_than_the_socket_takes_at_once_arrives_whole(conn: OwnConnection) -> None:
    large = "x" * 20_000_000
    assert conn.fetch("select length(%s::text), %s::text", (large, large)) == [(len(large), large)]


@contextmanager
def once_busy(conn: OwnConnection, url: str, act: Callable[[psycopg.Connection], object]) -> Iterator[None]:
    """Do something, in another thread, as soon as the server is at work for a connection."""
    busy = "select 1 from pg_stat_activity where pid = %s and state = 'active' and wait_event is not null"

    def watch() -> None:
        with psycopg.connect(url, autocommit=True) as other:
            until(lambda: other.execute(busy, (conn.info.backend_pid,)).fetchone(), "the server is busy")
            act(other)

    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(watch)
        yield
        watching.result(30)


@pytest.mark.direct("a pooler makes up the process id")
def test_ctrl_c_ends_the_statement_on_the_server_too(conn: OwnConnection, database_url: str) -> None:
    with (
        once_busy(conn, database_url, lambda _: os.kill(os.getpid(), signal.SIGINT)),
        pytest.raises(KeyboardInterrupt),
    ):
        conn.fetch("select pg_sleep(100)")
    assert conn.info.transaction_status is TransactionStatus.IDLE
    assert conn.fetch("select 1") == [(1,)]


@pytest.mark.direct("behind a pooler nothing is prepared, and a cursor does the rest")
def test_ctrl_c_while_a_statement_is_being_prepared_leaves_the_connection_usable(
    conn: OwnConnection, database_url: str
) -> None:
    with psycopg.connect(database_url) as holder:
        holder.execute("create table t (x integer)")
        holder.commit()
        holder.execute("lock table t")
        with (
            once_busy(conn, database_url, lambda _: os.kill(os.getpid(), signal.SIGINT)),
            pytest.raises(KeyboardInterrupt),
        ):
            conn.fetch("select x from t", prepare=True)
    assert conn.info.transaction_status is TransactionStatus.IDLE
    assert conn.fetch("select x from t", prepare=True) == []
    assert conn.fetch("select 1", prepare=True) == [(1,)]
    assert prepared(conn) == 2


@pytest.mark.direct("behind a pooler nothing is prepared, and a cursor does the rest")
def test_a_transaction_that_is_rolled_back_takes_no_prepared_statement_along(conn: OwnConnection) -> None:
    for _ in range(8):
        conn.execute("select 1")
    conn.fetch("select 2", prepare=True)
    with pytest.raises(psycopg.errors.DivisionByZero), conn.together():
        conn.fetch("select 1 / 0")
    assert conn.fetch("select 2", prepare=True) == [(2,)]


@pytest.mark.parametrize("prepare", [True, False])
def test_what_fails_as_it_is_committed_has_failed(conn: OwnConnection, prepare: bool) -> None:
    """The server has told of the command's end before."""
    conn.execute("create table t (x integer unique deferrable initially deferred)")
    assert conn.fetch("insert into t values (1) returning x", prepare=prepare) == [(1,)]
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.fetch("insert into t values (1) returning x", prepare=prepare)
    assert conn.fetch("select count(*) from t") == [(1,)]


@pytest.mark.direct("behind a pooler nothing is prepared, and a cursor does the rest")
def test_an_answer_that_nobody_took_is_never_the_next_statements(
    conn: OwnConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conn, "_taken", interrupt)
        with pytest.raises(KeyboardInterrupt):
            conn.fetch("select 1 / 0")
    with socket(fileno=os.dup(conn.fileno())) as line:
        line.shutdown(SHUT_RDWR)
    with pytest.raises(psycopg.OperationalError):
        conn.fetch("select 1")
    assert conn.closed


@pytest.mark.direct("a pooler makes up the process id")
def test_a_session_that_ends_under_a_statement_says_why_and_closes_the_connection(
    conn: OwnConnection, database_url: str
) -> None:
    end = "select pg_terminate_backend(%s)"
    with (
        once_busy(conn, database_url, lambda other: other.execute(end, (conn.info.backend_pid,))),
        pytest.raises(psycopg.errors.AdminShutdown),
    ):
        conn.fetch("select pg_sleep(100)")
    assert conn.closed
