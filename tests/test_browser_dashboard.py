"""The dashboard in a real browser, mounted in a Flask application below a path: each page and each action."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import pytest
from browsing import Chromium, Visitor, served
from conftest import Databases
from exhibits import HOSTILE, WORKFLOWS, Exhibits
from flask import Flask
from playwright.sync_api import expect
from waiting import until
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from pgworkflows import RunStatus, WorkflowEngine
from pgworkflows.ui import Dashboard

pytestmark = pytest.mark.browser

OUTSIDE = """() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    return [...document.querySelectorAll("body *")]
        .filter((each) => each.getBoundingClientRect().right > width && !each.closest(".scroll"))
        .map((each) => each.outerHTML.slice(0, 120));
}"""
"""What makes a page wider than the window."""

HAS_COLOUR = """(each) => each.getContext("2d").getImageData(0, 0, each.width, each.height).data.some(Boolean)"""

PREFIX = "/back office/workflows"


@dataclass(frozen=True)
class Shop:
    """A site with a dashboard that acts."""

    engine: WorkflowEngine
    runs: Exhibits
    site: str

    def status(self, run: UUID) -> RunStatus:
        return self.engine.get_run(run).status

    def work(self) -> None:
        self.engine.worker().run_until_idle("30s")


@pytest.fixture(scope="module")
def shop(databases: Databases, migrated_template: str) -> Iterator[Shop]:
    with databases.fresh(migrated_template) as url, WorkflowEngine(url, workflows=WORKFLOWS) as engine:
        engine.start(worker=False)
        runs = Exhibits.put_up(engine)
        app = Flask(__name__)
        app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {PREFIX: Dashboard(engine, actions=True)})  # type: ignore[method-assign]  # as Flask has it
        with served(app) as origin:
            yield Shop(engine, runs, origin + PREFIX.replace(" ", "%20"))


@pytest.fixture(params=["with scripts", "without"])
def visitor(request: pytest.FixtureRequest, chromium: Chromium, shop: Shop) -> Iterator[Visitor]:
    """Somebody who acts, also where there is no JavaScript."""
    with chromium.visit(shop.site, scripts=request.param == "with scripts") as visitor:
        yield visitor


def pages(runs: Exhibits) -> dict[str, str]:
    """Each kind of page, and where it is."""
    return {
        "overview": "/",
        "runs": "/runs",
        "runs-found": "/runs?q=price&status=failed&workflow=import-prices",
        "run-waiting": f"/runs/{runs.waiting}",
        "run-completed": f"/runs/{runs.completed}",
        "run-failed": f"/runs/{runs.failed}",
        "run-with-a-child": f"/runs/{runs.parent}",
        "run-long": f"/runs/{runs.long}",
        "run-hostile": f"/runs/{runs.hostile}",
        "bulk": "/runs/bulk?action=cancel&workflow=checkout",
        "start": "/start",
        "start-form": "/start?workflow=checkout",
        "start-from": f"/start?workflow=checkout&from={runs.waiting}",
        "schedules": "/schedules",
        "help": "/help",
    }


# Reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_read_each_page(chromium: Chromium, shop: Shop, theme: str) -> None:
    with chromium.visit(shop.site, dark=theme == "dark") as visitor:
        found = {}
        for name, path in pages(shop.runs).items():
            visitor.go(path)
            visitor.keep(f"{name}-{theme}")
            found[name] = visitor.axe()
        assert {name: those for name, those in found.items() if those} == {}


def test_no_page_is_wider_than_a_telephone(chromium: Chromium, shop: Shop) -> None:
    with chromium.visit(shop.site, size="narrow") as visitor:
        wide = {}
        for name, path in pages(shop.runs).items():
            page = visitor.go(path)
            visitor.keep(f"{name}-narrow")
            wide[name] = page.evaluate(OUTSIDE)
        assert {name: those for name, those in wide.items() if those} == {}


def test_what_is_hostile_is_shown_as_it_stands(chromium: Chromium, shop: Shop) -> None:
    with chromium.visit(shop.site) as visitor:
        page = visitor.go(f"/runs/{shop.runs.hostile}")
        expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE[:200])
        for details in page.locator("details").all():
            details.evaluate("each => { each.open = true; }")
        expect(page.locator("main")).to_contain_text(HOSTILE)
        expect(page.locator("main")).to_contain_text("invoice\\u202egnp.exe")
        assert "\u202e" not in page.locator("body").inner_text()
        page = visitor.go(f"/runs/{shop.runs.waiting}")
        expect(page.get_by_role("region", name="Events that no wait has taken")).to_contain_text(HOSTILE[:40])
        page = visitor.go("/runs")
        row = page.get_by_role("row").filter(has_text=str(shop.runs.hostile))
        row.get_by_role("link").filter(has_text="</script>").last.click()
        expect(page.get_by_role("textbox", name="Resource")).to_have_value(HOSTILE[:200])
        expect(page.locator("tr[data-row]")).to_have_count(1)
        page = visitor.go(f"/runs/{shop.runs.hostile}")
        page.locator("details.payload summary").filter(has_text="input").click()
        page.get_by_role("link", name="The whole").click()
        assert json.loads(page.locator("body").inner_text())["long"] == HOSTILE[0:40] * 26_000


def test_runs_are_found_by_filters_and_turned_over(visitor: Visitor, shop: Shop) -> None:
    page = visitor.go("/runs")
    page.get_by_role("checkbox", name="failed").check()
    page.get_by_label("Workflow").fill("import-prices")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("tr[data-row]")).to_have_count(1)
    expect(page.locator("tr[data-row]")).to_contain_text("line 7 of the feed has no price")
    page.get_by_role("link", name="all runs").click()
    page.get_by_role("searchbox", name="Find runs").fill(str(shop.runs.parent))
    page.get_by_role("searchbox", name="Find runs").press("Enter")
    page.locator("tr[data-row] a.id").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("restock")
    page.get_by_role("region", name="Children").get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("shelve")
    page.locator(".facts a.id").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("restock")
    page = visitor.go(f"/runs/{shop.runs.long}")
    page.get_by_role("link", name="Later steps").click()
    expect(page.locator("table.timeline")).to_contain_text("shelf-219")


# Acting -------------------------------------------------------------------------------------------------------------


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
    visitor.keep("start-refused")
    page.get_by_label("customer").fill("Bea")
    page.get_by_label("count").fill("9")
    page.get_by_label("speed").select_option("express")
    page.locator("p.buttons").get_by_role("button", name="Start").click()
    expect(page.get_by_role("status")).to_contain_text("tarted")
    run = shop.engine.get_workflow_last_run("checkout")
    assert run is not None
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
    again = shop.engine.get_workflow_last_run("checkout")
    assert again is not None
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


def test_an_input_is_also_given_as_json(visitor: Visitor, shop: Shop) -> None:
    page = visitor.go("/start?workflow=shelve")
    page.get_by_label("Input").fill(json.dumps({"text": HOSTILE}))
    page.locator("p.buttons").get_by_role("button", name="Start").click()
    expect(page.get_by_role("status")).to_contain_text("tarted")
    run = shop.engine.get_workflow_last_run("shelve")
    assert run is not None
    assert run.input == {"text": HOSTILE}
    shop.work()


def test_many_runs_are_steered_at_once(visitor: Visitor, shop: Shop) -> None:
    runs = [shop.engine.start_workflow("checkout", {"customer": "Dora"}, resource_id="crowd").id for _ in range(3)]
    page = visitor.go("/runs?resource=crowd&status=pending")
    for run in runs[:2]:
        page.get_by_role("checkbox", name=str(run)).check()
    page.get_by_label("Do to those chosen").select_option("pause")
    page.get_by_role("button", name="Do it").click()
    expect(page.get_by_role("status")).to_be_visible()
    assert [shop.status(run) for run in runs] == [RunStatus.PAUSED, RunStatus.PAUSED, RunStatus.PENDING]
    visitor.go("/runs?resource=crowd")
    page.get_by_label("Or to all that match").select_option("cancel")
    page.get_by_role("button", name="Count them").click()
    page.get_by_role("button", name="Cancel 3 runs").click()
    expect(page.get_by_role("status")).to_be_visible()
    assert {shop.status(run) for run in runs} == {RunStatus.CANCELLED}


def test_schedules_are_steered(visitor: Visitor, shop: Shop) -> None:
    page = visitor.go("/schedules")
    page.get_by_role("button", name="Pause: the schedule of nightly-report").click()
    assert shop.engine.get_schedule("nightly-report").paused_at is not None
    page.get_by_role("button", name="Resume: the schedule of nightly-report").click()
    assert shop.engine.get_schedule("nightly-report").paused_at is None
    page.get_by_role("button", name="Run now: the schedule of nightly-report").click()
    expect(page.get_by_role("status")).to_contain_text("started run")
    run = shop.engine.get_workflow_last_run("nightly-report")
    assert run is not None
    shop.engine.cancel_workflow(run.id)


def test_colours_are_chosen_and_kept(visitor: Visitor, shop: Shop) -> None:
    page = visitor.go("/runs?status=failed")
    light = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    page.get_by_role("button", name="Colours: auto").click()
    assert page.url.endswith("/runs?status=failed")
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert dark != light
    page = visitor.go("/help")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == dark


# By keyboard, and live ----------------------------------------------------------------------------------------------


def test_a_run_is_found_opened_and_steered_by_keys_alone(chromium: Chromium, shop: Shop) -> None:
    run = shop.engine.start_workflow("checkout", {"customer": "Eve"}, resource_id="keys").id
    with chromium.visit(shop.site) as visitor:
        page = visitor.go("/")
        keys = page.keyboard
        keys.press("Tab")
        expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        keys.press("Enter")
        expect(page.locator("main")).to_be_focused()
        for key in ("g", "r"):
            keys.press(key)
        page.wait_for_url("**/runs")
        keys.press("/")
        expect(page.get_by_role("searchbox", name="Find runs")).to_be_focused()
        keys.type("keys\n")
        page.wait_for_url("**/runs?q=keys")
        keys.press("j")
        expect(page.locator("tr.meant a.id")).to_be_focused()
        assert page.locator("tr.meant a.id").evaluate("each => getComputedStyle(each).outlineStyle") != "none"
        keys.press("x")
        expect(page.get_by_role("checkbox", name=str(run))).to_be_checked()
        keys.press("Enter")
        page.wait_for_url(f"**/runs/{run}")
        for _ in range(60):
            keys.press("Tab")
            if page.evaluate("document.activeElement.textContent.trim()") == "Pause":
                break
        keys.press("Enter")
        expect(page.get_by_role("status")).to_contain_text("It is paused now")
        keys.press("?")
        page.wait_for_url("**/help")
    assert shop.status(run) is RunStatus.PAUSED
    shop.engine.cancel_workflow(run)


def test_pages_refresh_themselves_until_they_are_told_not_to(chromium: Chromium, shop: Shop) -> None:
    first = shop.engine.start_workflow("checkout", {"customer": "Fay"}, resource_id="live").id
    with chromium.visit(shop.site) as visitor:
        page = visitor.go("/runs?resource=live")
        rows = page.locator("tr[data-row]")
        expect(rows).to_have_count(1)
        second = shop.engine.start_workflow("checkout", {"customer": "Guy"}, resource_id="live").id
        expect(rows).to_have_count(2, timeout=10_000)
        page.get_by_role("button", name="Live: on").click()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(2600)  # longer than from one refresh to the next
        assert asked == []
        page.get_by_role("button", name="Live: off").click()
        shop.engine.cancel_workflow(second)
        expect(rows.first).to_contain_text("cancelled", timeout=10_000)
        visitor.go(f"/runs/{first}")
        shop.work()
        page.locator("details.payload summary").first.click(timeout=10_000)
        expect(page.get_by_label("What it waits for")).to_contain_text("parcel-collected", timeout=10_000)
        shop.engine.trigger_event(first, "parcel-collected")
        shop.work()
        expect(page.locator(".facts")).to_contain_text("completed", timeout=10_000)
        expect(page.locator("details.payload").first).to_have_attribute("open", "")


def test_plots_are_drawn_and_their_numbers_can_be_read(chromium: Chromium, shop: Shop) -> None:
    with chromium.visit(shop.site) as visitor:
        page = visitor.go("/")
        expect(page.locator("figure canvas")).to_have_count(2)
        page.get_by_text("The numbers", exact=True).click()
        expect(page.locator("table.numbers-table tbody tr").first).to_be_visible()
        drawn = page.locator("figure canvas").first
        until(lambda: drawn.evaluate(HAS_COLOUR), "something is drawn")


def test_a_refresh_copies_no_style_from_what_it_replaces(chromium: Chromium, shop: Shop) -> None:
    with chromium.visit(shop.site) as visitor:
        page = visitor.go("/runs")
        # What a browser's extension or a test's tool leaves behind: an attribute `style`, which the policy forbids.
        page.evaluate("document.querySelectorAll('#live, #live [id]').forEach((each) => { each.style.color = 'red'; })")
        with page.expect_response(lambda answer: answer.url.endswith("/runs")):
            page.evaluate("htmx.trigger(document.getElementById('live'), 'live')")
        expect(page.locator("#live[style]")).to_have_count(0)
