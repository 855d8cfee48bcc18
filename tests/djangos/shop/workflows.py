"""What goes on behind the shop."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from pgworkflows import Step, Steps, workflow
from shop.models import Order


class Shipment(BaseModel):
    order: int


def pack(number: int) -> str:
    return Order.objects.get(pk=number).name


def mark_shipped(number: int) -> int:
    return Order.objects.filter(pk=number).update(shipped=True)


@workflow("ship")
def ship(step: Step, input: Shipment) -> Steps[Any]:
    name = yield from step.run("pack", pack, input.order)
    yield from step.run("mark-shipped", mark_shipped, input.order)
    return {"name": name}
