"""SIGKILL before and after every write of worker and client: what each leaves behind, and that others go on from there.

The table is `crash_points.py`, the processes that are killed are acts of `programs/crashing.py`. All points share a few
phases, in which they are killed and recovered side by side; then each is looked at by a test of its own.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import psycopg
import pytest
from conftest import Databases
from crash_points import (
    CLIENT_POINTS,
    EXEMPT,
    MIGRATION_POINTS,
    MOMENTS,
    POINTS,
    WORKER_POINTS,
    ClientPoint,
    Moment,
    Point,
)
from waiting import until
from working import ROOT, HandWorker, rows

from pgworkflows import RunStatus, WorkflowClient, claims, migrate

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.direct("it kills at single statements, and behind a pooler they go in pipelines"),
]

PROGRAM = ROOT / "tests" / "programs" / "crashing.py"
SQL = ROOT / "pgworkflows" / "sql"

Act = dict[str, Any]

# What there is of the runs in a lane, without what differs from one time to the next.
PICTURE = """
with run as (
    select r.*, coalesce(r.idempotency_key, '') as key from pgworkflows.runs as r where r.queue = %(lane)s
)
select json_build_object(
    'runs', (
        select json_agg(
            json_build_array(r.workflow_id, r.key, r.status, r.input, r.output, r.error ->> 'type', r.retry_count)
            order by r.workflow_id, r.key
        )
        from run as r
    ),
    'steps', (
        select json_agg(
            json_build_array(
                r.workflow_id, r.key, s.position, s.step_id, s.kind, s.status, s.output, s.error ->> 'type', s.attempts
            )
            order by r.workflow_id, r.key, s.position
        )
        from run as r join pgworkflows.steps as s on s.run_id = r.id
    ),
    'events', (
        select json_agg(json_build_array(r.key, e.name, e.data, e.step_id) order by r.key, e.id)
        from run as r join pgworkflows.events as e on e.run_id = r.id
    ),
    'queue', (
        select json_agg(
            json_build_array(q.workflow_id, r.key, q.status, q.wait_kind, q.wait_event, q.control, q.claim_id is null)
            order by q.workflow_id, r.key
        )
        from run as r join pgworkflows.queue as q on q.run_id = r.id
    ),
    'schedules', (
        select json_agg(json_build_array(s.paused_at is not null, s.last_run_id is not null))
        from pgworkflows.schedules as s
        where s.workflow_id = 'yearly of ' || %(lane)s
    ),
    'declared', (
        select json_agg(w.id order by w.id) from pgworkflows.workflows as w
        where w.id in ('yearly of ' || %(lane)s, 'child of ' || %(lane)s)
    )
)::text
"""


def perform(acts: Sequence[Act]) -> list[int]:
    """Their exit statuses; negative: the signal that ended it."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], input=json.dumps(acts), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    statuses: list[int] = json.loads(done.stdout)
    return statuses


class Called(NamedTuple):
    """A call of a step's function."""

    run_id: UUID
    step_id: str
    attempt: int


@dataclass(frozen=True)
class Lane:
    """A point and the moment at which it is played; None: undisturbed. What happens of it stands in a lane of its own,
    where a database may be shared."""

    point: Point | ClientPoint
    moment: Moment | None
    url: str

    @property
    def name(self) -> str:
        return f"{self.point.name} / {self.moment}"

    def act(self, kind: str, **options: Any) -> Act:
        """Killed at the point, if it is to be."""
        at = {} if self.moment is None else {"write": self.point.write, "moment": self.moment}
        return {"act": kind, "url": self.url, "lanes": [self.name], "workflows": self.workflows, **at, **options}

    @property
    def workflows(self) -> list[str]:
        """Those that nobody else has."""
        match self.point:
            case Point(stops=stops, started=started):
                return [
                    *([f"child of {self.name}"] if {"child", "bad child"} & {*stops} else []),
                    *([f"yearly of {self.name}"] if started == "scheduled" else []),
                ]
            case ClientPoint(workflow=workflow):
                return [] if workflow is None else [f"{workflow} of {self.name}"]


