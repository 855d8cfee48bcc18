"""The library's tables as models that Django only reads: what changes runs goes through the engine."""

from __future__ import annotations

from uuid import UUID

from django.db import models

from pgworkflows.contrib.django.tables import table


class Run(models.Model):
    """One execution of a workflow."""

    id: models.UUIDField[UUID, UUID] = models.UUIDField(primary_key=True)
    workflow_id: models.TextField[str, str] = models.TextField()

    class Meta:
        managed = False
        db_table = table("runs")
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.workflow_id} {self.id}"
