"""The web application: `python -m examples.signup.app`, or `flask --app examples.signup.app run`.

It starts runs and sends them events, and has none of the code that does the work. Reads DATABASE_URL, PORT
and SIGNUP_HOSTS.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from typing import Any
from uuid import UUID, uuid4

from flask import Flask, abort, redirect, render_template, request, url_for
from pydantic import BaseModel, Field, ValidationError
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

from examples.signup.contract import LINK_FOLLOWED, SIGN_UP, Click, Email, Name, SignUp
from examples.signup.database import pool
from pgworkflows import InvalidStatusError, WorkflowClient

app = Flask(__name__)
# The links in our mails are made from the Host header: only our own names may stand there.
app.config["TRUSTED_HOSTS"] = os.environ.get("SIGNUP_HOSTS", "127.0.0.1,localhost").split(",")


class Form(BaseModel):
    """What the form sends. `form_id` is drawn anew for each form shown."""

    name: Name
    email: Email
    form_id: UUID = Field(default_factory=uuid4)

    @property
    def idempotency_key(self) -> str:
        """The same for a form sent twice; another one for a form that was corrected in between."""
        return f"{self.form_id}/{self.email.lower()}"


PROBLEMS = {
    "name": "Please tell us your name, in at most 100 characters.",
    "email": "Please give an e-mail address such as ada@example.com.",
    "form_id": "This form has gone stale. Please send it once more.",
}


@cache
def workflows() -> WorkflowClient:
    """The process's client, on the connections of the application."""
    return WorkflowClient(pool=pool())


@app.get("/")
def form() -> str:
    """The sign-up form."""
    return form_page({})


@app.post("/")
def sign_up() -> Response | tuple[str, int]:
    """Write the sign-up and start its run, in one transaction: there is never one without the other."""
    try:
        sent = Form.model_validate(request.form.to_dict())
    except ValidationError as error:
        problems = {str(issue["loc"][0]): PROBLEMS[str(issue["loc"][0])] for issue in error.errors()}
        return form_page(request.form, problems), HTTPStatus.UNPROCESSABLE_ENTITY
    token = secrets.token_urlsafe(24)
    confirm_url = url_for("confirm", token=token, _external=True)
    with pool().connection() as conn:
        run = workflows().start_workflow(
            SIGN_UP,
            SignUp(name=sent.name, email=sent.email, confirm_url=confirm_url),
            idempotency_key=sent.idempotency_key,
            connection=conn,
        )
        # A form sent twice gets the run of the first time, and its row is there.
        conn.execute(
            "insert into signups (run_id, name, email, token) values (%s, %s, %s, %s) on conflict (run_id) do nothing",
            (run.id, sent.name, sent.email, token),
        )
    return redirect(url_for("status", run_id=run.id), HTTPStatus.SEE_OTHER)


@app.get("/confirm/<token>")
def confirm(token: str) -> Response:
    """The link in the mail. Programs that look through mail follow links, too: where that matters, show a button."""
    with pool().connection() as conn:
        found = conn.execute("select run_id from signups where token = %s", (token,)).fetchone()
        if found is None:
            abort(HTTPStatus.NOT_FOUND)
        # A run that has ended takes no events: it is confirmed, or expired, and the status page tells which.
        with suppress(InvalidStatusError):
            workflows().trigger_event(
                found[0], LINK_FOLLOWED, Click(at=datetime.now(UTC)), idempotency_key="click", connection=conn
            )
    return redirect(url_for("status", run_id=found[0]), HTTPStatus.SEE_OTHER)


@app.get("/signups/<uuid:run_id>")
def status(run_id: UUID) -> str:
    """How far one sign-up is."""
    with pool().connection() as conn:
        found = conn.execute(
            "select s.name, u.state from signups as s left join users as u using (run_id) where s.run_id = %s",
            (run_id,),
        ).fetchone()
    if found is None:
        abort(HTTPStatus.NOT_FOUND)
    name, state = found
    return render_template(
        "status.html",
        name=name,
        state=state,
        progress=workflows().check_progress(run_id),
        steps=workflows().get_steps(run_id),
    )


@app.get("/signups")
def signups() -> str:
    """Everybody: a page for the operator, one plain query over the application's tables and the library's."""
    with pool().connection() as conn:
        rows = conn.execute(
            """
            select s.run_id, s.name, s.email, u.state, r.status, r.current_step_id,
                s.created_at at time zone 'UTC'
            from signups as s
            join pgworkflows.runs as r on r.id = s.run_id
            left join users as u using (run_id)
            order by s.created_at desc
            limit 500
            """
        ).fetchall()
    return render_template("signups.html", rows=rows)


@app.errorhandler(HTTPStatus.NOT_FOUND)
def not_found(_error: Exception) -> tuple[str, int]:
    """No such page, link or sign-up."""
    return render_template("not_found.html"), HTTPStatus.NOT_FOUND


def form_page(values: Mapping[str, Any], problems: Mapping[str, str] | None = None) -> str:
    """The form, filled in as it was sent if it has to be sent again."""
    return render_template("form.html", values=values, problems=problems or {}, form_id=uuid4())


def main() -> None:
    """Serve on loopback, on PORT or a free one, and say where. For production there are better servers."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = make_server("127.0.0.1", int(os.environ.get("PORT", "0")), app, threaded=True)
    print(f"http://127.0.0.1:{server.port}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
