"""A shop whose dashboard acts, wherever it is mounted: in a Flask application, in a Django project, both below a path,
or in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from browsing import Chromium, Visitor, served
from conftest import Databases
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application
from django.test import Client, override_settings
from djangoing import pointed_at, set_up
from exhibits import WORKFLOWS, Exhibits
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from pgworkflows import RunStatus, WorkflowEngine
from pgworkflows.ui import Dashboard

set_up()

from django.conf import settings  # noqa: E402  (an app is imported once Django is set up)
from django.contrib import admin  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.urls import include, path  # noqa: E402

from pgworkflows.contrib.django import engine as engine_of_django  # noqa: E402
from pgworkflows.contrib.django.dashboard import dashboard_urls  # noqa: E402

PROGRAMS = Path(__file__).parent / "programs"
PREFIX = "/back office/workflows"

urlpatterns = [
    path("admin/", admin.site.urls),
    path(f"{PREFIX[1:]}/", include(dashboard_urls(actions=True))),
]


@dataclass(frozen=True)
class Shop:
    """A site with a dashboard that acts, and what its visitors bring along."""

    mount: str
    engine: WorkflowEngine
    runs: Exhibits
    site: str
    cookies: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def visit(self, chromium: Chromium, **options: Any) -> Visitor:
        return chromium.visit(self.site, cookies=self.cookies, **options)

    def status(self, run: UUID) -> RunStatus:
        return self.engine.get_run(run).status

    def work(self) -> None:
        self.engine.worker().run_until_idle("30s")


@contextmanager
def in_flask(url: str) -> Generator[Shop]:
    with WorkflowEngine(url, workflows=WORKFLOWS) as engine:
        engine.start(worker=False)
        runs = Exhibits.put_up(engine)
        app = Flask(__name__)
        app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {PREFIX: Dashboard(engine, actions=True)})  # type: ignore[method-assign]  # as Flask has it
        with served(app) as origin:
            yield Shop("flask", engine, runs, origin + PREFIX.replace(" ", "%20"))


@contextmanager
def in_django(url: str) -> Generator[Shop]:
    """For a superuser, with what Django does against forged forms."""
    middleware = [*settings.MIDDLEWARE, "django.middleware.csrf.CsrfViewMiddleware"]
    engine = engine_of_django()
    with pointed_at(url), override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=middleware):
        for each in WORKFLOWS:
            engine.register_workflow(each)
        try:
            runs = Exhibits.put_up(engine)
            client = Client()
            client.force_login(User.objects.create_superuser("root"))
            with served(StaticFilesHandler(get_wsgi_application())) as origin:
                name = settings.SESSION_COOKIE_NAME
                cookies = [{"name": name, "value": client.cookies[name].value, "url": origin}]
                yield Shop("django", engine, runs, origin + PREFIX.replace(" ", "%20"), cookies)
        finally:
            for each in WORKFLOWS:
                engine.unregister_workflow(each.id)


@contextmanager
def alone(url: str) -> Generator[Shop]:
    """By the command line, for an engine that the application has."""
    with WorkflowEngine(url, workflows=WORKFLOWS) as engine:
        engine.start(worker=False)
        runs = Exhibits.put_up(engine)
        with serving_itself(url, "exhibition:engine", "--actions") as origin:
            yield Shop("alone", engine, runs, origin)


@contextmanager
def serving_itself(url: str, *words: str) -> Generator[str]:
    """The address of `pgworkflows ui` in a process of its own."""
    command = [sys.executable, "-m", "pgworkflows", "ui", "--port", "0", *words]
    environment = {**os.environ, "DATABASE_URL": url}
    with subprocess.Popen(command, cwd=PROGRAMS, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            found = re.search(r"http://[\w.:]+", said)
            assert found is not None, said + process.stderr.read()
            yield found[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
    assert process.returncode == 0


MOUNTS: Mapping[str, Callable[[str], AbstractContextManager[Shop]]] = {
    "flask": in_flask,
    "django": in_django,
    "alone": alone,
}


@contextmanager
def mounted(how: str, databases: Databases, migrated_template: str, shop_template: str) -> Generator[Shop]:
    with databases.fresh(shop_template if how == "django" else migrated_template) as url, MOUNTS[how](url) as shop:
        yield shop
