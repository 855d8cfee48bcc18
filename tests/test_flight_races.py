"""Flushes that are under way while other things happen: every interleaving made by hand, or many at random."""

from __future__ import annotations

import logging
import os
import queue
import random
import select
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import psycopg
import pytest
from waiting import until
from working import HandWorker, value, working

from pgworkflows import (
    Step,
    Steps,
    StepStatus,
    WorkflowClient,
    WorkflowEngine,
    backoff,
    claims,
    database,
    scribe,
    sessions,
    worker_connection,
    workflow,
)
from pgworkflows.embedded import EmbeddedPostgres
from pgworkflows.entries import Entry
from pgworkflows.holdings import Holdings
from pgworkflows.journal import Answer, Verdict
from pgworkflows.migrate import migrate
from pgworkflows.replay import StepWrite
from pgworkflows.runner import Execution
from pgworkflows.scribe import Scribe
from pgworkflows.worker_connection import WorkerConnection

pytestmark = pytest.mark.direct("behind a pooler nothing is sent without waiting")
LOGGER = logging.getLogger("pgworkflows")


@workflow("short")
def short(step: Step, input: int) -> Steps[int]:
    return (yield from step.run("only", int, input))


def elsewhere(call: Callable[[], None]) -> None:
    """Make a call in another thread, to its end."""
    thread = threading.Thread(target=call, name="pgworkflows-step")
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


class Desk:
    """A scribe with a connection of its own, the runs that it may write to, and what it has told of them."""

    def __init__(self, url: str, runs: int) -> None:
        with WorkflowClient(url) as client:
            client.start_workflows("short", list(range(runs)))
        self.hand = HandWorker(url, ["short"])
        self.runs = [Execution(run, short, LOGGER) for run in self.hand.claim(runs).runs]
        assert len(self.runs) == runs
        self.told: list[tuple[str, Verdict]] = []
        self.conn = WorkerConnection(url, "pgworkflows")
        self.is_alone = False
        self._url = url
        holdings = Holdings()
        holdings.worker_id = self.hand.id
        self.scribe = Scribe(self.conn, holdings, self._written, self._answered, lambda: self.is_alone, LOGGER, "test")

    def _written(self, batch: Sequence[tuple[Execution, Entry]]) -> None:
        self.told += [(entry.run_id, Verdict.WRITTEN) for _, entry in batch]

    def _answered(self, _: Execution, entry: Entry, answer: Answer) -> None:
        self.told.append((entry.run_id, answer.verdict))

    def release(self, number: int) -> None:
        """Submit in another thread that a run is given back."""
        execution = self.runs[number]
        elsewhere(lambda: self.scribe.submit(execution, execution.release_entry()))

    def complete(self, number: int, output: str) -> None:
        run = self.runs[number].run
        entry = Entry(run.run_id, run.claim_id, run.signal, "complete", output=output)
        elsewhere(lambda: self.scribe.submit(self.runs[number], entry))

    def await_open(self) -> None:
        """Wait until a flight can be launched."""
        until(lambda: self.conn.can_send("flush") and not self.scribe._pen.locked(), "the connection is ready")

    def await_written(self, *numbers: int) -> None:
        """Wait until these runs, and no others, are told to be written, once each."""
        until(lambda: len(self.told) >= len(numbers), "all have their answers", within_s=8)
        assert sorted(self.told) == sorted((self.runs[each].run.run_id, Verdict.WRITTEN) for each in numbers)

    def cut_off(self) -> None:
        """End the connection's session, from the server's side."""
        pid = self.conn.open().info.backend_pid
        assert value(self._url, "select pg_terminate_backend(%s, 5000)", pid)

    @contextmanager
    def held_up(self) -> Generator[None]:
        """The next flush stays under way."""
        with psycopg.connect(self._url) as holder:
            holder.execute("lock table pgworkflows.queue in access exclusive mode")
            yield

    def end(self) -> None:
        self.scribe.close(10)
        assert not self.scribe.is_alive()
        self.hand.connection.close()


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    desk = Desk(database_url, 6)
    yield desk
    desk.end()


class Interlude:
    """Does something once, in the thread that comes by, when it is asked to."""

    def __init__(self) -> None:
        self._what: Callable[[], None] | None = None
        self.over = threading.Event()

    def ask(self, what: Callable[[], None]) -> None:
        self._what = what

    def come_by(self) -> None:
        what, self._what = self._what, None
        if what is not None:
            what()
            self.over.set()


