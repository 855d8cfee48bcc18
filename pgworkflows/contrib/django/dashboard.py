"""The dashboard among a Django project's URLs, for its users (extras `django` and `ui`):

    urlpatterns = [path("workflows/", include(dashboard_urls(actions=True)))]

Whoever is not logged in is asked to. Permissions, those of the admin and two more, say who may look and do what.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.http.request import RawPostDataException
from django.middleware.csrf import get_token
from django.urls import URLPattern, path
from django.utils.crypto import salted_hmac
from werkzeug.wrappers import Request, Response

from pgworkflows.contrib.django.engines import engine
from pgworkflows.runs import WorkflowRun
from pgworkflows.ui import Dashboard
from pgworkflows.ui.visit import HOST_FIELDS

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

USER = "pgworkflows.django.user"
"""In the WSGI environment: Django's user."""


def dashboard_urls(
    using: str | None = None,
    *,
    login_url: str | None = None,
    authorize: Callable[[Request, str, WorkflowRun | None], bool] | None = None,
    **options: Any,
) -> list[URLPattern]:
    """What `include` takes, anywhere among the URLs: the dashboard of the database `using`, as `engine` finds it.

    `options` are those of `Dashboard`. An `authorize` of one's own takes the place of `permitted`; it finds Django's
    user in `request.environ[USER]`. `login_url` is LOGIN_URL where it is left out.
    """

    @cache
    def dashboard() -> Dashboard:
        # Not before the first request: the URLs are read while the project is still being set up.
        options.setdefault("secret_key", salted_hmac(__name__, "forms", algorithm="sha256").hexdigest())
        return Dashboard(engine(using), authorize=authorize or permitted, **options)

    def show(request: HttpRequest, rest: str) -> HttpResponse:
        user: Any = request.user
        if not user.is_authenticated:
            return redirect_to_login(request.get_full_path(), login_url)
        if authorize is None and not user.has_perm("pgworkflows.view_run"):
            raise PermissionDenied("You may not look at runs here.")
        return _as_djangos(Response.from_app(dashboard(), _environment(request, rest), buffered=True))

    return [
        path("", show, {"rest": ""}, name="pgworkflows-dashboard"),
        path("<path:rest>", show),
    ]


def permitted(request: Request, action: str, run: WorkflowRun | None) -> bool:
    """Whether Django's user has the permission for an action, such as `pgworkflows.pause_run`."""
    name = action if action.endswith("_schedule") else f"{action}_run"
    return bool(request.environ[USER].has_perm(f"pgworkflows.{name}"))


def _environment(request: HttpRequest, rest: str) -> WSGIEnvironment:
    """The request as WSGI has it, also where the server speaks ASGI: what comes before `rest` is the dashboard's root.
    Host and scheme are what Django's settings make of a proxy's headers."""
    root = request.path.removesuffix(rest).rstrip("/")
    try:
        body = request.body
    except RawPostDataException:
        body = b""  # an upload that a middleware has read: no form of the dashboard's
    return {
        **{name: value for name, value in request.META.items() if isinstance(value, str)},
        "SCRIPT_NAME": _wsgi(root),
        "PATH_INFO": _wsgi(f"/{rest}"),
        "HTTP_HOST": request.get_host(),
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": request.scheme or "http",
        "wsgi.input": BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        HOST_FIELDS: {"csrfmiddlewaretoken": get_token(request)},
        USER: request.user,
    }


def _wsgi(text: str) -> str:
    """Text as WSGI has it: bytes that look like characters."""
    return text.encode().decode("latin-1")


def _as_djangos(answer: Response) -> HttpResponse:
    given = HttpResponse(answer.get_data(), status=answer.status_code)
    for name, value in answer.headers:
        if name == "Set-Cookie":
            given.cookies.load(value)
        else:
            given[name] = value
    return given