class View:
    """Looks at the lanes of one database."""

    def __init__(self, url: str) -> None:
        self._conn = psycopg.connect(url, autocommit=True)

    def close(self) -> None:
        self._conn.close()

    def picture(self, lane: str) -> Any:
        row = self._conn.execute(PICTURE, {"lane": lane}).fetchone()
        assert row is not None
        return json.loads(row[0].replace(json.dumps(lane)[1:-1], "the lane"))

    def answered(self, lane: str) -> dict[tuple[UUID, str], int]:
        """How many calls of each step have been answered."""
        query = (
            "select s.run_id, s.step_id, s.attempts from pgworkflows.steps as s "
            "join pgworkflows.runs as r on r.id = s.run_id where r.queue = %s"
        )
        return {(run_id, step_id): attempts for run_id, step_id, attempts in self._conn.execute(query, [lane])}

    def calls(self, lane: str) -> list[Called]:
        query = (
            "select c.run_id, c.step_id, c.attempt from public.calls as c "
            "join pgworkflows.runs as r on r.id = c.run_id where r.queue = %s order by c.n"
        )
        return [Called(*row) for row in self._conn.execute(query, [lane])]

    def writes(self) -> set[str]:
        return {write for (write,) in self._conn.execute("select write from public.writes")}

    def await_silence(self) -> None:
        """Until the server has finished with what those sent who were killed."""
        query = "select 1 from pg_stat_activity where application_name = 'doomed' and datname = current_database()"
        until(lambda: not self._conn.execute(query).fetchall(), "the sessions end")


@dataclass(frozen=True)
class Seen:
    """How a process has ended at a point, and what there was of its lane before, then, and in the end."""

    status: int
    before: Any
    then: Any
    answered: Mapping[tuple[UUID, str], int]
    calls: Sequence[Called]
    end: Any
    later_calls: Sequence[Called]


All: TypeAlias = Mapping[tuple[str, Moment | None], Seen]


class Played:
    """All points, played side by side."""

    def __init__(self, databases: Databases, template: str, stack: ExitStack) -> None:
        self._databases = databases
        self._template = template
        self._stack = stack
        self._views: dict[str, View] = {}
        self.shared = self._database()
        self.lanes = [
            Lane(point, moment, self._database() if self._alone(point, moment) else self.shared)
            for point in POINTS
            for moment in (*MOMENTS, None)
        ]

    @staticmethod
    def _alone(point: Point | ClientPoint, moment: Moment | None) -> bool:
        """Whether other processes would do in passing what this one is to be killed at."""
        return isinstance(point, Point) and moment is not None and point.started in ALONE

    def _database(self) -> str:
        url = self._stack.enter_context(self._databases.fresh(self._template))
        rows(url, CREATE)
        self._views[url] = self._stack.enter_context(closing(View(url)))
        return url

    def play(self) -> All:
        self._prepare()
        before = [self._view(lane).picture(lane.name) for lane in self.lanes]
        statuses = self._kill()
        for view in self._views.values():
            view.await_silence()
        then = [self._view(lane).picture(lane.name) for lane in self.lanes]
        answered = [self._view(lane).answered(lane.name) for lane in self.lanes]
        calls = [self._view(lane).calls(lane.name) for lane in self.lanes]
        self._recover()
        end = [self._view(lane).picture(lane.name) for lane in self.lanes]
        later = [self._view(lane).calls(lane.name)[len(known) :] for lane, known in zip(self.lanes, calls, strict=True)]
        seen = map(Seen, statuses, before, then, answered, calls, end, later)
        return {(lane.point.name, lane.moment): each for lane, each in zip(self.lanes, seen, strict=True)}

    def writes(self) -> set[str]:
        """All that any of the processes has come to."""
        return set[str]().union(*(view.writes() for view in self._views.values()))

    def _view(self, lane: Lane) -> View:
        return self._views[lane.url]

    def _prepare(self) -> None:
        with WorkflowClient(self.shared) as client:
            scheduled = [lane for lane in self.lanes if any(each.startswith("yearly") for each in lane.workflows)]
            first = [lane for lane in scheduled if lane.point.name != "declare"]
            assert perform([self._together("operate", first, operation="declare")]) == [0]
            for lane in self.lanes:
                self._begin(client, lane)
            rows(
                self.shared,
                "update pgworkflows.schedules set since = now() - interval '366 days', next_at = null "
                "where workflow_id like '%% scheduled / %%'",
            )
            first = [lane for lane in self.lanes if lane.point.begun]
            assert perform([self._together("work", first, until="waiting")]) == [0]
            for lane in first:
                if isinstance(lane.point, Point):
                    [(run_id,)] = rows(self.shared, "select id from pgworkflows.runs where queue = %s", lane.name)
                    client.pause_workflow(run_id)
                    client.resume_workflow(run_id)

    def _begin(self, shared: WorkflowClient, lane: Lane) -> None:
        """What there is before anybody is killed."""
        match lane.point:
            case Point(started="scheduled") | ClientPoint(stops=None, workflow=None):
                pass
            case Point() as point:
                if lane.url == self.shared:
                    self._start(shared, lane, point)
                else:
                    with WorkflowClient(lane.url) as client:
                        self._start(client, lane, point)
            case ClientPoint(workflow="child"):
                shared.start_workflow(lane.workflows[0], "child", queue=lane.name)
            case ClientPoint(operation="resume schedule"):
                shared.pause_schedule(lane.workflows[0])
            case ClientPoint(stops=stops) if stops is not None:
                shared.start_workflow("tour", {"stops": stops}, queue=lane.name)
            case _:
                pass

    def _start(self, client: WorkflowClient, lane: Lane, point: Point) -> None:
        terms: dict[str, Any] = {"due": {"delay": 0.001}, "late": {"timeout": 0.001}}.get(point.started, {})
        retries = (point.options or {}).get("retries")
        for number in range(point.runs):
            client.start_workflow(
                "tour",
                {"stops": point.stops, "child": f"child of {lane.name}"},
                queue=lane.name,
                idempotency_key=f"{number} of {lane.name}",
                retries=retries,
                **terms,
            )
        if lane.moment is not None and point.started in ("orphan", "silent"):
            with HandWorker(lane.url, ["tour"], has_lock=True) as gone:
                claims.claim(gone.connection, gone.id, [lane.name], ["tour"], 1, alone=True, awake=False)
                if point.started == "orphan":
                    gone.die()

    def _kill(self) -> list[int]:
        acts = [self._doom(lane) for lane in self.lanes]
        statuses = iter(perform([act for act in acts if act is not None]))
        return [0 if act is None else next(statuses) for act in acts]

    def _doom(self, lane: Lane) -> Act | None:
        match lane.point:
            case Point() as point if lane.moment is not None:
                kind = "rest" if point.started in ("orphan", "silent", "late") or point.write == "sleep" else "work"
                grace = (point.options or {}).get("grace", 5)
                return lane.act(kind, nth=point.nth, grace=grace)
            case ClientPoint(operation=operation):
                return lane.act("operate", operation=operation)
            case _:
                return None

    def _recover(self) -> None:
        acts = [self._together("work", [lane], url=lane.url) for lane in self.lanes if lane.url != self.shared]
        lanes = [lane for lane in self.lanes if lane.url == self.shared]
        again = [
            {"operation": lane.point.operation, "lane": lane.name}
            for lane in lanes
            if isinstance(lane.point, ClientPoint) and lane.point.repeatable and lane.moment is not None
        ]
        assert set(perform([self._together("work", lanes, again=again), *acts])) == {0}

    def _together(self, kind: str, lanes: Sequence[Lane], **options: Any) -> Act:
        """One act for many lanes."""
        names = [lane.name for lane in lanes]
        workflows = [name for lane in lanes for name in lane.workflows]
        return {"act": kind, "url": self.shared, "lanes": names, "workflows": workflows, **options}


