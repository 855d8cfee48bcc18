"""A worker process whose steps write into a ledger outside the database what they were given and what they return.

usage: python ledger_worker.py URL LEDGER
"""

import json
import logging
import os
import secrets
import sys
import time
from typing import Any

from pgworkflows import Step, Steps, WorkflowEngine, current_step, workflow

STEPS = 6

url, path = sys.argv[1:]
ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(given: str | None) -> str:
    """A line at the beginning, with what the step before returned; then some work; what this call returns."""
    current = current_step()
    token = secrets.token_hex(8)
    line = {"at": time.time(), "run": str(current.run_id), "step": current.step_id, "given": given, "token": token}
    os.write(ledger, (json.dumps(line) + "\n").encode())  # one write: lines of several processes do not mix
    time.sleep(0.005)
    return token


@workflow("ledger")
def entries(step: Step) -> Steps[Any]:
    token = told = None
    for number in range(STEPS):
        token = yield step.run(f"s{number}", note, token)
        if number == 2:
            told = yield step.wait_for("told", "go")
    return {"told": told, "last": token}


logging.basicConfig(level=logging.INFO)
with WorkflowEngine(url, workflows=[entries]) as engine:
    engine.worker(threads=4, max_runs=32).run_forever()
