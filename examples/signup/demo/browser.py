"""What a person's browser does, over HTTP."""

from __future__ import annotations

import re
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

from examples.signup.demo.people import Person

PATIENCE_S = 20


class Browser:
    """Fills in the form at `url`, and follows links. Raises HTTPError and URLError when a page does not come."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opener = build_opener(ProxyHandler({}))

    def sign_up(self, person: Person, *, presses: int = 1) -> None:
        """Open the page, fill in the form, press the button; impatient people press it more than once."""
        page = self._fetch(self._url)
        found = re.search(r'name="form_id" value="([^"]+)"', page)
        assert found is not None, f"there is no form in this page:\n{page}"
        form = urlencode({"name": person.name, "email": person.email, "form_id": found.group(1)}).encode()
        for _ in range(presses):
            self._fetch(self._url, form)

    def follow(self, link: str) -> None:
        """Follow a link, and what it redirects to."""
        self._fetch(link)

    def _fetch(self, url: str, form: bytes | None = None) -> str:
        with self._opener.open(url, form, PATIENCE_S) as answer:
            return str(answer.read().decode())
