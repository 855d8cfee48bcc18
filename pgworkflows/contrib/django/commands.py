"""The commands of pgworkflows on a Django project: each takes the alias of a database, and workers reload."""

from __future__ import annotations

import copy
from typing import Any

import click
from django.conf import settings as djangos

from pgworkflows.cli.commands import Commands, current_client
from pgworkflows.cli.exits import DatabaseFailed
from pgworkflows.cli.working import options_given, options_of_a_worker, work
from pgworkflows.contrib.django.conf import settings
from pgworkflows.contrib.django.engines import DjangoEngine, engine
from pgworkflows.contrib.django.reloading import run_with_reloading
from pgworkflows.migrate import plan
from pgworkflows.worker import Worker

ALIAS = f"{__name__}.alias"


def _name(ctx: click.Context, _param: click.Parameter, alias: str | None) -> None:
    if alias is not None:
        ctx.meta[ALIAS] = alias


def _with_alias(command: click.Command) -> click.Command:
    """The command, which is other hosts' too, with the option --database here."""
    found = copy.copy(command)
    option = click.Option(
        ["--database"],
        metavar="ALIAS",
        callback=_name,
        expose_value=False,
        help="The database; without it, the one that the routers name.",
    )
    found.params = [*command.params, option]
    if isinstance(found, click.Group):
        found.commands = {name: _with_alias(each) for name, each in found.commands.items()}
    return found


class DjangoCommands(Commands):
    """The commands, each of which takes an alias."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, with the option."""
        found = super().get_command(ctx, cmd_name)
        return None if found is None else _with_alias(found)


def _engine(ctx: click.Context) -> DjangoEngine:
    return engine(ctx.meta.get(ALIAS, ctx.obj))


commands = DjangoCommands(
    "pgworkflows",
    connect=_engine,
    without={"demo"},
    help="Execute, watch and steer the workflows of this project.",
)


@commands.command()
@options_of_a_worker
@click.option("--reload/--noreload", default=None, help="Whether it begins anew when the code changes. Default: DEBUG.")
def worker(reload: bool | None, probe: str | None, processes: int | None, **options: Any) -> None:
    """Execute runs until SIGTERM or Ctrl-C.

    With --processes a supervisor begins processes that die anew, and SIGHUP replaces all of them, one after the other.
    """
    found = current_client()
    assert isinstance(found, DjangoEngine)
    made: list[Worker] = []

    def make(**given: Any) -> Worker:
        _check_migrated(found)
        made.append(found.worker(**given))
        return made[-1]

    def run() -> None:
        work(make, probe=probe, processes=processes, **{**settings().worker, **options_given(options)})

    def stop() -> None:
        for each in made:
            each.stop()

    if processes is None and (djangos.DEBUG if reload is None else reload):
        run_with_reloading(run, stop)
    elif reload:
        raise click.UsageError("--reload is for one process: leave out --processes")
    else:
        run()


def _check_migrated(found: DjangoEngine) -> None:
    pending = plan(found.conninfo, found.schema)
    if pending:
        missing = ", ".join(migration.name for migration in pending)
        raise DatabaseFailed(
            f"database {found.alias!r} lacks {missing}: run manage.py migrate first; if that has nothing to apply, "
            f"since another SCHEMA was migrated, run manage.py pgworkflows migrate"
        )
