"""How Alembic gets to the database: as the application does."""

from __future__ import annotations

from alembic import context

from examples.flask_shop import create_app
from examples.flask_shop.extensions import db

with create_app().app_context(), db.engine.connect() as connection:
    # Each revision in a transaction of its own: ours locks nothing for longer than it takes.
    context.configure(connection=connection, target_metadata=db.metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
