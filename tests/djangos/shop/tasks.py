"""Small things that are done behind the shop, in Django's own way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import django

from shop.models import Order

if TYPE_CHECKING or django.VERSION >= (6,):
    from django.tasks import task
else:
    from django_tasks import task


@task
def add(left: int, right: int = 0) -> int:
    return left + right


@task(queue_name="mail", priority=5)
async def mail(address: str) -> str:
    return f"sent to {address}"


@task(takes_context=True)
def fail_first(context: Any, name: str) -> dict[str, Any]:
    if context.attempt == 1:
        Order.objects.get(name=name)
    return {"attempt": context.attempt, "id": context.task_result.id}


@task
def fail() -> None:
    raise ValueError("never")


@task
def bad_result() -> object:
    return object()


@task
def leave() -> None:
    raise SystemExit("out of here")


@task(takes_context=True)
def who_am_i(context: Any) -> str:
    return str(context.task_result.id)
