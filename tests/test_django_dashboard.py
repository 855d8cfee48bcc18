"""The dashboard among a Django project's URLs, without a browser: served by WSGI and by ASGI."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.test import AsyncClient, Client, override_settings
from djangoing import run_async, set_up

set_up()

from django.contrib.auth.models import Permission, User  # noqa: E402  (an app is imported once Django is set up)
from django.urls import include, path  # noqa: E402
from shop.workflows import ship  # noqa: E402

from pgworkflows import RunStatus  # noqa: E402
from pgworkflows.contrib.django import engine, start_workflow  # noqa: E402
from pgworkflows.contrib.django.dashboard import dashboard_urls  # noqa: E402

urlpatterns = [
    path("été/", include(dashboard_urls(actions=True))),
    path("workflows/", include(dashboard_urls())),  # Django's AsyncClient sends no path but in ASCII
]
RUNS = "/%C3%A9t%C3%A9/runs"


@pytest.fixture
def user(shop_url: str) -> Iterator[User]:
    """Somebody who may look, and pause."""
    user = User.objects.create_user("ada")
    user.user_permissions.set(Permission.objects.filter(codename__in=("view_run", "pause_run")))
    with override_settings(ROOT_URLCONF=__name__):
        yield user


def test_pages_are_served_below_any_path_and_their_cookies_stay_there(user: User) -> None:
    client = Client()
    client.force_login(user)
    answer = client.get(RUNS)
    assert answer.status_code == 200
    assert f'href="{RUNS}"' in answer.content.decode()
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert answer.cookies["pgworkflows-csrf"]["path"] == "/%C3%A9t%C3%A9/"
    assert client.get(f"{RUNS}/nothing").status_code == 404


def test_pages_are_served_over_asgi_too(user: User) -> None:
    run = start_workflow(ship, {"order": 0}, delay="1 hour").id
    client = AsyncClient()
    client.force_login(user)
    answer = run_async(client.get(f"/workflows/runs/{run}"))
    assert answer.status_code == 200
    assert 'href="/workflows/runs"' in answer.content.decode()
    assert str(run) in answer.content.decode()


def test_a_form_without_a_token_is_refused(user: User) -> None:
    run = start_workflow(ship, {"order": 0}, delay="1 hour").id
    client = Client()
    client.force_login(user)
    form = "application/x-www-form-urlencoded"
    assert client.post(f"{RUNS}/{run}/pause", "_token=x", content_type=form).status_code == 403
    assert client.post(f"{RUNS}/{run}/pause", {"_token": "x"}).status_code == 400  # as an upload is sent
    assert engine().get_run(run).status is RunStatus.PENDING