CREATE = """
create table public.calls
    (n bigint generated always as identity, run_id uuid, step_id text, attempt integer, pid integer);
create table public.writes (write text primary key)
"""
INTERRUPTIONS = 10
ALONE = ("due", "late", "orphan", "silent")


@pytest.fixture(scope="module")
def played(databases: Databases, migrated_template: str) -> Iterator[Played]:
    with ExitStack() as stack:
        yield Played(databases, migrated_template, stack)


@pytest.fixture(scope="module")
def seen(played: Played) -> All:
    return played.play()


def named(point: Point | ClientPoint) -> str:
    return point.name


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("point", WORKER_POINTS, ids=named)
def test_another_worker_goes_on_and_the_run_ends_as_it_would_have(point: Point, moment: Moment, seen: All) -> None:
    there, undisturbed = seen[point.name, moment], seen[point.name, None]
    assert there.status == -signal.SIGKILL, "it has come to the point"
    assert there.end == undisturbed.end
    assert there.end["runs"]
    assert there.end["queue"] is None
    again = [each for each in there.later_calls if each.attempt <= there.answered.get((each.run_id, each.step_id), 0)]
    assert again == [], "a completed step ran again"
    times = Counter([*there.calls, *there.later_calls])
    repeated = Counter(each.run_id for each, calls in times.items() if calls > 1)
    assert set(times.values()) <= {1, 2}
    assert set(repeated.values()) <= {1}, "no more than the step in flight is repeated"
    if point.repeated is not None:
        assert bool(repeated) == (point.repeated or (moment == "before" and point.holds_a_call))


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("point", CLIENT_POINTS, ids=named)
def test_an_operation_is_carried_out_whole_or_not_at_all_and_can_be_repeated(
    point: ClientPoint, moment: Moment, seen: All
) -> None:
    there, undisturbed = seen[point.name, moment], seen[point.name, None]
    assert there.status == -signal.SIGKILL, "it has come to the point"
    assert there.before == undisturbed.before != undisturbed.then
    assert there.then == (undisturbed.before if moment == "before" else undisturbed.then)
    assert there.end["queue"] is None
    if point.repeatable or moment != "before":
        assert there.end == undisturbed.end
    assert set(Counter([*there.calls, *there.later_calls]).values()) <= {1}


