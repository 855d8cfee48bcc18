"""Django's admin in a real browser: runs, schedules and workers are found, read and steered by clicking."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browsing import Chromium, Visitor, served
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application
from djangoing import set_up
from playwright.sync_api import expect
from working import working

from pgworkflows import RunStatus

set_up()

from django.contrib.auth.models import User  # noqa: E402  (an app is imported once Django is set up)
from shop.models import Order  # noqa: E402
from shop.workflows import family, ship  # noqa: E402

from pgworkflows.contrib.django import engine, start_workflow  # noqa: E402

pytestmark = pytest.mark.browser

IS_CUT = """(each) => {
    const right = each.getBoundingClientRect().right, cutting = [];
    for (let box = each; box !== null; box = box.parentElement) {
        if (getComputedStyle(box).overflowX !== "visible" && right > box.getBoundingClientRect().right + 1) {
            cutting.push(box.className);
        }
    }
    return cutting;
}"""
"""What an element reaches out of, and is cut by."""

HOSTILE = "</pre><script>alert(1)</script>{{ 7 * 7 }}\"'><img src=x onerror=alert(2)> \u202egnp.exe"


@pytest.fixture
def visitor(chromium: Chromium, shop_url: str) -> Iterator[Visitor]:
    """A superuser, logged in by the form."""
    User.objects.create_superuser("root", password="a pass phrase")
    with served(StaticFilesHandler(get_wsgi_application())) as site, chromium.visit(site) as visitor:
        page = visitor.go("/admin/")
        page.get_by_label("Username").fill("root")
        page.get_by_label("Password").fill("a pass phrase")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("link", name="Runs", exact=True)).to_be_visible()
        yield visitor


def act(visitor: Visitor, action: str, *chosen: object) -> None:
    """Choose some rows of the list, and do something to them."""
    for each in chosen:
        visitor.page.locator(f"input.action-select[value='{each}']").check()
    visitor.page.get_by_label("Action:").select_option(label=action)
    visitor.page.locator("button[title='Run the selected action']").click()


def test_runs_are_found_read_and_followed_to_their_children(visitor: Visitor) -> None:
    Order.objects.create(name=HOSTILE)
    parent = start_workflow(family, {"order": Order.objects.get().pk}, resource_id=HOSTILE)
    failed = start_workflow(ship, {"order": 0}, idempotency_key=HOSTILE)
    with working(engine()):
        for run in (parent, failed):
            engine().wait_for_run(run.id, timeout="20s")
    page = visitor.go("/admin/")
    page.get_by_role("link", name="Runs", exact=True).click()
    expect(page.get_by_role("row").filter(has_text=str(parent.id))).to_contain_text(HOSTILE)
    visitor.keep("admin-runs")
    page.get_by_role("link", name=str(parent.id)).click()
    expect(page.locator(".field-timeline tr").filter(has_text="describe")).to_be_visible()
    for result in page.locator(".field-timeline pre").all():
        assert result.evaluate(IS_CUT) == []
    expect(page.locator(".field-timeline")).to_contain_text("<b>bold</b>")
    visitor.keep("admin-run")
    page.locator(".field-children_shown a").click()
    expect(page.locator(".field-output_shown")).to_contain_text("alert(1)")
    expect(page.locator(".field-parent")).to_contain_text(str(parent.id))
    page = visitor.go(f"/admin/pgworkflows/run/?q={failed.id}")
    page.get_by_role("link", name=str(failed.id)).click()
    page.locator(".field-error_shown summary").get_by_text("DoesNotExist: Order matching query does not exist.").click()
    expect(page.locator(".field-error_shown")).to_contain_text("in pack")


def test_runs_are_steered_from_the_list(visitor: Visitor) -> None:
    first, second = (start_workflow(ship, {"order": 0}, delay="1 hour").id for _ in range(2))
    nap = start_workflow("nap").id
    engine().worker().run_until_idle("20s")
    page = visitor.go("/admin/pgworkflows/run/")
    for action, chosen, said, statuses in (
        ("Pause", (first, second), "2 runs paused", ("paused", "paused")),
        ("Resume", (first,), "1 run resumed", ("pending", "paused")),
        ("Cancel", (first, second), "2 runs cancelled", ("cancelled", "cancelled")),
        ("Cancel", (first,), f"Run {first} is cancelled; only", ("cancelled", "cancelled")),
        ("Retry", (second,), "1 run retried", ("cancelled", "pending")),
        ("Fast-forward the wait they are in", (nap,), "1 run fast-forwarded", ("cancelled", "pending")),
    ):
        act(visitor, action, *chosen)
        expect(page.get_by_role("list").filter(has_text=said)).to_be_visible()
        assert tuple(str(engine().get_run(each).status) for each in (first, second)) == statuses
    engine().worker().run_until_idle("20s")
    assert engine().get_run(nap).status is RunStatus.COMPLETED
    page.get_by_role("link", name="completed", exact=True).click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)


def test_schedules_are_steered_and_workers_listed(visitor: Visitor) -> None:
    with working(engine()):
        page = visitor.go("/admin/pgworkflows/worker/")
        expect(page.locator("#result_list tbody tr")).to_have_count(1)
    page = visitor.go("/admin/pgworkflows/schedule/")
    for action, said in (("Pause", "paused"), ("Resume", "resumed"), ("Start a run now", "triggered")):
        act(visitor, action, "tick")
        expect(page.get_by_role("list").filter(has_text=f"1 schedule {said}")).to_be_visible()
    page.locator(".field-last a").click()
    expect(page.locator(".field-status")).to_contain_text("pending")
    visitor.keep("admin-triggered")
