"""What a hostile or unlucky visitor may send to a dashboard, and what that costs and shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from test_ui import WORKFLOWS, an_hour_ago, nap, order, work
from visiting import Browser, read
from werkzeug.test import Client, create_environ, run_wsgi_app
from werkzeug.wrappers import Request
from working import rows

from pgworkflows import Inspector, Step, Steps, WorkflowClient, WorkflowEngine, WorkflowRun, workflow
from pgworkflows.cli.exits import Exit
from pgworkflows.cli.program import program
from pgworkflows.ui import Dashboard
from pgworkflows.ui.fields import ABSENT
from pgworkflows.ui.forms import FormMaker
from pgworkflows.ui.serving import serve
from pgworkflows.ui.typed import value_of


@workflow("guardian")
def guardian(step: Step) -> Steps[Any]:
    yield step.invoke_child_workflow("tuck-in", nap)


FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=[*WORKFLOWS, guardian]) as made:
        made.start(worker=False)
        yield made


def token_of(browser: Browser) -> str:
    return browser.see("/help").all("input", name="_token")[0].attributes["value"]


# Bounds -------------------------------------------------------------------------------------------------------------


def test_a_form_of_too_many_fields_or_bytes_is_refused_unread(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(order, {"customer": "ada"}, delay="1 hour").id
    client = Client(Dashboard(engine, actions=True))
    many = b"a&" * 50_001
    for path in ("/theme", "/start", f"/runs/{run}/trigger", "/runs/bulk", "/schedules/pause"):
        assert client.post(path, data=many, content_type=FORM).status_code == 413, path
    long = b"_token=" + b"x" * 300_000
    for path, status in {
        "/theme": 413,
        "/runs/bulk": 413,
        "/schedules/pause": 413,
        f"/runs/{run}/cancel": 413,
        f"/runs/{run}/start-again": 413,
        # These carry payloads.
        "/start": 403,
        f"/runs/{run}/trigger": 403,
        f"/runs/{run}/fast-forward": 403,
    }.items():
        assert client.post(path, data=long, content_type=FORM).status_code == status, path
    assert client.post("/start", data=long * 30, content_type=FORM).status_code == 413


def test_a_form_is_read_after_its_sender_was_let_in(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(order, {"customer": "ada"}, delay="1 hour").id
    read: list[bool] = []

    def authorize(request: Request, action: str, run: WorkflowRun | None) -> bool:
        read.append("form" in vars(request))
        return action == "view" and run is not None

    client = Client(Dashboard(engine, actions=True, authorize=authorize))
    for path in ("/start", f"/runs/{run}/trigger", f"/runs/{run}/cancel", "/runs/bulk", "/schedules/pause"):
        assert client.post(path, data=b"a&" * 50_001, content_type=FORM).status_code == 403, path
    assert read == [False] * 7


def test_bulk_looks_at_a_bounded_number_of_runs_whoever_may_see_them(
    engine: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgworkflows.ui.runs.PAGE", 2)
    monkeypatch.setattr("pgworkflows.ui.runs.PAGES_AT_ONCE", 3)
    monkeypatch.setattr("pgworkflows.ui.runs.AT_ONCE", 4)
    runs = [str(run.id) for run in engine.start_workflows(order, [{"customer": "a"}] * 8, delay="1 hour")]
    asked: list[UUID] = []

    def authorize(request: Request, action: str, run: WorkflowRun | None) -> bool:
        if run is not None:
            asked.append(run.id)
        return run is None

    browser = Browser(Dashboard(engine, actions=True, authorize=authorize))
    token = token_of(browser)
    browser.post("/runs/bulk", {"_token": token, "action": "cancel", "matching": "1"})
    assert browser.said == "0 runs cancelled. There may be more: one form does at most 4, and looks at 6."
    assert len(set(asked)) == 6
    asked.clear()
    browser.post("/runs/bulk", {"_token": token, "action": "cancel", "run": runs})
    assert "There may be more" in browser.said
    assert asked[:4] == [UUID(run) for run in runs[:4]]
    assert not set(asked[:5]) & {UUID(run) for run in runs[4:7]}


NO_SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": 1}},
    {"type": "object", "properties": {"a": {}}, "required": 5},
    {"$ref": "#/$defs/A", "$defs": []},
    {"anyOf": [1, 2]},
    {"type": "string", "maxLength": "x"},
    {"type": "string", "format": {"a": 1}},
    {"type": "array", "items": {"anyOf": [1]}},
    {"type": "object", "properties": {"a": {"default": "\ud800"}}},
]


@pytest.mark.parametrize("schema", NO_SCHEMAS, ids=str)
def test_what_is_no_schema_makes_a_field_for_json(schema: Any) -> None:
    for made in (FormMaker(schema).of_value({"a": 7}), FormMaker(schema).of_form({"json:": '{"a": 7}'})):
        assert value_of(made) == {"a": 7}
    maker = FormMaker(schema)
    maker.add_item(maker.of_value(ABSENT), "")


def test_numbers_and_names_that_no_database_holds_are_refused(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(order, {"customer": "ada"}, delay="1 hour").id
    browser = Browser(Dashboard(engine, actions=True))
    for path, status in {
        f"/runs/{run}/steps/{'9' * 20}/output": 404,
        f"/runs/{run}/steps/{'9' * 5000}/output": 404,
        f"/runs/{run}/steps/2147483648/output": 404,
        f"/runs/{run}/steps/2147483647/output": 404,
        f"/runs/{run}/events/{'9' * 18}": 404,
        f"/runs/{run}/events/{'9' * 5000}": 404,
        "/?workflow=%00": 400,
        "/activity.json?workflow=%00": 400,
        f"/activity.json?workflow={'x' * 300}": 400,
    }.items():
        assert browser.open(path).status_code == status, path
    for host in ("xn--", "xn--a.xn--", "\xff", f"{'a' * 64}.example"):
        for names in (None, ["localhost"]):
            environ = {**create_environ("/help"), "HTTP_HOST": host}
            _, line, _ = run_wsgi_app(Dashboard(engine, trusted_hosts=names), environ)
            assert line[:3] in {"200", "400"}, host
    token = token_of(browser)
    answer = browser.post("/theme", {"_token": token, "theme": "dark"}, headers={"Origin": "http://["})
    assert answer.status_code == 403


def test_no_mount_and_no_path_leads_to_another_host(engine: WorkflowEngine) -> None:
    dashboard = Dashboard(engine, actions=True)
    for mount in (
        "//evil.example",
        "///evil.example/",
        "/\\evil.example",
        "/a\r\nSet-Cookie: b=c",
        "javascript:alert(1)//",
    ):
        environ = {**create_environ("/runs"), "SCRIPT_NAME": mount}
        body, line, headers = run_wsgi_app(dashboard, environ, buffered=True)
        assert line == "200 OK", mount
        page = read(b"".join(body).decode())
        names = ("href", "src", "action", "hx-get")
        addresses = {each.attributes[name] for each in page.walk() for name in names if name in each.attributes}
        addresses.discard("#main")
        assert addresses
        for address in addresses:
            assert re.fullmatch(r"/[^/\\].*", address), (mount, address)
        assert not any("\r" in value or "\n" in value for _, value in headers)
    for path in ("//runs", "///evil.example/runs", "//evil.example"):
        page = read(Client(dashboard).get(path, base_url="http://dash.example/").text)
        told = [each.attributes.get("hx-get", "/") for each in page.walk()]
        assert not [address for address in told if address.startswith("//")], path


def test_a_thousand_children_and_five_thousand_events_are_told_to_be_more(engine: WorkflowEngine) -> None:
    parent = engine.start_workflow(guardian, delay="1 hour").id
    children = [run.id for run in engine.start_workflows(nap, [None] * 1001, delay="1 hour")]
    rows(
        engine.conninfo,
        "update pgworkflows.runs set parent_run_id = %s, parent_step_id = id::text where id = any (%s)",
        parent,
        children,
    )
    rows(
        engine.conninfo,
        "insert into pgworkflows.events (run_id, name, data) select %s, 'bell', '{}' from generate_series(1, 5000)",
        parent,
    )
    page = Browser(Dashboard(engine)).see(f"/runs/{parent}")
    text = " ".join(page.text.split())
    assert "The first 1 000. All of them, the newest first" in text
    assert "The oldest 1 000; there may be more." in text
    assert f"/runs?parent={parent}" in [each.attributes["href"] for each in page.all("a")]


# What is shown, and to whom -----------------------------------------------------------------------------------------


def test_the_data_of_an_event_is_redacted_as_such_also_where_a_wait_has_taken_it(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(order, {"customer": "ada"}).id
    work(engine)
    engine.trigger_event(run, "clicked", {"secret": "of the event"})
    work(engine)
    position = next(
        each.step.position for each in Inspector(engine).get_timeline(run).entries if each.step.step_id == "await-click"
    )

    def hide(what: str, value: Any) -> Any:
        return "hidden" if what == "event" or (what == "output" and "click" in value) else value

    browser = Browser(Dashboard(engine, redact=hide))
    for path in (f"/runs/{run}", f"/runs/{run}/steps/{position}/output"):
        answer = browser.open(path)
        assert "hidden" in answer.text
        assert "of the event" not in answer.text


def test_relatives_that_a_visitor_may_not_view_are_not_on_a_runs_page(engine: WorkflowEngine) -> None:
    parent = engine.start_workflow(guardian).id
    work(engine)
    [child] = engine.get_runs(workflow_id="nap").items

    def only(workflow_id: str) -> Browser:
        return Browser(
            Dashboard(engine, authorize=lambda _, action, run: run is None or run.workflow_id == workflow_id)
        )

    for one, other, words in ((parent, child.id, "1 is not shown"), (child.id, parent, "may not view")):
        workflow_id = engine.get_run(one).workflow_id
        page = only(workflow_id).see(f"/runs/{one}")
        assert words in page.text
        assert str(other) not in only(workflow_id).open(f"/runs/{one}").text
        assert "Waits for its child " in " ".join(page.text.split()) or one == child.id
        assert str(other) in Browser(Dashboard(engine, authorize=lambda *_: True)).see(f"/runs/{one}").text


def test_of_runs_that_a_visitor_may_not_view_neither_their_keys_nor_their_number_is_told(
    engine: WorkflowEngine,
) -> None:
    theirs = engine.start_workflow(
        order, {"customer": "a"}, resource_id="theirs", idempotency_key="k", delay="1 hour"
    ).id
    browser = Browser(
        Dashboard(engine, actions=True, authorize=lambda _, action, run: run is None or run.resource_id != "theirs")
    )
    browser.see("/start?workflow=order")
    given = {"f:/customer": "a", "option:idempotency_key": "k"}
    answer = browser.send("/start", "start", **given, **{"option:resource_id": "mine"})
    assert answer.status_code == 422
    assert "Another run is in the way" in browser.said
    assert str(theirs) not in answer.text
    assert "theirs" not in answer.text
    assert "No run that matches can be cancelled" in browser.see("/runs/bulk?action=cancel").text
    engine.start_workflows(order, [{"customer": "a"}] * 2, delay="1 hour")
    assert "2 runs would be cancelled" in " ".join(browser.see("/runs/bulk?action=cancel").text.split())


def test_a_run_that_a_visitor_may_not_view_is_named_nowhere(engine: WorkflowEngine) -> None:
    """Neither by its schedule, nor as an example of what is stuck, nor as what a repeated start answers with."""
    theirs = engine.start_workflow(order, {"customer": "a"}, resource_id="theirs", idempotency_key="k").id
    work(engine)
    engine.trigger_schedule("nap")
    [last] = engine.get_runs(workflow_id="nap").items
    stuck = engine.start_workflow("nap", queue="nobody").id
    an_hour_ago(engine, stuck)
    rows(engine.conninfo, "update pgworkflows.schedules set last_run_id = %s", last.id)
    everybody = Browser(Dashboard(engine, actions=True))
    some = Browser(Dashboard(engine, actions=True, authorize=lambda _, action, run: run is None or action != "view"))
    for page, run in (("/", stuck), ("/", last.id), ("/schedules", last.id)):
        assert str(run) in everybody.open(page).text
        assert str(run) not in some.open(page).text
    assert "Stuck" in some.see("/").text
    for browser, told in ((everybody, f"Nothing was started: run {theirs} has"), (some, "Another run is in the way")):
        browser.see("/start?workflow=order")
        given = {"f:/customer": "a", "option:idempotency_key": "k", "option:resource_id": "theirs"}
        answer = browser.send("/start", "start", **given)
        assert told.casefold() in browser.said.casefold()
        assert (str(theirs) in answer.text) is (browser is everybody)
    assert some.answer.status_code == 422
    some.see("/start?workflow=nap")
    some.send("/start", "start")
    assert some.said == "Started a run that you may not view."
    assert some.path == "/start"
    some.see("/schedules")
    some.send("/schedules/trigger")
    assert some.said == "Schedule 'nap': started a run that you may not view."


def test_who_may_look_at_nothing_does_not_learn_which_runs_there_are(engine: WorkflowEngine) -> None:
    run = engine.start_workflow(order, {"customer": "ada"}, delay="1 hour").id
    browser = Browser(Dashboard(engine, authorize=lambda *_: False))
    assert [browser.open(f"/runs/{each}").status_code for each in (run, uuid4())] == [403, 403]
    browser = Browser(Dashboard(engine, authorize=lambda _, action, run: run is None))
    assert [browser.open(f"/runs/{each}").status_code for each in (run, uuid4())] == [403, 404]


def in_place(what: str, value: Any) -> Any:
    value["extra"]["card"] = "[hidden]"
    return value


@pytest.mark.parametrize(
    "redact", [in_place, lambda what, value: {**value, "extra": {"card": 7}}], ids=["in place", "a new value"]
)
def test_an_input_is_not_started_while_a_part_of_it_is_as_it_was_hidden(engine: WorkflowEngine, redact: Any) -> None:
    run = engine.start_workflow(order, {"customer": "ada", "extra": {"card": "4242"}}, delay="1 hour").id
    browser = Browser(Dashboard(engine, actions=True, redact=redact))
    browser.see(f"/start?workflow=order&from={run}")
    assert "Parts of that run's input are hidden" in browser.said
    for given in ({}, {"f:/customer": "grace"}):
        answer = browser.send("/start", "start", **given)
        assert answer.status_code == 422
        assert "replace what is hidden" in browser.said
    assert "4242" not in answer.text
    browser.send("/start", "start", **{"json:/extra": '{"card": "5454"}'})
    assert browser.said.startswith("Started run")
    newest = engine.get_runs().items[0]
    assert newest.input["customer"] == "grace"
    assert newest.input["extra"] == {"card": "5454"}


def test_why_a_stored_input_is_refused_is_hidden_as_errors_are(engine: WorkflowEngine) -> None:
    run = WorkflowClient(engine.conninfo).start_workflow("order", {"customer": "ada", "size": "huge"}).id
    for redact, words in ((None, "does not fit Order"), (lambda what, value: what, "error")):
        browser = Browser(Dashboard(engine, actions=True, redact=redact))
        browser.see(f"/runs/{run}")
        browser.send(f"/runs/{run}/start-again")
        assert words in browser.said
        assert ("Order" in browser.said) is (redact is None)


# What an action says ------------------------------------------------------------------------------------------------


def test_what_an_action_said_fits_its_cookie_and_is_for_its_browser_alone(engine: WorkflowEngine) -> None:
    dashboard = Dashboard(engine, actions=True)
    ours, theirs = Browser(dashboard), Client(dashboard)
    data = {"_token": token_of(ours), "workflow": "\N{BEAR FACE}" * 256}
    ours.post("/schedules/pause", data)
    assert "\N{BEAR FACE}" * 256 in ours.said
    for text in ("\N{BEAR FACE}" * 3000, '"' * 9000, "\ud800"):
        cookie = dashboard.signer.sealed(text, "n")
        assert len(cookie) < 4000
        opened = dashboard.signer.opened(cookie, "n")
        assert opened
        assert text.startswith(opened) or opened == "?"
        assert dashboard.signer.opened(cookie, "m") is None
    theirs.get("/help")
    theirs.set_cookie("pgworkflows-said", dashboard.signer.sealed("+send money", "n"), domain="localhost")
    assert "send money" not in theirs.get("/help").text


# Alone --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "ops.example.com"])
def test_alone_it_does_not_act_under_any_name(engine: WorkflowEngine, host: str) -> None:
    unnamed: list[dict[str, Any]] = [{}, {"trusted_hosts": []}, {"trusted_hosts": None}]
    for names in unnamed:
        with pytest.raises(ValueError, match="must be told the names it answers to"):
            serve(engine, host=host, port=0, actions=True, **names)
    done = CliRunner().invoke(program, ["--url", engine.conninfo, "ui", "--host", host, "--port", "0", "--actions"])
    assert done.exit_code == Exit.REFUSED
    assert "--trusted-host" in done.output


def test_a_page_of_huge_payloads_shows_their_beginnings(engine: WorkflowEngine) -> None:
    run = engine.start_workflow("echo", "\u202ehuge" + "y" * 1_000_000).id
    work(engine)
    page = Browser(Dashboard(engine)).see(f"/runs/{run}")
    assert "The beginning of 1\u202f000\u202f007 characters" in page.text
    assert "\\u202ehuge" in page.text
    assert len(page.text) < 100_000


@pytest.mark.parametrize("options", [{}, {"redact": ["text"]}, {"redact": lambda what, value: "hidden"}])
def test_huge_payloads_of_steps_and_events_are_links_which_hide_what_is_hidden(
    engine: WorkflowEngine, options: dict[str, Any]
) -> None:
    huge = {"text": "secret" * 20_000}
    run = engine.start_workflow("echo", huge).id
    engine.trigger_event(run, "news", huge)
    work(engine)
    browser = Browser(Dashboard(engine, **options))
    page = browser.see(f"/runs/{run}")
    links = [each.attributes["href"] for each in page.all("a") if each.text == "The whole"]
    [event] = [link for link in links if "/events/" in link]
    output = f"/runs/{run}/steps/0/output"
    assert output in links
    assert "secret" not in " ".join(each.text for each in page.all("table"))
    for link in (output, event):
        assert ("secret" in browser.open(link).text) == (not options)
