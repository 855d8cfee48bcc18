"""A worker process: `python -m examples.signup.worker`. Start as many as you like.

It reads DATABASE_URL, SMTP_URL, SIGNUP_REMIND_AFTER and SIGNUP_EXPIRE_AFTER. SIGTERM ends it gracefully.
"""

from __future__ import annotations

import logging

from examples.signup.database import pool
from examples.signup.workflow import sign_up
from pgworkflows import WorkflowEngine


def main() -> None:
    """Work until told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with pool(), WorkflowEngine(workflows=[sign_up]) as engine:
        engine.worker(threads=8, grace="10s").run_forever()


if __name__ == "__main__":
    main()
