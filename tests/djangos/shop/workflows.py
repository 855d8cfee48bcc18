"""What goes on behind the shop."""

from __future__ import annotations

from typing import Any

from django.db import connection
from pydantic import BaseModel

from pgworkflows import ChildWorkflowFailedError, Step, Steps, workflow
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


class Question(BaseModel):
    steps: int


def backend_pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        [pid] = cursor.fetchone()
    return int(pid)


@workflow("ask")
def ask(step: Step, input: Question) -> Steps[Any]:
    for number in range(input.steps):
        yield from step.run(f"ask-{number}", backend_pid)


def describe() -> str:
    return "<b>bold</b>"


@workflow("family")
def family(step: Step, input: Shipment) -> Steps[Any]:
    yield from step.run("describe", describe)
    try:
        yield from step.invoke_child_workflow("ship", ship, {"order": input.order})
    except ChildWorkflowFailedError as error:
        return str(error)


@workflow("nap")
def nap(step: Step) -> Steps[Any]:
    yield from step.delay("sleep", "1 hour")


@workflow("tick", schedule="1 hour")
def tick(step: Step) -> Steps[Any]:
    yield from step.run("describe", describe)
