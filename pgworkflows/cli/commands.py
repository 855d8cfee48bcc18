"""The commands by name. A command's module is imported when it is called: `--help` waits for none of them."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pgworkflows.client import WorkflowClient

COMMANDS: Mapping[str, tuple[str, str]] = {
    "worker": ("working:worker", "Execute runs until SIGTERM or Ctrl-C."),
    "migrate": ("upkeep:migrate", "Bring pgworkflows' tables up to date."),
    "status": ("watching:status", "Show whether all is well, and what is unfinished."),
    "top": ("monitor:top", "Show throughput, lag, backlog, workers and workflows, live."),
    "stuck": ("watching:stuck", "List runs that nothing will move, why, and what to do about it."),
    "workers": ("watching:workers", "List the workers, also those that have died and were not missed yet."),
    "schedules": ("schedules:schedules", "List schedules; pause, resume or trigger one."),
    "runs": ("listing:runs", "List runs, the newest first."),
    "show": ("listing:show", "Show a run and its steps, what it waits for, and what would end that."),
    "tail": ("following:tail", "Print what happens to runs as it happens, until Ctrl-C."),
    "start": ("start:start", "Start a run."),
    "trigger": ("steering:trigger", "Send an event to a run."),
    "pause": ("steering:pause", "Pause pending, running and waiting runs."),
    "resume": ("steering:resume", "Let paused runs go on."),
    "cancel": ("steering:cancel", "End unfinished runs, and their children."),
    "retry": ("steering:retry", "Let failed and cancelled runs go on after their last completed steps."),
    "fast-forward": (
        "steering:fast_forward",
        "Complete the waits that runs are in: for events, timers, polls, a pause step.",
    ),
    "prune": ("upkeep:prune", "Delete finished runs."),
    "export": ("upkeep:export", "Print the history of a run as JSON, for check_replay."),
    "grant": ("upkeep:grant", "Let database roles be a client, a worker, a reader."),
    "revoke": ("upkeep:revoke", "Take from a database role all that it was granted."),
    "demo": ("demo:demo", "Run a small workflow on a PostgreSQL of its own, and show what happens."),
    "ui": ("dashboard:ui", "Serve the dashboard, for a browser."),
}
"""The module in pgworkflows.cli and the name in it, and the first sentence of the command's help."""
_FOR_WHOM: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("runs", "show", "tail", "export"), ("clients (their own runs), workers and readers", "reader")),
    **dict.fromkeys(("status", "top", "stuck", "workers"), ("workers and readers", "reader")),
    "schedules": ("workers and readers, and to steer them for workers alone", "worker"),
    **dict.fromkeys(("start", "trigger", "pause", "resume", "cancel", "retry"), ("clients and workers", "client")),
    **dict.fromkeys(("worker", "fast-forward", "prune"), ("workers", "worker")),
}
"""Which roles may use a command, and the option of `grant` that makes one; others are for the owner of the schema."""
_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_GIVEN = re.compile(rf"\bpgworkflows (?=(?:{'|'.join(COMMANDS)})\b)")


class Commands(click.Group):
    """The commands, on the client that `connect` makes: of a connection string, of a Flask application, of a Django
    project. It is made when a command asks for it. `without`: the commands that are of no use there."""

    def __init__(
        self,
        *args: Any,
        connect: Callable[[click.Context], WorkflowClient] | None = None,
        without: Collection[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.connect = connect
        self.without = without

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, those of the host first."""
        others = (name for name in COMMANDS if name not in self.commands and name not in self.without)
        return [*super().list_commands(ctx), *others]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name: of the host, or of the table."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in COMMANDS or cmd_name in self.without:
            return own
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        found = getattr(import_module(f"pgworkflows.cli.{module}"), name)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first word. Raises UsageError, which names the one that was meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], self.list_commands(ctx), 1)
            if not near:
                raise
            raise click.UsageError(f"No such command {args[0]!r}. Did you mean {near[0]!r}?", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, by the table."""
        about = [
            (name, self.commands[name].get_short_help_str(70) if name in self.commands else COMMANDS[name][1])
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(about)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. What cannot be done is one line on standard error."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except OSError as error:
            if error.errno in _UNWRITABLE and error.filename is None:
                raise click.ClickException(f"the output cannot be written: {error.strerror}") from error
            raise
        except Exception as error:
            from pgworkflows.cli.exits import EXPECTED, failure_of  # not before it is needed: it imports the driver

            if isinstance(error, EXPECTED):
                raise failure_of(error) from error
            raise


def client_of(ctx: click.Context) -> WorkflowClient:
    """The client of the commands that are running, or are being completed."""
    place: click.Context | None = ctx
    while place is not None:
        if isinstance(place.command, Commands) and place.command.connect is not None:
            key = f"{__name__}.client"
            if key not in place.meta:
                place.meta[key] = place.command.connect(place)
            found: WorkflowClient = place.meta[key]
            return found
        place = place.parent
    raise RuntimeError("a command of pgworkflows' was called outside its group")


def current_client() -> WorkflowClient:
    """The client of the command that is running."""
    return client_of(click.get_current_context())


def for_whom() -> str | None:
    """Which database roles may use the command that is running, and how a role becomes one of them."""
    place = click.get_current_context(silent=True)
    while place is not None:
        name = place.invoked_subcommand
        if isinstance(place.command, Commands) and name is not None:
            if name not in _FOR_WHOM:
                return f"{name} is for the owner of the schema: connect as that"
            who, option = _FOR_WHOM[name]
            grant = f"{place.command_path} grant --{option} ROLE"
            return f"{name} is for {who}. Connect as one, or let the owner of the schema make one of a role: {grant}"
        place = place.parent
    return None


def as_given_here(text: str) -> str:
    """A text with the commands in it as they are given to the program that is running: to pgworkflows itself, to Flask
    or to Django, where a worker has its engine."""
    parent = click.get_current_context().parent
    if parent is None:
        return text
    if isinstance(parent.command, Commands) and "worker" in parent.command.commands:
        text = text.replace("pgworkflows worker MODULE:ENGINE", "pgworkflows worker")
    return _GIVEN.sub(lambda _: f"{parent.command_path} ", text)
