"""The commands of `flask pgworkflows`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from pgworkflows.cli.working import options_given, options_of_a_worker, work
from pgworkflows.contrib.flask.state import engine_of, worker_options
from pgworkflows.contrib.tables import table
from pgworkflows.errors import WorkflowEngineError
from pgworkflows.healthcheck import Health
from pgworkflows.migrate import plan
from pgworkflows.runs import RunStatus, WorkflowRun


class Commands(AppGroup):
    """Commands in the application context, which say in one line what cannot be done."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (WorkflowEngineError, ValueError) as error:
            raise click.ClickException(str(error)) from error


commands = Commands("pgworkflows", help="Execute, look at and steer the workflows of this application.")


@commands.command()
@options_of_a_worker
def worker(probe: str | None, processes: int | None, **options: Any) -> None:
    """Execute runs until SIGTERM or Ctrl-C.

    With --processes a supervisor begins processes that die anew, and SIGHUP replaces all of them, one after the other.
    """
    engine = engine_of(current_app)
    work(engine.worker, probe=probe, processes=processes, **worker_options(current_app, **options_given(options)))


@commands.command()
@click.option("--min-workers", type=int, default=0, help="Fail when fewer workers live.")
@click.option("--max-lag", help="Fail when a run has been ready for longer.")
@click.option("--json", "as_json", is_flag=True, help="Print what health() finds as JSON.")
def status(min_workers: int, max_lag: str | None, as_json: bool) -> None:
    """Show whether all is well, and what is unfinished; exit status 1 if it is not."""
    engine = engine_of(current_app)
    health = engine.health(min_workers=min_workers, max_queue_lag=max_lag)
    if as_json:
        click.echo(json.dumps(health.as_json()))
    else:
        click.echo("\n".join(_about(health)))
        if health.live_workers is not None:
            click.echo()
            rows = [
                (each.queue, each.workflow_id, each.ready, each.running, each.later, each.waiting, each.paused)
                for each in engine.get_backlog()
            ]
            head = ("QUEUE", "WORKFLOW", "READY", "RUNNING", "LATER", "WAITING", "PAUSED")
            click.echo("\n".join(table(head, rows)))
    if not health.ok:
        raise SystemExit(1)


@commands.command()
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([str(status) for status in RunStatus]),
    help="May be given again.",
)
@click.option("--workflow", "workflow_id", help="Those of one workflow.")
@click.option("--resource", "resource_id", help="Those that belong to one resource.")
@click.option("--limit", type=int, default=20, show_default=True, help="How many, the newest first.")
def runs(statuses: tuple[str, ...], limit: int, **filters: Any) -> None:
    """List runs, the newest first."""
    page = engine_of(current_app).get_runs(statuses=statuses or None, limit=limit, **filters)
    rows = [(run.id, run.workflow_id, run.status, run.current_step_id, _moment(run.created_at)) for run in page.items]
    click.echo("\n".join(table(("RUN", "WORKFLOW", "STATUS", "STEP", "CREATED"), rows)))


@commands.command()
@click.argument("run_id")
def show(run_id: str) -> None:
    """Show a run and its steps."""
    engine = engine_of(current_app)
    run = engine.get_run(run_id)
    click.echo("\n".join(_details(run)))
    rows = [
        (
            each.step_id,
            each.kind,
            each.status,
            each.attempts,
            _moment(each.completed_at),
            _error(each.error) or _json(each.output),
        )
        for each in engine.get_steps(run_id)
    ]
    click.echo()
    click.echo("\n".join(table(("STEP", "KIND", "STATUS", "ATTEMPTS", "COMPLETED", "RESULT"), rows)))


@commands.command()
@click.argument("run_ids", nargs=-1, required=True)
def cancel(run_ids: tuple[str, ...]) -> None:
    """End unfinished runs."""
    for run_id in run_ids:
        run = engine_of(current_app).cancel_workflow(run_id)
        click.echo(f"run {run.id} is {run.status}")


@commands.command()
@click.argument("run_ids", nargs=-1, required=True)
def retry(run_ids: tuple[str, ...]) -> None:
    """Let failed and cancelled runs go on after their last completed steps."""
    for run_id in run_ids:
        run = engine_of(current_app).retry_workflow(run_id)
        click.echo(f"run {run.id} is {run.status}")


@commands.command()
@click.option("--older-than", help="How long ago they ended. Default: the retention that workflows declare.")
@click.option("--workflow", "workflow_id", help="Those of one workflow.")
def prune(older_than: str | None, workflow_id: str | None) -> None:
    """Delete finished runs."""
    click.echo(f"{engine_of(current_app).prune(older_than=older_than, workflow_id=workflow_id)} runs deleted")


@commands.command()
@click.option("--plan", "only_plan", is_flag=True, help="Say what would run, and change nothing.")
def migrate(only_plan: bool) -> None:
    """Bring pgworkflows' tables up to date."""
    engine = engine_of(current_app)
    found = plan(engine.conninfo, engine.schema) if only_plan else engine.migrate()
    for migration in found:
        click.echo(f"{'would apply' if only_plan else 'applied'} {migration.name}")
    if not found:
        click.echo("nothing to apply")


def _about(health: Health) -> Iterator[str]:
    yield f"database  {'reachable' if health.reachable else 'not reachable'}"
    if health.migrated is not None:
        yield f"schema    {'migrated' if health.migrated else 'not migrated'}"
    if health.live_workers is not None:
        yield f"workers   {health.live_workers} live"
    if health.queue_lag is not None:
        yield f"lag       {_seconds(health.queue_lag)}"
    yield from (f"problem   {problem}" for problem in health.problems)


def _details(run: WorkflowRun) -> Iterator[str]:
    shown = {
        "run": run.id,
        "workflow": run.workflow_id,
        "status": run.status,
        "queue": run.queue,
        "resource": run.resource_id,
        "key": run.idempotency_key,
        "retries": f"{run.retry_count} of {run.max_retries}",
        "created": _moment(run.created_at),
        "ended": _moment(run.completed_at),
        "input": _json(run.input),
        "output": _json(run.output),
        "error": _error(run.error),
    }
    return (f"{name:<9} {value}" for name, value in shown.items() if value is not None)


def _json(value: Any) -> str | None:
    """A payload in one line."""
    if value is None:
        return None
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:199]}…"


def _error(error: Mapping[str, Any] | None) -> str | None:
    """Type and message of a failure."""
    return None if error is None else f"{error['type']}: {error['message']}"


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S")


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():.1f} s"
