"""A primary with a synchronous standby is killed under load, and the standby promoted: `make test-failover`.

Two real servers, two worker processes, and clients that start runs and send events without a pause; the connection
string names both hosts. What was acknowledged is noted outside the database: by the clients in a list, by the steps in
a file, a line for each call. A step's outcome was acknowledged if the step after it was called. Afterwards all of it
must be there, and nothing may have been done again that was acknowledged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import psycopg
import pytest
from replication import Pair
from waiting import until
from working import ROOT, rows, value, working

from pgworkflows import RunStatus, Step, Steps, WorkflowClient, WorkflowEngine, workflow
from pgworkflows.errors import ConfigurationError

TRIALS = int(os.environ.get("TRIALS", "3"))
LOAD_S = 3.0
CALLERS = 3
STEPS = 6
PROGRAM = ROOT / "tests" / "programs" / "ledger_worker.py"


@pytest.fixture
def pair(_no_settings_from_outside: None) -> Iterator[Pair]:
    with Pair() as pair:
        with WorkflowClient(pair.url) as client:
            client.migrate()
        yield pair


class Callers:
    """Threads that start runs and send each its event, again and again. `started` and `told` are what was acknowledged;
    a call that fails is made again with the same key."""

    def __init__(self, url: str) -> None:
        self.started: dict[UUID, float] = {}
        self.told: set[UUID] = set()
        self.repeated = 0
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def _call(self, caller: int) -> None:
        with WorkflowClient(self._url) as client:
            number = 0
            while not self._stop.is_set():
                number += 1
                key = f"{caller}-{number}"
                run = self._insist(lambda key=key: client.start_workflow("ledger", idempotency_key=key))  # type: ignore[misc]  # mypy cannot infer a lambda's default
                self.started[run.id] = time.time()
                self._insist(
                    lambda run=run, key=key: client.trigger_event(run.id, "go", {"key": key}, idempotency_key="go")  # type: ignore[misc]  # likewise
                )
                self.told.add(run.id)

    def _insist(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                return call()
            except (ConfigurationError, psycopg.OperationalError):
                self.repeated += 1
                time.sleep(0.02)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


class Ledger:
    """The calls of steps, in order, as the steps themselves have noted them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def first_checkpoint_after(self, moment: float) -> float | None:
        """When a step was first called after this time whose predecessor's outcome is stored, therefore."""
        return next((line["at"] for line in self.lines() if line["at"] > moment and line["given"] is not None), None)


@pytest.mark.parametrize(
    ("noticed_after_s", "worker_dies"),
    [(0.0, False), (10.0, False), (0.0, True)],
    ids=["at once", "after 10 s", "at once, with one of the two workers dead as well"],
)
def test_nothing_acknowledged_is_lost_and_clients_and_workers_go_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    noticed_after_s: float,
    worker_dies: bool,
) -> None:
    figures = [trial(tmp_path / f"ledger-{number}", noticed_after_s, worker_dies) for number in range(TRIALS)]
    with capsys.disabled():
        print(f"\n{TRIALS} failovers, the standby promoted {request.node.callspec.id}:")
        print("  nothing acknowledged was lost, no acknowledged step was called again")
        for name in figures[0]:
            found = sorted(each[name] for each in figures)
            print(f"  {name:<48} median {median(found):8.2f}, {found[0]:.2f} to {found[-1]:.2f}")


def trial(path: Path, noticed_after_s: float, worker_dies: bool) -> dict[str, float]:
    """One failover under load; what it took, in seconds, and how much there was to lose."""
    ledger = Ledger(path)
    with Pair() as pair:
        with WorkflowClient(pair.url) as client:
            client.migrate()
        log = path.with_suffix(".log").open("w")
        workers = [
            subprocess.Popen([sys.executable, str(PROGRAM), pair.url, str(path)], cwd=ROOT, stderr=log) for _ in "ab"
        ]
        callers = Callers(pair.url)
        try:
            until(lambda: len(ledger.lines()) > 200, "the workers are at work", within_s=60)
            time.sleep(LOAD_S)
            killed_at = time.time()
            pair.primary.kill()
            if worker_dies:
                workers[0].kill()
            time.sleep(noticed_after_s)  # what notices the death in production takes its time
            pair.promote()
            promoted_at = time.time()
            stepped_at = until(lambda: ledger.first_checkpoint_after(promoted_at), "a step is stored", within_s=60)
            assert stepped_at is not None
            until(lambda: max(callers.started.values()) > promoted_at, "a start is acknowledged", within_s=60)
            started_at = min(moment for moment in callers.started.values() if moment > promoted_at)
            time.sleep(1.0)  # some more work on the new primary, whose sequences go on
            callers.stop()
            acknowledged = sum(moment < killed_at for moment in callers.started.values())
            check(pair.standby.url, callers, ledger)
            ended = "select extract(epoch from max(completed_at))::float8 from pgworkflows.runs where created_at < %s"
            ended_at = value(pair.standby.url, ended, datetime.fromtimestamp(killed_at, UTC))
        finally:
            callers.stop()
            for worker in workers:
                worker.kill()
                worker.wait()
            log.close()
    return {
        "kill to promoted (s)": promoted_at - killed_at,
        "promoted to the first start acknowledged (s)": started_at - promoted_at,
        "promoted to the first step completed (s)": stepped_at - promoted_at,
        "kill to the end of the last run from before (s)": ended_at - killed_at,
        "starts acknowledged before the kill": acknowledged,
        "starts acknowledged in all": len(callers.started),
        "calls that were repeated": callers.repeated,
    }


