"""Races: what happens between two moments of a statement, a worker or a connection, each interleaving by hand.

A statement of ours is made to stand still after its snapshot was taken and before it locks its rows: what commits
meanwhile it meets in its locks, but not in its snapshot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Annotated, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel, BeforeValidator
from waiting import until
from working import HandWorker, make_due, rows, value, working

from pgworkflows import RunStatus, Step, Steps, WorkflowClient, WorkflowEngine, claims, workflow
from pgworkflows.alarms import Alarms
from pgworkflows.backoff import Backoff
from pgworkflows.claims import Claim, ClaimedRun
from pgworkflows.database import Refused, Unavailable, normalise
from pgworkflows.decisions import StepWrite
from pgworkflows.ear import LISTEN_FOR_S
from pgworkflows.entries import Entry
from pgworkflows.heartbeat import HEARTBEAT_S
from pgworkflows.history import ErrorInfo, StepStatus
from pgworkflows.holdings import Holdings
from pgworkflows.journal import Answer, Verdict
from pgworkflows.peers import PATIENCE_S
from pgworkflows.runner import Execution

WRITTEN = Answer(Verdict.WRITTEN)
KEY = 4711


@pytest.fixture
def client(database_url: str) -> Iterator[WorkflowClient]:
    with WorkflowClient(database_url) as client:
        yield client


@pytest.fixture
def first(database_url: str) -> Iterator[HandWorker]:
    with HandWorker(database_url, ["plan"]) as worker:
        yield worker


@pytest.fixture
def second(database_url: str) -> Iterator[HandWorker]:
    with HandWorker(database_url, ["plan"]) as worker:
        yield worker


def work(step: Step) -> Steps[None]:
    """A handler with nothing special about it."""
    yield from step.run("a", int)


class Desk:
    """Step functions that stay until they are let go, one by one or all."""

    def __init__(self) -> None:
        self.inside: list[int] = []
        self._may_go: dict[int, Event] = {}
        self._all = Event()

    def stay(self, number: int) -> int:
        gone = self._may_go.setdefault(number, Event())
        self.inside.append(number)
        until(lambda: gone.is_set() or self._all.is_set(), "it may go", within_s=60)
        return number

    def let_go(self, number: int) -> None:
        self._may_go.setdefault(number, Event()).set()

    def close(self) -> None:
        self._all.set()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


@pytest.fixture
def engine(database_url: str, desk: Desk) -> Iterator[WorkflowEngine]:
    @workflow("stay")
    def stay(step: Step, input: int) -> Steps[int]:
        return (yield from step.run("stay", desk.stay, input))

    @workflow("hang")
    def hang(step: Step, input: int) -> Steps[int]:
        return (yield from step.run("hang", desk.stay, input).timeout(0.1))

    @workflow("nap")
    def nap(step: Step) -> Steps[None]:
        yield from step.delay("nap", "1 hour")

    with WorkflowEngine(database_url, workflows=[stay, hang, nap]) as engine:
        yield engine
        desk.close()


class Slowed:
    """A call of one of our SQL functions that stands still at `condition`, a condition of one of its statements, from
    `begin` to `end`."""

    def __init__(self, url: str, function: str, condition: str) -> None:
        self._url = url
        source = value(url, "select pg_get_functiondef(%s::regproc)", f"pgworkflows.{function}")
        assert source.count(condition) == 1, f"{function} has no such condition any more"
        copied = source.replace(f"FUNCTION pgworkflows.{function}(", f"FUNCTION public.{function}(")
        with psycopg.connect(url, autocommit=True) as conn:
            still = (
                "create function public.stands_still() returns boolean language plpgsql volatile as "
                f"'begin perform pg_advisory_xact_lock_shared({KEY}); return true; end'"
            )
            conn.execute(still.encode())
            conn.execute(copied.replace(condition, f"{condition} and public.stands_still()").encode())
        self._gate = psycopg.connect(url, autocommit=True)
        self._answers: list[Any] = []

    def begin(self, query: str, *params: object) -> None:
        """Call it, and wait until it stands still."""
        self._gate.execute("select pg_advisory_lock(%s)", [KEY])
        self._thread = Thread(target=lambda: self._answers.append(value(self._url, query, *params)))
        self._thread.start()
        waits = "select exists (select from pg_locks where locktype = 'advisory' and objid = %s and not granted)"
        until(lambda: value(self._url, waits, KEY), "it stands still")

    def end(self) -> Any:
        """Let it go on: its answer."""
        self._gate.close()
        self._thread.join(20)
        [answer] = self._answers
        return answer


def outcome(run_id: str, claim_id: int, action: str = "checkpoint") -> Entry:
    """What a worker writes after a step: its result and what becomes of the run."""
    step = StepWrite(0, "a", "run", StepStatus.COMPLETED, "1", attempts=1)
    return Entry(run_id, claim_id, 0, action, (step,), step_id="a", output="1" if action == "complete" else None)


class TestATakeOver:
    @pytest.mark.direct("its gate is the lock of a session")
    def test_takes_nothing_from_a_worker_that_took_the_same_run_over_a_moment_before(
        self, client: WorkflowClient, first: HandWorker, second: HandWorker, database_url: str
    ) -> None:
        """Both notice the death. The slower one saw the dead worker's row; the faster one has claimed it since."""
        client.start_workflow("plan")
        first.claim_one()
        first.die()
        slower = Slowed(database_url, "take_over", "where q.worker_id = any (dead)")
        slower.begin("select public.take_over()")
        assert second.take_over() == 1
        run = second.claim_one()
        assert slower.end() == 0
        assert rows(database_url, "select worker_id, interruptions from pgworkflows.queue") == [(second.id, 1)]
        assert second.write(outcome(run.run_id, run.claim_id)) == [WRITTEN]


