"""The mark from which claims look, so that dead index entries under a pinned snapshot do not slow them down."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from waiting import until
from working import Door, rows, value, working

from pgworkflows import Step, Steps, WorkflowClient, WorkflowEngine, claims, dispatcher, workflow
from pgworkflows.claims import Claim
from pgworkflows.low_water import LONGEST_S, SHARE, LowWater

DEAD = 40_000
BELOW = "2020-01-01T00:00:00+00:00"
NOW = "select clock_timestamp()"


@workflow("stroll")
def stroll(step: Step) -> Steps[str]:
    yield from step.run("walk", str)
    return "done"


def answer(looked_s: float = 0.0, mark: str | None = None) -> Claim:
    return Claim(alive=True, looked_s=looked_s, mark=mark)


class TestWhereAWorkerLooks:
    def test_everywhere_as_long_as_that_is_quick(self) -> None:
        low_water = LowWater()
        low_water.looked(None, answer(0.0005), 100.0)
        assert low_water.since(100.0) is None

    def test_above_the_mark_of_a_slow_look_until_full_looks_have_had_their_share_of_the_time(self) -> None:
        low_water = LowWater()
        low_water.looked(None, answer(0.02, BELOW), 100.0)
        assert low_water.since(100.0) == BELOW
        assert low_water.since(100.0 + 0.02 / SHARE - 0.001) == BELOW
        assert low_water.since(100.0 + 0.02 / SHARE) is None

    def test_everywhere_after_ten_seconds_however_slow_that_is(self) -> None:
        low_water = LowWater()
        low_water.looked(None, answer(60.0, BELOW), 100.0)
        assert low_water.since(100.0 + LONGEST_S - 0.001) == BELOW
        assert low_water.since(100.0 + LONGEST_S) is None

    def test_a_look_above_the_mark_leaves_it_where_it_is(self) -> None:
        low_water = LowWater()
        low_water.looked(None, answer(0.02, BELOW), 100.0)
        low_water.looked(BELOW, answer(0.0005), 101.0)
        assert low_water.since(101.5) == BELOW
        assert low_water.since(102.0) is None

    def test_everywhere_once_runs_have_come_back(self) -> None:
        low_water = LowWater()
        low_water.looked(None, answer(0.02, BELOW), 100.0)
        low_water.forget()
        assert low_water.since(100.1) is None


class Claimant:
    """A worker that claims by hand, and can be asked how many index entries its claims have read."""

    def __init__(self, url: str) -> None:
        self._conn = psycopg.connect(url, autocommit=True)
        self.worker_id = uuid4()
        self._conn.execute(
            "select pgworkflows.register_worker(worker_id => %s, hostname => 'test', pid => 0, queues => '{default}',"
            " has_lock => false, lease => '1 hour')",
            [self.worker_id],
        )

    def claim(self, since: Any = None, capacity: int = 100) -> tuple[dict[str, Any], int]:
        """The answer, and how many entries of the indexes of ready and of timed rows it has read."""
        with self._conn.transaction():
            before = self._read()
            answer = self._value(
                "select pgworkflows.claim(worker_id => %s, queues => '{default}', workflows => '{stroll}',"
                " capacity => %s, alone => true, awake => false, since => %s)",
                self.worker_id,
                capacity,
                since,
            )
            read = self._read() - before
        return answer, read

    def _read(self) -> int:
        """What this session has read since it last reported that, which it does not do within a transaction."""
        return int(
            self._value(
                "select sum(pg_stat_get_xact_tuples_returned(i::regclass)) from unnest("
                " '{pgworkflows.queue_ready,pgworkflows.queue_timed,pgworkflows.queue_timeouts}'::text[]) as i"
            )
        )

    def ids(self, since: Any = None, capacity: int = 100) -> list[UUID]:
        answer, _ = self.claim(since, capacity)
        return [UUID(run["run_id"]) for run in answer["runs"]]

    def mark(self) -> datetime:
        """From where claims may look, as of now."""
        found = self._value("select pgworkflows.low_water('{default}', '{stroll}')")
        assert isinstance(found, datetime)
        return found

    def _value(self, query: str, *params: object) -> Any:
        [found] = self._conn.execute(query.encode(), params).fetchone() or [None]
        return found

    def close(self) -> None:
        self._conn.close()


@pytest.fixture
def claimant(database_url: str) -> Iterator[Claimant]:
    claimant = Claimant(database_url)
    yield claimant
    claimant.close()


@pytest.fixture
def client(database_url: str) -> Iterator[WorkflowClient]:
    with WorkflowClient(database_url) as client:
        yield client


@contextmanager
def pinned_snapshot(url: str) -> Iterator[None]:
    """Another session keeps a snapshot under which so many ready runs, due timers and due timeouts came and went."""
    with psycopg.connect(url) as pinning:
        pinning.execute("set transaction isolation level repeatable read")
        pinning.execute("select count(*) from pgworkflows.queue")
        rows(
            url,
            "insert into pgworkflows.queue (run_id, workflow_id, queue, rank, ready_at, timeout_at)"
            " select gen_random_uuid(), 'stroll', 'default', now() - '1 hour'::interval, now() - '1 hour'::interval,"
            " now() - '1 hour'::interval from generate_series(1, %s)",
            DEAD,
        )
        rows(url, "update pgworkflows.queue set wake_at = rank")
        rows(url, "delete from pgworkflows.queue")
        yield


@pytest.mark.direct("looks at the statistics of one session")
def test_beside_a_pinned_snapshot_a_claim_above_the_mark_passes_no_dead_entries(
    database_url: str, claimant: Claimant
) -> None:
    with pinned_snapshot(database_url), WorkflowClient(database_url) as client:
        run = client.start_workflow("stroll")
        full, walked = claimant.claim()
        assert [found["run_id"] for found in full["runs"]] == [str(run.id)]
        assert walked > DEAD
        assert full["mark"] is not None
        run = client.start_workflow("stroll")
        above, walked = claimant.claim(since=full["mark"])
        assert [found["run_id"] for found in above["runs"]] == [str(run.id)]
        assert walked < 50
        assert above["mark"] is None


def test_a_worker_beside_a_pinned_snapshot_looks_above_the_mark_and_finds_all_that_comes(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks: list[object] = []
    claim = claims.claim

    def noted(*args: Any, **kwargs: Any) -> Claim:
        marks.append(kwargs["since"])
        return claim(*args, **kwargs)

    monkeypatch.setattr(claims, "claim", noted)
    with pinned_snapshot(database_url), WorkflowEngine(database_url, workflows=[stroll]) as engine, working(engine):
        ordinary = [engine.start_workflow(stroll).id for _ in range(20)]
        until(lambda: any(marks), "a claim looks above a mark")
        with psycopg.connect(database_url) as conn:
            urgent = engine.start_workflow(stroll, priority=1000, connection=conn).id
        late = engine.start_workflow(stroll, delay="10 ms").id
        for run_id in [*ordinary, urgent, late]:
            assert engine.wait_for_run(run_id, timeout=30).status == "completed"


def test_what_is_ready_and_not_claimed_stays_above_the_mark(client: WorkflowClient, claimant: Claimant) -> None:
    runs = [client.start_workflow("stroll").id for _ in range(3)]
    rows(client.conninfo, "update pgworkflows.queue set rank = rank - '1 day'::interval")
    assert claimant.ids(capacity=1) == runs[:1]
    assert claimant.ids(since=claimant.mark()) == runs[1:]


def test_what_is_locked_stays_above_the_mark(database_url: str, client: WorkflowClient, claimant: Claimant) -> None:
    run_id = client.start_workflow("stroll").id
    rows(database_url, "update pgworkflows.queue set rank = rank - '1 day'::interval")
    with psycopg.connect(database_url) as conn:
        conn.execute("select from pgworkflows.queue for update")
        assert claimant.ids() == []
        mark = claimant.mark()
    assert claimant.ids(since=mark) == [run_id]


def test_timers_and_timeouts_that_are_due_and_locked_stay_above_the_mark(
    database_url: str, client: WorkflowClient, claimant: Claimant
) -> None:
    sleeping = client.start_workflow("stroll", delay="1 day").id
    dying = client.start_workflow("stroll", timeout="1 day", delay="1 day").id
    rows(
        database_url,
        "update pgworkflows.queue set wake_at = now() - '1 day'::interval where run_id = %s",
        sleeping,
    )
    rows(database_url, "update pgworkflows.queue set timeout_at = now() - '1 day'::interval where run_id = %s", dying)
    with psycopg.connect(database_url) as conn:
        conn.execute("select from pgworkflows.queue for update")
        assert claimant.ids() == []
        mark = claimant.mark()
    claimant.ids(since=mark)
    assert client.get_run(sleeping).status in ("pending", "running")
    assert client.get_run(dying).status == "failed"


def test_the_head_starts_in_use_lie_above_the_mark(
    database_url: str, client: WorkflowClient, claimant: Claimant
) -> None:
    client.start_workflow("stroll", priority=700)
    assert len(claimant.ids()) == 1
    mark = claimant.mark()
    run_id = client.start_workflow("stroll", priority=700).id
    assert claimant.ids(since=mark) == [run_id]


def test_declared_head_starts_lie_above_the_mark_before_any_run_has_had_them(
    database_url: str, claimant: Claimant
) -> None:
    @workflow("stroll", priority=900)
    def urgent(step: Step) -> Steps[None]:
        yield from step.run("walk", str)

    with WorkflowEngine(database_url, workflows=[urgent]) as engine:
        engine.start(worker=False)
        mark = claimant.mark()
        run_id = engine.start_workflow(urgent).id
        assert claimant.ids(since=mark) == [run_id]


def test_what_commits_a_moment_late_lies_above_the_mark(
    database_url: str, client: WorkflowClient, claimant: Claimant
) -> None:
    with psycopg.connect(database_url) as conn:
        run_id = client.start_workflow("stroll", connection=conn).id
        assert claimant.ids() == []
        mark = claimant.mark()
    assert claimant.ids(since=mark) == [run_id]


def test_what_commits_much_too_late_is_found_by_a_full_look(
    database_url: str, client: WorkflowClient, claimant: Claimant
) -> None:
    with psycopg.connect(database_url) as conn:
        run_id = client.start_workflow("stroll", connection=conn).id
        conn.execute("update pgworkflows.queue set rank = rank - '1 minute'::interval")
        mark = claimant.mark()
    assert claimant.ids(since=mark) == []
    assert claimant.ids() == [run_id]


def test_a_quick_look_gives_no_mark(database_url: str, client: WorkflowClient, claimant: Claimant) -> None:
    client.start_workflow("stroll")
    # Another program may keep the processor for longer than that, but not each time.
    until(lambda: claimant.claim()[0]["mark"] is None, "a claim of next to nothing is quick")
    assert value(database_url, "select count(*) from pgworkflows.queue") == 1


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def slow_looks(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each look everywhere, as if it had taken long: a mark, for ten seconds."""
    honest = LowWater.looked

    def slow(self: LowWater, since: str | None, claim: Claim, now_s: float) -> None:
        honest(self, since, replace(claim, looked_s=LONGEST_S, mark=value(database_url, f"{NOW}::text")), now_s)

    monkeypatch.setattr(LowWater, "looked", slow)


