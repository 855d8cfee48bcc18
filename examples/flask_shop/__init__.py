"""A shop: orders by HTTP, and a workflow that sees each of them through. `create_app` makes the application."""

from __future__ import annotations

import os

from flask import Flask

from examples.flask_shop.extensions import db, workflows
from examples.flask_shop.fulfilment import fulfil
from examples.flask_shop.views import shop


def create_app() -> Flask:
    """An application of its own each time, configured by DATABASE_URL and by variables that begin with FLASK_."""
    app = Flask(__name__)
    # SQLAlchemy is told the driver; postgresql+psycopg2 does as well.
    url = os.environ["DATABASE_URL"]
    app.config["SQLALCHEMY_DATABASE_URI"] = url.replace("postgresql://", "postgresql+psycopg://", 1)
    app.config["PGWORKFLOWS_GRACE"] = "10 seconds"
    app.config.from_prefixed_env()
    db.init_app(app)
    workflows.init_app(app, workflows=[fulfil])
    app.register_blueprint(shop)
    return app
