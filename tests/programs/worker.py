"""A worker process to be stopped, killed or frozen.

usage: python worker.py URL OPTIONS   (OPTIONS: those of Worker, as JSON)
"""

import json
import logging
import sys

import stories

from pgworkflows import WorkflowEngine

logging.basicConfig(level=logging.INFO)
url, options = sys.argv[1], json.loads(sys.argv[2])
stories.url = url
with WorkflowEngine(url, workflows=stories.WORKFLOWS) as engine:
    engine.worker(**options).run_forever()
