# pyright: strict, reportUnusedFunction=false
"""What type checkers infer of workflows. mypy --strict and pyright both accept each line of this file."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, assert_type

import tenacity
from pydantic import BaseModel

from pgworkflows.commands import (
    Command,
    DelayCommand,
    InvokeChildCommand,
    PauseCommand,
    PollCommand,
    PollResult,
    RunCommand,
    Step,
    Steps,
    WaitForCommand,
    WaitUntilCommand,
)
from pgworkflows.definition import Workflow, WorkflowRef, workflow, workflow_ref


class SignUp(BaseModel):
    email: str


class User(BaseModel):
    id: int
    email: str


class Confirmation(BaseModel):
    at: datetime


def create_user(email: str, *, admin: bool = False) -> User:
    return User(id=len(email) + admin, email=email)


def find_user(email: str, tries: int) -> User | None:
    return User(id=tries, email=email)


def send(to: str, subject: str) -> None: ...


class Mailer:
    def send(self, to: str) -> int:
        return len(to)

    def handle(self, step: Step, input: SignUp) -> Steps[int]:
        return (yield from step.run("send", self.send, input.email))


# --- commands know their results


def commands(step: Step, mailer: Mailer) -> None:
    assert_type(step.run("a", create_user, "e"), RunCommand[User])
    assert_type(step.run("a", create_user, "e", admin=True), RunCommand[User])
    assert_type(step.run("a", create_user, email="e"), RunCommand[User])
    assert_type(step.run("a", mailer.send, "e"), RunCommand[int])
    assert_type(step.run("a", send, "to", subject="s"), RunCommand[None])
    assert_type(step.run("a", User, id=1, email="e"), RunCommand[User])
    assert_type(step.run("a", lambda: 5), RunCommand[int])
    assert_type(step.run("a", create_user, "e").retry(attempts=5, wait="1m", on=OSError), RunCommand[User])
    assert_type(step.run("a", create_user, "e").retry(wait=tenacity.wait_fixed(3)).timeout(5.5), RunCommand[User])
    assert_type(step.run("a", create_user, "e").retry(not_on=(OSError, KeyError)), RunCommand[User])
    assert_type(step.wait_for("a", "paid"), WaitForCommand[Any])
    assert_type(step.wait_for("a", "paid", schema=Confirmation), WaitForCommand[Confirmation])
    assert_type(step.wait_for("a", "paid", timeout="1d"), WaitForCommand[Any | None])
    assert_type(step.wait_for("a", "paid", timeout=5, schema=Confirmation), WaitForCommand[Confirmation | None])
    assert_type(step.wait_until("a", datetime.now(UTC)), WaitUntilCommand)
    assert_type(step.delay("a", timedelta(days=1)), DelayCommand)
    assert_type(step.sleep("a", 5), DelayCommand)
    assert_type(step.pause("a"), PauseCommand)
    invoked = workflow_ref("invoked", input_schema=SignUp, output_schema=User)
    assert_type(step.invoke_child_workflow("a", invoked, SignUp(email="e")), InvokeChildCommand[User])
    assert_type(step.invoke_child_workflow("a", invoked, {"email": "e"}, retries=3), InvokeChildCommand[User])
    assert_type(step.invoke_child_workflow("a", "by-id", [1, None], resource_id="r"), InvokeChildCommand[Any])
    assert_type(step.poll("a", find_user, "e", 3), PollCommand[User | None])
    assert_type(step.poll("a", find_user, "e", 3, interval="5s", timeout=timedelta(hours=1)), PollCommand[User | None])


# --- `yield from` is typed, `yield` is Any


@workflow("send-welcome", retries=3, timeout="1h", priority="high", queue="mail")
def send_welcome(step: Step, input: SignUp) -> Steps[User]:
    user = yield from step.run("create-user", create_user, input.email).retry(attempts=3)
    assert_type(user, User)
    assert_type((yield from step.run("send", send, user.email, "Welcome!")), None)
    confirmation = yield from step.wait_for("confirm", "confirmed", timeout="24 hours", schema=Confirmation)
    assert_type(confirmation, Confirmation | None)
    certain = yield from step.wait_for("certain", "confirmed", schema=Confirmation)
    assert_type(certain, Confirmation)
    polled = yield from step.poll("find", find_user, user.email, 3)
    assert_type(polled, PollResult[User | None])
    assert_type((yield from step.delay("delay", 5)), None)
    assert_type((yield from step.pause("pause")), None)
    anything = yield step.run("anything", send, "a", "b")
    assert_type(anything, Any)
    child = yield from other(step, 5)
    assert_type(child, str)
    assert_type((yield from tick(step)), None)
    invoked = yield from step.invoke_child_workflow("invoked", other, 5, priority="low", timeout="1d")
    assert_type(invoked, str)
    by_id = yield from step.invoke_child_workflow("by-id", "other", 5)
    assert_type(by_id, Any)
    return user


@workflow("other")
def other(step: Step, input: int) -> Steps[str]:
    return str((yield from step.run("a", lambda: input)))


@workflow("tick")
def tick(step: Step) -> Steps[None]:
    yield step.run("tick", send, "a", "b")


@workflow("optional")
def optional(step: Step, input: SignUp | None = None) -> Steps[bool]:
    yield step.delay("delay", 1)
    return input is None


@workflow("generator")
def generator(step: Step, input: list[int]) -> Generator[Command[Any], Any, int]:
    yield step.delay("delay", 1)
    return len(input)


assert_type(send_welcome, Workflow[SignUp, User])
assert_type(other, Workflow[int, str])
assert_type(tick, Workflow[None, None])
assert_type(optional, Workflow[SignUp | None, bool])
assert_type(generator, Workflow[list[int], int])
assert_type(workflow("method")(Mailer().handle), Workflow[SignUp, int])


# --- references


ref = workflow_ref("send-welcome", input_schema=SignUp, output_schema=User)
assert_type(ref, WorkflowRef[SignUp, User])
assert_type(workflow_ref("a"), WorkflowRef[Any, Any])
assert_type(workflow_ref("a", input_schema=SignUp), WorkflowRef[SignUp, Any])
assert_type(workflow_ref("a", output_schema=User), WorkflowRef[Any, User])
assert_type(workflow_ref("a", input_schema=SignUp | None), WorkflowRef[Any, Any])


@ref.handler(retries=3)
def handler(step: Step, input: SignUp) -> Steps[User]:
    return (yield from step.run("create-user", create_user, input.email))


@workflow_ref("free").handler()
def free(step: Step) -> Steps[None]:
    yield step.delay("delay", 1)


assert_type(handler, Workflow[SignUp, User])
assert_type(free, Workflow[Any, Any])


# --- what starts runs can ask for the input's type, and take any workflow

I = TypeVar("I")  # noqa: E741


def start(workflow: WorkflowRef[I, Any], input: I | None = None) -> None: ...
def serve(workflows: Sequence[Workflow[Any, Any]]) -> None: ...


start(send_welcome, SignUp(email="e"))
start(ref, SignUp(email="e"))
start(optional)
start(optional, SignUp(email="e"))
start(tick)
start(generator, [1, 2])
start(free, {"anything": 5})
serve([send_welcome, other, tick, optional, generator, handler, free])
