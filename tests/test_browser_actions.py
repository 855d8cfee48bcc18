"""The dashboard in a real browser, wherever it is mounted: each action is taken, with JavaScript and without."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from uuid import UUID

import pytest
from browsing import Chromium, Visitor
from conftest import Databases
from exhibits import HOSTILE
from mounts import MOUNTS, Shop, mounted
from playwright.sync_api import Page, expect

from pgworkflows import RunStatus, WorkflowRun

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", params=MOUNTS)
def shop(
    request: pytest.FixtureRequest, databases: Databases, migrated_template: str, shop_template: str
) -> Iterator[Shop]:
    with mounted(request.param, databases, migrated_template, shop_template) as shop:
        yield shop


@pytest.fixture(params=["with scripts", "without"])
def visitor(request: pytest.FixtureRequest, chromium: Chromium, shop: Shop) -> Iterator[Visitor]:
    """Somebody who acts, also where there is no JavaScript."""
    with shop.visit(chromium, scripts=request.param == "with scripts") as visitor:
        yield visitor


def send(page: Page) -> None:
    """Press the form's own button, and be told of the run."""
    page.locator("p.buttons").get_by_role("button", name="Start").click()
    expect(page.get_by_role("status")).to_contain_text("tarted")


def newest(shop: Shop, workflow_id: str) -> WorkflowRun:
    run = shop.engine.get_workflow_last_run(workflow_id)
    assert run is not None
    return run


def choose(page: Page, action: str, *runs: UUID) -> None:
    """Tick runs of the list, and do something to them."""
    for run in runs:
        page.get_by_role("checkbox", name=str(run)).check()
    page.get_by_label("Do to those chosen").select_option(action)
    page.get_by_role("button", name="Do it").click()


def test_a_run_is_started_from_a_form_and_steered_to_its_end(visitor: Visitor, shop: Shop) -> None:
    page = visitor.go("/start")
    page.get_by_role("link", name="checkout").click()
    page.get_by_label("customer").fill("B")
    page.get_by_role("button", name="Add lines").click()
    page.get_by_label("article").fill("coffee")
    page.get_by_label("count").fill("100")
    with visitor.refused("422 of POST"):
        page.locator("p.buttons").get_by_role("button", name="Start").click()
        expect(page.get_by_label("customer")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("count")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("article")).to_have_value("coffee")
    visitor.keep(f"{shop.mount}-start-refused")
    page.get_by_label("customer").fill("Bea")
    page.get_by_label("count").fill("9")
    page.get_by_label("speed").select_option("express")
    send(page)
    run = newest(shop, "checkout")
    assert run.input["lines"] == [{"article": "coffee", "count": 9}]
    page = visitor.go(f"/runs/{run.id}")
    for action, status in (("Pause", "paused"), ("Resume", "pending")):
        page.get_by_role("button", name=action, exact=True).click()
        expect(page.get_by_role("status")).to_contain_text(f"It is {status} now")
    shop.work()
    page.reload()
    expect(page.get_by_label("What it waits for")).to_contain_text("parcel-collected")
    page.locator("summary").filter(has_text="Send event").click()
    expect(page.get_by_label("Event")).to_have_value("parcel-collected")
    page.get_by_label("Data, as JSON").fill("{no JSON")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("is no JSON")
    page.locator("summary").filter(has_text="Send event").click()
    page.get_by_label("Data, as JSON").fill('{"by": "Carl"}')
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("sent the event")
    shop.work()
    assert shop.engine.get_run(run.id).output["parcel"] == {"by": "Carl"}
    page.reload()
    page.get_by_role("button", name="Start again with this input").click()
    expect(page.get_by_role("status")).to_contain_text("tarted")
    again = newest(shop, "checkout")
    assert (again.id == run.id, again.input) == (False, run.input)
    shop.work()
    visitor.go(f"/runs/{again.id}")
    page.locator("summary").filter(has_text="Fast-forward").click()
    page.get_by_role("button", name="Fast-forward", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("fast-forwarded")
    page.locator("summary").filter(has_text="Cancel").click()
    page.get_by_role("button", name="Cancel this run").click()
    expect(page.get_by_role("status")).to_contain_text("It is cancelled now")
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_role("status")).to_contain_text("It is pending now")
    shop.work()