@pytest.mark.usefixtures("slow_looks")
def test_a_worker_is_idle_only_after_a_look_everywhere(database_url: str) -> None:
    """A run with a head start that nobody had when the mark was set lies below it."""
    with WorkflowEngine(database_url) as engine:

        @workflow("starter")
        def starter(step: Step) -> Steps[str]:
            urgent = yield step.run("start", lambda: str(engine.start_workflow(stroll, priority=1000).id))
            return str(urgent)

        engine.register_workflow(starter)
        engine.register_workflow(stroll)
        run = engine.start_workflow(starter)
        engine.worker().run_until_idle(timeout=30)
        assert engine.get_run(engine.get_run(run.id).output).output == "done"


@pytest.mark.usefixtures("slow_looks")
def test_that_look_comes_at_once(database_url: str, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the last run took so long that the worker has gone to sleep meanwhile, and looks rarely."""
    monkeypatch.setattr(dispatcher, "LONGEST_LOOK_S", 3600.0)

    def open_when_it_sleeps() -> None:
        until(lambda: rows(database_url, "select queue from pgworkflows.sleepers"), "the worker sleeps")
        door.open.set()

    @workflow("long")
    def long(step: Step) -> Steps[str]:
        return (yield from step.run("door", door.enter))

    with WorkflowEngine(database_url, workflows=[long]) as engine:
        run = engine.start_workflow(long)
        thread = threading.Thread(target=open_when_it_sleeps)
        thread.start()
        engine.worker(poll_interval="1 hour").run_until_idle(timeout=20)
        thread.join()
        assert engine.get_run(run.id).output == "through the door"
