"""What a release does before its processes start: `python -m examples.signup.release`. Safe to run again."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg

from examples.signup.workflow import sign_up
from pgworkflows import WorkflowEngine

TABLES = Path(__file__).with_name("tables.sql")


def main() -> None:
    """Make the application's tables, apply pgworkflows' migrations, and declare the workflow to the database."""
    url = os.environ["DATABASE_URL"]
    with psycopg.connect(url) as conn:
        conn.execute(TABLES.read_bytes())
    with WorkflowEngine(url, workflows=[sign_up]) as engine:
        engine.start(worker=False)


if __name__ == "__main__":
    main()
