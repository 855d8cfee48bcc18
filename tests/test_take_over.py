"""Workers that die, freeze, or take their runs with them; and who goes on with the work."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from waiting import until
from working import HandWorker, WorkerProcesses, rows, value, worker_processes, working

from pgworkflows import RunStatus, Step, Steps, WorkflowClient, WorkflowEngine, claims, heartbeat, peers, workflow

HEARTBEAT_S = heartbeat.HEARTBEAT_S


pytestmark = pytest.mark.usefixtures("quick_heart")


@pytest.fixture
def client(database_url: str) -> Iterator[WorkflowClient]:
    with WorkflowClient(database_url) as client:
        yield client


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url) as engine:
        yield engine


@pytest.fixture
def processes(database_url: str) -> Iterator[WorkerProcesses]:
    with worker_processes(database_url) as processes:
        yield processes


def work(step: Step) -> Steps[str]:
    """A handler with nothing special about it."""
    yield step.run("a", lambda: None)
    return "done"


class TestAKilledProcess:
    def test_its_runs_go_on_elsewhere_and_their_completed_steps_are_not_repeated(
        self, client: WorkflowClient, processes: WorkerProcesses
    ) -> None:
        plan = {"steps": ["a", "b", "c"], "gated": ["b"]}
        victim = processes.start(threads=4)
        victim.await_registration()
        runs = [client.start_workflow("story", plan).id for _ in range(8)]
        until(lambda: Counter(step for step, _ in processes.calls())["b"] == 4, "four runs are in their second step")
        completed = {run_id for run_id in runs if client.get_steps(run_id)}
        in_flight = {run_id for run_id in runs if ("b", victim.pid) in processes.calls(run_id)}
        assert len(in_flight) == 4
        assert in_flight <= completed
        other = processes.start()
        victim.send(signal.SIGKILL)
        until(lambda: not victim.registered(), "its death is noticed")
        processes.open_gate("b")
        for run_id in runs:
            assert client.wait_for_run(run_id, timeout=30).status is RunStatus.COMPLETED
            # A call that died was never answered: it does not count as an attempt.
            assert [step.attempts for step in client.get_steps(run_id)] == [1, 1, 1]
        for run_id in completed:
            calls = processes.calls(run_id)
            begun = [("b", victim.pid)] if run_id in in_flight else []  # its outcome was never stored
            assert calls == [("a", victim.pid), *begun, ("b", other.pid), ("c", other.pid)]
            # What the handler got for the first step is what the killed process had stored.
            assert client.get_run(run_id).output == [victim.pid, other.pid, other.pid]

    def test_a_step_that_kills_its_process_is_blamed_and_its_neighbours_end_well(
        self, client: WorkflowClient, processes: WorkerProcesses, database_url: str
    ) -> None:
        first = processes.start()
        first.await_registration()
        killer = client.start_workflow("killer")
        assert first.end() == -signal.SIGKILL
        assert processes.calls(killer.id) == [("before", first.pid), ("die", first.pid)]
        processes.start()
        until(
            lambda: value(database_url, "select max(interruptions) from pgworkflows.queue") == 1,
            "the run is taken over, and that is noted",
        )
        until(lambda: len(processes.calls(killer.id)) == 3, "the run kills again")
        # The completed step is not repeated, whatever its successor does.
        assert [step for step, _ in processes.calls(killer.id)] == ["before", "die", "die"]

    @pytest.mark.direct("about LISTEN and the lock of a worker")
    def test_a_hundred_runs_in_flight_go_on_within_three_seconds_and_the_last_within_five(
        self, client: WorkflowClient, processes: WorkerProcesses, database_url: str
    ) -> None:
        """At default settings, but for the threads of the one that dies: all of its runs are in a step."""
        victim = processes.start(threads=100)
        victim.await_registration()
        runs = client.start_workflows("story", [{"steps": ["a", "b"], "gated": ["b"]}] * 100)
        until(lambda: Counter(step for step, _ in processes.calls())["b"] == 100, "all are in their second step")
        until(lambda: value(database_url, "select count(*) from pgworkflows.steps") == 100, "the first is stored")
        heir = processes.start()
        heir.await_registration()
        killed_at = value(database_url, "select clock_timestamp()")
        victim.send(signal.SIGKILL)
        processes.open_gate("b")
        until(lambda: not rows(database_url, "select 1 from pgworkflows.queue"), "all have ended", within_s=30)
        second = "select extract(epoch from completed_at - %s)::float8 from pgworkflows.steps where step_id = 'b'"
        delays_s = [delay_s for (delay_s,) in rows(database_url, second, killed_at)]
        print(f"100 runs went on after: median {median(delays_s):.2f} s, last {max(delays_s):.2f} s")
        assert {(client.get_run(run.id).status, *client.get_run(run.id).output) for run in runs} == {
            (RunStatus.COMPLETED, victim.pid, heir.pid)
        }
        assert len(processes.calls()) == 300
        assert median(delays_s) <= 3
        assert max(delays_s) <= 5


class TestABusyProcess:
    def test_a_step_that_lets_no_heart_beat_keeps_its_run(
        self, client: WorkflowClient, processes: WorkerProcesses, database_url: str, tmp_path: Path
    ) -> None:
        """It holds Python's global lock for longer than the silence after which a process that is gone counts as dead.
        Its session holds the worker's advisory lock: it lives. Behind a pooler it lives for its lease."""
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        busy = processes.start(lease="30s")
        busy_id = busy.await_registration()
        run = client.start_workflow("holder", str(gate))
        until(lambda: processes.calls(run.id), "it is in its step")
        other = processes.start()
        other_id = other.await_registration()

        def beats_of(worker_id: UUID) -> int:
            return int(value(database_url, "select beats from pgworkflows.workers where id = %s", worker_id))

        silent_since, seen = beats_of(busy_id), beats_of(other_id)
        looks = ceil(peers.SILENCE_S / HEARTBEAT_S) + 3
        until(lambda: beats_of(other_id) >= seen + looks, "the other looks at it for long enough")
        assert beats_of(busy_id) <= silent_since + 1
        gate.write_text("!")
        assert client.wait_for_run(run.id, timeout=30).output == [busy.pid, busy.pid]
        assert processes.calls(run.id) == [("hold", busy.pid), ("after", busy.pid)]
        assert busy.registered() == [(busy_id,)]


