"""The dashboard as a WSGI application: from a request to the view that answers it, and to words where none can."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from werkzeug.exceptions import HTTPException, InternalServerError, NotFound, ServiceUnavailable
from werkzeug.utils import send_from_directory
from werkzeug.wrappers import Request, Response

from pgworkflows.client import WorkflowClient
from pgworkflows.errors import ConfigurationError, WorkflowRunNotFoundError
from pgworkflows.failures import outline
from pgworkflows.inspection import Inspector
from pgworkflows.runs import WorkflowRun
from pgworkflows.ui import wording
from pgworkflows.ui.headers import protect
from pgworkflows.ui.redaction import Redact, Redaction
from pgworkflows.ui.routes import MAP, ROUTES, Route
from pgworkflows.ui.signing import Signer
from pgworkflows.ui.visit import Visit, Visitor, mount_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Authorize: TypeAlias = Callable[[Request, str, WorkflowRun | None], bool]

HERE = Path(__file__).parent
STATIC = HERE / "static"


class Dashboard:
    """Shows the runs, schedules and workers of a client's schema, and with `actions=True` steers them: a WSGI
    application for any server, below any path.

    `authorize(request, action, run)` is asked for every page and every action, and anything but True means no; `run` is
    None where it is about no single run. `action` is "view", or "start", "trigger", "pause", "resume", "cancel",
    "retry", "fast_forward", "pause_schedule", "resume_schedule", "trigger_schedule". Without it everybody may who gets
    there. `redact` hides parts of payloads: names of keys whose values are masked, or a function of `what` ("input",
    "output", "error", "event") and the value that gives what is shown instead. Forms are signed with `secret_key`,
    which all processes that serve the dashboard share; without one it is made up. `trusted_hosts` are the host names it
    answers to; None is all.
    """

    def __init__(
        self,
        client: WorkflowClient,
        *,
        actions: bool = False,
        authorize: Authorize | None = None,
        redact: Redact | None = None,
        title: str = "pgworkflows",
        secret_key: str | bytes | None = None,
        trusted_hosts: Iterable[str] | None = None,
    ) -> None:
        if not isinstance(cast(object, client), WorkflowClient):
            raise TypeError(f"a dashboard is made of a client or an engine, not of {type(client).__name__}")
        if authorize is not None and not callable(authorize):
            raise TypeError(f"authorize must be a function, not {type(authorize).__name__}")
        self.client = client
        self.inspector = Inspector(client)
        self.actions = actions is True
        self.authorize = authorize
        self.redaction = Redaction(redact)
        self.title = title
        self.signer = Signer(secret_key)
        self._trusted_hosts = None if trusted_hosts is None else [*trusted_hosts]
        self.templates = _templates()
        self.version = _version()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Visitor(environ)
        request.trusted_hosts = self._trusted_hosts
        return self._answered(request)(environ, start_response)

    def at(self, prefix: str) -> WSGIApplication:
        """This dashboard for a view of an application's own that is asked for everything below `prefix`, such as
        "/workflows": what a view of Flask's may return."""
        root = prefix.rstrip("/")

        def below(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if root and not f"{path}/".startswith(f"{root}/"):
                return protect(Response("Not found", 404))(environ, start_response)
            moved = {**environ, "SCRIPT_NAME": environ.get("SCRIPT_NAME", "") + root, "PATH_INFO": path[len(root) :]}
            return self(moved, start_response)

        return below

    def _answered(self, request: Visitor) -> Response:
        try:
            # No redirect is ever made of a host name that a request brings along.
            adapter = MAP.bind(request.host or "localhost", mount_of(request) or "/", path_info=request.path)
        except HTTPException:
            return protect(Response("This dashboard does not answer to that host name.\n", 400))
        visit = Visit(self, request, adapter)
        try:
            endpoint, values = adapter.match(method=request.method)
            visit.endpoint = endpoint
            if endpoint == "static":
                return _static(request, **values)
            return protect(_asked(visit, ROUTES[endpoint], values))
        except Exception as error:  # whatever it is, a browser wants an answer
            return protect(self._excuse(visit, error))

    def _excuse(self, visit: Visit, error: Exception) -> Response:
        """A page that says what went wrong."""
        excuse = _as_http(error)
        if isinstance(excuse, ServiceUnavailable):
            self.client.logger.warning("the dashboard cannot use the database: %s", error)
        if isinstance(excuse, InternalServerError):
            self.client.logger.error("the dashboard failed: %s", outline(error))
        if excuse.response is not None:
            # The application's own answer, say a redirect to its log-in.
            return Response.force_type(cast(Response, excuse.response), visit.request.environ)
        status = excuse.code or HTTPStatus.INTERNAL_SERVER_ERROR
        answer = visit.page(
            "error.html", status=status, heading=HTTPStatus(status).phrase, explanation=excuse.description or ""
        )
        for name, value in excuse.get_headers(visit.request.environ):
            if name not in {"Content-Type", "Content-Length"}:
                answer.headers[name] = value
        return answer


def _asked(visit: Visit, route: Route, values: Mapping[str, Any]) -> Response:
    """The view's answer, if this visitor may have it."""
    form = visit.request.method == "POST"
    if form:
        visit.check_sender()
        visit.request.max_content_length = route.max_form
    given = dict(values)
    if route.run_action is not None:
        if form and not visit.dashboard.actions:
            visit.require(route.run_action)
        try:
            run = given["run"] = visit.client.get_run(given.pop("run_id"))
        except WorkflowRunNotFoundError:
            visit.require("view")  # whoever may look at nothing learns not even that
            raise
        visit.require("view", run)
        visit.require(route.run_action, run)
    elif route.action is not None:
        visit.require(route.action)
    if form:
        # Last: it reads the form, which may be long. Who may not send one has nothing read.
        visit.check_form()
    return route.view(visit, **given)


def _as_http(error: Exception) -> HTTPException:
    match error:
        case HTTPException():
            return error
        case WorkflowRunNotFoundError():
            return NotFound(str(error))
        case ConfigurationError():
            # Whoever asks, also somebody without any right, is not told which database that is.
            return ServiceUnavailable(
                "The database cannot be used now: it is away, or lacks what pgworkflows migrate makes there. The log "
                "of this dashboard's process says why."
            )
        case _:
            return InternalServerError("The dashboard failed. The log of its process says where.")


def _static(request: Request, path: str) -> Response:
    """A file of ours, which browsers keep: its address changes with the version."""
    answer = send_from_directory(STATIC, path, request.environ, max_age=30 * 86_400)
    return protect(answer, keep=True)


@cache
def _version() -> str:
    """A name for our files as they are: browsers keep them under it."""
    content = hashlib.sha256()
    for file in sorted(STATIC.rglob("*.*")):
        content.update(file.read_bytes())
    return content.hexdigest()[:12]


@cache
def _templates() -> Environment:
    """The templates, which all dashboards of this process share."""
    found = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("plain", "moment", "iso", "duration", "number", "percent"):
        found.filters[name] = getattr(wording, name)  # pyright: ignore[reportUnknownMemberType]  # Jinja's
    return found