def after_an_empty_look(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Interlude:
    """What comes between the scribe's look for entries, which finds none, and the moment when it puts down the pen."""
    interlude, gather = Interlude(), desk.scribe._gather

    def gathered(batch: Any) -> Any:
        found = gather(batch)
        if not found and threading.current_thread() is desk.scribe:
            interlude.come_by()
        return found

    monkeypatch.setattr(desk.scribe, "_gather", gathered)
    return interlude


def test_what_comes_in_while_the_scribe_is_about_to_sleep_is_written(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    interlude = after_an_empty_look(desk, monkeypatch)
    interlude.ask(lambda: desk.release(0))
    desk.scribe.start()
    assert interlude.over.wait(10)
    desk.await_written(0)


def test_what_comes_in_while_the_scribe_is_about_to_end_is_written(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    interlude = after_an_empty_look(desk, monkeypatch)
    desk.scribe.start()
    desk.await_open()
    interlude.ask(lambda: desk.release(0))
    desk.scribe.close(10)
    assert interlude.over.is_set()
    desk.await_written(0)


def test_a_connection_that_another_thread_closes_while_the_scribe_looks_for_the_answer(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool's thread that looks at the flight notices first that the session has ended."""
    interlude, poll = Interlude(), select.poll

    def polled() -> Any:
        interlude.come_by()
        return poll()

    def cut_off_and_look() -> None:
        desk.cut_off()
        elsewhere(desk.scribe._move_on)
        elsewhere(desk.scribe._move_on)

    monkeypatch.setattr(select, "poll", polled)
    desk.scribe.start()
    desk.await_open()
    with desk.held_up():
        interlude.ask(cut_off_and_look)
        desk.release(0)
        assert interlude.over.wait(10)
        assert desk.scribe._flight is None or desk.scribe._flight.told is not None
    desk.await_written(0)


def test_a_flush_that_does_not_fit_the_socket_is_sent_as_fast_as_the_server_takes_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe, "WATCH_S", 30.0)
    desk.scribe.start()
    desk.await_open()
    desk.complete(0, f'"{"€" * 900_000}"')
    desk.await_written(0)


def test_what_failed_at_once_is_told_before_it_is_sent_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is the error kept, whose traceback holds the run."""
    flush = claims.flush

    def broken_in_the_pool(*args: Any) -> Any:
        if threading.current_thread() is not desk.scribe:
            raise ArithmeticError("nobody expects this")
        return flush(*args)

    monkeypatch.setattr(claims, "flush", broken_in_the_pool)
    desk.scribe.start()
    desk.await_open()
    desk.is_alone = True
    desk.release(0)
    desk.await_written(0)
    assert desk.scribe._failed_at_once is None
    assert "nobody expects this" in caplog.text


def test_nothing_is_sent_while_the_scribe_makes_up_for_a_flight_that_was_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    interlude, write = Interlude(), desk.scribe._write

    def about_to_write(batch: Any, *others: Any) -> bool:
        if batch:
            interlude.come_by()
        return write(batch, *others)

    monkeypatch.setattr(desk.scribe, "_write", about_to_write)
    interlude.ask(lambda: desk.release(1))
    desk.scribe.start()
    desk.await_open()
    desk.complete(0, "no JSON")
    until(lambda: len(desk.told) == 2, "both have their answers", within_s=8)
    assert [verdict for _, verdict in desk.told] == [Verdict.REFUSED, Verdict.WRITTEN]
    assert interlude.over.is_set()


@pytest.mark.parametrize("when", ["in a flight", "as it is prepared"])
def test_a_session_whose_answer_could_not_be_read_is_not_used_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Whatever the driver thinks of it: what was sent may still be under way in it."""
    received, broken = sessions.OwnConnection.received, threading.Event()

    def once_broken(conn: sessions.OwnConnection) -> Any:
        if not broken.is_set():
            broken.set()
            raise psycopg.OperationalError("could not receive data from server")
        return received(conn)

    if when == "in a flight":
        desk.scribe.start()
        desk.await_open()
        monkeypatch.setattr(sessions.OwnConnection, "received", once_broken)
    else:
        monkeypatch.setattr(sessions.OwnConnection, "received", once_broken)
        desk.scribe.start()
        assert broken.wait(10)
    desk.release(0)
    until(lambda: desk.told, "the run has its answer", within_s=8)
    [(_, verdict)] = desk.told
    assert verdict in (Verdict.WRITTEN, Verdict.STALE)  # the latter where what was sent had been carried out


def test_a_scribe_whose_first_connection_fails_in_an_unheard_of_way_opens_another(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the process has no file descriptor left for a moment."""
    connect, refused = database.connect_worker, threading.Event()

    def once_refused(*args: Any, **kwargs: Any) -> Any:
        if not refused.is_set():
            refused.set()
            raise OSError(24, "Too many open files")
        return connect(*args, **kwargs)

    monkeypatch.setattr(worker_connection, "connect_worker", once_refused)
    desk.scribe.start()
    assert refused.wait(10)
    desk.release(0)
    desk.await_written(0)


def test_a_session_that_is_stopped_under_a_flight_holds_up_neither_the_pool_nor_the_end() -> None:
    """Nor does what is submitted later raise anything in a thread of the pool."""
    with EmbeddedPostgres() as server:
        migrate(server.url)
        desk = Desk(server.url, 3)
        desk.scribe.start()
        desk.await_open()
        pid = desk.conn.open().info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            desk.complete(0, f'"{"€" * 900_000}"')
            until(lambda: desk.scribe._flight, "the flight is under way")
            desk.release(1)
            desk.scribe.close(0.1)
            assert not desk.scribe.is_alive()
            desk.release(2)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert desk.told == []
        desk.end()


class SlowToLeave:
    """A plugin that takes its time when an execution ends."""

    name = "slow to leave"

    def __init__(self) -> None:
        self.leaving = threading.Event()
        self.may_leave = threading.Event()

    @contextmanager
    def wrap_run(self, _: Any) -> Generator[None]:
        yield
        self.leaving.set()
        self.may_leave.wait(20)


def test_runs_whose_flight_a_thread_has_landed_do_not_wait_until_it_has_left_a_plugin(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = SlowToLeave()
    pair_goes_on = threading.Event()

    @workflow("guarded", plugins=[plugin])
    def guarded(step: Step) -> Steps[None]:
        yield from step.run("only", int)

    @workflow("pair")
    def pair(step: Step) -> Steps[None]:
        yield from step.run("first", int)
        yield from step.run("second", pair_goes_on.set)

    submit, wait_for_answer = Scribe.submit, WorkerConnection.wait_for_answer
    landed = threading.Event()

    def submitted(self: Scribe, execution: Execution, entry: Entry) -> None:
        if entry.action != "complete" or execution.run.workflow_id != "guarded":
            submit(self, execution, entry)
            return
        engine.start_workflow("pair")
        until(lambda: self._flight is not None or pair_goes_on.is_set(), "the other's first step is sent")
        wait_for_answer(self._conn, 5)
        submit(self, execution, entry)
        landed.set()

    def not_the_scribe(conn: WorkerConnection, limit_s: float) -> None:
        assert landed.wait(20)
        wait_for_answer(conn, limit_s)

    monkeypatch.setattr(scribe, "GLANCE_EVERY", 1)
    monkeypatch.setattr(Scribe, "submit", submitted)
    monkeypatch.setattr(WorkerConnection, "wait_for_answer", not_the_scribe)
    with WorkflowEngine(database_url, workflows=[guarded, pair]) as engine:
        engine.start_workflow("guarded")
        with working(engine, threads=2):
            assert plugin.leaving.wait(20)
            try:
                assert pair_goes_on.wait(5)
            finally:
                plugin.may_leave.set()


class Watched(sessions.OwnConnection):
    """Notes when two use a session at once, or when it is asked for something while an answer is under way."""

    wrongs: ClassVar[list[str]] = []
    _in_use = threading.Lock()
    _sent = False
    _fetcher: int | None = None

    @contextmanager
    def _used(self, what: str) -> Generator[None]:
        if not self._in_use.acquire(blocking=False):
            self.wrongs.append(f"{what} while another uses it")
            yield
            return
        try:
            yield
        finally:
            self._in_use.release()

    def fetch(self, *args: Any, **kwargs: Any) -> Any:
        with self._used("fetch"):
            if self._sent:
                self.wrongs.append("fetch while an answer is under way")
            self._fetcher = threading.get_ident()
            try:
                return super().fetch(*args, **kwargs)
            finally:
                self._fetcher = None

    def send(self, sql: str, params: Sequence[str | None]) -> None:
        with self._used("send"):
            if self._sent:
                self.wrongs.append("send while an answer is under way")
            self._sent = True
            super().send(sql, params)

    def received(self) -> Any:
        if self._fetcher == threading.get_ident():
            return super().received()
        with self._used("received"):
            result = super().received()
            if result is not None:
                self._sent = False
            return result


class Storm:
    """Threads that take runs from a queue and submit their next step, as a pool does, while things go wrong."""

    STEPS = 60

    def __init__(self, url: str, runs: int, dice: random.Random) -> None:
        self.desk = Desk(url, runs)
        self.desk.scribe._written = self._written
        self.desk.scribe._answered = self._answered
        self.desk.scribe._alone = lambda: self.busy == 1
        self.busy = 0
        self.wrongs: list[str] = []
        self.next = dict.fromkeys(self.desk.runs, 0)
        self.outstanding: dict[Execution, Entry] = {}
        self.ready: queue.SimpleQueue[Execution | None] = queue.SimpleQueue()
        self.over: set[Execution] = set()
        self._url = url
        self._dice = dice

    def _written(self, batch: Sequence[tuple[Execution, Entry]]) -> None:
        for execution, entry in batch:
            self._answered(execution, entry, Answer(Verdict.WRITTEN))

    def _answered(self, execution: Execution, entry: Entry, answer: Answer) -> None:
        if self.outstanding.pop(execution, None) is not entry:
            self.wrongs.append(f"an answer that nobody waits for: {answer}")
        if answer.verdict is Verdict.STALE and execution.dropped:
            self.over.add(execution)
        elif answer.verdict is not Verdict.WRITTEN:
            self.wrongs.append(f"{answer}")
        elif entry.action == "complete":
            self.over.add(execution)
        else:
            self.ready.put(execution)

    def work(self) -> None:
        while (execution := self.ready.get()) is not None:
            self.busy += 1
            try:
                self._submit_next(execution)
            except BaseException as error:
                self.wrongs.append(repr(error))
            finally:
                self.busy -= 1

    def _submit_next(self, execution: Execution) -> None:
        run, number = execution.run, self.next[execution]
        self.next[execution] += 1
        if self._dice.random() < 0.001:
            execution.dropped = True
        length = 60_000 if self._dice.random() < 0.02 else 3
        if number < self.STEPS:
            step = StepWrite(number, f"s{number}", "run", StepStatus.COMPLETED, f'"{"x" * length}"', attempts=1)
            entry = Entry(run.run_id, run.claim_id, run.signal, "checkpoint", (step,), step_id=step.step_id)
        else:
            entry = Entry(run.run_id, run.claim_id, run.signal, "complete", output="1")
        if self.outstanding.setdefault(execution, entry) is not entry:
            self.wrongs.append("two entries of one run")
        self.desk.scribe.submit(execution, entry)

    def disturb(self, ended: threading.Event) -> None:
        with psycopg.connect(self._url, autocommit=True) as admin, psycopg.connect(self._url) as holder:
            while not ended.wait(self._dice.uniform(0.0, 0.03)):
                what = self._dice.choice(["cut", "lock a run", "lock all"])
                conn = self.desk.conn._conn
                if what == "cut" and conn is not None:
                    with suppress(psycopg.Error):
                        admin.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
                elif what == "lock a run":
                    run = self._dice.choice(self.desk.runs).run
                    holder.execute("select from pgworkflows.queue where run_id = %s for update", [run.run_id])
                else:
                    holder.execute("lock table pgworkflows.queue in access exclusive mode")
                ended.wait(self._dice.uniform(0.0, 0.06))
                holder.rollback()

    def blow(self, threads: int) -> None:
        ended = threading.Event()
        workers = [threading.Thread(target=self.work) for _ in range(threads)]
        disturber = threading.Thread(target=self.disturb, args=[ended])
        self.desk.scribe.start()
        for each in (*workers, disturber):
            each.start()
        try:
            for execution in self.desk.runs:
                self.ready.put(execution)
            until(lambda: self.wrongs or len(self.over) == len(self.desk.runs), "all runs are over", within_s=20)
        finally:
            ended.set()
            for _ in workers:
                self.ready.put(None)
            for each in (*workers, disturber):
                each.join(20)
            self.desk.end()


def stumbling(method: Callable[..., Any], dice: random.Random) -> Callable[..., Any]:
    """The same, but threads that come by are sometimes held up before and after."""

    def stumble() -> None:
        if dice.random() < 0.15:
            time.sleep(dice.choice([0.0, 0.0002, 0.003]))

    def stumbled(*args: Any) -> Any:
        stumble()
        try:
            return method(*args)
        finally:
            stumble()

    return stumbled


@pytest.mark.parametrize("seed", range(int(os.environ.get("FLIGHT_SEEDS", "3"))))
def test_every_entry_is_written_once_in_a_storm(database_url: str, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(database, "OwnConnection", Watched)
    monkeypatch.setattr(Watched, "wrongs", [])
    monkeypatch.setattr(scribe, "MAX_FLIGHT_LENGTH", 50_000)
    monkeypatch.setattr(scribe, "GLANCE_EVERY", dice.choice([1, 4]))
    monkeypatch.setattr(sessions, "PLANS_LAST_S", 0.05)
    monkeypatch.setattr(backoff, "FIRST_PAUSE_S", 0.01)
    for name in ("_land", "_launch", "_gather", "_put_down_pen", "_help", "_write_at_once", "_make_up_for", "_write"):
        monkeypatch.setattr(Scribe, name, stumbling(getattr(Scribe, name), dice))
    storm = Storm(database_url, dice.choice([2, 5, 30]), dice)
    storm.blow(dice.choice([1, 2, 6]))
    assert storm.wrongs == []
    assert Watched.wrongs == []
    for execution in storm.desk.runs:
        stored = value(database_url, "select count(*) from pgworkflows.steps where run_id = %s", execution.run.run_id)
        if not execution.dropped:
            assert stored == Storm.STEPS
