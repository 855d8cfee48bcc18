"""Engines without a connection string, in a directory of their own. Prints what came of it.

usage: python engine_without_url.py   (with or without DATABASE_URL in the environment)
"""

import json
import logging
import sys

from pgworkflows import Step, Steps, WorkflowClient, WorkflowEngine, workflow

logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


@workflow("double")
def double(step: Step, input: int) -> Steps[int]:
    return 2 * (yield from step.run("once", abs, input))


with WorkflowEngine(workflows=[double]) as engine, WorkflowEngine() as second, WorkflowClient() as client:
    engine.start()
    run = engine.start_workflow(double, 21)
    output = client.wait_for_run(run.id, timeout="30s").output
    same = engine.conninfo == client.conninfo == second.conninfo
print(json.dumps({"output": output, "same": same, "conninfo": engine.conninfo}))
