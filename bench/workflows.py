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


@workflow("nap")
def nap(step: Step, milliseconds: int) -> Any:
    """A timer."""
    yield step.delay("nap", f"{milliseconds}ms")
    return {"done": True}


@workflow("many")
def many(step: Step, steps: int) -> Any:
    """As many steps as the input says."""
    for number in range(steps):
        yield step.run(f"s{number}", noop)
    return {"done": True}


@workflow("story")
def story(step: Step, steps: int) -> Any:
    """As many steps as the input says, and then a wait for an event."""
    for number in range(steps):
        yield step.run(f"s{number}", noop)
    return (yield step.wait_for("go", "go"))


WORKFLOWS = (five, one, event, nap, many, story)
