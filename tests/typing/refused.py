# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnusedFunction=false
"""What type checkers refuse: each line marked `type: ignore` is an error to mypy --strict and to pyright.

Both report a mark that is not needed, so this file is clean only as long as both refuse each of these lines.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

from pgworkflows.commands import Command, Step, Steps
from pgworkflows.definition import WorkflowRef, workflow, workflow_ref


class SignUp(BaseModel):
    email: str


class Other(BaseModel):
    email: str


def create_user(email: str, *, admin: bool = False) -> int:
    return len(email) + admin


def commands(step: Step) -> None:
    step.run("a", create_user)  # type: ignore[call-arg]
    step.run("a", create_user, 5)  # type: ignore[arg-type]
    step.run("a", create_user, "e", "more")  # type: ignore[call-arg, arg-type]
    step.run("a", create_user, "e", admim=True)  # type: ignore[call-arg]
    step.run("a", create_user, "e", admin="yes")  # type: ignore[arg-type]
    step.run("a", "create_user", "e")  # type: ignore[arg-type]
    step.run(5, create_user, "e")  # type: ignore[arg-type]
    step.poll("a", create_user)  # type: ignore[arg-type]
    step.poll("a", create_user, 5)  # type: ignore[arg-type]
    step.run("a", create_user, "e").retry(attempts="3")  # type: ignore[arg-type]
    step.run("a", create_user, "e").retry(on=5)  # type: ignore[arg-type]
    step.delay("a", None)  # type: ignore[arg-type]
    step.wait_until("a", 5)  # type: ignore[arg-type]
    step.delay("a", 5).retry()  # type: ignore[attr-defined]
    step.invoke_child_workflow("a", create_user, 5)  # type: ignore[call-overload]
    step.invoke_child_workflow("a", workflow_ref("b", input_schema=SignUp), Other(email="e"))  # type: ignore[misc]
    step.invoke_child_workflow("a", "b", priority=None, timeout=None, queue="q")  # type: ignore[call-overload]


def wrong_result(step: Step) -> Steps[str]:
    return (yield from step.run("a", create_user, "e"))  # type: ignore[return-value]


def optional_event(step: Step) -> Steps[str]:
    event = yield from step.wait_for("a", "paid", timeout="1d", schema=SignUp)
    return event.email  # type: ignore[union-attr]


def yields_text(step: Step) -> Steps[None]:
    yield "a"  # type: ignore[misc]


def handler(step: Step, input: SignUp) -> Steps[int]:
    return (yield from step.run("a", create_user, input.email))


def no_generator(step: Step, input: SignUp) -> int:
    return 5


def three_parameters(step: Step, input: SignUp, more: int) -> Steps[int]:
    return (yield from step.run("a", create_user, input.email))


async def asynchronous(step: Step, input: SignUp) -> None: ...


workflow(handler)  # type: ignore[arg-type]
workflow("a", retries="3")  # type: ignore[arg-type]
workflow("a", nothing=3)  # type: ignore[call-arg]
workflow("a")(no_generator)  # type: ignore[arg-type]
workflow("a")(three_parameters)  # type: ignore[arg-type]
workflow("a")(asynchronous)  # type: ignore[arg-type]
workflow_ref("a", input_schema=Other).handler()(handler)  # type: ignore[arg-type]
workflow_ref("a", output_schema=str).handler()(handler)  # type: ignore[arg-type]

defined = workflow("a")(handler)
I = TypeVar("I")  # noqa: E741


def start(workflow: WorkflowRef[I, Any], input: I | None = None) -> None: ...
def composed(step: Step) -> Steps[None]:
    yield from defined(step, Other(email="e"))  # type: ignore[arg-type]
    yield from defined(step)  # type: ignore[call-arg]
    result: str = yield from defined(step, SignUp(email="e"))  # type: ignore[assignment]
    command: Command[str] = step.run("a", create_user, "e")  # type: ignore[arg-type]
    _ = result, command


start(defined, Other(email="e"))  # type: ignore[misc]
start(workflow_ref("a", input_schema=SignUp), "e")  # type: ignore[misc]
