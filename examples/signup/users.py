"""The users, as the workflow's steps write them. Called again after a crash, each finds its own work done."""

from __future__ import annotations

from datetime import datetime

from psycopg.rows import class_row
from pydantic import BaseModel

from examples.signup.contract import Outcome
from examples.signup.database import pool
from pgworkflows import current_step


class User(BaseModel):
    """One user, as far as the workflow needs to know."""

    id: int
    name: str
    email: str


def create_user(name: str, email: str) -> User | None:
    """The user of this run, made unless it is there; None if the address belongs to another one."""
    run_id = current_step().run_id
    with pool().connection() as conn, conn.cursor(row_factory=class_row(User)) as cursor:
        cursor.execute(
            "insert into users (run_id, name, email) values (%s, %s, %s) on conflict do nothing", (run_id, name, email)
        )
        return cursor.execute("select id, name, email from users where run_id = %s", (run_id,)).fetchone()


def settle_user(user_id: int, state: Outcome, confirmed_at: datetime | None = None) -> None:
    """Give an invited user the state that lasts."""
    with pool().connection() as conn:
        conn.execute(
            "update users set state = %s, confirmed_at = %s where id = %s and state = 'invited'",
            (state, confirmed_at, user_id),
        )
