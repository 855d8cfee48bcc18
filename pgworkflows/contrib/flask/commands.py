"""The commands of `flask pgworkflows`."""

from __future__ import annotations

from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from pgworkflows.contrib.flask.state import engine_of, worker_options

commands = AppGroup("pgworkflows", help="Work on, look at and steer the workflows of this application.")


@commands.command()
@click.option("--queue", "queues", multiple=True, help="A queue to serve; may be given again. Default: all.")
@click.option("--threads", type=int, help="How many step functions are called at once.")
@click.option("--max-runs", type=int, help="How many runs are in hand at once.")
@click.option("--lease", help="How long without a sign of life until the worker counts as dead.")
@click.option("--poll-interval", help="How often it looks for runs when nothing wakes it.")
@click.option("--grace", help="How long steps may go on once it is told to stop.")
def worker(queues: tuple[str, ...], **options: Any) -> None:
    """Execute runs until SIGTERM or SIGINT."""
    given = {name: value for name, value in {"queues": queues or None, **options}.items() if value is not None}
    engine_of(current_app).worker(**worker_options(current_app, **given)).run_forever()
