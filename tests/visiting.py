"""A browser without a window: visits a dashboard's pages through WSGI, keeps cookies, sends the forms it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

from werkzeug.test import Client, TestResponse

VOID = {"input", "link", "meta", "br", "img", "rect", "hr"}


@dataclass
class Element:
    """An element of a page and what is in it."""

    name: str
    attributes: dict[str, str]
    pieces: list[str] = field(default_factory=list[str])
    inside: list[Element] = field(default_factory=list["Element"])

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def walk(self) -> Iterator[Element]:
        """This element and all below it."""
        yield self
        for each in self.inside:
            yield from each.walk()

    def all(self, name: str, /, **attributes: str) -> list[Element]:
        """The elements of a name below this one."""
        return [each for each in self.walk() if each.name == name and attributes.items() <= each.attributes.items()]


def cells(table: Element) -> list[list[str]]:
    """What stands in the cells of a table's rows, with single blanks."""
    rows = [[cell for cell in row.inside if cell.name in ("td", "th")] for row in table.all("tr")]
    return [[" ".join(cell.text.split()) for cell in row] for row in rows]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.top = Element("page", {})
        self.open = [self.top]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open[-1].name == tag, f"</{tag}> ends <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.pieces.append(data)


def read(html: str) -> Element:
    """A page as its elements; every one that is opened is closed."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.top]
    return reader.top


class Browser:
    """Where it is, and what it is shown there."""

    def __init__(self, app: Callable[..., Iterable[bytes]], prefix: str = "", **headers: str) -> None:
        self._client = Client(app)
        self._prefix = prefix
        self._headers = headers
        self.path = ""
        self.answer: TestResponse

    def open(self, path: str, **options: Any) -> TestResponse:
        """Ask for a path below the mount, whatever the answer is; follow what it leads to."""
        return self._ask(path, "GET", options)

    def see(self, path: str) -> Element:
        """A page that is there."""
        answer = self.open(path)
        assert answer.status_code == 200, answer.text
        return self.page

    def keep(self, name: str, value: str) -> None:
        """Have a cookie that the server has not set."""
        self._client.set_cookie(name, value, domain="dash.example", path=f"{self._prefix}/")

    def go_on_with(self, app: Callable[..., Iterable[bytes]]) -> None:
        """Be answered by another process from now on."""
        self._client.application = app

    @property
    def page(self) -> Element:
        return read(self.answer.text)

    @property
    def said(self) -> str:
        """What the page says of the last action."""
        return " ".join(each.text.strip() for each in self.page.all("p") if "said" in each.attributes.get("class", ""))

    def send(self, action: str, button: str | None = None, /, **given: Any) -> TestResponse:
        """Send the form of this page that goes to `action`, with these fields; blanks in names are as they are given in
        a dict."""
        [form, *_] = [each for each in self.page.all("form", method="post") if each.attributes["action"] == action]
        return self.post(action, {**fields_of(form), **({"do": button} if button else {}), **given})

    def post(self, action: str, data: dict[str, Any] | str, /, **options: Any) -> TestResponse:
        """Send a form, whatever it is."""
        path = action.removeprefix(self._prefix)
        return self._ask(path, "POST", {"data": data, **options})

    def _ask(self, path: str, method: str, options: dict[str, Any]) -> TestResponse:
        base = options.pop("base_url", f"http://dash.example{self._prefix}")
        self.answer = self._client.open(
            path,
            method=method,
            base_url=base,
            buffered=True,
            headers={**self._headers, **options.pop("headers", {})},
            **options,
        )
        if self.answer.status_code == 303:
            target = urljoin(f"http://dash.example{self._prefix}{path}", self.answer.headers["Location"])
            assert target.startswith(f"http://dash.example{self._prefix}/"), target
            return self._ask(target.removeprefix(f"http://dash.example{self._prefix}"), "GET", {})
        self.path = path
        return self.answer


def fields_of(form: Element) -> dict[str, Any]:
    """What a browser sends of a form that nobody has touched, but for its buttons."""
    sent: dict[str, Any] = {}
    for each in form.all("input"):
        box = each.attributes.get("type") == "checkbox"
        if "name" in each.attributes and (not box or "checked" in each.attributes):
            sent[each.attributes["name"]] = each.attributes.get("value", "on" if box else "")
    for each in form.all("textarea"):
        sent[each.attributes["name"]] = each.text.removeprefix("\n")
    for each in form.all("select"):
        options = each.all("option")
        chosen = [option for option in options if "selected" in option.attributes] or options[:1]
        sent[each.attributes["name"]] = chosen[0].attributes["value"]
    return sent
