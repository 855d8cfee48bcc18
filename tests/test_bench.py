"""The benchmark: what it fills in by SQL is what the library writes, and its table shows targets without judging."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from bench.catalogue import LIGHT, SCENARIOS
from bench.figures import medians, quantiles, table
from bench.resting import waiting_runs
from bench.work import count_unfinished, fill_history, fill_pending, fill_waiting, value
from bench.workflows import WORKFLOWS, event, one, story
from pgworkflows import RunStatus, WorkflowEngine


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=WORKFLOWS) as engine:
        yield engine


class TestFills:
    def test_pending_runs_are_worked_off(self, engine: WorkflowEngine) -> None:
        fill_pending(engine, 20)
        engine.worker().run_until_idle("30s")
        assert count_unfinished(engine) == 0
        assert value(engine, "select count(*) from pgworkflows.runs where status = 'completed'") == 20

    def test_waiting_runs_stay_until_their_event(self, engine: WorkflowEngine) -> None:
        fill_waiting(engine, 10)
        engine.worker().run_until_idle("30s")
        assert value(engine, "select count(*) from pgworkflows.runs where status = 'waiting'") == 10
        [woken] = waiting_runs(engine, 1)
        engine.trigger_event(woken, "go", {"a": 1})
        engine.worker().run_until_idle("30s")
        assert engine.get_run(woken).output == {"a": 1}
        assert count_unfinished(engine) == 9

    def test_a_run_with_a_history_goes_on_behind_it(self, engine: WorkflowEngine) -> None:
        run_id = fill_history(engine, 30)
        engine.trigger_event(run_id, "go", {"a": 1})
        engine.worker().run_until_idle("30s")
        assert engine.get_run(run_id).status is RunStatus.COMPLETED
        assert len(engine.get_steps(run_id)) == 31

    @pytest.mark.parametrize("name", ["one", "event", "story"])
    def test_the_rows_are_those_that_the_library_writes(self, engine: WorkflowEngine, name: str) -> None:
        """Every column but ids, times and claims."""
        if name == "one":
            engine.start_workflow(one)
            fill_pending(engine, 1)
        elif name == "event":
            engine.start_workflow(event)
            engine.worker().run_until_idle("30s")
            fill_waiting(engine, 1)
        else:
            engine.start_workflow(story, 3)
            engine.worker().run_until_idle("30s")
            fill_history(engine, 3)
        query = """
            select r.status, r.input::text, r.current_step_id, r.started_at is null, q.status, q.queue,
                q.rank = q.ready_at, q.wake_at, q.timeout_at, q.wait_kind, q.wait_event, q.control, q.signal,
                q.interruptions,
                array(
                    select (s.position, s.step_id, s.kind, s.status, s.output::text, s.error::text, s.attempts,
                        s.prior_attempts, s.completed_at is null, s.wake_at, s.deadline_at, s.event_name)::text
                    from pgworkflows.steps as s where s.run_id = r.id order by s.position
                )
            from pgworkflows.runs as r join pgworkflows.queue as q on q.run_id = r.id
        """
        with psycopg.connect(engine.conninfo) as conn:
            by_hand, filled = conn.execute(query).fetchall()
        assert by_hand == filled


class TestFigures:
    def test_a_table_shows_the_spread_and_the_target_that_was_missed(self) -> None:
        spread = {"timers": medians([{"p95_ms": 70.0}, {"p95_ms": 60.0}, {"p95_ms": 80.0}])}
        lines = table(spread, {"timers": {"p95_ms": "p95 ≤ 50 ms"}})
        assert lines[1].split() == ["timers", "p95_ms", "70.0", "60.0", "…", "80.0", "target:", "p95", "≤", "50", "ms"]

    def test_quantiles_are_in_milliseconds(self) -> None:
        assert quantiles([0.001 * number for number in range(100)]) == pytest.approx({"p50_ms": 50, "p95_ms": 95})

    def test_what_takes_long_is_measured_only_when_it_is_named(self) -> None:
        assert not {"backlog", "waiting", "soak", "pinned"} & set(LIGHT)
        assert set(LIGHT) < set(SCENARIOS)
