"""pgworkflows' tables, as of its migration 7."""

from alembic import op

from pgworkflows.contrib.alembic import apply_migrations

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    apply_migrations(op, to=7)


def downgrade() -> None:
    """The runs stay: `drop schema pgworkflows cascade` would be the end of them."""
