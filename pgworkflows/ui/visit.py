"""One request: who may do what, links, forms that cannot be forged, and the page that answers."""

from __future__ import annotations

from functools import cached_property
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit
from uuid import UUID

from werkzeug.exceptions import BadRequest, Forbidden, HTTPException, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.routing import MapAdapter
from werkzeug.utils import redirect
from werkzeug.wrappers import Request, Response

from pgworkflows.client import WorkflowClient
from pgworkflows.errors import WorkflowRunNotFoundError
from pgworkflows.inspection import Inspector
from pgworkflows.runs import WorkflowRun
from pgworkflows.ui.redaction import What
from pgworkflows.ui.signing import NONCE, new_nonce
from pgworkflows.ui.wording import Shown, shown

if TYPE_CHECKING:
    from pgworkflows.ui.dashboard import Dashboard

MAX_FORM, MAX_PAYLOAD_FORM = 256 * 1024, 8 * 1024 * 1024
"""In bytes: a form, and one that carries a payload."""
MAX_FIELDS = 50_000
"""More than any form of ours has: a megabyte can hold half a million, which take seconds to read."""
CSRF_COOKIE, SAID_COOKIE, THEME_COOKIE = "pgworkflows-csrf", "pgworkflows-said", "pgworkflows-theme"
THEMES = ("auto", "light", "dark")
HOST_FIELDS = "pgworkflows.form_fields"
"""In the WSGI environment: hidden fields that whoever mounts the dashboard wants in each form, as a dict."""


class BoundedFormParser(FormDataParser):
    """Reads forms that have no more fields than ours."""

    def parse(
        self, stream: IO[bytes], mimetype: str, content_length: int | None, options: dict[str, str] | None = None
    ) -> Any:
        """What Werkzeug's makes of it. Raises RequestEntityTooLarge."""
        body = stream.read()
        if body.count(b"&") >= MAX_FIELDS:
            raise RequestEntityTooLarge(f"A form here has at most {MAX_FIELDS:,} fields.")
        return super().parse(BytesIO(body), mimetype, content_length, options)


class Visitor(Request):
    """The request; a form is bounded."""

    max_content_length = MAX_FORM
    max_form_memory_size = MAX_PAYLOAD_FORM
    form_data_parser_class = BoundedFormParser


