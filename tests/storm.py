"""Families of runs in a storm: clients, workers and operators do whatever they can at the same time, and die."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from working import HandWorker, rows, value

from pgworkflows import (
    ChildWorkflowFailedError,
    IdempotencyConflictError,
    InvalidStatusError,
    Step,
    Steps,
    Workflow,
    WorkflowClient,
    WorkflowRunInProgressError,
    WorkflowRunNotFoundError,
    current_step,
    workflow,
)
from pgworkflows.claims import release_unheld
from pgworkflows.database import Locked, Unavailable
from pgworkflows.entries import Entry
from pgworkflows.journal import Answer, Verdict
from pgworkflows.runner import Execution

REFUSALS = (IdempotencyConflictError, InvalidStatusError, WorkflowRunInProgressError, WorkflowRunNotFoundError)
QUIET = logging.getLogger("storm")
QUIET.disabled = True

# What has happened once stays: a completed step is deleted with its run only.
GUARD = """
create function public.keep_completed() returns trigger language plpgsql as $$
begin
    if old.status <> 'completed' then
        return coalesce(new, old);
    end if;
    if tg_op = 'DELETE' then
        if exists (select from pgworkflows.runs as r where r.id = old.run_id and r.completed_at is null) then
            raise 'the completed step %% of run %% was deleted', old.step_id, old.run_id;
        end if;
        return old;
    end if;
    if (old.output::text, old.status, old.kind, old.completed_at, old.child_run_id)
        is distinct from (new.output::text, new.status, new.kind, new.completed_at, new.child_run_id)
    then
        raise 'the completed step %% of run %% was changed', old.step_id, old.run_id;
    end if;
    return new;
end $$;
create trigger keep_completed before update or delete on pgworkflows.steps
for each row execute function public.keep_completed()
"""

UNTRUE: dict[str, str] = {
    "an unfinished run without a place in the queue": """
        select r.id, r.status from pgworkflows.runs as r
        where r.completed_at is null and not exists (select from pgworkflows.queue as q where q.run_id = r.id)
    """,
    "a place in the queue that is nobody's": """
        select q.run_id, q.status, q.control, r.status from pgworkflows.queue as q
        left join pgworkflows.runs as r on r.id = q.run_id
        where r.id is null
            or (r.completed_at is not null and q.control is distinct from 'cancel')
            or (r.completed_at is null and q.control = 'cancel')
    """,
    "a status that the queue does not share": """
        select q.run_id, q.status, q.control, r.status from pgworkflows.queue as q
        join pgworkflows.runs as r on r.id = q.run_id
        where r.completed_at is null and r.status <> case q.control
            when 'pause' then 'paused' when 'retry' then 'pending' else q.status
        end
    """,
    "a parent that waits for a child that has ended": """
        select q.run_id, q.wait_event, c.id, c.status from pgworkflows.queue as q
        left join pgworkflows.runs as c on c.parent_run_id = q.run_id and c.parent_step_id = q.wait_event
        where q.status = 'waiting' and q.wait_kind = 'child' and (c.id is null or c.completed_at is not null)
    """,
    "a step and a child that do not know each other": """
        select s.run_id, s.step_id, s.status, s.child_run_id, c.id from pgworkflows.steps as s
        join pgworkflows.runs as c on (c.parent_run_id, c.parent_step_id) = (s.run_id, s.step_id)
        where s.child_run_id is distinct from c.id
    """,
    "a wait of a run that has ended": """
        select s.run_id, s.step_id, r.status from pgworkflows.steps as s
        join pgworkflows.runs as r on r.id = s.run_id
        where s.status in ('waiting', 'retrying') and r.status = 'cancelled'
            and not exists (select from pgworkflows.queue as q where q.run_id = r.id)
    """,
}
"""What must never be, as questions that have no answer."""

RUNS_ON = """
select c.id, c.status, p.id, p.status, p.error ->> 'type' from pgworkflows.runs as c
join pgworkflows.runs as p on p.id = c.parent_run_id
where c.completed_at is null and (p.status = 'cancelled' or p.error ->> 'type' = 'WorkflowTimeoutError')
    and p.completed_at is not null
