"""`manage.py pgworkflows`: run a worker, look at runs and steer them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.conf import settings as djangos
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Count

from pgworkflows.contrib.django import models
from pgworkflows.contrib.django.conf import settings
from pgworkflows.contrib.django.engines import DjangoEngine, engine
from pgworkflows.contrib.django.reloading import run_with_reloading
from pgworkflows.errors import WorkflowEngineError
from pgworkflows.migrate import migrate, plan
from pgworkflows.runs import UNFINISHED, RunStatus, WorkflowRun
from pgworkflows.supervised import Reports

LONGEST_CELL = 100


class Command(BaseCommand):
    """Workers and runs on the command line."""

    help = "Run a worker, look at runs and steer them."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

        def action(name: str, act: Callable[..., None], text: str) -> CommandParser:
            found = actions.add_parser(name, help=text, description=text)
            found.add_argument("--database", help="The database's alias; without it, the one that the routers name.")
            found.set_defaults(act=act)
            return found

        worker = action("worker", self.work, "Execute runs until told to stop, by SIGTERM or Ctrl-C.")
        worker.add_argument("--queue", dest="queues", action="append", help="A queue to serve; may be given again.")
        worker.add_argument("--threads", type=int, help="How many step functions are called at once.")
        worker.add_argument("--max-runs", type=int, help="How many runs are in hand at once.")
        worker.add_argument("--lease", help="How long without a sign of life until the worker counts as dead.")
        worker.add_argument("--poll-interval", help="How often it looks for runs when nothing wakes it.")
        worker.add_argument("--grace", help="How long steps may go on once it is told to stop.")
        worker.add_argument("--reload", action="store_true", default=None, help="Begin anew when the code changes.")
        worker.add_argument("--noreload", dest="reload", action="store_false", help="Not even with DEBUG = True.")

        action("status", self.show_status, "Show the workers, and how many runs stand where.")

        runs = action("runs", self.list_runs, "List runs, the newest first.")
        runs.add_argument("--status", dest="statuses", action="append", choices=[*RunStatus], help="May be repeated.")
        runs.add_argument("--workflow", dest="workflow_id", help="Those of one workflow.")
        runs.add_argument("--resource", dest="resource_id", help="Those that belong to one resource.")
        runs.add_argument("--limit", type=int, default=20, help="How many; 20.")

        action("show", self.show, "Show a run and its steps.").add_argument("run_id")
        for name, text in {
            "cancel": "End unfinished runs.",
            "retry": "Let failed and cancelled runs go on after their last completed steps.",
        }.items():
            action(name, self.change, text).add_argument("run_ids", nargs="+", metavar="run_id")

        pruning = action("prune", self.prune, "Delete finished runs.")
        pruning.add_argument("--older-than", help="How long ago they ended; without it, as their workflows declare.")
        pruning.add_argument("--workflow", dest="workflow_id", help="Those of one workflow.")

        migrating = action("migrate", self.migrate, "Bring the tables up to date without Django's own record of it.")
        migrating.add_argument("--plan", action="store_true", help="Say what is missing, and change nothing.")

    def handle(self, *_args: Any, **options: Any) -> None:
        try:
            options["act"](engine(options["database"]), options)
        except (WorkflowEngineError, TypeError, ValueError) as error:
            raise CommandError(str(error)) from error

    def work(self, found: DjangoEngine, options: Mapping[str, Any]) -> None:
        names = ("queues", "threads", "max_runs", "lease", "poll_interval", "grace")
        given = {name: options[name] for name in names if options[name] is not None}
        worker = found.worker(**{**settings().worker, **given})

        def run() -> None:
            pending = plan(found.conninfo, found.schema)
            if pending:
                missing = ", ".join(migration.name for migration in pending)
                raise CommandError(
                    f"database {found.alias!r} lacks {missing}: run manage.py migrate first; if that has nothing to "
                    f"apply, since another SCHEMA was migrated, run manage.py pgworkflows migrate"
                )
            with Reports(worker):
                worker.run_forever()

        if djangos.DEBUG if options["reload"] is None else options["reload"]:
            run_with_reloading(run, worker.stop)
        else:
            run()

    def show_status(self, found: DjangoEngine, _options: Mapping[str, Any]) -> None:
        workers = models.Worker.objects.using(found.alias).order_by("started_at")
        self._table(
            ("WORKER", "HOST", "PID", "QUEUES", "WORKFLOWS", "LAST HEARTBEAT"),
            [
                (each.id, each.hostname, each.pid, ",".join(each.queues), len(each.workflows), _at(each.heartbeat_at))
                for each in workers
            ],
        )
        self.stdout.write("")
        unfinished = models.Run.objects.using(found.alias).filter(status__in=[*UNFINISHED])
        counted = unfinished.values_list("queue", "workflow_id", "status").annotate(Count("id"))
        self._table(("QUEUE", "WORKFLOW", "STATUS", "RUNS"), counted.order_by("queue", "workflow_id", "status"))

    def list_runs(self, found: DjangoEngine, options: Mapping[str, Any]) -> None:
        filters = {name: options[name] for name in ("statuses", "workflow_id", "resource_id", "limit")}
        rows = [
            (run.id, run.workflow_id, run.status, run.current_step_id, _at(run.created_at))
            for run in found.get_runs(**filters).items
        ]
        self._table(("RUN", "WORKFLOW", "STATUS", "STEP", "CREATED"), rows)

    def show(self, found: DjangoEngine, options: Mapping[str, Any]) -> None:
        run = found.get_run(options["run_id"])
        for name, value in _about(run).items():
            if value is not None:
                self.stdout.write(f"{name:<9} {value}")
        self.stdout.write("")
        rows = [
            (
                step.step_id,
                step.kind,
                step.status,
                step.attempts,
                _at(step.completed_at),
                _failure(step.error) or _json(step.output),
            )
            for step in found.get_steps(run.id)
        ]
        self._table(("STEP", "KIND", "STATUS", "ATTEMPTS", "COMPLETED", "RESULT"), rows)

    def change(self, found: DjangoEngine, options: Mapping[str, Any]) -> None:
        act = found.cancel_workflow if options["action"] == "cancel" else found.retry_workflow
        for run_id in options["run_ids"]:
            run = act(run_id)
            self.stdout.write(f"run {run.id} is {run.status}")

    def prune(self, found: DjangoEngine, options: Mapping[str, Any]) -> None:
        deleted = found.prune(older_than=options["older_than"], workflow_id=options["workflow_id"])
        self.stdout.write(f"{deleted} runs deleted")

    def migrate(self, found: DjangoEngine, options: Mapping[str, Any]) -> None:
        done = (plan if options["plan"] else migrate)(found.conninfo, found.schema)
        for migration in done:
            self.stdout.write(f"{'missing' if options['plan'] else 'applied'} {migration.name}")
        if not done:
            self.stdout.write("nothing to apply")

    def _table(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Columns as wide as their widest cell."""
        lines = [tuple(head), *(tuple("-" if cell is None else str(cell) for cell in row) for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            self.stdout.write("  ".join(map(str.ljust, line, widths)).rstrip())


def _about(run: WorkflowRun) -> Mapping[str, object]:
    return {
        "run": run.id,
        "workflow": run.workflow_id,
        "status": run.status,
        "queue": run.queue,
        "resource": run.resource_id,
        "key": run.idempotency_key,
        "parent": run.parent_run_id,
        "retries": f"{run.retry_count} of {run.max_retries}",
        "created": _at(run.created_at),
        "ended": _at(run.completed_at),
        "input": _json(run.input),
        "output": _json(run.output),
        "error": _failure(run.error),
    }


def _json(value: Any) -> str | None:
    """A payload in one line."""
    text = None if value is None else json.dumps(value, ensure_ascii=False)
    return text if text is None or len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…"


def _failure(error: Mapping[str, Any] | None) -> str | None:
    """What went wrong in one line, without the lines of code."""
    return None if error is None else _json(f"{error['type']}: {error['message']}")


def _at(moment: datetime | None) -> str | None:
    return None if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S")
