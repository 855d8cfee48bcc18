"""The dashboard over many runs: what each page takes the server."""

from __future__ import annotations

import time
from datetime import timedelta
from uuid import UUID

from werkzeug.test import Client

from bench.figures import Figures, quantiles
from bench.inspecting import fill_mixed
from bench.work import fill
from pgworkflows import Inspector, WorkflowEngine
from pgworkflows.ui import Dashboard

ROUNDS = 20
STEPS = 10_000
HUGE_STEPS, HUGE_BYTES = 100, 1_000_000


def pages(engine: WorkflowEngine, runs: int) -> Figures:
    """Each page, out of so many runs, ten of which are started a second up to now, and that of a run with 10,000 steps:
    the median and the 95th percentile of some rounds, in one process, without the network."""
    fill_mixed(engine, runs)
    inspector = Inspector(engine)
    newest, [failed] = inspector.find_runs(limit=1).items[0], inspector.find_runs(limit=1, statuses=["failed"]).items
    # Not among the newest, whose steps the overview puts together: ten thousand ids of steps are no common sight there.
    [long] = inspector.find_runs(limit=1, started_before=newest.created_at - timedelta(seconds=runs / 20)).items
    fill_steps(engine, long.id)
    [huge] = inspector.find_runs(limit=1, started_before=long.created_at).items
    fill_huge_steps(engine, huge.id)
    older = inspector.find_runs(limit=50).next_cursor
    browser = Client(Dashboard(engine, actions=True))
    seen = {
        name: times(browser, path)
        for name, path in {
            "overview": "/",
            "overview_week": "/?window=7+days",
            "activity": "/activity.json",
            "runs": "/runs",
            "runs_older": f"/runs?cursor={older}",
            "runs_failed": "/runs?status=failed",
            "runs_words": "/runs?q=HOST+disk",
            "runs_no_words": "/runs?q=no+such+words",
            "runs_resource": "/runs?resource=r7",
            "bulk": "/runs/bulk?action=cancel",
            "bulk_failed": "/runs/bulk?action=retry&status=failed",
            "bulk_ended": "/runs/bulk?action=retry",
            "run": f"/runs/{failed.id}",
            "run_10000_steps": f"/runs/{long.id}",
            "run_last_steps": f"/runs/{long.id}?after={STEPS - 200}",
            "run_huge_steps": f"/runs/{huge.id}",
            "schedules": "/schedules",
            "start": "/start",
        }.items()
    }
    # Ten thousand ids of steps among the newest: as of a workflow that makes each of its ids of what it works on.
    fill_steps(engine, newest.id, ended_s=0)
    seen["overview_step_ids"] = times(browser, "/")
    figures = {f"{name}_{figure}": value for name, each in seen.items() for figure, value in quantiles(each).items()}
    return {"slowest_p95_ms": max(value for name, value in figures.items() if name.endswith("p95_ms")), **figures}


def times(browser: Client, path: str) -> list[float]:
    """What the page takes, in seconds; the first look is not counted."""
    found: list[float] = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        answer = browser.get(path)
        answer.get_data()
        found.append(time.perf_counter() - began)
        if answer.status_code != 200:
            raise RuntimeError(f"{path} answered {answer.status}")
    return found[1:]


def fill_steps(engine: WorkflowEngine, run_id: UUID, ended_s: int = 86_400) -> None:
    """Let a run have very many steps, which ended some seconds ago."""
    fill(
        engine,
        """
        insert into pgworkflows.steps (
            run_id, position, step_id, kind, status, output, attempts, started_at, completed_at
        )
        select %(run_id)s, n, 'step-' || n, 'run', 'completed', json_build_object('n', n), 1,
            now() - %(ended_s)s * interval '1 second' - n * interval '1 millisecond',
            now() - %(ended_s)s * interval '1 second'
        from generate_series(1, %(steps)s) as n
        """,
        run_id=run_id,
        steps=STEPS,
        ended_s=ended_s,
    )


def fill_huge_steps(engine: WorkflowEngine, run_id: UUID) -> None:
    """Let a run have steps with huge outputs; every second one can be compressed to very little."""
    fill(
        engine,
        """
        insert into pgworkflows.steps (
            run_id, position, step_id, kind, status, output, attempts, started_at, completed_at
        )
        select %(run_id)s, n, 'huge-' || n, 'run', 'completed', json_build_object('text', case n %% 2
            when 0 then repeat('x', %(bytes)s)
            else (select string_agg(md5(n::text || at::text), '') from generate_series(1, %(bytes)s / 32) as at)
        end), 1, now() - interval '1 day', now() - interval '1 day'
        from generate_series(1, %(steps)s) as n
        """,
        run_id=run_id,
        steps=HUGE_STEPS,
        bytes=HUGE_BYTES,
    )
