"""The dashboard in a real browser, wherever it is mounted: each page is read, by everybody."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from browsing import Chromium, Visitor
from conftest import Databases
from exhibits import HOSTILE, Exhibits
from mounts import MOUNTS, Shop, mounted
from playwright.sync_api import expect
from waiting import until

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

ENDS = """(each) => { const box = each.getBoundingClientRect(); return [box.left, box.right]; }"""


@pytest.fixture(scope="module", params=MOUNTS)
def shop(
    request: pytest.FixtureRequest, databases: Databases, migrated_template: str, shop_template: str
) -> Iterator[Shop]:
    with mounted(request.param, databases, migrated_template, shop_template) as shop:
        yield shop


@pytest.fixture(params=["with scripts", "without"])
def visitor(request: pytest.FixtureRequest, chromium: Chromium, shop: Shop) -> Iterator[Visitor]:
    """Somebody who looks around, also where there is no JavaScript."""
    with shop.visit(chromium, scripts=request.param == "with scripts") as visitor:
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
    with shop.visit(chromium, dark=theme == "dark") as visitor:
        found = {}
        for name, path in pages(shop.runs).items():
            visitor.go(path)
            visitor.keep(f"{shop.mount}-{name}-{theme}")
            found[name] = visitor.axe()
        assert {name: those for name, those in found.items() if those} == {}


def test_no_page_is_wider_than_a_telephone(chromium: Chromium, shop: Shop) -> None:
    with shop.visit(chromium, size="narrow") as visitor:
        wide = {}
        for name, path in pages(shop.runs).items():
            page = visitor.go(path)
            visitor.keep(f"{shop.mount}-{name}-narrow")
            wide[name] = page.evaluate(OUTSIDE)
            for each in page.locator("details.act summary").all():
                each.click()
                wide[f"{name}, acting"] = page.evaluate(OUTSIDE)
                each.click()
        assert {name: those for name, those in wide.items() if those} == {}


def test_what_is_hostile_is_shown_as_it_stands(chromium: Chromium, shop: Shop) -> None:
    with shop.visit(chromium) as visitor:
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
        page.locator("details.payload").get_by_role("link", name="The whole").click()
        assert json.loads(page.locator("body").inner_text())["long"] == HOSTILE[0:40] * 26_000


def test_a_run_in_trouble_is_two_clicks_away(visitor: Visitor, shop: Shop) -> None:
    page = visitor.go("/")
    page.get_by_role("list", name="Numbers").get_by_role("link", name="failed").click()
    row = page.get_by_role("row").filter(has_text="line 7 of the feed has no price")
    row.locator("a.id").first.click()
    expect(page.get_by_label("Error", exact=True)).to_contain_text("line 7 of the feed has no price")
    page.get_by_label("Error", exact=True).locator("summary").click()
    expect(page.get_by_label("Error", exact=True)).to_contain_text("in read_feed")


def test_a_timelines_lines_are_on_one_scale(chromium: Chromium, shop: Shop) -> None:
    for size in ("wide", "narrow"):
        with shop.visit(chromium, size=size) as visitor:
            for run in (shop.runs.completed, shop.runs.parent, shop.runs.long):
                page = visitor.go(f"/runs/{run}")
                ends = [each.evaluate(ENDS) for each in page.locator("table.timeline svg").all()[:20]]
                assert len(ends) >= 4
                assert ends == [ends[0]] * len(ends)


def test_payloads_are_whole_a_click_away(visitor: Visitor, shop: Shop) -> None:
    page = visitor.go(f"/runs/{shop.runs.completed}")
    for summary, whole in (
        ("input", {"customer": "Ada"}),
        ("output { payment", {"parcel": {"by": "Bea"}}),
        ("output { customer", {"cents": 4200}),
        ("output { by", {"by": "Bea"}),
    ):
        details = page.locator("details.payload").filter(has=page.locator("summary", has_text=summary)).first
        details.locator("summary").click()
        details.get_by_role("link", name="As JSON").click()
        assert json.loads(page.locator("body").inner_text()).items() >= whole.items()
        page.go_back()
    for path, key in ((f"/runs/{shop.runs.failed}", "traceback"), (f"/runs/{shop.runs.waiting}", "data")):
        page = visitor.go(path)
        details = page.locator("details.payload").filter(has=page.locator("summary", has_text=key)).first
        details.locator("summary").click()
        details.get_by_role("link", name="As JSON").click()
        assert json.loads(page.locator("body").inner_text())


def test_each_window_of_time_is_looked_at(visitor: Visitor, shop: Shop) -> None:
    page = visitor.go("/")
    for window in ("15 minutes", "6 hours", "7 days"):
        page.get_by_role("navigation", name="Window").get_by_role("link", name=window).click()
        expect(page.get_by_role("heading", name=f"Slowest steps, {window}")).to_be_visible()
        expect(page.get_by_role("region", name="Slowest steps")).to_contain_text("read-feed")


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


def test_plots_are_drawn_and_their_numbers_can_be_read(chromium: Chromium, shop: Shop) -> None:
    with shop.visit(chromium) as visitor:
        page = visitor.go("/")
        expect(page.locator("figure canvas")).to_have_count(4)
        page.get_by_text("The numbers", exact=True).click()
        expect(page.locator("table.numbers-table tbody tr").first).to_be_visible()
        drawn = page.locator("figure canvas").first
        until(lambda: drawn.evaluate(HAS_COLOUR), "something is drawn")
