"""Looking at many runs: what a page of them takes by each filter, and what the other views take."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from bench.figures import Figures
from bench.work import fill
from pgworkflows import Inspector, WorkflowEngine

ROUNDS = 7
FILTERS: dict[str, dict[str, Any]] = {
    "all": {},
    "workflow": {"workflow_id": "often"},
    "rare_workflow": {"workflow_id": "rare"},
    "resource": {"resource_id": "r7"},
    "rare_queue": {"queue": "slow"},
    "no_queue": {"queue": "none"},
    **{
        status: {"statuses": [status]}
        for status in ("pending", "running", "waiting", "paused", "completed", "failed", "cancelled")
    },
    "workflow_failed": {"statuses": ["failed"], "workflow_id": "w3"},
    "no_failed": {"statuses": ["failed"], "workflow_id": "often"},
    "no_cancelled": {"statuses": ["cancelled"], "workflow_id": "often"},
    "words": {"text": "HOST disk"},
    "no_words": {"text": "no such words"},
}


def inspection(engine: WorkflowEngine, runs: int) -> Figures:
    """Pages of 50 out of so many runs, ten of which are started a second up to now: the first page by each filter, the
    median of some rounds, and the slowest filter."""
    fill_mixed(engine, runs)
    inspector = Inspector(engine)
    newest = inspector.find_runs(limit=1).items[0]
    half = newest.created_at - timedelta(seconds=runs / 20)
    searches = {**FILTERS, "middle": {"started_before": half}, "key": {"text": "k7"}, "id": {"text": str(newest.id)}}
    pages = {name: median_ms(inspector.find_runs, **filters) for name, filters in searches.items()}
    mark = inspector.get_changes().mark
    return {
        "slowest_page_ms": max(pages.values()),
        **{f"{name}_ms": took for name, took in pages.items()},
        "timeline_ms": median_ms(inspector.get_timeline, newest.id),
        "changes_ms": median_ms(inspector.get_changes, mark),
        "activity_ms": median_ms(inspector.get_activity),
        "overview_ms": median_ms(inspector.get_overview),
        "stuck_ms": median_ms(inspector.get_stuck),
    }


def median_ms(look: Callable[..., object], *args: Any, **filters: Any) -> float:
    seen: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        look(*args, **filters)
        seen.append((time.perf_counter() - began) * 1000)
    return sorted(seen)[ROUNDS // 2]


def fill_mixed(engine: WorkflowEngine, runs: int) -> None:
    """Finished runs of many workflows and resources, 2 % failed, 1 % cancelled, 1 % unfinished."""
    fill(
        engine,
        """
        insert into pgworkflows.runs (
            id, workflow_id, status, input, output, error, resource_id, idempotency_key, queue,
            created_at, started_at, updated_at, completed_at, paused_at
        )
        select
            (overlay(
                lpad(to_hex(floor(extract(epoch from at) * 4096000)::bigint), 15, '0') placing '7' from 13 for 0
            ) || right(gen_random_uuid()::text, 17))::uuid,
            case when n %% 10 = 0 then 'often' when n %% 1000 = 1 then 'rare' else 'w' || n %% 20 end,
            status,
            json_build_object('n', n, 'text', repeat('x', 200)),
            case when status = 'completed' then json '{"ok": true}' end,
            case when status = 'failed' then json_build_object(
                'type', 'OSError', 'message', 'the disk of host ' || n || ' is full',
                'traceback', repeat('  File "work.py", line 7, in work' || chr(10), 40), 'step_id', 'one'
            ) end,
            'r' || n %% 5000,
            'k' || n,
            case when n %% 997 = 0 then 'slow' else 'default' end,
            at, at, at,
            case when status in ('completed', 'failed', 'cancelled') then at end,
            case when status = 'paused' then at end
        from (
            select n, now() - (%(runs)s - n) * interval '0.1 second' as at,
                case
                    when n %% 50 = 3 then 'failed'
                    when n %% 100 = 4 then 'cancelled'
                    when n %% 10000 = 5 then 'paused'
                    when n %% 10000 = 105 then 'pending'
                    when n %% 10000 = 205 then 'running'
                    when n %% 100 = 5 then 'waiting'
                    else 'completed'
                end as status
            from generate_series(1, %(runs)s) as n
        ) as made
        """,
        runs=runs,
    )
    fill(
        engine,
        """
        insert into pgworkflows.queue (
            run_id, workflow_id, queue, rank, status, ready_at, wait_kind, wait_event, claim_id, worker_id
        )
        select id, workflow_id, queue, created_at, status, created_at,
            case when status = 'waiting' then 'event' end, case when status = 'waiting' then 'go' end,
            case when status = 'running' then 1 end, case when status = 'running' then gen_random_uuid() end
        from pgworkflows.runs
        where completed_at is null
        """,
    )
    fill(
        engine,
        """
        insert into pgworkflows.steps (
            run_id, position, step_id, kind, status, output, error, started_at, completed_at, event_name
        )
        select id, 0, 'one', case when status = 'waiting' then 'wait_for' else 'run' end,
            case when status = 'waiting' then 'waiting' when status = 'failed' then 'failed' else 'completed' end,
            case when status not in ('waiting', 'failed') then json '1' end, error, created_at,
            case when status <> 'waiting' then created_at end, case when status = 'waiting' then 'go' end
        from pgworkflows.runs
        where status <> 'pending'
        """,
    )
    fill(engine, "vacuum analyze pgworkflows.runs, pgworkflows.steps, pgworkflows.queue")
