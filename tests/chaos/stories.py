"""The workflows of a storm. They do what their plan says; their step functions write to the ledger, and say in what
they return or raise which call it was."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from pgworkflows import ChildWorkflowFailedError, Step, StepFailedError, Steps, Workflow, current_step, workflow

from .ledger import Ledger
from .plans import Act, Plan

CAUGHT = "caught"
SCHEDULES = 4
TICK = Plan("tick", (Act("step"), Act("step", ms=20)))
"""What each run of a schedule does."""


class Broken(Exception):
    """What a planned failure raises; its message is the call."""


def workflows(ledger: Ledger) -> list[Workflow[Any, Any]]:
    """The workflows, which write to this ledger."""

    def work(act: Act) -> dict[str, Any]:
        call = ledger.begin()
        if act.ms:
            time.sleep(act.ms / 1000)
        if current_step().attempt <= act.fails:
            ledger.end(call, "failed")
            raise Broken(call)
        ledger.end(call, "ok")
        return {"call": call}

    def look(act: Act) -> dict[str, Any] | None:
        call = ledger.begin()
        found = current_step().attempt > act.fails
        ledger.end(call, "ok" if found else "miss")
        return {"call": call} if found else None

    def play(step: Step, id: str, act: Act) -> Steps[Any]:
        match act.do:
            case "step":
                command = step.run(id, work, act)
                if act.attempts > 1:
                    command = command.retry(attempts=act.attempts, wait=timedelta(seconds=0.2))
                try:
                    return (yield from command)
                except StepFailedError:
                    if not act.caught:
                        raise
                    return CAUGHT
            case "event":
                if act.seconds is None:
                    return (yield from step.wait_for(id, act.event))
                return (yield from step.wait_for(id, act.event, timeout=act.seconds))
            case "delay":
                return (yield from step.delay(id, act.seconds or 0))
            case "until":
                return (yield from step.wait_until(id, datetime.now(UTC) + timedelta(seconds=act.seconds or 0)))
            case "poll":
                return (yield from step.poll(id, look, act, interval="1s")).data
            case "pause":
                return (yield from step.pause(id))
            case "child":
                assert act.child is not None
                try:
                    return (
                        yield from step.invoke_child_workflow(
                            id, act.child.workflow, act.child, retries=act.child.retries
                        )
                    )
                except ChildWorkflowFailedError:
                    return CAUGHT
            case _:
                raise ValueError(act.do)

    def tell(step: Step, input: Plan) -> Steps[list[Any]]:
        seen: list[Any] = []
        for step_id, act in input.ids():
            seen.append((yield from play(step, step_id, act)))
        return seen

    def tick(step: Step, input: Plan = TICK) -> Steps[list[Any]]:
        return (yield from tell(step, input))

    every_minute = [
        workflow(f"minute-{number}", schedule="1 minute", catch_up="all")(tick) for number in range(SCHEDULES)
    ]
    return [workflow("tale")(tell), workflow("lone", singleton=True)(tell), *every_minute]