class TestATimeoutOfARun:
    """`wake_due` sees the run's queue row as it was, and locks it as it is now."""

    DUE = "\n            where q.timeout_at > since and q.timeout_at <= now()"

    @pytest.mark.direct("its gate is the lock of a session")
    def test_tells_the_worker_that_has_just_claimed_the_run(
        self, client: WorkflowClient, first: HandWorker, database_url: str
    ) -> None:
        run = client.start_workflow("plan")
        with psycopg.connect(database_url) as claimer:
            claimer.execute("select")  # its now() is before the deadline
            rows(database_url, "update pgworkflows.queue set timeout_at = clock_timestamp()")
            late = Slowed(database_url, "wake_due", self.DUE)
            late.begin("select public.wake_due('-infinity')")
            claim = claimer.execute(
                "select pgworkflows.claim(%s, array['default'], array['plan'], 1, true, false)", [first.id]
            ).fetchone()
        assert claim is not None
        late.end()
        assert value(database_url, "select control from pgworkflows.queue") == "cancel"
        [answer] = first.write(outcome(str(run.id), claim[0]["claim_id"], "complete"))
        assert answer == Answer(Verdict.WRITTEN, "cancel")
        assert client.get_run(run.id).status is RunStatus.FAILED

    @pytest.mark.direct("its gate is the lock of a session")
    def test_leaves_no_row_of_a_run_that_has_just_begun_to_wait(
        self, client: WorkflowClient, first: HandWorker, database_url: str
    ) -> None:
        client.start_workflow("plan")
        run = first.claim_one()
        rows(database_url, "update pgworkflows.queue set timeout_at = clock_timestamp()")
        late = Slowed(database_url, "wake_due", self.DUE)
        late.begin("select public.wake_due('-infinity')")
        wait = StepWrite(0, "go", "wait_for", StepStatus.WAITING, event_name="go")
        entry = Entry(run.run_id, run.claim_id, 0, "suspend", (wait,), step_id="go", wait_kind="event", wait_event="go")
        assert first.write(entry) == [WRITTEN]
        late.end()
        assert client.get_run(run.run_id).status is RunStatus.FAILED
        assert rows(database_url, "select * from pgworkflows.queue") == []
        assert client.retry_workflow(run.run_id).status is RunStatus.PENDING


