"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig


class TestingConfig(AppConfig):
    """Has no models: only the command `flush`, in the place of Django's."""

    name = "pgworkflows.contrib.django.testing"
    label = "pgworkflows_testing"
