"""What the shop stores."""

from __future__ import annotations

from typing import Any

from django.db import models

from pgworkflows.contrib.django import start_workflow


class Order(models.Model):
    """An order; that it is made is what starts its workflow."""

    name: models.CharField[str, str] = models.CharField(max_length=100)
    shipped: models.BooleanField[bool, bool] = models.BooleanField(default=False)

    class Meta:
        app_label = "shop"

    def save(self, *args: Any, using: str | None = None, **options: Any) -> None:
        is_new = self.pk is None
        super().save(*args, using=using, **options)
        if is_new:
            start_workflow("ship", {"order": self.pk}, using=using)
