"""What workers do all the time reads as many rows as it writes, whatever was there when its plan was made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from working import HandWorker

from pgworkflows import WorkflowClient
from pgworkflows.claims import ClaimedRun
from pgworkflows.history import StepStatus
from pgworkflows.journal import WRITTEN, Entry
from pgworkflows.replay import StepWrite

pytestmark = pytest.mark.direct("looks at the statistics of one session")

RUNS = 400
FEW = 20
READ_PER_RUN = 20
"""Index entries that may be read for one run: a statement that finds it by its id reads one or two, others all."""
PLANNED = 7
"""How many times a statement is executed until PostgreSQL keeps its plan: five, and then it thinks it over."""


class Reader:
    """Counts the entries of the schema's indexes that a worker's session reads."""

    def __init__(self, worker: HandWorker) -> None:
        self.worker = worker

    @contextmanager
    def at_most(self, entries: int, what: str) -> Iterator[None]:
        """The statements of the block read no more of them."""
        # A session reports what it has read at the end of a transaction, and forgets it.
        with self.worker.connection._open().transaction():
            before = self._read()
            yield
            read = self._read() - before
        assert read <= entries, f"{what}: {read} index entries were read, at most {entries} are right"

    def _read(self) -> int:
        row = self.worker.connection._open().execute(
            "select sum(pg_stat_get_xact_tuples_returned(i.indexrelid)) from pg_index as i"
            " join pg_class as c on c.oid = i.indrelid where c.relnamespace = 'pgworkflows'::regnamespace"
        )
        [found] = row.fetchone() or [0]
        return int(found)


def entry(run: ClaimedRun, action: str, position: int, **changes: Any) -> Entry:
    """A completed step, and what becomes of its run."""
    step = StepWrite(position, f"s{position}", "run", StepStatus.COMPLETED, "1", attempts=1)
    return Entry(run.run_id, run.claim_id, run.signal, action, (step,), **changes)


def nap(run: ClaimedRun) -> Entry:
    """A timer, for which the run waits."""
    step = StepWrite(0, "nap", "delay", StepStatus.WAITING, wake_after=timedelta(hours=1))
    return Entry(run.run_id, run.claim_id, run.signal, "suspend", (step,), step_id="nap", wait_kind="timer")


ENDS: dict[str, Callable[[ClaimedRun], Entry]] = {
    "complete": lambda run: entry(run, "complete", 2, output="1"),
    "suspend": nap,
    "release": lambda run: entry(run, "release", 2),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_worker_that_began_beside_empty_tables_reads_each_run_of_many_once(database_url: str, end: str) -> None:
    with WorkflowClient(database_url) as client, HandWorker(database_url, ["many"]) as worker:
        for count in [1] * PLANNED + [RUNS]:
            client.start_workflows("many", [None] * count)
            for run in carry(worker, count, end):
                client.cancel_workflow(run.run_id)


@pytest.mark.parametrize("end", ENDS)
def test_a_worker_whose_plans_knew_an_empty_queue_reads_of_a_backlog_what_it_has_claimed(
    database_url: str, end: str
) -> None:
    with WorkflowClient(database_url) as client, HandWorker(database_url, ["many"]) as worker:
        client.start_workflows("many", [None] * RUNS)
        for run in carry(worker, RUNS, end):
            client.cancel_workflow(run.run_id)
        with psycopg.connect(database_url, autocommit=True) as conn:
            conn.execute("vacuum pgworkflows.queue, pgworkflows.runs")
        for _ in range(PLANNED):
            assert worker.claim(RUNS).runs == ()
        client.start_workflows("many", [None] * 5 * RUNS)
        for _ in range(PLANNED):
            carry(worker, FEW, end)


def carry(worker: HandWorker, count: int, end: str) -> Sequence[ClaimedRun]:
    """Claim so many runs and take them to an end, reading little; those that stay unfinished."""
    reader, most = Reader(worker), READ_PER_RUN * max(count, FEW)
    with reader.at_most(most, "the claim"):
        claimed = worker.claim(count).runs
    assert len(claimed) == count
    for position in range(2):
        with reader.at_most(most, "a flush of checkpoints"):
            answers = worker.write(*(entry(run, "checkpoint", position) for run in claimed))
        assert answers == [WRITTEN] * count
    with reader.at_most(most, f"a flush of entries that {end}"):
        answers = worker.write(*map(ENDS[end], claimed))
    assert answers == [WRITTEN] * count
    return () if end == "complete" else claimed
