"""Processes that fork while a worker runs in a thread of theirs, as servers with a preloaded application do."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from waiting import until
from working import rows, value

from pgworkflows import Step, Steps, Worker, WorkflowEngine, workflow

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def forked(act: Callable[[], object]) -> int:
    """The exit status of a child that does this; 1 if it raises, minus 14 if it takes longer than twenty seconds."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            act()
            os._exit(0)
        except BaseException:
            logging.getLogger("child").exception("the child failed")
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_to_be_ended(ready: int) -> None:
    """In a child: say that it is there, and go on for as long as it is let."""
    os.write(ready, b"!")
    time.sleep(20)
    os._exit(3)


def fork_and_end() -> int:
    """A step that forks a process, as multiprocessing does, and ends it: its exit status."""
    ready, say_ready = os.pipe()
    child = os.fork()
    if child == 0:
        wait_to_be_ended(say_ready)
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@workflow("where")
def where(step: Step) -> Steps[int]:
    return (yield from step.run("ask", os.getpid))


@workflow("forks")
def forks(step: Step) -> Steps[int]:
    return (yield from step.run("fork", fork_and_end))


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=[where, forks]) as engine:
        engine.start()
        until(lambda: rows(database_url, "select id from pgworkflows.workers"), "the worker registers")
        yield engine


def outputs(engine: WorkflowEngine) -> object:
    return engine.wait_for_run(engine.start_workflow("where").id, timeout=15).output


def test_a_child_of_a_process_with_a_worker_stops_and_closes_at_once(engine: WorkflowEngine) -> None:
    assert forked(engine.stop) == 0
    assert forked(engine.close) == 0
    assert outputs(engine) == os.getpid()


def test_a_child_may_have_a_worker_of_its_own(engine: WorkflowEngine) -> None:
    def work() -> None:
        engine.start()
        until(lambda: outputs(engine) == os.getpid(), "the child takes its turn")
        engine.close()

    assert forked(work) == 0
    assert outputs(engine) == os.getpid()
    pids = rows(engine.conninfo, "select pid from pgworkflows.workers")
    assert pids == [(os.getpid(),)]


def test_a_worker_object_runs_in_a_child_as_if_it_were_new(database_url: str) -> None:
    with WorkflowEngine(database_url, workflows=[where]) as engine:
        worker = engine.worker()
        thread = threading.Thread(target=worker.run_forever)
        thread.start()
        until(lambda: rows(database_url, "select id from pgworkflows.workers"), "the worker registers")

        def work() -> None:
            worker.stop()
            worker.run_until_idle(timeout=15)

        assert forked(work) == 0
        worker.stop()
        thread.join(20)


def test_the_process_that_forks_says_once_where_its_worker_is(
    engine: WorkflowEngine, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert forked(lambda: None) == 0
    said = [record.getMessage() for record in caplog.records if "was forked" in record.getMessage()]
    assert len(said) == 1
    assert f"process {os.getpid()} was forked" in said[0]


def test_a_step_that_forks_is_no_news_and_its_child_ends_on_a_signal(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the worker runs in the main thread, SIGTERM is the worker's; in the children of its steps it is not."""
    with WorkflowEngine(database_url, workflows=[forks]) as engine:
        run = engine.start_workflow(forks)
        worker: Worker = engine.worker()

        def stop_when_finished() -> None:
            engine.wait_for_run(run.id, timeout=30)
            worker.stop()

        watching = threading.Thread(target=stop_when_finished)
        watching.start()
        worker.run_forever()
        watching.join()
        assert engine.get_run(run.id).output == -signal.SIGTERM
    assert "was forked" not in caplog.text
    assert value(database_url, "select count(*) from pgworkflows.workers") == 0


ORPHAN = """
import os, sys, time
from pgworkflows import WorkflowEngine

engine = WorkflowEngine(sys.argv[1])
engine.start()
while not engine.health(min_workers=1).ok:
    time.sleep(0.01)
os.write(1, f"{os.fork()}\\n".encode())  # at once: another process writes there, too
time.sleep(60)
"""


@pytest.mark.direct("looks at the lock of a session")
def test_a_child_that_outlives_its_killed_parent_does_not_hold_the_lock_of_its_worker(database_url: str) -> None:
    """Else the others would take the worker for alive until its lease has run out."""
    locks = (
        "select l.pid from pg_locks as l join pg_database as d on d.oid = l.database "
        "where l.locktype = 'advisory' and d.datname = current_database()"
    )
    with subprocess.Popen([sys.executable, "-c", ORPHAN, database_url], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        said = {int(parent.stdout.readline()), int(parent.stdout.readline())}
        [child] = said - {0}
        try:
            assert rows(database_url, locks) != []
            parent.kill()
            parent.wait(20)
            until(lambda: rows(database_url, locks) == [], "the server notices the death", within_s=10)
            os.kill(child, 0)  # it is there
        finally:
            os.kill(child, signal.SIGKILL)
