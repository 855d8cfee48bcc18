"""Flushes that are under way while other things happen: every interleaving made by hand, or many at random."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest
from waiting import until
from working import Door, HandWorker, rows, value, working

from pgworkflows import Plugin, Step, Steps, WorkflowClient, WorkflowEngine, claims, scribe, sessions, workflow
from pgworkflows.claims import WorkerConnection
from pgworkflows.holdings import Holdings
from pgworkflows.journal import Answer, Entry, Verdict
from pgworkflows.runner import Execution
from pgworkflows.scribe import Scribe

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
        self.scribe = Scribe(
            self.conn, holdings, self._written, self._answered, lambda: self.is_alone, LOGGER, "test"
        )

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
        until(lambda: self.conn.can_send, "the connection is opened")

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
    interlude, poll = Interlude(), claims.select.poll

    def polled() -> Any:
        interlude.come_by()
        return poll()

    def cut_off_and_look() -> None:
        desk.cut_off()
        elsewhere(desk.scribe._move_on)
        elsewhere(desk.scribe._move_on)

    monkeypatch.setattr(claims.select, "poll", polled)
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
