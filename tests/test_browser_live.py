"""The dashboard in a real browser, wherever it is mounted: by keyboard alone, and as its pages refresh themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browsing import Chromium
from conftest import Databases
from mounts import MOUNTS, Shop, mounted
from playwright.sync_api import expect

from pgworkflows import RunStatus

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", params=MOUNTS)
def shop(
    request: pytest.FixtureRequest, databases: Databases, migrated_template: str, shop_template: str
) -> Iterator[Shop]:
    with mounted(request.param, databases, migrated_template, shop_template) as shop:
        yield shop


def test_a_run_is_found_opened_and_steered_by_keys_alone(chromium: Chromium, shop: Shop) -> None:
    run = shop.engine.start_workflow("checkout", {"customer": "Eve"}, resource_id="keys").id
    with shop.visit(chromium) as visitor:
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
    with shop.visit(chromium) as visitor:
        page = visitor.go("/runs?resource=live")
        rows = page.locator("tr[data-row]")
        expect(rows).to_have_count(1)
        second = shop.engine.start_workflow("checkout", {"customer": "Guy"}, resource_id="live").id
        expect(rows).to_have_count(2)
        page.get_by_role("button", name="Live: on").click()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(2600)  # longer than from one refresh to the next
        assert asked == []
        page.get_by_role("button", name="Live: off").click()
        shop.engine.cancel_workflow(second)
        expect(rows.first).to_contain_text("cancelled")
        visitor.go(f"/runs/{first}")
        shop.work()
        page.locator("details.payload summary").first.click()
        expect(page.get_by_label("What it waits for")).to_contain_text("parcel-collected")
        shop.engine.trigger_event(first, "parcel-collected")
        shop.work()
        expect(page.locator(".facts")).to_contain_text("completed")
        expect(page.locator("details.payload").first).to_have_attribute("open", "")


def test_a_refresh_copies_no_style_from_what_it_replaces(chromium: Chromium, shop: Shop) -> None:
    with shop.visit(chromium) as visitor:
        page = visitor.go("/runs")
        # What a browser's extension or a test's tool leaves behind: an attribute `style`, which the policy forbids.
        page.evaluate("document.querySelectorAll('#live, #live [id]').forEach((each) => { each.style.color = 'red'; })")
        with page.expect_response(lambda answer: answer.url.endswith("/runs")):
            page.evaluate("htmx.trigger(document.getElementById('live'), 'live')")
        expect(page.locator("#live[style]")).to_have_count(0)


def test_a_refresh_leaves_the_focus_where_it_is(chromium: Chromium, shop: Shop) -> None:
    with shop.visit(chromium) as visitor:
        page = visitor.go(f"/runs/{shop.runs.parent}")
        child = page.locator("a.id")
        expect(child).to_have_count(2)  # at its step, and among the children
        for focused in (
            page.get_by_role("button", name="Pause"),
            page.locator("details.act summary").nth(1),
            page.locator("details.payload summary").nth(1),
            page.get_by_role("region", name="Timeline"),
            child.nth(1),
        ):
            focused.focus()
            with page.expect_response(lambda answer: answer.url.endswith(f"/runs/{shop.runs.parent}")):
                page.evaluate("document.getElementById('live').dataset.before = 'this'")
            expect(page.locator("#live[data-before]")).to_have_count(0)
            expect(focused).to_be_focused()


def test_an_actions_form_is_left_by_escape_and_by_opening_another(chromium: Chromium, shop: Shop) -> None:
    with shop.visit(chromium) as visitor:
        page = visitor.go(f"/runs/{shop.runs.waiting}")
        opening, other = (page.locator("details.act summary").filter(has_text=text) for text in ("Send", "Cancel"))
        opening.focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_role("textbox", name="Event")).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.get_by_role("textbox", name="Event")).to_be_hidden()
        expect(opening).to_be_focused()
        opening.click()
        other.click()
        expect(page.get_by_role("textbox", name="Event")).to_be_hidden()
        expect(page.get_by_role("button", name="Cancel this run")).to_be_visible()
