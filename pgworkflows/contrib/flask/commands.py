"""`flask pgworkflows …`: the commands of pgworkflows on the application's engine, and its worker."""

from __future__ import annotations

from typing import Any

import click
from flask import current_app
from flask.cli import ScriptInfo, with_appcontext

from pgworkflows.cli.commands import Commands
from pgworkflows.cli.working import options_given, options_of_a_worker, work
from pgworkflows.contrib.flask.state import engine_of, worker_options
from pgworkflows.engine import WorkflowEngine


def _engine(ctx: click.Context) -> WorkflowEngine:
    # Words are also completed, where there is no application context.
    return engine_of(ctx.ensure_object(ScriptInfo).load_app())


@click.group("pgworkflows", cls=Commands, connect=_engine, without={"demo"})
@with_appcontext
def commands() -> None:
    """Execute, watch and steer the workflows of this application."""


@commands.command()
@options_of_a_worker
def worker(probe: str | None, processes: int | None, **options: Any) -> None:
    """Execute runs until SIGTERM or Ctrl-C.

    With --processes a supervisor begins processes that die anew, and SIGHUP replaces all of them, one after the other.
    """
    engine = engine_of(current_app)
    work(engine.worker, probe=probe, processes=processes, **worker_options(current_app, **options_given(options)))
