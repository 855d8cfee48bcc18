"""The model database does what the SQL does: random runs are done in both at once, and compared after every deed.

Time passes by taking it off every moment that is stored, in both.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta
from itertools import count
from math import ceil, floor
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, assume, given, settings
from psycopg.rows import dict_row
from random_workflows import EVENTS, Ask, Block, Deed, Mail, Pass, Told, Work, deeds, trees
from replay_model import Database
from working import HandWorker

from pgworkflows.claims import ClaimedRun, error_from
from pgworkflows.definition import Workflow, workflow
from pgworkflows.entries import Entry
from pgworkflows.history import StepKind, StepStatus, StoredStep
from pgworkflows.runner import Execution

EXAMPLES = 3 * int(os.environ.get("MODEL_EXAMPLES", "18"))
SLACK = timedelta(seconds=0.9)
"""How long an example may take: what is written one after the other compares by whole seconds."""

NUMBERS = count()


class Both:
    """One run in PostgreSQL and in the model."""

    def __init__(self, conn: psycopg.Connection[dict[str, Any]], url: str, tree: Block, retries: int) -> None:
        self.conn = conn
        self.workflow_id = f"modelled-{next(NUMBERS)}"
        self.model = Database(max_retries=retries)
        self.began = self.model.now = self._clock()
        self.run_id = self._value(
            "select id from pgworkflows.start_workflow(%s, retries => %s)", self.workflow_id, retries
        )
        self.worker = HandWorker(url, [self.workflow_id])
        self.told = Told(tree, start=self.began, now=lambda: self.model.now, called=lambda *_: None)
        self.workflow: Workflow[None, int] = workflow("modelled")(self.told.handler)

    def work(self, flushes: int, meanwhile: Sequence[str]) -> None:
        claim = self.worker.claim()
        modelled = self.model.claim()
        assert (modelled is None) == (claim.runs == ())
        if modelled is None:
            return
        [claimed] = claim.runs
        assert comparable(claimed) == comparable(modelled)
        execution = Execution(claimed, self.workflow, logging.getLogger("modelled"))
        while True:
            entry = execution.work(execution.next_call())
            assert entry is not None
            if entry.action == "retry":
                entry = entry._replace(wake_after=timedelta(seconds=1))
            if entry.action == "checkpoint" and not entry.steps and not entry.events:
                continue
            if flushes == 0:
                break
            flushes -= 1
            for what in meanwhile:
                self.tick()
                self.ask(what)
                self.compare()
            meanwhile = ()
            control = self._flush(entry, claimed, modelled)
            self.compare()
            if entry.action != "checkpoint" or control is not None:
                break
        execution.close()
        self.model.take_over()
        self._value("select pgworkflows.release_unheld(%s, '{}')", self.worker.id)

    def pass_time(self, seconds: float) -> None:
        span = timedelta(seconds=seconds)
        for table, key, columns in (
            ("steps", "run_id", ("wake_at", "deadline_at")),
            ("queue", "run_id", ("wake_at", "ready_at", "rank")),
            ("events", "run_id", ("received_at",)),
            ("runs", "id", ("scheduled_at",)),
        ):
            changes = ", ".join(f"{column} = {column} - %(span)s" for column in columns)
            statement = f"update pgworkflows.{table} set {changes} where {key} = %(run)s"
            self.conn.execute(statement.encode(), {"span": span, "run": self.run_id})
        model = self.model
        model.steps = {step_id: earlier(step, span) for step_id, step in model.steps.items()}
        model.events = [earlier(event, span) for event in model.events]
        if model.place is not None:
            model.place = earlier(model.place, span)
        model.scheduled_at = None if model.scheduled_at is None else model.scheduled_at - span
        self.told.start -= span

    def send(self, mail: Mail) -> None:
        answer = self.model.trigger_event(mail.name, mail.data, mail.key)
        told = self._ask("trigger_event(%s, %s, %s::json, null, %s)", self.run_id, mail.name, mail.data, mail.key)
        assert told == (answer != "invalid_status")

    def ask(self, what: str) -> None:
        if what in EVENTS:
            self.send(Mail(0, what, "1"))
        elif what == "fast_forward":
            self.model.fast_forward("7")
            assert self._ask("fast_forward_workflow(%s, '7'::json)", self.run_id)
        else:
            answer = getattr(self.model, what)()
            assert self._ask(f"{what}_workflow(%s)", self.run_id) == (answer != "invalid_status")

    def tick(self) -> None:
        """Let the model know how late it is."""
        self.model.now = self._clock()

    def compare(self) -> None:
        stored = self._stored()
        assume(not self._slow)
        assert stored == self._modelled()

    def _flush(self, entry: Entry, claimed: ClaimedRun, modelled: ClaimedRun) -> str | None:
        [answer] = self.worker.write(entry)
        ids = {real.id: model.id for real, model in zip(claimed.events, modelled.events, strict=True)}
        events = tuple(taken._replace(event_id=ids[taken.event_id]) for taken in entry.events)
        same = entry._replace(claim_id=modelled.claim_id, signal=modelled.signal, events=events)
        assert self.model.flush(same) == answer
        return answer.control

    def _stored(self) -> dict[str, Any]:
        run = self._row("select * from pgworkflows.runs where id = %s")
        place = self._row("select * from pgworkflows.queue where run_id = %s")
        steps = self.conn.execute(
            "select *, output::text as text from pgworkflows.steps where run_id = %s order by position, step_id",
            [self.run_id],
        ).fetchall()
        events = self.conn.execute(
            "select name, step_id from pgworkflows.events where run_id = %s order by id", [self.run_id]
        ).fetchall()
        assert run is not None
        return {
            "run": (run["status"], run["retry_count"], run["current_step_id"]),
            "error": None if run["error"] is None else replace(error_from(run["error"]), traceback=None),
            "place": place and (place["status"], place["wait_kind"], place["wait_event"], place["control"]),
            "wakes": place and self._moment(place["wake_at"]),
            "steps": [
                self._step(
                    StoredStep(
                        row["position"],
                        row["step_id"],
                        StepKind(row["kind"]),
                        StepStatus(row["status"]),
                        row["text"],
                        None if row["error"] is None else error_from(row["error"]),
                        row["attempts"],
                        row["prior_attempts"],
                        row["wake_at"],
                        row["deadline_at"],
                    )
                )
                for row in steps
            ],
            "events": [(event["name"], event["step_id"]) for event in events],
        }

    def _modelled(self) -> dict[str, Any]:
        model = self.model
        place = model.place
        return {
            "run": (model.status, model.retry_count, model.current_step_id),
            "error": None if model.error is None else replace(model.error, traceback=None),
            "place": place and (place.status, place.wait_kind, place.wait_event, place.control),
            "wakes": place and self._moment(place.wake_at),
            "steps": [
                self._step(step)
                for step in sorted(model.steps.values(), key=lambda step: (step.position, step.step_id))
            ],
            "events": [(event.name, event.step_id) for event in model.events],
        }

    def _step(self, step: StoredStep) -> tuple[object, ...]:
        error = None if step.error is None else replace(step.error, traceback=None)
        moments = self._moment(step.wake_at), self._moment(step.deadline_at)
        return (*comparable_step(step), error, *moments)

    def _moment(self, moment: datetime | None) -> int | None:
        """Whole seconds since the beginning, so that what was written one after the other compares."""
        return None if moment is None else floor((moment - self.began).total_seconds())

    def _row(self, query: str) -> dict[str, Any] | None:
        return self.conn.execute(query.encode(), [self.run_id]).fetchone()

    def _value(self, query: str, *params: object) -> Any:
        row = self.conn.execute(query.encode(), params).fetchone()
        assert row is not None
        return next(iter(row.values()))

    def _ask(self, call: str, *params: object) -> bool:
        """Whether the run's status allows the call."""
        try:
            self._value(f"select id from pgworkflows.{call}", *params)
        except psycopg.Error as error:
            if error.sqlstate != "PW002":
                raise
            return False
        return True

    def _clock(self) -> datetime:
        moment = self._value("select clock_timestamp()")
        assert isinstance(moment, datetime)
        return moment

    @property
    def _slow(self) -> bool:
        """Whether it has taken so long that moments compare no more."""
        return self._clock() - self.began > SLACK


