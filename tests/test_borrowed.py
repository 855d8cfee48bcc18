"""`connection=`: a call joins the caller's transaction, whatever the driver, and neither ends it nor breaks it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy
from psycopg.rows import dict_row, namedtuple_row
from psycopg_pool import ConnectionPool
from sqlalchemy import exc, orm
from waiting import until
from working import rows, value

from pgworkflows import (
    IdempotencyConflictError,
    InvalidInputError,
    InvalidStatusError,
    RunStatus,
    WorkflowClient,
    WorkflowRun,
    WorkflowRunNotFoundError,
    workflow_ref,
)

PROGRAM = Path(__file__).parent / "programs" / "django_caller.py"


class Caller:
    """Somebody's transaction: what to pass as `connection`, how to run a statement in it, and how to end it."""

    def __init__(
        self,
        connection: Any,
        execute: Callable[[str], Any],
        commit: Callable[[], None],
        rollback: Callable[[], None],
        close: Callable[[], None],
    ) -> None:
        self.connection = connection
        self.execute = execute
        self.commit = commit
        self.rollback = rollback
        self.close = close


def psycopg_connection(url: str, **options: Any) -> Caller:
    conn = psycopg.Connection[Any].connect(url, **options)
    return Caller(conn, lambda text: conn.execute(text.encode()), conn.commit, conn.rollback, conn.close)


def psycopg_cursor(url: str) -> Caller:
    conn = psycopg.connect(url)
    cursor = conn.cursor(row_factory=dict_row)
    return Caller(cursor, lambda text: cursor.execute(text.encode()), conn.commit, conn.rollback, conn.close)


def psycopg_server_cursor(url: str) -> Caller:
    conn = psycopg.connect(url)
    cursor = conn.cursor("named")

    def close() -> None:
        cursor.close()
        conn.close()

    return Caller(cursor, lambda text: conn.execute(text.encode()), conn.commit, conn.rollback, close)


def psycopg2_connection(url: str, **options: Any) -> Caller:
    conn = psycopg2.connect(url, **options)
    return Caller(conn, lambda text: conn.cursor().execute(text), conn.commit, conn.rollback, conn.close)


def psycopg2_cursor(url: str) -> Caller:
    conn = psycopg2.connect(url)
    cursor = conn.cursor(cursor_factory=psycopg2.extras.DictCursor)
    return Caller(cursor, cursor.execute, conn.commit, conn.rollback, conn.close)


def sqlalchemy_connection(url: str, driver: str) -> Caller:
    engine = sqlalchemy.create_engine(url.replace("postgresql://", f"postgresql+{driver}://"))
    conn = engine.connect()

    def close() -> None:
        conn.close()
        engine.dispose()

    return Caller(conn, lambda text: conn.execute(sqlalchemy.text(text)), conn.commit, conn.rollback, close)


def sqlalchemy_session(url: str, driver: str, *, scoped: bool = False) -> Caller:
    engine = sqlalchemy.create_engine(url.replace("postgresql://", f"postgresql+{driver}://"))
    maker = orm.sessionmaker(engine)
    session = orm.scoped_session(maker) if scoped else maker()

    def close() -> None:
        session.close()
        engine.dispose()

    return Caller(session, lambda text: session.execute(sqlalchemy.text(text)), session.commit, session.rollback, close)


CALLERS: dict[str, Callable[[str], Caller]] = {
    "psycopg connection": psycopg_connection,
    "psycopg connection of dicts": lambda url: psycopg_connection(url, row_factory=dict_row),
    "psycopg connection of named tuples": lambda url: psycopg_connection(url, row_factory=namedtuple_row),
    "psycopg connection that binds in the client": lambda url: psycopg_connection(
        url, cursor_factory=psycopg.ClientCursor
    ),
    "psycopg connection with $1 parameters": lambda url: psycopg_connection(url, cursor_factory=psycopg.RawCursor),
    "psycopg cursor": psycopg_cursor,
    "psycopg server-side cursor": psycopg_server_cursor,
    "psycopg2 connection": psycopg2_connection,
    "psycopg2 connection of dicts": lambda url: psycopg2_connection(url, cursor_factory=psycopg2.extras.RealDictCursor),
    "psycopg2 cursor": psycopg2_cursor,
    "SQLAlchemy connection on psycopg": lambda url: sqlalchemy_connection(url, "psycopg"),
    "SQLAlchemy connection on psycopg2": lambda url: sqlalchemy_connection(url, "psycopg2"),
    "SQLAlchemy session": lambda url: sqlalchemy_session(url, "psycopg"),
    "SQLAlchemy scoped session on psycopg2": lambda url: sqlalchemy_session(url, "psycopg2", scoped=True),
}


