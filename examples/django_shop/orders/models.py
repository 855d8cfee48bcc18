"""What the shop stores."""

from __future__ import annotations

from uuid import UUID

from django.db import models


class Order(models.Model):
    """An order, and the run that sees it through."""

    customer: models.CharField[str, str] = models.CharField(max_length=100)
    article: models.CharField[str, str] = models.CharField(max_length=100)
    quantity: models.PositiveIntegerField[int, int] = models.PositiveIntegerField()
    state: models.CharField[str, str] = models.CharField(max_length=20, default="new")
    run_id: models.UUIDField[UUID | None, UUID | None] = models.UUIDField(null=True)

    def __str__(self) -> str:
        return f"order {self.pk}: {self.quantity} {self.article} for {self.customer}"
