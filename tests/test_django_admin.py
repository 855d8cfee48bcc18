"""Runs, schedules and workers in Django's admin, through its views and as what is in the pages."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from djangoing import set_up
from working import rows, working

from pgworkflows import RunStatus

set_up()

from django.contrib.auth.models import Permission, User  # noqa: E402  (an app is imported once Django is set up)
from shop.models import Order  # noqa: E402
from shop.workflows import family, ship, tick  # noqa: E402

from pgworkflows.contrib.django import engine, start_workflow  # noqa: E402

RUNS = "/admin/pgworkflows/run/"
SCHEDULES = "/admin/pgworkflows/schedule/"


@pytest.fixture
def admin(shop_url: str) -> Client:
    """A superuser's browser."""
    client = Client()
    client.force_login(User.objects.create_superuser("root", password="x"))
    return client


def visitor(*permissions: str) -> Client:
    """The browser of somebody with some permissions of this app, who may enter the admin."""
    user = User.objects.create_user(f"user{uuid4().hex}", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def page(client: Client, address: str, **query: str) -> str:
    answer = client.get(address, query)
    assert answer.status_code == 200, answer
    return str(answer.content.decode())


def listed(text: str) -> list[str]:
    """The runs in a list."""
    return re.findall(r'class="field-id"><a href="/admin/pgworkflows/run/([0-9a-f-]{36})/', text)


def act(client: Client, address: str, action: str, *keys: Any) -> str:
    answer = client.post(address, {"action": action, "_selected_action": [str(key) for key in keys]}, follow=True)
    assert answer.status_code == 200
    return str(answer.content.decode())


def test_runs_are_listed_filtered_and_found(admin: Client, shop_url: str) -> None:
    with working(engine()):
        failed = start_workflow(ship, {"order": 0}, resource_id="customer 7", idempotency_key="k 1")
        Order.objects.create(name="shipped")
        done = engine().get_runs(limit=1).items[0]
        for run in (failed, done):
            engine().wait_for_run(run.id, timeout="20s")
    later = start_workflow("ask", {"steps": 1}, delay="1 hour", queue="nights")
    both = [str(done.id), str(failed.id)]
    assert listed(page(admin, RUNS)) == [str(later.id), *both]
    assert listed(page(admin, RUNS, status__exact="failed")) == [str(failed.id)]
    assert listed(page(admin, RUNS, workflow="ship")) == both
    assert listed(page(admin, RUNS, queue="default")) == both
    assert listed(page(admin, RUNS, q=str(done.id))) == [str(done.id)]
    assert listed(page(admin, RUNS, q="customer 7")) == [str(failed.id)]
    assert listed(page(admin, RUNS, q="k 1")) == [str(failed.id)]
    assert listed(page(admin, RUNS, q="ask")) == [str(later.id)]
    assert listed(page(admin, RUNS, q="nothing")) == []
    assert re.search(r"workflow=ship.*ship", page(admin, RUNS))


def test_a_run_is_shown_with_its_timeline_parent_and_children(admin: Client, shop_url: str) -> None:
    parent = start_workflow(family, {"order": 0})
    with working(engine()):
        engine().wait_for_run(parent.id, timeout="20s")
    [child] = [run for run in engine().get_runs().items if run.parent_run_id == parent.id]
    shown = page(admin, f"{RUNS}{parent.id}/change/")
    assert "completed" in shown
    assert "100 % (1 of 2 steps; 0 live workers)" in shown
    assert "&lt;b&gt;bold&lt;/b&gt;" in shown
    assert "<b>bold</b>" not in shown
    assert f'<a href="{RUNS}{child.id}/change/">{child.id}</a> ship (failed)' in shown
    shown = page(admin, f"{RUNS}{child.id}/change/")
    assert f'step ship of <a href="{RUNS}{parent.id}/change/">' in shown
    assert "<summary>DoesNotExist: Order matching query does not exist.</summary>" in shown
    assert "in pack" in shown
    assert "Save" not in shown


def test_runs_are_steered(admin: Client, shop_url: str) -> None:
    runs = [start_workflow(ship, {"order": 0}, delay="1 hour").id for _ in range(2)]

    def statuses() -> list[RunStatus]:
        return [engine().get_run(run).status for run in runs]

    assert "2 runs paused" in act(admin, RUNS, "pause", *runs)
    assert statuses() == [RunStatus.PAUSED, RunStatus.PAUSED]
    assert "1 run resumed" in act(admin, RUNS, "resume", runs[0])
    assert statuses() == [RunStatus.PENDING, RunStatus.PAUSED]
    said = act(admin, RUNS, "resume", *runs)
    assert f"Run {runs[0]} is pending; only paused runs can be resumed" in said
    assert "1 run resumed" in said
    assert "2 runs cancelled" in act(admin, RUNS, "cancel", *runs)
    assert "1 run retried" in act(admin, RUNS, "retry", runs[1])
    assert statuses() == [RunStatus.CANCELLED, RunStatus.PENDING]


def test_a_wait_is_fast_forwarded(admin: Client, shop_url: str) -> None:
    run = start_workflow("nap")
    worker = engine().worker()
    worker.run_until_idle("20s")
    assert engine().get_run(run.id).status is RunStatus.WAITING
    assert "1 run fast-forwarded" in act(admin, RUNS, "fast_forward", run.id)
    worker.run_until_idle("20s")
    assert engine().get_run(run.id).status is RunStatus.COMPLETED


def test_who_may_only_view_may_not_act(shop_url: str) -> None:
    run = start_workflow(ship, {"order": 0}, delay="1 hour")
    looking, pausing, nobody = visitor("view_run"), visitor("view_run", "pause_run"), visitor()
    assert nobody.get(RUNS).status_code == 403
    assert listed(page(looking, RUNS)) or str(run.id) in page(looking, RUNS)
    assert 'value="pause"' not in page(looking, RUNS)
    act(looking, RUNS, "pause", run.id)
    act(looking, RUNS, "cancel", run.id)
    act(pausing, RUNS, "cancel", run.id)
    assert engine().get_run(run.id).status is RunStatus.PENDING
    assert 'value="pause"' in page(pausing, RUNS)
    assert 'value="cancel"' not in page(pausing, RUNS)
    act(pausing, RUNS, "pause", run.id)
    assert engine().get_run(run.id).status is RunStatus.PAUSED
    assert looking.get(f"{RUNS}add/").status_code == 403
    assert looking.post(f"{RUNS}{run.id}/delete/", {"post": "yes"}).status_code == 403


def test_schedules_and_workers_are_listed_and_steered(admin: Client, shop_url: str) -> None:
    with working(engine()):
        text = page(admin, "/admin/pgworkflows/worker/")
        [(worker,)] = rows(shop_url, "select id from pgworkflows.workers")
        assert str(worker) in text
        assert "Cron" not in page(admin, SCHEDULES)
    assert "1 schedule paused" in act(admin, SCHEDULES, "pause", tick.id)
    assert engine().get_schedule("tick").paused_at is not None
    assert "1 schedule resumed" in act(admin, SCHEDULES, "resume", tick.id)
    assert "1 schedule triggered" in act(admin, SCHEDULES, "trigger", tick.id)
    run = engine().get_workflow_last_run("tick")
    assert run is not None
    assert reverse("admin:pgworkflows_run_change", args=[run.id]) in page(admin, SCHEDULES)
    assert 'value="trigger"' not in page(visitor("view_schedule", "pause_schedule"), SCHEDULES)
