"""A worker process with a workflow that is scheduled every minute and makes up for all ticks that were missed.

usage: python every_minute.py URL
"""

import logging
import sys
from typing import Any

from pgworkflows import Step, Steps, WorkflowEngine, workflow


@workflow("every-minute", schedule="1 minute", catch_up="all")
def every_minute(step: Step) -> Steps[Any]:
    yield from step.pause("stay")


logging.basicConfig(level=logging.INFO)
with WorkflowEngine(sys.argv[1], workflows=[every_minute]) as engine:
    engine.worker(queues=["nobody's"]).run_forever()