def check(url: str, callers: Callers, ledger: Ledger) -> None:
    """Everything acknowledged is there, and ends well."""
    unfinished = "select count(*) from pgworkflows.runs where completed_at is null"
    until(lambda: value(url, unfinished) == 0, "every run ends", within_s=90)
    found = {
        run_id: (status, output, key)
        for run_id, status, output, key in rows(url, "select id, status, output, idempotency_key from pgworkflows.runs")
    }
    assert callers.started.keys() <= found.keys()
    assert callers.told <= callers.started.keys()
    stored: dict[str, dict[str, str]] = defaultdict(dict)
    for run_id, step_id, output in rows(
        url, "select run_id::text, step_id, output #>> '{}' from pgworkflows.steps where kind = 'run'"
    ):
        stored[run_id][step_id] = output
    for run_id, (status, output, key) in found.items():
        assert status == RunStatus.COMPLETED
        assert output == {"told": {"key": key}, "last": stored[str(run_id)][f"s{STEPS - 1}"]}
    acknowledged: dict[str, int] = defaultdict(int)  # how many steps of a run, by the calls so far
    for line in ledger.lines():
        number = int(line["step"][1:])
        # What a step was given was stored then, is stored now, and the step before was not called since.
        assert number >= acknowledged[line["run"]], line
        acknowledged[line["run"]] = number
        assert line["given"] == (None if number == 0 else stored[line["run"]][f"s{number - 1}"]), line
    assert dict.fromkeys(map(str, found), STEPS - 1) == acknowledged


def test_a_former_primary_that_comes_back_is_written_to_by_nobody(pair: Pair) -> None:
    calls: list[int] = []

    @workflow("noting")
    def noting(step: Step, input: int) -> Steps[int]:
        yield from step.run("note", calls.append, input)
        return input

    without_the_wish = pair.url.split("?")[0]
    with WorkflowEngine(without_the_wish, workflows=[noting]) as engine, working(engine, poll_interval="100 ms"):
        before = engine.start_workflow(noting, 1)
        assert engine.wait_for_run(before.id, timeout=20).output == 1
        pair.primary.kill()
        pair.promote()
        after = engine.start_workflow(noting, 2, idempotency_key="2")
        assert engine.wait_for_run(after.id, timeout=30).output == 2
        pair.return_as_standby()  # the first host of the URL again, and it answers
        with WorkflowClient(without_the_wish) as newcomer:
            late = newcomer.start_workflow("noting", 3)
            assert newcomer.wait_for_run(late.id, timeout=30).output == 3
        with WorkflowClient(pair.primary.url) as misled:
            assert misled.get_run(before.id).output == 1
            with pytest.raises(ConfigurationError, match="read-only: connect to the primary"):
                misled.start_workflow("noting", 4)
    assert calls == [1, 2, 3]


def test_an_address_that_led_to_a_standby_is_asked_again(pair: Pair, tmp_path: Path) -> None:
    """Connections stay with a standby when an address moves on to the primary: who is refused there connects anew."""
    calls: list[int] = []

    @workflow("noting")
    def noting(step: Step, input: int) -> Steps[int]:
        yield from step.run("note", calls.append, input)
        return input

    moving = f"postgresql://postgres@localhost:{pair.standby.port}/postgres"
    with WorkflowEngine(moving, workflows=[noting]) as engine:
        assert engine.get_runs().items == []
        with pytest.raises(ConfigurationError, match="read-only: connect to the primary"):
            engine.start_workflow(noting, 1)
        with engine._database.connection() as conn:
            former = conn.info.backend_pid
        with pytest.raises(ConfigurationError, match="read-only: connect to the primary"):
            engine.start_workflow(noting, 1)
        with engine._database.connection() as conn:
            assert conn.info.backend_pid != former
        pair.primary.kill()
        pair.promote()
        with working(engine):
            run = engine.start_workflow(noting, 1)
            assert engine.wait_for_run(run.id, timeout=20).output == 1
