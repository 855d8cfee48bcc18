"""The dashboard's pages and actions, asked through WSGI, against a real database."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date
from enum import Enum
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, Field
from visiting import Browser, Element, cells, fields_of, read
from waiting import until
from werkzeug.test import Client
from working import make_due, rows, value, working

from pgworkflows import RunStatus, Step, Steps, Workflow, WorkflowClient, WorkflowEngine, current_step, workflow
from pgworkflows.inspection import Inspector
from pgworkflows.ui import Dashboard


class Size(Enum):
    SMALL = "S"
    LARGE = "L"


class Line(BaseModel):
    sku: str
    count: int = Field(1, ge=1, description="How many of them")


class Order(BaseModel):
    customer: str
    express: bool = False
    size: Size = Size.SMALL
    kind: Literal["gift", "own"] | None = None
    due: date | None = None
    lines: list[Line] = []
    price: float | None = None
    extra: dict[str, Any] = {}


def boom(text: str) -> None:
    raise ValueError(text)


@workflow("order")
def order(step: Step, input: Order) -> Steps[Any]:
    yield step.run("charge", lambda: {"card": "4242", "amount": 3})
    if input.express:
        yield step.run("courier", str)
    click = yield step.wait_for("await-click", "clicked", timeout="3 days")
    yield step.run("close", str)
    return {"click": click}


@workflow("fail")
def fail(step: Step, input: str) -> Steps[Any]:
    yield step.run("explode", boom, input)


@workflow("family")
def family(step: Step, input: str) -> Steps[Any]:
    return (yield step.invoke_child_workflow("bear", fail, input))


@workflow("many")
def many(step: Step, input: int) -> Steps[Any]:
    for number in range(input):
        yield step.run(f"n{number}", int, number)


@workflow("nap", schedule="0 4 * * *")
def nap(step: Step) -> Steps[Any]:
    yield step.delay("sleep", "1 hour")


@workflow("echo")
def echo(step: Step, input: Any) -> Steps[Any]:
    return (yield step.run("say", lambda: input))


def stumble_once() -> None:
    step = current_step()
    if step.step_id == "second-try" and step.attempt == 1:
        raise ConnectionError("the bank does not answer")


@workflow("stumble")
def stumble(step: Step) -> Steps[Any]:
    yield step.run("first-try", stumble_once)
    yield step.run("second-try", stumble_once).retry(attempts=2, wait="1 hour")


BEGUN, DONE = threading.Event(), threading.Event()


def work_until_done() -> bool:
    BEGUN.set()
    return DONE.wait(20)


@workflow("busy")
def busy(step: Step) -> Steps[Any]:
    yield step.run("work", work_until_done)


@workflow("asking")
def asking(step: Step) -> Steps[Any]:
    yield step.pause("ask")


WORKFLOWS: list[Workflow[Any, Any]] = [order, fail, family, many, nap, echo, stumble, busy, asking]


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    """An engine whose workflows are declared."""
    with WorkflowEngine(database_url, workflows=WORKFLOWS) as made:
        made.start(worker=False)
        yield made


@pytest.fixture
def browser(engine: WorkflowEngine) -> Browser:
    """A browser before a dashboard that acts."""
    return Browser(Dashboard(engine, actions=True))


def work(engine: WorkflowEngine) -> None:
    engine.worker().run_until_idle("20s")


def ordered(engine: WorkflowEngine, **input: Any) -> UUID:
    return engine.start_workflow(order, {"customer": "ada", **input}).id


def an_hour_ago(engine: WorkflowEngine, run: UUID) -> None:
    """Let a run have been ready for an hour."""
    rows(
        engine.conninfo,
        "with run as (update pgworkflows.runs set updated_at = now() - interval '1 hour' where id = %s returning id) "
        "update pgworkflows.queue set ready_at = now() - interval '1 hour' from run where run_id = run.id",
        run,
    )


def listed(page: Element) -> list[str]:
    """The runs of a list."""
    return [each.text for each in page.all("a") if each.attributes.get("class") == "id"]


# Reading ------------------------------------------------------------------------------------------------------------


def test_the_overview_shows_numbers_workers_schedules_and_what_is_stuck(
    engine: WorkflowEngine, browser: Browser
) -> None:
    ordered(engine)
    engine.start_workflow(fail, "no")
    work(engine)
    stuck = WorkflowClient(engine.conninfo).start_workflow("nobody", None)
    an_hour_ago(engine, stuck.id)
    with working(engine):
        serving = "select 1 from pgworkflows.workers where workflows <> '{}'"
        until(lambda: rows(engine.conninfo, serving), "the worker says which workflows it has")
        page = browser.see("/")
        [cause] = Inspector(engine).get_stuck()
        pid = value(engine.conninfo, "select pid from pgworkflows.workers")
    workers, schedules, workflows, steps, _ = [cells(table) for table in page.all("table")]
    assert workers[1][0].endswith(f":{pid}")
    assert workers[1][1].startswith("live")
    assert schedules[1][:2] == ["nap", "0 4 * * * UTC"]
    assert ["fail", "1", "1"] in [row[:3] for row in workflows]
    assert ["explode fail", "1", "1"] in [row[:3] for row in steps]
    numbers = " ".join(page.all("ul")[0].text.split())
    assert "1 pending" in numbers
    assert "1 waiting" in numbers
    assert "1 failed100.0 %" in numbers
    assert cause.explanation.partition(", ready")[0] in page.text
    assert cause.remedy in page.text
    assert str(stuck.id) in listed(page)


def test_the_numbers_of_the_plots_are_also_a_table_and_json(engine: WorkflowEngine, browser: Browser) -> None:
    engine.start_workflow(fail, "no")
    work(engine)
    numbers = json.loads(browser.open("/activity.json?window=15+minutes").text)
    assert (sum(numbers["started"]), sum(numbers["failed"]), sum(numbers["completed"])) == (1, 1, 0)
    assert [rate for rate in numbers["failure_rate"] if rate is not None] == [100]
    for name in ("queue_lag", "step_median", "step_p95"):
        [took_s] = [value for value in numbers[name] if value is not None]
        assert 0 <= took_s < 60
    [table] = [each for each in browser.see("/").all("table") if "numbers-table" in each.attributes["class"]]
    assert [sum(int(row[column]) for row in cells(table)[1:]) for column in (1, 2, 3, 4)] == [1, 0, 1, 0]
    assert browser.open("/activity.json?window=1+century").status_code == 400


def test_a_search_that_has_not_come_to_the_end_says_how_far_it_looked(engine: WorkflowEngine, browser: Browser) -> None:
    rows(
        engine.conninfo,
        "insert into pgworkflows.runs (workflow_id, status, error, completed_at) "
        """select 'fail', 'failed', '{"type": "OSError", "message": "full"}', now() from generate_series(1, 1100)""",
    )
    page = browser.see("/runs?q=nowhere")
    assert "Looked at runs back to" in page.text
    [older] = [each for each in page.all("a") if each.attributes.get("rel") == "next"]
    page = browser.see(older.attributes["href"])
    [newer] = [each for each in page.all("a") if each.attributes.get("rel") == "prev"]
    assert "Looked at runs until" in browser.see(newer.attributes["href"]).text


def test_runs_are_filtered_by_what_the_address_says(engine: WorkflowEngine, browser: Browser) -> None:
    mine = engine.start_workflow(order, {"customer": "ada"}, resource_id="customer/7 é", idempotency_key="k 1").id
    failed = engine.start_workflow(fail, "the card was refused").id
    work(engine)
    later = engine.start_workflow(order, {"customer": "bob"}, delay="1 hour").id
    for query, found in {
        "": [later, failed, mine],
        "?workflow=order": [later, mine],
        "?status=failed&status=pending": [later, failed],
        "?resource=customer%2F7+%C3%A9": [mine],
        "?q=k+1": [mine],
        f"?q={failed}": [failed],
        "?q=CARD+refused": [failed],
        "?q=100%25": [],
        "?after=2001-01-01T00:00&before=2001-01-02": [],
        "?after=2001-01-01": [later, failed, mine],
        "?queue=nights": [],
    }.items():
        assert listed(browser.see(f"/runs{query}")) == [str(each) for each in found], query
    [resource] = [each for each in browser.see("/runs").all("a") if each.text == "customer/7 é"]
    assert listed(browser.see(resource.attributes["href"])) == [str(mine)]
    [form] = browser.see("/runs?q=a%22b&workflow=%3Cx%3E").all("form", **{"class": "filters"})
    assert {"q": 'a"b', "workflow": "<x>"}.items() <= fields_of(form).items()


@pytest.mark.parametrize(
    "query",
    [
        "status=odd",
        "after=yesterday",
        "parent=me",
        "cursor=%00",
        "q=%00",
        "workflow=" + 300 * "x",
        "before=9999-12-31T23:59-14:00",
    ],
)
def test_a_filter_that_is_none_is_refused_in_words(browser: Browser, query: str) -> None:
    answer = browser.open(f"/runs?{query}")
    assert answer.status_code == 400
    assert "Bad Request" in browser.page.all("h1")[0].text


def test_pages_of_runs_go_forth_and_back(engine: WorkflowEngine, browser: Browser) -> None:
    made = [str(run.id) for run in engine.start_workflows(echo, range(120), resource_id="a&b")]
    seen = [browser.see("/runs?resource=a%26b")]
    for rel in ("next", "next", "prev", "prev"):
        [link] = seen[-1].all("a", rel=rel)
        seen.append(browser.see(link.attributes["href"]))
    pages = [listed(page) for page in seen]
    assert pages[0] + pages[1] + pages[2] == made[::-1]
    assert pages[3:] == [pages[1], pages[0]]
    assert seen[2].all("a", rel="next") == []


def test_a_run_is_shown_with_its_timeline_and_what_it_waits_for(engine: WorkflowEngine, browser: Browser) -> None:
    run = ordered(engine, express=True)
    work(engine)
    engine.trigger_event(run, "early", {"x": "an early bird"})
    page = browser.see(f"/runs/{run}")
    text = " ".join(page.text.split())
    assert "Waits for event 'clicked' in step await-click" in text
    assert f"pgworkflows trigger {run} clicked" in text
    assert "0 charge run completed 1" in text
    assert re.search(r"2 await-click event clicked wait_for waiting", text)
    assert "courier run, in a branch reached" in text
    assert "close run ahead" in text
    assert "early" in text
    assert "an early bird" in text
    bars = [each for each in page.all("rect") if "mark" not in each.attributes["class"]]
    assert len(bars) == 5  # the time before it, the run, its three steps
    for bar in bars:
        assert float(bar.attributes["x"][:-1]) + float(bar.attributes["width"][:-1]) <= 100.01


def test_a_failure_is_shown_with_its_traceback_its_parent_and_its_child(
    engine: WorkflowEngine, browser: Browser
) -> None:
    parent = engine.start_workflow(family, "<i>no</i>").id
    work(engine)
    [child] = [run for run in engine.get_runs().items if run.parent_run_id == parent]
    page = browser.see(f"/runs/{child.id}")
    assert "ValueError <i>no</i>" in page.text
    assert "raise ValueError(text)" in page.text
    assert page.all("i") == []
    assert str(parent) in listed(page)
    page = browser.see(f"/runs/{parent}")
    assert "ChildWorkflowFailedError" in page.text
    assert listed(page).count(str(child.id)) == 2  # at its step, and among the children


def test_a_branch_that_was_not_taken_is_told_from_what_lies_ahead(engine: WorkflowEngine, browser: Browser) -> None:
    run = ordered(engine)
    work(engine)
    text = " ".join(browser.see(f"/runs/{run}").text.split())
    assert "courier run, in a branch not taken" in text
    assert "close run ahead" in text


def shown(browser: Browser, run: UUID) -> str:
    """What stands on the page of a run, with single blanks."""
    return " ".join(browser.see(f"/runs/{run}").text.split())


def test_a_step_of_several_calls_is_told_from_one_that_took_as_long(engine: WorkflowEngine, browser: Browser) -> None:
    run = engine.start_workflow(stumble).id
    work(engine)
    assert "0 first-try run completed 1" in shown(browser, run)
    assert "1 second-try run retrying 1" in shown(browser, run)
    assert re.search(r"next call 20\d\d-", shown(browser, run))
    make_due(engine.conninfo)
    work(engine)
    assert "2 calls, with the waits between them" in shown(browser, run)
    bars = [each.attributes["class"] for each in browser.page.all("rect")]
    assert [each for each in bars if "several" in each] == ["run completed several", "run completed several mark"]
    assert "To start" not in shown(browser, run)


def test_waits_say_how_they_ended(engine: WorkflowEngine, browser: Browser) -> None:
    late, taken, skipped = (engine.start_workflow(order, {"customer": "ada"}).id for _ in range(3))
    sleeper = engine.start_workflow(nap).id
    work(engine)
    engine.trigger_event(taken, "clicked")
    engine.fast_forward_workflow(skipped, {"x": 1})
    engine.fast_forward_workflow(sleeper)
    work(engine)
    make_due(engine.conninfo)
    work(engine)
    assert "wait_for completed timed out" in shown(browser, late)
    for run in (taken, skipped):
        assert "wait_for completed" in shown(browser, run)
        assert "timed out" not in shown(browser, run)
    assert "0 sleep delay completed fast-forwarded" in shown(browser, sleeper)


def test_a_run_that_has_ended_waits_for_nothing(engine: WorkflowEngine, browser: Browser) -> None:
    run, never = ordered(engine), ordered(engine)
    engine.cancel_workflow(never)
    work(engine)
    rows(engine.conninfo, "update pgworkflows.steps set step_id = 'renamed' where step_id = 'charge'")
    engine.trigger_event(run, "clicked")
    work(engine)
    assert "NonDeterminismError" in shown(browser, run)
    assert "wait_for waiting when the run ended" in shown(browser, run)
    assert "until 20" not in shown(browser, run)
    assert "Startednever" in shown(browser, never)
    assert [each.attributes["class"] for each in browser.page.all("rect")] == ["queued", "queued mark"]


def test_what_a_worker_has_in_hand_is_drawn_until_now(engine: WorkflowEngine, browser: Browser) -> None:
    run = engine.start_workflow(busy).id
    try:
        with working(engine):
            BEGUN.wait(20)
            assert "with a worker" in shown(browser, run)
            assert browser.page.all("rect", **{"class": "running open"})
            DONE.set()
            engine.wait_for_run(run, timeout="20s")
    finally:
        DONE.set()
    assert "with a worker" not in shown(browser, run)


def test_a_step_is_named_once_in_what_a_run_waits_for(engine: WorkflowEngine, browser: Browser) -> None:
    run = engine.start_workflow(asking).id
    work(engine)
    assert "Waits for somebody to resume it, in step 'ask' for" in shown(browser, run)


def test_a_long_timeline_comes_in_parts(
    engine: WorkflowEngine, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgworkflows.ui.run.ENTRIES", 20)
    run = engine.start_workflow(many, 45).id
    work(engine)
    page, steps = browser.see(f"/runs/{run}"), []
    while True:
        steps += [each.text.strip() for each in page.all("td", **{"class": "step"})]
        following = page.all("a", rel="next")
        if not following:
            break
        page = browser.see(following[0].attributes["href"])
    assert steps == [f"n{number}" for number in range(45)]


def test_a_huge_payload_is_cut_and_the_whole_is_a_link_away(engine: WorkflowEngine, browser: Browser) -> None:
    run = engine.start_workflow(echo, {"text": "x" * 300_000, "é": "</pre><script>"}).id
    work(engine)
    page = browser.see(f"/runs/{run}")
    assert len(browser.answer.text) < 100_000
    whole = {each.attributes["href"] for each in page.all("a") if each.text == "The whole"}
    assert whole == {f"/runs/{run}/input", f"/runs/{run}/output", f"/runs/{run}/steps/0/output"}
    for address in whole:
        answer = browser.open(address)
        assert answer.mimetype == "application/json"
        assert json.loads(answer.text) == {"text": "x" * 300_000, "é": "</pre><script>"}
    assert browser.open(f"/runs/{run}/steps/7/output").status_code == 404
    assert browser.open(f"/runs/{run}/events/7").status_code == 404
    assert browser.open(f"/runs/{run}/input/secrets").status_code == 404


@pytest.mark.parametrize("depth", [300, 900])
def test_a_payload_that_is_nested_deeply_is_shown_or_said_to_be(engine: WorkflowEngine, depth: int) -> None:
    nested: Any = "the bottom"
    for _ in range(depth):
        nested = {"a": nested}
    run = engine.start_workflow(echo, nested).id
    for redact in (None, ["password"]):
        browser = Browser(Dashboard(engine, actions=True, redact=redact))
        browser.see(f"/runs/{run}")
        browser.see(f"/start?workflow=echo&from={run}")
        answer = browser.open(f"/runs/{run}/input")
        assert "the bottom" in answer.text or "nested too deeply" in answer.text or "(hidden: redact" in answer.text
        browser.see("/start?workflow=echo")
        browser.send("/start", **{"json:": json.dumps(nested)})
        assert engine.get_runs().items[0].input == nested


def test_what_has_no_run_or_no_page_is_not_found(browser: Browser) -> None:
    assert browser.open(f"/runs/{uuid4()}").status_code == 404
    assert "was not found" in browser.page.text
    for path in (
        "/runs/7",
        "/runs/%2e%2e",
        "/nothing",
        "/static/../visit.py",
        "/static/%2e%2e/visit.py",
        "/static/none.js",
    ):
        assert browser.open(path).status_code == 404, path


def test_other_methods_than_a_page_has_are_refused(engine: WorkflowEngine) -> None:
    run, client = ordered(engine), Client(Dashboard(engine, actions=True))
    for method, path in (
        ("POST", "/runs"),
        ("DELETE", f"/runs/{run}"),
        ("GET", f"/runs/{run}/cancel"),
        ("PUT", "/start"),
    ):
        answer = client.open(path, method=method)
        assert (answer.status_code, "Allow" in answer.headers) == (405, True), path
    overridden = client.post(f"/runs/{run}", data={"_method": "DELETE"}, headers={"X-HTTP-Method-Override": "GET"})
    assert overridden.status_code == 405
    head, get = client.head(f"/runs/{run}"), client.get(f"/runs/{run}")
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert engine.get_run(run).status is RunStatus.PENDING


def test_without_a_database_the_pages_say_so(tmp_path: Path) -> None:
    with WorkflowClient(f"host={tmp_path} connect_timeout=2") as client:
        browser = Browser(Dashboard(client, actions=True))
        for path in ("/", "/runs", f"/runs/{uuid4()}", "/schedules", "/start", "/activity.json"):
            assert browser.open(path).status_code == 503, path
            assert "The database cannot be used now: it is away" in browser.page.text
            assert str(tmp_path) not in browser.answer.text
        assert browser.open("/help").status_code == 200


def test_a_schema_that_was_not_migrated_is_said_in_words(empty_database_url: str) -> None:
    with WorkflowClient(empty_database_url) as client:
        answer = Browser(Dashboard(client)).open("/")
        assert answer.status_code == 503
        assert "migrate" in answer.text


# Where it is mounted ------------------------------------------------------------------------------------------------


def addresses(page: Element) -> Iterator[str]:
    """All that a page leads to, loads or sends forms to."""
    for name in ("href", "src", "hx-get", "data-plot"):
        for tag in ("a", "link", "script", "div"):
            yield from (each.attributes[name] for each in page.all(tag) if name in each.attributes)
    for form in page.all("form"):
        if form.attributes.get("method") != "post":
            yield f"{form.attributes['action']}?{urlencode(fields_of(form))}"


def crawled(browser: Browser, prefix: str = "") -> dict[str, str]:
    """Every address that the pages lead to, with what is there."""
    seen: dict[str, str] = {}
    ahead = [f"{prefix}/"]
    while ahead:
        address = ahead.pop()
        if address in seen or address.startswith("#"):
            continue
        assert address.startswith(f"{prefix}/"), address
        answer = browser.open(address.removeprefix(prefix))
        assert answer.status_code == 200, (address, answer.text)
        seen[address] = answer.text
        if answer.mimetype == "text/html":
            page = browser.page
            ahead += addresses(page)
            assert all(form.attributes["action"].startswith(f"{prefix}/") for form in page.all("form"))
    return seen


def filled(engine: WorkflowEngine) -> None:
    """A little of everything."""
    engine.start_workflow(family, "no", resource_id="a b/c?d#e&f%g")
    waiting = ordered(engine, express=True, lines=[{"sku": "s"}])
    work(engine)
    engine.trigger_event(waiting, "other", {"a": 1})
    engine.start_workflow(nap, delay="1 hour")
    WorkflowClient(engine.conninfo).start_workflow("odd/id?#&%\"'<b>", [1])
    engine.trigger_schedule("nap")


@pytest.mark.parametrize("mount", ["", "/deep/böck office"])
def test_every_address_on_every_page_stays_below_the_mount_and_answers(engine: WorkflowEngine, mount: str) -> None:
    filled(engine)
    prefix = quote(mount)
    seen = crawled(Browser(Dashboard(engine, actions=True), prefix), prefix)
    assert len(seen) > 40
    assert sum(f"{prefix}/runs/" in address for address in seen) > 10


def test_a_view_of_an_application_can_be_the_dashboard(engine: WorkflowEngine) -> None:
    filled(engine)
    mounted = Dashboard(engine, actions=True).at("/work/flows/")
    client = Client(mounted)
    assert client.get("/work/flows").status_code == 200
    assert client.get("/work/flows/runs").status_code == 200
    assert client.get("/work/flowsruns").status_code == 404
    assert client.get("/").status_code == 404
    page = read(client.get("/work/flows/").text)
    assert [each for each in addresses(page) if not each.startswith(("/work/flows/", "#"))] == []


def test_what_somebody_has_stored_is_text_on_every_page(engine: WorkflowEngine) -> None:
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}{% raw %}\u202e&lt;"
    client = WorkflowClient(engine.conninfo)
    run = client.start_workflow(evil, {evil: [evil]}, resource_id=evil, idempotency_key=evil, queue=evil)
    client.trigger_event(run.id, evil, evil)
    failed = engine.start_workflow(fail, evil, resource_id=evil)
    work(engine)
    an_hour_ago(engine, run.id)
    answers = crawled(Browser(Dashboard(engine, actions=True)))
    assert f"/runs/{failed.id}" in answers
    pages = [read(html) for html in answers.values() if html.startswith("<!doctype html>")]
    text = "".join(page.text for page in pages)
    assert text.count("<script>alert(1)</script>") > 20
    assert "\\u202e" in text
    assert "\u202e" not in text
    for page in pages:
        for element in page.all("script") + page.all("img"):
            assert element.attributes["src"].startswith("/static/")
            assert element.text == ""
        assert not {"style", "onclick", "onerror", "onload"} & {
            name for each in page.walk() for name in each.attributes
        }


def test_the_dashboard_serves_itself_to_this_machine(engine: WorkflowEngine) -> None:
    command = [sys.executable, "-m", "pgworkflows", "--url", engine.conninfo, "ui", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            told = process.stderr.readline()
            found = re.search(r"at http://127\.0\.0\.1:(\d+)/, where it only shows", told)
            assert found, told + process.stderr.read()
            for host, status in ((f"localhost:{found[1]}", 200), ("evil.example", 400)):
                connection = HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
                connection.request("GET", "/runs", headers={"Host": host})
                assert connection.getresponse().status == status
                connection.close()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


# Acting -------------------------------------------------------------------------------------------------------------


def test_a_run_is_paused_resumed_cancelled_and_retried(engine: WorkflowEngine, browser: Browser) -> None:
    run = engine.start_workflow(order, {"customer": "ada"}, delay="1 hour").id
    for action, status, said in (
        ("pause", "paused", "paused"),
        ("resume", "pending", "resumed"),
        ("cancel", "cancelled", "cancelled"),
        ("retry", "pending", "retried"),
    ):
        browser.see(f"/runs/{run}")
        assert browser.send(f"/runs/{run}/{action}").status_code == 200
        assert browser.said == f"Run {run}: {said}. It is {status} now."
        assert browser.path == f"/runs/{run}"
        assert engine.get_run(run).status == status
    assert browser.see(f"/runs/{run}").text.count("It is pending now") == 0  # it is said once


def test_a_refusal_is_told_in_the_librarys_words(engine: WorkflowEngine, browser: Browser) -> None:
    run = ordered(engine)
    browser.see(f"/runs/{run}")
    engine.cancel_workflow(run)
    browser.send(f"/runs/{run}/pause")
    assert browser.said == f"Run {run} is cancelled; only pending, running, waiting runs can be paused."
    for action in ("pause", "resume", "cancel"):
        assert not browser.page.all("form", action=f"/runs/{run}/{action}")


def test_an_event_is_sent_with_its_data(engine: WorkflowEngine, browser: Browser) -> None:
    run = ordered(engine)
    work(engine)
    page = browser.see(f"/runs/{run}")
    [form] = page.all("form", action=f"/runs/{run}/trigger")
    assert fields_of(form)["event"] == "clicked"
    browser.send(f"/runs/{run}/trigger", data="{nope")
    assert (
        browser.said
        == "The event's data is no JSON: Expecting property name enclosed in double quotes at line 1, column 2."
    )
    browser.send(f"/runs/{run}/trigger", data='{"at": "noon"}')
    work(engine)
    assert engine.get_run(run).output == {"click": {"at": "noon"}}
    for data in ("1e400", '"\\u0000"', "[" * 100_000):
        other = ordered(engine)
        browser.see(f"/runs/{other}")
        browser.send(f"/runs/{other}/trigger", event="x", data=data)
        assert browser.answer.status_code == 200
        assert rows(engine.conninfo, "select from pgworkflows.events where run_id = %s", other) == []


def test_a_wait_is_fast_forwarded_or_nothing_is_done(engine: WorkflowEngine, browser: Browser) -> None:
    run = engine.start_workflow(order, {"customer": "ada"}, delay="1 hour").id
    browser.see(f"/runs/{run}")
    browser.send(f"/runs/{run}/fast-forward")
    assert browser.said.startswith("Nothing was done")
    waiting = ordered(engine)
    work(engine)
    browser.see(f"/runs/{waiting}")
    browser.send(f"/runs/{waiting}/fast-forward", data="7")
    assert browser.said == f"Run {waiting}: fast-forwarded. It is pending now."
    work(engine)
    assert engine.get_run(waiting).output == {"click": 7}


def test_runs_that_were_ticked_are_steered_together(engine: WorkflowEngine, browser: Browser) -> None:
    runs = [str(run.id) for run in engine.start_workflows(order, [{"customer": "a"}] * 4, delay="1 hour")]
    engine.cancel_workflow(runs[3])
    browser.see("/runs?workflow=order")
    browser.send("/runs/bulk", action="pause", run=[runs[0], runs[1], runs[3], str(uuid4()), "nonsense"])
    assert browser.said == (
        f"2 runs paused. 1 not: Run {runs[3]} is cancelled; only pending, running, waiting runs can be paused."
    )
    assert browser.path == "/runs?workflow=order"
    assert [engine.get_run(run).status for run in runs] == ["paused", "paused", "pending", "cancelled"]


def test_a_list_offers_what_can_be_done_to_its_runs(browser: Browser) -> None:
    for query, actions in {
        "": ["pause", "resume", "cancel", "retry", "fast_forward"],
        "?status=failed": ["retry"],
        "?status=failed&status=paused": ["resume", "cancel", "retry", "fast_forward"],
        "?status=completed": [],
    }.items():
        page = browser.see(f"/runs{query}")
        offered = [[each.attributes["value"] for each in menu.all("option")] for menu in page.all("select")]
        assert offered == ([actions] * 2 if actions else []), query


def test_all_runs_that_match_are_counted_and_then_steered(engine: WorkflowEngine, browser: Browser) -> None:
    engine.start_workflows(order, [{"customer": "a"}] * 60, resource_id="x", delay="1 hour")
    engine.start_workflow(order, {"customer": "b"}, resource_id="y", delay="1 hour")
    page = browser.see("/runs?resource=x")
    [form] = [
        each
        for each in page.all("form")
        if each.attributes["action"] == "/runs/bulk" and "method" not in each.attributes
    ]
    assert fields_of(form) == {"resource": "x", "action": "pause"}
    page = browser.see("/runs/bulk?resource=x&action=cancel")
    assert "60 runs would be cancelled" in page.text
    browser.send("/runs/bulk")
    assert browser.said == "60 runs cancelled."
    assert browser.path == "/runs?resource=x"
    assert dict(
        rows(
            engine.conninfo,
            "select resource_id, count(*) from pgworkflows.runs where error is null and status = 'pending' group by 1",
        )
    ) == {"y": 1}
    assert "No run that matches can be cancelled" in browser.see("/runs/bulk?resource=x&action=cancel").text
    assert "No run that matches can be cancelled" in browser.see("/runs/bulk?status=failed&action=cancel").text
    assert browser.open("/runs/bulk?action=delete").status_code == 400


def test_one_form_steers_a_bounded_number_of_runs(
    engine: WorkflowEngine, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgworkflows.ui.runs.AT_ONCE", 5)
    engine.start_workflows(order, [{"customer": "a"}] * 8, delay="1 hour")
    browser.see("/runs/bulk?action=cancel")
    browser.send("/runs/bulk")
    assert browser.said == "5 runs cancelled. There may be more: one form does at most 5, and looks at 5,000."
    browser.see("/runs/bulk?action=cancel")
    browser.send("/runs/bulk")
    assert browser.said == "3 runs cancelled."


def test_schedules_are_paused_resumed_and_triggered(engine: WorkflowEngine, browser: Browser) -> None:
    browser.see("/schedules")
    browser.send("/schedules/pause")
    assert browser.said == "Schedule 'nap': paused."
    assert engine.get_schedule("nap").paused_at is not None
    browser.send("/schedules/resume")
    assert engine.get_schedule("nap").paused_at is None
    browser.send("/schedules/trigger")
    run = engine.get_workflow_last_run("nap")
    assert run is not None
    assert browser.said == f"Schedule 'nap': started run {run.id}."
    browser.send("/schedules/trigger", workflow="none")
    assert "workflow 'none' has no schedule" in browser.said.replace("W", "w", 1)


def test_colours_are_chosen_without_a_script(browser: Browser) -> None:
    themes = []
    browser.see("/runs?status=failed")
    for _ in range(3):
        browser.send("/theme", theme=browser.page.all("button", name="theme")[0].attributes["value"])
        assert browser.path == "/runs?status=failed"
        themes.append(browser.page.all("html")[0].attributes.get("data-theme"))
    assert themes == ["dark", "light", None]
    browser.send("/theme", theme="<x>")
    assert browser.answer.status_code == 400


# Starting -----------------------------------------------------------------------------------------------------------


def test_a_run_is_started_from_the_fields_of_its_schema(engine: WorkflowEngine, browser: Browser) -> None:
    page = browser.see("/start")
    [link] = [each for each in page.all("a") if each.text == "order"]
    page = browser.see(link.attributes["href"])
    assert [each.text for each in page.all("select", name="f:/size")[0].all("option")] == ["", "S", "L"]
    browser.send("/start", "add:/lines", **{"f:/customer": "ada & co", "f:/express": "true", "f:/size": '"L"'})
    assert rows(engine.conninfo, "select from pgworkflows.runs") == []
    browser.send("/start", "add:/lines", **{"f:/lines/0/sku": "first"})
    browser.send("/start", "add:/lines", **{"f:/lines/1/sku": "second", "f:/lines/1/count": "2"})
    browser.send("/start", "remove:/lines/0")
    typed = {"f:/lines/1/sku": "third", "f:/due": "2026-12-24", "json:/extra": '{"a": [1]}', "f:/price": "1.50"}
    browser.send("/start", "start", **typed, **{"option:resource_id": "r 1", "option:priority": "7"})
    [run] = engine.get_runs().items
    assert browser.said == f"Started run {run.id}."
    assert (run.resource_id, run.priority, run.workflow_id) == ("r 1", 7, "order")
    assert run.input == {
        "customer": "ada & co",
        "express": True,
        "size": "L",
        "kind": None,
        "due": "2026-12-24",
        "lines": [{"sku": "second", "count": 2}, {"sku": "third", "count": 1}],
        "price": 1.5,
        "extra": {"a": [1]},
    }


def test_complaints_stand_at_their_fields_and_nothing_typed_is_lost(engine: WorkflowEngine, browser: Browser) -> None:
    browser.see("/start?workflow=order")
    browser.send("/start", "add:/lines", **{"f:/customer": "ada"})
    typed = {"f:/lines/0/sku": "s", "f:/lines/0/count": "0", "f:/due": "soon", "option:resource_id": "r"}
    browser.send("/start", **typed)
    assert browser.answer.status_code == 422
    [form] = [each for each in browser.page.all("form") if each.attributes["action"] == "/start"]
    assert typed.items() <= fields_of(form).items()
    complaints = {
        each.attributes["id"]: each.text for each in form.all("ul") if each.attributes["class"] == "complaints"
    }
    assert complaints.keys() == {"e:/lines/0/count", "e:/due"}
    assert "greater than or equal to 1" in complaints["e:/lines/0/count"]
    [field] = form.all("input", name="f:/due")
    assert (field.attributes["aria-invalid"], "e:/due" in field.attributes["aria-describedby"]) == ("true", True)
    browser.send("/start", **{"f:/lines/0/count": "many", "json:/extra": "{", "f:/due": ""})
    assert "This is no whole number" in browser.page.text
    assert "This is no JSON" in browser.page.text
    assert rows(engine.conninfo, "select from pgworkflows.runs") == []
    browser.send("/start", **{"f:/lines/0/count": "3", "json:/extra": ""}, **{"option:queue": "x" * 300})
    assert "Nothing was started" in browser.said
    browser.send("/start", **{"option:queue": "", "option:delay": "1 hour"})
    assert engine.get_runs().items[0].input["lines"] == [{"sku": "s", "count": 3}]


def test_the_fields_become_json_and_json_fields(engine: WorkflowEngine, browser: Browser) -> None:
    browser.see("/start?workflow=order")
    browser.send("/start", "json", **{"f:/customer": "ada", "f:/express": "true"})
    [area] = browser.page.all("textarea", name="json:")
    assert json.loads(area.text) == {"customer": "ada", "express": True}
    browser.send("/start", "fields", **{"json:": "{"})
    assert "This is no JSON" in browser.page.text
    browser.send("/start", "fields", **{"json:": '{"customer": 7, "lines": [{"sku": "s"}], "price": "cheap"}'})
    [form] = [each for each in browser.page.all("form") if each.attributes["action"] == "/start"]
    expected = {"json:/customer": "7", "f:/lines/0/sku": "s", "json:/price": '"cheap"'}
    assert expected.items() <= fields_of(form).items()
    browser.send("/start", "json")
    browser.send("/start", "start", **{"json:": '{"customer": "eve"}'})
    assert engine.get_runs().items[0].input["customer"] == "eve"


def test_a_client_knows_a_workflows_schema_from_its_declaration(engine: WorkflowEngine) -> None:
    with WorkflowClient(engine.conninfo) as client:
        browser = Browser(Dashboard(client, actions=True))
        browser.see("/start?workflow=order")
        browser.send("/start", **{"f:/customer": "ada"})
        assert engine.get_runs().items[0].input == {"customer": "ada"}
        browser.see("/start?workflow=echo")
        browser.send("/start", **{"json:": '"as it is"'})
        assert engine.get_runs().items[0].input == "as it is"
        assert "No code has declared this workflow" in browser.see("/start?workflow=nobody").text
        assert browser.open("/start?workflow=%00").status_code == 400


def test_a_run_is_started_again_as_it_was_or_changed(engine: WorkflowEngine, browser: Browser) -> None:
    first = engine.start_workflow(order, {"customer": "ada", "lines": [{"sku": "s"}]}, resource_id="r", priority=5)
    browser.see(f"/runs/{first.id}")
    browser.send(f"/runs/{first.id}/start-again")
    again = engine.get_runs().items[0]
    assert browser.said == f"Started run {again.id} with the input of run {first.id}."
    assert (again.input, again.resource_id, again.priority) == (first.input, "r", 5)
    [link] = [each for each in browser.see(f"/runs/{first.id}").all("a") if each.text.startswith("Start with changes")]
    browser.see(link.attributes["href"])
    browser.send("/start", **{"f:/customer": "eve"})
    changed = engine.get_runs().items[0]
    assert changed.input == {**first.input, "customer": "eve"}
