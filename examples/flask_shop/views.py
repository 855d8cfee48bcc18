"""The shop's pages, all JSON."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, abort, request
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import select

from examples.flask_shop.extensions import db, workflows
from examples.flask_shop.fulfilment import SHIPPED, Fulfilment, fulfil
from examples.flask_shop.models import Article, Order
from pgworkflows import InvalidStatusError
from pgworkflows.contrib.flask import idempotency_key

shop = Blueprint("shop", __name__)

Answer = tuple[dict[str, Any], int]


class NewOrder(BaseModel):
    """What a customer sends."""

    customer: str = Field(min_length=1, max_length=100)
    article: str
    quantity: int = Field(ge=1, le=100)


@shop.post("/orders")
def place_order() -> Answer:
    """Write the order and start its run, in one transaction: both are there, or neither. A request that is sent again
    with its Idempotency-Key brings the order of the first time."""
    try:
        wanted = NewOrder.model_validate(request.get_json())
    except ValidationError as error:
        return {"problems": error.errors(include_url=False, include_context=False)}, 422
    if db.session.get(Article, wanted.article) is None:
        return {"problems": [f"there is no article {wanted.article!r}"]}, 422
    order = Order(**wanted.model_dump())
    db.session.add(order)
    db.session.flush()
    run = workflows.engine.start_workflow(
        fulfil,
        Fulfilment(order_id=order.id),
        idempotency_key=idempotency_key(wanted.customer),
        connection=db.session,
    )
    if run.input["order_id"] != order.id:
        db.session.rollback()
        return found(run.input["order_id"]), 200
    order.run_id = run.id
    db.session.commit()
    return found(order.id), 201


@shop.get("/orders/<int:order_id>")
def look(order_id: int) -> dict[str, Any]:
    """How far an order is."""
    return found(order_id)


@shop.post("/orders/<int:order_id>/shipped")
def ship(order_id: int) -> Answer:
    """The parcel has left the house."""
    order = db.session.get(Order, order_id) or abort(404)
    assert order.run_id is not None
    try:
        workflows.engine.trigger_event(order.run_id, SHIPPED, idempotency_key="shipped", connection=db.session)
    except InvalidStatusError as error:
        return {"problems": [str(error)]}, 409
    db.session.commit()
    return {}, 202


@shop.get("/stock")
def stock() -> dict[str, int]:
    """What is left."""
    return {article.name: article.stock for article in db.session.scalars(select(Article))}


@shop.get("/healthz")
def healthz() -> Answer:
    """For a load balancer: whether this process can do its work. The details are for us, and not for everybody."""
    health = workflows.engine.health(timeout="2 seconds")
    return {"ok": health.ok}, 200 if health.ok else 503


def found(order_id: int) -> dict[str, Any]:
    """An order as JSON."""
    order = db.session.get(Order, order_id) or abort(404)
    assert order.run_id is not None
    progress = workflows.engine.check_progress(order.run_id)
    return {"id": order.id, "status": order.status, "progress": progress.completion_percentage}