def test_a_migration_is_applied_whole_or_not_at_all_and_the_next_process_goes_on(databases: Databases) -> None:
    """Its statements are one transaction: killed at any of them, even after the answer, it has done nothing."""
    points = [(write, nth, moment) for write, times in MIGRATION_POINTS.items() for nth in times for moment in MOMENTS]
    with ExitStack() as stack:
        urls = [stack.enter_context(databases.fresh()) for _ in points]
        for url in urls:
            rows(url, "create table public.writes (write text primary key)")
        acts = [
            {"act": "bring_up_to_date", "url": url, "write": write, "nth": nth, "moment": moment}
            for url, (write, nth, moment) in zip(urls, points, strict=True)
        ]
        assert perform(acts) == [-signal.SIGKILL] * len(acts)
        for url, (_, nth, _) in zip(urls, points, strict=True):
            with closing(View(url)) as view:
                view.await_silence()
            assert len(migrate.plan(url)) == len(migrate.migrations()) - (nth - 1)
            migrate.migrate(url)
            assert migrate.plan(url) == ()
            with WorkflowClient(url) as client:
                assert client.start_workflow("plan").status == "pending"


def test_a_start_in_the_callers_transaction_is_nothing_until_that_commits(database_url: str) -> None:
    rows(database_url, "create table public.writes (write text primary key)")
    act = {"act": "operate", "url": database_url, "lanes": ["lane"], "operation": "start in a transaction"}
    acts = [{**act, "write": "start_workflow", "moment": moment} for moment in MOMENTS]
    assert perform(acts) == [-signal.SIGKILL] * len(acts)
    with closing(View(database_url)) as view:
        view.await_silence()
    assert rows(database_url, "select 1 from pgworkflows.runs") == []
    assert perform([act]) == [0]
    assert rows(database_url, "select status from pgworkflows.runs") == [("pending",)]


def test_a_run_that_kills_its_worker_every_time_has_failed_after_the_cap_with_its_history(database_url: str) -> None:
    rows(database_url, CREATE)
    with WorkflowClient(database_url) as client:
        killer = client.start_workflow("tour", {"stops": ["run", "kill"]})
        neighbour = client.start_workflow("tour", {"stops": ["run"]})
        act = {"act": "work", "url": database_url, "lanes": ["default"]}
        # Whichever worker has it dies; the one that is left takes it over once too often.
        assert Counter(perform([act] * (INTERRUPTIONS + 1))) == {-signal.SIGKILL: INTERRUPTIONS, 0: 1}
        failed = client.get_run(killer.id)
        assert failed.status is RunStatus.FAILED
        assert failed.error is not None
        assert failed.error["type"] == "WorkerDiedError"
        assert failed.current_step_id == "run"
        history = [(step.step_id, step.status, step.attempts) for step in client.get_steps(killer.id)]
        assert history == [("begin", "completed", 1), ("run", "completed", 1)]
        with closing(View(database_url)) as view:
            calls = Counter(each.step_id for each in view.calls("default") if each.run_id == killer.id)
        assert calls == {"begin": 1, "run": 1, "kill": INTERRUPTIONS}
        assert client.get_run(neighbour.id).status is RunStatus.COMPLETED
        assert client.retry_workflow(killer.id).status is RunStatus.PENDING


@pytest.fixture
def written(database_url: str) -> set[str]:
    """The statements of the library that write, or take a lock that others look at: says the database."""
    query = "select proname from pg_proc where provolatile = 'v' and pronamespace = 'pgworkflows'::regnamespace"
    volatile = "|".join(name for (name,) in rows(database_url, query))
    writing = re.compile(rf"\b(insert|update|delete|create) |pgworkflows\.({volatile})\(|_advisory_\w*lock\(")
    comment = re.compile("^--.*$", re.MULTILINE)
    names = {path.stem for path in SQL.glob("*.sql") if writing.search(comment.sub("", path.read_text()))}
    return names - {"flush_results"}  # a flush, too


def test_every_statement_that_writes_has_its_points(written: set[str]) -> None:
    points = {point.write.split(":")[0] for point in POINTS}
    assert written - points - {*MIGRATION_POINTS} == {*EXEMPT}
    assert points | {*MIGRATION_POINTS} <= written


def test_every_write_that_a_process_has_come_to_has_its_points(played: Played, seen: All, written: set[str]) -> None:
    assert seen
    found = {write for write in played.writes() if write.split(":")[0] in written - {*EXEMPT, *MIGRATION_POINTS}}
    assert found == {point.write for point in POINTS}
