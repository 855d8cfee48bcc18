"""What applications share: it belongs to none of them until `init_app`."""

from __future__ import annotations

from flask_sqlalchemy import SQLAlchemy

from examples.flask_shop.models import Base
from pgworkflows.contrib.flask import PgWorkflows

db = SQLAlchemy(model_class=Base)
workflows = PgWorkflows()
