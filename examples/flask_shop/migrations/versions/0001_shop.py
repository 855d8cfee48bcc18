"""The shop's tables, and something to sell."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    articles = op.create_table(
        "articles",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("stock", sa.Integer, nullable=False),
        sa.CheckConstraint("stock >= 0", name="articles_stock_is_there"),
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("customer", sa.String, nullable=False),
        sa.Column("article", sa.String, sa.ForeignKey("articles.name"), nullable=False),
        sa.Column("quantity", sa.Integer, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("run_id", sa.Uuid),
        sa.Column("created_at", sa.DateTime, nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("quantity between 1 and 100", name="orders_quantity_makes_sense"),
    )
    op.create_table(
        "charges",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("order_id", sa.Integer, sa.ForeignKey("orders.id"), nullable=False),
    )
    op.bulk_insert(articles, [{"name": "teapot", "stock": 1000}, {"name": "last-cup", "stock": 1}])


def downgrade() -> None:
    for table in ("charges", "orders", "articles"):
        op.drop_table(table)