class TestAWorkerWithItsHandsFull:
    def test_leaves_to_others_what_it_has_no_thread_for(
        self, engine: WorkflowEngine, desk: Desk, database_url: str
    ) -> None:
        runs = [engine.start_workflow("stay", number) for number in range(10)]
        claimed = "select count(*) from pgworkflows.queue where status = 'running' group by worker_id"
        with working(engine, threads=2), working(engine, threads=2):
            until(lambda: len(desk.inside) == 4, "both are at work")
            assert rows(database_url, claimed) == [(2,), (2,)]
            # For one that is done another is claimed.
            desk.let_go(desk.inside[0])
            until(lambda: len(desk.inside) == 5, "the next is begun")
            desk.close()
            for run in runs:
                assert engine.wait_for_run(run.id, timeout=20).status is RunStatus.COMPLETED

    def test_wakes_what_is_due_and_fails_the_runs_that_are_out_of_time(
        self, engine: WorkflowEngine, desk: Desk, database_url: str
    ) -> None:
        napping = engine.start_workflow("nap")
        with working(engine, threads=1, poll_interval=0.1):
            until(lambda: engine.get_run(napping.id).status is RunStatus.WAITING, "it naps")
            runs = [engine.start_workflow("stay", number, timeout=1) for number in range(3)]
            until(lambda: desk.inside, "the only thread is taken")
            for run in runs:
                done = engine.wait_for_run(run.id, timeout=20)
                assert done.error is not None
                assert done.error["type"] == "WorkflowTimeoutError"
            make_due(database_url)
            until(lambda: engine.get_run(napping.id).status is RunStatus.PENDING, "it is woken")
            desk.close()
            assert engine.wait_for_run(napping.id, timeout=20).status is RunStatus.COMPLETED

    def test_works_on_when_one_of_more_hanging_functions_than_threads_comes_back(
        self, engine: WorkflowEngine, desk: Desk, caplog: pytest.LogCaptureFixture
    ) -> None:
        with working(engine, threads=1, grace=0):
            first = engine.start_workflow("hang", 1)
            assert engine.wait_for_run(first.id, timeout=20).status is RunStatus.FAILED
            second = engine.start_workflow("hang", 2)  # in the thread that took the first one's place
            until(lambda: "a thread is lost" in caplog.text, "both hang, and no further thread may take their place")
            third = engine.start_workflow("stay", 3)
            desk.let_go(3)
            desk.let_go(1)  # the second never comes back
            assert engine.wait_for_run(second.id, timeout=20).status is RunStatus.FAILED
            assert engine.wait_for_run(third.id, timeout=20).output == 3


