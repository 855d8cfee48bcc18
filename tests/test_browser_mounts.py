"""What a dashboard owes to where it is mounted, in a real browser: users and sessions, and what stands before it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from browsing import Chromium, Visitor, served
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application
from django.test import override_settings
from djangoing import set_up
from exhibits import WORKFLOWS
from flask import Flask, abort
from mounts import serving_itself
from playwright.sync_api import Page, expect

from pgworkflows import RunStatus, WorkflowEngine
from pgworkflows.ui import Dashboard

set_up()

from django.conf import settings  # noqa: E402  (an app is imported once Django is set up)
from django.contrib import admin  # noqa: E402
from django.contrib.auth.models import Permission, User  # noqa: E402
from django.contrib.sessions.models import Session  # noqa: E402
from django.urls import include, path  # noqa: E402
from shop.workflows import ship  # noqa: E402

from pgworkflows.contrib.django import engine, start_workflow  # noqa: E402
from pgworkflows.contrib.django.dashboard import dashboard_urls  # noqa: E402

pytestmark = pytest.mark.browser

urlpatterns = [
    path("admin/", admin.site.urls),
    path("behind the shop/", include(dashboard_urls(actions=True))),
]
PREFIX = "/behind%20the%20shop"
PASSWORD = "a pass phrase"


@pytest.fixture
def site(shop_url: str) -> Iterator[str]:
    """The project of the tests with the dashboard in it, and with what Django does against forged forms."""
    middleware = [*settings.MIDDLEWARE, "django.middleware.csrf.CsrfViewMiddleware"]
    with (
        override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=middleware, LOGIN_URL="admin:login"),
        served(StaticFilesHandler(get_wsgi_application())) as origin,
    ):
        yield origin


@contextmanager
def logged_in(chromium: Chromium, site: str, name: str, *permissions: str) -> Iterator[Visitor]:
    """A user with some permissions of this app, who came to the dashboard by logging in."""
    user = User.objects.create_user(name, password=PASSWORD, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    with chromium.visit(site) as visitor:
        page = visitor.go(f"{PREFIX}/runs")
        assert "/admin/login/" in page.url
        log_in(page, name)
        yield visitor


def log_in(page: Page, name: str) -> None:
    """Fill in the form of Django's."""
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()


def test_a_django_projects_users_act_as_far_as_they_are_permitted(chromium: Chromium, site: str) -> None:
    run = start_workflow(ship, {"order": 0}, delay="1 hour").id
    engine().worker().run_until_idle("20s")  # who works declares the schedules
    allowed = ("view_run", "pause_run", "resume_run", "start_run", "pause_schedule")
    with logged_in(chromium, site, "ada", *allowed) as visitor:
        page = visitor.page
        page.locator("tr[data-row] a.id").click()
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_role("status")).to_contain_text("It is paused now")
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_role("status")).to_contain_text("It is pending now")
        expect(page.get_by_text("Cancel …")).to_have_count(0)
        visitor.keep("django-run")
        visitor.go(f"{PREFIX}/start?workflow=ship")
        page.get_by_label("order").fill("7")
        page.locator("p.buttons").get_by_role("button", name="Start").click()
        expect(page.get_by_role("status")).to_contain_text("tarted")
        visitor.go(f"{PREFIX}/schedules")
        page.get_by_role("button", name="Pause: the schedule of tick").click()
        expect(page.get_by_role("button", name="Run now: the schedule of tick")).to_have_count(0)
        assert visitor.axe() == []
    assert engine().get_schedule("tick").paused_at is not None
    assert engine().get_run(run).status is RunStatus.PENDING
    started = engine().get_workflow_last_run("ship")
    assert started is not None
    assert started.input == {"order": 7}


def test_who_may_only_look_in_a_django_project_finds_nothing_to_press(chromium: Chromium, site: str) -> None:
    run = start_workflow(ship, {"order": 0}, delay="1 hour").id
    with logged_in(chromium, site, "bea", "view_run") as visitor:
        page = visitor.go(f"{PREFIX}/runs/{run}")
        expect(page.get_by_role("heading", level=1)).to_have_text("ship")
        expect(page.get_by_label("Actions")).to_have_count(0)
        with visitor.refused("403 of GET"):
            visitor.go(f"{PREFIX}/start")
        with visitor.refused("404 of GET"):
            visitor.go(f"{PREFIX}/runs/{run.hex[:8]}")