@pytest.fixture
def client(database_url: str) -> Iterator[WorkflowClient]:
    with WorkflowClient(database_url) as client:
        yield client


@pytest.fixture(params=[*CALLERS])
def caller(request: pytest.FixtureRequest, database_url: str) -> Iterator[Caller]:
    rows(database_url, "create table public.users (name text)")
    caller = CALLERS[request.param](database_url)
    yield caller
    caller.close()


def users(url: str) -> list[str]:
    return [name for (name,) in rows(url, "select name from public.users order by name")]


def test_a_call_is_part_of_the_callers_transaction(caller: Caller, client: WorkflowClient, database_url: str) -> None:
    # What is rolled back never was.
    caller.execute("insert into public.users values ('rolled back')")
    lost = client.start_workflow("a", {"it's": "100% \\ ü"}, resource_id="r", connection=caller.connection)
    assert (lost.status, lost.input) == (RunStatus.PENDING, {"it's": "100% \\ ü"})
    assert client.get_runs().items == []
    caller.rollback()
    with pytest.raises(WorkflowRunNotFoundError):
        client.get_run(lost.id)
    assert users(database_url) == []
    # What is committed is there, all of it at once, and not before.
    caller.execute("insert into public.users values ('committed')")
    run = client.start_workflow(
        "a", {"it's": "100%s \\ ü"}, timeout="1.5 hours", delay=timedelta_text, connection=caller.connection
    )
    assert run.timeout_at is not None
    client.trigger_event(run.id, "go", ["%s", None], idempotency_key="k", connection=caller.connection)
    client.pause_workflow(run.id, connection=caller.connection)
    client.resume_workflow(run.id, connection=caller.connection)
    client.cancel_workflow(run.id, connection=caller.connection)
    last = client.retry_workflow(run.id, connection=caller.connection)
    assert client.get_runs().items == []
    assert users(database_url) == []
    caller.commit()
    assert client.get_run(run.id) == last
    assert users(database_url) == ["committed"]
    assert rows(database_url, "select run_id, data from pgworkflows.events") == [(run.id, ["%s", None])]


timedelta_text = "2 days 12 hours"


def test_a_refusal_leaves_the_callers_transaction_whole(
    caller: Caller, client: WorkflowClient, database_url: str
) -> None:
    taken = client.start_workflow("a", idempotency_key="k")
    finished = client.cancel_workflow(client.start_workflow("a").id)
    caller.execute("insert into public.users values ('kept')")
    refusals: list[tuple[type[Exception], Callable[[Any], WorkflowRun]]] = [
        (IdempotencyConflictError, lambda c: client.start_workflow("b", idempotency_key="k", connection=c)),
        (WorkflowRunNotFoundError, lambda c: client.trigger_event(uuid4(), "go", connection=c)),
        (WorkflowRunNotFoundError, lambda c: client.pause_workflow(taken.id, resource_id="r", connection=c)),
        (WorkflowRunNotFoundError, lambda c: client.pause_workflow("nonsense", connection=c)),
        (InvalidStatusError, lambda c: client.trigger_event(finished.id, "go", connection=c)),
        (InvalidStatusError, lambda c: client.pause_workflow(finished.id, connection=c)),
        (InvalidStatusError, lambda c: client.resume_workflow(taken.id, connection=c)),
        (InvalidStatusError, lambda c: client.cancel_workflow(finished.id, connection=c)),
        (InvalidStatusError, lambda c: client.retry_workflow(taken.id, connection=c)),
        (
            InvalidInputError,
            lambda c: client.start_workflow(workflow_ref("a", input_schema=int), "five", connection=c),
        ),
        (ValueError, lambda c: client.start_workflow("", connection=c)),
    ]
    for kind, call in refusals:
        with pytest.raises(kind):
            call(caller.connection)
    started = client.start_workflow("a", connection=caller.connection)
    caller.commit()
    assert users(database_url) == ["kept"]
    assert client.get_run(started.id).status is RunStatus.PENDING
    assert len(client.get_runs().items) == 3


