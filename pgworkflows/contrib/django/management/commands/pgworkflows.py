"""`manage.py pgworkflows …`: the commands of pgworkflows on the project's engine, and its worker."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from typing import Any

import click
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from pgworkflows.cli.exits import Exit
from pgworkflows.contrib.django.commands import commands


class Command(BaseCommand):
    """What stands after `pgworkflows` is handed over to the commands."""

    help = "Execute, watch and steer the workflows of this project."

    def create_parser(self, prog_name: str, subcommand: str, **options: Any) -> CommandParser:
        names = ", ".join(commands.list_commands(click.Context(commands)))
        about = f"The commands are {names}. Each says more with --help after it, as in: pgworkflows runs --help"
        return super().create_parser(prog_name, subcommand, epilog=about, allow_abbrev=False, **options)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--database", help="The database's alias; without it, the one that the routers name.")
        parser.add_argument("command", help="What to do.")
        parser.add_argument("words", nargs=argparse.REMAINDER, help="What it is to be done with.")

    def handle(self, *_args: Any, command: str, words: list[str], database: str | None, **options: Any) -> None:
        with ExitStack() as stack:
            if options.get("stdout") is not None:
                stack.enter_context(redirect_stdout(options["stdout"]))
            if options.get("stderr") is not None:
                stack.enter_context(redirect_stderr(options["stderr"]))
            status = self._run([command, *words], database)
        if status != Exit.FINE:
            if getattr(self, "_called_from_command_line", False):
                sys.exit(status)
            raise CommandError(f"pgworkflows {command} has ended with exit status {status}", returncode=status)

    def _run(self, words: list[str], database: str | None) -> int:
        """The exit status. Raises CommandError with what there is to say."""
        try:
            ended = commands.main(words, "manage.py pgworkflows", standalone_mode=False, obj=database)
        except click.ClickException as error:
            raise CommandError(error.format_message(), returncode=error.exit_code) from error
        except BrokenPipeError:
            # Whoever reads has seen enough. What is left in the buffer shall not complain when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return Exit.REFUSED
        except click.Abort as error:
            raise CommandError("Aborted!", returncode=Exit.REFUSED) from error
        except Error as error:
            raise CommandError(" ".join(str(error).split()), returncode=Exit.DATABASE) from error
        return ended or Exit.FINE
