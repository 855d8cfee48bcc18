"""Processes that are killed at a chosen write.

usage: python crashing.py   (acts as JSON on stdin, [[act, …], …]; the exit statuses as JSON on stdout)

What takes long to import is imported once; every act is a process forked from this one. It says which write it meets
its end at, and when: `before` the write is sent, once it is `sent` and nobody has read the answer, or `after` the
answer. Each process notes which writes it comes to, in the table `writes`, so that none goes unnoticed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from pgworkflows import (
    ChildWorkflowFailedError,
    InvalidStatusError,
    Step,
    StepFailedError,
    Steps,
    Workflow,
    WorkflowClient,
    WorkflowEngine,
    current_step,
    heartbeat,
    migrate,
    peers,
    workflow,
)
from pgworkflows.schema import script, statement
from pgworkflows.scribe import Scribe
from pgworkflows.sessions import OwnConnection

AT_ONCE = 6
LONGEST_ACT_S = 60

# Heartbeats and silences are short here, so that nobody has to wait long for a death to be noticed.
heartbeat.HEARTBEAT_S = 0.1
peers.SILENCE_S = 0.4

# Writes --------------------------------------------------------------------------------------------------------------

NAMES = [each.name.removesuffix(".sql") for each in files("pgworkflows.sql").iterdir() if each.name.endswith(".sql")]
SPELLED = (statement, script)
STATEMENTS = {spelled(name, "pgworkflows").encode(): name for name in NAMES for spelled in SPELLED}


def writes_of(name: str, params: Any) -> set[str]:
    """What a statement writes, as the table of points names it: a flush by what its entries hold."""
    if name not in ("flush", "flush_results"):
        return {name}
    rows = 0
    found: set[str] = set()
    if name == "flush_results":
        _, run_ids, _, _, _, _, _, ends, *params = params
        rows, ended = run_ids.count(b",") + 1, ends.count(b"\x1f") + 1 if ends else 0
        found |= {"flush: complete, run completed"} if ended else set()
        found |= {"flush: checkpoint, run completed"} if rows > ended else set()
    _, entries, steps, events, _ = [param or "[]" for param in params]
    by_run: dict[str, list[str]] = {}
    for step in json.loads(steps):
        by_run.setdefault(step["run_id"], []).append(f"{step['kind']} {step['status']}")
    awaited = {event["run_id"] for event in json.loads(events)}
    listed = json.loads(entries)
    for entry in listed:
        parts = [entry["action"] + (f" {entry['wait_kind']}" if entry.get("wait_kind") else "")]
        parts += by_run.get(entry["run_id"], [])
        parts += ["by an event"] if entry["run_id"] in awaited else []
        parts += ["of a child"] if "parent_run_id" in entry else []
        found.add("flush: " + ", ".join(parts))
    return found | ({"flush: several runs"} if rows + len(listed) > 1 else set())


class Fate:
    """Where this process ends, if it does; and what it has written so far."""

    def __init__(self, url: str, act: Mapping[str, Any]) -> None:
        self._url = url
        self._write: str | None = act.get("write")
        self._moment: str | None = act.get("moment")
        self._left: int = act.get("nth", 1)
        self._noted: set[str] = set()
        self._conn: psycopg.Connection | None = None
        self._lock = threading.Lock()
        self._execute = psycopg.Cursor.execute

    def take_its_course(self) -> None:
        """From here on every statement of the library passes `_meet`."""
        execute = self._execute

        def watched(cursor: Any, query: Any, params: Any = None, **options: Any) -> Any:
            query = query.encode() if isinstance(query, str) else query
            name = STATEMENTS.get(query) if isinstance(query, bytes) else None
            if name is None or not self._meets(writes_of(name, params)):
                return execute(cursor, query, params, **options)
            if self._moment == "sent":
                # The text is complete, so that one message carries it all.
                conn: psycopg.Connection = cursor.connection
                text = psycopg.ClientCursor(conn).mogrify(query, params)
                conn.pgconn.send_query(f"{'' if conn.autocommit else 'begin; '}{text}".encode())
                while conn.pgconn.flush():
                    pass
            elif self._moment == "after":
                execute(cursor, query, params, **options)
            return die()

        send, launch = OwnConnection._send, Scribe._launch
        in_flight = ContextVar("in flight", default=False)

        def launched(writer: Scribe) -> None:
            token = in_flight.set(True)
            try:
                launch(writer)
            finally:
                in_flight.reset(token)

        def watched_send(conn: OwnConnection, sql: str, params: Sequence[Any]) -> None:
            name = STATEMENTS.get(sql.encode())
            flying = {"flush: in flight"} if in_flight.get() else set()
            if name is None or not self._meets(writes_of(name, params) | flying):
                return send(conn, sql, params)
            if self._moment != "before":
                send(conn, sql, params)
                while conn.pgconn.flush():
                    pass
            while self._moment == "after" and conn.received() is None:
                time.sleep(0.001)
            return die()

        psycopg.Cursor.execute = watched  # type: ignore[assignment,method-assign]  # to be killed in it
        Scribe._launch = launched  # type: ignore[assignment,method-assign]  # the same
        OwnConnection._send = watched_send  # type: ignore[assignment,method-assign]  # the same

    def _meets(self, writes: set[str]) -> bool:
        """Note the writes; whether this is where it ends."""
        with self._lock:
            self._note(writes - self._noted)
            if self._write == "flush: several runs" and self._write not in writes and self._left:
                time.sleep(0.1)  # meanwhile the others come to the journal
            if self._write not in writes or self._moment is None:
                return False
            self._left -= 1
            return self._left == 0

    def _note(self, writes: set[str]) -> None:
        if not writes:
            return
        self._noted |= writes
        if self._conn is None:
            self._conn = psycopg.connect(self._url, autocommit=True, application_name="notes")
        for write in writes:
            self._execute(
                psycopg.Cursor(self._conn), b"insert into public.writes values (%s) on conflict do nothing", (write,)
            )

    @property
    def sealed(self) -> bool:
        """Whether this process will be killed."""
        return self._moment is not None


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


# Workflows -----------------------------------------------------------------------------------------------------------

fate: Fate
url: str
stop_worker: Callable[[], None]
together = threading.Barrier(8)


def call(
    *, fails: bool = False, kills: bool = False, hangs: bool = False, stops: bool = False, crowd: bool = False
) -> str:
    """Note the call. `fails`: at the first attempt; `kills` its process; what else it does, only in a process that
    will be killed."""
    current = current_step()
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "insert into public.calls (run_id, step_id, attempt, pid) values (%s, %s, %s, %s)",
            [current.run_id, current.step_id, current.attempt, os.getpid()],
        )
    if kills:
        die()
    if fate.sealed:
        if stops:
            stop_worker()
        if crowd:
            together.wait(20)
        if hangs:
            time.sleep(60)
    if fails and current.attempt == 1:
        raise LookupError("nothing at the first attempt")
    return f"{current.step_id} was called"


def looked() -> bool:
    return bool(call(fails=False)) and current_step().attempt > 1


@workflow("tour")
def tour(step: Step, input: dict[str, Any]) -> Steps[list[Any]]:
    """What its input lists, between two ordinary steps."""
    seen: list[Any] = [(yield step.run("begin", call))]
    for stop in input["stops"]:
        match stop:
            case "run":
                seen.append((yield step.run("run", call)))
            case "flaky":
                seen.append((yield step.run("flaky", call, fails=True).retry(attempts=2, wait=0.01)))
            case "flawed":
                seen.append((yield step.run("flawed", call, fails=True)))
            case "caught":
                try:
                    yield step.run("caught", call, fails=True)
                except StepFailedError as error:
                    seen.append(str(error.error_type))
            case "raise":
                raise LookupError("the handler's own")
            case "hang":
                seen.append((yield step.run("hang", call, hangs=True)))
            case "stop":
                seen.append((yield step.run("stop", call, stops=True)))
            case "stop and hang":
                seen.append((yield step.run("stop and hang", call, stops=True, hangs=True)))
            case "kill":
                seen.append((yield step.run("kill", call, kills=True)))
            case "crowd":
                seen.append((yield step.run("crowd", call, crowd=True)))
            case "delay":
                seen.append((yield step.delay("delay", 0.01)))
            case "until":
                # Another time at every replay: the one that was stored counts.
                seen.append((yield step.wait_until("until", datetime.now(UTC) + timedelta(seconds=0.1))))
            case "past":
                seen.append((yield step.wait_until("past", "2020-01-01T00:00:00Z")))
            case "event":
                seen.append((yield step.wait_for("event", "go")))
            case "no event":
                seen.append((yield step.wait_for("no event", "come", timeout=0.01)))
            case "pause":
                seen.append((yield step.pause("pause")))
            case "poll":
                polled = yield step.poll("poll", looked, interval=1)
                seen.append(polled.data)
            case "child" | "bad child":
                try:
                    seen.append((yield step.invoke_child_workflow("child", input["child"], stop)))
                except ChildWorkflowFailedError as error:
                    seen.append(str(error.error_type))
            case "end":
                return seen
            case _:
                raise AssertionError(stop)
    seen.append((yield step.run("end", call)))
    return seen


def child_of(lane: str) -> Workflow[Any, Any]:
    @workflow(f"child of {lane}", queue=lane)
    def child(step: Step, input: str) -> Steps[str]:
        result: str = yield step.run(input, call, fails=input == "bad child")
        return result

    return child


def yearly_of(lane: str) -> Workflow[Any, Any]:
    @workflow(f"yearly of {lane}", queue=lane, schedule="0 0 1 1 *")
    def yearly(step: Step) -> Steps[str]:
        result: str = yield step.run("yearly", call)
        return result

    return yearly


FAMILY = {"child": child_of, "yearly": yearly_of}

# Acts ----------------------------------------------------------------------------------------------------------------


def work(act: Mapping[str, Any]) -> None:
    """Work in some lanes until all their runs have ended, doing what these wait for; or until all of them wait, with
    `until: waiting`. First do what clients that were killed would do: ask again."""
    global stop_worker
    lanes = act["lanes"]
    with WorkflowEngine(named(act), workflows=[tour, *relatives(act)]) as engine:
        for again in act.get("again", ()):
            with contextlib.suppress(InvalidStatusError):
                OPERATIONS[again["operation"]](engine, again["lane"])
        worker = engine.worker(queues=lanes, threads=8, poll_interval=0.2, grace=act.get("grace", 5))
        stopped = threading.Event()

        def run() -> None:
            worker.run_forever()
            stopped.set()

        def stop() -> None:
            """And see it stopping: until then it would take the next step."""
            worker.stop()
            while not worker.health().stopping:
                time.sleep(0.001)

        stop_worker = stop
        thread = threading.Thread(target=run)
        thread.start()
        while not stopped.wait(0.02) and not (
            settled(lanes, act["until"]) if act.get("until") else be_the_world(engine, lanes)
        ):
            pass
        worker.stop()
        thread.join()


def settled(lanes: list[str], _until: str) -> bool:
    """Whether all runs of the lanes have ended, or wait for somebody."""
    return not select(
        "select 1 from pgworkflows.queue where queue = any (%s) and status <> 'paused' "
        "and not (status = 'waiting' and wait_kind = 'event')",
        lanes,
    )


def be_the_world(client: WorkflowClient, lanes: list[str]) -> bool:
    """Send what is waited for; whether all runs have ended, and all schedules that were due have fired."""
    waiting = select("select run_id, status, wait_event from pgworkflows.queue where queue = any (%s)", lanes)
    for run_id, status, event in waiting:
        with contextlib.suppress(InvalidStatusError):
            if status == "paused":
                client.resume_workflow(run_id)
            elif event == "go":
                client.trigger_event(run_id, "go", 7, idempotency_key="go")
    overdue = "select 1 from pgworkflows.schedules where since < now() - interval '300 days'"
    return not waiting and not select(overdue)


def rest(act: Mapping[str, Any]) -> None:
    """Work until killed."""
    engine = WorkflowEngine(named(act), workflows=[tour, *relatives(act)])
    engine.worker(queues=act["lanes"], threads=8, poll_interval=0.2).run_forever()


def operate(act: Mapping[str, Any]) -> None:
    """What a client does, once."""
    with WorkflowEngine(named(act), workflows=[tour, *relatives(act)]) as client:
        OPERATIONS[act["operation"]](client, act["lanes"][0])


def bring_up_to_date(act: Mapping[str, Any]) -> None:
    migrate.migrate(named(act))


def the_run(lane: str) -> Any:
    [(run_id,)] = select("select id from pgworkflows.runs where queue = %s", lane)
    return run_id


def plan(stops: Iterable[str]) -> dict[str, Any]:
    return {"stops": list(stops)}


def start_all(client: WorkflowEngine, lane: str) -> None:
    keys = [f"{number} {lane}" for number in range(3)]
    client.start_workflows("tour", [plan(["delay"])] * 3, queue=lane, idempotency_keys=keys)


def start_lent(client: WorkflowEngine, lane: str) -> None:
    with psycopg.connect(url) as conn:
        client.start_workflow("tour", plan(["delay"]), queue=lane, idempotency_key=lane, connection=conn)


OPERATIONS: dict[str, Callable[[WorkflowEngine, str], object]] = {
    "start": lambda client, lane: client.start_workflow("tour", plan(["delay"]), queue=lane, idempotency_key=lane),
    "start in a transaction": start_lent,
    "start several": start_all,
    "event": lambda client, lane: client.trigger_event(the_run(lane), "go", 7, idempotency_key="go"),
    "pause": lambda client, lane: client.pause_workflow(the_run(lane)),
    "resume": lambda client, lane: client.resume_workflow(the_run(lane)),
    "cancel": lambda client, lane: client.cancel_workflow(the_run(lane)),
    "retry": lambda client, lane: client.retry_workflow(the_run(lane)),
    "fast forward": lambda client, lane: client.fast_forward_workflow(the_run(lane), 7),
    "prune": lambda client, lane: client.prune(older_than=0.001, workflow_id=f"child of {lane}"),
    "declare": lambda client, _: client.start(worker=False),
    "pause schedule": lambda client, lane: client.pause_schedule(f"yearly of {lane}"),
    "resume schedule": lambda client, lane: client.resume_schedule(f"yearly of {lane}"),
    "trigger schedule": lambda client, lane: client.trigger_schedule(f"yearly of {lane}"),
}


def select(query: str, *params: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute(query.encode(), params).fetchall()


def named(act: Mapping[str, Any]) -> str:
    """The connection string of an act, whose sessions can be told apart from the others'."""
    return make_conninfo(url, application_name="doomed" if act.get("moment") else "helping")


def relatives(act: Mapping[str, Any]) -> list[Workflow[Any, Any]]:
    """The workflows that only some lanes have: "child of …", "yearly of …"."""
    return [FAMILY[kind](lane) for kind, lane in (each.split(" of ", 1) for each in act.get("workflows", ()))]


ACTS = {each.__name__: each for each in (work, rest, operate, bring_up_to_date)}


def perform(act: Mapping[str, Any]) -> None:
    """In a process of its own; does not return."""
    global fate, url
    status = 1
    try:
        signal.alarm(LONGEST_ACT_S)
        url = act["url"]
        fate = Fate(url, act)
        fate.take_its_course()
        ACTS[act["act"]](act)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    acts: list[Mapping[str, Any]] = json.load(sys.stdin)
    statuses: list[int | None] = [None] * len(acts)
    running: dict[int, int] = {}
    for number, act in enumerate(acts):
        if len(running) == AT_ONCE:
            reap(running, statuses)
        child = os.fork()
        if not child:
            perform(act)
        running[child] = number
    while running:
        reap(running, statuses)
    json.dump(statuses, sys.stdout)


def reap(running: dict[int, int], statuses: list[int | None]) -> None:
    child, status = os.wait()
    statuses[running.pop(child)] = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
