"""Which database runs are written to and read from: the one that Django's routers name for the model Run."""

from __future__ import annotations

from django.apps import apps
from django.db import router


def alias_for_writing(using: str | None = None) -> str:
    """`using`, else where the routers write runs."""
    return using or router.db_for_write(apps.get_model("pgworkflows", "Run"))