def test_a_claim_that_is_too_large_to_be_answered_is_made_of_fewer_runs(
    engine: WorkflowEngine, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their histories may be longer together than any answer of the server can be."""
    asked: list[int] = []
    really_claim = claims.claim

    def claim(*args: Any, **options: Any) -> Claim:
        capacity = args[4]
        asked.append(capacity)
        if capacity > 2:
            raise Refused("string buffer exceeds maximum allowed length (1073741823 bytes)")
        return really_claim(*args, **options)

    monkeypatch.setattr(claims, "claim", claim)
    desk.close()
    runs = [engine.start_workflow("stay", number) for number in range(6)]
    with working(engine, threads=8):
        for run in runs:
            assert engine.wait_for_run(run.id, timeout=20).status is RunStatus.COMPLETED
    assert asked[:3] == [8, 4, 2]


def test_an_alarm_of_the_far_future_does_not_silence_the_others() -> None:
    alarms = Alarms("under test")
    alarms.start()
    rang = Event()
    alarms.set(1e12, lambda: None)
    until(lambda: alarms.is_alive(), "it waits")
    alarms.set(0, rang.set)
    assert rang.wait(20)
    alarms.close()
    assert not alarms.is_alive()


def test_a_worker_comes_back_soon_after_an_outage_of_any_length() -> None:
    """Those who are back look for its heartbeat, and for its lock."""
    for longest_s in (HEARTBEAT_S, LISTEN_FOR_S):
        backoff = Backoff(logging.getLogger("under test"), "coming back", longest_s=longest_s)
        assert max(backoff.failed(Unavailable("away")) for _ in range(100)) <= longest_s < PATIENCE_S / 10


def test_a_registration_whose_answer_was_lost_can_be_sent_again(first: HandWorker, database_url: str) -> None:
    again = {"hostname": "by hand", "pid": 0, "queues": ["default"], "has_lock": False, "lease": timedelta(seconds=30)}
    claims.register_worker(first.connection, first.id, **again)  # type: ignore[arg-type]  # a dict of mixed values
    assert rows(database_url, "select id from pgworkflows.workers") == [(first.id,)]


def test_the_announcement_of_a_worker_that_was_struck_while_it_fell_asleep_does_not_stay(
    first: HandWorker, second: HandWorker, database_url: str
) -> None:
    with psycopg.connect(database_url) as falling_asleep:
        falling_asleep.execute("select pgworkflows.sleep(%s, array['default'])", [first.id])
        assert value(database_url, "select pgworkflows.declare_dead(%s, 0)", first.id)
    claims.sleep(second.connection, second.id, ["default"])
    second.take_over()
    assert rows(database_url, "select worker_id from pgworkflows.sleepers") == [(second.id,)]


class TestARunThatIsLetGoOf:
    """In the scribe's thread, while others use the same holdings."""

    @staticmethod
    def execution() -> Execution:
        run = ClaimedRun(
            str(uuid4()), 1, "plan", None, "null", 0, 0, 0, 0, (), (), datetime.now(UTC), datetime.now(UTC)
        )
        return Execution(run, workflow("plan")(work), logging.getLogger("under test"))

    class Interrupted(dict[str, Execution]):
        """Another thread comes between the first look and what follows it."""

        def __init__(self, meanwhile: Callable[[], object]) -> None:
            super().__init__()
            self._others = [Thread(target=meanwhile)]

        def get(self, key: str, default: Any = None) -> Any:
            found = super().get(key, default)
            while self._others:  # who comes in between looks, too
                other = self._others.pop()
                other.start()
                other.join(0.2)  # or it waits until the look is over
            return found

    def test_may_be_dropped_with_all_the_others_at_the_same_moment(self) -> None:
        holdings, execution = Holdings(), self.execution()
        holdings.executions = self.Interrupted(
            lambda: holdings.die(holdings.worker_id, logging.getLogger("under test"))
        )
        holdings.add(execution, holdings.worker_id)
        holdings.remove(execution)
        assert execution.dropped

    def test_may_be_claimed_again_at_the_same_moment(self) -> None:
        holdings, former, later = Holdings(), self.execution(), self.execution()
        later.run = former.run
        holdings.executions = self.Interrupted(lambda: holdings.add(later, holdings.worker_id))
        holdings.add(former, holdings.worker_id)
        holdings.remove(former)
        until(lambda: holdings.executions.values(), "it is in hand again")
        assert [*holdings.executions.values()] == [later]


@pytest.mark.parametrize("unstorable", ["\0", "\ud800"])
def test_an_error_of_our_own_can_be_read_in_sql_whatever_its_message_quotes(
    client: WorkflowClient, database_url: str, unstorable: str
) -> None:
    def refuse(_value: Any) -> Any:
        raise ValueError(f"this is no {unstorable}")

    class Input(BaseModel):
        number: Annotated[int, BeforeValidator(refuse)]

    @workflow("picky")
    def picky(step: Step, input: Input) -> Steps[None]:
        yield from step.run("never", int)

    run = client.start_workflow("picky", {"number": 1})
    with WorkflowEngine(database_url, workflows=[picky]) as engine:
        engine.worker().run_until_idle(timeout=20)
    assert client.get_run(run.id).status is RunStatus.FAILED
    [(kind, _)] = rows(database_url, "select error ->> 'type', error::jsonb from pgworkflows.runs")
    assert kind == "InvalidInputError"
    assert client.retry_workflow(run.id).status is RunStatus.PENDING


class TestWhatTakesLong:
    def test_in_a_finally_block_does_not_hold_up_the_writes_of_others(self, engine: WorkflowEngine, desk: Desk) -> None:
        begun = Event()

        @workflow("tidy")
        def tidy(step: Step) -> Steps[None]:
            try:
                yield from step.run("stay", desk.stay, 1)
                yield from step.run("never", int)
            finally:
                begun.set()
                desk.stay(2)

        engine.register_workflow(tidy)
        with working(engine):
            run = engine.start_workflow("tidy")
            until(lambda: desk.inside, "its step is called")
            engine.pause_workflow(run.id)
            desk.let_go(1)
            assert begun.wait(20)
            desk.let_go(3)
            other = engine.start_workflow("stay", 3)
            assert engine.wait_for_run(other.id, timeout=20).output == 3
            desk.close()

    def test_in_a_flush_is_not_cut_short_by_the_servers_default(
        self, engine: WorkflowEngine, desk: Desk, database_url: str
    ) -> None:
        desk.close()
        with psycopg.connect(database_url, autocommit=True) as admin:
            admin.execute(
                "create function public.take_long() returns trigger language plpgsql as "
                "'begin perform pg_sleep(0.3); return new; end'"
            )
            admin.execute("create trigger slow before insert on pgworkflows.steps execute function public.take_long()")
            admin.execute(f"alter database {admin.info.dbname} set statement_timeout = '200ms'".encode())
        run = engine.start_workflow("stay", 1)
        engine.worker().run_until_idle(timeout=20)
        assert engine.get_run(run.id).output == 1


class TestUntilIdle:
    def test_waits_for_a_ready_run_that_a_client_holds_in_its_transaction(
        self, engine: WorkflowEngine, desk: Desk, database_url: str
    ) -> None:
        desk.close()
        run = engine.start_workflow("stay", 1)
        with psycopg.connect(database_url) as held:
            engine.trigger_event(run.id, "unheard", connection=held)
            with pytest.raises(TimeoutError):
                engine.worker().run_until_idle(timeout=0.5)
        engine.worker().run_until_idle(timeout=20)
        assert engine.get_run(run.id).status is RunStatus.COMPLETED

    def test_does_not_wait_for_the_runs_of_others(
        self, engine: WorkflowEngine, client: WorkflowClient, database_url: str
    ) -> None:
        run = client.start_workflow("plan")
        with psycopg.connect(database_url) as held:
            client.trigger_event(run.id, "unheard", connection=held)
            engine.worker().run_until_idle(timeout=20)


def test_what_the_server_refuses_is_told_without_our_own_statements(client: WorkflowClient, first: HandWorker) -> None:
    client.start_workflow("plan")
    run = first.claim_one()
    bad = StepWrite(0, "a", "run", StepStatus.COMPLETED, "no JSON", attempts=1)
    [answer] = first.write(Entry(run.run_id, run.claim_id, 0, "checkpoint", (bad,)))
    assert answer.verdict is Verdict.REFUSED
    assert answer.reason == 'invalid input syntax for type json (Token "no" is invalid.)'


class TestAWriteThatSomebodyElsesRuleForbids:
    """Triggers and constraints may be put on our tables, like on all tables."""

    def test_fails_the_step_and_holds_up_nobody(self, engine: WorkflowEngine, desk: Desk, database_url: str) -> None:
        desk.close()
        with psycopg.connect(database_url, autocommit=True) as admin:
            admin.execute(
                "create function public.veto() returns trigger language plpgsql as "
                "$$begin if new.output::text = '13' then raise 'unlucky'; end if; return new; end$$"
            )
            admin.execute("create trigger veto before insert on pgworkflows.steps for each row execute function veto()")
        runs = [engine.start_workflow("stay", number) for number in (12, 13, 14)]
        engine.worker().run_until_idle(timeout=20)
        done = [engine.get_run(run.id) for run in runs]
        assert [run.status for run in done] == [RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.COMPLETED]
        assert done[1].error is not None
        assert "unlucky" in done[1].error["message"]

    def test_of_a_runs_end_is_tried_again_now_and_then_only(
        self, engine: WorkflowEngine, desk: Desk, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        desk.close()
        with psycopg.connect(database_url, autocommit=True) as admin:
            admin.execute(
                "alter table pgworkflows.runs add constraint unlucky "
                "check (input::text <> '13' or status in ('pending', 'running'))"
            )
        with working(engine, poll_interval=5):
            unlucky = engine.start_workflow("stay", 13)
            until(lambda: "cannot be written" in caplog.text, "it is refused")
            for number in range(14, 30):
                assert engine.wait_for_run(engine.start_workflow("stay", number).id, timeout=20).output == number
            assert caplog.text.count("cannot be written") == 1
        # Given back by the worker that stops, without an end.
        assert engine.get_run(unlucky.id).status is RunStatus.PENDING


@pytest.mark.parametrize("action", ["fail", "retry"])
def test_a_failure_that_comes_after_the_run_was_cancelled_and_retried_is_taken_back(
    client: WorkflowClient, first: HandWorker, database_url: str, action: str
) -> None:
    """The step was told to stop, and raised; by then the run was to go on again."""
    client.start_workflow("plan")
    run = first.claim_one()
    client.cancel_workflow(run.run_id)
    client.retry_workflow(run.run_id)
    error = ErrorInfo("Stopped", "it was told to", None, "a")
    failed = StepWrite(0, "a", "run", StepStatus.FAILED, error=error, attempts=1)
    entry = Entry(
        run.run_id, run.claim_id, 0, action, (failed,), step_id="a", error=error, wake_after=timedelta(hours=1)
    )
    assert first.write(entry) == [Answer(Verdict.WRITTEN, "retry")]
    again = first.claim_one()
    [step] = again.steps
    assert step.cleared
    assert (step.attempts, again.retry_count) == (1, 0)


def test_a_server_that_vanishes_in_the_middle_of_a_write_is_not_waited_for_a_quarter_of_an_hour() -> None:
    """Without this, TCP repeats what was not acknowledged, at growing distances, also long after the server is back."""
    assert conninfo_to_dict(normalise("postgresql://host/db"))["tcp_user_timeout"] == "25000"
    assert conninfo_to_dict(normalise("host=host tcp_user_timeout=5"))["tcp_user_timeout"] == "5"


@pytest.mark.parametrize("wake_at", ["null", "now() + interval '1 hour'"])
def test_a_claim_does_not_read_what_is_due_later_or_for_others(
    first: HandWorker, database_url: str, wake_at: str
) -> None:
    """Also when many runs have just come or begun to wait, and the planner's statistics know nothing of that."""
    read = "select coalesce(sum(idx_tup_read), 0) from pg_stat_user_indexes where relname = 'queue'"
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("alter table pgworkflows.queue set (autovacuum_enabled = off)")
        conn.execute(
            "insert into pgworkflows.queue (run_id, workflow_id, queue, rank, ready_at) "
            "select gen_random_uuid(), 'other', 'default', now(), now() from generate_series(1, 5000)"
        )
        conn.execute("analyze pgworkflows.queue")
        conn.execute(f"update pgworkflows.queue set wake_at = {wake_at}, timeout_at = {wake_at}".encode())
        conn.execute("select pg_stat_force_next_flush()")
        [(before,)] = conn.execute(read).fetchall()
        for _ in range(8):  # plans are made anew for the first calls
            conn.execute("select pgworkflows.claim(%s, array['default'], array['plan'], 5, true, false)", [first.id])
        conn.execute("select pg_stat_force_next_flush()")
        [(after,)] = conn.execute(read).fetchall()
    assert after - before < 500
