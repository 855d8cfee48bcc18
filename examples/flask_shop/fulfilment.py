"""What happens to an order. The steps are ordinary functions with `db.session`; each commits what it does."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert

from examples.flask_shop.extensions import db
from examples.flask_shop.models import Article, Charge, Order
from pgworkflows import Step, Steps, current_step, workflow

SHIPPED = "shipped"


class Fulfilment(BaseModel):
    """Which order it is about."""

    order_id: int


def reserve(order_id: int) -> bool:
    """Take the goods out of the stock; whether there were enough. An order that has its goods takes no more."""
    order = db.session.get_one(Order, order_id)
    if order.status == "new":
        taken = db.session.execute(
            update(Article)
            .where(Article.name == order.article, Article.stock >= order.quantity)
            .values(stock=Article.stock - order.quantity)
            .returning(Article.name)
        )
        order.status = "sold out" if taken.first() is None else "reserved"
        db.session.commit()
    return order.status == "reserved"


def charge(order_id: int) -> None:
    """Charge the card, once: the step's key is the same if it is called again."""
    db.session.execute(
        insert(Charge).values(key=current_step().idempotency_key, order_id=order_id).on_conflict_do_nothing()
    )
    db.session.commit()


def mark(order_id: int, status: str) -> None:
    """Write down how far the order is."""
    db.session.get_one(Order, order_id).status = status
    db.session.commit()


@workflow("fulfil", retries=3)
def fulfil(step: Step, input: Fulfilment) -> Steps[str]:
    """Reserve the goods, charge the card, wait for the parcel to leave the house."""
    if not (yield from step.run("reserve", reserve, input.order_id)):
        return "sold out"
    yield from step.run("charge", charge, input.order_id).retry(attempts=5)
    yield from step.run("mark-paid", mark, input.order_id, "paid")
    shipped = yield from step.wait_for("await-shipment", SHIPPED, timeout="14 days")
    outcome = "overdue" if shipped is None else "shipped"
    yield from step.run("mark-end", mark, input.order_id, outcome)
    return outcome