"""
"""Children that outlive a parent that was cancelled or ran out of time."""


class Storm:
    """One storm over one database; `wrongs` is what it has brought to light."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.seed = seed
        self.wrongs: list[str] = []
        self.happened: Counter[str] = Counter()
        self._done: set[tuple[UUID, str]] = set()
        self._retried: set[UUID] = set()
        self._over = threading.Event()
        self._workflows: dict[str, Workflow[Any, Any]] = {each.id: each for each in self._written()}

    def _written(self) -> list[Workflow[Any, Any]]:
        def work(fails: bool) -> int:
            current = current_step()
            if (current.run_id, current.step_id) in self._done:
                self.wrongs.append(f"completed step {current.step_id} of run {current.run_id} was called again")
            if fails and current.attempt < 3:
                raise ValueError("not yet")
            return current.attempt

        def node(step: Step, input: dict[str, Any]) -> Steps[int]:
            total = yield from step.run("first", work, False)
            for number, child in enumerate(input["children"]):
                try:
                    total += yield from step.invoke_child_workflow(
                        f"child-{number}", child["id"], child, timeout=child["timeout"], idempotency_key=child["key"]
                    )
                except ChildWorkflowFailedError:
                    if input["proud"]:
                        raise
            if input["waits"]:
                yield from step.wait_for("wait", "go")
            total += yield from step.run("last", work, input["fails"])
            return total

        return [workflow("node")(node), workflow("sturdy", retries=1)(node), workflow("lone", singleton=True)(node)]

    def _plan(self, dice: random.Random, depth: int = 0) -> dict[str, Any]:
        branches = 0 if depth == 3 else dice.choice((0, 1, 1, 2))
        return {
            "id": dice.choice(("node", "node", "sturdy", "lone")),
            "children": [self._plan(dice, depth + 1) for _ in range(branches)],
            "timeout": dice.choice((None, None, None, 0.05, 0.5)),
            "key": dice.choice((None, None, None, f"key-{dice.randrange(50)}")),
            "proud": dice.random() < 0.4,
            "waits": dice.random() < 0.4,
            "fails": dice.random() < 0.3,
        }

    def rage(self, seconds: float) -> None:
        """Let it all happen at once for so long, and then come to an end."""
        rows(self.url, GUARD)
        for each in self._workflows.values():
            rows(
                self.url,
                "insert into pgworkflows.workflows (id, queue, priority, retries, singleton) "
                "values (%s, 'default', 0, %s, %s)",
                each.id,
                1 if each.id == "sturdy" else 0,
                each.id == "lone",
            )
        deadlocks = self._deadlocks()
        parts: list[Callable[[random.Random], None]] = [
            *[self._start_and_change] * 4,
            *[self._change_in_transactions] * 2,
            *[self._work] * 3,
            self._tidy,
        ]
        threads = [
            threading.Thread(target=self._guarded, args=(part, random.Random(self.seed * 100 + number)))
            for number, part in enumerate(parts)
        ]
        for thread in threads:
            thread.start()
        self._over.wait(seconds)
        self._over.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        self._check()
        self._calm()
        self._check()
        if self._deadlocks() != deadlocks:
            self.wrongs.append(f"{self._deadlocks() - deadlocks} deadlocks")

    def _deadlocks(self) -> int:
        rows(self.url, "select pg_stat_force_next_flush()")
        found: int = value(self.url, "select deadlocks from pg_stat_database where datname = current_database()")
        return found

    def _guarded(self, part: Callable[[random.Random], None], dice: random.Random) -> None:
        try:
            part(dice)
        except BaseException as error:
            self.wrongs.append(f"{part.__name__}: {type(error).__name__}: {error}")
            self._over.set()

    @staticmethod
    def _any_run(dice: random.Random, conn: psycopg.Connection) -> UUID | None:
        """Rather an unfinished one, or a young one."""
        if dice.random() < 0.6:
            query = "select run_id from pgworkflows.queue order by run_id limit 1 offset %s"
        else:
            query = "select id from pgworkflows.runs order by id desc limit 1 offset %s"
        found = conn.execute(query, [dice.randrange(30)]).fetchone()
        return None if found is None else found[0]

    def _change(self, dice: random.Random, client: WorkflowClient, run_id: UUID, connection: Any = None) -> None:
        operation = dice.choice(
            ("cancel", "cancel", "pause", "resume", "resume", "retry", "retry", "retry", "trigger", "forward")
        )
        if operation == "retry":
            self._retried.add(run_id)
        try:
            match operation:
                case "trigger":
                    client.trigger_event(run_id, "go", connection=connection)
                case "forward":
                    client.fast_forward_workflow(run_id)
                case _:
                    getattr(client, f"{operation}_workflow")(run_id, connection=connection)
        except REFUSALS as error:
            self.happened[type(error).__name__] += 1
        else:
            self.happened[operation] += 1

    def _start_and_change(self, dice: random.Random) -> None:
        with (
            WorkflowClient(self.url) as client,
            psycopg.connect(self.url, autocommit=True, prepare_threshold=None) as conn,
        ):
            while not self._over.is_set():
                crowd = conn.execute("select count(*) from pgworkflows.queue").fetchall()[0][0]
                if dice.random() < 0.3 and crowd < 60:
                    plan = self._plan(dice)
                    try:
                        client.start_workflow(plan["id"], plan, timeout=dice.choice((None, None, 0.3)))
                    except REFUSALS as error:
                        self.happened[type(error).__name__] += 1
                    else:
                        self.happened["start"] += 1
                    continue
                run_id = self._any_run(dice, conn)
                if run_id is not None:
                    self._change(dice, client, run_id)

    def _change_in_transactions(self, dice: random.Random) -> None:
        """One operation each, for two may meet two others in the other order."""
        levels = psycopg.IsolationLevel
        with WorkflowClient(self.url) as client, psycopg.connect(self.url, prepare_threshold=None) as conn:
            while not self._over.is_set():
                conn.isolation_level = dice.choice(
                    (levels.READ_COMMITTED, levels.READ_COMMITTED, levels.REPEATABLE_READ, levels.SERIALIZABLE)
                )
                try:
                    run_id = self._any_run(dice, conn)  # and takes the snapshot
                    if run_id is None:
                        conn.rollback()
                        continue
                    time.sleep(dice.random() * 0.01)
                    if dice.random() < 0.2:
                        plan = self._plan(dice)
                        client.start_workflow(plan["id"], plan, idempotency_key=plan["key"], connection=conn)
                    else:
                        self._change(dice, client, run_id, conn)
                    time.sleep(dice.random() * 0.03)
                    if dice.random() < 0.2:
                        conn.rollback()
                    else:
                        conn.commit()
                except psycopg.errors.SerializationFailure:
                    self.happened["40001"] += 1
                    conn.rollback()
                except REFUSALS as error:
                    self.happened[type(error).__name__] += 1
                    conn.rollback()

    def _tidy(self, dice: random.Random) -> None:
        """Time and old age come over everything."""
        with (
            WorkflowClient(self.url) as client,
            psycopg.connect(self.url, autocommit=True, prepare_threshold=None) as conn,
        ):
            while not self._over.is_set():
                conn.execute("select pgworkflows.wake_due('-infinity')")
                conn.execute("select pgworkflows.take_over()")
                if dice.random() < 0.2:
                    self.happened["pruned"] += client.prune(older_than=0.2)
                self._over.wait(dice.random() * 0.02)

    def _work(self, dice: random.Random) -> None:
        while not self._over.is_set():
            with HandWorker(self.url, [*self._workflows]) as worker:
                self._work_until_death(dice, worker)
                worker.die()
                self.happened["died"] += 1

    def _work_until_death(self, dice: random.Random, worker: HandWorker) -> None:
        executions: dict[str, Execution] = {}
        entries: dict[str, Entry] = {}
        while not self._over.is_set():
            if len(executions) < 5:
                room = 5 - len(executions)
                for claimed in self._patiently(partial(worker.claim, room, alone=not executions)).runs:
                    execution = Execution(claimed, self._workflows[claimed.workflow_id], QUIET)
                    executions[claimed.run_id] = execution
                    entries[claimed.run_id] = self._next_entry(execution)
            if not entries:
                self._over.wait(0.005)
                continue
            if dice.random() < 0.01:
                return  # before the write
            chosen = [entry for entry in entries.values() if dice.random() < 0.8]
            answers = self._patiently(partial(worker.write, *chosen)) if chosen else []
            if dice.random() < 0.02:
                return  # after it, the answer being lost
            if dice.random() < 0.05:
                self._patiently(partial(release_unheld, worker.connection, worker.id, [*executions]))
            for entry, answer in zip(chosen, answers, strict=True):
                self._note(entry, answer)
                if answer.verdict is Verdict.LOCKED:
                    continue
                del entries[entry.run_id]
                if answer == Answer(Verdict.WRITTEN) and entry.action == "checkpoint":
                    entries[entry.run_id] = self._next_entry(executions[entry.run_id])
                else:
                    del executions[entry.run_id]

    def _patiently(self, send: Callable[[], Any]) -> Any:
        """As workers do: what the server or a lock has refused is sent again."""
        while True:
            try:
                return send()
            except (Unavailable, Locked) as error:
                self.happened[f"sent again: {error}"] += 1
                time.sleep(0.01)

    def _note(self, entry: Entry, answer: Answer) -> None:
        self.happened[f"{entry.action} {answer.verdict.value}"] += 1
        if answer.verdict is Verdict.REFUSED:
            self.wrongs.append(f"refused: {answer.reason}")
        if answer.verdict is Verdict.WRITTEN:
            run_id = UUID(entry.run_id)
            self._done |= {(run_id, row.step_id) for row in entry.steps if row.status == "completed"}

    @staticmethod
    def _next_entry(execution: Execution) -> Entry:
        while True:
            entry = execution.work(execution.next_call())
            assert entry is not None
            if entry.action != "checkpoint" or entry.steps or entry.events:
                return entry

    def _check(self) -> None:
        for what, query in UNTRUE.items():
            self.wrongs += [f"{what}: {found}" for found in rows(self.url, query)]
        self.wrongs += [
            f"a child runs on: {found}" for found in rows(self.url, RUNS_ON) if found[0] not in self._retried
        ]

    def _calm(self) -> None:
        """Give every run what it waits for, until all have ended."""
        deadline = time.monotonic() + 30
        dice = random.Random(self.seed)
        self._over.clear()
        threads = [threading.Thread(target=self._guarded, args=(self._work, dice)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            with (
                WorkflowClient(self.url) as client,
                psycopg.connect(self.url, autocommit=True, prepare_threshold=None) as conn,
            ):
                while places := rows(self.url, "select run_id, status, wait_kind from pgworkflows.queue"):
                    if time.monotonic() > deadline:
                        self.wrongs.append(f"never ended: {places}")
                        break
                    for run_id, status, wait_kind in places:
                        try:
                            if status == "paused":
                                client.resume_workflow(run_id)
                            elif wait_kind == "event":
                                client.trigger_event(run_id, "go")
                        except REFUSALS:
                            pass
                    conn.execute("update pgworkflows.queue set wake_at = now() where wake_at is not null")
                    conn.execute("select pgworkflows.take_over()")
                    time.sleep(0.01)
        finally:
            self._over.set()
            for thread in threads:
                thread.join(60)
