"""`manage.py pgworkflows`: run a worker."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from pgworkflows.contrib.django.conf import settings
from pgworkflows.contrib.django.engines import engine
from pgworkflows.errors import ConfigurationError
from pgworkflows.migrate import plan


class Command(BaseCommand):
    """Workflows on the command line."""

    help = "Run workers."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        worker = actions.add_parser("worker", help="Execute runs until told to stop (SIGTERM, Ctrl-C).")
        _add_database(worker)
        worker.add_argument("--queues", help="The queues to serve, with commas between them.")
        worker.add_argument("--threads", type=int, help="How many steps may run at once.")

    def handle(self, *_args: Any, **options: Any) -> None:
        getattr(self, f"_{options['action']}")(options)

    def _worker(self, options: dict[str, Any]) -> None:
        given = {name: options[name] for name in ("threads",) if options[name] is not None}
        if options["queues"] is not None:
            given["queues"] = options["queues"].split(",")
        found = engine(options["database"])
        try:
            pending = plan(found.conninfo, found.schema)
            if pending:
                names = ", ".join(migration.name for migration in pending)
                raise CommandError(f"database {found.alias!r} lacks {names}: run manage.py migrate first")
            found.worker(**{**settings().worker, **given}).run_forever()
        except (ConfigurationError, TypeError, ValueError) as error:
            raise CommandError(str(error)) from error


def _add_database(parser: CommandParser) -> None:
    parser.add_argument("--database", help="The alias of the database; without it, the one that the routers name.")
