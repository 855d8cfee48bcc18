# mypy: disable-error-code="no-untyped-def, no-any-return"
# pyright: standard
"""Handlers as people write them first, without return annotations or without any: type checkers leave them alone."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from pgworkflows.commands import Step
from pgworkflows.definition import Workflow, workflow, workflow_ref


class SignUp(BaseModel):
    email: str


def create_user(email: str) -> dict[str, str]:
    return {"email": email}


def untyped(value):
    return value


@workflow("send-welcome", retries=3)
def send_welcome(step: Step, input: SignUp):
    user = yield step.run("create-user", create_user, input.email)
    yield step.run("send-email", untyped, user["email"])
    confirmation = yield step.wait_for("await-confirmation", event_name="user-confirmed", timeout="24 hours")
    return {"success": True, "user": user, "confirmation": confirmation}


@workflow("no-input")
def no_input(step: Step):
    yield step.delay("delay", 5)


@workflow("default")
def default(step: Step, input: SignUp | None = None):
    typed = yield from step.run("typed", create_user, "e")
    if input is None:
        return None
    return typed["email"]


@workflow("untyped")
def nothing_said(step, input):
    user = yield step.run("create-user", create_user, input["email"])
    return user


@workflow("dynamic")
def dynamic(step: Step, input: list[str]):
    commands = [step.run(f"create-{email}", create_user, email) for email in input]
    users = []
    for command in commands:
        users.append((yield command))
    return users


@workflow_ref("referenced", input_schema=SignUp).handler(retries=1)
def referenced(step: Step, input: SignUp):
    yield step.pause("pause")
    return input.email


everything: list[Workflow[Any, Any]] = [send_welcome, no_input, default, nothing_said, dynamic, referenced]
takes_sign_up: Workflow[SignUp, Any] = send_welcome
takes_maybe_sign_up: Workflow[SignUp | None, Any] = default
takes_none: Workflow[None, Any] = no_input
