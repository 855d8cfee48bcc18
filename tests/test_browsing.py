"""The browser of the tests minds what is wrong with a page: else those that use it would prove nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from browsing import Chromium, served
from werkzeug import Request, Response

pytestmark = pytest.mark.browser

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; img-src 'self'"
)
WRONG = {
    "an-inline-script": ("<script>document.title = 'run'</script>", "Content Security Policy"),
    "a-handler": ("<img src='/fine' onerror='document.title = 1'>", "Content Security Policy"),
    "an-inline-style": ("<p style='color: red'>red", "Content Security Policy"),
    "a-picture-from-elsewhere": ("<img src='http://192.0.2.1/x.png'>", "http://192.0.2.1/x.png"),
    "an-error-on-the-console": ("<script src='/script?console.error(1)'></script>", "console: 1"),
    "an-exception": ("<script src='/script?nothing.at.all'></script>", "script: nothing is not defined"),
    "a-dialog": ("<script src='/script?alert(7)'></script>", "dialog: 7"),
    "what-is-missing": ("<link rel='stylesheet' href='/missing'>", "404 of GET"),
}


@Request.application
def site(request: Request) -> Response:
    """Pages with one fault each."""
    if request.path == "/script":
        return Response(request.query_string, mimetype="text/javascript")
    if request.path in ("/missing", "/favicon.ico"):
        return Response(status=404 if request.path == "/missing" else 204)
    fault = WRONG.get(request.path[1:], ("", ""))[0]
    page = f"<!doctype html><html lang=en><title>A page</title><main><h1>A page</h1>{fault}</main>"
    return Response(page, mimetype="text/html", headers={"Content-Security-Policy": POLICY})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(site) as found:
        yield found


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_with_a_page_fails_the_test(chromium: Chromium, address: str, fault: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(WRONG[fault][1])), chromium.visit(address) as visitor:
        visitor.go(f"/{fault}")


def test_what_a_test_expects_is_no_fault_and_has_to_come(chromium: Chromium, address: str) -> None:
    with chromium.visit(address) as visitor, visitor.refused("404 of GET"):
        visitor.go("/what-is-missing")
    with pytest.raises(AssertionError), chromium.visit(address) as visitor, visitor.refused("404 of GET"):
        visitor.go("/")


def test_a_page_without_fault_is_no_trouble(chromium: Chromium, address: str) -> None:
    with chromium.visit(address) as visitor:
        visitor.go("/")
        assert visitor.axe() == []


def test_axe_finds_what_cannot_be_read(chromium: Chromium, address: str) -> None:
    with chromium.visit(address) as visitor:
        visitor.go("/").evaluate("document.querySelector('main').append(document.createElement('button'))")
        assert [each for each in visitor.axe() if each.startswith("button-name (critical)")]
