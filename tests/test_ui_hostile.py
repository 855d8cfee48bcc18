"""What a hostile or unlucky visitor may send to a dashboard, and what that costs and shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_ui import WORKFLOWS, order
from visiting import Browser
from werkzeug.test import Client
from werkzeug.wrappers import Request

from pgworkflows import WorkflowEngine, WorkflowRun
from pgworkflows.ui import Dashboard

FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def engine(database_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(database_url, workflows=WORKFLOWS) as made:
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