class Wire:
    """A TCP proxy in front of the server, which can be cut: then nothing passes, and no end of it is told to the other,
    as when a host vanishes, or the way to it."""

    def __init__(self, url: str) -> None:
        self._server = url
        self._open = threading.Event()
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()
        return make_conninfo(self._server, host=host, port=port)

    def cut(self) -> None:
        self._open.clear()

    def mend(self) -> None:
        self._open.set()

    def close(self) -> None:
        self._open.set()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = self._connect()
                self._sockets += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _connect(self) -> socket.socket:
        where = conninfo_to_dict(self._server)
        host, port = str(where.get("host") or "localhost"), int(where.get("port") or 5432)
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        far = socket.socket(socket.AF_UNIX)
        far.connect(f"{host}/.s.PGSQL.{port}")
        return far

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                target.sendall(data)
            self._open.wait()
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def wire(database_url: str) -> Iterator[Wire]:
    with closing(Wire(database_url)) as wire:
        yield wire


@pytest.mark.direct("about LISTEN and the lock of a worker")
class TestAHostThatVanishes:
    """Without closing its sockets: for the server its sessions live on, and hold the worker's lock."""

    LOCKED = (
        "select exists (select from pg_locks where locktype = 'advisory' "
        "and classid::bigint << 32 | objid::bigint = pgworkflows.worker_lock_key(%s))"
    )

    def test_its_runs_go_on_elsewhere_when_its_lease_has_run_out(
        self, client: WorkflowClient, processes: WorkerProcesses, database_url: str, wire: Wire
    ) -> None:
        vanished = processes.start(wire.url, lease="2s")
        worker_id = vanished.await_registration()
        run = client.start_workflow("story", {"steps": ["a", "b"], "gated": ["b"]})
        until(lambda: len(processes.calls(run.id)) == 2, "it is in its second step")
        other = processes.start()
        other.await_registration()
        wire.cut()
        vanished.send(signal.SIGKILL)
        cut_at = time.monotonic()
        processes.open_gate("b")
        until(lambda: not vanished.registered(), "its lease runs out")
        assert time.monotonic() - cut_at >= 2 - HEARTBEAT_S
        assert value(database_url, self.LOCKED, worker_id), "the server knows nothing of its end"
        assert client.wait_for_run(run.id, timeout=30).output == [vanished.pid, other.pid]
        assert processes.calls(run.id) == [("a", vanished.pid), ("b", vanished.pid), ("b", other.pid)]

    def test_if_only_the_way_to_it_was_cut_it_writes_nothing_when_it_is_back_and_works_on(
        self, client: WorkflowClient, processes: WorkerProcesses, database_url: str, wire: Wire
    ) -> None:
        cut_off = processes.start(wire.url, lease="2s")
        worker_id = cut_off.await_registration()
        run = client.start_workflow("story", {"steps": ["a", "b", "c"], "gated": ["b"]})
        until(lambda: len(processes.calls(run.id)) == 2, "it is in its second step")
        other = processes.start()
        other.await_registration()
        wire.cut()
        until(lambda: not cut_off.registered(), "its lease runs out")
        processes.open_gate("b")
        assert client.wait_for_run(run.id, timeout=30).output == [cut_off.pid, other.pid, other.pid]
        done = client.get_run(run.id), client.get_steps(run.id)
        wire.mend()
        # Its step has returned meanwhile; what it wrote of it arrives now.
        [(again,)] = until(cut_off.registered, "it registers anew")
        assert again != worker_id
        assert (client.get_run(run.id), client.get_steps(run.id)) == done
        other.send(signal.SIGTERM)
        assert other.end() == 0
        new = client.start_workflow("story", {"steps": ["a"]})
        assert client.wait_for_run(new.id, timeout=30).output == [cut_off.pid]
        assert "was declared dead" in cut_off.said()


