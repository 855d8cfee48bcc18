"""The workflow of `pgworkflows demo`. A bank that does not answer at first, and a power cut, are part of the story."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from pgworkflows.commands import Step, Steps
from pgworkflows.current import current_step
from pgworkflows.definition import workflow
from pgworkflows.engine import WorkflowEngine

POWER_CUT = "PGWORKFLOWS_DEMO_POWER_CUT"
"""The environment variable that names a file which is there until the power is cut."""


@workflow("order")
def order(step: Step, input: dict[str, Any]) -> Steps[str]:
    yield from step.run("reserve", reserve, input["article"])
    yield from step.run("charge-card", charge_card, input["price"]).retry(attempts=3, wait="1 second")
    parcel = yield from step.run("pack", pack, input["article"])
    courier = yield from step.wait_for("await-courier", "picked-up", timeout="2 days")
    yield from step.delay("let-it-travel", "2 seconds")
    return f"{parcel}, taken by {courier['name']}" if courier else "nobody came for it"


def reserve(article: str) -> str:
    time.sleep(0.3)
    return f"one {article}"


def charge_card(price: float) -> dict[str, Any]:
    if current_step().attempt == 1:
        raise ConnectionError("the bank does not answer")
    return {"paid": price, "key": current_step().idempotency_key}


def pack(article: str) -> str:
    time.sleep(0.3)
    power_cut()
    return f"a parcel with one {article}"


def power_cut() -> None:
    """The first time, the process is killed in the middle of its work."""
    try:
        Path(os.environ[POWER_CUT]).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def engine() -> WorkflowEngine:
    """Made by the worker's process, of $DATABASE_URL."""
    return WorkflowEngine(workflows=[order])