def test_a_call_sends_one_plain_statement(database_url: str, client: WorkflowClient) -> None:
    """No savepoint, no BEGIN, no COMMIT: on connections whose state a framework manages these end its transaction."""

    class Recording:
        def __init__(self, cursor: psycopg.Cursor[Any], said: list[str]) -> None:
            self._cursor, self._said = cursor, said

        def execute(self, text: str, params: Any) -> None:
            self._said.append(text)
            self._cursor.execute(text.encode(), params)

        def fetchall(self) -> list[Any]:
            return self._cursor.fetchall()

        def close(self) -> None:
            self._cursor.close()

    class Lent:
        def __init__(self, conn: psycopg.Connection[Any]) -> None:
            self._conn, self.said = conn, list[str]()

        def cursor(self) -> Recording:
            return Recording(self._conn.cursor(), self.said)

    with psycopg.connect(database_url) as conn:
        lent = Lent(conn)
        run = client.start_workflow("a", connection=lent)
        client.trigger_event(run.id, "go", connection=lent)
        with pytest.raises(InvalidStatusError):
            client.retry_workflow(run.id, connection=lent)
        assert conn.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS
    assert len(lent.said) == 3
    for text in lent.said:
        words = text.lower()
        assert words.count("select ") >= 1
        assert not any(word in words for word in ("savepoint", "begin", "commit", "release", "rollback", "set "))


