"""The Django project of the tests (tests/djangos), set up in this process or run in one of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import django
from asgiref.sync import sync_to_async
from django.apps import apps
from django.db import connections

T = TypeVar("T")

PROJECT = Path(__file__).parent / "djangos"


def set_up() -> None:
    """Make the project this process's. Its databases are named by each test."""
    if not apps.ready:
        sys.path.insert(0, str(PROJECT))
        os.environ["DJANGO_SETTINGS_MODULE"] = "project"
        django.setup()
        del os.environ["DJANGO_SETTINGS_MODULE"]  # other tests begin processes with projects of their own


@contextmanager
def pointed_at(url: str, other: str | None = None) -> Generator[None]:
    """Let the aliases of the project be these databases."""
    set_up()
    from project import database

    connections.close_all()
    kept = {alias: dict(connections[alias].settings_dict) for alias in ("default", "other")}
    for alias, place in (("default", url), ("other", other or url)):
        connections[alias].settings_dict.update(database(place))
    try:
        yield
    finally:
        connections.close_all()
        for alias, settings in kept.items():
            connections[alias].settings_dict.update(settings)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns. Its synchronous calls are made in a thread that is the process's: their connections are
    closed there."""

    async def to_the_end() -> T:
        try:
            return await work
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(to_the_end())


def manage(url: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `django-admin` with these arguments."""
    return subprocess.run(
        command(*arguments), cwd=PROJECT, env=environment(url, **variables), capture_output=True, text=True, check=False
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "django", *arguments]


def environment(url: str, **variables: str) -> dict[str, str]:
    return {**os.environ, "DJANGO_SETTINGS_MODULE": "project", "DATABASE_URL": url, **variables}


def said(done: subprocess.CompletedProcess[str]) -> Any:
    """What a command printed, that has succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
