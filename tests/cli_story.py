"""What the tests of the command line look at: a database in which some things have happened."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from pgworkflows import WorkflowClient, WorkflowEngine, WorkflowRun, workflow

HOSTILE = "\x1b[31mred\x1b[0m \x9b2J \u202egnp [bold]loud[/bold]\nsecond \x07line"
"""Words that would colour a terminal, clear it, turn its writing and ring its bell; and rich's markup."""
ESCAPES = ("\x1b[31m", "\x9b", "\u202e", "\x07")


def refuse() -> None:
    raise LookupError(HOSTILE)


@workflow("sign-up")
def sign_up(step: Any, input: Any) -> Any:
    user = yield step.run("create-user", lambda: {"email": input["email"]})
    confirmed = yield step.wait_for("await-confirmation", "confirmed", timeout="24 hours")
    yield step.run("greet", lambda: "hello")
    return {"user": user, "confirmed": confirmed}


@workflow("invoice")
def invoice(step: Any, input: Any) -> Any:
    yield step.run("count", lambda: 3)
    yield step.run("charge", refuse)


@workflow("onboard")
def onboard(step: Any) -> Any:
    return (yield step.invoke_child_workflow("sign-up", "sign-up", {"email": "kid@example.com"}))


@workflow("nightly", schedule="0 3 * * *")
def nightly(step: Any) -> Any:
    yield step.run("sweep", lambda: "clean")


WORKFLOWS = (sign_up, invoice, onboard, nightly)


class Story:
    """The runs in the database at `url`, by what they show."""

    def __init__(self, url: str) -> None:
        self.url = url
        with WorkflowEngine(url, workflows=WORKFLOWS) as engine:
            engine.start(worker=False)
            self.waiting = self._start(engine, "sign-up", {"email": "ada@example.com"}, resource_id="ada")
            self.failed = self._start(engine, "invoice", {"note": HOSTILE}, idempotency_key="i-1")
            self.parent = self._start(engine, "onboard")
            with WorkflowClient(url) as client:
                self.orphan = self._start(client, "retired", {"long": "x" * 500}, queue="elsewhere")
                client.trigger_event(self.waiting, "hurry", {"please": HOSTILE})
            engine.worker().run_until_idle("30s")

    def _start(self, client: WorkflowClient, workflow_id: str, *arguments: Any, **options: Any) -> UUID:
        run: WorkflowRun = client.start_workflow(workflow_id, *arguments, **options)
        return run.id


def advance(url: str) -> None:
    """Let a worker do what is ready."""
    with WorkflowEngine(url, workflows=WORKFLOWS) as engine:
        engine.worker().run_until_idle("30s")
