"""The shop's tables."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables of the shop."""


class Article(Base):
    """What is sold, and how much of it is left."""

    __tablename__ = "articles"
    __table_args__ = (CheckConstraint("stock >= 0", name="articles_stock_is_there"),)

    name: Mapped[str] = mapped_column(primary_key=True)
    stock: Mapped[int]


class Order(Base):
    """What somebody wants. There is never one without its run, nor a run without its order."""

    __tablename__ = "orders"
    __table_args__ = (CheckConstraint("quantity between 1 and 100", name="orders_quantity_makes_sense"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    article: Mapped[str] = mapped_column(ForeignKey("articles.name"))
    quantity: Mapped[int]
    status: Mapped[str] = mapped_column(default="new")
    run_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Charge(Base):
    """A charge of a customer's card: what stands for the payment provider, which knows keys it has seen."""

    __tablename__ = "charges"

    key: Mapped[str] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
