"""Durable workflows in a Django project: put `pgworkflows.contrib.django` in INSTALLED_APPS (extra `django`)."""

from importlib.util import find_spec

if find_spec("django") is None:
    raise ImportError("pgworkflows.contrib.django needs Django: pip install 'pgworkflows[django]'", name="django")

from pgworkflows.contrib.django.engines import DjangoEngine, engine
from pgworkflows.contrib.django.shortcuts import astart_workflow, start_workflow, start_workflows, trigger_event

__all__ = ["DjangoEngine", "astart_workflow", "engine", "start_workflow", "start_workflows", "trigger_event"]