class TestAFrozenProcess:
    def test_it_writes_nothing_when_it_wakes_notices_and_works_on(
        self, client: WorkflowClient, processes: WorkerProcesses, database_url: str
    ) -> None:
        frozen = processes.start(lease="2s")
        former_id = frozen.await_registration()
        run = client.start_workflow("story", {"steps": ["a", "b", "c"], "gated": ["b"]})
        until(lambda: len(processes.calls()) == 2, "the run is in its second step")
        frozen.send(signal.SIGSTOP)
        other = processes.start()
        other.await_registration()
        until(lambda: not frozen.registered(), "its lease runs out, although it holds its lock")
        processes.open_gate("b")
        assert client.wait_for_run(run.id, timeout=30).output == [frozen.pid, other.pid, other.pid]
        done = client.get_run(run.id), client.get_steps(run.id)

        frozen.send(signal.SIGCONT)
        # Its step returns at once, for the gate is open, and its outcome is refused.
        [(worker_id,)] = until(frozen.registered, "it registers anew")
        assert worker_id != former_id
        assert (client.get_run(run.id), client.get_steps(run.id)) == done
        other.send(signal.SIGTERM)
        assert other.end() == 0
        again = client.start_workflow("story", {"steps": ["a"]})
        assert client.wait_for_run(again.id, timeout=30).output == [frozen.pid]
        frozen.send(signal.SIGTERM)
        assert frozen.end() == 0
        assert "was declared dead" in frozen.said()
        assert [step for step, pid in processes.calls(run.id) if pid == frozen.pid] == ["a", "b"]