def earlier(row: Any, span: timedelta) -> Any:
    """A row with all its moments so much earlier."""
    values = row._asdict() if hasattr(row, "_asdict") else {each.name: getattr(row, each.name) for each in fields(row)}
    moved = {name: value - span if isinstance(value, datetime) else value for name, value in values.items()}
    return type(row)(**moved)


def comparable_step(step: StoredStep) -> tuple[object, ...]:
    return step.position, step.step_id, step.kind, step.status, step.output, step.attempts, step.prior_attempts


def comparable(claimed: ClaimedRun) -> dict[str, object]:
    """What two claims of one run have in common."""
    return {
        "steps": sorted(map(comparable_step, claimed.steps), key=repr),
        "events": [(event.name, event.data) for event in claimed.events],
        "retries": (claimed.retry_count, claimed.max_retries),
    }


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    with psycopg.Connection[dict[str, Any]].connect(
        database_url, autocommit=True, row_factory=dict_row, prepare_threshold=None
    ) as conn:
        yield conn


def test_the_model_does_what_the_sql_does(database_url: str, connection: psycopg.Connection[dict[str, Any]]) -> None:
    compared: list[int] = []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(trees(), deeds(least=10, most=30))
    def compare(tree: Block, deeds: list[Deed]) -> None:
        both = Both(connection, database_url, tree, retries=1)
        try:
            for deed in deeds:
                both.tick()
                match deed:
                    case Work(flushes, _, meanwhile):
                        both.work(flushes, meanwhile)
                    case Pass(seconds):
                        both.pass_time(ceil(seconds))
                    case Mail(after_s):
                        both.pass_time(after_s)
                        both.send(deed)
                    case Ask(what):
                        both.ask(what)
                both.compare()
            compared.append(len(deeds))
        finally:
            both.worker.connection.close()

    compare()
    assert sum(compared) > 7 * EXAMPLES
