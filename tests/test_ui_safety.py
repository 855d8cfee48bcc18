"""The dashboard is safe as it comes: what it sends, what it refuses, whom it asks, and what it hides."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

import pytest
from test_ui import WORKFLOWS, crawled, fail, family, nap, order, work
from visiting import Browser
from werkzeug.exceptions import Unauthorized, abort
from werkzeug.test import Client
from werkzeug.utils import redirect
from werkzeug.wrappers import Request
from working import rows

from pgworkflows import WorkflowClient, WorkflowEngine, WorkflowRun
from pgworkflows.ui import Dashboard
from pgworkflows.ui.routes import ROUTES

SECRET = "hunter2 of the run"


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=WORKFLOWS) as made:
        made.start(worker=False)
        yield made


def waiting(engine: WorkflowEngine) -> UUID:
    run = engine.start_workflow(order, {"customer": "lovelace"}).id
    work(engine)
    return run


def nothing_was_done(engine: WorkflowEngine, run: UUID) -> bool:
    """Whether only that run is there, as `waiting` left it."""
    left = rows(engine.conninfo, "select id, status::text from pgworkflows.runs")
    events = rows(engine.conninfo, "select from pgworkflows.events")
    paused = rows(engine.conninfo, "select from pgworkflows.schedules where paused_at is not null")
    return (left, events, paused) == ([(run, "waiting")], [], [])


ACTIONS = [endpoint for endpoint, route in ROUTES.items() if "POST" in route.methods and endpoint != "theme"]
FORM = {
    "event": "clicked",
    "workflow": "nap",
    "do": "start",
    "json:": "null",
}


def form_of(endpoint: str, run: UUID) -> dict[str, str]:
    """A form that would do something there."""
    return FORM if endpoint != "act_on_runs" else {"action": "cancel", "run": str(run)}


def path_of(endpoint: str, run: UUID) -> str:
    """An address that the endpoint answers to."""
    path = ROUTES[endpoint].path.replace("<uuid:run_id>", str(run)).replace("<number:number>", "1")
    path = re.sub(r"<any\((\w+).*?>", r"\1", re.sub("<number.*?:position>", "0", path))
    return f"{path}?action=cancel" if endpoint == "bulk" else path


# What it sends ------------------------------------------------------------------------------------------------------


def test_every_answer_forbids_what_its_page_never_asks_of_a_browser(engine: WorkflowEngine) -> None:
    run = waiting(engine)
    client = Client(Dashboard(engine, actions=True))
    paths = [path_of(endpoint, run) for endpoint, route in ROUTES.items() if "GET" in route.methods]
    for path in [*paths, "/nothing", "/static/ui.css", "/static/none.css"]:
        answer = client.get(path, buffered=True)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "form-action 'self'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        stored = "max-age" if answer.status_code == 200 and path.startswith("/static/") else "no-store"
        assert stored in answer.headers["Cache-Control"], path


def test_cookies_are_for_this_dashboard_and_not_for_scripts(engine: WorkflowEngine) -> None:
    for base, secure in (("http://dash.example/deep", False), ("https://dash.example/deep", True)):
        [cookie] = Client(Dashboard(engine)).get("/", base_url=base).headers.getlist("Set-Cookie")
        assert {"HttpOnly", "Path=/deep/", "SameSite=Lax"} <= set(cookie.split("; "))
        assert ("Secure" in cookie) is secure


# Reading only -------------------------------------------------------------------------------------------------------


def test_as_it_comes_a_dashboard_only_shows(engine: WorkflowEngine) -> None:
    run = waiting(engine)
    browser = Browser(Dashboard(engine))
    for path, html in crawled(browser).items():
        assert set(re.findall('method="post" action="(.*?)"', html)) <= {"/theme"}, path
    browser.see("/")
    token = browser.page.all("input", name="_token")[0].attributes["value"]
    for endpoint in ACTIONS:
        answer = browser.post(path_of(endpoint, run), {**form_of(endpoint, run), "_token": token})
        assert answer.status_code == 403, endpoint
        assert "read-only" in answer.text
    assert browser.open("/start").status_code == 403
    assert nothing_was_done(engine, run)


# Forms of others ----------------------------------------------------------------------------------------------------


FORGED: list[dict[str, Any]] = [
    {"token": ""},
    {"token": "0" * 64},
    {"token": "é"},
    {"token": "another browser's"},
    {"cookie": "x"},
    {"cookie": "A" * 43},
    {"headers": {"Origin": "http://evil.example"}},
    {"headers": {"Origin": "http://dash.example.evil.example"}},
    {"headers": {"Origin": "null"}},
    {"headers": {"Sec-Fetch-Site": "cross-site"}},
    {"headers": {"Sec-Fetch-Site": "same-site"}},
]


def test_a_form_that_is_not_ours_does_nothing(engine: WorkflowEngine) -> None:
    run = waiting(engine)
    dashboard = Dashboard(engine, actions=True)
    for given in FORGED:
        other, browser = Browser(dashboard), Browser(dashboard)
        tokens = [each.see("/").all("input", name="_token")[0].attributes["value"] for each in (browser, other)]
        token = tokens[1] if given.get("token") == "another browser's" else given.get("token", tokens[0])
        if "cookie" in given:
            browser.keep("pgworkflows-csrf", given["cookie"])
        for endpoint in ACTIONS:
            data = {**form_of(endpoint, run), "_token": token}
            answer = browser.post(path_of(endpoint, run), data, headers=given.get("headers", {}))
            assert answer.status_code == 403, (endpoint, given)
    assert nothing_was_done(engine, run)


def test_a_form_is_taken_with_the_origin_that_browsers_send(engine: WorkflowEngine) -> None:
    run = waiting(engine)
    browser = Browser(
        Dashboard(engine, actions=True), **{"Origin": "http://dash.example", "Sec-Fetch-Site": "same-origin"}
    )
    browser.see(f"/runs/{run}")
    browser.send(f"/runs/{run}/pause")
    assert engine.get_run(run).status == "paused"


def test_what_is_no_form_is_refused(engine: WorkflowEngine) -> None:
    run = waiting(engine)
    client = Client(Dashboard(engine, actions=True))
    for options in ({"json": {"a": 1}}, {"data": b"x", "content_type": "text/plain"}, {"data": {"f": (b"", "f")}}):
        assert client.post(f"/runs/{run}/cancel", **options).status_code == 400
    huge = {"data": b"_token=" + b"x" * 9_000_000, "content_type": "application/x-www-form-urlencoded"}
    assert client.post(f"/runs/{run}/cancel", **huge).status_code == 413
    assert nothing_was_done(engine, run)


def test_processes_share_their_forms_by_a_secret_key(engine: WorkflowEngine) -> None:
    run = waiting(engine)
    for keys, status in ((("k" * 20, "k" * 20), 200), (("k" * 20, "j" * 20), 403), ((None, None), 403)):
        one, two = (Dashboard(engine, actions=True, secret_key=key) for key in keys)
        browser = Browser(one)
        browser.see(f"/runs/{run}")
        browser.go_on_with(two)
        answer = browser.send(f"/runs/{run}/fast-forward", data="")
        assert answer.status_code == status
        if status == 200:
            assert "fast-forwarded" in browser.said
        else:
            assert "secret_key" in answer.text
    for key in ("short", "", b""):
        with pytest.raises(ValueError, match="at least 16 characters"):
            Dashboard(engine, secret_key=key)


@pytest.mark.parametrize(
    "back",
    [
        "//evil.example/",
        "https://evil.example/",
        "/\\evil.example",
        "/\t/evil.example",
        "\\\\evil.example",
        "/nothing",
        "javascript:alert(1)",
        "/runs\r\nSet-Cookie: a=b",
        "",
        "runs",
        "/runs/7/cancel",
    ],
)
def test_a_form_leads_back_to_our_own_pages_only(engine: WorkflowEngine, back: str) -> None:
    browser = Browser(Dashboard(engine))
    browser.see("/help")
    browser.send("/theme", theme="dark", _back=back)
    assert browser.path == "/"


def test_nobody_can_put_words_into_our_mouth(engine: WorkflowEngine) -> None:
    browser = Browser(Dashboard(engine))
    for cookie in ("W3RydWUsICJzZW5kIG1vbmV5Il0=.0000", "x", ".", "é"):
        browser.keep("pgworkflows-said", cookie)
        browser.see("/help")
        assert browser.said == ""


NASTY = [
    "\0",
    "%",
    "%s",
    "a" * 5000,
    "\ud800",
    "\u202e",
    "'\"<>&",
    "-1",
    "0",
    "1e9",
    "9" * 30,
    "null",
    "[]",
    "../../etc",
    "é",
]
ASKED = {
    "/runs": ["q", "workflow", "status", "resource", "queue", "parent", "after", "before", "cursor"],
    "/start": ["workflow", "from", "as"],
}
TYPED = ["event", "data", "workflow", "action", "run", "do", "json:", "f:", "f:/customer", "count:", "option:delay"]
TYPED += ["theme", "option:idempotency_key", "option:priority", "_back", "matching", "after"]


def test_whatever_is_asked_for_is_answered_and_not_by_failing(engine: WorkflowEngine) -> None:
    run = waiting(engine)
    browser = Browser(Dashboard(engine, actions=True))
    for path in {path_of(endpoint, run) for endpoint, route in ROUTES.items() if "GET" in route.methods}:
        for name in ASKED.get(path, ["action", "window", "after"]):
            for text in NASTY if path in ASKED else NASTY[:3]:
                query = f"{name}={quote(text, errors='surrogatepass')}"
                answer = browser.open(f"{path}{'&' if '?' in path else '?'}{query}")
                assert answer.status_code in {200, 400, 404}, (path, query, answer.text)
    for text in NASTY:
        given = quote(text, errors="surrogatepass")
        for path in ("/", "/static/", "/runs/", f"/runs/{run}/steps/"):
            assert browser.open(path + given).status_code in {200, 400, 404}, (path, text)
        for name in ("pgworkflows-csrf", "pgworkflows-said", "pgworkflows-theme"):
            assert browser.open("/help", headers={"Cookie": f"{name}={given}; x"}).status_code == 200
    for host in ("", "a b", "<x>", "[::1", "\xff", ":::", "a:b"):
        assert browser.open("/help", headers={"Host": host}).status_code in {200, 400}, host


def test_whatever_a_form_says_is_answered_and_not_by_failing(engine: WorkflowEngine) -> None:
    run = waiting(engine)
    browser = Browser(Dashboard(engine, actions=True))
    browser.see("/")
    token = browser.page.all("input", name="_token")[0].attributes["value"]
    for endpoint in [*ACTIONS, "theme"]:
        for number in range(len(NASTY) if endpoint == "send_start" else 5):
            data = {name: NASTY[(number + place) % len(NASTY)] for place, name in enumerate(TYPED)}
            data |= {"_token": token} | ({"workflow": "order", "do": "start"} if number % 2 else {"action": "pause"})
            body = urlencode(data, errors="surrogatepass")
            answer = browser.post(path_of(endpoint, run), body, content_type="application/x-www-form-urlencoded")
            assert answer.status_code in {200, 400, 422}, (endpoint, data, answer.text)


# Whom it asks -------------------------------------------------------------------------------------------------------


def test_whoever_may_not_view_sees_nothing_and_does_nothing(engine: WorkflowEngine) -> None:
    run = waiting(engine)
    asked: list[tuple[str, UUID | None]] = []

    def authorize(request: Request, action: str, run: WorkflowRun | None) -> bool:
        asked.append((action, None if run is None else run.id))
        return False

    browser = Browser(Dashboard(engine, actions=True, authorize=authorize))
    browser.open("/help")
    token = browser.page.all("input", name="_token")[0].attributes["value"]
    for endpoint, route in ROUTES.items():
        if endpoint in {"help", "theme"}:
            continue
        asked.clear()
        path = path_of(endpoint, run)
        if "GET" in route.methods:
            answer = browser.open(path)
        else:
            answer = browser.post(path, {**form_of(endpoint, run), "_token": token})
        assert answer.status_code == 403, endpoint
        assert asked, endpoint
        assert "4242" not in answer.text
        assert "lovelace" not in answer.text
    assert nothing_was_done(engine, run)


def test_each_action_is_asked_for_by_its_name_with_its_run(engine: WorkflowEngine) -> None:
    run = waiting(engine)
    allowed: set[str] = {"view"}
    browser = Browser(Dashboard(engine, actions=True, authorize=lambda _, action, __: action in allowed))
    page = browser.see(f"/runs/{run}")
    assert [form.attributes["action"] for form in page.all("form", method="post")] == ["/theme"]
    token = page.all("input", name="_token")[0].attributes["value"]
    names = {
        "act_on_runs": "cancel",
        "send_start": "start",
        "start_again": "start",
    }
    for endpoint in ACTIONS:
        needed = names.get(endpoint, endpoint)
        allowed = {"view", *names.values(), *ACTIONS} - {needed}
        answer = browser.post(path_of(endpoint, run), {**form_of(endpoint, run), "_token": token})
        if endpoint == "act_on_runs":
            assert browser.said == "0 runs cancelled. 1 not: you may not do that to them"
        else:
            assert answer.status_code == 403, endpoint
            assert f"You may not {needed.replace('_', ' ')}" in answer.text
    assert nothing_was_done(engine, run)


def test_runs_that_a_visitor_may_not_view_are_in_no_list(engine: WorkflowEngine) -> None:
    runs = engine.start_workflows(order, [{"customer": "a"}] * 3, delay="1 hour")
    mine, others = runs[0].id, [str(run.id) for run in runs[1:]]

    def authorize(request: Request, action: str, run: WorkflowRun | None) -> bool:
        return run is None or run.id == mine

    browser = Browser(Dashboard(engine, actions=True, authorize=authorize))
    text = browser.see("/runs").text
    assert str(mine) in text
    assert not [run for run in others if run in text]
    for path in ("", "/input", "/cancel"):
        assert browser.open(f"/runs/{others[0]}{path}").status_code in {403, 405}
    assert browser.open(f"/start?workflow=order&from={others[0]}").status_code == 403
    browser.see("/runs")
    browser.send("/runs/bulk", action="cancel", run=others)
    browser.see("/runs/bulk?action=cancel")
    browser.send("/runs/bulk")
    assert [engine.get_run(run.id).status for run in runs] == ["cancelled", "pending", "pending"]


@pytest.mark.parametrize("answer", [None, 1, "yes", object(), [True]], ids=["None", "1", "text", "object", "list"])
def test_anything_but_true_means_no(engine: WorkflowEngine, answer: Any) -> None:
    assert Browser(Dashboard(engine, authorize=lambda *_: answer)).open("/").status_code == 403


def test_an_authorize_that_fails_lets_nobody_in(engine: WorkflowEngine, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> bool:
        raise RuntimeError(SECRET)

    answer = Browser(Dashboard(engine, authorize=broken)).open("/")
    assert answer.status_code == 500
    assert SECRET not in answer.text + caplog.text
    assert "the dashboard failed: RuntimeError" in caplog.text


def test_an_authorize_can_send_a_visitor_to_log_in(engine: WorkflowEngine) -> None:
    def to_login(*_: object) -> bool:
        abort(redirect("/login", 302))

    def basic(request: Request, *_: object) -> bool:
        if request.authorization is None or request.authorization.password != "open sesame":
            raise Unauthorized(www_authenticate=None)
        return True

    answer = Client(Dashboard(engine, authorize=to_login)).get("/")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/login")
    client = Client(Dashboard(engine, authorize=basic))
    assert client.get("/").status_code == 401
    assert client.get("/", auth=("ada", "open sesame")).status_code == 200


def test_a_dashboard_answers_to_the_names_it_is_given(engine: WorkflowEngine) -> None:
    client = Client(Dashboard(engine, trusted_hosts=["localhost", "127.0.0.1"]))
    for host, status in (
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
    ):
        assert client.get("/help", headers={"Host": host}).status_code == status, host


def test_what_a_dashboard_cannot_be_made_of_is_refused(engine: WorkflowEngine) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"authorize": "yes"}, "authorize must be a function"),
        ({"redact": "password"}, "not one text"),
        ({"redact": ["a", 7]}, "7 is no text"),
        ({"secret_key": 7}, "must be text or bytes"),
    ]
    for options, message in wrong:
        with pytest.raises(TypeError, match=message):
            Dashboard(engine, **options)
    with pytest.raises(TypeError, match="of a client or an engine, not of str"):
        Dashboard("postgresql://")  # type: ignore[arg-type]


# What it hides ------------------------------------------------------------------------------------------------------


def secretive(engine: WorkflowEngine) -> UUID:
    """Runs with a secret in every payload: input, output, step, error, event, schedule."""
    client = WorkflowClient(engine.conninfo)
    value = {"outer": [{"Password": SECRET}], "plain": "seen"}
    run = engine.start_workflow("echo", value).id
    waits = engine.start_workflow(order, {"customer": "c", "extra": value}).id
    work(engine)
    client.trigger_event(waits, "kept", value)
    client.trigger_event(waits, "clicked", value)
    work(engine)
    client.start_workflow("order", {"customer": 7, **value})
    engine.trigger_event(engine.start_workflow(nap, delay="1 hour").id, "kept", value)
    return run


def test_values_of_keys_are_masked_wherever_payloads_are_shown(engine: WorkflowEngine) -> None:
    secretive(engine)
    shown = everything(Browser(Dashboard(engine, actions=True)))
    hidden = everything(Browser(Dashboard(engine, actions=True, redact=["password"])))
    assert shown.count(SECRET) > 20
    assert "seen" in hidden
    assert "•••" in hidden
    assert SECRET not in hidden


def test_a_function_hides_what_it_likes_and_all_when_it_fails(engine: WorkflowEngine) -> None:
    secretive(engine)
    engine.start_workflow(family, SECRET)
    engine.start_workflow(fail, SECRET)
    work(engine)
    asked: set[str] = set()

    def hide(what: str, value: Any) -> Any:
        asked.add(what)
        if what == "output":
            raise RuntimeError(SECRET)
        return {"type": value["type"], "message": "hidden"} if what == "error" else "hidden"

    shown = everything(Browser(Dashboard(engine, actions=True, redact=hide)))
    assert asked == {"input", "output", "error", "event"}
    assert SECRET not in shown
    assert "(hidden: redact raised RuntimeError)" in shown
    assert "ValueError" in shown


def test_a_masked_input_is_started_again_unseen_and_never_as_its_mask(engine: WorkflowEngine) -> None:
    run = secretive(engine)
    browser = Browser(Dashboard(engine, actions=True, redact=["password"]))
    browser.see(f"/start?workflow=echo&from={run}")
    assert "Parts of that run's input are hidden" in browser.said
    before = len(engine.get_runs().items)
    assert browser.send("/start").status_code == 422
    assert "replace what is hidden" in browser.said
    assert len(engine.get_runs().items) == before
    browser.see(f"/runs/{run}")
    browser.send(f"/runs/{run}/start-again")
    assert engine.get_runs().items[0].input == engine.get_run(run).input


def everything(browser: Browser) -> str:
    """All that the pages and the JSON behind them say."""
    return "\n".join(crawled(browser).values())
