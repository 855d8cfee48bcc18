"""Workflows and runs of many kinds, to be looked at: what a shop may have, and what somebody hostile would store."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field
from waiting import until

from pgworkflows import Step, StepFailedError, Steps, Workflow, WorkflowEngine, workflow
from pgworkflows.runs import RunStatus

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg/onload=alert(3)> "
    "{{ 7 * 7 }} ${7 * 7} {% raw %} <!-- ]]> &amp; javascript:alert(4)"
)
"""What must be shown as it stands."""
TURNED = "invoice\u202egnp.exe\u2066\u200b"
"""What must not be shown as it asks for: it would be read as invoiceexe.png."""


class Speed(StrEnum):
    NORMAL = "normal"
    EXPRESS = "express"


class Line(BaseModel):
    article: str
    count: int = Field(1, ge=1, le=99, description="How many of it")


class Order(BaseModel):
    customer: str = Field(min_length=2)
    lines: list[Line] = []
    speed: Speed = Speed.NORMAL
    gift: bool = False
    due: date | None = None


def charge(customer: str) -> dict[str, Any]:
    return {"customer": customer, "cents": 4200}


@workflow("checkout")
def checkout(step: Step, input: Order) -> Steps[Any]:
    payment = yield from step.run("charge", charge, input.customer)
    if input.gift:
        yield from step.run("wrap", str)
    parcel = yield from step.wait_for("await-parcel", "parcel-collected", timeout="3 days")
    yield from step.run("send-receipt", str, input.customer)
    return {"payment": payment, "parcel": parcel}


def read_feed() -> None:
    raise ValueError("line 7 of the feed has no price")


@workflow("import-prices")
def import_prices(step: Step) -> Steps[Any]:
    yield from step.run("fetch", str)
    yield from step.run("read-feed", read_feed).retry(attempts=2, wait=0.01)


@workflow("shelve")
def shelve(step: Step, input: Any) -> Steps[Any]:
    return (yield from step.run("put", lambda: input))


@workflow("restock")
def restock(step: Step) -> Steps[Any]:
    first = yield from step.invoke_child_workflow("shelve", shelve, {"article": "tea", "count": 12})
    yield from step.delay("dry", "2 hours")
    return first


@workflow("nightly-report", schedule="0 4 * * *", timezone="Europe/Zurich")
def nightly_report(step: Step) -> Steps[Any]:
    yield from step.run("count", int)
    yield from step.pause("ask-somebody")


@workflow("count-stock")
def count_stock(step: Step, input: int) -> Steps[Any]:
    for number in range(input):
        yield from step.run(f"shelf-{number}", int, number)


def say(text: str) -> None:
    raise RuntimeError(text)


@workflow(HOSTILE[:200])
def hostile(step: Step, input: Any) -> Steps[Any]:
    yield from step.run(HOSTILE[:100] + "1", lambda: input)
    yield from step.run(TURNED, lambda: TURNED)
    with suppress(StepFailedError):
        yield from step.run(HOSTILE[:100] + "2", say, HOSTILE + TURNED)
    yield from step.wait_for("await", HOSTILE[:100])
    yield from step.run("fail", say, HOSTILE)


WORKFLOWS: list[Workflow[Any, Any]] = [checkout, import_prices, shelve, restock, nightly_report, count_stock, hostile]


def nested(depth: int) -> Any:
    value: Any = HOSTILE
    for _ in range(depth):
        value = {"in": [value]}
    return value


@dataclass(frozen=True)
class Exhibits:
    """Runs, by what is to be seen of them."""

    waiting: UUID
    completed: UUID
    failed: UUID
    parent: UUID
    paused: UUID
    pending: UUID
    cancelled: UUID
    long: UUID
    hostile: UUID

    @classmethod
    def put_up(cls, engine: WorkflowEngine) -> Exhibits:
        """Start them, and let them come as far as they go."""

        def start(workflow: Any, input: Any = None, **options: Any) -> UUID:
            return engine.start_workflow(workflow, input, **options).id

        order = {"customer": "Ada", "lines": [{"article": "tea", "count": 2}], "gift": True}
        made = cls(
            waiting=start(checkout, order, resource_id="customer 7"),
            completed=start(checkout, {**order, "gift": False}, resource_id="customer 8"),
            failed=start(import_prices),
            parent=start(restock),
            paused=start(nightly_report),
            pending=start(checkout, order, delay="1 hour"),
            cancelled=start(checkout, order),
            long=start(count_stock, 220),
            hostile=start(
                hostile,
                {HOSTILE: TURNED, "deep": nested(200), "long": HOSTILE[0:40] * 26_000},
                resource_id=HOSTILE[:200],
                idempotency_key=HOSTILE[:200],
            ),
        )
        engine.trigger_event(made.completed, "parcel-collected", {"by": "Bea"})
        engine.trigger_event(made.waiting, "something-else", {"text": HOSTILE})
        engine.cancel_workflow(made.cancelled)
        engine.worker().run_until_idle("60s")
        engine.trigger_event(made.hostile, HOSTILE[:100], {HOSTILE: HOSTILE})
        engine.worker().run_until_idle("60s")
        until(lambda: engine.get_run(made.hostile).status is RunStatus.FAILED, "the hostile run has failed")
        return made
