"""The command that executes runs: a worker in this process, or several in processes of their own."""

from __future__ import annotations

import faulthandler
import gc
import io
import logging
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from pgworkflows.durations import parse_duration
from pgworkflows.probe import Probe
from pgworkflows.supervised import Asked, Reports, is_supervised
from pgworkflows.supervisor import Supervisor, this_command

if TYPE_CHECKING:  # a supervisor needs nothing of what its workers do
    from pgworkflows.worker import Worker

F = TypeVar("F", bound=Callable[..., Any])

GRACE = "30s"
"""What a worker has where none is given."""
PATIENCE = timedelta(seconds=15)
"""How much longer than `grace` a worker may take to end: it writes what its steps have done, and signs off."""

_OPTIONS = (
    click.option("--queue", "queues", multiple=True, metavar="QUEUE", help="A queue to serve; may be given again."),
    click.option("--queues", "queue_list", metavar="QUEUE,…", help="The same, several with commas between them."),
    click.option("--threads", type=int, metavar="N", help="How many step functions are called at once."),
    click.option("--max-runs", type=int, metavar="N", help="How many runs are in hand at once."),
    click.option(
        "--lease", metavar="DURATION", help="How long without a sign of life until the worker counts as dead."
    ),
    click.option("--poll-interval", metavar="DURATION", help="How often it looks for runs when nothing wakes it."),
    click.option("--grace", metavar="DURATION", help="How long steps may go on once it is told to stop."),
    click.option("--probe", metavar="[HOST:]PORT", help="Answer GET /live and /ready there."),
    click.option(
        "--processes", type=click.IntRange(1, 1000), metavar="N", help="Work in so many processes, kept running."
    ),
)


def options_of_a_worker(command: F) -> F:
    """The options of a command that works: those of Worker, `probe` and `processes`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def options_given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the command line has, by name, as Worker takes them."""
    found = {name: value for name, value in options.items() if value not in (None, ())}
    listed = found.pop("queue_list", None)
    if listed is not None:
        found["queues"] = (*found.get("queues", ()), *(name.strip() for name in listed.split(",")))
    return found


@click.command()
@click.argument("target", metavar="MODULE:ENGINE")
@options_of_a_worker
def worker(target: str, probe: str | None, processes: int | None, **options: Any) -> None:
    """Execute runs until SIGTERM or Ctrl-C.

    MODULE:ENGINE is an engine of yours, or a callable that makes one, as in shop.workflows:engine.

    With --processes a supervisor begins processes that die anew, and SIGHUP replaces all of them, one after the other.
    """
    refuse_database_of(target)

    def make(**given: Any) -> Worker:
        from pgworkflows.cli.loading import load_engine

        return load_engine(target).worker(**given)

    work(make, probe=probe, processes=processes, **options_given(options))


def refuse_database_of(target: str) -> None:
    """Raise where the command line names a database besides an engine, which has its own."""
    context = click.get_current_context().find_root()
    for name in ("url", "schema"):
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} is for commands without an engine: that of {target} has its own")


def work(make: Callable[..., Worker], *, probe: str | None, processes: int | None, **options: Any) -> None:
    """Run the worker that `make` makes of these options, or a supervisor of processes that do: the same command, begun
    again. Ends the command with the exit status that says how it went."""
    _tell_where_it_hangs()
    supervised = is_supervised()
    if processes is None or supervised:
        with Reports() as reports:
            worker = reports.worker = make(**options)
            # What the application has loaded stays: no collection looks at it, all threads standing still meanwhile.
            gc.freeze()
            _say_what_happens()
            # A supervisor answers for those that it has begun.
            with _probed(worker, None if supervised else probe):
                worker.run_forever()
        return
    _say_what_happens()
    grace = parse_duration(options.get("grace", GRACE), "grace")
    supervisor = Supervisor(
        this_command(), processes, patience=grace + PATIENCE, logger=logging.getLogger("pgworkflows")
    )
    with _probed(supervisor, probe):
        status = supervisor.run_forever()
    raise click.exceptions.Exit(status)


def _probed(asked: Asked, address: str | None) -> AbstractContextManager[object]:
    """The probe at an address, if there is one."""
    if address is None:
        return nullcontext()
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise click.BadParameter(f"{address!r} is no port, nor host:port", param_hint="--probe")
    try:
        return Probe(asked, host=host or "127.0.0.1", port=int(port))
    except (OSError, OverflowError) as error:
        raise click.ClickException(f"the probe cannot listen on {address}: {error}") from error


def _tell_where_it_hangs() -> None:
    """SIGUSR1 prints what every thread is doing, also while the application is imported."""
    with suppress(io.UnsupportedOperation, AttributeError, ValueError):
        faulthandler.register(signal.SIGUSR1)


def _say_what_happens() -> None:
    """A worker that says nothing is no use. An application that sets up logging is left alone."""
    with suppress(io.UnsupportedOperation, AttributeError, ValueError):
        faulthandler.enable()
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(message)s")
        logging.getLogger("pgworkflows").setLevel(logging.INFO)