class Visit:
    """A request to one dashboard, and what answering it needs."""

    def __init__(self, dashboard: Dashboard, request: Request, adapter: MapAdapter) -> None:
        self.dashboard = dashboard
        self.request = request
        self.endpoint = ""
        self._adapter = adapter
        self._said: str | None = None
        self._viewed: dict[str, bool] = {}

    @property
    def client(self) -> WorkflowClient:
        return self.dashboard.client

    @property
    def inspector(self) -> Inspector:
        return self.dashboard.inspector

    # Who may do what

    def may(self, action: str, run: WorkflowRun | None = None) -> bool:
        """Whether this visitor may do something: to a run, or where it is about no single one. Anything but True from
        `authorize` means no."""
        dashboard = self.dashboard
        if action != "view" and not dashboard.actions:
            return False
        return dashboard.authorize is None or dashboard.authorize(self.request, action, run) is True

    def require(self, action: str, run: WorkflowRun | None = None) -> None:
        """Raise Forbidden unless this visitor may."""
        if action != "view" and not self.dashboard.actions:
            raise Forbidden("This dashboard is read-only. It acts where it is made with actions=True.")
        if not self.may(action, run):
            what = f"{action} this run" if run is not None else action
            raise Forbidden(f"You may not {what.replace('_', ' ')} here: the application's authorize says no.")

    def may_view(self, run_id: UUID | str) -> bool:
        """Whether this visitor may view the run of that id; nobody can say of one that is gone."""
        if self.dashboard.authorize is None:
            return True
        key = str(run_id)
        if key not in self._viewed:
            try:
                self._viewed[key] = self.may("view", self.client.get_run(run_id))
            except WorkflowRunNotFoundError:
                self._viewed[key] = False
        return self._viewed[key]

    def named(self, run: WorkflowRun) -> str:
        """A run by its id, for whoever may view it."""
        return f"run {run.id}" if self.may("view", run) else "a run that you may not view"

    # Forms

    @cached_property
    def nonce(self) -> str:
        """What this browser's forms are bound to."""
        given = self.request.cookies.get(CSRF_COOKIE, "")
        return given if NONCE.fullmatch(given) else new_nonce()

    @property
    def form_fields(self) -> dict[str, str]:
        """The hidden fields of each form."""
        return {"_token": self.dashboard.signer.token(self.nonce), **self.request.environ.get(HOST_FIELDS, {})}

    def check_sender(self) -> None:
        """Raise unless what was sent is a form, and comes from one of our pages, as far as the headers say."""
        if self.request.mimetype != "application/x-www-form-urlencoded":
            raise BadRequest("Forms are sent as application/x-www-form-urlencoded.")
        origin = self.request.headers.get("Origin")
        if origin is not None and _site(origin) != self.request.host:
            raise Forbidden("This form was sent from another site, or through a proxy that changes the Host header.")
        if self.request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
            raise Forbidden("This form was sent from another site.")

    def check_form(self) -> None:
        """Raise unless the form is one that this browser was given. Reads it."""
        nonce, token = self.request.cookies.get(CSRF_COOKIE, ""), self.request.form.get("_token", "")
        if not self.dashboard.signer.fits(nonce, token):
            raise Forbidden(
                "This form is too old, or cookies are off: load the page again. Where several processes serve the "
                "dashboard, give all of them the same secret_key."
            )

    # Links

    def url(self, endpoint: str, **values: Any) -> str:
        """The path of a page, below wherever the dashboard is mounted."""
        return self._adapter.build(endpoint, {name: value for name, value in values.items() if value is not None})

    def below(self, endpoint: str, **values: Any) -> str:
        """The same without the mount, as forms say where they were."""
        return self.url(endpoint, **values).removeprefix(self.root)

    def file(self, name: str) -> str:
        """The address of one of our own files, another one in each version."""
        return self.url("static", path=name, v=self.dashboard.version)

    @property
    def places(self) -> list[tuple[str, str]]:
        """What the page's head leads to."""
        start = [("start", "Start")] if self.dashboard.actions else []
        return [("overview", "Overview"), ("runs", "Runs"), ("schedules", "Schedules"), *start, ("help", "Help")]

    @property
    def root(self) -> str:
        """Where the dashboard is mounted, as a URL has it."""
        return mount_of(self.request)

    @property
    def here(self) -> str:
        """This page's path and query, below the mount."""
        query = self.request.query_string.decode("latin-1")
        return f"/{self.request.path.lstrip('/')}" + (f"?{query}" if query else "")

    def back(self, fallback: str) -> str:
        """Where the form says that it was, if that is a page of ours."""
        given = self.request.form.get("_back", "")
        path, _, query = given.partition("?")
        if "\\" in given or not given.isprintable() or not path.startswith("/") or path.startswith("//"):
            return fallback
        try:
            endpoint, values = self._adapter.match(path, method="GET")
        except HTTPException:
            return fallback
        return self.url(endpoint, **values) + (f"?{query}" if query else "")

    # Answers

    def say(self, text: str, *, well: bool = True) -> None:
        """Tell the visitor on the next page what was done, or why not."""
        self._said = self.dashboard.signer.sealed(f"{'+' if well else '-'}{text}", self.nonce)

    def go(self, address: str) -> Response:
        """Go to another page of ours, after an action."""
        answer = redirect(address, 303)
        if self._said is not None:
            self._set_cookie(answer, SAID_COOKIE, self._said)
        return answer

    def page(self, template: str, /, *, status: int = 200, **values: Any) -> Response:
        """A page, which nobody keeps."""
        said = self.dashboard.signer.opened(self.request.cookies.get(SAID_COOKIE, ""), self.nonce)
        body = self.dashboard.templates.get_template(template).render(
            visit=self, said=said, title=self.dashboard.title, theme=self.theme, **values
        )
        answer = Response(body, status, mimetype="text/html")
        if self.request.cookies.get(CSRF_COOKIE) != self.nonce:
            self._set_cookie(answer, CSRF_COOKIE, self.nonce)
        if SAID_COOKIE in self.request.cookies:
            answer.delete_cookie(SAID_COOKIE, path=self.cookie_path)
        return answer

    @property
    def theme(self) -> str:
        given = self.request.cookies.get(THEME_COOKIE)
        return given if given in THEMES else "auto"

    def set_theme(self, answer: Response, theme: str) -> None:
        if theme not in THEMES:
            raise BadRequest("A theme is auto, light or dark.")
        self._set_cookie(answer, THEME_COOKIE, theme, max_age=365 * 86_400)

    @property
    def cookie_path(self) -> str:
        return f"{self.root}/"

    def _set_cookie(self, answer: Response, name: str, value: str, max_age: int | None = None) -> None:
        answer.set_cookie(
            name,
            value,
            max_age=max_age,
            path=self.cookie_path,
            secure=self.request.is_secure,
            httponly=True,
            samesite="Lax",
        )

    # Payloads

    def shown(self, what: What, value: Any) -> Shown:
        """What a page shows of a payload, after redaction."""
        return shown(self.dashboard.redaction.shown(what, value))

    def error(self, error: dict[str, Any] | None) -> dict[str, Any] | None:
        """An error after redaction, always with its type and its message."""
        hidden = self.dashboard.redaction.shown("error", error)
        if hidden is None:
            return None
        bare: dict[str, Any] = {"type": "", "message": "", "traceback": None, "step_id": None}
        return {**bare, **(cast("dict[str, Any]", hidden) if isinstance(hidden, dict) else {"message": str(hidden)})}


def mount_of(request: Request) -> str:
    """Where the dashboard is mounted, as a URL has it. Behind one slash: after two a browser takes a host's name."""
    path = request.root_path.strip("/")
    return f"/{quote(path)}" if path else ""


def _site(origin: str) -> str | None:
    """The host and port that an Origin header names."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
