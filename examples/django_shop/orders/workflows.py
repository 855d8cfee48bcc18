"""What goes on behind the shop. Workers find this module by its name."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from orders.models import Order
from pgworkflows import Step, Steps, workflow


class Fulfilment(BaseModel):
    order: int


def set_state(number: int, state: str) -> None:
    # A step may run twice if its process dies: what it does can be done twice.
    Order.objects.filter(pk=number).update(state=state)


@workflow("fulfil", retries=3)
def fulfil(step: Step, input: Fulfilment) -> Steps[Any]:
    yield from step.run("pack", set_state, input.order, "packed")
    parcel = yield from step.wait_for("await-parcel", event_name="shipped", timeout="14 days")
    if parcel is None:
        yield from step.run("give-up", set_state, input.order, "lost")
        return {"shipped": False}
    yield from step.run("close", set_state, input.order, "shipped")
    return {"shipped": True}
