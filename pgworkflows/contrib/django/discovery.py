"""The workflows of a project: those in the module `workflows` of each installed app."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.apps import apps
from django.conf import settings
from django.utils.module_loading import import_string, module_has_submodule

from pgworkflows.definition import Workflow

MODULE = "workflows"
TASKS = "pgworkflows.contrib.django.tasks"


def discover() -> tuple[Workflow[Any, Any], ...]:
    """The workflows that the apps' modules hold at their top, each once; the modules are imported now."""
    found: list[Workflow[Any, Any]] = []
    for app in apps.get_app_configs():
        if app.module is None or not module_has_submodule(app.module, MODULE):
            continue
        module = import_module(f"{app.name}.{MODULE}")
        found += (each for each in vars(module).values() if isinstance(each, Workflow))
    if task_backends():
        found.append(import_module(TASKS).run_task)
    return tuple({id(each): each for each in found}.values())


def task_backends() -> dict[str, Any]:
    """What TASKS says of those backends that are ours, by alias."""
    named: dict[str, Any] = getattr(settings, "TASKS", None) or {}
    return {alias: params for alias, params in named.items() if _is_ours(params.get("BACKEND", ""))}


def task_queues() -> set[str]:
    """The queues that the tasks of our backends may be in, as far as TASKS names them."""
    return {queue for params in task_backends().values() for queue in params.get("QUEUES", ["default"])}


def _is_ours(path: str) -> bool:
    try:
        kind = import_string(path)
    except ImportError:
        return False  # the framework says so itself
    return any(f"{each.__module__}.{each.__qualname__}" == f"{TASKS}.TaskBackend" for each in kind.__mro__)
