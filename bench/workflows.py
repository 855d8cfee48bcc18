"""The work that is measured: steps that do nothing, so that what remains is the price of durability."""

from __future__ import annotations

from typing import Any

from pgworkflows import Step, workflow


def noop() -> Any:
    """A step's function that does nothing."""
    return {"ok": True}


@workflow("five")
def five(step: Step) -> Any:
    """Five steps that do nothing."""
    for number in range(5):
        yield step.run(f"s{number}", noop)
    return {"done": True}


@workflow("one")
def one(step: Step) -> Any:
    """One step that does nothing."""
    yield step.run("s", noop)
    return {"done": True}


@workflow("event")
def event(step: Step) -> Any:
    """A wait for an event."""
    return (yield step.wait_for("go", "go"))


WORKFLOWS = (five, one, event)