def test_on_a_connection_in_autocommit_mode_a_call_is_its_own_transaction(
    client: WorkflowClient, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        run = client.start_workflow("a", connection=conn)
        assert client.get_run(run.id) == run
        with pytest.raises(IdempotencyConflictError):
            client.start_workflow(
                "b", idempotency_key=client.start_workflow("a", idempotency_key="k").idempotency_key, connection=conn
            )
        with conn.transaction(force_rollback=True):
            client.start_workflow("rolled back", connection=conn)
    with closing(psycopg2.connect(database_url)) as older:
        older.autocommit = True
        other = client.start_workflow("a", connection=older)
        assert client.get_run(other.id) == other
    assert [found.workflow_id for found in client.get_runs().items] == ["a", "a", "a"]


def test_a_connection_of_a_pool_and_one_in_a_pipeline_can_be_lent(client: WorkflowClient, database_url: str) -> None:
    with ConnectionPool(database_url, min_size=1, open=True) as pool, pool.connection() as conn:
        run = client.start_workflow("a", connection=conn)
        with conn.pipeline():
            other = client.start_workflow("a", connection=conn)
    assert client.get_runs().items == [other, run]


def test_an_aborted_transaction_raises_the_drivers_own_error(client: WorkflowClient, database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("select 1/0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            client.start_workflow("a", connection=conn)
        conn.rollback()
        assert client.start_workflow("a", connection=conn).status is RunStatus.PENDING
    with closing(psycopg2.connect(database_url)) as older, older.cursor() as cursor:
        with pytest.raises(psycopg2.errors.DivisionByZero):
            cursor.execute("select 1/0")
        with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
            client.start_workflow("a", connection=cursor)
        older.rollback()
    engine = sqlalchemy.create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with orm.Session(engine) as session:
        with pytest.raises(exc.DataError):
            session.execute(sqlalchemy.text("select 1/0"))
        with pytest.raises(exc.InternalError, match="current transaction is aborted"):
            client.start_workflow("a", connection=session)
    engine.dispose()


def test_a_serialization_failure_in_the_callers_transaction_is_the_drivers_own_error(
    client: WorkflowClient, database_url: str
) -> None:
    with psycopg.connect(database_url) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("select 1")  # the snapshot
        run = client.start_workflow("a", idempotency_key="k")
        with pytest.raises(psycopg.errors.SerializationFailure):
            client.start_workflow("a", idempotency_key="k", connection=conn)
        conn.rollback()
        assert client.start_workflow("a", idempotency_key="k", connection=conn) == run


def test_a_closed_connection_raises_the_drivers_own_error(client: WorkflowClient, database_url: str) -> None:
    conn = psycopg.connect(database_url)
    conn.close()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        client.start_workflow("a", connection=conn)


def test_two_callers_with_one_key_start_one_run(client: WorkflowClient, database_url: str) -> None:
    with psycopg.connect(database_url) as first:
        run = client.start_workflow("a", idempotency_key="k", connection=first)
        found: list[WorkflowRun] = []
        second = threading.Thread(target=lambda: found.append(client.start_workflow("a", idempotency_key="k")))
        second.start()
        waiting = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
        until(lambda: value(database_url, waiting), "the second start waits for the first")
        first.commit()
        second.join(20)
    assert found == [run]


def test_the_run_of_another_callers_rolled_back_start_does_not_hold_the_key(
    client: WorkflowClient, database_url: str
) -> None:
    with psycopg.connect(database_url) as conn:
        lost = client.start_workflow("a", idempotency_key="k", connection=conn)
        conn.rollback()
    run = client.start_workflow("b", idempotency_key="k")
    assert (run.workflow_id, run.id == lost.id) == ("b", False)


def test_what_is_no_synchronous_connection_is_refused(client: WorkflowClient, database_url: str) -> None:
    engine = sqlalchemy.create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    for wrong in (database_url, 5, object(), engine, client):
        with pytest.raises(TypeError, match="connection= takes a database connection or cursor, not"):
            client.start_workflow("a", connection=wrong)

    class Asynchronous:  # such as psycopg's, SQLAlchemy's and asyncpg's
        async def execute(self, text: str) -> None: ...

        def cursor(self) -> None: ...

    for later in (Asynchronous(), psycopg.AsyncConnection, psycopg.AsyncCursor):
        with pytest.raises(TypeError, match="connection= takes synchronous connections; .* is asynchronous"):
            client.start_workflow("a", connection=later)
    assert client.get_runs().items == []


def test_any_schema_works_on_a_lent_connection(empty_database_url: str) -> None:
    with WorkflowClient(empty_database_url, schema="""100% "Ünsere" 'flows'""") as client:
        client.migrate()
        for make in (psycopg_connection, psycopg2_connection, psycopg_cursor):
            caller = make(empty_database_url)
            run = client.start_workflow("a", {"%": "%s"}, connection=caller.connection)
            caller.commit()
            caller.close()
            assert client.get_run(run.id) == run


def test_times_do_not_depend_on_the_callers_time_zone(client: WorkflowClient, database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        conn.execute("set timezone = 'Asia/Kathmandu'")
        conn.execute("set datestyle = 'German, DMY'")
        conn.execute("set intervalstyle = 'sql_standard'")
        conn.execute("set search_path = nowhere")
        run = client.start_workflow(
            "a", run_at="2040-02-01T00:00:00Z", timeout="1 day 2 hours 3.5 seconds", connection=conn
        )
    assert client.get_run(run.id) == run
    assert str(run.scheduled_at) == "2040-02-01 00:00:00+00:00"
    assert str(run.timeout_at) == "2040-02-02 02:00:03.500000+00:00"


@pytest.mark.parametrize("bound_by", ["client", "server"])
def test_djangos_connection(database_url: str, bound_by: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM), database_url, bound_by],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    with WorkflowClient(database_url) as client:
        found = {run.workflow_id: run for run in client.get_runs().items}
        assert set(found) == {"committed", "after-refusal", "autocommit", "by-cursor", "savepoint-kept"}
        assert found["committed"].id == UUID(said["committed"])
        assert found["committed"].input == {"it's": "100%"}
    assert users(database_url) == ["ann", "bob"]
