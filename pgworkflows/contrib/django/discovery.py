"""The workflows of a project: those in the module `workflows` of each installed app."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.apps import apps
from django.utils.module_loading import module_has_submodule

from pgworkflows.definition import Workflow

MODULE = "workflows"


def discover() -> tuple[Workflow[Any, Any], ...]:
    """The workflows that the apps' modules hold at their top, each once; the modules are imported now."""
    found: list[Workflow[Any, Any]] = []
    for app in apps.get_app_configs():
        if app.module is None or not module_has_submodule(app.module, MODULE):
            continue
        module = import_module(f"{app.name}.{MODULE}")
        found += (each for each in vars(module).values() if isinstance(each, Workflow))
    return tuple({id(each): each for each in found}.values())
