"""What a new user does first: a workflow, an engine, a run. Prints the outcome.

usage: python first_workflow.py [URL]
"""

import sys
from pathlib import Path

import pgworkflows
from pgworkflows import Step, WorkflowEngine, workflow

assert Path(pgworkflows.__file__).is_relative_to(sys.prefix), f"not the installed package: {pgworkflows.__file__}"


def double(number: int) -> int:
    return 2 * number


@workflow("doubling")
def doubling(step: Step, input: int):  # type: ignore[no-untyped-def]  # as in the documentation's first example
    once = yield step.run("once", double, input)
    twice = yield step.run("twice", double, once)
    return twice


engine = WorkflowEngine(sys.argv[1] if len(sys.argv) > 1 else None, workflows=[doubling])
engine.start()
run = engine.start_workflow(doubling, 3)
print(engine.wait_for_run(run.id, timeout=60).output, engine.check_progress(run.id).completion_percentage)
engine.stop()
engine.close()
