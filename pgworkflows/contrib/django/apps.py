"""The Django app: its name, its checks, and what happens when Django is ready."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core.signals import setting_changed

from pgworkflows.contrib.django import checks, conf, discovery, engines


class PgworkflowsConfig(AppConfig):
    """Reads the settings, and imports `workflows.py` of each app."""

    name = "pgworkflows.contrib.django"
    label = "pgworkflows"
    verbose_name = "workflows"

    def ready(self) -> None:
        checks.register()
        discovery.discover()
        setting_changed.connect(_forget, dispatch_uid="pgworkflows")


def _forget(*, setting: str, **_more: Any) -> None:
    """Tests override settings."""
    if setting in ("PGWORKFLOWS", "DATABASES", "INSTALLED_APPS", "TASKS"):
        conf.settings.cache_clear()
        engines.forget()