def test_a_run_is_started_with_changes_as_fields_and_as_json(visitor: Visitor, shop: Shop) -> None:
    page = visitor.go(f"/runs/{shop.runs.waiting}")
    page.get_by_role("button", name="Start with changes").click()
    expect(page.get_by_label("customer")).to_have_value("Ada")
    page.get_by_role("button", name="Add lines").click()
    page.get_by_label("article").last.fill("salt")
    page.get_by_role("group", name="lines 1").get_by_role("button", name="remove").click()
    expect(page.get_by_label("article")).to_have_value("salt")
    page.get_by_role("button", name="As JSON").click()
    expect(page.get_by_label("Input")).to_have_value(re.compile('"article": "salt"'))
    page.get_by_label("Input").fill('{"customer": "Eve", "lines": [{"article": "salt"}]}')
    page.get_by_role("button", name="As fields").click()
    expect(page.get_by_label("customer")).to_have_value("Eve")
    page.locator("summary").filter(has_text="Options").click()
    page.get_by_role("textbox", name="Resource").fill("customer 9")
    page.get_by_label("Delay").fill("1 hour")
    send(page)
    run = newest(shop, "checkout")
    assert (run.resource_id, run.input["customer"], run.status) == ("customer 9", "Eve", RunStatus.PENDING)
    assert run.input["lines"] == [{"article": "salt", "count": 1}]
    shop.engine.cancel_workflow(run.id)


def test_an_input_is_also_given_as_json(visitor: Visitor, shop: Shop) -> None:
    page = visitor.go("/start?workflow=shelve")
    page.get_by_label("Input").fill(json.dumps({"text": HOSTILE}))
    send(page)
    assert newest(shop, "shelve").input == {"text": HOSTILE}
    shop.work()


def test_many_runs_are_steered_at_once(visitor: Visitor, shop: Shop) -> None:
    runs = [shop.engine.start_workflow("checkout", {"customer": "Dora"}, resource_id="crowd").id for _ in range(3)]
    page = visitor.go("/runs?resource=crowd")
    for action, told, statuses in (
        ("pause", "2 runs paused.", ("paused", "paused", "pending")),
        ("resume", "2 runs resumed.", ("pending", "pending", "pending")),
        ("cancel", "2 runs cancelled.", ("cancelled", "cancelled", "pending")),
        ("retry", "2 runs retried.", ("pending", "pending", "pending")),
    ):
        choose(page, action, *runs[:2])
        expect(page.get_by_role("status")).to_have_text(told)
        assert tuple(str(shop.status(run)) for run in runs) == statuses
    shop.work()
    page.reload()
    choose(page, "fast_forward", runs[2])
    expect(page.get_by_role("status")).to_have_text("1 run fast-forwarded.")
    shop.work()
    assert shop.engine.get_run(runs[2]).output["parcel"] == {}
    runs[2] = shop.engine.start_workflow("checkout", {"customer": "Dora"}, resource_id="crowd").id
    page.reload()
    page.get_by_label("Or to all that match").select_option("cancel")
    page.get_by_role("button", name="Count them").click()
    page.get_by_role("button", name="Cancel 3 runs").click()
    expect(page.get_by_role("status")).to_have_text("3 runs cancelled.")
    assert {shop.status(run) for run in runs} == {RunStatus.CANCELLED}


def test_schedules_are_steered(visitor: Visitor, shop: Shop) -> None:
    page = visitor.go("/schedules")
    page.get_by_role("button", name="Pause: the schedule of nightly-report").click()
    expect(page.get_by_role("status")).to_contain_text("paused")
    assert shop.engine.get_schedule("nightly-report").paused_at is not None
    page.get_by_role("button", name="Resume: the schedule of nightly-report").click()
    expect(page.get_by_role("status")).to_contain_text("resumed")
    assert shop.engine.get_schedule("nightly-report").paused_at is None
    page.get_by_role("button", name="Run now: the schedule of nightly-report").click()
    expect(page.get_by_role("status")).to_contain_text("started run")
    shop.engine.cancel_workflow(newest(shop, "nightly-report").id)


def test_colours_are_chosen_and_kept(visitor: Visitor, shop: Shop) -> None:
    page = visitor.go("/runs?status=failed")
    light = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    page.get_by_role("button", name="Colours: auto").click()
    expect(page.get_by_role("button", name="Colours: dark")).to_be_visible()
    assert page.url.endswith("/runs?status=failed")
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert dark != light
    page = visitor.go("/help")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == dark