def test_who_may_not_look_in_a_django_project_sees_nothing(chromium: Chromium, site: str) -> None:
    start_workflow(ship, {"order": 0}, resource_id="a customer", delay="1 hour")
    with chromium.visit(site) as visitor:
        assert "/admin/login/" in visitor.go(f"{PREFIX}/").url
    user = User.objects.create_user("carl", password=PASSWORD, is_staff=True)
    assert not user.has_perm("pgworkflows.view_run")
    with chromium.visit(site) as visitor:
        page = visitor.go("/admin/")
        log_in(page, "carl")
        with visitor.refused("403 of GET"):
            page = visitor.go(f"{PREFIX}/runs")
        assert "a customer" not in page.content()


def test_a_page_whose_visitors_session_has_ended_leads_to_the_log_in_and_back(chromium: Chromium, site: str) -> None:
    run = start_workflow(ship, {"order": 0}, resource_id="a customer", delay="1 hour").id
    with logged_in(chromium, site, "eve", "view_run") as visitor:
        page = visitor.go(f"{PREFIX}/runs?resource=a+customer")
        expect(page.get_by_role("button", name="Live: on")).to_be_visible()
        Session.objects.all().delete()
        expect(page.get_by_label("Username")).to_be_visible()
        assert page.get_by_role("link", name="Overview").count() == 0
        log_in(page, "eve")
        page.wait_for_url(f"**{PREFIX}/runs?resource=a+customer")
        expect(page.locator("tr[data-row] a.id")).to_have_text(str(run))


def test_a_page_that_its_visitor_may_look_at_no_longer_says_so(chromium: Chromium, database_url: str) -> None:
    with WorkflowEngine(database_url, workflows=WORKFLOWS) as shop:
        shop.start(worker=False)
        shop.start_workflow("checkout", {"customer": "Ada"})
        app, dashboard, allowed, away = Flask(__name__), Dashboard(shop), threading.Event(), threading.Event()

        @app.route("/workflows/<path:rest>")
        def look(rest: str) -> Any:
            if away.is_set():
                abort(502)
            if not allowed.is_set():
                abort(403)
            return dashboard.at("/workflows")

        allowed.set()
        with served(app) as origin, chromium.visit(origin) as visitor:
            page = visitor.go("/workflows/runs")
            away.set()
            with visitor.refused("502 of GET", "console:"):
                expect(page.get_by_role("button", name="Live: no answer")).to_be_visible()
                expect(page.locator("tr[data-row]")).to_have_count(1)
                away.clear()
                expect(page.get_by_role("button", name="Live: on")).to_be_visible()
            allowed.clear()
            with visitor.refused("403 of GET", "console:"):
                expect(page.get_by_role("heading", name="Forbidden")).to_be_visible()
                expect(page.locator("tr[data-row]")).to_have_count(0)


def test_forms_that_a_django_project_did_not_make_are_refused(chromium: Chromium, site: str) -> None:
    run = start_workflow(ship, {"order": 0}, delay="1 hour").id
    with logged_in(chromium, site, "dora", "view_run", "cancel_run") as visitor:
        page = visitor.go(f"{PREFIX}/runs/{run}")
        for field in ("csrfmiddlewaretoken", "_token"):
            page = visitor.go(f"{PREFIX}/runs/{run}")
            page.locator("summary").filter(has_text="Cancel").click()
            page.locator(f"form[action$='/cancel'] input[name={field}]").evaluate("each => each.remove()")
            with visitor.refused("403 of POST"):
                page.get_by_role("button", name="Cancel this run").click()
                page.wait_for_load_state()
    assert engine().get_run(run).status is RunStatus.PENDING


def test_alone_it_only_shows_as_it_comes(chromium: Chromium, database_url: str) -> None:
    with WorkflowEngine(database_url, workflows=WORKFLOWS) as shop:
        shop.start(worker=False)
        run = shop.start_workflow("checkout", {"customer": "Ada"}).id
        with serving_itself(database_url) as site, chromium.visit(site) as visitor:
            page = visitor.go(f"/runs/{run}")
            expect(page.get_by_role("heading", level=1)).to_have_text("checkout")
            expect(page.get_by_label("Actions")).to_have_count(0)
            with visitor.refused("403 of GET"):
                visitor.go("/start")
        assert shop.get_run(run).status is RunStatus.PENDING
