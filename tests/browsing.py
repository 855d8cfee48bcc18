"""A real Chromium for tests, in which whatever is wrong with a page fails the test: an error on the console, an
exception in a script, a violation of its content security policy, a dialog, a request to another origin, an answer that
is an error.

The browser is Debian's package `chromium`, or what PGWORKFLOWS_CHROMIUM names, or the first on the PATH; without any
the tests are skipped. Nothing is downloaded. What pages looked like is kept in `screenshots/`.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, expect, sync_playwright

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / "screenshots"
AXE = ROOT / "tests" / "vendor" / "axe.min.js"
NAMES = ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)
PATIENCE_MS = 20_000
"""A machine with other work to do may take its time."""
expect.set_options(timeout=PATIENCE_MS)
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}


def find_chromium() -> str | None:
    """The browser of this machine, if it has one."""
    named = os.environ.get("PGWORKFLOWS_CHROMIUM")
    found = (shutil.which(name) for name in ([named] if named else NAMES))
    return next(filter(None, found), None)


class Visitor:
    """Somebody at a browser of their own, who looks at one site and minds everything that is wrong there."""

    def __init__(self, context: BrowserContext, site: str, *, scripts: bool = True) -> None:
        self.site = site
        self._scripts = scripts
        self.complaints: list[str] = []
        context.set_default_timeout(PATIENCE_MS)
        context.on("console", self._hear)
        context.on("weberror", lambda failed: self.complaints.append(f"script: {failed.error}"))
        context.on("request", lambda request: self._mind(not self._is_of_the_site(request.url), f"asks {request.url}"))
        context.on(
            "response",
            lambda answer: self._mind(answer.status >= 400, f"{answer.status} of {answer.request.method} {answer.url}"),
        )
        self.context = context
        self.page = context.new_page()
        self.page.on("dialog", self._dismiss)

    def go(self, path: str = "") -> Page:
        """Open a page of the site."""
        self.page.goto(self.site + path)
        return self.page

    def axe(self) -> list[str]:
        """What axe-core finds serious or critical on the page, each with the places where it is so."""
        self.page.evaluate(AXE.read_text())
        found: list[dict[str, Any]] = self.page.evaluate(
            "async () => (await axe.run(document, {resultTypes: ['violations']})).violations"
        )
        return [
            f"{each['id']} ({each['impact']}): {node['html'][:200]} {node['failureSummary']}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"][:5]
        ]

    def keep(self, name: str) -> None:
        """Keep what the page looks like."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    @contextmanager
    def refused(self, *parts: str) -> Generator[None]:
        """Something is refused here: complaints that hold any of these words are right, and one of each comes. What
        the browser itself says on the console of such an answer is no more than that."""
        before = len(self.complaints)
        yield
        self._settle()
        new = self.complaints[before:]
        right = (*parts, "console: Failed to load resource")
        self.complaints[before:] = [each for each in new if not any(part in each for part in right)]
        missing = [part for part in parts if not any(part in each for each in new)]
        if missing:
            raise AssertionError(f"nothing was said of {missing}, but: {new}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._settle()
        self.context.close()
        if kind is None and self.complaints:
            raise AssertionError("the browser minds:\n" + "\n".join(self.complaints))

    def _hear(self, said: ConsoleMessage) -> None:
        # A site's icon is looked for at its root, which is not always that of the pages in question.
        if said.type in ("error", "warning") and not said.location["url"].endswith("/favicon.ico"):
            self.complaints.append(f"console: {said.text}")

    def _dismiss(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _mind(self, wrong: bool, what: str) -> None:
        if wrong:
            self.complaints.append(what)

    def _is_of_the_site(self, address: str) -> bool:
        return address.startswith((self.site + "/", "data:", "about:", "blob:")) or address == self.site

    def _settle(self) -> None:
        """Let what the browser has still to say arrive."""
        # Without scripts nothing would ever keep a promise.
        waiting = "() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))" if self._scripts else "0"
        for page in self.context.pages:
            page.evaluate(waiting)


class Chromium:
    """The running browser; each visitor has cookies, a window and settings of their own."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser

    def visit(
        self, site: str, *, scripts: bool = True, dark: bool = False, size: str = "wide", cookies: Sequence[Any] = ()
    ) -> Visitor:
        width, height = SIZES[size]
        context = self._browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
            reduced_motion="reduce",
            locale="en-GB",
            timezone_id="UTC",
        )
        context.add_cookies(cookies)
        return Visitor(context, site, scripts=scripts)


@contextmanager
def running(path: str) -> Generator[Chromium]:
    # Chromium's own sandbox refuses to run as root, which containers are.
    flags = [*FLAGS, "--no-sandbox"] if os.geteuid() == 0 else FLAGS
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=flags) as browser:
        yield Chromium(browser)


class Server(ThreadingMixIn, WSGIServer):
    """A thread for each request; closed when all have ended."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Browsers connect ahead of what they ask, and let go in the middle."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()


class Handler(WSGIRequestHandler):
    timeout = 20

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


@contextmanager
def served(app: WSGIApplication) -> Generator[str]:
    """A WSGI application on a port of its own, in threads: its address."""
    with make_server("127.0.0.1", 0, app, Server, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="site under test")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
