"""What happened lately, as the inspector tells it: the numbers, and how far it looks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta

import pytest
from working import rows

from pgworkflows import Inspector, WorkflowClient
from pgworkflows.inspection import StepActivity, WorkflowActivity, activity

FILL = """
with given as (
    select gen_random_uuid() as chance, now() - g.ago_s * interval '1 second' as at, g.*
    from json_to_recordset(%s) as g (
        workflow_id text, step_id text, ago_s float, took_s float, status text, waited_s float
    )
), run as (
    insert into pgworkflows.runs (
        id, workflow_id, status, created_at, started_at, updated_at, completed_at, output, error
    )
    select
        (overlay(
            lpad(to_hex(floor(extract(epoch from at) * 4096000)::bigint), 15, '0') placing '7' from 13 for 0
        ) || right(chance::text, 17))::uuid,
        workflow_id, status, at, at + waited_s * interval '1 second', at, at + took_s * interval '1 second',
        case when status = 'completed' then json '1' end,
        case when status = 'failed' then json '{"type": "OSError", "message": "full"}' end
    from given
    returning *
)
insert into pgworkflows.steps (run_id, position, step_id, kind, status, output, error, started_at, completed_at)
select run.id, 0, given.step_id, 'run', run.status, run.output, run.error, run.created_at, run.completed_at
from run join given on right(given.chance::text, 17) = right(run.id::text, 17)
"""


@dataclass(frozen=True)
class Ended:
    """A run that has ended, whose one step took as long."""

    workflow_id: str
    step_id: str
    ago_s: float
    took_s: float = 0
    status: str = "completed"
    waited_s: float | None = None


@pytest.fixture
def inspector(database_url: str) -> Iterator[Inspector]:
    with WorkflowClient(database_url) as client:
        yield Inspector(client)


def fill(inspector: Inspector, *ended: Ended) -> None:
    rows(inspector.client.conninfo, FILL, json.dumps([asdict(each) for each in ended]))


def test_runs_and_steps_are_counted_and_timed(inspector: Inspector) -> None:
    fill(
        inspector,
        *(Ended("bill", "send", ago_s=600, took_s=took_s) for took_s in (1, 2, 3)),
        Ended("bill", "send", ago_s=300, took_s=4, status="failed"),
        Ended("ship", "pack", ago_s=30, took_s=10),
        Ended("ship", "pack", ago_s=3 * 3600, took_s=10),
        Ended("ship", "wrap", ago_s=3 * 3600, took_s=3 * 3600 - 60),
    )
    found = inspector.get_activity("1 hour", buckets=4)
    assert (found.started, found.completed, found.failed, found.failure_rate) == (5, 5, 1, 1 / 6)
    assert [(each.started, each.completed, each.failed) for each in found.buckets] == [(0, 0, 0)] * 3 + [(5, 5, 1)]
    assert found.workflows == [
        WorkflowActivity("bill", 4, 1, timedelta(seconds=2.5), timedelta(seconds=3.85)),
        WorkflowActivity("ship", 2, 0, timedelta(seconds=5375), timedelta(seconds=10203.5)),
    ]
    assert found.steps == [
        StepActivity("bill", "send", 4, 1, timedelta(seconds=2.5), timedelta(seconds=3.85)),
        StepActivity("ship", "pack", 1, 0, timedelta(seconds=10), timedelta(seconds=10)),
        StepActivity("ship", "wrap", 1, 0, timedelta(seconds=10740), timedelta(seconds=10740)),
    ]
    assert (found.bounded, found.steps_since) == (False, None)
    of_one = inspector.get_activity("1 hour", workflow_id="bill")
    assert (of_one.workflows, of_one.steps) == (found.workflows[:1], found.steps[:1])
    day = inspector.get_overview().last_day
    assert (day.started, day.completed, day.failed, day.cancelled, day.bounded) == (7, 6, 1, 0, False)
    assert day.failure_rate == 1 / 7


def test_each_bucket_tells_how_long_runs_waited_and_steps_took(inspector: Inspector) -> None:
    fill(
        inspector,
        *(Ended("bill", "send", ago_s=600, took_s=took_s, waited_s=took_s / 2) for took_s in (1, 2, 3)),
        Ended("ship", "pack", ago_s=2700, took_s=1200, waited_s=1000),
    )
    found = inspector.get_activity("1 hour", buckets=4).buckets
    assert [each.queue_lag for each in found] == [None, None, timedelta(seconds=1000), timedelta(seconds=1.45)]
    took = [(each.step_median, each.step_p95) for each in found]
    assert took[:2] == [(None, None)] * 2
    assert took[2] == (timedelta(seconds=1200), timedelta(seconds=1200))
    assert took[3] == (timedelta(seconds=2), timedelta(seconds=2.9))


def test_a_run_that_was_to_begin_later_waits_from_then_on(inspector: Inspector) -> None:
    fill(inspector, Ended("bill", "send", ago_s=600, took_s=500, waited_s=400))
    for scheduled_s, waited in ((390, timedelta(seconds=10)), (450, None)):  # begun then; tried again then
        rows(
            inspector.client.conninfo,
            "update pgworkflows.runs set scheduled_at = created_at + %s * interval '1 second'",
            scheduled_s,
        )
        [bucket] = inspector.get_activity("1 hour", buckets=1).buckets
        assert bucket.queue_lag == waited


def test_the_newest_runs_are_looked_at_and_how_far_is_told(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "MOST", 3)
    fill(inspector, *(Ended("bill", "send", ago_s=ago_s, status="failed") for ago_s in (1200, 900, 600, 300, 60)))
    found = inspector.get_activity("1 hour")
    assert (found.bounded, found.started, found.failed) == (True, 3, 3)
    assert timedelta(seconds=600) <= found.until - found.since < timedelta(seconds=700)
    assert all(bucket.at + found.width > found.since for bucket in found.buckets)
    day = inspector.get_overview().last_day
    assert (day.bounded, day.since, day.started, day.failed) == (True, found.since, 3, 3)


def test_few_steps_are_looked_at_and_cut_nothing_of_the_runs(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "MOST_STEPS", 3)
    others = [Ended("ship", "pack", ago_s=ago_s) for ago_s in (10, 20, 30)]
    fill(inspector, *others, *(Ended("bill", "send", ago_s=ago_s) for ago_s in (1800, 2400)))
    found = inspector.get_activity("1 hour")
    assert (found.started, found.completed, found.bounded) == (5, 5, False)
    assert [(each.workflow_id, each.calls) for each in found.steps] == [("ship", 3)]
    assert found.steps_since is not None
    assert timedelta(seconds=30) <= found.until - found.steps_since < timedelta(seconds=130)
    of_one = inspector.get_activity("1 hour", workflow_id="bill")
    assert [(each.step_id, each.calls) for each in of_one.steps] == [("send", 2)]


def test_of_thousands_of_step_ids_the_slowest_and_those_that_failed_most_are_told(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "SHOWN_STEPS", 2)
    fill(
        inspector,
        *(Ended("notify", f"notify-{number}", ago_s=120, took_s=number % 97 / 10) for number in range(2000)),
        *[Ended("notify", "flaky", ago_s=60, status="failed")] * 3,
        *[Ended("notify", "broken", ago_s=60, status="failed")] * 2,
        Ended("notify", "once", ago_s=60, status="failed"),
        Ended("notify", "slow", ago_s=60, took_s=50),
        Ended("notify", "slower", ago_s=100, took_s=80),
    )
    found = inspector.get_activity("1 hour")
    assert [each.step_id for each in found.steps] == ["broken", "flaky", "slow", "slower"]
    assert found.workflows[0].runs == 2008


def test_no_step_is_told_of_as_failing_where_none_has_failed(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "SHOWN_STEPS", 1)
    fill(inspector, Ended("bill", "a", ago_s=60, took_s=1), Ended("bill", "b", ago_s=60, took_s=2))
    assert [each.step_id for each in inspector.get_activity().steps] == ["b"]
