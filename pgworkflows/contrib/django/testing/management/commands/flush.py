"""`flush`, by which a TransactionTestCase empties the tables after each test: of the runs, too."""

from __future__ import annotations

from typing import Any

from django.core.management.commands import flush
from django.db import connections, router

from pgworkflows.contrib.django import engine
from pgworkflows.contrib.django.models import Run
from pgworkflows.testing.inline import delete_runs


class Command(flush.Command):
    """Django's own empties the tables of models that it manages, which those of pgworkflows are not."""

    def handle(self, **options: Any) -> None:
        super().handle(**options)
        alias = options["database"]
        if options["interactive"]:  # it has asked, and may have been told no
            self.stdout.write("The runs of workflows are left as they are.")
        elif connections[alias].vendor == "postgresql" and router.allow_migrate_model(alias, Run):
            delete_runs(engine(alias))