class TestDeclaringDead:
    """Who is dead, by hand: the peer is a row in `workers`, its lock a session of the test."""

    def test_a_worker_with_a_free_lock_and_no_heartbeat_is_dead(
        self, engine: WorkflowEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(peers, "SILENCE_S", 0.6)
        engine.register_workflow(workflow("plan")(work))
        run = engine.start_workflow("plan")
        with HandWorker(database_url, ["plan"], has_lock=True) as silent:
            assert silent.claim_one().run_id == str(run.id)
            with working(engine):
                assert engine.wait_for_run(run.id, timeout=20).output == "done"
            assert value(database_url, "select count(*) from pgworkflows.workers") == 0

    def test_a_worker_whose_lock_is_held_is_alive_for_its_lease_without_a_heartbeat(
        self, engine: WorkflowEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(peers, "SILENCE_S", 0.3)
        engine.register_workflow(workflow("plan")(work))
        run = engine.start_workflow("plan")
        with (
            HandWorker(database_url, ["plan"], has_lock=True, lease_s=1) as busy,
            psycopg.connect(database_url) as lock,
        ):
            lock.execute("select pg_advisory_lock(pgworkflows.worker_lock_key(%s))", [busy.id])
            busy.claim_one()
            started = time.monotonic()
            with working(engine):
                assert engine.wait_for_run(run.id, timeout=20).output == "done"
            assert time.monotonic() - started > 1

    def test_a_worker_without_a_lock_is_dead_when_its_lease_has_run_out(
        self, engine: WorkflowEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(peers, "SILENCE_S", 0.3)
        engine.register_workflow(workflow("plan")(work))
        gone, alive = engine.start_workflow("plan"), engine.start_workflow("plan")
        with (
            HandWorker(database_url, ["plan"], has_lock=False, lease_s=30) as lapsed,
            HandWorker(database_url, ["plan"], has_lock=False, lease_s=30) as quiet,
        ):
            [run] = lapsed.claim(1).runs
            assert run.run_id == str(gone.id)
            assert quiet.claim_one().run_id == str(alive.id)
            rows(
                database_url,
                "update pgworkflows.workers set heartbeat_at = now() - interval '31 s' where id = %s",
                lapsed.id,
            )
            with working(engine):
                assert engine.wait_for_run(gone.id, timeout=20).output == "done"
                assert engine.get_run(alive.id).status is RunStatus.RUNNING
                assert value(database_url, "select count(*) from pgworkflows.workers where id = %s", quiet.id) == 1

    def test_a_heartbeat_in_the_last_moment_saves_a_worker(self, database_url: str) -> None:
        with HandWorker(database_url, ["plan"]) as late, HandWorker(database_url, ["plan"]) as checker:
            [peer] = claims.beat(checker.connection, checker.id).peers
            assert peer.worker_id == str(late.id)
            claims.beat(late.connection, late.id)
            assert not claims.declare_dead(checker.connection, peer.worker_id, peer.beats)
            [peer] = claims.beat(checker.connection, checker.id).peers
            assert claims.declare_dead(checker.connection, peer.worker_id, peer.beats)
            assert not claims.beat(late.connection, late.id).alive

    def test_a_claim_that_committed_after_the_workers_death_is_taken_over(
        self, client: WorkflowClient, database_url: str
    ) -> None:
        client.start_workflow("plan")
        with HandWorker(database_url, ["plan"]) as dying, HandWorker(database_url, ["plan"]) as heir:
            with psycopg.connect(database_url) as late:
                late.execute(
                    "select pgworkflows.claim(%s, array['default'], array['plan'], 5, true, false)", [dying.id]
                )
                dying.die()
                assert heir.take_over() == 0
            assert value(database_url, "select worker_id from pgworkflows.queue") == dying.id
            assert heir.take_over() == 1
            assert len(heir.claim().runs) == 1

    def test_a_running_worker_looks_for_orphans_now_and_then(
        self, engine: WorkflowEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(heartbeat, "TAKE_OVER_EVERY_S", 0.2)
        engine.register_workflow(workflow("plan")(work))
        with working(engine):
            until(lambda: value(database_url, "select max(beats) from pgworkflows.workers") > 1, "it has looked once")
            run = engine.start_workflow("plan", queue="elsewhere")
            with psycopg.connect(database_url, autocommit=True) as somebody:
                # In one statement, or the worker would see it unclaimed; its worker has never been heard of.
                somebody.execute(
                    "update pgworkflows.queue set queue = 'default', status = 'running', claim_id = 1, worker_id = %s",
                    [uuid4()],
                )
            assert engine.wait_for_run(run.id, timeout=20).output == "done"


class TestInterruptions:
    """A run that takes its worker with it every time."""

    @staticmethod
    def interrupt(database_url: str) -> list[str]:
        """A worker claims what it gets, and dies; the ids of the runs that died with it."""
        with HandWorker(database_url, ["plan"]) as victim:
            claimed = [run.run_id for run in victim.claim().runs]
            victim.die()
            assert victim.take_over() == len(claimed)
        return claimed

    def test_from_the_third_on_it_is_claimed_alone_and_at_the_tenth_it_fails(
        self, client: WorkflowClient, database_url: str
    ) -> None:
        killer = str(client.start_workflow("plan", idempotency_key="killer").id)
        for _ in range(3):
            assert self.interrupt(database_url) == [killer]
        neighbours = {str(client.start_workflow("plan").id) for _ in range(3)}
        for _ in range(6):
            assert self.interrupt(database_url) == [killer]
        assert dict(rows(database_url, "select run_id::text, interruptions from pgworkflows.queue")) == {
            killer: 9,
            **dict.fromkeys(neighbours, 0),
        }
        assert self.interrupt(database_url) == [killer]
        failed = client.get_run(killer)
        assert failed.status is RunStatus.FAILED
        assert failed.error is not None
        assert "10 times" in failed.error["message"]
        assert failed.retry_count == 0
        assert set(self.interrupt(database_url)) == neighbours

    def test_after_it_has_failed_it_can_be_retried_from_nothing(
        self, client: WorkflowClient, database_url: str
    ) -> None:
        run = client.start_workflow("plan")
        for _ in range(10):
            self.interrupt(database_url)
        assert client.get_run(run.id).status is RunStatus.FAILED
        assert client.retry_workflow(run.id).status is RunStatus.PENDING
        assert value(database_url, "select interruptions from pgworkflows.queue") == 0

    def test_a_worker_with_other_runs_in_hand_leaves_a_suspect_and_takes_nothing_else(
        self, client: WorkflowClient, database_url: str
    ) -> None:
        client.start_workflow("plan")
        for _ in range(3):
            self.interrupt(database_url)
        client.start_workflow("plan")
        with HandWorker(database_url, ["plan"]) as busy:
            claim = busy.claim(alone=False)
        assert claim.suspects
        assert claim.runs == ()

    def test_a_suspect_that_somebody_holds_does_not_hold_up_the_others(
        self, client: WorkflowClient, database_url: str
    ) -> None:
        suspect = client.start_workflow("plan")
        for _ in range(3):
            self.interrupt(database_url)
        neighbour = client.start_workflow("plan")
        with HandWorker(database_url, ["plan"]) as worker, psycopg.connect(database_url) as somebody:
            client.trigger_event(suspect.id, "go", connection=somebody)
            assert [run.run_id for run in worker.claim().runs] == [str(neighbour.id)]

    def test_a_checkpoint_of_a_running_worker_clears_the_blame(self, engine: WorkflowEngine, database_url: str) -> None:
        at_second = threading.Event()
        go_on = threading.Event()

        def second() -> None:
            at_second.set()
            assert go_on.wait(20)

        @workflow("plan")
        def plan(step: Step) -> Steps[None]:
            yield step.run("first", lambda: None)
            yield step.run("second", second)

        engine.register_workflow(plan)
        run = engine.start_workflow(plan)
        for _ in range(3):
            self.interrupt(database_url)
        try:
            with working(engine):
                assert at_second.wait(20)
                assert value(database_url, "select interruptions from pgworkflows.queue") == 0
                # The run is above suspicion again: its worker takes others beside it.
                go_on_beside = engine.start_workflow(plan, queue="default")
                until(
                    lambda: engine.get_run(go_on_beside.id).status is RunStatus.RUNNING,
                    "another run is claimed beside it",
                    within_s=5,
                )
                go_on.set()
                engine.wait_for_run(run.id, timeout=20)
        finally:
            go_on.set()

    def test_a_suspect_runs_alone_in_its_worker(self, engine: WorkflowEngine, database_url: str) -> None:
        running: set[UUID] = set()
        beside: list[set[UUID]] = []
        lock = threading.Lock()

        def look_around(run_id: UUID, suspect: bool) -> None:
            with lock:
                running.add(run_id)
                if suspect:
                    beside.append(set(running))
            time.sleep(0.05)  # the time in which another could begin
            with lock:
                if suspect:
                    beside.append(set(running))
                running.discard(run_id)

        @workflow("plan")
        def plan(step: Step, input: bool) -> Steps[Any]:
            yield step.run("look", look_around, step.context.run_id, input)

        engine.register_workflow(plan)
        suspect = engine.start_workflow(plan, True)
        for _ in range(3):
            self.interrupt(database_url)
        others = [engine.start_workflow(plan, False) for _ in range(5)]
        with working(engine):
            for run in [suspect, *others]:
                assert engine.wait_for_run(run.id, timeout=20).status is RunStatus.COMPLETED
        assert beside == [{suspect.id}, {suspect.id}]

    def test_a_cancelled_run_whose_worker_dies_stays_cancelled_and_a_paused_one_paused(
        self, client: WorkflowClient, database_url: str
    ) -> None:
        cancelled, paused, retried = (client.start_workflow("plan").id for _ in range(3))
        with HandWorker(database_url, ["plan"]) as victim:
            assert len(victim.claim().runs) == 3
            client.cancel_workflow(cancelled)
            client.pause_workflow(paused)
            client.cancel_workflow(retried)
            client.retry_workflow(retried)
            victim.die()
            assert victim.take_over() == 3
        assert client.get_run(cancelled).status is RunStatus.CANCELLED
        assert client.get_run(paused).status is RunStatus.PAUSED
        with HandWorker(database_url, ["plan"]) as heir:
            assert heir.claim_one().run_id == str(retried)
            client.resume_workflow(paused)
            assert heir.claim_one().run_id == str(paused)
        assert client.retry_workflow(cancelled).status is RunStatus.PENDING
